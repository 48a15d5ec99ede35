//! Where completions go: endpoints that somebody registered, and those of bare callback URLs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::audit::{self, ActKind, By};
use super::dialect::{Db, Rows, Tx, on_db};
use super::vault::{self, GivenSecret};
use super::wakes::Pending;
use super::{Endpoint, Page, ResendView, Store, StoreError, act, delivery_id, resends};
use crate::clock::WallMs;
use crate::job::EventKind;
use crate::vault::VaultError;

/// Endpoints that one tenant may register: each is looked at for every completion of it.
const REGISTERED_MAX: i64 = 100;

/// Which completions reach a registered endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Subscribe {
    /// All of its tenant.
    All,
    /// Those of jobs whose callback names it.
    Named,
}

impl Subscribe {
    /// The name in the API and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Named => "named",
        }
    }
}

/// A signing secret of an endpoint, without itself: one that was generated is derived again from the id
/// and the version, one that was given is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretVersion {
    /// Rises with every rotation.
    pub version: u32,
    /// The secret where it was given, encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

/// A secret that was replaced and signs for a while yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderSecret {
    /// Which.
    pub secret: SecretVersion,
    /// It signs until then.
    pub until_ms: WallMs,
}

/// What signs for an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSecrets {
    /// The newest.
    pub current: SecretVersion,
    /// Those that it replaced, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<OlderSecret>,
    /// Ed25519 (`v1a`) signs as well.
    #[serde(default)]
    pub ed25519: bool,
}

impl EndpointSecrets {
    /// The versions that sign at that time, newest first.
    pub fn active(&self, now_ms: WallMs) -> impl Iterator<Item = &SecretVersion> {
        let older = self.older.iter().filter(move |older| older.until_ms > now_ms).map(|older| &older.secret);
        std::iter::once(&self.current).chain(older)
    }
}

/// An endpoint to register.
#[derive(Debug, Clone)]
pub struct NewEndpoint {
    /// `ep_…`
    pub id: String,
    /// Whose completions it gets; empty: those of jobs without a tenant.
    pub tenant: String,
    /// Where to post to.
    pub url: String,
    /// For people.
    pub description: Option<String>,
    /// Only these; `None`: all.
    pub events: Option<BTreeSet<EventKind>>,
    /// Which jobs.
    pub subscribe: Subscribe,
    /// What signs for it.
    pub secrets: EndpointSecrets,
}

/// What registering came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// It is there.
    Done,
    /// The tenant has as many as it may have.
    TooMany {
        /// So many.
        max: i64,
    },
    /// Its secret cannot be sealed: nothing was changed.
    NoMaster(VaultError),
}

/// What giving an endpoint another secret came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// It has it.
    Done,
    /// Somebody else was first: nothing was changed.
    Superseded,
    /// It cannot be sealed: nothing was changed.
    NoMaster(VaultError),
}

/// What asking for a test event came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tested {
    /// It is on its way, as the delivery of that row.
    Queued(i64),
    /// The endpoint gets nothing while it is disabled.
    Disabled,
    /// There is none.
    NotFound,
}

/// An endpoint as it is shown.
#[derive(Debug, Clone)]
pub struct EndpointView {
    /// Its row, for cursors.
    pub pk: i64,
    /// `ep_…`
    pub id: String,
    /// Whose; empty: of jobs without a tenant.
    pub tenant: String,
    /// Where it is.
    pub url: String,
    /// For people.
    pub description: Option<String>,
    /// Only these; `None`: all.
    pub events: Option<BTreeSet<EventKind>>,
    /// Which jobs.
    pub subscribe: Subscribe,
    /// Made from a bare callback URL.
    pub implicit: bool,
    /// It is sent to.
    pub enabled: bool,
    /// `operator`, `gone` or `failing`.
    pub disabled_reason: Option<String>,
    /// It has answered with nothing but failures since then.
    pub failing_since_ms: Option<WallMs>,
    /// What signs for it; `None`: the secret of its tenant.
    pub secrets: Option<EndpointSecrets>,
    /// Since when it is known.
    pub created_ms: WallMs,
    /// The last order to send again what it missed.
    pub resend: Option<ResendView>,
}

/// Where a completion may go.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub endpoint: Arc<Endpoint>,
    pub enabled: bool,
    events: Option<BTreeSet<EventKind>>,
}

