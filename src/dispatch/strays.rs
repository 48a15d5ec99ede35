//! Jobs of lanes that were taken out of the configuration.

use super::shell::DispatcherParts;

/// They are moved so many at a time.
const STRAYS_BATCH: u32 = 500;

/// Jobs of lanes that are not configured any more go with the default one: nobody would claim them.
pub(super) async fn adopt_strays(parts: DispatcherParts) {
    let provider = &parts.provider;
    let is_stray = |lane: &str| !provider.pool.lanes.iter().any(|known| known.name == lane);
    let awaited = match parts.store.awaited().await {
        Ok(awaited) => awaited,
        Err(error) => {
            return tracing::warn!(provider = provider.name, %error, "lanes that are gone were not looked for");
        }
    };
    for (_, lane) in awaited.iter().filter(|(name, lane)| *name == provider.name && is_stray(lane)) {
        let mut jobs = 0;
        let moved = loop {
            match parts.store.move_lane(&provider.name, lane, "default", STRAYS_BATCH).await {
                Ok(0) => break Ok(()),
                Ok(moved) => jobs += moved,
                Err(error) => break Err(error),
            }
        };
        tracing::warn!(
            provider = provider.name,
            lane,
            jobs,
            "this lane is not configured any more: its jobs go with the default one"
        );
        if let Err(error) = moved {
            tracing::warn!(provider = provider.name, lane, %error, "the rest stays until this process dispatches anew");
        }
    }
}
