//! Tables in columns, and text in lines, for terminals.

use std::fmt::Write as _;

/// Lines of text are broken before they get longer.
pub(crate) const WIDTH: usize = 96;

/// Words in lines of at most so many characters, unless a word alone is longer; nothing in them moves the
/// cursor.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word: String = word
            .chars()
            .flat_map(|char| match char {
                '"' | '\'' | '\\' => vec![char],
                _ => char.escape_debug().collect(),
            })
            .collect();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// Columns as wide as what stands in them, and notes below rows.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// By the number of the row that they stand below.
    notes: Vec<(usize, String)>,
}

impl Table {
    pub(crate) fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|&word| word.to_owned()).collect()], notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, row: Vec<String>, note: Option<String>) {
        self.rows.push(row);
        if let Some(note) = note {
            self.note(&note);
        }
    }

    /// A sentence below the last row.
    pub(crate) fn note(&mut self, note: &str) {
        self.notes.push((self.rows.len() - 1, note.to_owned()));
    }

    /// All of it. Cells are taken as they are; a row of one cell may be of any width.
    pub(crate) fn text(&self) -> String {
        let width = |column: usize| {
            let rows = self.rows.iter().filter(|row| row.len() > 1);
            let cells = rows.filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            let _ = writeln!(text, "{}", line.trim_end());
            for (_, note) in self.notes.iter().filter(|(at, _)| *at == number) {
                for line in wrapped(note, WIDTH - 4) {
                    let _ = writeln!(text, "    {line}");
                }
            }
        }
        text
    }
}
