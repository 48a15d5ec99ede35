//! What is measured: each row of the table of figures to reach, as a provider, a declaration and a
//! target.

use std::time::Duration;

use paceline::sim::{CostSource, Lognormal, ProviderOptions, RateHeaders, Rule, SimKey};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;
use serde_json::{Value, json};

/// The way to the provider, and back where nothing else is said.
const ONE_WAY: Lognormal = Lognormal::ms(15, 120);
/// Costs of calls, where they have any.
const COSTS: std::ops::RangeInclusive<u64> = 1..=500;
/// Where a call's cost stands.
const COST_AT: &str = "max_tokens";

/// What a figure is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judged {
    /// Utilisation itself.
    Absolute,
    /// Utilisation as a share of W ÷ (W + mean round trip): what counting from answers leaves.
    ShareOfFormula,
    /// Utilisation as a share of what one process reached in the same minutes.
    ShareOfOneProcess,
    /// Time in which nothing was sent, for each kill.
    SecondsLostPerKill,
}

/// Which cases run at the same time: together, their rates are low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// One embedded process each.
    Together,
    /// Needs the machine for itself.
    Alone,
    /// Several processes, or processes that are killed.
    Processes,
    /// Ten minutes, and only if asked for.
    Long,
}

/// How its processes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// One process on one SQLite file.
    Embedded,
    /// One process, then so many at the same time beside it, on RabbitMQ and PostgreSQL.
    Processes(usize),
    /// One process on one SQLite file, killed and restarted.
    KilledEmbedded,
    /// So many on RabbitMQ and PostgreSQL, killed and restarted by turns.
    KilledScaled(usize),
}

/// One row.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: &'static str,
    pub group: Group,
    pub setting: Setting,
    pub keys: usize,
    /// What the provider enforces. The first is the one that is measured.
    pub rules: &'static [&'static str],
    /// `key_limits`, as declared.
    pub limits: &'static str,
    pub safety: &'static str,
    pub before: Lognormal,
    /// From the judgement to the answer's arrival.
    pub response: Lognormal,
    pub headers: RateHeaders,
    pub has_costs: bool,
    pub judged: Judged,
    /// At least; for seconds lost the bound is worked out from the kills.
    pub target: f64,
}

