//! Kinds of arguments: optional ones, lists, dicts, scalars.

use tonic::Code;

use super::{floats, index, models, unavailable, values};
use crate::harness::{Server, int64, output, refused, request, strings};

const OPTIONAL: &str = "\
def forward(self, x, bias: Optional[Tensor] = None, scale: Optional[Tensor] = None):
    if scale is not None:
        x = x * scale
    if bias is not None:
        x = x + bias
    return x
";

#[tokio::test]
async fn an_optional_input_may_be_left_out_and_another_given() {
    let config = "inputs:\n- {name: x, dtype: FP32, shape: [2]}\n\
                  - {name: bias, dtype: FP32, shape: [2], optional: true}\n\
                  - {name: scale, dtype: FP32, shape: [2], optional: true}\n";
    let without_default = OPTIONAL.replace(" = None", "");
    let repo = models(&[
        ("config", OPTIONAL, config),
        ("no_config", OPTIONAL, ""),
        ("no_default", &without_default, ""),
        ("no_default_config", &without_default, config),
    ]);
    let server = Server::start(repo.path());
    for model in ["config", "no_config", "no_default", "no_default_config"] {
        let (x, bias, scale) = (
            floats("x", &[2], &[1.0, 2.0]),
            floats("bias", &[2], &[10.0, 20.0]),
            floats("scale", &[2], &[3.0, 4.0]),
        );
        for (inputs, expected) in [
            (vec![x.clone()], [1.0, 2.0]),
            (vec![x.clone(), bias.clone()], [11.0, 22.0]),
            (vec![x.clone(), scale.clone()], [3.0, 8.0]),
            (vec![scale, x, bias.clone()], [13.0, 28.0]),
        ] {
            let response = server.infer(request(model, &inputs)).await.unwrap();
            assert_eq!(values(&response, "OUTPUT__0", &[2]), expected, "{model}");
        }
        let answer = server.infer(request(model, &[bias])).await;
        refused(answer, Code::InvalidArgument, &["missing required input(s) ['x']"]);
    }
}

#[tokio::test]
async fn optional_in_the_config_only_is_told_at_load() {
    let config = "inputs:\n- {name: x, dtype: FP32, shape: [2], optional: true}\n";
    let repo = models(&[("m", "def forward(self, x):\n    return x\n", config)]);
    let server = Server::start(repo.path());
    unavailable(&index(&server, "m").await, &["'x' is optional", "no default"]);
}

/// Order matters, so that a mixed up list is seen.
const LIST: &str = "\
def forward(self, xs: List[Tensor], scale: float = 1.0):
    total = torch.zeros([1])
    for x in xs:
        total = total * 10 + x.sum()
    return total * scale
";

#[tokio::test]
async fn elements_of_a_list_come_in_any_order_and_number() {
    let config =
        "inputs:\n- {name: xs__1, dtype: FP32, shape: [1]}\n- {name: xs__0, dtype: FP32, shape: [2]}\n";
    let repo = models(&[("free", LIST, ""), ("config", LIST, config)]);
    let server = Server::start(repo.path());
    let (first, second, third) =
        (floats("xs__0", &[2], &[1.0, 1.0]), floats("xs__1", &[1], &[3.0]), floats("xs__2", &[1, 1], &[4.0]));
    for (model, inputs, expected) in [
        ("free", vec![first.clone()], 2.0),
        ("free", vec![first.clone(), second.clone(), third.clone()], 234.0),
        ("free", vec![third.clone(), first.clone(), second.clone()], 234.0),
        (
            "free",
            vec![("scale", "FP64", &[], 0.5f64.to_le_bytes().to_vec()), second.clone(), first.clone()],
            11.5,
        ),
        ("free", vec![], 0.0),
        ("config", vec![first.clone(), second.clone()], 23.0),
        ("config", vec![second.clone(), first.clone()], 23.0),
    ] {
        let response = server.infer(request(model, &inputs)).await.unwrap();
        assert_eq!(values(&response, "OUTPUT__0", &[1]), [expected], "{model} {inputs:?}");
    }
    let gap = server.infer(request("free", &[first.clone(), third.clone()])).await;
    refused(gap, Code::InvalidArgument, &["'xs__1'", "'xs__2' was given"]);
    let beyond = server.infer(request("config", &[first, second, third])).await;
    refused(beyond, Code::InvalidArgument, &["unexpected inference input 'xs__2'"]);
}

