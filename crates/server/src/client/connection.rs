//! The connection to a server: one deadline for each call, and every failure as one sentence.

use std::{error::Error, io, time::Duration};

use anyhow::{anyhow, bail};
use sconce_proto::inference::{
    ModelConfigRequest, ModelInferRequest, ModelInferResponse, ModelMetadataRequest,
    ModelStreamInferResponse, grpc_inference_service_client::GrpcInferenceServiceClient,
};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use super::{
    model::Model,
    text::{plain, quoted},
};
use crate::status::code_name;

/// Tensors may be as large as gRPC lets them.
const MAX_MESSAGE: usize = 2 << 30;

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 256 << 20;

/// The longest deadline that gRPC can write in its header.
const MAX_TIMEOUT: Duration = Duration::from_secs(99_999_999);

/// A connection whose calls all have the same deadline.
#[derive(Debug)]
pub(super) struct Connection {
    client: GrpcInferenceServiceClient<Channel>,
    timeout: Duration,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// The address is not one, or nobody answers there.
    pub(super) async fn open(address: &str, timeout: Duration) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from(uri(address)?)
            .connect_timeout(timeout)
            .tcp_nodelay(true)
            // Answers of a stream lie here while nobody reads what is printed; in small windows h2 would take many
            // small ones for an attack.
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let channel = endpoint.connect().await.map_err(|error| unreachable(address, &error))?;
        let client = GrpcInferenceServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self { client, timeout })
    }

    /// What the server says about a model. A server need not have these calls.
    ///
    /// # Errors
    /// The server's refusal: it has no such model, for one.
    pub(super) async fn describe(&mut self, name: &str, version: &str) -> anyhow::Result<Model> {
        let (name, version) = (name.to_owned(), version.to_owned());
        let request = ModelMetadataRequest { name: name.clone(), version: version.clone() };
        let metadata = match self.client.model_metadata(self.request(request)).await {
            Ok(metadata) => metadata.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => Default::default(),
            Err(status) => return Err(self.refusal(&status)),
        };
        // Only labels and the batch dimension are lost without it.
        let request = ModelConfigRequest { name, version };
        let config = self.client.model_config(self.request(request)).await;
        Ok(Model { metadata, config: config.ok().and_then(|config| config.into_inner().config) })
    }

    /// One inference.
    ///
    /// # Errors
    /// The server's refusal, or that there was no answer in time.
    pub(super) async fn infer(&mut self, request: ModelInferRequest) -> anyhow::Result<ModelInferResponse> {
        let request = self.request(request);
        match self.client.model_infer(request).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.refusal(&status)),
        }
    }

    /// One request on a stream, and its answers as they come.
    ///
    /// # Errors
    /// The server's refusal.
    pub(super) async fn stream(
        &mut self,
        request: ModelInferRequest,
    ) -> anyhow::Result<Streaming<ModelStreamInferResponse>> {
        let mut request = self.request(tokio_stream::once(request));
        // An error with its code, as for a call.
        request.metadata_mut().insert("triton_grpc_error", MetadataValue::from_static("true"));
        match self.client.model_stream_infer(request).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.refusal(&status)),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    pub(super) fn refusal(&self, status: &Status) -> anyhow::Error {
        // tonic's own timer, which mostly beats the server's answer, calls it CANCELLED.
        if status.code() == Code::Cancelled && status.message() == "Timeout expired" {
            return anyhow!("DEADLINE_EXCEEDED: no answer within {:?}", self.timeout);
        }
        // What tonic makes of an answer that is not gRPC: a port for HTTP, or a proxy's.
        let message = plain(status.message());
        let foreign =
            message.starts_with("h2 protocol error") || message.starts_with("grpc-status header missing");
        let hint = if foreign { "; is this the address of a gRPC server?" } else { "" };
        anyhow!("{}: {message}{hint}", code_name(status.code()))
    }
}

/// `500ms`, `10s`, `1.5m`: a number and its unit, above zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "write a number and a unit, such as 500ms, 10s or 2m".to_owned();
    let end = text.find(|character: char| character.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(end);
    let number: f64 = number.trim().parse().map_err(|_| bad())?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if duration > MAX_TIMEOUT => Err("that is too long".to_owned()),
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) | Err(_) => Err("a deadline must be more than zero".to_owned()),
    }
}

pub(super) fn uri(address: &str) -> anyhow::Result<Uri> {
    let shown = quoted(address.as_bytes());
    if address.starts_with("https://") {
        bail!("address {shown} asks for TLS, which this client does not speak");
    }
    let host = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    match format!("http://{host}").parse::<Uri>() {
        Ok(uri) if uri.port().is_some() && uri.path() == "/" && uri.query().is_none() => Ok(uri),
        Ok(_) | Err(_) => bail!("address {shown} is not HOST:PORT"),
    }
}

fn unreachable(address: &str, error: &(dyn Error + 'static)) -> anyhow::Error {
    let address = plain(address);
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
        if let Some(error) = cause.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            return anyhow!(
                "no server answers at {address}: start one with `sconce serve` or give --address"
            );
        }
    }
    anyhow!("cannot reach {address}: {cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, milliseconds) in
            [("500ms", 500), ("10s", 10_000), ("1.5s", 1500), ("2m", 120_000), ("5000us", 5)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "10", "s", "0s", "-1s", "10 parsecs", "1e400s", "infs", "99999h", "NaNs"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_need_a_port_and_no_tls() {
        for address in
            ["127.0.0.1:8001", "http://localhost:8001/", "[::1]:8001", "models.svc.cluster.local:80"]
        {
            assert!(uri(address).is_ok(), "{address}");
        }
        for address in
            ["", "localhost", "https://localhost:8001", "a b:1", "localhost:8001/v2", "localhost:x"]
        {
            assert!(uri(address).is_err(), "{address}");
        }
    }
}
