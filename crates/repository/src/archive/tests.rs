//! Archives of every kind and the sentences that they get.

use std::io::Write;

use tempfile::TempDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;

const TORCHSCRIPT: [&str; 5] =
    ["net/data.pkl", "net/code/__torch__.py", "net/data/0", "net/constants.pkl", "net/version"];

fn zip_of(names: &[&str]) -> Vec<u8> {
    let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for name in names {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(&[7; 100]).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Checks a file of these bytes; the message is given without the directory.
fn checked(bytes: &[u8]) -> Result<(), (ArchiveError, String)> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, bytes).unwrap();
    check(&path).map_err(|err| {
        let text = err.to_string().replace(&format!("{}/", dir.path().display()), "");
        assert!(!text.contains('\n'), "{text}");
        (err, text)
    })
}

fn message(bytes: &[u8]) -> String {
    checked(bytes).expect_err("must be refused").1
}

#[test]
fn a_complete_archive_passes() {
    assert_eq!(checked(&zip_of(&TORCHSCRIPT)), Ok(()));
    let newer = TORCHSCRIPT.map(|name| name.replace("net/version", "net/.data/version"));
    assert_eq!(checked(&zip_of(&newer.each_ref().map(String::as_str))), Ok(()));
}

#[test]
fn every_cut_is_seen_and_may_be_a_copy_that_goes_on() {
    let whole = zip_of(&TORCHSCRIPT);
    for length in 0..whole.len() {
        let (err, text) = checked(&whole[..length]).expect_err("cut");
        assert!(err.may_be_growing(), "{length}: {text}");
    }
    assert_eq!(
        message(&whole[..600]),
        "model.pt is incomplete: it starts as a zip archive, but the list of contents that must be \
         at its end is not there after 600 bytes: wait until the copy is complete, or copy it again"
    );
}

#[test]
fn space_that_was_reserved_for_a_copy_is_no_copy() {
    let whole = zip_of(&TORCHSCRIPT);
    let mut reserved = whole.clone();
    reserved[300..].fill(0);
    assert!(message(&reserved).contains("is incomplete"));
    assert!(message(&[0; 700]).contains("filled with zeros"));
}

#[test]
fn an_archive_inside_a_cut_archive_does_not_pass_for_it() {
    let mut cut = zip_of(&["net/data.pkl"])[..60].to_vec();
    cut.extend(zip_of(&TORCHSCRIPT));
    cut.extend([1; 40]);
    assert!(message(&cut).contains("is incomplete"));
}

#[test]
fn an_empty_file_is_told() {
    assert!(message(b"").starts_with("model.pt is empty: copy the whole"), "{}", message(b""));
}

#[test]
fn other_files_are_recognised() {
    for (bytes, part) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..], "a pointer of Git LFS"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF", "a Python pickle, as an old torch.save writes"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"\x7fELF\x02\x01\x01\x00", "a shared library or program"),
        (b"class Net(torch.nn.Module):\n", "a text file"),
        (b"\x08\x07\x12\x07pytorch\x1a\x01", "a file of an unknown format"),
    ] {
        let (err, text) = checked(bytes).expect_err("no zip");
        assert!(text.contains(part) && text.contains("not a TorchScript archive"), "{text}");
        assert!(!err.may_be_growing());
    }
}

#[test]
fn weights_are_told_from_models() {
    let text = message(&zip_of(&["net/data.pkl", "net/byteorder", "net/data/0", "net/version"]));
    assert!(text.contains("was written by torch.save and holds weights"), "{text}");
    assert!(text.contains("torch.jit.save(torch.jit.script(model), path)"), "{text}");
}

#[test]
fn the_other_zips_of_torch_are_told_by_name() {
    let aoti = message(&zip_of(&["net/data/aotinductor/model/x.so", "net/archive_format", "net/version"]));
    assert!(aoti.contains("AOTInductor package (.pt2), which is not served yet"), "{aoti}");
    let export = message(&zip_of(&["net/archive_format", "net/models/model.json"]));
    assert!(export.contains("torch.export"), "{export}");
}

#[test]
fn any_other_zip_says_what_it_lacks() {
    assert!(message(&zip_of(&["readme.txt"])).contains("has no <name>/data.pkl"));

    for (left_out, missing) in [(3, "<name>/constants.pkl"), (4, "<name>/version")] {
        let mut names = TORCHSCRIPT.to_vec();
        names.remove(left_out);
        let text = message(&zip_of(&names));
        assert!(text.contains(missing), "{text}");
    }
}

#[test]
fn a_directory_is_no_model() {
    let dir = TempDir::new().unwrap();
    let text = check(dir.path()).expect_err("directory").to_string();
    assert!(text.contains("is a directory but must be a file"), "{text}");
}

