//! A lane at work: drives one [`Session`] over a socket.
//!
//! One task owns everything. It waits for whatever comes first (`wait` gives a typed [`Event`]), hands it to the session, and then does what
//! the session wants done. There are no locks, and no other way in.
//!
//! What leaves takes its proof along: a PUBLISH is written from a [`Payload`], which is read from the log; a PUBREL takes the permit that
//! the commit of its `Released` has left behind.

mod notes;
mod older;
mod reading;
mod servers;
mod socket;
mod timer;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use older::turn_has_come;
use reading::{Reading, reading};
use servers::{Looking, looking};
use socket::{Connection, Socket, network};
use timer::{Jitter, Timer};

use super::board::{Board, LaneState};
use super::codec::Credentials;
use super::feed::{Feed, Payload, Piece};
use super::precedence::Turn;
use super::transport::Stream;
use crate::config::TlsConfig;
use crate::core::address::Address;
use crate::core::event::{Event as LogEvent, LanePurpose};
use crate::core::keyed::Keyed;
use crate::core::notice::{Missing, NoticeTo, notice_on};
use crate::core::session::{Input, Note, Output, Session, Settings};
use crate::core::types::{ConnectionName, LaneKey, Millis, Protocol, SendNo, Seq};
use crate::failpoint::{self, Point};
use crate::log::ReadError;
use crate::log::committer::{Appended, CommitError, Committed, LogHandle, Progress, Ticket, now};
use crate::metrics::{Done, Metrics};

/// A lane whose reading was overtaken starts anew after this: by then what is carried stands in its new place.
const ANEW: Duration = Duration::from_millis(200);

