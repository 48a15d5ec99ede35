//! Drains the jobs of one provider at the rate its limits allow.
//!
//! [`core`] is the story without I/O: events in (a claimed job, an answer, a commit), commands out
//! (make this call, write this record). `shell` executes it for real; `intake` is the door
//! through which the inlet hands jobs in. Who may dispatch which pacing groups is decided in `lease`,
//! `tenures` and `spread`, and done in `keeper`; what operators want is learnt in `orders` and `cancels`; how things
//! stand is told in `tell`.

mod call;
mod cancels;
mod claims;
pub mod core;
mod intake;
mod keeper;
mod keyring;
mod lease;
mod orders;
mod record;
mod report;
mod shell;
mod spread;
mod strays;
mod tell;
mod tenures;
mod view;

pub use intake::{Closed, Intake};
pub use shell::{DispatchError, Dispatcher, DispatcherParts};
