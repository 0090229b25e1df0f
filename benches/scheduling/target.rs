//! A running server with connections to it, and the questions for one of its models.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{models::Model, questions::Questions};
use crate::support::{Result, load::Client, process::Server};

/// What is in flight is spread over so many, as by several clients.
const CONNECTIONS: usize = 4;
/// Until it listens, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where requests to one model go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    clients: Vec<Client>,
    pub(crate) questions: Questions,
}

impl Target {
    /// Connects, and waits until the model has answered.
    pub(crate) async fn connect(server: &Server, model: &Model) -> Result<Self> {
        let mut clients = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            clients.push(connect(&server.address).await?);
        }
        let questions = Questions::learn(&mut clients[0], model).await?;
        Ok(Self { clients, questions })
    }

    /// The same, with a deadline on every request.
    pub(crate) fn within(&self, deadline: Duration) -> Result<Self> {
        let clients = self.clients.iter().map(|client| client.within(deadline)).collect::<Result<_>>()?;
        Ok(Self { clients, questions: self.questions.clone() })
    }

    /// The connection for the caller or the request of this number.
    pub(crate) fn client(&self, number: usize) -> Client {
        self.clients[number % self.clients.len()].clone()
    }
}

/// Starts `sconce` on a repository; returns it with where to send requests to each of these models.
pub(crate) async fn serve<const N: usize>(
    repository: &Path,
    models: [&Model; N],
) -> Result<(Server, [Target; N])> {
    let server = Server::sconce(repository)?;
    let mut targets = Vec::with_capacity(N);
    for model in models {
        targets.push(Target::connect(&server, model).await?);
    }
    let targets = targets.try_into().map_err(|_| "as many targets as models")?;
    Ok((server, targets))
}

async fn connect(address: &str) -> Result<Client> {
    let end = Instant::now() + PATIENCE;
    loop {
        match Client::connect(address).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > end => return Err(format!("{address}: {error}").into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
