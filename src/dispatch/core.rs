//! The dispatcher of one provider without I/O: time and random numbers are arguments, so that the
//! same code runs for real and under virtual time.
//!
//! ```text
//! claimed ─▶ in line ─▶ permit ─▶ (at_most_once: committed as started) ─▶ call ─▶ outcome ─▶ record
//!               ▲                                                            │
//!               └───────────────── not its fault: the next slot ◀────────────┘
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::WallMs;
use crate::config::Provider;
use crate::job::{DeadReason, Delivery, Job, JobState};
use crate::outcome::{self, Outcome, Reply};
use crate::pace::{
    Ask, BadSpec, Flight, KeyId, Line, Next as Slot, Permit, Pool, Saved, Signal, Since, Ticket, Time, Why,
};
use crate::retry::{Ended, Verdict};
use crate::store::{Attempt, Claimed, JobPk, Next, Record, Recorded, StoredResponse, WaitReason};

/// Calls open at once to one provider at most, whatever its limits allow.
pub const OPEN_MAX: usize = 1_000;
/// Jobs of one lane in line at most.
const LANE_MAX: u64 = 1_000;
/// Jobs are claimed for so long ahead.
const AHEAD: Duration = Duration::from_secs(2);
/// A job that cannot go for so long is handed back to the store.
const PATIENCE: Duration = Duration::from_secs(5);
/// A call that is open for so long is shown as `running`.
const MARK_AFTER: Duration = Duration::from_millis(50);
/// A key that was refused is tried again after so long.
const PROBE_AFTER: Duration = Duration::from_secs(5 * 60);
/// A quota that is used up is tried again after so long, where the provider does not say when.
const PARK_FOR: Duration = Duration::from_secs(60 * 60);
/// A rate limit without a stated end pauses for so long.
const PAUSE_FOR: Duration = Duration::from_secs(1);
/// A job whose key or budget is out of use looks again after so long at the latest.
const BLOCKED_FOR: Duration = Duration::from_secs(60);
/// Longest text of an error that is kept, in bytes.
const ERROR_BYTES_MAX: usize = 1_000;

/// Both clocks, read once an event.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For pacing.
    pub mono: Time,
    /// For everything that people and the store see.
    pub wall: WallMs,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answered {
    /// As it is kept: status, headers, body.
    pub response: StoredResponse,
    /// What its header fields said of limits.
    pub signal: Signal,
}

/// How a call ended.
#[derive(Debug, Clone)]
pub enum CallEnd {
    /// With an answer.
    Answered(Box<Answered>),
    /// It surely was not sent.
    NotSent(String),
    /// It may have been sent.
    Lost(String),
    /// It cannot be made at all.
    Impossible(String),
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Jobs were claimed for this dispatcher.
    Claimed(Vec<Claimed>),
    /// The first byte of an answer came.
    Head {
        /// Whose.
        pk: JobPk,
        /// What its header fields say of limits.
        signal: Box<Signal>,
    },
    /// A call ended.
    Ended {
        /// Whose.
        pk: JobPk,
        /// How.
        end: CallEnd,
    },
    /// A record was committed, or not.
    Recorded {
        /// Whose.
        pk: JobPk,
        /// What came of it.
        recorded: Recorded,
    },
    /// Somebody asked to cancel a job.
    Cancel(JobPk),
    /// No more jobs: what is in line goes back to the store.
    Drain,
    /// The lease is gone: what is in line goes back to the store.
    Suspend,
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Make this call, then say [`Event::Head`] and [`Event::Ended`].
    Call {
        /// Whose.
        pk: JobPk,
        /// What to call.
        job: Arc<Job>,
        /// With which key.
        key: KeyId,
    },
    /// Write this, then say [`Event::Recorded`].
    Record(Box<Record>),
    /// For the log and the counters.
    Note(Note),
}

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A call ended so, after so many milliseconds.
    Called(Outcome, i64),
    /// A job ended in that state.
    Finished(JobState),
    /// The provider refuses this key; it is set aside.
    KeyRefused(String),
    /// A key that was set aside works again.
    KeyWorks(String),
    /// The quota behind this key is used up.
    QuotaExhausted(String),
}

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
    Starting(Permit),
    /// Being sent.
    Open(Box<Open>),
    /// Its record is being committed; then it goes back in line (`true`) or is let go of.
    Recording { again: bool },
}

