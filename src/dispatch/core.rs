//! The dispatcher of one provider without I/O: time and random numbers are arguments, so that the
//! same code runs for real and under virtual time.
//!
//! ```text
//! claimed ─▶ in line ─▶ permit ─▶ (at_most_once: committed as started) ─▶ call ─▶ outcome ─▶ record
//!               ▲                                                            │
//!               └───────────────── not its fault: the next slot ◀────────────┘
//! ```

mod ending;
mod groups;
mod keys;
mod leave;
mod message;
mod orders;
mod outage;
mod quotas;
mod window;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::{Breaker, Pass};
use crate::clock::WallMs;
use crate::config::Provider;
use crate::job::{DeadReason, Delivery, Job, JobState};
use crate::pace::{
    Ask, BadSpec, Flight, KeyId, Line, Next as Slot, Permit, Pool, PoolSnapshot, Signal, Ticket, Time, Why,
};
use crate::retry::{RetryBudget, RetryPolicy};
use crate::store::{Attempt, Claimed, JobPk, Next, Order, Record, Recorded, StoredResponse, WaitReason};

use quotas::Quotas;

use groups::Step;
pub use groups::{Heir, Sent};
pub use keys::{Heard, KeyNews};
pub use leave::Leave;
pub use message::{Allowance, Answered, CallEnd, Command, Event, Note, Now};
pub use orders::Freed;

/// Calls to one provider at most that are open or whose ends are not committed, whatever its limits allow.
pub const OPEN_MAX: usize = 1_000;
/// Jobs of one lane in line at most.
const LANE_MAX: u64 = 1_000;
/// Jobs are claimed for so long ahead.
const AHEAD: Duration = Duration::from_secs(2);
/// A job that cannot go for so long is handed back to the store.
const PATIENCE: Duration = Duration::from_secs(5);
/// A call that is open for so long is shown as `running`.
const MARK_AFTER: Duration = Duration::from_millis(50);
/// A job whose key or budget is out of use looks again after so long: half of its age, within these bounds. So a
/// large backlog that is blocked for long costs little, and what ends the block makes it due at once.
const BLOCKED_FOR: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(600));
/// The same where other dispatchers have keys that may serve it.
const ELSEWHERE_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(1));

/// A job in hand.
#[derive(Debug)]
struct InHand {
    claimed: Claimed,
    job: Arc<Job>,
    lane: usize,
    ask: Ask,
    stage: Stage,
    /// It was let go of behind this dispatcher's back and claimed again by it: what it is taken in by
    /// as soon as the record that is under way is answered. Else nobody would hold what it owns.
    again: Option<Box<Claimed>>,
}

#[derive(Debug)]
enum Stage {
    /// Waits for a permit.
    InLine(Ticket),
    /// `at_most_once`: has its permit, and is being committed as started.
    Starting(Permit, Pass),
    /// Being sent.
    Open(Box<Open>),
    /// Its record is being committed; then it goes back in line (`true`) or is let go of.
    Recording { again: bool },
}

#[derive(Debug)]
struct Open {
    flight: Flight,
    pass: Pass,
    sent: Now,
    /// What tells the secret it was sent with from others.
    secret: u64,
    mark: Mark,
    /// The end of the call, while the mark is still being committed: records of one job never
    /// overtake each other.
    ended: Option<(CallEnd, Now)>,
}

/// Whether the store knows that the call is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Unmarked,
    Marking,
    Marked,
}

/// Whether jobs may wait in line here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doors {
    /// They may.
    Open,
    /// Never again: whatever comes goes to the store.
    Closed,
}

/// The dispatcher of one provider.
#[derive(Debug)]
pub struct Core {
    provider: Arc<Provider>,
    pool: Pool,
    quotas: Quotas,
    line: Line<JobPk>,
    jobs: HashMap<JobPk, InHand>,
    in_line: Vec<usize>,
    deadlines: BTreeSet<(WallMs, JobPk)>,
    opened: VecDeque<(Time, JobPk)>,
    open: usize,
    doors: Doors,
    groups: groups::Groups,
    breaker: Breaker,
    retries: RetryBudget,
    next_slot: Option<Time>,
    commands: Vec<Command>,
    /// The last word of operators.
    orders: Vec<Order>,
    window: window::Watch,
}

