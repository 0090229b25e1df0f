//! Generations over real threads.

use std::num::NonZeroU32;

use sconce_repository::Generate;

use super::*;
use crate::{
    DataType,
    backend::LoadError,
    fixtures::{House, config, floats, given_up, input, named},
    model::{LiveVersion, Request},
};

/// Counts from what it is sent to the number that its script says, or for so many steps.
fn counting(max_steps: u32) -> ModelConfig {
    let tensor = |name: &str, data_type| named(name, data_type, &[1]);
    ModelConfig {
        generate: Some(Generate {
            states: vec!["sum".to_owned()],
            feed: "number".to_owned(),
            send: vec!["number".to_owned()],
            stop_flag: Some("done".to_owned()),
            stop_value: None,
            max_steps: NonZeroU32::new(max_steps).unwrap(),
            collect: true,
        }),
        ..config(
            64,
            vec![tensor("x", DataType::Fp32)],
            vec![tensor("number", DataType::Fp32), tensor("done", DataType::Bool)],
        )
    }
}

fn from(value: f32) -> Request {
    Request { inputs: vec![input("x", floats(&[1, 1], &[value]))], ..Request::default() }
}

fn numbers(outputs: &[NamedOutput]) -> Vec<f32> {
    assert_eq!(outputs.len(), 1, "only what is sent");
    outputs[0].tensor.bytes().chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

async fn all(mut answers: Answers) -> Vec<f32> {
    let mut found = Vec::new();
    while let Some((answer, last)) = answers.next().await {
        found.extend(numbers(&answer.unwrap()));
        assert_eq!(last, found.last() == Some(&10.0));
    }
    found
}

const SCRIPT: &str = "generate\nuntil 10";

fn ten(first: u32) -> Vec<f32> {
    (first..=10).map(|number| number as f32).collect()
}

#[tokio::test]
async fn answers_come_until_the_model_says_so() {
    let house = House::new(2, 0);
    let model = house.model(SCRIPT, counting(1000), &[(0, 2)]);
    assert_eq!(all(model.generate(from(3.0)).unwrap()).await, ten(3));
    assert_eq!(numbers(&model.infer(from(5.0)).await.unwrap()), ten(5), "collected");
    assert_eq!(ended(&model), [("ok", 2)], "each is counted once");
    assert_eq!(model.generations(), Some(0));
    assert_eq!(house.fake.kept(), 0);
}

/// How many requests ended how.
fn ended(model: &LiveVersion) -> Vec<(&'static str, u64)> {
    let count = |reason: Reason| (reason.name(), model.stats().outcome(reason));
    Reason::ALL.into_iter().map(count).filter(|(_, count)| *count > 0).collect()
}

#[tokio::test]
async fn a_collected_answer_is_counted_as_its_caller_sees_it() {
    let house = House::new(1, 0);
    let model = house.model(SCRIPT, counting(1000), &[(0, 1)]);
    assert_eq!(numbers(&model.infer(from(8.0)).await.unwrap()), ten(8));
    let (stats, bytes) = (model.stats(), 3 * 4);
    assert_eq!(ended(&model), [("ok", 1)]);
    assert_eq!((stats.response_bytes.get(), stats.responses.get()), (bytes, 3));
    let late = Request { deadline: Some(Instant::now()), ..from(0.0) };
    assert!(matches!(model.infer(late).await, Err(Error::DeadlineExceeded { .. })));
    let classes = vec![Wanted { name: "number".to_owned(), classes: 1 }];
    model.infer(Request { outputs: classes, ..from(0.0) }).await.unwrap_err();
    assert_eq!(ended(&model), [("ok", 1), ("invalid_input", 1), ("deadline", 1)]);
    assert_eq!(stats.duration.total().0, 3);
    assert_eq!(stats.response_bytes.get(), bytes);
}

#[tokio::test]
async fn answers_that_are_more_than_are_collected_are_counted_as_the_error_that_they_are() {
    let house = House::new(1, 0);
    let wide = |name: &str, data_type| named(name, data_type, &[-1]);
    let mut config = counting(1000);
    (config.inputs, config.outputs[0]) = (vec![wide("x", DataType::Fp32)], wide("number", DataType::Fp32));
    let model = house.model("generate\nuntil 1000", config, &[(0, 1)]);
    let wide = floats(&[1, 4 << 20], &vec![0.0; 4 << 20]);
    let error =
        model.infer(Request { inputs: vec![input("x", wide)], ..Request::default() }).await.unwrap_err();
    assert!(error.to_string().contains("which are not collected"), "{error}");
    assert_eq!(ended(&model), [("bad_output", 1)]);
    assert_eq!(model.stats().response_bytes.get(), 0);
}

#[tokio::test]
async fn a_deadline_that_passes_between_two_answers_is_counted_as_one_that_passes() {
    let house = House::new(1, 0);
    let model = house.model("generate\nuntil 10\ngate", counting(1000), &[(0, 1)]);
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut answers = model.generate(Request { deadline: Some(deadline), ..from(0.0) }).unwrap();
    house.fake.wait_started(1);
    while Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    house.fake.open_gate();
    let (answer, last) = answers.next().await.unwrap();
    assert!(matches!(answer, Err(Error::DeadlineExceeded { .. })) && last, "{answer:?}");
    assert_eq!(ended(&model), [("deadline", 1)]);
    assert_eq!(given_up(&model), [("deadline", "running", 1)]);
}

#[tokio::test]
async fn what_a_request_holds_is_kept_until_its_first_run_is_over_and_no_longer() {
    let house = House::new(1, 0);
    let model = house.model("generate\nuntil 1000\ngate", counting(1000), &[(0, 1)]);
    let here = Bytes::from(vec![1, 2, 3]);
    let held = Some(Box::new(here.clone()));
    let mut answers = model.generate(Request { held, ..from(0.0) }).unwrap();
    house.fake.wait_started(1);
    assert!(!here.is_unique());
    house.fake.open_gate();
    answers.next().await.unwrap().0.unwrap();
    assert!(here.is_unique(), "also if there are more answers to come");
}

#[tokio::test]
async fn an_answer_that_nobody_takes_any_more_is_not_counted() {
    let house = House::new(1, 0);
    let model = house.model("generate\nuntil 10\ngate", counting(1000), &[(0, 1)]);
    let answers = model.generate(from(0.0)).unwrap();
    house.fake.wait_started(1);
    drop(answers);
    house.fake.open_gate();
    house.pool.wait_idle();
    assert_eq!(ended(&model), [("cancelled", 1)]);
    assert_eq!((model.stats().responses.get(), model.stats().first_response.total().0), (0, 0));
}

#[tokio::test]
async fn steps_of_many_run_together_and_each_ends_when_it_ends() {
    let house = House::new(1, 0);
    // With a number of threads nothing is chosen by what runs cost: a worker takes all that waits.
    let config = ModelConfig { threads: NonZeroU32::new(1), ..counting(1000) };
    let model = house.model(&format!("{SCRIPT}\ngate"), config, &[(0, 1)]);
    let answers: Vec<_> = (0..9).map(|first| model.generate(from(first as f32)).unwrap()).collect();
    house.pool.wait_queued(8);
    house.fake.open_gate();
    for (first, answers) in answers.into_iter().enumerate() {
        assert_eq!(all(answers).await, ten(first as u32));
    }
    let runs = house.fake.rows();
    assert!(runs.len() <= 2 + 2 * 11, "their steps are joined: {runs:?}");
    assert_eq!(house.fake.kept(), 0);
}

#[tokio::test]
async fn there_are_no_more_answers_than_allowed_or_wanted() {
    let house = House::new(1, 0);
    let model = house.model(SCRIPT, counting(4), &[(0, 1)]);
    assert_eq!(numbers(&model.infer(from(0.0)).await.unwrap()), [0.0, 1.0, 2.0, 3.0]);
    let fewer = Request { max_steps: Some(2), ..from(0.0) };
    assert_eq!(numbers(&model.infer(fewer).await.unwrap()), [0.0, 1.0]);
    let more = Request { max_steps: Some(100), ..from(0.0) };
    assert_eq!(numbers(&model.infer(more).await.unwrap()).len(), 4);
}

#[tokio::test]
async fn a_caller_who_does_not_take_answers_gets_no_more_and_who_comes_back_does() {
    let house = House::new(1, 0);
    let model = house.model("generate\nuntil 100", counting(1000), &[(0, 1)]);
    let mut slow = model.generate(from(0.0)).unwrap();
    // Another's answers all come meanwhile.
    assert_eq!(numbers(&model.infer(from(0.0)).await.unwrap()).len(), 101);
    let made = house.started();
    assert!(made < 101 + 40, "{made} runs for two");
    let mut count = 0;
    while let Some((answer, _)) = slow.next().await {
        count += numbers(&answer.unwrap()).len();
    }
    assert_eq!(count, 101);
}

#[tokio::test]
async fn a_caller_who_goes_costs_nothing_more() {
    let house = House::new(1, 0);
    let model = house.model("generate\nuntil 1e9", counting(1_000_000), &[(0, 1)]);
    let mut answers = model.generate(from(0.0)).unwrap();
    answers.next().await.unwrap().0.unwrap();
    drop(answers);
    while house.fake.kept() > 0 {
        tokio::task::yield_now().await;
    }
    while model.generations() != Some(0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_step_that_throws_ends_its_generation_alone() {
    let house = House::new(1, 0);
    let model = house.model(&format!("{SCRIPT}\npoison 7\ngate"), counting(1000), &[(0, 1)]);
    let mut fails = model.generate(from(0.0)).unwrap();
    let well = model.generate(from(8.0)).unwrap();
    house.fake.open_gate();
    let mut found = 0;
    let error = loop {
        match fails.next().await.unwrap() {
            (Ok(_), last) => assert!(!last),
            (Err(error), last) => {
                assert!(last);
                break error;
            }
        }
        found += 1;
    };
    assert_eq!(error.to_string(), "model 'm' failed: it is poison");
    assert_eq!(found, 8, "0 to 7: the step from 7 throws");
    assert!(fails.next().await.is_none());
    assert_eq!(all(well).await, ten(8));
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_runs() {
    let house = House::new(1, 0);
    let model = house.model(SCRIPT, counting(10), &[(0, 1)]);
    let two = Request { inputs: vec![input("x", floats(&[2, 1], &[1.0, 2.0]))], ..from(0.0) };
    assert!(model.generate(two).unwrap_err().to_string().contains("batch-size 1"));
    let late = Request { deadline: Some(Instant::now()), ..from(0.0) };
    assert!(matches!(model.generate(late), Err(Error::DeadlineExceeded { .. })));
    assert_eq!(house.started(), 0);
}

#[tokio::test]
async fn each_answer_is_classified_and_a_collected_one_cannot_be() {
    let house = House::new(1, 0);
    let model = house.model(SCRIPT, counting(10), &[(0, 1)]);
    let classes = || Request { outputs: vec![Wanted { name: "number".to_owned(), classes: 1 }], ..from(9.0) };
    let mut answers = model.generate(classes()).unwrap();
    for text in ["9.000000:0", "10.000000:0"] {
        let tensor = &answers.next().await.unwrap().0.unwrap()[0].tensor;
        let mut expected = Vec::new();
        crate::value::push_string(&mut expected, text.as_bytes());
        assert_eq!((tensor.data_type, tensor.bytes().to_vec()), (DataType::Bytes, expected));
    }
    assert!(answers.next().await.is_none());
    let error = model.infer(classes()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)) && error.to_string().contains("'number'"), "{error}");
}

fn refusal(config: &ModelConfig, script: &str) -> String {
    let house = House::new(1, 0);
    let made: std::result::Result<LiveVersion, LoadError> = (|| {
        use crate::backend::Backend;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.pt");
        std::fs::write(&file, format!("fake\nargument x tensor\n{script}\n")).unwrap();
        let opened = house.fake.open(file, config)?;
        Binding::with_step(config, opened.schema(), opened.step_schema())?;
        panic!("it can be bound")
    })();
    made.unwrap_err().to_string()
}

#[test]
fn a_step_that_does_not_fit_the_configuration_is_told() {
    let config = counting(10);
    let generate = config.generate.clone().unwrap();
    let states = vec!["sum".to_owned(), "other".to_owned()];
    let two = ModelConfig { generate: Some(Generate { states, ..generate }), ..config };
    let why = refusal(&two, SCRIPT);
    assert!(
        why.contains("output index which doesn't exist") || why.contains("step takes (prev, state)"),
        "{why}"
    );
}

#[tokio::test]
async fn a_generation_stays_on_its_device() {
    let house = House::new(1, 2);
    let model = house.model(&format!("{SCRIPT}\ngate"), counting(1000), &[(1, 1), (2, 1)]);
    let answers: Vec<_> = (0..8).map(|first| model.generate(from(first as f32)).unwrap()).collect();
    house.fake.open_gate();
    for (first, answers) in answers.into_iter().enumerate() {
        assert_eq!(all(answers).await, ten(first as u32));
    }
    let started = house.fake.started();
    assert!(started.len() == 2, "on both: {started:?}");
    assert_eq!(house.fake.kept(), 0);
}

#[tokio::test]
async fn a_device_that_fails_takes_its_generations_with_it_and_gets_no_more() {
    let house = House::new(1, 2);
    let model = house.model(&format!("{SCRIPT}\nlose 77"), counting(1000), &[(1, 1), (2, 1)]);
    assert!(matches!(model.infer(from(77.0)).await, Err(Error::DeviceLost { .. })));
    for _ in 0..4 {
        assert_eq!(numbers(&model.infer(from(1.0)).await.unwrap()), ten(1));
    }
}
