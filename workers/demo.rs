//! The whole system at work for half a minute, with nothing else installed: a strict provider, a
//! realistic batch, failures, replays, webhooks; and a summary.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use paceline::config::Config;
use paceline::sim::{
    Lognormal, Outage, ProviderHandle, ProviderOptions, ProviderSim, ReceiverHandle, ReceiverOptions, ReceiverSim,
    SimKey,
};
use paceline::store::Store;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cli::{Backend, HttpApi};
use crate::scratch::Scratch;
use crate::system::{Role, System};

/// What each key allows, in any window.
const LIMIT: u64 = 60;
const WINDOW: Duration = Duration::from_secs(6);
const KEYS: [(&str, &str); 3] = [("a1", "demo-key-1"), ("a2", "demo-key-2"), ("a3", "demo-key-3")];
/// Signs the webhooks of the demo.
const SECRET: &str = "whsec_cGFjZWxpbmUtZGVtby1zZWNyZXQtMzItYnl0ZXM=";
/// The demo gives up after this.
const TOO_LONG: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What is shown while it runs.
pub struct Progress {
    /// What is going on.
    pub phase: &'static str,
    /// Jobs done.
    pub done: u64,
    /// Of so many.
    pub jobs: u64,
    /// Calls that the provider accepted.
    pub calls: u64,
    /// Calls that it refused over the limit.
    pub too_many: u64,
    /// Verified webhooks.
    pub webhooks: u64,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub jobs: u64,
    pub succeeded: u64,
    pub dead: u64,
    pub calls: u64,
    pub retries: u64,
    pub allowed_per_second: f64,
    pub utilisation: Option<f64>,
    pub too_many_requests: u64,
    pub dead_letters: u64,
    pub replayed: u64,
    pub recovered: u64,
    pub webhooks_verified: u64,
    pub webhooks_bad_signature: u64,
    pub webhooks_expected: u64,
    pub seconds: f64,
}

impl Summary {
    /// Whether it shows what it promises.
    pub fn is_good(&self) -> bool {
        self.too_many_requests == 0
            && self.succeeded + self.dead == self.jobs
            && self.replayed == self.dead_letters
            && self.webhooks_verified == self.webhooks_expected
            && self.webhooks_bad_signature == 0
    }
}

struct Demo {
    jobs: u64,
    provider: ProviderHandle,
    receiver: ReceiverHandle,
    store: Store,
    api: Backend,
    began: Instant,
    utilisation: Option<f64>,
}

/// Runs it. `show` is called a few times a second.
pub async fn run(jobs: u64, mut show: impl FnMut(&Progress)) -> anyhow::Result<Summary> {
    let provider = start_provider().await?;
    let receiver =
        ReceiverSim::start(ReceiverOptions { secrets: vec![SECRET.to_owned()], ..ReceiverOptions::default() }).await?;
    let scratch = Scratch::new("demo")?;
    let shutdown = CancellationToken::new();
    let config = config(&scratch, &provider)?;
    let system = System::start(config, &Role::ALL, shutdown.clone()).await?;
    let address = system.api.context("the API does not listen")?;
    let api = Backend::Http(HttpApi::new(&format!("http://{address}"), None)?);
    let store = system.store.clone();
    let mut demo = Demo { jobs, provider, receiver, store, api, began: Instant::now(), utilisation: None };
    let result = demo.play(&mut show).await;
    shutdown.cancel();
    let drained = system.finish().await;
    demo.provider.shutdown().await;
    demo.receiver.shutdown().await;
    let summary = result?;
    drained?;
    Ok(summary)
}

async fn start_provider() -> anyhow::Result<ProviderHandle> {
    let options = ProviderOptions {
        keys: KEYS.iter().map(|(label, secret)| SimKey::new(*label, *secret)).collect(),
        rules: vec![format!("key requests {LIMIT}/{}s sliding_log", WINDOW.as_secs()).parse()?],
        delay_before: Some(Lognormal::ms(10, 60)),
        latency: Some(Lognormal::ms(25, 120)),
        outage: Outage::Marked,
        seed: 7,
        ..ProviderOptions::default()
    };
    Ok(ProviderSim::start(options).await?)
}

fn config(scratch: &Scratch, provider: &ProviderHandle) -> anyhow::Result<Config> {
    let keys: Vec<String> =
        KEYS.iter().map(|(label, _)| format!("{{ label = \"{label}\", secret = \"env:{label}\" }}")).collect();
    let text = format!(
        r#"
        [store]
        url = "sqlite://{store}"
        [api]
        listen = "127.0.0.1:0"
        [webhooks]
        secret = "env:SECRET"
        allow_http = true
        allow_networks = ["127.0.0.0/8"]
        [[provider]]
        name = "geocoder"
        base_url = "{base_url}"
        key_limits = [ {{ requests = {LIMIT}, per = "{window}s", algorithm = "sliding_window" }} ]
        keys = [ {keys} ]
        retry = {{ max_attempts = 4, base = "300ms", cap = "2s" }}
        "#,
        store = scratch.path("demo.db").display(),
        base_url = provider.base_url(),
        window = WINDOW.as_secs(),
        keys = keys.join(", "),
    );
    let mut env: Vec<(String, String)> =
        KEYS.iter().map(|(label, key)| ((*label).to_owned(), (*key).to_owned())).collect();
    env.push(("SECRET".to_owned(), SECRET.to_owned()));
    Ok(Config::parse(&text, None, &env)?)
}

