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
mod tests;
