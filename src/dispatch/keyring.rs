//! The secrets of a provider's keys in this process: those of the configuration, and the stored ones as they come,
//! change and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::core::{Freed, KeyNews};
use super::shell::{Dispatcher, DispatcherParts};
use crate::config::Provider;
use crate::pace::KeyId;
use crate::secrets::Secret;
use crate::store::StoreError;
use crate::vault::VaultError;

/// The versions of the stored keys that are known, by label.
pub(super) type Versions = Arc<BTreeMap<String, i64>>;

/// What goes onto a call.
#[derive(Debug, Clone)]
pub(super) enum Credential {
    /// The provider takes none.
    Nothing,
    /// This one.
    Key(Secret),
    /// It was removed since the permit was given.
    Gone,
}

/// A stored key as it was read.
#[derive(Debug)]
pub(super) struct Read {
    label: String,
    weight: u32,
    budget: Option<String>,
    version: i64,
    secret: ReadSecret,
}

#[derive(Debug)]
enum ReadSecret {
    /// The one that is known already.
    Known,
    New(Secret),
    Removed,
    /// The master key does not open it.
    Locked(VaultError),
}

/// All secrets of one provider, by the number of their key.
#[derive(Debug)]
pub(super) struct Keyring {
    credentials: Vec<Credential>,
    /// Labels whose secrets stand in the configuration: a stored key of that label is not used.
    configured: BTreeSet<String>,
    keyless: bool,
    versions: Versions,
    /// What is wrong with which stored key: told once.
    told: BTreeMap<String, String>,
}

impl Keyring {
    /// With the secrets of the configuration.
    pub fn new(provider: &Provider) -> Self {
        let keyless = provider.is_keyless();
        let credential = |secret: &Option<Secret>| match secret {
            Some(secret) => Credential::Key(secret.clone()),
            None if keyless => Credential::Nothing,
            None => Credential::Gone,
        };
        let labels = provider.pool.keys.iter().map(|key| key.label.clone());
        Self {
            credentials: provider.secrets.iter().map(credential).collect(),
            configured: labels.filter(|label| !provider.stored.contains(label)).collect(),
            keyless,
            versions: Versions::default(),
            told: BTreeMap::new(),
        }
    }

    /// What goes onto a call with that key.
    pub fn credential(&self, key: KeyId) -> Credential {
        self.credentials.get(key.0 as usize).cloned().unwrap_or(Credential::Gone)
    }

    /// What need not be read again.
    pub fn versions(&self) -> Versions {
        Arc::clone(&self.versions)
    }

    fn put(&mut self, key: KeyId, credential: Credential) {
        let place = key.0 as usize;
        while self.credentials.len() <= place {
            self.credentials.push(Credential::Gone);
        }
        self.credentials[place] = credential;
    }

    /// The label of another key with that secret: what both send counts as one at the provider.
    fn twin(&self, secret: &Secret, but: Option<KeyId>) -> bool {
        let others = self.credentials.iter().enumerate().filter(|(n, _)| but.is_none_or(|key| key.0 as usize != *n));
        others.into_iter().any(|(_, known)| matches!(known, Credential::Key(known) if known == secret))
    }
}

/// Reads the stored keys of a provider, and opens those that are not known yet.
pub(super) async fn read(parts: &DispatcherParts, known: &Versions) -> Result<Vec<Read>, StoreError> {
    let stored = parts.store.stored_keys(Some(&parts.provider.name)).await?;
    let read = |key: crate::store::StoredKey| {
        let secret = match known.get(&key.label) {
            Some(version) if *version >= key.version => ReadSecret::Known,
            _ => match key.open(&parts.masters) {
                Ok(Some(secret)) => ReadSecret::New(secret),
                Ok(None) => ReadSecret::Removed,
                Err(error) => ReadSecret::Locked(error),
            },
        };
        Read { label: key.label, weight: key.weight, budget: key.budget, version: key.version, secret }
    };
    Ok(stored.into_iter().map(read).collect())
}

impl Dispatcher {
    /// Learns what keys are stored now. Whoever waits for one of them may go.
    pub(super) fn keys_told(&mut self, keys: Vec<Read>) -> Option<Freed> {
        let keys: Vec<Read> = keys.into_iter().filter(|key| self.may_come(key)).collect();
        if self.keyring.keyless {
            self.core.go_keyless(keys.is_empty() && self.keyring.versions.is_empty());
        }
        let mut news = Vec::new();
        let mut came = Vec::new();
        for key in keys {
            // One that was read before the last one tells nothing any more.
            let is_news = self.keyring.versions.get(&key.label).is_none_or(|known| *known < key.version);
            if !is_news || matches!(key.secret, ReadSecret::Known) {
                continue;
            }
            news.push(self.news_of(&key));
            came.push(key);
        }
        let heard = self.core.hear_keys(&news);
        let mut versions = (*self.keyring.versions).clone();
        for ((key, news), id) in came.into_iter().zip(&news).zip(heard.keys) {
            let Some(id) = id else {
                self.tell_once(&key.label, "its budget is not configured here");
                continue;
            };
            match key.secret {
                ReadSecret::New(secret) if news.secret.is_some() => {
                    let provider = &self.label.provider;
                    tracing::info!(provider, key = key.label, version = key.version, "a stored key is in effect");
                    self.keyring.put(id, Credential::Key(secret));
                }
                ReadSecret::Removed => self.keyring.put(id, Credential::Gone),
                // Not opened: looked at again next time.
                _ => continue,
            }
            self.keyring.told.remove(&key.label);
            versions.insert(key.label, key.version);
        }
        self.keyring.versions = Arc::new(versions);
        if heard.groups_added {
            self.keeping.grow(self.core.group_names());
            self.pins_changed();
        }
        heard.freed
    }

    fn news_of(&mut self, key: &Read) -> KeyNews {
        let secret = match &key.secret {
            ReadSecret::New(secret) if self.keyring.twin(secret, self.core.key_named(&key.label)) => {
                self.tell_once(&key.label, "another key has the same secret");
                None
            }
            ReadSecret::New(secret) => Some(secret.fingerprint(&[&self.label.provider, &key.label])),
            ReadSecret::Locked(error) => {
                let error = error.to_string();
                self.tell_once(&key.label, &error);
                // What is here already stays in use.
                self.core.key_named(&key.label).and_then(|id| match self.keyring.credential(id) {
                    Credential::Key(secret) => Some(secret.fingerprint(&[&self.label.provider, &key.label])),
                    Credential::Gone | Credential::Nothing => None,
                })
            }
            ReadSecret::Known | ReadSecret::Removed => None,
        };
        KeyNews { label: key.label.clone(), weight: key.weight, budget: key.budget.clone(), secret }
    }

    /// Whether a stored key does not stand in the configuration with a secret of its own.
    fn may_come(&mut self, key: &Read) -> bool {
        let is_configured = self.keyring.configured.contains(&key.label);
        if is_configured {
            self.tell_once(&key.label, "the configuration has a key of this label with a secret of its own");
        }
        !is_configured
    }

    fn tell_once(&mut self, label: &str, reason: &str) {
        if self.keyring.told.get(label).is_none_or(|told| told != reason) {
            let provider = &self.label.provider;
            tracing::error!(provider, key = label, reason, "a stored key is not used");
            self.keyring.told.insert(label.to_owned(), reason.to_owned());
        }
    }
}
