//! Every event that is ever stored. The log is append-only and the truth; everything else is a fold of these.
//!
//! The order of the variants and of their fields *is* version 1 of the stored format (postcard writes a variant by its number
//! and a struct field by field): change nothing here without a step in `migrations/`, where a golden fixture stands guard.
//! Variants that no part of the service writes yet are named all the same, so that the format is made once.
//!
//! # How an event names a delivery
//! A delivery's id is the [`Seq`] of its [`Event::Accepted`] (or of the `Carried` event's `id` field, which repeats it). Outcomes name
//! it by lane and [`SendNo`]: numbers of one lane are contiguous, so a thousand acknowledgements are one range. A send number is
//! never stored with the delivery; the fold counts it, so any reader of the log comes to the same one.
//!
//! ```text
//!            Accepted ──send n──▶ in flight ──▶ Released (QoS 2: PUBREC is durable) ──▶ Delivered
//!                │                   │
//!                │                   ├─ Refused ─▶ waiting for its retry ─ Resent (a new number) ─▶ in flight again
//!                │                   └─ DeadLettered ─ Requeued ─ Resent ─▶ in flight again
//!                ├─ Expired · Discarded
//!                └─ Carried (copied forward out of a generation that is to be deleted; same id, same number)
//! ```

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ranges::Ranges;
use super::types::{ConnectionName, InstanceId, LaneKey, Millis, Protocol, Qos, SendNo, Seq};

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A report was bound to one connection, topic and qos: a delivery exists. Takes the next send number of its lane. Shared, because it goes from
    /// the request to the page, to whoever reads that, and to the socket, and nobody changes it on the way.
    Accepted(Arc<Accepted>),
    /// QoS 2: the broker's PUBREC for these sends has been seen, in this order. Only once this is durable may PUBREL leave.
    Released {
        /// The lane.
        lane: LaneKey,
        /// The sends, in the order of their PUBRECs, which is the order of their PUBRELs (MQTT 5.0 §4.6).
        sends: Vec<SendNo>,
    },
    /// The broker has proven that it has these; they are done.
    Delivered {
        /// The lane.
        lane: LaneKey,
        /// The send numbers.
        sends: Ranges,
        /// What proves it.
        proof: Proof,
        /// When the last of them was proven.
        at: Millis,
    },
    /// The broker refused a send with a reason code ≥ 0x80; it is to be tried again.
    Refused {
        /// The refused send. Its number is spent.
        delivery: DeliveryRef,
        /// The broker's reason code (MQTT 5.0 §2.4).
        code: u8,
        /// How many refusals have been charged to this delivery so far.
        attempts: u32,
        /// Not before this time is it tried again.
        retry_at: Millis,
        /// Up to this number, fresh sends of its topic had left by then. What is behind it in the topic waits, but for these.
        sent_through: SendNo,
        /// When.
        at: Millis,
    },
    /// A delivery takes a new send number: after a refusal, a requeue, or when what it waited behind is done.
    Resent {
        /// The delivery, under its last number.
        delivery: DeliveryRef,
        /// When.
        at: Millis,
    },
    /// Tidings has given up on a delivery; it waits for an operator.
    DeadLettered {
        /// The delivery, under its last number.
        delivery: DeliveryRef,
        /// Why.
        reason: DeadReason,
        /// How many refusals were charged to it.
        attempts: u32,
        /// When.
        at: Millis,
    },
    /// An operator gave a dead letter back to its lane. `Resent` follows when it is sent.
    Requeued {
        /// The dead letter, under its last number.
        delivery: DeliveryRef,
        /// Who decided.
        by: String,
        /// When.
        at: Millis,
    },
    /// An operator gave deliveries up, or moved them to another connection.
    Discarded {
        /// The lane.
        lane: LaneKey,
        /// Their last send numbers.
        sends: Ranges,
        /// Whether they were dead letters (true) or pending (false).
        dead: bool,
        /// Who decided.
        by: String,
        /// Why, in the operator's or the command's words.
        reason: String,
        /// When.
        at: Millis,
    },
    /// The deliveries' own time limit passed before they were sent.
    Expired {
        /// The lane.
        lane: LaneKey,
        /// Their send numbers.
        sends: Ranges,
        /// When.
        at: Millis,
    },
    /// A delivery that is not done was copied forward, because the generation that holds it is to be deleted.
    Carried(Box<Carried>),
    /// A replay job was asked for.
    ReplayStarted {
        /// The job's id.
        job: u64,
        /// Who asked.
        by: String,
        /// The filters, as given, in JSON.
        filter: String,
        /// Reports per second, 0 for as fast as it goes.
        rate: u32,
        /// When.
        at: Millis,
    },
    /// A replay job has created deliveries for everything up to here.
    ReplayProgress {
        /// The job's id.
        job: u64,
        /// The last position looked at.
        through: Seq,
        /// Deliveries created so far.
        created: u64,
    },
    /// A replay job is over.
    ReplayEnded {
        /// The job's id.
        job: u64,
        /// Whether it was cancelled, and by whom.
        cancelled_by: Option<String>,
        /// When.
        at: Millis,
    },
    /// A lane is about to use an MQTT session; committed before the first PUBLISH in it.
    SessionOpened {
        /// The lane.
        lane: LaneKey,
        /// Part of the client id: another epoch is another session at the broker.
        epoch: u32,
        /// The protocol level spoken.
        protocol: Protocol,
        /// Server, port and user, so that a change of these is seen.
        endpoint: String,
        /// So many sends may be on the wire at once without an outcome that is durable: what a restart has to take as perhaps sent.
        doubt: u32,
        /// Sends that may have arrived before and are sent again, because the broker's session was lost.
        repeated: Ranges,
        /// When.
        at: Millis,
    },
    /// A connection has a new set of lanes: `first..first + count`. Earlier sets drain first.
    LanesChanged {
        /// The connection.
        connection: ConnectionName,
        /// The number of the first lane of the set.
        first: u32,
        /// How many lanes.
        count: u32,
        /// What the set is for.
        purpose: LanePurpose,
        /// When.
        at: Millis,
    },
    /// Every lane must leave its broker session behind: the store was copied, restored or repaired.
    EpochBumped {
        /// Why.
        reason: String,
        /// When.
        at: Millis,
    },
    /// Listener, QoS 2: a PUBLISH with this packet id is in the log; a repeat is not to be stored again until it is released.
    Received {
        /// The key of the publisher's session: its user and client id.
        client: String,
        /// Its packet id; 0 says that the session exists.
        packet_id: u16,
        /// When.
        at: Millis,
    },
    /// Listener, QoS 2: the publisher's PUBREL has been seen; the packet id is free again.
    ReleasedIn {
        /// The key of the publisher's session: its user and client id.
        client: String,
        /// Its packet id; 0 ends the session.
        packet_id: u16,
        /// When.
        at: Millis,
    },
    /// Somebody did something that changes what happens to reports.
    Audit {
        /// Who.
        who: String,
        /// What, in one sentence.
        what: String,
        /// When.
        at: Millis,
    },
    /// Shared log: an instance is there, and may own lanes.
    InstanceJoined {
        /// The instance.
        instance: InstanceId,
        /// What people call it.
        name: String,
        /// When.
        at: Millis,
    },
    /// Shared log: an instance has stopped, or another says that it has not been heard of for a lease. It owns nothing any more.
    InstanceLeft {
        /// The instance.
        instance: InstanceId,
        /// Who says so.
        by: InstanceId,
        /// When.
        at: Millis,
    },
    /// Shared log: an instance owns the lane from here on, and nobody else.
    LaneTaken {
        /// The lane.
        lane: LaneKey,
        /// Its owner.
        instance: InstanceId,
        /// One more than that of the owner before: of two that take a lane at once, the second is refused.
        term: u64,
        /// When.
        at: Millis,
    },
    /// Shared log: the owner has nothing in flight on the lane any more and gives it up, for another to take.
    LaneLeft {
        /// The lane.
        lane: LaneKey,
        /// Who owned it.
        instance: InstanceId,
        /// The term that ends.
        term: u64,
        /// When.
        at: Millis,
    },
    /// Shared log: a generation begins with the event after this one, for every instance. On a log that is one machine's its folders say so.
    GenerationBegun {
        /// When.
        at: Millis,
    },
    /// Shared log: every generation before the one that begins with `before` is being deleted; nothing in them is needed.
    GenerationDropped {
        /// The first event of what is now the oldest generation.
        before: Seq,
        /// When.
        at: Millis,
    },
}

