//! Sequences over real threads, on a backend that adds up what it is given.

use std::num::NonZeroU32;

use sconce_repository::{Control, ControlKind, Flag, SequenceState};

use super::*;
use crate::{
    DataType,
    fixtures::{House, config, floats, given_up, input, named, waiting},
    model::{LiveVersion, NamedOutput, Request},
    observe::{BatchRun, LoadRun, Observer},
    pool::{PoolSettings, Watch},
};

fn sequences() -> Sequences {
    Sequences {
        strategy: SequenceStrategy::Oldest { max_sequences: NonZeroU32::new(2).unwrap() },
        idle_timeout: Duration::from_secs(3600),
        max_waiting: 0,
        controls: Vec::new(),
        states: vec![SequenceState {
            input: "total".to_owned(),
            output: "OUTPUT__1".to_owned(),
            data_type: DataType::Fp32,
            dims: vec![1],
            initial_dims: vec![1],
            initial: None,
            initial_file: None,
        }],
    }
}

/// Adds up the values of a sequence.
fn adding(sequences: Sequences) -> ModelConfig {
    let tensor = |name: &str| named(name, DataType::Fp32, &[1]);
    ModelConfig { sequences: Some(sequences), ..config(8, vec![tensor("x")], vec![tensor("OUTPUT__0")]) }
}

/// The same, where the module keeps state by row, of so many rows.
fn by_row(rows: u32) -> ModelConfig {
    let strategy = SequenceStrategy::Direct { max_delay: Duration::ZERO };
    let sequences = Sequences { strategy, ..sequences() };
    ModelConfig { stateful: true, batching: None, max_batch_size: rows, ..adding(sequences) }
}

fn sent(id: u64, value: f32, start: bool, end: bool) -> Request {
    Request {
        inputs: vec![input("x", floats(&[1, 1], &[value]))],
        sequence: Some(InSequence { id: SequenceId::Number(id), start, end }),
        ..Request::default()
    }
}

fn total(answer: Result<Vec<NamedOutput>>) -> f32 {
    f32::from_le_bytes(answer.unwrap()[0].tensor.bytes().try_into().unwrap())
}

const SCRIPT: &str = "argument total tensor\nsum";

#[tokio::test]
async fn each_request_finds_what_the_one_before_it_left() {
    let house = House::new(2, 0);
    let model = house.model(SCRIPT, adding(sequences()), &[(0, 2)]);
    assert_eq!(total(model.infer(sent(1, 1.0, true, false)).await), 1.0);
    assert_eq!(total(model.infer(sent(2, 10.0, true, false)).await), 10.0);
    assert_eq!(total(model.infer(sent(1, 2.0, false, false)).await), 3.0);
    assert_eq!(total(model.infer(sent(2, 20.0, false, true)).await), 30.0);
    assert_eq!(total(model.infer(sent(1, 4.0, false, true)).await), 7.0);
    assert_eq!(model.sequences(), Some(0));
    assert_eq!(house.fake.kept(), 0, "what sequences left is freed with them");
    let gone = model.infer(sent(1, 1.0, false, false)).await.unwrap_err();
    assert!(gone.to_string().contains("must specify the START flag on the first request"), "{gone}");
}

