//! Every rule of it, and what it answers at the edges.

use super::*;

const SECOND: u64 = 1_000_000_000;

fn at(seconds: u64) -> Time {
    Time::from_nanos((1_000 + seconds) * SECOND)
}

fn lesson(accepted: u64, took: u64, waited: u64) -> Lesson {
    Lesson { accepted, took: took * SECOND, waited: waited * SECOND, tried: false }
}

/// A hundred calls in ten seconds, then a refusal: ten a second.
fn found() -> Search {
    let mut search = Search::new();
    search.refused(lesson(100, 10, 0), at(0));
    search
}

/// The rate is used for as long as a step takes.
fn step(search: &mut Search, seconds: u64, now: &mut Time) {
    let calls = (search.rate().expect("a rate") * seconds as f64) as u64;
    (0..calls).for_each(|_| search.departed());
    *now = now.plus(seconds * SECOND);
    search.accepted(*now);
}

/// And not refused for ten minutes.
fn settled() -> (Search, Time) {
    let (mut search, mut now) = (found(), at(0));
    (0..5).for_each(|_| step(&mut search, 10, &mut now));
    assert_eq!(search.phase(), Phase::Settled);
    (search, now.plus(AGAIN_AFTER))
}

/// Now that it is probed again.
fn again() -> (Search, Time) {
    let (mut search, mut now) = settled();
    search.idled(now.minus(10 * SECOND));
    now = now.minus(10 * SECOND);
    step(&mut search, 10, &mut now);
    assert_eq!(search.phase(), Phase::Again);
    (search, now)
}

#[track_caller]
fn goes(search: &Search, rate: f64) {
    let now = search.rate().expect("a rate");
    assert!((now / rate - 1.0).abs() < 1e-9, "{now} a second, and not {rate}");
}

#[test]
fn the_first_refusal_tells_a_rate_and_what_is_refused_from_the_first_call_on_tells_none() {
    let mut search = Search::new();
    search.refused(lesson(0, 10, 10), at(0));
    assert_eq!((search.phase(), search.rate(), search.found(), search.gap()), (Phase::SlowStart, None, None, None));
    let search = found();
    assert_eq!((search.phase(), search.found(), search.span()), (Phase::Found, Some(10.0), 10 * SECOND));
    goes(&search, 7.0);
    assert_eq!(search.gap(), Some(142_857_142));
    let mut search = Search::new();
    search.refused(Lesson { accepted: 4, took: 3, waited: 0, tried: false }, at(0));
    assert_eq!(search.found(), Some(4_000.0), "no cycle is shorter than a millisecond");
}

#[test]
fn it_climbs_in_steps_as_long_as_a_cycle_until_nearly_all_of_it_is_used() {
    let (mut search, mut now) = (found(), at(0));
    for rate in [7.7, 8.4, 9.1, 9.8] {
        step(&mut search, 10, &mut now);
        goes(&search, rate);
        assert_eq!((search.phase(), search.lasting(), search.again_at()), (Phase::Found, None, None));
    }
    step(&mut search, 10, &mut now);
    goes(&search, 9.8);
    assert_eq!(search.phase(), Phase::Settled);
    assert_eq!((search.lasting(), search.again_at()), (search.rate(), Some(now.plus(AGAIN_AFTER))));
}

#[test]
fn a_step_that_is_not_over_or_hardly_used_changes_nothing() {
    let mut search = found();
    (0..70).for_each(|_| search.departed());
    search.accepted(at(10).minus(1));
    goes(&search, 7.0);
    search.accepted(at(10));
    goes(&search, 7.7);
    // 0.7 of 7.7 a second: 54 of 77 calls.
    (0..53).for_each(|_| search.departed());
    search.accepted(at(20));
    goes(&search, 7.7);
    (0..54).for_each(|_| search.departed());
    search.accepted(at(29));
    goes(&search, 7.7);
    search.accepted(at(30));
    goes(&search, 8.4);
}

