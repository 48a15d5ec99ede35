//! The processes of a round and what they are connected through, and what is done to both.

use std::time::Duration;

use crate::common::audit::{Fault, now_ms};
use crate::common::proxy::{Manner, Proxy};
use crate::common::services::Services;
use crate::common::world::{Mode, Serve, World};
use crate::plan::{Act, Link, Member};

/// An orderly stop ends within the grace period of calls, and then some.
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// Signals within 20 ms are one wish.
const ANOTHER_SIGNAL: Duration = Duration::from_millis(40);

/// A proxy before everything that the processes talk to.
pub struct Links {
    broker: Option<Proxy>,
    database: Option<Proxy>,
    provider: Proxy,
    receiver: Proxy,
}

impl Links {
    pub async fn start(world: &World, provider: &str, receiver: &str) -> Self {
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
            receiver: Proxy::start(to(receiver, 80)).await,
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
        format!("http://{}/hook{rest}", self.receiver.address)
    }

    fn of(&self, link: Link) -> Option<&Proxy> {
        match link {
            Link::Broker => self.broker.as_ref(),
            Link::Database => self.database.as_ref(),
            Link::Provider => Some(&self.provider),
            Link::Receiver => Some(&self.receiver),
        }
    }

    fn heal(&self) {
        for link in [Link::Broker, Link::Database, Link::Provider, Link::Receiver] {
            if let Some(proxy) = self.of(link) {
                proxy.set(Manner::Through);
            }
        }
    }
}

struct Running {
    member: Member,
    serve: Option<Serve>,
    frozen_at_ms: Option<i64>,
    /// It was asked to.
    stopping: bool,
}

/// All processes.
pub struct Fleet<'a> {
    world: &'a World,
    links: &'a Links,
    services: Option<&'a Services>,
    members: Vec<Running>,
    pub faults: Vec<Fault>,
}

impl<'a> Fleet<'a> {
    pub fn new(world: &'a World, links: &'a Links, services: Option<&'a Services>, members: &[Member]) -> Self {
        let members = members.iter().map(|member| Running {
            member: member.clone(),
            serve: None,
            frozen_at_ms: None,
            stopping: false,
        });
        let mut fleet = Self { world, links, services, members: members.collect(), faults: Vec::new() };
        (0..fleet.members.len()).for_each(|at| fleet.start(at));
        fleet
    }

    pub fn count(&self) -> usize {
        self.members.len()
    }

    fn start(&mut self, at: usize) {
        let Running { member, serve, stopping, .. } = &mut self.members[at];
        if serve.is_none() {
            *stopping = false;
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
                if let Some(proxy) = self.links.of(link) {
                    proxy.cut();
                }
            }
            Act::Set(link, manner) => {
                self.broke(format!("{link:?}: {manner:?}"), false);
                if let Some(proxy) = self.links.of(link) {
                    proxy.set(manner);
                }
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
