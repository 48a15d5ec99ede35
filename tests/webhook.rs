//! Webhooks over real sockets: what a receiver gets, whom the sender calls and whom it does not, and what
//! receivers that misbehave can do to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use paceline::clock::{Clock, SystemClock};
use paceline::job::{Catalog, EventKind, Given, Job, JobState, ProviderRules};
use paceline::secrets::Secret;
use paceline::store::{
    Claimed, DeliveryJob, DeliveryNext, Endpoint, Event, Inserted, NewJob, Next, Occasion, Origin, Record, Recorded,
    Store, StoreOptions, StoredResponse,
};
use paceline::webhook::{
    Answer, Notifier, NotifierStats, Prepared, Schedule, SendError, Sender, WebhookSecrets, WebhookSettings,
};
use sqlx::{Connection as _, SqliteConnection};
use tokio_util::sync::CancellationToken;

use self::receiver::{Receiver, Reply, SECRET};

fn settings() -> WebhookSettings {
    let secrets = WebhookSecrets::new(&Secret::new(SECRET.into())).expect("a valid secret");
    WebhookSettings {
        allow_http: true,
        allow_networks: vec!["127.0.0.0/8".parse().expect("a network")],
        timeout: Duration::from_secs(2),
        ..WebhookSettings::new(secrets)
    }
}

fn sender() -> Sender {
    Sender::new(&settings()).expect("a client")
}

fn delivery(url: &str, tenant: &str) -> Prepared {
    let job = DeliveryJob {
        pk: 1,
        epoch: 1,
        attempts: 0,
        attempts_before: 0,
        endpoint: Arc::new(Endpoint {
            pk: 1,
            id: "ep_1".into(),
            tenant: tenant.into(),
            url: url.into(),
            implicit: true,
            secrets: None,
        }),
        occasion: Occasion::Completion(Arc::new(Event {
            id: "evt_order-1.1.succeeded".into(),
            kind: EventKind::Succeeded,
            at_ms: 1_795_168_800_123,
            attempts: 1,
            reason: None,
            error: None,
            response: Some(StoredResponse {
                status: 200,
                headers: r#"{"content-type":"application/json"}"#.into(),
                content_type: Some("application/json".into()),
                body: r#"{"lat":52.520000,"name":"Zürich"}"#.into(),
                truncated: false,
            }),
            job_id: "order-1".into(),
            provider: "geocoder".into(),
            tenant: tenant.into(),
            metadata: None,
        })),
    };
    Prepared::new(job, None).expect("written")
}

async fn send(sender: &Sender, url: &str) -> Result<Answer, SendError> {
    sender.send(&delivery(url, ""), SystemClock::new().wall_ms()).await
}

#[tokio::test]
async fn a_receiver_gets_a_signed_event_that_it_can_verify_by_hand_and_by_the_usual_library() {
    let receiver = Receiver::start(|_| Reply::status(204)).await;
    let answer = send(&sender(), &receiver.url("/hook?token=abc")).await.expect("answered");
    assert_eq!(answer.status, 204);

    let got = receiver.only();
    assert_eq!((got.method.as_str(), got.target.as_str()), ("POST", "/hook?token=abc"));
    assert_eq!(got.header("content-type"), "application/json");
    assert_eq!(got.header("webhook-id"), "evt_order-1.1.succeeded");
    assert!(got.header("user-agent").starts_with("Paceline/"));
    let body = String::from_utf8(got.body.clone()).expect("UTF-8");
    assert!(body.contains(r#""body":{"lat":52.520000,"name":"Zürich"}"#), "{body}");

    let timestamp: i64 = got.header("webhook-timestamp").parse().expect("seconds");
    assert!((SystemClock::new().wall_ms() / 1000 - timestamp).abs() <= 5);
    let key = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &SECRET["whsec_".len()..]);
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key.expect("base64")).expect("any length");
    mac.update(format!("evt_order-1.1.succeeded.{timestamp}.{body}").as_bytes());
    let by_hand = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, mac.finalize().into_bytes());
    assert_eq!(got.header("webhook-signature"), format!("v1,{by_hand}"));
    got.verify(SECRET).expect("the library agrees");
}