#[tokio::test]
async fn the_only_dict_takes_names_as_keys() {
    let source = "def forward(self, d: Dict[str, Tensor]):\n    \
                  result = d['a'] - d['the second']\n    \
                  if 'c' in d:\n        result = result + d['c']\n    return result\n";
    let config =
        "inputs:\n- {name: the second, dtype: FP32, shape: [1]}\n- {name: a, dtype: FP32, shape: [1]}\n";
    let repo = models(&[("free", source, ""), ("config", source, config)]);
    let server = Server::start(repo.path());
    for model in ["free", "config"] {
        let inputs = [floats("the second", &[1], &[1.0]), floats("a", &[1], &[5.0])];
        let response = server.infer(request(model, &inputs)).await.unwrap();
        assert_eq!(values(&response, "OUTPUT__0", &[1]), [4.0], "{model}");
    }
    let inputs = [floats("a", &[1], &[5.0]), floats("c", &[1], &[100.0]), floats("the second", &[1], &[1.0])];
    let response = server.infer(request("free", &inputs)).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[1]), [104.0]);
    // The code may look before it reads, so that only the model can say what it misses.
    let answer = server.infer(request("free", &[floats("a", &[1], &[5.0])])).await;
    refused(answer, Code::Internal, &["'free'", "the second"]);
}

#[tokio::test]
async fn a_dict_beside_others_takes_names_with_a_dot() {
    let source = "def forward(self, x, d: Dict[str, Tensor]):\n    return x * d['scale'] + d['bias.of it']\n";
    let config = "inputs:\n- {name: x, dtype: FP32, shape: [1]}\n\
                  - {name: d.bias.of it, dtype: FP32, shape: [1]}\n- {name: d.scale, dtype: FP32, shape: [1]}\n";
    let repo = models(&[("free", source, ""), ("config", source, config)]);
    let server = Server::start(repo.path());
    for model in ["free", "config"] {
        let inputs = [
            floats("d.bias.of it", &[1], &[1.0]),
            floats("d.scale", &[1], &[3.0]),
            floats("x", &[1], &[5.0]),
        ];
        let response = server.infer(request(model, &inputs)).await.unwrap();
        assert_eq!(values(&response, "OUTPUT__0", &[1]), [16.0], "{model}");
    }
}

const SCALARS: &str = "\
def forward(self, x, times: int = 2, plus: float = 0.5, negate: bool = False, word: str = 'four'):
    x = x * times + plus + len(word)
    if negate:
        x = -x
    return x
";

