//! What a round does, decided by its seed before anything starts: the jobs, and what is broken when.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::common::proxy::Manner;
use crate::common::world::Mode;

pub const LANES: [&str; 3] = ["default", "high", "low"];
pub const KEYS: [(&str, &str); 3] =
    [("k1", "chaos-key-number-1"), ("k2", "chaos-key-number-2"), ("k3", "chaos-key-number-3")];

/// A key that comes while the round runs, and the secret that it is given later.
pub const ADDED: (&str, [&str; 2]) = ("k4", ["chaos-key-number-4", "chaos-key-number-4-anew"]);
/// Registered endpoints: the events that each gets (none: all), its secret, the next one, and for how long both sign.
pub const ENDPOINTS: [(&[&str], [&str; 2], &str); 2] = [
    (
        &[],
        ["whsec_ZW5kcG9pbnQtb25lLWZpcnN0LXNlY3JldC0zMmJ5dGVz", "whsec_ZW5kcG9pbnQtb25lLW90aGVyLXNlY3JldC0zMmJ5dGVz"],
        "1h",
    ),
    (
        &["job.dead", "job.expired"],
        ["whsec_ZW5kcG9pbnQtdHdvLWZpcnN0LXNlY3JldC0zMmJ5dGVz", "whsec_ZW5kcG9pbnQtdHdvLW90aGVyLXNlY3JldC0zMmJ5dGVz"],
        "0s",
    ),
];

/// How large a round is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub jobs: usize,
    /// Broken things; those that need another one to be whole again come on top.
    pub faults: usize,
    /// Jobs come in, and things break, for so long.
    pub span: Duration,
    /// Whether the broker and the database themselves are stopped, too.
    pub services: bool,
}

/// A round.
#[derive(Debug)]
pub struct Plan {
    pub members: Vec<Member>,
    /// A limit of the provider as a whole ties its keys together.
    pub shared_limit: bool,
    pub jobs: Vec<JobPlan>,
    /// In order of time.
    pub acts: Vec<(Duration, Act)>,
    /// What an operator does over the API, in order of time.
    pub deeds: Vec<(Duration, Deed)>,
}

/// What of the configuration changes while the round runs. The provider allows more than any of them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Calls of one key in a second.
    pub per_second: u64,
    /// Its open calls.
    pub open: u64,
    /// Of each key.
    pub weights: [u32; 3],
    pub lanes: [u32; 3],
    pub timeout_ms: u64,
    pub hook_timeout_ms: u64,
}

/// Calls of one key in any second, and its open calls.
pub const PER_SECOND: u64 = 60;
pub const OPEN: u64 = 24;

impl Default for Settings {
    fn default() -> Self {
        let (timeout_ms, hook_timeout_ms) = (3_000, 2_000);
        Self { per_second: PER_SECOND, open: OPEN, weights: [1; 3], lanes: [8, 4, 1], timeout_ms, hook_timeout_ms }
    }
}

/// What is appended to a configuration that must change nothing, and what is said of it.
pub const BAD: [&str; 4] = [
    "limits = [ { requests = 0, per = \"1s\" } ]",
    "window = \"22:00-22:00 Europe/Berlin\"",
    "lanes = { high = 0 }",
    "[[provider]]\nname = ",
];

/// What an operator does.
#[derive(Clone, Debug)]
pub enum Deed {
    /// An endpoint gets its next secret.
    RotateEndpoint(usize),
    AddKey,
    RotateKey,
}

/// A process.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: String,
    pub roles: &'static str,
}

/// How a job gets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Amqp,
    Http,
    /// The same over both, at about the same time.
    Both,
    /// Over AMQP, and what is no job at all.
    Malformed,
}

#[derive(Clone, Debug)]
pub struct JobPlan {
    pub id: String,
    pub at: Duration,
    pub way: Way,
    /// It is handed in once more when it is confirmed.
    pub again: bool,
    pub path: String,
    pub lane: &'static str,
    pub at_most_once: bool,
    pub pin: Option<&'static str>,
    /// From `at` on.
    pub not_before: Option<Duration>,
    pub deadline: Option<Duration>,
    /// The rest of the callback's path.
    pub hook: Option<&'static str>,
    pub cancel_after: Option<Duration>,
    /// Whoever hands it in wants an answer.
    pub replies: bool,
}

/// What connections run through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Broker,
    Database,
    Provider,
    Receiver,
}

