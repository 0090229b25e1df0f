//! Shapes: free, variable, reshaped, empty, and rows of classes.

use std::collections::HashMap;

use sconce_proto::inference::{InferParameter, ModelInferRequest, infer_parameter::ParameterChoice};
use tonic::Code;

use super::{floats, models, values};
use crate::harness::{Server, output, refused, request, strings, wanting};

const TWICE: &str = "def forward(self, x):\n    return x * 2\n";

#[tokio::test]
async fn without_a_config_every_shape_is_taken() {
    let repo = models(&[("m", TWICE, "")]);
    let server = Server::start(repo.path());
    for shape in [&[][..], &[1], &[0], &[2, 3], &[0, 3], &[3, 0, 2], &[1, 1, 1, 1, 1, 2, 1, 1]] {
        let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let response = server.infer(request("m", &[floats("x", shape, &vec![1.5; count])])).await.unwrap();
        assert_eq!(values(&response, "OUTPUT__0", shape), vec![3.0; count]);
    }
}

#[tokio::test]
async fn variable_dimensions_take_any_size_and_fixed_ones_their_own() {
    let config = "inputs: [{name: x, dtype: FP32, shape: [-1, 3]}]\noutputs: [{name: y, dtype: FP32, shape: [-1, 3]}]\n";
    let batched = format!("max_batch_size: 2\n{config}");
    let repo = models(&[("free", TWICE, config), ("batched", TWICE, &batched)]);
    let server = Server::start(repo.path());
    for (model, shape) in
        [("free", &[0, 3][..]), ("free", &[5, 3]), ("batched", &[1, 0, 3]), ("batched", &[2, 4, 3])]
    {
        let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let response = server.infer(request(model, &[floats("x", shape, &vec![1.0; count])])).await.unwrap();
        assert_eq!(values(&response, "y", shape), vec![2.0; count]);
    }
    for (model, shape, parts) in [
        ("free", &[3, 5][..], ["Expected [-1,3]", "got [3,5]"]),
        ("free", &[15], ["Expected [-1,3]", "got [15]"]),
        ("batched", &[5, 3], ["Expected [-1,-1,3]", "got [5,3]"]),
        ("batched", &[3, 1, 3], ["batch-size must be <= 2", "'x' is 3"]),
        ("batched", &[0, 1, 3], ["at least 1", "'x' is 0"]),
    ] {
        let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let answer = server.infer(request(model, &[floats("x", shape, &vec![1.0; count])])).await;
        refused(answer, Code::InvalidArgument, &parts);
    }
}

#[tokio::test]
async fn a_reshape_is_seen_by_the_model_and_undone_for_the_client() {
    let transpose = "def forward(self, x):\n    return x.transpose(-1, -2)\n";
    // A batch of scalars is one vector: a model that sums it would see one more dimension.
    let rows = "def forward(self, x):\n    assert x.dim() == 1\n    return x * 2\n";
    let reshaped = |more: &str, shape: &str, reshape: &str| {
        format!(
            "{more}inputs: [{{name: x, dtype: FP32, shape: {shape}, reshape: {reshape}}}]\n\
             outputs: [{{name: y, dtype: FP32, shape: {shape}, reshape: {reshape}}}]\n"
        )
    };
    let sum = "def forward(self, x):\n    return x.sum()\n";
    let repo = models(&[
        ("square", transpose, &reshaped("", "[4]", "[2, 2]")),
        ("batched", transpose, &reshaped("max_batch_size: 3\n", "[4]", "[2, 2]")),
        ("variable", transpose, &reshaped("", "[1, -1, 2, 2]", "[-1, 2, 2]")),
        ("scalar_rows", rows, &reshaped("max_batch_size: 3\n", "[1]", "[]")),
        ("scalar", sum, "outputs: [{name: y, dtype: FP32, shape: [1], reshape: []}]\n"),
    ]);
    let server = Server::start(repo.path());
    for (model, shape, sent, expected) in [
        ("square", &[4][..], &[1.0, 2.0, 3.0, 4.0][..], &[1.0, 3.0, 2.0, 4.0][..]),
        (
            "batched",
            &[2, 4],
            &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
            &[1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0],
        ),
        ("variable", &[1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0], &[1.0, 3.0, 2.0, 4.0]),
        ("variable", &[1, 0, 2, 2], &[], &[]),
        ("scalar_rows", &[3, 1], &[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]),
        ("scalar", &[1], &[7.0], &[7.0]),
    ] {
        let response = server.infer(request(model, &[floats("x", shape, sent)])).await.unwrap();
        assert_eq!(values(&response, "y", shape), expected, "{model}");
    }
    let answer = server.infer(request("square", &[floats("x", &[2, 2], &[0.0; 4])])).await;
    refused(answer, Code::InvalidArgument, &["Expected [4]", "got [2,2]"]);
}

