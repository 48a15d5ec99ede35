//! Deliveries as they are looked at, and sent again one by one.

use std::collections::HashMap;

use super::audit::{self, ActKind, By};
use super::deliveries::{NO_EVENT, test_event_id};
use super::dialect::{Db, Tx, on_db};
use super::events::kind_of;
use super::wakes::Pending;
use super::{Page, Store, StoreError, act};
use crate::clock::WallMs;
use crate::job::{EventKind, JobState};

/// Where a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryState {
    /// It is due, or will be.
    Pending,
    /// It has arrived.
    Delivered,
    /// Its schedule is spent.
    Failed,
    /// Its endpoint is disabled, or was removed: it is held back.
    Disabled,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Delivered, Self::Failed, Self::Disabled];

    /// The name in the API and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Disabled => "disabled",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// What a delivery tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence {
    /// A job ended so.
    Completion(EventKind),
    /// Somebody tried the endpoint out.
    Test,
}

/// Filters of a list of deliveries. `None` lets everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// To the endpoint of that id.
    pub endpoint: Option<String>,
    /// State.
    pub state: Option<DeliveryState>,
    /// Of the job of that id.
    pub job: Option<String>,
    /// What is told.
    pub occurrence: Option<Occurrence>,
    /// Tenant (`Some("")`: of jobs without one).
    pub tenant: Option<String>,
}

/// One attempt of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryAttempt {
    /// Number, from 1.
    pub n: u32,
    /// When it was sent.
    pub at_ms: WallMs,
    /// HTTP status, where there was one.
    pub status: Option<u16>,
    /// How long it took.
    pub latency_ms: i64,
    /// What went wrong.
    pub error: Option<String>,
}

/// A delivery as it is shown.
#[derive(Debug, Clone)]
pub struct DeliveryView {
    /// Its row, for cursors and its id.
    pub pk: i64,
    /// To the broker, not to an endpoint.
    pub is_amqp: bool,
    /// Where it is.
    pub state: DeliveryState,
    /// Id and URL of the endpoint; of none where it was removed, or there never was one.
    pub endpoint: Option<(String, String)>,
    /// The queue it answers to.
    pub reply_to: Option<String>,
    /// Id of the event.
    pub event_id: String,
    /// What it tells.
    pub occurrence: Occurrence,
    /// Whose completion it is; `None` for a test.
    pub job: Option<String>,
    /// Tenant, or empty.
    pub tenant: String,
    /// When it was made up.
    pub created_ms: WallMs,
    /// When it is due, while it is pending.
    pub due_ms: Option<WallMs>,
    /// When it was settled.
    pub finished_ms: Option<WallMs>,
    /// Oldest first.
    pub attempts: Vec<DeliveryAttempt>,
}

/// The id of the delivery in that row.
pub fn delivery_id(pk: i64) -> String {
    format!("dl_{pk}")
}

/// The row of the delivery of that id; ids of another form exist nowhere.
pub fn delivery_row(id: &str) -> Option<i64> {
    let digits = id.strip_prefix("dl_")?;
    let row = digits.parse().ok().filter(|row| *row > 0)?;
    (delivery_id(row) == id).then_some(row)
}

/// What asking to send a delivery again came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resent {
    /// It is due now, and its schedule begins anew.
    Due,
    /// It is being sent.
    Underway,
    /// Its endpoint gets nothing while it is disabled.
    Disabled,
    /// Its endpoint was removed.
    Gone,
    /// There is no such delivery.
    NotFound,
}

