//! Costs and their corrections, several limits at once, quotas, huge windows, calls without answers.

mod oracle;

use oracle::world::{Delay, Dice, Job, Report, World, run, seconds};
use oracle::*;
use paceline::pace::*;
use proptest::prelude::*;
use std::time::Duration;

fn one_key(limits: Vec<LimitSpec>) -> PoolSpec {
    let keys = vec![KeySpec { label: "k".into(), weight: 1, budget: None }];
    PoolSpec { key_limits: limits, keys, ..PoolSpec::default() }
}

fn t(millis: u64) -> Time {
    Time::from_nanos(millis * MILLI)
}

fn costing(cost: u64) -> Ask {
    Ask { cost, ..Ask::default() }
}

fn depart(pool: &mut Pool, ask: &Ask, now: Time) -> Flight {
    match pool.acquire(ask, now) {
        Acquire::Granted(permit) => pool.depart(permit, now),
        other => panic!("{other:?} at {now:?}"),
    }
}

fn send(pool: &mut Pool, ask: &Ask, now: Time) {
    let mut flight = depart(pool, ask, now);
    pool.first_byte(&mut flight, now, None);
    pool.finish(flight, now, None);
}

fn slot(pool: &mut Pool, ask: &Ask, now: Time) -> Time {
    match pool.acquire(ask, now) {
        Acquire::At(at) => at,
        Acquire::WhenAnswered { at_most } => at_most,
        other => panic!("{other:?}"),
    }
}

fn used(pool: &mut Pool, now: Time) -> Vec<u64> {
    pool.snapshot(now).budgets[0].keys[0].limits.iter().map(|limit| limit.used).collect()
}

fn mixed(
    spec: &PoolSpec,
    server: &mut dyn Server,
    length: u64,
    seed: u64,
    mut job: impl FnMut(&mut Dice) -> Job,
) -> Report {
    let (mut pool, mut line) = (Pool::new(spec, Time::ZERO).unwrap(), Line::new(&spec.lanes));
    run(&mut pool, &mut line, &World::default(), &mut [server], (SECOND, length), 30, &mut Dice(seed), |dice, _| {
        Some(job(dice))
    })
}

fn priced(cost: u64) -> Job {
    Job { ask: costing(cost), lane: 0, actual: None }
}

