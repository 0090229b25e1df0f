//! One line for one event: text for people, JSON for machines.
//!
//! Whatever is put into it, it stays one line, and nothing in it moves the cursor of who reads it: what others
//! wrote is escaped here, in both forms, and cut.

use std::{
    fmt::{self, Write},
    time::SystemTime,
};

use humantime::format_rfc3339_micros;
use sconce_engine::text::is_hidden;
use tracing::Level;

/// A message is cut here.
const MESSAGE_LIMIT: usize = 8 << 10;
/// The text of a field is cut here, in bytes.
const FIELD_LIMIT: usize = 1 << 10;
/// What stands at the end of what was cut.
const CUT: &str = "...";

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// For people; in colours where it goes to a terminal.
    Text { colours: bool },
    /// One JSON object.
    Json,
}

/// What a field has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Unsigned(u64),
    Signed(i64),
    /// Milliseconds and the like; three decimals.
    Float(f64),
    Bool(bool),
    /// Formatted first, cut while it is.
    Shown(fmt::Arguments<'a>),
}

/// A line that is being put together.
#[derive(Debug)]
pub(crate) struct Line {
    style: Style,
    message: String,
    fields: String,
}

impl Line {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, message: String::new(), fields: String::new() }
    }

    /// What happened, in words.
    pub(crate) fn message(&mut self, message: fmt::Arguments<'_>) {
        self.message = match message.as_str() {
            Some(text) => bounded(text, MESSAGE_LIMIT),
            None => formatted(message, MESSAGE_LIMIT),
        };
    }

    /// Adds a field.
    pub(crate) fn field(&mut self, name: &str, value: Value<'_>) {
        match self.style {
            Style::Text { colours } => {
                if !self.fields.is_empty() {
                    self.fields.push(' ');
                }
                let (dim, plain) = if colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
                push(&mut self.fields, format_args!("{dim}{name}={plain}"));
            }
            Style::Json => {
                self.fields.push(',');
                json_string(&mut self.fields, name);
                self.fields.push(':');
            }
        }
        match value {
            Value::Text(text) => self.text(&bounded(text, FIELD_LIMIT)),
            Value::Shown(arguments) => self.text(&formatted(arguments, FIELD_LIMIT)),
            Value::Unsigned(number) => push(&mut self.fields, format_args!("{number}")),
            Value::Signed(number) => push(&mut self.fields, format_args!("{number}")),
            Value::Bool(yes) => push(&mut self.fields, format_args!("{yes}")),
            Value::Float(number) if number.is_finite() => {
                push(&mut self.fields, format_args!("{number:.3}"));
            }
            Value::Float(number) => self.text(&number.to_string()),
        }
    }

    /// Adds a field that tells people nothing new, because the message does.
    pub(crate) fn for_machines(&mut self, name: &str, value: Value<'_>) {
        if self.style == Style::Json {
            self.field(name, value);
        }
    }

    fn text(&mut self, text: &str) {
        match self.style {
            Style::Json => json_string(&mut self.fields, text),
            Style::Text { .. } if is_one_word(text) => self.fields.push_str(text),
            Style::Text { .. } => {
                self.fields.push('"');
                for char in text.chars() {
                    match char {
                        '"' | '\\' => self.fields.extend(['\\', char]),
                        _ => escaped(&mut self.fields, char),
                    }
                }
                self.fields.push('"');
            }
        }
    }

    /// The whole line, with its end. The target is what wrote it; people are not told.
    pub(crate) fn finish(self, time: SystemTime, level: Level, target: &str) -> String {
        let time = format_rfc3339_micros(time);
        let mut line = String::with_capacity(self.message.len() + self.fields.len() + target.len() + 100);
        match self.style {
            Style::Text { colours } => {
                let (dim, colour, plain) =
                    if colours { ("\x1b[2m", colour(level), "\x1b[0m") } else { ("", "", "") };
                push(&mut line, format_args!("{dim}{time}{plain} {colour}{:>5}{plain}", level.as_str()));
                if !self.message.is_empty() {
                    line.push(' ');
                    self.message.chars().for_each(|char| escaped(&mut line, char));
                }
                if !self.fields.is_empty() {
                    line.push(' ');
                }
                line.push_str(&self.fields);
            }
            Style::Json => {
                push(&mut line, format_args!(r#"{{"timestamp":"{time}","level":"{level}","message":"#));
                json_string(&mut line, &self.message);
                line.push_str(&self.fields);
                line.push_str(r#","target":"#);
                json_string(&mut line, target);
                line.push('}');
            }
        }
        line.push('\n');
        line
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// Writing to a String does not fail.
fn push(text: &mut String, arguments: fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

/// Whether a value can stand in a line of text as it is, and be told from what is beside it.
fn is_one_word(text: &str) -> bool {
    let apart = |char: char| char.is_whitespace() || is_hidden(char) || matches!(char, '"' | '\\' | '=');
    !text.is_empty() && !text.contains(apart)
}

fn escaped(line: &mut String, char: char) {
    if is_hidden(char) {
        line.extend(char.escape_debug());
    } else {
        line.push(char);
    }
}

/// A string of JSON that a terminal can show: reading it gives back what was put in.
fn json_string(line: &mut String, text: &str) {
    line.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => line.extend(['\\', char]),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            _ if is_hidden(char) => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    push(line, format_args!("\\u{unit:04x}"));
                }
            }
            _ => line.push(char),
        }
    }
    line.push('"');
}

/// The text, or as much of it as there is room for.
fn bounded(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    format!("{}{CUT}", start_of(text, limit))
}

/// At most so many bytes of it, in whole characters.
fn start_of(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// What is written into it up to its bound.
struct Bounded {
    text: String,
    limit: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.limit - self.text.len();
        if text.len() <= room {
            self.text.push_str(text);
            return Ok(());
        }
        self.text.push_str(start_of(text, room));
        // Nobody goes on to format what nobody will see.
        Err(fmt::Error)
    }
}

fn formatted(arguments: fmt::Arguments<'_>, limit: usize) -> String {
    let mut bounded = Bounded { text: String::new(), limit };
    if bounded.write_fmt(arguments).is_err() {
        bounded.text.push_str(CUT);
    }
    bounded.text
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
