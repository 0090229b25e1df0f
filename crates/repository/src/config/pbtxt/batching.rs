//! The fields of `dynamic_batching`, and the parameters that say what they cannot.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use prost_reflect::DynamicMessage;

use super::{
    super::{
        OnTimeout,
        check_scheduling::{NO_BATCH, TRITON, Words},
        error::Fault,
        raw::{RawBatching, RawBatchingFields, RawConfig, RawDuration, RawQueue, RawQueueLevel},
    },
    parameters, read, sequence, unserved, words,
};
use crate::escape::one_line;

/// Parameters that are read here, so that [`parameters`] need not know them.
pub(super) const PARAMETERS: [&str; 4] = [BATCHING, ALLOWED_SIZES, LATENCY_TARGET, WEIGHT];

/// Those of them that say how requests are joined.
pub(super) const JOINING: [&str; 3] = [BATCHING, ALLOWED_SIZES, LATENCY_TARGET];

const BATCHING: &str = "BATCHING";
const ALLOWED_SIZES: &str = "ALLOWED_SIZES";
const LATENCY_TARGET: &str = "LATENCY_TARGET";
const WEIGHT: &str = "WEIGHT";

/// Takes over what is said of batches, queues and weight; the size of the largest batch is known already.
pub(super) fn apply(
    message: &DynamicMessage,
    raw: &mut RawConfig,
    notes: &mut Vec<String>,
) -> Result<(), Fault> {
    let dynamic = read::message(message, "dynamic_batching");
    raw.batching = batching(message, dynamic, raw.max_batch_size, notes)?;
    if let Some(dynamic) = dynamic {
        raw.queue = queue(dynamic, notes)?;
    }
    if let Some(weight) = parameters::text(message, WEIGHT) {
        raw.weight = parameters::number(WEIGHT, weight)?;
    }
    Ok(())
}

/// A model with a batch dimension is batched whether or not it has `dynamic_batching`: who waits for
/// nobody loses nothing by it.
fn batching(
    message: &DynamicMessage,
    dynamic: Option<&DynamicMessage>,
    max_batch_size: u32,
    notes: &mut Vec<String>,
) -> Result<RawBatching, Fault> {
    let words = &words(message).scheduling;
    // The fields of both have the same names.
    let says = dynamic.or_else(|| sequence::oldest(message));
    let mut fields = says.map(|says| joining(says, words)).transpose()?.unwrap_or_default();
    if let Some(text) = parameters::text(message, ALLOWED_SIZES) {
        fields.allowed_sizes = allowed_sizes(text)?;
    }
    if let Some(text) = parameters::text(message, LATENCY_TARGET) {
        let target = RawDuration::parse(text).map_err(|error| Fault::at(words.latency_target, error))?;
        fields.latency_target = Some(target);
    }
    let off = parameters::text(message, BATCHING).map(is_off).transpose()?.unwrap_or(false);
    match (off, written(&fields, words).first()) {
        (true, Some(field)) => Err(Fault::at(
            parameters::place(BATCHING),
            format!("\"off\" leaves nothing to do for {field}: remove one of them"),
        )),
        (true, None) => Ok(RawBatching::Off),
        (false, _) if max_batch_size > 0 => Ok(RawBatching::Fields(fields)),
        (false, _) => without_batch(&fields, notes, words),
    }
}

/// As in Triton, a model without a batch dimension may have `dynamic_batching` for its queues, but no
/// sizes.
fn without_batch(
    fields: &RawBatchingFields,
    notes: &mut Vec<String>,
    words: &Words,
) -> Result<RawBatching, Fault> {
    for field in written(fields, words) {
        if field != words.max_delay && field != words.preserve_ordering {
            return Err(Fault::at(field, NO_BATCH));
        }
        unserved::note(notes, field, "max_batch_size is 0, so each request runs on its own");
    }
    Ok(RawBatching::Off)
}

/// The names of those that are set.
fn written(fields: &RawBatchingFields, words: &Words) -> Vec<&'static str> {
    let RawBatchingFields { max_delay, preferred_sizes, preserve_ordering, allowed_sizes, latency_target } =
        fields;
    let all = [
        (!preferred_sizes.is_empty(), words.preferred_sizes),
        (*max_delay != RawDuration::default(), words.max_delay),
        (*preserve_ordering, words.preserve_ordering),
        (!allowed_sizes.is_empty(), words.allowed_sizes),
        (latency_target.is_some(), words.latency_target),
    ];
    all.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect()
}