/// What a lane is made of.
pub struct LaneConfig {
    /// The session's settings.
    pub settings: Settings,
    /// The brokers in order of preference; at least one.
    pub servers: Vec<Address>,
    /// How they are reached over TLS; none for the clear.
    pub tls: Option<TlsConfig>,
    /// User and password.
    pub credentials: Credentials,
    /// Over MQTT 5, each delivery says which it is and when it was accepted.
    pub stamp: bool,
    /// What it is for.
    pub purpose: LanePurpose,
    /// This set of lanes begins when those below this number are empty, but for those of replays.
    pub after: Option<u32>,
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
    /// Who goes first.
    pub turn: Turn,
    /// Where subscribers are told what they will not get, if they are.
    pub notices: watch::Receiver<Option<NoticeTo>>,
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
pub async fn run(config: &LaneConfig, around: &Surroundings) -> Result<(), LaneError> {
    let key = config.settings.lane.clone();
    around.board.post(&key, |status| status.state = LaneState::Idle);
    let outcome = drive(config, around).await;
    match &outcome {
        Ok(()) => around.board.remove(&key),
        Err(LaneError::Log(CommitError::NotOwner(_))) => {
            around.turn.say(false);
            tracing::warn!(lane = %key, "another instance owns the lane now; this one ends it");
            around.board.remove(&key);
        }
        Err(error) => {
            around.turn.say(false);
            tracing::error!(lane = %key, %error, "the lane has stopped; its deliveries stay in the log");
            around.board.post(&key, |status| {
                status.state = LaneState::Stopped;
                // What it had on the wire is not any more. What waits still does, and the oldest gets older.
                status.in_flight = 0;
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
        let outcome = match Lane::start(config, around).await {
            Ok(mut lane) => lane.work().await,
            Err(error) => Err(error),
        };
        match outcome {
            // What was to be read next has been carried forward meanwhile: start anew from what the log says now.
            Err(LaneError::Read(ReadError::Gone(_))) => tokio::time::sleep(ANEW).await,
            other => return other,
        }
    }
}

/// What a lane waits for.
enum Event {
    Opened(Stream),
    Closed(String),
    Arrived,
    Written,
    Committed(Result<Committed<Appended>, CommitError>),
    Read(Box<Feed>, Result<Piece, ReadError>),
    FeedLost,
    LogGrew,
    Looked(Option<usize>),
    Drain,
    Turn,
    Tick,
}

struct Lane<'a> {
    key: LaneKey,
    config: &'a LaneConfig,
    around: &'a Surroundings,
    session: Session,
    clock: Clock,
    connection: Connection,
    protocol: Protocol,
    /// Each with the connection of its gap notice, if it has one.
    appends: VecDeque<(Ticket, Option<ConnectionName>)>,
    feed: Reading,
    progress: watch::Receiver<Progress>,
    payloads: Keyed<SendNo, Payload>,
    /// Sends whose PUBREL may leave.
    permits: Keyed<SendNo, Committed<()>>,
    /// A look for a preferred server that is under way.
    looking: Option<Looking>,
    is_drained: bool,
    /// Who goes first, and what the session knows of that.
    turn: Turn,
    gives_way: bool,
    /// Nothing gets through, and an operator is needed.
    is_suspended: bool,
    /// It has been said on this connection that something is held.
    has_held: bool,
    state: LaneState,
    /// What counts deliveries that are done, by QoS.
    done: [Option<Done>; 3],
    jitter: Jitter,
    timer: Timer,
    /// When the board was told last.
    posted: Millis,
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

impl<'a> Lane<'a> {
    async fn start(config: &'a LaneConfig, around: &'a Surroundings) -> Result<Self, LaneError> {
        let key = config.settings.lane.clone();
        let progress = around.log.progress();
        let asked = key.clone();
        let snapshot = around.log.ask_in_order(move |outbox| outbox.lane(&asked).cloned().map(|lane| (lane, outbox.next()))).await?;
        let released = snapshot.map_ref(|_| ());
        let Some((lane, next)) = snapshot.into_inner() else {
            return Err(LaneError::Internal(format!("lane {key} is not in the log")));
        };
        let through = Seq(next.0 - 1);
        let mut feed = Feed::new(around.log.clone(), key.clone(), lane, through, config.stamp);
        let reading = tokio::task::spawn_blocking(move || {
            let start = feed.start();
            (feed, start)
        });
        let (feed, start) = reading.await.map_err(|error| LaneError::Internal(error.to_string()))?;
        let (mut start, payloads) = start?;
        let clock = Clock { at_start: now(), started: Instant::now() };
        start.at = clock.now();
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
            looking: None,
            is_drained: false,
            turn: around.turn.clone(),
            gives_way: false,
            is_suspended: false,
            has_held: false,
            state: LaneState::Idle,
            done: [None, None, None],
            jitter: Jitter::new(),
            timer: Timer::new(),
            posted: Millis(0),
        })
    }

    async fn work(&mut self) -> Result<(), LaneError> {
        let mut drain = self.around.drain.clone();
        if *drain.borrow_and_update() {
            return Ok(());
        }
        self.take_turn().await?;
        self.give(Input::Tick).await?;
        while !self.session.is_drained() {
            self.read_ahead().await?;
            let wanted = self.session.wants();
            self.say_turn(wanted);
            self.post();
            let event = self.wait(&mut drain, wanted > 0).await;
            self.apply(event).await?;
        }
        self.finish_writing().await;
        Ok(())
    }

    /// Waits for what comes first.
    async fn wait(&mut self, drain: &mut watch::Receiver<bool>, is_reading_wanted: bool) -> Event {
        let now = self.clock.now();
        let deadline = self.session.deadline();
        // These two come before everything that is ready, or a busy network would put them off.
        if deadline.is_some_and(|at| at <= now) {
            return Event::Tick;
        }
        if !self.is_drained && *drain.borrow_and_update() {
            return Event::Drain;
        }
        let hears = self.session.hears();
        let tick = self.timer.until(now, deadline);
        let append = async {
            match self.appends.front_mut() {
                Some((ticket, _)) => ticket.answer().await,
                None => std::future::pending().await,
            }
        };
        // In the order in which one makes room for the other.
        tokio::select! {
            biased;
            result = append => Event::Committed(result),
            event = reading(&mut self.feed, &mut self.progress, is_reading_wanted) => event,
            event = network(&mut self.connection, hears) => event,
            found = looking(&mut self.looking) => Event::Looked(found),
            () = tick => Event::Tick,
            () = self.turn.changed(self.gives_way) => Event::Turn,
            _ = drain.wait_for(|drain| *drain), if !self.is_drained => Event::Drain,
        }
    }

    /// A fresh lane says whether it has something to send: what it has read, or may read.
    fn say_turn(&self, wanted: usize) {
        let is_at_end = matches!(&self.feed, Reading::Here { is_at_end: true, .. });
        self.turn.say(self.session.ready() > 0 || (!is_at_end && wanted > 0));
    }

    /// A replay lane lets others go first, or goes on.
    async fn take_turn(&mut self) -> Result<(), LaneError> {
        let gives_way = self.turn.gives_way();
        if gives_way != self.gives_way {
            self.gives_way = gives_way;
            self.give(Input::GiveWay(gives_way)).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, event: Event) -> Result<(), LaneError> {
        // Before anything else is sent for it.
        self.take_turn().await?;
        match event {
            Event::Turn => Ok(()),
            Event::Opened(stream) => {
                if let Some(tls) = stream.encryption() {
                    tracing::debug!(lane = %self.key, version = tls.version, cipher = tls.cipher, "TLS is agreed on");
                    if let Some(end) = tls.ends {
                        let labels = ["connection", self.key.connection.as_str(), "server"];
                        self.around.metrics.tidings_certificate_expiry_timestamp_seconds.with_label_values(&labels).set(end);
                    }
                }
                self.connection = Connection::Open(Box::new(Socket::new(stream)));
                self.give(Input::Opened).await
            }
            Event::Closed(reason) => self.closed(reason).await,
            Event::Arrived => self.take_packets().await,
            Event::Written => self.flushed().await,
            Event::Committed(result) => {
                let notice = self.appends.pop_front().and_then(|(_, notice)| notice);
                let appended = result?;
                if let Some(connection) = notice {
                    self.around.metrics.tidings_deliveries_created_total.with_label_values(&[connection.as_str()]).inc();
                }
                self.committed(appended).await
            }
            Event::Read(feed, piece) => self.take_piece(feed, piece).await,
            Event::FeedLost => Err(LaneError::Internal("reading the log panicked".into())),
            Event::LogGrew => {
                if let Reading::Here { is_at_end, not_before, .. } = &mut self.feed {
                    (*is_at_end, *not_before) = (false, None);
                }
                Ok(())
            }
            Event::Looked(found) => {
                self.looking = None;
                self.give(Input::Looked { found }).await
            }
            Event::Drain => {
                self.is_drained = true;
                self.give(Input::Drain).await
            }
            Event::Tick => {
                self.say_what_left_late().await?;
                self.give(Input::Tick).await
            }
        }
    }

    async fn give(&mut self, input: Input) -> Result<(), LaneError> {
        self.session.handle(self.clock.now(), self.jitter.next(), input);
        while let Some(output) = self.session.next_output() {
            self.act(output).await?;
        }
        self.end_if_retired().await
    }

    async fn act(&mut self, output: Output) -> Result<(), LaneError> {
        match output {
            Output::Open { server } => {
                self.set_state(LaneState::Connecting);
                self.connection = Connection::Opening(self.open(server));
            }
            Output::Look { before } => self.look(before),
            Output::Close => self.finish_writing().await,
            Output::Send(packet) => self.write(packet)?,
            Output::Append(events) => self.append(events).await?,
            Output::Note(note) => self.note(note),
        }
        Ok(())
    }

    async fn append(&mut self, mut events: Vec<LogEvent>) -> Result<(), LaneError> {
        let notice = self.notice(&events);
        let told = notice.as_ref().and_then(notice_on);
        events.extend(notice);
        failpoint::reach_if(Point::BeforeReleased, || events.iter().any(|event| matches!(event, LogEvent::Released { .. })));
        failpoint::reach_if(Point::BeforeDelivered, || events.iter().any(|event| matches!(event, LogEvent::Delivered { .. })));
        self.appends.push_back((self.around.log.submit(events).await?, told));
        Ok(())
    }

    /// What of these events ends a delivery unsent, told to its subscribers, in the same commit.
    fn notice(&self, events: &[LogEvent]) -> Option<LogEvent> {
        let to = self.around.notices.borrow().clone()?;
        let mut missing = Missing::default();
        for event in events {
            let LogEvent::Expired { sends, .. } = event else { continue };
            for payload in sends.iter().filter_map(|send| self.payloads.get(&SendNo(send))) {
                if let Some(accepted) = payload.get().accepted() {
                    missing.add(payload.get().stamp().id, &accepted);
                }
            }
        }
        missing.notice(&to, "expired", None, now())
    }

    async fn committed(&mut self, appended: Committed<Appended>) -> Result<(), LaneError> {
        let proof = appended.map_ref(|_| ());
        let resent = match appended.into_inner() {
            Appended::New { resent, .. } => resent,
            Appended::Known(_) => Vec::new(),
        };
        self.session.handle(self.clock.now(), self.jitter.next(), Input::Committed { resent });
        while let Some(output) = self.session.next_output() {
            match output {
                Output::Note(Note::Releasable { sends }) => {
                    failpoint::reach(Point::BeforePubrel);
                    self.permits.extend(sends.into_iter().map(|send| (send, proof.map_ref(|()| ()))));
                }
                other => self.act(other).await?,
            }
        }
        self.end_if_retired().await
    }

    /// A retired lane that is empty leaves its broker session behind and ends.
    async fn end_if_retired(&mut self) -> Result<(), LaneError> {
        let is_at_end = matches!(&self.feed, Reading::Here { is_at_end: true, .. });
        if self.config.settings.is_retired && !self.is_drained && is_at_end && self.session.is_empty() {
            self.is_drained = true;
            self.session.handle(self.clock.now(), self.jitter.next(), Input::Retire);
            while let Some(output) = self.session.next_output() {
                self.act(output).await?;
            }
        }
        Ok(())
    }
}
