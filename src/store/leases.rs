//! Which dispatcher may spend the budgets of a pacing group.
//!
//! Times are the database's clock; on SQLite that is the clock of the process that asks, and all
//! of those are on one machine. A caller's time never comes in.
//!
//! Every write is one statement that commits by itself, conditional on what was read before it: a
//! dispatcher that falls silent in the middle holds no lock that its successor would wait for, and
//! a statement that was given up on and comes in late changes nothing that counts. (On SQLite, where
//! nobody else's connection can cut in, many rows are several statements in one transaction.)
//!
//! Processes that know different groups of a provider never hold any at the same time: the same
//! budget may be in two of them. A taker looks before it takes, and again after that was committed:
//! of two that take at once the later one sees the earlier one, and lets go before anything was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::dialect::{Db, Rows, on_db};
use super::wakes::Wakes;
use super::{
    DispatcherSeen, LeaseSeen, LeaseState, LeaseSurvey, LeaseTake, LeaseView, LeaseWrite, LeasesTaken, OwnerId, Store,
    StoreError, Wake,
};

/// Who asks, of which provider.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker<'a> {
    pub provider: &'a str,
    pub owner: &'a str,
}

/// What is asked for, by one that knows these groups of the provider and no others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub names: &'a [&'a str],
    pub groups: &'a [String],
}

/// A row without its state, which may be large. Whether it changed shows in these together.
#[derive(Debug, sqlx::FromRow)]
struct Seen {
    name: String,
    owner: Option<OwnerId>,
    epoch: i64,
    renewed_ms: i64,
    clean: bool,
    has_state: bool,
    expires_in_ms: i64,
}

/// The rows of a provider, by name.
async fn look(db: &Db, provider: &str) -> Result<BTreeMap<String, Seen>, StoreError> {
    let sql = format!(
        "SELECT name, owner, epoch, renewed_ms, clean, state IS NOT NULL AS has_state, expires_ms - {now} AS expires_in_ms
         FROM leases WHERE provider = $1",
        now = db.now_ms()
    );
    let sql = AssertSqlSafe(sql);
    let rows: Vec<Seen> = on_db!(read db, |c| sqlx::query_as(sql).bind(provider).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|seen| (seen.name.clone(), seen)).collect())
}

impl Seen {
    /// Who holds it, so that nobody else may take it.
    fn holder(&self, me: &str, is_dead: &impl Fn(&str) -> bool) -> Option<LeaseTake> {
        let other = self.owner.as_ref().filter(|other| *other != me && self.expires_in_ms > 0 && !is_dead(other))?;
        Some(LeaseTake::Held { owner: other.clone(), expires_in: duration(self.expires_in_ms) })
    }
}

