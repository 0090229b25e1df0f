//! The text format of Prometheus, 0.0.4.

use std::{
    borrow::Cow,
    fmt::{Display, Write as _},
};

use sconce_engine::stats::HistogramCounts;

const SECOND: f64 = 1e9;

/// A name and a value.
pub(super) type Label<'a> = (&'a str, &'a str);

/// What is written so far.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// What follows is this metric, until the next one.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {}\n# TYPE {name} {kind}", help);
    }

    /// A value of the metric that these labels tell apart.
    pub(super) fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        self.line(name, "", labels, None, value);
    }

    /// A histogram of nanoseconds, in seconds.
    pub(super) fn durations(&mut self, name: &str, labels: &[Label<'_>], counts: &HistogramCounts) {
        self.histogram(name, labels, counts, SECOND);
    }

    /// A histogram whose bounds and sum are divided by `unit`.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        counts: &HistogramCounts,
        unit: f64,
    ) {
        for (bound, count) in &counts.buckets {
            let bound = (*bound as f64 / unit).to_string();
            self.line(name, "_bucket", labels, Some(("le", &bound)), count);
        }
        self.line(name, "_bucket", labels, Some(("le", "+Inf")), counts.count);
        self.line(name, "_sum", labels, None, counts.sum as f64 / unit);
        self.line(name, "_count", labels, None, counts.count);
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[Label<'_>],
        last: Option<Label<'_>>,
        value: impl Display,
    ) {
        let _ = write!(self.0, "{name}{suffix}");
        let mut separator = '{';
        for (label, value) in labels.iter().chain(&last) {
            let _ = write!(self.0, "{separator}{label}=\"{}\"", escaped(value));
            separator = ',';
        }
        let end = if separator == '{' { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.0
    }
}

/// What stands between the quotes of a label.
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_prometheus_reads() {
        let mut text = Text::default();
        text.family("a_total", "counter", "A and B");
        text.sample("a_total", &[("x", "q\"\\\n")], 1);
        text.sample("b", &[], 0.5);
        let counts =
            HistogramCounts { buckets: vec![(50_000, 1), (1_000_000_000, 2)], count: 3, sum: 1_500_000_000 };
        text.durations("c_seconds", &[("y", "z")], &counts);
        let expected = r#"# HELP a_total A and B
# TYPE a_total counter
a_total{x="q\"\\\n"} 1
b 0.5
c_seconds_bucket{y="z",le="0.00005"} 1
c_seconds_bucket{y="z",le="1"} 2
c_seconds_bucket{y="z",le="+Inf"} 3
c_seconds_sum{y="z"} 1.5
c_seconds_count{y="z"} 3
"#;
        assert_eq!(String::from(text), expected);
    }
}
