//! What a call does is written in the call itself: by its path, or by `?sim=<behaviour>` behind any other path.
//!
//! | path | answer | executed |
//! |---|---|---|
//! | `/ok`, and any other path | 200, `{"ok":true}` | yes |
//! | `/echo` | 200, JSON of method, path, query, headers and body | yes |
//! | `/status/503` | that status | below 400 |
//! | `/fail/2` | 503 the first 2 times for an `Idempotency-Key` (else for path and query), then 200 | the 200 |
//! | `/outage` | 503 while an outage is declared ([`super::Outage`]), else 200 | the 200 |
//! | `/gone` | 404 | no |
//! | `/bad-key` | 401 for the keys listed in the options, else 200 | the 200 |
//! | `/redirect?to=…` | 302 with `Location` | no |
//! | `/html` | 200 with garbage | yes |
//! | `/cost/17` | 200; costs 17 units whatever was declared; `{"usage":{"total_tokens":17}}` | yes |
//! | `/slow/250` | 200 after 250 ms more | yes |
//! | `/big/10485760` | 200 with so many bytes, streamed | yes |
//! | `/headers/500` | 200 with so many headers of 256 bytes (at most 20,000) | yes |
//! | `/hang` | no answer, the connection stays open until the caller leaves | yes |
//! | `/drip/100/200` | 200, then 100 bytes, one every 200 ms | yes |
//! | `/half` | 200, announces 1,000 bytes, sends half, closes | yes |
//! | `/reset` | executes, then resets the connection without an answer | yes |
//! | `/reset/before` | resets the connection without executing (counted by the limits all the same) | no |
//!
//! Further segments are ignored (`/fail/2/orders/17`). Query parameters that change any of them: `status=500` (of
//! `/fail`, `/outage`, `/redirect`), `retry_after=3` (the header), `reason=insufficient_quota` (code in an error
//! body), `executed=1` or `0` (for audits: a 500 that had its effect all the same), `h=Name:Value` (a header of the
//! answer, at most 16).

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue, RETRY_AFTER};

/// Largest body of `/big`: 1 TiB.
const BIG_MAX: u64 = 1 << 40;
/// Most headers of `/headers`; hyper's map ends at 32,768.
const HEADERS_MAX: u64 = 20_000;
/// Longest wait that can be asked for: one hour.
const WAIT_MAX_MS: u64 = 3_600_000;
/// Most `h=` parameters.
const EXTRA_MAX: usize = 16;

/// What a call does; see the table above.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table above describes every one")]
pub enum Behaviour {
    Ok,
    Echo,
    Status(StatusCode),
    Fail { times: u32, status: StatusCode },
    Outage { status: StatusCode },
    Gone,
    BadKey,
    Redirect { to: String, status: StatusCode },
    Html,
    Cost(u64),
    Slow(Duration),
    Big(u64),
    Headers(u64),
    Hang,
    Drip { bytes: u64, every: Duration },
    Half,
    Reset { before: bool },
}

/// A behaviour with what the query changes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What to do.
    pub behaviour: Behaviour,
    /// Overrides whether the call counts as executed.
    pub executed: Option<bool>,
    /// The code in an error body.
    pub reason: Option<String>,
    /// Headers of the answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// A path or query of the simulator that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place}: {problem}")]
pub struct WishError {
    place: String,
    problem: &'static str,
}

