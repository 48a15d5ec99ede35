//! A delivery becomes a job, or a dead letter with the raw body kept: never nothing.

use bytes::Bytes;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use sha2::{Digest as _, Sha256};

use crate::job::{Catalog, DeadReason, Given, Invalid, Job, split_routing_key};
use crate::store::{Buried, Identity, Origin};

/// Raw bodies are kept up to this size; of longer ones the beginning is.
const RAW_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest text taken from a property, in bytes.
const PROPERTY_BYTES_MAX: usize = 255;

/// What a delivery says.
#[derive(Debug)]
pub(super) enum Message {
    /// A job, and whether its producer named it.
    Job(Box<Job>, Origin),
    /// Something else.
    Buried(Box<Buried>),
}

/// Reads a delivery from a lane's queue.
pub(super) fn read(delivery: &Delivery, catalog: &Catalog, envelope_bytes_max: usize) -> Message {
    match job(delivery, catalog, envelope_bytes_max) {
        Ok(job) => Message::Job(Box::new(job), origin(delivery)),
        Err(invalid) => Message::Buried(Box::new(buried(delivery, DeadReason::Malformed, invalid.to_string()))),
    }
}

fn job(delivery: &Delivery, catalog: &Catalog, envelope_bytes_max: usize) -> Result<Job, Invalid> {
    if delivery.data.len() > envelope_bytes_max {
        let message = format!("expected at most {envelope_bytes_max} bytes, found {}", delivery.data.len());
        return Err(Invalid::at("", message));
    }
    let (provider, lane) = split_routing_key(delivery.routing_key.as_str())?;
    let id = delivery.properties.message_id().as_ref().map(|id| id.as_str().to_owned());
    // The bare name of a provider says nothing of a lane: then the envelope may.
    let given = Given { provider: Some(provider), lane, id: id.as_deref(), ..Given::default() };
    Job::parse(&delivery.data, &given, catalog)
}

/// A dead letter of a delivery.
pub(super) fn buried(delivery: &Delivery, reason: DeadReason, error: String) -> Buried {
    let kept = &delivery.data[..delivery.data.len().min(RAW_BYTES_MAX)];
    let error = if kept.len() < delivery.data.len() {
        format!("{error} (the first {RAW_BYTES_MAX} of {} bytes are kept)", delivery.data.len())
    } else {
        error
    };
    let (provider, lane) = split_routing_key(delivery.routing_key.as_str())
        .map_or((None, None), |(provider, lane)| (Some(provider.to_owned()), lane.map(str::to_owned)));
    Buried {
        reason,
        error,
        tenant: String::new(),
        provider,
        lane,
        raw: Bytes::copy_from_slice(kept),
        headers: headers(delivery).to_string(),
        identity: Some(identity(delivery, reason)),
    }
}

/// Of what the producer said and nobody on the way changes; the broker's own word is whether it was delivered before.
fn identity(delivery: &Delivery, reason: DeadReason) -> Identity {
    // An empty one tells nothing apart.
    let message_id = delivery.properties.message_id().as_ref().map(|id| id.as_str()).filter(|id| !id.is_empty());
    let mut hash = Sha256::new();
    let place = [delivery.exchange.as_str(), delivery.routing_key.as_str(), message_id.unwrap_or_default()];
    for part in [reason.as_str()].into_iter().chain(place).map(str::as_bytes).chain([&delivery.data[..]]) {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    Identity { hash: hash.finalize().into(), again: delivery.redelivered || message_id.is_some() }
}

fn origin(delivery: &Delivery) -> Origin {
    let properties = &delivery.properties;
    let bounded = |text: &str| (text.len() <= PROPERTY_BYTES_MAX).then(|| text.to_owned());
    let traceparent = properties.headers().as_ref().and_then(|h| h.inner().get("traceparent")).and_then(|v| match v {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().and_then(bounded),
        AMQPValue::ShortString(text) => bounded(text.as_str()),
        _ => None,
    });
    Origin {
        reply_to: properties.reply_to().as_ref().and_then(|t| bounded(t.as_str())),
        correlation_id: properties.correlation_id().as_ref().and_then(|t| bounded(t.as_str())),
        traceparent,
    }
}

/// Properties and headers of a delivery as JSON, for a person to look at.
fn headers(delivery: &Delivery) -> serde_json::Value {
    let properties = &delivery.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|t| t.as_str().to_owned());
    serde_json::json!({
        "exchange": delivery.exchange.as_str(),
        "routing_key": delivery.routing_key.as_str(),
        "redelivered": delivery.redelivered,
        "message_id": text(properties.message_id()),
        "content_type": text(properties.content_type()),
        "correlation_id": text(properties.correlation_id()),
        "reply_to": text(properties.reply_to()),
        "headers": properties.headers().as_ref().map(table),
    })
}

fn table(table: &FieldTable) -> serde_json::Value {
    table.inner().iter().map(|(name, v)| (name.as_str().to_owned(), value(v))).collect::<serde_json::Map<_, _>>().into()
}

fn value(value: &AMQPValue) -> serde_json::Value {
    match value {
        AMQPValue::Boolean(v) => (*v).into(),
        AMQPValue::ShortShortInt(v) => (*v).into(),
        AMQPValue::ShortShortUInt(v) => (*v).into(),
        AMQPValue::ShortInt(v) => (*v).into(),
        AMQPValue::ShortUInt(v) => (*v).into(),
        AMQPValue::LongInt(v) => (*v).into(),
        AMQPValue::LongUInt(v) => (*v).into(),
        AMQPValue::LongLongInt(v) => (*v).into(),
        AMQPValue::Timestamp(v) => (*v).into(),
        AMQPValue::Double(v) => (*v).into(),
        AMQPValue::Float(v) => f64::from(*v).into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into(),
        AMQPValue::FieldTable(inner) => table(inner),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(self::value).collect::<Vec<_>>().into(),
        _ => serde_json::Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ProviderRules;

    fn delivery(key: &str, body: &[u8]) -> Delivery {
        Delivery::mock(1, "paceline.jobs".into(), key.into(), false, body.to_vec())
    }

    fn catalog() -> Catalog {
        let mut catalog = Catalog::default();
        catalog.providers.insert("geo".into(), ProviderRules::default());
        catalog
    }

    #[test]
    fn the_routing_key_names_provider_and_lane() {
        let message = read(&delivery("geo", br#"{"id":"a","request":{"path":"/"}}"#), &catalog(), 1024);
        assert!(matches!(message, Message::Job(job, _) if job.provider == "geo" && job.lane == "default"));
        let message = read(&delivery("geo", br#"{"provider":"other","request":{"path":"/"}}"#), &catalog(), 1024);
        assert!(matches!(message, Message::Buried(b) if b.error.starts_with("$.provider")));
    }

    #[test]
    fn whatever_is_no_job_is_kept_with_its_bytes() {
        for body in [&b"not json"[..], b"", b"{}", b"[]", &[0xff, 0xfe], &[b'['; 100_000]] {
            let message = read(&delivery("geo", body), &catalog(), 1024 * 1024);
            let Message::Buried(buried) = message else { panic!("should be buried") };
            assert_eq!(buried.raw, body);
            assert_eq!(buried.reason, DeadReason::Malformed);
            assert_eq!(buried.provider.as_deref(), Some("geo"));
        }
        let message = read(&delivery("geo", &[b' '; 2000]), &catalog(), 1024);
        assert!(matches!(message, Message::Buried(b) if b.error.contains("1024") && b.raw.len() == 2000));
    }
}
