//! Stored provider keys, and the secrets that endpoints were given: rows that only a master key opens.
//!
//! Every change locks the row of the master key first: one goes after the other, and all of them
//! seal with the same one. Which that is, the store says: a process that does not hold it changes
//! nothing.

use std::collections::BTreeSet;

use super::audit::{self, Act, ActKind, By};
use super::dialect::{Db, Tx, on_db};
use super::wakes::Pending;
use super::{EndpointSecrets, SecretVersion, Store, StoreError, Subject, act, endpoints, orders};
use crate::clock::WallMs;
use crate::secrets::Secret;
use crate::vault::{MasterKey, MasterKeys, Place, Sealed, VaultError};

/// Stored keys of one provider at most, removed ones too.
pub const STORED_KEYS_MAX: usize = 10_000;

/// A stored key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// Whose.
    pub provider: String,
    /// Its label.
    pub label: String,
    /// Its share where several keys could serve.
    pub weight: u32,
    /// The declared budget that it belongs to; `None`: its own.
    pub budget: Option<String>,
    /// Rises with every secret, and with its removal.
    pub version: i64,
    /// The encrypted secret; `None`: it was removed.
    pub sealed: Option<Sealed>,
    /// Tells its secret from others; without the master key no guess can be tested by it.
    pub fingerprint: Option<String>,
    /// When the key was added.
    pub added_ms: WallMs,
    /// When its secret was last given or removed.
    pub changed_ms: WallMs,
    /// By whom.
    pub changed_by: String,
}

impl StoredKey {
    /// Decrypts the secret; `None`: it was removed.
    ///
    /// # Errors
    /// [`VaultError`] where the master key is missing or another one, or the row was changed.
    pub fn open(&self, masters: &MasterKeys) -> Result<Option<Secret>, VaultError> {
        self.sealed.as_ref().map(|sealed| sealed.open(masters, self.place())).transpose()
    }

    fn place(&self) -> Place<'_> {
        Place::Key { provider: &self.provider, label: &self.label, version: self.version }
    }
}

/// Which key somebody acts on, who, and with which master keys.
#[derive(Debug, Clone, Copy)]
pub struct KeyAct<'a> {
    /// Whose key.
    pub provider: &'a str,
    /// Which.
    pub label: &'a str,
    /// Who acts.
    pub by: &'a str,
    /// Of this process.
    pub masters: &'a MasterKeys,
    /// When.
    pub now_ms: WallMs,
}

/// A key to be added.
#[derive(Debug, Clone, Copy)]
pub struct NewKey<'a> {
    /// Its secret.
    pub secret: &'a Secret,
    /// Its share, at least 1.
    pub weight: u32,
    /// A declared budget.
    pub budget: Option<&'a str>,
}

/// A secret that an endpoint is given, and what seals it.
#[derive(Debug, Clone, Copy)]
pub struct GivenSecret<'a> {
    /// `whsec_…`
    pub secret: &'a Secret,
    /// Of this process.
    pub masters: &'a MasterKeys,
}

/// Opens a secret of the endpoint of that id that was sealed without a master key; `None`: it cannot.
pub type OpenOld<'a> = &'a (dyn Fn(&str, &SecretVersion) -> Option<Secret> + Sync);

/// The ids of the master keys that open what is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NeededMasters {
    /// Provider keys.
    pub keys: BTreeSet<String>,
    /// What signs for endpoints.
    pub endpoints: BTreeSet<String>,
}

/// Why a stored key was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// It has a secret already.
    #[error("there is a key of this label already: rotate it to give it another secret")]
    Exists,
    /// There is none, or it was removed.
    #[error("no secret is stored for this key: add one")]
    Missing,
    /// It would be counted twice.
    #[error("the key {0} has the same secret: what is sent with both would count as one at the provider")]
    SameSecret(String),
    /// It was added with another weight or budget, under which what was spent with it is kept.
    #[error("the key was removed, and had {0} before: add it with the same")]
    Changed(String),
    /// No more fit.
    #[error("{STORED_KEYS_MAX} keys of this provider are stored already")]
    TooMany,
    /// The master key is missing, or another one.
    #[error(transparent)]
    Master(#[from] VaultError),
}

