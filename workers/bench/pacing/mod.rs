//! How much of an allowed rate is used, and that nothing is refused: over real sockets, by the real
//! program, against the strict bundled provider, which delays calls before it judges them.

mod case;
mod kills;
mod steady;

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use paceline::sim::ProviderStats;
use serde::Serialize;

use super::machine::Machine;
use super::services::Services;
pub use case::Judged;
use case::{Case, Group, Setting};

/// What each process does: nobody waits for webhooks here.
const ROLES: &str = "dispatcher,scheduler";

/// What to run.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Only cases whose names begin with one of these; all where there are none.
    pub only: Vec<String>,
    /// Windows for each key at least.
    pub windows: u32,
    /// And for so long at least, however short they are.
    pub least: Duration,
    /// The ten minutes, too.
    pub long: bool,
}

/// One measured row.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: &'static str,
    /// What the provider enforced.
    pub rules: Vec<String>,
    pub limits: &'static str,
    pub safety: &'static str,
    pub keys: usize,
    /// Windows measured, of the key with the fewest.
    pub windows: f64,
    /// Accepted calls that were measured.
    pub calls: u64,
    /// Mean time between sending and answer, as far as the provider causes it.
    pub round_trip_ms: f64,
    /// W ÷ mean(aᵢ₊ₙ − aᵢ), of all keys together and of the one with the least.
    pub utilisation: f64,
    pub utilisation_least: f64,
    /// W ÷ (W + mean round trip).
    pub formula: f64,
    pub judged: Judged,
    /// What is compared: see `judged`.
    pub reached: f64,
    pub target: f64,
    /// Calls that the provider refused, also before and after the measured time.
    pub too_many_requests: u64,
    /// Anything else that matters.
    pub note: Option<String>,
}

impl Row {
    /// Whether it is as it should be.
    pub fn is_good(&self) -> bool {
        let reached = match self.judged {
            Judged::SecondsLostPerKill => self.reached <= self.target,
            Judged::Absolute | Judged::ShareOfFormula | Judged::ShareOfOneProcess => self.reached >= self.target,
        };
        reached && self.too_many_requests == 0
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub rows: Vec<Row>,
    /// Cases that could not run, and why.
    pub left_out: Vec<String>,
}

impl Report {
    /// Whether every target was reached.
    pub fn is_good(&self) -> bool {
        self.rows.iter().all(Row::is_good)
    }
}

/// Measures; `say` is told what goes on.
pub async fn run(choice: &Choice, mut say: impl FnMut(String)) -> anyhow::Result<Report> {
    let services = Services::from_env();
    let machine = Machine::now()?;
    let (mut rows, mut left_out) = (Vec::new(), Vec::new());
    let chosen: Vec<Case> = case::all().into_iter().filter(|case| choice.wants(case)).collect();
    anyhow::ensure!(!chosen.is_empty(), "there is no such case; the names are: {}", names());
    for group in [Group::Together, Group::Alone, Group::Processes, Group::Long] {
        let mut cases: Vec<&Case> = chosen.iter().filter(|case| case.group == group).collect();
        cases.retain(|case| {
            let runs = services.is_some() || matches!(case.setting, Setting::Embedded | Setting::KilledEmbedded);
            if !runs {
                left_out.push(format!("{}: AMQP_URL and DATABASE_URL are not set", case.name));
            }
            runs
        });
        if cases.is_empty() {
            continue;
        }
        let names: Vec<&str> = cases.iter().map(|case| case.name).collect();
        say(format!("at the same time: {}", names.join(", ")));
        rows.extend(together(&cases, (choice.windows, choice.least), services.as_ref()).await?);
    }
    Ok(Report { machine: machine.done(), rows, left_out })
}

fn names() -> String {
    case::all().iter().map(|case| case.name).collect::<Vec<_>>().join(", ")
}

impl Choice {
    fn wants(&self, case: &Case) -> bool {
        let named = self.only.iter().any(|part| case.name.starts_with(part.as_str()));
        named || (self.only.is_empty() && (self.long || case.group != Group::Long))
    }
}

/// Prepares all, then measures all at the same time.
async fn together(cases: &[&Case], least: (u32, Duration), services: Option<&Services>) -> anyhow::Result<Vec<Row>> {
    let mut prepared = Vec::new();
    for case in cases {
        prepared.push(Prepared::new(case, least, services).await.with_context(|| case.name)?);
    }
    let measured = join_all(prepared.into_iter().map(Prepared::measure)).await;
    measured.into_iter().zip(cases).map(|(row, case)| row.with_context(|| case.name)).collect()
}

enum Prepared {
    Steady(Box<steady::Steady>),
    Shared { one: Box<steady::Steady>, many: Box<steady::Steady> },
    Killed(Box<kills::Killed>),
}

impl Prepared {
    async fn new(case: &Case, least: (u32, Duration), services: Option<&Services>) -> anyhow::Result<Self> {
        let steady = async |name: &str, services, processes| {
            steady::Steady::new(case, name, least, services, processes).await.map(Box::new)
        };
        Ok(match case.setting {
            Setting::Embedded => Self::Steady(steady(case.name, None, 1).await?),
            Setting::Processes(processes) => Self::Shared {
                one: steady("one-process", services, 1).await?,
                many: steady(case.name, services, processes).await?,
            },
            Setting::KilledEmbedded => Self::Killed(Box::new(kills::Killed::new(case, None, 1).await?)),
            Setting::KilledScaled(processes) => {
                Self::Killed(Box::new(kills::Killed::new(case, services, processes).await?))
            }
        })
    }

