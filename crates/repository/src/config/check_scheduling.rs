//! What is said of batches, queues and weight, to checked values.

use std::{collections::BTreeSet, num::NonZeroU32, time::Duration};

use super::{
    Batching, OnTimeout, QueuePolicy, Queueing,
    check::number,
    error::Fault,
    raw::{RawBatching, RawBatchingFields, RawDuration, RawQueue, RawQueueLevel},
};

/// Whoever waits longer than this for company has no use for a server; a larger number is a slip.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(60);

/// No caller waits longer.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Each priority has a queue of its own.
const MAX_LEVELS: u32 = 64;

/// With more between the weights of two models, the lighter one would hardly run at all.
const MAX_WEIGHT: u32 = 1000;

/// Why a model cannot be batched, and what to do.
pub(super) const NO_BATCH: &str = "max_batch_size is 0, so there is no dimension along which requests could \
                                   be joined: give max_batch_size, or leave this out";

/// The names of fields in one of the formats, as [`super::check::Words`].
#[derive(Debug)]
pub(super) struct Words {
    pub(super) batching: &'static str,
    pub(super) max_delay: &'static str,
    pub(super) preferred_sizes: &'static str,
    pub(super) preserve_ordering: &'static str,
    pub(super) allowed_sizes: &'static str,
    pub(super) latency_target: &'static str,
    pub(super) queue: &'static str,
    pub(super) levels: &'static str,
    pub(super) priority_levels: &'static str,
    pub(super) default_priority: &'static str,
    pub(super) max_size: &'static str,
    pub(super) timeout: &'static str,
    pub(super) on_timeout: &'static str,
    pub(super) weight: &'static str,
    /// Whether what has no effect is refused. What another program wrote for Triton gets a note instead.
    pub(super) strict: bool,
    /// How a length of time is written.
    pub(super) time: fn(Duration) -> String,
}

/// The words of `config.yaml`.
pub(super) const YAML: Words = Words {
    batching: "batching",
    max_delay: "batching.max_delay",
    preferred_sizes: "batching.preferred_sizes",
    preserve_ordering: "batching.preserve_ordering",
    allowed_sizes: "batching.allowed_sizes",
    latency_target: "batching.latency_target",
    queue: "queue",
    levels: "queue.levels",
    priority_levels: "queue.priority_levels",
    default_priority: "queue.default_priority",
    max_size: "max_size",
    timeout: "timeout",
    on_timeout: "on_timeout",
    weight: "weight",
    strict: true,
    time: spelled,
};

/// The words of `config.pbtxt`.
pub(super) const TRITON: Words = Words {
    batching: "dynamic_batching",
    max_delay: "dynamic_batching.max_queue_delay_microseconds",
    preferred_sizes: "dynamic_batching.preferred_batch_size",
    preserve_ordering: "dynamic_batching.preserve_ordering",
    allowed_sizes: "parameters[ALLOWED_SIZES]",
    latency_target: "parameters[LATENCY_TARGET]",
    queue: "dynamic_batching.default_queue_policy",
    levels: "dynamic_batching.priority_queue_policy",
    priority_levels: "dynamic_batching.priority_levels",
    default_priority: "dynamic_batching.default_priority_level",
    max_size: "max_queue_size",
    timeout: "default_timeout_microseconds",
    on_timeout: "timeout_action",
    weight: "parameters[WEIGHT]",
    strict: false,
    time: |time| time.as_micros().to_string(),
};

/// The words of `config.pbtxt` where batches are made of sequences.
pub(super) const TRITON_OLDEST: Words = Words {
    batching: "sequence_batching.oldest",
    max_delay: "sequence_batching.oldest.max_queue_delay_microseconds",
    preferred_sizes: "sequence_batching.oldest.preferred_batch_size",
    preserve_ordering: "sequence_batching.oldest.preserve_ordering",
    ..TRITON
};

