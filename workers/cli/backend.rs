//! How a command reaches the system: a server's API, or the store itself. Both answer alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use paceline::api::{Control, Desk, HookRules, Hooks, OPERATOR, Submitted, Tenancy, learn_keys};
use paceline::clock::{Clock, SystemClock};
use paceline::config::Config;
use paceline::job::{is_job_id, is_name};
use paceline::store::{Origin, Store, StoreOptions};
use paceline::vault::MasterKeys;
use serde::Serialize;
use serde_json::Value;
use url::form_urlencoded::Serializer;

use super::Globals;
use super::failure::{Exit, Failure};
use super::http::HttpApi;
use crate::system::publishes;

/// Whether a store that is not there yet may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is made.
    Create,
    /// There is nothing to look at.
    Fail,
}

/// A running system, one way or the other.
pub enum Backend {
    /// A server.
    Http(HttpApi),
    /// The store, opened by this process.
    Store {
        /// What can be asked of it.
        desk: Desk,
        /// What can be ordered of it.
        control: Control,
        /// Its endpoints and deliveries.
        hooks: Hooks,
        /// To be closed at the end.
        store: Store,
        /// Its URL without a password.
        place: String,
    },
}

impl Backend {
    /// By `--url`; else the API that the configuration names, if it answers; else its store.
    pub async fn open(globals: &Globals, missing: Missing) -> Result<Self, Failure> {
        let token = globals.token();
        if let Some(url) = &globals.url {
            return HttpApi::new(url, token).map(Self::Http);
        }
        let config = globals.load().map_err(|failure| Failure {
            message: format!(
                "{}\n(with --url or PACELINE_URL a server is asked, and needs none here)",
                failure.message
            ),
            ..failure
        })?;
        let api = HttpApi::new(&format!("http://{}", reachable(config.api.listen)), token)?;
        if api.is_there().await {
            tracing::info!(api = api.place(), "using the API of a running server");
            return Ok(Self::Http(api));
        }
        tracing::info!(api = api.place(), "no server answers: opening the store");
        let (store, place) = open_store(&config, missing).await.map_err(|failure| Failure {
            message: format!("no server answers at {}, and {}", api.place(), failure.message),
            ..failure
        })?;
        let clock = Arc::new(SystemClock::new());
        let catalog = Arc::new(config.catalog());
        learn_keys(&store, &catalog.added).await?;
        let masters = Arc::new(MasterKeys::of_process().map_err(|error| Failure::usage(error.to_string()))?);
        if publishes(&config) {
            store.publish_completions();
        }
        let rules = HookRules::of(&config.webhooks, Arc::clone(&masters))
            .map_err(|e| Failure::usage(format!("webhooks.secret: {e}")))?;
        let control = Control::new(store.clone(), Arc::clone(&catalog), Arc::clone(&clock) as Arc<dyn Clock>)
            .with_masters(masters, rules.keyring.clone());
        let hooks = Hooks::new(store.clone(), Arc::clone(&clock) as Arc<dyn Clock>, rules);
        let desk = Desk::new(store.clone(), catalog, clock, config.api.envelope_bytes_max);
        Ok(Self::Store { desk, control, hooks, store, place })
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        match self {
            Self::Http(api) => api.place(),
            Self::Store { place, .. } => place.clone(),
        }
    }

    /// Lets go of it.
    pub async fn close(self) {
        if let Self::Store { store, .. } = self {
            store.close().await;
        }
    }

