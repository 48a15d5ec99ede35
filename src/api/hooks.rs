//! What can be asked of webhook endpoints and deliveries, whoever asks: the routes of the API and the command line
//! go through the same door.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::auth::Tenancy;
use super::desk::{Desk, known_form, object};
use super::error::{Problem, ProblemKind};
use super::hook_view::{DeletedJson, DeliveryJson, EndpointJson, RegisterBody, ResendBody, RotateBody};
use super::params::{self, ListKind};
use super::view::PageJson;
use crate::clock::Clock;
use crate::config::WebhooksConfig;
use crate::job::{Invalid, Job, hook_url};
use crate::net_guard::{NetGuard, Refused};
use crate::secrets::Secret;
use crate::store::{
    By, EndpointSecrets, EndpointView, GivenSecret, NewEndpoint, OlderSecret, Page, Registered, ResendBegun,
    ResendOrder, Resent, Rotated, Store, Subscribe, Tested, delivery_row,
};
use crate::vault::{MasterKeys, VaultError};
use crate::webhook::{Keyring, KeyringError, WebhookSecretError, WebhookSecrets};

/// How long a replaced secret goes on signing, unless told otherwise.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// And at most.
const OVERLAP_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Replaced secrets that still sign, at most.
const OLDER_MAX: usize = 3;
/// Longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 1024;
/// A host is looked up no longer than that when it is registered; it is judged at every call anyway.
const LOOKUP_WITHIN: Duration = Duration::from_secs(5);

/// What endpoints are judged by, and signed with.
#[derive(Debug, Clone, Default)]
pub struct HookRules {
    /// Without one no endpoint can be registered.
    pub keyring: Option<Keyring>,
    /// Plain `http` may be registered.
    pub allow_http: bool,
    /// Which addresses may be called.
    pub guard: NetGuard,
}

impl HookRules {
    /// Of `[webhooks]`; secrets that endpoints were given are opened with `masters`.
    ///
    /// # Errors
    /// [`WebhookSecretError`] where the secret is not of the scheme.
    pub fn of(config: &WebhooksConfig, masters: Arc<MasterKeys>) -> Result<Self, WebhookSecretError> {
        let base = config.secret.as_ref().map(WebhookSecrets::new).transpose()?;
        Ok(Self {
            keyring: base.map(|base| Keyring::new(base, masters)),
            allow_http: config.allow_http,
            guard: NetGuard::new(&config.allow_networks),
        })
    }
}

/// Endpoints and deliveries of one store. Cheap to clone.
#[derive(Clone)]
pub struct Hooks {
    store: Store,
    clock: Arc<dyn Clock>,
    rules: HookRules,
}

impl Hooks {
    /// By these rules.
    pub const fn new(store: Store, clock: Arc<dyn Clock>, rules: HookRules) -> Self {
        Self { store, clock, rules }
    }

    /// Registers an endpoint; its secret is told where it was generated, this once.
    ///
    /// # Errors
    /// 422 names the field; 409 where the tenant has as many as it may have.
    pub async fn register(&self, who: Tenancy, body: &[u8]) -> Result<EndpointJson, Problem> {
        let body: RegisterBody = object(body, EXAMPLE)?;
        let keyring = self.keyring()?;
        let tenant = self.tenant_of(who.clone(), body.tenant)?;
        check_description(body.description.as_deref())?;
        if body.events.as_ref().is_some_and(std::collections::BTreeSet::is_empty) {
            let expected = "expected at least one event, or none of this member for all events";
            return Err(Problem::invalid(Invalid::at("events", expected)));
        }
        self.check_url(&body.url).await?;
        let id = Store::endpoint_id();
        let given = body.secret.map(Secret::new);
        let current = keyring.version(&id, 1, given.as_ref()).map_err(in_secret)?;
        let told = if given.is_none() { Some(keyring.secret(&id, &current).map_err(in_secret)?) } else { None };
        let new = NewEndpoint {
            id,
            tenant,
            url: body.url,
            description: body.description,
            events: body.events,
            subscribe: body.subscribe.unwrap_or(Subscribe::All),
            secrets: EndpointSecrets { current, older: Vec::new(), ed25519: body.ed25519 },
        };
        let given = given.as_ref().map(|secret| GivenSecret { secret, masters: keyring.masters() });
        match self.store.register_endpoint(&new, given, self.by(&who)).await? {
            Registered::Done => self.told(&Tenancy::all(), &new.id, told).await,
            Registered::NoMaster(error) => Err(no_master(&error)),
            Registered::TooMany { max } => Err(Problem::new(
                ProblemKind::Busy,
                format!("this tenant has {max} endpoints, which is as many as it may have: delete one first"),
            )),
        }
    }