#[derive(Debug)]
struct Open {
    flight: Flight,
    sent: Now,
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

/// Sending is allowed until then, and for so many calls: what a lease grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Nothing is sent from then on.
    pub until: Time,
    /// Nor when so many calls were sent.
    pub calls: u64,
    /// Nor while so many are open.
    pub open: u64,
}

/// Whether jobs may wait in line here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doors {
    /// They may.
    Open,
    /// Not before the lease is back: whatever comes goes to the store.
    Suspended,
    /// Never again.
    Closed,
}

/// The dispatcher of one provider.
#[derive(Debug)]
pub struct Core {
    provider: Arc<Provider>,
    pool: Pool,
    line: Line<JobPk>,
    jobs: HashMap<JobPk, InHand>,
    in_line: Vec<usize>,
    deadlines: BTreeSet<(WallMs, JobPk)>,
    opened: VecDeque<(Time, JobPk)>,
    open: usize,
    doors: Doors,
    allowed: Option<Allowance>,
    sent: u64,
    next_slot: Option<Time>,
    commands: Vec<Command>,
}

impl Core {
    /// A dispatcher with nothing in hand.
    ///
    /// # Errors
    /// [`BadSpec`] where the limits cannot be paced.
    pub fn new(provider: Arc<Provider>, now: Time) -> Result<Self, BadSpec> {
        let pool = Pool::new(&provider.pool, now)?;
        let line = Line::new(&provider.pool.lanes);
        let in_line = vec![0; provider.pool.lanes.len()];
        Ok(Self {
            provider,
            pool,
            line,
            jobs: HashMap::new(),
            in_line,
            deadlines: BTreeSet::new(),
            opened: VecDeque::new(),
            open: 0,
            doors: Doors::Open,
            allowed: None,
            sent: 0,
            next_slot: None,
            commands: Vec::new(),
        })
    }

    /// Takes an event, and says what to do. `random` yields numbers in `[0, 1)`.
    pub fn handle(&mut self, event: Event, now: Now, random: &mut dyn FnMut() -> f64) {
        match event {
            Event::Claimed(jobs) => jobs.into_iter().for_each(|job| self.take_in(job, now)),
            Event::Head { pk, signal } => self.head(pk, &signal, now),
            Event::Ended { pk, end } => self.ended(pk, end, now, random),
            Event::Recorded { pk, recorded } => self.recorded(pk, recorded, now, random),
            Event::Cancel(pk) => self.cancel(pk, now),
            Event::Drain => self.shut(Doors::Closed, now),
            Event::Suspend => self.shut(Doors::Suspended, now),
            Event::Tick => {}
        }
    }

