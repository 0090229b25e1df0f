//! How requests wait and are joined, as Triton's fields, where its file does not say it itself.

use std::{num::NonZeroU32, time::Duration};

use sconce_proto::inference::{self as pb, model_config::SchedulingChoice};
use sconce_repository::{Batching, Filler, Generate, ModelConfig, OnTimeout, Padding, QueuePolicy, Queueing};

use super::sequence;

/// Shows what is in force; what a file in Triton's format says stands there already.
pub(super) fn show(config: &ModelConfig, shown: &mut pb::ModelConfig) {
    if shown.scheduling_choice.is_none() {
        let batching = config.batching.as_ref();
        shown.scheduling_choice = match &config.sequences {
            // Triton's message has one of the two, so what is said of queues is not shown beside sequences.
            Some(sequences) => {
                let shown = sequence::sequence_batching(sequences, batching);
                Some(SchedulingChoice::SequenceBatching(shown))
            }
            None => dynamic_batching(batching, &config.queue).map(SchedulingChoice::DynamicBatching),
        };
    }
    // Clients decide by it how they call.
    if config.generate.is_some() {
        shown.model_transaction_policy = Some(pb::ModelTransactionPolicy { decoupled: true });
    }
    for (key, value) in parameters(config) {
        let value = pb::ModelParameter { string_value: value };
        shown.parameters.entry(key.to_owned()).or_insert(value);
    }
}

/// Triton has no queues without this message, so a model that is not batched may have it too.
fn dynamic_batching(batching: Option<&Batching>, queue: &Queueing) -> Option<pb::ModelDynamicBatching> {
    if batching.is_none() && *queue == Queueing::default() {
        return None;
    }
    let Queueing { levels, default_priority } = queue;
    let mut dynamic = pb::ModelDynamicBatching::default();
    if let Some(batching) = batching {
        dynamic.preferred_batch_size =
            batching.preferred_sizes.iter().map(|&size| i32::try_from(size).unwrap_or(i32::MAX)).collect();
        dynamic.max_queue_delay_microseconds = microseconds(batching.max_delay);
        dynamic.preserve_ordering = batching.preserve_ordering;
    }
    match &levels[..] {
        [level] => dynamic.default_queue_policy = policy(level),
        levels => {
            dynamic.priority_levels = levels.len() as u64;
            dynamic.default_priority_level = default_priority.get().into();
            let policies = (1..).zip(levels).filter_map(|(number, level)| Some((number, policy(level)?)));
            dynamic.priority_queue_policy = policies.collect();
        }
    }
    Some(dynamic)
}

/// A policy that says anything.
fn policy(policy: &QueuePolicy) -> Option<pb::ModelQueuePolicy> {
    use pb::model_queue_policy::TimeoutAction;
    let QueuePolicy { max_size, timeout, on_timeout, allow_timeout_override } = policy;
    (*policy != QueuePolicy::default()).then(|| pb::ModelQueuePolicy {
        timeout_action: match on_timeout {
            OnTimeout::Reject => TimeoutAction::Reject,
            OnTimeout::Delay => TimeoutAction::Delay,
        }
        .into(),
        default_timeout_microseconds: timeout.map_or(0, microseconds),
        allow_timeout_override: *allow_timeout_override,
        max_queue_size: max_size.map_or(0, NonZeroU32::get),
    })
}

/// Rounded up, because 0 means none.
pub(super) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
}

/// What differs from the default and has no field in Triton's message.
fn parameters(config: &ModelConfig) -> Vec<(&'static str, String)> {
    let mut parameters = Vec::new();
    match &config.batching {
        None if config.max_batch_size > 0 => parameters.push(("BATCHING", "off".to_owned())),
        None => {}
        Some(Batching { allowed_sizes, latency_target, .. }) => {
            if !allowed_sizes.is_empty() {
                let sizes: Vec<String> = allowed_sizes.iter().map(u32::to_string).collect();
                parameters.push(("ALLOWED_SIZES", sizes.join(",")));
            }
            if let Some(target) = latency_target {
                parameters.push(("LATENCY_TARGET", humantime::format_duration(*target).to_string()));
            }
        }
    }
    if config.weight > NonZeroU32::MIN {
        parameters.push(("WEIGHT", config.weight.to_string()));
    }
    parameters.extend(padding(config));
    parameters.extend(config.generate.as_ref().into_iter().flat_map(|generate| generation(generate, config)));
    parameters
}

