//! Another configuration while the built binary runs (SIGHUP): nothing is exceeded and nothing is lost; what is not valid
//! changes nothing; the API answers all the while.

mod common;

use std::time::Duration;

use common::world::{Mode, Serve, World, in_world};
use common::{SOON, holds, until};
use paceline::sim::{Lognormal, ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};

const KEYS: [(&str, &str); 2] = [("a1", "first-key-of-two"), ("a2", "second-key-of-two")];
const IN_EFFECT: &str = "the new configuration is in effect";

async fn strict(rules: &[&str]) -> ProviderHandle {
    let rules = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
    let keys = KEYS.iter().map(|(label, secret)| SimKey::new(*label, *secret)).collect();
    let latency = Some(Lognormal::ms(20, 120));
    ProviderSim::start(ProviderOptions { keys, rules, latency, ..ProviderOptions::default() })
        .await
        .expect("a provider")
}

fn jobs(world: &World, from: u64, count: u64) -> Vec<Value> {
    let job = |n| json!({ "id": format!("r{n}"), "provider": world.provider, "request": { "path": "/ok" } });
    (from..from + count).map(job).collect()
}

/// How often the log says that.
fn said(serve: &Serve, text: &str) -> usize {
    serve.log().matches(text).count()
}

/// Asks for the configuration to be read again, and waits until the log says `text` once more.
async fn reload(serve: &Serve, text: &str) {
    let before = said(serve, text);
    serve.signal("-HUP");
    until(&format!("{text:?} in the log"), SOON * 2, async || holds(said(serve, text) > before)).await;
}

