//! What does not belong into a repository: names, files and links that nobody should make, and many of them.

#[cfg(feature = "torch")]
use std::os::unix::{fs::symlink, net::UnixListener};
use std::{fs, process::Command};

use tonic::Code;

use super::{Site, constant, publish};
use crate::harness::refused;

#[tokio::test]
async fn names_with_odd_characters_are_names() {
    let long = "x".repeat(255);
    let names = [
        "a model",
        "модель-模型",
        "it's \"quoted\"",
        "two\nlines",
        "\u{1b}[31mred",
        "-rf",
        "a;b|c&d",
        "..a",
        &long,
    ];
    let site = Site::start(|_| {}).await;
    for name in names {
        publish(site.repo.path(), name, 1, &constant(1));
    }
    for name in names {
        if name.starts_with('.') {
            continue;
        }
        site.serves(name, (1, 1)).await;
    }
    publish(site.repo.path(), "two\nlines", 2, b"broken");
    site.gives_reason("two\nlines", "model.pt").await;
    site.settled().await;
    refused(site.ask("..a", "").await, Code::NotFound, &["unknown model"]);
    for name in names {
        fs::remove_dir_all(site.path(name)).unwrap();
    }
    for name in names {
        site.has_ready(name, &[]).await;
    }
}

#[tokio::test]
async fn no_name_breaks_a_line_of_the_log() {
    let name = "two\nlines\u{1b}[31m";
    let at_start = "at\nstart\u{1b}[31m";
    let site = Site::start(|repo| publish(repo.path(), at_start, 1, &constant(1))).await;
    site.serves(at_start, (1, 1)).await;
    publish(site.repo.path(), name, 1, &constant(1));
    site.serves(name, (1, 1)).await;
    publish(site.repo.path(), name, 2, b"broken");
    site.gives_reason(name, "model.pt").await;
    site.repo.file(&format!("{name}/config.yaml"), "nonsense: 1");
    site.gives_reason(name, "nonsense").await;
    fs::remove_dir_all(site.path(name)).unwrap();
    site.has_ready(name, &[]).await;
    for line in site.server.log().lines() {
        assert!(line.starts_with("20") && !line.contains('\u{1b}'), "a name in a line of the log: {line:?}");
    }
}

#[tokio::test]
async fn only_plain_positive_numbers_are_versions() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let twenty = "99999999999999999999";
    for name in ["0", "01", "-1", "+2", "2.0", " 2", "2 ", "٢", twenty] {
        site.repo.file(&format!("m/{name}/model.pt"), constant(2));
    }
    site.settled().await;
    assert_eq!((site.ready_versions("m").await, site.loads("m")), (vec![1], 1));
    for told in ["there is no version 0", "rename it to 1", "the number is too large"] {
        site.server.wait_for(told);
    }
    publish(site.repo.path(), "m", u64::MAX, &constant(3));
    site.serves("m", (u64::MAX, 3)).await;
}

// The scripted backend reads whatever it is given.
#[cfg(feature = "torch")]
#[tokio::test]
async fn what_is_no_file_is_no_model_and_holds_nothing_up() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let watch = site.watch("m");
    for version in 2..=9 {
        fs::create_dir(site.path(&format!("m/{version}"))).unwrap();
    }
    let fifo = Command::new("mkfifo").arg(site.path("m/2/model.pt")).status().unwrap();
    assert!(fifo.success());
    fs::create_dir(site.path("m/3/model.pt")).unwrap();
    let _socket = UnixListener::bind(site.path("m/4/model.pt")).unwrap();
    symlink("/dev/zero", site.path("m/5/model.pt")).unwrap();
    symlink("model.pt", site.path("m/6/model.pt")).unwrap();
    symlink("nowhere", site.path("m/7/model.pt")).unwrap();
    site.repo.file("m/8/model.pt", "");
    // A directory without anything is 9; a version that leads in a circle is 10, and so is a model.
    symlink("10", site.path("m/10")).unwrap();
    symlink("circle", site.path("circle")).unwrap();
    symlink("..", site.path("m/11")).unwrap();
    // A configuration and a manifest that never end.
    let endless = site.path("endless");
    fs::create_dir(&endless).unwrap();
    symlink("/dev/zero", endless.join("config.yaml")).unwrap();
    publish(site.repo.path(), "manifest", 1, &constant(1));
    symlink("/dev/zero", site.path("manifest/1/manifest.yaml")).unwrap();

    site.settled().await;
    assert_eq!(site.ready_versions("m").await, [1]);
    let rows = site.rows("m").await;
    for version in 2..=9u64 {
        let row = rows.iter().find(|row| row.version == version.to_string());
        let row = row.unwrap_or_else(|| panic!("version {version} is missing in {rows:?}"));
        assert!(row.state == "UNAVAILABLE" && row.reason.contains("model.pt"), "{row:?}");
    }
    site.gives_reason("endless", "config.yaml").await;
    watch.end().await;
    publish(site.repo.path(), "m", 12, &constant(12));
    site.serves("m", (12, 12)).await;
}

#[tokio::test]
async fn ten_thousand_files_at_once_are_borne_and_said_in_few_lines() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let watch = site.watch("m");
    for number in 0..2500 {
        fs::write(site.path(&format!("file-{number}")), "x").unwrap();
        fs::write(site.path(&format!("m/{number}.txt")), "x").unwrap();
        fs::write(site.path(&format!("m/1/{number}.bin")), "x").unwrap();
        fs::create_dir(site.path(&format!("m/{number}.tmp"))).unwrap();
    }
    publish(site.repo.path(), "m", 2, &constant(2));
    site.serves("m", (2, 2)).await;
    site.settled().await;
    watch.end().await;
    assert_eq!(site.loads("m"), 2);
    let lines = site.server.log().lines().count();
    assert!(lines < 300, "{lines} lines");
}

#[tokio::test]
async fn a_directory_without_permission_has_not_been_removed() {
    let user = Command::new("id").arg("-u").output().unwrap();
    if user.stdout == b"0\n" {
        eprintln!("SKIPPED: a directory without permission: root may read everything");
        return;
    }
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let chmod = |mode: &str, path: &str| {
        assert!(Command::new("chmod").arg(mode).arg(site.path(path)).status().unwrap().success());
    };
    let watch = site.watch("m");
    chmod("000", "m");
    site.settled().await;
    assert_eq!(site.ask("m", "").await.unwrap(), (1, 1));
    chmod("755", "m");
    publish(site.repo.path(), "m", 2, &constant(2));
    site.serves("m", (2, 2)).await;
    watch.end().await;
}
