//! Samples in `config.yaml`: what is taken, and what is refused and why.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{Availability, ModelConfig, config::load};

/// Reads a `config.yaml` beside files with data for warming up.
fn yaml(text: &str) -> Result<ModelConfig, String> {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("m");
    fs::create_dir_all(dir.join("warmup/more")).unwrap();
    for (name, size) in [("4.bin", 4_u64), ("16.bin", 16), ("more/16.bin", 16), ("large.bin", 2 << 30)] {
        fs::File::create(dir.join("warmup").join(name)).unwrap().set_len(size).unwrap();
    }
    fs::write(dir.join("config.yaml"), text).unwrap();
    load(&dir, "m").map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.replace(&format!("{}/", root.path().display()), "")
    })
}

fn samples(text: &str) -> Vec<WarmupSample> {
    match yaml(text).unwrap().warmup {
        Warmup::Samples(samples) => samples,
        other => panic!("samples are expected, not {other:?}"),
    }
}

/// The error of a model with a batch of up to 4, a required and an optional input, and this warm-up.
fn error(warmup: &str) -> String {
    let inputs = "inputs: [{name: x, dtype: FP32, shape: [-1, 4]}, {name: n, dtype: INT64, shape: [1], \
                  optional: true}]";
    let text = yaml(&format!("{{max_batch_size: 4, {inputs}, warmup: {warmup}}}"));
    text.expect_err("must be refused")
}

/// The error of a sample with only this for the input `x`.
fn input_error(input: &str) -> String {
    error(&format!("[{{inputs: {{x: {input}}}}}]"))
}

#[test]
fn availability_and_warmup_have_words() {
    let config = yaml("{availability: replace, warmup: off}").unwrap();
    assert_eq!((config.availability, config.warmup), (Availability::Replace, Warmup::Off));
    let config = yaml("{availability: keep, warmup: auto}").unwrap();
    assert_eq!((config.availability, config.warmup), (Availability::Keep, Warmup::Auto));
    assert_eq!(yaml("").unwrap().warmup, Warmup::Auto);

    assert!(yaml("availability: yes").unwrap_err().contains("expected one of `keep` and `replace`"));
    assert!(yaml("warmup: sometimes").unwrap_err().contains("`auto`, `off`, or a list such as"));
    assert!(yaml("warmup: false").unwrap_err().ends_with("`false` is not a way to warm up: write `off`"));
    assert!(yaml("warmup: []").unwrap_err().contains("warmup: an empty list says nothing"));
    assert!(yaml("model_warmup: []").unwrap_err().ends_with("unknown field `model_warmup`: write `warmup`"));
    assert!(yaml("warm_up: off").unwrap_err().ends_with("write `warmup`"));
}

#[test]
fn what_the_inputs_say_can_be_left_out() {
    let text = "max_batch_size: 4
inputs:
- {name: x, dtype: FP32, shape: [4]}
- {name: s, dtype: BYTES, shape: [-1], optional: true}
warmup:
- inputs: {x: {}}
- {name: full, batch_size: 4, count: 3, inputs: {x: {data: {file: 16.bin}}, s: {shape: [0], data: zero}}}
";
    let [first, full] = &samples(text)[..] else { panic!("two samples are expected") };
    assert_eq!((first.name.as_str(), first.batch_size, first.count.get()), ("warmup[0]", 1, 1));
    let x = WarmupInput { data_type: DataType::Fp32, dims: vec![4], data: WarmupData::Random };
    assert_eq!(first.inputs, [("x".to_owned(), x)].into());
    assert_eq!((full.name.as_str(), full.batch_size, full.count.get()), ("full", 4, 3));
    assert!(matches!(&full.inputs["x"].data, WarmupData::File(path) if path.ends_with("m/warmup/16.bin")));
    let s = WarmupInput { data_type: DataType::Bytes, dims: vec![0], data: WarmupData::Zero };
    assert_eq!(full.inputs["s"], s);
}

#[test]
fn without_inputs_in_the_configuration_a_sample_says_all() {
    let text =
        "warmup: [{batch_size: 1, inputs: {x: {dtype: FP32, shape: [2, 2], data: {file: more/16.bin}}}}]";
    let sample = &samples(text)[0];
    assert_eq!((sample.batch_size, &sample.inputs["x"].dims[..]), (0, &[2, 2][..]));
    assert!(yaml("warmup: [{inputs: {x: {shape: [1]}}}]").unwrap_err().contains(
        "m/config.yaml:1:23: warmup[0].inputs.x.dtype: is missing: write the type of the elements, such as FP32"
    ));
    let text = yaml("warmup: [{inputs: {x: {dtype: FP32}}}]").unwrap_err();
    assert!(text.contains("warmup[0].inputs.x.shape: is missing"), "{text}");
    let text = yaml("warmup: [{batch_size: 2, inputs: {}}]").unwrap_err();
    assert!(text.contains("warmup[0].batch_size: 2 cannot be: the model has no batch dimension"), "{text}");
}

