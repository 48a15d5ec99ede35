//! A plan for people.

use std::time::Duration;

use paceline::plan::{Basis, Binding, Intervals, MoreKeys, Plan, Waits};

/// Rows of the chart.
const ROWS: usize = 8;
/// Marks in the chart between the labels of its time axis.
const LABEL_EVERY: usize = 15;
/// Columns of the words before a line's text.
const INDENT: usize = 14;

/// The whole plan.
pub fn text(plan: &Plan) -> String {
    let mut parts = vec![title(plan), facts(plan)];
    parts.push(limits(plan));
    parts.push(chart(&plan.intervals));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn title(plan: &Plan) -> String {
    let keys = match plan.keys {
        0 => "without a key".to_owned(),
        n => format!("with {}", counted(n, "key")),
    };
    match (plan.rate_per_second, plan.for_ms) {
        (Some(rate), Some(ms)) => {
            format!("{}: {} jobs/s for {}, {keys}", plan.provider, figure(rate), span(ms))
        }
        _ => format!("{}: {}, {keys}", plan.provider, counted(plan.jobs, "job")),
    }
}

fn facts(plan: &Plan) -> String {
    let mut lines: Vec<(&str, String)> = vec![("takes", takes(plan)), ("calls", calls(plan))];
    if let Some(utilisation) = plan.utilisation
        && let Some(allowed) = plan.allowed_per_second
    {
        let share = percent(utilisation);
        lines.push((
            "utilisation",
            format!("{share} of the {}/s that the limits allow in the long run", figure(allowed)),
        ));
    }
    if let Some(backlog) = &plan.backlog {
        lines.push(("keeps up", keeps_up(plan)));
        if backlog.jobs_at_end > 0 && backlog.grows {
            let (jobs, drains) = (grouped(backlog.jobs_at_end), span(backlog.drains_ms));
            lines.push(("backlog", format!("{jobs} jobs when no more come; these take {drains}")));
        }
    }
    if let Some(all) = &plan.waits {
        lines.push(("waits", waits(all)));
    }
    for lane in &plan.lanes {
        let end = lane.takes_ms.map(|ms| format!("done after {}", span(ms)));
        let waited = plan.rate_per_second.and(lane.waits.as_ref()).map(waits);
        let told: Vec<String> = [waited, end].into_iter().flatten().collect();
        lines.push(("lane", format!("{} ({} of the jobs): {}", lane.lane, percent(lane.share), told.join("; "))));
    }
    let held = plan.binds.iter().map(binding).collect::<Vec<_>>();
    if held.is_empty() {
        lines.push(("binds", "no limit: calls leave as soon as their jobs are there".to_owned()));
    }
    lines.extend(held.into_iter().enumerate().map(|(n, text)| (if n == 0 { "binds" } else { "" }, text)));
    lines
        .extend(more_keys(plan).into_iter().enumerate().map(|(n, text)| (if n == 0 { "more keys" } else { "" }, text)));
    lines.push(("assumed", assumed(plan)));
    lines.extend(plan.notes.iter().map(|note| ("note", note.clone())));
    let line =
        |(name, text): (&str, String)| format!("  {name:<width$}{text}", width = INDENT - 2).trim_end().to_owned();
    lines.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

fn takes(plan: &Plan) -> String {
    let at = plan.done_at.get(..19).unwrap_or(&plan.done_at).replace('T', " ");
    let least = if plan.limits_known { "" } else { "at least " };
    let basis = match plan.basis {
        Basis::Simulated => "every job simulated".to_owned(),
        Basis::Extrapolated => {
            format!("{} calls simulated, the rest extrapolated from a steady rate", grouped(plan.simulated_calls))
        }
        Basis::Arithmetic => "by arithmetic".to_owned(),
    };
    format!("{least}{}: the last job is done at {at} UTC ({basis})", span(plan.takes_ms))
}

fn calls(plan: &Plan) -> String {
    let mut text = format!("{} at {}/s", grouped(plan.calls), figure(plan.rate));
    if let Some(sustained) = plan.sustained_per_second.filter(|_| plan.rate_per_second.is_none()) {
        text += &format!(", {}/s in the long run", figure(sustained));
    }
    if plan.dead > 0 {
        text += &format!("; {} jobs fail for good", grouped(plan.dead));
    }
    text
}

fn keeps_up(plan: &Plan) -> String {
    let Some(backlog) = &plan.backlog else { return String::new() };
    let sustained = figure(backlog.sustained_per_second);
    if !backlog.grows {
        return format!("yes: {sustained} jobs/s can be done");
    }
    let keys = match plan.keys_to_keep_up {
        Some(1) => "; 1 more key keeps up".to_owned(),
        Some(keys) => format!("; {} more keys keep up", grouped(keys)),
        None => "; more keys do not help".to_owned(),
    };
    let by = figure(backlog.grows_per_second);
    format!("no: {sustained} jobs/s can be done, and the backlog grows by {by}/s without bound{keys}")
}

fn waits(waits: &Waits) -> String {
    format!("p50 {}, p99 {}, max {}", span(waits.p50_ms), span(waits.p99_ms), span(waits.max_ms))
}

fn binding(binding: &Binding) -> String {
    let keys = counted(binding.keys, "key");
    format!("{}: {}, of {} ({keys})", binding.place, binding.limit, binding.of)
}

fn more_keys(plan: &Plan) -> Vec<String> {
    if plan.more_keys.is_empty() {
        let why = if plan.binds.is_empty() || plan.keys == 0 { None } else { Some("do not help".to_owned()) };
        return why.into_iter().collect();
    }
    let row = |more: &MoreKeys| {
        let takes = more.takes_ms.map_or_else(String::new, |ms| format!("{}, ", span(ms)));
        let then = match more.binds.first() {
            None => "; no limit binds any more".to_owned(),
            Some(binds) if binds.keys == plan.keys + more.keys && !plan.binds.contains(binds) => {
                let known = plan.binds.iter().any(|b| b.place == binds.place);
                if known { String::new() } else { format!("; then {} binds: {}", binds.place, binds.limit) }
            }
            Some(_) => String::new(),
        };
        format!("+{}: {takes}{}/s in the long run{then}", grouped(more.keys), figure(more.per_second))
    };
    plan.more_keys.iter().map(row).collect()
}

fn assumed(plan: &Plan) -> String {
    let assumed = &plan.assumed;
    let answers = if assumed.latency_ms == assumed.latency_p99_ms {
        format!("answers after {}", span(assumed.latency_ms))
    } else {
        format!("answers after {} (p99 {})", span(assumed.latency_ms), span(assumed.latency_p99_ms))
    };
    let failures =
        if assumed.failures == 0.0 { "no failures".to_owned() } else { format!("{} fail", percent(assumed.failures)) };
    format!("{answers}, {failures}, cost {}, {} {}, seed {}", assumed.cost, assumed.method, assumed.path, assumed.seed)
}

fn limits(plan: &Plan) -> String {
    let mut rows = vec![["limit", "of", "allows", "used", ""].map(str::to_owned)];
    for limit in &plan.limits {
        rows.push([
            format!("{}: {}", limit.place, limit.limit),
            limit.of.clone(),
            limit.allowed_per_second.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", figure(rate))),
            limit.used.map_or_else(|| "-".to_owned(), percent),
            if limit.binds { "binds".to_owned() } else { String::new() },
        ]);
    }
    if rows.len() == 1 {
        return String::new();
    }
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; 5]| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(
                |(n, (cell, width))| {
                    if matches!(n, 2 | 3) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            )
            .collect();
        format!("  {}", cells.join("  ")).trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Calls in each interval as columns, and the allowed rate as a line.
fn chart(intervals: &Intervals) -> String {
    let most = intervals.calls.iter().copied().max().unwrap_or(0) as f64;
    let top = most.max(intervals.allowed.filter(|allowed| *allowed < most * 4.0).unwrap_or(0.0));
    if top == 0.0 {
        return String::new();
    }
    let eighths = |calls: u64| (calls as f64 / top * (ROWS * 8) as f64).round() as usize;
    let line_row = intervals
        .allowed
        .filter(|allowed| *allowed <= top)
        .map(|allowed| ((allowed / top * ROWS as f64).ceil() as usize).clamp(1, ROWS) - 1);
    let margin = grouped(top.round() as u64).chars().count().max(4);
    let mut lines = vec![format!("  calls per {}", span(intervals.width_ms))];
    for row in (0..ROWS).rev() {
        let is_line = line_row == Some(row);
        let cell = |(n, calls): (usize, &u64)| {
            let filled = eighths(*calls).saturating_sub(row * 8).min(8);
            match filled {
                0 if is_line => '╌',
                0 => ' ',
                8 if n >= intervals.simulated => '▒',
                _ => [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][filled],
            }
        };
        let bars: String = intervals.calls.iter().enumerate().map(cell).collect();
        let label = if row == ROWS - 1 { grouped(top.round() as u64) } else { String::new() };
        let allowed = if is_line {
            format!("╌ {} allowed", grouped(intervals.allowed.unwrap_or(0.0).round() as u64))
        } else {
            String::new()
        };
        let width = intervals.calls.len();
        lines.push(format!("  {label:>margin$} ┤{bars:<width$} {allowed}").trim_end().to_owned());
    }
    lines.push(format!("  {:>margin$} └{}", "0", "─".repeat(intervals.calls.len())));
    let mut axis = String::new();
    for n in (0..=intervals.calls.len()).step_by(LABEL_EVERY) {
        axis += &format!("{:<LABEL_EVERY$}", span(intervals.width_ms * n as u64));
    }
    lines.push(format!("  {:margin$}  {}", "", axis.trim_end()));
    if intervals.simulated < intervals.calls.len() {
        lines.push(format!("  {:margin$}  ▒ extrapolated", ""));
    }
    lines.join("\n")
}

/// A duration in its two largest units.
fn span(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    if ms < 10_000 && !ms.is_multiple_of(1_000) {
        return format!("{:.1}s", ms as f64 / 1e3);
    }
    let mut seconds = Duration::from_millis(ms + 500).as_secs();
    let mut parts = Vec::new();
    for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if seconds >= size && parts.len() < 2 {
            parts.push(format!("{}{unit}", grouped(seconds / size)));
            seconds %= size;
        }
    }
    parts.join(" ")
}

/// Three digits, or as many as a whole number has.
fn figure(number: f64) -> String {
    let text = match number {
        n if n >= 99.95 => return grouped(n.round() as u64),
        n if n >= 9.995 => format!("{n:.1}"),
        n if n >= 0.0995 => format!("{n:.2}"),
        n => format!("{n:.5}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `1 key`, `2 keys`.
fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
