//! Messages, out of an HTTP/2 stream.

use std::{
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use prost::Message;
use tonic::Status;

use super::{
    budget::{Budget, Reservation, too_large},
    compression::Encoding,
    names::GRPC_TIMEOUT,
};

/// gRPC's prefix of a message: a flag and a 32-bit length.
const PREFIX: usize = 5;

/// Where tensors like to end: a cache line, and a multiple of every dtype's size.
const ALIGN: usize = 64;

/// What is received at most.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Bytes of one message, unpacked.
    pub(crate) message: usize,
    /// Bytes of all messages that are being received or wait.
    pub(crate) budget: Arc<Budget>,
    /// Bytes of all answers that their clients have not read yet.
    pub(crate) answers: Arc<Budget>,
}

/// Messages up to this size count only while they are received: the queues bound their number, and
/// holding their place costs more than it protects.
pub(super) const UNCOUNTED: usize = 16 * 1024;

/// Packed messages up to this size are unpacked on the receiving thread.
const UNPACKED_HERE: usize = 64 * 1024;

/// A message that stops coming is given up: its sender holds a place in the budget.
const STALLED: Duration = Duration::from_secs(60);

/// A message whose place in the budget is held as long as any slice of it lives.
pub(super) struct Held<T> {
    pub(super) data: T,
    pub(super) _reservation: Reservation,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.data.as_ref()
    }
}

fn broken(why: &str) -> Box<Status> {
    Box::new(Status::invalid_argument(format!("the request is no gRPC message: {why}")))
}

/// The messages of a call, one after the other.
pub(crate) struct Messages {
    body: Incoming,
    /// What has come behind the last one.
    rest: Bytes,
    encoding: Option<Encoding>,
    limits: Limits,
}

impl Messages {
    pub(crate) fn new(body: Incoming, encoding: Option<Encoding>, limits: &Limits) -> Self {
        Self { body, rest: Bytes::new(), encoding, limits: limits.clone() }
    }

    /// The bytes of the one message of a unary request, unpacked. They hold their place in the budget.
    pub(crate) async fn only(&mut self) -> Result<Bytes, Box<Status>> {
        self.rest = in_time(next(&mut self.body)).await?.ok_or_else(|| broken("it is empty"))?;
        let message = self.next().await?.ok_or_else(|| broken("it is empty"))?;
        if self.rest.is_empty()
            && (self.body.is_end_stream() || in_time(next(&mut self.body)).await?.is_none())
        {
            return Ok(message);
        }
        Err(broken("a second message follows on a call that takes one"))
    }

    /// The bytes of the next message, unpacked; `None` where the caller has said that there is none. They hold
    /// their place in the budget.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Box<Status>> {
        let mut first = std::mem::take(&mut self.rest);
        if first.is_empty() {
            match next(&mut self.body).await? {
                Some(data) => first = data,
                None => return Ok(None),
            }
        }
        while first.len() < PREFIX {
            first = match in_time(next(&mut self.body)).await? {
                // Nobody splits the prefix but a test, so the copy does not matter.
                Some(more) => [first, more].concat().into(),
                None => return Err(broken("it ends in its prefix")),
            };
        }
        let flag = first.get_u8();
        let length = first.get_u32() as usize;
        if flag > 1 {
            return Err(broken("its first byte must be 0 or 1"));
        }
        if length > self.limits.message {
            return Err(too_large(&format!("has {length} bytes, which is over"), self.limits.message));
        }
        let mut reservation = self.limits.budget.reserve();
        let whole = first.len() >= length;
        let message = if whole {
            if flag == 1 || length > UNCOUNTED {
                reservation.grow(length)?;
            }
            self.rest = first.split_off(length);
            first
        } else {
            self.gather(first, length, reservation.renew()).await?
        };
        if flag == 1 {
            let Some(encoding) = self.encoding else {
                return Err(broken("it says it is compressed, but grpc-encoding does not say how"));
            };
            return unpack(message, encoding, self.limits.message, reservation).await.map(Some);
        }
        // What was gathered holds its place already.
        if !whole || message.len() <= UNCOUNTED {
            return Ok(Some(message));
        }
        Ok(Some(Bytes::from_owner(Held { data: message, _reservation: reservation })))
    }

    /// Puts a message of many frames together in one buffer, which ends on an aligned address: raw
    /// contents are the last field of a request, so a single tensor is aligned for its dtype as well.
    async fn gather(
        &mut self,
        first: Bytes,
        length: usize,
        mut reservation: Reservation,
    ) -> Result<Bytes, Box<Status>> {
        let mut data: Vec<u8> = Vec::new();
        // Only address space: pages are taken as bytes come, so a large claim costs its sender's bytes.
        data.try_reserve_exact(length + ALIGN).map_err(|_| {
            Box::new(Status::resource_exhausted("the server has no memory for this message; retry later"))
        })?;
        let pad = (data.as_ptr() as usize + length).wrapping_neg() % ALIGN;
        data.resize(pad, 0);
        let end = pad + length;
        let mut frame = first;
        loop {
            self.rest = frame.split_off(frame.len().min(end - data.len()));
            reservation.grow(frame.len())?;
            data.extend_from_slice(&frame);
            if data.len() == end {
                break;
            }
            frame = in_time(next(&mut self.body)).await?.ok_or_else(|| {
                broken(&format!("it says {length} bytes and ends after {}", data.len() - pad))
            })?;
        }
        Ok(Bytes::from_owner(Held { data, _reservation: reservation }).slice(pad..))
    }
}

