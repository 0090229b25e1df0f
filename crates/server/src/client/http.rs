//! One HTTP GET to where a server tells of itself, with every failure as one sentence.

use std::{io::ErrorKind, time::Duration};

use anyhow::{anyhow, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{connection::uri, text::plain};

/// What thousands of models tell fits.
const MAX_ANSWER: usize = 64 << 20;
/// What an answer that nobody expected begins with.
const SHOWN: usize = 80;

/// What is there.
///
/// # Errors
/// Nobody is there, nobody answers in time, or whoever answers is no such server.
pub(super) async fn get(address: &str, path: &str, timeout: Duration) -> anyhow::Result<String> {
    let shown = plain(address);
    let (status, body) = match tokio::time::timeout(timeout, exchange(address, path)).await {
        Ok(answer) => answer?,
        Err(_) => bail!("{shown} has not answered within {timeout:?}"),
    };
    let text = String::from_utf8_lossy(&body);
    if status != StatusCode::OK {
        let said: String = text.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
        bail!(
            "{shown} answers {status} to {path}, {:?}: give the address of a server's metrics with --metrics-address",
            said
        );
    }
    Ok(text.into_owned())
}

async fn exchange(address: &str, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let shown = plain(address);
    let uri = uri(address)?;
    let authority = uri.authority().ok_or_else(|| anyhow!("address {shown} is not HOST:PORT"))?;
    // An address of IPv6 stands in brackets.
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority.port_u16().ok_or_else(|| anyhow!("address {shown} is not HOST:PORT"))?;
    let stream = TcpStream::connect((host, port)).await.map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => anyhow!(
            "no server answers at {shown}: start one with `sconce serve`, or give its --metrics-address"
        ),
        _ => anyhow!("cannot reach {shown}: {error}"),
    })?;
    let foreign = |error: hyper::Error| {
        anyhow!(
            "{shown} does not answer in HTTP/1.1 ({error}): give the address of a server's metrics with --metrics-address, not that of gRPC"
        )
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(foreign)?;
    // It drives the exchange, and ends with it; what is wrong with it, the request says too.
    let driving = tokio::spawn(async move { drop(connection.await) });
    let request = Request::get(path).header(HOST, authority.as_str()).body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await.map_err(foreign)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    driving.abort();
    let body = body.map_err(|error| anyhow!("the answer of {shown} broke off: {error}"))?;
    Ok((status, body.to_bytes()))
}
