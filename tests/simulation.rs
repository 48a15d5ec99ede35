//! The dispatcher's core under virtual time: hours of traffic in seconds, the same again for the
//! same seed. Providers are judged by the simulator's own counting, which shares nothing with the
//! pacing; commits, answers and networks take random times.
//!
//! `SIMULATION_SEED=17 cargo test --test simulation` repeats a run that failed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use paceline::config::{Config, Provider};
use paceline::dispatch::core::{Allowance, Answered, CallEnd, Command, Core, Event, Now};
use paceline::job::{Given, Job, JobState};
use paceline::pace::{GroupId, Left, Signal, Since, Time};
use paceline::sim::enforce::{Admission, Meter};
use paceline::sim::{Limit, Lognormal};
use paceline::store::{Claimed, JobPk, Next, Record, Recorded, StoredResponse};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLI;
const EPOCH_MS: i64 = 1_800_000_000_000;

/// SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn delay(&mut self, of: Lognormal) -> u64 {
        let z = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        u64::try_from(of.at(z).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// How the calls of a job go, one after the other; `Ok` when the list is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Ok,
    Status(u16),
    /// Executed, and the answer is lost.
    Lost,
    NotSent,
    /// Whatever key is used at first is refused.
    BadKey,
}

#[derive(Debug, Default)]
struct Told {
    executed: u32,
    terminal: Vec<JobState>,
}

enum Happening {
    Arrives(JobPk, usize),
    Inform(Event),
    Committed(Box<Record>),
    Claim,
}

struct World {
    provider: Arc<Provider>,
    core: Core,
    dice: Dice,
    now: u64,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: HashMap<u64, Happening>,
    serial: u64,
    meters: Vec<Meter>,
    way: Lognormal,
    work: Lognormal,
    store: VecDeque<Claimed>,
    due: BinaryHeap<Reverse<(i64, JobPk)>>,
    waiting: HashMap<JobPk, Claimed>,
    held: HashMap<JobPk, Claimed>,
    fates: HashMap<JobPk, VecDeque<Fate>>,
    told: HashMap<JobPk, Told>,
    bad_key: Option<usize>,
    accepted: Vec<Vec<u64>>,
    departed: Vec<u64>,
    rejected: u64,
}

impl World {
    fn new(config: &str, limit: &Limit, seed: u64) -> Self {
        let env: Vec<(String, String)> = (0..9).map(|n| (format!("K{n}"), format!("secret-{n}"))).collect();
        let config = Config::parse(config, None, &env).expect("a valid configuration");
        let provider = Arc::new(config.providers[0].clone());
        let keys = provider.pool.keys.len();
        Self {
            core: Core::new(Arc::clone(&provider), Time::ZERO).expect("limits that can be paced"),
            provider,
            dice: Dice(seed),
            now: 0,
            agenda: BinaryHeap::new(),
            happenings: HashMap::new(),
            serial: 0,
            meters: (0..keys).map(|_| Meter::new(limit).expect("a valid limit")).collect(),
            way: Lognormal::ms(15, 120),
            work: Lognormal::ms(40, 300),
            store: VecDeque::new(),
            due: BinaryHeap::new(),
            waiting: HashMap::new(),
            held: HashMap::new(),
            fates: HashMap::new(),
            told: HashMap::new(),
            bad_key: None,
            accepted: vec![Vec::new(); keys],
            departed: Vec::new(),
            rejected: 0,
        }
    }

    fn enqueue(&mut self, pk: JobPk, envelope: &serde_json::Value, fates: Vec<Fate>) {
        let mut catalog = paceline::job::Catalog::default();
        catalog.providers.insert(self.provider.name.clone(), self.provider.rules());
        let job = Job::parse(envelope.to_string().as_bytes(), &Given::default(), &catalog).expect("a valid job");
        let claimed = Claimed {
            pk,
            epoch: 1,
            run: 1,
            attempts: 0,
            failures: 0,
            first_attempt_ms: None,
            backoff: Duration::ZERO,
            created_ms: EPOCH_MS,
            job,
        };
        self.fates.insert(pk, fates.into());
        self.told.insert(pk, Told::default());
        self.store.push_back(claimed);
    }

    fn clock(&self) -> Now {
        Now { mono: Time::from_nanos(self.now), wall: EPOCH_MS + i64::try_from(self.now / MILLI).unwrap() }
    }

    fn later(&mut self, after: u64, happening: Happening) {
        self.serial += 1;
        self.agenda.push(Reverse((self.now + after, self.serial)));
        self.happenings.insert(self.serial, happening);
    }

