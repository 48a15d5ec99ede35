//! The dashboard as an operator meets it: a real browser, the built binary, a provider that answers.

mod common;

use std::collections::BTreeSet;

use axum::Router;
use axum::response::Html;
use axum::routing::any;
use common::browser::{Browser, in_browser};
use common::world::{Mode, World, in_world};
use common::{SOON, holds, until};
use paceline::sim::{ProviderHandle, ProviderOptions, ProviderSim, ReceiverOptions, ReceiverSim, SimKey};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const KEYS: [(&str, &str); 2] = [("a1", "dashboard-key-0001"), ("a2", "dashboard-key-0002")];
const PACED: &str = "key_limits = [ { requests = 10, per = \"1s\", algorithm = \"sliding_window\" } ]";
const HIDDEN: &str = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true }); \
                      document.dispatchEvent(new Event('visibilitychange'))";

async fn provider(world: &World, more: &str) -> ProviderHandle {
    let keys = KEYS.iter().map(|(label, secret)| SimKey::new(*label, *secret)).collect();
    let sim = ProviderSim::start(ProviderOptions { keys, ..ProviderOptions::default() }).await.expect("a provider");
    world.provider(&sim.base_url(), &KEYS, more);
    sim
}

fn origin(world: &World) -> String {
    format!("http://127.0.0.1:{}", world.port)
}

fn job(world: &World, id: &str, path: &str) -> Value {
    json!({ "id": id, "provider": world.provider, "request": { "method": "POST", "path": path } })
}

/// A job that waits until somebody does something about it.
fn later(world: &World, id: &str) -> Value {
    let mut job = job(world, id, "/ok");
    job["not_before"] = "2099-01-01T00:00:00Z".into();
    job
}

/// What stands in the column of that name, in the first row of the first table.
async fn cell(browser: &Browser, column: &str) -> Option<String> {
    let css = format!("table tbody tr td[data-name='{column}']");
    browser.text_of(&css).await.map(|text| text.trim().to_owned())
}

async fn shown_number(browser: &Browser, column: &str) -> f64 {
    let text = cell(browser, column).await.unwrap_or_default().replace(',', "");
    text.trim_end_matches(" %").parse().unwrap_or(f64::NAN)
}

// ── what it shows ───────────────────────────────────────────────────────────────────────────────

async fn figures_change(world: &World) {
    let _sim = provider(world, PACED).await;
    world.prepare().await;
    let serve = world.serving().await;
    in_browser(origin(world), async |browser| {
        browser.open("").await;
        browser.sees("No job yet").await;
        browser.sees(&format!("curl -s {}/v1/jobs", origin(world))).await;
        browser.sees("Everything works").await;
        browser.picture("empty").await;
        let jobs: Vec<Value> = (0..300).map(|n| job(world, &format!("job-{n}"), "/ok")).collect();
        world.api().accept_all(&jobs).await;
        // 300 calls at 20 a second: the figures rise and fall while somebody looks on.
        let first = until("jobs are in sight", SOON, async || {
            let queued = shown_number(browser, "Queued").await;
            (queued > 50.0).then_some(queued)
        })
        .await;
        until("fewer are queued, calls are made", SOON, async || {
            holds(shown_number(browser, "Queued").await < first && shown_number(browser, "Calls/s").await > 1.0)
        })
        .await;
        until("the line grows", SOON, async || {
            let points = browser.run(
                "return document.querySelector('.spark .achieved')?.getAttribute('points').split(' ').length ?? 0",
                json!([]),
            );
            holds(points.await.as_u64()? >= 3)
        })
        .await;
        assert!((19.0..=20.0).contains(&shown_number(browser, "Allowed/s").await));
        assert_eq!(shown_number(browser, "429s").await, 0.0);
        // A dead letter comes in by the stream, long before the next look at a quiet time would be due.
        world.api().accept(&job(world, "doomed", "/gone")).await;
        browser.sees("Latest dead letters").await;
        browser.sees("doomed").await;
        browser.sees("Live").await;
        browser.picture("overview").await;
        let requests = browser.requests().await;
        assert!(requests.iter().any(|url| url.ends_with("/v1/events?event=job.dead")), "{requests:?}");
    })
    .await;
    serve.stop().await;
}

