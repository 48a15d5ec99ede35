//! The audit from the outside, when all has drained: the database, the provider's ledger and the
//! receiver's must tell the same story, and it must be the one that was promised.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use paceline::sim::{Arrival, EventRecord, ProviderHandle, ReceiverHandle, Verdict};

use super::broker::Completion;
use super::world::World;

/// Clocks of two processes, and the way from one to the other, in milliseconds.
const SLACK_MS: i64 = 100;
/// What a process had sent when it died arrives at most so much later.
const LAST_ARRIVAL_MS: i64 = 1_000;
/// A call that leaves within its deadline may arrive so much later.
const ON_THE_WAY_MS: i64 = 3_000;
/// Jobs whose history is told.
const TOLD_MAX: usize = 8;

/// A job that the system has confirmed, and so has to answer for.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    pub id: String,
    pub at_most_once: bool,
    /// It has a callback.
    pub hook: bool,
    pub not_before_ms: Option<i64>,
    pub deadline_ms: Option<i64>,
    /// The label of the key that it is pinned to.
    pub pin: Option<String>,
    /// Its cancellation was answered with 200.
    pub cancelled: bool,
    /// Whoever handed it in waits for an answer.
    pub replies: bool,
}

/// A registered endpoint.
pub struct Subscriber<'a> {
    pub url: String,
    /// Types of the events that it gets; empty: all.
    pub events: &'a [&'a str],
    pub receiver: &'a ReceiverHandle,
}

/// Something that was broken on purpose.
#[derive(Clone, Debug)]
pub struct Fault {
    pub at_ms: i64,
    pub what: String,
    /// A dispatcher ended without a word, or stood still: nobody knows what became of its calls.
    pub loses_calls: bool,
    /// Until when a process stood still.
    pub until_ms: i64,
}

/// What is audited.
pub struct Case<'a> {
    pub world: &'a World,
    pub provider: &'a ProviderHandle,
    /// When the provider's clock began.
    pub provider_began_ms: i64,
    /// Of callbacks.
    pub receiver: &'a ReceiverHandle,
    pub subscribers: &'a [Subscriber<'a>],
    /// What was published as `paceline.events`; `None`: there is no broker, or nobody listened.
    pub published: Option<&'a [Completion]>,
    /// What was answered to whoever asked.
    pub replies: &'a [Completion],
    pub expected: &'a [Expected],
    pub faults: &'a [Fault],
}

