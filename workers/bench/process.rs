//! What processes take of the machine, as `/proc` tells it (proc(5)).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

/// The kernel counts CPU time in ticks of 1/100 s.
const TICK_US: f64 = 10_000.0;

/// The fields of a `stat` that are used here.
struct Stat {
    name: String,
    parent: u32,
    /// Of the process itself, its threads that have ended included.
    own_us: f64,
    /// Of its children that have ended.
    children_us: f64,
}

impl Stat {
    fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Self::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a stat of /proc that is none"))
    }

    /// The name stands in brackets and may hold any character, brackets too.
    fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.rsplit_once(") ")?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let us = |n: usize| fields.get(n).and_then(|ticks| ticks.parse::<f64>().ok()).map(|ticks| ticks * TICK_US);
        Some(Self {
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            own_us: us(11)? + us(12)?,
            children_us: us(13)? + us(14)?,
        })
    }
}

/// User and system time of a process so far, in µs.
pub fn cpu_us(process: u32) -> io::Result<f64> {
    Ok(Stat::read(format!("/proc/{process}/stat"))?.own_us)
}

/// The same by threads that live, those with one name and different numbers together.
pub fn cpu_us_by_thread(process: u32) -> io::Result<BTreeMap<String, f64>> {
    let mut threads = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end meanwhile.
        let Ok(stat) = Stat::read(entry?.path().join("stat")) else { continue };
        let name = stat.name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
        *threads.entry(name.to_owned()).or_default() += stat.own_us;
    }
    Ok(threads)
}

/// The largest resident size of a process so far, in MiB.
pub fn peak_mib(process: u32) -> io::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0.0);
    Ok(kib / 1024.0)
}

/// Bytes that a process has caused to be written to disks so far.
pub fn bytes_written(process: u32) -> io::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/io"))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("write_bytes:")).and_then(|n| n.trim().parse().ok());
    bytes.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "this kernel does not count what is written"))
}

/// A process with all its descendants, such as a server with one process a connection.
#[derive(Debug, Clone, Copy)]
pub struct Family(u32);

impl Family {
    /// Whoever listens on a TCP port of this machine and is called one of `names`: what listens in its place, such as
    /// a proxy into a container, is somebody else.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn listening_on(port: u16, names: &[&str]) -> Result<Self, String> {
        let inodes = listening_inodes(port);
        if inodes.is_empty() {
            return Err(format!("nothing listens on port {port} of this machine"));
        }
        let mut found: Vec<(u32, Stat)> = processes().filter(|(process, _)| holds_socket(*process, &inodes)).collect();
        found.retain(|(_, stat)| names.contains(&stat.name.as_str()));
        // Descendants may hold the same socket.
        let ids: BTreeSet<u32> = found.iter().map(|(process, _)| *process).collect();
        let eldest = found.iter().find(|(_, stat)| !ids.contains(&stat.parent));
        eldest.map(|(process, _)| Self(*process)).ok_or_else(|| {
            format!("who listens on port {port} may not be looked at, or is not one of {}", names.join(", "))
        })
    }

    /// User and system time of all of them so far, in µs. What has ended counts with its parent.
    pub fn cpu_us(self) -> f64 {
        let all: BTreeMap<u32, Stat> = processes().collect();
        let is_member = |mut process: u32| loop {
            match all.get(&process) {
                _ if process == self.0 => return true,
                Some(stat) => process = stat.parent,
                None => return false,
            }
        };
        let members = all.iter().filter(|(process, _)| is_member(**process));
        members.map(|(_, stat)| stat.own_us + stat.children_us).sum()
    }
}

/// Every process of this machine that can be seen.
fn processes() -> impl Iterator<Item = (u32, Stat)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        Some((process, Stat::read(entry.path().join("stat")).ok()?))
    })
}

fn listening_inodes(port: u16) -> BTreeSet<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines()).filter_map(|line| listening_inode(line, port)).collect()
}

/// The socket of a line of `/proc/net/tcp`, where it listens (0A) on the port.
fn listening_inode(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let is_port = u16::from_str_radix(local.rsplit(':').next()?, 16) == Ok(port);
    (is_port && *state == "0A").then(|| (*inode).to_owned())
}

fn holds_socket(process: u32, inodes: &BTreeSet<String>) -> bool {
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|target| {
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        inode.is_some_and(|inode| inodes.contains(inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_brackets_and_blanks() {
        let line = "17 (a) (b) c) S 4 17 17 0 -1 4194560 1 2 3 4 150 50 7 3 20 0 1 0 99 1 1";
        let stat = Stat::parse(line).expect("a stat");
        assert_eq!((stat.name.as_str(), stat.parent), ("a) (b) c", 4));
        assert_eq!((stat.own_us, stat.children_us), (2_000_000.0, 100_000.0));
        assert!(Stat::parse("17 (short) S 4").is_none());
    }

    #[test]
    fn this_process_is_found_by_its_port_and_its_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let name = std::fs::read_to_string("/proc/self/comm").expect("a name");
        let family = Family::listening_on(port, &["somebody else", name.trim()]).expect("found");
        assert_eq!(family.0, std::process::id());
        let own = cpu_us(std::process::id()).expect("counted");
        assert!(family.cpu_us() >= own);
        assert!(Family::listening_on(port, &["somebody else"]).is_err(), "not by its port alone");
        drop(listener);
        assert!(Family::listening_on(port, &[name.trim()]).is_err());
    }

    #[test]
    fn cpu_time_of_threads_adds_up_to_that_of_the_process() {
        let until = std::time::Instant::now() + std::time::Duration::from_millis(60);
        while std::time::Instant::now() < until {}
        let (all, id) = (cpu_us(std::process::id()).expect("counted"), std::process::id());
        let threads: f64 = cpu_us_by_thread(id).expect("counted").values().sum();
        assert!(threads >= 2.0 * TICK_US && all >= 2.0 * TICK_US, "{threads} {all}");
        assert!(peak_mib(id).expect("counted") > 1.0);
    }
}
