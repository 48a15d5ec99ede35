//! `paceline plan`: against arithmetic, against a whole simulation, against a real run, and as it is shown.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::world::{Mode, in_world};
use paceline::config::{Config, Provider};
use paceline::plan::{Amount, Basis, Plan, PlanError, Work, plan, plan_within};
use paceline::sim::{Limit, Lognormal, ProviderOptions, ProviderSim, Rule, SimKey};
use serde_json::{Value, json};

const START_MS: i64 = 1_800_000_000_000;
/// The one second that a plan takes, in milliseconds.
const SECOND: f64 = 1_000.0;

/// A provider with that many keys.
fn provider(keys: usize, more: &str) -> Provider {
    let keys: Vec<String> = (0..keys).map(|n| format!("{{ label = \"k{n}\", secret = \"env:K\" }}")).collect();
    let text =
        format!("[[provider]]\nname = \"p\"\nbase_url = \"https://p.example\"\nkeys = [ {} ]\n{more}", keys.join(", "));
    let env = [("K".to_owned(), "key-0123456789".to_owned())];
    Config::parse(&text, None, &env).expect("a valid configuration").providers[0].clone()
}

fn jobs(n: u64) -> Work {
    Work::plain(Amount::Jobs(n), START_MS)
}

fn arrivals(per_second: f64, seconds: u64) -> Work {
    Work::plain(Amount::Arrivals { per_second, span: Duration::from_secs(seconds) }, START_MS)
}

#[track_caller]
fn near(found: f64, expected: f64, share: f64) {
    assert!((found - expected).abs() <= share * expected, "{found} is not within {share} of {expected}");
}

// --------------------------------------------------------------------------------------- arithmetic

#[test]
fn the_time_is_what_arithmetic_says() {
    let window = "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }";
    let cases = [
        // 2 keys of 100 per window: 1,950 jobs need 9 windows more than the first, each longer by an answer.
        (provider(2, &format!("key_limits = [ {window} ]")), 1_950, 9.0 * 10.2 + 0.2),
        // 10 a second after the burst.
        (
            provider(1, "key_limits = [ { requests = 10, per = \"1s\", algorithm = \"token_bucket\", burst = 5 } ]"),
            1_005,
            100.2,
        ),
        // Evenly, one less than declared in each window, which is longer by an answer.
        (provider(1, "key_limits = [ { requests = 100, per = \"10s\" } ]"), 2_000, 1_999.0 / 9.9 * 1.0201 + 0.2),
        // 20 places, five times a second each.
        (provider(3, "limits = [ { concurrency = 20 } ]"), 2_000, 20.0),
        // The provider's limit holds back what the keys would allow.
        (provider(4, &format!("limits = [ {window} ]\nkey_limits = [ {window} ]")), 950, 9.0 * 10.2 + 0.2),
    ];
    for (provider, n, seconds) in cases {
        let plan = plan(&provider, &jobs(n)).expect("a plan");
        near(plan.takes_ms as f64, seconds * SECOND, 0.01);
        near(plan.arithmetic_ms as f64, seconds * SECOND, 0.02);
        assert_eq!((plan.basis, plan.jobs, plan.calls, plan.dead), (Basis::Simulated, n, n, 0));
    }
}

