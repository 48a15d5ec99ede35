//! The waiting jobs of one provider.
//!
//! Lanes share the slots by their weights (stride scheduling: the lane that is furthest behind goes first). Within a
//! lane jobs go first come first served among those that can go: jobs of the same routes and pin stand in one queue,
//! and a queue whose head has no slot sleeps until it may have one, so that a blocked pin or route stalls nobody else.
//!
//! A head that waits for a slot holds a *reservation*: whoever comes after it may pass only if that does not make it
//! wait longer. So large costs do not starve, and small ones fill the gaps.

use super::Time;
use super::ask::{Acquire, Ask, KeyId, Permit, Pin, Routes, Why};
use super::pool::Pool;
use super::spec::LaneSpec;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};

/// One unit of service moves a lane of weight 1 on by so much.
const STRIDE: u64 = 1 << 24;
/// A lane that could not go is owed at most so much service.
const LAG: u64 = 16 * STRIDE;
/// So many smaller jobs behind a waiting head are looked at.
const LOOK_BEHIND: usize = 8;
/// So many reservations are looked at before one job passes; beyond that, nobody passes.
const RESERVATIONS: usize = 64;

/// Names a waiting job until it is granted or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    serial: u64,
    queue: u32,
}

/// What a waiting job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// `None`: for a slot. Else what is out of use.
    pub why: Option<Why>,
    /// At the latest then, as far as is known.
    pub until: Option<Time>,
}

/// What to do next.
#[derive(Debug)]
#[must_use]
pub enum Next<T> {
    /// Send this job with this permit, now.
    Ready(T, Permit, KeyId),
    /// Look again then, or after any answer or change of the pool.
    At(Time),
    /// Look again after an answer or a change of the pool: nothing else helps.
    Waiting,
    /// Nobody waits.
    Empty,
}

#[derive(Debug)]
struct Entry<T> {
    serial: u64,
    cost: u64,
    item: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    lane: usize,
    routes: Routes,
    pin: Option<Pin>,
}

#[derive(Debug)]
struct Queue<T> {
    kind: Kind,
    entries: VecDeque<Entry<T>>,
    /// `None`: it may have something to send.
    asleep: Option<Wait>,
    /// Tells a stale alarm from the valid one.
    alarm: u64,
}

#[derive(Debug)]
struct Lane {
    name: String,
    weight: u64,
    turn: u64,
    len: usize,
    /// Queues that may have something to send, by the age of their head.
    awake: BTreeSet<(u64, usize)>,
}

/// The waiting jobs of one provider; see the module.
#[derive(Debug)]
pub struct Line<T> {
    lanes: Vec<Lane>,
    queues: Vec<Queue<T>>,
    spare: Vec<usize>,
    by_kind: HashMap<Kind, usize>,
    by_pin: HashMap<Pin, Vec<usize>>,
    unpinned: Vec<usize>,
    alarms: BinaryHeap<Reverse<(Time, usize, u64)>>,
    serial: u64,
    alarm: u64,
    turn: u64,
    seen: (u64, u64),
}

impl<T> Line<T> {
    /// A line with these lanes; their ids are their places here. Without any there is one lane.
    pub fn new(lanes: &[LaneSpec]) -> Line<T> {
        let lane = |name: &str, weight: u32| Lane {
            name: name.to_owned(),
            weight: u64::from(weight.max(1)),
            turn: 0,
            len: 0,
            awake: BTreeSet::new(),
        };
        let mut lanes: Vec<Lane> = lanes.iter().map(|spec| lane(&spec.name, spec.weight)).collect();
        if lanes.is_empty() {
            lanes.push(lane("default", 1));
        }
        Line {
            lanes,
            queues: Vec::new(),
            spare: Vec::new(),
            by_kind: HashMap::new(),
            by_pin: HashMap::new(),
            unpinned: Vec::new(),
            alarms: BinaryHeap::new(),
            serial: 0,
            alarm: 0,
            turn: 0,
            seen: (0, 0),
        }
    }

