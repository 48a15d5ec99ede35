//! A log of slots: never more than N in any window W as the provider sees arrivals.
//!
//! A call occupies its slot from the permit until *anchor + W*, where the anchor is the first byte of its answer, or
//! its departure + `counted_within` if that is earlier: the provider counted it no later than that. Whenever a call
//! departs, at most N−1 others can therefore still be inside the provider's window, whatever the delays were.

use super::Time;
use super::calls::Calls;
use super::counter;
use super::edge::{Edge, Edges};
use super::gcra::Gcra;
use super::slot::Slot;
use std::collections::VecDeque;

/// Up to this many calls every slot is kept exactly; above, slots are rounded up to a 4,096th of the window.
pub(super) const EXACT_SLOTS: u64 = 4096;
/// The provider's clock may be read in milliseconds …
const CLOCK_GRAIN_NANOS: u64 = 1_000_000;
/// … and two crystal clocks run apart by at most one part in so many (100 ppm).
pub(super) const CLOCK_DRIFT: u64 = 10_000;
/// Times that were kept over a restart are the same though they were rounded by so much.
const SAME_NANOS: u64 = 100_000_000;
/// How far back an anchor out of order is looked for before it is counted with a later one.
const SORT_DEPTH: usize = 64;

/// What a sliding counter may still remember.
#[derive(Clone, Debug)]
struct Past {
    /// Calls of the window before.
    before: VecDeque<(Time, u64)>,
    /// The answered calls as takings from a bucket of this depth, see `evenly`.
    depth: u64,
    bucket: Option<Gcra>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// What fits into a window, after headroom.
    cap: u64,
    span: u64,
    guard: u64,
    grain: u64,
    calls: Calls,
    log: VecDeque<(Time, u64)>,
    logged: u64,
    foreign: Vec<(Time, u64)>,
    freed: u64,
    /// Only where a sliding counter matters. (Boxed, as the edges are: most windows need neither, and with many keys
    /// the size of a limit is what a permit costs.)
    past: Option<Box<Past>>,
    /// Fixed windows: the edges that are known.
    edges: Option<Box<Edges>>,
}

impl Window {
    pub fn new(cap: u64, span: u64) -> Window {
        let grain = if cap > EXACT_SLOTS { span / EXACT_SLOTS } else { 0 };
        Window {
            cap,
            span,
            guard: CLOCK_GRAIN_NANOS + span / CLOCK_DRIFT,
            grain,
            calls: Calls::new(grain),
            log: VecDeque::new(),
            logged: 0,
            foreign: Vec::new(),
            freed: 0,
            past: None,
            edges: None,
        }
    }

    /// A window that remembers the one before as well, and rounds to `grain` nanoseconds. It knows at a glance that
    /// calls at a slightly lower rate are harmless, see `evenly`.
    pub fn remembering(cap: u64, span: u64, grain: u64) -> Window {
        let plain = Window::new(cap, span);
        let grain = grain.max(plain.grain);
        let depth = (cap / 4).clamp(1, 2).max(cap / 50);
        let bucket = (depth < cap).then(|| Gcra::new(cap - depth, span + plain.guard, false));
        Window {
            grain,
            calls: Calls::new(grain),
            past: Some(Box::new(Past { before: VecDeque::new(), depth, bucket })),
            ..plain
        }
    }

    /// Earliest room for `amount`; what is larger than the window goes when the window is empty.
    pub fn slot(&mut self, amount: u64, now: Time, within: u64) -> Slot {
        self.advance(now, within);
        let used = self.used();
        if used == 0 || used + amount <= self.cap {
            return Slot::OPEN;
        }
        let need = (used + amount - self.cap).min(used);
        self.freed_by(need, within)
    }

    /// When `need` of what is used will be free.
    fn freed_by(&self, need: u64, within: u64) -> Slot {
        if need <= self.logged && self.foreign.is_empty() {
            let mut sum = 0;
            for &(anchor, amount) in &self.log {
                sum += amount;
                if sum >= need {
                    return Slot::at(self.free_at(anchor));
                }
            }
        }
        self.freed_by_any(need, within)
    }