#[test]
fn what_binds_is_named_as_it_is_configured() {
    let text = "limits = [ { concurrency = 500 } ]\nkey_limits = [ { requests = 600, per = \"1m\", algorithm = \"sliding_window\" } ]\n\
                [[provider.budget]]\nname = \"org\"\nkeys = [ { label = \"b1\", secret = \"env:K\" }, { label = \"b2\", secret = \"env:K\" } ]\n\
                limits = [ { requests = 600, per = \"1m\", algorithm = \"sliding_window\" } ]\n\
                [[provider.route]]\nmatch = \"POST /slow*\"\nlimits = [ { requests = 2, per = \"1s\", algorithm = \"sliding_window\" } ]";
    let provider = provider(2, text);
    let binds = |plan: &Plan| plan.binds.iter().map(|b| (b.place.clone(), b.keys)).collect::<Vec<_>>();
    let two = plan(&provider, &jobs(9_000)).expect("a plan");
    assert_eq!(binds(&two), [("budget \"org\": limits[0]".to_owned(), 2), ("key_limits[0]".to_owned(), 2)]);
    assert_eq!(two.binds[1].limit, "600 requests per 1m (sliding_window)");
    let used: Vec<f64> = two.limits.iter().filter(|limit| limit.binds).filter_map(|limit| limit.used).collect();
    assert!(used.len() == 2 && used.iter().all(|used| (0.97..=1.0).contains(used)), "{used:?}");
    let slow = Work { method: "POST".to_owned(), path: "/slow/1".to_owned(), ..jobs(500) };
    let slow = plan(&provider, &slow).expect("a plan");
    assert_eq!(binds(&slow), [("route[0].limits[0]".to_owned(), 4)]);
    assert!(slow.more_keys.is_empty(), "keys do not help against a limit of the route: {:?}", slow.more_keys);
    let few = plan(&provider, &jobs(400)).expect("a plan");
    assert!(few.binds.is_empty() && few.takes_ms < 500, "they fit into the first window: {few:?}");
}

#[test]
fn more_keys_help_until_another_limit_binds() {
    let window = |n: u64| format!("{{ requests = {n}, per = \"10s\", algorithm = \"sliding_window\" }}");
    let provider = provider(1, &format!("key_limits = [ {} ]\nlimits = [ {} ]", window(100), window(450)));
    let now = plan(&provider, &jobs(3_000)).expect("a plan");
    let rows: Vec<_> = now.more_keys.iter().map(|row| (row.keys, row.binds[0].place.as_str())).collect();
    assert_eq!(rows, [(1, "key_limits[0]"), (4, "limits[0]")]);
    near(now.takes_ms as f64, (29.0 * 10.2 + 0.2) * SECOND, 0.01);
    near(now.more_keys[0].takes_ms.expect("known") as f64, (14.0 * 10.2 + 0.2) * SECOND, 0.01);
    near(now.more_keys[1].takes_ms.expect("known") as f64, (6.0 * 10.2 + 0.2) * SECOND, 0.02);
}

#[test]
fn failures_cost_calls_and_time() {
    let provider =
        provider(1, "key_limits = [ { requests = 100, per = \"1s\", algorithm = \"token_bucket\", burst = 50 } ]");
    let failing = Work { failures: 0.2, ..jobs(4_000) };
    let plan = plan(&provider, &failing).expect("a plan");
    near(plan.calls as f64, 4_000.0 * (1.0 - 0.2_f64.powi(5)) / 0.8, 0.02);
    assert!(plan.takes_ms as f64 > 49.0 * SECOND && plan.dead < 10, "{plan:?}");
}

#[test]
fn a_steady_rate_stands_in_for_the_rest_and_says_so() {
    let shared = "key_limits = [ { requests = 50, per = \"2s\", algorithm = \"sliding_window\" }, { requests = 40, per = \"1s\" } ]";
    let provider = provider(2, shared);
    let work = Work { latency: Lognormal::ms(80, 300), ..jobs(12_345) };
    let whole = plan(&provider, &work).expect("a plan");
    let part = plan_within(&provider, &work, 1_500).expect("a plan");
    assert_eq!((whole.basis, part.basis), (Basis::Simulated, Basis::Extrapolated));
    assert!(part.simulated_calls < 6_100, "{}", part.simulated_calls);
    near(part.takes_ms as f64, whole.takes_ms as f64, 0.005);
    assert_eq!(part.intervals.calls.len(), whole.intervals.calls.len());
    near(part.intervals.calls.iter().sum::<u64>() as f64, 12_345.0, 0.01);
}

