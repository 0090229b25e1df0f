//! Compiles Triton's configuration schema, against which `config.pbtxt` files are parsed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", proto.join("model_config.proto").display());

    let files = protox::compile(["model_config.proto"], [&proto])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("model_config.bin"), files.encode_to_vec())?;
    Ok(())
}
