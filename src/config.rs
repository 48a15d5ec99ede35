//! The configuration: `paceline.toml`, the environment, and what they mean together.
//!
//! Loading checks everything that can be known without calling anybody, and reports all that is
//! wrong at once, each with its place.

mod file;
mod limits;
mod overrides;
mod policy;
mod provider;
mod schedules;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

use crate::job::{AddedKeys, Catalog};
use crate::schedule::Schedule;
use crate::secrets::{Secret, SecretError, SecretSource};

pub use limits::{Quota, QuotaPlace};
pub use policy::Policy;
pub use provider::{Auth, Provider, Route, is_sendable};

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML, or has a key that does not exist or a value of the wrong kind.
    #[error("{path}: {message}")]
    Syntax {
        /// Its path.
        path: PathBuf,
        /// With line and column.
        message: String,
    },
    /// An environment variable that does not fit.
    #[error("{name}: {message}")]
    Override {
        /// The variable.
        name: String,
        /// What was expected.
        message: String,
    },
    /// It is well-formed, and says something that cannot be.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// For example `provider "geocoder": key_limits[0].per`.
    pub place: String,
    /// What was expected.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Collects what is wrong, so that all of it is reported at once.
#[derive(Debug, Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, place: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { place: place.into(), message: message.into() });
    }

    fn take<T, E: ToString>(&mut self, place: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(place, e.to_string())).ok()
    }
}

/// Where jobs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueConfig {
    /// The store is the queue.
    Embedded,
    /// RabbitMQ; the URL holds a password.
    Amqp(Secret),
}

/// `[store]`
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `sqlite://…` or `postgres://…`; the latter may hold a password.
    pub url: Secret,
    /// How long succeeded, expired and cancelled jobs are kept.
    pub keep_succeeded: Duration,
    /// How long dead letters are kept.
    pub keep_dead: Duration,
}

/// What a bearer token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Enqueue and cancel jobs.
    Enqueue,
    /// Look at jobs, results, dead letters, metrics.
    Read,
    /// Replay and purge dead letters.
    Replay,
    /// Manage provider keys.
    Keys,
    /// Everything.
    Admin,
}

impl Scope {
    const ALL: [(&str, Self); 5] = [
        ("enqueue", Self::Enqueue),
        ("read", Self::Read),
        ("replay", Self::Replay),
        ("keys", Self::Keys),
        ("admin", Self::Admin),
    ];

    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, s)| *s == self).map_or("", |(name, _)| name)
    }
}

/// A bearer token of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// For logs.
    pub name: String,
    /// What the client sends.
    pub secret: Secret,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The only tenant it may see.
    pub tenant: Option<String>,
}

/// `[api]`
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// Without any, only loopback clients are served.
    pub tokens: Vec<Token>,
    /// Largest envelope of a job, in bytes.
    pub envelope_bytes_max: usize,
    /// How clients reach this API; put before `result_url` in webhooks.
    pub public_url: Option<String>,
}

/// `[metrics]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Where a process without the role `api` answers `/metrics`, `/healthz` and `/readyz`.
    pub listen: SocketAddr,
    /// Nobody asked for this address: a process goes on without it where it is taken.
    pub is_default: bool,
}

/// `[webhooks]`
#[derive(Debug, Clone)]
pub struct WebhooksConfig {
    /// `whsec_…`; without it bare callback URLs are refused.
    pub secret: Option<Secret>,
    /// Plain `http` endpoints are allowed.
    pub allow_http: bool,
    /// Networks that are allowed although they are private.
    pub allow_networks: Vec<IpNet>,
    /// Of one delivery attempt.
    pub timeout: Duration,
    /// Waits after the first attempt, the second, and so on.
    pub schedule: Vec<Duration>,
}

/// Everything.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read from, if it was a file.
    pub path: Option<PathBuf>,
    /// `[store]`
    pub store: StoreConfig,
    /// `[queue]`
    pub queue: QueueConfig,
    /// `queue.events`: completions are published to RabbitMQ, where there is one.
    pub publishes_events: bool,
    /// `[api]`
    pub api: ApiConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
    /// `[webhooks]`
    pub webhooks: WebhooksConfig,
    /// `[[provider]]`, in the order of the file.
    pub providers: Vec<Provider>,
    /// `[[schedules]]`
    pub schedules: Vec<Schedule>,
}

