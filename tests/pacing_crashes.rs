//! Whoever takes budgets over, whenever and however often its predecessors ended, exceeds no limit: every algorithm on
//! every server that it promises not to be refused by, for calls and for costs, wherever the limit is declared, with
//! long-tailed delays, lost answers, late departures, calls that were never sent and costs that turn out smaller.
//!
//! A run that fails names its seed: `PACING_SEED=17 cargo test --test pacing_crashes NAME` runs it again.
//! `PACING_SEEDS=1000..2000` tries others; `make soak-pacing` tries as many as there is time for.

mod oracle;

use oracle::owners::{At, End, Reign, Rule, reign};
use oracle::world::{Delay, Dice};
use oracle::*;
use paceline::pace::*;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counting {
    Log,
    SlidingCounter,
    OnTheClock,
    FromTheFirstCall,
    Bucket,
    LeakyBucket,
    Open,
    Calendar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    SlidingWindow,
    FixedWindow,
    TokenBucket,
    Smooth,
    Concurrency,
    Quota,
}

/// Every algorithm with every server that it promises not to be refused by (docs/pacing.md).
const PROMISES: [(Pace, Counting); 14] = [
    (Pace::SlidingWindow, Counting::Log),
    (Pace::SlidingWindow, Counting::OnTheClock),
    (Pace::SlidingWindow, Counting::FromTheFirstCall),
    (Pace::FixedWindow, Counting::OnTheClock),
    (Pace::FixedWindow, Counting::FromTheFirstCall),
    (Pace::TokenBucket, Counting::Bucket),
    (Pace::TokenBucket, Counting::LeakyBucket),
    (Pace::Smooth, Counting::SlidingCounter),
    (Pace::Smooth, Counting::Log),
    (Pace::Smooth, Counting::OnTheClock),
    (Pace::Smooth, Counting::FromTheFirstCall),
    (Pace::Smooth, Counting::Bucket),
    (Pace::Concurrency, Counting::Open),
    (Pace::Quota, Counting::Calendar),
];

impl Counting {
    /// Whether it takes back what a call did not cost in the end.
    fn corrects(self) -> bool {
        !matches!(self, Counting::SlidingCounter | Counting::LeakyBucket | Counting::Open)
    }
}

/// One limit of that kind; the costs of calls are at most `largest`.
fn rule((pace, counter): (Pace, Counting), at: At, cost: bool, largest: u64, dice: &mut Dice) -> Rule {
    let cost = cost && !matches!((pace, counter), (Pace::Concurrency, _) | (_, Counting::LeakyBucket));
    let window = (300 + dice.below(11_000)) * MILLI;
    let n = if cost { largest + dice.below(900) } else { 1 + dice.below(60) };
    let burst = if cost { largest + dice.below(100) } else { 1 + dice.below(10) };
    let phase = dice.below(window);
    let per = Duration::from_nanos(window);
    let algorithm = match pace {
        Pace::SlidingWindow => Algorithm::SlidingWindow,
        Pace::FixedWindow => Algorithm::FixedWindow,
        Pace::TokenBucket => Algorithm::TokenBucket,
        Pace::Smooth => Algorithm::Smooth,
        Pace::Concurrency => {
            let places = 1 + dice.below(8) as u32;
            let server = Box::new(move || Box::new(Concurrent::new(u64::from(places))) as Box<dyn Server>);
            return Rule { at, limit: LimitSpec::concurrency(places), server, tells: false, calendar: None };
        }
        Pace::Quota => Algorithm::Quota(Reset { longest: per, calendar: 1 }),
    };
    let mut limit = if cost { LimitSpec::cost(n, per, algorithm) } else { LimitSpec::requests(n, per, algorithm) };
    if pace == Pace::TokenBucket || (pace == Pace::Smooth && dice.below(3) == 0 && counter != Counting::Bucket) {
        limit = limit.with_burst(burst);
    }
    // A bucket that meets smooth calls needs room for those that delays push together.
    let room =
        if pace == Pace::Smooth { largest as f64 + n as f64 * SECOND as f64 / window as f64 } else { burst as f64 };
    let server: Box<dyn Fn() -> Box<dyn Server>> = match counter {
        Counting::Log => Box::new(move || Box::new(SlidingLog::new(n, window))),
        Counting::SlidingCounter => Box::new(move || Box::new(SlidingCounter::new(n, window, phase))),
        Counting::OnTheClock | Counting::Calendar => {
            Box::new(move || Box::new(FixedWindow::on_the_clock(n, window, phase)))
        }
        Counting::FromTheFirstCall => Box::new(move || Box::new(FixedWindow::from_the_first_call(n, window))),
        Counting::Bucket => Box::new(move || Box::new(TokenBucket::new(room, n, window))),
        Counting::LeakyBucket => Box::new(move || Box::new(LeakyBucket::new(room - 1.0, n, window))),
        Counting::Open => unreachable!("made above"),
    };
    let tells = pace == Pace::FixedWindow && dice.below(2) == 0;
    Rule { at, limit, server, tells, calendar: (pace == Pace::Quota).then_some(phase) }
}