#[test]
fn a_missing_file_names_the_only_other_model() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    assert_eq!(check(&path), Err(ArchiveError::Missing { path: path.clone(), instead: None }));

    fs::write(dir.path().join("net.pt"), "x").unwrap();
    let text = check(&path).expect_err("missing").to_string();
    assert!(
        text.ends_with("but net.pt does: rename that file, or write `model_file: net.pt` in config.yaml"),
        "{text}"
    );

    fs::write(dir.path().join("other.pt"), "x").unwrap();
    assert_eq!(check(&path), Err(ArchiveError::Missing { path, instead: None }));
}

/// A real model, whose code is compressed and whose entries have their sizes behind them.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../model_repository/digits/1/model.pt")
}

/// Verifies a file of these bytes; the message is given without the directory.
fn verified(bytes: &[u8]) -> Result<(), (ArchiveError, String)> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, bytes).unwrap();
    verify(&path).map_err(|err| {
        let text = err.to_string().replace(&format!("{}/", dir.path().display()), "");
        (err, text)
    })
}

#[test]
fn what_was_written_passes() {
    assert_eq!(verified(&zip_of(&TORCHSCRIPT)), Ok(()));
    assert_eq!(verify(&model()), Ok(()));
    assert!(verified(b"PK\x03\x04").is_err(), "what check says holds here too");
}

#[test]
fn no_byte_of_an_entry_changes_unseen() {
    let whole = fs::read(model()).unwrap();
    let mut zip = ZipArchive::new(io::Cursor::new(&whole)).unwrap();
    let mut changed = 0;
    for index in 0..zip.len() {
        let entry = zip.by_index(index).unwrap();
        let start = usize::try_from(entry.data_start().unwrap()).unwrap();
        // The last byte of a compressed entry may have bits that mean nothing.
        let filled = u64::from(entry.compression() == CompressionMethod::Deflated);
        let length = usize::try_from(entry.compressed_size() - filled).unwrap();
        drop(entry);
        for at in (start..start + length).step_by(length.max(8) / 8) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let (err, text) = verified(&bytes).expect_err("a changed byte");
            assert!(matches!(err, ArchiveError::Corrupt { .. }) && err.may_be_growing(), "{text}");
            assert!(checked(&bytes).is_ok(), "the list of contents does not tell");
            changed += 1;
        }
    }
    assert!(changed > 20, "{changed}");
}

#[test]
fn a_wrong_checksum_names_the_entry() {
    let mut bytes = zip_of(&TORCHSCRIPT);
    let at = bytes.windows(100).position(|window| window == [7; 100]).unwrap();
    bytes[at] = 8;
    assert_eq!(
        verified(&bytes).expect_err("corrupt").1,
        "model.pt is corrupt: its entry net/data.pkl does not have the checksum that the list of contents \
         gives: copy it again"
    );
}

#[test]
fn an_entry_that_is_larger_than_any_file_is_refused_unread() {
    // The sizes stand in the list of contents, 20 and 24 bytes after the start of an entry in it.
    let list = b"PK\x01\x02";
    let with = |at: usize, size: u32| {
        let mut bytes = zip_of(&TORCHSCRIPT);
        let entry = bytes.windows(4).position(|window| window == list).unwrap();
        bytes[entry + at..entry + at + 4].copy_from_slice(&size.to_le_bytes());
        bytes
    };
    let (err, text) = verified(&with(24, 0xf000_0000)).expect_err("a bomb");
    assert!(matches!(err, ArchiveError::Bomb { .. }) && !err.may_be_growing(), "{text}");
    assert!(text.contains("its entry net/data.pkl says that it has"), "{text}");
    let (err, text) = verified(&with(20, 5_000)).expect_err("more than there is");
    assert!(matches!(err, ArchiveError::Overlapping { .. }) && !err.may_be_growing(), "{text}");
    assert!(text.contains("with its entry net/data.pkl the entries together are larger"), "{text}");
}

/// How fast archives are read, for a release build:
/// `cargo test --release -p sconce-repository -- --ignored --nocapture how_fast`.
#[test]
#[ignore = "a measurement"]
fn how_fast_an_archive_is_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.pt");
    let mut zip = ZipWriter::new(fs::File::create(&path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut noise = 1_u32;
    let mut byte = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.to_be_bytes()[0]
    };
    let tensor: Vec<u8> = (0..50 << 20).map(|_| byte()).collect();
    for name in TORCHSCRIPT {
        zip.start_file(name, stored).unwrap();
        zip.write_all(if name.ends_with("data/0") { &tensor } else { b"x" }).unwrap();
    }
    zip.finish().unwrap();
    let speed = |started: std::time::Instant| 50.0 * 1.048_576 / started.elapsed().as_secs_f64();
    for _ in 0..5 {
        let started = std::time::Instant::now();
        verify(&path).unwrap();
        println!("checksums: {:.0} MB/s", speed(started));
        let started = std::time::Instant::now();
        crate::Digests::default().of(&path).unwrap();
        println!("SHA-256: {:.0} MB/s", speed(started));
    }
}
