//! What is counted, in Prometheus' words.

use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use sconce_engine::reconcile::{LOAD_DURATION, describe_metrics};

/// Upper bounds in seconds: a model of a few bytes, and one of many gigabytes from a slow disk.
const LOAD_BUCKETS: [f64; 13] = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Between two times that what was recorded is summed up: until then it takes memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// Records from now on, for the whole process.
pub(crate) fn start() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(LOAD_DURATION.to_owned()), &LOAD_BUCKETS)?
        .install_recorder()
        .context("metrics could not be set up")?;
    describe_metrics();
    Ok(handle)
}

/// Keeps what was recorded small, whether anybody asks for it or not.
pub(crate) async fn keep_up(handle: PrometheusHandle) {
    let mut interval = tokio::time::interval(UPKEEP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        handle.run_upkeep();
    }
}