fn any_delay(dice: &mut Dice) -> Delay {
    match dice.below(4) {
        0 => Delay::NONE,
        1 | 2 => Delay::LONG_TAIL,
        _ => {
            let median = 1.0 + 300.0 * dice.unit();
            Delay::new(median, median * (1.0 + 15.0 * dice.unit()))
        }
    }
}

/// Everything is decided by the seed: owners that live for up to `longest` seconds, `promise` and sometimes others.
fn any_reign(promise: (Pace, Counting), owners: u64, longest: u64, dice: &mut Dice) -> Reign {
    let cost = dice.below(3) == 0;
    let largest = if cost { 1 + dice.below(100) } else { 1 };
    let mut promises = vec![promise];
    while dice.below(3) == 0 {
        promises.push(PROMISES[dice.below(PROMISES.len() as u64) as usize]);
    }
    let corrects = promises.iter().all(|(_, counter)| counter.corrects());
    let rules = promises.into_iter().map(|promise| {
        let at = At::ALL[dice.below(5) as usize];
        rule(promise, at, cost, largest, dice)
    });
    let rules = rules.collect();
    Reign {
        rules,
        there: any_delay(dice),
        work: any_delay(dice),
        back: any_delay(dice),
        counted_within: (1_000 + dice.below(3) * dice.below(20_000)) * MILLI,
        lost: if dice.below(3) == 0 { 0.2 * dice.unit() } else { 0.0 },
        largest,
        cheaper: if corrects { dice.unit() } else { 0.0 },
        owners: (0..owners).map(|_| (any_life(longest, dice), End::roll(dice))).collect(),
    }
}

/// Now and then an owner ends before it has sent anything, or before its first renewal.
fn any_life(longest: u64, dice: &mut Dice) -> u64 {
    match dice.below(6) {
        0 => 0,
        1 => dice.below(200) * MILLI,
        _ => dice.below(longest * 1_000) * MILLI,
    }
}

/// Runs one seed: calls that arrived, and virtual nanoseconds.
fn attempt(promise: (Pace, Counting), seed: u64) -> Result<(u64, u64), String> {
    let place = PROMISES.iter().position(|other| *other == promise).unwrap();
    let mut dice = Dice(seed << 8 | place as u64);
    // Mostly many short lives, now and then a few long ones.
    let (owners, longest) = match seed % 1_000 {
        999 => (4, 3_600),
        other => [(6, 15), (12, 30)][other as usize % 2],
    };
    let all = any_reign(promise, owners, longest, &mut dice);
    let told = reign(&all, dice.next());
    match told.refused {
        None => Ok((told.arrived, told.nanos)),
        Some(refused) => Err(format!("PACING_SEED={seed}: {promise:?} {refused}; owners: {:?}", all.owners)),
    }
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |text: &str| text.parse::<u64>().expect("seeds are numbers");
    if let Ok(seed) = std::env::var("PACING_SEED") {
        return number(&seed)..number(&seed) + 1;
    }
    match std::env::var("PACING_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("PACING_SEEDS is written FROM..TO");
            number(from)..number(to)
        }
        Err(_) => 0..count,
    }
}

fn no_refusal(pace: Pace) {
    for promise in PROMISES.into_iter().filter(|promise| promise.0 == pace) {
        let seeds = seeds(120);
        let runs = seeds.end - seeds.start;
        let (mut arrived, mut seconds) = (0, 0);
        for seed in seeds {
            let (calls, nanos) = attempt(promise, seed).unwrap_or_else(|refused| panic!("{refused}"));
            arrived += calls;
            seconds += nanos / SECOND;
        }
        println!("{promise:?}: {arrived} calls in {seconds} s of {runs} runs");
        assert!(runs < 120 || arrived > 40 * runs, "{promise:?}: only {arrived} calls");
    }
}

#[test]
fn sliding_window_holds_across_owners() {
    no_refusal(Pace::SlidingWindow);
}

