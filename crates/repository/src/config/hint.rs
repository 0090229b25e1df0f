//! What somebody who wrote something else most likely meant.

use crate::{
    DataType,
    escape::{list, one_line},
};

/// Fields by other names, mostly Triton's, with ours.
pub(super) const YAML_RENAMED: &[(&str, &str)] = &[
    ("input", "inputs"),
    ("output", "outputs"),
    ("data_type", "dtype"),
    ("datatype", "dtype"),
    ("type", "dtype"),
    ("dims", "shape"),
    ("dim", "shape"),
    ("instance_group", "instances"),
    ("instance_groups", "instances"),
    ("kind", "device"),
    ("version_policy", "versions"),
    ("version", "versions"),
    ("num_versions", "latest"),
    ("default_model_filename", "model_file"),
    ("default_model_name", "model_file"),
    ("filename", "model_file"),
    ("label_filename", "labels"),
    ("batch_size", "max_batch_size"),
    ("max_batch", "max_batch_size"),
    ("num_threads", "threads"),
    ("intra_op_thread_count", "threads"),
    ("INTRA_OP_THREAD_COUNT", "threads"),
    ("INFERENCE_MODE", "inference_mode"),
    ("model_operations", "op_libraries"),
    ("op_library_filename", "op_libraries"),
    ("optimization", "optimize"),
    ("backend", "platform"),
    ("model_warmup", "warmup"),
    ("warm_up", "warmup"),
    ("warmups", "warmup"),
    ("AVAILABILITY", "availability"),
    ("input_data_file", "file"),
    ("path", "file"),
    ("dynamic_batching", "batching"),
    ("BATCHING", "batching"),
    ("preferred_batch_size", "preferred_sizes"),
    ("preferred_batch_sizes", "preferred_sizes"),
    ("max_queue_delay_microseconds", "max_delay"),
    ("max_queue_delay", "max_delay"),
    ("delay", "max_delay"),
    ("max_wait", "max_delay"),
    ("ALLOWED_SIZES", "allowed_sizes"),
    ("allowed_batch_sizes", "allowed_sizes"),
    ("LATENCY_TARGET", "latency_target"),
    ("default_queue_policy", "queue"),
    ("queue_policy", "queue"),
    ("priority_queue_policy", "levels"),
    ("priorities", "priority_levels"),
    ("default_priority_level", "default_priority"),
    ("max_queue_size", "max_size"),
    ("default_timeout_microseconds", "timeout"),
    ("timeout_action", "on_timeout"),
    ("WEIGHT", "weight"),
    ("PAD", "pad"),
    ("padding", "pad"),
    ("pad_value", "pad"),
    ("MASK", "mask_of"),
    ("mask", "mask_of"),
    ("UNPAD", "unpad"),
    ("allow_ragged_batch", "ragged"),
    ("is_ragged", "ragged"),
    ("batch_input", "batch_inputs"),
    ("target_name", "name"),
    ("lengths_of", "counts_of"),
    ("sizes_of", "counts_of"),
    ("scatter", "scatter_like"),
    ("sequence_batching", "sequence"),
    ("sequences", "sequence"),
    ("max_candidate_sequences", "max_sequences"),
    ("max_sequence_idle_microseconds", "idle_timeout"),
    ("idle", "idle_timeout"),
    ("backlog", "max_waiting"),
    ("control_input", "controls"),
    ("control", "controls"),
    ("state", "states"),
    ("input_name", "input"),
    ("output_name", "output"),
    ("initial_state", "initial"),
    ("data_file", "file"),
    ("zero_data", "initial"),
    ("corrid", "correlation_id"),
    ("CORRID", "correlation_id"),
    ("sequence_id", "correlation_id"),
    ("CONTROL_SEQUENCE_START", "start"),
    ("CONTROL_SEQUENCE_END", "end"),
    ("CONTROL_SEQUENCE_READY", "ready"),
    ("CONTROL_SEQUENCE_CORRID", "correlation_id"),
    ("false_true", "values"),
    ("int32_false_true", "values"),
    ("fp32_false_true", "values"),
    ("bool_false_true", "values"),
    ("generation", "generate"),
    ("GENERATE_STATES", "states"),
    ("GENERATE_FEED", "feed"),
    ("GENERATE_SEND", "send"),
    ("GENERATE_STOP_FLAG", "flag"),
    ("GENERATE_STOP_VALUE", "value"),
    ("GENERATE_MAX_STEPS", "max_steps"),
    ("GENERATE_COLLECT", "collect"),
    ("max_tokens", "max_steps"),
    ("max_length", "max_steps"),
    ("eos", "value"),
];

