//! The processes of a round and what they are connected through, and what is done to both.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::common::audit::{Fault, now_ms};
use crate::common::proxy::{Manner, Proxy};
use crate::common::services::Services;
use crate::common::world::{Mode, Serve, World};
use crate::plan::{Act, BAD, Link, Member, Settings};

/// An orderly stop ends within the grace period of calls, and then some.
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// Signals within 20 ms are one wish.
const ANOTHER_SIGNAL: Duration = Duration::from_millis(40);
/// A process says in its log that it begins, and that a file is not valid, within this; a busy one is not waited for.
const SAYS_WITHIN: Duration = Duration::from_secs(5);
/// What it says when it has read its file and listens for signals.
const BEGUN: &str = "starting configuration=";
const REFUSED: &str = "the new configuration is not valid";

/// A proxy before everything that the processes talk to.
pub struct Links {
    broker: Option<Proxy>,
    database: Option<Proxy>,
    provider: Proxy,
    /// The receiver of callbacks, then those of registered endpoints.
    receivers: Vec<Proxy>,
}

impl Links {
    pub async fn start(world: &World, provider: &str, receivers: &[String]) -> Self {
        let scaled = world.mode == Mode::Scaled;
        let to = |url: &str, port: u16| {
            let url = url::Url::parse(url).expect("a URL");
            format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(port))
        };
        let links = Self {
            broker: match scaled {
                true => Some(Proxy::start(to(&crate::common::broker::url(), 5672)).await),
                false => None,
            },
            database: match scaled {
                true => Some(Proxy::start(to(world.database(), 5432)).await),
                false => None,
            },
            provider: Proxy::start(to(provider, 80)).await,
            receivers: join_all(receivers.iter().map(|receiver| Proxy::start(to(receiver, 80)))).await,
        };
        if let (Some(broker), Some(database)) = (&links.broker, &links.database) {
            world.set("AMQP_URL", &broker.url(&crate::common::broker::url()));
            world.set("DATABASE_URL", &database.url(world.database()));
        }
        links
    }

    pub fn provider(&self) -> String {
        format!("http://{}", self.provider.address)
    }

    pub fn hook(&self, rest: &str) -> String {
        format!("http://{}/hook{rest}", self.receivers[0].address)
    }

    /// Of a registered endpoint.
    pub fn endpoint(&self, number: usize) -> String {
        format!("http://{}/hook", self.receivers[number + 1].address)
    }

    fn of(&self, link: Link) -> &[Proxy] {
        match link {
            Link::Broker => self.broker.as_slice(),
            Link::Database => self.database.as_slice(),
            Link::Provider => std::slice::from_ref(&self.provider),
            Link::Receiver => &self.receivers,
        }
    }

    fn heal(&self) {
        for link in [Link::Broker, Link::Database, Link::Provider, Link::Receiver] {
            self.of(link).iter().for_each(|proxy| proxy.set(Manner::Through));
        }
    }
}

struct Running {
    member: Member,
    serve: Option<Serve>,
    frozen_at_ms: Option<i64>,
    /// It was asked to.
    stopping: bool,
    /// How often its log said that it begins, before it did.
    begun_before: usize,
}

/// All processes.
pub struct Fleet<'a> {
    world: &'a World,
    links: &'a Links,
    services: Option<&'a Services>,
    members: Vec<Running>,
    /// The configuration, by what of it changes.
    configuration: &'a dyn Fn(&Settings) -> String,
    settings: Settings,
    pub faults: Vec<Fault>,
}

impl<'a> Fleet<'a> {
    pub fn new(
        world: &'a World,
        links: &'a Links,
        services: Option<&'a Services>,
        members: &[Member],
        configuration: &'a dyn Fn(&Settings) -> String,
    ) -> Self {
        let members = members.iter().map(|member| Running {
            member: member.clone(),
            serve: None,
            frozen_at_ms: None,
            stopping: false,
            begun_before: 0,
        });
        let (members, faults, settings) = (members.collect(), Vec::new(), Settings::default());
        let mut fleet = Self { world, links, services, members, configuration, settings, faults };
        (0..fleet.members.len()).for_each(|at| fleet.start(at));
        fleet
    }

