//! Whole configurations as files.

use std::{fs, os::unix::fs::symlink};

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// The model `m` with these files in its directory.
fn model(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("m")).unwrap();
    for (name, content) in files {
        fs::write(root.path().join("m").join(name), content).unwrap();
    }
    root
}

fn load_model(root: &TempDir) -> Result<ModelConfig, ConfigError> {
    load(&root.path().join("m"), "m")
}

fn yaml(text: &str) -> Result<ModelConfig, ConfigError> {
    load_model(&model(&[("config.yaml", text), ("labels.txt", "zero\none\r\n\ntwo")]))
}

/// The error, without the directory of the test.
fn error_of(root: &TempDir) -> String {
    let text = load_model(root).expect_err("must be refused").to_string();
    assert!(!text.contains('\n'), "{text}");
    text.replace(&format!("{}/", root.path().display()), "")
}

fn error(text: &str) -> String {
    error_of(&model(&[("config.yaml", text)]))
}

#[test]
fn no_file_means_the_defaults() {
    let config = load_model(&model(&[])).unwrap();
    assert_eq!(config.source, ConfigSource::Default);
    assert_eq!((config.name.as_str(), config.model_file.as_str()), ("m", "model.pt"));
    assert_eq!((config.max_batch_size, config.threads, config.optimize), (0, None, false));
    assert!(config.inference_mode && config.optimized_execution && !config.stateful);
    assert_eq!(config.version_policy, VersionPolicy::default());
    assert!(config.inputs.is_empty() && config.instances.is_empty() && config.notes.is_empty());

    let empty = yaml("# nothing\n").unwrap();
    assert!(matches!(&empty.source, ConfigSource::Yaml(path) if path.ends_with("m/config.yaml")));
    assert_eq!(ModelConfig { source: ConfigSource::Default, ..empty }, config);
}

#[test]
fn every_field_is_read() {
    let root = model(&[
        (
            "config.yaml",
            "name: m
platform: pytorch_libtorch
max_batch_size: 8
inputs:
- {name: x, dtype: FP32, shape: [-1, 4], reshape: [-1, 2, 2]}
- {name: mask, dtype: BOOL, shape: [1], reshape: [], optional: true}
outputs:
- {name: y, dtype: BYTES, shape: [3], labels: labels.txt}
versions: {specific: [3, 1]}
instances: [{device: gpu, count: 2, gpus: [0, 1]}, {device: cpu}, {count: 3}]
model_file: net.pt
threads: 2
optimize: true
inference_mode: false
optimized_execution: false
stateful: true
op_libraries: [libops.so, /opt/ops.so]
",
        ),
        ("labels.txt", "zero\none\r\n\ntwo"),
    ]);
    let config = load_model(&root).unwrap();
    let x = &config.inputs[0];
    assert_eq!((x.name.as_str(), x.data_type, &x.dims[..]), ("x", DataType::Fp32, &[-1, 4][..]));
    assert_eq!((x.reshape.as_deref(), x.optional), (Some(&[-1, 2, 2][..]), false));
    assert_eq!((config.inputs[1].reshape.as_deref(), config.inputs[1].optional), (Some(&[][..]), true));
    let labels = config.outputs[0].labels.as_ref().unwrap();
    assert_eq!(
        (labels.file.as_str(), &labels.lines[..]),
        ("labels.txt", &["zero", "one", "", "two"].map(str::to_owned)[..])
    );
    assert_eq!(
        config.version_policy,
        VersionPolicy::Specific([3, 1].map(|n| crate::Version::new(n).unwrap()).to_vec())
    );
    let groups: Vec<_> = config.instances.iter().map(|g| (g.kind, g.count.get(), g.gpus.clone())).collect();
    assert_eq!(
        groups,
        [(InstanceKind::Gpu, 2, vec![0, 1]), (InstanceKind::Cpu, 1, vec![]), (InstanceKind::Auto, 3, vec![])]
    );
    assert_eq!((config.model_file.as_str(), config.threads.map(NonZeroU32::get)), ("net.pt", Some(2)));
    assert!(config.optimize && config.stateful && !config.inference_mode && !config.optimized_execution);
    assert_eq!(config.op_libraries, [root.path().join("m/libops.so"), PathBuf::from("/opt/ops.so")]);
}

#[test]
fn versions_and_instances_have_short_forms() {
    assert_eq!(yaml("versions: all").unwrap().version_policy, VersionPolicy::All);
    assert_eq!(yaml("versions: latest").unwrap().version_policy, VersionPolicy::default());
    let two = VersionPolicy::Latest(NonZeroU32::new(2).unwrap());
    assert_eq!(yaml("versions: {latest: 2}").unwrap().version_policy, two);
    let four =
        InstanceGroup { kind: InstanceKind::Auto, count: NonZeroU32::new(4).unwrap(), gpus: Vec::new() };
    assert_eq!(yaml("instances: 4").unwrap().instances, [four]);
}

