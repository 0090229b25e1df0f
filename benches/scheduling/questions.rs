//! Prepared requests to a model, and what must come back for each.
//!
//! Requests of one row that differ take turns, so that an answer that went to the wrong caller is seen. How many rows run
//! together decides which kernels libtorch takes, and so the last bits of an answer: answers need only be close.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message as _;
use sconce_proto::inference::{ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor};

use super::models::{Contents, Model};
use crate::support::{
    Result,
    load::{self, Client},
};

const VARIANTS: usize = 4;
/// Of the largest element: what the order of additions may change.
const CLOSE: f32 = 1e-3;
/// Of the largest element: answers to different requests differ by more.
const APART: f32 = 1e-2;
/// Until a model that is loading and warming up has answered, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Question {
    body: Bytes,
    expected: Vec<f32>,
    length: usize,
}

/// What a model is asked.
#[derive(Clone, Debug)]
pub(crate) struct Questions {
    questions: Arc<[Question]>,
    next: Arc<AtomicUsize>,
}

impl Questions {
    /// Waits until the model answers, and asks each request alone to learn its answer.
    pub(crate) async fn learn(client: &mut Client, model: &Model) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        while let Err(error) = client.infer(body(model, 0)).await {
            if Instant::now() > end {
                return Err(format!("{} does not serve: {error}", model.name).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut questions: Vec<Question> = Vec::new();
        for variant in 0..VARIANTS {
            let body = body(model, variant);
            let answer = client.infer(body.clone()).await?;
            let expected = elements(model, &answer)?;
            if questions.iter().any(|other| distance(&other.expected, &expected) < APART) {
                return Err(format!("{} gives different requests the same answer", model.name).into());
            }
            questions.push(Question { body, expected, length: answer.len() });
        }
        Ok(Self { questions: questions.into(), next: Arc::default() })
    }

    /// The next request, by number, and its message.
    pub(crate) fn next(&self) -> (usize, Bytes) {
        let number = self.next.fetch_add(1, Ordering::Relaxed) % self.questions.len();
        (number, self.questions[number].body.clone())
    }

    /// Whether an answer is the one to the request of this number.
    pub(crate) fn check(&self, number: usize, answer: &[u8]) -> Result<()> {
        let question = &self.questions[number];
        // Raw contents are the last field, so they end the message.
        let start = answer.len().saturating_sub(question.expected.len() * size_of::<f32>());
        let got = floats(&answer[start..]);
        if answer.len() == question.length && distance(&question.expected, &got) <= CLOSE {
            return Ok(());
        }
        Err(format!("an answer is not the one to its request: {got:?}, not {:?}", question.expected).into())
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (elements, _) = bytes.as_chunks();
    elements.iter().map(|element| f32::from_le_bytes(*element)).collect()
}

/// How far apart the elements are, as a part of the largest expected one; endless when one is no number.
fn distance(expected: &[f32], got: &[f32]) -> f32 {
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, element| largest.max(element.abs()));
    let apart = expected.iter().zip(got).map(|(expected, got)| (expected - got).abs());
    let most =
        apart.fold(0.0, |most: f32, apart| if apart.is_nan() { f32::INFINITY } else { most.max(apart) });
    if expected.len() == got.len() { most / largest } else { f32::INFINITY }
}

/// The elements of an answer's one tensor.
fn elements(model: &Model, answer: &Bytes) -> Result<Vec<f32>> {
    let message = answer.get(load::PREFIX..).ok_or("an answer without a message")?;
    let response = ModelInferResponse::decode(message)?;
    match &response.raw_output_contents[..] {
        [tensor] if tensor.len() == model.output * size_of::<f32>() => Ok(floats(tensor)),
        _ => {
            Err(format!("{} answers other tensors than expected: {:?}", model.name, response.outputs).into())
        }
    }
}

/// A request of one row, always the same for the same variant.
fn body(model: &Model, variant: usize) -> Bytes {
    let count = model.shape.iter().product::<i64>().unsigned_abs();
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (variant as u64 + 1);
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 40
    };
    let contents: Vec<u8> = match model.contents {
        // Means differ too: noise alone is averaged away in a large picture.
        Contents::Fp32 => (0..count)
            .flat_map(|_| (random() as f32 / (1 << 24) as f32 + variant as f32 * 0.5 - 1.0).to_le_bytes())
            .collect(),
        Contents::Tokens(below) => {
            (0..count).flat_map(|_| (random() % below.unsigned_abs()).to_le_bytes()).collect()
        }
    };
    load::framed(&ModelInferRequest {
        model_name: model.name.to_owned(),
        inputs: vec![InferInputTensor {
            name: "x".to_owned(),
            datatype: model.contents.datatype().to_owned(),
            shape: [&[1], model.shape].concat(),
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![contents.into()],
        ..ModelInferRequest::default()
    })
}
