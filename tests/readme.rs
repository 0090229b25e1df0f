//! Every example of README.md is run here, and its tables are held against the binary.
//!
//! A comment before a block says how: `<!-- test: run -->` as a client of the sample models, with
//! `<!-- test: output -->` before what it prints; `<!-- test: check MODEL -->` and `<!-- test: serve
//! MODEL -->` as that sample's configuration; `<!-- test: settings -->` as the server's; or
//! `<!-- test: none, REASON -->`.

use std::{collections::BTreeSet, fs};

use tonic::Code;

use crate::{
    harness::{Repo, Server, root, run, stderr, stdout},
    raw::Raw,
};

/// Languages whose blocks must say how they are tested.
const TESTED: [&str; 5] = ["python", "js", "sh", "yaml", "pbtxt"];

/// Languages of blocks that only show something.
const SHOWN: [&str; 1] = ["text"];

/// A fenced block of README.md.
#[derive(Debug)]
struct Block {
    /// The line of its first fence.
    line: usize,
    language: String,
    action: Option<Action>,
    text: String,
}

/// What is done with a block.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// It is run, and must succeed.
    Run,
    /// It is what the block before prints.
    Output,
    /// It is a valid configuration of this sample model.
    Check(String),
    /// It is that, and the model can be served with it.
    Serve(String),
    /// It is a file for `--config`.
    Settings,
    /// It is not tested, for a reason.
    None,
}

fn action(comment: &str) -> Option<Action> {
    let (word, rest) = comment.split_once([' ', ',']).unwrap_or((comment, ""));
    let rest = rest.trim();
    Some(match (word, rest.is_empty()) {
        ("run", true) => Action::Run,
        ("output", true) => Action::Output,
        ("settings", true) => Action::Settings,
        ("check", false) => Action::Check(rest.to_owned()),
        ("serve", false) => Action::Serve(rest.to_owned()),
        ("none", false) => Action::None,
        _ => return None,
    })
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).expect("README.md")
}

/// The blocks of README.md.
fn blocks() -> Vec<Block> {
    blocks_of(&readme())
}

fn blocks_of(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut comment = None;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let body = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            let text = body.fold(String::new(), |text, line| text + line + "\n");
            blocks.push(Block {
                line: number + 1,
                language: language.to_owned(),
                action: comment.take(),
                text,
            });
        } else if let Some(told) = line.strip_prefix("<!-- test: ").and_then(|line| line.strip_suffix(" -->"))
        {
            comment = action(told);
            assert!(comment.is_some(), "README.md:{}: {told:?} is no way to test a block", number + 1);
        } else if !line.is_empty() {
            comment = None;
        }
    }
    blocks
}

/// The rows of the table whose first column has this heading, cell by cell.
pub(crate) fn table(heading: &str) -> Vec<Vec<String>> {
    let text = readme();
    let start = format!("| {heading} |");
    let cells = |line: &str| {
        let line = line.replace(r"\|", "\u{1}");
        let cells = line.trim().trim_matches('|').split('|');
        cells.map(|cell| cell.trim().replace('\u{1}', "|")).collect()
    };
    let rows = text.lines().skip_while(|line| !line.starts_with(&start)).skip(2);
    let rows: Vec<Vec<String>> = rows.take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(!rows.is_empty(), "README.md has no table that begins with {start:?}");
    rows
}

