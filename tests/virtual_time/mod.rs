//! The dispatcher's core under virtual time, with a provider that counts for itself, and a store that is a list.

#![allow(dead_code, reason = "every test binary uses another part of it")]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use paceline::config::{Config, Provider};
use paceline::dispatch::core::{Allowance, Answered, CallEnd, Command, Core, Event, Heir, Now};
use paceline::job::{Given, Job, JobState};
use paceline::pace::{GroupId, Left, Saved, Signal, Since, Time};
use paceline::sim::enforce::{Admission, Meter};
use paceline::sim::{Limit, Lognormal};
use paceline::store::{Claimed, JobPk, Next, Record, Recorded, StoredResponse};

pub const MILLI: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MILLI;
pub const EPOCH_MS: i64 = 1_800_000_000_000;

/// SplitMix64: small, and the same everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn delay(&mut self, of: Lognormal) -> u64 {
        let z = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        u64::try_from(of.at(z).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// How the calls of a job go, one after the other; `Ok` when the list is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Ok,
    Status(u16),
    /// Executed, and the answer is lost.
    Lost,
    NotSent,
    /// Whatever key is used at first is refused.
    BadKey,
}

#[derive(Debug, Default)]
pub struct Told {
    pub executed: u32,
    pub terminal: Vec<JobState>,
}

pub enum Happening {
    Arrives(JobPk, usize),
    Inform(Event),
    Committed(Box<Record>),
    Claim,
}

pub struct World {
    pub provider: Arc<Provider>,
    pub core: Core,
    pub dice: Dice,
    pub now: u64,
    pub agenda: BinaryHeap<Reverse<(u64, u64)>>,
    pub happenings: HashMap<u64, Happening>,
    pub serial: u64,
    pub meters: Vec<Meter>,
    pub way: Lognormal,
    pub work: Lognormal,
    pub store: VecDeque<Claimed>,
    pub due: BinaryHeap<Reverse<(i64, JobPk)>>,
    pub waiting: HashMap<JobPk, Claimed>,
    pub held: HashMap<JobPk, Claimed>,
    pub fates: HashMap<JobPk, VecDeque<Fate>>,
    pub told: HashMap<JobPk, Told>,
    pub bad_key: Option<usize>,
    pub accepted: Vec<Vec<u64>>,
    pub departed: Vec<u64>,
    pub rejected: u64,
    /// The wall clock when time begins.
    pub epoch_ms: i64,
    /// From then on the wall clock is so much further ahead (milliseconds).
    pub jumps: Vec<(u64, i64)>,
    pub claim_every: u64,
    /// The core is not woken more often, unless something happens: for days of traffic.
    pub doze: u64,
    /// What the answers say that the calls cost.
    pub true_costs: HashMap<JobPk, u64>,
}

