//! Lines stay lines, whatever is put into them.

use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

const TEXT: Style = Style::Text { colours: false };

fn line(style: Style, message: &str, fields: &[(&str, Value<'_>)]) -> String {
    let mut line = Line::new(style);
    line.message(format_args!("{message}"));
    for (name, value) in fields {
        line.field(name, *value);
    }
    line.finish(UNIX_EPOCH + Duration::from_micros(1_500_000), Level::INFO, "sconce_server::tests")
}

fn json(message: &str, fields: &[(&str, Value<'_>)]) -> Json {
    let line = line(Style::Json, message, fields);
    assert!(line.ends_with("}\n") && !line.trim_end().contains(is_hidden), "{line}");
    serde_json::from_str(&line).unwrap()
}

#[test]
fn people_get_time_level_message_and_fields() {
    let fields = [
        ("model", Value::Text("digits")),
        ("version", Value::Shown(format_args!("{}", 3))),
        ("file", Value::Text("a b=\"c\\\"")),
        ("empty", Value::Text("")),
        ("took_ms", Value::Float(1.5)),
        ("rows", Value::Unsigned(8)),
        ("left", Value::Signed(-1)),
        ("failed", Value::Bool(false)),
    ];
    assert_eq!(
        line(TEXT, "loaded", &fields),
        "1970-01-01T00:00:01.500000Z  INFO loaded model=digits version=3 file=\"a b=\\\"c\\\\\\\"\" empty=\"\" \
         took_ms=1.500 rows=8 left=-1 failed=false\n"
    );
    let coloured = line(Style::Text { colours: true }, "a\u{1b}[31m", &fields[..1]);
    assert_eq!(
        coloured,
        "\u{1b}[2m1970-01-01T00:00:01.500000Z\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m a\\u{1b}[31m \
         \u{1b}[2mmodel=\u{1b}[0mdigits\n"
    );
}

#[test]
fn machines_get_one_object_with_what_was_put_in() {
    let fields = [
        ("id", Value::Text("a\n\"b\"\\ \u{2028}\u{85}\u{202e}\u{e0001} \u{1b}[2J grün 日本 👩‍👩‍👧")),
        ("took_ms", Value::Float(0.25)),
        ("odd", Value::Float(f64::NAN)),
    ];
    let told = json("not\r\nserved", &fields);
    assert_eq!(told["timestamp"], "1970-01-01T00:00:01.500000Z");
    assert_eq!((&told["level"], &told["target"]), (&"INFO".into(), &"sconce_server::tests".into()));
    assert_eq!(told["message"], "not\r\nserved");
    let Value::Text(id) = fields[0].1 else { panic!() };
    assert_eq!(told["id"], id);
    assert_eq!((&told["took_ms"], &told["odd"]), (&0.25.into(), &"NaN".into()));
}

#[test]
fn what_is_long_is_cut_between_characters() {
    let long = "ä".repeat(100_000);
    let told = json(&long, &[("text", Value::Text(&long)), ("shown", Value::Shown(format_args!("x{long}")))]);
    let length = |name: &str| told[name].as_str().unwrap().len();
    assert_eq!(length("message"), MESSAGE_LIMIT + CUT.len());
    assert_eq!(length("text"), FIELD_LIMIT + CUT.len());
    assert_eq!(length("shown"), FIELD_LIMIT - 1 + CUT.len());
    assert!(told["text"].as_str().unwrap().ends_with("ä..."));
    assert_eq!(json(&long[..MESSAGE_LIMIT], &[])["message"], long[..MESSAGE_LIMIT]);
}

/// How a reader splits a line of text: words are `NAME=VALUE`, where a value that begins with a quote ends
/// with the next one that is not escaped.
fn values(line: &str) -> Vec<String> {
    let mut values = Vec::new();
    let mut rest = line;
    while let Some((_, after)) = rest.split_once('=') {
        let mut chars = after.char_indices();
        let end = if after.starts_with('"') {
            chars.next();
            let mut escaped = false;
            let end = chars.find(|&(_, char)| {
                let ends = char == '"' && !escaped;
                escaped = char == '\\' && !escaped;
                ends
            });
            end.expect("the value ends").0 + 1
        } else {
            after.find(' ').unwrap_or(after.len())
        };
        values.push(after[..end].to_owned());
        rest = &after[end..];
    }
    values
}

proptest! {
    #[test]
    fn any_text_is_one_line_of_text(message in any::<String>(), first in any::<String>(), second in any::<String>()) {
        let told = line(TEXT, &message, &[]);
        prop_assert!(told.ends_with('\n') && !told.trim_end_matches('\n').contains(is_hidden), "{told:?}");
        let told = line(TEXT, "", &[("first", Value::Text(&first)), ("second", Value::Text(&second))]);
        prop_assert!(told.ends_with('\n') && !told.trim_end_matches('\n').contains(is_hidden), "{told:?}");
        // No value can pass for another field.
        let found = values(told.trim_end_matches('\n'));
        prop_assert_eq!(found.len(), 2, "{}", told);
    }

    #[test]
    fn any_text_comes_back_out_of_json(message in any::<String>(), id in any::<String>()) {
        let told = json(&message, &[("id", Value::Text(&id))]);
        prop_assert_eq!(&told["message"], &message);
        prop_assert_eq!(&told["id"], &id);
    }
}
