//! Every wrong request gets the right code and one sentence, and the server does not mind.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use sconce_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
    infer_parameter::ParameterChoice::{self, BoolParam, Int64Param, StringParam, Uint64Param},
};
use tonic::{Code, Status};

use crate::{
    harness::{self, Repo, Server, as_fp32, fp32, output, request, strings, typed, wanting},
    raw::{Raw, framed},
};

const CONFIG: &str = "\
max_batch_size: 4
inputs: [{name: x, dtype: FP32, shape: [3]}]
outputs: [{name: OUTPUT__0, dtype: FP32, shape: [3]}]
";

const VALUES: [f32; 3] = [1.0, 2.0, 3.0];

struct Fixture {
    _repo: Repo,
    _server: Server,
    connection: Raw,
}

/// `strict` has a config, `free` has none.
async fn start() -> Fixture {
    let repo = Repo::new();
    repo.identity("free/1/model.pt");
    repo.identity("strict/1/model.pt");
    repo.file("strict/config.yaml", CONFIG);
    let server = Server::start(repo.path());
    let connection = Raw::connect(&server).await;
    Fixture { _repo: repo, _server: server, connection }
}

impl Fixture {
    async fn infer(&self, request: &ModelInferRequest) -> Result<ModelInferResponse, Status> {
        self.connection.call("ModelInfer", request).await.message()
    }

    /// Refused with this code, in one sentence with these parts; a good request right after is answered.
    async fn refuses(&self, what: &str, request: &ModelInferRequest, code: Code, parts: &[&str]) {
        let status = self.infer(request).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {}", status.message());
        one_sentence(what, &status);
        for part in parts {
            assert!(status.message().contains(part), "{what}: {part:?} is not in: {}", status.message());
        }
        for model in ["strict", "free"] {
            let response =
                self.infer(&good(model)).await.unwrap_or_else(|status| panic!("after {what}: {status}"));
            assert_eq!(as_fp32(output(&response, "OUTPUT__0").2), VALUES, "after {what}");
        }
    }

    /// As [`Fixture::refuses`], with INVALID_ARGUMENT.
    async fn rejects(&self, what: &str, request: &ModelInferRequest, parts: &[&str]) {
        self.refuses(what, request, Code::InvalidArgument, parts).await;
    }
}

fn one_sentence(what: &str, status: &Status) {
    let text = status.message();
    assert!(!text.is_empty() && text.len() < 1200, "{what}: {} bytes: {text}", text.len());
    assert!(!text.chars().any(char::is_control), "{what}: {text:?}");
}

fn good(model: &str) -> ModelInferRequest {
    request(model, &[("x", "FP32", &[1, 3], fp32(&VALUES))])
}

/// The good request with something about it changed.
fn bad(model: &str, change: impl FnOnce(&mut ModelInferRequest)) -> ModelInferRequest {
    let mut request = good(model);
    change(&mut request);
    request
}

