//! `tidings check --connect`: asks each broker what it is, and says what it found, or which option to look at.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::config::{Config, ConnectionConfig, ProtocolChoice};
use crate::core::session::BrokerLimits;
use crate::core::types::Protocol;
use crate::delivery::probe::{Found, ProbeError, Target, probe};

/// Each broker has so long for everything, as it has when lanes connect.
const LIMIT: Duration = Duration::from_secs(10);

/// What became of one broker.
pub(super) struct Asked {
    connection: String,
    server: String,
    answer: Result<Found, ProbeError>,
}

/// Asks every broker of every connection: those of one connection one after the other, connections side by side.
///
/// # Errors
/// If the runtime can't be started.
pub(super) fn ask_all(config: &Config) -> std::io::Result<Vec<Asked>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut asked = runtime.block_on(async {
        let mut asking = JoinSet::new();
        for (place, connection) in config.connections.iter().enumerate() {
            let connection = connection.clone();
            asking.spawn(async move { (place, ask_connection(&connection).await) });
        }
        asking.join_all().await
    });
    // A name that is still being resolved is waited for by nobody.
    runtime.shutdown_background();
    asked.sort_by_key(|(place, _)| *place);
    Ok(asked.into_iter().flat_map(|(_, asked)| asked).collect())
}

async fn ask_connection(connection: &ConnectionConfig) -> Vec<Asked> {
    let mut asked = Vec::new();
    for address in &connection.servers {
        let target = Target {
            address: address.clone(),
            tls: connection.tls.clone(),
            user: connection.user.clone(),
            password: connection.password.clone(),
            // With the default client id it stays within the 23 bytes that every broker has to take (MQTT 5.0 §3.1.3.1).
            client_id: format!("{}-check-{:08x}", connection.client_id, getrandom::u32().unwrap_or_else(|_| std::process::id())),
            protocol: match connection.protocol {
                ProtocolChoice::Auto => None,
                ProtocolChoice::Only(protocol) => Some(protocol),
            },
            keepalive_s: connection.keepalive_s,
        };
        let answer = probe(&target, LIMIT).await;
        asked.push(Asked { connection: connection.name.to_string(), server: address.written(), answer });
    }
    asked
}

/// Whether every broker lets Tidings in.
pub(super) fn all_well(asked: &[Asked]) -> bool {
    asked.iter().all(|asked| asked.answer.is_ok())
}

pub(super) fn as_text(asked: &[Asked]) -> String {
    let mut text = String::new();
    for Asked { connection, server, answer } in asked {
        let (well, what) = match answer {
            Ok(found) => ("ok", in_words(found)),
            Err(error) => ("FAILED", error.to_string()),
        };
        writeln!(text, "connect {connection} to {server}: {well}: {what}").expect("writing to a string does not fail");
    }
    if asked.is_empty() { text } else { format!("\n{text}") }
}

fn in_words(found: &Found) -> String {
    let mut words = format!("MQTT {}", found.protocol.name());
    if let Some(tls) = &found.encryption {
        words += &format!(" over {} with {}", tls.version, tls.cipher);
    }
    let BrokerLimits { receive_maximum, maximum_packet_size, keepalive_s, maximum_qos, retain_available } = found.limits;
    let told = [
        receive_maximum.map(|maximum| format!("Receive Maximum {maximum}")),
        maximum_packet_size.map(|size| format!("Maximum Packet Size {size}")),
        maximum_qos.map(|qos| format!("Maximum QoS {}", qos.level())),
        retain_available.map(|available| format!("Retain Available {}", if available { "yes" } else { "no" })),
        keepalive_s.map(|seconds| format!("Server Keep Alive {seconds}s")),
    ];
    let told: Vec<String> = told.into_iter().flatten().collect();
    match (found.protocol, told.is_empty()) {
        (Protocol::V311, _) => words + "; which can't tell its limits",
        (Protocol::V5, true) => words + "; it tells no limits",
        (Protocol::V5, false) => words + "; " + &told.join(", "),
    }
}

/// What was not told is null.
pub(super) fn as_json(asked: &[Asked]) -> Value {
    let one = |Asked { connection, server, answer }: &Asked| match answer {
        Ok(Found { protocol, encryption, limits }) => json!({
            "connection": connection,
            "server": server,
            "ok": true,
            "protocol": protocol.name(),
            "tls": encryption.as_ref().map(|tls| json!({ "version": tls.version, "cipher": tls.cipher })),
            "receive_maximum": limits.receive_maximum,
            "maximum_packet_size": limits.maximum_packet_size,
            "maximum_qos": limits.maximum_qos.map(|qos| qos.level()),
            "retain_available": limits.retain_available,
            "server_keep_alive": limits.keepalive_s,
        }),
        Err(error) => json!({
            "connection": connection,
            "server": server,
            "ok": false,
            "error": { "code": error.code(), "message": error.to_string() },
        }),
    };
    asked.iter().map(one).collect()
}
