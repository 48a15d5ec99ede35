//! `paceline check`: is the configuration valid, and what does it mean?

mod call;
mod masters;

use clap::Args as ClapArgs;
use paceline::config::{Auth, Config, Provider, QueueConfig};
use paceline::duration::HumanDuration;
use paceline::pace::Safety;
use paceline::plan::{Review, Warning, review};
use paceline::sim::Lognormal;
use serde_json::{Value, json};

use super::Globals;
use super::backend::without_password;
use super::failure::{Exit, Failure};
use super::output::Out;
use masters::Masters;

/// Validate the configuration and show what is in effect
///
/// Reads the file, the environment and every secret it names, and tells all that is wrong at once. No provider
/// is called and no secret is shown. Where the store can be reached it says whether the master key
/// (PACELINE_MASTER_KEY) opens what is stored there. Of each limit it says what share of it can be reached and
/// whether it is surely never exceeded; what is valid and risky is told as a warning.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// What answers are assumed to take: a duration, or their median and 99th percentile (120ms,900ms)
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = super::plan::latency)]
    latency: Lognormal,
    /// Fail where there is a warning
    #[arg(long)]
    strict: bool,
    /// Tell which limits and policies hold for this call, such as "POST /v1/search"
    #[arg(long, value_name = "CALL", value_parser = call)]
    call: Option<(String, String)>,
    /// Only of this provider
    #[arg(long, value_name = "NAME", requires = "call")]
    provider: Option<String>,
}

/// A method and a path; GET where there is only a path.
fn call(text: &str) -> Result<(String, String), String> {
    let (method, path) = text.trim().split_once(' ').unwrap_or(("GET", text.trim()));
    let path = path.trim();
    if path.starts_with('/') && !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase()) {
        return Ok((method.to_owned(), path.to_owned()));
    }
    Err("expected a method and a path, such as \"POST /v1/search\"".to_owned())
}

/// Checks.
pub async fn run(args: Args, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let reviews: Vec<Review> = config.providers.iter().map(|provider| review(provider, args.latency)).collect();
    let risky = reviews.iter().any(|review| !review.warnings.is_empty());
    if let Some((method, path)) = &args.call {
        return call::run(&config, &reviews, (method, path), &args, out);
    }
    let masters = masters::look(&config).await?;
    let exit = if args.strict && risky { Exit::Failed } else { Exit::Done };
    let shown = effective(&config, &reviews, &masters);
    if out.is_json() {
        out.json(&shown)?;
    } else {
        print(&config, &reviews, (&shown, &masters), &args, out)?;
    }
    Ok(exit)
}

fn print(
    config: &Config,
    reviews: &[Review],
    (shown, masters): (&Value, &Masters),
    args: &Args,
    out: &Out,
) -> Result<(), Failure> {
    let file =
        config.path.as_ref().map_or("no file, the built-in defaults".to_owned(), |path| path.display().to_string());
    out.line(format!("valid: {file}\n"))?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    out.line(format!("store      {}", text(&shown["store"])))?;
    out.line(format!("queue      {}", text(&shown["queue"])))?;
    out.line(format!("api        {}, {} tokens", text(&shown["api"]["listen"]), config.api.tokens.len()))?;
    for token in &config.api.tokens {
        let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.as_str()).collect();
        let tenant = token.tenant.as_ref().map(|t| format!(", tenant {t}")).unwrap_or_default();
        out.line(format!("  token    {} ({}{tenant})", token.name, scopes.join(", ")))?;
    }
    let signed =
        if config.webhooks.secret.is_some() { "signed" } else { "no secret: callbacks by bare URL are refused" };
    out.line(format!("webhooks   {signed}"))?;
    out.line(format!("vault      {}", masters.line()))?;
    if config.providers.is_empty() {
        out.line("\nno provider is configured: every job will be refused")?;
    }
    for (provider, review) in config.providers.iter().zip(reviews) {
        print_provider(provider, out)?;
        print_limits(review, args.latency, out)?;
    }
    let warnings: Vec<&Warning> = reviews.iter().flat_map(|review| &review.warnings).collect();
    if !warnings.is_empty() {
        out.line(if args.strict { "\nwarnings, which --strict does not let pass:" } else { "\nwarnings:" })?;
    }
    warnings
        .iter()
        .try_for_each(|warning| out.line(format!("  {}\n    {} ({})", warning.place, warning.message, warning.code)))
}

/// What can be reached of each limit, and whether it is surely never exceeded.
fn print_limits(review: &Review, latency: Lognormal, out: &Out) -> Result<(), Failure> {
    if review.expected.is_empty() {
        return out.line("  limits   none: it is probed");
    }
    let answers = HumanDuration(latency.median);
    out.line(format!(
        "  limits   (reached when answers take {answers}; never exceeded: promised, conditional, likely)"
    ))?;
    let mut conditions: Vec<&str> = Vec::new();
    let mut rows: Vec<[String; 4]> = Vec::new();
    for limit in &review.expected {
        let note = limit.condition.as_deref().map(|condition| {
            let known = conditions.iter().position(|known| *known == condition);
            let place = known.unwrap_or_else(|| {
                conditions.push(condition);
                conditions.len() - 1
            });
            format!(" [{}]", place + 1)
        });
        rows.push([
            format!("{}: {}", limit.place, limit.limit),
            limit.of.clone(),
            format!("{:.1} %", limit.utilisation * 100.0),
            format!("{}{}", limit.promise.as_str(), note.unwrap_or_default()),
        ]);
    }
    let widths: Vec<usize> = (0..4).map(|n| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0)).collect();
    for [limit, of, reached, promise] in &rows {
        let (first, second, third) = (widths[0], widths[1], widths[2]);
        out.line(format!("    {limit:<first$}  {of:<second$}  {reached:>third$}  {promise}"))?;
    }
    conditions.iter().enumerate().try_for_each(|(n, condition)| out.line(format!("    [{}] {condition}", n + 1)))
}

