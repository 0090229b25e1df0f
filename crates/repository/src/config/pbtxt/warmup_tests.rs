//! Triton's samples, and the words that its schema has no field for.

use std::fs;

use tempfile::TempDir;

use super::super::load;
use crate::{Availability, DataType, ModelConfig, Warmup, WarmupData};

/// A model with a batch of up to 4, one input of four and a file of 16 bytes for it.
fn load_text(text: &str) -> Result<ModelConfig, String> {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("warmup")).unwrap();
    fs::write(dir.path().join("warmup/x.bin"), [0; 16]).unwrap();
    let text = format!(
        "max_batch_size: 4 input {{ name: \"x\" data_type: TYPE_FP32 dims: 4 }} \
         output {{ name: \"y\" data_type: TYPE_FP32 dims: 4 }} {text}"
    );
    let result = load(&text, dir.path(), "m").map(|(config, _)| config);
    result.map_err(|fault| format!("{}: {}", fault.place, fault.message))
}

fn with(text: &str) -> ModelConfig {
    load_text(text).unwrap()
}

fn error(text: &str) -> String {
    load_text(text).expect_err("must be refused")
}

/// The error of a sample with this as its input `x`.
fn input_error(text: &str) -> String {
    error(&format!("model_warmup {{ batch_size: 1 inputs {{ key: \"x\" value {{ {text} }} }} }}"))
}

#[test]
fn samples_as_they_are_found_in_the_wild_are_read() {
    let config = with(
        r#"model_warmup [
  {
    name : "random sample"
    batch_size: 4
    inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 4 ] random_data: true } }
  },
  { batch_size: 1 count: 5 inputs [{ key: "x" value { data_type: TYPE_FP32 dims: 4 input_data_file: "x.bin" } }] },
  { batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: false } } }
]"#,
    );
    assert_eq!(config.notes, Vec::<String>::new());
    let Warmup::Samples(samples) = config.warmup else { panic!("samples are expected") };
    let told: Vec<_> = samples.iter().map(|s| (s.name.as_str(), s.batch_size, s.count.get())).collect();
    assert_eq!(told, [("random sample", 4, 1), ("model_warmup[1]", 1, 5), ("model_warmup[2]", 1, 1)]);
    let x: Vec<_> = samples.iter().map(|sample| &sample.inputs["x"]).collect();
    assert_eq!((x[0].data_type, &x[0].dims[..], &x[0].data), (DataType::Fp32, &[4][..], &WarmupData::Random));
    assert!(matches!(&x[1].data, WarmupData::File(path) if path.ends_with("warmup/x.bin")));
    assert_eq!(x[2].data, WarmupData::Zero, "the field that is there decides");
}

#[test]
fn a_sample_of_no_batch_is_skipped_as_in_triton() {
    let config = with("model_warmup { name: \"none\" inputs { key: \"no input\" value { } } }");
    assert_eq!(config.warmup, Warmup::Auto);
    assert_eq!(
        config.notes,
        ["model_warmup[0] has no effect: its batch_size is 0, which skips it as in Triton"]
    );
}

#[test]
fn errors_speak_of_the_fields_of_triton() {
    assert!(
        input_error("data_type: TYPE_FP32 dims: 4").starts_with(": model_warmup[0].inputs.x: has no data")
    );
    assert!(input_error("dims: 4 zero_data: true").contains("inputs.x.data_type: is missing"));
    let text = input_error("data_type: TYPE_FP16 dims: 4 zero_data: true");
    assert!(text.contains("model_warmup[0].inputs.x.data_type: FP16 differs from FP32 in `input`"), "{text}");
    let text = input_error("data_type: TYPE_FP32 dims: 5 zero_data: true");
    assert!(text.contains("inputs.x.dims: [5] does not fit [4], its shape in `input`"), "{text}");
    let text = input_error("data_type: TYPE_FP32 dims: -1 zero_data: true");
    assert!(text.contains("inputs.x.dims[0]: -1 is not a size"), "{text}");
    let text = input_error("data_type: TYPE_FP32 dims: 4 input_data_file: \"../x.bin\"");
    assert!(text.contains("inputs.x.input_data_file: `../x.bin` must be a file in"), "{text}");
    assert!(
        error("model_warmup { batch_size: 5 }").contains("model_warmup[0].batch_size: a number from 1 to")
    );
    assert!(error("model_warmup { batch_size: 1 }").contains("model_warmup[0].inputs: `x` is missing"));
    assert!(error("warmup { }").contains("unknown field `warmup`: write `model_warmup`"));
}

#[test]
fn what_the_schema_has_no_field_for_is_a_parameter() {
    let set = |key: &str, value: &str| {
        format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}")
    };
    assert_eq!(with(&set("AVAILABILITY", "Replace")).availability, Availability::Replace);
    assert_eq!(with(&set("AVAILABILITY", "KEEP")).availability, Availability::Keep);
    assert_eq!(with("").availability, Availability::Keep);
    assert!(
        error(&set("AVAILABILITY", "no"))
            .contains("parameters[AVAILABILITY]: `no` is neither keep nor replace")
    );
    assert_eq!(with(&set("WARMUP", "Off")).warmup, Warmup::Off);
    assert_eq!(with(&set("WARMUP", "auto")).warmup, Warmup::Auto);
    assert!(error(&set("WARMUP", "")).contains("parameters[WARMUP]: `` is neither auto nor off"));
    let sample = "model_warmup { batch_size: 1 inputs { key: \"x\" value { data_type: TYPE_FP32 dims: 4 \
                  zero_data: true } } }";
    assert_eq!(with(&format!("{sample} {}", set("WARMUP", "off"))).warmup, Warmup::Off);
    assert!(matches!(with(&format!("{sample} {}", set("WARMUP", "auto"))).warmup, Warmup::Samples(_)));
}
