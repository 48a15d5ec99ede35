//! What follows from a run: how long it takes, what binds, what more keys would do.

use std::time::Duration;

use super::PlanError;
use super::answer::{Assumed, Backlog, Basis, Intervals, LanePlan, LimitPlan, MoreKeys, Plan, Waits};
use super::ceiling::{Binding, Ceiling, Level, Rule, span};
use super::run::{Run, calls_wanted, check_cost, cycle, rate, run, with_keys};
use super::work::{Amount, Work};
use super::world::LaneTally;
use crate::clock::rfc3339;
use crate::config::Provider;
use crate::duration::HumanDuration;
use crate::pace::Time;
use crate::send_window::SendWindows;

/// Calls that are simulated before a steady rate is taken for the rest.
const CALLS: usize = 50_000;
/// The part of it for a question beside the plan, such as what one more key would do.
const BESIDE: usize = 10;
/// Keys more than this are not thought of.
const KEYS_MAX: u64 = 1_000;
/// Intervals of a chart at most.
const INTERVALS: usize = 60;
/// Widths of an interval, in seconds.
const WIDTHS: [f64; 24] = [
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0, 7_200.0,
    10_800.0, 21_600.0, 43_200.0, 86_400.0, 172_800.0, 432_000.0, 864_000.0,
];

/// Plans the work.
///
/// # Errors
/// [`PlanError`] where there is no such lane, or the jobs can never be sent.
pub fn plan(provider: &Provider, work: &Work) -> Result<Plan, PlanError> {
    plan_within(provider, work, CALLS)
}

/// The same, with so many calls simulated before a steady rate is taken for the rest (a tenth of them for questions
/// beside the plan), and four times as many at most.
///
/// # Errors
/// As of [`plan`].
pub fn plan_within(provider: &Provider, work: &Work, calls: usize) -> Result<Plan, PlanError> {
    check_cost(provider, work)?;
    // As if calls could always leave; then what is found is laid into the provider's windows.
    let windows = &provider.windows;
    let always = Provider { windows: SendWindows::default(), ..provider.clone() };
    let forecast = Forecast::new(&always, work, Ceiling::new(&always, work), calls.max(10 * BESIDE));
    Ok(if windows.is_empty() { forecast.plan()? } else { within_windows(forecast.plan()?, windows, work) })
}

fn within_windows(mut plan: Plan, windows: &SendWindows, work: &Work) -> Plan {
    let needs = Duration::from_millis(plan.takes_ms);
    let sending = HumanDuration(Duration::from_secs(needs.as_secs().max(1)));
    match (work.amount, windows.stretched(work.start_ms, needs)) {
        (Amount::Jobs(_), Some(takes)) => {
            plan.takes_ms = millis(takes);
            plan.done_at = rfc3339(work.start_ms.saturating_add(i64::try_from(takes.as_millis()).unwrap_or(i64::MAX)));
            plan.notes.push(format!("calls leave only {windows}: of the whole time {sending} are within it"));
        }
        (Amount::Jobs(_), None) => {
            plan.notes.push(format!("calls leave only {windows}: {sending} within it, which takes years"))
        }
        (Amount::Arrivals { .. }, _) => {
            plan.notes.push(format!(
                "calls leave only {windows}: all figures hold while it is open, and jobs pile up meanwhile"
            ));
        }
    }
    plan
}

struct Forecast<'a> {
    provider: &'a Provider,
    work: &'a Work,
    /// Calls that are wanted altogether, about.
    wanted: f64,
    /// Every limit.
    all: Ceiling,
    /// Those that matter for so much work.
    ceiling: Ceiling,
    /// Calls that are simulated before a steady rate is taken for the rest.
    calls: usize,
}

/// How long something takes, and how that was found.
struct Takes {
    span: Duration,
    basis: Basis,
}

impl<'a> Forecast<'a> {
    fn new(provider: &'a Provider, work: &'a Work, all: Ceiling, calls: usize) -> Self {
        let wanted = calls_wanted(work, provider);
        let ceiling = match work.amount {
            Amount::Jobs(_) => all.relevant(wanted),
            // Whether it can be kept up with is asked of the long run.
            Amount::Arrivals { .. } => all.clone(),
        };
        Self { provider, work, wanted, all, ceiling, calls }
    }