    /// The id of a lane by its name.
    pub fn lane(&self, name: &str) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.name == name)
    }

    /// A job joins the end of its lane (the first one, if there is no such lane).
    pub fn push(&mut self, item: T, lane: usize, ask: Ask) -> Ticket {
        let lane = if lane < self.lanes.len() { lane } else { 0 };
        let kind = Kind { lane, routes: ask.routes, pin: ask.pin };
        let queue = self.by_kind.get(&kind).copied().unwrap_or_else(|| self.open_queue(kind));
        let serial = self.serial;
        self.serial += 1;
        if self.lanes[lane].len == 0 {
            // A lane that was idle does not get what it did not ask for.
            self.lanes[lane].turn = self.lanes[lane].turn.max(self.turn);
        }
        self.lanes[lane].len += 1;
        let first = self.queues[queue].entries.is_empty();
        self.queues[queue].entries.push_back(Entry { serial, cost: ask.cost, item });
        if first {
            self.queues[queue].asleep = None;
            self.lanes[lane].awake.insert((serial, queue));
        }
        Ticket { serial, queue: queue as u32 }
    }

    /// Jobs waiting.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.len).sum()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Jobs waiting in one lane.
    pub fn lane_len(&self, lane: usize) -> usize {
        self.lanes.get(lane).map_or(0, |lane| lane.len)
    }

    /// The waiting job of this ticket.
    pub fn get(&self, ticket: Ticket) -> Option<&T> {
        let queue = self.queues.get(ticket.queue as usize)?;
        let place = queue.entries.binary_search_by_key(&ticket.serial, |entry| entry.serial).ok()?;
        Some(&queue.entries[place].item)
    }

    /// Takes a job out of the line; `None` if it is not waiting any more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let number = ticket.queue as usize;
        let queue = self.queues.get(number)?;
        let place = queue.entries.binary_search_by_key(&ticket.serial, |entry| entry.serial).ok()?;
        self.take(number, place).map(|entry| entry.item)
    }

    /// Takes out every job that `which` says.
    pub fn remove_where(&mut self, mut which: impl FnMut(&T) -> bool) -> Vec<T> {
        let chosen: Vec<Ticket> = self.tickets().filter(|(_, item)| which(item)).map(|(ticket, _)| ticket).collect();
        chosen.into_iter().filter_map(|ticket| self.remove(ticket)).collect()
    }

    /// All waiting jobs, in no particular order.
    pub fn tickets(&self) -> impl Iterator<Item = (Ticket, &T)> {
        self.queues.iter().enumerate().flat_map(|(number, queue)| {
            let ticket = move |entry: &Entry<T>| Ticket { serial: entry.serial, queue: number as u32 };
            queue.entries.iter().map(move |entry| (ticket(entry), &entry.item))
        })
    }

    /// Jobs that, as far as was known at the last look, cannot go before `horizon`: for want of a slot, or because
    /// something is out of use. The dispatcher hands them back to the store.
    pub fn waiting_beyond(&self, horizon: Time) -> impl Iterator<Item = (Ticket, &T, Wait)> {
        let far = move |wait: &Wait| match wait {
            Wait { until: Some(until), .. } => *until > horizon,
            Wait { why, until: None } => why.is_some(),
        };
        let queues = self.queues.iter().enumerate();
        let far_queues = queues.filter_map(move |(number, queue)| Some((number, queue, queue.asleep.filter(far)?)));
        far_queues.flat_map(|(number, queue, wait)| {
            let ticket = move |entry: &Entry<T>| Ticket { serial: entry.serial, queue: number as u32 };
            queue.entries.iter().map(move |entry| (ticket(entry), &entry.item, wait))
        })
    }

    /// The next job that can go, with its permit; or what to wait for. Call it until it is not `Ready`.
    pub fn next(&mut self, pool: &mut Pool, now: Time) -> Next<T> {
        if self.is_empty() {
            self.alarms.clear();
            return Next::Empty;
        }
        self.wake(pool, now);
        let mut order: Vec<usize> = (0..self.lanes.len()).filter(|&lane| !self.lanes[lane].awake.is_empty()).collect();
        order.sort_by_key(|&lane| (self.lanes[lane].turn, lane));
        for lane in order {
            while let Some(&(serial, queue)) = self.lanes[lane].awake.first() {
                match self.try_queue(queue, pool, now) {
                    Ok((place, permit)) => {
                        if let Some(entry) = self.take(queue, place) {
                            self.charge(lane, if pool.uses_cost() { entry.cost.max(1) } else { 1 });
                            let key = permit.key();
                            return Next::Ready(entry.item, permit, key);
                        }
                        pool.abandon(permit, now);
                    }
                    Err(wait) => {
                        self.lanes[lane].awake.remove(&(serial, queue));
                        self.sleep(queue, wait);
                    }
                }
            }
        }
        self.first_alarm().map_or(Next::Waiting, Next::At)
    }

    /// A permit for the head of this queue, or for a smaller job behind it that delays nobody.
    fn try_queue(&mut self, queue: usize, pool: &mut Pool, now: Time) -> Result<(usize, Permit), Wait> {
        let head = self.ask(queue, 0);
        let mut wait = match self.try_ask(queue, 0, pool, now) {
            Ok(permit) => return Ok((0, permit)),
            Err(wait) => wait,
        };
        if !pool.uses_cost() || wait.why.is_some() {
            return Err(wait);
        }
        // The head waits for its slot; it becomes a reservation that those behind it must respect.
        self.queues[queue].asleep = Some(wait);
        let mut least = head.cost;
        for place in 1..self.queues[queue].entries.len().min(LOOK_BEHIND + 1) {
            let ask = self.ask(queue, place);
            if ask.cost >= least {
                continue;
            }
            least = ask.cost;
            match self.try_ask(queue, place, pool, now) {
                Ok(permit) => {
                    self.queues[queue].asleep = None;
                    return Ok((place, permit));
                }
                Err(other) => wait.until = earlier(wait.until, other.until.filter(|until| *until > now)),
            }
        }
        Err(wait)
    }

    fn ask(&self, queue: usize, place: usize) -> Ask {
        let Queue { kind, entries, .. } = &self.queues[queue];
        Ask { cost: entries.get(place).map_or(1, |entry| entry.cost), routes: kind.routes, pin: kind.pin }
    }

    /// A permit that delays no reservation. If it would, another key is tried before giving up.
    fn try_ask(&mut self, queue: usize, place: usize, pool: &mut Pool, now: Time) -> Result<Permit, Wait> {
        let ask = self.ask(queue, place);
        // The key that would delay somebody, and until when that one waits.
        let mut except: Option<(KeyId, Time)> = None;
        loop {
            let permit = match (pool.acquire_but(&ask, except.map(|except| except.0), now), except) {
                (Acquire::Granted(permit), _) => permit,
                // No other key has room: that one is waited for.
                (_, Some((_, reserved))) => {
                    return Err(Wait { why: None, until: Some(reserved).filter(|time| *time != Time::MAX) });
                }
                (Acquire::At(time), None) => {
                    return Err(Wait { why: None, until: Some(time) });
                }
                (Acquire::WhenAnswered { at_most }, None) => {
                    return Err(Wait { why: None, until: Some(at_most).filter(|time| *time != Time::MAX) });
                }
                (Acquire::Blocked { why, until }, None) => {
                    return Err(Wait { why: Some(why), until });
                }
            };
            let serial = self.queues[queue].entries[place].serial;
            match self.delayed_by(&permit, queue, serial, pool, now) {
                None => return Ok(permit),
                Some(reserved) => {
                    let key = permit.key();
                    pool.abandon_unseen(permit, now);
                    if except.is_some() || ask.pin.is_some() {
                        return Err(Wait { why: None, until: Some(reserved).filter(|time| *time != Time::MAX) });
                    }
                    except = Some((key, reserved));
                }
            }
        }
    }

    /// Whether this permit makes somebody wait longer who comes first; then, until when that one waits.
    fn delayed_by(&mut self, permit: &Permit, queue: usize, serial: u64, pool: &mut Pool, now: Time) -> Option<Time> {
        let mut seen = 0;
        let budget = pool.budget_of(permit.key()).map(Pin::Budget);
        let pinned = [Some(Pin::Key(permit.key())), budget].into_iter().flatten();
        let pinned: Vec<usize> = pinned.filter_map(|pin| self.by_pin.get(&pin)).flatten().copied().collect();
        for other in self.unpinned.iter().copied().chain(pinned) {
            let Some(Wait { why: None, until: Some(until) }) = self.queues[other].asleep else {
                continue;
            };
            if !self.comes_first(other, queue, serial) {
                continue;
            }
            seen += 1;
            if seen > RESERVATIONS {
                return Some(until);
            }
            let ask = self.ask(other, 0);
            let after = pool.earliest(&ask, now);
            if after <= until.max(now) {
                continue;
            }
            let before = pool.earliest_without(permit, &ask, now);
            if after > before {
                if before <= now {
                    self.rouse(other);
                }
                return Some(before.max(now.plus(1)));
            }
        }
        None
    }

    fn comes_first(&self, other: usize, queue: usize, serial: u64) -> bool {
        let Some(head) = self.queues[other].entries.front() else {
            return false;
        };
        let (theirs, ours) = (self.queues[other].kind.lane, self.queues[queue].kind.lane);
        if theirs == ours {
            return head.serial < serial;
        }
        (self.lanes[theirs].turn, theirs) < (self.lanes[ours].turn, ours)
    }

    /// Takes one job out of its queue and puts things in order behind it.
    fn take(&mut self, number: usize, place: usize) -> Option<Entry<T>> {
        let queue = &mut self.queues[number];
        let lane = queue.kind.lane;
        if place == 0 {
            if let Some(head) = queue.entries.front() {
                self.lanes[lane].awake.remove(&(head.serial, number));
            }
            queue.asleep = None;
        }
        let entry = queue.entries.remove(place)?;
        self.lanes[lane].len -= 1;
        match queue.entries.front() {
            Some(head) if queue.asleep.is_none() => {
                self.lanes[lane].awake.insert((head.serial, number));
            }
            Some(_) => {}
            None => self.close_queue(number),
        }
        Some(entry)
    }

    /// A lane was served: its next turn comes later, the sooner the larger its weight.
    fn charge(&mut self, lane: usize, units: u64) {
        let turn = self.lanes[lane].turn;
        self.turn = self.turn.max(turn);
        let floor = self.turn.saturating_sub(LAG);
        for other in &mut self.lanes {
            other.turn = other.turn.max(floor);
        }
        let lane = &mut self.lanes[lane];
        lane.turn = turn.saturating_add((STRIDE.saturating_mul(units) / lane.weight).max(1));
    }

    fn sleep(&mut self, queue: usize, wait: Wait) {
        self.alarm += 1;
        self.queues[queue].asleep = Some(wait);
        self.queues[queue].alarm = self.alarm;
        if let Some(until) = wait.until {
            self.alarms.push(Reverse((until, queue, self.alarm)));
        }
    }

    fn rouse(&mut self, number: usize) {
        let queue = &mut self.queues[number];
        if queue.asleep.take().is_some()
            && let Some(head) = queue.entries.front()
        {
            self.lanes[queue.kind.lane].awake.insert((head.serial, number));
        }
    }

    /// Wakes the queues whose time has come, and those that an answer or a change may have made room for.
    fn wake(&mut self, pool: &Pool, now: Time) {
        while let Some(&Reverse((time, queue, alarm))) = self.alarms.peek() {
            let valid = self.alarm_is_valid(queue, alarm);
            if valid && time > now {
                break;
            }
            self.alarms.pop();
            if valid {
                self.rouse(queue);
            }
        }
        let (answered, loosened) = pool.changes();
        let seen = std::mem::replace(&mut self.seen, (answered, loosened));
        if seen == self.seen {
            return;
        }
        match pool.answered_since(seen.0).filter(|_| seen.1 == loosened) {
            None => (0..self.queues.len()).for_each(|queue| self.rouse(queue)),
            Some(keys) => {
                let mut touched = self.unpinned.clone();
                for key in keys {
                    let pins = [Some(Pin::Key(key)), pool.budget_of(key).map(Pin::Budget)];
                    let queues = pins.iter().flatten().filter_map(|pin| self.by_pin.get(pin));
                    touched.extend(queues.flatten());
                }
                touched.into_iter().for_each(|queue| self.rouse(queue));
            }
        }
    }

    fn alarm_is_valid(&self, queue: usize, alarm: u64) -> bool {
        self.queues[queue].asleep.is_some() && self.queues[queue].alarm == alarm
    }

    fn first_alarm(&mut self) -> Option<Time> {
        while let Some(&Reverse((time, queue, alarm))) = self.alarms.peek() {
            if self.alarm_is_valid(queue, alarm) {
                return Some(time);
            }
            self.alarms.pop();
        }
        None
    }

    fn open_queue(&mut self, kind: Kind) -> usize {
        let queue = Queue { kind, entries: VecDeque::new(), asleep: None, alarm: 0 };
        let number = match self.spare.pop() {
            Some(number) => {
                self.queues[number] = queue;
                number
            }
            None => {
                self.queues.push(queue);
                self.queues.len() - 1
            }
        };
        self.by_kind.insert(kind, number);
        match kind.pin {
            Some(pin) => self.by_pin.entry(pin).or_default().push(number),
            None => self.unpinned.push(number),
        }
        number
    }

    /// An empty queue is forgotten, so that there are never more queues than waiting jobs.
    fn close_queue(&mut self, number: usize) {
        let kind = self.queues[number].kind;
        self.queues[number].asleep = None;
        self.by_kind.remove(&kind);
        match kind.pin {
            None => self.unpinned.retain(|queue| *queue != number),
            Some(pin) => {
                if let Some(queues) = self.by_pin.get_mut(&pin) {
                    queues.retain(|queue| *queue != number);
                    if queues.is_empty() {
                        self.by_pin.remove(&pin);
                    }
                }
            }
        }
        self.spare.push(number);
    }
}

fn earlier(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