impl Target {
    pub fn wants(&self, kind: EventKind) -> bool {
        self.events.as_ref().is_none_or(|wanted| wanted.contains(&kind))
    }
}

fn events_of(id: &str, text: Option<&str>) -> Result<Option<BTreeSet<EventKind>>, StoreError> {
    let read = text.map(serde_json::from_str).transpose();
    read.map_err(|e| StoreError::Corrupt(format!("the events of endpoint {id}: {e}")))
}

pub(super) fn secrets_of(id: &str, text: Option<&str>) -> Result<Option<EndpointSecrets>, StoreError> {
    let read = text.map(serde_json::from_str).transpose();
    read.map_err(|e| StoreError::Corrupt(format!("the secrets of endpoint {id}: {e}")))
}

fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Corrupt(e.to_string()))
}

/// The endpoints of bare callback URLs, by (tenant, url); made where there is none yet.
pub(super) async fn implicit<'a>(
    tx: &mut Tx,
    wanted: &BTreeSet<(&'a str, &'a str)>,
    now_ms: WallMs,
) -> Result<HashMap<(&'a str, &'a str), Target>, StoreError> {
    let mut found = find_implicit(tx, wanted).await?;
    let missing: BTreeSet<_> = wanted.iter().filter(|w| !found.contains_key(*w)).copied().collect();
    if !missing.is_empty() {
        let ids: Vec<String> = missing.iter().map(|_| fresh_id()).collect();
        let rows = Rows::new()
            .text("id", ids.iter().map(|id| Some(id.as_str())))
            .text("tenant", missing.iter().map(|m| Some(m.0)))
            .text("url", missing.iter().map(|m| Some(m.1)))
            .int("created_ms", missing.iter().map(|_| Some(now_ms)));
        let insert = "INSERT INTO endpoints (id, tenant, url, implicit, created_ms)
            SELECT id, tenant, url, TRUE, created_ms FROM v WHERE TRUE
            ON CONFLICT (tenant, url) WHERE implicit DO NOTHING";
        rows.execute(tx, insert).await?;
        found.extend(find_implicit(tx, &missing).await?);
    }
    Ok(found)
}

/// A new id of an endpoint.
fn fresh_id() -> String {
    format!("ep_{}", uuid::Uuid::now_v7().simple())
}

async fn find_implicit<'a>(
    tx: &mut Tx,
    wanted: &BTreeSet<(&'a str, &'a str)>,
) -> Result<HashMap<(&'a str, &'a str), Target>, StoreError> {
    let rows =
        Rows::new().text("tenant", wanted.iter().map(|w| Some(w.0))).text("url", wanted.iter().map(|w| Some(w.1)));
    let select = "SELECT n.pk, n.id, n.tenant, n.url, n.implicit, n.secrets, n.enabled, n.events FROM v
        JOIN endpoints n ON n.tenant =[v.tenant] AND n.url = v.url AND n.implicit";
    let found = rows.fetch::<TargetRow>(tx, select).await?.into_iter().map(target_of);
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let known: HashMap<(&str, &str), &Target> =
        found.iter().map(|target| ((target.endpoint.tenant.as_str(), target.endpoint.url.as_str()), target)).collect();
    Ok(wanted.iter().filter_map(|key| Some((*key, (*known.get(key)?).clone()))).collect())
}

/// pk, id, tenant, url, implicit, secrets.
pub(super) type EndpointRow = (i64, String, String, String, bool, Option<String>);
/// The same, whether it is enabled, and its events.
type TargetRow = (i64, String, String, String, bool, Option<String>, bool, Option<String>);

pub(super) fn endpoint_of(row: EndpointRow) -> Result<Arc<Endpoint>, StoreError> {
    let (pk, id, tenant, url, implicit, secrets) = row;
    let secrets = secrets_of(&id, secrets.as_deref())?;
    Ok(Arc::new(Endpoint { pk, id, tenant, url, implicit, secrets }))
}

fn target_of(row: TargetRow) -> Result<Target, StoreError> {
    let (pk, id, tenant, url, implicit, secrets, enabled, events) = row;
    let events = events_of(&id, events.as_deref())?;
    Ok(Target { endpoint: endpoint_of((pk, id, tenant, url, implicit, secrets))?, enabled, events })
}

