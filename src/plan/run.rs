//! One run of the simulation, as long as it is worth it.

use std::sync::Arc;

use super::PlanError;
use super::ceiling::Ceiling;
use super::dice::Dice;
use super::drive::Drive;
use super::supply::Supply;
use super::work::{Amount, Work};
use super::world::{Planned, Tally};
use crate::config::Provider;
use crate::dispatch::core::Core;
use crate::job::{Catalog, Given, Job};
use crate::pace::{Ask, KeySpec, Pool, Time};

/// Instants simulated at most, whatever is not done by then.
const STEPS_MAX: u64 = 3_000_000;
/// Periods that have to be seen before a rate is taken to be steady.
const PERIODS: f64 = 5.0;
/// A run that has come so far that this many times its calls would be all is not broken off.
const NEARLY: f64 = 1.25;
/// Two parts of a run whose rates differ by less go at the same rate.
const STEADY: f64 = 0.005;

/// What came of it.
#[derive(Debug)]
pub struct Run {
    /// What was seen.
    pub tally: Tally,
    /// How far it went.
    pub now: Time,
    /// Every job came and ended.
    pub complete: bool,
    /// Jobs that had come by then, and not ended.
    pub unfinished: u64,
    /// The rate at which it goes on, in calls a second, where that is proven.
    pub steady: Option<f64>,
}

/// The provider with so many keys more, each with a quota of its own.
pub fn with_keys(provider: &Provider, more: u64) -> Provider {
    let mut provider = provider.clone();
    let key = |n| KeySpec { label: format!("more-{n}"), weight: 1, budget: None };
    provider.pool.keys.extend((0..more).map(key));
    let keys = provider.pool.keys.len();
    provider.secrets.resize(keys, None);
    provider
}

/// Runs until everything has ended, or until `calls` were made and the rate is steady, or four times as many. `ceiling`
/// has the limits that matter.
pub fn run(provider: &Provider, work: &Work, ceiling: &Ceiling, calls: usize) -> Result<Run, PlanError> {
    let provider = Arc::new(provider.clone());
    let (templates, supplies) = jobs(&provider, work)?;
    let core = Core::new(Arc::clone(&provider), Time::ZERO)?;
    let world = Planned::new(&provider, work, templates, supplies, work.start_ms);
    let mut drive = Drive::new(core, world, work.start_ms);
    drive.world.begin(&mut drive.agenda);
    let wanted = calls_wanted(work, &provider);
    let mut enough = calls;
    let mut steady = None;
    let mut steps = 0;
    while !drive.world.is_done() && steps < STEPS_MAX && drive.step() {
        steps += 1;
        let made = drive.world.tally.departures.len();
        // What is nearly done is done.
        if made < enough || made as f64 * NEARLY >= wanted {
            continue;
        }
        steady = steady_rate(&drive.world.tally.departures, ceiling);
        if steady.is_some() || made >= 4 * calls {
            break;
        }
        enough = made + calls;
    }
    let now = drive.agenda.now().mono;
    let (complete, unfinished) = (drive.world.is_done(), drive.world.unfinished(now));
    Ok(Run { tally: drive.world.tally, now, complete, unfinished, steady })
}

/// One job and one supply for each lane.
fn jobs(provider: &Provider, work: &Work) -> Result<(Vec<Job>, Vec<Supply>), PlanError> {
    let mut catalog = Catalog::default();
    catalog.providers.insert(provider.name.clone(), provider.rules());
    let lanes = &provider.pool.lanes;
    let (mut templates, mut supplies) = (Vec::new(), Vec::new());
    let (mut given, mut share_given) = (0, 0.0);
    for (n, (name, share)) in work.shares().into_iter().enumerate() {
        let lane = lanes.iter().position(|lane| lane.name == name).ok_or_else(|| PlanError::Lane {
            name: name.clone(),
            known: lanes.iter().map(|lane| lane.name.clone()).collect(),
        })?;
        let envelope = serde_json::json!({
            "id": "planned", "provider": provider.name, "lane": name, "cost": work.cost,
            "request": { "method": work.method, "path": work.path },
        });
        let job = Job::parse(envelope.to_string().as_bytes(), &Given::default(), &catalog);
        templates.push(job.map_err(|e| PlanError::Job(e.to_string()))?);
        supplies.push(match work.amount {
            Amount::Jobs(jobs) => {
                // Shares of whole jobs that sum up to all of them.
                share_given += share;
                let upto = ((jobs as f64 * share_given).round() as u64).min(jobs);
                let part = upto.saturating_sub(given);
                given = upto;
                Supply::there(lane, part)
            }
            Amount::Arrivals { per_second, span } => {
                let dice = Dice::new(work.seed.wrapping_add(1 + n as u64));
                Supply::coming(lane, per_second * share, Time::ZERO + span, dice)
            }
        });
    }
    Ok((templates, supplies))
}

/// Whether jobs of that cost can be sent at all.
pub fn check_cost(provider: &Provider, work: &Work) -> Result<(), PlanError> {
    let routes = provider.routes_of(&work.method, &work.path).collect();
    let pool = Pool::new(&provider.pool, Time::ZERO)?;
    match pool.impossible(&Ask { cost: work.cost, routes, pin: None }) {
        Some(impossible) => Err(PlanError::Impossible(impossible.to_string())),
        None => Ok(()),
    }
}

/// The rate in the second half of these departures, where it is proven that it stays: several periods of every limit
/// that can matter were seen, and both quarters of that half go at the same rate.
fn steady_rate(departures: &[u64], ceiling: &Ceiling) -> Option<f64> {
    let seconds = *departures.last()? as f64 / 1e9;
    if ceiling.rules().any(|rule| rule.allows.period * PERIODS > seconds) {
        return None;
    }
    let around = cycle(ceiling);
    let half = &departures[departures.len() / 2..];
    let (early, late) = half.split_at(half.len() / 2);
    let (early, late) = (rate(early, around)?, rate(late, around)?);
    let both = rate(half, around)?;
    ((early - late).abs() <= STEADY * both).then_some(both)
}

/// Calls that the work takes altogether.
pub fn calls_wanted(work: &Work, provider: &Provider) -> f64 {
    let jobs = match work.amount {
        Amount::Jobs(jobs) => jobs as f64,
        Amount::Arrivals { per_second, span } => per_second * span.as_secs_f64(),
    };
    jobs * work.calls_per_job(provider.policy.retry.max_attempts)
}

/// Calls after which everything repeats: what the limits allow in a period of the one that binds.
pub fn cycle(ceiling: &Ceiling) -> usize {
    let binding = ceiling.binding();
    let period = ceiling.period_of(&binding);
    ((ceiling.declared() * period).round() as usize).max(1)
}

/// Calls a second, of departures in nanoseconds: n ÷ mean(aᵢ₊ₙ − aᵢ), with n the calls of a cycle. `None` where there
/// are fewer than two cycles.
pub fn rate(departures: &[u64], around: usize) -> Option<f64> {
    let pairs = departures.len().checked_sub(around).filter(|pairs| *pairs >= around)?;
    let sum: u128 = departures.iter().skip(around).zip(departures).map(|(b, a)| u128::from(b - a)).sum();
    let mean = sum as f64 / pairs as f64 / 1e9;
    (mean > 0.0).then(|| around as f64 / mean)
}
