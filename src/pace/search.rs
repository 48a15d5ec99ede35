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
mod tests {
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
}
