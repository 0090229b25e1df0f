//! Repositories that are replaced, go away and come back, or claim the same model.

use std::{fs, process::Command};

use tonic::Code;

use super::{Site, constant, point, publish, replace};
use crate::harness::{Repo, Server, refused, sconce};

/// Runs a command where so many directories can be watched, and no more.
fn limited(watches: usize) -> Command {
    let limit = format!("echo {watches} > /proc/sys/user/max_inotify_watches && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", &limit, "sh"]);
    for (name, _) in sconce().get_envs() {
        command.env_remove(name);
    }
    command
}

#[tokio::test]
async fn where_inotify_is_used_up_the_repository_is_looked_at_now_and_then() {
    if !limited(2).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: the limits of inotify: no user namespace can be made here");
        return;
    }
    let repo = Repo::new();
    publish(repo.path(), "m", 1, &constant(1));
    publish(repo.path(), "fence", 1, &constant(1));
    let mut command = limited(2);
    command.arg(sconce().get_program()).arg("serve").arg("--model-repository").arg(repo.path());
    command.args(["--grpc-address", "127.0.0.1:0", "--metrics-address", "off"]);
    let server = Server::launch(&mut command);
    server.wait_for("ready, serving");
    server.wait_for("fs.inotify.max_user_watches, is used up");
    let site = Site::new(repo, server).await;
    let watch = site.watch("m");
    publish(site.repo.path(), "m", 2, &constant(2));
    site.serves("m", (2, 2)).await;
    watch.end().await;
}

#[tokio::test]
async fn a_repository_that_is_replaced_is_the_new_one() {
    let site = Site::start(|repo| {
        publish(repo.path(), "stays", 1, &constant(1));
        publish(repo.path(), "goes", 1, &constant(1));
    })
    .await;
    let watch = site.watch("stays");
    let aside = Repo::new();
    for (model, version) in [("stays", 2), ("comes", 1), ("fence", 1)] {
        publish(&aside.path().join("new"), model, version, &constant(2));
    }
    fs::rename(site.repo.path(), aside.path().join("old")).unwrap();
    fs::rename(aside.path().join("new"), site.repo.path()).unwrap();
    site.serves("stays", (2, 2)).await;
    site.serves("comes", (1, 2)).await;
    site.has_ready("goes", &[]).await;
    // It is the new directory that is followed, not the one that was moved away.
    publish(&aside.path().join("old"), "stays", 3, &constant(3));
    publish(site.repo.path(), "stays", 4, &constant(4));
    site.serves("stays", (4, 4)).await;
    site.settled().await;
    assert_eq!(site.ready_versions("stays").await, [4]);
    watch.end().await;
}

#[tokio::test]
async fn a_repository_that_comes_back_in_time_was_never_missed() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let (watch, aside) = (site.watch("m"), Repo::new());
    fs::rename(site.repo.path(), aside.path().join("away")).unwrap();
    site.server.wait_for("cannot be read as a model repository");
    // A volume that is not mounted leaves its mount point, which is empty.
    fs::create_dir(site.repo.path()).unwrap();
    site.server.wait_for("is empty and not the directory that held models before");
    assert_eq!(site.ask("m", "").await.unwrap(), (1, 1));
    fs::remove_dir(site.repo.path()).unwrap();
    fs::rename(aside.path().join("away"), site.repo.path()).unwrap();
    site.settled().await;
    assert_eq!(site.loads("m"), 1, "{}", site.server.log());
    publish(site.repo.path(), "m", 2, &constant(2));
    site.serves("m", (2, 2)).await;
    watch.end().await;
}

#[tokio::test]
async fn a_model_that_turns_up_in_a_second_repository_serves_on_from_the_first() {
    let second = Repo::new();
    let arguments = ["--model-repository", second.path().to_str().unwrap()];
    let site = Site::start_with(&arguments, |repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let watch = site.watch("m");
    publish(second.path(), "m", 2, &constant(2));
    publish(second.path(), "other", 2, &constant(3));
    site.server.wait_for("model appears in two or more repositories");
    site.serves("other", (2, 3)).await;
    site.settled().await;
    assert_eq!((site.ask("m", "").await.unwrap(), site.loads("m")), ((1, 1), 1));
    refused(site.ask("m", "2").await, Code::NotFound, &["version 2"]);
    fs::remove_dir_all(second.path().join("m")).unwrap();
    publish(site.repo.path(), "m", 3, &constant(4));
    site.serves("m", (3, 4)).await;
    watch.end().await;
}

#[tokio::test]
async fn a_repository_that_stays_away_is_unloaded_and_comes_back() {
    let arguments = ["--missing-repository-timeout", "500ms"];
    let site = Site::start_with(&arguments, |repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let aside = Repo::new();
    fs::rename(site.repo.path(), aside.path().join("away")).unwrap();
    site.has_ready("m", &[]).await;
    refused(site.ask("m", "").await, Code::NotFound, &["unknown model"]);
    fs::rename(aside.path().join("away"), site.repo.path()).unwrap();
    site.serves("m", (1, 1)).await;
    site.settled().await;
}

#[tokio::test]
async fn a_repository_that_is_polled_is_followed_too() {
    let arguments = ["--model-control-mode", "poll", "--repository-poll-interval", "100ms"];
    let site = Site::start_with(&arguments, |repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let (watch, store) = (site.watch("m"), Repo::new());
    let stored = store.file("2/model.pt", constant(3));
    publish(site.repo.path(), "m", 2, &constant(2));
    site.serves("m", (2, 2)).await;
    // What no watch of the repository could tell: what lies behind a link.
    fs::remove_dir_all(site.path("m/2")).unwrap();
    point(&site.path("m/2"), &store.path().join("2"));
    site.serves("m", (2, 3)).await;
    replace(&stored, constant(4));
    site.serves("m", (2, 4)).await;
    fs::remove_file(site.path("m/2")).unwrap();
    site.serves("m", (1, 1)).await;
    watch.end().await;
}
