//! The pacing and the tests that prove it, in one crate that is built at once. `run.py` adds the tests.

extern crate self as paceline;

pub mod pace;

/// The mutant that the environment chooses; 0: none.
pub(crate) fn mutant() -> u32 {
    static CHOSEN: std::sync::LazyLock<u32> =
        std::sync::LazyLock::new(|| std::env::var("MUTANT").map_or(0, |number| number.parse().unwrap()));
    *CHOSEN
}
