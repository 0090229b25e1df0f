//! The command line: what can be said, and one sentence for everything that is said wrong.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Output, Stdio},
};

use sconce_proto::inference::ServerMetadataRequest;
use serde_json::{Value, json};

use crate::harness::{Repo, Server, fp32, root, run, sconce, stderr, stdout};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that can be written")
}

/// Ends with this code; whatever it says, it is no crash.
#[track_caller]
fn ends(output: &Output, code: i32) {
    let errors = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(!errors.contains("panicked") && !errors.contains("RUST_BACKTRACE"), "{errors}");
}

/// Failed with one line on standard error that has all these parts, and nothing on standard output.
#[track_caller]
fn one_sentence(output: &Output, parts: &[&str]) {
    ends(output, 1);
    let errors = stderr(output);
    assert!(errors.starts_with("error: ") && errors.trim_end().lines().count() == 1, "{errors}");
    for part in parts {
        assert!(errors.contains(part), "{part:?} is not in: {errors}");
    }
    assert_eq!(stdout(output), "");
}

fn serve(arguments: &[&str]) -> Output {
    run(&[&["serve"], arguments].concat())
}

#[test]
fn sconce_alone_says_what_it_can_do() {
    let output = run(&[]);
    ends(&output, 2);
    for command in ["serve", "infer", "config", "version", "Usage: sconce"] {
        assert!(stderr(&output).contains(command), "{command}");
    }
    let version = run(&["--version"]);
    ends(&version, 0);
    assert_eq!(stdout(&version), format!("sconce {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_names_every_flag_with_its_default() {
    let help = |arguments: &[&str]| {
        let output = run(&[arguments, &["--help"]].concat());
        ends(&output, 0);
        // The width of the terminal breaks lines anywhere.
        let words = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
        // Flags whose value may be left out.
        words.replace("[=", " [=")
    };
    let all = help(&["serve"]);
    let flags = [
        ("--grpc-address", "[default: 127.0.0.1:8001]"),
        ("--metrics-address", "[default: 127.0.0.1:8002]"),
        ("--server-id", "[default: sconce]"),
        ("--model-control-mode", "[default: watch]"),
        ("--repository-poll-interval", "[default: 5s]"),
        ("--model-load-thread-count", "[default: half the cores, 1 to 4]"),
        ("--missing-repository-timeout", "[default: 60s]"),
        ("--unload-timeout", "[default: 30s]"),
        ("--confine-symlinks", "[default: false]"),
        ("--strict-readiness", "[default: false]"),
        ("--cpu-workers", "[default: one per core]"),
        ("--max-message-size", "[default: 2GiB]"),
        ("--receive-budget", "[default: 4GiB]"),
        ("--max-queued-bytes", "[default: 2GiB]"),
        ("--max-concurrent-streams", "[default: 1024]"),
        ("--response-compression", "[default: mirror]"),
        ("--triton-error-codes", "[default: false]"),
        ("--drain-delay", "[default: 0s]"),
        ("--drain-timeout", "[default: 30s]"),
        ("--log-format", "[default: text]"),
        ("--log-level", "[default: info]"),
    ];
    for (flag, default) in flags {
        let rest = all.split_once(&format!("{flag} ")).unwrap_or_else(|| panic!("{flag} is not in {all}")).1;
        let own = rest.split(" --").next().expect("a part");
        assert!(own.contains(default), "{flag}: {default} is not in: {own}");
        let variable =
            format!("[env: SCONCE_{}=]", flag.trim_start_matches("--").replace('-', "_").to_uppercase());
        assert!(own.contains(&variable), "{flag}: {variable} is not in: {own}");
    }
    for flag in ["--config", "--model-repository", "--op-library", "--load-model"] {
        assert!(all.contains(flag), "{flag}");
    }
    let infer = help(&["infer"]);
    for part in ["--input", "--output", "--json", "--timeout", "[default: 127.0.0.1:8001]", "[default: 30s]"]
    {
        assert!(infer.contains(part), "{part} is not in {infer}");
    }
    assert!(help(&["config"]).contains("schema") && help(&["config", "check"]).contains("<REPOSITORY>"));
}

#[test]
fn serving_needs_a_repository_that_is_a_directory() {
    let repo = Repo::new();
    let file = repo.file("file", "");
    let missing = repo.path().join("missing");
    one_sentence(&serve(&[]), &["--model-repository"]);
    let cases = [(missing, "there is no such directory"), (file, "this is no directory")];
    for (path, why) in cases {
        let path = text(&path);
        one_sentence(&serve(&["--model-repository", path]), &["--model-repository", path, why]);
    }
}

#[test]
fn an_address_that_cannot_be_had_is_named() {
    let repo = Repo::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).expect("an address");
    let serve = |arguments: &[&str]| {
        self::serve(&[&["--model-repository", text(repo.path()), "--log-level", "error"], arguments].concat())
    };
    let (flag, other) = ("--grpc-address", "--metrics-address");
    one_sentence(&serve(&[flag, &taken.1, other, "off"]), &[flag, &taken.1, "another process listens there"]);
    one_sentence(&serve(&[other, &taken.1, flag, "127.0.0.1:0"]), &[other, &taken.1, "another process"]);
    for address in ["nonsense", "127.0.0.1", "127.0.0.1:99999", ":"] {
        one_sentence(&serve(&[flag, address, other, "off"]), &[flag, address, "HOST:PORT is expected"]);
    }
}

#[test]
fn what_the_command_line_does_not_know_it_says() {
    let cases: [(&[&str], &str); 15] = [
        (&["serve", "--model-control-mode", "auto"], "explicit"),
        (&["serve", "--triton-error-codes=some"], "--triton-error-codes"),
        (&["serve", "--max-queued-bytes", "many"], "--max-queued-bytes"),
        (&["serve", "--model-load-thread-count", "65"], "--model-load-thread-count"),
        (&["serve", "--confine-symlinks=maybe"], "--confine-symlinks"),
        (&["serve", "--unload-timeout", "5"], "a length of time such as 500ms, 30s or 2m is expected"),
        (&["serve", "--no-such-flag"], "--no-such-flag"),
        (&["sevre"], "sevre"),
        (&["serve", "--cpu-workers", "0"], "--cpu-workers"),
        (&["serve", "--max-message-size", "much"], "--max-message-size"),
        (&["serve", "--drain-timeout", "30"], "a length of time such as 500ms, 30s or 2m is expected"),
        (&["serve", "--log-format", "xml"], "json"),
        (&["serve", "--response-compression", "br"], "mirror"),
        (&["infer"], "<MODEL>"),
        (&["config", "check"], "<REPOSITORY>"),
    ];
    for (arguments, part) in cases {
        let output = run(arguments);
        ends(&output, 2);
        assert!(stderr(&output).contains(part), "{part:?} is not in: {}", stderr(&output));
    }
    let repo = Repo::new();
    let with = |arguments: &[&str]| serve(&[&["--model-repository", text(repo.path())], arguments].concat());
    one_sentence(&with(&["--log-level", "info,=,x"]), &["--log-level", "info,sconce_engine=debug"]);
    let ages = format!("{}s", u64::MAX);
    for flag in ["--unload-timeout", "--missing-repository-timeout", "--drain-timeout", "--drain-delay"] {
        let output = with(&[flag, &ages]);
        ends(&output, 2);
        assert!(stderr(&output).contains("at most 100 years is expected"), "{}", stderr(&output));
    }
    one_sentence(&with(&["--max-message-size", "3GiB"]), &["--max-message-size", "2GiB"]);
    one_sentence(&with(&["--max-message-size", "0"]), &["--max-message-size"]);
    one_sentence(&with(&["--max-queued-bytes", "0"]), &["--max-queued-bytes 0", "no request could wait"]);
    one_sentence(
        &with(&[
            "--grpc-address",
            "127.0.0.1:0",
            "--metrics-address",
            "127.0.0.1:0",
            "--op-library",
            "no.so",
        ]),
        &["--op-library no.so"],
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused_at_start() {
    let repo = Repo::new();
    let file = repo.file("settings.yaml", "load-model: [digits]\nmodel-load-thread-count: 0\n");
    let file = text(&file);
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--load-model", "digits"], &["--load-model digits", "--model-control-mode explicit"]),
        (&["--load-model", "*", "--model-control-mode", "poll"], &["--load-model *", "explicit"]),
        (&["--config", file], &["--load-model digits", "explicit"]),
        (&["--config", file, "--model-control-mode", "explicit"], &["--model-load-thread-count 0", "64"]),
        (&["--load-model", "../x", "--model-control-mode", "explicit"], &["'../x'", "name of a directory"]),
        (&["--load-model", "a\nb", "--model-control-mode", "explicit"], &["'a\\nb'", "name of a directory"]),
        (&["--repository-poll-interval", "99ms"], &["--repository-poll-interval 99ms", "100ms"]),
        (
            &["--repository-poll-interval", "1s", "--model-control-mode", "none"],
            &["--repository-poll-interval 1s", "--model-control-mode none"],
        ),
    ];
    for (arguments, parts) in cases {
        let arguments = [&["--model-repository", text(repo.path())], arguments].concat();
        one_sentence(&serve(&arguments), parts);
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let repo = Repo::new();
    let config =
        repo.file("settings.yaml", "grpc-address: from-file\nmetrics-address: off\nlog-level: error\n");
    let tell = |environment: Option<&str>, flag: Option<&str>| {
        let mut command = sconce();
        command.args(["serve", "--model-repository", text(repo.path()), "--config", text(&config)]);
        command.envs(environment.map(|value| ("SCONCE_GRPC_ADDRESS", value)));
        command.args(flag.into_iter().flat_map(|value| ["--grpc-address", value]));
        command.stdin(Stdio::null()).output().expect("the binary can be run")
    };
    // Each is an address that nobody can listen at, so the refusal names the one that was taken.
    one_sentence(&tell(None, None), &["--grpc-address from-file:"]);
    one_sentence(&tell(Some("from-environment"), None), &["--grpc-address from-environment:"]);
    one_sentence(&tell(None, Some("from-flag")), &["--grpc-address from-flag:"]);
    one_sentence(&tell(Some("from-environment"), Some("from-flag")), &["--grpc-address from-flag:"]);
}

#[tokio::test]
async fn a_file_alone_is_enough_and_serves() {
    let repo = Repo::new();
    repo.identity("models/echo/1/model.pt");
    let models = repo.path().join("models");
    let settings = format!(
        "model-repository: [{}]\ngrpc-address: 127.0.0.1:0\nmetrics-address: off\nserver-id: from the file\n\
         max-message-size: 1MiB\ndrain-timeout: 5s\ncpu-workers: 1\nresponse-compression: none\nlog-format: json\n",
        models.display()
    );
    let config = repo.file("settings.yaml", settings);
    let mut command = sconce();
    command.args(["serve", "--config"]).arg(&config);
    let mut server = Server::launch(&mut command);
    server.wait_for("ready, serving 1 models: echo");
    let metadata = server.client().await.server_metadata(ServerMetadataRequest {}).await.expect("an answer");
    assert_eq!(metadata.into_inner().name, "from the file");
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(!server.log().contains("health on"), "{}", server.log());
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_key_or_line() {
    let repo = Repo::new();
    let cases: [(&str, &[&str]); 7] = [
        ("grpc-adress: x\n", &["`grpc-adress`", "grpc-address"]),
        ("server-id: a\ncpu-workers: many\n", &["`cpu-workers`", "many"]),
        ("drain-timeout: 30\n", &["`drain-timeout`"]),
        ("drain-timeout: soon\n", &["`drain-timeout`", "500ms, 30s or 2m"]),
        ("log-format: xml\n", &["`log-format`", "xml", "json"]),
        ("- a\n- list\n", &["settings.yaml"]),
        ("server-id: [\n", &["settings.yaml", "line"]),
    ];
    for (content, parts) in cases {
        let path = repo.file("settings.yaml", content);
        let output = serve(&["--config", text(&path), "--model-repository", text(repo.path())]);
        one_sentence(&output, &[parts, &["settings.yaml (--config)"]].concat());
    }
    one_sentence(&serve(&["--config", "no-such-file.yaml"]), &["no-such-file.yaml", "cannot be read"]);
    // An empty file says nothing.
    let path = repo.file("settings.yaml", "\n");
    one_sentence(&serve(&["--config", text(&path)]), &["--model-repository DIR"]);
}

#[test]
fn json_logs_are_json_line_by_line_and_a_level_leaves_lines_out() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo.file("broken/1/model.pt", "line one\nline two \u{1b}[31m");
    let mut server = Server::start_with(repo.path(), &["--log-format", "json", "--log-level", "debug"]);
    server.signal("TERM");
    assert!(server.wait().success());
    server.wait_for("drained");
    for line in server.log().lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            event["level"].is_string() && event["timestamp"].is_string() && event["message"].is_string(),
            "{line}"
        );
    }
    let output = {
        let missing = ["--log-level", "error", "--grpc-address", "nonsense", "--model-repository"];
        serve(&[&missing[..], &[text(repo.path())]].concat())
    };
    one_sentence(&output, &["nonsense"]);
}

#[test]
fn version_tells_what_a_report_of_a_bug_needs() {
    let output = run(&["version"]);
    ends(&output, 0);
    let all = stdout(&output);
    for part in
        [&format!("sconce {}\n", env!("CARGO_PKG_VERSION")), "devices: cpu", "cores: ", "cpu features: "]
    {
        assert!(all.contains(part), "{part:?} is not in {all}");
    }
    let runtime = if cfg!(feature = "torch") { "libtorch 2." } else { "without libtorch" };
    assert!(all.contains(runtime), "{all}");
}

/// What a JSON Schema refuses, as far as ours goes: types, enums, properties, items, references, choices.
fn complaints(schema: &Value, all: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(target) = schema["$ref"].as_str() {
        let target = all.pointer(target.trim_start_matches('#')).expect("a reference that leads somewhere");
        return complaints(target, all, value, at);
    }
    for choices in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[choices].as_array() {
            let mut ways = choices.iter().map(|choice| complaints(choice, all, value, at));
            return if ways.any(|way| way.is_empty()) {
                Vec::new()
            } else {
                vec![format!("{at}: no choice fits")]
            };
        }
    }
    let mut found = Vec::new();
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = &schema["type"];
    if !types.is_null()
        && types != kind
        && !types.as_array().is_some_and(|types| types.contains(&json!(kind)))
    {
        found.push(format!("{at}: {kind} is not {types}"));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        found.push(format!("{at}: {value} is not one of {}", schema["enum"]));
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        found.extend(complaints(&schema["items"], all, item, &format!("{at}[{index}]")));
    }
    for (key, member) in value.as_object().into_iter().flatten() {
        match &schema["properties"][key] {
            Value::Null if schema["additionalProperties"] == false => {
                found.push(format!("{at}.{key} is unknown"))
            }
            property => found.extend(complaints(property, all, member, &format!("{at}.{key}"))),
        }
    }
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    found.extend(required.filter(|key| value.get(key).is_none()).map(|key| format!("{at}.{key} is missing")));
    found
}

