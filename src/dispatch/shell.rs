//! Runs the dispatcher of one provider: clocks, calls, commits and claims around [`Core`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::call::Call;
use super::cancels::Cancels;
use super::claims::Claims;
use super::core::{Command, Core, Event, Note, Now};
use super::intake::Intake;
use super::keeper::{Keeping, LeaseInput};
use super::keyring::{Credential, Keyring, Read};
use super::orders::Orders;
use super::record::write;
use super::tell::Teller;
use crate::clock::Clock;
use crate::config::Provider;
use crate::job::{Job, JobState};
use crate::kill_point::{KillPoint, reached};
use crate::outcome::Outcome;
use crate::pace::{BadSpec, GroupId, KeyId, Time};
use crate::provider::{Client, ClientError};
use crate::store::{Claimed, JobPk, Order, OwnerId, Record, Report, Store, StoreError, Wake};
use crate::telemetry::{DispatchMetrics, ProviderLabel};
use crate::vault::MasterKeys;

/// Inputs handled before the core decides again.
const INPUTS_MAX: usize = 512;
/// How often the room for more jobs is worked out anew, and so how often they are claimed: few large claims instead of many
/// small ones.
const ROOM_EVERY: Duration = Duration::from_millis(20);
/// The same where somebody says that there are jobs, and none is in line: nobody waits for a timer.
const ROOM_SOON: Duration = Duration::from_millis(5);
/// How often the core is asked even though nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// After so long of a shutdown only what would be forgotten is waited for: not what the store has, and does not answer.
const STORE_GRACE: Duration = Duration::from_secs(5);

/// What a dispatcher is made of.
#[derive(Debug, Clone)]
pub struct DispatcherParts {
    /// Whose jobs it drains.
    pub provider: Arc<Provider>,
    /// Where they are kept.
    pub store: Store,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What opens stored keys.
    pub masters: Arc<MasterKeys>,
    /// Who claims them.
    pub owner: OwnerId,
    /// Counters.
    pub metrics: DispatchMetrics,
    /// How long calls in flight may go on after shutdown.
    pub grace: Duration,
}

/// Why there is no dispatcher.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// Its limits cannot be paced.
    #[error("provider {provider}: {source}")]
    Limits {
        /// Which provider.
        provider: String,
        /// Why not.
        source: BadSpec,
    },
    /// Its client cannot be set up.
    #[error("provider {provider}: {source}")]
    Client {
        /// Which provider.
        provider: String,
        /// Why not.
        source: ClientError,
    },
}

/// What comes in from elsewhere.
#[derive(Debug)]
pub(super) enum Input {
    /// Jobs that the inlet claimed.
    Claimed(Vec<Claimed>),
    /// Jobs that were claimed from the store.
    Due { lane: usize, asked: usize, result: Result<(Vec<Claimed>, Option<i64>), StoreError> },
    /// What the store said about leases.
    Lease(LeaseInput),
    /// What operators want, and the keys they stored.
    Orders(Result<(Vec<Order>, Vec<Read>), StoreError>),
    /// Jobs in hand that somebody wants cancelled.
    Cancels(Result<Vec<JobPk>, StoreError>),
    /// A report was written: what is in the store now; `None`: it failed.
    Reported(Option<Option<Report>>),
    /// Something happened, at that time.
    Event(Event, Now),
}

/// The dispatcher of one provider.
#[derive(Debug)]
pub struct Dispatcher {
    pub(super) parts: DispatcherParts,
    pub(super) label: ProviderLabel,
    pub(super) core: Core,
    client: Client,
    pub(super) keyring: Keyring,
    intakes: Vec<Intake>,
    pub(super) claims: Claims,
    pub(super) keeping: Keeping,
    pub(super) orders: Orders,
    pub(super) cancels: Cancels,
    pub(super) teller: Teller,
    prefetch: u16,
    pub(super) sender: mpsc::UnboundedSender<Input>,
    inputs: mpsc::UnboundedReceiver<Input>,
    pub(super) tasks: JoinSet<()>,
    /// When the room was worked out last, and whether it is wanted soon.
    room_made: Time,
    room_soon: bool,
    /// Records that wait for the store.
    waiting: Arc<AtomicUsize>,
    /// Ends of calls that are being written.
    outcomes: Arc<AtomicUsize>,
}

