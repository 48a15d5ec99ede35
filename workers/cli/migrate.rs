//! `paceline migrate`: the store's schema.

use clap::Args as ClapArgs;
use paceline::store::{Store, StoreOptions};
use serde_json::json;

use super::Globals;
use super::backend::without_password;
use super::failure::{Exit, Failure};
use super::output::Out;

/// Bring the store's schema up to date
///
/// `paceline serve` does this by itself when it starts; this is for deployments that want it done
/// before. With SQLite no server may have the file open.
#[derive(Debug, ClapArgs)]
pub struct Args {}

/// Migrates.
pub async fn run(_: Args, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let url = config.store.url.expose();
    let place = without_password(url);
    let options = StoreOptions { url: url.to_owned(), exclusive: url.starts_with("sqlite:"), connections_max: 2 };
    let failed = |e: paceline::store::StoreError| Failure { message: format!("the store {place}: {e}"), ..e.into() };
    let store = Store::open(&options).await.map_err(failed)?;
    let migrated = store.migrate().await.map_err(failed);
    store.close().await;
    let applied = migrated?;
    if out.is_json() {
        out.json(&json!({ "store": place, "applied": applied }))?;
    } else if applied == 0 {
        out.line(format!("{place} is up to date"))?;
    } else {
        out.line(format!("{place}: {applied} migrations applied"))?;
    }
    Ok(Exit::Done)
}
