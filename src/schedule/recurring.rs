//! Recurring jobs. Each time of a schedule is one job, whose id is made of both: several schedulers, and one that dies
//! before it has noted what it made, make it once.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, WallMs};
use crate::cron::Cron;
use crate::job::{Catalog, Given, Invalid, Job};
use crate::store::{Inserted, NewJob, Origin, Store, StoreError};
use crate::telemetry::{Made, ScheduleMetrics};

/// A time is missed when nobody made its job for so long.
const LATE_MS: WallMs = 60_000;
/// Times that were missed longer ago than this are not thought of.
const LOOK_BACK_MS: WallMs = 35 * 86_400_000;
/// A pass at least this often, whatever is due.
const PASS_EVERY: Duration = Duration::from_secs(5);

/// What becomes of times at which nobody was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// Nothing.
    Skip,
    /// The last one is made up for.
    RunOnce,
    /// The last ones are made up for, so many at most.
    RunAll(usize),
}

/// One schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// When.
    pub cron: Cron,
    /// Of times that were missed.
    pub missed: Missed,
    /// What: an envelope without `id`, JSON.
    pub envelope: String,
}

/// What is to be done about a schedule now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Make the jobs of these times.
    pub times: Vec<WallMs>,
    /// So many were missed, and nobody makes up for them.
    pub skipped: u64,
    /// Everything up to this time is done then.
    pub done_ms: WallMs,
}

impl Schedule {
    /// The job of a time.
    ///
    /// # Errors
    /// [`Invalid`] names the field of the envelope.
    pub fn job(&self, at_ms: WallMs, catalog: &Catalog) -> Result<Job, Invalid> {
        let id = self.id(at_ms);
        Job::parse(self.envelope.as_bytes(), &Given { id: Some(&id), ..Given::default() }, catalog)
    }

    /// The id of that job.
    pub fn id(&self, at_ms: WallMs) -> String {
        let at = jiff::Timestamp::from_millisecond(at_ms).unwrap_or_default();
        format!("{}:{}", self.name, at.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }

    /// What is to be done where everything up to `last_ms` is.
    pub fn due(&self, last_ms: WallMs, now_ms: WallMs) -> Due {
        let mut from = last_ms.max(now_ms.saturating_sub(LOOK_BACK_MS));
        let (mut late, mut times, mut skipped, mut done_ms) = (Vec::new(), Vec::new(), 0, last_ms);
        let kept = match self.missed {
            Missed::Skip => 0,
            Missed::RunOnce => 1,
            Missed::RunAll(most) => most,
        };
        while let Some(time) = self.cron.next_after(from).filter(|time| *time <= now_ms) {
            if now_ms.saturating_sub(time) < LATE_MS {
                times.push(time)
            } else {
                late.push(time)
            }
            if late.len() > 2 * kept + 1_000 {
                skipped += late.drain(..late.len() - kept).count();
            }
            (from, done_ms) = (time, time);
        }
        skipped += late.drain(..late.len().saturating_sub(kept)).count();
        late.append(&mut times);
        Due { times: late, skipped: u64::try_from(skipped).unwrap_or(u64::MAX), done_ms }
    }
}

/// Makes the jobs of all schedules.
#[derive(Debug)]
pub struct Recurring {
    store: Store,
    clock: Arc<dyn Clock>,
    schedules: Vec<Schedule>,
    catalog: Arc<Catalog>,
    metrics: ScheduleMetrics,
}

impl Recurring {
    /// Jobs are checked against that catalog.
    pub fn new(
        store: Store,
        clock: Arc<dyn Clock>,
        schedules: Vec<Schedule>,
        catalog: Arc<Catalog>,
        metrics: ScheduleMetrics,
    ) -> Self {
        Self { store, clock, schedules, catalog, metrics }
    }

