//! Whoever takes budgets over, after an orderly hand-over or a crash at any moment, exceeds no limit: what the dead
//! process sent, known or not, arrives at the same oracle.

mod oracle;

use oracle::*;
use paceline::pace::*;
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// Far from zero, as the real clock is.
const START: u64 = 800 * 86_400 * SECOND;
/// A lease lets its owner send for so long after a renewal.
const VALID: u64 = 5_500 * MILLI;
const RENEW: u64 = 2 * SECOND;

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// One way: lognormal, median 15 ms, p99 120 ms.
    fn way(&mut self) -> u64 {
        let z = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        (15e6 * (0.8938 * z).exp()) as u64
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    /// It is shut; when its calls are answered its state is saved, and the next owner comes so much later.
    HandOver(u64),
    /// Nothing is saved after the last renewal.
    Crash(u64),
}

/// So many calls may be sent of a group until its next renewal: written ahead.
const AHEAD: u64 = 40;

/// What one owner left, and when.
struct Legacy {
    saved: Saved,
    at: u64,
    since: Since,
}

/// Where a group is in its life.
enum Phase {
    /// Held until then, and how that ends.
    Held { until: u64, end: End },
    /// Given away: its calls are waited for.
    Leaving { pause: u64 },
    /// Nobody's until then.
    Away { until: u64, legacy: Legacy },
}

/// One group of a pool, whose other groups are in use all the time.
struct Group {
    id: GroupId,
    phase: Phase,
    /// Since its last renewal.
    saved: (Saved, u64),
    sent: u64,
    flying: usize,
    ends: Vec<(u64, End)>,
}

/// One pool, whose groups change their owners each at its own times, while all are saturated; the arrivals of every
/// key.
struct Town {
    pool: Pool,
    now: u64,
    groups: Vec<Group>,
    arrivals: BTreeMap<u32, Vec<u64>>,
    answers: BinaryHeap<Reverse<(u64, u64)>>,
    flights: BTreeMap<u64, Flight>,
    dice: Dice,
}

/// `ends` are those of the first group; the others have the same ones later.
fn owners(spec: &PoolSpec, ends: &[(u64, End)], seed: u64) -> BTreeMap<u32, Vec<u64>> {
    let pool = Pool::new(spec, Time::from_nanos(START)).unwrap();
    let mut dice = Dice(seed);
    let count = pool.group_count();
    let group = |n: usize| Group {
        id: GroupId(n as u32),
        phase: Phase::Held { until: 0, end: End::Crash(0) },
        saved: (Saved::default(), START),
        sent: 0,
        flying: 0,
        ends: ends.iter().map(|(lives, end)| (lives + dice.next() % SECOND * n as u64, *end)).rev().collect(),
    };
    let groups = (0..count).map(group).collect();
    let (answers, flights, arrivals) = (BinaryHeap::new(), BTreeMap::new(), BTreeMap::new());
    let mut town = Town { pool, now: START, groups, arrivals, answers, flights, dice };
    for n in 0..count {
        town.hold(n);
    }
    while town.groups.iter().any(|group| !matches!(group.phase, Phase::Away { until: u64::MAX, .. })) {
        town.step();
    }
    for arrivals in town.arrivals.values_mut() {
        arrivals.sort_unstable();
    }
    town.arrivals
}

impl Town {
    fn time(&self) -> Time {
        Time::from_nanos(self.now)
    }

    /// A new owner: saved at once, since nothing may be sent before.
    fn hold(&mut self, n: usize) {
        let now = self.time();
        let group = &mut self.groups[n];
        let Some((lives, end)) = group.ends.pop() else {
            let legacy = Legacy { saved: Saved::default(), at: self.now, since: Since::Nothing };
            group.phase = Phase::Away { until: u64::MAX, legacy };
            return;
        };
        group.phase = Phase::Held { until: self.now + lives, end };
        group.saved = (self.pool.save_group(group.id, now), self.now);
        group.sent = 0;
        self.pool.set_hold(group.id, Hold::Open);
    }

