//! Bodies with `content-encoding: gzip`, unpacked piece by piece, so that whoever reads them can stop in time.
//!
//! Strict: several members one after the other are one body (RFC 1952), and what is cut short or followed by
//! something else is an error, never half of what was sent.

use std::io::{self, Write as _};

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Buf as _, Bytes};
use flate2::write::MultiGzDecoder;
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};

/// Bytes that are unpacked at once: they become a thousand times as many at most.
const STEP_BYTES: usize = 1024;

/// Hands a packed body on unpacked. Which encodings there may be was checked before.
pub(super) async fn unpack(mut request: Request, next: Next) -> Response {
    let encoding = request.headers().get(CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"gzip")) {
        let headers = request.headers_mut();
        headers.remove(CONTENT_ENCODING);
        headers.remove(CONTENT_LENGTH);
        request = request.map(unpacked);
    }
    next.run(request).await
}

struct Unpacking {
    packed: BodyDataStream,
    /// Received, and not unpacked yet.
    rest: Bytes,
    decoder: MultiGzDecoder<Vec<u8>>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Begun,
    Ended,
}

fn unpacked(body: Body) -> Body {
    let packed = body.into_data_stream();
    let unpacking =
        Unpacking { packed, rest: Bytes::new(), decoder: MultiGzDecoder::new(Vec::new()), state: State::Empty };
    Body::from_stream(stream::try_unfold(unpacking, async |mut unpacking: Unpacking| {
        Ok::<_, io::Error>(unpacking.next().await?.map(|piece| (piece, unpacking)))
    }))
}

impl Unpacking {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.state != State::Ended {
            if self.rest.is_empty() {
                match self.packed.next().await {
                    Some(chunk) => self.rest = chunk.map_err(io::Error::other)?,
                    None => {
                        // Nothing at all is an empty body.
                        if self.state == State::Begun {
                            self.decoder.try_finish()?;
                        }
                        self.state = State::Ended;
                    }
                }
            } else {
                self.state = State::Begun;
                let step = self.rest.len().min(STEP_BYTES);
                self.decoder.write_all(&self.rest[..step])?;
                self.rest.advance(step);
            }
            if !self.decoder.get_ref().is_empty() {
                return Ok(Some(std::mem::take(self.decoder.get_mut()).into()));
            }
        }
        Ok(None)
    }
}
