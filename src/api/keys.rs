//! `/v1/providers/{name}/keys`: provider keys that are added, rotated and removed while running.
//!
//! A secret comes in, once, in a body; it never comes out again, and no error repeats anything of what the body held.

use std::borrow::Cow;
use std::collections::HashMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use http::StatusCode;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value};

use super::Parts;
use super::auth::Caller;
use super::body::{BodyReader, Takes};
use super::control::{Control, shown};
use super::error::{Problem, ProblemKind};
use super::openapi::Operation;
use super::params;
use super::path::{Id, Names};
use super::provider_view::KeyJson;
use super::providers::{Nothing, check};
use super::routes::Routes;
use super::view::PageJson;
use crate::clock::rfc3339;
use crate::config::{Scope, is_sendable};
use crate::job::{Invalid, ProviderRules, is_name, optional_whole};
use crate::secrets::Secret;
use crate::store::{By, KeyAct, KeyRefused, NewKey, SecretVersion, Store, StoreError, StoredKey};

/// Longest secret, in bytes.
const SECRET_BYTES_MAX: usize = 4_096;
/// As in the configuration.
const WEIGHT_MAX: u32 = 1_000;

/// A key as it is listed. Never its secret.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct KeyItem {
    /// Whose it is.
    provider: String,
    /// Its budget: a declared one, or its own, which has its label as name.
    budget: String,
    /// Where its secret is: `configuration`, `vault` (declared in the configuration, stored), `store` (added while
    /// running), or `none` where the provider takes no key.
    source: &'static str,
    /// Tells its secret from others; `null`: it is not stored.
    fingerprint: Option<String>,
    /// Of the stored secret: rises with every rotation.
    version: Option<i64>,
    /// Its share where several keys could serve; `null`: it stands in the configuration.
    weight: Option<u32>,
    /// When it was added.
    #[schemars(extend("format" = "date-time"))]
    added_at: Option<String>,
    /// When its secret was last given or removed.
    #[schemars(extend("format" = "date-time"))]
    changed_at: Option<String>,
    /// By whom.
    changed_by: Option<String>,
    #[serde(flatten)]
    key: KeyJson,
}

/// What became of a stored key.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct KeyChanged {
    /// Whose key.
    provider: String,
    /// Which.
    label: String,
    /// `stored` or `removed`.
    pub state: &'static str,
    /// Of its secret.
    version: i64,
    /// Tells its secret from others; `null`: it was removed.
    fingerprint: Option<String>,
    /// Who did it.
    by: String,
    /// When.
    #[schemars(extend("format" = "date-time"))]
    at: String,
}

impl From<StoredKey> for KeyChanged {
    fn from(key: StoredKey) -> Self {
        Self {
            state: if key.sealed.is_some() { "stored" } else { "removed" },
            fingerprint: key.fingerprint.filter(|_| key.sealed.is_some()).as_deref().map(short),
            provider: key.provider,
            label: key.label,
            version: key.version,
            by: key.changed_by,
            at: rfc3339(key.changed_ms),
        }
    }
}

/// How many secrets were encrypted anew.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Rekeyed {
    /// Secrets.
    pub rekeyed: u64,
    /// The id of the master key that opens them now.
    pub master: String,
}

/// What is enough for people.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(8).collect()
}

/// A key to be added, checked.
#[derive(Debug)]
struct Wanted {
    label: String,
    secret: Secret,
    weight: Option<u32>,
    budget: Option<String>,
}

impl Control {
    /// The keys of a provider: configured ones and stored ones, by label.
    ///
    /// # Errors
    /// 404 where no such provider is configured.
    pub async fn keys(&self, name: &str) -> Result<PageJson<KeyItem>, Problem> {
        let stored = self.store.stored_keys(Some(name)).await?;
        let rules = self.rules(name)?;
        let stored: HashMap<&str, &StoredKey> = stored.iter().map(|key| (key.label.as_str(), key)).collect();
        let keys = self.provider(name).await?.into_keys();
        let mut items: Vec<KeyItem> = keys
            .into_iter()
            .map(|(budget, key)| KeyItem::of(name, rules, budget, stored.get(key.label.as_str()).copied(), key))
            .collect();
        items.sort_by(|a, b| a.key.label.cmp(&b.key.label));
        Ok(PageJson { items, next_cursor: None })
    }

