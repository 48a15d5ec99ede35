//! One limit: what it counts, and the meter that counts it.

use super::Time;
use super::bucket::Bucket;
use super::edge::{self, Edge};
use super::gate::Gate;
use super::period::QuotaPeriod;
use super::saved::{STRAGGLER_NANOS, SavedLimit, Unseen};
use super::slot::Slot;
use super::smooth::{self, Smooth};
use super::spec::{Algorithm, LimitSpec, Measure, Safety};
use super::time::nanos;
use super::window::{CLOCK_DRIFT, Window};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    Requests,
    Cost,
    Open,
}

#[derive(Clone, Debug)]
enum Meter {
    Window(Window),
    Bucket(Bucket),
    Smooth(Smooth),
    Gate(Gate),
}

/// Who knows at which edges the provider forgets everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edges {
    /// There are none.
    None,
    /// The provider's answers.
    Told,
    /// The caller, by that calendar.
    Given { calendar: u64 },
}

/// A departed call as one limit sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trace {
    pub cost: u64,
    pub sent: Time,
    /// The first byte of its answer.
    pub answered: Option<Time>,
}

#[derive(Clone, Debug)]
pub(super) struct Limit {
    pub counts: Counts,
    /// The amount as declared.
    pub declared: u64,
    /// The period in nanoseconds.
    pub per: u64,
    /// The most that one call may take.
    pub largest: u64,
    /// Who knows at which edge the provider forgets everything.
    edges: Edges,
    meter: Meter,
    /// Where costs are counted: those that may still turn out smaller.
    unfinished: Option<Box<Unfinished>>,
}

/// Estimates of calls that are not over: were they saved where they count now, and then corrected, what was sent in
/// their place would not be known to whoever takes over.
#[derive(Clone, Debug, Default)]
struct Unfinished {
    /// Of calls that departed and were not answered.
    silent: u64,
    /// Of answered ones, by the times of answer and departure.
    answered: BTreeMap<(Time, Time), u64>,
}

impl Unfinished {
    fn answered(&mut self, amount: u64, sent: Time, at: Time) {
        self.silent = self.silent.saturating_sub(amount);
        *self.answered.entry((at, sent)).or_default() += amount;
    }

