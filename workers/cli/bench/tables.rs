//! The report of `paceline bench` for people: a table a measure, a column a mode.

use super::{Failure, Out};
use crate::bench::backlog::Backlog;
use crate::bench::latency::Latency;
use crate::bench::load::Mode;
use crate::bench::meter::Taken;
use crate::bench::spread::{Percentiles, Spread};
use crate::bench::throughput::Run;
use crate::bench::whole::{Measured, Report};

/// A figure that is not known.
const UNKNOWN: &str = "unknown";
/// One that is not there.
const NONE: &str = "-";

/// Prints all of it.
pub fn print(report: &Report, out: &Out) -> Result<(), Failure> {
    machine(report, out)?;
    throughput(report, out)?;
    roles(report, out)?;
    latency(report, out)?;
    backlog(report, out)?;
    report.left_out.iter().try_for_each(|what| out.line(format!("not measured: {what}")))
}

fn machine(report: &Report, out: &Out) -> Result<(), Failure> {
    let machine = &report.machine;
    let commit = machine.commit.as_deref().unwrap_or(UNKNOWN);
    out.line(format!("paceline {}, commit {commit}, {}", machine.version, machine.at))?;
    let [before, after] = machine.load;
    out.line(format!(
        "{} cores, {}, Linux {}, load {before:.1} to {after:.1}, fdatasync of a page {:.2} ms",
        machine.cores, machine.cpu, machine.kernel, machine.fdatasync_ms
    ))?;
    if let Some(versions) = &report.services {
        let events = if report.events { "" } else { ", without completions over RabbitMQ" };
        out.line(format!("RabbitMQ {}, PostgreSQL {}{events}", versions.rabbitmq, versions.postgresql))?;
    }
    out.line(format!("{} jobs a run, {} calls at once\n", report.jobs, report.concurrency))
}

