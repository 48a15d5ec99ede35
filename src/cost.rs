//! The true cost of a call, as the provider's answer tells it.
//!
//! Whatever an answer holds there instead of a plausible number, the estimate stands.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize as _;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::pace::MAX_AMOUNT;

/// A JSON pointer (RFC 6901) into response bodies.
///
/// ```
/// use paceline::cost::CostFrom;
/// let from = CostFrom::parse("/usage/total_tokens").unwrap();
/// assert_eq!(from.read(br#"{"id":"x","usage":{"total_tokens":17}}"#), Some(17));
/// assert_eq!(from.read(br#"{"usage":{"total_tokens":-1}}"#), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CostFrom {
    path: Arc<[String]>,
}

impl CostFrom {
    /// Reads a JSON pointer that leads somewhere.
    ///
    /// # Errors
    /// What was expected, for the person who wrote it.
    pub fn parse(pointer: &str) -> Result<Self, String> {
        let wrong = || format!("expected a JSON pointer such as \"/usage/total_tokens\", found {pointer:?}");
        let rest = pointer.strip_prefix('/').ok_or_else(wrong)?;
        let path = rest.split('/').map(unescaped).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
        Ok(Self { path: path.into() })
    }

    /// The whole number at that place of a body; `None` where there is none, where it is negative or absurdly large
    /// ([`MAX_AMOUNT`]), and where the body is not JSON. Takes time in proportion to the body, and no memory.
    pub fn read(&self, body: &[u8]) -> Option<u64> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let found = Place { path: &self.path }.deserialize(&mut json).ok()??;
        json.end().ok()?;
        Some(found).filter(|cost| *cost <= MAX_AMOUNT)
    }
}

/// `~1` stands for `/` and `~0` for `~`.
fn unescaped(token: &str) -> Option<String> {
    let mut out = String::with_capacity(token.len());
    let mut rest = token.chars();
    while let Some(c) = rest.next() {
        out.push(match c {
            '~' => match rest.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

/// What is left of the way to the number.
#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a [String],
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<u64>;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Option<u64>, D::Error> {
        if self.path.is_empty() {
            // As it was written: `1.0`, `1e3`, `"1"` and `-1` are no whole numbers of units.
            let number = <&RawValue>::deserialize(deserializer)?;
            return Ok(number.get().parse().ok());
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<u64>, A::Error> {
        let Some((name, path)) = self.path.split_first() else { return Ok(None) };
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == *name {
                // Of two members of one name the larger cost counts.
                found = map.next_value_seed(Place { path })?.max(found);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<u64>, A::Error> {
        let Some((index, path)) = self.path.split_first() else { return Ok(None) };
        let wanted: Option<usize> = index.parse().ok();
        let (mut found, mut n) = (None, 0);
        loop {
            let more = if Some(n) == wanted {
                let value = seq.next_element_seed(Place { path })?;
                found = value.flatten();
                value.is_some()
            } else {
                seq.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                return Ok(found);
            }
            n += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pointer: &str, body: &str) -> Option<u64> {
        CostFrom::parse(pointer).expect(pointer).read(body.as_bytes())
    }

    #[test]
    fn numbers_are_found_wherever_they_are() {
        for (pointer, body, cost) in [
            ("/usage/total_tokens", r#"{"usage":{"prompt":3,"total_tokens":17},"x":[1,2]}"#, 17),
            ("/usage/total_tokens", "{\"usage\":{\"total_tokens\":0}}\n", 0),
            ("/0/cost", r#"[{"cost":5},{"cost":6}]"#, 5),
            ("/1/cost", r#"[{"cost":5},{"cost":6}]"#, 6),
            ("/a~1b/~0c", r#"{"a/b":{"~c":9}}"#, 9),
            ("/", r#"{"":4}"#, 4),
            ("/a", r#"{"a":3,"a":8,"a":5}"#, 8),
            ("/a", &format!("{{\"a\":{MAX_AMOUNT}}}"), MAX_AMOUNT),
        ] {
            assert_eq!(read(pointer, body), Some(cost), "{pointer} in {body}");
        }
    }

    #[test]
    fn anything_else_is_no_cost() {
        for body in [
            "",
            "17",
            "null",
            "[17]",
            "<usage>17</usage>",
            r#"{"usage":17}"#,
            r#"{"usage":null}"#,
            r#"{"usage":"total_tokens"}"#,
            r#"{"usage":{}}"#,
            r#"{"usage":{"total_tokens":null}}"#,
            r#"{"usage":{"total_tokens":-1}}"#,
            r#"{"usage":{"total_tokens":1.5}}"#,
            r#"{"usage":{"total_tokens":1.0}}"#,
            r#"{"usage":{"total_tokens":1e3}}"#,
            r#"{"usage":{"total_tokens":"17"}}"#,
            r#"{"usage":{"total_tokens":[17]}}"#,
            r#"{"usage":{"total_tokens":{"":17}}}"#,
            r#"{"usage":{"total_tokens":NaN}}"#,
            r#"{"usage":{"total_tokens":281474976710657}}"#,
            r#"{"usage":{"total_tokens":99999999999999999999999999}}"#,
            r#"{"usage":{"total_tokens":17}"#,
            r#"{"usage":{"total_tokens":17}} and more"#,
            r#"{"usage":{"total_tokens":17},}"#,
            "\u{feff}{\"usage\":{\"total_tokens\":17}}",
        ] {
            assert_eq!(read("/usage/total_tokens", body), None, "{body}");
        }
        assert_eq!(CostFrom::parse("/a").map(|from| from.read(b"{\"a\":1,\"\xff\":2}")), Ok(None));
        assert_eq!(read("/a", &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))), None, "depth is bounded");
        assert_eq!(read("/a", &"{\"a\":".repeat(100_000)), None);
        assert_eq!(read("/99999999999999999999", "[1]"), None);
    }

    #[test]
    fn pointers_that_lead_nowhere_are_refused() {
        for pointer in ["", "usage", "$.usage", "/a~2", "/a~"] {
            assert!(CostFrom::parse(pointer).is_err(), "{pointer}");
        }
    }
}
