//! What `/metrics` says, in Prometheus' text format.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::Server;

/// A number, with the labels that tell which.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// All that is said of a metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Family {
    pub(super) kind: String,
    pub(super) help: String,
    pub(super) samples: Vec<Sample>,
}

/// All metrics, by name.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    pub(super) families: BTreeMap<String, Family>,
    pub(super) text: String,
}

impl Exposition {
    /// What the server says now.
    pub(super) fn of(server: &Server) -> Self {
        let (status, text) = server.get("/metrics");
        assert_eq!(status, 200, "{text}");
        Self::parse(&text)
    }

    /// Reads it strictly: what is not as it should be is a failure.
    pub(super) fn parse(text: &str) -> Self {
        let mut all = Self { text: text.to_owned(), ..Self::default() };
        assert!(text.is_empty() || text.ends_with('\n'), "the last line does not end");
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
                all.families.entry(name.to_owned()).or_default().help = help.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
                let family = all.families.entry(name.to_owned()).or_default();
                assert!(family.kind.is_empty(), "the type of {name} is told twice");
                family.kind = kind.to_owned();
            } else {
                let sample = sample(line);
                let family = all.family_of(&sample.name);
                let family = all.families.get_mut(&family).unwrap_or_else(|| panic!("of no type: {line}"));
                family.samples.push(sample);
            }
        }
        all
    }

    /// The metric to which a series of this name belongs.
    fn family_of(&self, name: &str) -> String {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            let base = name.strip_suffix(suffix)?;
            (self.families.get(base)?.kind == "histogram").then(|| base.to_owned())
        });
        of_histogram.unwrap_or_else(|| name.to_owned())
    }

    /// Whether there is a series of this name; a histogram has none of its own name.
    pub(super) fn has(&self, name: &str) -> bool {
        let family = self.families.get(&self.family_of(name));
        family.is_some_and(|family| family.samples.iter().any(|sample| sample.name == name))
    }

    /// The samples of a name that have these labels, whatever others they have.
    pub(super) fn samples(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let Some(family) = self.families.get(&self.family_of(name)) else { return Vec::new() };
        let fits = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|is| is == value))
        };
        family.samples.iter().filter(fits).collect()
    }

    /// Their sum.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name, labels).iter().map(|sample| sample.value).sum()
    }

    /// The labels that series of a name have.
    pub(super) fn labels(&self, name: &str) -> BTreeSet<String> {
        let samples = self.samples(name, &[]);
        samples.iter().flat_map(|sample| sample.labels.keys().cloned()).collect()
    }

    /// Every series, without its value.
    pub(super) fn series(&self) -> BTreeSet<String> {
        let samples = self.families.values().flat_map(|family| &family.samples);
        samples.map(|sample| format!("{}{:?}", sample.name, sample.labels)).collect()
    }
}

/// `name{label="value"} number`.
fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no sample: {line}"));
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            let (value, after) = unescaped(after).unwrap_or_else(|| panic!("it does not end: {line}"));
            assert!(labels.insert(label.to_owned(), value).is_none(), "{label} twice: {line}");
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    let number = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no number: {line}"));
    let value = number.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    Sample { name: name.to_owned(), labels, value }
}

/// The value of a label, and what is behind it.
fn unescaped(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.chars();
    loop {
        match rest.next()? {
            '"' => return Some((value, rest.as_str())),
            '\\' => match rest.next()? {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                c => panic!("\\{c} is no escape"),
            },
            c => value.push(c),
        }
    }
}

#[test]
fn metrics_are_read_with_their_types_and_labels() {
    let text = "# HELP a Says.\n# TYPE a counter\na{x=\"1\",y=\"b\\\"\\\\\\n}c\"} 3\na{x=\"2\"} 4\n\
                # HELP h Says too.\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\nh_sum 0.5\nh_count 2\n";
    let all = Exposition::parse(text);
    assert_eq!((all.sum("a", &[]), all.sum("a", &[("x", "2")]), all.sum("b", &[])), (7.0, 4.0, 0.0));
    assert_eq!(all.samples("a", &[("x", "1")])[0].labels["y"], "b\"\\\n}c");
    assert_eq!((&*all.families["a"].kind, &*all.families["h"].help), ("counter", "Says too."));
    assert!(all.has("h_sum") && all.has("a") && !all.has("h") && !all.has("a_sum") && !all.has("b"));
    assert_eq!(all.labels("h_bucket"), BTreeSet::from(["le".to_owned()]));
    assert_eq!(all.series().len(), 5);
}