#[tokio::test]
async fn the_overview_shows_figures_that_change() {
    in_world(Mode::Embedded, figures_change).await;
}

#[tokio::test]
async fn the_overview_shows_the_same_with_rabbitmq_and_postgresql() {
    in_world(Mode::Scaled, figures_change).await;
}

#[tokio::test]
async fn what_is_red_is_said_with_what_to_do_and_the_page_outlives_the_server() {
    in_world(Mode::Embedded, async |world| {
        // Nobody listens there: after three failures it is left alone.
        world.provider(
            "http://127.0.0.1:9",
            &KEYS,
            "breaker = { failures = 3, ratio = \"50%\", window = \"30s\", open = \"60s\", probes = 1 }",
        );
        let serve = world.serving().await;
        in_browser(origin(world), async |browser| {
            let jobs: Vec<Value> = (0..6).map(|n| job(world, &format!("job-{n}"), "/ok")).collect();
            world.api().accept_all(&jobs).await;
            browser.open("").await;
            browser.sees("1 thing needs a look").await;
            browser.sees("Look at the provider; nothing has to be done here.").await;
            serve.kill().await;
            browser.sees("The server does not answer").await;
            browser.sees("Not up to date, again in").await;
            let again = world.serving().await;
            browser.sees("Live").await;
            assert!(!browser.text().await.contains("The server does not answer"));
            again.stop().await;
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn nothing_is_asked_while_nobody_looks() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, "").await;
        let serve = world.serving().await;
        in_browser(origin(world), async |browser| {
            browser.open("").await;
            browser.sees("Live").await;
            browser.run(HIDDEN, json!([true])).await;
            browser.sees("Paused while hidden").await;
            browser.requests().await;
            // Three times as long as between two looks.
            tokio::time::sleep(std::time::Duration::from_secs(6)).await;
            assert_eq!(browser.requests().await, [""; 0]);
            browser.run(HIDDEN, json!([false])).await;
            browser.sees("Live").await;
            assert!(browser.requests().await.iter().any(|url| url.ends_with("/v1/providers")));
        })
        .await;
        serve.stop().await;
    })
    .await;
}

// ── what it does ────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_job_is_found_and_cancelled() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, "").await;
        let serve = world.serving().await;
        let jobs: Vec<Value> = (0..60).map(|n| later(world, &format!("later-{n}"))).collect();
        world.api().accept_all(&jobs).await;
        world.api().accept(&job(world, "echoed", "/echo")).await;
        world.api().job_in("echoed", &["succeeded"]).await;
        in_browser(origin(world), async |browser| {
            browser.open("#/jobs").await;
            browser.sees("echoed").await;
            browser.choose("State", "waiting").await;
            browser.sees("later-59").await;
            until("others are gone", SOON, async || holds(!browser.text().await.contains("echoed"))).await;
            // Two pages, and never more than one of them in the document.
            let rows = async |count: u64| {
                until(&format!("{count} rows"), SOON, async || {
                    holds(browser.run("return document.querySelectorAll('tbody tr').length", json!([])).await == count)
                })
                .await;
            };
            rows(50).await;
            browser.press("Older").await;
            browser.sees("Page 2").await;
            rows(10).await;
            browser.press("Newer").await;
            rows(50).await;
            browser.fill("Job id", "later-7").await;
            browser.press("Find").await;
            browser.sees("not before").await;
            browser.press("Cancel the job").await;
            browser.sees("This cannot be taken back.").await;
            browser.press("Cancel").await;
            assert_eq!(world.api().get("/v1/jobs/later-7").await.1["state"], "waiting", "it was only asked");
            browser.press("Cancel the job").await;
            browser.press("Cancel the job").await;
            browser.sees("later-7 is cancelled").await;
            browser.sees("cancelled").await;
            assert_eq!(world.api().get("/v1/jobs/later-7").await.1["state"], "cancelled");
            browser.open("#/jobs/echoed").await;
            browser.sees("success").await;
            browser.press("Show the result").await;
            browser.sees("\"method\":\"POST\"").await;
            browser.open("#/jobs/nobody").await;
            browser.sees("There is no such thing").await;
        })
        .await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_is_replayed_with_an_edit() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, "").await;
        let serve = world.serving().await;
        let mut doomed = job(world, "doomed", "/gone");
        // More digits than a browser counts with.
        doomed["request"]["body"] = serde_json::from_str("{\"n\": 12345678901234567890, \"f\": 1.10}").expect("JSON");
        world.api().accept(&doomed).await;
        world.api().job_in("doomed", &["dead"]).await;
        in_browser(origin(world), async |browser| {
            browser.open("#/dead").await;
            browser.follow("doomed").await;
            browser.sees("Correct the request, then replay it.").await;
            browser.sees("12345678901234567890").await;
            browser.press("Replay…").await;
            browser.fill("Lane", "nowhere").await;
            browser.press("Replay").await;
            // What the server has against it, word by word, and everything that was entered is still there.
            browser.sees("$.lane").await;
            browser.fill("Lane", "default").await;
            let edit = "const area = document.querySelector('dialog textarea'); \
                        area.value = area.value.replace('/gone', '/echo'); \
                        area.dispatchEvent(new Event('input', { bubbles: true }))";
            browser.run(edit, json!([])).await;
            browser.picture("replay").await;
            browser.press("Replay").await;
            browser.sees("doomed runs again").await;
            let job = world.api().job_in("doomed", &["succeeded"]).await;
            assert_eq!((&job["run"], &job["lane"]), (&json!(2), &json!("default")));
            let result = world.api().text("/v1/jobs/doomed/result").await;
            assert!(result.contains("12345678901234567890") && result.contains("1.10"), "{result}");
            browser.follow("The job").await;
            browser.sees("run 2").await;
        })
        .await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn many_dead_letters_are_replayed_and_purged_after_a_count() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, "").await;
        let serve = world.serving().await;
        let jobs: Vec<Value> = (0..7).map(|n| job(world, &format!("doomed-{n}"), "/gone")).collect();
        world.api().accept_all(&jobs).await;
        world.api().dead_letters("permanent", 7).await;
        in_browser(origin(world), async |browser| {
            browser.open("#/dead").await;
            browser.choose("Reason", "permanent").await;
            browser.press("Replay these…").await;
            browser.sees("Replay 7 dead letters?").await;
            browser.press("Replay them").await;
            browser.sees("7 of 7 replayed").await;
            let again =
                async || holds(world.number("SELECT COUNT(*) FROM jobs WHERE run = 2 AND state = 'dead'").await == 7);
            until("they have failed again", SOON, again).await;
            browser.sees("doomed-6").await;
            browser.press("Purge these…").await;
            browser.sees("Remove 7 dead letters for good?").await;
            let disabled =
                browser.run("return document.querySelector('dialog [type=submit]').disabled", json!([])).await;
            assert_eq!(disabled, true, "the word was not typed yet");
            browser.fill("Type purge to confirm", "purge").await;
            browser.press("Remove them").await;
            browser.sees("7 dead letters are removed").await;
            browser.sees("No dead letter fits.").await;
            assert_eq!(world.api().get("/v1/dead-letters?replayed=false").await.1["items"], json!([]));
        })
        .await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_provider_is_paused_and_resumed_and_a_key_disabled_and_enabled() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, PACED).await;
        let serve = world.serving().await;
        let path = format!("/v1/providers/{}", world.provider);
        let shown = async || world.api().get(&path).await.1;
        in_browser(origin(world), async |browser| {
            browser.open("").await;
            browser.follow(&world.provider).await;
            browser.press("Pause").await;
            browser.press("Pause").await;
            browser.sees("is paused").await;
            assert_eq!(shown().await["state"], "paused");
            browser.sees("Its jobs wait until somebody resumes it. It was paused by local").await;
            browser.press("Resume").await;
            browser.press("Resume").await;
            browser.sees("is resumed").await;
            assert_eq!(shown().await["state"], "open");
            browser.press("Disable the key a2").await;
            browser.press("Disable").await;
            browser.sees("a2 is disabled").await;
            browser.press("Enable the key a2").await;
            browser.press("Enable").await;
            browser.sees("a2 is used again").await;
            let keys = shown().await["keys"].clone();
            assert_eq!(keys["disabled"], Value::Null, "{keys}");
            browser.picture("provider").await;
        })
        .await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_is_tested_disabled_and_enabled_and_a_delivery_sent_again() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, "").await;
        let serve = world.serving().await;
        let options = ReceiverOptions { secrets: Vec::new(), ..ReceiverOptions::default() };
        let receiver = ReceiverSim::start(options).await.expect("a receiver");
        let (status, endpoint) = world.api().post("/v1/endpoints", &json!({ "url": receiver.hook("") })).await;
        assert_eq!(status, 201, "{endpoint}");
        let url = endpoint["url"].as_str().expect("a URL");
        in_browser(origin(world), async |browser| {
            browser.open("#/webhooks").await;
            browser.press(&format!("Test {url}")).await;
            browser.press("Send it").await;
            browser.sees("endpoint.test").await;
            browser.sees("HTTP 2").await;
            browser.press("Send again").await;
            browser.press("Send again").await;
            browser.sees("attempt 2").await;
            browser.follow("Webhooks").await;
            browser.press(&format!("Disable {url}")).await;
            browser.press("Disable").await;
            browser.sees("The endpoint is disabled").await;
            browser.press(&format!("Enable {url}")).await;
            browser.press("Enable").await;
            browser.sees("The endpoint is enabled").await;
            browser.picture("webhooks").await;
        })
        .await;
        serve.stop().await;
    })
    .await;
}

