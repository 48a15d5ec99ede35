//! Paceline.

pub mod pace;
