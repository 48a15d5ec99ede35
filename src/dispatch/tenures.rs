//! The leases of one provider's pacing groups, together: what is due is due for many at once, so that a thousand groups
//! cost one statement every two seconds.

use std::time::Duration;

use super::core::{Allowance, Sent};
use super::lease::{Counted, Renewal, Standing, Tenure};
use crate::pace::{GroupId, Time};

/// A renewal that is due this much later joins those that are due now.
const JOIN: Duration = Duration::from_millis(500);
/// Two batches of renewals are at least so far apart.
const APART: Duration = Duration::from_millis(50);

/// All of them, by the number of their group.
#[derive(Debug)]
pub(super) struct Tenures {
    list: Vec<Tenure>,
    /// No renewal is due before.
    look_at: Time,
    /// No batch begins before.
    next_batch: Time,
    /// Those that are given away and not let go of yet.
    leaving: Vec<GroupId>,
    counted: Counted,
}

impl Tenures {
    /// None is held.
    pub(super) fn new(count: usize, counted: Counted) -> Self {
        let list = (0..count).map(|_| Tenure::new(counted)).collect();
        Self { list, look_at: Time::MAX, next_batch: Time::ZERO, leaving: Vec::new(), counted }
    }

    /// More groups, at the end: so many in all. None of them is held.
    pub(super) fn grow(&mut self, count: usize) {
        while self.list.len() < count {
            self.list.push(Tenure::new(self.counted));
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The groups of which that is so.
    pub(super) fn that_are(&self, standing: Standing) -> Vec<GroupId> {
        let groups = self.list.iter().enumerate().filter(|(_, tenure)| tenure.standing() == standing);
        groups.map(|(number, _)| GroupId(number as u32)).collect()
    }

    /// Whether nothing is held, asked for or on its way to others.
    pub(super) fn are_over(&self) -> bool {
        self.list.iter().all(|tenure| tenure.standing() == Standing::Without)
    }

    pub(super) fn standing(&self, group: GroupId) -> Standing {
        self.list.get(group.0 as usize).map_or(Standing::Without, Tenure::standing)
    }

    /// What may be sent of a group.
    pub(super) fn allowed(&self, group: GroupId) -> Allowance {
        let nothing = Allowance { until: Time::ZERO, calls: 0, open: 0 };
        self.list.get(group.0 as usize).map_or(nothing, Tenure::allowed)
    }

    /// Asks for a group. `false`: it is held already, or being asked for.
    pub(super) fn ask(&mut self, group: GroupId) -> bool {
        self.change(group, Tenure::ask).unwrap_or(false)
    }

    pub(super) fn taken(&mut self, group: GroupId, epoch: i64, now: Time) {
        self.change(group, |tenure| tenure.taken(epoch, now));
    }

    /// Somebody else has it, nobody has it any more, or the store is away.
    pub(super) fn lost(&mut self, group: GroupId) {
        self.leaving.retain(|other| *other != group);
        self.change(group, Tenure::lost);
    }

    pub(super) fn renewed(&mut self, group: GroupId) {
        self.change(group, Tenure::renewed);
    }

    pub(super) fn not_renewed(&mut self, group: GroupId, now: Time) {
        self.change(group, |tenure| tenure.not_renewed(now));
    }

    /// Calls left.
    pub(super) fn sent(&mut self, sent: Sent) {
        self.change(sent.group, |tenure| tenure.sent(sent.calls, sent.open));
    }

    /// Gives a group away.
    pub(super) fn leave(&mut self, group: GroupId) {
        if self.standing(group) == Standing::Held {
            self.change(group, Tenure::leave);
            self.leaving.push(group);
        }
    }

    /// The renewals to begin now: those that are due, and with them those that soon would be.
    pub(super) fn renewals(&mut self, now: Time) -> Vec<(GroupId, Renewal)> {
        if now < self.look_at || now < self.next_batch {
            return Vec::new();
        }
        let mut due = Vec::new();
        if self.list.iter().filter_map(Tenure::renew_at).any(|at| at <= now) {
            self.next_batch = now + APART;
            let renewals = self.list.iter_mut().enumerate();
            due.extend(renewals.filter_map(|(n, tenure)| Some((GroupId(n as u32), tenure.renew(now, now + JOIN)?))));
        }
        self.look_at = self.list.iter().filter_map(Tenure::renew_at).min().unwrap_or(Time::MAX);
        due
    }

    /// Those to let go of now, with their epochs: given away, and nothing of them is open any more.
    pub(super) fn releases(&mut self, is_free: impl Fn(GroupId) -> bool) -> Vec<(GroupId, i64)> {
        let mut releases = Vec::new();
        let list = &mut self.list;
        self.leaving.retain(|&group| {
            let tenure = list.get_mut(group.0 as usize).filter(|_| is_free(group));
            let epoch = tenure.and_then(Tenure::release);
            releases.extend(epoch.map(|epoch| (group, epoch)));
            epoch.is_none()
        });
        releases
    }

    /// When a renewal is due.
    pub(super) fn wake_at(&self) -> Option<Time> {
        (self.look_at < Time::MAX).then(|| self.look_at.max(self.next_batch))
    }

    fn change<T>(&mut self, group: GroupId, act: impl FnOnce(&mut Tenure) -> T) -> Option<T> {
        let tenure = self.list.get_mut(group.0 as usize)?;
        let done = act(tenure);
        if let Some(at) = tenure.renew_at() {
            self.look_at = self.look_at.min(at);
        }
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(1_000_000 + millis)
    }

    fn groups(renewals: &[(GroupId, Renewal)]) -> Vec<u32> {
        renewals.iter().map(|(group, _)| group.0).collect()
    }

    /// Each taken at its time, and renewed at once.
    fn held(times: &[u64]) -> Tenures {
        let mut tenures = Tenures::new(times.len(), Counted { calls: true, open: true });
        for (n, time) in times.iter().enumerate() {
            let group = GroupId(n as u32);
            assert!(tenures.ask(group));
            tenures.taken(group, 7, at(*time));
            assert_eq!(groups(&tenures.renewals(at(*time))), [group.0]);
            tenures.renewed(group);
        }
        tenures
    }

    #[test]
    fn renewals_that_are_due_about_then_go_together_and_stay_together() {
        let mut tenures = held(&[0, 300, 450, 900]);
        assert_eq!(tenures.wake_at(), Some(at(2_000)));
        assert!(tenures.renewals(at(1_999)).is_empty());
        let due = tenures.renewals(at(2_000));
        assert_eq!(groups(&due), [0, 1, 2]);
        due.iter().for_each(|(group, _)| tenures.renewed(*group));
        assert_eq!(tenures.wake_at(), Some(at(2_900)));
        assert_eq!(groups(&tenures.renewals(at(2_900))), [3]);
        tenures.renewed(GroupId(3));
        assert_eq!(groups(&tenures.renewals(at(4_000))), [0, 1, 2]);
    }

    #[test]
    fn one_whose_calls_run_out_is_renewed_early_and_alone() {
        let mut tenures = held(&[0, 100]);
        tenures.sent(Sent { group: GroupId(1), calls: 600, open: 1 });
        assert_eq!(tenures.wake_at(), Some(at(150)));
        assert_eq!(groups(&tenures.renewals(at(150))), [1]);
        assert_eq!(tenures.allowed(GroupId(0)).calls, 1_000);
        assert_eq!(tenures.allowed(GroupId(1)).calls, 400, "until it is renewed");
    }

    #[test]
    fn what_is_given_away_is_let_go_of_when_its_calls_have_ended() {
        let mut tenures = held(&[0, 100, 200]);
        tenures.leave(GroupId(0));
        tenures.leave(GroupId(2));
        assert_eq!(tenures.allowed(GroupId(0)).calls, 0);
        assert_eq!(tenures.releases(|group| group == GroupId(2)), [(GroupId(2), 7)]);
        assert!(tenures.releases(|group| group == GroupId(2)).is_empty(), "once");
        assert_eq!(groups(&tenures.renewals(at(2_000))), [0, 1], "it is held until then");
        assert!(tenures.releases(|_| true).is_empty(), "while it is being written, too");
        tenures.renewed(GroupId(0));
        assert_eq!(tenures.releases(|_| true), [(GroupId(0), 7)]);
        assert_eq!(tenures.that_are(Standing::Held), [GroupId(1)]);
        (0..3).for_each(|n| tenures.lost(GroupId(n)));
        assert!(tenures.are_over());
    }
}
