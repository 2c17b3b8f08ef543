//! The lanes of every connection: which sets there are, which lanes are to run, and that each of them runs for as long as it has to.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::StartError;
use crate::config::{Config, ConnectionConfig, ProtocolChoice};
use crate::core::event::{Event, LanePurpose};
use crate::core::outbox::{Connection, LaneSet};
use crate::core::retry::RetryPolicy;
use crate::core::session::Settings;
use crate::core::types::LaneKey;
use crate::delivery::codec::Credentials;
use crate::delivery::lane::{self, LaneConfig, LaneError, Surroundings};
use crate::ingest::lanes::{LaneDirectory, LaneSpan};
use crate::log::committer::{CommitError, LogHandle, now};

/// How long a broker keeps a lane's session while Tidings is away, in seconds: a week, as long as reports are kept by default.
const SESSION_EXPIRY_S: u32 = 7 * 24 * 60 * 60;

/// From the start of a connection attempt to CONNACK, in milliseconds: a broker that is slower is of no use.
const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// From a packet to its acknowledgement, in milliseconds: long enough for a broker that writes to a slow disk.
const ACK_TIMEOUT_MS: u64 = 30_000;

/// A lane that failed starts again after this, and after twice as long each time: soon, but not in a busy loop.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// And after this at most.
const AFTER_FAILURE_AT_MOST: Duration = Duration::from_secs(300);

/// The lanes of all connections.
pub(super) struct Lanes {
    /// Which lane a delivery takes.
    pub(super) directory: LaneDirectory,
    /// Lanes that have something to do, or will.
    pub(super) to_run: Vec<LaneConfig>,
}

/// Makes sure that every connection has its set of lanes, and says which lanes are to run.
pub(super) async fn arrange(config: &Config, log: &LogHandle) -> Result<Lanes, StartError> {
    let mut directory = Vec::new();
    let mut to_run = Vec::new();
    for connection in &config.connections {
        let name = connection.name.clone();
        let asked = name.clone();
        let known = log.ask(move |outbox| outbox.connections().get(&asked).map(known_lanes)).await?.into_inner().unwrap_or_default();
        let set = match known.newest {
            Some(set) if set.count == connection.workers => set,
            _ => {
                let set = LaneSet { first: known.next_lane, count: connection.workers, purpose: LanePurpose::Fresh };
                let (first, count, purpose) = (set.first, set.count, set.purpose);
                log.record(vec![Event::LanesChanged { connection: name.clone(), first, count, purpose, at: now() }]).await?;
                set
            }
        };
        let count = NonZeroU32::new(set.count).ok_or_else(|| StartError::Internal(format!("connection {name} has no lanes")))?;
        directory.push((name.clone(), LaneSpan { first: set.first, count }));
        let lane = |number: u32, after: Option<u32>, is_retired: bool| {
            let key = LaneKey { connection: name.clone(), lane: number };
            lane_config(connection, config, log, key, after, is_retired)
        };
        // Also those of the set that was the newest until just now.
        let older: Vec<_> = known.with_backlog.iter().filter(|(_, first)| *first != set.first).collect();
        let after = (!older.is_empty()).then_some(set.first);
        to_run.extend(older.into_iter().map(|(number, first)| lane(*number, Some(*first), true)));
        to_run.extend((set.first..set.first + set.count).map(|number| lane(number, after, false)));
    }
    Ok(Lanes { directory: directory.into_iter().collect(), to_run })
}

#[derive(Default)]
struct KnownLanes {
    newest: Option<LaneSet>,
    next_lane: u32,
    /// Lanes with a backlog, each with the first number of its set.
    with_backlog: Vec<(u32, u32)>,
}

fn known_lanes(connection: &Connection) -> KnownLanes {
    let newest = connection.newest_set(LanePurpose::Fresh);
    let has_backlog = |number: &u32| connection.lanes.get(number).is_some_and(|lane| lane.pending() > 0);
    let lanes =
        |set: &LaneSet| (set.first..set.first + set.count).filter(has_backlog).map(|number| (number, set.first)).collect::<Vec<_>>();
    let with_backlog = connection.sets.iter().flat_map(lanes).collect();
    KnownLanes { newest, next_lane: connection.next_lane(), with_backlog }
}

fn lane_config(
    connection: &ConnectionConfig,
    config: &Config,
    log: &LogHandle,
    key: LaneKey,
    after: Option<u32>,
    is_retired: bool,
) -> LaneConfig {
    let user = connection.user.clone().unwrap_or_default();
    // Two connections may lead to the same broker, where a client id is one session.
    let origin = format!("{} {}", log.store_id(), connection.name);
    let origin = xxhash_rust::xxh3::xxh3_64(origin.as_bytes()) >> 32;
    let settings = Settings {
        lane: key,
        // Eight digits for store and connection: with the default client id it stays within the 23 bytes that every broker has to take
        // (MQTT 5.0 §3.1.3.1).
        client_id: format!("{}-{origin:08x}", connection.client_id),
        endpoints: connection.servers.iter().map(|server| format!("{server} {user}")).collect(),
        failback_ms: connection.failback_ms,
        protocol: match connection.protocol {
            ProtocolChoice::Auto => None,
            ProtocolChoice::Only(protocol) => Some(protocol),
        },
        keepalive_s: connection.keepalive_s,
        window_5: connection.window,
        window_3_1_1: connection.window_3_1_1,
        session_expiry_s: SESSION_EXPIRY_S,
        connect_timeout_ms: CONNECT_TIMEOUT_MS,
        ack_timeout_ms: ACK_TIMEOUT_MS,
        retry: RetryPolicy { initial_ms: config.retry.initial_ms, max_ms: config.retry.max_ms, attempts: config.retry.attempts },
        downgrade: connection.downgrade,
    };
    LaneConfig {
        settings,
        servers: connection.servers.clone(),
        tls: connection.tls.clone(),
        stamp: connection.stamp,
        credentials: Credentials { user: connection.user.clone(), password: connection.password.clone() },
        after,
        is_retired,
    }
}

/// Runs a lane, and again if it fails or panics: trouble in one lane must not end in reports that wait for ever, and the log has all that it
/// needs. Only a log that has stopped ends it.
pub(super) async fn supervise(config: LaneConfig, around: Surroundings) {
    let config = Arc::new(config);
    let mut wait = AFTER_FAILURE;
    loop {
        let (lane, around_it) = (Arc::clone(&config), around.clone());
        // Dropped with this task, it takes the lane with it.
        let mut task = JoinSet::new();
        task.spawn(async move { lane::run(&lane, &around_it).await });
        match task.join_next().await {
            Some(Ok(Ok(()) | Err(LaneError::Log(CommitError::Stopped | CommitError::Store(_))))) | None => return,
            // It is logged, and on the board.
            Some(Ok(Err(_))) => {}
            Some(Err(error)) if error.is_panic() => {
                let key = &config.settings.lane;
                tracing::error!(lane = %key, "the lane panicked, which is a fault in Tidings: please report it; it starts again from the log");
            }
            Some(Err(_)) => return,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AFTER_FAILURE_AT_MOST);
    }
}
