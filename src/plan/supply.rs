//! The jobs of one lane, as they come; none of them is kept before it is claimed.

use super::dice::Dice;
use crate::pace::Time;

/// See the module.
#[derive(Debug, Clone)]
pub struct Supply {
    /// The lane's place in the provider's list.
    pub lane: usize,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// They are all there.
    There { left: u64 },
    /// They come at random until the end.
    Coming { per_second: f64, next: Time, end: Time, dice: Dice },
}

impl Supply {
    /// So many jobs that are there from the beginning.
    pub const fn there(lane: usize, jobs: u64) -> Self {
        Self { lane, kind: Kind::There { left: jobs } }
    }

    /// So many jobs a second on average, until `end`.
    pub fn coming(lane: usize, per_second: f64, end: Time, mut dice: Dice) -> Self {
        let next = Time::ZERO + dice.gap(per_second);
        Self { lane, kind: Kind::Coming { per_second, next, end, dice } }
    }

    /// When the next job comes or came; `None` where there is none any more.
    pub fn next_at(&self) -> Option<Time> {
        match &self.kind {
            Kind::There { left } => (*left > 0).then_some(Time::ZERO),
            Kind::Coming { next, end, .. } => (next < end).then_some(*next),
        }
    }

    /// Whether no job is left.
    pub fn is_spent(&self) -> bool {
        self.next_at().is_none()
    }

    /// The next job, where it has come by now: when it came.
    pub fn take(&mut self, now: Time) -> Option<Time> {
        let at = self.next_at().filter(|at| *at <= now)?;
        match &mut self.kind {
            Kind::There { left } => *left -= 1,
            Kind::Coming { per_second, next, dice, .. } => *next = at + dice.gap(*per_second),
        }
        Some(at)
    }

    /// How many have come by now and were not taken; of those that come at random, about.
    pub fn arrived_unclaimed(&self, now: Time) -> u64 {
        match &self.kind {
            Kind::There { left } => *left,
            Kind::Coming { per_second, next, end, .. } => {
                let passed = now.min(*end).since(*next).as_secs_f64();
                (passed * per_second) as u64
            }
        }
    }
}