/// Takes what is nobody's, has run out, is the asker's own, or whose owner `is_dead`; the answers are in the order
/// of the names.
async fn take(
    db: &Db,
    asker: Asker<'_>,
    asked: Asked<'_>,
    ttl: Duration,
    is_dead: impl Fn(&str) -> bool,
) -> Result<LeasesTaken, StoreError> {
    let groups: BTreeSet<&str> = asked.groups.iter().map(String::as_str).collect();
    let stranger = |rows: &BTreeMap<String, Seen>| {
        let strangers = rows.values().filter(|seen| !groups.contains(seen.name.as_str()));
        strangers.filter_map(|seen| seen.holder(asker.owner, &is_dead)).next()
    };
    let mut answers: BTreeMap<String, LeaseTake> = BTreeMap::new();
    let mut before: BTreeMap<String, Seen> = BTreeMap::new();
    // Again only when somebody else changed a row in between: then it is held, as a rule.
    let names: BTreeSet<&str> = asked.names.iter().copied().collect();
    while answers.len() < names.len() {
        let mut rows = look(db, asker.provider).await?;
        if let Some(held) = stranger(&rows) {
            if !before.is_empty() {
                give_back(db, asker, &answers, &before).await?;
            }
            return Ok(LeasesTaken { answers: vec![held; asked.names.len()], left: Vec::new() });
        }
        let (mut new, mut known) = (Vec::new(), Vec::new());
        for &name in names.iter().filter(|name| !answers.contains_key(**name)).collect::<Vec<_>>() {
            match rows.remove(name) {
                None => new.push(name),
                Some(seen) => match seen.holder(asker.owner, &is_dead) {
                    Some(held) => drop(answers.insert(name.to_owned(), held)),
                    None => known.push((name, seen)),
                },
            }
        }
        let created = create(db, asker, &new, ttl).await?.into_iter();
        answers.extend(created.map(|name| (name, LeaseTake::Taken { epoch: 1, last: None })));
        answers.extend(take_over(db, asker, &known, ttl).await?);
        before.extend(known.into_iter().map(|(name, seen)| (name.to_owned(), seen)));
    }
    let took = answers.values().any(|answer| matches!(answer, LeaseTake::Taken { .. }));
    let mut left = Vec::new();
    if took {
        let rows = look(db, asker.provider).await?;
        if let Some(held) = stranger(&rows) {
            give_back(db, asker, &answers, &before).await?;
            return Ok(LeasesTaken { answers: vec![held; asked.names.len()], left });
        }
        let strangers = rows.values().filter(|seen| !groups.contains(seen.name.as_str()) && seen.has_state);
        left = states(db, asker.provider, &strangers.map(|seen| seen.name.as_str()).collect::<Vec<_>>()).await?;
    }
    let answers = asked.names.iter().filter_map(|name| answers.get(*name).cloned()).collect();
    Ok(LeasesTaken { answers, left })
}

/// The names that were created; in the place of the others somebody else was first.
async fn create(db: &Db, asker: Asker<'_>, names: &[&str], ttl: Duration) -> Result<Vec<String>, StoreError> {
    let insert = format!(
        "INSERT INTO leases (provider, name, owner, epoch, taken_ms, renewed_ms, expires_ms)
         SELECT v.provider, v.name, v.owner, 1, {now}, {now}, {now} + v.ttl FROM v WHERE TRUE
         ON CONFLICT (provider, name) DO NOTHING RETURNING name",
        now = db.now_ms()
    );
    let rows = asker.rows(names.len()).text("name", names.iter().map(|name| Some(*name)));
    let rows = rows.int("ttl", names.iter().map(|_| Some(millis(ttl))));
    let made: Vec<(String,)> = rows.fetch_alone(db, &insert).await?;
    Ok(made.into_iter().map(|row| row.0).collect())
}

/// Those that were taken; the others are no longer as they were seen. The state stays as it is, and so does the time
/// when it was written: they are the next taker's too, should this one die before it renews.
async fn take_over(
    db: &Db,
    asker: Asker<'_>,
    seen: &[(&str, Seen)],
    ttl: Duration,
) -> Result<Vec<(String, LeaseTake)>, StoreError> {
    let update = format!(
        "UPDATE leases SET owner = v.owner, epoch = leases.epoch + 1, taken_ms = {now}, expires_ms = {now} + v.ttl,
            clean = FALSE
         FROM v WHERE leases.provider =[v.provider] AND leases.name = v.name AND leases.epoch = v.epoch
            AND leases.renewed_ms = v.renewed_ms AND leases.clean = v.clean AND leases.owner IS NOT DISTINCT FROM v.last
         RETURNING leases.name, leases.epoch, leases.state, {now} - leases.renewed_ms",
        now = db.now_ms()
    );
    let rows = asker
        .rows(seen.len())
        .text("name", seen.iter().map(|(name, _)| Some(*name)))
        .int("epoch", seen.iter().map(|(_, seen)| Some(seen.epoch)))
        .int("renewed_ms", seen.iter().map(|(_, seen)| Some(seen.renewed_ms)))
        .flag("clean", seen.iter().map(|(_, seen)| seen.clean))
        .text("last", seen.iter().map(|(_, seen)| seen.owner.as_deref()))
        .int("ttl", seen.iter().map(|_| Some(millis(ttl))));
    let taken: Vec<(String, i64, Option<String>, i64)> = rows.fetch_alone(db, &update).await?;
    let was_clean: BTreeMap<&str, bool> = seen.iter().map(|(name, seen)| (*name, seen.clean)).collect();
    let taken = taken.into_iter().map(|(name, epoch, state, age_ms)| {
        let clean = was_clean.get(name.as_str()).is_some_and(|clean| *clean);
        let last = state.map(|state| LeaseState { state, saved_ago: duration(age_ms), clean });
        (name, LeaseTake::Taken { epoch, last })
    });
    Ok(taken.collect())
}