#[test]
fn the_schema_has_every_field_takes_the_samples_and_refuses_mistakes() {
    let output = run(&["config", "schema"]);
    ends(&output, 0);
    let schema: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!(schema["$schema"].as_str().is_some_and(|url| url.contains("json-schema.org")), "{schema}");
    let fields =
        ["max_batch_size", "inputs", "outputs", "versions", "instances", "model_file", "threads", "stateful"];
    for field in fields {
        let property = &schema["properties"][field];
        assert!(property["description"].is_string(), "{field} is described: {property}");
    }
    let check = |value: &Value| complaints(&schema, &schema, value, "");
    for model in ["digits", "text_stats"] {
        let path = root().join(format!("model_repository/{model}/config.yaml"));
        let config = serde_yaml::from_str(&fs::read_to_string(path).expect("a sample")).expect("YAML");
        assert_eq!(check(&config), Vec::<String>::new(), "{model}");
    }
    let input = json!({"name": "x", "dtype": "FP32", "shape": [3]});
    assert_eq!(
        check(&json!({"inputs": [input], "versions": {"latest": 2}, "instances": 4})),
        Vec::<String>::new()
    );
    let mistakes = [
        json!({"max_batchsize": 3}),
        json!({"max_batch_size": "3"}),
        json!({"inputs": [{"name": "x", "shape": [3]}]}),
        json!({"inputs": [{"name": "x", "dtype": "FP33", "shape": [3]}]}),
        json!({"versions": "newest"}),
        json!([]),
    ];
    for mistake in mistakes {
        assert!(!check(&mistake).is_empty(), "{mistake} is taken");
    }
}

