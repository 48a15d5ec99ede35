//! How things stand, worked out of a pool's snapshot now and then: for the metrics of this process,
//! and for whoever asks another one.

use std::collections::VecDeque;
use std::time::Duration;

use super::core::Now;
use crate::clock::WallMs;
use crate::pace::{BudgetSnapshot, BudgetState, KeySnapshot, KeyState, LimitUse, PoolSnapshot, Time, Unit};
use crate::store::{BudgetReport, KeyReport, LimitReport, Report};

/// The rate that was achieved is that of so long.
const MINUTE: Duration = Duration::from_secs(60);
/// Between two reports, for every thousand keys that have to be looked at.
const EVERY: Duration = Duration::from_secs(2);
const KEYS_EACH: usize = 1_000;

/// The calls that had left by a time, budget by budget.
#[derive(Debug)]
struct Sample {
    at: Time,
    calls: Vec<u64>,
}

/// Works reports out. Keeps the counts of the last minute.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    samples: VecDeque<Sample>,
}

/// What is told beside what the pool knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Hands {
    /// Jobs that wait for a permit, by lane.
    pub permits_waiting: Vec<(String, u64)>,
    /// Calls that are open.
    pub open: u64,
    /// Of the breaker, where it is not closed.
    pub breaker: Option<String>,
}

impl Reporter {
    /// How long to wait between two reports about that many keys: looking at each costs time that calls wait for.
    pub fn every(keys: usize) -> Duration {
        EVERY * u32::try_from(keys.div_ceil(KEYS_EACH).max(1)).unwrap_or(u32::MAX)
    }

    /// All of it, every key; [`bounded`] makes it small enough for the store.
    pub fn report(&mut self, pool: &PoolSnapshot, hands: Hands, now: Now) -> Report {
        let rates = self.rates(pool, now.mono);
        let shared = pool.limits.iter().map(|limit| limit.next_slot).max();
        let paused = if pool.held { Some(Time::MAX) } else { pool.paused_until };
        let not_before = shared.max(paused).unwrap_or(Time::ZERO);
        let budgets = pool.budgets.iter().zip(&rates).filter(|(budget, _)| budget.here);
        Report {
            allowed_per_second: pool.allowed_per_second.map(rounded),
            achieved_per_second: rounded(rates.iter().sum()),
            open: hands.open,
            breaker: hands.breaker,
            permits_waiting: hands.permits_waiting,
            budgets: budgets.map(|(budget, rate)| of_budget(budget, *rate, not_before, now)).collect(),
            keys_left_out: 0,
        }
    }

    /// Calls a second of each budget.
    fn rates(&mut self, pool: &PoolSnapshot, now: Time) -> Vec<f64> {
        let calls: Vec<u64> = pool.budgets.iter().map(|budget| budget.calls).collect();
        // Counts that fell are those of a new pool: the lease was away.
        let fell = |last: &Sample| {
            last.calls.len() != calls.len() || last.calls.iter().zip(&calls).any(|(then, now)| now < then)
        };
        if self.samples.back().is_some_and(fell) {
            self.samples.clear();
        }
        self.samples.push_back(Sample { at: now, calls });
        while self.samples.get(1).is_some_and(|second| second.at + MINUTE <= now) {
            self.samples.pop_front();
        }
        match (self.samples.front(), self.samples.back()) {
            (Some(first), Some(last)) if first.at < last.at => {
                let seconds = last.at.since(first.at).as_secs_f64();
                let rate = |(then, now): (&u64, &u64)| now.saturating_sub(*then) as f64 / seconds;
                first.calls.iter().zip(&last.calls).map(rate).collect()
            }
            _ => vec![0.0; pool.budgets.len()],
        }
    }
}

/// The same with at most [`Report::KEYS_MAX`] keys: budgets in which something is out of use come first.
pub(super) fn bounded(mut report: Report) -> Report {
    let is_in_use = |budget: &BudgetReport| budget.state == "open" && budget.keys.iter().all(|key| key.state == "open");
    report.budgets.sort_by_cached_key(is_in_use);
    let mut left = Report::KEYS_MAX;
    let mut left_out = 0;
    for budget in &mut report.budgets {
        let listed = budget.keys.len().min(left);
        left -= listed;
        left_out += budget.keys.len() - listed;
        budget.keys.sort_by_cached_key(|key| key.state == "open");
        budget.keys.truncate(listed);
    }
    report.budgets.retain(|budget| !budget.keys.is_empty());
    report.keys_left_out = u64::try_from(left_out).unwrap_or(u64::MAX);
    report
}

