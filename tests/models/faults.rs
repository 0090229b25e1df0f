//! Models that misbehave: they throw, they write where they must not. The server goes on.

use tonic::Code;

use super::{floats, index, models, unavailable, values};
use crate::harness::{Repo, Server, refused, request};

#[tokio::test]
async fn a_model_that_throws_says_why_in_one_line_and_serves_on() {
    let source = "\
def forward(self, x):
    if bool(x.min() < 0):
        ops.prim.RaiseException('only positive numbers, please', 'builtins.ValueError')
    assert bool(x.max() < 100), 'too large'
    return x.matmul(torch.ones([2, 1]))
";
    let repo = models(&[("m", source, "")]);
    let server = Server::start(repo.path());
    let good = [floats("x", &[1, 2], &[1.0, 2.0])];
    for (bad, part) in [
        (floats("x", &[1, 2], &[1.0, -1.0]), "ValueError: only positive numbers, please"),
        (floats("x", &[1, 2], &[1.0, 100.0]), "too large"),
        (floats("x", &[1, 3], &[1.0, 2.0, 3.0]), "mat1 and mat2 shapes cannot be multiplied (1x3 and 2x1)"),
    ] {
        let status = server.infer(request("m", &[bad])).await.unwrap_err();
        for noise in ["Traceback", "serialized code", "C++", ".cpp", "frame #", "0x"] {
            assert!(!status.message().contains(noise), "{noise:?} is in: {}", status.message());
        }
        refused(Err::<(), _>(status), Code::Internal, &["model 'm' failed: ", part]);
        let response = server.infer(request("m", &good)).await.unwrap();
        assert_eq!(values(&response, "OUTPUT__0", &[1, 1]), [3.0]);
    }
}

#[tokio::test]
async fn a_wrong_dtype_inside_the_model_fails_that_request_alone() {
    let repo = models(&[("m", "def forward(self, i):\n    return torch.ones([3, 2])[i]\n", "")]);
    let server = Server::start(repo.path());
    let index = |value: i64| request("m", &[("i", "INT64", &[1], value.to_le_bytes().to_vec())]);
    refused(server.infer(index(7)).await, Code::Internal, &["index 7 is out of bounds"]);
    let floats = request("m", &[floats("i", &[1], &[1.0])]);
    refused(server.infer(floats).await, Code::Internal, &["model 'm' failed: "]);
    let response = server.infer(index(2)).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[1, 2]), [1.0, 1.0]);
}

#[tokio::test]
async fn a_model_that_writes_to_its_input_gives_right_answers_again_and_again() {
    let repo = models(&[
        ("itself", "def forward(self, x):\n    return x.mul_(2).add_(1)\n", ""),
        ("row", "def forward(self, x):\n    x[0] = 5\n    return x.sum(0)\n", ""),
        (
            "list",
            "def forward(self, xs: List[Tensor]):\n    for x in xs:\n        x.add_(1)\n    return xs[0] + xs[1]\n",
            "",
        ),
        ("dict", "def forward(self, d: Dict[str, Tensor]):\n    d['a'].add_(1)\n    return d['a']\n", ""),
    ]);
    let server = Server::start(repo.path());
    let client = server.client().await;
    for (model, inputs, shape, expected) in [
        ("itself", vec![floats("x", &[2], &[1.0, 2.0])], &[2][..], [3.0, 5.0]),
        ("row", vec![floats("x", &[2, 2], &[1.0, 1.0, 2.0, 3.0])], &[2], [7.0, 8.0]),
        (
            "list",
            vec![floats("xs__0", &[2], &[1.0, 2.0]), floats("xs__1", &[2], &[10.0, 20.0])],
            &[2],
            [13.0, 24.0],
        ),
        ("dict", vec![floats("a", &[2], &[1.0, 2.0])], &[2], [2.0, 3.0]),
    ] {
        let asked = request(model, &inputs);
        for _ in 0..5 {
            let response = client.clone().model_infer(asked.clone()).await.unwrap().into_inner();
            assert_eq!(values(&response, "OUTPUT__0", shape), expected, "{model}");
        }
    }
}

/// Counts its calls in a buffer.
const COUNTING: &str = "def forward(self, x):\n    self.count.add_(1)\n    return x + self.count\n";

#[tokio::test]
async fn a_model_that_changes_itself_is_refused_unless_it_says_so() {
    let repo = Repo::new();
    for name in ["unsaid", "denied", "said"] {
        repo.script(&format!("{name}/1/model.pt"), COUNTING, &["buffer count:1"]);
    }
    let set = "def forward(self, x):\n    self.count = self.count + 1\n    return x + self.count\n";
    repo.script("set/1/model.pt", set, &["buffer count:1"]);
    // What is only read may be shared.
    repo.script(
        "reads/1/model.pt",
        "def forward(self, x):\n    return x * 0 + self.count * 0\n",
        &["buffer count:1"],
    );
    repo.file("denied/config.yaml", "stateful: false\n");
    repo.file("said/config.yaml", "stateful: true\ninstances: 1\n");
    let server = Server::start_with(repo.path(), &["--cpu-workers", "1"]);
    for model in ["unsaid", "denied"] {
        unavailable(
            &index(&server, model).await,
            &["changes the module's own attributes", "add_", "`stateful: true`"],
        );
    }
    unavailable(
        &index(&server, "set").await,
        &["changes the module's own attributes", "count", "`stateful: true`"],
    );

    let x = || floats("x", &[1], &[0.0]);
    let mut answers = Vec::new();
    for _ in 0..3 {
        let response = server.infer(request("said", &[x()])).await.unwrap();
        answers.push(values(&response, "OUTPUT__0", &[1])[0]);
    }
    assert!((answers[1] - answers[0] - 1.0).abs() < 1e-5 && (answers[2] - answers[1] - 1.0).abs() < 1e-5);
    let response = server.infer(request("reads", &[x()])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[1]), [0.0]);
}

#[tokio::test]
async fn a_module_without_forward_is_told_at_load() {
    let repo = models(&[("m", "def predict(self, x):\n    return x\n", "")]);
    let server = Server::start(repo.path());
    unavailable(&index(&server, "m").await, &["no method `forward`", "m/1/model.pt"]);
}

#[tokio::test]
async fn mixed_lists_and_long_messages_are_answers_and_no_crash() {
    let mixed = "\
def forward(self, x) -> List[Any]:
    result: List[Any] = ['a', x]
    return result
";
    let echo = "\
def forward(self, s: List[str]) -> List[str]:
    ops.prim.RaiseException('bad: ' + s[0], 'builtins.ValueError')
    return s
";
    let repo = models(&[("mixed", mixed, ""), ("echo", echo, "")]);
    let server = Server::start(repo.path());
    let answer = server.infer(request("mixed", &[floats("x", &[1], &[1.0])])).await;
    refused(answer, Code::Internal, &["'OUTPUT__0' is str"]);
    let long = crate::harness::strings(&["\u{1b}é".repeat(10_000).as_bytes()]);
    let status = server.infer(request("echo", &[("s", "BYTES", &[1], long)])).await.unwrap_err();
    assert!(status.message().len() < 3000, "{} bytes", status.message().len());
    refused(Err::<(), _>(status), Code::Internal, &["ValueError: bad: \\u{1b}é"]);
}
