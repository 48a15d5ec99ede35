//! The keys of one provider and everything that limits them: who may send what, and when.

use super::Time;
use super::ask::{Acquire, Ask, BudgetId, Flight, KeyId, Permit, Pin, Why};
use super::bank::{Bank, Standing};
use super::choice::Choice;
use super::group::Hold;
use super::limit::Trace;
use super::slot::Slot;
use super::spec::{BadSpec, KeySpec, PoolSpec};
use super::time::nanos;
use std::fmt;
use std::time::Duration;

/// So many answers are remembered for whoever waits for one of a certain key.
const ANSWERS: usize = 256;

/// All keys of one provider with their limits. It holds no clock: every call says what time it is, by a monotonic
/// clock (a time before one already given to `acquire` is taken as that).
///
/// ```
/// use paceline::pace::*;
/// use std::time::Duration;
///
/// let spec = PoolSpec {
///     key_limits: vec![LimitSpec::requests(2, Duration::from_secs(1), Algorithm::SlidingWindow)],
///     keys: vec![KeySpec { label: "a".into(), weight: 1, budget: None }],
///     ..PoolSpec::default()
/// };
/// let now = Time::ZERO;
/// let mut pool = Pool::new(&spec, now).unwrap();
/// for _ in 0..2 {
///     let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now) else { panic!() };
///     let mut flight = pool.depart(permit, now);
///     let answered = now + Duration::from_millis(100);
///     pool.first_byte(&mut flight, answered, None);
///     pool.finish(flight, answered, None);
/// }
/// // Both slots come back one second (and a guard of 1.1 ms) after the answers.
/// let Acquire::At(next) = pool.acquire(&Ask::default(), now + Duration::from_millis(100)) else { panic!() };
/// assert_eq!(next, now + Duration::from_micros(1_101_100));
/// ```
#[derive(Clone, Debug)]
pub struct Pool {
    pub(super) bank: Bank,
    pub(super) choice: Choice,
    pub(super) seen: Time,
    /// Moves on when something other than an answer made room: whoever waits should look again.
    loosened: u64,
    answers: Vec<KeyId>,
    answered: u64,
}

/// An ask that can never be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible {
    /// The limit that it exceeds, in words.
    pub limit: String,
    /// What it asks for.
    pub cost: u64,
    /// The most that the limit ever allows at once.
    pub largest: u64,
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a cost of {} exceeds {}, which allows at most {} at once", self.cost, self.limit, self.largest)
    }
}

impl std::error::Error for Impossible {}

impl Pool {
    /// A pool from which nothing has been sent. Use [`Pool::assume_spent`] where that is not known.
    pub fn new(spec: &PoolSpec, now: Time) -> Result<Pool, BadSpec> {
        spec.check()?;
        let bank = Bank::new(spec);
        let choice = Choice::new(&bank);
        Ok(Pool { bank, choice, seen: now, loosened: 0, answers: Vec::new(), answered: 0 })
    }

    /// Adds a key while running. Its budget, if any, is one of those declared.
    pub fn add_key(&mut self, spec: &KeySpec) -> Result<KeyId, BadSpec> {
        if spec.budget.is_some_and(|budget| budget >= self.bank.budgets.len()) {
            return Err(BadSpec::UnknownBudget { label: spec.label.clone() });
        }
        let id = self.bank.add_key(spec);
        self.choice.rebuild(&self.bank);
        self.loosened += 1;
        Ok(id)
    }

