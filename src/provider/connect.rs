//! The pool of connections to a provider: TCP, TLS and HTTP, with nothing that acts by itself. No
//! redirect is followed, no proxy is used that nobody configured, and nothing is sent twice: a
//! request is handed to another connection only if the first one has not begun with it.

use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::Verifier;

use super::ClientError;
use super::sending::Outgoing;
use crate::config::Provider;

/// Idle connections kept open to a provider.
const IDLE_CONNECTIONS_MAX: usize = 256;
/// Idle connections are closed before most servers close them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer that is gone is found out about after about so long.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// Connections to one provider.
pub(super) type Connections = Client<HttpsConnector<HttpConnector>, Outgoing>;

/// No connection stands yet.
pub(super) fn connections(provider: &Provider) -> Result<Connections, ClientError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    let connector = HttpsConnector::from((tcp, tls(provider)?));
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .retry_canceled_requests(true)
        .build(connector))
}

/// Certificates are judged by the roots of the system, and by those of `ca_file`.
fn tls(provider: &Provider) -> Result<ClientConfig, ClientError> {
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = match &provider.ca_file {
        Some(path) => {
            let pem = std::fs::read(path).map_err(|source| ClientError::CaFile { path: path.clone(), source })?;
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            read.map_err(|error| ClientError::CaFile { path: path.clone(), source: std::io::Error::other(error) })?
        }
        None => Vec::new(),
    };
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&crypto)).map_err(ClientError::Tls)?;
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_safe_default_protocol_versions()
        .map_err(ClientError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
