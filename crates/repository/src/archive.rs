//! Is this file a complete TorchScript archive?
//!
//! Such an archive is a zip, and a zip's list of contents is at its end: a copy that was cut short, or
//! is still growing, has none. [`check`] asks only that list; [`verify`] also reads what it lists.

use std::{
    fs::{self, File, Metadata},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use zip::ZipArchive;

use crate::{escape::shown, regular};

mod contents;

const SAVE: &str = "save it with torch.jit.save(torch.jit.script(model), path)";

/// Why a file is no complete TorchScript archive; each is one sentence on one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// There is no file.
    #[error("{} does not exist{}", shown(path), instead.as_deref().map(advice).unwrap_or_default())]
    Missing {
        /// Where the model was expected.
        path: PathBuf,
        /// The only `.pt` file that lies there instead.
        instead: Option<String>,
    },
    /// The file could not be read.
    #[error("cannot read {}: {reason}", shown(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// Something else than a file.
    #[error("{} is {found} but must be a file, a TorchScript archive: {SAVE}", shown(path))]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The file has no bytes, perhaps not yet.
    #[error("{} is empty: copy the whole TorchScript archive there, or {SAVE}", shown(path))]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file starts as a zip, and the end is missing, perhaps only until a copy is complete.
    #[error(
        "{} is incomplete: it starts as a zip archive, but the list of contents that must be at its \
         end is not there after {size} bytes: wait until the copy is complete, or copy it again",
        shown(path)
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The file is no zip.
    #[error("{} is {found}, not a TorchScript archive, which is a zip: {advice}", shown(path))]
    NotAZip {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The bytes of an entry are not those that were written, perhaps only until a copy is complete.
    #[error(
        "{} is corrupt: its entry {entry} does not have the checksum that the list of contents gives: \
         copy it again",
        shown(path)
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The entry, escaped and bounded.
        entry: String,
    },
    /// An entry that cannot be what it says.
    #[error(
        "{} is no model: its entry {entry} says that it has {size} bytes, which no model has in a file of \
         {file_size}: {SAVE}",
        shown(path)
    )]
    Bomb {
        /// The file.
        path: PathBuf,
        /// The entry, escaped and bounded.
        entry: String,
        /// The size that the list of contents gives.
        size: u64,
        /// The size of the whole file.
        file_size: u64,
    },
    /// Entries that share their bytes.
    #[error(
        "{} is no model: with its entry {entry} the entries together are larger than the file of {file_size} \
         bytes, so that some of them overlap: {SAVE}",
        shown(path)
    )]
    Overlapping {
        /// The file.
        path: PathBuf,
        /// The entry, escaped and bounded.
        entry: String,
        /// The size of the whole file.
        file_size: u64,
    },
    /// A zip of `torch.save`: tensors without code.
    #[error(
        "{} was written by torch.save and holds weights or a pickled object (data.pkl) but no code, \
         and cannot be run without Python: load it there and {SAVE}",
        shown(path)
    )]
    Weights {
        /// The file.
        path: PathBuf,
    },
    /// A zip of AOTInductor.
    #[error("{} is an AOTInductor package (.pt2), which is not served yet: for now, {SAVE}", shown(path))]
    Aotinductor {
        /// The file.
        path: PathBuf,
    },
    /// A zip of `torch.export.save`.
    #[error(
        "{} is a program of torch.export (.pt2), which is not TorchScript and not served: {SAVE}",
        shown(path)
    )]
    Exported {
        /// The file.
        path: PathBuf,
    },
    /// Some other zip.
    #[error("{} is a zip but not a TorchScript archive, as it has no {missing}: {SAVE}", shown(path))]
    NotTorchScript {
        /// The file.
        path: PathBuf,
        /// The first entry that a TorchScript archive has and this one has not.
        missing: String,
    },
}

impl ArchiveError {
    /// Whether a copy that is still going on explains the error, so that waiting may help.
    pub fn may_be_growing(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::Empty { .. } | Self::Truncated { .. } | Self::Corrupt { .. }
        )
    }
}

fn advice(instead: &str) -> String {
    let instead = shown(Path::new(instead));
    format!(", but {instead} does: rename that file, or write `model_file: {instead}` in config.yaml")
}

fn unreadable(path: &Path, err: &io::Error) -> ArchiveError {
    ArchiveError::Unreadable { path: path.to_owned(), reason: err.to_string() }
}

/// Checks that `path` is a file with bytes in it, without opening it: opening a named pipe would wait
/// for a writer.
pub(crate) fn check_file(path: &Path) -> Result<Metadata, ArchiveError> {
    let metadata = match path.metadata() {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(missing(path)),
        metadata => metadata.map_err(|err| unreadable(path, &err))?,
    };
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a directory" } else { "a special file" };
        return Err(ArchiveError::NotAFile { path: path.to_owned(), found });
    }
    if metadata.len() == 0 {
        return Err(ArchiveError::Empty { path: path.to_owned() });
    }
    Ok(metadata)
}

/// Checks that `path` is a complete TorchScript archive. Only metadata is read, not the tensors.
pub fn check(path: &Path) -> Result<(), ArchiveError> {
    open(path).map(drop)
}

/// Checks that `path` is a complete TorchScript archive, and reads it once to compare every entry with
/// its checksum. An archive that is overwritten in place has old and new bytes for a while, and may look
/// complete.
pub fn verify(path: &Path) -> Result<(), ArchiveError> {
    let (mut zip, size) = open(path)?;
    contents::verify(path, &mut zip, size)
}

