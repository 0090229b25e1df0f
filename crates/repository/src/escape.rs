//! Text that others wrote, made fit for one line of a message.

use std::path::Path;

/// Longer pieces of foreign text are cut here: a message is to be read, not to carry a file.
const MAX_QUOTED: usize = 120;

/// Whole sentences that hold foreign text are cut here.
const MAX_SENTENCE: usize = 600;

/// A word or value that somebody wrote, to be quoted in a message.
pub(crate) fn one_line(text: &str) -> String {
    cut(text, MAX_QUOTED)
}

/// A sentence of another library, which may quote anything.
pub(crate) fn sentence(text: &str) -> String {
    cut(text, MAX_SENTENCE)
}

/// The text with its control characters escaped, at most this many characters of it.
fn cut(text: &str, limit: usize) -> String {
    let mut line = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == limit {
            line.push_str("...");
            break;
        }
        if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// A path for a message. Paths are not cut: the end is the part that tells them apart.
pub(crate) fn shown(path: &Path) -> String {
    cut(&path.to_string_lossy(), usize::MAX)
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn list(items: impl IntoIterator<Item = String>) -> String {
    let mut items: Vec<String> = items.into_iter().collect();
    match items.pop() {
        None => String::new(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_one_line_and_is_cut() {
        assert_eq!(one_line("a\nb\u{1b}[31m\u{2028}\u{e4}"), "a\\nb\\u{1b}[31m\\u{2028}\u{e4}");
        assert_eq!(one_line(&"x".repeat(200)), format!("{}...", "x".repeat(120)));
        assert_eq!(shown(Path::new("a\n/b")), "a\\n/b");
    }

    #[test]
    fn lists_read_as_sentences() {
        let list_of = |items: &[&str]| list(items.iter().map(|item| (*item).to_owned()));
        assert_eq!([list_of(&[]), list_of(&["a"]), list_of(&["a", "b"])], ["", "a", "a and b"]);
        assert_eq!(list_of(&["a", "b", "c"]), "a, b and c");
    }
}