impl Dispatcher {
    /// A dispatcher with nothing in hand.
    ///
    /// # Errors
    /// [`DispatchError`] where limits or client cannot be set up.
    pub fn new(parts: DispatcherParts) -> Result<Self, DispatchError> {
        let provider = Arc::clone(&parts.provider);
        let name = || provider.name.clone();
        let mut core = Core::new(Arc::clone(&provider), parts.clock.mono())
            .map_err(|source| DispatchError::Limits { provider: name(), source })?;
        let client = Client::new(&provider).map_err(|source| DispatchError::Client { provider: name(), source })?;
        // Bounded by what feeds it: jobs by the credits of the intakes, calls by the core.
        let (sender, inputs) = mpsc::unbounded_channel();
        let lanes = &provider.pool.lanes;
        let intakes = lanes.iter().map(|_| Intake::new(sender.clone())).collect();
        let claims = Claims::new(lanes.iter().map(|lane| lane.name.clone()).collect());
        let label = ProviderLabel { provider: name() };
        let began = parts.clock.mono();
        let keeping = Keeping::new(&provider);
        let keyring = Keyring::new(&provider);
        let prefetch = u16::try_from(core.allowance(began).clamp(1, 500)).unwrap_or(500);
        let (tasks, waiting) = (JoinSet::new(), Arc::default());
        let nothing_held = (0..core.group_count()).map(|number| GroupId(number as u32)).collect();
        let now = Now { mono: began, wall: parts.clock.wall_ms() };
        core.handle(Event::Suspend(nothing_held), now, &mut rand::random::<f64>);
        Ok(Self {
            parts,
            label,
            core,
            client,
            keyring,
            intakes,
            claims,
            keeping,
            orders: Orders::new(),
            cancels: Cancels::default(),
            teller: Teller::default(),
            prefetch,
            sender,
            inputs,
            tasks,
            room_made: Time::ZERO,
            room_soon: false,
            waiting,
            outcomes: Arc::default(),
        })
    }

    /// The doors of its lanes, by name.
    pub fn intakes(&self) -> impl Iterator<Item = (&str, Intake)> {
        self.parts.provider.pool.lanes.iter().zip(&self.intakes).map(|(lane, door)| (lane.name.as_str(), door.clone()))
    }