    /// Adds a key, or gives one its secret that is configured with `secret = "vault"`, or whose secret was removed.
    ///
    /// # Errors
    /// 404 for an unknown provider, 409 where there is such a key or the master key is missing, 422 names the field.
    pub async fn add_key(&self, name: &str, body: &[u8], by: &str) -> Result<KeyChanged, Problem> {
        let rules = self.rules(name)?;
        let Wanted { label, secret, weight, budget } = wanted(body)?;
        let budget = place_for(rules, &label, weight, budget)?;
        let new = NewKey { secret: &secret, weight: weight.unwrap_or(1), budget: budget.as_deref() };
        let key = self.store.add_key(self.act(name, &label, by), new).await?.map_err(refused)?;
        let mut labels = (*self.catalog.added.known()).clone();
        labels.entry(name.to_owned()).or_default().insert(label, budget);
        self.catalog.added.learn(labels);
        Ok(told(key, "a key was added"))
    }

    /// Gives a stored key another secret: calls that are under way end with the old one, none begins with it.
    ///
    /// # Errors
    /// As [`Control::add_key`].
    pub async fn rotate_key(&self, name: &str, label: &str, body: &[u8], by: &str) -> Result<KeyChanged, Problem> {
        not_configured(self.rules(name)?, label)?;
        let mut fields = object(body, &["secret"])?;
        let secret = take_secret(&mut fields)?;
        let key = self.store.rotate_key(self.act(name, label, by), &secret).await?.map_err(refused)?;
        Ok(told(key, "a key was rotated"))
    }

    /// Erases the secret of a stored key, which is used no more. Its label stays, with what was spent.
    ///
    /// # Errors
    /// As [`Control::add_key`].
    pub async fn remove_key(&self, name: &str, label: &str, by: &str) -> Result<KeyChanged, Problem> {
        not_configured(self.rules(name)?, label)?;
        let key = self.store.remove_key(self.act(name, label, by)).await?.map_err(refused)?;
        Ok(told(key, "a key was removed"))
    }

    /// Encrypts every stored secret anew with the current master key, all or none.
    ///
    /// # Errors
    /// 409 where one of the master keys that are needed is missing.
    pub async fn rekey(&self, by: &str) -> Result<Rekeyed, Problem> {
        let open_old = |id: &str, version: &SecretVersion| self.hooks.as_ref()?.secret(id, version).ok();
        let by_now = By { who: by, now_ms: self.clock.wall_ms() };
        let rekeyed = self.store.rekey(&self.masters, &open_old, by_now).await?.map_err(refused)?;
        let master = self.masters.current().map_err(|error| refused(error.into()))?.id().to_owned();
        tracing::info!(rekeyed, master, by, "all stored secrets were encrypted anew");
        Ok(Rekeyed { rekeyed, master })
    }

    fn act<'a>(&'a self, provider: &'a str, label: &'a str, by: &'a str) -> KeyAct<'a> {
        KeyAct { provider, label, by, masters: &self.masters, now_ms: self.clock.wall_ms() }
    }
}

/// Learns the labels of all stored keys, as jobs may be pinned to them.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn learn_keys(store: &Store, added: &crate::job::AddedKeys) -> Result<(), StoreError> {
    let mut labels = crate::job::StoredLabels::new();
    for key in store.stored_keys(None).await? {
        labels.entry(key.provider).or_default().insert(key.label, key.budget);
    }
    added.learn(labels);
    Ok(())
}

/// The rules with the stored keys among the configured ones.
pub(super) fn with_stored<'a>(rules: &'a ProviderRules, stored: &[StoredKey]) -> Cow<'a, ProviderRules> {
    if stored.is_empty() {
        return Cow::Borrowed(rules);
    }
    let mut all = rules.clone();
    if rules.keyless {
        // Calls are made with the stored ones then.
        all.keys.clear();
    }
    for key in stored {
        all.keys.entry(key.label.clone()).or_insert_with(|| key.budget.clone());
    }
    Cow::Owned(all)
}

impl KeyItem {
    fn of(provider: &str, rules: &ProviderRules, budget: String, stored: Option<&StoredKey>, mut key: KeyJson) -> Self {
        let source = match rules.keys.contains_key(&key.label) {
            _ if rules.keyless && stored.is_none() => "none",
            true if rules.stored.contains(&key.label) => "vault",
            true => "configuration",
            false => "store",
        };
        // A stored key of the same label is not used where the configuration has a secret.
        let stored = stored.filter(|_| source != "configuration");
        let sealed = stored.filter(|key| key.sealed.is_some());
        if source == "vault" && stored.is_none() {
            key.state = "missing".to_owned();
        } else if stored.is_some() && sealed.is_none() {
            key.state = "removed".to_owned();
        }
        Self {
            provider: provider.to_owned(),
            budget,
            source,
            fingerprint: sealed.and_then(|key| key.fingerprint.as_deref()).map(short),
            version: stored.map(|key| key.version),
            weight: stored.map(|key| key.weight),
            added_at: stored.map(|key| rfc3339(key.added_ms)),
            changed_at: stored.map(|key| rfc3339(key.changed_ms)),
            changed_by: stored.map(|key| key.changed_by.clone()),
            key,
        }
    }
}

