//! The process and its build, under the names that Prometheus' own clients have for them.

use std::fmt::Display;

use super::text::Text;

pub(super) fn write(text: &mut Text, runtime: &str) {
    let name = "sconce_build_info";
    text.family(name, "gauge", "Which build runs, by which runtime; always 1");
    text.sample(name, &[("version", env!("CARGO_PKG_VERSION")), ("runtime", runtime)], 1);
    let told = metrics_process::collector::collect();
    // With fractions, or a rate over a short time would be none, or that of a second.
    let name = "process_cpu_seconds_total";
    value(text, name, "counter", "Total user and system CPU time spent in seconds.", told.cpu_seconds_total);
    for (name, help, number) in [
        ("process_open_fds", "Number of open file descriptors.", told.open_fds),
        ("process_max_fds", "Maximum number of open file descriptors.", told.max_fds),
        ("process_virtual_memory_bytes", "Virtual memory size in bytes.", told.virtual_memory_bytes),
        (
            "process_virtual_memory_max_bytes",
            "Maximum amount of virtual memory available in bytes.",
            told.virtual_memory_max_bytes,
        ),
        ("process_resident_memory_bytes", "Resident memory size in bytes.", told.resident_memory_bytes),
        (
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            told.start_time_seconds,
        ),
        ("process_threads", "Number of OS threads in the process.", told.threads),
    ] {
        value(text, name, "gauge", help, number);
    }
}

/// What the system does not tell is left out.
fn value(text: &mut Text, name: &str, kind: &str, help: &str, value: Option<impl Display>) {
    if let Some(value) = value {
        text.family(name, kind, help);
        text.sample(name, &[], value);
    }
}