    /// How many deliveries of a lane the broker may send ahead: what the budgets allow in the
    /// next seconds, whoever holds them, 1 to 500.
    pub const fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Runs until `shutdown`, then lets calls in flight finish and hands the rest back.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut wakes = self.parts.store.wakes();
        let (mut grace_ends, mut store_ends): (Option<Time>, Option<Time>) = (None, None);
        loop {
            let now = self.now();
            self.decide(now);
            let idle = self.core.is_idle() && self.claims.are_idle();
            if grace_ends.is_some() && idle && self.keeping.tenures.are_over() {
                break;
            }
            if grace_ends.is_some_and(|end| end <= now.mono) {
                tracing::warn!(provider = self.label.provider, "calls in flight outlived the grace period");
                break;
            }
            if store_ends.is_some_and(|end| end <= now.mono) && !self.has_outcomes_in_hand() {
                tracing::warn!(
                    provider = self.label.provider,
                    "the store is silent: what is claimed and leased here stays so until it is rescued"
                );
                break;
            }
            let store_grace = store_ends.filter(|end| *end > now.mono);
            let sleep = self.sleep_for(now, store_grace.or(grace_ends));
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if grace_ends.is_none() => {
                    grace_ends = Some(now.mono + self.parts.grace);
                    store_ends = Some(now.mono + STORE_GRACE);
                    self.intakes.iter().for_each(Intake::close);
                    self.claims.stop();
                    self.happened(Event::Drain, now);
                    self.hand_over(now);
                }
                Some(input) = self.inputs.recv() => self.take(input),
                wake = wakes.recv() => self.woken(wake),
                () = tokio::time::sleep(sleep) => {}
            }
            for _ in 0..INPUTS_MAX {
                let Ok(input) = self.inputs.try_recv() else { break };
                self.take(input);
            }
            while self.tasks.try_join_next().is_some() {}
        }
        self.tasks.shutdown().await;
        self.parts.metrics.gauges(&self.label, 0, 0);
        self.parts.metrics.pacing.hide(&self.label.provider);
    }

    /// Whether something would be forgotten if it ended now: calls that are open, ends that are not written.
    fn has_outcomes_in_hand(&self) -> bool {
        self.core.counts().1 > 0 || self.outcomes.load(Ordering::Acquire) > 0
    }

    pub(super) fn now(&self) -> Now {
        Now { mono: self.parts.clock.mono(), wall: self.parts.clock.wall_ms() }
    }

    pub(super) fn happened(&mut self, event: Event, at: Now) {
        self.core.handle(event, at, &mut rand::random::<f64>);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Claimed(jobs) => {
                let now = self.now();
                self.happened(Event::Claimed(jobs), now);
            }
            Input::Due { lane, asked, result } => self.claimed(lane, asked, result),
            Input::Lease(input) => self.lease_input(input),
            Input::Orders(result) => self.orders_told(result),
            Input::Cancels(asked) => self.cancels_told(asked),
            Input::Reported(report) => self.teller.written(report),
            Input::Event(event, at) => self.happened(event, at),
        }
    }

    fn claimed(&mut self, lane: usize, asked: usize, result: Result<(Vec<Claimed>, Option<i64>), StoreError>) {
        let now = self.now();
        match result {
            Ok((jobs, next_due_ms)) => {
                self.claims.done(lane, jobs.len() >= asked, next_due_ms, now);
                self.happened(Event::Claimed(jobs), now);
            }
            Err(error) => {
                if self.claims.failed(lane, now) {
                    tracing::warn!(provider = self.label.provider, %error, "due jobs cannot be claimed; trying again");
                }
            }
        }
    }

    fn woken(&mut self, wake: Result<Wake, broadcast::error::RecvError>) {
        match wake {
            Ok(Wake::Jobs(provider)) if provider == self.label.provider => {
                self.claims.wake_all();
                self.room_soon |= self.core.counts().0 == 0;
            }
            Ok(Wake::Cancel(pk)) => {
                let now = self.now();
                self.happened(Event::Cancel(pk), now);
            }
            Ok(Wake::Orders(provider)) if provider == self.label.provider => self.orders.wake(),
            Ok(Wake::Lease(provider)) if provider == self.label.provider => self.keeping.look_now(),
            Ok(_) => {}
            // Some wakes were missed: look everywhere.
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.claims.wake_all();
                self.keeping.look_now();
                self.orders.wake();
                self.cancels.look_now();
            }
            Err(broadcast::error::RecvError::Closed) => {}
        }
    }

    fn decide(&mut self, now: Now) {
        let commands: Vec<Command> = self.core.advance(now).collect();
        for command in commands {
            match command {
                Command::Call { pk, job, key } => self.call(pk, job, key),
                Command::Record(record) => self.record(record),
                Command::Note(note) => self.note(&note),
            }
        }
        self.keep_orders(now);
        self.keep_cancels(now);
        self.keep_leases(now);
        self.tell(now);
        if self.room_at() <= now.mono {
            (self.room_made, self.room_soon) = (now.mono, false);
            self.make_room(now);
        }
    }

    /// When the room is worked out next.
    fn room_at(&self) -> Time {
        self.room_made + if self.room_soon { ROOM_SOON } else { ROOM_EVERY }
    }

    /// Tells the inlet how much more it may let in, and claims what is due in the store.
    fn make_room(&mut self, now: Now) {
        let target = self.core.target(now);
        for lane in 0..self.intakes.len() {
            let room = target.saturating_sub(self.core.in_line(lane));
            self.intakes[lane].set_room(room);
            // Few large claims instead of many small ones.
            let worth_it = room > 0 && (room >= 64 || room * 2 >= target);
            if worth_it && self.claims.begin(lane, now) {
                self.claim(lane, room);
            }
        }
        let (in_line, open) = self.core.counts();
        self.parts.metrics.gauges(&self.label, in_line, open);
    }

    fn claim(&mut self, lane: usize, room: usize) {
        let parts = self.parts.clone();
        let sender = self.sender.clone();
        let name = self.claims.name(lane).to_owned();
        let away = Arc::clone(&self.keeping.away);
        self.tasks.spawn(async move {
            let asked = room.min(500);
            let limit = u32::try_from(asked).unwrap_or(500);
            let provider = &parts.provider.name;
            let (store, now_ms) = (&parts.store, parts.clock.wall_ms());
            let claimed = store.claim_due_but(&parts.owner, provider, &name, &away, limit, now_ms).await;
            if claimed.as_ref().is_ok_and(|jobs| !jobs.is_empty()) {
                reached(KillPoint::AfterClaim);
            }
            let result = match claimed {
                Ok(jobs) if jobs.len() < asked => match store.next_due_but(provider, &name, &away).await {
                    Ok(next_due_ms) => Ok((jobs, next_due_ms)),
                    Err(error) => {
                        tracing::debug!(%error, "the next due time is not known");
                        Ok((jobs, None))
                    }
                },
                Ok(jobs) => Ok((jobs, None)),
                Err(error) => Err(error),
            };
            send(&sender, Input::Due { lane, asked, result });
        });
    }

    fn sleep_for(&self, now: Now, grace_ends: Option<Time>) -> Duration {
        let core = self.core.wake_at(now);
        // Whoever may not send claims nothing, however much is due.
        let may_claim = self.core.holds_something(now.mono) && !self.core.is_shut();
        let claims = self.claims.wake_at().filter(|_| may_claim).map(|at| at.max(self.room_at()));
        let lease = self.keeping.wake_at(self.orders.are_known());
        let cancels = self.cancels.wake_at().filter(|_| !self.core.is_idle());
        let next = [core, claims, lease, self.orders.wake_at(), cancels, grace_ends].into_iter().flatten().min();
        next.map_or(TICK, |at| at.since(now.mono).min(TICK))
    }

    fn call(&mut self, pk: JobPk, job: Arc<Job>, key: KeyId) {
        let leave = (self.core.leave(key), self.core.window_changes_at(self.now()));
        let call = Call::new(pk, leave, Arc::clone(&self.parts.clock), self.sender.clone());
        let secret = match self.keyring.credential(key) {
            Credential::Key(secret) => Some(secret),
            Credential::Nothing => None,
            // Removed since the permit was given: never without a key.
            Credential::Gone => return call.withhold(),
        };
        let client = self.client.clone();
        let policy = Arc::clone(self.parts.provider.policy_of(&job.request.method, &job.request.path));
        self.tasks.spawn(async move { call.make(&client, &job, secret.as_ref(), &policy).await });
    }

    fn record(&mut self, record: Box<Record>) {
        let parts = self.parts.clone();
        let (sender, waiting) = (self.sender.clone(), Arc::clone(&self.waiting));
        let outcomes = record.attempt.is_some().then(|| Arc::clone(&self.outcomes));
        if let Some(outcomes) = &outcomes {
            outcomes.fetch_add(1, Ordering::AcqRel);
        }
        self.tasks.spawn(async move {
            let pk = record.pk;
            let recorded = write(&parts, *record, &waiting).await;
            if let Some(outcomes) = outcomes {
                outcomes.fetch_sub(1, Ordering::AcqRel);
            }
            let now = Now { mono: parts.clock.mono(), wall: parts.clock.wall_ms() };
            send(&sender, Input::Event(Event::Recorded { pk, recorded }, now));
        });
    }

    fn note(&mut self, note: &Note) {
        if let Note::KeyWorks(key) = note {
            self.free(self.core.freed_by(key));
        }
        let provider = &self.label.provider;
        match note {
            Note::Called(outcome, latency_ms) => {
                let seconds = Duration::from_millis(u64::try_from(*latency_ms).unwrap_or(0)).as_secs_f64();
                self.parts.metrics.call(&self.label, outcome.as_str(), seconds);
                if *outcome == Outcome::RateLimited {
                    tracing::warn!(provider, "the provider answered that there were too many calls");
                }
            }
            Note::Finished(state) => {
                self.parts.metrics.finished(&self.label, state.as_str());
                if *state == JobState::Dead {
                    tracing::debug!(provider, "a job is dead");
                }
            }
            Note::KeyRefused(key) => {
                tracing::error!(provider, key, "the provider refuses this key; it is set aside, the others go on");
            }
            Note::KeyWorks(key) => tracing::info!(provider, key, "this key works again"),
            Note::QuotaExhausted(key) => {
                tracing::error!(provider, key, "the quota behind this key is used up; its budget is parked");
            }
            Note::ProviderDown(wait) => {
                tracing::error!(provider, ?wait, "the provider seems to be down; jobs wait until it is tried again");
            }
            Note::ProviderUp => tracing::info!(provider, "the provider answers again"),
        }
    }
}

pub(super) fn send(sender: &mpsc::UnboundedSender<Input>, input: Input) {
    if sender.send(input).is_err() {
        tracing::debug!("an input came after the dispatcher had stopped");
    }
}
