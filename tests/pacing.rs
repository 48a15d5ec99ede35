//! The promise of `docs/pacing.md`: with matching settings, no provider refuses a call under `strict`, whatever the
//! network does; and almost nothing of what is allowed is left unused.

mod oracle;

use oracle::world::{Delay, Dice, Job, Report, World, run, seconds};
use oracle::*;
use paceline::pace::*;
use proptest::prelude::*;
use std::time::Duration;

fn keys(n: usize) -> Vec<KeySpec> {
    (0..n).map(|i| KeySpec { label: format!("k{i}"), weight: 1, budget: None }).collect()
}

fn spec(key_limits: Vec<LimitSpec>, n: usize) -> PoolSpec {
    PoolSpec { key_limits, keys: keys(n), ..PoolSpec::default() }
}

fn pool_and_line(spec: &PoolSpec) -> (Pool, Line<Job>) {
    (Pool::new(spec, Time::ZERO).unwrap(), Line::new(&spec.lanes))
}

const CALL: Job = Job { ask: Ask { cost: 1, routes: Routes::NONE, pin: None }, lane: 0, actual: None };

/// An endless supply of equal calls for `length` nanoseconds.
fn saturate(spec: &PoolSpec, world: &World<'_>, servers: &mut [&mut dyn Server], length: u64, seed: u64) -> Report {
    let (mut pool, mut line) = pool_and_line(spec);
    run(&mut pool, &mut line, world, servers, (SECOND, length), 20, &mut Dice(seed), |_, _| Some(CALL))
}

fn requests(n: u64, window: u64, algorithm: Algorithm) -> LimitSpec {
    LimitSpec::requests(n, Duration::from_nanos(window), algorithm)
}

