//! The lanes of every connection: which sets there are, which lanes are to run, and that each of them runs for as long as it has to.

use std::num::NonZeroU32;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::StartError;
use super::patience::Patience;
use crate::config::{ConnectionConfig, ProtocolChoice, RetryConfig};
use crate::core::event::{Event, LanePurpose};
use crate::core::outbox::{Connection, LaneSet};
use crate::core::retry::RetryPolicy;
use crate::core::session::Settings;
use crate::core::types::{ConnectionName, LaneKey, PACKET_IDS};
use crate::delivery::board::{Board, LaneState};
use crate::delivery::codec::Credentials;
use crate::delivery::lane::{self, LaneConfig, LaneError, Surroundings};
use crate::delivery::precedence::Turn;
use crate::ingest::lanes::LaneSpan;
use crate::log::StoreId;
use crate::log::committer::{CommitError, LogHandle, now};

/// How long a broker keeps a lane's session while Tidings is away, in seconds: a week, as long as reports are kept by default.
const SESSION_EXPIRY_S: u32 = 7 * 24 * 60 * 60;

/// From the start of a connection attempt to CONNACK, in milliseconds: a broker that is slower is of no use.
const CONNECT_TIMEOUT_MS: u64 = 10_000;

/// From a packet to its acknowledgement, in milliseconds: long enough for a broker that writes to a slow disk.
const ACK_TIMEOUT_MS: u64 = 30_000;

/// The set of lanes that takes a connection's new deliveries.
pub(super) struct Newest {
    /// The connection.
    pub(super) connection: ConnectionName,
    /// Its lanes.
    pub(super) span: LaneSpan,
    /// The set that it has just followed.
    pub(super) replaced: Option<LaneSet>,
}

/// What was known is not any more: where several instances make lanes at once, one of them is first, and the others look again.
const TRIES: u32 = 10;

/// Makes sure that a connection has a set of as many lanes as it is to have. Once this returns the set is durable, so reports may be bound to it.
pub(super) async fn newest(connection: &ConnectionConfig, log: &LogHandle) -> Result<Newest, StartError> {
    let name = connection.name.clone();
    let count = NonZeroU32::new(connection.workers).ok_or_else(|| StartError::Internal(format!("connection {name} has no lanes")))?;
    let (set, first) = made(&name, LanePurpose::Fresh, count, log, |set| set.count == count.get()).await?;
    Ok(Newest { connection: name, span: LaneSpan { first, count }, replaced: set })
}