    /// Why an ask can never be granted: it costs more than a limit's whole capacity. `None` if it can.
    pub fn impossible(&self, ask: &Ask) -> Option<Impossible> {
        let over = |place: &str, limits: &[super::limit::Limit]| {
            let limit = limits.iter().find(|limit| limit.refuses(ask.cost))?;
            let per = Duration::from_nanos(limit.per);
            let limit_name = format!("the {place} limit of {} cost units per {per:?}", limit.declared);
            Some(Impossible { limit: limit_name, cost: ask.cost, largest: limit.largest })
        };
        let mut found = over("provider's", &self.bank.limits);
        for route in ask.routes.iter() {
            found = found.or_else(|| over("route's", self.bank.routes.get(route)?));
        }
        if found.is_some() {
            return found;
        }
        let mut last = None;
        for key in self.candidates(ask.pin) {
            let key = &self.bank.keys[key];
            let budget = &self.bank.budgets[key.budget];
            let narrow = self.bank.narrow.iter().enumerate().filter(|(_, route)| ask.routes.contains(**route));
            let of_key = over("key's", &key.limits)
                .or_else(|| over(&format!("budget {}'s", budget.name.as_deref().unwrap_or(&key.label)), &budget.limits))
                .or_else(|| narrow.map(|(place, _)| &key.narrow[place]).find_map(|l| over("route's key", l)));
            // One key that can serve it is enough.
            last = Some(of_key?);
        }
        last
    }

    fn candidates(&self, pin: Option<Pin>) -> impl Iterator<Item = usize> {
        let all = 0..self.bank.keys.len();
        let (range, of_budget) = match pin {
            None => (all, &[][..]),
            Some(Pin::Key(key)) if all.contains(&(key.0 as usize)) => (key.0 as usize..key.0 as usize + 1, &[][..]),
            Some(Pin::Key(_)) => (0..0, &[][..]),
            Some(Pin::Budget(b)) => (0..0, self.bank.budgets.get(b.0 as usize).map_or(&[][..], |b| &b.keys)),
        };
        range.chain(of_budget.iter().copied())
    }

    /// Takes a permit from every limit that applies, all or nothing; or says what to wait for.
    pub fn acquire(&mut self, ask: &Ask, now: Time) -> Acquire {
        self.acquire_but(ask, None, now)
    }

    pub(super) fn acquire_but(&mut self, ask: &Ask, except: Option<KeyId>, now: Time) -> Acquire {
        let now = self.clock(now);
        if let Some(refused) = self.refused_by_hold(ask.pin) {
            return refused;
        }
        let Some(key) = self.best_key(ask, except, now) else {
            return self.no_candidate();
        };
        let shared = self.bank.shared_slot(ask, now).and(Slot::at(self.bank.pause_ends()));
        let mut slot = shared.and(self.slot_with(key, ask, now));
        if slot.is_open(now) {
            return Acquire::Granted(self.grant(key, ask, now));
        }
        let indexed_wrongly = shared.is_open(now) && except.is_none() && ask.pin.is_none();
        if indexed_wrongly && self.bank.out_of_use(key.0 as usize, now).is_none() {
            // The index rounds costs; another key may have room where this one has just not enough.
            if let Some(other) = self.best_key(ask, Some(key), now) {
                let other_slot = shared.and(self.slot_with(other, ask, now));
                if other_slot.is_open(now) {
                    return Acquire::Granted(self.grant(other, ask, now));
                }
                if other_slot.at_most < slot.at_most {
                    slot = other_slot;
                }
            }
        }
        self.refusal(key, slot, now)
    }

    fn refusal(&self, key: KeyId, slot: Slot, now: Time) -> Acquire {
        let until = |time: Time| (time != Time::MAX).then_some(time);
        let pause_ends = self.bank.pause_ends();
        if pause_ends > now {
            return Acquire::Blocked { why: Why::ProviderPaused, until: until(pause_ends) };
        }
        if let Some((why, until)) = self.bank.out_of_use(key.0 as usize, now) {
            return Acquire::Blocked { why, until };
        }
        match slot {
            Slot { known: Time::MAX, .. } => Acquire::Blocked { why: Why::TooLarge, until: None },
            Slot { known, at_most } if known < at_most => Acquire::WhenAnswered { at_most },
            Slot { at_most, .. } => Acquire::At(at_most),
        }
    }

    fn best_key(&mut self, ask: &Ask, except: Option<KeyId>, now: Time) -> Option<KeyId> {
        let among = match ask.pin {
            Some(Pin::Key(key)) => {
                return (self.bank.keys.len() > key.0 as usize && except != Some(key)).then_some(key);
            }
            Some(Pin::Budget(budget)) if budget.0 as usize >= self.bank.budgets.len() => {
                return None;
            }
            Some(Pin::Budget(budget)) => Some(budget.0 as usize),
            None => None,
        };
        let routes = self.bank.narrow_of(ask.routes);
        self.choice.best(&mut self.bank, (ask.cost, routes), among, except, now)
    }

