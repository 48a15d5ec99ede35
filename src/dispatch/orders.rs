//! Learns what operators want: at the start, when somebody says so, and now and then in case nobody
//! did. Nothing is sent before it is known.

use std::time::Duration;

use super::core::{Freed, Now};
use super::keyring::{self, Read};
use super::shell::{Dispatcher, DispatcherParts, Input, send};
use crate::pace::Time;
use crate::store::{Order, StoreError};

/// Asked at least this often, though nobody said so.
const FALLBACK: Duration = Duration::from_secs(5);
/// After a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Jobs made due in one transaction.
const BATCH: u32 = 500;
/// Jobs that were being handed back when the first pass was made are found by a second one.
const SECOND_PASS_AFTER: Duration = Duration::from_secs(3);

/// What is known of orders.
#[derive(Debug)]
pub(super) struct Orders {
    /// `None`: they are being asked for.
    ask_at: Option<Time>,
    /// Somebody gave another one meanwhile.
    again: bool,
    are_known: bool,
    failing: bool,
}

impl Orders {
    /// To be asked for at once.
    pub fn new() -> Self {
        Self { ask_at: Some(Time::ZERO), again: false, are_known: false, failing: false }
    }

    /// Whether they were ever had.
    pub fn are_known(&self) -> bool {
        self.are_known
    }

    /// Somebody gave one.
    pub fn wake(&mut self) {
        match &mut self.ask_at {
            Some(at) => *at = Time::ZERO,
            None => self.again = true,
        }
    }

    /// When to ask.
    pub fn wake_at(&self) -> Option<Time> {
        self.ask_at
    }

    /// Whether to ask now.
    fn begin(&mut self, now: Time) -> bool {
        let due = self.ask_at.is_some_and(|at| at <= now);
        if due {
            self.ask_at = None;
        }
        due
    }

    /// They were had, or not. Whether a failure is news.
    fn answered(&mut self, well: bool, now: Time) -> bool {
        let again = std::mem::take(&mut self.again);
        self.are_known |= well;
        self.ask_at = Some(match (well, again) {
            (true, true) => Time::ZERO,
            (true, false) => now + FALLBACK,
            (false, _) => now + AFTER_FAILURE,
        });
        !std::mem::replace(&mut self.failing, !well) && !well
    }
}

impl Dispatcher {
    /// Asks for the orders when it is time to.
    pub(super) fn keep_orders(&mut self, now: Now) {
        if !self.orders.begin(now.mono) {
            return;
        }
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        let known = self.keyring.versions();
        self.tasks.spawn(async move {
            let told = async {
                // The keys last: an order about one that is known is known as well.
                let orders = parts.store.orders(Some(&parts.provider.name)).await?;
                Ok((orders, keyring::read(&parts, &known).await?))
            };
            send(&sender, Input::Orders(told.await));
        });
    }

    pub(super) fn orders_told(&mut self, result: Result<(Vec<Order>, Vec<Read>), StoreError>) {
        let now = self.now();
        let news = self.orders.answered(result.is_ok(), now.mono);
        match result {
            Ok((orders, keys)) => {
                if let Some(freed) = self.keys_told(keys) {
                    self.free(freed);
                }
                if let Some(freed) = self.core.order(orders) {
                    let provider = &self.label.provider;
                    tracing::info!(provider, ?freed, "an operator put something back into use");
                    self.free(freed);
                }
            }
            Err(error) if news => {
                let provider = &self.label.provider;
                tracing::warn!(provider, %error, "the orders of operators cannot be read; trying again");
            }
            Err(_) => {}
        }
    }

    /// Makes jobs due that waited for what is in use again.
    pub(super) fn free(&mut self, freed: Freed) {
        let parts = self.parts.clone();
        self.tasks.spawn(async move {
            for pass in 0..2 {
                if pass > 0 {
                    tokio::time::sleep(SECOND_PASS_AFTER).await;
                }
                if let Err(error) = free_all(&parts, &freed).await {
                    let provider = &parts.provider.name;
                    tracing::warn!(provider, %error, "jobs that may go again wait until they are looked at");
                }
            }
        });
    }
}

async fn free_all(parts: &DispatcherParts, freed: &Freed) -> Result<(), StoreError> {
    let pins = match freed {
        Freed::All => None,
        Freed::Pins(pins) => Some(pins.as_slice()),
    };
    for lane in &parts.provider.pool.lanes {
        let place = (parts.provider.name.as_str(), lane.name.as_str());
        let mut after = Some(0);
        while let Some(after_ms) = after {
            after = parts.store.free_waiting(place, pins, after_ms, BATCH, parts.clock.wall_ms()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn they_are_asked_for_at_once_when_somebody_says_so_and_now_and_then() {
        let mut orders = Orders::new();
        assert!(orders.begin(at(1)) && !orders.begin(at(1)), "once at a time");
        assert!(!orders.answered(true, at(2)) && orders.are_known());
        assert_eq!(orders.wake_at(), Some(at(2) + FALLBACK));
        orders.wake();
        assert!(orders.begin(at(3)));
        orders.wake();
        orders.answered(true, at(4));
        assert!(orders.begin(at(4)), "what came meanwhile may not be in the answer");
    }

    #[test]
    fn a_failure_is_told_once_and_tried_again() {
        let mut orders = Orders::new();
        orders.begin(at(1));
        assert!(orders.answered(false, at(1)));
        assert!(!orders.are_known());
        orders.begin(at(2));
        assert!(!orders.answered(false, at(2)));
        orders.begin(at(3));
        orders.answered(true, at(3));
        orders.begin(at(9));
        assert!(orders.answered(false, at(9)));
        assert!(orders.are_known(), "the last ones hold");
    }
}
