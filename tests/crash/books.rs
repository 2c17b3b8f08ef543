//! The books outside of the process: what was sent, what was accepted, what arrived, and between which disturbances.
//!
//! A report is known by a number, which stands in its payload: its source in the upper bits, its place in the source's order below.
//!
//! ```text
//!   phase 0 ──▶ disturbance (a kill, a broker away) ──▶ phase 1 ──▶ disturbance ──▶ phase 2 …
//! ```
//! The phase of a report is that of its first sending, so its second copy has a reason only in a later phase.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::support::ledger::Arrival;

/// So many bits count within a source.
pub const SOURCE_SHIFT: u32 = 40;

/// A report as its source knows it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub topic: String,
    pub qos: u8,
    /// The disturbances before its first sending.
    pub phase: usize,
    /// None until it is accepted; at QoS 0 over MQTT, where nobody says so, it stays none. Of one topic it rises in the order of acceptance.
    pub order: Option<u64>,
}

#[derive(Debug, Default)]
pub struct Books {
    pub entries: BTreeMap<u64, Entry>,
    /// How many had arrived at the subscriber when each disturbance began.
    pub marks: Vec<usize>,
    /// Topics of which the service has refused a report for a moment.
    pub refused: HashSet<String>,
    /// What was done, for whoever reads of a fault.
    pub chronicle: Vec<String>,
}

/// What came of it. Numbers of reports.
#[derive(Debug, Default)]
pub struct Comparison {
    pub accepted: usize,
    pub arrived: usize,
    pub missing: Vec<u64>,
    pub twice: Vec<u64>,
    pub repeated: HashSet<u64>,
    pub repeated_for_no_reason: Vec<u64>,
    pub altered: Vec<String>,
    pub unknown: Vec<String>,
    pub missing_qos_0: usize,
}

/// The number in a payload.
pub fn number_of(payload: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    value["change"].as_str()?.parse().ok()
}

impl Books {
    pub fn accepted(&self) -> usize {
        self.entries.values().filter(|entry| entry.order.is_some()).count()
    }

    pub fn is_complete(&self, arrivals: &[Arrival]) -> bool {
        let arrived: HashSet<u64> = arrivals.iter().filter_map(|arrival| number_of(&arrival.payload)).collect();
        self.entries.iter().all(|(number, entry)| entry.qos == 0 || arrived.contains(number))
    }

    pub fn compare(&self, arrivals: &[Arrival]) -> Comparison {
        let mut found = Comparison { accepted: self.accepted(), arrived: arrivals.len(), ..Comparison::default() };
        let mut seen: HashSet<u64> = HashSet::new();
        for (place, arrival) in arrivals.iter().enumerate() {
            let known = number_of(&arrival.payload).and_then(|number| Some((number, self.entries.get(&number)?)));
            let Some((number, entry)) = known else {
                found.unknown.push(format!("{}: {}", arrival.topic, String::from_utf8_lossy(&arrival.payload)));
                continue;
            };
            if (arrival.topic.as_str(), arrival.qos) != (entry.topic.as_str(), entry.qos) {
                found.altered.push(format!("{} arrived at {} with QoS {}", self.described(number), arrival.topic, arrival.qos));
            }
            if seen.insert(number) {
                continue;
            }
            let phase = self.marks.iter().filter(|mark| **mark <= place).count();
            match entry.qos {
                2 => found.twice.push(number),
                _ if phase <= entry.phase => found.repeated_for_no_reason.push(number),
                _ => _ = found.repeated.insert(number),
            }
        }
        for (number, entry) in self.entries.iter().filter(|(number, _)| !seen.contains(number)) {
            match entry.qos {
                0 => found.missing_qos_0 += 1,
                _ => found.missing.push(*number),
            }
        }
        found
    }

    /// Everything has arrived, at QoS 2 once, at QoS 0 and 1 again only for a reason and within bounds; nothing else has.
    pub fn assert_kept(&self, arrivals: &[Arrival]) -> Comparison {
        let found = self.compare(arrivals);
        let mut faults = Vec::new();
        let mut tell = |what: &str, numbers: &[u64]| {
            faults.extend(numbers.iter().take(30).map(|number| format!("{what}: {}", self.described(*number))));
            faults.extend((numbers.len() > 30).then(|| format!("{what}: {} more", numbers.len() - 30)));
        };
        tell("accepted and never arrived", &found.missing);
        tell("arrived twice at QoS 2", &found.twice);
        tell("arrived again although nothing had happened since it was sent", &found.repeated_for_no_reason);
        faults.extend(found.altered.iter().chain(&found.unknown).take(30).cloned());
        // What a lane has in flight, and as much again whose acknowledgement had come and was not in the log.
        let bound = self.marks.len() * 4 * 2 * 20;
        if found.repeated.len() > bound {
            faults.push(format!("{} of QoS 0 and 1 arrived again, more than {bound}", found.repeated.len()));
        }
        self.assert_none(&faults);
        found
    }

    /// What a reader saw, of each topic in the order of acceptance. What arrived twice may have been missed by it the first time; topics of
    /// which the broker refused a report are passed over. QoS 0 is told only `with_qos_0`: its first copy may be lost in a socket, and a kill just
    /// then has it sent again, behind others.
    pub fn assert_in_order(&self, seen: &[Arrival], repeated: &HashSet<u64>, passed_over: &HashSet<String>, with_qos_0: bool) {
        let (mut faults, mut known, mut newest) = (Vec::new(), HashSet::new(), HashMap::<&str, (u64, u64)>::new());
        for arrival in seen.iter().filter(|arrival| !passed_over.contains(&arrival.topic)) {
            let Some(number) = number_of(&arrival.payload).filter(|number| !repeated.contains(number) && known.insert(*number)) else {
                continue;
            };
            let Some(entry) = self.entries.get(&number).filter(|entry| with_qos_0 || entry.qos > 0) else { continue };
            let order = entry.order.unwrap_or(number);
            let before = newest.entry(&arrival.topic).or_insert((order, number));
            if order < before.0 {
                faults.push(format!("out of order: {} came after {}", self.described(number), self.described(before.1)));
            }
            *before = (*before).max((order, number));
        }
        self.assert_none(&faults);
    }

    fn described(&self, number: u64) -> String {
        let Some(entry) = self.entries.get(&number) else { return format!("{number}, which nobody sent") };
        let (source, place) = (number >> SOURCE_SHIFT, number & ((1 << SOURCE_SHIFT) - 1));
        format!("{place} of source {source} ({}, QoS {}, phase {}, order {:?})", entry.topic, entry.qos, entry.phase, entry.order)
    }

    fn assert_none(&self, faults: &[String]) {
        if !faults.is_empty() {
            println!("what was done:\n  {}", self.chronicle.join("\n  "));
            panic!("the promise is broken:\n  {}", faults.iter().take(60).cloned().collect::<Vec<_>>().join("\n  "));
        }
    }
}
