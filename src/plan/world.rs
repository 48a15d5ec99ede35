//! The world of a plan: jobs that come, a store that commits, a provider that answers as was assumed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::dice::Dice;
use super::drive::{Agenda, World};
use super::supply::Supply;
use crate::clock::WallMs;
use crate::config::Provider;
use crate::dispatch::core::{Answered, CallEnd, Core, Event, Now};
use crate::job::{Job, JobState};
use crate::pace::{KeyId, Signal, Time};
use crate::sim::Lognormal;
use crate::store::{Claimed, JobPk, Next, Record, Recorded, StoredResponse};

/// How long a commit takes.
const COMMIT: Duration = Duration::from_millis(2);
/// How often the room for more jobs is worked out anew.
const ROOM_EVERY: Duration = Duration::from_millis(20);
/// The same while nothing goes: well below the time for which the core claims ahead.
const ROOM_SELDOM: Duration = Duration::from_millis(500);
/// A look after a long time of nothing may be late by that part of the time that has passed.
const LATE: u32 = 20_000;
/// Jobs of one claim at most.
const CLAIM_MAX: usize = 500;

/// What is due in this world.
#[derive(Debug)]
pub enum Own {
    /// It is time to look for jobs; the number tells a stale look from the valid one.
    Look(u64),
    /// A claim was committed: its jobs, and how many of them each lane has.
    Claimed(Vec<Claimed>, Vec<usize>),
}

/// A job between its claim and its end.
#[derive(Debug, Clone)]
struct Held {
    lane: usize,
    arrived: Time,
    attempts: u32,
    failures: u32,
    first_attempt_ms: Option<WallMs>,
    backoff: Duration,
}

/// What was seen of one lane.
#[derive(Debug, Default)]
pub struct LaneTally {
    /// Jobs that were sent for the first time: how long each had waited by then, in nanoseconds.
    pub waits: Vec<u64>,
    /// When its last job ended.
    pub done: Time,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// When calls left, in nanoseconds.
    pub departures: Vec<u64>,
    /// With which keys, in the same order.
    pub keys: Vec<KeyId>,
    /// By lane.
    pub lanes: Vec<LaneTally>,
    /// Jobs that ended well.
    pub succeeded: u64,
    /// Jobs that ended in another way.
    pub dead: u64,
    /// When the last one ended.
    pub last_end: Time,
}

/// See the module.
#[derive(Debug)]
pub struct Planned {
    timeout: Duration,
    latency: Lognormal,
    failures: f64,
    dice: Dice,
    templates: Vec<Job>,
    supplies: Vec<Supply>,
    /// Claimed, and not in line yet.
    coming: Vec<usize>,
    held: HashMap<JobPk, Held>,
    due: BinaryHeap<Reverse<(WallMs, JobPk)>>,
    ready: Vec<VecDeque<JobPk>>,
    next_pk: JobPk,
    start_ms: WallMs,
    target: usize,
    room_at: Time,
    idle: Duration,
    /// The valid look, and when it is due.
    look: (u64, Option<Time>),
    /// What was seen.
    pub tally: Tally,
}

impl Planned {
    /// A world in which jobs like these templates come, one template and one supply for each lane that is used;
    /// `lanes` are their places in the provider's list.
    pub fn new(
        provider: &Provider,
        work: &super::Work,
        templates: Vec<Job>,
        supplies: Vec<Supply>,
        start_ms: WallMs,
    ) -> Self {
        let lanes = supplies.len();
        let tally = Tally { lanes: (0..lanes).map(|_| LaneTally::default()).collect(), ..Tally::default() };
        Self {
            timeout: provider.policy.timeout,
            latency: work.latency,
            failures: work.failures,
            dice: Dice::new(work.seed),
            templates,
            supplies,
            coming: vec![0; lanes],
            held: HashMap::new(),
            due: BinaryHeap::new(),
            ready: vec![VecDeque::new(); lanes],
            next_pk: 0,
            start_ms,
            target: 0,
            room_at: Time::ZERO,
            idle: ROOM_EVERY,
            look: (0, None),
            tally,
        }
    }

    /// The first thing that is due.
    pub fn begin(&mut self, agenda: &mut Agenda<Own>) {
        self.look_in(Duration::ZERO, agenda);
    }

