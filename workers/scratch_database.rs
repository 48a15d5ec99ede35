//! A PostgreSQL database for one run, beside the one that a URL names.

use anyhow::Context as _;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// A database of its own; [`ScratchDatabase::remove`] drops it.
pub struct ScratchDatabase {
    admin: String,
    name: String,
    url: String,
}

impl ScratchDatabase {
    /// Creates it. The user of the URL must be allowed to.
    pub async fn create(url: &str) -> anyhow::Result<Self> {
        let name = format!("paceline_scratch_{}_{:08x}", std::process::id(), rand::random::<u32>());
        let mut own = url::Url::parse(url).context("DATABASE_URL")?;
        own.set_path(&format!("/{name}"));
        let database = Self { admin: url.to_owned(), name, url: own.to_string() };
        database.execute("CREATE DATABASE").await?;
        Ok(database)
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL of the database beside it.
    pub fn admin_url(&self) -> &str {
        &self.admin
    }

    /// Drops it, whoever is still connected.
    pub async fn remove(self) -> anyhow::Result<()> {
        self.execute("DROP DATABASE").await
    }

    async fn execute(&self, what: &str) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.admin).await.context("DATABASE_URL")?;
        let force = if what.starts_with("DROP") { " WITH (FORCE)" } else { "" };
        // The name is made above of letters, digits and underscores.
        connection.execute(AssertSqlSafe(format!("{what} {}{force}", self.name))).await?;
        connection.close().await?;
        Ok(())
    }
}
