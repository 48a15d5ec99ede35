//! The one binary: a command line over the library.

mod api;
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