impl Config {
    /// Reads the file (or `./paceline.toml` where it is there and none is named) and the
    /// environment of the process.
    ///
    /// # Errors
    /// [`ConfigError`] names every place that is wrong.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with(path, Secrets::Read)
    }

    /// The same without reading any secret: for looking ahead on a machine that has none. What is
    /// loaded so cannot be served with.
    ///
    /// # Errors
    /// [`ConfigError`] names every place that is wrong.
    pub fn load_without_secrets(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_with(path, Secrets::LeftOut)
    }

    fn load_with(path: Option<&Path>, secrets: Secrets) -> Result<Self, ConfigError> {
        let standard = Path::new("paceline.toml");
        let path = path.map(Path::to_path_buf).or_else(|| standard.exists().then(|| standard.to_path_buf()));
        let text = match &path {
            None => String::new(),
            Some(path) => {
                std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?
            }
        };
        let env: Vec<(String, String)> =
            std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?))).collect();
        Self::parse_with(&text, path, &env, secrets)
    }

    /// Reads a text with a given environment.
    ///
    /// # Errors
    /// [`ConfigError`] names every place that is wrong.
    pub fn parse(text: &str, path: Option<PathBuf>, env: &[(String, String)]) -> Result<Self, ConfigError> {
        Self::parse_with(text, path, env, Secrets::Read)
    }

    fn parse_with(
        text: &str,
        path: Option<PathBuf>,
        env: &[(String, String)],
        secrets: Secrets,
    ) -> Result<Self, ConfigError> {
        let shown = path.clone().unwrap_or_else(|| PathBuf::from("the built-in configuration"));
        let syntax = |e: toml::de::Error| ConfigError::Syntax { path: shown.clone(), message: e.to_string() };
        // Read once as it stands: only this reading knows lines and columns.
        let as_written: file::File = toml::from_str(text).map_err(syntax)?;
        let mut table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let used = overrides::apply(&mut table, env)?;
        if secrets == Secrets::LeftOut {
            leave_out_secrets(&mut table);
        }
        let file = if used.is_empty() && secrets == Secrets::Read {
            as_written
        } else {
            table.try_into().map_err(|e: toml::de::Error| ConfigError::Override {
                name: used.join(", "),
                message: e.message().to_owned(),
            })?
        };
        let lookup = |name: &str| match secrets {
            Secrets::Read => env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()),
            Secrets::LeftOut => Some(NO_SECRET.to_owned()),
        };
        let mut problems = Problems::default();
        let config = Self::build(file, path, &lookup, &mut problems);
        match config {
            Some(config) if problems.0.is_empty() => Ok(config),
            _ => Err(ConfigError::Invalid(problems.0)),
        }
    }

    fn build(file: file::File, path: Option<PathBuf>, env: &Lookup<'_>, problems: &mut Problems) -> Option<Self> {
        let store = store(file.store, env, problems);
        let publishes_events = file.queue.events.unwrap_or(true);
        let queue = queue(file.queue, env, problems);
        let api = api(file.api, env, problems);
        let has_tokens = api.as_ref().is_some_and(|api| !api.tokens.is_empty());
        let metrics = metrics(file.metrics, has_tokens, problems);
        let webhooks = webhooks(file.webhooks, env, problems);
        let mut providers: Vec<Provider> = Vec::new();
        for raw in file.provider {
            if providers.iter().any(|p| p.name == raw.name) {
                problems.add(
                    format!("provider {:?}", raw.name),
                    "there are two providers of this name: give one of them another name",
                );
                continue;
            }
            providers.extend(provider::build(raw, env, problems));
        }
        let (store, queue, api) = (store?, queue?, api?);
        let (metrics, webhooks, schedules) = (metrics?, webhooks?, Vec::new());
        let mut config = Self { path, store, queue, publishes_events, api, metrics, webhooks, providers, schedules };
        config.schedules = schedules::build(&file.schedules, &config.catalog(), problems);
        Some(config)
    }

    /// What jobs are checked against.
    pub fn catalog(&self) -> Catalog {
        Catalog {
            providers: self.providers.iter().map(|p| (p.name.clone(), p.rules())).collect(),
            allow_http: self.webhooks.allow_http,
            callbacks: self.webhooks.secret.is_some(),
            endpoints: self.webhooks.secret.is_some(),
            added: AddedKeys::default(),
        }
    }

    /// The provider of that name.
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.iter().find(|p| p.name == name)
    }
}

