//! Answers compared with those of libtorch itself, called through tch on the same file: no code of ours
//! is on that side.
#![cfg(feature = "reference")]

use std::path::Path;

use tch::{CModule, Kind, Tensor};

use crate::{
    harness::{Repo, Server, as_fp32, fp32, output, request},
    models::Input,
};

/// Models by name: source, parameters, what one row of the input is.
const MODELS: [(&str, &str, &[&str], &[i64]); 4] = [
    (
        "mlp",
        "def forward(self, x):\n    \
         x = torch.relu(torch.addmm(self.b1, x, self.w1))\n    \
         x = torch.gelu(torch.addmm(self.b2, x, self.w2))\n    \
         return torch.softmax(torch.addmm(self.b3, x, self.w3), 1)\n",
        &["w1:16x64", "b1:64", "w2:64x64", "b2:64", "w3:64x10", "b3:10"],
        &[16],
    ),
    (
        "cnn",
        "def forward(self, x):\n    \
         x = torch.relu(torch.conv2d(x, self.w1, self.b1, padding=[1, 1]))\n    \
         x = torch.max_pool2d(x, [2, 2])\n    \
         x = torch.relu(torch.conv2d(x, self.w2, self.b2, stride=[2, 2]))\n    \
         x = torch.adaptive_avg_pool2d(x, [2, 2]).flatten(1)\n    \
         return torch.addmm(self.b3, x, self.w3)\n",
        &["w1:8x3x3x3", "b1:8", "w2:16x8x3x3", "b2:16", "w3:64x5", "b3:5"],
        &[3, 12, 12],
    ),
    (
        "attention",
        "def forward(self, x):\n    \
         q = torch.matmul(x, self.wq)\n    k = torch.matmul(x, self.wk)\n    v = torch.matmul(x, self.wv)\n    \
         scores = torch.matmul(q, k.transpose(1, 2)) / 4.0\n    \
         x = torch.matmul(torch.softmax(scores, 2), v) + x\n    \
         return torch.layer_norm(x, [16], self.g, self.b)\n",
        &["wq:16x16", "wk:16x16", "wv:16x16", "g:16", "b:16"],
        &[7, 16],
    ),
    (
        "recurrence",
        "def forward(self, x):\n    \
         h = torch.zeros([x.size(0), 12])\n    \
         for step in range(x.size(1)):\n        \
         h = torch.tanh(torch.matmul(x[:, step], self.wx) + torch.matmul(h, self.wh))\n    \
         return h\n",
        &["wx:4x12", "wh:12x12"],
        &[9, 4],
    ),
];

/// Numbers without a pattern, between -1 and 1; always the same for the same seed.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// What libtorch says of the file: the shape and the elements.
fn reference(file: &Path, shape: &[i64], data: &[f32]) -> (Vec<i64>, Vec<f32>) {
    let mut module = CModule::load(file).expect("tch loads it");
    module.set_eval();
    let input = Tensor::from_slice(data).reshape(shape);
    let answer = tch::no_grad(|| module.forward_ts(&[input])).expect("tch runs it");
    assert_eq!(answer.kind(), Kind::Float);
    let elements = Vec::<f32>::try_from(answer.contiguous().view([-1])).expect("elements");
    (answer.size(), elements)
}

#[track_caller]
fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    // Rounding is relative to the largest number that took part, not to a sum that cancelled out.
    let scale = expected.iter().fold(0f32, |scale, value| scale.max(value.abs()));
    assert!(scale > 0.0 && scale.is_finite(), "{what}: a model that says something");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 1e-6 * scale, "{what}: element {at} is {got}, not {expected}");
    }
}

/// Asks the server and libtorch the same and compares.
async fn same(server: &Server, model: &str, version: &str, file: &Path, shape: &[i64], name: &str) {
    let count = usize::try_from(shape.iter().product::<i64>()).expect("a shape");
    let data = numbers(count, shape[0].unsigned_abs());
    let (expected_shape, expected) = reference(file, shape, &data);
    let input: Input<'_> = ("x", "FP32", shape, fp32(&data));
    let mut asked = request(model, &[input]);
    version.clone_into(&mut asked.model_version);
    let response = server.infer(asked).await.expect("an answer");
    let (datatype, got_shape, got) = output(&response, name);
    assert_eq!((datatype, got_shape), ("FP32", &expected_shape[..]), "{model}");
    assert_close(&format!("{model} version {version:?} {shape:?}"), &as_fp32(got), &expected);
}

#[tokio::test]
async fn answers_are_those_of_libtorch_at_every_batch_size() {
    let repo = Repo::new();
    for (model, source, parameters, row) in MODELS {
        repo.script(&format!("{model}/1/model.pt"), source, parameters);
        repo.script(&format!("{model}_batched/1/model.pt"), source, parameters);
        let free = vec![-1; row.len()];
        let rank_of_output = if model == "attention" { "[-1, -1]" } else { "[-1]" };
        let config = format!(
            "max_batch_size: 8\ninputs: [{{name: x, dtype: FP32, shape: {free:?}}}]\n\
             outputs: [{{name: y, dtype: FP32, shape: {rank_of_output}}}]\n"
        );
        repo.file(&format!("{model}_batched/config.yaml"), config);
    }
    let server = Server::start(repo.path());
    for (model, _, _, row) in MODELS {
        let file = repo.path().join(model).join("1/model.pt");
        for batch in 1..=8 {
            let shape = [&[batch], row].concat();
            same(&server, model, "", &file, &shape, "OUTPUT__0").await;
            same(&server, &format!("{model}_batched"), "", &file, &shape, "y").await;
        }
    }
}

#[tokio::test]
async fn every_version_answers_as_its_own_file() {
    let repo = Repo::new();
    let (_, source, parameters, row) = MODELS[0];
    repo.script("m/1/model.pt", source, parameters);
    repo.script("m/2/model.pt", &source.replace("gelu", "tanh"), parameters);
    repo.file("m/config.yaml", "versions: all\n");
    let server = Server::start(repo.path());
    let shape = [&[3], row].concat();
    let files = ["1", "2"].map(|version| repo.path().join(format!("m/{version}/model.pt")));
    let data = numbers(48, 3);
    let [first, second] = [0, 1].map(|at| reference(&files[at], &shape, &data).1);
    assert_ne!(first, second, "versions that can be told apart");
    for _ in 0..3 {
        for (version, file) in [("1", &files[0]), ("2", &files[1]), ("", &files[1])] {
            same(&server, "m", version, file, &shape, "OUTPUT__0").await;
        }
    }
}

#[tokio::test]
async fn optimized_for_inference_answers_are_those_of_libtorch_to_rounding() {
    let repo = Repo::new();
    for (model, source, parameters, _) in MODELS {
        repo.script(&format!("{model}/1/model.pt"), source, parameters);
        repo.file(&format!("{model}/config.yaml"), "optimize: true\n");
    }
    let server = Server::start(repo.path());
    for (model, _, _, row) in MODELS {
        let file = repo.path().join(model).join("1/model.pt");
        for batch in [1, 4] {
            same(&server, model, "", &file, &[&[batch], row].concat(), "OUTPUT__0").await;
        }
    }
}
