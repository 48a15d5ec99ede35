//! One provider: where its calls go, with which keys, how fast, and what follows a failure.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::limits::{self, Quota, QuotaPlace};
use super::policy::{Policy, Written};
use super::{Lookup, Problems, file, secret};
use crate::breaker::BreakerPolicy;
use crate::glob;
use crate::job::{ProviderRules, REPLAY_LANE, is_name, is_reserved};
use crate::pace::{BudgetSpec, KeySpec, LaneSpec, PoolSpec, RouteSpec, Safety};
use crate::secrets::{Secret, SecretSource};
use crate::send_window::SendWindows;

/// The lane of jobs that name none.
const DEFAULT: &str = "default";

/// Windows that a provider may have.
const WINDOWS_MAX: usize = 16;

/// How a key is put on a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// In a header field, after a scheme where one is given (`Bearer`).
    Header {
        /// In lower case.
        name: http::HeaderName,
        /// Put before the key, with a blank.
        scheme: Option<String>,
    },
    /// As a query parameter.
    Query(String),
    /// As the password of HTTP Basic (RFC 7617).
    Basic {
        /// The user name.
        user: String,
    },
}

/// Calls that narrower limits or policies hold for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `None` matches every method.
    pub method: Option<String>,
    /// `*` stands for any text, slashes too.
    pub path: String,
    /// How these calls are made: what it says, else what the provider says.
    pub policy: Arc<Policy>,
}

/// A configured provider.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Its name.
    pub name: String,
    /// The only place its keys are ever sent to.
    pub base_url: Url,
    /// How a key is put on a call.
    pub auth: Auth,
    /// How calls are made that no route says more of.
    pub policy: Arc<Policy>,
    /// An extra certificate authority to trust (PEM).
    pub ca_file: Option<PathBuf>,
    /// Limits, keys (by label), budgets, routes and lanes, as they are paced.
    pub pool: PoolSpec,
    /// The key of every label, in the order of `pool.keys`; `None` for a provider that takes none, and for one of
    /// `stored`.
    pub secrets: Vec<Option<Secret>>,
    /// The labels of keys whose secrets are stored (`secret = "vault"`).
    pub stored: BTreeSet<String>,
    /// What calls the routes of `pool.routes` match, in the same order.
    pub routes: Vec<Route>,
    /// Which limits of `pool` begin anew by the calendar.
    pub quotas: Vec<Quota>,
    /// When it is left alone because it is down.
    pub breaker: BreakerPolicy,
    /// When calls may leave.
    pub windows: SendWindows,
}

impl Provider {
    /// Whether calls are made without any key: none is configured. Keys that are stored come in its place.
    pub fn is_keyless(&self) -> bool {
        self.stored.is_empty() && self.secrets.iter().all(Option::is_none)
    }

    /// What its jobs are checked against.
    pub fn rules(&self) -> ProviderRules {
        let pins =
            self.pool.keys.iter().map(|k| k.label.clone()).chain(self.pool.budgets.iter().map(|b| b.name.clone()));
        let budget = |key: &KeySpec| key.budget.and_then(|place| Some(self.pool.budgets.get(place)?.name.clone()));
        let keys = self.pool.keys.iter().map(|key| (key.label.clone(), budget(key)));
        let (credential_header, credential_query) = match &self.auth {
            Auth::Header { name, .. } => (Some(name.as_str().to_owned()), None),
            Auth::Query(name) => (None, Some(name.clone())),
            Auth::Basic { .. } => (Some("authorization".to_owned()), None),
        };
        ProviderRules {
            lanes: self.pool.lanes.iter().map(|l| l.name.clone()).collect(),
            pins: pins.collect(),
            keys: keys.collect(),
            stored: self.stored.clone(),
            keyless: self.is_keyless(),
            budgets: self.pool.budgets.iter().map(|budget| budget.name.clone()).collect(),
            credential_header,
            credential_query,
            windows: self.windows.clone(),
            idempotency_headers: self.policies().map(|policy| policy.idempotency_header.as_str().to_owned()).collect(),
        }
    }

    /// How a call is made: as the first route that matches it says.
    pub fn policy_of(&self, method: &str, path: &str) -> &Arc<Policy> {
        let first = self.routes_of(method, path).next();
        first.map_or(&self.policy, |route| &self.routes[route].policy)
    }

    /// The policies of all calls that it may be asked for.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        std::iter::once(&self.policy).chain(self.routes.iter().map(|route| &route.policy))
    }

    /// Indices of the routes that match a call.
    pub fn routes_of<'a>(&'a self, method: &'a str, path: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.routes.iter().enumerate().filter(move |(_, r)| r.matches(method, path)).map(|(n, _)| n)
    }
}

