//! Tells how things stand: to the metrics of this process, and through the store to the others.

use super::core::Now;
use super::report::{Hands, Reporter, bounded};
use super::shell::{Dispatcher, Input, send};
use crate::pace::Time;
use crate::store::Report;
use crate::telemetry::Told;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Teller {
    reporter: Reporter,
    at: Time,
    /// In the store; `None`: nothing.
    written: Option<Report>,
    is_writing: bool,
}

impl Teller {
    /// It was written; or it was not, and is tried again next time.
    pub fn written(&mut self, report: Option<Option<Report>>) {
        self.is_writing = false;
        if let Some(report) = report {
            self.written = report;
        }
    }
}

impl Dispatcher {
    /// Tells it when it is time to.
    pub(super) fn tell(&mut self, now: Now) {
        if self.teller.at > now.mono {
            return;
        }
        self.teller.at = now.mono + Reporter::every(self.parts.provider.pool.keys.len());
        let provider = &self.label.provider;
        let report = match self.keeping.held() {
            0 => {
                self.parts.metrics.pacing.hide(provider);
                None
            }
            leases => {
                let lanes = self.parts.provider.pool.lanes.iter().enumerate();
                let waiting =
                    |(n, lane): (usize, &crate::pace::LaneSpec)| (lane.name.clone(), self.core.in_line(n) as u64);
                let hands = Hands {
                    permits_waiting: lanes.map(waiting).collect(),
                    open: self.core.counts().1 as u64,
                    breaker: self.core.breaker_trouble().map(str::to_owned),
                };
                let pool = self.core.snapshot(now.mono);
                let report = self.teller.reporter.report(&pool, hands, now);
                let told = Told { report, at_ms: now.wall, paused: pool.held, leases };
                self.parts.metrics.pacing.show(provider, &told);
                Some(bounded(told.report))
            }
        };
        if !self.teller.is_writing && report != self.teller.written {
            self.write_report(report);
        }
    }

    fn write_report(&mut self, report: Option<Report>) {
        self.teller.is_writing = true;
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            let written = parts.store.write_report(&parts.provider.name, &parts.owner, report.as_ref()).await;
            let told = written.map_err(|error| tracing::debug!(%error, "a report was not written")).ok();
            send(&sender, Input::Reported(told.map(|()| report)));
        });
    }
}
