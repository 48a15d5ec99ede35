//! Limits, budgets, key choice and signals: how calls leave at exactly the allowed rate.
//!
//! Pure code: no clock, no I/O, no randomness; time is an argument. What each mode promises and why is told in
//! `docs/pacing.md`. Where to look:
//!
//! | file | idea |
//! |---|---|
//! | `spec` | what is declared about a provider |
//! | `ask` | what a job asks for, permits and flights |
//! | `pool` | acquire, depart, answer, finish: the story of one call |
//! | `states` | pausing, parking, setting aside, probing |
//! | `orders` | what operators say, apart from what is learnt |
//! | `line` | the waiting jobs: lanes, reservations |
//! | `choice`, `shelf` | which key, among many |
//! | `group` | what one dispatcher must hold to pace it alone |
//! | `bank`, `limit`, `slot` | the books: every limit, and when it has room |
//! | `window`, `bucket`, `smooth`, `gate` | one algorithm each, on `calls` (in flight), `gcra`, `counter`, `edge` |
//! | `period` | calendar quotas: the caller's calendar |
//! | `signal`, `learn` | what responses say, and what it does |
//! | `probe`, `search`, `told` | limits that nobody declared: found out, or told by answers |
//! | `spread` | delays seen, for `balanced` |
//! | `saved` | what outlives the process |
//! | `snapshot` | the state for metrics and people |
//!
//! A call's way: [`Line::next`] (or [`Pool::acquire`]) → [`Permit`] → [`Pool::depart`] → [`Flight`] →
//! [`Pool::first_byte`] → [`Pool::finish`].

mod ask;
mod bank;
mod bucket;
mod calls;
mod choice;
mod counter;
mod edge;

mod gate;
mod gcra;
mod group;
mod keys;
mod learn;
mod limit;
mod line;
mod orders;
mod period;
mod pool;
mod probe;
mod saved;
mod search;
mod shelf;
mod signal;
mod slot;
mod smooth;
mod snapshot;
mod spec;
mod spread;
mod states;
mod time;
mod told;
mod window;

pub use ask::{Acquire, Ask, BudgetId, Flight, KeyId, Permit, Pin, Routes, Why};
pub use edge::Edge;
pub use group::{GroupId, Hold};
pub use line::{Line, Next, Ticket, Wait};
pub use orders::Word;
pub use period::{Place, QuotaPeriod};
pub use pool::{Impossible, Pool};
pub use saved::{Left, Saved, SavedLimit, SavedProbe, SavedState, Since};
pub use signal::{Family, Reading, Signal, Unit};
pub use snapshot::{
    BudgetSnapshot, BudgetState, KeySnapshot, KeyState, LimitUse, PoolSnapshot, ProbeSnapshot, ProbeState,
};
pub use spec::{
    Algorithm, BadSpec, BudgetSpec, KeySpec, LaneSpec, LimitSpec, MAX_AMOUNT, MAX_PERIOD, MAX_ROUTES, Measure,
    PoolSpec, Reset, RouteSpec, Safety,
};
pub use time::Time;