impl World {
    pub fn new(config: &str, limit: &Limit, seed: u64) -> Self {
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
            epoch_ms: EPOCH_MS,
            jumps: Vec::new(),
            claim_every: 20 * MILLI,
            doze: 1,
            true_costs: HashMap::new(),
        }
    }

    pub fn enqueue(&mut self, pk: JobPk, envelope: &serde_json::Value, fates: Vec<Fate>) {
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

    pub fn clock(&self) -> Now {
        let jumped: i64 = self.jumps.iter().filter(|(at, _)| *at <= self.now).map(|(_, by_ms)| by_ms).sum();
        Now { mono: Time::from_nanos(self.now), wall: self.true_ms(self.now) + jumped }
    }

    /// What a clock that never jumped would show.
    pub fn true_ms(&self, at: u64) -> i64 {
        self.epoch_ms + i64::try_from(at / MILLI).unwrap()
    }

    pub fn later(&mut self, after: u64, happening: Happening) {
        self.serial += 1;
        self.agenda.push(Reverse((self.now + after, self.serial)));
        self.happenings.insert(self.serial, happening);
    }

    /// Until everything has ended, or that long.
    pub fn run(&mut self, longest: u64) {
        self.later(0, Happening::Claim);
        while self.now < longest && self.told.values().any(|told| told.terminal.is_empty()) {
            let wake = self.core.wake_at(self.clock()).map(|at| at.as_nanos().max(self.now + self.doze));
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

    /// The lease of its only pacing group is gone.
    pub fn suspend(&mut self) {
        assert_eq!(self.core.group_count(), 1);
        self.inform(Event::Suspend(vec![GroupId(0)]));
    }

    /// It is back, with what the last owner left (`None`: it cannot be read).
    pub fn inherit(&mut self, left: Option<(&Saved, Duration, Since)>) {
        let now = self.clock();
        let left = left.map(|(saved, elapsed, since)| vec![Left { saved, elapsed, since }]);
        self.core.inherit(&[Heir { group: GroupId(0), left }], now);
        self.core.allow(GroupId(0), Allowance { until: Time::MAX, calls: u64::MAX, open: u64::MAX }, now.mono);
    }

    pub fn inform(&mut self, event: Event) {
        let (now, dice) = (self.clock(), &mut self.dice);
        self.core.handle(event, now, &mut || dice.unit());
    }

    pub fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Inform(event) => self.inform(event),
            Happening::Claim => {
                self.claim();
                self.later(self.claim_every, Happening::Claim);
            }
            Happening::Arrives(pk, key) => self.arrive(pk, key),
            Happening::Committed(record) => self.committed(*record),
        }
    }

    pub fn claim(&mut self) {
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

    pub fn obey(&mut self) {
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
    pub fn arrive(&mut self, pk: JobPk, key: usize) {
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

    pub fn answer(&mut self, pk: JobPk, status: u16, head: u64, body: u64) {
        let signal = Signal { limited: status == 429, ..Signal::default() };
        self.later(head, Happening::Inform(Event::Head { pk, signal: Box::new(signal.clone()) }));
        let response = StoredResponse {
            status,
            headers: "{}".to_owned(),
            content_type: None,
            body: Bytes::new(),
            truncated: false,
        };
        let end = CallEnd::Answered(Box::new(Answered {
            response,
            signal,
            told: Signal::default(),
            cost: self.true_costs.get(&pk).copied(),
            ruling: None,
        }));
        self.later(head + body + 1, Happening::Inform(Event::Ended { pk, end }));
    }

    /// What the store would do with a record.
    pub fn committed(&mut self, record: Record) {
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

    pub fn states(&self, state: JobState) -> usize {
        self.told.values().filter(|told| told.terminal == [state]).count()
    }

    pub fn assert_one_end_each(&self, seed: u64) {
        for (pk, told) in &self.told {
            assert_eq!(told.terminal.len(), 1, "seed {seed}: job {pk} ended {:?}", told.terminal);
        }
        assert_eq!(self.core.counts(), (0, 0), "seed {seed}: nothing stays in hand");
    }

    /// W ÷ mean(aᵢ₊ₙ − aᵢ), pooled over the keys, of the arrivals before `until`.
    pub fn utilisation(&self, n: usize, window: u64, until: u64) -> f64 {
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

pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().expect("SIMULATION_SEED is a number")],
        Err(_) => (1..=count).collect(),
    }
}

pub fn config(keys: usize, limit: &str, more: &str) -> String {
    let keys: Vec<String> = (0..keys).map(|n| format!("{{ label = \"k{n}\", secret = \"env:K{n}\" }}")).collect();
    format!(
        "[[provider]]\nname = \"p\"\nbase_url = \"http://127.0.0.1\"\nkey_limits = [ {limit} ]\nkeys = [ {} ]\n{more}",
        keys.join(", ")
    )
}

pub fn plain(pk: JobPk) -> serde_json::Value {
    serde_json::json!({ "id": format!("j{pk}"), "provider": "p", "request": { "path": "/" } })
}
