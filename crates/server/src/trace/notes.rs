//! What is noted of a call, a batch or a load where it happens, until it becomes spans. Of bounded size, whatever
//! was sent.

use std::time::Instant;

use sconce_engine::{
    Version,
    observe::{BatchRun, LoadRun, Run, TraceContext},
    table::Step,
};

use super::context;
use crate::observe::Record;

/// As many links as OpenTelemetry's own limit.
pub(crate) const LINKS: usize = 128;
/// How many bytes of a text that somebody else wrote stand in a span.
const TEXT: usize = 512;

/// What has been noted and will be spans.
#[derive(Debug)]
pub(crate) enum Item {
    Rpc(Box<Record>),
    Batch(Box<Batch>),
    Load(Box<Load>),
}

/// Of a batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) model: String,
    pub(crate) version: Version,
    pub(crate) run: Run,
    pub(crate) traced: Vec<TraceContext>,
    pub(crate) left_out: u32,
    pub(crate) failed: bool,
}

/// Of an attempt to load a version.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) model: String,
    pub(crate) version: Version,
    pub(crate) started: Instant,
    pub(crate) ended: Instant,
    pub(crate) steps: Vec<(Step, Instant, Instant)>,
    pub(crate) outcome: &'static str,
    pub(crate) reason: Option<String>,
}

impl Item {
    /// A call, with texts of bounded length.
    pub(crate) fn rpc(record: &Record) -> Self {
        let mut record = record.clone();
        for text in [&mut record.model, &mut record.id, &mut record.message] {
            *text = cut(text);
        }
        record.tracestate = record.tracestate.filter(context::is_short);
        // It has been read, and may be as long as headers may be.
        record.traceparent = None;
        Self::Rpc(Box::new(record))
    }

    pub(crate) fn batch(batch: &BatchRun<'_>) -> Self {
        let traced: Vec<_> = batch.traced.iter().take(LINKS).copied().collect();
        let left_out = u32::try_from(batch.traced.len() - traced.len()).unwrap_or(u32::MAX);
        let (model, version, run, failed) = (cut(batch.model), batch.version, batch.run, batch.failed);
        Self::Batch(Box::new(Batch { model, version, run, traced, left_out, failed }))
    }

    pub(crate) fn load(load: &LoadRun<'_>) -> Self {
        Self::Load(Box::new(Load {
            model: cut(load.model),
            version: load.version,
            started: load.started,
            ended: Instant::now(),
            steps: load.steps.to_vec(),
            outcome: load.outcome,
            reason: load.reason.map(cut),
        }))
    }

    /// How many spans it will be.
    pub(crate) fn spans(&self) -> usize {
        match self {
            Self::Rpc(record) if record.run.is_some() => 5,
            Self::Rpc(_) => 1,
            Self::Batch(_) => 4,
            Self::Load(load) => 1 + load.steps.len(),
        }
    }
}

fn cut(text: &str) -> String {
    if text.len() <= TEXT {
        return text.to_owned();
    }
    let end = (0..=TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}...", &text[..end])
}
