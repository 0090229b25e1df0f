//! A raw HTTP/2 client: sends whatever it is told to, right or wrong.

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::{net::TcpStream, task::JoinHandle};
use tonic::{Code, Status};

use crate::harness::Server;

/// The service under test.
pub const SERVICE: &str = "inference.GRPCInferenceService";

/// One HTTP/2 connection.
pub struct Raw {
    pub requests: SendRequest<Bytes>,
    /// Ends with the connection.
    pub connection: JoinHandle<Result<(), h2::Error>>,
    ping_pong: PingPong,
}

/// All that came back on a stream.
#[derive(Debug)]
pub struct Answer {
    pub http: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    trailers: HeaderMap,
}

/// A stream that has been begun.
pub struct Open {
    pub answer: ResponseFuture,
    pub body: h2::SendStream<Bytes>,
}

impl Raw {
    pub async fn connect(server: &Server) -> Self {
        Self::over(TcpStream::connect(&server.grpc).await.expect("a connection")).await
    }

    pub async fn over(stream: TcpStream) -> Self {
        Self::with_window(stream, 1 << 30).await
    }

    /// A connection that takes so many bytes of answers before anybody reads them.
    pub async fn with_window(stream: TcpStream, window: u32) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(window.max(65_535));
        let (requests, mut connection) = builder.handshake(stream).await.expect("HTTP/2");
        let ping_pong = connection.ping_pong().expect("the one that there is");
        Self { requests, connection: tokio::spawn(connection), ping_pong }
    }

    /// Begins a gRPC call; its body is still to be sent.
    pub async fn begin(&self, rpc: &str, headers: &[(&str, &str)]) -> Result<Open, h2::Error> {
        let path = if rpc.starts_with('/') { rpc.to_owned() } else { format!("/{SERVICE}/{rpc}") };
        let mut request = Request::post(format!("http://sconce{path}")).header("te", "trailers");
        if headers.iter().all(|(name, _)| *name != "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let mut requests = self.requests.clone().ready().await?;
        let (answer, body) = requests.send_request(request.body(()).expect("a request"), false)?;
        Ok(Open { answer, body })
    }

    /// A call with this body, as it is.
    pub async fn send(&self, rpc: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut open = self.begin(rpc, headers).await.expect("a stream");
        open.body.send_data(body.into(), true).expect("a body");
        open.finish().await
    }

    /// A call with this message.
    pub async fn call(&self, rpc: &str, message: &impl Message) -> Answer {
        self.send(rpc, &[], framed(&message.encode_to_vec())).await
    }

    /// Returns when the server has read all that was sent before.
    pub async fn ping(&mut self) {
        self.ping_pong.ping(Ping::opaque()).await.expect("a pong");
    }
}

impl Open {
    /// Waits for all of the answer.
    pub async fn finish(self) -> Answer {
        self.try_finish().await.expect("an answer")
    }

    pub async fn try_finish(self) -> Result<Answer, h2::Error> {
        let (head, mut stream) = self.answer.await?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data = data?;
            stream.flow_control().release_capacity(data.len())?;
            body.extend_from_slice(&data);
        }
        let trailers = stream.trailers().await?.unwrap_or_default();
        Ok(Answer { http: head.status.as_u16(), headers: head.headers, body, trailers })
    }
}

impl Answer {
    /// The status, from wherever it stands.
    pub fn status(&self) -> Status {
        Status::from_header_map(&self.trailers)
            .or_else(|| Status::from_header_map(&self.headers))
            .unwrap_or_else(|| panic!("no grpc-status in {self:?}"))
    }

    /// The one message of an answer that is not compressed, or the refusal.
    pub fn message<M: Message + Default>(&self) -> Result<M, Status> {
        let status = self.status();
        if status.code() != Code::Ok {
            return Err(status);
        }
        assert_eq!(self.body[0], 0, "not compressed");
        let length = u32::from_be_bytes(self.body[1..5].try_into().expect("four")) as usize;
        assert_eq!(self.body.len(), 5 + length, "one message");
        Ok(M::decode(&self.body[5..]).expect("a message"))
    }
}

/// A message with a prefix that says what it likes.
pub fn prefixed(flag: u8, length: usize, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).expect("a length").to_be_bytes();
    [&[flag], &length[..], data].concat()
}

/// A message as it should be.
pub fn framed(data: &[u8]) -> Vec<u8> {
    prefixed(0, data.len(), data)
}