/// Endpoints that jobs name, by (tenant, id).
pub(super) async fn named(
    tx: &mut Tx,
    wanted: &BTreeSet<(&str, &str)>,
) -> Result<HashMap<(String, String), Target>, StoreError> {
    let rows =
        Rows::new().text("tenant", wanted.iter().map(|w| Some(w.0))).text("id", wanted.iter().map(|w| Some(w.1)));
    let select = "SELECT n.pk, n.id, n.tenant, n.url, n.implicit, n.secrets, n.enabled, n.events FROM v
        JOIN endpoints n ON n.id =[v.id] AND n.tenant = v.tenant";
    let found = rows.fetch::<TargetRow>(tx, select).await?.into_iter().map(target_of);
    found.map(|target| target.map(|t| ((t.endpoint.tenant.clone(), t.endpoint.id.clone()), t))).collect()
}

/// Endpoints that get all completions of these tenants.
pub(super) async fn subscribers(
    tx: &mut Tx,
    tenants: &BTreeSet<&str>,
) -> Result<HashMap<String, Vec<Target>>, StoreError> {
    let rows = Rows::new().text("tenant", tenants.iter().map(|tenant| Some(*tenant)));
    let select = "SELECT n.pk, n.id, n.tenant, n.url, n.implicit, n.secrets, n.enabled, n.events FROM v
        JOIN endpoints n ON n.tenant =[v.tenant] AND n.subscribe = 'all'";
    let mut found: HashMap<String, Vec<Target>> = HashMap::new();
    for row in rows.fetch::<TargetRow>(tx, select).await? {
        let target = target_of(row)?;
        found.entry(target.endpoint.tenant.clone()).or_default().push(target);
    }
    Ok(found)
}

/// pk, id, tenant, url, description, events, subscribe, implicit, enabled, reason, failing since, secrets, created.
type Row = (
    i64,
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    String,
    bool,
    bool,
    Option<String>,
    Option<WallMs>,
    Option<String>,
    WallMs,
);

const VIEW: &str = "SELECT pk, id, tenant, url, description, events, subscribe, implicit, enabled, disabled_reason,
    failing_since_ms, secrets, created_ms FROM endpoints";

fn view(row: Row) -> Result<EndpointView, StoreError> {
    let (pk, id, tenant, url, description, events, subscribe, implicit, enabled, disabled_reason, failing, keys, at) =
        row;
    Ok(EndpointView {
        pk,
        tenant,
        url,
        description,
        events: events_of(&id, events.as_deref())?,
        subscribe: if subscribe == Subscribe::All.as_str() { Subscribe::All } else { Subscribe::Named },
        implicit,
        enabled,
        disabled_reason,
        failing_since_ms: failing,
        secrets: secrets_of(&id, keys.as_deref())?,
        created_ms: at,
        resend: None,
        id,
    })
}

async fn show(db: &Db, tenant: Option<&str>, id: &str) -> Result<Option<EndpointView>, StoreError> {
    let sql = sqlx::AssertSqlSafe(format!("{VIEW} WHERE id = $1 AND ($2 IS NULL OR tenant = $2)"));
    let row: Option<Row> = on_db!(read db, |c| sqlx::query_as(sql).bind(id).bind(tenant).fetch_optional(c).await)?;
    let Some(row) = row else { return Ok(None) };
    let mut view = view(row)?;
    view.resend = resends::of(db, &[view.pk]).await?.remove(&view.pk);
    Ok(Some(view))
}

async fn list(
    db: &Db,
    tenant: Option<&str>,
    cursor: Option<i64>,
    limit: u32,
) -> Result<Page<EndpointView>, StoreError> {
    let sql = format!("{VIEW} WHERE pk < $1 AND ($2 IS NULL OR tenant = $2) ORDER BY pk DESC LIMIT $3");
    let sql = sqlx::AssertSqlSafe(sql);
    let rows: Vec<Row> = on_db!(read db, |c| {
        sqlx::query_as(sql).bind(cursor.unwrap_or(i64::MAX)).bind(tenant).bind(i64::from(limit)).fetch_all(c).await
    })?;
    let mut items = rows.into_iter().map(view).collect::<Result<Vec<_>, _>>()?;
    let pks: Vec<i64> = items.iter().map(|item| item.pk).collect();
    let mut orders = resends::of(db, &pks).await?;
    items.iter_mut().for_each(|item| item.resend = orders.remove(&item.pk));
    let full = u32::try_from(items.len()).is_ok_and(|n| n == limit);
    Ok(Page { next: items.last().filter(|_| full).map(|view| view.pk), items })
}

