//! Every rule of it, and what it answers at the edges.

use std::time::Duration;

use super::super::ask::{COMPARED, Routes};
use super::super::signal::Family;
use super::super::{Acquire, KeySpec, Pool, PoolSpec};
use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// So many milliseconds after it began.
fn at(ms: u64) -> Time {
    Time::from_nanos(1_000 * SECOND + ms * MS)
}

fn new() -> Probe {
    Probe::new(Search::new())
}

/// Sent then; so many calls were over when it was booked.
fn flight(sent: Time, over_before: u64) -> Flight {
    let freed = [0; COMPARED];
    Flight { key: KeyId(0), routes: Routes::NONE, cost: 1, sent, answered: None, freed, over_before, probe: false }
}

/// A call is booked and leaves; returns how many were over.
fn leave(probe: &mut Probe, now: Time) -> u64 {
    let over_before = probe.book(now);
    probe.departed(now);
    over_before
}

fn send(probe: &mut Probe, now: Time) -> Flight {
    let over_before = leave(probe, now);
    flight(now, over_before)
}

fn accept(probe: &mut Probe, flight: &Flight, now: Time) {
    assert_eq!(probe.answered(flight, now, None), (None, 0));
}

/// How long nothing but a try may be sent, in milliseconds.
fn refuse(probe: &mut Probe, flight: &Flight, now: Time, retry_after: Option<Duration>) -> u64 {
    let signal = Signal { limited: true, retry_after, ..Signal::default() };
    probe.answered(flight, now, Some(&signal)).0.expect("a wait") / MS
}

/// Ten calls in ten seconds, a refusal, and a call that is accepted again: one a second is found, 0.7 used.
fn found() -> Probe {
    let mut probe = new();
    for second in 0..10 {
        let call = send(&mut probe, at(second * 1_000));
        accept(&mut probe, &call, at(second * 1_000 + 10));
    }
    let call = send(&mut probe, at(9_400));
    assert_eq!(refuse(&mut probe, &call, at(9_500), None), 500);
    let call = send(&mut probe, at(10_000));
    accept(&mut probe, &call, at(10_010));
    assert_eq!(probe.search.found(), Some(1.0));
    probe
}

fn is_open(probe: &Probe, now: Time) -> bool {
    probe.slot(now).is_open(now)
}

#[test]
fn few_calls_are_open_at_first_and_one_more_after_a_while_without_an_answer() {
    let mut probe = new();
    for _ in 0..4 {
        assert!(is_open(&probe, at(0)));
        probe.book(at(0));
    }
    probe.grown_at = at(0);
    assert_eq!(probe.slot(at(0)), Slot::answered_by(at(250)));
    probe.book(at(250));
    assert_eq!((probe.open_most(), probe.slot(at(250))), (Some(5), Slot::answered_by(at(500))));
}

#[test]
fn answers_let_more_be_open_at_most_twice_as_many_in_a_tenth_of_a_second() {
    let mut probe = new();
    let mut calls: Vec<Flight> = (0..4).map(|_| send(&mut probe, at(0))).collect();
    let mut grow = |probe: &mut Probe, ms| {
        for _ in 0..30 {
            accept(probe, &calls.remove(0), at(ms));
            while probe.open < probe.open_most().expect("slow start") {
                calls.push(send(probe, at(ms)));
            }
        }
        probe.open_most()
    };
    assert_eq!(grow(&mut probe, 1), Some(8));
    assert_eq!(grow(&mut probe, 100), Some(8));
    assert_eq!(grow(&mut probe, 101), Some(16));
    assert_eq!(probe.grown_at, at(101));
}

#[test]
fn answers_to_fewer_than_half_of_what_may_be_open_let_no_more_be_open() {
    let mut probe = new();
    let call = send(&mut probe, at(0));
    accept(&mut probe, &call, at(1));
    assert_eq!(probe.open_most(), Some(4));
    let calls = [send(&mut probe, at(2)), send(&mut probe, at(2))];
    accept(&mut probe, &calls[0], at(3));
    assert_eq!(probe.open_most(), Some(5));
}

