//! Batches, queues and weight in `config.yaml`: what is taken, and what is refused and why.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::{ModelConfig, config::load};

/// A model with a batch of up to 32 rows.
const BATCH: &str = "max_batch_size: 32\ninputs: [{name: x, dtype: FP32, shape: [4]}]\n";

fn yaml(text: &str) -> Result<ModelConfig, String> {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("config.yaml"), text).unwrap();
    load(root.path(), "m").map_err(|error| {
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text.replace(&format!("{}/config.yaml", root.path().display()), "")
    })
}

/// The error of a text that is added to a model with a batch dimension.
fn error(text: &str) -> String {
    yaml(&format!("{BATCH}{text}")).expect_err("must be refused")
}

fn batched(text: &str) -> Option<Batching> {
    yaml(&format!("{BATCH}{text}")).unwrap().batching
}

fn queued(text: &str) -> Queueing {
    yaml(&format!("queue: {text}")).unwrap().queue
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn size(size: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(size)
}

#[test]
fn models_with_a_batch_dimension_are_batched_unless_they_keep_state() {
    assert_eq!(batched(""), Some(Batching::default()));
    assert_eq!(batched("batching: auto"), Some(Batching::default()));
    assert_eq!(batched("batching: off"), None);
    assert_eq!(batched("stateful: true"), None);
    assert_eq!(batched("stateful: true\nbatching: {max_delay: 0s}"), Some(Batching::default()));
    for text in ["", "batching: auto", "batching: off"] {
        assert_eq!(yaml(text).unwrap().batching, None, "{text}");
    }
    let text = yaml("batching: {max_delay: 2ms}").expect_err("no batch dimension");
    assert!(text.starts_with(":1:11: batching: max_batch_size is 0, so there is no dimension"), "{text}");
    assert!(text.ends_with("give max_batch_size, or leave this out"), "{text}");
}

#[test]
fn every_field_of_batching_is_read_and_sizes_are_sorted() {
    let batching = batched(
        "batching:
  max_delay: 500us
  preferred_sizes: [16, 8]
  preserve_ordering: true
  allowed_sizes: [1, 32, 16, 8]
",
    );
    let expected = Batching {
        max_delay: Duration::from_micros(500),
        preferred_sizes: vec![8, 16],
        preserve_ordering: true,
        allowed_sizes: vec![1, 8, 16, 32],
        latency_target: None,
    };
    assert_eq!(batching, Some(expected));
    let target = batched("batching: {latency_target: 50ms}").unwrap().latency_target;
    assert_eq!(target, Some(millis(50)));
    let both = error("batching: {latency_target: 50ms, max_delay: 1ms}");
    assert!(both.contains("batching.latency_target: it waits for company only while that pays"), "{both}");
    assert!(both.ends_with("batching.max_delay waits in any case: give one of the two"), "{both}");
}

#[test]
fn sizes_are_possible_ones() {
    assert_eq!(
        error("batching: {preferred_sizes: [8, 0]}"),
        ":3:33: batching.preferred_sizes[1]: a number from 1 to max_batch_size, 32, is expected, not 0"
    );
    assert!(error("batching: {preferred_sizes: [33]}").contains("preferred_sizes[0]: a number from 1 to"));
    assert!(error("batching: {preferred_sizes: [8, 8]}").contains("sizes[1]: 8 is listed twice: list it"));
    assert!(error("batching: {allowed_sizes: [32, 64]}").contains("batching.allowed_sizes[1]: a number"));
    assert_eq!(
        error("batching: {allowed_sizes: [1, 8]}"),
        ":3:27: batching.allowed_sizes: the largest is 8, but a request may have 32 rows (max_batch_size): add 32, \
         or lower max_batch_size"
    );
    assert_eq!(
        error("batching: {preferred_sizes: [8, 12], allowed_sizes: [8, 32, 16]}"),
        ":3:33: batching.preferred_sizes[1]: no batch of 12 is run, because it would be filled up to 16, the next \
         of batching.allowed_sizes: write 16, or add 12 there"
    );
    assert!(error("batching: {preferred_sizes: 8}").contains("expected a list such as `[1, 2]`"));
}

#[test]
fn lengths_of_time_have_units_and_limits() {
    assert_eq!(batched("batching: {max_delay: 60s}").unwrap().max_delay, millis(60_000));
    assert_eq!(
        error("batching: {max_delay: 61s}"),
        ":3:23: batching.max_delay: 1m 1s is too long: at most 1m is allowed"
    );
    assert!(error("batching: {latency_target: 2m}").contains("batching.latency_target: 2m is too long"));
    assert!(error("batching: {latency_target: 0s}").contains("no request can be answered in no time"));
    let nothing = error("batching:\n  max_delay:");
    assert!(
        nothing.ends_with(
            "max_delay: nothing is written here: write a number with its unit, such as 500us, 2ms or 1s"
        ),
        "{nothing}"
    );
    for wrong in ["5", "2 parsecs", "-1ms", "~", "ms", "1..5s", "1e3ms"] {
        let text = error(&format!("batching:\n  max_delay: {wrong}"));
        assert!(text.starts_with(":4:14: batching.max_delay: `"), "{text}");
        assert!(
            text.ends_with("is not a length of time: write a number with its unit, such as 500us, 2ms or 1s")
        );
    }
    assert!(error("batching: {max_delay: [2ms]}").contains("expected a length of time such as `2ms`"));
}

/// The parser of lengths panics where seconds and nanoseconds together are beyond 64 bits.
#[test]
fn no_length_of_time_is_too_long_to_be_refused() {
    for text in [
        "18446744073709551615s999ms1ms",
        "18446744073709551615s 1000000000ns",
        "584542046090years 999ms 1ms",
        "99999999999y99999999999y",
        "99999999999y 99999999999y 9999y",
        "1s1s1s1s1s1s1s1s1s1s1s1s1s1s1s1s1s1s1s1s1s",
    ] {
        let text = error(&format!("batching: {{max_delay: '{text}'}}"));
        assert!(text.contains("is not a length of time") || text.contains("is too long"), "{text}");
    }
    assert_eq!(RawDuration::parse("1m 2s 3ms 4us 5ns").unwrap().0, Duration::new(62, 3_004_005));
}

#[test]
fn wrong_words_for_batching_are_told_where_they_stand() {
    let text = error("batching: sometimes");
    assert!(text.contains("`auto`, `off`, or fields such as `{max_delay: 2ms}`"), "{text}");
    assert!(error("batching: false").ends_with("`false` is not a way to join requests: write `off`"));
    assert!(error("batching: true").ends_with("`true` is not a way to join requests: write `auto`"));
    assert_eq!(
        error("batching: {max_dely: 2ms}"),
        ":3:12: batching.max_dely: unknown field `max_dely`: write `max_delay`"
    );
    for (text, meant) in [
        ("dynamic_batching: {}", "unknown field `dynamic_batching`: write `batching`"),
        ("batching: {preferred_batch_size: [4]}", "write `preferred_sizes`"),
        ("batching: {max_queue_delay_microseconds: 100}", "write `max_delay`"),
        ("max_queue_delay_microseconds: 100", "it belongs to `batching`, as `max_delay: 2ms`"),
        ("batching: {default_queue_policy: {}}", "it belongs to the top level, as `queue: {max_size: 100}`"),
        ("batching: {priority_levels: 2}", "it belongs to `queue`"),
        ("queue: {max_queue_size: 1}", "write `max_size`"),
        ("queue: {default_timeout_microseconds: 1}", "write `timeout`"),
        ("queue: {levels: {1: {timeout_action: DELAY}}}", "write `on_timeout`"),
        ("default_queue_policy: {}", "unknown field `default_queue_policy`: write `queue`"),
        ("queue: {max_delay: 2ms}", "it belongs to `batching`"),
        ("WEIGHT: 2", "write `weight`"),
    ] {
        assert!(error(text).ends_with(meant), "{}", error(text));
    }
}

#[test]
fn a_queue_without_priorities_has_one_policy() {
    assert_eq!(yaml("").unwrap().queue, Queueing::default());
    assert_eq!(queued("{}"), Queueing::default());
    let queue = queued("{max_size: 100, timeout: 100ms, on_timeout: delay, allow_timeout_override: true}");
    let policy = QueuePolicy {
        max_size: size(100),
        timeout: Some(millis(100)),
        on_timeout: OnTimeout::Delay,
        allow_timeout_override: true,
    };
    assert_eq!(queue, Queueing { levels: vec![policy], default_priority: NonZeroU32::MIN });
}

#[test]
fn levels_say_what_differs_and_the_lowest_is_the_default() {
    let text = "{max_size: 100, timeout: 1s, on_timeout: delay, priority_levels: 3, \
                levels: {1: {max_size: 10}, '3': {timeout: 5s, on_timeout: reject, \
                allow_timeout_override: true}}}";
    let queue = queued(text);
    assert_eq!(queue.default_priority.get(), 3);
    let all = QueuePolicy {
        max_size: size(100),
        timeout: Some(millis(1000)),
        on_timeout: OnTimeout::Delay,
        allow_timeout_override: false,
    };
    let first = QueuePolicy { max_size: size(10), ..all.clone() };
    let third = QueuePolicy {
        timeout: Some(millis(5000)),
        on_timeout: OnTimeout::Reject,
        allow_timeout_override: true,
        ..all.clone()
    };
    assert_eq!(queue.levels, [first, all, third]);
    assert_eq!(queued("{priority_levels: 64, default_priority: 1}").default_priority.get(), 1);
    assert_eq!(queued("{levels: {1: {max_size: 3}}}").levels[0].max_size, size(3));
}

#[test]
fn queues_are_possible_ones() {
    for (text, told) in [
        ("{max_size: 0}", "queue.max_size: 0 would refuse whatever cannot run at once: write 1 or more"),
        ("{timeout: 0s}", "queue.timeout: nobody can wait for no time: write a length of time such as"),
        ("{timeout: 25h}", "queue.timeout: 1day 1h is too long: at most 1day is allowed"),
        (
            "{on_timeout: drop}",
            "queue.on_timeout: unknown value `drop`: expected one of `reject` and `delay`",
        ),
        ("{priority_levels: 0}", "queue.priority_levels: a number from 1 to 64 is expected, not 0"),
        ("{priority_levels: 65}", "a number from 1 to 64 is expected, not 65"),
        (
            "{priority_levels: 3, default_priority: 4}",
            "queue.default_priority: a number from 1 to queue.priority_levels, 3, is expected, not 4",
        ),
        (
            "{default_priority: 0}",
            "queue.default_priority: a number from 1 to queue.priority_levels, 1, is expected, not 0",
        ),
        (
            "{priority_levels: 3, levels: {4: {}}}",
            "queue.levels.4: there is no priority 4, because queue.priority_levels is 3: raise that, or leave this out",
        ),
        ("{levels: {0: {}}}", "queue.levels.0: there is no priority 0: they are numbered from 1"),
        ("{on_timeout: DELAY}", "queue.on_timeout: unknown value `DELAY`: write `delay`"),
        ("{on_timeout: }", "queue.on_timeout: nothing is written here: expected one of `reject` and `delay`"),
        ("{levels: {'-1': {}}}", "expected the number of a priority, from 1, not \"-1\""),
        ("{on_timeout: {delay: 1s}}", "queue.on_timeout: expected a single word, not a mapping"),
        ("{levels: {99999999999: {}}}", "there is no priority 99999999999"),
        ("{levels: {1: {max_size: 0}}}", "queue.levels.1.max_size: 0 would refuse"),
        ("{levels: {1: {timeout: 0s}}}", "queue.levels.1.timeout: nobody can wait for no time"),
        ("{levels: {high: {}}}", "expected the number of a priority, from 1"),
        ("{levels: {-1: {}}}", "expected the number of a priority, from 1"),
        ("{levels: {1: {}, 1: {}}}", "`1` is given twice: keep one of them"),
        ("{levels: [{}]}", "expected a policy for each priority, such as `{1: {max_size: 10}}`"),
        ("100", "expected fields such as `max_size: 100`"),
    ] {
        let error = error(&format!("queue: {text}"));
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn who_says_delay_says_when() {
    let told = "on_timeout: `delay` has no effect, because none of its requests has a timeout: give \
                `timeout`, or `allow_timeout_override: true`, or leave it out";
    assert_eq!(error("queue: {on_timeout: delay}"), format!(":3:21: queue.{told}"));
    for (queue, place) in [
        ("{priority_levels: 2, on_timeout: delay, levels: {1: {max_size: 3}}}", ":3:41: queue."),
        (
            "{priority_levels: 2, on_timeout: delay, levels: {1: {timeout: 1s, on_timeout: reject}}}",
            ":3:41: queue.",
        ),
        ("{levels: {1: {on_timeout: delay}}}", ":3:34: queue.levels.1."),
        (
            "{priority_levels: 2, levels: {1: {timeout: 1s}, 2: {on_timeout: delay}}}",
            ":3:72: queue.levels.2.",
        ),
    ] {
        assert_eq!(error(&format!("queue: {queue}")), format!("{place}{told}"));
    }
    for queue in [
        "{on_timeout: delay, timeout: 1s}",
        "{on_timeout: delay, allow_timeout_override: true}",
        "{timeout: 1s, levels: {1: {on_timeout: delay}}}",
        "{timeout: 1s, on_timeout: delay, priority_levels: 2, levels: {2: {on_timeout: reject}}}",
        // One of the two has a timeout.
        "{priority_levels: 2, on_timeout: delay, levels: {1: {timeout: 1s}}}",
    ] {
        assert_eq!(queued(queue).levels[0].on_timeout, OnTimeout::Delay, "{queue}");
    }
    // What would have an effect is said otherwise.
    queued("{on_timeout: delay, timeout: 1s, levels: {1: {on_timeout: reject}}}");
}

#[test]
fn what_is_answered_in_order_does_not_overtake() {
    let ordered = |queue: &str| format!("batching: {{preserve_ordering: true}}\nqueue: {queue}");
    let text = error(&ordered("{priority_levels: 2}"));
    assert_eq!(
        text,
        ":3:31: batching.preserve_ordering: requests of several priorities overtake one another: leave it out, or \
         let queue.priority_levels be 1"
    );
    for queue in ["{timeout: 1s, on_timeout: delay}", "{allow_timeout_override: true, on_timeout: delay}"] {
        let text = error(&ordered(queue));
        assert!(text.contains("are overtaken: leave it out, or change `on_timeout`"), "{text}");
    }
    for queue in ["{timeout: 1s}", "{allow_timeout_override: true}", "{priority_levels: 1}"] {
        assert!(batched(&ordered(queue)).unwrap().preserve_ordering, "{queue}");
    }
    assert_eq!(batched("batching: {preserve_ordering: false}\nqueue: {priority_levels: 2}"), batched(""));
}

#[test]
fn a_weight_is_a_share() {
    assert_eq!(yaml("").unwrap().weight.get(), 1);
    assert_eq!(yaml("weight: 1000").unwrap().weight.get(), 1000);
    assert_eq!(error("weight: 0"), ":3:9: weight: a number from 1 to 1000 is expected, not 0");
    assert!(error("weight: 1001").contains("a number from 1 to 1000 is expected, not 1001"));
}
