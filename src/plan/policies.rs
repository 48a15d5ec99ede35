//! How calls are made: what holds for one call, and what is risky about a provider's policies. Pure.

use serde::Serialize;

use super::ceiling::route_name;
use super::review::{Expected, Review, Warning};
use crate::config::{Policy, Provider, Route};
use crate::duration::HumanDuration;
use crate::glob;

/// Methods that a provider may execute twice when they are sent twice (RFC 9110, section 9.2.2).
const NOT_IDEMPOTENT: [&str; 2] = ["POST", "PATCH"];

/// Everything that holds for one call.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The provider that it is asked of.
    pub provider: String,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The routes that match, by their place and pattern.
    pub routes: Vec<String>,
    /// Whose policies hold: the first of them, or `the provider`.
    pub policies_of: String,
    /// The limits that hold.
    pub limits: Vec<Expected>,
    /// How long the whole call may take.
    pub timeout_ms: u64,
    /// Failures before the job is dead.
    pub max_attempts: u32,
    /// First and longest backoff, and for how long it is tried.
    pub backoff: String,
    /// What answers are a success; `None`: 2xx and 304.
    pub success: Option<String>,
    /// Rules for other answers, in their order.
    pub outcomes: Vec<String>,
    /// The header field of its idempotency key.
    pub idempotency_header: String,
    /// Whether its true cost is read from the answer.
    pub cost_from_answer: bool,
    /// What is risky about it.
    pub warnings: Vec<Warning>,
}

/// What holds for a call; `review` is that of its provider.
pub fn explain(provider: &Provider, review: &Review, method: &str, path: &str) -> Explanation {
    let routes: Vec<usize> = provider.routes_of(method, path).collect();
    let named = |n: &usize| format!("route[{n}] {}", route_name(&provider.routes[*n]));
    let holds = |place: &str| match place.strip_prefix("route[").and_then(|rest| rest.split_once(']')) {
        Some((number, _)) => routes.iter().any(|route| route.to_string() == number),
        None => true,
    };
    let policy = provider.policy_of(method, path);
    let place = routes.first().map_or_else(String::new, |n| format!("route[{n}]"));
    let mut warnings: Vec<Warning> = too_short(policy, &place).into_iter().collect();
    warnings.extend(repeats(policy, Some(method), &place));
    Explanation {
        provider: provider.name.clone(),
        method: method.to_owned(),
        path: path.to_owned(),
        policies_of: routes.first().map_or_else(|| "the provider".to_owned(), named),
        routes: routes.iter().map(named).collect(),
        limits: review.expected.iter().filter(|limit| holds(&limit.place)).cloned().collect(),
        timeout_ms: u64::try_from(policy.timeout.as_millis()).unwrap_or(u64::MAX),
        max_attempts: policy.retry.max_attempts,
        backoff: backoff(policy),
        success: policy.answers.success.as_ref().map(ToString::to_string),
        outcomes: policy.answers.rules.iter().map(ToString::to_string).collect(),
        idempotency_header: policy.idempotency_header.to_string(),
        cost_from_answer: policy.cost_from.is_some(),
        warnings,
    }
}

/// In words.
fn backoff(policy: &Policy) -> String {
    let retry = policy.retry;
    let (base, cap, most) = (HumanDuration(retry.base), HumanDuration(retry.cap), HumanDuration(retry.max_elapsed));
    format!("{base} to {cap}, for {most} at most")
}

/// What is risky about the policies of a provider and its routes.
pub(super) fn warnings(provider: &Provider) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = too_short(&provider.policy, "retry.max_elapsed").into_iter().collect();
    for (n, route) in provider.routes.iter().enumerate() {
        let place = format!("route[{n}]");
        if let Some(warning) = unreachable(provider, n, &place) {
            warnings.push(warning);
            continue;
        }
        if route.policy.retry != provider.policy.retry {
            warnings.extend(too_short(&route.policy, &place));
        }
        // Without routes nobody knows whether calls are made that must not be repeated.
        warnings.extend(repeats(&route.policy, route.method.as_deref(), &place));
    }
    warnings
}

fn too_short(policy: &Policy, place: &str) -> Option<Warning> {
    let retry = policy.retry;
    let (base, most) = (retry.base.min(retry.cap), retry.max_elapsed);
    (retry.max_attempts > 1 && most <= base).then(|| {
        let message = format!(
            "no failed call is made again: the first backoff is up to {}, and after {} the job is given up; choose a longer max_elapsed",
            HumanDuration(base),
            HumanDuration(most)
        );
        warning("gives_up_at_once", place, message)
    })
}

fn repeats(policy: &Policy, method: Option<&str>, place: &str) -> Option<Warning> {
    let method = method.filter(|method| NOT_IDEMPOTENT.contains(method))?;
    // One attempt is repeated all the same after a crash, where nobody knows whether it was made.
    (!policy.is_idempotent).then(|| {
        let message = format!(
            "a {method} whose outcome is unknown is sent again, and the provider is not known to heed the idempotency key: \
             name its header field in idempotency_header, or send such jobs with \"delivery\": \"at_most_once\""
        );
        warning("repeats_calls", place, message)
    })
}

