//! The pacing groups of a provider: which of them this dispatcher holds, and how much it may send of each.

use super::leave::Leave;
use super::message::{Allowance, Now};
use super::{Core, Doors, Stage};
use crate::pace::{GroupId, Hold, KeyId, Left, Pin, Pool, Saved, Since, Time};
use crate::store::{JobPk, Next};

/// One group, as this dispatcher holds it.
#[derive(Debug)]
struct Group {
    held: bool,
    /// What may be sent still.
    allowed: Allowance,
    open: u64,
    /// Calls that are being committed as started.
    starting: u64,
    /// Since somebody asked last.
    sent: Sent,
    /// For calls on their way to a connection.
    leave: Leave,
}

/// What was sent of one group since somebody asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Which group.
    pub group: GroupId,
    /// Calls that left.
    pub calls: u64,
    /// The most that were open at once.
    pub open: u64,
}

impl Group {
    /// Whether a call that has its permit may leave.
    fn may_send(&self, now: Time) -> bool {
        let Allowance { until, calls, open } = self.allowed;
        self.held && now < until && calls > 0 && self.open < open
    }

    /// Whether another permit may be given.
    fn has_room(&self, now: Time) -> bool {
        let Allowance { until, calls, open } = self.allowed;
        self.held && now < until && calls > self.starting && self.open + self.starting < open
    }
}

/// All groups.
#[derive(Debug)]
pub(super) struct Groups {
    list: Vec<Group>,
    held: usize,
    /// Those with something in `sent`.
    sent: Vec<GroupId>,
    /// No allowance ends before that.
    look_at: Time,
}

impl Groups {
    /// All held, without any bound.
    pub(super) fn new(count: usize) -> Self {
        let allowed = Allowance { until: Time::MAX, calls: u64::MAX, open: u64::MAX };
        let sent = |number: usize| Sent { group: GroupId(number as u32), calls: 0, open: 0 };
        let leave = || Leave::until(allowed.until);
        let group = |number| Group { held: true, allowed, open: 0, starting: 0, sent: sent(number), leave: leave() };
        Self { list: (0..count).map(group).collect(), held: count, sent: Vec::new(), look_at: Time::MAX }
    }

    /// One group more, which is not held.
    pub(super) fn add(&mut self) {
        let group = GroupId(self.list.len() as u32);
        let allowed = Allowance { until: Time::ZERO, calls: 0, open: 0 };
        let sent = Sent { group, calls: 0, open: 0 };
        self.list.push(Group { held: false, allowed, leave: Leave::until(Time::ZERO), open: 0, starting: 0, sent });
    }

    fn get(&mut self, group: GroupId) -> Option<&mut Group> {
        self.list.get_mut(group.0 as usize)
    }

    pub(super) fn is_held(&self, group: GroupId) -> bool {
        self.list.get(group.0 as usize).is_some_and(|group| group.held)
    }

    pub(super) fn hold_all(&self) -> bool {
        self.held == self.list.len()
    }

    fn count(&mut self, group: GroupId, calls: u64) {
        let Some(state) = self.list.get_mut(group.0 as usize) else { return };
        if state.sent.calls == 0 && state.sent.open == 0 {
            self.sent.push(group);
        }
        state.sent.calls += calls;
        state.sent.open = state.sent.open.max(state.open);
    }
}

/// A group that is taken over, and what others left of it.
#[derive(Debug, Clone)]
pub struct Heir<'a> {
    /// Which group.
    pub group: GroupId,
    /// `None`: nobody knows what was spent, so everything counts as used.
    pub left: Option<Vec<Left<'a>>>,
}

impl Heir<'_> {
    /// Whether all is known that was spent.
    pub fn is_clean(&self) -> bool {
        self.left.as_ref().is_some_and(|left| left.iter().all(|left| left.since == Since::Nothing))
    }
}

/// How the number of calls of a group changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A call is being committed as started.
    Starts,
    /// It does not leave after all, or leaves now.
    Started,
    /// A call leaves.
    Leaves,
    /// A call is over.
    Ends,
}

impl Core {
    /// How many pacing groups there are; their ids are the numbers below.
    pub fn group_count(&self) -> usize {
        self.groups.list.len()
    }

    /// What jobs may be pinned to that no group held here can serve.
    pub fn pins_away(&self) -> Vec<String> {
        let away = (0..self.group_count()).map(|n| GroupId(n as u32)).filter(|group| !self.groups.is_held(*group));
        away.flat_map(|group| self.pool.pins_of(group).map(str::to_owned)).collect()
    }

    /// Nothing is sent of a held group beyond that; without any allowance everything may be.
    pub fn allow(&mut self, group: GroupId, allowance: Allowance, now: Time) {
        if let Some(state) = self.groups.get(group) {
            state.allowed = allowance;
            self.groups.look_at = self.groups.look_at.min(allowance.until);
            self.settle(group, now);
        }
    }

