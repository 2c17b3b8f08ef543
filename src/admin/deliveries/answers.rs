//! What is answered about deliveries; the commands read the same types.

use serde::{Deserialize, Serialize};

use crate::core::event::{Accepted, Properties};
use crate::core::search::{Standing, State};
use crate::core::types::Seq;

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deliveries {
    /// Those that were found, newest first.
    pub deliveries: Vec<Row>,
    /// Where to go on: what `cursor` takes. Null if there is nothing more. There may be more even if nothing was found here.
    pub next_cursor: Option<String>,
}

/// One delivery, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// What has become of it.
    pub state: State,
    /// When it was accepted (RFC 3339).
    pub accepted_at: String,
    /// The way by which it came in.
    pub source: String,
    /// Who sent it; empty where nobody had to say.
    pub user: String,
    /// The report's tenant, or empty.
    pub tenant: String,
    /// The report's pipeline, or empty.
    pub pipeline: String,
    /// The report's action, or empty.
    pub action: String,
    /// The report's project, or empty.
    pub project: String,
    /// The report's change number, or empty.
    pub change: String,
    /// The connection.
    pub connection: String,
    /// Its lane there.
    pub lane: u32,
    /// The topic.
    pub topic: String,
    /// The quality of service.
    pub qos: u8,
    /// The retain flag.
    pub retain: bool,
    /// The payload's size.
    pub bytes: u64,
    /// Refusals charged to it so far, while it is pending.
    pub attempts: u32,
    /// When it is tried again, if it waits for that (RFC 3339).
    pub retry_at: Option<String>,
    /// Since when it is dead (RFC 3339).
    pub dead_at: Option<String>,
    /// Why it is dead, where that was found within the request's bounds.
    pub dead: Option<Dead>,
}

/// Why it is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    /// Stable, for machines.
    pub code: String,
    /// The broker's reason code, if it gave one.
    pub broker_code: Option<u8>,
    /// For people.
    pub message: String,
    /// Refusals that were charged to it.
    pub attempts: u32,
}

impl Row {
    /// A delivery in short.
    pub fn new(id: Seq, accepted: &Accepted, standing: &Standing) -> Row {
        Row {
            id: id.to_string(),
            state: standing.state,
            accepted_at: accepted.at.rfc3339(),
            source: accepted.source.label().to_owned(),
            user: accepted.user.clone(),
            tenant: accepted.tenant.clone(),
            pipeline: accepted.pipeline.clone(),
            action: accepted.action.clone(),
            project: accepted.project.clone(),
            change: accepted.change.clone(),
            connection: accepted.lane.connection.to_string(),
            lane: accepted.lane.lane,
            topic: accepted.topic.clone(),
            qos: accepted.qos.level(),
            retain: accepted.retain,
            bytes: accepted.payload.len() as u64,
            attempts: standing.attempts,
            retry_at: standing.retry_at.map(|at| at.rfc3339()),
            dead_at: standing.dead_at.map(|at| at.rfc3339()),
            dead: None,
        }
    }
}

/// One delivery, with its whole history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// In short.
    #[serde(flatten)]
    pub row: Row,
    /// MQTT 5 properties that it is delivered with.
    pub properties: Named,
    /// After so many seconds it is not to be sent any more; null: never.
    pub expiry_seconds: Option<u32>,
    /// The delivery that this one replays.
    pub replay_of: Option<String>,
    /// What happened to it, in order.
    pub history: Vec<Chapter>,
    /// Whether that is all. False if the log had to be read further than one request may.
    pub complete: bool,
    /// Where to go on if it is not: what `from` takes, together with `send`.
    pub next_from: Option<String>,
}

/// MQTT 5 properties, by their names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Named {
    /// Payload Format Indicator.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub payload_format: Option<u8>,
    /// Content Type.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content_type: Option<String>,
    /// Response Topic.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub response_topic: Option<String>,
    /// Correlation Data, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub correlation_data: Option<String>,
    /// User Properties, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub user: Vec<(String, String)>,
}

impl From<&Properties> for Named {
    fn from(properties: &Properties) -> Self {
        let hex = |data: &bytes::Bytes| data.iter().map(|byte| format!("{byte:02x}")).collect();
        Named {
            payload_format: properties.payload_format,
            content_type: properties.content_type.clone(),
            response_topic: properties.response_topic.clone(),
            correlation_data: properties.correlation_data.as_ref().map(hex),
            user: properties.user.clone(),
        }
    }
}

/// Something that happened to a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chapter {
    /// The event's position in the log.
    pub position: String,
    /// When, where that is known (RFC 3339).
    pub at: Option<String>,
    /// What, for machines: `accepted`, `earlier`, `carried`, `received_by_broker`, `refused`, `sent_again`, `possible_duplicate`, `delivered`, `dead`, `requeued`,
    /// `discarded`, `moved`, `expired`.
    pub event: String,
    /// What, for people.
    pub says: String,
    /// Who decided, where somebody did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<String>,
    /// The broker's reason code, or what is known of a dead letter for machines.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<String>,
}
