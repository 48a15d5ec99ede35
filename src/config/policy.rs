//! How calls are made and what their answers mean: of a provider, and of the routes that say otherwise.

use std::time::Duration;

use http::HeaderName;

use super::{Problems, file};
use crate::cost::CostFrom;
use crate::duration::HumanDuration;
use crate::outcome::{BodyPattern, HeaderPattern, Outcome, Rule, Rules, Statuses};
use crate::pointer::Pointer;
use crate::retry::RetryPolicy;

/// Rules for answers that a provider or a route may have: each is tried on each answer.
const RULES_MAX: usize = 64;
/// The header field of the idempotency key, unless another is configured.
const IDEMPOTENCY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// A connection must stand within this time, unless something else is configured,
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// and within this share of the time for the whole call.
const CONNECT_SHARE: f64 = 0.8;

/// How a call is made, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What follows a failure.
    pub retry: RetryPolicy,
    /// Of a whole call.
    pub timeout: Duration,
    /// What is configured of a connection, and of the beginning of the answer.
    parts: Parts,
    /// The header field of the idempotency key.
    pub idempotency_header: HeaderName,
    /// Somebody configured it: the provider is known to heed it.
    pub is_idempotent: bool,
    /// What answers mean beyond the table; those of the route come before those of the provider.
    pub answers: Rules,
    /// Where answers tell the true cost of their calls.
    pub cost_from: Option<CostFrom>,
}

/// Times of parts of a call, where they are configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parts {
    connect: Option<Duration>,
    first_byte: Option<Duration>,
}

/// What may be said of calls, as it is written for a provider or a route.
pub(super) struct Written<'a> {
    pub retry: &'a file::Retry,
    pub timeout: Option<HumanDuration>,
    pub connect_timeout: Option<HumanDuration>,
    pub first_byte_timeout: Option<HumanDuration>,
    pub idempotency_header: Option<&'a str>,
    pub success: Option<&'a file::StatusList>,
    pub outcomes: &'a [file::OutcomeRule],
    pub cost_from: Option<&'a str>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            timeout: Duration::from_secs(30),
            parts: Parts::default(),
            idempotency_header: IDEMPOTENCY_HEADER,
            is_idempotent: false,
            answers: Rules::default(),
            cost_from: None,
        }
    }
}

impl Policy {
    /// Until a connection, with its TLS session, can take a call; then it surely was not sent.
    pub fn connect_timeout(&self) -> Duration {
        self.parts.connect.unwrap_or_else(|| CONNECT_TIMEOUT.min(self.timeout.mul_f64(CONNECT_SHARE))).min(self.timeout)
    }

    /// From when a call left until its answer begins.
    pub fn first_byte_timeout(&self) -> Duration {
        self.parts.first_byte.unwrap_or(self.timeout).min(self.timeout)
    }

    /// This policy where nothing else is written.
    pub(super) fn with(&self, place: &str, written: &Written<'_>, problems: &mut Problems) -> Self {
        let timeout = written.timeout.map_or(self.timeout, |d| d.0);
        if timeout.is_zero() {
            problems.add(format!("{place}timeout"), "expected more than 0s");
        }
        let mut within = |name: &str, raw: Option<HumanDuration>, inherited: Option<Duration>| {
            if raw.is_some_and(|d| d.0.is_zero() || d.0 > timeout) {
                problems.add(format!("{place}{name}"), "expected more than 0s and at most timeout");
            }
            raw.map(|d| d.0).or(inherited)
        };
        let parts = Parts {
            connect: within("connect_timeout", written.connect_timeout, self.parts.connect),
            first_byte: within("first_byte_timeout", written.first_byte_timeout, self.parts.first_byte),
        };
        let header = written.idempotency_header.map(|name| idempotency_header(place, name, problems));
        if written.outcomes.len() > RULES_MAX {
            problems.add(format!("{place}outcomes"), format!("expected at most {RULES_MAX} rules"));
        }
        let own = written.outcomes.iter().take(RULES_MAX).enumerate();
        let own = own.filter_map(|(n, raw)| rule(&format!("{place}outcomes[{n}]"), raw, problems));
        let rules = own.collect::<Vec<_>>().into_iter().chain(self.answers.rules.iter().cloned()).collect();
        let success = match written.success {
            Some(list) => statuses(&format!("{place}success"), list, problems),
            None => self.answers.success.clone(),
        };
        let cost_from = match written.cost_from {
            Some(pointer) => problems.take(&format!("{place}cost_from"), CostFrom::parse(pointer)),
            None => self.cost_from.clone(),
        };
        Self {
            retry: retry(place, written.retry, self.retry, problems),
            timeout,
            parts,
            idempotency_header: header.clone().flatten().unwrap_or_else(|| self.idempotency_header.clone()),
            is_idempotent: self.is_idempotent || header.is_some(),
            answers: Rules { rules, success },
            cost_from,
        }
    }
}