    /// `POST /v1/jobs`
    pub async fn submit(&self, body: Vec<u8>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "jobs"], "", Some(body)).await?),
            Self::Store { desk, .. } => {
                match desk.submit(&Tenancy::all(), Bytes::from(body), Origin::default()).await? {
                    Submitted::One(job) => value(&job),
                    Submitted::Many(items) => value(&items),
                }
            }
        }
    }

    /// `GET /v1/jobs`
    pub async fn jobs(&self, query: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "jobs"], query, None).await?),
            Self::Store { desk, .. } => value(&desk.jobs(Tenancy::all(), query).await?),
        }
    }

    /// `GET /v1/jobs/{id}`
    pub async fn job(&self, of: Named<'_>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "jobs", of.id], &of.query(), None).await?),
            Self::Store { desk, .. } => value(&desk.job(&of.tenancy()?, of.id).await?),
        }
    }

    /// `GET /v1/jobs/{id}/result`
    pub async fn result(&self, of: Named<'_>) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Http(api) => api.call(Method::GET, &["v1", "jobs", of.id, "result"], &of.query(), None).await,
            Self::Store { desk, .. } => Ok(desk.result(&of.tenancy()?, of.id).await?.body.to_vec()),
        }
    }

    /// `DELETE /v1/jobs/{id}`
    pub async fn cancel(&self, of: Named<'_>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::DELETE, &["v1", "jobs", of.id], &of.query(), None).await?),
            Self::Store { desk, .. } => value(&desk.cancel(&of.tenancy()?, of.id).await?),
        }
    }

    /// `GET /v1/dead-letters`
    pub async fn dead_letters(&self, query: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "dead-letters"], query, None).await?),
            Self::Store { desk, .. } => value(&desk.dead_letters(Tenancy::all(), query).await?),
        }
    }

    /// `GET /v1/dead-letters/{id}`
    pub async fn dead_letter(&self, of: Named<'_>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "dead-letters", of.id], &of.query(), None).await?),
            Self::Store { desk, .. } => value(&desk.dead_letter(&of.tenancy()?, of.id).await?),
        }
    }

    /// `POST /v1/dead-letters/{id}/replay`
    pub async fn replay(&self, of: Named<'_>, body: &[u8]) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => {
                let path = ["v1", "dead-letters", of.id, "replay"];
                json(api.call(Method::POST, &path, &of.query(), Some(body.to_vec())).await?)
            }
            Self::Store { desk, .. } => value(&desk.replay(&of.tenancy()?, of.id, body).await?),
        }
    }

    /// Whether a server answers, which goes on with what is asked for.
    pub fn is_server(&self) -> bool {
        matches!(self, Self::Http(_))
    }

    /// `POST /v1/replays`
    pub async fn begin_replay(&self, body: Vec<u8>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "replays"], "", Some(body)).await?),
            Self::Store { desk, .. } => value(&desk.begin_replay(Tenancy::all(), &body).await?),
        }
    }

    /// `GET /v1/replays`
    pub async fn replays(&self, query: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "replays"], query, None).await?),
            Self::Store { desk, .. } => value(&desk.replays(&Tenancy::all(), query).await?),
        }
    }

    /// `GET /v1/replays/{id}`
    pub async fn replay_by_filter(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "replays", id], "", None).await?),
            Self::Store { desk, .. } => value(&desk.replay_by_filter(&Tenancy::all(), id).await?),
        }
    }

    /// `DELETE /v1/replays/{id}`
    pub async fn stop_replay(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::DELETE, &["v1", "replays", id], "", None).await?),
            Self::Store { desk, .. } => value(&desk.stop_replay(&Tenancy::all(), id).await?),
        }
    }

    /// `GET /v1/providers`
    pub async fn providers(&self) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "providers"], "", None).await?),
            Self::Store { control, .. } => value(&control.providers().await?),
        }
    }

    /// `GET /v1/providers/{name}`
    pub async fn provider(&self, name: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "providers", name], "", None).await?),
            Self::Store { control, .. } => value(&control.provider(name).await?),
        }
    }

    /// `POST /v1/providers/{name}/pause` and `/resume`
    pub async fn pause_provider(&self, name: &str, paused: bool) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => order(api, &[name, if paused { "pause" } else { "resume" }]).await,
            Self::Store { control, .. } => value(&control.pause(name, paused, OPERATOR).await?),
        }
    }

    /// `POST /v1/providers/{name}/keys/{label}/disable` and `/enable`
    pub async fn disable_key(&self, name: &str, label: &str, disabled: bool) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => order(api, &[name, "keys", label, if disabled { "disable" } else { "enable" }]).await,
            Self::Store { control, .. } => value(&control.disable_key(name, label, disabled, OPERATOR).await?),
        }
    }

    /// `GET /v1/providers/{name}/keys`
    pub async fn keys(&self, name: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "providers", name, "keys"], "", None).await?),
            Self::Store { control, .. } => value(&control.keys(name).await?),
        }
    }

    /// `POST /v1/providers/{name}/keys`
    pub async fn add_key(&self, name: &str, body: Vec<u8>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "providers", name, "keys"], "", Some(body)).await?),
            Self::Store { control, .. } => value(&control.add_key(name, &body, OPERATOR).await?),
        }
    }

    /// `POST /v1/providers/{name}/keys/{label}/rotate`
    pub async fn rotate_key(&self, name: &str, label: &str, body: Vec<u8>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => {
                let path = ["v1", "providers", name, "keys", label, "rotate"];
                json(api.call(Method::POST, &path, "", Some(body)).await?)
            }
            Self::Store { control, .. } => value(&control.rotate_key(name, label, &body, OPERATOR).await?),
        }
    }

    /// `DELETE /v1/providers/{name}/keys/{label}`
    pub async fn remove_key(&self, name: &str, label: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => {
                json(api.call(Method::DELETE, &["v1", "providers", name, "keys", label], "", None).await?)
            }
            Self::Store { control, .. } => value(&control.remove_key(name, label, OPERATOR).await?),
        }
    }

    /// `POST /v1/vault/rekey`
    pub async fn rekey(&self) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "vault", "rekey"], "", None).await?),
            Self::Store { control, .. } => value(&control.rekey(OPERATOR).await?),
        }
    }

    /// `GET /v1/audit`
    pub async fn acts(&self, query: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "audit"], query, None).await?),
            Self::Store { control, .. } => value(&control.acts(query).await?),
        }
    }

    /// `POST /v1/providers/{name}/budgets/{budget}/resume`
    pub async fn resume_budget(&self, name: &str, budget: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => order(api, &[name, "budgets", budget, "resume"]).await,
            Self::Store { control, .. } => value(&control.resume_budget(name, budget, OPERATOR).await?),
        }
    }

    /// `POST /v1/endpoints`
    pub async fn register_endpoint(&self, body: Vec<u8>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "endpoints"], "", Some(body)).await?),
            Self::Store { hooks, .. } => value(&hooks.register(Tenancy::all(), &body).await?),
        }
    }

    /// `GET /v1/endpoints`
    pub async fn endpoints(&self, query: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "endpoints"], query, None).await?),
            Self::Store { hooks, .. } => value(&hooks.endpoints(Tenancy::all(), query).await?),
        }
    }

    /// `GET /v1/endpoints/{id}`
    pub async fn endpoint(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "endpoints", id], "", None).await?),
            Self::Store { hooks, .. } => value(&hooks.endpoint(&Tenancy::all(), id).await?),
        }
    }

    /// `POST /v1/endpoints/{id}/disable` and `/enable`
    pub async fn enable_endpoint(&self, id: &str, enabled: bool) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => {
                let path = ["v1", "endpoints", id, if enabled { "enable" } else { "disable" }];
                json(api.call(Method::POST, &path, "", None).await?)
            }
            Self::Store { hooks, .. } => value(&hooks.enable(&Tenancy::all(), id, enabled).await?),
        }
    }

    /// `DELETE /v1/endpoints/{id}`
    pub async fn delete_endpoint(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::DELETE, &["v1", "endpoints", id], "", None).await?),
            Self::Store { hooks, .. } => value(&hooks.delete(&Tenancy::all(), id).await?),
        }
    }

    /// `POST /v1/endpoints/{id}/rotate`
    pub async fn rotate_endpoint(&self, id: &str, body: Vec<u8>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "endpoints", id, "rotate"], "", Some(body)).await?),
            Self::Store { hooks, .. } => value(&hooks.rotate(&Tenancy::all(), id, &body).await?),
        }
    }

    /// `POST /v1/endpoints/{id}/test`
    pub async fn test_endpoint(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "endpoints", id, "test"], "", None).await?),
            Self::Store { hooks, .. } => value(&hooks.test(&Tenancy::all(), id).await?),
        }
    }

    /// `POST /v1/endpoints/{id}/resend`
    pub async fn resend_endpoint(&self, id: &str, body: Vec<u8>) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "endpoints", id, "resend"], "", Some(body)).await?),
            Self::Store { hooks, .. } => value(&hooks.resend_since(&Tenancy::all(), id, &body).await?),
        }
    }

    /// `GET /v1/deliveries`
    pub async fn deliveries(&self, query: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "deliveries"], query, None).await?),
            Self::Store { hooks, .. } => value(&hooks.deliveries(Tenancy::all(), query).await?),
        }
    }

    /// `GET /v1/deliveries/{id}`
    pub async fn delivery(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::GET, &["v1", "deliveries", id], "", None).await?),
            Self::Store { hooks, .. } => value(&hooks.delivery(&Tenancy::all(), id).await?),
        }
    }

    /// `POST /v1/deliveries/{id}/resend`
    pub async fn resend_delivery(&self, id: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::POST, &["v1", "deliveries", id, "resend"], "", None).await?),
            Self::Store { hooks, .. } => value(&hooks.resend(&Tenancy::all(), id).await?),
        }
    }

    /// `DELETE /v1/dead-letters`
    pub async fn purge(&self, query: &str) -> Result<Value, Failure> {
        match self {
            Self::Http(api) => json(api.call(Method::DELETE, &["v1", "dead-letters"], query, None).await?),
            Self::Store { desk, .. } => value(&desk.purge(Tenancy::all(), query).await?),
        }
    }
}