/// Triton's fields that have no counterpart, and what to do.
pub(super) const YAML_ABSENT: &[(&str, &str)] = &[
    ("ensemble_scheduling", "is not a field yet: ensembles are not served"),
    (
        "parameters",
        "is not a field: write `threads`, `inference_mode` or `optimized_execution` at the top level",
    ),
    ("response_cache", "is not a field yet: answers are not cached"),
    (
        "rate_limiter",
        "is not a field: `instances` says how many runs at once, and `weight` how models share a device",
    ),
    ("metric_tags", "is not a field yet: leave it out"),
    ("model_transaction_policy", "is not a field: a model with `generate` is decoupled, others are not"),
    ("decoupled", "is not a field: a model with `generate` is decoupled, others are not"),
    ("iterative_sequence", "is not served: a model that answers step by step has `generate`"),
    ("oldest", "is not a field: write `strategy: oldest`, and its fields beside it"),
    ("direct", "is not a field: write `strategy: direct`, and its fields beside it"),
    ("minimum_slot_utilization", "is not a field: leave it out, `max_delay` says how long a run waits"),
    ("use_same_buffer_for_input_output", "is not a field: leave it out, the server places what it keeps"),
    ("use_growable_memory", "is not a field: leave it out, the server places what it keeps"),
    ("zero_data", "is Triton's name: write `data: zero`"),
    ("random_data", "is Triton's name: write `data: random`"),
    ("input_data_file", "is Triton's name: write `data: {file: x.bin}`"),
    ("rolling_update", "is not a field: write `availability: keep`, which is the default, or `replace`"),
    ("format", "is not a field: leave it out, `shape` says all"),
    ("batch_output", "is not a field: write `scatter_like: x` in an entry of `outputs`"),
    ("source_input", "is Triton's name: write what the input tells, and of which, such as `ends_of: x`"),
    ("DISABLE_OPTIMIZED_EXECUTION", "is Triton's name: write `optimized_execution: false`"),
];

/// Our fields, or Triton's, that somebody wrote in a place where they do not belong.
pub(super) const YAML_ELSEWHERE: &[(&str, &str)] = &[
    ("labels", "an entry of `outputs`"),
    ("optional", "an entry of `inputs`"),
    ("reshape", "an entry of `inputs` or `outputs`"),
    ("pad", "an entry of `inputs`"),
    ("mask_of", "an entry of `inputs`"),
    ("unpad", "an entry of `outputs`"),
    ("ragged", "an entry of `inputs`"),
    ("allow_ragged_batch", "an entry of `inputs`, as `ragged: true`"),
    ("scatter_like", "an entry of `outputs`"),
    ("batch_inputs", "the top level"),
    ("counts_of", "an entry of `batch_inputs`"),
    ("ends_of", "an entry of `batch_inputs`"),
    ("offsets_of", "an entry of `batch_inputs`"),
    ("longest_of", "an entry of `batch_inputs`"),
    ("shapes_of", "an entry of `batch_inputs`"),
    ("flat_shapes_of", "an entry of `batch_inputs`"),
    ("dtype", "an entry of `inputs` or `outputs`"),
    ("shape", "an entry of `inputs` or `outputs`"),
    ("device", "an entry of `instances`"),
    ("count", "an entry of `instances`"),
    ("gpus", "an entry of `instances`"),
    ("latest", "`versions`"),
    ("specific", "`versions`"),
    ("data", "a tensor of a sample in `warmup`"),
    ("file", "`data` of a tensor in `warmup`"),
    ("samples", "`warmup` itself, which is a list of samples"),
    ("max_delay", "`batching`"),
    ("preferred_sizes", "`batching`"),
    ("preserve_ordering", "`batching`"),
    ("allowed_sizes", "`batching`"),
    ("latency_target", "`batching`"),
    ("max_size", "`queue`"),
    ("timeout", "`queue`"),
    ("on_timeout", "`queue`"),
    ("allow_timeout_override", "`queue`"),
    ("priority_levels", "`queue`"),
    ("default_priority", "`queue`"),
    ("levels", "`queue`"),
    ("strategy", "`sequence`"),
    ("max_sequences", "`sequence`"),
    ("max_waiting", "`sequence`"),
    ("idle_timeout", "`sequence`"),
    ("controls", "`sequence`"),
    ("start", "`controls` in `sequence`"),
    ("end", "`controls` in `sequence`"),
    ("ready", "`controls` in `sequence`"),
    ("correlation_id", "`controls` in `sequence`"),
    ("values", "a control in `sequence`"),
    ("states", "`sequence` or `generate`"),
    ("initial", "a state in `sequence`"),
    ("initial_shape", "a state in `sequence`"),
    ("feed", "`generate`"),
    ("send", "`generate`"),
    ("stop", "`generate`"),
    ("max_steps", "`generate`"),
    ("collect", "`generate`"),
    ("flag", "`stop` in `generate`"),
    ("stop_flag", "`stop` in `generate`, as `flag: done`"),
    ("stop_value", "`stop` in `generate`, as `value: 0`"),
    ("value", "`stop` in `generate`"),
    ("sequence", "the top level"),
    ("generate", "the top level"),
    ("batching", "the top level"),
    ("queue", "the top level"),
    ("weight", "the top level"),
    ("max_queue_delay_microseconds", "`batching`, as `max_delay: 2ms`"),
    ("preferred_batch_size", "`batching`, as `preferred_sizes: [8]`"),
    ("default_queue_policy", "the top level, as `queue: {max_size: 100}`"),
    ("priority_queue_policy", "`queue`, as `levels: {1: {max_size: 10}}`"),
    ("default_priority_level", "`queue`, as `default_priority: 1`"),
    ("max_queue_size", "`queue`, as `max_size: 100`"),
    ("default_timeout_microseconds", "`queue`, as `timeout: 100ms`"),
    ("timeout_action", "`queue`, as `on_timeout: reject`"),
];

