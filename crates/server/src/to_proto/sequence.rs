//! How requests hang together, as Triton's fields, where its file does not say it itself.

use sconce_proto::inference::{
    self as pb,
    model_sequence_batching::{self as message, StrategyChoice, control::Kind, initial_state::StateData},
};
use sconce_repository::{
    Batching, Control, ControlKind, DataType, Flag, SequenceState, SequenceStrategy, Sequences,
};

use super::{data_type, scheduling::microseconds};

/// The message of a model that has sequences; what says how batches are made is a part of it.
pub(super) fn sequence_batching(
    sequences: &Sequences,
    batching: Option<&Batching>,
) -> pb::ModelSequenceBatching {
    let choice = match sequences.strategy {
        SequenceStrategy::Oldest { max_sequences } => {
            let mut oldest = message::StrategyOldest {
                max_candidate_sequences: i32::try_from(max_sequences.get()).unwrap_or(i32::MAX),
                ..message::StrategyOldest::default()
            };
            if let Some(batching) = batching {
                let sizes = batching.preferred_sizes.iter();
                oldest.preferred_batch_size =
                    sizes.map(|&size| i32::try_from(size).unwrap_or(i32::MAX)).collect();
                oldest.max_queue_delay_microseconds = microseconds(batching.max_delay);
                oldest.preserve_ordering = batching.preserve_ordering;
            }
            StrategyChoice::Oldest(oldest)
        }
        SequenceStrategy::Direct { max_delay } => StrategyChoice::Direct(message::StrategyDirect {
            max_queue_delay_microseconds: microseconds(max_delay),
            ..message::StrategyDirect::default()
        }),
    };
    pb::ModelSequenceBatching {
        strategy_choice: Some(choice),
        max_sequence_idle_microseconds: microseconds(sequences.idle_timeout),
        control_input: sequences.controls.iter().map(control).collect(),
        state: sequences.states.iter().map(state).collect(),
        iterative_sequence: false,
    }
}

fn control(control: &Control) -> message::ControlInput {
    let mut shown = message::Control::default();
    let (kind, flag) = match &control.kind {
        ControlKind::Start(flag) => (Kind::ControlSequenceStart, Some(flag)),
        ControlKind::Ready(flag) => (Kind::ControlSequenceReady, Some(flag)),
        ControlKind::End(flag) => (Kind::ControlSequenceEnd, Some(flag)),
        ControlKind::CorrelationId => (Kind::ControlSequenceCorrid, None),
    };
    shown.kind = kind.into();
    match flag {
        None => shown.data_type = data_type(control.data_type).into(),
        Some(Flag { off, on }) => {
            for value in [off, on] {
                let mut bytes = [0; 4];
                bytes.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
                match control.data_type {
                    DataType::Fp32 => shown.fp32_false_true.push(f32::from_le_bytes(bytes)),
                    DataType::Int32 => shown.int32_false_true.push(i32::from_le_bytes(bytes)),
                    // There are no others.
                    _ => shown.bool_false_true.push(bytes[0] != 0),
                }
            }
        }
    }
    message::ControlInput { name: control.input.clone(), control: vec![shown] }
}