    fn finished(&mut self, call: Trace) {
        let Some(at) = call.answered else {
            self.silent = self.silent.saturating_sub(call.cost);
            return;
        };
        if let Entry::Occupied(mut entry) = self.answered.entry((at, call.sent)) {
            *entry.get_mut() = entry.get().saturating_sub(call.cost);
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

impl Limit {
    pub fn new(spec: &LimitSpec, safety: Safety) -> Limit {
        let (counts, declared) = match spec.measure {
            Measure::Requests(amount) => (Counts::Requests, amount),
            Measure::Cost(amount) => (Counts::Cost, amount),
            Measure::Concurrency(open) => (Counts::Open, u64::from(open)),
        };
        let mut limit = Limit {
            counts,
            declared,
            per: nanos(spec.per),
            largest: declared,
            edges: Edges::None,
            meter: Meter::Gate(Gate::new(declared)),
            unfinished: (counts == Counts::Cost).then(Box::default),
        };
        if counts != Counts::Open {
            limit.meter = limit.timed(spec, safety);
        }
        limit
    }

    fn timed(&mut self, spec: &LimitSpec, safety: Safety) -> Meter {
        let correctable = self.counts == Counts::Cost;
        let headroom = match safety {
            Safety::Headroom(share) => 1.0 - share,
            Safety::Strict | Safety::Balanced => 1.0,
        };
        // Headroom lengthens the period, since a share of a few calls would be a whole call; where the provider's own
        // edges end the period, it lowers the amount.
        let (cap, per) = (self.declared, (self.per as f64 / headroom).ceil() as u64);
        let lowered = ((cap as f64 * headroom) as u64).max(1);
        match spec.algorithm {
            Algorithm::TokenBucket => {
                let burst = spec.burst.unwrap_or(if correctable { self.declared } else { 1 });
                self.largest = burst;
                Meter::Bucket(Bucket::new(self.declared, drifted(per), burst, correctable))
            }
            Algorithm::Smooth => {
                let rate = match safety {
                    Safety::Strict if correctable => cap as f64 * 0.98,
                    Safety::Strict => smooth::lowered(cap),
                    Safety::Balanced | Safety::Headroom(_) => cap as f64,
                };
                let smooth = Smooth::new(cap, per, rate, spec.burst, correctable);
                let strict = safety == Safety::Strict;
                Meter::Smooth(if strict { smooth.counted(cap, per) } else { smooth })
            }
            Algorithm::SlidingWindow => Meter::Window(Window::new(cap, per)),
            Algorithm::FixedWindow => {
                self.edges = Edges::Told;
                Meter::Window(Window::new(lowered, self.per))
            }
            Algorithm::Quota(reset) => {
                self.edges = Edges::Given { calendar: reset.calendar };
                Meter::Window(Window::new(lowered, nanos(reset.longest)))
            }
        }
    }

    /// How much of this limit a call of this cost takes.
    pub fn amount(&self, cost: u64) -> u64 {
        if self.counts == Counts::Cost { cost } else { 1 }
    }

    /// Whether no amount of waiting makes room for a call of this cost.
    pub fn refuses(&self, cost: u64) -> bool {
        self.counts == Counts::Cost && cost > self.largest
    }

    pub fn slot(&mut self, cost: u64, now: Time, within: u64) -> Slot {
        if self.refuses(cost) {
            return Slot::NEVER;
        }
        let amount = self.amount(cost);
        if amount == 0 {
            return Slot::OPEN;
        }
        match &mut self.meter {
            Meter::Window(window) => window.slot(amount, now, within),
            Meter::Bucket(bucket) => bucket.slot(amount, now, within),
            Meter::Smooth(smooth) => smooth.slot(amount, now, within),
            Meter::Gate(gate) => gate.slot(now),
        }
    }

    pub fn book(&mut self, cost: u64) {
        let amount = self.amount(cost);
        match &mut self.meter {
            Meter::Window(window) => window.book(amount),
            Meter::Bucket(bucket) => bucket.book(amount),
            Meter::Smooth(smooth) => smooth.book(amount),
            Meter::Gate(gate) => gate.take(),
        }
    }

    /// The permit is given back unused.
    pub fn unbook(&mut self, cost: u64) {
        let amount = self.amount(cost);
        match &mut self.meter {
            Meter::Window(window) => window.unbook(amount),
            Meter::Bucket(bucket) => bucket.unbook(amount),
            Meter::Smooth(smooth) => smooth.unbook(amount),
            Meter::Gate(gate) => gate.release(),
        }
    }

    pub fn depart(&mut self, cost: u64, at: Time) {
        let amount = self.amount(cost);
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.silent += amount;
        }
        match &mut self.meter {
            Meter::Window(window) => window.depart(amount, at),
            Meter::Bucket(bucket) => bucket.depart(amount, at),
            Meter::Smooth(smooth) => smooth.depart(amount, at),
            Meter::Gate(_) => {}
        }
    }

    /// The call left later than it was recorded to.
    pub fn shift(&mut self, cost: u64, from: Time, to: Time) {
        let amount = self.amount(cost);
        match &mut self.meter {
            Meter::Window(window) => window.shift(amount, from, to),
            Meter::Bucket(bucket) => bucket.shift(amount, from, to),
            Meter::Smooth(smooth) => smooth.shift(amount, from, to),
            Meter::Gate(_) => {}
        }
    }

    pub fn answered(&mut self, cost: u64, sent: Time, at: Time, within: u64) {
        let amount = self.amount(cost);
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.answered(amount, sent, at);
        }
        match &mut self.meter {
            Meter::Window(window) => window.answered(amount, sent, at, within),
            Meter::Bucket(bucket) => bucket.answered(amount, sent, at, within),
            Meter::Smooth(smooth) => smooth.window_mut().answered(amount, sent, at, within),
            Meter::Gate(_) => {}
        }
    }

    /// The call surely never reached the provider. What `smooth` has spaced stays spaced.
    pub fn unsent(&mut self, cost: u64, sent: Time) {
        let amount = self.amount(cost);
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.silent = unfinished.silent.saturating_sub(amount);
        }
        match &mut self.meter {
            Meter::Window(window) => window.unsent(amount, sent),
            Meter::Bucket(bucket) => bucket.unsent(amount, sent),
            Meter::Smooth(smooth) => smooth.window_mut().unsent(amount, sent),
            Meter::Gate(gate) => gate.release(),
        }
    }

