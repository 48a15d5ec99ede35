//! The one binary: a command line over the library.

mod api;
mod cli;
mod dispatcher;
mod notifier;
mod system;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