    /// Passes until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        if self.schedules.is_empty() {
            return;
        }
        let mut failing = false;
        loop {
            match self.pass().await {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "recurring jobs cannot be made; trying again");
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.sleep()) => {}
            }
        }
    }

    /// Makes what is due, once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn pass(&self) -> Result<(), StoreError> {
        for schedule in &self.schedules {
            let (spec, now_ms) = (schedule.cron.to_string(), self.clock.wall_ms());
            let last_ms = self.store.schedule_cursor(&schedule.name, &spec, now_ms).await?;
            let due = schedule.due(last_ms, now_ms);
            if due.skipped > 0 {
                self.metrics.count(&schedule.name, Made::Skipped, due.skipped);
                tracing::warn!(
                    schedule = schedule.name,
                    times = due.skipped,
                    "times of a schedule were missed; nobody makes up for them"
                );
            }
            if due.done_ms > last_ms {
                self.make(schedule, &due.times, now_ms).await?;
                self.store.schedule_advance(&schedule.name, &spec, due.done_ms).await?;
            }
        }
        Ok(())
    }

    async fn make(&self, schedule: &Schedule, times: &[WallMs], now_ms: WallMs) -> Result<(), StoreError> {
        let mut jobs = Vec::with_capacity(times.len());
        for time in times {
            match schedule.job(*time, &self.catalog) {
                Ok(job) => jobs.push(NewJob { job, origin: Origin::default(), owner: None }),
                Err(error) => {
                    self.metrics.count(&schedule.name, Made::Failed, 1);
                    tracing::error!(schedule = schedule.name, %error, "a recurring job is not valid; it is left out");
                }
            }
        }
        if jobs.is_empty() {
            return Ok(());
        }
        for inserted in self.store.insert(jobs, now_ms).await? {
            let made = match inserted {
                Inserted::Created(_) => Made::Made,
                Inserted::Exists(_) => Made::Exists,
                Inserted::Conflict => {
                    tracing::error!(
                        schedule = schedule.name,
                        "another job has the id of a recurring one; it is left out"
                    );
                    Made::Failed
                }
            };
            self.metrics.count(&schedule.name, made, 1);
        }
        Ok(())
    }

    /// Until something is due.
    fn sleep(&self) -> Duration {
        let now_ms = self.clock.wall_ms();
        let next = self.schedules.iter().filter_map(|schedule| schedule.cron.next_after(now_ms)).min();
        let ahead = next.map(|next| Duration::from_millis(u64::try_from(next.saturating_sub(now_ms)).unwrap_or(0)));
        ahead.map_or(PASS_EVERY, |ahead| ahead.min(PASS_EVERY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{parse_rfc3339, rfc3339};

    fn due(missed: Missed, last: &str, now: &str) -> (Vec<String>, u64, String) {
        let cron = Cron::parse("*/10 * * * *", "UTC").expect("a line");
        let schedule = Schedule { name: "s".into(), cron, missed, envelope: String::new() };
        let ms = |text: &str| parse_rfc3339(&format!("2026-11-20T{text}:00Z")).expect(text);
        let due = schedule.due(ms(last), ms(now));
        let shown = |ms: WallMs| rfc3339(ms)[11..16].to_owned();
        (due.times.into_iter().map(shown).collect(), due.skipped, shown(due.done_ms))
    }

    #[test]
    fn times_are_made_once_each_and_missed_ones_as_it_was_said() {
        let made = |times: &[&str], skipped, done: &str| {
            (times.iter().map(|time| (*time).to_owned()).collect::<Vec<_>>(), skipped, done.to_owned())
        };
        for missed in [Missed::Skip, Missed::RunOnce, Missed::RunAll(9)] {
            assert_eq!(due(missed, "10:00", "10:09"), made(&[], 0, "10:00"));
            assert_eq!(due(missed, "10:00", "10:10"), made(&["10:10"], 0, "10:10"));
            assert_eq!(due(missed, "10:10", "10:10"), made(&[], 0, "10:10"), "done");
            assert_eq!(due(missed, "10:20", "10:10"), made(&[], 0, "10:20"), "a clock that went back");
        }
        assert_eq!(due(Missed::Skip, "10:00", "10:35"), made(&[], 3, "10:30"));
        assert_eq!(due(Missed::RunOnce, "10:00", "10:35"), made(&["10:30"], 2, "10:30"));
        assert_eq!(due(Missed::RunAll(9), "10:00", "10:35"), made(&["10:10", "10:20", "10:30"], 0, "10:30"));
        assert_eq!(due(Missed::RunAll(2), "10:00", "10:40"), made(&["10:20", "10:30", "10:40"], 1, "10:40"));
        assert_eq!(due(Missed::Skip, "10:00", "10:40"), made(&["10:40"], 3, "10:40"));
    }

    #[test]
    fn a_long_absence_costs_a_bounded_time() {
        let cron = Cron::parse("* * * * *", "Europe/Berlin").expect("a line");
        let schedule = Schedule { name: "s".into(), cron, missed: Missed::RunAll(7), envelope: String::new() };
        let now = parse_rfc3339("2026-11-20T10:00:30Z").expect("a time");
        let due = schedule.due(0, now);
        assert_eq!((due.times.len(), due.done_ms), (8, now - 30_000));
        assert!((50_000..51_000).contains(&due.skipped), "{}", due.skipped);
    }
}
