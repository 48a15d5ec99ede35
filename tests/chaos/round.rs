//! One round, from its seed to its report.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use paceline::sim::{
    Lognormal, ProviderHandle, ProviderOptions, ProviderSim, ReceiverHandle, ReceiverOptions, ReceiverSim, SimKey,
};

use crate::common::audit::{self, Case, Expected, Finding, Subscriber, now_ms};
use crate::common::broker::{Broker, Completion};
use crate::common::services::Services;
use crate::common::world::{Mode, SECRET, World, in_world};
use crate::fleet::{Fleet, Links};
use crate::plan::{self, ADDED, ATTEMPTS_MAX, Act, ENDPOINTS, KEYS, OPEN, PER_SECOND, Plan, Settings, Size, Way};
use crate::producers::{self, Ready, replies_queue};

/// From the last fault until all is done,
const DRAINS_WITHIN: Duration = Duration::from_secs(60);
/// and so much longer for each retry then owed to jobs whose every call fails: no more are sure of leaving, of all that a
/// dispatcher has (the retry budget).
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// What takes longer has failed, and is waited for all the same: slow is not lost.
const GIVES_UP_AFTER: Duration = Duration::from_secs(120);
/// Between two looks at the database.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Open calls of the whole provider, in half of the rounds.
const OPEN_IN_ALL: u64 = 54;
/// What stored keys are sealed with.
const MASTER_KEY: &str = "Y2hhb3MtbWFzdGVyLWtleS1vZi0zMi1ieXRlcy4uLi4=";

/// What came of a round.
pub struct Report {
    pub mode: Mode,
    pub seed: u64,
    pub jobs: usize,
    pub faults: usize,
    pub processes: usize,
    pub calls: u64,
    pub repeats: usize,
    pub webhooks: u64,
    pub drained: Duration,
    pub took: Duration,
    /// Everything about it, where a promise was broken.
    pub failure: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MODE={} SEED={}: {} jobs, {} faults, {} processes, {} calls ({} keys executed again), {} webhooks, \
             drained in {:.1} s, {:.0} s in all",
            if self.failure.is_some() { "FAILED" } else { "held  " },
            name(self.mode),
            self.seed,
            self.jobs,
            self.faults,
            self.processes,
            self.calls,
            self.repeats,
            self.webhooks,
            self.drained.as_secs_f64(),
            self.took.as_secs_f64(),
        )
    }
}

/// As `make chaos` takes it.
pub fn name(mode: Mode) -> &'static str {
    match mode {
        Mode::Embedded => "embedded",
        Mode::Scaled => "scaled",
    }
}

async fn provider(plan: &Plan, seed: u64) -> ProviderHandle {
    let mut rules = vec![format!("key requests {PER_SECOND}/1s sliding_log"), format!("key concurrency {OPEN}")];
    if plan.shared_limit {
        rules.push(format!("server concurrency {OPEN_IN_ALL}"));
    }
    // To the provider another secret is another key.
    let (label, [secret, anew]) = ADDED;
    let keys = KEYS.into_iter().chain([(label, secret), ("k4 anew", anew)]);
    let options = ProviderOptions {
        keys: keys.map(|(label, secret)| SimKey::new(label, secret)).collect(),
        rules: rules.iter().map(|rule| rule.parse().expect("a rule")).collect(),
        delay_before: Some(Lognormal::ms(5, 60)),
        latency: Some(Lognormal::ms(20, 150)),
        delay_after: Some(Lognormal::ms(5, 60)),
        seed,
        ..ProviderOptions::default()
    };
    ProviderSim::start(options).await.expect("a provider")
}

async fn receiver(secrets: &[&str]) -> ReceiverHandle {
    let secrets = secrets.iter().map(|secret| (*secret).to_owned()).collect();
    ReceiverSim::start(ReceiverOptions { secrets, ..ReceiverOptions::default() }).await.expect("a receiver")
}

