//! The names of inputs on the wire, and the arguments of `forward` that they lead to.

use sconce_proto::inference::ModelMetadataRequest;
use tonic::Code;

use super::{floats, models, values};
use crate::harness::{Repo, Server, refused, request};

const SUBTRACT: &str = "def forward(self, a, b):\n    return a - b\n";

fn inputs(first: &str, second: &str) -> String {
    format!(
        "inputs: [{{name: {first}, dtype: FP32, shape: [2]}}, {{name: {second}, dtype: FP32, shape: [2]}}]\n"
    )
}

/// Asserts that `first - second` is computed, whichever comes first in the request.
async fn subtracts(server: &Server, model: &str, first: &str, second: &str) {
    let (minuend, subtrahend) = (floats(first, &[2], &[5.0, 7.0]), floats(second, &[2], &[1.0, 10.0]));
    for inputs in [[minuend.clone(), subtrahend.clone()], [subtrahend, minuend]] {
        let response = server.infer(request(model, &inputs)).await.expect("an answer");
        assert_eq!(values(&response, "OUTPUT__0", &[2]), [4.0, -3.0], "{model}");
    }
}

#[tokio::test]
async fn names_of_inputs_lead_to_arguments_as_in_triton() {
    let repo = models(&[
        ("arguments", SUBTRACT, &inputs("b", "a")),
        ("indices", SUBTRACT, &inputs("INPUT__1", "INPUT__0")),
        ("other_words_than_input", SUBTRACT, &inputs("x__1", "y__0")),
        ("order", SUBTRACT, &inputs("left", "right")),
        ("order_although_one_is_an_argument", SUBTRACT, &inputs("b", "right")),
        ("order_although_one_has_an_index", SUBTRACT, &inputs("INPUT__1", "right")),
        ("no_config", SUBTRACT, ""),
    ]);
    let server = Server::start(repo.path());
    subtracts(&server, "arguments", "a", "b").await;
    subtracts(&server, "indices", "INPUT__0", "INPUT__1").await;
    subtracts(&server, "other_words_than_input", "y__0", "x__1").await;
    subtracts(&server, "order", "left", "right").await;
    subtracts(&server, "order_although_one_is_an_argument", "b", "right").await;
    subtracts(&server, "order_although_one_has_an_index", "INPUT__1", "right").await;
    subtracts(&server, "no_config", "a", "b").await;
}

#[tokio::test]
async fn only_the_names_of_the_config_are_taken() {
    let repo = models(&[("m", SUBTRACT, &inputs("left", "right"))]);
    let server = Server::start(repo.path());
    let both = [floats("a", &[2], &[5.0, 7.0]), floats("b", &[2], &[1.0, 10.0])];
    refused(server.infer(request("m", &both)).await, Code::InvalidArgument, &["'a'", "'m'", "left"]);
    let one = [floats("left", &[2], &[5.0, 7.0])];
    refused(
        server.infer(request("m", &one)).await,
        Code::InvalidArgument,
        &["expected 2 inputs but got 1", "missing required input(s) ['right']"],
    );
}

#[tokio::test]
async fn both_formats_of_a_config_give_equal_answers_and_metadata() {
    let repo = Repo::new();
    for name in ["yaml", "pbtxt"] {
        repo.script(&format!("{name}/1/model.pt"), SUBTRACT, &[]);
    }
    repo.file(
        "yaml/config.yaml",
        "max_batch_size: 4\n\
         inputs:\n- {name: left, dtype: FP32, shape: [-1]}\n- {name: right, dtype: FP32, shape: [-1]}\n\
         outputs:\n- {name: difference, dtype: FP32, shape: [-1]}\n",
    );
    repo.file(
        "pbtxt/config.pbtxt",
        "name: \"pbtxt\"\nplatform: \"pytorch_libtorch\"\nmax_batch_size: 4\n\
         input [\n  { name: \"left\" data_type: TYPE_FP32 dims: [ -1 ] },\n  \
         { name: \"right\" data_type: TYPE_FP32 dims: [ -1 ] }\n]\n\
         output [ { name: \"difference\" data_type: TYPE_FP32 dims: [ -1 ] } ]\n",
    );
    let server = Server::start(repo.path());
    let mut tables = Vec::new();
    for name in ["yaml", "pbtxt"] {
        let left = floats("left", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let right = floats("right", &[2, 3], &[0.5; 6]);
        let response = server.infer(request(name, &[left, right])).await.unwrap();
        assert_eq!(values(&response, "difference", &[2, 3]), [0.5, 1.5, 2.5, 3.5, 4.5, 5.5], "{name}");
        let asked = ModelMetadataRequest { name: name.to_owned(), ..Default::default() };
        let metadata = server.client().await.model_metadata(asked).await.unwrap().into_inner();
        assert_eq!(metadata.inputs[0].shape, [-1, -1]);
        tables.push((metadata.inputs, metadata.outputs, metadata.versions, metadata.platform));
    }
    assert_eq!(tables[0], tables[1]);
}

#[tokio::test]
async fn a_config_that_does_not_fit_forward_is_told_at_load() {
    let three = "inputs: [{name: a, dtype: FP32, shape: [2]}, {name: b, dtype: FP32, shape: [2]}, \
                 {name: c, dtype: FP32, shape: [2]}]\n";
    let repo = models(&[
        ("too_many", SUBTRACT, three),
        ("too_few", SUBTRACT, "inputs: [{name: a, dtype: FP32, shape: [2]}]\n"),
        ("twice", SUBTRACT, &inputs("INPUT__0", "OTHER__0")),
        ("bytes", SUBTRACT, &inputs("a", "b").replace("FP32", "BYTES")),
    ]);
    let server = Server::start(repo.path());
    for (model, parts) in [
        ("too_many", ["3 inputs", "'c'"]),
        ("too_few", ["no input leads to argument `b`", "(a, b)"]),
        ("twice", ["argument `a`", "'OTHER__0'"]),
        ("bytes", ["'a' is BYTES", "argument `a` of forward takes a tensor"]),
    ] {
        super::unavailable(&super::index(&server, model).await, &parts);
    }
}
