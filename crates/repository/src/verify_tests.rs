//! Versions that are complete, and those that are not yet or never will be.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{Version, files_to_list, scan, write_manifest};

/// A root with one version of one model.
struct Case {
    root: TempDir,
    digests: Digests,
}

impl Case {
    fn new(files: &[(&str, &str)]) -> Self {
        let case = Self { root: TempDir::new().unwrap(), digests: Digests::default() };
        fs::create_dir_all(case.dir()).unwrap();
        files.iter().for_each(|(name, text)| case.write(name, text));
        case
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("m/1")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir().join(name), text).unwrap();
    }

    fn with_manifest(self) -> Self {
        write_manifest(&self.dir(), &files_to_list(&self.dir()).unwrap()).unwrap();
        self
    }

    fn look(&self) -> VersionOnDisk {
        let snapshot = scan(&[self.root.path().to_owned()]);
        snapshot.models["m"].versions[&Version::new(1).unwrap()].clone()
    }

    /// The message is given without the directory.
    fn verify(&self, version: &VersionOnDisk) -> Result<Digest, (String, bool)> {
        verify(version, &self.digests).map_err(|unverified| {
            let text = unverified.to_string().replace(&format!("{}/", self.dir().display()), "");
            assert!(!text.contains('\n'), "{text}");
            (text, unverified.waiting)
        })
    }
}

#[track_caller]
fn assert_waiting(found: Result<Digest, (String, bool)>, part: &str) {
    let (text, waiting) = found.expect_err(part);
    assert!(waiting && text.contains(part), "{text}");
}

#[test]
fn a_version_without_a_manifest_is_its_model_file() {
    let case = Case::new(&[("model.pt", "weights"), ("notes.txt", "x")]);
    assert_eq!(case.verify(&case.look()), Ok(Digest::of_bytes(b"weights")));
}

#[test]
fn with_a_manifest_every_digest_counts() {
    let case = Case::new(&[("model.pt", "weights"), ("extra", "more")]).with_manifest();
    let identity = case.verify(&case.look()).unwrap();
    assert_ne!(identity, Digest::of_bytes(b"weights"));

    case.write("extra", "m0re");
    let (text, waiting) = case.verify(&case.look()).unwrap_err();
    let (found, expected) = (Digest::of_bytes(b"m0re"), Digest::of_bytes(b"more"));
    let sentence = format!(
        "extra has the SHA-256 {found}, but the manifest says {expected}: wait until the copy is \
         complete, or copy it again"
    );
    assert_eq!((text, waiting), (sentence, true));

    fs::remove_file(case.dir().join("extra")).unwrap();
    assert_waiting(case.verify(&case.look()), "extra does not exist, but the manifest lists it");
    case.write("extra", "more");
    assert_eq!(case.verify(&case.look()), Ok(identity), "the same bytes are the same version");
}

#[test]
fn to_add_a_manifest_does_not_make_another_version() {
    let case = Case::new(&[("model.pt", "weights")]);
    let before = case.verify(&case.look());
    let case = case.with_manifest();
    assert_eq!(case.verify(&case.look()), before);
}

#[test]
fn a_manifest_that_is_wrong_may_be_growing() {
    let case = Case::new(&[("model.pt", "weights"), ("manifest.yaml", "sha256: {model.pt")]);
    assert_waiting(case.verify(&case.look()), "manifest.yaml: a mapping `sha256`");
    case.write("manifest.yaml", "");
    assert_waiting(case.verify(&case.look()), "manifest.yaml: a mapping `sha256`");
    fs::remove_file(case.dir().join("manifest.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", case.dir().join("manifest.yaml")).unwrap();
    assert_waiting(case.verify(&case.look()), "cannot read manifest.yaml: there is no such file");
}

#[test]
fn a_model_file_that_is_not_there_yet_is_waited_for() {
    let case = Case::new(&[]);
    assert_waiting(case.verify(&case.look()), "model.pt does not exist");
    case.write("model.pt", "");
    assert_waiting(case.verify(&case.look()), "model.pt is empty");
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let case = Case::new(&[]);
    let model = case.dir().join("model.pt");
    fs::create_dir(&model).unwrap();
    let (text, waiting) = case.verify(&case.look()).unwrap_err();
    assert!(!waiting && text.contains("is a directory but must be a file"), "{text}");
    fs::remove_dir(&model).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &model,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let (text, waiting) = case.verify(&case.look()).unwrap_err();
    assert!(!waiting && text.contains("is a special file"), "{text}");
}

#[test]
fn what_changed_since_it_was_looked_at_is_waited_for() {
    let case = Case::new(&[("model.pt", "weights")]);
    let seen = case.look();
    case.write("model.pt", "longer weights");
    assert_waiting(case.verify(&seen), "changed since it was looked at");

    let seen = case.look();
    case.write("manifest.yaml", "");
    assert_waiting(case.verify(&seen), "changed while it was verified");

    let seen = case.look();
    fs::remove_dir_all(case.dir()).unwrap();
    assert_waiting(case.verify(&seen), "");
}

#[test]
fn a_refused_version_is_not_read() {
    let case = Case::new(&[("model.pt", "weights")]);
    let refused = VersionOnDisk { refused: Some("it leads out".to_owned()), ..case.look() };
    assert_eq!(case.verify(&refused), Err(("it leads out".to_owned(), false)));
}
