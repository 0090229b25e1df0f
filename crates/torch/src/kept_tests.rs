//! What stays on its device between runs, and models of two methods, with real TorchScript.

use std::{
    any::Any,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use sconce_engine::{
    DataType, ModelConfig,
    backend::{Device, LoadError, RunError},
    value::{Arg, Call, DeviceTensor, Kept, Output, Tensor, Value},
};

use crate::{
    Torch,
    backend::{OpenFile, TorchModule},
    define, define_frozen,
    run::TorchRunner,
};

fn open(
    source: &str,
    parameters: &[&str],
    yaml: &str,
    change: fn(&mut ModelConfig),
) -> Result<OpenFile, LoadError> {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("m/1/model.pt");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(root.path().join("m/config.yaml"), yaml).unwrap();
    let define = if source.contains("# frozen") { define_frozen } else { define };
    define(source, parameters, &file).unwrap();
    let snapshot = sconce_repository::scan(&[root.path().to_owned()]);
    let mut config = snapshot.models["m"].config.clone().unwrap();
    change(&mut config);
    Torch::new().open_file(file, &config)
}

fn runner(source: &str, parameters: &[&str], yaml: &str) -> TorchRunner {
    let opened = open(source, parameters, yaml, |_| {}).unwrap();
    opened.load_module(Device::Cpu).unwrap().torch_runner().unwrap()
}

fn floats(shape: &[i64], values: &[f32]) -> Tensor {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor::host(DataType::Fp32, shape.to_vec(), data.into())
}

/// Wherever they are.
fn numbers(tensor: &Tensor) -> Vec<f32> {
    let data = match &tensor.value {
        Value::Host(data) => data.clone(),
        Value::Device(kept) => kept.fetch().unwrap(),
        Value::Joined(parts) => return parts.iter().flat_map(numbers).collect(),
    };
    data.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

fn joined(parts: Vec<Tensor>) -> Tensor {
    let mut shape = parts[0].shape.clone();
    shape[0] = parts.iter().map(|part| part.shape[0]).sum();
    Tensor { data_type: parts[0].data_type, shape, value: Value::Joined(parts), joining: None }
}

fn on_device(tensor: &Tensor) -> &Arc<dyn DeviceTensor> {
    match &tensor.value {
        Value::Device(kept) => kept,
        other => panic!("{other:?}"),
    }
}

fn run(runner: &TorchRunner, tensors: Vec<Tensor>, keep: &[Kept]) -> Result<Output, RunError> {
    let arguments = tensors.into_iter().map(Arg::Tensor).collect();
    runner.run_one(Call { arguments, keep: Some(keep.into()), shares: None })
}

/// The tensors at the top.
fn parts(output: Output) -> Vec<Tensor> {
    let all: Vec<Output> = match output {
        Output::Tuple(parts) => parts.into_iter().map(|(_, part)| part).collect(),
        Output::Dict(parts) => parts.into_iter().map(|(_, part)| part).collect(),
        Output::List(parts) => parts,
        one => vec![one],
    };
    let tensor = |part| match part {
        Output::Tensor(tensor) => tensor,
        other => panic!("{other:?}"),
    };
    all.into_iter().map(tensor).collect()
}

const SUM: &str = "def forward(self, x, total):\n    total = total + x\n    return x * 2, total\n";

#[test]
fn a_running_sum_is_what_it_would_be_with_states_sent_back_and_forth() {
    for yaml in ["", "inference_mode: false\n"] {
        let runner = runner(SUM, &[], yaml);
        let (mut kept, mut reference) = (floats(&[1, 3], &[0.0; 3]), vec![0.0; 3]);
        for round in 1..=3 {
            let x = [0.1, 0.7, 1e8].map(|value: f32| value * round as f32);
            let sent = run(&runner, vec![floats(&[1, 3], &x), floats(&[1, 3], &reference)], &[]).unwrap();
            reference = numbers(&parts(sent)[1]);
            let answer = parts(run(&runner, vec![floats(&[1, 3], &x), kept], &[Kept::Index(1)]).unwrap());
            assert_eq!(numbers(&answer[0]), x.map(|value| value * 2.0));
            kept = answer[1].clone();
            on_device(&kept);
            assert_eq!(
                (numbers(&kept), &*kept.shape, kept.data_type),
                (reference.clone(), &[1, 3][..], DataType::Fp32)
            );
        }
    }
}

#[test]
fn states_of_several_sequences_are_one_batch() {
    let runner = runner(SUM, &[], "");
    let state = |value: f32| {
        let answer =
            run(&runner, vec![floats(&[1, 1], &[value]), floats(&[1, 1], &[0.0])], &[Kept::Index(1)]);
        parts(answer.unwrap()).remove(1)
    };
    let states = joined(vec![state(1.0), floats(&[1, 1], &[0.0]), state(3.0), floats(&[1, 1], &[0.0])]);
    let x = floats(&[4, 1], &[10.0, 20.0, 30.0, 0.0]);
    let answer = parts(run(&runner, vec![x, states], &[Kept::Index(1)]).unwrap());
    assert_eq!((numbers(&answer[1]), &*answer[1].shape), (vec![11.0, 20.0, 33.0, 0.0], &[4, 1][..]));
    let rows = on_device(&answer[1]).split(&[1, 2]).unwrap();
    let rows: Vec<Bytes> = rows.iter().map(|row| row.fetch().unwrap()).collect();
    assert_eq!(rows, [floats(&[1], &[11.0]).bytes().to_vec(), floats(&[2], &[20.0, 33.0]).bytes().to_vec()]);
    let last = on_device(&answer[1]).rows(3, 1).unwrap();
    assert_eq!(last.fetch().unwrap().as_ref(), 0f32.to_le_bytes());
    assert!(on_device(&answer[1]).rows(3, 2).unwrap_err().contains("exceeds dimension size"));
    // One part needs no joining, and can go on.
    let alone = joined(vec![state(5.0)]);
    let answer = run(&runner, vec![floats(&[1, 1], &[1.0]), alone], &[Kept::Index(1)]).unwrap();
    assert_eq!(numbers(&parts(answer)[1]), [6.0]);
}

#[test]
fn a_state_may_grow() {
    let source = "def forward(self, x, seen):\n    seen = torch.cat([seen, x], 1)\n    return seen.sum(1, True), seen\n";
    let runner = runner(source, &[], "");
    let mut seen = floats(&[1, 0], &[]);
    for (length, sum) in [(1, 1.0), (2, 3.0), (3, 6.0)] {
        let x = floats(&[1, 1], &[length as f32]);
        let answer = parts(run(&runner, vec![x, seen], &[Kept::Index(1)]).unwrap());
        assert_eq!((numbers(&answer[0]), &*answer[1].shape), (vec![sum], &[1, length][..]));
        seen = answer[1].clone();
    }
}

#[test]
fn parts_are_found_by_name_and_by_place() {
    let state = || vec![floats(&[1], &[3.0])];
    let name = |name: &str| Kept::Name(name.into());
    for (source, keep, at) in [
        ("def forward(self, x):\n    return {'y': x, 'state': x + 1}\n", name("state"), 1),
        ("def forward(self, x):\n    return named.y.state(x, x + 1)\n", name("state"), 1),
        ("def forward(self, x):\n    return named.y.state(x, x + 1)\n", Kept::Index(1), 1),
        ("def forward(self, x):\n    return [x, x + 1]\n", Kept::Index(1), 1),
        ("def forward(self, x):\n    return x + 1\n", Kept::Index(0), 0),
    ] {
        let answer = parts(run(&runner(source, &[], ""), state(), &[keep]).unwrap());
        on_device(&answer[at]);
        assert_eq!(numbers(&answer[at]), [4.0], "{source}");
        assert!(
            answer
                .iter()
                .enumerate()
                .all(|(index, part)| index == at || matches!(part.value, Value::Host(_)))
        );
    }
}

#[test]
fn what_is_no_tensor_cannot_be_kept() {
    let why =
        |source: &str, keep| run(&runner(source, &[], ""), vec![floats(&[1], &[0.0])], &[keep]).unwrap_err();
    let dict = "def forward(self, x):\n    return {'y': x}\n";
    for (source, keep, part) in [
        (
            "def forward(self, x):\n    return x, 'a'\n",
            Kept::Index(1),
            "element 1 of what it returned is str; a tensor",
        ),
        (
            "def forward(self, x):\n    return ['a']\n",
            Kept::Index(0),
            "element 0 of what it returned is List[str]; a",
        ),
        (
            "def forward(self, x):\n    return x, [x]\n",
            Kept::Index(1),
            "element 1 of what it returned is List[Tensor]",
        ),
        (
            "def forward(self, x):\n    return x, x\n",
            Kept::Index(2),
            "element 2 is not in what it returned; a tensor",
        ),
        (dict, Kept::Name("state".into()), "`state` is not in what it returned; a tensor"),
        (dict, Kept::Index(0), "element 0 is not in what it returned; a tensor"),
        (
            "def forward(self, x):\n    return torch.complex(x, x)\n",
            Kept::Index(0),
            "libtorch's scalar type 9",
        ),
    ] {
        let why = why(source, keep);
        assert!(matches!(&why, RunError::Output(text) if text.contains(part)), "{part} is not in {why}");
    }
}

/// Its last argument is kept, and written to by every run.
const WRITES: &str = "def forward(self, x, state):\n    state.add_(x)\n    return state * 1\n";

#[test]
fn what_is_kept_is_not_written_to() {
    for yaml in ["", "inference_mode: false\n", "stateful: true\n"] {
        let runner = runner(WRITES, &[], yaml);
        let keep = [Kept::Index(0)];
        let one = || floats(&[1, 1], &[1.0]);
        let first = parts(run(&runner, vec![one(), floats(&[1, 1], &[0.0])], &keep).unwrap()).remove(0);
        for states in [first.clone(), joined(vec![first.clone()]), joined(vec![first.clone(), first.clone()])]
        {
            let next = run(&runner, vec![one(), states], &keep).unwrap();
            assert!(numbers(&parts(next)[0]).iter().all(|value| *value == 2.0), "{yaml}");
            assert_eq!(numbers(&first), [1.0], "{yaml}");
        }
    }
}

#[test]
fn what_a_stateful_model_returns_of_itself_stays_as_it_was() {
    let source = "def forward(self, x):\n    self.total.add_(x)\n    return self.total\n";
    let runner = runner(source, &["buffer total:1=0"], "stateful: true\n");
    let answer = || parts(run(&runner, vec![floats(&[1], &[1.0])], &[Kept::Index(0)]).unwrap()).remove(0);
    let first = answer();
    let then = numbers(&first);
    assert_eq!(numbers(&answer()), [then[0] + 1.0]);
    assert_eq!(numbers(&first), then);
}

#[test]
fn what_is_kept_holds_nothing_else() {
    struct Received(Vec<u8>, Arc<AtomicBool>);
    impl AsRef<[u8]> for Received {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Received {
        fn drop(&mut self) {
            self.1.store(true, Ordering::Relaxed);
        }
    }
    for source in ["def forward(self, x):\n    return x\n", "def forward(self, x):\n    return x[:, :1]\n"] {
        let gone = Arc::new(AtomicBool::new(false));
        // Aligned, so that it is borrowed.
        let data = Received(vec![0; 1 << 16], Arc::clone(&gone));
        assert_eq!(data.0.as_ptr().align_offset(4), 0);
        let x = Tensor::host(DataType::Fp32, vec![1, 1 << 14], Bytes::from_owner(data));
        let kept = run(&runner(source, &[], ""), vec![x], &[Kept::Index(0)]).unwrap();
        assert!(gone.load(Ordering::Relaxed), "{source}");
        assert!(numbers(&parts(kept)[0]).iter().all(|value| *value == 0.0));
    }
}

#[test]
fn what_does_not_belong_here_is_refused() {
    #[derive(Debug)]
    struct Foreign;
    impl DeviceTensor for Foreign {
        fn rows(&self, _from: usize, _rows: usize) -> Result<Arc<dyn DeviceTensor>, String> {
            Err(String::new())
        }
        fn fetch(&self) -> Result<Bytes, String> {
            Err(String::new())
        }
        fn as_any(&self) -> &dyn Any {
            self
        }
    }
    let runner = runner(SUM, &[], "");
    let x = || floats(&[2, 1], &[0.0; 2]);
    let foreign = Tensor { value: Value::Device(Arc::new(Foreign)), ..x() };
    let kept = parts(run(&runner, vec![x(), x()], &[Kept::Index(1)]).unwrap()).remove(1);
    let doubles = Tensor::host(DataType::Fp64, vec![1, 1], vec![0; 8].into());
    for (state, part) in [
        (foreign.clone(), "another backend"),
        (joined(vec![foreign, kept.clone()]), "another backend"),
        (Tensor { data_type: DataType::Fp64, ..kept.clone() }, "said to be FP64"),
        (joined(vec![floats(&[1, 1], &[0.0]), doubles]), "a part that is FP64 of a tensor of FP32"),
        (joined(vec![kept.clone(), floats(&[1, 2], &[0.0; 2])]), "must match except in dimension 0"),
        (Tensor { value: Value::Joined(Vec::new()), ..kept }, "non-empty"),
    ] {
        let why = run(&runner, vec![x(), state], &[]).unwrap_err();
        assert!(matches!(&why, RunError::Model(text) if text.contains(part)), "{part} is not in {why}");
    }
}

// Models that generate.

fn generates(config: &mut ModelConfig) {
    config.generate = Some(sconce_repository::Generate {
        states: vec!["hidden".to_owned()],
        feed: "token".to_owned(),
        send: vec!["token".to_owned()],
        stop_flag: None,
        stop_value: None,
        max_steps: std::num::NonZeroU32::MIN,
        collect: false,
    });
}

fn both(source: &str, yaml: &str) -> Result<TorchModule, LoadError> {
    let opened = open(source, &["w:1=2"], yaml, generates)?;
    let step = sconce_engine::backend::Opened::step_schema(&opened).unwrap();
    assert_eq!(step.arguments.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["token", "hidden"]);
    opened.load_module(Device::Cpu)
}

const START: &str = "def start(self, x):\n    return x * self.w, x\n";
const STEP: &str = "def step(self, token, hidden):\n    return token + hidden * self.w, hidden + 1\n";

#[test]
fn both_methods_run_on_the_same_weights() {
    let frozen = format!("# frozen\n{START}{STEP}");
    let beside = format!("{START}{STEP}def forward(self, x):\n    return x - self.w\n");
    for source in [format!("{START}{STEP}"), frozen, beside] {
        for yaml in ["", "optimize: true\n", "inference_mode: false\n"] {
            let module = both(&source, yaml).unwrap_or_else(|error| panic!("{source}{error}"));
            let start = module.torch_runner().unwrap();
            let step = module.step.as_ref().unwrap().torch_runner().unwrap();
            let keep = [Kept::Index(0), Kept::Index(1)];
            let mut last = parts(run(&start, vec![floats(&[1, 1], &[1.0])], &keep).unwrap());
            let w = numbers(&last[0])[0];
            for (token, hidden) in [(w + w, 2.0), (w + w + 2.0 * w, 3.0)] {
                last = parts(run(&step, last, &keep).unwrap());
                assert_eq!(
                    (numbers(&last[0]), numbers(&last[1])),
                    (vec![token], vec![hidden]),
                    "{source}{yaml}"
                );
            }
        }
    }
}

#[test]
fn both_methods_must_be_there() {
    let forward = "def forward(self, x):\n    return x\n";
    for (source, part) in [
        (
            START,
            "it has no method `step`; a model with `generate` in its configuration is served by its `start` and",
        ),
        (STEP, "it has no method `start`; a model with `generate`"),
        (forward, "it has neither method `start` nor `step`; a model with `generate`"),
    ] {
        let Err(error) = open(source, &["w:1"], "", generates) else { panic!("{source}") };
        assert!(error.reason.contains(part), "{error}");
        assert!(error.reason.contains("export both, or remove `generate`"), "{error}");
    }
    let Err(error) = open(&format!("{START}{STEP}"), &["w:1"], "", |_| {}) else { panic!() };
    assert!(
        error.reason.contains("no method `forward`") && error.reason.contains("add `generate`"),
        "{error}"
    );
}

#[test]
fn neither_method_may_change_the_module() {
    let changes = "def start(self, x):\n    self.w.add_(1)\n    return x * self.w, x\n";
    let steps = "def step(self, token, hidden):\n    self.w.add_(1)\n    return token, hidden\n";
    let forks = "def grow(self, x):\n    self.w.add_(1)\n    return x\n\
                 def step(self, token, hidden):\n    return torch.wait(fork(self.grow, token)), hidden\n";
    for (start, step, part) in
        [(changes, STEP, "start changes"), (START, steps, "step changes"), (START, forks, "step changes")]
    {
        let Err(error) = both(&format!("{start}{step}"), "") else { panic!("{part}") };
        assert!(error.reason.contains(part) && error.reason.contains("`states` of `generate`"), "{error}");
    }
}

#[test]
fn a_step_that_writes_to_its_inputs_gets_a_copy() {
    let step = "def step(self, token, hidden):\n    hidden.add_(1)\n    return token * 1, hidden * 1\n";
    let module = both(&format!("{START}{step}"), "").unwrap();
    let (start, step) =
        (module.torch_runner().unwrap(), module.step.as_ref().unwrap().torch_runner().unwrap());
    let keep = [Kept::Index(0), Kept::Index(1)];
    let first = parts(run(&start, vec![floats(&[1, 1], &[1.0])], &keep).unwrap());
    for _ in 0..2 {
        assert_eq!(numbers(&parts(run(&step, first.clone(), &keep).unwrap())[1]), [2.0]);
    }
}
