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
    /// State is saved with everything answered, and the next owner comes so much later.
    HandOver(u64),
    /// Nothing is saved after the last renewal.
    Crash(u64),
}

/// Owners one after the other, each saturating its budgets; returns the arrivals of every key.
fn owners(spec: &PoolSpec, ends: &[(u64, End)], seed: u64) -> BTreeMap<u32, Vec<u64>> {
    let mut dice = Dice(seed);
    let mut arrivals: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut now = START;
    let mut last: Option<(Saved, u64, Since)> = None;
    for (lives, end) in ends {
        let began = Time::from_nanos(now);
        let mut pool = Pool::new(spec, began).unwrap();
        if let Some((saved, at, since)) = &last {
            pool.restore(saved, Duration::from_nanos(now - at), *since, began);
        }
        let death = now + lives;
        let mut saved = (pool.save(began), now);
        let mut sent_since = 0;
        let mut answers: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
        let mut flights: BTreeMap<u64, Flight> = BTreeMap::new();
        let mut serial = 0;
        // So many calls may be sent until the next renewal: written ahead.
        let ahead = 40;
        while now < death {
            if now >= saved.1 + RENEW {
                saved = (pool.save(Time::from_nanos(now)), now);
                sent_since = 0;
            }
            let mut next = (saved.1 + RENEW).min(death);
            while let Some(Reverse((at, number))) = answers.peek().copied()
                && at <= now
            {
                answers.pop();
                let mut flight = flights.remove(&number).unwrap();
                pool.first_byte(&mut flight, Time::from_nanos(at), None);
                pool.finish(flight, Time::from_nanos(at), None);
            }
            while now < saved.1 + VALID && sent_since < ahead {
                match pool.acquire(&Ask::default(), Time::from_nanos(now)) {
                    Acquire::Granted(permit) => {
                        let flight = pool.depart(permit, Time::from_nanos(now));
                        let there = now + dice.way();
                        arrivals.entry(flight.key().0).or_default().push(there);
                        serial += 1;
                        answers.push(Reverse((there + dice.way(), serial)));
                        flights.insert(serial, flight);
                        sent_since += 1;
                    }
                    Acquire::At(at) => {
                        next = next.min(at.as_nanos().max(now + 1));
                        break;
                    }
                    _ => break,
                }
            }
            next = answers.peek().map_or(next, |Reverse((at, _))| next.min(*at));
            now = next.max(now + 1);
        }
        last = Some(match end {
            End::HandOver(pause) => {
                while let Some(Reverse((at, number))) = answers.pop() {
                    now = now.max(at);
                    let mut flight = flights.remove(&number).unwrap();
                    pool.first_byte(&mut flight, Time::from_nanos(at), None);
                    pool.finish(flight, Time::from_nanos(at), None);
                }
                let state = (pool.save(Time::from_nanos(now)), now, Since::Nothing);
                now += pause;
                state
            }
            End::Crash(pause) => {
                now += pause;
                let within = Duration::from_nanos(VALID);
                (saved.0, saved.1, Since::AtMost { calls: ahead, open: ahead, within })
            }
        });
    }
    for arrivals in arrivals.values_mut() {
        arrivals.sort_unstable();
    }
    arrivals
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
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

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
    let saved = pool.save(now);
    let json = serde_json::to_string(&saved).unwrap();
    let saved: Saved = serde_json::from_str(&json).unwrap();
    let later = now + Duration::from_secs(4);
    let mut next = Pool::new(&spec(limit), later).unwrap();
    next.restore(&saved, Duration::from_secs(4), Since::Nothing, later);
    assert!(matches!(next.acquire(&Ask::default(), later), Acquire::Blocked { .. } | Acquire::At(_)));
    let open = later + Duration::from_millis(6_100);
    let Acquire::Granted(permit) = next.acquire(&Ask::default(), open) else { panic!("the pause is over") };
    assert_eq!(permit.key(), KeyId(1), "the refused key stays aside");
    next.abandon(permit, open);
}

#[test]
fn a_changed_limit_is_counted_as_used() {
    let now = Time::from_nanos(START);
    let limit = |n| LimitSpec::requests(n, Duration::from_secs(10), Algorithm::SlidingWindow);
    let mut pool = Pool::new(&spec(limit(5)), now).unwrap();
    let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) else { panic!("new") };
    let key = permit.key();
    let flight = pool.depart(permit, now);
    let saved = pool.save(now);
    pool.unsent(flight, now);
    let mut next = Pool::new(&spec(limit(9)), now).unwrap();
    next.restore(&saved, Duration::ZERO, Since::Nothing, now);
    let pinned = Ask { pin: Some(Pin::Key(key)), ..Ask::default() };
    assert!(matches!(next.acquire(&pinned, now), Acquire::At(_)));
}

#[test]
fn places_of_a_changed_concurrency_limit_are_taken_until_old_calls_surely_ended() {
    let now = Time::from_nanos(START);
    let mut pool = Pool::new(&spec(LimitSpec::concurrency(3)), now).unwrap();
    let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) else { panic!("new") };
    let pinned = Ask { pin: Some(Pin::Key(permit.key())), ..Ask::default() };
    let flight = pool.depart(permit, now);
    let saved = pool.save(now);
    pool.unsent(flight, now);
    let mut next = Pool::new(&spec(LimitSpec::concurrency(5)), now).unwrap();
    next.restore(&saved, Duration::ZERO, Since::Nothing, now);
    assert!(!matches!(next.acquire(&pinned, now), Acquire::Granted(_)));
    let later = now + Duration::from_secs(31);
    let Acquire::Granted(permit) = next.acquire(&pinned, later) else { panic!("the timeout is over") };
    next.abandon(permit, later);
}
