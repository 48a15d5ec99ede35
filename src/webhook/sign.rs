//! Signatures of the Standard Webhooks scheme (<https://www.standardwebhooks.com>), and the secrets
//! they are made with.
//!
//! `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over `<id>.<timestamp>.<body>`, one a
//! secret, separated by blanks: while a secret is rotated both are sent and either verifies.
//!
//! An endpoint without a tenant is signed for with the configured secret itself. A tenant's is
//! derived from it, so that one tenant can be told its secret and learns nothing of another's:
//!
//! ```text
//! HKDF-SHA256 (RFC 5869), no salt, 32 bytes
//!   input key  the bytes of the configured secret
//!   info       "paceline/webhook/tenant/v1" 0x00 <tenant in UTF-8>
//! ```

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use sha2::Sha256;
use standardwebhooks::Webhook;
use zeroize::Zeroizing;

use crate::secrets::Secret;

/// In front of every secret of the scheme.
const PREFIX: &str = "whsec_";
/// Sizes of a secret that the scheme allows, in bytes.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Size of a derived secret, in bytes.
const DERIVED_KEY_BYTES: usize = 32;
/// Label of a derived secret. Changing it changes every tenant's secret.
const TENANT_LABEL: &[u8] = b"paceline/webhook/tenant/v1\0";
/// Secrets that sign at the same time at most: a rotation needs two.
const ACTIVE_MAX: usize = 4;

/// Why a signing secret cannot be used. Never holds the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookSecretError {
    /// Not of the scheme.
    #[error("expected whsec_ and then base64 (make one with: echo whsec_$(openssl rand -base64 32))")]
    Prefix,
    /// What follows the prefix does not decode.
    #[error("expected base64 (standard alphabet, padded) after whsec_")]
    NotBase64,
    /// Too weak, or longer than the scheme allows.
    #[error("expected 24 to 64 bytes after whsec_, found {bytes}")]
    Length {
        /// What was found.
        bytes: usize,
    },
    /// More than can be active at once.
    #[error("expected at most {ACTIVE_MAX} active secrets")]
    TooMany,
}

/// A body that cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The body is not UTF-8.
    #[error("the event cannot be signed: {0}")]
    Body(#[from] standardwebhooks::WebhookError),
    /// What would sign it cannot be used.
    #[error("the event cannot be signed: {0}")]
    Key(#[from] super::keyring::KeyringError),
}

/// The secrets that sign callbacks, newest first. Shows as `***` wherever it is printed.
#[derive(Clone)]
pub struct WebhookSecrets {
    active: Vec<Zeroizing<Vec<u8>>>,
}

impl WebhookSecrets {
    /// The secret of the configuration, `whsec_<base64>`.
    ///
    /// # Errors
    /// [`WebhookSecretError`] says what was expected.
    pub fn new(secret: &Secret) -> Result<Self, WebhookSecretError> {
        Ok(Self { active: vec![decode(secret)?] })
    }

    /// Signs with an older secret too, until every receiver knows the new one.
    ///
    /// # Errors
    /// [`WebhookSecretError`] says what was expected.
    pub fn with_previous(mut self, secret: &Secret) -> Result<Self, WebhookSecretError> {
        if self.active.len() >= ACTIVE_MAX {
            return Err(WebhookSecretError::TooMany);
        }
        self.active.push(decode(secret)?);
        Ok(self)
    }

    /// The secret to tell the receivers of a tenant (empty: of jobs without one), as `whsec_<base64>`.
    pub fn told_to(&self, tenant: &str) -> Secret {
        told(&self.active.first().map(|base| key_for(base, tenant)).unwrap_or_default())
    }

    /// 32 bytes for another purpose, from every active secret, newest first; `label` ends in a zero byte.
    pub(super) fn derive<'a>(
        &'a self,
        info: impl Fn() -> Vec<u8> + 'a,
        label: &'a [u8],
    ) -> impl Iterator<Item = Zeroizing<Vec<u8>>> + 'a {
        self.active.iter().map(move |base| expand(base, &[label, &info()]))
    }

    /// The value of `webhook-signature`. `timestamp_s` is the value of `webhook-timestamp`, in
    /// seconds since 1970.
    ///
    /// # Errors
    /// [`SignError`] where the body is not UTF-8.
    pub fn sign(&self, tenant: &str, id: &str, timestamp_s: i64, body: &[u8]) -> Result<String, SignError> {
        let mut signatures = Vec::with_capacity(self.active.len());
        for base in &self.active {
            signatures.push(sign_with(&key_for(base, tenant), id, timestamp_s, body)?);
        }
        Ok(signatures.join(" "))
    }
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One signature, `v1,…`.
pub(super) fn sign_with(key: &[u8], id: &str, timestamp_s: i64, body: &[u8]) -> Result<String, SignError> {
    Ok(Webhook::from_bytes(key.to_vec())?.sign(id, timestamp_s, body)?)
}