/// An id, and the tenant where the same id exists for several.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Of the form that [`job_id`] lets through.
    pub id: &'a str,
    /// Of `--tenant`.
    pub tenant: Option<&'a str>,
}

impl Named<'_> {
    fn query(self) -> String {
        query(&[("tenant", self.tenant.map(str::to_owned))])
    }

    fn tenancy(self) -> Result<Tenancy, Failure> {
        Ok(Tenancy::all().narrow(self.tenant.map(str::to_owned))?)
    }
}

/// An id on the command line. `.` and `..` are ids, and no client can put them into a path.
pub fn job_id(text: &str) -> Result<String, String> {
    if is_job_id(text) && !matches!(text, "." | "..") {
        Ok(text.to_owned())
    } else {
        Err("expected an id: 1 to 128 of A-Z a-z 0-9 . _ : -".to_owned())
    }
}

/// The name of a provider or a budget, or the label of a key, on the command line.
pub fn name(text: &str) -> Result<String, String> {
    if is_name(text) { Ok(text.to_owned()) } else { Err("expected a name: 1 to 64 of a-z 0-9 _ -".to_owned()) }
}

/// An order about a provider or a part of it: all that it says is in its path.
async fn order(api: &HttpApi, path: &[&str]) -> Result<Value, Failure> {
    let path: Vec<&str> = ["v1", "providers"].iter().chain(path).copied().collect();
    json(api.call(Method::POST, &path, "", None).await?)
}

