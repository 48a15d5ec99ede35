//! Limits that nobody declared: they are found with few refusals whatever the server counts, kept, and looked for again
//! now and then; and nothing that a provider answers stops the calls for ever.

mod oracle;

use oracle::world::{Arrival, Delay, Dice, Job, Report, World, run, seconds};
use oracle::*;
use paceline::pace::*;
use proptest::prelude::*;
use std::time::Duration;

const CALL: Job = Job { ask: Ask { cost: 1, routes: Routes::NONE, pin: None }, lane: 0, actual: None };
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 3_600 * SECOND;

fn spec(keys: usize) -> PoolSpec {
    let key = |n| KeySpec { label: format!("k{n}"), weight: 1, budget: None };
    PoolSpec { keys: (0..keys).map(key).collect(), ..PoolSpec::default() }
}

fn unlimited(keys: usize) -> Pool {
    Pool::new(&spec(keys), Time::ZERO).unwrap()
}

/// More jobs than the pool ever lets go, for `length` nanoseconds.
fn saturate(pool: &mut Pool, world: &World<'_>, server: &mut dyn Server, length: u64, seed: u64) -> Report {
    let mut line = Line::new(&spec(1).lanes);
    run(pool, &mut line, world, &mut [server], (SECOND, length), 40, &mut Dice(seed), |_, _| Some(CALL))
}

fn probing(pool: &mut Pool, at: u64) -> ProbeSnapshot {
    pool.snapshot(Time::from_nanos(at)).budgets[0].probing.expect("nothing is declared")
}

fn between(report: &Report, (from, to): (u64, u64)) -> (f64, usize) {
    let inside = report.arrivals.iter().filter(|arrival| (from..to).contains(&arrival.at));
    let (accepted, refused): (Vec<&Arrival>, Vec<&Arrival>) = inside.partition(|arrival| arrival.accepted);
    (accepted.len() as f64 / ((to - from) as f64 / 1e9), refused.len())
}

/// The most refusals in any ten minutes from `from` on, in rounds: refusals within 2 s are one.
fn rounds(report: &Report, from: u64) -> usize {
    let mut begins: Vec<u64> = Vec::new();
    let mut last = 0;
    for arrival in report.arrivals.iter().filter(|arrival| !arrival.accepted && arrival.at >= from) {
        if begins.is_empty() || arrival.at > last + 2 * SECOND {
            begins.push(arrival.at);
        }
        last = arrival.at;
    }
    begins.len()
}

struct Case {
    name: &'static str,
    /// Calls a second.
    allowed: f64,
    server: fn(u64) -> Box<dyn Server>,
    /// The share of it that has to be reached.
    floor: f64,
}

const CASES: [Case; 7] = [
    Case {
        name: "sliding log, 60 per 10 s",
        allowed: 6.0,
        server: |_| Box::new(SlidingLog::new(60, 10 * SECOND)),
        floor: 0.85,
    },
    Case {
        name: "fixed window, 100 per 60 s, on the clock",
        allowed: 100.0 / 60.0,
        server: |dice| Box::new(FixedWindow::on_the_clock(100, MINUTE, dice % MINUTE)),
        floor: 0.85,
    },
    Case {
        name: "fixed window, 100 per 60 s, from the first call",
        allowed: 100.0 / 60.0,
        server: |_| Box::new(FixedWindow::from_the_first_call(100, MINUTE)),
        floor: 0.85,
    },
    Case {
        name: "sliding counter, 300 per 30 s",
        allowed: 10.0,
        server: |dice| Box::new(SlidingCounter::new(300, 30 * SECOND, dice % (30 * SECOND))),
        floor: 0.85,
    },
    Case {
        name: "token bucket, 10 per second, burst 20",
        allowed: 10.0,
        server: |_| Box::new(TokenBucket::new(20.0, 10, SECOND)),
        floor: 0.85,
    },
    Case {
        name: "leaky bucket, 10 per second, room for 5",
        allowed: 10.0,
        server: |_| Box::new(LeakyBucket::new(5.0, 10, SECOND)),
        floor: 0.85,
    },
    Case {
        name: "sliding log, 10 per second",
        allowed: 10.0,
        server: |_| Box::new(SlidingLog::new(10, SECOND)),
        floor: 0.75,
    },
];