#[test]
fn config_check_passes_the_samples_and_names_what_is_wrong() {
    let output = run(&["config", "check", text(&root().join("model_repository"))]);
    ends(&output, 0);
    for model in ["add_sub", "dict_stats", "digits", "text_stats"] {
        assert!(stdout(&output).contains(&format!("{model} version 1: ok\n")), "{}", stdout(&output));
    }
    let repo = Repo::new();
    repo.file(
        "cut/1/model.pt",
        &fs::read(root().join("model_repository/digits/1/model.pt")).expect("a sample")[..900],
    );
    repo.file("typo/config.yaml", "max_batchsize: 3\n");
    repo.file("typo/1/model.pt", "");
    repo.file("gone/config.yaml", "versions: {specific: [1, 5]}\n");
    repo.file("gone/1/model.pt", "no archive");
    let sample = fs::read(root().join("model_repository/digits/1/model.pt")).expect("a sample");
    repo.file("listed/1/model.pt", &sample);
    repo.file("listed/1/manifest.yaml", format!("sha256:\n  model.pt: {}\n", "0".repeat(64)));
    let mut corrupt = sample;
    let middle = corrupt.len() / 2;
    corrupt[middle] ^= 1;
    repo.file("corrupt/1/model.pt", &corrupt);
    let output = run(&["config", "check", text(repo.path())]);
    ends(&output, 1);
    let all = stdout(&output);
    for part in [
        "cut version 1: ",
        "typo: ",
        "max_batch_size",
        "gone version 5: there is no such directory",
        "but the manifest says 0000",
        "corrupt/1/model.pt is corrupt",
    ] {
        assert!(all.contains(part), "{part:?} is not in {all}");
    }
    assert!(!all.contains(": ok"), "{all}");
    assert_eq!(stderr(&output), "error: 6 of the above are wrong\n");
    let output = run(&["config", "check", "no-such-directory"]);
    ends(&output, 1);
    assert!(stdout(&output).contains("no-such-directory"), "{}", stdout(&output));
}

