//! Owners of the same budgets one after the other, in virtual time: each restores what the last one wrote, sends as
//! much as it may, writes it down with every renewal, and ends in order or not. What any of them sent, known to its
//! successor or not, arrives at the same servers.

use super::world::{Delay, Dice, signal};
use super::{MILLI, SECOND, Server};
use paceline::pace::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// Far from zero, as the real clock is.
pub const START: u64 = 800 * 86_400 * SECOND;
/// A lease that is not renewed can be taken so long after its last renewal …
const TTL: u64 = 6 * SECOND;
/// … but its owner stops before.
const VALID: u64 = TTL - 500 * MILLI;
const RENEW: u64 = 2 * SECOND;
/// What a dead owner sent arrives within so long: the assumption that docs/pacing.md names.
const STRAGGLER: u64 = SECOND;
/// So much may lie between a permit and the real departure.
const LATE: u64 = 50 * MILLI;

/// How an owner ends. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// All its calls were answered and what it spent is written; the next one comes so much later.
    HandOver { pause: u64 },
    /// It no longer sends and waits for answers for so long; then it is killed before it wrote anything.
    CrashInHandOver { drained: u64, pause: u64 },
    /// Killed; the next one comes so much later, at once on a file that only one can hold.
    Kill { pause: u64 },
    /// It lives on but can no longer renew: it sends for as long as its lease lets it, while the next one waits for it.
    CutOff { pause: u64 },
}

impl End {
    pub fn roll(dice: &mut Dice) -> End {
        let pause = if dice.below(3) == 0 { 0 } else { dice.below(9_000) * MILLI };
        match dice.below(5) {
            0 => End::HandOver { pause },
            1 => End::CrashInHandOver { drained: dice.below(400) * MILLI, pause },
            2 | 3 => End::Kill { pause },
            _ => End::CutOff { pause: pause / 4 },
        }
    }
}

/// What a limit is declared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Key,
    Budget,
    Provider,
    Route,
    RouteKey,
}

impl At {
    pub const ALL: [At; 5] = [At::Key, At::Budget, At::Provider, At::Route, At::RouteKey];

    /// Which of its servers judges a call, if any does.
    fn server(self, key: u32, routed: bool) -> Option<u32> {
        match self {
            At::Key => Some(key),
            // The first two keys share a budget; the third one is its own.
            At::Budget => (key < 2).then_some(0),
            At::Provider => Some(0),
            At::Route => routed.then_some(0),
            At::RouteKey => routed.then_some(key),
        }
    }
}

/// One limit, and how the provider counts it.
pub struct Rule {
    pub at: At,
    pub limit: LimitSpec,
    pub server: Box<dyn Fn() -> Box<dyn Server>>,
    /// Its answers tell limit, remaining and reset.
    pub tells: bool,
    /// A calendar: the ends of its periods are the multiples of the period, less this phase.
    pub calendar: Option<u64>,
}

/// Everything about a run but the dice.
pub struct Reign {
    pub rules: Vec<Rule>,
    pub there: Delay,
    pub work: Delay,
    pub back: Delay,
    pub counted_within: u64,
    /// No answer comes, with this probability.
    pub lost: f64,
    /// Costs from 1 to this.
    pub largest: u64,
    /// The answer tells a smaller cost, and the servers take it back, with this probability.
    pub cheaper: f64,
    /// How long each owner lives, and how it ends.
    pub owners: Vec<(u64, End)>,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Chronicle {
    pub arrived: u64,
    /// The first call that was refused, in words.
    pub refused: Option<String>,
    /// Virtual time that passed.
    pub nanos: u64,
}

/// What comes next of a call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Its permit is used at last.
    Departs,
    Arrives,
    Answered,
    Done,
    /// It never left this machine.
    Unsent,
}

struct Call {
    owner: usize,
    permit: Option<Permit>,
    flight: Option<Flight>,
    sent: u64,
    key: u32,
    routed: bool,
    cost: u64,
    actual: Option<u64>,
    arrived: u64,
    lost: bool,
    said: Option<(u64, u64, u64)>,
}