#[test]
fn while_calls_are_refused_one_at_a_time_tries_after_waits_that_grow() {
    let mut probe = new();
    let calls: Vec<Flight> = (0..3).map(|_| send(&mut probe, at(0))).collect();
    assert_eq!(refuse(&mut probe, &calls[0], at(5), None), 500);
    assert!(probe.is_refused() && is_open(&probe, at(5)), "the pool waits, and then one tries");
    assert_eq!(refuse(&mut probe, &calls[1], at(10), None), 500);
    let call = send(&mut probe, at(500));
    assert_eq!(probe.slot(at(500)), Slot::answered_by(Time::MAX));
    accept(&mut probe, &calls[2], at(600));
    assert!(!is_open(&probe, at(600)), "one that left before says nothing");
    assert_eq!(refuse(&mut probe, &call, at(4_005), None), 1_000);
    assert!(is_open(&probe, at(4_005)));
    let call = send(&mut probe, at(4_005));
    assert_eq!(refuse(&mut probe, &call, at(8_005), Some(Duration::from_secs(1))), 2_000, "what is told is a floor");
    let call = send(&mut probe, at(8_005));
    assert_eq!(refuse(&mut probe, &call, at(9_000), Some(Duration::from_secs(7))), 7_000);
    let call = send(&mut probe, at(9_000));
    assert_eq!(refuse(&mut probe, &call, at(86_400_000), None), 600_000);
    assert_eq!((probe.refusals, probe.refused_at), (6, Some(at(86_400_000))));
}

#[test]
fn a_try_that_ends_without_an_answer_or_was_not_sent_is_followed_by_another() {
    let mut probe = new();
    let calls: Vec<Flight> = (0..2).map(|_| send(&mut probe, at(0))).collect();
    refuse(&mut probe, &calls[0], at(10), None);
    let first = send(&mut probe, at(510));
    probe.lost(calls[1].sent, at(600));
    assert!(!is_open(&probe, at(600)), "that one did not try");
    probe.lost(first.sent, at(700));
    assert!(is_open(&probe, at(700)));
    let second = send(&mut probe, at(700));
    assert!(!is_open(&probe, at(700)));
    probe.unbook(second.sent, at(701));
    assert!(is_open(&probe, at(701)));
    // Booked in the very moment of the refusal.
    let mut probe = new();
    let call = send(&mut probe, at(0));
    refuse(&mut probe, &call, at(10), None);
    leave(&mut probe, at(10));
    probe.lost(at(10), at(20));
    assert!(is_open(&probe, at(20)));
}

#[test]
fn what_was_accepted_between_two_refusals_is_the_rate() {
    let probe = found();
    assert!(!probe.is_refused());
    assert_eq!((probe.search.phase(), probe.search.span(), probe.open_most()), (Phase::Found, 10 * SECOND, None));
    // Spaced from the call that was accepted again, of which the answer came 10 ms later.
    assert_eq!(probe.slot(at(10_010)), Slot::at(at(11_418).plus(571_428)));
}

#[test]
fn a_long_wait_for_the_first_call_that_is_accepted_again_tells_that_windows_are_counted() {
    for (waits_ms, phase) in [(5_000, Phase::Found), (1_000, Phase::Settled)] {
        let mut probe = found();
        for ms in (11_500..=21_500).step_by(1_000) {
            let call = send(&mut probe, at(ms));
            accept(&mut probe, &call, at(ms + 10));
        }
        let call = send(&mut probe, at(22_000));
        refuse(&mut probe, &call, at(22_000), None);
        let call = send(&mut probe, at(22_000 + waits_ms));
        accept(&mut probe, &call, at(22_010 + waits_ms));
        assert_eq!(probe.search.phase(), phase);
    }
}

#[test]
fn a_refusal_of_a_call_that_left_before_others_were_accepted_again_is_an_old_story() {
    let mut probe = found();
    let old = flight(at(9_990), 0);
    assert_eq!(refuse(&mut probe, &old, at(10_020), None), 0);
    assert_eq!(refuse(&mut probe, &old, at(10_020), Some(Duration::from_secs(2))), 2_000);
    assert!(!probe.is_refused());
    // The one that was accepted again, or any after it, is none.
    assert_eq!(refuse(&mut probe, &flight(at(10_000), 0), at(10_020), None), 500);
    assert!(probe.is_refused());
}

#[test]
fn a_refusal_that_answers_explain_teaches_nothing() {
    let mut probe = new();
    let call = send(&mut probe, at(0));
    let reading = |remaining, resets_in| Reading {
        remaining: Some(remaining),
        resets_in: Some(Duration::from_secs(resets_in)),
        ..Reading::of(Unit::Requests, Family::XRateLimit)
    };
    let signal = Signal { limited: true, readings: vec![reading(0, 3), reading(7, 9)], ..Signal::default() };
    assert_eq!(probe.answered(&call, at(0), Some(&signal)).0, Some(3 * SECOND));
    assert!(!probe.is_refused());
    let signal = Signal { limited: true, readings: vec![reading(7, 9)], ..Signal::default() };
    let call = send(&mut probe, at(1));
    assert_eq!(probe.answered(&call, at(1), Some(&signal)).0, Some(500 * MS));
    assert!(probe.is_refused());
}

