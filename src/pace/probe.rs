//! A budget whose limits nobody declared: how fast it may go is found out, each budget for itself.
//!
//! Calls are first bounded by how many are open, more with each answer, so that a provider without any limit costs no
//! throughput. The first refusal tells a rate ([`search`](super::search)), kept from then on by even spacing. While
//! calls are refused one call at a time tries, after waits that grow with the time that has passed, so that a wait is
//! at most a quarter longer than needed. Limits that answers tell ([`told`](super::told)) come first: a refusal that
//! they explain teaches nothing.

use super::Time;
use super::ask::{Flight, KeyId, Permit};
use super::bank::Bank;
use super::saved::{SavedProbe, Since};
use super::search::{Lesson, Phase, Search};
use super::signal::{Reading, Signal, Unit};
use super::slot::Slot;
use super::time::nanos;
use super::told::{Call, Statement, Told};

/// Open calls at the start; one more with each answer …
const OPEN_AT_FIRST: u64 = 4;
/// … at most twice as many after so many nanoseconds, which bounds how many calls overrun a limit at once …
const DOUBLED_IN: u64 = 100_000_000;
/// … and one more after so many nanoseconds without: calls that hang hold nobody up for long.
const PATIENCE: u64 = 250_000_000;
/// A call may leave so many nanoseconds early if those before it were late.
const CATCH_UP: u64 = 10_000_000;
/// Nobody calling for so many nanoseconds (and for two calls' time) ends a cycle: nothing was refused in it.
const IDLE: u64 = 1_000_000_000;
/// While calls are refused one tries after so many nanoseconds …
const FIRST_WAIT: u64 = 500_000_000;
/// … then again after this part of the time since the first refusal …
const WAIT_PART: u64 = 4;
/// … but after this at the latest.
const LONGEST_WAIT: u64 = 600_000_000_000;
/// A cycle that lasts longer fades: half of it counts.
const FADES_AFTER: u64 = 1_200_000_000_000;

/// Calls are refused.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    since: Time,
    /// Whether calls that tried were refused again.
    tried: bool,
    /// A call is trying.
    trying: bool,
}

/// What was accepted since calls are accepted again.
#[derive(Clone, Copy, Debug, Default)]
struct Cycle {
    /// `None`: the next call begins it.
    began: Option<Time>,
    accepted: u64,
}

/// What was known before a call was accepted that turned out to be refused.
#[derive(Clone, Debug)]
struct Before {
    sent: Time,
    search: Search,
    cycle: Cycle,
    refusal: Refusal,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// Booked and not answered.
    open: u64,
    /// In slow start: open calls at most, when that was changed last, and how far it may grow until when.
    open_most: u64,
    grown_at: Time,
    doubled: (u64, Time),
    /// Calls booked, and over, ever.
    booked: u64,
    over: u64,
    /// Once a rate is known: the next call's time.
    next: Time,
    last_departure: Time,
    cycle: Cycle,
    refusal: Option<Refusal>,
    before: Option<Box<Before>>,
    pub search: Search,
    pub told: Told,
    pub refused_at: Option<Time>,
    /// Calls refused, ever.
    pub refusals: u64,
}

impl Probe {
    pub fn new(search: Search) -> Probe {
        Probe {
            open: 0,
            open_most: OPEN_AT_FIRST,
            grown_at: Time::ZERO,
            doubled: (OPEN_AT_FIRST * 2, Time::ZERO),
            booked: 0,
            over: 0,
            next: Time::ZERO,
            last_departure: Time::ZERO,
            cycle: Cycle::default(),
            refusal: None,
            before: None,
            search,
            told: Told::default(),
            refused_at: None,
            refusals: 0,
        }
    }

    pub fn slot(&self, now: Time) -> Slot {
        let own = match self.refusal {
            Some(Refusal { trying: true, .. }) => Slot::answered_by(Time::MAX),
            Some(_) => Slot::OPEN,
            None if self.search.phase() != Phase::SlowStart => Slot::at(self.next),
            None if self.open < self.open_most => Slot::OPEN,
            None => Slot::answered_by(self.grown_at.plus(PATIENCE)),
        };
        if self.told.is_some() { own.and(self.told.slot(now)) } else { own }
    }

