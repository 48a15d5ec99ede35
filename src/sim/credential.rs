//! Where a credential stands in a request, and whose it is.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

/// One key that the provider accepts.
#[derive(Clone)]
pub struct SimKey {
    /// Its name in ledgers and statistics; the secret itself is never shown.
    pub label: String,
    /// What the caller sends.
    pub secret: String,
    /// Keys of one account share the rules of [`super::Scope::Account`].
    pub account: Option<String>,
}

impl SimKey {
    /// A key with an account of its own.
    pub fn new(label: impl Into<String>, secret: impl Into<String>) -> Self {
        SimKey { label: label.into(), secret: secret.into(), account: None }
    }

    /// Puts the key into an account.
    pub fn of_account(self, account: impl Into<String>) -> Self {
        SimKey { account: Some(account.into()), ..self }
    }
}

impl fmt::Debug for SimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimKey").field("label", &self.label).field("account", &self.account).finish_non_exhaustive()
    }
}

/// Where to look for a credential; the first place that holds one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// `Authorization: Bearer <secret>`.
    Bearer,
    /// `Authorization: Basic <base64 of user:secret>`; where the password is empty, the user is the secret.
    Basic,
    /// A header, optionally with a scheme before the secret.
    Header {
        /// The header.
        name: HeaderName,
        /// For example `Token`.
        scheme: Option<String>,
    },
    /// A query parameter.
    Query {
        /// Its name.
        name: String,
    },
}

impl KeyPlace {
    /// The places looked at unless told otherwise: bearer, basic, `x-api-key`, `?api_key=`.
    pub fn usual() -> Vec<KeyPlace> {
        vec![
            KeyPlace::Bearer,
            KeyPlace::Basic,
            KeyPlace::Header { name: HeaderName::from_static("x-api-key"), scheme: None },
            KeyPlace::Query { name: "api_key".to_owned() },
        ]
    }

    /// The credential at this place.
    pub fn find(&self, headers: &HeaderMap, query: Option<&str>) -> Option<String> {
        match self {
            KeyPlace::Bearer => schemed(headers, &AUTHORIZATION, "bearer").map(str::to_owned),
            KeyPlace::Basic => {
                let coded = schemed(headers, &AUTHORIZATION, "basic")?;
                let pair = String::from_utf8(STANDARD.decode(coded).ok()?).ok()?;
                let (user, password) = pair.split_once(':')?;
                Some(if password.is_empty() { user } else { password }.to_owned())
            }
            KeyPlace::Header { name, scheme: None } => headers.get(name)?.to_str().ok().map(str::to_owned),
            KeyPlace::Header { name, scheme: Some(scheme) } => schemed(headers, name, scheme).map(str::to_owned),
            KeyPlace::Query { name } => url::form_urlencoded::parse(query?.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned()),
        }
    }
}

fn schemed<'a>(headers: &'a HeaderMap, name: &HeaderName, scheme: &str) -> Option<&'a str> {
    let (given, secret) = headers.get(name)?.to_str().ok()?.split_once(' ')?;
    given.eq_ignore_ascii_case(scheme).then(|| secret.trim())
}

/// Whose credential it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The key with this index.
    Key(usize),
    /// A credential nobody has seen yet, where all are accepted.
    New,
    /// A credential that is not accepted.
    Unknown,
    /// None was sent.
    Missing,
}

/// Secrets to indices of keys.
pub(crate) struct KeyBook {
    by_secret: HashMap<String, usize>,
    open: bool,
}

impl fmt::Debug for KeyBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyBook").field("keys", &self.by_secret.len()).finish_non_exhaustive()
    }
}

impl KeyBook {
    /// An empty list of keys accepts everyone: index 0 is then the caller without a credential.
    pub(crate) fn new(keys: &[SimKey]) -> Self {
        let by_secret = keys.iter().enumerate().map(|(at, key)| (key.secret.clone(), at)).collect();
        KeyBook { by_secret, open: keys.is_empty() }
    }

    pub(crate) fn look_up(&self, secret: Option<&str>) -> Caller {
        match secret {
            Some(secret) => match self.by_secret.get(secret) {
                Some(&at) => Caller::Key(at),
                None if self.open => Caller::New,
                None => Caller::Unknown,
            },
            None if self.open => Caller::Key(0),
            None => Caller::Missing,
        }
    }

    pub(crate) fn learn(&mut self, secret: &str, at: usize) {
        self.by_secret.insert(secret.to_owned(), at);
    }
}

/// A name for a key that was not configured: the beginning of its SHA-256.
pub(crate) fn alias(secret: &str) -> Arc<str> {
    let digest = Sha256::digest(secret.as_bytes());
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Arc::from(format!("sha256:{hex}"))
}