    async fn measure(self) -> anyhow::Result<Row> {
        match self {
            Self::Steady(steady) => steady.measure().await,
            Self::Killed(killed) => killed.measure().await,
            Self::Shared { one, many } => {
                let (one, many) = tokio::try_join!(one.measure(), many.measure())?;
                let owners = many.note.unwrap_or_default();
                let note = format!("one process: {:.2} %; {owners}", one.utilisation * 100.0);
                Ok(Row {
                    reached: many.utilisation / one.utilisation,
                    too_many_requests: one.too_many_requests + many.too_many_requests,
                    note: Some(note),
                    ..many
                })
            }
        }
    }
}

/// A row from what the provider counted, its first rule being the measured one.
fn row(case: &Case, stats: &ProviderStats, refused_before: u64) -> anyhow::Result<Row> {
    let (_, per) = case.rate()?;
    let of_keys = || stats.keys.iter().filter_map(|key| key.utilisation.iter().find(|used| used.rule == 0));
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
    let rule = stats.rules.first().context("the provider has no rule")?;
    let utilisation = rule.utilisation.context("nothing was measured")?;
    let round_trip_ms = stats.mean_delay_ms.unwrap_or_default();
    let formula = per.as_secs_f64() / (per.as_secs_f64() + round_trip_ms / 1e3);
    Ok(Row {
        name: case.name,
        rules: stats.rules.iter().map(|rule| rule.rule.clone()).collect(),
        limits: case.limits,
        safety: case.safety,
        keys: case.keys,
        windows: least(&mut of_keys().map(|used| used.windows)),
        calls: stats.accepted,
        round_trip_ms,
        utilisation,
        utilisation_least: least(&mut of_keys().map(|used| used.utilisation)),
        formula,
        judged: case.judged,
        reached: match case.judged {
            Judged::ShareOfFormula => utilisation / formula,
            _ => utilisation,
        },
        target: case.target,
        too_many_requests: refused_before + stats.refused_limit,
        note: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(judged: Judged, reached: f64, target: f64, too_many_requests: u64) -> Row {
        Row {
            name: "a case",
            rules: Vec::new(),
            limits: "",
            safety: "strict",
            keys: 1,
            windows: 10.0,
            calls: 1_000,
            round_trip_ms: 45.0,
            utilisation: 0.99,
            utilisation_least: 0.99,
            formula: 0.99,
            judged,
            reached,
            target,
            too_many_requests,
            note: None,
        }
    }

    #[test]
    fn a_target_is_missed_by_too_little_or_by_a_single_refusal() {
        assert!(measured(Judged::Absolute, 0.985, 0.985, 0).is_good());
        assert!(!measured(Judged::ShareOfFormula, 0.9849, 0.985, 0).is_good());
        assert!(!measured(Judged::ShareOfOneProcess, 1.0, 0.99, 1).is_good());
        assert!(measured(Judged::SecondsLostPerKill, 3.0, 3.5, 0).is_good(), "less is better here");
        assert!(!measured(Judged::SecondsLostPerKill, 3.6, 3.5, 0).is_good());
    }

    #[test]
    fn every_case_can_be_judged() {
        for case in case::all() {
            let (limit, per) = case.rate().expect("a rule");
            assert!(limit > 0 && !per.is_zero(), "{}", case.name);
            case.provider(0).expect("the provider's options");
        }
    }
}