    /// Until everything has ended, or that long.
    fn run(&mut self, longest: u64) {
        self.later(0, Happening::Claim);
        while self.now < longest && self.told.values().any(|told| told.terminal.is_empty()) {
            let wake = self.core.wake_at(self.clock()).map(|at| at.as_nanos().max(self.now + 1));
            let next = self.agenda.peek().map(|Reverse((at, _))| *at);
            match (next, wake) {
                (Some(at), wake) if wake.is_none_or(|wake| at <= wake) => {
                    self.now = self.now.max(at);
                    let Some(Reverse((_, serial))) = self.agenda.pop() else { continue };
                    let happening = self.happenings.remove(&serial).expect("planned once");
                    self.happen(happening);
                }
                (_, Some(wake)) => self.now = wake,
                (_, None) => break,
            }
            self.obey();
        }
    }

    fn inform(&mut self, event: Event) {
        let (now, dice) = (self.clock(), &mut self.dice);
        self.core.handle(event, now, &mut || dice.unit());
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Inform(event) => self.inform(event),
            Happening::Claim => {
                self.claim();
                self.later(20 * MILLI, Happening::Claim);
            }
            Happening::Arrives(pk, key) => self.arrive(pk, key),
            Happening::Committed(record) => self.committed(*record),
        }
    }

    fn claim(&mut self) {
        let now = self.clock();
        while let Some(Reverse((due, pk))) = self.due.peek().copied()
            && due <= now.wall
        {
            self.due.pop();
            self.store.push_front(self.waiting.remove(&pk).expect("waits"));
        }
        let room = self.core.target(now).saturating_sub(self.core.counts().0);
        let jobs: Vec<Claimed> = (0..room).map_while(|_| self.store.pop_front()).collect();
        for job in &jobs {
            self.held.insert(job.pk, job.clone());
        }
        let after = self.dice.below(5 * MILLI);
        self.later(after, Happening::Inform(Event::Claimed(jobs)));
    }

    fn obey(&mut self) {
        let now = self.clock();
        let commands: Vec<Command> = self.core.advance(now).collect();
        for command in commands {
            match command {
                Command::Call { pk, key, .. } => {
                    self.departed.push(self.now);
                    let way = self.dice.delay(self.way);
                    self.later(way, Happening::Arrives(pk, key.0 as usize));
                }
                Command::Record(record) => {
                    let commit = MILLI / 2 + self.dice.below(20 * MILLI);
                    self.later(commit, Happening::Committed(record));
                }
                Command::Note(_) => {}
            }
        }
    }

    /// The provider sees the call, counts it, and does what the job's fate says.
    fn arrive(&mut self, pk: JobPk, key: usize) {
        let fate = self.fates.get_mut(&pk).and_then(VecDeque::pop_front).unwrap_or(Fate::Ok);
        let back = self.dice.delay(self.way);
        let work = self.dice.delay(self.work);
        if fate == Fate::NotSent {
            let end = CallEnd::NotSent("connection refused".to_owned());
            return self.later(back, Happening::Inform(Event::Ended { pk, end }));
        }
        if self.bad_key == Some(key) || fate == Fate::BadKey {
            if fate == Fate::BadKey {
                self.bad_key = Some(key);
            }
            return self.answer(pk, 401, back, 0);
        }
        if self.meters[key].admit(self.now, 1) != Admission::Now {
            self.rejected += 1;
            return self.answer(pk, 429, back, 0);
        }
        self.meters[key].take(self.now, 1);
        self.accepted[key].push(self.now);
        self.told.get_mut(&pk).expect("known").executed += u32::from(!matches!(fate, Fate::Status(_)));
        match fate {
            Fate::Lost => {
                let end = CallEnd::Lost("no answer".to_owned());
                self.later(30 * SECOND, Happening::Inform(Event::Ended { pk, end }));
            }
            Fate::Status(status) => self.answer(pk, status, back + work, 0),
            _ => {
                let body = self.dice.below(50 * MILLI);
                self.answer(pk, 200, back + work, body);
            }
        }
    }

    fn answer(&mut self, pk: JobPk, status: u16, head: u64, body: u64) {
        let signal = Signal { limited: status == 429, ..Signal::default() };
        self.later(head, Happening::Inform(Event::Head { pk, signal: Box::new(signal.clone()) }));
        let response = StoredResponse {
            status,
            headers: "{}".to_owned(),
            content_type: None,
            body: Bytes::new(),
            truncated: false,
        };
        let end = CallEnd::Answered(Box::new(Answered { response, signal }));
        self.later(head + body + 1, Happening::Inform(Event::Ended { pk, end }));
    }

    /// What the store would do with a record.
    fn committed(&mut self, record: Record) {
        let pk = record.pk;
        if let Some(held) = self.held.get_mut(&pk) {
            held.failures = record.failures;
            if let Some(attempt) = &record.attempt {
                assert_eq!(attempt.n, held.attempts + 1, "attempts are recorded in their order");
                held.attempts = attempt.n;
                held.first_attempt_ms.get_or_insert(attempt.at_ms);
            }
        }
        match record.next {
            Next::Keep | Next::Running => {}
            Next::Release => {
                let held = self.held.remove(&pk).expect("held");
                self.store.push_front(held);
            }
            Next::Wait { due_ms, backoff, .. } => {
                let held = self.held.remove(&pk).expect("held");
                self.due.push(Reverse((due_ms, pk)));
                self.waiting.insert(pk, Claimed { backoff, ..held });
            }
            Next::Finish { state, .. } => {
                self.held.remove(&pk).expect("a job ends while it is held");
                self.told.get_mut(&pk).expect("known").terminal.push(state);
            }
        }
        self.inform(Event::Recorded { pk, recorded: Recorded::Done });
    }

    fn states(&self, state: JobState) -> usize {
        self.told.values().filter(|told| told.terminal == [state]).count()
    }

    fn assert_one_end_each(&self, seed: u64) {
        for (pk, told) in &self.told {
            assert_eq!(told.terminal.len(), 1, "seed {seed}: job {pk} ended {:?}", told.terminal);
        }
        assert_eq!(self.core.counts(), (0, 0), "seed {seed}: nothing stays in hand");
    }

    /// W ÷ mean(aᵢ₊ₙ − aᵢ), pooled over the keys, of the arrivals before `until`.
    fn utilisation(&self, n: usize, window: u64, until: u64) -> f64 {
        let gaps: Vec<u64> = self
            .accepted
            .iter()
            .flat_map(|arrivals| {
                let arrivals: Vec<u64> = arrivals.iter().copied().filter(|at| *at < until).collect();
                arrivals.windows(n + 1).map(|w| w[n] - w[0]).collect::<Vec<_>>()
            })
            .collect();
        window as f64 * gaps.len() as f64 / gaps.iter().sum::<u64>() as f64
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().expect("SIMULATION_SEED is a number")],
        Err(_) => (1..=count).collect(),
    }
}

