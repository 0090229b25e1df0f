//! One look at everything on disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    ConfigError, ModelConfig, Version, VersionOnDisk, VersionPolicy, Watch, config, escape, stamp::Moment,
};

mod cache;
mod entries;
mod links;
mod root;

use cache::{ModelCache, Recent};
use entries::{Entry, Kind};
use links::Paths;
use root::Root;

/// A text file that is younger than this may be half written.
const SETTLE: Duration = Duration::from_millis(250);

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
    pub watch: Watch,
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

impl ModelOnDisk {
    /// The model in a directory of a repository, by the configuration that came with a request to load
    /// it instead of the one that lies there; see [`ModelConfig::from_json`].
    ///
    /// # Errors
    /// When the configuration is wrong, the directory cannot be read, or, with `confine_symlinks`, it or
    /// a file that the configuration names leads out of `root`.
    pub fn with_json(
        root: &Path,
        dir: &Path,
        name: &str,
        json: &str,
        confine_symlinks: bool,
    ) -> Result<Self, ConfigError> {
        let unreadable =
            |err: io::Error| ConfigError::Unreadable { file: dir.to_owned(), reason: err.to_string() };
        let confine = if confine_symlinks { Some(root.canonicalize().map_err(unreadable)?) } else { None };
        let mut recent = Recent::new(SETTLE);
        let paths = Paths { watch: Watch::new(), confine };
        let mut look = Look { now: Moment::now(), paths, recent: &mut recent, problems: Vec::new() };
        look.paths.link(dir).map_err(|target| cache::outside(dir.to_owned(), &target))?;
        let config = cache::confined(dir, &mut look, || ModelConfig::from_json(json, dir, name))?;
        let entries = entries::list(dir).map_err(unreadable)?;
        let (dirs, readable) = look.versions(dir, &entries, &mut Vec::new());
        let versions = ModelCache::default().versions(dirs, &config.model_file, &mut look).value;
        Ok(Subject { name, root, dir }.found(Ok(config), versions, readable, false))
    }
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

/// Looks at repositories, again and again, and reads again only what has changed.
#[derive(Debug)]
pub struct Scanner {
    roots: Vec<Root>,
    confine_symlinks: bool,
    /// What is remembered of each model, by its directory.
    models: HashMap<PathBuf, ModelCache>,
    recent: Recent,
}

/// One look, while it lasts.
#[derive(Debug)]
struct Look<'a> {
    now: Moment,
    paths: Paths,
    recent: &'a mut Recent,
    problems: Vec<Problem>,
}

impl Scanner {
    /// For these roots; with `confine_symlinks`, links that lead out of their root are refused.
    pub fn new(roots: Vec<PathBuf>, confine_symlinks: bool) -> Self {
        let roots = roots.into_iter().map(Root::new).collect();
        Self { roots, confine_symlinks, models: HashMap::new(), recent: Recent::new(SETTLE) }
    }

    /// Looks at every model of every root.
    ///
    /// Never fails as a whole: what is wrong with one model or one root is said in the snapshot, and
    /// the others are found all the same. A root that could not be read is a problem whose path is the
    /// root; its models are then absent without having been removed. Symlinks are followed.
    pub fn look(&mut self) -> Snapshot {
        let paths = Paths { watch: Watch::new(), confine: None };
        let mut look = Look { now: Moment::now(), paths, recent: &mut self.recent, problems: Vec::new() };
        let mut models = Models { known: std::mem::take(&mut self.models), seen: HashMap::new() };
        let mut found: BTreeMap<String, Vec<ModelOnDisk>> = BTreeMap::new();
        let mut absent_roots = BTreeSet::new();
        let mut real_roots = BTreeSet::new();
        for root in &mut self.roots {
            let real = look.paths.whole(&root.path);
            root.notice();
            // Read twice, each of its models would stand in its own way.
            if !real_roots.insert(real.clone().unwrap_or_else(|| root.path.clone())) {
                let message = "the same repository is given twice; it is read once".to_owned();
                look.problems.push(Problem::new(&root.path, message));
                continue;
            }
            look.paths.confine = real.filter(|_| self.confine_symlinks);
            match look.root(root, &mut models) {
                Ok(models) => {
                    models.into_iter().for_each(|model| {
                        found.entry(model.name.clone()).or_default().push(model);
                    });
                }
                Err(reason) => {
                    look.problems.push(Problem::new(&root.path, reason));
                    absent_roots.insert(root.path.clone());
                }
            }
        }
        let Look { paths, problems, .. } = look;
        self.recent.turn();
        self.models = models.seen;
        let models = found.into_iter().filter_map(|(name, models)| Some((name, only(models)?))).collect();
        Snapshot { models, problems, absent_roots, watch: paths.watch }
    }

