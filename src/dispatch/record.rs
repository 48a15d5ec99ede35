//! Writes what became of jobs, however long the store is away.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::shell::DispatcherParts;
use crate::kill_point::{KillPoint, reached};
use crate::store::{Attempt, Next, Record, Recorded, StoreError};
use crate::supervise::Reconnect;

/// A record that the database refuses, for another reason than being away, is tried so often as it is, and so
/// often without its texts.
const REFUSALS_MAX: u32 = 3;
/// What stands in the place of texts that the database does not take.
const NOT_STORED: &str = "the database refused to store the answer, or the error, of this call";

/// Writes a record, however long the store is away: the outcome of a call is not given up. What the database
/// refuses for a lasting reason is written without what came from outside: the job ends all the same.
pub(super) async fn write(parts: &DispatcherParts, mut record: Record, waiting: &AtomicUsize) -> Recorded {
    let mut reconnect = Reconnect::new();
    let (mut refusals, mut waits) = (0, None);
    if matches!(record.next, Next::Running) {
        reached(KillPoint::BeforeStarted);
    }
    loop {
        let error = match parts.store.record(record.clone()).await {
            Ok(recorded) => {
                reached(match record.next {
                    Next::Running => KillPoint::AfterStarted,
                    _ => KillPoint::AfterRecord,
                });
                return recorded;
            }
            Err(error) => error,
        };
        let away = matches!(error, StoreError::Unavailable(_));
        refusals += u32::from(!away);
        if !away && refusals == REFUSALS_MAX {
            tracing::error!(%error, job = record.pk, "the database refuses an outcome; it is written without its texts");
            record = bare(record);
        }
        if refusals >= 2 * REFUSALS_MAX {
            tracing::error!(%error, job = record.pk, "an outcome cannot be recorded; it stays claimed until this process ends");
            return Recorded::Superseded;
        }
        let wait = reconnect.wait();
        // There may be a thousand of them: the first one is told.
        let others = waits.get_or_insert_with(|| Waits::begin(waiting)).others;
        if others == 0 {
            tracing::warn!(%error, ?wait, provider = parts.provider.name, "outcomes wait for the store");
        } else {
            tracing::debug!(%error, ?wait, job = record.pk, "an outcome waits for the store");
        }
        tokio::time::sleep(wait).await;
    }
}

/// The record without everything that came from outside.
fn bare(record: Record) -> Record {
    let told = |text: Option<String>| text.map(|_| NOT_STORED.to_owned());
    let attempt = record.attempt.map(|attempt| Attempt { error: told(attempt.error), ..attempt });
    let next = match record.next {
        Next::Finish { state, reason, error, response } => {
            let error = told(error).or_else(|| response.map(|_| NOT_STORED.to_owned()));
            Next::Finish { state, reason, error, response: None }
        }
        next @ (Next::Keep | Next::Running | Next::Wait { .. } | Next::Release) => next,
    };
    Record { attempt, next, ..record }
}

/// A record that waits for the store, counted until it does not.
struct Waits<'a> {
    waiting: &'a AtomicUsize,
    others: usize,
}

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        Self { waiting, others: waiting.fetch_add(1, Ordering::AcqRel) }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