/// Registers it, and writes that down.
async fn register(
    tx: &mut Tx,
    new: &NewEndpoint,
    given: Option<GivenSecret<'_>>,
    by: By<'_>,
) -> Result<Registered, StoreError> {
    let registered = try_register(tx, new, given, by.now_ms).await?;
    let detail = match &registered {
        Registered::Done => described(new),
        Registered::TooMany { max } => format!("the tenant {:?} has {max} endpoints", new.tenant),
        Registered::NoMaster(error) => error.to_string(),
    };
    let act = match &registered {
        Registered::Done => by.done(ActKind::EndpointRegister, &new.id, Some(&detail)),
        _ => by.refused(ActKind::EndpointRegister, &new.id, &detail),
    };
    audit::write(tx, act).await?;
    Ok(registered)
}

/// Where it is and whose; of its URL no more, which may hold a credential.
fn described(new: &NewEndpoint) -> String {
    let origin = url::Url::parse(&new.url).map(|url| url.origin().ascii_serialization()).unwrap_or_default();
    let whose = if new.tenant.is_empty() { String::new() } else { format!(", tenant {}", new.tenant) };
    format!("{origin}{whose}")
}

async fn try_register(
    tx: &mut Tx,
    new: &NewEndpoint,
    given: Option<GivenSecret<'_>>,
    now_ms: WallMs,
) -> Result<Registered, StoreError> {
    let sql = "SELECT COUNT(*) FROM endpoints WHERE tenant = $1 AND NOT implicit";
    let known: (i64,) = on_db!(tx, |c| sqlx::query_as(sql).bind(&new.tenant).fetch_one(c).await)?;
    if known.0 >= REGISTERED_MAX {
        return Ok(Registered::TooMany { max: REGISTERED_MAX });
    }
    let secrets = match sealed(tx, &new.id, &new.secrets, given, now_ms).await? {
        Ok(secrets) => json(&secrets)?,
        Err(error) => return Ok(Registered::NoMaster(error)),
    };
    let events = new.events.as_ref().map(json).transpose()?;
    let sql = "INSERT INTO endpoints (id, tenant, url, implicit, description, events, subscribe, secrets, created_ms)
        VALUES ($1, $2, $3, FALSE, $4, $5, $6, $7, $8)";
    on_db!(tx, |c| sqlx::query(sql)
        .bind(&new.id)
        .bind(&new.tenant)
        .bind(&new.url)
        .bind(&new.description)
        .bind(events)
        .bind(new.subscribe.as_str())
        .bind(secrets)
        .bind(now_ms)
        .execute(c)
        .await
        .map(drop))?;
    Ok(Registered::Done)
}

/// With the given secret under the master key, where there is one.
async fn sealed(
    tx: &mut Tx,
    id: &str,
    secrets: &EndpointSecrets,
    given: Option<GivenSecret<'_>>,
    now_ms: WallMs,
) -> Result<Result<EndpointSecrets, VaultError>, StoreError> {
    let mut secrets = secrets.clone();
    if let Some(given) = given {
        match vault::seal_for_endpoint(tx, given, id, secrets.current.version, now_ms).await? {
            Ok(Some(text)) => secrets.current.sealed = Some(text),
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(secrets))
}

/// What acts need to know of an endpoint.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Known {
    pub id: String,
    pub enabled: bool,
}

pub(super) async fn known(tx: &mut Tx, pk: i64) -> Result<Option<Known>, StoreError> {
    let sql = "SELECT id, enabled FROM endpoints WHERE pk = $1";
    Ok(on_db!(tx, |c| sqlx::query_as(sql).bind(pk).fetch_optional(c).await)?)
}

