//! Promises in the small, for every algorithm alike: permits in hand, permits given back, late departures, hand-overs
//! in order, calls in flight when their owner dies, foreign use that outlives it.

mod oracle;

use oracle::MILLI;
use oracle::world::Dice;
use paceline::pace::*;
use std::time::Duration;

const TIMED: [Algorithm; 4] =
    [Algorithm::SlidingWindow, Algorithm::FixedWindow, Algorithm::TokenBucket, Algorithm::Smooth];

fn t(millis: u64) -> Time {
    Time::from_nanos(millis * MILLI)
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn pool(limit: &LimitSpec, now: Time) -> Pool {
    let keys = vec![KeySpec { label: "k".into(), weight: 1, budget: None }];
    Pool::new(&PoolSpec { key_limits: vec![limit.clone()], keys, ..PoolSpec::default() }, now).unwrap()
}

/// So many calls in ten seconds, all of them at once where the algorithm allows it.
fn ten_seconds(n: u64, algorithm: Algorithm) -> LimitSpec {
    LimitSpec::requests(n, ms(10_000), algorithm).with_burst(n)
}

fn try_acquire(pool: &mut Pool, now: Time) -> Option<Permit> {
    match pool.acquire(&Ask::default(), now) {
        Acquire::Granted(permit) => Some(permit),
        _ => None,
    }
}

fn depart(pool: &mut Pool, now: Time) -> Flight {
    let permit = try_acquire(pool, now).unwrap_or_else(|| panic!("no room at {now:?}"));
    pool.depart(permit, now)
}

/// As many calls as there is room for.
fn send_all(pool: &mut Pool, now: Time) -> Vec<Flight> {
    let mut flights = Vec::new();
    while let Some(permit) = try_acquire(pool, now) {
        flights.push(pool.depart(permit, now));
        assert!(flights.len() < 100, "without end");
    }
    flights
}

fn answer(pool: &mut Pool, mut flight: Flight, now: Time) {
    pool.first_byte(&mut flight, now, None);
    pool.finish(flight, now, None);
}

/// When the next call can go, if no answer comes before.
fn slot(pool: &mut Pool, now: Time) -> Time {
    match pool.acquire(&Ask::default(), now) {
        Acquire::At(at) | Acquire::WhenAnswered { at_most: at } => at,
        Acquire::Granted(permit) => {
            pool.abandon(permit, now);
            now
        }
        other => panic!("{other:?}"),
    }
}

/// Whether the next call waits for a time that no answer brings forward.
fn certain_slot(pool: &mut Pool, now: Time) -> Time {
    match pool.acquire(&Ask::default(), now) {
        Acquire::At(at) => at,
        other => panic!("{other:?}"),
    }
}

#[test]
fn permits_in_hand_count_as_calls() {
    let limits = TIMED.map(|algorithm| ten_seconds(5, algorithm));
    for limit in limits.iter().chain([&LimitSpec::concurrency(5)]) {
        let mut pool = pool(limit, t(0));
        let mut permits: Vec<Permit> = (0..9).map_while(|_| try_acquire(&mut pool, t(0))).collect();
        assert!((4..=5).contains(&permits.len()), "{limit}: {}", permits.len());
        assert!(slot(&mut pool, t(0)) > t(0), "{limit}");
        // They still do when some of them have departed, and when those were answered.
        let all = permits.len();
        let flights: Vec<Flight> = permits.drain(..2).map(|permit| pool.depart(permit, t(1))).collect();
        assert!(try_acquire(&mut pool, t(1)).is_none(), "{limit}: {all}");
        if !matches!(limit.measure, Measure::Concurrency(_)) {
            flights.into_iter().for_each(|flight| answer(&mut pool, flight, t(2)));
            assert!(try_acquire(&mut pool, t(2)).is_none(), "{limit}: {all}");
        }
    }
}

#[test]
fn permits_given_back_leave_no_trace() {
    let limits = TIMED.map(|algorithm| ten_seconds(5, algorithm));
    for limit in limits.iter().chain([&LimitSpec::concurrency(5)]) {
        let (mut used, mut new) = (pool(limit, t(0)), pool(limit, t(0)));
        for n in 0..50 {
            let permits: Vec<Permit> = (0..3).map_while(|_| try_acquire(&mut used, t(n))).collect();
            permits.into_iter().for_each(|permit| used.abandon(permit, t(n)));
        }
        assert_eq!(send_all(&mut used, t(50)).len(), send_all(&mut new, t(50)).len(), "{limit}");
    }
}

/// A call that left later than it was booked holds its place from then on; answered, it is forgotten in time.
#[test]
fn a_late_departure_is_answered_like_any_other() {
    for (algorithm, wait) in [
        (Algorithm::SlidingWindow, 10_000),
        (Algorithm::FixedWindow, 10_000),
        (Algorithm::TokenBucket, 10_000),
        (Algorithm::Smooth, 20_000),
    ] {
        let mut pool = pool(&LimitSpec::requests(1, ms(10_000), algorithm), t(0));
        let mut flight = depart(&mut pool, t(0));
        pool.departed_late(&mut flight, t(200));
        answer(&mut pool, flight, t(300));
        let at = certain_slot(&mut pool, t(300));
        let from = if algorithm == Algorithm::Smooth { 200 } else { 300 };
        assert!(at >= t(from + wait) && at <= t(from + wait + 30), "{algorithm:?}: {at:?}");
    }
}

/// Owners one after the other that let go in order are as one: nothing may be sent earlier, and little later.
#[test]
fn a_hand_over_in_order_changes_next_to_nothing() {
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let algorithm = TIMED[dice.below(4) as usize];
        let n = 1 + dice.below(30);
        let limit = LimitSpec { burst: Some(1 + dice.below(n)), ..LimitSpec::requests(n, ms(10_000), algorithm) };
        let mut first = pool(&limit, t(0));
        let mut now = 0;
        for _ in 0..dice.below(80) {
            let Some(permit) = try_acquire(&mut first, t(now)) else {
                now += dice.below(700);
                continue;
            };
            let flight = first.depart(permit, t(now));
            now += dice.below(100);
            answer(&mut first, flight, t(now));
        }
        now += dice.below(3_000);
        let written = first.save(t(now));
        let later = now + dice.below(4_000);
        let origin = 1_000_000 + dice.below(1_000_000);
        let mut second = pool(&limit, t(later + origin));
        second.restore(&written, ms(later - now), Since::Nothing, t(later + origin));
        // Both go on with as many calls as they can, answered at once.
        for _ in 0..n + 3 {
            let (mut one, mut other) = (later, later);
            for (pool, at, ahead) in [(&mut first, &mut one, 0), (&mut second, &mut other, origin)] {
                while try_acquire(pool, t(*at + ahead))
                    .map(|permit| {
                        let flight = pool.depart(permit, t(*at + ahead));
                        answer(pool, flight, t(*at + ahead));
                    })
                    .is_none()
                {
                    *at = (slot(pool, t(*at + ahead)).as_nanos().div_ceil(MILLI) - ahead).max(*at + 1);
                }
            }
            let grain = 10_000 / 48 + 10;
            assert!(other + 1 >= one, "seed {seed}, {limit}: {other} after {one}");
            assert!(other <= one + grain * 2 + 10_000 / n / 4, "seed {seed}, {limit}: {other} after {one}");
            if other > one {
                break;
            }
        }
    }
}