    fn plan(&self) -> Result<Plan, PlanError> {
        let run = run(self.provider, self.work, &self.ceiling, self.calls)?;
        let lasting = self.lasting(&run)?;
        let takes = self.takes(&run, lasting);
        let backlog = self.backlog(&run, lasting);
        let grows = backlog.as_ref().is_some_and(|backlog| backlog.grows);
        let calls = if run.complete { run.tally.departures.len() as u64 } else { self.wanted.round() as u64 };
        let seconds = takes.span.as_secs_f64();
        let sustained = self.sustained(&run, lasting);
        let allowed = self.allowed();
        let binds = self.binds(grows);
        let (rate_per_second, for_ms) = match self.work.amount {
            Amount::Jobs(_) => (None, None),
            Amount::Arrivals { per_second, span } => (Some(per_second), Some(millis(span))),
        };
        let waits = rate_per_second.and_then(|_| self.waits(&run, backlog.as_ref()));
        Ok(Plan {
            provider: self.provider.name.clone(),
            jobs: self.jobs(&run),
            rate_per_second,
            for_ms,
            keys: self.keys(),
            limits_known: !self.all.is_unknown(),
            takes_ms: millis(takes.span),
            done_at: rfc3339(
                self.work.start_ms.saturating_add(i64::try_from(takes.span.as_millis()).unwrap_or(i64::MAX)),
            ),
            basis: takes.basis,
            simulated_calls: run.tally.departures.len() as u64,
            arithmetic_ms: millis(span(self.ceiling.seconds_for(self.wanted))),
            calls,
            dead: if run.complete { run.tally.dead } else { self.dead() },
            rate: rounded(if seconds > 0.0 { calls as f64 / seconds } else { 0.0 }),
            allowed_per_second: allowed.map(rounded),
            sustained_per_second: sustained.map(rounded),
            utilisation: sustained.zip(allowed).map(|(rate, allowed)| rounded(rate / allowed)),
            limits: self.limits(&run, sustained, &binds),
            more_keys: self.more_keys(&binds)?,
            keys_to_keep_up: if grows { self.keys_to_keep_up() } else { None },
            binds,
            lanes: self.lanes(&run, run.complete || !grows),
            intervals: self.intervals(&run, &takes, lasting),
            notes: self.notes(&takes),
            waits,
            backlog,
            assumed: self.assumed(),
        })
    }

    /// Calls a second that can go on and on: as simulated where that is proven, else by arithmetic.
    fn lasting(&self, run: &Run) -> Result<f64, PlanError> {
        if let (Amount::Jobs(_), Some(rate)) = (self.work.amount, run.steady) {
            return Ok(rate);
        }
        if matches!(self.work.amount, Amount::Jobs(_)) {
            return Ok(self.ceiling.expected());
        }
        // As many as there can be: then every limit matters, however long its period.
        let endless = Work { amount: Amount::Jobs(super::JOBS_MAX), ..self.work.clone() };
        let run = self::run(self.provider, &endless, &self.ceiling, self.calls / BESIDE)?;
        Ok(run.steady.unwrap_or_else(|| self.ceiling.expected()))
    }

    /// Calls a second while it lasts; nothing where that is over within a period or two.
    fn sustained(&self, run: &Run, lasting: f64) -> Option<f64> {
        match self.work.amount {
            Amount::Jobs(_) => run.steady.or_else(|| {
                let around = cycle(&self.ceiling);
                // What may leave at once at the beginning says nothing.
                rate(run.tally.departures.get(around..)?, around)
            }),
            Amount::Arrivals { .. } => Some(self.arriving().min(lasting)),
        }
    }

    /// Calls a second that come.
    fn arriving(&self) -> f64 {
        match self.work.amount {
            Amount::Jobs(_) => f64::INFINITY,
            Amount::Arrivals { span, .. } => self.wanted / span.as_secs_f64(),
        }
    }

    fn allowed(&self) -> Option<f64> {
        Some(self.ceiling.declared()).filter(|rate| rate.is_finite() && *rate > 0.0)
    }

    fn jobs(&self, run: &Run) -> u64 {
        match self.work.amount {
            Amount::Jobs(jobs) => jobs,
            Amount::Arrivals { .. } if run.complete => run.tally.succeeded + run.tally.dead,
            Amount::Arrivals { per_second, span } => (per_second * span.as_secs_f64()).round() as u64,
        }
    }

