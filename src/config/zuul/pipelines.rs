//! Pipelines from Zuul's YAML: which reports go to which MQTT connection.
//!
//! ```text
//! - pipeline:                 every other item (job, project, secret …) is passed over
//!     name: check             every other key (manager, trigger, require …) is passed over
//!     success:                an action
//!       gerrit: {Verified: 1} a reporter of another kind of connection is passed over
//!       mqtt:                 a reporter of an MQTT connection
//!         topic: "{tenant}/{pipeline}"
//!         qos: 2
//! ```
//!
//! Of a reporter the keys are Zuul's: `topic`, `qos`, `include-returned-data`. A `qos` may be anything that equals 0, 1 or 2, as Zuul's
//! schema has it: also `0x2`, and `yes` for 1. A list of one reporter is that reporter; of more, Zuul's MQTT driver knows no use.
//! `merge-failure` is the name that `merge-conflict` had before Zuul 6. Where a pipeline has both, Zuul 5 uses the new one alone.

use std::collections::{BTreeMap, HashMap};

use super::Findings;
use super::yaml::{self, Entry, NodeId, Tree, Value};
use crate::config::mistake::closest;
use crate::config::raw::File;
use crate::core::route::{Action, PipelineRoutes, Reporter};
use crate::core::topic::TopicTemplate;
use crate::core::types::{ConnectionName, Qos};

/// More pipelines with MQTT reporters than any Zuul has.
const MAX_PIPELINES: usize = 10_000;
/// The name of the action before Zuul 6, and since.
const MERGE: (&str, &str) = ("merge-failure", "merge-conflict");
/// The keys of an MQTT reporter.
const KEYS: [&str; 3] = ["topic", "qos", "include-returned-data"];

/// What is known about the connections that reporters may name.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Those that lead to MQTT brokers.
    pub mqtt: Vec<String>,
    /// Those that lead elsewhere.
    pub others: Vec<String>,
    /// There may be more: `zuul.conf` could not be read, which is a mistake already.
    pub is_partial: bool,
}

/// Pipelines, as they are collected from files.
#[derive(Debug, Default)]
pub(super) struct Pipelines {
    /// Those that report to an MQTT connection.
    pub found: Vec<Pipeline>,
    /// Pipeline and tenant → where it stands.
    seen: HashMap<(String, Option<String>), String>,
}

/// One pipeline.
#[derive(Debug)]
pub(super) struct Pipeline {
    /// What it does.
    pub routes: PipelineRoutes,
    /// The file that it stands in.
    pub file: String,
    /// Where each reporter stands.
    pub lines: Vec<(Action, ConnectionName, usize)>,
}

/// A file with pipelines.
pub(super) struct Source<'s> {
    /// Where mistakes are noted.
    pub file: &'s File<'s>,
    /// Its name.
    pub name: &'s str,
    /// What it says.
    pub text: &'s str,
    /// Whose pipelines they are; none: every tenant's.
    pub tenant: Option<&'s str>,
    /// The configuration names it, and not just a folder that it is in.
    pub is_named: bool,
}

/// Adds what a file has.
pub(super) fn read(source: &Source<'_>, known: &Known, pipelines: &mut Pipelines, findings: &mut Findings) {
    let tree = match yaml::parse(source.text) {
        Ok(tree) => tree,
        Err(wrong) => return source.file.note(Some(wrong.line), None, format!("not YAML: {}", wrong.message)),
    };
    let mut reader = Reader { file: source.file, name: source.name, tree: &tree, tenant: source.tenant, known, pipelines, findings };
    for document in &tree.documents {
        reader.document(*document, source.is_named);
    }
}

struct Reader<'r> {
    file: &'r File<'r>,
    name: &'r str,
    tree: &'r Tree<'r>,
    tenant: Option<&'r str>,
    known: &'r Known,
    pipelines: &'r mut Pipelines,
    findings: &'r mut Findings,
}

impl<'r> Reader<'r> {
    fn mistake(&self, line: usize, key: &str, message: impl std::fmt::Display) {
        let key = (!key.is_empty()).then(|| key.to_owned());
        self.file.note(Some(line), key, message.to_string());
    }

    fn unexpected(&self, node: NodeId, key: &str, expected: &str) {
        self.mistake(self.tree.line(node), key, format_args!("expected {expected}, found {}", self.tree.shown(node)));
    }

