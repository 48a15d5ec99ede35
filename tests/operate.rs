//! What operators see and do, with the built binary: every state of a provider, a budget or a key has a way out that
//! works within seconds, in whatever process the dispatcher is, and outlives it.

mod common;

use std::time::{Duration, Instant};

use common::broker::Broker;
use common::world::{Mode, Serve, World, free_port, in_world};
use common::{SOON, holds, until};
use paceline::sim::{Lognormal, ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};

const KEYS: [(&str, &str); 2] = [("a1", "operate-key-0001"), ("a2", "operate-key-0002")];
/// An order is in effect within this time, also where its wake was lost.
const EFFECT: Duration = Duration::from_secs(8);

/// Both keys, and a third secret that may come in the place of one.
async fn provider(world: &World, more: &str) -> ProviderHandle {
    let mut keys: Vec<SimKey> = KEYS.iter().map(|(label, secret)| SimKey::new(*label, *secret)).collect();
    keys.push(SimKey::new("next", "operate-key-0003"));
    let latency = Some(Lognormal::ms(10, 30));
    let options = ProviderOptions { keys, latency, seed: 9, ..ProviderOptions::default() };
    let sim = ProviderSim::start(options).await.expect("a provider");
    world.provider(&sim.base_url(), &KEYS, more);
    sim
}

/// The processes of a test: one, or the API and the dispatcher apart.
struct Running {
    api: Option<Serve>,
    dispatcher: Serve,
}

impl Running {
    async fn start(world: &World) -> Self {
        match world.mode {
            Mode::Embedded => Self { api: None, dispatcher: world.serving().await },
            Mode::Scaled => {
                for prepare in [&["migrate"][..], &["topology", "apply"]] {
                    assert!(world.run(prepare).await.status.success(), "{prepare:?}");
                }
                let mut api = world.serve_as("api", &["--role", "api,scheduler"]);
                world.ready(&mut api).await;
                let port = free_port();
                world.set("PACELINE__METRICS__LISTEN", &format!("127.0.0.1:{port}"));
                let dispatcher = Self::dispatcher(world);
                Self { api: Some(api), dispatcher }
            }
        }
    }

    fn dispatcher(world: &World) -> Serve {
        world.serve_as("dispatcher", &["--role", "dispatcher,notifier"])
    }

    /// Another process in the place of the dispatcher; killed, or stopped in order.
    async fn restart(self, world: &World, kill: bool) -> Self {
        let Self { api, dispatcher } = self;
        if kill {
            dispatcher.kill().await;
        } else {
            dispatcher.stop().await;
        }
        match api {
            None => Self { api, dispatcher: world.serving().await },
            Some(_) => Self { api, dispatcher: Self::dispatcher(world) },
        }
    }

    async fn stop(self) {
        self.dispatcher.stop().await;
        if let Some(api) = self.api {
            api.stop().await;
        }
    }
}

fn job(world: &World, id: &str, path: &str, more: Value) -> Value {
    let mut job = json!({ "id": id, "provider": world.provider, "request": { "method": "POST", "path": path } });
    job.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    job
}

fn jobs(world: &World, prefix: &str, count: usize, more: &Value) -> Vec<Value> {
    (0..count).map(|n| job(world, &format!("{prefix}{n}"), "/ok", more.clone())).collect()
}

async fn order(world: &World, what: &str) -> Value {
    let (status, answer) = world.api().post(&format!("/v1/providers/{}/{what}", world.provider), &json!({})).await;
    assert_eq!(status, 200, "{what}: {answer}");
    answer
}

async fn shown(world: &World) -> Value {
    world.api().get(&format!("/v1/providers/{}", world.provider)).await.1
}

fn key<'a>(provider: &'a Value, label: &str) -> &'a Value {
    let budgets = provider["budgets"].as_array().expect("budgets");
    let mut keys = budgets.iter().flat_map(|budget| budget["keys"].as_array().expect("keys"));
    keys.find(|key| key["label"] == label).unwrap_or_else(|| panic!("no key {label}: {provider:#}"))
}

async fn key_is(world: &World, label: &str, state: &str) {
    until(&format!("{label} is {state}"), SOON, async || holds(key(&shown(world).await, label)["state"] == state))
        .await;
}