/// One delivery, by everything that finds it again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeliveryRef {
    /// Its lane.
    pub lane: LaneKey,
    /// Its last send number.
    pub send: SendNo,
    /// Its id: where it was first accepted.
    pub id: Seq,
    /// The event that holds it now: its `Accepted`, or the last `Carried`.
    pub located: Seq,
}

/// A report bound to one connection, topic and qos, with all that is needed to send it, to find it, and to answer its producer again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// When it was accepted.
    pub at: Millis,
    /// The way in.
    pub source: Source,
    /// Who sent it: the token's name, the MQTT user; empty when nobody had to say.
    pub user: String,
    /// The report's tenant; empty where the payload is not a Zuul report.
    pub tenant: String,
    /// The report's pipeline, or empty.
    pub pipeline: String,
    /// The report's action, or empty.
    pub action: String,
    /// The report's project, or empty.
    pub project: String,
    /// The report's change number, or empty.
    pub change: String,
    /// The lane, and with it the connection.
    pub lane: LaneKey,
    /// The rendered topic.
    pub topic: String,
    /// The quality of service to deliver at.
    pub qos: Qos,
    /// The retain flag to deliver with.
    pub retain: bool,
    /// Seconds from acceptance after which it is not to be sent any more (MQTT 5.0 §3.3.2.3.3); none: never.
    pub expiry_s: Option<u32>,
    /// Properties to deliver with over MQTT 5.
    pub properties: Properties,
    /// What is published, byte for byte.
    pub payload: Bytes,
    /// Which request it came in with, so that the same request again gets the same answer.
    pub dedupe: Option<Dedupe>,
    /// The delivery that this one replays.
    pub replay_of: Option<Seq>,
}

