//! Request and response bodies: streamed bytes, the same type for TLS connections and for callers in the process.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{self, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

use api::{Reason, StatusError};

/// Any error that ends a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A streamed request or response body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Largest request body in bytes: etcd's request limit doubled, as upstream's `MaxRequestBodyBytes`.
pub const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// How much of an unwanted request body is read, in bytes: what arrives in HTTP/2's first window.
const DISCARD_BYTES_MAX: usize = 64 * 1024;

/// A body of known content.
pub fn full_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of known content in several pieces, which are sent without being joined.
pub(crate) fn pieces_body(pieces: impl IntoIterator<Item = Bytes>) -> Body {
    Pieces(pieces.into_iter().collect()).boxed_unsync()
}

/// Pieces that are still to be sent.
struct Pieces(VecDeque<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let bytes = self.0.iter().map(Bytes::len).sum::<usize>();
        u64::try_from(bytes).map_or_else(|_overflow| SizeHint::default(), SizeHint::with_exact)
    }
}

/// A body without content.
#[must_use]
pub fn empty_body() -> Body {
    full_body(Bytes::new())
}

/// Reads a whole body.
///
/// # Errors
/// 413 in upstream's words when it is larger than [`BODY_BYTES_MAX`]; 400 when the connection breaks.
pub async fn read_body(body: Body) -> Result<Bytes, StatusError> {
    let mut body = body;
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            StatusError::bad_request(format!("unable to read the request body: {error}"))
        })?;
        // Trailers say nothing here.
        if let Ok(data) = frame.into_data() {
            if read.len() + data.len() > BODY_BYTES_MAX {
                return Err(too_large());
            }
            read.extend_from_slice(&data);
        }
    }
    Ok(read.freeze())
}

/// Reads what a client has sent of a body that nobody wants: HTTP/2 resets a stream whose body is left unread, and some
/// clients then lose the answer.
pub(crate) async fn discard(mut body: Body) {
    let mut left = DISCARD_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if bytes >= left {
            return;
        }
        left -= bytes;
    }
}

/// The 413 of a body over the limit.
pub(crate) fn too_large() -> StatusError {
    StatusError::new(
        Reason::RequestEntityTooLarge,
        format!("Request entity too large: limit is {BODY_BYTES_MAX}"),
    )
}