fn told(key: StoredKey, what: &'static str) -> KeyChanged {
    tracing::info!(provider = key.provider, key = key.label, version = key.version, by = key.changed_by, what);
    key.into()
}

fn refused(refused: KeyRefused) -> Problem {
    let kind = match refused {
        KeyRefused::Missing => ProblemKind::NotFound,
        KeyRefused::Master(_) => ProblemKind::NoMasterKey,
        _ => ProblemKind::KeyConflict,
    };
    Problem::new(kind, refused.to_string())
}

/// A secret of the configuration is not changed from here.
fn not_configured(rules: &ProviderRules, label: &str) -> Result<(), Problem> {
    if !is_name(label) {
        return Err(Problem::new(ProblemKind::NotFound, "no key has a label of this form"));
    }
    if !rules.keys.contains_key(label) || rules.stored.contains(label) {
        return Ok(());
    }
    let detail = if rules.keyless {
        format!("the label {:?} stands for calls without a key: choose another one", shown(label))
    } else {
        format!("the secret of {:?} stands in the configuration: change it there, and start again", shown(label))
    };
    Err(Problem::new(ProblemKind::KeyConflict, detail))
}

/// The budget that a key of that label gets.
fn place_for(
    rules: &ProviderRules,
    label: &str,
    weight: Option<u32>,
    budget: Option<String>,
) -> Result<Option<String>, Problem> {
    not_configured(rules, label)?;
    let wrong = |field: &str, message: &str| Problem::invalid(Invalid::at(field, message));
    if rules.budgets.contains(label) {
        return Err(wrong("label", "a budget of this provider has the same name"));
    }
    if let Some(declared) = rules.keys.get(label) {
        if weight.is_some() || budget.is_some() && budget != *declared {
            return Err(wrong("label", "weight and budget of this key stand in the configuration: leave them out"));
        }
        return Ok(declared.clone());
    }
    match budget {
        Some(budget) if !rules.budgets.contains(&budget) => {
            Err(wrong("budget", "expected the name of a budget that the configuration declares for this provider"))
        }
        budget => Ok(budget),
    }
}

/// Reads a body: errors name fields, never what is in them.
fn object(body: &[u8], known: &[&str]) -> Result<Map<String, Value>, Problem> {
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        let detail = format!("expected JSON: line {} column {} is none", error.line(), error.column());
        Problem::new(ProblemKind::NotJson, detail)
    })?;
    let Value::Object(fields) = value else {
        return Err(Problem::invalid(Invalid::at("", format!("expected an object with {}", known.join(", ")))));
    };
    match fields.keys().find(|field| !known.contains(&field.as_str())) {
        Some(field) if is_name(field) => {
            let message = format!("unknown field; known: {}", known.join(", "));
            Err(Problem::invalid(Invalid::at(field, message)))
        }
        Some(_) => Err(Problem::invalid(Invalid::at("", format!("unknown field; known: {}", known.join(", "))))),
        None => Ok(fields),
    }
}

fn wanted(body: &[u8]) -> Result<Wanted, Problem> {
    let mut fields = object(body, &["label", "secret", "weight", "budget"])?;
    let wrong = |field: &str, message: String| Problem::invalid(Invalid::at(field, message));
    let name = |field: &str, value: Option<Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if is_name(&text) => Ok(Some(text)),
        Some(_) => Err(wrong(field, "expected a name of 1 to 64 of a-z 0-9 _ -".to_owned())),
    };
    let label = name("label", fields.remove("label"))?;
    let label = label.ok_or_else(|| wrong("label", "expected the label of the key, found nothing".to_owned()))?;
    let budget = name("budget", fields.remove("budget"))?;
    let weight = match fields.remove("weight") {
        None | Some(Value::Null) => None,
        Some(value) => {
            // Read from its text: 2.0 is 2.
            let text = value.to_string();
            let weight: Option<u32> = optional_whole(&mut serde_json::Deserializer::from_str(&text)).ok().flatten();
            let weight = weight.filter(|weight| (1..=WEIGHT_MAX).contains(weight));
            Some(weight.ok_or_else(|| wrong("weight", format!("expected a whole number, 1 to {WEIGHT_MAX}")))?)
        }
    };
    let secret = take_secret(&mut fields)?;
    Ok(Wanted { label, secret, weight, budget })
}