/// Whether secrets are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Read,
    /// Something of the right form stands in for each.
    LeftOut,
}

/// Stands in for every secret that is left out: valid as a key, a token and a signing secret.
const NO_SECRET: &str = "whsec_bm8gc2VjcmV0LCBub3RoaW5nIGlzIHNlbnQ=";

/// Lets every secret that is named as it should be come from where none has to be.
fn leave_out_secrets(table: &mut toml::Table) {
    // A URL that stands somewhere else is left out whole: the usual one is in its place.
    table
        .retain(|name, value| name != "url" || value.as_str().is_none_or(|text| text.parse::<SecretSource>().is_err()));
    for (name, value) in table.iter_mut() {
        match value {
            toml::Value::String(text) if name == "secret" && text.parse::<SecretSource>().is_ok() => {
                *text = "env:LEFT_OUT".to_owned();
            }
            toml::Value::Table(inner) => leave_out_secrets(inner),
            toml::Value::Array(items) => {
                items.iter_mut().filter_map(toml::Value::as_table_mut).for_each(leave_out_secrets);
            }
            _ => {}
        }
    }
}

/// Looks an environment variable up.
type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

fn secret(text: &str, env: &Lookup<'_>) -> Result<Secret, SecretError> {
    text.parse::<SecretSource>()?.resolve(&|name| env(name))
}

/// A URL that may hold a password: as it is written, or from where a secret comes.
fn url(place: &str, raw: Option<String>, usual: &str, env: &Lookup<'_>, problems: &mut Problems) -> Option<Secret> {
    let Some(text) = raw else { return Some(Secret::new(usual.to_owned())) };
    if text.starts_with("env:") || text.starts_with("file:") {
        return problems.take(place, secret(&text, env));
    }
    Some(Secret::new(text))
}

