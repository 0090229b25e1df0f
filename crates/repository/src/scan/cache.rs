//! Text files that were read at an earlier look and have not changed since.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Look,
    links::{self, Paths},
};
use crate::{
    ConfigError, FileOnDisk, ModelConfig, Version, VersionOnDisk, config,
    escape::shown,
    manifest::{MANIFEST, Manifest},
    stamp::{Moment, Stamp},
    verify,
};

/// The stamps of files that were written not long ago, with the time since when they have been seen.
#[derive(Debug)]
pub(super) struct Recent {
    /// A text file that is younger may be half written.
    pub(super) settle: Duration,
    seen: HashMap<Stamp, Instant>,
    still: HashMap<Stamp, Instant>,
}

/// How many times longer an empty file is taken for half written.
const EMPTY: u32 = 20;

impl Recent {
    pub(super) fn new(settle: Duration) -> Self {
        Self { settle, seen: HashMap::new(), still: HashMap::new() }
    }

    /// Forgets what the look that ends here has not asked for.
    pub(super) fn turn(&mut self) {
        self.seen = std::mem::take(&mut self.still);
    }

    /// Whether what has been read now under this stamp is all that was ever written under it.
    fn trusts(&mut self, stamp: &Stamp, now: Moment) -> bool {
        now.trusts(stamp, None) || now.trusts(stamp, Some(self.first_seen(stamp, now)))
    }

    /// Whether a file is so young that it may be half written. One that is dated in the future is
    /// settled when it has been seen for as long as that. An empty one is believed much later: whoever
    /// writes a file anew empties it first, and may be held up before the first byte.
    fn is_settling(&mut self, stamp: &Stamp, now: Moment) -> bool {
        let settle = if stamp.size() == 0 { self.settle * EMPTY } else { self.settle };
        stamp.is_newer_than(settle, now.wall)
            && now.steady.saturating_duration_since(self.first_seen(stamp, now)) < settle
    }

    fn first_seen(&mut self, stamp: &Stamp, now: Moment) -> Instant {
        let first = self.seen.get(stamp).copied().unwrap_or(now.steady);
        *self.still.entry(*stamp).or_insert(first)
    }
}

/// What is remembered of a model.
#[derive(Debug, Default)]
pub(super) struct ModelCache {
    parsed: Option<Parsed>,
    /// The last configuration that was at rest, while the present one is not.
    at_rest: Option<Result<ModelConfig, ConfigError>>,
    /// When a file of the configuration was found to be gone; some editors replace a file so.
    gone_since: Option<Instant>,
    manifests: BTreeMap<Version, Listed>,
}

/// A configuration and the files that it was read from.
#[derive(Debug)]
struct Parsed {
    config: Result<ModelConfig, ConfigError>,
    files: Vec<Input>,
    /// Whether equal stamps mean an equal configuration.
    trusted: bool,
    settling: bool,
}

/// A file that a configuration was read from; without a stamp it was not there.
#[derive(Debug, PartialEq, Eq)]
struct Input {
    name: String,
    stamp: Option<Stamp>,
}

/// What a manifest lists.
#[derive(Debug)]
struct Listed {
    stamp: Stamp,
    model_file: String,
    names: Vec<String>,
    trusted: bool,
}

/// Something that was read, and whether it may be half written.
#[derive(Debug)]
pub(super) struct Read<T> {
    pub(super) value: T,
    pub(super) settling: bool,
}

impl ModelCache {
    /// The configuration of a model: the last that was at rest, if there was one. `present` are those
    /// of [`config::NAMES`] that are there.
    pub(super) fn config(
        &mut self,
        dir: &Path,
        name: &str,
        present: &[&str],
        look: &mut Look<'_>,
    ) -> Read<Result<ModelConfig, ConfigError>> {
        let now = look.now;
        let known = self.parsed.as_ref().map(|parsed| parsed.files.as_slice()).unwrap_or_default();
        let others = known.iter().map(|file| file.name.as_str());
        let (files, refused) = inputs(dir, present, others, look);
        if known.iter().any(|old| old.stamp.is_some() && stamp_of(&files, &old.name).is_none()) {
            self.gone_since = Some(now.steady);
        }
        let is_gone = |since: &Instant| now.steady.saturating_duration_since(*since) < look.recent.settle;
        self.gone_since = self.gone_since.filter(is_gone);

        let mut parsed = match self.parsed.take() {
            Some(parsed) if parsed.trusted && parsed.files == files && refused.is_none() => parsed,
            old => {
                self.at_rest = match old {
                    Some(old) if !old.settling => Some(old.config),
                    _ => self.at_rest.take(),
                };
                parse(dir, name, present, &files, look)
            }
        };
        // Each is asked, so that each is remembered.
        let young = parsed.files.iter().filter_map(|file| file.stamp);
        let young = young.filter(|stamp| look.recent.is_settling(stamp, now)).count();
        parsed.settling = young > 0 || self.gone_since.is_some();
        if !parsed.settling {
            self.at_rest = None;
        }
        let value = self.at_rest.as_ref().unwrap_or(&parsed.config).clone();
        let settling = parsed.settling;
        self.parsed = Some(parsed);
        Read { value, settling }
    }

