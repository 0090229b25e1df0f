//! Tensors that stay, sums and generation of the scripted backend.

use sconce_repository::Batching;
use tokio::sync::oneshot;

use super::*;
use crate::{
    DataType,
    fixtures::{House, config, floats},
    job::Job,
    reply::Reply,
    value::{Kept, Tensor, Value},
};

fn module(script: &str, fake: &Fake, device: Device) -> FakeModule {
    let script = Arc::new(Script::parse(&format!("fake\n{script}\n")).unwrap());
    let stage = Arc::clone(&fake.stage);
    let loaded = Loaded::new(&stage);
    FakeModule { script, stage, device, step: false, _loaded: loaded }
}

fn call(tensors: Vec<Tensor>, keep: &[Kept]) -> Call {
    let keep = (!keep.is_empty()).then(|| keep.to_vec().into());
    Call { arguments: tensors.into_iter().map(Arg::Tensor).collect(), keep, shares: None }
}

fn parts(output: Output) -> Vec<Tensor> {
    let Output::Tuple(parts) = output else { panic!("{output:?}") };
    let tensor = |(_, part)| match part {
        Output::Tensor(tensor) => tensor,
        other => panic!("{other:?}"),
    };
    parts.into_iter().map(tensor).collect()
}

/// Wherever it is.
fn numbers(tensor: &Tensor) -> Vec<f32> {
    let data = match &tensor.value {
        Value::Device(kept) => kept.fetch().unwrap(),
        _ => tensor.bytes().to_vec().into(),
    };
    data.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

#[test]
fn a_state_stays_on_its_device_until_nobody_has_it() {
    let fake = Fake::new(1);
    let model = module("sum", &fake, Device::Gpu(0));
    let keep = [Kept::Index(1)];
    let mut state = floats(&[1, 1], &[0.0]);
    for (value, sum) in [(1.0, 1.0), (2.0, 3.0), (4.0, 7.0)] {
        let answer = model.run_one(call(vec![floats(&[1, 1], &[value]), state], &keep)).unwrap();
        let [output, next] = parts(answer).try_into().unwrap();
        assert_eq!(numbers(&output), [sum]);
        assert!(matches!(output.value, Value::Host(_)) && matches!(next.value, Value::Device(_)));
        assert_eq!((fake.kept(), &*next.shape), (1, &[1, 1][..]));
        state = next;
    }
    let elsewhere = module("sum", &fake, Device::Cpu).run_one(call(vec![state.clone()], &[]));
    assert_eq!(elsewhere.unwrap_err(), RunError::Model("a tensor on gpu:0 for a run on cpu".to_owned()));
    drop(state);
    assert_eq!(fake.kept(), 0);
}

#[test]
fn joined_states_are_one_tensor() {
    let fake = Fake::new(0);
    let model = module("sum", &fake, Device::Cpu);
    let kept = parts(model.run_one(call(vec![floats(&[2], &[1.0, 2.0])], &[Kept::Index(0)])).unwrap());
    let joined = |shape: &[i64]| Tensor {
        shape: shape.to_vec(),
        value: Value::Joined(vec![kept[0].clone(), floats(&[1], &[3.0])]),
        ..kept[0].clone()
    };
    let sum = model.run_one(call(vec![joined(&[3]), floats(&[3], &[1.0; 3])], &[])).unwrap();
    assert_eq!(numbers(&parts(sum)[0]), [2.0, 3.0, 4.0]);
    let wrong = model.run_one(call(vec![joined(&[4])], &[])).unwrap_err();
    assert_eq!(wrong, RunError::Model("parts of 3 rows for [4]".to_owned()));
}

#[test]
fn only_tensors_that_are_there_are_kept() {
    let fake = Fake::new(0);
    let why = |script: &str, tensors, keep| {
        let run = module(script, &fake, Device::Cpu).run_one(call(tensors, &[keep]));
        run.unwrap_err().to_string()
    };
    let text = Tensor::host(DataType::Bytes, vec![0], Vec::new().into());
    let why = [
        why("sum", vec![floats(&[1], &[0.0])], Kept::Index(2)),
        why("sum", vec![floats(&[1], &[0.0])], Kept::Name("state".into())),
        why("", vec![text], Kept::Index(0)),
    ];
    let of = |what: &str| format!("{what}; a tensor is expected, to be kept for the next run");
    assert_eq!(why[0], of("element 2 is not in what it returned"));
    assert_eq!(why[1], of("`state` is not in what it returned"));
    assert_eq!(why[2], of("element 0 of what it returned is strings"));
    assert_eq!(fake.kept(), 0);
}

#[test]
fn a_model_generates() {
    let fake = Fake::new(0);
    let start = module("generate\nuntil 4", &fake, Device::Cpu);
    let step = FakeModule { step: true, ..start.clone() };
    let keep = [Kept::Index(0), Kept::Index(2)];
    let mut last = parts(start.run_one(call(vec![floats(&[2, 1], &[1.0, 3.0])], &keep)).unwrap());
    for (tokens, done, state) in [
        ([1.0, 3.0], [0, 0], [1.0, 3.0]),
        ([2.0, 4.0], [0, 1], [2.0, 6.0]),
        ([3.0, 5.0], [0, 1], [4.0, 10.0]),
        ([4.0, 6.0], [1, 1], [7.0, 15.0]),
    ] {
        assert_eq!(
            (numbers(&last[0]), last[1].bytes(), numbers(&last[2])),
            (tokens.into(), &done[..], state.into())
        );
        assert_eq!((last[1].data_type, &*last[1].shape), (DataType::Bool, &[2, 1][..]));
        assert_eq!(fake.kept(), 2);
        last = parts(step.run_one(call(vec![last[0].clone(), last[2].clone()], &keep)).unwrap());
    }
}

#[test]
fn what_generates_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(0);
    let open = |script: &str, generates: bool| {
        let file = dir.path().join("model.pt");
        std::fs::write(&file, format!("fake\nargument x tensor\n{script}\n")).unwrap();
        let mut config = config(1, Vec::new(), Vec::new());
        config.generate = generates.then(|| crate::fixtures::generate(&["state"]));
        fake.open(file, &config)
    };
    let opened = open("generate", true).unwrap();
    assert_eq!(opened.step_schema().unwrap().arguments.len(), 2);
    let module = opened.load(Device::Cpu).unwrap();
    assert!(module.step().is_some());
    assert_eq!(fake.loaded(), 1, "one copy of the weights for both");
    let plain = open("", false).unwrap();
    assert!(plain.step_schema().is_none() && plain.load(Device::Cpu).unwrap().step().is_none());
    for (script, generates) in [("generate", false), ("sum", true)] {
        let Err(error) = open(script, generates) else { panic!("{script}") };
        assert!(error.reason.contains("`generate`"), "{error}");
    }
}

