//! The table of metrics in README.md is that of `/metrics`.

use std::collections::BTreeSet;

use super::{deployed::ELSEWHERE, exercise::Exercised, exposition::Exposition};
use crate::readme::{code, table};

/// A row: name, type, labels.
type Row = (String, String, BTreeSet<String>);

fn documented(heading: &str) -> BTreeSet<Row> {
    let rows = table(heading);
    let row = |row: &Vec<String>| {
        assert!(!row[3].is_empty(), "what is {}?", row[0]);
        let labels = code(&row[2]).into_iter().map(str::to_owned).collect();
        (code(&row[0])[0].to_owned(), row[1].clone(), labels)
    };
    let found: BTreeSet<Row> = rows.iter().map(row).collect();
    assert_eq!(found.len(), rows.len(), "a metric has one row");
    found
}

fn there(metrics: &Exposition, wanted: impl Fn(&str) -> bool) -> BTreeSet<Row> {
    let families = metrics.families.iter().filter(|(name, _)| wanted(name));
    let row = families.map(|(name, family)| {
        assert!(!family.samples.is_empty(), "{name} has no sample: the server is not exercised enough");
        let labels = family.samples.iter().flat_map(|sample| sample.labels.keys());
        let labels = labels.filter(|label| *label != "le").cloned().collect();
        (name.clone(), family.kind.clone(), labels)
    });
    row.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_metrics_is_that_of_the_server() {
    let exercised = Exercised::start().await;
    let there = there(&exercised.metrics(), |_| true);
    let seen = |name: &str| there.iter().any(|row| row.0 == name);
    let mut documented = documented("Metric");
    documented.retain(|row| seen(&row.0) || !ELSEWHERE.contains(&&*row.0));
    assert_eq!(documented, there);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_tritons_names_is_that_of_the_server() {
    let exercised = Exercised::start_with(&["--metrics-triton-names"]).await;
    let there = there(&exercised.metrics(), |name| name.starts_with("nv_"));
    let seen = |name: &str| there.iter().any(|row| row.0 == name);
    let mut documented = documented("Triton's metric");
    documented.retain(|row| seen(&row.0) || !row.0.starts_with("nv_gpu"));
    assert_eq!(documented, there);
}
