//! `paceline bench pacing` in short: the real program over real sockets against the strict provider,
//! which delays calls before it judges them.

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
