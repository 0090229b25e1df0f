//! Models while they run: many callers at once, and the settings that say how.

use tokio::task::JoinSet;

use super::{floats, models, values};
use crate::harness::{Repo, Server, request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_gets_the_answer_to_its_own_question() {
    const CALLERS: u16 = 48;
    const CALLS: u16 = 20;
    let config = "max_batch_size: 8\ninputs: [{name: x, dtype: FP32, shape: [-1]}]\n\
                  outputs: [{name: y, dtype: FP32, shape: [-1]}]\n";
    let source = "def forward(self, x):\n    return torch.relu(x * 3) - 1\n";
    let repo = models(&[("free", source, ""), ("batched", source, config)]);
    let server = Server::start(repo.path());
    let client = server.client().await;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut client = client.clone();
        callers.spawn(async move {
            for call in 0..CALLS {
                let value = f32::from(caller * CALLS + call);
                let (rows, columns) = (1 + usize::from(call % 3), 1 + usize::from(caller % 5));
                let shape = [i64::try_from(rows).unwrap(), i64::try_from(columns).unwrap()];
                let sent: Vec<f32> = (0..rows * columns).map(|at| value + 1000.0 * at as f32).collect();
                let expected: Vec<f32> = sent.iter().map(|value| value * 3.0 - 1.0).collect();
                let (model, name) = if call % 2 == 0 { ("free", "OUTPUT__0") } else { ("batched", "y") };
                let mut asked = request(model, &[floats("x", &shape, &sent)]);
                asked.id = format!("{caller}/{call}");
                let response = client.model_infer(asked).await.unwrap().into_inner();
                assert_eq!(response.id, format!("{caller}/{call}"));
                assert_eq!(values(&response, name, &shape), expected);
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
}

/// A small convolutional network on one channel of 6x6.
const CONVOLUTIONS: &str = "\
def forward(self, x):
    x = torch.relu(torch.conv2d(x, self.w1, self.b1, padding=[1, 1]))
    x = torch.max_pool2d(x, [2, 2])
    x = torch.relu(torch.conv2d(x, self.w2, self.b2))
    return torch.addmm(self.b3, x.flatten(1), self.w3)
";
const PARAMETERS: [&str; 6] = ["w1:4x1x3x3", "b1:4", "w2:8x4x3x3", "b2:8", "w3:8x3", "b3:3"];

#[tokio::test]
async fn settings_of_how_a_model_runs_do_not_change_its_answers() {
    let repo = Repo::new();
    let settings = [
        ("plain", ""),
        ("optimize", "optimize: true\n"),
        ("one_thread", "threads: 1\n"),
        ("two_threads", "threads: 2\n"),
        ("no_inference_mode", "inference_mode: false\n"),
        ("not_optimized_execution", "optimized_execution: false\n"),
        ("stateful", "stateful: true\n"),
        ("cpu", "instances: [{device: cpu, count: 1}]\n"),
    ];
    for (name, config) in settings {
        repo.script(&format!("{name}/1/model.pt"), CONVOLUTIONS, &PARAMETERS);
        repo.file(&format!("{name}/config.yaml"), config);
    }
    let server = Server::start(repo.path());
    let image: Vec<f32> = (0..72u8).map(|at| f32::from(at % 7) - 3.0).collect();
    let expected = server.infer(request("plain", &[floats("x", &[2, 1, 6, 6], &image)])).await.unwrap();
    let expected = values(&expected, "OUTPUT__0", &[2, 3]);
    assert!(expected.iter().any(|value| value.abs() > 1e-3), "a model that says something: {expected:?}");
    for (name, _) in settings {
        // The executor takes other paths after its first runs.
        for _ in 0..4 {
            let response = server.infer(request(name, &[floats("x", &[2, 1, 6, 6], &image)])).await.unwrap();
            let got = values(&response, "OUTPUT__0", &[2, 3]);
            let close = got.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() <= 1e-5);
            assert!(close, "{name}: {got:?} is not {expected:?}");
        }
    }
}

#[tokio::test]
async fn methods_beside_forward_can_be_called_by_it() {
    let source =
        "def helper(self, x):\n    return x + 1\n\ndef forward(self, x):\n    return self.helper(x) * 2\n";
    let repo = models(&[("m", source, "")]);
    let server = Server::start(repo.path());
    let response = server.infer(request("m", &[floats("x", &[1], &[1.0])])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[1]), [4.0]);
}

#[tokio::test]
async fn a_model_for_gpus_is_told_when_there_is_none() {
    let server_has_gpu = crate::harness::stdout(&crate::harness::run(&["version"])).contains("gpu:0");
    if server_has_gpu {
        return;
    }
    let repo = models(&[("m", "def forward(self, x):\n    return x\n", "instances: [{device: gpu}]\n")]);
    let server = Server::start(repo.path());
    super::unavailable(
        &super::index(&server, "m").await,
        &["ask for a GPU", "found only cpu", "`instances`"],
    );
}
