//! The true cost of a call, as the provider's answer tells it.
//!
//! Whatever an answer holds there instead of a plausible number, the estimate stands.

use crate::pace::MAX_AMOUNT;
use crate::pointer::Pointer;

/// A JSON pointer (RFC 6901) into response bodies.
///
/// ```
/// use paceline::cost::CostFrom;
/// let from = CostFrom::parse("/usage/total_tokens").unwrap();
/// assert_eq!(from.read(br#"{"id":"x","usage":{"total_tokens":17}}"#), Some(17));
/// assert_eq!(from.read(br#"{"usage":{"total_tokens":-1}}"#), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CostFrom(Pointer);

impl CostFrom {
    /// Reads a JSON pointer that leads somewhere.
    ///
    /// # Errors
    /// What was expected, for the person who wrote it.
    pub fn parse(pointer: &str) -> Result<Self, String> {
        Pointer::parse(pointer).map(Self)
    }

    /// The whole number at that place of a body; `None` where there is none, where it is negative or absurdly large
    /// ([`MAX_AMOUNT`]), and where the body is not JSON. Takes time in proportion to the body, and no memory.
    pub fn read(&self, body: &[u8]) -> Option<u64> {
        let mut most: Option<u64> = None;
        // As it was written: `1.0`, `1e3`, `"1"` and `-1` are no whole numbers of units. Of two members of one name the
        // larger cost counts.
        let whole = self.0.visit(body, &mut |value| most = most.max(value.get().parse().ok()));
        most.filter(|cost| whole && *cost <= MAX_AMOUNT)
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
