//! How many instructions the code takes that runs for every job: a number that does not drift with the machine.
//!
//! Each measure runs twice under callgrind, with N and with 2N calls; the difference divided by N is one call, without
//! what was needed to set it up. `benches/instructions.txt` holds what was accepted, and by which compiler it was
//! built: counts of another one say nothing, so they are shown and not compared. It is built like the tests, without
//! optimisation, so that nothing has to be compiled for it: what it is for is work that is done again or grows. How long
//! the code takes is another question (`cargo bench --bench pace`, `make bench`).
//!
//! `make instructions` compares, `make instructions ACCEPT=1` writes the file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use paceline::config::Config;
use paceline::job::{Given, Job};
use paceline::outcome::{Reply, classify};
use paceline::pace::*;
use paceline::secrets::Secret;
use paceline::webhook::WebhookSecrets;

/// More than so much above what was accepted is a failure.
const LEEWAY: f64 = 0.10;

/// A name, how often it is called under callgrind, and what runs it so often.
struct Measure {
    name: &'static str,
    calls: u64,
    run: fn(u64),
}

const MEASURES: [Measure; 9] = [
    Measure { name: "permit, 1 key with room", calls: 2_000, run: |n| permits(1, 1_000_000, n) },
    Measure { name: "permit, 10,000 keys with room", calls: 2_000, run: |n| permits(10_000, 1_000_000, n) },
    Measure { name: "permit, 1 key at its limit", calls: 2_000, run: |n| permits(1, 6, n) },
    Measure { name: "permit, 1,000 keys at their limit", calls: 2_000, run: |n| permits(1_000, 6, n) },
    Measure { name: "envelope, as it comes in", calls: 200, run: envelopes },
    Measure { name: "envelope, as it was stored", calls: 200, run: stored_envelopes },
    Measure { name: "signature of a webhook", calls: 200, run: |n| signatures("", n) },
    Measure { name: "signature of a tenant's webhook", calls: 200, run: |n| signatures("acme", n) },
    Measure { name: "outcome of five answers", calls: 200, run: outcomes },
];

fn spec(keys: usize, per_minute: u64) -> PoolSpec {
    let minute = Duration::from_secs(60);
    PoolSpec {
        key_limits: vec![
            LimitSpec::requests(per_minute, minute, Algorithm::SlidingWindow),
            LimitSpec::requests(per_minute, minute, Algorithm::TokenBucket).with_burst(per_minute),
            LimitSpec::requests(per_minute * 60, minute * 60, Algorithm::SlidingWindow),
            LimitSpec::concurrency(100),
        ],
        keys: (0..keys).map(|i| KeySpec { label: format!("k{i}"), weight: 1, budget: None }).collect(),
        ..PoolSpec::default()
    }
}

/// Acquire, depart, first byte and finish. Where a key has so little that all are at their limit after the first of the
/// calls, each waits for the nearest slot.
fn permits(keys: usize, per_minute: u64, calls: u64) {
    let mut pool = Pool::new(&spec(keys, per_minute), Time::ZERO).expect("a pool");
    let mut now = Time::ZERO;
    let step = if per_minute > 1_000 { Duration::from_micros(100) } else { Duration::ZERO };
    // All keys are used up first; both runs do this.
    let fill = if per_minute > 1_000 { 0 } else { keys as u64 * (per_minute + 1) };
    let mut made = 0;
    while made < fill + calls {
        now = now + step;
        match pool.acquire(black_box(&Ask::default()), now) {
            Acquire::Granted(permit) => {
                let mut flight = pool.depart(permit, now);
                pool.first_byte(&mut flight, now, None);
                pool.finish(flight, now, None);
                made += 1;
            }
            Acquire::At(at) => now = at,
            other => panic!("{other:?}"),
        }
    }
}

const ENVELOPE: &[u8] =
    br#"{"id":"order-19","provider":"geocoder","lane":"default","tenant":"acme","metadata":{"order":19},
 "request":{"method":"POST","path":"/v1/search","headers":{"accept-language":"de"},"body":{"q":"Berlin","limit":10}},
 "cost":1,"deadline":"2027-11-20T10:00:00Z","retry":{"max_attempts":8,"cap":"5m"},
 "callback":{"url":"https://hooks.example.com/paceline","events":["job.succeeded","job.dead"]}}"#;

fn catalog() -> paceline::job::Catalog {
    let text =
        "[webhooks]\nsecret = \"env:S\"\n[[provider]]\nname = \"geocoder\"\nbase_url = \"https://geo.example.com\"";
    let env = [("S".to_owned(), SECRET.to_owned())];
    Config::parse(text, None, &env).expect("a configuration").catalog()
}

fn envelopes(calls: u64) {
    let catalog = catalog();
    for _ in 0..calls {
        let job = Job::parse(black_box(ENVELOPE), &Given::default(), &catalog).expect("a job");
        black_box(job.hash());
    }
}

fn stored_envelopes(calls: u64) {
    let job = Job::parse(ENVELOPE, &Given::default(), &catalog()).expect("a job");
    let text = serde_json::to_string(&job.to_envelope()).expect("text");
    for _ in 0..calls {
        black_box(Job::from_stored(black_box(&text)).expect("a job"));
    }
}

