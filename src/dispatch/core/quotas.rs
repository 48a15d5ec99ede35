//! Calendar quotas under a wall clock that may jump: tells the pool which period is running.
//!
//! The monotonic clock never jumps, so that what was sent when is certain; only where a period ends is the wall
//! clock's word. The difference between the two clocks says which wall clock was seen. Every one that was seen within
//! [`MEMORY`] may be the right one, and each has its own edges: a period ends when by all of them it is over, and a
//! call sent while some of them disagree counts in both periods. So a quota is not exceeded as long as one of these
//! clocks was right. They are handed on with what was spent.

use std::time::Duration;

use super::message::Now;
use crate::calendar::{Calendar, Moment};
use crate::clock::WallMs;
use crate::config::{Quota, QuotaPlace};
use crate::pace::{Edge, KeyId, Place, Pool, QuotaPeriod, Time};

/// A wall clock is believed for so long after it was last seen: longer than any period.
const MEMORY: Duration = Duration::from_secs(32 * 86_400);
/// Wall clocks that may be right. With more of them nothing is known of edges.
const WALLS_MAX: usize = 8;
/// Clocks this close are one; a provider's may differ by as much from ours.
const MARGIN_MS: i64 = 2_000;
/// A clock that shows an earlier time (2026-01-01) was never set.
const UNSET_BEFORE_MS: WallMs = 1_767_225_600_000;
/// How often periods are worked out anew though nothing seems to have happened.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A wall clock that may be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wall {
    /// What it is ahead of the monotonic clock.
    offset_ms: i64,
    /// When it was seen last.
    seen: Time,
}

#[derive(Debug)]
struct Told {
    quota: Quota,
    period: Option<QuotaPeriod>,
}

/// The calendar quotas of one provider.
#[derive(Debug)]
pub(super) struct Quotas {
    told: Vec<Told>,
    /// Those that were seen, the latest at the end; one more than [`WALLS_MAX`] at most.
    walls: Vec<Wall>,
    look_at: Time,
    keys: usize,
}

impl Quotas {
    /// Nothing was told yet, so that every call counts for the longest period.
    pub fn new(quotas: &[Quota]) -> Self {
        let told = quotas.iter().map(|quota| Told { quota: quota.clone(), period: None }).collect();
        Self { told, walls: Vec::new(), look_at: Time::ZERO, keys: 0 }
    }

    /// Tells the pool which periods are running, where that has changed. To be called before anything is permitted.
    pub fn look(&mut self, pool: &mut Pool, now: Now) {
        if self.told.is_empty() {
            return;
        }
        let offset_ms = offset(now);
        let known = self.walls.last().is_some_and(|wall| is_same(wall.offset_ms, offset_ms));
        if known && now.mono < self.look_at && pool.key_count() == self.keys {
            return;
        }
        self.look_at = now.mono + LOOK_EVERY;
        if now.wall >= UNSET_BEFORE_MS {
            self.saw(offset_ms, now.mono);
        }
        self.walls.retain(|wall| now.mono.since(wall.seen) < MEMORY);
        let all = std::mem::replace(&mut self.keys, pool.key_count()) != pool.key_count();
        for told in &mut self.told {
            let period = running(&told.quota.calendar, &self.walls, now.mono);
            if all || told.period != period {
                told.period = period;
                tell(pool, &told.quota, period);
            }
        }
    }

    /// Tells everything again to a pool in which limits were made anew, with the wall clocks that predecessors saw, each
    /// so long ago.
    pub fn inherit<'a>(
        &mut self,
        all_walls: impl Iterator<Item = (&'a [(WallMs, u64)], Duration)>,
        pool: &mut Pool,
        now: Now,
    ) {
        self.told.iter_mut().for_each(|told| told.period = None);
        (self.look_at, self.keys) = (Time::ZERO, 0);
        for (walls, elapsed) in all_walls {
            for (shown_ms, seen_ago_ms) in walls.iter().take(WALLS_MAX + 1) {
                let ago = Duration::from_millis(*seen_ago_ms).saturating_add(elapsed);
                let seen = now.mono.since(Time::ZERO).checked_sub(ago).map_or(Time::ZERO, |since| Time::ZERO + since);
                let shows_ms = shown_ms.saturating_add(super::millis(elapsed));
                self.saw(shows_ms.saturating_sub(mono_ms(now.mono)), seen);
            }
        }
        self.look(pool, now);
    }

