//! Who calls, and what they may do: bearer tokens, scopes and tenants.
//!
//! Tokens are held only as SHA-256 hashes and compared in constant time. `admin` implies every
//! other scope. A token that is bound to a tenant sees and makes only that tenant's jobs; an
//! unbound one sees all.
//!
//! | scope | allows |
//! |---|---|
//! | `enqueue` | making and cancelling jobs |
//! | `read` | jobs, results, dead letters; the metrics and the details of `/readyz` where the token is not bound to a tenant |
//! | `replay` | running dead letters again, and purging them |
//! | `keys` | provider keys: disabling and enabling them, resuming their budgets |
//! | `admin` | everything, pausing and resuming providers too |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::error::{Problem, ProblemKind};
use super::guard;
use super::serve::Peer;
use super::throttle::{Throttle, Verdict};
use crate::config::{Scope, Token};

/// What the API keeps of a configured token.
#[derive(Clone)]
struct Entry {
    hash: [u8; 32],
    caller: Caller,
}

/// The configured tokens. Without any, only this machine is served (see `guard`).
#[derive(Clone)]
pub struct Tokens {
    entries: Arc<[Entry]>,
    throttle: Arc<Throttle>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| &entry.caller.name)).finish()
    }
}

impl Tokens {
    /// The configured tokens; only the hashes of their secrets are kept.
    pub fn new(configured: &[Token]) -> Self {
        let entry = |token: &Token| Entry {
            hash: Sha256::digest(token.secret.expose()).into(),
            caller: Caller {
                name: token.name.as_str().into(),
                scopes: token.scopes.as_slice().into(),
                tenant: token.tenant.as_deref().map(Into::into),
            },
        };
        Self { entries: configured.iter().map(entry).collect(), throttle: Arc::new(Throttle::new()) }
    }

    /// Whether none is configured.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whose token that is, and its number. Every entry is looked at, so that time tells nothing.
    fn find(&self, token: &[u8]) -> Option<(usize, &Caller)> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        for (number, entry) in self.entries.iter().enumerate() {
            let same: Choice = entry.hash.ct_eq(&hash);
            if bool::from(same) {
                found = Some((number, &entry.caller));
            }
        }
        found
    }

    /// Who sends these headers: the owner of the bearer token, or, where no token is configured,
    /// the user of this machine. An address that sends many wrong tokens is not heard for a while.
    pub(super) fn identify(&self, peer: Peer, uri: &http::Uri, headers: &HeaderMap) -> Result<Caller, Problem> {
        if self.is_empty() {
            guard::check_local(uri, headers)?;
            return Ok(Caller::local());
        }
        let missing = || {
            Problem::new(ProblemKind::Unauthorized, "send a token of this API: Authorization: Bearer <token>")
                .challenge("")
        };
        let unknown = || {
            Problem::new(ProblemKind::Unauthorized, "this token is not known here")
                .challenge(", error=\"invalid_token\"")
        };
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let value = values.next().ok_or_else(missing)?;
        if values.next().is_some() {
            return Err(unknown());
        }
        let (scheme, token) = match value.as_bytes().split_at_checked(7) {
            Some(parts) => parts,
            None => return Err(missing()),
        };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(missing());
        }
        let found = self.find(token.trim_ascii());
        match self.throttle.attempt(peer.0, found.map(|(number, _)| number), Instant::now()) {
            Verdict::Heard => {}
            Verdict::TooMany(wait) => {
                let detail = "too many wrong tokens came from this address: wait, then send the right one";
                return Err(Problem::new(ProblemKind::TooManyAttempts, detail).retry_after(wait));
            }
        }
        match found {
            Some((_, caller)) => Ok(caller.clone()),
            None => {
                // At most as often as the throttle hears it; the token itself is nobody's business.
                tracing::warn!(peer = %peer.0, "a token that nobody knows was sent");
                Err(unknown())
            }
        }
    }
}

/// Who makes a request.
#[derive(Debug, Clone)]
pub struct Caller {
    name: Arc<str>,
    scopes: Arc<[Scope]>,
    tenant: Option<Arc<str>>,
}

impl Caller {
    /// The user of this machine, where no token is configured: may do everything.
    fn local() -> Self {
        Self { name: "local".into(), scopes: Arc::new([Scope::Admin]), tenant: None }
    }

    /// Name of the token, for the record.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tenants this caller may act for, if it has the scope.
    ///
    /// # Errors
    /// 403 names the missing scope.
    pub fn may(&self, scope: Scope) -> Result<Tenancy, Problem> {
        if self.scopes.iter().any(|own| *own == scope || *own == Scope::Admin) {
            return Ok(Tenancy { tenant: self.tenant.clone(), by: Arc::clone(&self.name) });
        }
        let name = scope.as_str();
        let detail = format!("the token {:?} does not have the scope {name:?}", self.name);
        Err(Problem::new(ProblemKind::Forbidden, detail)
            .challenge(&format!(", error=\"insufficient_scope\", scope=\"{name}\"")))
    }

