//! Which reporters want a report: (tenant, pipeline, action) → connection, topic and qos.
//!
//! A [`PipelineRoutes`] entry says what to do with the reports of one pipeline, of every tenant or, narrowed, of one.
//!
//! **Where a general and a narrowed entry match, both apply.** Each entry stands for itself, so adding one never takes a delivery
//! away that another one made. Only where both come to the same connection *and* the same topic, one delivery is made, with the
//! narrowed entry's qos: the same report twice in one place would be a duplicate that nobody asked for.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::report::Report;
use super::topic::{RenderError, Topic, TopicTemplate};
use super::types::{ConnectionName, Qos};

/// What a pipeline can report: Zuul's reporter actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// An item was enqueued.
    Enqueue,
    /// The first of its jobs start.
    Start,
    /// It succeeded.
    Success,
    /// It failed.
    Failure,
    /// It could not be merged. Older Zuuls call it `merge-failure`.
    MergeConflict,
    /// Its configuration is wrong.
    ConfigError,
    /// It has no jobs to run.
    NoJobs,
    /// The pipeline is disabled after too many failures.
    Disabled,
    /// It was dequeued before it was done.
    Dequeue,
}

impl Action {
    /// Every action, by every name that it has or had.
    pub const NAMES: [(&'static str, Action); 10] = [
        ("enqueue", Action::Enqueue),
        ("start", Action::Start),
        ("success", Action::Success),
        ("failure", Action::Failure),
        ("merge-conflict", Action::MergeConflict),
        ("merge-failure", Action::MergeConflict),
        ("config-error", Action::ConfigError),
        ("no-jobs", Action::NoJobs),
        ("disabled", Action::Disabled),
        ("dequeue", Action::Dequeue),
    ];

    /// The action by its name.
    pub fn from_name(name: &str) -> Option<Action> {
        Action::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, action)| action)
    }

    /// Today's name.
    pub fn name(self) -> &'static str {
        Action::NAMES.into_iter().find(|(_, action)| *action == self).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where reports of one pipeline and action go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reporter {
    /// The connection.
    pub connection: ConnectionName,
    /// What the topic is made of.
    pub template: TopicTemplate,
    /// The quality of service.
    pub qos: Qos,
    /// Whether the broker keeps the last report of each topic for later subscribers.
    pub retain: bool,
    /// Whether `buildset.builds[].returned_data` stays in the payload.
    pub include_returned_data: bool,
}

/// What happens to the reports of one pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineRoutes {
    /// The pipeline's name.
    pub pipeline: String,
    /// Only of this tenant; none: of every tenant.
    pub tenant: Option<String>,
    /// The reporters of each action, in the order given.
    pub reporters: BTreeMap<Action, Vec<Reporter>>,
}

/// A report bound to a connection, topic and qos: what becomes a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// The connection.
    pub connection: ConnectionName,
    /// The rendered topic.
    pub topic: Topic,
    /// The quality of service.
    pub qos: Qos,
    /// The retain flag.
    pub retain: bool,
    /// Whether `buildset.builds[].returned_data` stays in the payload.
    pub include_returned_data: bool,
}

/// Every pipeline's reporters.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    entries: Vec<PipelineRoutes>,
    /// Pipeline → its entries' places, narrowed ones first.
    by_pipeline: HashMap<String, Vec<usize>>,
}

