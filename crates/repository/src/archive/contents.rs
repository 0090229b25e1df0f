//! Are the bytes of an archive those that were written? Every entry has a checksum; each is read once.

use std::{
    fs::File,
    io::{self, BufReader, Read as _},
    path::Path,
};

use zip::{ZipArchive, read::ZipFile, result::ZipError};

use super::{ArchiveError, unreadable};
use crate::escape::one_line;

/// How much is read at once.
const PIECE: usize = 1 << 20;

/// No tensor of a TorchScript archive is larger.
const MAX_ENTRY: u64 = 64 << 30;

/// What unpacks to more than `SUSPICIOUS` bytes from less than a thousandth of it is there to fill disks
/// and memories. Tensors are stored as they are.
const MAX_RATIO: u64 = 1000;
const SUSPICIOUS: u64 = 1 << 30;

type Zip = ZipArchive<BufReader<File>>;

/// Reads every entry and compares it with its checksum.
pub(super) fn verify(path: &Path, zip: &mut Zip, file_size: u64) -> Result<(), ArchiveError> {
    let mut piece = vec![0; PIECE];
    let mut packed = 0_u64;
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|err| not_opened(path, index, err))?;
        packed = packed.saturating_add(entry.compressed_size());
        check_size(path, &entry, packed, file_size)?;
        let failed = drain(&mut entry, &mut piece).err();
        if let Some(err) = failed {
            return Err(match err.raw_os_error() {
                Some(_) => unreadable(path, &err),
                None => corrupt(path, name(&entry)),
            });
        }
    }
    Ok(())
}

fn drain(entry: &mut ZipFile<'_, BufReader<File>>, piece: &mut [u8]) -> io::Result<()> {
    let mut rest = entry.size();
    loop {
        match entry.read(piece) {
            Ok(0) if rest == 0 => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => rest = rest.saturating_sub(length as u64),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// Refuses what would take for ever to read: entries that say they are huge, or that share their bytes,
/// so that together they are larger than the file. `packed` is the size of all entries so far.
fn check_size(
    path: &Path,
    entry: &ZipFile<'_, BufReader<File>>,
    packed: u64,
    file_size: u64,
) -> Result<(), ArchiveError> {
    let (size, from) = (entry.size(), entry.compressed_size());
    let is_bomb = size > SUSPICIOUS && size / MAX_RATIO > from;
    if size > MAX_ENTRY || is_bomb {
        return Err(ArchiveError::Bomb { path: path.to_owned(), entry: name(entry), size, file_size });
    }
    if packed > file_size {
        return Err(ArchiveError::Overlapping { path: path.to_owned(), entry: name(entry), file_size });
    }
    Ok(())
}

fn not_opened(path: &Path, index: usize, err: ZipError) -> ArchiveError {
    match err {
        ZipError::Io(err) if err.raw_os_error().is_some() => unreadable(path, &err),
        ZipError::UnsupportedArchive(reason) => unreadable(path, &io::Error::other(reason)),
        // What says where the entry begins is not what was written.
        _ => corrupt(path, format!("number {index}")),
    }
}

fn name(entry: &ZipFile<'_, BufReader<File>>) -> String {
    entry.name().map_or_else(|_| "without a name".to_owned(), |name| one_line(&name))
}

fn corrupt(path: &Path, entry: String) -> ArchiveError {
    ArchiveError::Corrupt { path: path.to_owned(), entry }
}
