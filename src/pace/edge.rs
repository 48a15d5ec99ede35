//! The edge of a fixed window or a calendar period: the moment at which the provider forgets what it counted.
//!
//! It is known only between two bounds, from what answers say about the reset, and each statement is good for one
//! edge: nothing is extrapolated, since windows may begin on the clock or with their first call. Two edges are never
//! taken to be closer than a window, so that no statement makes anything faster than declared.

use super::Time;

/// An edge that lies between `low` and `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Not before.
    pub low: Time,
    /// Not after.
    pub high: Time,
}

impl Edge {
    /// Whether both may be the same.
    pub(super) fn overlaps(self, other: Edge) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

/// The last edge that was told of, and the one before: what was counted before that one is forgotten there, not later.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Edges {
    previous: Option<Edge>,
    last: Option<Edge>,
}

impl Edges {
    /// One more statement, made at `now`, about a window of `span`.
    pub fn learn(&mut self, stated: Edge, span: u64, now: Time) {
        let narrow = stated.high.as_nanos().saturating_sub(stated.low.as_nanos()) <= span / 2;
        if stated.low > stated.high || stated.high <= now || !narrow {
            return;
        }
        let Some(last) = self.last else {
            self.last = Some(stated);
            return;
        };
        let both = Edge { low: last.low.max(stated.low), high: last.high.min(stated.high) };
        if both.low <= both.high {
            self.last = Some(both);
            return;
        }
        // A late answer tells of an earlier window; a hostile one of a window that is too short.
        let soonest = last.low.plus(span);
        if stated.high >= soonest {
            self.previous = self.last;
            self.last = Some(Edge { low: stated.low.max(soonest), high: stated.high });
        }
    }

    /// The edges on both sides of the running period: the caller knows them.
    pub fn around(begins: Edge, ends: Edge) -> Edges {
        Edges { previous: Some(begins), last: Some(ends) }
    }

    /// Of these edges the one that an edge told of earlier may have been.
    pub fn same_as(&self, earlier: Edge) -> Option<Edge> {
        [self.last, self.previous].into_iter().flatten().find(|edge| edge.overlaps(earlier))
    }

    /// The edge that ends the running window.
    pub fn last(&self) -> Option<Edge> {
        self.last
    }

    /// When a call counted at `anchor` at the latest is forgotten, not counting guards.
    pub fn forgets(&self, anchor: Time, span: u64) -> Time {
        let slid = anchor.plus(span);
        self.next_after(anchor).map_or(slid, |edge| slid.min(edge.high))
    }

    /// The first known edge that surely comes after `anchor`.
    pub fn next_after(&self, anchor: Time) -> Option<Edge> {
        [self.previous, self.last].into_iter().flatten().find(|edge| anchor < edge.low)
    }

    /// Whether there may be an edge between these times.
    pub fn any_within(&self, from: Time, to: Time) -> bool {
        self.last.is_some_and(|edge| edge.high > from && edge.low <= to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(low: u64, high: u64) -> Edge {
        Edge { low: Time::from_nanos(low), high: Time::from_nanos(high) }
    }

    /// One as vague as the window is long may be about this edge or the next one, and would be taken for both.
    #[test]
    fn vague_statements_are_left_out() {
        let mut edges = Edges::default();
        edges.learn(edge(50, 101), 100, Time::ZERO);
        assert_eq!(edges.last(), None);
        edges.learn(edge(50, 100), 100, Time::ZERO);
        assert_eq!(edges.last(), Some(edge(50, 100)));
        edges.learn(edge(90, 191), 100, Time::ZERO);
        assert_eq!(edges.last(), Some(edge(50, 100)));
    }
}