    /// A permit is taken; returns how many calls were over by then.
    pub fn book(&mut self, now: Time) -> u64 {
        if self.open >= self.open_most && self.search.phase() == Phase::SlowStart && self.refusal.is_none() {
            self.open_most += 1;
            self.grown_at = now;
        }
        self.open += 1;
        self.booked += 1;
        if let Some(gap) = self.search.gap() {
            self.next = self.next.max(now.minus(CATCH_UP)).plus(gap);
        }
        if let Some(refusal) = &mut self.refusal {
            refusal.trying = true;
        }
        self.told.book(now);
        self.over
    }

    /// The permit was not used, or its call surely not sent.
    pub fn unbook(&mut self, booked: Time, now: Time) {
        self.open = self.open.saturating_sub(1);
        self.booked = self.booked.saturating_sub(1);
        if let Some(gap) = self.search.gap() {
            self.next = self.next.minus(gap);
        }
        self.no_try(booked);
        self.told.unbook(now);
    }

    pub fn departed(&mut self, at: Time) {
        let idle = self.search.gap().unwrap_or(0).saturating_mul(2).max(IDLE);
        if self.refusal.is_none() {
            if self.open <= 1 && at > self.last_departure.plus(idle) {
                self.cycle = Cycle::default();
                self.search.idled(at);
            }
            self.cycle.began.get_or_insert(at);
        }
        self.last_departure = self.last_departure.max(at);
        self.search.departed();
        self.keep_distance(at);
    }

    /// A call left as late as `at`: the next one keeps its distance from it.
    pub fn keep_distance(&mut self, at: Time) {
        if let Some(gap) = self.search.gap() {
            self.next = self.next.max(at.minus(CATCH_UP).plus(gap));
        }
    }

    /// A call ended without any answer.
    pub fn lost(&mut self, sent: Time, now: Time) {
        self.open = self.open.saturating_sub(1);
        self.over += 1;
        self.no_try(sent);
        self.told.ask_again(now);
    }

    fn no_try(&mut self, sent: Time) {
        if let Some(refusal) = self.refusal.as_mut().filter(|refusal| sent >= refusal.since) {
            refusal.trying = false;
        }
    }

    /// An answer came. Returns how long nothing but a try may be sent, and how many calls somebody else made.
    pub fn answered(&mut self, flight: &Flight, at: Time, signal: Option<&Signal>) -> (Option<u64>, u64) {
        let call = Call { sent: flight.sent, answered: at, over_before: flight.over_before, booked: self.booked };
        let statements: Vec<Statement> = signal.into_iter().flat_map(|s| &s.readings).filter_map(statement).collect();
        let foreign =
            if self.told.is_some() || !statements.is_empty() { self.told.answered(&statements, call) } else { 0 };
        let used = self.open.saturating_mul(2) >= self.open_most;
        self.open = self.open.saturating_sub(1);
        self.over += 1;
        match signal {
            Some(signal) if signal.limited => {
                let exhausted = |reading: &&Reading| reading.remaining.is_none_or(|left| left == 0);
                let reset = signal.readings.iter().filter(exhausted).filter_map(|r| r.resets_in).max();
                let explained = signal.readings.iter().any(|reading| reading.remaining == Some(0));
                let stated = signal.retry_after.or(reset).map(nanos);
                (Some(self.refused(flight.sent, at, stated, explained)), foreign)
            }
            _ => {
                self.accepted(flight.sent, at, used);
                (None, foreign)
            }
        }
    }

    fn accepted(&mut self, sent: Time, at: Time, used: bool) {
        if let Some(refusal) = self.refusal.filter(|refusal| sent >= refusal.since) {
            return self.recovered(refusal, sent, at);
        }
        if let Some(began) = self.cycle.began.filter(|began| sent >= *began) {
            self.cycle.accepted += 1;
            let lasts = at.as_nanos().saturating_sub(began.as_nanos());
            if lasts > FADES_AFTER {
                self.cycle = Cycle { began: Some(began.plus(lasts / 2)), accepted: self.cycle.accepted / 2 };
            }
        }
        if self.refusal.is_some() {
            return;
        }
        self.search.accepted(at);
        if used && self.search.phase() == Phase::SlowStart {
            if at >= self.doubled.1 {
                self.doubled = (self.open_most.saturating_mul(2), at.plus(DOUBLED_IN));
            }
            if self.open_most < self.doubled.0 {
                self.open_most += 1;
                self.grown_at = at;
            }
        }
    }

