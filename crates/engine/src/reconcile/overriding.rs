//! What comes with an order instead of what the directory says: a configuration, and files, which are
//! written to a directory of their own and never into a repository.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use sconce_repository::{ModelOnDisk, Version};
use tempfile::TempDir;
use tracing::{info, warn};

use super::{
    machine::not_found,
    order::{Override, Refused},
};
use crate::text::quote;

/// The longest path of a file that comes with an order.
const MAX_PATH: usize = 1024;

/// The directories of files are named so, and nothing else is.
const PREFIX: &str = "sconce-files-";

/// Makes overrides, and keeps what came with them in one directory, so that all of it can be removed.
#[derive(Debug)]
pub struct Overrides {
    roots: Vec<PathBuf>,
    confine_symlinks: bool,
    /// Where those go that still make one.
    place: PathBuf,
    files: Mutex<Files>,
}

/// Where files go.
#[derive(Debug, Default)]
enum Files {
    /// Nowhere yet.
    #[default]
    None,
    Here(Owned),
    /// Nowhere any more: what is still being written must not outlive the server.
    Removed,
}

/// A directory of this process, for as long as it runs: who finds it unlocked may remove it.
#[derive(Debug)]
struct Owned {
    /// Goes before its lock.
    dir: TempDir,
    /// Where files cannot be locked, nobody sweeps either.
    _lock: Option<File>,
}

impl Overrides {
    /// For the models of these repositories; files go to the system's directory for temporary files. What
    /// servers that were killed have left there is removed.
    pub fn new(roots: Vec<PathBuf>, confine_symlinks: bool) -> Self {
        Self::in_place(roots, confine_symlinks, std::env::temp_dir())
    }

    fn in_place(roots: Vec<PathBuf>, confine_symlinks: bool, place: PathBuf) -> Self {
        sweep(&place);
        Self { roots, confine_symlinks, place, files: Mutex::default() }
    }

    /// Model `name` by this configuration, Triton's in JSON. With files, each named `VERSION/PATH`, it
    /// has these and no others; without, it has those of its directory. Reads and writes: this blocks.
    ///
    /// # Errors
    /// What is wrong with the configuration or a file's name, or that they cannot be written; nothing
    /// is left of them then.
    pub fn prepare(
        &self,
        name: &str,
        config: Option<&str>,
        files: &[(String, Bytes)],
    ) -> Result<Override, Refused> {
        let Some(config) = config else {
            return Err(Refused::Failed(format!(
                "failed to load '{}': files come only with a parameter 'config', the configuration that they are served by",
                quote(name)
            )));
        };
        let (root, dir, directory) = if files.is_empty() {
            let (root, dir) = self.find(name)?;
            (root, dir, None)
        } else {
            let directory = self.write(name, files)?;
            let root = directory.path().to_owned();
            (root.clone(), root.join(name), Some(Arc::new(directory)))
        };
        let failed =
            |why: &dyn std::fmt::Display| Refused::Failed(format!("failed to load '{}': {why}", quote(name)));
        let confine = self.confine_symlinks && directory.is_none();
        let disk =
            ModelOnDisk::with_json(&root, &dir, name, config, confine).map_err(|error| failed(&error))?;
        Ok(Override { disk: Arc::new(disk), directory })
    }

    /// Removes all files that came with orders, when nothing is served from them any more. No others are
    /// taken after that.
    pub fn remove(&self) {
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = Files::Removed;
    }

    /// The repository and the directory of a model.
    fn find(&self, name: &str) -> Result<(PathBuf, PathBuf), Refused> {
        let mut found = self.roots.iter().map(|root| (root, root.join(name))).filter(|(_, dir)| dir.is_dir());
        let (root, dir) = found.next().ok_or_else(|| not_found(name))?;
        let same = |other: &Path| {
            other.canonicalize().is_ok_and(|other| dir.canonicalize().is_ok_and(|dir| dir == other))
        };
        if let Some((_, other)) = found.find(|(_, other)| !same(other)) {
            return Err(Refused::Failed(format!(
                "failed to load '{}': it is in {} and in {}; a model must be in one repository",
                quote(name),
                dir.display(),
                other.display()
            )));
        }
        Ok((root.clone(), dir))
    }

