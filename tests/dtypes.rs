//! Every datatype of the protocol through a real model and back, bit by bit.
#![cfg(feature = "torch")]

use sconce_proto::inference::InferTensorContents;
use tonic::Code;

use crate::harness::{Repo, Server, fp32, output, refused, request, strings, typed};

const NAMES: [&str; 13] = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32",
    "FP64",
];

/// One model for all tensors, one for strings, and for each datatype one whose config says so.
fn repository() -> Repo {
    let repo = Repo::new();
    repo.script("any/1/model.pt", "def forward(self, x):\n    return x\n", &[]);
    repo.script("text/1/model.pt", "def forward(self, x: List[str]) -> List[str]:\n    return x\n", &[]);
    for name in NAMES {
        repo.script(&format!("{name}/1/model.pt"), "def forward(self, x):\n    return x\n", &[]);
        let config = format!(
            "max_batch_size: 64\ninputs: [{{name: x, dtype: {name}, shape: [1]}}]\n\
             outputs: [{{name: OUTPUT__0, dtype: {name}, shape: [1]}}]\n"
        );
        repo.file(&format!("{name}/config.yaml"), config);
    }
    repo
}

fn flat<const N: usize>(elements: impl IntoIterator<Item = [u8; N]>) -> Vec<u8> {
    elements.into_iter().flatten().collect()
}

/// Bit patterns at the edges of each datatype.
fn patterns(name: &str) -> Vec<u8> {
    match name {
        "BOOL" => vec![0, 1, 1, 0],
        "INT8" | "UINT8" => vec![0, 1, 0x7f, 0x80, 0xff],
        "INT16" | "UINT16" => flat([0u16, 1, 0x7fff, 0x8000, 0xffff, 0x1234].map(u16::to_le_bytes)),
        "INT32" | "UINT32" => flat([0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX].map(u32::to_le_bytes)),
        "INT64" | "UINT64" => flat([0u64, 1, i64::MAX as u64, 1 << 63, u64::MAX].map(u64::to_le_bytes)),
        // Zeros, one, the smallest subnormal, the largest, infinities, a quiet and a signalling NaN with a payload.
        "FP16" => {
            flat([0u16, 0x8000, 0x3c00, 0x0001, 0x7bff, 0x7c00, 0xfc00, 0x7e2a, 0xfd55].map(u16::to_le_bytes))
        }
        "BF16" => {
            flat([0u16, 0x8000, 0x3f80, 0x0001, 0x7f7f, 0x7f80, 0xff80, 0x7fea, 0xffa5].map(u16::to_le_bytes))
        }
        "FP32" => flat(
            [0u32, 1 << 31, 0x3f80_0000, 1, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0x7fc1_2345, 0xff81_2345]
                .map(u32::to_le_bytes),
        ),
        "FP64" => flat(
            [
                0u64,
                1 << 63,
                1,
                0x7fef_ffff_ffff_ffff,
                0x7ff0 << 48,
                0xfff0 << 48,
                (0x7ff8 << 48) + 42,
                (0xfff4 << 48) + 42,
            ]
            .map(u64::to_le_bytes),
        ),
        other => panic!("no patterns for {other}"),
    }
}

fn size(name: &str) -> usize {
    match name {
        "BOOL" => 1,
        _ => {
            name.trim_start_matches(|letter: char| letter.is_ascii_alphabetic())
                .parse::<usize>()
                .unwrap_or(16)
                / 8
        }
    }
}

#[tokio::test]
async fn every_bit_pattern_of_every_datatype_comes_back_as_it_was() {
    let repo = repository();
    let server = Server::start(repo.path());
    for name in NAMES {
        let sent = patterns(name);
        let count = i64::try_from(sent.len() / size(name)).unwrap();
        for (model, shape) in [("any", vec![count]), (name, vec![count, 1])] {
            let response = server.infer(request(model, &[("x", name, &shape, sent.clone())])).await.unwrap();
            assert_eq!(output(&response, "OUTPUT__0"), (name, &shape[..], &sent[..]), "{model} {name}");
        }
    }
    let sent = strings(&[b"", b"\0", b"\xff\xfe", &[0x80; 300]]);
    let response = server.infer(request("text", &[("x", "BYTES", &[4], sent.clone())])).await.unwrap();
    assert_eq!(output(&response, "OUTPUT__0"), ("BYTES", &[4][..], &sent[..]));
}