/// Unpacks a message; a large one on a thread that may take its time, so that no connection waits.
async fn unpack(
    packed: Bytes,
    encoding: Encoding,
    limit: usize,
    mut reservation: Reservation,
) -> Result<Bytes, Box<Status>> {
    let large = packed.len() > UNPACKED_HERE;
    let work = move || {
        let data = encoding.unpack(&packed, limit, &mut reservation)?;
        Ok(Bytes::from_owner(Held { data, _reservation: reservation }))
    };
    if !large {
        return work();
    }
    let lost = |_| Box::new(Status::internal("unpacking the message stopped; this is a bug, see the log"));
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

/// Data of a stream, if there is more.
type Data = Result<Option<Bytes>, Box<Status>>;

/// The next data of the stream.
async fn next(body: &mut Incoming) -> Data {
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Box::new(Status::cancelled(format!("the client went away: {error}"))))?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// The same, of a message that has begun, or of a call that has one: its sender has no reason to wait.
async fn in_time(coming: impl Future<Output = Data>) -> Data {
    let mut coming = pin!(coming);
    // Most often it is there, and then there is no need for a timer.
    if let Poll::Ready(data) = futures_util::poll!(&mut coming) {
        return data;
    }
    tokio::time::timeout(STALLED, coming).await.unwrap_or_else(|_| {
        let seconds = STALLED.as_secs();
        let why = format!("Deadline Exceeded: nothing of the message came for {seconds} seconds");
        Err(Box::new(Status::deadline_exceeded(why)))
    })
}

/// The message that these bytes are.
pub(crate) fn decode<Q: Message + Default>(data: Bytes) -> Result<Q, Box<Status>> {
    Q::decode(data).map_err(|error| {
        Box::new(Status::invalid_argument(format!("the request is not valid protobuf: {error}")))
    })
}

/// The instant at which the caller's deadline passes: `grpc-timeout`, digits and a unit.
pub(crate) fn deadline(headers: &HeaderMap) -> Result<Option<Instant>, Box<Status>> {
    let Some(value) = headers.get(&GRPC_TIMEOUT) else { return Ok(None) };
    let timeout = value.to_str().ok().and_then(parse_timeout).ok_or_else(|| {
        Box::new(Status::invalid_argument(format!(
            "grpc-timeout {value:?} is not valid: up to 8 digits and one of H, M, S, m, u, n are expected"
        )))
    })?;
    // Too far away to be an instant is as good as none.
    Ok(Instant::now().checked_add(timeout))
}

/// The answer to a call whose deadline passed. The first words are those that Triton's clients match on.
pub(crate) fn late(stage: &str) -> Box<Status> {
    Box::new(Status::deadline_exceeded(format!("Deadline Exceeded: {stage}")))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_waited_for_no_longer_than_a_minute() {
        let begun = tokio::time::Instant::now();
        let late = in_time(std::future::pending()).await.unwrap_err();
        assert_eq!((late.code(), begun.elapsed()), (tonic::Code::DeadlineExceeded, STALLED));
        let slow = async {
            tokio::time::sleep(STALLED - Duration::from_secs(1)).await;
            Ok(Some(Bytes::from_static(b"data")))
        };
        assert_eq!(in_time(slow).await.unwrap().as_deref(), Some(&b"data"[..]));
    }

    #[test]
    fn timeouts_of_every_unit_and_of_none() {
        assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "5", "5x", "-5S", "123456789S", "5é", "é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}