    /// Whether every job has come and ended.
    pub fn is_done(&self) -> bool {
        self.held.is_empty() && self.supplies.iter().all(Supply::is_spent)
    }

    /// Jobs that have come so far, and not ended.
    pub fn unfinished(&self, now: Time) -> u64 {
        let waiting: u64 = self.supplies.iter().map(|supply| supply.arrived_unclaimed(now)).sum();
        self.held.len() as u64 + waiting
    }

    /// Looks after so long at the latest.
    fn look_in(&mut self, after: Duration, agenda: &mut Agenda<Own>) {
        let at = agenda.now().mono + after;
        if self.look.1.is_none_or(|planned| at < planned) {
            self.look = (self.look.0 + 1, Some(at));
            agenda.call_back(after, Own::Look(self.look.0));
        }
    }

    /// Claims what there is room for, and says when to look again.
    fn claim(&mut self, core: &mut Core, agenda: &mut Agenda<Own>) {
        let now = agenda.now();
        if self.room_at <= now.mono {
            self.target = core.target(now);
            self.room_at = now.mono + ROOM_EVERY;
        }
        self.wake_due(now);
        let mut claimed = Vec::new();
        let mut by_lane = vec![0; self.supplies.len()];
        let mut starved = false;
        for (lane, count) in by_lane.iter_mut().enumerate() {
            let number = self.supplies[lane].lane;
            let room = self.target.saturating_sub(core.in_line(number) + self.coming[lane]);
            let before = claimed.len();
            let asked = room.min(CLAIM_MAX);
            while claimed.len() - before < asked
                && let Some(job) = self.next_of(lane, now)
            {
                claimed.push(job);
            }
            *count = claimed.len() - before;
            self.coming[lane] += *count;
            let more = self.supplies[lane].next_at().is_some_and(|at| at <= now.mono);
            starved |= more || !self.ready[lane].is_empty();
        }
        let went = !claimed.is_empty();
        if went {
            agenda.call_back(COMMIT, Own::Claimed(claimed, by_lane));
        }
        self.look_again(went, starved, core, agenda);
    }

    /// When there may be something to claim: in a while where there was no room, else when the next job comes.
    fn look_again(&mut self, went: bool, starved: bool, core: &Core, agenda: &mut Agenda<Own>) {
        let now = agenda.now();
        let (in_line, open) = core.counts();
        let seldom = ROOM_SELDOM.max(now.mono.since(Time::ZERO) / LATE);
        self.idle = if went || in_line + open > 0 { ROOM_EVERY } else { (self.idle * 2).min(seldom) };
        let busy = if self.target >= CLAIM_MAX { ROOM_EVERY } else { ROOM_EVERY * 5 };
        let poll = starved.then(|| self.idle.max(busy));
        let due = self.due.peek().map(|Reverse((at, _))| {
            Duration::from_millis(u64::try_from(at.saturating_sub(now.wall)).unwrap_or(0)).max(Duration::from_millis(1))
        });
        let arrival = self.supplies.iter().filter_map(Supply::next_at).min().map(|at| at.since(now.mono));
        // What came already waits for room.
        let arrival = arrival.filter(|after| !after.is_zero());
        let next = [poll, due, arrival].into_iter().flatten().min();
        if let Some(after) = next {
            self.look_in(after, agenda);
        }
    }

    /// It can be claimed again from then on; not before the core has let go of it, when the commit is told.
    fn due_at(&mut self, pk: JobPk, due_ms: WallMs, agenda: &mut Agenda<Own>) {
        let now_ms = agenda.now().wall;
        let after_ms = due_ms.saturating_sub(now_ms).max(1 + i64::try_from(COMMIT.as_millis()).unwrap_or(0));
        self.due.push(Reverse((now_ms.saturating_add(after_ms), pk)));
        self.look_in(Duration::from_millis(u64::try_from(after_ms).unwrap_or(0)), agenda);
    }

    fn wake_due(&mut self, now: Now) {
        while let Some(Reverse((at, pk))) = self.due.peek().copied()
            && at <= now.wall
        {
            self.due.pop();
            if let Some(held) = self.held.get(&pk) {
                self.ready[held.lane].push_back(pk);
            }
        }
    }