/// Of a registered endpoint. While both of its secrets sign, it does not hear of the next one.
async fn endpoint(number: usize) -> ReceiverHandle {
    match ENDPOINTS[number] {
        (_, secrets, "0s") => receiver(&secrets).await,
        (_, secrets, _) => receiver(&secrets[..1]).await,
    }
}

/// Where completions are collected from the broker.
fn events_queue(provider: &str) -> String {
    format!("chaos.{provider}.events")
}

/// Queues that get every completion, and every answer.
async fn listen(world: &World) {
    if world.mode == Mode::Scaled {
        let broker = Broker::connect().await;
        broker.listen(&events_queue(&world.provider), "paceline.events", &format!("{}.#", world.provider)).await;
        broker.listen(&replies_queue(&world.provider), "paceline.events", "nothing.but.answers").await;
        broker.close().await;
    }
}

/// What came to them; they are gone then.
async fn heard(world: &World) -> (Vec<Completion>, Vec<Completion>) {
    if world.mode == Mode::Embedded {
        return Default::default();
    }
    let broker = Broker::connect().await;
    let mut both = Vec::new();
    for queue in [events_queue(&world.provider), replies_queue(&world.provider)] {
        both.push(broker.completions(&queue).await);
        broker.delete(&queue).await;
    }
    broker.close().await;
    let replies = both.pop().unwrap_or_default();
    (both.pop().unwrap_or_default(), replies)
}

fn configuration(world: &World, plan: &Plan, links: &Links, settings: &Settings) -> String {
    let Settings { per_second, open, weights, lanes, timeout_ms, hook_timeout_ms } = settings;
    let key = |((label, _), weight): (&(&str, &str), &u32)| {
        format!("{{ label = \"{label}\", secret = \"env:KEY_{label}\", weight = {weight} }}")
    };
    let keys: Vec<String> = KEYS.iter().zip(weights).map(key).collect();
    let limits = match plan.shared_limit {
        true => format!("limits = [ {{ concurrency = {OPEN_IN_ALL} }} ]"),
        false => String::new(),
    };
    // Longer than a broker takes to come back on a busy machine, while the receiver refuses.
    let schedule = [vec!["\"1s\""; 60], vec!["\"5s\""; 40]].concat().join(", ");
    let [high, default, low] = lanes;
    format!(
        r#"
[api]
listen = "127.0.0.1:{port}"

[webhooks]
secret = "env:WEBHOOK_SECRET"
allow_http = true
allow_networks = ["127.0.0.0/8"]
timeout = "{hook_timeout_ms}ms"
schedule = [{schedule}]

[[provider]]
name = "{name}"
base_url = "{url}"
keys = [{keys}]
key_limits = [
    {{ requests = {per_second}, per = "1s", algorithm = "sliding_window" }},
    {{ concurrency = {open} }},
]
{limits}
lanes = {{ high = {high}, default = {default}, low = {low} }}
timeout = "{timeout_ms}ms"
counted_within = "4s"
retry = {{ max_attempts = {ATTEMPTS_MAX}, base = "100ms", cap = "1s", max_elapsed = "10m" }}
breaker = {{ failures = 10, ratio = "50%", window = "5s", open = "2s", probes = 3 }}
"#,
        port = world.port,
        name = world.provider,
        url = links.provider(),
        keys = keys.join(", "),
    )
}

/// Runs a round.
pub async fn run(mode: Mode, seed: u64, size: Size, services: Option<&Services>) -> Report {
    let plan = Plan::new(mode, seed, size);
    let began = Instant::now();
    let mut report = None;
    in_world(mode, async |world| {
        report = Some(in_place(world, &plan, seed, services).await);
    })
    .await;
    let mut report = report.expect("a round has a report");
    report.took = began.elapsed();
    report
}

