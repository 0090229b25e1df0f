//! The wire contract: what `proto/` says, as Rust types. Generated, no logic.
//!
//! - [`inference`] is the Open Inference Protocol with Triton's extensions, and Triton's model config
//! - [`health`] is `grpc.health.v1`
//! - [`DESCRIPTORS`] is the same as a descriptor set, for gRPC reflection

/// Package `inference`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod inference {
    tonic::include_proto!("inference");
}

/// Package `grpc.health.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// All of `proto/` as a serialized `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