fn config(keys: usize, limit: &str, more: &str) -> String {
    let keys: Vec<String> = (0..keys).map(|n| format!("{{ label = \"k{n}\", secret = \"env:K{n}\" }}")).collect();
    format!(
        "[[provider]]\nname = \"p\"\nbase_url = \"http://127.0.0.1\"\nkey_limits = [ {limit} ]\nkeys = [ {} ]\n{more}",
        keys.join(", ")
    )
}

fn plain(pk: JobPk) -> serde_json::Value {
    serde_json::json!({ "id": format!("j{pk}"), "provider": "p", "request": { "path": "/" } })
}

#[test]
fn two_hours_of_traffic_without_a_refusal_at_almost_the_whole_rate() {
    let seconds = 10;
    let limit = Limit::SlidingLog { limit: 100, per: Duration::from_secs(seconds) };
    for seed in seeds(1) {
        let text = config(2, "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }", "");
        let mut world = World::new(&text, &limit, seed);
        let jobs = 2 * 3_600 * 20;
        for pk in 0..jobs {
            world.enqueue(pk, &plain(pk), Vec::new());
        }
        world.run(3 * 3_600 * SECOND);
        assert_eq!(world.rejected, 0, "seed {seed}");
        world.assert_one_end_each(seed);
        assert_eq!(world.states(JobState::Succeeded), usize::try_from(jobs).unwrap(), "seed {seed}");
        let utilisation = world.utilisation(100, seconds * SECOND, world.now - 20 * SECOND);
        assert!(utilisation > 0.985, "seed {seed}: {utilisation}");
    }
}

