//! What `sconce serve` can be told: by flag, by environment, by file, in that order.
//!
//! One struct is all three, so that none can have what another lacks.

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::Context;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{access, logging::LogFormat, trace::TraceProtocol, wire::ResponseCompression};

/// Flags of `sconce serve`.
#[derive(Args, Debug, Default)]
pub(crate) struct ServeArgs {
    /// A YAML file with any of these settings, by their names without the dashes
    #[arg(long, value_name = "FILE", env = "SCONCE_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

/// How models get loaded and unloaded while the server runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ControlMode {
    /// All models are served, and changes are followed as the system tells of them
    #[default]
    Watch,
    /// All models are served, and changes are followed by looking again and again
    Poll,
    /// What is named at start is served, and what is loaded through the API
    Explicit,
    /// All models are loaded at start, changes are not followed
    None,
}

/// 100 years: what is longer means nothing else, and cannot be added to a point in time.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// A length of time: `500ms`, `30s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period(pub(crate) Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let period = humantime::parse_duration(text)
            .map_err(|error| format!("{error}; a length of time such as 500ms, 30s or 2m is expected"))?;
        if period > LONGEST {
            return Err("it is too long; a length of time of at most 100 years is expected".to_owned());
        }
        Ok(Self(period))
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A part of all, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Part(pub(crate) f64);

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let part = text.parse().ok().filter(|part| (0.0..=1.0).contains(part));
        part.map(Self).ok_or_else(|| "a number from 0 to 1 is expected, such as 0.01".to_owned())
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let part = f64::deserialize(deserializer)?;
        part.to_string().parse().map_err(D::Error::custom)
    }
}

