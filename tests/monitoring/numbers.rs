//! The numbers are those that callers counted, exactly.

use super::{
    exercise::{
        Exercised, GENERATIONS, GOOD, LATE, LEFT, ODD, REFUSED, SEQUENCES, STEPS, THROWN, UNKNOWN, WRONG,
    },
    exposition::{Exposition, Sample},
};
use crate::{
    changes::eventually,
    harness::{Repo, Server},
};

/// Bytes of a row of the fixture's models.
const ROW: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_as_their_callers_counted_them() {
    let exercised = Exercised::start().await;
    let metrics = exercised.metrics();
    let is = |name: &str, labels: &[(&str, &str)], count: usize| {
        assert_eq!(metrics.sum(name, labels), count as f64, "{name} {labels:?} in {}", metrics.text);
    };
    let ended = |model: &str, code: &str, reason: &str, count| {
        let labels = [("model", model), ("version", "1"), ("code", code), ("reason", reason)];
        is("sconce_requests_total", &labels, count);
    };
    ended("echo", "OK", "ok", GOOD);
    ended("echo", "INVALID_ARGUMENT", "invalid_input", WRONG);
    ended(ODD, "OK", "ok", 1);
    ended("throws", "INTERNAL", "model_error", THROWN);
    ended("endless", "DEADLINE_EXCEEDED", "deadline", LATE);
    ended("endless", "RESOURCE_EXHAUSTED", "queue_full", REFUSED);
    ended("endless", "CANCELLED", "cancelled", LEFT);
    ended("sums", "OK", "ok", 3 * SEQUENCES);
    ended("counts", "OK", "ok", GENERATIONS);
    // And nothing else was.
    let all = Exercised::told().values().sum::<usize>() - UNKNOWN + GENERATIONS;
    is("sconce_requests_total", &[], all);
    is("sconce_request_duration_seconds_count", &[], all);
    is("sconce_request_duration_seconds_bucket", &[("le", "+Inf")], all);

    for (code, count) in Exercised::told() {
        is("sconce_rpcs_total", &[("method", "ModelInfer"), ("code", code)], count);
    }
    is("sconce_rpcs_total", &[("method", "ModelStreamInfer"), ("code", "OK")], 1);
    is("sconce_rpcs_total", &[], Exercised::told().values().sum::<usize>() + 1);
    is("sconce_rpc_duration_seconds_count", &[], Exercised::told().values().sum::<usize>() + 1);

    let given_up = |cause, stage, count| {
        let labels = [("model", "endless"), ("cause", cause), ("stage", stage)];
        is("sconce_dropped_requests_total", &labels, count);
    };
    given_up("deadline", "queued", LATE);
    given_up("cancelled", "queued", LEFT);
    is("sconce_dropped_requests_total", &[], LATE + LEFT);
}

/// The first event of a kind is one more for Prometheus only if there was a 0 to be scraped.
#[test]
fn what_has_not_happened_yet_is_told_as_0() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    repo.identity("wrong/1/model.pt");
    repo.file("wrong/config.yaml", "max_batch_size: [");
    let server = Server::start_with(repo.path(), &["--cpu-workers", "2"]);
    let metrics = Exposition::of(&server);
    let zeros = |name: &str, labels: &[(&str, &str)], count: usize| {
        let values: Vec<f64> = metrics.samples(name, labels).iter().map(|sample| sample.value).collect();
        assert_eq!(values, vec![0.0; count], "{name} {labels:?} in {}", metrics.text);
    };
    let version = [("model", "echo"), ("version", "1")];
    zeros("sconce_requests_total", &version, 13);
    zeros("sconce_dropped_requests_total", &version, 3 * 2);
    for model in ["echo", "wrong"] {
        zeros("sconce_requests_total", &[("model", model), ("version", "")], 2 * 2);
        zeros("sconce_model_loads_total", &[("model", model), ("outcome", "failed")], 4);
    }
    zeros("sconce_model_loads_total", &[("model", "wrong")], 3 + 4);
    zeros("sconce_rpcs_total", &[], 18 * 17);
    for name in [
        "sconce_log_lines_dropped_total",
        "sconce_trace_spans_dropped_total",
        "sconce_trace_spans_exported_total",
    ] {
        zeros(name, &[], 1);
    }
    let all: Vec<&Sample> = metrics.families.values().flat_map(|family| &family.samples).collect();
    let is = |sample: &Sample| {
        version.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|is| is == value))
    };
    let of_version = all.iter().filter(|sample| is(sample)).count();
    assert!((120..140).contains(&of_version), "README.md says about 130, and there are {of_version}");
    let of_server = all.iter().filter(|sample| !sample.labels.contains_key("model")).count();
    assert!((300..360).contains(&of_server), "README.md says about 330, and there are {of_server}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_runs_stages_and_bytes_are_those_of_the_requests() {
    let exercised = Exercised::start().await;
    let metrics = exercised.metrics();
    let sum = |name: &str, model: &str| metrics.sum(name, &[("model", model)]);
    let rows = Exercised::rows();
    assert_eq!(sum("sconce_batch_rows_sum", "echo"), rows as f64, "{}", metrics.text);
    assert_eq!(sum("sconce_batch_rows_count", "echo"), GOOD as f64, "one after the other, each is a run");
    for stage in ["queue", "gather", "forward", "scatter"] {
        let count = sum(&format!("sconce_{stage}_duration_seconds_count"), "echo");
        assert_eq!(count, GOOD as f64, "{stage} of what was run");
        let whole = sum("sconce_request_duration_seconds_sum", "echo");
        let part = sum(&format!("sconce_{stage}_duration_seconds_sum"), "echo");
        assert!(part <= whole, "{stage} takes {part} of {whole}");
    }
    assert_eq!(sum("sconce_response_bytes_total", "echo"), (rows * ROW) as f64);
    assert_eq!(sum("sconce_request_bytes_total", "echo"), ((rows + 9 * WRONG) * ROW) as f64);
    assert_eq!(sum("sconce_responses_total", "counts"), (GENERATIONS * STEPS) as f64);
    assert_eq!(sum("sconce_first_response_duration_seconds_count", "counts"), GENERATIONS as f64);
    let between = GENERATIONS * (STEPS - 1);
    assert_eq!(sum("sconce_response_interval_seconds_count", "counts"), between as f64);
    assert_eq!(sum("sconce_first_response_duration_seconds_count", "echo"), 0.0, "it answers at once");
    assert_eq!(sum("sconce_running_runs", "endless"), 1.0);
    for gauge in
        ["sconce_queued_requests", "sconce_queued_request_bytes", "sconce_sequences", "sconce_generations"]
    {
        assert_eq!(metrics.sum(gauge, &[]), 0.0, "{gauge}");
    }
    let runs: f64 = metrics.samples("sconce_batch_rows_count", &[]).iter().map(|s| s.value).sum();
    assert!(metrics.sum("sconce_worker_runs_total", &[]) >= runs, "workers did them all: {}", metrics.text);
}

