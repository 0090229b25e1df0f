//! What is broken on disk: it says why, and everything else is served.
#![cfg(feature = "torch")]

use std::{fs, path::Path};

use sconce_proto::inference::{
    ModelReadyRequest, ModelReadyResponse, RepositoryIndexRequest, ServerReadyRequest,
};
use tonic::Code;

use crate::{
    harness::{Repo, Server, refused, request},
    models::{floats, index, unavailable, values},
};

const IDENTITY: &str = "def forward(self, x):\n    return x\n";

/// A good model beside which all others are broken.
fn repository() -> Repo {
    let repo = Repo::new();
    repo.script("good/1/model.pt", IDENTITY, &[]);
    repo
}

async fn good_serves(server: &Server) {
    let response = server.infer(request("good", &[floats("x", &[2], &[1.0, 2.0])])).await.expect("an answer");
    assert_eq!(values(&response, "OUTPUT__0", &[2]), [1.0, 2.0]);
    let ready = server.client().await.server_ready(ServerReadyRequest {}).await.expect("an answer");
    assert!(ready.into_inner().ready);
    assert_eq!(server.get("/health/ready"), (200, "ready\n".to_owned()));
}

/// A model that does not serve says so everywhere, with a reason that has these parts.
async fn is_broken(server: &Server, model: &str, parts: &[&str]) {
    let rows = index(server, model).await;
    unavailable(&rows, parts);
    let asked = ModelReadyRequest { name: model.to_owned(), ..Default::default() };
    let ready = server.client().await.model_ready(asked).await.expect("an answer");
    assert_eq!(ready.into_inner(), ModelReadyResponse { ready: false }, "{model}");
    // The index adds which attempt it was, and when the next one comes.
    let reason = rows[0].reason.split("; attempt ").next().expect("a part");
    let told = server.log().lines().any(|line| line.contains(reason));
    assert!(told, "{reason:?} is not in the log:\n{}", server.log());

    let asked = || request(model, &[floats("x", &[1], &[1.0])]);
    let expected = format!("unknown model: '{model}' has no available versions: ");
    refused(server.infer(asked()).await, Code::NotFound, &[&[&*expected, reason][..], parts].concat());
    if !rows[0].version.is_empty() {
        let mut versioned = asked();
        versioned.model_version.clone_from(&rows[0].version);
        let expected = format!("'{model}' version {} is not at ready state: ", rows[0].version);
        refused(server.infer(versioned).await, Code::Unavailable, &[&expected, reason]);
    }
}

/// Numbers without a pattern, always the same.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..count).map(|_| next()).collect()
}

/// A zip of files that are stored as they are.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut body, mut list) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let offset = u32::try_from(body.len()).expect("small").to_le_bytes();
        let size = u32::try_from(content.len()).expect("small").to_le_bytes();
        let length = u16::try_from(name.len()).expect("small").to_le_bytes();
        // Version 2.0, no flags, stored, no time, no date; then the checksum and both sizes.
        let fixed = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &crc32(content).to_le_bytes()[..],
            &size,
            &size,
            &length,
            &[0, 0],
        ];
        list.extend([&b"PK\x01\x02\x14\0"[..], &fixed.concat(), &[0; 10], &offset, name.as_bytes()].concat());
        body.extend([&b"PK\x03\x04"[..], &fixed.concat(), name.as_bytes(), content].concat());
    }
    let count = u16::try_from(files.len()).expect("small").to_le_bytes();
    let [size, offset] =
        [list.len(), body.len()].map(|length| u32::try_from(length).expect("small").to_le_bytes());
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size, &offset, &[0, 0]].concat();
    [body, list, end].concat()
}

fn crc32(data: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    };
    !data.iter().fold(u32::MAX, step)
}

#[tokio::test]
async fn a_file_that_is_no_whole_model_is_told_and_the_others_serve() {
    let repo = repository();
    let whole = fs::read(repo.path().join("good/1/model.pt")).unwrap();
    repo.file("empty/1/model.pt", "");
    repo.file("noise/1/model.pt", noise(5000));
    repo.file("text/1/model.pt", "to be copied\n");
    repo.file("pickle/1/model.pt", b"\x80\x02}q\0.");
    repo.file("zip/1/model.pt", zip(&[("notes/readme.txt", b"hello")]));
    repo.file(
        "weights/1/model.pt",
        zip(&[("m/data.pkl", b"\x80\x02}q\0."), ("m/data/0", &[0; 16]), ("m/version", b"3\n")]),
    );
    fs::create_dir_all(repo.path().join("directory/1/model.pt")).unwrap();
    fs::create_dir_all(repo.path().join("missing/1")).unwrap();
    repo.file("other_name/1/net.pt", &whole);
    let server = Server::start(repo.path());
    good_serves(&server).await;
    for (model, part) in [
        ("empty", "is empty"),
        ("noise", "is a file of an unknown format"),
        ("text", "is a text file"),
        ("pickle", "is a Python pickle"),
        ("zip", "is a zip but not a TorchScript archive"),
        ("weights", "was written by torch.save"),
        ("directory", "is a directory"),
        ("missing", "does not exist"),
        ("other_name", "net.pt does: rename that file"),
    ] {
        is_broken(&server, model, &[&format!("{model}/1/model.pt"), part]).await;
    }
    good_serves(&server).await;
    server.wait_for("ready, serving 1 models: good; 9 cannot be served");
}