#[cfg(test)]
impl Accepted {
    /// A delivery with a lane, a topic and a time, and nothing else, for tests to fill in.
    pub fn plain(lane: LaneKey, topic: impl Into<String>, qos: Qos, at: Millis) -> Self {
        Accepted {
            at,
            source: Source::Http,
            user: String::new(),
            tenant: String::new(),
            pipeline: String::new(),
            action: String::new(),
            project: String::new(),
            change: String::new(),
            lane,
            topic: topic.into(),
            qos,
            retain: false,
            expiry_s: None,
            properties: Properties::default(),
            payload: Bytes::new(),
            dedupe: None,
            replay_of: None,
        }
    }
}

/// The way by which a report came in: the `source` label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Source {
    /// `POST /v1/reports`.
    Http,
    /// The MQTT listener.
    Mqtt,
    /// Made by Tidings itself: replays, notices.
    Internal,
}

impl Source {
    /// The name in metrics and answers.
    pub fn label(self) -> &'static str {
        match self {
            Source::Http => "http",
            Source::Mqtt => "mqtt",
            Source::Internal => "internal",
        }
    }
}

/// MQTT 5 application properties that are passed on (MQTT 5.0 §3.3.2.3).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Properties {
    /// Payload Format Indicator: 0 bytes, 1 UTF-8.
    pub payload_format: Option<u8>,
    /// Content Type.
    pub content_type: Option<String>,
    /// Response Topic.
    pub response_topic: Option<String>,
    /// Correlation Data.
    pub correlation_data: Option<Bytes>,
    /// User Properties, in order.
    pub user: Vec<(String, String)>,
}

