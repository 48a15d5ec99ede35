//! Paceline.

pub mod api;
pub mod clock;
pub mod config;
pub mod duration;
pub mod job;
pub mod outcome;
pub mod pace;
pub mod provider;
pub mod readiness;
pub mod retry;
pub mod secrets;
pub mod store;
