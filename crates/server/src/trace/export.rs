//! The thread `traces`, which sends what was traced to a collector. Whatever becomes of the collector, nobody
//! waits for it.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::Context;
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    resource::{EnvResourceDetector, SdkProvidedResourceDetector, TelemetryResourceDetector},
    trace::SpanExporter as _,
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    clock::Clock,
    endpoint::{Endpoint, TraceProtocol},
    notes::Item,
    queue::Queue,
    spans::Writer,
};
use crate::logging::Seldom;

/// Between two lines of the log about a collector that does not take spans.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// How long the thread may take to end when it has to.
const GRACE: Duration = Duration::from_secs(1);

/// The thread, from outside.
#[derive(Debug)]
pub(crate) struct Sender {
    /// When it has to be done at last, once it is to end.
    end: watch::Sender<Option<Instant>>,
    ended: watch::Receiver<()>,
}

impl Sender {
    /// Starts it.
    ///
    /// # Errors
    /// One sentence on what keeps it from sending.
    pub(crate) fn start(endpoint: Endpoint, writer: Writer, queue: Arc<Queue>) -> anyhow::Result<Self> {
        let (end, ending) = watch::channel(None);
        let (hold, ended) = watch::channel(());
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            let _hold = hold;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime.context("the runtime that sends traces could not be started") {
                Ok(runtime) => runtime,
                Err(error) => return drop(tell.send(Err(error))),
            };
            runtime.block_on(async {
                match exporter(&endpoint) {
                    Err(error) => drop(tell.send(Err(error))),
                    Ok(exporter) => {
                        drop(tell.send(Ok(())));
                        Sending { endpoint, exporter, writer, queue, ending, log: Complaints::default() }
                            .run()
                            .await;
                    }
                }
            });
        };
        std::thread::Builder::new()
            .name("traces".to_owned())
            .spawn(work)
            .context("the thread that sends traces could not be started")?;
        told.recv().context("the thread that sends traces has ended")??;
        Ok(Self { end, ended })
    }

    /// Has what waits sent, as much as can be within this time.
    pub(crate) async fn stop(&self, within: Duration) {
        self.end.send_replace(Some(Instant::now() + within));
        let mut ended = self.ended.clone();
        // The other end goes with the thread, which is soon after that if not before.
        let _ = tokio::time::timeout(within + GRACE, ended.changed()).await;
    }
}

/// Speaks to the collector. What else it has to know, such as headers, it takes from the environment.
fn exporter(endpoint: &Endpoint) -> anyhow::Result<SpanExporter> {
    let builder = SpanExporter::builder();
    let mut exporter = match endpoint.protocol {
        TraceProtocol::Grpc => {
            builder.with_tonic().with_endpoint(&endpoint.url).with_timeout(endpoint.timeout).build()
        }
        TraceProtocol::Http => builder
            .with_http()
            .with_endpoint(&endpoint.url)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(endpoint.timeout)
            .build(),
    }
    .map_err(|error| {
        // Nothing of the URL but what is shown anyway: the rest may be secret.
        let (name, error) = (endpoint.authority(), error.to_string());
        anyhow::anyhow!("traces cannot be sent to {name}: {}", error.replace(&endpoint.url, name))
    })?;
    exporter.set_resource(&resource());
    Ok(exporter)
}

/// Who sends: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, and our name if they say none.
fn resource() -> Resource {
    let version = [KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    // What comes later holds, so that a name is rather that of OTEL_SERVICE_NAME.
    let said = Resource::builder_empty().with_attributes(version).with_detectors(&[
        Box::new(TelemetryResourceDetector),
        Box::new(EnvResourceDetector::new()),
        Box::new(SdkProvidedResourceDetector),
    ]);
    let resource = said.build();
    let name = resource.get(&Key::from_static_str("service.name"));
    if name.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return resource;
    }
    let attributes = resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty().with_attributes(attributes).with_service_name("sconce").build()
}

/// The work of the thread.
struct Sending {
    endpoint: Endpoint,
    exporter: SpanExporter,
    writer: Writer,
    queue: Arc<Queue>,
    ending: watch::Receiver<Option<Instant>>,
    log: Complaints,
}

impl Sending {
    async fn run(mut self) {
        let mut ends = false;
        while !ends {
            ends = self.wait().await;
            if ends {
                self.queue.close();
            }
            loop {
                let items = self.queue.take();
                if items.is_empty() {
                    break;
                }
                self.send(&items).await;
                if !ends && !self.queue.has_batch() {
                    break;
                }
            }
        }
        let lost = self.queue.dropped.load(Relaxed);
        if lost > 0 {
            info!("of all spans, {lost} have not reached the collector on {}", self.endpoint.authority());
        }
    }

    /// Waits until there is a batch, or what there is has waited for long enough; true if it is to end.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            _ = self.ending.changed() => true,
            () = self.queue.filled() => false,
            () = tokio::time::sleep(self.endpoint.delay) => false,
        }
    }

    /// Sends these, or loses them.
    async fn send(&mut self, items: &[Item]) {
        let (clock, mut spans) = (Clock::now(), Vec::new());
        for item in items {
            self.writer.write(item, clock, &mut spans);
        }
        let count = spans.len();
        let sent = tokio::select! {
            sent = tokio::time::timeout(self.endpoint.timeout, self.exporter.export(spans)) => match sent {
                Ok(sent) => sent.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {:?}", self.endpoint.timeout)),
            },
            () = expired(self.ending.clone()) => Err("no answer before the end of the server".to_owned()),
        };
        let name = self.endpoint.authority();
        match sent {
            Ok(()) => {
                self.queue.exported.fetch_add(count as u64, Relaxed);
                self.log.sent(name, self.queue.dropped.load(Relaxed));
            }
            Err(error) => {
                self.queue.lost(count);
                self.log.failed(name, &error, self.queue.dropped.load(Relaxed));
            }
        }
    }
}

/// Waits until what is to end has no more time.
async fn expired(mut ending: watch::Receiver<Option<Instant>>) {
    let end = match ending.wait_for(Option::is_some).await {
        Ok(end) => *end,
        // Nobody is left to end it.
        Err(_) => None,
    };
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

/// What the log says of a collector that does not take spans: not more than a line a minute, and when it is
/// over.
#[derive(Debug, Default)]
struct Complaints {
    said: Seldom,
    broken: bool,
    dropped: u64,
}

impl Complaints {
    fn failed(&mut self, name: &str, error: &str, dropped: u64) {
        if self.said.may_be_said(SAY_AGAIN) {
            self.broken = true;
            // The log escapes and cuts it, at a length at which its end, which says why, is still there.
            warn!("the collector on {name} takes no traces: {error}; {dropped} spans are lost so far");
        }
        self.dropped = dropped;
    }

    fn sent(&mut self, name: &str, dropped: u64) {
        if self.broken {
            self.broken = false;
            info!("the collector on {name} takes traces again; {dropped} spans were lost");
        } else if dropped > self.dropped && self.said.may_be_said(SAY_AGAIN) {
            warn!(
                "spans are made faster than the collector on {name} takes them: {dropped} are lost so far; \
                 trace fewer requests with --trace-ratio"
            );
        }
        self.dropped = dropped;
    }
}
