//! Batches, queues and weight: any that both formats can express, and how each says them.

use std::{collections::BTreeSet, fmt::Write, num::NonZeroU32, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::Index};

use super::{Batching, ModelConfig, OnTimeout, QueuePolicy, Queueing, SequenceStrategy};

/// What of it does not depend on the model.
#[derive(Clone, Debug)]
pub(super) struct Seed {
    off: bool,
    max_delay: u64,
    ordered: bool,
    preferred: Vec<Index>,
    allowed: Vec<Index>,
    latency_target: Option<u64>,
    levels: Vec<QueuePolicy>,
    default_priority: Index,
    weight: u32,
}

fn any_policy() -> impl Strategy<Value = QueuePolicy> {
    let timeout = option::of(1..=86_400_000_000_u64);
    (option::of(1_u32..), timeout, any::<bool>(), any::<bool>()).prop_map(
        |(max_size, timeout, delay, allow_timeout_override)| QueuePolicy {
            max_size: max_size.and_then(NonZeroU32::new),
            timeout: timeout.map(Duration::from_micros),
            // Where nobody has a timeout, `config.yaml` must not say it.
            on_timeout: match delay && (timeout.is_some() || allow_timeout_override) {
                true => OnTimeout::Delay,
                false => OnTimeout::Reject,
            },
            allow_timeout_override,
        },
    )
}

pub(super) fn any_seed() -> impl Strategy<Value = Seed> {
    let batching = (any::<bool>(), prop_oneof![Just(0), 1..=60_000_000_u64], any::<bool>());
    let sizes = (vec(any::<Index>(), 0..4), vec(any::<Index>(), 0..4), option::of(1..=60_000_000_u64));
    let queue = (vec(any_policy(), 1..=4), any::<Index>(), 1_u32..=1000);
    (batching, sizes, queue).prop_map(
        |(
            (off, max_delay, ordered),
            (preferred, allowed, latency_target),
            (levels, default_priority, weight),
        )| {
            Seed {
                off,
                max_delay,
                ordered,
                preferred,
                allowed,
                latency_target,
                levels,
                default_priority,
                weight,
            }
        },
    )
}

/// The configuration with what fits it.
pub(super) fn scheduled(seed: Seed, config: ModelConfig) -> ModelConfig {
    let max = config.max_batch_size;
    let sizes = |indices: &[Index]| -> BTreeSet<u32> {
        indices.iter().map(|index| 1 + u32::try_from(index.index(max as usize)).unwrap()).collect()
    };
    let allowed = || match sizes(&seed.allowed) {
        none if none.is_empty() => none,
        some => some.into_iter().chain([max]).collect(),
    };
    // One that is allowed, where that is asked for.
    let possible = |size: u32| allowed().range(size..).next().copied().unwrap_or(size);
    let preferred = || sizes(&seed.preferred).into_iter().map(possible).collect::<BTreeSet<u32>>();
    let batching = (max > 0 && !seed.off).then(|| Batching {
        max_delay: Duration::from_micros(seed.max_delay),
        preferred_sizes: preferred().into_iter().collect(),
        preserve_ordering: seed.ordered,
        allowed_sizes: allowed().into_iter().collect(),
        // Not both.
        latency_target: seed.latency_target.filter(|_| seed.max_delay == 0).map(Duration::from_micros),
    });
    let mut levels = seed.levels;
    if batching.as_ref().is_some_and(|batching| batching.preserve_ordering) {
        levels.truncate(1);
        levels[0].on_timeout = OnTimeout::Reject;
    }
    let default_priority = u32::try_from(1 + seed.default_priority.index(levels.len())).unwrap();
    let default_priority = NonZeroU32::new(default_priority).unwrap();
    let weight = NonZeroU32::new(seed.weight).unwrap();
    ModelConfig { batching, queue: Queueing { levels, default_priority }, weight, ..config }
}

fn on_timeout(policy: &QueuePolicy) -> String {
    format!("{:?}", policy.on_timeout)
}

fn is_direct(config: &ModelConfig) -> bool {
    let strategy = config.sequences.as_ref().map(|sequences| &sequences.strategy);
    matches!(strategy, Some(SequenceStrategy::Direct { .. }))
}