type KeyResult<T> = Result<T, KeyRefused>;

/// provider, label, weight, budget, version, sealed, master, fingerprint, added, changed, by.
type Row =
    (String, String, i64, Option<String>, i64, Option<Vec<u8>>, Option<String>, Option<String>, WallMs, WallMs, String);

const COLUMNS: &str = "provider, label, weight, budget, version, sealed, master, fingerprint, added_ms, changed_ms,
    changed_by";

fn stored(row: Row) -> StoredKey {
    let (provider, label, weight, budget, version, sealed, master, fingerprint, added_ms, changed_ms, changed_by) = row;
    let sealed = sealed.zip(master).map(|(bytes, master)| Sealed { bytes, master });
    let weight = super::number(weight).max(1);
    StoredKey { provider, label, weight, budget, version, sealed, fingerprint, added_ms, changed_ms, changed_by }
}

/// The stored keys of that provider, or of all; removed ones too.
async fn list(db: &Db, provider: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM vault_keys WHERE $1 IS NULL OR provider = $1 ORDER BY provider, label");
    let sql = sqlx::AssertSqlSafe(sql);
    let rows: Vec<Row> = on_db!(read db, |c| sqlx::query_as(sql).bind(provider).fetch_all(c).await)?;
    Ok(rows.into_iter().map(stored).collect())
}

async fn list_in(tx: &mut Tx, provider: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM vault_keys WHERE $1 IS NULL OR provider = $1 ORDER BY provider, label");
    let sql = sqlx::AssertSqlSafe(sql);
    let rows: Vec<Row> = on_db!(tx, |c| sqlx::query_as(sql).bind(provider).fetch_all(c).await)?;
    Ok(rows.into_iter().map(stored).collect())
}

/// Adds a key, or gives one its secret that was removed; it is in use then.
async fn add(
    tx: &mut Tx,
    act: KeyAct<'_>,
    new: NewKey<'_>,
    wakes: &mut Pending,
) -> Result<KeyResult<StoredKey>, StoreError> {
    let changed = try_add(tx, act, new).await?;
    if changed.is_ok() {
        put_back(tx, act, wakes).await?;
    }
    settle(tx, act, ActKind::KeyAdd, changed, wakes).await
}

async fn try_add(tx: &mut Tx, act: KeyAct<'_>, new: NewKey<'_>) -> Result<KeyResult<StoredKey>, StoreError> {
    let master = match locked_master(tx, act.masters, act.now_ms).await? {
        Ok(master) => master,
        Err(refused) => return Ok(Err(refused.into())),
    };
    let keys = list_in(tx, Some(act.provider)).await?;
    let known = keys.iter().find(|key| key.label == act.label);
    if let Some(refused) = refusal(&keys, known, act, new, master) {
        return Ok(Err(refused));
    }
    let key = StoredKey {
        provider: act.provider.to_owned(),
        label: act.label.to_owned(),
        weight: new.weight,
        budget: new.budget.map(str::to_owned),
        version: known.map_or(1, |known| known.version + 1),
        sealed: None,
        fingerprint: None,
        added_ms: act.now_ms,
        changed_ms: act.now_ms,
        changed_by: act.by.to_owned(),
    };
    seal_and_put(tx, key, new.secret, master).await
}

fn refusal(
    keys: &[StoredKey],
    known: Option<&StoredKey>,
    act: KeyAct<'_>,
    new: NewKey<'_>,
    master: &MasterKey,
) -> Option<KeyRefused> {
    match known {
        Some(known) if known.sealed.is_some() => return Some(KeyRefused::Exists),
        Some(known) if known.weight != new.weight || known.budget.as_deref() != new.budget => {
            let budget = known.budget.as_ref().map(|budget| format!(" and the budget {budget}")).unwrap_or_default();
            return Some(KeyRefused::Changed(format!("the weight {}{budget}", known.weight)));
        }
        None if keys.len() >= STORED_KEYS_MAX => return Some(KeyRefused::TooMany),
        _ => {}
    }
    same_secret(keys, act, new.secret, master)
}