#[test]
fn the_rate_of_common_servers_is_found_with_few_refusals() {
    for case in CASES {
        for retry_after in [false, true] {
            for seed in 0..2 {
                let mut pool = unlimited(1);
                let mut server = (case.server)(Dice(seed).next());
                let world = World { retry_after, ..World::default() };
                let report = saturate(&mut pool, &world, &mut *server, 2 * HOUR, seed);
                let (soon, at_first) = between(&report, (0, 10 * MINUTE));
                let (then, _) = between(&report, (10 * MINUTE, 30 * MINUTE));
                let (late, later) = between(&report, (HOUR, 2 * HOUR));
                let rounds = rounds(&report, HOUR);
                let [soon, then, late] = [soon, then, late].map(|rate| rate / case.allowed);
                let what = format!("{}, Retry-After {retry_after}, seed {seed}", case.name);
                println!(
                    "{what}: {soon:.3} of it in the first ten minutes, {then:.3} until half an hour, {late:.3} in the \
                     second hour; {at_first} refused in the first ten minutes, {later} in the second hour, {rounds} times"
                );
                assert!(then >= case.floor && late >= case.floor, "{what}");
                assert!(late <= 1.01, "{what}: the oracle let more through than it allows");
                assert!(at_first <= 160 && rounds <= 6, "{what}");
                let found = probing(&mut pool, 2 * HOUR + SECOND);
                assert!(found.per_second.is_some_and(|rate| rate <= case.allowed * 1.1), "{what}: {found:?}");
                assert!(found.refusals as usize >= at_first && found.refused_at.is_some(), "{what}: {found:?}");
            }
        }
    }
}

/// In a second 10,000 calls a second leave, with answers after 5 ms; and no rate is ever assumed.
#[test]
fn a_provider_without_limits_costs_no_throughput() {
    struct Anything;
    impl Server for Anything {
        fn arrive(&mut self, _at: u64, _cost: u64) -> bool {
            true
        }
    }
    let way = Delay::new(2.5, 2.6);
    let world = World { there: way, back: way, ..World::default() };
    let mut pool = unlimited(1);
    let report = saturate(&mut pool, &world, &mut Anything, 600 * MILLI, 1);
    let (rate, refused) = between(&report, (SECOND + 500 * MILLI, SECOND + 600 * MILLI));
    println!("{rate} calls a second after half a second");
    assert!(rate >= 10_000.0 && refused == 0, "{rate}");
    let state = probing(&mut pool, 2 * SECOND);
    assert_eq!((state.state, state.per_second), (ProbeState::SlowStart, None));
    assert!(state.open_most.is_some_and(|open| open >= 64), "{state:?}");
    // Few calls do not grow what nobody used.
    let mut pool = unlimited(1);
    for n in 0..1_000 {
        flown(&mut pool, n * 100 * MILLI, 200, &[]);
    }
    assert!(probing(&mut pool, 200 * SECOND).open_most.is_some_and(|open| open <= 8));
}

fn granted(pool: &mut Pool, at: u64) -> Flight {
    let now = Time::from_nanos(at);
    match pool.acquire(&Ask::default(), now) {
        Acquire::Granted(permit) => pool.depart(permit, now),
        other => panic!("not granted at {now:?}: {other:?}"),
    }
}

fn answered(pool: &mut Pool, mut flight: Flight, at: u64, status: u16, heads: &[(&str, &str)]) {
    let now = Time::from_nanos(at);
    pool.first_byte(&mut flight, now, Some(&Signal::parse(heads.iter().copied(), status, None)));
    pool.finish(flight, now, None);
}

