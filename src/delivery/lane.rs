//! A lane at work: drives one [`Session`] over a socket.
//!
//! One task owns everything. It waits for whatever comes first (`wait` gives a typed [`Event`]), hands it to the session, and then does what
//! the session wants done. There are no locks, and no other way in.
//!
//! What leaves takes its proof along: a PUBLISH is written from a [`Payload`], which is read from the log; a PUBREL takes the permit that
//! the commit of its `Released` has left behind.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::board::{Board, LaneState};
use super::codec::{self, Connect, Credentials};
use super::feed::{Feed, Payload, Piece};
use crate::core::event::Event as LogEvent;
use crate::core::session::{Input, Note, Outgoing, Output, Session, Settings};
use crate::core::types::{LaneKey, Millis, Protocol, Qos, SendNo};
use crate::log::ReadError;
use crate::log::committer::{Appended, CommitError, Committed, LogHandle, Progress, Ticket, now};
use crate::metrics::Metrics;

/// A broker that takes nothing for so long has stopped: half a keepalive of a minute.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// A read from the log that failed is tried again after this, so that trouble with the disk does not become a busy loop.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What a lane is made of.
pub struct LaneConfig {
    /// The session's settings.
    pub settings: Settings,
    /// Host name or address of the broker.
    pub server: String,
    /// Its port.
    pub port: u16,
    /// User and password.
    pub credentials: Credentials,
    /// This set of lanes begins when those below this number are empty.
    pub after: Option<u32>,
    /// It takes no new deliveries, and ends when it is empty.
    pub is_retired: bool,
}

/// What a lane works with.
#[derive(Clone)]
pub struct Surroundings {
    /// The log.
    pub log: LogHandle,
    /// Where it says what it is doing.
    pub board: Arc<Board>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Turns true when lanes are to finish what is in flight and stop.
    pub drain: watch::Receiver<bool>,
}

/// Why a lane ended.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The log has stopped or failed.
    #[error(transparent)]
    Log(#[from] CommitError),
    /// The log can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A fault in Tidings.
    #[error("internal fault, please report it: {0}")]
    Internal(String),
}

/// Runs a lane until it is drained, or the log is gone.
///
/// # Errors
/// See [`LaneError`]; deliveries stay in the log.
pub async fn run(config: LaneConfig, around: Surroundings) -> Result<(), LaneError> {
    let key = config.settings.lane.clone();
    around.board.post(&key, |status| status.state = LaneState::Idle);
    let outcome = drive(&config, &around).await;
    match &outcome {
        Ok(()) => around.board.remove(&key),
        Err(error) => {
            tracing::error!(lane = %key, %error, "the lane has stopped; its deliveries stay in the log");
            around.board.post(&key, |status| {
                status.state = LaneState::Stopped;
                status.last_error = Some((now(), error.to_string()));
            });
        }
    }
    outcome
}

async fn drive(config: &LaneConfig, around: &Surroundings) -> Result<(), LaneError> {
    if !turn_has_come(config, around).await {
        return Ok(());
    }
    loop {
        let mut lane = Lane::start(config, around).await?;
        match lane.work().await {
            // What was to be read next has been carried forward meanwhile: start anew from what the log says now.
            Err(LaneError::Read(ReadError::Gone(_))) => continue,
            other => return other,
        }
    }
}

/// Waits until earlier sets of lanes are empty; false if the service stops before.
async fn turn_has_come(config: &LaneConfig, around: &Surroundings) -> bool {
    let Some(after) = config.after else { return true };
    let (mut progress, mut drain) = (around.log.progress(), around.drain.clone());
    let connection = &config.settings.lane.connection;
    loop {
        let is_empty = {
            let known = progress.borrow_and_update();
            known.connections.get(connection).is_none_or(|books| books.lanes.range(..after).all(|(_, pending)| *pending == 0))
        };
        if is_empty {
            return true;
        }
        tokio::select! {
            changed = progress.changed() => if changed.is_err() { return false },
            _ = drain.wait_for(|drain| *drain) => return false,
        }
    }
}