#[test]
fn fixed_window_holds_across_owners() {
    no_refusal(Pace::FixedWindow);
}

#[test]
fn token_bucket_holds_across_owners() {
    no_refusal(Pace::TokenBucket);
}

#[test]
fn smooth_holds_across_owners() {
    no_refusal(Pace::Smooth);
}

#[test]
fn concurrency_holds_across_owners() {
    no_refusal(Pace::Concurrency);
}

#[test]
fn quota_holds_across_owners() {
    no_refusal(Pace::Quota);
}

/// As long as `PACING_SOAK_SECONDS` says: runs of many owners, some of which live for hours.
#[test]
#[ignore = "as long as one wants; see make soak-pacing"]
fn soak() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect(name));
    let (length, from) = (number("PACING_SOAK_SECONDS", 60), number("PACING_SOAK_FROM", 1_000_000));
    let began = Instant::now();
    let (mut arrived, mut nanos, mut runs) = (0_u64, 0_u64, 0_u64);
    let mut refused = Vec::new();
    for seed in from.. {
        if began.elapsed().as_secs() >= length {
            break;
        }
        let promise = PROMISES[(seed % PROMISES.len() as u64) as usize];
        match attempt(promise, seed) {
            Ok((calls, took)) => (arrived, nanos) = (arrived + calls, nanos + took),
            Err(words) => {
                println!("{words}");
                refused.push(seed);
            }
        }
        runs += 1;
    }
    println!("{runs} runs from seed {from} on: {arrived} calls in {:.1} virtual hours", nanos as f64 / 3_600e9);
    assert!(refused.is_empty(), "refused with the seeds {refused:?}");
}

fn t(millis: u64) -> Time {
    Time::from_nanos(millis * MILLI)
}

fn one_key(limit: LimitSpec) -> PoolSpec {
    let keys = vec![KeySpec { label: "k".into(), weight: 1, budget: None }];
    PoolSpec { key_limits: vec![limit], keys, ..PoolSpec::default() }
}

fn depart(pool: &mut Pool, cost: u64, at: Time) -> Flight {
    match pool.acquire(&Ask { cost, ..Ask::default() }, at) {
        Acquire::Granted(permit) => pool.depart(permit, at),
        other => panic!("{other:?} at {at:?}"),
    }
}

/// What may have been sent after `saved`, `age` milliseconds before `now`.
fn heir(spec: &PoolSpec, saved: &Saved, age: u64, calls: u64, now: Time) -> Pool {
    let mut pool = Pool::new(spec, now).unwrap();
    let since = Since::AtMost { calls, open: calls, within: Duration::from_millis(5_500) };
    pool.restore(saved, Duration::from_millis(age), since, now);
    pool
}

/// When a call of this cost can go at the earliest.
fn slot(pool: &mut Pool, cost: u64, now: Time) -> Time {
    match pool.acquire(&Ask { cost, ..Ask::default() }, now) {
        Acquire::At(at) => at,
        other => panic!("{other:?}"),
    }
}

/// A call of the first owner may arrive a second after the second one took over. If that one is killed as well, the
/// third one still has to wait for it.
#[test]
fn a_second_crash_does_not_forget_what_may_still_arrive() {
    for algorithm in [Algorithm::SlidingWindow, Algorithm::FixedWindow, Algorithm::Smooth, Algorithm::TokenBucket] {
        let spec = one_key(LimitSpec::requests(1, Duration::from_secs(10), algorithm));
        let mut first = Pool::new(&spec, t(0)).unwrap();
        let written = first.save(t(0));
        let _sent_unseen = depart(&mut first, 1, t(100));
        let mut second = heir(&spec, &written, 400, 1, t(400));
        let written = second.save(t(400));
        let mut third = heir(&spec, &written, 100, 0, t(500));
        assert!(slot(&mut third, 1, t(500)) >= t(11_400), "{algorithm:?}");
    }
}