/// Requests and cost at once, costs from 1 to 500: no refusal, and the binding limit is used.
#[test]
fn two_limits_at_once() {
    for (units, costs_bind) in [(20_000, true), (100_000, false)] {
        for seed in 0..3 {
            let (calls, window) = (100, 10 * SECOND);
            let per = Duration::from_nanos(window);
            let spec = one_key(vec![
                LimitSpec::requests(calls, per, Algorithm::SlidingWindow),
                LimitSpec::cost(units, per, Algorithm::SlidingWindow),
            ]);
            let mut server = Both(ByCall(SlidingLog::new(calls, window)), SlidingLog::new(units, window));
            let report = mixed(&spec, &mut server, 25 * window, seed, |dice| priced(1 + dice.below(500)));
            assert_eq!(report.refused(), 0, "seed {seed}");
            let middle = (5 * window, 25 * window);
            let share = if costs_bind {
                report.share(units, window, middle, |arrival| arrival.cost)
            } else {
                report.share(calls, window, middle, |_| 1)
            };
            println!("two limits, costs bind {costs_bind}, seed {seed}: {share:.4}");
            assert!(share >= 0.97, "seed {seed}: {share}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Costs of any size by any algorithm, with true costs below the estimate told in the answer.
    #[test]
    fn costs_are_never_exceeded(
        units in 50..2_000_u64, millis in 500..6_000_u64, largest in 1..50_u64, kind in 0..3_u8, seed: u64,
    ) {
        let window = millis * MILLI;
        let per = Duration::from_nanos(window);
        let burst = largest + units / 10;
        let (limit, mut server): (_, Box<dyn Server>) = match kind {
            0 => (LimitSpec::cost(units, per, Algorithm::SlidingWindow), Box::new(SlidingLog::new(units, window))),
            1 => (LimitSpec::cost(units, per, Algorithm::TokenBucket).with_burst(burst), Box::new(TokenBucket::new(burst as f64, units, window))),
            _ => (LimitSpec::cost(units, per, Algorithm::Smooth), Box::new(SlidingCounter::new(units, window, seed % window))),
        };
        let spec = PoolSpec { counted_within: seconds(1_000.0), ..one_key(vec![limit]) };
        // Some thousand calls say as much as the ten times more that small costs and short windows allow.
        let length = (window * (1 + largest) * 1_500 / units).clamp(3 * window, 30 * SECOND);
        let report = mixed(&spec, server.as_mut(), length, seed, |dice| priced(1 + dice.below(largest)));
        prop_assert_eq!(report.refused(), 0, "seed {}", seed);
    }

    /// The answer tells a smaller cost; the provider corrects its log when it answers.
    #[test]
    fn corrected_costs_are_never_exceeded(units in 100..2_000_u64, millis in 500..6_000_u64, seed: u64) {
        let window = millis * MILLI;
        let limit = LimitSpec::cost(units, Duration::from_nanos(window), Algorithm::SlidingWindow);
        let spec = PoolSpec { counted_within: seconds(1_000.0), ..one_key(vec![limit]) };
        let mut server = SlidingLog::new(units, window);
        let report = mixed(&spec, &mut server, 30 * SECOND, seed, |dice| {
            let estimate = 1 + dice.below(60);
            Job { actual: Some(dice.below(estimate + 1)), ..priced(estimate) }
        });
        prop_assert_eq!(report.refused(), 0, "seed {}", seed);
    }

    /// Calls are counted at most `counted_within` after departure, answered much later or never: safe, and not stuck.
    #[test]
    fn calls_without_answers_are_counted_in_time(
        n in 1..20_u64, kind in 0..4_u8, lost in 0.2..1.0_f64, median in 1.0..60.0_f64, seed: u64,
    ) {
        let window = 2 * SECOND;
        let per = Duration::from_nanos(window);
        let algorithm = [Algorithm::SlidingWindow, Algorithm::Smooth, Algorithm::TokenBucket, Algorithm::FixedWindow][kind as usize];
        let limit = LimitSpec { burst: (kind == 2).then_some(3), ..LimitSpec::requests(n, per, algorithm) };
        // Lognormal with p99 = 3 × median: beyond 20 medians never.
        let there = Delay::new(median, median * 3.0);
        let spec = PoolSpec { counted_within: seconds(median * 20.0 / 1e3), ..one_key(vec![limit]) };
        let world = World { there, work: Delay::new(3_000.0, 30_000.0), lost, timeout: 60 * SECOND, ..World::default() };
        let mut server: Box<dyn Server> = match kind {
            0 => Box::new(SlidingLog::new(n, window)),
            1 => Box::new(SlidingCounter::new(n, window, seed % window)),
            2 => Box::new(TokenBucket::new(3.0, n, window)),
            _ => Box::new(FixedWindow::on_the_clock(n, window, seed % window)),
        };
        let (mut pool, mut line) = (Pool::new(&spec, Time::ZERO).unwrap(), Line::new(&spec.lanes));
        let report = run(&mut pool, &mut line, &world, &mut [server.as_mut()], (SECOND, 40 * SECOND), 9, &mut Dice(seed), |_, _| Some(priced(1)));
        prop_assert_eq!(report.refused(), 0, "seed {}", seed);
        prop_assert!(report.arrivals.len() as u64 >= 5 * n.min(8), "seed {}: {} arrivals", seed, report.arrivals.len());
    }
}

#[test]
fn costs_of_nothing_and_absurd_corrections_do_no_harm() {
    for algorithm in [Algorithm::SlidingWindow, Algorithm::TokenBucket, Algorithm::Smooth] {
        let spec = one_key(vec![LimitSpec::cost(10, seconds(1.0), algorithm)]);
        let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
        for n in 0..5 {
            send(&mut pool, &costing(0), t(n));
        }
        assert_eq!(used(&mut pool, t(5)), [0]);
        let mut flight = depart(&mut pool, &costing(0), t(6));
        pool.first_byte(&mut flight, t(6), None);
        pool.finish(flight, t(6), Some(u64::MAX));
        // It costs a whole period and not eternity.
        let next = slot(&mut pool, &costing(10), t(7));
        assert!(next > t(1_000) && next < t(2_020), "{next:?}");
    }
}

#[test]
fn a_window_corrects_costs() {
    let mut pool =
        Pool::new(&one_key(vec![LimitSpec::cost(100, seconds(1.0), Algorithm::SlidingWindow)]), Time::ZERO).unwrap();
    let mut flight = depart(&mut pool, &costing(80), t(0));
    pool.first_byte(&mut flight, t(10), None);
    assert_eq!(used(&mut pool, t(20)), [80]);
    pool.finish(flight, t(20), Some(30));
    assert_eq!(used(&mut pool, t(20)), [30]);
    // More than estimated: the rest counts from when it was known.
    let mut flight = depart(&mut pool, &costing(10), t(100));
    pool.first_byte(&mut flight, t(110), None);
    pool.finish(flight, t(500), Some(90));
    assert_eq!(used(&mut pool, t(500)), [120]);
    assert_eq!(used(&mut pool, t(1_112)), [80]);
    assert_eq!(used(&mut pool, t(1_502)), [0]);
}

/// Nobody knows what a call without answer cost, whatever is said about it: it keeps its estimate.
#[test]
fn a_call_without_answer_is_not_corrected_downwards() {
    let spec = one_key(vec![LimitSpec::cost(100, seconds(1.0), Algorithm::SlidingWindow)]);
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    send(&mut pool, &costing(50), t(0));
    let flight = depart(&mut pool, &costing(40), t(10));
    pool.finish(flight, t(20), Some(0));
    assert_eq!(used(&mut pool, t(20)), [90]);
    let flight = depart(&mut pool, &costing(5), t(30));
    pool.finish(flight, t(40), Some(15));
    assert_eq!(used(&mut pool, t(40)), [105]);
}

#[test]
fn a_bucket_corrects_costs_as_if_they_had_been_right() {
    // 100 units a second, 100 deep.
    let limit = LimitSpec::cost(100, seconds(1.0), Algorithm::TokenBucket).with_burst(100);
    let spec = one_key(vec![limit]);
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut flight = depart(&mut pool, &costing(100), t(0));
    pool.first_byte(&mut flight, t(0), None);
    let mut other = depart(&mut pool, &costing(40), t(500));
    pool.first_byte(&mut other, t(500), None);
    pool.finish(other, t(500), None);
    // The first one cost only 20: the bucket was full again at 200 ms, then lost 40 at 500 ms.
    pool.finish(flight, t(510), Some(20));
    assert_eq!(used(&mut pool, t(510)), [40]);
    let at = slot(&mut pool, &costing(100), t(510));
    assert!(at >= t(900) && at <= t(901), "{at:?}");
    // Of these 40 there are 30 left, and one that was taken for 10 cost 30.
    let mut dear = depart(&mut pool, &costing(10), t(600));
    pool.first_byte(&mut dear, t(600), None);
    pool.finish(dear, t(600), Some(30));
    let used = used(&mut pool, t(600))[0];
    assert!((60..=61).contains(&used), "{used}");
}

#[test]
fn smooth_spaces_costs() {
    let mut pool =
        Pool::new(&one_key(vec![LimitSpec::cost(100, seconds(1.0), Algorithm::Smooth)]), Time::ZERO).unwrap();
    send(&mut pool, &costing(50), t(0));
    let next = slot(&mut pool, &costing(1), t(0));
    assert!(next >= t(500) && next < t(520), "{next:?}");
    send(&mut pool, &costing(10), next);
    let after = slot(&mut pool, &costing(1), next);
    assert!(after >= next + seconds(0.1) && after < next + seconds(0.105), "{after:?}");
}

#[test]
fn lateness_shifts_later_slots() {
    let spec = one_key(vec![LimitSpec::requests(11, seconds(1.0), Algorithm::Smooth)]);
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let Acquire::Granted(permit) = pool.acquire(&Ask::default(), t(0)) else { panic!() };
    let mut flight = pool.depart(permit, t(30));
    let next = slot(&mut pool, &Ask::default(), t(30));
    assert!(next >= t(130) && next < t(131), "{next:?}");
    pool.departed_late(&mut flight, t(80));
    assert_eq!(flight.sent(), t(80));
    let next = slot(&mut pool, &Ask::default(), t(80));
    assert!(next >= t(180) && next < t(181), "{next:?}");
    // A window keeps the slot from the real departure on, too.
    let spec = PoolSpec {
        counted_within: seconds(0.5),
        ..one_key(vec![LimitSpec::requests(1, seconds(1.0), Algorithm::SlidingWindow)])
    };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut flight = depart(&mut pool, &Ask::default(), t(0));
    assert!(
        matches!(pool.acquire(&Ask::default(), t(1)), Acquire::WhenAnswered { at_most } if at_most >= t(1_501) && at_most < t(1_502))
    );
    pool.departed_late(&mut flight, t(200));
    assert!(
        matches!(pool.acquire(&Ask::default(), t(201)), Acquire::WhenAnswered { at_most } if at_most >= t(1_701) && at_most < t(1_702))
    );
    pool.finish(flight, t(300), None);
    assert!(slot(&mut pool, &Ask::default(), t(301)) >= t(1_701));
}

/// A call that left late keeps its distance, though one after it turns out to cost nothing.
#[test]
fn a_late_departure_is_not_forgotten_when_a_cost_shrinks() {
    // A second for 10 units, and two calls of so much at once.
    let limit = LimitSpec::cost(100, seconds(10.0), Algorithm::Smooth).with_burst(20);
    let mut pool = Pool::new(&one_key(vec![limit]), Time::ZERO).unwrap();
    let mut late = depart(&mut pool, &costing(10), t(0));
    pool.departed_late(&mut late, t(800));
    let mut free = depart(&mut pool, &costing(10), t(801));
    pool.first_byte(&mut free, t(801), None);
    pool.finish(free, t(801), Some(0));
    send(&mut pool, &costing(10), t(801));
    let next = slot(&mut pool, &costing(10), t(801));
    assert!(next >= t(1_800) && next <= t(1_850), "{next:?}");
}

#[test]
fn what_was_not_sent_is_given_back() {
    let spec = one_key(vec![
        LimitSpec::requests(1, seconds(60.0), Algorithm::SlidingWindow),
        LimitSpec::requests(1, seconds(60.0), Algorithm::TokenBucket),
        LimitSpec::concurrency(1),
    ]);
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    for _ in 0..3 {
        let flight = depart(&mut pool, &Ask::default(), t(0));
        pool.unsent(flight, t(5));
    }
    let flight = depart(&mut pool, &Ask::default(), t(10));
    // Its fate is unknown: everything stays taken, concurrency until it surely is over.
    pool.finish(flight, t(20), None);
    assert_eq!(used(&mut pool, t(20)), [1, 1, 1]);
    assert_eq!(used(&mut pool, t(30_011)), [1, 1, 0]);
    assert!(slot(&mut pool, &Ask::default(), t(30_011)) >= t(90_010));
}

fn quota(amount: u64, longest: Duration) -> PoolSpec {
    let reset = Reset { longest, calendar: 7 };
    one_key(vec![LimitSpec::requests(amount, longest, Algorithm::Quota(reset))])
}

fn sharp(at: Time) -> Edge {
    Edge { low: at, high: at }
}

fn period(begins: Time, ends: Time) -> Option<QuotaPeriod> {
    Some(QuotaPeriod { begins: sharp(begins), ends: sharp(ends) })
}

const OF_THE_KEY: Place = Place::Key(KeyId(0));

#[test]
fn a_quota_ends_with_its_period() {
    let day = seconds(86_400.0);
    let (ends, later) = (t(3_600_000), t(3_600_000 + 82_800_000));
    let mut pool = Pool::new(&quota(3, day), Time::ZERO).unwrap();
    (0..3).for_each(|n| send(&mut pool, &Ask::default(), t(n)));
    // As long as nobody names the period, calls count for the longest that there is.
    assert!(slot(&mut pool, &Ask::default(), t(10)) >= t(0) + day);
    pool.quota_period(OF_THE_KEY, 0, period(t(0), ends));
    let next = slot(&mut pool, &Ask::default(), t(10));
    assert!(next >= ends && next <= ends + seconds(9.0), "{next:?}");
    (0..3).for_each(|_| send(&mut pool, &Ask::default(), next));
    assert!(slot(&mut pool, &Ask::default(), next) >= next + day);
    pool.quota_period(OF_THE_KEY, 0, period(ends, later));
    let after = slot(&mut pool, &Ask::default(), next);
    assert!(after >= later && after <= later + seconds(9.0), "{after:?}");
    // Not known any more.
    pool.quota_period(OF_THE_KEY, 0, None);
    assert!(slot(&mut pool, &Ask::default(), next) >= next + day);
    assert_eq!(pool.used(OF_THE_KEY, 0, next), Some(3));
    assert_eq!(pool.used(Place::Provider, 0, next), None);
}

/// A call that leaves before the end and arrives after it counts in both periods.
#[test]
fn a_quota_counts_calls_on_their_way_over_the_edge() {
    let ends = t(10_000);
    let mut pool = Pool::new(&quota(2, seconds(100.0)), Time::ZERO).unwrap();
    pool.quota_period(OF_THE_KEY, 0, period(t(0), ends));
    let mut flight = depart(&mut pool, &Ask::default(), t(9_990));
    pool.first_byte(&mut flight, t(10_020), None);
    pool.finish(flight, t(10_020), None);
    pool.quota_period(OF_THE_KEY, 0, period(ends, t(110_000)));
    send(&mut pool, &Ask::default(), t(10_040));
    assert!(slot(&mut pool, &Ask::default(), t(10_050)) >= t(110_000));
}

/// Where an edge is not known exactly, what was counted before it is forgotten after it, and what was counted
/// meanwhile is kept until the next one.
#[test]
fn an_edge_of_a_quota_may_lie_between_two_times() {
    let mut pool = Pool::new(&quota(2, seconds(1_000.0)), Time::ZERO).unwrap();
    let unsure = Edge { low: t(100_000), high: t(200_000) };
    pool.quota_period(OF_THE_KEY, 0, Some(QuotaPeriod { begins: sharp(t(0)), ends: unsure }));
    send(&mut pool, &Ask::default(), t(99_000));
    send(&mut pool, &Ask::default(), t(101_000));
    let first = slot(&mut pool, &Ask::default(), t(102_000));
    assert!(first >= t(200_000) && first <= t(200_200), "the earlier call, after the latest edge: {first:?}");
    pool.quota_period(OF_THE_KEY, 0, Some(QuotaPeriod { begins: unsure, ends: sharp(t(900_000)) }));
    send(&mut pool, &Ask::default(), first);
    let second = slot(&mut pool, &Ask::default(), first);
    assert!(second >= t(900_000) && second <= t(900_200), "the other one, at the next: {second:?}");
}

/// What nobody knows, and what others used, counts until the edge, too, wherever that turns out to lie.
#[test]
fn an_edge_of_a_quota_that_moves_takes_foreign_use_along() {
    let mut pool = Pool::new(&quota(2, seconds(1_000.0)), Time::ZERO).unwrap();
    pool.quota_period(OF_THE_KEY, 0, period(t(0), t(500_000)));
    pool.assume_spent(t(1));
    let unsure = Edge { low: t(400_000), high: t(600_000) };
    pool.quota_period(OF_THE_KEY, 0, Some(QuotaPeriod { begins: sharp(t(0)), ends: unsure }));
    let next = slot(&mut pool, &Ask::default(), t(2));
    assert!(next >= t(600_000) && next <= t(600_200), "{next:?}");
}

/// A refusal widens what depends on delays; the edge of a calendar does not.
#[test]
fn a_refusal_does_not_move_the_edge_of_a_quota() {
    let mut pool = Pool::new(&quota(2, seconds(10_000.0)), Time::ZERO).unwrap();
    pool.quota_period(OF_THE_KEY, 0, period(t(0), t(5_000_000)));
    for at in [0, 100_000] {
        let mut flight = depart(&mut pool, &Ask::default(), t(at));
        pool.first_byte(&mut flight, t(at + 1), Some(&Signal { limited: true, ..Signal::default() }));
        pool.finish(flight, t(at + 1), None);
    }
    let next = slot(&mut pool, &Ask::default(), t(300_000));
    assert!(next >= t(5_000_000) && next <= t(5_001_100), "{next:?}");
    assert_eq!(pool.used(OF_THE_KEY, 0, next), Some(0), "all of it is forgotten there");
}

/// What a pinned ask may cost depends on its key or budget alone.
#[test]
fn what_is_impossible_depends_on_the_pin() {
    let budget = |units| {
        let limits = vec![LimitSpec::cost(units, seconds(1.0), Algorithm::SlidingWindow)];
        BudgetSpec { name: format!("of {units}"), limits }
    };
    let key = |label: &str, budget| KeySpec { label: label.into(), weight: 1, budget: Some(budget) };
    let keys = vec![key("a", 0), key("b", 1), key("c", 1)];
    let spec = PoolSpec { budgets: vec![budget(10), budget(50)], keys, ..PoolSpec::default() };
    let pool = Pool::new(&spec, Time::ZERO).unwrap();
    let most = |pin, cost| pool.impossible(&Ask { pin, ..costing(cost) }).map(|told| told.largest);
    assert_eq!((most(None, 50), most(None, 51)), (None, Some(50)));
    for (key, units) in [(0, 10), (1, 50), (2, 50)] {
        let pin = Some(Pin::Key(KeyId(key)));
        assert_eq!((most(pin, units), most(pin, units + 1)), (None, Some(units)), "key {key}");
    }
    for (number, units) in [(0, 10), (1, 50)] {
        let pin = Some(Pin::Budget(BudgetId(number)));
        assert_eq!((most(pin, units), most(pin, units + 1)), (None, Some(units)), "budget {number}");
    }
    assert_eq!(most(Some(Pin::Key(KeyId(3))), 99), None, "there is no such key");
    assert_eq!(most(Some(Pin::Budget(BudgetId(2))), 99), None);
}

/// A pinned call goes with that key, or with one of that budget, or not at all.
#[test]
fn a_pin_is_kept() {
    let key = |label: &str, budget| KeySpec { label: label.into(), weight: 1, budget };
    let spec = PoolSpec {
        budgets: vec![BudgetSpec { name: "org".into(), limits: Vec::new() }],
        keys: vec![key("a", None), key("b", Some(0)), key("c", Some(0))],
        ..one_key(vec![LimitSpec::requests(2, seconds(60.0), Algorithm::SlidingWindow)])
    };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut keys = |pin, calls: usize| -> Vec<u32> {
        let ask = Ask { pin: Some(pin), ..Ask::default() };
        let permits = (0..calls).map_while(|_| match pool.acquire(&ask, t(0)) {
            Acquire::Granted(permit) => Some(pool.depart(permit, t(0)).key().0),
            Acquire::Blocked { until: None, .. } => Some(u32::MAX),
            _ => None,
        });
        let mut keys: Vec<u32> = permits.collect();
        keys.sort_unstable();
        keys
    };
    assert_eq!(keys(Pin::Budget(BudgetId(0)), 9), [1, 1, 2, 2]);
    assert_eq!(keys(Pin::Key(KeyId(0)), 9), [0, 0]);
    for nobody in [Pin::Key(KeyId(3)), Pin::Key(KeyId(9)), Pin::Budget(BudgetId(2)), Pin::Budget(BudgetId(9))] {
        assert_eq!(keys(nobody, 1), [u32::MAX], "{nobody:?}");
    }
    assert_eq!([0, 1, 2, 3].map(|key| pool.key_label(KeyId(key)).to_owned()), ["a", "b", "c", ""]);
}

#[test]
fn permits_and_flights_tell_what_they_are() {
    let mut pool = Pool::new(&one_key(vec![LimitSpec::concurrency(5)]), Time::ZERO).unwrap();
    let grant = |pool: &mut Pool, at, probe| {
        let Acquire::Granted(permit) = pool.acquire(&Ask::default(), t(at)) else { panic!("there is room") };
        assert_eq!((permit.booked(), permit.is_probe(), permit.key()), (t(at), probe, KeyId(0)));
        let flight = pool.depart(permit, t(at + 1));
        assert_eq!((flight.sent(), flight.is_probe(), flight.key()), (t(at + 1), probe, KeyId(0)));
    };
    grant(&mut pool, 7, false);
    pool.disable_key(KeyId(0), Some(t(50)));
    grant(&mut pool, 50, true);
    let routes = Routes::NONE.with(2).with(127).with(2);
    assert!(routes.contains(2) && routes.contains(127), "said twice");
    assert!(!routes.contains(128) && !routes.with(128).contains(128) && !routes.contains(3));
}

/// A whole quota before the end of the period, and another one after it.
#[test]
fn the_allowance_of_a_quota_counts_both_periods() {
    let mut pool = Pool::new(&quota(3, seconds(100.0)), Time::ZERO).unwrap();
    pool.quota_period(OF_THE_KEY, 0, period(t(0), t(5_000)));
    let most = pool.allowance(seconds(10.0), t(1_000)) as usize;
    let mut sent = 0;
    for now in [1_000, 9_000] {
        while let Acquire::Granted(permit) = pool.acquire(&Ask::default(), t(now)) {
            let mut flight = pool.depart(permit, t(now));
            pool.first_byte(&mut flight, t(now), None);
            pool.finish(flight, t(now), None);
            sent += 1;
        }
    }
    assert_eq!(sent, 6);
    assert!(sent <= most, "{sent} of {most}");
}

/// Another number for the same calendar does not forget what was spent; another calendar does not count as this one.
#[test]
fn what_was_spent_of_a_quota_outlives_a_change_of_its_amount() {
    let day = seconds(86_400.0);
    let restored = |spec: &PoolSpec, elapsed: Duration| {
        let mut pool = Pool::new(&quota(10, day), Time::ZERO).unwrap();
        pool.quota_period(OF_THE_KEY, 0, period(t(0), t(80_000_000)));
        (0..4).for_each(|n| send(&mut pool, &Ask::default(), t(1_000_000 + n)));
        let saved = pool.save(t(2_000_000));
        let now = t(2_000_000) + elapsed;
        let mut pool = Pool::new(spec, now).unwrap();
        let begins =
            if now < t(80_000_000) { period(t(0), t(80_000_000)) } else { period(t(80_000_000), t(166_000_000)) };
        pool.quota_period(OF_THE_KEY, 0, begins);
        pool.restore(&saved, elapsed, Since::Nothing, now);
        pool.used(OF_THE_KEY, 0, now)
    };
    assert_eq!(restored(&quota(10, day), seconds(60.0)), Some(4));
    assert_eq!(restored(&quota(12, day), seconds(60.0)), Some(4), "more");
    assert_eq!(restored(&quota(3, day), seconds(60.0)), Some(4), "less than was spent");
    assert_eq!(restored(&quota(10, day), seconds(78_100.0)), Some(0), "the next day");
    let reset = Reset { longest: day, calendar: 8 };
    let other = one_key(vec![LimitSpec::requests(10, day, Algorithm::Quota(reset))]);
    assert_eq!(restored(&other, seconds(60.0)), Some(10), "nobody knows");
}

/// Millions of calls a window take a bounded number of entries; rounding is to the safe side.
#[test]
fn huge_windows_are_rounded_to_the_safe_side() {
    let (n, window) = (20_000, 10 * SECOND);
    for algorithm in [Algorithm::SlidingWindow, Algorithm::Smooth] {
        let spec = one_key(vec![LimitSpec::requests(n, Duration::from_nanos(window), algorithm)]);
        let mut server = SlidingLogOfMany::new(n, window);
        let report = mixed(&spec, &mut server, 32 * SECOND, 1, |_| priced(1));
        assert_eq!(report.refused(), 0);
        let share = report.share(n, window, (2 * SECOND, 32 * SECOND), |_| 1);
        println!("{n} per 10 s, {algorithm:?}: {share:.4}");
        assert!(share >= 0.97, "{share}");
    }
}

#[test]
fn a_rounded_slot_is_never_early() {
    // A grain of 10 ms, longer than the guard of 5.1 ms.
    let window = Duration::from_millis(40_960);
    let spec = one_key(vec![LimitSpec::requests(8_192, window, Algorithm::SlidingWindow)]);
    for sent in [9, 10, 11, 15, 19] {
        let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
        (0..8_192).for_each(|_| send(&mut pool, &Ask::default(), t(sent)));
        let next = slot(&mut pool, &Ask::default(), t(sent));
        assert!(next >= t(sent) + window && next <= t(sent + 16) + window);
        // In flight, too: departures are rounded as answers are.
        let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
        let flights: Vec<_> = (0..8_192).map(|_| depart(&mut pool, &Ask::default(), t(sent))).collect();
        let next = slot(&mut pool, &Ask::default(), t(sent));
        assert!(next >= t(sent + 30_000) + window);
        for mut flight in flights {
            pool.first_byte(&mut flight, t(sent + 1), None);
            pool.finish(flight, t(sent + 1), None);
        }
        let next = slot(&mut pool, &Ask::default(), t(sent + 1));
        assert!(next >= t(sent + 1) + window && next <= t(sent + 17) + window);
    }
}

/// The same sliding log without a sum for each arrival.
struct SlidingLogOfMany {
    limit: u64,
    window: u64,
    log: std::collections::VecDeque<u64>,
}

impl SlidingLogOfMany {
    fn new(limit: u64, window: u64) -> Self {
        Self { limit, window, log: Default::default() }
    }
}

impl Server for SlidingLogOfMany {
    fn arrive(&mut self, at: u64, _cost: u64) -> bool {
        while self.log.front().is_some_and(|first| first + self.window <= at) {
            self.log.pop_front();
        }
        let fits = (self.log.len() as u64) < self.limit;
        if fits {
            self.log.push_back(at);
        }
        fits
    }
}

#[test]
fn a_start_that_knows_nothing_counts_everything_as_spent() {
    let limits = vec![
        LimitSpec::requests(5, seconds(2.0), Algorithm::SlidingWindow),
        LimitSpec::requests(5, seconds(3.0), Algorithm::TokenBucket).with_burst(5),
        LimitSpec::requests(5, seconds(4.0), Algorithm::Smooth),
    ];
    for (n, limit) in limits.into_iter().enumerate() {
        let mut pool = Pool::new(&one_key(vec![limit]), Time::ZERO).unwrap();
        pool.assume_spent(t(100));
        let at = slot(&mut pool, &Ask::default(), t(100));
        let expected = [2_100, 700, 4_100][n];
        assert!(at >= t(expected) && at < t(expected + 10), "{at:?}");
    }
}

#[test]
fn the_allowance_bounds_what_is_let_go() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let per = Duration::from_millis(500 + dice.below(3_000));
        let algorithm = [Algorithm::SlidingWindow, Algorithm::Smooth, Algorithm::TokenBucket][dice.below(3) as usize];
        let mut spec =
            one_key(vec![LimitSpec::requests(1 + dice.below(20), per, algorithm).with_burst(1 + dice.below(5))]);
        spec.limits = vec![LimitSpec::requests(40, seconds(1.0), Algorithm::SlidingWindow)];
        let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
        let mut now = 0;
        for _ in 0..20 {
            let horizon = dice.below(4_000);
            let most = pool.allowance(Duration::from_millis(horizon), t(now));
            let end = now + horizon;
            let mut sent = 0;
            while now <= end {
                match pool.acquire(&Ask::default(), t(now)) {
                    Acquire::Granted(permit) => {
                        sent += 1;
                        let mut flight = pool.depart(permit, t(now));
                        pool.first_byte(&mut flight, t(now), None);
                        pool.finish(flight, t(now), None);
                    }
                    _ => now += 1 + dice.below(20),
                }
            }
            assert!(sent <= most, "seed {seed}: {sent} of {most} in {horizon} ms");
        }
    }
    let mut unlimited = Pool::new(&one_key(vec![LimitSpec::concurrency(3)]), Time::ZERO).unwrap();
    assert_eq!(unlimited.allowance(seconds(1.0), t(0)), u64::MAX);
    unlimited.pause_provider(Time::MAX);
    assert_eq!(unlimited.allowance(seconds(1.0), t(0)), 0);
}

/// What others used comes back, too, and every window that ends within the time brings a whole one.
#[test]
fn the_allowance_counts_what_comes_back() {
    let spec = one_key(vec![LimitSpec::requests(10, seconds(10.0), Algorithm::SlidingWindow)]);
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut flight = depart(&mut pool, &Ask::default(), t(0));
    let told = Signal::parse([("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "3")], 200, None);
    pool.first_byte(&mut flight, t(10), Some(&told));
    pool.finish(flight, t(10), None);
    assert_eq!(used(&mut pool, t(11)), [7], "six others");
    assert_eq!(pool.allowance(seconds(8.0), t(1_000)), 3);
    assert!(pool.allowance(seconds(9.5), t(1_000)) >= 10);
    assert!(pool.allowance(seconds(20.0), t(20_000)) >= 20);
}

/// Calls that are late make up for it: then several leave at once.
#[test]
fn the_allowance_counts_what_is_made_up_for() {
    let limit = LimitSpec::requests(1_000, seconds(1.0), Algorithm::Smooth);
    let spec = PoolSpec { safety: Safety::Balanced, ..one_key(vec![limit]) };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    send(&mut pool, &Ask::default(), t(0));
    let most = pool.allowance(Duration::ZERO, t(6)) as usize;
    let sent = room(&mut pool, t(6), &[]);
    assert!(sent > 1 && sent <= most, "{sent} of {most}");
}

#[test]
fn absurd_declarations_are_refused() {
    let bad = |spec: PoolSpec| Pool::new(&spec, Time::ZERO).err().map(|error| error.to_string());
    let limit = |amount, per| LimitSpec::requests(amount, per, Algorithm::SlidingWindow);
    assert!(bad(one_key(vec![limit(0, seconds(1.0))])).unwrap().contains("key_limits[0]"));
    assert!(bad(one_key(vec![limit(1, Duration::ZERO)])).unwrap().contains("period"));
    assert!(bad(one_key(vec![limit(u64::MAX, seconds(1.0))])).is_some());
    assert!(bad(one_key(vec![limit(1, Duration::MAX)])).is_some());
    assert!(bad(one_key(vec![limit(1, seconds(1.0)).with_burst(0)])).unwrap().contains("burst"));
    assert!(bad(PoolSpec { safety: Safety::Headroom(f64::NAN), ..PoolSpec::default() }).is_some());
    assert!(bad(PoolSpec { counted_within: Duration::ZERO, ..PoolSpec::default() }).is_some());
    assert!(bad(PoolSpec { routes: vec![RouteSpec::default(); 129], ..PoolSpec::default() }).is_some());
    assert!(bad(PoolSpec { counted_within: MAX_PERIOD + seconds(1.0), ..PoolSpec::default() }).is_some());
    let of_days = |days: u32, longest| {
        let reset = Reset { longest, calendar: 1 };
        bad(one_key(vec![LimitSpec::requests(1, days * seconds(86_400.0), Algorithm::Quota(reset))]))
    };
    assert!(of_days(2, seconds(86_400.0)).is_some(), "shorter than the period");
    assert!(of_days(2, MAX_PERIOD + seconds(1.0)).is_some());
    assert!(of_days(2, 2 * seconds(86_400.0)).is_none() && of_days(2, MAX_PERIOD).is_none());
    let mut spec = one_key(vec![]);
    spec.keys[0].budget = Some(3);
    assert!(bad(spec).unwrap().contains("key k"));
    // The largest that are allowed do not overflow.
    let mut pool = Pool::new(
        &one_key(vec![
            limit(MAX_AMOUNT, MAX_PERIOD),
            LimitSpec::cost(MAX_AMOUNT, MAX_PERIOD, Algorithm::TokenBucket),
            LimitSpec::cost(MAX_AMOUNT, Duration::from_nanos(1), Algorithm::Smooth),
        ]),
        Time::ZERO,
    )
    .unwrap();
    send(&mut pool, &costing(MAX_AMOUNT), t(0));
    assert!(!matches!(pool.acquire(&costing(MAX_AMOUNT), t(0)), Acquire::Granted(_)));
    assert!(pool.impossible(&costing(MAX_AMOUNT + 1)).is_some());
}

/// Balanced: nothing is waited for longer than calls usually take, and the long run is as declared.
#[test]
fn balanced_does_not_wait_for_slow_answers() {
    for (safety, floor) in [(Safety::Strict, 0.0), (Safety::Balanced, 0.95), (Safety::Headroom(0.02), 0.93)] {
        let limit = LimitSpec::requests(10, seconds(1.0), Algorithm::SlidingWindow);
        let spec = PoolSpec { safety, ..one_key(vec![limit]) };
        let (mut pool, mut line) = (Pool::new(&spec, Time::ZERO).unwrap(), Line::new(&spec.lanes));
        let network = Delay::new(5.0, 20.0);
        let mut dice = Dice(5);
        for _ in 0..200 {
            pool.network_round_trip(Duration::from_nanos(network.roll(&mut dice) + network.roll(&mut dice)));
        }
        let world = World { there: network, back: network, work: Delay::new(1_000.0, 2_000.0), ..World::default() };
        let mut server = SlidingLog::new(10, SECOND);
        let report =
            run(&mut pool, &mut line, &world, &mut [&mut server], (SECOND, 120 * SECOND), 9, &mut dice, |_, _| {
                Some(priced(1))
            });
        let share = report.utilisation(10, SECOND, None);
        println!("{safety:?}: {share:.4}, {} of {} refused", report.refused(), report.arrivals.len());
        assert!(share >= floor && share <= 1.001, "{safety:?}: {share}");
        assert!(report.refused() <= 1, "{safety:?}");
        assert!(safety != Safety::Strict || share < 0.6);
    }
}

/// How many such calls go at once.
fn room(pool: &mut Pool, now: Time, routes: &[usize]) -> usize {
    let ask = Ask { routes: routes.iter().fold(Routes::NONE, |set, route| set.with(*route)), ..Ask::default() };
    let mut sent = 0;
    while let Acquire::Granted(permit) = pool.acquire(&ask, now) {
        drop(pool.depart(permit, now));
        sent += 1;
    }
    sent
}

/// Of many routes each call is held by the limits of those that it matches, and by no other's: of the provider as a whole
/// and of each key.
#[test]
fn each_route_has_limits_of_its_own() {
    let limit = |calls: usize| vec![LimitSpec::requests(calls as u64, seconds(10.0), Algorithm::SlidingWindow)];
    for of_keys in [false, true] {
        // The route with the number n lets n + 1 calls through, the last one there can be 128.
        let route = |n: usize| match of_keys {
            false => RouteSpec { limits: limit(n + 1), key_limits: Vec::new() },
            true => RouteSpec { limits: Vec::new(), key_limits: limit(n + 1) },
        };
        let spec = PoolSpec { routes: (0..128).map(route).collect(), ..one_key(limit(1_000)) };
        let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
        assert_eq!(room(&mut pool, t(0), &[2, 5]), 3, "the narrower of two");
        assert_eq!(room(&mut pool, t(0), &[2]), 0);
        assert_eq!(room(&mut pool, t(0), &[5]), 3, "what it shared with the other counts");
        for n in [0, 1, 63, 64, 127] {
            assert_eq!(room(&mut pool, t(0), &[n]), n + 1, "route {n}");
        }
        assert_eq!(room(&mut pool, t(0), &[0, 126]), 0);
        assert_eq!(room(&mut pool, t(0), &[126, 125]), 126);
    }
}
