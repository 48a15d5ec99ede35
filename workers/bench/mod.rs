//! What `paceline bench` measures, against the bundled provider and with the real program.
//!
//! | module | measures |
//! |---|---|
//! | [`throughput`] | jobs per second, CPU per job and memory, beside bare client loops |
//! | [`pacing`] | how much of an allowed rate is used, and that nothing is refused |

mod machine;
pub mod pacing;
mod site;
pub mod throughput;