fn of_budget(budget: &BudgetSnapshot, rate: f64, not_before: Time, now: Now) -> BudgetReport {
    let (state, until) = match budget.state {
        BudgetState::Open => ("open", None),
        BudgetState::Paused(until) => ("paused", Some(until)),
        BudgetState::Parked(until) => ("parked", until),
    };
    BudgetReport {
        name: budget.name.clone(),
        declared: budget.declared,
        state: state.to_owned(),
        until_ms: until.and_then(|until| wall(until, now)),
        allowed_per_second: budget.allowed_per_second.map(rounded),
        achieved_per_second: rounded(rate),
        next_slot_ms: wall(next_slot(budget).max(not_before), now),
        calls: budget.calls,
        pacing_errors: budget.pacing_errors,
        signals: budget.signals.map(|family| family.as_str().to_owned()),
        probing: budget.probing.map(|probing| probing.state.as_str().to_owned()),
        found_per_second: budget.probing.and_then(|probing| probing.found_per_second).map(rounded),
        limits: budget.limits.iter().map(of_limit).collect(),
        keys: budget.keys.iter().map(|key| of_key(key, now)).collect(),
    }
}

fn of_key(key: &KeySnapshot, now: Now) -> KeyReport {
    let (state, until) = match key.state {
        KeyState::Open => ("open", None),
        KeyState::Paused(until) => ("paused", Some(until)),
        KeyState::Held => ("disabled", None),
        KeyState::Absent => ("missing", None),
        KeyState::Disabled { probe_at } => ("refused", probe_at),
        KeyState::Probing => ("probing", None),
    };
    KeyReport {
        label: key.label.clone(),
        state: state.to_owned(),
        until_ms: until.and_then(|until| wall(until, now)),
        limits: key.limits.iter().map(of_limit).collect(),
    }
}

fn of_limit(limit: &LimitUse) -> LimitReport {
    let unit = match limit.unit {
        Unit::Requests => "requests",
        Unit::Cost => "cost",
        Unit::Concurrency => "concurrency",
    };
    LimitReport {
        unit: unit.to_owned(),
        amount: limit.declared,
        per_ms: (!limit.per.is_zero()).then(|| u64::try_from(limit.per.as_millis()).unwrap_or(u64::MAX)),
        used: limit.used,
        most: limit.limit,
    }
}

/// When one of its keys has room for a call; `Time::MAX`: nobody knows.
fn next_slot(budget: &BudgetSnapshot) -> Time {
    let all = |limits: &[LimitUse]| limits.iter().map(|limit| limit.next_slot).max().unwrap_or(Time::ZERO);
    let of_key = |key: &KeySnapshot| {
        let from = match key.state {
            KeyState::Open => Time::ZERO,
            KeyState::Paused(until) => until,
            KeyState::Disabled { probe_at } => probe_at.unwrap_or(Time::MAX),
            KeyState::Held | KeyState::Absent | KeyState::Probing => Time::MAX,
        };
        from.max(all(&key.limits))
    };
    let keys = budget.keys.iter().map(of_key).min().unwrap_or(Time::MAX);
    let from = match budget.state {
        BudgetState::Open => Time::ZERO,
        BudgetState::Paused(until) => until,
        BudgetState::Parked(until) => until.unwrap_or(Time::MAX),
    };
    keys.max(from).max(all(&budget.limits))
}

/// A time of the monotonic clock on the wall; `None`: nobody knows when.
fn wall(at: Time, now: Now) -> Option<WallMs> {
    let ahead = (at != Time::MAX).then(|| at.since(now.mono))?;
    Some(now.wall.saturating_add(i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX)))
}

