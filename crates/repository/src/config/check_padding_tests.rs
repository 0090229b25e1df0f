//! Padding in both formats: what is taken, and what is refused and why.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{
    ModelConfig,
    config::{load, padding::Number},
};

fn read(file: &str, text: &str) -> Result<ModelConfig, String> {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join(file), text).unwrap();
    load(root.path(), "m").map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.replace(&format!("{}/{file}: ", root.path().display()), "")
    })
}

/// A model of three inputs and an output, each with these fields.
fn yaml([ids, mask, mode, logits]: [&str; 4]) -> Result<ModelConfig, String> {
    let text = format!(
        "max_batch_size: 4\ninputs:\n- {{name: ids, dtype: INT64, shape: [-1]{ids}}}\n\
         - {{name: mask, dtype: FP32, shape: [1, -1]{mask}}}\n- {{name: mode, dtype: BYTES, shape: [-1]{mode}}}\n\
         outputs:\n- {{name: logits, dtype: FP32, shape: [-1, 10]{logits}}}\n"
    );
    read("config.yaml", &text)
}

/// The same with these parameters.
fn pbtxt(parameters: &[(&str, &str)]) -> Result<ModelConfig, String> {
    let mut text = "max_batch_size: 4 input [ { name: \"ids\" data_type: TYPE_INT64 dims: [ -1 ] }, \
        { name: \"mask\" data_type: TYPE_FP32 dims: [ 1, -1 ] }, { name: \"mode\" data_type: TYPE_STRING dims: [ -1 ] } ] \
        output [ { name: \"logits\" data_type: TYPE_FP32 dims: [ -1, 10 ] } ]\n"
        .to_owned();
    for (key, value) in parameters {
        text += &format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n");
    }
    read("config.pbtxt", &text)
}

#[test]
fn both_formats_say_what_is_filled_up_masked_and_cut() {
    let all = [", pad: -1", ", mask_of: ids", "", ", unpad: ids"];
    let parameters = [("PAD", "ids=-1"), ("MASK", "mask = ids"), ("UNPAD", "logits=ids")];
    for config in [yaml(all).unwrap(), pbtxt(&parameters).unwrap()] {
        let filler = Filler::new(DataType::Int64, Number::Integer(-1)).unwrap();
        assert_eq!(config.inputs[0].padding, Some(Padding::Fill(filler)));
        assert_eq!(config.inputs[1].padding, Some(Padding::MaskOf("ids".to_owned())));
        assert_eq!(config.outputs[0].padding, Some(Padding::CutTo("ids".to_owned())));
        let optional = config.inputs.iter().map(|input| input.optional);
        assert_eq!(optional.collect::<Vec<_>>(), [false, true, false], "the server makes the mask");
        assert!(config.notes.is_empty(), "{:?}", config.notes);
    }
    let both = pbtxt(&[("PAD", "ids=0, mask=0.5")]).unwrap();
    let shown =
        |index: usize| both.inputs[index].padding.as_ref().and_then(Padding::filler).unwrap().to_string();
    assert_eq!([shown(0), shown(1)], ["0", "0.5"]);
    let infinite = yaml([", pad: 0", ", pad: -.inf", "", ""]).unwrap();
    assert_eq!(
        infinite.inputs[1].padding,
        Some(Padding::Fill(Filler::new(DataType::Fp32, Number::Float(f64::NEG_INFINITY)).unwrap()))
    );
}