    fn step(&mut self) {
        let mut next = self.now + RENEW;
        self.answer();
        for n in 0..self.groups.len() {
            self.live(n);
        }
        self.send(&mut next);
        for group in &self.groups {
            match &group.phase {
                Phase::Held { until, .. } => next = next.min(*until).min((group.saved.1 + RENEW).max(self.now + 1)),
                Phase::Leaving { .. } => {}
                Phase::Away { until, .. } => next = next.min(*until),
            }
        }
        next = self.answers.peek().map_or(next, |Reverse((at, _))| next.min(*at));
        self.now = next.max(self.now + 1);
    }

    /// Renewals, ends and beginnings.
    fn live(&mut self, n: usize) {
        let now = self.time();
        let group = &mut self.groups[n];
        match &mut group.phase {
            Phase::Held { until, end: End::HandOver(pause) } if *until <= self.now => {
                group.phase = Phase::Leaving { pause: *pause };
                self.pool.set_hold(group.id, Hold::Away);
            }
            Phase::Held { until, end: End::Crash(pause) } if *until <= self.now => {
                let (saved, at) = std::mem::take(&mut group.saved);
                let since = Since::AtMost { calls: AHEAD, open: AHEAD, within: Duration::from_nanos(VALID) };
                // Answers to a dead owner are heard by nobody.
                let dead: Vec<u64> = self
                    .flights
                    .iter()
                    .filter(|(_, flight)| self.pool.group_of(flight.key()) == Some(group.id))
                    .map(|(n, _)| *n)
                    .collect();
                for number in dead {
                    self.pool.unsent(self.flights.remove(&number).unwrap(), now);
                }
                group.flying = 0;
                let legacy = Legacy { saved, at, since };
                group.phase = Phase::Away { until: self.now + *pause, legacy };
                self.pool.set_hold(group.id, Hold::Away);
            }
            Phase::Held { .. } if self.now >= group.saved.1 + RENEW => {
                group.saved = (self.pool.save_group(group.id, now), self.now);
                group.sent = 0;
                self.pool.set_hold(group.id, Hold::Open);
            }
            Phase::Leaving { pause } if group.flying == 0 => {
                let legacy = Legacy { saved: self.pool.save_group(group.id, now), at: self.now, since: Since::Nothing };
                group.phase = Phase::Away { until: self.now + *pause, legacy };
            }
            Phase::Away { until, legacy } if *until <= self.now => {
                let json = serde_json::to_string(&legacy.saved).unwrap();
                let saved: Saved = serde_json::from_str(&json).unwrap();
                let elapsed = Duration::from_nanos(self.now - legacy.at);
                let since = legacy.since;
                self.pool.forget(group.id);
                self.pool.restore_group(group.id, &[Left { saved: &saved, elapsed, since }], now);
                self.hold(n);
            }
            _ => {}
        }
    }

    fn answer(&mut self) {
        while let Some(Reverse((at, number))) = self.answers.peek().copied()
            && at <= self.now
        {
            self.answers.pop();
            let Some(mut flight) = self.flights.remove(&number) else { continue };
            let group = self.pool.group_of(flight.key()).unwrap();
            self.groups[group.0 as usize].flying -= 1;
            self.pool.first_byte(&mut flight, Time::from_nanos(at), None);
            self.pool.finish(flight, Time::from_nanos(at), None);
        }
    }

    fn send(&mut self, next: &mut u64) {
        loop {
            match self.pool.acquire(&Ask::default(), self.time()) {
                Acquire::Granted(permit) => {
                    let flight = self.pool.depart(permit, self.time());
                    let there = self.now + self.dice.way();
                    self.arrivals.entry(flight.key().0).or_default().push(there);
                    let group = &mut self.groups[self.pool.group_of(flight.key()).unwrap().0 as usize];
                    assert!(matches!(group.phase, Phase::Held { .. }), "only what is held is sent");
                    assert!(self.now < group.saved.1 + VALID);
                    group.flying += 1;
                    group.sent += 1;
                    if group.sent == AHEAD {
                        self.pool.set_hold(group.id, Hold::Shut);
                    }
                    let number = self.dice.next();
                    self.answers.push(Reverse((there + self.dice.way(), number)));
                    self.flights.insert(number, flight);
                }
                Acquire::At(at) => {
                    *next = (*next).min(at.as_nanos().max(self.now + 1));
                    return;
                }
                Acquire::WhenAnswered { .. } | Acquire::Blocked { .. } => return,
            }
        }
    }
}

