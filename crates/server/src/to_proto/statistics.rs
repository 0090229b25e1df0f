//! What is counted of versions, as Triton's ModelStatistics tells it.

use std::sync::Arc;

use sconce_engine::{
    Error, Version,
    model::LiveVersion,
    stats::{BatchCounts, Histogram, Reason, ResponseCounts},
    table::{Snapshot, State},
};
use sconce_proto::inference::{
    InferBatchStatistics, InferResponseStatistics, InferStatistics, ModelStatistics, ModelStatisticsResponse,
    StatisticDuration,
};

/// Of one version, of all versions of a model that serve, or of all that serve where no name is given.
///
/// # Errors
/// As [`Snapshot::find`], where a name is given.
pub(crate) fn model_statistics(
    snapshot: &Snapshot,
    name: &str,
    version: Option<Version>,
) -> Result<ModelStatisticsResponse, Error> {
    if !name.is_empty() {
        // Says why there is none.
        snapshot.find(name, version)?;
    }
    let routes = snapshot.routes.iter().filter(|(model, _)| name.is_empty() || &***model == name);
    let versions = routes.flat_map(|(_, route)| &route.versions);
    let serving = versions.filter_map(|(_, state)| match state {
        State::Ready(live) => Some(live),
        State::Loading | State::Unloading | State::Unavailable(_) => None,
    });
    let wanted = serving.filter(|live| version.is_none_or(|version| live.version == version));
    Ok(ModelStatisticsResponse { model_stats: wanted.map(statistics).collect() })
}

fn statistics(live: &Arc<LiveVersion>) -> ModelStatistics {
    let stats = live.stats();
    let success = stats.outcome(Reason::Ok);
    let (ended, all_time) = stats.duration.total();
    let success_time = stats.success_time.get();
    // Read one after the other while requests end: what was read first may be more.
    let fail = time(ended.saturating_sub(success), all_time.saturating_sub(success_time));
    ModelStatistics {
        name: live.model.to_string(),
        version: live.version.to_string(),
        last_inference: stats.last_came(),
        inference_count: stats.rows.get(),
        execution_count: stats.batch_rows.total().0,
        inference_stats: Some(InferStatistics {
            success: time(success, success_time),
            fail,
            queue: sum(&stats.queue),
            compute_input: sum(&stats.gather),
            compute_infer: sum(&stats.forward),
            compute_output: sum(&stats.scatter),
            // There is no cache.
            cache_hit: time(0, 0),
            cache_miss: time(0, 0),
        }),
        batch_stats: stats.batches().into_iter().map(batch).collect(),
        memory_usage: Vec::new(),
        response_stats: stats
            .by_response()
            .into_iter()
            .map(|(number, counts)| (number.to_string(), response(counts)))
            .collect(),
    }
}

fn time(count: u64, ns: u64) -> Option<StatisticDuration> {
    Some(StatisticDuration { count, ns })
}

fn sum(histogram: &Histogram) -> Option<StatisticDuration> {
    let (count, ns) = histogram.total();
    time(count, ns)
}

fn batch((batch_size, counts): (u64, BatchCounts)) -> InferBatchStatistics {
    InferBatchStatistics {
        batch_size,
        compute_input: time(counts.runs, counts.gather),
        compute_infer: time(counts.runs, counts.forward),
        compute_output: time(counts.runs, counts.scatter),
    }
}

fn response(counts: ResponseCounts) -> InferResponseStatistics {
    InferResponseStatistics {
        compute_infer: time(counts.success, counts.success_time),
        // An answer of a step is as it is made.
        compute_output: time(counts.success, 0),
        success: time(counts.success, counts.success_time),
        fail: time(counts.fail, counts.fail_time),
        empty_response: time(0, 0),
        cancel: time(counts.cancel, counts.cancel_time),
    }
}