fn input(datatype: &str, shape: &[i64], data: Vec<u8>) -> ModelInferRequest {
    request("free", &[("x", datatype, shape, data)])
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

fn with_parameter(name: &str, choice: Option<ParameterChoice>) -> ModelInferRequest {
    bad("strict", |request| {
        request.parameters.insert(name.to_owned(), InferParameter { parameter_choice: choice });
    })
}

#[tokio::test]
async fn models_and_versions_that_are_not_there_are_not_found() {
    let server = start().await;
    let named = |name: &str| bad("strict", |request| request.model_name = name.to_owned());
    for name in ["nobody", "", "Strict", "strict/1", "../strict", "."] {
        let text = format!("Request for unknown model: '{name}' is not found");
        server.refuses(name, &named(name), Code::NotFound, &[&text]).await;
    }
    let version = |version: &str| bad("strict", |request| request.model_version = version.to_owned());
    let text = "Request for unknown model: 'strict' version 2 is not found";
    server.refuses("another version", &version("2"), Code::NotFound, &[text]).await;
    server
        .refuses("the largest version", &version(&u64::MAX.to_string()), Code::NotFound, &["is not found"])
        .await;
    for text in ["0", "01", "-1", "+1", "1.0", "latest", " 1", "18446744073709551616", "1e3", "\u{661}"] {
        server.rejects(text, &version(text), &["version", "an integral value > 0"]).await;
    }
}

#[tokio::test]
async fn datatypes_are_those_of_the_protocol_and_of_the_model() {
    let server = start().await;
    let of = |datatype: &str| bad("strict", |request| request.inputs[0].datatype = datatype.to_owned());
    for datatype in ["", "FP128", "fp32", "TYPE_FP32", "STRING", "FP32 "] {
        server.rejects(datatype, &of(datatype), &["'x' data-type", "'strict'"]).await;
    }
    let text = "inference input 'x' data-type is 'INT32', but model 'strict' expects 'FP32'";
    server.rejects("another of the same size", &of("INT32"), &[text]).await;
    let sent = input("BYTES", &[1], strings(&[b"a"]));
    server.rejects("BYTES for a tensor", &sent, &["'x' data-type is 'BYTES'", "'free' expects"]).await;
}

#[tokio::test]
async fn shapes_are_those_of_the_model_and_never_negative() {
    let server = start().await;
    let of =
        |shape: &[i64], count: usize| request("strict", &[("x", "FP32", shape, fp32(&vec![0.0; count]))]);
    for (shape, count) in [
        (&[1, 4][..], 4),
        (&[3], 3),
        (&[], 1),
        (&[1, 3, 1], 3),
        (&[1, -3], 3),
        (&[1, i64::MAX], 3),
        (&[1, 3, i64::MAX, i64::MAX], 3),
    ] {
        let text = "unexpected shape for input 'x' for model 'strict'. Expected [-1,3], got [";
        server.rejects(&format!("{shape:?}"), &of(shape, count), &[text]).await;
    }
    for (shape, count) in
        [(&[5, 3][..], 15), (&[0, 3], 0), (&[-1, 3], 3), (&[i64::MAX, 3], 3), (&[i64::MIN, 3], 0)]
    {
        let text = "batch-size must be <= 4 for 'strict'";
        server.rejects(&format!("{shape:?}"), &of(shape, count), &[text]).await;
    }
    for shape in
        [&[-1, 3][..], &[3, i64::MIN], &[i64::MAX, 2], &[1 << 32, 1 << 31], &[i64::MAX, i64::MAX, 0, -1]]
    {
        let what = format!("{shape:?}");
        server.rejects(&what, &input("FP32", shape, fp32(&VALUES)), &["is not valid", "'x'"]).await;
    }
    let sent = input("FP32", &[i64::MAX], fp32(&VALUES));
    server.rejects("more bytes than memory", &sent, &["larger than memory"]).await;
    server
        .rejects("many dimensions", &input("FP32", &vec![2; 10_000], fp32(&VALUES)), &["64 dimensions"])
        .await;
}

#[tokio::test]
async fn contents_are_as_many_as_the_shape_says() {
    let server = start().await;
    for count in [0usize, 1, 11, 13, 24] {
        let sent = input("FP32", &[3], vec![0; count]);
        server
            .rejects(&format!("{count} bytes"), &sent, &[&format!("unexpected byte size {count}: 12 bytes")])
            .await;
    }
    let sent =
        typed(good("strict"), InferTensorContents { fp32_contents: vec![1.0; 2], ..Default::default() });
    server.rejects("too few typed", &sent, &["unexpected byte size 8: 12 bytes"]).await;
    let sent = bad("strict", |request| request.raw_input_contents.clear());
    server.rejects("nothing", &sent, &["unexpected byte size 0"]).await;
    let whole = strings(&[b"one", b"two"]);
    for cut in [1, 3, 4, 6, whole.len() - 1] {
        let sent = request("free", &[("x", "BYTES", &[2], whole[..cut].to_vec())]);
        let status = server.infer(&sent).await.expect_err("cut BYTES");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

#[tokio::test]
async fn strings_that_lead_out_of_their_tensor_are_refused() {
    let repo = Repo::new();
    #[cfg(feature = "torch")]
    repo.script("words/1/model.pt", "def forward(self, x: List[str]) -> List[str]:\n    return x\n", &[]);
    #[cfg(not(feature = "torch"))]
    repo.file("words/1/model.pt", "fake\nargument x strings\n");
    let server = Server::start(repo.path());
    let connection = Raw::connect(&server).await;
    let infer = async |shape: &[i64], data: &[u8]| {
        let sent = request("words", &[("x", "BYTES", shape, data.to_vec())]);
        connection.call("ModelInfer", &sent).await.message::<ModelInferResponse>()
    };
    let whole = strings(&[b"one", b"", b"three"]);
    infer(&[3], &whole).await.expect("whole strings");
    for cut in 1..whole.len() {
        let status = infer(&[3], &whole[..cut]).await.expect_err("cut strings");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        one_sentence("cut", &status);
    }
    let huge = [&u32::MAX.to_le_bytes()[..], b"abc"].concat();
    for (shape, data) in
        [(&[1i64][..], &huge[..]), (&[2], &whole), (&[4], &whole), (&[0], &whole), (&[1 << 60], &[])]
    {
        let status = infer(shape, data).await.expect_err("wrong strings");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        one_sentence("wrong", &status);
    }
    infer(&[3], &whole).await.expect("whole strings");
}

#[tokio::test]
async fn contents_are_raw_or_typed_and_of_their_dtype() {
    let server = start().await;
    let contents = || InferTensorContents { fp32_contents: VALUES.to_vec(), ..Default::default() };
    let both = bad("strict", |request| request.inputs[0].contents = Some(contents()));
    let text =
        "contents field must not be specified when using raw_input_contents for 'x' for model 'strict'";
    server.rejects("raw and typed", &both, &[text]).await;
    let two = bad("strict", |request| request.raw_input_contents.push(Bytes::new()));
    server.rejects("two raw for one input", &two, &["expected 1 raw_input_contents", "got 2"]).await;
    let wrong = InferTensorContents { int_contents: vec![1, 2, 3], ..Default::default() };
    let sent = typed(good("strict"), wrong);
    server.rejects("of another dtype", &sent, &["fp32_contents", "not into int_contents"]).await;
    let sent = typed(good("strict"), InferTensorContents { bool_contents: vec![true], ..contents() });
    server.rejects("of two dtypes", &sent, &["not into bool_contents"]).await;
    for (datatype, value) in [("INT8", 128), ("INT8", -129), ("INT16", 40_000)] {
        let contents = InferTensorContents { int_contents: vec![1, value], ..Default::default() };
        let sent = typed(input(datatype, &[2], Vec::new()), contents);
        server.rejects(datatype, &sent, &["element 1 of input 'x'", "does not fit"]).await;
    }
    for (datatype, value) in [("UINT8", 256), ("UINT16", 65_536)] {
        let contents = InferTensorContents { uint_contents: vec![value], ..Default::default() };
        let sent = typed(input(datatype, &[1], Vec::new()), contents);
        server.rejects(datatype, &sent, &["element 0 of input 'x'", "does not fit"]).await;
    }
    for datatype in ["FP16", "BF16"] {
        let sent = typed(input(datatype, &[3], Vec::new()), contents());
        server.rejects(datatype, &sent, &["raw_input_contents only"]).await;
    }
}

#[tokio::test]
async fn inputs_are_each_given_once_by_their_names() {
    let server = start().await;
    let named = |name: &str| bad("strict", |request| request.inputs[0].name = name.to_owned());
    let text = "unexpected inference input 'y' for model 'strict'";
    server.rejects("another name", &named("y"), &[text]).await;
    server.rejects("no name", &named(""), &["unexpected inference input ''"]).await;
    let none = bad("strict", |request| {
        request.inputs.clear();
        request.raw_input_contents.clear();
    });
    let text = "expected 1 inputs but got 0 inputs for model 'strict'";
    server.rejects("none", &none, &[text, "missing required input(s) ['x']"]).await;
    for model in ["strict", "free"] {
        let tensor = || ("x", "FP32", &[1, 3][..], fp32(&VALUES));
        let twice = request(model, &[tensor(), tensor()]);
        server.rejects("twice", &twice, &["'x' is given more than once"]).await;
        let more = request(model, &[tensor(), ("z", "FP32", &[1, 3], fp32(&VALUES))]);
        server.rejects("one more", &more, &["unexpected inference input 'z'"]).await;
    }
}

#[tokio::test]
async fn outputs_are_each_asked_for_once_by_their_names() {
    let server = start().await;
    for model in ["strict", "free"] {
        let unknown = wanting(good(model), &["OUTPUT__9"]);
        server.rejects("unknown", &unknown, &["'OUTPUT__9'", model]).await;
        let empty = wanting(good(model), &[""]);
        server.rejects("without a name", &empty, &["''", model]).await;
        let twice = wanting(good(model), &["OUTPUT__0", "OUTPUT__0"]);
        server.rejects("twice", &twice, &["'OUTPUT__0'"]).await;
    }
    for choice in [Int64Param(0), Int64Param(-1), Uint64Param(0), Int64Param(1 << 40), BoolParam(true)] {
        let sent = bad("strict", |request| {
            *request = wanting(request.clone(), &["OUTPUT__0"]);
            request.outputs[0].parameters =
                HashMap::from([("classification".to_owned(), parameter(choice.clone()))]);
        });
        server.rejects(&format!("{choice:?}"), &sent, &["'classification' of output 'OUTPUT__0'"]).await;
    }
}

#[tokio::test]
async fn shared_memory_is_unimplemented_wherever_it_is_asked_for() {
    let server = start().await;
    let region = || ("shared_memory_region".to_owned(), parameter(StringParam("r".to_owned())));
    let alone = bad("strict", |request| {
        request.inputs[0].parameters.extend([region()]);
        request.raw_input_contents.clear();
    });
    server.refuses("an input", &alone, Code::Unimplemented, &["'x' is in shared memory"]).await;
    // As tritonclient sends it: contents for the inputs that are not in shared memory only.
    let tensor = |name| (name, "FP32", &[1, 3][..], fp32(&VALUES));
    for first in [0, 1] {
        let mut both = request("strict", &[tensor("x"), tensor("y")]);
        both.inputs[first].parameters.extend([region()]);
        both.raw_input_contents.pop();
        server.refuses("one of two inputs", &both, Code::Unimplemented, &["is in shared memory"]).await;
    }
    let output = bad("strict", |request| {
        *request = wanting(request.clone(), &["OUTPUT__0"]);
        request.outputs[0].parameters.extend([region()]);
    });
    server.refuses("an output", &output, Code::Unimplemented, &["'OUTPUT__0' is in shared memory"]).await;
}

#[tokio::test]
async fn reserved_parameters_have_their_types_and_others_are_the_clients_own() {
    let server = start().await;
    for name in ["triton_", "triton_secret", "triton_final_response"] {
        let sent = with_parameter(name, Some(BoolParam(true)));
        server.rejects(name, &sent, &["parameter keys starting with 'triton_' are reserved", name]).await;
    }
    for name in ["priority", "timeout"] {
        let wrong = [Some(StringParam("high".to_owned())), Some(BoolParam(true)), Some(Int64Param(-1)), None];
        for choice in wrong {
            let sent = with_parameter(name, choice);
            server.rejects(name, &sent, &[name, "non-negative integer"]).await;
        }
        for choice in [Int64Param(5_000_000), Uint64Param(5_000_000)] {
            server.infer(&with_parameter(name, Some(choice))).await.expect("a good parameter");
        }
    }
    for choice in [Some(StringParam("v".to_owned())), Some(ParameterChoice::DoubleParam(0.5)), None] {
        server.infer(&with_parameter("my_own", choice)).await.expect("an unknown parameter");
    }
    let sent = with_parameter("triton_enable_empty_final_response", Some(BoolParam(false)));
    server.infer(&sent).await.expect("a known parameter");
}

#[tokio::test]
async fn hostile_names_come_back_escaped_and_cut() {
    let server = start().await;
    let long = "n".repeat(100_000);
    let hostile = ["a\r\nb\0c\u{1b}[31m\u{7f}\u{85}\u{2028}\u{202e}d", "\u{1f4a3}\u{0301}'\"\\%0A", &long];
    for text in hostile {
        let named = |place: fn(&mut ModelInferRequest) -> &mut String| {
            bad("strict", |request| {
                *request = wanting(request.clone(), &["OUTPUT__0"]);
                text.clone_into(place(request));
            })
        };
        let not_found = named(|request| &mut request.model_name);
        server.refuses("model", &not_found, Code::NotFound, &["unknown model"]).await;
        server.rejects("version", &named(|request| &mut request.model_version), &["version"]).await;
        server.rejects("input", &named(|request| &mut request.inputs[0].name), &["input"]).await;
        server.rejects("dtype", &named(|request| &mut request.inputs[0].datatype), &["data-type"]).await;
        server.rejects("output", &named(|request| &mut request.outputs[0].name), &["output"]).await;
        let reserved = with_parameter(&format!("triton_{text}"), Some(BoolParam(true)));
        server.rejects("parameter", &reserved, &["reserved"]).await;
        // An id is the caller's own: it comes back as it is.
        let sent = bad("strict", |request| text.clone_into(&mut request.id));
        assert_eq!(server.infer(&sent).await.expect("an answer").id, *text);
    }
    let many: Vec<String> = (0..5000).map(|number| format!("name{number}")).collect();
    let tensors: Vec<_> =
        many.iter().map(|name| (name.as_str(), "FP32", &[1i64, 3][..], fp32(&VALUES))).collect();
    server.rejects("many inputs", &request("strict", &tensors), &["unexpected inference input"]).await;
    let names: Vec<&str> = many.iter().map(String::as_str).collect();
    server.rejects("many outputs", &wanting(good("strict"), &names), &["output"]).await;
}

#[tokio::test]
async fn names_that_are_not_utf8_are_no_protobuf() {
    let server = start().await;
    let whole = good("strict").encode_to_vec();
    // model_name is field 1, id is field 3, an input's name is field 1 of field 5.
    let fields: [&[u8]; 4] =
        [&[0x0a, 2, 0xc3, 0x28], &[0x1a, 1, 0xff], &[0x2a, 3, 0x0a, 1, 0x80], &[0x12, 1, 0xfe]];
    for field in fields {
        let answer = server.connection.send("ModelInfer", &[], framed(&[&whole, field].concat())).await;
        let status = answer.status();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("not valid protobuf"), "{status}");
        one_sentence("not UTF-8", &status);
        server.infer(&good("strict")).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_request_that_would_grow_in_memory_is_refused_before_it_does() {
    let server = start().await;
    let empty_inputs = [0x2a, 0x00].repeat(200_000);
    let answer = server.connection.send("ModelInfer", &[], framed(&empty_inputs)).await;
    let invalid = |answer, part| harness::refused(answer, Code::InvalidArgument, &[part]);
    invalid(answer.message::<ModelInferResponse>(), "200000 inputs and outputs");
    let mut deep = request("free", &[("x", "FP32", &[1], fp32(&[1.0]))]);
    deep.inputs[0].shape = vec![1; 65];
    invalid(server.infer(&deep).await, "at most 64 dimensions");
    deep.inputs[0].shape = vec![1; 1_000_000];
    invalid(server.infer(&deep).await, "64 dimensions");
    deep.inputs[0].shape = vec![0, 1 << 62, 1 << 62];
    deep.raw_input_contents = vec![Bytes::new()];
    invalid(server.infer(&deep).await, "63 bits");
}
