//! What can go wrong when a simulator is started or waited for.

use std::net::SocketAddr;
use std::time::Duration;

/// A simulator could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// An option makes no sense.
    #[error("{field}: {problem}")]
    Option {
        /// The option, by its name in the options struct.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The address could not be bound.
    #[error("cannot listen on {addr}")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What was waited for did not happen in time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("waited {waited:?} for {wanted} {what}, saw {seen}")]
pub struct WaitTimeout {
    /// What was counted.
    pub what: &'static str,
    /// How many were wanted.
    pub wanted: u64,
    /// How many there were at the end.
    pub seen: u64,
    /// How long it was waited.
    pub waited: Duration,
}
