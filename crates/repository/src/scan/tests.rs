//! Repositories as people leave them on disk.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
};

use tempfile::TempDir;

use super::*;

/// Makes a root with these files; a path that ends in `/` is a directory.
pub(super) fn root(paths: &[&str]) -> TempDir {
    let root = TempDir::new().unwrap();
    for path in paths {
        let (path, content) = path.split_once('=').unwrap_or((path, ""));
        let full = root.path().join(path);
        if path.ends_with('/') {
            fs::create_dir_all(full).unwrap();
        } else {
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, content).unwrap();
        }
    }
    root
}

fn look(root: &TempDir) -> Snapshot {
    scan(&[root.path().to_owned()])
}

pub(super) fn numbers(versions: &[Version]) -> Vec<u64> {
    versions.iter().map(|version| version.get()).collect()
}

/// The problems, without the directory of the test.
pub(super) fn problems(root: &TempDir, snapshot: &Snapshot) -> Vec<String> {
    let prefix = format!("{}/", root.path().display());
    snapshot.problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
}

#[test]
fn models_and_versions_are_found() {
    let root = root(&["digits/1/model.pt", "digits/2/model.pt", "digits/10/model.pt", "add/7/model.pt"]);
    let snapshot = look(&root);
    assert_eq!(snapshot.problems, []);
    assert_eq!(snapshot.models.keys().collect::<Vec<_>>(), ["add", "digits"]);
    let digits = &snapshot.models["digits"];
    assert_eq!(digits.dir, root.path().join("digits"));
    assert_eq!(digits.versions.keys().map(|version| version.get()).collect::<Vec<_>>(), [1, 2, 10]);
    assert_eq!(digits.versions[&Version::new(10).unwrap()].dir, root.path().join("digits/10"));
    assert_eq!(numbers(&digits.wanted), [10]);
    assert_eq!(snapshot, look(&root));
}

#[test]
fn what_is_no_model_is_silently_fine_where_it_is_usual() {
    let root = root(&[
        "README.md",
        ".git/HEAD",
        "lost+found/",
        "m/1/model.pt",
        "m/labels.txt",
        "m/warmup/x",
        "m/.cache/y",
        "m/examples/",
        "m/3",
    ]);
    let snapshot = look(&root);
    assert_eq!(snapshot.problems, []);
    assert_eq!(snapshot.models.len(), 1);
    assert_eq!(numbers(&snapshot.models["m"].wanted), [1]);
}

#[test]
fn what_looks_like_a_version_and_is_none_is_told() {
    let root =
        root(&["m/1/", "m/003/", "m/3.tmp/", "m/0/", "m/99999999999999999999/", "m/18446744073709551615/"]);
    let snapshot = look(&root);
    assert_eq!(
        problems(&root, &snapshot),
        [
            "m/0: ignored: there is no version 0; versions are numbered from 1",
            "m/003: ignored: the name of a version has no leading zero; rename it to 3",
            "m/3.tmp: ignored: the name of a version is a number and nothing else; rename it when \
             it is complete",
            "m/99999999999999999999: ignored: the number is too large for a version; the largest is \
             18446744073709551615",
        ]
    );
    assert_eq!(snapshot.models["m"].versions.len(), 2);
    assert_eq!(numbers(&snapshot.models["m"].wanted), [u64::MAX]);
}

#[test]
fn a_directory_that_is_no_model_is_told() {
    let root = root(&["empty/", "flat/net.pt"]);
    let snapshot = look(&root);
    assert!(snapshot.models.is_empty());
    let problems = problems(&root, &snapshot);
    assert_eq!(
        problems,
        [
            "empty: ignored: it holds neither a version nor a configuration; a model lies in \
             empty/1/model.pt",
            "flat: ignored: it holds no version; move net.pt to flat/1/model.pt",
        ]
    );
}

#[test]
fn a_configuration_alone_makes_a_model() {
    let snapshot = look(&root(&["m/config.yaml"]));
    assert_eq!(snapshot.problems, []);
    assert!(snapshot.models["m"].config.is_ok());
    assert!(snapshot.models["m"].versions.is_empty());
}

#[test]
fn a_bad_configuration_wants_nothing_and_hides_no_other_model() {
    let snapshot = look(&root(&["bad/config.yaml=max_batch_size: many", "bad/1/", "good/1/"]));
    assert!(snapshot.models["bad"].config.is_err());
    assert_eq!(snapshot.models["bad"].versions.len(), 1);
    assert_eq!(snapshot.models["bad"].wanted, []);
    assert_eq!(numbers(&snapshot.models["good"].wanted), [1]);
}

#[test]
fn the_policy_chooses_and_what_is_absent_is_told() {
    let root = root(&["m/config.yaml=versions: {specific: [9, 2, 5]}", "m/1/", "m/2/", "m/3/"]);
    let model = &look(&root).models["m"];
    assert_eq!(numbers(&model.wanted), [2]);
    assert_eq!(numbers(&model.missing), [5, 9]);
}

