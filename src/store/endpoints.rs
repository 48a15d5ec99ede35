//! Where completions go.

use std::collections::{BTreeSet, HashMap};

use super::StoreError;
use super::dialect::{Rows, Tx};
use crate::clock::WallMs;

/// An endpoint's row, and whether it is enabled.
pub(super) type Target = (i64, bool);

/// The endpoints of bare callback URLs, by (tenant, url); made where there is none yet.
pub(super) async fn implicit<'a>(
    tx: &mut Tx,
    wanted: &BTreeSet<(&'a str, &'a str)>,
    now_ms: WallMs,
) -> Result<HashMap<(&'a str, &'a str), Target>, StoreError> {
    let mut found = find_implicit(tx, wanted).await?;
    let missing: BTreeSet<_> = wanted.iter().filter(|w| !found.contains_key(*w)).copied().collect();
    if !missing.is_empty() {
        let ids: Vec<String> = missing.iter().map(|_| format!("ep_{}", uuid::Uuid::now_v7().simple())).collect();
        let rows = Rows::new()
            .text("id", ids.iter().map(|id| Some(id.as_str())))
            .text("tenant", missing.iter().map(|m| Some(m.0)))
            .text("url", missing.iter().map(|m| Some(m.1)))
            .int("created_ms", missing.iter().map(|_| Some(now_ms)));
        let insert = "INSERT INTO endpoints (id, tenant, url, implicit, created_ms)
            SELECT id, tenant, url, TRUE, created_ms FROM v WHERE TRUE
            ON CONFLICT (tenant, url) WHERE implicit DO NOTHING";
        rows.execute(tx, insert).await?;
        found.extend(find_implicit(tx, &missing).await?);
    }
    Ok(found)
}

async fn find_implicit<'a>(
    tx: &mut Tx,
    wanted: &BTreeSet<(&'a str, &'a str)>,
) -> Result<HashMap<(&'a str, &'a str), Target>, StoreError> {
    let rows =
        Rows::new().text("tenant", wanted.iter().map(|w| Some(w.0))).text("url", wanted.iter().map(|w| Some(w.1)));
    let select = "SELECT n.tenant, n.url, n.pk, n.enabled FROM v
        JOIN endpoints n ON n.tenant = v.tenant AND n.url = v.url AND n.implicit";
    let found: Vec<(String, String, i64, bool)> = rows.fetch(tx, select).await?;
    let known: HashMap<(&str, &str), Target> =
        found.iter().map(|(tenant, url, pk, enabled)| ((tenant.as_str(), url.as_str()), (*pk, *enabled))).collect();
    Ok(wanted.iter().filter_map(|key| Some((*key, *known.get(key)?))).collect())
}

/// Registered endpoints, by (tenant, id).
pub(super) async fn registered<'a>(
    tx: &mut Tx,
    wanted: &BTreeSet<(&'a str, &'a str)>,
) -> Result<HashMap<(&'a str, &'a str), Target>, StoreError> {
    let rows =
        Rows::new().text("tenant", wanted.iter().map(|w| Some(w.0))).text("id", wanted.iter().map(|w| Some(w.1)));
    let select = "SELECT n.tenant, n.id, n.pk, n.enabled FROM v
        JOIN endpoints n ON n.id = v.id AND n.tenant = v.tenant";
    let found: Vec<(String, String, i64, bool)> = rows.fetch(tx, select).await?;
    let known: HashMap<(&str, &str), Target> =
        found.iter().map(|(tenant, id, pk, enabled)| ((tenant.as_str(), id.as_str()), (*pk, *enabled))).collect();
    Ok(wanted.iter().filter_map(|key| Some((*key, *known.get(key)?))).collect())
}
