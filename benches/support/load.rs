//! Load: prepared ModelInfer requests over one HTTP/2 connection, so many in flight.
//!
//! The client shares the machine with the server, so it does as little as it can: the body is encoded once,
//! and an answer is compared with what must come back, not decoded. All requests of a round are equal, and
//! every answer is checked: its status, its length, and the bytes of its tensor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use sconce_proto::inference::{ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor};
use tokio::{net::TcpStream, task::JoinSet};

use super::Result;

const SERVICE: &str = "/inference.GRPCInferenceService";
/// gRPC's prefix of a message.
pub(crate) const PREFIX: usize = 5;
/// Answers are not slowed by round trips.
const WINDOW: u32 = 64 << 20;
const MAX_FRAME: u32 = 1 << 20;
/// For one round, however slow the machine.
const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// A request to an identity model, ready to be sent, and the tensor that must come back.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    body: Bytes,
    tensor: Bytes,
}

impl Traffic {
    /// One FP32 tensor [1, `elements`] for the input `x` of `model`.
    pub(crate) fn new(model: &str, elements: u16) -> Self {
        Self::with_shape(model, vec![1, i64::from(elements)], usize::from(elements))
    }

    /// One FP32 tensor [`rows`, 1024]: 4 KiB a row.
    pub(crate) fn rows(model: &str, rows: u16) -> Self {
        Self::with_shape(model, vec![i64::from(rows), 1024], usize::from(rows) * 1024)
    }

    fn with_shape(model: &str, shape: Vec<i64>, elements: usize) -> Self {
        // No two bytes of a kind in a row: a tensor that is shifted is seen.
        let values = (0..elements).flat_map(|index| (index as f32).sin().to_le_bytes());
        let tensor: Bytes = values.collect::<Vec<u8>>().into();
        let request = ModelInferRequest {
            model_name: model.to_owned(),
            inputs: vec![InferInputTensor {
                name: "x".to_owned(),
                datatype: "FP32".to_owned(),
                shape,
                ..InferInputTensor::default()
            }],
            raw_input_contents: vec![tensor.clone()],
            ..ModelInferRequest::default()
        };
        Self { body: framed(&request), tensor }
    }
}

/// A message as gRPC sends it: a prefix that says how long it is, then its bytes.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    message.encode_raw(&mut body);
    body.freeze()
}

/// What came of one call.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// gRPC's; 0 is OK.
    pub(crate) code: u16,
    /// Why it is not OK.
    pub(crate) reason: String,
    /// The message with gRPC's prefix.
    pub(crate) answer: Bytes,
}