fn same_secret(keys: &[StoredKey], act: KeyAct<'_>, secret: &Secret, master: &MasterKey) -> Option<KeyRefused> {
    let fingerprint = master.fingerprint(act.provider, secret);
    let same = keys.iter().find(|key| key.label != act.label && key.fingerprint.as_ref() == Some(&fingerprint));
    same.map(|key| KeyRefused::SameSecret(key.label.clone()))
}

/// Gives a key another secret. Whether it is in use stays as it is.
async fn rotate(
    tx: &mut Tx,
    act: KeyAct<'_>,
    secret: &Secret,
    wakes: &mut Pending,
) -> Result<KeyResult<StoredKey>, StoreError> {
    let changed = try_rotate(tx, act, secret).await?;
    settle(tx, act, ActKind::KeyRotate, changed, wakes).await
}

async fn try_rotate(tx: &mut Tx, act: KeyAct<'_>, secret: &Secret) -> Result<KeyResult<StoredKey>, StoreError> {
    let master = match locked_master(tx, act.masters, act.now_ms).await? {
        Ok(master) => master,
        Err(refused) => return Ok(Err(refused.into())),
    };
    let keys = list_in(tx, Some(act.provider)).await?;
    let Some(known) = keys.iter().find(|key| key.label == act.label && key.sealed.is_some()) else {
        return Ok(Err(KeyRefused::Missing));
    };
    if let Some(refused) = same_secret(&keys, act, secret, master) {
        return Ok(Err(refused));
    }
    let (changed_ms, changed_by) = (act.now_ms, act.by.to_owned());
    let key = StoredKey { version: known.version + 1, changed_ms, changed_by, ..known.clone() };
    seal_and_put(tx, key, secret, master).await
}

/// Erases the secret of a key, which is out of use from then on. Its label stays, with what was spent.
async fn remove(tx: &mut Tx, act: KeyAct<'_>, wakes: &mut Pending) -> Result<KeyResult<StoredKey>, StoreError> {
    lock(tx).await?;
    let keys = list_in(tx, Some(act.provider)).await?;
    let known = keys.into_iter().find(|key| key.label == act.label && key.sealed.is_some());
    let changed = match known {
        None => Err(KeyRefused::Missing),
        Some(known) => {
            let (changed_ms, changed_by) = (act.now_ms, act.by.to_owned());
            let key = StoredKey { version: known.version + 1, sealed: None, changed_ms, changed_by, ..known };
            put(tx, &key).await?;
            Ok(key)
        }
    };
    settle(tx, act, ActKind::KeyRemove, changed, wakes).await
}

/// Encrypts every secret anew with the current master key, all or none; how many there were.
async fn rekey(
    tx: &mut Tx,
    masters: &MasterKeys,
    open_old: OpenOld<'_>,
    by: By<'_>,
) -> Result<KeyResult<u64>, StoreError> {
    let current = match masters.current() {
        Ok(current) => current,
        Err(error) => return refuse_rekey(tx, error, by).await,
    };
    let active = lock(tx).await?;
    // Everything is opened before anything is written.
    let (keys, given) = (list_in(tx, None).await?, endpoints::given(tx).await?);
    let opened: Result<Vec<_>, VaultError> =
        keys.into_iter().map(|key| key.open(masters).map(|secret| (key, secret))).collect();
    let anew = given.into_iter().map(|(pk, id, secrets)| {
        resealed(&id, secrets, masters, current, open_old).map(|(secrets, changed)| (pk, secrets, changed))
    });
    let (opened, anew) = match (opened, anew.collect::<Result<Vec<_>, VaultError>>()) {
        (Ok(opened), Ok(anew)) => (opened, anew),
        (Err(error), _) | (_, Err(error)) => return refuse_rekey(tx, error, by).await,
    };
    let mut done = 0;
    for (key, secret) in opened {
        done += u64::from(put_anew(tx, key, secret, active.as_deref(), current).await?);
    }
    for (pk, secrets, changed) in anew.iter().filter(|(_, _, changed)| *changed > 0) {
        endpoints::put_secrets(tx, *pk, secrets).await?;
        done += changed;
    }
    set_master(tx, current, by.now_ms).await?;
    let detail = format!("{done} secrets, master key {}", current.id());
    audit::write(tx, by.done(ActKind::VaultRekey, "vault", Some(&detail))).await?;
    Ok(Ok(done))
}