#[test]
fn a_step_takes_five_seconds_to_two_minutes_and_half_a_minute_when_probing_again() {
    for (span, length) in [(1, 5), (30, 30), (1_000, 120)] {
        let mut search = Search::new();
        search.refused(lesson(span * 100, span, 0), at(0));
        (0..100 * length).for_each(|_| search.departed());
        search.accepted(at(length).minus(1));
        goes(&search, 70.0);
        search.accepted(at(length));
        goes(&search, 77.0);
    }
    let (mut search, mut now) = again();
    step(&mut search, 29, &mut now);
    goes(&search, 9.8 * 1.04);
    step(&mut search, 1, &mut now);
    goes(&search, 9.8 * 1.04 * 1.04);
}

#[test]
fn a_refusal_on_the_way_up_goes_back_to_the_last_rate_that_was_kept() {
    let (mut search, mut now) = (found(), at(0));
    step(&mut search, 10, &mut now);
    step(&mut search, 10, &mut now);
    goes(&search, 8.4);
    // A tenth of the cycle: not yet a window's rest.
    search.refused(lesson(80, 10, 1), now);
    assert_eq!((search.phase(), search.lasting()), (Phase::Settled, search.rate()));
    goes(&search, 7.7);
    assert!((search.found().expect("found") - 7.7 / 0.98).abs() < 1e-9);
}

#[test]
fn a_long_wait_on_the_way_up_or_no_rate_that_was_kept_begins_anew() {
    let (mut search, mut now) = (found(), at(0));
    step(&mut search, 10, &mut now);
    let climbing = search.clone();
    search.refused(lesson(100, 20, 3), now);
    assert_eq!((search.phase(), search.found(), search.span()), (Phase::Found, Some(5.0), 20 * SECOND));
    goes(&search, 3.5);
    // More than the rate that was refused is not found.
    let mut search = climbing.clone();
    search.refused(lesson(400, 20, 3), now);
    goes(&search, 0.7 * 0.97 * 7.7);
    // Nothing accepted: nothing measured either.
    let mut search = climbing;
    search.refused(lesson(0, 20, 20), now);
    goes(&search, 0.7 * 0.97 * 7.7);
    // The first step was refused at once.
    let mut search = found();
    search.refused(lesson(60, 10, 0), now);
    goes(&search, 0.7 * 6.0);
    assert_eq!(search.phase(), Phase::Found);
}

#[test]
fn what_was_found_by_a_wait_that_may_have_been_too_long_is_probed_again_at_once() {
    let (mut search, mut now) = (Search::new(), at(0));
    search.refused(Lesson { tried: true, ..lesson(100, 10, 0) }, now);
    (0..5).for_each(|_| step(&mut search, 10, &mut now));
    assert_eq!(search.phase(), Phase::Again);
    goes(&search, 9.8 * 1.04);
    search.refused(lesson(100, 10, 0), now);
    assert_eq!(search.phase(), Phase::Settled);
    goes(&search, 9.8);
}

#[test]
fn refusals_after_it_has_settled_cut_it_down_deeper_each_time_that_they_follow_soon() {
    let (mut search, now) = settled();
    let again_at = search.again_at();
    // As measured, but by two in a hundred at least and by the cut at most.
    search.refused(lesson(99, 10, 0), now);
    goes(&search, 0.98 * 9.8);
    assert_eq!(search.again_at(), again_at, "trying for more is not put off");
    let mut rate = 0.98 * 9.8;
    for (seconds, cut) in [(599, 0.08), (1_198, 0.16), (1_797, 0.3), (2_396, 0.3), (2_996, 0.04), (3_000, 0.08)] {
        // So few between two of them that they are no chance.
        search.refused(lesson(2, 10, 0), now.plus(seconds * SECOND));
        rate *= 1.0 - cut;
        goes(&search, rate);
        assert_eq!(search.phase(), Phase::Settled);
    }
    let (mut search, now) = settled();
    search.refused(lesson(95, 10, 0), now);
    goes(&search, 9.5);
}

