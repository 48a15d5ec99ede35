//! `kill -9` at each named point of the flow, in both modes: what the table in docs/guarantees.md says
//! of the point is what happens, and all that is promised holds.
#![cfg(debug_assertions)]

mod common;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use common::audit::{self, Case, Expected, Fault, now_ms};
use common::broker::Broker;
use common::world::{Mode, SECRET, World, checkout, in_world};
use common::{holds, until};
use futures_util::StreamExt as _;
use paceline::kill_point::{KillPoint, VARIABLE};
use paceline::sim::{
    ProviderHandle, ProviderOptions, ProviderSim, ReceiverHandle, ReceiverOptions, ReceiverSim, SimKey,
};
use serde_json::{Value, json};

const KEY: &str = "kill-point-key-01234";
const JOBS: usize = 6;
/// Cases at once for each processor: they mostly wait for leases and rescues.
const AT_ONCE: usize = 4;
const DIES_WITHIN: Duration = Duration::from_secs(90);
const DRAINS_WITHIN: Duration = Duration::from_secs(90);

/// What becomes of the job that the process had in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InHand {
    /// It was not sent, or its outcome is known: it is executed once.
    Once,
    /// It was executed and nobody knows: it is executed again.
    Again,
    /// The point has nothing to do with calls; the one that was open then is made again.
    MaybeAgain,
    /// It is dead, `outcome_unknown`.
    Dead { executed: bool },
}

#[derive(Clone, Copy, Debug)]
struct Step {
    point: KillPoint,
    at_most_once: bool,
    in_hand: InHand,
}

fn steps(mode: Mode) -> Vec<Step> {
    use KillPoint as P;
    let step = |point, at_most_once, in_hand| Step { point, at_most_once, in_hand };
    let mut steps = Vec::new();
    for point in P::ALL {
        steps.extend(match point {
            P::BeforeLetIn
            | P::AfterLetIn
            | P::AfterAck
            | P::BeforePublish
            | P::AfterPublish
            | P::AfterPublishRecord
                if mode == Mode::Embedded =>
            {
                vec![]
            }
            P::BeforeLetIn | P::AfterLetIn | P::AfterLeaseTaken | P::BeforeHandOver | P::AfterHandOver => {
                vec![step(point, false, InHand::Once)]
            }
            P::BeforeStarted => vec![step(point, true, InHand::Once)],
            P::AfterStarted => vec![step(point, true, InHand::Dead { executed: false })],
            P::BeforeSend => {
                vec![step(point, false, InHand::Once), step(point, true, InHand::Dead { executed: false })]
            }
            P::AfterFirstByte | P::AfterAnswer => {
                vec![step(point, false, InHand::Again), step(point, true, InHand::Dead { executed: true })]
            }
            P::AfterRecord => vec![step(point, false, InHand::Once), step(point, true, InHand::Once)],
            P::BeforeAccept
            | P::AfterAccept
            | P::AfterAck
            | P::AfterClaim
            | P::BeforeRenewal
            | P::AfterRenewal
            | P::AfterDeliveryClaim
            | P::BeforeWebhook
            | P::AfterWebhook
            | P::AfterWebhookRecord
            | P::BeforePublish
            | P::AfterPublish
            | P::AfterPublishRecord => vec![step(point, false, InHand::MaybeAgain)],
        });
    }
    steps
}

/// How often the point is passed before: so that there is a before.
fn time(point: KillPoint) -> u32 {
    use KillPoint as P;
    match point {
        P::BeforeAccept | P::AfterAccept | P::BeforeWebhook | P::AfterWebhook | P::AfterWebhookRecord => 3,
        P::BeforeStarted | P::AfterStarted | P::BeforeSend | P::AfterFirstByte | P::AfterAnswer | P::AfterRecord => 3,
        P::AfterDeliveryClaim | P::BeforeRenewal | P::AfterRenewal => 2,
        P::BeforePublish | P::AfterPublish | P::AfterPublishRecord => 2,
        _ => 1,
    }
}

fn is_over_http(mode: Mode, point: KillPoint) -> bool {
    let http = matches!(point, KillPoint::BeforeAccept | KillPoint::AfterAccept | KillPoint::AfterClaim);
    mode == Mode::Embedded || http
}