#[test]
fn a_long_period_that_was_not_seen_is_not_extrapolated_over() {
    let provider = provider(
        1,
        "key_limits = [ { requests = 20, per = \"1s\", algorithm = \"sliding_window\" }, { requests = 50000, per = \"7d\", algorithm = \"sliding_window\" } ]",
    );
    let plan = plan_within(&provider, &jobs(200_000), 1_000).expect("a plan");
    assert_eq!(plan.basis, Basis::Arithmetic);
    near(plan.takes_ms as f64, 3.0 * 7.0 * 86_400.0 * SECOND, 0.01);
    assert_eq!(plan.binds[0].place, "key_limits[1]");
    let few = plan_within(&provider, &jobs(40_000), 1_000).expect("a plan");
    assert_eq!((few.basis, few.binds[0].place.as_str()), (Basis::Extrapolated, "key_limits[0]"));
}

// ----------------------------------------------------------------------------------------- arrivals

#[test]
fn what_is_kept_up_with_hardly_waits() {
    let provider =
        provider(2, "key_limits = [ { requests = 10, per = \"1s\", algorithm = \"token_bucket\", burst = 5 } ]");
    let plan = plan(&provider, &arrivals(10.0, 300)).expect("a plan");
    let (backlog, waits) = (plan.backlog.expect("arrivals"), plan.waits.expect("arrivals"));
    assert!(!backlog.grows && waits.p50_ms < 10 && waits.p99_ms < 2_000, "{backlog:?} {waits:?}");
    near(backlog.sustained_per_second, 20.0, 0.01);
    near(plan.jobs as f64, 3_000.0, 0.1);
    assert_eq!(plan.keys_to_keep_up, None);
}

#[test]
fn what_cannot_be_kept_up_with_grows_without_bound() {
    let provider =
        provider(2, "key_limits = [ { requests = 10, per = \"1s\", algorithm = \"token_bucket\", burst = 5 } ]");
    let plan = plan(&provider, &arrivals(30.0, 300)).expect("a plan");
    let backlog = plan.backlog.expect("arrivals");
    assert!(backlog.grows);
    near(backlog.grows_per_second, 10.0, 0.02);
    near(backlog.jobs_at_end as f64, 3_000.0, 0.1);
    near(backlog.drains_ms as f64, 150.0 * SECOND, 0.1);
    assert_eq!(plan.keys_to_keep_up, Some(2), "a limit that is only just as fast as what comes is not enough");
    assert!(plan.waits.expect("arrivals").max_ms > 100_000);
}

#[test]
fn lanes_get_their_shares() {
    let provider = provider(
        1,
        "key_limits = [ { requests = 50, per = \"1s\", algorithm = \"token_bucket\", burst = 20 } ]\nlanes = { high = 8, low = 1 }",
    );
    let work = Work { lanes: vec![("high".to_owned(), 0.5), ("low".to_owned(), 0.5)], ..jobs(4_000) };
    let plan = plan(&provider, &work).expect("a plan");
    let done: Vec<f64> = plan.lanes.iter().filter_map(|lane| lane.takes_ms).map(|ms| ms as f64).collect();
    // Eight of nine turns for the first half, then the rest alone.
    near(done[0], 2_000.0 / (50.0 * 8.0 / 9.0) * SECOND, 0.05);
    near(done[1], 80.0 * SECOND, 0.02);
}

// -------------------------------------------------------------------------------------- what cannot

#[test]
fn what_is_unknown_is_not_planned() {
    let plan = plan(&provider(1, ""), &jobs(5_000)).expect("a plan");
    assert!(!plan.limits_known && plan.allowed_per_second.is_none() && plan.utilisation.is_none());
    assert!(plan.notes.iter().any(|note| note.contains("probed")), "{:?}", plan.notes);
}

#[test]
fn impossible_work_is_refused_with_the_reason() {
    let costly = provider(1, "key_limits = [ { cost = 100, per = \"1m\", algorithm = \"sliding_window\" } ]");
    let error = plan(&costly, &Work { cost: 101, ..jobs(1) }).expect_err("too costly");
    assert!(matches!(&error, PlanError::Impossible(why) if why.contains("100 cost units")), "{error}");
    let error = plan(&costly, &Work { lanes: vec![("fast".to_owned(), 1.0)], ..jobs(1) }).expect_err("no such lane");
    assert_eq!(error.to_string(), "there is no lane \"fast\"; lanes of this provider: default, replay");
    let error = plan(&costly, &Work { path: "no-slash".to_owned(), ..jobs(1) }).expect_err("no path");
    assert!(error.to_string().contains("request.path"), "{error}");
}

