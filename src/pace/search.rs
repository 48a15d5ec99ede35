//! The search for a rate that nobody declared: which rate to use, and what a refusal says about it.
//!
//! The first refusal ends a burst, and the burst's speed says little: a server that counts a window lets a whole one
//! through at once. What counts is a *cycle*: from the first call after a refusal to the first call that is accepted
//! after the next one. Calls accepted in it, divided by its length, are what the server allows, whatever it counts:
//! windows were used up once each, a bucket is as empty at its end as at its beginning.
//!
//! ```text
//! slow start ──refused──▶ found ──at 0.98 of it──▶ settled ──ten minutes──▶ probing again
//!                         (0.7, steps)               ▲ ◀───────refused───────────┘
//! ```

use super::Time;

/// The rate in use comes down to this part of what was found …
const DOWN: f64 = 0.7;
/// … and goes up by this part …
const STEP: f64 = 0.07;
/// … to this one, where it stays.
const NEAR: f64 = 0.98;
/// A rate that was refused is known to be too fast: what is found is at most this part of it.
const BELOW: f64 = 0.97;
/// A refusal after the rate had settled takes this part of it away, doubled with each one that follows soon …
const CUT: f64 = 0.04;
/// … up to this.
const DEEPEST_CUT: f64 = 0.3;
/// Probing again goes up by this part a step; after [`SMALL_STEPS`] of them each is twice the last one, up to doubling.
const STEP_AGAIN: f64 = 0.04;
const SMALL_STEPS: u32 = 4;
/// A step that used less than this part of its rate says nothing about it.
const USED: f64 = 0.7;
/// A wait of more than this part of the cycle: the server counts windows, and was refusing for the rest of one.
const LONG_WAIT: f64 = 0.1;
/// A step takes about as long as the first cycle, within these bounds (nanoseconds) …
const SHORTEST_STEP: u64 = 5_000_000_000;
const LONGEST_STEP: u64 = 120_000_000_000;
/// … and when probing again at least this: a bucket that is full hides a rate that is too fast.
const SHORTEST_STEP_AGAIN: u64 = 30_000_000_000;
/// It is probed again so many nanoseconds after the last refusal; where that found nothing new, twice as long after …
const AGAIN_AFTER: u64 = 600_000_000_000;
/// … up to this.
const AGAIN_AT_LATEST: u64 = 8 * AGAIN_AFTER;
/// Refusals with at least so many accepted calls between them may be chance: a provider that is overloaded …
const SELDOM: u64 = 20;
/// … and are taken for that if they are no rarer at this part of the rate.
const SLOWED_IN_VAIN: f64 = 0.7;
/// Calls a second: whatever is measured, one call a minute at least …
const SLOWEST: f64 = 1.0 / 60.0;
/// … and what a clock of nanoseconds can space.
const FASTEST: f64 = 1e8;

/// How far the search is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing was refused yet.
    SlowStart,
    /// A refusal told a rate; smaller ones are tried first.
    Found,
    /// At the rate that was found.
    Settled,
    /// Trying whether more is allowed by now.
    Again,
}

/// What happened between two refusals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lesson {
    /// Calls that were accepted.
    pub accepted: u64,
    /// Nanoseconds from the first of them to the first one that was accepted after the refusal.
    pub took: u64,
    /// Of these, how long calls were refused.
    pub waited: u64,
    /// Whether calls that tried were refused meanwhile: the wait may have been longer than needed.
    pub tried: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Search {
    phase: Phase,
    /// Calls a second in use; of no meaning in slow start.
    rate: f64,
    found: f64,
    /// The rate before it was probed again.
    base: f64,
    /// The last rate, and the one before, that was used for a whole step without a refusal; zero: none.
    kept: [f64; 2],
    steps: u32,
    step_began: Time,
    step_calls: u64,
    /// About how long the server remembers, in nanoseconds.
    span: u64,
    /// Whether what was found may be less than what is allowed, since the wait was longer than needed.
    coarse: bool,
    cut: f64,
    learnt_at: Option<Time>,
    /// The rate before it was cut, and the fewest calls between refusals near it.
    uncut: (f64, u64),
    /// Calls accepted between refusals, averaged over the last few.
    between: u64,
    /// Slowing down did not help: refusals do not depend on the rate.
    by_chance: bool,
    again_at: Time,
    again_after: u64,
}

