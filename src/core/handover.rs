//! Deliveries handed over from one connection to another: the events of one commit.
//!
//! ```text
//!   Audit       "moved 3 deliveries from old to new: 17-18, 25"     who, and which they were, in the order of the Accepted behind it
//!   Discarded   old/0: sends 4-5 · old/2: send 9                    "moved to new"
//!   Discarded   old/2: send 8                                       "moved to new (it may have arrived at old)"
//!   Accepted    new/1 · new/1 · new/3                               with topic, qos, retain, properties, expiry and payload as they were
//! ```
//!
//! All of it is one request to the log, so a delivery is on exactly one side after a kill. The new delivery keeps the time of its acceptance, from
//! which its age and its expiry count. It does not keep the request that it came in with: who repeats that is answered with the first
//! deliveries, as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use super::event::{Accepted, Event};
use super::ranges::RangeSet;
use super::types::{ConnectionName, LaneKey, Millis, SendNo, Seq};

/// How the reason of a move begins. The log has no other sign of one, so nobody's own reason may begin like this.
pub const MOVED_TO: &str = "moved to ";

/// Whether what ended for this reason goes on at another connection.
pub fn is_move(reason: &str) -> bool {
    reason.starts_with(MOVED_TO)
}

/// Who gives what to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The connection that has the deliveries.
    pub from: ConnectionName,
    /// The connection that gets them.
    pub to: ConnectionName,
    /// The operator.
    pub by: String,
}

/// A pending delivery of the connection that gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Its id.
    pub id: Seq,
    /// Its lane.
    pub lane: u32,
    /// Its last send number.
    pub send: SendNo,
    /// What was accepted.
    pub accepted: Accepted,
}

impl Handover {
    /// The events of one commit: these deliveries end here and begin there, in the same order. `doubtful` are those that may have arrived at the broker
    /// here; `lane_of` is the lane of a topic there.
    pub fn events(&self, given: Vec<Given>, doubtful: &BTreeSet<Seq>, lane_of: &dyn Fn(&str) -> u32, at: Millis) -> Vec<Event> {
        let Handover { from, to, by } = self;
        let what = format!("moved {} deliveries from {from} to {to}: {}", given.len(), in_runs(given.iter().map(|given| given.id.0)));
        let mut ended: BTreeMap<(u32, bool), RangeSet> = BTreeMap::new();
        for Given { id, lane, send, .. } in &given {
            ended.entry((*lane, doubtful.contains(id))).or_default().insert(send.0);
        }
        let ended = ended.into_iter().map(|((lane, is_doubtful), sends)| Event::Discarded {
            lane: LaneKey { connection: from.clone(), lane },
            sends: sends.to_ranges(),
            dead: false,
            by: by.clone(),
            reason: if is_doubtful { format!("{MOVED_TO}{to} (it may have arrived at {from})") } else { format!("{MOVED_TO}{to}") },
            at,
        });
        let begun = given.into_iter().map(|given| {
            let lane = LaneKey { connection: to.clone(), lane: lane_of(&given.accepted.topic) };
            Event::Accepted(Arc::new(Accepted { lane, dedupe: None, ..given.accepted }))
        });
        std::iter::once(Event::Audit { who: by.clone(), what, at }).chain(ended).chain(begun).collect()
    }
}

/// Numbers in their order, runs of neighbours as one: `17-18, 25`.
pub(super) fn in_runs(numbers: impl Iterator<Item = u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let mut text = String::new();
    for (first, last) in runs {
        let comma = if text.is_empty() { "" } else { ", " };
        let written = if first == last { write!(text, "{comma}{first}") } else { write!(text, "{comma}{first}-{last}") };
        written.expect("a string takes whatever is written");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Dedupe;
    use crate::core::ranges::Ranges;
    use crate::core::types::Qos;

    #[test]
    fn one_commit_says_who_and_which_and_keeps_everything_but_lane_and_request() {
        let key = |connection: &str, lane: u32| LaneKey { connection: connection.into(), lane };
        let given = |id: u64, lane: u32, send: u64, topic: &str| {
            let dedupe = Some(Dedupe { key: 1, body: 2, line: 0, lines: 1, batch: false });
            let accepted = Accepted {
                dedupe,
                retain: true,
                expiry_s: Some(9),
                ..Accepted::plain(key("old", lane), topic, Qos::ExactlyOnce, Millis(id))
            };
            Given { id: Seq(id), lane, send: SendNo(send), accepted }
        };
        let handover = Handover { from: "old".into(), to: "new".into(), by: "ops".into() };
        let all = vec![given(17, 0, 4, "a"), given(18, 2, 9, "b"), given(25, 0, 5, "a")];
        let events = handover.events(all.clone(), &BTreeSet::new(), &|topic| if topic == "a" { 1 } else { 3 }, Millis(99));
        let ended = |lane: u32, sends: Ranges| Event::Discarded {
            lane: key("old", lane),
            sends,
            dead: false,
            by: "ops".into(),
            reason: "moved to new".into(),
            at: Millis(99),
        };
        let begun = |given: &Given, lane: u32| {
            Event::Accepted(Arc::new(Accepted { lane: key("new", lane), dedupe: None, ..given.accepted.clone() }))
        };
        let expected = [
            Event::Audit { who: "ops".into(), what: "moved 3 deliveries from old to new: 17-18, 25".into(), at: Millis(99) },
            ended(0, Ranges(vec![(4, 5)])),
            ended(2, Ranges::one(9)),
            begun(&all[0], 1),
            begun(&all[1], 3),
            begun(&all[2], 1),
        ];
        assert_eq!(events, expected);
    }
}