    /// The first call that is accepted again: what the cycle before it tells.
    fn recovered(&mut self, refusal: Refusal, sent: Time, at: Time) {
        let began = self.cycle.began.unwrap_or(refusal.since).min(refusal.since);
        let lesson = Lesson {
            accepted: self.cycle.accepted,
            took: sent.as_nanos() - began.as_nanos(),
            waited: sent.as_nanos() - refusal.since.as_nanos(),
            tried: refusal.tried,
        };
        let before = Before { sent, search: self.search.clone(), cycle: self.cycle, refusal };
        self.before = Some(Box::new(before));
        self.search.refused(lesson, at);
        self.open_most = OPEN_AT_FIRST;
        self.cycle = Cycle { began: Some(sent), accepted: 1 };
        self.refusal = None;
        self.next = at;
        self.keep_distance(sent);
    }

    /// A call was refused: how many nanoseconds to wait before one tries again. `explained`: by a limit that answers
    /// tell, so that it says nothing about any other.
    fn refused(&mut self, sent: Time, at: Time, stated: Option<u64>, explained: bool) -> u64 {
        // It took nothing from what answers tell.
        self.booked = self.booked.saturating_sub(1);
        self.over = self.over.saturating_sub(1);
        self.refusals += 1;
        self.refused_at = Some(at);
        if explained && self.refusal.is_none() {
            return stated.unwrap_or(FIRST_WAIT);
        }
        let since = match &mut self.refusal {
            Some(refusal) => {
                if sent >= refusal.since {
                    (refusal.tried, refusal.trying) = (stated.is_none(), false);
                }
                refusal.since
            }
            // Left before calls were accepted again: that lesson is learnt.
            None if self.cycle.began.is_some_and(|began| sent < began) => return stated.unwrap_or(0),
            None => {
                self.refusal = Some(Refusal { since: at, tried: false, trying: false });
                at
            }
        };
        let passed = at.as_nanos().saturating_sub(since.as_nanos());
        let wait = (passed / WAIT_PART).clamp(FIRST_WAIT, LONGEST_WAIT);
        stated.map_or(wait, |stated| stated.max(wait))
    }

    /// A call that seemed to be accepted was refused all the same, as its body told.
    pub fn refused_after_all(&mut self, sent: Time, at: Time, stated: Option<u64>) -> u64 {
        match self.before.take_if(|before| before.sent == sent) {
            Some(before) => {
                (self.search, self.cycle, self.refusal) = (before.search, before.cycle, Some(before.refusal));
            }
            None if self.cycle.began.is_some_and(|began| sent >= began) => {
                self.cycle.accepted = self.cycle.accepted.saturating_sub(1);
            }
            None => {}
        }
        self.refused(sent, at, stated, false)
    }

    /// What was taken for a rate limit was something else.
    pub fn excuse(&mut self) {
        if self.refusal.take().is_some() {
            self.cycle = Cycle::default();
        }
    }

    /// Whether calls are refused now.
    pub fn is_refused(&self) -> bool {
        self.refusal.is_some()
    }

    /// Open calls at most; `None` once a rate is known.
    pub fn open_most(&self) -> Option<u64> {
        (self.search.phase() == Phase::SlowStart).then_some(self.open_most)
    }

    /// What outlives the process; `None` while nothing was found.
    pub fn saved(&self, now: Time) -> Option<SavedProbe> {
        let (rate, found, span) = self.knows(now)?;
        let lasting = self.search.lasting().filter(|_| self.refusal.is_none());
        let micros = |nanos: u64| nanos / 1_000;
        let ago = |time: Time| now.as_nanos().saturating_sub(time.as_nanos());
        Some(SavedProbe {
            rate: (lasting.unwrap_or(rate) * 1e6) as u64,
            found: (found * 1e6) as u64,
            span: micros(span),
            settled: lasting.is_some(),
            debt: micros(self.next.as_nanos().saturating_sub(now.as_nanos())) + 1,
            refused_ago: self.refused_at.map(|at| micros(ago(at))),
        })
    }