impl Properties {
    /// What they take in memory and in a page, in bytes: a little more than they really do.
    pub fn size(&self) -> usize {
        let texts = [&self.content_type, &self.response_topic].into_iter().flatten().map(|text| text.len() + 8).sum::<usize>();
        let pairs = self.user.iter().map(|(name, value)| name.len() + value.len() + 16).sum::<usize>();
        texts + pairs + self.correlation_data.as_ref().map_or(0, |data| data.len() + 8)
    }
}

/// What a producer's request is recognised by, when it comes again. What came over MQTT has other meanings under the same names, see
/// [`PublishKey`](crate::core::outbox::PublishKey).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dedupe {
    /// A hash of whose request it is and of its key: the token and the `Idempotency-Key`. MQTT: a number for the connection, and a hash of topic and payload.
    pub key: u128,
    /// A hash of the whole request body: the same key with another body is a conflict. MQTT: a hash of user and address.
    pub body: u64,
    /// Which report of the request this is, counted from 0. MQTT: the packet identifier.
    pub line: u32,
    /// How many reports the request had.
    pub lines: u32,
    /// Whether the body was NDJSON, which is answered in another shape.
    pub batch: bool,
}

/// A delivery copied forward with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// The delivery's id: where it was first accepted.
    pub id: Seq,
    /// Its last send number, which it keeps.
    pub send: SendNo,
    /// What was accepted.
    pub accepted: Accepted,
    /// The earlier history worth keeping, one sentence each.
    pub history: Vec<String>,
}

/// What proves that a delivery is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// QoS 0: flushed to a live connection. No acknowledgement exists (MQTT 5.0 §4.3.1).
    Flushed,
    /// QoS 1: PUBACK (MQTT 5.0 §4.3.2).
    PubAck,
    /// QoS 2: PUBCOMP (MQTT 5.0 §4.3.3).
    PubComp,
    /// QoS 2: PUBCOMP with 0x92 after a resume: the broker had completed it already (MQTT 5.0 §3.7.2.1).
    PubCompNotFound,
}

/// Why a delivery became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadReason {
    /// Stable, for machines: `refused`, `too_large`, `invalid_topic`, `poison`.
    pub code: String,
    /// The broker's reason code, if it gave one.
    pub broker_code: Option<u8>,
    /// For people, with what to do about it.
    pub message: String,
}

/// What a set of lanes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LanePurpose {
    /// Fresh reports.
    Fresh,
    /// Replays, which run on a lane of their own.
    Replay,
}

impl Event {
    /// The time of the event, where it has one.
    pub fn at(&self) -> Option<Millis> {
        match self {
            Event::Accepted(accepted) => Some(accepted.at),
            Event::Carried(carried) => Some(carried.accepted.at),
            Event::Released { .. } | Event::ReplayProgress { .. } => None,
            Event::Delivered { at, .. }
            | Event::Refused { at, .. }
            | Event::Resent { at, .. }
            | Event::DeadLettered { at, .. }
            | Event::Requeued { at, .. }
            | Event::Discarded { at, .. }
            | Event::Expired { at, .. }
            | Event::ReplayStarted { at, .. }
            | Event::ReplayEnded { at, .. }
            | Event::SessionOpened { at, .. }
            | Event::LanesChanged { at, .. }
            | Event::EpochBumped { at, .. }
            | Event::Received { at, .. }
            | Event::ReleasedIn { at, .. }
            | Event::Audit { at, .. }
            | Event::InstanceJoined { at, .. }
            | Event::InstanceLeft { at, .. }
            | Event::LaneTaken { at, .. }
            | Event::LaneLeft { at, .. }
            | Event::GenerationBegun { at }
            | Event::GenerationDropped { at, .. } => Some(*at),
        }
    }
}
