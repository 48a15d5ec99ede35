//! What a configuration says of answers, before the table: rules by status, header field and body, and the statuses
//! that count as success. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Outcome, Reply, classify};
use crate::glob;
use crate::pointer::Pointer;

/// The longest wait that an answer's body can ask for.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Some statuses: `409`, `5xx`, or several of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses(Vec<(u16, u16)>);

impl Statuses {
    /// All of a list.
    pub fn all(lists: impl IntoIterator<Item = Self>) -> Self {
        Self(lists.into_iter().flat_map(|list| list.0).collect())
    }

    /// Whether a status is one of them.
    pub fn contain(&self, status: u16) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&status))
    }
}

impl FromStr for Statuses {
    type Err = String;

    /// One status or one class.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected a status such as 404, or a class such as \"5xx\", found {text:?}");
        if let Some(class) = text.strip_suffix("xx") {
            let class: u16 = class.parse().ok().filter(|class| (2..=5).contains(class)).ok_or_else(wrong)?;
            return Ok(Self(vec![(class * 100, class * 100 + 99)]));
        }
        let status: u16 = text.parse().ok().filter(|status| (200..=599).contains(status)).ok_or_else(wrong)?;
        Ok(Self(vec![(status, status)]))
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (from, to)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            if from == to { write!(f, "{comma}{from}")? } else { write!(f, "{comma}{}xx", from / 100)? }
        }
        Ok(())
    }
}

/// A header field, and what it has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderPattern {
    /// In lower case.
    name: String,
    /// `*` stands for any text.
    value: String,
}

impl FromStr for HeaderPattern {
    type Err = String;

    /// `x-error: quota*`; the name alone where any value will do.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').unwrap_or((text, "*"));
        let name: http::HeaderName =
            name.trim().parse().map_err(|_| format!("expected a field such as \"x-error: quota*\", found {text:?}"))?;
        Ok(Self { name: name.as_str().to_owned(), value: value.trim().to_owned() })
    }
}

impl fmt::Display for HeaderPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.value)
    }
}

/// A place in the body, and what has to stand there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyPattern {
    /// The place.
    pub pointer: Pointer,
    /// The text, number or boolean there, as text; `None`: any of these.
    pub equals: Option<String>,
}

/// One rule: the answers that fit everything it names, and what they mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// One of these statuses.
    pub status: Option<Statuses>,
    /// And this header field.
    pub header: Option<HeaderPattern>,
    /// And this in the body.
    pub body: Option<BodyPattern>,
    /// What it means.
    pub outcome: Outcome,
    /// Where the body says how many seconds to wait.
    pub retry_after: Option<Pointer>,
}

/// A whole answer, as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body; bounded by whoever read it.
    pub body: &'a [u8],
    /// It was cut short: nothing can be found in it.
    pub truncated: bool,
}

/// What a configuration says of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruling {
    /// What it means.
    pub outcome: Outcome,
    /// How long it asks to wait.
    pub retry_after: Option<Duration>,
}

/// What answers mean beyond the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// In their order: the first that fits decides.
    pub rules: Vec<Rule>,
    /// What counts as success where no rule fits; `None`: what the table says.
    pub success: Option<Statuses>,
}

impl Rules {
    /// What they say of an answer; `None`: nothing, the table decides. `throttled`: the body said so in a way that is
    /// known without any rule.
    pub fn judge(&self, answer: &Answer<'_>, throttled: bool) -> Option<Ruling> {
        if let Some(rule) = self.rules.iter().find(|rule| rule.fits(answer)) {
            return Some(Ruling { outcome: rule.outcome, retry_after: rule.wait(answer) });
        }
        let success = self.success.as_ref().filter(|_| !throttled)?;
        let plain = |outcome| Some(Ruling { outcome, retry_after: None });
        if success.contain(answer.status) {
            return plain(Outcome::Success);
        }
        let Answer { status, body, .. } = *answer;
        // Another success than those that count is an answer that cannot be used.
        match classify(Reply::Answered { status, body, nothing_left: false, throttled: false }) {
            Outcome::Success => plain(Outcome::Permanent),
            _ => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status.as_ref().map(ToString::to_string);
        let header = self.header.as_ref().map(ToString::to_string);
        let body = self.body.as_ref().map(|body| match &body.equals {
            Some(equals) => format!("{} = {equals:?}", body.pointer),
            None => body.pointer.to_string(),
        });
        let named: Vec<String> = [status, header, body].into_iter().flatten().collect();
        write!(f, "{} → {}", named.join("; "), self.outcome.as_str())
    }
}

impl Rule {
    fn fits(&self, answer: &Answer<'_>) -> bool {
        self.status.as_ref().is_none_or(|statuses| statuses.contain(answer.status))
            && self.header.as_ref().is_none_or(|pattern| pattern.fits(answer.headers))
            && self.body.as_ref().is_none_or(|pattern| pattern.fits(answer))
    }