    /// The call is over. `open_until` is when an unanswered one surely is over at the provider, too.
    pub fn finished(&mut self, call: Trace, at: Time, actual: Option<u64>, within: u64, open_until: Time) {
        if let Meter::Gate(gate) = &mut self.meter {
            return match call.answered {
                None if open_until > at => gate.release_at(open_until),
                _ => gate.release(),
            };
        }
        if let Some(unfinished) = &mut self.unfinished {
            unfinished.finished(call);
        }
        let Some(actual) = actual else {
            return;
        };
        // An absurd answer costs a whole period, not eternity.
        let actual = actual.min(self.declared.max(call.cost));
        let lower_unanswered = call.answered.is_none() && actual < call.cost;
        if self.counts != Counts::Cost || actual == call.cost || lower_unanswered {
            return;
        }
        let anchor = call.answered.unwrap_or(at).min(call.sent.plus(within));
        match &mut self.meter {
            Meter::Window(window) => window.correct(call.cost, actual, anchor, at),
            Meter::Bucket(bucket) => bucket.correct(call.cost, actual, anchor, at),
            Meter::Smooth(smooth) => smooth.correct(call.cost, actual, call.sent, anchor, at),
            Meter::Gate(_) => {}
        }
    }

    /// The provider refused the call, since others had used the limit up.
    pub fn disown(&mut self, call: Trace, within: u64) {
        let Some(answered) = call.answered else {
            return;
        };
        let (amount, anchor) = (self.amount(call.cost), answered.min(call.sent.plus(within)));
        match &mut self.meter {
            Meter::Window(window) => window.disown(amount, anchor),
            Meter::Smooth(smooth) => smooth.window_mut().disown(amount, anchor),
            Meter::Bucket(_) | Meter::Gate(_) => {}
        }
    }

    /// Somebody else took so much of it: until the edge, or for one period.
    pub fn foreign(&mut self, amount: u64, until: Option<Time>, now: Time) {
        // Only at an edge everything is forgotten. Elsewhere the stated reset may be that of the oldest call alone.
        let until = until.filter(|_| self.edges != Edges::None);
        match &mut self.meter {
            Meter::Window(window) => window.foreign(amount, until, now),
            Meter::Smooth(smooth) => smooth.window_mut().foreign(amount, None, now),
            Meter::Bucket(bucket) => bucket.foreign(amount, now),
            Meter::Gate(_) => {}
        }
    }

    /// The provider says that it forgets everything at this edge; only fixed windows listen.
    pub fn learn_edge(&mut self, stated: Edge, now: Time) {
        if let (Edges::Told, Meter::Window(window)) = (self.edges, &mut self.meter) {
            window.learn_edge(stated, now);
        }
    }

    /// The caller knows when the running period began and when it ends, or does not know it any more.
    pub fn set_period(&mut self, period: Option<QuotaPeriod>) {
        if let (Edges::Given { .. }, Meter::Window(window)) = (self.edges, &mut self.meter) {
            window.set_edges(period.map(|period| edge::Edges::around(period.begins, period.ends)));
        }
    }

    fn window(&self) -> Option<&Window> {
        match &self.meter {
            Meter::Window(window) => Some(window),
            Meter::Smooth(smooth) => Some(smooth.window()),
            Meter::Bucket(_) | Meter::Gate(_) => None,
        }
    }

    /// Everything this process ever freed of it; see `own_since`.
    pub fn freed(&self) -> u64 {
        self.window().map_or(0, Window::freed)
    }

    /// The most that the provider may have counted for this process while a call was on its way that saw `freed`
    /// when it was booked: what is used now and what was freed meanwhile. What others took from a bucket is part of
    /// it. `None` where it cannot be known.
    pub fn own_since(&self, freed: u64, (sent, answered): (Time, Time)) -> Option<u64> {
        match &self.meter {
            Meter::Bucket(bucket) => Some(bucket.used_since(sent, answered)),
            _ => self.window().map(|window| window.own_used() + window.freed().saturating_sub(freed)),
        }
    }

    /// What others are believed to have used of it.
    pub fn foreign_used(&self) -> u64 {
        self.window().map_or(0, Window::foreign_used)
    }

