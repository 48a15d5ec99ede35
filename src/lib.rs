//! Paceline.

pub mod clock;
pub mod config;
pub mod dispatch;
pub mod duration;
pub mod inlet;
pub mod job;
pub mod outcome;
pub mod pace;
pub mod provider;
pub mod readiness;
pub mod retry;
pub mod secrets;
pub mod store;
pub mod supervise;
pub mod telemetry;