/// What a lane waits for.
enum Event {
    Opened(TcpStream),
    Closed(String),
    Arrived,
    Written,
    Committed(Result<Committed<Appended>, CommitError>),
    Read(Box<Feed>, Result<Piece, ReadError>),
    LogGrew,
    Drain,
    Tick,
}

type Connecting = Pin<Box<dyn Future<Output = std::io::Result<TcpStream>> + Send>>;

struct Lane<'a> {
    key: LaneKey,
    config: &'a LaneConfig,
    around: &'a Surroundings,
    session: Session,
    clock: Clock,
    connection: Connection,
    protocol: Protocol,
    appends: VecDeque<Ticket>,
    feed: Reading,
    progress: watch::Receiver<Progress>,
    payloads: HashMap<SendNo, Payload>,
    /// Sends whose PUBREL may leave.
    permits: HashMap<SendNo, Committed<()>>,
    is_drained: bool,
    state: LaneState,
}

/// The wall clock, made steady: it never jumps while the process runs.
struct Clock {
    at_start: Millis,
    started: Instant,
}

impl Clock {
    fn now(&self) -> Millis {
        self.at_start.plus(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

enum Connection {
    None,
    Opening(Connecting),
    Open(Box<Socket>),
}

struct Socket {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    arrived: BytesMut,
    outgoing: BytesMut,
    /// Since when the broker has taken nothing of what is to be written.
    stuck_since: Option<tokio::time::Instant>,
    /// Something was written since the session was told of a flush.
    is_flush_due: bool,
}

/// The feed is here, or away reading.
enum Reading {
    Here { feed: Box<Feed>, is_at_end: bool, not_before: Option<tokio::time::Instant> },
    Away(JoinHandle<(Box<Feed>, Result<Piece, ReadError>)>),
    Gone,
}

impl<'a> Lane<'a> {
    async fn start(config: &'a LaneConfig, around: &'a Surroundings) -> Result<Self, LaneError> {
        let key = config.settings.lane.clone();
        let progress = around.log.progress();
        let asked = key.clone();
        let snapshot = around.log.ask(move |outbox| outbox.lane(&asked).cloned().map(|lane| (lane, outbox.next()))).await?;
        let released = snapshot.map_ref(|_| ());
        let Some((lane, next)) = snapshot.into_inner() else {
            return Err(LaneError::Internal(format!("lane {key} is not in the log")));
        };
        let through = crate::core::types::Seq(next.0 - 1);
        let mut feed = Feed::new(around.log.clone(), key.clone(), lane, through);
        let reading = tokio::task::spawn_blocking(move || {
            let start = feed.start();
            (feed, start)
        });
        let (feed, start) = reading.await.map_err(|error| LaneError::Internal(error.to_string()))?;
        let (mut start, payloads) = start?;
        let clock = Clock { at_start: now(), started: Instant::now() };
        // A clock that was set back must not make anybody wait longer than the longest wait.
        let latest = clock.now().plus(config.settings.retry.max_ms);
        for (_, retry_at, _) in &mut start.waiting {
            *retry_at = latest.min(*retry_at);
        }
        let permits = start.released.iter().map(|send| (*send, released.map_ref(|()| ()))).collect();
        Ok(Lane {
            key,
            config,
            around,
            session: Session::new(config.settings.clone(), start),
            clock,
            connection: Connection::None,
            protocol: Protocol::V5,
            appends: VecDeque::new(),
            feed: Reading::Here { feed: Box::new(feed), is_at_end: false, not_before: None },
            progress,
            payloads: payloads.into_iter().collect(),
            permits,
            is_drained: false,
            state: LaneState::Idle,
        })
    }

    async fn work(&mut self) -> Result<(), LaneError> {
        let mut drain = self.around.drain.clone();
        if *drain.borrow_and_update() {
            return Ok(());
        }
        self.give(Input::Tick).await?;
        while !self.session.is_drained() {
            self.read_ahead();
            self.post();
            let event = self.wait(&mut drain).await;
            self.apply(event).await?;
        }
        self.finish_writing().await;
        Ok(())
    }

    /// Waits for what comes first.
    async fn wait(&mut self, drain: &mut watch::Receiver<bool>) -> Event {
        let now = self.clock.now();
        let deadline = self.session.deadline().map(|at| Duration::from_millis(at.since(now)));
        let tick = tokio::time::sleep(deadline.unwrap_or(Duration::from_secs(3_600)));
        let is_reading_wanted = self.session.wants() > 0;
        let append = async {
            match self.appends.front_mut() {
                Some(ticket) => ticket.answer().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = network(&mut self.connection) => event,
            result = append => Event::Committed(result),
            event = reading(&mut self.feed, &mut self.progress, is_reading_wanted) => event,
            () = tick => Event::Tick,
            _ = drain.wait_for(|drain| *drain), if !self.is_drained => Event::Drain,
        }
    }

    async fn apply(&mut self, event: Event) -> Result<(), LaneError> {
        match event {
            Event::Opened(stream) => {
                // Acknowledgements are small and wait for nobody.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(lane = %self.key, %error, "TCP_NODELAY could not be set");
                }
                let (reader, writer) = stream.into_split();
                let (arrived, outgoing) = (BytesMut::with_capacity(8 << 10), BytesMut::with_capacity(64 << 10));
                let socket = Socket { reader, writer, arrived, outgoing, stuck_since: None, is_flush_due: false };
                self.connection = Connection::Open(Box::new(socket));
                self.give(Input::Opened).await
            }
            Event::Closed(reason) => {
                self.connection = Connection::None;
                self.give(Input::Closed { reason }).await
            }
            Event::Arrived => self.take_packets().await,
            Event::Written => self.flushed().await,
            Event::Committed(result) => {
                self.appends.pop_front();
                self.committed(result?).await
            }
            Event::Read(feed, piece) => self.take_piece(feed, piece).await,
            Event::LogGrew => {
                if let Reading::Here { is_at_end, not_before, .. } = &mut self.feed {
                    (*is_at_end, *not_before) = (false, None);
                }
                Ok(())
            }
            Event::Drain => {
                self.is_drained = true;
                self.give(Input::Drain).await
            }
            Event::Tick => self.give(Input::Tick).await,
        }
    }

    async fn give(&mut self, input: Input) -> Result<(), LaneError> {
        self.session.handle(self.clock.now(), jitter(), input);
        while let Some(output) = self.session.next_output() {
            self.act(output).await?;
        }
        self.end_if_retired().await
    }

    async fn act(&mut self, output: Output) -> Result<(), LaneError> {
        match output {
            Output::Open => {
                self.set_state(LaneState::Connecting);
                let address = (self.config.server.clone(), self.config.port);
                self.connection = Connection::Opening(Box::pin(TcpStream::connect(address)));
            }
            Output::Close => self.finish_writing().await,
            Output::Send(packet) => self.write(packet)?,
            Output::Append(events) => self.append(events).await?,
            Output::Note(note) => self.note(note),
        }
        Ok(())
    }

    async fn append(&mut self, events: Vec<LogEvent>) -> Result<(), LaneError> {
        self.appends.push_back(self.around.log.submit(events).await?);
        Ok(())
    }

    async fn committed(&mut self, appended: Committed<Appended>) -> Result<(), LaneError> {
        let proof = appended.map_ref(|_| ());
        let resent = match appended.into_inner() {
            Appended::New { resent, .. } => resent,
            Appended::Known(_) => Vec::new(),
        };
        self.session.handle(self.clock.now(), jitter(), Input::Committed { resent });
        while let Some(output) = self.session.next_output() {
            match output {
                Output::Note(Note::Releasable { sends }) => {
                    self.permits.extend(sends.into_iter().map(|send| (send, proof.map_ref(|()| ()))));
                }
                other => self.act(other).await?,
            }
        }
        self.end_if_retired().await
    }

    // ---- the socket ----

    fn write(&mut self, packet: Outgoing) -> Result<(), LaneError> {
        let Connection::Open(socket) = &mut self.connection else { return Ok(()) };
        let out = &mut socket.outgoing;
        match packet {
            Outgoing::Connect { protocol, client_id, clean, session_expiry_s, keepalive_s } => {
                self.protocol = protocol;
                let credentials = &self.config.credentials;
                codec::write_connect(protocol, &Connect { client_id: &client_id, clean, session_expiry_s, keepalive_s, credentials }, out);
            }
            Outgoing::Publish { send, packet_id, dup } => {
                let payload = self.payloads.get(&send).ok_or_else(|| LaneError::Internal(format!("send {send} has no payload")))?;
                write_publish(self.protocol, payload, packet_id, dup, out)?;
            }
            Outgoing::PubRel { send, packet_id } => {
                let permit = self.permits.get(&send).ok_or_else(|| LaneError::Internal(format!("send {send} is not released")))?;
                write_pubrel(self.protocol, permit, packet_id, out);
            }
            Outgoing::PingReq => codec::write_pingreq(out),
            Outgoing::Disconnect { end_session } => codec::write_disconnect(self.protocol, end_session, out),
        }
        socket.is_flush_due = true;
        socket.stuck_since.get_or_insert_with(tokio::time::Instant::now);
        Ok(())
    }

    async fn take_packets(&mut self) -> Result<(), LaneError> {
        loop {
            let Connection::Open(socket) = &mut self.connection else { return Ok(()) };
            match codec::read(self.protocol, &mut socket.arrived) {
                Ok(Some(packet)) => self.give(Input::Received(packet)).await?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.connection = Connection::None;
                    return self.give(Input::Closed { reason: error.to_string() }).await;
                }
            }
        }
    }

    async fn flushed(&mut self) -> Result<(), LaneError> {
        let Connection::Open(socket) = &mut self.connection else { return Ok(()) };
        if !socket.outgoing.is_empty() || !std::mem::take(&mut socket.is_flush_due) {
            return Ok(());
        }
        self.give(Input::Flushed).await
    }

    /// Writes what is left, for a moment at most, and closes: DISCONNECT should arrive, but nothing depends on it.
    async fn finish_writing(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        if let Connection::Open(mut socket) = std::mem::replace(&mut self.connection, Connection::None) {
            let last = async {
                let Socket { writer, outgoing, .. } = socket.as_mut();
                writer.write_all_buf(outgoing).await?;
                writer.shutdown().await
            };
            if !matches!(tokio::time::timeout(PATIENCE, last).await, Ok(Ok(()))) {
                tracing::debug!(lane = %self.key, "the connection was closed before everything was written");
            }
        }
    }

    // ---- reading ahead ----

    fn read_ahead(&mut self) {
        let wanted = self.session.wants();
        let can_read = matches!(&self.feed, Reading::Here { is_at_end: false, not_before: None, .. });
        if wanted == 0 || !can_read {
            return;
        }
        if let Reading::Here { mut feed, .. } = std::mem::replace(&mut self.feed, Reading::Gone) {
            self.feed = Reading::Away(tokio::task::spawn_blocking(move || {
                let piece = feed.read(wanted);
                (feed, piece)
            }));
        }
    }

    async fn take_piece(&mut self, feed: Box<Feed>, piece: Result<Piece, ReadError>) -> Result<(), LaneError> {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error @ (ReadError::Gone(_) | ReadError::Damaged { .. })) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(lane = %self.key, %error, "reading the log failed; it is tried again");
                let not_before = Some(tokio::time::Instant::now() + READ_AGAIN);
                self.feed = Reading::Here { feed, is_at_end: false, not_before };
                return Ok(());
            }
        };
        self.feed = Reading::Here { feed, is_at_end: piece.is_at_end, not_before: None };
        for (delivery, retry_at, payload) in piece.requeued {
            self.payloads.insert(delivery.send, payload);
            self.give(Input::OfferWaiting { delivery, retry_at }).await?;
        }
        if piece.fresh.is_empty() {
            return Ok(());
        }
        let mut fresh = Vec::with_capacity(piece.fresh.len());
        for (delivery, payload) in piece.fresh {
            self.payloads.insert(delivery.send, payload);
            fresh.push(delivery);
        }
        self.give(Input::Offer(fresh)).await
    }

    // ---- what others see ----

    fn note(&mut self, note: Note) {
        let (key, metrics) = (&self.key, &self.around.metrics);
        let connection = key.connection.as_str();
        let attempts = |outcome: &str, count: u64| metrics.tidings_attempts_total.with_label_values(&[connection, outcome]).inc_by(count);
        match note {
            Note::Connected { protocol, resumed } => {
                tracing::info!(lane = %key, protocol = protocol.name(), resumed, "connected");
                self.set_state(LaneState::Connected);
                self.around.board.post(&self.key, |status| status.protocol = Some(protocol));
            }
            Note::Disconnected { reason, retry_at } => {
                attempts("lost", self.session.in_flight() as u64);
                metrics.tidings_reconnects_total.with_label_values(&[connection]).inc();
                let wait_ms = retry_at.since(self.clock.now());
                tracing::warn!(lane = %key, reason, wait_ms, "no connection to the broker; reports are kept and it is tried again");
                self.set_state(LaneState::BackingOff);
                self.around.board.post(&self.key, |status| status.last_error = Some((now(), reason)));
            }
            Note::Closed => self.set_state(LaneState::Connecting),
            Note::Done { qos, accepted_at, .. } => {
                let outcome = if qos == Qos::AtMostOnce { "sent" } else { "acknowledged" };
                attempts(outcome, 1);
                metrics.tidings_deliveries_total.with_label_values(&[connection, qos.label(), outcome]).inc();
                let latency = now().since(accepted_at) as f64 / 1_000.0;
                metrics.tidings_delivery_latency_seconds.with_label_values(&[connection, qos.label()]).observe(latency);
            }
            Note::Refused { id, code, reason, retry_at, .. } => {
                attempts("refused", 1);
                let wait_ms = retry_at.since(self.clock.now());
                let name = crate::core::retry::reason_name(code);
                let words = reason.unwrap_or_default();
                tracing::warn!(lane = %key, delivery = %id, code = format!("0x{code:02x}"), name, words, wait_ms, "the broker refused a report");
            }
            Note::Dead { id, qos, reason, .. } => {
                attempts("refused", 1);
                metrics.tidings_deliveries_total.with_label_values(&[connection, qos.label(), "dead"]).inc();
                tracing::error!(lane = %key, delivery = %id, reason, "a report became a dead letter");
            }
            Note::SessionLost { in_doubt, reason } => {
                metrics.tidings_possible_duplicates_total.with_label_values(&[connection]).inc_by(in_doubt);
                tracing::warn!(lane = %key, in_doubt, reason, "the broker's session is lost: reports in flight are sent again, and may arrive twice");
            }
            Note::FellBack { protocol } => {
                tracing::warn!(lane = %key, protocol = protocol.name(), "the broker does not answer to the protocol; trying another")
            }
            Note::Settled { sends } => {
                for send in sends {
                    self.payloads.remove(&send);
                    self.permits.remove(&send);
                }
            }
            Note::Renumbered { from, to } => {
                if let Some(payload) = self.payloads.remove(&from) {
                    self.payloads.insert(to, payload);
                }
            }
            Note::Releasable { .. } => debug_assert!(false, "taken where its proof is"),
        }
    }

    fn set_state(&mut self, state: LaneState) {
        self.state = state;
        self.around.board.post(&self.key, |status| status.state = state);
    }

    fn post(&self) {
        let (in_flight, waiting, oldest) = (self.session.in_flight(), self.session.waiting(), self.session.oldest_accepted_at());
        self.around.board.post(&self.key, |status| {
            status.in_flight = in_flight as u64;
            status.waiting = waiting as u64;
            status.oldest_pending_at = oldest;
        });
    }

    /// A retired lane that is empty leaves its broker session behind and ends.
    async fn end_if_retired(&mut self) -> Result<(), LaneError> {
        let is_at_end = matches!(&self.feed, Reading::Here { is_at_end: true, .. });
        if self.config.is_retired && !self.is_drained && is_at_end && self.session.is_empty() {
            self.is_drained = true;
            self.session.handle(self.clock.now(), jitter(), Input::Retire);
            while let Some(output) = self.session.next_output() {
                self.act(output).await?;
            }
        }
        Ok(())
    }
}