impl Route {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a path such as \"/v1/search*\", or a method and a path, found {text:?}");
        let (method, path) = match text.split_once(' ') {
            Some((method, path)) => (Some(method.trim().to_owned()), path.trim()),
            None => (None, text.trim()),
        };
        if method.as_ref().is_some_and(|m| m.is_empty() || !m.bytes().all(|b| b.is_ascii_uppercase())) {
            return Err(wrong());
        }
        if path.starts_with('/') || path.starts_with('*') {
            Ok(Self { method, path: path.to_owned(), policy: Arc::default() })
        } else {
            Err(wrong())
        }
    }

    /// Whether no path that is compared looks like its pattern.
    pub fn matches_nothing(&self) -> bool {
        normalised(&self.path) != self.path || matches!(self.method.as_deref(), Some("CONNECT" | "TRACE"))
    }

    /// Paths are compared as they arrive at most servers: percent-decoded, runs of `/` as one.
    fn matches(&self, method: &str, path: &str) -> bool {
        self.method.as_deref().is_none_or(|m| m == method) && glob::matches(&self.path, &normalised(path))
    }
}

fn normalised(path: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let mut out = String::with_capacity(decoded.len());
    for c in decoded.chars() {
        if !(c == '/' && out.ends_with('/')) {
            out.push(c);
        }
    }
    out
}

pub(super) fn build(raw: file::Provider, env: &Lookup<'_>, problems: &mut Problems) -> Option<Provider> {
    let place = format!("provider {:?}", raw.name);
    if !is_name(&raw.name) {
        problems.add(&place, "expected a name of 1 to 64 of a-z 0-9 _ -");
    }
    let base_url = base_url(&raw.base_url).map_err(|e| problems.add(format!("{place}: base_url"), e)).ok();
    let auth = auth(raw.auth.as_ref()).map_err(|e| problems.add(format!("{place}: auth"), e)).ok();
    let written = Written {
        retry: &raw.retry,
        timeout: raw.timeout,
        connect_timeout: raw.connect_timeout,
        first_byte_timeout: raw.first_byte_timeout,
        idempotency_header: raw.idempotency_header.as_deref(),
        success: raw.success.as_ref(),
        outcomes: &raw.outcomes,
        cost_from: None,
    };
    let policy = Arc::new(Policy::default().with(&format!("{place}: "), &written, problems));
    if raw.signals.as_deref().is_some_and(|s| s != "auto") {
        problems.add(format!("{place}: signals"), "expected \"auto\"");
    }
    let mut labels = BTreeSet::new();
    let (mut secrets, mut stored) = (Vec::new(), BTreeSet::new());
    let mut keys = keys(&place, &raw.keys, None, &mut labels, (&mut secrets, &mut stored), env, problems);
    let (mut budgets, mut quotas) = (Vec::new(), Vec::new());
    for (index, budget) in raw.budget.iter().enumerate() {
        let place = format!("{place}: budget {:?}", budget.name);
        claim_name(&place, &budget.name, &mut labels, problems);
        if budget.keys.is_empty() {
            problems.add(&place, "expected at least one key");
        }
        let secrets = (&mut secrets, &mut stored);
        keys.extend(self::keys(&place, &budget.keys, Some(index), &mut labels, secrets, env, problems));
        let at = QuotaPlace::Budget(index);
        let limits = limits::build(&format!("{place}: limits"), at, &budget.limits, &mut quotas, problems);
        budgets.push(BudgetSpec { name: budget.name.clone(), limits });
    }
    if keys.is_empty() {
        // A provider that takes no key still counts calls: by address, or not at all.
        keys.push(KeySpec { label: "none".to_owned(), weight: 1, budget: None });
        secrets.push(None);
    }
    let (routes, route_specs) = routes(&place, &raw.route, &policy, &mut quotas, problems);
    for name in std::iter::once(&policy).chain(routes.iter().map(|route| &route.policy)).map(|p| &p.idempotency_header)
    {
        if is_reserved(name.as_str()) || matches!(&auth, Some(Auth::Header { name: key, .. }) if key == name) {
            problems
                .add(format!("{place}: idempotency_header"), format!("{name} is set to something else on every call"));
        }
    }
    // A call may be on its way for as long as the most patient of them waits.
    let timeout = routes.iter().map(|route| route.policy.timeout).fold(policy.timeout, Duration::max);
    let mut limits = |name: &str, at, raw: &[_], problems: &mut _| {
        limits::build(&format!("{place}: {name}"), at, raw, &mut quotas, problems)
    };
    let pool = PoolSpec {
        safety: safety(raw.safety),
        counted_within: raw.counted_within.map_or(timeout, |d| d.0),
        limits: limits("limits", QuotaPlace::Provider, &raw.limits, problems),
        key_limits: limits("key_limits", QuotaPlace::Keys, &raw.key_limits, problems),
        keys,
        budgets,
        routes: route_specs,
        lanes: lanes(&place, &raw.lanes, problems),
    };
    problems.take(&place, pool.check());
    let breaker = breaker(&place, &raw.breaker, problems);
    let windows = windows(&format!("{place}: window"), raw.window.as_ref(), problems);
    Some(Provider {
        name: raw.name,
        base_url: base_url?,
        auth: auth?,
        policy,
        ca_file: raw.ca_file,
        pool,
        secrets,
        stored,
        routes,
        quotas,
        breaker,
        windows,
    })
}