/// A query of the parameters that are given.
pub fn query(parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value)));
    Serializer::new(String::new()).extend_pairs(given).finish()
}

/// Opens the configured store; its schema is brought up to date where nobody else uses it.
pub async fn open_store(config: &Config, missing: Missing) -> Result<(Store, String), Failure> {
    let url = config.store.url.expose();
    let place = without_password(url);
    let sqlite = url.starts_with("sqlite:");
    if let Some(path) = sqlite_path(url).filter(|path| missing == Missing::Fail && !path.exists()) {
        return Err(Failure::new(Exit::Unreachable, format!("the store {} is not there yet", path.display())));
    }
    let options = StoreOptions { url: url.to_owned(), exclusive: sqlite, connections_max: 4 };
    let store =
        Store::open(&options).await.map_err(|e| Failure { message: format!("the store {place}: {e}"), ..e.into() })?;
    if sqlite {
        store.migrate().await?;
    }
    Ok((store, place))
}

/// The file of a SQLite URL, unless it is in memory.
pub(super) fn sqlite_path(url: &str) -> Option<&Path> {
    let rest = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"))?;
    let path = rest.split('?').next().unwrap_or_default();
    (!path.is_empty() && path != ":memory:").then(|| Path::new(path))
}

/// A URL as it may be shown.
pub fn without_password(url: &str) -> String {
    if url.starts_with("sqlite:") {
        return url.to_owned();
    }
    let Ok(mut parsed) = url::Url::parse(url) else { return "(a URL that cannot be read)".to_owned() };
    if parsed.password().is_some() && parsed.set_password(Some("***")).is_err() {
        return "(a URL with a password)".to_owned();
    }
    parsed.set_query(None);
    parsed.to_string()
}

/// An address that listens everywhere is asked on this machine.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn value(of: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(of).map_err(|e| Failure::new(Exit::Failed, e.to_string()))
}

fn json(body: Vec<u8>) -> Result<Value, Failure> {
    serde_json::from_slice(&body).map_err(|e| Failure::new(Exit::Failed, format!("the answer is not JSON: {e}")))
}
