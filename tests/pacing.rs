//! The promise of `docs/pacing.md`: with matching settings, no provider refuses a call under `strict`, whatever the
//! network does; and almost nothing of what is allowed is left unused.

mod oracle;

use oracle::world::{Delay, Dice, Job, Report, World, run, seconds};
use oracle::*;
use paceline::pace::*;
use proptest::prelude::*;
use std::time::Duration;

fn keys(n: usize) -> Vec<KeySpec> {
    (0..n)
        .map(|i| KeySpec {
            label: format!("k{i}"),
            weight: 1,
            budget: None,
        })
        .collect()
}

fn spec(key_limits: Vec<LimitSpec>, n: usize) -> PoolSpec {
    PoolSpec {
        key_limits,
        keys: keys(n),
        ..PoolSpec::default()
    }
}

fn pool_and_line(spec: &PoolSpec) -> (Pool, Line<Job>) {
    (Pool::new(spec, Time::ZERO).unwrap(), Line::new(&spec.lanes))
}

const CALL: Job = Job {
    ask: Ask {
        cost: 1,
        routes: Routes::NONE,
        pin: None,
    },
    lane: 0,
    actual: None,
};

/// An endless supply of equal calls for `length` nanoseconds.
fn saturate(
    spec: &PoolSpec,
    world: &World<'_>,
    servers: &mut [&mut dyn Server],
    length: u64,
    seed: u64,
) -> Report {
    let (mut pool, mut line) = pool_and_line(spec);
    run(
        &mut pool,
        &mut line,
        world,
        servers,
        (SECOND, length),
        20,
        &mut Dice(seed),
        |_, _| Some(CALL),
    )
}

fn requests(n: u64, window: u64, algorithm: Algorithm) -> LimitSpec {
    LimitSpec::requests(n, Duration::from_nanos(window), algorithm)
}

fn any_delay() -> impl Strategy<Value = Delay> {
    prop_oneof![
        Just(Delay::NONE),
        Just(Delay::LONG_TAIL),
        (1.0..400.0_f64, 1.0..20.0_f64)
            .prop_map(|(median, tail)| Delay::new(median, median * tail)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

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
            let report = saturate(
                &spec,
                &World::default(),
                &mut [&mut server],
                20 * window,
                seed,
            );
            assert_eq!(report.refused(), 0, "seed {seed}");
            let used = report.utilisation(n, window, None);
            let formula = window as f64 / (window as f64 + report.mean_rtt);
            println!(
                "{n} per {}s seed {seed}: {:.4} ({:.4} of the formula)",
                window / SECOND,
                used,
                used / formula
            );
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
        let report = saturate(
            &spec(vec![limit], 1),
            &World::default(),
            &mut [&mut server],
            100 * SECOND,
            seed,
        );
        assert_eq!(report.refused(), 0, "seed {seed}");
        let used = report.utilisation(10, SECOND, None);
        println!("token bucket seed {seed}: {used:.4}");
        assert!(used >= 0.985, "seed {seed}: {used}");
    }
}

/// `smooth` on a provider that counts with a sliding counter.
#[test]
fn smooth_suits_a_sliding_counter() {
    for (n, window, floor) in [
        (60, 6 * SECOND, 0.96),
        (300, 30 * SECOND, 0.985),
        (600, 60 * SECOND, 0.985),
    ] {
        for seed in 0..6 {
            let spec = spec(vec![requests(n, window, Algorithm::Smooth)], 1);
            let mut server = SlidingCounter::new(n, window, Dice(seed).below(window));
            let report = saturate(
                &spec,
                &World::default(),
                &mut [&mut server],
                12 * window,
                seed,
            );
            let used = report.utilisation(n, window, None);
            println!(
                "smooth {n} per {}s seed {seed}: {used:.4}, {} refused",
                window / SECOND,
                report.refused()
            );
            assert_eq!(report.refused(), 0, "seed {seed}");
            assert!(used >= floor, "seed {seed}: {used}");
        }
    }
}