/// The settings. What is `None` has not been said.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Options {
    /// A directory of models: MODEL/VERSION/model.pt; may be given several times
    #[arg(long, value_name = "DIR", env = "SCONCE_MODEL_REPOSITORY", value_delimiter = ',')]
    pub(crate) model_repository: Vec<PathBuf>,

    /// Where gRPC is served [default: 127.0.0.1:8001]
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_GRPC_ADDRESS")]
    pub(crate) grpc_address: Option<String>,

    /// Where /health, /models and /metrics are served over HTTP; `off` for nowhere [default: 127.0.0.1:8002]
    #[arg(long, value_name = "HOST:PORT", env = "SCONCE_METRICS_ADDRESS")]
    pub(crate) metrics_address: Option<String>,

    /// The name in ServerMetadata [default: sconce]
    #[arg(long, value_name = "NAME", env = "SCONCE_SERVER_ID")]
    pub(crate) server_id: Option<String>,

    /// How models get loaded and unloaded while the server runs [default: watch]
    #[arg(long, value_name = "MODE", env = "SCONCE_MODEL_CONTROL_MODE")]
    pub(crate) model_control_mode: Option<ControlMode>,

    /// With `explicit`: a model to load at start, `*` for all; may be given several times
    #[arg(long, value_name = "NAME", env = "SCONCE_LOAD_MODEL", value_delimiter = ',')]
    pub(crate) load_model: Vec<String>,

    /// Between two looks at repositories that cannot be watched, at least 100ms [default: 5s]
    #[arg(long, value_name = "TIME", env = "SCONCE_REPOSITORY_POLL_INTERVAL")]
    pub(crate) repository_poll_interval: Option<Period>,

    /// How many models are loaded at once, 1 to 64 [default: half the cores, 1 to 4]
    #[arg(long, value_name = "COUNT", env = "SCONCE_MODEL_LOAD_THREAD_COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) model_load_thread_count: Option<u16>,

    /// How long a repository may be away before its models are unloaded [default: 60s]
    #[arg(long, value_name = "TIME", env = "SCONCE_MISSING_REPOSITORY_TIMEOUT")]
    pub(crate) missing_repository_timeout: Option<Period>,

    /// How long a version that was replaced may take to answer what it has accepted [default: 30s]
    #[arg(long, value_name = "TIME", env = "SCONCE_UNLOAD_TIMEOUT")]
    pub(crate) unload_timeout: Option<Period>,

    /// Ignore symlinks that lead out of their repository [default: false]
    #[arg(long, value_name = "BOOL", env = "SCONCE_CONFINE_SYMLINKS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) confine_symlinks: Option<bool>,

    /// Ready only while every model serves, not once each has been tried [default: false]
    #[arg(long, value_name = "BOOL", env = "SCONCE_STRICT_READINESS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) strict_readiness: Option<bool>,

    /// A shared library with custom operators, opened before any model; may be given several times
    #[arg(long, value_name = "FILE", env = "SCONCE_OP_LIBRARY", value_delimiter = ',')]
    pub(crate) op_library: Vec<PathBuf>,

    /// Workers of the CPU, each runs one batch at a time [default: one per core]
    #[arg(long, value_name = "COUNT", env = "SCONCE_CPU_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) cpu_workers: Option<u16>,

    /// A run that takes longer is not expected to end: another worker takes its place [default: 60s]
    #[arg(long, value_name = "TIME", env = "SCONCE_HUNG_RUN_TIMEOUT")]
    pub(crate) hung_run_timeout: Option<Period>,

    /// The largest request, unpacked [default: 2GiB]
    #[arg(long, value_name = "SIZE", env = "SCONCE_MAX_MESSAGE_SIZE")]
    pub(crate) max_message_size: Option<ByteSize>,

    /// Bytes of all requests that are being received or wait; more is refused [default: 4GiB]
    #[arg(long, value_name = "SIZE", env = "SCONCE_RECEIVE_BUDGET")]
    pub(crate) receive_budget: Option<ByteSize>,

    /// Bytes of all requests that wait for a worker, over all models; more is refused [default: 2GiB]
    #[arg(long, value_name = "SIZE", env = "SCONCE_MAX_QUEUED_BYTES")]
    pub(crate) max_queued_bytes: Option<ByteSize>,

    /// Bytes of all answers that clients have not read yet; more is refused [default: 4GiB]
    #[arg(long, value_name = "SIZE", env = "SCONCE_SEND_BUDGET")]
    pub(crate) send_budget: Option<ByteSize>,

    /// How long a stream of requests lasts before the caller is told to open another [default: as long as its caller likes]
    #[arg(long, value_name = "TIME", env = "SCONCE_MAX_STREAM_AGE")]
    pub(crate) max_stream_age: Option<Period>,

    /// Calls at once on one connection; more wait at the client [default: 1024]
    #[arg(long, value_name = "COUNT", env = "SCONCE_MAX_CONCURRENT_STREAMS")]
    pub(crate) max_concurrent_streams: Option<std::num::NonZeroU32>,

    /// With what answers are compressed, for clients that accept it [default: mirror]
    #[arg(long, env = "SCONCE_RESPONSE_COMPRESSION")]
    pub(crate) response_compression: Option<ResponseCompression>,

    /// Answer errors of requests with the codes that Triton has for them [default: false]
    #[arg(long, value_name = "BOOL", env = "SCONCE_TRITON_ERROR_CODES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) triton_error_codes: Option<bool>,

    /// The upper bounds of the buckets of durations in /metrics, by commas [default: 50us to 10s]
    #[arg(long, value_name = "TIMES", env = "SCONCE_METRICS_BUCKETS", value_delimiter = ',')]
    pub(crate) metrics_buckets: Vec<Period>,

    /// Tell metrics of models under Triton's names too, nv_inference_... [default: false]
    #[arg(long, value_name = "BOOL", env = "SCONCE_METRICS_TRITON_NAMES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) metrics_triton_names: Option<bool>,

    /// After a signal: not ready, but accepting, so that load balancers notice [default: 0s]
    #[arg(long, value_name = "TIME", env = "SCONCE_DRAIN_DELAY")]
    pub(crate) drain_delay: Option<Period>,

    /// After that: how long requests in flight may take before they are cut [default: 30s]
    #[arg(long, value_name = "TIME", env = "SCONCE_DRAIN_TIMEOUT")]
    pub(crate) drain_timeout: Option<Period>,

    /// Serve /debug on the metrics address: what threads and workers are doing [default: false]
    #[arg(long, value_name = "BOOL", env = "SCONCE_DEBUG_ENDPOINTS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) debug_endpoints: Option<bool>,

    /// Which calls have a line in the log [default: off]
    #[arg(long, value_name = "MODE", env = "SCONCE_ACCESS_LOG")]
    pub(crate) access_log: Option<access::Mode>,

    /// With `sampled`: which part of the calls that went well, above 0 and up to 1 [default: 0.01]
    #[arg(long, value_name = "RATIO", env = "SCONCE_ACCESS_LOG_RATIO")]
    pub(crate) access_log_ratio: Option<f64>,

    /// How log lines look [default: text]
    #[arg(long, env = "SCONCE_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,

    /// error, warn, info, debug, trace, or a filter such as info,sconce_engine=debug [default: info]
    #[arg(long, value_name = "LEVEL", env = "SCONCE_LOG_LEVEL")]
    pub(crate) log_level: Option<String>,

    /// The collector that gets traces over OTLP, such as http://127.0.0.1:4317; `off` for none [default: what OTEL_EXPORTER_OTLP_ENDPOINT says, or none]
    #[arg(long, value_name = "URL", env = "SCONCE_TRACE_ENDPOINT")]
    pub(crate) trace_endpoint: Option<String>,

    /// How that collector is spoken to [default: what OTEL_EXPORTER_OTLP_PROTOCOL says, or grpc]
    #[arg(long, value_name = "PROTOCOL", env = "SCONCE_TRACE_PROTOCOL")]
    pub(crate) trace_protocol: Option<TraceProtocol>,

    /// The part of the requests to trace that no caller traces, 0 to 1 [default: 1]
    #[arg(long, value_name = "PART", env = "SCONCE_TRACE_RATIO")]
    pub(crate) trace_ratio: Option<Part>,

    /// Give attributes of spans Triton's names too [default: false]
    #[arg(long, value_name = "BOOL", env = "SCONCE_TRACE_TRITON_ATTRIBUTES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) trace_triton_attributes: Option<bool>,
}

