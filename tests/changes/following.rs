//! The server follows the directory: each way to publish a version, to roll back and to remove.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use tonic::Code;

use super::{Site, constant, point, publish, replace};
use crate::harness::{Repo, refused};

#[tokio::test]
async fn new_versions_take_over_and_nobody_sees_the_server_unready() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(11))).await;
    let watch = site.watch("m");
    for version in 2..5 {
        let number = 10 + u32::try_from(version).unwrap();
        publish(site.repo.path(), "m", version, &constant(number));
        site.serves("m", (version, number)).await;
    }
    publish(site.repo.path(), "m", 5, b"no model at all");
    site.gives_reason("m", "model.pt").await;
    site.serves("m", (4, 14)).await;
    fs::remove_dir_all(site.path("m/4")).unwrap();
    site.serves("m", (3, 13)).await;
    watch.end().await;
    // While it still answers what it has accepted, new requests are told so.
    site.settled().await;
    refused(site.ask("m", "4").await, Code::NotFound, &["'m' version 4 is not found"]);
}

#[tokio::test]
async fn a_link_that_points_back_at_older_weights_is_a_roll_back() {
    let store = Repo::new();
    for (name, number) in [("old", 1), ("new", 2)] {
        store.file(&format!("{name}/model.pt"), constant(number));
    }
    let (old, new) = (store.path().join("old"), store.path().join("new"));
    let site = Site::start(|repo| {
        fs::create_dir_all(repo.path().join("by_directory")).unwrap();
        symlink(&old, repo.path().join("by_directory/7")).unwrap();
        fs::create_dir_all(repo.path().join("by_file/7")).unwrap();
        symlink(old.join("model.pt"), repo.path().join("by_file/7/model.pt")).unwrap();
    })
    .await;
    for (target, number) in [(&new, 2), (&old, 1), (&new, 2)] {
        point(&site.path("by_directory/7"), target);
        point(&site.path("by_file/7/model.pt"), &target.join("model.pt"));
        site.serves("by_directory", (7, number)).await;
        site.serves("by_file", (7, number)).await;
    }
    // Older files copied over the new ones are a roll-back too.
    fs::remove_file(site.path("by_file/7/model.pt")).unwrap();
    fs::copy(old.join("model.pt"), site.path("by_file/7/model.pt")).unwrap();
    site.serves("by_file", (7, 1)).await;
}

#[tokio::test]
async fn what_changes_no_bytes_loads_nothing() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let file = site.path("m/1/model.pt");
    OpenOptions::new().append(true).open(&file).unwrap().set_modified(SystemTime::now()).unwrap();
    site.settled().await;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    site.settled().await;
    replace(&file, constant(1));
    site.settled().await;
    fs::hard_link(&file, site.path("m/1/the-same.pt")).unwrap();
    for noise in ["m/.config.yaml.swp", "m/4913", "m/1/4913", "m/1/.model.pt.x7Qa2B", "m/README.md", ".git"] {
        site.repo.file(noise, "noise");
    }
    fs::remove_file(site.path("m/4913")).unwrap();
    site.settled().await;
    // The first version's bytes under another number are another version, and loaded.
    fs::rename(site.path("m/1"), site.path("m/2")).unwrap();
    site.serves("m", (2, 1)).await;
    assert_eq!(site.loads("m"), 2, "{}", site.server.log());
}

#[tokio::test]
async fn a_changed_file_inside_a_version_is_a_change_of_that_version() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let watch = site.watch("m");
    fs::write(site.path("m/1/model.pt"), constant(2)).unwrap();
    site.serves("m", (1, 2)).await;
    replace(&site.path("m/1/model.pt"), constant(3));
    site.serves("m", (1, 3)).await;
    fs::remove_file(site.path("m/1/model.pt")).unwrap();
    // The version is still there, so what it held serves on.
    site.gives_reason("m", "model.pt").await;
    site.serves("m", (1, 3)).await;
    site.repo.file("m/1/model.pt", constant(4));
    site.serves("m", (1, 4)).await;
    watch.end().await;
}

#[tokio::test]
async fn a_copy_is_served_when_it_is_complete() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let bytes = constant(2);
    let path = site.repo.file("m/2/model.pt", "");
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    for piece in bytes[..bytes.len() - 4].chunks(bytes.len() / 3) {
        file.write_all(piece).unwrap();
        site.settled().await;
        assert_eq!(site.ask("m", "").await.unwrap(), (1, 1));
    }
    assert_eq!(site.ready_versions("m").await, [1]);
    for byte in &bytes[bytes.len() - 4..] {
        file.write_all(&[*byte]).unwrap();
    }
    site.serves("m", (2, 2)).await;
    assert_eq!(site.loads("m"), 2);
}

#[tokio::test]
async fn staging_directories_are_no_versions_until_they_are_renamed() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    for staging in ["2.tmp", ".2.partial", "2.partial", "2~", ".2.Xa3dE1", "v2"] {
        site.repo.file(&format!("m/{staging}/model.pt"), constant(2));
    }
    site.settled().await;
    assert_eq!((site.ready_versions("m").await, site.loads("m")), (vec![1], 1));
    site.server.wait_for("rename it when it is complete");
    fs::rename(site.path("m/2.tmp"), site.path("m/2")).unwrap();
    site.serves("m", (2, 2)).await;
}

