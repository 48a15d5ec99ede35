//! Ids in paths.

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;

use super::error::{Problem, ProblemKind};

/// Two names of a path, such as a provider's and a key's. Whether there is such a thing is checked
/// where it is looked up.
pub(super) struct Names(pub(super) String, pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Names {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<(String, String)>::from_request_parts(parts, state).await {
            Ok(Path((first, second))) => Ok(Self(first, second)),
            Err(_) => Err(Problem::new(ProblemKind::NotFound, "no name has this form: 1 to 64 of a-z 0-9 _ -")),
        }
    }
}

/// The `{id}` of a path, percent-decoded. Whether it can be an id at all is checked where it is
/// looked up; it is never put into a header.
pub(super) struct Id(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => Err(Problem::new(ProblemKind::NotFound, "no id has this form: 1 to 128 of A-Z a-z 0-9 . _ : -")),
        }
    }
}
