//! What the session says and hears: MQTT control packets of a publisher, without their bytes.

use std::sync::Arc;

use crate::core::event::Event;
use crate::core::types::{Millis, Protocol, Qos, SendNo, Seq};

/// A delivery as the session sees it: all but its payload, which stays with whoever writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The number it is sent under.
    pub send: SendNo,
    /// Its id.
    pub id: Seq,
    /// The event that holds it.
    pub located: Seq,
    /// Its topic.
    pub topic: Arc<str>,
    /// The quality of service that was asked for.
    pub qos: Qos,
    /// The retain flag that was asked for.
    pub retain: bool,
    /// When it was accepted.
    pub accepted_at: Millis,
    /// Not sent for the first time from then on (MQTT 5.0 §3.3.2.3.3).
    pub expires_at: Option<Millis>,
    /// Refusals charged so far.
    pub attempts: u32,
    /// The size of its PUBLISH packet in bytes, for the broker's Maximum Packet Size.
    pub size: usize,
    /// It has a new number: it was refused, requeued, or waited behind one that was.
    pub is_resent: bool,
}

impl Delivery {
    /// Whether it is too late to send it for the first time.
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expires_at.is_some_and(|at| now >= at)
    }
}

/// What goes to the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// CONNECT.
    Connect {
        /// The protocol level.
        protocol: Protocol,
        /// The client identifier.
        client_id: String,
        /// Clean Start (MQTT 5.0 §3.1.2.4), clean session on 3.1.1.
        clean: bool,
        /// Session Expiry Interval in seconds (MQTT 5.0 §3.1.2.11.2).
        session_expiry_s: u32,
        /// Keep Alive in seconds.
        keepalive_s: u16,
    },
    /// PUBLISH. The writer has the payload.
    Publish {
        /// The send.
        send: SendNo,
        /// Packet identifier; none at QoS 0.
        packet_id: Option<u16>,
        /// It may have been sent before.
        dup: bool,
        /// The quality of service to send it at: the one asked for, unless the broker has less and the operator lets it be lowered.
        qos: Qos,
        /// The retain flag to send it with; likewise.
        retain: bool,
    },
    /// PUBREL. Written only with the proof that its release is durable.
    PubRel {
        /// The send.
        send: SendNo,
        /// Packet identifier.
        packet_id: u16,
    },
    /// PINGREQ.
    PingReq,
    /// DISCONNECT.
    Disconnect {
        /// The broker may forget the session (Session Expiry Interval 0, MQTT 5.0 §3.14.2.2.2).
        end_session: bool,
    },
}

/// What comes from the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// CONNACK.
    ConnAck {
        /// The broker has a session for this client id.
        session_present: bool,
        /// Reason code, of MQTT 5 also where the broker spoke 3.1.1; 0 is success.
        code: u8,
        /// What the broker says about itself.
        limits: BrokerLimits,
        /// The broker's words, if any.
        reason: Option<String>,
        /// The client identifier that the broker has put in place of the one it was given (MQTT 5.0 §3.2.2.3.7).
        assigned_client_id: Option<String>,
    },
    /// PUBACK.
    PubAck(Ack),
    /// PUBREC.
    PubRec(Ack),
    /// PUBCOMP.
    PubComp(Ack),
    /// PINGRESP.
    PingResp,
    /// DISCONNECT by the broker (MQTT 5.0 §3.14).
    Disconnect {
        /// Reason code.
        code: u8,
        /// The broker's words, if any.
        reason: Option<String>,
    },
}

/// PUBACK, PUBREC or PUBCOMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Packet identifier.
    pub packet_id: u16,
    /// Reason code; 0 on 3.1.1.
    pub code: u8,
    /// The broker's words, if any.
    pub reason: Option<String>,
}

/// What a broker says about itself in its CONNACK (MQTT 5.0 §3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BrokerLimits {
    /// Receive Maximum.
    pub receive_maximum: Option<u16>,
    /// Maximum Packet Size in bytes.
    pub maximum_packet_size: Option<u32>,
    /// Server Keep Alive in seconds.
    pub keepalive_s: Option<u16>,
    /// Maximum QoS; 2 if absent.
    pub maximum_qos: Option<Qos>,
    /// Retain Available; yes if absent.
    pub retain_available: Option<bool>,
}