#[tokio::test]
async fn with_a_manifest_a_version_is_complete_when_every_digest_matches() {
    let site = Site::start(|repo| publish(repo.path(), "m", 1, &constant(1))).await;
    let digest =
        |bytes: &[u8]| -> String { Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    let manifest = |extra: &[u8]| {
        format!("sha256:\n  model.pt: {}\n  extra.bin: {}\n", digest(&constant(2)), digest(extra))
    };
    site.repo.file("m/2/manifest.yaml", manifest(b"extra"));
    site.repo.file("m/2/model.pt", constant(2));
    site.gives_reason("m", "extra.bin").await;
    site.repo.file("m/2/extra.bin", "other");
    site.gives_reason("m", "SHA-256").await;
    site.settled().await;
    assert_eq!(site.ask("m", "").await.unwrap(), (1, 1));
    replace(&site.path("m/2/extra.bin"), "extra");
    site.serves("m", (2, 2)).await;
    // Another file that it lists is another content.
    replace(&site.path("m/2/manifest.yaml"), manifest(b"more"));
    site.gives_reason("m", "SHA-256").await;
    site.serves("m", (2, 2)).await;
}

#[tokio::test]
async fn what_is_removed_is_not_served_any_more() {
    let site = Site::start(|repo| {
        publish(repo.path(), "m", 1, &constant(1));
        publish(repo.path(), "m", 2, &constant(2));
    })
    .await;
    fs::remove_dir_all(site.path("m/2")).unwrap();
    site.serves("m", (1, 1)).await;
    fs::remove_dir_all(site.path("m")).unwrap();
    site.has_ready("m", &[]).await;
    site.settled().await;
    refused(site.ask("m", "").await, Code::NotFound, &["unknown model: 'm' is not found"]);
    assert!(site.rows("m").await.is_empty());
    publish(site.repo.path(), "m", 1, &constant(5));
    site.serves("m", (1, 5)).await;
}

#[tokio::test]
async fn every_policy_is_followed() {
    let site = Site::start(|repo| {
        for (model, config) in [
            ("two", "versions: {latest: 2}"),
            ("all", "versions: all"),
            ("some", "versions: {specific: [1, 3]}"),
        ] {
            repo.file(&format!("{model}/config.yaml"), config);
            publish(repo.path(), model, 1, &constant(1));
            publish(repo.path(), model, 2, &constant(2));
        }
    })
    .await;
    assert_eq!(site.ready_versions("some").await, [1]);
    for model in ["two", "all", "some"] {
        publish(site.repo.path(), model, 3, &constant(3));
        site.serves(model, (3, 3)).await;
    }
    site.settled().await;
    assert_eq!(site.ready_versions("two").await, [2, 3]);
    assert_eq!(site.ready_versions("all").await, [1, 2, 3]);
    assert_eq!(site.ready_versions("some").await, [1, 3]);
    for model in ["two", "all", "some"] {
        fs::remove_dir_all(site.path(model).join("3")).unwrap();
    }
    site.has_ready("two", &[1, 2]).await;
    site.has_ready("all", &[1, 2]).await;
    site.has_ready("some", &[1]).await;
}

/// Lays out what a swap brings: a model with these versions, all of them served.
fn lay_out(root: &Path, dir: &str, versions: &[u64]) {
    fs::create_dir_all(root.join(dir).join("m")).expect("a directory");
    fs::write(root.join(dir).join("m/config.yaml"), "versions: all\n").expect("a configuration");
    for version in versions {
        publish(&root.join(dir), "m", *version, &constant(u32::try_from(*version).expect("small")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_versions_of_a_swapped_directory_appear_together() {
    let site = Site::start(|repo| {
        lay_out(repo.path(), "..2026_11_20", &[1, 2]);
        symlink("..2026_11_20", repo.path().join("..data")).unwrap();
        symlink("..data/m", repo.path().join("m")).unwrap();
    })
    .await;
    let site = Arc::new(site);
    let (watch, stop) = (site.watch("m"), Arc::new(AtomicBool::new(false)));
    let sets = {
        let (site, stop) = (Arc::clone(&site), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut sets = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                sets.insert(site.ready_versions("m").await);
            }
            sets
        })
    };
    lay_out(site.repo.path(), "..2026_11_21", &[2, 3, 4]);
    point(&site.path("..data"), Path::new("..2026_11_21"));
    site.serves("m", (4, 4)).await;
    fs::remove_dir_all(site.path("..2026_11_20")).unwrap();
    site.settled().await;
    stop.store(true, Ordering::Relaxed);
    assert_eq!(sets.await.unwrap(), BTreeSet::from([vec![1, 2], vec![2, 3, 4]]));
    watch.end().await;
    assert_eq!(site.loads("m"), 4, "version 2 has the same bytes");
}