#[test]
fn a_name_in_two_roots_is_unusable_in_both() {
    let (one, two) = (root(&["m/1/", "a/1/"]), root(&["m/2/", "b/1/"]));
    let snapshot = scan(&[one.path().to_owned(), two.path().to_owned()]);
    assert_eq!(snapshot.models.keys().collect::<Vec<_>>(), ["a", "b", "m"]);
    let model = &snapshot.models["m"];
    let text = model.config.as_ref().expect_err("duplicate").to_string();
    assert!(text.starts_with("model appears in two or more repositories: "), "{text}");
    for root in [&one, &two] {
        assert!(text.contains(&root.path().join("m").display().to_string()), "{text}");
    }
    assert_eq!(model.wanted, []);
}

#[test]
fn a_directory_that_is_no_model_does_not_stand_in_the_way_of_one() {
    let (one, two) = (root(&["m/"]), root(&["m/1/"]));
    let snapshot = scan(&[one.path().to_owned(), two.path().to_owned()]);
    assert_eq!(numbers(&snapshot.models["m"].wanted), [1]);
    assert_eq!(snapshot.problems.len(), 1);
}

#[test]
fn the_same_root_twice_is_one() {
    let root = root(&["m/1/"]);
    let other = TempDir::new().unwrap();
    let link = other.path().join("link");
    symlink(root.path(), &link).unwrap();
    let mut scanner = Scanner::new(vec![root.path().to_owned(), link.clone()], false);
    let snapshot = scanner.look();
    assert!(snapshot.models["m"].config.is_ok());
    assert_eq!(snapshot.problems[0].path, link);
    assert!(!scanner.roots_changed(), "nobody has to look again for it");
}

#[test]
fn a_root_that_cannot_be_read_is_named_and_the_others_are_read() {
    let good = root(&["m/1/", "file"]);
    let (absent, file) = (good.path().join("absent"), good.path().join("file"));
    let snapshot = scan(&[absent.clone(), file.clone(), good.path().to_owned()]);
    assert_eq!(snapshot.models.len(), 1);
    assert_eq!(snapshot.problems.iter().map(|problem| &problem.path).collect::<Vec<_>>(), [&absent, &file]);
    assert!(snapshot.problems[0].to_string().contains("cannot be read as a model repository"));
}

#[test]
fn symlinks_are_followed() {
    let data = root(&["v5/model.pt", "net/1/model.pt"]);
    let root = root(&["m/1/"]);
    symlink(data.path().join("v5"), root.path().join("m/5")).unwrap();
    symlink(data.path().join("net"), root.path().join("linked")).unwrap();
    symlink("nowhere", root.path().join("m/6")).unwrap();
    symlink("nowhere", root.path().join("gone")).unwrap();
    let snapshot = look(&root);
    assert_eq!(numbers(&snapshot.models["m"].wanted), [5]);
    assert_eq!(snapshot.models["m"].versions.len(), 2);
    assert_eq!(numbers(&snapshot.models["linked"].wanted), [1]);
    let problems = problems(&root, &snapshot);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].starts_with("gone: ignored") && problems[1].starts_with("m/6: ignored"),
        "{problems:?}"
    );
}

#[test]
fn a_name_that_is_no_text_is_a_problem() {
    let root = root(&["m/1/"]);
    fs::create_dir_all(root.path().join(OsStr::from_bytes(b"bad\xff/1"))).unwrap();
    fs::create_dir_all(root.path().join("m").join(OsStr::from_bytes(b"2\xff"))).unwrap();
    let snapshot = look(&root);
    assert_eq!(snapshot.models.len(), 1);
    assert_eq!(snapshot.problems.len(), 2);
    assert!(snapshot.problems[0].to_string().contains("must be UTF-8 text"), "{}", snapshot.problems[0]);
}

#[test]
fn ten_thousand_odd_entries_are_a_few_lines() {
    let root = root(&["m/1/"]);
    for number in 0..10_000 {
        fs::create_dir(root.path().join(format!("junk{number}"))).unwrap();
        fs::create_dir(root.path().join(format!("m/2.tmp{number}"))).unwrap();
    }
    let snapshot = look(&root);
    assert_eq!(numbers(&snapshot.models["m"].wanted), [1]);
    let problems = problems(&root, &snapshot);
    assert_eq!(problems.len(), 42);
    for line in [&problems[20], &problems[41]] {
        assert!(line.ends_with(": 9980 more of its entries are ignored for reasons such as these"), "{line}");
    }
}

#[test]
fn what_tools_leave_behind_while_they_copy_is_silent() {
    let root = root(&[
        "m/1/model.pt",
        "m/.3.partial/model.pt",
        "m/.3.X7aQ1z/model.pt",
        "m/..data/model.pt",
        "m/..2026_11_20_10_00_00.1/model.pt",
        "m/.config.yaml.swp",
        "m/config.yaml~",
        "m/4913",
        ".staging/1/model.pt",
        "..data/x/1/model.pt",
    ]);
    let snapshot = look(&root);
    assert_eq!(snapshot.problems, []);
    assert_eq!(snapshot.models.keys().collect::<Vec<_>>(), ["m"]);
    assert_eq!(numbers(&snapshot.models["m"].wanted), [1]);
    let staged = look(&self::root(&["m/1/", "m/3.tmp/"]));
    assert!(staged.problems[0].message.ends_with("rename it when it is complete"));
}