#[test]
fn a_pause_ends_a_cycle_and_calls_that_are_open_last_through_it() {
    let mut probe = new();
    let call = send(&mut probe, at(0));
    accept(&mut probe, &call, at(0));
    leave(&mut probe, at(1_000));
    assert_eq!((probe.cycle.began, probe.cycle.accepted), (Some(at(0)), 1), "a second is no pause");
    leave(&mut probe, at(2_001));
    assert_eq!(probe.cycle.began, Some(at(0)), "one is open");
    probe.lost(at(1_000), at(2_001));
    probe.lost(at(2_001), at(2_001));
    leave(&mut probe, at(3_002));
    assert_eq!((probe.cycle.began, probe.cycle.accepted), (Some(at(3_002)), 0));
    // At a slow rate two calls' time.
    let mut probe = found();
    let gap = probe.search.gap().expect("a rate");
    leave(&mut probe, at(10_000).plus(2 * gap));
    assert_eq!(probe.cycle.began, Some(at(10_000)));
    probe.lost(at(0), at(0));
    leave(&mut probe, at(10_000).plus(4 * gap + 1));
    assert_eq!(probe.cycle.began, Some(at(10_000).plus(4 * gap + 1)));
}

#[test]
fn a_long_cycle_fades() {
    let mut probe = new();
    probe.departed(at(0));
    for second in 0..=1_200 {
        probe.accepted(at(second * 1_000), at(second * 1_000), false);
    }
    assert_eq!((probe.cycle.began, probe.cycle.accepted), (Some(at(0)), 1_201));
    probe.accepted(at(1_200_001), at(1_200_001), false);
    assert_eq!((probe.cycle.began, probe.cycle.accepted), (Some(at(600_000).plus(MS / 2)), 601));
    // Of before it began.
    probe.accepted(at(600_000), at(1_200_002), false);
    assert_eq!(probe.cycle.accepted, 601);
}

#[test]
fn a_call_that_was_refused_after_all_is_not_counted_as_accepted() {
    let mut probe = found();
    for ms in [11_500, 13_000] {
        let call = send(&mut probe, at(ms));
        accept(&mut probe, &call, at(ms + 10));
    }
    assert_eq!(probe.cycle.accepted, 3);
    assert_eq!(probe.refused_after_all(at(13_000), at(13_020), None), 500 * MS);
    assert!(probe.is_refused());
    assert_eq!((probe.cycle.accepted, probe.cycle.began), (2, Some(at(10_000))));
    // Of before this cycle: it took nothing from it.
    let mut probe = found();
    assert_eq!(probe.refused_after_all(at(9_000), at(10_020), None), 0);
    assert_eq!(probe.cycle.accepted, 1);
}

#[test]
fn a_try_that_was_refused_after_all_ends_no_refusal() {
    let mut probe = found();
    probe.refused_after_all(at(10_000), at(10_020), None);
    assert_eq!((probe.is_refused(), probe.search.phase(), probe.cycle.accepted), (true, Phase::SlowStart, 10));
    let call = send(&mut probe, at(11_000));
    accept(&mut probe, &call, at(11_010));
    assert_eq!(probe.search.found(), Some(10.0 / 11.0));
}

#[test]
fn what_was_another_refusal_is_forgotten_with_its_cycle() {
    let mut probe = new();
    let calls: Vec<Flight> = (0..2).map(|_| send(&mut probe, at(0))).collect();
    accept(&mut probe, &calls[0], at(10));
    probe.excuse();
    assert_eq!((probe.cycle.began, probe.cycle.accepted), (Some(at(0)), 1), "nothing was refused");
    refuse(&mut probe, &calls[1], at(20), None);
    probe.excuse();
    assert!(!probe.is_refused() && is_open(&probe, at(20)));
    assert_eq!((probe.cycle.began, probe.cycle.accepted), (None, 0));
}

#[test]
fn calls_keep_their_distance_and_one_that_was_not_sent_gives_its_place_back() {
    let mut probe = found();
    let gap = probe.search.gap().expect("a rate");
    assert_eq!(probe.slot(at(20_000)), Slot::at(at(9_990).plus(gap)));
    probe.book(at(20_000));
    assert_eq!(probe.next, at(19_990).plus(gap), "up to 10 ms of lateness are made up for");
    probe.unbook(at(20_000), at(20_000));
    assert_eq!((probe.next, probe.open), (at(19_990), 0));
    probe.book(at(20_000));
    probe.departed(at(20_300));
    assert_eq!(probe.next, at(20_290).plus(gap), "late by more");
}