    fn keys(&self) -> u64 {
        (self.provider.secrets.iter().flatten().count() + self.provider.stored.len()) as u64
    }

    fn dead(&self) -> u64 {
        let attempts = i32::try_from(self.provider.policy.retry.max_attempts).unwrap_or(i32::MAX);
        let jobs = self.wanted / self.work.calls_per_job(self.provider.policy.retry.max_attempts);
        (jobs * self.work.failures.powi(attempts)).round() as u64
    }

    fn takes(&self, run: &Run, lasting: f64) -> Takes {
        let departures = &run.tally.departures;
        if run.complete {
            return Takes { span: run.tally.last_end.since(Time::ZERO), basis: Basis::Simulated };
        }
        let answer = self.work.mean_latency();
        if let Amount::Arrivals { span: coming, .. } = self.work.amount {
            let basis =
                if run.steady.is_some() || lasting > self.arriving() { Basis::Extrapolated } else { Basis::Arithmetic };
            return Takes { span: coming + self.drain(lasting) + answer, basis };
        }
        let Some(rate) = run.steady else {
            return Takes { span: span(self.ceiling.seconds_for(self.wanted)) + answer, basis: Basis::Arithmetic };
        };
        // From a call that is whole cycles before the last one: what comes in steps stays in step.
        let around = cycle(&self.ceiling);
        let all = self.wanted.round() as usize;
        let from = departures.len() - 1;
        let back = (around - all.saturating_sub(1 + from) % around) % around;
        let from = from.saturating_sub(back);
        let more = span((all - 1 - from) as f64 / rate);
        Takes { span: Duration::from_nanos(departures[from]) + more + answer, basis: Basis::Extrapolated }
    }

    /// How long what has piled up takes when nothing comes any more.
    fn drain(&self, lasting: f64) -> Duration {
        match self.work.amount {
            Amount::Jobs(_) => Duration::ZERO,
            Amount::Arrivals { span: coming, .. } => {
                let excess = (self.arriving() - lasting).max(0.0);
                span(excess * coming.as_secs_f64() / lasting)
            }
        }
    }

    fn backlog(&self, run: &Run, lasting: f64) -> Option<Backlog> {
        let Amount::Arrivals { span: coming, .. } = self.work.amount else { return None };
        let per_job = self.work.calls_per_job(self.provider.policy.retry.max_attempts);
        let excess = (self.arriving() - lasting).max(0.0) / per_job;
        let end = u64::try_from(coming.as_nanos()).unwrap_or(u64::MAX);
        let (jobs_at_end, drains) = if run.complete {
            let late = run.tally.departures.iter().filter(|at| **at > end).count();
            (late as u64, run.tally.last_end.since(Time::ZERO + coming))
        } else if excess > 0.0 {
            ((excess * coming.as_secs_f64()).round() as u64, self.drain(lasting))
        } else {
            (run.unfinished, self.work.mean_latency())
        };
        Some(Backlog {
            grows: excess > 0.0,
            grows_per_second: rounded(excess),
            jobs_at_end,
            drains_ms: millis(drains),
            sustained_per_second: rounded(lasting / per_job),
        })
    }

    fn binds(&self, grows: bool) -> Vec<Binding> {
        match self.work.amount {
            Amount::Jobs(_) => self.ceiling.binding_for(self.wanted),
            Amount::Arrivals { .. } if grows => self.ceiling.binding(),
            Amount::Arrivals { span, .. } if self.ceiling.by(span.as_secs_f64()) < self.wanted => {
                self.ceiling.binding_for(self.wanted)
            }
            Amount::Arrivals { .. } => Vec::new(),
        }
    }

    fn limits(&self, run: &Run, sustained: Option<f64>, binds: &[Binding]) -> Vec<LimitPlan> {
        let is_binding = |rule: &Rule| binds.iter().any(|binding| binding.place == rule.place);
        let limit = |rule: &Rule| LimitPlan {
            place: rule.place.clone(),
            limit: rule.limit.clone(),
            of: rule.of.clone(),
            allowed_per_second: Some(rule.allows.declared).filter(|rate| rate.is_finite()).map(rounded),
            used: sustained.and_then(|_| self.used(rule, is_binding(rule), run)).map(rounded),
            expected_utilisation: rounded(rule.allows.utilisation()),
            binds: is_binding(rule),
        };
        self.all.rules().map(limit).collect()
    }