/// A call that is answered 10 ms later.
fn flown(pool: &mut Pool, at: u64, status: u16, heads: &[(&str, &str)]) {
    let flight = granted(pool, at);
    answered(pool, flight, at + 10 * MILLI, status, heads);
}

#[test]
fn calls_that_hang_do_not_hold_up_the_others_for_long() {
    let mut pool = unlimited(1);
    let mut hanging = Vec::new();
    let mut now = SECOND;
    while hanging.len() < 12 {
        match pool.acquire(&Ask::default(), Time::from_nanos(now)) {
            Acquire::Granted(permit) => hanging.push(pool.depart(permit, Time::from_nanos(now))),
            Acquire::WhenAnswered { at_most } => now = at_most.as_nanos(),
            other => panic!("{other:?}"),
        }
    }
    assert!(now <= 4 * SECOND, "{now}");
    for flight in hanging {
        pool.finish(flight, Time::from_nanos(now), None);
    }
    flown(&mut pool, now, 200, &[]);
}

/// Any declared limit of provider, budget or key, also one of concurrency, is known; one of a route alone is not.
#[test]
fn what_is_declared_is_not_probed() {
    let probed = |spec: &PoolSpec| {
        let snapshot = Pool::new(spec, Time::ZERO).unwrap().snapshot(Time::ZERO);
        snapshot.budgets.iter().map(|budget| budget.probing.is_some()).collect::<Vec<_>>()
    };
    let open = || vec![LimitSpec::concurrency(3)];
    assert_eq!(probed(&spec(2)), [true, true]);
    assert_eq!(probed(&PoolSpec { limits: open(), ..spec(2) }), [false, false]);
    assert_eq!(probed(&PoolSpec { key_limits: open(), ..spec(2) }), [false, false]);
    let routes = vec![RouteSpec { limits: open(), key_limits: open() }];
    assert_eq!(probed(&PoolSpec { routes, ..spec(2) }), [true, true]);
    let mut shared = PoolSpec { budgets: vec![BudgetSpec { name: "b".into(), limits: open() }], ..spec(3) };
    shared.keys[0].budget = Some(0);
    shared.keys[1].budget = Some(0);
    assert_eq!(probed(&shared), [false, true]);
    shared.budgets[0].limits.clear();
    assert_eq!(probed(&shared), [true, true]);
    let mut pool = Pool::new(&spec(1), Time::ZERO).unwrap();
    pool.add_key(&KeySpec { label: "later".into(), weight: 1, budget: None }).unwrap();
    assert!(pool.snapshot(Time::ZERO).budgets[1].probing.is_some());
}

#[test]
fn each_budget_finds_its_own_limit() {
    let mut pool = unlimited(2);
    let (mut slow, mut fast) = (SlidingLog::new(20, 10 * SECOND), TokenBucket::new(10.0, 20, SECOND));
    let world = World { server_of: Box::new(|key| key.0 as usize), ..World::default() };
    let mut line = Line::new(&spec(1).lanes);
    let span = (SECOND, 40 * MINUTE);
    let servers: &mut [&mut dyn Server] = &mut [&mut slow, &mut fast];
    let report = run(&mut pool, &mut line, &world, servers, span, 40, &mut Dice(3), |_, _| Some(CALL));
    for (key, allowed) in [(KeyId(0), 2.0), (KeyId(1), 20.0)] {
        let late = |a: &&Arrival| a.key == key && a.accepted && a.at > 20 * MINUTE;
        let share = report.arrivals.iter().filter(late).count() as f64 / (20.0 * 60.0) / allowed;
        println!("{key:?}: {share:.3} of {allowed} a second");
        assert!(share >= 0.85, "{key:?}: {share}");
    }
}