#[tokio::test]
async fn requests_that_are_sent_ahead_run_in_their_order_and_sequences_run_together() {
    let house = House::new(1, 0);
    let model = house.model(&format!("{SCRIPT}\ngate"), adding(sequences()), &[(0, 1)]);
    let mut calls = Vec::new();
    for (id, values) in [(1, [1.0, 2.0, 4.0]), (2, [10.0, 20.0, 40.0])] {
        for (index, value) in values.into_iter().enumerate() {
            calls.push(waiting(&model, sent(id, value, index == 0, index == 2)).await);
        }
    }
    house.fake.open_gate();
    let mut totals = Vec::new();
    for call in calls {
        totals.push(total(call.await));
    }
    assert_eq!(totals, [1.0, 3.0, 7.0, 10.0, 30.0, 70.0]);
    assert!(house.fake.rows().contains(&2), "two sequences in one batch: {:?}", house.fake.rows());
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_and_harms_no_sequence() {
    let house = House::new(1, 0);
    let model = house.model(&format!("{SCRIPT}\npoison 13"), adding(sequences()), &[(0, 1)]);
    let no_id = Request { sequence: None, ..sent(1, 1.0, true, false) };
    assert!(
        model.infer(no_id).await.unwrap_err().to_string().contains("non-zero or non-empty correlation ID")
    );
    let two_rows =
        Request { inputs: vec![input("x", floats(&[2, 1], &[1.0, 2.0]))], ..sent(1, 0.0, true, false) };
    assert!(model.infer(two_rows).await.unwrap_err().to_string().contains("batch-size 1"));
    assert_eq!(total(model.infer(sent(1, 1.0, true, false)).await), 1.0);
    assert!(matches!(model.infer(sent(1, 13.0, false, false)).await, Err(Error::Model { .. })));
    assert_eq!(total(model.infer(sent(1, 2.0, false, false)).await), 3.0, "as before the one that failed");
    assert_eq!(total(model.infer(sent(2, 5.0, true, false)).await), 5.0);
    let full = model.infer(sent(3, 5.0, true, false)).await.unwrap_err();
    assert_eq!(full, Error::SequencesFull { model: "m".to_owned(), limit: 2 });
    // A start in the middle begins anew.
    assert_eq!(total(model.infer(sent(2, 6.0, true, true)).await), 6.0);
    assert_eq!(total(model.infer(sent(3, 5.0, true, false)).await), 5.0);
}

#[tokio::test]
async fn a_caller_who_goes_leaves_the_sequence_as_it_was() {
    let house = House::new(1, 0);
    let model = house.model(&format!("{SCRIPT}\nstall 7"), adding(sequences()), &[(0, 1)]);
    assert_eq!(total(model.infer(sent(1, 1.0, true, false)).await), 1.0);
    // On the worker: its state counts, whether or not anybody waits for the answer.
    let running = waiting(&model, sent(1, 7.0, false, false)).await;
    house.fake.wait_started(2);
    let queued = waiting(&model, sent(1, 100.0, false, false)).await;
    let behind = waiting(&model, sent(1, 1000.0, false, false)).await;
    drop(running);
    drop(queued);
    house.fake.open_gate();
    let refused = behind.await.unwrap_err();
    assert!(matches!(refused, Error::SequenceBroken { .. }), "{refused:?}");
    assert_eq!(total(model.infer(sent(1, 2.0, false, true)).await), 10.0);
    assert_eq!(house.fake.kept(), 0);
}

#[tokio::test]
async fn the_model_is_told_where_in_the_sequence_it_is() {
    let flag = || Flag { off: 0f32.to_le_bytes().to_vec(), on: 1f32.to_le_bytes().to_vec() };
    let control = |input: &str, kind| Control { input: input.to_owned(), kind, data_type: DataType::Fp32 };
    let times = |by: f32| Flag { off: 0f32.to_le_bytes().to_vec(), on: by.to_le_bytes().to_vec() };
    let controls = vec![
        control("start", ControlKind::Start(flag())),
        control("end", ControlKind::End(times(10.0))),
        control("ready", ControlKind::Ready(times(100.0))),
    ];
    let house = House::new(1, 0);
    let script =
        "argument start tensor\nargument end tensor\nargument ready tensor\nargument total tensor\nsum";
    let model = house.model(script, adding(Sequences { controls, ..sequences() }), &[(0, 1)]);
    assert_eq!(total(model.infer(sent(1, 1000.0, true, false)).await), 1101.0);
    assert_eq!(total(model.infer(sent(1, 1000.0, false, false)).await), 2201.0);
    assert_eq!(total(model.infer(sent(1, 1000.0, false, true)).await), 3311.0);
}

#[tokio::test]
async fn a_sequence_stays_on_its_device() {
    let house = House::new(1, 2);
    let model = house.model(SCRIPT, adding(sequences()), &[(1, 1), (2, 1)]);
    for round in 0..5 {
        for id in 1..=4u64 {
            let answer = model.infer(sent(id, id as f32, round == 0, round == 4)).await;
            assert_eq!(total(answer), (round + 1) as f32 * id as f32);
        }
    }
    let started = house.fake.started();
    assert_eq!(started.values().copied().collect::<Vec<_>>(), [10, 10], "two sequences on each: {started:?}");
}

fn of_model(model: &LiveVersion) -> usize {
    model.sequences().unwrap()
}

#[tokio::test]
async fn who_is_idle_is_forgotten_and_who_waits_has_the_place() {
    let house = House::new(1, 0);
    let brief = Sequences { idle_timeout: Duration::from_millis(1), max_waiting: 1, ..sequences() };
    let model = house.model(SCRIPT, adding(brief), &[(0, 1)]);
    for id in 1..=2 {
        model.infer(sent(id, 1.0, true, false)).await.unwrap();
    }
    while of_model(&model) > 0 {
        model.sweep();
        std::thread::yield_now();
    }
    assert_eq!(house.fake.kept(), 0);
    assert_eq!(total(model.infer(sent(3, 5.0, true, false)).await), 5.0);
}

#[tokio::test]
async fn a_version_that_goes_answers_who_waits() {
    let house = House::new(1, 0);
    let one = SequenceStrategy::Oldest { max_sequences: NonZeroU32::MIN };
    let model = house.model(
        &format!("{SCRIPT}\ngate"),
        adding(Sequences { strategy: one, max_waiting: 1, ..sequences() }),
        &[(0, 1)],
    );
    let running = waiting(&model, sent(1, 1.0, true, false)).await;
    house.fake.wait_started(1);
    let behind = waiting(&model, sent(1, 1.0, false, false)).await;
    let in_line = waiting(&model, sent(2, 1.0, true, false)).await;
    let (sender, freed) = std::sync::mpsc::channel();
    let bound = Duration::ZERO;
    house.reaper.retire(Arc::clone(&model), bound, Box::new(move || sender.send(()).unwrap()));
    for call in [behind, in_line] {
        assert!(matches!(call.await, Err(Error::NotReady { .. })));
    }
    house.fake.open_gate();
    assert_eq!(total(running.await), 1.0);
    drop(model);
    freed.recv().unwrap();
    assert_eq!(house.fake.kept(), 0);
}

#[tokio::test]
async fn where_the_model_keeps_state_by_row_each_sequence_has_a_row_of_its_own() {
    let direct = SequenceStrategy::Direct { max_delay: Duration::ZERO };
    let flag = Flag { off: 1e6f32.to_le_bytes().to_vec(), on: 0f32.to_le_bytes().to_vec() };
    let ready = ControlKind::Ready(flag);
    let controls = vec![Control { input: "ready".to_owned(), kind: ready, data_type: DataType::Fp32 }];
    let sequences = Sequences { strategy: direct, controls, ..sequences() };
    let house = House::new(1, 0);
    let config = ModelConfig { stateful: true, batching: None, max_batch_size: 3, ..adding(sequences) };
    let script = "argument ready tensor\nargument total tensor\nsum";
    let model = house.model(script, config, &[(0, 1)]);
    for id in 1..=3 {
        assert_eq!(total(model.infer(sent(id, id as f32, true, false)).await), id as f32);
    }
    assert_eq!(total(model.infer(sent(3, 10.0, false, false)).await), 13.0);
    assert_eq!(total(model.infer(sent(1, 10.0, false, true)).await), 11.0);
    assert_eq!(house.fake.rows(), [1, 2, 3, 3, 1], "as many rows as reach to the last with a request");
    assert_eq!(
        total(model.infer(sent(5, 1.0, true, false)).await),
        1.0,
        "in the row of the one that has ended"
    );
    assert_eq!(house.fake.rows().last(), Some(&1));
    assert_eq!(total(model.infer(sent(3, 1.0, false, false)).await), 14.0);
    let full = model.infer(sent(6, 1.0, true, false)).await.unwrap_err();
    assert!(matches!(full, Error::SequencesFull { limit: 3, .. }), "{full:?}");
}

#[tokio::test]
async fn rows_that_have_requests_run_together() {
    let house = House::new(1, 0);
    let model = house.model(&format!("{SCRIPT}\ngate\npoison 13"), by_row(4), &[(0, 1)]);
    let mut calls = Vec::new();
    for (id, values) in [(1, [1.0, 2.0]), (2, [10.0, 20.0]), (3, [100.0, 13.0])] {
        for (index, value) in values.into_iter().enumerate() {
            calls.push(waiting(&model, sent(id, value, index == 0, index == 1)).await);
        }
    }
    house.fake.open_gate();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.ok().map(|outputs| total(Ok(outputs))));
    }
    // The second run is of the second of the first sequence, and of the first of both others. State by row cannot
    // be given back, so that a run is not made again for each: the third fails for both who are in it.
    assert_eq!(answers, [Some(1.0), Some(3.0), Some(10.0), None, Some(100.0), None]);
    assert_eq!(house.fake.rows(), [1, 3, 3]);
}