const SECRET: &str = "whsec_cGFjZWxpbmUtYmVuY2gtc2VjcmV0LTMyLWJ5dGU=";
const EVENT: &str = r#"{"type":"job.succeeded","timestamp":"2026-01-01T00:00:00.000Z","data":{"job_id":"order-19","provider":"geocoder","tenant":"acme","metadata":{"order":19},"state":"succeeded","attempts":1,"response":{"status":200,"headers":{"content-type":"application/json"},"body":{"lat":52.52,"lon":13.405},"truncated":false},"error":null}}"#;

fn signatures(tenant: &str, calls: u64) {
    let secrets = WebhookSecrets::new(&Secret::new(SECRET.to_owned())).expect("a secret");
    for n in 0..calls {
        let signed = secrets.sign(tenant, "msg_0190b6d2", 1_800_000_000 + n as i64, black_box(EVENT.as_bytes()));
        black_box(signed.expect("signed"));
    }
}

fn outcomes(calls: u64) {
    let body =
        br#"{"error":{"code":403,"message":"no","errors":[{"domain":"usageLimits","reason":"dailyLimitExceeded"}]}}"#;
    for _ in 0..calls {
        for status in [200, 403, 404, 429, 503] {
            let reply = Reply::Answered { status, body: black_box(body), nothing_left: false, throttled: false };
            black_box(classify(black_box(reply)));
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let told = match *arguments.as_slice() {
        ["run", name, calls] => return run(name, calls),
        [] => compare(),
        ["accept"] => accept(),
        _ => Err("expected nothing, or `accept`".to_owned()),
    };
    match told {
        Ok(code) => code,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What runs under callgrind.
fn run(name: &str, calls: &str) -> ExitCode {
    match (MEASURES.iter().find(|measure| measure.name == name), calls.parse()) {
        (Some(measure), Ok(calls)) => {
            (measure.run)(calls);
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}

/// What was accepted, and the compiler it was built with.
struct Baseline {
    compiler: String,
    counts: BTreeMap<String, f64>,
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt")
}

impl Baseline {
    /// `count <TAB> name` a line; `#` begins a comment, `compiler` the line of the compiler.
    fn read() -> Result<Self, String> {
        let text = std::fs::read_to_string(file()).map_err(|error| format!("{}: {error}", file().display()))?;
        let mut baseline = Self { compiler: String::new(), counts: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (first, rest) = line.split_once('\t').ok_or_else(|| format!("no tab in {line:?}"))?;
            match first {
                "compiler" => baseline.compiler = rest.to_owned(),
                count => {
                    let count = count.parse().map_err(|_| format!("no count in {line:?}"))?;
                    baseline.counts.insert(rest.to_owned(), count);
                }
            }
        }
        Ok(baseline)
    }
}

fn compare() -> Result<ExitCode, String> {
    let (baseline, compiler) = (Baseline::read()?, compiler()?);
    let is_comparable = baseline.compiler == compiler;
    let mut worse = 0;
    for measure in &MEASURES {
        let count = count(measure)?;
        let said = match baseline.counts.get(measure.name) {
            _ if !is_comparable => "not compared".to_owned(),
            None => {
                worse += 1;
                "not in the file".to_owned()
            }
            Some(accepted) => {
                let change = count / accepted - 1.0;
                worse += i32::from(change > LEEWAY);
                let word = if change > LEEWAY { ", TOO MANY" } else { "" };
                format!("{:+.1} %{word}", change * 100.0)
            }
        };
        println!("{count:>10.0}  {said:<16}  {}", measure.name);
    }
    if !is_comparable {
        println!("NOT COMPARED: accepted with {}, built with {compiler}", baseline.compiler);
        println!("make instructions ACCEPT=1 accepts the counts of this compiler");
        return Ok(ExitCode::SUCCESS);
    }
    if worse > 0 {
        let most = LEEWAY * 100.0;
        println!(
            "{worse} of them take more than {most:.0} % more than was accepted, or are new; where that has to be:"
        );
        println!("make instructions ACCEPT=1, and commit benches/instructions.txt");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn accept() -> Result<ExitCode, String> {
    let mut text = format!(
        "# Instructions of one call, counted by callgrind (benches/instructions.rs): what `make lint` compares with.\n\
         # Written by `make instructions ACCEPT=1`.\ncompiler\t{}\n",
        compiler()?
    );
    for measure in &MEASURES {
        let count = count(measure)?;
        println!("{count:>10.0}  {}", measure.name);
        writeln!(text, "{count:.0}\t{}", measure.name).map_err(|error| error.to_string())?;
    }
    std::fs::write(file(), text).map_err(|error| format!("{}: {error}", file().display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Compiler and target, as one line.
fn compiler() -> Result<String, String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(&rustc).arg("-vV").output().map_err(|error| format!("{rustc}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    Ok(format!("{} {host}", text.lines().next().unwrap_or_default()))
}

/// Instructions of one call.
fn count(measure: &Measure) -> Result<f64, String> {
    let once = callgrind(measure.name, measure.calls)?;
    let twice = callgrind(measure.name, 2 * measure.calls)?;
    Ok((twice - once) / measure.calls as f64)
}

fn callgrind(name: &str, calls: u64) -> Result<f64, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    valgrind.args(["run", name, &calls.to_string()]);
    let output = valgrind.output().map_err(|error| format!("valgrind: {error} (apt-get install valgrind)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, count)| count.trim());
    match collected.and_then(|count| count.parse().ok()) {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(format!("callgrind of {name:?}: {}\n{said}", output.status)),
    }
}
