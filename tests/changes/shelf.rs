//! What the writer has to write: complete model files whose answers tell which they are, beside the
//! repository, and the numbers of chance.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::compiled;
use crate::harness::Repo;

/// The first of their numbers.
const FIRST: u32 = 1001;
/// How many contents there are.
const COUNT: u32 = 24;

/// A content: the file of a model.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    pub(super) sha256: String,
}

/// All contents.
#[derive(Debug)]
pub(super) struct Shelf {
    contents: BTreeMap<u32, Content>,
}

impl Shelf {
    /// Compiles them. Each answers with its number and the sum of its weights: with weights that are not
    /// exactly its own the sum is another.
    pub(super) fn new() -> Self {
        let content = |number: u32| {
            let source = format!(
                "def forward(self, x):\n    return torch.cat([x.new_full([1], {number}.0), \
                 self.weight.sum().reshape([1])])\n"
            );
            let bytes = compiled(&source, &["weight:64x64"]);
            let digest = Sha256::digest(&bytes);
            let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            (number, Content { bytes, sha256 })
        };
        Self { contents: (FIRST..FIRST + COUNT).map(content).collect() }
    }

    pub(super) fn get(&self, number: u32) -> &Content {
        &self.contents[&number]
    }

    /// Any of them.
    pub(super) fn any(&self, random: &mut Random) -> u32 {
        FIRST + u32::try_from(random.below(u64::from(COUNT))).expect("below")
    }

    /// Lays all of them out as directories and as files to link to: `NUMBER/model.pt`, `NUMBER.pt`.
    pub(super) fn lay_out(&self, store: &Repo) {
        for (number, content) in &self.contents {
            store.file(&format!("{number}/model.pt"), &content.bytes);
            store.file(&format!("{number}.pt"), &content.bytes);
        }
    }
}

/// Where a content lies as a directory.
pub(super) fn stored_dir(store: &Path, content: u32) -> PathBuf {
    store.join(content.to_string())
}

/// Where a content lies as a file.
pub(super) fn stored_file(store: &Path, content: u32) -> PathBuf {
    store.join(format!("{content}.pt"))
}

/// That everything on the shelf of the disk is still what it was: no way of writing leads through a link.
pub(super) fn is_untouched(shelf: &Shelf, store: &Path) {
    for (number, content) in &shelf.contents {
        for path in [stored_dir(store, *number).join("model.pt"), stored_file(store, *number)] {
            assert!(
                fs::read(&path).expect("a content") == content.bytes,
                "{} was overwritten",
                path.display()
            );
        }
    }
}

/// Numbers that look like chance and are the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.next() % length as u64).expect("an index")
    }

    pub(super) fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.index(from.len())]
    }

    /// True in one of so many cases.
    pub(super) fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }
}
