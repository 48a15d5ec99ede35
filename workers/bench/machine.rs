//! The machine that a figure comes from, and what a process took of it.

use serde::Serialize;

/// Where and when something was measured.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub version: &'static str,
    pub cores: usize,
    pub cpu: String,
    /// Processes that wanted to run, on average of the last minute: before and after.
    pub load: [f64; 2],
    /// RFC 3339.
    pub at: String,
}

impl Machine {
    /// This one, now.
    pub fn now() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            cores: cores(),
            cpu: cpu_model(),
            load: [load(), 0.0],
            at: jiff::Timestamp::now().to_string(),
        }
    }

    /// What was measured has been measured.
    pub fn done(mut self) -> Self {
        self.load[1] = load();
        self
    }
}

/// Cores that may be used.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The processor's name, or nothing where it is not told.
pub fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    model.trim_start_matches([' ', '\t', ':']).to_owned()
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// User and system time of a process so far, from `/proc` (proc(5): fields 14 and 15, in ticks of
/// 1/100 s).
pub fn cpu_us(process: u32) -> std::io::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |n: usize| -> f64 { after_name.split_whitespace().nth(n).and_then(|t| t.parse().ok()).unwrap_or(0.0) };
    Ok((ticks(11) + ticks(12)) * 10_000.0)
}

/// Largest resident size of a process so far.
pub fn peak_mib(process: u32) -> std::io::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0.0);
    Ok(kib / 1024.0)
}