/// Nothing was sent after it was written, but calls were in flight: they count, as late as they can arrive.
#[test]
fn calls_in_flight_when_their_owner_dies_count() {
    for algorithm in TIMED {
        let limit = ten_seconds(8, algorithm);
        let mut first = pool(&limit, t(0));
        let lost: Vec<Flight> = (0..6).map(|_| depart(&mut first, t(0))).collect();
        let written = first.save(t(100));
        let mut second = pool(&limit, t(200));
        let since = Since::AtMost { calls: 0, open: 0, within: ms(5_500) };
        second.restore(&written, ms(100), since, t(200));
        let more = send_all(&mut second, t(200)).len();
        assert!(lost.len() + more <= 8, "{algorithm:?}: {more} more");
    }
    // Open calls, too: those that were, and as many as were written ahead.
    for (ahead, left) in [(0, 2), (5, 1), (6, 0), (9, 0)] {
        let limit = LimitSpec::concurrency(6);
        let mut first = pool(&limit, t(0));
        let _lost: Vec<Flight> = (0..4).map(|_| depart(&mut first, t(0))).collect();
        let written = first.save(t(100));
        let mut second = pool(&limit, t(200));
        second.restore(&written, ms(100), Since::AtMost { calls: 9, open: ahead, within: ms(5_500) }, t(200));
        let more: Vec<Permit> = (0..20).map_while(|_| try_acquire(&mut second, t(200))).collect();
        assert_eq!(more.len(), left, "{ahead} ahead");
        more.into_iter().for_each(|permit| second.abandon(permit, t(200)));
        assert_eq!(send_all(&mut second, t(30_199)).len(), left);
        assert!(try_acquire(&mut second, t(30_201)).is_some(), "the timeout is over");
    }
}

