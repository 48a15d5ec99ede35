//! The API's process part: check the address, listen, serve, drain.
#![allow(dead_code, reason = "run by `serve`")]

use std::net::SocketAddr;

use anyhow::Context;
use paceline::api::{ApiParts, ServeLimits, check_listen, router, serve};
use tokio::net::TcpListener;

/// Binds the address, so that a port in use is known before anything else starts.
pub async fn bind(address: SocketAddr, parts: &ApiParts) -> anyhow::Result<TcpListener> {
    check_listen(address, &parts.tokens)?;
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (api.listen): is another paceline running?"))
}

/// Serves until `shutdown` is done and what was being served then is answered.
pub async fn run(
    listener: TcpListener,
    parts: ApiParts,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "the API listens");
    serve(listener, router(parts), ServeLimits::default(), shutdown).await.context("the API stopped")
}