fn safety(raw: Option<file::Safety>) -> Safety {
    match raw {
        None | Some(file::Safety::Strict) => Safety::Strict,
        Some(file::Safety::Balanced) => Safety::Balanced,
        Some(file::Safety::Headroom(share)) => Safety::Headroom(share),
    }
}

fn base_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("expected an absolute URL such as https://api.example.com: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("expected http or https and a host, found {text:?}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected a URL without user name and password: use auth and keys".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("expected a URL without ? and #".to_owned());
    }
    Ok(url)
}

fn auth(raw: Option<&file::Auth>) -> Result<Auth, String> {
    let Some(raw) = raw else {
        return Ok(Auth::Header { name: http::header::AUTHORIZATION, scheme: Some("Bearer".to_owned()) });
    };
    match (&raw.header, &raw.query, &raw.basic_user) {
        (Some(name), None, None) => {
            let name = name.parse().map_err(|_| format!("expected the name of a header field, found {name:?}"))?;
            if raw.scheme.as_ref().is_some_and(|s| s.is_empty() || !s.bytes().all(|b| b.is_ascii_graphic())) {
                return Err("expected a scheme such as Bearer".to_owned());
            }
            Ok(Auth::Header { name, scheme: raw.scheme.clone() })
        }
        (None, Some(name), None) if raw.scheme.is_none() && !name.is_empty() => Ok(Auth::Query(name.clone())),
        (None, None, Some(user)) if raw.scheme.is_none() && !user.contains(':') => {
            Ok(Auth::Basic { user: user.clone() })
        }
        _ => Err("expected one of { header, scheme }, { query } and { basic_user }".to_owned()),
    }
}

fn keys(
    place: &str,
    raw: &[file::Key],
    budget: Option<usize>,
    labels: &mut BTreeSet<String>,
    (secrets, stored): (&mut Vec<Option<Secret>>, &mut BTreeSet<String>),
    env: &Lookup<'_>,
    problems: &mut Problems,
) -> Vec<KeySpec> {
    let mut keys = Vec::new();
    for key in raw {
        let place = format!("{place}: key {:?}", key.label);
        claim_name(&place, &key.label, labels, problems);
        let weight = key.weight.unwrap_or(1);
        if !(1..=1000).contains(&weight) {
            problems.add(&place, "expected a weight of 1 to 1000");
        }
        let value = match key.secret.parse() {
            Ok(SecretSource::Vault) => {
                stored.insert(key.label.clone());
                None
            }
            _ => problems.take(&place, secret(&key.secret, env)),
        };
        if value.as_ref().is_some_and(|v| !is_sendable(v)) {
            problems.add(&place, "expected a secret of visible ASCII characters");
        }
        keys.push(KeySpec { label: key.label.clone(), weight, budget });
        secrets.push(value);
    }
    keys
}

/// Whether a key can be put into a header field, or into a URL.
pub fn is_sendable(key: &Secret) -> bool {
    !key.expose().is_empty() && key.expose().bytes().all(|byte| byte.is_ascii_graphic())
}

/// Labels and budget names of a provider share one namespace: jobs are pinned to either.
fn claim_name(place: &str, name: &str, taken: &mut BTreeSet<String>, problems: &mut Problems) {
    if !is_name(name) {
        problems.add(place, "expected a name of 1 to 64 of a-z 0-9 _ -");
    }
    if !taken.insert(name.to_owned()) {
        problems.add(place, "another key or budget of this provider has the same name");
    }
}

