//! Requests of different shapes one behind the other: each has the answer that it has alone.

use sconce_proto::inference::{
    InferParameter, ModelConfigRequest, ModelInferResponse, ModelMetadataRequest, batch_input::Kind,
    infer_parameter::ParameterChoice,
};
use tokio::task::JoinSet;
use tonic::Code;

use super::{Input, floats, index, models, unavailable, values};
use crate::harness::{Server, refused, request};

/// The elements without the sum of their request; for each row that sum, how many elements the request has,
/// how many the largest of the batch has, and how many requests it is of. In whole numbers: not a bit may differ.
const CENTRED: &str = "\
def forward(self, x, tag, counts, ends, offsets, longest, shapes, flat):
    assert x.dim() == 1 and x.size(0) == int(ends[-1]), 'all elements in one dimension'
    assert bool((offsets[1:] == ends).all()) and int(offsets[0]) == 0
    assert bool((offsets[1:] - offsets[:-1] == counts).all())
    assert bool((shapes.flatten() == flat).all()) and shapes.size(1) == 2
    owner = torch.repeat_interleave(torch.arange(ends.size(0)), counts.long())
    sums = torch.zeros([ends.size(0)]).index_add(0, owner, x)
    sizes = torch.zeros([ends.size(0)]).index_add(0, owner, torch.ones_like(x))
    rows: List[int] = []
    at = 0
    for request in range(ends.size(0)):
        left = int(counts[request])
        one = True
        while one or left > 0:
            rows.append(request)
            left = left - int(shapes[at, 0] * shapes[at, 1])
            at = at + 1
            one = False
    of = torch.tensor(rows)
    facts = [sums[of], sizes[of], torch.full([at], float(longest.size(0))), torch.full([at], float(ends.size(0)))]
    return x - sums[owner], torch.stack(facts, 1), tag * 2
";

const CONFIG: &str = "\
inputs:
- {name: x, dtype: FP32, shape: [-1, -1], ragged: true}
- {name: tag, dtype: FP32, shape: [1]}
batch_inputs:
- {name: counts, counts_of: x}
- {name: ends, ends_of: x}
- {name: offsets, dtype: INT64, offsets_of: x}
- {name: longest, dtype: FP32, longest_of: x}
- {name: shapes, dtype: INT64, shapes_of: x}
- {name: flat, dtype: INT64, flat_shapes_of: x}
outputs:
- {name: centred, dtype: FP32, shape: [-1, -1], scatter_like: x}
- {name: facts, dtype: FP32, shape: [4]}
- {name: twice, dtype: FP32, shape: [1]}
";

fn elements(shape: [i64; 3]) -> Vec<f32> {
    let count: i64 = shape.iter().product();
    (0..count).map(|at| ((at * 7 + count) % 11) as f32).collect()
}

fn inputs(shape: &[i64; 3]) -> [Vec<f32>; 2] {
    [elements(*shape), (0..shape[0]).map(|row| (shape[1] * 10 + row) as f32).collect()]
}

/// Asserts that a request of this shape has its own answer, out of a batch of so many whose largest is so large.
#[track_caller]
fn answered(response: &ModelInferResponse, shape: [i64; 3], longest: i64, requests: i64) {
    let [x, tag] = inputs(&shape);
    let (sum, rows) = (x.iter().sum::<f32>(), shape[0]);
    let centred: Vec<f32> = x.iter().map(|element| element - sum).collect();
    assert_eq!(values(response, "centred", &shape), centred, "{shape:?}");
    let facts = [sum, x.len() as f32, longest as f32, requests as f32].repeat(rows as usize);
    assert_eq!(values(response, "facts", &[rows, 4]), facts, "{shape:?}");
    let twice: Vec<f32> = tag.iter().map(|tag| tag * 2.0).collect();
    assert_eq!(values(response, "twice", &[rows, 1]), twice, "{shape:?}");
}

