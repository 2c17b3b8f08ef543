//! Asks a broker what it is, by the same way and with the same login as lanes, and leaves again: CONNECT, CONNACK, DISCONNECT.
//!
//! The session is one of its own and ends with the connection, so no lane's is disturbed.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::codec::{self, Connect, Credentials, DecodeError};
use super::transport::{self, ConnectError, Encryption, Stream, lost};
use crate::config::{Secret, TlsConfig};
use crate::core::address::Address;
use crate::core::retry::reason_name;
use crate::core::session::{BrokerLimits, Incoming};
use crate::core::types::Protocol;

/// Whom to ask, and as who.
#[derive(Debug, Clone)]
pub struct Target {
    /// The broker.
    pub address: Address,
    /// How it is reached over TLS; none for the clear.
    pub tls: Option<TlsConfig>,
    /// The user to authenticate as.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// The client id, which should be nobody else's.
    pub client_id: String,
    /// The only protocol to speak; none for MQTT 5 or, failing that, 3.1.1.
    pub protocol: Option<Protocol>,
    /// Keep Alive in seconds.
    pub keepalive_s: u16,
}

/// What a broker said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The protocol that it speaks.
    pub protocol: Protocol,
    /// What TLS has agreed on; none in the clear.
    pub encryption: Option<Encryption>,
    /// What it told about itself; over MQTT 3.1.1 nothing.
    pub limits: BrokerLimits,
}

/// Why a broker is of no use. Each names the option to look at.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The broker can't be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker does not let Tidings in.
    #[error("the broker refused the connection with 0x{code:02x} ({}){words}: {}", reason_name(*code), advice(*code))]
    Refused {
        /// Reason code of MQTT 5.
        code: u8,
        /// The broker's words, after a colon, or nothing.
        words: String,
    },
    /// The broker hung up.
    #[error("{reason}")]
    Closed {
        /// How.
        reason: String,
    },
    /// What answers there does not speak MQTT.
    #[error("{error}{hint}")]
    NotMqtt {
        /// What was read.
        error: DecodeError,
        /// What it may be instead.
        hint: &'static str,
    },
    /// No CONNACK.
    #[error("the broker did not answer CONNECT within {} s: does `port` speak MQTT?", .0.as_secs_f32())]
    TimedOut(Duration),
}

impl ProbeError {
    /// Stable, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            ProbeError::Connect(error) => error.code(),
            ProbeError::Refused { .. } => "refused",
            ProbeError::Closed { .. } => "closed",
            ProbeError::NotMqtt { .. } => "not_mqtt",
            ProbeError::TimedOut(_) => "no_answer",
        }
    }

    /// Another protocol may do better.
    fn is_about_protocol(&self) -> bool {
        matches!(self, ProbeError::Refused { code: UNSUPPORTED_PROTOCOL, .. } | ProbeError::Closed { .. } | ProbeError::NotMqtt { .. })
    }
}

/// Reason code of MQTT 5 (§3.2.2.2).
const UNSUPPORTED_PROTOCOL: u8 = 0x84;

fn advice(code: u8) -> &'static str {
    match code {
        UNSUPPORTED_PROTOCOL => "look at `protocol`",
        0x85 => "look at `client_id`",
        0x86 | 0x87 => "look at `user` and `password`",
        0x9c | 0x9d => "look at `server`",
        _ => "look into the broker's log",
    }
}

/// Asks a broker, within a limit for everything.
///
/// # Errors
/// What is wrong, in terms of the option to look at.
pub async fn probe(target: &Target, limit: Duration) -> Result<Found, ProbeError> {
    let until = Instant::now() + limit;
    let Some(protocol) = target.protocol else {
        return match ask(target, Protocol::V5, until, limit).await {
            Err(first) if first.is_about_protocol() => match ask(target, Protocol::V311, until, limit).await {
                // What a broker has said of 3.1.1 tells more than that it does not speak MQTT 5.
                Err(second) if matches!(first, ProbeError::Refused { .. }) => Err(second),
                Err(_) => Err(first),
                found => found,
            },
            other => other,
        };
    };
    ask(target, protocol, until, limit).await
}

async fn ask(target: &Target, protocol: Protocol, until: Instant, limit: Duration) -> Result<Found, ProbeError> {
    let left = until.saturating_duration_since(Instant::now());
    let stream = transport::connect(&target.address, target.tls.as_ref(), left).await?;
    match tokio::time::timeout_at(until, greet(target, protocol, stream)).await {
        Ok(answer) => answer,
        Err(_) => Err(ProbeError::TimedOut(limit)),
    }
}

async fn greet(target: &Target, protocol: Protocol, mut stream: Stream) -> Result<Found, ProbeError> {
    let encryption = stream.encryption().cloned();
    let credentials = Credentials { user: target.user.clone(), password: target.password.clone() };
    let (client_id, keepalive_s) = (target.client_id.as_str(), target.keepalive_s);
    let mut out = BytesMut::new();
    let connect = Connect { client_id, clean: true, session_expiry_s: 0, keepalive_s, credentials: &credentials };
    codec::write_connect(protocol, &connect, &mut out);
    // Whether it was lost shows when reading: a broker that closes has often said why just before.
    let written = async {
        stream.write_all_buf(&mut out).await?;
        stream.flush().await
    };
    let written = written.await;
    let mut arrived = BytesMut::new();
    let packet = loop {
        let hint = transport::instead(&arrived, stream.may_expect_tls());
        match codec::read(protocol, &mut arrived) {
            Ok(Some(packet)) => break packet,
            Ok(None) => {}
            Err(error) => return Err(ProbeError::NotMqtt { error, hint }),
        }
        let reason = match stream.read_buf(&mut arrived).await {
            Ok(1..) => continue,
            Ok(0) => match &written {
                Ok(()) => format!("the broker closed the connection{hint}"),
                Err(error) => lost(error, hint),
            },
            Err(error) => lost(&error, hint),
        };
        return Err(ProbeError::Closed { reason });
    };
    match packet {
        Incoming::ConnAck { code: 0, limits, .. } => {
            codec::write_disconnect(protocol, true, &mut out);
            // It goes anyway; to say so is good manners.
            let _ = stream.write_all_buf(&mut out).await;
            let _ = stream.shutdown().await;
            Ok(Found { protocol, encryption, limits })
        }
        Incoming::ConnAck { code, reason, .. } | Incoming::Disconnect { code, reason } => {
            let words = reason.map(|words| format!(": {:?}", words.chars().take(200).collect::<String>())).unwrap_or_default();
            Err(ProbeError::Refused { code, words })
        }
        _ => Err(ProbeError::NotMqtt { error: DecodeError::Unexpected("an acknowledgement before CONNACK"), hint: "" }),
    }
}
