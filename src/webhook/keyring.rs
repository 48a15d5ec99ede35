//! What signs for registered endpoints: secrets that are derived and so stored nowhere, secrets that were given
//! and are sealed, and Ed25519 keys.
//!
//! A given secret is sealed with the master key ([`crate::vault`]), by the store in the transaction that keeps it. Where
//! there is no master key it is sealed here:
//!
//! ```text
//! HKDF-SHA256 (RFC 5869), no salt, 32 bytes
//!   input key  the bytes of webhooks.secret
//!   info       <label> 0x00 <id of the endpoint> 0x00 <version in decimal>
//!   labels     "paceline/webhook/endpoint/v1"   a generated secret
//!              "paceline/webhook/ed25519/v1"    the seed of an Ed25519 key
//!              "paceline/webhook/seal/v1"       the key that seals a given secret
//! ```
//!
//! That is ChaCha20-Poly1305 under a key of its own endpoint and version, so that a stored text opens nothing but itself.
//! What was sealed so is opened as long as `webhooks.secret` is the same.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::sign::{SignError, WebhookSecretError, WebhookSecrets, decode, sign_with, told};
use crate::clock::WallMs;
use crate::secrets::Secret;
use crate::store::{Endpoint, EndpointSecrets, SecretVersion};
use crate::vault::{MasterKeys, Place, Sealed, VaultError};

/// Labels of what is derived. Changing one changes every secret of its kind.
const SECRET_LABEL: &[u8] = b"paceline/webhook/endpoint/v1\0";
const ED25519_LABEL: &[u8] = b"paceline/webhook/ed25519/v1\0";
const SEAL_LABEL: &[u8] = b"paceline/webhook/seal/v1\0";
/// In front of a secret that is sealed without a master key.
const SEALED_PREFIX: &str = "w1.";
/// In front of a public key of the scheme.
const PUBLIC_PREFIX: &str = "whpk_";

/// A secret that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Not of the scheme.
    #[error(transparent)]
    Secret(#[from] WebhookSecretError),
    /// It was sealed under another `webhooks.secret`, or its text was changed.
    #[error("a given secret cannot be opened: was webhooks.secret changed? Rotate the secret of the endpoint")]
    Sealed,
    /// The master key that opens it is missing, or it was changed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The cryptographic library refused: never seen.
    #[error("a key cannot be made")]
    Key,
}

/// Who signs: a tenant for bare callback URLs, an endpoint for itself.
#[derive(Debug, Clone)]
pub enum Signer {
    /// With the secret that the tenant was told.
    Tenant(String),
    /// With the secrets of the endpoint of that id.
    Endpoint(String, EndpointSecrets),
}

impl From<&Endpoint> for Signer {
    fn from(endpoint: &Endpoint) -> Self {
        match &endpoint.secrets {
            Some(secrets) => Self::Endpoint(endpoint.id.clone(), secrets.clone()),
            None => Self::Tenant(endpoint.tenant.clone()),
        }
    }
}

/// Makes and uses everything that signs. Shows as `***`.
#[derive(Clone)]
pub struct Keyring {
    base: WebhookSecrets,
    masters: Arc<MasterKeys>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Keyring {
    /// Secrets are derived from `webhooks.secret`; given ones are opened with `masters`.
    pub const fn new(base: WebhookSecrets, masters: Arc<MasterKeys>) -> Self {
        Self { base, masters }
    }

    /// The master keys of this process.
    pub fn masters(&self) -> &MasterKeys {
        &self.masters
    }

    /// The value of `webhook-signature` at `now_ms`: `v1` of every active secret, newest first, and `v1a` where the
    /// endpoint asked for it.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn sign(
        &self,
        who: &Signer,
        event_id: &str,
        timestamp_s: i64,
        body: &[u8],
        now_ms: WallMs,
    ) -> Result<String, SignError> {
        let (id, secrets) = match who {
            Signer::Tenant(tenant) => return self.base.sign(tenant, event_id, timestamp_s, body),
            Signer::Endpoint(id, secrets) => (id, secrets),
        };
        let mut signatures = Vec::new();
        for version in secrets.active(now_ms) {
            signatures.push(sign_with(&self.key(id, version)?, event_id, timestamp_s, body)?);
        }
        if secrets.ed25519 {
            let content = [format!("{event_id}.{timestamp_s}.").as_bytes(), body].concat();
            for version in secrets.active(now_ms) {
                let signature = self.pair(id, version.version)?.sign(&content);
                signatures.push(format!("v1a,{}", STANDARD.encode(signature.as_ref())));
            }
        }
        Ok(signatures.join(" "))
    }