    /// The entries of a mapping; a mistake if it is none.
    fn entries(&self, node: NodeId, key: &str, expected: &str) -> Option<Vec<Entry<'r>>> {
        if self.tree.value(node) != Value::Mapping {
            self.unexpected(node, key, expected);
            return None;
        }
        match self.tree.entries(node) {
            Ok(entries) => Some(entries),
            Err(wrong) => {
                let key = if key.is_empty() { wrong.key } else { format!("{key}.{}", wrong.key) };
                self.mistake(wrong.line, &key, wrong.message);
                None
            }
        }
    }

    fn document(&mut self, root: NodeId, is_named: bool) {
        let Value::List(items) = self.tree.value(root) else {
            // Next to pipelines there may be files that are something else; `pipeline:` without its dash is a slip.
            let is_slip = self.tree.entries(root).is_ok_and(|entries| entries.iter().any(|entry| entry.key == "pipeline"));
            if is_named || is_slip {
                self.unexpected(root, "", "a list of items such as `- pipeline:`");
            }
            return;
        };
        for item in items {
            // What is no pipeline is not Tidings' business, whatever is wrong with it.
            let Ok(entries) = self.tree.entries(*item) else { continue };
            let Some(pipeline) = entries.iter().find(|entry| entry.key == "pipeline") else { continue };
            if let Some(other) = entries.iter().find(|entry| entry.key != "pipeline") {
                let line = self.tree.line(other.key_node);
                self.mistake(line, other.key, "stands beside `pipeline` and not in it: indent it further");
                continue;
            }
            self.pipeline(pipeline.value);
        }
    }

    fn pipeline(&mut self, node: NodeId) {
        let Some(entries) = self.entries(node, "pipeline", "the pipeline's keys") else { return };
        let Some(name) = entries.iter().find(|entry| entry.key == "name") else {
            return self.mistake(self.tree.line(node), "pipeline.name", "is required");
        };
        let name = match self.tree.value(name.value) {
            Value::Text(text) if !text.is_empty() => text,
            _ => return self.unexpected(name.value, "pipeline.name", "a text that is not empty"),
        };
        let key = format!("pipeline.{name}");
        let has_new = entries.iter().any(|entry| entry.key == MERGE.1);
        let mut reporters: BTreeMap<Action, Vec<Reporter>> = BTreeMap::new();
        let mut lines = Vec::new();
        for entry in &entries {
            let key = format!("{key}.{}", entry.key);
            let Some(action) = Action::from_name(entry.key) else {
                self.look_for_slip(entry, &key);
                continue;
            };
            if entry.key == MERGE.0 && has_new {
                let line = self.tree.line(entry.key_node);
                let (old, new) = MERGE;
                self.findings.note(format!(
                    "{}:{line}: {key}: `{old}` is the old name of `{new}`; with both, what is under `{new}` counts",
                    self.name
                ));
                continue;
            }
            let Some(of_action) = self.entries(entry.value, &key, "reporters by the names of their connections") else { continue };
            for reporter in &of_action {
                let key = format!("{key}.{}", reporter.key);
                if !self.is_ours(reporter, &key) {
                    continue;
                }
                if let Some(read) = self.reporter(reporter, &key) {
                    lines.push((action, read.connection.clone(), self.tree.line(reporter.key_node)));
                    reporters.entry(action).or_default().push(read);
                }
            }
        }
        if !reporters.is_empty() {
            let routes = PipelineRoutes { pipeline: name.to_owned(), tenant: self.tenant.map(str::to_owned), reporters };
            self.keep(Pipeline { routes, file: self.name.to_owned(), lines }, self.tree.line(node));
        }
    }

    fn keep(&mut self, pipeline: Pipeline, line: usize) {
        let key = format!("pipeline.{}", pipeline.routes.pipeline);
        let place = (pipeline.routes.pipeline.clone(), pipeline.routes.tenant.clone());
        if let Some(first) = self.pipelines.seen.get(&place) {
            let message = match &place.1 {
                None => {
                    format!("stands in {first} already; if they are of different tenants, say so: `{{ tenant = \"…\", path = \"…\" }}`")
                }
                Some(tenant) => format!("of tenant `{tenant}` stands in {first} already"),
            };
            return self.mistake(line, &key, message);
        }
        if self.pipelines.found.len() == MAX_PIPELINES {
            return self.mistake(line, &key, format_args!("there are more than {MAX_PIPELINES} pipelines"));
        }
        self.pipelines.seen.insert(place, format!("{}:{line}", self.name));
        self.pipelines.found.push(pipeline);
    }

    /// Whether a reporter belongs to an MQTT connection. One that belongs to nothing known, and looks as if it did, is a mistake.
    fn is_ours(&self, entry: &Entry<'_>, key: &str) -> bool {
        let line = self.tree.line(entry.key_node);
        if self.known.mqtt.iter().any(|name| name == entry.key) {
            if matches!(self.tree.value(entry.key_node), Value::Text(_)) {
                return true;
            }
            self.mistake(line, key, format_args!("write the name in quotes: without, YAML reads {}", self.tree.shown(entry.key_node)));
            return false;
        }
        let is_known = self.known.is_partial || self.known.others.iter().any(|name| name == entry.key);
        if !is_known && self.has_topic(entry.value) {
            let meant = closest(entry.key, self.known.mqtt.iter().map(String::as_str));
            let hint = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            self.mistake(line, key, format_args!("there is no connection `{}`{hint}", entry.key));
        }
        false
    }

    /// A key that is no action, with what only an action has in it: reports would silently go nowhere.
    fn look_for_slip(&self, entry: &Entry<'_>, key: &str) {
        let Ok(entries) = self.tree.entries(entry.value) else { return };
        if entries.iter().any(|entry| self.known.mqtt.iter().any(|name| name == entry.key) && self.has_topic(entry.value)) {
            let meant = closest(entry.key, Action::NAMES.iter().map(|(name, _)| *name));
            let hint = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            self.mistake(self.tree.line(entry.key_node), key, format_args!("is no action{hint}"));
        }
    }

    fn has_topic(&self, node: NodeId) -> bool {
        self.tree.entries(node).is_ok_and(|entries| entries.iter().any(|entry| entry.key == "topic"))
    }

    fn reporter(&self, entry: &Entry<'_>, key: &str) -> Option<Reporter> {
        let node = match self.tree.value(entry.value) {
            Value::List([single]) => *single,
            Value::List(_) => {
                self.mistake(self.tree.line(entry.value), key, "Zuul's MQTT driver takes one reporter for an action and a connection");
                return None;
            }
            _ => entry.value,
        };
        let entries = self.entries(node, key, "a mapping with a topic")?;
        let mut topic = None;
        let (mut qos, mut include_returned_data) = (Qos::default(), false);
        let mut is_right = true;
        for entry in &entries {
            let key = format!("{key}.{}", entry.key);
            let value = self.tree.value(entry.value);
            match entry.key {
                "topic" => match value {
                    Value::Text(text) => match TopicTemplate::parse(text) {
                        Ok(template) => topic = Some(template),
                        Err(error) => {
                            is_right = false;
                            self.mistake(self.tree.line(entry.value), &key, error);
                        }
                    },
                    _ => {
                        is_right = false;
                        self.unexpected(entry.value, &key, "a text");
                    }
                },
                "qos" => {
                    let level = match value {
                        Value::Whole(number) => number.and_then(|number| u64::try_from(number).ok()),
                        // A truth value is a number to Python.
                        Value::Bool(flag) => Some(u64::from(flag)),
                        _ => None,
                    };
                    match level.and_then(|level| Qos::try_from(level).ok()) {
                        Some(level) => qos = level,
                        None => {
                            is_right = false;
                            self.unexpected(entry.value, &key, "0, 1 or 2");
                        }
                    }
                }
                "include-returned-data" => match value {
                    Value::Bool(flag) => include_returned_data = flag,
                    _ => {
                        is_right = false;
                        self.unexpected(entry.value, &key, "true or false");
                    }
                },
                other => {
                    is_right = false;
                    let hint = closest(other, KEYS).map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
                    self.mistake(self.tree.line(entry.key_node), &key, format_args!("unknown key{hint}"));
                }
            }
        }
        if !entries.iter().any(|entry| entry.key == "topic") {
            self.mistake(self.tree.line(entry.key_node), &format!("{key}.topic"), "is required: the topic to publish to");
        }
        let connection = ConnectionName::from(entry.key);
        let template = topic.filter(|_| is_right)?;
        Some(Reporter { connection, template, qos, retain: false, include_returned_data })
    }
}
