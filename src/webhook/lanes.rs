//! Whose delivery goes next. Pure: time is an argument.
//!
//! Every endpoint has a lane of its own with a limit of calls at the same time. It starts low, grows
//! by one with every answer (so it doubles a round trip) up to half of all slots, and is halved when
//! the endpoint is silent or says that it is overloaded. Lanes take turns.
//!
//! So that an endpoint which hangs slows nobody else:
//!
//! * endpoints that never answered, or did not answer last time, share half of the slots; only the first
//!   call to one that is new may take a slot of the next quarter, so that newcomers are found out about
//!   even then;
//! * an endpoint that has been silent for [`PATIENCE`] while calls are open is *stuck*: what waits
//!   for it is let go of, but for a few. The claim of what was let go of runs out in the store, and it
//!   is claimed again then: nothing is recorded, no attempt is spent.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::send::Prepared;
use crate::pace::Time;

/// Calls to an endpoint that nothing is known of.
const FIRST_LIMIT: usize = 4;
/// An endpoint that answers nothing for so long while calls are open is stuck.
const PATIENCE: Duration = Duration::from_secs(1);
/// Endpoints that are remembered at most; idle ones go first.
const LANES_MAX: usize = 4_096;

/// Bounds of all lanes together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Calls at the same time.
    pub(super) calls_max: usize,
    /// Deliveries that wait for their turn, and their bodies.
    pub(super) waiting_max: usize,
    pub(super) waiting_bytes_max: usize,
    /// A claimed delivery that has waited longer is let go of, since its claim is about to run out.
    pub(super) wait_max: Duration,
}

/// How an endpoint took a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// It answered.
    Answered,
    /// It answered that it is asked too much.
    Overloaded,
    /// It did not.
    Silent,
}

#[derive(Debug)]
struct Lane {
    limit: usize,
    open: usize,
    waiting: VecDeque<(Prepared, Time)>,
    /// It has a place in the turns.
    in_turns: bool,
    /// It answered the last time.
    proven: bool,
    /// It was silent the last time.
    suspect: bool,
    /// The last answer, or when its only open calls began.
    progress_at: Time,
}

impl Lane {
    fn new(limit_max: usize, now: Time) -> Self {
        Self {
            limit: FIRST_LIMIT.min(limit_max),
            open: 0,
            waiting: VecDeque::new(),
            in_turns: false,
            proven: false,
            suspect: false,
            progress_at: now,
        }
    }

    fn is_stuck(&self, now: Time) -> bool {
        self.suspect || (self.open > 0 && now.since(self.progress_at) > PATIENCE)
    }
}

/// The lanes of all endpoints.
#[derive(Debug)]
pub(super) struct Lanes {
    bounds: Bounds,
    lanes: HashMap<i64, Lane>,
    /// Endpoints that something waits for, in the order of their turns.
    turns: VecDeque<i64>,
    open: usize,
    open_unproven: usize,
    waiting: usize,
    waiting_bytes: usize,
}

