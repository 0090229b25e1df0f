//! Files that a configuration names, and reading them within bounds.

use std::{
    cell::RefCell,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use super::{Labels, error::Fault};
use crate::{
    escape::{one_line, shown},
    regular,
};

/// A configuration is written by hand; what is larger than this is some other file.
pub(super) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What every sequence begins with is held in memory.
pub(super) const MAX_INITIAL_BYTES: u64 = 64 << 20;

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
    let path = inside(dir, file, "the model's directory").map_err(fault)?;
    let text = read(&path, MAX_LABELS_BYTES).map_err(|reason| {
        fault(format!("cannot read the labels in {}: {reason}; put one label per line there", shown(&path)))
    })?;
    Ok(Labels { file: file.to_owned(), lines: text.lines().map(str::to_owned).collect() })
}

/// The path and the size of a file with data for warming up, which lies in the model's directory `warmup`.
pub(super) fn warmup_data(dir: &Path, file: &str, key: &str) -> Result<(PathBuf, u64), Fault> {
    let fault = |message: String| Fault::at(key, message);
    let path = inside(&dir.join("warmup"), file, "the model's directory `warmup`").map_err(fault)?;
    let size = size(&path).map_err(|reason| {
        fault(format!(
            "cannot read the data in {}: {reason}; put the bytes of the tensor there",
            shown(&path)
        ))
    })?;
    Ok((path, size))
}

/// Reads what a sequence begins with; the file lies in the model's directory `initial_state`.
pub(super) fn read_initial_state(dir: &Path, file: &str, key: &str) -> Result<Vec<u8>, Fault> {
    let fault = |message: String| Fault::at(key, message);
    let path =
        inside(&dir.join("initial_state"), file, "the model's directory `initial_state`").map_err(fault)?;
    let bytes = read_bytes(&path, MAX_INITIAL_BYTES);
    record(&path, bytes.is_err());
    bytes.map_err(|reason| {
        fault(format!(
            "cannot read the state in {}: {reason}; put the bytes of one row of the tensor there",
            shown(&path)
        ))
    })
}

/// The path of a file that must not lead out of a directory.
fn inside(dir: &Path, file: &str, place: &str) -> Result<PathBuf, String> {
    let mut parts = Path::new(file).components();
    let inside = parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if file.is_empty() || file.contains('\0') || !inside {
        let file = one_line(file);
        return Err(format!("`{file}` must be a file in {place}, written relative to it and without `..`"));
    }
    Ok(dir.join(file))
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

/// The files that were read for a configuration.
#[derive(Debug, Default)]
pub(crate) struct FilesRead {
    pub(crate) paths: Vec<PathBuf>,
    /// Whether one of them could not be read, so that reading again may give something else.
    pub(crate) failed: bool,
}

impl FilesRead {
    /// Those below a directory, by their names there.
    pub(crate) fn below<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = &'a str> {
        self.paths.iter().filter_map(move |path| path.strip_prefix(dir).ok()?.to_str())
    }
}

thread_local! {
    static RECORD: RefCell<Option<FilesRead>> = const { RefCell::new(None) };
}

/// Runs `work` and tells which files it read, through whatever it called.
pub(crate) fn recording<T>(work: impl FnOnce() -> T) -> (T, FilesRead) {
    RECORD.replace(Some(FilesRead::default()));
    let result = work();
    (result, RECORD.take().unwrap_or_default())
}

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<String, String> {
    let text = read_now(path, limit);
    record(path, text.is_err());
    text
}

fn record(path: &Path, failed: bool) {
    RECORD.with_borrow_mut(|record| {
        if let Some(record) = record {
            record.paths.push(path.to_owned());
            record.failed |= failed;
        }
    });
}

fn read_now(path: &Path, limit: u64) -> Result<String, String> {
    String::from_utf8(read_bytes(path, limit)?).map_err(|err| {
        let line = err.as_bytes()[..err.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        format!("it is not UTF-8 text (line {line})")
    })
}

fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    file_size(path)?;
    let mut bytes = Vec::new();
    let file = regular::open(path).map_err(|err| reason(&err))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|err| reason(&err))?;
    if bytes.len() as u64 > limit {
        return Err(format!("it is larger than {limit} bytes"));
    }
    Ok(bytes)
}

/// The size of what is a file, on which a configuration depends as on what it reads.
pub(super) fn size(path: &Path) -> Result<u64, String> {
    let size = file_size(path);
    record(path, size.is_err());
    size
}

fn file_size(path: &Path) -> Result<u64, String> {
    let metadata = path.metadata().map_err(|err| reason(&err))?;
    // Opening a named pipe would wait for somebody to write into it.
    if metadata.is_file() { Ok(metadata.len()) } else { Err("it is not a file".to_owned()) }
}

/// What the operating system said.
pub(super) fn reason(err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => err.to_string(),
    }
}
