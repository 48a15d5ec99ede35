//! What a job asks for, and what it is given: permits and flights.

use super::Time;
use super::spec::MAX_ROUTES;

/// Number of a key in its pool, in the order of declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

/// Number of a budget in its pool: the declared ones first, in their order, then one for each key without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BudgetId(pub u32);

/// A job that may use one key or one budget only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pin {
    /// This key.
    Key(KeyId),
    /// Any key of this budget.
    Budget(BudgetId),
}

/// The routes that match a call: a set of indices into [`super::PoolSpec::routes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Routes(u128);

impl Routes {
    /// No route.
    pub const NONE: Routes = Routes(0);

    /// This set and one route more; an index that no route can have is left out.
    #[must_use]
    pub fn with(self, route: usize) -> Routes {
        if route < MAX_ROUTES { Routes(self.0 | 1 << route) } else { self }
    }

    /// Whether the route is among them.
    pub fn contains(self, route: usize) -> bool {
        route < MAX_ROUTES && self.0 >> route & 1 == 1
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The indices, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let route = left.trailing_zeros() as usize;
            left &= left - 1;
            Some(route)
        })
    }

    pub(super) fn only(self, among: Routes) -> Routes {
        Routes(self.0 & among.0)
    }
}

impl FromIterator<usize> for Routes {
    fn from_iter<I: IntoIterator<Item = usize>>(routes: I) -> Routes {
        routes.into_iter().fold(Routes::NONE, Routes::with)
    }
}

/// What one call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Units for `cost` limits (an estimate, corrected by [`super::Pool::finish`]).
    pub cost: u64,
    /// The routes that match it.
    pub routes: Routes,
    /// The only key or budget it may use.
    pub pin: Option<Pin>,
}

impl Default for Ask {
    fn default() -> Ask {
        Ask { cost: 1, routes: Routes::NONE, pin: None }
    }
}

/// So many of the limits of a call can compare what the server counted with what was sent from here.
pub(super) const COMPARED: usize = 6;

/// The right to send one call with one key now, taken from every limit that applies. Give it to
/// [`super::Pool::depart`] or [`super::Pool::abandon`]; one that is dropped keeps its place for ever.
#[must_use = "a permit that is dropped keeps its place for ever: depart or abandon"]
#[derive(Debug)]
pub struct Permit {
    pub(super) key: KeyId,
    pub(super) routes: Routes,
    pub(super) cost: u64,
    pub(super) booked: Time,
    pub(super) freed: [u64; COMPARED],
    /// Calls of a probed budget that were over when it was booked.
    pub(super) over_before: u64,
    pub(super) probe: bool,
}

impl Permit {
    /// The key to send with.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// When it was granted.
    pub fn booked(&self) -> Time {
        self.booked
    }

    /// Whether the key was set aside and this call is to find out if it works again.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// A call on its way. Give it to [`super::Pool::finish`] or [`super::Pool::unsent`].
#[must_use = "a flight that is dropped keeps its concurrency for ever: finish it"]
#[derive(Debug)]
pub struct Flight {
    pub(super) key: KeyId,
    pub(super) routes: Routes,
    pub(super) cost: u64,
    pub(super) sent: Time,
    pub(super) answered: Option<Time>,
    pub(super) freed: [u64; COMPARED],
    pub(super) over_before: u64,
    pub(super) probe: bool,
}

impl Flight {
    /// The key it is sent with.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// When it departed.
    pub fn sent(&self) -> Time {
        self.sent
    }

    /// Whether this call is to find out if a key that was set aside works again.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

/// What became of an ask.
#[must_use]
#[derive(Debug)]
pub enum Acquire {
    /// Send it now.
    Granted(Permit),
    /// Not before then; exact, unless somebody else is granted something or an answer, a correction or a resumption
    /// comes earlier.
    At(Time),
    /// An answer of a call in flight is needed; without any, there is room at `at_most` (`Time::MAX`: unknown).
    WhenAnswered {
        /// The latest moment, if nothing else is granted.
        at_most: Time,
    },
    /// The key that would serve it first is out of use.
    Blocked {
        /// What is out of use.
        why: Why,
        /// Until then, if that is known.
        until: Option<Time>,
    },
}

/// Why an ask is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no such key or budget, or the pool has no key at all.
    NoKey,
    /// The whole provider is paused.
    ProviderPaused,
    /// The budget is paused.
    BudgetPaused(BudgetId),
    /// The budget's quota is exhausted.
    BudgetParked(BudgetId),
    /// The key is paused.
    KeyPaused(KeyId),
    /// The key is set aside, since it was refused or taken out.
    KeyDisabled(KeyId),
    /// It costs more than a limit of the only budget it may use ever allows.
    TooLarge,
    /// Another dispatcher paces what it needs.
    NotHeld,
}
