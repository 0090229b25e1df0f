//! Versions that change places: two contents of a model, published in turn under numbers that go up.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use tempfile::TempDir;

use crate::support::Result;

/// Rows of 10 FP32 in `table`: 50 MB, 10 MB, and next to nothing.
pub(crate) const ROWS_50_MB: usize = 1_250_000;
pub(crate) const ROWS_10_MB: usize = 250_000;
pub(crate) const ROWS_FEW: usize = 10;

/// A directory with a repository, and beside it where versions are prepared.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: TempDir,
}

impl Disk {
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for name in ["repository", "staging"] {
            fs::create_dir(dir.path().join(name))?;
        }
        Ok(Self { dir })
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.dir.path().join("repository")
    }

    fn staging(&self) -> PathBuf {
        self.dir.path().join("staging")
    }
}

/// What a version with this number answers, whatever it is asked.
pub(crate) fn mark(version: u64) -> f32 {
    if version.is_multiple_of(2) { 2.0 } else { 1.0 }
}

/// An MLP of 64-256-256-10 that looks one row up in a table, so that a version is large and a run is not.
/// All that it computes ends in a constant: every bit of an answer is known, whichever kernels were chosen.
fn define(file: &Path, rows: usize, mark: f32) -> Result<()> {
    let source = format!(
        "def forward(self, x):\n    \
             h = torch.relu(torch.mm(x, self.w1))\n    \
             h = torch.relu(torch.mm(h, self.w2))\n    \
             y = torch.mm(h, self.w3)\n    \
             y = y + torch.index_select(self.table, 0, torch.argmax(y, 1))\n    \
             return (y - y) + {mark:.1}\n"
    );
    let table = format!("table:{rows}x10");
    sconce_torch::define(&source, &["w1:64x256", "w2:256x256", "w3:256x10", &table], file)?;
    Ok(())
}

/// A model whose versions are published one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    pub(crate) name: String,
    model: PathBuf,
    staging: PathBuf,
    /// The bytes of even and of odd versions.
    contents: [PathBuf; 2],
    last: u64,
}

impl Publisher {
    /// A model that has no version yet; its contents have so many rows.
    pub(crate) fn new(disk: &Disk, name: &str, rows: usize) -> Result<Self> {
        let contents = [2, 1].map(|version| disk.staging().join(format!("{name}-{version}.pt")));
        define(&contents[0], rows, mark(2))?;
        define(&contents[1], rows, mark(1))?;
        let model = disk.repository().join(name);
        fs::create_dir_all(&model)?;
        Ok(Self { name: name.to_owned(), model, staging: disk.staging(), contents, last: 0 })
    }

    /// Renames the next version into place. Its file is a link, so that publishing costs nothing, and its
    /// stamp is new all the same, so that the server reads all of it. Returns its number and the moment
    /// before the renaming.
    pub(crate) fn publish(&mut self) -> Result<(u64, Instant)> {
        let version = self.last + 1;
        let staged = self.staging.join(format!("{}-next", self.name));
        fs::create_dir(&staged)?;
        fs::hard_link(self.content(version), staged.join("model.pt"))?;
        let begun = Instant::now();
        fs::rename(&staged, self.model.join(version.to_string()))?;
        self.last = version;
        Ok((version, begun))
    }

    /// Removes the version before the last.
    pub(crate) fn clean(&self) -> Result<()> {
        match self.last {
            0 | 1 => Ok(()),
            last => Ok(fs::remove_dir_all(self.model.join((last - 1).to_string()))?),
        }
    }

    /// The file with the bytes of this version.
    pub(crate) fn content(&self, version: u64) -> &Path {
        &self.contents[usize::from(!version.is_multiple_of(2))]
    }
}
