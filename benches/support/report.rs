//! Medians of paired ratios, and their table.

use std::time::Duration;

/// One round of one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
    pub(crate) requests: usize,
}

impl Round {
    /// The server's CPU time per request in microseconds.
    fn cpu(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests as f64
    }

    fn rate(&self) -> f64 {
        self.requests as f64 / self.wall.as_secs_f64()
    }
}

/// The middle of some numbers, and how far they lie apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Self { median: (at(last / 2) + at(sorted.len() / 2)) / 2.0, min: at(0), max: at(last) }
    }
}

/// The number below which this part of some numbers lies.
pub(crate) fn percentile(numbers: &[f64], part: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The head of the table of [`row`]s, whose pairs are of these two.
pub(crate) fn head(first: &str, second: &str) -> String {
    let pair = format!("{first:>8} {second:>8}  ratio  (min - max)     ");
    format!("{:18}server CPU us/request                         requests/s\n{:18}{pair}    {pair}", "", "")
}

/// One line: pairs of rounds, of which the second is divided by the first.
pub(crate) fn row(name: &str, pairs: &[(Round, Round)]) -> String {
    let columns = |value: fn(&Round) -> f64, digits: usize| {
        let floor = Spread::of(pairs.iter().map(|(floor, _)| value(floor))).median;
        let sconce = Spread::of(pairs.iter().map(|(_, sconce)| value(sconce))).median;
        let ratio = Spread::of(pairs.iter().map(|(floor, sconce)| value(sconce) / value(floor)));
        format!(
            "{floor:8.digits$} {sconce:8.digits$} {:6.3}  ({:.3} - {:.3})",
            ratio.median, ratio.min, ratio.max
        )
    };
    format!("{name:<18}{}    {}", columns(Round::cpu, 1), columns(Round::rate, 0))
}
