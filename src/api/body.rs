//! Reading request bodies within bounds: of one body, of all bodies in memory, and of time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody as _};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Problem, ProblemKind};
use crate::job::Invalid;

/// Largest body that holds an array of jobs.
pub const MANY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bodies in memory at once, all together.
const HELD_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Unit of the account of bodies in memory.
const UNIT_BYTES: usize = 16 * 1024;
/// A body that does not arrive within that time is given up.
const READ_WITHIN: Duration = Duration::from_secs(20);
/// A body that is too large is still taken in up to here and thrown away, so that its sender gets
/// to read why it was refused.
const DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// And for no longer than that.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// Reads bodies. Clones share one account of what is in memory.
#[derive(Debug, Clone)]
pub(super) struct BodyReader {
    one_bytes_max: usize,
    held: Arc<Semaphore>,
}

/// A body in memory, counted until it is dropped.
#[derive(Debug)]
pub(super) struct HeldBody {
    pub(super) bytes: Bytes,
    _held: Option<OwnedSemaphorePermit>,
}

/// What a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// One object.
    One,
    /// One object, or an array of them, which may be larger.
    OneOrMany,
}

impl BodyReader {
    pub(super) fn new(one_bytes_max: usize) -> Self {
        Self { one_bytes_max, held: Arc::new(Semaphore::new(HELD_BYTES_MAX / UNIT_BYTES)) }
    }

    /// The whole body.
    pub(super) async fn read(&self, body: Body, takes: Takes) -> Result<HeldBody, Problem> {
        // What is announced to be larger than would be thrown away is not waited for.
        let most = if takes == Takes::OneOrMany { MANY_BYTES_MAX.max(self.one_bytes_max) } else { self.one_bytes_max };
        if body.size_hint().lower() > u64::try_from(DRAIN_BYTES_MAX.max(most)).unwrap_or(u64::MAX) {
            return Err(Problem::new(ProblemKind::TooLarge, format!("a body may have at most {most} bytes")));
        }
        let mut stream = body.into_data_stream();
        let read = tokio::time::timeout(READ_WITHIN, self.collect(&mut stream, takes)).await;
        let problem = match read {
            Ok(Ok(held)) => return Ok(held),
            Ok(Err(problem)) => problem,
            Err(_) => return Err(Problem::new(ProblemKind::RequestTimeout, "the whole body was expected within 20 s")),
        };
        if problem.kind == ProblemKind::TooLarge {
            // Only a courtesy: whether the rest arrives changes nothing about the answer.
            let drained = tokio::time::timeout(DRAIN_WITHIN, drain(&mut stream)).await;
            tracing::debug!(drained = drained.is_ok(), "threw away the rest of a body that is too large");
        }
        Err(problem)
    }

    /// Of a route that says it all: no body, or `{}`.
    pub(super) async fn nothing(&self, body: Body) -> Result<(), Problem> {
        let body = self.read(body, Takes::One).await?;
        let text = body.bytes.trim_ascii();
        let is_empty_object = text.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii() == b"}");
        if text.is_empty() || is_empty_object {
            return Ok(());
        }
        Err(Problem::invalid(Invalid::at("", "expected no body, or {}: the route says it all")))
    }

    async fn collect(&self, stream: &mut BodyDataStream, takes: Takes) -> Result<HeldBody, Problem> {
        let mut read = BytesMut::new();
        let mut held: Option<OwnedSemaphorePermit> = None;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| {
                Problem::new(
                    ProblemKind::NotJson,
                    "the body ended before its end, or is not what content-encoding says",
                )
            })?;
            let many = first_byte(&read, &chunk) == Some(b'[') && takes == Takes::OneOrMany;
            let bytes_max = if many { MANY_BYTES_MAX.max(self.one_bytes_max) } else { self.one_bytes_max };
            if read.len() + chunk.len() > bytes_max {
                let what = if many { "an array of jobs" } else { "this body" };
                return Err(Problem::new(ProblemKind::TooLarge, format!("{what} may have at most {bytes_max} bytes")));
            }
            self.hold(&mut held, read.len() + chunk.len())?;
            read.extend_from_slice(&chunk);
        }
        Ok(HeldBody { bytes: read.freeze(), _held: held })
    }

    /// Counts this body as that large, or fails at once: waiting with half a body in hand could
    /// end in all of them waiting for each other.
    fn hold(&self, held: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Problem> {
        let had = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = bytes.div_ceil(UNIT_BYTES).saturating_sub(had);
        if more == 0 {
            return Ok(());
        }
        let units = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.held).try_acquire_many_owned(units).map_err(|_| {
            Problem::new(ProblemKind::Unavailable, "too many large requests at once: try again, or send smaller ones")
        })?;
        match held {
            Some(held) => held.merge(permit),
            None => *held = Some(permit),
        }
        Ok(())
    }
}

/// The first byte that is no blank.
fn first_byte(read: &[u8], chunk: &[u8]) -> Option<u8> {
    let begins = |bytes: &[u8]| bytes.trim_ascii_start().first().copied();
    begins(read).or_else(|| begins(chunk))
}

async fn drain(stream: &mut BodyDataStream) {
    let mut seen = 0_usize;
    while let Some(Ok(chunk)) = stream.next().await {
        seen = seen.saturating_add(chunk.len());
        if seen > DRAIN_BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(future)
    }

    #[test]
    fn the_first_byte_tells_how_much_is_allowed() {
        let reader = BodyReader::new(16);
        let read = |text: String, takes| block_on(reader.read(Body::from(text), takes)).map(|held| held.bytes.len());
        assert_eq!(read("x".repeat(16), Takes::One).ok(), Some(16));
        assert_eq!(read("x".repeat(17), Takes::One).expect_err("too large").kind, ProblemKind::TooLarge);
        assert_eq!(read(format!("  [{}", "x".repeat(100)), Takes::OneOrMany).ok(), Some(103));
        assert_eq!(
            read(format!("[{}", "x".repeat(100)), Takes::One).expect_err("too large").kind,
            ProblemKind::TooLarge
        );
    }

    #[test]
    fn bodies_in_memory_are_counted_and_given_back() {
        let reader = BodyReader::new(HELD_BYTES_MAX);
        let large = || Body::from(vec![b' '; HELD_BYTES_MAX / 2 + 1]);
        block_on(async {
            let first = reader.read(large(), Takes::One).await.expect("fits");
            assert_eq!(reader.read(large(), Takes::One).await.expect_err("full").kind, ProblemKind::Unavailable);
            drop(first);
            reader.read(large(), Takes::One).await.expect("fits again");
        });
    }
}
