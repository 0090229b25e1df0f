//! Requests while versions change: every answer is timed, and must come from a version that may answer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sconce_proto::inference::{ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor};
use tokio::{sync::watch, task::JoinSet};

use super::publish::{Publisher, mark};
use crate::support::{
    Result,
    load::{self, Client},
};

/// No change takes longer, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Kept of what went wrong.
const MOST_REASONS: usize = 5;

/// How callers ask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Connections, each with one request in flight.
    pub(crate) callers: usize,
    /// Between two requests of a caller; `None`: the next follows the answer.
    pub(crate) every: Option<Duration>,
}

/// What came back in one window.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) microseconds: Vec<f64>,
    pub(crate) failed: usize,
    pub(crate) reasons: Vec<String>,
}

impl Tally {
    fn fail(&mut self, reason: String) {
        self.failed += 1;
        if self.reasons.len() < MOST_REASONS {
            self.reasons.push(reason);
        }
    }
}

/// The highest version that has answered, and since when.
type Newest = (u64, Instant);

/// Callers of one model. They end when dropped.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    newest: watch::Receiver<Newest>,
    callers: JoinSet<Result<()>>,
}

#[derive(Debug)]
struct Shared {
    address: String,
    body: Bytes,
    pace: Pace,
    newest: watch::Sender<Newest>,
    tally: Mutex<Tally>,
    /// Whether what comes back counts.
    counts: AtomicBool,
}

impl Traffic {
    /// Starts asking a model that serves.
    pub(crate) async fn start(address: &str, model: &str, pace: Pace) -> Result<Self> {
        let (sender, newest) = watch::channel((0, Instant::now()));
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            body: body(model),
            pace,
            newest: sender,
            tally: Mutex::default(),
            counts: AtomicBool::new(false),
        });
        let mut callers = JoinSet::new();
        for _ in 0..pace.callers {
            let client = Client::connect(address).await?;
            callers.spawn(Arc::clone(&shared).calls(client));
        }
        Ok(Self { shared, newest, callers })
    }

    /// From now on it counts.
    pub(crate) fn begin(&self) {
        drop(self.tally());
        self.shared.counts.store(true, Ordering::Relaxed);
    }

    /// It counts no longer; returns what came back since it began.
    pub(crate) fn end(&self) -> Tally {
        self.shared.counts.store(false, Ordering::Relaxed);
        self.tally()
    }

    /// What came back since this was last asked.
    pub(crate) fn tally(&self) -> Tally {
        std::mem::take(&mut *self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until a version of this number answers; returns since when.
    pub(crate) async fn serves(&mut self, version: u64) -> Result<Instant> {
        let newest = self.newest.wait_for(|newest| newest.0 >= version);
        tokio::select! {
            newest = tokio::time::timeout(PATIENCE, newest) => {
                Ok(newest.map_err(|_| format!("version {version} does not serve after {PATIENCE:?}"))??.1)
            }
            ended = self.callers.join_next() => Err(format!("a caller has ended: {ended:?}").into()),
        }
    }

    /// Publishes a version and waits until it answers, then removes the one before. Returns how long it took
    /// from the renaming to the first new answer.
    pub(crate) async fn swap(&mut self, publisher: &mut Publisher) -> Result<Duration> {
        let (version, begun) = publisher.publish()?;
        let since = self.serves(version).await?;
        publisher.clean()?;
        Ok(since.saturating_duration_since(begun))
    }
}

impl Shared {
    async fn calls(self: Arc<Self>, mut client: Client) -> Result<()> {
        let mut due = Instant::now();
        loop {
            let mut start = Instant::now();
            if let Some(every) = self.pace.every {
                if start < due {
                    tokio::time::sleep_until(due.into()).await;
                    start = Instant::now();
                } else {
                    // The answer before came late, and this one waited for it: that counts.
                    start = due;
                }
                due = start + every;
            }
            let before = self.newest.borrow().0;
            let answer = client.infer(self.body.clone()).await;
            let end = Instant::now();
            let outcome = answer.map_err(|error| error.to_string()).and_then(|answer| {
                let version = version(&answer)?;
                if version < before { Err(format!("version {version} after {before}")) } else { Ok(version) }
            });
            if let Ok(version) = outcome {
                self.newest.send_if_modified(|newest| {
                    let newer = version > newest.0;
                    if newer {
                        *newest = (version, end);
                    }
                    newer
                });
            }
            let failed = outcome.is_err();
            if self.counts.load(Ordering::Relaxed) {
                let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
                match outcome {
                    Ok(_) => tally.microseconds.push((end - start).as_secs_f64() * 1e6),
                    Err(reason) => tally.fail(reason),
                }
            }
            if failed {
                client = Client::connect(&self.address).await?;
            }
        }
    }
}

fn body(model: &str) -> Bytes {
    let values = (0..64u16).flat_map(|index| f32::from(index).sin().to_le_bytes());
    load::framed(&ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: "x".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 64],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![values.collect::<Vec<u8>>().into()],
        ..ModelInferRequest::default()
    })
}

/// Which version an answer names, when its tensor is what that version answers.
fn version(answer: &Bytes) -> std::result::Result<u64, String> {
    let message = answer.get(load::PREFIX..).ok_or("an answer without a message")?;
    let response: ModelInferResponse = prost::Message::decode(message).map_err(|error| error.to_string())?;
    let version: u64 = response.model_version.parse().map_err(|_| format!("{:?}", response.model_version))?;
    let expected = mark(version).to_le_bytes().repeat(10);
    match &response.raw_output_contents[..] {
        [tensor] if *tensor == expected => Ok(version),
        _ => Err(format!("version {version} answered what another version answers")),
    }
}

/// The server has this model: some version of it answers.
pub(crate) async fn ready(address: &str, model: &str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let tried = async {
            let answer = Client::connect(address).await?.infer(body(model)).await?;
            version(&answer).map_err(Into::into)
        };
        match tried.await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > end => {
                let error: Box<dyn std::error::Error + Send + Sync> = error;
                return Err(format!("{model} does not serve: {error}").into());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The same reasons together.
pub(crate) fn reasons(tallies: &[Tally]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in tallies.iter().flat_map(|tally| &tally.reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    let lines = counts.iter().map(|(reason, count)| format!("\n    {count} times or more: {reason}"));
    lines.collect()
}
