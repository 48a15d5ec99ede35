//! Which key: the one whose earliest slot is nearest, ties by weight.
//!
//! Few keys are simply looked at. Many are indexed, once for each *kind* of ask (its routes that have limits of each
//! key, and its cost, rounded up), and an index entry is computed anew only after something happened to its key.

use super::Time;
use super::ask::{KeyId, Routes};
use super::bank::Bank;
use super::group::Hold;
use super::shelf::Shelf;

/// So many keys are looked at one by one.
const FEW: usize = 8;
/// So many kinds of asks are indexed; the one unused for longest makes room.
const KINDS: usize = 32;
/// Costs up to this have indices of their own, unless they are small beside every cost limit: costs up to this part of
/// the least of them share one.
const EXACT_COSTS: u64 = 4;
const SMALL_COSTS: u64 = 128;
/// An index that was not used for so many choices is forgotten.
const FORGET_AFTER: u64 = 1 << 14;
/// One call moves the turn of a key of weight 1 on by so much.
const STRIDE: u64 = 1 << 24;

#[derive(Clone, Debug)]
struct Kind {
    routes: Routes,
    /// The largest cost of this kind.
    cost: u64,
    /// The cost of the ask it was made for.
    least: u64,
    budgets: Shelf,
    /// For budgets of several keys: an index of these.
    keys: Vec<Option<Shelf>>,
    /// Nothing is computed yet.
    stale: bool,
    last_use: u64,
}

/// Whose turn it is, and the indices.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    kinds: Vec<Kind>,
    /// Costs below it count as it.
    grain: u64,
    /// Keys whose entries have to be computed anew, and which ones these are.
    touched: Vec<KeyId>,
    is_touched: Vec<bool>,
    uses: u64,
    budget_turns: Vec<u64>,
    budget_weights: Vec<u64>,
    /// Turns of the keys of each budget, by their place in it.
    key_turns: Vec<Vec<u64>>,
    latest: u64,
    latest_in: Vec<u64>,
}

impl Choice {
    pub fn new(bank: &Bank) -> Choice {
        let weight =
            |b: &super::bank::Budget| b.keys.iter().map(|&k| u64::from(bank.keys[k].weight)).sum::<u64>().max(1);
        Choice {
            kinds: Vec::new(),
            grain: bank.least_cost_limit().map_or(1, |least| (least / SMALL_COSTS).max(1)),
            touched: Vec::new(),
            is_touched: vec![false; bank.keys.len()],
            uses: 0,
            budget_turns: vec![0; bank.budgets.len()],
            budget_weights: bank.budgets.iter().map(weight).collect(),
            key_turns: bank.budgets.iter().map(|budget| vec![0; budget.keys.len()]).collect(),
            latest: 0,
            latest_in: vec![0; bank.budgets.len()],
        }
    }

    /// The key to use for this ask, whether it is ready or not; `among` narrows it to one budget.
    pub fn best(
        &mut self,
        bank: &mut Bank,
        (cost, routes): (u64, Routes),
        among: Option<usize>,
        except: Option<KeyId>,
        now: Time,
    ) -> Option<KeyId> {
        if bank.keys.len() <= FEW {
            let all = among.map_or(0..bank.budgets.len(), |budget| budget..budget + 1);
            return self.look(bank, all, (cost, routes), except, now);
        }
        let kind = self.kind(bank, cost, routes);
        self.refresh(bank, now);
        let kind = &mut self.kinds[kind];
        let except = except.map(|key| &bank.keys[key.0 as usize]).map(|key| (key.budget, key.place));
        if let Some(budget) = among {
            return inner(kind, bank, &self.key_turns, budget, except, now).map(|found| found.0);
        }
        let (budget, _) = kind.budgets.best(now, &self.budget_turns, None)?;
        let found = inner(kind, bank, &self.key_turns, budget, except, now);
        match (found, except) {
            (Some((key, free)), Some((excepted, _))) if excepted != budget || free <= now => Some(key),
            (Some((key, _)), None) => Some(key),
            (found, _) => {
                let other = kind.budgets.best(now, &self.budget_turns, Some(budget));
                let other = other.and_then(|(b, _)| inner(kind, bank, &self.key_turns, b, except, now));
                let nearest = [found, other].into_iter().flatten().min_by_key(|found| found.1);
                nearest.map(|found| found.0)
            }
        }
    }

    fn look(
        &self,
        bank: &mut Bank,
        budgets: std::ops::Range<usize>,
        (cost, routes): (u64, Routes),
        except: Option<KeyId>,
        now: Time,
    ) -> Option<KeyId> {
        let mut best = None;
        for budget in budgets {
            if bank.groups.hold_of(budget) != Hold::Open {
                continue;
            }
            let shared = bank.budget_slot(budget, cost, now);
            for place in 0..bank.budgets[budget].keys.len() {
                let key = bank.budgets[budget].keys[place];
                let free = shared.and(bank.key_slot(key, cost, routes, now)).at_most.max(now);
                let rank = (free, self.budget_turns[budget], self.key_turns[budget][place], key);
                if except != Some(KeyId(key as u32)) && best.is_none_or(|best| rank < best) {
                    best = Some(rank);
                }
            }
        }
        best.map(|best| KeyId(best.3 as u32))
    }

