//! JSON pointers into the bodies of answers: a value is found without building the document.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize as _;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A JSON pointer (RFC 6901) that leads somewhere: not to the whole document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    path: Arc<[String]>,
}

impl Pointer {
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

    /// Shows `found` every value at that place of a body, as it was written: members of one name may stand there more
    /// than once. `false`: the body is not JSON, and nothing that was found counts. Takes time in proportion to the
    /// body, and no memory.
    pub fn visit(&self, body: &[u8], found: &mut dyn FnMut(&RawValue)) -> bool {
        let mut json = serde_json::Deserializer::from_slice(body);
        Place { path: &self.path, found }.deserialize(&mut json).is_ok() && json.end().is_ok()
    }

    /// The text, number or boolean at that place, as text; of several the last. `None` where there is none.
    ///
    /// ```
    /// use paceline::pointer::Pointer;
    /// let code = Pointer::parse("/error/code").unwrap();
    /// assert_eq!(code.scalar(br#"{"error":{"code":"RATE_LIMIT"}}"#).as_deref(), Some("RATE_LIMIT"));
    /// assert_eq!(code.scalar(br#"{"error":{"code":429}}"#).as_deref(), Some("429"));
    /// assert_eq!(code.scalar(br#"{"error":{"code":null}}"#), None);
    /// ```
    pub fn scalar(&self, body: &[u8]) -> Option<String> {
        let mut last = None;
        let whole = self.visit(body, &mut |value| last = as_text(value));
        last.filter(|_| whole)
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.iter().try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

fn as_text(value: &RawValue) -> Option<String> {
    match value.get().as_bytes().first()? {
        b'"' => serde_json::from_str(value.get()).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(value.get().to_owned()),
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

/// What is left of the way to the value.
struct Place<'a> {
    path: &'a [String],
    found: &'a mut dyn FnMut(&RawValue),
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            (self.found)(<&RawValue>::deserialize(deserializer)?);
            return Ok(());
        }
        deserializer.deserialize_any(self)
    }
}

/// Whatever stands where an object or an array was expected is passed over.
macro_rules! nothing_there {
    ($($visit:ident: $kind:ty),*) => {
        $(fn $visit<E: de::Error>(self, _: $kind) -> Result<(), E> {
            Ok(())
        })*
    };
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    nothing_there!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((name, path)) = self.path.split_first() else { return Ok(()) };
        while let Some(key) = map.next_key::<String>()? {
            if key == *name {
                map.next_value_seed(Place { path, found: &mut *self.found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((index, path)) = self.path.split_first() else { return Ok(()) };
        let wanted: Option<usize> = index.parse().ok();
        let mut n = 0;
        loop {
            let more = if Some(n) == wanted {
                seq.next_element_seed(Place { path, found: &mut *self.found })?.is_some()
            } else {
                seq.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                return Ok(());
            }
            n += 1;
        }
    }
}
