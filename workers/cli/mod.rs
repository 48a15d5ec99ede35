//! The command line.
//!
//! A command is a file with its `Args` and a `run(args, globals, out)`. To add one: its `mod`
//! line, its variant in [`Command`], its arm in [`Command::run`]; nothing else knows the list.

mod arguments;
mod audit;
mod backend;
mod bench;
mod check;
mod dead;
mod deliveries;
mod demo;
mod endpoints;
mod enqueue;
mod failure;
mod http;
mod jobs;
mod keys;
mod lines;
mod migrate;
mod output;
mod pages;
mod plan;
mod plan_text;
mod providers;
mod ready;
mod replays;
mod schedules;
mod schema;
mod secret_input;
mod serve;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgAction, Args, Parser, Subcommand};
use paceline::config::Config;
use paceline::secrets::Secret;
use paceline::telemetry::{LogFormat, init_logs};

pub use backend::{Backend, Named};
pub use failure::{Exit, Failure};
pub use http::HttpApi;
pub use output::Out;

/// What every command can be told.
#[derive(Debug, Clone, Args)]
pub struct Globals {
    /// The configuration file; ./paceline.toml if it is there and none is named
    #[arg(long, global = true, env = "PACELINE_CONFIG", value_name = "FILE", help_heading = "Everywhere")]
    pub config: Option<PathBuf>,

    /// JSON on standard output, errors as JSON on standard error
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,

    /// The API to use, such as http://127.0.0.1:8080, instead of what the configuration says
    #[arg(
        long,
        global = true,
        env = "PACELINE_URL",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Everywhere"
    )]
    pub url: Option<String>,

    /// The environment variable that holds the API token
    #[arg(long, global = true, value_name = "NAME", default_value = "PACELINE_TOKEN", help_heading = "Everywhere")]
    pub token_env: String,

    /// Say more about what is done (-vv: even more); RUST_LOG is honoured
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Everywhere")]
    pub verbose: u8,
}

impl Globals {
    /// The configuration that is in effect.
    pub fn load(&self) -> Result<Config, Failure> {
        Config::load(self.config.as_deref())
            .map_err(|e| Failure::usage(format!("the configuration is not valid:\n{e}")))
    }

    /// The API token, if the environment has one.
    pub fn token(&self) -> Option<Secret> {
        let text = std::env::var(&self.token_env).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| Secret::new(text.to_owned()))
    }
}

/// Paceline calls APIs for you: at the rate they allow, with retries, dead letters and webhooks.
#[derive(Debug, Parser)]
#[command(name = "paceline", version, propagate_version = true, disable_help_subcommand = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    globals: Globals,
}

const AFTER_HELP: &str = "\
How commands reach the system: --url or PACELINE_URL; else the API at the configured api.listen, if
it answers; else the configured store itself (SQLite only while no server has it open).

Exit codes:
  0    done
  1    failed, or something was refused
  2    the command line or the configuration is wrong
  3    neither the API nor the store can be reached
  4    there is no such job, dead letter, endpoint, delivery, provider, budget or key
  5    conflict, or too late for that
  6    `jobs wait`, `endpoints test`: the time was up, or a job did not succeed
  141  the reader of the output went away

Examples:
  paceline enqueue --provider geocoder --path /v1/geocode --query q=Berlin
  paceline enqueue jobs.jsonl
  paceline jobs list --state dead
  paceline dead replay 0193c1f0-…
  paceline providers pause geocoder";

/// What can be done.
#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    #[command(after_long_help = "Example:\n  paceline demo")]
    Demo(demo::Args),
    #[command(after_long_help = "Example:\n  paceline bench --json")]
    Bench(bench::Args),
    Enqueue(Box<enqueue::Args>),
    #[command(subcommand)]
    Jobs(jobs::Command),
    #[command(subcommand)]
    Dead(dead::Command),
    #[command(subcommand)]
    Endpoints(Box<endpoints::Command>),
    #[command(subcommand)]
    Deliveries(deliveries::Command),
    #[command(subcommand)]
    Providers(providers::Command),
    #[command(subcommand)]
    Keys(keys::Command),
    Audit(audit::Args),
    #[command(after_long_help = "Examples:\n  paceline check --strict\n  paceline check --call \"POST /v1/search\"")]
    Check(check::Args),
    Plan(Box<plan::Args>),
    #[command(after_long_help = "Example:\n  paceline migrate")]
    Migrate(migrate::Args),
    #[command(subcommand)]
    Topology(topology::Command),
    #[command(subcommand)]
    Schedules(schedules::Command),
    Schema(schema::Args),
    #[command(after_long_help = "Example:\n  paceline ready --url http://127.0.0.1:8080")]
    Ready(ready::Args),
    #[command(after_long_help = "Example:\n  paceline completions bash > /etc/bash_completion.d/paceline")]
    Completions(pages::Completions),
    #[command(after_long_help = "Example:\n  paceline man > /usr/local/share/man/man1/paceline.1")]
    Man(pages::Man),
}

