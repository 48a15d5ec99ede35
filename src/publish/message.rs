//! A completion as a message: the same body as a webhook's, under the event's id.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::inlet::topology::{EVENTS, OWN_PREFIX};
use crate::store::Publication;
use crate::webhook::payload;

/// Delivery mode of a message that a broker keeps over its restart, where its queue lasts.
const PERSISTENT: u8 = 2;

/// A message to publish.
#[derive(Debug)]
pub(super) struct Message {
    /// Empty: the default exchange, which routes by the name of a queue.
    pub exchange: &'static str,
    pub routing_key: String,
    /// Where no queue takes it the broker says so.
    pub mandatory: bool,
    pub properties: BasicProperties,
    pub body: Bytes,
}

/// Why a completion cannot be published at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unpublishable {
    /// A producer must not be able to fill the queues of the system itself.
    #[error("a reply is not put into {0:?}: queues that begin with {OWN_PREFIX:?} are Paceline's own")]
    OwnQueue(String),
    /// Never seen.
    #[error("the event cannot be written: {0}")]
    Body(#[from] serde_json::Error),
}

impl Message {
    /// The message of a completion: to the queue that its producer waits at, or to the exchange of events as
    /// `<provider>.<event>`.
    ///
    /// # Errors
    /// [`Unpublishable`].
    pub(super) fn new(publication: &Publication, public_url: Option<&str>) -> Result<Self, Unpublishable> {
        let Publication { event, reply_to, .. } = publication;
        let (exchange, routing_key) = match reply_to {
            Some(queue) if queue.starts_with(OWN_PREFIX) => return Err(Unpublishable::OwnQueue(queue.clone())),
            Some(queue) => ("", queue.clone()),
            None => (EVENTS, format!("{}.{}", event.provider, event.kind.as_str())),
        };
        let body = payload(event, public_url)?;
        let properties = properties(publication);
        Ok(Self { exchange, routing_key, mandatory: reply_to.is_some(), properties, body })
    }
}

fn properties(publication: &Publication) -> BasicProperties {
    let event = &publication.event;
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(event.id.as_str().into())
        .with_type(event.kind.as_str().into())
        .with_app_id("paceline".into())
        .with_timestamp(u64::try_from(event.at_ms / 1000).unwrap_or_default());
    if let Some(id) = &publication.correlation_id {
        properties = properties.with_correlation_id(id.as_str().into());
    }
    if let Some(trace) = &publication.traceparent {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString(trace.as_str().into()));
        properties = properties.with_headers(headers);
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::EventKind;
    use crate::store::Event;

    fn publication(reply_to: Option<&str>) -> Publication {
        let event = Event {
            id: "evt_1".into(),
            kind: EventKind::Dead,
            at_ms: 1_795_168_800_123,
            attempts: 5,
            reason: Some("attempts_exhausted".into()),
            error: None,
            response: None,
            job_id: "a".into(),
            provider: "geo".into(),
            tenant: String::new(),
            metadata: None,
        };
        Publication {
            pk: 1,
            epoch: 1,
            attempts: 0,
            attempts_before: 0,
            reply_to: reply_to.map(str::to_owned),
            correlation_id: Some("c-1".into()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            event: event.into(),
        }
    }

    #[test]
    fn an_event_goes_to_its_exchange_and_a_reply_to_its_queue() {
        let event = Message::new(&publication(None), None).expect("a message");
        assert_eq!((event.exchange, event.routing_key.as_str()), ("paceline.events", "geo.job.dead"));
        assert!(!event.mandatory, "that nobody listens is no failure");
        let reply = Message::new(&publication(Some("amq.gen-x")), None).expect("a message");
        assert_eq!((reply.exchange, reply.routing_key.as_str(), reply.mandatory), ("", "amq.gen-x", true));
        assert_eq!(reply.body, event.body);
        let told = &reply.properties;
        assert_eq!(told.message_id().as_ref().map(|id| id.as_str()), Some("evt_1"));
        assert_eq!(told.correlation_id().as_ref().map(|id| id.as_str()), Some("c-1"));
        assert_eq!(*told.delivery_mode(), Some(2));
        let headers = told.headers().as_ref().expect("headers");
        assert!(headers.inner().contains_key("traceparent"));
    }

    #[test]
    fn a_reply_never_goes_into_a_queue_of_our_own() {
        for queue in ["paceline.jobs.geo.default", "paceline.rejected", "paceline."] {
            let refused = Message::new(&publication(Some(queue)), None);
            assert!(matches!(refused, Err(Unpublishable::OwnQueue(_))), "{queue}");
        }
        assert!(Message::new(&publication(Some("pacelines")), None).is_ok());
    }
}