/// To thousandths: more is noise, and would make every report another one.
fn rounded(rate: f64) -> f64 {
    (rate * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::{Acquire, Algorithm, Ask, BudgetSpec, KeyId, KeySpec, LimitSpec, Pool, PoolSpec, Word};

    fn spec(keys: usize) -> PoolSpec {
        let key = |n: usize| KeySpec { label: format!("k{n}"), weight: 1, budget: (n == 0).then_some(0) };
        PoolSpec {
            key_limits: vec![LimitSpec::requests(5, Duration::from_secs(1), Algorithm::SlidingWindow)],
            keys: (0..keys).map(key).collect(),
            budgets: vec![BudgetSpec { name: "org".into(), limits: Vec::new() }],
            ..PoolSpec::default()
        }
    }

    fn at(seconds: u64) -> Now {
        let millis = i64::try_from(seconds).expect("small") * 1_000;
        Now { mono: Time::ZERO + Duration::from_secs(seconds), wall: 1_000_000 + millis }
    }

    fn call(pool: &mut Pool, now: Now) {
        let Acquire::Granted(permit) = pool.acquire(&Ask::default(), now.mono) else { panic!("a permit") };
        let mut flight = pool.depart(permit, now.mono);
        pool.first_byte(&mut flight, now.mono, None);
        pool.finish(flight, now.mono, None);
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute_and_a_new_pool_begins_anew() {
        let mut pool = Pool::new(&spec(1), at(0).mono).expect("a pool");
        let mut reporter = Reporter::default();
        let mut rate = |pool: &mut Pool, now: Now| {
            reporter.report(&pool.snapshot(now.mono), Hands::default(), now).budgets[0].achieved_per_second
        };
        assert_eq!(rate(&mut pool, at(0)), 0.0);
        for second in 0..30 {
            call(&mut pool, at(second));
            call(&mut pool, at(second));
        }
        assert_eq!(rate(&mut pool, at(30)), 2.0);
        assert_eq!(rate(&mut pool, at(60)), 1.0);
        assert_eq!(rate(&mut pool, at(90)), 0.0);
        let mut pool = Pool::new(&spec(1), at(90).mono).expect("a pool");
        assert_eq!(rate(&mut pool, at(91)), 0.0, "never below nothing");
    }

    #[test]
    fn states_are_told_with_their_ends_on_the_wall() {
        let now = at(10);
        let mut pool = Pool::new(&spec(4), now.mono).expect("a pool");
        pool.disable_key(KeyId(0), Some(at(40).mono));
        pool.order_key(KeyId(1), Word { held: true, version: 1 });
        pool.park_budget(pool.budget_of(KeyId(2)).expect("a budget"), None);
        for _ in 0..5 {
            call(&mut pool, now);
        }
        let report = Reporter::default().report(&pool.snapshot(now.mono), Hands::default(), now);
        let told: Vec<_> = report
            .budgets
            .iter()
            .map(|b| (b.name.as_str(), b.state.as_str(), b.keys[0].state.as_str(), b.keys[0].until_ms))
            .collect();
        let expected = [
            ("org", "open", "refused", Some(at(40).wall)),
            ("k1", "open", "disabled", None),
            ("k2", "parked", "open", None),
            ("k3", "open", "open", None),
        ];
        assert_eq!(told, expected);
        assert_eq!(report.budgets[0].next_slot_ms, Some(at(40).wall), "when it is tried");
        assert_eq!((report.budgets[1].next_slot_ms, report.budgets[2].next_slot_ms), (None, None));
        let full = &report.budgets[3];
        assert!(full.next_slot_ms.is_some_and(|slot| slot > now.wall), "{full:?}");
        let limit = &full.keys[0].limits[0];
        assert_eq!((limit.unit.as_str(), limit.amount, limit.per_ms, limit.used), ("requests", 5, Some(1_000), 5));
        pool.order_provider(Word { held: true, version: 1 });
        let report = Reporter::default().report(&pool.snapshot(now.mono), Hands::default(), now);
        assert!(report.budgets.iter().all(|budget| budget.next_slot_ms.is_none()));
    }

    #[test]
    fn a_report_for_the_store_is_bounded_and_what_is_out_of_use_comes_first() {
        let now = at(10);
        let mut pool = Pool::new(&spec(1_500), now.mono).expect("a pool");
        pool.disable_key(KeyId(1_400), None);
        let report = Reporter::default().report(&pool.snapshot(now.mono), Hands::default(), now);
        assert_eq!(report.budgets.len(), 1_500);
        let report = bounded(report);
        assert_eq!(report.budgets.iter().map(|budget| budget.keys.len()).sum::<usize>(), Report::KEYS_MAX);
        assert_eq!((report.budgets[0].name.as_str(), report.keys_left_out), ("k1400", 500));
        let bytes = serde_json::to_string(&report).expect("json").len();
        assert!(bytes < 500_000, "{bytes}");
        assert_eq!(Reporter::every(1), EVERY);
        assert_eq!(Reporter::every(10_000), EVERY * 10);
    }
}