/// Something that was promised and does not hold.
#[derive(Debug)]
pub struct Finding {
    /// Whose; empty: of the whole.
    pub job: String,
    pub what: String,
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[derive(Debug, sqlx::FromRow)]
struct JobRow {
    pk: i64,
    id: String,
    state: String,
    reason: Option<String>,
    run: i64,
    attempts: i64,
    owner: Option<String>,
    epoch: i64,
    orphaned: bool,
    created_ms: i64,
    error: Option<String>,
    idempotency_key: String,
}

#[derive(Debug, sqlx::FromRow)]
struct AttemptRow {
    job_pk: i64,
    run: i64,
    n: i64,
    at_ms: i64,
    latency_ms: i64,
    outcome: String,
    status: Option<i64>,
    error: Option<String>,
}

#[derive(Debug, sqlx::FromRow)]
struct EventRow {
    pk: i64,
    id: String,
    job_pk: i64,
    run: i64,
    state: String,
}

#[derive(Debug, sqlx::FromRow)]
struct DeliveryRow {
    event_pk: i64,
    /// NULL: over the broker.
    url: Option<String>,
    reply_to: Option<String>,
    state: String,
    attempts: i64,
    owner: Option<String>,
}

/// Everything that is known, read once.
struct Facts {
    jobs: HashMap<String, JobRow>,
    attempts: HashMap<i64, Vec<AttemptRow>>,
    events: HashMap<i64, Vec<EventRow>>,
    deliveries: HashMap<i64, Vec<DeliveryRow>>,
    /// By idempotency key, in the order they came.
    calls: HashMap<String, Vec<Arrival>>,
    /// Callbacks, by job.
    received: HashMap<String, Vec<EventRecord>>,
    /// The same of every subscriber.
    subscribed: Vec<HashMap<String, Vec<EventRecord>>>,
    /// What was published, by the event's id, and what was answered, by job.
    published: HashMap<String, Vec<Completion>>,
    replies: HashMap<String, Vec<Completion>>,
}

impl Facts {
    async fn read(case: &Case<'_>) -> Self {
        let world = case.world;
        let jobs: Vec<JobRow> = world
            .rows("SELECT pk, id, state, reason, run, attempts, owner, epoch, orphaned, created_ms, error, idempotency_key FROM jobs")
            .await;
        let attempts: Vec<AttemptRow> = world
            .rows("SELECT job_pk, run, n, at_ms, latency_ms, outcome, status, error FROM all_attempts ORDER BY job_pk, run, n")
            .await;
        let events: Vec<EventRow> = world.rows("SELECT pk, id, job_pk, run, state FROM events").await;
        let deliveries: Vec<DeliveryRow> =
            world.rows("SELECT d.event_pk, e.url, d.reply_to, d.state, d.attempts, d.owner FROM deliveries d LEFT JOIN endpoints e ON e.pk = d.endpoint_pk").await;
        let calls = case.provider.ledger().into_iter().filter(|call| call.verdict == Verdict::Accepted);
        Self {
            jobs: jobs.into_iter().map(|job| (job.id.clone(), job)).collect(),
            attempts: grouped(attempts, |attempt| attempt.job_pk),
            events: grouped(events, |event| event.job_pk),
            deliveries: grouped(deliveries, |delivery| delivery.event_pk),
            calls: grouped(calls, |call| call.idempotency_key.as_deref().unwrap_or_default().to_owned()),
            received: received(case.receiver),
            subscribed: case.subscribers.iter().map(|subscriber| received(subscriber.receiver)).collect(),
            published: grouped(case.published.into_iter().flatten().cloned(), |message| message.event.clone()),
            replies: grouped(case.replies.iter().cloned(), |reply| reply.correlation.clone()),
        }
    }
}

fn received(receiver: &ReceiverHandle) -> HashMap<String, Vec<EventRecord>> {
    grouped(receiver.events(), |event| event.job_id.to_string())
}

fn grouped<K: std::hash::Hash + Eq, T>(
    items: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> K,
) -> HashMap<K, Vec<T>> {
    let mut groups = HashMap::<K, Vec<T>>::new();
    for item in items {
        groups.entry(key(&item)).or_default().push(item);
    }
    groups
}

/// All that does not hold.
pub async fn audit(case: &Case<'_>) -> Vec<Finding> {
    let facts = Facts::read(case).await;
    let mut findings = Vec::new();
    for job in case.expected {
        let mut found = Vec::new();
        of_job(case, &facts, job, &mut found);
        findings.extend(found.into_iter().map(|what| Finding { job: job.id.clone(), what }));
    }
    let expected: HashSet<&str> = case.expected.iter().map(|job| job.id.as_str()).collect();
    for id in facts.jobs.keys().filter(|id| !expected.contains(id.as_str())) {
        findings.push(Finding { job: id.clone(), what: "a job that nobody enqueued".to_owned() });
    }
    let mut of_all = of_limits(case);
    of_all.extend(of_rows(case.world).await);
    of_all.extend(of_logs(case.world));
    findings.extend(of_all.into_iter().map(|what| Finding { job: String::new(), what }));
    findings
}

fn of_job(case: &Case<'_>, facts: &Facts, job: &Expected, found: &mut Vec<String>) {
    let Some(row) = facts.jobs.get(&job.id) else {
        return found.push("lost: confirmed, and not in the store".to_owned());
    };
    if !matches!(row.state.as_str(), "succeeded" | "dead" | "expired" | "cancelled") {
        found.push(format!("not terminal: {}", row.state));
    }
    if job.cancelled && row.state != "cancelled" {
        found.push(format!("its cancellation was confirmed, and it is {}", row.state));
    }
    if row.owner.is_some() {
        found.push("still held by somebody".to_owned());
    }
    of_event(case, facts, job, row, found);
    of_calls(case, facts, job, row, found);
}

fn of_event(case: &Case<'_>, facts: &Facts, job: &Expected, row: &JobRow, found: &mut Vec<String>) {
    let events = facts.events.get(&row.pk).map_or(&[][..], Vec::as_slice);
    let [event] = events else {
        return found.push(format!("{} events for one run", events.len()));
    };
    if event.state != row.state {
        found.push(format!("its event says {}", event.state));
    }
    let deliveries: Vec<&DeliveryRow> = facts.deliveries.get(&event.pk).into_iter().flatten().collect();
    let is_subscribed = |url: &str| case.subscribers.iter().any(|subscriber| subscriber.url == url);
    let callbacks = |row: &&DeliveryRow| row.url.as_deref().is_some_and(|url| !is_subscribed(url));
    let called: Vec<&DeliveryRow> = deliveries.iter().copied().filter(callbacks).collect();
    delivered("callback", job.hook, event, &called, facts.received.get(&job.id), found);
    for (subscriber, received) in case.subscribers.iter().zip(&facts.subscribed) {
        let of_it = |delivery: &&DeliveryRow| delivery.url.as_ref() == Some(&subscriber.url);
        let told: Vec<&DeliveryRow> = deliveries.iter().copied().filter(of_it).collect();
        let wants = subscriber.events.is_empty() || subscriber.events.contains(&&*format!("job.{}", event.state));
        delivered(&subscriber.url, wants, event, &told, received.get(&job.id), found);
    }
    if let Some(published) = case.published {
        of_publications(case, facts, job, event, &deliveries, published, found);
    }
}

/// One delivery that is done, and one event at the receiver, the same; or nothing, where nobody wants it.
fn delivered(
    whose: &str,
    wanted: bool,
    event: &EventRow,
    deliveries: &[&DeliveryRow],
    received: Option<&Vec<EventRecord>>,
    found: &mut Vec<String>,
) {
    let received = received.map_or(&[][..], Vec::as_slice);
    if !wanted {
        if !deliveries.is_empty() || !received.is_empty() {
            found.push(format!("{whose}: an event was delivered that nobody asked for"));
        }
        return;
    }
    if deliveries.len() != 1 || deliveries[0].state != "delivered" {
        found.push(format!("{whose}: its event is not delivered: {deliveries:?}"));
    }
    let [received] = received else {
        return found.push(format!("{whose}: the receiver knows {} events of it", received.len()));
    };
    let same = *received.webhook_id == *event.id && *received.state == *event.state && !received.changed;
    if !same || received.acknowledged == 0 {
        found.push(format!("{whose}: the receiver has another event, or has not acknowledged it: {received:?}"));
    }
}

/// Every event is published, and whoever asked has the answer; the store keeps nothing of what the broker has.
fn of_publications(
    case: &Case<'_>,
    facts: &Facts,
    job: &Expected,
    event: &EventRow,
    deliveries: &[&DeliveryRow],
    published: &[Completion],
    found: &mut Vec<String>,
) {
    let left = deliveries.iter().filter(|delivery| delivery.url.is_none());
    found.extend(left.map(|row| format!("its event is not published or answered: {row:?}")));
    let kind = format!("job.{}", event.state);
    let is_it = |message: &Completion| message.kind == kind && message.job == job.id && message.event == event.id;
    let key = format!("{}.{kind}", case.world.provider);
    let same = |message: &Completion| is_it(message) && message.routing_key == key;
    match facts.published.get(&event.id) {
        Some(messages) if messages.iter().all(same) => {}
        other => found.push(format!("its event was published otherwise: {other:?}")),
    }
    let others = published.iter().filter(|message| message.job == job.id && message.event != event.id);
    found.extend(others.map(|message| format!("another event was published: {message:?}")));
    match (job.replies, facts.replies.get(&job.id)) {
        (false, None) => {}
        (true, Some(replies)) if replies.iter().all(is_it) => {}
        (_, other) => found.push(format!("what was answered: {other:?}")),
    }
}

fn of_calls(case: &Case<'_>, facts: &Facts, job: &Expected, row: &JobRow, found: &mut Vec<String>) {
    let calls = facts.calls.get(&row.idempotency_key).map_or(&[][..], Vec::as_slice);
    let at_ms = |call: &Arrival| case.provider_began_ms + i64::try_from(call.at.as_millis()).unwrap_or(i64::MAX);
    let executed: Vec<&Arrival> = calls.iter().filter(|call| call.executed).collect();
    if row.state == "succeeded" && executed.is_empty() {
        found.push("succeeded, and the provider never executed it".to_owned());
    }
    if job.at_most_once && executed.len() > 1 {
        found.push(format!("at_most_once, and executed {} times", executed.len()));
    }
    for pair in executed.windows(2) {
        let (at, next) = (at_ms(pair[0]), at_ms(pair[1]));
        if let Err(why) = excused(case, facts, row, (at, pair[0].status), next) {
            found.push(format!("executed again {} ms later {why}", next - at));
        }
    }
    let stood_still =
        |at: i64| case.faults.iter().any(|f| f.until_ms > f.at_ms && f.at_ms <= at && at <= f.until_ms + 2_000);
    for call in calls {
        let at = at_ms(call);
        if job.deadline_ms.is_some_and(|deadline| at > deadline + ON_THE_WAY_MS) && !stood_still(at) {
            found.push("sent after its deadline".to_owned());
        }
        if job.not_before_ms.is_some_and(|not_before| at < not_before) {
            found.push("sent before its time".to_owned());
        }
        if job.pin.as_deref().is_some_and(|pin| pin != &*call.key) {
            found.push(format!("sent with the key {}, which it is not pinned to", call.key));
        }
    }
}

/// A call that was executed may be made again where its outcome was recorded as unknown, or where a
/// dispatcher that could have recorded it was lost before the next one.
fn excused(
    case: &Case<'_>,
    facts: &Facts,
    row: &JobRow,
    (at, status): (i64, Option<u16>),
    next: i64,
) -> Result<(), String> {
    let attempts = facts.attempts.get(&row.pk).map_or(&[][..], Vec::as_slice);
    // Another call of the same job may have been refused within the same tenth of a second: its attempt has its answer.
    let is_of_it = |attempt: &&AttemptRow| attempt.status.is_none() || attempt.status == status.map(i64::from);
    let recorded = attempts
        .iter()
        .filter(is_of_it)
        .find(|attempt| attempt.at_ms - SLACK_MS <= at && at <= attempt.at_ms + attempt.latency_ms + SLACK_MS);
    match recorded {
        Some(attempt) if matches!(attempt.outcome.as_str(), "unknown" | "transient") => Ok(()),
        Some(attempt) => Err(format!("although its outcome was recorded: {}", attempt.outcome)),
        None => {
            let lost =
                |fault: &Fault| fault.loses_calls && fault.until_ms >= at - LAST_ARRIVAL_MS && fault.at_ms <= next;
            match case.faults.iter().any(lost) {
                true => Ok(()),
                false => Err("although nothing was lost in between".to_owned()),
            }
        }
    }
}

fn of_limits(case: &Case<'_>) -> Vec<String> {
    let stats = case.provider.stats();
    let over = stats.refused_limit + stats.refused_concurrency;
    let mut found = Vec::new();
    if over > 0 {
        let refused =
            |call: &&Arrival| matches!(call.verdict, Verdict::OverLimit { .. } | Verdict::OverConcurrency { .. });
        let when: Vec<String> = case
            .provider
            .ledger()
            .iter()
            .filter(refused)
            .take(10)
            .map(|call| {
                let at = i64::try_from(call.at.as_millis()).unwrap_or(i64::MAX);
                let job = call.idempotency_key.as_deref().unwrap_or_default();
                format!("{} {job} {} {:?}", clock(case.provider_began_ms + at), call.key, call.verdict)
            })
            .collect();
        found.push(format!("{over} calls over a limit: {when:#?}"));
    }
    if stats.refused_malformed + stats.ledger_dropped > 0 {
        found.push(format!("calls that nobody can judge: {stats:?}"));
    }
    for receiver in case.subscribers.iter().map(|subscriber| subscriber.receiver).chain([case.receiver]) {
        let received = receiver.stats();
        if received.bad_signature + received.malformed + received.dropped > 0 {
            found.push(format!("odd webhooks: {received:?}"));
        }
    }
    found
}

/// Rows that nothing points to, or that point to nothing, and claims that nobody let go of.
const NONE_OF: [(&str, &str); 9] = [
    ("attempts without a job", "SELECT COUNT(*) FROM attempts WHERE job_pk NOT IN (SELECT pk FROM jobs)"),
    ("events without a job", "SELECT COUNT(*) FROM events WHERE job_pk NOT IN (SELECT pk FROM jobs)"),
    ("deliveries without an event", "SELECT COUNT(*) FROM deliveries WHERE event_pk NOT IN (SELECT pk FROM events)"),
    (
        "attempts of no delivery",
        "SELECT COUNT(*) FROM delivery_attempts WHERE delivery_pk NOT IN (SELECT pk FROM deliveries)",
    ),
    (
        "dead letters of jobs that are not dead",
        "SELECT COUNT(*) FROM dead_letters WHERE job_pk IS NOT NULL
            AND job_pk NOT IN (SELECT pk FROM jobs WHERE state = 'dead')",
    ),
    (
        "dead jobs without a dead letter",
        "SELECT COUNT(*) FROM jobs WHERE state = 'dead'
            AND pk NOT IN (SELECT job_pk FROM dead_letters WHERE job_pk IS NOT NULL)",
    ),
    ("claimed jobs", "SELECT COUNT(*) FROM jobs WHERE owner IS NOT NULL"),
    ("claimed deliveries", "SELECT COUNT(*) FROM deliveries WHERE owner IS NOT NULL"),
    ("open deliveries", "SELECT COUNT(*) FROM deliveries WHERE state = 'pending'"),
];

async fn of_rows(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for (what, sql) in NONE_OF {
        match world.number(sql).await {
            0 => {}
            count => found.push(format!("{count} {what}")),
        }
    }
    found
}

/// What must stay behind when every process has stopped in order: nobody holds a lease, and nobody
/// is in the list of the living.
pub async fn at_the_end(world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (what, sql) in [
        ("leases that were not let go of", "SELECT COUNT(*) FROM leases WHERE owner IS NOT NULL"),
        ("owners that are still listed", "SELECT COUNT(*) FROM owners"),
    ] {
        let count = world.number(sql).await;
        if count > 0 {
            findings.push(Finding { job: String::new(), what: format!("{count} {what}") });
        }
    }
    findings
}

/// What no log may say, whatever is broken around the process.
const NEVER_SAID: [&str; 4] = [
    "panicked",
    "an outcome cannot be recorded",
    "the record of a webhook was refused",
    "a delivery ended in a way that it should not",
];

fn of_logs(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in logs(world) {
        let odd = text.lines().filter(|line| NEVER_SAID.iter().any(|said| line.contains(said)));
        found.extend(odd.take(3).map(|line| format!("{name} says: {line}")));
    }
    found
}

fn logs(world: &World) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(world.folder()).expect("a folder");
    let logs = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "log"));
    let named = |path: std::path::PathBuf| {
        let name = path.file_name()?.to_str()?.to_owned();
        Some((name, std::fs::read_to_string(path).unwrap_or_default()))
    };
    logs.filter_map(named).collect()
}

