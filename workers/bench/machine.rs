//! The machine that a figure comes from.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::scratch::Scratch;

/// So many writes tell how long the disk takes.
const WRITES: usize = 200;
/// Each of a page.
const PAGE: [u8; 4096] = [7; 4096];

/// Where and when something was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub version: &'static str,
    /// The commit of the checkout that the program lies in, with `-dirty` where files differ from it; nothing elsewhere.
    pub commit: Option<String>,
    pub cores: usize,
    pub cpu: String,
    pub kernel: String,
    /// Half of the writes of a page were on the disk of temporary files after so long.
    pub fdatasync_ms: f64,
    /// Processes that wanted to run, on average of the last minute: before and after.
    pub load: [f64; 2],
    /// RFC 3339.
    pub at: String,
}

impl Machine {
    /// This one, now.
    pub fn now() -> std::io::Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: cpu_model(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            fdatasync_ms: fdatasync()?.as_secs_f64() * 1e3,
            load: [load(), 0.0],
            at: jiff::Timestamp::now().to_string(),
        })
    }

    /// What was measured has been measured.
    pub fn done(mut self) -> Self {
        self.load[1] = load();
        self
    }
}

/// How long half of the writes of a page take until they are on the disk of temporary files.
pub fn fdatasync() -> std::io::Result<Duration> {
    let scratch = Scratch::new("fdatasync")?;
    let mut file = std::fs::File::create(scratch.path("page"))?;
    let mut took = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let begun = Instant::now();
        file.write_all(&PAGE)?;
        file.sync_data()?;
        took.push(begun.elapsed());
    }
    took.sort();
    Ok(took[WRITES / 2])
}

fn commit() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let mut git = Command::new("git");
    git.arg("-C").arg(program.parent().unwrap_or(Path::new("/"))).args([
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]);
    let output = git.stderr(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The processor's name, or nothing where it is not told.
fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    model.trim_start_matches([' ', '\t', ':']).to_owned()
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}