#[test]
fn whatever_fails_every_job_ends_once_and_no_limit_is_exceeded() {
    let limit = Limit::SlidingLog { limit: 20, per: Duration::from_secs(2) };
    for seed in seeds(40) {
        let text = config(
            3,
            "{ requests = 20, per = \"2s\", algorithm = \"sliding_window\" }",
            "retry = { max_attempts = 4, base = \"100ms\", cap = \"3s\", jitter = \"equal\" }\nlanes = { high = 8, low = 1 }",
        );
        let mut world = World::new(&text, &limit, seed);
        let mut dice = Dice(seed ^ 0xabcd);
        for pk in 0..1_200 {
            let fates = match dice.below(20) {
                0 => vec![Fate::Status(503); 2],
                1 => vec![Fate::Lost],
                2 => vec![Fate::NotSent; 3],
                3 => vec![Fate::Status(404)],
                4 => vec![Fate::Status(500); 9],
                5 if pk == 300 => vec![Fate::BadKey],
                _ => Vec::new(),
            };
            let lane = ["high", "default", "low"][usize::try_from(dice.below(3)).unwrap()];
            let delivery = if dice.below(3) == 0 { "at_most_once" } else { "at_least_once" };
            let mut envelope = plain(pk);
            envelope["lane"] = lane.into();
            envelope["delivery"] = delivery.into();
            if dice.below(50) == 0 {
                envelope["key"] = "k1".into();
            }
            world.enqueue(pk, &envelope, fates);
        }
        // Jobs that are pinned to the refused key wait until it works again.
        world.run(600 * SECOND);
        world.bad_key = None;
        world.run(3_600 * SECOND);
        assert_eq!(world.rejected, 0, "seed {seed}");
        world.assert_one_end_each(seed);
    }
}

#[test]
fn at_most_once_is_executed_once_however_the_answer_is_lost() {
    let limit = Limit::SlidingLog { limit: 50, per: Duration::from_secs(1) };
    for seed in seeds(10) {
        let text = config(1, "{ requests = 50, per = \"1s\", algorithm = \"sliding_window\" }", "");
        let mut world = World::new(&text, &limit, seed);
        for pk in 0..300 {
            let mut envelope = plain(pk);
            envelope["delivery"] = "at_most_once".into();
            let fates =
                [vec![Fate::Lost], vec![Fate::NotSent, Fate::Lost], vec![]][usize::try_from(pk % 3).unwrap()].clone();
            world.enqueue(pk, &envelope, fates);
        }
        world.run(600 * SECOND);
        world.assert_one_end_each(seed);
        assert_eq!(world.states(JobState::Dead), 200, "seed {seed}");
        assert!(world.told.values().all(|told| told.executed <= 1), "seed {seed}");
    }
}

#[test]
fn a_refused_key_is_set_aside_and_the_others_carry_on() {
    let limit = Limit::SlidingLog { limit: 10, per: Duration::from_secs(1) };
    for seed in seeds(10) {
        let text = config(3, "{ requests = 10, per = \"1s\", algorithm = \"sliding_window\" }", "");
        let mut world = World::new(&text, &limit, seed);
        world.bad_key = Some(1);
        for pk in 0..400 {
            world.enqueue(pk, &plain(pk), Vec::new());
        }
        world.run(600 * SECOND);
        world.assert_one_end_each(seed);
        assert_eq!(world.states(JobState::Succeeded), 400, "seed {seed}: no failure attempt is spent on a bad key");
        assert!(world.accepted[1].is_empty());
        assert!(world.now < 40 * SECOND, "seed {seed}: two keys carry on at their rate, {} s", world.now / SECOND);
    }
}

