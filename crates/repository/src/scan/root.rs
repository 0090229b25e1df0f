//! A root as a place that may go and come back: a volume that is mounted, or not yet, or not any more.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::entries::{self, Entry};

/// A root, and what is remembered of it from look to look.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    /// Which directory it was at the last look.
    seen: Option<Identity>,
    /// Which directory it was when it last held something.
    filled: Option<Identity>,
}

/// One directory, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Root {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, seen: None, filled: None }
    }

    /// Whether it is another directory than at the last look, or has gone, or has come.
    pub(super) fn has_changed(&self) -> bool {
        Identity::of(&self.path) != self.seen
    }

    /// Notes which directory it is. Before it is read: should it be replaced in between, `has_changed`
    /// will tell.
    pub(super) fn notice(&mut self) {
        self.seen = Identity::of(&self.path);
    }

    /// What is in it, or why it is taken for absent.
    pub(super) fn list(&mut self) -> Result<Vec<Entry>, String> {
        let entries = entries::list(&self.path).map_err(|err| unreadable(&err))?;
        if entries.iter().any(|entry| !entry.is_hidden()) {
            self.filled = self.seen;
            return Ok(entries);
        }
        if self.filled.is_some() && self.filled != self.seen {
            return Err("is empty and not the directory that held models before, as when a volume is not \
                        mounted: its models are taken for absent, not for deleted; mount it again"
                .to_owned());
        }
        // Somebody has emptied it.
        self.filled = None;
        Ok(entries)
    }
}

fn unreadable(err: &io::Error) -> String {
    format!("cannot be read as a model repository: {err}")
}
