//! The same numbers under the names of Triton, so that dashboards and autoscalers that know those go on working
//! (triton-inference-server/server, docs/user_guide/metrics.md).

use sconce_engine::{
    backend::Device,
    stats::{Reason, VersionStats},
};

use super::{
    Sources,
    text::Text,
    versions::{Row, counted, labels},
};

const MICROSECOND: u64 = 1_000;
const MILLISECOND: f64 = 1e6;

pub(super) fn write(text: &mut Text, sources: &Sources, rows: &[Row]) {
    counters(text, rows);
    failures(text, rows);
    let name = "nv_inference_pending_request_count";
    text.family(name, "gauge", "Instantaneous number of pending requests awaiting execution per-model.");
    for row in rows {
        if let Some(load) = &row.load {
            text.sample(name, &labels(row), load.queued);
        }
    }
    let name = "nv_model_load_duration_secs";
    text.family(name, "gauge", "Model load time in seconds");
    for row in rows {
        if let Some(took) = row.live.as_ref().and_then(|live| live.load_took) {
            text.sample(name, &labels(row), took.as_secs_f64());
        }
    }
    let name = "nv_inference_first_response_histogram_ms";
    text.family(name, "histogram", "Duration from request to first response in milliseconds");
    for (labels, stats) in counted(rows).filter(|(_, stats)| stats.responses.get() > 0) {
        text.histogram(name, &labels, &stats.first_response.counts(), MILLISECOND);
    }
    host(text, sources);
}

fn counters(text: &mut Text, rows: &[Row]) {
    type Of = fn(&VersionStats) -> u64;
    let micros = |nanos: u64| nanos / MICROSECOND;
    let all: [(&str, &str, Of); 3] = [
        (
            "nv_inference_request_success",
            "Number of successful inference requests, all batch sizes",
            |stats| stats.outcome(Reason::Ok),
        ),
        (
            "nv_inference_count",
            "Number of inferences performed (does not include cached requests)",
            |stats| stats.rows.get(),
        ),
        (
            "nv_inference_exec_count",
            "Number of model executions performed (does not include cached requests)",
            |stats| stats.batch_rows.total().0,
        ),
    ];
    for (name, help, of) in all {
        text.family(name, "counter", help);
        counted(rows).for_each(|(labels, stats)| text.sample(name, &labels, of(stats)));
    }
    let durations: [(&str, &str, Of); 5] = [
        (
            "nv_inference_request_duration_us",
            "Cumulative inference request duration in microseconds",
            |stats| stats.success_time.get(),
        ),
        (
            "nv_inference_queue_duration_us",
            "Cumulative inference queuing duration in microseconds",
            |stats| stats.queue.total().1,
        ),
        (
            "nv_inference_compute_input_duration_us",
            "Cumulative compute input duration in microseconds",
            |stats| stats.gather.total().1,
        ),
        (
            "nv_inference_compute_infer_duration_us",
            "Cumulative compute inference duration in microseconds",
            |stats| stats.forward.total().1,
        ),
        (
            "nv_inference_compute_output_duration_us",
            "Cumulative inference compute output duration in microseconds",
            |stats| stats.scatter.total().1,
        ),
    ];
    for (name, help, of) in durations {
        text.family(name, "counter", help);
        counted(rows).for_each(|(labels, stats)| text.sample(name, &labels, micros(of(stats))));
    }
}

/// Triton's four reasons.
fn failures(text: &mut Text, rows: &[Row]) {
    use Reason::{
        BadOutput, Cancelled, Deadline, DeviceLost, InvalidInput, ModelError, NotReady, QueueFull,
        QueueTimeout, SequenceBroken, SequencesFull, WorkerLost,
    };
    let reasons: [(&str, &[Reason]); 4] = [
        ("REJECTED", &[QueueFull, SequencesFull, QueueTimeout]),
        ("CANCELED", &[Cancelled, Deadline]),
        ("BACKEND", &[ModelError, BadOutput, DeviceLost, WorkerLost]),
        ("OTHER", &[InvalidInput, NotReady, SequenceBroken]),
    ];
    let name = "nv_inference_request_failure";
    text.family(name, "counter", "Number of failed inference requests, all batch sizes");
    for ([model, version], stats) in counted(rows) {
        for (reason, ours) in reasons {
            let count: u64 = ours.iter().map(|reason| stats.outcome(*reason)).sum();
            text.sample(name, &[model, version, ("reason", reason)], count);
        }
    }
}

/// Memory of the machine and of its GPUs.
fn host(text: &mut Text, sources: &Sources) {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let bytes = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    if let (Some(total), Some(free)) = (bytes("MemTotal"), bytes("MemAvailable")) {
        text.family("nv_cpu_memory_total_bytes", "gauge", "CPU total memory (RAM), in bytes");
        text.sample("nv_cpu_memory_total_bytes", &[], total);
        text.family("nv_cpu_memory_used_bytes", "gauge", "CPU used memory (RAM), in bytes");
        text.sample("nv_cpu_memory_used_bytes", &[], total.saturating_sub(free));
    }
    let known = |device: &Device| Some((device.to_string(), sources.memories.of(*device)?));
    let gpus: Vec<_> = sources.pool.devices().iter().filter_map(known).collect();
    if !gpus.is_empty() {
        let (total, used) = ("nv_gpu_memory_total_bytes", "nv_gpu_memory_used_bytes");
        text.family(total, "gauge", "GPU total memory, in bytes");
        gpus.iter().for_each(|(gpu, memory)| text.sample(total, &[("gpu_uuid", gpu)], memory.total));
        text.family(used, "gauge", "GPU used memory, in bytes");
        gpus.iter().for_each(|(gpu, memory)| text.sample(used, &[("gpu_uuid", gpu)], memory.used));
    }
}
