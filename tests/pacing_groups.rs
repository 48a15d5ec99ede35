//! Pacing groups in one pool: what is not held is not sent, what is held goes on, and each is saved for itself.

use std::time::Duration;

use paceline::pace::*;

const WINDOW: Duration = Duration::from_secs(10);

fn t(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(1_000_000 + millis)
}

fn key(label: String, budget: Option<usize>) -> KeySpec {
    KeySpec { label, weight: 1, budget }
}

/// So many keys, the first two of which share a budget; each key allows five calls.
fn spec(keys: usize) -> PoolSpec {
    let budget = |n: usize| (n < 2).then_some(0);
    PoolSpec {
        key_limits: vec![LimitSpec::requests(5, WINDOW, Algorithm::SlidingWindow)],
        keys: (0..keys).map(|n| key(format!("k{n}"), budget(n))).collect(),
        budgets: vec![BudgetSpec { name: "org".into(), limits: Vec::new() }],
        ..PoolSpec::default()
    }
}

fn pool(keys: usize) -> Pool {
    Pool::new(&spec(keys), t(0)).expect("a pool")
}

fn pinned(pin: Option<Pin>) -> Ask {
    Ask { pin, ..Ask::default() }
}

/// Sends what can be sent, without any answer; how many with each key.
fn drain(pool: &mut Pool, pin: Option<Pin>, now: Time) -> Vec<usize> {
    let mut sent = vec![0; pool.key_count()];
    while let Acquire::Granted(permit) = pool.acquire(&pinned(pin), now) {
        sent[permit.key().0 as usize] += 1;
        let mut flight = pool.depart(permit, now);
        pool.first_byte(&mut flight, now, None);
        pool.finish(flight, now, None);
    }
    sent
}

#[test]
fn groups_are_the_budgets_unless_a_limit_ties_them_together() {
    assert_eq!(spec(4).groups(), ["org", "k2", "k3"]);
    let limit = || LimitSpec::concurrency(9);
    assert_eq!(PoolSpec { limits: vec![limit()], ..spec(4) }.groups(), [""]);
    let route = |limits, key_limits| PoolSpec { routes: vec![RouteSpec { limits, key_limits }], ..spec(4) };
    assert_eq!(route(vec![limit()], Vec::new()).groups(), [""]);
    assert_eq!(route(Vec::new(), vec![limit()]).groups(), ["org", "k2", "k3"]);
    assert_eq!(PoolSpec::default().groups(), [""]);
    let pool = pool(4);
    let groups: Vec<_> = (0..4).map(|n| pool.group_of(KeyId(n)).expect("a key").0).collect();
    assert_eq!((groups, pool.group_of(KeyId(4))), (vec![0, 0, 1, 2], None));
    assert_eq!(pool.pins_of(GroupId(0)).collect::<Vec<_>>(), ["org", "k0", "k1"]);
    assert_eq!(pool.group_of_pin(Pin::Budget(BudgetId(0))), Some(GroupId(0)));
}

/// With few keys each is looked at, with many there is an index.
#[test]
fn keys_of_a_group_that_is_not_held_are_no_candidates() {
    for keys in [4, 40] {
        let mut pool = pool(keys);
        let all = pool.allowance(Duration::from_secs(1), t(0));
        pool.set_hold(GroupId(0), Hold::Away);
        pool.set_hold(GroupId(2), Hold::Away);
        assert_eq!(pool.allowance(Duration::from_secs(1), t(0)), all / keys as u64 * (keys as u64 - 3));
        for pin in [Pin::Key(KeyId(1)), Pin::Key(KeyId(3)), Pin::Budget(BudgetId(0))] {
            let Acquire::Blocked { why: Why::NotHeld, until: None } = pool.acquire(&pinned(Some(pin)), t(1)) else {
                panic!("{pin:?} is not held");
            };
        }
        let sent = drain(&mut pool, None, t(1));
        let held = |n: usize| usize::from(n == 2 || n > 3) * 5;
        assert_eq!(sent, (0..keys).map(held).collect::<Vec<_>>());
        assert!(matches!(pool.acquire(&Ask::default(), t(1)), Acquire::At(_)), "what is held decides");
        // What was counted before stays counted.
        pool.set_hold(GroupId(0), Hold::Open);
        assert_eq!(drain(&mut pool, None, t(2)).iter().sum::<usize>(), 10);
        pool.set_hold(GroupId(1), Hold::Away);
        pool.set_hold(GroupId(1), Hold::Open);
        assert_eq!(drain(&mut pool, None, t(3)).iter().sum::<usize>(), 0);
    }
}