#[derive(Clone, Debug)]
pub enum Act {
    Kill(usize),
    Freeze(usize),
    Thaw(usize),
    Terminate(usize),
    TerminateTwice(usize),
    Start(usize),
    Cut(Link),
    Set(Link, Manner),
    Stop(&'static str),
    KillService(&'static str),
    Services,
    /// The file says something else, and every process is told.
    Reload(Settings),
    /// The same with a file that is not valid: an entry of [`BAD`].
    ReloadBad(usize),
}

impl Plan {
    pub fn new(mode: Mode, seed: u64, size: Size) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let members = members(mode, &mut random);
        let shared_limit = random.random_bool(0.5);
        let mut jobs: Vec<JobPlan> = (0..size.jobs).map(|n| job(mode, n, size.span, &mut random)).collect();
        jobs.sort_by_key(|job| job.at);
        let mut acts = Vec::new();
        for _ in 0..size.faults {
            let at = size.span.mul_f64(random.random_range(0.05..1.0));
            fault(mode, at, &members, &mut random, &mut acts);
        }
        if size.services && mode == Mode::Scaled {
            service_fault(size.span.mul_f64(random.random_range(0.2..0.8)), &mut random, &mut acts);
        }
        // Dice of their own: what came before stays the plan that it was.
        let mut random = StdRng::seed_from_u64(seed ^ 0x7265_6c6f_6164);
        for job in jobs.iter_mut().filter(|job| job.way == Way::Amqp) {
            job.replies = random.random_bool(0.2);
        }
        reloads(size, &mut random, &mut acts);
        acts.sort_by_key(|(at, _)| *at);
        let deeds = deeds(size.span, &mut random);
        Self { members, shared_limit, jobs, acts, deeds }
    }
}

fn members(mode: Mode, random: &mut StdRng) -> Vec<Member> {
    if mode == Mode::Embedded {
        return vec![Member { name: "serve".to_owned(), roles: "api,dispatcher,notifier,scheduler" }];
    }
    let mut members = Vec::new();
    let many = |role: &'static str, count: usize| {
        (1..=count).map(move |n| Member { name: format!("{role}-{n}"), roles: role })
    };
    members.extend(many("dispatcher", random.random_range(1..=3)));
    members.extend(many("notifier", random.random_range(1..=2)));
    members.extend(many("scheduler", random.random_range(1..=2)));
    members.extend(many("api", 1));
    members
}

/// Paths of the provider, and how often each is called in a thousand.
const PATHS: [(&str, u32); 20] = [
    ("/ok", 500),
    ("/slow/100", 120),
    ("/slow/700", 60),
    ("/fail/1", 60),
    ("/fail/2", 30),
    ("/fail/1/a?status=500", 30),
    ("/fail/1/b?status=429&retry_after=1", 4),
    ("/gone", 20),
    ("/status/422", 10),
    ("/redirect", 10),
    ("/reset", 30),
    ("/reset/before", 20),
    ("/hang", 6),
    ("/drip/20/50", 30),
    ("/drip/50/200", 4),
    ("/half", 20),
    ("/html", 20),
    ("/big/100000", 10),
    ("/echo", 10),
    ("/status/503?executed=1", 6),
];

/// Of them those that no call to has ever succeeded, and that are called again for it.
const HOPELESS: [&str; 6] = ["/reset", "/reset/before", "/hang", "/drip/50/200", "/half", "/status/503"];
/// Calls of a job at most.
pub const ATTEMPTS_MAX: u32 = 3;

/// Whether every call to a path fails in a way that is worth another one.
pub fn is_hopeless(path: &str) -> bool {
    HOPELESS.contains(&path.split('?').next().unwrap_or(path))
}

const HOOKS: [(&str, u32); 4] = [("", 80), ("/fail/1", 10), ("/slow/100", 7), ("/retry-after/1", 3)];

fn job(mode: Mode, n: usize, span: Duration, random: &mut StdRng) -> JobPlan {
    let path = weighted(&PATHS, random);
    let seconds = |random: &mut StdRng, from: f64, to: f64| Duration::from_secs_f64(random.random_range(from..to));
    let way = match random.random_range(0..100) {
        _ if mode == Mode::Embedded => Way::Http,
        0..=59 => Way::Amqp,
        60..=91 => Way::Http,
        92..=97 => Way::Both,
        _ => Way::Malformed,
    };
    let not_before = random.random_bool(0.05).then(|| seconds(random, 0.5, 5.0));
    let deadline = random.random_bool(0.05).then(|| not_before.unwrap_or_default() + seconds(random, 0.5, 10.0));
    JobPlan {
        id: format!("c{n:05}"),
        at: span.mul_f64(random.random_range(0.0..1.0)),
        way,
        again: random.random_bool(0.1),
        path: path.to_owned(),
        lane: LANES.choose(random).copied().unwrap_or("default"),
        at_most_once: random.random_bool(0.25),
        pin: random.random_bool(0.1).then(|| KEYS.choose(random).map_or("k1", |key| key.0)),
        not_before,
        deadline,
        hook: random.random_bool(0.9).then(|| weighted(&HOOKS, random)),
        cancel_after: random.random_bool(0.04).then(|| seconds(random, 0.0, 2.0)),
        replies: false,
    }
}

