//! What a response, or the lack of one, means: one table, pure.
//!
//! The body's reason is read before the status where providers are known to put it there
//! (403 and 429 mean several things). What follows for the job is said in [`crate::retry`], what
//! follows for keys and budgets in [`crate::dispatch`]. What a configuration says of answers stands above
//! the table ([`Rules`]).

mod rules;

pub use rules::{Answer, BodyPattern, HeaderPattern, Rule, Rules, Ruling, Statuses};

/// How much of a body is searched for a reason, in bytes.
const REASON_BYTES_MAX: usize = 4 * 1024;

/// What came back from a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A whole answer.
    Answered {
        /// HTTP status.
        status: u16,
        /// The body, or its beginning.
        body: &'a [u8],
        /// The header fields said that no request is left (`x-ratelimit-remaining: 0` and alike).
        nothing_left: bool,
        /// The body said that it was refused because of a rate limit, whatever the status says.
        throttled: bool,
    },
    /// The call surely never reached the provider: no connection, no TLS session.
    NotSent,
    /// It may have reached the provider; there was no answer, or half of one.
    Lost,
}

/// What it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Done.
    Success,
    /// Too many calls; not executed.
    RateLimited,
    /// A quota is used up; not executed.
    QuotaExhausted,
    /// The key was refused; not executed.
    Credential,
    /// A redirect, which is never followed: keys go to the base URL only.
    Redirect,
    /// Likely to go away by itself.
    Transient,
    /// Nobody knows whether it was executed.
    Unknown,
    /// Refused for good.
    Permanent,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 8] = [
        Self::Success,
        Self::RateLimited,
        Self::QuotaExhausted,
        Self::Credential,
        Self::Redirect,
        Self::Transient,
        Self::Unknown,
        Self::Permanent,
    ];

    /// The name in attempts and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::RateLimited => "rate_limited",
            Self::QuotaExhausted => "quota_exhausted",
            Self::Credential => "credential",
            Self::Redirect => "redirect",
            Self::Transient => "transient",
            Self::Unknown => "unknown",
            Self::Permanent => "permanent",
        }
    }
}

/// One row: these statuses, with one of these reasons in the body where any are listed.
struct Row {
    statuses: &'static [(u16, u16)],
    reasons: &'static [&'static str],
    outcome: Outcome,
}

/// Reasons of a quota that will not come back within seconds.
const QUOTA_REASONS: &[&str] = &[
    "insufficient_quota",
    "dailyLimitExceeded",
    "quotaExceeded",
    "billing_hard_limit_reached",
    "REQUEST_LIMIT_EXCEEDED",
];
/// Reasons of a rate limit under a status that also means something else.
const RATE_REASONS: &[&str] = &[
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "rate_limit_exceeded",
    "rate_limited",
    "RequestThrottled",
    "Throttling",
    "ThrottlingException",
    "SlowDown",
    "secondary rate limit",
];
/// Reasons that speak of the key.
const KEY_REASONS: &[&str] = &[
    "invalid_api_key",
    "API_KEY_INVALID",
    "API_KEY_SERVICE_BLOCKED",
    "keyInvalid",
    "keyExpired",
    "account_suspended",
    "account_deactivated",
    "token_revoked",
];

/// The table. The first row that fits decides.
const TABLE: &[Row] = &[
    Row { statuses: &[(402, 402)], reasons: &[], outcome: Outcome::QuotaExhausted },
    Row { statuses: &[(403, 403), (429, 429)], reasons: QUOTA_REASONS, outcome: Outcome::QuotaExhausted },
    Row { statuses: &[(429, 429)], reasons: &[], outcome: Outcome::RateLimited },
    Row { statuses: &[(403, 403), (503, 503)], reasons: RATE_REASONS, outcome: Outcome::RateLimited },
    Row { statuses: &[(401, 401)], reasons: &[], outcome: Outcome::Credential },
    Row { statuses: &[(403, 403)], reasons: KEY_REASONS, outcome: Outcome::Credential },
    Row { statuses: &[(200, 299), (304, 304)], reasons: &[], outcome: Outcome::Success },
    Row { statuses: &[(300, 399)], reasons: &[], outcome: Outcome::Redirect },
    Row { statuses: &[(408, 408), (425, 425)], reasons: &[], outcome: Outcome::Transient },
    Row { statuses: &[(501, 501), (505, 505)], reasons: &[], outcome: Outcome::Permanent },
    Row { statuses: &[(500, 599)], reasons: &[], outcome: Outcome::Transient },
    Row { statuses: &[(0, u16::MAX)], reasons: &[], outcome: Outcome::Permanent },
];

/// What a reply means.
pub fn classify(reply: Reply<'_>) -> Outcome {
    let (status, body, nothing_left) = match reply {
        Reply::Answered { throttled: true, .. } => return Outcome::RateLimited,
        Reply::NotSent => return Outcome::Transient,
        Reply::Lost => return Outcome::Unknown,
        Reply::Answered { status, body, nothing_left, .. } => (status, body, nothing_left),
    };
    if status == 403 && nothing_left {
        return Outcome::RateLimited;
    }
    let head = &body[..body.len().min(REASON_BYTES_MAX)];
    let fits = |row: &&Row| {
        row.statuses.iter().any(|(from, to)| (*from..=*to).contains(&status))
            && (row.reasons.is_empty() || row.reasons.iter().any(|reason| contains(head, reason)))
    };
    TABLE.iter().find(fits).map_or(Outcome::Permanent, |row| row.outcome)
}