#[tokio::test]
async fn a_tenants_callback_is_signed_with_the_secret_that_the_tenant_was_told() {
    let receiver = Receiver::start(|_| Reply::status(200)).await;
    let sent = delivery(&receiver.url("/"), "acme");
    sender().send(&sent, SystemClock::new().wall_ms()).await.expect("answered");
    let got = receiver.only();
    got.verify(settings().secrets.told_to("acme").expose()).expect("acme's");
    for other in [SECRET, settings().secrets.told_to("globex").expose()] {
        assert!(got.verify(other).is_err());
    }
}

#[tokio::test]
async fn only_https_is_called_unless_http_is_allowed() {
    let receiver = Receiver::start(|_| Reply::status(200)).await;
    let strict = Sender::new(&WebhookSettings { allow_http: false, ..settings() }).expect("a client");
    let error = send(&strict, &receiver.url("/")).await.expect_err("refused");
    assert!(matches!(error, SendError::Scheme(ref scheme) if scheme == "http"), "{error:?}");
    for (url, scheme) in [("ftp://127.0.0.1/", "ftp"), ("file:///etc/passwd", "file"), ("mailto:a@b", "mailto")] {
        let error = send(&sender(), url).await.expect_err(url);
        assert!(matches!(error, SendError::Scheme(ref found) if found == scheme), "{url}: {error:?}");
    }
    for url in ["", "hook", "http://", "http://[::1", "http://a b/"] {
        assert!(matches!(send(&sender(), url).await, Err(SendError::Url(_))), "{url}");
    }
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn retry_after_comes_back_with_the_status() {
    let receiver = Receiver::start(|_| Reply::with(503, &[("retry-after", "7")])).await;
    let answer = send(&sender(), &receiver.url("/")).await.expect("answered");
    assert_eq!((answer.status.as_u16(), answer.retry_after), (503, Some(Duration::from_secs(7))));
}

#[tokio::test]
async fn a_receiver_that_hangs_costs_the_timeout_and_no_more() {
    let receiver = Receiver::start(|_| Reply::Hang).await;
    let began = Instant::now();
    let error = send(&sender(), &receiver.url("/?token=abc")).await.expect_err("no answer");
    assert!(matches!(error, SendError::Timeout(_)), "{error:?}");
    assert_eq!(error.to_string(), "no answer within 2s");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(1_900) && took < Duration::from_secs(5), "{took:?}");
}

