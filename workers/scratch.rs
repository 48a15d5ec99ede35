//! A directory for one run, removed at its end.

use std::path::PathBuf;

/// Removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new directory below the system's place for temporary files.
    pub fn new(name: &str) -> std::io::Result<Self> {
        let unique = format!("paceline-{name}-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// A file in it.
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "a temporary directory stays behind");
        }
    }
}
