//! What a plan says: names and units as programs read them.

use serde::Serialize;

use super::ceiling::Binding;

/// How a figure was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Every job was simulated.
    Simulated,
    /// The rate was steady, and the rest follows from it.
    Extrapolated,
    /// By arithmetic alone: a steady rate was not proven.
    Arithmetic,
}

/// What was assumed.
#[derive(Debug, Clone, Serialize)]
pub struct Assumed {
    /// Median time to an answer.
    pub latency_ms: u64,
    /// 99th percentile of it.
    pub latency_p99_ms: u64,
    /// Cost units of each job.
    pub cost: u64,
    /// Share of calls that fail.
    pub failures: f64,
    /// Method of the calls.
    pub method: String,
    /// Path of the calls.
    pub path: String,
    /// Random numbers begin with it.
    pub seed: u64,
    /// When it begins.
    pub start: String,
}

/// A limit, and how much of it is used.
#[derive(Debug, Clone, Serialize)]
pub struct LimitPlan {
    /// Its place in the configuration.
    pub place: String,
    /// In words.
    pub limit: String,
    /// Of what.
    pub of: String,
    /// Calls a second that it allows in the long run, as declared; nothing where time does not limit them.
    pub allowed_per_second: Option<f64>,
    /// The share of that which this work uses in the long run; of each key, the one that is used most.
    pub used: Option<f64>,
    /// The share of it that can be used at best, under the provider's safety.
    pub expected_utilisation: f64,
    /// Whether it holds the work back.
    pub binds: bool,
}

/// How long jobs wait from when they come to when they are first sent.
#[derive(Debug, Clone, Serialize)]
pub struct Waits {
    /// Half of them wait shorter.
    pub p50_ms: u64,
    /// One in a hundred waits longer.
    pub p99_ms: u64,
    /// None of those simulated waited longer.
    pub max_ms: u64,
}

/// One lane.
#[derive(Debug, Clone, Serialize)]
pub struct LanePlan {
    /// Its name.
    pub lane: String,
    /// Its share of the jobs.
    pub share: f64,
    /// Waits of its jobs.
    pub waits: Option<Waits>,
    /// When its last job ends, after the beginning; only where all of it was simulated.
    pub takes_ms: Option<u64>,
}

/// What piles up where jobs come.
#[derive(Debug, Clone, Serialize)]
pub struct Backlog {
    /// It grows for as long as jobs come.
    pub grows: bool,
    /// By so many jobs a second.
    pub grows_per_second: f64,
    /// Jobs that wait when no more come.
    pub jobs_at_end: u64,
    /// How long these take then; nothing where they never end.
    pub drains_ms: u64,
    /// Jobs a second that can be kept up with.
    pub sustained_per_second: f64,
}

/// The same work with more keys.
#[derive(Debug, Clone, Serialize)]
pub struct MoreKeys {
    /// So many, each with a quota of its own.
    pub keys: u64,
    /// How long it takes then; nothing where jobs come.
    pub takes_ms: Option<u64>,
    /// Calls a second in the long run.
    pub per_second: f64,
    /// What binds then.
    pub binds: Vec<Binding>,
    /// How it was found.
    pub basis: Basis,
}

/// Calls over time.
#[derive(Debug, Clone, Serialize)]
pub struct Intervals {
    /// How long each is.
    pub width_ms: u64,
    /// Calls that the limits allow in each in the long run.
    pub allowed: Option<f64>,
    /// Calls in each.
    pub calls: Vec<u64>,
    /// From this interval on they follow from a steady rate.
    pub simulated: usize,
}

/// What can be said of some work at one provider.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Its name.
    pub provider: String,
    /// Jobs; of those that come at random, on average.
    pub jobs: u64,
    /// Jobs a second, where they come.
    pub rate_per_second: Option<f64>,
    /// For how long they come.
    pub for_ms: Option<u64>,
    /// Keys that are configured.
    pub keys: u64,
    /// Whether a limit is declared at all. If not, the provider is probed when calls are made, and `takes_ms` is the
    /// least that it takes.
    pub limits_known: bool,
    /// From the beginning to the end of the last job.
    pub takes_ms: u64,
    /// The same as a time.
    pub done_at: String,
    /// How it was found.
    pub basis: Basis,
    /// Calls that were simulated.
    pub simulated_calls: u64,
    /// By arithmetic: no limit lets the last call leave earlier.
    pub arithmetic_ms: u64,
    /// Calls altogether.
    pub calls: u64,
    /// Jobs that fail for good.
    pub dead: u64,
    /// Calls a second over the whole time.
    pub rate: f64,
    /// Calls a second that the limits allow in the long run, as declared; nothing where time does not limit them.
    pub allowed_per_second: Option<f64>,
    /// Calls a second in the long run; nothing where it is over sooner.
    pub sustained_per_second: Option<f64>,
    /// The share of the allowed rate that is reached in the long run.
    pub utilisation: Option<f64>,
    /// What holds the work back.
    pub binds: Vec<Binding>,
    /// Every limit that holds for it.
    pub limits: Vec<LimitPlan>,
    /// What more keys would do.
    pub more_keys: Vec<MoreKeys>,
    /// Keys that keep up with what comes, where those there are do not.
    pub keys_to_keep_up: Option<u64>,
    /// Waits, where jobs come.
    pub waits: Option<Waits>,
    /// What piles up, where jobs come.
    pub backlog: Option<Backlog>,
    /// Lanes, where there are several.
    pub lanes: Vec<LanePlan>,
    /// Calls over time.
    pub intervals: Intervals,
    /// What was assumed.
    pub assumed: Assumed,
    /// What else is to be known.
    pub notes: Vec<String>,
}
