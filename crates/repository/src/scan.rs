//! One look at everything on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::{ConfigError, ModelConfig, Version, VersionPolicy, config, escape};

/// What `mkfs` puts into the root of a volume; unreadable, and nobody's model.
const LOST_AND_FOUND: &str = "lost+found";

/// What one look at the repositories found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The models by name, also those whose configuration is wrong.
    pub models: BTreeMap<String, ModelOnDisk>,
    /// What was found and could not be taken for a model or a version.
    pub problems: Vec<Problem>,
}

/// A model's directory and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOnDisk {
    /// The name of the model.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Its configuration, or why there is none.
    pub config: Result<ModelConfig, ConfigError>,
    /// Every version that is there, with its directory.
    pub versions: BTreeMap<Version, PathBuf>,
    /// The versions that the policy chose, ascending; empty when the configuration is wrong.
    pub wanted: Vec<Version>,
    /// The versions that the configuration asks for by number but that are not there, ascending.
    pub missing: Vec<Version>,
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

/// Looks at every model of every root.
///
/// Never fails as a whole: what is wrong with one model or one root is said in the snapshot, and the
/// others are found all the same. A root that could not be read is a problem whose path is the root;
/// its models are then absent without having been removed. Symlinks are followed.
pub fn scan(roots: &[PathBuf]) -> Snapshot {
    let mut problems = Vec::new();
    let mut found: BTreeMap<String, Vec<ModelOnDisk>> = BTreeMap::new();
    for root in distinct(roots, &mut problems) {
        for (name, dir) in candidates(root, &mut problems) {
            if let Some(model) = look_at(&name, &dir, &mut problems) {
                found.entry(name).or_default().push(model);
            }
        }
    }
    let models = found.into_iter().filter_map(|(name, models)| Some((name, only(models)?))).collect();
    Snapshot { models, problems }
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
fn candidates(root: &Path, problems: &mut Vec<Problem>) -> Vec<(String, PathBuf)> {
    let paths = match children(root) {
        Ok(paths) => paths,
        Err(err) => {
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
fn look_at(name: &str, dir: &Path, problems: &mut Vec<Problem>) -> Option<ModelOnDisk> {
    let (versions, config) = match children(dir) {
        Ok(children) => {
            let versions = versions(&children, problems);
            if versions.is_empty() && !config::exists(dir) {
                problems.push(Problem::new(dir, no_model(dir, &children)));
                return None;
            }
            (versions, config::load(dir, name))
        }
        // The name is kept: what cannot be read at the moment has not been removed.
        Err(err) => {
            let error = ConfigError::Unreadable { file: dir.to_owned(), reason: err.to_string() };
            (BTreeMap::new(), Err(error))
        }
    };
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
    Some(ModelOnDisk { name: name.to_owned(), dir: dir.to_owned(), config, versions, wanted, missing })
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
