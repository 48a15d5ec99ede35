//! The calls that were made.

use std::collections::HashMap;

use super::dialect::{Db, Rows, Tx, on_db};
use super::{Attempt, JobPk, Record, StoreError};

/// The very first attempt of a job, which stands in the job's row.
pub(super) fn first_of(record: &Record) -> Option<&Attempt> {
    record.attempt.as_ref().filter(|attempt| record.run == 1 && attempt.n == 1)
}

/// Adds the attempts of `records` that come after the first. One that is there already was written by the same record,
/// whose first answer got lost.
pub(super) async fn insert(tx: &mut Tx, records: &[&Record]) -> Result<(), StoreError> {
    let later = records.iter().filter(|record| first_of(record).is_none());
    let made: Vec<(&Record, &Attempt)> = later.filter_map(|r| Some((*r, r.attempt.as_ref()?))).collect();
    let rows = Rows::new()
        .int("job_pk", made.iter().map(|(r, _)| Some(r.pk)))
        .int("run", made.iter().map(|(r, _)| Some(i64::from(r.run))))
        .int("n", made.iter().map(|(_, a)| Some(i64::from(a.n))))
        .int("at_ms", made.iter().map(|(_, a)| Some(a.at_ms)))
        .text("key", made.iter().map(|(_, a)| Some(a.key.as_str())))
        .int("status", made.iter().map(|(_, a)| a.status.map(i64::from)))
        .text("outcome", made.iter().map(|(_, a)| Some(a.outcome.as_str())))
        .int("latency_ms", made.iter().map(|(_, a)| Some(a.latency_ms)))
        .text("error", made.iter().map(|(_, a)| a.error.as_deref()));
    let insert = "INSERT INTO attempts (job_pk, run, n, at_ms, key, status, outcome, latency_ms, error)
        SELECT job_pk, run, n, at_ms, key, status, outcome, latency_ms, error FROM v WHERE TRUE
        ON CONFLICT (job_pk, run, n) DO NOTHING";
    rows.execute(tx, insert).await?;
    Ok(())
}

type Row = (i64, i64, i64, i64, String, Option<i64>, String, i64, Option<String>);

/// Every attempt of those jobs with its run, oldest first.
pub(super) async fn of_jobs(db: &Db, pks: &[JobPk]) -> Result<HashMap<JobPk, Vec<(u32, Attempt)>>, StoreError> {
    let mut found: HashMap<JobPk, Vec<(u32, Attempt)>> = HashMap::new();
    if pks.is_empty() {
        return Ok(found);
    }
    // A page is at most a few hundred numbers of our own: they are written into the text.
    let list = pks.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let sql = format!(
        "SELECT job_pk, run, n, at_ms, key, status, outcome, latency_ms, error FROM all_attempts
         WHERE job_pk IN ({list}) ORDER BY job_pk, run, n"
    );
    let rows: Vec<Row> =
        on_db!(read db, |c| sqlx::query_as(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_all(c).await)?;
    for (job_pk, run, n, at_ms, key, status, outcome, latency_ms, error) in rows {
        let status = status.and_then(|s| u16::try_from(s).ok());
        let attempt = Attempt { n: super::number(n), at_ms, key, status, outcome, latency_ms, error };
        found.entry(job_pk).or_default().push((super::number(run), attempt));
    }
    Ok(found)
}