/// What stands in the lease's row.
struct Row {
    saved: Saved,
    written: u64,
    since: Since,
}

/// One owner: its pool, its clock, and what it may do.
struct Owner {
    number: usize,
    pool: Pool,
    /// Its clock shows so much more than the world's.
    ahead: u64,
    next: Option<Ask>,
    sending: bool,
    renews: bool,
    renew_at: u64,
    /// A renewal under way: when it is committed, what it allows, and what it writes.
    renewing: Option<(u64, (u64, u64), Row)>,
    valid_until: u64,
    /// Calls that may be made since the last renewal began, and those that were.
    granted: u64,
    made: u64,
    open: u64,
    open_most: u64,
    /// For each calendar limit: the end of its period, and when the owner notices it.
    periods: BTreeMap<usize, (u64, u64)>,
}

impl Owner {
    fn time(&self, now: u64) -> Time {
        Time::from_nanos(now + self.ahead)
    }

    fn may_send(&self, now: u64) -> bool {
        self.sending && now < self.valid_until && self.made < self.granted && self.open < self.open_most
    }
}

struct Stage<'a> {
    reign: &'a Reign,
    dice: Dice,
    now: u64,
    agenda: BinaryHeap<Reverse<(u64, usize, Event)>>,
    calls: Vec<Call>,
    servers: BTreeMap<(usize, u32), Box<dyn Server>>,
    told: Chronicle,
}

/// Runs it all; the same again for the same seed.
pub fn reign(reign: &Reign, seed: u64) -> Chronicle {
    let mut stage = Stage {
        reign,
        dice: Dice(seed),
        now: START,
        agenda: BinaryHeap::new(),
        calls: Vec::new(),
        servers: BTreeMap::new(),
        told: Chronicle::default(),
    };
    let mut row = None;
    for (number, &(lives, end)) in reign.owners.iter().enumerate() {
        stage.owner(number, lives, end, &mut row);
    }
    // The last calls arrive, too.
    while stage.next_event(u64::MAX, None) {}
    stage.told.nanos = stage.now - START;
    stage.told
}

