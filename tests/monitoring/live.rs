//! A real Prometheus scrapes a server that is asked, and answers what the dashboard and the rules ask.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::{
    deployed::{ELSEWHERE, Found, asked, charted},
    exercise::Exercised,
    prometheus::{JOB, Prometheus},
    promql::Query,
};
use crate::changes::eventually;

/// Whether a panel may be empty here, where nothing hangs.
fn may_be_empty(query: &str) -> bool {
    let elsewhere = Query::of(query).selectors.iter().any(|s| ELSEWHERE.contains(&&*s.metric));
    elsewhere || query.contains("sconce_hung_runs")
}

fn number(value: &Value) -> f64 {
    let text = value["value"][1].as_str().unwrap_or_else(|| panic!("no number in {value}"));
    text.parse().unwrap_or_else(|_| panic!("no number in {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_every_query_of_the_dashboard_about_a_server_under_load() {
    let exercised = Exercised::start().await;
    let Some(prometheus) = Prometheus::start(&exercised.server) else { return };
    let enough = AtomicBool::new(false);
    let load = async {
        while !enough.load(Ordering::Relaxed) {
            exercised.good().await;
            exercised.bad().await;
            exercised.many().await;
            exercised.reload().await;
        }
    };
    let look = async {
        for Found { place, query } in charted() {
            let query = asked(&query);
            if may_be_empty(&query) {
                prometheus.query(&query);
                continue;
            }
            let found =
                eventually(&exercised.server, &format!("{place} shows something: {query}"), async || {
                    let found = prometheus.query(&query);
                    found.iter().any(|series| number(series).is_finite()).then_some(found)
                })
                .await;
            assert!(found.len() < 200, "{place} has {} lines", found.len());
        }
        enough.store(true, Ordering::Relaxed);
    };
    tokio::join!(load, look);

    // Nobody asks any more: what it scraped last is what the server says.
    let metrics = exercised.metrics();
    let name = r#"sconce_requests_total{model="echo", reason="ok"}"#;
    let told = metrics.sum("sconce_requests_total", &[("model", "echo"), ("reason", "ok")]);
    eventually(&exercised.server, "the last number is scraped", async || {
        let found = prometheus.query(name);
        (found.len() == 1 && number(&found[0]) == told).then_some(())
    })
    .await;
    let targets = prometheus.get("targets");
    let target = &targets["activeTargets"][0];
    assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{targets}");
    assert_eq!(target["labels"]["job"], JOB);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_evaluates_every_rule_and_sees_a_load_that_failed() {
    let exercised = Exercised::start().await;
    let Some(prometheus) = Prometheus::start(&exercised.server) else { return };
    let rules = eventually(&exercised.server, "every rule has been evaluated", async || {
        let groups = prometheus.get("rules");
        let groups = groups["groups"].as_array().expect("groups").clone();
        let rules: Vec<Value> =
            groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    })
    .await;
    for rule in &rules {
        assert_eq!((&rule["health"], &rule["lastError"]), (&"ok".into(), &Value::Null), "{rule}");
    }
    eventually(&exercised.server, "the alert of the broken model fires", async || {
        let found = prometheus.query(r#"ALERTS{alertname="SconceLoadFailing", alertstate="firing"}"#);
        found.iter().any(|alert| alert["metric"]["model"] == "broken").then_some(())
    })
    .await;
    // Of a server that is well nothing else is wrong.
    let firing = prometheus.query(r#"ALERTS{alertname!="SconceLoadFailing", alertstate="firing"}"#);
    assert!(firing.is_empty(), "{firing:?}");
}