/// Waits until so many jobs have succeeded.
async fn succeeded(world: &World, count: i64) {
    until(&format!("{count} jobs have succeeded"), SOON, async || {
        holds(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await == count)
    })
    .await;
}

/// How often leases were taken, once a living process holds all of them and tells of them: after so many times.
async fn taken(world: &World, before: i64) -> i64 {
    until("a process dispatches and tells", SOON, async || {
        let provider = shown(world).await;
        let leases = provider["leases"].as_array()?;
        let told = provider["reports"]
            .as_array()?
            .iter()
            .any(|told| leases.first().is_some_and(|lease| told["owner"] == lease["owner"]));
        let epochs = leases.iter().filter_map(|lease| lease["epoch"].as_i64()).sum::<i64>();
        (told && leases.iter().all(|lease| lease["held"] == true) && epochs > before).then_some(epochs)
    })
    .await
}

/// Calls that a key made.
fn calls(sim: &ProviderHandle, label: &str) -> usize {
    sim.ledger().iter().filter(|call| &*call.key == label).count()
}

/// Looks on for a while: what is asked gives the same all the time.
async fn stays<T: PartialEq + std::fmt::Debug>(what: &str, span: Duration, mut look: impl AsyncFnMut() -> T) {
    let (first, began) = (look().await, Instant::now());
    while began.elapsed() < span {
        assert_eq!(look().await, first, "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const PACED: &str = "key_limits = [ { requests = 20, per = \"1s\", algorithm = \"sliding_window\" } ]\n\
    lanes = { high = 4, default = 4 }\ntimeout = \"2s\"";

async fn a_pause_holds_everything_back(world: &World) {
    let sim = provider(world, PACED).await;
    let running = Running::start(world).await;
    world.api().accept_all(&jobs(world, "j", 400, &json!({}))).await;
    sim.wait_accepted(20, SOON).await.expect("calls go out");
    let said = order(world, "pause").await;
    assert_eq!((&said["state"], &said["by"]), (&json!("paused"), &json!("local")));
    // Calls that were on their way end; then there are none.
    let mut last = sim.stats().arrivals;
    until("calls stop", EFFECT, async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        holds(std::mem::replace(&mut last, sim.stats().arrivals) == sim.stats().arrivals)
    })
    .await;
    let provider = shown(world).await;
    assert_eq!((&provider["state"], &provider["paused_by"]), (&json!("paused"), &json!("local")));
    if world.mode == Mode::Scaled {
        // What is published meanwhile stays in the broker, but for what was asked for already.
        let broker = Broker::connect().await;
        let all = jobs(world, "b", 300, &json!({}));
        let message = |job: &Value| (job["id"].as_str().expect("an id").to_owned(), job.to_string().into_bytes());
        broker.publish_all(&world.provider, all.iter().map(message)).await;
        // What a consumer had in hand is back in the queue a moment after it is gone.
        until("the inlet stops consuming, and most messages are in the broker", SOON, async || {
            let (kept, consumers) = broker.queue(&world.queue("default")).await?;
            holds(consumers == 0 && kept >= 100)
        })
        .await;
        broker.close().await;
    }
    // One that was in hand, and one that nobody has looked at.
    for id in ["j399", "j200"] {
        let job = world.api().job_in(id, &["queued", "waiting"]).await;
        assert_eq!(job["waiting_for"]["reason"], "paused", "{job}");
    }
    let running = running.restart(world, true).await;
    let before = sim.stats().arrivals;
    stays("a pause outlives a kill", Duration::from_secs(9), async || sim.stats().arrivals).await;
    assert_eq!(sim.stats().arrivals, before);
    assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state IN ('dead', 'expired')").await, 0);
    order(world, "resume").await;
    sim.wait_accepted(before + 40, EFFECT).await.expect("it goes on at once");
    let count = if world.mode == Mode::Scaled { 700 } else { 400 };
    world.all_done(count, Duration::from_secs(90)).await;
    world.at_rest(count).await;
    running.stop().await;
    assert_eq!((sim.stats().executed, sim.stats().refused_limit), (u64::try_from(count).expect("small"), 0));
}

async fn a_disabled_key_is_never_used(world: &World) {
    let sim = provider(world, PACED).await;
    let running = Running::start(world).await;
    world.api().accept_all(&jobs(world, "w", 40, &json!({}))).await;
    world.all_done(40, SOON).await;
    assert!(calls(&sim, "a1") > 0 && calls(&sim, "a2") > 0, "both are used");
    order(world, "keys/a1/disable").await;
    key_is(world, "a1", "disabled").await;
    assert_eq!(key(&shown(world).await, "a1")["disabled_by"], "local");
    // From the moment on at which its dispatcher has heard of it: a pinned job says so.
    world.api().accept(&job(world, "pinned", "/ok", json!({ "key": "a1" }))).await;
    let pinned = world.api().job_in("pinned", &["waiting", "succeeded"]).await;
    assert_eq!(pinned["waiting_for"]["reason"], "no_key", "{pinned}");
    let used = calls(&sim, "a1");
    world.api().accept_all(&jobs(world, "x", 60, &json!({}))).await;
    succeeded(world, 100).await;
    let running = running.restart(world, false).await;
    world.api().accept_all(&jobs(world, "y", 60, &json!({}))).await;
    succeeded(world, 160).await;
    assert_eq!(calls(&sim, "a1"), used, "not even once");
    let began = Instant::now();
    order(world, "keys/a1/enable").await;
    world.api().job_in_within("pinned", &["succeeded"], EFFECT).await;
    assert!(began.elapsed() < EFFECT, "{:?}", began.elapsed());
    key_is(world, "a1", "open").await;
    assert_eq!(calls(&sim, "a1"), used + 1);
    running.stop().await;
}

async fn what_was_refused_has_three_ways_out(world: &World) {
    let sim = provider(world, PACED).await;
    let running = Running::start(world).await;
    assert!(sim.set_revoked("a1", true));
    world.api().accept(&job(world, "first", "/ok", json!({ "key": "a1" }))).await;
    let first = world.api().job_in("first", &["waiting"]).await;
    assert_eq!(first["waiting_for"]["reason"], "no_key", "{first}");
    key_is(world, "a1", "refused").await;
    let until = key(&shown(world).await, "a1")["until"].clone();
    assert!(until.is_string(), "it is tried again by itself");
    let running = running.restart(world, false).await;
    key_is(world, "a1", "refused").await;
    // One: an operator says that it is well. It is tried at once, and refused again.
    let refused = sim.stats().refused_credential;
    order(world, "keys/a1/enable").await;
    common::until("it is tried", EFFECT, async || holds(sim.stats().refused_credential == refused + 1)).await;
    key_is(world, "a1", "refused").await;
    world.api().job_in("first", &["waiting"]).await;
    // The same order is not news to the next process.
    let epochs = taken(world, 0).await;
    let running = running.restart(world, true).await;
    taken(world, epochs).await;
    key_is(world, "a1", "refused").await;
    stays("nobody tries it", Duration::from_secs(3), async || sim.stats().refused_credential).await;
    // Two: the provider accepts it again, and an operator says so.
    sim.set_revoked("a1", false);
    order(world, "keys/a1/enable").await;
    world.api().job_in_within("first", &["succeeded"], EFFECT).await;
    // Three: another secret under the same label.
    sim.set_revoked("a1", true);
    world.api().accept(&job(world, "second", "/ok", json!({ "key": "a1" }))).await;
    world.api().job_in("second", &["waiting"]).await;
    key_is(world, "a1", "refused").await;
    world.set("KEY_a1", "operate-key-0003");
    let running = running.restart(world, false).await;
    key_is(world, "a1", "open").await;
    world.api().accept(&job(world, "third", "/ok", json!({ "key": "a1" }))).await;
    world.api().job_in("third", &["succeeded"]).await;
    world.api().job_in_within("second", &["succeeded"], EFFECT).await;
    running.stop().await;
}

async fn a_parked_budget_is_resumed(world: &World) {
    let sim = provider(world, PACED).await;
    let running = Running::start(world).await;
    world.api().accept(&job(world, "poor", "/status/402", json!({ "key": "a1" }))).await;
    let poor = world.api().job_in("poor", &["waiting"]).await;
    assert_eq!(poor["waiting_for"]["reason"], "paused", "{poor}");
    let parked = |provider: &Value| {
        let budgets = provider["budgets"].as_array().expect("budgets");
        budgets.iter().any(|budget| budget["name"] == "a1" && budget["state"] == "parked")
    };
    until("the budget is parked", SOON, async || holds(parked(&shown(world).await))).await;
    world.api().accept(&job(world, "rich", "/ok", json!({ "key": "a1" }))).await;
    world.api().accept(&job(world, "sibling", "/ok", json!({ "key": "a2" }))).await;
    world.api().job_in("sibling", &["succeeded"]).await;
    let running = running.restart(world, false).await;
    world.api().job_in("rich", &["waiting"]).await;
    until("it outlives a restart", SOON, async || holds(parked(&shown(world).await))).await;
    order(world, "budgets/a1/resume").await;
    // Both go again; one of them parks it anew, so the other one may have to wait for the next order.
    let before = calls(&sim, "a1");
    until("it is used at once", EFFECT, async || holds(calls(&sim, "a1") > before)).await;
    running.stop().await;
}

/// A lane full of jobs for a key that is out of use, in the broker: everybody else goes on at the full rate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_pin_stalls_nobody_else() {
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, PACED).await;
        let running = Running::start(world).await;
        order(world, "keys/a1/disable").await;
        key_is(world, "a1", "disabled").await;
        let broker = Broker::connect().await;
        let message = |job: &Value| (job["id"].as_str().expect("an id").to_owned(), job.to_string().into_bytes());
        let pinned = jobs(world, "p", 4_000, &json!({ "key": "a1", "lane": "high" }));
        broker.publish_all(&format!("{}.high", world.provider), pinned.iter().map(message)).await;
        let began = Instant::now();
        let others = jobs(world, "o", 200, &json!({}));
        broker.publish_all(&world.provider, others.iter().map(message)).await;
        let behind = jobs(world, "q", 100, &json!({ "lane": "high" }));
        broker.publish_all(&format!("{}.high", world.provider), behind.iter().map(message)).await;
        // a2 allows 20 calls a second: 300 take 15 s.
        sim.wait_accepted(300, Duration::from_secs(60)).await.expect("the others go on");
        let took = began.elapsed();
        assert!(took < Duration::from_secs(21), "300 calls at 20 a second took {took:?}");
        until("the backlog is in the store", Duration::from_secs(60), async || {
            holds(broker.queue(&world.queue("high")).await?.0 == 0)
        })
        .await;
        assert_eq!(calls(&sim, "a1"), 0);
        // It costs nothing to have them wait: nobody looks at them again and again.
        until("all of them wait", SOON, async || {
            let waiting = "SELECT COUNT(*) FROM jobs WHERE state = 'waiting' AND waiting_reason = 'no_key'";
            holds(world.number(waiting).await == 4_000)
        })
        .await;
        let epochs = "SELECT CAST(SUM(epoch) AS BIGINT) FROM jobs";
        stays("nobody claims them", Duration::from_secs(5), async || world.number(epochs).await).await;
        order(world, "keys/a1/enable").await;
        until("they go", EFFECT, async || holds(calls(&sim, "a1") >= 20)).await;
        let freed = "SELECT COUNT(*) FROM jobs WHERE waiting_reason = 'no_key'";
        until("all may go again", SOON, async || holds(world.number(freed).await == 0)).await;
        broker.close().await;
        running.stop().await;
    })
    .await;
}

