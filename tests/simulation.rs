//! The dispatcher's core under virtual time: hours of traffic in seconds, the same again for the
//! same seed. Providers are judged by the simulator's own counting, which shares nothing with the
//! pacing; commits, answers and networks take random times.
//!
//! `SIMULATION_SEED=17 cargo test --test simulation` repeats a run that failed.

mod virtual_time;

use std::time::Duration;

use paceline::dispatch::core::Event;
use paceline::job::JobState;
use paceline::pace::{GroupId, Since};
use paceline::sim::{Limit, Lognormal};
use virtual_time::*;

#[test]
fn two_hours_of_traffic_without_a_refusal_at_almost_the_whole_rate() {
    let seconds = 10;
    let limit = Limit::SlidingLog { limit: 100, per: Duration::from_secs(seconds) };
    for seed in seeds(1) {
        let text = config(2, "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }", "");
        let mut world = World::new(&text, &limit, seed);
        let jobs = 2 * 3_600 * 20;
        for pk in 0..jobs {
            world.enqueue(pk, &plain(pk), Vec::new());
        }
        world.run(3 * 3_600 * SECOND);
        assert_eq!(world.rejected, 0, "seed {seed}");
        world.assert_one_end_each(seed);
        assert_eq!(world.states(JobState::Succeeded), usize::try_from(jobs).unwrap(), "seed {seed}");
        let utilisation = world.utilisation(100, seconds * SECOND, world.now - 20 * SECOND);
        assert!(utilisation > 0.985, "seed {seed}: {utilisation}");
    }
}

#[test]
fn whatever_fails_every_job_ends_once_and_no_limit_is_exceeded() {
    let limit = Limit::SlidingLog { limit: 20, per: Duration::from_secs(2) };
    for seed in seeds(40) {
        let text = config(
            3,
            "{ requests = 20, per = \"2s\", algorithm = \"sliding_window\" }",
            "retry = { max_attempts = 4, base = \"100ms\", cap = \"3s\", jitter = \"equal\" }\nlanes = { high = 8, low = 1 }",
        );
        let mut world = World::new(&text, &limit, seed);
        let mut dice = Dice(seed ^ 0xabcd);
        for pk in 0..1_200 {
            let fates = match dice.below(20) {
                0 => vec![Fate::Status(503); 2],
                1 => vec![Fate::Lost],
                2 => vec![Fate::NotSent; 3],
                3 => vec![Fate::Status(404)],
                4 => vec![Fate::Status(500); 9],
                5 if pk == 300 => vec![Fate::BadKey],
                _ => Vec::new(),
            };
            let lane = ["high", "default", "low"][usize::try_from(dice.below(3)).unwrap()];
            let delivery = if dice.below(3) == 0 { "at_most_once" } else { "at_least_once" };
            let mut envelope = plain(pk);
            envelope["lane"] = lane.into();
            envelope["delivery"] = delivery.into();
            if dice.below(50) == 0 {
                envelope["key"] = "k1".into();
            }
            world.enqueue(pk, &envelope, fates);
        }
        // Jobs that are pinned to the refused key wait until it works again.
        world.run(600 * SECOND);
        world.bad_key = None;
        world.run(3_600 * SECOND);
        assert_eq!(world.rejected, 0, "seed {seed}");
        world.assert_one_end_each(seed);
    }
}

#[test]
fn at_most_once_is_executed_once_however_the_answer_is_lost() {
    let limit = Limit::SlidingLog { limit: 50, per: Duration::from_secs(1) };
    // Most of these calls fail: a breaker would leave the provider alone.
    let breaker = "breaker = { failures = 1000000 }";
    for seed in seeds(10) {
        let text = config(1, "{ requests = 50, per = \"1s\", algorithm = \"sliding_window\" }", breaker);
        let mut world = World::new(&text, &limit, seed);
        for pk in 0..300 {
            let mut envelope = plain(pk);
            envelope["delivery"] = "at_most_once".into();
            let fates =
                [vec![Fate::Lost], vec![Fate::NotSent, Fate::Lost], vec![]][usize::try_from(pk % 3).unwrap()].clone();
            world.enqueue(pk, &envelope, fates);
        }
        world.run(600 * SECOND);
        world.assert_one_end_each(seed);
        assert_eq!(world.states(JobState::Dead), 200, "seed {seed}");
        assert!(world.told.values().all(|told| told.executed <= 1), "seed {seed}");
    }
}

