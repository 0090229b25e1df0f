//! What comes with an order instead of what the directory says: a configuration, and files, which are
//! written to a directory of their own and never into a repository.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use sconce_repository::{ModelConfig, ModelOnDisk, Version};
use tempfile::TempDir;

use super::{
    machine::not_found,
    order::{Override, Refused},
};
use crate::text::quote;

/// The longest path of a file that comes with an order.
const MAX_PATH: usize = 1024;

/// Makes overrides, and keeps what came with them in one directory, so that all of it can be removed.
#[derive(Debug)]
pub struct Overrides {
    roots: Vec<PathBuf>,
    confine_symlinks: bool,
    /// Where those go that still make one.
    place: PathBuf,
    files: Mutex<Option<TempDir>>,
}

impl Overrides {
    /// For the models of these repositories; files go to the system's directory for temporary files.
    pub fn new(roots: Vec<PathBuf>, confine_symlinks: bool) -> Self {
        Self::in_place(roots, confine_symlinks, std::env::temp_dir())
    }

    fn in_place(roots: Vec<PathBuf>, confine_symlinks: bool, place: PathBuf) -> Self {
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
        let config = ModelConfig::from_json(config, &dir, name).map_err(|error| failed(&error))?;
        let confine = self.confine_symlinks && directory.is_none();
        let disk = ModelOnDisk::with_config(&root, &dir, config, confine).map_err(|error| failed(&error))?;
        Ok(Override { disk: Arc::new(disk), directory })
    }

    /// Removes all files that came with orders, when nothing is served from them any more.
    pub fn remove(&self) {
        drop(self.files.lock().unwrap_or_else(PoisonError::into_inner).take());
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
        let dir = directory.path().join(name);
        for (path, data) in paths {
            write(&dir.join(&path), data).map_err(|error| {
                let path = path.display().to_string();
                unwritten(&format!("file '{}'", quote(&path)), &error)
            })?;
        }
        Ok(directory)
    }

    /// A new directory, that goes with its handle and with all others.
    fn directory(&self) -> io::Result<TempDir> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        // Who cleans the place up may have taken the directory too.
        if !files.as_ref().is_some_and(|files| files.path().is_dir()) {
            *files = Some(tempfile::Builder::new().prefix("sconce-").tempdir_in(&self.place)?);
        }
        match &*files {
            Some(files) => TempDir::new_in(files.path()),
            None => Err(io::Error::from(ErrorKind::NotFound)),
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

fn write(path: &Path, data: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    File::create_new(path)?.write_all(data)
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