    /// Looks at the files of the versions in these directories.
    pub(super) fn versions(
        &mut self,
        dirs: BTreeMap<Version, PathBuf>,
        model_file: &str,
        look: &mut Look<'_>,
    ) -> Read<BTreeMap<Version, VersionOnDisk>> {
        let mut known = std::mem::take(&mut self.manifests);
        let mut settling = false;
        let mut versions = BTreeMap::new();
        for (version, dir) in dirs {
            look.paths.watch_all(&dir);
            let (found, listed) = look_in(dir, model_file, known.remove(&version), look);
            if let Some(listed) = listed {
                settling |= look.recent.is_settling(&listed.stamp, look.now);
                self.manifests.insert(version, listed);
            }
            versions.insert(version, found);
        }
        Read { value: versions, settling }
    }
}

#[cfg(test)]
impl ModelCache {
    /// Whether its configuration is read again only when a stamp changes.
    pub(super) fn is_trusted(&self) -> bool {
        self.parsed.as_ref().is_some_and(|parsed| parsed.trusted)
    }
}

/// The files that a configuration is, or was, read from, and why one of them must not be read.
fn inputs<'a>(
    dir: &Path,
    present: &'a [&str],
    others: impl Iterator<Item = &'a str>,
    look: &mut Look<'_>,
) -> (Vec<Input>, Option<ConfigError>) {
    let mut refused = None;
    let mut look_at = |name: &str| {
        let found = look.paths.file(dir, name);
        if let Some(target) = found.outside {
            refused.get_or_insert_with(|| outside(dir.join(name), &target));
        }
        Input { name: name.to_owned(), stamp: found.stamp }
    };
    let others = others.filter(|name| !config::NAMES.contains(name));
    let files = present.iter().copied().chain(others).map(&mut look_at).collect();
    (files, refused)
}

/// The error for a file that leads out of its repository.
pub(super) fn outside(file: PathBuf, target: &Path) -> ConfigError {
    ConfigError::Unreadable { file, reason: format!("it {}", links::leads_out(target)) }
}

/// Reads a configuration, unless what it is read from leads out of the repository.
pub(super) fn confined(
    dir: &Path,
    look: &mut Look<'_>,
    read: impl FnOnce() -> Result<ModelConfig, ConfigError>,
) -> Result<ModelConfig, ConfigError> {
    let (config, read) = config::recording(read);
    match inputs(dir, &[], read.below(dir), look).1 {
        Some(refused) => Err(refused),
        None => config,
    }
}

fn stamp_of(files: &[Input], name: &str) -> Option<Stamp> {
    files.iter().find(|file| file.name == name)?.stamp
}

/// Reads a configuration; `before` are its files as they were just before that.
fn parse(dir: &Path, name: &str, present: &[&str], before: &[Input], look: &mut Look<'_>) -> Parsed {
    let (config, read) = config::recording(|| config::load(dir, name));
    let (files, refused) = inputs(dir, present, read.below(dir), look);
    let held_still = present.iter().all(|name| stamp_of(before, name) == stamp_of(&files, name));
    // Each is asked, so that each is remembered.
    let doubtful = files.iter().filter_map(|file| file.stamp);
    let doubtful = doubtful.filter(|stamp| !look.recent.trusts(stamp, look.now)).count();
    let trusted = held_still && doubtful == 0 && !read.failed;
    Parsed { config: refused.map_or(config, Err), files, trusted, settling: true }
}

/// Looks at the files of one version; also gives what its manifest lists, if it has one.
fn look_in(
    dir: PathBuf,
    model_file: &str,
    known: Option<Listed>,
    look: &mut Look<'_>,
) -> (VersionOnDisk, Option<Listed>) {
    let mut refused = None;
    let mut files = Vec::new();
    let mut look_at = |name: &str, paths: &mut Paths| {
        let found = paths.file(&dir, name);
        if let Some(target) = found.outside {
            let refusal = || format!("{} {}", shown(&dir.join(name)), links::leads_out(&target));
            refused.get_or_insert_with(refusal);
        }
        files.push(FileOnDisk { name: name.to_owned(), stamp: found.stamp });
        found.stamp
    };
    look_at(model_file, &mut look.paths);
    let mut listed = None;
    if model_file != MANIFEST && verify::is_there(&dir.join(MANIFEST)) {
        let stamp = look_at(MANIFEST, &mut look.paths);
        listed = stamp.map(|stamp| list(&dir, model_file, stamp, known, look));
        let names = listed.iter().flat_map(|listed| &listed.names);
        for name in names.filter(|name| *name != model_file) {
            look_at(name, &mut look.paths);
        }
    }
    (VersionOnDisk { dir, files, refused }, listed)
}

/// What a manifest with this stamp lists; nothing if it is wrong, which is told when it is verified.
fn list(dir: &Path, model_file: &str, stamp: Stamp, known: Option<Listed>, look: &mut Look<'_>) -> Listed {
    if let Some(known) = known.filter(|known| known.holds(stamp, model_file)) {
        return known;
    }
    let path = dir.join(MANIFEST);
    let manifest = Manifest::read(&path, model_file);
    let held_still = Stamp::of(&path).ok() == Some(stamp);
    let trusted = look.recent.trusts(&stamp, look.now) && held_still && manifest.is_ok();
    let names = manifest.iter().flat_map(Manifest::files).map(|(name, _)| name.clone()).collect();
    Listed { stamp, model_file: model_file.to_owned(), names, trusted }
}

impl Listed {
    fn holds(&self, stamp: Stamp, model_file: &str) -> bool {
        self.trusted && self.stamp == stamp && self.model_file == model_file
    }
}
