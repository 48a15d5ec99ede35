//! Placeholder for the pacing core.
#![expect(missing_docs, dead_code)]
mod spec;
mod time;
pub use spec::*;
pub use time::Time;
