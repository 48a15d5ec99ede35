//! Secrets as a type that cannot be printed, compared in constant time and wiped when dropped.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// A provider key, a token, a signing secret. Shows as `***` wherever it is printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the secret over.
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// A number that tells this secret from another one in the same place, and from which it cannot be guessed: of
    /// SHA-256 with the place as salt so little is kept that countless texts have the same.
    pub fn fingerprint(&self, place: &[&str]) -> u64 {
        let mut hash = Sha256::new();
        hash.update(b"paceline fingerprint");
        for part in place.iter().chain([&self.expose()]) {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        // Never zero, which stands for no secret at all.
        1 + u64::from(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
    }

    /// The secret itself: only for the call that it belongs to.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

/// Where a secret stands in the configuration: never inline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// `env:NAME`
    Env(String),
    /// `file:/path`; surrounding blanks and line ends are cut off.
    File(String),
    /// `vault`: stored encrypted, managed by `paceline keys`.
    Vault,
}

/// Why a secret could not be had. Never holds the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Neither `env:`, `file:` nor `vault`.
    #[error("expected \"env:NAME\", \"file:/path\" or \"vault\": secrets are never written into the configuration")]
    Inline,
    /// The variable is not there.
    #[error("the environment variable {0} is not set")]
    Unset(String),
    /// There is nothing in it.
    #[error("{0} is empty")]
    Empty(String),
    /// The file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file's path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Only provider keys are stored.
    #[error("only the keys of providers can be stored (\"vault\"): use \"env:NAME\" or \"file:/path\"")]
    NoVault,
}

impl std::str::FromStr for SecretSource {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.to_owned())),
            None if text == "vault" => Ok(Self::Vault),
            _ => Err(SecretError::Inline),
        }
    }
}

impl SecretSource {
    /// Reads the secret. `env` looks a variable up (the process's own, or a test's).
    ///
    /// # Errors
    /// [`SecretError`] says which source had nothing.
    pub fn resolve(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Secret, SecretError> {
        let (place, value) = match self {
            Self::Env(name) => {
                (format!("the environment variable {name}"), env(name).ok_or_else(|| SecretError::Unset(name.clone()))?)
            }
            Self::File(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(|source| SecretError::File { path: path.clone(), source })?;
                (format!("the file {path}"), text)
            }
            Self::Vault => return Err(SecretError::NoVault),
        };
        match value.trim() {
            "" => Err(SecretError::Empty(place)),
            trimmed => Ok(Secret::new(trimmed.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints() {
        let secret = Secret::new("hunter2".into());
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
    }

    #[test]
    fn a_fingerprint_tells_secrets_and_places_apart_and_is_small() {
        let print = |secret: &str, place: &[&str]| Secret::new(secret.to_owned()).fingerprint(place);
        assert_eq!(print("s1", &["geo", "a"]), print("s1", &["geo", "a"]));
        assert_ne!(print("s1", &["geo", "a"]), print("s2", &["geo", "a"]));
        assert_ne!(print("s1", &["geo", "a"]), print("s1", &["geo", "b"]));
        assert_ne!(print("s1", &["geo", "a"]), print("s1", &["geoa", ""]));
        assert!((1..=1 + u64::from(u32::MAX)).contains(&print("s1", &[])));
    }

    #[test]
    fn sources_are_named_never_inline() {
        let env = |name: &str| (name == "A").then(|| " s \n".to_owned());
        let get = |text: &str| text.parse::<SecretSource>().and_then(|s| s.resolve(&env));
        assert_eq!(get("env:A").expect("set").expose(), "s");
        assert!(matches!(get("env:B"), Err(SecretError::Unset(name)) if name == "B"));
        assert!(matches!(get("sk-live-123"), Err(SecretError::Inline)));
        assert!(matches!(get("file:/does/not/exist"), Err(SecretError::File { .. })));
        let shown = get("sk-live-123").expect_err("inline").to_string();
        assert!(!shown.contains("sk-live"));
    }
}
