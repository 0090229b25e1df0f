//! gRPC on the wire: messages in, messages and their trailers out.
//!
//! Our own because three promises need it: malformed protobuf and oversized messages get the right
//! codes, every byte that is received or decompressed counts against one budget *before* it is kept,
//! and tensors are laid out so that libtorch can use them where they were received.
//!
//! - `budget`: how many bytes may be in memory
//! - `complexity`: how much a message would become when it is decoded
//! - `compression`: gzip, deflate, zstd, bounded
//! - `names`: gRPC's headers
//! - `receive`: messages out of an HTTP/2 stream
//! - `respond`: messages or a status into one

mod budget;
mod complexity;
mod compression;
mod names;
mod receive;
mod respond;

pub(crate) use budget::Budget;
pub(crate) use complexity::{check_control_request, check_infer_request, check_settings_request};
pub(crate) use compression::{Encoding, ResponseCompression};
pub(crate) use names::GRPC_STATUS;
pub(crate) use receive::{Limits, Messages, deadline, decode, late};
pub(crate) use respond::{Body, encode, message, status, stream};