/// A file as NumPy writes it: a vector of float32.
fn npy(values: &[f32]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", values.len());
    let padded = format!("{header:<117}\n");
    [b"\x93NUMPY\x01\x00\x76\x00", padded.as_bytes(), &fp32(values)].concat()
}

#[test]
fn infer_asks_a_running_server_and_prints_the_answer() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let infer = |arguments: &[&str]| run(&[&["infer", "--address", &server.grpc], arguments].concat());
    let output = infer(&["echo", "-i", "x=[1, 2.5, -3]"]);
    ends(&output, 0);
    assert!(stdout(&output).starts_with("echo version 1, "), "{}", stdout(&output));
    assert!(stdout(&output).contains("OUTPUT__0 FP32 [3]\n  [ 1.0,  2.5, -3.0]\n"), "{}", stdout(&output));
    let file = repo.file("x.npy", npy(&[0.5, 1.5]));
    for (value, shape, data) in [
        ("x=[[1,2],[3,4]]".to_owned(), json!([2, 2]), json!([1, 2, 3, 4])),
        (format!("x=@{}", text(&file)), json!([2]), json!([0.5, 1.5])),
    ] {
        let output = infer(&["echo", "--json", "--id", "7", "-i", &value]);
        ends(&output, 0);
        let answer: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!(
            (&answer["model_name"], &answer["model_version"], &answer["id"]),
            (&json!("echo"), &json!("1"), &json!("7"))
        );
        let outputs = &answer["outputs"][0];
        assert_eq!((&outputs["name"], &outputs["datatype"]), (&json!("OUTPUT__0"), &json!("FP32")));
        assert_eq!(&outputs["shape"], &shape);
        let numbers =
            |value: &Value| value.as_array().expect("a list").iter().map(|n| n.as_f64()).collect::<Vec<_>>();
        assert_eq!(numbers(&outputs["data"]), numbers(&data));
    }
    one_sentence(&infer(&["nobody", "-i", "x=[1]"]), &["NOT_FOUND", "'nobody'"]);
    one_sentence(&infer(&["echo", "--version", "0", "-i", "x=[1]"]), &["INVALID_ARGUMENT"]);
    one_sentence(&infer(&["echo", "-i", "y=[1]"]), &["'y'", "['x']"]);
    one_sentence(&infer(&["echo", "-i", "x=[1,[2]]"]), &["x"]);
    one_sentence(&infer(&["echo", "-i", "x"]), &["NAME=VALUE"]);
    one_sentence(&infer(&["echo", "-i", "x=@no-such-file.npy"]), &["no-such-file.npy"]);
    one_sentence(&infer(&["echo"]), &["x"]);
    one_sentence(&run(&["infer", "--address", &server.http, "echo", "-i", "x=[1]"]), &[]);
}

#[test]
fn infer_without_a_server_says_so_in_one_sentence() {
    let free =
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    one_sentence(&run(&["infer", "--address", &free, "echo", "-i", "x=[1]"]), &["no server answers", &free]);
    one_sentence(&run(&["infer", "--address", "nowhere", "echo"]), &["nowhere", "HOST:PORT"]);
}