    /// The secret of that version, to be told once: `whsec_<base64>`.
    ///
    /// # Errors
    /// [`KeyringError::Sealed`], [`KeyringError::Vault`].
    pub fn secret(&self, id: &str, version: &SecretVersion) -> Result<Secret, KeyringError> {
        Ok(told(&self.key(id, version)?))
    }

    /// The public key of that version, `whpk_<base64>`.
    ///
    /// # Errors
    /// [`KeyringError::Key`].
    pub fn public_key(&self, id: &str, version: u32) -> Result<String, KeyringError> {
        Ok(format!("{PUBLIC_PREFIX}{}", STANDARD.encode(self.pair(id, version)?.public_key().as_ref())))
    }

    /// A version whose secret is `given`, sealed without a master key; or one that is derived.
    ///
    /// # Errors
    /// [`KeyringError::Secret`] says what was expected.
    pub fn version(&self, id: &str, version: u32, given: Option<&Secret>) -> Result<SecretVersion, KeyringError> {
        let sealed = given.map(|secret| self.seal(id, version, &decode(secret)?)).transpose()?;
        Ok(SecretVersion { version, sealed })
    }

    fn seal(&self, id: &str, version: u32, key: &[u8]) -> Result<String, KeyringError> {
        let sealing = self.derive(SEAL_LABEL, id, version).next().ok_or(KeyringError::Key)?;
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = key.to_vec();
        sealing_key(&sealing)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(id), &mut sealed)
            .map_err(|_| KeyringError::Key)?;
        Ok(format!("{SEALED_PREFIX}{}", STANDARD.encode([&nonce[..], &sealed].concat())))
    }

    /// The bytes that sign.
    fn key(&self, id: &str, version: &SecretVersion) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        match &version.sealed {
            None => self.derive(SECRET_LABEL, id, version.version).next().ok_or(KeyringError::Key),
            Some(text) => match Sealed::from_text(text) {
                Some(sealed) => {
                    let place = Place::Endpoint { id, version: version.version };
                    Ok(decode(&sealed.open(&self.masters, place)?)?)
                }
                None => self.open(id, version.version, text),
            },
        }
    }

    fn open(&self, id: &str, version: u32, sealed: &str) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        let text = sealed.strip_prefix(SEALED_PREFIX).ok_or(KeyringError::Sealed)?;
        let bytes = STANDARD.decode(text).map_err(|_| KeyringError::Sealed)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(KeyringError::Sealed)?;
        for sealing in self.derive(SEAL_LABEL, id, version) {
            let mut opened = Zeroizing::new(sealed.to_vec());
            let nonce = Nonce::assume_unique_for_key(*nonce);
            if let Ok(key) = sealing_key(&sealing)?.open_in_place(nonce, Aad::from(id), &mut opened) {
                return Ok(Zeroizing::new(key.to_vec()));
            }
        }
        Err(KeyringError::Sealed)
    }

    fn pair(&self, id: &str, version: u32) -> Result<Ed25519KeyPair, KeyringError> {
        let seed = self.derive(ED25519_LABEL, id, version).next().ok_or(KeyringError::Key)?;
        Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyringError::Key)
    }

    /// From every active base secret, newest first.
    fn derive<'a>(
        &'a self,
        label: &'a [u8],
        id: &'a str,
        version: u32,
    ) -> impl Iterator<Item = Zeroizing<Vec<u8>>> + use<'a> {
        self.base.derive(move || format!("{id}\0{version}").into_bytes(), label)
    }
}