#[test]
fn refusals_that_are_no_rarer_when_it_is_slower_are_chance_and_leave_the_rate_alone() {
    let (mut search, mut now) = settled();
    let mut refuse = |search: &mut Search, accepted, tried| {
        now = now.plus(60 * SECOND);
        search.refused(Lesson { tried, ..lesson(accepted, 1_000, 0) }, now);
    };
    // Down by 4, 8 and 16 in a hundred; the next cut would make it less than seven tenths.
    for rate in [0.96, 0.8832, 0.741_888] {
        refuse(&mut search, 1_000, false);
        goes(&search, 9.8 * rate);
    }
    let slowed = search.clone();
    refuse(&mut search, 2_001, false);
    goes(&search, 9.8);
    refuse(&mut search, 900, false);
    goes(&search, 9.8);
    // Refused again when it was tried: a limit, after all.
    refuse(&mut search, 900, true);
    assert!(search.rate() < Some(9.7));
    // Rarer: going slower did help.
    let mut search = slowed.clone();
    refuse(&mut search, 2_002, false);
    goes(&search, 9.8 * 0.741_888 * 0.7);
    // Often: no provider is overloaded so much.
    let mut search = slowed;
    (0..24).for_each(|_| refuse(&mut search, 0, false));
    assert!(search.rate() < Some(1.0));
}

#[test]
fn probing_again_goes_up_in_small_steps_and_then_in_larger_ones() {
    let (mut search, mut now) = again();
    let mut rate = 9.8 * 1.04;
    for up in [1.04, 1.04, 1.04, 1.08, 1.16, 1.32, 1.64, 2.0, 2.0, 2.0] {
        step(&mut search, 30, &mut now);
        rate *= up;
        goes(&search, rate);
    }
    assert!((search.lasting().expect("a rate") - 9.8).abs() < 1e-9, "it lasts at the one before");
}

#[test]
fn a_refusal_while_probing_again_goes_back_two_steps_and_puts_the_next_time_off_if_nothing_was_gained() {
    let (mut search, mut now) = again();
    (0..3).for_each(|_| step(&mut search, 30, &mut now));
    // The step before may have begun what is refused now.
    search.refused(lesson(100, 10, 0), now);
    goes(&search, 9.8 * 1.04 * 1.04);
    assert_eq!(search.again_at(), Some(now.plus(AGAIN_AFTER)));
    // Half of the usual cut.
    let mut cut = search.clone();
    cut.refused(lesson(2, 10, 0), now.plus(SECOND));
    goes(&cut, 9.8 * 1.04 * 1.04 * 0.96);
    for times in [2, 4, 8, 8] {
        let base = search.rate().expect("a rate");
        now = search.again_at().expect("settled").minus(10 * SECOND);
        search.idled(now);
        step(&mut search, 10, &mut now);
        assert_eq!(search.phase(), Phase::Again);
        search.refused(lesson(100, 10, 0), now);
        goes(&search, base);
        assert_eq!(search.again_at(), Some(now.plus(times * AGAIN_AFTER)));
    }
}

#[test]
fn what_another_process_had_found_is_used_at_once_only_where_it_is_sure() {
    let search = Search::resumed(9.0, 10.0, 20 * SECOND, true, at(0));
    goes(&search, 9.0);
    assert_eq!((search.phase(), search.span()), (Phase::Settled, 20 * SECOND));
    assert_eq!(search.again_at(), Some(at(0).plus(AGAIN_AFTER)));
    goes(&Search::resumed(12.0, 10.0, 0, true, at(0)), 10.0);
    let mut search = Search::resumed(9.0, 10.0, 20 * SECOND, false, at(0));
    goes(&search, 7.0);
    assert_eq!((search.phase(), search.span()), (Phase::Found, 20 * SECOND));
    let mut now = at(0);
    step(&mut search, 20, &mut now);
    goes(&search, 7.7);
}

#[test]
fn no_rate_is_zero_or_faster_than_a_clock() {
    assert_eq!(sane(0.0), SLOWEST);
    assert_eq!(sane(f64::NAN), SLOWEST);
    assert_eq!(sane(f64::INFINITY), SLOWEST);
    assert_eq!(sane(1e12), FASTEST);
    assert_eq!(sane(5.0), 5.0);
}
