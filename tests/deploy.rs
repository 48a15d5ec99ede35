//! What deploy/ promises: its configuration with secrets in files, its processes by role, their health check and their
//! end.

mod common;

use std::time::Duration;

use common::broker;
use common::world::{Mode, SECRET, World, checkout, free_port, in_world};
use serde_json::Value;

const TOKEN: &str = "a-token-of-a-deployment";
const SOON: Duration = Duration::from_secs(40);

/// The commands of the services that compose.yaml builds from this program.
fn commands() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(checkout().join("deploy/compose.yaml")).expect("compose.yaml");
    let lists = text.lines().filter_map(|line| line.trim().strip_prefix("command: [")?.strip_suffix(']'));
    lists.map(|list| list.split(", ").map(str::to_owned).collect()).collect()
}

/// deploy/paceline.toml, with its secrets in the world's folder and its ports on this machine.
fn configured(world: &World, metrics: u16) -> String {
    let amqp_url = broker::url();
    let secrets = [
        ("database_url", world.database()),
        ("amqp_url", amqp_url.as_str()),
        ("api_token", TOKEN),
        ("webhook_secret", SECRET),
        ("provider_key", "a-provider-key"),
    ];
    for (name, secret) in secrets {
        std::fs::write(world.path(name), format!("{secret}\n")).expect("written");
    }
    let text = std::fs::read_to_string(checkout().join("deploy/paceline.toml")).expect("paceline.toml");
    text.replace("/run/secrets", &world.folder().display().to_string())
        .replace("0.0.0.0:8080", &format!("0.0.0.0:{}", world.port))
        .replace("0.0.0.0:9464", &format!("0.0.0.0:{metrics}"))
        .replace("\"geocoder\"", &format!("{:?}", world.provider))
}

async fn ready(world: &World, arguments: &[&str]) -> (i32, Value) {
    let arguments: Vec<&str> = ["ready", "--json"].into_iter().chain(arguments.iter().copied()).collect();
    let output = world.run(&arguments).await;
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    (output.status.code().unwrap_or(-1), serde_json::from_str(&text).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deployed_configuration_runs_by_role_with_its_secrets_in_files() {
    in_world(Mode::Scaled, async |world| {
        // What is not in a variable has to come from a file.
        world.set("AMQP_URL", "");
        world.set("DATABASE_URL", "");
        let commands = commands();
        let roles: Vec<&str> = commands.iter().filter_map(|command| command.last()).map(String::as_str).collect();
        assert_eq!(roles, ["api", "dispatcher", "notifier", "scheduler"]);
        for command in &commands {
            let metrics = free_port();
            world.configure_all(&configured(world, metrics));
            let arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
            let role = command.last().expect("a role");
            let mut serve = world.serve_as(role, &arguments);
            let (code, said) = ready(world, &["--wait", "30s"]).await;
            assert_eq!((code, &said["ready"]), (0, &Value::Bool(true)), "{role}: {said}\n{}", serve.log());
            let port = if role == "api" { world.port } else { metrics };
            assert_eq!(said["server"], format!("http://127.0.0.1:{port}"), "{role}");
            serve.terminate();
            assert!(serve.ended(SOON).await.success(), "{role}\n{}", serve.log());
            let log = serve.log();
            for secret in [TOKEN, SECRET, "a-provider-key"] {
                assert!(!log.contains(secret), "{log}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_tells_a_server_that_works_from_one_that_does_not_and_from_none() {
    in_world(Mode::Embedded, async |world| {
        world.set("PACELINE__METRICS__LISTEN", &format!("127.0.0.1:{}", free_port()));
        world.provider("http://127.0.0.1:1", &[("a1", "a-key")], "");
        let (code, said) = ready(world, &[]).await;
        assert_eq!(code, 3, "{said}");
        assert!(said["error"].as_str().is_some_and(|error| error.contains("no server answers")), "{said}");
        let serve = world.serving().await;
        assert_eq!(ready(world, &[]).await.0, 0);
        assert_eq!(ready(world, &["--live"]).await.0, 0);
        serve.signal("-STOP");
        assert_eq!(ready(world, &[]).await.0, 3);
        serve.signal("-CONT");
        assert_eq!(ready(world, &["--wait", "10s"]).await.0, 0);
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_is_red_where_a_part_is() {
    in_world(Mode::Scaled, async |world| {
        world.set("PACELINE__METRICS__LISTEN", &format!("127.0.0.1:{}", free_port()));
        // A database that is not there: the process lives, and waits for it.
        world.set("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
        world.provider("http://127.0.0.1:1", &[("a1", "a-key")], "");
        let serve = world.serve();
        let live = ready(world, &["--live", "--wait", "10s"]).await;
        assert_eq!(live.0, 0, "{}", live.1);
        let (code, said) = ready(world, &[]).await;
        let state = said["parts"]["store"]["state"].as_str().unwrap_or_default();
        assert!(code == 1 && said["ready"] == false && ["starting", "failed"].contains(&state), "{code} {said}");
        serve.kill().await;
    })
    .await;
}
