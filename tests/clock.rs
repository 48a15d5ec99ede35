//! Calendar quotas, and a wall clock that jumps: the dispatcher's core under virtual time, judged by the calendar of
//! the provider, whose clock does not jump.

mod virtual_time;

use std::sync::Arc;
use std::time::Duration;

use paceline::clock::parse_rfc3339;
use paceline::dispatch::core::Core;
use paceline::job::JobState;
use paceline::pace::{GroupId, Since};
use paceline::sim::{Limit, Lognormal};
use virtual_time::*;

const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const HOUR_MS: i64 = 3_600_000;
const QUOTA: usize = 50;
/// `EPOCH_MS` is midnight there.
const MIDNIGHT: &str = "00:00 -08:00";

/// A provider that lets everything in: what it counted is judged afterwards.
fn world(limit: &str, seed: u64) -> World {
    let anything = Limit::SlidingLog { limit: 1_000_000, per: Duration::from_secs(1) };
    let mut world = World::new(&config(1, limit, ""), &anything, seed);
    (world.claim_every, world.doze) = (3 * MINUTE, 3 * MINUTE);
    world.work = Lognormal::ms(400, 3_000);
    world
}

fn daily(seed: u64, jobs: usize) -> World {
    let mut world = world(&format!("{{ requests = {QUOTA}, per = \"1d\", resets = \"{MIDNIGHT}\" }}"), seed);
    enqueue(&mut world, jobs);
    world
}

fn enqueue(world: &mut World, jobs: usize) {
    for pk in 0..i64::try_from(jobs).unwrap() {
        world.enqueue(pk, &plain(pk), Vec::new());
    }
}

/// Calls that the provider counted in each of the periods that end then (the last one is open).
fn counted(world: &World, ends_ms: &[i64]) -> Vec<usize> {
    let mut counted = vec![0; ends_ms.len() + 1];
    for at in world.accepted.iter().flatten() {
        counted[ends_ms.partition_point(|end| *end <= world.true_ms(*at))] += 1;
    }
    counted
}

fn days(world: &World, days: i64) -> Vec<usize> {
    let ends: Vec<i64> = (1..days).map(|day| EPOCH_MS + day * 24 * HOUR_MS).collect();
    counted(world, &ends)
}

#[test]
fn every_day_is_used_wholly_and_never_more() {
    for seed in seeds(5) {
        let mut world = daily(seed, 5 * QUOTA);
        world.run(20 * DAY);
        world.assert_one_end_each(seed);
        assert_eq!(days(&world, 5), [QUOTA; 5], "seed {seed}");
    }
}

#[test]
fn days_of_23_and_25_hours_are_used_wholly_and_never_more() {
    for (from, ends) in [
        ("2026-10-31T07:00:00Z", ["2026-11-01T07:00:00Z", "2026-11-02T08:00:00Z", "2026-11-03T08:00:00Z"]),
        ("2026-03-07T08:00:00Z", ["2026-03-08T08:00:00Z", "2026-03-09T07:00:00Z", "2026-03-10T07:00:00Z"]),
    ] {
        let mut world = world("{ requests = 50, per = \"1d\", resets = \"00:00 America/Los_Angeles\" }", 1);
        world.epoch_ms = parse_rfc3339(from).unwrap();
        enqueue(&mut world, 4 * QUOTA);
        world.run(20 * DAY);
        assert_eq!(counted(&world, &ends.map(|end| parse_rfc3339(end).unwrap())), [QUOTA; 4], "{from}");
    }
}

#[test]
fn weeks_and_months_are_used_wholly_and_never_more() {
    let ends = ["2027-01-17T23:00:00Z", "2027-01-24T23:00:00Z"];
    let mut world = world("{ requests = 50, per = \"7d\", resets = \"monday 00:00 Europe/Berlin\" }", 1);
    enqueue(&mut world, 3 * QUOTA);
    world.run(60 * DAY);
    assert_eq!(counted(&world, &ends.map(|end| parse_rfc3339(end).unwrap())), [QUOTA; 3]);

    let ends = ["2027-02-01T00:00:00Z", "2027-03-01T00:00:00Z"];
    let mut world = self::world("{ cost = 50, per = \"1 month\", resets = \"00:00 UTC\" }", 1);
    enqueue(&mut world, 3 * QUOTA);
    world.run(100 * DAY);
    assert_eq!(counted(&world, &ends.map(|end| parse_rfc3339(end).unwrap())), [QUOTA; 3]);
}

