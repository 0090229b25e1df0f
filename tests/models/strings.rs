//! BYTES: strings of any bytes, in and out.

use tonic::Code;

use super::models;
use crate::harness::{Server, int64, output, refused, request, strings};

const ECHO: &str = "def forward(self, text: List[str]) -> List[str]:\n    return text\n";
const ODD: [&[u8]; 6] =
    [b"plain", b"", "gr\u{fc}n \u{1f7e2}".as_bytes(), b"\xff\xfe\x80", b"a\0b", b"\n\r\t\"'\\"];

#[tokio::test]
async fn strings_of_any_bytes_come_back_as_they_were() {
    let repo = models(&[("m", ECHO, "")]);
    let server = Server::start(repo.path());
    let long = vec![b'x'; 100_000];
    for elements in [&ODD[..], &[&long], &[]] {
        let shape = [i64::try_from(elements.len()).unwrap()];
        let sent = strings(elements);
        let response = server.infer(request("m", &[("text", "BYTES", &shape, sent.clone())])).await.unwrap();
        assert_eq!(output(&response, "OUTPUT__0"), ("BYTES", &shape[..], &sent[..]));
    }
}

#[tokio::test]
async fn a_list_of_strings_takes_the_shape_of_the_config() {
    let both = |more: &str, shape: &str| {
        format!(
            "{more}inputs: [{{name: text, dtype: BYTES, shape: {shape}}}]\n\
             outputs: [{{name: same, dtype: BYTES, shape: {shape}}}]\n"
        )
    };
    let repo = models(&[
        ("fixed", ECHO, &both("", "[2, 2]")),
        ("variable", ECHO, &both("", "[-1, 2]")),
        ("batched", ECHO, &both("max_batch_size: 8\n", "[2]")),
        ("batched_scalar", ECHO, &both("max_batch_size: 8\n", "[1]")),
        ("free", ECHO, ""),
    ]);
    let server = Server::start(repo.path());
    let sent = strings(&[b"a", b"\xff", b"", b"dd"]);
    for (model, shape) in
        [("fixed", [2, 2]), ("variable", [2, 2]), ("batched", [2, 2]), ("batched_scalar", [4, 1])]
    {
        let response =
            server.infer(request(model, &[("text", "BYTES", &shape, sent.clone())])).await.unwrap();
        assert_eq!(output(&response, "same"), ("BYTES", &shape[..], &sent[..]), "{model}");
    }
    let response = server.infer(request("free", &[("text", "BYTES", &[2, 2], sent.clone())])).await.unwrap();
    assert_eq!(output(&response, "OUTPUT__0"), ("BYTES", &[4][..], &sent[..]));
}

#[tokio::test]
async fn strings_stand_beside_tensors_on_both_sides() {
    let source = "def forward(self, text: List[str], suffix: str, shift):\n    \
                  lengths: List[int] = []\n    out: List[str] = []\n    \
                  for t in text:\n        out.append(t + suffix)\n        lengths.append(len(t))\n    \
                  return out, torch.tensor(lengths) + shift\n";
    let repo = models(&[("m", source, "")]);
    let server = Server::start(repo.path());
    let inputs = [
        ("shift", "INT64", &[1][..], int64(&[100])),
        ("suffix", "BYTES", &[1], strings(&[b"!\xff"])),
        ("text", "BYTES", &[3], strings(&[b"one", b"", b"\x80\x81"])),
    ];
    let response = server.infer(request("m", &inputs)).await.unwrap();
    let expected = strings(&[b"one!\xff", b"!\xff", b"\x80\x81!\xff"]);
    assert_eq!(output(&response, "OUTPUT__0"), ("BYTES", &[3][..], &expected[..]));
    assert_eq!(output(&response, "OUTPUT__1"), ("INT64", &[3][..], &int64(&[103, 100, 102])[..]));
}

#[tokio::test]
async fn strings_that_do_not_add_up_are_refused() {
    let repo = models(&[("m", ECHO, "")]);
    let server = Server::start(repo.path());
    let whole = strings(&[b"one", b"two"]);
    let cut = whole[..whole.len() - 1].to_vec();
    let answer = server.infer(request("m", &[("text", "BYTES", &[2], cut)])).await;
    refused(answer, Code::InvalidArgument, &["truncated BYTES", "'text'", "'m'"]);
    let answer = server.infer(request("m", &[("text", "BYTES", &[3], whole)])).await;
    refused(answer, Code::InvalidArgument, &["BYTES with 2 elements", "'text'"]);
    let answer = server.infer(request("m", &[super::floats("text", &[1], &[1.0])])).await;
    refused(answer, Code::InvalidArgument, &["'text'", "FP32", "BYTES"]);
}
