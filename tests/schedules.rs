//! Recurring jobs on both databases: each time of a schedule is one job, whoever looks, however often, and wherever one of
//! them dies.

#[path = "common/store.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use common::{Fixture, contract};
use paceline::clock::{Clock, WallMs, parse_rfc3339};
use paceline::config::Config;
use paceline::pace::Time;
use paceline::schedule::Recurring;
use paceline::store::Store;
use paceline::telemetry::ScheduleMetrics;
use prometheus_client::registry::Registry;

contract! {
    each_time_is_one_job_whoever_looks_and_whoever_dies
    what_was_missed_is_made_up_for_as_it_was_said
    another_cron_line_begins_when_it_is_first_seen
}

/// Set by hand.
#[derive(Debug)]
struct Hands(AtomicI64);

impl Hands {
    fn at(time: &str) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(parse_rfc3339(time).expect(time))))
    }

    fn set(&self, time: &str) {
        self.0.store(parse_rfc3339(time).expect(time), Ordering::SeqCst);
    }

    fn step(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn wall_ms(&self) -> WallMs {
        self.0.load(Ordering::SeqCst)
    }

    fn mono(&self) -> Time {
        Time::ZERO
    }
}

fn scheduler(store: &Store, clock: &Arc<Hands>, schedules: &str, metrics: &ScheduleMetrics) -> Recurring {
    let text = format!("[[provider]]\nname = \"geo\"\nbase_url = \"http://x\"\n{schedules}");
    let config = Config::parse(&text, None, &[]).expect("valid");
    let (catalog, clock) = (Arc::new(config.catalog()), Arc::clone(clock) as Arc<dyn Clock>);
    Recurring::new(store.clone(), clock, config.schedules, catalog, metrics.clone())
}

fn schedule(cron: &str, more: &str) -> String {
    format!(
        "[[schedules]]\nname = \"tidy\"\ncron = \"{cron}\"\nzone = \"Europe/Berlin\"\n{more}\n\
         job = {{ provider = \"geo\", tenant = \"acme\", request = {{ method = \"POST\", path = \"/tidy\", body = {{ n = 1 }} }} }}\n"
    )
}

async fn ids(fixture: &Fixture) -> Vec<String> {
    fixture.texts("SELECT id FROM jobs ORDER BY id").await
}

fn metrics_text(metrics: &ScheduleMetrics) -> String {
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("written");
    text
}

/// Berlin puts its clock back in this night: 02:00 to 03:00 is there twice.
async fn each_time_is_one_job_whoever_looks_and_whoever_dies(fixture: Fixture) {
    let clock = Hands::at("2026-10-24T22:55:00Z");
    let metrics = ScheduleMetrics::default();
    let schedules = schedule("*/20 * * * *", "");
    let stores = [fixture.store.clone(), fixture.another().await, fixture.another().await];
    let all: Vec<Recurring> = stores.iter().map(|store| scheduler(store, &clock, &schedules, &metrics)).collect();
    all[0].pass().await.expect("it is seen");
    for step in 0..60_u64 {
        // Each is cut off somewhere in the middle, as if it had died there; the next one finds what it left.
        let cut = |n: u64| Duration::from_micros(200 + (step * 7_919 + n * 3_571) % 6_000);
        let passes = all.iter().zip(0..).map(|(one, n)| tokio::time::timeout(cut(n), one.pass()));
        futures_util::future::join_all(passes).await;
        if step % 4 == 3 {
            futures_util::future::try_join_all(all.iter().map(Recurring::pass)).await.expect("a pass");
        }
        clock.step(4 * 60_000);
    }
    all[0].pass().await.expect("a pass");
    // 23:00 to 02:55: 00:00Z and 00:20Z and 00:40Z are the first 02:00 to 02:40; the second ones are none.
    let hours = ["2026-10-24T23", "2026-10-25T00", "2026-10-25T02"];
    let expected: Vec<String> =
        hours.iter().flat_map(|hour| ["00", "20", "40"].map(|minute| format!("tidy:{hour}:{minute}:00Z"))).collect();
    assert_eq!(ids(&fixture).await, expected);
    let job = fixture.store.job(Some("acme"), &expected[0]).await.expect("the store").expect("a job");
    assert_eq!((job.job.request.method.as_str(), job.job.request.path.as_str()), ("POST", "/tidy"));
}

async fn what_was_missed_is_made_up_for_as_it_was_said(fixture: Fixture) {
    for (name, missed, expected) in [
        ("skip", "missed = \"skip\"", &[][..]),
        ("once", "missed = \"run_once\"", &["05:00"]),
        ("some", "missed = \"run_all\"\nmissed_max = 2", &["04:00", "05:00"]),
        ("all", "missed = \"run_all\"", &["02:00", "03:00", "04:00", "05:00"]),
    ] {
        let clock = Hands::at("2026-11-20T01:30:00Z");
        let metrics = ScheduleMetrics::default();
        let text = schedule("0 * * * *", missed).replace("tidy\"", &format!("{name}\""));
        let one = scheduler(&fixture.store, &clock, &text, &metrics);
        one.pass().await.expect("a pass");
        clock.set("2026-11-20T05:30:00Z");
        one.pass().await.expect("a pass");
        one.pass().await.expect("a pass");
        let ids = ids(&fixture).await;
        let prefix = format!("{name}:");
        let made: Vec<&str> = ids.iter().filter_map(|id| id.strip_prefix(&prefix)).map(|id| &id[11..16]).collect();
        assert_eq!(made, expected, "{name}");
        let text = metrics_text(&metrics);
        for (outcome, count) in [("made", expected.len()), ("skipped", 4 - expected.len())] {
            let line = format!("paceline_scheduled_jobs_total{{schedule=\"{name}\",outcome=\"{outcome}\"}} {count}");
            assert!(count == 0 || text.contains(&line), "{line}: {text}");
        }
    }
}

async fn another_cron_line_begins_when_it_is_first_seen(fixture: Fixture) {
    let clock = Hands::at("2026-11-20T01:30:00Z");
    let metrics = ScheduleMetrics::default();
    let (hourly, often) =
        (schedule("0 * * * *", "missed = \"run_all\""), schedule("*/5 * * * *", "missed = \"run_all\""));
    let hourly = scheduler(&fixture.store, &clock, &hourly, &metrics);
    let often = scheduler(&fixture.store, &clock, &often, &metrics);
    hourly.pass().await.expect("a pass");
    clock.set("2026-11-20T02:00:30Z");
    hourly.pass().await.expect("a pass");
    often.pass().await.expect("a pass");
    assert_eq!(ids(&fixture).await, ["tidy:2026-11-20T02:00:00Z"], "none of the times before it was seen");
    clock.set("2026-11-20T02:05:10Z");
    often.pass().await.expect("a pass");
    assert_eq!(ids(&fixture).await.len(), 2);
    // And back again: what lies between was never asked for.
    clock.set("2026-11-20T04:59:00Z");
    hourly.pass().await.expect("a pass");
    assert_eq!(fixture.number("SELECT COUNT(*) FROM schedules").await, 1, "the other one is forgotten");
}