impl Core {
    /// A dispatcher with nothing in hand, which holds every pacing group without any bound.
    ///
    /// # Errors
    /// [`BadSpec`] where the limits cannot be paced.
    pub fn new(provider: Arc<Provider>, now: Time) -> Result<Self, BadSpec> {
        let pool = pool_of(&provider, now)?;
        let line = Line::new(&provider.pool.lanes);
        let in_line = vec![0; provider.pool.lanes.len()];
        let groups = groups::of(&pool);
        let quotas = Quotas::new(&provider.quotas);
        let breaker = Breaker::new(provider.breaker);
        Ok(Self {
            provider,
            pool,
            quotas,
            line,
            jobs: HashMap::new(),
            in_line,
            deadlines: BTreeSet::new(),
            opened: VecDeque::new(),
            open: 0,
            doors: Doors::Open,
            groups,
            breaker,
            retries: RetryBudget::default(),
            next_slot: None,
            commands: Vec::new(),
            orders: Vec::new(),
            window: window::Watch::default(),
        })
    }

    /// Takes an event, and says what to do. `random` yields numbers in `[0, 1)`.
    pub fn handle(&mut self, event: Event, now: Now, random: &mut dyn FnMut() -> f64) {
        match event {
            Event::Claimed(jobs) => jobs.into_iter().for_each(|job| self.take_in(job, now)),
            Event::Left { pk } => self.left(pk, now),
            Event::Head { pk, signal } => self.head(pk, &signal, now),
            Event::Ended { pk, end } => self.ended(pk, end, now, random),
            Event::Recorded { pk, recorded } => self.recorded(pk, recorded, now, random),
            Event::Cancel(pk) => self.cancel(pk, now),
            Event::Drain => self.close(now),
            Event::Suspend(groups) => self.suspend(&groups, now),
            Event::Tick => {}
        }
    }