/// Our fields, and common slips, with Triton's name for them.
pub(super) const TRITON_RENAMED: &[(&str, &str)] = &[
    ("inputs", "input"),
    ("outputs", "output"),
    ("dtype", "data_type"),
    ("datatype", "data_type"),
    ("shape", "dims"),
    ("instances", "instance_group"),
    ("device", "kind"),
    ("versions", "version_policy"),
    ("model_file", "default_model_filename"),
    ("default_model_name", "default_model_filename"),
    ("labels", "label_filename"),
    ("max_batch", "max_batch_size"),
    ("warmup", "model_warmup"),
    ("availability", "parameters"),
    ("file", "input_data_file"),
    ("batching", "dynamic_batching"),
    ("queue", "dynamic_batching"),
    ("max_delay", "max_queue_delay_microseconds"),
    ("preferred_sizes", "preferred_batch_size"),
    ("default_priority", "default_priority_level"),
    ("levels", "priority_queue_policy"),
    ("max_size", "max_queue_size"),
    ("timeout", "default_timeout_microseconds"),
    ("on_timeout", "timeout_action"),
    ("weight", "parameters"),
    ("allowed_sizes", "parameters"),
    ("latency_target", "parameters"),
    ("pad", "parameters"),
    ("mask_of", "parameters"),
    ("unpad", "parameters"),
    ("ragged", "allow_ragged_batch"),
    ("batch_inputs", "batch_input"),
    ("scatter_like", "batch_output"),
    ("source", "source_input"),
    ("sequence", "sequence_batching"),
    ("max_sequences", "max_candidate_sequences"),
    ("idle_timeout", "max_sequence_idle_microseconds"),
    ("controls", "control_input"),
    ("states", "state"),
    ("initial", "initial_state"),
    ("input", "input_name"),
    ("output", "output_name"),
    ("file", "data_file"),
    ("generate", "parameters"),
];

/// Says what an unknown field most likely means, given the names that are known in its place.
pub(super) fn field(name: &str, known: &[&str], renamed: &[(&str, &str)]) -> String {
    let shown = one_line(name);
    let by_table = lookup(renamed, name).filter(|meant| known.contains(meant));
    if let Some(meant) = by_table.or_else(|| nearest(name, known)) {
        return format!("unknown field `{shown}`: write `{meant}`");
    }
    format!("unknown field `{shown}`: expected {}", one_of(known))
}

/// Says what a word that is not one of these most likely means.
pub(super) fn word(word: &str, known: &[&str]) -> String {
    let shown = one_line(word);
    match nearest(word, known) {
        Some(meant) => format!("unknown value `{shown}`: write `{meant}`"),
        None if word.is_empty() => format!("nothing is written here: expected {}", one_of(known)),
        None => format!("unknown value `{shown}`: expected {}", one_of(known)),
    }
}

/// As [`field`], for YAML, which also has names that are known but not here.
pub(super) fn yaml_field(name: &str, known: &[&str]) -> String {
    let renamed = lookup(YAML_RENAMED, name).is_some_and(|meant| known.contains(&meant));
    if !renamed {
        if let Some(what) = lookup(YAML_ABSENT, name) {
            return format!("`{name}` {what}");
        }
        if let Some(place) = lookup(YAML_ELSEWHERE, name) {
            return format!("unknown field `{name}`: it belongs to {place}");
        }
    }
    field(name, known, YAML_RENAMED)
}

