//! The state machine of a job, as one total and pure function. The diagram is in
//! `docs/architecture.md`; a test keeps the two alike.

use std::fmt;

/// Where a job is. The last four are terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum JobState {
    /// Accepted, held only by pacing.
    Queued,
    /// Not before its next attempt: a start time, a backoff, a pause, no usable key.
    Waiting,
    /// Being sent.
    Running,
    /// The provider did it.
    Succeeded,
    /// Given up, with a reason; kept in the dead letters.
    Dead,
    /// Its deadline passed first.
    Expired,
    /// Withdrawn before it was sent.
    Cancelled,
}

impl JobState {
    /// Every state, in the order of the contract.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Waiting, Self::Running, Self::Succeeded, Self::Dead, Self::Expired, Self::Cancelled];

    /// The name in the API, the events and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }

    /// Nothing but a replay leaves such a state.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Expired | Self::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobEvent {
    /// It must wait for a time: start time, backoff, pause, no key.
    Postpone,
    /// Its time has come; or, after a refusal that was not its fault, it may go at the next permit.
    Due,
    /// It got its permit and is being sent.
    Send,
    /// The provider answered with success.
    Succeed,
    /// It is given up.
    Die,
    /// Its deadline passed while it was not being sent.
    Expire,
    /// Somebody withdrew it.
    Cancel,
    /// Its dispatcher let go of it (shutdown) or died.
    Release,
    /// It is run again from the dead letters.
    Replay,
}

impl JobEvent {
    /// Every event.
    pub const ALL: [Self; 9] = [
        Self::Postpone,
        Self::Due,
        Self::Send,
        Self::Succeed,
        Self::Die,
        Self::Expire,
        Self::Cancel,
        Self::Release,
        Self::Replay,
    ];
}

/// An event that cannot happen in that state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {state} cannot take {event:?}")]
pub struct IllegalEvent {
    /// The state the job is in.
    pub state: JobState,
    /// The event that does not fit.
    pub event: JobEvent,
}

/// The state after `event`.
///
/// # Errors
/// [`IllegalEvent`] for every pair that the diagram does not show.
pub const fn transition(state: JobState, event: JobEvent) -> Result<JobState, IllegalEvent> {
    use JobEvent as E;
    use JobState as S;
    match (state, event) {
        (S::Queued | S::Waiting | S::Running, E::Postpone) => Ok(S::Waiting),
        (S::Waiting | S::Running, E::Due) | (S::Queued | S::Running, E::Release) => Ok(S::Queued),
        (S::Queued, E::Send) => Ok(S::Running),
        (S::Running, E::Succeed) => Ok(S::Succeeded),
        (S::Queued | S::Waiting | S::Running, E::Die) => Ok(S::Dead),
        (S::Queued | S::Waiting | S::Running, E::Expire) => Ok(S::Expired),
        (S::Queued | S::Waiting, E::Cancel) => Ok(S::Cancelled),
        (S::Dead, E::Replay) => Ok(S::Queued),
        _ => Err(IllegalEvent { state, event }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for state in JobState::ALL {
            assert_eq!(JobState::from_name(state.as_str()), Some(state));
        }
        assert_eq!(JobState::from_name("done"), None);
    }

    #[test]
    fn a_terminal_state_is_left_only_by_replaying_a_dead_letter() {
        for state in JobState::ALL.into_iter().filter(|s| s.is_terminal()) {
            for event in JobEvent::ALL {
                let left = transition(state, event).is_ok();
                assert_eq!(left, state == JobState::Dead && event == JobEvent::Replay, "{state} {event:?}");
            }
        }
    }

    #[test]
    fn a_job_that_is_being_sent_cannot_be_cancelled() {
        assert!(transition(JobState::Running, JobEvent::Cancel).is_err());
    }

    #[test]
    fn only_a_queued_job_is_sent_and_only_a_sent_job_succeeds() {
        for state in JobState::ALL {
            assert_eq!(transition(state, JobEvent::Send).is_ok(), state == JobState::Queued);
            assert_eq!(transition(state, JobEvent::Succeed).is_ok(), state == JobState::Running);
        }
    }

    /// The diagram in the documentation is drawn by hand; its arrows must be this function's.
    #[test]
    fn the_diagram_in_the_documentation_shows_exactly_these_transitions() {
        let text = include_str!("../../docs/architecture.md");
        let mut drawn: Vec<(String, String, String)> = text
            .lines()
            .filter_map(|line| {
                let (from, rest) = line.trim().split_once(" --> ")?;
                let (to, event) = rest.split_once(": ")?;
                JobState::from_name(from)?;
                Some((from.to_owned(), to.to_owned(), event.to_owned()))
            })
            .flat_map(|(from, to, events)| {
                events.split(", ").map(|e| (from.clone(), to.clone(), e.to_owned())).collect::<Vec<_>>()
            })
            .collect();
        let mut coded: Vec<(String, String, String)> = JobState::ALL
            .into_iter()
            .flat_map(|state| JobEvent::ALL.map(|event| (state, event)))
            .filter_map(|(state, event)| {
                let to = transition(state, event).ok()?;
                Some((state.to_string(), to.to_string(), format!("{event:?}").to_lowercase()))
            })
            .collect();
        drawn.sort();
        coded.sort();
        assert_eq!(drawn, coded);
    }
}
