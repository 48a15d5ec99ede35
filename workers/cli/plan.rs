//! `paceline plan`: how long will it take, what holds it back, and what would help?

use std::time::Duration;

use clap::Args as ClapArgs;
use paceline::clock::{Clock, SystemClock, parse_rfc3339};
use paceline::config::{Config, Provider};
use paceline::duration::HumanDuration;
use paceline::plan::{Amount, JOBS_MAX, PlanError, RATE_MAX, SPAN_MAX, Work, plan};
use paceline::sim::Lognormal;
use serde_json::json;

use super::Globals;
use super::failure::{Exit, Failure};
use super::output::Out;
use super::plan_text;

/// Say how long work will take: the dispatcher's own code under virtual time
///
/// Nothing is called and no secret is needed. The plan is what the limits and the provider's answers allow; how much a
/// machine can do is measured by `paceline bench`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  paceline plan --jobs 100_000
  paceline plan --provider geocoder --jobs 50_000 --latency 120ms,900ms --failures 1%
  paceline plan --rate 50/s --for 1h --lane high=20% --lane default=80%
  paceline plan --jobs 2_000 --method POST --path /v1/batch/7 --cost 40 --json")]
pub struct Args {
    /// Only this provider [default: each one that is configured, with the same work]
    #[arg(long)]
    provider: Option<String>,
    /// So many jobs that are all there at the beginning, such as 100000 or 100_000
    #[arg(long, value_name = "N", value_parser = jobs, required_unless_present = "rate", conflicts_with = "rate")]
    jobs: Option<u64>,
    /// Jobs that come at random, so many on average: 50/s, 3000/m, 100000/h, 1000000/d
    #[arg(long, value_name = "N/UNIT", value_parser = rate, requires = "span")]
    rate: Option<f64>,
    /// For how long they come
    #[arg(long = "for", id = "span", value_name = "DURATION", value_parser = span, requires = "rate")]
    span: Option<Duration>,
    /// From sending a call to its answer: a duration, or its median and 99th percentile (120ms,900ms)
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = latency)]
    latency: Lognormal,
    /// Cost units of each job
    #[arg(long, value_name = "UNITS", default_value_t = 1)]
    cost: u64,
    /// The share of calls that fail and are made again, 0% to 90%
    #[arg(long, value_name = "SHARE", default_value = "0%", value_parser = failures)]
    failures: f64,
    /// A lane and its share of the jobs; may be repeated [default: all in the lane default]
    #[arg(long, value_name = "NAME=SHARE", value_parser = lane)]
    lane: Vec<(String, f64)>,
    /// The path of the calls: which routes match
    #[arg(long, value_name = "/PATH", default_value = "/")]
    path: String,
    /// The HTTP method of the calls: which routes match
    #[arg(long, short = 'X', default_value = "GET")]
    method: String,
    /// Where random numbers begin; the same seed gives the same plan
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// When it begins, such as 2026-11-20T10:00:00Z [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    start: Option<i64>,
}

/// Plans and prints.
pub async fn run(args: Args, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let config = Config::load_without_secrets(globals.config.as_deref())
        .map_err(|e| Failure::usage(format!("the configuration is not valid:\n{e}")))?;
    let providers = chosen(&config, args.provider.as_deref())?;
    let work = work(&args)?;
    let mut plans = Vec::new();
    for provider in providers {
        let planned = plan(provider, &work).map_err(|e| refused(provider, &e))?;
        plans.push(planned);
    }
    if out.is_json() {
        out.json(&json!({ "plans": plans }))?;
    } else {
        let texts: Vec<String> = plans.iter().map(plan_text::text).collect();
        out.line(texts.join("\n\n"))?;
    }
    Ok(Exit::Done)
}

fn chosen<'a>(config: &'a Config, name: Option<&str>) -> Result<Vec<&'a Provider>, Failure> {
    let known = || config.providers.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
    if config.providers.is_empty() {
        let place = config.path.as_ref().map_or_else(
            || "there is no paceline.toml here: name one with --config".to_owned(),
            |path| format!("{} has no [[provider]]", path.display()),
        );
        return Err(Failure::usage(format!("no provider is configured: {place}")));
    }
    match name {
        None => Ok(config.providers.iter().collect()),
        Some(name) => match config.provider(name) {
            Some(provider) => Ok(vec![provider]),
            None => Err(Failure::usage(format!("there is no provider {name:?}; configured: {}", known()))),
        },
    }
}

