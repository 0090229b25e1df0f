//! Compiles `proto/` with protox, so that no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", proto.display());

    let files = protox::compile(["grpc_service.proto", "health.proto"], [&proto])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"), files.encode_to_vec())?;

    tonic_prost_build::configure()
        // Contents of tensors and files stay slices of the buffer they were received in.
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .bytes(".inference.ModelInferResponse.raw_output_contents")
        .bytes(".inference.InferTensorContents.bytes_contents")
        .bytes(".inference.ModelRepositoryParameter.bytes_param")
        .compile_fds(files)?;
    Ok(())
}
