//! What a delivery is sent with: of all that was accepted, what goes into a PUBLISH. Borrowed from wherever it is in memory.

use super::event::{Accepted, Properties};
use super::types::{Millis, Qos};

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content<'a> {
    /// When it was accepted.
    pub at: Millis,
    /// The topic.
    pub topic: &'a str,
    /// The quality of service to deliver at.
    pub qos: Qos,
    /// The retain flag to deliver with.
    pub retain: bool,
    /// Seconds from acceptance after which it is not to be sent any more (MQTT 5.0 §3.3.2.3.3); none: never.
    pub expiry_s: Option<u32>,
    /// Properties to deliver with over MQTT 5.
    pub properties: &'a Properties,
    /// What is published, byte for byte.
    pub payload: &'a [u8],
}

/// The properties of a delivery that has none.
pub static NO_PROPERTIES: Properties =
    Properties { payload_format: None, content_type: None, response_topic: None, correlation_data: None, user: Vec::new() };

impl Content<'_> {
    /// From when on it is not to be sent any more; none: never.
    pub fn expires_at(&self) -> Option<Millis> {
        self.expiry_s.map(|seconds| self.at.plus(u64::from(seconds) * 1_000))
    }

    /// What is left of its Message Expiry Interval for the broker, in seconds (MQTT 5.0 §3.3.2.3.3). At least one: what is sent again because it
    /// may be in flight never expires.
    pub fn expiry_left_s(&self, now: Millis) -> Option<u32> {
        let passed = u32::try_from(now.since(self.at) / 1_000).unwrap_or(u32::MAX);
        self.expiry_s.map(|seconds| seconds.saturating_sub(passed).max(1))
    }
}

impl<'a> From<&'a Accepted> for Content<'a> {
    fn from(accepted: &'a Accepted) -> Self {
        let Accepted { at, topic, qos, retain, expiry_s, properties, payload, .. } = accepted;
        Content { at: *at, topic, qos: *qos, retain: *retain, expiry_s: *expiry_s, properties, payload }
    }
}
