//! What comes with an order stays where it belongs, and leaves nothing behind.

use std::process::Command;

use super::*;
use crate::fixtures::assert_sentence;

const CONFIG: &str = r#"{"backend": "pytorch", "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUTPUT__0", "data_type": "TYPE_FP32", "dims": [-1]}]}"#;

/// A repository with model `m`, and a place for files.
struct Here {
    repository: TempDir,
    place: TempDir,
}

impl Here {
    fn new() -> Self {
        let (repository, place) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for version in ["1", "3"] {
            let dir = repository.path().join("m").join(version);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("model.pt"), "fake\n").unwrap();
        }
        Self { repository, place }
    }

    fn overrides(&self) -> Overrides {
        let roots = vec![self.repository.path().to_owned()];
        Overrides::in_place(roots, false, self.place.path().to_owned())
    }

    /// How many entries lie below the place for files.
    fn left(&self) -> usize {
        fn count(dir: &Path) -> usize {
            let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| 1 + if path.is_dir() { count(&path) } else { 0 }).sum()
        }
        count(self.place.path())
    }
}

fn file(name: &str, data: &'static str) -> (String, Bytes) {
    (name.to_owned(), Bytes::from_static(data.as_bytes()))
}

#[test]
fn a_configuration_alone_goes_with_the_files_of_the_directory() {
    let here = Here::new();
    let made = here.overrides().prepare("m", Some(CONFIG), &[]).unwrap();
    let versions: Vec<u64> = made.disk.versions.keys().map(|version| version.get()).collect();
    assert_eq!(versions, [1, 3]);
    assert_eq!(made.disk.dir, here.repository.path().join("m"));
    assert_eq!(made.disk.config.as_ref().unwrap().inputs[0].name, "x");
    assert_eq!((made.directory.is_none(), here.left()), (true, 0));
}

#[test]
fn files_are_a_model_of_their_own_and_go_with_it() {
    let here = Here::new();
    let overrides = here.overrides();
    let files = [file("7/model.pt", "fake\n"), file("7/sub/weights.bin", "w")];
    let made = overrides.prepare("new", Some(CONFIG), &files).unwrap();
    let version = Version::new(7).unwrap();
    let path = made.disk.versions[&version].model_file();
    assert!(path.starts_with(here.place.path()) && fs::read_to_string(&path).unwrap() == "fake\n");
    assert_eq!(made.disk.wanted, [version]);
    drop(made);
    assert!(!path.exists());
    overrides.remove();
    assert_eq!(here.left(), 0);
}

#[test]
fn no_file_leaves_its_directory() {
    let here = Here::new();
    let long = format!("1/{}", "a/".repeat(600));
    let wrong = [
        "model.pt",
        "1",
        "1/",
        "1//model.pt",
        "/1/model.pt",
        "1/../../../model.pt",
        "1/..",
        "1/./model.pt",
        "../1/model.pt",
        "0/model.pt",
        "01/model.pt",
        "-1/model.pt",
        "18446744073709551616/model.pt",
        "1/a\0b",
        "1/a/",
        "//etc/passwd",
        &long,
    ];
    let overrides = here.overrides();
    for name in wrong {
        let refused = overrides.prepare("m", Some(CONFIG), &[file("1/model.pt", "fake\n"), file(name, "x")]);
        let Err(Refused::Failed(text)) = refused else { panic!("{name:?}: {refused:?}") };
        assert_sentence(&text, &["file:<version>/<path>"]);
        assert_eq!(here.left(), 0, "{name:?}");
    }
}