#[tokio::test]
async fn a_scalar_output_has_a_shape_of_no_dimensions() {
    let repo = models(&[("m", "def forward(self, x):\n    return x.sum(), x.numel() + x.max()\n", "")]);
    let server = Server::start(repo.path());
    let response = server.infer(request("m", &[floats("x", &[3], &[1.0, 2.0, 4.0])])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[]), [7.0]);
    assert_eq!(values(&response, "OUTPUT__1", &[]), [7.0]);
}

/// The request with `classification` on its first output.
fn classified(request: ModelInferRequest, output: &str, count: i64) -> ModelInferRequest {
    let mut request = wanting(request, &[output]);
    let count = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(count)) };
    request.outputs[0].parameters = HashMap::from([("classification".to_owned(), count)]);
    request
}

#[tokio::test]
async fn classification_gives_the_best_of_each_row_with_its_label() {
    let config = "inputs: [{name: x, dtype: FP32, shape: [3]}]\n\
                  outputs: [{name: y, dtype: FP32, shape: [3], labels: words.txt}]\n";
    let batched = format!("max_batch_size: 4\n{config}");
    let repo = models(&[("one", TWICE, config), ("rows", TWICE, &batched), ("free", TWICE, "")]);
    repo.file("one/words.txt", "zero\none\ntwo\n");
    repo.file("rows/words.txt", "zero\none\n");
    let server = Server::start(repo.path());

    let asked = request("one", &[floats("x", &[3], &[0.5, 0.25, 1.0])]);
    let response = server.infer(classified(asked, "y", 2)).await.unwrap();
    let expected = strings(&[b"2.000000:2:two", b"1.000000:0:zero"]);
    assert_eq!(output(&response, "y"), ("BYTES", &[2][..], &expected[..]));

    let asked = || request("rows", &[floats("x", &[2, 3], &[1.0, 2.0, 3.0, 6.0, 5.0, 4.0])]);
    let response = server.infer(classified(asked(), "y", 2)).await.unwrap();
    let expected = strings(&[b"6.000000:2", b"4.000000:1:one", b"12.000000:0:zero", b"10.000000:1:one"]);
    assert_eq!(output(&response, "y"), ("BYTES", &[2, 2][..], &expected[..]));
    let response = server.infer(classified(asked(), "y", 100)).await.unwrap();
    assert_eq!(output(&response, "y").1, [2, 3]);

    let flat = request("free", &[floats("x", &[2, 2], &[1.0, 2.0, 4.0, 3.0])]);
    let response = server.infer(classified(flat, "OUTPUT__0", 1)).await.unwrap();
    let expected = strings(&[b"8.000000:2"]);
    assert_eq!(output(&response, "OUTPUT__0"), ("BYTES", &[1][..], &expected[..]));

    for count in [0, -1] {
        let answer = server.infer(classified(asked(), "y", count)).await;
        refused(answer, Code::InvalidArgument, &["'classification'", "'y'", "positive"]);
    }
}