async fn in_place(world: &World, plan: &Plan, seed: u64, services: Option<&Services>) -> Report {
    let provider_began_ms = now_ms();
    let (provider, receiver) = (provider(plan, seed).await, receiver(&[SECRET]).await);
    let endpoints = [endpoint(0).await, endpoint(1).await];
    let receivers: Vec<String> = [&receiver, &endpoints[0], &endpoints[1]].map(ReceiverHandle::base_url).into();
    let links = Links::start(world, &provider.base_url(), &receivers).await;
    KEYS.iter().for_each(|(label, secret)| world.set(&format!("KEY_{label}"), secret));
    world.set("PACELINE_MASTER_KEY", MASTER_KEY);
    let configuration = |settings: &Settings| configuration(world, plan, &links, settings);
    world.configure_all(&configuration(&Settings::default()));
    world.prepare().await;
    listen(world).await;
    let mut fleet = Fleet::new(world, &links, services, &plan.members, &configuration);
    let ids = producers::register(world, &links).await;
    let jobs = producers::ready(world, &links, plan);
    let handing_in = producers::hand_in(world, &jobs, &ids, &plan.deeds);
    let (cancelled, ()) = tokio::join!(handing_in, break_things(&mut fleet, &plan.acts));
    fleet.heal().await;
    let healed = Instant::now();
    let expected = expected(&jobs, &cancelled);
    let malformed = jobs.len() - expected.len();
    let owed = retries_owed(world, &jobs).await;
    let within = DRAINS_WITHIN + RETRY_EVERY * owed;
    let mut open =
        drained(world, expected.len(), malformed, owners(world.mode, plan), healed + within + GIVES_UP_AFTER).await;
    let drained = healed.elapsed();
    if open.is_none() && drained > within {
        open = Some(format!("all had ended only {drained:?} after the last fault, which left {owed} retries"));
    }
    let faults = fleet.faults.clone();
    let (published, replies) = heard(world).await;
    let subscriber = |(number, receiver)| {
        let (events, ..): (&[&str], _, _) = ENDPOINTS[number];
        Subscriber { url: links.endpoint(number), events, receiver }
    };
    let subscribers: Vec<Subscriber<'_>> = endpoints.iter().enumerate().map(subscriber).collect();
    let case = Case {
        world,
        provider: &provider,
        provider_began_ms,
        receiver: &receiver,
        subscribers: &subscribers,
        published: (world.mode == Mode::Scaled).then_some(&published[..]),
        replies: &replies,
        expected: &expected,
        faults: &faults,
    };
    let mut findings = open.map(whole).into_iter().collect::<Vec<_>>();
    findings.extend(fleet.deserters().into_iter().map(|name| whole(format!("{name} has ended by itself"))));
    findings.extend(audit::audit(&case).await);
    let processes = fleet.count();
    if findings.is_empty() {
        fleet.stop().await;
        findings.extend(audit::at_the_end(world).await);
    } else {
        drop(fleet);
    }
    let failure = match findings.is_empty() {
        true => None,
        false => Some(failure(&case, &findings, seed, plan).await),
    };
    Report {
        mode: world.mode,
        seed,
        jobs: jobs.len(),
        faults: faults.iter().filter(|fault| !fault.what.ends_with("Through") && !fault.what.contains("whole")).count(),
        processes,
        calls: provider.stats().arrivals,
        repeats: provider.executions(2).len(),
        webhooks: [&receiver, &endpoints[0], &endpoints[1]].iter().map(|receiver| receiver.stats().verified).sum(),
        drained,
        took: Duration::ZERO,
        failure,
    }
}

fn whole(what: String) -> Finding {
    Finding { job: String::new(), what }
}

async fn break_things(fleet: &mut Fleet<'_>, acts: &[(Duration, Act)]) {
    let began = tokio::time::Instant::now();
    for (at, act) in acts {
        tokio::time::sleep_until(began + *at).await;
        fleet.act(act.clone()).await;
    }
}

fn expected(jobs: &[Ready], cancelled: &[String]) -> Vec<Expected> {
    let real = jobs.iter().filter(|job| job.plan.way != Way::Malformed);
    real.map(|job| Expected { cancelled: cancelled.contains(&job.plan.id), ..job.expected.clone() }).collect()
}

