//! The server as a whole: readiness, budgets, devices and workers.

use sconce_engine::pool::{DeviceStatus, Pool};

use super::{Memories, Sources, text::Text};

pub(super) fn write(text: &mut Text, sources: &Sources) {
    let flag = |text: &mut Text, name: &str, help: &str, value: bool| {
        text.family(name, "gauge", help);
        text.sample(name, &[], u8::from(value));
    };
    flag(text, "sconce_ready", "Whether the server may be sent traffic", sources.table.snapshot().ready());
    flag(text, "sconce_live", "Whether a device is left that can run models", sources.pool.is_alive());
    let (queued, most) = sources.pool.queued_bytes();
    let (receiving, receive_limit) = sources.limits.budget.usage();
    let (sending, send_limit) = sources.limits.answers.usage();
    for (name, help, value) in [
        ("sconce_queued_bytes", "Bytes of requests that wait for a worker, over all models", queued),
        ("sconce_queued_bytes_limit", "How many may (--max-queued-bytes)", most),
        (
            "sconce_receive_budget_used_bytes",
            "Bytes of requests in memory that count for --receive-budget",
            receiving,
        ),
        ("sconce_receive_budget_limit_bytes", "How many there may be (--receive-budget)", receive_limit),
        ("sconce_send_budget_used_bytes", "Bytes of answers that their clients have not read yet", sending),
        ("sconce_send_budget_limit_bytes", "How many there may be (--send-budget)", send_limit),
    ] {
        text.family(name, "gauge", help);
        text.sample(name, &[], value);
    }
    let name = "sconce_log_lines_dropped_total";
    text.family(name, "counter", "Lines of the log that are lost because nobody read them in time");
    text.sample(name, &[], sources.logs.lost());
    devices(text, &sources.pool, &sources.memories);
    let (exported, dropped) = sources.tracer.counts();
    let name = "sconce_trace_spans_exported_total";
    text.family(name, "counter", "Spans that the collector of traces has taken");
    text.sample(name, &[], exported);
    let name = "sconce_trace_spans_dropped_total";
    text.family(name, "counter", "Spans that are lost, because the collector was away or slow");
    text.sample(name, &[], dropped);
}

pub(super) fn devices(text: &mut Text, pool: &Pool, memories: &Memories) {
    let devices: Vec<(String, DeviceStatus)> =
        pool.status().into_iter().map(|status| (status.device.to_string(), status)).collect();
    let name = "sconce_device_healthy";
    text.family(name, "gauge", "Whether the device can run anything");
    for (device, status) in &devices {
        text.sample(name, &[("device", device)], u8::from(status.healthy));
    }
    let name = "sconce_device_requests_in_flight";
    text.family(name, "gauge", "Requests of all models that are on the device");
    for (device, status) in &devices {
        text.sample(name, &[("device", device)], status.in_flight);
    }
    let known = |(device, status): &(String, DeviceStatus)| {
        memories.of(status.device).map(|memory| (device.clone(), memory))
    };
    let memory: Vec<_> = devices.iter().filter_map(known).collect();
    if !memory.is_empty() {
        let (used, total) = ("sconce_device_memory_used_bytes", "sconce_device_memory_total_bytes");
        text.family(used, "gauge", "Memory of the device that is in use, by any process");
        memory.iter().for_each(|(device, memory)| text.sample(used, &[("device", device)], memory.used));
        text.family(total, "gauge", "Memory that the device has");
        memory.iter().for_each(|(device, memory)| text.sample(total, &[("device", device)], memory.total));
    }
    let workers = || {
        devices
            .iter()
            .flat_map(|(device, status)| status.workers.iter().map(move |worker| (device.as_str(), worker)))
    };
    let name = "sconce_worker_busy_seconds_total";
    text.family(
        name,
        "counter",
        "How long the worker has been running models, runs that go on not counted in",
    );
    for (device, worker) in workers() {
        text.sample(name, &[("device", device), ("worker", &worker.name)], worker.busy.as_secs_f64());
    }
    let name = "sconce_worker_runs_total";
    text.family(name, "counter", "Runs that the worker has ended, those of warm-up too");
    for (device, worker) in workers() {
        text.sample(name, &[("device", device), ("worker", &worker.name)], worker.runs);
    }
}