// ── who may ─────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_token_signs_in_and_a_missing_scope_is_said() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, "").await;
        let configured = std::fs::read_to_string(world.path("paceline.toml")).expect("a configuration");
        let tokens = "[api]\ntokens = [ { name = \"reader\", secret = \"env:READER\", scopes = [\"read\"] }, \
                      { name = \"bound\", secret = \"env:BOUND\", scopes = [\"read\"], tenant = \"acme\" } ]\n";
        world.configure_all(&configured.replace("[api]\n", tokens));
        world.set("READER", "token-of-a-reader-0123456789");
        world.set("BOUND", "token-of-a-tenant-0123456789");
        let serve = world.serving().await;
        in_browser(origin(world), async |browser| {
            browser.open("").await;
            browser.sees("This server asks for a token").await;
            browser.picture("sign-in").await;
            browser.fill("Token", "no-such-token").await;
            browser.press("Sign in").await;
            browser.sees("This token is not known here.").await;
            browser.fill("Token", "token-of-a-reader-0123456789").await;
            browser.press("Sign in").await;
            browser.sees("Everything works").await;
            // The stream has the token, too.
            browser.sees("Live").await;
            browser.follow(&world.provider).await;
            browser.press("Pause").await;
            browser.press("Pause").await;
            browser.sees("the token \"reader\" does not have the scope \"admin\"").await;
            browser.picture("scope").await;
            browser.press("Cancel").await;
            let kept =
                "return [location.href, document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage)]";
            let kept = browser.run(kept, json!([])).await;
            let holds_token = |at: usize| kept[at].as_str().is_some_and(|text| text.contains("token-of-a-reader"));
            assert_eq!([0, 1, 2, 3].map(holds_token), [false, false, false, true], "{kept}");
            browser.reload().await;
            browser.sees("Queue").await;
            let requests = browser.requests().await;
            assert!(requests.iter().all(|url| !url.contains("token-of")), "{requests:?}");
            browser.press("Sign out").await;
            browser.sees("This server asks for a token").await;
            assert_eq!(browser.run("return sessionStorage.length", json!([])).await, 0);
            // A token of a tenant sees its own jobs, and is told about the rest.
            browser.fill("Token", "token-of-a-tenant-0123456789").await;
            browser.run("document.querySelector('[name=keep]').checked = false", json!([])).await;
            browser.press("Sign in").await;
            browser.open("#/").await;
            browser.sees("this concerns all tenants, and the token is bound to one").await;
            browser.follow("Jobs").await;
            browser.sees("No job yet").await;
            assert_eq!(browser.run("return sessionStorage.length", json!([])).await, 0);
        })
        .await;
        serve.stop().await;
    })
    .await;
}

