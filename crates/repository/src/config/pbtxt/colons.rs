//! The colons that protobuf lets one leave out.
//!
//! `input [ { ... } ]` is how nearly every `config.pbtxt` is written, and protobuf's own parser reads
//! it; the parser used here wants `input: [ { ... } ]`. So the colon is put in before parsing, and
//! places in the changed text are led back to places in the file.

/// A text with its colons, and where they were put in.
#[derive(Debug)]
pub(super) struct Completed {
    pub(super) text: String,
    /// Offsets in the original text, ascending.
    inserted: Vec<usize>,
}

impl Completed {
    /// The place in the original text of a place in the completed one.
    pub(super) fn original(&self, offset: usize) -> usize {
        // The n-th colon moved everything behind it by n + 1 characters.
        let before = self.inserted.iter().enumerate().filter(|(n, at)| **at + n < offset).count();
        offset - before
    }
}

/// Puts a colon behind every field name that a list follows at once.
pub(super) fn complete(text: &str) -> Completed {
    let inserted = missing(text.as_bytes());
    let mut completed = String::with_capacity(text.len() + inserted.len());
    let mut from = 0;
    for at in &inserted {
        completed.push_str(&text[from..*at]);
        completed.push(':');
        from = *at;
    }
    completed.push_str(&text[from..]);
    Completed { text: completed, inserted }
}

/// The ends of the field names that lack a colon; all are behind a letter, digit or underscore.
fn missing(text: &[u8]) -> Vec<usize> {
    let mut missing = Vec::new();
    let mut name_end = None;
    let mut after_colon = false;
    let mut at = 0;
    while at < text.len() {
        let end = token_end(text, at);
        match text[at] {
            b'#' => {}
            byte if byte.is_ascii_whitespace() => {}
            byte => {
                if let (b'[', Some(name_end)) = (byte, name_end) {
                    missing.push(name_end);
                }
                // What follows a colon is a value, such as a constant's name, and not a field.
                let is_name = byte.is_ascii_alphabetic() || byte == b'_';
                name_end = (is_name && !after_colon).then_some(end);
                after_colon = byte == b':';
            }
        }
        at = end;
    }
    missing
}

/// Where the token that starts here ends: a word, a string, a comment, or one byte.
fn token_end(text: &[u8], start: usize) -> usize {
    let rest = &text[start + 1..];
    let length = match text[start] {
        b'#' => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
        quote @ (b'"' | b'\'') => string_length(rest, quote),
        byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
            let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
            rest.iter().position(|byte| !in_word(byte)).unwrap_or(rest.len())
        }
        _ => 0,
    };
    start + 1 + length
}

/// The rest of a string behind its first quote; a string that is not closed ends with its line.
fn string_length(rest: &[u8], quote: u8) -> usize {
    let mut escaped = false;
    for (index, byte) in rest.iter().enumerate() {
        match *byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'\n' => return index,
            byte if byte == quote => return index + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_are_put_in_where_they_were_left_out() {
        for (text, completed) in [
            ("input [ {} ]", "input: [ {} ]"),
            ("input[{}]output\n # why\n [{}]", "input:[{}]output:\n # why\n [{}]"),
            ("input: [ {} ]", "input: [ {} ]"),
            ("a { dims: [ 1 ] b [ 2 ] }", "a { dims: [ 1 ] b: [ 2 ] }"),
        ] {
            assert_eq!(complete(text).text, completed);
        }
    }

    #[test]
    fn strings_comments_and_values_are_left_alone() {
        for text in
            ["name: \"x [ y\"", "name: 'a\\' b ['", "# input [\n", "kind: KIND_CPU [x.y]: 1", "name: \"ä ["]
        {
            assert_eq!(complete(text).text, text);
        }
    }

    #[test]
    fn places_lead_back() {
        let text = "a [ 1 ] b [ 2 ] c";
        let completed = complete(text);
        assert_eq!(completed.text, "a: [ 1 ] b: [ 2 ] c");
        for (at, character) in completed.text.char_indices().filter(|(_, character)| *character != ':') {
            assert_eq!(text[completed.original(at)..].chars().next(), Some(character), "{at}");
        }
        assert_eq!(completed.original(completed.text.len()), text.len());
    }
}
