//! Reports as a busy Zuul makes them: items of several tenants, projects and pipelines start, run for a while, and end.
//!
//! Everything follows from the name of the run, so a run can be repeated. Topic and QoS of a report are written down here a second time, and not taken from the
//! service's templates and routes: what is checked must not be what checks.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::check::Marker;
use crate::cli::busy_zuul::{Dice, JOBS, PLACES};
use crate::core::types::Qos;

/// The pipelines, as they stand in a `tidings.toml`: the template is that of Zuul's documentation, and every QoS is in use.
///
/// What is at QoS 0 has topics of its own, because a broker owes order only within one topic *and* QoS (MQTT 5.0 §4.6), and this one has a queue of its own for
/// QoS 0. QoS 1 and 2 go through one queue, and share topics.
pub const PIPELINES: &str = r#"
[[pipeline]]
name = "check"
start.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}/started" }
success.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}", qos = 2 }
failure.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}", qos = 2 }

[[pipeline]]
name = "gate"
start.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}", qos = 1 }
success.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}", qos = 2 }
failure.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}", qos = 2 }

[[pipeline]]
name = "periodic"
start.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}/started" }
success.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}", qos = 1 }
failure.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}", qos = 1 }
"#;

/// Changes under way at once in a place: few, so that topics come again and again and their order is worth checking.
const CHANGES: u64 = 6;

/// Items that run at once; the oldest of them ends next, more or less.
const RUNNING: usize = 12;

/// A report, ready to be posted, and what is known of it.
pub struct DemoReport {
    /// The topic that it has to arrive on.
    pub topic: Arc<str>,
    /// The number of the topic, in order of appearance.
    pub topic_number: usize,
    /// Its place among the reports of its topic.
    pub of_topic: u32,
    /// The QoS that it has to arrive at.
    pub qos: Qos,
    /// What is posted, and has to arrive byte for byte.
    pub payload: Bytes,
}

/// Makes reports without end.
pub struct Generator {
    run: String,
    dice: Dice,
    /// Seconds since 1970, as the reports have it. It goes on by itself.
    now: f64,
    made: usize,
    running: VecDeque<Item>,
    topics: HashMap<Arc<str>, (usize, u32)>,
}

/// One item of a pipeline.
struct Item {
    pipeline: &'static str,
    tenant: &'static str,
    project: &'static str,
    branch: &'static str,
    /// Change and patchset; none for what runs by the clock.
    change: Option<(u64, u64)>,
    uuid: String,
    jobs: Vec<&'static str>,
    enqueued: f64,
}

impl Generator {
    /// A generator for a run that starts at `now`, in seconds since 1970.
    pub fn new(run: &str, now: f64) -> Self {
        let dice = Dice(xxh3_64(run.as_bytes()));
        Generator { run: run.to_owned(), dice, now, made: 0, running: VecDeque::new(), topics: HashMap::new() }
    }

    fn start(&mut self) -> Item {
        let dice = &mut self.dice;
        let pipeline = ["check", "check", "check", "gate", "gate", "periodic"][dice.below(6)];
        let place = dice.below(PLACES.len());
        let (tenant, project, branch) = PLACES[place];
        let change = (place as u64 + 1) * 1_000 + dice.next() % CHANGES;
        let change = (pipeline != "periodic").then(|| (change, 1 + self.made as u64 / 200));
        let first = dice.below(JOBS.len());
        let count = 3 + dice.below(6);
        let jobs = (0..count).map(|job| JOBS[(first + job) % JOBS.len()]).collect();
        Item { pipeline, tenant, project, branch, change, uuid: dice.uuid(), jobs, enqueued: self.now }
    }

