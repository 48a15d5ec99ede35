//! A secret for a command: from standard input, a file or a variable, never from the command line, where every user of
//! the machine could read it.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;
use paceline::secrets::{Secret, SecretSource};

use super::failure::Failure;

/// No secret is longer.
const BYTES_MAX: u64 = 16 * 1024;

/// Where the secret is; standard input unless given.
#[derive(Debug, Args)]
pub struct SecretInput {
    /// Read the secret from this file instead of standard input
    #[arg(long, value_name = "FILE", conflicts_with = "secret_env")]
    secret_file: Option<PathBuf>,
    /// Read the secret from this environment variable instead of standard input
    #[arg(long, value_name = "NAME")]
    secret_env: Option<String>,
}

impl SecretInput {
    /// The secret, without surrounding blanks and line ends.
    pub fn read(&self) -> Result<Secret, Failure> {
        let source = match (&self.secret_file, &self.secret_env) {
            (Some(path), _) => SecretSource::File(path.display().to_string()),
            (None, Some(name)) => SecretSource::Env(name.clone()),
            (None, None) => return from_stdin(),
        };
        source.resolve(&|name| std::env::var(name).ok()).map_err(|error| Failure::usage(error.to_string()))
    }
}

fn from_stdin() -> Result<Secret, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::usage(
            "standard input is a terminal, which would show the secret: pipe it in, or name it with --secret-file or --secret-env",
        ));
    }
    let mut text = String::new();
    let read = stdin.lock().take(BYTES_MAX).read_to_string(&mut text);
    let whole = Secret::new(text);
    read.map_err(|error| Failure::usage(format!("cannot read the secret from standard input: {}", error.kind())))?;
    match whole.expose().trim() {
        "" => Err(Failure::usage("standard input is empty: pipe the secret in")),
        trimmed => Ok(Secret::new(trimmed.to_owned())),
    }
}
