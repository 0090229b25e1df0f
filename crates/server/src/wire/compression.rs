//! gzip, deflate and zstd, each bounded while it unpacks: a small message that would become a huge
//! one is refused at the bound, not after it.

use std::io::{self, Read, Write};

use clap::ValueEnum;
use flate2::{
    Compression,
    read::{GzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use tonic::Status;

use super::{
    budget::Reservation,
    names::{GRPC_ACCEPT_ENCODING, GRPC_ENCODING},
};

/// Unpacked at a time, and charged to the budget at a time.
const STEP: usize = 64 * 1024;

/// A message encoding of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Gzip,
    /// zlib's format, which gRPC calls deflate.
    Deflate,
    Zstd,
}

/// With what answers are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ResponseCompression {
    /// As the client compressed its request.
    #[default]
    Mirror,
    /// Never.
    None,
    /// gzip, for clients that accept it.
    Gzip,
    /// deflate, for clients that accept it.
    Deflate,
    /// zstd, for clients that accept it.
    Zstd,
}

/// What we accept, as gRPC's header.
pub(crate) const ACCEPTED: &str = "identity,gzip,deflate,zstd";

impl Encoding {
    const ALL: [Self; 3] = [Self::Gzip, Self::Deflate, Self::Zstd];

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }

    pub(crate) fn header(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }

    /// The encoding of a request's messages.
    pub(crate) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, Box<Status>> {
        let Some(value) = headers.get(&GRPC_ENCODING) else { return Ok(None) };
        if value == "identity" {
            return Ok(None);
        }
        if let Some(encoding) = Self::ALL.into_iter().find(|encoding| value == encoding.name()) {
            return Ok(Some(encoding));
        }
        Err(Box::new(Status::unimplemented(format!(
            "messages compressed with {value:?} are not understood; {ACCEPTED} are"
        ))))
    }

    /// The encoding of the answer: the server's choice where the client accepts it.
    pub(crate) fn of_response(
        choice: ResponseCompression,
        request: Option<Self>,
        headers: &HeaderMap,
    ) -> Option<Self> {
        let encoding = match choice {
            ResponseCompression::None => return None,
            ResponseCompression::Mirror => request?,
            ResponseCompression::Gzip => Self::Gzip,
            ResponseCompression::Deflate => Self::Deflate,
            ResponseCompression::Zstd => Self::Zstd,
        };
        let accepted = headers.get(&GRPC_ACCEPT_ENCODING)?.to_str().ok()?;
        accepted.split(',').any(|name| name.trim() == encoding.name()).then_some(encoding)
    }

    /// Unpacks a message of at most `limit` bytes.
    pub(crate) fn unpack(
        self,
        packed: &[u8],
        limit: usize,
        reservation: &mut Reservation,
    ) -> Result<Vec<u8>, Box<Status>> {
        let broken = |error: io::Error| {
            Box::new(Status::invalid_argument(format!(
                "the message is not valid {}: {error}; send it whole and with the encoding that grpc-encoding names",
                self.name()
            )))
        };
        match self {
            Self::Gzip => read_bounded(GzDecoder::new(packed), limit, reservation, broken),
            Self::Deflate => read_bounded(ZlibDecoder::new(packed), limit, reservation, broken),
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::new(packed).map_err(broken)?;
                read_bounded(decoder, limit, reservation, broken)
            }
        }
    }

    /// Packs a message, fast rather than small: the network is near.
    pub(crate) fn pack(self, message: &[u8], packed: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(packed, Compression::fast());
                encoder.write_all(message)?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(packed, Compression::fast());
                encoder.write_all(message)?;
                encoder.finish()
            }
            Self::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(packed, 1)?;
                encoder.write_all(message)?;
                encoder.finish()
            }
        }
    }
}

fn read_bounded(
    mut reader: impl Read,
    limit: usize,
    reservation: &mut Reservation,
    broken: impl Fn(io::Error) -> Box<Status>,
) -> Result<Vec<u8>, Box<Status>> {
    let mut unpacked = Vec::new();
    loop {
        let at = unpacked.len();
        reservation.grow(STEP)?;
        unpacked.resize(at + STEP, 0);
        let read = reader.read(&mut unpacked[at..]).map_err(&broken)?;
        unpacked.truncate(at + read);
        if unpacked.len() > limit {
            return Err(super::budget::too_large("is larger than", limit));
        }
        if read == 0 {
            return Ok(unpacked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Budget;

    #[test]
    fn packed_and_unpacked_is_the_same_and_bombs_are_refused_at_the_bound() {
        let message = vec![7u8; 300_000];
        for encoding in Encoding::ALL {
            let packed = encoding.pack(&message, Vec::new()).unwrap();
            assert!(packed.len() < message.len() / 10);
            let mut reservation = Budget::new(64 << 20, "tests").reserve();
            assert_eq!(encoding.unpack(&packed, 1 << 20, &mut reservation).unwrap(), message);
            let refused = encoding.unpack(&packed, 100_000, &mut reservation).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
            let mut small = Budget::new(128 * 1024, "tests").reserve();
            let refused = encoding.unpack(&packed, 1 << 20, &mut small).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
            let refused =
                encoding.unpack(&packed[..packed.len() / 2], 1 << 20, &mut reservation).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn answers_are_compressed_for_those_who_accept_it() {
        let mut headers = HeaderMap::new();
        let choose = |choice, request, headers: &HeaderMap| Encoding::of_response(choice, request, headers);
        assert_eq!(choose(ResponseCompression::Gzip, None, &headers), None);
        headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity, gzip"));
        assert_eq!(choose(ResponseCompression::Gzip, None, &headers), Some(Encoding::Gzip));
        assert_eq!(choose(ResponseCompression::Zstd, None, &headers), None);
        assert_eq!(choose(ResponseCompression::Mirror, None, &headers), None);
        assert_eq!(choose(ResponseCompression::Mirror, Some(Encoding::Gzip), &headers), Some(Encoding::Gzip));
        assert_eq!(choose(ResponseCompression::None, Some(Encoding::Gzip), &headers), None);
    }
}
