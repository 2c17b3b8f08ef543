//! `ops/grafana-dashboard.json`: that Grafana can show it, and that there is something to be seen.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::certificates::{Authority, LOCAL};
use crate::load::under_load;
use crate::prometheus::{Prometheus, text_of};
use crate::support::mosquitto::{Mosquitto, PERSISTENT};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

/// What is there only when something is wrong, or seldom.
const RIGHTLY_EMPTY: &[(&str, &str)] = &[
    ("ALERTS{alertname=~\"Tidings.*\",alertstate=\"firing\"}", "nothing is wrong when the queries are tried"),
    ("changes(process_start_time_seconds{job=\"tidings\",instance=~\"$instance\"}[2m]) > 0", "it has not started again"),
];

/// What is there only of several instances over one log: `tests/http/cluster.rs` has these.
const OF_SEVERAL: [&str; 2] = ["tidings_cluster_", "tidings_stream_"];

/// What Grafana 11 has of its own, without those that it migrates away from (graph, singlestat, table-old, worldmap).
const PANELS: [&str; 6] = ["row", "stat", "timeseries", "heatmap", "state-timeline", "table"];

fn dashboard() -> Value {
    serde_json::from_str(&text_of("ops/grafana-dashboard.json")).expect("the dashboard is JSON")
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().collect()
}

/// A query with its legend, by the name of its panel.
fn queries(dashboard: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((text(&panel["title"]), text(&target["expr"]), text(&target["legendFormat"])));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        queries.push((text(&annotation["name"]), text(&annotation["expr"]), String::new()));
    }
    queries
}

/// Everything is chosen, and a rate looks back over ten scrapes.
fn filled_in(query: &str) -> String {
    let query = query.replace("$instance", ".*").replace("$connection", ".*").replace("$__rate_interval", "10s");
    assert!(!query.contains('$'), "an unknown variable: {query}");
    query
}

/// The metrics that a text names, without what histograms add.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    let names = words.filter(|word| word.starts_with("tidings_") || (word.starts_with("process_") && word.len() > 8));
    names.map(plain).collect()
}

fn plain(name: &str) -> String {
    let histogram = name.starts_with("tidings_delivery_latency_seconds") || name.starts_with("tidings_commit_");
    let suffix = ["_bucket", "_sum", "_count"].into_iter().find(|suffix| histogram && name.ends_with(suffix));
    name.strip_suffix(suffix.unwrap_or_default()).unwrap_or(name).to_owned()
}

#[test]
fn grafana_can_show_every_panel_and_none_hides_another() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeMap::new());
    for panel in panels(&dashboard) {
        let (kind, title) = (panel["type"].as_str().unwrap(), panel["title"].as_str().unwrap());
        assert!(PANELS.contains(&kind), "{title} is of the kind {kind}");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title} has an id that another has");
        assert!(kind == "row" || !panel["description"].as_str().unwrap().is_empty(), "{title} does not say what it shows");
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(side("x") + side("w") <= 24, "{title} leaves the page");
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                let before = taken.insert((x, y), title);
                assert_eq!(before, None, "{title} lies on another");
            }
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title} asks another Prometheus");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter().map(|variable| variable["name"].as_str().unwrap());
    assert_eq!(variables.collect::<Vec<_>>(), ["datasource", "instance", "connection"]);
}

/// Where in `/metrics` a metric is announced.
fn announced(tidings: &Tidings) -> BTreeSet<String> {
    let text = tidings.get("/metrics").unwrap().text;
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect()
}

/// What a query finds that is a number.
fn has_data(found: &[Value]) -> bool {
    found.iter().any(|series| series["value"][1].as_str().is_some_and(|value| value != "NaN"))
}

#[test]
fn every_query_has_data_and_every_metric_is_there_and_documented() {
    let folder = tempfile::tempdir().unwrap();
    let (certfile, keyfile) = Authority::new("authority").issue(&LOCAL).write(folder.path(), "listener");
    let listener = format!(
        "[listener]\nlisten = \"127.0.0.1:0\"\nconnection = \"mqtt\"\ncertfile = \"{}\"\nkeyfile = \"{}\"\n",
        certfile.display(),
        keyfile.display()
    );
    let mut mosquitto = Mosquitto::start(PERSISTENT);
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + &listener + SOON + PIPELINES));
    let prometheus = Prometheus::start(tidings.address());
    let dashboard = dashboard();
    under_load(&tidings, || {
        tidings.wait_for_total("acknowledged", 20);
        mosquitto.stop();
        wait_until("the outage is seen", || has_data(&prometheus.query("tidings_connection_up == 0").unwrap()));
        mosquitto.run();
        for _ in 0..3 {
            assert_eq!(tidings.post("/v1/reports", "{").unwrap().status, 400);
        }
        for (panel, query, legend) in queries(&dashboard) {
            let asked = filled_in(&query);
            let is_of_several = OF_SEVERAL.iter().any(|family| query.contains(family));
            if is_of_several || RIGHTLY_EMPTY.iter().any(|(empty, _)| *empty == query) {
                prometheus.query(&asked).unwrap_or_else(|error| panic!("{panel}: {query}: {error}"));
                continue;
            }
            let mut found = Vec::new();
            wait_until(&format!("{panel} has data: {query}"), || {
                found = prometheus.query(&asked).unwrap_or_else(|error| panic!("{panel}: {query}: {error}"));
                has_data(&found)
            });
            for label in legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap()) {
                let have = found.iter().all(|series| series["metric"].get(label).is_some());
                assert!(have, "{panel}: its legend shows {label}, which {query} has not");
            }
        }
        for variable in ["instance", "connection"] {
            let list = dashboard["templating"]["list"].as_array().unwrap();
            let query = list.iter().find(|known| known["name"] == variable).unwrap()["definition"].as_str().unwrap();
            let (series, label) = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            let found = prometheus.query(&filled_in(series)).unwrap();
            assert!(!found.is_empty() && found.iter().all(|series| series["metric"].get(label).is_some()), "{variable}: {query}");
        }
    });
    for limit in ["tidings_store_bytes", "tidings_store_max_bytes", "tidings_store_free_bytes", "tidings_store_reserved_bytes"] {
        assert!(tidings.metric(limit) > 0.0, "{limit} is what alerts compare with");
    }
    let metrics = announced(&tidings);
    let own: BTreeSet<String> = metrics.iter().filter(|name| name.starts_with("tidings_")).cloned().collect();
    let documented = text_of("ops/metrics.md");
    let rows = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next().map(str::to_owned));
    let is_there = |name: &String| own.contains(name) || !OF_SEVERAL.iter().any(|family| name.starts_with(family));
    let documented: BTreeSet<String> = rows.collect();
    assert_eq!(documented.iter().filter(|name| is_there(name)).cloned().collect::<BTreeSet<_>>(), own, "ops/metrics.md against /metrics");
    for file in ["ops/grafana-dashboard.json", "ops/alerts.rules.yml", "ops/runbook.md"] {
        for named in metrics_in(&text_of(file)) {
            assert!(metrics.contains(&named) || documented.contains(&named), "{file} names {named}, which is not in /metrics");
        }
    }
    let shown = metrics_in(&text_of("ops/grafana-dashboard.json"));
    assert_eq!(own.difference(&shown).collect::<Vec<_>>(), Vec::<&String>::new(), "the dashboard shows everything");
}
