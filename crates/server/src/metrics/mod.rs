//! What is counted, in Prometheus' words.
//!
//! The numbers of requests, versions and devices are kept where things happen (`sconce_engine::stats`, [`Rpcs`]) and
//! written when somebody asks: so series of a version that is gone are gone too. What belongs to the process as a
//! whole goes through the `metrics` facade.
//!
//! - `text`: the text format.
//! - `rpcs`: calls, by RPC and code.
//! - `versions`: what is known of each version of a model.
//! - `server`: the server and its devices.
//! - `memory`: memory of GPUs, which is asked for elsewhere.
//! - `triton`: the same under the names of Triton, for dashboards that know those.

mod memory;
mod rpcs;
mod server;
mod text;
mod triton;
mod versions;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
pub(crate) use memory::Memories;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
pub(crate) use rpcs::{Counting, Method, Rpcs};
use sconce_engine::{pool::Pool, table::Table};
use text::Text;

use crate::{logging::Logs, status::Codes, trace::Tracer, wire::Limits};

/// Between two times that what was recorded is summed up: until then it takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// What is told from.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) table: Arc<Table>,
    pub(crate) pool: Pool,
    pub(crate) memories: Memories,
    pub(crate) rpcs: Arc<Rpcs>,
    pub(crate) limits: Limits,
    pub(crate) logs: Logs,
    pub(crate) codes: Codes,
    pub(crate) tracer: Tracer,
    /// Under Triton's names too.
    pub(crate) triton_names: bool,
}

/// All metrics of the process.
#[derive(Clone)]
pub(crate) struct Metrics {
    recorded: PrometheusHandle,
    process: metrics_process::Collector,
    sources: Sources,
}

impl Metrics {
    /// Records from now on, for the whole process.
    pub(crate) fn start(sources: Sources, runtime: String) -> anyhow::Result<Self> {
        let recorded = PrometheusBuilder::new().install_recorder().context("metrics could not be set up")?;
        let process = metrics_process::Collector::default();
        process.describe();
        metrics::describe_gauge!("sconce_build_info", "Which build runs, by which runtime; always 1");
        metrics::gauge!("sconce_build_info", "version" => env!("CARGO_PKG_VERSION"), "runtime" => runtime)
            .set(1.0);
        Ok(Self { recorded, process, sources })
    }

    /// All of them, as they are now.
    pub(crate) fn render(&self) -> String {
        self.process.collect();
        let mut text = Text::default();
        server::write(&mut text, &self.sources);
        self.sources.rpcs.write(&mut text);
        let rows = versions::rows(&self.sources);
        versions::write(&mut text, &self.sources, &rows);
        if self.sources.triton_names {
            triton::write(&mut text, &self.sources, &rows);
        }
        text.behind(self.recorded.render())
    }

    /// Keeps what was recorded small, whether anybody asks for it or not.
    pub(crate) async fn keep_up(self) {
        let mut interval = tokio::time::interval(UPKEEP);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.recorded.run_upkeep();
        }
    }
}
