//! The classification extension: the best classes of an output with labels.

use super::{answer::Output, text::plain};

const BAR: usize = 24;
/// Longer labels are cut: a table has lines of one height.
const MAX_LABEL: usize = 40;

/// One entry of a classified output.
#[derive(Debug, PartialEq)]
pub(super) struct Class {
    /// As the server wrote it.
    pub(super) score: String,
    pub(super) index: u64,
    pub(super) label: Option<String>,
}

impl Class {
    /// `value:index` or `value:index:label`; a label may have colons of its own.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let mut parts = text.splitn(3, ':');
        let score = parts.next().filter(|score| score.parse::<f64>().is_ok())?.to_owned();
        let index = parts.next()?.parse().ok()?;
        Some(Self { score, index, label: parts.next().map(str::to_owned) })
    }

    fn value(&self) -> f64 {
        self.score.parse().unwrap_or(f64::NAN)
    }

    fn shown(&self) -> String {
        let label = self.label.as_deref().filter(|label| !label.is_empty());
        let label = label.map_or_else(|| format!("class {}", self.index), plain).replace('\n', "\\n");
        match label.char_indices().nth(MAX_LABEL) {
            Some((at, _)) => format!("{}...", &label[..at]),
            None => label,
        }
    }
}

/// The classes of each row; `None` where the output is something else than a classification.
pub(super) fn rows(output: &Output) -> Option<Vec<Vec<Class>>> {
    let classes: Vec<Class> =
        (0..output.count()).map(|at| Class::parse(output.element(at))).collect::<Option<_>>()?;
    let each = output.shape.last().and_then(|&each| usize::try_from(each).ok()).filter(|&each| each > 0)?;
    let mut rows: Vec<Vec<Class>> = Vec::new();
    for class in classes {
        match rows.last_mut() {
            Some(row) if row.len() < each => row.push(class),
            Some(_) | None => rows.push(vec![class]),
        }
    }
    Some(rows)
}

/// Tables of rank, label, score and bar.
pub(super) fn tables(rows: &[Vec<Class>]) -> String {
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        if rows.len() > 1 {
            text.push_str(&format!("  row {number}\n"));
        }
        text.push_str(&table(row));
    }
    text
}

fn table(row: &[Class]) -> String {
    let labels: Vec<String> = row.iter().map(Class::shown).collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let score_width = row.iter().map(|class| class.score.len()).max().unwrap_or(0);
    let rank_width = row.len().to_string().len();
    // Probabilities have a scale of their own; other scores are shown relative to the best.
    let best = row.iter().map(Class::value).fold(0.0_f64, f64::max);
    let full = if row.iter().all(|class| (0.0..=1.0).contains(&class.value())) { 1.0 } else { best };
    let mut text = String::new();
    for (rank, (class, label)) in row.iter().zip(labels).enumerate() {
        let line = format!(
            "  {:>rank_width$}  {label:<width$}  {:>score_width$}  {}",
            rank + 1,
            class.score,
            bar(class.value() / full)
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A bar in eighths of a character.
fn bar(share: f64) -> String {
    if !share.is_finite() {
        return String::new();
    }
    let eighths = (share.clamp(0.0, 1.0) * BAR as f64 * 8.0).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    bar.extend(['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get((eighths % 8).wrapping_sub(1)));
    bar
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            answer::{outputs, tests::response},
            array::push_string,
        },
        *,
    };

    fn output(shape: &[i64], texts: &[&str]) -> Output {
        let mut data = Vec::new();
        for text in texts {
            push_string(&mut data, text.as_bytes()).unwrap();
        }
        outputs(response("scores", "BYTES", shape, &data)).unwrap().remove(0)
    }

    #[test]
    fn classes_become_tables() {
        let rows =
            rows(&output(&[2, 2], &["0.750000:7:seven", "0.250000:1:one", "0.5:0:a:b", "0.0:3"])).unwrap();
        let text = tables(&rows);
        assert_eq!(
            text,
            "  row 0\n  1  seven  0.750000  ██████████████████\n  2  one    0.250000  ██████\n  \
             row 1\n  1  a:b      0.5  ████████████\n  2  class 3  0.0\n"
        );
    }

    #[test]
    fn scores_that_are_no_probabilities_are_relative_to_the_best() {
        let rows = rows(&output(&[3], &["8.0:1:x", "4.0:2:y", "-1.0:0:z"])).unwrap();
        let bars: Vec<usize> = tables(&rows).lines().map(|line| line.matches('█').count()).collect();
        assert_eq!(bars, [24, 12, 0]);
        assert!(!tables(&super::rows(&output(&[1], &["nan:1:x"])).unwrap()).contains('█'));
    }

    #[test]
    fn labels_are_harmless_and_other_strings_are_no_classes() {
        let rows = rows(&output(&[1], &["1.0:0:\u{1b}[2J\nevil"])).unwrap();
        assert!(tables(&rows).contains("\\u{1b}[2J\\nevil"));
        for text in ["hello", "1.0", "1.0:x", "x:1", ""] {
            assert_eq!(super::rows(&output(&[1], &[text])), None, "{text}");
        }
        assert_eq!(super::rows(&output(&[0], &[])), None);
    }
}