// ── what must not happen ────────────────────────────────────────────────────────────────────────

const HOSTILE: &str = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1><svg/onload=window.hit=1>";

/// What an attacker would do whose text had become markup, from within the page.
const TRIES: &str = r#"
window.tried = [];
const element = (name, set) => { const made = document.createElement(name); set(made); document.body.append(made); return made; };
const ways = [
  () => { document.body.innerHTML += '<b>x</b>'; },
  () => { (0, eval)('window.hit = 1'); },
  () => { element('script', made => { made.text = 'window.hit = 1'; }); },
];
setTimeout(() => { for (const way of ways) { try { way(); window.tried.push('yes'); } catch { window.tried.push('no'); } } });
element('img', made => {
  made.onload = () => window.tried.push('yes');
  made.onerror = () => window.tried.push('no');
  made.src = 'http://127.0.0.1:9/x';
});
"#;

/// Answers everything with markup that would run.
async fn hostile_provider() -> String {
    let answer = async || (http::StatusCode::NOT_FOUND, Html(HOSTILE));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(answer))).await });
    url
}

#[tokio::test]
async fn hostile_text_runs_nothing() {
    in_world(Mode::Embedded, async |world| {
        world.provider(&hostile_provider().await, &KEYS, "");
        let serve = world.serving().await;
        let mut hostile = job(world, "hostile", "/x");
        hostile["tenant"] = HOSTILE.into();
        hostile["metadata"] = json!({ HOSTILE: HOSTILE });
        hostile["request"]["body"] = HOSTILE.into();
        hostile["callback"] = json!({ "url": format!("http://127.0.0.1:9/{}", "<img/src/onerror=window.hit=1>") });
        world.api().accept(&hostile).await;
        world.api().dead_letters("permanent", 1).await;
        let (status, made) =
            world.api().post("/v1/endpoints", &json!({ "url": "http://127.0.0.1:9/x", "description": HOSTILE, "tenant": HOSTILE })).await;
        assert_eq!(status, 201, "{made}");
        in_browser(origin(world), async |browser| {
            let tenant: String = url::form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect();
            for (view, seen) in [
                ("#/".to_owned(), "hostile"),
                ("#/jobs".to_owned(), HOSTILE),
                (format!("#/jobs?tenant={tenant}"), "hostile"),
                (format!("#/jobs/hostile?tenant={tenant}"), HOSTILE),
                ("#/dead".to_owned(), HOSTILE),
                (format!("#/dead/hostile?tenant={tenant}"), HOSTILE),
                ("#/webhooks".to_owned(), HOSTILE),
                (format!("#/jobs/{tenant}"), "There is no such thing"),
                (format!("#/{tenant}"), "No such page"),
            ] {
                browser.open(&view).await;
                browser.reload().await;
                browser.sees(seen).await;
                if view.starts_with("#/jobs/hostile") {
                    browser.press("Show the result").await;
                    until("the result is text", SOON, async || holds(browser.text().await.matches("<svg/onload").count() >= 2)).await;
                }
                if view.starts_with("#/dead/hostile") {
                    browser.press("Replay…").await;
                    browser.press("Cancel").await;
                }
                let came = "return [window.hit ?? null, document.querySelectorAll('main script, main img, main iframe, [onerror], [onload]').length]";
                assert_eq!(browser.run(came, json!([])).await, json!([null, 0]), "{view}");
            }
            // The second line holds without the first: no markup, no eval, no script, no other host.
            browser.run(TRIES, json!([])).await;
            until("all was tried", SOON, async || holds(browser.run("return window.tried?.length === 4", json!([])).await == true)).await;
            assert_eq!(browser.run("return [window.tried, window.hit ?? null]", json!([])).await, json!([["no", "no", "no", "no"], null]));
            let complaints = browser.complaints().await;
            assert!(complaints.len() >= 4, "the policy said no: {complaints:?}");
        })
        .await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn pages_are_sent_with_a_strict_policy_and_asked_about_every_time() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, "").await;
        let serve = world.serving().await;
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let document = world.api().get("/openapi.json").await.1;
        let names = document["paths"]["/dashboard/{file}"]["get"]["parameters"][0]["schema"]["enum"].clone();
        let names: Vec<String> = serde_json::from_value(names).expect("names of files");
        assert!(names.len() > 10, "{names:?}");
        for path in ["/".to_owned()].into_iter().chain(names.iter().map(|name| format!("/dashboard/{name}"))) {
            let url = format!("{}{path}", origin(world));
            let response = client.get(&url).send().await.expect("an answer");
            assert_eq!(response.status(), 200, "{path}");
            let header =
                |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let policy: BTreeSet<&str> = header("content-security-policy").split("; ").collect();
            for part in [
                "default-src 'none'",
                "script-src 'self'",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
                "require-trusted-types-for 'script'",
            ] {
                assert!(policy.contains(part), "{path}: {part}");
            }
            assert!(!header("content-security-policy").contains("unsafe"), "{path}");
            for (name, value) in [
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("referrer-policy", "no-referrer"),
                ("cache-control", "no-cache"),
            ] {
                assert_eq!(header(name), value, "{path}");
            }
            let tag = header("etag").to_owned();
            assert!(!response.text().await.expect("text").is_empty(), "{path}");
            let again = client.get(&url).header("if-none-match", &tag).send().await.expect("an answer");
            assert_eq!(again.status(), 304, "{path}");
            assert!(again.headers().contains_key("content-security-policy"), "{path}");
            let other = client.get(&url).header("if-none-match", "W/\"other\"").send().await.expect("an answer");
            assert_eq!(other.status(), 200, "{path}");
        }
        assert_eq!(world.api().get("/dashboard/mod.rs").await.0, 404);
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn it_is_there_while_the_store_is_away_and_says_so() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, "").await;
        let text = std::fs::read_to_string(world.path("paceline.toml")).expect("a configuration");
        // Nobody listens there.
        world.configure_all(&format!("{text}\n[store]\nurl = \"postgres://nobody@127.0.0.1:9/nothing\"\n"));
        let serve = world.serve();
        until("it answers", SOON, async || world.api().try_get("/healthz").await).await;
        in_browser(origin(world), async |browser| {
            browser.open("").await;
            browser.sees("the store cannot be reached yet").await;
            browser.sees("store is").await;
        })
        .await;
        serve.kill().await;
    })
    .await;
}

