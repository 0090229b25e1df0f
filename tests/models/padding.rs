//! Requests of different lengths that run in one batch: each has the answer that it has alone.

use sconce_proto::inference::{ModelConfigRequest, ModelInferResponse, ModelMetadataRequest};
use tokio::task::JoinSet;
use tonic::Code;

use super::{floats, models, values};
use crate::harness::{Server, int64, refused, request};

/// Attention without a softmax, and the mean over what is there, in whole numbers: not a bit may differ.
const ATTENTION: &str = "\
def forward(self, ids, mask):
    x = ids.to(mask)
    x = torch.stack([x, x * x, torch.ones_like(x)], 2)
    scores = torch.matmul(x, x.transpose(1, 2)) * mask.unsqueeze(1)
    attended = torch.matmul(scores, x)
    mean = (attended * mask.unsqueeze(2)).sum(1) / mask.sum(1, True)
    return attended, mean, torch.full([x.size(0), 1], float(x.size(0)))
";

/// The rest of a configuration, with these fields of its inputs and its first output.
fn config(pad: &str, mask_of: &str, unpad: &str) -> String {
    format!(
        "inputs:\n- {{name: ids, dtype: INT64, shape: [-1]{pad}}}\n- {{name: mask, dtype: FP32, shape: [-1]{mask_of}}}\n\
         outputs:\n- {{name: attended, dtype: FP32, shape: [-1, 3]{unpad}}}\n- {{name: mean, dtype: FP32, shape: [3]}}\n\
         - {{name: size, dtype: FP32, shape: [1]}}\n"
    )
}

fn ids(length: i64) -> Vec<i64> {
    (0..length).map(|at| 1 + (at * 5 + length) % 7).collect()
}

/// All that is answered, and in how large a batch.
fn answered(response: &ModelInferResponse, length: i64) -> (Vec<f32>, Vec<f32>, f32) {
    let size = values(response, "size", &[1, 1])[0];
    (values(response, "attended", &[1, length, 3]), values(response, "mean", &[1, 3]), size)
}

#[tokio::test]
async fn requests_of_different_lengths_are_answered_together_as_alone() {
    let padded = config(", pad: 9", ", mask_of: ids", ", unpad: ids");
    // A batch waits until there are three.
    let joined = format!("max_batch_size: 4\nbatching: {{max_delay: 60s, preferred_sizes: [3]}}\n{padded}");
    let single = format!("max_batch_size: 4\nbatching: off\n{padded}");
    let plain = format!("max_batch_size: 4\nbatching: off\n{}", config("", "", ""));
    let repo = models(&[
        ("joined", ATTENTION, &joined),
        ("single", ATTENTION, &single),
        ("plain", ATTENTION, &plain),
    ]);
    let server = Server::start(repo.path());
    // The third sends a mask of its own, in which something is missing.
    let lengths = [3, 5, 8];
    let mask = |length: i64| (0..length).map(|at| f32::from(length != 8 || at % 3 != 1)).collect::<Vec<_>>();
    let mut calls = JoinSet::new();
    for length in lengths {
        let shape = [1, length];
        let ids = ("ids", "INT64", &shape[..], int64(&ids(length)));
        let masked = floats("mask", &shape, &mask(length));
        let inputs = if length == 8 { vec![ids.clone(), masked.clone()] } else { vec![ids.clone()] };
        let plain = server.infer(request("plain", &[ids, masked])).await.unwrap();
        let expected = answered(&plain, length);
        let single = server.infer(request("single", &inputs)).await.unwrap();
        assert_eq!(answered(&single, length), expected, "alone the mask is made, too");
        let (mut client, asked) = (server.client().await, request("joined", &inputs));
        calls.spawn(async move { (length, expected, client.model_infer(asked).await.unwrap().into_inner()) });
    }
    while let Some(call) = calls.join_next().await {
        let (length, (attended, mean, _), response) = call.unwrap();
        assert_eq!(answered(&response, length), (attended, mean, 3.0), "{length}");
    }
}

#[tokio::test]
async fn what_is_filled_up_is_shown_and_a_mask_that_does_not_fit_is_refused() {
    let padded = config(", pad: 9", ", mask_of: ids", ", unpad: ids");
    let repo = models(&[("m", ATTENTION, &format!("max_batch_size: 4\n{padded}"))]);
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let (name, version) = ("m".to_owned(), String::new());
    let asked = ModelMetadataRequest { name: name.clone(), version: version.clone() };
    let metadata = client.model_metadata(asked).await.unwrap().into_inner();
    let shown: Vec<_> = metadata.inputs.iter().map(|input| (&*input.name, &input.shape[..])).collect();
    assert_eq!(shown, [("ids", &[-1, -1][..]), ("mask", &[-1, -1])]);
    let config = client.model_config(ModelConfigRequest { name, version }).await.unwrap().into_inner();
    let config = config.config.expect("a configuration");
    assert_eq!(config.input.iter().map(|input| input.optional).collect::<Vec<_>>(), [false, true]);
    for (key, value) in [("PAD", "ids=9"), ("MASK", "mask=ids"), ("UNPAD", "attended=ids")] {
        assert_eq!(config.parameters[key].string_value, value);
    }
    let inputs = [("ids", "INT64", &[1, 2][..], int64(&[1, 2])), floats("mask", &[1, 3], &[1.0; 3])];
    let parts = ["'mask' is the mask of 'ids' for model 'm'", "must be the same, [2], got [3]"];
    refused(server.infer(request("m", &inputs)).await, Code::InvalidArgument, &parts);
    refused(server.infer(request("m", &inputs[1..])).await, Code::InvalidArgument, &["missing", "'ids'"]);
}
