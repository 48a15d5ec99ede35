//! Producers that do not give up: what is in doubt is handed in again, under the same id.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::common::audit::{Expected, now_ms};
use crate::common::broker;
use crate::common::until;
use crate::common::world::{Api, World};
use crate::fleet::Links;
use crate::plan::{ADDED, Deed, ENDPOINTS, JobPlan, Plan, Way};

/// A client's patience with one request.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(150);
/// Confirms are pipelined for so many jobs.
const BATCH: usize = 32;
/// Clients of the API.
const CLIENTS: usize = 4;
/// A round's producers end within this, whatever is broken.
const DONE_WITHIN: Duration = Duration::from_secs(240);

/// Where answers to its jobs go.
pub fn replies_queue(provider: &str) -> String {
    format!("chaos.{provider}.replies")
}

/// A job ready to be handed in.
pub struct Ready {
    pub plan: JobPlan,
    /// The envelope, the same each time.
    pub body: Value,
    pub expected: Expected,
}

/// Gives every job its times, now that the round begins.
pub fn ready(world: &World, links: &Links, plan: &Plan) -> Vec<Ready> {
    let began_ms = now_ms();
    plan.jobs.iter().map(|job| one(world, links, job, began_ms)).collect()
}

fn one(world: &World, links: &Links, plan: &JobPlan, began_ms: i64) -> Ready {
    let after = |span: Duration| began_ms + i64::try_from((plan.at + span).as_millis()).expect("soon");
    let time = |ms: i64| jiff::Timestamp::from_millisecond(ms).expect("a time").to_string();
    let (path, query) = plan.path.split_once('?').unwrap_or((&plan.path, ""));
    let mut request = json!({ "method": "POST", "path": path });
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        request["query"][&*name] = (*value).into();
    }
    let mut body = json!({ "id": plan.id, "provider": world.provider, "lane": plan.lane, "request": request });
    let expected = Expected {
        id: plan.id.clone(),
        at_most_once: plan.at_most_once,
        hook: plan.hook.is_some(),
        not_before_ms: plan.not_before.map(after),
        deadline_ms: plan.deadline.map(after),
        pin: plan.pin.map(str::to_owned),
        cancelled: false,
        replies: plan.replies,
    };
    if plan.at_most_once {
        body["delivery"] = "at_most_once".into();
    }
    // Those that cost a time-out each.
    if path.starts_with("/hang") || path.starts_with("/drip/50") {
        body["retry"] = json!({ "max_attempts": 2 });
    }
    if let Some(pin) = plan.pin {
        body["key"] = pin.into();
    }
    if let Some(ms) = expected.not_before_ms {
        body["not_before"] = time(ms).into();
    }
    if let Some(ms) = expected.deadline_ms {
        body["deadline"] = time(ms).into();
    }
    if let Some(hook) = plan.hook {
        body["callback"] = json!({ "url": links.hook(hook) });
    }
    Ready { plan: plan.clone(), body, expected }
}

/// The endpoints, registered before anything breaks: their ids.
pub async fn register(world: &World, links: &Links) -> Vec<String> {
    let api = world.api_within(PATIENCE);
    let mut ids = Vec::new();
    for (number, (events, secrets, _)) in ENDPOINTS.iter().enumerate() {
        let mut body = json!({ "url": links.endpoint(number), "secret": secrets[0] });
        if !events.is_empty() {
            body["events"] = json!(events);
        }
        let registered = until("an endpoint is registered", DONE_WITHIN, async || {
            api.try_post("/v1/endpoints", &body).await.filter(|(status, _)| *status == 201)
        });
        ids.push(registered.await.1["id"].as_str().expect("an id").to_owned());
    }
    ids
}

/// Does what an operator wants, each at its time, until it is done.
async fn operate(world: &World, endpoints: &[String], deeds: &[(Duration, Deed)], began: Instant) {
    let api = world.api_within(PATIENCE);
    let keys = format!("/v1/providers/{}/keys", world.provider);
    let (label, secrets) = ADDED;
    for (at, deed) in deeds {
        tokio::time::sleep_until(began + *at).await;
        let (path, body) = match deed {
            Deed::AddKey => (keys.clone(), json!({ "label": label, "secret": secrets[0] })),
            Deed::RotateKey => (format!("{keys}/{label}/rotate"), json!({ "secret": secrets[1] })),
            Deed::RotateEndpoint(number) => {
                let (_, secrets, overlap) = ENDPOINTS[*number];
                let path = format!("/v1/endpoints/{}/rotate", endpoints[*number]);
                (path, json!({ "secret": secrets[1], "overlap": overlap }))
            }
        };
        loop {
            match api.try_post(&path, &body).await {
                // 409: it was done, and its answer lost.
                Some((200 | 201 | 409, _)) => break,
                None | Some((408 | 500..=599, _)) => tokio::time::sleep(PAUSE).await,
                Some((status, answer)) => panic!("{path}: {status} {answer}"),
            }
        }
    }
}