// ── for everybody ───────────────────────────────────────────────────────────────────────────────

/// What is wrong with the page for somebody who does not see it, or sees little: names, landmarks, headings, contrast.
const FAULTS: &str = r#"
const faults = [];
const fault = (what, element) => faults.push(`${what}: ${element.outerHTML.slice(0, 120)}`);
const name = e => (e.getAttribute('aria-label') ?? e.closest('label')?.textContent ?? e.textContent ?? '').trim();
for (const e of document.querySelectorAll('input, select, textarea, button, a[href], summary')) if (name(e) === '') fault('no name', e);
for (const e of document.querySelectorAll('img')) if (!e.hasAttribute('alt')) fault('no text', e);
for (const e of document.querySelectorAll('svg')) if (e.getAttribute('aria-hidden') !== 'true') fault('read aloud', e);
for (const e of document.querySelectorAll('table')) if (!e.caption || !e.querySelector('th[scope=col]')) fault('no caption or heads', e);
for (const e of document.querySelectorAll('pre')) if (e.tabIndex < 0 || !e.getAttribute('aria-label')) fault('cannot be scrolled by keys', e);
for (const [css, most] of [['main', 1], ['header', 1], ['h1', 1], ['nav[aria-label]', 9], ['[aria-live]', 9]]) {
  const count = document.querySelectorAll(css).length;
  if (count < 1 || count > most) faults.push(`${count} ${css}`);
}
if (document.documentElement.lang !== 'en') faults.push('no language');
const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
if (new Set(ids).size !== ids.length) faults.push(`an id twice: ${ids}`);