fn idempotency_header(place: &str, name: &str, problems: &mut Problems) -> Option<HeaderName> {
    let wrong = || format!("expected the name of a header field such as \"Idempotency-Key\", found {name:?}");
    problems.take(&format!("{place}idempotency_header"), name.parse::<HeaderName>().map_err(|_| wrong()))
}

fn statuses(place: &str, list: &file::StatusList, problems: &mut Problems) -> Option<Statuses> {
    if list.0.is_empty() {
        problems.add(place, "expected at least one status: a list without any fits nothing");
        return None;
    }
    let parsed = list.0.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>();
    problems.take(place, parsed).map(Statuses::all)
}

fn rule(place: &str, raw: &file::OutcomeRule, problems: &mut Problems) -> Option<Rule> {
    if raw.status.is_none() && raw.header.is_none() && raw.pointer.is_none() {
        problems.add(place, "expected at least one of status, header and pointer");
        return None;
    }
    if raw.equals.is_some() && raw.pointer.is_none() {
        problems.add(place, "equals needs a pointer: where it has to stand in the body");
        return None;
    }
    let status = raw.status.as_ref().map(|list| statuses(&format!("{place}.status"), list, problems));
    let header =
        raw.header.as_ref().map(|text| problems.take(&format!("{place}.header"), text.parse::<HeaderPattern>()));
    let pointer = raw.pointer.as_ref().map(|text| problems.take(&format!("{place}.pointer"), Pointer::parse(text)));
    let wait = raw.retry_after_pointer.as_ref();
    let wait = wait.map(|text| problems.take(&format!("{place}.retry_after_pointer"), Pointer::parse(text)));
    let equals = raw.equals.as_ref().map(|scalar| scalar.0.clone());
    Some(Rule {
        status: given(status)?,
        header: given(header)?,
        body: given(pointer)?.map(|pointer| BodyPattern { pointer, equals }),
        outcome: match raw.outcome {
            file::Meaning::Success => Outcome::Success,
            file::Meaning::Transient => Outcome::Transient,
            file::Meaning::Permanent => Outcome::Permanent,
            file::Meaning::Throttled => Outcome::RateLimited,
            file::Meaning::Quota => Outcome::QuotaExhausted,
            file::Meaning::KeyRefused => Outcome::Credential,
            file::Meaning::Unknown => Outcome::Unknown,
        },
        retry_after: given(wait)?,
    })
}

/// What was written and understood, or not written; `None`: it was not understood.
#[expect(clippy::option_option, reason = "written or not, understood or not")]
fn given<T>(written: Option<Option<T>>) -> Option<Option<T>> {
    written.map_or(Some(None), |understood| understood.map(Some))
}

fn retry(place: &str, raw: &file::Retry, standard: RetryPolicy, problems: &mut Problems) -> RetryPolicy {
    let policy = RetryPolicy {
        max_attempts: raw.max_attempts.unwrap_or(standard.max_attempts),
        base: raw.base.map_or(standard.base, |d| d.0),
        cap: raw.cap.map_or(standard.cap, |d| d.0),
        jitter: raw.jitter.unwrap_or(standard.jitter),
        max_elapsed: raw.max_elapsed.map_or(standard.max_elapsed, |d| d.0),
    };
    if !(1..=100).contains(&policy.max_attempts) {
        problems.add(format!("{place}retry.max_attempts"), "expected 1 to 100");
    }
    if policy.cap < policy.base {
        problems.add(format!("{place}retry.cap"), "expected at least retry.base");
    }
    policy
}
