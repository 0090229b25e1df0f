//! What is deployed: the dashboard, the rules and the runbook, held against each other and against `/metrics`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::Value;

use super::{
    exercise::Exercised,
    exposition::Exposition,
    prometheus::promtool,
    promql::{Query, Selector},
};
use crate::harness::root;

/// Prometheus makes it itself of each server that it scrapes.
const UP: &str = "up";
/// Only where there are GPUs, or where traces are sent to a collector.
pub(super) const ELSEWHERE: [&str; 2] =
    ["sconce_device_memory_used_bytes", "sconce_device_memory_total_bytes"];
/// Labels that Prometheus adds to everything that it scrapes.
const ADDED: [&str; 2] = ["job", "instance"];

/// A query, and where it stands.
pub(super) struct Found {
    pub(super) place: String,
    pub(super) query: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join("deploy").join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("grafana/sconce.json")).expect("JSON")
}

fn panels(dashboard: &Value) -> &[Value] {
    dashboard["panels"].as_array().expect("panels")
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field:?} in {value}"))
}

/// The queries of the panels.
pub(super) fn charted() -> Vec<Found> {
    let dashboard = dashboard();
    let queries = panels(&dashboard).iter().filter(|panel| panel["targets"].is_array()).flat_map(|panel| {
        let targets = panel["targets"].as_array().expect("targets");
        targets.iter().map(|target| Found {
            place: format!("the panel {:?}", text(panel, "title")),
            query: text(target, "expr").to_owned(),
        })
    });
    queries.collect()
}

/// The queries of what is drawn into charts, and those by which variables are filled.
fn around() -> Vec<Found> {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let variables = variables.filter(|variable| variable["type"] == "query").map(|variable| {
        let query = text(&variable["query"], "query");
        let (query, label) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "))
            .unwrap_or_else(|| panic!("{query}: not label_values(SERIES, LABEL)"));
        // As a query with the same meaning.
        let query = format!("group by ({label}) ({query})");
        Found { place: format!("the variable {:?}", text(variable, "name")), query }
    });
    let annotations = dashboard["annotations"]["list"].as_array().expect("annotations").iter();
    let annotations = annotations.map(|annotation| Found {
        place: format!("the annotation {:?}", text(annotation, "name")),
        query: text(annotation, "expr").to_owned(),
    });
    variables.chain(annotations).collect()
}

/// A query as Grafana asks it when everything is chosen.
pub(super) fn asked(query: &str) -> String {
    let times = ["$__rate_interval", "$__interval", "$__range"].iter();
    let query = times.fold(query.to_owned(), |query, name| query.replace(name, "1m"));
    ["$job", "$instance", "$model", "$version"].iter().fold(query, |query, name| query.replace(name, ".*"))
}

/// The rules, whole.
fn rules() -> Vec<serde_yaml::Value> {
    let all: serde_yaml::Value = serde_yaml::from_str(&read("prometheus/rules.yaml")).expect("YAML");
    let groups = all["groups"].as_sequence().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_sequence().expect("rules").clone()).collect()
}

/// The names that the rules record, or of alerts.
fn names(kind: &str) -> Vec<String> {
    rules().iter().filter_map(|rule| Some(rule[kind].as_str()?.to_owned())).collect()
}

fn ruled() -> Vec<Found> {
    let found = |rule: &serde_yaml::Value| {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).expect("a name");
        let query = rule["expr"].as_str().expect("an expression").to_owned();
        Found { place: format!("the rule {name}"), query }
    };
    rules().iter().map(found).collect()
}

