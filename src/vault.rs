//! Encrypts stored secrets, provider keys and those of webhook endpoints: XChaCha20-Poly1305 under a master key that no
//! database holds.
//!
//! A sealed secret is bound to its [`Place`]: put into another row, or put back after a rotation, it
//! does not open. Which master key it was sealed with is kept beside it, so that a wrong one is a
//! clear error and nothing is ever written with it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::secrets::{Secret, SecretError, SecretSource};

/// The master key; or the file that holds it.
const CURRENT: (&str, &str) = ("PACELINE_MASTER_KEY", "PACELINE_MASTER_KEY_FILE");
/// The one before, while it is being replaced.
const PREVIOUS: (&str, &str) = ("PACELINE_MASTER_KEY_PREVIOUS", "PACELINE_MASTER_KEY_PREVIOUS_FILE");
/// In front of a sealed secret that is kept as one text.
const TEXT_PREFIX: &str = "m1.";
/// Of XChaCha20: long enough to be drawn at random for ever.
const NONCE_BYTES: usize = 24;

/// What went wrong with a master key, or with what it should open. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// None is there.
    #[error("no master key is set: put 32 random bytes in base64 (openssl rand -base64 32) into {}, or name a file with {}", CURRENT.0, CURRENT.1)]
    NoMaster,
    /// Another one is needed.
    #[error(
        "the stored secrets were encrypted with the master key {needed}, and {}: set that one (PACELINE_MASTER_KEY, or PACELINE_MASTER_KEY_PREVIOUS while it is being replaced); nothing was changed", held_text(.held)
    )]
    WrongMaster {
        /// Its id.
        needed: String,
        /// The ids of those that are set.
        held: Vec<String>,
    },
    /// It does not open, though the master key is the right one.
    #[error("the stored {what} does not open: its row was changed behind Paceline's back")]
    Damaged {
        /// Which secret.
        what: String,
    },
    /// Not a master key.
    #[error("{place}: expected 32 bytes in base64, as openssl rand -base64 32 makes them")]
    Form {
        /// Where it was read from.
        place: String,
    },
    /// Two ways to say the same.
    #[error("both {0} and {1} are set: leave one of them out")]
    Twice(&'static str, &'static str),
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
}

fn held_text(held: &[String]) -> String {
    match held {
        [] => "no master key is set here".to_owned(),
        held => format!("{} is set here", held.join(" and ")),
    }
}

impl From<SecretError> for VaultError {
    fn from(error: SecretError) -> Self {
        let source = match &error {
            SecretError::File { source, .. } => format!(": {source}"),
            _ => String::new(),
        };
        Self::Unreadable(format!("{error}{source}"))
    }
}

/// Which secret is sealed: it opens nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// A key of a provider.
    Key {
        /// Whose key.
        provider: &'a str,
        /// Which.
        label: &'a str,
        /// Of the secret.
        version: i64,
    },
    /// What signs for a webhook endpoint.
    Endpoint {
        /// Which.
        id: &'a str,
        /// Of the secret.
        version: u32,
    },
}

impl Place<'_> {
    /// No two places have the same.
    fn associated_data(self) -> Vec<u8> {
        let (kind, names, version): (&[u8], &[&str], i64) = match &self {
            Self::Key { provider, label, version } => (b"paceline vault 1", &[provider, label], *version),
            Self::Endpoint { id, version } => (b"paceline webhook 1", &[id], i64::from(*version)),
        };
        let mut data = kind.to_vec();
        for name in names {
            data.extend((name.len() as u64).to_be_bytes());
            data.extend(name.as_bytes());
        }
        data.extend(version.to_be_bytes());
        data
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { provider, label, .. } => write!(f, "key {label} of {provider}"),
            Self::Endpoint { id, version } => write!(f, "secret {version} of the endpoint {id}"),
        }
    }
}

/// An encrypted secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Nonce and ciphertext.
    pub bytes: Vec<u8>,
    /// Which master key opens it.
    pub master: String,
}

impl Sealed {
    /// Decrypts what was sealed for that place.
    ///
    /// # Errors
    /// [`VaultError`] where the master key is missing or another one, or it was not sealed for that place.
    pub fn open(&self, masters: &MasterKeys, place: Place<'_>) -> Result<Secret, VaultError> {
        masters.find(&self.master)?.open(place, &self.bytes)
    }

    /// As one text.
    pub fn to_text(&self) -> String {
        format!("{TEXT_PREFIX}{}.{}", self.master, STANDARD.encode(&self.bytes))
    }

    /// Takes [`Sealed::to_text`] back; `None`: it is of another form.
    pub fn from_text(text: &str) -> Option<Self> {
        let (master, bytes) = text.strip_prefix(TEXT_PREFIX)?.split_once('.')?;
        Some(Self { bytes: STANDARD.decode(bytes).ok()?, master: master.to_owned() })
    }
}