#[tokio::test]
async fn typed_contents_are_what_raw_contents_would_be() {
    let repo = repository();
    let server = Server::start(repo.path());
    let empty = InferTensorContents::default;
    let ints = |values: &[i32]| InferTensorContents { int_contents: values.to_vec(), ..empty() };
    let uints = |values: &[u32]| InferTensorContents { uint_contents: values.to_vec(), ..empty() };
    let floats = [1.5f32, f32::MIN, f32::INFINITY, -0.0];
    for (name, contents, raw) in [
        ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..empty() }, vec![1, 0]),
        ("INT8", ints(&[-128, 127, -1]), vec![0x80, 0x7f, 0xff]),
        ("INT16", ints(&[-32768, 32767]), vec![0x00, 0x80, 0xff, 0x7f]),
        ("INT32", ints(&[i32::MIN, i32::MAX]), flat([i32::MIN, i32::MAX].map(i32::to_le_bytes))),
        (
            "INT64",
            InferTensorContents { int64_contents: vec![i64::MIN, i64::MAX], ..empty() },
            flat([i64::MIN, i64::MAX].map(i64::to_le_bytes)),
        ),
        ("UINT8", uints(&[0, 255]), vec![0, 255]),
        ("UINT16", uints(&[0, 65535]), vec![0, 0, 0xff, 0xff]),
        ("UINT32", uints(&[0, u32::MAX]), flat([0, u32::MAX].map(u32::to_le_bytes))),
        (
            "UINT64",
            InferTensorContents { uint64_contents: vec![0, u64::MAX], ..empty() },
            flat([0, u64::MAX].map(u64::to_le_bytes)),
        ),
        ("FP32", InferTensorContents { fp32_contents: floats.to_vec(), ..empty() }, fp32(&floats)),
        (
            "FP64",
            InferTensorContents { fp64_contents: vec![f64::MIN_POSITIVE, f64::MAX], ..empty() },
            flat([f64::MIN_POSITIVE, f64::MAX].map(f64::to_le_bytes)),
        ),
    ] {
        let shape = [i64::try_from(raw.len() / size(name)).unwrap()];
        let asked = typed(request("any", &[("x", name, &shape, Vec::new())]), contents);
        let response = server.infer(asked).await.unwrap();
        assert_eq!(output(&response, "OUTPUT__0"), (name, &shape[..], &raw[..]), "{name}");
    }
    let contents =
        InferTensorContents { bytes_contents: vec![b"\xff"[..].into(), b""[..].into()], ..empty() };
    let asked = typed(request("text", &[("x", "BYTES", &[2], Vec::new())]), contents);
    let response = server.infer(asked).await.unwrap();
    assert_eq!(output(&response, "OUTPUT__0").2, strings(&[b"\xff", b""]));
}

#[tokio::test]
async fn a_typed_element_that_does_not_fit_is_refused_not_cut() {
    let repo = repository();
    let server = Server::start(repo.path());
    let empty = InferTensorContents::default;
    let ints = |value: i32| InferTensorContents { int_contents: vec![0, value], ..empty() };
    let uints = |value: u32| InferTensorContents { uint_contents: vec![0, value], ..empty() };
    for (name, contents, part) in [
        ("INT8", ints(128), "element 1 of input 'x' is 128, which does not fit INT8 (-128 to 127)"),
        ("INT8", ints(-129), "is -129, which does not fit INT8"),
        ("INT16", ints(32768), "is 32768, which does not fit INT16"),
        ("UINT8", uints(256), "is 256, which does not fit UINT8 (0 to 255)"),
        ("UINT16", uints(65536), "is 65536, which does not fit UINT16"),
        ("FP16", InferTensorContents { fp32_contents: vec![1.0; 2], ..empty() }, "raw_input_contents only"),
        ("BF16", InferTensorContents { fp32_contents: vec![1.0; 2], ..empty() }, "raw_input_contents only"),
        ("INT64", ints(1), "go into int64_contents, not into int_contents"),
    ] {
        let asked = typed(request("any", &[("x", name, &[2], Vec::new())]), contents);
        refused(server.infer(asked).await, Code::InvalidArgument, &["'x'", part]);
    }
}

#[tokio::test]
async fn another_datatype_than_the_config_says_is_refused_by_both_names() {
    let repo = repository();
    let server = Server::start(repo.path());
    for (at, name) in NAMES.into_iter().enumerate() {
        let other = NAMES[(at + 1) % NAMES.len()];
        let answer = server.infer(request(name, &[("x", other, &[1, 1], vec![0; size(other)])])).await;
        refused(
            answer,
            Code::InvalidArgument,
            &["'x' data-type is", &format!("'{other}'"), &format!("'{name}'")],
        );
    }
    for name in ["", "fp32", "FLOAT", "COMPLEX64", "FP8"] {
        let answer = server.infer(request("any", &[("x", name, &[1], vec![0; 4])])).await;
        refused(answer, Code::InvalidArgument, &["'x'", "which is none of BOOL"]);
    }
    for (name, bytes) in [("FP32", 3), ("FP32", 8), ("BOOL", 0), ("INT64", 4)] {
        let answer = server.infer(request("any", &[("x", name, &[1], vec![0; bytes])])).await;
        refused(answer, Code::InvalidArgument, &["unexpected byte size", name, "'x'"]);
    }
}
