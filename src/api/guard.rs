//! What a request must look like before anybody reads it.
//!
//! Without tokens the API trusts the machine it runs on, but not the web pages that are open in
//! its browser: a page of another site can send requests to `localhost`, and can make its own name
//! resolve to 127.0.0.1. So only loopback `Host` headers and no foreign `Origin` are accepted.
//! Bodies must be `application/json` in every mode: a form of another site cannot send that
//! without asking first.

use std::net::IpAddr;

use axum::body::HttpBody;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Uri};

use super::error::{Problem, ProblemKind};

/// Accepts requests to this machine by its own names, from no page of another origin.
pub(super) fn check_local(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let host = host_of(uri, headers).filter(is_loopback).ok_or_else(|| {
        Problem::new(
            ProblemKind::Forbidden,
            "without tokens only requests to localhost, 127.0.0.0/8 or [::1] are accepted (the Host header says otherwise): \
             configure api.tokens to be reached by another name",
        )
    })?;
    let mut origins = headers.get_all(ORIGIN).iter();
    let own = |origin: &str| {
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        rest.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_str()))
    };
    if origins.all(|origin| origin.to_str().is_ok_and(own)) {
        Ok(())
    } else {
        Err(Problem::new(
            ProblemKind::Forbidden,
            "without tokens no requests from pages of another origin are accepted",
        ))
    }
}

/// The one authority that the request names, by its target or its `Host`.
fn host_of(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let mut named = Vec::with_capacity(2);
    named.extend(uri.authority().cloned());
    for value in headers.get_all(HOST) {
        named.push(value.to_str().ok()?.parse::<Authority>().ok()?);
    }
    let first = named.first()?.clone();
    named.iter().all(|other| *other == first).then_some(first)
}

fn is_loopback(authority: &Authority) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Refuses every body that is not plain `application/json`.
pub(super) async fn json_bodies_only(request: Request, next: Next) -> Result<Response, Problem> {
    let headers = request.headers();
    let has_body = !request.body().is_end_stream();
    let safe = request.method().is_safe();
    // Each once: a body that is packed twice could be unpacked to anything before it is measured.
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    let known = |encoding: &[u8]| [&b"identity"[..], b"gzip"].iter().any(|k| k.eq_ignore_ascii_case(encoding));
    let unknown = encodings.next().filter(|encoding| !known(encoding.as_bytes())).or_else(|| encodings.next());
    if let Some(encoding) = unknown {
        let detail = format!("expected content-encoding: gzip, or none, found {encoding:?}");
        return Err(Problem::new(ProblemKind::UnsupportedMediaType, detail));
    }
    let fits = match headers.get(CONTENT_TYPE) {
        Some(value) => value.to_str().is_ok_and(is_json),
        None => !has_body,
    };
    if fits || (safe && !has_body) {
        Ok(next.run(request).await)
    } else {
        Err(Problem::new(ProblemKind::UnsupportedMediaType, "send the body with content-type: application/json"))
    }
}

/// `application/json`, with or without parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().expect("a header"));
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().expect("a header"));
        }
        check_local(&Uri::from_static("/v1/jobs"), &headers).is_ok()
    }

    #[test]
    fn only_names_of_this_machine_are_accepted() {
        for host in ["localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:1", "127.9.9.9:80", "[::1]", "[::1]:8080"] {
            assert!(check(host, None), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "10.0.0.1",
            "[::2]",
            "user@localhost",
            "0.0.0.0",
            "localhost.",
            "",
        ] {
            assert!(!check(host, None), "{host}");
        }
    }

    #[test]
    fn two_hosts_that_differ_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(HOST, "localhost".parse().expect("a header"));
        headers.append(HOST, "evil.example".parse().expect("a header"));
        assert!(check_local(&Uri::from_static("/"), &headers).is_err());
        headers.remove(HOST);
        assert!(check_local(&Uri::from_static("/"), &headers).is_err(), "no host at all");
        headers.append(HOST, "localhost".parse().expect("a header"));
        assert!(check_local(&Uri::from_static("http://evil.example/"), &headers).is_err());
    }

    #[test]
    fn only_the_own_origin_is_accepted() {
        assert!(check("localhost:8080", Some("http://localhost:8080")));
        for origin in ["http://evil.example", "null", "http://localhost:3000", "https://localhost", "localhost:8080"] {
            assert!(!check("localhost:8080", Some(origin)), "{origin}");
        }
    }

    #[test]
    fn json_with_parameters_is_json() {
        assert!(is_json("application/json; charset=utf-8"));
        assert!(is_json("Application/JSON"));
        for other in
            ["text/plain", "application/jsonx", "application/x-www-form-urlencoded", "text/plain; application/json", ""]
        {
            assert!(!is_json(other), "{other}");
        }
    }
}
