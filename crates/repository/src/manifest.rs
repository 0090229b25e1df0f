//! `manifest.yaml` in a version's directory: exactly which bytes make the version.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Component, Path},
};

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, MapAccess, Visitor},
};

use crate::{
    config,
    digest::Digest,
    escape::{one_line, sentence, shown},
};

/// The name of the file.
pub(crate) const MANIFEST: &str = "manifest.yaml";

/// Room for ten thousand files.
const MAX_BYTES: u64 = 1 << 20;

/// A manifest is flat; the parser takes time that grows with the square of brackets that are open.
const MAX_BRACKETS: usize = 64;

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    sha256: Files,
}

/// The files in the order in which they were written, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Files(Vec<(String, Digest)>);

impl Manifest {
    /// Reads and checks a manifest; `model_file` is what it must at least list.
    ///
    /// # Errors
    /// One sentence that names the file.
    pub(crate) fn read(path: &Path, model_file: &str) -> Result<Self, String> {
        let text = config::read_text(path, MAX_BYTES)
            .map_err(|reason| format!("cannot read {}: {reason}", shown(path)))?;
        Self::parse(&text, model_file).map_err(|fault| format!("{}: {fault}", shown(path)))
    }

    fn parse(text: &str, model_file: &str) -> Result<Self, String> {
        if text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count() > MAX_BRACKETS {
            return Err(format!("it has more than {MAX_BRACKETS} brackets, and a manifest needs none"));
        }
        let manifest: Self = serde_yaml::from_str(text).map_err(|err| {
            format!(
                "a mapping `sha256` from file names to digests is expected: {}",
                sentence(&err.to_string())
            )
        })?;
        match manifest.files().iter().any(|(name, _)| name == model_file) {
            true => Ok(manifest),
            false => Err(format!(
                "it does not list {}, the file that is loaded: list it under `sha256`",
                one_line(model_file)
            )),
        }
    }

    /// The files and their digests.
    pub(crate) fn files(&self) -> &[(String, Digest)] {
        &self.sha256.0
    }

    /// One digest for all files. That of the file when there is only one, so that to add a manifest to
    /// a version does not make it another version.
    pub(crate) fn identity(&self) -> Digest {
        if let [(_, digest)] = self.files() {
            return *digest;
        }
        let mut lines: Vec<String> =
            self.files().iter().map(|(name, digest)| format!("{digest} {name}\n")).collect();
        lines.sort_unstable();
        Digest::of_bytes(lines.concat().as_bytes())
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FilesVisitor)
    }
}

struct FilesVisitor;

impl<'de> Visitor<'de> for FilesVisitor {
    type Value = Files;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping from file names to SHA-256 digests")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
        let mut files = Vec::new();
        let mut seen = BTreeSet::new();
        while let Some((name, digest)) = map.next_entry::<String, Digest>()? {
            if !is_inside(&name) {
                return Err(A::Error::custom(format!(
                    "`{}` must be a file below the manifest's directory, written relative to it and without `..`",
                    one_line(&name)
                )));
            }
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{}` is listed twice", one_line(&name))));
            }
            files.push((name, digest));
        }
        Ok(Files(files))
    }
}

/// Whether a name is a plain relative path to something else than the manifest itself.
fn is_inside(name: &str) -> bool {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    plain && !name.is_empty() && !name.contains('\0') && name != MANIFEST
}