    /// As [`may`](Self::may), for what concerns all tenants at once.
    ///
    /// # Errors
    /// 403 also where the token is bound to a tenant.
    pub fn may_for_all(&self, scope: Scope) -> Result<(), Problem> {
        match self.may(scope)?.tenant {
            None => Ok(()),
            Some(_) => {
                Err(Problem::new(ProblemKind::Forbidden, "this concerns all tenants, and the token is bound to one"))
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Problem::new(ProblemKind::Internal, "this route does not authenticate its callers"))
    }
}

/// The tenants a caller may act for. Only [`Caller::may`] and [`Tenancy::all`] make one, so that
/// nothing is read or changed without having asked.
#[derive(Debug, Clone)]
pub struct Tenancy {
    tenant: Option<Arc<str>>,
    by: Arc<str>,
}

/// Who acts at the command line, where it holds the store itself.
pub const OPERATOR: &str = "command line";

impl Tenancy {
    /// Every tenant: the operator at the command line, who holds the store itself.
    pub fn all() -> Self {
        Self { tenant: None, by: OPERATOR.into() }
    }

    /// Who acts, for the record: the name of the token.
    pub fn by(&self) -> &str {
        &self.by
    }

    /// The one tenant, or `None` for all.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// Narrowed to what the caller asked for by a `tenant` parameter.
    ///
    /// # Errors
    /// 403 where it is not the caller's.
    pub fn narrow(self, wanted: Option<String>) -> Result<Self, Problem> {
        match (&self.tenant, wanted) {
            (_, None) => Ok(self),
            (None, Some(wanted)) => Ok(Self { tenant: Some(wanted.into()), ..self }),
            (Some(own), Some(wanted)) if **own == *wanted => Ok(self),
            (Some(_), Some(_)) => {
                Err(Problem::new(ProblemKind::Forbidden, "the parameter tenant names another tenant than the token's"))
            }
        }
    }
}

/// Lets only known callers through, and notes who it is.
pub(super) async fn authenticate(
    State(tokens): State<Tokens>,
    peer: Peer,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let caller = tokens.identify(peer, request.uri(), request.headers())?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// An address that must not be listened on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "api.listen = \"{address}\" can be reached from other machines, and no token is configured: add one, for example \
     api.tokens = [ {{ name = \"ops\", secret = \"env:PACELINE_TOKEN\", scopes = [\"admin\"] }} ], or listen on 127.0.0.1"
)]
pub struct OpenListen {
    /// The address.
    pub address: SocketAddr,
}

/// Refuses an address that others can reach while no token is configured.
///
/// # Errors
/// [`OpenListen`] says what to do.
pub fn check_listen(address: SocketAddr, tokens: &Tokens) -> Result<(), OpenListen> {
    if tokens.is_empty() && !address.ip().to_canonical().is_loopback() { Err(OpenListen { address }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Secret;

    const SCOPES: [Scope; 5] = [Scope::Enqueue, Scope::Read, Scope::Replay, Scope::Keys, Scope::Admin];

    fn tokens() -> Tokens {
        let token = |name: &str, secret: &str, scope, tenant: Option<&str>| Token {
            name: name.to_owned(),
            secret: Secret::new(secret.to_owned()),
            scopes: vec![scope],
            tenant: tenant.map(str::to_owned),
        };
        Tokens::new(&[
            token("reader", "r-secret", Scope::Read, Some("acme")),
            token("root", "a-secret", Scope::Admin, None),
        ])
    }

    fn identify(value: &str) -> Result<Caller, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().expect("a header"));
        tokens().identify(Peer([192, 0, 2, 1].into()), &http::Uri::from_static("/"), &headers)
    }

    #[test]
    fn tokens_are_found_by_hash_and_never_printed() {
        assert_eq!(&*identify("Bearer r-secret").expect("known").name, "reader");
        assert_eq!(&*identify("bearer a-secret").expect("known").name, "root");
        for wrong in ["Bearer r-secre", "Bearer r-secret2", "Basic r-secret", "r-secret", "Bearer", "Bearer "] {
            assert_eq!(identify(wrong).expect_err(wrong).kind, ProblemKind::Unauthorized);
        }
        let shown = format!("{:?}", tokens());
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn admin_implies_every_scope_and_a_missing_scope_is_named() {
        let root = identify("Bearer a-secret").expect("known");
        let reader = identify("Bearer r-secret").expect("known");
        for scope in SCOPES {
            assert!(root.may(scope).is_ok());
            assert_eq!(reader.may(scope).is_ok(), scope == Scope::Read);
        }
        assert!(reader.may(Scope::Replay).expect_err("missing").detail.contains("\"replay\""));
        assert_eq!(reader.may(Scope::Read).expect("scope").tenant(), Some("acme"));
        assert!(reader.may_for_all(Scope::Read).is_err());
    }

    #[test]
    fn a_tenant_parameter_narrows_and_never_widens() {
        let bound = Tenancy { tenant: Some("acme".into()), ..Tenancy::all() };
        assert!(bound.clone().narrow(Some("other".into())).is_err());
        assert!(bound.clone().narrow(Some("acme".into())).is_ok());
        assert_eq!(bound.narrow(None).expect("own").tenant(), Some("acme"));
        assert_eq!(Tenancy::all().narrow(Some("x".into())).expect("any").tenant(), Some("x"));
    }

    #[test]
    fn an_open_address_needs_a_token() {
        let open: SocketAddr = "0.0.0.0:8080".parse().expect("address");
        let own: SocketAddr = "127.0.0.1:8080".parse().expect("address");
        let own6: SocketAddr = "[::1]:8080".parse().expect("address");
        assert!(check_listen(own, &Tokens::new(&[])).is_ok());
        assert!(check_listen(own6, &Tokens::new(&[])).is_ok());
        assert!(check_listen(open, &tokens()).is_ok());
        let refused = check_listen(open, &Tokens::new(&[])).expect_err("open").to_string();
        assert!(refused.contains("api.tokens") && refused.contains("127.0.0.1"), "{refused}");
    }
}