/// What happens to a session.
#[derive(Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The transport is open.
    Opened,
    /// The transport could not be opened, or is gone.
    Closed {
        /// Why.
        reason: String,
    },
    /// Packets arrived, in this order. The more at once the better: what follows from them is sent, and recorded, once.
    Received(Vec<Incoming>),
    /// These sends of QoS 0 have left for the network.
    Flushed(Vec<SendNo>),
    /// The network is slow: what was sent from then on has left later.
    LeftLate {
        /// Since when.
        since: Millis,
        /// When the last of it left, or now if it is still leaving.
        left: Millis,
    },
    /// The oldest append that was asked for is durable.
    Committed {
        /// The new send numbers of the `Resent` events in it, in order.
        resent: Vec<SendNo>,
    },
    /// Fresh deliveries, in send order.
    Offer(Vec<Delivery>),
    /// A delivery that waits for its retry: after a requeue.
    OfferWaiting {
        /// The delivery, under its spent number.
        delivery: Delivery,
        /// Not before.
        retry_at: Millis,
    },
    /// What [`Output::Look`] has found.
    Looked {
        /// The most preferred server that can be reached, if one of them can.
        found: Option<usize>,
    },
    /// Whether others go first: nothing new is sent while they do, and what is in flight goes on.
    GiveWay(bool),
    /// No new sends: finish what is in flight, then disconnect.
    Drain,
    /// As `Drain`, and the broker is to forget the session: the lane is not used any more.
    Retire,
}

/// What a session wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open a transport to a broker.
    Open {
        /// Which of the connection's servers, by its place in their order.
        server: usize,
    },
    /// Find out which of the servers before this one can be reached, without a word of MQTT; [`Input::Looked`] is the answer.
    Look {
        /// The place of the server that is in use.
        before: usize,
    },
    /// Close the transport, after what was sent has been flushed.
    Close,
    /// Write a packet.
    Send(Outgoing),
    /// Make these durable, in the order of the asking.
    Append(Vec<Event>),
    /// Something to count, show or log.
    Note(Note),
}

/// Something to count, show or log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// CONNACK: connected.
    Connected {
        /// The protocol spoken.
        protocol: Protocol,
        /// A session was resumed.
        resumed: bool,
        /// The place of the server in their order.
        server: usize,
    },
    /// The broker calls this client otherwise than it calls itself.
    Renamed {
        /// The client identifier that the broker has assigned.
        client_id: String,
    },
    /// The connection failed or was lost.
    Disconnected {
        /// Why.
        reason: String,
        /// When it is tried again.
        retry_at: Millis,
        /// So many were sent on it, and not answered.
        lost: u64,
    },
    /// A connection was closed on purpose, to go on with a clean one, or because the lane has stopped.
    Closed,
    /// A delivery is done.
    Done {
        /// Its send number.
        send: SendNo,
        /// The quality of service that it was sent at.
        qos: Qos,
        /// When it was accepted.
        accepted_at: Millis,
    },
    /// A delivery was refused and waits.
    Refused {
        /// Its id.
        id: Seq,
        /// Its send number.
        send: SendNo,
        /// The reason code.
        code: u8,
        /// The broker's words, if any.
        reason: Option<String>,
        /// When it is tried again.
        retry_at: Millis,
    },
    /// A delivery is not sent, because the broker has said that it does not take what it asks for. It waits.
    Held {
        /// Its id.
        id: Seq,
        /// What the broker lacks, and what to do.
        reason: String,
    },
    /// A delivery became a dead letter.
    Dead {
        /// Its id.
        id: Seq,
        /// Its send number.
        send: SendNo,
        /// Its quality of service.
        qos: Qos,
        /// Why.
        reason: String,
        /// Whether the broker has answered that it does not take it.
        is_answered: bool,
    },
    /// The time limit of a delivery passed before it was sent.
    Expired {
        /// Its id.
        id: Seq,
        /// Its quality of service.
        qos: Qos,
    },
    /// The broker's session is gone: so many sends may arrive twice.
    SessionLost {
        /// How many.
        in_doubt: u64,
        /// Why it is thought to be gone.
        reason: String,
    },
    /// Connection after connection dies: deliveries are sent one at a time, to find out whether it is one of them.
    Isolating,
    /// Isolation is over: the window is whole again.
    Isolated,
    /// The lane stops trying in earnest: whatever is sent, the broker hangs up or refuses it, so it is not the reports.
    Suspended {
        /// When it is tried again.
        retry_at: Millis,
        /// What the broker does, and where to look.
        reason: &'static str,
    },
    /// Another server of the connection is used from now on.
    Leaving {
        /// The place of the server that is left.
        from: usize,
        /// Why.
        reason: String,
    },
    /// The broker does not speak the protocol; the other one is tried.
    FellBack {
        /// What is spoken from now on.
        protocol: Protocol,
    },
    /// The outcome of these sends is durable: their payloads are not needed any more.
    Settled {
        /// The sends.
        sends: Vec<SendNo>,
    },
    /// A delivery is known under a new number from now on.
    Renumbered {
        /// The spent number.
        from: SendNo,
        /// The new number.
        to: SendNo,
    },
    /// The release of these sends is durable: PUBREL may be sent for them.
    Releasable {
        /// The sends.
        sends: Vec<SendNo>,
    },
}
