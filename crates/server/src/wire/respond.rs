//! Messages or a status, into an HTTP/2 stream.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body::Frame;
use prost::Message;
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::Status;

use super::{
    budget::Budget,
    compression::{ACCEPTED, Encoding},
    names::{GRPC_ACCEPT_ENCODING, GRPC_ENCODING, GRPC_STATUS},
    receive::{Held, UNCOUNTED},
};

/// The largest message that gRPC clients take: their lengths are signed.
const MAX_MESSAGE: usize = i32::MAX as usize;

/// Bytes of a status message. It travels in a header, clients take 8 KiB of these, and what is not ASCII
/// triples on the way.
const MAX_STATUS: usize = 2048;

/// gRPC's prefix of a message.
const PREFIX: usize = 5;

/// The body of an answer.
pub(crate) enum Body {
    /// One message, then the trailers of success.
    Unary(Option<Bytes>),
    /// The trailers have been sent, or there is nothing to send.
    End,
    /// Messages as they come, each with its prefix; after an error nothing more. Its status is the stream's.
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, Box<Status>>> + Send>>),
    /// Whatever tonic's services answer, until the caller's deadline.
    Tonic(tonic::body::Body, Option<Pin<Box<Sleep>>>),
}

impl Body {
    /// What one of tonic's services answers to a call with this deadline.
    pub(crate) fn tonic(body: tonic::body::Body, deadline: Option<Instant>) -> Self {
        Self::Tonic(body, deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into()))))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Unary(message) => {
                if let Some(message) = message.take() {
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
                *self = Self::End;
                Poll::Ready(Some(Ok(Frame::trailers(success()))))
            }
            Self::Stream(messages) => {
                let trailers = match ready!(messages.as_mut().poll_next(context)) {
                    Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                    None => success(),
                    Some(Err(failed)) => {
                        let mut trailers = HeaderMap::new();
                        write_status(&cut(&failed), &mut trailers);
                        trailers
                    }
                };
                *self = Self::End;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::End => Poll::Ready(None),
            Self::Tonic(body, deadline) => {
                let frame = Pin::new(body).poll_frame(context);
                let passed = |deadline: &mut Pin<Box<Sleep>>| deadline.as_mut().poll(context).is_ready();
                if frame.is_ready() || !deadline.as_mut().is_some_and(passed) {
                    return frame;
                }
                *self = Self::End;
                let mut trailers = HeaderMap::new();
                write_status(&super::late("while the call was open"), &mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Unary(_) | Self::Stream(_) => false,
            Self::End => true,
            Self::Tonic(body, _) => body.is_end_stream(),
        }
    }
}

fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(&GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

fn headers(encoding: Option<Encoding>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(encoding) = encoding {
        headers.insert(&GRPC_ENCODING, encoding.header());
    }
    headers
}

/// An answer of one message.
pub(crate) fn message(
    message: &impl Message,
    encoding: Option<Encoding>,
    budget: &Arc<Budget>,
) -> http::Response<Body> {
    let data = match encode(message, encoding, budget) {
        Ok(data) => data,
        Err(failed) => return status(&failed),
    };
    let mut response = http::Response::new(Body::Unary(Some(data)));
    *response.headers_mut() = headers(encoding);
    response
}

/// An answer of many messages.
pub(crate) fn stream(
    messages: impl Stream<Item = Result<Bytes, Box<Status>>> + Send + 'static,
    encoding: Option<Encoding>,
) -> http::Response<Body> {
    let mut response = http::Response::new(Body::Stream(Box::pin(messages)));
    *response.headers_mut() = headers(encoding);
    response
}

/// A message with its prefix.
///
/// Until its client has read it, an answer lies in memory: a large one holds a place in the budget.
pub(crate) fn encode(
    message: &impl Message,
    encoding: Option<Encoding>,
    budget: &Arc<Budget>,
) -> Result<Bytes, Box<Status>> {
    let length = message.encoded_len();
    if length > MAX_MESSAGE {
        return Err(Box::new(Status::resource_exhausted(format!(
            "the answer has {length} bytes, more than the {MAX_MESSAGE} that gRPC can carry; ask for less at once"
        ))));
    }
    if length <= UNCOUNTED {
        return write(message, length, encoding);
    }
    let mut reservation = budget.reserve();
    reservation.grow(length)?;
    let data = write(message, length, encoding)?;
    Ok(Bytes::from_owner(Held { data, _reservation: reservation }))
}

/// The message of so many bytes with its prefix.
fn write(message: &impl Message, length: usize, encoding: Option<Encoding>) -> Result<Bytes, Box<Status>> {
    let Some(encoding) = encoding else {
        let mut data = BytesMut::with_capacity(PREFIX + length);
        data.put_u8(0);
        data.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        message.encode_raw(&mut data);
        return Ok(data.freeze());
    };
    let mut packed = Vec::with_capacity(PREFIX + length / 4);
    packed.extend_from_slice(&[1, 0, 0, 0, 0]);
    let mut packed = encoding.pack(&message.encode_to_vec(), packed).map_err(|error| {
        Box::new(Status::internal(format!("the answer could not be compressed: {error}")))
    })?;
    let length = u32::try_from(packed.len() - PREFIX).unwrap_or(u32::MAX);
    packed[1..PREFIX].copy_from_slice(&length.to_be_bytes());
    Ok(packed.into())
}

/// An answer that is only a status: HTTP headers and nothing else.
pub(crate) fn status(status: &Status) -> http::Response<Body> {
    let status = &cut(status);
    let mut response = http::Response::new(Body::End);
    *response.headers_mut() = headers(None);
    // What else would be understood matters to whoever was refused, and costs the others nothing.
    response.headers_mut().insert(&GRPC_ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED));
    write_status(status, response.headers_mut());
    response
}

/// As much of it as clients take.
fn cut(status: &Status) -> Cow<'_, Status> {
    if status.message().len() <= MAX_STATUS {
        return Cow::Borrowed(status);
    }
    let text: String = status.message().chars().take(MAX_STATUS / 4 - 1).collect();
    // Details repeat the text, so they are as long.
    let metadata = status.metadata().clone();
    Cow::Owned(Status::with_metadata(status.code(), format!("{text}..."), metadata))
}

/// Writes code, text, details and metadata. A status that cannot be written has text that no header can
/// carry, and none of ours has.
fn write_status(status: &Status, headers: &mut HeaderMap) {
    let written = status.add_header(headers);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use tonic::{Code, metadata::MetadataMap};

    use super::*;

    #[test]
    fn a_status_is_sent_with_its_details_and_metadata_and_cut_to_what_clients_take() {
        let told = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-retry-pushback-ms", 7.into());
            let details = Bytes::from_static(b"details");
            let sent = Status::with_details_and_metadata(Code::Unavailable, text, details, metadata);
            let response = status(&sent);
            let size: usize =
                response.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
            assert!(size < 8 << 10, "{size}");
            assert_eq!(response.headers()["grpc-retry-pushback-ms"], "7");
            Status::from_header_map(response.headers()).expect("a status")
        };
        let short = told("short");
        assert_eq!(
            (short.code(), short.message(), short.details()),
            (Code::Unavailable, "short", &b"details"[..])
        );
        let long = told(&"\u{e9}".repeat(MAX_STATUS));
        assert_eq!(long.code(), Code::Unavailable);
        assert!(long.message().ends_with("\u{e9}..."), "{}", long.message());
    }
}
