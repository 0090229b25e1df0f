//! Names that lead through symlinks: where to, and which directories decide it.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::{
    escape::shown,
    stamp::Stamp,
    watch::{Interest, Watch},
};

/// As many links in one path as the kernel follows.
const MAX_LINKS: u32 = 40;

/// Notes that a directory is to be watched for the names in it, if not for more.
fn watch_names(watch: &mut Watch, dir: PathBuf) {
    watch.entry(dir).or_insert(Interest::Names);
}

/// Follows links and notes the directories in which they lie, because re-pointing a link is a change of
/// its directory. Where there are no links this asks nothing that would not be asked anyway.
#[derive(Debug)]
pub(super) struct Paths {
    /// The directories whose entries decide what was seen.
    pub(super) watch: Watch,
    /// The real path that must not be left.
    pub(super) confine: Option<PathBuf>,
}

/// A file, as it was found under a name.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// `None` when it is absent or cannot be looked at.
    pub(super) stamp: Option<Stamp>,
    /// Where it leads, when it must not lead there.
    pub(super) outside: Option<PathBuf>,
}

/// Why a link is not followed: the end of a sentence that names the link.
pub(super) fn leads_out(target: &Path) -> String {
    format!(
        "leads out of the repository, to {}: put it inside, or serve without --confine-symlinks",
        shown(target)
    )
}

impl Paths {
    /// Follows a whole path from the top, as that of a root; gives its real path if it leads anywhere.
    /// The nearest directory that is there is watched for the one that is not.
    pub(super) fn whole(&mut self, path: &Path) -> Option<PathBuf> {
        let path = std::path::absolute(path).ok()?;
        let real = self.walk(PathBuf::from("/"), &path, &mut MAX_LINKS.clone());
        let places = [Some(path.as_path()), real.as_deref()];
        let parents = places.into_iter().flatten().filter_map(Path::parent);
        for parent in parents.filter(|parent| parent.is_dir()) {
            watch_names(&mut self.watch, parent.to_owned());
        }
        real
    }

    /// Has a directory watched for all that changes in it.
    pub(super) fn watch_all(&mut self, dir: &Path) {
        self.watch.insert(dir.to_owned(), Interest::All);
    }

    /// Follows the link under this path, whose directory is watched already.
    ///
    /// # Errors
    /// Where it leads, if that is outside. A link that leads nowhere is no error here.
    pub(super) fn link(&mut self, path: &Path) -> Result<(), PathBuf> {
        // The real directory, because `..` in a link goes up from there.
        let (Some(Ok(dir)), Ok(target)) = (path.parent().map(Path::canonicalize), fs::read_link(path)) else {
            return Ok(());
        };
        let Some(real) = self.walk(dir, &target, &mut MAX_LINKS.clone()) else { return Ok(()) };
        // A change of a file is told by the directory that the file is in, one of a directory by itself.
        match real.parent() {
            Some(parent) if real.is_dir() => watch_names(&mut self.watch, parent.to_owned()),
            Some(parent) => self.watch_all(parent),
            None => {}
        }
        match &self.confine {
            Some(root) if !real.starts_with(root) => Err(real),
            _ => Ok(()),
        }
    }

    /// Looks at a file below `dir`, which is watched already.
    pub(super) fn file(&mut self, dir: &Path, name: &str) -> Found {
        let mut path = dir.to_owned();
        let mut parts = Path::new(name).components().peekable();
        let mut metadata = None;
        while let Some(part) = parts.next() {
            path.push(part);
            match self.step(&path) {
                Ok(found) => metadata = Some(found),
                Err(Stop::Outside(target)) => return Found { stamp: None, outside: Some(target) },
                Err(Stop::Absent) => return Found::default(),
            }
            if parts.peek().is_some() {
                self.watch_all(&path);
            }
        }
        Found { stamp: metadata.as_ref().map(Stamp::from), outside: None }
    }

    /// What lies under this path, and where its last part leads.
    fn step(&mut self, path: &Path) -> Result<fs::Metadata, Stop> {
        let metadata = path.symlink_metadata().map_err(Stop::from)?;
        if !metadata.is_symlink() {
            return Ok(metadata);
        }
        self.link(path).map_err(Stop::Outside)?;
        path.metadata().map_err(Stop::from)
    }

    /// Follows `path` from a directory without links in its own path; `None` when it leads nowhere.
    fn walk(&mut self, from: PathBuf, path: &Path, links: &mut u32) -> Option<PathBuf> {
        let mut at = from;
        for part in path.components() {
            let next = match part {
                Component::Normal(name) => at.join(name),
                Component::ParentDir => {
                    at.pop();
                    continue;
                }
                Component::RootDir => {
                    at = PathBuf::from("/");
                    continue;
                }
                Component::CurDir | Component::Prefix(_) => continue,
            };
            let Ok(metadata) = next.symlink_metadata() else {
                watch_names(&mut self.watch, at);
                return None;
            };
            if !metadata.is_symlink() {
                at = next;
                continue;
            }
            *links = links.checked_sub(1)?;
            watch_names(&mut self.watch, at.clone());
            at = self.walk(at, &fs::read_link(&next).ok()?, links)?;
        }
        Some(at)
    }
}

/// Why a path was not followed to its end.
enum Stop {
    Absent,
    Outside(PathBuf),
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Absent
    }
}