/// What opens stored keys. Shows as its id wherever it is printed.
#[derive(Clone)]
pub struct MasterKey {
    id: String,
    key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

impl MasterKey {
    /// 32 bytes in base64; `place` says where the text was read.
    ///
    /// # Errors
    /// [`VaultError::Form`].
    pub fn parse(text: &Secret, place: &str) -> Result<Self, VaultError> {
        let form = || VaultError::Form { place: place.to_owned() };
        let mut bytes = Zeroizing::new(STANDARD.decode(text.expose()).map_err(|_| form())?);
        let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| form())?;
        let key = Zeroizing::new(key);
        bytes.zeroize();
        let digest = Sha256::new().chain_update(b"paceline master key id").chain_update(*key).finalize();
        Ok(Self { id: hex(&digest[..8]), key })
    }

    /// Names it, and says nothing of it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Encrypts a secret for that place: the nonce, then the ciphertext with its tag.
    ///
    /// # Errors
    /// [`VaultError::Damaged`] cannot come of any secret that fits into memory.
    pub fn seal(&self, place: Place<'_>, secret: &Secret) -> Result<Sealed, VaultError> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload { msg: secret.expose().as_bytes(), aad: &place.associated_data() };
        let sealed =
            self.cipher().encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| VaultError::damaged(place))?;
        Ok(Sealed { bytes: [&nonce[..], &sealed].concat(), master: self.id.clone() })
    }

    fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Secret, VaultError> {
        let damaged = || VaultError::damaged(place);
        let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES).ok_or_else(damaged)?;
        let payload = Payload { msg: sealed, aad: &place.associated_data() };
        let bytes = self.cipher().decrypt(XNonce::from_slice(nonce), payload).map_err(|_| damaged())?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Secret::new(text)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(damaged())
            }
        }
    }

    /// Tells a provider's secrets apart. Without the master key no guess can be tested by it.
    pub fn fingerprint(&self, provider: &str, secret: &Secret) -> String {
        // Any length of key will do: there is no error to come.
        let Ok(mut mac) = <Hmac<Sha256> as Mac>::new_from_slice(&*self.key) else { return String::new() };
        mac.update(b"paceline fingerprint 1");
        mac.update(&(provider.len() as u64).to_be_bytes());
        mac.update(provider.as_bytes());
        mac.update(secret.expose().as_bytes());
        hex(&mac.finalize().into_bytes()[..8])
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.key).into())
    }
}

impl VaultError {
    fn damaged(place: Place<'_>) -> Self {
        Self::Damaged { what: place.to_string() }
    }
}

/// The master keys of this process.
#[derive(Debug, Clone, Default)]
pub struct MasterKeys {
    current: Option<MasterKey>,
    previous: Option<MasterKey>,
}

impl MasterKeys {
    /// Those that the environment names; `env` looks a variable up.
    ///
    /// # Errors
    /// [`VaultError`] where one is named and is none.
    pub fn from_env(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, VaultError> {
        Ok(Self { current: read(CURRENT, env)?, previous: read(PREVIOUS, env)? })
    }

    /// Of the process's own environment.
    ///
    /// # Errors
    /// As [`MasterKeys::from_env`].
    pub fn of_process() -> Result<Self, VaultError> {
        Self::from_env(&|name| std::env::var(name).ok())
    }

    /// The same with another one before it: for replacing it.
    #[must_use]
    pub fn with_previous(self, previous: MasterKey) -> Self {
        Self { previous: Some(previous), ..self }
    }

    /// The one that new stores begin with, and that others are replaced by.
    ///
    /// # Errors
    /// [`VaultError::NoMaster`].
    pub fn current(&self) -> Result<&MasterKey, VaultError> {
        self.current.as_ref().ok_or(VaultError::NoMaster)
    }

    /// The one with that id.
    ///
    /// # Errors
    /// [`VaultError::NoMaster`], [`VaultError::WrongMaster`].
    pub fn find(&self, id: &str) -> Result<&MasterKey, VaultError> {
        let mut known = self.current.iter().chain(&self.previous);
        known.find(|key| key.id == id).ok_or_else(|| {
            let held = self.current.iter().chain(&self.previous).map(|key| key.id.clone()).collect();
            VaultError::WrongMaster { needed: id.to_owned(), held }
        })
    }
}

fn read(
    (value, file): (&'static str, &'static str),
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<MasterKey>, VaultError> {
    let source = match (env(value), env(file)) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(VaultError::Twice(value, file)),
        (Some(_), None) => SecretSource::Env(value.to_owned()),
        (None, Some(path)) => SecretSource::File(path),
    };
    let place = if matches!(source, SecretSource::Env(_)) { value } else { file };
    MasterKey::parse(&source.resolve(env)?, place).map(Some)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(byte: u8) -> MasterKey {
        MasterKey::parse(&Secret::new(STANDARD.encode([byte; 32])), "a test").expect("a master key")
    }

    const PLACE: Place<'_> = Place::Key { provider: "geo", label: "a1", version: 3 };

    #[test]
    fn a_secret_opens_only_in_its_own_place_under_its_own_master_key() {
        let secret = Secret::new("sk-live-1".to_owned());
        let endpoint = Place::Endpoint { id: "ep_1", version: 3 };
        let elsewhere = [
            PLACE,
            Place::Key { provider: "other", label: "a1", version: 3 },
            Place::Key { provider: "geo", label: "a2", version: 3 },
            Place::Key { provider: "geo", label: "a1", version: 2 },
            Place::Key { provider: "geoa", label: "1", version: 3 },
            endpoint,
            Place::Endpoint { id: "ep_2", version: 3 },
            Place::Endpoint { id: "ep_1", version: 2 },
        ];
        for place in [PLACE, endpoint] {
            let sealed = master(1).seal(place, &secret).expect("sealed").bytes;
            assert!(!sealed.windows(4).any(|bytes| bytes == b"sk-l"));
            assert_eq!(master(1).open(place, &sealed).expect("opened"), secret);
            let damaged = VaultError::damaged(place);
            assert_eq!(master(2).open(place, &sealed), Err(damaged.clone()));
            for other in elsewhere.into_iter().filter(|other| *other != place) {
                assert!(master(1).open(other, &sealed).is_err(), "{other:?}");
            }
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                assert_eq!(master(1).open(place, &changed), Err(damaged.clone()), "byte {at}");
            }
            for short in [&[][..], &sealed[..NONCE_BYTES], &sealed[..NONCE_BYTES + 15]] {
                assert!(master(1).open(place, short).is_err());
            }
            assert_ne!(master(1).seal(place, &secret).expect("sealed").bytes, sealed, "never twice the same nonce");
        }
    }

