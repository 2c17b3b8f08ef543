//! `tidings status`: how a running service does, at a glance.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::client::{Client, ServiceArgs};
use super::{WRONG_USAGE, output};
use crate::admin::status::{Connection, Lane, Status};

/// The arguments of `tidings status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Print what the service says, as JSON
    #[arg(long)]
    pub json: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Asks the service, and prints its status.
pub fn run(args: &StatusArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client,
        Err(error) => {
            output::complain(&error.to_string());
            return ExitCode::from(WRONG_USAGE);
        }
    };
    match client.get("/v1/status") {
        Ok(reply) if args.json => output::print(&(String::from_utf8_lossy(&reply.body) + "\n")),
        Ok(reply) => match serde_json::from_slice(&reply.body) {
            Ok(status) => output::print(&describe(&status)),
            Err(error) => output::complain(&format!("the answer can't be read: {error}; are service and command of one version?")),
        },
        Err(error) => output::complain(&error.to_string()),
    }
}

fn describe(status: &Status) -> String {
    let (store, seconds) = (&status.store, Duration::from_secs);
    let mut text = format!("tidings {}, up {}, store {}\n", status.version, output::age(seconds(status.uptime_seconds)), status.store_id);
    text.push_str(&format!(
        "store: {} of {}, {} free on its disk; delivered reports stay {}\n",
        output::size(store.bytes),
        output::size(store.max_bytes),
        output::size(store.free_bytes),
        output::age(seconds(store.retention_seconds))
    ));
    if let Some(listener) = &status.listener {
        let connections = match listener.connections {
            1 => "1 publisher is".to_owned(),
            count => format!("{count} publishers are"),
        };
        text.push_str(&format!("listener: {}, {connections} connected\n", listener.address));
    }
    for line in troubles(status) {
        text.push_str(&format!("! {line}\n"));
    }
    if !status.connections.is_empty() {
        let heading = ["CONNECTION", "BACKLOG", "OLDEST", "IN FLIGHT", "DEAD", "CREATED", "ACKNOWLEDGED", "SENT"];
        let rows: Vec<_> = status.connections.iter().map(connection).collect();
        text.push_str(&format!("\n{}", output::table(&heading, &rows)));
    }
    let lanes: Vec<_> =
        status.connections.iter().flat_map(|connection| connection.lanes.iter().map(|each| lane(connection, each))).collect();
    if !lanes.is_empty() {
        let heading = ["LANE", "STATE", "MQTT", "SERVER", "PENDING", "IN FLIGHT", "WAITING", "LAST TROUBLE"];
        text.push_str(&format!("\n{}", output::table(&heading, &lanes)));
    }
    text
}

/// What an operator should know first.
fn troubles(status: &Status) -> Vec<String> {
    let mut troubles = Vec::new();
    if status.stopping {
        troubles.push("the service is stopping".to_owned());
    }
    if let Some(failed) = &status.store.failed {
        troubles.push(format!("the store has failed: {failed}"));
    }
    if let Some(full) = &status.store.full_reason {
        troubles.push(format!("the store is full and reports are refused: {full}"));
    }
    let config = &status.config;
    troubles.extend(config.mistakes.iter().map(|mistake| format!("the configuration was not reloaded: {mistake}")));
    if !config.restart_needed.is_empty() {
        troubles.push(format!("restart needed for: {}", config.restart_needed.join(", ")));
    }
    for connection in &status.connections {
        let name = &connection.name;
        if !connection.configured && connection.backlog > 0 {
            troubles.push(format!(
                "{} deliveries wait for {name}, which is no longer configured: configure it again, or `tidings move --from {name} --to CONNECTION`",
                connection.backlog
            ));
        }
        match connection.dead_letters {
            0 => {}
            1 => troubles.push(format!("1 dead letter of {name} waits for you; the log has its reason")),
            count => troubles.push(format!("{count} dead letters of {name} wait for you; the log has their reasons")),
        }
        if !connection.totals.balanced {
            troubles.push(format!("the books of {name} do not balance: please report it"));
        }
    }
    troubles
}