/// A route that matches no call, or whose policies never hold since an earlier one matches all that it does.
fn unreachable(provider: &Provider, number: usize, place: &str) -> Option<Warning> {
    let route = &provider.routes[number];
    if route.matches_nothing() {
        let message = "no call matches it: paths are compared percent-decoded, runs of / as one";
        return Some(warning("matches_nothing", place, message.to_owned()));
    }
    // Limits of all routes hold: only policies can be hidden.
    if route.policy == provider.policy {
        return None;
    }
    let earlier = provider.routes[..number].iter().position(|earlier| covers(earlier, route))?;
    let message = format!(
        "its policies never hold: route[{earlier}] ({}) matches every call that it does, and comes first",
        route_name(&provider.routes[earlier])
    );
    Some(warning("shadowed_route", place, message))
}

/// Whether every call that `inner` matches is matched by `outer`. A `*` of the inner one is only matched by one of the
/// outer one.
fn covers(outer: &Route, inner: &Route) -> bool {
    outer.method.as_ref().is_none_or(|method| inner.method.as_ref() == Some(method))
        && glob::matches(&outer.path, &inner.path)
}

fn warning(code: &'static str, place: &str, message: String) -> Warning {
    Warning { code, place: place.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::super::review;
    use super::*;
    use crate::config::Config;
    use crate::sim::Lognormal;

    fn provider(text: &str) -> Provider {
        let text = format!(
            "[[provider]]\nname = \"p\"\nbase_url = \"http://127.0.0.1\"\nlimits = [ {{ concurrency = 9 }} ]\n{text}"
        );
        Config::parse(&text, None, &[]).expect("valid").providers.remove(0)
    }

    fn codes(text: &str) -> Vec<(&'static str, String)> {
        warnings(&provider(text)).into_iter().map(|warning| (warning.code, warning.place)).collect()
    }

    #[test]
    fn risky_policies_are_told_with_their_place() {
        let told = |code, place: &str| vec![(code, place.to_owned())];
        let route = |text: &str| format!("[[provider.route]]\nmatch = {text}\n");
        assert_eq!(codes(""), []);
        assert_eq!(
            codes("retry = { base = \"2s\", max_elapsed = \"1s\" }"),
            told("gives_up_at_once", "retry.max_elapsed")
        );
        assert_eq!(codes("retry = { base = \"2s\", max_elapsed = \"1s\", max_attempts = 1 }"), []);
        assert_eq!(codes(&route("\"POST /a\"")), told("repeats_calls", "route[0]"));
        assert_eq!(codes(&route("\"GET /a\"")), []);
        assert_eq!(codes(&route("\"POST /a\"\nidempotency_header = \"Idempotency-Key\"")), []);
        assert_eq!(codes(&format!("idempotency_header = \"X-Id\"\n{}", route("\"PATCH /a\""))), []);
        assert_eq!(codes(&route("\"/a//b\"")), told("matches_nothing", "route[0]"));
        assert_eq!(codes(&route("\"/a%20b\"")), told("matches_nothing", "route[0]"));
        let hidden = |first: &str, second: &str| codes(&(route(first) + &route(second)));
        assert_eq!(hidden("\"/v1/*\"", "\"GET /v1/a*\"\ntimeout = \"1s\""), told("shadowed_route", "route[1]"));
        assert_eq!(hidden("\"/v1/*\"", "\"GET /v1/a*\"\nlimits = [ { concurrency = 1 } ]"), [], "limits hold of all");
        assert_eq!(hidden("\"GET /v1/*\"", "\"/v1/a\"\ntimeout = \"1s\""), [], "other methods come through");
        assert_eq!(hidden("\"/v1/a*\"", "\"/v1/*\"\ntimeout = \"1s\""), []);
    }

    #[test]
    fn a_call_is_explained_by_the_routes_that_match_it() {
        let provider = provider(
            r#"
            key_limits = [ { requests = 5, per = "1s" } ]
            outcomes = [ { status = "5xx", outcome = "unknown" } ]
            [[provider.route]]
            match = "/v1/*"
            limits = [ { requests = 3, per = "1s" } ]
            timeout = "7s"
            outcomes = [ { status = [409, 423], header = "x-error: lock*", pointer = "/e~1f/g", equals = 7, outcome = "transient" } ]
            success = "2xx"
            [[provider.route]]
            match = "POST /v1/search"
            key_limits = [ { requests = 2, per = "1s" } ]
            [[provider.route]]
            match = "/v2/*"
            limits = [ { requests = 1, per = "1s" } ]
            "#,
        );
        let explained = |method, path| explain(&provider, &review(&provider, Lognormal::ms(100, 100)), method, path);
        let search = explained("POST", "/v1/search");
        let places: Vec<&str> = search.limits.iter().map(|limit| limit.place.as_str()).collect();
        assert_eq!(places, ["limits[0]", "key_limits[0]", "route[0].limits[0]", "route[1].key_limits[0]"]);
        assert_eq!(search.policies_of, "route[0] /v1/*");
        assert_eq!((search.timeout_ms, search.success.as_deref()), (7_000, Some("2xx")));
        let rules = ["409, 423; x-error: lock*; /e~1f/g = \"7\" → transient", "5xx → unknown"];
        assert_eq!(search.outcomes, rules);
        assert_eq!(search.warnings.iter().map(|warning| warning.code).collect::<Vec<_>>(), ["repeats_calls"]);
        let other = explained("GET", "/other");
        assert_eq!((other.policies_of.as_str(), other.routes.len(), other.limits.len()), ("the provider", 0, 2));
        assert!(other.warnings.is_empty());
    }
}