fn spec(limit: LimitSpec) -> PoolSpec {
    let key = |n: u32| KeySpec { label: format!("k{n}"), weight: 1, budget: None };
    PoolSpec { key_limits: vec![limit], keys: vec![key(0), key(1)], ..PoolSpec::default() }
}

fn any_end() -> impl Strategy<Value = (u64, End)> {
    let lives = 50..20_000_u64;
    let pause = prop_oneof![Just(0_u64), 1..9_000_u64];
    (lives, pause, any::<bool>()).prop_map(|(lives, pause, crash)| {
        let pause = pause * MILLI;
        (lives * MILLI, if crash { End::Crash(pause) } else { End::HandOver(pause) })
    })
}

fn judge(arrivals: &BTreeMap<u32, Vec<u64>>, mut server: impl FnMut() -> Box<dyn Server>) -> Result<(), TestCaseError> {
    for (key, arrivals) in arrivals {
        let mut server = server();
        for at in arrivals {
            prop_assert!(server.arrive(*at, 1), "key {key} is refused at {:.3} s", (at - START) as f64 / 1e9);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sliding_window_overflows(
        n in 1..60_u64, millis in 500..12_000_u64, ends in proptest::collection::vec(any_end(), 2..6), seed: u64,
    ) {
        let window = millis * MILLI;
        let limit = LimitSpec::requests(n, Duration::from_nanos(window), Algorithm::SlidingWindow);
        let arrivals = owners(&spec(limit), &ends, seed);
        judge(&arrivals, || Box::new(SlidingLog::new(n, window)))?;
    }

    #[test]
    fn no_bucket_runs_dry(
        rate in 2..30_u64, burst in 2..10_u64, ends in proptest::collection::vec(any_end(), 2..6), seed: u64,
    ) {
        let limit = LimitSpec::requests(rate, Duration::from_secs(1), Algorithm::TokenBucket).with_burst(burst);
        let arrivals = owners(&spec(limit), &ends, seed);
        judge(&arrivals, || Box::new(TokenBucket::new(burst as f64, rate, SECOND)))?;
    }

    #[test]
    fn no_sliding_log_overflows_under_smooth(
        n in 3..60_u64, seconds in 6..12_u64, ends in proptest::collection::vec(any_end(), 2..6), seed: u64,
    ) {
        let limit = LimitSpec::requests(n, Duration::from_secs(seconds), Algorithm::Smooth);
        let arrivals = owners(&spec(limit), &ends, seed);
        judge(&arrivals, || Box::new(SlidingLog::new(n, seconds * SECOND)))?;
    }
}

#[test]
fn an_orderly_hand_over_costs_next_to_nothing() {
    let limit = LimitSpec::requests(100, Duration::from_secs(10), Algorithm::SlidingWindow);
    let ends = [(35 * SECOND, End::HandOver(0)); 4];
    let arrivals = owners(&spec(limit), &ends, 7);
    let all: usize = arrivals.values().map(Vec::len).sum();
    // Two keys, 14 windows begun, 100 each at most.
    assert!(all > 2 * 100 * 13, "{all}");
}

#[test]
fn states_and_pauses_outlive_the_process() {
    let limit = LimitSpec::requests(5, Duration::from_secs(1), Algorithm::SlidingWindow);
    let now = Time::from_nanos(START);
    let mut pool = Pool::new(&spec(limit.clone()), now).unwrap();
    pool.disable_key(KeyId(0), Some(now + Duration::from_secs(300)));
    pool.pause_key(KeyId(1), now + Duration::from_secs(10));
    let save = |pool: &mut Pool, group| pool.save_group(GroupId(group), now);
    let saved = [save(&mut pool, 0), save(&mut pool, 1)];
    let json = serde_json::to_string(&saved).unwrap();
    let saved: [Saved; 2] = serde_json::from_str(&json).unwrap();
    let later = now + Duration::from_secs(4);
    let mut next = Pool::new(&spec(limit), later).unwrap();
    for (group, saved) in saved.iter().enumerate() {
        let left = Left { saved, elapsed: Duration::from_secs(4), since: Since::Nothing };
        next.restore_group(GroupId(group as u32), &[left], later);
    }
    assert!(matches!(next.acquire(&Ask::default(), later), Acquire::Blocked { .. } | Acquire::At(_)));
    let open = later + Duration::from_millis(6_100);
    let Acquire::Granted(permit) = next.acquire(&Ask::default(), open) else { panic!("the pause is over") };
    assert_eq!(permit.key(), KeyId(1), "the refused key stays aside");
    next.abandon(permit, open);
}

/// The same pool after a hand-over, four seconds later.
fn handed_over(pool: &mut Pool, spec: &PoolSpec, secret: u64) -> (Pool, Time) {
    let now = Time::from_nanos(START);
    let json = serde_json::to_string(&pool.save(now)).unwrap();
    let saved: Saved = serde_json::from_str(&json).unwrap();
    let later = now + Duration::from_secs(4);
    let mut next = Pool::new(spec, later).unwrap();
    next.identify(KeyId(0), secret);
    next.restore(&saved, Duration::from_secs(4), Since::Nothing, later);
    assert_eq!(next.secret_of(KeyId(0)), secret);
    (next, later)
}

fn why(pool: &mut Pool, now: Time) -> Option<Why> {
    match pool.acquire(&Ask { pin: Some(Pin::Key(KeyId(0))), ..Ask::default() }, now) {
        Acquire::Blocked { why, .. } => Some(why),
        Acquire::Granted(permit) => {
            pool.abandon(permit, now);
            None
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pauses_of_providers_and_budgets_outlive_the_process() {
    let spec = spec(LimitSpec::requests(5, Duration::from_secs(1), Algorithm::SlidingWindow));
    let (now, second) = (Time::from_nanos(START), Duration::from_secs(1));
    type Pause = fn(&mut Pool, Time);
    let cases: [(Pause, Why); 3] = [
        (|pool, until| pool.pause_provider(until), Why::ProviderPaused),
        (|pool, until| pool.pause_budget(BudgetId(0), until), Why::BudgetPaused(BudgetId(0))),
        (|pool, until| pool.park_budget(BudgetId(0), Some(until)), Why::BudgetParked(BudgetId(0))),
    ];
    for (pause, expected) in cases {
        let mut pool = Pool::new(&spec, now).unwrap();
        pause(&mut pool, now + second * 10);
        let (mut next, later) = handed_over(&mut pool, &spec, 0);
        assert_eq!(why(&mut next, later), Some(expected));
        assert_eq!(why(&mut next, now + second * 9), Some(expected));
        assert_eq!(why(&mut next, now + second * 10 + Duration::from_millis(1)), None, "{expected:?} is over");
    }
}

/// The budget of a single key is parked for its secret; another one is not refused for it.
#[test]
fn a_parked_key_stays_parked_for_its_secret_alone() {
    let spec = spec(LimitSpec::requests(5, Duration::from_secs(1), Algorithm::SlidingWindow));
    for (secret, expected) in [(7, Some(Why::BudgetParked(BudgetId(0)))), (8, None)] {
        let mut pool = Pool::new(&spec, Time::from_nanos(START)).unwrap();
        pool.identify(KeyId(0), 7);
        pool.park_budget(BudgetId(0), None);
        let (mut next, later) = handed_over(&mut pool, &spec, secret);
        assert_eq!(why(&mut next, later), expected, "secret {secret}");
    }
}

/// An operator's word is news once.
#[test]
fn the_word_about_a_provider_outlives_the_process() {
    let spec = spec(LimitSpec::requests(5, Duration::from_secs(1), Algorithm::SlidingWindow));
    let now = Time::from_nanos(START);
    let mut pool = Pool::new(&spec, now).unwrap();
    pool.order_provider(Word { held: false, version: 3 });
    pool.pause_provider(now + Duration::from_secs(10));
    let (mut next, later) = handed_over(&mut pool, &spec, 0);
    assert!(!next.order_provider(Word { held: false, version: 3 }));
    assert_eq!(why(&mut next, later), Some(Why::ProviderPaused), "what was learnt since stays");
}

/// What one budget spent, and how it is set aside, is no other's.
#[test]
fn budgets_are_not_taken_for_each_other() {
    let limits = vec![LimitSpec::requests(5, Duration::from_secs(60), Algorithm::SlidingWindow)];
    let budget = |name: &str| BudgetSpec { name: name.into(), limits: limits.clone() };
    let key = |label: &str, budget| KeySpec { label: label.into(), weight: 1, budget };
    let keys = vec![key("a", Some(0)), key("b", Some(1)), key("c", None), key("d", None)];
    let spec =
        PoolSpec { budgets: vec![budget("one"), budget("other")], key_limits: limits, keys, ..PoolSpec::default() };
    let now = Time::from_nanos(START);
    let mut pool = Pool::new(&spec, now).unwrap();
    for (number, calls) in [(0, 4), (1, 2)] {
        for _ in 0..calls {
            let ask = Ask { pin: Some(Pin::Key(KeyId(number))), ..Ask::default() };
            let Acquire::Granted(permit) = pool.acquire(&ask, now) else { panic!("there is room") };
            let mut flight = pool.depart(permit, now);
            pool.first_byte(&mut flight, now, None);
            pool.finish(flight, now, None);
        }
    }
    pool.park_budget(BudgetId(2), None);
    pool.park_budget(BudgetId(0), None);
    let (mut next, later) = handed_over(&mut pool, &spec, 0);
    let used = [0, 1].map(|number| next.used(Place::Budget(BudgetId(number)), 0, later));
    assert_eq!(used, [Some(4), Some(2)]);
    let parked = |number: u32, next: &mut Pool| {
        let ask = Ask { pin: Some(Pin::Key(KeyId(number))), ..Ask::default() };
        matches!(next.acquire(&ask, later), Acquire::Blocked { why: Why::BudgetParked(_), .. })
    };
    assert_eq!([0, 1, 2, 3].map(|number| parked(number, &mut next)), [true, false, true, false]);
}

/// What others used counts even where nothing else does.
#[test]
fn foreign_use_alone_outlives_the_process() {
    let spec = spec(LimitSpec::requests(5, Duration::from_secs(60), Algorithm::SlidingWindow));
    let mut pool = Pool::new(&spec, Time::from_nanos(START)).unwrap();
    pool.assume_spent(Time::from_nanos(START));
    let (mut next, later) = handed_over(&mut pool, &spec, 0);
    assert_eq!(next.used(Place::Key(KeyId(0)), 0, later), Some(5));
}

#[test]
fn a_changed_limit_is_counted_as_used() {
    let now = Time::from_nanos(START);
    let limit = |n| LimitSpec::requests(n, Duration::from_secs(10), Algorithm::SlidingWindow);
    let mut pool = Pool::new(&spec(limit(5)), now).unwrap();
    let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) else { panic!("new") };
    let key = permit.key();
    let flight = pool.depart(permit, now);
    let group = pool.group_of(key).unwrap();
    let saved = pool.save_group(group, now);
    pool.unsent(flight, now);
    let mut next = Pool::new(&spec(limit(9)), now).unwrap();
    let left = Left { saved: &saved, elapsed: Duration::ZERO, since: Since::Nothing };
    next.restore_group(group, &[left], now);
    let pinned = Ask { pin: Some(Pin::Key(key)), ..Ask::default() };
    assert!(matches!(next.acquire(&pinned, now), Acquire::At(_)));
}

#[test]
fn places_of_a_changed_concurrency_limit_are_taken_until_old_calls_surely_ended() {
    let now = Time::from_nanos(START);
    let mut pool = Pool::new(&spec(LimitSpec::concurrency(3)), now).unwrap();
    let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) else { panic!("new") };
    let key = permit.key();
    let pinned = Ask { pin: Some(Pin::Key(key)), ..Ask::default() };
    let flight = pool.depart(permit, now);
    let group = pool.group_of(key).unwrap();
    let saved = pool.save_group(group, now);
    pool.unsent(flight, now);
    let mut next = Pool::new(&spec(LimitSpec::concurrency(5)), now).unwrap();
    let left = Left { saved: &saved, elapsed: Duration::ZERO, since: Since::Nothing };
    next.restore_group(group, &[left], now);
    assert!(!matches!(next.acquire(&pinned, now), Acquire::Granted(_)));
    let later = now + Duration::from_secs(31);
    let Acquire::Granted(permit) = next.acquire(&pinned, later) else { panic!("the timeout is over") };
    next.abandon(permit, later);
}