    pub fn count(&self) -> usize {
        self.members.len()
    }

    fn start(&mut self, at: usize) {
        let Running { member, serve, stopping, begun_before, .. } = &mut self.members[at];
        if serve.is_none() {
            *stopping = false;
            let log = std::fs::read_to_string(self.world.path(&format!("{}.log", member.name))).unwrap_or_default();
            *begun_before = log.matches(BEGUN).count();
            *serve = Some(self.world.serve_as(&member.name, &["--role", member.roles]));
        }
    }

    fn broke(&mut self, what: String, loses_calls: bool) {
        let now = now_ms();
        self.faults.push(Fault { at_ms: now, what, loses_calls, until_ms: now });
    }

    /// Does it, where it makes sense now.
    pub async fn act(&mut self, act: Act) {
        match act {
            Act::Kill(at) => self.kill(at).await,
            Act::Freeze(at) => self.freeze(at),
            Act::Thaw(at) => self.thaw(at),
            Act::Terminate(at) => self.terminate(at, false).await,
            Act::TerminateTwice(at) => self.terminate(at, true).await,
            Act::Start(at) => {
                self.ended(at).await;
                self.start(at);
            }
            Act::Cut(link) => {
                self.broke(format!("{link:?}: connections cut"), false);
                self.links.of(link).iter().for_each(Proxy::cut);
            }
            Act::Set(link, manner) => {
                self.broke(format!("{link:?}: {manner:?}"), false);
                self.links.of(link).iter().for_each(|proxy| proxy.set(manner));
            }
            Act::Stop(service) => {
                self.broke(format!("{service} stops"), false);
                self.services().stop(service).await;
            }
            Act::KillService(service) => {
                self.broke(format!("{service} is killed"), false);
                self.services().kill(service).await;
            }
            Act::Services => {
                self.services().up().await;
                self.broke("broker and database run".to_owned(), false);
            }
            Act::Reload(settings) => self.reload(settings).await,
            Act::ReloadBad(number) => self.reload_bad(BAD[number]).await,
        }
    }

    async fn reload(&mut self, settings: Settings) {
        self.all_have_begun().await;
        self.world.configure_all(&(self.configuration)(&settings));
        self.broke(format!("reload: {settings:?}"), false);
        self.settings = settings;
        self.hang_up();
    }

    /// Nobody may begin with that file, so it stands there only while everybody who reads it runs already.
    async fn reload_bad(&mut self, text: &str) {
        if !self.all_have_begun().await {
            return;
        }
        let good = (self.configuration)(&self.settings);
        let before: Vec<usize> = self.members.iter().map(|running| said(running, REFUSED)).collect();
        self.world.configure_all(&format!("{good}\n{text}\n"));
        self.broke(format!("reload of what is not valid: {text}"), false);
        self.hang_up();
        let until = Instant::now() + SAYS_WITHIN;
        let waits = |(running, before): (&mut Running, &usize)| {
            let runs = running.serve.as_mut().is_some_and(Serve::is_alive);
            runs && !running.stopping && running.frozen_at_ms.is_none() && said(running, REFUSED) == *before
        };
        while Instant::now() < until && self.members.iter_mut().zip(&before).any(waits) {
            tokio::time::sleep(ANOTHER_SIGNAL).await;
        }
        self.world.configure_all(&good);
    }

    /// Waits until every process that runs has read its file and listens; `false`: some have not.
    async fn all_have_begun(&mut self) -> bool {
        let until = Instant::now() + SAYS_WITHIN;
        while Instant::now() < until {
            if self.members.iter().all(has_begun) {
                return true;
            }
            tokio::time::sleep(ANOTHER_SIGNAL).await;
        }
        false
    }

