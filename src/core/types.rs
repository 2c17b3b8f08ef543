//! The small types that every room speaks in. Each exists so that two numbers of different meaning can't be mixed up.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Position of an event in the log: global, gap-free, counted from 1. A delivery is known by the `Seq` of its `Accepted` event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// The first position of a log.
    pub const FIRST: Seq = Seq(1);

    /// The position after this one.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a send on its lane: the n-th `Accepted` or `Resent` of the lane in log order, counted from 0.
///
/// The MQTT packet id follows from it (see [`SendNo::packet_id`]), so nothing about packet ids is stored and whoever reads the
/// log resumes with the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct SendNo(pub u64);

/// How many packet ids MQTT has: 1 to 65,535 (MQTT 5.0 §2.2.1).
pub const PACKET_IDS: u16 = 65_535;

impl SendNo {
    /// The packet identifier that this send uses where `ids` of them are in use, which are [`PACKET_IDS`] in a service: `send number mod 65,535 + 1`.
    ///
    /// # Panics
    /// If `ids` is 0.
    pub fn packet_id(self, ids: u16) -> u16 {
        u16::try_from(self.0 % u64::from(ids)).expect("a remainder of a 16 bit number fits 16 bits") + 1
    }

    /// The send number after this one.
    pub fn next(self) -> SendNo {
        SendNo(self.0 + 1)
    }
}

impl fmt::Display for SendNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// MQTT quality of service (MQTT 5.0 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[repr(u8)]
pub enum Qos {
    /// At most once: done when flushed to a live connection; called *sent*, never *acknowledged*.
    #[default]
    AtMostOnce = 0,
    /// At least once: done at PUBACK.
    AtLeastOnce = 1,
    /// Exactly once: done at PUBCOMP.
    ExactlyOnce = 2,
}

impl Qos {
    /// The level as it stands in configuration and on the wire.
    pub fn level(self) -> u8 {
        self as u8
    }

    /// The level as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Qos::AtMostOnce => "0",
            Qos::AtLeastOnce => "1",
            Qos::ExactlyOnce => "2",
        }
    }

    /// All levels, in order.
    pub const ALL: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];
}

impl TryFrom<u64> for Qos {
    type Error = u64;

    /// # Errors
    /// Gives the number back when it is not 0, 1 or 2.
    fn try_from(level: u64) -> Result<Self, u64> {
        match level {
            0 => Ok(Qos::AtMostOnce),
            1 => Ok(Qos::AtLeastOnce),
            2 => Ok(Qos::ExactlyOnce),
            other => Err(other),
        }
    }
}

/// Wall-clock time in milliseconds since the Unix epoch. For people and for ages; order never depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    /// Milliseconds from `earlier` to `self`, zero when the clock has jumped back.
    pub fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This time, `ms` milliseconds later.
    pub fn plus(self, ms: u64) -> Millis {
        Millis(self.0.saturating_add(ms))
    }

    /// The time for people and machines: RFC 3339 with milliseconds, in UTC.
    pub fn rfc3339(self) -> String {
        // The last moment of the year 9999, beyond which the format has no years.
        const LAST: u64 = 253_402_300_799_999;
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(self.0.min(LAST))).to_string()
    }
}

/// The name of a configured connection, cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConnectionName(pub Arc<str>);

impl ConnectionName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ConnectionName {
    fn from(name: &str) -> Self {
        ConnectionName(Arc::from(name))
    }
}

impl fmt::Display for ConnectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One ordered stream of deliveries, with an MQTT session of its own.
///
/// Numbers are never reused within a connection: a change of the lane count makes a new set with higher numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LaneKey {
    /// The connection that the lane belongs to.
    pub connection: ConnectionName,
    /// The lane's number within its connection.
    pub lane: u32,
}

impl fmt::Display for LaneKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.connection, self.lane)
    }
}

/// One process of several that work over one log; drawn at random at each start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The MQTT protocol level that a session speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// MQTT 3.1.1 (protocol level 4).
    V311,
    /// MQTT 5.0 (protocol level 5).
    V5,
}

impl Protocol {
    /// The name as it stands in configuration.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::V311 => "3.1.1",
            Protocol::V5 => "5",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_zero_when_the_clock_has_jumped_back() {
        assert_eq!(Millis(1_000).since(Millis(5_000)), 0);
        assert_eq!(Millis(5_000).since(Millis(1_000)), 4_000);
    }

    #[test]
    fn times_are_rfc3339_whatever_the_clock_says() {
        assert_eq!(Millis(0).rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Millis(1_524_801_179_855).rfc3339(), "2018-04-27T03:52:59.855Z");
        assert_eq!(Millis(u64::MAX).rfc3339(), "9999-12-31T23:59:59.999Z");
    }
}