    /// Writes the files as a repository of one model.
    fn write(&self, name: &str, files: &[(String, Bytes)]) -> Result<TempDir, Refused> {
        let mut paths = Vec::with_capacity(files.len());
        for (file, data) in files {
            paths.push((path_of(file)?, data));
        }
        let unwritten = |what: &str, error: &io::Error| unwritten(name, what, &self.place, error);
        let directory = self.directory().map_err(|error| unwritten("the files", &error))?;
        let Some(directory) = directory else {
            return Err(Refused::NotNow("the server is shutting down".to_owned()));
        };
        for (path, data) in paths {
            write(directory.path(), &Path::new(name).join(&path), data).map_err(|error| {
                let path = path.display().to_string();
                unwritten(&format!("file '{}'", quote(&path)), &error)
            })?;
        }
        Ok(directory)
    }

    /// A new directory, that goes with its handle and with all others; none after they were removed.
    fn directory(&self) -> io::Result<Option<TempDir>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let within = match &*files {
            Files::Removed => return Ok(None),
            // Who cleans the place up may have taken the directory too.
            Files::Here(owned) if owned.dir.path().is_dir() => TempDir::new_in(owned.dir.path()),
            Files::Here(_) | Files::None => {
                let owned = Owned::new(&self.place)?;
                let within = TempDir::new_in(owned.dir.path());
                *files = Files::Here(owned);
                within
            }
        };
        within.map(Some)
    }
}

impl Owned {
    fn new(place: &Path) -> io::Result<Self> {
        loop {
            let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)?;
            // Another server may have found it before it was locked, and be about to remove it.
            let lock = lock(dir.path());
            if !matches!(lock, Ok(None)) && dir.path().is_dir() {
                return Ok(Self { dir, _lock: lock.ok().flatten() });
            }
        }
    }
}

/// Locks a directory of files, unless another process has it; none if it has gone. The system lets go of
/// the lock when the process ends, however it does.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = match File::open(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes what servers of this user have left that were killed.
fn sweep(place: &Path) {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())) {
        let is_ours = |metadata: fs::Metadata| {
            metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw()
        };
        // Of the entry itself: somebody else may have laid a link there.
        if !entry.metadata().is_ok_and(is_ours) {
            continue;
        }
        let path = entry.path();
        let removed = lock(&path).and_then(|lock| match lock {
            Some(_lock) => fs::remove_dir_all(&path).map(|()| true),
            None => Ok(false),
        });
        match removed {
            Ok(true) => info!("removed {}, which a server that was killed has left", path.display()),
            Ok(false) => {}
            Err(error) => {
                warn!(
                    "{} was left by a server that was killed and cannot be removed: {error}",
                    path.display()
                );
            }
        }
    }
}

/// Where a file goes below the model's directory: never out of it.
fn path_of(file: &str) -> Result<PathBuf, Refused> {
    let wrong = || {
        Refused::Failed(format!(
            "parameter 'file:{}' must be file:<version>/<path>: a positive number, and a relative path of at most \
             {MAX_PATH} bytes without empty parts, '.' and '..'",
            quote(file)
        ))
    };
    let (version, path) = file.split_once('/').ok_or_else(wrong)?;
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    let is_version = Version::from_dir_name(version).is_some();
    if !is_version || path.len() > MAX_PATH || !path.split('/').all(plain) {
        return Err(wrong());
    }
    Ok(Path::new(version).join(path))
}

/// Writes a file below a directory, which is not made again if it has been removed meanwhile.
fn write(top: &Path, path: &Path, data: &[u8]) -> io::Result<()> {
    let mut dir = top.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made?,
        }
    }
    File::create_new(top.join(path))?.write_all(data)
}

fn unwritten(name: &str, what: &str, place: &Path, error: &io::Error) -> Refused {
    let text = format!(
        "failed to load '{}': {what} could not be written to {}: {error}",
        quote(name),
        place.display()
    );
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Refused::NoSpace(format!("{text}; make room there, or set TMPDIR to a larger place"))
        }
        // Names that are too long, or that are a file here and a directory there.
        ErrorKind::InvalidFilename
        | ErrorKind::AlreadyExists
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory => Refused::Failed(text),
        _ => Refused::Unwritten(format!("{text}; set TMPDIR to a directory that the server may write to")),
    }
}

#[cfg(test)]
#[path = "overriding_tests.rs"]
mod tests;
