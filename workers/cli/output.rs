//! What commands print: tables for people, JSON for programs.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde_json::Value;

use super::failure::{Exit, Failure};

/// Standard output. A reader that goes away ends the command, quietly.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    json: bool,
}

impl Out {
    /// For people, or for programs.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether progress may be drawn on standard error.
    pub fn shows_progress(&self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }

    /// A line for people.
    pub fn line(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        Ok(writeln!(std::io::stdout().lock(), "{}", for_terminal(text.as_ref()))?)
    }

    /// A remark for people, on standard error.
    pub fn note(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        Ok(writeln!(std::io::stderr().lock(), "{}", for_terminal(text.as_ref()))?)
    }

    /// One line of JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        Ok(writeln!(std::io::stdout().lock(), "{text}")?)
    }

    /// Bytes as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes)?;
        Ok(stdout.flush()?)
    }

    /// A table; nothing but `empty` where it has no rows.
    pub fn table<const N: usize>(&self, head: [&str; N], rows: &[[String; N]], empty: &str) -> Result<(), Failure> {
        if rows.is_empty() {
            return self.note(empty);
        }
        let mut widths = head.map(str::len);
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: [&str; N]| {
            let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            padded.join("  ").trim_end().to_owned()
        };
        self.line(line(head))?;
        rows.iter().try_for_each(|row| self.line(line(row.each_ref().map(String::as_str))))
    }
}

/// Text of others without anything that a terminal would act on.
pub fn for_terminal(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// A member as a cell: text, numbers, `-` where there is nothing.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.replace(['\n', '\t'], " "),
        other => other.to_string(),
    }
}

/// A cell of at most that many characters.
pub fn short(value: &Value, chars_max: usize) -> String {
    let text = cell(value);
    if text.chars().count() <= chars_max {
        return text;
    }
    let cut: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    cut + "…"
}

/// `2026-11-20T10:00:00.123Z` as `2026-11-20 10:00:00`.
pub fn time(value: &Value) -> String {
    match value.as_str() {
        Some(text) if text.len() >= 19 && text.is_ascii() => text[..19].replace('T', " "),
        _ => cell(value),
    }
}