    /// The share of a limit that is used in the long run; of each key, the one that is used most.
    fn used(&self, rule: &Rule, binds: bool, run: &Run) -> Option<f64> {
        let keys = &self.provider.pool.keys;
        let mut by_key = vec![0_u64; keys.len()];
        for key in &run.tally.keys {
            *by_key.get_mut(key.0 as usize)? += 1;
        }
        let busiest = (0..keys.len()).max_by_key(|key| by_key[*key]);
        let counts = |key: usize| match rule.level {
            Level::Shared => true,
            Level::Budget(budget) => keys[key].budget == Some(budget),
            Level::Key => Some(key) == busiest,
        };
        let seen = run.tally.departures.iter().zip(&run.tally.keys);
        let departures: Vec<u64> = seen.filter(|(_, key)| counts(key.0 as usize)).map(|(at, _)| *at).collect();
        let share = departures.len() as f64 / run.tally.departures.len() as f64;
        let around = if binds && rule.allows.period > 0.0 {
            rule.allows.declared * rule.allows.period
        } else {
            share * cycle(&self.ceiling) as f64
        };
        let around = (around.round() as usize).max(1);
        // What may leave at once at the beginning says nothing.
        Some(rate(departures.get(around..)?, around)? / rule.allows.declared)
    }

    /// With how many more keys another limit binds, and what there is on the way.
    fn more_keys(&self, binds: &[Binding]) -> Result<Vec<MoreKeys>, PlanError> {
        let helps = |binds: &[Binding]| binds.iter().any(|binding| !binding.is_shared);
        if self.keys() == 0 || !helps(binds) {
            return Ok(Vec::new());
        }
        let binding = |keys: u64| {
            let more = self.all.with_keys(keys);
            match self.work.amount {
                Amount::Jobs(_) => more.binding_for(self.wanted),
                Amount::Arrivals { .. } => more.binding(),
            }
        };
        let (mut some, mut enough) = (0, 1);
        while helps(&binding(enough)) && enough < KEYS_MAX {
            (some, enough) = (enough, enough * 2);
        }
        while enough - some > 1 {
            let middle = some + (enough - some) / 2;
            if helps(&binding(middle)) { some = middle } else { enough = middle }
        }
        let mut rows = vec![1, self.keys()];
        rows.extend(Some(enough).filter(|enough| *enough < KEYS_MAX));
        rows.extend(self.keys_to_keep_up().filter(|_| matches!(self.work.amount, Amount::Arrivals { .. })));
        rows.retain(|keys| *keys <= enough);
        rows.sort_unstable();
        rows.dedup();
        rows.into_iter().map(|keys| self.with(keys, binding(keys))).collect()
    }

    fn with(&self, keys: u64, binds: Vec<Binding>) -> Result<MoreKeys, PlanError> {
        let provider = with_keys(self.provider, keys);
        let amount = match self.work.amount {
            Amount::Jobs(jobs) => Amount::Jobs(jobs),
            Amount::Arrivals { .. } => Amount::Jobs(super::JOBS_MAX),
        };
        let work = Work { amount, ..self.work.clone() };
        let more = Forecast::new(&provider, &work, self.all.with_keys(keys), self.calls);
        let run = run(&provider, &work, &more.ceiling, self.calls / BESIDE)?;
        let lasting = run.steady.unwrap_or_else(|| more.ceiling.expected());
        let takes = more.takes(&run, lasting);
        let jobs = matches!(self.work.amount, Amount::Jobs(_));
        let basis = if run.steady.is_none() && !run.complete { Basis::Arithmetic } else { takes.basis };
        Ok(MoreKeys { keys, takes_ms: jobs.then(|| millis(takes.span)), per_second: rounded(lasting), binds, basis })
    }

    fn keys_to_keep_up(&self) -> Option<u64> {
        let keeps_up = |keys: u64| self.all.with_keys(keys).expected() >= self.arriving();
        (1..=KEYS_MAX).find(|keys| keeps_up(*keys)).filter(|_| self.keys() > 0)
    }

