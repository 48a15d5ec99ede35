//! What the broker's word means for a completion. Pure: time and the random number are arguments.
//!
//! | the broker | the completion |
//! |---|---|
//! | confirms | delivered |
//! | confirms, and returns it: no such queue | again after 1 s and 5 s, in case its producer comes back; then failed |
//! | refuses it, closes the channel over it, or says nothing in time | again by the schedule of webhooks |
//! | is away | nothing: it waits, and no attempt is spent |

use std::time::Duration;

use crate::clock::WallMs;
use crate::store::DeliveryNext;
use crate::webhook::{Schedule, next};

/// What the broker said of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// It has the message safe.
    Confirmed,
    /// It has nowhere to put it.
    Returned,
    /// It does not take it, and why.
    Refused(String),
    /// It cannot be published at all, and why.
    Unpublishable(String),
}

impl Word {
    /// What went wrong.
    pub(super) fn error(&self, reply_to: Option<&str>) -> Option<String> {
        match self {
            Self::Confirmed => None,
            Self::Returned => Some(format!(
                "there is no queue {:?}: whoever asked does not wait any more",
                reply_to.unwrap_or_default()
            )),
            Self::Refused(why) => Some(format!("the broker does not take it: {why}")),
            Self::Unpublishable(why) => Some(why.clone()),
        }
    }
}

/// When what was refused goes again, and what was returned.
#[derive(Debug, Clone)]
pub(super) struct Schedules {
    pub refused: Schedule,
    returned: Schedule,
}

impl Schedules {
    /// What is refused follows the schedule of webhooks.
    pub(super) fn new(refused: Schedule) -> Self {
        let returned = Schedule::new(vec![Duration::from_secs(1), Duration::from_secs(5)]).unwrap_or_default();
        Self { refused, returned }
    }

    /// What becomes of a completion after attempt number `step` of its schedule.
    pub(super) fn next(&self, word: &Word, step: u32, now_ms: WallMs, random: f64) -> DeliveryNext {
        match word {
            Word::Confirmed => DeliveryNext::Published,
            Word::Returned => next(None, step, &self.returned, now_ms, random),
            Word::Refused(_) => next(None, step, &self.refused, now_ms, random),
            Word::Unpublishable(_) => DeliveryNext::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_returned_is_tried_twice_more_and_then_given_up() {
        let schedules = Schedules::new(Schedule::default());
        let waits: Vec<_> = (1..=4).map(|step| schedules.next(&Word::Returned, step, 0, 0.0)).collect();
        let retry = |due_ms| DeliveryNext::Retry { due_ms };
        assert_eq!(waits, [retry(1_000), retry(5_000), DeliveryNext::Failed, DeliveryNext::Failed]);
        let said = Word::Returned.error(Some("amq.gen-x")).expect("an error");
        assert!(said.contains("amq.gen-x"), "{said}");
    }

    #[test]
    fn what_is_refused_follows_the_schedule_of_webhooks() {
        let schedules = Schedules::new(Schedule::default());
        let refused = Word::Refused("no room".into());
        assert_eq!(schedules.next(&refused, 1, 0, 0.0), DeliveryNext::Retry { due_ms: 5_000 });
        assert_eq!(schedules.next(&refused, 10, 0, 0.0), DeliveryNext::Failed);
        assert_eq!(schedules.next(&Word::Unpublishable("own".into()), 1, 0, 0.0), DeliveryNext::Failed);
        assert_eq!(schedules.next(&Word::Confirmed, 99, 0, 0.0), DeliveryNext::Published);
    }
}
