//! Calls at their edges: what is between the permit and the first byte, between the last byte and the answer, and
//! whether it is known that a call never left.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::raw::{Answer, RawProvider};
use common::world::{Mode, in_world};
use common::{SOON, holds, until};
use paceline::config::{Config, Policy};
use paceline::job::{Given, Job};
use paceline::provider::{CallError, Caller, Client};
use serde_json::json;

/// Whether its calls may leave, and what they were asked and told.
struct Permission {
    given: AtomicBool,
    asked: AtomicU64,
    late: AtomicBool,
}

impl Permission {
    fn given() -> Self {
        Self { given: AtomicBool::new(true), asked: AtomicU64::new(0), late: AtomicBool::new(false) }
    }

    fn take_back(&self) {
        self.given.store(false, Ordering::SeqCst);
    }

    fn left_late(&self) -> bool {
        self.late.load(Ordering::SeqCst)
    }
}

impl Caller for Permission {
    fn may_leave(&self) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.given.load(Ordering::SeqCst)
    }

    fn left_late(&self) {
        self.late.store(true, Ordering::SeqCst);
    }
}

/// A client, and how it calls.
struct Calling {
    client: Client,
    policy: Arc<Policy>,
}

/// A client of a provider, and a job for it.
fn client(base_url: &str, more: &str) -> (Calling, Job) {
    let text = format!("[[provider]]\nname = \"p\"\nbase_url = \"{base_url}\"\n{more}");
    let config = Config::parse(&text, None, &[]).expect("valid");
    let envelope = json!({ "id": "j1", "provider": "p", "request": { "method": "POST", "path": "/a", "body": {} } });
    let job = Job::parse(envelope.to_string().as_bytes(), &Given::default(), &config.catalog()).expect("a job");
    let provider = &config.providers[0];
    let policy = Arc::clone(provider.policy_of(&job.request.method, &job.request.path));
    (Calling { client: Client::new(provider).expect("a client"), policy }, job)
}