    /// Lets go what may go now, ends what is past its deadline, hands back what cannot go for
    /// long. To be called after one or several events; the commands are what to do now.
    pub fn advance(&mut self, now: Now) -> std::vec::Drain<'_, Command> {
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
        [self.next_slot, mark, deadline, patience].into_iter().flatten().min()
    }

    /// Nothing is sent beyond that; without any allowance everything may be.
    pub fn allow(&mut self, allowance: Allowance) {
        self.allowed = Some(allowance);
    }

    /// Calls that left since the last time this was asked.
    pub fn take_sent(&mut self) -> u64 {
        std::mem::take(&mut self.sent)
    }

    /// Begins anew with budgets that another process, or an earlier tenure, has spent from; only
    /// while nothing is in hand. `None`: nobody knows what was spent, so everything counts as used.
    ///
    /// # Errors
    /// [`BadSpec`] where the limits cannot be paced.
    pub fn inherit(&mut self, from: Option<(&Saved, Duration, Since)>, now: Time) -> Result<(), BadSpec> {
        self.pool = Pool::new(&self.provider.pool, now)?;
        self.line = Line::new(&self.provider.pool.lanes);
        match from {
            Some((saved, elapsed, since)) => self.pool.restore(saved, elapsed, since, now),
            None => self.pool.assume_spent(now),
        }
        Ok(())
    }

    /// The lease is back: jobs may wait in line again.
    pub fn resume(&mut self) {
        if self.doors == Doors::Suspended {
            self.doors = Doors::Open;
        }
    }

    /// What was spent, for whoever comes next.
    pub fn save(&mut self, now: Time) -> Saved {
        self.pool.save(now)
    }

    /// Whether anything may be sent now.
    fn may_send(&self, now: Time) -> bool {
        let open = self.open as u64;
        self.allowed.is_none_or(|allowed| now < allowed.until && allowed.calls > 0 && open < allowed.open)
    }

    /// How many jobs of each lane should wait in line: what the budgets allow in the next seconds.
    pub fn target(&mut self, now: Now) -> usize {
        let held = self.allowed.is_none_or(|allowed| now.mono < allowed.until);
        if self.doors != Doors::Open || !held { 0 } else { self.allowance(now.mono) }
    }

    /// What the budgets allow in the next seconds, whoever holds them.
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

    /// Whether that job is in hand.
    pub fn holds(&self, pk: JobPk) -> bool {
        self.jobs.contains_key(&pk)
    }

    /// The keys, budgets and limits behind it.
    pub fn pool(&self) -> &Pool {
        &self.pool
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
            return self.wait(
                pk,
                WaitReason::NoKey,
                now.wall.saturating_add(millis(BLOCKED_FOR)),
                Duration::ZERO,
                None,
                now,
            );
        }
        if let Some(deadline) = job.deadline_ms {
            self.deadlines.insert((deadline, pk));
        }
        self.line_up(pk, now);
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
        if self.doors != Doors::Open {
            return self.record(pk, Next::Release, None, false, now);
        }
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
        while self.open < OPEN_MAX && self.may_send(now.mono) {
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
        if held.job.delivery == Delivery::AtMostOnce {
            held.stage = Stage::Starting(permit);
            return self.push_record(pk, Next::Running, None, now);
        }
        self.send(pk, permit, Mark::Unmarked, now);
    }

    fn send(&mut self, pk: JobPk, permit: Permit, mark: Mark, now: Now) {
        let key = permit.key();
        self.sent += 1;
        if let Some(allowed) = &mut self.allowed {
            allowed.calls = allowed.calls.saturating_sub(1);
        }
        let flight = self.pool.depart(permit, now.mono);
        let Some(held) = self.jobs.get_mut(&pk) else { return self.pool.unsent(flight, now.mono) };
        held.renew();
        held.claimed.attempts += 1;
        held.claimed.first_attempt_ms.get_or_insert(now.wall);
        held.stage = Stage::Open(Box::new(Open { flight, sent: now, mark, ended: None }));
        self.open += 1;
        if mark == Mark::Unmarked {
            self.opened.push_back((now.mono, pk));
        }
        self.commands.push(Command::Call { pk, job: Arc::clone(&held.job), key });
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

    /// What the end of a call means for its key, its budget and its job.
    fn conclude(&mut self, pk: JobPk, open: Open, end: CallEnd, now: Now, random: &mut dyn FnMut() -> f64) {
        self.open -= 1;
        let Some(held) = self.jobs.get(&pk) else { return };
        let Open { flight, sent, .. } = open;
        let (key, probe) = (flight.key(), flight.is_probe());
        let reply = match &end {
            CallEnd::Answered(answer) => Reply::Answered {
                status: answer.response.status,
                body: &answer.response.body,
                nothing_left: answer.signal.readings.iter().any(|reading| reading.remaining == Some(0)),
            },
            CallEnd::Lost(_) => Reply::Lost,
            CallEnd::NotSent(_) | CallEnd::Impossible(_) => Reply::NotSent,
        };
        let outcome = outcome::classify(reply);
        let retry_after = match &end {
            CallEnd::Answered(answer) => answer.signal.retry_after,
            _ => None,
        };
        let call = Ended {
            outcome,
            executed: outcome::may_have_been_executed(outcome, reply),
            delivery: held.job.delivery,
            failures: held.claimed.failures,
            previous: held.claimed.backoff,
            retry_after,
            first_ms: held.claimed.first_attempt_ms,
            now_ms: now.wall,
        };
        let policy = self.provider.retry.with(&held.job.retry);
        let verdict = match &end {
            CallEnd::Impossible(_) => Verdict::Dead(DeadReason::Permanent),
            _ => policy.verdict(&call, random()),
        };
        let latency_ms = millis(now.mono.since(sent.mono));
        let attempt = Attempt {
            n: held.claimed.attempts,
            at_ms: sent.wall,
            key: self.pool.key_label(key).to_owned(),
            status: end.status(),
            outcome: outcome.as_str().to_owned(),
            latency_ms,
            error: end.error(outcome),
        };
        match &end {
            CallEnd::NotSent(_) | CallEnd::Impossible(_) => self.pool.unsent(flight, now.mono),
            CallEnd::Answered(_) | CallEnd::Lost(_) => self.pool.finish(flight, now.mono, None),
        }
        self.judge_key(key, probe, outcome, &end, now);
        self.commands.push(Command::Note(Note::Called(outcome, latency_ms)));
        self.apply(pk, verdict, attempt, end, now);
    }

    /// A bad key is set aside, an empty budget parked; siblings with a budget of their own go on.
    fn judge_key(&mut self, key: KeyId, probe: bool, outcome: Outcome, end: &CallEnd, now: Now) {
        let label = self.pool.key_label(key).to_owned();
        let CallEnd::Answered(answer) = end else { return };
        let told = answer.signal.retry_after;
        match outcome {
            Outcome::Credential => {
                self.pool.disable_key(key, Some(now.mono + PROBE_AFTER));
                self.commands.push(Command::Note(Note::KeyRefused(label)));
            }
            Outcome::QuotaExhausted => {
                if let Some(budget) = self.pool.budget_of(key) {
                    self.pool.park_budget(budget, Some(now.mono + told.unwrap_or(PARK_FOR)));
                }
                self.commands.push(Command::Note(Note::QuotaExhausted(label)));
            }
            // A 429 was understood with the first byte; here the body gave the reason.
            Outcome::RateLimited if answer.response.status != 429 => {
                if let Some(budget) = self.pool.budget_of(key) {
                    self.pool.pause_budget(budget, now.mono + told.unwrap_or(PAUSE_FOR));
                }
            }
            Outcome::Success if probe => {
                self.pool.enable_key(key);
                self.commands.push(Command::Note(Note::KeyWorks(label)));
            }
            _ => {}
        }
    }

    fn apply(&mut self, pk: JobPk, verdict: Verdict, attempt: Attempt, end: CallEnd, now: Now) {
        let error = attempt.error.clone();
        match verdict {
            Verdict::NextSlot => self.record(pk, Next::Keep, Some(attempt), true, now),
            Verdict::Backoff(backoff) => {
                self.count_failure(pk);
                let due_ms = now.wall.saturating_add(millis(backoff));
                self.wait(pk, WaitReason::Backoff, due_ms, backoff, Some(attempt), now);
            }
            Verdict::Succeeded => self.end(pk, JobState::Succeeded, None, None, Some(attempt), end.response(), now),
            Verdict::Dead(reason) => {
                self.count_failure(pk);
                self.end(pk, JobState::Dead, Some(reason), error, Some(attempt), end.response(), now);
            }
        }
    }

    fn count_failure(&mut self, pk: JobPk) {
        if let Some(held) = self.jobs.get_mut(&pk) {
            held.claimed.failures = held.claimed.failures.saturating_add(1);
        }
    }

    fn recorded(&mut self, pk: JobPk, recorded: Recorded, now: Now, random: &mut dyn FnMut() -> f64) {
        let may_send = self.may_send(now.mono);
        let Some(held) = self.jobs.get_mut(&pk) else { return };
        match std::mem::replace(&mut held.stage, Stage::Recording { again: false }) {
            Stage::Starting(permit) => match recorded {
                // The lease may have ended while this was being committed, or the job's time.
                Recorded::Done if !may_send || is_past_deadline(&held.job, now) => {
                    self.pool.abandon(permit, now.mono);
                    self.record(pk, Next::Release, None, false, now);
                }
                Recorded::Done => self.send(pk, permit, Mark::Marked, now),
                Recorded::Superseded => {
                    self.pool.abandon(permit, now.mono);
                    self.forget(pk, now);
                }
                Recorded::CancelRequested => {
                    self.pool.abandon(permit, now.mono);
                    self.finish(pk, JobState::Cancelled, None, None, now);
                }
            },
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
    fn shut(&mut self, doors: Doors, now: Now) {
        if self.doors != Doors::Closed {
            self.doors = doors;
        }
        let in_line: Vec<JobPk> =
            self.jobs.iter().filter(|(_, held)| matches!(held.stage, Stage::InLine(_))).map(|(pk, _)| *pk).collect();
        for pk in in_line {
            self.step_out(pk);
            self.record(pk, Next::Release, None, false, now);
        }
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
            let span = until.map_or(BLOCKED_FOR, |until| until.since(now.mono).min(BLOCKED_FOR));
            let due_ms = now.wall.saturating_add(millis(span));
            if !self.step_out(pk) {
                continue;
            }
            let gave_up = self.jobs.get(&pk).is_some_and(|held| {
                self.provider.retry.with(&held.job.retry).is_over(held.claimed.first_attempt_ms, now.wall)
            });
            if gave_up {
                let error = format!("no usable key for too long ({})", reason.as_str());
                self.finish(pk, JobState::Dead, Some(DeadReason::GaveUp), Some(error), now);
            } else {
                self.wait(pk, reason, due_ms, Duration::ZERO, None, now);
            }
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

fn is_past_deadline(job: &Job, now: Now) -> bool {
    job.deadline_ms.is_some_and(|deadline| deadline <= now.wall)
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

impl CallEnd {
    fn status(&self) -> Option<u16> {
        match self {
            Self::Answered(answer) => Some(answer.response.status),
            _ => None,
        }
    }

    fn response(self) -> Option<StoredResponse> {
        match self {
            Self::Answered(answer) => Some(answer.response),
            _ => None,
        }
    }

    fn error(&self, outcome: Outcome) -> Option<String> {
        let mut text = match self {
            Self::Answered(_) if outcome == Outcome::Success => return None,
            Self::Answered(answer) => {
                let body = String::from_utf8_lossy(&answer.response.body[..answer.response.body.len().min(200)]);
                format!("status {}: {}", answer.response.status, body.replace(char::is_control, " ").trim())
            }
            Self::NotSent(text) | Self::Lost(text) | Self::Impossible(text) => text.clone(),
        };
        if text.len() > ERROR_BYTES_MAX {
            let end = (0..=ERROR_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::job::{Given, JobState};

    fn core() -> Core {
        let text = "[[provider]]\nname = \"p\"\nbase_url = \"http://x\"\nretry = { base = \"1s\", jitter = \"none\" }\n\
                    limits = [ { concurrency = 1 } ]";
        let config = Config::parse(text, None, &[]).expect("valid");
        Core::new(Arc::new(config.providers[0].clone()), Time::ZERO).expect("paceable")
    }

    fn claimed(pk: JobPk, epoch: i64, run: u32) -> Claimed {
        let envelope = format!(r#"{{"id":"j{pk}","provider":"p","request":{{"path":"/"}}}}"#);
        let text = "[[provider]]\nname = \"p\"\nbase_url = \"http://x\"";
        let catalog = Config::parse(text, None, &[]).expect("valid").catalog();
        let job = Job::parse(envelope.as_bytes(), &Given::default(), &catalog).expect("valid");
        let (attempts, failures) = (0, 0);
        Claimed {
            pk,
            epoch,
            run,
            attempts,
            failures,
            first_attempt_ms: None,
            backoff: Duration::ZERO,
            created_ms: 0,
            job,
        }
    }

    /// Hands an event in, some milliseconds later than the last one, and takes the commands out: the calls,
    /// and the records.
    fn step(core: &mut Core, event: Event) -> (Vec<JobPk>, Vec<Record>) {
        thread_local!(static STEP: std::cell::Cell<u64> = const { std::cell::Cell::new(1) });
        let mono = Time::from_nanos(10_000_000 * STEP.replace(STEP.get() + 1));
        let now = Now { mono, wall: 1_000 };
        core.handle(event, now, &mut || 0.5);
        let (mut calls, mut records) = (Vec::new(), Vec::new());
        for command in core.advance(now) {
            match command {
                Command::Call { pk, .. } => calls.push(pk),
                Command::Record(record) if !matches!(record.next, Next::Running) => records.push(*record),
                Command::Record(_) | Command::Note(_) => {}
            }
        }
        (calls, records)
    }

    fn answer(core: &mut Core, pk: JobPk, status: u16) -> (Vec<JobPk>, Vec<Record>) {
        step(core, Event::Head { pk, signal: Box::default() });
        step(core, Event::Ended { pk, end: answered(status) })
    }

    fn answered(status: u16) -> CallEnd {
        let body = bytes::Bytes::new();
        let response = StoredResponse { status, headers: "{}".to_owned(), content_type: None, body, truncated: false };
        CallEnd::Answered(Box::new(Answered { response, signal: Signal::default() }))
    }

    /// A backoff that is over at once: the job is due again before this dispatcher has heard that its
    /// record is committed.
    #[test]
    fn a_job_that_is_claimed_again_before_its_record_is_answered_is_called_again() {
        let mut core = core();
        assert_eq!(step(&mut core, Event::Claimed(vec![claimed(7, 1, 1)])).0, [7]);
        let (_, records) = answer(&mut core, 7, 503);
        assert!(matches!(records[0].next, Next::Wait { .. }));
        let (calls, _) = step(&mut core, Event::Claimed(vec![claimed(7, 2, 1)]));
        assert!(calls.is_empty(), "one thing after the other");
        let (calls, _) = step(&mut core, Event::Recorded { pk: 7, recorded: Recorded::Done });
        assert_eq!(calls, [7], "nobody else has it");
        let (_, records) = answer(&mut core, 7, 200);
        assert_eq!(records[0].epoch, 2);
        step(&mut core, Event::Recorded { pk: 7, recorded: Recorded::Done });
        assert!(core.is_idle());
    }

    #[test]
    fn a_job_that_was_let_go_of_and_claimed_again_while_it_is_sent_is_not_sent_twice() {
        let mut core = core();
        step(&mut core, Event::Claimed(vec![claimed(7, 1, 1), claimed(8, 1, 1)]));
        let again = vec![claimed(7, 2, 1), claimed(8, 2, 1), claimed(7, 1, 1)];
        assert!(step(&mut core, Event::Claimed(again)).0.is_empty(), "7 is being sent, 8 waits for it");
        let (calls, records) = answer(&mut core, 7, 200);
        assert_eq!((calls, records[0].epoch), (vec![8], 2), "its end counts for the claim that holds");
        let (_, records) = answer(&mut core, 8, 200);
        assert_eq!(records[0].epoch, 2);
        assert!(matches!(records[0].next, Next::Finish { state: JobState::Succeeded, .. }));
    }

    #[test]
    fn a_replay_that_is_claimed_before_the_end_of_the_last_run_is_heard_of_is_a_new_run() {
        let mut core = core();
        step(&mut core, Event::Claimed(vec![claimed(7, 1, 1)]));
        answer(&mut core, 7, 404);
        assert!(step(&mut core, Event::Claimed(vec![claimed(7, 2, 2)])).0.is_empty());
        assert_eq!(step(&mut core, Event::Recorded { pk: 7, recorded: Recorded::Done }).0, [7]);
        let (_, records) = answer(&mut core, 7, 200);
        assert_eq!((records[0].epoch, records[0].run), (2, 2));
    }
}
