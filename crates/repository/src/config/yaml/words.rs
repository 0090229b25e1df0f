//! The parser's words in those of a user who does not write Rust.

use super::hint;
use crate::escape::{one_line, sentence};

/// From where to where the whole numbers of a field go, by how its path of keys ends. The parser knows the types
/// of this program only, and checks come after it.
const RANGES: &[(&str, u32, &str)] = &[
    ("max_batch_size", 0, "2147483647"),
    ("preferred_sizes", 1, "max_batch_size"),
    ("allowed_sizes", 1, "max_batch_size"),
    ("batch_size", 1, "max_batch_size"),
    ("max_size", 1, "4294967295"),
    ("priority_levels", 1, "64"),
    ("default_priority", 1, "priority_levels"),
    ("weight", 1, "1000"),
    ("threads", 1, "1024"),
    ("max_sequences", 1, "1000000"),
    ("max_waiting", 0, "1000000"),
    ("max_steps", 1, "1000000"),
    ("instances.count", 1, "1024"),
    ("warmup.count", 1, "10000"),
    ("latest", 1, "4294967295"),
    ("gpus", 0, "4294967295"),
];

/// A limit above this tells nothing to whoever is not near it.
const TELLING: u32 = 1_000_000;

/// The sentence for an error at this path of keys.
pub(super) fn reworded(text: &str, key: &str) -> String {
    let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    if text.contains("unknown field `") && !quoted.is_empty() {
        return hint::yaml_field(quoted[0], &quoted[1..]);
    }
    if text.contains("unknown variant `") && !quoted.is_empty() {
        return hint::word(quoted[0], &quoted[1..]);
    }
    if let (Some(_), Some(name)) = (text.strip_prefix("missing field `"), quoted.first()) {
        return format!("`{name}` is missing and must be given");
    }
    if let (Some(_), Some(name)) = (text.strip_prefix("duplicate field `"), quoted.first()) {
        return format!("`{name}` is given twice: keep one of them");
    }
    if text.contains("more than one document") {
        return "the file holds more than one YAML document: keep one, without a `---` in between".to_owned();
    }
    if text.starts_with("found character that cannot start any token") {
        return "no value begins with this character: if it is a tab, write spaces instead".to_owned();
    }
    let mismatch =
        ["invalid type: ", "invalid value: "].into_iter().find_map(|start| text.strip_prefix(start));
    match mismatch.and_then(|mismatch| mismatch.rsplit_once(", expected ")) {
        Some((given, expected)) => sentence(&instead(given, expected, key)),
        None => sentence(text),
    }
}

/// What is expected instead of what was given.
fn instead(given: &str, expected: &str, key: &str) -> String {
    let value = shown(given);
    let (expected, most) = wanted(expected, key);
    let limit = most.and_then(|most| most.parse().ok()).unwrap_or(u128::from(u64::MAX));
    let is_too_large = given.starts_with("integer") && value.parse().is_ok_and(|number: u128| number > limit);
    if matches!(given, "unit value" | "Option value") {
        return format!("nothing is written here: expected {expected}");
    }
    let unquoted = value.trim_matches('"');
    if given.starts_with("string") && would_do(unquoted, &expected) {
        return format!("{value} is text: write {unquoted}, without quotes");
    }
    match most {
        Some(most) if is_too_large => format!("{value} is too large: at most {most} is allowed"),
        None if is_too_large => format!("{value} is too large: expected {expected}"),
        _ => format!("expected {expected}, not {value}"),
    }
}

/// What was given, as it was written where the parser still knows that.
fn shown(given: &str) -> String {
    match given {
        "sequence" => "a list".to_owned(),
        "map" => "a mapping".to_owned(),
        "enum" => "a value with a tag".to_owned(),
        _ => match (given.strip_prefix("string "), given.split('`').nth(1)) {
            (Some(quoted), _) | (None, Some(quoted)) => one_line(quoted),
            (None, None) => given.to_owned(),
        },
    }
}

/// Whether a text is what is expected but for its quotes: without them it would have been read as something else.
fn would_do(text: &str, expected: &str) -> bool {
    let is_number = text.parse::<u64>().is_ok_and(|number| number.to_string() == text);
    match expected {
        "true or false" => text == "true" || text == "false",
        _ => is_number && expected.contains("number"),
    }
}

/// What is expected, and above what a number is too large if that is not part of it.
fn wanted(expected: &str, key: &str) -> (String, Option<&'static str>) {
    let (words, most) = match expected {
        "u32" => return whole_number(key),
        "u64" => ("the number of a version, from 1", Some("18446744073709551615")),
        "i64" => ("the size of a dimension, or -1 for any size", Some("9223372036854775807")),
        "a sequence" => ("a list such as `[1, 2]`", None),
        "a map" => ("fields", None),
        "a boolean" => ("true or false", None),
        "field identifier" => ("the name of a field", None),
        "a YAML tag starting with '!'" => ("a single word", None),
        other => (other, None),
    };
    (words.to_owned(), most)
}

fn whole_number(key: &str) -> (String, Option<&'static str>) {
    let Some((least, most)) = range(key) else { return ("a whole number".to_owned(), None) };
    match most.parse::<u32>() {
        Ok(limit) if limit > TELLING => (format!("a whole number from {least}"), Some(most)),
        _ => (format!("a whole number from {least} to {most}"), None),
    }
}

fn range(key: &str) -> Option<(u32, &'static str)> {
    let parts = key.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest));
    let key: String = parts.collect();
    let ends = |end: &str| key.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    RANGES.iter().find(|(end, ..)| ends(end)).map(|(_, least, most)| (*least, *most))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Every number of 32 bits in a part of the schema: its path of keys and its limits.
    fn numbers(schema: &Value, part: &Value, path: &str, found: &mut Vec<(String, Value, Value)>) {
        if part["format"] == "uint32" {
            found.push((path.to_owned(), part["minimum"].clone(), part["maximum"].clone()));
        }
        if let Some(name) = part["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            numbers(schema, &schema["$defs"][name], path, found);
        }
        for (name, field) in part["properties"].as_object().into_iter().flatten() {
            numbers(schema, field, &format!("{path}.{name}"), found);
        }
        for inner in ["oneOf", "anyOf", "allOf"].iter().filter_map(|key| part[key].as_array()).flatten() {
            numbers(schema, inner, path, found);
        }
        for (key, name) in [("items", "[0]"), ("additionalProperties", ".1")] {
            if part[key].is_object() {
                numbers(schema, &part[key], &format!("{path}{name}"), found);
            }
        }
    }

    #[test]
    fn every_number_has_the_range_of_the_schema() {
        let (schema, mut found) = (crate::config_schema(), Vec::new());
        numbers(&schema, &schema, "", &mut found);
        for path in [
            ".warmup[0].count",
            ".instances[0].count",
            ".queue.levels.1.max_size",
            ".batching.allowed_sizes[0]",
        ] {
            assert!(found.iter().any(|(key, ..)| key == path), "{path}: {found:?}");
        }
        for (key, least, most) in found {
            let (told_least, told_most) = range(&key).unwrap_or_else(|| panic!("{key} has no range"));
            assert_eq!(least, told_least, "{key}");
            if let (Ok(told), false) = (told_most.parse::<u32>(), most.is_null()) {
                assert_eq!(most, told, "{key}");
            }
        }
    }
}