/// Makes sure that a connection has a set for this purpose that fits. Returns the first lane of the newest one, and the set that it has just followed.
async fn made(
    name: &ConnectionName,
    purpose: LanePurpose,
    count: NonZeroU32,
    log: &LogHandle,
    fits: impl Fn(&LaneSet) -> bool,
) -> Result<(Option<LaneSet>, u32), StartError> {
    let mut tries = 0;
    loop {
        let asked = name.clone();
        let known = log.ask_latest(move |outbox| {
            let connection = outbox.connections().get(&asked)?;
            Some((connection.newest_set(purpose), connection.next_lane()))
        });
        let (set, first) = known.await?.into_inner().unwrap_or_default();
        if let Some(set) = set.filter(&fits) {
            return Ok((None, set.first));
        }
        let made = Event::LanesChanged { connection: name.clone(), first, count: count.get(), purpose, at: now() };
        tries += 1;
        match log.record(vec![made]).await {
            Ok(_) => return Ok((set, first)),
            Err(CommitError::ChangedMeanwhile(_)) if tries < TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A replay lane has so much on the wire at most: by so many packets a fresh report can be late.
const REPLAY_WINDOW: u16 = 16;

/// The lane of a connection that replays run on; made if there is none. Once this returns it is durable. One, so that replays keep their order.
pub(super) async fn replay(name: &ConnectionName, log: &LogHandle) -> Result<LaneKey, StartError> {
    let (_, lane) = made(name, LanePurpose::Replay, NonZeroU32::MIN, log, |_| true).await?;
    Ok(LaneKey { connection: name.clone(), lane })
}

/// A replay lane of a connection, if it is to run: it has something to deliver, or will have.
fn replay_to_run(connection: &Connection, is_replaying: bool) -> Option<u32> {
    let lane = connection.newest_set(LanePurpose::Replay)?.first;
    let has_pending = connection.lanes.get(&lane).is_some_and(|lane| lane.pending() > 0);
    (has_pending || is_replaying).then_some(lane)
}

/// A lane that is to run, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    /// Its number.
    pub(super) number: u32,
    /// See [`LaneConfig::purpose`].
    pub(super) purpose: LanePurpose,
    /// See [`LaneConfig::after`].
    pub(super) after: Option<u32>,
    /// See [`Settings::is_retired`].
    pub(super) is_retired: bool,
}

/// The lanes of a connection that are to run: those of its newest set, which is `newest`, and those of older sets that have something to deliver, or a
/// session to leave behind; and the one for replays, if there is something to replay.
pub(super) fn roles(known: &Connection, newest: LaneSpan, replaced: Option<LaneSet>, is_replaying: bool) -> Vec<Role> {
    let older = older_lanes(known, newest.first, replaced);
    // What an operator has given back to an older lane is out of its order anyway: nobody waits for it.
    let after = older.iter().any(|(.., holds_up)| *holds_up).then_some(newest.first);
    let purpose = LanePurpose::Fresh;
    let older = older.into_iter().map(|(number, first, _)| Role { number, purpose, after: Some(first), is_retired: true });
    let fresh = (newest.first..newest.first + newest.count.get()).map(|number| Role { number, purpose, after, is_retired: false });
    let replay = replay_to_run(known, is_replaying);
    let replay = replay.map(|number| Role { number, purpose: LanePurpose::Replay, after: None, is_retired: false });
    older.chain(fresh).chain(replay).collect()
}

/// A lane as it runs.
pub(super) fn in_role(role: Role, connection: &ConnectionConfig, retry: &RetryConfig, log: &LogHandle) -> LaneConfig {
    let key = LaneKey { connection: connection.name.clone(), lane: role.number };
    let mut lane = lane_config(connection, retry, log, key, role.after, role.is_retired);
    if role.purpose == LanePurpose::Replay {
        lane.purpose = LanePurpose::Replay;
        lane.settings.window_5 = lane.settings.window_5.min(REPLAY_WINDOW);
        lane.settings.window_3_1_1 = lane.settings.window_3_1_1.min(REPLAY_WINDOW);
    }
    lane
}

/// The replay lane of a connection as it runs.
pub(super) fn replay_lane(connection: &ConnectionConfig, retry: &RetryConfig, log: &LogHandle, key: &LaneKey) -> LaneConfig {
    let role = Role { number: key.lane, purpose: LanePurpose::Replay, after: None, is_retired: false };
    in_role(role, connection, retry, log)
}

/// As [`roles`], asked of the log, as they run.
pub(super) async fn to_run(
    connection: &ConnectionConfig,
    retry: &RetryConfig,
    newest: &Newest,
    log: &LogHandle,
) -> Result<Vec<LaneConfig>, StartError> {
    let (name, span, replaced) = (connection.name.clone(), newest.span, newest.replaced);
    let known = log.ask(move |outbox| {
        let known = outbox.connections().get(&name)?;
        Some(roles(known, span, replaced, !outbox.replays().is_empty()))
    });
    let roles = known.await?.into_inner().unwrap_or_default();
    Ok(roles.into_iter().map(|role| in_role(role, connection, retry, log)).collect())
}

/// Lanes of the sets before the one that begins with `newest`, each with the first number of its set: those with a backlog, and those of the set
/// that was replaced just now, because the broker still has their sessions. And whether each has something that later sets have to wait for.
fn older_lanes(connection: &Connection, newest: u32, replaced: Option<LaneSet>) -> Vec<(u32, u32, bool)> {
    let is_to_run = |set: &LaneSet, number: &u32| {
        let Some(lane) = connection.lanes.get(number) else { return false };
        lane.pending() > 0 || (replaced == Some(*set) && !lane.endpoint.is_empty())
    };
    let older = connection.sets.iter().filter(|set| set.first != newest && set.purpose == LanePurpose::Fresh);
    older
        .flat_map(|set| (set.first..set.first + set.count).filter(|number| is_to_run(set, number)).map(|number| (number, set.first)))
        .map(|(number, first)| (number, first, connection.lanes.get(&number).is_some_and(|lane| lane.pending_in_order() > 0)))
        .collect()
}

/// What the client ids of a connection's lanes begin with; epoch and lane follow.
pub(super) fn client_id(connection: &ConnectionConfig, store: StoreId) -> String {
    // Two connections may lead to the same broker, where a client id is one session.
    let origin = format!("{store} {}", connection.name);
    let origin = xxhash_rust::xxh3::xxh3_64(origin.as_bytes()) >> 32;
    // Eight digits for store and connection: with the default client id it stays within the 23 bytes that every broker has to take
    // (MQTT 5.0 §3.1.3.1).
    format!("{}-{origin:08x}", connection.client_id)
}

fn lane_config(
    connection: &ConnectionConfig,
    retry: &RetryConfig,
    log: &LogHandle,
    key: LaneKey,
    after: Option<u32>,
    is_retired: bool,
) -> LaneConfig {
    let user = connection.user.clone().unwrap_or_default();
    let settings = Settings {
        lane: key,
        client_id: client_id(connection, log.store_id()),
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
        retry: RetryPolicy { initial_ms: retry.initial_ms, max_ms: retry.max_ms, attempts: retry.attempts },
        downgrade: connection.downgrade,
        is_retired,
        packet_ids: PACKET_IDS,
        claims: log.is_shared(),
    };
    LaneConfig {
        settings,
        servers: connection.servers.clone(),
        tls: connection.tls.clone(),
        stamp: connection.stamp,
        credentials: Credentials { user: connection.user.clone(), password: connection.password.clone() },
        purpose: LanePurpose::Fresh,
        after,
    }
}

/// Runs a lane, and again if it fails or panics: trouble in one lane must not end in reports that wait for ever, and the log has all that it
/// needs. It ends when the lane does, when the log has stopped, or when it is cut off; the lane is gone then.
///
/// Where the log is shared, it is cut off as soon as `kept` turns false.
pub(super) async fn supervise(
    config: LaneConfig,
    around: Surroundings,
    mut cut: watch::Receiver<bool>,
    mut kept: Option<watch::Receiver<bool>>,
) {
    let config = Arc::new(config);
    let mut drain = around.drain.clone();
    let mut patience = Patience::default();
    loop {
        let started = tokio::time::Instant::now();
        let (lane, around_it) = (Arc::clone(&config), around.clone());
        // Dropped with this task, it takes the lane with it.
        let mut task = JoinSet::new();
        task.spawn(async move { lane::run(&lane, &around_it).await });
        let ended = tokio::select! {
            ended = task.join_next() => ended,
            () = cut_off(&mut cut, &mut kept) => {
                // Whoever starts the lane again must not meet it.
                task.shutdown().await;
                around.board.remove(&config.settings.lane);
                return;
            }
        };
        match ended {
            Some(Ok(Ok(()) | Err(LaneError::Log(CommitError::Stopped | CommitError::NotOwner(_) | CommitError::Store(_))))) | None => {
                return;
            }
            // It is logged, and on the board.
            Some(Ok(Err(_))) => {}
            Some(Err(error)) if error.is_panic() => {
                let key = &config.settings.lane;
                tracing::error!(lane = %key, "the lane panicked, which is a fault in Tidings: please report it; it starts again from the log");
                note_panic(key, &around.board, &around.turn);
            }
            Some(Err(_)) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(patience.after(started.elapsed())) => {}
            () = turned(&mut drain) => {
                around.board.remove(&config.settings.lane);
                return;
            }
        }
    }
}

/// A lane that has panicked could not say itself that it is not connected any more, and sends nothing until it starts again.
fn note_panic(key: &LaneKey, board: &Board, turn: &Turn) {
    turn.say(false);
    board.post(key, |status| {
        status.state = LaneState::BackingOff;
        status.in_flight = 0;
        status.last_error = Some((now(), "the lane panicked, which is a fault in Tidings; it starts again from the log".to_owned()));
    });
}

async fn cut_off(cut: &mut watch::Receiver<bool>, kept: &mut Option<watch::Receiver<bool>>) {
    let lost = async {
        match kept {
            Some(kept) => _ = kept.wait_for(|kept| !kept).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = turned(cut) => {}
        () = lost => {}
    }
}

/// Waits until it is true; that nobody is there to change it any more means the same.
async fn turned(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|is_so| *is_so).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::core::types::Millis;
    use crate::delivery::board::LaneStatus;
    use crate::delivery::precedence::Precedence;
    use crate::log::committer::{self, Limits, recover};
    use crate::log::memory_log::{Disk, MemoryLog};
    use crate::metrics::Metrics;

    #[test]
    fn a_lane_that_has_panicked_is_not_connected_and_holds_up_no_replay() {
        let (board, precedence) = (Board::default(), Precedence::default());
        let (turn, replay) = (precedence.fresh(), precedence.replay());
        let key = LaneKey { connection: "mqtt".into(), lane: 0 };
        board.post(&key, |status| (status.state, status.in_flight) = (LaneState::Connected, 3));
        assert!(replay.gives_way());
        note_panic(&key, &board, &turn);
        let status = &board.snapshot()[&key];
        assert_eq!((status.state, status.in_flight), (LaneState::BackingOff, 0));
        assert!(status.last_error.as_ref().is_some_and(|(_, what)| what.contains("the lane panicked")), "{status:?}");
        assert!(!replay.gives_way());
    }

    #[tokio::test]
    async fn a_lane_that_has_stopped_has_nothing_on_the_wire_and_its_backlog_gets_older() {
        let metrics = Arc::new(Metrics::new());
        let opened = MemoryLog::open(&Disk::new(1 << 20)).unwrap();
        let outbox = recover(&opened).unwrap();
        let limits = Limits { max_size: u64::MAX, retention_ms: u64::MAX };
        let log = committer::start(opened.log, outbox, limits, Arc::clone(&metrics)).unwrap();
        let config = config::from_str("[connection.mqtt]\ndriver = 'mqtt'\nserver = 'broker'", "test.toml").unwrap();
        // It is not in the log, so it can't begin.
        let key = LaneKey { connection: "mqtt".into(), lane: 0 };
        let lane = replay_lane(&config.connections[0], &config.retry, &log, &key);
        let (board, turn) = (Arc::new(Board::default()), Precedence::default().fresh());
        let (_drain, drain) = watch::channel(false);
        let (_notices, notices) = watch::channel(None);
        let before = |status: &mut LaneStatus| (status.in_flight, status.waiting, status.oldest_pending_at) = (3, 2, Some(Millis(1)));
        board.post(&key, before);
        let around = Surroundings { log, board: Arc::clone(&board), metrics, turn, notices, drain };
        assert!(matches!(lane::run(&lane, &around).await, Err(LaneError::Internal(_))));
        let status = &board.snapshot()[&key];
        assert_eq!((status.state, status.in_flight, status.waiting), (LaneState::Stopped, 0, 2));
        assert_eq!(status.oldest_pending_at, Some(Millis(1)));
    }

    #[test]
    fn two_connections_and_two_stores_have_client_ids_of_their_own() {
        let text = "[connection.a]\ndriver = 'mqtt'\nserver = 'broker'\n[connection.b]\ndriver = 'mqtt'\nserver = 'broker'";
        let config = config::from_str(text, "test.toml").unwrap();
        let [a, b] = &config.connections[..] else { panic!("there are two") };
        let of = |connection, store| client_id(connection, StoreId(store));
        assert_ne!(of(a, 1), of(b, 1));
        assert_ne!(of(a, 1), of(a, 2));
        assert_eq!(of(a, 1), of(a, 1));
    }
}
