//! Tests that stop, kill and start broker and database. `make test` lets them run beside all others, on services of
//! their own (deploy/test).

#[path = "../common/mod.rs"]
mod common;
mod outages;
