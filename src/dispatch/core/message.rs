//! What goes into the core and what comes out: events, commands, and the end of a call.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::WallMs;
use crate::job::{Job, JobState};
use crate::outcome::{Outcome, Ruling};
use crate::pace::{GroupId, KeyId, Signal, Time};
use crate::store::{Claimed, JobPk, Record, Recorded, StoredResponse};

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
    /// What its body said of limits.
    pub told: Signal,
    /// What the call cost, where the body says so.
    pub cost: Option<u64>,
    /// What the configuration says of such an answer.
    pub ruling: Option<Ruling>,
}

impl Answered {
    /// The longest that it asks to wait.
    pub(super) fn retry_after(&self) -> Option<std::time::Duration> {
        let ruled = self.ruling.and_then(|ruling| ruling.retry_after);
        self.signal.retry_after.max(self.told.retry_after).max(ruled)
    }
}

/// How a call ended.
#[derive(Debug, Clone)]
pub enum CallEnd {
    /// With an answer.
    Answered(Box<Answered>),
    /// It surely was not sent.
    NotSent(String),
    /// The same, since the lease ended before it could leave: nobody's fault.
    Withheld,
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
    /// A call left only now: it had to wait for a connection.
    Left {
        /// Whose.
        pk: JobPk,
    },
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
    /// These groups are not held any more: what is pinned to them goes back to the store, and everything where nothing
    /// is held.
    Suspend(Vec<GroupId>),
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
    /// The provider seems to be down: nothing is sent for so long.
    ProviderDown(Duration),
    /// It answers again.
    ProviderUp,
}

/// Sending of a group is allowed until then, and for so many calls: what a lease grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Nothing is sent from then on.
    pub until: Time,
    /// Nor when so many calls were sent.
    pub calls: u64,
    /// Nor while so many are open.
    pub open: u64,
}

impl CallEnd {
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Answered(answer) => Some(answer.response.status),
            _ => None,
        }
    }

    pub(super) fn response(self) -> Option<StoredResponse> {
        match self {
            Self::Answered(answer) => Some(answer.response),
            _ => None,
        }
    }

    pub(super) fn error(&self, outcome: Outcome) -> Option<String> {
        let mut text = match self {
            Self::Answered(_) if outcome == Outcome::Success => return None,
            Self::Answered(answer) => {
                let body = String::from_utf8_lossy(&answer.response.body[..answer.response.body.len().min(200)]);
                format!("status {}: {}", answer.response.status, body.replace(char::is_control, " ").trim())
            }
            Self::NotSent(text) | Self::Lost(text) | Self::Impossible(text) => text.clone(),
            Self::Withheld => return None,
        };
        if text.len() > ERROR_BYTES_MAX {
            let end = (0..=ERROR_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
        Some(text)
    }
}
