//! Sequences and answers that are made step by step: any that both formats can express, and how each says
//! them.

use std::{fmt::Write, fs, num::NonZeroU32, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};
use tempfile::TempDir;

use super::{Batching, ModelConfig, Queueing, padding, quoted};
use crate::{
    Control, ControlKind, DataType, Flag, Generate, SequenceState, SequenceStrategy, Sequences,
    config::padding::{Filler, Number, Padding},
};

/// What of it does not depend on the model.
#[derive(Clone, Debug)]
pub(super) enum Seed {
    Neither,
    Sequences(Sequences),
    Generate {
        states: usize,
        feed: usize,
        send: Vec<bool>,
        flag: bool,
        stop: Option<i8>,
        max_steps: u32,
        collect: bool,
    },
}

fn any_control() -> impl Strategy<Value = (u8, DataType, i32, i32)> {
    (0_u8..4, select(vec![DataType::Bool, DataType::Int32, DataType::Fp32]), any::<i32>(), any::<i32>())
}

/// Controls of different kinds in any order.
fn controls(seeds: Vec<(u8, DataType, i32, i32)>) -> Vec<Control> {
    let mut controls: Vec<Control> = Vec::new();
    let mut seen = [false; 4];
    for (kind, data_type, off, on) in seeds {
        if std::mem::replace(&mut seen[usize::from(kind)], true) {
            continue;
        }
        let element = |number: i32| match data_type {
            DataType::Bool => vec![u8::from(number > 0)],
            DataType::Fp32 => (number as f32 / 2.0).to_le_bytes().to_vec(),
            _ => number.to_le_bytes().to_vec(),
        };
        let flag = Flag { off: element(off), on: element(on) };
        let input = format!("the control {kind}");
        controls.push(match kind {
            0 => Control { input, kind: ControlKind::Start(flag), data_type },
            1 => Control { input, kind: ControlKind::End(flag), data_type },
            2 => Control { input, kind: ControlKind::Ready(flag), data_type },
            _ => {
                let ids = [DataType::Int64, DataType::Uint32, DataType::Bytes];
                Control {
                    input,
                    kind: ControlKind::CorrelationId,
                    data_type: ids[off.rem_euclid(3) as usize],
                }
            }
        });
    }
    controls
}

fn any_state() -> impl Strategy<Value = SequenceState> {
    let types: Vec<_> = DataType::ALL.into_iter().filter(|data_type| *data_type != DataType::Bytes).collect();
    let dims = vec((prop_oneof![Just(-1_i64), 1_i64..=4], 0_i64..3), 1..4);
    (select(types), dims, any::<bool>()).prop_map(|(data_type, dims, file)| {
        let (dims, free): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
        let size = |(dim, free): (&i64, &i64)| if *dim == -1 { *free } else { *dim };
        let initial_dims: Vec<i64> = dims.iter().zip(&free).map(size).collect();
        let bytes = usize::try_from(initial_dims.iter().product::<i64>()).unwrap()
            * data_type.size().expect("no BYTES");
        SequenceState {
            input: String::new(),
            output: String::new(),
            data_type,
            dims,
            initial_dims,
            initial: file.then(|| vec![7; bytes].into()),
            initial_file: file.then(|| format!("{bytes} bytes.bin")),
        }
    })
}

fn any_sequences() -> impl Strategy<Value = Sequences> {
    let strategy = prop_oneof![
        (1_u32..=1_000_000)
            .prop_map(|count| SequenceStrategy::Oldest { max_sequences: NonZeroU32::new(count).unwrap() }),
        (0..=60_000_000_u64)
            .prop_map(|delay| SequenceStrategy::Direct { max_delay: Duration::from_micros(delay) }),
    ];
    let idle = 1..=31_536_000_000_000_u64;
    (strategy, idle, vec(any_control(), 0..6), vec(any_state(), 0..3)).prop_map(
        |(strategy, idle, seeds, mut states)| {
            for (index, state) in states.iter_mut().enumerate() {
                state.input = format!("the state \"{index}\"");
                state.output = format!("the state \"{index}\" of the next");
            }
            Sequences {
                strategy,
                idle_timeout: Duration::from_micros(idle),
                // The only number that Triton's format has.
                max_waiting: 2048,
                controls: controls(seeds),
                states,
            }
        },
    )
}

pub(super) fn any_seed() -> impl Strategy<Value = Seed> {
    let generate = (0_usize..3, 0_usize..3, vec(any::<bool>(), 3), any::<bool>());
    let limits = (option::of(any::<i8>()), 1_u32..=1_000_000, any::<bool>());
    prop_oneof![
        Just(Seed::Neither),
        any_sequences().prop_map(Seed::Sequences),
        (generate, limits).prop_map(|((states, feed, send, flag), (stop, max_steps, collect))| {
            Seed::Generate { states, feed, send, flag, stop, max_steps, collect }
        }),
    ]
}