#[test]
fn a_refused_key_is_set_aside_and_the_others_carry_on() {
    let limit = Limit::SlidingLog { limit: 10, per: Duration::from_secs(1) };
    for seed in seeds(10) {
        let text = config(3, "{ requests = 10, per = \"1s\", algorithm = \"sliding_window\" }", "");
        let mut world = World::new(&text, &limit, seed);
        world.bad_key = Some(1);
        for pk in 0..400 {
            world.enqueue(pk, &plain(pk), Vec::new());
        }
        world.run(600 * SECOND);
        world.assert_one_end_each(seed);
        assert_eq!(world.states(JobState::Succeeded), 400, "seed {seed}: no failure attempt is spent on a bad key");
        assert!(world.accepted[1].is_empty());
        assert!(world.now < 40 * SECOND, "seed {seed}: two keys carry on at their rate, {} s", world.now / SECOND);
    }
}

#[test]
fn a_job_waits_while_its_only_key_is_refused_and_goes_when_it_works_again() {
    let limit = Limit::SlidingLog { limit: 10, per: Duration::from_secs(1) };
    let text = config(2, "{ requests = 10, per = \"1s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, 5);
    world.bad_key = Some(0);
    let mut envelope = plain(1);
    envelope["key"] = "k0".into();
    world.enqueue(1, &envelope, Vec::new());
    world.enqueue(2, &plain(2), Vec::new());
    world.run(100 * SECOND);
    assert_eq!(world.states(JobState::Succeeded), 1, "the other job has gone");
    assert!(world.waiting.contains_key(&1) || world.held.contains_key(&1), "nothing is lost");
    world.bad_key = None;
    world.run(1_200 * SECOND);
    assert_eq!(world.states(JobState::Succeeded), 2, "a probe finds that the key works");
}

#[test]
fn deadlines_end_jobs_that_were_not_sent_in_time() {
    let limit = Limit::SlidingLog { limit: 5, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 5, per = \"10s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, 3);
    for pk in 0..20 {
        let mut envelope = plain(pk);
        envelope["deadline"] = paceline::clock::rfc3339(EPOCH_MS + 12_000).into();
        world.enqueue(pk, &envelope, Vec::new());
    }
    world.run(100 * SECOND);
    let sent: usize = world.accepted.iter().map(Vec::len).sum();
    assert_eq!(world.states(JobState::Succeeded), sent);
    assert_eq!(sent, 10, "two windows of five fit before the deadline");
    assert!(world.accepted[0].iter().all(|at| *at <= 12 * SECOND + 500 * MILLI), "never sent late");
    // Those which the core never took in are expired by the store's own pass.
    assert_eq!(world.states(JobState::Expired) + world.store.len() + sent, 20);
}

#[test]
fn draining_hands_everything_back() {
    let limit = Limit::SlidingLog { limit: 10, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 10, per = \"10s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, 9);
    for pk in 0..15 {
        world.enqueue(pk, &plain(pk), Vec::new());
    }
    world.run(SECOND);
    world.inform(Event::Drain);
    world.obey();
    world.run(60 * SECOND);
    assert!(world.core.is_idle());
    let ended = world.states(JobState::Succeeded);
    assert_eq!(ended, 10, "calls in flight finish");
    assert_eq!(world.store.len(), 5, "the others are back in the store");
}

#[test]
fn a_deadline_that_passes_during_a_refused_call_ends_the_job() {
    let limit = Limit::SlidingLog { limit: 100, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, 21);
    for pk in 0..50 {
        let mut envelope = plain(pk);
        envelope["deadline"] = paceline::clock::rfc3339(EPOCH_MS + 40).into();
        world.enqueue(pk, &envelope, vec![Fate::Status(429)]);
    }
    world.run(60 * SECOND);
    assert!(world.accepted[0].iter().all(|at| *at <= SECOND), "nothing is sent late");
    assert_eq!(world.states(JobState::Expired), 50);
}

#[test]
fn a_deadline_that_passes_while_the_start_is_committed_is_not_sent() {
    let limit = Limit::SlidingLog { limit: 100, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }", "");
    for seed in seeds(20) {
        let mut world = World::new(&text, &limit, seed);
        for pk in 0..40 {
            let mut envelope = plain(pk);
            envelope["delivery"] = "at_most_once".into();
            envelope["deadline"] = paceline::clock::rfc3339(EPOCH_MS + 12).into();
            world.enqueue(pk, &envelope, Vec::new());
        }
        world.run(10 * SECOND);
        let late = world.departed.iter().filter(|at| **at >= 12 * MILLI).count();
        assert_eq!(late, 0, "seed {seed}: nothing is sent late");
        assert!(!world.departed.is_empty() && world.departed.len() < 40, "seed {seed}: both happen");
    }
}

#[test]
fn without_the_lease_nothing_stays_in_hand_and_with_it_all_goes_on() {
    let limit = Limit::SlidingLog { limit: 20, per: Duration::from_secs(1) };
    let text = config(1, "{ requests = 20, per = \"1s\", algorithm = \"sliding_window\" }", "");
    for seed in seeds(20) {
        let mut world = World::new(&text, &limit, seed);
        for pk in 0..200 {
            let fates = if pk % 10 == 0 { vec![Fate::Status(429), Fate::Status(429)] } else { Vec::new() };
            world.enqueue(pk, &plain(pk), fates);
        }
        // Claims, calls and commits are under way when it is lost.
        world.run(SECOND + 3 * MILLI);
        world.suspend();
        world.obey();
        world.run(20 * SECOND);
        assert!(world.core.is_idle(), "seed {seed}: {:?} in hand", world.core.counts());
        assert!(world.held.is_empty(), "seed {seed}");
        assert!(world.states(JobState::Succeeded) < 200, "seed {seed}");
        let saved = world.core.save(GroupId(0), world.clock().mono);
        world.inherit(Some((&saved, Duration::ZERO, Since::Nothing)));
        world.run(3_000 * SECOND);
        world.assert_one_end_each(seed);
        assert_eq!(world.states(JobState::Succeeded), 200, "seed {seed}");
    }
}

/// A limit in cost units takes what the answer says in place of the estimate, up and down, and of absurd words no more
/// than a whole period. (Calls on their way together were let go by their estimates: here it is one at a time.)
#[test]
fn the_true_cost_takes_the_place_of_the_estimate() {
    let anything = Limit::SlidingLog { limit: 1_000_000, per: Duration::from_secs(1) };
    let limit = "{ cost = 1000, per = \"10s\", algorithm = \"sliding_window\" }";
    let text = config(1, limit, "limits = [ { concurrency = 1 } ]");
    let per_window = |cost: Option<u64>| {
        let mut world = World::new(&text, &anything, 7);
        world.work = Lognormal::ms(1, 2);
        for pk in 0..400 {
            let mut envelope = plain(pk);
            envelope["cost"] = 100.into();
            world.enqueue(pk, &envelope, Vec::new());
            world.true_costs.extend(cost.map(|cost| (pk, cost)));
        }
        world.run(65 * SECOND);
        let sent = world.accepted[0].iter().filter(|at| (10 * SECOND..60 * SECOND).contains(at)).count();
        sent as f64 / 5.0
    };
    for (cost, range) in [
        (None, 9.0..=10.0),
        (Some(20), 42.0..=46.0),
        (Some(0), 48.0..=f64::MAX),
        (Some(500), 1.8..=2.0),
        (Some(1 << 48), 0.8..=1.0),
    ] {
        let sent = per_window(cost);
        assert!(range.contains(&sent), "{cost:?}: {sent} a window");
    }
}