    fn report(&mut self, item: &Item, is_start: bool) -> DemoReport {
        let failed = !is_start && self.dice.below(8) == 0;
        let action = if is_start { "start" } else { ["success", "failure"][usize::from(failed)] };
        let qos = qos_of(item.pipeline, is_start);
        let topic = item.topic(qos);
        let next_number = self.topics.len();
        let (topic, counts) = match self.topics.get_key_value(&*topic) {
            Some((topic, counts)) => (Arc::clone(topic), *counts),
            None => (topic.into(), (next_number, 0)),
        };
        let (topic_number, of_topic) = counts;
        self.topics.insert(Arc::clone(&topic), (topic_number, of_topic + 1));
        let marker = Marker { run: self.run.clone(), report: self.made, of_topic };
        let builds: Vec<Value> =
            item.jobs.iter().enumerate().map(|(place, job)| self.build(item, job, is_start, failed && place == 0)).collect();
        let mut report = item.described();
        report["action"] = json!(action);
        report["message"] = json!(match action {
            "start" => format!("Starting {} jobs.", item.pipeline),
            "success" => format!("Build succeeded ({} pipeline).", item.pipeline),
            _ =>
                format!("Build failed ({} pipeline). For information on how to proceed, see the logs of the failed builds.", item.pipeline),
        });
        report["timestamp"] = json!(self.now);
        report["buildset"] = json!({ "uuid": item.uuid, "result": (!is_start).then(|| action.to_uppercase()), "builds": builds });
        report["demo"] = json!(marker);
        self.made += 1;
        DemoReport { topic, topic_number, of_topic, qos, payload: report.to_string().into() }
    }

    fn build(&mut self, item: &Item, job: &str, is_start: bool, failed: bool) -> Value {
        let (tenant, web) = (item.tenant, "https://zuul.example.com");
        let waits_for = if job == "linters" { json!([]) } else { json!(["linters"]) };
        let mut build = json!({
            "job_name": job, "voting": job != "performance-nightly", "dependencies": waits_for,
            "execute_time": item.enqueued, "web_url": format!("{web}/t/{tenant}/stream/{}?logfile=console.log", self.dice.uuid()),
        });
        if is_start {
            return build;
        }
        let uuid = self.dice.uuid();
        let log_url = format!("https://logs.example.com/{}/{}/{job}/{}/", &uuid[..2], item.pipeline, &uuid[..7]);
        build["result"] = json!(if failed { "FAILURE" } else { "SUCCESS" });
        build["start_time"] = json!(item.enqueued + 1.25);
        build["end_time"] = json!(self.now);
        build["web_url"] = json!(format!("{web}/t/{tenant}/build/{uuid}"));
        build["artifacts"] = json!([
            { "name": "Zuul Manifest", "url": format!("{log_url}zuul-manifest.json"), "metadata": { "type": "zuul_manifest" } },
            { "name": "Test results", "url": format!("{log_url}junit.xml") },
        ]);
        build["log_url"] = json!(log_url);
        build["uuid"] = json!(uuid);
        build
    }
}

impl Iterator for Generator {
    type Item = DemoReport;

    fn next(&mut self) -> Option<DemoReport> {
        self.now += 0.37;
        // The pipelines fill up; from then on starts and ends take turns, in no strict order.
        let room = RUNNING.saturating_sub(self.running.len());
        if self.running.is_empty() || self.dice.below(RUNNING) < room.max(1) {
            let item = self.start();
            let report = self.report(&item, true);
            self.running.push_back(item);
            return Some(report);
        }
        let place = self.dice.below(self.running.len().div_ceil(2));
        let item = self.running.remove(place)?;
        Some(self.report(&item, false))
    }
}

impl Item {
    fn topic(&self, qos: Qos) -> String {
        let Item { tenant, pipeline, project, branch, .. } = self;
        let mut topic = format!("{tenant}/zuul/{pipeline}/{project}/{branch}");
        if let Some((change, _)) = self.change {
            topic.push_str(&format!("/{change}"));
        }
        if qos == Qos::AtMostOnce {
            topic.push_str("/started");
        }
        topic
    }