/// The configuration with what fits it.
pub(super) fn with_state(seed: Seed, config: ModelConfig) -> ModelConfig {
    match seed {
        Seed::Neither => config,
        Seed::Sequences(sequences) => {
            let batching = match sequences.strategy {
                SequenceStrategy::Oldest { .. } => config.batching,
                SequenceStrategy::Direct { max_delay } => {
                    (config.max_batch_size > 0).then(|| Batching { max_delay, ..Batching::default() })
                }
            };
            // Triton's format has no word for queues beside sequences.
            let (stateful, queue) = (sequences.states.is_empty(), Queueing::default());
            ModelConfig { sequences: Some(sequences), batching, queue, stateful, ..config }
        }
        Seed::Generate { .. } => generating(seed, config),
    }
}

fn generating(seed: Seed, mut config: ModelConfig) -> ModelConfig {
    let Seed::Generate { states, feed, send, flag, stop, max_steps, collect } = seed else { return config };
    // A list of parameters holds plain names only.
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let cut = config.outputs.iter().any(|output| matches!(output.padding, Some(Padding::CutTo(_))));
    if config.max_batch_size == 0 || cut || !config.outputs.iter().all(|output| plain(&output.name)) {
        return config;
    }
    let feed = feed % config.outputs.len();
    let fed = &mut config.outputs[feed];
    if fed.data_type == DataType::Bytes {
        fed.data_type = DataType::Int16;
    }
    (fed.dims, fed.reshape) = (vec![1], None);
    let number = |stop: i8| {
        if fed.data_type == DataType::Bool { Number::Bool(stop > 0) } else { Number::Integer(stop.into()) }
    };
    let stop = stop.and_then(|stop| Filler::new(fed.data_type, number(stop)).ok());
    let feed = fed.name.clone();
    let stop_flag = flag.then(|| {
        let last = config.outputs.last_mut().unwrap();
        // What is fed as well has a type that the value fits.
        if last.name != feed {
            last.data_type = DataType::Bool;
        }
        (last.dims, last.reshape) = (vec![1], None);
        (last.data_type == DataType::Bool).then(|| last.name.clone())
    });
    let names = config.outputs.iter().zip(send).filter(|(_, sent)| *sent);
    let mut send: Vec<_> = names.map(|(output, _)| output.name.clone()).collect();
    if send.is_empty() {
        send.push(feed.clone());
    }
    config.generate = Some(Generate {
        states: (0..states).map(|index| format!("the_state_{index}")).collect(),
        feed,
        send,
        stop_flag: stop_flag.flatten(),
        stop_value: stop.map(|stop| stop.bytes().to_vec()),
        max_steps: NonZeroU32::new(max_steps).unwrap(),
        collect,
    });
    config
}

/// Writes the files with which sequences begin.
pub(super) fn place(config: &ModelConfig, dir: &TempDir) {
    let place = dir.path().join("initial_state");
    for state in config.sequences.iter().flat_map(|sequences| &sequences.states) {
        if let (Some(file), Some(data)) = (&state.initial_file, &state.initial) {
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join(file), data).unwrap();
        }
    }
}

fn elements(control: &Control, flag: &Flag) -> [Number; 2] {
    [&flag.off, &flag.on].map(|bytes| match control.data_type {
        DataType::Bool => Number::Bool(bytes[0] != 0),
        DataType::Fp32 => Number::Float(f32::from_le_bytes(bytes[..].try_into().unwrap()).into()),
        _ => Number::Integer(i32::from_le_bytes(bytes[..].try_into().unwrap()).into()),
    })
}

/// What a control is called in both formats, and its values.
fn told(control: &Control) -> (&'static str, &'static str, Option<[Number; 2]>) {
    match &control.kind {
        ControlKind::Start(flag) => ("start", "START", Some(elements(control, flag))),
        ControlKind::End(flag) => ("end", "END", Some(elements(control, flag))),
        ControlKind::Ready(flag) => ("ready", "READY", Some(elements(control, flag))),
        ControlKind::CorrelationId => ("correlation_id", "CORRID", None),
    }
}

