//! How long will it take? The dispatcher's own core under virtual time.
//!
//! | file | idea |
//! |---|---|
//! | `work` | what is to be done, and what is assumed |
//! | `allows`, `ceiling` | arithmetic: what each limit and all of them together let through, and which binds |
//! | `drive` | virtual time around the dispatcher's core |
//! | `world`, `supply` | jobs that come, a store that commits, a provider that answers |
//! | `run` | one simulation, as long as it is worth it |
//! | `forecast` | what follows from it: [`plan`] |
//! | `answer` | what a plan says |
//! | `policies` | what holds for one call, and which policies are risky: [`explain`] |
//! | `review` | what a configuration promises and risks: [`review()`] |
//! | `dice` | random numbers that can be repeated |

mod allows;
mod answer;
mod ceiling;
mod dice;
mod drive;
mod forecast;
mod policies;
mod review;
mod run;
mod supply;
mod work;
mod world;

pub use allows::{Allows, Calls, in_words};
pub use answer::{Assumed, Backlog, Basis, Intervals, LanePlan, LimitPlan, MoreKeys, Plan, Waits};
pub use ceiling::Binding;
pub use dice::Dice;
pub use drive::{Agenda, Drive, World};
pub use forecast::{plan, plan_within};
pub use policies::{Explanation, explain};
pub use review::{Expected, Kept, Review, Warning, review};
pub use work::{Amount, JOBS_MAX, RATE_MAX, SPAN_MAX, Work};

use crate::pace::BadSpec;

/// Why nothing can be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The lane does not exist.
    #[error("there is no lane {name:?}; lanes of this provider: {}", known.join(", "))]
    Lane {
        /// Which.
        name: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// The jobs are not valid.
    #[error("{0}")]
    Job(String),
    /// Jobs of that cost can never be sent.
    #[error("no such job can ever be sent: {0}")]
    Impossible(String),
    /// The limits cannot be paced.
    #[error(transparent)]
    Limits(#[from] BadSpec),
}
