//! The API role: check the address, listen, serve, drain.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::Router;
use paceline::api::{ServeLimits, Tokens, check_listen, serve, starting_router};
use paceline::config::MetricsConfig;
use paceline::readiness::Readiness;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Binds the address, so that a port in use is known before anything else starts.
pub async fn bind(address: SocketAddr, tokens: &Tokens) -> anyhow::Result<TcpListener> {
    check_listen(address, tokens)?;
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} (api.listen or PACELINE__API__LISTEN names another)"))
}

/// Binds the address at which a process without the API answers its health and its figures. `None`: the
/// one that nobody asked for is taken.
pub async fn bind_metrics(config: MetricsConfig, tokens: &Tokens) -> anyhow::Result<Option<TcpListener>> {
    check_listen(config.listen, tokens)?;
    match TcpListener::bind(config.listen).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if config.is_default => {
            let address = config.listen;
            tracing::warn!(%address, %error, "this process answers neither /metrics nor health checks: metrics.listen names another address");
            Ok(None)
        }
        Err(error) => {
            let place = format!("cannot listen on {} (metrics.listen)", config.listen);
            Err(anyhow::Error::from(error).context(place))
        }
    }
}

/// Answers health checks on the same socket until the store is there.
pub struct Starting {
    task: JoinHandle<()>,
    done: CancellationToken,
}

/// Begins to answer.
pub fn starting(listener: TcpListener, readiness: Readiness, tokens: Tokens) -> Starting {
    let done = CancellationToken::new();
    let stop = done.clone().cancelled_owned();
    let task = tokio::spawn(async move {
        if let Err(error) = serve(listener, starting_router(readiness, tokens), ServeLimits::default(), stop).await {
            tracing::warn!(%error, "health checks are not answered while the store is away");
        }
    });
    Starting { task, done }
}

impl Starting {
    /// Ends it.
    pub async fn stop(self) {
        self.done.cancel();
        if let Err(error) = self.task.await {
            tracing::debug!(%error, "the health checks of the start failed");
        }
    }
}

/// Serves until `shutdown` is done and what was being served then is answered.
pub async fn run(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    serve(listener, router, ServeLimits::default(), shutdown).await.context("the API stopped")
}
