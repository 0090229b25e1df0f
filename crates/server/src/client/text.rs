//! Text that others wrote, made fit for a terminal: nothing in it moves the cursor or hides itself.

/// Longer strings are cut where people read them.
const MAX_SHOWN: usize = 1000;

/// Bytes as a quoted string: control characters escaped, what is not UTF-8 as `\xff`, long ones cut.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(MAX_SHOWN)];
    let mut text = String::from("\"");
    for chunk in cut.utf8_chunks() {
        let debug = format!("{:?}", chunk.valid());
        text.push_str(&debug[1..debug.len() - 1]);
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.push('"');
    if cut.len() < bytes.len() {
        text.push_str(&format!("... ({} bytes)", bytes.len()));
    }
    text
}

/// A message with its lines and quotes as they are, and everything else that is not to be seen escaped.
pub(super) fn plain(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '"' | '\'' | '\\' => line.push(character),
            _ => line.extend(character.escape_debug()),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strings_are_readable_and_harmless() {
        for (bytes, shown) in [
            (&b"it's"[..], r#""it's""#),
            (b"say \"hi\"\n", r#""say \"hi\"\n""#),
            (b"\x1b[2J\x07", r#""\u{1b}[2J\u{7}""#),
            ("grün 日本 🙂".as_bytes(), "\"grün 日本 🙂\""),
            ("\u{202e}back".as_bytes(), r#""\u{202e}back""#),
            (b"\xff\xfea", r#""\xff\xfea""#),
            (b"", "\"\""),
        ] {
            assert_eq!(quoted(bytes), shown);
        }
        assert!(quoted(&[b'a'; 5000]).ends_with("a\"... (5000 bytes)"));
        assert_eq!(plain("model 'x'\nsays \"no\"\u{1b}[0m"), "model 'x'\nsays \"no\"\\u{1b}[0m");
    }

    proptest! {
        #[test]
        fn nothing_controls_the_terminal(bytes in prop::collection::vec(any::<u8>(), 0..60), text in ".*") {
            prop_assert!(!quoted(&bytes).contains(char::is_control));
            prop_assert!(!plain(&text).replace('\n', "").contains(char::is_control));
        }
    }
}
