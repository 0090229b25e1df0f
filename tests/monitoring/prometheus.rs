//! Prometheus itself and its tool, where there are any: see `tests/clients/setup.sh`.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{PATIENCE, Server, root};

/// The job of the rules.
pub(super) const JOB: &str = "sconce";

/// The program of this variable; `None`, and a line that is seen in any case, where it is to be skipped.
pub(super) fn program(variable: &str) -> Option<PathBuf> {
    if let Some(program) = env::var_os(variable) {
        return Some(program.into());
    }
    let why = match env::var("SCONCE_SKIP_PROMETHEUS") {
        Ok(why) => why,
        // Without libtorch tests need no setup.
        Err(_) if cfg!(not(feature = "torch")) => format!("{variable} is not set, as `make test` does"),
        Err(_) => panic!("{variable} is not set: run `make test`, which finds or fetches Prometheus"),
    };
    let test = thread::current().name().unwrap_or_default().to_owned();
    // What tests print is shown only when they fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
    None
}

/// Runs promtool in `deploy/prometheus`, and gives what it wrote when it is content; `None` where it is skipped.
pub(super) fn promtool(arguments: &[&str], input: &str) -> Option<String> {
    let mut command = Command::new(program("SCONCE_TEST_PROMTOOL")?);
    command.args(arguments).current_dir(root().join("deploy/prometheus"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("its standard input");
    let input = input.to_owned();
    // It may end before it has read all.
    let feeder = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let Output { status, stdout, stderr } = child.wait_with_output().expect("its output");
    feeder.join().expect("no panic");
    let text = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(status.success(), "{command:?}:\n{text}");
    Some(text)
}

/// A Prometheus that scrapes a server each second. Killed when dropped.
pub(super) struct Prometheus {
    child: Child,
    address: String,
    _data: TempDir,
}

impl Prometheus {
    /// With the rules that are deployed; `None` where it is skipped.
    pub(super) fn start(server: &Server) -> Option<Self> {
        let program = program("SCONCE_TEST_PROMETHEUS")?;
        let data = TempDir::new().expect("a temporary directory");
        let configuration = data.path().join("prometheus.yaml");
        let rules = root().join("deploy/prometheus/rules.yaml");
        let text = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [server.http]}]}],
        });
        std::fs::write(&configuration, text.to_string()).expect("a file");
        let mut child = Command::new(program)
            .args(["--web.listen-address", "127.0.0.1:0", "--storage.tsdb.path"])
            .arg(data.path().join("data"))
            .arg("--config.file")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Prometheus can be started");
        let log = BufReader::new(child.stderr.take().expect("its standard error"));
        let mut prometheus = Self { child, address: String::new(), _data: data };
        prometheus.address = address(log);
        Some(prometheus)
    }

    /// What it says below `/api/v1/`.
    pub(super) fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        // Of version 1.0, so that the answer is not in chunks.
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\n\r\n").expect("a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let (_, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {text}"));
        let answer: Value =
            serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// The series that answer a query now.
    pub(super) fn query(&self, query: &str) -> Vec<Value> {
        let answer = self.get(&format!("query?query={}", encoded(query)));
        assert_eq!(answer["resultType"], "vector", "{query}: {answer}");
        answer["result"].as_array().expect("series").clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where it listens, once it answers. Its log is read to its end, so that it never waits to write.
fn address(log: impl BufRead + Send + 'static) -> String {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
    let (mut address, mut text) = (None, String::new());
    loop {
        let line = told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("Prometheus is not ready:\n{text}"));
        text += &line;
        text.push('\n');
        if line.contains("Listening on") {
            let after = line.split_once(" address=").expect("an address").1;
            address = after.split(' ').next().map(str::to_owned);
        }
        if line.contains("Server is ready to receive web requests") {
            return address.unwrap_or_else(|| panic!("Prometheus does not say where:\n{text}"));
        }
    }
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