/// Each byte comes in time; the answer does not.
#[tokio::test]
async fn a_head_that_drips_costs_the_timeout_and_no_more() {
    let receiver = Receiver::start(|_| Reply::DrippingHead).await;
    let began = Instant::now();
    let error = send(&sender(), &receiver.url("/")).await.expect_err("no answer");
    assert!(matches!(error, SendError::Timeout(_)), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    receiver.closed_by_sender().await;
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    for reply in [Reply::EndlessBody, Reply::DrippingBody] {
        let receiver = Receiver::start(move |_| reply.clone()).await;
        let began = Instant::now();
        let answer = send(&sender(), &receiver.url("/")).await.expect("the head is the answer");
        assert_eq!(answer.status, 200);
        assert!(began.elapsed() < Duration::from_millis(1_800), "{:?}", began.elapsed());
        // Its connection is closed, which the receiver notices while it writes.
        receiver.closed_by_sender().await;
    }
}

#[tokio::test]
async fn a_head_without_end_is_an_error_of_bounded_size() {
    let receiver = Receiver::start(|_| Reply::EndlessHead).await;
    let error = send(&sender(), &receiver.url("/")).await.expect_err("no head");
    assert!(matches!(error, SendError::Broken(_) | SendError::Timeout(_)), "{error:?}");
    receiver.closed_by_sender().await;
}

#[tokio::test]
async fn broken_connections_are_told_apart_are_not_tried_again_and_never_show_the_url() {
    for reply in [Reply::Close, Reply::Garbage, Reply::HalfHead] {
        let receiver = Receiver::start(move |_| reply.clone()).await;
        let error = send(&sender(), &receiver.url("/?token=abc")).await.expect_err("broken");
        assert!(matches!(error, SendError::Broken(_)), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("token"), "{error:?}");
        assert_eq!((receiver.connections(), receiver.seen().len()), (1, 1), "the client must not retry");
    }
    let plain = Receiver::start(|_| Reply::status(200)).await;
    let url = format!("https://127.0.0.1:{}/?token=abc", plain.port());
    let error = send(&sender(), &url).await.expect_err("no TLS there");
    assert!(matches!(error, SendError::Connect(_) | SendError::Timeout(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("token"), "{error:?}");
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let error = send(&sender(), &format!("http://{nobody}/?token=abc")).await.expect_err("refused");
    assert!(matches!(error, SendError::Connect(_)), "{error:?}");
    assert!(error.to_string().starts_with("cannot connect: Connection refused"), "{error}");
    assert!(!format!("{error:?}").contains("token"), "{error:?}");
    let error = send(&sender(), "http://no-such-host.invalid/?token=abc").await.expect_err("no such host");
    assert!(matches!(error, SendError::Connect(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("token"), "{error:?}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let receiver = Receiver::start(|_| Reply::body(200, &"x".repeat(3_000))).await;
    let sender = sender();
    for _ in 0..20 {
        send(&sender, &receiver.url("/")).await.expect("answered");
    }
    assert_eq!((receiver.seen().len(), receiver.connections()), (20, 1));
}

/// A store of its own with a notifier on it, and jobs that end in it.
struct House {
    store: Store,
    clock: Arc<SystemClock>,
    catalog: Catalog,
    url: String,
    _folder: tempfile::TempDir,
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("paceline.db").display());
        let store =
            Store::open(&StoreOptions { url: url.clone(), exclusive: true, connections_max: 8 }).await.expect("opened");
        store.migrate().await.expect("migrated");
        let rules = BTreeMap::from([("geocoder".to_owned(), ProviderRules::default())]);
        let catalog =
            Catalog { providers: rules, allow_http: true, callbacks: true, endpoints: true, ..Catalog::default() };
        Self { store, clock: Arc::new(SystemClock::new()), catalog, url, _folder: folder }
    }

    /// Lets jobs `from..to` in and ends them, each with a callback to `url`.
    async fn complete(&self, ids: std::ops::Range<usize>, url: &str, tenant: &str) {
        let owner = Some("dispatcher".to_owned());
        let ids: Vec<usize> = ids.collect();
        for some in ids.chunks(500) {
            let jobs = some.iter().map(|n| {
                let envelope = serde_json::json!({
                    "id": format!("job-{n}"), "provider": "geocoder", "tenant": tenant,
                    "request": {"path": "/v1/geocode"}, "callback": {"url": url},
                });
                let job = Job::parse(envelope.to_string().as_bytes(), &Given::default(), &self.catalog).expect("a job");
                NewJob { job, origin: Origin::default(), owner: owner.clone() }
            });
            let inserted = self.store.insert(jobs.collect(), self.clock.wall_ms()).await.expect("inserted");
            let ended = inserted.into_iter().map(|job| {
                let Inserted::Created(Some(claimed)) = job else { panic!("expected a claimed job, found {job:?}") };
                self.store.record(self.ending(&claimed))
            });
            for recorded in futures_util::future::join_all(ended).await {
                assert_eq!(recorded.expect("recorded"), Recorded::Done);
            }
        }
    }

    fn ending(&self, claimed: &Claimed) -> Record {
        let response = StoredResponse {
            status: 200,
            headers: "{}".into(),
            content_type: Some("application/json".into()),
            body: "{}".into(),
            truncated: false,
        };
        let next = Next::Finish { state: JobState::Succeeded, reason: None, error: None, response: Some(response) };
        let (pk, epoch, run) = (claimed.pk, claimed.epoch, claimed.run);
        Record { pk, epoch, run, attempt: None, failures: 0, at_ms: self.clock.wall_ms(), next }
    }

    fn open(&self, settings: WebhookSettings) -> Running {
        let notifier = Notifier::new(self.store.clone(), self.clock.clone(), settings).expect("a notifier");
        let shutdown = CancellationToken::new();
        Running { stats: notifier.stats(), task: tokio::spawn(notifier.run(shutdown.clone())), shutdown }
    }

    /// What another notifier could claim now.
    async fn due(&self) -> usize {
        let lease = Duration::from_millis(1);
        let owner = "another".to_owned();
        self.store.claim_deliveries(&owner, 10_000, self.clock.wall_ms(), lease).await.expect("claimed").len()
    }
}

struct Running {
    stats: NotifierStats,
    task: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Running {
    async fn stop(self) -> NotifierStats {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.expect("stopped in time").expect("whole");
        self.stats
    }
}

/// Keeps the store from being written to, from outside, until it says that it is not available.
async fn outage(house: &House, url: &str) {
    let mut other = SqliteConnection::connect(url).await.expect("connected");
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.expect("locked");
    while house.store.heartbeat(&"nobody".to_owned(), "test").await.is_ok() {}
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("unlocked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_for_a_while_costs_time_but_no_delivery_and_no_repetition() {
    let house = House::new().await;
    let receiver = Receiver::start(|_| Reply::Late(Duration::from_millis(300))).await;
    house.complete(0..10, &receiver.url("/"), "").await;
    let running = house.open(settings());
    // Answers come while nothing can be recorded, and more becomes due than was claimed.
    receiver.until(|seen| !seen.is_empty()).await;
    outage(&house, &house.url).await;
    house.complete(10..20, &receiver.url("/"), "").await;
    receiver.until(|seen| distinct(seen).len() == 20).await;
    let stats = running.stop().await;
    assert_eq!((receiver.seen().len(), stats.attempts(DeliveryNext::Delivered)), (20, 20));
    assert_eq!(house.store.next_delivery_due().await.expect("asked"), None, "all of them recorded");
}

fn distinct(seen: &[receiver::Got]) -> BTreeSet<String> {
    seen.iter().map(|got| got.header("webhook-id").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_completion_is_delivered_once_signed_and_recorded() {
    let house = House::new().await;
    let receiver = Receiver::start(|_| Reply::status(204)).await;
    house.complete(0..300, &receiver.url("/before"), "").await;
    let running = house.open(settings());
    receiver.until(|seen| seen.len() >= 300).await;
    // And those that come while it runs: it is woken for them.
    let began = Instant::now();
    house.complete(300..301, &receiver.url("/after"), "acme").await;
    receiver.until(|seen| seen.len() >= 301).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let stats = running.stop().await;

    let seen = receiver.seen();
    assert_eq!((seen.len(), distinct(&seen).len()), (301, 301));
    for got in &seen {
        let secret =
            if got.target == "/after" { settings().secrets.told_to("acme") } else { Secret::new(SECRET.into()) };
        got.verify(secret.expose()).expect("signed");
    }
    assert_eq!(stats.attempts(DeliveryNext::Delivered), 301);
    assert_eq!(house.store.next_delivery_due().await.expect("asked"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_receiver_is_tried_again_by_the_schedule_with_the_same_id_until_it_is_spent() {
    let house = House::new().await;
    let receiver = Receiver::start(|got| Reply::status(if got.target == "/never" { 500 } else { 503 })).await;
    let steps = vec![Duration::from_millis(20), Duration::from_millis(200), Duration::from_millis(40)];
    let schedule = Schedule::new(steps).expect("short enough");
    house.complete(0..1, &receiver.url("/never"), "").await;
    let running = house.open(WebhookSettings { schedule, ..settings() });
    receiver.until(|seen| seen.len() >= 4).await;
    let stats = running.stop().await;
    let seen = receiver.seen();
    assert_eq!((seen.len(), distinct(&seen).len()), (4, 1));
    let waits: Vec<u128> = seen.windows(2).map(|pair| (pair[1].at - pair[0].at).as_millis()).collect();
    assert!(waits[0] >= 19 && waits[1] >= 199 && waits[2] >= 39 && waits.iter().sum::<u128>() < 3_000, "{waits:?}");
    assert_eq!((stats.attempts(DeliveryNext::Failed), stats.attempts(DeliveryNext::Retry { due_ms: 0 })), (1, 3));
    assert_eq!(house.store.next_delivery_due().await.expect("asked"), None, "kept, but not pending");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_gone_gets_nothing_more() {
    let house = House::new().await;
    let receiver = Receiver::start(|_| Reply::status(410)).await;
    house.complete(0..1, &receiver.url("/"), "").await;
    let running = house.open(settings());
    receiver.until(|seen| seen.len() == 1).await;
    let stats = running.stop().await;
    assert_eq!(stats.attempts(DeliveryNext::Gone), 1);
    house.complete(1..20, &receiver.url("/"), "").await;
    assert_eq!(house.due().await, 0);
}

/// 2,000 deliveries to receivers that never answer are due before those of one that does.
#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_hang_do_not_slow_others() {
    let house = House::new().await;
    let hanging = Receiver::start(|_| Reply::Hang).await;
    let healthy = Receiver::start(|_| Reply::status(200)).await;
    for path in 0..4 {
        house.complete(path * 500..(path + 1) * 500, &hanging.url(&format!("/{path}")), "").await;
    }
    house.complete(2_000..2_100, &healthy.url("/"), "").await;
    let running = house.open(WebhookSettings { timeout: Duration::from_secs(10), concurrency: 64, ..settings() });
    let began = Instant::now();
    healthy.until(|seen| seen.len() >= 100).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // Once they are known, nobody waits for them at all.
    let began = Instant::now();
    house.complete(2_100..2_200, &healthy.url("/"), "").await;
    healthy.until(|seen| seen.len() >= 200).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(hanging.seen().len() <= 32, "at most half of the slots: {}", hanging.seen().len());
    running.shutdown.cancel();
    running.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_calls_end_and_hands_the_rest_back_at_once() {
    let house = House::new().await;
    let slow = Receiver::start(|_| Reply::Late(Duration::from_millis(700))).await;
    house.complete(0..100, &slow.url("/"), "").await;
    let running = house.open(settings());
    slow.until(|seen| !seen.is_empty()).await;
    let stats = running.stop().await;
    let sent = slow.seen().len();
    assert!((1..100).contains(&sent), "{sent}");
    assert_eq!(usize::try_from(stats.attempts(DeliveryNext::Delivered)).expect("small"), sent, "all of them recorded");
    assert_eq!(house.due().await, 100 - sent, "the others are due, now and not when a claim runs out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_hanging_receiver_beyond_its_grace() {
    let house = House::new().await;
    let hanging = Receiver::start(|_| Reply::Hang).await;
    house.complete(0..3, &hanging.url("/"), "").await;
    let timeout = Duration::from_secs(60);
    let running = house.open(WebhookSettings { timeout, grace: Duration::from_millis(300), ..settings() });
    hanging.until(|seen| seen.len() == 3).await;
    let began = Instant::now();
    running.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(house.due().await, 3);
}

/// A receiver of webhooks, on a socket of its own, that behaves as it is told.
mod receiver {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    /// The secret of all tests.
    pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// What came in.
    #[derive(Debug, Clone)]
    pub struct Got {
        pub method: String,
        pub target: String,
        pub headers: http::HeaderMap,
        pub body: Vec<u8>,
        pub at: Instant,
    }

    impl Got {
        pub fn header(&self, name: &str) -> &str {
            self.headers.get(name).expect(name).to_str().expect("text")
        }

        pub fn verify(&self, secret: &str) -> Result<(), standardwebhooks::WebhookError> {
            standardwebhooks::Webhook::new(secret)?.verify(&self.body, &self.headers)
        }
    }

    /// What it does then.
    #[derive(Debug, Clone)]
    pub enum Reply {
        /// A whole answer.
        Bytes(String),
        /// 204, after a while.
        Late(Duration),
        /// Nothing, for ever.
        Hang,
        /// It closes the connection.
        Close,
        /// Half a head, and then it closes the connection.
        HalfHead,
        /// Something that is not HTTP.
        Garbage,
        /// A head that never ends.
        EndlessHead,
        /// A head that never ends, slowly.
        DrippingHead,
        /// A body that never ends.
        EndlessBody,
        /// A body that never ends, slowly.
        DrippingBody,
    }

    impl Reply {
        pub fn status(status: u16) -> Self {
            Self::with(status, &[])
        }

        pub fn with(status: u16, headers: &[(&str, &str)]) -> Self {
            let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let length = if status == 204 { "" } else { "content-length: 0\r\n" };
            Self::Bytes(format!("HTTP/1.1 {status} X\r\n{headers}{length}\r\n"))
        }

        pub fn body(status: u16, body: &str) -> Self {
            Self::Bytes(format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
        }
    }

    #[derive(Default)]
    struct Ledger {
        seen: Mutex<Vec<Got>>,
        connections: AtomicUsize,
        closed: Notify,
        came: Notify,
    }

    type Behaviour = dyn Fn(&Got) -> Reply + Send + Sync;

    /// It stops when it is dropped.
    pub struct Receiver {
        address: std::net::SocketAddr,
        ledger: Arc<Ledger>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Receiver {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Receiver {
        pub async fn start(behaviour: impl Fn(&Got) -> Reply + Send + Sync + 'static) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let ledger = Arc::new(Ledger::default());
            let behaviour: Arc<Behaviour> = Arc::new(behaviour);
            let book = Arc::clone(&ledger);
            let task = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    book.connections.fetch_add(1, Ordering::SeqCst);
                    let (book, behaviour) = (Arc::clone(&book), Arc::clone(&behaviour));
                    tokio::spawn(async move {
                        // The end of a connection, whichever way, is not this test's failure.
                        serve(stream, &book, &*behaviour).await.ok();
                        book.closed.notify_one();
                    });
                }
            });
            Self { address, ledger, task }
        }

        pub fn port(&self) -> u16 {
            self.address.port()
        }

        pub fn url(&self, target: &str) -> String {
            format!("http://{}{target}", self.address)
        }

        pub fn seen(&self) -> Vec<Got> {
            self.ledger.seen.lock().expect("whole").clone()
        }

        pub fn only(&self) -> Got {
            let mut seen = self.seen();
            assert_eq!(seen.len(), 1);
            seen.remove(0)
        }

        pub fn connections(&self) -> usize {
            self.ledger.connections.load(Ordering::SeqCst)
        }

        /// Waits until what came in is enough.
        pub async fn until(&self, enough: impl Fn(&[Got]) -> bool) {
            let coming = async {
                while !enough(&self.ledger.seen.lock().expect("whole")) {
                    self.ledger.came.notified().await;
                }
            };
            let came = tokio::time::timeout(Duration::from_secs(30), coming).await;
            assert!(came.is_ok(), "only {} requests came in 30 s", self.seen().len());
        }

        /// Waits until a connection has ended.
        pub async fn closed_by_sender(&self) {
            let closed = self.ledger.closed.notified();
            tokio::time::timeout(Duration::from_secs(10), closed).await.expect("closed by the sender");
        }
    }

    async fn serve(mut stream: TcpStream, ledger: &Ledger, behaviour: &Behaviour) -> std::io::Result<()> {
        let mut buffer = Vec::new();
        while let Some(got) = read(&mut stream, &mut buffer).await? {
            let reply = behaviour(&got);
            ledger.seen.lock().expect("whole").push(got);
            ledger.came.notify_one();
            match reply {
                Reply::Bytes(bytes) => stream.write_all(bytes.as_bytes()).await?,
                Reply::Late(wait) => {
                    tokio::time::sleep(wait).await;
                    stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").await?;
                }
                Reply::Hang => std::future::pending().await,
                Reply::Close => return Ok(()),
                Reply::HalfHead => return stream.write_all(b"HTTP/1.1 200 OK\r\nconte").await,
                Reply::Garbage => return stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await,
                Reply::EndlessHead => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                    forever(&mut stream, b"x-filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", Duration::ZERO)
                        .await?;
                }
                Reply::DrippingHead => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nx-filler: ").await?;
                    forever(&mut stream, b"a", Duration::from_millis(100)).await?;
                }
                Reply::EndlessBody => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                    forever(&mut stream, b"10\r\naaaaaaaaaaaaaaaa\r\n", Duration::ZERO).await?;
                }
                Reply::DrippingBody => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                    forever(&mut stream, b"1\r\na\r\n", Duration::from_millis(100)).await?;
                }
            }
        }
        Ok(())
    }

    async fn forever(stream: &mut TcpStream, bytes: &[u8], every: Duration) -> std::io::Result<()> {
        loop {
            stream.write_all(bytes).await?;
            if !every.is_zero() {
                tokio::time::sleep(every).await;
            }
        }
    }

    /// The next request; none at the end of the connection.
    async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Got>> {
        loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(buffer[..at].to_vec()).expect("a head in ASCII");
                let mut lines = head.lines();
                let mut start = lines.next().expect("a request line").split(' ').map(str::to_owned);
                let (method, target) = (start.next().expect("a method"), start.next().expect("a target"));
                let headers: http::HeaderMap = lines
                    .filter_map(|line| line.split_once(": "))
                    .map(|(n, v)| (n.parse::<http::HeaderName>().expect("a name"), v.parse().expect("a value")))
                    .collect();
                let length = headers.get("content-length").and_then(|v| v.to_str().ok()).unwrap_or("0");
                let end = at + 4 + length.parse::<usize>().expect("a length");
                while buffer.len() < end {
                    if stream.read_buf(buffer).await? == 0 {
                        return Ok(None);
                    }
                }
                let body = buffer[at + 4..end].to_vec();
                buffer.drain(..end);
                return Ok(Some(Got { method, target, headers, body, at: Instant::now() }));
            }
            if stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