    fn slot_with(&mut self, key: KeyId, ask: &Ask, now: Time) -> Slot {
        let number = key.0 as usize;
        let budget = self.bank.keys[number].budget;
        let routes = self.bank.narrow_of(ask.routes);
        self.bank.budget_slot(budget, ask.cost, now).and(self.bank.key_slot(number, ask.cost, routes, now))
    }

    /// When the ask could be granted at the latest, if nothing else is granted before.
    pub(super) fn earliest(&mut self, ask: &Ask, now: Time) -> Time {
        let now = self.clock(now);
        if self.refused_by_hold(ask.pin).is_some() {
            return Time::MAX;
        }
        let Some(key) = self.best_key(ask, None, now) else {
            return Time::MAX;
        };
        let shared = self.bank.shared_slot(ask, now).and(Slot::at(self.bank.pause_ends()));
        shared.and(self.slot_with(key, ask, now)).at_most
    }

    pub(super) fn clock(&mut self, now: Time) -> Time {
        self.seen = self.seen.max(now);
        self.seen
    }

    fn grant(&mut self, key: KeyId, ask: &Ask, now: Time) -> Permit {
        let freed = self.bank.freed_now(key, ask.routes);
        let over_before = self.bank.probe_booked(key, now);
        self.bank.each(key, ask.routes, |limit| limit.book(ask.cost));
        let state = &mut self.bank.keys[key.0 as usize];
        let mut probe = false;
        if let Standing::Disabled { probing, .. } = &mut state.standing {
            *probing = true;
            probe = true;
        }
        self.choice.served(&self.bank, key);
        Permit { key, routes: ask.routes, cost: ask.cost, booked: now, freed, over_before, probe }
    }

    /// The call leaves now. Lateness since the grant shifts later slots.
    pub fn depart(&mut self, permit: Permit, at: Time) -> Flight {
        let Permit { key, routes, cost, booked, freed, over_before, probe } = permit;
        let sent = at.max(booked);
        self.bank.each(key, routes, |limit| limit.depart(cost, sent));
        if let Some(probe) = self.bank.probe(key) {
            probe.departed(sent);
        }
        let budget = self.bank.keys[key.0 as usize].budget;
        self.bank.budgets[budget].calls += 1;
        self.choice.touch(key);
        Flight { key, routes, cost, sent, answered: None, freed, over_before, probe }
    }

    /// The permit is not used: everything is given back.
    pub fn abandon(&mut self, permit: Permit, now: Time) {
        self.bank.each(permit.key, permit.routes, |limit| limit.unbook(permit.cost));
        self.bank.probe_abandoned(&permit, now);
        if permit.probe {
            self.end_probe(permit.key, self.seen.max(now));
        }
        self.choice.touch(permit.key);
        self.loosened += 1;
    }

    /// As `abandon`, for a permit that nobody else knew of: nobody has to look again.
    pub(super) fn abandon_unseen(&mut self, permit: Permit, now: Time) {
        let loosened = self.loosened;
        self.abandon(permit, now);
        self.loosened = loosened;
    }

    /// `earliest` as it would be if this permit were not there.
    pub(super) fn earliest_without(&mut self, permit: &Permit, ask: &Ask, now: Time) -> Time {
        self.bank.each(permit.key, permit.routes, |limit| limit.unbook(permit.cost));
        self.bank.probe_abandoned(permit, now);
        self.choice.touch(permit.key);
        let free = self.earliest(ask, now);
        self.bank.each(permit.key, permit.routes, |limit| limit.book(permit.cost));
        self.bank.probe_booked(permit.key, now);
        self.choice.touch(permit.key);
        free
    }

    /// The call really left later than booked: its slots move with it, and later ones are never closer to it.
    pub fn departed_late(&mut self, flight: &mut Flight, at: Time) {
        if at <= flight.sent || flight.answered.is_some() {
            return;
        }
        let (from, cost) = (flight.sent, flight.cost);
        self.bank.each(flight.key, flight.routes, |limit| limit.shift(cost, from, at));
        if let Some(probe) = self.bank.probe(flight.key) {
            probe.keep_distance(at);
        }
        flight.sent = at;
        self.choice.touch(flight.key);
    }