    fn freed_by_any(&self, need: u64, within: u64) -> Slot {
        let mut certain: Vec<(Time, u64)> = self.log.iter().map(|&(anchor, n)| (self.free_at(anchor), n)).collect();
        certain.extend(self.foreign.iter().copied());
        certain.sort_unstable();
        let mut sum = 0;
        for &(free, amount) in &certain {
            sum += amount;
            if sum >= need {
                return Slot::at(free);
            }
        }
        let mut at_most = certain.last().map_or(Time::ZERO, |last| last.0);
        for (sent, amount) in self.calls.departed() {
            sum += amount;
            at_most = at_most.max(self.free_at(sent.plus(within)));
            if sum >= need {
                return Slot::answered_by(at_most);
            }
        }
        Slot::answered_by(Time::MAX)
    }

    fn free_at(&self, anchor: Time) -> Time {
        let free = match &self.edges {
            Some(edges) => edges.forgets(anchor, self.span),
            None => anchor.plus(self.span),
        };
        free.plus(self.guard)
    }

    /// The provider says that it forgets everything at an edge within these bounds.
    pub fn learn_edge(&mut self, stated: Edge, now: Time) {
        self.edges.get_or_insert_default().learn(stated, self.span, now);
    }

    /// The caller knows the edges of the running period; `None`: they are not known any more.
    pub fn set_edges(&mut self, edges: Option<Edges>) {
        let before = std::mem::replace(&mut self.edges, edges.map(Box::new));
        let (Some(then), Some(now)) = (before.and_then(|edges| edges.last()), &self.edges) else { return };
        // What was to be forgotten at an edge that is known otherwise now is forgotten there.
        if let Some(edge) = now.same_as(then) {
            let free = then.high.plus(self.guard);
            let (from, to) = (free.minus(SAME_NANOS), free.plus(SAME_NANOS));
            for entry in self.foreign.iter_mut().filter(|entry| (from..=to).contains(&entry.0)) {
                entry.0 = edge.high.plus(self.guard);
            }
        }
    }

    /// Whether any edge is known.
    pub fn knows_edges(&self) -> bool {
        self.edges.is_some()
    }

    /// Anchors are rounded up to the grain, but not over an edge.
    fn filed(&self, anchor: Time) -> Time {
        let rounded = anchor.rounded_up(self.grain);
        let edge = self.edges.as_ref().and_then(|edges| edges.next_after(anchor));
        edge.map_or(rounded, |edge| rounded.min(edge.low.minus(1)))
    }

    /// Calls that were not answered in time count from then on; slots whose window is over are freed.
    fn advance(&mut self, now: Time, within: u64) {
        while let Some((sent, amount)) = self.calls.pop_overdue(now, within) {
            self.record(amount, sent.plus(within));
        }
        while let Some(&(anchor, amount)) = self.log.front() {
            if self.free_at(anchor) > now {
                break;
            }
            self.log.pop_front();
            self.logged -= amount;
            self.freed += amount;
            if let Some(past) = &mut self.past {
                past.before.push_back((anchor, amount));
            }
        }
        if let Some(past) = &mut self.past {
            let two = self.span * 2 + self.guard;
            while past.before.front().is_some_and(|entry| entry.0.plus(two) <= now) {
                past.before.pop_front();
            }
        }
        if !self.foreign.is_empty() {
            self.foreign.retain(|entry| entry.0 > now);
        }
    }

    fn record(&mut self, amount: u64, anchor: Time) {
        if amount == 0 {
            return;
        }
        let anchor = self.filed(anchor);
        if let Some(bucket) = self.past.as_mut().and_then(|past| past.bucket.as_mut()) {
            bucket.take(amount, anchor);
        }
        self.logged += amount;
        let mut place = self.log.len();
        while place > 0 && self.log[place - 1].0 > anchor && self.log.len() - place < SORT_DEPTH {
            place -= 1;
        }
        if place > 0 && self.log[place - 1].0 >= anchor {
            self.log[place - 1].1 += amount;
        } else {
            self.log.insert(place, (anchor, amount));
        }
    }

    pub fn book(&mut self, amount: u64) {
        self.calls.book(amount);
    }

