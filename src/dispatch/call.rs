//! One call under way, from the client to its end: whatever happens to it, its end is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::core::{Answered, CallEnd, Event, Leave, Now};
use super::shell::{Input, send};
use crate::clock::Clock;
use crate::config::Policy;
use crate::job::Job;
use crate::kill_point::{KillPoint, reached};
use crate::outcome::{self, Rules, Ruling};
use crate::pace::{Signal, Time};
use crate::provider::{Answer, CallError, Caller, Client, header_pairs};
use crate::secrets::Secret;
use crate::store::{JobPk, StoredResponse};

/// Paths with this in them are taken to speak GraphQL, which tells of limits in its bodies.
const GRAPHQL: &str = "graphql";

/// A call under way. Whatever happens to it, its end is told.
pub(super) struct Call {
    pk: JobPk,
    leave: Leave,
    /// The provider's window shuts then.
    shuts: Option<Time>,
    clock: Arc<dyn Clock>,
    sender: mpsc::UnboundedSender<Input>,
    ended: bool,
}

impl Caller for Call {
    fn may_leave(&self) -> bool {
        let now = self.clock.mono();
        self.leave.is_given(now) && self.shuts.is_none_or(|shuts| now < shuts)
    }

    fn left_late(&self) {
        self.tell(Event::Left { pk: self.pk });
    }
}

impl Call {
    /// It may leave while its lease holds and until its provider's window shuts.
    pub(super) fn new(
        pk: JobPk,
        (leave, shuts): (Leave, Option<Time>),
        clock: Arc<dyn Clock>,
        sender: mpsc::UnboundedSender<Input>,
    ) -> Self {
        Self { pk, leave, shuts, clock, sender, ended: false }
    }

    /// `policy`: how it is made, and how its answer is read.
    pub(super) async fn make(mut self, client: &Client, job: &Job, secret: Option<&Secret>, policy: &Policy) {
        let mut signal = Signal::default();
        reached(KillPoint::BeforeSend);
        let result = client
            .call(job, secret, policy, &self, |status, headers| {
                let wall = u64::try_from(self.clock.wall_ms()).map(Duration::from_millis).ok();
                signal = Signal::parse(header_pairs(headers), status, wall);
                reached(KillPoint::AfterFirstByte);
                self.tell(Event::Head { pk: self.pk, signal: Box::new(signal.clone()) });
            })
            .await;
        reached(KillPoint::AfterAnswer);
        self.end(match result {
            Ok(answer) => {
                // Half a document is none.
                let whole = !answer.truncated;
                let cost = policy.cost_from.as_ref().filter(|_| whole).and_then(|from| from.read(&answer.body));
                let graphql = whole && answer.status == 200 && job.request.path.contains(GRAPHQL);
                let told = if graphql { Signal::of_graphql(&answer.body) } else { Signal::default() };
                let ruling = ruling(&policy.answers, &answer, told.limited);
                CallEnd::Answered(Box::new(Answered { response: kept(answer), signal, told, cost, ruling }))
            }
            Err(CallError::NotSent(text)) => CallEnd::NotSent(text),
            Err(CallError::Withheld) => CallEnd::Withheld,
            Err(CallError::Lost(text)) => CallEnd::Lost(text),
            Err(CallError::Request(error)) => CallEnd::Impossible(error.to_string()),
        });
    }

    /// It does not leave after all: its job goes back to the store.
    pub(super) fn withhold(mut self) {
        self.end(CallEnd::Withheld);
    }

    fn end(&mut self, end: CallEnd) {
        self.ended = true;
        self.tell(Event::Ended { pk: self.pk, end });
    }

    fn tell(&self, event: Event) {
        let now = Now { mono: self.clock.mono(), wall: self.clock.wall_ms() };
        send(&self.sender, Input::Event(event, now));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.end(CallEnd::Lost("the call was abandoned".to_owned()));
        }
    }
}

fn ruling(rules: &Rules, answer: &Answer, throttled: bool) -> Option<Ruling> {
    let headers: Vec<(&str, &str)> = header_pairs(&answer.headers).collect();
    let Answer { status, ref body, truncated, .. } = *answer;
    rules.judge(&outcome::Answer { status, headers: &headers, body, truncated }, throttled)
}

fn kept(answer: Answer) -> StoredResponse {
    let fields: serde_json::Map<String, serde_json::Value> =
        header_pairs(&answer.headers).map(|(name, value)| (name.to_owned(), value.into())).collect();
    let content_type = fields.get("content-type").and_then(|v| v.as_str()).map(str::to_owned);
    StoredResponse {
        status: answer.status,
        headers: serde_json::Value::Object(fields).to_string(),
        content_type,
        body: answer.body,
        truncated: answer.truncated,
    }
}