fn state(state: &SequenceState) -> message::State {
    // Triton has no word for elements that are neither zeros nor in a file.
    let data = match (&state.initial, &state.initial_file) {
        (None, _) => Some(StateData::ZeroData(true)),
        (Some(_), file) => file.clone().map(StateData::DataFile),
    };
    let data_type = data_type(state.data_type).into();
    let initial = message::InitialState {
        name: state.input.clone(),
        data_type,
        dims: state.initial_dims.clone(),
        state_data: data,
    };
    message::State {
        input_name: state.input.clone(),
        output_name: state.output.clone(),
        data_type,
        dims: state.dims.clone(),
        initial_state: vec![initial],
        ..message::State::default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::Message as _;

    use sconce_repository::ModelConfig;

    use super::*;

    const INPUTS: &str = r#""max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}]"#;

    /// What such a text says, and what is shown of the same configuration where it has no text of Triton's.
    fn said_and_shown(text: &str) -> (pb::ModelSequenceBatching, pb::ModelSequenceBatching) {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("initial_state")).expect("a directory");
        std::fs::write(dir.path().join("initial_state/h.bin"), [1; 4]).expect("a file");
        let json = format!("{{{INPUTS}, \"sequence_batching\": {text}}}");
        let config = ModelConfig::from_json(&json, dir.path(), "m").expect("a configuration");
        let written = config.source.message().expect("Triton's");
        let written = pb::ModelConfig::decode(written).expect("a message");
        let mut shown = pb::ModelConfig::default();
        super::super::scheduling::show(&config, &mut shown);
        let [written, shown] = [written, shown].map(|config| match config.scheduling_choice {
            Some(pb::model_config::SchedulingChoice::SequenceBatching(sequence)) => sequence,
            other => panic!("{other:?}"),
        });
        (written, shown)
    }

    #[test]
    fn what_is_shown_means_what_is_in_force() {
        let controls = r#""max_sequence_idle_microseconds": 5000000, "control_input": [
            {"name": "START", "control": [{"kind": "CONTROL_SEQUENCE_START", "fp32_false_true": [0, 0.5]}]},
            {"name": "END", "control": [{"kind": "CONTROL_SEQUENCE_END", "int32_false_true": [-1, 70000]}]},
            {"name": "READY", "control": [{"kind": "CONTROL_SEQUENCE_READY", "bool_false_true": [false, true]}]},
            {"name": "ID", "control": [{"kind": "CONTROL_SEQUENCE_CORRID", "data_type": "TYPE_UINT64"}]}],
            "state": [{"input_name": "h", "output_name": "h2", "data_type": "TYPE_INT8", "dims": [-1, 2],
                "initial_state": [{"name": "h", "data_type": "TYPE_INT8", "dims": [2, 2], "data_file": "h.bin"}]},
                {"input_name": "i", "output_name": "i2", "data_type": "TYPE_FP16", "dims": [4],
                "initial_state": [{"name": "i", "data_type": "TYPE_FP16", "dims": [4], "zero_data": true}]}]"#;
        let strategies = [
            r#""direct": {"max_queue_delay_microseconds": 250}"#,
            r#""oldest": {"max_candidate_sequences": 4, "preferred_batch_size": [2, 8],
                "max_queue_delay_microseconds": 250, "preserve_ordering": true}"#,
        ];
        for strategy in strategies {
            let (written, shown) = said_and_shown(&format!("{{{strategy}, {controls}}}"));
            assert_eq!(shown, written);
        }
    }

    #[test]
    fn what_triton_takes_for_granted_is_shown() {
        let (_, shown) = said_and_shown(r#"{"oldest": {}}"#);
        let Some(StrategyChoice::Oldest(oldest)) = shown.strategy_choice else { panic!("{shown:?}") };
        assert_eq!((oldest.max_candidate_sequences, shown.max_sequence_idle_microseconds), (8, 1_000_000));
        let (_, shown) = said_and_shown("{}");
        assert!(matches!(shown.strategy_choice, Some(StrategyChoice::Direct(_))), "{shown:?}");
    }

    #[test]
    fn a_model_that_generates_is_decoupled() {
        let text = format!(
            r#"{{{}, "parameters": {{"GENERATE_STATES": {{"string_value": "h"}},
                "GENERATE_STOP_VALUE": {{"string_value": "2"}}}}}}"#,
            INPUTS.replace("[3]", "[1]")
        );
        let config = ModelConfig::from_json(&text, Path::new("m"), "m").expect("a configuration");
        let mut shown = pb::ModelConfig::default();
        super::super::scheduling::show(&config, &mut shown);
        assert_eq!(shown.model_transaction_policy, Some(pb::ModelTransactionPolicy { decoupled: true }));
        let parameter = |key: &str| shown.parameters.get(key).map(|value| value.string_value.as_str());
        assert_eq!(parameter("GENERATE_STATES"), Some("h"));
        assert_eq!(parameter("GENERATE_FEED"), Some("y"));
        assert_eq!(parameter("GENERATE_SEND"), Some("y"));
        assert_eq!(parameter("GENERATE_STOP_VALUE"), Some("2"));
        assert_eq!(parameter("GENERATE_STOP_FLAG"), None);
        assert_eq!(parameter("GENERATE_MAX_STEPS"), Some("1024"));
    }
}
