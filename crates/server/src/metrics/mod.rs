//! What is counted, in Prometheus' words.
//!
//! The numbers of requests, versions and devices are kept where things happen (`sconce_engine::stats`, [`Rpcs`]) and
//! written when somebody asks: so series of a version that is gone are gone too.
//!
//! - `text`: the text format.
//! - `rpcs`: calls, by RPC and code.
//! - `versions`: what is known of each version of a model.
//! - `server`: the server and its devices.
//! - `memory`: memory of GPUs, which is asked for elsewhere.
//! - `process`: the process and its build.
//! - `triton`: the same under the names of Triton, for dashboards that know those.

mod memory;
mod process;
mod rpcs;
mod server;
mod text;
mod triton;
mod versions;

use std::sync::Arc;

pub(crate) use memory::Memories;
pub(crate) use rpcs::{Counting, Method, Rpcs};
use sconce_engine::{pool::Pool, table::Table};
use text::Text;

use crate::{logging::Logs, status::Codes, trace::Tracer, wire::Limits};

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
    sources: Sources,
    runtime: String,
}

impl Metrics {
    /// Of a server that runs models by this runtime.
    pub(crate) fn new(sources: Sources, runtime: String) -> Self {
        Self { sources, runtime }
    }

    /// All of them, as they are now.
    pub(crate) fn render(&self) -> String {
        let mut text = Text::default();
        server::write(&mut text, &self.sources);
        self.sources.rpcs.write(&mut text);
        let rows = versions::rows(&self.sources);
        versions::write(&mut text, &self.sources, &rows);
        if self.sources.triton_names {
            triton::write(&mut text, &self.sources, &rows);
        }
        process::write(&mut text, &self.runtime);
        text.into()
    }
}