    /// A signal that nobody listens for would end the process.
    fn hang_up(&mut self) {
        for running in &mut self.members {
            let listens = has_begun(running);
            if let Some(serve) = running.serve.as_mut().filter(|_| listens)
                && serve.is_alive()
            {
                serve.signal("-HUP");
            }
        }
    }

    fn services(&self) -> &Services {
        self.services.expect("a round that may stop services")
    }

    async fn kill(&mut self, at: usize) {
        self.thawed(at);
        if let Some(serve) = self.members[at].serve.take() {
            serve.kill().await;
            let Member { name, roles } = self.members[at].member.clone();
            self.broke(format!("{name} is killed"), roles.contains("dispatcher"));
        }
    }

    fn freeze(&mut self, at: usize) {
        let running = &mut self.members[at];
        if let (Some(serve), None) = (&mut running.serve, running.frozen_at_ms)
            && serve.is_alive()
        {
            serve.signal("-STOP");
            running.frozen_at_ms = Some(now_ms());
        }
    }

    fn thaw(&mut self, at: usize) {
        let running = &self.members[at];
        if let (Some(serve), Some(_)) = (&running.serve, running.frozen_at_ms) {
            serve.signal("-CONT");
        }
        self.thawed(at);
    }

    fn thawed(&mut self, at: usize) {
        let running = &mut self.members[at];
        if let Some(at_ms) = running.frozen_at_ms.take() {
            let Member { name, roles } = &running.member;
            let until_ms = now_ms();
            let what = format!("{name} stands still for {} ms", until_ms - at_ms);
            self.faults.push(Fault { at_ms, what, loses_calls: roles.contains("dispatcher"), until_ms });
        }
    }

    async fn terminate(&mut self, at: usize, twice: bool) {
        self.thaw(at);
        let Running { member, serve: Some(serve), stopping, .. } = &mut self.members[at] else { return };
        if std::mem::replace(stopping, true) || !serve.is_alive() {
            return;
        }
        serve.terminate();
        let what = format!("{} is asked to stop{}", member.name, if twice { ", twice" } else { "" });
        let loses_calls = twice && member.roles.contains("dispatcher");
        if twice {
            tokio::time::sleep(ANOTHER_SIGNAL).await;
            if serve.is_alive() {
                serve.terminate();
            }
        }
        self.broke(what, loses_calls);
    }

    /// Waits until a process that was asked to stop has; one that was not goes on.
    async fn ended(&mut self, at: usize) {
        let running = &mut self.members[at];
        if !running.stopping {
            return;
        }
        self.thaw(at);
        if let Some(mut serve) = self.members[at].serve.take() {
            serve.ended(STOPS_WITHIN).await;
        }
    }

    /// Nothing is broken any more: every link is whole, every process runs.
    pub async fn heal(&mut self) {
        self.links.heal();
        if let Some(services) = self.services {
            services.up().await;
        }
        for at in 0..self.members.len() {
            self.thaw(at);
            self.ended(at).await;
            self.start(at);
        }
        self.broke("all is whole".to_owned(), false);
    }

    /// What ended though nobody had asked it to.
    pub fn deserters(&mut self) -> Vec<String> {
        let gone = self.members.iter_mut().filter_map(|running| {
            let serve = running.serve.as_mut()?;
            (!serve.is_alive()).then(|| running.member.name.clone())
        });
        gone.collect()
    }

    /// Stops every process in order.
    pub async fn stop(self) {
        for running in &self.members {
            if let Some(serve) = &running.serve {
                serve.terminate();
            }
        }
        for running in self.members {
            if let Some(mut serve) = running.serve {
                let status = serve.ended(STOPS_WITHIN).await;
                assert!(status.success(), "{}: {status}", running.member.name);
            }
        }
    }
}

fn said(running: &Running, text: &str) -> usize {
    running.serve.as_ref().map_or(0, |serve| serve.log().matches(text).count())
}

fn has_begun(running: &Running) -> bool {
    running.serve.is_none() || said(running, BEGUN) > running.begun_before
}
