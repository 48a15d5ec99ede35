//! The outbound client: a job and a key become one HTTP call to the provider's base URL.
//!
//! `request` builds it, with the key put on at the last moment; `connect` holds the connections, `sending` hands the
//! call to one of them and knows whether it left; `client` bounds what comes back; `redact` takes echoed keys out of
//! what is kept.

mod client;
mod connect;
mod redact;
mod request;
mod sending;

pub use client::{Answer, CallError, Client, ClientError};
pub use request::RequestError;
pub use sending::Caller;

/// Reads a limit's signal out of a response's header fields.
pub fn header_pairs(headers: &http::HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
}