fn store(raw: file::Store, env: &Lookup<'_>, problems: &mut Problems) -> Option<StoreConfig> {
    let day = Duration::from_secs(86_400);
    let url = url("store.url", raw.url, "sqlite://paceline.db", env, problems)?;
    let known = ["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| url.expose().starts_with(scheme));
    if !known {
        problems.add(
            "store.url",
            "expected sqlite://path or postgres://…, or \"env:NAME\" or \"file:/path\" that holds it",
        );
        return None;
    }
    Some(StoreConfig {
        url,
        keep_succeeded: raw.retention.succeeded.map_or(7 * day, |d| d.0),
        keep_dead: raw.retention.dead.map_or(90 * day, |d| d.0),
    })
}

fn queue(raw: file::Queue, env: &Lookup<'_>, problems: &mut Problems) -> Option<QueueConfig> {
    let url = url("queue.url", raw.url, "embedded:", env, problems)?;
    match url.expose() {
        "embedded:" => Some(QueueConfig::Embedded),
        text if text.starts_with("amqp://") || text.starts_with("amqps://") => Some(QueueConfig::Amqp(url)),
        _ => {
            let wanted = "expected \"embedded:\" or amqp://user:password@host:5672/%2f, or \"env:NAME\" or \"file:/path\" that holds it";
            problems.add("queue.url", wanted);
            None
        }
    }
}

fn api(raw: file::Api, env: &Lookup<'_>, problems: &mut Problems) -> Option<ApiConfig> {
    let listen = raw.listen.unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let tokens: Vec<Token> = raw.tokens.into_iter().filter_map(|t| token(t, env, problems)).collect();
    let listen = address("api.listen", &listen, !tokens.is_empty(), problems)?;
    let envelope_bytes_max = raw.envelope_bytes_max.unwrap_or(1024 * 1024);
    if !(1024..=16 * 1024 * 1024).contains(&envelope_bytes_max) {
        problems.add("api.envelope_bytes_max", "expected 1024 (1 KiB) to 16777216 (16 MiB)");
    }
    let public_url = raw.public_url.map(|url| url.trim_end_matches('/').to_owned());
    if let Some(url) = &public_url {
        problems.take("api.public_url", url::Url::parse(url));
    }
    Some(ApiConfig { listen, tokens, envelope_bytes_max, public_url })
}

fn metrics(raw: file::Metrics, has_tokens: bool, problems: &mut Problems) -> Option<MetricsConfig> {
    let is_default = raw.listen.is_none();
    let listen = raw.listen.unwrap_or_else(|| "127.0.0.1:9464".to_owned());
    let listen = address("metrics.listen", &listen, has_tokens, problems)?;
    Some(MetricsConfig { listen, is_default })
}

/// An address to listen on: one that others can reach needs tokens.
fn address(place: &str, text: &str, has_tokens: bool, problems: &mut Problems) -> Option<SocketAddr> {
    let Ok(listen) = text.parse::<SocketAddr>() else {
        problems.add(place, format!("expected an address and a port such as 127.0.0.1:8080, found {text:?}"));
        return None;
    };
    if !listen.ip().is_loopback() && !has_tokens {
        problems.add(
            place,
            format!("{listen} can be reached from other machines: configure api.tokens first, or listen on 127.0.0.1"),
        );
    }
    Some(listen)
}

fn token(raw: file::Token, env: &Lookup<'_>, problems: &mut Problems) -> Option<Token> {
    let place = format!("api.tokens {:?}", raw.name);
    let mut scopes = Vec::new();
    for name in &raw.scopes {
        match Scope::ALL.iter().find(|(known, _)| known == name) {
            Some((_, scope)) => scopes.push(*scope),
            None => problems.add(&place, format!("unknown scope {name:?}: enqueue, read, replay, keys, admin")),
        }
    }
    if scopes.is_empty() {
        problems.add(&place, "expected at least one scope");
    }
    let secret = problems.take(&place, secret(&raw.secret, env))?;
    if secret.expose().len() < 16 {
        problems.add(&place, "expected a secret of at least 16 characters");
    }
    Some(Token { name: raw.name, secret, scopes, tenant: raw.tenant })
}

fn webhooks(raw: file::Webhooks, env: &Lookup<'_>, problems: &mut Problems) -> Option<WebhooksConfig> {
    let secret = raw.secret.and_then(|text| problems.take("webhooks.secret", secret(&text, env)));
    if let Some(secret) = &secret
        && !is_signing_secret(secret.expose())
    {
        problems.add(
            "webhooks.secret",
            "expected whsec_ and 24 to 64 bytes in base64, such as whsec_$(openssl rand -base64 32)",
        );
    }
    let allow_networks = raw
        .allow_networks
        .iter()
        .filter_map(|text| {
            let parsed =
                text.parse::<IpNet>().map_err(|_| format!("expected a network such as 127.0.0.0/8, found {text:?}"));
            problems.take("webhooks.allow_networks", parsed)
        })
        .collect();
    let minute = 60;
    let hour = 60 * minute;
    let standard = [5, 5 * minute, 30 * minute, 2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour, 24 * hour];
    let schedule = raw.schedule.map_or_else(
        || standard.into_iter().map(Duration::from_secs).collect(),
        |given| given.into_iter().map(|d| d.0).collect(),
    );
    let timeout = raw.timeout.map_or(Duration::from_secs(15), |d| d.0);
    if timeout.is_zero() {
        problems.add("webhooks.timeout", "expected more than 0s");
    }
    Some(WebhooksConfig { secret, allow_http: raw.allow_http, allow_networks, timeout, schedule })
}

/// `whsec_<base64>` of 24 to 64 bytes: the form of the Standard Webhooks scheme.
fn is_signing_secret(text: &str) -> bool {
    let decoded = text.strip_prefix("whsec_").and_then(|encoded| STANDARD.decode(encoded).ok());
    decoded.is_some_and(|bytes| (24..=64).contains(&bytes.len()))
}

#[cfg(test)]
mod tests;
