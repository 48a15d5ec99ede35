//! What the dispatcher does while its provider is down: nothing is sent but a few probes, jobs wait in the store, and
//! retries stay a share of the calls.

use super::message::{Command, Note, Now};
use super::{Core, Stage};
use crate::breaker::{Change, Health, Pass};
use crate::outcome::Outcome;
use crate::pace::Time;
use crate::store::{JobPk, WaitReason};

impl Core {
    /// Whether another call may leave, as far as the provider's health goes.
    pub(super) fn provider_is_up(&mut self, now: Time) -> bool {
        self.breaker.room(now).is_none_or(|room| room > 0)
    }

    /// How the breaker stands, where it is not closed.
    pub fn breaker_trouble(&self) -> Option<&'static str> {
        Some(self.breaker.name()).filter(|name| *name != "closed")
    }

    /// A call that had the breaker's pass is over; `None`: it never left, and says nothing.
    pub(super) fn note_health(&mut self, pass: Pass, outcome: Option<Outcome>, now: Now) {
        match self.breaker.ended(pass, outcome.map(health), now.mono) {
            Some(Change::Opened(until)) => {
                self.commands.push(Command::Note(Note::ProviderDown(until.since(now.mono))));
                self.leave_line(until, now);
            }
            Some(Change::Closed) => self.commands.push(Command::Note(Note::ProviderUp)),
            None => {}
        }
    }

    /// Everything in line waits in the store until the provider is tried again.
    fn leave_line(&mut self, until: Time, now: Now) {
        let in_line = self.jobs.iter().filter(|(_, held)| matches!(held.stage, Stage::InLine(_)));
        let in_line: Vec<JobPk> = in_line.map(|(pk, _)| *pk).collect();
        for pk in in_line {
            if self.step_out(pk) {
                self.wait_for_key(pk, WaitReason::Breaker, Some(until), now);
            }
        }
    }
}

/// Whoever answers is up, even if it refuses.
fn health(outcome: Outcome) -> Health {
    match outcome {
        Outcome::Transient | Outcome::Unknown => Health::Down,
        Outcome::Success
        | Outcome::RateLimited
        | Outcome::QuotaExhausted
        | Outcome::Credential
        | Outcome::Redirect
        | Outcome::Permanent => Health::Up,
    }
}