/// pk, kind, state, due, created, finished, reply to, event, endpoint id, endpoint URL, event id, event state, job, tenant.
type Row = (
    i64,
    String,
    String,
    WallMs,
    WallMs,
    Option<WallMs>,
    Option<String>,
    i64,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

const VIEW: &str = "SELECT d.pk, d.kind, d.state, d.due_ms, d.created_ms, d.finished_ms, d.reply_to, d.event_pk,
    n.id, n.url, e.id, e.state, j.id, COALESCE(n.tenant, j.tenant)
    FROM deliveries d LEFT JOIN events e ON e.pk = d.event_pk LEFT JOIN jobs j ON j.pk = e.job_pk
        LEFT JOIN endpoints n ON n.pk = d.endpoint_pk";

fn view(row: Row) -> Result<DeliveryView, StoreError> {
    let (pk, kind, state, due, created_ms, finished_ms, reply_to, event_pk, id, url, event, ended, job, tenant) = row;
    let corrupt = |what: &str| StoreError::Corrupt(format!("delivery {pk} {what}"));
    let state = DeliveryState::from_name(&state).ok_or_else(|| corrupt("is in no state"))?;
    let (event_id, occurrence) = match event_pk {
        NO_EVENT => (test_event_id(pk, created_ms), Occurrence::Test),
        _ => {
            let kind = ended.as_deref().and_then(JobState::from_name).and_then(kind_of);
            let kind = kind.ok_or_else(|| corrupt("has lost its event"))?;
            (event.unwrap_or_default(), Occurrence::Completion(kind))
        }
    };
    Ok(DeliveryView {
        pk,
        is_amqp: kind == "amqp",
        state,
        endpoint: id.zip(url),
        reply_to,
        event_id,
        occurrence,
        job,
        tenant: tenant.unwrap_or_default(),
        created_ms,
        due_ms: (state == DeliveryState::Pending).then_some(due),
        finished_ms,
        attempts: Vec::new(),
    })
}

/// The state of a job that ends with that event.
const fn ended_as(kind: EventKind) -> JobState {
    match kind {
        EventKind::Succeeded => JobState::Succeeded,
        EventKind::Dead => JobState::Dead,
        EventKind::Expired => JobState::Expired,
        EventKind::Cancelled => JobState::Cancelled,
    }
}

/// Conditions as SQL, and the values of their parameters from `$3` on.
fn conditions(filter: &DeliveryFilter) -> (String, Vec<String>) {
    let DeliveryFilter { endpoint, state, job, occurrence, tenant } = filter;
    let (mut sql, mut values) = (String::new(), Vec::new());
    let mut fits = |column: &str, value: Option<String>| {
        if let Some(value) = value {
            values.push(value);
            sql.push_str(&format!(" AND {column} = ${}", values.len() + 2));
        }
    };
    fits("n.id", endpoint.clone());
    fits("j.id", job.clone());
    fits("COALESCE(n.tenant, j.tenant)", tenant.clone());
    fits("d.state", state.map(|state| state.as_str().to_owned()));
    match occurrence {
        Some(Occurrence::Completion(kind)) => fits("e.state", Some(ended_as(*kind).as_str().to_owned())),
        Some(Occurrence::Test) => sql.push_str(" AND d.event_pk = 0"),
        None => {}
    }
    (sql, values)
}

async fn list(
    db: &Db,
    filter: &DeliveryFilter,
    cursor: Option<i64>,
    limit: u32,
) -> Result<Page<DeliveryView>, StoreError> {
    let (conditions, values) = conditions(filter);
    let sql = sqlx::AssertSqlSafe(format!("{VIEW} WHERE d.pk < $1{conditions} ORDER BY d.pk DESC LIMIT $2"));
    let rows: Vec<Row> = on_db!(read db, |c| {
        let mut query =
            sqlx::query_as(sql).persistent(false).bind(cursor.unwrap_or(i64::MAX)).bind(i64::from(limit));
        for value in values {
            query = query.bind(value);
        }
        query.fetch_all(c).await
    })?;
    let mut items = rows.into_iter().map(view).collect::<Result<Vec<_>, _>>()?;
    add_attempts(db, &mut items).await?;
    let full = u32::try_from(items.len()).is_ok_and(|n| n == limit);
    Ok(Page { next: items.last().filter(|_| full).map(|view| view.pk), items })
}

async fn show(db: &Db, tenant: Option<&str>, pk: i64) -> Result<Option<DeliveryView>, StoreError> {
    let sql = format!("{VIEW} WHERE d.pk = $1 AND ($2 IS NULL OR COALESCE(n.tenant, j.tenant) = $2)");
    let sql = sqlx::AssertSqlSafe(sql);
    let row: Option<Row> = on_db!(read db, |c| sqlx::query_as(sql).bind(pk).bind(tenant).fetch_optional(c).await)?;
    let Some(row) = row else { return Ok(None) };
    let mut view = view(row)?;
    add_attempts(db, std::slice::from_mut(&mut view)).await?;
    Ok(Some(view))
}

/// Delivery, n, at, status, latency, error.
type AttemptRow = (i64, i64, WallMs, Option<i64>, i64, Option<String>);

async fn add_attempts(db: &Db, views: &mut [DeliveryView]) -> Result<(), StoreError> {
    if views.is_empty() {
        return Ok(());
    }
    // A page is at most a few hundred numbers of our own: they are written into the text.
    let list = views.iter().map(|view| view.pk.to_string()).collect::<Vec<_>>().join(",");
    let sql = format!(
        "SELECT delivery_pk, n, at_ms, status, latency_ms, error FROM all_delivery_attempts
         WHERE delivery_pk IN ({list}) ORDER BY delivery_pk, n"
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let rows: Vec<AttemptRow> = on_db!(read db, |c| sqlx::query_as(sql).persistent(false).fetch_all(c).await)?;
    let mut found: HashMap<i64, Vec<DeliveryAttempt>> = HashMap::new();
    for (pk, n, at_ms, status, latency_ms, error) in rows {
        let status = status.and_then(|status| u16::try_from(status).ok());
        found.entry(pk).or_default().push(DeliveryAttempt { n: super::number(n), at_ms, status, latency_ms, error });
    }
    views.iter_mut().for_each(|view| view.attempts = found.remove(&view.pk).unwrap_or_default());
    Ok(())
}

impl Resent {
    /// What is written down where it was not done.
    const fn why_not(self) -> Option<&'static str> {
        match self {
            Self::Due | Self::NotFound => None,
            Self::Underway => Some("it was being sent"),
            Self::Disabled => Some("its endpoint was disabled"),
            Self::Gone => Some("its endpoint was removed"),
        }
    }
}

/// Makes a delivery due now, whatever became of it, and writes that down.
async fn resend(tx: &mut Tx, pk: i64, by: By<'_>, wakes: &mut Pending) -> Result<Resent, StoreError> {
    let (resent, id) = (try_resend(tx, pk, by.now_ms, wakes).await?, delivery_id(pk));
    let act = match resent.why_not() {
        _ if resent == Resent::NotFound => return Ok(resent),
        None => by.done(ActKind::DeliveryResend, &id, None),
        Some(why) => by.refused(ActKind::DeliveryResend, &id, why),
    };
    audit::write(tx, act).await?;
    Ok(resent)
}

async fn try_resend(tx: &mut Tx, pk: i64, now_ms: WallMs, wakes: &mut Pending) -> Result<Resent, StoreError> {
    let sql = format!(
        "SELECT d.kind, d.owner, (SELECT n.enabled FROM endpoints n WHERE n.pk = d.endpoint_pk)
         FROM deliveries d WHERE d.pk = $1{}",
        tx.for_update()
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let row: Option<(String, Option<String>, Option<bool>)> =
        on_db!(tx, |c| sqlx::query_as(sql).bind(pk).fetch_optional(c).await)?;
    match row {
        None => return Ok(Resent::NotFound),
        Some((_, Some(_), _)) => return Ok(Resent::Underway),
        Some((kind, None, enabled)) if kind == "webhook" => match enabled {
            None => return Ok(Resent::Gone),
            Some(false) => return Ok(Resent::Disabled),
            Some(true) => {}
        },
        Some(_) => {}
    }
    let sql = "UPDATE deliveries SET state = 'pending', due_ms = $2, finished_ms = NULL, epoch = epoch + 1,
        attempts_before = attempts WHERE pk = $1";
    on_db!(tx, |c| sqlx::query(sql).bind(pk).bind(now_ms).execute(c).await.map(drop))?;
    wakes.deliveries();
    Ok(Resent::Due)
}

impl Store {
    /// Deliveries with their attempts, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        cursor: Option<i64>,
        limit: u32,
    ) -> Result<Page<DeliveryView>, StoreError> {
        self.db().in_time(list(self.db(), filter, cursor, limit)).await
    }

    /// The delivery of that row, with its attempts.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn delivery(&self, tenant: Option<&str>, pk: i64) -> Result<Option<DeliveryView>, StoreError> {
        self.db().in_time(show(self.db(), tenant, pk)).await
    }

    /// Sends the delivery of that row again, under the same event id; an act.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn resend_delivery(&self, pk: i64, by: By<'_>) -> Result<Resent, StoreError> {
        act!(self, |tx, wakes| resend(tx, pk, by, wakes).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_deliveries_are_read_back_in_one_form_only() {
        assert_eq!(delivery_row(&delivery_id(17)), Some(17));
        for id in ["17", "dl_", "dl_0", "dl_-1", "dl_017", "dl_+17", "dl_17 ", "dl_99999999999999999999", "ep_17"] {
            assert_eq!(delivery_row(id), None, "{id}");
        }
    }
}