    /// Taken now (after `slot` of the same time), and how much there is of it.
    pub fn usage(&self, now: Time) -> (u64, u64) {
        match &self.meter {
            Meter::Window(window) => (window.used(), window.cap()),
            Meter::Smooth(smooth) => (smooth.window().used(), smooth.window().cap()),
            Meter::Bucket(bucket) => (bucket.used(now), bucket.depth()),
            Meter::Gate(gate) => (gate.used(), gate.places()),
        }
    }

    /// Adds `extra` to the guard of the limit: of a window, or of the period in which a bucket refills. Not of a
    /// calendar quota: a share of a day or a month has nothing to do with how far its edge may be off.
    pub fn widen(&mut self, extra: u64) {
        match &mut self.meter {
            Meter::Window(_) if matches!(self.edges, Edges::Given { .. }) => {}
            Meter::Window(window) => window.widen(extra),
            Meter::Smooth(smooth) => smooth.widen(extra),
            Meter::Bucket(bucket) => bucket.widen(extra),
            Meter::Gate(_) => {}
        }
    }

    /// Upper bound on the calls it could let go within `horizon`.
    pub fn allowance(&mut self, horizon: u64, now: Time, within: u64) -> u64 {
        match &mut self.meter {
            Meter::Window(window) => window.allowance(horizon, now, within),
            Meter::Smooth(smooth) => smooth.allowance(horizon, now, within),
            Meter::Bucket(bucket) => bucket.allowance(horizon, now),
            Meter::Gate(_) => u64::MAX,
        }
    }

    /// Upper bound on the calls that a predecessor may have let go within `horizon`. It may have known of edges at
    /// which the provider forgets everything, and that this process never heard of. The calendar both know, unless
    /// nobody has named the period to this one.
    pub fn allowed_unseen(&mut self, horizon: u64, now: Time, within: u64) -> u64 {
        let named = self.window().is_some_and(Window::knows_edges);
        match self.edges {
            Edges::None => self.allowance(horizon, now, within),
            Edges::Given { .. } if named => self.allowance(horizon, now, within),
            Edges::Given { .. } | Edges::Told => (horizon / self.per).saturating_add(2).saturating_mul(self.declared),
        }
    }

    /// The same for calls that other limits count, too: what was on its way may have been given back since, and something
    /// else been sent in its place.
    pub fn passed_unseen(&mut self, horizon: u64, now: Time, within: u64) -> u64 {
        let allowed = self.allowed_unseen(horizon, now, within);
        match &self.meter {
            Meter::Window(window) => allowed.saturating_add(window.later(now)),
            Meter::Smooth(smooth) => allowed.saturating_add(smooth.window().later(now)),
            Meter::Bucket(bucket) => bucket.allowance_when_full(horizon),
            Meter::Gate(_) => allowed,
        }
    }

    /// Calls (or units) a second that it allows in the long run; `None` where time does not limit it.
    pub fn per_second(&self) -> Option<f64> {
        match self.counts {
            Counts::Open => None,
            Counts::Requests | Counts::Cost => {
                Some(self.declared as f64 / Duration::from_nanos(self.per).as_secs_f64())
            }
        }
    }

    /// What it counts at `now`.
    pub fn saved(&mut self, now: Time, within: u64, lots: u64) -> SavedLimit {
        let mut saved = SavedLimit { limit: self.name(), ..SavedLimit::default() };
        let open = |unfinished: &Unfinished| {
            let anchored = |(&(at, sent), &amount): (&(Time, Time), &u64)| (at.min(sent.plus(within)), amount);
            (unfinished.answered.iter().map(anchored).collect(), unfinished.silent)
        };
        let (answered, silent): (Vec<_>, u64) = self.unfinished.as_deref().map(open).unwrap_or_default();
        let debt = |full_at: Time| full_at.as_nanos().saturating_sub(now.as_nanos()).div_ceil(1_000);
        match &mut self.meter {
            Meter::Window(window) => {
                (saved.spent, saved.flying) = window.saved((now, within), lots, &answered, silent);
                saved.others = window.saved_foreign(now);
            }
            Meter::Smooth(smooth) => {
                saved.debt = debt(smooth.full_at());
                let window = smooth.window_mut();
                (saved.spent, saved.flying) = window.saved((now, within), lots, &answered, silent);
                saved.others = window.saved_foreign(now);
            }
            Meter::Bucket(bucket) => (saved.debt, saved.flying) = (debt(bucket.full_at()), bucket.flying()),
            Meter::Gate(gate) => saved.flying = gate.used(),
        }
        saved
    }