fn connection(connection: &Connection) -> Vec<String> {
    let age = connection.oldest_pending_age_seconds.and_then(|age| Duration::try_from_secs_f64(age).ok());
    vec![
        connection.name.clone(),
        connection.backlog.to_string(),
        age.map_or_else(|| "-".to_owned(), output::age),
        connection.inflight.to_string(),
        connection.dead_letters.to_string(),
        connection.totals.created.to_string(),
        connection.totals.acknowledged.to_string(),
        connection.totals.sent.to_string(),
    ]
}

fn lane(connection: &Connection, lane: &Lane) -> Vec<String> {
    let trouble = lane.last_error.as_ref().map(|error| format!("{} {}", error.at, error.message));
    vec![
        format!("{}/{}", connection.name, lane.lane),
        lane.state.clone(),
        lane.protocol.clone().unwrap_or_else(|| "-".to_owned()),
        lane.server.clone().unwrap_or_else(|| "-".to_owned()),
        lane.pending.to_string(),
        lane.in_flight.to_string(),
        lane.waiting.to_string(),
        trouble.unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_readable_and_troubles_come_first() {
        let status = serde_json::json!({
            "version": "0.1.0", "store_id": "00000000000000ab", "now": "2026-01-01T00:00:00.000Z", "uptime_seconds": 3_700, "stopping": false,
            "store": { "bytes": 1_536, "free_bytes": 1 << 30, "max_bytes": 10u64 << 30, "retention_seconds": 604_800, "committed": "12",
                "full": true, "full_reason": "it takes too much", "failed": null },
            "config": { "file": "tidings.toml", "since": "2026-01-01T00:00:00.000Z", "last_reload_successful": false,
                "refused_at": "2026-01-01T00:00:00.000Z", "mistakes": ["tidings.toml:3: store.max_size: wrong"],
                "restart_needed": ["store.path", "http.listen"] },
            "listener": { "address": "127.0.0.1:1884", "connections": 2 },
            "connections": [{ "name": "mqtt", "configured": false, "backlog": 3, "oldest_pending_age_seconds": 125.5, "inflight": 2,
                "dead_letters": 0, "totals": { "created": 5, "accepted": 5, "replayed": 0, "acknowledged": 1, "sent": 1, "dead": 0, "expired": 0,
                    "discarded": 0, "pending": 3, "possible_duplicates": 0, "balanced": true },
                "lanes": [{ "lane": 0, "state": "backing_off", "protocol": "5", "server": "broker:1883", "pending": 3, "in_flight": 2, "waiting": 0,
                    "last_error": { "at": "2026-01-01T00:00:00.000Z", "message": "connection refused" } }] }],
            "replays": 0
        });
        let expected = "\
tidings 0.1.0, up 1h 1m, store 00000000000000ab
store: 1.5 KiB of 10.0 GiB, 1.0 GiB free on its disk; delivered reports stay 7days
listener: 127.0.0.1:1884, 2 publishers are connected
! the store is full and reports are refused: it takes too much
! the configuration was not reloaded: tidings.toml:3: store.max_size: wrong
! restart needed for: store.path, http.listen
! 3 deliveries wait for mqtt, which is no longer configured: configure it again, or `tidings move --from mqtt --to CONNECTION`

CONNECTION  BACKLOG  OLDEST  IN FLIGHT  DEAD  CREATED  ACKNOWLEDGED  SENT
mqtt        3        2m 5s   2          0     5        1             1

LANE    STATE        MQTT  SERVER       PENDING  IN FLIGHT  WAITING  LAST TROUBLE
mqtt/0  backing_off  5     broker:1883  3        2          0        2026-01-01T00:00:00.000Z connection refused
";
        assert_eq!(describe(&serde_json::from_value(status).unwrap()), expected);
    }
}
