//! The one binary: a command line over the library.

mod api;
mod bench;
mod cli;
mod demo;
mod dispatcher;
mod notifier;
mod reload;
mod scratch;
mod scratch_database;
mod system;
mod work;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
