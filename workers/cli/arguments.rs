//! A job put together from arguments.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use paceline::clock::{Clock, SystemClock, parse_rfc3339};
use paceline::duration::HumanDuration;
use paceline::job::{Callback, Delivery, Envelope, Instant, Request, RetryOverrides};
use serde_json::value::RawValue;

use super::failure::Failure;

/// The largest file that is read for an argument.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The fields of a job. `@file` reads a value from a file.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The provider to call, as configured (for JSON Lines: of lines that name none)
    #[arg(long)]
    pub provider: Option<String>,
    /// The path of the call, below the provider's base URL
    #[arg(long, value_name = "/PATH", conflicts_with = "file")]
    pub path: Option<String>,
    /// The HTTP method [default: GET, or POST where there is a body]
    #[arg(long, short = 'X', conflicts_with = "file")]
    pub method: Option<String>,
    /// A query parameter; may be repeated, also with the same name
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "file")]
    pub query: Vec<String>,
    /// A header field; may be repeated
    #[arg(long, short = 'H', value_name = "NAME:VALUE", conflicts_with = "file")]
    pub header: Vec<String>,
    /// A JSON body, sent exactly as it is written
    #[arg(long, short = 'd', value_name = "JSON|@FILE", group = "content", conflicts_with = "file")]
    pub data: Option<String>,
    /// A text body
    #[arg(long, value_name = "TEXT|@FILE", group = "content", conflicts_with = "file")]
    pub text: Option<String>,
    /// A file as the body, whatever is in it
    #[arg(long, value_name = "FILE", group = "content", conflicts_with = "file")]
    pub binary: Option<String>,
    /// The lane to wait in [default: default]
    #[arg(long)]
    pub lane: Option<String>,
    /// The tenant it belongs to
    #[arg(long)]
    pub tenant: Option<String>,
    /// The job's id; asking twice with the same id and content makes one job [default: a new one]
    #[arg(long, conflicts_with = "file")]
    pub id: Option<String>,
    /// A JSON object that is kept with the job and echoed in events
    #[arg(long, value_name = "JSON|@FILE", conflicts_with = "file")]
    pub metadata: Option<String>,
    /// Not sent before: a time such as 2026-11-20T10:00:00Z, or a duration from now such as 5m
    #[arg(long, value_name = "WHEN", conflicts_with = "file")]
    pub not_before: Option<String>,
    /// Not sent after (then it expires): a time, or a duration from now
    #[arg(long, value_name = "WHEN", conflicts_with = "file")]
    pub deadline: Option<String>,
    /// The key label or budget to use
    #[arg(long, conflicts_with = "file")]
    pub key: Option<String>,
    /// Units for `cost` limits [default: 1]
    #[arg(long, conflicts_with = "file")]
    pub cost: Option<u64>,
    /// Sent to the provider as Idempotency-Key [default: the id]
    #[arg(long, value_name = "KEY", conflicts_with = "file")]
    pub idempotency_key: Option<String>,
    /// Never sent again where the first call may have been executed
    #[arg(long, conflicts_with = "file")]
    pub at_most_once: bool,
    /// Failure attempts before it is dead [default: the provider's]
    #[arg(long, value_name = "N", conflicts_with = "file")]
    pub max_attempts: Option<u32>,
    /// Where its completion is posted to
    #[arg(long, value_name = "URL", conflicts_with_all = ["file", "callback_endpoint"])]
    pub callback_url: Option<String>,
    /// The registered endpoint that gets its completion
    #[arg(long, value_name = "EP", conflicts_with = "file")]
    pub callback_endpoint: Option<String>,
}

impl JobArgs {
    /// The job that the arguments describe.
    pub fn envelope(self) -> Result<Envelope, Failure> {
        let missing = |what: &str| {
            Failure::usage(format!("{what} is missing: give a job by arguments, or FILE (`-`: standard input)"))
        };
        let provider = self.provider.clone().ok_or_else(|| missing("--provider"))?;
        let path = self.path.clone().ok_or_else(|| missing("--path"))?;
        let request = self.request(path)?;
        let has_callback = self.callback_url.is_some() || self.callback_endpoint.is_some();
        Ok(Envelope {
            id: self.id,
            provider: Some(provider),
            request,
            lane: self.lane,
            tenant: self.tenant,
            metadata: self.metadata.map(|text| json_argument("--metadata", &text)).transpose()?,
            cost: self.cost,
            not_before: self.not_before.map(|text| when("--not-before", &text)).transpose()?,
            deadline: self.deadline.map(|text| when("--deadline", &text)).transpose()?,
            delivery: self.at_most_once.then_some(Delivery::AtMostOnce),
            idempotency_key: self.idempotency_key,
            key: self.key,
            retry: self.max_attempts.map(|n| RetryOverrides { max_attempts: Some(n), ..RetryOverrides::default() }),
            callback: has_callback.then_some(Callback {
                endpoint: self.callback_endpoint,
                url: self.callback_url,
                events: None,
            }),
        })
    }

