//! When calls may leave, by the clock on the wall: nothing is claimed while the provider's windows are shut, and what was
//! in line when they shut goes back to the store.

use super::message::Now;
use super::{Core, Stage};
use crate::clock::WallMs;
use crate::pace::Time;
use crate::send_window::Standing;
use crate::store::{JobPk, Next};

/// How the windows were when somebody looked last, and for which times that holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    known: Option<(WallMs, Standing)>,
}

impl Core {
    /// Whether a call may leave now, as far as the windows go.
    pub(super) fn window_is_open(&mut self, now: Now) -> bool {
        if self.provider.windows.is_empty() {
            return true;
        }
        // A wall clock may jump either way: what was found holds from when it was looked for until the next change.
        let holds = |(from, standing): &(WallMs, Standing)| {
            *from <= now.wall && standing.until_ms.is_none_or(|until| now.wall < until)
        };
        let (from, standing) = match self.window.known.filter(holds) {
            Some(known) => known,
            None => (now.wall, self.provider.windows.at(now.wall)),
        };
        self.window.known = Some((from, standing));
        standing.is_open
    }

    /// Whether the windows were shut when somebody looked last: then nothing is claimed, however much is due.
    pub fn is_shut(&self) -> bool {
        self.window.known.is_some_and(|(_, standing)| !standing.is_open)
    }

    /// When that changes.
    pub fn window_changes_at(&self, now: Now) -> Option<Time> {
        let until = self.window.known?.1.until_ms?;
        let ahead = u64::try_from(until.saturating_sub(now.wall)).unwrap_or(0);
        Some(now.mono + std::time::Duration::from_millis(ahead))
    }

    /// Everything in line goes back to the store, for when they are open again.
    pub(super) fn empty_line(&mut self, now: Now) {
        let in_line = self.jobs.iter().filter(|(_, held)| matches!(held.stage, Stage::InLine(_)));
        let in_line: Vec<JobPk> = in_line.map(|(pk, _)| *pk).collect();
        for pk in in_line {
            if self.step_out(pk) {
                self.record(pk, Next::Release, None, false, now);
            }
        }
    }
}
