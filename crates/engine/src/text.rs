//! What stands in messages and logs: escaped, cut, and of bounded length whatever was sent.

/// The longest piece of a client's text that a message repeats.
const QUOTE_LIMIT: usize = 128;
/// How many names a message lists.
const NAMED: usize = 12;

/// What a client sent, fit to stand in a message or a log: escaped and cut.
pub fn quote(text: &str) -> String {
    let cut = text.char_indices().nth(QUOTE_LIMIT).map_or(text.len(), |(at, _)| at);
    let mut quoted = text[..cut].escape_debug().to_string();
    if cut < text.len() {
        quoted.push_str("...");
    }
    quoted
}

/// Whether a character ends a line, moves the cursor, or changes how what stands beside it looks: controls,
/// separators of lines and paragraphs, what turns the direction of writing, and what cannot be seen. Not the
/// joiners, which words and pictures are written with.
pub fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A sentence that may name a path, fit for one line.
pub(crate) fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if is_hidden(char) {
            line.extend(char.escape_debug());
        } else {
            line.push(char);
        }
    }
    line
}

/// Names for a message: a model may have thousands, and a message has a bound.
pub(crate) fn list_text<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut quoted: Vec<String> = names.take(NAMED + 1).map(|name| format!("'{}'", quote(name))).collect();
    if quoted.len() > NAMED {
        quoted[NAMED] = "...".to_owned();
    }
    format!("[{}]", quoted.join(","))
}

/// A shape as Triton writes it. Clients send shapes of any length: a long one is cut.
pub(crate) fn shape_text(shape: &[i64]) -> String {
    const SHOWN: usize = 16;
    let dims: Vec<String> = shape.iter().take(SHOWN).map(i64::to_string).collect();
    let more = if shape.len() > SHOWN { format!(",... {} dimensions", shape.len()) } else { String::new() };
    format!("[{}{more}]", dims.join(","))
}