const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
const over = ([r, g, b, a], [R, G, B]) => [r, g, b].map((c, at) => c * a / 255 + [R, G, B][at] * (1 - a / 255));
const ground = e => { const own = rgba(getComputedStyle(e).backgroundColor); return own[3] === 255 || !e.parentElement ? own : over(own, ground(e.parentElement)); };
const light = rgb => { const [r, g, b] = rgb.map(c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !e.checkVisibility() || e.closest('.unseen, .skip, noscript, :disabled, svg')) continue;
  const under = ground(e);
  const [a, b] = [light(over(rgba(getComputedStyle(e).color), under)), light(under)].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) fault(`contrast ${((a + 0.05) / (b + 0.05)).toFixed(2)}`, e);
}
return faults;
"#;

const WIDER: &str = "const wide = document.documentElement; return [wide.scrollWidth, wide.clientWidth, \
    [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > wide.clientWidth + 1 && !e.closest('pre, .unseen, thead')).slice(0, 3).map(e => e.outerHTML.slice(0, 160))]";

#[tokio::test]
async fn it_fits_a_telephone_and_can_be_used_without_eyes_or_a_mouse() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, PACED).await;
        let serve = world.serving().await;
        let mut long = job(world, &"long-id-".repeat(16), "/gone");
        long["tenant"] = "a-tenant-with-a-name-without-end-".repeat(6).into();
        long["request"]["query"] = json!({ "q": "x".repeat(400) });
        world
            .api()
            .accept_all(&[long, later(world, "later"), job(world, "fine", "/echo"), job(world, "doomed", "/gone")])
            .await;
        world.api().dead_letters("permanent", 2).await;
        let endpoint = json!({ "url": format!("http://127.0.0.1:9/{}", "long".repeat(60)) });
        assert_eq!(world.api().post("/v1/endpoints", &endpoint).await.0, 201);
        let one = format!("#/providers/{}", world.provider);
        let views = [
            ("#/", "Latest dead letters"),
            (one.as_str(), "Budgets"),
            ("#/jobs", "later"),
            ("#/jobs/fine", "success"),
            ("#/dead", "doomed"),
            ("#/dead/doomed", "Envelope"),
            ("#/webhooks", "Deliveries"),
        ];
        in_browser(origin(world), async |browser| {
            for scheme in ["light", "dark"] {
                browser.scheme(scheme).await;
                for (view, seen) in views {
                    for (width, height) in [(1280, 900), (400, 800)] {
                        browser.resize(width, height).await;
                        browser.open(view).await;
                        browser.sees(seen).await;
                        let [wide, room, which] =
                            serde_json::from_value::<[Value; 3]>(browser.run(WIDER, json!([])).await).expect("three");
                        assert!(wide == room && which == json!([]), "{view} at {width}: {wide} in {room}: {which:#}");
                        assert_eq!(browser.run(FAULTS, json!([])).await, json!([]), "{view} in {scheme} at {width}");
                        let name = view.trim_start_matches("#/").replace('/', "-").replace(&world.provider, "name");
                        browser.picture(&format!("{name}-{scheme}-{width}")).await;
                    }
                }
            }
            without_a_mouse(browser).await;
        })
        .await;
        serve.stop().await;
    })
    .await;
}

