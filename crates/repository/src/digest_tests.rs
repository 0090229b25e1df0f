//! Digests of files that hold still, and of files that do not.

use std::{fs, os::unix::fs::symlink, time::Duration};

use tempfile::TempDir;

use super::*;

/// The standard's own example.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// Reads until what was read is remembered.
fn remembered(digests: &Digests, path: &Path) -> (Stamp, Digest) {
    loop {
        let found = digests.of(path).unwrap();
        if digests.known()[&found.0].digest.is_some() {
            return found;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_digest_is_read_and_written_as_64_digits() {
    let abc = Digest::of_bytes(b"abc");
    assert_eq!(abc.to_string(), ABC);
    assert_eq!(ABC.parse(), Ok(abc));
    assert_eq!(ABC.to_uppercase().parse(), Ok(abc));
    assert_eq!(Digest::try_from(ABC.to_owned()), Ok(abc));
    for wrong in ["", "ba78", &format!("{ABC}0"), &ABC.replace('f', "g"), &ABC.replace('f', "\u{e4}")] {
        assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
    }
}

#[test]
fn a_file_of_many_pieces_has_the_digest_of_its_bytes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
        let bytes: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let (stamp, digest) = Digests::default().of(&path).unwrap();
        assert_eq!(digest, Digest::of_bytes(&bytes));
        assert_eq!(stamp, Stamp::of(&path).unwrap());
        assert_eq!(stamp.size(), length as u64);
    }
}

#[test]
fn a_change_in_the_same_tick_is_seen() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    let digests = Digests::default();
    for number in (0..10_u8).cycle().take(1000) {
        // In place, and always of the same size.
        fs::write(&path, [number; 64]).unwrap();
        assert_eq!(digests.of(&path).unwrap().1, Digest::of_bytes(&[number; 64]));
    }
}

#[test]
fn what_has_come_to_rest_is_read_once_and_forgotten_when_it_is_gone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, "abc").unwrap();
    let digests = Digests::default();
    let (stamp, digest) = remembered(&digests, &path);
    assert_eq!(digest.to_string(), ABC);

    // Put where the digest is remembered, another one shows that nothing is read.
    let planted = Digest::of_bytes(b"planted");
    digests.known().get_mut(&stamp).unwrap().digest = Some(planted);
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    assert_eq!([digests.of(&path), digests.of(&link)], [Ok((stamp, planted)), Ok((stamp, planted))]);

    digests.retain(&HashSet::from([stamp]));
    assert_eq!(digests.of(&path), Ok((stamp, planted)));
    digests.retain(&HashSet::new());
    assert_eq!(digests.of(&path), Ok((stamp, digest)));
}

#[test]
fn a_file_from_the_future_is_trusted_after_a_while() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, "abc").unwrap();
    let future = std::time::SystemTime::now() + Duration::from_secs(3600);
    File::options().write(true).open(&path).unwrap().set_modified(future).unwrap();
    let digests = Digests::default();
    let (stamp, digest) = digests.of(&path).unwrap();
    assert_eq!(digest.to_string(), ABC);
    assert!(digests.known()[&stamp].digest.is_none(), "not at once");
    remembered(&digests, &path);
}

#[test]
fn only_regular_files_are_read() {
    let dir = TempDir::new().unwrap();
    let fifo = dir.path().join("model.pt");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let digests = Digests::default();
    for path in [fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
        let fault = digests.of(path).unwrap_err();
        assert!(fault.ends_with("is not a regular file, and only such files are read"), "{fault}");
    }
    // Should it become a pipe after it was looked at.
    assert!(read(&fifo, Stamp::of(dir.path()).unwrap()).unwrap_err().contains("not a regular file"));
    let absent = digests.of(&dir.path().join("absent")).unwrap_err();
    assert!(absent.starts_with("cannot read "), "{absent}");
}

#[test]
fn a_file_that_changes_while_it_is_read_has_no_digest() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, "abc").unwrap();
    let stamp = Stamp::of(&path).unwrap();
    fs::write(&path, "abcd").unwrap();
    let fault = read(&path, stamp).unwrap_err();
    assert!(
        fault.ends_with("changed while it was read: it is read again when it has come to rest"),
        "{fault}"
    );
    // The file that is open has not changed, and is not the file of this name any more.
    let stamp = Stamp::of(&path).unwrap();
    fs::write(dir.path().join("new"), "abcd").unwrap();
    fs::rename(dir.path().join("new"), &path).unwrap();
    assert!(read(&path, stamp).is_err());
}