#[test]
fn one_side_may_be_left_to_the_model() {
    assert!(yaml("inputs: [{name: x, dtype: FP32, shape: []}]").unwrap().outputs.is_empty());
    assert!(yaml("outputs: [{name: x, dtype: FP32, shape: []}]").unwrap().inputs.is_empty());
}

#[test]
fn two_configurations_are_one_too_many() {
    let both = error_of(&model(&[("config.yaml", ""), ("config.pbtxt", "")]));
    assert!(both.starts_with("m holds both config.yaml and config.pbtxt"), "{both}");
    assert!(both.contains("delete config.pbtxt, or delete config.yaml"), "{both}");
    let yml = error_of(&model(&[("config.yml", "")]));
    assert_eq!(yml, "m/config.yml is not read under this name: rename it to config.yaml");
}

#[test]
fn a_file_that_cannot_be_read_is_no_reason_for_defaults() {
    let root = model(&[]);
    symlink("nowhere", root.path().join("m/config.yaml")).unwrap();
    assert_eq!(error_of(&root), "cannot read m/config.yaml: there is no such file");

    let root = model(&[]);
    fs::create_dir(root.path().join("m/config.yaml")).unwrap();
    assert_eq!(error_of(&root), "cannot read m/config.yaml: it is not a file");

    let root = model(&[]);
    fs::write(root.path().join("m/config.yaml"), b"name: m\nx: \xff").unwrap();
    assert_eq!(error_of(&root), "cannot read m/config.yaml: it is not UTF-8 text (line 2)");

    let large = error_of(&model(&[("config.yaml", &"#".repeat(2 << 20))]));
    assert_eq!(large, "cannot read m/config.yaml: it is larger than 1048576 bytes");
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert_eq!(yaml("\u{feff}max_batch_size: 0").unwrap().max_batch_size, 0);
}

#[test]
fn the_name_is_that_of_the_directory() {
    assert!(yaml("name: m").is_ok() && yaml("name: ''").is_ok());
    assert_eq!(
        error("name: other"),
        "m/config.yaml:1:7: name: `other` is not the name of the directory, which is the model's name: \
         write `m` or leave it out"
    );
}

#[test]
fn only_torchscript_is_served() {
    let text = error("platform: onnxruntime_onnx");
    assert!(
        text.contains("platform: `onnxruntime_onnx` is not served") && text.contains("`pytorch_libtorch`"),
        "{text}"
    );
}

#[test]
fn a_batch_needs_shapes() {
    let text = error("max_batch_size: 4");
    assert!(text.contains("max_batch_size: 4 says that every tensor has a batch dimension"), "{text}");
    assert!(error("max_batch_size: 2147483648").contains("at most 2147483647 is allowed"));
    assert!(yaml("{max_batch_size: 2147483647, inputs: [{name: x, dtype: FP32, shape: []}]}").is_ok());
}

#[test]
fn names_are_given_and_differ() {
    let text = error("inputs: [{name: '', dtype: FP32, shape: [1]}]");
    assert!(text.contains("inputs[0].name: is empty or missing"), "{text}");
    let text = error("outputs: [{name: x, dtype: FP32, shape: [1]}, {name: x, dtype: FP32, shape: [1]}]");
    assert!(text.contains("outputs[1].name: `x` is already the name of another one"), "{text}");
    // An input and an output may share one, as in Triton.
    assert!(
        yaml("{inputs: [{name: x, dtype: FP32, shape: [1]}], outputs: [{name: x, dtype: FP32, shape: [1]}]}")
            .is_ok()
    );
}

#[test]
fn shapes_are_checked_where_they_stand() {
    let text = error("inputs: [{name: x, dtype: FP32, shape: [3, 0]}]");
    assert!(
        text.contains("inputs[0].shape[1]: a dimension is -1 for any size, or 1 and more, not 0"),
        "{text}"
    );
    let text = error("outputs: [{name: x, dtype: FP32, shape: [3], reshape: [2]}]");
    assert!(text.contains("outputs[0].reshape: [2] cannot be [3]"), "{text}");
    let text = error("outputs: [{name: x, dtype: FP32, shape: [3], reshape: []}]");
    assert!(text.contains("it has 1 elements and `shape` has 3"), "{text}");
}

#[test]
fn a_field_on_the_wrong_side_says_where_it_belongs() {
    let text = error("outputs: [{name: x, dtype: FP32, shape: [1], optional: true}]");
    assert!(text.contains("it belongs to an entry of `inputs`"), "{text}");
    let text = error("inputs: [{name: x, dtype: FP32, shape: [1], labels: l.txt}]");
    assert!(text.contains("it belongs to an entry of `outputs`"), "{text}");
}

