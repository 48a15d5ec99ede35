//! Which parts of this process work right now: what `/readyz` answers.
//!
//! Every part that can fail on its own (the store, the queue) has one entry; whoever supervises
//! the part sets it. Cheap to clone and to set: a mutex around a few entries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest error text that is kept of a part, in bytes.
const ERROR_BYTES_MAX: usize = 512;

/// How a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartState {
    /// Declared, and not heard of yet.
    Starting,
    /// It works.
    Ok,
    /// It does not, and this is what it last said.
    Failed(String),
}

impl PartState {
    /// The name in `/readyz`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ok => "ok",
            Self::Failed(_) => "failed",
        }
    }

    /// What it last said, where it failed.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Starting | Self::Ok => None,
        }
    }
}

/// The parts of this process and how they are. A handle: clones share one registry.
///
/// ```
/// use paceline::readiness::Readiness;
/// let readiness = Readiness::default();
/// readiness.declare("queue");
/// assert!(!readiness.is_ready());
/// assert!(readiness.set("queue", Ok(())));
/// assert!(readiness.is_ready());
/// readiness.set("queue", Err("connection refused".to_owned()));
/// assert!(!readiness.is_ready());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<&'static str, PartState>>>,
}

impl Readiness {
    /// Makes a part known before it has started: not ready until it says so.
    pub fn declare(&self, part: &'static str) {
        self.parts().entry(part).or_insert(PartState::Starting);
    }

    /// Says how a part is. The text must hold no secret: it is shown by `/readyz`.
    ///
    /// Returns whether that is news, so that the caller logs a change once.
    pub fn set(&self, part: &'static str, result: Result<(), String>) -> bool {
        let state = match result {
            Ok(()) => PartState::Ok,
            Err(error) => PartState::Failed(shortened(error)),
        };
        let mut parts = self.parts();
        let changed = parts.get(part).map(PartState::as_str) != Some(state.as_str());
        parts.insert(part, state);
        changed
    }

    /// Whether every part works.
    pub fn is_ready(&self) -> bool {
        self.parts().values().all(|state| *state == PartState::Ok)
    }

    /// Every part and how it is, by name.
    pub fn snapshot(&self) -> Vec<(&'static str, PartState)> {
        self.parts().iter().map(|(part, state)| (*part, state.clone())).collect()
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<&'static str, PartState>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        let end = (0..=ERROR_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_red_part_is_enough_and_only_changes_are_news() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready(), "nothing declared, nothing missing");
        assert!(readiness.set("store", Ok(())));
        assert!(!readiness.set("store", Ok(())));
        assert!(readiness.clone().set("queue", Err("gone".into())));
        assert!(!readiness.set("queue", Err("still gone".into())));
        assert!(!readiness.is_ready());
        let shown = readiness.snapshot();
        assert_eq!(shown[0], ("queue", PartState::Failed("still gone".into())));
        assert_eq!(shown[1], ("store", PartState::Ok));
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        let readiness = Readiness::default();
        readiness.set("store", Err("ä".repeat(1000)));
        let error = readiness.snapshot()[0].1.error().map(str::len);
        assert!(error.is_some_and(|len| len <= ERROR_BYTES_MAX + 4));
    }
}
