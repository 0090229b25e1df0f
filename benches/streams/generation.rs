//! Many answers to each of many requests: all at once, beside one request after the other.

use std::{path::Path, time::Instant};

use sconce_proto::inference::{
    InferParameter, ModelInferRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
    infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::support::{Result, process::Server, report, report::Round};

/// Pairs of rounds.
const PAIRS: usize = 9;
/// Requests of a round, and how many answers each may have.
const REQUESTS: u16 = 32;
const STEPS: i64 = 200;

type Client = GrpcInferenceServiceClient<Channel>;

fn request(seed: u16) -> ModelInferRequest {
    let prompt = b"Alice ";
    let input = |name: &str, datatype: &str| InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![1, 1],
        ..InferInputTensor::default()
    };
    let steps = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(STEPS)) };
    ModelInferRequest {
        model_name: "char_lm".to_owned(),
        inputs: vec![input("prompt", "BYTES"), input("seed", "INT64")],
        raw_input_contents: vec![
            [&(prompt.len() as u32).to_le_bytes()[..], prompt].concat().into(),
            i64::from(seed).to_le_bytes().to_vec().into(),
        ],
        parameters: [("max_steps".to_owned(), steps)].into(),
        ..ModelInferRequest::default()
    }
}

/// Answers to one request.
async fn generate(mut client: Client, seed: u16) -> Result<usize> {
    let mut answers = client.model_stream_infer(tokio_stream::once(request(seed))).await?.into_inner();
    let mut count = 0;
    while let Some(answer) = answers.message().await? {
        if !answer.error_message.is_empty() {
            return Err(answer.error_message.into());
        }
        count += 1;
    }
    Ok(count)
}

async fn round(server: &Server, client: &Client, together: bool) -> Result<Round> {
    let (before, start) = (server.cpu_time()?, Instant::now());
    let mut requests = 0;
    if together {
        let mut all = JoinSet::new();
        for seed in 0..REQUESTS {
            all.spawn(generate(client.clone(), seed));
        }
        while let Some(count) = all.join_next().await {
            requests += count??;
        }
    } else {
        for seed in 0..REQUESTS {
            requests += generate(client.clone(), seed).await?;
        }
    }
    let cpu = server.cpu_time()?.saturating_sub(before);
    Ok(Round { cpu, wall: start.elapsed(), requests })
}

pub(crate) async fn measure() -> Result<()> {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("model_repository");
    let server = Server::sconce(&samples)?;
    let client = loop {
        if let Ok(client) = Client::connect(format!("http://{}", server.address)).await
            && generate(client.clone(), 0).await.is_ok()
        {
            break client;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    println!(
        "\nchar_lm, {REQUESTS} requests of up to {STEPS} answers; a row counts answers; {PAIRS} pairs\n"
    );
    println!("{}", report::head("1 by 1", "at once"));
    for together in [false, true] {
        round(&server, &client, together).await?;
    }
    let mut pairs = Vec::with_capacity(PAIRS);
    for number in 0..PAIRS {
        let first = number % 2 == 1;
        let one = round(&server, &client, first).await?;
        let other = round(&server, &client, !first).await?;
        pairs.push(if first { (other, one) } else { (one, other) });
    }
    println!("{}", report::row("answers", &pairs));
    Ok(())
}
