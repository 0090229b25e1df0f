//! A version as it lies on disk, and whether it is complete.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::{
    archive,
    digest::{Digest, Digests},
    escape::shown,
    manifest::{MANIFEST, Manifest},
    stamp::Stamp,
};

/// A version's directory and the files in it that make the version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionOnDisk {
    /// Its directory.
    pub dir: PathBuf,
    /// The model's file, then `manifest.yaml` if there is one, then what it lists.
    pub files: Vec<FileOnDisk>,
    /// Why it must not be served though it is there; one sentence.
    pub refused: Option<String>,
}

/// A file of a version, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOnDisk {
    /// Its path below the version's directory.
    pub name: String,
    /// What the file system told; `None` when it was absent or could not be looked at.
    pub stamp: Option<Stamp>,
}

/// Why a version must not be loaded, at least not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// One sentence.
    pub reason: String,
    /// Whether a copy that is still going on explains it, so that waiting may help.
    pub waiting: bool,
}

impl fmt::Display for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Unverified {}

impl VersionOnDisk {
    /// The file that is loaded.
    pub fn model_file(&self) -> PathBuf {
        self.files.first().map_or_else(|| self.dir.clone(), |file| self.dir.join(&file.name))
    }

    /// The size of all its files in bytes, as far as they are there.
    pub fn size(&self) -> u64 {
        self.files.iter().filter_map(|file| file.stamp).map(|stamp| stamp.size()).sum()
    }

    /// Whether nothing has changed since it was looked at.
    pub fn is_as_seen(&self) -> bool {
        let same = |file: &FileOnDisk| Stamp::of(&self.dir.join(&file.name)).ok() == file.stamp;
        self.files.iter().all(same) && (self.has_manifest() || !is_there(&self.dir.join(MANIFEST)))
    }

    fn has_manifest(&self) -> bool {
        self.files.iter().skip(1).any(|file| file.name == MANIFEST)
    }
}

/// A link that leads nowhere is there too: somebody wanted a manifest.
pub(crate) fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(err) => !matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

/// Reads a version and gives its identity: the digest of its model's file or, when a manifest lists
/// more than that file, of the list of all their digests.
///
/// With a manifest, each file that it lists must have exactly the digest that stands there.
///
/// # Errors
/// When it is not complete, not what the manifest says, or changed since it was looked at.
pub fn verify(version: &VersionOnDisk, digests: &Digests) -> Result<Digest, Unverified> {
    if let Some(reason) = &version.refused {
        return Err(Unverified { reason: reason.clone(), waiting: false });
    }
    let found = if version.has_manifest() {
        by_manifest(version, digests)
    } else {
        let path = version.model_file();
        match archive::check_file(&path) {
            Ok(_) => digest(version, &path, digests),
            Err(err) => Err(Unverified { waiting: err.may_be_growing(), reason: err.to_string() }),
        }
    };
    // What has changed meanwhile explains whatever was found.
    if !version.is_as_seen() {
        let reason = match found {
            Ok(_) => format!("{} changed while it was verified", shown(&version.dir)),
            Err(unverified) => unverified.reason,
        };
        return Err(Unverified { reason, waiting: true });
    }
    found
}

fn by_manifest(version: &VersionOnDisk, digests: &Digests) -> Result<Digest, Unverified> {
    let waiting = |reason: String| Unverified { reason, waiting: true };
    let model_file = version.files.first().map_or("", |file| &file.name);
    let manifest = Manifest::read(&version.dir.join(MANIFEST), model_file).map_err(waiting)?;
    for (name, expected) in manifest.files() {
        let path = version.dir.join(name);
        if !is_there(&path) {
            return Err(waiting(format!(
                "{} does not exist, but the manifest lists it: copy it there",
                shown(&path)
            )));
        }
        let found = digest(version, &path, digests)?;
        if found != *expected {
            return Err(waiting(format!(
                "{} has the SHA-256 {found}, but the manifest says {expected}: wait until the copy is \
                 complete, or copy it again",
                shown(&path)
            )));
        }
    }
    Ok(manifest.identity())
}

fn digest(version: &VersionOnDisk, path: &Path, digests: &Digests) -> Result<Digest, Unverified> {
    let name = path.strip_prefix(&version.dir).unwrap_or(path);
    let (stamp, digest) = digests.of(path).map_err(|reason| Unverified { reason, waiting: false })?;
    let seen = version.files.iter().find(|file| Path::new(&file.name) == name).and_then(|file| file.stamp);
    if seen == Some(stamp) {
        return Ok(digest);
    }
    Err(Unverified { reason: format!("{} changed since it was looked at", shown(path)), waiting: true })
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
