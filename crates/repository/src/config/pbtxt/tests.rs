//! Triton's format: what is read, ignored and refused.

use std::{fs, path::PathBuf};

use prost_reflect::ReflectMessage;
use tempfile::TempDir;

use super::*;
use crate::{InstanceKind, Version, VersionPolicy};

const IO: &str = "input [ { name: \"x\" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: \"y\" data_type: TYPE_FP32 dims: [ 3 ] } ]\n";

fn load_text(text: &str) -> Result<(ModelConfig, Vec<u8>), Fault> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("labels.txt"), "zero\none\n").unwrap();
    load(text, dir.path(), "m")
}

/// The configuration of a text that is added to one input and one output.
fn with(text: &str) -> ModelConfig {
    load_text(&format!("{IO}{text}")).unwrap().0
}

fn fault(text: &str) -> String {
    let fault = load_text(text).expect_err("must be refused");
    format!("{}: {}", fault.place, fault.message)
}

/// The error of a text that is added to one input and one output.
fn error(text: &str) -> String {
    fault(&format!("{IO}{text}"))
}

/// The error of a text inside an input.
fn input_error(text: &str) -> String {
    fault(&IO.replace("dims: [ 3 ] } ]\noutput", &format!("{text} }} ]\noutput")))
}

#[test]
fn a_configuration_as_it_is_found_in_the_wild_is_read() {
    let (config, _) = load_text(
        r#"
# ResNet-like
name: "m"
platform: "pytorch_libtorch"
backend: "pytorch"
max_batch_size : 8
input [
  {
    name: "INPUT__0"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, -1, -1 ]
    reshape { shape: [ 1, 3, -1, -1 ] }
  },
  { name: "INPUT__1" data_type: TYPE_STRING dims: 1 reshape: { shape: [ ] } optional: true }
]
output {
  name: "OUTPUT__0"
  data_type: TYPE_BF16
  dims: [ 2 ]
  label_filename: "labels.txt"
}
version_policy: { specific { versions: [1, 3] }}
instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] }, { kind: KIND_CPU } ]
default_model_filename: "net.pt"
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
parameters: { key: "DISABLE_OPTIMIZED_EXECUTION" value: { string_value: "true" } }
parameters { key: "INFERENCE_MODE" value { string_value: "False" } }
parameters [ { key: "INTRA_OP_THREAD_COUNT" value: { string_value: "2" } } ]
model_operations { op_library_filename: "/opt/ops.so" }
"#,
    )
    .unwrap();
    assert_eq!((config.max_batch_size, config.model_file.as_str()), (8, "net.pt"));
    assert_eq!(config.inputs[0].dims, [3, -1, -1]);
    assert_eq!(config.inputs[0].reshape, Some(vec![1, 3, -1, -1]));
    let second = &config.inputs[1];
    assert_eq!(
        (second.data_type, second.reshape.clone(), second.optional),
        (DataType::Bytes, Some(vec![]), true)
    );
    assert_eq!(config.outputs[0].data_type, DataType::Bf16);
    assert_eq!(config.outputs[0].labels.as_ref().unwrap().lines.len(), 2);
    assert_eq!(
        config.version_policy,
        VersionPolicy::Specific([1, 3].map(|n| Version::new(n).unwrap()).to_vec())
    );
    let groups: Vec<_> = config.instances.iter().map(|g| (g.kind, g.count.get(), g.gpus.len())).collect();
    assert_eq!(groups, [(InstanceKind::Gpu, 2, 2), (InstanceKind::Cpu, 1, 0)]);
    assert!(!config.optimized_execution && !config.inference_mode);
    assert_eq!(config.threads.map(std::num::NonZeroU32::get), Some(2));
    assert_eq!(config.op_libraries, [PathBuf::from("/opt/ops.so")]);
    let batching = config.batching.unwrap();
    assert_eq!((batching.max_delay.as_micros(), &batching.preferred_sizes[..]), (100, &[4, 8][..]));
    assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
}

#[test]
fn the_message_is_complete_and_has_the_name() {
    let (_, bytes) = load_text(&format!("{IO}metric_tags {{ key: \"a\" value: \"b\" }}")).unwrap();
    let descriptor = text::parse("").unwrap().descriptor();
    let message = DynamicMessage::decode(descriptor, bytes.as_slice()).unwrap();
    assert_eq!(read::text(&message, "name"), "m");
    assert!(read::is_set(&message, "metric_tags"));
    assert_eq!(read::messages(&message, "input").len(), 1);
}

#[test]
fn inputs_and_outputs_must_be_listed() {
    assert!(fault("").contains("input: Triton's format must list every input as `input [{ name:"));
    assert!(fault(IO.split_once('\n').unwrap().0).contains("output: Triton's format must list every output"));
}

#[test]
fn tensors_are_checked_as_in_triton() {
    assert!(input_error("").contains("input[0].dims: is missing"));
    assert!(input_error("dims: [ 0 ]").contains("input[0].dims[0]: a dimension is -1"));
    assert!(input_error("dims: [ 2 ] reshape { }").contains("it has 1 elements and `dims` has 2"));
    assert!(fault(&IO.replace("data_type: TYPE_FP32 ", "")).contains("input[0].data_type: is missing"));
    assert!(fault(&IO.replace("TYPE_FP32", "99")).contains("no data type of number 99"));
    assert!(fault(&IO.replace("name: \"y\"", "")).contains("output[0].name: is empty or missing"));
    assert!(fault(&IO.replace("TYPE_FP32", "TYPE_FLOAT32")).contains("write TYPE_FP32"));
}