/// The text of `config.yaml` for what is said here; its maps are in an order, which JSON's are not.
pub(super) fn to_yaml(config: &ModelConfig) -> String {
    let mut text = String::new();
    if let Some(sequences) = &config.sequences {
        let Sequences { strategy, idle_timeout, max_waiting, controls, states } = sequences;
        let strategy = match strategy {
            SequenceStrategy::Oldest { max_sequences } => {
                format!("strategy: oldest, max_sequences: {max_sequences}")
            }
            SequenceStrategy::Direct { max_delay } => {
                format!("strategy: direct, max_delay: {}us", max_delay.as_micros())
            }
        };
        let (seconds, micros) = (idle_timeout.as_secs(), idle_timeout.subsec_micros());
        write!(
            text,
            "sequence: {{{strategy}, idle_timeout: {seconds}s {micros}us, max_waiting: {max_waiting}, controls: {{"
        )
        .unwrap();
        for control in controls {
            let (kind, _, values) = told(control);
            let values = values.map(|[off, on]| format!(", values: [{off}, {on}]")).unwrap_or_default();
            let (name, data_type) = (serde_json::json!(control.input), control.data_type.name());
            write!(text, "{kind}: {{name: {name}, dtype: {data_type}{values}}}, ").unwrap();
        }
        let states = states.iter().map(|state| {
            let initial = match &state.initial_file {
                None => serde_json::json!("zeros"),
                Some(file) => serde_json::json!({ "file": file }),
            };
            serde_json::json!({
                "input": state.input, "output": state.output, "dtype": state.data_type.name(),
                "shape": state.dims, "initial": initial, "initial_shape": state.initial_dims,
            })
        });
        writeln!(text, "}}, states: {}}}", states.collect::<serde_json::Value>()).unwrap();
    }
    if let Some(generate) = &config.generate {
        let stop = (generate.stop_flag.is_some() || generate.stop_value.is_some()).then(|| {
            serde_json::json!({
                "flag": generate.stop_flag,
                "value": stop_value(config, generate).as_ref().map(padding::number),
            })
        });
        let fields = serde_json::json!({
            "states": generate.states, "feed": generate.feed, "send": generate.send, "stop": stop,
            "max_steps": generate.max_steps, "collect": generate.collect,
        });
        writeln!(text, "generate: {fields}").unwrap();
    }
    text
}

fn stop_value(config: &ModelConfig, generate: &Generate) -> Option<Filler> {
    let fed = config.outputs.iter().find(|output| output.name == generate.feed)?;
    Filler::from_bytes(fed.data_type, generate.stop_value.as_ref()?)
}

/// The fields for `config.pbtxt`, and the parameters.
pub(super) fn to_pbtxt(config: &ModelConfig, text: &mut String) {
    if let Some(generate) = &config.generate {
        let all = [
            ("STATES", Some(generate.states.join(", "))),
            ("FEED", Some(generate.feed.clone())),
            ("SEND", Some(generate.send.join(","))),
            ("STOP_FLAG", generate.stop_flag.clone()),
            ("STOP_VALUE", stop_value(config, generate).map(|value| value.to_string())),
            ("MAX_STEPS", Some(generate.max_steps.to_string())),
            ("COLLECT", Some(generate.collect.to_string())),
        ];
        for (key, value) in all.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            writeln!(text, "parameters {{ key: \"GENERATE_{key}\" value {{ string_value: \"{value}\" }} }}")
                .unwrap();
        }
        text.push_str("model_transaction_policy { decoupled: true }\n");
    }
    let Some(Sequences { strategy, idle_timeout, controls, states, .. }) = &config.sequences else { return };
    write!(text, "sequence_batching {{ max_sequence_idle_microseconds: {} ", idle_timeout.as_micros())
        .unwrap();
    match strategy {
        SequenceStrategy::Oldest { max_sequences } => {
            let Batching { max_delay, preferred_sizes, preserve_ordering, .. } =
                config.batching.clone().unwrap_or_default();
            let delay = max_delay.as_micros();
            write!(
                text,
                "oldest {{ max_candidate_sequences: {max_sequences} preferred_batch_size: {preferred_sizes:?} \
                 max_queue_delay_microseconds: {delay} preserve_ordering: {preserve_ordering} }}"
            )
            .unwrap();
        }
        SequenceStrategy::Direct { max_delay } => {
            write!(text, "direct {{ max_queue_delay_microseconds: {} }}", max_delay.as_micros()).unwrap();
        }
    }
    for control in controls {
        let (_, kind, values) = told(control);
        let told = match values {
            Some([off, on]) => {
                format!("{}_false_true: [ {off}, {on} ]", control.data_type.name().to_lowercase())
            }
            None if control.data_type == DataType::Bytes => "data_type: TYPE_STRING".to_owned(),
            None => format!("data_type: TYPE_{}", control.data_type.name()),
        };
        let name = quoted(&control.input);
        write!(text, " control_input {{ name: {name} control {{ kind: CONTROL_SEQUENCE_{kind} {told} }} }}")
            .unwrap();
    }
    for state in states {
        let data = match &state.initial_file {
            None => "zero_data: true".to_owned(),
            Some(file) => format!("data_file: {}", quoted(file)),
        };
        let (input, output) = (quoted(&state.input), quoted(&state.output));
        let (data_type, dims, initial) = (state.data_type.name(), &state.dims, &state.initial_dims);
        write!(
            text,
            " state {{ input_name: {input} output_name: {output} data_type: TYPE_{data_type} dims: {dims:?} \
             initial_state {{ name: \"i\" data_type: TYPE_{data_type} dims: {initial:?} {data} }} }}"
        )
        .unwrap();
    }
    text.push_str(" }\n");
}