/// What must be nothing when all has drained.
const OPEN_JOBS: &str = "SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'waiting', 'running')";
const OPEN_DELIVERIES: &str = "SELECT COUNT(*) FROM deliveries WHERE state = 'pending'";
const ENDED: &str = "SELECT COUNT(*) FROM jobs";
const BURIED: &str = "SELECT COUNT(*) FROM dead_letters WHERE job_pk IS NULL AND reason = 'malformed'";
/// Those that died are forgotten after their jobs were rescued.
const OWNERS: &str = "SELECT COUNT(*) FROM owners";

/// As whom the living are listed: a dispatcher, a notifier, and what publishes to the broker each have a name.
fn owners(mode: Mode, plan: &Plan) -> i64 {
    let names = plan.members.iter().map(|member| {
        let publishes = mode == Mode::Scaled && member.roles.contains("notifier");
        ["dispatcher", "notifier"].iter().filter(|role| member.roles.contains(**role)).count() as i64
            + i64::from(publishes)
    });
    names.sum()
}

/// Retries that jobs whose every call fails still have before them. A job that has not come in yet has all of them.
async fn retries_owed(world: &World, jobs: &[Ready]) -> u32 {
    let until = Instant::now() + DRAINS_WITHIN;
    let rows = loop {
        match world.try_rows::<(String, String, i64)>("SELECT id, state, attempts FROM jobs").await {
            Ok(rows) => break rows,
            Err(error) => assert!(Instant::now() < until, "the database answers after the last fault: {error}"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let known: HashMap<&str, (&str, i64)> =
        rows.iter().map(|(id, state, attempts)| (id.as_str(), (state.as_str(), *attempts))).collect();
    let owed = |job: &Ready| match known.get(job.plan.id.as_str()) {
        Some(("queued" | "waiting" | "running", attempts)) => i64::from(ATTEMPTS_MAX) - (*attempts).max(1),
        Some(_) => 0,
        None => i64::from(ATTEMPTS_MAX) - 1,
    };
    let hopeless = jobs.iter().filter(|job| !job.plan.at_most_once && plan::is_hopeless(&job.plan.path));
    hopeless.map(|job| u32::try_from(owed(job)).unwrap_or(0)).sum()
}

/// Waits until all is done; else what is not.
async fn drained(world: &World, jobs: usize, malformed: usize, owners: i64, until: Instant) -> Option<String> {
    loop {
        let mut left = Vec::new();
        for (what, sql, least, most) in [
            ("jobs are open", OPEN_JOBS, 0, 0),
            ("deliveries are open", OPEN_DELIVERIES, 0, 0),
            ("jobs are there", ENDED, i64::try_from(jobs).unwrap_or(i64::MAX), i64::MAX),
            ("malformed messages are kept", BURIED, i64::try_from(malformed).unwrap_or(i64::MAX), i64::MAX),
            ("owners are listed", OWNERS, 0, owners),
        ] {
            let count = world.try_rows::<(i64,)>(sql).await.ok().and_then(|rows| Some(rows.first()?.0));
            match count {
                Some(count) if (least..=most).contains(&count) => {}
                count => left.push(format!("{count:?} {what}")),
            }
        }
        if left.is_empty() {
            return None;
        }
        if Instant::now() > until {
            return Some(format!("given up, a long time after the last fault: {}", left.join(", ")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The failure with its history; the logs are kept beside.
async fn failure(case: &Case<'_>, findings: &[Finding], seed: u64, plan: &Plan) -> String {
    let mode = name(case.world.mode);
    let kept = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{mode}-{seed}"));
    std::fs::create_dir_all(&kept).expect("a folder");
    for entry in std::fs::read_dir(case.world.folder()).expect("a folder").filter_map(Result::ok) {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), kept.join(entry.file_name())).expect("a copy");
        }
    }
    let told = audit::tell(case, findings).await;
    let text = format!(
        "SEED={seed} MODE={mode} JOBS={}: {} findings, {:?}; logs are kept in {}\n{told}",
        plan.jobs.len(),
        findings.len(),
        plan.members.iter().map(|member| &member.name).collect::<Vec<_>>(),
        kept.display(),
    );
    std::fs::write(kept.join("findings.txt"), &text).expect("written");
    text
}