    /// A call was granted to this key: others of equal slots come first now, by weight.
    pub fn served(&mut self, bank: &Bank, key: KeyId) {
        let number = key;
        let key = &bank.keys[key.0 as usize];
        let turn = &mut self.budget_turns[key.budget];
        *turn = (*turn).max(self.latest);
        self.latest = *turn;
        *turn = turn.saturating_add((STRIDE / self.budget_weights[key.budget]).max(1));
        let turn = &mut self.key_turns[key.budget][key.place];
        let latest = &mut self.latest_in[key.budget];
        *turn = (*turn).max(*latest);
        *latest = *turn;
        *turn = turn.saturating_add((STRIDE / u64::from(key.weight)).max(1));
        self.touch(number);
    }

    /// Something happened to this key or its budget.
    pub fn touch(&mut self, key: KeyId) {
        if let Some(is_touched) = self.is_touched.get_mut(key.0 as usize)
            && !std::mem::replace(is_touched, true)
        {
            self.touched.push(key);
        }
    }

    /// Keys were added or everything changed.
    pub fn rebuild(&mut self, bank: &Bank) {
        let old = std::mem::replace(self, Choice::new(bank));
        self.latest = old.latest;
        for (new, old) in self.budget_turns.iter_mut().zip(&old.budget_turns) {
            *new = *old;
        }
    }

    fn kind(&mut self, bank: &Bank, cost: u64, routes: Routes) -> usize {
        self.uses += 1;
        let uses = self.uses;
        if uses.is_multiple_of(FORGET_AFTER) {
            self.kinds.retain(|kind| kind.last_use + FORGET_AFTER > uses);
        }
        let least = if bank.counts_cost { cost } else { 1 };
        let cost = rounded(least.max(self.grain));
        if let Some(found) = self.kinds.iter().position(|kind| kind.cost == cost && kind.routes == routes) {
            self.kinds[found].last_use = self.uses;
            return found;
        }
        if self.kinds.len() >= KINDS
            && let Some(oldest) = (0..self.kinds.len()).min_by_key(|&kind| self.kinds[kind].last_use)
        {
            self.kinds.swap_remove(oldest);
        }
        let several = |budget: &super::bank::Budget| (budget.keys.len() > 1).then(|| Shelf::new(budget.keys.len()));
        self.kinds.push(Kind {
            routes,
            cost,
            least,
            budgets: Shelf::new(bank.budgets.len()),
            keys: bank.budgets.iter().map(several).collect(),
            stale: true,
            last_use: self.uses,
        });
        self.kinds.len() - 1
    }

    /// Computes what happened to keys into every index, while the keys are still at hand (in the processor's caches).
    fn refresh(&mut self, bank: &mut Bank, now: Time) {
        while let Some(key) = self.touched.pop() {
            self.is_touched[key.0 as usize] = false;
            for kind in self.kinds.iter_mut().filter(|kind| !kind.stale) {
                kind.compute(key, bank, (&self.budget_turns, &self.key_turns), now);
            }
        }
        for kind in self.kinds.iter_mut().filter(|kind| kind.stale) {
            kind.stale = false;
            for key in 0..bank.keys.len() as u32 {
                kind.compute(KeyId(key), bank, (&self.budget_turns, &self.key_turns), now);
            }
        }
    }
}

impl Kind {
    fn compute(&mut self, key: KeyId, bank: &mut Bank, turns: (&[u64], &[Vec<u64>]), now: Time) {
        let key = key.0 as usize;
        let (budget, place) = (bank.keys[key].budget, bank.keys[key].place);
        let mut free = bank.key_slot(key, self.cost, self.routes, now).at_most;
        if free == Time::MAX && self.least < self.cost {
            // Rounded up it may be more than a limit ever allows.
            free = bank.key_slot(key, self.least, self.routes, now).at_most;
        }
        if let Some(shelf) = &mut self.keys[budget] {
            shelf.set(place, free, turns.1[budget][place], now);
            free = shelf.best(now, &turns.1[budget], None).map_or(Time::MAX, |best| best.1);
        }
        if !bank.groups.is_one() && bank.groups.hold_of(budget) != Hold::Open {
            return self.budgets.remove(budget);
        }
        let mut shared = bank.budget_slot(budget, self.cost, now).at_most;
        if shared == Time::MAX && self.least < self.cost {
            shared = bank.budget_slot(budget, self.least, now).at_most;
        }
        self.budgets.set(budget, free.max(shared), turns.0[budget], now);
    }
}

/// The best key of a budget, and when it is free (not counting the budget's own limits).
fn inner(
    kind: &mut Kind,
    bank: &Bank,
    turns: &[Vec<u64>],
    budget: usize,
    except: Option<(usize, usize)>,
    now: Time,
) -> Option<(KeyId, Time)> {
    let keys = &bank.budgets.get(budget)?.keys;
    let except = except.filter(|except| except.0 == budget).map(|except| except.1);
    let (place, free) = match &mut kind.keys[budget] {
        Some(shelf) => shelf.best(now, &turns[budget], except)?,
        None if except == Some(0) || keys.is_empty() => return None,
        None => (0, now),
    };
    keys.get(place).map(|&key| (KeyId(key as u32), free))
}

/// Costs share an index by powers of two: the more indices there are, the more has to be kept up to date with each
/// call. The key that is found is judged by the true cost; another one that has room for just this cost may be
/// overlooked, until the found one has room for it, too.
fn rounded(cost: u64) -> u64 {
    if cost <= EXACT_COSTS { cost } else { cost.checked_next_power_of_two().unwrap_or(cost) }
}