#[tokio::test]
async fn scalars_have_the_defaults_of_forward_and_take_one_element() {
    let repo = models(&[("m", SCALARS, "")]);
    let server = Server::start(repo.path());
    let x = || floats("x", &[2], &[1.0, 2.0]);
    for (inputs, expected) in [
        (vec![x()], [6.5, 8.5]),
        (vec![x(), ("times", "INT64", &[], int64(&[-3]))], [1.5, -1.5]),
        (vec![x(), ("times", "INT8", &[1], vec![0xfd])], [1.5, -1.5]),
        (vec![x(), ("times", "UINT8", &[1], vec![0xfd])], [257.5, 510.5]),
        (vec![("plus", "FP32", &[1, 1], 1f32.to_le_bytes().to_vec()), x()], [7.0, 9.0]),
        (vec![x(), ("negate", "BOOL", &[1], vec![1])], [-6.5, -8.5]),
        (vec![x(), ("word", "BYTES", &[1], strings(&[b"\xff"]))], [3.5, 5.5]),
        (
            vec![
                ("word", "BYTES", &[], strings(&[b""])),
                ("negate", "BOOL", &[], vec![1]),
                ("plus", "FP64", &[], 8f64.to_le_bytes().to_vec()),
                ("times", "INT32", &[], 100i32.to_le_bytes().to_vec()),
                x(),
            ],
            [-108.0, -208.0],
        ),
    ] {
        let response = server.infer(request("m", &inputs)).await.unwrap();
        assert_eq!(values(&response, "OUTPUT__0", &[2]), expected, "{inputs:?}");
    }
    let two = ("times", "INT64", &[2][..], int64(&[1, 2]));
    refused(
        server.infer(request("m", &[x(), two])).await,
        Code::InvalidArgument,
        &["'times'", "one element"],
    );
    let float = floats("times", &[1], &[1.0]);
    let answer = server.infer(request("m", &[x(), float])).await;
    refused(answer, Code::InvalidArgument, &["'times'", "FP32", "an integer dtype"]);
}

#[tokio::test]
async fn a_scalar_in_a_batch_is_said_by_every_row_the_same() {
    let config = "max_batch_size: 4\ninputs:\n- {name: x, dtype: FP32, shape: [1]}\n\
                  - {name: times, dtype: INT64, shape: [1], optional: true}\n\
                  - {name: word, dtype: BYTES, shape: [1], optional: true}\n";
    let repo = models(&[("m", SCALARS, config)]);
    let server = Server::start(repo.path());
    let x = || floats("x", &[3, 1], &[1.0, 2.0, 3.0]);
    let inputs = [
        x(),
        ("times", "INT64", &[3, 1], int64(&[10, 10, 10])),
        ("word", "BYTES", &[3, 1], strings(&[b"ab", b"ab", b"ab"])),
    ];
    let response = server.infer(request("m", &inputs)).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[3, 1]), [12.5, 22.5, 32.5]);
    let differing = ("times", "INT64", &[3, 1][..], int64(&[10, 10, 11]));
    let answer = server.infer(request("m", &[x(), differing])).await;
    refused(answer, Code::InvalidArgument, &["'times'", "the same", "different ones"]);
    let other_batch = ("times", "INT64", &[2, 1][..], int64(&[10, 10]));
    let answer = server.infer(request("m", &[x(), other_batch])).await;
    refused(answer, Code::InvalidArgument, &["'times'", "batch size does not match"]);
}

#[tokio::test]
async fn an_argument_that_cannot_be_sent_is_told_at_load() {
    let repo = models(&[
        ("tuple", "def forward(self, x, pair: Tuple[int, int]):\n    return x * pair[0]\n", ""),
        ("defaulted", "def forward(self, x, sizes: List[int] = [3, 4]):\n    return x * sizes[1]\n", ""),
        (
            "wrong_dtype",
            SCALARS,
            "inputs: [{name: x, dtype: FP32, shape: [1]}, {name: times, dtype: FP32, shape: [1]}]\n",
        ),
    ]);
    let server = Server::start(repo.path());
    unavailable(&index(&server, "tuple").await, &["`pair`", "Tuple[int, int]", "cannot be sent"]);
    unavailable(&index(&server, "wrong_dtype").await, &["'times' is FP32", "an integer dtype"]);
    let response = server.infer(request("defaulted", &[floats("x", &[1], &[2.0])])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[1]), [8.0]);
}

#[tokio::test]
async fn a_module_without_arguments_is_asked_without_inputs() {
    let repo = models(&[("m", "def forward(self):\n    return torch.arange(3)\n", "")]);
    let server = Server::start(repo.path());
    let response = server.infer(request("m", &[])).await.unwrap();
    assert_eq!(output(&response, "OUTPUT__0"), ("INT64", &[3][..], &int64(&[0, 1, 2])[..]));
}