/// Opens a complete archive, and gives the size of the file.
fn open(path: &Path) -> Result<(ZipArchive<BufReader<File>>, u64), ArchiveError> {
    let unreadable = |err: &io::Error| unreadable(path, err);
    let metadata = check_file(path)?;
    let mut file = regular::open(path).map_err(|err| unreadable(&err))?;
    let start = start(&mut file).map_err(|err| unreadable(&err))?;
    if start.is_empty() {
        return Err(ArchiveError::Empty { path: path.to_owned() });
    }
    // A cut within the first bytes is a cut all the same.
    if !start.starts_with(ZIP_START) && !ZIP_START.starts_with(&start) {
        let (found, advice) = guess(&start);
        return Err(ArchiveError::NotAZip { path: path.to_owned(), found, advice });
    }
    let truncated = || ArchiveError::Truncated { path: path.to_owned(), size: metadata.len() };
    if !has_end(&mut file, metadata.len()).map_err(|err| unreadable(&err))? {
        return Err(truncated());
    }
    match ZipArchive::new(BufReader::new(file)) {
        Ok(zip) => {
            // A name that cannot be decoded is none of those that are looked for.
            let names: Vec<_> = zip.file_names().filter_map(Result::ok).collect();
            check_contents(path, &names.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
            drop(names);
            Ok((zip, metadata.len()))
        }
        Err(zip::result::ZipError::Io(err)) if err.kind() != io::ErrorKind::UnexpectedEof => {
            Err(unreadable(&err))
        }
        Err(_) => Err(truncated()),
    }
}

const ZIP_START: &[u8] = b"PK\x03\x04";
const ZIP_END: &[u8] = b"PK\x05\x06";

/// The length of a zip's end record, without the comment that may follow it.
const END_RECORD: usize = 22;

/// The longest comment.
const MAX_COMMENT: usize = 0xffff;

/// Whether an end record stands where it must, with a comment that reaches exactly to the end.
///
/// Looked for here because the zip reader would search the whole of a large file that has none, and
/// could be content with that of an archive inside the archive.
fn has_end(file: &mut File, size: u64) -> io::Result<bool> {
    let length = size.min((END_RECORD + MAX_COMMENT) as u64);
    file.seek(SeekFrom::Start(size - length))?;
    let mut tail = Vec::new();
    file.take(length).read_to_end(&mut tail)?;
    file.seek(SeekFrom::Start(0))?;
    let reaches_end = |record: &[u8]| {
        record.starts_with(ZIP_END)
            && record.len() == END_RECORD + usize::from(u16::from_le_bytes([record[20], record[21]]))
    };
    let last = tail.len().checked_sub(END_RECORD);
    Ok(last.is_some_and(|last| (0..=last).rev().any(|at| reaches_end(&tail[at..]))))
}

fn start(file: &mut File) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    file.take(512).read_to_end(&mut start)?;
    Ok(start)
}

/// What a file looks like that is no zip, and what to do about it.
fn guess(start: &[u8]) -> (&'static str, &'static str) {
    let is_text = start.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..));
    if start.starts_with(b"version https://git-lfs") {
        ("a pointer of Git LFS", "run `git lfs pull` in the repository that it came from")
    } else if start.starts_with(b"\x80\x02") {
        ("a Python pickle, as an old torch.save writes", "load it in Python and save it with torch.jit.save")
    } else if start.starts_with(b"\x1f\x8b") {
        ("compressed with gzip", "decompress it")
    } else if start.starts_with(b"\x7fELF") {
        ("a shared library or program", SAVE)
    } else if start.iter().all(|byte| *byte == 0) {
        ("filled with zeros", "copy it again")
    } else if is_text {
        ("a text file", SAVE)
    } else {
        ("a file of an unknown format", SAVE)
    }
}

/// Checks the list of contents. All entries lie under one directory, named after the file that was
/// saved; as libtorch does, it is taken from the first entry.
fn check_contents(path: &Path, names: &[&str]) -> Result<(), ArchiveError> {
    let prefix = names.first().and_then(|name| name.split_once('/')).map_or("", |(prefix, _)| prefix);
    let inside: Vec<&str> =
        names.iter().filter_map(|name| name.strip_prefix(prefix)?.strip_prefix('/')).collect();
    let has = |name: &str| inside.contains(&name);
    let has_under = |dir: &str| inside.iter().any(|name| name.starts_with(dir));
    let path = path.to_owned();

    // Some of these are written without the directory around them.
    if names.iter().any(|name| name.contains("data/aotinductor/")) {
        return Err(ArchiveError::Aotinductor { path });
    }
    let exported = ["archive_format", "serialized_exported_program.json"];
    if exported.iter().any(|name| has(name) || names.contains(name)) {
        return Err(ArchiveError::Exported { path });
    }
    if has("data.pkl") && !has_under("code/") {
        return Err(ArchiveError::Weights { path });
    }
    let missing = |name: &str| {
        Err(ArchiveError::NotTorchScript { path: path.clone(), missing: format!("<name>/{name}") })
    };
    for name in ["data.pkl", "constants.pkl"] {
        if !has(name) {
            return missing(name);
        }
    }
    if !has("version") && !has(".data/version") {
        return missing("version");
    }
    if !has_under("code/") {
        return missing("code/");
    }
    Ok(())
}

/// The error for a file that is not there; a single other model beside it is what was meant.
fn missing(path: &Path) -> ArchiveError {
    let entries = path.parent().and_then(|dir| fs::read_dir(dir).ok());
    let paths = entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut models = paths.filter(|path| path.extension().is_some_and(|ending| ending == "pt"));
    let instead = match (models.next(), models.next()) {
        (Some(only), None) => only.file_name().and_then(|name| name.to_str()).map(str::to_owned),
        _ => None,
    };
    ArchiveError::Missing { path: path.to_owned(), instead }
}

#[cfg(test)]
mod tests;