    /// The first byte of the answer: by now the provider has counted the call.
    pub(super) fn anchor(&mut self, flight: &mut Flight, at: Time) {
        if flight.answered.is_some() {
            return;
        }
        let at = at.max(flight.sent);
        flight.answered = Some(at);
        let delay = at.as_nanos() - flight.sent.as_nanos();
        self.bank.saw_delay(delay, false);
        let (sent, cost, within) = (flight.sent, flight.cost, self.bank.within);
        self.bank.each(flight.key, flight.routes, |limit| limit.answered(cost, sent, at, within));
        self.answer_of(flight.key);
    }

    /// The answer is complete, or there will be none (a timeout, a cut connection). Without a first byte the fate of
    /// the call is unknown: it is taken to be counted at its departure + `counted_within`, and to be open until then.
    pub fn finish(&mut self, flight: Flight, at: Time, actual_cost: Option<u64>) {
        let trace = Trace { cost: flight.cost, sent: flight.sent, answered: flight.answered };
        let at = at.max(flight.answered.unwrap_or(flight.sent));
        let within = self.bank.within;
        let open_until = flight.sent.plus(self.bank.counted_within);
        self.bank.each(flight.key, flight.routes, |limit| limit.finished(trace, at, actual_cost, within, open_until));
        if flight.answered.is_none()
            && let Some(probe) = self.bank.probe(flight.key)
        {
            probe.lost(flight.sent, at);
        }
        if flight.probe {
            self.end_probe(flight.key, at);
        }
        if actual_cost.is_some_and(|actual| actual < flight.cost) {
            self.loosened += 1;
        }
        self.answer_of(flight.key);
    }

    /// The call surely never reached the provider: its connection could not be made. Slots and concurrency come
    /// back; the distance that `smooth` keeps does not.
    pub fn unsent(&mut self, flight: Flight, at: Time) {
        let (sent, cost) = (flight.sent, flight.cost);
        let answered = flight.answered.is_some();
        if answered {
            return self.finish(flight, at, None);
        }
        self.bank.each(flight.key, flight.routes, |limit| limit.unsent(cost, sent));
        if let Some(probe) = self.bank.probe(flight.key) {
            probe.unbook(sent, at);
        }
        if flight.probe {
            self.end_probe(flight.key, at);
        }
        self.loosened += 1;
        self.answer_of(flight.key);
    }

    /// A round trip of the network alone was measured, such as the time to connect. Under `balanced` and `headroom`
    /// slots are freed after the longest that is likely; without any, the delays of answers stand in for it.
    pub fn network_round_trip(&mut self, took: Duration) {
        self.bank.saw_delay(nanos(took), true);
    }

    /// Upper bound on the calls that could be let go from here within the next `within`; `u64::MAX` if only answers
    /// limit them. What is held counts, though it may be shut for now.
    pub fn allowance(&mut self, within: Duration, now: Time) -> u64 {
        let now = self.clock(now);
        let (horizon, counted) = (nanos(within), self.bank.within);
        let end = now.plus(horizon);
        let all = |limits: &mut [super::limit::Limit]| {
            limits.iter_mut().map(|limit| limit.allowance(horizon, now, counted)).min().unwrap_or(u64::MAX)
        };
        let provider = all(&mut self.bank.limits);
        if self.bank.pause_ends() > end {
            return 0;
        }
        let mut sum = 0_u64;
        for (number, budget) in self.bank.budgets.iter_mut().enumerate() {
            if self.bank.groups.hold_of(number) == Hold::Away {
                continue;
            }
            if budget.paused_until.max(budget.parked_until) > end {
                continue;
            }
            let mut of_keys = 0_u64;
            for &key in &budget.keys {
                let key = &mut self.bank.keys[key];
                if key.is_out() {
                    continue;
                }
                let probe = matches!(key.standing, Standing::Disabled { probe_at, .. } if probe_at <= end);
                if key.paused_until <= end && key.standing == Standing::Open {
                    of_keys = of_keys.saturating_add(all(&mut key.limits));
                } else if probe {
                    of_keys = of_keys.saturating_add(1);
                }
            }
            let found = budget.probe.as_ref().map_or(u64::MAX, |probe| probe.allowance(horizon, now));
            sum = sum.saturating_add(of_keys.min(all(&mut budget.limits)).min(found));
        }
        sum.min(provider)
    }

