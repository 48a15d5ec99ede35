//! `paceline check`: is the configuration valid, and what does it mean?

use clap::Args as ClapArgs;
use paceline::config::{Auth, Config, Provider, QueueConfig};
use paceline::duration::HumanDuration;
use serde_json::{Value, json};

use super::Globals;
use super::backend::without_password;
use super::failure::{Exit, Failure};
use super::output::Out;

/// Validate the configuration and show what is in effect
///
/// Reads the file, the environment and every secret it names, and tells all that is wrong at once.
/// Nothing is called and no secret is shown.
#[derive(Debug, ClapArgs)]
pub struct Args {}

/// Checks.
pub async fn run(_: Args, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let shown = effective(&config);
    if out.is_json() {
        out.json(&shown)?;
        return Ok(Exit::Done);
    }
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
    if config.providers.is_empty() {
        out.line("\nno provider is configured: every job will be refused")?;
    }
    config.providers.iter().try_for_each(|provider| print_provider(provider, out))?;
    Ok(Exit::Done)
}

fn print_provider(provider: &Provider, out: &Out) -> Result<(), Failure> {
    let pool = &provider.pool;
    out.line(format!("\nprovider   {} at {}", provider.name, provider.base_url))?;
    out.line(format!("  auth     {}", auth(&provider.auth)))?;
    let keys: Vec<&str> = pool.keys.iter().map(|key| key.label.as_str()).collect();
    out.line(format!("  keys     {}", keys.join(", ")))?;
    let lanes: Vec<String> = pool.lanes.iter().map(|lane| format!("{} {}", lane.name, lane.weight)).collect();
    out.line(format!("  lanes    {}", lanes.join(", ")))?;
    out.line(format!("  safety   {:?}, counted within {}", pool.safety, HumanDuration(pool.counted_within)))?;
    for limit in &pool.limits {
        out.line(format!("  limit    {limit}, of the provider"))?;
    }
    for limit in &pool.key_limits {
        out.line(format!("  limit    {limit}, of each key"))?;
    }
    for budget in &pool.budgets {
        for limit in &budget.limits {
            out.line(format!("  limit    {limit}, of the budget {}", budget.name))?;
        }
    }
    for (route, spec) in provider.routes.iter().zip(&pool.routes) {
        let matched = format!("{} {}", route.method.as_deref().unwrap_or("any method"), route.path);
        for limit in &spec.limits {
            out.line(format!("  limit    {limit}, of {matched}"))?;
        }
        for limit in &spec.key_limits {
            out.line(format!("  limit    {limit}, of {matched}, of each key"))?;
        }
    }
    let retry = provider.retry;
    out.line(format!(
        "  retry    {} attempts, backoff {} to {}, for {} at most",
        retry.max_attempts,
        HumanDuration(retry.base),
        HumanDuration(retry.cap),
        HumanDuration(retry.max_elapsed)
    ))
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
fn effective(config: &Config) -> Value {
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
        "providers": config.providers.iter().map(provider).collect::<Vec<_>>(),
    })
}

fn provider(provider: &Provider) -> Value {
    let pool = &provider.pool;
    let limits = |list: &[paceline::pace::LimitSpec]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let budgets = pool.budgets.iter().map(|b| json!({ "name": b.name, "limits": limits(&b.limits) }));
    let routes = provider.routes.iter().zip(&pool.routes).map(|(route, spec)| {
        json!({ "method": route.method, "path": route.path, "limits": limits(&spec.limits), "key_limits": limits(&spec.key_limits) })
    });
    json!({
        "name": provider.name,
        "base_url": provider.base_url.as_str(),
        "auth": auth(&provider.auth),
        "timeout_ms": u64::try_from(provider.timeout.as_millis()).unwrap_or(u64::MAX),
        "keys": pool.keys.iter().map(|key| key.label.as_str()).collect::<Vec<_>>(),
        "lanes": pool.lanes.iter().map(|lane| (lane.name.clone(), json!(lane.weight))).collect::<serde_json::Map<_, _>>(),
        "limits": limits(&pool.limits),
        "key_limits": limits(&pool.key_limits),
        "budgets": budgets.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "max_attempts": provider.retry.max_attempts,
    })
}
