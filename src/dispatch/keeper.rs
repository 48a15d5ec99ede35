//! Keeps the dispatcher's lease: asks for it, renews it with what was spent, hands it over at the end.

use super::core::{Event, Now};
use super::lease::{self, Step};
use super::shell::{Dispatcher, DispatcherParts, Input, Release, send};
use crate::config::Provider;
use crate::kill_point::{KillPoint, reached};
use crate::pace::Measure;
use crate::store::{LeaseTake, StoreError};

/// Jobs of a lane that is gone are moved so many at a time.
const STRAYS_BATCH: u32 = 500;

impl Dispatcher {
    /// Asks for the lease, or renews it, when it is time to.
    pub(super) fn keep_lease(&mut self, now: Now) {
        if self.claims.are_stopped() && self.tenure.epoch().is_none() {
            return;
        }
        // A key that an operator disabled must not be used by whoever has not heard of it.
        if !self.orders.are_known() {
            return;
        }
        let Some(step) = self.tenure.step(now.mono, self.core.is_idle()) else { return };
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        let spent = self.core.save(now.mono);
        self.tasks.spawn(async move {
            let (store, provider, owner) = (&parts.store, &parts.provider.name, &parts.owner);
            let input = match step {
                Step::Take => {
                    let taken = store.lease_take(provider, "", owner, lease::TTL).await;
                    if matches!(taken, Ok(LeaseTake::Taken { .. })) {
                        reached(KillPoint::AfterLeaseTaken);
                    }
                    Input::Taken(taken)
                }
                Step::Renew { epoch, ahead } => {
                    let book = lease::book(spent, ahead);
                    reached(KillPoint::BeforeRenewal);
                    let renewed = store.lease_renew(provider, "", owner, epoch, lease::TTL, &book).await;
                    reached(KillPoint::AfterRenewal);
                    Input::Renewed(renewed)
                }
            };
            send(&sender, input);
        });
    }

    pub(super) fn lease_taken(&mut self, result: Result<LeaseTake, StoreError>) {
        let at = self.now();
        let now = at.mono;
        let provider = &self.label.provider;
        match result {
            Ok(LeaseTake::Taken { epoch, last }) => {
                let inherited = last.as_ref().map(lease::inherit);
                let from = match &inherited {
                    // Nobody ever spent anything.
                    None => Ok(()),
                    Some(Some(left)) => self.core.inherit(Some((&left.spent, left.elapsed, left.since)), at),
                    Some(None) => self.core.inherit(None, at),
                };
                if let Err(error) = from {
                    tracing::error!(provider, %error, "the limits cannot be paced");
                }
                self.core.resume();
                self.tasks.spawn(adopt_strays(self.parts.clone()));
                let clean = last.as_ref().is_none_or(|last| last.clean);
                tracing::info!(provider, epoch, clean, "this process dispatches now");
                self.tenure.taken(epoch, now);
            }
            Ok(LeaseTake::Held { owner, .. }) => {
                tracing::debug!(provider, owner, "another process dispatches");
                self.tenure.not_taken(now);
            }
            Err(error) => {
                tracing::warn!(provider, %error, "the lease cannot be asked for; trying again");
                self.tenure.not_taken(now);
            }
        }
    }

    pub(super) fn lease_renewed(&mut self, result: Result<bool, StoreError>) {
        let now = self.now();
        let provider = &self.label.provider;
        match result {
            Ok(true) => {
                self.tenure.renewed();
                self.renewal_fails = false;
            }
            Ok(false) => {
                tracing::error!(provider, "another process took the lease over; nothing more is sent");
                self.tenure.lost(now.mono);
                self.happened(Event::Suspend, now);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.renewal_fails, true) {
                    tracing::warn!(provider, %error, "the lease cannot be renewed; sending stops when it could be taken");
                }
                self.tenure.not_renewed(now.mono);
            }
        }
    }

    /// At the end: hands the lease over with the state of every limit. Whether that is done.
    pub(super) fn let_go(&mut self, now: Now) -> bool {
        let epoch = match self.release {
            Release::Done => return true,
            Release::UnderWay => return false,
            Release::NotBegun if self.tenure.is_busy() => return false,
            Release::NotBegun => self.tenure.epoch(),
        };
        let Some(epoch) = epoch else { return true };
        self.release = Release::UnderWay;
        self.tenure.lost(now.mono);
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        let book = lease::book(self.core.save(now.mono), lease::Ahead::NOTHING);
        self.tasks.spawn(async move {
            reached(KillPoint::BeforeHandOver);
            let released = parts.store.lease_release(&parts.provider.name, "", &parts.owner, epoch, &book).await;
            if let Err(error) = released {
                tracing::warn!(%error, "the lease was not let go of; the next process waits until it ends");
            }
            reached(KillPoint::AfterHandOver);
            send(&sender, Input::Released);
        });
        false
    }
}

/// What has to be written ahead: what some limit counts.
pub(super) fn counted(provider: &Provider) -> lease::Counted {
    let pool = &provider.pool;
    let of_budgets = pool.budgets.iter().flat_map(|budget| &budget.limits);
    let of_routes = pool.routes.iter().flat_map(|route| route.limits.iter().chain(&route.key_limits));
    let limits = pool.limits.iter().chain(&pool.key_limits).chain(of_budgets).chain(of_routes);
    limits.fold(lease::Counted::default(), |counted, limit| match limit.measure {
        Measure::Concurrency(_) => lease::Counted { open: true, ..counted },
        Measure::Requests(_) | Measure::Cost(_) => lease::Counted { calls: true, ..counted },
    })
}

/// Jobs of lanes that are not configured any more go with the default one: nobody would claim them.
async fn adopt_strays(parts: DispatcherParts) {
    let provider = &parts.provider;
    let is_stray = |lane: &str| !provider.pool.lanes.iter().any(|known| known.name == lane);
    let awaited = match parts.store.awaited().await {
        Ok(awaited) => awaited,
        Err(error) => {
            return tracing::warn!(provider = provider.name, %error, "lanes that are gone were not looked for");
        }
    };
    for (_, lane) in awaited.iter().filter(|(name, lane)| *name == provider.name && is_stray(lane)) {
        let mut jobs = 0;
        let moved = loop {
            match parts.store.move_lane(&provider.name, lane, "default", STRAYS_BATCH).await {
                Ok(0) => break Ok(()),
                Ok(moved) => jobs += moved,
                Err(error) => break Err(error),
            }
        };
        tracing::warn!(
            provider = provider.name,
            lane,
            jobs,
            "this lane is not configured any more: its jobs go with the default one"
        );
        if let Err(error) = moved {
            tracing::warn!(provider = provider.name, lane, %error, "the rest stays until this process dispatches anew");
        }
    }
}