fn weighted(from: &[(&'static str, u32)], random: &mut StdRng) -> &'static str {
    let mut at = random.random_range(0..from.iter().map(|(_, weight)| weight).sum());
    for (what, weight) in from {
        if at < *weight {
            return what;
        }
        at -= weight;
    }
    from[0].0
}

type Acts = Vec<(Duration, Act)>;

fn fault(mode: Mode, at: Duration, members: &[Member], random: &mut StdRng, acts: &mut Acts) {
    match random.random_range(0..100) {
        0..=59 => process_fault(at, members, random, acts),
        _ => link_fault(mode, at, random, acts),
    }
}

fn process_fault(at: Duration, members: &[Member], random: &mut StdRng, acts: &mut Acts) {
    // Dispatchers twice as often as anybody else.
    let dispatchers = members.iter().filter(|member| member.roles.contains("dispatcher")).count();
    let member = match random.random_range(0..members.len() + dispatchers) {
        extra if extra >= members.len() => extra - members.len(),
        member => member,
    };
    let later = |random: &mut StdRng, most: f64| at + Duration::from_secs_f64(random.random_range(0.0..most));
    match random.random_range(0..100) {
        0..=49 => {
            acts.push((at, Act::Kill(member)));
            acts.push((later(random, 3.0), Act::Start(member)));
        }
        50..=69 => {
            acts.push((at, Act::Freeze(member)));
            // Once in a while for longer than the others wait for it.
            let most = if random.random_bool(0.25) { 18.0 } else { 4.0 };
            acts.push((later(random, most), Act::Thaw(member)));
        }
        70..=89 => {
            acts.push((at, Act::Terminate(member)));
            acts.push((later(random, 4.0), Act::Start(member)));
        }
        _ => {
            acts.push((at, Act::TerminateTwice(member)));
            acts.push((later(random, 2.0), Act::Start(member)));
        }
    }
}

fn link_fault(mode: Mode, at: Duration, random: &mut StdRng, acts: &mut Acts) {
    let links: &[Link] = match mode {
        Mode::Embedded => &[Link::Provider, Link::Receiver],
        Mode::Scaled => &[Link::Broker, Link::Database, Link::Database, Link::Provider, Link::Receiver],
    };
    let link = links.choose(random).copied().unwrap_or(Link::Provider);
    if random.random_bool(0.4) {
        return acts.push((at, Act::Cut(link)));
    }
    let manner = match random.random_range(0..4) {
        0 => Manner::Stalled,
        1 => Manner::Mute,
        2 => Manner::Slow { bytes_per_s: 20_000 },
        _ => Manner::Refusing,
    };
    // A call must reach the provider while `counted_within` holds: that is what strict pacing asks for.
    let most = if link == Link::Provider && manner == Manner::Stalled { 1.2 } else { 6.0 };
    let until = at + Duration::from_secs_f64(random.random_range(0.2..most));
    acts.push((at, Act::Set(link, manner)));
    if manner == Manner::Refusing {
        acts.push((at, Act::Cut(link)));
    }
    acts.push((until, Act::Set(link, Manner::Through)));
}

fn service_fault(at: Duration, random: &mut StdRng, acts: &mut Acts) {
    let service = if random.random_bool(0.5) { "rabbitmq" } else { "postgres" };
    acts.push((at, if random.random_bool(0.5) { Act::KillService(service) } else { Act::Stop(service) }));
    acts.push((at + Duration::from_secs_f64(random.random_range(0.0..4.0)), Act::Services));
}

/// At least one of each kind.
fn reloads(size: Size, random: &mut StdRng, acts: &mut Acts) {
    for number in 0..(size.faults / 3).max(2) {
        let at = size.span.mul_f64(random.random_range(0.1..0.95));
        let is_bad = number == 1 || (number > 1 && random.random_bool(0.3));
        acts.push((
            at,
            if is_bad { Act::ReloadBad(random.random_range(0..BAD.len())) } else { Act::Reload(settings(random)) },
        ));
    }
}

/// As others, each with a chance.
fn settings(random: &mut StdRng) -> Settings {
    let usual = Settings::default();
    let weight = |random: &mut StdRng| random.random_range(1..=4);
    Settings {
        per_second: if random.random_bool(0.6) { random.random_range(40..=PER_SECOND) } else { usual.per_second },
        open: if random.random_bool(0.4) { random.random_range(16..=OPEN) } else { usual.open },
        weights: if random.random_bool(0.4) { std::array::from_fn(|_| weight(random)) } else { usual.weights },
        lanes: if random.random_bool(0.3) { std::array::from_fn(|_| weight(random)) } else { usual.lanes },
        timeout_ms: if random.random_bool(0.3) { 3_500 } else { usual.timeout_ms },
        hook_timeout_ms: if random.random_bool(0.5) { 2_500 } else { usual.hook_timeout_ms },
    }
}

fn deeds(span: Duration, random: &mut StdRng) -> Vec<(Duration, Deed)> {
    let added: f64 = random.random_range(0.05..0.5);
    let mut deeds = vec![(added, Deed::AddKey), (random.random_range(added..0.95), Deed::RotateKey)];
    for endpoint in 0..ENDPOINTS.len() {
        deeds.push((random.random_range(0.1..0.9), Deed::RotateEndpoint(endpoint)));
    }
    deeds.sort_by(|one, other| one.0.total_cmp(&other.0));
    deeds.into_iter().map(|(at, deed)| (span.mul_f64(at), deed)).collect()
}