    /// Lets go what may go now, ends what is past its deadline, hands back what cannot go for
    /// long. To be called after one or several events; the commands are what to do now.
    pub fn advance(&mut self, now: Now) -> std::vec::Drain<'_, Command> {
        self.quotas.look(&mut self.pool, now);
        self.expire(now);
        self.launch(now);
        self.hand_back(now);
        self.mark(now);
        self.commands.drain(..)
    }

    /// When to call [`Core::advance`] again though nothing happens.
    pub fn wake_at(&self, now: Now) -> Option<Time> {
        let mark = self.opened.front().map(|(at, _)| *at + MARK_AFTER);
        let deadline = self
            .deadlines
            .first()
            .map(|(at, _)| now.mono + Duration::from_millis(u64::try_from(at.saturating_sub(now.wall)).unwrap_or(0)));
        // Pauses end and blocked jobs are handed back without any event.
        let patience = (!self.line.is_empty()).then(|| now.mono + PATIENCE / 5);
        let breaker = self.breaker.open_until();
        let window = self.window_changes_at(now);
        [self.next_slot, mark, deadline, patience, breaker, window].into_iter().flatten().min()
    }

    /// How every limit, key and budget stands. Costs a visit to each.
    pub fn snapshot(&mut self, now: Time) -> PoolSnapshot {
        self.pool.snapshot(now)
    }

    /// How many jobs of each lane should wait in line: what the budgets allow in the next seconds.
    pub fn target(&mut self, now: Now) -> usize {
        if !self.window_is_open(now) || self.doors != Doors::Open || !self.holds_something(now.mono) {
            return 0;
        }
        let probes = self.breaker.room(now.mono).map_or(usize::MAX, |room| usize::try_from(room).unwrap_or(usize::MAX));
        self.allowance(now.mono).min(probes)
    }

    /// What the budgets that are held here allow in the next seconds.
    pub fn allowance(&mut self, now: Time) -> usize {
        usize::try_from(self.pool.allowance(AHEAD, now).min(LANE_MAX)).unwrap_or(0)
    }

    /// How many jobs of a lane wait in line.
    pub fn in_line(&self, lane: usize) -> usize {
        self.in_line.get(lane).copied().unwrap_or(0)
    }

    /// Jobs that wait for a permit, and calls that are open.
    pub fn counts(&self) -> (usize, usize) {
        (self.in_line.iter().sum(), self.open)
    }

    /// Whether nothing is in hand.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    fn take_in(&mut self, claimed: Claimed, now: Now) {
        if let Some(held) = self.jobs.get_mut(&claimed.pk) {
            return held.claimed_again(claimed);
        }
        let job = Arc::new(claimed.job.clone());
        let lane = self.lane_of(&job.lane);
        let pin = job.key.as_deref().map(|name| self.pool.pin_named(name));
        let routes = self.provider.routes_of(&job.request.method, &job.request.path).collect();
        let ask = Ask { cost: job.cost, routes, pin: pin.flatten() };
        let pk = claimed.pk;
        let stage = Stage::Recording { again: false };
        self.jobs.insert(pk, InHand { claimed, job: Arc::clone(&job), lane, ask, stage, again: None });
        if is_past_deadline(&job, now) {
            return self.expired(pk, now);
        }
        if let Some(impossible) = self.pool.impossible(&ask) {
            return self.finish(pk, JobState::Dead, Some(DeadReason::Impossible), Some(impossible.to_string()), now);
        }
        if pin == Some(None) {
            return self.wait_for_key(pk, WaitReason::NoKey, None, now);
        }
        let is_retry = self.jobs.get(&pk).is_some_and(|held| held.claimed.failures > 0);
        if let Some(wait) = is_retry.then(|| self.retries.take(now.mono).err()).flatten() {
            return self.wait_for_key(pk, WaitReason::Backoff, Some(now.mono + wait), now);
        }
        if let Some(deadline) = job.deadline_ms {
            self.deadlines.insert((deadline, pk));
        }
        self.line_up(pk, now);
    }

    /// When and how often this job may be tried.
    fn retry_policy(&self, job: &Job) -> RetryPolicy {
        self.provider.policy_of(&job.request.method, &job.request.path).retry.with(&job.retry)
    }

    fn lane_of(&self, name: &str) -> usize {
        let lanes = &self.provider.pool.lanes;
        let named = |name: &str| lanes.iter().position(|lane| lane.name == name);
        // A lane that was taken out of the configuration: its jobs were moved to the default one.
        named(name).or_else(|| named("default")).unwrap_or(0)
    }

    /// Into the line; or out of hand, where it must not wait there any more.
    fn line_up(&mut self, pk: JobPk, now: Now) {
        let Some(held) = self.jobs.get_mut(&pk) else { return };
        if is_past_deadline(&held.job, now) {
            return self.expired(pk, now);
        }
        let pin = held.ask.pin;
        if !self.may_wait_here(pin) {
            return self.record(pk, Next::Release, None, false, now);
        }
        if let Some(until) = self.breaker.open_until().filter(|until| *until > now.mono) {
            return self.wait_for_key(pk, WaitReason::Breaker, Some(until), now);
        }
        let Some(held) = self.jobs.get_mut(&pk) else { return };
        held.renew();
        held.stage = Stage::InLine(self.line.push(pk, held.lane, held.ask));
        self.in_line[held.lane] += 1;
    }

    /// Takes a job out of the line. `false` where it is not in line.
    fn step_out(&mut self, pk: JobPk) -> bool {
        let Some(held) = self.jobs.get_mut(&pk) else { return false };
        let Stage::InLine(ticket) = held.stage else { return false };
        held.stage = Stage::Recording { again: false };
        self.in_line[held.lane] -= 1;
        self.line.remove(ticket).is_some()
    }

    fn launch(&mut self, now: Now) {
        self.next_slot = None;
        self.shut_what_ended(now.mono);
        if !self.window_is_open(now) {
            return self.empty_line(now);
        }
        while self.jobs.len() - self.in_line.iter().sum::<usize>() < OPEN_MAX && self.provider_is_up(now.mono) {
            match self.line.next(&mut self.pool, now.mono) {
                Slot::Ready(pk, permit, _) => self.permitted(pk, permit, now),
                Slot::At(time) => {
                    self.next_slot = Some(time);
                    break;
                }
                Slot::Waiting | Slot::Empty => break,
            }
        }
    }

    fn permitted(&mut self, pk: JobPk, permit: Permit, now: Now) {
        let Some(held) = self.jobs.get_mut(&pk) else {
            return self.pool.abandon(permit, now.mono);
        };
        self.in_line[held.lane] -= 1;
        let pass = self.breaker.pass();
        if held.job.delivery == Delivery::AtMostOnce {
            let key = permit.key();
            held.stage = Stage::Starting(permit, pass);
            self.count(key, Step::Starts, now.mono);
            return self.push_record(pk, Next::Running, None, now);
        }
        self.send(pk, permit, pass, Mark::Unmarked, now);
    }

    fn send(&mut self, pk: JobPk, permit: Permit, pass: Pass, mark: Mark, now: Now) {
        let key = permit.key();
        let flight = self.pool.depart(permit, now.mono);
        let Some(held) = self.jobs.get_mut(&pk) else {
            self.pool.unsent(flight, now.mono);
            return self.note_health(pass, None, now);
        };
        let job = Arc::clone(&held.job);
        held.renew();
        held.claimed.attempts += 1;
        held.claimed.first_attempt_ms.get_or_insert(now.wall);
        let secret = self.pool.secret_of(key);
        held.stage = Stage::Open(Box::new(Open { flight, pass, sent: now, secret, mark, ended: None }));
        self.open += 1;
        self.retries.called(now.mono);
        self.count(key, Step::Leaves, now.mono);
        if mark == Mark::Unmarked {
            self.opened.push_back((now.mono, pk));
        }
        self.commands.push(Command::Call { pk, job, key });
    }

    fn left(&mut self, pk: JobPk, now: Now) {
        if let Some(InHand { stage: Stage::Open(open), .. }) = self.jobs.get_mut(&pk) {
            self.pool.departed_late(&mut open.flight, now.mono);
        }
    }

    fn head(&mut self, pk: JobPk, signal: &Signal, now: Now) {
        if let Some(InHand { stage: Stage::Open(open), .. }) = self.jobs.get_mut(&pk) {
            self.pool.first_byte(&mut open.flight, now.mono, Some(signal));
        }
    }

    fn ended(&mut self, pk: JobPk, end: CallEnd, now: Now, random: &mut dyn FnMut() -> f64) {
        let Some(held) = self.jobs.get_mut(&pk) else { return };
        match std::mem::replace(&mut held.stage, Stage::Recording { again: false }) {
            Stage::Open(mut open) if open.mark == Mark::Marking => {
                open.ended = Some((end, now));
                held.stage = Stage::Open(open);
            }
            Stage::Open(open) => self.conclude(pk, *open, end, now, random),
            other => held.stage = other,
        }
    }

    fn recorded(&mut self, pk: JobPk, recorded: Recorded, now: Now, random: &mut dyn FnMut() -> f64) {
        let Some(held) = self.jobs.get_mut(&pk) else { return };
        match std::mem::replace(&mut held.stage, Stage::Recording { again: false }) {
            Stage::Starting(permit, pass) => {
                let in_time = !is_past_deadline(&held.job, now);
                self.count(permit.key(), Step::Started, now.mono);
                let may_go = in_time
                    && self.window_is_open(now)
                    && self.may_leave(permit.key(), now.mono)
                    && self.breaker.honours(pass);
                self.started(pk, (permit, pass), recorded, may_go, now);
            }
            Stage::Open(mut open) => {
                open.mark = Mark::Marked;
                match open.ended.take() {
                    Some((end, at)) => self.conclude(pk, *open, end, at, random),
                    None => held.stage = Stage::Open(open),
                }
            }
            Stage::Recording { again: true } => match recorded {
                Recorded::Done => self.line_up(pk, now),
                Recorded::Superseded => self.forget(pk, now),
                Recorded::CancelRequested => self.finish(pk, JobState::Cancelled, None, None, now),
            },
            Stage::Recording { again: false } => self.forget(pk, now),
            // A record of a job in line does not exist.
            in_line @ Stage::InLine(_) => held.stage = in_line,
        }
    }

    /// An `at_most_once` call was committed as started. The lease may have ended meanwhile, or the
    /// job's time, or the provider is down: then it does not leave.
    fn started(&mut self, pk: JobPk, (permit, pass): (Permit, Pass), recorded: Recorded, may_go: bool, now: Now) {
        if recorded == Recorded::Done && may_go {
            return self.send(pk, permit, pass, Mark::Marked, now);
        }
        self.pool.abandon(permit, now.mono);
        self.note_health(pass, None, now);
        match recorded {
            Recorded::Done => self.record(pk, Next::Release, None, false, now),
            Recorded::Superseded => self.forget(pk, now),
            Recorded::CancelRequested => self.finish(pk, JobState::Cancelled, None, None, now),
        }
    }

    fn cancel(&mut self, pk: JobPk, now: Now) {
        if self.step_out(pk) {
            return self.finish(pk, JobState::Cancelled, None, None, now);
        }
        // Being sent: say so at once, so that whoever asked learns that it is too late.
        if let Some(InHand { stage: Stage::Open(open), .. }) = self.jobs.get_mut(&pk)
            && open.mark == Mark::Unmarked
        {
            open.mark = Mark::Marking;
            self.push_record(pk, Next::Running, None, now);
        }
    }

    /// Hands back what is in line now; what would join it later follows.
    fn close(&mut self, now: Now) {
        self.doors = Doors::Closed;
        self.suspend(&[], now);
    }

    fn expire(&mut self, now: Now) {
        while let Some((deadline, pk)) = self.deadlines.first().copied()
            && deadline <= now.wall
        {
            self.deadlines.pop_first();
            if self.step_out(pk) {
                self.expired(pk, now);
            }
        }
    }

    /// What cannot go for long leaves the line, and says why.
    fn hand_back(&mut self, now: Now) {
        let horizon = now.mono + PATIENCE;
        let stuck: Vec<(JobPk, Why, Option<Time>)> =
            self.line.waiting_beyond(horizon).filter_map(|(_, pk, wait)| Some((*pk, wait.why?, wait.until))).collect();
        for (pk, why, until) in stuck {
            let reason = match why {
                Why::NoKey | Why::KeyDisabled(_) => WaitReason::NoKey,
                _ => WaitReason::Paused,
            };
            if !self.step_out(pk) {
                continue;
            }
            if why == Why::NotHeld {
                self.record(pk, Next::Release, None, false, now);
            } else {
                self.wait_for_key(pk, reason, until, now);
            }
        }
    }

    /// Waits until its key, its budget, its provider or the budget of retries may be of use again, within what its policy allows.
    fn wait_for_key(&mut self, pk: JobPk, reason: WaitReason, until: Option<Time>, now: Now) {
        let Some(held) = self.jobs.get(&pk) else { return };
        let policy = self.retry_policy(&held.job);
        let age = Duration::from_millis(u64::try_from(now.wall.saturating_sub(held.claimed.created_ms)).unwrap_or(0));
        let others = matches!(reason, WaitReason::NoKey | WaitReason::Paused) && !self.groups.hold_all();
        let elsewhere = held.ask.pin.is_none() && others;
        let (shortest, longest) = if elsewhere { ELSEWHERE_AFTER } else { BLOCKED_FOR };
        let span = until.map_or(age / 2, |until| until.since(now.mono)).min(longest);
        let due_ms = now.wall.saturating_add(millis(if until.is_some() { span } else { span.max(shortest) }));
        // The time to give up is not slept through.
        let over_ms = held.claimed.first_attempt_ms.map(|first| first.saturating_add(millis(policy.max_elapsed)));
        let due_ms = over_ms.map_or(due_ms, |over_ms| due_ms.min(over_ms.max(now.wall)));
        if policy.is_over(held.claimed.first_attempt_ms, now.wall) {
            let error = format!("could not be sent for too long ({})", reason.as_str());
            self.finish(pk, JobState::Dead, Some(DeadReason::GaveUp), Some(error), now);
        } else {
            self.wait(pk, reason, due_ms, Duration::ZERO, None, now);
        }
    }

    fn mark(&mut self, now: Now) {
        while let Some((at, pk)) = self.opened.front().copied()
            && at + MARK_AFTER <= now.mono
        {
            self.opened.pop_front();
            if let Some(InHand { stage: Stage::Open(open), .. }) = self.jobs.get_mut(&pk)
                && open.mark == Mark::Unmarked
                && open.sent.mono == at
            {
                open.mark = Mark::Marking;
                self.push_record(pk, Next::Running, None, now);
            }
        }
    }

    fn expired(&mut self, pk: JobPk, now: Now) {
        self.finish(pk, JobState::Expired, None, Some("its deadline passed".to_owned()), now);
    }

    fn finish(&mut self, pk: JobPk, state: JobState, reason: Option<DeadReason>, error: Option<String>, now: Now) {
        self.end(pk, state, reason, error, None, None, now);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one record, each of another type")]
    fn end(
        &mut self,
        pk: JobPk,
        state: JobState,
        reason: Option<DeadReason>,
        error: Option<String>,
        attempt: Option<Attempt>,
        response: Option<StoredResponse>,
        now: Now,
    ) {
        self.commands.push(Command::Note(Note::Finished(state)));
        self.record(pk, Next::Finish { state, reason, error, response }, attempt, false, now);
    }

    fn wait(
        &mut self,
        pk: JobPk,
        reason: WaitReason,
        due_ms: WallMs,
        backoff: Duration,
        attempt: Option<Attempt>,
        now: Now,
    ) {
        self.record(pk, Next::Wait { due_ms, reason, backoff }, attempt, false, now);
    }

    fn record(&mut self, pk: JobPk, next: Next, attempt: Option<Attempt>, again: bool, now: Now) {
        if let Some(held) = self.jobs.get_mut(&pk) {
            held.stage = Stage::Recording { again };
        }
        self.push_record(pk, next, attempt, now);
    }

    fn push_record(&mut self, pk: JobPk, next: Next, attempt: Option<Attempt>, now: Now) {
        let Some(held) = self.jobs.get(&pk) else { return };
        self.commands.push(Command::Record(Box::new(Record {
            pk,
            epoch: held.claimed.epoch,
            run: held.claimed.run,
            attempt,
            failures: held.claimed.failures,
            at_ms: now.wall,
            next,
        })));
    }

    fn forget(&mut self, pk: JobPk, now: Now) {
        let Some(held) = self.jobs.remove(&pk) else { return };
        if let Some(deadline) = held.job.deadline_ms {
            self.deadlines.remove(&(deadline, pk));
        }
        if let Some(claimed) = held.again {
            self.take_in(*claimed, now);
        }
    }
}

