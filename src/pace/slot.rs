//! When something is free: a time that is certain, or a bound that answers may beat.

use super::Time;

/// The earliest time at which a limit (or several together) has room.
///
/// `known` is the earliest time that no answer can bring forward; `at_most` is the time at which there surely is
/// room if nothing else is granted meanwhile. They differ where calls in flight hold the room. The slot of several
/// limits together is the later one of each, since room, once there, stays until something is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub known: Time,
    pub at_most: Time,
}

impl Slot {
    /// There is room already.
    pub const OPEN: Slot = Slot { known: Time::ZERO, at_most: Time::ZERO };
    /// There never will be.
    pub const NEVER: Slot = Slot { known: Time::MAX, at_most: Time::MAX };

    pub fn at(time: Time) -> Slot {
        Slot { known: time, at_most: time }
    }

    /// Room comes with an answer, at the latest then.
    pub fn answered_by(at_most: Time) -> Slot {
        Slot { known: Time::ZERO, at_most }
    }

    pub fn and(self, other: Slot) -> Slot {
        Slot { known: self.known.max(other.known), at_most: self.at_most.max(other.at_most) }
    }

    pub fn is_open(self, now: Time) -> bool {
        self.at_most <= now
    }
}