impl Stage<'_> {
    fn owner(&mut self, number: usize, lives: u64, end: End, row: &mut Option<Row>) {
        let mut owner = self.begin(number, row.as_ref());
        let death = self.now + lives;
        self.live(&mut owner, death, row);
        match end {
            End::HandOver { pause } => {
                (owner.sending, owner.renews) = (false, false);
                while owner.open > 0 && self.told.refused.is_none() {
                    assert!(self.next_event(u64::MAX, Some(&mut owner)), "an answer is missing");
                }
                let saved = written(&owner.pool.save(owner.time(self.now)));
                *row = Some(Row { saved, written: self.now, since: Since::Nothing });
                self.pass(pause);
            }
            End::CrashInHandOver { drained, pause } => {
                (owner.sending, owner.renews) = (false, false);
                self.live(&mut owner, death + drained, row);
                self.pass(pause);
            }
            End::Kill { pause } => self.pass(pause),
            End::CutOff { pause } => {
                owner.renews = false;
                owner.renewing = None;
                let stops = owner.valid_until.max(death);
                self.live(&mut owner, stops, row);
                let taken = row.as_ref().map_or(0, |row| row.written + TTL);
                self.pass(taken.saturating_sub(self.now) + pause);
            }
        }
    }

    /// Nobody owns anything for so long; calls arrive all the same.
    fn pass(&mut self, pause: u64) {
        let until = self.now + pause;
        while self.next_event(until, None) {}
        self.now = until;
    }

    fn begin(&mut self, number: usize, row: Option<&Row>) -> Owner {
        let ahead = self.dice.below(1_000_000) * SECOND;
        let began = Time::from_nanos(self.now + ahead);
        let mut periods = BTreeMap::new();
        for (n, rule) in self.reign.rules.iter().enumerate() {
            if let Some(phase) = rule.calendar {
                let per = rule.limit.per.as_nanos() as u64;
                let ends = ((self.now + phase) / per + 1) * per - phase;
                periods.insert(n, (ends, ends + self.dice.below(500) * MILLI));
            }
        }
        let mut pool = Pool::new(&self.spec(), began).unwrap();
        for (n, (ends, _)) in &periods {
            self.name_period(&mut pool, *n, *ends, ahead);
        }
        if let Some(row) = row {
            // The clocks in between are read in milliseconds, and rounded to the safe side.
            let elapsed = (self.now - row.written).saturating_sub(self.dice.below(2 * MILLI));
            pool.restore(&row.saved, Duration::from_nanos(elapsed), row.since, began);
        }
        Owner {
            number,
            pool,
            ahead,
            next: None,
            sending: true,
            renews: true,
            renew_at: self.now,
            renewing: None,
            valid_until: self.now,
            granted: 0,
            made: 0,
            open: 0,
            open_most: 0,
            periods,
        }
    }

    fn spec(&self) -> PoolSpec {
        let key = |n: u32| KeySpec { label: format!("k{n}"), weight: 1, budget: (n < 2).then_some(0) };
        let mut spec = PoolSpec {
            counted_within: Duration::from_nanos(self.reign.counted_within),
            keys: vec![key(0), key(1), key(2)],
            budgets: vec![BudgetSpec { name: "b".into(), limits: Vec::new() }],
            routes: vec![RouteSpec::default()],
            ..PoolSpec::default()
        };
        for rule in &self.reign.rules {
            let limit = rule.limit.clone();
            match rule.at {
                At::Key => spec.key_limits.push(limit),
                At::Budget => spec.budgets[0].limits.push(limit),
                At::Provider => spec.limits.push(limit),
                At::Route => spec.routes[0].limits.push(limit),
                At::RouteKey => spec.routes[0].key_limits.push(limit),
            }
        }
        spec
    }

    /// An owner renews, sends and takes answers in until then.
    fn live(&mut self, owner: &mut Owner, until: u64, row: &mut Option<Row>) {
        while self.now < until && self.told.refused.is_none() {
            self.renew(owner, row);
            self.name_periods(owner);
            let mut next = until;
            while owner.may_send(self.now) {
                if let Some(slot) = self.send(owner) {
                    next = next.min(slot.max(self.now + 1));
                    break;
                }
            }
            let renewal = owner.renewing.as_ref().map(|renewing| renewing.0);
            let renewal = renewal.or(owner.renews.then_some(owner.renew_at));
            let period = owner.periods.values().map(|period| period.1).min();
            next = [renewal, period].into_iter().flatten().fold(next, u64::min).max(self.now);
            if !self.next_event(next, Some(owner)) {
                self.now = next;
            }
        }
    }

    /// A renewal takes its time: until it is committed, the last one holds.
    fn renew(&mut self, owner: &mut Owner, row: &mut Option<Row>) {
        if owner.renews && owner.renewing.is_none() && owner.renew_at <= self.now {
            let (calls, open) = (1 + self.dice.below(60), 1 + self.dice.below(12));
            let saved = written(&owner.pool.save(owner.time(self.now)));
            let since = Since::AtMost { calls, open, within: Duration::from_nanos(VALID) };
            let commit = self.now + self.dice.below(80 * MILLI);
            owner.renewing = Some((commit, (calls, open), Row { saved, written: self.now, since }));
            // Until it is committed neither the old nor the new one may be exceeded.
            (owner.granted, owner.made) = ((owner.granted - owner.made).min(calls), 0);
            owner.open_most = owner.open_most.min(open);
        }
        if let Some((_, allowed, renewed)) = owner.renewing.take_if(|renewing| renewing.0 <= self.now) {
            owner.valid_until = renewed.written + VALID;
            owner.renew_at = renewed.written + RENEW;
            (owner.granted, owner.open_most) = allowed;
            *row = Some(renewed);
        }
    }

    /// A period is over, and the owner names the end of the next one, sooner or later.
    fn name_periods(&mut self, owner: &mut Owner) {
        let mut named = Vec::new();
        for (n, (ends, noticed)) in &mut owner.periods {
            if *noticed > self.now {
                continue;
            }
            *ends += self.reign.rules[*n].limit.per.as_nanos() as u64;
            *noticed = *ends + self.dice.below(500) * MILLI;
            named.push((*n, *ends));
        }
        for (n, ends) in named {
            self.name_period(&mut owner.pool, n, ends, owner.ahead);
        }
    }

    /// Names the period of a rule's limits that ends then.
    fn name_period(&self, pool: &mut Pool, n: usize, ends: u64, ahead: u64) {
        let rule = &self.reign.rules[n];
        let number = self.reign.rules[..n].iter().filter(|other| other.at == rule.at).count();
        let places: Vec<Place> = match rule.at {
            At::Key => (0..3).map(|key| Place::Key(KeyId(key))).collect(),
            At::Budget => vec![Place::Budget(BudgetId(0))],
            At::Provider => vec![Place::Provider],
            At::Route => vec![Place::Route(0)],
            At::RouteKey => (0..3).map(|key| Place::RouteKey(0, KeyId(key))).collect(),
        };
        let edge = |at: u64| Edge { low: Time::from_nanos(at + ahead), high: Time::from_nanos(at + ahead) };
        let begins = ends.saturating_sub(rule.limit.per.as_nanos() as u64);
        for place in places {
            pool.quota_period(place, number, Some(QuotaPeriod { begins: edge(begins), ends: edge(ends) }));
        }
    }

    /// Sends one call; or says when to try again.
    fn send(&mut self, owner: &mut Owner) -> Option<u64> {
        let now = owner.time(self.now);
        let dice = &mut self.dice;
        let ask = *owner.next.get_or_insert_with(|| Ask {
            cost: 1 + dice.below(self.reign.largest),
            routes: if dice.below(2) == 0 { Routes::NONE } else { Routes::NONE.with(0) },
            pin: (dice.below(5) == 0).then(|| Pin::Key(KeyId(dice.below(3) as u32))),
        });
        let permit = match owner.pool.acquire(&ask, now) {
            Acquire::Granted(permit) => permit,
            Acquire::At(at) | Acquire::WhenAnswered { at_most: at } => {
                // Others may be able to go meanwhile.
                if dice.below(4) == 0 {
                    owner.next = None;
                }
                return Some(at.as_nanos().saturating_sub(owner.ahead));
            }
            Acquire::Blocked { .. } => return Some(u64::MAX),
        };
        owner.next = None;
        if self.dice.below(40) == 0 {
            owner.pool.abandon(permit, now);
            return None;
        }
        (owner.made, owner.open) = (owner.made + 1, owner.open + 1);
        let cheaper = self.dice.unit() < self.reign.cheaper;
        self.calls.push(Call {
            owner: owner.number,
            key: permit.key().0,
            permit: Some(permit),
            flight: None,
            sent: 0,
            routed: !ask.routes.is_empty(),
            cost: ask.cost,
            actual: cheaper.then(|| self.dice.below(ask.cost + 1)),
            arrived: 0,
            lost: self.dice.unit() < self.reign.lost,
            said: None,
        });
        // Some permits are held for a while.
        let held = if self.dice.below(6) == 0 { self.dice.below(LATE) } else { 0 };
        match held {
            0 => self.depart(self.calls.len() - 1, owner),
            held => self.agenda.push(Reverse((self.now + held, self.calls.len() - 1, Event::Departs))),
        }
        None
    }

    fn depart(&mut self, number: usize, owner: &mut Owner) {
        let call = &mut self.calls[number];
        let now = owner.time(self.now);
        let mut flight = owner.pool.depart(call.permit.take().unwrap(), now);
        let never = self.dice.below(40) == 0;
        if !never && self.dice.below(8) == 0 {
            owner.pool.departed_late(&mut flight, now + Duration::from_nanos(self.dice.below(LATE)));
        }
        call.sent = flight.sent().as_nanos() - owner.ahead;
        call.flight = Some(flight);
        let longest = (STRAGGLER - 2 * LATE).min(self.reign.counted_within);
        call.arrived = call.sent + self.reign.there.roll(&mut self.dice).min(longest);
        let event = if never { Event::Unsent } else { Event::Arrives };
        self.agenda.push(Reverse((call.arrived, number, event)));
    }

    /// The next thing that happens to a call, if it is not later than that. A refusal ends everything.
    fn next_event(&mut self, until: u64, owner: Option<&mut Owner>) -> bool {
        if self.told.refused.is_some() {
            return false;
        }
        let Some(&Reverse((at, number, event))) = self.agenda.peek().filter(|event| event.0.0 <= until) else {
            return false;
        };
        self.agenda.pop();
        self.now = self.now.max(at);
        if event == Event::Arrives {
            self.arrive(number);
            return true;
        }
        let call = &mut self.calls[number];
        let owner = owner.filter(|owner| owner.number == call.owner);
        if event == Event::Answered {
            let done = (self.now + self.dice.below(20) * MILLI).min(call.sent + self.reign.counted_within);
            self.agenda.push(Reverse((done.max(self.now), number, Event::Done)));
        }
        if event == Event::Done {
            for (rule, key) in servers_of(self.reign, call) {
                let server = self.servers.get_mut(&(rule, key)).unwrap();
                server.leave(self.now);
                if let Some(actual) = call.actual.filter(|_| self.reign.rules[rule].counts_cost()) {
                    server.correct(call.arrived, call.cost, actual);
                }
            }
        }
        let Some(owner) = owner else {
            return true;
        };
        let now = owner.time(self.now);
        match event {
            Event::Departs => self.depart(number, owner),
            Event::Answered => {
                let signal = signal(true, call.said, true);
                owner.pool.first_byte(call.flight.as_mut().unwrap(), now, signal.as_ref());
            }
            Event::Done => {
                let actual = call.actual.filter(|_| !call.lost);
                owner.pool.finish(call.flight.take().unwrap(), now, actual);
                owner.open -= 1;
            }
            Event::Unsent => {
                owner.pool.unsent(call.flight.take().unwrap(), now);
                owner.open -= 1;
            }
            Event::Arrives => unreachable!("seen above"),
        }
        true
    }

    fn arrive(&mut self, number: usize) {
        let call = &mut self.calls[number];
        self.told.arrived += 1;
        for (n, key) in servers_of(self.reign, call) {
            let rule = &self.reign.rules[n];
            let server = self.servers.entry((n, key)).or_insert_with(|| (rule.server)());
            let cost = if rule.counts_cost() { call.cost } else { 1 };
            if !server.arrive(self.now, cost) {
                let seconds = (self.now - START) as f64 / 1e9;
                let (place, limit, owner) = (rule.at, &rule.limit, call.owner);
                self.told.refused =
                    Some(format!("is refused by {limit} of {place:?} {key} at {seconds:.3} s, sent by owner {owner}"));
            }
            if rule.tells {
                call.said = server.says(self.now);
            }
        }
        let (work, back) = (self.reign.work.roll(&mut self.dice), self.reign.back.roll(&mut self.dice));
        let given_up = call.sent + self.reign.counted_within;
        let (at, event) = match self.now + work + back {
            at if at < given_up && !call.lost => (at, Event::Answered),
            _ => (given_up, Event::Done),
        };
        call.lost |= event == Event::Done;
        self.agenda.push(Reverse((at.max(self.now), number, event)));
    }
}

impl Rule {
    fn counts_cost(&self) -> bool {
        matches!(self.limit.measure, Measure::Cost(_))
    }
}

fn servers_of<'a>(reign: &'a Reign, call: &Call) -> impl Iterator<Item = (usize, u32)> + use<'a> {
    let (key, routed) = (call.key, call.routed);
    reign.rules.iter().enumerate().filter_map(move |(n, rule)| Some((n, rule.at.server(key, routed)?)))
}

/// As it comes back from a database.
fn written(saved: &Saved) -> Saved {
    serde_json::from_str(&serde_json::to_string(saved).unwrap()).unwrap()
}