    fn waits(&self, run: &Run, backlog: Option<&Backlog>) -> Option<Waits> {
        if let Some(backlog) = backlog.filter(|backlog| backlog.grows && !run.complete) {
            // First come, first served, and it only grows: the last one waits for all that piled up.
            let ms = backlog.drains_ms;
            return Some(Waits { p50_ms: ms / 2, p99_ms: ms / 100 * 99, max_ms: ms });
        }
        waits(run.tally.lanes.iter().flat_map(|lane| &lane.waits).copied().collect())
    }

    fn lanes(&self, run: &Run, with_waits: bool) -> Vec<LanePlan> {
        let shares = self.work.shares();
        if shares.len() < 2 {
            return Vec::new();
        }
        let lane = |((lane, share), seen): ((String, f64), &LaneTally)| LanePlan {
            lane,
            share: rounded(share),
            waits: if with_waits { waits(seen.waits.clone()) } else { None },
            takes_ms: run.complete.then(|| millis(seen.done.since(Time::ZERO))),
        };
        shares.into_iter().zip(&run.tally.lanes).map(lane).collect()
    }

    fn intervals(&self, run: &Run, takes: &Takes, lasting: f64) -> Intervals {
        let whole = takes.span.as_secs_f64();
        let width = WIDTHS.into_iter().find(|width| whole / width <= INTERVALS as f64);
        let width = width.unwrap_or(whole / INTERVALS as f64);
        let count = ((whole / width).ceil() as usize).max(1);
        let mut calls = vec![0.0; count];
        for at in &run.tally.departures {
            calls[((*at as f64 / 1e9 / width) as usize).min(count - 1)] += 1.0;
        }
        let mut simulated = count;
        if !run.complete {
            let seen = run.now.as_nanos() as f64 / 1e9;
            simulated = (seen / width) as usize;
            let rate = self.arriving().min(lasting).max(0.0);
            for (n, calls) in calls.iter_mut().enumerate().skip(simulated) {
                let (begins, ends) = (n as f64 * width, ((n + 1) as f64 * width).min(whole));
                *calls += (ends - begins.max(seen)).max(0.0) * rate;
            }
        }
        let calls = calls.into_iter().map(|calls| calls.round() as u64).collect();
        let allowed = self.allowed().map(|rate| rounded(rate * width));
        Intervals { width_ms: (width * 1000.0).round() as u64, allowed, calls, simulated }
    }

    fn notes(&self, takes: &Takes) -> Vec<String> {
        let mut notes = Vec::new();
        if self.all.is_unknown() {
            notes.push(
                "no limit is declared for these calls: the provider will be probed, and how fast that gets cannot be \
                 planned; what is shown is bounded by answers and open calls alone"
                    .to_owned(),
            );
        }
        if takes.basis == Basis::Arithmetic {
            notes.push("too long to simulate until its rate is steady: by arithmetic from the limits alone".to_owned());
        }
        if self.work.latency.p99 >= self.provider.policy.timeout {
            let timeout = HumanDuration(self.provider.policy.timeout);
            notes.push(format!("more than one call in a hundred gets no answer within the timeout of {timeout}"));
        }
        if self.provider.pool.counted_within < self.work.mean_latency() {
            let within = HumanDuration(self.provider.pool.counted_within);
            notes.push(format!("answers come later than counted_within, {within}: slots are freed before they come"));
        }
        notes
    }

    fn assumed(&self) -> Assumed {
        let Work { latency, cost, failures, method, path, seed, start_ms, .. } = self.work;
        Assumed {
            latency_ms: millis(latency.median),
            latency_p99_ms: millis(latency.p99),
            cost: *cost,
            failures: *failures,
            method: method.clone(),
            path: path.clone(),
            seed: *seed,
            start: rfc3339(*start_ms),
        }
    }
}

fn waits(mut all: Vec<u64>) -> Option<Waits> {
    all.sort_unstable();
    let at = |share: f64| all.get(((all.len() as f64 * share) as usize).min(all.len().saturating_sub(1)));
    let ms = |nanos: &u64| nanos / 1_000_000;
    Some(Waits { p50_ms: ms(at(0.5)?), p99_ms: ms(at(0.99)?), max_ms: ms(all.last()?) })
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// To six digits after the point: enough for every rate, and the same text on every machine.
fn rounded(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}
