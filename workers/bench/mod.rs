//! What `paceline bench` measures, against the bundled provider and with the real program.
//!
//! | module | measures |
//! |---|---|
//! | [`throughput`] | jobs a second, CPU time, writes and memory |
//! | [`floor`] | CPU time of bare client loops that make the same calls |
//! | [`roles`] | CPU time of each role on its own |
//! | [`latency`] | one job at a time |
//! | [`backlog`] | the same while very many jobs wait |
//! | [`whole`] | all of these in one report |
//! | [`pacing`] | how much of an allowed rate is used, and that nothing is refused |
//!
//! | module | is for |
//! |---|---|
//! | [`load`] | the jobs, the provider, the receiver |
//! | [`site`] | a configuration, a store, a broker, processes |
//! | [`meter`] | what all processes took: [`process`], [`services`], [`writes`] |
//! | [`machine`], [`spread`] | where figures come from, and how far they are apart |

pub mod backlog;
pub mod floor;
pub mod latency;
pub mod load;
pub mod machine;
pub mod meter;
pub mod pacing;
mod process;
pub mod roles;
mod services;
mod site;
pub mod spread;
pub mod throughput;
pub mod whole;
mod writes;
