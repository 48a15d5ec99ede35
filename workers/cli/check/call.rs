//! `paceline check --call "POST /v1/search"`: what holds for one call.

use paceline::config::Config;
use paceline::duration::HumanDuration;
use paceline::plan::{Explanation, Review, explain};
use serde_json::json;

use super::super::failure::{Exit, Failure};
use super::super::output::Out;
use super::Args;

/// Tells it of every provider, or of the one that is asked for.
pub(super) fn run(
    config: &Config,
    reviews: &[Review],
    (method, path): (&str, &str),
    args: &Args,
    out: &Out,
) -> Result<Exit, Failure> {
    let wanted = |name: &str| args.provider.as_deref().is_none_or(|wanted| wanted == name);
    let providers = config.providers.iter().zip(reviews).filter(|(provider, _)| wanted(&provider.name));
    let explained: Vec<Explanation> =
        providers.map(|(provider, review)| explain(provider, review, method, path)).collect();
    if let Some(name) = args.provider.as_deref().filter(|_| explained.is_empty()) {
        return Err(Failure::usage(format!("there is no provider {name:?} in the configuration")));
    }
    let risky = explained.iter().any(|explanation| !explanation.warnings.is_empty());
    if out.is_json() {
        out.json(&json!({ "calls": explained }))?;
    } else {
        explained.iter().try_for_each(|explanation| print(explanation, out))?;
    }
    Ok(if args.strict && risky { Exit::Failed } else { Exit::Done })
}

fn print(call: &Explanation, out: &Out) -> Result<(), Failure> {
    out.line(format!("{} {} of {}", call.method, call.path, call.provider))?;
    let none = || "none".to_owned();
    let routes = if call.routes.is_empty() { none() } else { call.routes.join(", ") };
    out.line(format!("  routes     {routes}"))?;
    out.line(format!("  policies   of {}", call.policies_of))?;
    let timeout = HumanDuration(std::time::Duration::from_millis(call.timeout_ms));
    out.line(format!("  timeout    {timeout}"))?;
    out.line(format!("  retry      {} attempts, backoff {}", call.max_attempts, call.backoff))?;
    out.line(format!("  idempotency key in {}", call.idempotency_header))?;
    out.line(format!("  success    {}", call.success.as_deref().unwrap_or("2xx, 304")))?;
    if call.cost_from_answer {
        out.line("  cost       corrected by the answer")?;
    }
    for rule in &call.outcomes {
        out.line(format!("  outcome    {rule}"))?;
    }
    if call.limits.is_empty() {
        out.line("  limits     none: it is probed")?;
    }
    for limit in &call.limits {
        out.line(format!("  limit      {} of {} ({})", limit.limit, limit.of, limit.place))?;
    }
    call.warnings
        .iter()
        .try_for_each(|warning| out.line(format!("  warning    {} ({})", warning.message, warning.code)))
}
