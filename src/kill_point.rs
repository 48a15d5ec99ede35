//! Named points of the flow at which a test lets the process die, as if by `kill -9`.
//!
//! Only in builds with debug assertions: `PACELINE_KILL_POINT=after_answer` kills the process when it
//! first comes to that point, `after_answer:3` at the third time. In release builds [`reached`]
//! compiles to nothing. What happens at each of them stands in `docs/guarantees.md`, and
//! `tests/kill_points.rs` goes through them all.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that names a point.
pub const VARIABLE: &str = "PACELINE_KILL_POINT";

/// A step between two effects: what is before it has happened, what is after it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KillPoint {
    /// The API has a job, and has not committed it.
    BeforeAccept,
    /// It is committed, and not answered.
    AfterAccept,
    /// The broker has delivered, nothing is committed.
    BeforeLetIn,
    /// Committed and claimed, not acknowledged.
    AfterLetIn,
    /// Acknowledged.
    AfterAck,
    /// Due jobs are claimed from the store.
    AfterClaim,
    /// An `at_most_once` job has its permit, and is not committed as started.
    BeforeStarted,
    /// That it is being sent is committed.
    AfterStarted,
    /// Permitted, nothing was sent.
    BeforeSend,
    /// The answer has begun.
    AfterFirstByte,
    /// The call has ended, its outcome is not committed.
    AfterAnswer,
    /// The outcome is committed.
    AfterRecord,
    /// The lease was taken.
    AfterLeaseTaken,
    /// What was spent, and may be spent, is about to be written.
    BeforeRenewal,
    /// It is written.
    AfterRenewal,
    /// At an orderly stop: all calls have ended, the lease is held.
    BeforeHandOver,
    /// The lease was handed over; other claims are not yet given back.
    AfterHandOver,
    /// Due deliveries are claimed.
    AfterDeliveryClaim,
    /// A webhook is about to be sent.
    BeforeWebhook,
    /// The endpoint has answered, nothing is committed.
    AfterWebhook,
    /// The delivery is committed.
    AfterWebhookRecord,
    /// Completions for the broker are claimed, none was published.
    BeforePublish,
    /// The broker has confirmed them, nothing is committed.
    AfterPublish,
    /// Their deliveries are committed.
    AfterPublishRecord,
}

impl KillPoint {
    /// Every point, in the order of the flow.
    pub const ALL: [Self; 24] = [
        Self::BeforeAccept,
        Self::AfterAccept,
        Self::BeforeLetIn,
        Self::AfterLetIn,
        Self::AfterAck,
        Self::AfterClaim,
        Self::BeforeStarted,
        Self::AfterStarted,
        Self::BeforeSend,
        Self::AfterFirstByte,
        Self::AfterAnswer,
        Self::AfterRecord,
        Self::AfterLeaseTaken,
        Self::BeforeRenewal,
        Self::AfterRenewal,
        Self::BeforeHandOver,
        Self::AfterHandOver,
        Self::AfterDeliveryClaim,
        Self::BeforeWebhook,
        Self::AfterWebhook,
        Self::AfterWebhookRecord,
        Self::BeforePublish,
        Self::AfterPublish,
        Self::AfterPublishRecord,
    ];

    /// Its name in [`VARIABLE`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeforeAccept => "before_accept",
            Self::AfterAccept => "after_accept",
            Self::BeforeLetIn => "before_let_in",
            Self::AfterLetIn => "after_let_in",
            Self::AfterAck => "after_ack",
            Self::AfterClaim => "after_claim",
            Self::BeforeStarted => "before_started",
            Self::AfterStarted => "after_started",
            Self::BeforeSend => "before_send",
            Self::AfterFirstByte => "after_first_byte",
            Self::AfterAnswer => "after_answer",
            Self::AfterRecord => "after_record",
            Self::AfterLeaseTaken => "after_lease_taken",
            Self::BeforeRenewal => "before_renewal",
            Self::AfterRenewal => "after_renewal",
            Self::BeforeHandOver => "before_hand_over",
            Self::AfterHandOver => "after_hand_over",
            Self::AfterDeliveryClaim => "after_delivery_claim",
            Self::BeforeWebhook => "before_webhook",
            Self::AfterWebhook => "after_webhook",
            Self::AfterWebhookRecord => "after_webhook_record",
            Self::BeforePublish => "before_publish",
            Self::AfterPublish => "after_publish",
            Self::AfterPublishRecord => "after_publish_record",
        }
    }

    /// The point of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|point| point.as_str() == name)
    }
}

/// The flow has come to `point`. Does not return where the environment asks for its end here.
#[inline]
pub fn reached(point: KillPoint) {
    if cfg!(debug_assertions) {
        die_if_asked(point);
    }
}

/// A point, and how often it is still passed alive.
struct Wish {
    point: KillPoint,
    left: AtomicU64,
}

fn die_if_asked(point: KillPoint) {
    static WISH: OnceLock<Option<Wish>> = OnceLock::new();
    let wish = WISH.get_or_init(|| wish_of(&std::env::var(VARIABLE).ok()?)).as_ref();
    if wish.is_some_and(|wish| wish.point == point && wish.left.fetch_sub(1, Ordering::AcqRel) == 1) {
        die();
    }
}

fn wish_of(text: &str) -> Option<Wish> {
    let (name, time) = text.split_once(':').unwrap_or((text, "1"));
    Some(Wish { point: KillPoint::from_name(name)?, left: AtomicU64::new(time.parse().ok()?) })
}

/// Nothing is cleaned up, nothing is flushed, and no step follows on this thread.
fn die() -> ! {
    let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    tracing::error!(?killed, "the process outlives its kill point");
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_asked_for_by_name_and_time() {
        for point in KillPoint::ALL {
            assert_eq!(KillPoint::from_name(point.as_str()), Some(point));
            let wish = wish_of(&format!("{}:3", point.as_str())).expect("a wish");
            assert_eq!((wish.point, wish.left.into_inner()), (point, 3));
        }
        assert_eq!(wish_of("after_ack").expect("a wish").left.into_inner(), 1);
        assert!(wish_of("nowhere").is_none() && wish_of("after_ack:often").is_none());
    }
}