    pub fn unbook(&mut self, amount: u64) {
        self.calls.unbook(amount);
    }

    pub fn depart(&mut self, amount: u64, at: Time) {
        self.calls.depart(amount, at);
    }

    pub fn shift(&mut self, amount: u64, from: Time, to: Time) {
        self.calls.shift(amount, from, to);
    }

    /// The call that departed at `sent` was answered at `at`.
    pub fn answered(&mut self, amount: u64, sent: Time, at: Time, within: u64) {
        let anchor = at.min(sent.plus(within));
        let amount = self.calls.remove(amount, sent);
        self.record(amount, anchor);
    }

    /// The call never reached the provider.
    pub fn unsent(&mut self, amount: u64, sent: Time) {
        self.calls.remove(amount, sent);
    }

    /// The true amount of a call anchored at `anchor`, known at `at`: what is less is freed where it was counted,
    /// what is more counts from now on, since the provider may have counted it only now.
    pub fn correct(&mut self, estimate: u64, actual: u64, anchor: Time, at: Time) {
        if actual > estimate {
            self.record(actual - estimate, at.max(anchor));
            return;
        }
        // Where the very entry is gone, taking from an earlier one is safe: that one is forgotten sooner.
        let anchor = self.filed(anchor);
        let place = self.log.partition_point(|entry| entry.0 <= anchor);
        if let Some(entry) = place.checked_sub(1).and_then(|place| self.log.get_mut(place)) {
            let back = (estimate - actual).min(entry.1);
            entry.1 -= back;
            self.logged -= back;
            self.freed += back;
        }
    }

    /// The provider refused a call anchored at `anchor`: it was somebody else's use that filled the window. The slot
    /// stays taken as long, but is no longer compared with what the provider says it counted.
    pub fn disown(&mut self, amount: u64, anchor: Time) {
        let filed = self.filed(anchor);
        let place = self.log.partition_point(|entry| entry.0 <= filed);
        if let Some(entry) = place.checked_sub(1).and_then(|n| self.log.get_mut(n)) {
            let moved = entry.1.min(amount);
            entry.1 -= moved;
            self.logged -= moved;
            let free = self.free_at(filed);
            self.foreign_until(moved, free);
        }
    }

    /// Somebody else used so much; it is free again at `until`, or after one window.
    pub fn foreign(&mut self, amount: u64, until: Option<Time>, now: Time) {
        let free = self.free_at(now);
        let until = match until {
            Some(until) => until.plus(self.guard).min(free),
            None => free,
        };
        self.foreign_until(amount, until);
    }

    fn foreign_until(&mut self, amount: u64, until: Time) {
        match self.foreign.last_mut() {
            _ if amount == 0 => {}
            Some(last) if last.0 == until => last.1 += amount,
            Some(_) | None => self.foreign.push((until, amount)),
        }
    }

    /// Whether the calls so far and one of this amount fit into a bucket of depth b and rate (N − b) ÷ W. Then at most
    /// b + s·(N − b) ÷ W of them are younger than any age s, and a sliding counter sees at most
    /// b + (x·x + (1 − x)(1 + x))·(N − b) = N of them. Seldom false while calls are even and answers quick.
    pub fn evenly(&self, amount: u64, now: Time) -> bool {
        let Some(Past { depth, bucket: Some(bucket), .. }) = self.past.as_deref() else {
            return false;
        };
        let flying = bucket.span(self.calls.total() + amount);
        bucket.full_at().max(now).plus(flying) <= now.plus(bucket.span(*depth))
    }

    /// What a sliding counter could make of the answered calls at `now`, at worst; those in flight come on top.
    pub fn heaviest(&self, now: Time) -> f64 {
        static NOTHING: VecDeque<(Time, u64)> = VecDeque::new();
        let before = self.past.as_ref().map_or(&NOTHING, |past| &past.before);
        let newest_first = self.log.iter().rev().chain(before.iter().rev()).copied();
        counter::heaviest(newest_first, now, self.span, self.guard)
    }

    /// Calls that may not have been counted yet.
    pub fn flying(&self) -> u64 {
        self.calls.total()
    }