/// What happens on the network: a connection made, bytes come or gone, or an end.
async fn network(connection: &mut Connection) -> Event {
    match connection {
        Connection::None => std::future::pending().await,
        Connection::Opening(opening) => match opening.await {
            Ok(stream) => Event::Opened(stream),
            Err(error) => Event::Closed(format!("the broker can't be reached: {error}")),
        },
        Connection::Open(socket) => {
            let Socket { reader, writer, arrived, outgoing, stuck_since, .. } = socket.as_mut();
            let is_writing = !outgoing.is_empty();
            let stuck = stuck_since.unwrap_or_else(tokio::time::Instant::now) + WRITE_TIMEOUT;
            tokio::select! {
                read = reader.read_buf(arrived) => match read {
                    Ok(0) => Event::Closed("the broker closed the connection".into()),
                    Ok(_) => Event::Arrived,
                    Err(error) => Event::Closed(format!("the connection was lost: {error}")),
                },
                written = writer.write_buf(outgoing), if is_writing => match written {
                    Ok(_) => {
                        *stuck_since = (!outgoing.is_empty()).then(tokio::time::Instant::now);
                        Event::Written
                    }
                    Err(error) => Event::Closed(format!("the connection was lost: {error}")),
                },
                () = tokio::time::sleep_until(stuck), if is_writing => {
                    Event::Closed(format!("the broker took nothing for {} s", WRITE_TIMEOUT.as_secs()))
                }
            }
        }
    }
}