    /// Whether a root is another directory than at the last look, as after mounting a volume over it,
    /// of which no watch tells.
    pub fn roots_changed(&self) -> bool {
        self.roots.iter().any(Root::has_changed)
    }
}

/// One look at these roots.
pub fn scan(roots: &[PathBuf]) -> Snapshot {
    Scanner::new(roots.to_vec(), false).look()
}

/// What is remembered from the last look, and for the next.
#[derive(Debug)]
struct Models {
    known: HashMap<PathBuf, ModelCache>,
    seen: HashMap<PathBuf, ModelCache>,
}

/// What is found under a name that may be a directory.
enum Place {
    Directory,
    /// Nothing, or nothing of interest.
    Nothing,
    /// Something that cannot be seen at the moment.
    Hidden(io::Error),
}

impl Look<'_> {
    /// The models of a root, or why it is taken for absent.
    fn root(&mut self, root: &mut Root, models: &mut Models) -> Result<Vec<ModelOnDisk>, String> {
        let entries = root.list()?;
        self.paths.watch_all(&root.path);
        let mut problems = Vec::new();
        // Problems of the root come before those of its models.
        let before = self.problems.len();
        let mut found = Vec::new();
        for entry in entries.iter().filter(|entry| !entry.is_hidden()) {
            let dir = root.path.join(&entry.name);
            let cache = models.known.remove(&dir);
            let error = match self.place(&dir, entry.kind, &mut problems) {
                Place::Nothing => continue,
                Place::Directory => None,
                Place::Hidden(err) if cache.is_some() => Some(err),
                Place::Hidden(err) => {
                    problems.push(entries::not_seen(&dir, &err));
                    continue;
                }
            };
            let Some(name) = entry.name.to_str() else {
                let message = "ignored: a model's name must be UTF-8 text, so that clients can write it";
                problems.push(Problem::new(&dir, message.to_owned()));
                continue;
            };
            let mut cache = cache.unwrap_or_default();
            let subject = Subject { name, root: &root.path, dir: &dir };
            let model = match error {
                Some(err) => Some(subject.unreadable(&err)),
                None => self.model(&subject, &mut cache, &mut problems),
            };
            if let Some(model) = model {
                found.push(model);
                models.seen.insert(dir, cache);
            }
        }
        self.problems.splice(before..before, entries::bounded(&root.path, problems));
        Ok(found)
    }

    /// Whether this is a directory, or leads to one.
    fn place(&mut self, path: &Path, kind: Kind, problems: &mut Vec<Problem>) -> Place {
        match kind {
            Kind::Directory => return Place::Directory,
            Kind::Other => return Place::Nothing,
            Kind::Link => {}
        }
        if let Err(target) = self.paths.link(path) {
            let message = format!("ignored: it {}", links::leads_out(&target));
            problems.push(Problem::new(path, message));
            return Place::Nothing;
        }
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => Place::Directory,
            Ok(_) => Place::Nothing,
            Err(err) if entries::is_nothing(&err) => {
                problems.push(entries::not_seen(path, &err));
                Place::Nothing
            }
            Err(err) => Place::Hidden(err),
        }
    }

    /// Looks at one directory; `None` when nothing in it speaks for a model.
    fn model(
        &mut self,
        subject: &Subject<'_>,
        cache: &mut ModelCache,
        root_problems: &mut Vec<Problem>,
    ) -> Option<ModelOnDisk> {
        let dir = subject.dir;
        self.paths.watch_all(dir);
        let entries = match entries::list(dir) {
            Ok(entries) => entries,
            // Deleted since its root was read.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return None,
            Err(err) => return Some(subject.unreadable(&err)),
        };
        let has = |name: &&str| entries.iter().any(|entry| entry.name == *name);
        let present: Vec<&str> = config::NAMES.into_iter().filter(has).collect();
        let mut problems = Vec::new();
        let (dirs, readable) = self.versions(dir, &entries, &mut problems);
        self.problems.extend(entries::bounded(dir, problems));
        if dirs.is_empty() && readable && present.is_empty() {
            root_problems.push(entries::no_model(dir, &entries));
            return None;
        }
        let config = cache.config(dir, subject.name, &present, self);
        let model_file = config.value.as_ref().map_or("model.pt", |config| &config.model_file);
        let versions = cache.versions(dirs, model_file, self);
        let settling = config.settling || versions.settling;
        Some(subject.found(config.value, versions.value, readable, settling))
    }

    /// The directories of the versions among the entries of a model's directory, and whether all of
    /// them could be seen. Names that look like an attempt at a version are told; every other directory
    /// is the model's own affair.
    fn versions(
        &mut self,
        dir: &Path,
        entries: &[Entry],
        problems: &mut Vec<Problem>,
    ) -> (BTreeMap<Version, PathBuf>, bool) {
        let mut versions = BTreeMap::new();
        let mut readable = true;
        for entry in entries {
            if !entry.name.as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
                continue;
            }
            let path = dir.join(&entry.name);
            match self.place(&path, entry.kind, problems) {
                Place::Nothing => {}
                Place::Directory => match entry.name.to_str().and_then(Version::from_dir_name) {
                    Some(version) => _ = versions.insert(version, path),
                    None => {
                        let message = entries::no_version(&entry.name.to_string_lossy());
                        problems.push(Problem::new(&path, message));
                    }
                },
                Place::Hidden(err) => {
                    readable = false;
                    problems.push(entries::not_seen(&path, &err));
                }
            }
        }
        (versions, readable)
    }
}