// ------------------------------------------------------------------------------------- a real run

/// The same configuration, planned, and run for real over sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_comes_true() {
    const JOBS: u64 = 150;
    let limits = "key_limits = [ { requests = 20, per = \"2s\", algorithm = \"sliding_window\" } ]\n";
    in_world(Mode::Embedded, async |world| {
        let rule = Rule::key(Limit::SlidingLog { limit: 20, per: Duration::from_secs(2) });
        let options = ProviderOptions {
            keys: vec![SimKey::new("a1", "first-key"), SimKey::new("a2", "second-key")],
            rules: vec![rule],
            latency: Some(Lognormal::ms(100, 100)),
            ..ProviderOptions::default()
        };
        let sim = ProviderSim::start(options).await.expect("a provider");
        world.provider(&sim.base_url(), &[("a1", "first-key"), ("a2", "second-key")], limits);
        let file = world.path("paceline.toml");
        let config = Config::load_without_secrets(Some(&file)).expect("a valid configuration");
        let work = Work { latency: Lognormal::ms(105, 105), ..jobs(JOBS) };
        let planned = plan(&config.providers[0], &work).expect("a plan");

        let serve = world.serving().await;
        let jobs: Vec<Value> = (0..JOBS)
            .map(|n| json!({ "id": format!("j{n}"), "provider": world.provider, "request": { "path": "/" } }))
            .collect();
        let began = Instant::now();
        world.api().accept_all(&jobs).await;
        sim.wait_accepted(JOBS, Duration::from_secs(20)).await.expect("all calls");
        let took = began.elapsed().as_secs_f64() * SECOND;
        assert_eq!(sim.stats().rejected, 0);
        serve.stop().await;
        // Three windows and the answers between them; a busy machine is late, never early.
        assert!(took > planned.takes_ms as f64 * 0.95, "took {took} ms, planned {} ms", planned.takes_ms);
        assert!(took < planned.takes_ms as f64 * 1.15 + 500.0, "took {took} ms, planned {} ms", planned.takes_ms);
    })
    .await;
}

