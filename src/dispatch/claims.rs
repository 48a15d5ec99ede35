//! When to look into the store for due jobs, lane by lane: at once when something said so, when
//! the next job is due, and now and then in case nobody said anything.

use std::time::Duration;

use super::core::Now;
use crate::clock::WallMs;
use crate::pace::Time;

/// Looked at least this often, though nothing said so.
const FALLBACK: Duration = Duration::from_secs(5);
/// After a failed claim.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Lane {
    name: String,
    /// Something may be due.
    due: bool,
    /// A claim is under way; `Some(true)`: something became due meanwhile.
    under_way: Option<bool>,
    /// Due without anybody saying so.
    look_at: Time,
    failing: bool,
}

/// The lanes of one provider.
#[derive(Debug)]
pub(super) struct Claims {
    lanes: Vec<Lane>,
    stopped: bool,
}

impl Claims {
    /// Everything may be due at the start.
    pub(super) fn new(names: Vec<String>) -> Self {
        let lane = |name| Lane { name, due: true, under_way: None, look_at: Time::ZERO, failing: false };
        Self { lanes: names.into_iter().map(lane).collect(), stopped: false }
    }

    pub(super) fn name(&self, lane: usize) -> &str {
        self.lanes.get(lane).map_or("", |lane| &lane.name)
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn wake_all(&mut self) {
        for lane in &mut self.lanes {
            lane.due = true;
            lane.under_way = lane.under_way.map(|_| true);
        }
    }

    /// Whether to claim from that lane now; if so it is under way.
    pub(super) fn begin(&mut self, lane: usize, now: Now) -> bool {
        let Some(lane) = self.lanes.get_mut(lane).filter(|_| !self.stopped) else { return false };
        let due = lane.due || lane.look_at <= now.mono;
        if !due || lane.under_way.is_some() {
            return false;
        }
        lane.under_way = Some(false);
        true
    }

    /// A claim went through: `full` if there may be more, else the time of the next due job.
    pub(super) fn done(&mut self, lane: usize, full: bool, next_due_ms: Option<WallMs>, now: Now) {
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        let woken = lane.under_way.take() == Some(true);
        lane.failing = false;
        lane.due = full || woken;
        let next_due = next_due_ms
            .map(|due| Duration::from_millis(u64::try_from(due.saturating_sub(now.wall)).unwrap_or(0)))
            .unwrap_or(FALLBACK)
            .clamp(Duration::from_millis(1), FALLBACK);
        lane.look_at = now.mono + next_due;
    }

    /// A claim failed. Returns whether that is news.
    pub(super) fn failed(&mut self, lane: usize, now: Now) -> bool {
        let Some(lane) = self.lanes.get_mut(lane) else { return false };
        lane.under_way = None;
        lane.due = false;
        lane.look_at = now.mono + AFTER_FAILURE;
        !std::mem::replace(&mut lane.failing, true)
    }

    /// When to look again though nobody says anything; a time that has passed where it is due.
    pub(super) fn wake_at(&self) -> Option<Time> {
        let idle = self.lanes.iter().filter(|lane| lane.under_way.is_none() && !self.stopped);
        idle.map(|lane| if lane.due { Time::ZERO } else { lane.look_at }).min()
    }

    pub(super) fn are_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.under_way.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono: Time::ZERO + Duration::from_secs(seconds), wall: 0 }
    }

    #[test]
    fn what_is_due_is_looked_at_at_once_and_the_rest_later() {
        let mut claims = Claims::new(vec!["default".to_owned()]);
        assert_eq!(claims.wake_at(), Some(Time::ZERO));
        assert!(claims.begin(0, at(1)));
        assert_eq!(claims.wake_at(), None, "the claim that is under way says when to look again");
        claims.done(0, false, None, at(2));
        assert_eq!(claims.wake_at(), Some(at(2).mono + FALLBACK));
        claims.wake_all();
        assert_eq!(claims.wake_at(), Some(Time::ZERO));
        claims.stop();
        assert_eq!(claims.wake_at(), None, "nothing is claimed any more");
    }
}