impl Routes {
    /// Routes of these entries. Of two with the same pipeline and tenant both apply; the configuration refuses such a pair.
    pub fn new(entries: Vec<PipelineRoutes>) -> Routes {
        let mut by_pipeline: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, entry) in entries.iter().enumerate() {
            by_pipeline.entry(entry.pipeline.clone()).or_default().push(place);
        }
        for places in by_pipeline.values_mut() {
            places.sort_by_key(|place| entries[*place].tenant.is_none());
        }
        Routes { entries, by_pipeline }
    }

    /// What was given to [`Routes::new`].
    pub fn entries(&self) -> &[PipelineRoutes] {
        &self.entries
    }

    /// The deliveries that a report makes; none if no reporter wants it.
    ///
    /// # Errors
    /// If the report can't be given one of its topics: then nothing of it is delivered, so that the producer hears of it.
    pub fn route(&self, report: &Report) -> Result<Vec<Routed>, RenderError> {
        let mut routed: Vec<Routed> = Vec::new();
        let Some(action) = Action::from_name(report.action()) else { return Ok(routed) };
        for place in self.by_pipeline.get(report.pipeline()).into_iter().flatten() {
            let entry = &self.entries[*place];
            if entry.tenant.as_deref().is_some_and(|tenant| tenant != report.tenant()) {
                continue;
            }
            for reporter in entry.reporters.get(&action).into_iter().flatten() {
                let topic = reporter.template.render(report)?;
                if routed.iter().any(|other| other.connection == reporter.connection && other.topic == topic) {
                    continue;
                }
                let Reporter { connection, qos, retain, include_returned_data, .. } = reporter;
                let (connection, qos, retain) = (connection.clone(), *qos, *retain);
                routed.push(Routed { connection, topic, qos, retain, include_returned_data: *include_returned_data });
            }
        }
        Ok(routed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn report(tenant: &str, pipeline: &str, action: &str) -> Report {
        let text = format!(r#"{{"action":"{action}","tenant":"{tenant}","pipeline":"{pipeline}","project":"widgets"}}"#);
        Report::parse(Bytes::from(text)).unwrap()
    }

    fn reporter(connection: &str, template: &str, qos: Qos) -> Reporter {
        let template = TopicTemplate::parse(template).unwrap();
        Reporter { connection: connection.into(), template, qos, retain: false, include_returned_data: false }
    }

    fn entry(pipeline: &str, tenant: Option<&str>, action: Action, reporters: Vec<Reporter>) -> PipelineRoutes {
        PipelineRoutes {
            pipeline: pipeline.to_owned(),
            tenant: tenant.map(str::to_owned),
            reporters: BTreeMap::from([(action, reporters)]),
        }
    }

    /// (connection, topic, qos) of each delivery.
    fn ways(routes: &Routes, report: &Report) -> Vec<(String, String, u8)> {
        let routed = routes.route(report).unwrap();
        routed.into_iter().map(|way| (way.connection.to_string(), way.topic.into_string(), way.qos.level())).collect()
    }

    fn way(connection: &str, topic: &str, qos: u8) -> (String, String, u8) {
        (connection.to_owned(), topic.to_owned(), qos)
    }

    #[test]
    fn a_report_goes_to_every_reporter_of_its_pipeline_and_action() {
        let reporters = vec![reporter("mqtt", "{pipeline}/{project}", Qos::AtLeastOnce), reporter("second", "{tenant}", Qos::ExactlyOnce)];
        let routes = Routes::new(vec![entry("check", None, Action::Failure, reporters), entry("gate", None, Action::Failure, vec![])]);
        let expected = [way("mqtt", "check/widgets", 1), way("second", "acme", 2)];
        assert_eq!(ways(&routes, &report("acme", "check", "failure")), expected);
    }

    #[test]
    fn an_action_has_one_meaning_under_each_of_its_names() {
        for (name, action) in Action::NAMES {
            assert_eq!(Action::from_name(name), Some(action));
            assert_eq!(Action::from_name(action.name()), Some(action));
        }
        assert_eq!(Action::MergeConflict.name(), "merge-conflict");
    }

    #[test]
    fn merge_failure_and_merge_conflict_find_the_same_reporters() {
        let routes = Routes::new(vec![entry("check", None, Action::MergeConflict, vec![reporter("mqtt", "t", Qos::AtMostOnce)])]);
        for action in ["merge-failure", "merge-conflict"] {
            assert_eq!(ways(&routes, &report("acme", "check", action)), [way("mqtt", "t", 0)]);
        }
    }

    #[test]
    fn a_report_that_no_reporter_wants_makes_no_delivery() {
        let routes = Routes::new(vec![entry("check", Some("acme"), Action::Start, vec![reporter("mqtt", "t", Qos::AtMostOnce)])]);
        for unwanted in [
            report("acme", "gate", "start"),
            report("acme", "check", "success"),
            report("other", "check", "start"),
            report("acme", "check", "sneeze"),
        ] {
            assert_eq!(ways(&routes, &unwanted), []);
        }
        assert_eq!(ways(&Routes::default(), &report("acme", "check", "start")), []);
    }

    #[test]
    fn a_narrowed_entry_adds_to_the_general_one_whatever_their_order() {
        let general = entry("check", None, Action::Success, vec![reporter("mqtt", "all/{project}", Qos::AtMostOnce)]);
        let narrowed = entry("check", Some("acme"), Action::Success, vec![reporter("mqtt", "acme/{project}", Qos::ExactlyOnce)]);
        for entries in [vec![general.clone(), narrowed.clone()], vec![narrowed, general]] {
            let routes = Routes::new(entries);
            assert_eq!(ways(&routes, &report("acme", "check", "success")), [way("mqtt", "acme/widgets", 2), way("mqtt", "all/widgets", 0)]);
            assert_eq!(ways(&routes, &report("other", "check", "success")), [way("mqtt", "all/widgets", 0)]);
        }
    }

    #[test]
    fn one_place_gets_a_report_once_as_the_narrowed_entry_says() {
        let general = entry(
            "check",
            None,
            Action::Success,
            vec![reporter("mqtt", "{tenant}/x", Qos::AtMostOnce), reporter("b", "acme/x", Qos::AtMostOnce)],
        );
        let narrowed = entry("check", Some("acme"), Action::Success, vec![reporter("mqtt", "acme/x", Qos::ExactlyOnce)]);
        let routes = Routes::new(vec![general, narrowed]);
        assert_eq!(ways(&routes, &report("acme", "check", "success")), [way("mqtt", "acme/x", 2), way("b", "acme/x", 0)]);
    }

    #[test]
    fn a_report_that_lacks_one_of_its_topics_is_not_delivered_in_part() {
        let reporters = vec![reporter("a", "t", Qos::AtMostOnce), reporter("b", "{changes[0][topic]}", Qos::AtMostOnce)];
        let routes = Routes::new(vec![entry("check", None, Action::Start, reporters)]);
        assert_eq!(routes.route(&report("acme", "check", "start")).unwrap_err().code(), "topic_unrenderable");
    }
}
