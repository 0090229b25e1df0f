//! Traces: which requests are traced, what is noted of them, and the way of that to a collector over OTLP.
//!
//! - `context`: where the caller's trace is
//! - `sampler`, `settings`: which requests are traced, and how TraceSetting changes that
//! - `notes`, `spans`: what is noted where it happens, and the spans that are made of it
//! - `clock`: times, as they are told to others
//! - `queue`, `export`: what waits, and the thread that sends it
//! - `endpoint`, `environment`: where to, and what OpenTelemetry's variables say

mod clock;
mod context;
mod endpoint;
mod environment;
mod export;
mod notes;
mod queue;
mod sampler;
mod settings;
mod spans;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::HeaderValue;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use sconce_engine::{
    observe::{BatchRun, LoadRun, Observer, TraceContext},
    table::Table,
};
use tracing::{info, warn};

pub(crate) use self::endpoint::TraceProtocol;
use self::{
    context::Caller,
    endpoint::Endpoint,
    environment::Environment,
    export::Sender,
    notes::Item,
    queue::Queue,
    settings::{Settings, Values},
    spans::Writer,
};
use crate::{
    observe::{Record, Traced, Watcher},
    options::{Options, Part},
};

/// What is noted of requests, batches and loads while the server runs. Nothing, if there is no collector.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracer(Option<Arc<Tracing>>);

#[derive(Debug)]
struct Tracing {
    settings: Settings,
    queue: Arc<Queue>,
    sender: Sender,
    ids: RandomIdGenerator,
}

impl Tracer {
    /// Traces, if the flags or the environment name a collector.
    ///
    /// # Errors
    /// One sentence on what cannot be a collector, or keeps it from being spoken to.
    pub(crate) fn start(
        options: &Options,
        server: Option<SocketAddr>,
        devices: Vec<String>,
    ) -> anyhow::Result<Self> {
        // What is no text is not what anything expects, and so is what stands for it then.
        let environment = |name: &str| Some(std::env::var_os(name)?.to_string_lossy().into_owned());
        let url = options.trace_endpoint.as_deref();
        let Some(endpoint) = Endpoint::chosen(url, options.trace_protocol, environment)? else {
            // That may be why nothing is traced.
            if let Some(line) = Environment(environment).other_exporters().filter(|_| url.is_none()) {
                warn!("{line}");
            }
            return Ok(Self::default());
        };
        info!("traces to {}", endpoint.authority());
        endpoint.in_vain.iter().for_each(|line| warn!("{line}"));
        let queue = Arc::new(Queue::new(endpoint.queue));
        let writer = Writer::new(server, devices, options.trace_triton_attributes.unwrap_or_default());
        let sender = Sender::start(endpoint, writer, Arc::clone(&queue))?;
        let settings = Settings::new(options.trace_ratio.map_or(1.0, |Part(ratio)| ratio));
        let ids = RandomIdGenerator::default();
        Ok(Self(Some(Arc::new(Tracing { settings, queue, sender, ids }))))
    }

    /// The settings of all models, or those that hold for one, as Triton's clients know them.
    pub(crate) fn settings(&self, model: Option<&str>) -> Values {
        self.0.as_ref().map_or_else(settings::show_off, |tracing| tracing.settings.show(model))
    }

    /// Changes settings of all models, or of one.
    ///
    /// # Errors
    /// One sentence about what cannot be changed.
    pub(crate) fn change(&self, model: Option<&str>, values: &Values) -> Result<(), String> {
        match &self.0 {
            Some(tracing) => tracing.settings.change(model, values),
            None if values.values().all(Vec::is_empty) => Ok(()),
            None => Err("nothing is traced, because the server knows no collector: start it with \
                         --trace-endpoint URL"
                .to_owned()),
        }
    }

    /// Lets settings of models go when these do, as long as the server runs.
    pub(crate) async fn follow(self, table: Arc<Table>) {
        let Some(tracing) = self.0 else { return };
        let mut changes = table.watch();
        while changes.changed().await.is_ok() {
            let snapshot = table.snapshot();
            tracing.settings.keep(|model| snapshot.routes.contains_key(model));
        }
    }

    /// How many spans a collector has taken, and how many are lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let count = |queue: &Queue| (queue.exported.load(Relaxed), queue.dropped.load(Relaxed));
        self.0.as_ref().map_or((0, 0), |tracing| count(&tracing.queue))
    }

    /// Sends what waits, as much as can be within this time, and then no more.
    pub(crate) async fn stop(&self, within: Duration) {
        if let Some(tracing) = &self.0 {
            tracing.sender.stop(within).await;
        }
    }
}

impl Watcher for Tracer {
    fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// As its caller does, or else, if a model is to run, by its rate.
    fn trace(&self, parent: Option<&HeaderValue>, model: &str) -> Option<Traced> {
        let tracing = self.0.as_ref()?;
        let model = Some(model).filter(|model| !model.is_empty());
        if !tracing.settings.on(model) {
            return None;
        }
        let span_id = || u64::from_be_bytes(tracing.ids.new_span_id().to_bytes());
        if let Some(caller) = parent.and_then(Caller::of) {
            let own = TraceContext { trace_id: caller.at.trace_id, span_id: span_id() };
            return caller.sampled.then_some(Traced { own, parent: Some(caller.at) });
        }
        let trace_id = u128::from_be_bytes(tracing.ids.new_trace_id().to_bytes());
        let taken = tracing.settings.takes(model?, trace_id);
        taken.then(|| Traced { own: TraceContext { trace_id, span_id: span_id() }, parent: None })
    }

    fn record(&self, record: &Record) {
        if let Some(tracing) = &self.0
            && record.trace.is_some()
        {
            tracing.queue.offer(Item::rpc(record));
        }
    }
}

impl Observer for Tracer {
    fn batch(&self, batch: &BatchRun<'_>) {
        if let Some(tracing) = &self.0
            && !batch.traced.is_empty()
        {
            tracing.queue.offer(Item::batch(batch));
        }
    }

    fn load(&self, load: &LoadRun<'_>) {
        if let Some(tracing) = &self.0
            && tracing.settings.on(Some(load.model))
        {
            tracing.queue.offer(Item::load(load));
        }
    }
}