/// Jumps in both directions, at moments that hurt: in the middle of a day, just before and just after midnight; for
/// good, for a while, and twice. The provider's clock goes on.
#[test]
fn a_wall_clock_that_jumps_exceeds_no_quota_and_stalls_nothing() {
    let moments = [30 * HOUR, DAY - 30 * MINUTE, DAY + 30 * MINUTE, DAY + MINUTE, 2 * DAY - SECOND];
    for by_ms in [HOUR_MS, -HOUR_MS, 24 * HOUR_MS, -24 * HOUR_MS, 7 * HOUR_MS, -11 * HOUR_MS, 400 * 24 * HOUR_MS] {
        for at in moments {
            for back_after in [None, Some(2 * HOUR), Some(3 * DAY)] {
                let mut world = daily(at ^ by_ms.unsigned_abs(), 6 * QUOTA);
                world.jumps.push((at, by_ms));
                world.jumps.extend(back_after.map(|after| (at + after, -by_ms)));
                world.run(30 * DAY);
                let case = format!("{by_ms} ms at {} min, back after {back_after:?}", at / MINUTE);
                world.assert_one_end_each(0);
                let counted = days(&world, 30);
                assert!(counted.iter().all(|calls| *calls <= QUOTA), "{case}: {counted:?}");
                let last = counted.iter().rposition(|calls| *calls > 0).unwrap();
                // An hour's doubt costs nothing that lasts; half a day's at most every second day.
                let most = if by_ms.unsigned_abs() % 86_400_000 <= 3_600_000 { 7 } else { 13 };
                assert!(last < most, "{case}: {counted:?}");
            }
        }
    }
}

/// Months differ in length, so that a clock that is a day off is a day off at their edges.
#[test]
fn a_wall_clock_that_is_a_day_off_exceeds_no_monthly_quota() {
    for by_ms in [24 * HOUR_MS, -24 * HOUR_MS, -HOUR_MS] {
        // Not longer than a clock is remembered.
        for (at, back) in [(3 * DAY, 33 * DAY), (16 * DAY, 18 * DAY), (17 * DAY + HOUR, 40 * DAY)] {
            let mut world = world("{ requests = 50, per = \"1 month\", resets = \"00:00 UTC\" }", 2);
            enqueue(&mut world, 3 * QUOTA);
            world.jumps = vec![(at, by_ms), (back, -by_ms)];
            world.run(100 * DAY);
            world.assert_one_end_each(2);
            let ends = ["2027-02-01T00:00:00Z", "2027-03-01T00:00:00Z", "2027-04-01T00:00:00Z"];
            let counted = counted(&world, &ends.map(|end| parse_rfc3339(end).unwrap()));
            assert_eq!(counted, [QUOTA, QUOTA, QUOTA, 0], "{by_ms} ms at {} h", at / HOUR);
        }
    }
}

/// The next process knows what the last one spent, and which wall clocks it saw.
#[test]
fn a_restart_in_the_middle_of_a_day_keeps_the_quota_whatever_the_clock_shows_then() {
    for by_ms in [0, HOUR_MS, -HOUR_MS, 24 * HOUR_MS, -24 * HOUR_MS] {
        for (at, pause) in
            [(30 * HOUR, MINUTE), (DAY - 10 * MINUTE, SECOND), (DAY + 10 * MINUTE, 5 * SECOND), (2 * DAY - HOUR, DAY)]
        {
            for since in [Since::Nothing, Since::AtMost { calls: 10, open: 10, within: Duration::from_secs(5) }] {
                let mut world = daily(at ^ pause, 8 * QUOTA);
                world.run(at);
                world.suspend();
                world.run(at + 2 * MINUTE);
                assert!(world.core.is_idle());
                let saved = world.core.save(GroupId(0), world.clock().mono);
                let saved = serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap();
                world.now += pause;
                world.jumps.push((world.now, by_ms));
                world.core = Core::new(Arc::clone(&world.provider), world.clock().mono).unwrap();
                world.inherit(Some((&saved, Duration::from_nanos(pause), since)));
                world.run(30 * DAY);
                world.assert_one_end_each(0);
                let counted = days(&world, 30);
                let case = format!("{by_ms} ms at {} min, {since:?}", at / MINUTE);
                assert!(counted.iter().all(|calls| *calls <= QUOTA), "{case}: {counted:?}");
                let last = counted.iter().rposition(|calls| *calls > 0).unwrap();
                assert!(last < 11, "{case}: {counted:?}");
            }
        }
    }
}

#[test]
fn what_was_saved_and_cannot_be_read_costs_the_rest_of_the_day() {
    let mut world = daily(1, 3 * QUOTA);
    world.run(HOUR);
    world.suspend();
    world.run(HOUR + 2 * MINUTE);
    world.inherit(None);
    world.run(10 * DAY);
    assert_eq!(days(&world, 3), [QUOTA; 3]);
}

/// Without a believable clock nothing is known of midnight: a call counts for longer than any day.
#[test]
fn a_clock_that_was_never_set_exceeds_no_quota() {
    for set_after in [HOUR, DAY + HOUR] {
        let mut world = daily(3, 4 * QUOTA);
        world.jumps = vec![(0, -EPOCH_MS), (set_after, EPOCH_MS)];
        world.run(30 * DAY);
        let counted = days(&world, 30);
        assert!(counted.iter().all(|calls| *calls <= QUOTA), "{counted:?}");
        let last = counted.iter().rposition(|calls| *calls > 0).unwrap();
        assert!(last < 6, "{counted:?}");
    }
}