/// Whether the secret of that key had to be sealed anew.
async fn put_anew(
    tx: &mut Tx,
    key: StoredKey,
    secret: Option<Secret>,
    active: Option<&str>,
    current: &MasterKey,
) -> Result<bool, StoreError> {
    match secret {
        Some(secret) if key.sealed.as_ref().is_some_and(|sealed| sealed.master != current.id()) => {
            match seal_and_put(tx, key, &secret, current).await? {
                Ok(_) => Ok(true),
                Err(refused) => Err(StoreError::Corrupt(refused.to_string())),
            }
        }
        // Nobody can tell the removed secret any more.
        None if active != Some(current.id()) => {
            put(tx, &StoredKey { fingerprint: None, ..key }).await?;
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// The given secrets of an endpoint under the current master key, and how many were not. What was sealed without a master
/// key and opens no more stays as it is.
fn resealed(
    id: &str,
    mut secrets: EndpointSecrets,
    masters: &MasterKeys,
    current: &MasterKey,
    open_old: OpenOld<'_>,
) -> Result<(EndpointSecrets, u64), VaultError> {
    let mut changed = 0;
    let older = secrets.older.iter_mut().map(|older| &mut older.secret);
    for version in std::iter::once(&mut secrets.current).chain(older) {
        let place = Place::Endpoint { id, version: version.version };
        let Some(text) = &version.sealed else { continue };
        let secret = match Sealed::from_text(text) {
            Some(sealed) if sealed.master == current.id() => None,
            Some(sealed) => Some(sealed.open(masters, place)?),
            None => open_old(id, version),
        };
        if let Some(secret) = secret {
            version.sealed = Some(current.seal(place, &secret)?.to_text());
            changed += 1;
        }
    }
    Ok((secrets, changed))
}

async fn refuse_rekey(tx: &mut Tx, error: VaultError, by: By<'_>) -> Result<KeyResult<u64>, StoreError> {
    let refused = KeyRefused::from(error);
    audit::write(tx, by.refused(ActKind::VaultRekey, "vault", &refused.to_string())).await?;
    Ok(Err(refused))
}

/// Seals a secret that an endpoint is given. `None`: neither this process nor anything that is stored has a master key.
pub(super) async fn seal_for_endpoint(
    tx: &mut Tx,
    given: GivenSecret<'_>,
    id: &str,
    version: u32,
    now_ms: WallMs,
) -> Result<Result<Option<String>, VaultError>, StoreError> {
    let master = match locked_master(tx, given.masters, now_ms).await? {
        Ok(master) => master,
        Err(_) if given.masters.current().is_err() && !has_secrets(tx).await? => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error)),
    };
    let sealed = master.seal(Place::Endpoint { id, version }, given.secret);
    Ok(sealed.map(|sealed| Some(sealed.to_text())))
}

async fn needed(db: &Db) -> Result<NeededMasters, StoreError> {
    let sql = "SELECT DISTINCT master FROM vault_keys WHERE sealed IS NOT NULL AND master IS NOT NULL";
    let keys: Vec<(String,)> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    let given = endpoints::all_given(db).await?;
    let versions = given
        .iter()
        .flat_map(|secrets| std::iter::once(&secrets.current).chain(secrets.older.iter().map(|older| &older.secret)));
    let sealed = versions.filter_map(|version| Sealed::from_text(version.sealed.as_deref()?));
    Ok(NeededMasters {
        keys: keys.into_iter().map(|row| row.0).collect(),
        endpoints: sealed.map(|sealed| sealed.master).collect(),
    })
}

/// An operator's word that took the key out of use ends with its new secret.
async fn put_back(tx: &mut Tx, act: KeyAct<'_>, wakes: &mut Pending) -> Result<(), StoreError> {
    let subject = Subject::Key(act.label.to_owned());
    let given =
        orders::Given { provider: act.provider, subject: &subject, held: false, by: act.by, now_ms: act.now_ms };
    orders::give(tx, given, wakes).await.map(drop)
}

/// Writes the act down, and wakes whoever uses the key.
async fn settle(
    tx: &mut Tx,
    act: KeyAct<'_>,
    kind: ActKind,
    changed: KeyResult<StoredKey>,
    wakes: &mut Pending,
) -> Result<KeyResult<StoredKey>, StoreError> {
    let target = format!("{}/{}", act.provider, act.label);
    let detail = match &changed {
        Ok(key) => format!("version {}", key.version),
        Err(refused) => refused.to_string(),
    };
    let (done, detail) = (changed.is_ok(), Some(detail.as_str()));
    audit::write(tx, Act { who: act.by, kind, target: &target, done, detail, at_ms: act.now_ms }).await?;
    if done {
        wakes.orders(act.provider);
    }
    Ok(changed)
}

/// The master key to seal with; nobody else changes anything until the end of the transaction.
async fn locked_master<'a>(
    tx: &mut Tx,
    masters: &'a MasterKeys,
    now_ms: WallMs,
) -> Result<Result<&'a MasterKey, VaultError>, StoreError> {
    if lock(tx).await?.is_none()
        && let Ok(current) = masters.current()
    {
        let sql = "INSERT INTO vault_master (one, master, since_ms) VALUES (1, $1, $2) ON CONFLICT (one) DO NOTHING";
        on_db!(tx, |c| sqlx::query(sql).bind(current.id()).bind(now_ms).execute(c).await.map(drop))?;
    }
    // Somebody else's may have been first.
    let Some(active) = lock(tx).await? else {
        return Ok(Err(VaultError::NoMaster));
    };
    match (masters.find(&active), masters.current()) {
        // As long as there is nothing that it opens, any other will do.
        (Err(VaultError::WrongMaster { .. }), Ok(current)) if !has_secrets(tx).await? => {
            set_master(tx, current, now_ms).await?;
            Ok(Ok(current))
        }
        (found, _) => Ok(found),
    }
}