impl Lanes {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            open: 0,
            open_unproven: 0,
            waiting: 0,
            waiting_bytes: 0,
        }
    }

    /// How many more deliveries may be claimed.
    pub(super) fn room(&self) -> usize {
        if self.waiting_bytes >= self.bounds.waiting_bytes_max {
            return 0;
        }
        self.bounds.waiting_max.saturating_sub(self.waiting)
    }

    /// Calls that are open.
    pub(super) const fn open(&self) -> usize {
        self.open
    }

    /// Deliveries that wait for their turn.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes a delivery whose claim began at `since`; says whether it is kept or was let go of.
    #[must_use]
    pub(super) fn offer(&mut self, delivery: Prepared, since: Time, now: Time) -> bool {
        if now.since(since) > self.bounds.wait_max {
            return false;
        }
        let endpoint = delivery.endpoint.pk;
        if self.lanes.len() >= LANES_MAX && !self.lanes.contains_key(&endpoint) {
            self.lanes.retain(|_, lane| lane.open > 0 || lane.in_turns);
        }
        let limit_max = self.limit_max();
        let lane = self.lanes.entry(endpoint).or_insert_with(|| Lane::new(limit_max, now));
        if lane.is_stuck(now) && lane.waiting.len() >= lane.limit {
            return false;
        }
        self.waiting += 1;
        self.waiting_bytes += delivery.body.len();
        lane.waiting.push_back((delivery, since));
        if !std::mem::replace(&mut lane.in_turns, true) {
            self.turns.push_back(endpoint);
        }
        true
    }

    /// The next delivery that may go. Its slot is taken until [`settle`](Self::settle).
    pub(super) fn next(&mut self, now: Time) -> Option<Prepared> {
        if self.open >= self.bounds.calls_max {
            return None;
        }
        let half = self.bounds.calls_max.div_ceil(2);
        let unproven_free = half.saturating_sub(self.open_unproven);
        let newcomer_free = (half + self.bounds.calls_max / 4).saturating_sub(self.open_unproven);
        for _ in 0..self.turns.len() {
            let endpoint = self.turns.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&endpoint) else { continue };
            let free = match lane {
                Lane { proven: true, .. } => usize::MAX,
                Lane { suspect: false, open: 0, .. } => newcomer_free,
                _ => unproven_free,
            };
            let blocked = lane.open >= lane.limit || free == 0;
            let taken = if blocked { None } else { lane.waiting.pop_front() };
            lane.in_turns = !lane.waiting.is_empty();
            if lane.in_turns {
                self.turns.push_back(endpoint);
            }
            let Some((delivery, _)) = taken else { continue };
            if lane.open == 0 {
                lane.progress_at = now;
            }
            lane.open += 1;
            self.open += 1;
            self.open_unproven += usize::from(!lane.proven);
            self.waiting -= 1;
            self.waiting_bytes -= delivery.body.len();
            return Some(delivery);
        }
        None
    }

    /// A call to that endpoint ended.
    pub(super) fn settle(&mut self, endpoint: i64, manner: Manner, now: Time) {
        let limit_max = self.limit_max();
        let Some(lane) = self.lanes.get_mut(&endpoint) else { return };
        let was_proven = lane.proven;
        lane.limit = match manner {
            Manner::Answered => (lane.limit + 1).min(limit_max),
            Manner::Overloaded | Manner::Silent => (lane.limit / 2).max(1),
        };
        lane.proven = manner != Manner::Silent;
        lane.suspect = manner == Manner::Silent;
        if lane.proven {
            lane.progress_at = now;
        }
        // All its open calls counted as unproven, or none did.
        self.open_unproven -= if was_proven { 0 } else { lane.open };
        lane.open = lane.open.saturating_sub(1);
        self.open_unproven += if lane.proven { 0 } else { lane.open };
        self.open = self.open.saturating_sub(1);
    }

    /// Lets go of what waits behind stuck endpoints and of what has waited too long; says how many.
    pub(super) fn relieve(&mut self, now: Time) -> usize {
        let mut released = 0;
        for endpoint in &self.turns {
            let Some(lane) = self.lanes.get_mut(endpoint) else { continue };
            let keep = if lane.is_stuck(now) { lane.limit } else { usize::MAX };
            let oldest = |lane: &Lane| lane.waiting.front().map_or(now, |(_, since)| *since);
            while lane.waiting.len() > keep || now.since(oldest(lane)) > self.bounds.wait_max {
                let Some((delivery, _)) = lane.waiting.pop_front() else { break };
                released += 1;
                self.waiting -= 1;
                self.waiting_bytes -= delivery.body.len();
            }
        }
        released
    }

    /// Lets go of everything that waits; says how many.
    pub(super) fn clear(&mut self) -> usize {
        for lane in self.lanes.values_mut() {
            lane.waiting.clear();
            lane.in_turns = false;
        }
        self.turns.clear();
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting)
    }

    /// The most that a single endpoint gets.
    fn limit_max(&self) -> usize {
        self.bounds.calls_max.div_ceil(2)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::keyring::Signer;
    use super::*;
    use crate::store::Endpoint;
    use bytes::Bytes;
    use proptest::prelude::*;

    const START: Time = Time::from_nanos(1_000_000_000_000);
    const BOUNDS: Bounds =
        Bounds { calls_max: 64, waiting_max: 256, waiting_bytes_max: 1_000_000, wait_max: Duration::from_secs(20) };

    fn delivery(endpoint: i64, pk: i64) -> Prepared {
        Prepared {
            pk,
            epoch: 1,
            n: 1,
            step: 1,
            endpoint: Arc::new(Endpoint {
                pk: endpoint,
                id: format!("ep_{endpoint}"),
                tenant: String::new(),
                url: "https://example.com/".into(),
                implicit: true,
                secrets: None,
            }),
            signer: Signer::Tenant(String::new()),
            event_id: format!("evt_{pk}"),
            body: Bytes::from_static(b"0123456789"),
        }
    }

    fn offer(lanes: &mut Lanes, endpoint: i64, count: i64, now: Time) -> usize {
        (0..count).filter(|pk| lanes.offer(delivery(endpoint, *pk), now, now)).count()
    }

    fn go(lanes: &mut Lanes, now: Time) -> Vec<i64> {
        std::iter::from_fn(|| lanes.next(now)).map(|d| d.endpoint.pk).collect()
    }

    #[test]
    fn endpoints_take_turns() {
        let mut lanes = Lanes::new(BOUNDS);
        offer(&mut lanes, 1, 3, START);
        offer(&mut lanes, 2, 2, START);
        offer(&mut lanes, 3, 1, START);
        assert_eq!(go(&mut lanes, START), [1, 2, 3, 1, 2, 1]);
        assert_eq!((lanes.open(), lanes.waiting(), lanes.waiting_bytes, lanes.room()), (6, 0, 0, 256));
    }

    #[test]
    fn an_endpoint_that_answers_gets_more_slots_up_to_half_of_all() {
        let mut lanes = Lanes::new(BOUNDS);
        assert_eq!(offer(&mut lanes, 1, 200, START), 200);
        let mut calls = Vec::new();
        for _ in 0..4 {
            let open = go(&mut lanes, START).len();
            calls.push(open);
            (0..open).for_each(|_| lanes.settle(1, Manner::Answered, START));
        }
        assert_eq!(calls, [4, 8, 16, 32]);
        assert_eq!(go(&mut lanes, START).len(), 32, "and no more");
        (0..4).for_each(|_| lanes.settle(1, Manner::Overloaded, START));
        assert_eq!(lanes.lanes[&1].limit, 2);
    }

    #[test]
    fn a_hanging_endpoint_keeps_few_slots_and_what_waits_for_it_is_let_go_of() {
        let mut lanes = Lanes::new(BOUNDS);
        assert_eq!(offer(&mut lanes, 1, 256, START), 256);
        assert_eq!(go(&mut lanes, START).len(), 4);
        assert_eq!(lanes.room(), 4, "it fills the house");
        assert_eq!(lanes.relieve(START + PATIENCE), 0);
        let later = START + PATIENCE + Duration::from_millis(1);
        assert_eq!(lanes.relieve(later), 248, "and is shown the door");
        assert_eq!(offer(&mut lanes, 1, 100, later), 0);
        assert_eq!(offer(&mut lanes, 2, 100, later), 100);
        assert_eq!(go(&mut lanes, later), [2; 4]);
        // Its calls time out, one after the other: in the end it has a single slot.
        (0..4).for_each(|_| lanes.settle(1, Manner::Silent, later));
        assert_eq!(go(&mut lanes, later), [1]);
        assert_eq!(offer(&mut lanes, 1, 100, later), 0);
        // One answer, and it is trusted again.
        lanes.settle(1, Manner::Answered, later);
        assert_eq!(offer(&mut lanes, 1, 100, later), 100);
    }

    #[test]
    fn newcomers_that_hang_leave_slots_to_the_proven_and_to_other_newcomers() {
        let mut lanes = Lanes::new(BOUNDS);
        offer(&mut lanes, 1, 1, START);
        assert_eq!(go(&mut lanes, START), [1]);
        lanes.settle(1, Manner::Answered, START);
        (100..108).for_each(|hanging| assert_eq!(offer(&mut lanes, hanging, 8, START), 8));
        assert_eq!(go(&mut lanes, START).len(), 32, "half of the slots");
        // Sixteen more newcomers get a slot each; one of them answers and gets what it needs.
        (200..220).for_each(|newcomer| assert_eq!(offer(&mut lanes, newcomer, 8, START), 8));
        assert_eq!(go(&mut lanes, START), (200..216).collect::<Vec<_>>());
        lanes.settle(200, Manner::Answered, START);
        let next = go(&mut lanes, START);
        assert_eq!(next.iter().filter(|endpoint| **endpoint == 200).count(), 5);
        assert_eq!(next.iter().filter(|endpoint| **endpoint != 200).count(), 1, "a newcomer in its old place");
        // And the proven still go.
        offer(&mut lanes, 1, 20, START);
        assert_eq!(go(&mut lanes, START), [1; 5]);
    }

    #[test]
    fn what_has_waited_until_its_claim_runs_out_is_not_sent() {
        let mut lanes = Lanes::new(BOUNDS);
        offer(&mut lanes, 1, 20, START);
        assert_eq!(go(&mut lanes, START).len(), 4);
        let answered = START + Duration::from_secs(21);
        lanes.settle(1, Manner::Answered, answered);
        assert_eq!(lanes.relieve(answered), 16);
        assert_eq!((go(&mut lanes, answered).len(), lanes.room()), (0, 256));
        assert!(!lanes.offer(delivery(1, 1), START, answered), "the claim itself took that long");
    }

    #[test]
    fn large_bodies_end_the_room_early() {
        let mut lanes = Lanes::new(Bounds { waiting_bytes_max: 15, ..BOUNDS });
        offer(&mut lanes, 1, 1, START);
        assert_eq!(lanes.room(), 255);
        offer(&mut lanes, 1, 1, START);
        assert_eq!(lanes.room(), 0);
        assert_eq!(lanes.clear(), 2);
        assert_eq!(lanes.room(), 256);
    }

    #[test]
    fn lanes_that_nobody_uses_are_forgotten() {
        let mut lanes = Lanes::new(Bounds { waiting_max: usize::MAX, ..BOUNDS });
        for endpoint in 0..20_000 {
            offer(&mut lanes, endpoint, 1, START);
            go(&mut lanes, START);
            lanes.settle(endpoint, Manner::Answered, START);
        }
        assert!(lanes.lanes.len() <= LANES_MAX);
    }

    proptest! {
        /// Whatever happens in whatever order: the bounds hold, the counts are right, and each
        /// delivery that was kept comes out once or is let go of once.
        #[test]
        fn nothing_is_lost_and_no_bound_is_broken(steps in proptest::collection::vec((0..5u8, 0..6i64, 0..400u64), 1..400)) {
            let bounds = Bounds { calls_max: 10, waiting_max: 30, ..BOUNDS };
            let mut lanes = Lanes::new(bounds);
            let mut now = START;
            let mut open: Vec<i64> = Vec::new();
            let (mut kept, mut sent, mut released) = (0, 0, 0);
            for (step, endpoint, ms) in steps {
                now = now + Duration::from_millis(ms);
                match step {
                    0 | 1 => {
                        let room = i64::try_from(lanes.room()).expect("small").min(6);
                        kept += offer(&mut lanes, endpoint, room, now);
                    }
                    2 => {
                        let gone = go(&mut lanes, now);
                        sent += gone.len();
                        open.extend(gone);
                    }
                    3 => released += lanes.relieve(now),
                    _ => if !open.is_empty() {
                        let at = usize::try_from(endpoint).expect("small") % open.len();
                        let manner = [Manner::Answered, Manner::Overloaded, Manner::Silent][usize::from(ms % 3 == 0) + usize::from(ms % 3 == 1) * 2];
                        lanes.settle(open.swap_remove(at), manner, now);
                    },
                }
                prop_assert!(lanes.open() <= bounds.calls_max && lanes.waiting() <= bounds.waiting_max);
                prop_assert_eq!(lanes.open(), open.len());
                prop_assert_eq!(kept, sent + released + lanes.waiting());
                let unproven: usize = lanes.lanes.values().filter(|l| !l.proven).map(|l| l.open).sum();
                prop_assert_eq!(lanes.open_unproven, unproven);
                prop_assert_eq!(lanes.waiting_bytes, lanes.waiting() * 10);
            }
        }
    }
}