fn spelled(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// How requests are joined; by default those of a model that has a batch dimension and no state, because
/// with state an answer may depend on who was run together.
pub(super) fn batching(
    raw: RawBatching,
    max_batch_size: u32,
    stateful: bool,
    words: &Words,
) -> Result<Option<Batching>, Fault> {
    let raw = match raw {
        RawBatching::Off => return Ok(None),
        RawBatching::Auto => return Ok((max_batch_size > 0 && !stateful).then(Batching::default)),
        RawBatching::Fields(raw) => raw,
    };
    if max_batch_size == 0 {
        return Err(Fault::at(words.batching, NO_BATCH));
    }
    joined(&raw, max_batch_size, words).map(Some)
}

fn joined(raw: &RawBatchingFields, max_batch_size: u32, words: &Words) -> Result<Batching, Fault> {
    let RawDuration(max_delay) = raw.max_delay;
    at_most(max_delay, MAX_DELAY, words.max_delay, words.time)?;
    let latency_target = raw
        .latency_target
        .map(|RawDuration(target)| {
            let zero = "no request can be answered in no time: write a length of time such as 50ms";
            positive(target, words.latency_target, zero)?;
            at_most(target, MAX_DELAY, words.latency_target, spelled)
        })
        .transpose()?;
    if latency_target.is_some() && !max_delay.is_zero() {
        let message = format!(
            "it waits for company only while that pays, and {} waits in any case: give one of the two",
            words.max_delay
        );
        return Err(Fault::at(words.latency_target, message));
    }

    let preferred_sizes = sizes(&raw.preferred_sizes, max_batch_size, words.preferred_sizes)?;
    let allowed_sizes = sizes(&raw.allowed_sizes, max_batch_size, words.allowed_sizes)?;
    match allowed_sizes.last() {
        Some(&largest) if largest < max_batch_size => {
            let message = format!(
                "the largest is {largest}, but a request may have {max_batch_size} rows (max_batch_size): \
                 add {max_batch_size}, or lower max_batch_size"
            );
            return Err(Fault::at(words.allowed_sizes, message));
        }
        Some(_) => check_preferred(&raw.preferred_sizes, &allowed_sizes, words)?,
        None => {}
    }
    Ok(Batching {
        max_delay,
        preferred_sizes,
        preserve_ordering: raw.preserve_ordering,
        allowed_sizes,
        latency_target,
    })
}

/// A batch of another size is filled up before it is run, so waiting for that size is waiting for rows of zeros.
fn check_preferred(preferred: &[u32], allowed: &[u32], words: &Words) -> Result<(), Fault> {
    let other = preferred.iter().enumerate().find(|(_, size)| !allowed.contains(size));
    let Some((index, size)) = other else { return Ok(()) };
    let larger = allowed.iter().find(|allowed| *allowed > size).unwrap_or(size);
    let message = format!(
        "no batch of {size} is run, because it would be filled up to {larger}, the next of {}: write {larger}, or add \
         {size} there",
        words.allowed_sizes
    );
    Err(Fault::at(format!("{}[{index}]", words.preferred_sizes), message))
}

/// The sizes in ascending order.
fn sizes(sizes: &[u32], max_batch_size: u32, key: &str) -> Result<Vec<u32>, Fault> {
    let mut seen = BTreeSet::new();
    for (index, &size) in sizes.iter().enumerate() {
        let fault = |message: String| Err(Fault::at(format!("{key}[{index}]"), message));
        if size == 0 || size > max_batch_size {
            return fault(format!(
                "a number from 1 to max_batch_size, {max_batch_size}, is expected, not {size}"
            ));
        }
        if !seen.insert(size) {
            return fault(format!("{size} is listed twice: list it once"));
        }
    }
    Ok(seen.into_iter().collect())
}

pub(super) fn at_most(
    time: Duration,
    limit: Duration,
    key: &str,
    show: fn(Duration) -> String,
) -> Result<Duration, Fault> {
    if time <= limit {
        return Ok(time);
    }
    Err(Fault::at(key, format!("{} is too long: at most {} is allowed", show(time), show(limit))))
}

fn positive(time: Duration, key: &str, zero: &str) -> Result<(), Fault> {
    if time.is_zero() { Err(Fault::at(key, zero)) } else { Ok(()) }
}

/// How requests wait, level by level.
pub(super) fn queue(raw: RawQueue, words: &Words) -> Result<Queueing, Fault> {
    let count = number(raw.priority_levels, MAX_LEVELS, words.priority_levels)?;
    // Whoever says nothing about a request gives way to those who do.
    let default_priority = raw.default_priority.unwrap_or(count.get());
    let default_priority = level(default_priority, count).ok_or_else(|| {
        let message = format!(
            "a number from 1 to {}, {count}, is expected, not {default_priority}",
            words.priority_levels
        );
        Fault::at(words.default_priority, message)
    })?;

    let all = RawQueueLevel {
        max_size: raw.max_size,
        timeout: raw.timeout,
        on_timeout: Some(raw.on_timeout),
        allow_timeout_override: Some(raw.allow_timeout_override),
        complete: true,
    };
    let all = policy(&all, &QueuePolicy::default(), words.queue, words)?;
    let mut levels: Vec<_> = (0..count.get()).map(|_| all.clone()).collect();
    for (number, raw) in raw.levels {
        let key = format!("{}.{number}", words.levels);
        let index = number.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        let Some(found) = index.and_then(|index| levels.get_mut(index)) else {
            let message = match number {
                0 => "there is no priority 0: they are numbered from 1".to_owned(),
                _ => format!(
                    "there is no priority {number}, because {} is {count}: raise that, or leave this out",
                    words.priority_levels
                ),
            };
            return Err(Fault::at(key, message));
        };
        *found = policy(&raw, &all, &key, words)?;
        if raw.on_timeout == Some(OnTimeout::Delay) {
            check_delays(std::slice::from_ref(found), &key, words)?;
        }
    }
    if raw.on_timeout == OnTimeout::Delay {
        check_delays(&levels, words.queue, words)?;
    }
    Ok(Queueing { levels, default_priority })
}

fn level(number: u32, count: NonZeroU32) -> Option<NonZeroU32> {
    NonZeroU32::new(number).filter(|number| *number <= count)
}

/// The policy that is written at this key; what it leaves out is as in `all`.
fn policy(raw: &RawQueueLevel, all: &QueuePolicy, key: &str, words: &Words) -> Result<QueuePolicy, Fault> {
    let rest = if raw.complete { &QueuePolicy::default() } else { all };
    let max_size = raw.max_size.map(|size| {
        let zero = "0 would refuse whatever cannot run at once: write 1 or more, or leave it out";
        NonZeroU32::new(size).ok_or_else(|| Fault::at(format!("{key}.{}", words.max_size), zero))
    });
    let timeout = raw.timeout.map(|RawDuration(timeout)| {
        let key = format!("{key}.{}", words.timeout);
        let zero = "nobody can wait for no time: write a length of time such as 100ms, or leave it out";
        positive(timeout, &key, zero)?;
        at_most(timeout, MAX_TIMEOUT, &key, words.time)
    });
    Ok(QueuePolicy {
        max_size: max_size.transpose()?.or(rest.max_size),
        timeout: timeout.transpose()?.or(rest.timeout),
        on_timeout: raw.on_timeout.unwrap_or(rest.on_timeout),
        allow_timeout_override: raw.allow_timeout_override.unwrap_or(rest.allow_timeout_override),
    })
}

/// Whether a request under this policy can have waited as long as it may.
fn times_out(policy: &QueuePolicy) -> bool {
    policy.timeout.is_some() || policy.allow_timeout_override
}

fn says_delay(policy: &&QueuePolicy) -> bool {
    policy.on_timeout == OnTimeout::Delay
}

/// Whoever says at this key that requests are delayed shall not be left to believe it where none can be.
fn check_delays(policies: &[QueuePolicy], key: &str, words: &Words) -> Result<(), Fault> {
    let mut delayed = policies.iter().filter(says_delay).peekable();
    if !words.strict || delayed.peek().is_none() || delayed.any(times_out) {
        return Ok(());
    }
    let message = format!(
        "`delay` has no effect, because none of its requests has a timeout: give `{}`, or \
         `allow_timeout_override: true`, or leave it out",
        words.timeout
    );
    Err(Fault::at(format!("{key}.{}", words.on_timeout), message))
}

/// As in Triton, requests that overtake one another cannot be answered in order.
pub(super) fn check_order(batching: Option<&Batching>, queue: &Queueing, words: &Words) -> Result<(), Fault> {
    if !batching.is_some_and(|batching| batching.preserve_ordering) {
        return Ok(());
    }
    let fault = |message: String| Err(Fault::at(words.preserve_ordering, message));
    if queue.levels.len() > 1 {
        return fault(format!(
            "requests of several priorities overtake one another: leave it out, or let {} be 1",
            words.priority_levels
        ));
    }
    if queue.levels.iter().filter(says_delay).any(times_out) {
        return fault(format!(
            "requests that wait on when their time is up are overtaken: leave it out, or change `{}`",
            words.on_timeout
        ));
    }
    Ok(())
}

/// The model's share of a device.
pub(super) fn weight(raw: u32, words: &Words) -> Result<NonZeroU32, Fault> {
    number(raw, MAX_WEIGHT, words.weight)
}

#[cfg(test)]
#[path = "check_scheduling_tests.rs"]
mod tests;