/// The parameters of a query that the simulator reads.
#[derive(Default)]
struct Asked {
    sim: Option<String>,
    to: Option<String>,
    status: Option<StatusCode>,
    executed: Option<bool>,
    reason: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Wish {
    /// Reads a request's path and query.
    pub fn read(path: &str, query: Option<&str>) -> Result<Wish, WishError> {
        let asked = match query {
            Some(query) if !query.is_empty() => parameters(query)?,
            _ => Asked::default(),
        };
        let behaviour = match &asked.sim {
            Some(path) => behaviour(path, &asked)?,
            None => behaviour(path, &asked)?,
        };
        let Asked { executed, reason, headers, .. } = asked;
        Ok(Wish { behaviour, executed, reason, headers })
    }
}

fn behaviour(path: &str, asked: &Asked) -> Result<Behaviour, WishError> {
    let mut segments = path.trim_start_matches('/').split('/');
    let name = segments.next().unwrap_or_default();
    let mut amount = |usual, most| match segments.next() {
        None | Some("") => Ok(usual),
        Some(text) => match text.parse::<u64>() {
            Ok(value) => Ok(value.min(most)),
            Err(_) => Err(wrong(path, "a whole number is needed")),
        },
    };
    let failure = asked.status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    Ok(match name {
        "echo" => Behaviour::Echo,
        "status" => Behaviour::Status(status(amount(200, u64::MAX)?).ok_or_else(|| bad_status(path))?),
        "fail" => Behaviour::Fail {
            times: u32::try_from(amount(1, u64::from(u32::MAX))?).unwrap_or(u32::MAX),
            status: failure,
        },
        "outage" => Behaviour::Outage { status: failure },
        "gone" => Behaviour::Gone,
        "bad-key" => Behaviour::BadKey,
        "redirect" => Behaviour::Redirect {
            to: asked.to.clone().unwrap_or_else(|| "/ok".to_owned()),
            status: asked.status.unwrap_or(StatusCode::FOUND),
        },
        "html" => Behaviour::Html,
        "cost" => Behaviour::Cost(amount(1, u64::from(u32::MAX))?),
        "slow" => Behaviour::Slow(Duration::from_millis(amount(250, WAIT_MAX_MS)?)),
        "big" => Behaviour::Big(amount(10 << 20, BIG_MAX)?),
        "headers" => Behaviour::Headers(amount(500, HEADERS_MAX)?),
        "hang" => Behaviour::Hang,
        "drip" => Behaviour::Drip {
            bytes: amount(100, BIG_MAX)?,
            every: Duration::from_millis(amount(200, WAIT_MAX_MS)?.max(1)),
        },
        "half" => Behaviour::Half,
        "reset" => Behaviour::Reset { before: segments.next() == Some("before") },
        _ => Behaviour::Ok,
    })
}

fn parameters(query: &str) -> Result<Asked, WishError> {
    let mut asked = Asked::default();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "sim" => asked.sim = Some(value.into_owned()),
            "to" => asked.to = Some(value.into_owned()),
            "reason" => asked.reason = Some(value.into_owned()),
            "executed" => asked.executed = Some(value == "1"),
            "status" => {
                let found = value.parse().ok().and_then(status);
                asked.status = Some(found.ok_or_else(|| bad_status("status="))?);
            }
            "retry_after" => {
                let value = HeaderValue::from_str(&value).map_err(|_| wrong("retry_after=", "not a header value"))?;
                asked.headers.push((RETRY_AFTER, value));
            }
            "h" if asked.headers.len() < EXTRA_MAX => asked.headers.push(header(&value)?),
            _ => {}
        }
    }
    Ok(asked)
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), WishError> {
    let (name, value) = text.split_once(':').ok_or_else(|| wrong("h=", "Name:Value is needed"))?;
    let name = name.trim().parse().map_err(|_| wrong("h=", "not a header name"))?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong("h=", "not a header value"))?;
    Ok((name, value))
}

/// Statuses that end a call; 1xx would not.
fn status(code: u64) -> Option<StatusCode> {
    let code = u16::try_from(code).ok().filter(|code| (200..=599).contains(code))?;
    StatusCode::from_u16(code).ok()
}

fn bad_status(place: &str) -> WishError {
    wrong(place, "a status from 200 to 599 is needed")
}

fn wrong(place: &str, problem: &'static str) -> WishError {
    WishError { place: place.to_owned(), problem }
}