/// Lets go of what was just taken, as it was before: nothing was sent.
async fn give_back(
    db: &Db,
    asker: Asker<'_>,
    answers: &BTreeMap<String, LeaseTake>,
    before: &BTreeMap<String, Seen>,
) -> Result<(), StoreError> {
    let taken = answers.iter().filter_map(|(name, answer)| match answer {
        LeaseTake::Taken { epoch, .. } => {
            let clean = before.get(name).is_some_and(|seen| seen.clean);
            Some((name.as_str(), *epoch, clean))
        }
        LeaseTake::Held { .. } => None,
    });
    let taken: Vec<(&str, i64, bool)> = taken.collect();
    let update = format!(
        "UPDATE leases SET owner = NULL, expires_ms = {now}, clean = v.clean
         FROM v WHERE leases.provider =[v.provider] AND leases.name = v.name AND leases.owner = v.owner
            AND leases.epoch = v.epoch RETURNING leases.name",
        now = db.now_ms()
    );
    let rows = asker
        .rows(taken.len())
        .text("name", taken.iter().map(|row| Some(row.0)))
        .int("epoch", taken.iter().map(|row| Some(row.1)))
        .flag("clean", taken.iter().map(|row| row.2));
    let _given_back: Vec<(String,)> = rows.fetch_alone(db, &update).await?;
    Ok(())
}

/// What these rows hold.
async fn states(db: &Db, provider: &str, names: &[&str]) -> Result<Vec<LeaseState>, StoreError> {
    let select = format!(
        "SELECT l.state, {now} - l.renewed_ms, l.clean FROM v
         JOIN leases l ON l.provider =[v.provider] AND l.name = v.name WHERE l.state IS NOT NULL",
        now = db.now_ms()
    );
    let rows = Rows::new().text("provider", names.iter().map(|_| Some(provider)));
    let rows = rows.text("name", names.iter().map(|name| Some(*name)));
    let found: Vec<(String, i64, bool)> = rows.fetch_alone(db, &select).await?;
    let state = |(state, age_ms, clean)| LeaseState { state, saved_ago: duration(age_ms), clean };
    Ok(found.into_iter().map(state).collect())
}

impl<'a> Asker<'a> {
    /// So many rows that begin with the asker.
    fn rows(self, count: usize) -> Rows<'a> {
        let Self { provider, owner } = self;
        let rows = Rows::new().text("provider", std::iter::repeat_n(Some(provider), count));
        rows.text("owner", std::iter::repeat_n(Some(owner), count))
    }
}

/// Prolongs leases and keeps their states; `false` at those that are somebody else's.
async fn renew(db: &Db, asker: Asker<'_>, ttl: Duration, writes: &[LeaseWrite]) -> Result<Vec<bool>, StoreError> {
    let mut left: BTreeMap<&str, &LeaseWrite> = writes.iter().map(|write| (write.name.as_str(), write)).collect();
    let mut written = BTreeSet::new();
    if db.keeps_order() {
        let all: Vec<_> = left.values().map(|write| (*write, None)).collect();
        written.extend(write_states(db, asker, ttl, &all).await?);
        left.clear();
    }
    // An earlier renewal that was given up on may still come in. It must not put its older state
    // in the place of this one: it finds that the row was written since it looked.
    while !left.is_empty() {
        let seen = look(db, asker.provider).await?;
        left.retain(|name, write| {
            seen.get(*name).is_some_and(|row| row.owner.as_deref() == Some(asker.owner) && row.epoch == write.epoch)
        });
        let last = |name: &str| seen.get(name).map(|row| row.renewed_ms);
        let all: Vec<_> = left.iter().map(|(name, write)| (*write, last(name))).collect();
        for name in write_states(db, asker, ttl, &all).await? {
            left.remove(name.as_str());
            written.insert(name);
        }
    }
    Ok(writes.iter().map(|write| written.contains(&write.name)).collect())
}

