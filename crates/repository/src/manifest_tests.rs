//! Manifests as people and programs write them.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

fn parsed(text: &str) -> Result<Vec<String>, String> {
    let names = |manifest: Manifest| manifest.files().iter().map(|(name, _)| name.clone()).collect();
    Manifest::parse(text, "model.pt").map(names)
}

#[test]
fn files_are_listed_in_the_order_in_which_they_were_written() {
    let text = format!("# by hand\nsha256:\n  z/y: {ZERO}\n  'model.pt': {}\n  1: {ZERO}\n", "AB".repeat(32));
    assert_eq!(parsed(&text), Ok(vec!["z/y".to_owned(), "model.pt".to_owned(), "1".to_owned()]));
}

#[test]
fn what_is_wrong_is_told_in_one_sentence() {
    let one = |name: &str| format!("sha256: {{model.pt: {ZERO}, {name}: {ZERO}}}");
    for (text, part) in [
        (String::new(), "a mapping `sha256` from file names to digests is expected"),
        ("sha256: [".to_owned(), "is expected"),
        ("- a\n- b".to_owned(), "is expected"),
        (format!("sha256: {{other.pt: {ZERO}}}"), "it does not list model.pt, the file that is loaded"),
        ("sha256: {}".to_owned(), "it does not list model.pt"),
        ("sha256: {model.pt: 12ab}".to_owned(), "`12ab` is no SHA-256 digest: 64 hexadecimal digits"),
        (format!("sha256: {{model.pt: {}}}", ZERO.replacen('0', "g", 1)), "is no SHA-256 digest"),
        (format!("sha256: {{model.pt: {ZERO}}}\nmd5: {{}}"), "unknown field `md5`"),
        (one("../up"), "`../up` must be a file below the manifest's directory"),
        (one("/etc/passwd"), "must be a file below"),
        (one("manifest.yaml"), "must be a file below"),
        (one("''"), "must be a file below"),
        (one("model.pt"), "`model.pt` is listed twice"),
        ("[".repeat(1000), "more than 64 brackets"),
    ] {
        let fault = parsed(&text).expect_err(&text);
        assert!(fault.contains(part), "{text}: {fault}");
        assert!(!fault.contains('\n'), "{fault}");
    }
}

#[test]
fn a_manifest_of_one_file_is_that_file_and_of_more_is_all_of_them() {
    let digest = |text: &str| Manifest::parse(text, "model.pt").unwrap().identity();
    let one = digest(&format!("sha256: {{model.pt: {ZERO}}}"));
    assert_eq!(one.to_string(), ZERO);
    let two = digest(&format!("sha256: {{model.pt: {ZERO}, a: {ZERO}}}"));
    assert_eq!(two, digest(&format!("sha256: {{a: {ZERO}, model.pt: {ZERO}}}")), "the order is nothing");
    assert_ne!(two, one);
    let other = ZERO.replacen('0', "1", 1);
    assert_ne!(two, digest(&format!("sha256: {{model.pt: {ZERO}, a: {other}}}")));
    assert_ne!(two, digest(&format!("sha256: {{model.pt: {ZERO}, b: {ZERO}}}")));
}

#[test]
fn what_is_written_lists_what_lies_there_and_appears_at_once() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("sub/.git")).unwrap();
    for name in ["model.pt", "sub/labels: \"x\"\n.txt", "sub/.git/HEAD", ".model.pt.swp", "manifest.yaml"] {
        fs::write(at(name), name).unwrap();
    }
    std::os::unix::fs::symlink("model.pt", at("link")).unwrap();
    std::os::unix::fs::symlink("..", at("sub/up")).unwrap();
    let files = files_to_list(dir.path()).unwrap();
    assert_eq!(files, ["link", "model.pt", "sub/labels: \"x\"\n.txt"]);
    let path = write_manifest(dir.path(), &files).unwrap();
    assert_eq!(path, at("manifest.yaml"));
    let manifest = Manifest::read(&path, "model.pt").unwrap();
    let digest = Digest::of_bytes(b"model.pt");
    assert_eq!(manifest.files()[..2], [("link".to_owned(), digest), ("model.pt".to_owned(), digest)]);
    assert_eq!(manifest.files()[2].0, files[2]);
    assert_eq!(files_to_list(dir.path()).unwrap(), files, "nothing else is left behind");
    assert!(!at(".manifest.yaml.partial").exists());
}

#[test]
fn what_cannot_be_listed_is_told() {
    let dir = TempDir::new().unwrap();
    assert!(write_manifest(dir.path(), &[]).unwrap_err().contains("copy the model there"));
    let absent = write_manifest(dir.path(), &["model.pt".to_owned()]).unwrap_err();
    assert!(absent.starts_with("cannot read ") && absent.contains("model.pt"), "{absent}");
    let outside = write_manifest(dir.path(), &["../x".to_owned()]).unwrap_err();
    assert!(outside.contains("without `..`"), "{outside}");
    assert!(files_to_list(&dir.path().join("absent")).unwrap_err().starts_with("cannot read "));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_is_written_can_be_read() {
    let dir = TempDir::new().unwrap();
    let odd = "a\u{7f}\u{85}\u{9f}\u{2028}\u{feff}\u{ffff}\u{1b}\t\\n\u{1f600}é: #'";
    fs::write(dir.path().join(odd), "x").unwrap();
    fs::write(dir.path().join("model.pt"), "x").unwrap();
    let files = files_to_list(dir.path()).unwrap();
    let read = Manifest::read(&write_manifest(dir.path(), &files).unwrap(), "model.pt").unwrap();
    let names =
        |manifest: &Manifest| manifest.files().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&read), files);
    let written = fs::read(dir.path().join(MANIFEST)).unwrap();

    // YAML's keys have at most 1024 characters, and this parser takes few brackets.
    for name in ["[".repeat(100), format!("{0}/{0}/{0}/{0}/{0}/w", "n".repeat(250))] {
        let path = dir.path().join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "x").unwrap();
        let fault = write_manifest(dir.path(), &["model.pt".to_owned(), name]).unwrap_err();
        assert!(fault.contains("could not be read: ") && !fault.contains('\n'), "{fault}");
    }
    let many = vec!["model.pt".to_owned(); 20_000];
    let fault = write_manifest(dir.path(), &many).unwrap_err();
    assert!(fault.contains("list fewer files"), "{fault}");
    assert_eq!(fs::read(dir.path().join(MANIFEST)).unwrap(), written, "what was there is left");
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "(sha256|model.pt|[\\[\\]{}:,\n '\"&*!|>-]|0{64}|\\PC){0,40}") {
        if let Err(fault) = parsed(&text) {
            prop_assert!(!fault.contains('\n'), "{}", fault);
        }
    }
}