/// Takes the first that has been said.
macro_rules! first {
    ($flags:ident, $file:ident, $($field:ident),*) => {
        Options {
            model_repository: either($flags.model_repository, $file.model_repository),
            op_library: either($flags.op_library, $file.op_library),
            load_model: either($flags.load_model, $file.load_model),
            metrics_buckets: either($flags.metrics_buckets, $file.metrics_buckets),
            $($field: $flags.$field.or($file.$field),)*
        }
    };
}

fn either<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

impl ServeArgs {
    /// Flags and environment over the file.
    ///
    /// # Errors
    /// One sentence on what is wrong with the file, with its line.
    pub(crate) fn options(self) -> anyhow::Result<Options> {
        let Some(path) = self.config else { return Ok(self.options) };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("the settings in {} (--config) cannot be read", path.display()))?;
        let file: Options = if text.trim().is_empty() {
            Options::default()
        } else {
            let yaml = serde_yaml::Deserializer::from_str(&text);
            serde_path_to_error::deserialize(yaml).map_err(|error| {
                let key = error.path().to_string();
                let at = if key == "." { String::new() } else { format!("`{key}`: ") };
                anyhow::anyhow!("{} (--config): {at}{}", path.display(), error.into_inner())
            })?
        };
        let flags = self.options;
        Ok(first!(
            flags,
            file,
            grpc_address,
            metrics_address,
            server_id,
            model_control_mode,
            repository_poll_interval,
            model_load_thread_count,
            missing_repository_timeout,
            unload_timeout,
            confine_symlinks,
            strict_readiness,
            cpu_workers,
            hung_run_timeout,
            max_message_size,
            receive_budget,
            max_queued_bytes,
            send_budget,
            max_stream_age,
            max_concurrent_streams,
            response_compression,
            triton_error_codes,
            metrics_triton_names,
            drain_delay,
            drain_timeout,
            debug_endpoints,
            access_log,
            access_log_ratio,
            log_format,
            log_level,
            trace_endpoint,
            trace_protocol,
            trace_ratio,
            trace_triton_attributes
        ))
    }
}
