//! Why a connection ends.

use crate::core::topic::TopicError;

/// Reason codes (MQTT 5.0 §2.4).
pub mod code {
    /// Malformed Packet.
    pub const MALFORMED: u8 = 0x81;
    /// Protocol Error.
    pub const PROTOCOL: u8 = 0x82;
    /// Implementation specific error.
    pub const NOT_SERVED: u8 = 0x83;
    /// Unsupported Protocol Version.
    pub const PROTOCOL_VERSION: u8 = 0x84;
    /// Client Identifier not valid.
    pub const CLIENT_ID: u8 = 0x85;
    /// Not authorized.
    pub const NOT_AUTHORIZED: u8 = 0x87;
    /// Server unavailable.
    pub const UNAVAILABLE: u8 = 0x88;
    /// Server busy.
    pub const BUSY: u8 = 0x89;
    /// Server shutting down.
    pub const STOPPING: u8 = 0x8b;
    /// Bad authentication method.
    pub const AUTHENTICATION: u8 = 0x8c;
    /// Keep Alive timeout.
    pub const KEEP_ALIVE: u8 = 0x8d;
    /// Session taken over.
    pub const TAKEN_OVER: u8 = 0x8e;
    /// Topic Name invalid.
    pub const TOPIC: u8 = 0x90;
    /// Receive Maximum exceeded.
    pub const RECEIVE_MAXIMUM: u8 = 0x93;
    /// Topic Alias invalid.
    pub const TOPIC_ALIAS: u8 = 0x94;
    /// Packet too large.
    pub const TOO_LARGE: u8 = 0x95;
    /// Quota exceeded.
    pub const QUOTA: u8 = 0x97;
}

/// Why a connection ends, or a CONNECT or PUBLISH is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// Stable, for metrics and logs.
    pub code: &'static str,
    /// What an MQTT 5 client is told; 0 where nobody is told anything.
    pub reason_code: u8,
    /// For the log: what happened, and where it helps, what to do.
    pub message: String,
}

impl Close {
    /// A reason.
    pub fn new(code: &'static str, reason_code: u8, message: impl Into<String>) -> Self {
        Close { code, reason_code, message: message.into() }
    }

    /// Bytes that make no packet.
    pub fn malformed(message: impl Into<String>) -> Self {
        Close::new("malformed_packet", code::MALFORMED, message)
    }

    /// A packet that does not belong there.
    pub fn protocol(message: impl Into<String>) -> Self {
        Close::new("protocol_error", code::PROTOCOL, message)
    }

    /// The client is gone without a word.
    pub fn lost(message: impl Into<String>) -> Self {
        Close::new("connection_lost", 0, message)
    }

    /// A topic that can't be published to.
    pub fn topic(error: &TopicError) -> Self {
        Close::new(error.code(), code::TOPIC, error.to_string())
    }

    /// The service stops.
    pub fn stopping() -> Self {
        Close::new("stopping", code::STOPPING, "the service is stopping")
    }

    /// Another connection goes on with the session.
    pub fn taken_over() -> Self {
        Close::new("taken_over", code::TAKEN_OVER, "another connection uses the client id")
    }

    /// User or password is another one since it was let in.
    pub fn let_in_no_more() -> Self {
        Close::new("not_authorized", code::NOT_AUTHORIZED, "the listener's user or password has changed since it logged in")
    }

    /// What a CONNACK says of it: some codes are for DISCONNECT alone (MQTT 5.0 §3.2.2.2), and a client may take one of those for a broken server.
    pub fn connack_code(&self) -> u8 {
        match self.reason_code {
            code::STOPPING | code::TAKEN_OVER | code::KEEP_ALIVE => code::UNAVAILABLE,
            code => code,
        }
    }

    /// Whether it is the client's doing, and against the rules.
    pub fn is_clients_fault(&self) -> bool {
        !matches!(self.code, "disconnected" | "connection_lost" | "stopping" | "taken_over" | "internal" | "store_failed")
    }
}
