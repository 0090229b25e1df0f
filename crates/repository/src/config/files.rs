//! Files that a configuration names, and reading them within bounds.

use std::{
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use super::{Labels, error::Fault};
use crate::escape::{one_line, shown};

/// A configuration is written by hand; what is larger than this is some other file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Room for a million classes with long names.
const MAX_LABELS_BYTES: u64 = 64 << 20;

/// Reads a configuration file, without the byte order mark that some editors put first.
pub(super) fn read_config(path: &Path) -> Result<String, String> {
    let text = read(path, MAX_CONFIG_BYTES)?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Reads the labels of an output; `file` is relative to the model's directory and stays inside it.
pub(super) fn read_labels(dir: &Path, file: &str, key: &str) -> Result<Labels, Fault> {
    let fault = |message: String| Fault::at(key, message);
    let inside =
        Path::new(file).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if file.is_empty() || !inside {
        return Err(fault(format!(
            "`{}` must be a file in the model's directory, written relative to it and without `..`",
            one_line(file)
        )));
    }
    let path = dir.join(file);
    let text = read(&path, MAX_LABELS_BYTES).map_err(|reason| {
        fault(format!("cannot read the labels in {}: {reason}; put one label per line there", shown(&path)))
    })?;
    Ok(Labels { file: file.to_owned(), lines: text.lines().map(str::to_owned).collect() })
}

/// Checks the name of the model's file: it lies in every version's directory under the same plain name.
pub(super) fn check_model_file(name: &str, key: &str) -> Result<(), Fault> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    if plain {
        return Ok(());
    }
    Err(Fault::at(
        key,
        format!(
            "`{}` is not a plain file name: write one such as `model.pt`, without a directory",
            one_line(name)
        ),
    ))
}

/// Absolute paths of the libraries; relative ones start at the model's directory.
pub(super) fn op_libraries(dir: &Path, files: &[String], key: &str) -> Result<Vec<PathBuf>, Fault> {
    let resolve = |(index, file): (usize, &String)| {
        let key = format!("{key}[{index}]");
        if file.is_empty() || file.contains('\0') {
            return Err(Fault::at(key, "the name of a library is expected, such as `libcustom_ops.so`"));
        }
        // A bare name must not be looked up along the library path of the process.
        std::path::absolute(dir.join(file))
            .map_err(|err| Fault::at(key, format!("has no absolute path: {err}")))
    };
    files.iter().enumerate().map(resolve).collect()
}

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<String, String> {
    let metadata = path.metadata().map_err(|err| reason(&err))?;
    // Opening a named pipe would wait for somebody to write into it.
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|err| reason(&err))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|err| reason(&err))?;
    if bytes.len() as u64 > limit {
        return Err(format!("it is larger than {limit} bytes"));
    }
    String::from_utf8(bytes).map_err(|err| {
        let line = err.as_bytes()[..err.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        format!("it is not UTF-8 text (line {line})")
    })
}

fn reason(err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => err.to_string(),
    }
}