/// The fields for `config.yaml`.
pub(super) fn to_yaml(config: &ModelConfig, fields: &mut serde_json::Value) {
    let time = |time: Duration| format!("{}us", time.as_micros());
    fields["weight"] = config.weight.get().into();
    fields["batching"] = match &config.batching {
        None if config.max_batch_size == 0 => "auto".into(),
        // Nothing else may be said of it.
        _ if is_direct(config) => "auto".into(),
        None => "off".into(),
        Some(batching) => serde_json::json!({
            "max_delay": time(batching.max_delay),
            "preferred_sizes": batching.preferred_sizes,
            "preserve_ordering": batching.preserve_ordering,
            // In any order.
            "allowed_sizes": batching.allowed_sizes.iter().rev().collect::<Vec<_>>(),
            "latency_target": batching.latency_target.map(time),
        }),
    };
    let policy = |policy: &QueuePolicy| {
        serde_json::json!({
            "max_size": policy.max_size,
            "timeout": policy.timeout.map(time),
            "on_timeout": on_timeout(policy).to_lowercase(),
            "allow_timeout_override": policy.allow_timeout_override,
        })
    };
    let Queueing { levels, default_priority } = &config.queue;
    let mut queue = if let [level] = &levels[..] { policy(level) } else { serde_json::json!({}) };
    if levels.len() > 1 {
        let levels = levels.iter().enumerate().map(|(index, level)| ((index + 1).to_string(), policy(level)));
        queue["levels"] = levels.collect::<serde_json::Map<_, _>>().into();
    }
    queue["priority_levels"] = levels.len().into();
    queue["default_priority"] = default_priority.get().into();
    fields["queue"] = queue;
}

/// The fields for `config.pbtxt`, and the parameters.
pub(super) fn to_pbtxt(config: &ModelConfig, text: &mut String) {
    let mut parameter = |key: &str, value: String| {
        writeln!(text, "parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}").unwrap();
    };
    parameter("WEIGHT", config.weight.to_string());
    if config.batching.is_none() && config.max_batch_size > 0 {
        parameter("BATCHING", "off".to_owned());
    }
    let batching = config.batching.clone().unwrap_or_default();
    if !batching.allowed_sizes.is_empty() {
        let sizes: Vec<_> = batching.allowed_sizes.iter().map(u32::to_string).collect();
        parameter("ALLOWED_SIZES", sizes.join(","));
    }
    if let Some(target) = batching.latency_target {
        parameter("LATENCY_TARGET", format!("{}us", target.as_micros()));
    }

    if config.sequences.is_some() {
        return;
    }
    let policy = |policy: &QueuePolicy| {
        let max_size = policy.max_size.map_or(0, NonZeroU32::get);
        let micros = policy.timeout.unwrap_or_default().as_micros();
        format!(
            "{{ timeout_action: {} default_timeout_microseconds: {micros} allow_timeout_override: {} \
             max_queue_size: {max_size} }}",
            on_timeout(policy).to_uppercase(),
            policy.allow_timeout_override,
        )
    };
    let Batching { max_delay, preferred_sizes, preserve_ordering, .. } = batching;
    let Queueing { levels, default_priority } = &config.queue;
    write!(
        text,
        "dynamic_batching {{ preferred_batch_size: {preferred_sizes:?} max_queue_delay_microseconds: {} \
         preserve_ordering: {preserve_ordering}",
        max_delay.as_micros()
    )
    .unwrap();
    // The policy of all is that of the first level, which others do not take over.
    write!(text, " default_queue_policy {}", policy(&levels[0])).unwrap();
    if levels.len() > 1 {
        let count = levels.len();
        write!(text, " priority_levels: {count} default_priority_level: {default_priority}").unwrap();
        for (index, level) in levels.iter().enumerate().skip(1) {
            let (number, value) = (index + 1, policy(level));
            write!(text, " priority_queue_policy {{ key: {number} value {value} }}").unwrap();
        }
    }
    text.push_str(" }\n");
}