/// How a model answers many times.
fn generation(generate: &Generate, config: &ModelConfig) -> Vec<(&'static str, String)> {
    let Generate { states, feed, send, stop_flag, stop_value, max_steps, collect } = generate;
    let fed = config.outputs.iter().find(|output| output.name == *feed);
    let stop_value = stop_value.as_ref().zip(fed);
    let stop_value = stop_value.and_then(|(value, fed)| Filler::from_bytes(fed.data_type, value));
    let all = [
        ("GENERATE_STATES", Some(states.join(","))),
        ("GENERATE_FEED", Some(feed.clone())),
        ("GENERATE_SEND", Some(send.join(","))),
        ("GENERATE_STOP_FLAG", stop_flag.clone()),
        ("GENERATE_STOP_VALUE", stop_value.map(|value| value.to_string())),
        ("GENERATE_MAX_STEPS", Some(max_steps.to_string())),
        ("GENERATE_COLLECT", Some(collect.to_string())),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// How requests of different lengths are joined.
fn padding(config: &ModelConfig) -> impl Iterator<Item = (&'static str, String)> {
    let mut lists = [("PAD", Vec::new()), ("MASK", Vec::new()), ("UNPAD", Vec::new())];
    for tensor in config.inputs.iter().chain(&config.outputs) {
        let (list, value) = match &tensor.padding {
            None | Some(Padding::Ragged | Padding::ScatterLike(_)) => continue,
            Some(Padding::Fill(filler)) => (0, filler.to_string()),
            Some(Padding::MaskOf(input)) => (1, input.clone()),
            Some(Padding::CutTo(input)) => (2, input.clone()),
        };
        lists[list].1.push(format!("{}={value}", tensor.name));
    }
    lists.into_iter().filter(|(_, list)| !list.is_empty()).map(|(key, list)| (key, list.join(",")))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A model with a batch of up to 8 rows, and these fields of Triton's.
    fn config(text: &str) -> ModelConfig {
        let json = format!(
            r#"{{"max_batch_size": 8,
                "input": [{{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}}],
                "output": [{{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}}]{text}}}"#
        );
        ModelConfig::from_json(&json, Path::new("m"), "m").expect("a configuration")
    }

    /// What is shown of it where there is no message of Triton's.
    fn shown(config: &ModelConfig) -> (Option<pb::ModelDynamicBatching>, Vec<(String, String)>) {
        let mut shown = pb::ModelConfig::default();
        show(config, &mut shown);
        let parameters = shown.parameters.into_iter().map(|(key, value)| (key, value.string_value));
        let mut parameters: Vec<_> = parameters.collect();
        parameters.sort();
        let dynamic = shown.scheduling_choice.map(|choice| match choice {
            SchedulingChoice::DynamicBatching(dynamic) => dynamic,
            other => panic!("{other:?}"),
        });
        (dynamic, parameters)
    }

    #[test]
    fn what_is_shown_means_what_is_in_force() {
        let text = r#", "dynamic_batching": {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": 250,
            "priority_levels": 3, "default_priority_level": 2, "priority_queue_policy": {
                "1": {"timeout_action": "DELAY", "default_timeout_microseconds": 1000, "max_queue_size": 7},
                "3": {"allow_timeout_override": true}}},
            "parameters": {"WEIGHT": {"string_value": "3"}, "ALLOWED_SIZES": {"string_value": "4,8"}}"#;
        let config = config(text);
        let message: pb::ModelConfig =
            prost::Message::decode(config.source.message().expect("Triton's")).expect("a message");
        let Some(SchedulingChoice::DynamicBatching(written)) = message.scheduling_choice else {
            panic!("{message:?}")
        };
        let (dynamic, parameters) = shown(&config);
        assert_eq!(dynamic, Some(written));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(parameters, [pair("ALLOWED_SIZES", "4,8"), pair("WEIGHT", "3")]);
        let (_, parameters) =
            shown(&self::config(r#", "parameters": {"LATENCY_TARGET": {"string_value": "50ms"}}"#));
        assert_eq!(parameters, [pair("LATENCY_TARGET", "50ms")]);
    }

    #[test]
    fn padding_is_shown_as_it_can_be_written() {
        let text = r#"{"max_batch_size": 8,
            "input": [{"name": "ids", "data_type": "TYPE_INT64", "dims": [-1]},
                {"name": "scores", "data_type": "TYPE_FP16", "dims": [-1]},
                {"name": "mask", "data_type": "TYPE_BOOL", "dims": [-1]}],
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1, 3]}],
            "parameters": {"PAD": {"string_value": "scores = -0.5, ids=7"}, "MASK": {"string_value": "mask=ids"},
                "UNPAD": {"string_value": "y=ids"}}}"#;
        let config = ModelConfig::from_json(text, Path::new("m"), "m").expect("a configuration");
        let (_, parameters) = shown(&config);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = [pair("MASK", "mask=ids"), pair("PAD", "ids=7,scores=-0.5"), pair("UNPAD", "y=ids")];
        assert_eq!(parameters, expected);
    }

    #[test]
    fn defaults_are_shown_as_what_they_are() {
        let batched = config("");
        assert_eq!(shown(&batched), (Some(pb::ModelDynamicBatching::default()), Vec::new()));
        let off = ModelConfig { batching: None, ..batched.clone() };
        assert_eq!(shown(&off), (None, vec![("BATCHING".to_owned(), "off".to_owned())]));
        let single = ModelConfig { max_batch_size: 0, ..off };
        assert_eq!(shown(&single), (None, Vec::new()));
        let short = Batching { max_delay: Duration::from_nanos(1), ..Batching::default() };
        let (dynamic, _) = shown(&ModelConfig { batching: Some(short), ..batched });
        assert_eq!(dynamic.map(|dynamic| dynamic.max_queue_delay_microseconds), Some(1));
    }

    #[test]
    fn queues_are_shown_without_batches_too() {
        let all = QueuePolicy { max_size: NonZeroU32::new(5), ..QueuePolicy::default() };
        let queue = Queueing { levels: vec![all], ..Queueing::default() };
        let (dynamic, _) = shown(&ModelConfig { batching: None, max_batch_size: 0, queue, ..config("") });
        let policy = dynamic.and_then(|dynamic| dynamic.default_queue_policy);
        assert_eq!(policy.map(|policy| policy.max_queue_size), Some(5));
    }

    #[test]
    fn what_a_file_says_stays_as_it_stands() {
        let config = config(r#", "dynamic_batching": {"default_priority_level": 9}"#);
        let mut shown: pb::ModelConfig =
            prost::Message::decode(config.source.message().expect("Triton's")).expect("a message");
        let before = shown.clone();
        show(&config, &mut shown);
        assert_eq!(shown, before);
    }
}
