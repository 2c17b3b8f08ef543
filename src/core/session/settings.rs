//! What a session starts with: the operator's settings, and what the log says about its lane.

use std::collections::HashMap;
use std::sync::Arc;

use super::DOUBT_BYTES_READ;
use super::packet::Delivery;
use super::queue::HOLDS_NOTHING_UP;
use crate::core::retry::RetryPolicy;
use crate::core::types::{LaneKey, Millis, Protocol, SendNo};

/// What the operator sets, and what a lane is called.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lane.
    pub lane: LaneKey,
    /// Client id without epoch and lane: `<client_id>-<store id>`.
    pub client_id: String,
    /// Server, port and user of each server, in the order of preference. At least one.
    pub endpoints: Vec<String>,
    /// While a less preferred server is used, so often is looked whether a more preferred one is back, in milliseconds.
    pub failback_ms: u64,
    /// The only protocol to speak; none for automatic.
    pub protocol: Option<Protocol>,
    /// Keep Alive in seconds.
    pub keepalive_s: u16,
    /// Deliveries in flight over MQTT 5, at most.
    pub window_5: u16,
    /// Deliveries in flight over MQTT 3.1.1, at most.
    pub window_3_1_1: u16,
    /// Session Expiry Interval in seconds: how long a broker keeps the session while Tidings is away.
    pub session_expiry_s: u32,
    /// From the start of a connection attempt to CONNACK, in milliseconds.
    pub connect_timeout_ms: u64,
    /// From a PUBLISH or PUBREL to its acknowledgement, in milliseconds.
    pub ack_timeout_ms: u64,
    /// Backoff and attempts.
    pub retry: RetryPolicy,
    /// What asks for more than the broker has (Maximum QoS, Retain Available) is sent with what there is, rather than held.
    pub downgrade: bool,
    /// It takes nothing new, and ends when it is empty; others wait for that.
    pub is_retired: bool,
    /// So many packet identifiers are in use, from 1 on: [`PACKET_IDS`](crate::core::types::PACKET_IDS), which are all. With few of them they come round soon, which
    /// is what simulations want. More than [`Settings::doubt`], or a start could take two deliveries for one.
    pub packet_ids: u16,
    /// The log is shared: a connection is claimed in it before anything is sent on it (see `claim`).
    pub claims: bool,
}

impl Settings {
    /// So many sends may be without a durable outcome at once: two windows, so that the disk's latency does not idle the broker.
    pub fn doubt(&self) -> u32 {
        2 * u32::from(self.window_5.max(self.window_3_1_1))
    }
}

/// What the log says about a lane when it starts.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Now.
    pub at: Millis,
    /// The newest epoch.
    pub epoch: u32,
    /// The newest session's endpoint; empty if there was none.
    pub endpoint: String,
    /// The newest session's protocol.
    pub protocol: Option<Protocol>,
    /// So many sends of it may be in doubt.
    pub doubt: u32,
    /// Sends whose PUBREC is durable, in order.
    pub released: Vec<SendNo>,
    /// Refused deliveries under their spent numbers: when to retry, and up to where fresh sends had left.
    pub waiting: Vec<(Delivery, Millis, SendNo)>,
    /// Pending deliveries under new numbers, and up to where fresh sends had left.
    pub resent: Vec<(Delivery, SendNo)>,
    /// The first pending fresh deliveries, in send order, until [`Start::is_complete`].
    pub fresh: Vec<Delivery>,
}

impl Start {
    /// Whether `fresh` holds everything that may be on the wire: `doubt` deliveries, or as many bytes as may be in doubt, besides those that are released and those that have
    /// to wait behind a refused one of their topic. `waiting` and `resent` must be there before.
    pub fn is_complete(&self) -> bool {
        let waiting = self.waiting.iter().map(|(delivery, _, through)| (&delivery.topic, *through));
        let resent = self.resent.iter().map(|(delivery, through)| (&delivery.topic, *through));
        let mut held_up: HashMap<&Arc<str>, SendNo> = HashMap::new();
        for (topic, through) in waiting.chain(resent).filter(|(_, through)| *through != HOLDS_NOTHING_UP) {
            let known = held_up.entry(topic).or_insert(through);
            *known = through.max(*known);
        }
        let may_be_sent = |delivery: &&Delivery| {
            let is_held_up = held_up.get(&delivery.topic).is_some_and(|through| delivery.send > *through);
            !is_held_up && !self.released.contains(&delivery.send)
        };
        let last_released = self.released.iter().max();
        let (count, bytes) =
            self.fresh.iter().filter(may_be_sent).fold((0, 0), |(count, bytes), delivery| (count + 1, bytes + delivery.size));
        (count >= self.doubt as usize || bytes > DOUBT_BYTES_READ)
            && last_released.is_none_or(|last| self.fresh.last().is_some_and(|fresh| fresh.send >= *last))
    }
}