/// The names that were written; the others are somebody else's, or were written after that time.
async fn write_states(
    db: &Db,
    asker: Asker<'_>,
    ttl: Duration,
    writes: &[(&LeaseWrite, Option<i64>)],
) -> Result<Vec<String>, StoreError> {
    let update = format!(
        "UPDATE leases SET renewed_ms = {now}, expires_ms = {now} + v.ttl, clean = FALSE, state = v.state
         FROM v WHERE leases.provider =[v.provider] AND leases.name = v.name AND leases.owner = v.owner
            AND leases.epoch = v.epoch AND leases.renewed_ms = COALESCE(v.last_ms, leases.renewed_ms)
         RETURNING leases.name",
        now = db.now_ms()
    );
    let rows = asker.writes(writes.iter().map(|(write, _)| *write));
    let rows = rows.int("last_ms", writes.iter().map(|(_, last_ms)| *last_ms));
    let rows = rows.int("ttl", writes.iter().map(|_| Some(millis(ttl))));
    let written: Vec<(String,)> = rows.fetch_alone(db, &update).await?;
    Ok(written.into_iter().map(|row| row.0).collect())
}

impl<'a> Asker<'a> {
    fn writes(self, writes: impl ExactSizeIterator<Item = &'a LeaseWrite> + Clone) -> Rows<'a> {
        self.rows(writes.len())
            .text("name", writes.clone().map(|write| Some(write.name.as_str())))
            .int("epoch", writes.clone().map(|write| Some(write.epoch)))
            .text("state", writes.map(|write| Some(write.state.as_str())))
    }
}

/// Lets go of leases with their states complete, and wakes whoever waits for them; `false` at those that are somebody
/// else's, or nobody's.
async fn release(db: &Db, wakes: &Wakes, asker: Asker<'_>, writes: &[LeaseWrite]) -> Result<Vec<bool>, StoreError> {
    let update = format!(
        "UPDATE leases SET owner = NULL, renewed_ms = {now}, expires_ms = {now}, clean = TRUE, state = v.state
         FROM v WHERE leases.provider =[v.provider] AND leases.name = v.name AND leases.owner = v.owner
            AND leases.epoch = v.epoch
         RETURNING leases.name",
        now = db.now_ms()
    );
    let mut rows = asker.writes(writes.iter());
    let message = wakes.lease_message(asker.provider);
    let released: Vec<(String,)> = match db {
        Db::Postgres(_) => {
            // Both in one statement: they are committed together. The same message is sent once.
            rows = rows.text("message", writes.iter().map(|_| Some(message.as_str())));
            let notify = format!(
                ", r AS ({update}, v.message)
                 SELECT name || COALESCE(CAST(pg_notify('paceline', message) AS TEXT), '') FROM r"
            );
            rows.fetch_alone(db, &notify).await?
        }
        Db::Sqlite { .. } => rows.fetch_alone(db, &update).await?,
    };
    if !released.is_empty() {
        wakes.send(Wake::Lease(asker.provider.to_owned()));
    }
    let released: BTreeSet<String> = released.into_iter().map(|row| row.0).collect();
    Ok(writes.iter().map(|write| released.contains(&write.name)).collect())
}

/// Says that the asker dispatches the provider with these groups, and wakes the others: they may give some away.
async fn announce(db: &Db, wakes: &Wakes, asker: Asker<'_>, structure: &str) -> Result<(), StoreError> {
    // Where that is known already, nobody is woken: two that announce themselves again and again would keep each
    // other awake.
    let insert = "INSERT INTO dispatchers (provider, owner, structure) VALUES ($1, $2, $3)
        ON CONFLICT (provider, owner) DO UPDATE SET structure = excluded.structure
        WHERE dispatchers.structure <> excluded.structure";
    let Asker { provider, owner } = asker;
    let news = match db {
        Db::Postgres(pool) => {
            let sql = format!("WITH r AS ({insert} RETURNING 1) SELECT pg_notify('paceline', $4) FROM r");
            let query = sqlx::query(AssertSqlSafe(sql)).bind(provider).bind(owner).bind(structure);
            query.bind(wakes.lease_message(provider)).execute(pool).await?.rows_affected()
        }
        Db::Sqlite { write, .. } => {
            let query = sqlx::query(insert).bind(provider).bind(owner).bind(structure);
            query.execute(write).await?.rows_affected()
        }
    };
    if news > 0 {
        wakes.send(Wake::Lease(provider.to_owned()));
    }
    Ok(())
}

/// Says that the asker takes nothing of the provider any more.
async fn withdraw(db: &Db, asker: Asker<'_>) -> Result<(), StoreError> {
    let sql = "DELETE FROM dispatchers WHERE provider = $1 AND owner = $2";
    let Asker { provider, owner } = asker;
    on_db!(write db, |c| sqlx::query(sql).bind(provider).bind(owner).execute(c).await.map(drop))?;
    Ok(())
}

/// Who holds what of a provider, and who dispatches it with a heartbeat no older than `fresh`.
async fn survey(
    db: &Db,
    provider: &str,
    fresh: Duration,
    is_dead: impl Fn(&str) -> bool,
) -> Result<LeaseSurvey, StoreError> {
    let sql = format!(
        "SELECT d.owner, d.structure FROM dispatchers d JOIN owners o ON o.id = d.owner
         WHERE d.provider = $1 AND o.seen_ms >= {now} - $2 ORDER BY d.owner",
        now = db.now_ms()
    );
    let sql = AssertSqlSafe(sql);
    let fresh_ms = millis(fresh);
    let alive: Vec<(OwnerId, String)> =
        on_db!(read db, |c| sqlx::query_as(sql).bind(provider).bind(fresh_ms).fetch_all(c).await)?;
    let rows = look(db, provider).await?;
    let lease = |seen: Seen| {
        let gone = seen.owner.as_deref().is_none_or(&is_dead);
        let expires_in = if gone { Duration::ZERO } else { duration(seen.expires_in_ms) };
        LeaseSeen { name: seen.name, owner: seen.owner, expires_in }
    };
    let dispatcher = |(owner, structure)| DispatcherSeen { owner, structure };
    Ok(LeaseSurvey {
        leases: rows.into_values().map(lease).collect(),
        dispatchers: alive.into_iter().filter(|(owner, _)| !is_dead(owner)).map(dispatcher).collect(),
    })
}

/// All of them, by provider and name.
async fn list(db: &Db) -> Result<Vec<LeaseView>, StoreError> {
    let sql = format!(
        "SELECT provider, name, owner, epoch, expires_ms - {now}, clean FROM leases ORDER BY provider, name",
        now = db.now_ms()
    );
    let sql = AssertSqlSafe(sql);
    type Row = (String, String, Option<OwnerId>, i64, i64, bool);
    let rows: Vec<Row> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    let view = |(provider, name, owner, epoch, expires_in_ms, clean)| LeaseView {
        provider,
        name,
        owner,
        epoch,
        expires_in: duration(expires_in_ms),
        clean,
    };
    Ok(rows.into_iter().map(view).collect())
}

/// Never negative: a clock can be set back.
fn duration(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// Of a time to live; one without end ends in a century, and no sum with a clock overflows.
fn millis(ttl: Duration) -> i64 {
    const CENTURY_MS: i64 = 100 * 366 * 86_400_000;
    i64::try_from(ttl.as_millis()).map_or(CENTURY_MS, |ms| ms.min(CENTURY_MS))
}

impl Store {
    /// Takes leases of pacing groups that are nobody's, have run out, or are the owner's already. On an
    /// exclusive store nobody but this process can live: leases of others are taken at once.
    ///
    /// `groups` are all that the owner knows of the provider. While somebody holds another one of it,
    /// nothing is taken: its configuration is another one, and both may have the same budgets.
    ///
    /// The owner may spend nothing before its first renewal has said how much: if it dies before,
    /// its successor knows only what was written by then.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: what was taken is not known. Asking again is safe.
    pub async fn leases_take(
        &self,
        provider: &str,
        names: &[&str],
        groups: &[String],
        owner: &OwnerId,
        ttl: Duration,
    ) -> Result<LeasesTaken, StoreError> {
        self.inner.wakes.interested_in(provider);
        let (asker, asked) = (Asker { provider, owner }, Asked { names, groups });
        let work = async {
            if self.inner.lock.is_some() {
                Box::pin(self.introduce(owner)).await?;
            }
            take(self.db(), asker, asked, ttl, |other| self.is_surely_dead(other)).await
        };
        self.db().in_lease_time(work).await
    }

    /// Prolongs leases, and writes what was spent and will be until the next time. The answers are in the order of the
    /// writes; `false`: somebody else has it, and nothing was changed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether any was prolonged is not known; the owner must count on
    /// the time that it had before. Doing it again is safe: what comes in late changes nothing.
    pub async fn leases_renew(
        &self,
        provider: &str,
        owner: &OwnerId,
        ttl: Duration,
        writes: &[LeaseWrite],
    ) -> Result<Vec<bool>, StoreError> {
        let asker = Asker { provider, owner };
        self.db().in_lease_time(renew(self.db(), asker, ttl, writes)).await
    }

    /// Lets go of leases, with all that was spent; whoever waits for them is woken ([`Wake::Lease`]). Nothing
    /// may be spent from the moment of asking on. The answers are in the order of the writes; `false`: it is not the
    /// owner's (any more), and nothing was changed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether any was let go of is not known. Doing it again is safe.
    pub async fn leases_release(
        &self,
        provider: &str,
        owner: &OwnerId,
        writes: &[LeaseWrite],
    ) -> Result<Vec<bool>, StoreError> {
        let asker = Asker { provider, owner };
        self.db().in_lease_time(release(self.db(), &self.inner.wakes, asker, writes)).await
    }

    /// Who holds what of a provider, and who dispatches it with a heartbeat no older than `fresh`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn lease_survey(&self, provider: &str, fresh: Duration) -> Result<LeaseSurvey, StoreError> {
        self.inner.wakes.interested_in(provider);
        let survey = survey(self.db(), provider, fresh, |other| self.is_surely_dead(other));
        self.db().in_lease_time(survey).await
    }

    /// Says that the owner dispatches a provider, whose pacing groups `structure` stands for: it wants its share of them.
    /// The other dispatchers are woken ([`Wake::Lease`]). Good until it retires, or is rescued.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn announce_dispatcher(
        &self,
        provider: &str,
        owner: &OwnerId,
        structure: &str,
    ) -> Result<(), StoreError> {
        let asker = Asker { provider, owner };
        let work = async {
            Box::pin(self.introduce(owner)).await?;
            announce(self.db(), &self.inner.wakes, asker, structure).await
        };
        self.db().in_lease_time(work).await
    }

    /// Says that the owner takes no lease of a provider any more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn withdraw_dispatcher(&self, provider: &str, owner: &OwnerId) -> Result<(), StoreError> {
        let asker = Asker { provider, owner };
        self.db().in_lease_time(withdraw(self.db(), asker)).await
    }

    /// On an exclusive store nobody lives but the owners of this process.
    fn is_surely_dead(&self, owner: &str) -> bool {
        self.inner.lock.is_some() && !self.known_owners().contains(owner)
    }

    /// Every lease there ever was, by provider and name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn leases(&self) -> Result<Vec<LeaseView>, StoreError> {
        self.db().in_lease_time(list(self.db())).await
    }
}
