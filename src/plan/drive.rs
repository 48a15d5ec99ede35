//! Virtual time around the dispatcher's [`Core`]: what happens next happens at once, and the clock jumps to it.
//!
//! The core is the very one that [`crate::dispatch`] runs for real. What it cannot know (who enqueues, how long calls and
//! commits take, how they end) is a [`World`].

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::WallMs;
use crate::dispatch::core::{Command, Core, Event, Note, Now};
use crate::job::Job;
use crate::pace::{KeyId, Time};
use crate::store::{JobPk, Record};

/// Everything around the core.
pub trait World {
    /// What else can be due than an event of the core.
    type Own;

    /// A call leaves: plan its [`Event::Head`] and [`Event::Ended`].
    fn called(&mut self, pk: JobPk, job: &Arc<Job>, key: KeyId, agenda: &mut Agenda<Self::Own>);

    /// A record is to be committed: plan its [`Event::Recorded`].
    fn record(&mut self, record: Box<Record>, agenda: &mut Agenda<Self::Own>);

    /// Something of its own is due.
    fn happened(&mut self, own: Self::Own, core: &mut Core, agenda: &mut Agenda<Self::Own>);

    /// Something worth telling.
    fn noted(&mut self, _note: &Note) {}

    /// In `[0, 1)`.
    fn random(&mut self) -> f64;
}

/// What is due when, and what time it is.
#[derive(Debug)]
pub struct Agenda<O> {
    now: Time,
    start_ms: WallMs,
    due: BinaryHeap<Entry<O>>,
    serial: u64,
}

#[derive(Debug)]
enum Due<O> {
    Core(Event),
    Own(O),
}

#[derive(Debug)]
struct Entry<O> {
    at: Time,
    serial: u64,
    due: Due<O>,
}

impl<O> PartialEq for Entry<O> {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl<O> Eq for Entry<O> {}

impl<O> PartialOrd for Entry<O> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<O> Ord for Entry<O> {
    /// The earliest is the greatest, since it is the next of a heap; of two at the same time the one planned first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.serial).cmp(&(self.at, self.serial))
    }
}

impl<O> Agenda<O> {
    /// Nothing is due; the wall clock stands at `start_ms`.
    fn new(start_ms: WallMs) -> Self {
        Self { now: Time::ZERO, start_ms, due: BinaryHeap::new(), serial: 0 }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        let passed = self.now.since(Time::ZERO).as_millis();
        Now { mono: self.now, wall: self.start_ms.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX)) }
    }

    /// Tells the core that, after so long.
    pub fn tell(&mut self, after: Duration, event: Event) {
        self.plan(after, Due::Core(event));
    }

    /// Comes back to the world with that, after so long.
    pub fn call_back(&mut self, after: Duration, own: O) {
        self.plan(after, Due::Own(own));
    }

    fn plan(&mut self, after: Duration, due: Due<O>) {
        self.serial += 1;
        self.due.push(Entry { at: self.now + after, serial: self.serial, due });
    }
}

/// A core, its world, and the time.
#[derive(Debug)]
pub struct Drive<W: World> {
    /// The dispatcher.
    pub core: Core,
    /// What is around it.
    pub world: W,
    /// The time, and what is due.
    pub agenda: Agenda<W::Own>,
}

impl<W: World> Drive<W> {
    /// Begins at that wall-clock time.
    pub fn new(core: Core, world: W, start_ms: WallMs) -> Self {
        Self { core, world, agenda: Agenda::new(start_ms) }
    }

    /// On to the next instant at which something is due. `false`: nothing ever is.
    pub fn step(&mut self) -> bool {
        let now = self.agenda.now();
        // The core may ask to be woken at once when it has just been; time always goes on.
        let wake = self.core.wake_at(now).map(|at| at.max(now.mono + Duration::from_nanos(1)));
        let planned = self.agenda.due.peek().map(|entry| entry.at);
        let Some(at) = [wake, planned].into_iter().flatten().min() else { return false };
        self.agenda.now = at.max(now.mono);
        while self.agenda.due.peek().is_some_and(|entry| entry.at <= self.agenda.now)
            && let Some(entry) = self.agenda.due.pop()
        {
            match entry.due {
                Due::Core(event) => self.tell(event),
                Due::Own(own) => self.world.happened(own, &mut self.core, &mut self.agenda),
            }
        }
        self.obey();
        true
    }

    /// Tells the core something now.
    pub fn tell(&mut self, event: Event) {
        let world = &mut self.world;
        self.core.handle(event, self.agenda.now(), &mut || world.random());
    }

    /// Does what the core wants done.
    pub fn obey(&mut self) {
        for command in self.core.advance(self.agenda.now()) {
            match command {
                Command::Call { pk, job, key } => self.world.called(pk, &job, key, &mut self.agenda),
                Command::Record(record) => self.world.record(record, &mut self.agenda),
                Command::Note(note) => self.world.noted(&note),
            }
        }
    }
}
