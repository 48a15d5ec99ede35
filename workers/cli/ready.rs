//! `paceline ready`: whether a server is, for scripts and health checks.

use std::time::Duration;

use clap::Args as ClapArgs;
use paceline::duration::HumanDuration;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Globals;
use super::backend::reachable;
use super::failure::{Exit, Failure};
use super::http::HttpApi;
use super::output::Out;

/// Between two looks while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Ask a server whether it is ready
///
/// Asks `/readyz` at --url, else at the configured api.listen, else at metrics.listen, where a process without the API
/// answers. The exit code is 0 where every part is ready, 1 where one is not, 3 where nobody answers. This is the health
/// check of containers, which need no other program for it.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Ask only whether the process answers (/healthz), whatever its database and its broker do
    #[arg(long)]
    live: bool,

    /// Wait so long for it, such as 30s
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    wait: HumanDuration,
}

/// Asks until it is so, or the time is up.
pub async fn run(args: Args, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let servers = servers(globals)?;
    let until = Instant::now() + args.wait.0;
    loop {
        let (exit, said) = ask(&servers, args.live).await;
        if exit == Exit::Done || Instant::now() >= until {
            return tell(exit, &said, out);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn servers(globals: &Globals) -> Result<Vec<HttpApi>, Failure> {
    let token = globals.token();
    if let Some(url) = &globals.url {
        return Ok(vec![HttpApi::new(url, token)?]);
    }
    let config = globals.load()?;
    [config.api.listen, config.metrics.listen]
        .into_iter()
        .map(|listen| HttpApi::new(&format!("http://{}", reachable(listen)), token.clone()))
        .collect()
}

/// What the first of them says that is a paceline.
async fn ask(servers: &[HttpApi], live: bool) -> (Exit, Value) {
    for server in servers {
        if !server.is_there().await {
            continue;
        }
        let place = server.place();
        if live {
            return (Exit::Done, json!({ "server": place, "live": true }));
        }
        return match server.readiness().await {
            Ok(mut said) => {
                said["server"] = json!(place);
                (if said["ready"] == true { Exit::Done } else { Exit::Failed }, said)
            }
            Err(failure) => (failure.exit, json!({ "server": place, "ready": false, "error": failure.message })),
        };
    }
    let places: Vec<String> = servers.iter().map(HttpApi::place).collect();
    (
        Exit::Unreachable,
        json!({ "server": null, "ready": false, "error": format!("no server answers at {}", places.join(" or ")) }),
    )
}

fn tell(exit: Exit, said: &Value, out: &Out) -> Result<Exit, Failure> {
    if out.is_json() {
        out.json(said)?;
        return Ok(exit);
    }
    if let Some(error) = said["error"].as_str() {
        return Err(Failure::new(exit, error));
    }
    let server = said["server"].as_str().unwrap_or_default();
    let state = if exit == Exit::Done { "ready" } else { "not ready" };
    out.line(format!("{server} is {}", if said["live"] == true { "there" } else { state }))?;
    for (part, of) in said["parts"].as_object().into_iter().flatten() {
        let error = of["error"].as_str().map(|error| format!(": {error}")).unwrap_or_default();
        out.line(format!("  {part} {}{error}", of["state"].as_str().unwrap_or_default()))?;
    }
    Ok(exit)
}