/// A connection. It ends when dropped.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    sender: SendRequest<Bytes>,
    address: String,
    infer: Request<()>,
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(MAX_FRAME)
            .handshake(stream)
            .await?;
        // It ends with its last sender; an error of it reaches the requests.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, address: address.to_owned(), infer: head(address, "ModelInfer")? })
    }

    /// The same connection; the server is told that an inference may take as long as this.
    pub(crate) fn within(&self, deadline: Duration) -> Result<Self> {
        let mut client = self.clone();
        client.infer.headers_mut().insert("grpc-timeout", format!("{}m", deadline.as_millis()).parse()?);
        Ok(client)
    }

    /// One ModelInfer, and what came of it; an error is one of the connection.
    pub(crate) async fn attempt(&mut self, body: Bytes) -> Result<Outcome> {
        self.outcome(self.infer.clone(), body).await
    }

    /// One ModelInfer; returns the answer's message with gRPC's prefix.
    pub(crate) async fn infer(&mut self, body: Bytes) -> Result<Bytes> {
        self.call(self.infer.clone(), body).await
    }

    /// One call of any method.
    pub(crate) async fn ask<Answer: Message + Default>(
        &mut self,
        method: &str,
        question: &impl Message,
    ) -> Result<Answer> {
        let answer = self.call(head(&self.address, method)?, framed(question)).await?;
        Ok(Answer::decode(answer.get(PREFIX..).ok_or("an answer without a message")?)?)
    }

    async fn call(&mut self, head: Request<()>, body: Bytes) -> Result<Bytes> {
        let outcome = self.outcome(head, body).await?;
        match outcome.code {
            0 => Ok(outcome.answer),
            code => Err(format!("grpc-status {code}, {:?}", outcome.reason).into()),
        }
    }

    async fn outcome(&mut self, head: Request<()>, body: Bytes) -> Result<Outcome> {
        std::future::poll_fn(|context| self.sender.poll_ready(context)).await?;
        let (response, mut stream) = self.sender.send_request(head, false)?;
        stream.send_data(body, true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut answer = Bytes::new();
        let mut gathered = BytesMut::new();
        while let Some(frame) = body.data().await {
            let frame = frame?;
            body.flow_control().release_capacity(frame.len())?;
            if answer.is_empty() && gathered.is_empty() {
                answer = frame;
            } else {
                gathered.extend_from_slice(&std::mem::take(&mut answer));
                gathered.extend_from_slice(&frame);
            }
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        let field = |name| trailers.get(name).or_else(|| head.headers.get(name));
        let code = field("grpc-status").ok_or("an answer without a grpc-status")?;
        let code = code.to_str()?.parse()?;
        let reason = match field("grpc-message") {
            Some(text) if code != 0 => text.to_str()?.to_owned(),
            _ => String::new(),
        };
        Ok(Outcome { code, reason, answer: if gathered.is_empty() { answer } else { gathered.freeze() } })
    }

    /// One call whose answer is decoded and checked; returns its length.
    pub(crate) async fn probe(&mut self, traffic: &Traffic) -> Result<usize> {
        let answer = self.infer(traffic.body.clone()).await?;
        let message = answer.get(PREFIX..).ok_or("an answer without a message")?;
        let response = ModelInferResponse::decode(message)?;
        match &response.raw_output_contents[..] {
            [tensor] if *tensor == traffic.tensor => Ok(answer.len()),
            _ => Err(format!("another answer than what was sent: {:?}", response.outputs).into()),
        }
    }

    /// Sends `requests` with `in_flight` at a time and checks each answer; returns how long it took.
    pub(crate) async fn round(
        &mut self,
        traffic: &Traffic,
        requests: usize,
        in_flight: usize,
    ) -> Result<Duration> {
        let length = self.probe(traffic).await?;
        let left = Arc::new(AtomicUsize::new(requests));
        let start = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..in_flight {
            callers.spawn(self.clone().calls(traffic.clone(), length, Arc::clone(&left)));
        }
        all(callers).await?;
        Ok(start.elapsed())
    }

    /// The same over so many streams, each with `in_flight` at a time.
    pub(crate) async fn streamed(
        &mut self,
        traffic: &Traffic,
        requests: usize,
        streams: usize,
        in_flight: usize,
    ) -> Result<Duration> {
        let start = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..streams {
            callers.spawn(self.clone().conversation(traffic.clone(), requests / streams, in_flight));
        }
        all(callers).await?;
        Ok(start.elapsed())
    }

    /// Requests on one stream, each sent when an answer has come, and every answer checked.
    async fn conversation(mut self, traffic: Traffic, requests: usize, in_flight: usize) -> Result<()> {
        std::future::poll_fn(|context| self.sender.poll_ready(context)).await?;
        let (response, mut stream) =
            self.sender.send_request(head(&self.address, "ModelStreamInfer")?, false)?;
        let mut sent = in_flight.min(requests);
        for _ in 0..sent {
            stream.send_data(traffic.body.clone(), false)?;
        }
        let mut body = response.await?.into_body();
        let (mut received, mut answered) = (BytesMut::new(), 0);
        while answered < requests {
            let frame = body.data().await.ok_or("the stream has ended")??;
            body.flow_control().release_capacity(frame.len())?;
            received.extend_from_slice(&frame);
            while let Some(length) = received.get(1..PREFIX) {
                let length = PREFIX + u32::from_be_bytes(length.try_into()?) as usize;
                if received.len() < length {
                    break;
                }
                // Raw contents are the last field of the answer, which is the last field of the message.
                if !received.split_to(length).ends_with(&traffic.tensor) {
                    return Err("an answer differs from what was sent".into());
                }
                answered += 1;
                if sent < requests {
                    stream.send_data(traffic.body.clone(), false)?;
                    sent += 1;
                }
            }
        }
        stream.send_data(Bytes::new(), true)?;
        match body.data().await {
            Some(frame) => Err(format!("{} bytes too many", frame?.len()).into()),
            None => Ok(()),
        }
    }

    /// Round trips of `requests` on one stream, one at a time with a pause before each.
    pub(crate) async fn paced(
        &mut self,
        traffic: &Traffic,
        requests: usize,
        pause: Duration,
    ) -> Result<Vec<Duration>> {
        std::future::poll_fn(|context| self.sender.poll_ready(context)).await?;
        let (response, mut stream) =
            self.sender.send_request(head(&self.address, "ModelStreamInfer")?, false)?;
        let mut body = None;
        let mut response = Some(response);
        let mut took = Vec::with_capacity(requests);
        for _ in 0..requests {
            tokio::time::sleep(pause).await;
            let sent = Instant::now();
            stream.send_data(traffic.body.clone(), false)?;
            if let Some(response) = response.take() {
                body = Some(response.await?.into_body());
            }
            let body: &mut h2::RecvStream = body.as_mut().ok_or("no answer")?;
            let mut received = BytesMut::new();
            while !received.ends_with(&traffic.tensor) {
                let frame = body.data().await.ok_or("the stream has ended")??;
                body.flow_control().release_capacity(frame.len())?;
                received.extend_from_slice(&frame);
            }
            took.push(sent.elapsed());
        }
        stream.send_data(Bytes::new(), true)?;
        Ok(took)
    }

    async fn calls(mut self, traffic: Traffic, length: usize, left: Arc<AtomicUsize>) -> Result<()> {
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let answer = self.infer(traffic.body.clone()).await?;
            // Raw contents are the last field, so they end the message.
            if answer.len() != length || !answer.ends_with(&traffic.tensor) {
                return Err("an answer differs from what was sent".into());
            }
        }
        Ok(())
    }
}

/// Until all callers are done, or one has failed.
async fn all(mut callers: JoinSet<Result<()>>) -> Result<()> {
    let all = async {
        while let Some(ended) = callers.join_next().await {
            ended??;
        }
        Ok(())
    };
    tokio::time::timeout(ROUND_LIMIT, all).await.map_err(|_| "a round did not end in a minute")?
}

fn head(address: &str, method: &str) -> Result<Request<()>> {
    let head = Request::post(format!("http://{address}{SERVICE}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    Ok(head.body(())?)
}

/// Connects to a server that is starting and waits until the model answers.
pub(crate) async fn ready(address: &str, traffic: &Traffic, limit: Duration) -> Result<Client> {
    let end = Instant::now() + limit;
    loop {
        let tried = async {
            let mut client = Client::connect(address).await?;
            client.probe(traffic).await?;
            Result::Ok(client)
        };
        match tried.await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > end => {
                return Err(format!("{address} does not serve: {error}").into());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