    /// Calls a second in use and found, and how long the provider remembers, if it ended now.
    fn knows(&self, now: Time) -> Option<(f64, f64, u64)> {
        if let Some((rate, found)) = self.search.rate().zip(self.search.found()) {
            return Some((rate, found, self.search.span()));
        }
        let began = self.cycle.began.filter(|_| self.refusal.is_some() && self.cycle.accepted > 0)?;
        let took = now.as_nanos().saturating_sub(began.as_nanos()).max(1);
        let found = self.cycle.accepted as f64 / (took as f64 / 1e9);
        Some((found, found, took))
    }

    /// What was saved `elapsed` nanoseconds ago. After a crash, or where it had not settled, the rate comes down first:
    /// so much less is sent than was found that what the dead process sent unseen does not matter.
    pub fn restored(saved: &SavedProbe, elapsed: u64, since: Since, now: Time) -> Probe {
        let per_second = |rate: u64| rate as f64 / 1e6;
        let nanos = |micros: u64| micros.saturating_mul(1_000);
        let sure = saved.settled && since == Since::Nothing;
        let search = Search::resumed(per_second(saved.rate), per_second(saved.found), nanos(saved.span), sure, now);
        let mut probe = Probe::new(search);
        probe.next = now.plus(nanos(saved.debt).saturating_sub(elapsed).min(LONGEST_WAIT));
        probe.last_departure = now;
        if since != Since::Nothing {
            probe.keep_distance(now.plus(CATCH_UP));
        }
        probe.refused_at = saved.refused_ago.map(|ago| now.minus(nanos(ago).saturating_add(elapsed)));
        probe
    }

    /// Upper bound on the calls that could be let go within `horizon` nanoseconds.
    pub fn allowance(&self, horizon: u64, now: Time) -> u64 {
        match self.search.gap() {
            _ if self.refusal.is_some() => OPEN_AT_FIRST,
            None => u64::MAX,
            Some(gap) => {
                let left = now.plus(horizon).as_nanos().saturating_sub(self.next.as_nanos().saturating_sub(CATCH_UP));
                // What a step up adds, rounded up.
                (left / gap.max(1)).saturating_mul(2).saturating_add(2)
            }
        }
    }
}

impl Bank {
    /// What finds out the limits of this key's budget, where none is declared.
    #[inline]
    pub fn probe(&mut self, key: KeyId) -> Option<&mut Probe> {
        let budget = self.keys.get(key.0 as usize)?.budget;
        self.budgets[budget].probe.as_deref_mut()
    }

    /// Equips a budget to which no limit of any kind applies, other than those of routes, with what finds one out.
    pub fn probe_unless_declared(&mut self, budget: usize) {
        let declared = !self.limits.is_empty() || !self.budgets[budget].limits.is_empty();
        let of_keys = self.budgets[budget].keys.iter().any(|&key| !self.keys[key].limits.is_empty());
        let budget = &mut self.budgets[budget];
        if !declared && !of_keys && budget.probe.is_none() {
            budget.probe = Some(Box::new(Probe::new(Search::new())));
        }
    }

    /// See [`Probe::book`].
    #[inline]
    pub fn probe_booked(&mut self, key: KeyId, now: Time) -> u64 {
        self.probe(key).map_or(0, |probe| probe.book(now))
    }

    /// The permit was not used.
    #[inline]
    pub fn probe_abandoned(&mut self, permit: &Permit, now: Time) {
        if let Some(probe) = self.probe(permit.key) {
            probe.unbook(permit.booked, now);
        }
    }
}

fn statement(reading: &Reading) -> Option<Statement> {
    let remaining = reading.remaining.filter(|_| reading.unit == Unit::Requests)?;
    let which = (reading.limit, reading.window.map(nanos));
    Some(Statement { which, remaining, resets_in: reading.resets_in.map(nanos) })
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            refuse(&mut probe, &call, at(8_005), Some(Duration::from_secs(1))),
            2_000,
            "what is told is a floor"
        );
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
}
