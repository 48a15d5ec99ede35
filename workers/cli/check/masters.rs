//! Whether the master key is there that stored secrets need.

use std::collections::BTreeSet;
use std::time::Duration;

use paceline::config::Config;
use paceline::store::{NeededMasters, Store, StoreError, StoreOptions};
use paceline::vault::{MasterKeys, VaultError};
use serde_json::{Value, json};

use super::super::backend::sqlite_path;
use super::super::failure::Failure;

/// The store has this long to answer: a check is no place to wait.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// The master key of this environment, and who needs it.
pub(super) struct Masters {
    /// Its id; `None`: there is none, and nothing that is known needs one.
    id: Option<String>,
    /// `provider/label` of keys that the configuration says are stored.
    configured: Vec<String>,
    /// The ids of those that open what is stored; or why the store was not looked at.
    stored: Result<BTreeSet<String>, String>,
}

/// Looks at the environment, the configuration, and the store where it can be reached.
pub(super) async fn look(config: &Config) -> Result<Masters, Failure> {
    let masters = MasterKeys::of_process().map_err(|error| Failure::usage(error.to_string()))?;
    let configured = config
        .providers
        .iter()
        .flat_map(|provider| provider.stored.iter().map(move |label| format!("{}/{label}", provider.name)));
    let (configured, needed) = (configured.collect::<Vec<_>>(), needed(config).await);
    let problems = problems(&masters, &configured, needed.as_ref().ok());
    if !problems.is_empty() {
        return Err(Failure::usage(problems.join("\n")));
    }
    let stored = needed.map(|needed| needed.keys.into_iter().chain(needed.endpoints).collect());
    Ok(Masters { id: masters.current().ok().map(|key| key.id().to_owned()), configured, stored })
}

/// What is missing or wrong, all at once.
fn problems(masters: &MasterKeys, configured: &[String], needed: Option<&NeededMasters>) -> Vec<String> {
    let wrong = |ids: &BTreeSet<String>| -> Option<VaultError> { ids.iter().find_map(|id| masters.find(id).err()) };
    let stored = needed.into_iter().flat_map(|needed| {
        [("keys of providers", wrong(&needed.keys)), ("secrets of webhook endpoints", wrong(&needed.endpoints))]
    });
    let stored = stored.filter_map(|(what, wrong)| Some(format!("{what} in the store: {}", wrong?)));
    let missing = masters.current().err().filter(|_| !configured.is_empty());
    let missing = missing.map(|error| format!("secret = \"vault\" of {}: {error}", configured.join(", ")));
    missing.into_iter().chain(stored).collect()
}

async fn needed(config: &Config) -> Result<NeededMasters, String> {
    let url = config.store.url.expose();
    if sqlite_path(url).is_some_and(|path| !path.exists()) {
        return Ok(NeededMasters::default());
    }
    // A server that runs keeps its lock.
    let options = StoreOptions { url: url.to_owned(), exclusive: false, connections_max: 2 };
    let looked = async {
        let store = Store::open(&options).await?;
        let needed = store.needed_masters().await;
        store.close().await;
        needed
    };
    match tokio::time::timeout(LOOK_WITHIN, looked).await {
        Ok(Ok(needed)) => Ok(needed),
        Ok(Err(StoreError::Database(_))) => Err("its tables are not there yet, or not all of them".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it did not answer within {} s", LOOK_WITHIN.as_secs())),
    }
}

impl Masters {
    /// For people.
    pub(super) fn line(&self) -> String {
        let key = self.id.as_ref().map_or_else(|| "no master key".to_owned(), |id| format!("master key {id}"));
        match &self.stored {
            Ok(stored) if stored.is_empty() && self.configured.is_empty() => {
                format!("{key}; nothing is stored that needs one")
            }
            Ok(_) => format!("{key}, which opens what is stored"),
            Err(reason) => format!("{key}; the store was not looked at: {reason}"),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "master": self.id,
            "configured": self.configured,
            "stored": self.stored.as_ref().ok(),
            "not_looked_at": self.stored.as_ref().err(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let none = MasterKeys::default();
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let needed = NeededMasters { keys: ids(&["k1"]), endpoints: ids(&["e1"]) };
        assert!(problems(&none, &[], None).is_empty());
        assert!(problems(&none, &[], Some(&NeededMasters::default())).is_empty());
        let told = problems(&none, &["geo/b2".to_owned()], Some(&needed));
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("geo/b2") && told[0].contains("PACELINE_MASTER_KEY"), "{told:?}");
        assert!(told[1].contains("k1") && told[2].contains("e1"), "{told:?}");
    }
}
