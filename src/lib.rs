//! Paceline.

pub mod sim;
