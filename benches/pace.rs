//! The cost of a permit: acquire, depart, first byte and finish, with four limits on every key.
//!
//! `ready`: keys have room, the choice is by turn. `saturated`: every key is at its limit and one slot comes free at a
//! time, so that each permit waits for the nearest slot.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use paceline::pace::*;
use std::hint::black_box;
use std::time::Duration;

fn spec(keys: usize, per_minute: u64) -> PoolSpec {
    let second = Duration::from_secs(1);
    PoolSpec {
        key_limits: vec![
            LimitSpec::requests(per_minute, second * 60, Algorithm::SlidingWindow),
            LimitSpec::requests(per_minute, second * 60, Algorithm::TokenBucket).with_burst(per_minute),
            LimitSpec::requests(per_minute * 60, second * 3600, Algorithm::SlidingWindow),
            LimitSpec::concurrency(100),
        ],
        keys: (0..keys).map(|i| KeySpec { label: format!("k{i}"), weight: 1, budget: None }).collect(),
        ..PoolSpec::default()
    }
}

fn one(pool: &mut Pool, now: &mut Time, step: Duration) -> bool {
    *now = *now + step;
    match pool.acquire(black_box(&Ask::default()), *now) {
        Acquire::Granted(permit) => {
            let mut flight = pool.depart(permit, *now);
            pool.first_byte(&mut flight, *now, None);
            pool.finish(flight, *now, None);
            true
        }
        Acquire::At(at) => {
            *now = at;
            false
        }
        other => panic!("{other:?}"),
    }
}

fn permits(c: &mut Criterion) {
    let mut group = c.benchmark_group("permit");
    for keys in [1, 100, 10_000_usize] {
        let mut pool = Pool::new(&spec(keys, 1_000_000), Time::ZERO).unwrap();
        let mut now = Time::ZERO;
        group.bench_function(BenchmarkId::new("ready", keys), |b| {
            b.iter(|| one(&mut pool, &mut now, Duration::from_micros(100)))
        });
        let mut pool = Pool::new(&spec(keys, 60), Time::ZERO).unwrap();
        let mut now = Time::ZERO;
        for _ in 0..keys * 70 {
            one(&mut pool, &mut now, Duration::ZERO);
        }
        group.bench_function(BenchmarkId::new("saturated", keys), |b| {
            b.iter(|| while !one(&mut pool, &mut now, Duration::ZERO) {})
        });
    }
    group.finish();
}

fn choices(c: &mut Criterion) {
    let mut group = c.benchmark_group("acquire");
    for keys in [1, 100, 10_000_usize] {
        let mut pool = Pool::new(&spec(keys, 1_000_000), Time::ZERO).unwrap();
        let now = Time::ZERO;
        group.bench_function(BenchmarkId::new("and abandon", keys), |b| {
            b.iter(|| match pool.acquire(black_box(&Ask::default()), now) {
                Acquire::Granted(permit) => pool.abandon(permit, now),
                other => panic!("{other:?}"),
            })
        });
    }
    group.finish();
}

/// Costs of any size up to 500 against a cost limit on every key, at its limit.
fn mixed_costs(c: &mut Criterion) {
    let mut group = c.benchmark_group("permit of any cost");
    for keys in [1, 100, 10_000_usize] {
        let mut declared = spec(keys, 1_000_000);
        declared.key_limits.push(LimitSpec::cost(10_000, Duration::from_secs(60), Algorithm::SlidingWindow));
        let mut pool = Pool::new(&declared, Time::ZERO).unwrap();
        let (mut now, mut seed) = (Time::ZERO, 1_u64);
        let step = Duration::from_secs(60 * 250) / 10_000 / keys as u32;
        let mut any = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            now = now + step;
            let ask = Ask { cost: 1 + (seed >> 33) % 500, ..Ask::default() };
            if let Acquire::Granted(permit) = pool.acquire(black_box(&ask), now) {
                let mut flight = pool.depart(permit, now);
                pool.first_byte(&mut flight, now, None);
                pool.finish(flight, now, None);
            }
        };
        (0..keys * 60).for_each(|_| any());
        group.bench_function(BenchmarkId::from_parameter(keys), |b| b.iter(&mut any));
    }
    group.finish();
}

criterion_group!(benches, permits, choices, mixed_costs);
criterion_main!(benches);