#[tokio::test]
async fn each_row_that_has_a_request_is_told_and_counted_by_itself() {
    let house = House::new(1, 0);
    let model = house.model(&format!("{SCRIPT}\ngate"), by_row(4), &[(0, 1)]);
    let first = waiting(&model, sent(1, 1.0, true, false)).await;
    house.fake.wait_started(1);
    // What comes while it runs is one batch, of which one loses its caller.
    let told = |id| Request { told: true, ..sent(id, id as f32, true, false) };
    let (mut one, mut two) = (None, None);
    let calls = [model.infer_seen(told(2), &mut one), model.infer_seen(told(3), &mut two)];
    drop(waiting(&model, sent(4, 4.0, true, false)).await);
    house.fake.open_gate();
    assert_eq!(total(first.await), 1.0);
    for (call, expected) in calls.into_iter().zip([2.0, 3.0]) {
        assert_eq!(total(call.await), expected);
    }
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!((one.requests, one.rows), (3, 4), "the first row has no request");
    assert!(one.arrived < two.arrived && one.started == two.started, "{one:?} {two:?}");
    let stats = model.stats();
    assert_eq!((stats.queue.total().0, stats.forward.total().0, stats.batch_rows.total()), (4, 4, (2, 5)));
    assert_eq!(given_up(&model), [("cancelled", "running", 1)]);
}