#[test]
fn versions_that_would_serve_nothing_are_refused() {
    assert!(error("versions: {latest: 0}").contains("versions.latest: 0 would serve nothing"));
    assert!(
        error("versions: {specific: []}").contains("versions.specific: an empty list would serve nothing")
    );
    assert!(error("versions: {specific: [1, 0]}").contains("versions.specific[1]: there is no version 0"));
    assert!(error("versions: {specific: [2, 2]}").contains("versions.specific[1]: version 2 is named twice"));
}

#[test]
fn instances_are_possible_ones() {
    assert!(error("instances: 0").contains("instances: a number from 1 to 1024 is expected, not 0"));
    assert!(error("instances: 99999999999").contains("expected a number from 1 to 1024, or a list such as"));
    assert!(error("instances: [{device: gpu, count: 0}]").contains("instances[0].count: a number from 1"));
    assert!(error("instances: [{device: cpu, gpus: [0]}]").contains("instances[0].gpus: a group on the CPU"));
    assert!(error("instances: [{device: gpu, gpus: [1, 1]}]").contains("GPU 1 is listed twice"));
    assert!(yaml("instances: [{device: gpu}]").is_ok());
    assert!(error("threads: 0").contains("threads: a number from 1 to 1024 is expected, not 0"));
}

#[test]
fn the_model_file_is_a_plain_name() {
    for name in ["", "..", ".", "a/b.pt", "/m.pt", "a\\\\b.pt"] {
        let text = error(&format!("model_file: \"{name}\""));
        assert!(text.contains("model_file: `") && text.contains("plain file name"), "{text}");
    }
}

#[test]
fn labels_stay_in_the_directory_and_are_text() {
    let output =
        |labels: &str| format!("outputs: [{{name: y, dtype: FP32, shape: [2], labels: '{labels}'}}]");
    for outside in ["/etc/passwd", "../m/labels.txt", "a/../../x", ""] {
        let text = error(&output(outside));
        assert!(text.contains("outputs[0].labels: `") && text.contains("without `..`"), "{text}");
    }
    let text = error(&output("labels.txt"));
    assert!(text.contains("cannot read the labels in m/labels.txt: there is no such file"), "{text}");

    let root = model(&[("config.yaml", &output("labels.txt"))]);
    fs::write(root.path().join("m/labels.txt"), b"ok\n\xff\n").unwrap();
    assert!(error_of(&root).contains("it is not UTF-8 text (line 2)"));

    fs::create_dir(root.path().join("m/sub")).unwrap();
    fs::write(root.path().join("m/sub/l.txt"), "a\nb\n").unwrap();
    fs::write(root.path().join("m/config.yaml"), output("sub/l.txt")).unwrap();
    assert_eq!(load_model(&root).unwrap().outputs[0].labels.as_ref().unwrap().lines.len(), 2);
}

#[test]
fn op_libraries_have_names() {
    assert!(error("op_libraries: ['']").contains("op_libraries[0]: the name of a library is expected"));
}

#[test]
fn the_schema_describes_every_field() {
    let schema = config_schema();
    let fields = schema["properties"].as_object().unwrap();
    assert_eq!(fields.len(), 22);
    for (name, field) in fields {
        assert!(field["description"].as_str().is_some_and(|text| text.len() > 20), "{name}: {field}");
    }
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$defs"]["Input"]["properties"]["dtype"]["enum"][11], "FP32");
    assert_eq!(schema["$defs"]["Input"]["required"], json!(["name", "dtype", "shape"]));
    assert!(schema["$defs"]["Output"]["properties"]["labels"].is_object());
    assert_eq!(schema["properties"]["availability"]["default"], "keep");
    assert_eq!(schema["properties"]["warmup"]["default"], "auto");
    assert_eq!(schema["properties"]["batching"]["default"], "auto");
    assert_eq!(schema["$defs"]["BatchingFields"]["properties"]["max_delay"]["default"], "0s");
    let levels = &schema["$defs"]["Queue"]["properties"]["levels"];
    assert_eq!(levels["additionalProperties"]["$ref"], "#/$defs/QueueLevel");
    for name in ["BatchingFields", "Queue", "QueueLevel"] {
        assert_eq!(schema["$defs"][name]["additionalProperties"], false, "{name}");
        assert!(schema["$defs"][name]["properties"]["complete"].is_null(), "{name}");
    }
    for (name, required) in [("WarmupSample", json!(["inputs"])), ("WarmupFile", json!(["file"]))] {
        assert_eq!(schema["$defs"][name]["required"], required);
        assert_eq!(schema["$defs"][name]["additionalProperties"], false);
    }
    assert_eq!(schema["$defs"]["WarmupInput"]["required"], serde_json::Value::Null);
}
