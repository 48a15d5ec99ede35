//! The main job by the built binary: jobs in, calls out at the allowed rate, outcomes as the contract
//! says, completions as signed webhooks, dead letters run again. With foreign parts (a Python producer,
//! provider, receiver and auditor), and feature by feature against the bundled strict provider.

mod common;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::world::{Api, Mode, SECRET, World, checkout, free_port, in_world};
use common::{SOON, holds, until};
use paceline::sim::{
    KeyPlace, Outage, ProviderHandle, ProviderOptions, ProviderSim, RateHeaders, ReceiverOptions, ReceiverSim, SimKey,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Visible ASCII, and odd in every encoding that a provider may echo it in.
const KEY: &str = "sk-\"odd/key+1&x=%y\\z";
const SECOND: &str = "second-key-0123456789";

async fn sim(options: ProviderOptions) -> ProviderHandle {
    ProviderSim::start(options).await.expect("a provider")
}

fn two_keys() -> ProviderOptions {
    ProviderOptions { keys: vec![SimKey::new("a1", KEY), SimKey::new("a2", SECOND)], ..ProviderOptions::default() }
}

/// An embedded system with one provider and two keys.
async fn system(more: &str, options: ProviderOptions, test: impl AsyncFnOnce(&World, &Api, &ProviderHandle)) {
    in_world(Mode::Embedded, async |world| {
        let provider = sim(options).await;
        world.provider(&provider.base_url(), &[("a1", KEY), ("a2", SECOND)], more);
        let serve = world.serving().await;
        test(world, &world.api(), &provider).await;
        serve.stop().await;
    })
    .await;
}

fn job(world: &World, id: &str, path: &str) -> Value {
    json!({ "id": id, "provider": world.provider, "request": { "path": path } })
}

fn with(mut job: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("an object") {
        job[name] = value.clone();
    }
    job
}

fn query(mut job: Value, query: Value) -> Value {
    job["request"]["query"] = query;
    job
}

fn outcomes(job: &Value) -> Vec<&str> {
    job["attempts"].as_array().expect("attempts").iter().filter_map(|a| a["outcome"].as_str()).collect()
}

fn called(sim: &ProviderHandle, id: &str) -> Vec<(Duration, String)> {
    let ledger = sim.ledger();
    let mine = ledger.iter().filter(|call| call.idempotency_key.as_deref() == Some(id));
    mine.map(|call| (call.at, call.key.to_string())).collect()
}

fn in_ms(ms: i64) -> String {
    let now = jiff::Timestamp::now();
    now.checked_add(jiff::SignedDuration::from_millis(ms)).expect("a time").to_string()
}

// ------------------------------------------------------------------------------- with foreign parts

/// A Python process; killed where it is forgotten.
async fn python(script: &str, arguments: &[&str], env: &[(&str, &str)]) -> Command {
    let interpreter = match std::env::var("PACELINE_PYTHON") {
        Ok(path) if !path.is_empty() => path,
        _ => {
            let found =
                Command::new(checkout().join("deploy/services")).arg("python").output().await.expect("a script");
            assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
            String::from_utf8(found.stdout).expect("a path").trim().to_owned()
        }
    };
    let mut command = Command::new(interpreter);
    command.arg(checkout().join(script)).args(arguments).envs(env.iter().copied()).kill_on_drop(true);
    command
}

async fn provider_py(per: u64, ledger: &str) -> (Child, String) {
    let arguments = ["--limit", "100", "--per", &per.to_string(), "--seed", "5", "--ledger", ledger];
    let mut command = python("tests/acceptance/provider.py", &arguments, &[]).await;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let line = lines.next_line().await.expect("readable").expect("a line");
    let url = line.split_whitespace().last().expect("a URL").to_owned();
    assert!(url.starts_with("http://"), "{line}");
    (child, url)
}

/// A thousand jobs over four keys of 100 calls in any window; of 2 s, or of 10 s for the full size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_jobs_from_python_judged_by_python() {
    let full = std::env::var_os("PACELINE_FULL_SIZE").is_some();
    let (count, per) = ("1000", if full { 10 } else { 2 });
    in_world(Mode::Scaled, async |world| {
        let file = |name: &str| world.path(name).to_str().expect("a path").to_owned();
        let (ledger, webhooks) = (file("provider.json"), file("webhooks.jsonl"));
        let (mut provider, url) = provider_py(per, &ledger).await;
        let limits = format!(
            "key_limits = [ {{ requests = 100, per = \"{per}s\", algorithm = \"sliding_window\" }} ]\ntimeout = \"10s\""
        );
        world.provider(&url, &[("k1", "key-one"), ("k2", "key-two"), ("k3", "key-three"), ("k4", "key-four")], &limits);
        let port = free_port().to_string();
        let env = [("PACELINE_WEBHOOK_SECRET", SECRET)];
        let mut receiver = python("examples/receive_webhooks.py", &[&port, &webhooks], &env).await;
        let _receiver = receiver.spawn().expect("it starts");
        let serve = world.serving().await;
        let hook = format!("http://127.0.0.1:{port}/");
        let mut publish = python("examples/publish.py", &[count, &world.provider, &hook, "py-1-"], &[]).await;
        let published = publish.output().await.expect("it ran");
        assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
        world.all_done(1_000, Duration::from_secs(40 + 3 * per)).await;
        until("every webhook is written down", SOON, async || {
            let text = std::fs::read_to_string(&webhooks).unwrap_or_default();
            holds(text.lines().count() >= 1_000)
        })
        .await;
        serve.stop().await;
        let pid = provider.id().expect("it runs").to_string();
        Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill");
        provider.wait().await.expect("it writes its ledger");
        let arguments = ["--prefix", "py-1-", "--count", count, "--provider", &ledger, "--webhooks", &webhooks];
        let audit = python("tests/acceptance/audit.py", &arguments, &[]).await.output().await.expect("it ran");
        let finding = String::from_utf8_lossy(&audit.stdout);
        assert!(audit.status.success(), "{finding}");
        let finding: Value = serde_json::from_str(&finding).expect("JSON");
        assert_eq!((&finding["over_the_limit"], &finding["jobs"]), (&json!(0), &json!(1_000)));
        world.at_rest(1_000).await;
    })
    .await;
}

