//! Values as people write them, against what a model says it wants.

use super::{
    super::{array::count, model::tests::model},
    *,
};

fn built(argument: &str, model: &Model) -> Array {
    build(argument, model).unwrap().1
}

fn refused(argument: &str, model: &Model) -> String {
    build(argument, model).unwrap_err().to_string()
}

fn floats(array: &Array) -> Vec<f32> {
    array.data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn numbers_become_the_models_type_and_get_its_batch_dimension() {
    let array = built("x=[1, 2.5]", &model("x", "FP32", &[-1, 2], 8));
    assert_eq!(
        (array.data_type, &array.shape[..], floats(&array)),
        (DataType::Fp32, &[1, 2][..], vec![1.0, 2.5])
    );
    assert_eq!(built("x=[[1, 2], [3, 4]]", &model("x", "FP32", &[-1, 2], 8)).shape, [2, 2]);
    assert_eq!(built("x=7", &model("x", "INT64", &[1], 0)).data[..], 7_i64.to_le_bytes());
    assert_eq!(
        refused("x=[1, 300]", &model("x", "UINT8", &[-1], 0)),
        "input \"x\": element [1] is 300, which UINT8 (0 to 255) cannot hold"
    );
}

#[test]
fn an_explicit_type_wins() {
    let numbers = model("x", "FP32", &[1], 0);
    assert_eq!(built("x:INT64=[1]", &numbers).data_type, DataType::Int64);
    assert_eq!(built("x:uint8=[1]", &numbers).data_type, DataType::Uint8);
    assert_eq!(built("x:BYTES=1", &numbers).data[..], [1, 0, 0, 0, b'1']);
    let colon = model("x:INT64", "FP32", &[1], 0);
    assert_eq!(built("x:INT64=[1]", &colon).data_type, DataType::Fp32);
    assert!(refused("x:INT65=[1]", &numbers).contains("no input \"x:INT65\""));
}

#[test]
fn texts_need_no_quotes() {
    let texts = model("text", "BYTES", &[-1], 0);
    for (value, shape, data) in [
        ("hi", 1, &b"\x02\0\0\0hi"[..]),
        ("\"hi\"", 1, b"\x02\0\0\0hi"),
        ("[\"hi\", \"\"]", 2, b"\x02\0\0\0hi\0\0\0\0"),
        ("12", 1, b"\x02\0\0\x0012"),
        ("true", 1, b"\x04\0\0\0true"),
        ("{}", 1, b"\x02\0\0\0{}"),
        ("[x] =", 1, b"\x05\0\0\0[x] ="),
        ("\"@a\"", 1, b"\x02\0\0\0@a"),
        ("", 1, b"\0\0\0\0"),
    ] {
        let array = built(&format!("text={value}"), &texts);
        assert_eq!(
            (array.data_type, &array.shape[..], &array.data[..]),
            (DataType::Bytes, &[shape][..], data)
        );
    }
    assert_eq!(built("text=hi", &model("text", "BYTES", &[-1, 1], 4)).shape, [1, 1]);
    assert_eq!(built("text=hi", &model("text", "BYTES", &[], 0)).shape, Vec::<i64>::new());
    assert_eq!(built("text=hi", &model("text", "BYTES", &[-1, 16], 4)).shape, [1]);
}

#[test]
fn an_open_model_gets_what_was_written() {
    let open = Model::default();
    for (argument, data_type, shape) in [
        ("values=[1, 2]", DataType::Fp32, &[2][..]),
        ("values=3", DataType::Fp32, &[]),
        ("flags=[true]", DataType::Bool, &[1]),
        ("text=hi", DataType::Bytes, &[1]),
        ("text=[\"a\", \"b\"]", DataType::Bytes, &[2]),
        ("ids:INT32=[[1]]", DataType::Int32, &[1, 1]),
    ] {
        let array = built(argument, &open);
        assert_eq!((array.data_type, &array.shape[..]), (data_type, shape), "{argument}");
    }
    assert!(refused("values=[1, 2", &open).contains("not JSON"));
}

#[test]
fn mistakes_are_one_sentence() {
    let numbers = model("x", "FP32", &[4], 0);
    for (argument, why) in [
        ("x", "--input \"x\" is not NAME=VALUE"),
        ("=3", "--input \"=3\" is not NAME=VALUE"),
        ("y=3", "model \"m\" has no input \"y\"; its inputs are \"x\""),
        ("x=1,2", "input \"x\": FP32 is wanted, as 3 or [1, 2, 3] or @FILE: the value is not JSON"),
        ("x=[[1, 2], [3]]", "input \"x\": its lists are ragged"),
        ("x=@/no/such.npy", "input \"x\": cannot read /no/such.npy"),
        ("x=\"a\"", "input \"x\": the value is a string, but FP32 is wanted"),
        ("\u{1b}[31m=1", "no input \"\\u{1b}[31m\""),
    ] {
        let refused = refused(argument, &numbers);
        assert!(refused.contains(why), "{argument}: {refused}");
        assert!(!refused.contains(['\n', '\u{1b}']), "{refused:?}");
    }
}

#[test]
fn files_are_read_by_their_extension() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        format!("x=@{}", path.display())
    };
    let numbers = model("x", "FP32", &[-1, 2], 8);
    let texts = model("x", "BYTES", &[-1], 0);
    let open = Model::default();

    let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }\n";
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend_from_slice(&u16::try_from(header.len()).unwrap().to_le_bytes());
    npy.extend_from_slice(header.as_bytes());
    npy.extend([1.0_f64, 2.0].into_iter().flat_map(f64::to_le_bytes));
    let npy = file("a.npy", &npy);
    let array = built(&npy, &numbers);
    assert_eq!(
        (array.data_type, &array.shape[..], floats(&array)),
        (DataType::Fp32, &[1, 2][..], vec![1.0, 2.0])
    );
    assert_eq!(built(&npy, &open).data_type, DataType::Fp64);
    assert!(refused(&npy, &texts).contains("FP64, but BYTES is wanted"));

    assert_eq!(built(&file("a.json", b"[[1, 2], [3, 4]]"), &numbers).shape, [2, 2]);
    assert!(refused(&file("b.json", b"[1, "), &numbers).contains("not JSON"));

    let txt = file("a.txt", b"one\r\n\nthree\n");
    let array = built(&txt, &texts);
    assert_eq!((&array.shape[..], &array.data[..]), (&[3][..], &b"\x03\0\0\0one\0\0\0\0\x05\0\0\0three"[..]));
    assert_eq!(count(&built(&file("empty.txt", b""), &texts).shape), Some(0));
    assert!(refused(&txt, &numbers).contains("holds BYTES, but FP32 is wanted"));

    let png = file("a.PNG", b"no picture");
    assert!(refused(&png, &model("x", "FP32", &[3, 8, 8], 0)).contains("not a picture"));
    assert_eq!(built(&png, &texts).data[4..], *b"no picture", "a model of BYTES decodes for itself");
    assert!(refused(&file("a.bin", b""), &numbers).contains("only .npy"));
}