/// However groups come and go, with few keys that are looked at one by one and many that are indexed.
#[test]
fn nothing_leaves_of_a_group_that_is_not_open() {
    for keys in [4, 30] {
        let mut pool = pool(keys);
        let groups = pool.group_count() as u64;
        let mut seed = keys as u64;
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for step in 0..3_000 {
            let now = t(step * 400);
            let hold = [Hold::Open, Hold::Shut, Hold::Away][below(3) as usize];
            pool.set_hold(GroupId(below(groups) as u32), hold);
            let pin = match below(4) {
                0 => Some(Pin::Key(KeyId(below(keys as u64) as u32))),
                1 => Some(Pin::Budget(BudgetId(below(groups) as u32))),
                _ => None,
            };
            let cost = [1, 1, 5][below(3) as usize];
            match pool.acquire(&Ask { cost, ..pinned(pin) }, now) {
                Acquire::Granted(permit) => {
                    let group = pool.group_of(permit.key()).expect("a key");
                    assert_eq!(pool.hold(group), Hold::Open, "step {step} of {keys} keys");
                    let mut flight = pool.depart(permit, now);
                    pool.first_byte(&mut flight, now, None);
                    pool.finish(flight, now, None);
                }
                answer => {
                    let open = (0..groups).any(|group| pool.hold(GroupId(group as u32)) == Hold::Open);
                    // There is always room with some key of thirty.
                    assert!(pin.is_some() || !open || keys == 4, "step {step}: {answer:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_shut_waits_and_what_nobody_holds_is_refused() {
    for keys in [4, 40] {
        let mut pool = pool(keys);
        let groups = pool.group_count() as u32;
        (1..groups).for_each(|n| pool.set_hold(GroupId(n), Hold::Away));
        pool.set_hold(GroupId(0), Hold::Shut);
        assert!(pool.allowance(Duration::from_secs(1), t(0)) > 0, "it is held");
        for pin in [None, Some(Pin::Key(KeyId(0)))] {
            let Acquire::WhenAnswered { at_most: Time::MAX } = pool.acquire(&pinned(pin), t(1)) else {
                panic!("it is shut");
            };
        }
        pool.set_hold(GroupId(0), Hold::Away);
        assert_eq!(pool.allowance(Duration::from_secs(1), t(0)), 0);
        let Acquire::Blocked { why: Why::NotHeld, .. } = pool.acquire(&Ask::default(), t(1)) else { panic!("away") };
    }
    let mut tied = Pool::new(&PoolSpec { limits: vec![LimitSpec::concurrency(99)], ..spec(40) }, t(0)).expect("a pool");
    tied.set_hold(GroupId(0), Hold::Away);
    let Acquire::Blocked { why: Why::NotHeld, .. } = tied.acquire(&Ask::default(), t(1)) else { panic!("away") };
    tied.set_hold(GroupId(0), Hold::Open);
    assert_eq!(drain(&mut tied, None, t(1)).iter().sum::<usize>(), 200);
}

/// A job in line wakes up when its group is held, or lost.
#[test]
fn a_line_looks_again_when_a_group_is_opened_or_given_away() {
    let mut pool = pool(4);
    pool.set_hold(GroupId(1), Hold::Shut);
    let mut line = Line::new(&[]);
    line.push('a', 0, pinned(Some(Pin::Key(KeyId(2)))));
    assert!(matches!(line.next(&mut pool, t(1)), Next::Waiting));
    pool.set_hold(GroupId(1), Hold::Open);
    let Next::Ready('a', permit, KeyId(2)) = line.next(&mut pool, t(1)) else { panic!("it may go") };
    pool.abandon(permit, t(1));
    pool.set_hold(GroupId(1), Hold::Shut);
    line.push('b', 0, pinned(Some(Pin::Key(KeyId(2)))));
    assert!(matches!(line.next(&mut pool, t(2)), Next::Waiting));
    assert_eq!(line.waiting_beyond(t(3)).count(), 0, "it waits here");
    pool.set_hold(GroupId(1), Hold::Away);
    assert!(matches!(line.next(&mut pool, t(2)), Next::Waiting));
    assert_eq!(line.waiting_beyond(t(3)).count(), 1, "it has to go elsewhere");
}

/// A job of a lane that delays another one, where there is no other key, waits for a slot; nothing is out of use.
#[test]
fn whoever_would_delay_another_one_waits_though_there_is_no_other_key() {
    let limits = vec![LimitSpec::cost(10, WINDOW, Algorithm::SlidingWindow)];
    let keys = vec![key("only".into(), None)];
    let mut pool = Pool::new(&PoolSpec { key_limits: limits, keys, ..PoolSpec::default() }, t(0)).expect("a pool");
    let mut line = Line::new(&[]);
    let cost = |cost, pin| Ask { cost, pin, ..Ask::default() };
    line.push("first", 0, cost(5, None));
    let Next::Ready("first", permit, _) = line.next(&mut pool, t(1)) else { panic!("there is room") };
    let mut flight = pool.depart(permit, t(1));
    pool.first_byte(&mut flight, t(2), None);
    pool.finish(flight, t(2), None);
    line.push("large", 0, cost(10, Some(Pin::Key(KeyId(0)))));
    line.push("small", 0, cost(3, None));
    assert!(matches!(line.next(&mut pool, t(3)), Next::At(_)));
    assert_eq!(line.waiting_beyond(t(100_000)).count(), 0, "both wait for a slot, neither for a key");
}

#[test]
fn a_group_is_handed_over_alone_and_the_others_go_on() {
    for keys in [4, 40] {
        let (mut old, mut new) = (pool(keys), pool(keys));
        assert_eq!(drain(&mut old, None, t(1)).iter().sum::<usize>(), keys * 5);
        let saved = old.save_group(GroupId(0), t(2));
        assert!(saved.limits.keys().all(|place| place.contains("k0") || place.contains("k1")), "{saved:?}");
        (1..new.group_count() as u32).for_each(|n| new.set_hold(GroupId(n), Hold::Away));
        new.forget(GroupId(0));
        new.restore_group(GroupId(0), &[Left { saved: &saved, elapsed: Duration::ZERO, since: Since::Nothing }], t(3));
        assert_eq!(drain(&mut new, None, t(3)).iter().sum::<usize>(), 0, "all of it was spent");
        // The old one has forgotten nothing of the others, and may forget this one.
        old.forget(GroupId(0));
        let sent = drain(&mut old, None, t(3));
        assert_eq!((sent[0], sent[1], sent.iter().sum::<usize>()), (5, 5, 10));
        assert_eq!(drain(&mut new, None, t(10_500)).iter().sum::<usize>(), 10, "a window later");
    }
}

/// Where the groups changed, what is spent may be in several states.
#[test]
fn a_group_inherits_from_all_that_knew_its_keys() {
    let whole = PoolSpec { limits: vec![LimitSpec::concurrency(99)], ..spec(4) };
    let mut tied = Pool::new(&whole, t(0)).expect("a pool");
    assert_eq!(drain(&mut tied, Some(Pin::Key(KeyId(0))), t(1))[0], 5);
    let mut single = pool(4);
    assert_eq!(drain(&mut single, Some(Pin::Key(KeyId(1))), t(1))[1], 5);
    let (of_all, of_one) = (tied.save_group(GroupId(0), t(2)), single.save_group(GroupId(0), t(2)));
    let left = |saved| Left { saved, elapsed: Duration::ZERO, since: Since::Nothing };
    let mut next = pool(4);
    next.restore_group(GroupId(0), &[left(&of_all), left(&of_one)], t(3));
    assert_eq!(drain(&mut next, None, t(3)), [0, 0, 5, 5]);
    let mut tied = Pool::new(&whole, t(3)).expect("a pool");
    tied.restore_group(GroupId(0), &[left(&of_one), left(&of_all)], t(3));
    assert_eq!(drain(&mut tied, None, t(3)), [0, 0, 5, 5]);
    // And what may have been sent unseen counts at every key of the group, and at no other.
    let crashed = Left { since: Since::AtMost { calls: 9, open: 9, within: WINDOW }, ..left(&of_one) };
    let mut next = pool(4);
    next.restore_group(GroupId(1), &[crashed], t(3));
    assert_eq!(drain(&mut next, None, t(3)), [5, 5, 0, 5]);
}
