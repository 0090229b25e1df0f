//! Every way in which a request can be wrong, and that what is right arrives as it was sent.

use super::*;
use crate::{
    fixtures::{
        assert_invalid, bind, config, floats, forward, input, named, optional, reshaped as reshape_to, texts,
        zeros,
    },
    value::push_string,
};
use ArgumentKind::{Bool, Dict, Float, Int, Str, Strings, Tensor as OneTensor, Tensors};
use DataType::{Bytes, Fp32, Fp64, Int8, Int16, Int32, Int64, Uint8, Uint64};

/// `forward(x, k=...)`, configured as x: FP32 [2, -1] and, optional, k: INT64 [1].
fn plain(max_batch_size: u32) -> Binding {
    let inputs = vec![named("x", Fp32, &[2, -1]), optional(named("k", Int64, &[1]))];
    bind(&config(max_batch_size, inputs, Vec::new()), &forward(&[("x", OneTensor), ("k?", Int)]))
}

fn open(arguments: &[(&str, ArgumentKind)]) -> Binding {
    bind(&config(0, Vec::new(), Vec::new()), &forward(arguments))
}

/// `forward` with one scalar, which every row of a batch gives.
fn scalar_of(kind: ArgumentKind, data_type: DataType, max_batch_size: u32) -> Binding {
    let inputs = vec![named("s", data_type, &[1])];
    bind(&config(max_batch_size, inputs, Vec::new()), &forward(&[("s", kind)]))
}

fn raw(data_type: DataType, shape: &[i64], data: &[u8]) -> Tensor {
    Tensor::host(data_type, shape.to_vec(), data.to_vec().into())
}

fn only(binding: &Binding, tensor: Tensor) -> Result<Arg> {
    let name = binding.inputs[0].name.to_string();
    call(binding, vec![Input { name, tensor }]).map(|mut checked| checked.call.arguments.swap_remove(0))
}

#[track_caller]
fn shape_after(binding: &Binding, tensor: Tensor) -> Vec<i64> {
    match only(binding, tensor).unwrap() {
        Arg::Tensor(tensor) => tensor.shape,
        other => panic!("a tensor is expected, not {other:?}"),
    }
}