impl Command {
    async fn run(self, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
        match self {
            Self::Serve(args) => serve::run(args, globals, out).await,
            Self::Demo(args) => demo::run(args, globals, out).await,
            Self::Bench(args) => bench::run(args, globals, out).await,
            Self::Enqueue(args) => enqueue::run(*args, globals, out).await,
            Self::Jobs(command) => jobs::run(command, globals, out).await,
            Self::Dead(command) => dead::run(command, globals, out).await,
            Self::Endpoints(command) => endpoints::run(*command, globals, out).await,
            Self::Deliveries(command) => deliveries::run(command, globals, out).await,
            Self::Providers(command) => providers::run(command, globals, out).await,
            Self::Keys(command) => keys::run(command, globals, out).await,
            Self::Audit(args) => audit::run(args, globals, out).await,
            Self::Check(args) => check::run(args, globals, out).await,
            Self::Plan(args) => plan::run(*args, globals, out).await,
            Self::Migrate(args) => migrate::run(args, globals, out).await,
            Self::Topology(command) => topology::run(command, globals, out).await,
            Self::Schedules(command) => schedules::run(command, globals, out).await,
            Self::Schema(args) => schema::run(&args, globals, out),
            Self::Ready(args) => ready::run(args, globals, out).await,
            Self::Completions(args) => pages::completions(&args, out),
            Self::Man(args) => pages::man(&args, out),
        }
    }
}

/// Reads the command line, does what it says, and reports a failure once.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let out = Out::new(cli.globals.json);
    let result = start(cli, &out).unwrap_or_else(|e| Err(e.into()));
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.report(out.is_json());
            failure.exit.into()
        }
    }
}

fn start(cli: Cli, out: &Out) -> anyhow::Result<Result<Exit, Failure>> {
    let (serving, json) = match &cli.command {
        Command::Serve(args) => (true, args.log_json()),
        _ => (false, false),
    };
    log_to_stderr(cli.globals.verbose + u8::from(serving), json);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    Ok(runtime.block_on(cli.command.run(&cli.globals, out)))
}

/// Help and version go to standard output; a wrong command line is an error like any other.
fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") {
        let failure = Failure::usage(error.to_string().trim().trim_start_matches("error: "));
        failure.report(true);
        return failure.exit.into();
    }
    // Where nobody reads the help any more, nothing is left to do.
    let shown = error.print();
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    ExitCode::from(if shown.is_ok() { code } else { Exit::BrokenPipe as u8 })
}

fn log_to_stderr(verbose: u8, json: bool) {
    let level = match verbose {
        0 => "warn",
        1 => "info,sqlx=warn,lapin=warn",
        2 => "debug",
        _ => "trace",
    };
    init_logs(if json { LogFormat::Json } else { LogFormat::Text }, level);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Every command that does something, with how it is called and what its help ends with.
    fn leaves(command: &clap::Command, called: &str, found: &mut Vec<(String, String)>) {
        // Without one of its subcommands `bench` does something, too.
        if !command.has_subcommands() || called == "paceline bench" {
            found.push((called.to_owned(), command.clone().render_long_help().to_string()));
            return;
        }
        command.get_subcommands().for_each(|sub| leaves(sub, &format!("{called} {}", sub.get_name()), found));
    }

    #[test]
    fn every_command_has_an_example_that_is_understood() {
        let mut found = Vec::new();
        leaves(&Cli::command(), "paceline", &mut found);
        assert!(found.len() > 40, "{found:?}");
        for (called, help) in found {
            assert!(help.contains("Example"), "{called}: {help:?}");
            let help = help.replace("\\\n", " ");
            let examples: Vec<&str> =
                help.lines().map(str::trim).filter(|line| line.starts_with("paceline ")).collect();
            // Ids that are cut short and quotes are for people.
            for example in examples.iter().filter(|line| !line.contains(['…', '"', '\''])) {
                let words = example.split([' ', '\t']).take_while(|word| !matches!(*word, "#" | "|" | "<" | ">"));
                let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
                assert!(Cli::try_parse_from(&words).is_ok(), "{called}: {example}");
            }
        }
    }
}