/// Jobs that come seldom, then many at once: what is found is what the burst showed, not the average of a quiet hour.
#[test]
fn quiet_times_do_not_count() {
    let mut pool = unlimited(1);
    for n in 0..200 {
        flown(&mut pool, n * 10 * SECOND, 200, &[]);
    }
    let mut server = SlidingLog::new(60, 10 * SECOND);
    let mut line = Line::new(&spec(1).lanes);
    let span = (2_100 * SECOND, 2 * MINUTE);
    run(&mut pool, &mut line, &World::default(), &mut [&mut server], span, 40, &mut Dice(1), |_, _| Some(CALL));
    let state = probing(&mut pool, 2_220 * SECOND);
    assert!(state.found_per_second.is_some_and(|found| (4.0..7.5).contains(&found)), "{state:?}");
}

#[test]
fn limits_that_answers_tell_are_the_limit() {
    type Told = (&'static str, u64, fn() -> Box<dyn Server>, f64);
    let servers: [Told; 3] = [
        ("sliding log", 60, || Box::new(SlidingLog::new(60, 10 * SECOND)), 6.0),
        ("clock", 100, || Box::new(FixedWindow::on_the_clock(100, MINUTE, 7 * SECOND)), 100.0 / 60.0),
        ("first call", 100, || Box::new(FixedWindow::from_the_first_call(100, MINUTE)), 100.0 / 60.0),
    ];
    for (name, limit, server, allowed) in servers {
        for seed in 0..4 {
            let mut pool = unlimited(1);
            let world = World { tells: true, ..World::default() };
            let report = saturate(&mut pool, &world, &mut *server(), 20 * MINUTE, seed);
            let (rate, refused) = between(&report, (0, 20 * MINUTE));
            println!("{name}, seed {seed}: {:.3} of what is allowed, {refused} refused", rate / allowed);
            assert!(rate / allowed >= 0.85, "{name}");
            assert!(refused as u64 <= limit / 10, "{name}: {refused} refused");
            let budget = &pool.snapshot(Time::from_nanos(21 * MINUTE)).budgets[0];
            let state = budget.probing.unwrap();
            assert_eq!((state.state, state.per_second), (ProbeState::Told, None), "{name}");
            assert_eq!((budget.foreign, budget.foreign_at), (0, None), "{name}: nobody else calls");
        }
    }
}

/// A limit that answers tell, and another one that they do not: the untold one is found.
#[test]
fn a_limit_behind_the_one_that_is_told_is_found() {
    struct Told(Both<FixedWindow, SlidingLog>);
    impl Server for Told {
        fn arrive(&mut self, at: u64, cost: u64) -> bool {
            self.0.arrive(at, cost)
        }
        fn says(&mut self, at: u64) -> Option<(u64, u64, u64)> {
            self.0.0.says(at)
        }
    }
    let mut server = Told(Both(FixedWindow::on_the_clock(10_000, HOUR, 0), SlidingLog::new(20, 10 * SECOND)));
    let mut pool = unlimited(1);
    let world = World { tells: true, ..World::default() };
    let report = saturate(&mut pool, &world, &mut server, 30 * MINUTE, 5);
    let (rate, refused) = between(&report, (15 * MINUTE, 30 * MINUTE));
    assert!(rate >= 0.8 * 2.0 && refused <= 10, "{rate} a second, {refused} refused");
}

/// A call of a dead process, or one whose answer is lost on the way to the next: everything is restarted now and then,
/// in order or not, and what was found stays found.
#[test]
fn what_was_found_outlives_the_process() {
    for (crash, seed) in [(false, 1), (true, 1), (true, 2)] {
        let mut server = SlidingLog::new(60, 10 * SECOND);
        let mut dice = Dice(seed);
        let mut now = SECOND;
        let mut saved: Option<String> = None;
        let (mut refused, mut accepted) = (Vec::new(), 0);
        for life in 0..12 {
            let mut pool = unlimited(1);
            if let Some(saved) = &saved {
                let saved: Saved = serde_json::from_str(saved).unwrap();
                let within = Duration::from_millis(5_500);
                let since = if crash { Since::AtMost { calls: 1_000, open: 50, within } } else { Since::Nothing };
                pool.restore(&saved, seconds(2.0), since, Time::from_nanos(now));
                let state = probing(&mut pool, now);
                let (rate, found) = (state.per_second.unwrap(), state.found_per_second.unwrap());
                assert!(found > 4.0 && rate < 6.1, "seed {seed}, life {life}: {state:?}");
                if crash {
                    assert_eq!(state.state, ProbeState::Found, "seed {seed}, life {life}");
                    assert!(rate <= 0.71 * found, "what was sent unseen must not matter: {state:?}");
                } else {
                    assert_eq!(state.state, ProbeState::Settled, "seed {seed}, life {life}");
                    assert!(rate >= 0.9 * found, "{state:?}");
                }
            }
            let mut line = Line::new(&spec(1).lanes);
            let length = 5 * MINUTE + dice.below(5 * MINUTE);
            let world = World::default();
            let servers: &mut [&mut dyn Server] = &mut [&mut server];
            let report = run(&mut pool, &mut line, &world, servers, (now, length), 40, &mut dice, |_, _| Some(CALL));
            now += length;
            saved = Some(serde_json::to_string(&pool.save(Time::from_nanos(now))).unwrap());
            now += 2 * SECOND;
            refused.push(report.refused());
            if life >= 6 {
                accepted += report.arrivals.iter().filter(|a| a.accepted && a.at + 4 * MINUTE > now).count();
            }
        }
        let later: usize = refused[2..].iter().sum();
        let share = accepted as f64 / (6.0 * 4.0 * 60.0) / 6.0;
        println!("crash {crash}, seed {seed}: refused {refused:?}, {share:.3} of what is allowed");
        assert!(later <= 24, "seed {seed}: {refused:?}");
        assert!(share >= 0.85, "seed {seed}: {share}");
    }
}

/// Refuses for reasons that have nothing to do with rates.
struct Broken {
    /// Between these everything is refused.
    closed: Vec<(u64, u64)>,
    /// And else this share.
    share: f64,
    dice: Dice,
    inner: Box<dyn Server>,
}

impl Server for Broken {
    fn arrive(&mut self, at: u64, cost: u64) -> bool {
        let closed = self.closed.iter().any(|(from, to)| (*from..*to).contains(&at));
        !closed && self.dice.unit() >= self.share && self.inner.arrive(at, cost)
    }
}

fn broken(closed: &[(u64, u64)], share: f64, seed: u64) -> Broken {
    let inner = Box::new(TokenBucket::new(20.0, 10, SECOND));
    Broken { closed: closed.to_vec(), share, dice: Dice(seed ^ 7), inner }
}

/// An account that is broken for an hour: calls that try are few, and afterwards it goes on as before.
#[test]
fn a_broken_account_is_not_taken_for_a_slow_one_for_long() {
    let hour = (2 * HOUR, 3 * HOUR);
    for (name, closed, back) in [
        ("settled", vec![hour], 20 * MINUTE),
        ("from the first call on", vec![(0, HOUR), hour], 20 * MINUTE),
        ("after a few seconds", vec![(3 * SECOND, HOUR), hour], 20 * MINUTE),
    ] {
        let mut server = broken(&closed, 0.0, 1);
        let mut pool = unlimited(1);
        let report = saturate(&mut pool, &World::default(), &mut server, 5 * HOUR, 9);
        let (_, tries) = between(&report, hour);
        let (rate, _) = between(&report, (3 * HOUR + back, 4 * HOUR));
        let (late, _) = between(&report, (4 * HOUR, 5 * HOUR));
        println!("{name}: {tries} tries in an hour, then {rate:.2} and {late:.2} of 10 a second");
        assert!(tries <= 40, "{name}: {tries}");
        assert!(rate >= 5.0 && late >= 8.5, "{name}: {rate}, {late}");
    }
}

/// Some of all calls are refused whatever the rate: seldom, and it goes on as before; often, and it is slower, but
/// never stands still.
#[test]
fn refusals_at_random_do_not_stop_it() {
    for (share, least) in [(0.01, 5.0), (0.1, 0.03), (0.5, 0.01), (0.95, 0.0)] {
        let mut server = broken(&[], share, 3);
        let mut pool = unlimited(1);
        let report = saturate(&mut pool, &World::default(), &mut server, 4 * HOUR, 3);
        let (rate, refused) = between(&report, (HOUR, 4 * HOUR));
        println!("{share} refused at random: {rate:.3} calls a second, {refused} refused in three hours");
        assert!(rate >= least && refused >= 15, "{share}: {rate}, {refused}");
    }
}

#[test]
fn a_provider_that_refuses_everything_is_tried_every_ten_minutes_or_so() {
    struct Nothing;
    impl Server for Nothing {
        fn arrive(&mut self, _at: u64, _cost: u64) -> bool {
            false
        }
    }
    let mut pool = unlimited(1);
    let report = saturate(&mut pool, &World::default(), &mut Nothing, 24 * HOUR, 3);
    let (_, refused) = between(&report, (12 * HOUR, 24 * HOUR));
    assert!((60..=80).contains(&refused), "{refused}");
    let json = serde_json::to_string(&pool.save(Time::from_nanos(24 * HOUR))).unwrap();
    unlimited(1).restore(&serde_json::from_str(&json).unwrap(), seconds(1.0), Since::Nothing, Time::from_nanos(DAY));
}

const DAY: u64 = 24 * HOUR;

/// The limit becomes a tenth, and ten times as much again: both are found.
#[test]
fn a_limit_that_changes_is_found_again() {
    struct Changing(Vec<(u64, TokenBucket)>);
    impl Server for Changing {
        fn arrive(&mut self, at: u64, cost: u64) -> bool {
            self.0.iter_mut().rev().find(|(from, _)| *from <= at).is_none_or(|(_, bucket)| bucket.arrive(at, cost))
        }
    }
    let bucket = |from, rate| (from, TokenBucket::new(rate as f64, rate, SECOND));
    let mut server = Changing(vec![bucket(0, 20), bucket(HOUR, 2), bucket(2 * HOUR, 20)]);
    let mut pool = unlimited(1);
    let report = saturate(&mut pool, &World::default(), &mut server, 5 * HOUR, 4);
    let (slow, refused) = between(&report, (HOUR, 2 * HOUR));
    let (fast, _) = between(&report, (3 * HOUR + 30 * MINUTE, 5 * HOUR));
    println!("{slow:.2} of 2 a second, {refused} refused; then {fast:.2} of 20");
    assert!(slow >= 1.6 && refused <= 60, "{slow}, {refused}");
    assert!(fast >= 17.0, "{fast}");
}

/// The body of an answer that looked well tells of a limit: the same is found as from a 429.
#[test]
fn throttling_that_only_the_body_tells_teaches_the_same() {
    let mut pool = unlimited(1);
    let mut server = TokenBucket::new(20.0, 10, SECOND);
    let (mut now, mut accepted, mut refused) = (SECOND, 0, 0);
    let mut flying: Vec<(u64, Flight)> = Vec::new();
    while now < HOUR {
        let mut next = now + SECOND;
        loop {
            match pool.acquire(&Ask::default(), Time::from_nanos(now)) {
                Acquire::Granted(permit) => flying.push((now + 50 * MILLI, pool.depart(permit, Time::from_nanos(now)))),
                Acquire::At(at) | Acquire::Blocked { until: Some(at), .. } | Acquire::WhenAnswered { at_most: at } => {
                    next = next.min(at.as_nanos());
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        now = flying.first().map_or(next, |(at, _)| next.min(*at));
        if flying.first().is_some_and(|(at, _)| *at == now) {
            let (_, mut flight) = flying.remove(0);
            let fits = server.arrive(now, 1);
            let (key, sent, at) = (flight.key(), flight.sent(), Time::from_nanos(now));
            pool.first_byte(&mut flight, at, Some(&Signal::parse([], 200, None)));
            pool.finish(flight, at, None);
            if !fits {
                pool.throttled(key, sent, at, None);
            }
            let counter = if fits { &mut accepted } else { &mut refused };
            *counter += usize::from(now > HOUR / 2);
        }
    }
    let rate = accepted as f64 / (HOUR / 2) as f64 * 1e9;
    println!("{rate:.2} of 10 a second, {refused} refused in half an hour");
    assert!((8.5..10.1).contains(&rate) && refused <= 6, "{rate}, {refused}");
}

/// A 429 whose body says that the quota of an account is used up says nothing about rates.
#[test]
fn an_exhausted_quota_teaches_nothing() {
    let mut pool = unlimited(1);
    for n in 0..20 {
        flown(&mut pool, SECOND + n * 50 * MILLI, 200, &[]);
    }
    flown(&mut pool, 3 * SECOND, 429, &[]);
    assert_eq!(probing(&mut pool, 4 * SECOND).state, ProbeState::Refused);
    let budget = pool.budget_of(KeyId(0)).unwrap();
    pool.park_budget(budget, Some(Time::from_nanos(HOUR)));
    flown(&mut pool, HOUR, 200, &[]);
    let state = probing(&mut pool, HOUR + SECOND);
    assert_eq!((state.state, state.per_second, state.refusals), (ProbeState::SlowStart, None, 1));
}

/// What somebody else uses is seen in a `remaining` that falls too fast, and is not made up where nobody does.
#[test]
fn foreign_use_is_told_and_taken_off() {
    let declared = |algorithm, burst: Option<u64>| {
        let limit = LimitSpec { burst, ..LimitSpec::requests(60, seconds(10.0), algorithm) };
        PoolSpec { key_limits: vec![limit], ..spec(1) }
    };
    let log: fn() -> Box<dyn Server> = || Box::new(SlidingLog::new(60, 10 * SECOND));
    let clock: fn() -> Box<dyn Server> = || Box::new(FixedWindow::on_the_clock(60, 10 * SECOND, 0));
    let bucket: fn() -> Box<dyn Server> = || Box::new(TokenBucket::new(20.0, 60, 10 * SECOND));
    let cases = [
        ("told, clock", spec(1), clock),
        ("sliding window", declared(Algorithm::SlidingWindow, None), log),
        ("fixed window", declared(Algorithm::FixedWindow, None), clock),
        ("smooth", declared(Algorithm::Smooth, None), log),
        ("bucket", declared(Algorithm::TokenBucket, Some(20)), bucket),
    ];
    for (name, spec, server) in cases {
        let mut seen = Vec::new();
        for foreign in [0.0, 0.3] {
            let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
            let world = World { tells: true, foreign, ..World::default() };
            let report = saturate(&mut pool, &world, &mut *server(), 10 * MINUTE, 2);
            let budget = &pool.snapshot(Time::from_nanos(11 * MINUTE)).budgets[0];
            let share = report.refused() as f64 / report.arrivals.len() as f64;
            println!("{name}: others {foreign} a call: {} seen, {share:.3} refused", budget.foreign);
            assert_eq!(budget.foreign > 0, budget.foreign_at.is_some());
            assert!(share < 0.25, "{name}: {share}");
            seen.push(budget.foreign);
        }
        assert_eq!(seen[0], 0, "{name}: nobody else calls");
        assert!(seen[1] > 20, "{name}: {seen:?}");
    }
}

fn any_delay() -> impl Strategy<Value = Delay> {
    prop_oneof![
        Just(Delay::NONE),
        Just(Delay::LONG_TAIL),
        (1.0..300.0_f64).prop_map(|median| Delay::new(median, median * 8.0))
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is allowed, whatever the network does, lost answers and all: most of it is used, little is refused.
    #[test]
    fn any_rate_is_found(
        n in 5..200_u64, window in 2..30_u64, there in any_delay(), back in any_delay(), lost in 0.0..0.02_f64,
        kind in 0..3_u8, retry_after: bool, seed: u64,
    ) {
        let window = window * SECOND;
        let mut server: Box<dyn Server> = match kind {
            0 => Box::new(SlidingLog::new(n, window)),
            1 => Box::new(FixedWindow::on_the_clock(n, window, seed % window)),
            _ => Box::new(TokenBucket::new((n / 4 + 4) as f64, n, window)),
        };
        let world = World { there, back, lost, timeout: 5 * SECOND, retry_after, ..World::default() };
        let mut pool = unlimited(1);
        let report = saturate(&mut pool, &world, &mut *server, HOUR, seed);
        let allowed = n as f64 / (window as f64 / 1e9);
        let (rate, refused) = between(&report, (HOUR / 2, HOUR));
        prop_assert!(rate >= 0.5 * allowed, "seed {seed}: {rate} of {allowed}");
        prop_assert!((refused as f64) < 0.02 * rate * 1_800.0 + 20.0, "seed {seed}: {refused} refused");
    }

    /// Any mix of answers, at any time, saved and restored at any moment: no panic, and calls go on within an hour.
    #[test]
    fn nothing_that_is_answered_stops_it_for_ever(seed: u64) {
        let mut dice = Dice(seed);
        let (mut pool, mut now) = (unlimited(1), SECOND);
        let mut flying: Vec<Flight> = Vec::new();
        for _ in 0..2_000 {
            let at = Time::from_nanos(now);
            if let Acquire::Granted(permit) = pool.acquire(&Ask::default(), at) {
                if dice.unit() < 0.05 {
                    pool.abandon(permit, at);
                } else {
                    flying.push(pool.depart(permit, at));
                }
            }
            let most = if dice.unit() < 0.05 { 100 * SECOND } else { 200 * MILLI };
            now += dice.below(most);
            let at = Time::from_nanos(now);
            while !flying.is_empty() && (flying.len() > 50 || dice.unit() < 0.5) {
                let mut flight = flying.remove(dice.below(flying.len() as u64) as usize);
                let (key, sent) = (flight.key(), flight.sent());
                if dice.unit() < 0.1 {
                    pool.unsent(flight, at);
                    continue;
                }
                let number = [0, 1, 5, 1 << 40, u64::MAX][dice.below(5) as usize].to_string();
                let all = [("retry-after", "0"), ("ratelimit-limit", &number), ("ratelimit-remaining", &number), ("ratelimit-reset", "1")];
                let heads: Vec<_> = all.into_iter().filter(|_| dice.unit() < 0.3).collect();
                let status = [200, 200, 200, 429, 503][dice.below(5) as usize];
                if dice.unit() < 0.9 {
                    pool.first_byte(&mut flight, at, Some(&Signal::parse(heads, status, None)));
                }
                pool.finish(flight, at, None);
                if dice.unit() < 0.1 {
                    pool.throttled(key, sent, at, Some(Duration::from_millis(dice.below(3_000))));
                }
            }
            if dice.unit() < 0.01 {
                let json = serde_json::to_string(&pool.save(at)).unwrap();
                let since = Since::AtMost { calls: 9, open: 9, within: seconds(5.5) };
                flying.clear();
                pool = unlimited(1);
                pool.restore(&serde_json::from_str(&json).unwrap(), seconds(1.0), since, at);
            }
        }
        for flight in flying {
            pool.finish(flight, Time::from_nanos(now), None);
        }
        let mut calls = 0;
        let end = now + HOUR;
        while now < end {
            match pool.acquire(&Ask::default(), Time::from_nanos(now)) {
                Acquire::Granted(permit) => {
                    let flight = pool.depart(permit, Time::from_nanos(now));
                    now += 50 * MILLI;
                    answered(&mut pool, flight, now, 200, &[]);
                    calls += 1;
                }
                Acquire::At(at) | Acquire::Blocked { until: Some(at), .. } | Acquire::WhenAnswered { at_most: at } => {
                    prop_assert!(at.as_nanos() > now, "seed {seed}: a slot in the past");
                    now = at.as_nanos();
                }
                other => prop_assert!(false, "seed {seed}: {other:?}"),
            }
        }
        prop_assert!(calls >= 10, "seed {seed}: {calls} calls in an hour");
    }
}