fn sealing_key(bytes: &[u8]) -> Result<LessSafeKey, KeyringError> {
    UnboundKey::new(&CHACHA20_POLY1305, bytes).map(LessSafeKey::new).map_err(|_| KeyringError::Key)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
    use hmac::{Hmac, Mac as _};
    use sha2::Sha256;

    use super::*;
    use crate::store::OlderSecret;

    const BASE: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const GIVEN: &str = "whsec_Z2l2ZW4tYnktdGhlLXJlY2VpdmVyLTMyLWJ5dGVzLiE=";

    fn keyring(base: &str) -> Keyring {
        with_masters(base, Arc::default())
    }

    fn with_masters(base: &str, masters: Arc<MasterKeys>) -> Keyring {
        Keyring::new(WebhookSecrets::new(&Secret::new(base.to_owned())).expect("valid"), masters)
    }

    fn masters(byte: u8) -> Arc<MasterKeys> {
        let env = |name: &str| (name == "PACELINE_MASTER_KEY").then(|| STANDARD.encode([byte; 32]));
        Arc::new(MasterKeys::from_env(&env).expect("a master key"))
    }

    fn only(current: SecretVersion, ed25519: bool) -> Signer {
        Signer::Endpoint("ep_1".to_owned(), EndpointSecrets { current, older: Vec::new(), ed25519 })
    }

    fn signed(keyring: &Keyring, who: &Signer, now_ms: WallMs) -> Vec<String> {
        let signature = keyring.sign(who, "evt_1", 7, b"{}", now_ms).expect("signed");
        signature.split(' ').map(str::to_owned).collect()
    }

    /// HKDF by hand: extract with a key of zeros, then one block of expand.
    #[test]
    fn an_endpoints_secret_is_derived_as_documented() {
        let mac = |key: &[u8], parts: &[&[u8]]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes()
        };
        let base = STANDARD.decode(&BASE["whsec_".len()..]).expect("base64");
        let expected = mac(&mac(&[0; 32], &[&base]), &[b"paceline/webhook/endpoint/v1\0ep_1\x003", &[1]]);
        let version = SecretVersion { version: 3, sealed: None };
        let told = keyring(BASE).secret("ep_1", &version).expect("derived");
        assert_eq!(told.expose(), format!("whsec_{}", STANDARD.encode(expected)));
        let others = [("ep_2", 3), ("ep_1", 4), ("ep_13", 0)];
        for (id, version) in others {
            let other = keyring(BASE).secret(id, &SecretVersion { version, sealed: None }).expect("derived");
            assert_ne!(other, told, "{id} {version}");
        }
    }

    #[test]
    fn a_given_secret_is_sealed_and_signs() {
        let keyring = keyring(BASE);
        let given = Secret::new(GIVEN.to_owned());
        let version = keyring.version("ep_1", 1, Some(&given)).expect("valid");
        let sealed = version.sealed.clone().expect("sealed");
        assert!(!sealed.contains(&GIVEN["whsec_".len()..]), "{sealed}");
        assert_ne!(keyring.version("ep_1", 1, Some(&given)).expect("valid").sealed, version.sealed);
        assert_eq!(keyring.secret("ep_1", &version).expect("opened"), given);
        let by_hand = WebhookSecrets::new(&given).expect("valid").sign("", "evt_1", 7, b"{}").expect("signed");
        assert_eq!(signed(&keyring, &only(version.clone(), false), 0), [by_hand]);
        // Of another endpoint, of another version, changed, or under another base: it does not open.
        let mut bytes = STANDARD.decode(&sealed[SEALED_PREFIX.len()..]).expect("base64");
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        let changed = format!("{SEALED_PREFIX}{}", STANDARD.encode(bytes));
        let changed = SecretVersion { sealed: Some(changed), ..version.clone() };
        let later = SecretVersion { version: 2, ..version.clone() };
        for (id, version) in [("ep_2", &version), ("ep_1", &later), ("ep_1", &changed)] {
            assert!(matches!(keyring.secret(id, version), Err(KeyringError::Sealed)), "{id}");
        }
        assert!(matches!(self::keyring(GIVEN).secret("ep_1", &version), Err(KeyringError::Sealed)));
    }

    #[test]
    fn what_the_master_key_sealed_opens_with_it_whatever_the_base() {
        let place = Place::Endpoint { id: "ep_1", version: 1 };
        let given = Secret::new(GIVEN.to_owned());
        let sealed = masters(1).current().expect("set").seal(place, &given).expect("sealed").to_text();
        let version = SecretVersion { version: 1, sealed: Some(sealed) };
        for base in [BASE, GIVEN] {
            assert_eq!(with_masters(base, masters(1)).secret("ep_1", &version).expect("opened"), given);
        }
        let by_hand = WebhookSecrets::new(&given).expect("valid").sign("", "evt_1", 7, b"{}").expect("signed");
        assert_eq!(signed(&with_masters(BASE, masters(1)), &only(version.clone(), false), 0), [by_hand]);
        let later = SecretVersion { version: 2, ..version.clone() };
        for (id, version) in [("ep_2", &version), ("ep_1", &later)] {
            let opened = with_masters(BASE, masters(1)).secret(id, version);
            assert!(matches!(opened, Err(KeyringError::Vault(VaultError::Damaged { .. }))), "{id}");
        }
        for masters in [Arc::default(), masters(2)] {
            let opened = with_masters(BASE, masters).secret("ep_1", &version);
            let Err(KeyringError::Vault(error @ VaultError::WrongMaster { .. })) = opened else { panic!("{opened:?}") };
            assert!(error.to_string().contains("PACELINE_MASTER_KEY"), "{error}");
        }
        // What was sealed before there was a master key still opens.
        let old = keyring(BASE).version("ep_1", 1, Some(&given)).expect("valid");
        assert_eq!(with_masters(BASE, masters(1)).secret("ep_1", &old).expect("opened"), given);
    }

    #[test]
    fn a_given_secret_that_is_not_of_the_scheme_is_refused() {
        for (text, expected) in [
            ("hunter2", WebhookSecretError::Prefix),
            ("whsec_hunter2!", WebhookSecretError::NotBase64),
            ("whsec_c2hvcnQ=", WebhookSecretError::Length { bytes: 5 }),
        ] {
            let refused = keyring(BASE).version("ep_1", 1, Some(&Secret::new(text.to_owned())));
            assert!(matches!(refused, Err(KeyringError::Secret(found)) if found == expected), "{text}");
        }
    }

    #[test]
    fn every_active_secret_signs_and_an_expired_one_does_not() {
        let keyring = keyring(BASE);
        let derived = |version| SecretVersion { version, sealed: None };
        let older = |version, until_ms| OlderSecret { secret: derived(version), until_ms };
        let secrets = EndpointSecrets { current: derived(3), older: vec![older(2, 100), older(1, 50)], ed25519: false };
        let who = Signer::Endpoint("ep_1".to_owned(), secrets);
        let one = |version| signed(&keyring, &only(derived(version), false), 0).remove(0);
        assert_eq!(signed(&keyring, &who, 0), [one(3), one(2), one(1)]);
        assert_eq!(signed(&keyring, &who, 50), [one(3), one(2)]);
        assert_eq!(signed(&keyring, &who, 100), [one(3)]);
    }

    #[test]
    fn ed25519_signs_beside_and_is_verified_by_the_public_key() {
        let keyring = keyring(BASE);
        let version = SecretVersion { version: 1, sealed: None };
        let signatures = signed(&keyring, &only(version, true), 0);
        let [v1, v1a] = &signatures[..] else { panic!("two: {signatures:?}") };
        assert!(v1.starts_with("v1,"));
        let signature = STANDARD.decode(v1a.strip_prefix("v1a,").expect("the scheme")).expect("base64");
        let public = keyring.public_key("ep_1", 1).expect("a key");
        let public = STANDARD.decode(public.strip_prefix("whpk_").expect("the scheme")).expect("base64");
        UnparsedPublicKey::new(&ED25519, public).verify(b"evt_1.7.{}", &signature).expect("it is signed by it");
        assert_ne!(keyring.public_key("ep_1", 2).ok(), keyring.public_key("ep_1", 1).ok());
    }
}
