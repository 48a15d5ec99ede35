//! What operators did: written in the transaction of the act, so that neither is there without the other.

use super::dialect::{Db, Tx, on_db};
use super::{Page, Store, StoreError, act};
use crate::clock::WallMs;

/// Longest detail that is kept, in characters.
const DETAIL_CHARS_MAX: usize = 500;
/// Rows kept at most: beyond, the oldest go, whatever their age.
const ROWS_MAX: i64 = 100_000;

/// What can be done that somebody may ask about later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActKind {
    /// A provider is paused.
    ProviderPause,
    /// A provider goes on.
    ProviderResume,
    /// A budget that was set aside is in use again.
    BudgetResume,
    /// A key is used no more.
    KeyDisable,
    /// A key is used again.
    KeyEnable,
    /// A key was given its first secret, or one after it was removed.
    KeyAdd,
    /// A key was given another secret.
    KeyRotate,
    /// The secret of a key was erased.
    KeyRemove,
    /// All stored secrets were encrypted anew.
    VaultRekey,
    /// Dead letters were removed by filter.
    DeadPurge,
    /// A dead letter runs again.
    DeadReplay,
    /// A dead letter runs again with another request.
    DeadReplayEdited,
    /// A replay by filter was begun.
    ReplayBegin,
    /// A replay by filter was stopped.
    ReplayStop,
    /// A webhook endpoint was registered.
    EndpointRegister,
    /// An endpoint is sent to again.
    EndpointEnable,
    /// An endpoint is sent nothing more.
    EndpointDisable,
    /// An endpoint was removed.
    EndpointDelete,
    /// An endpoint was given another secret.
    EndpointRotate,
    /// An endpoint is sent a test event.
    EndpointTest,
    /// An endpoint is sent again what it missed.
    EndpointResend,
    /// A delivery is sent again.
    DeliveryResend,
    /// A queue of the broker was drained and deleted.
    QueuePrune,
}

impl ActKind {
    /// The name in the API and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProviderPause => "provider.pause",
            Self::ProviderResume => "provider.resume",
            Self::BudgetResume => "budget.resume",
            Self::KeyDisable => "key.disable",
            Self::KeyEnable => "key.enable",
            Self::KeyAdd => "key.add",
            Self::KeyRotate => "key.rotate",
            Self::KeyRemove => "key.remove",
            Self::VaultRekey => "vault.rekey",
            Self::DeadPurge => "dead_letters.purge",
            Self::DeadReplay => "dead_letter.replay",
            Self::DeadReplayEdited => "dead_letter.replay_edited",
            Self::ReplayBegin => "replay.begin",
            Self::ReplayStop => "replay.stop",
            Self::EndpointRegister => "endpoint.register",
            Self::EndpointEnable => "endpoint.enable",
            Self::EndpointDisable => "endpoint.disable",
            Self::EndpointDelete => "endpoint.delete",
            Self::EndpointRotate => "endpoint.rotate",
            Self::EndpointTest => "endpoint.test",
            Self::EndpointResend => "endpoint.resend",
            Self::DeliveryResend => "delivery.resend",
            Self::QueuePrune => "queue.prune",
        }
    }
}

/// Who acts, and when.
#[derive(Debug, Clone, Copy)]
pub struct By<'a> {
    /// As [`Act::who`].
    pub who: &'a str,
    /// Now.
    pub now_ms: WallMs,
}

impl<'a> By<'a> {
    /// What was done.
    pub(super) const fn done(self, kind: ActKind, target: &'a str, detail: Option<&'a str>) -> Act<'a> {
        Act { who: self.who, kind, target, done: true, detail, at_ms: self.now_ms }
    }

    /// What was not done, and why.
    pub(super) const fn refused(self, kind: ActKind, target: &'a str, why: &'a str) -> Act<'a> {
        Act { who: self.who, kind, target, done: false, detail: Some(why), at_ms: self.now_ms }
    }
}