/// What others used is told by the answers once; the next owner counts it as well.
#[test]
fn foreign_use_outlives_the_process() {
    for algorithm in TIMED {
        let limit = ten_seconds(10, algorithm);
        let mut first = pool(&limit, t(0));
        let mut flight = depart(&mut first, t(0));
        let told = Signal::parse([("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "0")], 200, None);
        first.first_byte(&mut flight, t(10), Some(&told));
        first.finish(flight, t(10), None);
        // A bucket has let some flow back while the answer was on its way.
        assert!(send_all(&mut first.clone(), t(20)).len() <= 2, "{algorithm:?}: nine others");
        let written = first.save(t(500));
        let mut second = pool(&limit, t(700));
        second.restore(&written, ms(200), Since::Nothing, t(700));
        assert!(send_all(&mut second.clone(), t(700)).len() <= 2, "{algorithm:?}: nine others");
        let (one, other) = (slot(&mut first, t(700)), slot(&mut second, t(700)));
        assert!(other.as_nanos() + MILLI >= one.as_nanos(), "{algorithm:?}: {other:?} before {one:?}");
        assert!(other <= one + ms(250), "{algorithm:?}: {other:?} after {one:?}");
    }
}

/// Half of it is left unused, whatever the algorithm.
#[test]
fn headroom_lowers_every_rate() {
    for algorithm in TIMED {
        let keys = vec![KeySpec { label: "k".into(), weight: 1, budget: None }];
        let key_limits = vec![LimitSpec::requests(10, ms(10_000), algorithm)];
        let spec = PoolSpec { key_limits, keys, safety: Safety::Headroom(0.5), ..PoolSpec::default() };
        let mut pool = Pool::new(&spec, t(0)).unwrap();
        let mut sent = 0;
        for now in (0..100_000).step_by(50) {
            while let Some(permit) = try_acquire(&mut pool, t(now)) {
                let flight = pool.depart(permit, t(now));
                answer(&mut pool, flight, t(now));
                sent += 1;
            }
        }
        assert!((45..=50).contains(&sent), "{algorithm:?}: {sent}");
    }
}

/// A refusal in spite of a permit makes the next calls a little rarer, whatever the algorithm.
#[test]
fn a_refusal_widens_every_guard() {
    for algorithm in TIMED {
        let limit = LimitSpec::requests(1, ms(10_000), algorithm);
        let wait = |refused: bool| {
            let mut pool = pool(&limit, t(0));
            let mut flight = depart(&mut pool, t(0));
            let told = Signal::parse([("retry-after", "1")], 429, None);
            pool.first_byte(&mut flight, t(10), refused.then_some(&told));
            pool.finish(flight, t(10), None);
            let flight = depart(&mut pool, t(60_000));
            answer(&mut pool, flight, t(60_010));
            certain_slot(&mut pool, t(60_010)).since(t(60_010))
        };
        assert!(wait(true) >= wait(false) + ms(49), "{algorithm:?}: {:?}, {:?}", wait(true), wait(false));
    }
}