    /// Looks at every key anew, after books were changed behind the index.
    pub(super) fn rebuild(&mut self) {
        self.choice.rebuild(&self.bank);
        self.look_again();
    }

    /// Whoever waits should look again, though there was no answer.
    pub(super) fn look_again(&mut self) {
        self.loosened += 1;
    }

    /// The label of a key; empty for one that does not exist.
    pub fn key_label(&self, key: KeyId) -> &str {
        self.bank.keys.get(key.0 as usize).map_or("", |key| &key.label)
    }

    /// The budget of a key.
    pub fn budget_of(&self, key: KeyId) -> Option<BudgetId> {
        self.bank.keys.get(key.0 as usize).map(|key| BudgetId(key.budget as u32))
    }

    /// What a job may be pinned to by this name: a key's label or a budget's name (they share one namespace).
    pub fn pin_named(&self, name: &str) -> Option<Pin> {
        let budget = self.bank.budgets.iter().position(|budget| budget.name.as_deref() == Some(name));
        let budget = budget.map(|place| Pin::Budget(BudgetId(place as u32)));
        let key = || self.bank.keys.iter().position(|key| key.label == name);
        budget.or_else(|| key().map(|place| Pin::Key(KeyId(place as u32))))
    }

    /// How many keys there are; their ids are the numbers below.
    pub fn key_count(&self) -> usize {
        self.bank.keys.len()
    }

    fn answer_of(&mut self, key: KeyId) {
        self.choice.touch(key);
        let place = (self.answered % ANSWERS as u64) as usize;
        match self.answers.get_mut(place) {
            Some(slot) => *slot = key,
            None => self.answers.push(key),
        }
        self.answered += 1;
    }

    /// How many answers there were, and how often room was made in another way.
    pub(super) fn changes(&self) -> (u64, u64) {
        (self.answered, self.loosened)
    }

    /// The keys that were answered since there were `since` answers; `None` if that is too long ago.
    pub(super) fn answered_since(&self, since: u64) -> Option<impl Iterator<Item = KeyId>> {
        let recent = self.answered - since <= ANSWERS as u64;
        recent.then(|| (since..self.answered).map(|n| self.answers[(n % ANSWERS as u64) as usize]))
    }

    pub(super) fn loosen(&mut self, key: KeyId) {
        self.choice.touch(key);
        self.loosened += 1;
    }

    pub(super) fn uses_cost(&self) -> bool {
        self.bank.counts_cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::KeySpec;

    #[test]
    fn the_last_answers_are_told_key_by_key_and_of_too_many_it_is_said_that_they_are() {
        let keys = ["a", "b", "c"].map(|label| KeySpec { label: label.to_owned(), weight: 1, budget: None });
        let spec = PoolSpec { keys: keys.into(), ..PoolSpec::default() };
        let mut pool = Pool::new(&spec, Time::ZERO).expect("a pool");
        let key_of = |n: u64| KeyId((n % 3) as u32);
        let told = |pool: &Pool, since: u64| pool.answered_since(since).map(Iterator::collect::<Vec<_>>);
        for n in 0..700 {
            pool.answer_of(key_of(n));
            let answered = n + 1;
            let since = answered.saturating_sub(ANSWERS as u64);
            assert_eq!(told(&pool, since), Some((since..answered).map(key_of).collect()));
            assert_eq!(told(&pool, answered), Some(Vec::new()));
            assert_eq!(told(&pool, n), Some(vec![key_of(n)]));
            if let Some(before) = since.checked_sub(1) {
                assert_eq!(told(&pool, before), None);
            }
        }
        assert_eq!((pool.answers.len(), pool.changes().0), (ANSWERS, 700));
    }
}
