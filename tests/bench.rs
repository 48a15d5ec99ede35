//! `paceline bench` and `paceline bench pacing` in short: the real program over real sockets. Of the first the figures must
//! make sense together; how good they are is not asked of a build for tests beside other work.

use std::process::{Command, Stdio};

use serde_json::Value;

/// Built for tests and beside other work, a figure may stay behind its target by so much.
const LEEWAY: f64 = 0.05;

fn measured(arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
    command.args(["bench", "pacing", "--json", "--windows", "5", "--seconds", "5"]).args(arguments);
    command.env_remove("AMQP_URL").env_remove("DATABASE_URL").stdin(Stdio::null());
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    let rows = report["rows"].as_array().expect("rows").clone();
    let is_good = |row: &Value| row["reached"].as_f64() >= row["target"].as_f64() && row["too_many_requests"] == 0;
    assert_eq!(output.status.success(), rows.iter().all(is_good), "the exit code tells: {report}\n{said}");
    rows
}

#[test]
fn what_is_allowed_is_used_and_nothing_is_refused() {
    let rows = measured(&["--only", "sliding-1s", "--only", "token-bucket", "--only", "leaky-bucket"]);
    assert_eq!(rows.len(), 4, "{rows:?}");
    for row in rows {
        assert_eq!(row["too_many_requests"], 0, "{row}");
        let number = |name: &str| row[name].as_f64().expect("a number");
        assert!(number("windows") >= 5.0 && number("calls") >= 50.0, "{row}");
        assert!(number("reached") >= number("target") - LEEWAY, "{row}");
        assert!(number("utilisation") <= 1.02, "nobody is allowed that much: {row}");
    }
}

fn figures(arguments: &[&str], services: bool) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
    command.args(["bench", "--json", "--jobs", "300", "--runs", "2", "--samples", "5"]).args(arguments);
    if !services {
        command.env_remove("AMQP_URL").env_remove("DATABASE_URL");
    }
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap_or_else(|| panic!("{name} of {of}"))
}

/// What is there whatever the mode.
fn make_sense(mode: &Value) {
    let runs = mode["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 2);
    for run in runs {
        assert!(number(run, "jobs_per_second") * number(run, "seconds") - 300.0 < 1e-6, "{run}");
        let times = number(run, "cpu_us") / number(run, "floor_us");
        assert!((times - number(run, "times_floor")).abs() < 1e-6 && times > 0.5, "{run}");
        let threads: f64 = run["threads_us"].as_object().expect("threads").values().filter_map(Value::as_f64).sum();
        assert!(threads > 0.5 * number(run, "cpu_us") && threads < 1.5 * number(run, "cpu_us"), "{run}");
        assert!(number(run, "bench_us") > 0.0 && number(run, "peak_mib") > 5.0, "{run}");
        // A job is claimed, recorded, claimed for its webhook and recorded again, many at once; it is larger than 100 bytes.
        let (transactions, bytes) = (number(run, "transactions"), number(run, "bytes"));
        assert!(transactions > 4.0 / 300.0 && transactions < 10.0 && bytes > 100.0, "{run}");
    }
    let roles = mode["roles"]["roles"].as_array().expect("roles");
    let names: Vec<&str> = roles.iter().filter_map(|role| role["role"].as_str()).collect();
    assert_eq!(names, ["dispatcher", "notifier"]);
    assert!(
        roles.iter().all(|role| number(role, "cpu_us") > 0.0 && number(role, "jobs_per_second") > 0.0),
        "{roles:?}"
    );
    let latency = &mode["latency"];
    for times in ["to_call", "to_webhook"].map(|name| &latency[name]) {
        let [p50, p99, max] = ["p50_ms", "p99_ms", "max_ms"].map(|name| number(times, name));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= max && max < 30_000.0, "{latency}");
    }
}

#[test]
fn an_embedded_run_tells_what_it_took() {
    let report = figures(&["--mode", "embedded", "--backlog", "200,500", "--drain"], false);
    assert_eq!(report["modes"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(report["left_out"], serde_json::json!([]));
    let mode = &report["modes"][0];
    make_sense(mode);
    assert_eq!((&mode["mode"], &mode["runs"][0]["broker_us"]), (&"embedded".into(), &Value::Null));
    for (backlog, waiting) in mode["backlogs"].as_array().expect("backlogs").iter().zip([200, 500]) {
        assert_eq!(backlog["waiting"], waiting);
        assert!(number(backlog, "jobs_per_second") > 0.0 && number(&backlog["drained"], "jobs_per_second") > 0.0);
        assert!(number(&backlog["drained"], "peak_mib") >= number(backlog, "peak_mib"), "{backlog}");
    }
    let machine = &report["machine"];
    assert!(number(machine, "cores") >= 1.0 && number(machine, "fdatasync_ms") > 0.0, "{machine}");
}

#[test]
fn a_run_with_services_tells_what_they_took() {
    let report = figures(&["--mode", "rabbitmq+postgres"], true);
    make_sense(&report["modes"][0]);
    let versions = &report["services"];
    assert!(
        ["rabbitmq", "postgresql"].iter().all(|name| versions[name].as_str().is_some_and(|v| v.contains('.'))),
        "{versions}"
    );
    let run = &report["modes"][0]["runs"][0];
    // Unknown with a reason, such as a server in a container.
    for (name, server) in [("broker_us", "RabbitMQ"), ("database_us", "PostgreSQL")] {
        let reasons = report["left_out"].as_array().expect("reasons");
        let is_told = reasons.iter().any(|reason| reason.as_str().is_some_and(|reason| reason.starts_with(server)));
        assert_eq!(run[name].is_null(), is_told, "{run} {reasons:?}");
    }
}

#[test]
fn without_services_their_mode_is_left_out_and_said_to_be() {
    let report = figures(&["--mode", "rabbitmq+postgres", "--only", "latency"], false);
    assert_eq!(report["modes"], serde_json::json!([]));
    assert!(report["left_out"][0].as_str().is_some_and(|reason| reason.contains("AMQP_URL")), "{report}");
}
