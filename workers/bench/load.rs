//! The work that is measured: jobs of one call, one stored result and one signed webhook each, a provider without
//! limits, and a receiver.

use std::time::Duration;

use paceline::sim::{ProviderHandle, ProviderOptions, ProviderSim, ReceiverHandle, ReceiverOptions, ReceiverSim};
use serde::Serialize;
use serde_json::{Value, json};

use super::services::{Families, Services};
use super::site::Site;

/// Calls open at once, of paceline and of the floor.
pub const CONCURRENCY: usize = 64;
/// A process has made its first call after so long.
pub const START: Duration = Duration::from_secs(60);
/// Events that the receiver remembers at most.
const EVENTS_MAX: usize = 50_000_000;
/// Signs the webhooks of the benchmark.
const SECRET: &str = "whsec_cGFjZWxpbmUtYmVuY2gtc2VjcmV0LTMyLWJ5dGU=";
/// Where the configuration finds it.
const SECRET_NAME: &str = "PACELINE_BENCH_SECRET";

/// What paceline works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub enum Mode {
    /// One SQLite file
    #[serde(rename = "embedded")]
    Embedded,
    /// RabbitMQ and PostgreSQL
    #[serde(rename = "rabbitmq+postgres")]
    #[value(name = "rabbitmq+postgres")]
    Scaled,
}

impl Mode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Embedded, Self::Scaled];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Scaled => "rabbitmq+postgres",
        }
    }
}

/// Provider, receiver and services.
pub struct Load {
    pub provider: ProviderHandle,
    pub receiver: ReceiverHandle,
    /// Answers alike, and looks at no signature.
    pub bare: ReceiverHandle,
    pub services: Option<Services>,
    families: Option<Families>,
    /// Whether completions go to RabbitMQ, too.
    events: bool,
}

impl Load {
    /// Starts provider and receiver.
    pub async fn start(services: Option<Services>, events: bool) -> anyhow::Result<Self> {
        let provider = ProviderOptions { ledger_capacity: 0, ..ProviderOptions::default() };
        let secrets = vec![SECRET.to_owned()];
        let receiver = ReceiverOptions { secrets, ledger_capacity: EVENTS_MAX, ..ReceiverOptions::default() };
        Ok(Self {
            provider: ProviderSim::start(provider).await?,
            receiver: ReceiverSim::start(receiver).await?,
            bare: ReceiverSim::start(ReceiverOptions::default()).await?,
            families: services.as_ref().map(Services::families),
            services,
            events,
        })
    }

    /// The processes of broker and database.
    pub fn families(&self, mode: Mode) -> Option<&Families> {
        self.families.as_ref().filter(|_| mode == Mode::Scaled)
    }

    /// Why the processes of broker or database are not known, where they are not.
    pub fn unknown(&self) -> impl Iterator<Item = String> {
        let families = self.families.iter();
        families.flat_map(|families| {
            let both = [("RabbitMQ", &families.broker), ("PostgreSQL", &families.database)];
            both.into_iter().filter_map(|(name, family)| Some(format!("{name}: {}", family.as_ref().err()?)))
        })
    }

    /// A place to run it, with its schema; whatever was received before is forgotten.
    pub async fn site(&self, mode: Mode, more: &[(&str, String)]) -> anyhow::Result<Site> {
        self.receiver.reset();
        let base_url = self.provider.base_url();
        let sections = format!(
            "base_url = \"{base_url}\"\nlimits = [ {{ concurrency = {CONCURRENCY} }} ]\n\
             [webhooks]\nsecret = \"env:{SECRET_NAME}\"\nallow_http = true\nallow_networks = [\"127.0.0.0/8\"]\n"
        );
        let mut env = vec![
            (SECRET_NAME.to_owned(), SECRET.to_owned()),
            ("PACELINE__QUEUE__EVENTS".to_owned(), self.events.to_string()),
        ];
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let services = self.services.as_ref().filter(|_| mode == Mode::Scaled);
        let site = Site::new("jobs", services, &sections, env).await?;
        site.store().await?.close().await;
        Ok(site)
    }

    /// The job with that number.
    pub fn job(&self, site: &Site, n: u64) -> Value {
        json!({
            "id": format!("bench-{n}"), "provider": site.provider,
            "request": { "method": "POST", "path": "/ok", "body": { "n": n } },
            "callback": { "url": self.receiver.hook("") },
        })
    }

    /// Puts jobs where their producer would.
    pub async fn enqueue(&self, site: &Site, jobs: u64) -> anyhow::Result<()> {
        site.enqueue((0..jobs).map(|n| self.job(site, n))).await
    }
}