/// One act, as it is written down. Nothing in it may be a secret.
#[derive(Debug, Clone, Copy)]
pub struct Act<'a> {
    /// The name of the token; `local` or `command line` where the machine itself was used.
    pub who: &'a str,
    /// What was done.
    pub kind: ActKind,
    /// What to, such as `provider/key`.
    pub target: &'a str,
    /// Whether it was.
    pub done: bool,
    /// More of it, for people.
    pub detail: Option<&'a str>,
    /// When.
    pub at_ms: WallMs,
}

/// An act, as it is read.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct ActView {
    /// Its row, for cursors.
    pub pk: i64,
    /// When.
    pub at_ms: WallMs,
    /// Who did it.
    pub who: String,
    /// [`ActKind::as_str`]
    pub act: String,
    /// What to.
    pub target: String,
    /// `done` or `refused`.
    pub outcome: String,
    /// More of it, for people.
    pub detail: Option<String>,
}

/// Writes an act down; its row.
pub(super) async fn write(tx: &mut Tx, act: Act<'_>) -> Result<i64, StoreError> {
    let sql = "INSERT INTO audit (at_ms, who, act, target, outcome, detail) VALUES ($1, $2, $3, $4, $5, $6)
        RETURNING pk";
    let rows: Vec<(i64,)> = on_db!(tx, |c| sqlx::query_as(sql)
        .bind(act.at_ms)
        .bind(act.who)
        .bind(act.kind.as_str())
        .bind(act.target)
        .bind(if act.done { "done" } else { "refused" })
        .bind(act.detail.map(kept))
        .fetch_all(c)
        .await)?;
    rows.first().map(|row| row.0).ok_or_else(|| StoreError::Corrupt("an act was not written down".to_owned()))
}

/// Says more about an act that goes on in several transactions.
pub(super) async fn amend(tx: &mut Tx, pk: i64, detail: &str) -> Result<(), StoreError> {
    let sql = "UPDATE audit SET detail = $2 WHERE pk = $1";
    on_db!(tx, |c| sqlx::query(sql).bind(pk).bind(kept(detail)).execute(c).await.map(drop))?;
    Ok(())
}

/// Acts, newest first.
async fn list(db: &Db, cursor: Option<i64>, limit: u32) -> Result<Page<ActView>, StoreError> {
    let sql = "SELECT pk, at_ms, who, act, target, outcome, detail FROM audit WHERE pk < $1 ORDER BY pk DESC LIMIT $2";
    let items: Vec<ActView> = on_db!(read db, |c| {
        sqlx::query_as(sql).bind(cursor.unwrap_or(i64::MAX)).bind(i64::from(limit)).fetch_all(c).await
    })?;
    let full = u32::try_from(items.len()).is_ok_and(|n| n == limit);
    Ok(Page { next: items.last().filter(|_| full).map(|view| view.pk), items })
}

/// Removes acts older than `before_ms`, and those beyond [`ROWS_MAX`]; at most `limit`. How many.
async fn remove(tx: &mut Tx, before_ms: WallMs, limit: u32) -> Result<u64, StoreError> {
    let sql = "DELETE FROM audit WHERE pk IN (SELECT pk FROM audit
        WHERE at_ms < $1 OR pk <= (SELECT MAX(pk) FROM audit) - $2 ORDER BY pk LIMIT $3)";
    Ok(on_db!(tx, |c| sqlx::query(sql)
        .bind(before_ms)
        .bind(ROWS_MAX)
        .bind(i64::from(limit))
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?)
}

/// What both databases can keep of it.
fn kept(detail: &str) -> String {
    detail.chars().filter(|c| *c != '\0').take(DETAIL_CHARS_MAX).collect()
}

impl Store {
    /// What operators did, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn acts(&self, cursor: Option<i64>, limit: u32) -> Result<Page<ActView>, StoreError> {
        self.db().in_time(list(self.db(), cursor, limit)).await
    }

    /// Writes down what an operator did that needs no transaction of its own here.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn write_act(&self, act: Act<'_>) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| write(tx, act).await.map(drop))
    }

    /// Removes acts older than that, and the oldest where there are too many; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn retain_acts(&self, before_ms: WallMs, limit: u32) -> Result<u64, StoreError> {
        act!(self, |tx, _wakes| remove(tx, before_ms, limit).await)
    }
}
