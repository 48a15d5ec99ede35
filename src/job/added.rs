//! Keys that were added while running, as jobs may be pinned to them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Labels of stored keys, with the declared budget of each, by provider.
pub type StoredLabels = BTreeMap<String, BTreeMap<String, Option<String>>>;

/// The labels of stored keys as this process knows them. Its clones share what they know.
#[derive(Debug, Clone, Default)]
pub struct AddedKeys(Arc<RwLock<Arc<StoredLabels>>>);

impl AddedKeys {
    /// Learns all there are now.
    pub fn learn(&self, labels: StoredLabels) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(labels);
    }

    /// All that are known.
    pub fn known(&self) -> Arc<StoredLabels> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a provider has a stored key of that label.
    pub fn contains(&self, provider: &str, label: &str) -> bool {
        self.known().get(provider).is_some_and(|labels| labels.contains_key(label))
    }
}
