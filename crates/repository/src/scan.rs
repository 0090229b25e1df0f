//! One look at everything on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::{
    ConfigError, FileOnDisk, ModelConfig, Stamp, Version, VersionOnDisk, VersionPolicy, config, escape,
    manifest::{MANIFEST, Manifest},
    verify,
};

/// What `mkfs` puts into the root of a volume; unreadable, and nobody's model.
const LOST_AND_FOUND: &str = "lost+found";

/// What one look at the repositories found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The models by name, also those whose configuration is wrong.
    pub models: BTreeMap<String, ModelOnDisk>,
    /// What was found and could not be taken for a model or a version.
    pub problems: Vec<Problem>,
    /// The roots that could not be read, or look like the mount point of a volume that is not mounted:
    /// what they held is absent without having been removed.
    pub absent_roots: BTreeSet<PathBuf>,
    /// The directories whose entries decide what was seen: a change shows in one of them.
    pub watch: BTreeSet<PathBuf>,
}

/// A model's directory and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOnDisk {
    /// The name of the model.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// The repository that it was found in.
    pub root: PathBuf,
    /// Its configuration, or why there is none.
    pub config: Result<ModelConfig, ConfigError>,
    /// Every version that is there.
    pub versions: BTreeMap<Version, VersionOnDisk>,
    /// The versions that the policy chose, ascending; empty when the configuration is wrong.
    pub wanted: Vec<Version>,
    /// The versions that the configuration asks for by number but that are not there, ascending.
    pub missing: Vec<Version>,
    /// Whether its directory could be read: what is not in `versions` is then really not there.
    pub readable: bool,
    /// Whether a text file of it (configuration, labels, manifest) was written so recently that it may
    /// be half written. The configuration is then the last one that was not; look again soon.
    pub settling: bool,
}

/// Something on disk that was ignored, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub path: PathBuf,
    /// What is wrong with it, as a sentence that follows the path.
    pub message: String,
}

impl Problem {
    fn new(path: &Path, message: String) -> Self {
        Self { path: path.to_owned(), message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", escape::shown(&self.path), self.message)
    }
}

/// Looks at repositories, again and again.
#[derive(Debug)]
pub struct Scanner {
    roots: Vec<PathBuf>,
    confine_symlinks: bool,
}

impl Scanner {
    /// For these roots; with `confine_symlinks`, links that lead out of their root are refused.
    pub fn new(roots: Vec<PathBuf>, confine_symlinks: bool) -> Self {
        Self { roots, confine_symlinks }
    }

    /// Looks at every model of every root.
    ///
    /// Never fails as a whole: what is wrong with one model or one root is said in the snapshot, and
    /// the others are found all the same. A root that could not be read is a problem whose path is the
    /// root; its models are then absent without having been removed. Symlinks are followed.
    pub fn look(&mut self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut found: BTreeMap<String, Vec<ModelOnDisk>> = BTreeMap::new();
        for root in distinct(&self.roots, &mut snapshot.problems) {
            snapshot.watch.insert(root.to_owned());
            for (name, dir) in candidates(root, &mut snapshot) {
                if let Some(model) = look_at(&name, root, &dir, &mut snapshot) {
                    found.entry(name).or_default().push(model);
                }
            }
        }
        snapshot.models =
            found.into_iter().filter_map(|(name, models)| Some((name, only(models)?))).collect();
        snapshot
    }

    /// Whether a root is another directory than at the last look, as after mounting a volume over it,
    /// of which no watch tells.
    pub fn roots_changed(&self) -> bool {
        false
    }
}

/// One look at these roots.
pub fn scan(roots: &[PathBuf]) -> Snapshot {
    Scanner::new(roots.to_vec(), false).look()
}

/// The roots without those that are the same directory as one before; otherwise each of its models
/// would stand in its own way.
fn distinct<'a>(roots: &'a [PathBuf], problems: &mut Vec<Problem>) -> Vec<&'a Path> {
    let mut seen = BTreeSet::new();
    let mut distinct = Vec::new();
    for root in roots {
        let real = root.canonicalize().unwrap_or_else(|_| root.clone());
        if seen.insert(real) {
            distinct.push(root.as_path());
        } else {
            problems
                .push(Problem::new(root, "the same repository is given twice; it is read once".to_owned()));
        }
    }
    distinct
}

/// The directories in a root that may be models, with their names, in order.
fn candidates(root: &Path, snapshot: &mut Snapshot) -> Vec<(String, PathBuf)> {
    let problems = &mut snapshot.problems;
    let paths = match children(root) {
        Ok(paths) => paths,
        Err(err) => {
            snapshot.absent_roots.insert(root.to_owned());
            problems.push(Problem::new(root, format!("cannot be read as a model repository: {err}")));
            return Vec::new();
        }
    };
    let mut candidates = Vec::new();
    for path in paths {
        let Some(name) = path.file_name() else { continue };
        if name.as_encoded_bytes().starts_with(b".") || name == LOST_AND_FOUND {
            continue;
        }
        let is_dir = match path.metadata() {
            Ok(metadata) => metadata.is_dir(),
            Err(err) => {
                problems.push(Problem::new(&path, format!("ignored, it cannot be looked at: {err}")));
                continue;
            }
        };
        match name.to_str() {
            _ if !is_dir => {}
            Some(name) => candidates.push((name.to_owned(), path)),
            None => problems.push(Problem::new(
                &path,
                "ignored: a model's name must be UTF-8 text, so that clients can write it".to_owned(),
            )),
        }
    }
    candidates
}