    /// Takes over what another process counted `elapsed` nanoseconds before `now`.
    ///
    /// What was in flight then is counted as late as a straggler arrives, and taken to be open for `within`.
    pub fn restored(&mut self, saved: &SavedLimit, elapsed: u64, now: Time, within: u64) {
        let late = now.plus(within.min(STRAGGLER_NANOS));
        if saved.limit != self.name() {
            return self.assume_spent(now, within);
        }
        let anchor = |age: u64| now.minus(age.saturating_mul(1_000).saturating_add(elapsed));
        let until = |left: u64| now.plus(left.saturating_mul(1_000).saturating_sub(elapsed));
        let debt_until = until(saved.debt);
        let window = match &mut self.meter {
            Meter::Window(window) => window,
            Meter::Smooth(smooth) => {
                smooth.restored(debt_until);
                smooth.window_mut()
            }
            Meter::Bucket(bucket) => {
                bucket.restored(debt_until);
                // In flight when it was saved: counted by now, as late as possible.
                return bucket.foreign(saved.flying.min(bucket.depth()), late);
            }
            Meter::Gate(gate) => {
                for _ in 0..saved.flying.min(gate.places()) {
                    gate.take();
                    gate.release_at(now.plus(within));
                }
                return;
            }
        };
        for (age, amount) in &saved.spent {
            window.restored(*amount, anchor(*age));
        }
        for (left, amount) in &saved.others {
            window.restored_foreign(*amount, until(*left));
        }
        window.restored(saved.flying, late);
    }

    /// Counts calls that may have been sent before `now` without anybody having seen them: so many, and no more than
    /// it allowed within `horizon`. They are counted as late as they may have arrived.
    pub fn unseen(&mut self, unseen: Unseen, (now, late): (Time, Time), within: u64) {
        let Unseen { calls, open, horizon } = unseen;
        // A bucket counts what was on its way as late as that; until then it must not seem emptier to whoever sent before.
        let horizon = horizon.max(late.as_nanos() - now.as_nanos());
        let allowed = self.allowed_unseen(horizon, now, within).min(self.declared.max(self.largest));
        // Costs of unseen calls are not known: all that was allowed.
        let amount = if self.counts == Counts::Cost { allowed } else { allowed.min(calls) };
        if amount == 0 {
            return;
        }
        match &mut self.meter {
            Meter::Window(window) => window.restored(amount, late),
            Meter::Smooth(smooth) => {
                smooth.restored(now);
                smooth.spaced_from(late);
                smooth.window_mut().restored(amount, late);
            }
            Meter::Bucket(bucket) => bucket.foreign(amount.min(bucket.depth()), late),
            Meter::Gate(gate) => {
                for _ in gate.used()..gate.places().min(open) {
                    gate.take();
                    gate.release_at(now.plus(within));
                }
            }
        }
    }

    /// Whether it counts calls.
    pub fn counts_requests(&self) -> bool {
        self.counts == Counts::Requests
    }

    /// What must be the same for what was spent to count. The amount of a quota need not be: its period is.
    fn name(&self) -> String {
        if let Edges::Given { calendar } = self.edges {
            return format!("{:?}, quota of calendar {calendar:016x}", self.counts);
        }
        let kind = match &self.meter {
            Meter::Window(_) if self.edges == Edges::Told => "fixed",
            Meter::Window(_) => "window",
            Meter::Bucket(_) => "bucket",
            Meter::Smooth(_) => "smooth",
            Meter::Gate(_) => "open",
        };
        format!("{:?} {} per {} ns, {kind}", self.counts, self.declared, self.per)
    }

    /// Counts it as wholly used at `now`, since nobody knows what was sent before; calls may be open for `within`.
    pub fn assume_spent(&mut self, now: Time, within: u64) {
        let amount = self.declared;
        match &mut self.meter {
            Meter::Bucket(bucket) => bucket.foreign(bucket.depth(), now),
            Meter::Window(_) | Meter::Smooth(_) => self.foreign(amount, None, now),
            Meter::Gate(gate) => {
                for _ in gate.used()..gate.places() {
                    gate.take();
                    gate.release_at(now.plus(within));
                }
            }
        }
    }
}

/// A period lengthened by what two clocks may run apart.
fn drifted(per: u64) -> u64 {
    per.saturating_add(per / CLOCK_DRIFT)
}