#[test]
fn a_right_request_is_taken() {
    let sent = floats(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let checked = call(&plain(0), vec![input("x", sent.clone())]).unwrap();
    assert_eq!(checked.batch, None);
    match &checked.call.arguments[..] {
        [Arg::Tensor(x), Arg::Default] => {
            assert_eq!((x.bytes(), &x.shape), (sent.bytes(), &sent.shape));
            assert_eq!(x.bytes().as_ptr(), sent.bytes().as_ptr(), "not copied");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(call(&plain(4), vec![input("x", zeros(Fp32, &[3, 2, 5]))]).unwrap().batch, Some(3));
}

#[test]
fn a_wrong_dtype() {
    let wrong = zeros(Int32, &[2, 3]);
    assert_invalid(
        call(&plain(0), vec![input("x", wrong)]),
        &["inference input 'x' data-type is 'INT32', but model 'm' expects 'FP32'"],
    );
    assert_invalid(
        only(&open(&[("x", OneTensor)]), texts(&[1], &["a"])),
        &["'x'", "BYTES", "but model 'm' expects"],
    );
    assert_invalid(only(&open(&[("s", Strings)]), zeros(Fp32, &[1])), &["'s'", "'FP32'", "expects BYTES"]);
    assert_invalid(only(&open(&[("i", Int)]), zeros(Fp32, &[1])), &["'i'", "'FP32'", "an integer dtype"]);
}

#[test]
fn a_wrong_shape() {
    let expected = "unexpected shape for input 'x' for model 'm'. Expected [2,-1], got";
    for (shape, got) in [
        (&[6][..], "[6]"),
        (&[], "[]"),
        (&[2, 3, 1], "[2,3,1]"),
        (&[3, 2], "[3,2]"),
        (&[2, -2], "[2,-2]"),
        (&[-1, 3], "[-1,3]"),
        (&[2, i64::MIN], "[2,-9223372036854775808]"),
    ] {
        let tensor = raw(Fp32, shape, &[0; 24]);
        assert_invalid(call(&plain(0), vec![input("x", tensor)]), &[&format!("{expected} {got}")]);
    }
    // It looks like the wildcard, but nothing has -1 elements.
    assert_invalid(
        call(&plain(0), vec![input("x", raw(Fp32, &[2, -1], &[0; 8]))]),
        &["'x'", "[2,-1]", "not valid"],
    );
    assert_invalid(
        call(&plain(4), vec![input("x", zeros(Fp32, &[2, 3]))]),
        &["Expected [-1,2,-1], got [2,3]"],
    );
}

#[test]
fn a_wrong_size() {
    let wrong =
        |shape: &[i64], bytes: usize| call(&plain(0), vec![input("x", raw(Fp32, shape, &vec![0; bytes]))]);
    assert_invalid(wrong(&[2, 3], 23), &["'x'", "byte size 23", "24 bytes (6 elements)", "FP32 [2,3]"]);
    assert_invalid(wrong(&[2, 3], 25), &["'x'", "byte size 25", "24 bytes (6 elements)"]);
    assert_invalid(wrong(&[2, 3], 0), &["byte size 0", "24 bytes (6 elements)"]);
    assert_invalid(wrong(&[2, i64::MAX], 8), &["'x'", "[2,9223372036854775807]", "63 bits"]);
    assert_invalid(wrong(&[2, i64::MAX / 2], 8), &["'x'", "larger than memory"]);
    let free = open(&[("x", OneTensor)]);
    assert_invalid(only(&free, raw(Fp32, &[-1], &[])), &["'x'", "[-1]", "not valid"]);
    assert_invalid(only(&free, raw(Fp32, &[0, -1], &[])), &["'x'", "not valid"]);
    assert_invalid(only(&free, raw(Fp32, &[1 << 40, 1 << 40], &[])), &["63 bits"]);
}

#[test]
fn truncated_strings() {
    let binding = open(&[("s", Strings)]);
    let whole = texts(&[2], &["ab", "cde"]);
    assert!(matches!(only(&binding, whole.clone()).unwrap(), Arg::Strings(data) if data == whole.bytes()));
    for cut in 1..whole.bytes().len() {
        let tensor = raw(Bytes, &[2], &whole.bytes()[..cut]);
        let why = if cut == 6 { "BYTES with 1 elements" } else { "truncated BYTES" };
        assert_invalid(only(&binding, tensor), &["'s'", why]);
    }
    assert_invalid(only(&binding, texts(&[3], &["a"])), &["1 elements", "shape has 3"]);
    assert_invalid(only(&binding, raw(Bytes, &[1], &[0xff, 0xff, 0xff, 0xff, 1])), &["truncated BYTES"]);
}

#[test]
fn the_batch() {
    let binding = bind(
        &config(4, vec![named("x", Fp32, &[1]), named("y", Fp32, &[1])], Vec::new()),
        &forward(&[("x", OneTensor), ("y", OneTensor)]),
    );
    let sent = |x: i64, y: i64| {
        call(&binding, vec![input("x", zeros(Fp32, &[x, 1])), input("y", zeros(Fp32, &[y, 1]))])
            .map(|c| c.batch)
    };
    for size in 1..=4 {
        assert_eq!(sent(size, size), Ok(Some(size)));
    }
    assert_invalid(sent(0, 0), &["batch-size must be <= 4 for 'm' and at least 1", "'x'", "is 0"]);
    assert_invalid(sent(5, 5), &["batch-size must be <= 4 for 'm'", "'x'", "is 5"]);
    assert_invalid(sent(1, 5), &["batch-size must be <= 4 for 'm'", "'y'", "is 5"]);
    assert_invalid(sent(3, 2), &["'y' batch size does not match other inputs for 'm'", "is 2", "is 3"]);
    assert_invalid(sent(2, 3), &["'y' batch size does not match", "is 3", "is 2"]);
    let negative = raw(Fp32, &[-1, 1], &[]);
    assert_invalid(call(&binding, vec![input("x", negative)]), &["batch-size must be", "is -1"]);
}

#[test]
fn missing_extra_and_repeated() {
    let x = || input("x", zeros(Fp32, &[2, 3]));
    let k = || input("k", zeros(Int64, &[1]));
    assert_invalid(
        call(&plain(0), vec![k()]),
        &[
            "expected 2 inputs but got 1 inputs for model 'm'",
            "Got input(s) ['k']",
            "missing required input(s) ['x']",
        ],
    );
    assert_invalid(call(&plain(0), vec![]), &["got 0 inputs", "Got input(s) []", "['x']"]);
    let extra = input("z", zeros(Fp32, &[1]));
    assert_invalid(
        call(&plain(0), vec![x(), extra]),
        &["unexpected inference input 'z' for model 'm'", "['x','k']"],
    );
    for inputs in [vec![x(), x()], vec![x(), k(), k()], vec![k(), x(), x()]] {
        assert_invalid(call(&plain(0), inputs), &["is given more than once for model 'm'"]);
    }
}

#[test]
fn names_without_a_slot_may_not_be_repeated_either() {
    let one = || zeros(Fp32, &[1]);
    let binding = open(&[("x", OneTensor), ("xs", Tensors), ("d", Dict)]);
    for name in ["d.k", "xs__0", "xs__1"] {
        let inputs = vec![input("x", one()), input(name, one()), input(name, one())];
        assert_invalid(call(&binding, inputs), &[&format!("'{name}' is given more than once")]);
    }
    assert_invalid(
        call(&open(&[("d", Dict)]), vec![input("k", one()), input("k", one())]),
        &["'k' is given more"],
    );
    // Two names for one element.
    for other in ["xs", "xs__00"] {
        let inputs = vec![input("x", one()), input("xs__0", one()), input(other, one())];
        assert_invalid(call(&binding, inputs), &["'xs__0' is given more than once"]);
    }
}

#[test]
fn lists_have_no_gaps_and_any_order() {
    let one = |value| floats(&[1], &[value]);
    let binding = open(&[("xs", Tensors)]);
    let inputs = [2, 0, 1].map(|at| input(&format!("xs__{at}"), one(at as f32))).to_vec();
    match &call(&binding, inputs).unwrap().call.arguments[..] {
        [Arg::Tensors(tensors)] => {
            let values: Vec<_> = tensors.iter().map(Tensor::bytes).collect();
            assert_eq!(values, [0.0f32, 1.0, 2.0].map(f32::to_le_bytes));
        }
        other => panic!("{other:?}"),
    }
    let gap = vec![input("xs__2", one(0.0)), input("xs__0", one(0.0))];
    assert_invalid(call(&binding, gap), &["missing list element 'xs__1'", "'m'", "'xs__2' was given"]);
    let far = vec![input("xs__18446744073709551615", one(0.0))];
    assert_invalid(call(&binding, far), &["missing list element 'xs__0'"]);
}

#[test]
fn collections_without_elements_are_empty_unless_they_have_a_default() {
    let nothing =
        call(&open(&[("xs", Tensors), ("d", Dict), ("ys?", Tensors), ("e?", Dict)]), vec![]).unwrap();
    match &nothing.call.arguments[..] {
        [Arg::Tensors(xs), Arg::Dict(d), Arg::Default, Arg::Default] => {
            assert!(xs.is_empty() && d.is_empty())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_order_of_the_request_does_not_matter() {
    let arguments = [("x", OneTensor), ("xs", Tensors), ("d", Dict), ("i", Int), ("s", Str)];
    let inputs = [
        input("x", floats(&[1], &[1.0])),
        input("xs__0", floats(&[1], &[2.0])),
        input("xs__1", floats(&[1], &[3.0])),
        input("d.k", floats(&[1], &[4.0])),
        input("i", raw(Int8, &[1], &[5])),
        input("s", texts(&[1], &["six"])),
    ];
    let binding = open(&arguments);
    let as_sent = format!("{:?}", call(&binding, inputs.to_vec()).unwrap());
    for turn in 0..inputs.len() {
        let mut turned = inputs.to_vec();
        turned.rotate_left(turn);
        assert_eq!(format!("{:?}", call(&binding, turned.clone()).unwrap()), as_sent);
        turned.reverse();
        assert_eq!(format!("{:?}", call(&binding, turned).unwrap()), as_sent);
    }
}

#[test]
fn reshape_is_what_the_model_sees() {
    let binding = |max_batch_size, dims: &[i64], reshape: &[i64]| {
        let inputs = vec![reshape_to(named("x", Fp32, dims), reshape)];
        bind(&config(max_batch_size, inputs, Vec::new()), &forward(&[("x", OneTensor)]))
    };
    assert_eq!(shape_after(&binding(0, &[4, 3], &[2, 6]), zeros(Fp32, &[4, 3])), [2, 6]);
    assert_eq!(shape_after(&binding(8, &[4, 3], &[12]), zeros(Fp32, &[5, 4, 3])), [5, 12]);
    assert_eq!(shape_after(&binding(8, &[1], &[]), zeros(Fp32, &[5, 1])), [5]);
    assert_eq!(shape_after(&binding(0, &[1], &[]), zeros(Fp32, &[1])), [0i64; 0]);
    assert_eq!(
        shape_after(&binding(0, &[-1, 4, -1], &[-1, 2, 2, -1]), zeros(Fp32, &[3, 4, 7])),
        [3, 2, 2, 7]
    );
    assert_eq!(shape_after(&binding(0, &[-1, 4], &[-1, 2, 2]), zeros(Fp32, &[0, 4])), [0, 2, 2]);
    // It is the shape before that is checked.
    let sent = only(&binding(0, &[4, 3], &[2, 6]), zeros(Fp32, &[2, 6]));
    assert_invalid(sent, &["Expected [4,3], got [2,6]"]);
}

#[test]
fn tensors_of_size_zero() {
    assert_eq!(shape_after(&open(&[("x", OneTensor)]), zeros(Fp32, &[3, 0, 1 << 40])), [3, 0, 1 << 40]);
    assert_eq!(shape_after(&plain(4), zeros(Fp32, &[4, 2, 0])), [4, 2, 0]);
    assert_invalid(only(&plain(0), raw(Fp32, &[2, 0], &[0])), &["byte size 1", "0 bytes"]);
    let strings = only(&open(&[("s", Strings)]), raw(Bytes, &[0], &[])).unwrap();
    assert!(matches!(strings, Arg::Strings(data) if data.is_empty()));
    assert_invalid(
        only(&open(&[("i", Int)]), zeros(Int64, &[0])),
        &["'i'", "one element is expected", "got [0]"],
    );
}

#[test]
fn integers_keep_their_sign() {
    for (data_type, bytes, value) in [
        (Int8, &[0xff][..], -1),
        (Int8, &[0x80], -128),
        (Int8, &[0x7f], 127),
        (Uint8, &[0xff], 255),
        (Int16, &[0xfe, 0xff], -2),
        (DataType::Uint16, &[0xfe, 0xff], 65534),
        (Int32, &[0, 0, 0, 0x80], i64::from(i32::MIN)),
        (DataType::Uint32, &[0, 0, 0, 0x80], 1 << 31),
        (Int64, &i64::MIN.to_le_bytes(), i64::MIN),
        (Uint64, &i64::MAX.to_le_bytes(), i64::MAX),
    ] {
        let got = only(&scalar_of(Int, data_type, 0), raw(data_type, &[1], bytes)).unwrap();
        assert!(matches!(got, Arg::Int(got) if got == value), "{data_type} {bytes:?}: {got:?}");
    }
    let large = only(&scalar_of(Int, Uint64, 0), raw(Uint64, &[1], &[0xff; 8]));
    assert_invalid(large, &["int argument", "at most 9223372036854775807"]);
}

#[test]
fn other_scalars() {
    let float = |data_type, bytes: &[u8]| only(&scalar_of(Float, data_type, 0), raw(data_type, &[1], bytes));
    assert!(matches!(float(Fp32, &0.1f32.to_le_bytes()), Ok(Arg::Float(x)) if x == f64::from(0.1f32)));
    assert!(matches!(float(Fp64, &0.1f64.to_le_bytes()), Ok(Arg::Float(x)) if x == 0.1));
    assert!(matches!(float(Fp64, &f64::NAN.to_le_bytes()), Ok(Arg::Float(x)) if x.is_nan()));
    for (byte, value) in [(0, false), (1, true), (2, true)] {
        let got = only(&scalar_of(Bool, DataType::Bool, 0), raw(DataType::Bool, &[1], &[byte])).unwrap();
        assert!(matches!(got, Arg::Bool(got) if got == value));
    }
    for text in ["", "Grüße", "a\0b"] {
        let got = only(&scalar_of(Str, Bytes, 0), texts(&[1], &[text])).unwrap();
        assert!(matches!(got, Arg::Str(got) if got == text.as_bytes()));
    }
    // Without a config any shape of one element will do.
    assert!(matches!(only(&open(&[("i", Int)]), raw(Int8, &[], &[7])), Ok(Arg::Int(7))));
    assert!(matches!(only(&open(&[("i", Int)]), raw(Int8, &[1, 1], &[7])), Ok(Arg::Int(7))));
}

#[test]
fn a_scalar_is_one_value() {
    for kind_and_tensor in [
        (Int, raw(Int8, &[2], &[7, 7])),
        (Bool, raw(DataType::Bool, &[2], &[0, 1])),
        (Float, floats(&[2], &[1.0, 2.0])),
        (Str, texts(&[2], &["a", "b"])),
    ] {
        let (kind, tensor) = kind_and_tensor;
        assert_invalid(
            only(&open(&[("s", kind)]), tensor),
            &["'s'", "'m'", "one element is expected", "got [2]"],
        );
    }
}

#[test]
fn a_scalar_is_the_same_in_all_rows_of_a_batch() {
    let binding = scalar_of(Int, Int8, 4);
    assert!(matches!(only(&binding, raw(Int8, &[3, 1], &[7, 7, 7])), Ok(Arg::Int(7))));
    assert_invalid(
        only(&binding, raw(Int8, &[3, 1], &[7, 7, 8])),
        &["'s'", "per row", "the same", "different"],
    );
    let text = scalar_of(Str, Bytes, 4);
    assert!(matches!(only(&text, texts(&[2, 1], &["a", "a"])), Ok(Arg::Str(got)) if got == "a"));
    assert_invalid(only(&text, texts(&[2, 1], &["a", "ab"])), &["the same", "different"]);
    let wide = bind(&config(4, vec![named("s", Int8, &[2])], Vec::new()), &forward(&[("s", Int)]));
    assert_invalid(only(&wide, raw(Int8, &[1, 2], &[7, 7])), &["per row", "got [1,2]"]);
}

#[test]
fn hostile_text_is_escaped_and_cut() {
    let long = "x".repeat(10_000);
    let hostile =
        ["a\r\nevil: header", "a\0b\x1b[31m", "\u{202e}gnp.exe", "\u{200f}\u{2066}x", "\u{2028}x", &long];
    for name in hostile {
        let inputs = vec![input(name, zeros(Fp32, &[1]))];
        let Err(Error::InvalidInput(message)) = call(&plain(0), inputs) else { panic!("{name:?} was taken") };
        assert!(message.len() < 1000, "{} bytes", message.len());
        let bad = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{202e}' | '\u{200f}' | '\u{2066}');
        assert!(!message.contains(bad), "{message:?}");
    }
    // Names that are taken are quoted too, where the fault is elsewhere.
    let binding = open(&[("d", Dict)]);
    let key = format!("d\n{long}");
    assert_invalid(call(&binding, vec![input(&key, raw(Fp32, &[1], &[]))]), &["d\\nxxx", "byte size 0"]);
    assert_invalid(call(&binding, vec![input(&key, texts(&[1], &["a"]))]), &["d\\nxxx", "BYTES"]);
    let twice = vec![input(&key, zeros(Fp32, &[1])), input(&key, zeros(Fp32, &[1]))];
    assert_invalid(call(&binding, twice), &["d\\nxxx", "more than once"]);
    assert_eq!(quote(&"\u{10ffff}".repeat(500)).len(), 128 * 10 + 3);
}

#[test]
fn long_shapes_are_cut() {
    let shape = vec![1; 100_000];
    for binding in [plain(0), plain(4), open(&[("x", OneTensor)]), open(&[("x", Int)])] {
        let tensor = raw(Int64, &shape, &[0; 7]);
        assert_invalid(
            call(&binding, vec![input("x", Tensor { data_type: Fp32, ..tensor.clone() })]),
            &["'x'"],
        );
        assert_invalid(call(&binding, vec![input("x", tensor)]), &["'x'"]);
    }
}

#[path = "check_properties.rs"]
mod properties;