fn print_provider(provider: &Provider, out: &Out) -> Result<(), Failure> {
    let pool = &provider.pool;
    out.line(format!("\nprovider   {} at {}", provider.name, provider.base_url))?;
    out.line(format!("  auth     {}", auth(&provider.auth)))?;
    out.line(format!(
        "  timeout  {} to connect, {} until the answer begins, {} in all",
        HumanDuration(provider.policy.connect_timeout()),
        HumanDuration(provider.policy.first_byte_timeout()),
        HumanDuration(provider.policy.timeout)
    ))?;
    let keys: Vec<&str> = pool.keys.iter().map(|key| key.label.as_str()).collect();
    out.line(format!("  keys     {}", keys.join(", ")))?;
    let lanes: Vec<String> = pool.lanes.iter().map(|lane| format!("{} {}", lane.name, lane.weight)).collect();
    out.line(format!("  lanes    {}", lanes.join(", ")))?;
    out.line(format!("  safety   {}, counted within {}", safety(pool.safety), HumanDuration(pool.counted_within)))?;
    let retry = provider.policy.retry;
    out.line(format!(
        "  retry    {} attempts, backoff {} to {}, for {} at most",
        retry.max_attempts,
        HumanDuration(retry.base),
        HumanDuration(retry.cap),
        HumanDuration(retry.max_elapsed)
    ))
}

fn safety(safety: Safety) -> String {
    match safety {
        Safety::Strict => "strict".to_owned(),
        Safety::Balanced => "balanced".to_owned(),
        Safety::Headroom(share) => format!("headroom {:.1} %", share * 100.0),
    }
}

fn auth(auth: &Auth) -> String {
    match auth {
        Auth::Header { name, scheme: Some(scheme) } => format!("header {name}: {scheme} <key>"),
        Auth::Header { name, scheme: None } => format!("header {name}: <key>"),
        Auth::Query(name) => format!("query ?{name}=<key>"),
        Auth::Basic { user } => format!("basic {user}:<key>"),
    }
}

/// What is in effect, without secrets.
fn effective(config: &Config, reviews: &[Review], masters: &Masters) -> Value {
    let queue = match &config.queue {
        QueueConfig::Embedded => "embedded:".to_owned(),
        QueueConfig::Amqp(url) => without_password(url.expose()),
    };
    let tokens: Vec<Value> = config
        .api
        .tokens
        .iter()
        .map(|t| json!({ "name": t.name, "scopes": t.scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>(), "tenant": t.tenant }))
        .collect();
    json!({
        "valid": true,
        "file": config.path,
        "store": without_password(config.store.url.expose()),
        "queue": queue,
        "api": { "listen": config.api.listen.to_string(), "envelope_bytes_max": config.api.envelope_bytes_max, "tokens": tokens },
        "webhooks": { "signed": config.webhooks.secret.is_some(), "allow_http": config.webhooks.allow_http },
        "vault": masters.json(),
        "providers": config.providers.iter().zip(reviews).map(|(p, review)| provider(p, review)).collect::<Vec<_>>(),
        "warnings": reviews.iter().flat_map(|review| &review.warnings).collect::<Vec<_>>(),
    })
}

fn provider(provider: &Provider, review: &Review) -> Value {
    let pool = &provider.pool;
    let limits = |list: &[paceline::pace::LimitSpec]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let millis = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let budgets = pool.budgets.iter().map(|b| json!({ "name": b.name, "limits": limits(&b.limits) }));
    let routes = provider.routes.iter().zip(&pool.routes).map(|(route, spec)| {
        json!({ "method": route.method, "path": route.path, "limits": limits(&spec.limits), "key_limits": limits(&spec.key_limits) })
    });
    json!({
        "name": provider.name,
        "base_url": provider.base_url.as_str(),
        "auth": auth(&provider.auth),
        "timeout_ms": millis(provider.policy.timeout),
        "connect_timeout_ms": millis(provider.policy.connect_timeout()),
        "first_byte_timeout_ms": millis(provider.policy.first_byte_timeout()),
        "keys": pool.keys.iter().map(|key| key.label.as_str()).collect::<Vec<_>>(),
        "lanes": pool.lanes.iter().map(|lane| (lane.name.clone(), json!(lane.weight))).collect::<serde_json::Map<_, _>>(),
        "limits": limits(&pool.limits),
        "key_limits": limits(&pool.key_limits),
        "budgets": budgets.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "max_attempts": provider.policy.retry.max_attempts,
        "expected": review.expected,
    })
}