async fn call(calling: &Calling, job: &Job, caller: &Permission) -> Result<u16, CallError> {
    calling.client.call(job, None, &calling.policy, caller, |_, _| {}).await.map(|answer| answer.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_waits_for_a_connection_does_not_leave_once_its_lease_has_ended() {
    let mut provider = RawProvider::closed().await;
    let (client, job) = client(&provider.base_url(), "");
    let caller = Permission::given();
    let ended = {
        let calling = call(&client, &job, &caller);
        tokio::pin!(calling);
        let early = tokio::time::timeout(Duration::from_millis(300), &mut calling).await;
        assert!(early.is_err(), "it waits for its connection");
        caller.take_back();
        let asked = Instant::now();
        let ended = calling.await;
        assert!(asked.elapsed() < Duration::from_millis(400), "{:?}", asked.elapsed());
        ended
    };
    assert!(matches!(ended, Err(CallError::Withheld)), "{ended:?}");
    // Whoever waited in the queue of the system is accepted now, and has nothing to say.
    provider.accept(Answer::Ok);
    let other = Permission::given();
    assert_eq!(call(&client, &job, &other).await.expect("the next one goes"), 200);
    assert_eq!(provider.heads().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_left_late_says_so_and_is_answered() {
    let mut provider = RawProvider::closed().await;
    let (client, job) = client(&provider.base_url(), "");
    let caller = Permission::given();
    let calling = call(&client, &job, &caller);
    let opening = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        provider.accept(Answer::Ok);
    };
    let (answer, ()) = tokio::join!(calling, opening);
    assert_eq!(answer.expect("answered"), 200);
    assert!(caller.left_late());
    let at_once = Permission::given();
    assert_eq!(call(&client, &job, &at_once).await.expect("answered"), 200);
    assert!(!at_once.left_late(), "its connection stood already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_part_of_a_call_has_its_time() {
    let closed = RawProvider::closed().await;
    // No connection: nothing was sent. It is bounded by `counted_within`, too: its slot would be free again.
    for more in ["connect_timeout = \"300ms\"", "counted_within = \"300ms\""] {
        let (to_closed, job) = client(&closed.base_url(), more);
        let begun = Instant::now();
        let ended = call(&to_closed, &job, &Permission::given()).await;
        assert!(matches!(&ended, Err(CallError::NotSent(text)) if text.contains("no connection within")), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    // A connection, and no TLS on it: the same.
    let mute = RawProvider::open(Answer::Silence).await;
    let (tls, job) = client(&mute.base_url().replace("http:", "https:"), "connect_timeout = \"300ms\"");
    let ended = call(&tls, &job, &Permission::given()).await;
    assert!(matches!(ended, Err(CallError::NotSent(_))), "{ended:?}");
    // Sent, and no answer: nobody knows.
    let (silent, job) = client(&mute.base_url(), "first_byte_timeout = \"300ms\"");
    let begun = Instant::now();
    let ended = call(&silent, &job, &Permission::given()).await;
    assert!(matches!(&ended, Err(CallError::Lost(text)) if text.contains("no answer within")), "{ended:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(mute.heads().iter().filter(|head| head.starts_with("POST /a")).count(), 1);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let (refused, job) = client(&format!("http://{nobody}"), "");
    let ended = call(&refused, &job, &Permission::given()).await;
    assert!(matches!(ended, Err(CallError::NotSent(_))), "{ended:?}");
}

/// The provider closes every connection right after its answer, or in its stead: sometimes before the next call is handed to it,
/// sometimes just then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_be_unsent_never_reached_the_provider() {
    let provider = RawProvider::open(Answer::OkAndClose).await;
    let (client, mut job) = client(&provider.base_url(), "");
    let (mut answered, mut lost, mut unsent) = (0, 0, Vec::new());
    for n in 0..300 {
        job.idempotency_key = format!("k{n}.");
        match call(&client, &job, &Permission::given()).await {
            Ok(_) => answered += 1,
            Err(CallError::NotSent(_)) => unsent.push(job.idempotency_key.clone()),
            Err(CallError::Lost(_)) => lost += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    let heads = provider.heads();
    for key in &unsent {
        assert!(!heads.iter().any(|head| head.contains(key.as_str())), "{key} was sent");
    }
    assert!(answered >= 100 && lost >= 50, "{answered} answered, {lost} lost, {} unsent", unsent.len());
    let sent_twice = (0..300).filter(|n| heads.iter().filter(|head| head.contains(&format!("k{n}."))).count() > 1);
    assert_eq!(sent_twice.count(), 0, "the client sends nothing twice");
}

/// The whole system: calls that wait for a connection at an orderly stop are given back, as if they had never had a
/// permit; those that may be made once, too, although they were committed as started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_connection_are_given_back_at_a_stop_and_made_once_by_the_next_process() {
    in_world(Mode::Embedded, async |world| {
        let mut provider = RawProvider::closed().await;
        world.provider(&provider.base_url(), &[("a1", "some-key-0123456789")], "connect_timeout = \"20s\"");
        let mut serve = world.serving().await;
        let api = world.api();
        for (id, delivery) in [("again", "at_least_once"), ("once", "at_most_once")] {
            let request = json!({ "method": "POST", "path": "/pay" });
            api.accept(&json!({ "id": id, "provider": world.provider, "delivery": delivery, "request": request }))
                .await;
            api.job_in(id, &["running"]).await;
        }
        serve.terminate();
        let status = serve.ended(Duration::from_secs(10)).await;
        assert!(status.success(), "{status}:\n{}", serve.log());
        let untouched =
            "SELECT COUNT(*) FROM jobs WHERE state = 'queued' AND owner IS NULL AND attempts = 0 AND NOT started";
        assert_eq!(world.number(untouched).await, 2);
        assert_eq!(world.number("SELECT COUNT(*) FROM all_attempts").await, 0);
        provider.accept(Answer::Ok);
        let serve = world.serving().await;
        until("both are done", SOON, async || holds(world.open_jobs().await == 0)).await;
        for id in ["again", "once"] {
            api.job_in(id, &["succeeded"]).await;
        }
        assert_eq!(provider.heads().len(), 2, "{:#?}", provider.heads());
        serve.stop().await;
    })
    .await;
}

/// The notification got lost: the wish stands in the store, and nobody was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_takes_effect_though_nobody_is_woken() {
    in_world(Mode::Scaled, async |world| {
        let provider = RawProvider::open(Answer::Ok).await;
        let limit = "key_limits = [ { requests = 1, per = \"5s\", algorithm = \"sliding_window\" } ]";
        world.provider(&provider.base_url(), &[("a1", "some-key-0123456789")], limit);
        let serve = world.serving().await;
        let api = world.api();
        for id in ["first", "second"] {
            api.accept(&json!({ "id": id, "provider": world.provider, "request": { "path": "/" } })).await;
        }
        api.job_in("first", &["succeeded"]).await;
        let in_line = "SELECT COUNT(*) FROM jobs WHERE id = 'second' AND owner IS NOT NULL AND state = 'queued'";
        until("the second one is in line", SOON, async || holds(world.number(in_line).await == 1)).await;
        world.execute("UPDATE jobs SET cancel_requested = TRUE WHERE id = 'second'").await;
        api.job_in("second", &["cancelled"]).await;
        assert_eq!(provider.heads().len(), 1);
        serve.stop().await;
    })
    .await;
}