impl Case {
    const fn new(name: &'static str, keys: usize, rules: &'static [&'static str], limits: &'static str) -> Self {
        Self {
            name,
            group: Group::Together,
            setting: Setting::Embedded,
            keys,
            rules,
            limits,
            safety: "strict",
            before: ONE_WAY,
            response: ONE_WAY,
            headers: RateHeaders::None,
            has_costs: false,
            judged: Judged::ShareOfFormula,
            target: 0.96,
        }
    }

    const fn in_group(self, group: Group) -> Self {
        Self { group, ..self }
    }

    const fn answered_in(self, median_ms: u64, p99_ms: u64) -> Self {
        Self { response: Lognormal::ms(median_ms, p99_ms), ..self }
    }

    const fn share(self, target: f64) -> Self {
        Self { judged: Judged::ShareOfFormula, target, ..self }
    }

    const fn absolute(self, target: f64) -> Self {
        Self { judged: Judged::Absolute, target, ..self }
    }

    const fn set(self, setting: Setting) -> Self {
        Self { group: Group::Processes, setting, ..self }
    }

    const fn with_costs(self) -> Self {
        Self { has_costs: true, ..self }
    }

    const fn telling(self, headers: RateHeaders) -> Self {
        Self { headers, ..self }
    }

    const fn balanced(self, median_ms: u64, p99_ms: u64) -> Self {
        Self { safety: "balanced", before: Lognormal::ms(median_ms, p99_ms), ..self }
    }

    /// The rule that is measured: so many, in such a window.
    pub fn rate(&self) -> anyhow::Result<(u64, Duration)> {
        let rule: Rule = self.rules[0].parse()?;
        let (limit, per) = rule.limit.rate();
        Ok((limit, per.unwrap_or_default()))
    }

    /// Windows to measure for each key: so many, and for so long.
    pub fn windows(&self, (windows, least): (u32, Duration)) -> anyhow::Result<f64> {
        let (_, per) = self.rate()?;
        Ok((least.as_secs_f64() / per.as_secs_f64()).max(f64::from(windows)))
    }

    /// Calls a second that all keys allow together, at most.
    pub fn calls_per_second(&self) -> anyhow::Result<f64> {
        let (limit, per) = self.rate()?;
        let counts_cost = self.rules[0].contains(" cost ");
        let mean = if counts_cost { (COSTS.start() + COSTS.end()) as f64 / 2.0 } else { 1.0 };
        Ok(self.keys as f64 * limit as f64 / mean / per.as_secs_f64())
    }

    /// The provider that it is judged by.
    pub fn provider(&self, ledger_capacity: usize) -> anyhow::Result<ProviderOptions> {
        let rules = self.rules.iter().map(|rule| rule.parse()).collect::<Result<_, _>>()?;
        Ok(ProviderOptions {
            keys: (0..self.keys).map(|n| SimKey::new(label(n), secret(n))).collect(),
            rules,
            cost: if self.has_costs { CostSource::Json(format!("/{COST_AT}")) } else { CostSource::One },
            delay_before: Some(self.before),
            latency: Some(self.response),
            seed: 11,
            rate_headers: self.headers,
            ledger_capacity,
            ..ProviderOptions::default()
        })
    }

    /// The provider's section of the configuration, and the environment that it refers to.
    pub fn declared(&self, base_url: &str) -> (String, Vec<(String, String)>) {
        let name = |n: usize| format!("BENCH_KEY_{n}");
        let key = |n| format!("{{ label = \"{}\", secret = \"env:{}\" }}", label(n), name(n));
        let keys: Vec<String> = (0..self.keys).map(key).collect();
        let text = format!(
            "base_url = \"{base_url}\"\nsafety = \"{}\"\nkey_limits = [ {} ]\nkeys = [ {} ]\n",
            self.safety,
            self.limits,
            keys.join(", ")
        );
        (text, (0..self.keys).map(|n| (name(n), secret(n))).collect())
    }

    /// Jobs for that provider; the same costs in every run.
    pub fn jobs(&self, provider: &str, count: u64) -> impl Iterator<Item = Value> {
        let mut dice = self.has_costs.then(|| StdRng::seed_from_u64(5));
        let provider = provider.to_owned();
        (0..count).map(move |n| {
            let mut job = json!({
                "id": format!("bench-{n}"), "provider": provider,
                "request": { "method": "POST", "path": "/ok", "body": { "n": n } },
            });
            if let Some(dice) = &mut dice {
                let cost = dice.random_range(COSTS);
                job["cost"] = cost.into();
                job["request"]["body"][COST_AT] = cost.into();
            }
            job
        })
    }
}

fn label(n: usize) -> String {
    format!("k{n}")
}

fn secret(n: usize) -> String {
    format!("bench-secret-{n}")
}

/// All of them.
pub fn all() -> Vec<Case> {
    let mut cases = windows();
    cases.extend(others());
    cases.extend(smooth());
    cases.extend(processes());
    cases
}

fn windows() -> Vec<Case> {
    let hundred = "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }";
    let ten = "{ requests = 10, per = \"1s\", algorithm = \"sliding_window\" }";
    let ten_in_ten = "{ requests = 10, per = \"10s\", algorithm = \"sliding_window\" }";
    let in_ten = |name, keys, rules, limits| Case::new(name, keys, rules, limits).answered_in(50, 500).share(0.995);
    vec![
        in_ten("sliding-10s-1-key", 1, &["key requests 100/10s sliding_log"], hundred),
        in_ten("sliding-10s-4-keys", 4, &["key requests 100/10s sliding_log"], hundred),
        in_ten("sliding-10s-1000-keys", 1_000, &["key requests 10/10s sliding_log"], ten_in_ten).in_group(Group::Alone),
        Case::new("sliding-1s-strict", 4, &["key requests 10/1s sliding_log"], ten).answered_in(20, 200).share(0.97),
        Case::new("sliding-1s-balanced", 4, &["key requests 10/1s sliding_log"], ten)
            .answered_in(20, 200)
            .balanced(5, 40)
            .absolute(0.95),
        Case::new(
            "sliding-60s",
            2,
            &["key requests 600/60s sliding_log"],
            "{ requests = 600, per = \"60s\", algorithm = \"sliding_window\" }",
        )
        .answered_in(50, 500)
        .share(0.995)
        .in_group(Group::Long),
        Case::new("counter-60s", 1, &["key requests 600/60s sliding_counter"], "{ requests = 600, per = \"60s\" }")
            .share(0.985)
            .in_group(Group::Long),
    ]
}

/// Servers whose algorithm is known, and two limits at once.
fn others() -> Vec<Case> {
    let bucket = "{ requests = 10, per = \"1s\", algorithm = \"token_bucket\", burst = 6 }";
    let fixed = "{ requests = 100, per = \"10s\", algorithm = \"fixed_window\" }";
    let by_cost = "{ cost = 10000, per = \"10s\", algorithm = \"sliding_window\" }, \
                   { requests = 60, per = \"10s\", algorithm = \"sliding_window\" }";
    let by_requests = "{ requests = 30, per = \"10s\", algorithm = \"sliding_window\" }, \
                       { cost = 10000, per = \"10s\", algorithm = \"sliding_window\" }";
    vec![
        Case::new("token-bucket", 1, &["key requests 10/1s token_bucket burst=6"], bucket).absolute(0.985),
        Case::new("leaky-bucket", 1, &["key requests 10/1s leaky_bucket room=6"], bucket).absolute(0.985),
        Case::new("fixed-window", 1, &["key requests 100/10s fixed_clock"], fixed)
            .telling(RateHeaders::XEpochSeconds)
            .absolute(0.985),
        Case::new(
            "two-limits-cost-binds",
            1,
            &["key cost 10000/10s sliding_log", "key requests 60/10s sliding_log"],
            by_cost,
        )
        .with_costs()
        .share(0.97),
        Case::new(
            "two-limits-requests-bind",
            1,
            &["key requests 30/10s sliding_log", "key cost 10000/10s sliding_log"],
            by_requests,
        )
        .with_costs()
        .share(0.97),
    ]
}

/// Servers that nobody knows: the default setting for all of them.
fn smooth() -> Vec<Case> {
    let sixty = "{ requests = 60, per = \"6s\" }";
    let three_hundred = "{ requests = 300, per = \"10s\" }";
    let three_thousand = "{ requests = 3000, per = \"10s\" }";
    vec![
        Case::new("smooth-counter-60", 1, &["key requests 60/6s sliding_counter"], sixty),
        Case::new("smooth-counter-300", 1, &["key requests 300/10s sliding_counter"], three_hundred).share(0.985),
        Case::new("smooth-counter-3000", 1, &["key requests 3000/10s sliding_counter"], three_thousand).share(0.985),
        Case::new("smooth-log", 1, &["key requests 60/6s sliding_log"], sixty),
        Case::new("smooth-fixed-clock", 1, &["key requests 60/6s fixed_clock"], sixty),
        Case::new("smooth-fixed-first-call", 1, &["key requests 60/6s fixed_first_call"], sixty),
        Case::new("smooth-token-bucket", 1, &["key requests 60/6s token_bucket burst=6"], sixty),
        Case::new("smooth-leaky-bucket", 1, &["key requests 60/6s leaky_bucket room=6"], sixty),
    ]
}

fn processes() -> Vec<Case> {
    let fifty = "{ requests = 50, per = \"5s\", algorithm = \"sliding_window\" }";
    let ten = "{ requests = 10, per = \"1s\", algorithm = \"sliding_window\" }";
    let one = |name, setting| Case {
        judged: Judged::SecondsLostPerKill,
        ..Case::new(name, 4, &["key requests 10/1s sliding_log"], ten).set(setting)
    };
    vec![
        Case {
            judged: Judged::ShareOfOneProcess,
            target: 0.99,
            ..Case::new("four-processes", 8, &["key requests 50/5s sliding_log"], fifty).set(Setting::Processes(4))
        },
        one("killed-embedded", Setting::KilledEmbedded),
        one("killed-scaled", Setting::KilledScaled(1)),
        one("taking-over", Setting::KilledScaled(2)),
    ]
}