/// The findings, and all that is known of the jobs concerned.
pub async fn tell(case: &Case<'_>, findings: &[Finding]) -> String {
    let facts = Facts::read(case).await;
    let mut text = String::new();
    for finding in findings.iter().take(40) {
        writeln!(text, "  {} {}", finding.job, finding.what).expect("text");
    }
    writeln!(text, "faults:").expect("text");
    for fault in case.faults {
        writeln!(text, "  {} {}", clock(fault.at_ms), fault.what).expect("text");
    }
    let logs = logs(case.world);
    let mut told = HashSet::new();
    for finding in findings.iter().filter(|finding| !finding.job.is_empty()) {
        if told.len() < TOLD_MAX && told.insert(&finding.job) {
            history(case, &facts, &logs, &finding.job, &mut text);
        }
    }
    text
}

fn history(case: &Case<'_>, facts: &Facts, logs: &BTreeMap<String, String>, id: &str, text: &mut String) {
    let mut line = |what: String| writeln!(text, "{what}").expect("text");
    line(format!("job {id}: {:?}", case.expected.iter().find(|job| job.id == id)));
    let Some(row) = facts.jobs.get(id) else { return line("  it is not in the store".to_owned()) };
    line(format!("  {row:?}"));
    for attempt in facts.attempts.get(&row.pk).into_iter().flatten() {
        line(format!("  {} attempt {attempt:?}", clock(attempt.at_ms)));
    }
    for call in facts.calls.get(&row.idempotency_key).into_iter().flatten() {
        let at = case.provider_began_ms + i64::try_from(call.at.as_millis()).unwrap_or(i64::MAX);
        line(format!(
            "  {} call {} with {} {:?}, executed: {}",
            clock(at),
            call.path,
            call.key,
            call.status,
            call.executed
        ));
    }
    for event in facts.events.get(&row.pk).into_iter().flatten() {
        line(format!("  {event:?} {:?}", facts.deliveries.get(&event.pk)));
    }
    for received in facts.subscribed.iter().chain([&facts.received]).filter_map(|events| events.get(id)).flatten() {
        line(format!("  {received:?}"));
    }
    for (name, log) in logs {
        for said in log.lines().filter(|said| said.contains(id)).take(20) {
            line(format!("  {name}: {said}"));
        }
    }
}

fn clock(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| format!("{at:.3}"))
}
