//! `paceline demo` of the built binary: what `make demo` shows to a newcomer.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[test]
fn the_demo_shows_what_it_promises_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().expect("a directory");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let began = Instant::now();
    // Nothing of the environment is used, not even broken settings.
    let output = Command::new(env!("CARGO_BIN_EXE_paceline"))
        .args(["demo", "--json"])
        .env_clear()
        .env("TMPDIR", temporary.path())
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")
        .env("AMQP_URL", "amqp://127.0.0.1:1/")
        .env("PACELINE_CONFIG", "/does/not/exist.toml")
        .current_dir(elsewhere.path())
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let took = began.elapsed();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    let summary: Value = serde_json::from_str(&out).expect("one JSON document");
    let figure = |name: &str| summary[name].as_u64().unwrap_or_else(|| panic!("{name}: {summary}"));
    assert_eq!(figure("too_many_requests"), 0, "{summary}");
    assert_eq!(figure("succeeded") + figure("dead"), figure("jobs"));
    assert!(
        figure("dead") > 0 && figure("recovered") > 0 && figure("retries") > 0,
        "there is something to see: {summary}"
    );
    assert_eq!(figure("replayed"), figure("dead_letters"));
    assert_eq!(figure("webhooks_verified"), figure("jobs") + figure("replayed"));
    assert_eq!((figure("webhooks_verified"), figure("webhooks_bad_signature")), (figure("webhooks_expected"), 0));
    assert!(summary["utilisation"].as_f64().is_some_and(|share| share > 0.85), "{summary}");
    assert!(took < Duration::from_secs(60), "in under a minute: {took:?}");
    for place in [&temporary, &elsewhere] {
        let left: Vec<_> = std::fs::read_dir(place.path()).expect("readable").filter_map(Result::ok).collect();
        assert!(left.is_empty(), "it leaves something behind: {left:?}");
    }
    assert!(!err.contains("WARN") && !err.contains("ERROR") && !err.contains("panicked"), "{err}");
}
