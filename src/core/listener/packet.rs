//! What a publisher and the listener say to each other: MQTT control packets without their bytes.

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::core::event::Properties;
use crate::core::types::{Protocol, Qos};

/// What comes from a publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// CONNECT.
    Connect(Box<Connect>),
    /// PUBLISH.
    Publish(Box<Publish>),
    /// PUBREL.
    PubRel {
        /// Packet identifier.
        packet_id: u16,
    },
    /// SUBSCRIBE, which is answered and not served.
    Subscribe {
        /// Packet identifier.
        packet_id: u16,
        /// How many filters it has: each gets its reason code.
        filters: usize,
    },
    /// UNSUBSCRIBE.
    Unsubscribe {
        /// Packet identifier.
        packet_id: u16,
        /// How many filters it has.
        filters: usize,
    },
    /// PINGREQ.
    PingReq,
    /// DISCONNECT.
    Disconnect {
        /// Reason code; 0 on 3.1.1. With 0x04 the will is to be published (MQTT 5.0 §3.14.2.1).
        code: u8,
        /// A new Session Expiry Interval in seconds (MQTT 5.0 §3.14.2.2.2).
        session_expiry_s: Option<u32>,
    },
    /// A packet that a publisher does not send, by its name.
    Unexpected(&'static str),
}

/// A CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The protocol level.
    pub protocol: Protocol,
    /// The client identifier; may be empty.
    pub client_id: String,
    /// Clean Start (MQTT 5.0 §3.1.2.4), clean session on 3.1.1.
    pub clean: bool,
    /// Keep Alive in seconds; 0 for none.
    pub keepalive_s: u16,
    /// How long the session outlives its connection, in seconds; 0 not at all, `u32::MAX` for ever (MQTT 5.0 §3.1.2.11.2). A session of 3.1.1 that
    /// is not clean has `u32::MAX`.
    pub session_expiry_s: u32,
    /// The largest packet that the client takes, in bytes.
    pub maximum_packet_size: Option<u32>,
    /// User name and password; none if both are missing or empty.
    pub login: Option<(String, String)>,
    /// What is to be published when the client vanishes.
    pub will: Option<Will>,
    /// The client wants another kind of authentication (MQTT 5.0 §4.12).
    pub wants_authentication: bool,
}

/// A PUBLISH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The topic; empty where its alias stands for it.
    pub topic: String,
    /// Topic Alias (MQTT 5.0 §3.3.2.3.4).
    pub alias: Option<u16>,
    /// Quality of service.
    pub qos: Qos,
    /// Retain flag.
    pub retain: bool,
    /// It may have been sent before.
    pub dup: bool,
    /// Packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// Message Expiry Interval in seconds (MQTT 5.0 §3.3.2.3.3).
    pub expiry_s: Option<u32>,
    /// What is passed on of its properties.
    pub properties: Properties,
    /// What is published.
    pub payload: Bytes,
}

/// A will message (MQTT 5.0 §3.1.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// What is published, with packet identifier 0.
    pub publish: Publish,
    /// Will Delay Interval in seconds (MQTT 5.0 §3.1.3.2.2).
    pub delay_s: u32,
}

impl Publish {
    /// What it takes in memory, in bytes, about.
    pub fn weight(&self) -> usize {
        256 + self.topic.len() + self.payload.len() + self.properties.size() + 32 * self.properties.user.len()
    }

    /// A hash of topic and payload: what one PUBLISH is recognised by when it comes again. Never 0, which stands for "not known".
    pub fn content(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(&(self.topic.len() as u64).to_be_bytes());
        hash.update(self.topic.as_bytes());
        hash.update(&self.payload);
        hash.digest().max(1)
    }
}

/// What goes to a publisher without anything having to be durable before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// CONNACK that welcomes.
    Welcome {
        /// There is a session to go on with.
        session_present: bool,
        /// The client identifier, if the client had none (MQTT 5.0 §3.2.2.3.7).
        assigned: Option<String>,
        /// The session's expiry in seconds, if it is not what the client asked for.
        session_expiry_s: Option<u32>,
    },
    /// CONNACK that refuses.
    Refusal {
        /// Reason code of MQTT 5; a 3.1.1 client gets the return code that means the same.
        code: u8,
    },
    /// SUBACK: each filter is refused.
    SubAck {
        /// Packet identifier.
        packet_id: u16,
        /// How many filters.
        filters: usize,
    },
    /// UNSUBACK: there was no subscription.
    UnsubAck {
        /// Packet identifier.
        packet_id: u16,
        /// How many filters.
        filters: usize,
    },
    /// PINGRESP.
    PingResp,
    /// DISCONNECT; MQTT 5 only.
    Disconnect {
        /// Reason code.
        code: u8,
    },
    /// PUBACK or PUBREC that refuses; MQTT 5 only.
    Refused(Refused),
}

/// Which acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckKind {
    /// PUBACK.
    PubAck,
    /// PUBREC.
    PubRec,
    /// PUBCOMP.
    PubComp,
}

/// An acknowledgement that says "it is durable". Written only with the proof that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Which one.
    pub kind: AckKind,
    /// Packet identifier.
    pub packet_id: u16,
    /// PUBCOMP only: the identifier was not known any more (0x92, MQTT 5.0 §3.7.2.1).
    pub is_unknown: bool,
}

/// A PUBLISH that is not taken (MQTT 5.0 §3.4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// PUBACK or PUBREC.
    pub kind: AckKind,
    /// Packet identifier.
    pub packet_id: u16,
    /// Reason code, 0x80 or above.
    pub code: u8,
}
