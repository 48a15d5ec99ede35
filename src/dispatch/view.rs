//! What a look at the leases of a provider shows a dispatcher: who holds which group, who lives, and when to look again.

use std::collections::HashMap;
use std::time::Duration;

use super::lease::{self, Standing};
use super::spread::{Holder, Turn, spread};
use super::tenures::Tenures;
use crate::pace::{GroupId, Time};
use crate::store::{LeaseSurvey, OwnerId};

/// Who has its share looks this often whether the others still live, and sooner where a lease is about to run out.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Two looks are at least so far apart, unless somebody says that there is something to see.
const LOOK_APART: Duration = Duration::from_millis(20);

/// What the dispatcher knows by itself.
pub(super) struct Own<'a> {
    /// Of its groups.
    pub names: &'a [String],
    /// Stands for these names.
    pub structure: &'a str,
    pub tenures: &'a Tenures,
}

/// What a look showed.
pub(super) struct View<'a> {
    /// Of each group, by its number.
    holders: Vec<Holder<'a>>,
    alive: Vec<&'a str>,
    /// Somebody holds a group that is not configured here.
    pub strangers: bool,
    /// When the first lease of others runs out, unless it is renewed.
    expires_in: Duration,
}

impl<'a> View<'a> {
    /// Since when a group was seen to be nobody's is remembered in `free_since`.
    pub(super) fn of(
        own: &Own<'_>,
        survey: &'a LeaseSurvey,
        me: &'a OwnerId,
        free_since: &mut [Option<Time>],
        now: Time,
    ) -> Self {
        let numbers: HashMap<&str, usize> =
            own.names.iter().enumerate().map(|(number, name)| (name.as_str(), number)).collect();
        let same = survey.dispatchers.iter().filter(|dispatcher| *dispatcher.structure == *own.structure);
        let mut alive: Vec<&str> = same.map(|dispatcher| dispatcher.owner.as_str()).collect();
        let mut holders = vec![Holder::Nobody(Duration::ZERO); own.names.len()];
        let (mut strangers, mut expires_in) = (false, Duration::MAX);
        for seen in &survey.leases {
            let other = seen.owner.as_deref().filter(|owner| owner != me);
            let Some(&number) = numbers.get(seen.name.as_str()) else {
                strangers |= other.is_some() && !seen.expires_in.is_zero();
                continue;
            };
            holders[number] = match other {
                Some(owner) if !seen.expires_in.is_zero() => {
                    expires_in = expires_in.min(seen.expires_in);
                    Holder::Other(owner)
                }
                _ => Holder::Nobody(Duration::ZERO),
            };
            if let Holder::Other(owner) = holders[number] {
                alive.push(owner);
            }
        }
        // Whose lease ran out does not live, whatever its last heartbeat.
        let ran_out = |owner: &&str| {
            survey.leases.iter().any(|seen| seen.owner.as_deref() == Some(owner) && seen.expires_in.is_zero())
        };
        alive.sort_unstable();
        alive.dedup();
        alive.retain(|owner| *owner == me || !ran_out(owner));
        for (number, (holder, free_since)) in holders.iter_mut().zip(free_since).enumerate() {
            match own.tenures.standing(GroupId(number as u32)) {
                Standing::Held => *holder = Holder::Me,
                Standing::Leaving | Standing::Busy => *holder = Holder::Other(me),
                Standing::Without => {}
            }
            match holder {
                Holder::Nobody(since) => *since = now.since(*free_since.get_or_insert(now)),
                Holder::Me | Holder::Other(_) => *free_since = None,
            }
        }
        Self { holders, alive, strangers, expires_in }
    }

    /// What to take and to give away.
    pub(super) fn turn(&self, me: &OwnerId) -> Turn {
        spread(me, &self.alive, &self.holders)
    }

    /// Who lacks something looks soon again; who has its share, when something may come free.
    pub(super) fn next_look(&self, turn: &Turn) -> Duration {
        let mine = self.holders.iter().filter(|holder| **holder == Holder::Me).count() + turn.take.len();
        let lacks = self.strangers || mine < self.holders.len() / self.alive.len().max(1);
        let left = self.holders.iter().filter(|holder| matches!(holder, Holder::Nobody(_))).count() > turn.take.len();
        let every = if lacks || left { lease::ASK_EVERY } else { LOOK_EVERY };
        // A millisecond more: it has run out then.
        every.min(self.expires_in.saturating_add(Duration::from_millis(1))).max(LOOK_APART)
    }
}
