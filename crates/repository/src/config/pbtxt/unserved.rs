//! What Triton's schema can say and Sconce does not serve.
//!
//! A field is ignored, with a note, only when that cannot change an answer. Everything else that is
//! not served is refused by name: a model must not answer wrongly because a line was skipped.

use prost_reflect::{DynamicMessage, ReflectMessage};

use super::{super::error::Fault, generate, read};

/// Fields of the whole model that are refused, and why.
const REFUSED: &[(&str, &str)] = &[
    ("ensemble_scheduling", "ensembles are not served yet: serve each model on its own"),
    ("cc_model_filenames", "one file per GPU architecture is not served: give one `default_model_filename`"),
    (
        "model_repository_agents",
        "agents are not run, so what they would check or change would be skipped: remove it",
    ),
    ("runtime", "only libtorch runs models here, with no Python: remove it"),
];

/// Fields of the whole model that are accepted, and why they have no effect.
const IGNORED: &[(&str, &str)] = &[
    ("optimization", "the server chooses how to run the model"),
    ("response_cache", "answers are not cached"),
    ("metric_tags", "there are no metrics yet"),
    ("model_metrics", "there are no metrics yet"),
];

/// Refuses what is not served; what may be ignored is added to the notes.
pub(super) fn check(message: &DynamicMessage, notes: &mut Vec<String>) -> Result<(), Fault> {
    for (field, why) in REFUSED {
        if read::is_set(message, field) {
            return Err(Fault::at(*field, *why));
        }
    }
    if read::message(message, "model_transaction_policy")
        .is_some_and(|policy| read::flag(policy, "decoupled"))
        && !generate::is_there(message)
    {
        return Err(Fault::at(
            "model_transaction_policy.decoupled",
            "this model gives one response per request: remove it, or make it one that generates with the parameter \
             GENERATE_STATES",
        ));
    }
    for (field, why) in IGNORED {
        if read::is_set(message, field) {
            note(notes, field, why);
        }
    }
    for field in ["input", "output"] {
        for (index, tensor) in read::messages(message, field).into_iter().enumerate() {
            tensor_fields(tensor, &format!("{field}[{index}]"), notes)?;
        }
    }
    for (index, group) in read::messages(message, "instance_group").into_iter().enumerate() {
        group_fields(group, &format!("instance_group[{index}]"), notes)?;
    }
    Ok(())
}

fn tensor_fields(message: &DynamicMessage, key: &str, notes: &mut Vec<String>) -> Result<(), Fault> {
    let is_input = message.descriptor().name() == "ModelInput";
    let refused = [
        ("is_shape_tensor", "shape tensors are a feature of TensorRT: remove it"),
        ("is_non_linear_format_io", "other memory formats are a feature of TensorRT: remove it"),
    ];
    for (field, why) in refused {
        if read::flag(message, field) {
            return Err(Fault::at(format!("{key}.{field}"), why));
        }
    }
    if is_input && read::is_set(message, "format") {
        note(notes, &format!("{key}.format"), "`dims` says all that is used");
    }
    Ok(())
}

fn group_fields(message: &DynamicMessage, key: &str, notes: &mut Vec<String>) -> Result<(), Fault> {
    let refused = [
        ("passive", "an instance that never runs by itself is not served: remove the group"),
        ("secondary_devices", "models are run on one device each: remove it"),
    ];
    for (field, why) in refused {
        if read::is_set(message, field) {
            return Err(Fault::at(format!("{key}.{field}"), why));
        }
    }
    let ignored = [
        (
            "rate_limiter",
            "there are no rate limits between models; `count` bounds how many runs there are at once",
        ),
        ("host_policy", "the server places its own threads"),
        ("profile", "profiles are a feature of TensorRT"),
    ];
    for (field, why) in ignored {
        if read::is_set(message, field) {
            note(notes, &format!("{key}.{field}"), why);
        }
    }
    Ok(())
}

/// Adds the sentence for a field that has no effect.
pub(super) fn note(notes: &mut Vec<String>, field: &str, why: &str) {
    notes.push(format!("{field} has no effect: {why}"));
}