/// Hands all jobs in, each at its time, and cancels some; what an operator does goes on beside. The ids of those that were
/// cancelled for sure.
pub async fn hand_in(world: &World, jobs: &[Ready], endpoints: &[String], deeds: &[(Duration, Deed)]) -> Vec<String> {
    let began = Instant::now();
    let cancelled = Mutex::new(Vec::new());
    let over_http: Vec<&Ready> = jobs.iter().filter(|job| matches!(job.plan.way, Way::Http | Way::Both)).collect();
    let clients = (0..CLIENTS).map(|client| {
        let mine = over_http.iter().copied().skip(client).step_by(CLIENTS);
        http(world.api_within(PATIENCE), mine, began)
    });
    let over_amqp: Vec<&Ready> = jobs.iter().filter(|job| job.plan.way != Way::Http).collect();
    let withdrawals = jobs.iter().filter(|job| job.plan.cancel_after.is_some()).map(|job| {
        let (api, cancelled) = (world.api_within(PATIENCE), &cancelled);
        async move {
            if cancel(&api, job, began).await {
                cancelled.lock().await.push(job.plan.id.clone());
            }
        }
    });
    let all = async {
        tokio::join!(
            futures_util::future::join_all(clients),
            amqp(&world.provider, &over_amqp, began),
            futures_util::future::join_all(withdrawals),
            operate(world, endpoints, deeds, began),
        )
    };
    tokio::time::timeout(DONE_WITHIN, all).await.expect("every job is confirmed in the end");
    cancelled.into_inner()
}

// ------------------------------------------------------------------------------------------------ HTTP

async fn http(api: Api, jobs: impl Iterator<Item = &Ready>, began: Instant) {
    for job in jobs {
        tokio::time::sleep_until(began + job.plan.at).await;
        for _ in 0..=usize::from(job.plan.again) {
            enqueue(&api, job).await;
        }
    }
}

async fn enqueue(api: &Api, job: &Ready) {
    loop {
        match api.try_post("/v1/jobs", &job.body).await {
            Some((200 | 202, _)) => return,
            // What is in doubt is asked again.
            None | Some((408 | 500..=599, _)) => tokio::time::sleep(PAUSE).await,
            Some((status, answer)) => panic!("{}: {status} {answer}", job.plan.id),
        }
    }
}

/// One request to cancel; whether it was answered with success.
async fn cancel(api: &Api, job: &Ready, began: Instant) -> bool {
    tokio::time::sleep_until(began + job.plan.at + job.plan.cancel_after.unwrap_or_default()).await;
    let answer = api.try_delete(&format!("/v1/jobs/{}", job.plan.id)).await;
    answer.is_some_and(|(status, job)| status == 200 && job["state"] == "cancelled")
}

// ------------------------------------------------------------------------------------------------ AMQP

async fn amqp(provider: &str, jobs: &[&Ready], began: Instant) {
    let mut waiting: Vec<&Ready> = Vec::new();
    // Handed in once more at the end, long after they were confirmed.
    let mut repeats: Vec<&Ready> = jobs.iter().copied().filter(|job| job.plan.again).collect();
    let mut next = jobs.iter().copied().peekable();
    let mut session: Option<(Connection, Channel)> = None;
    while next.peek().is_some() || !waiting.is_empty() {
        if waiting.is_empty() {
            tokio::time::sleep_until(began + next.peek().map_or(Duration::ZERO, |job| job.plan.at)).await;
        }
        let due = |job: &&Ready| began + job.plan.at <= Instant::now();
        while waiting.len() < BATCH
            && let Some(job) = next.next_if(due)
        {
            waiting.push(job);
        }
        if session.is_none() {
            session = connect().await;
        }
        let Some((_, channel)) = &session else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let doubtful = publish(provider, channel, &waiting).await;
        if !doubtful.is_empty() {
            session = None;
        }
        waiting = doubtful;
        if next.peek().is_none() && waiting.is_empty() {
            waiting = repeats.split_off(repeats.len().saturating_sub(BATCH));
        }
    }
    if let Some((connection, _)) = session {
        connection.close(200, "done".into()).await.ok();
    }
}

async fn connect() -> Option<(Connection, Channel)> {
    let connect = async {
        let connection = Connection::connect(&broker::url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok::<_, lapin::Error>((connection, channel))
    };
    tokio::time::timeout(PATIENCE, connect).await.ok()?.ok()
}

/// Publishes them all; those that were not confirmed.
async fn publish<'a>(provider: &str, channel: &Channel, jobs: &[&'a Ready]) -> Vec<&'a Ready> {
    let mut doubtful = Vec::new();
    let mut confirms = Vec::new();
    for job in jobs {
        let body = match job.plan.way {
            Way::Malformed => format!("{{\"id\":\"{}\",", job.plan.id).into_bytes(),
            _ => job.body.to_string().into_bytes(),
        };
        let key = match job.plan.lane {
            "default" => provider.to_owned(),
            lane => format!("{provider}.{lane}"),
        };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut properties = broker::properties(Some(&job.plan.id));
        if job.plan.replies {
            let id = job.plan.id.as_str().into();
            properties = properties.with_reply_to(replies_queue(provider).into()).with_correlation_id(id);
        }
        let sent = channel.basic_publish("paceline.jobs".into(), key.into(), options, &body, properties).await;
        match sent {
            Ok(confirm) => confirms.push((*job, confirm)),
            Err(_) => doubtful.push(*job),
        }
    }
    for (job, confirm) in confirms {
        match tokio::time::timeout(PATIENCE, confirm).await {
            Ok(Ok(Confirmation::Ack(None))) => {}
            _ => doubtful.push(job),
        }
    }
    doubtful
}