#[tokio::test]
async fn a_model_that_was_cut_anywhere_is_told_as_incomplete() {
    let repo = repository();
    let whole = fs::read(repo.path().join("good/1/model.pt")).unwrap();
    let cuts =
        [1, 3, 4, 30, whole.len() / 4, whole.len() / 2, whole.len() - 60, whole.len() - 22, whole.len() - 1];
    for cut in cuts {
        repo.file(&format!("cut{cut}/1/model.pt"), &whole[..cut]);
    }
    let server = Server::start(repo.path());
    for cut in cuts {
        let parts = [&*format!("cut{cut}/1/model.pt"), "is incomplete", &format!("after {cut} bytes")];
        is_broken(&server, &format!("cut{cut}"), &parts).await;
    }
    good_serves(&server).await;
}

#[tokio::test]
async fn an_archive_that_libtorch_cannot_read_is_told_in_one_line() {
    let repo = repository();
    let code: [(&str, &[u8]); 4] = [
        ("m/data.pkl", b"no pickle"),
        ("m/constants.pkl", b"no pickle"),
        ("m/code/__torch__.py", b"def no python"),
        ("m/version", b"3\n"),
    ];
    repo.file("nonsense/1/model.pt", zip(&code));
    // The bytes in the middle are changed, the list of contents is whole.
    let mut spoiled = fs::read(repo.path().join("good/1/model.pt")).unwrap();
    let at = spoiled.windows(8).position(|bytes| bytes == b"data.pkl").unwrap() + 64;
    spoiled[at..at + 16].fill(0xee);
    repo.file("spoiled/1/model.pt", spoiled);
    let server = Server::start(repo.path());
    good_serves(&server).await;
    is_broken(&server, "nonsense", &["nonsense/1/model.pt", "libtorch cannot load"]).await;
    is_broken(&server, "spoiled", &["spoiled/1/model.pt", "corrupt", "checksum"]).await;
}

#[tokio::test]
async fn a_wrong_config_names_file_and_field_and_the_others_serve() {
    let repo = repository();
    let yaml = |name: &str, text: &[u8]| {
        repo.script(&format!("{name}/1/model.pt"), IDENTITY, &[]);
        repo.file(&format!("{name}/config.yaml"), text);
    };
    yaml("wrong_type", b"threads: 1\nmax_batch_size: many\n");
    yaml("unknown_field", b"inputs:\n- name: x\n  data_type: FP32\n  shape: [1]\n");
    yaml("impossible", b"max_batch_size: 4\n");
    yaml("reshape", b"inputs: [{name: x, dtype: FP32, shape: [4], reshape: [3]}]\n");
    yaml("no_yaml", b"inputs: [\nname");
    yaml("not_text", b"threads: 1\n# \xff\xfe\n");
    yaml("other_name", b"name: another\n");
    yaml("labels", b"outputs: [{name: y, dtype: FP32, shape: [1], labels: nothing.txt}]\n");
    yaml("both", b"threads: 1\n");
    repo.file("both/config.pbtxt", "max_batch_size: 0\n");
    repo.script("misnamed/1/model.pt", IDENTITY, &[]);
    repo.file("misnamed/config.yml", "threads: 1\n");
    repo.script("unreadable/1/model.pt", IDENTITY, &[]);
    fs::create_dir(repo.path().join("unreadable/config.yaml")).unwrap();
    repo.script("dangling/1/model.pt", IDENTITY, &[]);
    std::os::unix::fs::symlink("nowhere", repo.path().join("dangling/config.yaml")).unwrap();
    repo.script("pbtxt/1/model.pt", IDENTITY, &[]);
    repo.file(
        "pbtxt/config.pbtxt",
        "max_batch_size: 4\ninput [ { name: \"x\" data_type: TYPE_FP33 dims: [ 1 ] } ]\n",
    );
    repo.script("other_backend/1/model.pt", IDENTITY, &[]);
    repo.file("other_backend/config.pbtxt", "platform: \"tensorrt_plan\"\n");
    let server = Server::start(repo.path());
    good_serves(&server).await;
    for (model, parts) in [
        ("wrong_type", ["config.yaml:2:", "max_batch_size"]),
        ("unknown_field", ["config.yaml:3:3: inputs[0].data_type", "write `dtype`"]),
        ("impossible", ["config.yaml:1:17: max_batch_size", "`inputs`"]),
        ("reshape", ["config.yaml:1:54: inputs[0].reshape", "[3] cannot be [4]"]),
        ("no_yaml", ["config.yaml:2:", "inputs"]),
        ("not_text", ["config.yaml", "not UTF-8 text (line 2)"]),
        ("other_name", ["config.yaml:1:7: name", "`another`"]),
        ("labels", ["outputs[0].labels", "labels/nothing.txt"]),
        ("both", ["both config.yaml and config.pbtxt", "delete"]),
        ("misnamed", ["config.yml", "rename it to config.yaml"]),
        ("unreadable", ["cannot read", "unreadable/config.yaml"]),
        ("dangling", ["cannot read", "dangling/config.yaml"]),
        ("pbtxt", ["config.pbtxt", "TYPE_FP33"]),
        ("other_backend", ["config.pbtxt: platform", "`tensorrt_plan`"]),
    ] {
        is_broken(&server, model, &[model, parts[0], parts[1]]).await;
    }
    good_serves(&server).await;
}