// --------------------------------------------------------------------------------------- as shown

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// Exit code, standard output, standard error; without any environment, so without any secret.
fn said(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_paceline"))
        .arg("plan")
        .args(arguments)
        .current_dir(root())
        .env_clear()
        .output()
        .expect("run");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const SAMPLE: [&str; 4] = ["--config", "examples/paceline.toml", "--start", "2026-11-20T10:00:00Z"];

fn sample(arguments: &[&str]) -> (Option<i32>, String, String) {
    said(&[&SAMPLE, arguments].concat())
}

#[test]
fn a_plan_is_shown_as_a_table_and_a_chart() {
    let (code, out, err) = sample(&["--provider", "geocoder", "--jobs", "10_000", "--latency", "120ms,900ms"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let expected = include_str!("golden/plan.txt");
    assert_eq!(out, expected, "if it is meant, write it to tests/golden/plan.txt:\n{out}");
    let other = sample(&["--provider", "geocoder", "--jobs", "10_000", "--latency", "120ms,900ms", "--seed", "2"]);
    assert_ne!(other.1, expected, "another seed, other answers");
}

#[test]
fn programs_get_every_figure_with_its_unit() {
    let (code, out, _) = sample(&["--jobs", "10000", "--json"]);
    assert_eq!(code, Some(0));
    let json: Value = serde_json::from_str(&out).expect("JSON");
    let plans = json["plans"].as_array().expect("plans");
    assert_eq!(plans.iter().map(|p| p["provider"].as_str().expect("a name")).collect::<Vec<_>>(), ["geocoder", "mail"]);
    let plan = &plans[0];
    for number in ["takes_ms", "arithmetic_ms", "calls", "rate", "sustained_per_second", "utilisation", "keys"] {
        assert!(plan[number].as_f64().is_some_and(|n| n > 0.0), "{number}: {plan}");
    }
    assert_eq!(plan["basis"], "simulated");
    assert_eq!(plan["limits"][0]["place"], "limits[0]");
    assert_eq!(plan["more_keys"][0]["keys"], 1);
    assert!(plan["intervals"]["width_ms"].as_u64().is_some() && plan["waits"].is_null());
    assert_eq!(plan["assumed"]["latency_ms"], 200);
    let (_, out, _) = sample(&["--provider", "mail", "--rate", "600/m", "--for", "2m", "--json"]);
    let json: Value = serde_json::from_str(&out).expect("JSON");
    let plan = &json["plans"][0];
    assert_eq!((plan["rate_per_second"].as_f64(), plan["for_ms"].as_u64()), (Some(10.0), Some(120_000)));
    assert!(plan["backlog"]["grows"].is_boolean() && plan["waits"]["p99_ms"].is_u64(), "{plan}");
}

#[test]
fn what_makes_no_sense_is_refused_and_taught() {
    let cases: [(&[&str], &str); 17] = [
        (&["--jobs", "1", "--provider", "nobody"], "there is no provider \"nobody\"; configured: geocoder, mail"),
        (&[], "--jobs"),
        (&["--jobs", "0"], "expected a number of jobs"),
        (&["--jobs", "-1"], "unexpected argument"),
        (&["--jobs", "99999999999999999999"], "expected a number of jobs"),
        (&["--jobs", "1", "--rate", "1/s", "--for", "1m"], "cannot be used with"),
        (&["--rate", "1/s"], "--for"),
        (&["--rate", "nan/s", "--for", "1m"], "expected a rate"),
        (&["--rate=-3/s", "--for", "1m"], "expected a rate"),
        (&["--rate", "5/w", "--for", "1m"], "expected a rate"),
        (&["--rate", "5/s", "--for", "0s"], "more than 0s"),
        (&["--jobs", "1", "--latency", "0s"], "expected a duration"),
        (&["--jobs", "1", "--latency", "2s,1s"], "expected a duration"),
        (&["--jobs", "1", "--failures", "95%"], "at most 90%"),
        (&["--jobs", "1", "--lane", "high"], "high=20%"),
        (&["--jobs", "1", "--lane", "high=1", "--lane", "high=2"], "given twice"),
        (&["--jobs", "1", "--provider", "geocoder", "--cost", "90001"], "90000 cost units"),
    ];
    for (arguments, word) in cases {
        let (code, out, err) = sample(arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.contains(word) && !err.contains("panicked"), "{arguments:?}: {err}");
    }
    let (code, _, err) = said(&["--config", "missing.toml", "--jobs", "1"]);
    assert!(code == Some(2) && err.contains("missing.toml"), "{err}");
    let (code, out, err) = sample(&["--jobs", "1", "--provider", "mail"]);
    assert!(code == Some(0) && out.contains("mail: 1 job, with 1 key"), "{out}{err}");
}

#[test]
fn an_inline_secret_is_refused_in_a_plan_as_well() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("paceline.toml");
    let text =
        "[[provider]]\nname = \"p\"\nbase_url = \"https://p\"\nkeys = [ { label = \"a\", secret = \"sk-live-1\" } ]\n";
    std::fs::write(&file, text).expect("written");
    let (code, _, err) = said(&["--config", file.to_str().expect("UTF-8"), "--jobs", "1"]);
    assert!(
        code == Some(2) && err.contains("never written into the configuration") && !err.contains("sk-live"),
        "{err}"
    );
    for source in ["vault", "file:/does/not/exist", "env:NOT_SET"] {
        std::fs::write(&file, text.replace("sk-live-1", source)).expect("written");
        let (code, _, err) = said(&["--config", file.to_str().expect("UTF-8"), "--jobs", "1"]);
        assert_eq!(code, Some(0), "{source}: {err}");
    }
}