impl InHand {
    /// The newer claim of the same run is the one whose records count.
    fn claimed_again(&mut self, claimed: Claimed) {
        if claimed.epoch <= self.claimed.epoch {
            return;
        }
        self.again = Some(Box::new(claimed));
        if matches!(self.stage, Stage::InLine(_) | Stage::Open(_)) {
            self.renew();
        }
    }

    fn renew(&mut self) {
        if let Some(claimed) = self.again.take_if(|claimed| claimed.run == self.claimed.run) {
            self.claimed.epoch = claimed.epoch;
        }
    }
}

/// A pool that knows its keys apart from others under the same labels.
fn pool_of(provider: &Provider, now: Time) -> Result<Pool, BadSpec> {
    let mut pool = Pool::new(&provider.pool, now)?;
    for (secret, (number, key)) in provider.secrets.iter().zip((0..).zip(&provider.pool.keys)) {
        if let Some(secret) = secret {
            pool.identify(KeyId(number), secret.fingerprint(&[&provider.name, &key.label]));
        } else if provider.stored.contains(&key.label) {
            pool.set_present(KeyId(number), false);
        }
    }
    Ok(pool)
}

fn is_past_deadline(job: &Job, now: Now) -> bool {
    job.deadline_ms.is_some_and(|deadline| deadline <= now.wall)
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