#[tokio::test]
async fn ragged_requests_are_answered_together_as_alone() {
    // A batch waits until there are five rows.
    let joined = format!("max_batch_size: 8\nbatching: {{max_delay: 60s, preferred_sizes: [5]}}\n{CONFIG}");
    let single = format!("max_batch_size: 8\nbatching: off\n{CONFIG}");
    let repo = models(&[("joined", CENTRED, &joined), ("single", CENTRED, &single)]);
    let server = Server::start(repo.path());
    let shapes = [[1, 3, 2], [2, 1, 4], [1, 0, 3], [1, 50, 1]];
    let mut calls = JoinSet::new();
    for shape in shapes {
        let [x, tag] = inputs(&shape);
        let tag_shape = [shape[0], 1];
        let inputs: [Input<'_>; 2] = [floats("tag", &tag_shape, &tag), floats("x", &shape, &x)];
        let alone = server.infer(request("single", &inputs)).await.unwrap();
        answered(&alone, shape, shape.iter().product(), 1);
        let (mut client, asked) = (server.client().await, request("joined", &inputs));
        calls.spawn(async move { (shape, client.model_infer(asked).await.unwrap().into_inner()) });
    }
    while let Some(call) = calls.join_next().await {
        let (shape, response) = call.unwrap();
        answered(&response, shape, 50, 4);
    }
}

#[tokio::test]
async fn both_formats_show_what_is_ragged_and_clients_see_only_what_they_send() {
    let repo = models(&[("yaml", CENTRED, &format!("max_batch_size: 8\n{CONFIG}"))]);
    repo.script("pbtxt/1/model.pt", CENTRED, &[]);
    let kinds = [
        ("ELEMENT_COUNT", "counts", "INT32"),
        ("ACCUMULATED_ELEMENT_COUNT", "ends", "INT32"),
        ("ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "offsets", "INT64"),
        ("MAX_ELEMENT_COUNT_AS_SHAPE", "longest", "FP32"),
        ("ITEM_SHAPE", "shapes", "INT64"),
        ("ITEM_SHAPE_FLATTEN", "flat", "INT64"),
    ];
    let made = kinds.map(|(kind, name, data_type)| {
        format!(
            "{{ kind: BATCH_{kind} target_name: \"{name}\" data_type: TYPE_{data_type} source_input: \"x\" }}"
        )
    });
    let pbtxt = format!(
        "max_batch_size: 8
        input [ {{ name: \"x\" data_type: TYPE_FP32 dims: [ -1, -1 ] allow_ragged_batch: true }},
            {{ name: \"tag\" data_type: TYPE_FP32 dims: [ 1 ] }} ]
        batch_input [ {} ]
        output [ {{ name: \"centred\" data_type: TYPE_FP32 dims: [ -1, -1 ] }},
            {{ name: \"facts\" data_type: TYPE_FP32 dims: [ 4 ] }}, {{ name: \"twice\" data_type: TYPE_FP32 dims: [ 1 ] }} ]
        batch_output [ {{ target_name: \"centred\" source_input: \"x\" }} ]",
        made.join(", ")
    );
    repo.file("pbtxt/config.pbtxt", &pbtxt);
    let server = Server::start(repo.path());
    let mut client = server.client().await;
    let mut configs = Vec::new();
    for name in ["yaml", "pbtxt"] {
        let (name, version) = (name.to_owned(), String::new());
        let asked = ModelMetadataRequest { name: name.clone(), version: version.clone() };
        let metadata = client.model_metadata(asked).await.unwrap().into_inner();
        let shown: Vec<_> = metadata.inputs.iter().map(|input| (&*input.name, &input.shape[..])).collect();
        assert_eq!(shown, [("x", &[-1, -1, -1][..]), ("tag", &[-1, 1])]);
        let config = client.model_config(ModelConfigRequest { name, version }).await.unwrap().into_inner();
        configs.push(config.config.expect("a configuration"));
    }
    let [yaml, pbtxt] = &configs[..] else { panic!("{configs:?}") };
    assert_eq!(yaml.input, pbtxt.input);
    assert_eq!(yaml.batch_input, pbtxt.batch_input);
    assert_eq!(yaml.batch_output, pbtxt.batch_output);
    assert_eq!(yaml.input.iter().map(|input| input.allow_ragged_batch).collect::<Vec<_>>(), [true, false]);
    assert_eq!(yaml.batch_input[1].kind(), Kind::BatchAccumulatedElementCount);
    assert_eq!(
        (yaml.batch_input.len(), &yaml.batch_output[0].target_name[..]),
        (6, &["centred".to_owned()][..])
    );
    let sent =
        [floats("x", &[1, 1, 1], &[1.0]), floats("tag", &[1, 1], &[1.0]), floats("longest", &[1], &[0.0])];
    let parts = ["unexpected inference input 'longest'", "['x','tag']"];
    refused(server.infer(request("pbtxt", &sent)).await, Code::InvalidArgument, &parts);
    let shape = [2, 2, 3];
    let [x, tag] = inputs(&shape);
    for model in ["yaml", "pbtxt"] {
        let sent = [floats("x", &shape, &x), floats("tag", &[2, 1], &tag)];
        answered(&server.infer(request(model, &sent)).await.unwrap(), shape, 12, 1);
    }
}

#[tokio::test]
async fn an_output_that_does_not_have_a_share_for_each_is_internal_and_disturbs_no_other() {
    // Where the first element is negative, the last is missing.
    let source = "\
def forward(self, x, offsets):
    parts: List[Tensor] = []
    for request in range(offsets.size(0) - 1):
        part = x[int(offsets[request]):int(offsets[request + 1])]
        parts.append(part[:-1] if bool((part < 0).any()) else part * 2)
    return torch.cat(parts)
";
    let config = "\
max_batch_size: 4
batching: {max_delay: 60s, preferred_sizes: [3]}
inputs: [{name: x, dtype: FP32, shape: [-1], ragged: true}]
batch_inputs: [{name: offsets, offsets_of: x}]
outputs: [{name: y, dtype: FP32, shape: [-1], scatter_like: x}]
";
    let repo = models(&[("m", source, config)]);
    let server = Server::start(repo.path());
    let mut calls = JoinSet::new();
    for sent in [vec![1.0], vec![-1.0, 2.0], vec![3.0, 4.0, 5.0]] {
        let shape = [1, sent.len() as i64];
        let (mut client, asked) = (server.client().await, request("m", &[floats("x", &shape, &sent)]));
        calls.spawn(async move { (sent, client.model_infer(asked).await) });
    }
    while let Some(call) = calls.join_next().await {
        let (sent, answer) = call.unwrap();
        if sent[0] < 0.0 {
            let parts = ["'y' has shape [1]", "as many elements as [1,2] are the share"];
            refused(answer.map(tonic::Response::into_inner), Code::Internal, &parts);
        } else {
            let doubled: Vec<f32> = sent.iter().map(|element| element * 2.0).collect();
            assert_eq!(values(answer.unwrap().get_ref(), "y", &[1, sent.len() as i64]), doubled);
        }
    }
}

#[tokio::test]
async fn ragged_requests_of_a_sequence_go_on_from_its_state() {
    let summing = "\
def forward(self, x, offsets, total):
    sums = torch.stack([x[int(offsets[i]):int(offsets[i + 1])].sum() for i in range(total.size(0))])
    total = total + sums.unsqueeze(1)
    return total, total
";
    let config = "\
max_batch_size: 4
inputs: [{name: x, dtype: FP32, shape: [-1], ragged: true}]
batch_inputs: [{name: offsets, offsets_of: x}]
outputs: [{name: sum, dtype: FP32, shape: [1]}]
sequence:
  states: [{input: total, output: new_total, dtype: FP32, shape: [1]}]
";
    let repo = models(&[("m", summing, config)]);
    let server = Server::start(repo.path());
    for (length, start, expected) in [(2, true, 2.0), (5, false, 7.0), (0, false, 7.0)] {
        let mut asked = request("m", &[floats("x", &[1, length], &vec![1.0; length as usize])]);
        let id = ParameterChoice::Int64Param(7);
        for (key, value) in [("sequence_id", id), ("sequence_start", ParameterChoice::BoolParam(start))] {
            asked.parameters.insert(key.to_owned(), InferParameter { parameter_choice: Some(value) });
        }
        let response = server.infer(asked).await.unwrap();
        assert_eq!(values(&response, "sum", &[1, 1]), [expected]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_may_begin_with_a_ragged_request() {
    let counting = "\
def start(self, x, offsets):
    sums = torch.stack([x[int(offsets[i]):int(offsets[i + 1])].sum() for i in range(offsets.size(0) - 1)])
    return sums.unsqueeze(1), sums.unsqueeze(1)

def step(self, number, by):
    return number + by, by
";
    let config = "\
max_batch_size: 8
inputs: [{name: x, dtype: FP32, shape: [-1], ragged: true}]
batch_inputs: [{name: offsets, offsets_of: x}]
outputs: [{name: number, dtype: FP32, shape: [1]}]
generate: {states: [by], max_steps: 3, collect: true}
";
    let repo = models(&[("m", counting, config)]);
    let server = Server::start(repo.path());
    let client = server.client().await;
    let mut calls = JoinSet::new();
    for length in 1..20 {
        let (mut client, sent) = (client.clone(), vec![1.0; length]);
        let asked = request("m", &[floats("x", &[1, length as i64], &sent)]);
        calls.spawn(async move { (length as f32, client.model_infer(asked).await.unwrap().into_inner()) });
    }
    while let Some(call) = calls.join_next().await {
        let (sum, response) = call.unwrap();
        assert_eq!(values(&response, "number", &[1, 3]), [sum, 2.0 * sum, 3.0 * sum]);
    }
}

#[tokio::test]
async fn a_model_that_takes_no_tensors_where_they_are_made_does_not_serve() {
    let source = "def forward(self, x, n: int):\n    return x * n\n";
    let config = "max_batch_size: 4\ninputs: [{name: x, dtype: FP32, shape: [-1], ragged: true}]\n\
        batch_inputs: [{name: n, counts_of: x}]";
    let repo = models(&[("m", source, config)]);
    let server = Server::start(repo.path());
    unavailable(
        &index(&server, "m").await,
        &["input 'n' is made by the server", "`n` of forward is no tensor"],
    );
}