/// Whether the provider may have executed the call: the question of `at_most_once`.
pub fn may_have_been_executed(outcome: Outcome, reply: Reply<'_>) -> bool {
    match outcome {
        Outcome::Success | Outcome::Unknown => true,
        Outcome::RateLimited
        | Outcome::QuotaExhausted
        | Outcome::Credential
        | Outcome::Redirect
        | Outcome::Permanent => false,
        // 425 (RFC 8470): the server was unwilling to process the request.
        Outcome::Transient => !matches!(reply, Reply::NotSent | Reply::Answered { status: 425, .. }),
    }
}

/// What a reply means under what the configuration rules of it, and whether the provider may have executed the call. A
/// ruling changes what an answer means, never whether the call may be made again `at_most_once`: only the table knows
/// the answers to calls that surely were not executed.
pub fn under(ruling: Option<Outcome>, reply: Reply<'_>) -> (Outcome, bool) {
    let table = classify(reply);
    let executed = may_have_been_executed(table, reply);
    match ruling {
        None => (table, executed),
        Some(outcome) => {
            let told_to_come_back = matches!(
                table,
                Outcome::RateLimited | Outcome::QuotaExhausted | Outcome::Credential | Outcome::Transient
            );
            (outcome, executed || !told_to_come_back)
        }
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, body: &str) -> Outcome {
        classify(Reply::Answered { status, body: body.as_bytes(), nothing_left: false, throttled: false })
    }

    #[test]
    fn the_table() {
        use Outcome::{Credential, Permanent, QuotaExhausted, RateLimited, Redirect, Success, Transient, Unknown};
        for (status, body, expected) in [
            (200, "", Success),
            (204, "", Success),
            (200, "rate_limit_exceeded", Success),
            (304, "", Success),
            (301, "", Redirect),
            (307, "", Redirect),
            (400, "", Permanent),
            (401, "", Credential),
            (402, "", QuotaExhausted),
            (403, "", Permanent),
            (403, r#"{"error":{"errors":[{"reason":"userRateLimitExceeded"}]}}"#, RateLimited),
            (403, r#"{"reason":"dailyLimitExceeded"}"#, QuotaExhausted),
            (403, r#"[{"errorCode":"REQUEST_LIMIT_EXCEEDED"}]"#, QuotaExhausted),
            (403, r#"{"code":"invalid_api_key"}"#, Credential),
            (404, "", Permanent),
            (408, "", Transient),
            (409, "", Permanent),
            (422, "", Permanent),
            (425, "", Transient),
            (429, "", RateLimited),
            (429, r#"{"error":{"type":"insufficient_quota"}}"#, QuotaExhausted),
            (500, "", Transient),
            (501, "", Permanent),
            (503, "", Transient),
            (503, "<Code>SlowDown</Code>", RateLimited),
            (529, "", Transient),
            (999, "", Permanent),
        ] {
            assert_eq!(outcome(status, body), expected, "{status} {body}");
        }
        assert_eq!(classify(Reply::NotSent), Transient);
        assert_eq!(classify(Reply::Lost), Unknown);
        let empty = Reply::Answered { status: 403, body: b"", nothing_left: true, throttled: false };
        assert_eq!(classify(empty), RateLimited);
        let throttled = Reply::Answered { status: 200, body: b"", nothing_left: false, throttled: true };
        assert_eq!(classify(throttled), RateLimited);
        assert!(!may_have_been_executed(RateLimited, throttled));
    }

    #[test]
    fn what_surely_was_not_executed_may_be_sent_again() {
        let check = |status: u16| {
            let reply = Reply::Answered { status, body: b"", nothing_left: false, throttled: false };
            may_have_been_executed(classify(reply), reply)
        };
        for status in [401, 402, 425, 429, 400, 301] {
            assert!(!check(status), "{status}");
        }
        for status in [200, 408, 500, 502, 503, 504, 529] {
            assert!(check(status), "{status}");
        }
        assert!(!may_have_been_executed(Outcome::Transient, Reply::NotSent));
        assert!(may_have_been_executed(Outcome::Unknown, Reply::Lost));
    }

    #[test]
    fn a_ruling_never_makes_a_call_look_as_if_it_surely_was_not_executed() {
        let answered = |status| Reply::Answered { status, body: b"", nothing_left: false, throttled: false };
        for ruled in Outcome::ALL {
            for status in [429, 402, 401, 425] {
                assert_eq!(under(Some(ruled), answered(status)), (ruled, false), "{status}");
            }
            for status in [200, 204, 301, 400, 404, 409, 408, 500, 503] {
                assert_eq!(under(Some(ruled), answered(status)), (ruled, true), "{status}");
            }
        }
        assert_eq!(under(None, answered(404)), (Outcome::Permanent, false));
        assert_eq!(under(None, answered(500)), (Outcome::Transient, true));
    }
}