async fn killed_everywhere(mode: Mode) {
    let cases = futures_util::stream::iter(steps(mode)).map(|step| async move {
        let mut said = String::new();
        in_world(mode, async |world| said = killed_at(world, step).await).await;
        said
    });
    let at_once = AT_ONCE * std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failures: Vec<String> =
        cases.buffer_unordered(at_once).filter(|said| std::future::ready(!said.is_empty())).collect().await;
    assert!(failures.is_empty(), "{} points:\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_point_embedded() {
    killed_everywhere(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_point_with_rabbitmq_and_postgresql() {
    killed_everywhere(Mode::Scaled).await;
}

/// What went otherwise than expected; nothing, if nothing did.
async fn killed_at(world: &World, step: Step) -> String {
    let provider_began_ms = now_ms();
    let (provider, receiver) = surroundings(world).await;
    world.prepare().await;
    let (jobs, expected) = jobs(world, step, &receiver);
    world.set(VARIABLE, &format!("{}:{}", step.point.as_str(), time(step.point)));
    let mut serve = world.serve();
    world.set(VARIABLE, "");
    let dies = async {
        if matches!(step.point, KillPoint::BeforeHandOver | KillPoint::AfterHandOver) {
            provider.wait_accepted(3, DIES_WITHIN).await.expect("calls");
            serve.terminate();
        }
        let status = serve.ended(DIES_WITHIN).await;
        let at_ms = now_ms();
        (status, at_ms, world.serve_as("again", &[]))
    };
    let ((status, at_ms, again), ()) = tokio::join!(dies, hand_in(world, step.point, &jobs));
    if status.signal() != Some(9) {
        return format!("{step:?}: it did not die there: {status}\n{}", serve.log());
    }
    let faults = [Fault { at_ms, what: format!("killed at {step:?}"), loses_calls: true, until_ms: at_ms }];
    let drained = tokio::time::timeout(DRAINS_WITHIN, drained(world)).await;
    let case = Case {
        world,
        provider: &provider,
        provider_began_ms,
        receiver: &receiver,
        subscribers: &[],
        published: None,
        replies: &[],
        expected: &expected,
        faults: &faults,
    };
    let mut findings = audit::audit(&case).await;
    findings.extend(of_step(world, step, &provider, &receiver).await);
    if drained.is_err() {
        findings.push(finding("it is not done in time".to_owned()));
    }
    if findings.is_empty() {
        again.stop().await;
        findings.extend(audit::at_the_end(world).await);
    }
    match findings.is_empty() {
        true => String::new(),
        false => format!("{step:?}\n{}", audit::tell(&case, &findings).await),
    }
}

/// Waits until every job has ended, every event is delivered, and the dead process is forgotten.
async fn drained(world: &World) {
    // Its dispatcher, its notifier and, where there is a broker, its publisher.
    let owners = if world.mode == Mode::Embedded { 2 } else { 3 };
    until("all is done", 2 * DRAINS_WITHIN, async || {
        for (sql, wanted) in [
            ("SELECT COUNT(*) FROM jobs WHERE state NOT IN ('queued', 'waiting', 'running')", JOBS..=JOBS),
            ("SELECT COUNT(*) FROM deliveries WHERE state = 'pending'", 0..=0),
            ("SELECT COUNT(*) FROM owners", 0..=owners),
        ] {
            let found = world.try_rows::<(i64,)>(sql).await.ok()?.first()?.0;
            holds(wanted.contains(&usize::try_from(found).ok()?))?;
        }
        Some(())
    })
    .await;
}

fn finding(what: String) -> audit::Finding {
    audit::Finding { job: String::new(), what }
}

async fn surroundings(world: &World) -> (ProviderHandle, ReceiverHandle) {
    let options = ProviderOptions {
        keys: vec![SimKey::new("a1", KEY)],
        rules: ["key concurrency 1", "key requests 1/500ms sliding_log"]
            .map(|rule| rule.parse().expect("a rule"))
            .into(),
        ..ProviderOptions::default()
    };
    let provider = ProviderSim::start(options).await.expect("a provider");
    let options = ReceiverOptions { secrets: vec![SECRET.to_owned()], ..ReceiverOptions::default() };
    let receiver = ReceiverSim::start(options).await.expect("a receiver");
    // One call at a time, and the last one recorded before the next, so that it is known which one was in hand.
    let more = "key_limits = [ { concurrency = 1 }, { requests = 1, per = \"500ms\", algorithm = \"sliding_window\" } ]\ntimeout = \"2s\"";
    world.provider(&provider.base_url(), &[("a1", KEY)], more);
    (provider, receiver)
}

fn jobs(world: &World, step: Step, receiver: &ReceiverHandle) -> (Vec<Value>, Vec<Expected>) {
    let delivery = if step.at_most_once { "at_most_once" } else { "at_least_once" };
    let job = |n: usize| {
        let id = format!("k{n}");
        let body = json!({
            "id": id, "provider": world.provider, "delivery": delivery,
            "request": { "method": "POST", "path": "/slow/80" }, "callback": { "url": receiver.hook("") },
        });
        (body, Expected { id, at_most_once: step.at_most_once, hook: true, ..Expected::default() })
    };
    (0..JOBS).map(job).unzip()
}

/// Hands every job in until it is confirmed, in the way that leads over the point.
async fn hand_in(world: &World, point: KillPoint, jobs: &[Value]) {
    if !is_over_http(world.mode, point) {
        let broker = Broker::connect().await;
        let message = |job: &Value| (job["id"].as_str().expect("an id").to_owned(), job.to_string().into_bytes());
        broker.publish_all(&world.provider, jobs.iter().map(message)).await;
        return broker.close().await;
    }
    let api = world.api_within(Duration::from_secs(5));
    for job in jobs {
        until("it is accepted", DIES_WITHIN, async || {
            let (status, answer) = api.try_post("/v1/jobs", job).await?;
            assert!(matches!(status, 200 | 202 | 503), "{status} {answer}");
            holds(status != 503)
        })
        .await;
    }
}

/// What the table says of the point.
async fn of_step(
    world: &World,
    step: Step,
    provider: &ProviderHandle,
    receiver: &ReceiverHandle,
) -> Vec<audit::Finding> {
    let dead = world.number("SELECT COUNT(*) FROM jobs WHERE state = 'dead' AND reason = 'outcome_unknown'").await;
    let succeeded = world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await;
    let (once, twice, more) =
        (provider.executions(1).len(), provider.executions(2).len(), provider.executions(3).len());
    let all = i64::try_from(JOBS).expect("few");
    // On a slow machine another call may be under way, and another record: they may be made again, or be dead, too.
    // Whether each of them was open when the process died, the audit knows.
    let others = if step.at_most_once { 0 } else { 2 };
    let fits = match step.in_hand {
        InHand::MaybeAgain => once == JOBS && dead <= 1,
        InHand::Once => once == JOBS && twice <= others && dead <= 1,
        InHand::Again => once == JOBS && (1..=1 + others).contains(&twice) && dead == 0,
        InHand::Dead { executed } => once == JOBS - usize::from(!executed) && twice == 0 && (1..=2).contains(&dead),
    };
    let fits = fits && succeeded + dead == all && (step.at_most_once || dead == 0);
    let mut findings = Vec::new();
    if !fits || more > 0 {
        findings.push(finding(format!(
            "{succeeded} succeeded, {dead} are dead, {once} were executed, {twice} of them twice, {more} more often"
        )));
    }
    // A few others may have been under way.
    let sent_again = receiver.stats().duplicates_acknowledged;
    let least = u64::from(step.point == KillPoint::AfterWebhook);
    if !(least..=least + 2).contains(&sent_again) {
        findings.push(finding(format!("{sent_again} webhooks were sent again")));
    }
    findings
}

/// The table names every point, and nothing else.
#[test]
fn the_table_of_points_is_whole() {
    let page = std::fs::read_to_string(checkout().join("docs/guarantees.md")).expect("docs");
    let section = page.split("\n## Killed at any point\n").nth(1).expect("the heading").split("\n## ").next();
    let rows = section.expect("a section").lines().filter_map(|line| line.strip_prefix("| `"));
    let named: BTreeSet<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    assert_eq!(named, KillPoint::ALL.map(KillPoint::as_str).into_iter().collect());
}