async fn changes_under_load(mode: Mode) {
    in_world(mode, async |world| {
        world.prepare().await;
        // Every configuration below allows at most this.
        let provider = strict(&["key requests 30/1s sliding_log", "server requests 55/1s sliding_log"]).await;
        let configure = |limits: &str, more: &str| {
            let text = format!("counted_within = \"1s\"\nlimits = [ {limits} ]\n{more}");
            world.provider(&provider.base_url(), &KEYS, &text);
        };
        let key = "{ requests = 30, per = \"1s\", algorithm = \"sliding_window\" }";
        let all = "{ requests = 55, per = \"1s\", algorithm = \"sliding_window\" }";
        configure(all, &format!("key_limits = [ {key} ]"));
        let serve = world.serving().await;
        let api = world.api();
        api.accept_all(&jobs(world, 0, 400)).await;
        until("calls are made", SOON, async || holds(provider.stats().accepted > 20)).await;
        for (limits, more) in [
            // Fewer, other algorithms, other places, more; and policies that have nothing to do with limits.
            ("{ requests = 40, per = \"1s\", algorithm = \"sliding_window\" }", format!("key_limits = [ {key} ]")),
            ("{ requests = 25, per = \"1s\", algorithm = \"smooth\" }", String::new()),
            (all, format!("key_limits = [ {key} ]\nlanes = {{ high = 8, low = 1 }}")),
            (all, format!("key_limits = [ {key} ]\nretry = {{ max_attempts = 2 }}\ntimeout = \"9s\"")),
            (all, format!("key_limits = [ {key}, {{ concurrency = 9 }} ]")),
        ] {
            configure(limits, &more);
            reload(&serve, IN_EFFECT).await;
            let calls = provider.stats().accepted;
            until("it goes on", SOON, async || holds(provider.stats().accepted > calls + 10)).await;
        }
        // The API has taken jobs in all the while.
        api.accept_all(&jobs(world, 400, 50)).await;
        world.all_done(450, SOON * 4).await;
        world.at_rest(450).await;
        let stats = provider.stats();
        assert_eq!(stats.rejected, 0, "{stats:?}");
        assert_eq!((stats.accepted, stats.executed), (450, 450), "each once: {stats:?}");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await, 450);
        assert_eq!(said(&serve, "unclean=0"), said(&serve, "this process dispatches now"), "{}", serve.log());
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_under_load_and_nothing_is_exceeded_or_lost() {
    changes_under_load(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_under_load_on_rabbitmq_and_postgresql() {
    changes_under_load(Mode::Scaled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_every_problem_is_told() {
    in_world(Mode::Embedded, async |world| {
        let provider = strict(&[]).await;
        world.provider(&provider.base_url(), &KEYS, "key_limits = [ { requests = 50, per = \"1s\" } ]");
        let mut serve = world.serving().await;
        let good = std::fs::read_to_string(world.path("paceline.toml")).expect("a file");
        let refused = "the new configuration is not valid; the running one stays in effect";
        let restart = "these settings need a restart; the running configuration stays in effect";
        let twice = format!("{good}timeout = \"0s\"\nlanes = {{ high = 0 }}\n");
        let port = format!("127.0.0.1:{}", world.port);
        for (text, message, told) in [
            (twice, refused, &["timeout: expected more than 0s", "lanes.high: expected a weight"][..]),
            (good.replace("key_limits", "key_limit"), refused, &["key_limit", "line"]),
            (good.replace("env:KEY_a1", "env:NOT_THERE"), refused, &["NOT_THERE"]),
            (format!("{good}ca_file = \"/nowhere/ca.pem\"\n"), refused, &["/nowhere/ca.pem"]),
            (good.replace(&port, "127.0.0.1:1"), restart, &["api.listen"]),
            (format!("[store]\nurl = \"sqlite://other.db\"\n{good}"), restart, &["store.url"]),
            (format!("[queue]\nurl = \"amqp://nowhere\"\n{good}"), restart, &["queue.url"]),
        ] {
            world.configure_all(&text);
            reload(&serve, message).await;
            let log = serve.log();
            assert!(told.iter().all(|part| log.contains(part)), "{told:?} in {log}");
        }
        assert!(!world.path("other.db").exists());
        world.configure_all(&good);
        reload(&serve, "the configuration says what it said before").await;
        assert_eq!(said(&serve, IN_EFFECT), 0);
        assert_eq!(said(&serve, "this process dispatches now"), 1, "nothing began anew");
        world.api().accept_all(&jobs(world, 0, 5)).await;
        world.all_done(5, SOON).await;
        assert!(serve.is_alive());
        serve.stop().await;
    })
    .await;
}

/// A window of the next seconds: it opens and shuts so long after now.
fn window(opens: Duration, shuts: Duration) -> String {
    let shown = |after: Duration| (jiff::Timestamp::now() + after).strftime("%H:%M:%S").to_string();
    format!("window = \"{}-{} UTC\"", shown(opens), shown(shuts))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_leave_only_within_the_window_and_when_it_is_gone() {
    in_world(Mode::Embedded, async |world| {
        let begun = jiff::Timestamp::now();
        let provider = strict(&[]).await;
        let limit =
            "limits = [ { requests = 4, per = \"1s\", algorithm = \"sliding_window\" } ]\ncounted_within = \"1s\"";
        let (opens, shuts) = (Duration::from_secs(8), Duration::from_secs(12));
        world.provider(&provider.base_url(), &KEYS, &format!("{limit}\n{}", window(opens, shuts)));
        let serve = world.serving().await;
        let api = world.api();
        api.accept_all(&jobs(world, 0, 40)).await;
        let waits = api.job_in("r0", &["queued"]).await;
        assert_eq!(waits["waiting_for"]["reason"], "window", "{waits:#}");
        let opening: jiff::Timestamp = waits["waiting_for"]["until"].as_str().expect("a time").parse().expect("a time");
        assert!(opening.duration_since(begun).as_secs_f64() < 10.0, "{opening}");
        assert_eq!(provider.stats().arrivals, 0);
        until_calls(&provider, 3).await;
        // It shuts though jobs wait; what is left waits for the next day.
        let shut = "it is shut, and nothing is open";
        until(shut, SOON, async || {
            let left = api.get("/v1/jobs?limit=100").await.1;
            let waiting = left["items"].as_array()?.iter().filter(|job| job["waiting_for"]["reason"] == "window");
            let far = |job: &&Value| {
                job["waiting_for"]["until"].as_str().is_some_and(|until| {
                    until.parse::<jiff::Timestamp>().is_ok_and(|until| until.duration_since(begun).as_hours() > 20)
                })
            };
            holds(
                waiting.filter(far).count() > 5
                    && world.number("SELECT COUNT(*) FROM jobs WHERE owner IS NOT NULL").await == 0,
            )
        })
        .await;
        let calls = provider.ledger();
        // The ledger counts from the start of the provider; a crowded machine may be slow between decision and arrival.
        for call in calls.iter() {
            let at = call.at.as_secs_f64();
            assert!((6.0..13.5).contains(&at), "{at}: {call:?}");
        }
        assert!(calls.len() < 30, "{}", calls.len());
        world.provider(&provider.base_url(), &KEYS, limit);
        reload(&serve, IN_EFFECT).await;
        world.all_done(40, SOON * 2).await;
        assert_eq!(provider.stats().executed, 40);
        serve.stop().await;
    })
    .await;
}

async fn until_calls(provider: &ProviderHandle, calls: u64) {
    until("the window opens", SOON, async || holds(provider.stats().accepted >= calls)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_tokens_and_keys_come_and_go() {
    in_world(Mode::Embedded, async |world| {
        let provider = strict(&[]).await;
        let base = provider.base_url();
        world.set("KEY", KEYS[0].1);
        world.set("TOKEN_1", "the-first-token-of-ops");
        world.set("TOKEN_2", "the-second-token-of-ops");
        let configure = |names: &[&str], token: u8, path: &str| {
            let mut text = format!(
                "[api]\nlisten = \"127.0.0.1:{}\"\ntokens = [ {{ name = \"ops\", secret = \"env:TOKEN_{token}\", scopes = [\"admin\"] }} ]\n",
                world.port
            );
            for name in names {
                text += &format!("[[provider]]\nname = \"{name}\"\nbase_url = \"{base}{path}\"\nkeys = [ {{ label = \"k\", secret = \"env:KEY\" }} ]\nlimits = [ {{ requests = 50, per = \"1s\" }} ]\n");
            }
            world.configure_all(&text);
        };
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let url = format!("http://127.0.0.1:{}/v1/jobs", world.port);
        let post = async |id: &str, provider: &str, token: &str| {
            let body = json!({ "id": id, "provider": provider, "request": { "path": "/ok" } }).to_string();
            let request = http.post(&url).bearer_auth(token).header("content-type", "application/json").body(body);
            request.send().await.expect("an answer").status().as_u16()
        };
        let (first, second) = ("the-first-token-of-ops", "the-second-token-of-ops");
        configure(&["one", "two"], 1, "");
        let serve = world.serving().await;
        assert_eq!(post("j1", "one", first).await, 202);
        assert_eq!(post("j2", "three", first).await, 422);

        configure(&["one", "two"], 2, "");
        reload(&serve, IN_EFFECT).await;
        assert_eq!((post("j3", "two", first).await, post("j3", "two", second).await), (401, 202));
        assert_eq!(said(&serve, "taking a new configuration over"), 0, "tokens do not concern what dispatches");

        configure(&["two", "three"], 2, "");
        reload(&serve, IN_EFFECT).await;
        let log = serve.log().replace('\\', "");
        assert!(log.contains("provider \"one\" removed, provider \"three\" added"), "{log}");
        assert_eq!((post("j4", "one", second).await, post("j5", "three", second).await), (422, 202));
        world.all_done(3, SOON).await;
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await, 3);
        // A shutdown right after a signal to reload is heeded.
        configure(&["two"], 2, "");
        serve.signal("-HUP");
        serve.stop().await;
        tokio::time::timeout(Duration::from_secs(1), provider.shutdown()).await.ok();
    })
    .await;
}
