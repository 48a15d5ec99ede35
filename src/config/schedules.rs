//! `[[schedules]]` as they are written → recurring jobs.

use std::collections::BTreeSet;

use super::{Problems, file};
use crate::calendar;
use crate::cron::Cron;
use crate::job::{Catalog, is_name};
use crate::schedule::{Missed, Schedule};

/// Schedules at most.
const SCHEDULES_MAX: usize = 1_000;
/// Missed times that are made up for, unless something else is configured, and at most.
const MISSED_USUAL: usize = 100;
const MISSED_MAX: usize = 1_000;
/// What differs from time to time, or would never come again.
const NOT_HERE: [&str; 3] = ["id", "not_before", "deadline"];

/// All of them; their jobs are checked against `catalog` at once.
pub(super) fn build(raw: &[file::Schedule], catalog: &Catalog, problems: &mut Problems) -> Vec<Schedule> {
    if raw.len() > SCHEDULES_MAX {
        problems.add("schedules", format!("expected at most {SCHEDULES_MAX}"));
    }
    let mut names = BTreeSet::new();
    let built = raw.iter().take(SCHEDULES_MAX).filter_map(|raw| {
        let place = format!("schedules {:?}", raw.name);
        if !is_name(&raw.name) {
            problems.add(&place, "expected a name of 1 to 64 of a-z 0-9 _ -");
        }
        if !names.insert(raw.name.clone()) {
            problems.add(&place, "there are two schedules of this name: give one of them another name");
        }
        one(&place, raw, catalog, problems)
    });
    built.collect()
}

fn one(place: &str, raw: &file::Schedule, catalog: &Catalog, problems: &mut Problems) -> Option<Schedule> {
    let zone = raw.zone.as_deref().unwrap_or("UTC");
    // A zone is a mistake of its own, in a place of its own.
    let known = problems.take(&format!("{place}: zone"), calendar::zone(zone));
    let cron = known.and_then(|_| problems.take(&format!("{place}: cron"), Cron::parse(&raw.cron, zone)));
    let most = raw.missed_max.unwrap_or(MISSED_USUAL);
    if !(1..=MISSED_MAX).contains(&most) {
        problems.add(format!("{place}: missed_max"), format!("expected 1 to {MISSED_MAX}"));
    }
    let missed = match raw.missed {
        file::Missed::Skip => Missed::Skip,
        file::Missed::RunOnce => Missed::RunOnce,
        file::Missed::RunAll => Missed::RunAll(most),
    };
    if let Some(field) = NOT_HERE.iter().find(|field| raw.job.contains_key(**field)) {
        problems.add(format!("{place}: job.{field}"), "each time of a schedule has its own: leave it out");
        return None;
    }
    let envelope = problems.take(&format!("{place}: job"), serde_json::to_string(&raw.job))?;
    let schedule = Schedule { name: raw.name.clone(), cron: cron?, missed, envelope };
    problems.take(&format!("{place}: job"), schedule.job(0, catalog))?;
    Some(schedule)
}