#[tokio::test]
async fn states_of_several_callers_run_as_one_batch_and_come_back_apart() {
    let house = House::new(0, 1);
    let batching = Some(Batching { preferred_sizes: vec![4], ..Batching::default() });
    let config = ModelConfig { batching, ..config(8, Vec::new(), Vec::new()) };
    let model = house.model("sum\nstall 99", config, &[(1, 1)]);
    let executable = Arc::new(model.executable().with_own_runner(1, Vec::new()).unwrap());
    let submit = |x: f32, state: Tensor| {
        let (sender, answer) = oneshot::channel();
        let call = call(vec![floats(&[1, 1], &[x]), state], &[Kept::Index(1)]);
        let job =
            Job::new(Arc::clone(&executable), call, Some(1), Reply::One(sender), std::time::Instant::now());
        model.registration().submit(job).unwrap();
        answer
    };
    let mut states = Vec::new();
    for x in [1.0, 2.0, 3.0] {
        let answer = submit(x, floats(&[1, 1], &[0.0])).await.unwrap().0.unwrap();
        states.push(parts(answer).remove(1));
    }
    house.fake.wait_kept(3);
    let first = submit(99.0, floats(&[1, 1], &[0.0]));
    house.fake.wait_started(4);
    // The last of them begins.
    states.push(floats(&[1, 1], &[0.0]));
    let answers: Vec<_> = states.into_iter().map(|state| submit(10.0, state)).collect();
    house.fake.open_gate();
    drop(first.await.unwrap());
    let mut kept = Vec::new();
    for (answer, sum) in answers.into_iter().zip([11.0, 12.0, 13.0, 10.0]) {
        let [output, state] = parts(answer.await.unwrap().0.unwrap()).try_into().unwrap();
        assert!(matches!((&output.value, &state.value), (Value::Host(_), Value::Device(_))));
        assert_eq!((numbers(&output), numbers(&state), &*state.shape), (vec![sum], vec![sum], &[1, 1][..]));
        kept.push(state);
    }
    assert_eq!(house.fake.rows(), [1, 1, 1, 1, 4]);
    // What they came from is gone, and so is the batch.
    house.fake.wait_kept(4);
    drop(kept);
    assert_eq!(house.fake.kept(), 0);
}