#[test]
fn the_words_of_the_errors_are_tritons() {
    assert!(error("default_model_filename: \"a/b\"").contains(": default_model_filename: `a/b`"));
    assert!(error("max_batch_size: -1").contains("max_batch_size: 0 or more is expected, not -1"));
    assert!(error("name: \"other\"").contains("name: `other` is not the name of the directory"));
    assert!(
        error("input { name: \"x\" data_type: TYPE_FP32 dims: 1 }").contains("input[1].name: `x` is already")
    );
}

#[test]
fn only_libtorch_is_served() {
    for ok in ["platform: \"libtorch\"", "backend: \"pytorch\"", "platform: \"\" backend: \"\""] {
        with(ok);
    }
    assert!(
        error("platform: \"onnxruntime_onnx\"")
            .contains("platform: `onnxruntime_onnx` is not served, only TorchScript")
    );
    assert!(error("backend: \"python\"").contains("backend: `python` is not served, only TorchScript"));
    assert!(error("runtime: \"model.py\"").contains("runtime: only libtorch runs models"));
}

#[test]
fn the_version_policy_makes_a_choice() {
    assert_eq!(with("version_policy { all { } }").version_policy, VersionPolicy::All);
    assert_eq!(with("").version_policy, VersionPolicy::default());
    assert!(
        error("version_policy { latest { } }").contains("version_policy.latest.num_versions: 0 would serve")
    );
    assert!(
        error("version_policy { specific { } }").contains("version_policy.specific.versions: an empty list")
    );
    assert!(
        error("version_policy { specific { versions: -1 } }").contains("versions[0]: there is no version -1")
    );
    assert!(error("version_policy { }").contains("version_policy: chooses nothing"));
}

#[test]
fn instance_groups_are_possible_ones() {
    assert!(
        error("instance_group { kind: KIND_MODEL }")
            .contains("instance_group[0].kind: KIND_MODEL is not served")
    );
    assert!(error("instance_group { kind: 7 }").contains("instance_group[0].kind: 7 is not served"));
    assert!(error("instance_group { count: -1 }").contains("instance_group[0].count: 0 or more"));
    assert!(error("instance_group { gpus: -1 }").contains("instance_group[0].gpus[0]: 0 or more"));
    assert!(error("instance_group { kind: KIND_CPU gpus: 0 }").contains("a group on the CPU has no GPUs"));
    assert!(error("instance_group { passive: true }").contains("instance_group[0].passive"));
    assert!(
        error("instance_group { secondary_devices { } }").contains("instance_group[0].secondary_devices")
    );
}

#[test]
fn what_would_change_answers_is_refused_by_name() {
    for (text, field) in [
        ("ensemble_scheduling { }", "ensemble_scheduling"),
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled"),
        ("cc_model_filenames { key: \"7.5\" value: \"a.pt\" }", "cc_model_filenames"),
        ("model_repository_agents { agents { name: \"checksum\" } }", "model_repository_agents"),
    ] {
        let text = error(text);
        assert!(text.starts_with(&format!(": {field}: ")), "{text}");
    }
    for field in ["is_shape_tensor", "is_non_linear_format_io"] {
        let text = input_error(&format!("dims: 1 {field}: true"));
        assert!(text.starts_with(&format!(": input[0].{field}: ")), "{text}");
    }
    with("model_transaction_policy { decoupled: false }");
}

#[test]
fn what_cannot_change_answers_is_noted() {
    for (text, field) in [
        ("optimization { priority: PRIORITY_MAX }", "optimization"),
        ("model_warmup { name: \"w\" }", "model_warmup[0]"),
        ("response_cache { enable: true }", "response_cache"),
        ("metric_tags { key: \"a\" value: \"b\" }", "metric_tags"),
        ("model_metrics { }", "model_metrics"),
        ("instance_group { rate_limiter { priority: 1 } }", "instance_group[0].rate_limiter"),
        ("instance_group { host_policy: \"p\" }", "instance_group[0].host_policy"),
    ] {
        let notes = with(text).notes;
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].starts_with(&format!("{field} has no effect: ")), "{notes:?}");
    }
}

#[test]
fn parameters_are_switches_and_numbers() {
    let set = |key: &str, value: &str| {
        format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}")
    };
    assert!(
        error(&set("INFERENCE_MODE", "maybe"))
            .contains("parameters[INFERENCE_MODE]: `maybe` is neither true")
    );
    assert!(
        error(&set("ENABLE_JIT_EXECUTOR", "")).contains("parameters[ENABLE_JIT_EXECUTOR]: `` is neither")
    );
    assert!(error(&set("INTRA_OP_THREAD_COUNT", "two")).contains("`two` is not a whole number"));
    assert!(error(&set("INTRA_OP_THREAD_COUNT", "5000")).contains("a number from 1 to 1024 is expected"));
    assert_eq!(with(&set("INTRA_OP_THREAD_COUNT", "0")).threads, None);
    assert!(with(&set("DISABLE_OPTIMIZED_EXECUTION", "0")).optimized_execution);
    for (key, value) in [
        ("ENABLE_WEIGHT_SHARING", "true"),
        ("ENABLE_CACHE_CLEANING", "true"),
        ("INTER_OP_THREAD_COUNT", "4"),
        ("ENABLE_JIT_PROFILING", "off"),
        ("ENABLE_TENSOR_FUSER", "1"),
        ("DISABLE_CUDNN", "true"),
        ("MY_OWN", "anything"),
    ] {
        let notes = with(&set(key, value)).notes;
        assert!(
            notes.len() == 1 && notes[0].starts_with(&format!("parameters[{key}] has no effect: ")),
            "{notes:?}"
        );
    }
}