/// Tab, Enter and Escape alone, and it is always seen where one is.
async fn without_a_mouse(browser: &Browser) {
    const TAB: &str = "\u{E004}";
    const ENTER: &str = "\u{E007}";
    const ESCAPE: &str = "\u{E00C}";
    let focused = async || {
        let script = "const e = document.activeElement; const style = getComputedStyle(e); \
                      return [e.textContent.trim(), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]";
        browser.run(script, json!([])).await
    };
    browser.resize(1280, 900).await;
    browser.open("#/jobs/later").await;
    browser.reload().await;
    browser.sees("not before").await;
    let mut seen = Vec::new();
    for _ in 0..20 {
        browser.keys(TAB).await;
        let at = focused().await;
        assert_eq!(at[1], true, "the focus is not seen: {at}");
        let text = at[0].as_str().unwrap_or_default().to_owned();
        let found = text == "Cancel the job";
        seen.push(text);
        if found {
            break;
        }
    }
    assert_eq!(seen[0], "Skip to the content");
    assert_eq!(seen.last().map(String::as_str), Some("Cancel the job"), "{seen:?}");
    // A look comes every 2 s, and takes the focus away from nobody.
    let looked = browser.requests().await.len();
    until("it was looked again", SOON, async || holds(!browser.requests().await.is_empty())).await;
    assert_eq!(focused().await[0], "Cancel the job", "after {looked} requests");
    browser.keys(ENTER).await;
    browser.sees("Cancel later?").await;
    browser.keys(ESCAPE).await;
    until("the dialog is gone", SOON, async || {
        holds(browser.run("return document.querySelector('dialog') === null", json!([])).await == true)
    })
    .await;
    assert_eq!(focused().await[0], "Cancel the job", "the focus is back where it was");
}
