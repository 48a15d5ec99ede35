//! The pacing and the tests that prove it, in one crate that is built at once. `run.py` adds the tests.

use std::fs::File;
use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

extern crate self as paceline;

pub mod pace;

/// The mutant that the environment chooses; 0: none. With `REACHED`, every place that is come by is written there.
#[inline]
pub(crate) fn mutant(place: u16) -> u32 {
    static CHOSEN: LazyLock<(u32, Option<String>)> =
        LazyLock::new(|| (number("MUTANT").unwrap_or(0), std::env::var("REACHED").ok()));
    let (mutant, file) = &*CHOSEN;
    if let Some(file) = file {
        reached(file, place);
    }
    *mutant
}

#[cold]
fn reached(file: &str, place: u16) {
    static SEEN: [AtomicBool; 1 << 16] = [const { AtomicBool::new(false) }; 1 << 16];
    let seen = &SEEN[usize::from(place)];
    if !seen.load(Relaxed) && !seen.swap(true, Relaxed) {
        let mut file = File::options().append(true).create(true).open(file).unwrap();
        writeln!(file, "{place}").unwrap();
    }
}

/// How many of so many random cases are tried; `FEWER=8`: an eighth of them.
#[cfg(test)]
pub(crate) fn cases(all: u32) -> u32 {
    if let Ok(file) = std::env::var("REACHED") {
        reached(&file, 0);
    }
    all.div_ceil(number("FEWER").unwrap_or(1))
}

fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}