fn take_secret(fields: &mut Map<String, Value>) -> Result<Secret, Problem> {
    let secret = match fields.remove("secret") {
        Some(Value::String(text)) => Some(Secret::new(text)),
        _ => None,
    };
    let fits = |secret: &Secret| is_sendable(secret) && secret.expose().len() <= SECRET_BYTES_MAX;
    secret.filter(fits).ok_or_else(|| {
        let message = format!("expected a text of 1 to {SECRET_BYTES_MAX} visible ASCII characters");
        Problem::invalid(Invalid::at("secret", message))
    })
}

/// The body that adds a key, for the document: it is read by hand, so that no error repeats anything of it.
enum NewKeyBody {}

/// The same of one that rotates.
enum SecretBody {}

fn secret_schema() -> Value {
    serde_json::json!({
        "description": "Visible ASCII characters. Stored encrypted, and never shown again.", "type": "string", "writeOnly": true, "minLength": 1, "maxLength": SECRET_BYTES_MAX, "pattern": "^[!-~]+$",
    })
}

impl JsonSchema for NewKeyBody {
    fn schema_name() -> Cow<'static, str> {
        "NewKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let name = |about: &str, kinds: Value| serde_json::json!({ "description": about, "type": kinds, "pattern": "^[a-z0-9_-]{1,64}$" });
        let label = name("What jobs are pinned to, and logs name.", "string".into());
        let budget =
            name("A declared budget of the provider; its own unless given.", serde_json::json!(["string", "null"]));
        json_schema!({
            "type": "object",
            "required": ["label", "secret"],
            "additionalProperties": false,
            "properties": {
                "label": label,
                "secret": secret_schema(),
                "weight": { "description": "Its share where several keys could serve.", "type": ["integer", "null"], "minimum": 1, "maximum": WEIGHT_MAX },
                "budget": budget,
            },
        })
    }
}

impl JsonSchema for SecretBody {
    fn schema_name() -> Cow<'static, str> {
        "NewSecret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["secret"],
            "additionalProperties": false,
            "properties": { "secret": secret_schema() },
        })
    }
}

