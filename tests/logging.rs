//! The log: what is in it, what changes it while the server runs, and that no text of a client breaks it.

use std::{collections::HashMap, io::BufRead, process::Stdio};

use sconce_proto::inference::{
    LogSettingsRequest, RepositoryModelLoadRequest, log_settings_request,
    log_settings_response::setting_value::ParameterChoice as Told,
};
use serde_json::Value;
use tonic::{Code, Status};

use crate::harness::{Repo, Server, fp32, refused, request, sconce};

mod access;
mod inspecting;

use log_settings_request::{SettingValue, setting_value::ParameterChoice as Said};

const EXPLICIT: [&str; 2] = ["--model-control-mode", "explicit"];

/// Changes settings, and returns those of then: info, warning, error, verbose, format.
async fn set(server: &Server, said: &[(&str, Said)]) -> Result<(bool, bool, bool, u32, String), Status> {
    let setting = |(name, said): &(&str, Said)| {
        ((*name).to_owned(), SettingValue { parameter_choice: Some(said.clone()) })
    };
    let request = LogSettingsRequest { settings: said.iter().map(setting).collect() };
    let told = server.client().await.log_settings(request).await?.into_inner().settings;
    let mut told: HashMap<String, Option<Told>> =
        told.into_iter().map(|(name, value)| (name, value.parameter_choice)).collect();
    let mut take = |name: &str| told.remove(name).flatten().unwrap_or_else(|| panic!("no {name}"));
    let switches = ["log_info", "log_warning", "log_error"].map(|name| match take(name) {
        Told::BoolParam(on) => on,
        other => panic!("{name} is {other:?}"),
    });
    let Told::Uint32Param(verbose) = take("log_verbose_level") else { panic!("no number") };
    let Told::StringParam(format) = take("log_format") else { panic!("no text") };
    assert_eq!(take("log_file"), Told::StringParam(String::new()));
    assert!(told.is_empty(), "{told:?}");
    Ok((switches[0], switches[1], switches[2], verbose, format))
}

fn text(text: &str) -> Said {
    Said::StringParam(text.to_owned())
}

async fn load(server: &Server, model: &str) -> Result<(), Status> {
    let request = RepositoryModelLoadRequest { model_name: model.to_owned(), ..Default::default() };
    server.client().await.repository_model_load(request).await.map(drop)
}

/// Models that are served when somebody asks for them.
fn repository() -> Repo {
    let repo = Repo::new();
    for model in ["a", "b", "c", "d", "e"] {
        repo.identity(&format!("{model}/1/model.pt"));
        repo.file(&format!("{model}/config.yaml"), "inputs: [{name: x, dtype: FP32, shape: [2]}]\n");
    }
    repo.file("broken/1/model.pt", "this is no model");
    repo
}