#[test]
fn what_cannot_be_taken_leaves_nothing_behind() {
    let here = Here::new();
    let overrides = here.overrides();
    let one = || vec![file("1/model.pt", "fake\n")];
    let long = format!("1/{}", "n".repeat(300));
    let cases = [
        (None, one(), "parameter 'config'"),
        (Some("{"), one(), "failed to load 'm'"),
        (Some(r#"{"no_such_field": 1}"#), one(), "no_such_field"),
        (Some(CONFIG), vec![file("1/a", "x"), file("1/a/b", "x")], "'1/a"),
        (Some(CONFIG), vec![file(&long, "x")], "could not be written"),
    ];
    for (config, files, part) in cases {
        let refused = overrides.prepare("m", config, &files);
        let Err(Refused::Failed(text)) = refused else { panic!("{part}: {refused:?}") };
        assert_sentence(&text, &[part]);
    }
    let nobody = overrides.prepare("nobody", Some(CONFIG), &[]);
    assert!(matches!(nobody, Err(Refused::NotFound(_))), "{nobody:?}");
    overrides.remove();
    assert_eq!(here.left(), 0);
    let nowhere = Overrides::in_place(Vec::new(), false, here.place.path().join("missing"));
    let refused = nowhere.prepare("m", Some(CONFIG), &one());
    assert!(matches!(&refused, Err(Refused::Unwritten(text)) if text.contains("TMPDIR")), "{refused:?}");
}

#[test]
fn a_directory_that_was_cleaned_away_is_made_again() {
    let here = Here::new();
    let overrides = here.overrides();
    let files = [file("1/model.pt", "fake\n")];
    drop(overrides.prepare("m", Some(CONFIG), &files).unwrap());
    for entry in fs::read_dir(here.place.path()).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    assert!(overrides.prepare("m", Some(CONFIG), &files).is_ok());
}

#[test]
fn a_link_out_of_the_repository_is_not_followed_when_links_are_confined() {
    let here = Here::new();
    let elsewhere = TempDir::new().unwrap();
    fs::create_dir(elsewhere.path().join("1")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), here.repository.path().join("out")).unwrap();
    let roots = vec![here.repository.path().to_owned()];
    let confined = Overrides::in_place(roots, true, here.place.path().to_owned());
    let refused = confined.prepare("out", Some(CONFIG), &[]);
    assert!(matches!(&refused, Err(Refused::Failed(text)) if text.contains("leads out")), "{refused:?}");
    assert!(here.overrides().prepare("out", Some(CONFIG), &[]).is_ok());
}

#[test]
fn what_a_configuration_names_is_confined_too() {
    let here = Here::new();
    let elsewhere = TempDir::new().unwrap();
    fs::write(elsewhere.path().join("secret"), "of others").unwrap();
    let labels = here.repository.path().join("m/labels.txt");
    std::os::unix::fs::symlink(elsewhere.path().join("secret"), &labels).unwrap();
    let config = CONFIG.replace(r#""dims": [-1]}]}"#, r#""dims": [-1], "label_filename": "labels.txt"}]}"#);
    let roots = vec![here.repository.path().to_owned()];
    let confined = Overrides::in_place(roots, true, here.place.path().to_owned());
    let refused = confined.prepare("m", Some(&config), &[]);
    let Err(Refused::Failed(text)) = refused else { panic!("{refused:?}") };
    assert_sentence(&text, &["failed to load 'm'", "labels.txt", "leads out of the repository"]);
    assert!(here.overrides().prepare("m", Some(&config), &[]).is_ok());

    fs::remove_file(&labels).unwrap();
    fs::write(here.repository.path().join("m/names"), "inside").unwrap();
    std::os::unix::fs::symlink("names", &labels).unwrap();
    assert!(confined.prepare("m", Some(&config), &[]).is_ok());
}

#[test]
fn what_a_server_that_was_killed_has_left_is_removed_and_nothing_else() {
    let here = Here::new();
    let files = [file("1/model.pt", "fake\n")];
    let running = here.overrides();
    let made = running.prepare("m", Some(CONFIG), &files).unwrap();
    let at = |name: &str| here.place.path().join(name);
    fs::create_dir_all(at("sconce-files-old/x/m/1")).unwrap();
    fs::write(at("sconce-files-old/x/m/1/model.pt"), "left").unwrap();
    fs::create_dir(at("other")).unwrap();
    fs::write(at("sconce-files-file"), "").unwrap();
    std::os::unix::fs::symlink("other", at("sconce-files-link")).unwrap();
    drop(here.overrides());
    assert!(!at("sconce-files-old").exists());
    assert!(made.disk.versions.values().all(|version| version.model_file().is_file()));
    for other in ["other", "sconce-files-file", "sconce-files-link"] {
        assert!(at(other).exists(), "{other}");
    }
}

#[test]
fn nothing_is_written_after_all_was_removed() {
    let here = Here::new();
    let overrides = here.overrides();
    let directory = overrides.directory().unwrap().unwrap();
    overrides.remove();
    // As one that was still writing.
    let late = write(directory.path(), Path::new("m/1/model.pt"), b"late").unwrap_err();
    assert_eq!(late.kind(), ErrorKind::NotFound);
    let refused = overrides.prepare("m", Some(CONFIG), &[file("1/model.pt", "fake\n")]);
    assert!(matches!(refused, Err(Refused::NotNow(_))), "{refused:?}");
    assert_eq!(here.left(), 0);
}

#[test]
fn a_model_in_two_repositories_is_not_guessed_at() {
    let (one, two) = (Here::new(), Here::new());
    let roots = |other: &Here| vec![one.repository.path().to_owned(), other.repository.path().to_owned()];
    let place = || one.place.path().to_owned();
    let refused = Overrides::in_place(roots(&two), false, place()).prepare("m", Some(CONFIG), &[]);
    assert!(matches!(&refused, Err(Refused::Failed(text)) if text.contains("one repository")), "{refused:?}");
    assert!(Overrides::in_place(roots(&one), false, place()).prepare("m", Some(CONFIG), &[]).is_ok());
}

#[test]
fn a_disk_that_is_full_is_said_and_left_as_it_was() {
    let here = Here::new();
    let mount = |arguments: &[&str]| {
        Command::new(arguments[0])
            .args(&arguments[1..])
            .arg(here.place.path())
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs"]) {
        eprintln!("SKIPPED: a full disk: this process may not mount one");
        return;
    }
    let overrides = here.overrides();
    let large = Bytes::from(vec![1; 1 << 20]);
    let refused = overrides.prepare("m", Some(CONFIG), &[("1/model.pt".to_owned(), large)]);
    overrides.remove();
    let left = here.left();
    assert!(mount(&["umount"]));
    let Err(Refused::NoSpace(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("TMPDIR"), "{text}");
    assert_eq!(left, 0);
}
