//! What is pending on a connection, as of one moment, so that somebody can go through it in the order of acceptance.
//!
//! Most of it is found by reading the log from [`Backlog::begin`] on and counting the sends of each lane; what is held apart (carried
//! forward, sent again, waiting for a retry) is known by its place. Both together by id is the order in which it was accepted, over all lanes and
//! all their sets: an older set's deliveries of a topic are older than a newer one's.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Connection, Lane};
use crate::core::types::{Qos, SendNo, Seq};

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Backlog {
    lanes: BTreeMap<u32, Lane>,
    apart: Vec<Apart>,
    plain: u64,
    doubts: BTreeMap<u32, Doubt>,
}

/// A pending delivery that is not found by counting sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Apart {
    /// Its id.
    pub id: Seq,
    /// The event that holds it.
    pub located: Seq,
    /// Its lane.
    pub lane: u32,
    /// Its last send number.
    pub send: SendNo,
    /// Why it is apart.
    pub why: WhyApart,
}

/// Why a delivery is held apart. What of its topic was sent up to `sent_through` did not have to wait behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyApart {
    /// The broker refused it, or an operator requeued it; it waits.
    Waiting {
        /// See above.
        sent_through: SendNo,
    },
    /// It has been given a new number, to be sent again.
    Resent {
        /// See above.
        sent_through: SendNo,
    },
    /// It was carried forward.
    Carried,
}

/// What a lane may have on the wire, counted as a session counts it at its start.
#[derive(Debug, Clone, Default)]
struct Doubt {
    room: u32,
    held_up: HashMap<Arc<str>, SendNo>,
}

impl Connection {
    /// What is pending now.
    pub fn backlog(&self) -> Backlog {
        let mut backlog = Backlog { lanes: self.lanes.clone(), ..Backlog::default() };
        for (number, lane) in &self.lanes {
            backlog.plain += lane.plain_pending_below(lane.next_send());
            let apart = |send: &SendNo, id, located, why| Apart { id, located, lane: *number, send: *send, why };
            backlog.apart.extend(
                lane.waiting().iter().map(|(send, waiting)| {
                    apart(send, waiting.id, waiting.located, WhyApart::Waiting { sent_through: waiting.sent_through })
                }),
            );
            backlog.apart.extend(lane.moved().iter().map(|(send, moved)| {
                let why = match moved.is_resent {
                    true => WhyApart::Resent { sent_through: moved.sent_through },
                    false => WhyApart::Carried,
                };
                apart(send, moved.id, moved.located, why)
            }));
            let room = if lane.endpoint.is_empty() { 0 } else { lane.doubt };
            backlog.doubts.insert(*number, Doubt { room, held_up: HashMap::new() });
        }
        backlog.apart.sort_by_key(|apart| apart.id);
        backlog
    }
}

impl Backlog {
    /// How many deliveries are found by counting sends.
    pub fn plain(&self) -> u64 {
        self.plain
    }

    /// What is held apart, by id.
    pub fn apart(&self) -> &[Apart] {
        &self.apart
    }

    /// From where on the log has to be read; none if nothing is found by counting.
    pub fn begin(&self) -> Option<Seq> {
        let with_plain = self.lanes.values().filter(|lane| lane.plain_pending_below(lane.next_send()) > 0);
        with_plain.filter_map(|lane| lane.anchor_for(lane.cursor())).min()
    }

    /// Whether this send, found where it was accepted, is pending and not held apart.
    pub fn is_plain(&self, lane: u32, send: SendNo) -> bool {
        self.lanes.get(&lane).is_some_and(|lane| lane.is_pending(send) && !lane.moved().contains_key(&send))
    }

    /// Whether a delivery may have arrived at its broker already: an upper bound, because the log does not know what was on the wire. To be
    /// asked about every delivery once, by id.
    pub fn may_have_arrived(&mut self, lane: u32, send: SendNo, why: Option<WhyApart>, topic: &str, qos: Qos) -> bool {
        let (Some(known), Some(doubt)) = (self.lanes.get(&lane), self.doubts.get_mut(&lane)) else { return false };
        let has_session = !known.endpoint.is_empty();
        match why {
            // It has been refused, which is an answer.
            Some(WhyApart::Waiting { sent_through }) => {
                doubt.hold_up(topic, sent_through);
                false
            }
            Some(WhyApart::Resent { sent_through }) => {
                doubt.hold_up(topic, sent_through);
                has_session && qos > Qos::AtMostOnce
            }
            Some(WhyApart::Carried) | None => {
                if known.released().contains(&send) {
                    return has_session;
                }
                let is_held_up = doubt.held_up.get(topic).is_some_and(|through| send > *through);
                if is_held_up || doubt.room == 0 {
                    return false;
                }
                doubt.room -= 1;
                // What was written at QoS 0 is done.
                qos > Qos::AtMostOnce
            }
        }
    }
}

impl Doubt {
    fn hold_up(&mut self, topic: &str, sent_through: SendNo) {
        let known = self.held_up.entry(Arc::from(topic)).or_insert(sent_through);
        *known = sent_through.max(*known);
    }
}
