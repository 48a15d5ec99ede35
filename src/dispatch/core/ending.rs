//! The end of a call: what it means for its key, its budget and its job.

use super::groups::Step;
use super::message::{CallEnd, Command, Note, Now};
use super::{Core, Open, millis};
use crate::job::{DeadReason, JobState};
use crate::outcome::{self, Outcome, Reply};
use crate::pace::{KeyId, Time};
use crate::retry::{Ended, Verdict};
use crate::store::{Attempt, JobPk, Next, WaitReason};
use std::time::Duration;

/// A key that was refused is tried again after so long.
const PROBE_AFTER: Duration = Duration::from_secs(5 * 60);
/// A quota that is used up is tried again after so long, where the provider does not say when.
const PARK_FOR: Duration = Duration::from_secs(60 * 60);

impl Core {
    /// What the end of a call means for its key, its budget and its job.
    pub(super) fn conclude(&mut self, pk: JobPk, open: Open, end: CallEnd, now: Now, random: &mut dyn FnMut() -> f64) {
        self.open -= 1;
        let Open { flight, pass, sent, secret, .. } = open;
        let (key, probe) = (flight.key(), flight.is_probe());
        self.count(key, Step::Ends, now.mono);
        if matches!(end, CallEnd::Withheld) {
            // Whoever has the lease now makes the call.
            self.pool.unsent(flight, now.mono);
            self.note_health(pass, None, now);
            return self.record(pk, Next::Release, None, false, now);
        }
        let Some(held) = self.jobs.get(&pk) else { return self.note_health(pass, None, now) };
        let reply = match &end {
            CallEnd::Answered(answer) => Reply::Answered {
                status: answer.response.status,
                body: &answer.response.body,
                nothing_left: answer.signal.readings.iter().any(|reading| reading.remaining == Some(0)),
                throttled: answer.told.limited,
            },
            CallEnd::Lost(_) => Reply::Lost,
            CallEnd::NotSent(_) | CallEnd::Withheld | CallEnd::Impossible(_) => Reply::NotSent,
        };
        let ruling = match &end {
            CallEnd::Answered(answer) => answer.ruling.map(|ruling| ruling.outcome),
            _ => None,
        };
        let (outcome, executed) = outcome::under(ruling, reply);
        let retry_after = match &end {
            CallEnd::Answered(answer) => answer.retry_after(),
            _ => None,
        };
        let call = Ended {
            outcome,
            executed,
            delivery: held.job.delivery,
            failures: held.claimed.failures,
            previous: held.claimed.backoff,
            retry_after,
            first_ms: held.claimed.first_attempt_ms,
            now_ms: now.wall,
        };
        let policy = self.retry_policy(&held.job);
        if outcome == Outcome::Success && held.claimed.failures > 0 {
            self.retries.give_back();
        }
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
            CallEnd::NotSent(_) | CallEnd::Withheld | CallEnd::Impossible(_) => self.pool.unsent(flight, now.mono),
            CallEnd::Answered(answer) => {
                self.pool.body_told(&flight, now.mono, &answer.told);
                self.pool.finish(flight, now.mono, answer.cost);
            }
            CallEnd::Lost(_) => self.pool.finish(flight, now.mono, None),
        }
        // What is said of a secret that was replaced meanwhile is not said of the next one.
        if secret == self.pool.secret_of(key) {
            self.judge_key(key, (probe, sent.mono), outcome, &end, now);
        }
        self.commands.push(Command::Note(Note::Called(outcome, latency_ms)));
        let impossible = matches!(end, CallEnd::Impossible(_));
        self.note_health(pass, (!impossible).then_some(outcome), now);
        self.apply(pk, verdict, attempt, end, now);
    }

    /// A bad key is set aside, an empty budget parked; siblings with a budget of their own go on.
    fn judge_key(&mut self, key: KeyId, (probe, sent): (bool, Time), outcome: Outcome, end: &CallEnd, now: Now) {
        let label = self.pool.key_label(key).to_owned();
        let CallEnd::Answered(answer) = end else { return };
        let told = answer.retry_after();
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
            // What the head of the answer tells was understood with the first byte; here the body gave the reason.
            Outcome::RateLimited if !answer.signal.limited => {
                self.pool.throttled(key, sent, now.mono, told);
            }
            // Whatever else is wrong with the call: the key was accepted.
            Outcome::Success | Outcome::Permanent | Outcome::Redirect if probe => {
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
}
