//! Who goes first: lanes, pins, reservations, keys, pauses.

mod oracle;

use oracle::world::{Delay, Dice, Job, World, run};
use oracle::*;
use paceline::pace::*;
use std::time::Duration;

fn keys(n: usize) -> Vec<KeySpec> {
    (0..n).map(|i| KeySpec { label: format!("k{i}"), weight: 1, budget: None }).collect()
}

fn window(n: u64, seconds: u64) -> LimitSpec {
    LimitSpec::requests(n, Duration::from_secs(seconds), Algorithm::SlidingWindow)
}

fn lanes(weights: &[u32]) -> Vec<LaneSpec> {
    weights.iter().enumerate().map(|(i, &weight)| LaneSpec { name: format!("l{i}"), weight }).collect()
}

fn t(millis: u64) -> Time {
    Time::from_nanos(millis * MILLI)
}

fn pin(key: u32) -> Ask {
    Ask { pin: Some(Pin::Key(KeyId(key))), ..Ask::default() }
}

/// Sends and answers at once.
fn send(pool: &mut Pool, permit: Permit, at: Time) {
    let mut flight = pool.depart(permit, at);
    pool.first_byte(&mut flight, at, None);
    pool.finish(flight, at, None);
}

fn granted(pool: &mut Pool, ask: &Ask, now: Time) -> Permit {
    match pool.acquire(ask, now) {
        Acquire::Granted(permit) => permit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lanes_share_by_their_weights() {
    let spec =
        PoolSpec { key_limits: vec![window(20, 1)], keys: keys(3), lanes: lanes(&[8, 4, 1]), ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut line = Line::new(&spec.lanes);
    let world = World { server_of: Box::new(|key| key.0 as usize), ..World::default() };
    let (mut a, mut b, mut c) = (SlidingLog::new(20, SECOND), SlidingLog::new(20, SECOND), SlidingLog::new(20, SECOND));
    // Every lane always has somebody waiting, since each joins in turn and 60 wait.
    let mut waiting: Vec<i64> = vec![0; 3];
    let mut feed = |_: &mut Dice, _: u64| {
        let lane = (0..3).min_by_key(|&lane| waiting[lane]).unwrap_or(0);
        waiting[lane] += 1;
        Some(Job { ask: Ask::default(), lane, actual: None })
    };
    // A plain feed would balance the lanes; give each a deep supply instead.
    for _ in 0..3_000 {
        let job = feed(&mut Dice(0), 0).unwrap();
        let _ = line.push(job, job.lane, job.ask);
    }
    let report = run(
        &mut pool,
        &mut line,
        &world,
        &mut [&mut a, &mut b, &mut c],
        (SECOND, 20 * SECOND),
        0,
        &mut Dice(1),
        |_, _| None,
    );
    assert_eq!(report.refused(), 0);
    let of = |lane: usize| report.arrivals.iter().filter(|arrival| arrival.lane == lane).count() as f64;
    let total = report.arrivals.len() as f64;
    for (lane, share) in [(0, 8.0 / 13.0), (1, 4.0 / 13.0), (2, 1.0 / 13.0)] {
        assert!((of(lane) / total - share).abs() < 0.01, "lane {lane}: {} of {total}", of(lane));
    }
}

#[test]
fn a_lane_that_was_idle_gets_no_arrears() {
    let spec =
        PoolSpec { key_limits: vec![window(10, 1)], keys: keys(1), lanes: lanes(&[1, 1]), ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut line = Line::new(&spec.lanes);
    (0..100).for_each(|n| {
        let _ = line.push(n, 0, Ask::default());
    });
    let mut now = 0;
    let mut sent = Vec::new();
    while sent.len() < 70 {
        if sent.len() == 50 && line.lane_len(1) == 0 {
            (1000..1100).for_each(|n| {
                let _ = line.push(n, 1, Ask::default());
            });
        }
        match line.next(&mut pool, t(now)) {
            Next::Ready(job, permit, _) => {
                sent.push(job);
                send(&mut pool, permit, t(now));
            }
            _ => now += 10,
        }
    }
    let late = sent[50..].iter().filter(|job| **job >= 1000).count();
    assert!((9..=11).contains(&late), "{late} of 20");
}

#[test]
fn a_lane_that_was_blocked_gets_few_arrears() {
    let spec = PoolSpec { limits: vec![window(10, 1)], keys: keys(2), lanes: lanes(&[1, 1]), ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut line = Line::new(&spec.lanes);
    pool.pause_key(KeyId(0), Time::MAX);
    for n in 0..300 {
        let _ = line.push(n, (n % 2) as usize, pin((n % 2) as u32));
    }
    let (mut now, mut sent) = (0, Vec::new());
    while sent.len() < 140 {
        if sent.len() == 100 {
            pool.resume_key(KeyId(0));
        }
        match line.next(&mut pool, t(now)) {
            Next::Ready(job, permit, _) => {
                sent.push(job);
                send(&mut pool, permit, t(now));
            }
            _ => now += 10,
        }
    }
    assert!(sent[..100].iter().all(|job| job % 2 == 1));
    let arrears = sent[100..].iter().filter(|job| *job % 2 == 0).count();
    assert!((20..=30).contains(&arrears), "{arrears} of 40");
}

#[test]
fn first_come_first_served_within_a_lane() {
    let spec = PoolSpec { key_limits: vec![window(6, 1)], keys: keys(2), ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut line = Line::new(&spec.lanes);
    // Routes and pins make several queues; the order of arrival holds across them.
    let asks = [Ask::default(), pin(0), pin(1), Ask { routes: Routes::NONE.with(3), ..Ask::default() }];
    (0..6).for_each(|n| {
        let _ = line.push(n, 0, asks[n % 4]);
    });
    let mut order = Vec::new();
    while let Next::Ready(n, permit, _) = line.next(&mut pool, t(5)) {
        order.push(n);
        send(&mut pool, permit, t(5));
    }
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_blocked_pin_stalls_nobody_else() {
    let spec = PoolSpec { key_limits: vec![window(5, 1)], keys: keys(2), ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut line = Line::new(&spec.lanes);
    pool.pause_key(KeyId(0), t(60_000));
    let blocked: Vec<Ticket> = (0..10).map(|n| line.push(n, 0, pin(0))).collect();
    (10..15).for_each(|n| {
        let _ = line.push(n, 0, Ask::default());
    });
    for n in 10..15 {
        let Next::Ready(job, permit, key) = line.next(&mut pool, t(1)) else { panic!() };
        assert_eq!((job, key), (n, KeyId(1)));
        send(&mut pool, permit, t(1));
    }
    assert!(matches!(line.next(&mut pool, t(1)), Next::At(at) if at == t(60_000)));
    let far: Vec<_> = line.waiting_beyond(t(5_000)).map(|(ticket, _, wait)| (ticket, wait)).collect();
    assert_eq!(far.len(), 10);
    assert_eq!(far[0].1, Wait { why: Some(Why::KeyPaused(KeyId(0))), until: Some(t(60_000)) });
    assert_eq!(line.remove(blocked[3]), Some(3));
    assert_eq!(line.remove(blocked[3]), None);
    assert_eq!(line.remove_where(|job| *job < 5).len(), 4);
    assert_eq!(line.len(), 5);
    // The pause ends early.
    pool.resume_key(KeyId(0));
    let Next::Ready(5, permit, KeyId(0)) = line.next(&mut pool, t(2)) else { panic!() };
    pool.abandon(permit, t(2));
}

#[test]
fn a_narrow_route_stalls_nobody_else_and_holds() {
    let narrow = RouteSpec { limits: vec![window(1, 10)], key_limits: vec![] };
    let spec =
        PoolSpec { key_limits: vec![window(100, 1)], keys: keys(3), routes: vec![narrow], ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut line = Line::new(&spec.lanes);
    let routed = Ask { routes: Routes::NONE.with(0), ..Ask::default() };
    (0..5).for_each(|n| {
        let _ = line.push(n, 0, routed);
    });
    (5..9).for_each(|n| {
        let _ = line.push(n, 0, Ask::default());
    });
    let mut order = Vec::new();
    while let Next::Ready(n, permit, _) = line.next(&mut pool, t(5)) {
        order.push(n);
        send(&mut pool, permit, t(5));
    }
    assert_eq!(order, [0, 5, 6, 7, 8]);
}

#[test]
fn large_costs_do_not_starve_and_small_ones_fill_the_gaps() {
    let cost = LimitSpec::cost(100, Duration::from_secs(1), Algorithm::SlidingWindow);
    let spec = PoolSpec { key_limits: vec![cost], keys: keys(1), lanes: lanes(&[1, 1]), ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut line = Line::new(&spec.lanes);
    let ask = |cost| Ask { cost, ..Ask::default() };
    let mut now = 0;
    let mut large_at = None;
    let mut small = 0;
    for round in 0..3_000 {
        while line.lane_len(1) < 10 {
            let _ = line.push(5, 1, ask(5));
        }
        if round == 200 {
            let _ = line.push(100, 0, ask(100));
        }
        match line.next(&mut pool, t(now)) {
            Next::Ready(100, permit, _) => {
                large_at = Some(now);
                send(&mut pool, permit, t(now));
            }
            Next::Ready(_, permit, _) => {
                small += 1;
                send(&mut pool, permit, t(now));
            }
            _ => now += 7,
        }
    }
    assert!(large_at.is_some(), "starved while {small} small ones went");
    assert!(small > 100);
}

/// Ten keys, one of them nearly free for a large job: small ones take the other keys and leave that one alone.
#[test]
fn small_jobs_pass_where_they_delay_nobody() {
    let cost = LimitSpec::cost(10, Duration::from_secs(10), Algorithm::SlidingWindow);
    let spec = PoolSpec { key_limits: vec![cost], keys: keys(2), ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let mut line = Line::new(&spec.lanes);
    let ask = |cost| Ask { cost, ..Ask::default() };
    // Key 0 has used 5 at 0 s, key 1 has used 5 at 1 s.
    for at in [t(0), t(1_000)] {
        let permit = granted(&mut pool, &ask(5), at);
        send(&mut pool, permit, at);
    }
    let _ = line.push("large", 0, ask(10));
    (0..5).for_each(|_| {
        let _ = line.push("small", 0, ask(1));
    });
    // The large one waits for key 0, which is free first; the small ones go to key 1 and nowhere else.
    for _ in 0..5 {
        let Next::Ready("small", permit, key) = line.next(&mut pool, t(2_000)) else { panic!() };
        assert_eq!(key, KeyId(1));
        send(&mut pool, permit, t(2_000));
    }
    let Next::At(free) = line.next(&mut pool, t(2_000)) else { panic!() };
    let Next::Ready("large", permit, KeyId(0)) = line.next(&mut pool, free) else { panic!() };
    assert!(free < t(10_010));
    send(&mut pool, permit, free);
}

#[test]
fn equal_slots_go_by_weight() {
    let mut spec = PoolSpec { key_limits: vec![], keys: keys(3), ..PoolSpec::default() };
    spec.keys[1].weight = 2;
    for count in [3, 30] {
        // 30 keys use the index, 3 do not.
        spec.keys.extend((spec.keys.len()..count).map(|i| KeySpec { label: format!("k{i}"), weight: 1, budget: None }));
        let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
        let mut served = vec![0; count];
        for n in 0..(count + 1) * 10 {
            let permit = granted(&mut pool, &Ask::default(), t(n as u64));
            served[permit.key().0 as usize] += 1;
            send(&mut pool, permit, t(n as u64));
        }
        for (key, &count) in served.iter().enumerate() {
            let expected: i32 = if key == 1 { 20 } else { 10 };
            assert!((count - expected).abs() <= 1, "{served:?}");
        }
    }
}

/// The index finds what looking at every key finds: the nearest slot.
#[test]
fn the_index_agrees_with_a_scan() {
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let budget = |n: usize| BudgetSpec { name: format!("b{n}"), limits: vec![window(7, 3)] };
        let mut spec = PoolSpec {
            key_limits: vec![window(3, 2), LimitSpec::cost(40, Duration::from_secs(4), Algorithm::SlidingWindow)],
            keys: keys(30),
            budgets: (0..4).map(budget).collect(),
            ..PoolSpec::default()
        };
        spec.keys.iter_mut().take(16).enumerate().for_each(|(i, key)| key.budget = Some(i % 4));
        let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
        let mut flights: Vec<Flight> = Vec::new();
        let mut now = 0;
        for _ in 0..2_000 {
            now += dice.below(20);
            let ask = Ask { cost: 1 + dice.below(4), ..Ask::default() };
            if dice.unit() < 0.05 {
                pool.pause_key(KeyId(dice.below(30) as u32), t(now + dice.below(500)));
            }
            // What each single key says.
            let mut probe = pool.clone();
            let mut nearest = u64::MAX;
            for key in 0..30 {
                let at = match probe.acquire(&Ask { pin: Some(Pin::Key(KeyId(key))), ..ask }, t(now)) {
                    Acquire::Granted(permit) => {
                        probe.abandon(permit, t(now));
                        now * MILLI
                    }
                    Acquire::At(at) => at.as_nanos(),
                    Acquire::WhenAnswered { at_most } => at_most.as_nanos(),
                    Acquire::Blocked { .. } => continue,
                };
                nearest = nearest.min(at);
            }
            match pool.acquire(&ask, t(now)) {
                Acquire::Granted(permit) => {
                    assert_eq!(nearest, now * MILLI, "seed {seed}");
                    flights.push(pool.depart(permit, t(now)));
                }
                Acquire::At(at) => assert!(nearest > now * MILLI && at.as_nanos() + 1 > nearest, "seed {seed}"),
                _ => assert!(nearest > now * MILLI, "seed {seed}"),
            }
            while flights.len() > 20 || (!flights.is_empty() && dice.unit() < 0.3) {
                let mut flight = flights.swap_remove(dice.below(flights.len() as u64) as usize);
                pool.first_byte(&mut flight, t(now), None);
                pool.finish(flight, t(now), None);
            }
        }
    }
}

#[test]
fn one_budget_cools_and_its_sibling_does_not() {
    let budget = |n: usize| BudgetSpec { name: format!("b{n}"), limits: vec![window(4, 1)] };
    let mut spec = PoolSpec { keys: keys(4), budgets: vec![budget(0), budget(1)], ..PoolSpec::default() };
    spec.keys.iter_mut().enumerate().for_each(|(i, key)| key.budget = Some(i / 2));
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    assert_eq!(pool.pin_named("b1"), Some(Pin::Budget(BudgetId(1))));
    assert_eq!(pool.pin_named("k3"), Some(Pin::Key(KeyId(3))));
    let permit = granted(&mut pool, &pin(0), t(0));
    let mut flight = pool.depart(permit, t(0));
    let signal = Signal::parse([("retry-after", "10")], 429, None);
    pool.first_byte(&mut flight, t(50), Some(&signal));
    pool.finish(flight, t(50), None);
    // Key 1 shares the budget of key 0.
    assert!(
        matches!(pool.acquire(&pin(1), t(60)), Acquire::Blocked { why: Why::BudgetPaused(BudgetId(0)), until: Some(u) } if u >= t(10_050) && u < t(10_800))
    );
    for _ in 0..4 {
        let permit = granted(&mut pool, &Ask::default(), t(60));
        assert!(permit.key().0 >= 2);
        send(&mut pool, permit, t(60));
    }
    assert_eq!(pool.snapshot(t(60)).pacing_errors, 1);
    pool.resume_budget(BudgetId(0));
    let permit = granted(&mut pool, &Ask::default(), t(61));
    assert!(permit.key().0 < 2);
    send(&mut pool, permit, t(61));
}

#[test]
fn every_state_has_a_way_out() {
    let spec = PoolSpec { key_limits: vec![window(1, 1)], keys: keys(1), ..PoolSpec::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let blocked = |pool: &mut Pool, at| match pool.acquire(&Ask::default(), at) {
        Acquire::Blocked { why, until } => (why, until),
        other => panic!("{other:?}"),
    };
    let free = |pool: &mut Pool, at| match pool.acquire(&Ask::default(), at) {
        Acquire::Granted(permit) => pool.abandon(permit, at),
        other => panic!("{other:?}"),
    };
    let (key, budget) = (KeyId(0), BudgetId(0));
    pool.pause_key(key, t(10));
    pool.pause_key(key, t(7)); // a longer pause stays
    assert_eq!(blocked(&mut pool, t(5)), (Why::KeyPaused(key), Some(t(10))));
    free(&mut pool, t(10));
    pool.pause_provider(Time::MAX);
    assert_eq!(blocked(&mut pool, t(11)), (Why::ProviderPaused, None));
    pool.resume_provider();
    free(&mut pool, t(11));
    pool.park_budget(budget, None);
    assert_eq!(blocked(&mut pool, t(12)), (Why::BudgetParked(budget), None));
    pool.park_budget(budget, Some(t(20)));
    assert_eq!(blocked(&mut pool, t(13)), (Why::BudgetParked(budget), Some(t(20))));
    free(&mut pool, t(20));
    pool.disable_key(key, Some(t(100)));
    assert_eq!(blocked(&mut pool, t(21)), (Why::KeyDisabled(key), Some(t(100))));
    // One probe, and only one at a time.
    let permit = granted(&mut pool, &Ask::default(), t(100));
    assert!(permit.is_probe());
    assert_eq!(blocked(&mut pool, t(101)), (Why::KeyDisabled(key), None));
    let flight = pool.depart(permit, t(101));
    pool.finish(flight, t(200), None);
    // Nobody said whether it works: it is tried again, later.
    assert_eq!(blocked(&mut pool, t(201)), (Why::KeyDisabled(key), Some(t(60_200))));
    pool.enable_key(key);
    free(&mut pool, t(40_000));
    let gone = PoolSpec::default();
    let mut pool = Pool::new(&gone, Time::ZERO).unwrap();
    assert_eq!(blocked(&mut pool, t(0)), (Why::NoKey, None));
}

#[test]
fn what_costs_more_than_a_limit_allows_is_impossible() {
    let cost = LimitSpec::cost(100, Duration::from_secs(1), Algorithm::SlidingWindow);
    let small = BudgetSpec {
        name: "small".into(),
        limits: vec![LimitSpec::cost(50, Duration::from_secs(1), Algorithm::Smooth)],
    };
    let mut spec = PoolSpec { key_limits: vec![cost], keys: keys(2), budgets: vec![small], ..PoolSpec::default() };
    spec.keys[0].budget = Some(0);
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let ask = |cost, pin| Ask { cost, pin, ..Ask::default() };
    assert_eq!(pool.impossible(&ask(100, None)), None);
    let over = pool.impossible(&ask(101, None)).unwrap();
    assert_eq!((over.cost, over.largest), (101, 100));
    let pinned = pool.impossible(&ask(51, Some(Pin::Budget(BudgetId(0))))).unwrap();
    assert_eq!(pinned.largest, 50);
    // The job for which one key is too small goes to the other.
    let permit = granted(&mut pool, &ask(80, None), t(0));
    assert_eq!(permit.key(), KeyId(1));
    send(&mut pool, permit, t(0));
    assert!(matches!(
        pool.acquire(&ask(80, Some(Pin::Key(KeyId(0)))), t(0)),
        Acquire::Blocked { why: Why::TooLarge, .. }
    ));
}

#[test]
fn all_limits_or_none() {
    // The provider's limit has room for two, the key's for one: a refused ask takes nothing from anybody.
    let spec = PoolSpec {
        limits: vec![LimitSpec::concurrency(2)],
        key_limits: vec![window(1, 1)],
        keys: keys(1),
        ..PoolSpec::default()
    };
    let mut pool = Pool::new(&spec, Time::ZERO).unwrap();
    let permit = granted(&mut pool, &Ask::default(), t(0));
    for _ in 0..10 {
        assert!(matches!(pool.acquire(&Ask::default(), t(0)), Acquire::WhenAnswered { .. }));
    }
    let now = pool.snapshot(t(0));
    assert_eq!((now.limits[0].used, now.budgets[0].keys[0].limits[0].used), (1, 1));
    pool.abandon(permit, t(0));
    let now = pool.snapshot(t(0));
    assert_eq!((now.limits[0].used, now.budgets[0].keys[0].limits[0].used), (0, 0));
}

#[test]
fn a_slow_network_does_not_wake_the_line_in_vain() {
    // `Next::At` is exact when no answers are due: the job goes at that very time.
    let spec = PoolSpec { key_limits: vec![window(2, 1)], keys: keys(1), ..PoolSpec::default() };
    let (mut pool, mut line) = (Pool::new(&spec, Time::ZERO).unwrap(), Line::new(&spec.lanes));
    (0..100).for_each(|n| {
        let _ = line.push(n, 0, Ask::default());
    });
    let (mut now, mut looks) = (t(0), 0);
    while !line.is_empty() {
        looks += 1;
        match line.next(&mut pool, now) {
            Next::Ready(_, permit, _) => send(&mut pool, permit, now),
            Next::At(at) => now = at,
            other => panic!("{other:?}"),
        }
    }
    assert!(looks <= 152, "{looks}");
    let _ = Delay::NONE;
}