/// A directory that may be a model.
struct Subject<'a> {
    name: &'a str,
    root: &'a Path,
    dir: &'a Path,
}

impl Subject<'_> {
    /// The name is kept: what cannot be read at the moment has not been removed.
    fn unreadable(&self, err: &io::Error) -> ModelOnDisk {
        let error = ConfigError::Unreadable { file: self.dir.to_owned(), reason: err.to_string() };
        self.found(Err(error), BTreeMap::new(), false, false)
    }

    fn found(
        &self,
        config: Result<ModelConfig, ConfigError>,
        versions: BTreeMap<Version, VersionOnDisk>,
        readable: bool,
        settling: bool,
    ) -> ModelOnDisk {
        let policy = config.as_ref().ok().map(|config| &config.version_policy);
        let wanted = policy.map(|policy| policy.select(versions.keys().copied())).unwrap_or_default();
        let missing = match policy {
            Some(VersionPolicy::Specific(asked)) => {
                let absent: BTreeSet<Version> =
                    asked.iter().copied().filter(|version| !versions.contains_key(version)).collect();
                absent.into_iter().collect()
            }
            _ => Vec::new(),
        };
        let (name, dir, root) = (self.name.to_owned(), self.dir.to_owned(), self.root.to_owned());
        ModelOnDisk { name, dir, root, config, versions, wanted, missing, readable, settling }
    }
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

#[cfg(test)]
mod changes;
#[cfg(test)]
mod following;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
