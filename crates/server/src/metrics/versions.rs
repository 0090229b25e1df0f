//! What is known of each version of a model.
//!
//! A counter with closed lists of labels is told with all of them, also where they are 0: who looks at how it grows
//! sees nothing of the first event of a series that begins with it.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use sconce_engine::{
    Version,
    model::LiveVersion,
    pool::ModelLoad,
    stats::{Counter, Histogram, LoadOutcome, LoadStats, Reason, UNLOADED, Unserved, VersionStats},
    table::State,
};

use super::{Sources, text::Text};
use crate::{models, status::code_name};

/// A version that has numbers, or a state.
pub(super) struct Row {
    pub(super) model: Arc<str>,
    pub(super) version: String,
    pub(super) stats: Option<Arc<VersionStats>>,
    /// Its state in the table, if it is there.
    state: Option<&'static str>,
    /// While it serves.
    pub(super) live: Option<Arc<LiveVersion>>,
    /// While it serves, or goes on for others.
    pub(super) load: Option<ModelLoad>,
    sequences: Option<usize>,
    generations: Option<usize>,
}

/// All versions of which anything is known, by model and version.
pub(super) fn rows(sources: &Sources) -> Vec<Row> {
    let snapshot = sources.table.snapshot();
    let mut rows: Vec<((Arc<str>, Version), Row)> = Vec::new();
    let row = |model: &Arc<str>, version: Version| Row {
        model: Arc::clone(model),
        version: version.to_string(),
        stats: None,
        state: None,
        live: None,
        load: None,
        sequences: None,
        generations: None,
    };
    for (model, route) in &snapshot.routes {
        for (version, state) in &route.versions {
            let live = match state {
                State::Ready(live) => Some(Arc::clone(live)),
                State::Loading | State::Unloading | State::Unavailable(_) => None,
            };
            let goes_on = live.clone().or_else(|| snapshot.retired(model, *version).cloned());
            let load = match (&live, state) {
                (Some(live), _) => Some(live.load()),
                (None, State::Unloading) => Some(sources.pool.runs_left(model, *version)),
                (None, _) => None,
            };
            rows.push((
                (Arc::clone(model), *version),
                Row {
                    state: Some(models::state(state)),
                    load,
                    sequences: goes_on.as_ref().and_then(|live| live.sequences()),
                    generations: goes_on.as_ref().and_then(|live| live.generations()),
                    live,
                    ..row(model, *version)
                },
            ));
        }
    }
    for (model, version, stats) in sources.pool.stats().versions() {
        let key = (model, version);
        match rows.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(index) => rows[index].1.stats = Some(stats),
            Err(index) => {
                let row = Row { stats: Some(stats), ..row(&key.0, version) };
                rows.insert(index, (key, row));
            }
        }
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

pub(super) fn write(text: &mut Text, sources: &Sources, rows: &[Row]) {
    requests(text, sources, rows);
    histograms(text, rows);
    now(text, rows);
    states(text, rows);
    problems(text, sources);
    loads(text, sources);
}

/// Those that have numbers.
pub(super) fn counted(rows: &[Row]) -> impl Iterator<Item = ([(&str, &str); 2], &VersionStats)> {
    rows.iter().filter_map(|row| Some((labels(row), row.stats.as_deref()?)))
}

pub(super) fn labels(row: &Row) -> [(&str, &str); 2] {
    [("model", &row.model), ("version", &row.version)]
}

fn requests(text: &mut Text, sources: &Sources, rows: &[Row]) {
    let name = "sconce_requests_total";
    text.family(name, "counter", "Requests for a version that have ended, by gRPC code and reason");
    for ([model, version], stats) in counted(rows) {
        for reason in Reason::ALL {
            let code = code_name(sources.codes.of_reason(reason));
            let labels = [model, version, ("code", code), ("reason", reason.name())];
            text.sample(name, &labels, stats.outcome(reason));
        }
    }
    unserved(text, sources, name);
    let name = "sconce_dropped_requests_total";
    text.family(name, "counter", "Requests that were given up, by cause and by where they were");
    for ([model, version], stats) in counted(rows) {
        for (cause, stage, count) in stats.dropped() {
            text.sample(name, &[model, version, ("cause", cause), ("stage", stage)], count);
        }
    }
    let counter = |text: &mut Text, name: &str, help: &str, of: fn(&VersionStats) -> &Counter| {
        text.family(name, "counter", help);
        counted(rows).for_each(|(labels, stats)| text.sample(name, &labels, of(stats).get()));
    };
    counter(text, "sconce_request_bytes_total", "Bytes of tensors of requests", |stats| &stats.request_bytes);
    counter(text, "sconce_response_bytes_total", "Bytes of tensors of answers", |stats| {
        &stats.response_bytes
    });
    counter(text, "sconce_responses_total", "Answers made of requests that have many", |stats| {
        &stats.responses
    });
}

fn histograms(text: &mut Text, rows: &[Row]) {
    type Of = fn(&VersionStats) -> &Histogram;
    let all: [(&str, &str, Of); 5] = [
        (
            "sconce_request_duration_seconds",
            "From a request's coming to its end, whatever that is",
            |stats| &stats.duration,
        ),
        ("sconce_queue_duration_seconds", "How long requests waited for a worker", |stats| &stats.queue),
        (
            "sconce_gather_duration_seconds",
            "How long batches took to be joined to one call, for each request",
            |stats| &stats.gather,
        ),
        ("sconce_forward_duration_seconds", "How long the model took, for each request", |stats| {
            &stats.forward
        }),
        (
            "sconce_scatter_duration_seconds",
            "How long answers took to be divided, for each request",
            |stats| &stats.scatter,
        ),
    ];
    for (name, help, of) in all {
        text.family(name, "histogram", help);
        counted(rows).for_each(|(labels, stats)| text.durations(name, &labels, &of(stats).counts()));
    }
    // Only models that answer step by step have these.
    let many: [(&str, &str, Of); 2] = [
        (
            "sconce_first_response_duration_seconds",
            "From a request's coming to the first of its answers",
            |stats| &stats.first_response,
        ),
        ("sconce_response_interval_seconds", "Between two answers to one request", |stats| {
            &stats.response_interval
        }),
    ];
    for (name, help, of) in many {
        text.family(name, "histogram", help);
        let has = |stats: &VersionStats| stats.responses.get() > 0;
        counted(rows)
            .filter(|(_, stats)| has(stats))
            .for_each(|(labels, stats)| text.durations(name, &labels, &of(stats).counts()));
    }
    let name = "sconce_batch_rows";
    text.family(name, "histogram", "Rows of runs; its count is that of runs");
    counted(rows).for_each(|(labels, stats)| text.histogram(name, &labels, &stats.batch_rows.counts(), 1.0));
}

fn now(text: &mut Text, rows: &[Row]) {
    let of_load = |text: &mut Text, name: &str, help: &str, of: fn(&ModelLoad) -> usize| {
        text.family(name, "gauge", help);
        for row in rows {
            if let Some(load) = &row.load {
                text.sample(name, &labels(row), of(load));
            }
        }
    };
    of_load(text, "sconce_queued_requests", "Requests that wait for a worker", |load| load.queued);
    of_load(text, "sconce_queued_request_bytes", "Their bytes", |load| load.queued_bytes);
    of_load(text, "sconce_running_runs", "Runs that are on workers", |load| load.running);
    of_load(text, "sconce_hung_runs", "Runs that are not expected to end", |load| load.hung);
    let of_row = |text: &mut Text, name: &str, help: &str, of: fn(&Row) -> Option<usize>| {
        text.family(name, "gauge", help);
        for row in rows {
            if let Some(count) = of(row) {
                text.sample(name, &labels(row), count);
            }
        }
    };
    of_row(text, "sconce_sequences", "Sequences that go on", |row| row.sequences);
    of_row(text, "sconce_generations", "Requests that are being answered step by step", |row| {
        row.generations
    });
}

/// All models that are known, and the numbers of those that have any.
fn known_models(sources: &Sources) -> BTreeMap<Arc<str>, Option<Arc<LoadStats>>> {
    let snapshot = sources.table.snapshot();
    let mut models: BTreeMap<_, _> = snapshot.routes.keys().map(|model| (Arc::clone(model), None)).collect();
    models.extend(sources.pool.stats().loads().into_iter().map(|(model, stats)| (model, Some(stats))));
    models
}

/// Requests for models no version of which served: they have no version.
fn unserved(text: &mut Text, sources: &Sources, name: &str) {
    let codes = [sources.codes.of_no_version(), sources.codes.of_reason(Reason::NotReady)].map(code_name);
    let counts = |of: &Unserved| [of.no_version.get(), of.not_ready.get()];
    for (model, stats) in known_models(sources) {
        let (unserved, unloaded) =
            stats.map_or_else(Default::default, |stats| (counts(&stats.unserved), counts(&stats.unloaded)));
        for (reason, counts) in [(Reason::NotReady.name(), unserved), (UNLOADED, unloaded)] {
            for (code, count) in codes.into_iter().zip(counts) {
                let labels = [("model", &*model), ("version", ""), ("code", code), ("reason", reason)];
                text.sample(name, &labels, count);
            }
        }
    }
}

fn problems(text: &mut Text, sources: &Sources) {
    let name = "sconce_model_problem";
    text.family(
        name,
        "gauge",
        "1 while something is wrong with the model as a whole, such as its configuration",
    );
    for (model, route) in &sources.table.snapshot().routes {
        text.sample(name, &[("model", model)], u8::from(route.problem.is_some()));
    }
}

fn states(text: &mut Text, rows: &[Row]) {
    let name = "sconce_model_version_state";
    text.family(name, "gauge", "1 for the state in which the version is, 0 for the others");
    for row in rows {
        let Some(is) = row.state else { continue };
        let [model, version] = labels(row);
        for state in ["READY", "LOADING", "UNLOADING", "UNAVAILABLE"] {
            text.sample(name, &[model, version, ("state", state)], u8::from(is == state));
        }
    }
    let name = "sconce_model_version_info";
    text.family(name, "gauge", "Which bytes serve; always 1");
    let serving = || rows.iter().filter_map(|row| Some((labels(row), row.live.as_ref()?)));
    for ([model, version], live) in serving() {
        let digest = live.digest.map(|digest| digest.to_string()).unwrap_or_default();
        text.sample(name, &[model, version, ("sha256", &digest)], 1);
    }
    let name = "sconce_model_version_loaded_timestamp_seconds";
    text.family(name, "gauge", "When the version was loaded, in seconds since 1970");
    for (labels, live) in serving() {
        let since = live.loaded_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        text.sample(name, &labels, since.as_secs_f64());
    }
}

fn loads(text: &mut Text, sources: &Sources) {
    let all = known_models(sources);
    let name = "sconce_model_loads_total";
    text.family(name, "counter", "Attempts to load a version, by outcome and the step that failed");
    for (model, loads) in &all {
        for outcome in LoadOutcome::ALL {
            let labels = [("model", &**model), ("outcome", outcome.name()), ("step", outcome.step())];
            text.sample(name, &labels, loads.as_ref().map_or(0, |loads| loads.outcome(outcome)));
        }
    }
    let name = "sconce_model_load_duration_seconds";
    text.family(name, "histogram", "From the first byte that was read to the last run before it serves");
    let loaded = all.iter().filter_map(|(model, loads)| Some((model, loads.as_ref()?)));
    for (model, loads) in loaded.filter(|(_, loads)| loads.duration.total().0 > 0) {
        text.durations(name, &[("model", model)], &loads.duration.counts());
    }
}
