//! How long an idle system takes: one job at a time, from its publication to its call, and from its outcome to its
//! webhook. Both ends are seen by this program, so that the times hold what waking it takes.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;

use super::load::{Load, Mode};
use super::machine;
use super::process;
use super::site::Site;
use super::spread::Percentiles;

const ROLES: &str = "api,dispatcher,notifier,scheduler";
/// Jobs before those that count: connections are opened, statements prepared.
const WARM_UP: u64 = 20;
/// The system is idle for about so long before each job: at least the first, at most both.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MORE_MS: u64 = 40;
/// One job takes no longer.
const TOO_LONG: Duration = Duration::from_secs(30);
/// The process answers that it is ready within this time.
const READY: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What nothing to do costs is measured for so long.
const IDLE: Duration = Duration::from_secs(5);

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Latency {
    pub samples: u64,
    /// How jobs came in.
    pub by: &'static str,
    /// From before the job is published until the provider sees the call.
    pub to_call: Percentiles,
    /// From the provider's answer until the receiver sees the webhook.
    pub to_webhook: Percentiles,
    /// See [`super::machine::Machine::fdatasync_ms`]: before a call and before a webhook there is a commit or two.
    pub fdatasync_ms: f64,
    /// CPU time of the process with nothing to do, µs a second.
    pub idle_us_per_second: f64,
}

/// The way in.
enum Way {
    Http { client: reqwest::Client, url: String },
    Broker,
}

/// Measures.
pub async fn measure(load: &Load, mode: Mode, samples: u64) -> anyhow::Result<Latency> {
    let listen = free_address()?;
    let site = load.site(mode, &[("PACELINE__API__LISTEN", listen.clone())]).await?;
    let mut process = site.serve(ROLES)?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    ready(&client, &listen).await.with_context(|| site.log())?;
    let (by, way) = match mode {
        Mode::Embedded => ("HTTP", Way::Http { client, url: format!("http://{listen}/v1/jobs") }),
        Mode::Scaled => ("AMQP", Way::Broker),
    };
    let fdatasync_ms = machine::fdatasync()?.as_secs_f64() * 1e3;
    let (mut to_call, mut to_webhook) = (Vec::new(), Vec::new());
    for n in 0..WARM_UP + samples {
        tokio::time::sleep(PAUSE + Duration::from_millis(rand::random_range(0..PAUSE_MORE_MS))).await;
        let (call, webhook) = one(load, &site, &way, n).await.with_context(|| site.log())?;
        if n >= WARM_UP {
            to_call.push(call);
            to_webhook.push(webhook);
        }
    }
    let idle_us_per_second = idle(process.id().context("the process has ended by itself")?).await?;
    process.start_kill()?;
    process.wait().await?;
    site.clear().await?;
    let of = |times| Percentiles::of(times).context("nothing was measured");
    let (to_call, to_webhook) = (of(to_call)?, of(to_webhook)?);
    Ok(Latency { samples, by, to_call, to_webhook, fdatasync_ms, idle_us_per_second })
}

/// One job: the time to its call, and from there to its webhook.
async fn one(load: &Load, site: &Site, way: &Way, n: u64) -> anyhow::Result<(Duration, Duration)> {
    let job = load.job(site, n);
    let calls = load.provider.stats().accepted;
    let began = Instant::now();
    let seen = async {
        load.provider.wait_accepted(calls + 1, TOO_LONG).await?;
        let called = Instant::now();
        load.receiver.wait_distinct(n + 1, TOO_LONG).await?;
        anyhow::Ok((called - began, called.elapsed()))
    };
    let ((), times) = tokio::try_join!(publish(site, way, &job), seen)?;
    Ok(times)
}

async fn publish(site: &Site, way: &Way, job: &Value) -> anyhow::Result<()> {
    match way {
        Way::Broker => site.publish(job).await,
        Way::Http { client, url } => {
            let body = serde_json::to_vec(job)?;
            let request = client.post(url).header("content-type", "application/json").body(body);
            let answer = request.send().await?;
            anyhow::ensure!(answer.status() == 202, "a job was answered {}", answer.status());
            Ok(())
        }
    }
}

async fn idle(process: u32) -> anyhow::Result<f64> {
    let (before, began) = (process::cpu_us(process)?, Instant::now());
    tokio::time::sleep(IDLE).await;
    Ok((process::cpu_us(process)? - before) / began.elapsed().as_secs_f64())
}

/// An address that nobody listens on, now.
fn free_address() -> anyhow::Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.to_string())
}

async fn ready(client: &reqwest::Client, listen: &str) -> anyhow::Result<()> {
    let url = format!("http://{listen}/readyz");
    let asking = async {
        loop {
            match client.get(&url).send().await {
                Ok(answer) if answer.status().is_success() => return,
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    };
    tokio::time::timeout(READY, asking).await.context("the process is not ready")
}