/// What stands between backquotes.
pub(crate) fn code(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_example_is_run_or_says_why_not() {
    for Block { line, language, action, .. } in blocks() {
        let fits = match (&*language, &action) {
            ("python" | "js", Some(Action::Run | Action::None)) => true,
            ("sh", Some(Action::Run | Action::None)) => true,
            ("yaml", Some(Action::Check(_) | Action::Serve(_) | Action::Settings | Action::None)) => true,
            ("pbtxt", Some(Action::Check(_) | Action::Serve(_) | Action::None)) => true,
            (other, None | Some(Action::Output)) => SHOWN.contains(&other),
            _ => false,
        };
        assert!(fits, "README.md:{line}: a block of {language:?} with {action:?}; see tests/readme.rs");
    }
    for language in TESTED {
        let tested = |block: &Block| block.language == language && block.action != Some(Action::None);
        assert!(blocks().iter().any(tested), "no example of {language} is tested");
    }
}

#[test]
fn blocks_are_found_with_what_is_said_of_them() {
    let text = "a\n<!-- test: run -->\n```sh\nb\n```\n<!-- test: none, why -->\nc\n```sh\n```\n";
    let blocks = blocks_of(text);
    let seen: Vec<_> = blocks.iter().map(|block| (block.line, &*block.text, block.action.clone())).collect();
    assert_eq!(seen, [(3, "b\n", Some(Action::Run)), (8, "", None)]);
    assert_eq!(action("serve digits"), Some(Action::Serve("digits".to_owned())));
    assert_eq!((action("none"), action("serve"), action("run it")), (None, None, None));
}

/// A sample model with the block for its configuration.
fn configured(block: &Block, model: &str) -> Repo {
    let repo = Repo::new();
    let from = root().join("model_repository").join(model);
    let weights = fs::read(from.join("1/model.pt")).expect("a sample model");
    repo.file(&format!("{model}/1/model.pt"), weights);
    if let Ok(labels) = fs::read(from.join("labels.txt")) {
        repo.file(&format!("{model}/labels.txt"), labels);
    }
    repo.file(&format!("{model}/config.{}", block.language), &block.text);
    repo
}

#[test]
fn configurations_are_valid() {
    for block in blocks() {
        let (Some(Action::Check(model)) | Some(Action::Serve(model))) = &block.action else { continue };
        let repo = configured(&block, model);
        let output = run(&["config", "check", &repo.path().display().to_string()]);
        let (out, err) = (stdout(&output), stderr(&output));
        assert!(output.status.success(), "README.md:{}: {out}{err}", block.line);
    }
}

#[test]
fn the_table_of_flags_is_that_of_the_binary() {
    let output = stdout(&run(&["serve", "--help"]));
    // Some values may be left out.
    let help = output.split_whitespace().collect::<Vec<_>>().join(" ").replace("[=", " [=");
    let rows = table("Flag");
    let documented: BTreeSet<&str> = rows.iter().map(|row| flag(code(&row[0])[0])).collect();
    let there = output.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let there: BTreeSet<&str> = there.map(flag).filter(|name| *name != "help").collect();
    assert_eq!(documented, there);
    for row in &rows {
        let name = flag(code(&row[0])[0]);
        let (_, about) = help.split_once(&format!(" --{name} ")).expect("the flag");
        let about = about.split_once(" [env: ").expect("its variable");
        let variable = about.1.split_once('=').expect("its name").0;
        assert_eq!(code(&row[0])[1], variable, "the variable of --{name}");
        let default = about.0.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
        assert_eq!(
            row[1].replace('`', ""),
            default.map_or("", |(default, _)| default),
            "the default of --{name}"
        );
    }
}

/// The name of a flag without dashes and value.
fn flag(text: &str) -> &str {
    text.trim_start_matches("--").split([' ', '[']).next().expect("a word")
}

#[test]
fn the_table_of_fields_is_that_of_the_schema() {
    let schema: serde_json::Value =
        serde_json::from_str(&stdout(&run(&["config", "schema"]))).expect("a schema");
    let mut there = BTreeSet::new();
    let mut add = |prefix: &str, object: &serde_json::Value| {
        for (name, property) in object["properties"].as_object().expect("properties") {
            let default = match &property["default"] {
                serde_json::Value::Null => String::new(),
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let versions = name == "versions";
            there.insert((format!("{prefix}{name}"), if versions { "latest".to_owned() } else { default }));
        }
    };
    add("", &schema);
    for (prefix, of) in [
        ("inputs[].", "Input"),
        ("batch_inputs[].", "BatchInput"),
        ("outputs[].", "Output"),
        ("instances[].", "InstanceGroup"),
        ("batching.", "BatchingFields"),
        ("queue.", "Queue"),
        ("queue.levels.*.", "QueueLevel"),
        ("sequence.", "Sequence"),
        ("sequence.controls.", "Controls"),
        ("sequence.controls.*.", "ControlFields"),
        ("sequence.states[].", "State"),
        ("generate.", "Generate"),
        ("generate.stop.", "Stop"),
        ("warmup[].", "WarmupSample"),
        ("warmup[].inputs.*.", "WarmupInput"),
    ] {
        add(prefix, &schema["$defs"][of]);
    }
    let rows = table("Field");
    let documented: BTreeSet<(String, String)> =
        rows.iter().map(|row| (row[0].replace('`', ""), row[1].replace('`', ""))).collect();
    assert_eq!(documented, there);
}

#[test]
fn the_table_of_rpcs_names_them_all() {
    let proto = fs::read_to_string(root().join("proto/grpc_service.proto")).expect("the contract");
    let names = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('));
    let there: Vec<&str> = names.map(|(name, _)| name).collect();
    let rows = table("RPC");
    let documented: Vec<&str> = rows.iter().flat_map(|row| code(&row[0])).collect();
    assert_eq!(
        documented.iter().collect::<BTreeSet<_>>(),
        there.iter().collect::<BTreeSet<_>>(),
        "RPCs of README.md and of proto/"
    );
    for row in &rows {
        let told = if row[1].starts_with("served") { "served" } else { "UNIMPLEMENTED" };
        assert!(row[1].starts_with(told), "{row:?} begins with neither `served` nor `UNIMPLEMENTED`");
    }
}

#[test]
fn the_table_of_pbtxt_fields_names_them_all() {
    let proto = fs::read_to_string(root().join("proto/model_config.proto")).expect("the schema");
    let (_, message) = proto.split_once("\nmessage ModelConfig {\n").expect("the message");
    let (message, _) = message.split_once("\n}\n").expect("its end");
    // Fields of the message itself and of its choices; there are no messages inside it.
    let names = message.lines().filter_map(|line| line.split_once(" = ")?.0.split(' ').next_back());
    let rows = table("`config.pbtxt`");
    let documented: Vec<&str> = rows.iter().flat_map(|row| code(&row[1])).collect();
    let missing: Vec<&str> = names.filter(|name| !documented.contains(name)).collect();
    assert!(missing.is_empty(), "README.md says nothing of {missing:?}");
}

#[tokio::test]
async fn the_table_of_rpcs_is_true() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let raw = Raw::connect(&server).await;
    for row in table("RPC") {
        for rpc in code(&row[0]) {
            let empty: &[u8] = &[0; 5];
            let unimplemented = raw.send(rpc, &[], empty).await.status().code() == Code::Unimplemented;
            assert_eq!(unimplemented, !row[1].starts_with("served"), "{rpc}");
        }
    }
}

#[test]
fn the_file_of_settings_is_taken() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let mut files = 0;
    for block in blocks().into_iter().filter(|block| block.action == Some(Action::Settings)) {
        let file = repo.file("settings.yaml", &block.text).display().to_string();
        let mut server = Server::start_with(repo.path(), &["--config", &file]);
        server.signal("TERM");
        assert!(server.wait().success(), "README.md:{}: {}", block.line, server.log());
        files += 1;
    }
    assert!(files > 0, "README.md shows no file of settings");
}

/// What needs libtorch: the samples are TorchScript.
#[cfg(feature = "torch")]
mod examples {
    use std::{
        env,
        process::{Command, Output},
    };

    use sconce_proto::inference::{ModelInferRequest, ModelMetadataRequest};

    use super::{Action, Block, blocks, code, configured, table};
    use crate::harness::{Repo, Server, fp32, request, root, stderr, stdout};

    #[test]
    fn configurations_are_served() {
        for block in blocks() {
            let Some(Action::Serve(model)) = &block.action else { continue };
            let repo = configured(&block, model);
            let server = Server::start(repo.path());
            server.wait_for(&format!("ready, serving 1 models: {model}"));
        }
    }

    #[test]
    fn python_examples_run() {
        let python = env::var_os("SCONCE_TEST_PYTHON");
        let python =
            python.expect("SCONCE_TEST_PYTHON is not set: run `make test`, which makes the environment");
        run_all("python", &|text| {
            let mut command = Command::new(&python);
            command.args(["-c", text]);
            command
        });
    }

    #[test]
    fn node_examples_run() {
        if let Ok(reason) = env::var("SCONCE_SKIP_NODE") {
            eprintln!("SKIPPED: the README's examples for Node: {reason}");
            return;
        }
        let node = env::var_os("SCONCE_TEST_NODE").expect("SCONCE_TEST_NODE is not set: run `make test`");
        let modules = env::var_os("SCONCE_TEST_NODE_MODULES").expect("SCONCE_TEST_NODE_MODULES is not set");
        run_all("js", &|text| {
            let mut command = Command::new(&node);
            command.args(["-e", text]).env("NODE_PATH", &modules);
            command
        });
    }

    #[test]
    fn shell_examples_run() {
        run_all("sh", &|text| {
            let mut command = Command::new("bash");
            command.args(["-euo", "pipefail", "-c", text]);
            command
        });
    }

    /// Runs every block of a language against a server of the samples, and compares what is shown.
    fn run_all(language: &str, command: &dyn Fn(&str) -> Command) {
        let server = Server::start(&root().join("model_repository"));
        let blocks = blocks();
        let mut number = 0;
        for (index, block) in blocks.iter().enumerate() {
            if block.language != language || block.action != Some(Action::Run) {
                continue;
            }
            let text = block
                .text
                .replace("127.0.0.1:8001", &server.grpc)
                .replace("127.0.0.1:8002", &server.http)
                .replace("target/release/sconce", env!("CARGO_BIN_EXE_sconce"));
            let mut command = command(&text);
            command.current_dir(root()).env("SCONCE_ADDRESS", &server.grpc);
            command.env("SCONCE_METRICS_ADDRESS", &server.http);
            let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
            let log = server.log();
            assert!(output.status.success(), "README.md:{}: {}\n{log}", block.line, stderr(&output));
            if let Some(shown) = blocks.get(index + 1).filter(|next| next.action == Some(Action::Output)) {
                prints(shown, &output);
            }
            number += 1;
        }
        assert!(number > 0, "README.md has no example in {language}");
    }

    /// The output is what the block shows, but for times.
    fn prints(shown: &Block, output: &Output) {
        let untimed = |text: &str| {
            let line = |line: &str| match line.rsplit_once(", ") {
                Some((line, time)) if time.ends_with(" ms") => line.to_owned(),
                _ => line.trim_end().to_owned(),
            };
            text.trim_end().lines().map(line).collect::<Vec<_>>()
        };
        assert_eq!(untimed(&stdout(output)), untimed(&shown.text), "README.md:{}", shown.line);
    }

    /// The names that a model of each row has, which nobody wrote a configuration for.
    #[tokio::test]
    async fn the_names_of_inputs_are_as_the_table_says() {
        let repo = Repo::new();
        let rows = table("`forward` takes");
        for (number, row) in rows.iter().enumerate() {
            let arguments = code(&row[0])[0];
            // A dict tells its keys by the code that reads them.
            let read = if arguments.contains("Dict") { r#"x["key"]"# } else { "torch.zeros([1])" };
            let source = format!("def forward(self, {arguments}):\n    return {read}\n");
            repo.script(&format!("m{number}/1/model.pt"), &source, &[]);
        }
        let server = Server::start(repo.path());
        let mut client = server.client().await;
        for (number, row) in rows.iter().enumerate() {
            let request = ModelMetadataRequest { name: format!("m{number}"), version: String::new() };
            let told = client.model_metadata(request).await.expect("metadata").into_inner();
            let inputs: Vec<_> = told.inputs.iter().map(|input| input.name.as_str()).collect();
            assert_eq!(inputs, code(&row[1]), "{row:?}");
        }
    }

    #[tokio::test]
    async fn the_names_of_outputs_are_as_the_table_says() {
        let repo = Repo::new();
        let rows = table("`forward` ends with");
        for (number, row) in rows.iter().enumerate() {
            let source = format!("def forward(self, x, y):\n    {}\n", code(&row[0])[0]);
            repo.script(&format!("m{number}/1/model.pt"), &source, &[]);
        }
        let server = Server::start(repo.path());
        for (number, row) in rows.iter().enumerate() {
            let inputs = [("x", "FP32", &[1][..], fp32(&[1.0])), ("y", "FP32", &[1], fp32(&[2.0]))];
            let request: ModelInferRequest = request(&format!("m{number}"), &inputs);
            let answer = server.infer(request).await.expect("an answer");
            let outputs: Vec<_> = answer.outputs.iter().map(|output| output.name.as_str()).collect();
            assert_eq!(outputs, code(&row[1]), "{row:?}");
        }
    }
}