fn lookup<'a>(table: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    table.iter().find(|(from, _)| *from == name).map(|(_, to)| *to)
}

/// The alternatives as a sentence's end.
pub(super) fn one_of(names: &[&str]) -> String {
    let quoted = names.iter().map(|name| format!("`{name}`"));
    if names.len() == 1 { list(quoted) } else { format!("one of {}", list(quoted)) }
}

/// The known name that is a typing error away, if one is.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // A third of the letters may be wrong; a name that needs more than that was meant otherwise.
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    let close = known.iter().map(|candidate| (distance(name, candidate), *candidate));
    close.filter(|(distance, _)| *distance <= allowed).min().map(|(_, candidate)| candidate)
}

/// How many letters must be inserted, removed, replaced, or swapped with the next one.
fn distance(left: &str, right: &str) -> usize {
    let [left, right] = [left, right].map(|name| name.to_lowercase().chars().collect::<Vec<_>>());
    // Also bounds the work: a name that is much longer than any of ours is none of them.
    if left.len().abs_diff(right.len()) > 3 {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    rows[0] = (0..=right.len()).collect();
    for i in 1..=left.len() {
        rows[i][0] = i;
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            rows[i][j] = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                rows[i][j] = rows[i][j].min(rows[i - 2][j - 2] + 1);
            }
        }
    }
    rows[left.len()][right.len()]
}

/// What to write instead of a data type that is not spelled as the protocol does.
pub(super) fn data_type(name: &str) -> String {
    let shown = one_line(name);
    match meant_data_type(name) {
        Some(meant) => format!("unknown data type `{shown}`: write {meant}"),
        None => {
            let names = DataType::ALL.map(DataType::name).join(", ");
            format!("unknown data type `{shown}`: expected one of {names}")
        }
    }
}

/// The data type that Triton, torch, numpy or C call by this name.
pub(super) fn meant_data_type(name: &str) -> Option<DataType> {
    let lower = name.trim().to_lowercase();
    let bare = ["type_", "torch.", "np.", "numpy."].iter().find_map(|prefix| lower.strip_prefix(prefix));
    let bare = bare.unwrap_or(&lower);
    let by_name = DataType::from_name(&bare.to_uppercase());
    by_name.or(match bare {
        "boolean" => Some(DataType::Bool),
        "byte" => Some(DataType::Uint8),
        "char" => Some(DataType::Int8),
        "short" => Some(DataType::Int16),
        "int" => Some(DataType::Int32),
        "long" => Some(DataType::Int64),
        "half" | "float16" => Some(DataType::Fp16),
        "bfloat16" => Some(DataType::Bf16),
        "float" | "float32" => Some(DataType::Fp32),
        "double" | "float64" => Some(DataType::Fp64),
        "str" | "string" => Some(DataType::Bytes),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENSOR: [&str; 5] = ["name", "dtype", "shape", "reshape", "optional"];

    #[test]
    fn names_of_triton_lead_to_ours() {
        assert_eq!(yaml_field("data_type", &TENSOR), "unknown field `data_type`: write `dtype`");
        assert_eq!(yaml_field("dims", &TENSOR), "unknown field `dims`: write `shape`");
        assert!(yaml_field("ensemble_scheduling", &["inputs"]).contains("is not a field yet"));
        assert!(yaml_field("sequence_batching", &["inputs", "sequence"]).ends_with("write `sequence`"));
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        assert_eq!(yaml_field("shpae", &TENSOR), "unknown field `shpae`: write `shape`");
        assert_eq!(yaml_field("Name", &TENSOR), "unknown field `Name`: write `name`");
    }

    #[test]
    fn a_name_that_is_known_elsewhere_says_where() {
        assert_eq!(
            yaml_field("labels", &TENSOR),
            "unknown field `labels`: it belongs to an entry of `outputs`"
        );
    }

    #[test]
    fn a_name_like_nothing_lists_what_there_is() {
        assert_eq!(
            yaml_field("zzzzzzzz", &["a", "b", "c"]),
            "unknown field `zzzzzzzz`: expected one of `a`, `b` and `c`"
        );
    }

    #[test]
    fn data_types_are_known_by_many_names() {
        for (name, meant) in [
            ("TYPE_FP32", "FP32"),
            ("float32", "FP32"),
            ("torch.float16", "FP16"),
            ("np.int64", "INT64"),
            ("TYPE_STRING", "BYTES"),
            ("bfloat16", "BF16"),
            ("bool", "BOOL"),
        ] {
            assert_eq!(data_type(name), format!("unknown data type `{name}`: write {meant}"));
        }
        assert!(data_type("complex64").contains("expected one of BOOL, UINT8"));
    }
}
