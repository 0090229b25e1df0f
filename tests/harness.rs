//! Starts the server, makes repositories for it, speaks to it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use sconce_proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse,
    grpc_inference_service_client::GrpcInferenceServiceClient,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

/// Nothing takes this long; whatever does has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, without anything of this environment that could set it.
pub fn sconce() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    for (name, _) in std::env::vars_os() {
        if ["SCONCE_", "OTEL_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end.
pub fn run(arguments: &[&str]) -> Output {
    sconce().args(arguments).stdin(Stdio::null()).output().expect("the binary can be run")
}

/// Standard error of a finished run.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Standard output of a finished run.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A model repository in a directory that goes with it.
pub struct Repo {
    dir: TempDir,
}

impl Repo {
    pub fn new() -> Self {
        Self { dir: TempDir::new().expect("a temporary directory") }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file, with the directories above it.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(&path, content).expect("a file");
        path
    }

    /// A model of the build's backend that answers with its one tensor: `x` in, `OUTPUT__0` out.
    pub fn identity(&self, path: &str) {
        #[cfg(feature = "torch")]
        self.script(path, "def forward(self, x):\n    return x\n", &[]);
        #[cfg(not(feature = "torch"))]
        self.file(path, "fake\nargument x tensor\n");
    }

    /// A model compiled from TorchScript source, with parameters such as `weight:2x3`.
    #[cfg(feature = "torch")]
    pub fn script(&self, path: &str, source: &str, parameters: &[&str]) {
        let path = self.file(path, "");
        sconce_torch::define(source, parameters, &path).unwrap_or_else(|error| panic!("{source}\n{error}"));
    }
}

/// What a server has written so far, and whether it will write more.
#[derive(Default)]
struct Log {
    text: Mutex<(String, bool)>,
    grown: Condvar,
}

/// A running server. Killed when dropped.
pub struct Server {
    child: Child,
    log: Arc<Log>,
    /// `HOST:PORT` of gRPC.
    pub grpc: String,
    /// `HOST:PORT` of health over HTTP.
    pub http: String,
}

impl Server {
    /// Serves a repository and waits until its models have been loaded.
    pub fn start(repository: &Path) -> Self {
        Self::start_with(repository, &[])
    }

    pub fn start_with(repository: &Path, arguments: &[&str]) -> Self {
        let server = Self::spawn(repository, arguments);
        server.wait_for("ready, serving");
        server
    }

    /// Serves a repository and waits until it listens.
    pub fn spawn(repository: &Path, arguments: &[&str]) -> Self {
        Self::spawn_by(sconce(), repository, arguments)
    }

    /// The same by a command that runs the binary with the arguments that it gets.
    pub fn spawn_by(mut command: Command, repository: &Path, arguments: &[&str]) -> Self {
        command
            .arg("serve")
            .args(["--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"])
            .arg("--model-repository")
            .arg(repository)
            .args(arguments);
        let mut server = Self::launch(&mut command);
        server.http = server.after("health on http://").trim_end_matches("/health/ready").to_owned();
        server
    }

    /// Runs a command that serves, and waits until it listens for gRPC.
    pub fn launch(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server can be started");
        let log = Arc::new(Log::default());
        let (to, from) = (Arc::clone(&log), child.stderr.take().expect("its standard error"));
        thread::spawn(move || to.follow(from));
        let mut server = Self { child, log, grpc: String::new(), http: String::new() };
        server.grpc = server.after("gRPC on ");
        server
    }

    /// The word that follows `marker` in the log.
    fn after(&self, marker: &str) -> String {
        let line = self.wait_for(marker);
        let rest = line.split_once(marker).expect("the marker").1;
        rest.split(['"', ' ', '\n']).next().expect("a word").to_owned()
    }

    /// Waits for a line of the log that has `text` in it.
    pub fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.log.text.lock().expect("the log");
        loop {
            if let Some(line) = state.0.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!state.1 && !left.is_zero(), "the server never wrote {text:?}; it wrote:\n{}", state.0);
            state = self.log.grown.wait_timeout(state, left).expect("the log").0;
        }
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        self.log.text.lock().expect("the log").0.clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, `TERM` or `INT`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().expect("kill");
        assert!(sent.success());
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("its status")
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not end; it wrote:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A tonic client without limits of its own.
    pub async fn client(&self) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::new(self.channel().await)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).expect("an address");
        endpoint.connect().await.expect("a connection")
    }

    /// One inference, as a caller without a client at hand.
    pub async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.client().await.model_infer(request).await.map(tonic::Response::into_inner)
    }

    /// The status and the body of an HTTP GET.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = std::net::TcpStream::connect(&self.http).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let request = format!("GET {path} HTTP/1.1\r\nhost: sconce\r\nconnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }
}

impl Log {
    fn follow(&self, from: impl Read) {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut state = self.text.lock().expect("the log");
            state.0.push_str(&line);
            state.0.push('\n');
            self.grown.notify_all();
        }
        self.text.lock().expect("the log").1 = true;
        self.grown.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request with raw contents.
pub fn request(model: &str, inputs: &[(&str, &str, &[i64], Vec<u8>)]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: inputs
            .iter()
            .map(|(name, datatype, shape, _)| InferInputTensor {
                name: (*name).to_owned(),
                datatype: (*datatype).to_owned(),
                shape: shape.to_vec(),
                ..InferInputTensor::default()
            })
            .collect(),
        raw_input_contents: inputs.iter().map(|(.., data)| Bytes::from(data.clone())).collect(),
        ..ModelInferRequest::default()
    }
}

/// The same request, which asks for these outputs only.
pub fn wanting(mut request: ModelInferRequest, outputs: &[&str]) -> ModelInferRequest {
    request.outputs = outputs
        .iter()
        .map(|name| InferRequestedOutputTensor { name: (*name).to_owned(), ..Default::default() })
        .collect();
    request
}

/// The same request with the first input's contents typed instead of raw.
pub fn typed(mut request: ModelInferRequest, contents: InferTensorContents) -> ModelInferRequest {
    request.raw_input_contents.clear();
    request.inputs[0].contents = Some(contents);
    request
}

/// FP32 elements as raw contents.
pub fn fp32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// INT64 elements as raw contents.
#[cfg(feature = "torch")]
pub fn int64(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// BYTES elements as raw contents.
pub fn strings(values: &[&[u8]]) -> Vec<u8> {
    let length = |value: &[u8]| u32::try_from(value.len()).expect("short").to_le_bytes();
    values.iter().flat_map(|value| [&length(value), *value].concat()).collect()
}

/// Raw contents as FP32 elements.
pub fn as_fp32(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect()
}

/// The output of that name: datatype, shape, raw contents.
pub fn output<'r>(response: &'r ModelInferResponse, name: &str) -> (&'r str, &'r [i64], &'r [u8]) {
    let index = response.outputs.iter().position(|output| output.name == name);
    let index = index.unwrap_or_else(|| panic!("no output {name} in {:?}", response.outputs));
    let output = &response.outputs[index];
    (&output.datatype, &output.shape, &response.raw_output_contents[index])
}

/// Asserts a refusal with this code whose message has all these parts and is one line.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, parts: &[&str]) {
    let status = answer.expect_err("a refusal");
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(!status.message().contains('\n'), "{}", status.message());
    for part in parts {
        assert!(status.message().contains(part), "{part:?} is not in: {}", status.message());
    }
}