/// Looks at one directory; `None` when nothing in it speaks for a model.
fn look_at(name: &str, root: &Path, dir: &Path, snapshot: &mut Snapshot) -> Option<ModelOnDisk> {
    snapshot.watch.insert(dir.to_owned());
    let (numbered, config, readable) = match children(dir) {
        Ok(children) => {
            let versions = versions(&children, &mut snapshot.problems);
            if versions.is_empty() && !config::exists(dir) {
                snapshot.problems.push(Problem::new(dir, no_model(dir, &children)));
                return None;
            }
            (versions, config::load(dir, name), true)
        }
        // The name is kept: what cannot be read at the moment has not been removed.
        Err(err) => {
            let error = ConfigError::Unreadable { file: dir.to_owned(), reason: err.to_string() };
            (BTreeMap::new(), Err(error), false)
        }
    };
    let model_file = config.as_ref().map_or("model.pt", |config| &config.model_file);
    let versions: BTreeMap<_, _> =
        numbered.into_iter().map(|(version, dir)| (version, version_in(dir, model_file))).collect();
    snapshot.watch.extend(versions.values().map(|version| version.dir.clone()));
    let policy = config.as_ref().ok().map(|config| &config.version_policy);
    let wanted = policy.map(|policy| policy.select(versions.keys().copied())).unwrap_or_default();
    let missing = match policy {
        Some(VersionPolicy::Specific(asked)) => {
            let absent: BTreeSet<_> =
                asked.iter().filter(|version| !versions.contains_key(version)).collect();
            absent.into_iter().copied().collect()
        }
        _ => Vec::new(),
    };
    Some(ModelOnDisk {
        name: name.to_owned(),
        dir: dir.to_owned(),
        root: root.to_owned(),
        config,
        versions,
        wanted,
        missing,
        readable,
        settling: false,
    })
}

fn version_in(dir: PathBuf, model_file: &str) -> VersionOnDisk {
    let file = |name: &str| FileOnDisk { name: name.to_owned(), stamp: Stamp::of(&dir.join(name)).ok() };
    let mut files = vec![file(model_file)];
    if verify::is_there(&dir.join(MANIFEST)) {
        files.push(file(MANIFEST));
        let manifest = Manifest::read(&dir.join(MANIFEST), model_file);
        let listed = manifest.iter().flat_map(Manifest::files).map(|(name, _)| name.as_str());
        files.extend(listed.filter(|name| *name != model_file).map(file));
    }
    VersionOnDisk { dir, files, refused: None }
}

/// The model itself, or, when several claim its name, the first of them made unusable: which of them
/// clients mean cannot be guessed.
fn only(models: Vec<ModelOnDisk>) -> Option<ModelOnDisk> {
    let dirs: Vec<PathBuf> = models.iter().map(|model| model.dir.clone()).collect();
    let first = models.into_iter().next()?;
    if dirs.len() == 1 {
        return Some(first);
    }
    let config = Err(ConfigError::Duplicate { dirs });
    Some(ModelOnDisk { config, wanted: Vec::new(), missing: Vec::new(), ..first })
}

/// The versions among the children of a model's directory. Names that look like an attempt at a
/// version are told; every other directory is the model's own affair.
fn versions(children: &[PathBuf], problems: &mut Vec<Problem>) -> BTreeMap<Version, PathBuf> {
    let mut versions = BTreeMap::new();
    for path in children {
        let Some(name) = path.file_name() else { continue };
        if !name.as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        match path.metadata() {
            Ok(metadata) if !metadata.is_dir() => {}
            Ok(_) => match name.to_str().and_then(Version::from_dir_name) {
                Some(version) => {
                    versions.insert(version, path.clone());
                }
                None => problems.push(Problem::new(path, no_version(&name.to_string_lossy()))),
            },
            Err(err) => problems.push(Problem::new(path, format!("ignored, it cannot be looked at: {err}"))),
        }
    }
    versions
}

/// Why a directory whose name starts with a digit is no version.
fn no_version(name: &str) -> String {
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
fn no_model(dir: &Path, children: &[PathBuf]) -> String {
    let model_file = children.iter().find(|path| path.extension().is_some_and(|ending| ending == "pt"));
    match model_file.and_then(|path| path.file_name()) {
        Some(file) => format!(
            "ignored: it holds no version; move {} to {}",
            escape::shown(Path::new(file)),
            escape::shown(&dir.join("1/model.pt"))
        ),
        None => format!(
            "ignored: it holds neither a version nor a configuration; a model lies in {}",
            escape::shown(&dir.join("1/model.pt"))
        ),
    }
}

/// What is in a directory, sorted, so that two looks at the same disk give the same snapshot.
fn children(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests;
