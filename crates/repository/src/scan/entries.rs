//! What is in a directory, and the sentences for what does not belong there.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use super::Problem;
use crate::{Version, escape::shown};

/// What `mkfs` puts into the root of a volume; unreadable, and nobody's model.
const LOST_AND_FOUND: &str = "lost+found";

/// So many problems of one directory are told; who has more has one problem.
const MAX_PROBLEMS: usize = 20;

/// One entry of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) kind: Kind,
}

/// What a directory says of an entry without looking at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    Link,
    Other,
}

impl Entry {
    /// Names that people and programs give to what is not to be seen: `..data`, `.3.partial`, `.git`.
    pub(super) fn is_hidden(&self) -> bool {
        self.name.as_encoded_bytes().starts_with(b".") || self.name == LOST_AND_FOUND
    }
}

/// What is in a directory, sorted, so that two looks at the same disk give the same snapshot.
pub(super) fn list(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(file_type) = unless_gone(entry.file_type())? {
            let kind = match file_type {
                kind if kind.is_dir() => Kind::Directory,
                kind if kind.is_symlink() => Kind::Link,
                _ => Kind::Other,
            };
            entries.push(Entry { name: entry.file_name(), kind });
        }
    }
    entries.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    Ok(entries)
}

/// Where a directory does not say what an entry is, the entry is looked at, and may have gone. One that
/// only cannot be seen at the moment must not look as if it had been removed.
fn unless_gone<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// The problems of one directory, as many of them as can be read.
pub(super) fn bounded(dir: &Path, mut problems: Vec<Problem>) -> Vec<Problem> {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    if more > 0 {
        problems.truncate(MAX_PROBLEMS);
        let message = format!("{more} more of its entries are ignored for reasons such as these");
        problems.push(Problem::new(dir, message));
    }
    problems
}

/// The problem of an entry that cannot be looked at.
pub(super) fn not_seen(path: &Path, err: &io::Error) -> Problem {
    Problem::new(path, format!("ignored, it cannot be looked at: {err}"))
}

/// Whether there is certainly nothing, rather than something that cannot be seen at the moment.
pub(super) fn is_nothing(err: &io::Error) -> bool {
    err.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
        || matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Why a directory whose name starts with a digit is no version.
pub(super) fn no_version(name: &str) -> String {
    let rest = name.trim_start_matches('0');
    if !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return "ignored: the name of a version is a number and nothing else; rename it when it is complete"
            .to_owned();
    }
    if rest.is_empty() {
        return "ignored: there is no version 0; versions are numbered from 1".to_owned();
    }
    if Version::from_dir_name(rest).is_none() {
        return format!("ignored: the number is too large for a version; the largest is {}", u64::MAX);
    }
    format!("ignored: the name of a version has no leading zero; rename it to {rest}")
}

/// Why a directory in a root is no model, with the usual reason if it shows.
pub(super) fn no_model(dir: &Path, entries: &[Entry]) -> Problem {
    let is_model = |name: &&OsStr| Path::new(name).extension().is_some_and(|ending| ending == "pt");
    let place = || shown(&dir.join("1/model.pt"));
    let message = match entries.iter().map(|entry| entry.name.as_os_str()).find(is_model) {
        Some(file) => {
            format!("ignored: it holds no version; move {} to {}", shown(&PathBuf::from(file)), place())
        }
        None => {
            format!("ignored: it holds neither a version nor a configuration; a model lies in {}", place())
        }
    };
    Problem::new(dir, message)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn only_what_has_gone_is_left_out_of_a_directory() {
        assert_eq!(unless_gone(Ok(1)).unwrap(), Some(1));
        assert_eq!(unless_gone::<()>(Err(Errno::NOENT.into())).unwrap(), None);
        for err in [Errno::IO, Errno::STALE, Errno::ACCESS] {
            assert!(unless_gone::<()>(Err(err.into())).is_err(), "{err}");
        }
    }
}