async fn enable(tx: &mut Tx, pk: i64, enabled: bool, by: By<'_>) -> Result<bool, StoreError> {
    let Some(endpoint) = known(tx, pk).await? else { return Ok(false) };
    let sql = "UPDATE endpoints SET enabled = $2, disabled_reason = CASE WHEN $2 THEN NULL ELSE 'operator' END,
        failing_since_ms = NULL WHERE pk = $1";
    on_db!(tx, |c| sqlx::query(sql).bind(pk).bind(enabled).execute(c).await.map(drop))?;
    let kind = if enabled { ActKind::EndpointEnable } else { ActKind::EndpointDisable };
    audit::write(tx, by.done(kind, &endpoint.id, None)).await?;
    Ok(true)
}

/// What is pending for it is set aside when it is claimed; its test events are of no use any more.
async fn delete(tx: &mut Tx, pk: i64, by: By<'_>) -> Result<bool, StoreError> {
    let Some(endpoint) = known(tx, pk).await? else { return Ok(false) };
    for sql in [
        "DELETE FROM delivery_attempts WHERE delivery_pk IN
            (SELECT pk FROM deliveries WHERE endpoint_pk = $1 AND event_pk = 0)",
        "DELETE FROM deliveries WHERE endpoint_pk = $1 AND event_pk = 0",
        "DELETE FROM resends WHERE endpoint_pk = $1",
    ] {
        on_db!(tx, |c| sqlx::query(sql).bind(pk).execute(c).await.map(drop))?;
    }
    let sql = "DELETE FROM endpoints WHERE pk = $1";
    let gone = on_db!(tx, |c| sqlx::query(sql).bind(pk).execute(c).await.map(|done| done.rows_affected()))?;
    if gone > 0 {
        audit::write(tx, by.done(ActKind::EndpointDelete, &endpoint.id, None)).await?;
    }
    Ok(gone > 0)
}

/// Gives an endpoint other secrets, and writes that down.
async fn rotate(
    tx: &mut Tx,
    endpoint: &EndpointView,
    new: &EndpointSecrets,
    given: Option<GivenSecret<'_>>,
    by: By<'_>,
) -> Result<Rotated, StoreError> {
    let rotated = try_rotate(tx, endpoint, new, given, by.now_ms).await?;
    let detail = match &rotated {
        Rotated::Done => format!("version {}", new.current.version),
        Rotated::Superseded => "somebody else was first".to_owned(),
        Rotated::NoMaster(error) => error.to_string(),
    };
    let act = match &rotated {
        Rotated::Done => by.done(ActKind::EndpointRotate, &endpoint.id, Some(&detail)),
        _ => by.refused(ActKind::EndpointRotate, &endpoint.id, &detail),
    };
    audit::write(tx, act).await?;
    Ok(rotated)
}

async fn try_rotate(
    tx: &mut Tx,
    endpoint: &EndpointView,
    new: &EndpointSecrets,
    given: Option<GivenSecret<'_>>,
    now_ms: WallMs,
) -> Result<Rotated, StoreError> {
    let new = match sealed(tx, &endpoint.id, new, given, now_ms).await? {
        Ok(new) => new,
        Err(error) => return Ok(Rotated::NoMaster(error)),
    };
    let old = endpoint.secrets.as_ref().map(json).transpose()?;
    let new = json(&new)?;
    let sql = "UPDATE endpoints SET secrets = $3 WHERE pk = $1 AND secrets = $2";
    let changed = on_db!(tx, |c| {
        sqlx::query(sql).bind(endpoint.pk).bind(old).bind(new).execute(c).await.map(|done| done.rows_affected())
    })?;
    Ok(if changed > 0 { Rotated::Done } else { Rotated::Superseded })
}

