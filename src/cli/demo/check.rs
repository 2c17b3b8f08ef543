//! What arrived, held against what was posted: lost, twice, out of order, or never posted at all.
//!
//! Every report carries a marker: the run that it belongs to, and its number. The books know the topic, place within the topic, QoS and hash of every number, so a
//! message that was altered on the way, or came at another QoS or on another topic, is told from the one that was posted.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::core::types::Qos;

/// What a report is known by, as it stands in its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The run of the demo.
    pub run: String,
    /// The number of the report in the run, from 0.
    pub report: usize,
    /// Its place among the reports of its topic, from 0.
    pub of_topic: u32,
}

/// What is known of a report when it is posted.
struct Posted {
    topic: Arc<str>,
    of_topic: u32,
    qos: Qos,
    hash: u64,
    arrivals: u32,
}

/// The books of one run.
pub struct Checker {
    run: String,
    posted: Vec<Posted>,
    /// Per topic, the latest report that has arrived.
    latest: HashMap<Arc<str>, usize>,
    /// Reports that came after a later one of their topic, and that one.
    overtaken: Vec<(usize, usize)>,
    strangers: u64,
    arrived: u64,
    /// Reports at QoS 1 and 2 that have arrived.
    delivered: u64,
    /// Reports at QoS 1 and 2 that were posted.
    owed: u64,
}

impl Checker {
    /// The books of a run, empty.
    pub fn new(run: &str) -> Self {
        Checker {
            run: run.to_owned(),
            posted: Vec::new(),
            latest: HashMap::new(),
            overtaken: Vec::new(),
            strangers: 0,
            arrived: 0,
            delivered: 0,
            owed: 0,
        }
    }

    /// Notes the next report, before it is posted.
    pub fn expect(&mut self, topic: Arc<str>, of_topic: u32, qos: Qos, payload: &[u8]) {
        self.owed += u64::from(qos != Qos::AtMostOnce);
        self.posted.push(Posted { topic, of_topic, qos, hash: xxh3_64(payload), arrivals: 0 });
    }

    /// Notes what the subscriber received.
    pub fn arrived(&mut self, topic: &str, qos: Qos, payload: &[u8]) {
        #[derive(Deserialize)]
        struct Marked {
            demo: Marker,
        }
        let marker = serde_json::from_slice::<Marked>(payload).ok().map(|marked| marked.demo).filter(|marker| marker.run == self.run);
        let number = marker.map_or(usize::MAX, |marker| marker.report);
        let posted = self.posted.get_mut(number);
        let Some(posted) = posted.filter(|posted| *posted.topic == *topic && posted.qos == qos && posted.hash == xxh3_64(payload)) else {
            self.strangers += 1;
            return;
        };
        posted.arrivals += 1;
        if posted.arrivals > 1 {
            return;
        }
        self.arrived += 1;
        self.delivered += u64::from(posted.qos != Qos::AtMostOnce);
        let latest = self.latest.entry(Arc::clone(&posted.topic)).or_insert(number);
        // Reports are numbered as they are posted, so of one topic the later one has the larger number.
        if number < *latest {
            self.overtaken.push((number, *latest));
        } else {
            *latest = number;
        }
    }

    /// How many reports have arrived, at any QoS.
    pub fn count(&self) -> u64 {
        self.arrived
    }

    /// Whether everything that may not be lost has arrived.
    pub fn is_complete(&self) -> bool {
        self.delivered == self.owed
    }

    /// The first few of what went wrong, in words.
    pub fn complaints(&self, most: usize) -> Vec<String> {
        let missing = self.posted.iter().enumerate().filter(|(_, posted)| posted.qos != Qos::AtMostOnce && posted.arrivals == 0);
        let missing = missing.map(|(number, _)| format!("missing: {}", self.name(number)));
        let repeated = self.posted.iter().enumerate().filter(|(_, posted)| posted.qos != Qos::AtLeastOnce && posted.arrivals > 1);
        let repeated = repeated.map(|(number, posted)| format!("arrived {} times: {}", posted.arrivals, self.name(number)));
        let overtaken =
            self.overtaken.iter().map(|(number, by)| format!("out of order: {} came after {}", self.name(*number), self.name(*by)));
        missing.take(most).chain(repeated.take(most)).chain(overtaken.take(most)).collect()
    }

