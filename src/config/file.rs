//! The configuration file as it is written. Field for field what `paceline.toml` may hold; what
//! it means is worked out in the parent module.
//!
//! No `untagged` and no `flatten`: they lose the line of an error.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

use crate::duration::HumanDuration;
use crate::retry::Jitter;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub store: Store,
    pub queue: Queue,
    pub api: Api,
    pub metrics: Metrics,
    pub webhooks: Webhooks,
    pub provider: Vec<Provider>,
    pub schedules: Vec<Schedule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Schedule {
    pub name: String,
    pub cron: String,
    #[serde(default)]
    pub zone: Option<String>,
    pub job: toml::Table,
    #[serde(default)]
    pub missed: Missed,
    #[serde(default)]
    pub missed_max: Option<usize>,
}

/// What becomes of times at which nobody was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Missed {
    Skip,
    #[default]
    RunOnce,
    RunAll,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Store {
    pub url: Option<String>,
    pub retention: Retention,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retention {
    pub succeeded: Option<HumanDuration>,
    pub dead: Option<HumanDuration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Queue {
    pub url: Option<String>,
    pub events: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Api {
    pub listen: Option<String>,
    pub tokens: Vec<Token>,
    pub envelope_bytes_max: Option<usize>,
    pub public_url: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub listen: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Token {
    pub name: String,
    pub secret: String,
    pub scopes: Vec<String>,
    #[serde(default)]
    pub tenant: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Webhooks {
    pub secret: Option<String>,
    pub allow_http: bool,
    pub allow_networks: Vec<String>,
    pub timeout: Option<HumanDuration>,
    pub schedule: Option<Vec<HumanDuration>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Provider {
    pub name: String,
    pub base_url: String,
    #[serde(default)]
    pub auth: Option<Auth>,
    #[serde(default)]
    pub timeout: Option<HumanDuration>,
    #[serde(default)]
    pub connect_timeout: Option<HumanDuration>,
    #[serde(default)]
    pub first_byte_timeout: Option<HumanDuration>,
    #[serde(default)]
    pub safety: Option<Safety>,
    #[serde(default)]
    pub counted_within: Option<HumanDuration>,
    #[serde(default)]
    pub signals: Option<String>,
    #[serde(default)]
    pub limits: Vec<Limit>,
    #[serde(default)]
    pub key_limits: Vec<Limit>,
    #[serde(default)]
    pub keys: Vec<Key>,
    #[serde(default)]
    pub lanes: BTreeMap<String, u32>,
    #[serde(default)]
    pub retry: Retry,
    #[serde(default)]
    pub idempotency_header: Option<String>,
    #[serde(default)]
    pub success: Option<StatusList>,
    #[serde(default)]
    pub outcomes: Vec<OutcomeRule>,
    #[serde(default)]
    pub breaker: Breaker,
    #[serde(default)]
    pub window: Option<Texts>,
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    #[serde(default)]
    pub budget: Vec<Budget>,
    #[serde(default)]
    pub route: Vec<Route>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Auth {
    #[serde(default)]
    pub header: Option<String>,
    #[serde(default)]
    pub scheme: Option<String>,
    #[serde(default)]
    pub query: Option<String>,
    #[serde(default)]
    pub basic_user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    #[serde(default)]
    pub requests: Option<u64>,
    #[serde(default)]
    pub cost: Option<u64>,
    #[serde(default)]
    pub concurrency: Option<u32>,
    #[serde(default)]
    pub per: Option<Per>,
    #[serde(default)]
    pub algorithm: Option<String>,
    #[serde(default)]
    pub burst: Option<u64>,
    #[serde(default)]
    pub resets: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    pub label: String,
    pub secret: String,
    #[serde(default)]
    pub weight: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retry {
    pub max_attempts: Option<u32>,
    pub base: Option<HumanDuration>,
    pub cap: Option<HumanDuration>,
    pub jitter: Option<Jitter>,
    pub max_elapsed: Option<HumanDuration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Breaker {
    pub failures: Option<u32>,
    pub ratio: Option<String>,
    pub window: Option<HumanDuration>,
    pub open: Option<HumanDuration>,
    pub probes: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Budget {
    pub name: String,
    pub keys: Vec<Key>,
    #[serde(default)]
    pub limits: Vec<Limit>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub r#match: String,
    #[serde(default)]
    pub limits: Vec<Limit>,
    #[serde(default)]
    pub key_limits: Vec<Limit>,
    #[serde(default)]
    pub cost_from: Option<String>,
    #[serde(default)]
    pub timeout: Option<HumanDuration>,
    #[serde(default)]
    pub connect_timeout: Option<HumanDuration>,
    #[serde(default)]
    pub first_byte_timeout: Option<HumanDuration>,
    #[serde(default)]
    pub retry: Retry,
    #[serde(default)]
    pub idempotency_header: Option<String>,
    #[serde(default)]
    pub success: Option<StatusList>,
    #[serde(default)]
    pub outcomes: Vec<OutcomeRule>,
}

/// One rule of `outcomes`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutcomeRule {
    #[serde(default)]
    pub status: Option<StatusList>,
    #[serde(default)]
    pub header: Option<String>,
    #[serde(default)]
    pub pointer: Option<String>,
    #[serde(default)]
    pub equals: Option<Scalar>,
    pub outcome: Meaning,
    #[serde(default)]
    pub retry_after_pointer: Option<String>,
}

/// What an answer can be declared to mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Meaning {
    Success,
    Transient,
    Permanent,
    Throttled,
    Quota,
    KeyRefused,
    Unknown,
}

/// `404`, `"5xx"`, or a list of these; as text.
#[derive(Debug)]
pub(super) struct StatusList(pub Vec<String>);

impl<'de> Deserialize<'de> for StatusList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = StatusList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status such as 404, a class such as \"5xx\", or a list of these")
            }

            fn visit_i64<E: de::Error>(self, status: i64) -> Result<StatusList, E> {
                Ok(StatusList(vec![status.to_string()]))
            }

            fn visit_str<E: de::Error>(self, status: &str) -> Result<StatusList, E> {
                Ok(StatusList(vec![status.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<StatusList, A::Error> {
                let mut list = Vec::new();
                while let Some(StatusList(more)) = seq.next_element()? {
                    list.extend(more);
                }
                Ok(StatusList(list))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A text, or a list of texts.
#[derive(Debug)]
pub(super) struct Texts(pub Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
                let mut list = Vec::new();
                while let Some(text) = seq.next_element()? {
                    list.push(text);
                }
                Ok(Texts(list))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A text, a whole number or a boolean; as text.
#[derive(Debug)]
pub(super) struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a whole number, true or false")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A duration, or `"1 month"`: months are not all of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Per {
    Span(HumanDuration),
    Month,
}

impl<'de> Deserialize<'de> for Per {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "1 month" {
            return Ok(Self::Month);
        }
        text.parse().map(Self::Span).map_err(de::Error::custom)
    }
}

/// `"strict"`, `"balanced"` or `{ headroom = "2%" }`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Safety {
    Strict,
    Balanced,
    Headroom(f64),
}

impl<'de> Deserialize<'de> for Safety {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Safety;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"strict\", \"balanced\" or { headroom = \"2%\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Safety, E> {
                match text {
                    "strict" => Ok(Safety::Strict),
                    "balanced" => Ok(Safety::Balanced),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Safety, A::Error> {
                let mut safety = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name != "headroom" {
                        return Err(de::Error::unknown_field(&name, &["headroom"]));
                    }
                    let text: String = map.next_value()?;
                    let fraction = percent(&text).filter(|f| (0.0..1.0).contains(f)).ok_or_else(|| {
                        de::Error::custom(format!("expected a share such as \"2%\", below 100%, found {text:?}"))
                    })?;
                    safety = Some(Safety::Headroom(fraction));
                }
                safety.ok_or_else(|| de::Error::missing_field("headroom"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `"2%"` as 0.02.
pub(super) fn percent(text: &str) -> Option<f64> {
    let number: f64 = text.strip_suffix('%')?.trim().parse().ok()?;
    number.is_finite().then_some(number / 100.0)
}