/// The metrics of a dispatcher that is apart from the API, and the live state as the API tells it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_apart_has_its_figures_and_tells_them() {
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, PACED).await;
        let running = Running::start(world).await;
        let port = world.get("PACELINE__METRICS__LISTEN");
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let figures = async || -> Option<String> {
            http.get(format!("http://{port}/metrics")).send().await.ok()?.text().await.ok()
        };
        world.api().accept_all(&jobs(world, "j", 500, &json!({}))).await;
        sim.wait_accepted(100, SOON).await.expect("calls go out");
        let name = world.provider.as_str();
        let of = |metric: &str, labels: &str| format!("\n{metric}{{provider=\"{name}\"{labels}}} ");
        let value = |text: &str, metric: &str, labels: &str| -> Option<f64> {
            let text = text.split(&of(metric, labels)).nth(1)?;
            text.lines().next()?.trim().parse().ok()
        };
        let text = until("the rate is told", SOON, async || {
            let text = figures().await?;
            let labels = ",budget=\"a1\"";
            let achieved = value(&text, "paceline_budget_achieved_calls_per_second", labels)?;
            (achieved > 10.0).then_some(text)
        })
        .await;
        let labels = ",budget=\"a1\"";
        assert_eq!(value(&text, "paceline_budget_allowed_calls_per_second", labels), Some(20.0), "{text}");
        assert!(value(&text, "paceline_budget_calls_total", labels).is_some_and(|calls| calls >= 20.0), "{text}");
        assert_eq!(value(&text, "paceline_pacing_errors_total", labels), Some(0.0));
        assert!(value(&text, "paceline_permits_waiting", ",lane=\"default\"").is_some_and(|n| n > 0.0), "{text}");
        assert_eq!(value(&text, "paceline_keys", ",state=\"open\""), Some(2.0));
        assert!(value(&text, "paceline_leases_held", "").is_some_and(|held| held >= 1.0), "{text}");
        assert_eq!(http.get(format!("http://{port}/healthz")).send().await.expect("an answer").status(), 200);
        assert_eq!(http.get(format!("http://{port}/v1/jobs")).send().await.expect("an answer").status(), 404);
        // The API is another process: it has no such figures, and knows the state all the same.
        let theirs = world.api().text("/metrics").await;
        assert!(!theirs.contains("paceline_budget_allowed"), "{theirs}");
        assert!(theirs.contains(&format!("paceline_lease_epoch{{provider=\"{name}\"")), "{theirs}");
        let provider = shown(world).await;
        assert_eq!((&provider["state"], &provider["keys"]["open"]), (&json!("open"), &json!(2)), "{provider:#}");
        assert_eq!(provider["allowed_per_second"], 40.0);
        let lease = &provider["leases"][0];
        assert_eq!((&lease["held"], &lease["epoch"]), (&json!(true), &json!(1)), "{provider:#}");
        assert_eq!(provider["reports"][0]["owner"], lease["owner"]);
        assert!(!provider.to_string().contains("operate-key"), "{provider}");
        // What a process told is gone with it.
        let Running { api, dispatcher } = running;
        dispatcher.stop().await;
        let provider = shown(world).await;
        assert_eq!((&provider["reports"], &provider["keys"]["unknown"]), (&json!([]), &json!(2)), "{provider:#}");
        assert_eq!(provider["leases"][0]["held"], false);
        api.expect("an API").stop().await;
    })
    .await;
}