    /// The wall clocks that may be right, for whoever comes next: what each shows now, and how long ago it did.
    pub fn save(&self, now: Time) -> Vec<(WallMs, u64)> {
        let shows = |wall: &Wall| wall.offset_ms.saturating_add(mono_ms(now));
        let ago = |wall: &Wall| u64::try_from(now.since(wall.seen).as_millis()).unwrap_or(u64::MAX);
        self.walls.iter().map(|wall| (shows(wall), ago(wall))).collect()
    }

    fn saw(&mut self, offset_ms: i64, seen: Time) {
        let mut wall = Wall { offset_ms, seen };
        if let Some(place) = self.walls.iter().position(|wall| is_same(wall.offset_ms, offset_ms)) {
            // As it was seen first: many small steps must not carry it away.
            let known = self.walls.remove(place);
            wall = Wall { seen: known.seen.max(seen), ..known };
        }
        self.walls.push(wall);
        if self.walls.len() > WALLS_MAX + 1
            && let Some(oldest) = (0..self.walls.len()).min_by_key(|&n| self.walls[n].seen)
        {
            self.walls.remove(oldest);
        }
    }
}

/// The edges around now: each lies where it is by one of the clocks, the current one first.
fn running(calendar: &Calendar, walls: &[Wall], now: Time) -> Option<QuotaPeriod> {
    let (current, others) = walls.split_last().filter(|_| walls.len() <= WALLS_MAX)?;
    let period = calendar.period(current.shows_ms(now))?;
    let edge = |moment: Moment| {
        let mut edge = current.edge(moment);
        let at = edge.low;
        for other in others {
            // An edge of each clock is enough: what was counted before all of them is forgotten after the last.
            let same = other.edge(calendar.nearest(other.shows_ms(at))?);
            edge = Edge { low: edge.low.min(same.low), high: edge.high.max(same.high) };
        }
        Some(edge)
    };
    Some(QuotaPeriod { begins: edge(period.begins)?, ends: edge(period.ends)? })
}

impl Wall {
    fn shows_ms(self, at: Time) -> WallMs {
        self.offset_ms.saturating_add(mono_ms(at))
    }

    /// On the monotonic clock. What was before its origin is at its origin.
    fn edge(self, moment: Moment) -> Edge {
        let mono = |wall_ms: WallMs| {
            let ms = u64::try_from(wall_ms.saturating_sub(self.offset_ms)).unwrap_or(0);
            Time::ZERO + Duration::from_millis(ms)
        };
        Edge {
            low: mono(moment.earliest_ms.saturating_sub(MARGIN_MS)),
            high: mono(moment.latest_ms.saturating_add(MARGIN_MS)),
        }
    }
}

fn tell(pool: &mut Pool, quota: &Quota, period: Option<QuotaPeriod>) {
    let every_key = 0..u32::try_from(pool.key_count()).unwrap_or(u32::MAX);
    let mut at = |place| pool.quota_period(place, quota.limit, period);
    match quota.place {
        QuotaPlace::Provider => at(Place::Provider),
        QuotaPlace::Budget(number) => {
            at(Place::Budget(crate::pace::BudgetId(u32::try_from(number).unwrap_or(u32::MAX))))
        }
        QuotaPlace::Route(route) => at(Place::Route(route)),
        QuotaPlace::Keys => every_key.for_each(|key| at(Place::Key(KeyId(key)))),
        QuotaPlace::RouteKeys(route) => every_key.for_each(|key| at(Place::RouteKey(route, KeyId(key)))),
    }
}

fn offset(now: Now) -> i64 {
    now.wall.saturating_sub(mono_ms(now.mono))
}

fn is_same(one_ms: i64, other_ms: i64) -> bool {
    one_ms.abs_diff(other_ms) <= MARGIN_MS.unsigned_abs()
}

fn mono_ms(at: Time) -> i64 {
    i64::try_from(at.as_nanos() / 1_000_000).unwrap_or(i64::MAX)
}