    fn wait(&self, answer: &Answer<'_>) -> Option<Duration> {
        let seconds: f64 = self.retry_after.as_ref()?.scalar(answer.whole_body()?)?.trim().parse().ok()?;
        let plausible = (0.0..=WAIT_MAX.as_secs_f64()).contains(&seconds);
        plausible.then(|| Duration::from_secs_f64(seconds))
    }
}

impl HeaderPattern {
    fn fits(&self, headers: &[(&str, &str)]) -> bool {
        headers.iter().any(|(name, value)| *name == self.name && glob::matches(&self.value, value.trim()))
    }
}

impl BodyPattern {
    fn fits(&self, answer: &Answer<'_>) -> bool {
        let found = answer.whole_body().and_then(|body| self.pointer.scalar(body));
        found.is_some_and(|found| self.equals.as_ref().is_none_or(|wanted| *wanted == found))
    }
}

impl<'a> Answer<'a> {
    /// Half a document is none.
    fn whole_body(&self) -> Option<&'a [u8]> {
        (!self.truncated).then_some(self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(status: &str, header: &str, body: (&str, &str), outcome: Outcome) -> Rule {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Rule {
            status: given(status).map(|text| text.parse().expect("a status")),
            header: given(header).map(|text| text.parse().expect("a field")),
            body: given(body.0).map(|pointer| BodyPattern {
                pointer: Pointer::parse(&pointer).expect("a pointer"),
                equals: given(body.1),
            }),
            outcome,
            retry_after: Some(Pointer::parse("/wait").expect("a pointer")),
        }
    }

    fn judge(rules: &Rules, status: u16, headers: &[(&str, &str)], body: &str) -> Option<Ruling> {
        rules.judge(&Answer { status, headers, body: body.as_bytes(), truncated: false }, false)
    }

    #[test]
    fn the_first_rule_that_fits_whole_decides() {
        let rules = Rules {
            rules: vec![
                rule("409", "", ("/error/code", "BUSY"), Outcome::Transient),
                rule("409", "x-error: quota*", ("", ""), Outcome::QuotaExhausted),
                rule("4xx", "", ("/error/code", "429"), Outcome::RateLimited),
                rule("", "x-duplicate", ("", ""), Outcome::Success),
                rule("5xx", "", ("", ""), Outcome::Unknown),
                rule("200", "", ("/error/code", ""), Outcome::Permanent),
            ],
            success: None,
        };
        let quota: &[(&str, &str)] = &[("x-error", "quota of today")];
        for (status, headers, body, expected) in [
            (409, &[][..], r#"{"error":{"code":"BUSY"}}"#, Some(Outcome::Transient)),
            (409, quota, r#"{"error":{"code":"BUSY"}}"#, Some(Outcome::Transient)),
            (409, quota, r#"{"error":{"code":"busy"}}"#, Some(Outcome::QuotaExhausted)),
            (400, quota, r#"{"error":{"code":429}}"#, Some(Outcome::RateLimited)),
            (400, quota, r#"{"error":{"code":"429"}}"#, Some(Outcome::RateLimited)),
            (400, &[("x-error", "a quota")], "", None),
            (409, &[("x-duplicate", "")], "", Some(Outcome::Success)),
            (502, &[], "", Some(Outcome::Unknown)),
            (200, &[], r#"{"error":{"code":"whatever"}}"#, Some(Outcome::Permanent)),
            (200, &[], r#"{"error":{"code":null}}"#, None),
            (200, &[], r#"{"error":{"code":{}}}"#, None),
            (200, &[], r#"{"error":{"code":"cut"}"#, None),
            (404, &[], "", None),
        ] {
            let ruling = judge(&rules, status, headers, body).map(|ruling| ruling.outcome);
            assert_eq!(ruling, expected, "{status} {headers:?} {body}");
        }
        let cut = Answer { status: 200, headers: &[], body: br#"{"error":{"code":"x"}}"#, truncated: true };
        assert_eq!(rules.judge(&cut, false), None, "half a document is none");
    }

    #[test]
    fn a_body_may_say_how_long_to_wait_within_reason() {
        let rules = Rules { rules: vec![rule("409", "", ("", ""), Outcome::Transient)], success: None };
        let wait = |body: &str| judge(&rules, 409, &[], body).and_then(|ruling| ruling.retry_after);
        assert_eq!(wait(r#"{"wait":2.5}"#), Some(Duration::from_millis(2_500)));
        assert_eq!(wait(r#"{"wait":"3"}"#), Some(Duration::from_secs(3)));
        for body in ["", "{}", r#"{"wait":-1}"#, r#"{"wait":"soon"}"#, r#"{"wait":1e300}"#, r#"{"wait":"inf"}"#] {
            assert_eq!(wait(body), None, "{body}");
        }
    }

    #[test]
    fn only_the_named_statuses_are_success_then() {
        let success = Statuses::all(["200", "404"].map(|text| text.parse().expect("a status")));
        let rules = Rules { rules: Vec::new(), success: Some(success) };
        let outcome = |status| judge(&rules, status, &[], "").map(|ruling| ruling.outcome);
        assert_eq!(outcome(200), Some(Outcome::Success));
        assert_eq!(outcome(404), Some(Outcome::Success));
        assert_eq!(outcome(204), Some(Outcome::Permanent));
        assert_eq!(outcome(304), Some(Outcome::Permanent));
        assert_eq!((outcome(429), outcome(503), outcome(400)), (None, None, None), "the table decides");
        let throttled = Answer { status: 200, headers: &[], body: b"", truncated: false };
        assert_eq!(rules.judge(&throttled, true), None);
        assert_eq!(Rules::default().judge(&throttled, false), None);
    }

    #[test]
    fn statuses_and_fields_are_read_or_refused() {
        for text in ["404", "2xx", "599"] {
            assert_eq!(text.parse::<Statuses>().expect(text).to_string(), text);
        }
        for text in ["", "xx", "1xx", "6xx", "100", "600", "4x", "4xx,5xx", "-1", "2xxx"] {
            assert!(text.parse::<Statuses>().is_err(), "{text}");
        }
        assert_eq!("X-Error : a*".parse::<HeaderPattern>().expect("a field").to_string(), "x-error: a*");
        for text in ["", ": a", "x y: a"] {
            assert!(text.parse::<HeaderPattern>().is_err(), "{text}");
        }
    }
}