/// The command line with a server, and with the store itself while there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_given_at_the_command_line_too() {
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, PACED).await;
        assert!(world.run(&["migrate"]).await.status.success());
        let name = world.provider.clone();
        let said = async |arguments: &[&str]| {
            let output = world.run(arguments).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(!text.contains("operate-key"), "{text}");
            text
        };
        assert_eq!(said(&["keys", "disable", &name, "a1"]).await, format!("{name} key a1  disabled\n"));
        assert!(said(&["keys", "list"]).await.contains("command line"));
        let running = Running::start(world).await;
        world.api().accept_all(&jobs(world, "j", 30, &json!({}))).await;
        world.all_done(30, SOON).await;
        assert_eq!(calls(&sim, "a1"), 0, "the order was older than the process");
        said(&["keys", "enable", &name, "a1"]).await;
        key_is(world, "a1", "open").await;
        assert_eq!(said(&["providers", "pause", &name]).await, format!("{name}  paused\n"));
        let shown = said(&["providers", "show", &name]).await;
        assert!(shown.contains("paused by local") && shown.contains("LEASE"), "{shown}");
        let listed: Value = serde_json::from_str(&said(&["--json", "providers", "list"]).await).expect("JSON");
        assert_eq!((&listed["items"][0]["name"], &listed["items"][0]["state"]), (&json!(name), &json!("paused")));
        said(&["providers", "resume", &name]).await;
        said(&["providers", "resume", &name, "--budget", "a1"]).await;
        for wrong in [vec!["providers", "show", "nobody"], vec!["keys", "enable", &name, "zz"]] {
            assert_eq!(world.run(&wrong).await.status.code(), Some(4), "{wrong:?}");
        }
        running.stop().await;
    })
    .await;
}

macro_rules! in_both_modes {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::in_world(super::Mode::Embedded, async |world| super::$name(world).await).await;
            })*
        }
        mod scaled {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::in_world(super::Mode::Scaled, async |world| super::$name(world).await).await;
            })*
        }
    };
}

in_both_modes! {
    a_pause_holds_everything_back
    a_disabled_key_is_never_used
    what_was_refused_has_three_ways_out
    a_parked_budget_is_resumed
}