fn routes(
    place: &str,
    raw: &[file::Route],
    policy: &Policy,
    quotas: &mut Vec<Quota>,
    problems: &mut Problems,
) -> (Vec<Route>, Vec<RouteSpec>) {
    let mut routes = Vec::new();
    let mut specs = Vec::new();
    for (n, route) in raw.iter().enumerate() {
        let place = format!("{place}: route[{n}]");
        let Some(mut parsed) = problems.take(&format!("{place}.match"), Route::parse(&route.r#match)) else { continue };
        let written = Written {
            retry: &route.retry,
            timeout: route.timeout,
            connect_timeout: route.connect_timeout,
            first_byte_timeout: route.first_byte_timeout,
            idempotency_header: route.idempotency_header.as_deref(),
            success: route.success.as_ref(),
            outcomes: &route.outcomes,
            cost_from: route.cost_from.as_deref(),
        };
        parsed.policy = Arc::new(policy.with(&format!("{place}."), &written, problems));
        let mut limits =
            |name: &str, at, raw: &[_]| limits::build(&format!("{place}.{name}"), at, raw, quotas, problems);
        specs.push(RouteSpec {
            limits: limits("limits", QuotaPlace::Route(n), &route.limits),
            key_limits: limits("key_limits", QuotaPlace::RouteKeys(n), &route.key_limits),
        });
        routes.push(parsed);
    }
    (routes, specs)
}

fn lanes(place: &str, raw: &std::collections::BTreeMap<String, u32>, problems: &mut Problems) -> Vec<LaneSpec> {
    let mut lanes: Vec<LaneSpec> = Vec::new();
    for (name, weight) in raw {
        let place = format!("{place}: lanes.{name}");
        if !is_name(name) {
            problems.add(&place, "expected a name of 1 to 64 of a-z 0-9 _ -");
        }
        if name == REPLAY_LANE {
            problems.add(&place, "this lane is reserved for replays");
            continue;
        }
        if !(1..=1000).contains(weight) {
            problems.add(&place, "expected a weight of 1 to 1000");
        }
        lanes.push(LaneSpec { name: name.clone(), weight: *weight });
    }
    if !raw.contains_key(DEFAULT) {
        lanes.push(LaneSpec { name: DEFAULT.to_owned(), weight: 4 });
    }
    lanes.push(LaneSpec { name: REPLAY_LANE.to_owned(), weight: 1 });
    lanes
}

fn windows(place: &str, raw: Option<&file::Texts>, problems: &mut Problems) -> SendWindows {
    let Some(file::Texts(list)) = raw else { return SendWindows::default() };
    if !(1..=WINDOWS_MAX).contains(&list.len()) {
        problems.add(place, format!("expected 1 to {WINDOWS_MAX} windows: a list without any never opens"));
    }
    SendWindows::new(list.iter().filter_map(|text| problems.take(place, text.parse())).collect())
}

fn breaker(place: &str, raw: &file::Breaker, problems: &mut Problems) -> BreakerPolicy {
    let standard = BreakerPolicy::default();
    let ratio = raw.ratio.as_deref().map_or(Some(standard.ratio), file::percent).filter(|r| (0.0..=1.0).contains(r));
    let policy = BreakerPolicy {
        failures: raw.failures.unwrap_or(standard.failures),
        ratio: ratio.unwrap_or(standard.ratio),
        window: raw.window.map_or(standard.window, |d| d.0),
        open: raw.open.map_or(standard.open, |d| d.0),
        probes: raw.probes.unwrap_or(standard.probes),
    };
    let mut expect = |holds: bool, name: &str, what: &str| {
        if !holds {
            problems.add(format!("{place}: breaker.{name}"), format!("expected {what}"));
        }
    };
    let span = Duration::from_secs(1)..=Duration::from_secs(3_600);
    expect(ratio.is_some(), "ratio", "a share such as \"50%\", 0% to 100%");
    expect((1..=1_000_000).contains(&policy.failures), "failures", "1 to 1000000");
    expect(span.contains(&policy.window), "window", "1s to 1h");
    expect(span.contains(&policy.open), "open", "1s to 1h");
    expect((1..=100).contains(&policy.probes), "probes", "1 to 100");
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_match_by_method_and_glob() {
        let matches = |route: &str, method: &str, path: &str| Route::parse(route).expect(route).matches(method, path);
        assert!(matches("POST /v1/search*", "POST", "/v1/search/deep/er"));
        assert!(!matches("POST /v1/search*", "GET", "/v1/search"));
        assert!(matches("/v1/*/items", "GET", "/v1/a/b/items"));
        assert!(!matches("/v1/*/items", "GET", "/v1/a/b/item"));
        assert!(matches("*", "GET", "/"));
        assert!(matches("/v1/search", "GET", "//v1//search"), "empty segments do not lead past a limit");
        assert!(matches("/v1/search", "GET", "/v1/%73earch"), "nor does percent-encoding");
        assert!(Route::parse("search").is_err());
        assert!(Route::parse("post /x").is_err());
    }
}
