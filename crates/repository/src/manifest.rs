//! `manifest.yaml` in a version's directory: exactly which bytes make the version.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Write as _},
    path::{Component, Path, PathBuf},
};

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, MapAccess, Visitor},
};

use crate::{
    config,
    digest::{Digest, Digests},
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
                return Err(A::Error::custom(not_inside(&name)));
            }
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{}` is listed twice", one_line(&name))));
            }
            files.push((name, digest));
        }
        Ok(Files(files))
    }
}

/// The files of a version that a manifest should list: every regular file in its directory and below,
/// except hidden ones and the manifest; sorted.
///
/// # Errors
/// One sentence, when a directory cannot be read or a name cannot be written in a manifest.
pub fn files_to_list(dir: &Path) -> Result<Vec<String>, String> {
    let mut files = Vec::new();
    collect(dir, dir, &mut files)?;
    files.sort_unstable();
    Ok(files)
}

fn collect(top: &Path, dir: &Path, files: &mut Vec<String>) -> Result<(), String> {
    let unreadable = |path: &Path, err: &io::Error| format!("cannot read {}: {err}", shown(path));
    for entry in fs::read_dir(dir).map_err(|err| unreadable(dir, &err))? {
        let entry = entry.map_err(|err| unreadable(dir, &err))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(|err| unreadable(&path, &err))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") || path == top.join(MANIFEST) {
            continue;
        }
        // Links to files are files of the version; links to directories may lead round in circles.
        if kind.is_dir() {
            collect(top, &path, files)?;
        } else if path.metadata().map_err(|err| unreadable(&path, &err))?.is_file() {
            let name = path.strip_prefix(top).ok().and_then(Path::to_str);
            let name = name.ok_or_else(|| {
                format!("{} cannot be listed, as its name is not UTF-8 text: rename it", shown(&path))
            })?;
            files.push(name.to_owned());
        }
    }
    Ok(())
}

/// Writes a version's manifest with the digests that these files have now, and gives its path. It
/// appears, or replaces the last one, at once.
///
/// # Errors
/// One sentence, when a file cannot be read or the manifest cannot be written.
pub fn write_manifest(dir: &Path, files: &[String]) -> Result<PathBuf, String> {
    if files.is_empty() {
        return Err(format!("{} has no file that a manifest could list: copy the model there", shown(dir)));
    }
    let digests = Digests::default();
    let mut text = String::from("sha256:\n");
    for name in files {
        if !is_inside(name) {
            return Err(not_inside(name));
        }
        let (_, digest) = digests.of(&dir.join(name))?;
        text.push_str(&format!("  {}: {digest}\n", quoted(name)));
    }
    can_be_read(&text, files)
        .map_err(|fault| format!("a manifest of {} could not be read: {fault}", shown(dir)))?;
    let (path, partial) = (dir.join(MANIFEST), dir.join(".manifest.yaml.partial"));
    let written = write(&partial, &text).and_then(|()| fs::rename(&partial, &path));
    written.map_err(|err| {
        _ = fs::remove_file(&partial);
        format!("cannot write {}: {err}", shown(&path))
    })?;
    Ok(path)
}

/// A name in YAML. JSON's way to write a string is one of YAML's, if nothing is left as it is that YAML
/// takes for the end of a line or for no text at all.
fn quoted(name: &str) -> String {
    let mut text = String::new();
    for char in serde_json::Value::from(name).to_string().chars() {
        match char {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(char)));
            }
            char => text.push(char),
        }
    }
    text
}

/// Why the text would not be read as a manifest of these files.
fn can_be_read(text: &str, files: &[String]) -> Result<(), String> {
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("it would have {} bytes, more than {MAX_BYTES}; list fewer files", text.len()));
    }
    let manifest = Manifest::parse(text, files.first().map_or("", String::as_str))?;
    match files.iter().zip(manifest.files()).find(|(name, (read, _))| *name != read) {
        Some((name, _)) => Err(format!("YAML cannot carry the name `{}`: rename the file", one_line(name))),
        None => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn not_inside(name: &str) -> String {
    format!(
        "`{}` must be a file below the manifest's directory, written relative to it and without `..`",
        one_line(name)
    )
}

/// Whether a name is a plain relative path to something else than the manifest itself.
fn is_inside(name: &str) -> bool {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    plain && !name.is_empty() && !name.contains('\0') && name != MANIFEST
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