fn any_delay() -> impl Strategy<Value = Delay> {
    prop_oneof![
        Just(Delay::NONE),
        Just(Delay::LONG_TAIL),
        (1.0..400.0_f64, 1.0..20.0_f64).prop_map(|(median, tail)| Delay::new(median, median * tail)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any limit, any delays, lost answers, late departures, bursts and pauses of work: the log never overflows.
    #[test]
    fn sliding_window_is_never_exceeded(
        n in 1..40_u64, millis in 200..8_000_u64, there in any_delay(), back in any_delay(),
        lost in prop_oneof![Just(0.0), 0.0..0.3_f64], late in 0..300_u64, seed: u64,
    ) {
        let window = millis * MILLI;
        let spec = PoolSpec {
            counted_within: seconds(10_000.0),
            ..spec(vec![requests(n, window, Algorithm::SlidingWindow)], 2)
        };
        let world = World { there, back, lost, late: late * MILLI, timeout: 3 * SECOND, server_of: Box::new(|k| k.0 as usize), ..World::default() };
        let (mut a, mut b) = (SlidingLog::new(n, window), SlidingLog::new(n, window));
        let report = saturate(&spec, &world, &mut [&mut a, &mut b], 40 * SECOND, seed);
        prop_assert_eq!(report.refused(), 0, "seed {}", seed);
    }

    #[test]
    fn windows_on_the_clock_and_from_the_first_call_are_never_exceeded(
        n in 1..40_u64, millis in 200..8_000_u64, phase in 0..8_000_u64, there in any_delay(), back in any_delay(),
        smooth: bool, seed: u64,
    ) {
        let window = millis * MILLI;
        let algorithm = if smooth { Algorithm::Smooth } else { Algorithm::FixedWindow };
        let spec = PoolSpec { counted_within: seconds(10_000.0), ..spec(vec![requests(n, window, algorithm)], 1) };
        let world = World { there, back, ..World::default() };
        let mut clock = FixedWindow::on_the_clock(n, window, phase * MILLI);
        prop_assert_eq!(saturate(&spec, &world, &mut [&mut clock], 40 * SECOND, seed).refused(), 0, "seed {}", seed);
        let mut first = FixedWindow::from_the_first_call(n, window);
        prop_assert_eq!(saturate(&spec, &world, &mut [&mut first], 40 * SECOND, seed).refused(), 0, "seed {}", seed);
    }

    /// `smooth` meets a sliding counter whose edges nobody knows, with lost answers and late departures.
    #[test]
    fn smooth_is_never_refused_by_a_sliding_counter(
        n in 1..40_u64, millis in 200..8_000_u64, phase in 0..8_000_u64, there in any_delay(), back in any_delay(),
        lost in prop_oneof![Just(0.0), 0.0..0.2_f64], late in 0..300_u64, burst in 1..6_u64, seed: u64,
    ) {
        let window = millis * MILLI;
        let limit = requests(n, window, Algorithm::Smooth).with_burst(burst);
        let spec = PoolSpec { counted_within: seconds(10_000.0), ..spec(vec![limit], 1) };
        let world = World { there, back, lost, late: late * MILLI, timeout: 3 * SECOND, ..World::default() };
        let mut server = SlidingCounter::new(n, window, phase * MILLI);
        prop_assert_eq!(saturate(&spec, &world, &mut [&mut server], 40 * SECOND, seed).refused(), 0, "seed {}", seed);
    }

    /// Keys that share a budget, keys of their own, a limit of the whole provider and one of a route, all at once;
    /// keys and budgets are paused, set aside and resumed at random.
    #[test]
    fn many_limits_hold_through_pauses(
        of_key in 1..10_u64, of_budget in 1..20_u64, of_all in 1..40_u64, of_route in 1..6_u64, there in any_delay(), seed: u64,
    ) {
        let limit = |n| requests(n, SECOND, Algorithm::SlidingWindow);
        let mut spec = PoolSpec {
            counted_within: seconds(10_000.0),
            limits: vec![limit(of_all)],
            budgets: vec![BudgetSpec { name: "b".into(), limits: vec![limit(of_budget)] }],
            routes: vec![RouteSpec { limits: vec![limit(of_route)], key_limits: vec![limit(2)] }],
            ..spec(vec![limit(of_key)], 12)
        };
        spec.keys.iter_mut().take(5).for_each(|key| key.budget = Some(0));
        let (mut pool, mut line) = (Pool::new(&spec, Time::ZERO).unwrap(), Line::new(&spec.lanes));
        let mut dice = Dice(seed);
        let mut sent: Vec<(u64, KeyId, bool)> = Vec::new();
        let mut flying: Vec<(u64, u64, Flight)> = Vec::new();
        for step in 0..3_000_u64 {
            let now = step * 5 * MILLI;
            let at = Time::from_nanos(now);
            while line.len() < 6 {
                let routes = if dice.unit() < 0.4 { Routes::NONE.with(0) } else { Routes::NONE };
                let pin = (dice.unit() < 0.2).then(|| Pin::Key(KeyId(dice.below(12) as u32)));
                let _ = line.push(!routes.is_empty(), 0, Ask { routes, pin, ..Ask::default() });
            }
            let (key, soon) = (KeyId(dice.below(12) as u32), at + Duration::from_millis(dice.below(800)));
            match dice.below(100) {
                0 => pool.pause_key(key, soon),
                1 => pool.pause_budget(BudgetId(dice.below(8) as u32), soon),
                2 => pool.disable_key(key, Some(soon)),
                3 => pool.enable_key(key),
                4 => pool.resume_budget(BudgetId(0)),
                5 => pool.park_budget(BudgetId(dice.below(8) as u32), Some(soon)),
                6 => pool.pause_provider(soon),
                7 => pool.resume_provider(),
                8 => pool.resume_key(key),
                _ => {}
            }
            flying.sort_by_key(|flight| flight.1);
            while flying.first().is_some_and(|flight| flight.1 <= now) {
                let (_, _, mut flight) = flying.remove(0);
                pool.first_byte(&mut flight, at, None);
                pool.finish(flight, at, None);
            }
            while let Next::Ready(routed, permit, key) = line.next(&mut pool, at) {
                if dice.unit() < 0.1 {
                    pool.abandon(permit, at);
                    continue;
                }
                let arrives = now + there.roll(&mut dice);
                sent.push((arrives, key, routed));
                flying.push((arrives, arrives + there.roll(&mut dice), pool.depart(permit, at)));
            }
        }
        sent.sort_unstable();
        let never = |n: u64, which: &dyn Fn(&(u64, KeyId, bool)) -> bool| {
            let times: Vec<u64> = sent.iter().filter(|call| which(call)).map(|call| call.0).collect();
            times.windows(n as usize + 1).all(|calls| calls[n as usize] - calls[0] >= SECOND)
        };
        prop_assert!(sent.len() > 4, "only {} sent", sent.len());
        prop_assert!(never(of_all, &|_| true), "provider, seed {}", seed);
        prop_assert!(never(of_budget, &|call| call.1.0 < 5), "budget, seed {}", seed);
        prop_assert!(never(of_route, &|call| call.2), "route, seed {}", seed);
        for key in 0..12 {
            prop_assert!(never(of_key, &|call| call.1.0 == key), "key, seed {}", seed);
            prop_assert!(never(2, &|call| call.1.0 == key && call.2), "route and key, seed {}", seed);
        }
    }

    #[test]
    fn token_bucket_is_never_exceeded(
        n in 1..40_u64, millis in 200..8_000_u64, burst in 1..12_u64, there in any_delay(), back in any_delay(),
        lost in prop_oneof![Just(0.0), 0.0..0.3_f64], late in 0..300_u64, seed: u64,
    ) {
        let window = millis * MILLI;
        let limit = requests(n, window, Algorithm::TokenBucket).with_burst(burst);
        let spec = PoolSpec { counted_within: seconds(10_000.0), ..spec(vec![limit], 1) };
        let world = World { there, back, lost, late: late * MILLI, timeout: 3 * SECOND, ..World::default() };
        let mut server = TokenBucket::new(burst as f64, n, window);
        prop_assert_eq!(saturate(&spec, &world, &mut [&mut server], 40 * SECOND, seed).refused(), 0, "seed {}", seed);
    }

    #[test]
    fn concurrency_is_never_exceeded(
        places in 1..20_u32, there in any_delay(), work in any_delay(), lost in 0.0..0.3_f64, seed: u64,
    ) {
        let spec = spec(vec![LimitSpec::concurrency(places)], 1);
        let world = World { there, work, lost, ..World::default() };
        let mut server = Concurrent::new(u64::from(places));
        let report = saturate(&spec, &world, &mut [&mut server], 5 * SECOND, seed);
        prop_assert_eq!(report.refused(), 0, "seed {}", seed);
    }
}

/// The figures of the project: one-way delays with a median of 15 ms and 120 ms at the 99th percentile, both ways.
#[test]
fn sliding_window_uses_what_is_allowed() {
    for (n, window, floor) in [(100, 10 * SECOND, 0.99), (10, SECOND, 0.94)] {
        let mut sum = 0.0;
        for seed in 0..5 {
            let spec = spec(vec![requests(n, window, Algorithm::SlidingWindow)], 1);
            let mut server = SlidingLog::new(n, window);
            let report = saturate(&spec, &World::default(), &mut [&mut server], 20 * window, seed);
            assert_eq!(report.refused(), 0, "seed {seed}");
            let used = report.utilisation(n, window, None);
            let formula = window as f64 / (window as f64 + report.mean_rtt);
            println!("{n} per {}s seed {seed}: {:.4} ({:.4} of the formula)", window / SECOND, used, used / formula);
            assert!(used / formula >= 0.97, "seed {seed}: {used}");
            sum += used;
        }
        assert!(sum / 5.0 >= floor, "{n}: {}", sum / 5.0);
    }
}

#[test]
fn token_bucket_uses_what_is_allowed() {
    for seed in 0..5 {
        let limit = requests(10, SECOND, Algorithm::TokenBucket).with_burst(6);
        let mut server = TokenBucket::new(6.0, 10, SECOND);
        let report = saturate(&spec(vec![limit], 1), &World::default(), &mut [&mut server], 100 * SECOND, seed);
        assert_eq!(report.refused(), 0, "seed {seed}");
        let used = report.utilisation(10, SECOND, None);
        println!("token bucket seed {seed}: {used:.4}");
        assert!(used >= 0.985, "seed {seed}: {used}");
    }
}

/// `smooth` on a provider that counts with a sliding counter.
#[test]
fn smooth_suits_a_sliding_counter() {
    for (n, window, floor) in [(60, 6 * SECOND, 0.96), (300, 30 * SECOND, 0.985), (600, 60 * SECOND, 0.985)] {
        for seed in 0..6 {
            let spec = spec(vec![requests(n, window, Algorithm::Smooth)], 1);
            let mut server = SlidingCounter::new(n, window, Dice(seed).below(window));
            let report = saturate(&spec, &World::default(), &mut [&mut server], 12 * window, seed);
            let used = report.utilisation(n, window, None);
            println!("smooth {n} per {}s seed {seed}: {used:.4}, {} refused", window / SECOND, report.refused());
            assert_eq!(report.refused(), 0, "seed {seed}");
            assert!(used >= floor, "seed {seed}: {used}");
        }
    }
}

/// A dispatcher's timers are late by a millisecond or two each time: that does not add up.
#[test]
fn a_little_lateness_costs_smooth_nothing() {
    let window = 10 * SECOND;
    for n in [300, 1_500] {
        let used = |late: u64| {
            let spec = spec(vec![requests(n, window, Algorithm::Smooth)], 1);
            let world = World { late, ..World::default() };
            let mut server = SlidingCounter::new(n, window, 3 * SECOND);
            let report = saturate(&spec, &world, &mut [&mut server], 6 * window, 4);
            assert_eq!(report.refused(), 0);
            report.utilisation(n, window, None)
        };
        let (in_time, late) = (used(0), used(4 * MILLI));
        println!("smooth {n} per {}s: {in_time:.4}, up to 4 ms late: {late:.4}", window / SECOND);
        assert!(in_time >= 0.98, "{in_time}");
        assert!(late >= in_time - 0.003, "{late} of {in_time}");
    }
}

/// `smooth` on the other servers, which have room for 1 + rate × spread calls, the spread being 0.5 s.
#[test]
fn smooth_suits_the_other_servers() {
    for (n, window) in [(60, 6 * SECOND), (300, 30 * SECOND)] {
        let room = 1.0 + n as f64 / (window / SECOND) as f64 * 0.5;
        for seed in 0..3 {
            let servers: [Box<dyn Server>; 5] = [
                Box::new(TokenBucket::new(room, n, window)),
                Box::new(LeakyBucket::new(room - 1.0, n, window)),
                Box::new(SlidingLog::new(n, window)),
                Box::new(FixedWindow::on_the_clock(n, window, Dice(seed).below(window))),
                Box::new(FixedWindow::from_the_first_call(n, window)),
            ];
            for (kind, mut server) in servers.into_iter().enumerate() {
                let spec = spec(vec![requests(n, window, Algorithm::Smooth)], 1);
                let report = saturate(&spec, &World::default(), &mut [server.as_mut()], 12 * window, seed);
                assert_eq!(report.refused(), 0, "server {kind}, seed {seed}");
                let used = report.utilisation(n, window, None);
                assert!(used >= 0.96, "server {kind}, seed {seed}: {used}");
            }
        }
    }
}

/// Four keys, and three that share one budget, each wholly used.
#[test]
fn several_keys_are_each_used_wholly() {
    let (n, window) = (50, 5 * SECOND);
    let limit = requests(n, window, Algorithm::SlidingWindow);
    let mut spec = spec(vec![limit.clone()], 7);
    spec.budgets = vec![BudgetSpec { name: "b".into(), limits: vec![limit] }];
    spec.keys.iter_mut().skip(4).for_each(|key| key.budget = Some(0));
    let world = World { server_of: Box::new(|key| key.0.min(4) as usize), ..World::default() };
    let mut servers: Vec<SlidingLog> = (0..5).map(|_| SlidingLog::new(n, window)).collect();
    let mut servers: Vec<&mut dyn Server> = servers.iter_mut().map(|server| server as &mut dyn Server).collect();
    let report = saturate(&spec, &world, &mut servers, 20 * window, 3);
    assert_eq!(report.refused(), 0);
    let used = report.utilisation(5 * n, window, None);
    println!("five budgets: {used:.4}");
    assert!(used >= 0.985, "{used}");
    let of = |keys: std::ops::Range<u32>| report.arrivals.iter().filter(|a| keys.contains(&a.key.0)).count();
    assert!(of(4..7).abs_diff(of(0..1)) <= 2 * n as usize, "{} {}", of(4..7), of(0..1));
    assert!(of(4..5) > 0 && of(5..6) > 0 && of(6..7) > 0);
}
