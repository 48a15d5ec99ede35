//! Why a job or a message is given up.

/// Why a message or a job is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// Its failure attempts are spent.
    AttemptsExhausted,
    /// The provider refused it for good.
    Permanent,
    /// It may have been executed, and may be sent at most once.
    OutcomeUnknown,
    /// Not a job: the raw message is kept.
    Malformed,
    /// No provider by that name.
    Unroutable,
    /// The broker gave it up.
    Rejected,
    /// Another job has its id.
    Conflict,
    /// No limit will ever allow its cost.
    Impossible,
    /// It waited longer than its policy allows.
    GaveUp,
}

impl DeadReason {
    /// Every reason.
    pub const ALL: [Self; 9] = [
        Self::AttemptsExhausted,
        Self::Permanent,
        Self::OutcomeUnknown,
        Self::Malformed,
        Self::Unroutable,
        Self::Rejected,
        Self::Conflict,
        Self::Impossible,
        Self::GaveUp,
    ];

    /// The name in the API and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Permanent => "permanent",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Malformed => "malformed",
            Self::Unroutable => "unroutable",
            Self::Rejected => "rejected",
            Self::Conflict => "conflict",
            Self::Impossible => "impossible",
            Self::GaveUp => "gave_up",
        }
    }
}