#[tokio::test]
async fn what_is_logged_changes_while_the_server_runs() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &EXPLICIT);
    let all = |verbose, format: &str| (true, true, true, verbose, format.to_owned());
    assert_eq!(set(&server, &[]).await.expect("settings"), all(0, "default"));

    let off = set(&server, &[("log_info", Said::BoolParam(false))]).await.expect("set");
    assert_eq!(off, (false, true, true, 0, "default".to_owned()));
    load(&server, "a").await.expect("loaded");
    load(&server, "broken").await.expect_err("refused");
    server.wait_for("model=broken");
    assert!(!server.log().contains("loaded model=a"), "{}", server.log());
    server.wait_for("log_info false");

    let more = [("log_info", Said::BoolParam(true)), ("log_verbose_level", Said::Uint32Param(1))];
    assert_eq!(set(&server, &more).await.expect("set"), all(1, "default"));
    load(&server, "b").await.expect("loaded");
    server.wait_for("loaded model=b");
    server.wait_for("DEBUG warmed");
    let infer = request("b", &[("x", "FP32", &[2], fp32(&[1.0, 2.0]))]);
    server.infer(infer.clone()).await.expect("an answer");
    assert!(!server.log().contains("TRACE"), "{}", server.log());
    assert_eq!(
        set(&server, &[("log_verbose_level", Said::Uint32Param(7))]).await.expect("set"),
        all(7, "default")
    );
    server.infer(infer).await.expect("an answer");
    server.wait_for("TRACE runs");

    let quiet = [("log_verbose_level", Said::Uint32Param(0)), ("log_format", text("json"))];
    assert_eq!(set(&server, &quiet).await.expect("set"), all(0, "json"));
    load(&server, "c").await.expect("loaded");
    let line: Value = serde_json::from_str(&server.wait_for(r#""model":"c""#)).expect("JSON");
    assert_eq!((&line["message"], &line["version"]), (&"loaded".into(), &"1".into()), "{line}");
    for format in ["ISO8601", "text", "default"] {
        assert_eq!(set(&server, &[("log_format", text(format))]).await.expect("set"), all(0, format));
    }
    load(&server, "d").await.expect("loaded");
    server.wait_for("loaded model=d");
}

#[tokio::test]
async fn a_setting_that_cannot_be_is_refused_by_name_and_changes_nothing() {
    let repo = repository();
    let server = Server::start_with(repo.path(), &EXPLICIT);
    let before = set(&server, &[]).await.expect("settings");
    let info = ("log_info", Said::BoolParam(false));
    for (name, said, parts) in [
        ("log_file", text("elsewhere.log"), &["log_file", "can not be updated through network protocol"][..]),
        ("log_warnings", Said::BoolParam(true), &["'log_warnings'", "log_warning,"]),
        ("log_warning", text("true"), &["expect boolean for 'log_warning'"]),
        ("log_verbose_level", Said::BoolParam(true), &["'log_verbose_level'"]),
        ("log_format", text("glog\n"), &["log_format", "'glog\\n'", "ISO8601"]),
    ] {
        refused(set(&server, &[info.clone(), (name, said)]).await, Code::InvalidArgument, parts);
        assert_eq!(set(&server, &[]).await.expect("settings"), before, "{name}");
    }
    assert!(!server.log().contains("by request"), "{}", server.log());
}

#[tokio::test]
async fn settings_begin_as_the_flags_say() {
    let repo = repository();
    // A filter by target is told as the levels that some lines are written of.
    let flags = ["--log-level", "info,sconce_engine=debug", "--log-format", "json"];
    let server = Server::spawn(repo.path(), &[&EXPLICIT[..], &flags].concat());
    let told = set(&server, &[]).await.expect("settings");
    assert_eq!(told, (true, true, true, 1, "default".to_owned()));
}

#[tokio::test]
async fn who_does_not_read_the_log_holds_up_no_request() {
    let repo = repository();
    let mut command = sconce();
    command.args([
        "serve",
        "--grpc-address",
        "127.0.0.1:0",
        "--metrics-address",
        "off",
        "--log-level",
        "trace",
    ]);
    command.arg("--model-repository").arg(repo.path());
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a server");
    let mut log = std::io::BufReader::new(child.stderr.take().expect("its log"));
    let mut lines = (&mut log).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.split_once("gRPC on ")?.1.to_owned())).expect("an address");
    lines.find(|line| line.contains("ready, serving")).expect("it becomes ready");
    // From here on nobody reads: a pipe holds some hundred lines, and there are thousands.
    let channel = tonic::transport::Channel::from_shared(format!("http://{address}")).expect("an address");
    let channel = channel.connect().await.expect("a connection");
    let mut client =
        sconce_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient::new(channel);
    for _ in 0..2000 {
        let infer = request("a", &[("x", "FP32", &[2], fp32(&[1.0, 2.0]))]);
        client.model_infer(infer).await.expect("an answer");
    }
    assert!(
        (&mut log)
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains("TRACE runs"))
            .nth(1999)
            .is_some()
    );
    child.kill().expect("killed");
    child.wait().expect("ended");
}