    #[test]
    fn a_sealed_secret_is_one_text_and_read_back_in_that_form_only() {
        let sealed = master(1).seal(PLACE, &Secret::new("sk-live-1".to_owned())).expect("sealed");
        let text = sealed.to_text();
        assert!(text.starts_with(&format!("m1.{}.", master(1).id())), "{text}");
        assert_eq!(Sealed::from_text(&text), Some(sealed));
        for other in ["", "m1.", "m1.0a0b", "m1.0a0b.?", "w1.AAAA", &text[1..]] {
            assert_eq!(Sealed::from_text(other), None, "{other}");
        }
    }

    #[test]
    fn a_fingerprint_needs_the_master_key_and_tells_secrets_apart() {
        let print =
            |key: u8, provider: &str, secret: &str| master(key).fingerprint(provider, &Secret::new(secret.to_owned()));
        assert_eq!(print(1, "geo", "s1"), print(1, "geo", "s1"));
        for other in [print(2, "geo", "s1"), print(1, "ge", "os1"), print(1, "geo", "s2")] {
            assert_ne!(print(1, "geo", "s1"), other);
        }
        assert_eq!(print(1, "geo", "s1").len(), 16);
    }

    #[test]
    fn master_keys_are_named_by_the_environment_and_every_mistake_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("master").display().to_string();
        std::fs::write(&path, format!("{}\n", STANDARD.encode([7; 32]))).expect("written");
        let of = |vars: &[(&str, &str)]| {
            MasterKeys::from_env(&|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        let good = STANDARD.encode([1; 32]);
        let keys = of(&[("PACELINE_MASTER_KEY", &good), ("PACELINE_MASTER_KEY_PREVIOUS_FILE", &path)]).expect("two");
        assert_eq!(keys.current().expect("set").id(), master(1).id());
        assert_eq!(keys.find(master(7).id()).expect("the previous one").id(), master(7).id());
        let wrong = keys.find(master(9).id()).expect_err("neither").to_string();
        assert!(wrong.contains(master(9).id()) && wrong.contains(master(1).id()), "{wrong}");
        assert_eq!(of(&[]).expect("none").current().err(), Some(VaultError::NoMaster));
        assert!(of(&[]).expect("none").find("x").expect_err("none").to_string().contains("no master key is set here"));
        for bad in ["hunter2", &STANDARD.encode([1; 31]), ""] {
            let told = of(&[("PACELINE_MASTER_KEY", bad)]).expect_err("no key").to_string();
            assert!(told.contains("PACELINE_MASTER_KEY") && !told.contains("hunter2"), "{told}");
        }
        let twice = of(&[("PACELINE_MASTER_KEY", &good), ("PACELINE_MASTER_KEY_FILE", &path)]);
        assert!(matches!(twice, Err(VaultError::Twice(..))));
        assert!(matches!(of(&[("PACELINE_MASTER_KEY_FILE", "/does/not/exist")]), Err(VaultError::Unreadable(_))));
        assert!(!format!("{keys:?}").contains(&good));
    }
}
