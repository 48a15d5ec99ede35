//! The worst that a *sliding counter* could make of the calls so far.
//!
//! Such a server counts calls in fixed windows of its own, whose edges nobody else knows, and adds the last window's
//! count in proportion to what is left of it. When a share `x` of its window is over, it sees
//! *x·C(xW) + (1−x)·C((1+x)W)*, where *C(s)* is the number of calls that arrived less than `s` ago. Every call counted
//! as late as it can have arrived, the largest of these values over all `x` bounds what any such server can see,
//! wherever its edges are. It falls while time passes, and grows by one with each call.

use super::Time;
use std::iter::Peekable;

/// The largest value over all `x` in [0, 1], for calls anchored at these times, the newest first.
pub(super) fn heaviest(
    newest_first: impl Iterator<Item = (Time, u64)> + Clone,
    now: Time,
    span: u64,
    guard: u64,
) -> f64 {
    // How much of a window must be over before a call is older than xW; the guard keeps calls younger than they are.
    let youngest = now.minus(guard).as_nanos();
    let ages = newest_first.map(|(at, amount)| (youngest.saturating_sub(at.as_nanos()), amount));
    let (mut current, mut both) = (ages.clone().peekable(), ages.peekable());
    let (mut in_current, mut in_both) = (0, 0);
    let (mut x, mut heaviest) = (0, 0.0_f64);
    // Between two jumps the value falls with x, so only the places right after a jump matter.
    while x < span {
        in_current += younger(&mut current, x);
        in_both += younger(&mut both, span + x);
        heaviest = heaviest.max(x as f64 * in_current as f64 + (span - x) as f64 * in_both as f64);
        let next = current.peek().map_or(span, |entry| entry.0);
        x = next.min(both.peek().map_or(span, |entry| entry.0 - span));
    }
    heaviest / span as f64
}

fn younger(ages: &mut Peekable<impl Iterator<Item = (u64, u64)>>, than: u64) -> u64 {
    let mut sum = 0;
    while let Some((_, amount)) = ages.next_if(|entry| entry.0 <= than) {
        sum += amount;
    }
    sum
}