/// In parts of a second: whole ones say nothing of a rate over a minute.
#[tokio::test]
async fn processor_time_has_fractions() {
    let repo = Repo::new();
    repo.identity("echo/1/model.pt");
    let server = Server::start(repo.path());
    let before = Exposition::of(&server).sum("process_cpu_seconds_total", &[]);
    eventually(&server, "it has used a part of a second", async || {
        let now = Exposition::of(&server).sum("process_cpu_seconds_total", &[]);
        (now > before && now.fract() > 0.0).then_some(())
    })
    .await;
    assert_eq!(Exposition::of(&server).families["process_cpu_seconds_total"].kind, "counter");
}

#[tokio::test(flavor = "multi_thread")]
async fn states_and_loads_are_those_of_the_index() {
    let exercised = Exercised::start().await;
    let metrics = exercised.metrics();
    let state = |model: &str, state: &str| {
        metrics.sum("sconce_model_version_state", &[("model", model), ("version", "1"), ("state", state)])
    };
    for state_of in ["READY", "LOADING", "UNLOADING", "UNAVAILABLE"] {
        assert_eq!(state("echo", state_of), f64::from(u8::from(state_of == "READY")), "{state_of}");
    }
    assert_eq!((state("broken", "UNAVAILABLE"), state("broken", "READY")), (1.0, 0.0));
    let told: serde_json::Value =
        serde_json::from_str(&exercised.server.get("/models/echo").1).expect("JSON");
    let digest = told["versions"][0]["sha256"].as_str().expect("a digest");
    let infos = metrics.samples("sconce_model_version_info", &[("model", "echo")]);
    assert_eq!(infos.iter().map(|info| &*info.labels["sha256"]).collect::<Vec<_>>(), [digest]);
    assert!(metrics.samples("sconce_model_version_info", &[("model", "broken")]).is_empty());
    let loads = |labels: &[(&str, &str)]| metrics.sum("sconce_model_loads_total", labels);
    assert_eq!(loads(&[("model", "echo"), ("outcome", "loaded"), ("step", "")]), 1.0);
    assert!(loads(&[("model", "broken"), ("outcome", "failed")]) >= 1.0);
    assert_eq!(loads(&[("model", "broken"), ("outcome", "loaded")]), 0.0);
    assert_eq!(metrics.sum("sconce_model_load_duration_seconds_count", &[("model", "echo")]), 1.0);
    assert_eq!((metrics.sum("sconce_ready", &[]), metrics.sum("sconce_live", &[])), (1.0, 1.0));
    assert_eq!(metrics.sum("sconce_connections", &[]), 1.0);
    for (used, limit) in [
        ("sconce_queued_bytes", "sconce_queued_bytes_limit"),
        ("sconce_receive_budget_used_bytes", "sconce_receive_budget_limit_bytes"),
        ("sconce_send_budget_used_bytes", "sconce_send_budget_limit_bytes"),
    ] {
        assert!(metrics.sum(used, &[]) < metrics.sum(limit, &[]), "{used}");
    }
}
