//! The access log: a line for each call, and for each message of a stream, with how it ended and what it took.
//!
//! It has nothing to do with levels: `--access-log` alone says which calls have a line.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use clap::ValueEnum;
use http::HeaderValue;
use serde::Deserialize;
use tonic::Code;
use tracing::Level;

use crate::{
    logging::{Kind, Line, Logs, Value},
    observe::{Record, Watcher},
    status::code_name,
};

/// What wrote a line, for machines.
const TARGET: &str = "sconce_access";

/// Which calls have a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// None
    #[default]
    Off,
    /// Those that failed, and a part of the others (--access-log-ratio)
    Sampled,
    /// Those that failed
    Errors,
    /// All
    All,
}

/// Writes lines of calls.
#[derive(Debug)]
pub(crate) struct AccessLog {
    logs: Logs,
    mode: Mode,
    ratio: f64,
    /// How many calls that went well there have been.
    calls: AtomicU64,
    /// The names of the devices, by their index.
    devices: Vec<String>,
}

impl AccessLog {
    pub(crate) fn new(logs: Logs, mode: Mode, ratio: f64, devices: Vec<String>) -> Self {
        Self { logs, mode, ratio, calls: AtomicU64::new(0), devices }
    }

    /// Whether a call has a line.
    fn wants(&self, failed: bool) -> bool {
        match self.mode {
            Mode::Off => false,
            Mode::All => true,
            Mode::Errors => failed,
            Mode::Sampled => failed || chosen(self.calls.fetch_add(1, Ordering::Relaxed), self.ratio),
        }
    }

    fn put(&self, line: &mut Line, record: &Record) {
        let Record { method, code, message, .. } = record;
        let name = code_name(*code);
        let part = if record.message_of_stream { " message" } else { "" };
        if message.is_empty() {
            line.message(format_args!("{method}{part} {name}"));
        } else {
            line.message(format_args!("{method}{part} {name}: {message}"));
        }
        line.for_machines("method", Value::Text(method));
        line.for_machines("code", Value::Text(name));
        if record.message_of_stream {
            line.for_machines("message_of_stream", Value::Bool(true));
        }
        texts(line, record);
        let since = |later: std::time::Instant| millis(later.saturating_duration_since(record.started));
        line.field("duration_ms", since(record.ended));
        if let Some(received) = record.received.filter(|_| !record.message_of_stream) {
            line.field("receive_ms", since(received));
        }
        if let Some(run) = &record.run {
            line.field("queue_ms", millis(run.queue()));
            line.field("gather_ms", millis(run.gather()));
            line.field("forward_ms", millis(run.forward()));
            line.field("scatter_ms", millis(run.scatter()));
            line.field("batch_requests", Value::Unsigned(run.requests as u64));
            line.field("batch_rows", Value::Unsigned(run.rows as u64));
            if let Some(device) = self.devices.get(run.device) {
                line.field("device", Value::Text(device));
            }
        }
        line.field("request_bytes", Value::Unsigned(record.request_bytes as u64));
        line.field("response_bytes", Value::Unsigned(record.response_bytes as u64));
        line.field("responses", Value::Unsigned(record.responses));
    }
}

/// Who asked for what.
fn texts(line: &mut Line, record: &Record) {
    if let Some(reason) = reason(record) {
        line.field("reason", Value::Text(reason));
    }
    if !record.model.is_empty() {
        line.field("model", Value::Text(&record.model));
    }
    if let Some(version) = record.version {
        line.field("version", Value::Shown(format_args!("{version}")));
    }
    if !record.id.is_empty() {
        line.field("id", Value::Text(&record.id));
    }
    if let Some(trace) = &record.trace {
        line.field("trace_id", Value::Shown(format_args!("{:032x}", trace.trace_id)));
        line.field("span_id", Value::Shown(format_args!("{:016x}", trace.span_id)));
    } else if let Some(id) = record.traceparent.as_ref().and_then(trace_id) {
        line.field("trace_id", Value::Text(id));
    }
    if let Some(peer) = record.peer {
        line.field("peer", Value::Shown(format_args!("{peer}")));
    }
}

/// Why it failed, in a word; of what the engine has not seen, as far as the code says.
fn reason(record: &Record) -> Option<&'static str> {
    match (record.reason, record.code) {
        (Some(reason), _) => Some(reason),
        (None, Code::InvalidArgument) => Some("invalid_input"),
        (None, Code::DeadlineExceeded) => Some("deadline"),
        (None, Code::Cancelled) => Some("cancelled"),
        (None, _) => None,
    }
}

fn millis(time: Duration) -> Value<'static> {
    Value::Float(time.as_secs_f64() * 1e3)
}

/// The trace that a caller says his request is of, in W3C's form: `VERSION-TRACE-PARENT-FLAGS`.
fn trace_id(traceparent: &HeaderValue) -> Option<&str> {
    let mut parts = traceparent.to_str().ok()?.split('-');
    let (version, id) = (parts.next()?, parts.next()?);
    let is_hex = |char: char| matches!(char, '0'..='9' | 'a'..='f');
    (version.len() == 2 && id.len() == 32 && id.chars().all(is_hex) && id.contains(|zero| zero != '0'))
        .then_some(id)
}

/// Whether the call of this number is one of the part. Not one in so many: calls may come in turns.
fn chosen(number: u64, ratio: f64) -> bool {
    // The finalizer of SplitMix64: any two numbers look unrelated.
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // 53 bits, which a double holds.
    (((mixed ^ (mixed >> 31)) >> 11) as f64) < ratio * (1_u64 << 53) as f64
}

impl Watcher for AccessLog {
    fn is_on(&self) -> bool {
        self.mode != Mode::Off
    }

    fn record(&self, record: &Record) {
        if self.wants(record.code != Code::Ok) {
            self.logs.write(Kind::Access, Level::INFO, TARGET, |line| self.put(line, record));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_is_chosen_is_as_large_as_asked_for_and_has_no_pattern() {
        let count = |ratio, step| (0..100_000).step_by(step).filter(|&number| chosen(number, ratio)).count();
        assert_eq!((count(0.0, 1), count(1.0, 1)), (0, 100_000));
        for (ratio, step, expected) in [(0.5, 1, 50_000), (0.5, 2, 25_000), (0.01, 1, 1000), (0.01, 10, 100)]
        {
            let found = count(ratio, step);
            assert!(found.abs_diff(expected) <= expected / 5, "{found} of {ratio} and {step}");
        }
    }

    #[test]
    fn a_trace_is_known_by_its_id_where_there_is_one() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let header = |text: &str| HeaderValue::from_str(text).unwrap();
        assert_eq!(trace_id(&header(&format!("00-{id}-00f067aa0ba902b7-00"))), Some(id));
        for bad in ["", "00", "00-short-00-01", &format!("00-{}-x-01", "0".repeat(32)), &format!("0-{id}-x")]
        {
            assert_eq!(trace_id(&header(bad)), None, "{bad}");
        }
        assert_eq!(trace_id(&header(&format!("00-{}-x-01", id.to_uppercase()))), None);
    }
}