fn joining(message: &DynamicMessage, words: &Words) -> Result<RawBatchingFields, Fault> {
    let mut seen = BTreeSet::new();
    let mut preferred_sizes = Vec::new();
    for (index, size) in read::numbers(message, "preferred_batch_size").into_iter().enumerate() {
        let key = || format!("{}[{index}]", words.preferred_sizes);
        let fault =
            |_| Fault::at(key(), format!("a number from 1 to max_batch_size is expected, not {size}"));
        let size = u32::try_from(size).map_err(fault)?;
        // As in Triton, once is as good as twice.
        if seen.insert(size) {
            preferred_sizes.push(size);
        }
    }
    Ok(RawBatchingFields {
        max_delay: microseconds(message, "max_queue_delay_microseconds").unwrap_or_default(),
        preferred_sizes,
        preserve_ordering: read::flag(message, "preserve_ordering"),
        ..RawBatchingFields::default()
    })
}

/// As in Triton, 0 is none.
pub(super) fn microseconds(message: &DynamicMessage, field: &str) -> Option<RawDuration> {
    let number = u64::try_from(read::number(message, field)).unwrap_or_default();
    Some(RawDuration(Duration::from_micros(number))).filter(|_| number > 0)
}

fn queue(message: &DynamicMessage, notes: &mut Vec<String>) -> Result<RawQueue, Fault> {
    let policy_of_all = read::message(message, "default_queue_policy");
    let all =
        policy_of_all.map(|message| policy(message, TRITON.queue, notes)).transpose()?.unwrap_or_default();
    let queue = RawQueue {
        max_size: all.max_size,
        timeout: all.timeout,
        on_timeout: all.on_timeout.unwrap_or_default(),
        allow_timeout_override: all.allow_timeout_override.unwrap_or_default(),
        ..RawQueue::default()
    };
    let priority_levels = read::number(message, "priority_levels");
    if priority_levels == 0 {
        for field in ["default_priority_level", "priority_queue_policy"] {
            if read::is_set(message, field) {
                let field = format!("dynamic_batching.{field}");
                unserved::note(notes, &field, "there are no priorities, because priority_levels is 0");
            }
        }
        return Ok(queue);
    }
    let mut levels = BTreeMap::new();
    for (level, message) in read::numbered(message, "priority_queue_policy") {
        levels.insert(level, policy(message, &format!("{}.{level}", TRITON.levels), notes)?);
    }
    // Numbers beyond u32 are refused with all others that are too large.
    let number = |number: i64| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(RawQueue {
        priority_levels: number(priority_levels),
        default_priority: Some(number(read::number(message, "default_priority_level"))),
        levels,
        ..queue
    })
}

/// One policy; as in Triton, 0 is no limit, and nothing is taken over from the policy of all.
fn policy(message: &DynamicMessage, key: &str, notes: &mut Vec<String>) -> Result<RawQueueLevel, Fault> {
    let action = read::number(message, "timeout_action");
    let on_timeout = match read::enum_name(message, "timeout_action", action).as_deref() {
        Some("REJECT") => OnTimeout::Reject,
        Some("DELAY") => OnTimeout::Delay,
        _ => {
            return Err(Fault::at(
                format!("{key}.timeout_action"),
                format!("there is no action of number {action}: write REJECT or DELAY"),
            ));
        }
    };
    let timeout = microseconds(message, "default_timeout_microseconds");
    let allow_timeout_override = read::flag(message, "allow_timeout_override");
    if on_timeout == OnTimeout::Delay && timeout.is_none() && !allow_timeout_override {
        let why = "no request has a timeout without default_timeout_microseconds or allow_timeout_override";
        unserved::note(notes, &format!("{key}.timeout_action"), why);
    }
    Ok(RawQueueLevel {
        max_size: u32::try_from(read::number(message, "max_queue_size")).ok().filter(|size| *size > 0),
        timeout,
        on_timeout: Some(on_timeout),
        allow_timeout_override: Some(allow_timeout_override),
        complete: true,
    })
}

fn is_off(value: &str) -> Result<bool, Fault> {
    match value.to_ascii_lowercase().as_str() {
        "auto" => Ok(false),
        "off" => Ok(true),
        _ => Err(parameters::neither(BATCHING, value, ["auto", "off"])),
    }
}

fn allowed_sizes(value: &str) -> Result<Vec<u32>, Fault> {
    let sizes = value.split(',').map(|size| size.trim().parse::<u32>());
    sizes.collect::<Result<_, _>>().map_err(|_| {
        Fault::at(
            TRITON.allowed_sizes,
            format!(
                "`{}` is not a list of whole numbers: write one such as {{ string_value: \"1,4,8\" }}",
                one_line(value)
            ),
        )
    })
}

#[cfg(test)]
#[path = "batching_tests.rs"]
mod tests;
