//! The pacing and the tests that prove it, in one crate that is built at once.

extern crate self as paceline;

pub mod pace;