    fn by<'a>(&self, who: &'a Tenancy) -> By<'a> {
        By { who: who.by(), now_ms: self.clock.wall_ms() }
    }

    fn keyring(&self) -> Result<&Keyring, Problem> {
        self.rules.keyring.as_ref().ok_or_else(|| {
            let detail = "endpoints need webhooks.secret in the configuration: their secrets are derived from it";
            Problem::new(ProblemKind::Invalid, detail)
        })
    }

    /// The tenant of a new endpoint: the token's, else the one that is asked for, else none.
    fn tenant_of(&self, who: Tenancy, wanted: Option<String>) -> Result<String, Problem> {
        if let Some(wanted) = wanted.as_deref().filter(|wanted| !params::is_tenant(wanted)) {
            let message = format!("expected at most 255 bytes without control characters, found {wanted:?}");
            return Err(Problem::invalid(Invalid::at("tenant", message)));
        }
        Ok(who.narrow(wanted)?.tenant().unwrap_or_default().to_owned())
    }

    /// Judges a URL by how it is written, then by what its name resolves to now.
    async fn check_url(&self, text: &str) -> Result<(), Problem> {
        let wrong = |message: String| Problem::invalid(Invalid::at("url", message));
        let url = hook_url(text, self.rules.allow_http).map_err(wrong)?;
        let refused = |refused: Refused| wrong(refused.to_string());
        self.rules.guard.check_url(&url).map_err(refused)?;
        // A name that cannot be looked up here and now may well be where it is called from.
        match tokio::time::timeout(LOOKUP_WITHIN, self.rules.guard.check_name(&url)).await {
            Ok(Err(error)) => Err(refused(error)),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// An endpoint.
    ///
    /// # Errors
    /// 404 for an unknown id and another tenant's alike.
    pub async fn endpoint(&self, who: &Tenancy, id: &str) -> Result<EndpointJson, Problem> {
        self.told(who, id, None).await
    }

    async fn told(&self, who: &Tenancy, id: &str, secret: Option<Secret>) -> Result<EndpointJson, Problem> {
        let view = self.view(who, id).await?;
        let mut json = self.json(view);
        json.secret = secret.map(|secret| secret.expose().to_owned());
        Ok(json)
    }

    async fn view(&self, who: &Tenancy, id: &str) -> Result<EndpointView, Problem> {
        let id = known_form(id).ok_or_else(Problem::no_endpoint)?;
        self.store.endpoint(who.tenant(), id).await?.ok_or_else(Problem::no_endpoint)
    }

    fn json(&self, view: EndpointView) -> EndpointJson {
        EndpointJson::new(view, self.rules.keyring.as_ref(), self.clock.wall_ms())
    }

    /// A page of endpoints, newest first; `query` as in the URL.
    ///
    /// # Errors
    /// Unknown and wrong parameters are named.
    pub async fn endpoints(&self, who: Tenancy, query: &str) -> Result<PageJson<EndpointJson>, Problem> {
        let (tenant, window) = params::endpoints(query)?;
        let who = who.narrow(tenant)?;
        let Page { items, next } = self.store.endpoints(who.tenant(), window.cursor, window.limit).await?;
        let items = items.into_iter().map(|view| self.json(view)).collect();
        Ok(PageJson { items, next_cursor: next.map(|position| ListKind::Endpoints.encode(position)) })
    }

    /// Sends nothing more to an endpoint, or sends to it again. What was held back meanwhile is sent by
    /// [`Hooks::resend_since`].
    ///
    /// # Errors
    /// 404.
    pub async fn enable(&self, who: &Tenancy, id: &str, enabled: bool) -> Result<EndpointJson, Problem> {
        let view = self.view(who, id).await?;
        if !self.store.enable_endpoint(view.pk, enabled, self.by(who)).await? {
            return Err(Problem::no_endpoint());
        }
        self.endpoint(who, id).await
    }

    /// Removes an endpoint. Its deliveries can be looked at until their jobs are removed.
    ///
    /// # Errors
    /// 404.
    pub async fn delete(&self, who: &Tenancy, id: &str) -> Result<DeletedJson, Problem> {
        let view = self.view(who, id).await?;
        if !self.store.delete_endpoint(view.pk, self.by(who)).await? {
            return Err(Problem::no_endpoint());
        }
        Ok(DeletedJson { id: view.id, deleted: true })
    }

    /// Gives an endpoint a new secret; the one before signs as well for a while.
    ///
    /// # Errors
    /// 404; 422 names the field; 409 where too many replaced secrets still sign, or somebody else was first.
    pub async fn rotate(&self, who: &Tenancy, id: &str, body: &[u8]) -> Result<EndpointJson, Problem> {
        let empty = body.trim_ascii().is_empty();
        let body = if empty { RotateBody::default() } else { object(body, "{} or {\"overlap\": \"24h\"}")? };
        let keyring = self.keyring()?;
        let view = self.view(who, id).await?;
        let Some(secrets) = &view.secrets else {
            let detail =
                "a bare callback URL is signed for with its tenant's secret: register the URL to give it its own";
            return Err(Problem::new(ProblemKind::Invalid, detail));
        };
        let overlap = body.overlap.map_or(OVERLAP, |overlap| overlap.0);
        if overlap > OVERLAP_MAX {
            return Err(Problem::invalid(Invalid::at("overlap", "expected at most 30d")));
        }
        let given = body.secret.map(Secret::new);
        let version = secrets.current.version.saturating_add(1);
        let current = keyring.version(&view.id, version, given.as_ref()).map_err(in_secret)?;
        let told = if given.is_none() { Some(keyring.secret(&view.id, &current).map_err(in_secret)?) } else { None };
        let older = self.older(secrets, overlap)?;
        let new = EndpointSecrets { current, older, ed25519: secrets.ed25519 };
        let given = given.as_ref().map(|secret| GivenSecret { secret, masters: keyring.masters() });
        match self.store.rotate_endpoint(&view, &new, given, self.by(who)).await? {
            Rotated::Done => self.told(who, id, told).await,
            Rotated::NoMaster(error) => Err(no_master(&error)),
            Rotated::Superseded => {
                let detail = "somebody else rotated the secret of this endpoint just now: look, then try again";
                Err(Problem::new(ProblemKind::Busy, detail))
            }
        }
    }

    /// What still signs beside a new secret; nothing, where the old ones are not to be trusted any more.
    fn older(&self, secrets: &EndpointSecrets, overlap: Duration) -> Result<Vec<OlderSecret>, Problem> {
        if overlap.is_zero() {
            return Ok(Vec::new());
        }
        let now = self.clock.wall_ms();
        let until_ms = now.saturating_add(i64::try_from(overlap.as_millis()).unwrap_or(i64::MAX));
        let replaced = OlderSecret { secret: secrets.current.clone(), until_ms };
        let still = secrets.older.iter().filter(|older| older.until_ms > now).cloned();
        let older: Vec<OlderSecret> = std::iter::once(replaced).chain(still).collect();
        if older.len() > OLDER_MAX {
            let detail = format!(
                "{OLDER_MAX} replaced secrets of this endpoint still sign: wait until one ends, or end them all with \"overlap\": \"0s\""
            );
            return Err(Problem::new(ProblemKind::Busy, detail));
        }
        Ok(older)
    }

    /// Sends an endpoint an event of the type `endpoint.test`, once.
    ///
    /// # Errors
    /// 404; 409 where it is disabled.
    pub async fn test(&self, who: &Tenancy, id: &str) -> Result<DeliveryJson, Problem> {
        let view = self.view(who, id).await?;
        match self.store.test_endpoint(view.pk, self.by(who)).await? {
            Tested::Queued(pk) => self.shown(who, pk).await,
            Tested::Disabled => Err(disabled()),
            Tested::NotFound => Err(Problem::no_endpoint()),
        }
    }

    /// Begins to send an endpoint again what it missed since a time.
    ///
    /// # Errors
    /// 404; 409 where it is disabled, or such a resend runs; 422 names the field.
    pub async fn resend_since(&self, who: &Tenancy, id: &str, body: &[u8]) -> Result<EndpointJson, Problem> {
        let body: ResendBody = object(body, "{\"since\": \"2026-11-20T10:00:00Z\"}")?;
        let view = self.view(who, id).await?;
        let order = ResendOrder { since_ms: body.since.0, everything: body.all };
        match self.store.begin_resend(view.pk, order, self.by(who)).await? {
            ResendBegun::Running => self.endpoint(who, id).await,
            ResendBegun::Disabled => Err(disabled()),
            ResendBegun::NotFound => Err(Problem::no_endpoint()),
            ResendBegun::Busy => {
                let detail = "a resend of this endpoint runs: wait until it is done";
                Err(Problem::new(ProblemKind::Busy, detail))
            }
        }
    }

    /// A page of deliveries, newest first; `query` as in the URL.
    ///
    /// # Errors
    /// Unknown and wrong parameters are named.
    pub async fn deliveries(&self, who: Tenancy, query: &str) -> Result<PageJson<DeliveryJson>, Problem> {
        let (mut filter, window) = params::deliveries(query)?;
        filter.tenant = who.narrow(filter.tenant)?.tenant().map(str::to_owned);
        let Page { items, next } = self.store.deliveries(&filter, window.cursor, window.limit).await?;
        let items = items.into_iter().map(DeliveryJson::from).collect();
        Ok(PageJson { items, next_cursor: next.map(|position| ListKind::Deliveries.encode(position)) })
    }

    /// A delivery with its attempts.
    ///
    /// # Errors
    /// 404 for an unknown id and another tenant's alike.
    pub async fn delivery(&self, who: &Tenancy, id: &str) -> Result<DeliveryJson, Problem> {
        self.shown(who, delivery_row(id).ok_or_else(Problem::no_delivery)?).await
    }

    async fn shown(&self, who: &Tenancy, pk: i64) -> Result<DeliveryJson, Problem> {
        let view = self.store.delivery(who.tenant(), pk).await?;
        view.map(DeliveryJson::from).ok_or_else(Problem::no_delivery)
    }

    /// Sends a delivery again, under the same event id; its schedule begins anew.
    ///
    /// # Errors
    /// 404; 409 where its endpoint is disabled or removed, or it is being sent just now.
    pub async fn resend(&self, who: &Tenancy, id: &str) -> Result<DeliveryJson, Problem> {
        let row = delivery_row(id).ok_or_else(Problem::no_delivery)?;
        let view = self.store.delivery(who.tenant(), row).await?.ok_or_else(Problem::no_delivery)?;
        match self.store.resend_delivery(view.pk, self.by(who)).await? {
            Resent::Due => self.shown(who, view.pk).await,
            Resent::Underway => Err(Problem::new(ProblemKind::Busy, "it is being sent just now: look again")),
            Resent::Disabled => Err(disabled()),
            Resent::Gone => Err(Problem::new(ProblemKind::EndpointDisabled, "its endpoint was removed")),
            Resent::NotFound => Err(Problem::no_delivery()),
        }
    }
}

impl Desk {
    /// Refuses jobs whose callback names an endpoint that their tenant does not have.
    pub(super) async fn refuse_unknown_endpoints(&self, jobs: &mut [Result<Job, Problem>]) -> Result<(), Problem> {
        let mut known: HashMap<(String, String), bool> = HashMap::new();
        for item in jobs {
            let Ok(job) = item else { continue };
            let Some(id) = job.callback.as_ref().and_then(|callback| callback.endpoint.as_ref()) else { continue };
            let is_there = match known.entry((job.tenant.clone(), id.clone())) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => *entry.insert(self.store.endpoint(Some(&job.tenant), id).await?.is_some()),
            };
            if !is_there {
                let whose = if job.tenant.is_empty() { "jobs without a tenant" } else { "the tenant of this job" };
                let message = format!("there is no endpoint {id:?} of {whose}");
                *item = Err(Problem::invalid(Invalid::at("callback.endpoint", message)));
            }
        }
        Ok(())
    }
}

const EXAMPLE: &str = "{\"url\": \"https://hooks.example.com/paceline\"}";

fn disabled() -> Problem {
    Problem::new(ProblemKind::EndpointDisabled, "the endpoint is disabled, and gets nothing: enable it first")
}

fn no_master(error: &VaultError) -> Problem {
    Problem::new(ProblemKind::NoMasterKey, error.to_string())
}

fn check_description(text: Option<&str>) -> Result<(), Problem> {
    if text.is_some_and(|text| text.len() > DESCRIPTION_BYTES_MAX) {
        let message = format!("expected at most {DESCRIPTION_BYTES_MAX} bytes");
        return Err(Problem::invalid(Invalid::at("description", message)));
    }
    Ok(())
}

fn in_secret(error: KeyringError) -> Problem {
    match error {
        KeyringError::Secret(wrong) => Problem::invalid(Invalid::at("secret", wrong.to_string())),
        other => Problem::new(ProblemKind::Internal, other.to_string()),
    }
}