    /// What every report of the item says.
    fn described(&self) -> Value {
        let commit = format!("{:032x}{:08x}", xxh3_128(self.uuid.as_bytes()), self.jobs.len());
        let (change, patchset) = self.change.unzip();
        let (url, reference) = match self.change {
            None => (format!("https://git.example.com/{}", self.project), format!("refs/heads/{}", self.branch)),
            Some((change, patchset)) => {
                let url = format!("https://gerrit.example.com/c/{}/+/{change}", self.project);
                (url, format!("refs/changes/{:02}/{change}/{patchset}", change % 100))
            }
        };
        let one = json!({
            "project": self.project, "branch": self.branch, "change": change.map(|n| n.to_string()), "patchset": patchset.map(|n| n.to_string()),
            "change_url": url, "commit_id": commit, "owner": "dana", "ref": reference, "topic": change.map(|_| "faster-startup"),
        });
        let mut report = one.clone();
        let all = [
            ("tenant", json!(self.tenant)),
            ("pipeline", json!(self.pipeline)),
            ("tenant_web_root", json!(format!("https://zuul.example.com/t/{}", self.tenant))),
            ("queue", json!("integrated")),
            ("uuid", json!(self.uuid)),
            ("zuul_ref", json!(format!("Z{}", self.uuid))),
            ("zuul_event_id", json!(self.uuid)),
            ("trigger_time", json!(self.enqueued - 0.5)),
            ("enqueue_time", json!(self.enqueued)),
            ("changes", json!([one])),
        ];
        for (key, value) in all {
            report[key] = value;
        }
        report
    }
}

/// What [`PIPELINES`] asks for.
fn qos_of(pipeline: &str, is_start: bool) -> Qos {
    match (pipeline, is_start) {
        ("gate", true) | ("periodic", false) => Qos::AtLeastOnce,
        (_, true) => Qos::AtMostOnce,
        (_, false) => Qos::ExactlyOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::report::Report;

    fn reports(count: usize) -> Vec<DemoReport> {
        Generator::new("0a1b", 1_700_000_000.0).take(count).collect()
    }

    #[test]
    fn reports_are_valid_and_of_a_real_size() {
        for report in reports(1_000) {
            let size = report.payload.len();
            assert!((1_024..=8_192).contains(&size), "{size} bytes: {:?}", report.payload);
            let parsed = Report::parse(report.payload.clone()).unwrap();
            assert!(report.topic.starts_with(&format!("{}/zuul/{}/", parsed.tenant(), parsed.pipeline())));
            assert!(report.topic.contains(&format!("/{}", parsed.change().unwrap_or_default())));
        }
    }

    #[test]
    fn every_qos_tenant_and_pipeline_takes_part() {
        let reports = reports(1_000);
        for qos in Qos::ALL {
            let share = reports.iter().filter(|report| report.qos == qos).count();
            assert!((200..=500).contains(&share), "QoS {}: {share} of 1000", qos.label());
        }
        for part in PLACES.iter().map(|place| place.0).chain(["check", "gate", "periodic"]) {
            assert!(reports.iter().any(|report| report.topic.split('/').any(|word| word == part)), "{part}");
        }
    }

    #[test]
    fn reports_of_a_topic_are_numbered_without_a_gap() {
        let mut next: HashMap<Arc<str>, u32> = HashMap::new();
        for report in reports(1_000) {
            let expected = next.entry(Arc::clone(&report.topic)).or_default();
            assert_eq!(report.of_topic, *expected);
            *expected += 1;
            assert!(report.topic_number < next.len());
        }
        assert!(next.values().any(|count| *count > 10), "an order that is worth checking");
    }

    #[test]
    fn what_ends_has_started() {
        let mut started = std::collections::HashSet::new();
        for report in reports(500) {
            let value: Value = serde_json::from_slice(&report.payload).unwrap();
            let uuid = value["buildset"]["uuid"].as_str().unwrap().to_owned();
            assert_eq!(started.insert(uuid), value["action"] == "start");
        }
    }
}