// -------------------------------------------------------------------------------------- dead letters

async fn dead_letters_run_again(mode: Mode) {
    in_world(mode, async |world| {
        let provider = sim(ProviderOptions { outage: Outage::Marked, ..two_keys() }).await;
        let options = ReceiverOptions { secrets: vec![SECRET.to_owned()], ..ReceiverOptions::default() };
        let hooks = ReceiverSim::start(options).await.expect("a receiver");
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        let serve = world.serving().await;
        let api = world.api();
        for id in ["by-http", "by-command", "edited"] {
            let callback = json!({ "callback": { "url": hooks.hook("") } });
            api.accept(&with(query(job(world, id, "/outage"), json!({ "status": 422 })), callback)).await;
            let dead = api.job_in(id, &["dead"]).await;
            assert_eq!((&dead["reason"], &dead["attempts"][0]["status"]), (&json!("permanent"), &json!(422)));
        }
        let letters = api.dead_letters("permanent", 3).await;
        assert!(letters.iter().all(|l| l["envelope"]["request"]["path"] == "/outage" && l["replayed_at"].is_null()));
        let listed = world.run(&["--json", "dead", "list", "--reason", "permanent"]).await;
        let listed = String::from_utf8_lossy(&listed.stdout).replace(' ', "");
        assert_eq!(listed.matches("\"reason\":\"permanent\"").count(), 3, "{listed}");
        provider.set_outage(Outage::None);
        let (status, answer) = api.post("/v1/dead-letters/by-http/replay", &json!({})).await;
        assert_eq!((status, &answer["run"]), (202, &json!(2)), "{answer}");
        let replayed = world.run(&["--json", "dead", "replay", "by-command"]).await;
        assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
        let edit = json!({ "request": { "path": "/ok/edited" } });
        assert_eq!(api.post("/v1/dead-letters/edited/replay", &edit).await.0, 202);
        for id in ["by-http", "by-command", "edited"] {
            let job = api.job_in(id, &["succeeded"]).await;
            assert_eq!(job["run"], 2);
            let runs: Vec<_> =
                job["attempts"].as_array().expect("attempts").iter().map(|a| (&a["run"], &a["n"])).collect();
            assert_eq!(runs, [(&json!(1), &json!(1)), (&json!(2), &json!(1))], "its history is kept");
            assert!(api.get(&format!("/v1/dead-letters/{id}")).await.1["replayed_at"].is_string());
            assert_eq!(called(&provider, &format!("{id}.r2")).len(), 1, "a new run has a key of its own");
        }
        let (status, _) = api.post("/v1/dead-letters/by-http/replay", &json!({})).await;
        assert_eq!(status, 409, "what has succeeded is not run again");
        hooks.wait_acknowledged(6, SOON).await.expect("one event a run");
        assert_eq!(
            hooks.stats().by_type,
            BTreeMap::from([("job.dead".to_owned(), 3), ("job.succeeded".to_owned(), 3)])
        );
        world.at_rest(3).await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_run_again_by_command_and_over_http() {
    tokio::join!(dead_letters_run_again(Mode::Embedded), dead_letters_run_again(Mode::Scaled));
}

// ---------------------------------------------------------------------------------- feature by feature

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_where_the_provider_wants_them_and_never_come_back() {
    in_world(Mode::Embedded, async |world| {
        let token = |scheme: Option<&str>| KeyPlace::Header {
            name: "x-token".parse().expect("a name"),
            scheme: scheme.map(str::to_owned),
        };
        let places = [
            ("bearer", KeyPlace::Bearer, "{ header = \"authorization\", scheme = \"Bearer\" }"),
            ("plain", token(None), "{ header = \"x-token\" }"),
            ("schemed", token(Some("Token")), "{ header = \"X-Token\", scheme = \"Token\" }"),
            ("query", KeyPlace::Query { name: "the_key".to_owned() }, "{ query = \"the_key\" }"),
            ("basic", KeyPlace::Basic, "{ basic_user = \"me\" }"),
        ];
        world.set("KEY_a1", KEY);
        let (mut providers, mut text) = (Vec::new(), String::new());
        for (name, place, auth) in places {
            let keys = vec![SimKey::new("a1", KEY)];
            let provider = sim(ProviderOptions { keys, key_places: vec![place], ..ProviderOptions::default() }).await;
            text.push_str(&format!(
                "[[provider]]\nname = \"{name}\"\nbase_url = \"{}\"\nauth = {auth}\nretry = {{ max_attempts = 2, base = \"10ms\" }}\n\
                 keys = [ {{ label = \"a1\", secret = \"env:KEY_a1\" }} ]\n",
                provider.base_url()
            ));
            providers.push((name, provider));
        }
        let nobody = format!("http://127.0.0.1:{}", free_port());
        text.push_str(&format!(
            "[[provider]]\nname = \"absent\"\nbase_url = \"{nobody}\"\nauth = {{ query = \"the_key\" }}\n\
             retry = {{ max_attempts = 2, base = \"10ms\" }}\nkeys = [ {{ label = \"a1\", secret = \"env:KEY_a1\" }} ]\n"
        ));
        world.configure(&text);
        let hooks = Hooks::start().await;
        let serve = world.serve_as("serve", &["-v"]);
        let api = world.api();
        api.green(SOON).await;
        for (name, provider) in &providers {
            let echo = json!({
                "id": name, "provider": name, "request": { "method": "POST", "path": "/echo", "query": { "a": "1" }, "body": {} },
                "callback": { "url": hooks.url },
            });
            api.accept(&echo).await;
            api.job_in(name, &["succeeded"]).await;
            assert_eq!(provider.stats().executed, 1, "{name}: the key was where it belongs");
            let text = api.text(&format!("/v1/jobs/{name}/result")).await;
            assert!(text.contains("***"), "{name}: the provider echoes it, and it is masked: {text}");
        }
        api.accept(&json!({ "id": "absent", "provider": "absent", "request": { "path": "/ok" }, "callback": { "url": hooks.url } })).await;
        let dead = api.job_in("absent", &["dead"]).await;
        assert_eq!((&dead["reason"], outcomes(&dead)), (&json!("attempts_exhausted"), vec!["transient", "transient"]));
        until("six events", SOON, async || holds(hooks.bodies().len() == 6)).await;
        let mut shown = vec![("the log", serve.log().into_bytes()), ("a webhook", hooks.bodies().concat())];
        for (name, path) in [("jobs", "/v1/jobs"), ("dead letters", "/v1/dead-letters/absent"), ("metrics", "/metrics")] {
            shown.push((name, api.text(path).await.into_bytes()));
        }
        for (name, _) in &providers {
            shown.push(("a result", api.text(&format!("/v1/jobs/{name}/result")).await.into_bytes()));
        }
        serve.stop().await;
        for file in ["paceline.db", "paceline.db-wal"] {
            shown.push(("the database", std::fs::read(world.path(file)).unwrap_or_default()));
        }
        for (place, bytes) in shown {
            for form in forms() {
                let found = bytes.windows(form.len()).any(|window| window == form.as_bytes());
                assert!(!found, "{place} shows the key as {form}");
            }
        }
    })
    .await;
}

/// How a key may look in what a provider sends back.
fn forms() -> Vec<String> {
    let json = serde_json::to_string(KEY).expect("JSON");
    let json = json.trim_matches('"').to_owned();
    let encoded: String = url::form_urlencoded::byte_serialize(KEY.as_bytes()).collect();
    let basic = STANDARD.encode(format!("me:{KEY}"));
    vec![
        KEY.to_owned(),
        json.clone(),
        json.replace('\\', "\\\\").replace('"', "\\\""),
        json.replace('/', "\\/"),
        encoded,
        basic,
    ]
}

/// Receives webhooks and keeps their bodies.
struct Hooks {
    url: String,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    #[expect(dead_code, reason = "ends with it")]
    task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Hooks {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let bodies: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let kept = Arc::clone(&bodies);
        let router = axum::Router::new().fallback(async move |body: bytes::Bytes| {
            kept.lock().expect("no panic").push(body.to_vec());
            http::StatusCode::NO_CONTENT
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("served") });
        Self { url, bodies, task: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.bodies.lock().expect("no panic").clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_not_followed_and_carry_no_key_away() {
    system("", two_keys(), async |world, api, provider| {
        let elsewhere = sim(ProviderOptions::default()).await;
        for (id, status) in [("moved", 301), ("found", 302), ("temporary", 307), ("permanent", 308)] {
            let to = json!({ "to": format!("{}/steal", elsewhere.base_url()), "status": status });
            api.accept(&query(job(world, id, "/redirect"), to)).await;
            let dead = api.job_in(id, &["dead"]).await;
            assert_eq!((&dead["reason"], &dead["attempts"][0]["status"]), (&json!("permanent"), &json!(status)));
            assert_eq!(outcomes(&dead), ["redirect"]);
        }
        assert_eq!(elsewhere.stats().arrivals, 0, "nothing went there");
        assert_eq!(provider.stats().arrivals, 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_retried_until_they_succeed_or_are_spent() {
    let retry = "retry = { max_attempts = 4, base = \"50ms\", cap = \"200ms\" }\ntimeout = \"1s\"";
    system(retry, two_keys(), async |world, api, provider| {
        let jobs = [
            job(world, "flaky", "/fail/3"),
            with(job(world, "hopeless", "/fail/99"), json!({ "retry": { "max_attempts": 3 } })),
            job(world, "gone", "/gone"),
            with(job(world, "reset", "/reset"), json!({ "retry": { "max_attempts": 2 } })),
            with(job(world, "half", "/half"), json!({ "retry": { "max_attempts": 2 } })),
            with(job(world, "hang", "/hang"), json!({ "retry": { "max_attempts": 2 } })),
            with(job(world, "drip", "/drip/1000000/50"), json!({ "retry": { "max_attempts": 1 } })),
        ];
        api.accept_all(&jobs).await;
        let flaky = api.job_in("flaky", &["succeeded"]).await;
        assert_eq!(outcomes(&flaky), ["transient", "transient", "transient", "success"]);
        assert_eq!(called(provider, "flaky").len(), 4, "always under the same idempotency key");
        for (id, reason, expected) in [
            ("hopeless", "attempts_exhausted", vec!["transient"; 3]),
            ("gone", "permanent", vec!["permanent"]),
            ("reset", "attempts_exhausted", vec!["unknown"; 2]),
            ("half", "attempts_exhausted", vec!["unknown"; 2]),
            ("hang", "attempts_exhausted", vec!["unknown"; 2]),
            ("drip", "attempts_exhausted", vec!["unknown"; 1]),
        ] {
            let dead = api.job_in(id, &["dead"]).await;
            assert_eq!((dead["reason"].as_str(), outcomes(&dead)), (Some(reason), expected.clone()), "{id}");
            let letter = api.get(&format!("/v1/dead-letters/{id}")).await.1;
            assert_eq!(
                letter["attempts"].as_array().map(Vec::len),
                Some(expected.len()),
                "every attempt is in the letter"
            );
            assert_eq!(called(provider, id).len(), expected.len());
        }
        let hang = api.get("/v1/jobs/hang").await.1;
        for attempt in hang["attempts"].as_array().expect("attempts") {
            let latency = attempt["latency_ms"].as_i64().expect("a number");
            assert!((950..3_000).contains(&latency), "the timeout holds: {attempt}");
            assert!(attempt["error"].as_str().is_some_and(|e| e.contains("1s")), "{attempt}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_key_is_set_aside_while_the_others_go_on() {
    system("retry = { max_attempts = 1 }", two_keys(), async |world, api, provider| {
        provider.set_revoked("a1", true);
        let jobs: Vec<Value> = (0..40).map(|n| job(world, &format!("j{n}"), "/ok")).collect();
        api.accept_all(&jobs).await;
        world.all_done(40, SOON).await;
        assert_eq!(
            world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await,
            40,
            "no failure attempt is spent"
        );
        let refused = provider.stats().refused_credential;
        assert!((1..=40).contains(&refused), "{refused}");
        api.accept_all(&(40..60).map(|n| job(world, &format!("j{n}"), "/ok")).collect::<Vec<_>>()).await;
        world.all_done(60, SOON).await;
        assert_eq!(provider.stats().refused_credential, refused, "it is not tried again");
        // Without any key left jobs wait, and say why.
        provider.set_revoked("a2", true);
        api.accept(&job(world, "waits", "/ok")).await;
        let waits = api.job_in("waits", &["waiting"]).await;
        assert_eq!(waits["waiting_for"]["reason"], "no_key", "{waits}");
        assert!(waits["next_attempt_at"].is_string());
        assert!(outcomes(&waits).iter().all(|outcome| *outcome == "credential"), "{waits}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_429_pauses_its_key_and_costs_no_attempt() {
    system("retry = { max_attempts = 1 }", two_keys(), async |world, api, provider| {
        let limited = query(job(world, "limited", "/fail/1"), json!({ "status": 429, "retry_after": 2 }));
        api.accept(&with(limited, json!({ "key": "a1" }))).await;
        provider.wait_arrived(1, SOON).await.expect("a call");
        let others = |key: &str| -> Vec<Value> {
            (0..5).map(|n| with(job(world, &format!("{key}-{n}"), "/ok"), json!({ "key": key }))).collect()
        };
        until("the 429 is recorded", SOON, async || {
            holds(!api.get("/v1/jobs/limited").await.1["attempts"].as_array()?.is_empty())
        })
        .await;
        api.accept_all(&others("a1")).await;
        api.accept_all(&others("a2")).await;
        let job = api.job_in("limited", &["succeeded"]).await;
        assert_eq!(outcomes(&job), ["rate_limited", "success"]);
        world.all_done(11, SOON).await;
        let ledger = provider.ledger();
        let at = |key: &str| ledger.iter().filter(|c| &*c.key == key).map(|c| c.at).collect::<Vec<_>>();
        let a1 = at("a1");
        assert!(a1[1] - a1[0] >= Duration::from_secs(2), "the key paused as long as it was told to: {a1:?}");
        let a2 = at("a2");
        assert!(a2.iter().all(|at| *at < a1[0] + Duration::from_secs(2)), "its sibling went on: {a2:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_are_kept() {
    let one = "limits = [ { concurrency = 1 } ]";
    system(one, two_keys(), async |world, api, provider| {
        api.accept(&job(world, "first", "/slow/1500")).await;
        provider.wait_accepted(1, SOON).await.expect("it occupies the provider");
        let began = Instant::now();
        api.accept_all(&[
            with(job(world, "too-late", "/ok"), json!({ "deadline": in_ms(500) })),
            with(job(world, "in-time", "/ok"), json!({ "deadline": in_ms(30_000) })),
            with(job(world, "later", "/ok"), json!({ "not_before": in_ms(3_000) })),
            with(job(world, "later-and-too-late", "/ok"), json!({ "not_before": in_ms(700), "deadline": in_ms(900) })),
        ])
        .await;
        let later = api.job_in("later", &["waiting"]).await;
        assert_eq!(later["waiting_for"]["reason"], "not_before");
        for id in ["too-late", "later-and-too-late"] {
            let expired = api.job_in(id, &["expired"]).await;
            assert_eq!(expired["attempts"], json!([]), "never sent late");
        }
        api.job_in("in-time", &["succeeded"]).await;
        api.job_in("later", &["succeeded"]).await;
        assert!(began.elapsed() >= Duration::from_millis(2_900), "{:?}", began.elapsed());
        assert_eq!(provider.stats().executed, 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_cancelled_until_they_are_sent() {
    let one = "limits = [ { concurrency = 1 } ]";
    system(one, two_keys(), async |world, api, provider| {
        api.accept(&job(world, "running", "/slow/1500")).await;
        provider.wait_accepted(1, SOON).await.expect("it is being sent");
        api.accept(&job(world, "in-line", "/ok")).await;
        api.accept(&with(job(world, "waiting", "/ok"), json!({ "not_before": in_ms(60_000) }))).await;
        until("it is claimed", SOON, async || {
            holds(world.number("SELECT COUNT(*) FROM jobs WHERE id = 'in-line' AND owner IS NOT NULL").await == 1)
        })
        .await;
        for id in ["in-line", "waiting"] {
            let (status, answer) = api.delete(&format!("/v1/jobs/{id}")).await;
            assert_eq!((status, &answer["state"]), (200, &json!("cancelled")), "{answer}");
        }
        let (status, problem) = api.delete("/v1/jobs/running").await;
        assert_eq!((status, &problem["status"]), (409, &json!(409)), "{problem}");
        api.job_in("running", &["succeeded"]).await;
        assert_eq!(api.delete("/v1/jobs/running").await.0, 409);
        assert_eq!(api.delete("/v1/jobs/nobody").await.0, 404);
        world.at_rest(3).await;
        assert_eq!(provider.stats().executed, 1, "what was cancelled was never sent");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_share_by_weight_and_pins_are_kept() {
    let more = "limits = [ { concurrency = 1 } ]\nlanes = { high = 8, low = 1 }";
    system(more, two_keys(), async |world, api, provider| {
        api.accept(&job(world, "first", "/slow/1500")).await;
        provider.wait_accepted(1, SOON).await.expect("it occupies the provider");
        let jobs: Vec<Value> = (0..120)
            .map(|n| {
                let lane = if n % 2 == 0 { "low" } else { "high" };
                with(job(world, &format!("{lane}-{n}"), "/ok"), json!({ "lane": lane }))
            })
            .collect();
        api.accept_all(&jobs).await;
        world.all_done(121, SOON).await;
        let order: Vec<_> = provider.ledger().iter().skip(1).filter_map(|c| c.idempotency_key.clone()).collect();
        let low = order.iter().take(45).filter(|id| id.starts_with("low")).count();
        assert!((3..=9).contains(&low), "one in nine, not {low} of the first 45: {order:?}");
        let pinned: Vec<Value> =
            (0..20).map(|n| with(job(world, &format!("pin-{n}"), "/ok"), json!({ "key": "a2" }))).collect();
        api.accept_all(&pinned).await;
        world.all_done(141, SOON).await;
        for n in 0..20 {
            assert_eq!(called(provider, &format!("pin-{n}"))[0].1, "a2");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_may_be_made_once_is_made_once() {
    let more = "timeout = \"1s\"\nretry = { max_attempts = 4, base = \"20ms\", cap = \"50ms\" }";
    system(more, two_keys(), async |world, api, provider| {
        let unknown = [("reset", "/reset"), ("hang", "/hang"), ("half", "/half"), ("error", "/status/500")];
        for (id, path) in unknown {
            api.accept(&with(job(world, id, path), json!({ "delivery": "at_most_once" }))).await;
        }
        for (id, _) in unknown {
            let dead = api.job_in(id, &["dead"]).await;
            assert_eq!(dead["reason"], "outcome_unknown", "{dead}");
            assert_eq!(called(provider, id).len(), 1, "{id} was sent once");
        }
        // What surely was not executed is sent again.
        let safe = [("early", json!({ "status": 425 })), ("limited", json!({ "status": 429, "retry_after": 1 }))];
        for (id, how) in &safe {
            let again = query(job(world, id, "/fail/1"), how.clone());
            api.accept(&with(again, json!({ "delivery": "at_most_once" }))).await;
        }
        for (id, _) in &safe {
            api.job_in(id, &["succeeded"]).await;
            assert_eq!(called(provider, id).len(), 2, "{id}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_answers_are_bounded() {
    let more = "timeout = \"10s\"\nretry = { max_attempts = 1 }";
    system(more, two_keys(), async |world, api, provider| {
        api.accept_all(&[
            job(world, "big", "/big/10737418240"),
            job(world, "just", "/big/1048576"),
            job(world, "headers", "/headers/20000"),
            job(world, "garbage", "/html"),
        ])
        .await;
        let big = api.job_in("big", &["succeeded"]).await;
        assert!(big["attempts"][0]["latency_ms"].as_i64().is_some_and(|ms| ms < 9_000), "{big}");
        api.job_in("just", &["succeeded"]).await;
        let sizes =
            "SELECT CAST(SUM(LENGTH(e.body)) AS BIGINT) FROM events e JOIN jobs j ON j.pk = e.job_pk WHERE j.id = ";
        assert_eq!(world.number(&format!("{sizes}'big'")).await, 1 << 20, "the first mebibyte is kept");
        assert_eq!(world.number(&format!("{sizes}'just'")).await, 1 << 20);
        let truncated = "SELECT COUNT(*) FROM events e JOIN jobs j ON j.pk = e.job_pk WHERE truncated AND j.id = ";
        assert_eq!(world.number(&format!("{truncated}'big'")).await, 1, "and marked so");
        assert_eq!(world.number(&format!("{truncated}'just'")).await, 0);
        let headers = api.job_in("headers", &["dead", "succeeded"]).await;
        assert_eq!(headers["attempts"].as_array().map(Vec::len), Some(1), "{headers}");
        api.job_in("garbage", &["succeeded"]).await;
        assert_eq!(provider.stats().arrivals, 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_the_database_refuses_is_left_out_and_the_job_ends() {
    in_world(Mode::Scaled, async |world| {
        let provider = sim(two_keys()).await;
        world.provider(&provider.base_url(), &[("a1", KEY), ("a2", SECOND)], "");
        let serve = world.serving().await;
        world.execute("ALTER TABLE events ADD CONSTRAINT no_body CHECK (body IS NULL)").await;
        let api = world.api();
        let (status, _) = api.post("/v1/jobs", &job(world, "refused", "/ok")).await;
        assert_eq!(status, 202);
        world.all_done(1, SOON).await;
        let (_, seen) = api.get("/v1/jobs/refused").await;
        assert_eq!(seen["state"], "succeeded", "{seen}");
        assert!(seen["error"].as_str().is_some_and(|error| error.contains("refused to store")), "{seen}");
        assert_eq!(provider.stats().executed, 1, "the call is not made again");
        serve.stop().await;
        world.at_rest(1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_about_limits_do_not_slow_a_pacer_that_counts_exactly() {
    let mut runs = Vec::new();
    for rate_headers in [RateHeaders::XEpochSeconds, RateHeaders::XDeltaSeconds, RateHeaders::Ietf] {
        runs.push(async move {
            let rules = vec!["key requests 20/1s sliding_log".parse().expect("a rule")];
            let options = ProviderOptions { rules, rate_headers, ..two_keys() };
            let more =
                "key_limits = [ { requests = 20, per = \"1s\", algorithm = \"sliding_window\" } ]\ntimeout = \"5s\"";
            system(more, options, async |world, api, provider| {
                let jobs: Vec<Value> = (0..240).map(|n| job(world, &format!("j{n}"), "/ok")).collect();
                api.accept_all(&jobs).await;
                world.all_done(240, Duration::from_secs(30)).await;
                let stats = provider.stats();
                assert_eq!(stats.rejected, 0, "no 429");
                let utilisation = stats.rules[0].utilisation.expect("measured");
                assert!(utilisation > 0.85, "{rate_headers:?}: {utilisation}");
            })
            .await;
        });
    }
    futures_util::future::join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packed_answer_says_how_it_is_packed() {
    system("", two_keys(), async |world, api, _provider| {
        let packed = query(job(world, "packed", "/ok"), json!({ "h": "content-encoding:gzip" }));
        api.accept_all(&[packed, job(world, "plain", "/ok")]).await;
        for (id, encoding) in [("packed", Some("gzip")), ("plain", None)] {
            api.job_in(id, &["succeeded"]).await;
            let url = format!("http://127.0.0.1:{}/v1/jobs/{id}/result", world.port);
            let answer = reqwest::Client::builder().no_proxy().build().expect("a client").get(url).send().await;
            let answer = answer.expect("an answer");
            assert_eq!(answer.headers().get("content-encoding").and_then(|value| value.to_str().ok()), encoding);
            assert_eq!(answer.bytes().await.expect("the bytes of the provider"), &br#"{"ok":true}"#[..]);
        }
    })
    .await;
}