/// The routes of this resource.
pub(super) fn routes() -> Routes<Parts> {
    use ProblemKind::{KeyConflict, NoMasterKey, NotFound};
    let listing = Operation::for_all("listKeys", "List the keys of a provider", Scope::Read)
        .about("Configured and stored ones. Secrets are never shown.")
        .answer::<PageJson<KeyItem>>(200, "All of them, in one page, by label")
        .problems(&[NotFound]);
    let adding = Operation::for_all("addKey", "Add a key to a provider", Scope::Keys)
        .about("Its secret is stored encrypted; every dispatcher uses it within seconds.")
        .body::<NewKeyBody>()
        .sends("a key", r#"{"label": "a3", "secret": "sk-not-a-real-one", "weight": 2}"#)
        .answer::<KeyChanged>(201, "It is stored")
        .problems(&[NotFound, KeyConflict, NoMasterKey]);
    let rotating = Operation::for_all("rotateKey", "Give a stored key another secret", Scope::Keys)
        .about("Calls under way end with the old one, none begins with it.")
        .body::<SecretBody>()
        .sends("a secret", r#"{"secret": "sk-not-a-real-one"}"#)
        .answer::<KeyChanged>(200, "It is stored")
        .problems(&[NotFound, KeyConflict, NoMasterKey]);
    let removing = Operation::for_all("removeKey", "Erase the secret of a stored key", Scope::Keys)
        .about("Its label stays, with what was spent: it can be added again.")
        .optional_body::<Nothing>()
        .sends("nothing", "{}")
        .answer::<KeyChanged>(200, "It is erased")
        .problems(&[NotFound, KeyConflict]);
    let rekeying =
        Operation::for_all("rekeyVault", "Seal all stored secrets with the current master key", Scope::Admin)
            .about("Provider keys, and what endpoints were given to sign with. All or none; doing it again is safe.")
            .optional_body::<Nothing>()
            .sends("nothing", "{}")
            .answer::<Rekeyed>(200, "How many there were")
            .problems(&[NoMasterKey, KeyConflict]);
    Routes::new()
        .get("/v1/providers/{name}/keys", list, listing)
        .post("/v1/providers/{name}/keys", add, adding)
        .delete("/v1/providers/{name}/keys/{label}", remove, removing)
        .post("/v1/providers/{name}/keys/{label}/rotate", rotate, rotating)
        .post("/v1/vault/rekey", rekey, rekeying)
}

/// `GET /v1/providers/{name}/keys`
pub(super) async fn list(
    caller: Caller,
    State(control): State<Control>,
    Id(name): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<PageJson<KeyItem>>, Problem> {
    caller.may_for_all(Scope::Read)?;
    params::none(query.as_deref().unwrap_or_default())?;
    control.keys(&name).await.map(Json)
}

/// `POST /v1/providers/{name}/keys`
pub(super) async fn add(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    Id(name): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Json<KeyChanged>), Problem> {
    caller.may_for_all(Scope::Keys)?;
    params::none(query.as_deref().unwrap_or_default())?;
    let body = reader.read(body, Takes::One).await?;
    let added = control.add_key(&name, &body.bytes, caller.name()).await?;
    Ok((StatusCode::CREATED, Json(added)))
}

/// `POST /v1/providers/{name}/keys/{label}/rotate`
pub(super) async fn rotate(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    Names(name, label): Names,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<KeyChanged>, Problem> {
    caller.may_for_all(Scope::Keys)?;
    params::none(query.as_deref().unwrap_or_default())?;
    let body = reader.read(body, Takes::One).await?;
    control.rotate_key(&name, &label, &body.bytes, caller.name()).await.map(Json)
}

/// `DELETE /v1/providers/{name}/keys/{label}`
pub(super) async fn remove(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    Names(name, label): Names,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<KeyChanged>, Problem> {
    check(&caller, Scope::Keys, query, &reader, body).await?;
    control.remove_key(&name, &label, caller.name()).await.map(Json)
}

/// `POST /v1/vault/rekey`
pub(super) async fn rekey(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<Rekeyed>, Problem> {
    check(&caller, Scope::Admin, query, &reader, body).await?;
    control.rekey(caller.name()).await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> String {
        let problem = wanted(body.as_bytes()).expect_err("refused");
        let path = problem.errors.first().map(|error| error.path.clone()).unwrap_or_default();
        assert!(!problem.to_json().to_string().contains("hunter2"), "{problem}");
        path
    }

    #[test]
    fn wrong_fields_are_named_and_nothing_of_them_is_repeated() {
        let fine = wanted(br#"{"label":"a1","secret":"hunter2","weight":2.0,"budget":"org"}"#).expect("fine");
        assert_eq!((fine.secret.expose(), fine.weight, fine.budget.as_deref()), ("hunter2", Some(2), Some("org")));
        for (body, path) in [
            (r#""hunter2""#, "$"),
            (r#"["hunter2"]"#, "$"),
            (r#"{"label":"a1"}"#, "$.secret"),
            (r#"{"secret":"hunter2"}"#, "$.label"),
            (r#"{"label":"hunter2!","secret":"x"}"#, "$.label"),
            (r#"{"label":"a1","secret":["hunter2"]}"#, "$.secret"),
            (r#"{"label":"a1","secret":"hunter2 and a blank"}"#, "$.secret"),
            (r#"{"label":"a1","secret":""}"#, "$.secret"),
            (r#"{"label":"a1","secret":"x","weight":"hunter2"}"#, "$.weight"),
            (r#"{"label":"a1","secret":"x","weight":2.5}"#, "$.weight"),
            (r#"{"label":"a1","secret":"x","weight":0}"#, "$.weight"),
            (r#"{"label":"a1","secret":"x","weight":1001}"#, "$.weight"),
            (r#"{"label":"a1","secret":"x","budget":{"hunter2":1}}"#, "$.budget"),
            (r#"{"label":"a1","secret":"x","colour":"hunter2"}"#, "$.colour"),
            (r#"{"label":"a1","secret":"x","hunter2!":1}"#, "$"),
        ] {
            assert_eq!(refusal(body), path, "{body}");
        }
        let long = "x".repeat(SECRET_BYTES_MAX + 1);
        assert_eq!(refusal(&format!(r#"{{"label":"a1","secret":"{long}"}}"#)), "$.secret");
        assert_eq!(refusal(r#"{"label": hunter2}"#), "", "not JSON");
    }
}