#[test]
fn calls_are_counted_as_booked_and_as_over() {
    let mut probe = new();
    assert_eq!((probe.book(at(0)), probe.book(at(0)), probe.book(at(0)), probe.book(at(0))), (0, 0, 0, 0));
    probe.departed(at(0));
    assert_eq!((probe.open, probe.booked), (4, 4));
    accept(&mut probe, &flight(at(0), 0), at(1));
    probe.lost(at(0), at(1));
    assert_eq!((probe.open, probe.booked, probe.over), (2, 4, 2));
    probe.unbook(at(0), at(1));
    assert_eq!((probe.open, probe.booked, probe.over), (1, 3, 2));
    refuse(&mut probe, &flight(at(0), 0), at(2), None);
    assert_eq!((probe.open, probe.booked, probe.over), (0, 2, 2));
    assert_eq!(probe.book(at(500)), 2);
}

#[test]
fn what_was_found_outlives_the_process_and_is_used_more_slowly_after_a_crash() {
    assert!(new().saved(at(0)).is_none());
    let mut probe = found();
    probe.refused_at = Some(at(9_500));
    let saved = probe.saved(at(10_500)).expect("it found something");
    assert_eq!((saved.rate, saved.found, saved.span, saved.settled), (700_000, 1_000_000, 10_000_000, false));
    // Next is at 11,418.571428.
    assert_eq!((saved.debt, saved.refused_ago), (918_572, Some(1_000_000)));

    let settled = SavedProbe { rate: 980_000, settled: true, ..saved };
    let orderly = Probe::restored(&settled, 500 * MS, Since::Nothing, at(60_000));
    assert_eq!((orderly.search.phase(), orderly.search.rate()), (Phase::Settled, Some(0.98)));
    assert_eq!(orderly.next, at(60_418).plus(572_000));
    assert_eq!(orderly.refused_at, Some(at(58_500)));
    let crash = Since::AtMost { calls: 1, open: 1, within: Duration::from_secs(1) };
    let crashed = Probe::restored(&settled, 500 * MS, crash, at(60_000));
    assert_eq!((crashed.search.phase(), crashed.search.rate()), (Phase::Found, Some(0.7)));
    assert_eq!(crashed.next, at(60_000).plus(crashed.search.gap().expect("a rate")));
    let unsettled = Probe::restored(&saved, 0, Since::Nothing, at(60_000));
    assert_eq!(unsettled.search.phase(), Phase::Found);
}

#[test]
fn a_refusal_that_is_not_over_yet_tells_a_rate_too() {
    let mut probe = new();
    for _ in 0..2 {
        let call = send(&mut probe, at(0));
        accept(&mut probe, &call, at(10));
    }
    assert!(probe.saved(at(4_000)).is_none(), "nothing was refused");
    let call = send(&mut probe, at(1_000));
    refuse(&mut probe, &call, at(1_000), None);
    let saved = probe.saved(at(4_000)).expect("two in four seconds");
    assert_eq!((saved.rate, saved.found, saved.span, saved.settled), (500_000, 500_000, 4_000_000, false));
    let mut probe = new();
    let call = send(&mut probe, at(0));
    refuse(&mut probe, &call, at(1_000), None);
    assert!(probe.saved(at(4_000)).is_none(), "nothing was accepted");
}

#[test]
fn no_more_is_allowed_than_could_be_let_go() {
    assert_eq!(new().allowance(SECOND, at(0)), u64::MAX);
    let mut probe = found();
    let gap = probe.search.gap().expect("a rate");
    // Seven in ten seconds, and those that a step up adds.
    assert_eq!(probe.allowance(10 * SECOND, probe.next), 2 * 7 + 2);
    assert_eq!(probe.allowance(gap - CATCH_UP - 1, probe.next), 2);
    assert_eq!(probe.allowance(gap - CATCH_UP, probe.next), 4);
    let call = send(&mut probe, at(12_000));
    refuse(&mut probe, &call, at(12_000), None);
    assert_eq!(probe.allowance(10 * SECOND, at(12_000)), 4);
}

#[test]
fn a_permit_that_is_not_used_gives_its_place_back() {
    let key = KeySpec { label: "k".to_owned(), weight: 1, budget: None };
    let spec = PoolSpec { keys: vec![key], ..Default::default() };
    let mut pool = Pool::new(&spec, Time::ZERO).expect("a pool");
    let now = at(0);
    let acquire = |pool: &mut Pool| match pool.acquire(&Default::default(), now) {
        Acquire::Granted(permit) => Some(permit),
        _ => None,
    };
    let permits: Vec<Permit> = std::iter::from_fn(|| acquire(&mut pool)).collect();
    assert_eq!(permits.len(), 5);
    for permit in permits {
        pool.abandon(permit, now);
        let again = acquire(&mut pool).expect("its place");
        pool.abandon(again, now);
    }
    assert_eq!(pool.bank.probe(KeyId(0)).map(|probe| (probe.open, probe.booked)), Some((0, 0)));
}