    fn request(&self, path: String) -> Result<Request, Failure> {
        let body = self.data.as_ref().map(|text| json_argument("--data", text)).transpose()?;
        let text = self.text.as_ref().map(|text| argument("--text", text)).transpose()?;
        let base64 =
            self.binary.as_ref().map(|path| read_file(path).map(|bytes| STANDARD.encode(bytes))).transpose()?;
        let has_body = body.is_some() || text.is_some() || base64.is_some();
        let method = self.method.clone().unwrap_or_else(|| if has_body { "POST" } else { "GET" }.to_owned());
        let mut request =
            Request { method: method.to_ascii_uppercase(), path, body, text, base64, ..Request::default() };
        for pair in &self.query {
            let (name, value) = pair.split_once('=').ok_or_else(|| shape("--query", "NAME=VALUE", pair))?;
            add_parameter(&mut request, name, value);
        }
        for pair in &self.header {
            let (name, value) = pair.split_once(':').ok_or_else(|| shape("--header", "NAME:VALUE", pair))?;
            if request.headers.insert(name.trim().to_owned(), value.trim().to_owned()).is_some() {
                return Err(Failure::usage(format!("--header: {:?} is given twice", name.trim())));
            }
        }
        Ok(request)
    }
}

/// A parameter that is given several times becomes a list.
fn add_parameter(request: &mut Request, name: &str, value: &str) {
    let value = serde_json::Value::from(value);
    match request.query.get_mut(name) {
        None => {
            request.query.insert(name.to_owned(), value);
        }
        Some(serde_json::Value::Array(list)) => list.push(value),
        Some(first) => *first = serde_json::Value::Array(vec![first.take(), value]),
    }
}

fn shape(argument: &str, expected: &str, found: &str) -> Failure {
    Failure::usage(format!("{argument}: expected {expected}, found {found:?}"))
}

/// The text of an argument, or of the file that it names by `@`.
pub fn argument(name: &str, text: &str) -> Result<String, Failure> {
    match text.strip_prefix('@') {
        None => Ok(text.to_owned()),
        Some(path) => String::from_utf8(read_file(path)?).map_err(|_| {
            Failure::usage(format!("{name}: the file {path} is not UTF-8 text (--binary sends any file)"))
        }),
    }
}

/// JSON of an argument, exactly as it is written.
pub fn json_argument(name: &str, text: &str) -> Result<Box<RawValue>, Failure> {
    let text = argument(name, text)?;
    serde_json::from_str(&text).map_err(|e| Failure::usage(format!("{name}: expected JSON: {e}")))
}

fn read_file(path: &str) -> Result<Vec<u8>, Failure> {
    let wrong = |e: std::io::Error| Failure::usage(format!("cannot read {path}: {e}"));
    let size = std::fs::metadata(path).map_err(wrong)?.len();
    if size > FILE_BYTES_MAX {
        return Err(Failure::usage(format!("{path} has {size} bytes; a body may have at most {FILE_BYTES_MAX}")));
    }
    std::fs::read(path).map_err(wrong)
}

/// A time, or a duration from now.
pub fn when(name: &str, text: &str) -> Result<Instant, Failure> {
    if let Ok(after) = text.strip_prefix('+').unwrap_or(text).parse::<HumanDuration>() {
        return Ok(Instant(SystemClock::new().wall_ms().saturating_add(after.as_millis())));
    }
    parse_rfc3339(text).map(Instant).map_err(|e| Failure::usage(format!("{name}: {e}, or a duration such as 5m")))
}

/// A time, or how long ago that was.
pub fn ago(name: &str, text: &str) -> Result<Instant, Failure> {
    if let Ok(before) = text.parse::<HumanDuration>() {
        return Ok(Instant(SystemClock::new().wall_ms().saturating_sub(before.as_millis())));
    }
    let wrong = |e| Failure::usage(format!("{name}: {e}, or how long ago that was, such as 1h"));
    parse_rfc3339(text).map(Instant).map_err(wrong)
}