#[tokio::test]
async fn directories_that_are_no_versions_are_ignored_and_told_once() {
    let repo = Repo::new();
    repo.script("m/3/model.pt", IDENTITY, &[]);
    let names = ["003", "4.tmp", "0", "20260819153000123456", "5_backup"];
    for name in names {
        repo.file(&format!("m/{name}/model.pt"), "not to be read");
    }
    // Everything else in a model's directory is its own affair.
    for name in ["notes", "v7", ".hidden", "-1"] {
        repo.file(&format!("m/{name}/model.pt"), "not to be read");
    }
    repo.file("m/6", "a file");
    repo.script("flat/model.pt", IDENTITY, &[]);
    repo.file(".git/1/model.pt", "");
    repo.file("README.md", "notes");
    fs::create_dir(repo.path().join("nothing")).unwrap();
    let server = Server::start(repo.path());

    let rows = server.client().await.repository_index(RepositoryIndexRequest::default()).await.unwrap();
    let rows = rows.into_inner().models;
    let told: Vec<_> = rows.iter().map(|row| (&*row.name, &*row.version, &*row.state)).collect();
    assert_eq!(told, [("m", "3", "READY")]);
    let log = server.log();
    let ignored = |path: &str| {
        let path = format!("{}: ignored", repo.path().join(path).display());
        log.lines().filter(|line| line.contains(&path)).count()
    };
    for name in names {
        assert_eq!(ignored(&format!("m/{name}")), 1, "{name}:\n{log}");
    }
    assert_eq!([ignored("flat"), ignored("nothing")], [1, 1], "{log}");
    for path in ["m/notes", "m/v7", "m/.hidden", "m/-1", "m/6", ".git", "README.md"] {
        assert_eq!(ignored(path), 0, "{path}:\n{log}");
    }
    for hint in ["rename it to 3", "the largest is 18446744073709551615", "move model.pt to"] {
        assert!(log.contains(hint), "{hint:?} is not in:\n{log}");
    }
}

#[tokio::test]
async fn a_broken_version_holds_back_no_good_one() {
    let repo = Repo::new();
    repo.script("m/1/model.pt", IDENTITY, &[]);
    repo.file("m/2/model.pt", "");
    repo.file("m/config.yaml", "versions: all\n");
    let server = Server::start(repo.path());
    let rows = index(&server, "m").await;
    assert_eq!(rows[0].state, "READY");
    unavailable(&rows[1..], &["m/2/model.pt", "is empty"]);
    let mut asked = request("m", &[floats("x", &[1], &[1.0])]);
    let response = server.infer(asked.clone()).await.unwrap();
    assert_eq!(response.model_version, "1");
    "2".clone_into(&mut asked.model_version);
    refused(
        server.infer(asked).await,
        Code::Unavailable,
        &["'m' version 2 is not at ready state", "is empty"],
    );
}

#[tokio::test]
async fn a_model_directory_without_versions_says_what_it_misses() {
    let repo = repository();
    repo.file("config_only/config.yaml", "threads: 1\n");
    let server = Server::start(repo.path());
    good_serves(&server).await;
    unavailable(&index(&server, "config_only").await, &["config_only has no version directory"]);
    let asked = request("config_only", &[floats("x", &[1], &[1.0])]);
    refused(
        server.infer(asked).await,
        Code::NotFound,
        &["has no available versions", "no version directory"],
    );
    assert!(!Path::new(&repo.path().join("config_only/1")).exists());
}
