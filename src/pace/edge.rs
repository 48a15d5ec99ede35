//! The edge of a fixed window or a calendar period: the moment at which the provider forgets what it counted.
//!
//! It is known only between two bounds, from what answers say about the reset, and each statement is good for one
//! edge: nothing is extrapolated, since windows may begin on the clock or with their first call. Two edges are never
//! taken to be closer than a window, so that no statement makes anything faster than declared.

use super::Time;

/// An edge that lies between `low` and `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub low: Time,
    pub high: Time,
}

impl Edge {
    /// What is known after one more statement made at `now` about a window of `span`.
    pub fn with(known: Option<Edge>, stated: Edge, span: u64, now: Time) -> Option<Edge> {
        let narrow = stated.high.as_nanos().saturating_sub(stated.low.as_nanos()) <= span / 2;
        if stated.low > stated.high || stated.high <= now || !narrow {
            return known;
        }
        let Some(old) = known else {
            return Some(stated);
        };
        let both = Edge {
            low: old.low.max(stated.low),
            high: old.high.min(stated.high),
        };
        if both.low <= both.high {
            return Some(both);
        }
        // A late answer tells of an earlier window; a hostile one of a window that is too short.
        if stated.high < old.low.plus(span) {
            return known;
        }
        Some(Edge {
            low: stated.low.max(old.low.plus(span)),
            high: stated.high,
        })
    }

    /// When a call counted at `anchor` at the latest is forgotten, not counting guards.
    pub fn forgets(self, anchor: Time, span: u64) -> Time {
        let slid = anchor.plus(span);
        if anchor < self.low {
            slid.min(self.high)
        } else {
            slid
        }
    }
}