/// A key as its receiver is told of it.
pub(super) fn told(key: &[u8]) -> Secret {
    let mut text = PREFIX.to_owned();
    STANDARD.encode_string(key, &mut text);
    Secret::new(text)
}

/// The bytes of a secret of the scheme.
pub(super) fn decode(secret: &Secret) -> Result<Zeroizing<Vec<u8>>, WebhookSecretError> {
    let text = secret.expose().strip_prefix(PREFIX).ok_or(WebhookSecretError::Prefix)?;
    let key = Zeroizing::new(STANDARD.decode(text).map_err(|_| WebhookSecretError::NotBase64)?);
    if KEY_BYTES.contains(&key.len()) { Ok(key) } else { Err(WebhookSecretError::Length { bytes: key.len() }) }
}

fn key_for(base: &Zeroizing<Vec<u8>>, tenant: &str) -> Zeroizing<Vec<u8>> {
    if tenant.is_empty() {
        return base.clone();
    }
    expand(base, &[TENANT_LABEL, tenant.as_bytes()])
}

fn expand(base: &[u8], info: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; DERIVED_KEY_BYTES]);
    // The only error is an output of more than 255 hashes; this one is a single hash long.
    let expanded = Hkdf::<Sha256>::new(None, base).expand_multi_info(info, &mut key);
    debug_assert!(expanded.is_ok(), "one hash is never too long");
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmac::{Hmac, Mac};

    const BASE: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn secrets(text: &str) -> Result<WebhookSecrets, WebhookSecretError> {
        WebhookSecrets::new(&Secret::new(text.to_owned()))
    }

    #[test]
    fn the_example_of_the_scheme_is_signed_as_it_says() {
        let signature = secrets(BASE)
            .expect("valid")
            .sign("", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#)
            .expect("UTF-8");
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_that_are_not_of_the_scheme_are_refused_without_being_shown() {
        let cases = [
            ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", WebhookSecretError::Prefix),
            ("whsec_hunter2!", WebhookSecretError::NotBase64),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", WebhookSecretError::NotBase64),
            ("whsec_", WebhookSecretError::Length { bytes: 0 }),
            ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa0=", WebhookSecretError::Length { bytes: 23 }),
        ];
        for (text, expected) in cases {
            let error = secrets(text).expect_err(text);
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        assert_eq!(secrets(&long).expect_err("long"), WebhookSecretError::Length { bytes: 65 });
        assert!(secrets(&format!("whsec_{}", STANDARD.encode([7; 64]))).is_ok());
        assert_eq!(format!("{:?}", secrets(BASE).expect("valid")), "***");
    }

    /// HKDF by hand: extract with a key of zeros, then one block of expand.
    #[test]
    fn a_tenants_secret_is_derived_as_documented() {
        let mac = |key: &[u8], parts: &[&[u8]]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes()
        };
        let base = STANDARD.decode(&BASE[PREFIX.len()..]).expect("base64");
        let extracted = mac(&[0; 32], &[&base]);
        let expected = mac(&extracted, &[b"paceline/webhook/tenant/v1\0acme", &[1]]);
        let told = secrets(BASE).expect("valid").told_to("acme");
        assert_eq!(told.expose(), format!("whsec_{}", STANDARD.encode(expected)));
    }

    #[test]
    fn a_receiver_verifies_with_what_it_was_told_and_nothing_else() {
        let all = secrets(BASE).expect("valid");
        let by = |told: &Secret| secrets(told.expose()).map(|s| s.sign("", "id", 1, b"{}").expect("UTF-8"));
        let acme = all.sign("acme", "id", 1, b"{}").expect("UTF-8");
        assert_eq!(by(&all.told_to("acme")), Ok(acme.clone()));
        assert_ne!(by(&all.told_to("acme2")), Ok(acme.clone()));
        assert_ne!(by(&all.told_to("")), Ok(acme));
        assert_eq!(all.told_to("").expose(), BASE);
    }

    #[test]
    fn during_a_rotation_both_secrets_sign_and_the_newest_is_told() {
        let newer = Secret::new(format!("whsec_{}", STANDARD.encode([9; 32])));
        let older = Secret::new(BASE.to_owned());
        let both = WebhookSecrets::new(&newer).and_then(|s| s.with_previous(&older)).expect("valid");
        for tenant in ["", "acme"] {
            let signature = both.sign(tenant, "id", 1, b"{}").expect("UTF-8");
            let one = |secret| WebhookSecrets::new(secret).expect("valid").sign(tenant, "id", 1, b"{}").expect("UTF-8");
            assert_eq!(signature, format!("{} {}", one(&newer), one(&older)));
        }
        assert_eq!(both.told_to(""), newer);
        let many = (0..ACTIVE_MAX).try_fold(both, |secrets, _| secrets.with_previous(&older));
        assert_eq!(many.expect_err("too many"), WebhookSecretError::TooMany);
    }
}