/// What every line has.
fn event(line: &str) -> Value {
    let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    for name in ["timestamp", "level", "message", "target"] {
        assert!(event[name].is_string(), "no {name} in {line}");
    }
    event
}

#[cfg(not(feature = "torch"))]
#[tokio::test]
async fn a_panic_is_a_line_as_any_other() {
    let repo = Repo::new();
    repo.file("panics/1/model.pt", "fake\nargument x tensor\npanic\n");
    let server = Server::start_with(repo.path(), &["--log-format", "json"]);
    let answer = server.infer(request("panics", &[("x", "FP32", &[1], fp32(&[1.0]))])).await;
    refused(answer, Code::Internal, &[]);
    let line = event(&server.wait_for("its callers got INTERNAL"));
    assert_eq!((&line["model"], &line["version"]), (&"panics".into(), &"1".into()), "{line}");
    let line = event(&server.wait_for("a thread panicked"));
    assert_eq!(line["level"], "ERROR");
    assert!(line["place"].as_str().is_some_and(|place| place.contains(".rs:")), "{line}");
    server.log().lines().for_each(|line| drop(event(line)));
}

#[cfg(not(feature = "torch"))]
#[tokio::test]
async fn a_panic_is_told_whatever_the_levels_are() {
    let repo = Repo::new();
    repo.file("panics/1/model.pt", "fake\nargument x tensor\npanic\n");
    let server = Server::start_with(repo.path(), &["--model-control-mode", "none"]);
    let off = ["log_info", "log_warning", "log_error"].map(|name| (name, Said::BoolParam(false)));
    set(&server, &off).await.expect("set");
    let answer = server.infer(request("panics", &[("x", "FP32", &[1], fp32(&[1.0]))])).await;
    refused(answer, Code::Internal, &[]);
    let line = server.wait_for("a thread panicked");
    assert!(line.contains("place=") && line.contains("thread="), "{line}");
    // What comes of the panic is an event as any other, and would have been written before the next request runs.
    refused(server.infer(request("panics", &[("x", "FP32", &[1], fp32(&[1.0]))])).await, Code::Internal, &[]);
    assert!(!server.log().contains("its callers got INTERNAL"), "{}", server.log());
}

#[cfg(not(feature = "torch"))]
#[tokio::test]
async fn what_a_model_fails_with_names_the_model_and_the_request() {
    let repo = Repo::new();
    repo.file("quo\"te/4/model.pt", "fake\nargument x tensor\nfail it is\\nbad\n");
    let server = Server::start_with(repo.path(), &["--log-format", "json"]);
    let failing = request("quo\"te", &[("x", "FP32", &[1], fp32(&[1.0]))]);
    let failing = sconce_proto::inference::ModelInferRequest { id: "a\nb".to_owned(), ..failing };
    refused(server.infer(failing).await, Code::Internal, &["bad"]);
    let line = event(&server.wait_for("\"unwritten\""));
    assert_eq!((&line["model"], &line["version"]), (&"quo\"te".into(), &"4".into()), "{line}");
    assert_eq!((&line["id"], &line["level"]), (&"a\nb".into(), &"WARN".into()), "{line}");
}

#[test]
fn names_on_disk_break_no_line() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    for name in ["two\nlines", "\u{1b}[31mred", "\u{2028}\u{85}\u{202e}", "a version=9", "quo\"te"] {
        repo.file(&format!("{name}/1/model.pt"), "this is no\nmodel \u{1b}[2J");
    }
    for format in ["text", "json"] {
        let server = Server::start_with(repo.path(), &["--log-format", format]);
        for line in server.log().lines() {
            let odd = |char: char| char.is_control() || matches!(char, '\u{2028}' | '\u{202e}');
            assert!(!line.contains(odd), "{line:?}");
            match format {
                "json" => drop(event(line)),
                _ => assert!(line.starts_with("20") && line.contains("Z  "), "{line:?}"),
            }
        }
    }
}