/// Whether anything is stored that a master key opens.
async fn has_secrets(tx: &mut Tx) -> Result<bool, StoreError> {
    let sql = r#"SELECT (SELECT COUNT(*) FROM vault_keys WHERE sealed IS NOT NULL)
        + (SELECT COUNT(*) FROM endpoints WHERE secrets LIKE '%"sealed":"m1.%')"#;
    let rows: Vec<(i64,)> = on_db!(tx, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    Ok(rows.first().is_some_and(|row| row.0 > 0))
}

/// The id of the active master key; where there is one, its row is locked.
async fn lock(tx: &mut Tx) -> Result<Option<String>, StoreError> {
    let sql = sqlx::AssertSqlSafe(format!("SELECT master FROM vault_master WHERE one = 1{}", tx.for_update()));
    let rows: Vec<(String,)> = on_db!(tx, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    Ok(rows.into_iter().next().map(|row| row.0))
}

async fn set_master(tx: &mut Tx, master: &MasterKey, now_ms: WallMs) -> Result<(), StoreError> {
    let sql = "INSERT INTO vault_master (one, master, since_ms) VALUES (1, $1, $2)
        ON CONFLICT (one) DO UPDATE SET master = excluded.master, since_ms = excluded.since_ms";
    on_db!(tx, |c| sqlx::query(sql).bind(master.id()).bind(now_ms).execute(c).await.map(drop))?;
    Ok(())
}

async fn seal_and_put(
    tx: &mut Tx,
    key: StoredKey,
    secret: &Secret,
    master: &MasterKey,
) -> Result<KeyResult<StoredKey>, StoreError> {
    let sealed = match master.seal(key.place(), secret) {
        Ok(sealed) => Some(sealed),
        Err(error) => return Ok(Err(error.into())),
    };
    let fingerprint = Some(master.fingerprint(&key.provider, secret));
    let key = StoredKey { sealed, fingerprint, ..key };
    put(tx, &key).await?;
    Ok(Ok(key))
}

async fn put(tx: &mut Tx, key: &StoredKey) -> Result<(), StoreError> {
    let sql = "INSERT INTO vault_keys (provider, label, weight, budget, version, sealed, master, fingerprint, added_ms,
            changed_ms, changed_by)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
        ON CONFLICT (provider, label) DO UPDATE SET version = excluded.version, sealed = excluded.sealed,
            master = excluded.master, fingerprint = excluded.fingerprint, changed_ms = excluded.changed_ms,
            changed_by = excluded.changed_by";
    on_db!(tx, |c| sqlx::query(sql)
        .bind(&key.provider)
        .bind(&key.label)
        .bind(i64::from(key.weight))
        .bind(&key.budget)
        .bind(key.version)
        .bind(key.sealed.as_ref().map(|sealed| &sealed.bytes))
        .bind(key.sealed.as_ref().map(|sealed| &sealed.master))
        .bind(&key.fingerprint)
        .bind(key.added_ms)
        .bind(key.changed_ms)
        .bind(&key.changed_by)
        .execute(c)
        .await
        .map(drop))?;
    Ok(())
}

impl Store {
    /// The stored keys of that provider, or of all, removed ones too: by provider and label.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn stored_keys(&self, provider: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
        self.db().in_time(list(self.db(), provider)).await
    }

    /// Adds a key, or gives one its secret that was removed, and wakes the dispatchers ([`Wake::Orders`](super::Wake::Orders)): it is in use
    /// then, whatever was ordered before.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether it was added is not known; asking again tells.
    pub async fn add_key(&self, act: KeyAct<'_>, new: NewKey<'_>) -> Result<Result<StoredKey, KeyRefused>, StoreError> {
        act!(self, |tx, wakes| add(tx, act, new, wakes).await)
    }

    /// Gives a stored key another secret. Whether it is in use stays as it is, and what was spent counts on.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn rotate_key(
        &self,
        act: KeyAct<'_>,
        secret: &Secret,
    ) -> Result<Result<StoredKey, KeyRefused>, StoreError> {
        act!(self, |tx, wakes| rotate(tx, act, secret, wakes).await)
    }

    /// Erases the secret of a stored key. Its label stays, with what was spent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn remove_key(&self, act: KeyAct<'_>) -> Result<Result<StoredKey, KeyRefused>, StoreError> {
        act!(self, |tx, wakes| remove(tx, act, wakes).await)
    }

    /// Encrypts every stored secret anew with the current master key, all or none; how many there were. Those of endpoints
    /// that were sealed without a master key are opened by `open_old`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn rekey(
        &self,
        masters: &MasterKeys,
        open_old: OpenOld<'_>,
        by: By<'_>,
    ) -> Result<Result<u64, KeyRefused>, StoreError> {
        act!(self, |tx, _wakes| rekey(tx, masters, open_old, by).await)
    }

    /// Which master keys what is stored needs.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn needed_masters(&self) -> Result<NeededMasters, StoreError> {
        self.db().in_time(needed(self.db())).await
    }
}