/// Endpoints with secrets that were given: row, id, secrets. Nobody else changes them until the end of the transaction.
pub(super) async fn given(tx: &mut Tx) -> Result<Vec<(i64, String, EndpointSecrets)>, StoreError> {
    let sql = format!(
        r#"SELECT pk, id, secrets FROM endpoints WHERE secrets LIKE '%"sealed":"%' ORDER BY pk{}"#,
        tx.for_update()
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let rows: Vec<(i64, String, String)> = on_db!(tx, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    let read = |(pk, id, text): (i64, String, String)| {
        let secrets = secrets_of(&id, Some(&text)).transpose()?;
        Some(secrets.map(|secrets| (pk, id, secrets)))
    };
    rows.into_iter().filter_map(read).collect()
}

/// The same without a transaction, secrets alone.
pub(super) async fn all_given(db: &Db) -> Result<Vec<EndpointSecrets>, StoreError> {
    let sql = r#"SELECT id, secrets FROM endpoints WHERE secrets LIKE '%"sealed":"%'"#;
    let rows: Vec<(String, String)> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    rows.iter().filter_map(|(id, text)| secrets_of(id, Some(text)).transpose()).collect()
}

pub(super) async fn put_secrets(tx: &mut Tx, pk: i64, secrets: &EndpointSecrets) -> Result<(), StoreError> {
    let secrets = json(secrets)?;
    let sql = "UPDATE endpoints SET secrets = $2 WHERE pk = $1";
    on_db!(tx, |c| sqlx::query(sql).bind(pk).bind(secrets).execute(c).await.map(drop))?;
    Ok(())
}

/// Sends a test event, and writes that down.
async fn test(tx: &mut Tx, pk: i64, by: By<'_>, wakes: &mut Pending) -> Result<Tested, StoreError> {
    let Some(endpoint) = known(tx, pk).await? else { return Ok(Tested::NotFound) };
    if !endpoint.enabled {
        audit::write(tx, by.refused(ActKind::EndpointTest, &endpoint.id, "it was disabled")).await?;
        return Ok(Tested::Disabled);
    }
    let sql = "INSERT INTO deliveries (event_pk, kind, endpoint_pk, state, due_ms, created_ms)
        VALUES (0, 'webhook', $1, 'pending', $2, $2) RETURNING pk";
    let row: (i64,) = on_db!(tx, |c| sqlx::query_as(sql).bind(pk).bind(by.now_ms).fetch_one(c).await)?;
    let delivery = delivery_id(row.0);
    audit::write(tx, by.done(ActKind::EndpointTest, &endpoint.id, Some(&delivery))).await?;
    wakes.deliveries();
    Ok(Tested::Queued(row.0))
}

impl Store {
    /// A new id of an endpoint.
    pub fn endpoint_id() -> String {
        fresh_id()
    }

    /// Registers an endpoint; an act. A secret that was given is sealed with the master key, where there is one; else as
    /// it stands in `new`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn register_endpoint(
        &self,
        new: &NewEndpoint,
        given: Option<GivenSecret<'_>>,
        by: By<'_>,
    ) -> Result<Registered, StoreError> {
        act!(self, |tx, _wakes| register(tx, new, given, by).await)
    }

    /// An endpoint.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn endpoint(&self, tenant: Option<&str>, id: &str) -> Result<Option<EndpointView>, StoreError> {
        self.db().in_time(show(self.db(), tenant, id)).await
    }

    /// Endpoints, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn endpoints(
        &self,
        tenant: Option<&str>,
        cursor: Option<i64>,
        limit: u32,
    ) -> Result<Page<EndpointView>, StoreError> {
        self.db().in_time(list(self.db(), tenant, cursor, limit)).await
    }

    /// Sends nothing more to an endpoint (row `pk`), or sends to it again; an act. `false`: there is none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn enable_endpoint(&self, pk: i64, enabled: bool, by: By<'_>) -> Result<bool, StoreError> {
        act!(self, |tx, _wakes| enable(tx, pk, enabled, by).await)
    }

    /// Removes an endpoint (row `pk`); an act. Its deliveries stay until their jobs are removed. `false`: there is none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn delete_endpoint(&self, pk: i64, by: By<'_>) -> Result<bool, StoreError> {
        act!(self, |tx, _wakes| delete(tx, pk, by).await)
    }

    /// Replaces what signs for an endpoint, as it was seen; an act. A secret that was given is sealed as by
    /// [`Store::register_endpoint`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: what signs is not known.
    pub async fn rotate_endpoint(
        &self,
        endpoint: &EndpointView,
        new: &EndpointSecrets,
        given: Option<GivenSecret<'_>>,
        by: By<'_>,
    ) -> Result<Rotated, StoreError> {
        act!(self, |tx, _wakes| rotate(tx, endpoint, new, given, by).await)
    }

    /// Sends an endpoint (row `pk`) an event that says nothing, once; an act.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn test_endpoint(&self, pk: i64, by: By<'_>) -> Result<Tested, StoreError> {
        act!(self, |tx, wakes| test(tx, pk, by, wakes).await)
    }
}