/// A name and how it is read from a run, with so many decimals.
type Figure = (&'static str, usize, fn(&Run, Mode) -> Option<f64>);

const FIGURES: [Figure; 12] = [
    ("jobs/s", 0, |run, _| Some(run.jobs_per_second)),
    ("CPU µs a job", 1, |run, _| Some(run.taken.cpu_us)),
    ("  floor", 1, |run, _| Some(run.floor_us)),
    ("  × floor", 2, |run, _| Some(run.times_floor)),
    ("  threads of SQLite", 1, |run, mode| (mode == Mode::Embedded).then(|| sqlite_us(&run.taken))),
    ("  broker", 1, |run, _| run.taken.broker_us),
    ("  database", 1, |run, _| run.taken.database_us),
    ("  provider and receiver", 1, |run, _| Some(run.taken.bench_us)),
    ("cores in use", 2, Run::cores),
    ("transactions a job", 3, |run, _| Some(run.taken.transactions)),
    ("bytes written a job", 0, |run, _| Some(run.taken.bytes)),
    ("peak MiB", 0, |run, _| Some(run.taken.peak_mib)),
];

fn sqlite_us(taken: &Taken) -> f64 {
    taken.threads_us.iter().filter(|(name, _)| name.starts_with("sqlite-")).map(|(_, us)| us).sum()
}

fn throughput(report: &Report, out: &Out) -> Result<(), Failure> {
    if report.modes.iter().all(|measured| measured.runs.is_empty()) {
        return Ok(());
    }
    let cell = |measured: &Measured, (name, decimals, figure): &Figure| {
        let figures: Option<Vec<f64>> = measured.runs.iter().map(|run| figure(run, measured.mode)).collect();
        match figures.and_then(Spread::of) {
            Some(Spread { min, median, max }) => format!("{min:.decimals$} · {median:.decimals$} · {max:.decimals$}"),
            None if measured.mode == Mode::Embedded && matches!(*name, "  broker" | "  database") => NONE.to_owned(),
            None if measured.mode == Mode::Scaled && *name == "  threads of SQLite" => NONE.to_owned(),
            None => UNKNOWN.to_owned(),
        }
    };
    let rows = FIGURES.iter().map(|figure| row(report, figure.0, |measured| cell(measured, figure)));
    columns(report, "least · median · most", rows.collect(), out)
}

fn roles(report: &Report, out: &Out) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for measured in &report.modes {
        let Some(roles) = &measured.roles else { continue };
        for role in &roles.roles {
            let taken = &role.taken;
            let service = |us: Option<f64>| match (us, measured.mode) {
                (Some(us), _) => format!("{us:.1}"),
                (None, Mode::Embedded) => NONE.to_owned(),
                (None, Mode::Scaled) => UNKNOWN.to_owned(),
            };
            rows.push([
                format!("{}, {}", measured.mode.name(), role.role),
                format!("{:.0}", role.jobs_per_second),
                format!("{:.1}", taken.cpu_us),
                service(taken.broker_us),
                service(taken.database_us),
                format!("{:.3}", taken.transactions),
                format!("{:.0}", taken.bytes),
                format!("{:.0}", taken.peak_mib),
            ]);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let head =
        ["each role on its own", "jobs/s", "CPU µs/job", "broker", "database", "transactions", "bytes", "peak MiB"];
    out.table(head, &rows, "")?;
    for measured in &report.modes {
        if let Some(roles) = &measured.roles {
            let ms = roles.scheduler_us_per_second / 1e3;
            out.line(format!("{}, scheduler: {ms:.1} ms of CPU a second", measured.mode.name()))?;
        }
    }
    out.line("")
}

fn latency(report: &Report, out: &Out) -> Result<(), Failure> {
    if report.modes.iter().all(|measured| measured.latency.is_none()) {
        return Ok(());
    }
    let of = |name: &str, figure: fn(&Latency) -> String| {
        row(report, name, |measured| measured.latency.as_ref().map_or(NONE.to_owned(), figure))
    };
    let times = |times: &Percentiles| format!("{:.2} · {:.2} · {:.2}", times.p50_ms, times.p99_ms, times.max_ms);
    let rows = vec![
        of("way in", |latency| latency.by.to_owned()),
        row(report, "job → call, ms", |m| m.latency.as_ref().map_or(NONE.to_owned(), |l| times(&l.to_call))),
        row(report, "outcome → webhook, ms", |m| {
            m.latency.as_ref().map_or(NONE.to_owned(), |l| times(&l.to_webhook))
        }),
        of("fdatasync of a page, ms", |latency| format!("{:.2}", latency.fdatasync_ms)),
        of("CPU while idle, ms a second", |latency| format!("{:.1}", latency.idle_us_per_second / 1e3)),
    ];
    columns(report, "p50 · p99 · most", rows, out)
}

fn backlog(report: &Report, out: &Out) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for measured in &report.modes {
        let first = measured.backlogs.first();
        rows.extend(measured.backlogs.iter().map(|backlog| backlog_row(measured.mode, backlog, first)));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let head = [
        "jobs that wait behind",
        "jobs/s",
        "of the first",
        "CPU µs/job",
        "peak MiB",
        "drained: jobs/s",
        "last",
        "peak MiB",
    ];
    out.table(head, &rows, "")?;
    out.line("")
}

fn backlog_row(mode: Mode, backlog: &Backlog, first: Option<&Backlog>) -> [String; 8] {
    let Backlog { waiting, jobs_per_second, cpu_us, peak_mib, drained } = backlog;
    let share = first.map_or(1.0, |first| jobs_per_second / first.jobs_per_second);
    let rest = |figure: fn(&crate::bench::backlog::Drained) -> f64| {
        drained.as_ref().map_or(NONE.to_owned(), |drained| format!("{:.0}", figure(drained)))
    };
    [
        format!("{}, {waiting}", mode.name()),
        format!("{jobs_per_second:.0}"),
        format!("{:.0} %", share * 100.0),
        format!("{cpu_us:.1}"),
        format!("{peak_mib:.0}"),
        rest(|drained| drained.jobs_per_second),
        rest(|drained| drained.last_jobs_per_second),
        rest(|drained| drained.peak_mib),
    ]
}

fn row(report: &Report, name: &str, cell: impl Fn(&Measured) -> String) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(report.modes.iter().map(cell)).collect()
}

/// A table with a column for each mode that was measured.
fn columns(report: &Report, what: &str, rows: Vec<Vec<String>>, out: &Out) -> Result<(), Failure> {
    let modes = report.modes.iter().map(|measured| measured.mode.name());
    let head: Vec<&str> = std::iter::once(what).chain(modes).collect();
    match *head.as_slice() {
        [what, one] => out.table([what, one], &arrays(rows), "")?,
        [what, one, two] => out.table([what, one, two], &arrays(rows), "")?,
        _ => {}
    }
    out.line("")
}

fn arrays<const N: usize>(rows: Vec<Vec<String>>) -> Vec<[String; N]> {
    rows.into_iter().filter_map(|row| row.try_into().ok()).collect()
}