/// The first owner was told when the provider forgets everything, and used the limit anew from then on. The second
/// one never heard of that edge.
#[test]
fn an_edge_that_only_the_dead_owner_knew_hides_no_calls() {
    let spec = one_key(LimitSpec::requests(10, Duration::from_secs(60), Algorithm::FixedWindow));
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let told = Signal::parse(
        [("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "20.000")],
        200,
        None,
    );
    let flights: Vec<Flight> = (0..10).map(|_| depart(&mut first, 1, t(0))).collect();
    for mut flight in flights {
        first.first_byte(&mut flight, t(10), Some(&told));
        first.finish(flight, t(10), None);
    }
    let written = first.save(t(19_000));
    let _sent_unseen: Vec<Flight> = (0..10).map(|_| depart(&mut first, 1, t(20_100))).collect();
    let mut second = heir(&spec, &written, 3_000, 10, t(22_000));
    assert!(slot(&mut second, 1, t(22_000)) >= t(82_000));
}

/// An answered call that is not over yet may turn out to cost less, and what it gives back may be spent at once.
#[test]
fn costs_that_shrink_after_they_were_written_hide_no_calls() {
    let spec = one_key(LimitSpec::cost(100, Duration::from_secs(10), Algorithm::SlidingWindow));
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let mut flight = depart(&mut first, 90, t(0));
    first.first_byte(&mut flight, t(100), None);
    let written = first.save(t(1_000));
    first.finish(flight, t(1_100), Some(0));
    let _sent_unseen = depart(&mut first, 90, t(1_200));
    let mut second = heir(&spec, &written, 1_000, 1, t(2_000));
    assert!(slot(&mut second, 80, t(2_000)) >= t(11_200));
    // One that is over stays where it was counted.
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let mut flight = depart(&mut first, 90, t(0));
    first.first_byte(&mut flight, t(100), None);
    first.finish(flight, t(200), Some(80));
    let written = first.save(t(1_000));
    let mut second = Pool::new(&spec, t(2_000)).unwrap();
    second.restore(&written, Duration::from_secs(1), Since::Nothing, t(2_000));
    let next = slot(&mut second, 80, t(2_000));
    assert!(next >= t(10_100) && next <= t(10_110), "{next:?}");
}

/// What was on its way counts as arriving a second after the takeover. Until then the bucket would have filled up again:
/// that does not mean that nothing else could have been sent.
#[test]
fn calls_on_their_way_hide_no_others_from_a_bucket() {
    let spec = one_key(LimitSpec::requests(20, Duration::from_secs(1), Algorithm::TokenBucket).with_burst(20));
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let _on_their_way: Vec<Flight> = (0..10).map(|_| depart(&mut first, 1, t(0))).collect();
    let written = first.save(t(0));
    let _sent_unseen: Vec<Flight> = (0..10).map(|_| depart(&mut first, 1, t(50))).collect();
    let mut second = Pool::new(&spec, t(100)).unwrap();
    let within = Duration::from_millis(100);
    second.restore(&written, within, Since::AtMost { calls: 10, open: 20, within }, t(100));
    assert!(slot(&mut second, 1, t(1_100)) >= t(1_150));
}

/// The dead owner knew when the period ended, and used the quota anew; to its successor nobody names the period.
#[test]
fn a_period_that_only_the_dead_owner_knew_hides_no_calls() {
    let reset = Reset { longest: Duration::from_secs(10), calendar: 1 };
    let spec = one_key(LimitSpec::requests(3, reset.longest, Algorithm::Quota(reset)));
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let sharp = |at| Edge { low: t(at), high: t(at) };
    let period = QuotaPeriod { begins: sharp(0), ends: sharp(5_000) };
    first.quota_period(Place::Key(KeyId(0)), 0, Some(period));
    for mut flight in (0..3).map(|_| depart(&mut first, 1, t(4_000))).collect::<Vec<_>>() {
        first.first_byte(&mut flight, t(4_000), None);
        first.finish(flight, t(4_000), None);
    }
    let written = first.save(t(4_500));
    let _sent_unseen: Vec<Flight> = (0..3).map(|_| depart(&mut first, 1, t(5_010))).collect();
    let mut second = heir(&spec, &written, 600, 3, t(5_100));
    assert!(slot(&mut second, 1, t(14_100)) >= t(15_010));
}

/// `smooth` lets a call go that costs as much as the whole limit, and rests afterwards.
#[test]
fn one_large_cost_that_nobody_saw_counts_wholly() {
    let spec = one_key(LimitSpec::cost(100, Duration::from_secs(20), Algorithm::Smooth));
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let written = first.save(t(0));
    let _sent_unseen = depart(&mut first, 100, t(100));
    let mut second = heir(&spec, &written, 1_000, 1, t(1_000));
    assert!(slot(&mut second, 50, t(1_000)) >= t(20_100));
}

/// Two calls that left and were answered together: one of them being over says nothing about the other.
#[test]
fn a_cost_that_may_still_shrink_is_not_taken_for_that_of_its_twin() {
    let spec = one_key(LimitSpec::cost(100, Duration::from_secs(10), Algorithm::SlidingWindow));
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let mut twins = [depart(&mut first, 45, t(0)), depart(&mut first, 45, t(0))];
    twins.iter_mut().for_each(|flight| first.first_byte(flight, t(100), None));
    let [one, other] = twins;
    first.finish(one, t(200), None);
    let written = first.save(t(1_000));
    first.finish(other, t(1_100), Some(0));
    let _sent_unseen = depart(&mut first, 45, t(1_200));
    let mut second = heir(&spec, &written, 1_000, 1, t(2_000));
    assert!(slot(&mut second, 60, t(2_000)) >= t(11_200));
}

/// A call that was not answered in time counts from then on. Its answer may come all the same, and give most of it back.
#[test]
fn a_late_answer_that_may_still_come_hides_no_calls() {
    let limit = LimitSpec::cost(100, Duration::from_secs(10), Algorithm::SlidingWindow);
    let spec = PoolSpec { counted_within: Duration::from_secs(1), ..one_key(limit) };
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let mut flight = depart(&mut first, 90, t(0));
    let written = first.save(t(3_000));
    first.first_byte(&mut flight, t(3_100), None);
    first.finish(flight, t(3_100), Some(0));
    let _sent_unseen = depart(&mut first, 90, t(3_200));
    let mut second = heir(&spec, &written, 500, 1, t(3_500));
    assert!(slot(&mut second, 80, t(3_500)) >= t(13_200));
}

/// The dead owner may have known of many edges, and used the limit anew after each. The route's limit counts all that.
#[test]
fn every_edge_that_the_dead_owner_may_have_known_counts() {
    let limit = LimitSpec::requests(10, Duration::from_millis(500), Algorithm::FixedWindow);
    let of_route = LimitSpec::requests(100, Duration::from_secs(60), Algorithm::SlidingWindow);
    let routes = vec![RouteSpec { limits: vec![of_route], key_limits: Vec::new() }];
    let spec = PoolSpec { routes, ..one_key(limit) };
    let written = Pool::new(&spec, t(0)).unwrap().save(t(0));
    let mut second = heir(&spec, &written, 5_500, 80, t(5_500));
    assert_eq!(second.used(Place::Route(0), 0, t(5_500)), Some(80));
}

/// What nobody saw may arrive a second after the takeover. Even calls keep their distance from that, too.
#[test]
fn even_calls_keep_their_distance_from_what_nobody_saw() {
    let spec = one_key(LimitSpec::requests(11, Duration::from_secs(10), Algorithm::Smooth));
    let mut first = Pool::new(&spec, t(0)).unwrap();
    let written = first.save(t(0));
    let _sent_unseen = depart(&mut first, 1, t(50));
    let mut second = heir(&spec, &written, 100, 1, t(100));
    assert!(slot(&mut second, 1, t(100)) >= t(100 + 1_000 + 1_000));
}

/// Permits were in hand when it was written; they are given back, and calls of a route take their place unseen.
#[test]
fn what_was_on_its_way_and_given_back_hides_no_calls_of_another_limit() {
    for algorithm in [Algorithm::SlidingWindow, Algorithm::FixedWindow, Algorithm::TokenBucket] {
        let limit = LimitSpec::requests(10, Duration::from_secs(10), algorithm).with_burst(10);
        let of_route = LimitSpec::requests(10, Duration::from_secs(60), Algorithm::SlidingWindow);
        let routes = vec![RouteSpec { limits: vec![of_route], key_limits: Vec::new() }];
        let spec = PoolSpec { routes, ..one_key(limit) };
        let mut first = Pool::new(&spec, t(0)).unwrap();
        let flights: Vec<Flight> = (0..10).map(|_| depart(&mut first, 1, t(0))).collect();
        let written = first.save(t(10));
        flights.into_iter().for_each(|flight| first.unsent(flight, t(20)));
        let routed = Ask { routes: Routes::NONE.with(0), ..Ask::default() };
        for _ in 0..10 {
            let Acquire::Granted(permit) = first.acquire(&routed, t(30)) else { panic!("{algorithm:?}") };
            let _sent_unseen = first.depart(permit, t(30));
        }
        let mut second = heir(&spec, &written, 90, 10, t(100));
        let Acquire::At(at) = second.acquire(&routed, t(100)) else { panic!("{algorithm:?}: at once") };
        assert!(at >= t(60_030), "{algorithm:?}: {at:?}");
    }
}
