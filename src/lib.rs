//! Paceline.

pub mod clock;
pub mod duration;
pub mod job;
pub mod net_guard;
pub mod pace;
pub mod retry;
pub mod secrets;
pub mod store;
pub mod webhook;