    fn name(&self, number: usize) -> String {
        let Posted { topic, of_topic, qos, .. } = &self.posted[number];
        format!("report {number} (QoS {}, number {of_topic} of topic {topic})", qos.label())
    }

    /// The verdict, as of now.
    pub fn verdict(&self) -> Verdict {
        let of = |qos: Qos| self.posted.iter().filter(move |posted| posted.qos == qos);
        let repeats = |qos: Qos| of(qos).map(|posted| u64::from(posted.arrivals.saturating_sub(1))).sum();
        Verdict {
            posted: self.owed,
            delivered: self.delivered,
            duplicates: repeats(Qos::ExactlyOnce),
            out_of_order: self.overtaken.len() as u64,
            repeated_at_qos_1: repeats(Qos::AtLeastOnce),
            posted_at_qos_0: of(Qos::AtMostOnce).count() as u64,
            lost_at_qos_0: of(Qos::AtMostOnce).filter(|posted| posted.arrivals == 0).count() as u64,
            repeated_at_qos_0: repeats(Qos::AtMostOnce),
            strangers: self.strangers,
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Reports posted at QoS 1 and 2.
    pub posted: u64,
    /// Those of them that arrived.
    pub delivered: u64,
    /// Arrivals at QoS 2 beyond the first.
    pub duplicates: u64,
    /// Reports that first arrived after a later one of their topic.
    pub out_of_order: u64,
    /// Arrivals at QoS 1 beyond the first: allowed.
    pub repeated_at_qos_1: u64,
    /// Reports posted at QoS 0.
    pub posted_at_qos_0: u64,
    /// Those of them that did not arrive: allowed.
    pub lost_at_qos_0: u64,
    /// Arrivals at QoS 0 beyond the first: not allowed.
    pub repeated_at_qos_0: u64,
    /// Messages that nobody posted like that.
    pub strangers: u64,
}

impl Verdict {
    /// Whether everything that was promised held.
    pub fn is_good(&self) -> bool {
        let wrong = [self.duplicates, self.out_of_order, self.repeated_at_qos_0, self.strangers];
        self.delivered == self.posted && wrong == [0; 4]
    }

    /// What MQTT allows to go wrong, and did.
    pub fn allowance(&self) -> String {
        format!(
            "as MQTT allows: QoS 0 lost {} of {} in the socket, QoS 1 repeated {} at the cut",
            self.lost_at_qos_0, self.posted_at_qos_0, self.repeated_at_qos_1
        )
    }

    /// What must never happen and has no place in the last line, if it did.
    pub fn alarm(&self) -> Option<String> {
        let alarm = format!(
            "never to be seen: {} messages at QoS 0 arrived twice, {} arrived that were not posted like that",
            self.repeated_at_qos_0, self.strangers
        );
        (self.repeated_at_qos_0 + self.strangers > 0).then_some(alarm)
    }
}

/// The last line of the demo. Its form is fixed.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = self.posted - self.delivered;
        let Verdict { posted, delivered, duplicates, out_of_order, .. } = self;
        write!(f, "delivered {delivered} of {posted}, lost {lost}, duplicates {duplicates}, out of order {out_of_order}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERED: [(&str, Qos); 6] = [
        ("a", Qos::AtMostOnce),
        ("a", Qos::ExactlyOnce),
        ("b", Qos::AtLeastOnce),
        ("a", Qos::ExactlyOnce),
        ("b", Qos::ExactlyOnce),
        ("b", Qos::AtMostOnce),
    ];

    fn payload(report: usize) -> Vec<u8> {
        let of_topic = ORDERED[..report].iter().filter(|(topic, _)| *topic == ORDERED[report].0).count();
        format!(r#"{{"demo":{{"run":"r","report":{report},"of_topic":{of_topic}}}}}"#).into_bytes()
    }

    /// The verdict after these of the six reports have arrived in this order.
    fn after(arrivals: &[usize]) -> Verdict {
        let mut checker = Checker::new("r");
        for (report, (topic, qos)) in ORDERED.into_iter().enumerate() {
            let of_topic = ORDERED[..report].iter().filter(|(other, _)| *other == topic).count();
            checker.expect(topic.into(), u32::try_from(of_topic).unwrap(), qos, &payload(report));
        }
        for &report in arrivals {
            checker.arrived(ORDERED[report].0, ORDERED[report].1, &payload(report));
        }
        assert_eq!(checker.is_complete(), !checker.complaints(9).iter().any(|complaint| complaint.starts_with("missing")));
        checker.verdict()
    }

    #[test]
    fn all_is_well_when_everything_arrives_once_and_topics_may_overtake_each_other() {
        let verdict = after(&[0, 1, 3, 2, 4, 5]);
        assert!(verdict.is_good());
        assert_eq!(verdict.to_string(), "delivered 4 of 4, lost 0, duplicates 0, out of order 0");
        assert_eq!(verdict.allowance(), "as MQTT allows: QoS 0 lost 0 of 2 in the socket, QoS 1 repeated 0 at the cut");
    }

    #[test]
    fn a_loss_counts_at_qos_1_and_2_only() {
        let verdict = after(&[1, 2, 3, 4]);
        assert!(verdict.is_good());
        assert_eq!(verdict.lost_at_qos_0, 2);
        let verdict = after(&[0, 3, 4, 5]);
        assert!(!verdict.is_good());
        assert_eq!(verdict.to_string(), "delivered 2 of 4, lost 2, duplicates 0, out of order 0");
    }

    #[test]
    fn a_repeat_is_allowed_at_qos_1_only() {
        let verdict = after(&[0, 1, 2, 2, 2, 3, 4, 5]);
        assert!(verdict.is_good());
        assert_eq!(verdict.repeated_at_qos_1, 2);
        let verdict = after(&[0, 1, 2, 3, 4, 5, 1]);
        assert!(!verdict.is_good());
        assert_eq!(verdict.to_string(), "delivered 4 of 4, lost 0, duplicates 1, out of order 0");
        let verdict = after(&[0, 0, 1, 2, 3, 4, 5]);
        assert!(!verdict.is_good() && verdict.alarm().is_some());
    }

    #[test]
    fn order_is_that_of_the_first_arrivals_of_a_topic() {
        let verdict = after(&[0, 3, 1, 2, 4, 5]);
        assert!(!verdict.is_good());
        assert_eq!(verdict.to_string(), "delivered 4 of 4, lost 0, duplicates 0, out of order 1");
        // A repeat behind later ones is a repeat, and a gap that QoS 0 leaves is none in the order.
        assert_eq!(after(&[1, 3, 2, 4, 2]).out_of_order, 0);
        // A report at QoS 0 counts as well: here it is overtaken.
        assert_eq!(after(&[1, 0, 2, 3, 4, 5]).out_of_order, 1);
    }

    #[test]
    fn what_was_not_posted_like_that_is_a_stranger() {
        let mut checker = Checker::new("r");
        checker.expect("a".into(), 0, Qos::ExactlyOnce, &payload(0));
        checker.arrived("a", Qos::AtLeastOnce, &payload(0));
        checker.arrived("b", Qos::ExactlyOnce, &payload(0));
        checker.arrived("a", Qos::ExactlyOnce, &payload(1));
        checker.arrived("a", Qos::ExactlyOnce, &[payload(0), b" ".to_vec()].concat());
        checker.arrived("a", Qos::ExactlyOnce, br#"{"demo":{"run":"other","report":0,"of_topic":0}}"#);
        checker.arrived("a", Qos::ExactlyOnce, b"not json");
        let verdict = checker.verdict();
        assert_eq!((verdict.strangers, verdict.delivered), (6, 0));
        assert!(!verdict.is_good() && verdict.alarm().is_some());
        assert_eq!(checker.complaints(9), ["missing: report 0 (QoS 2, number 0 of topic a)"]);
    }
}