#[test]
fn a_job_waits_while_its_only_key_is_refused_and_goes_when_it_works_again() {
    let limit = Limit::SlidingLog { limit: 10, per: Duration::from_secs(1) };
    let text = config(2, "{ requests = 10, per = \"1s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, 5);
    world.bad_key = Some(0);
    let mut envelope = plain(1);
    envelope["key"] = "k0".into();
    world.enqueue(1, &envelope, Vec::new());
    world.enqueue(2, &plain(2), Vec::new());
    world.run(100 * SECOND);
    assert_eq!(world.states(JobState::Succeeded), 1, "the other job has gone");
    assert!(world.waiting.contains_key(&1) || world.held.contains_key(&1), "nothing is lost");
    world.bad_key = None;
    world.run(1_200 * SECOND);
    assert_eq!(world.states(JobState::Succeeded), 2, "a probe finds that the key works");
}

#[test]
fn deadlines_end_jobs_that_were_not_sent_in_time() {
    let limit = Limit::SlidingLog { limit: 5, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 5, per = \"10s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, 3);
    for pk in 0..20 {
        let mut envelope = plain(pk);
        envelope["deadline"] = paceline::clock::rfc3339(EPOCH_MS + 12_000).into();
        world.enqueue(pk, &envelope, Vec::new());
    }
    world.run(100 * SECOND);
    let sent: usize = world.accepted.iter().map(Vec::len).sum();
    assert_eq!(world.states(JobState::Succeeded), sent);
    assert_eq!(sent, 10, "two windows of five fit before the deadline");
    assert!(world.accepted[0].iter().all(|at| *at <= 12 * SECOND + 500 * MILLI), "never sent late");
    // Those which the core never took in are expired by the store's own pass.
    assert_eq!(world.states(JobState::Expired) + world.store.len() + sent, 20);
}

#[test]
fn draining_hands_everything_back() {
    let limit = Limit::SlidingLog { limit: 10, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 10, per = \"10s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, 9);
    for pk in 0..15 {
        world.enqueue(pk, &plain(pk), Vec::new());
    }
    world.run(SECOND);
    world.inform(Event::Drain);
    world.obey();
    world.run(60 * SECOND);
    assert!(world.core.is_idle());
    let ended = world.states(JobState::Succeeded);
    assert_eq!(ended, 10, "calls in flight finish");
    assert_eq!(world.store.len(), 5, "the others are back in the store");
}

#[test]
fn a_deadline_that_passes_during_a_refused_call_ends_the_job() {
    let limit = Limit::SlidingLog { limit: 100, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }", "");
    let mut world = World::new(&text, &limit, 21);
    for pk in 0..50 {
        let mut envelope = plain(pk);
        envelope["deadline"] = paceline::clock::rfc3339(EPOCH_MS + 40).into();
        world.enqueue(pk, &envelope, vec![Fate::Status(429)]);
    }
    world.run(60 * SECOND);
    assert!(world.accepted[0].iter().all(|at| *at <= SECOND), "nothing is sent late");
    assert_eq!(world.states(JobState::Expired), 50);
}

#[test]
fn a_deadline_that_passes_while_the_start_is_committed_is_not_sent() {
    let limit = Limit::SlidingLog { limit: 100, per: Duration::from_secs(10) };
    let text = config(1, "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }", "");
    for seed in seeds(20) {
        let mut world = World::new(&text, &limit, seed);
        for pk in 0..40 {
            let mut envelope = plain(pk);
            envelope["delivery"] = "at_most_once".into();
            envelope["deadline"] = paceline::clock::rfc3339(EPOCH_MS + 12).into();
            world.enqueue(pk, &envelope, Vec::new());
        }
        world.run(10 * SECOND);
        let late = world.departed.iter().filter(|at| **at >= 12 * MILLI).count();
        assert_eq!(late, 0, "seed {seed}: nothing is sent late");
        assert!(!world.departed.is_empty() && world.departed.len() < 40, "seed {seed}: both happen");
    }
}

#[test]
fn without_the_lease_nothing_stays_in_hand_and_with_it_all_goes_on() {
    let limit = Limit::SlidingLog { limit: 20, per: Duration::from_secs(1) };
    let text = config(1, "{ requests = 20, per = \"1s\", algorithm = \"sliding_window\" }", "");
    for seed in seeds(20) {
        let mut world = World::new(&text, &limit, seed);
        for pk in 0..200 {
            let fates = if pk % 10 == 0 { vec![Fate::Status(429), Fate::Status(429)] } else { Vec::new() };
            world.enqueue(pk, &plain(pk), fates);
        }
        // Claims, calls and commits are under way when it is lost.
        world.run(SECOND + 3 * MILLI);
        world.inform(Event::Suspend(vec![GroupId(0)]));
        world.obey();
        world.run(20 * SECOND);
        assert!(world.core.is_idle(), "seed {seed}: {:?} in hand", world.core.counts());
        assert!(world.held.is_empty(), "seed {seed}");
        assert!(world.states(JobState::Succeeded) < 200, "seed {seed}");
        let now = Time::from_nanos(world.now);
        let saved = world.core.save(GroupId(0), now);
        let left = Left { saved: &saved, elapsed: Duration::ZERO, since: Since::Nothing };
        world.core.inherit(GroupId(0), Some(&[left]), now);
        world.core.allow(GroupId(0), Allowance { until: Time::MAX, calls: u64::MAX, open: u64::MAX }, now);
        world.run(3_000 * SECOND);
        world.assert_one_end_each(seed);
        assert_eq!(world.states(JobState::Succeeded), 200, "seed {seed}");
    }
}