    fn next_of(&mut self, lane: usize, now: Now) -> Option<Claimed> {
        if let Some(pk) = self.ready[lane].pop_front() {
            return self.claimed(pk);
        }
        let arrived = self.supplies[lane].take(now.mono)?;
        let pk = self.next_pk;
        self.next_pk += 1;
        let fresh = Held { lane, arrived, attempts: 0, failures: 0, first_attempt_ms: None, backoff: Duration::ZERO };
        self.held.insert(pk, fresh);
        self.claimed(pk)
    }

    fn claimed(&self, pk: JobPk) -> Option<Claimed> {
        let held = self.held.get(&pk)?;
        Some(Claimed {
            pk,
            epoch: 1,
            run: 1,
            attempts: held.attempts,
            failures: held.failures,
            first_attempt_ms: held.first_attempt_ms,
            backoff: held.backoff,
            created_ms: self.start_ms,
            job: self.templates[held.lane].clone(),
        })
    }

    fn ended(&mut self, pk: JobPk, state: JobState, now: Time) {
        let Some(held) = self.held.remove(&pk) else { return };
        let ended = if state == JobState::Succeeded { &mut self.tally.succeeded } else { &mut self.tally.dead };
        *ended += 1;
        self.tally.last_end = now;
        self.tally.lanes[held.lane].done = now;
    }
}

impl World for Planned {
    type Own = Own;

    fn called(&mut self, pk: JobPk, _job: &Arc<Job>, key: KeyId, agenda: &mut Agenda<Own>) {
        let now = agenda.now();
        self.tally.departures.push(now.mono.as_nanos());
        self.tally.keys.push(key);
        if let Some(held) = self.held.get_mut(&pk)
            && held.first_attempt_ms.is_none()
        {
            held.first_attempt_ms = Some(now.wall);
            let waited = now.mono.since(held.arrived).as_nanos();
            self.tally.lanes[held.lane].waits.push(u64::try_from(waited).unwrap_or(u64::MAX));
        }
        let answer = self.dice.delay(&self.latency);
        if answer >= self.timeout {
            let end = CallEnd::Lost("no answer in time".to_owned());
            return agenda.tell(self.timeout, Event::Ended { pk, end });
        }
        let fails = self.failures > 0.0 && self.dice.unit() < self.failures;
        let response = StoredResponse {
            status: if fails { 503 } else { 200 },
            headers: String::new(),
            content_type: None,
            body: Bytes::new(),
            truncated: false,
        };
        agenda.tell(answer, Event::Head { pk, signal: Box::default() });
        let (signal, told) = (Signal::default(), Signal::default());
        let end = CallEnd::Answered(Box::new(Answered { response, signal, told, cost: None, ruling: None }));
        agenda.tell(answer, Event::Ended { pk, end });
    }

    fn record(&mut self, record: Box<Record>, agenda: &mut Agenda<Own>) {
        let pk = record.pk;
        agenda.tell(COMMIT, Event::Recorded { pk, recorded: Recorded::Done });
        if let Some(held) = self.held.get_mut(&pk) {
            held.failures = record.failures;
            held.attempts = record.attempt.as_ref().map_or(held.attempts, |attempt| attempt.n);
        }
        match record.next {
            Next::Keep | Next::Running => {}
            Next::Release => self.due_at(pk, 0, agenda),
            Next::Wait { due_ms, backoff, .. } => {
                if let Some(held) = self.held.get_mut(&pk) {
                    held.backoff = backoff;
                }
                self.due_at(pk, due_ms, agenda);
            }
            Next::Finish { state, .. } => self.ended(pk, state, agenda.now().mono),
        }
    }

    fn happened(&mut self, own: Own, core: &mut Core, agenda: &mut Agenda<Own>) {
        match own {
            Own::Look(number) if number == self.look.0 => {
                self.look.1 = None;
                self.claim(core, agenda);
            }
            Own::Look(_) => {}
            Own::Claimed(jobs, by_lane) => {
                self.coming.iter_mut().zip(by_lane).for_each(|(coming, came)| *coming -= came);
                core.handle(Event::Claimed(jobs), agenda.now(), &mut || self.dice.unit());
            }
        }
    }

    fn random(&mut self) -> f64 {
        self.dice.unit()
    }
}
