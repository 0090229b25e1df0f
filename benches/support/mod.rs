//! What benchmarks of the whole server share.
//!
//! - `load`: prepared requests over one HTTP/2 connection, so many in flight
//! - `process`: servers that end with their handle, and what the system knows of them
//! - `report`: medians of paired ratios

#![allow(dead_code, reason = "each benchmark uses its part")]

pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod report;

use std::path::{Path, PathBuf};

/// What goes wrong here is told and ends the benchmark.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The model whose time is all the server's.
pub(crate) const IDENTITY: &str = "identity";

/// Writes that model into a repository; where its file is.
pub(crate) fn identity(repository: &Path) -> Result<PathBuf> {
    let version = repository.join(IDENTITY).join("1");
    std::fs::create_dir_all(&version)?;
    let model = version.join("model.pt");
    sconce_torch::define("def forward(self, x):\n    return x\n", &[], &model)?;
    Ok(model)
}

/// How many of something: as the environment says, or else `default`.
pub(crate) fn count(name: &str, default: usize) -> Result<usize> {
    let Some(text) = std::env::var_os(name) else { return Ok(default) };
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|count| *count > 0);
    number.ok_or_else(|| format!("{name} is {text:?}; a number from 1 is expected").into())
}