#[test]
fn what_cannot_be_filled_up_is_refused() {
    for (fields, start, end) in [
        ([", pad: 0.5", "", "", ""], "inputs[0].pad: input 'ids': a whole number", "for INT64, not 0.5"),
        ([", pad: true", "", "", ""], "inputs[0].pad: input 'ids'", "for INT64, not true"),
        (["", "", ", pad: 0", ""], "inputs[2].pad: input 'mode' is BYTES", "leave it out"),
        (
            [", pad: 0", ", pad: 0, mask_of: ids", "", ""],
            "inputs[1].pad: input 'mask' is a mask",
            "leave one of the two out",
        ),
        (["", ", mask_of: ids", "", ""], "inputs[1].mask_of: input 'ids' is not filled up", "with `pad`"),
        (
            [", pad: 0", ", mask_of: nobody", "", ""],
            "inputs[1].mask_of: there is no input 'nobody'",
            "`inputs`",
        ),
        ([", pad: 0", "", ", mask_of: ids", ""], "inputs[2].mask_of: input 'mode' is BYTES", "is expected"),
        (
            [", pad: 0", ", mask_of: mask", "", ""],
            "inputs[1].mask_of: input 'mask' is not filled up",
            "with `pad`",
        ),
        (["", "", "", ", unpad: ids"], "outputs[0].unpad: input 'ids' is not filled up", "with `pad`"),
        ([", pad: 0", "", "", ", unpad: logits"], "outputs[0].unpad: there is no input 'logits'", "`inputs`"),
    ] {
        let text = yaml(fields).expect_err(start);
        assert!(text.contains(start) && text.ends_with(end), "{text}");
    }
    let word = yaml([", pad: zero", "", "", ""]).expect_err("a word");
    assert!(word.contains("a number such as 0"), "{word}");
}

#[test]
fn shapes_must_have_something_to_fill_up_and_the_same_of_it() {
    let config = |batch: &str, ids: &str, mask: &str| {
        read(
            "config.yaml",
            &format!(
                "{batch}inputs: [{{name: ids, dtype: INT64, shape: {ids}, pad: 0}}, \
                 {{name: mask, dtype: BOOL, shape: {mask}, mask_of: ids}}]\n"
            ),
        )
    };
    let batch = "max_batch_size: 4\n";
    for (ids, mask) in [("[-1]", "[-1]"), ("[-1, 8]", "[-1]"), ("[-1, 3, -1]", "[1, -1, -1]")] {
        config(batch, ids, mask).unwrap();
    }
    let none = config(batch, "[3]", "[-1]").expect_err("fixed");
    assert!(
        none.contains("inputs[0].pad: the shape of input 'ids' has no variable dimension (-1)"),
        "{none}"
    );
    let two = config(batch, "[-1]", "[-1, -1]").expect_err("two");
    assert!(
        two.contains("input 'mask' has 2 variable dimensions (-1) and that of input 'ids' has 1"),
        "{two}"
    );
    let large = config(batch, "[-1, 8]", "[16, -1]").expect_err("large");
    assert!(
        large.contains("inputs[1].mask_of: input 'mask' would have more elements than input 'ids'"),
        "{large}"
    );
    let single = config("", "[-1]", "[-1]").expect_err("no batch dimension");
    assert!(single.contains("inputs[0].pad: max_batch_size is 0"), "{single}");
}

#[test]
fn parameters_that_say_nothing_clear_are_refused() {
    for (key, value, says) in [
        ("PAD", "ids", "parameters[PAD]: `ids` is not a name and a value: write such as \"input_ids=0\""),
        ("PAD", "", "`` is not a name and a value"),
        ("PAD", "ids=none", "parameters[PAD]: `none` is not a number"),
        ("PAD", "ids=1.5", "parameters[PAD]: input 'ids': a whole number"),
        ("PAD", "nobody=0", "parameters[PAD]: there is no input 'nobody'"),
        ("PAD", "ids=0,ids=1", "parameters[PAD]: input 'ids' is listed twice"),
        (
            "MASK",
            "mask=ids",
            "parameters[MASK]: input 'ids' is not filled up: give it a value with `parameters[PAD]`",
        ),
        ("UNPAD", "ids=ids", "parameters[UNPAD]: there is no output 'ids'"),
    ] {
        let text = pbtxt(&[(key, value)]).expect_err(says);
        assert!(text.contains(says), "{text}");
    }
}