/// What happens to the feed: it comes back with something, or there is something to read again.
async fn reading(feed: &mut Reading, progress: &mut watch::Receiver<Progress>, is_wanted: bool) -> Event {
    match feed {
        Reading::Away(reading) => match reading.await {
            Ok((feed, piece)) => return Event::Read(feed, piece),
            Err(error) => tracing::error!(%error, "reading the log panicked"),
        },
        Reading::Here { not_before: Some(at), .. } => {
            tokio::time::sleep_until(*at).await;
            return Event::LogGrew;
        }
        // At the end of the log: more comes with a commit.
        Reading::Here { is_at_end: true, .. } if is_wanted && progress.changed().await.is_ok() => return Event::LogGrew,
        Reading::Here { .. } | Reading::Gone => {}
    }
    std::future::pending().await
}

/// A PUBLISH leaves only for what is durable: the log's reader makes no other payloads.
fn write_publish(protocol: Protocol, payload: &Payload, packet_id: Option<u16>, dup: bool, out: &mut BytesMut) -> Result<(), LaneError> {
    let accepted = payload.get().accepted();
    codec::write_publish(protocol, accepted, packet_id, dup, out).map_err(|error| LaneError::Internal(error.to_string()))
}

/// A PUBREL leaves only with the permit of its committed release.
fn write_pubrel(protocol: Protocol, _permit: &Committed<()>, packet_id: u16, out: &mut BytesMut) {
    codec::write_pubrel(protocol, packet_id, out);
}

/// A random number for backoff.
fn jitter() -> u32 {
    // Without randomness lanes come back together, which is no harm in itself.
    getrandom::u32().unwrap_or(u32::MAX / 2)
}
