//! What `forward` returns, by the names under which clients get it.

use tonic::Code;

use super::{floats, index, models, names, unavailable, values};
use crate::harness::{Repo, Server, int64, output, refused, request, root, strings, wanting};

const TUPLE: &str = "def forward(self, x):\n    return x + 1, x * 2, torch.arange(2)\n";

fn x() -> super::Input<'static> {
    floats("x", &[2], &[1.0, 2.0])
}

#[tokio::test]
async fn elements_of_a_tuple_are_named_by_index_or_by_order() {
    let order = "outputs: [{name: more, dtype: FP32, shape: [2]}, {name: twice, dtype: FP32, shape: [2]}]\n";
    let indices =
        "outputs: [{name: OUT__2, dtype: INT64, shape: [2]}, {name: OUT__0, dtype: FP32, shape: [2]}]\n";
    let repo = models(&[("free", TUPLE, ""), ("order", TUPLE, order), ("indices", TUPLE, indices)]);
    let server = Server::start(repo.path());

    let response = server.infer(request("free", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["OUTPUT__0", "OUTPUT__1", "OUTPUT__2"]);
    assert_eq!(values(&response, "OUTPUT__0", &[2]), [2.0, 3.0]);
    assert_eq!(values(&response, "OUTPUT__1", &[2]), [2.0, 4.0]);
    assert_eq!(output(&response, "OUTPUT__2"), ("INT64", &[2][..], &int64(&[0, 1])[..]));

    let response = server.infer(request("order", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["more", "twice"]);
    assert_eq!(values(&response, "more", &[2]), [2.0, 3.0]);
    assert_eq!(values(&response, "twice", &[2]), [2.0, 4.0]);

    let response = server.infer(request("indices", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["OUT__2", "OUT__0"]);
    assert_eq!(output(&response, "OUT__2").2, int64(&[0, 1]));
    assert_eq!(values(&response, "OUT__0", &[2]), [2.0, 3.0]);
}

#[tokio::test]
async fn only_the_requested_outputs_come_in_the_requested_order() {
    let config = "outputs: [{name: more, dtype: FP32, shape: [2]}, {name: twice, dtype: FP32, shape: [2]}, \
                  {name: range, dtype: INT64, shape: [2]}]\n";
    let repo = models(&[("free", TUPLE, ""), ("config", TUPLE, config)]);
    let server = Server::start(repo.path());
    for (model, wanted) in [("free", ["OUTPUT__2", "OUTPUT__0"]), ("config", ["range", "more"])] {
        let response = server.infer(wanting(request(model, &[x()]), &wanted)).await.unwrap();
        assert_eq!(names(&response), wanted);
        assert_eq!(response.raw_output_contents.len(), 2);
        assert_eq!(output(&response, wanted[0]).2, int64(&[0, 1]));
        assert_eq!(values(&response, wanted[1], &[2]), [2.0, 3.0]);
        let twice = server.infer(wanting(request(model, &[x()]), &[wanted[0], wanted[0]])).await;
        refused(twice, Code::InvalidArgument, &[wanted[0], "more than once"]);
        let unknown = server.infer(wanting(request(model, &[x()]), &["nothing"])).await;
        refused(unknown, Code::InvalidArgument, &["unexpected inference output 'nothing'", wanted[0]]);
    }
}

#[tokio::test]
async fn a_list_a_dict_and_strings_are_returned_with_their_names() {
    let list = "def forward(self, x) -> List[Tensor]:\n    return [x, x + 1, x.sum()]\n";
    let dict =
        "def forward(self, x) -> Dict[str, Tensor]:\n    return {'b': x + 1, 'a': x.sum().reshape(1)}\n";
    let text = "def forward(self, x) -> Tuple[Tensor, List[str]]:\n    return x, ['one', 'two', 'three']\n";
    let dict_config = "outputs: [{name: a, dtype: FP32, shape: [1]}]\n";
    let repo =
        models(&[("list", list, ""), ("dict", dict, ""), ("part", dict, dict_config), ("text", text, "")]);
    let server = Server::start(repo.path());

    let response = server.infer(request("list", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["OUTPUT__0", "OUTPUT__1", "OUTPUT__2"]);
    assert_eq!(values(&response, "OUTPUT__1", &[2]), [2.0, 3.0]);
    assert_eq!(values(&response, "OUTPUT__2", &[]), [3.0]);

    let response = server.infer(request("dict", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["b", "a"]);
    assert_eq!(values(&response, "a", &[1]), [3.0]);
    assert_eq!(values(&response, "b", &[2]), [2.0, 3.0]);
    let response = server.infer(request("part", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["a"]);
    assert_eq!(values(&response, "a", &[1]), [3.0]);

    let response = server.infer(request("text", &[x()])).await.unwrap();
    let expected = strings(&[b"one", b"two", b"three"]);
    assert_eq!(output(&response, "OUTPUT__1"), ("BYTES", &[3][..], &expected[..]));
}

#[tokio::test]
async fn fields_of_a_named_tuple_have_their_names() {
    let repo = Repo::new();
    let file = std::fs::read(root().join("tests/data/named_tuple/model.pt")).unwrap();
    for name in ["free", "named", "order"] {
        repo.file(&format!("{name}/1/model.pt"), &file);
    }
    repo.file("named/config.yaml", "outputs: [{name: total, dtype: FP32, shape: [1], reshape: []}]\n");
    repo.file(
        "order/config.yaml",
        "outputs: [{name: s, dtype: FP32, shape: [1], reshape: []}, {name: p, dtype: FP32, shape: [2]}, \
         {name: q, dtype: FP32, shape: [2]}]\n",
    );
    let server = Server::start(repo.path());
    let response = server.infer(request("free", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["total", "parts__0", "parts__1"]);
    assert_eq!(values(&response, "total", &[]), [3.0]);
    assert_eq!(values(&response, "parts__0", &[2]), [2.0, 3.0]);
    assert_eq!(values(&response, "parts__1", &[2]), [2.0, 4.0]);
    let response = server.infer(request("named", &[x()])).await.unwrap();
    assert_eq!(values(&response, "total", &[1]), [3.0]);
    let response = server.infer(request("order", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["s", "p", "q"]);
    assert_eq!(values(&response, "q", &[2]), [2.0, 4.0]);
}

const NESTED: &str = "\
def forward(self, x) -> Tuple[Tensor, List[Tensor], Dict[str, Tensor]]:
    return x, [x + 1, x + 2], {'sum': x.sum(), 'max': x.max()}
";

#[tokio::test]
async fn collections_in_collections_are_flattened_with_their_paths() {
    let config = "outputs: [{name: OUTPUT__2.max, dtype: FP32, shape: [1], reshape: []}, \
                  {name: OUTPUT__1__1, dtype: FP32, shape: [2]}]\n";
    let deeper = "def forward(self, x) -> Dict[str, Dict[str, Tensor]]:\n    \
                  return {'a': {'b': x + 1, 'c': x + 2}, 'd': {'b': x + 3}}\n";
    let repo = models(&[("free", NESTED, ""), ("config", NESTED, config), ("deeper", deeper, "")]);
    let server = Server::start(repo.path());
    let response = server.infer(request("free", &[x()])).await.unwrap();
    assert_eq!(
        names(&response),
        ["OUTPUT__0", "OUTPUT__1__0", "OUTPUT__1__1", "OUTPUT__2.sum", "OUTPUT__2.max"]
    );
    assert_eq!(values(&response, "OUTPUT__1__1", &[2]), [3.0, 4.0]);
    assert_eq!(values(&response, "OUTPUT__2.sum", &[]), [3.0]);
    let response = server.infer(request("config", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["OUTPUT__2.max", "OUTPUT__1__1"]);
    assert_eq!(values(&response, "OUTPUT__2.max", &[1]), [2.0]);
    assert_eq!(values(&response, "OUTPUT__1__1", &[2]), [3.0, 4.0]);
    let response = server.infer(request("deeper", &[x()])).await.unwrap();
    assert_eq!(names(&response), ["a.b", "a.c", "d.b"]);
    assert_eq!(values(&response, "d.b", &[2]), [4.0, 5.0]);
}

#[tokio::test]
async fn what_the_wire_cannot_carry_is_refused_by_its_type_at_load() {
    let repo = models(&[
        ("int", "def forward(self, x):\n    return x.size(0)\n", ""),
        ("in_tuple", "def forward(self, x):\n    return x, 3.5\n", ""),
        ("none", "def forward(self, x):\n    pass\n", ""),
        ("dict_of_int", "def forward(self, x) -> Dict[str, int]:\n    return {'a': 1}\n", ""),
        ("keys", "def forward(self, x) -> Dict[int, Tensor]:\n    return {1: x}\n", ""),
        ("third", TUPLE, "outputs: [{name: OUTPUT__3, dtype: FP32, shape: [2]}]\n"),
    ]);
    let server = Server::start(repo.path());
    for (model, part) in [
        ("int", "returns int,"),
        ("in_tuple", "returns float,"),
        ("none", "returns None"),
        ("dict_of_int", "returns Dict[str, int]"),
        ("keys", "returns Dict[int, Tensor]"),
        ("third", "'OUTPUT__3' refers to an output index which doesn't exist. This model has 3 outputs"),
    ] {
        unavailable(&index(&server, model).await, &[part]);
    }
}

#[tokio::test]
async fn what_only_a_run_can_tell_is_an_internal_error_that_names_it() {
    let maybe = "def forward(self, x) -> Optional[Tensor]:\n    \
                 if bool(x.sum() > 0):\n        return x\n    return None\n";
    let wrong = |what: &str| format!("outputs: [{{name: y, {what}}}]\n");
    let identity = "def forward(self, x):\n    return x\n";
    let repo = models(&[
        ("maybe", maybe, ""),
        ("complex", "def forward(self, x):\n    return torch.complex(x, x)\n", ""),
        ("dtype", identity, &wrong("dtype: INT64, shape: [2]")),
        ("shape", identity, &wrong("dtype: FP32, shape: [3]")),
        ("rank", identity, &wrong("dtype: FP32, shape: [-1, 2]")),
        (
            "rows",
            "def forward(self, x):\n    return x[0:1]\n",
            "max_batch_size: 2\ninputs: [{name: x, dtype: FP32, shape: []}]\n\
             outputs: [{name: y, dtype: FP32, shape: []}]\n",
        ),
        (
            "key",
            "def forward(self, x) -> Dict[str, Tensor]:\n    return {'z': x}\n",
            &wrong("dtype: FP32, shape: [2]"),
        ),
    ]);
    let server = Server::start(repo.path());
    let response = server.infer(request("maybe", &[x()])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[2]), [1.0, 2.0]);
    let none = server.infer(request("maybe", &[floats("x", &[1], &[-1.0])])).await;
    refused(none, Code::Internal, &["'maybe'", "'OUTPUT__0' is None"]);
    for (model, parts) in [
        ("complex", ["'complex'", "convert it in the model"]),
        ("dtype", ["'y' is FP32", "says INT64"]),
        ("shape", ["'y' has shape [2]", "says [3]"]),
        ("rank", ["'y' has shape [2]", "says [-1,2]"]),
        ("rows", ["'y' has shape [1]", "says [2]"]),
        ("key", ["'y'", "['z']"]),
    ] {
        refused(server.infer(request(model, &[x()])).await, Code::Internal, &parts);
    }
    let response = server.infer(request("maybe", &[x()])).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[2]), [1.0, 2.0]);
}

#[tokio::test]
async fn views_of_what_was_sent_come_back_whole() {
    let source = "def forward(self, x):\n    return x.t(), x[:, 1], x.expand(2, 2, 2), x[0:0]\n";
    let repo = models(&[("m", source, "")]);
    let server = Server::start(repo.path());
    let inputs = [floats("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0])];
    let response = server.infer(request("m", &inputs)).await.unwrap();
    assert_eq!(values(&response, "OUTPUT__0", &[2, 2]), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(values(&response, "OUTPUT__1", &[2]), [2.0, 4.0]);
    assert_eq!(values(&response, "OUTPUT__2", &[2, 2, 2]), [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values(&response, "OUTPUT__3", &[0, 2]), [0f32; 0]);
}