impl Demo {
    async fn play(&mut self, show: &mut impl FnMut(&Progress)) -> anyhow::Result<Summary> {
        self.enqueue().await?;
        self.drain("calling", self.jobs, show).await?;
        let dead = self.dead_letters().await?;
        // Somebody repaired the provider: what failed because of that succeeds when it is run again.
        self.provider.set_outage(Outage::None);
        for id in &dead {
            self.api.replay(crate::cli::Named { id, tenant: None }, b"").await?;
        }
        let replayed = dead.len() as u64;
        self.drain("replaying the dead letters", self.jobs, show).await?;
        let expected = self.jobs + replayed;
        self.receiver.wait_distinct(expected, Duration::from_secs(20)).await?;
        self.summary(replayed).await
    }

    /// A realistic batch: most calls succeed, some fail for a while, some until the provider is
    /// repaired, some for good.
    async fn enqueue(&self) -> anyhow::Result<()> {
        let callback = self.receiver.hook("");
        let jobs: Vec<Value> = (0..self.jobs)
            .map(|n| {
                let path = match n {
                    _ if n % 20 == 7 => "/fail/2".to_owned(),
                    _ if n % 30 == 11 => "/outage".to_owned(),
                    _ if n % 60 == 31 => "/gone".to_owned(),
                    _ => format!("/v1/geocode/{n}"),
                };
                let query =
                    if path == "/outage" { json!({ "status": 422 }) } else { json!({ "q": format!("street {n}") }) };
                json!({
                    "id": format!("demo-{n:04}"), "provider": "geocoder", "metadata": { "n": n },
                    "request": { "path": path, "query": query }, "callback": { "url": callback },
                })
            })
            .collect();
        for batch in jobs.chunks(500) {
            let answer = self.api.submit(serde_json::to_vec(batch)?).await?;
            let refused =
                answer["items"].as_array().and_then(|items| items.iter().find(|item| item["error"].is_object()));
            anyhow::ensure!(refused.is_none(), "a job was refused: {refused:?}");
        }
        Ok(())
    }

    /// Waits until every job has ended, and shows how far it is.
    async fn drain(&mut self, phase: &'static str, jobs: u64, show: &mut impl FnMut(&Progress)) -> anyhow::Result<()> {
        loop {
            let depth = self.store.depth().await?;
            let count = |states: &[&str]| -> u64 {
                let of = depth.jobs.iter().filter(|(_, _, state, _)| states.contains(&state.as_str()));
                of.map(|(_, _, _, jobs)| u64::try_from(*jobs).unwrap_or(0)).sum()
            };
            let open = count(&["queued", "waiting", "running"]);
            let calls = self.provider.stats();
            // Measured while there is work for every slot: the last calls of a batch are few.
            if count(&["queued"]) >= LIMIT {
                self.utilisation = calls.rules.first().and_then(|rule| rule.utilisation);
            }
            show(&Progress {
                phase,
                done: jobs.saturating_sub(open),
                jobs,
                calls: calls.accepted,
                too_many: calls.refused_limit,
                webhooks: self.receiver.stats().verified,
            });
            if open == 0 {
                return Ok(());
            }
            anyhow::ensure!(self.began.elapsed() < TOO_LONG, "{open} jobs are still open after {TOO_LONG:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn dead_letters(&self) -> anyhow::Result<Vec<String>> {
        let mut ids = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.api.dead_letters(&format!("limit=100{cursor}")).await?;
            let items = page["items"].as_array().cloned().unwrap_or_default();
            ids.extend(items.iter().filter_map(|item| Some(item["id"].as_str()?.to_owned())));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(ids),
            }
        }
    }

    async fn summary(&self, replayed: u64) -> anyhow::Result<Summary> {
        let calls = self.provider.stats();
        let hooks = self.receiver.stats();
        let dead = self.api.jobs("state=dead&limit=500").await?["items"].as_array().map_or(0, Vec::len) as u64;
        let windows_per_second = 1.0 / WINDOW.as_secs_f64();
        Ok(Summary {
            jobs: self.jobs,
            succeeded: self.jobs - dead,
            dead,
            calls: calls.accepted,
            retries: calls.accepted - self.jobs - replayed,
            allowed_per_second: LIMIT as f64 * KEYS.len() as f64 * windows_per_second,
            utilisation: self.utilisation,
            too_many_requests: calls.refused_limit,
            dead_letters: replayed,
            replayed,
            recovered: replayed.saturating_sub(dead),
            webhooks_verified: hooks.verified,
            webhooks_bad_signature: hooks.bad_signature,
            webhooks_expected: self.jobs + replayed,
            seconds: self.began.elapsed().as_secs_f64(),
        })
    }
}