#[test]
fn a_sample_is_a_request_that_would_be_accepted() {
    assert!(error("[{inputs: {}}]").contains("warmup[0].inputs: `x` is missing: a sample has every input"));
    assert!(error("[{inputs: {n: {}}}]").contains("warmup[0].inputs: `x` is missing"));
    let text = error("[{inputs: {x: {shape: [1, 4]}, z: {}}}]");
    assert!(text.contains("warmup[0].inputs.z: no entry of `inputs` has this name"), "{text}");
    let text = input_error("{dtype: FP16, shape: [1, 4]}");
    assert!(text.contains("inputs.x.dtype: FP16 differs from FP32 in `inputs`: write FP32"), "{text}");
    for shape in ["[4]", "[1, 5]", "[1, 1, 4]", "[]"] {
        let text = input_error(&format!("{{shape: {shape}}}"));
        assert!(text.contains(&format!("inputs.x.shape: {shape} does not fit [-1, 4]")), "{text}");
    }
    assert!(input_error("{shape: [-1, 4]}").contains("inputs.x.shape[0]: -1 is not a size"));
    assert!(input_error("{}").contains("inputs.x.shape: is missing"));
    for size in ["0", "5"] {
        let text = error(&format!("[{{batch_size: {size}, inputs: {{x: {{shape: [1, 4]}}}}}}]"));
        assert!(text.contains("batch_size: a number from 1 to max_batch_size, 4, is expected"), "{text}");
    }
    for count in ["0", "10001"] {
        let text = error(&format!("[{{count: {count}, inputs: {{x: {{shape: [1, 4]}}}}}}]"));
        assert!(text.contains("warmup[0].count: a number from 1 to 10000 is expected"), "{text}");
    }
}

#[test]
fn files_with_data_stay_in_their_directory_and_have_the_right_size() {
    let file = |name: &str| input_error(&format!("{{shape: [2, 4], data: {{file: '{name}'}}}}"));
    for outside in ["", "/etc/passwd", "../model.pt", "a/../../x"] {
        let text = file(outside);
        assert!(text.contains("inputs.x.data.file: `") && text.contains("without `..`"), "{text}");
    }
    assert_eq!(
        file("none.bin"),
        "m/config.yaml:1:175: warmup[0].inputs.x.data.file: cannot read the data in m/warmup/none.bin: there is \
         no such file; put the bytes of the tensor there"
    );
    assert!(file("more").contains("m/warmup/more: it is not a file"));
    assert!(
        file("16.bin")
            .ends_with("data.file: `16.bin` cannot be: it has 16 bytes, but its data type and shape take 32")
    );
    let text = error("[{batch_size: 2, inputs: {x: {shape: [2, 4], data: {file: 16.bin}}}}]");
    assert!(text.ends_with("take 32, or 64 for the whole batch"), "{text}");
    // One row, or all of them.
    for (batch, shape) in [(4, "[1, 4]"), (1, "[1, 4]")] {
        let text = format!(
            "{{max_batch_size: 4, inputs: [{{name: x, dtype: FP32, shape: [-1, 4]}}], \
             warmup: [{{batch_size: {batch}, inputs: {{x: {{shape: {shape}, data: {{file: 16.bin}}}}}}}}]}}"
        );
        assert_eq!(samples(&text).len(), 1);
    }
}

#[test]
fn a_sample_has_a_bound() {
    let text = input_error("{shape: [100000000, 4]}");
    assert!(text.contains("inputs: its tensors take 1600000000 bytes, but at most 1073741824"), "{text}");
    assert!(
        input_error("{shape: [9223372036854775807, 4]}").contains("inputs.x.shape: [9223372036854775807, 4]")
    );
    let text =
        yaml("warmup: [{inputs: {s: {dtype: BYTES, shape: [1], data: {file: large.bin}}}}]").unwrap_err();
    assert!(text.contains("its tensors take 2147483648 bytes"), "{text}");
}

#[test]
fn slips_are_told_where_they_stand() {
    assert_eq!(
        error("[{inputs: {x: {data_type: FP32}}}]"),
        "m/config.yaml:1:147: warmup[0].inputs.x.data_type: unknown field `data_type`: write `dtype`"
    );
    assert!(input_error("{zero_data: true}").ends_with("`zero_data` is Triton's name: write `data: zero`"));
    assert!(input_error("{data: ones}").contains("expected `random`, `zero` or `{file: x.bin}`"));
    assert!(input_error("{data: {path: x.bin}}").contains("unknown field `path`: write `file`"));
    assert!(input_error("{data: {}}").contains("`file` is missing"));
    assert!(input_error("{dtype: float32}").contains("unknown data type `float32`: write FP32"));
    assert!(error("[{inputs: {x: {}, x: {}}}]").contains("`x` is given twice"));
    assert!(error("[{}]").contains("warmup[0]: `inputs` is missing"));
    assert!(error("[{inputs: [x]}]").contains("expected a tensor for each name"));
    assert!(error("[3]").contains("warmup[0]: expected a sample such as"));
    assert!(yaml("data: zero").unwrap_err().ends_with("it belongs to a tensor of a sample in `warmup`"));
}
