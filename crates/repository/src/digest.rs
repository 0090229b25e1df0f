//! The identity of a file's content, and how not to read a file again that has not changed.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    io::{self, Read as _},
    path::Path,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use sha2::{Digest as _, Sha256};

use crate::{
    escape::{one_line, shown},
    regular,
    stamp::{Moment, Stamp},
};

/// How much is read at once: enough to keep a disk busy, little enough to stay in a processor's cache.
const PIECE: usize = 1 << 20;

/// The SHA-256 of some bytes; shown and read as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fault =
            || format!("`{}` is no SHA-256 digest: 64 hexadecimal digits are expected", one_line(text));
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        let digits: [u8; 64] = digits.and_then(|digits| digits.try_into().ok()).ok_or_else(fault)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Digests by stamp, so that a file that has not changed is not read again. Shared between threads.
#[derive(Debug, Default)]
pub struct Digests {
    /// Never locked while a file is read.
    known: Mutex<HashMap<Stamp, Known>>,
}

/// What is remembered of a stamp.
#[derive(Clone, Copy, Debug)]
struct Known {
    first_seen: Instant,
    /// The digest, once a reading has seen all that can have been written under this stamp.
    digest: Option<Digest>,
}

impl Digests {
    /// The stamp and the digest of a regular file, read only if the stamp is not known.
    ///
    /// The file must hold still while it is read. What is read within a moment of a change is not
    /// remembered, because a further change might not show in the stamp.
    ///
    /// # Errors
    /// One sentence, when the file cannot be read, is no regular file or changed meanwhile.
    pub fn of(&self, path: &Path) -> Result<(Stamp, Digest), String> {
        let unreadable = |err: io::Error| format!("cannot read {}: {err}", shown(path));
        let metadata = path.metadata().map_err(unreadable)?;
        // Asked before opening it, because opening a named pipe would wait for a writer, and opening a
        // device may do anything.
        if !metadata.is_file() {
            return Err(format!("{} is not a regular file, and only such files are read", shown(path)));
        }
        let stamp = Stamp::from(&metadata);
        let began = Moment::now();
        let first_seen = match self.known().get(&stamp) {
            Some(Known { digest: Some(digest), .. }) => return Ok((stamp, *digest)),
            Some(known) => Some(known.first_seen),
            None => None,
        };
        let digest = read(path, stamp)?;
        let settled = began.trusts(&stamp, first_seen).then_some(digest);
        let first_seen = first_seen.unwrap_or(began.steady);
        self.known().insert(stamp, Known { first_seen, digest: settled });
        Ok((stamp, digest))
    }

    /// Forgets all other stamps, so that what is remembered does not grow with time.
    pub fn retain(&self, stamps: &HashSet<Stamp>) {
        self.known().retain(|stamp, _| stamps.contains(stamp));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Stamp, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a whole file that had this stamp when it was looked at, and still has it in the end.
fn read(path: &Path, stamp: Stamp) -> Result<Digest, String> {
    let unreadable = |err: io::Error| format!("cannot read {}: {err}", shown(path));
    let changed =
        || format!("{} changed while it was read: it is read again when it has come to rest", shown(path));
    let mut file = regular::open(path).map_err(unreadable)?;
    let stamp_of = |file: &File| file.metadata().map(|metadata| Stamp::from(&metadata));
    if stamp_of(&file).map_err(unreadable)? != stamp {
        return Err(changed());
    }
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => hash.update(&piece[..length]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(unreadable(err)),
        }
    }
    if stamp_of(&file).map_err(unreadable)? != stamp || Stamp::of(path).ok() != Some(stamp) {
        return Err(changed());
    }
    Ok(Digest(hash.finalize().into()))
}

#[cfg(test)]
#[path = "digest_tests.rs"]
mod tests;