/// More clocks than anybody can keep apart: still no overrun, and still not standing still.
#[test]
fn a_clock_that_jumps_all_the_time_exceeds_no_quota() {
    for seed in seeds(5) {
        let mut world = daily(seed, 4 * QUOTA);
        let mut dice = Dice(seed);
        let mut ahead_ms = 0;
        for n in 0..200 {
            let to_ms = i64::try_from(dice.below(48 * 3_600_000)).unwrap() - 24 * HOUR_MS;
            world.jumps.push((n * HOUR + dice.below(HOUR), to_ms - ahead_ms));
            ahead_ms = to_ms;
        }
        world.run(30 * DAY);
        world.assert_one_end_each(seed);
        let counted = days(&world, 30);
        assert!(counted.iter().all(|calls| *calls <= QUOTA), "seed {seed}: {counted:?}");
    }
}

/// Windows are paced by the monotonic clock alone: a jump makes nothing faster and nothing slower.
#[test]
fn a_jump_in_the_middle_of_traffic_changes_no_window() {
    for seed in seeds(5) {
        let run = |jumps: &[(u64, i64)]| {
            let mut world = busy(seed, jumps, 0);
            world.run(1_000 * SECOND);
            world.assert_one_end_each(seed);
            assert_eq!((world.rejected, world.states(JobState::Succeeded)), (0, 2_000), "seed {seed}: {jumps:?}");
            world.departed
        };
        let still = run(&[]);
        for by_ms in [HOUR_MS, -HOUR_MS, 24 * HOUR_MS, -24 * HOUR_MS] {
            assert!(run(&[(40 * SECOND, by_ms)]) == still, "seed {seed}: {by_ms} ms");
        }
    }
}

/// Jobs that wait for a backoff do so in the store, by the wall clock: where that is set back they wait for it, and
/// nobody else does.
#[test]
fn a_clock_that_is_set_back_delays_those_that_wait_and_nobody_else() {
    for seed in seeds(3) {
        let mut world = busy(seed, &[(40 * SECOND, -HOUR_MS)], 20);
        world.run(1_000 * SECOND);
        assert!(world.waiting.len() < 40, "seed {seed}: {} wait", world.waiting.len());
        assert_eq!(world.states(JobState::Succeeded) + world.waiting.len(), 2_000, "seed {seed}");
        (world.claim_every, world.doze) = (SECOND, 10 * SECOND);
        world.run(HOUR + 1_000 * SECOND);
        world.assert_one_end_each(seed);
        assert_eq!((world.rejected, world.states(JobState::Succeeded)), (0, 2_000), "seed {seed}");
    }
}

/// A hundred seconds of traffic at full use; every so-manieth call fails once.
fn busy(seed: u64, jumps: &[(u64, i64)], failing: i64) -> World {
    let limit = Limit::SlidingLog { limit: 20, per: Duration::from_secs(2) };
    let text = config(2, "{ requests = 20, per = \"2s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, seed);
    world.jumps = jumps.to_vec();
    for pk in 0..2_000 {
        let fails = failing > 0 && pk % failing == 0;
        world.enqueue(pk, &plain(pk), if fails { vec![Fate::Status(503)] } else { Vec::new() });
    }
    world
}

/// Deadlines and waits are times of the wall clock: who sets it forward brings them nearer, who sets it back does not
/// end a job early.
#[test]
fn deadlines_follow_the_wall_clock_and_the_rest_goes_on() {
    let limit = Limit::SlidingLog { limit: 5, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 5, per = \"10s\", algorithm = \"sliding_window\" }", "");
    for (by_ms, expired) in [(HOUR_MS, true), (-HOUR_MS, false), (24 * HOUR_MS, true), (-24 * HOUR_MS, false)] {
        let mut world = World::new(&text, &limit, 3);
        world.jumps.push((20 * SECOND, by_ms));
        for pk in 0..60 {
            let mut envelope = plain(pk);
            if pk % 2 == 0 {
                envelope["deadline"] = paceline::clock::rfc3339(EPOCH_MS + HOUR_MS / 2).into();
            }
            world.enqueue(pk, &envelope, Vec::new());
        }
        world.run(600 * SECOND);
        // Those which the core never took in are expired by the store's own pass; here it is handed all of them.
        world.assert_one_end_each(0);
        let (ended, late) = (world.states(JobState::Succeeded), world.states(JobState::Expired));
        assert_eq!(ended + late, 60, "{by_ms}");
        assert_eq!(late > 0, expired, "{by_ms}: {late} expired");
        let sent_before = world.accepted[0].iter().filter(|at| **at < 21 * SECOND).count();
        assert!(ended >= 30 && (!expired || ended <= 30 + sent_before), "{by_ms}: {ended} of 60, {sent_before} before");
    }
}