fn refused(provider: &Provider, error: &PlanError) -> Failure {
    Failure::usage(format!("provider {}: {error}", provider.name))
}

fn work(args: &Args) -> Result<Work, Failure> {
    let amount = match (args.jobs, args.rate, args.span) {
        (Some(jobs), _, _) => Amount::Jobs(jobs),
        (None, Some(per_second), Some(span)) => Amount::Arrivals { per_second, span },
        _ => return Err(Failure::usage("how much is to be done? --jobs 100000, or --rate 50/s --for 1h")),
    };
    for (n, (name, _)) in args.lane.iter().enumerate() {
        if args.lane[..n].iter().any(|(other, _)| other == name) {
            return Err(Failure::usage(format!("--lane {name} is given twice")));
        }
    }
    let start_ms = args.start.unwrap_or_else(|| SystemClock::new().wall_ms());
    let (latency, cost, failures, seed) = (args.latency, args.cost, args.failures, args.seed);
    let (lanes, method, path) = (args.lane.clone(), args.method.clone(), args.path.clone());
    Ok(Work { amount, latency, cost, failures, lanes, method, path, seed, start_ms })
}

fn jobs(text: &str) -> Result<u64, String> {
    let number = text.replace('_', "").parse::<u64>().ok().filter(|n| (1..=JOBS_MAX).contains(n));
    number.ok_or_else(|| format!("expected a number of jobs such as 100000 or 100_000, at most {JOBS_MAX}"))
}

fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("expected a rate such as 50/s, 3000/m, 100000/h or 1000000/d, at most {RATE_MAX}/s");
    let (number, unit) = text.split_once('/').unwrap_or((text, ""));
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.replace('_', "").parse().map_err(|_| wrong())?;
    let per_second = number / seconds;
    if per_second > 0.0 && per_second <= RATE_MAX { Ok(per_second) } else { Err(wrong()) }
}

fn span(text: &str) -> Result<Duration, String> {
    let span = text.parse::<HumanDuration>()?.0;
    let fits = !span.is_zero() && span <= SPAN_MAX;
    fits.then_some(span).ok_or_else(|| format!("expected more than 0s and at most {}", HumanDuration(SPAN_MAX)))
}

/// A duration, or median and 99th percentile.
pub(super) fn latency(text: &str) -> Result<Lognormal, String> {
    let wrong =
        || "expected a duration such as 200ms, or median and 99th percentile such as 120ms,900ms; above 0".to_owned();
    let parts: Vec<Duration> = text
        .split(',')
        .map(|part| part.trim().parse::<HumanDuration>().map(|d| d.0))
        .collect::<Result<_, _>>()
        .map_err(|_| wrong())?;
    let latency = match parts[..] {
        [always] => Lognormal { median: always, p99: always, max: None },
        [median, p99] => Lognormal { median, p99, max: None },
        _ => return Err(wrong()),
    };
    latency.check().map(|()| latency).map_err(|_| wrong())
}

fn share(text: &str) -> Option<f64> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    number.trim().parse::<f64>().ok().map(|number| number / unit).filter(|share| share.is_finite() && *share >= 0.0)
}

fn failures(text: &str) -> Result<f64, String> {
    share(text).filter(|share| *share <= 0.9).ok_or_else(|| "expected a share such as 1%, at most 90%".to_owned())
}

fn lane(text: &str) -> Result<(String, f64), String> {
    let wrong = || "expected a lane and its share, such as high=20%".to_owned();
    let (name, part) = text.split_once('=').ok_or_else(wrong)?;
    let part = share(part).filter(|share| *share > 0.0).ok_or_else(wrong)?;
    Ok((name.to_owned(), part))
}

fn time(text: &str) -> Result<i64, String> {
    parse_rfc3339(text).map_err(|_| "expected a time such as 2026-11-20T10:00:00Z".to_owned())
}