    /// Holds these groups from now on, with what others left of them. Only while nothing of them is in hand; nothing is
    /// sent before it is allowed.
    pub fn inherit(&mut self, heirs: &[Heir<'_>], now: Now) {
        heirs.iter().for_each(|heir| self.pool.forget(heir.group));
        let walls = heirs.iter().filter_map(|heir| heir.left.as_ref()).flatten();
        let walls = walls.map(|left| (left.saved.walls.as_slice(), left.elapsed));
        self.quotas.inherit(walls, &mut self.pool, now);
        for heir in heirs {
            match &heir.left {
                Some(left) => self.pool.restore_group(heir.group, left, now.mono),
                None => self.pool.assume_group_spent(heir.group, now.mono),
            }
            if let Some(state) = self.groups.get(heir.group)
                && !std::mem::replace(&mut state.held, true)
            {
                self.groups.held += 1;
            }
            self.allow(heir.group, Allowance { until: Time::ZERO, calls: 0, open: 0 }, now.mono);
        }
        self.obey();
    }

    /// What was spent of a group, for whoever comes next.
    pub fn save(&mut self, group: GroupId, now: Time) -> Saved {
        Saved { walls: self.quotas.save(now), ..self.pool.save_group(group, now) }
    }

    /// Whether no call of a group is open, or about to be.
    pub fn is_free(&self, group: GroupId) -> bool {
        self.groups.list.get(group.0 as usize).is_none_or(|group| group.open + group.starting == 0)
    }

    /// What was sent since this was asked last, of each group of which something was.
    pub fn take_sent(&mut self) -> Vec<Sent> {
        let groups = std::mem::take(&mut self.groups.sent);
        let take = |group: GroupId| {
            let state = self.groups.list.get_mut(group.0 as usize)?;
            Some(std::mem::replace(&mut state.sent, Sent { group, calls: 0, open: 0 }))
        };
        groups.into_iter().filter_map(take).collect()
    }

    /// These groups are not held any more: what is pinned to them goes back to the store, and everything does where
    /// nothing is held. Calls that are open end as they would.
    pub(super) fn suspend(&mut self, groups: &[GroupId], now: Now) {
        for &group in groups {
            if let Some(state) = self.groups.get(group)
                && std::mem::replace(&mut state.held, false)
            {
                self.groups.held -= 1;
                self.settle(group, now.mono);
            }
        }
        let in_line = self.jobs.iter().filter(|(_, held)| matches!(held.stage, Stage::InLine(_)));
        let stranded = in_line.filter(|(_, held)| !self.may_wait_here(held.ask.pin)).map(|(pk, _)| *pk);
        let stranded: Vec<JobPk> = stranded.collect();
        for pk in stranded {
            self.step_out(pk);
            self.record(pk, Next::Release, None, false, now);
        }
    }

    /// Whether a job with this pin may wait in line here.
    pub(super) fn may_wait_here(&self, pin: Option<Pin>) -> bool {
        self.doors == Doors::Open
            && match pin.and_then(|pin| self.pool.group_of_pin(pin)) {
                Some(group) => self.groups.is_held(group),
                None => self.groups.held > 0,
            }
    }

    /// Whether a call with a permit for this key may leave now.
    pub(super) fn may_leave(&self, key: KeyId, now: Time) -> bool {
        let group = self.pool.group_of(key).and_then(|group| self.groups.list.get(group.0 as usize));
        group.is_some_and(|group| group.may_send(now))
    }

    /// Whether calls with a permit for this key may still leave, from now on.
    pub fn leave(&self, key: KeyId) -> Leave {
        let group = self.pool.group_of(key).and_then(|group| self.groups.list.get(group.0 as usize));
        group.map_or_else(|| Leave::until(Time::ZERO), |group| group.leave.clone())
    }

    /// Whether anything may be sent of anything.
    pub fn holds_something(&self, now: Time) -> bool {
        self.groups.held > 0 && self.groups.list.iter().any(|group| group.held && now < group.allowed.until)
    }

    /// Counts a call of the group of this key.
    pub(super) fn count(&mut self, key: KeyId, step: Step, now: Time) {
        let Some(group) = self.pool.group_of(key) else { return };
        let Some(state) = self.groups.get(group) else { return };
        match step {
            Step::Starts => state.starting += 1,
            Step::Started => state.starting = state.starting.saturating_sub(1),
            Step::Leaves => {
                state.open += 1;
                state.allowed.calls = state.allowed.calls.saturating_sub(1);
            }
            Step::Ends => state.open = state.open.saturating_sub(1),
        }
        if step == Step::Leaves {
            self.groups.count(group, 1);
        }
        self.settle(group, now);
    }

    /// Shuts the groups whose allowance has ended.
    pub(super) fn shut_what_ended(&mut self, now: Time) {
        if now < self.groups.look_at {
            return;
        }
        self.groups.look_at = Time::MAX;
        for number in 0..self.groups.list.len() {
            let until = self.groups.list[number].allowed.until;
            if until <= now {
                self.settle(GroupId(number as u32), now);
            } else {
                self.groups.look_at = self.groups.look_at.min(until);
            }
        }
    }

    /// Tells the pool whether permits of a group may be given.
    pub(super) fn settle(&mut self, group: GroupId, now: Time) {
        let Some(state) = self.groups.get(group) else { return };
        state.leave.set(if state.held { state.allowed.until } else { Time::ZERO });
        let hold = match state {
            state if !state.held => Hold::Away,
            state if state.has_room(now) => Hold::Open,
            _ => Hold::Shut,
        };
        self.pool.set_hold(group, hold);
    }
}

/// All groups of a pool, held.
pub(super) fn of(pool: &Pool) -> Groups {
    Groups::new(pool.group_count())
}
