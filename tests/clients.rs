//! Clients in other languages, against the sample repository.
#![cfg(feature = "torch")]

use std::{env, path::Path, process::Command};

use crate::harness::{Repo, Server, root};

/// Runs a test program of another language against a server of the samples.
fn passes(server: &Server, command: &mut Command) {
    command.current_dir(root()).env("SCONCE_ADDRESS", &server.grpc).env("SCONCE_HTTP_ADDRESS", &server.http);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}\n{}\n{}\nserver:\n{}", text[0], text[1], server.log());
}

fn samples() -> Server {
    Server::start(&root().join("model_repository"))
}

fn python() -> Command {
    let python = env::var_os("SCONCE_TEST_PYTHON");
    Command::new(python.expect("SCONCE_TEST_PYTHON is not set: run `make test`, which makes the environment"))
}

#[test]
fn python_tritonclient_gets_right_answers() {
    passes(&samples(), python().args(["-m", "unittest", "discover", "-s", "tests/clients/python"]));
}

/// Tells in which run and in how large a batch a request was, and waits for the gates that its rows name.
/// Gates and the count of runs are files that it maps: whoever opens a gate writes 1 into it. What it
/// reads again depends on what it has read, so that no optimization reads it once for all.
const PROBE: &str = "\
def forward(self, x):
    turns = torch.from_file('GATES/turns' + str(int(x[0, 1])), True, 1)
    turn = float(turns.add_(1.0))
    looks = 0
    for row in range(x.size(0)):
        gate = int(x[row, 0])
        if gate > 0:
            while float(torch.from_file('GATES/gate' + str(gate), True, min(1, looks + 1))) == 0.0:
                looks += 1
    size = torch.full([x.size(0), 1], float(x.size(0)))
    return size, torch.full([x.size(0), 1], turn + 0.0 * float(looks))
";

#[test]
fn python_tritonclient_is_scheduled_as_configured() {
    let repo = Repo::new();
    repo.identity("models/echo/1/model.pt");
    let (models, gates) = (repo.path().join("models"), repo.path().join("gates"));
    std::fs::create_dir(&gates).expect("a directory");
    let probe = "probe/1/model.pt";
    repo.script(probe, &PROBE.replace("GATES", &gates.display().to_string()), &[]);
    let server = Server::start_with(&models, &["--cpu-workers", "2"]);
    let tritons = Server::start_with(&models, &["--cpu-workers", "2", "--triton-error-codes"]);
    let mut tests = python();
    tests.args(["-m", "unittest", "discover", "-s", "tests/clients/python", "-p", "test_scheduling.py"]);
    tests.env("SCONCE_PROBE", repo.path().join(probe)).env("SCONCE_GATES", &gates);
    passes(&server, tests.env("SCONCE_TRITON_CODES_ADDRESS", &tritons.grpc));
}

/// Triton's own tool for load reads what a server tells of itself, and prints it beside what it has measured.
#[test]
fn perf_analyzer_prints_where_the_time_goes() {
    if let Ok(reason) = env::var("SCONCE_SKIP_PERF_ANALYZER") {
        eprintln!("SKIPPED: perf_analyzer: {reason}");
        return;
    }
    let tool = env::var_os("SCONCE_TEST_PERF_ANALYZER");
    let tool = tool.expect("SCONCE_TEST_PERF_ANALYZER is not set: run `make test`");
    let server = samples();
    let output = Command::new(&tool)
        .args(["-m", "add_sub", "-i", "grpc", "-u", &server.grpc, "--concurrency-range", "4"])
        // A window is so many requests, and however different windows are, three of them will do.
        .args([
            "--measurement-mode",
            "count_windows",
            "--measurement-request-count",
            "50",
            "-s",
            "100000",
            "-r",
            "3",
        ])
        .output()
        .expect("perf_analyzer can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let number = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        let line = line.unwrap_or_else(|| panic!("no {name:?} in:\n{text}"));
        line.trim().split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
    };
    let (requests, rows, runs) =
        (number("Successful request count:"), number("Inference count:"), number("Execution count:"));
    assert!(requests > 0 && rows == requests && (1..=rows).contains(&runs), "{text}");
    for stage in ["overhead", "queue", "compute input", "compute infer", "compute output"] {
        assert!(text.contains(&format!("{stage} ")), "{stage}: {text}");
    }
}

#[test]
fn python_tritonclient_changes_what_is_traced() {
    // Nobody listens there, which is nothing to those who change settings.
    let arguments = ["--trace-endpoint", "http://127.0.0.1:9"];
    let server = Server::start_with(&root().join("model_repository"), &arguments);
    let mut tests = python();
    tests.args(["-m", "unittest", "discover", "-s", "tests/clients/python", "-p", "test_trace.py"]);
    passes(&server, tests.env("SCONCE_TRACED", "1"));
}

#[test]
fn python_tritonclient_changes_what_is_logged() {
    let mut tests = python();
    tests.args(["-m", "unittest", "discover", "-s", "tests/clients/python", "-p", "test_logging.py"]);
    passes(&samples(), tests.env("SCONCE_LOGGING", "1"));
}

/// The elements without the sum of their request, that sum, and of how many requests the batch is.
const RAGGED: &str = "\
def forward(self, INPUT, INDEX):
    ends = INDEX.long()
    counts = torch.diff(ends, prepend=torch.zeros_like(ends[:1]))
    owner = torch.repeat_interleave(torch.arange(ends.size(0)), counts)
    sums = torch.zeros([ends.size(0)]).index_add(0, owner, INPUT)
    return INPUT - sums[owner], sums.unsqueeze(1), torch.full([ends.size(0), 1], float(ends.size(0)))
";

#[test]
fn python_tritonclient_sends_ragged_batches() {
    let repo = Repo::new();
    repo.identity("models/echo/1/model.pt");
    repo.script("ragged/1/model.pt", RAGGED, &[]);
    let server = Server::start(&repo.path().join("models"));
    let mut tests = python();
    tests.args(["-m", "unittest", "discover", "-s", "tests/clients/python", "-p", "test_ragged.py"]);
    passes(&server, tests.env("SCONCE_RAGGED", repo.path().join("ragged/1/model.pt")));
}

#[test]
fn node_grpc_js_gets_right_answers() {
    if let Ok(reason) = env::var("SCONCE_SKIP_NODE") {
        eprintln!("SKIPPED: the Node client: {reason}");
        return;
    }
    let node = env::var_os("SCONCE_TEST_NODE").expect("SCONCE_TEST_NODE is not set: run `make test`");
    let modules = env::var_os("SCONCE_TEST_NODE_MODULES").expect("SCONCE_TEST_NODE_MODULES is not set");
    let tests = Path::new("tests/clients/node/infer.test.js");
    passes(&samples(), Command::new(node).arg("--test").arg(tests).env("NODE_PATH", modules));
}
