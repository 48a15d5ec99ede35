//! Takes keys out of what a provider sent back: some echo them in errors and headers.

use bytes::Bytes;

use super::request::basic;
use crate::config::Auth;

const MASK: &[u8] = b"***";

/// `text` with every occurrence of the key replaced. Keys of fewer than four bytes are left
/// alone: they would take ordinary text along.
pub(super) fn bytes(text: Bytes, forms: &[String]) -> Bytes {
    let mut out = text;
    for form in forms.iter().filter(|f| f.len() >= 4) {
        out = replace(out, form.as_bytes());
    }
    out
}

/// The same for text.
pub(super) fn text(text: &str, forms: &[String]) -> String {
    let mut out = text.to_owned();
    for form in forms.iter().filter(|f| f.len() >= 4) {
        if out.contains(form.as_str()) {
            out = out.replace(form.as_str(), "***");
        }
    }
    out
}

/// The ways a key may show: as it is, percent-encoded as in a query, escaped as in JSON, and as
/// HTTP Basic carries it.
pub(super) fn forms(key: &str, auth: &Auth) -> Vec<String> {
    let mut forms = vec![key.to_owned()];
    let mut add = |form: String| {
        if !forms.contains(&form) {
            forms.push(form);
        }
    };
    add(url::form_urlencoded::byte_serialize(key.as_bytes()).collect());
    if key.contains(['"', '\\', '/']) {
        let json = key.replace('\\', "\\\\").replace('"', "\\\"");
        add(json.replace('/', "\\/"));
        add(json);
    }
    if let Auth::Basic { user } = auth {
        add(basic(user, key));
    }
    forms
}

fn replace(text: Bytes, form: &[u8]) -> Bytes {
    let Some(first) = find(&text, form) else { return text };
    let mut out = Vec::with_capacity(text.len());
    let mut from = 0;
    let mut next = Some(first);
    while let Some(at) = next {
        out.extend_from_slice(&text[from..at]);
        out.extend_from_slice(MASK);
        from = at + form.len();
        next = find(&text[from..], form).map(|n| n + from);
    }
    out.extend_from_slice(&text[from..]);
    out.into()
}

/// Looks for the first byte with the library's fast search before it compares the rest.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = haystack.get(from..)?.iter().position(|b| *b == first).map(|n| n + from) {
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoed_keys_are_masked_in_every_form() {
        let auth = Auth::Basic { user: "me".to_owned() };
        let odd = forms("sk-1/2 3", &auth);
        let body = Bytes::from_static(b"a sk-1/2 3 b sk-1%2F2+3 c sk-1 d sk-1/2 3 e sk-1\\/2 3");
        assert_eq!(bytes(body, &odd), "a *** b *** c sk-1 d *** e ***");
        assert_eq!(text("key sk-1/2 3!", &odd), "key ***!");
        assert_eq!(text("Basic bWU6c2stMS8yIDM=", &odd), "Basic ***");
        assert_eq!(text(r#"{"a":"k\"e\\y"}"#, &forms(r#"k"e\y"#, &auth)), r#"{"a":"***"}"#);
        let plain = Auth::Query("key".to_owned());
        assert_eq!(forms("ordinary-key_1", &plain).len(), 1, "one search for most keys");
        assert_eq!(text("the key is k", &forms("k", &plain)), "the key is k");
    }
}