/// What a selector asks for that is not there.
fn missing(selector: &Selector, metrics: &Exposition, recorded: &[String]) -> Option<String> {
    let name = &selector.metric;
    let elsewhere = name == UP || recorded.contains(name) || ELSEWHERE.contains(&&**name);
    if !metrics.has(name) {
        return (!elsewhere).then(|| format!("{name} is not in /metrics"));
    }
    let labels = metrics.labels(name);
    let strange = selector.matchers.iter().map(|[label, ..]| label);
    let strange: Vec<_> = strange.filter(|l| !labels.contains(*l) && !ADDED.contains(&&***l)).collect();
    (!strange.is_empty()).then(|| format!("{name} has no label {strange:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_and_label_that_is_asked_for_is_there() {
    let exercised = Exercised::start().await;
    let metrics = exercised.metrics();
    let recorded = names("record");
    let labels: BTreeSet<String> = metrics.families.values().flat_map(|f| &f.samples).fold(
        ADDED.map(str::to_owned).into(),
        |mut labels, sample| {
            labels.extend(sample.labels.keys().cloned());
            labels
        },
    );
    let mut complaints = Vec::new();
    for Found { place, query } in charted().into_iter().chain(around()).chain(ruled()) {
        let asks = Query::of(&query);
        assert!(!asks.selectors.is_empty(), "{place}: no metric in {query}");
        let lacking = asks.selectors.iter().filter_map(|selector| missing(selector, &metrics, &recorded));
        complaints.extend(lacking.map(|what| format!("{place}: {what}")));
        let strange = asks.grouping.iter().filter(|label| !labels.contains(*label));
        complaints.extend(strange.map(|label| format!("{place}: nothing has the label {label:?}")));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_chart_is_of_what_has_been_chosen() {
    let exercised = Exercised::start().await;
    let metrics = exercised.metrics();
    for Found { place, query } in charted() {
        for Selector { metric, matchers } in Query::of(&query).selectors {
            let labels = metrics.labels(&metric);
            let of_version = labels.contains("model") && labels.contains("version");
            let variables = [("job", true), ("instance", true), ("model", labels.contains("model"))];
            for (name, has) in variables.into_iter().chain([("version", of_version)]) {
                let chosen = [name.to_owned(), "=~".to_owned(), format!("${name}")];
                assert_eq!(matchers.contains(&chosen), has, "{place}: {name} of {metric} in {query}");
            }
        }
    }
}

/// Values of labels that queries name must be words of the README, where all of them stand but the code OK.
#[test]
fn what_labels_are_compared_with_exists() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let words: BTreeSet<&str> = readme.split('`').skip(1).step_by(2).collect();
    for Found { place, query } in charted().into_iter().chain(ruled()) {
        for [label, _, value] in Query::of(&query).selectors.into_iter().flat_map(|s| s.matchers) {
            let free = value.starts_with('$') || ADDED.contains(&&*label) || value == "OK";
            for word in value.split('|').filter(|_| !free) {
                assert!(words.contains(word), "{place}: README.md knows no {label} {word:?}");
            }
        }
    }
}

#[test]
fn every_panel_says_what_is_normal_and_has_its_place() {
    let dashboard = dashboard();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeMap::new());
    for panel in panels(&dashboard) {
        let (id, title) = (panel["id"].as_u64().expect("an id"), text(panel, "title"));
        assert!(ids.insert(id), "{title}: {id} is taken");
        let place = |field: &str| panel["gridPos"][field].as_u64().expect("a number");
        assert!(place("x") + place("w") <= 24, "{title}: wider than the page");
        for cell in (place("x")..place("x") + place("w"))
            .flat_map(|x| (place("y")..place("y") + place("h")).map(move |y| (x, y)))
        {
            let other = taken.insert(cell, title);
            assert!(other.is_none(), "{title:?} lies on {other:?}");
        }
        if ["row", "text"].contains(&text(panel, "type")) {
            continue;
        }
        assert!(!title.is_empty() && text(panel, "description").ends_with('.'), "{title}: no description");
        assert!(text(panel, "description").split(['.', ';']).count() > 2, "{title}: what to do?");
        assert_eq!(text(&panel["datasource"], "uid"), "${datasource}", "{title}");
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variables: Vec<&str> = variables.iter().map(|variable| text(variable, "name")).collect();
    assert_eq!(variables, ["datasource", "job", "instance", "model", "version"]);
}

#[test]
fn every_alert_has_its_section_in_the_runbook_and_a_test() {
    let runbook = read("RUNBOOK.md");
    let sections: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, names("alert"), "sections of the runbook, in the order of the rules");
    for part in runbook.split("\n## ").skip(1) {
        for word in ["**Means:**", "**Look at:**", "**Do:**"] {
            assert!(part.contains(word), "{word} is missing: {part}");
        }
    }
    let tests: serde_yaml::Value = serde_yaml::from_str(&read("prometheus/rules_test.yaml")).expect("YAML");
    let cases = tests["tests"].as_sequence().expect("tests").iter();
    let cases = cases.filter_map(|case| case["alert_rule_test"].as_sequence()).flatten();
    let mut seen: BTreeMap<&str, BTreeSet<bool>> = BTreeMap::new();
    for case in cases {
        let fires = case["exp_alerts"].as_sequence().is_some_and(|alerts| !alerts.is_empty());
        seen.entry(case["alertname"].as_str().expect("a name")).or_default().insert(fires);
    }
    for rule in rules().iter().filter(|rule| rule["alert"].is_string()) {
        let name = rule["alert"].as_str().expect("a name");
        let annotations = &rule["annotations"];
        let link = format!("deploy/RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(annotations["runbook"].as_str(), Some(&*link), "{name}");
        for field in ["summary", "description"] {
            assert!(annotations[field].as_str().is_some_and(|text| text.ends_with('.')), "{name}: {field}");
        }
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity:?}");
        assert_eq!(seen.get(name).map(BTreeSet::len), Some(2), "{name} is seen firing and not firing");
    }
}

/// Panels that the runbook names in quotes are there.
#[test]
fn the_runbook_names_panels_that_exist() {
    let dashboard = dashboard();
    let titles: BTreeSet<&str> = panels(&dashboard).iter().map(|panel| text(panel, "title")).collect();
    let runbook = read("RUNBOOK.md");
    for line in runbook.lines().filter(|line| line.starts_with("**Look at:**")) {
        for quoted in line.split('"').skip(1).step_by(2).filter(|quoted| !quoted.starts_with("The server")) {
            assert!(titles.contains(quoted), "the dashboard has no panel {quoted:?}");
        }
    }
}

#[test]
fn promtool_finds_nothing_wrong_with_rules_and_configuration() {
    for arguments in [
        &["check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"][..],
        &["check", "config", "prometheus.yaml"],
        &["test", "rules", "rules_test.yaml"],
    ] {
        let Some(text) = promtool(arguments, "") else { return };
        assert!(text.contains("SUCCESS"), "{arguments:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_wrong_with_the_metrics() {
    let exercised = Exercised::start().await;
    if let Some(said) = promtool(&["check", "metrics"], &exercised.metrics().text) {
        assert_eq!(said, "");
    }
}