    /// What others are believed to have used.
    pub fn foreign_used(&self) -> u64 {
        self.foreign.iter().map(|entry| entry.1).sum()
    }

    /// What this process itself used and still counts.
    pub fn own_used(&self) -> u64 {
        self.logged + self.calls.total()
    }

    /// What is taken now.
    pub fn used(&self) -> u64 {
        self.own_used() + self.foreign_used()
    }

    /// Everything that was ever freed: two readings tell what was freed between them.
    pub fn freed(&self) -> u64 {
        self.freed
    }

    pub fn cap(&self) -> u64 {
        self.cap
    }

    pub fn span(&self) -> u64 {
        self.span
    }

    pub fn guard(&self) -> u64 {
        self.guard
    }

    /// Keeps each slot longer than the window by this much more.
    pub fn widen(&mut self, extra: u64) {
        self.guard = CLOCK_GRAIN_NANOS + self.span / CLOCK_DRIFT + extra;
        if let Some(bucket) = self.past.as_mut().and_then(|past| past.bucket.as_mut()) {
            bucket.widen(extra);
        }
    }

    /// Ages of the calls it counts (and of the window before, where it remembers them), oldest first; and what may
    /// yet be counted later than `now`: calls in flight, those of a predecessor that may be on their way, and whatever
    /// may be sent instead of `answered` and `silent` calls that turn out to cost less.
    pub fn saved(
        &mut self,
        (now, within): (Time, u64),
        lots: u64,
        answered: &[(Time, u64)],
        silent: u64,
    ) -> (Vec<(u64, u64)>, u64) {
        self.advance(now, within);
        let mut log: Vec<(Time, u64)> = self.log.iter().copied().collect();
        let mut later = self.calls.total() + silent.saturating_sub(self.calls.departed().map(|entry| entry.1).sum());
        for &(anchor, amount) in answered {
            let anchor = self.filed(anchor);
            let place = log.partition_point(|entry| entry.0 <= anchor);
            if let Some(entry) = place.checked_sub(1).and_then(|place| log.get_mut(place)) {
                let moved = entry.1.min(amount);
                (entry.1, later) = (entry.1 - moved, later + moved);
            }
        }
        later += self.later(now);
        let before = self.past.iter().flat_map(|past| &past.before).copied();
        let counted = before.chain(log).filter(|entry| entry.0 <= now && entry.1 > 0);
        (super::saved::lots(counted, self.span, lots, now), later)
    }

    /// Calls of a predecessor that may be counted later than `now`.
    pub fn later(&self, now: Time) -> u64 {
        self.log.iter().rev().take_while(|entry| entry.0 > now).map(|entry| entry.1).sum()
    }

    /// What others used, by the time until it is free.
    pub fn saved_foreign(&self, now: Time) -> Vec<(u64, u64)> {
        let left = |until: Time| until.as_nanos().saturating_sub(now.as_nanos()).div_ceil(1_000);
        self.foreign.iter().map(|(until, amount)| (left(*until), *amount)).collect()
    }

    /// Counts a call of another process that was counted at `anchor` at the latest.
    pub fn restored(&mut self, amount: u64, anchor: Time) {
        self.record(amount, anchor);
    }

    /// What others used, until then.
    pub fn restored_foreign(&mut self, amount: u64, until: Time) {
        self.foreign_until(amount, until);
    }

    /// Upper bound on what can be granted from `now` until `within_nanos` later.
    pub fn allowance(&mut self, horizon: u64, now: Time, within: u64) -> u64 {
        self.advance(now, within);
        let end = now.plus(horizon);
        let kept: u64 = self.log.iter().rev().take_while(|e| self.free_at(e.0) > end).map(|e| e.1).sum();
        let foreign: u64 = self.foreign.iter().filter(|e| e.0 > end).map(|e| e.1).sum();
        let first = self.cap.saturating_sub(kept).saturating_sub(foreign);
        let edge = self.edges.as_ref().is_some_and(|edges| edges.any_within(now, end));
        first.saturating_add((horizon / self.span + u64::from(edge)).saturating_mul(self.cap))
    }
}