#[tokio::test]
async fn who_leaves_while_he_waits_for_his_turn_is_counted() {
    let house = House::new(1, 0);
    let model = house.model(&format!("{SCRIPT}\ngate"), adding(sequences()), &[(0, 1)]);
    let first = waiting(&model, sent(1, 1.0, true, false)).await;
    let gone = waiting(&model, sent(1, 2.0, false, false)).await;
    let behind = waiting(&model, sent(1, 3.0, false, false)).await;
    drop(gone);
    model.sweep();
    assert_eq!(given_up(&model), [("cancelled", "queued", 1)]);
    assert!(matches!(behind.await, Err(Error::SequenceBroken { .. })));
    house.fake.open_gate();
    assert_eq!(total(first.await), 1.0);
    assert_eq!(given_up(&model), [("cancelled", "queued", 1)], "he was told");
}

/// Remembers which requests were in each batch.
#[derive(Debug, Default)]
struct Remembers(Mutex<Vec<Vec<u64>>>);

impl Observer for Remembers {
    fn batch(&self, batch: &BatchRun<'_>) {
        self.0.lock().unwrap().push(batch.traced.iter().map(|place| place.span_id).collect());
    }

    fn load(&self, _: &LoadRun<'_>) {}
}

#[tokio::test]
async fn whoever_traces_is_told_of_each_request_of_a_sequence_whatever_the_strategy() {
    for strategy in [sequences().strategy, SequenceStrategy::Direct { max_delay: Duration::ZERO }] {
        let by_row = matches!(strategy, SequenceStrategy::Direct { .. });
        let observer = Arc::new(Remembers::default());
        let watch = Watch { observer: Arc::clone(&observer) as Arc<dyn Observer>, ..Watch::default() };
        let house = House::watched(PoolSettings::new(1), 0, watch);
        let of_all = Sequences { strategy, max_waiting: 3, ..sequences() };
        let config = ModelConfig { stateful: by_row, batching: None, max_batch_size: 4, ..adding(of_all) };
        let model = house.model(&format!("{SCRIPT}\ngate"), config, &[(0, 1)]);
        let mut calls = Vec::new();
        for id in 1..=3 {
            // The third of them is not traced.
            let trace = (id < 3).then(|| Box::new(TraceContext { trace_id: 7, span_id: id }));
            calls.push(waiting(&model, Request { trace, ..sent(id, 1.0, true, true) }).await);
        }
        house.fake.open_gate();
        for call in calls {
            assert_eq!(total(call.await), 1.0);
        }
        let mut seen = observer.0.lock().unwrap().concat();
        seen.sort_unstable();
        assert_eq!(seen, [1, 2], "by row: {by_row}");
    }
}

#[tokio::test]
async fn no_sequence_begins_on_a_device_that_has_failed() {
    let house = House::new(1, 2);
    let model = house.model(&format!("{SCRIPT}\nlose 77"), adding(sequences()), &[(1, 1), (2, 1)]);
    assert_eq!(total(model.infer(sent(1, 1.0, true, false)).await), 1.0);
    assert!(matches!(model.infer(sent(1, 77.0, false, false)).await, Err(Error::DeviceLost { .. })));
    assert!(matches!(model.infer(sent(1, 1.0, false, false)).await, Err(Error::DeviceLost { .. })));
    for id in [2, 3] {
        assert_eq!(total(model.infer(sent(id, 1.0, true, false)).await), 1.0);
        assert_eq!(total(model.infer(sent(id, 2.0, false, false)).await), 3.0);
    }
    let full = model.infer(sent(4, 1.0, true, false)).await.unwrap_err();
    assert!(matches!(full, Error::SequencesFull { .. }), "{full:?}");
}

#[tokio::test]
async fn thousands_who_leave_while_they_wait_are_let_go_one_after_the_other() {
    let house = House::new(1, 0);
    let one = SequenceStrategy::Oldest { max_sequences: NonZeroU32::MIN };
    let model = house.model(
        &format!("{SCRIPT}\ngate"),
        adding(Sequences { strategy: one, max_waiting: 2000, ..sequences() }),
        &[(0, 1)],
    );
    let first = waiting(&model, sent(1, 1.0, true, true)).await;
    house.fake.wait_started(1);
    let mut line = Vec::new();
    for id in 2..2000 {
        line.push(waiting(&model, sent(id, 1.0, true, false)).await);
    }
    let last = waiting(&model, sent(2000, 5.0, true, true)).await;
    drop(line);
    house.fake.open_gate();
    assert_eq!(total(first.await), 1.0);
    assert_eq!(total(last.await), 5.0);
    assert_eq!(house.started(), 2, "nobody runs for those who left");
}

#[tokio::test]
async fn a_batch_whose_instance_keeps_state_is_not_run_twice() {
    let house = House::new(1, 0);
    let config = ModelConfig { stateful: true, ..adding(sequences()) };
    let model = house.model(&format!("{SCRIPT}\ngate\npoison 13"), config, &[(0, 1)]);
    let first = waiting(&model, sent(1, 1.0, true, true)).await;
    house.fake.wait_started(1);
    let well = waiting(&model, sent(2, 1.0, true, false)).await;
    let ill = waiting(&model, sent(1, 13.0, true, false)).await;
    house.fake.open_gate();
    first.await.unwrap();
    let answers = [well.await, ill.await];
    assert!(answers.iter().all(|answer| matches!(answer, Err(Error::Model { .. }))), "{answers:?}");
    assert_eq!(house.fake.rows(), [1, 2]);
}