impl Search {
    pub fn new() -> Search {
        Search {
            phase: Phase::SlowStart,
            rate: SLOWEST,
            found: 0.0,
            base: 0.0,
            kept: [0.0; 2],
            steps: 0,
            step_began: Time::ZERO,
            step_calls: 0,
            span: 0,
            coarse: false,
            cut: CUT,
            learnt_at: None,
            uncut: (0.0, 0),
            between: 0,
            by_chance: false,
            again_at: Time::MAX,
            again_after: AGAIN_AFTER,
        }
    }

    /// What another process had found. `sure`: its rate can be used at once.
    pub fn resumed(rate: f64, found: f64, span: u64, sure: bool, now: Time) -> Search {
        let mut search = Search { found: sane(found), span, ..Search::new() };
        if sure {
            search.rate = sane(rate).min(search.found);
            search.settle(now);
        } else {
            search.climb(now);
        }
        search
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Calls a second that are allowed; `None` while nothing is known.
    pub fn rate(&self) -> Option<f64> {
        (self.phase != Phase::SlowStart).then_some(self.rate)
    }

    /// The rate at which it had settled, even if more is being tried.
    pub fn lasting(&self) -> Option<f64> {
        match self.phase {
            Phase::Settled => Some(self.rate),
            Phase::Again => Some(self.base),
            Phase::SlowStart | Phase::Found => None,
        }
    }

    /// Calls a second that the server is believed to allow.
    pub fn found(&self) -> Option<f64> {
        (self.phase != Phase::SlowStart).then_some(self.found)
    }

    /// About how long the server remembers, in nanoseconds.
    pub fn span(&self) -> u64 {
        self.span
    }

    /// When it is probed again.
    pub fn again_at(&self) -> Option<Time> {
        (self.phase == Phase::Settled).then_some(self.again_at)
    }

    /// Nanoseconds from one call to the next.
    pub fn gap(&self) -> Option<u64> {
        self.rate().map(|rate| (1e9 / rate) as u64)
    }

    /// A call left.
    pub fn departed(&mut self) {
        self.step_calls = self.step_calls.saturating_add(1);
    }

    /// What was used so far says nothing about the rate: nobody wanted to call for a while.
    pub fn idled(&mut self, now: Time) {
        (self.step_began, self.step_calls) = (now, 0);
    }

    /// A call was accepted: when a step is over, the next one begins.
    pub fn accepted(&mut self, now: Time) {
        let took = now.as_nanos().saturating_sub(self.step_began.as_nanos());
        if self.phase == Phase::SlowStart || took < self.step_length() {
            return;
        }
        let used = self.step_calls as f64 >= USED * self.rate * (took as f64 / 1e9);
        self.idled(now);
        if !used {
            return;
        }
        self.kept = [self.rate, self.kept[0]];
        match self.phase {
            Phase::Found if self.rate < NEAR * self.found * 0.999 => {
                self.rate = sane((self.rate + STEP * self.found).min(NEAR * self.found));
            }
            Phase::Found if self.coarse => self.go_again(),
            Phase::Found => self.settle(now),
            Phase::Settled if now >= self.again_at => self.go_again(),
            Phase::Again => self.step_up(),
            Phase::SlowStart | Phase::Settled => {}
        }
    }

    fn step_length(&self) -> u64 {
        let shortest = if self.phase == Phase::Again { SHORTEST_STEP_AGAIN } else { SHORTEST_STEP };
        self.span.clamp(shortest, LONGEST_STEP)
    }

    fn go_again(&mut self) {
        (self.phase, self.base, self.steps, self.coarse) = (Phase::Again, self.rate, 0, false);
        self.kept = [self.rate; 2];
        self.step_up();
    }

    fn step_up(&mut self) {
        self.steps = self.steps.saturating_add(1);
        let doublings = self.steps.saturating_sub(SMALL_STEPS).min(8);
        let step = (STEP_AGAIN * f64::from(1_u32 << doublings)).min(1.0);
        self.rate = sane(self.rate * (1.0 + step));
    }

    /// Calls were refused at this rate, and are accepted again.
    pub fn refused(&mut self, lesson: Lesson, now: Time) {
        let seconds = lesson.took.max(1_000_000) as f64 / 1e9;
        let measured = lesson.accepted as f64 / seconds;
        let windows = lesson.waited as f64 > LONG_WAIT * lesson.took as f64;
        self.between = (self.between.saturating_mul(3).saturating_add(lesson.accepted)) / 4;
        self.by_chance &= self.between >= SELDOM && !lesson.tried;
        match self.phase {
            // Whoever is refused from the first call on learns nothing about rates.
            Phase::SlowStart if lesson.accepted == 0 => return,
            Phase::SlowStart => self.begin(measured, lesson, now),
            Phase::Found if windows || self.kept[0] == 0.0 => {
                // Nothing accepted since: the wait was too short, which says nothing about the rate.
                let measured = if lesson.accepted == 0 { self.rate } else { measured };
                self.begin(measured.min(BELOW * self.rate), lesson, now);
            }
            Phase::Found => self.settle_at(self.kept[0], now),
            Phase::Settled | Phase::Again if self.by_chance => {}
            Phase::Settled => self.cut_down(measured, lesson.accepted, now),
            Phase::Again => {
                // What refuses now may have begun a step earlier.
                let rate = self.kept[1].max(self.base);
                let gained = rate > self.base * 1.01;
                self.again_after = if gained { AGAIN_AFTER } else { (self.again_after * 2).min(AGAIN_AT_LATEST) };
                self.cut = CUT / 2.0;
                self.settle_at(rate, now);
            }
        }
        self.learnt_at = Some(now);
    }

    fn cut_down(&mut self, measured: f64, accepted: u64, now: Time) {
        let soon = self.learnt_at.is_some_and(|last| now < last.plus(AGAIN_AFTER));
        self.cut = if soon { (self.cut * 2.0).min(DEEPEST_CUT) } else { CUT };
        if !soon || self.rate > self.uncut.0 {
            self.uncut = (self.rate, u64::MAX);
        }
        if self.rate > (1.0 + SLOWED_IN_VAIN) / 2.0 * self.uncut.0 {
            self.uncut.1 = self.uncut.1.min(accepted);
        }
        let least = (1.0 - self.cut) * self.rate;
        let mut rate = least.max(measured.min(NEAR * self.rate));
        let rarer = accepted / 2 > self.uncut.1;
        self.by_chance = self.between >= SELDOM && rate < SLOWED_IN_VAIN * self.uncut.0 && !rarer;
        if self.by_chance {
            rate = self.uncut.0;
        }
        // Trying for more is not put off: refusals by chance would put it off for ever.
        let again_at = self.again_at;
        self.settle_at(rate, now);
        self.again_at = again_at;
    }

    fn begin(&mut self, found: f64, lesson: Lesson, now: Time) {
        (self.found, self.coarse) = (sane(found), lesson.tried);
        self.span = lesson.took;
        self.climb(now);
    }

    fn climb(&mut self, now: Time) {
        (self.phase, self.rate, self.kept) = (Phase::Found, sane(DOWN * self.found), [0.0; 2]);
        self.idled(now);
    }

    fn settle_at(&mut self, rate: f64, now: Time) {
        self.rate = sane(rate);
        self.found = sane(self.rate / NEAR);
        self.settle(now);
    }

    fn settle(&mut self, now: Time) {
        self.phase = Phase::Settled;
        self.again_at = now.plus(self.again_after);
        self.idled(now);
    }
}

/// A rate that can be used: never zero, never more than a clock can space, whatever was measured.
fn sane(rate: f64) -> f64 {
    if rate.is_finite() { rate.clamp(SLOWEST, FASTEST) } else { SLOWEST }
}

#[cfg(test)]
mod tests;
