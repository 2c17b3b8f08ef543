//! The committer: one thread that owns the log and the outbox.
//!
//! ```text
//!   append() ─▶ channel ─▶ take one, then all that waits (≤ 1,024 events, ≤ 4 MiB)
//!                           ├─ refuse: store full · request known · does not fit
//!                           ├─ fold into the outbox
//!                           ├─ append to the log: durable ── fails ─▶ answer everyone, stop for good
//!                           └─ publish the progress, answer every waiter with Committed
//! ```
//!
//! There is no timer: while one commit syncs, the next forms in the channel. A request is never torn: its events are in one commit.
//!
//! [`Committed`] is the proof that what it holds is durable. Only this file can make one; what may leave the process (an accept, a
//! PUBLISH, a PUBREL) is written to take it, so "published before durable" does not compile.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::codec;
use super::{AppendError, Checkpoint, EventLog, LogReader, Opened, Page, ReadError, Space, StoreId};
use crate::core::event::{Carried, Event};
use crate::core::outbox::{FoldError, Outbox, Request, Straggler, Totals};
use crate::core::types::{ConnectionName, LaneKey, Millis, SendNo, Seq};
use crate::metrics::Metrics;

/// A commit takes no further request once it has so many events: bounds the time until the first waiter is answered.
const COMMIT_EVENTS: usize = 1_024;

/// A commit takes no further request once it has so many bytes.
const COMMIT_BYTES: usize = 4 << 20;

/// So many requests wait in the channel at most; further ones wait outside, with a limit.
const QUEUE_REQUESTS: usize = 4_096;

/// So many bytes of reports wait for a commit at most. Twice what one NDJSON body may be at its largest setting, fan-out apart.
const QUEUE_BYTES: usize = 128 << 20;

/// A producer waits so long for a place in the queue before it is told to come back.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(5);

/// Housekeeping: witness, retention, space.
const TICK: Duration = Duration::from_secs(1);

/// A generation with at most so many deliveries that are not done is emptied by carrying them forward; one with more stays.
const CARRY_AT_MOST: u64 = 4_096;

/// Accepts stop when the file system has less than this left, so that outcomes and a clean stop still fit: two generations' segments.
const FREE_SPACE_FLOOR: u64 = 128 << 20;

/// The largest event that is handed to the log, in bytes: what its codec takes, less what names and numbers can add.
const LARGEST_EVENT: usize = codec::MAX_EVENT - (128 << 10);

/// The version of the encoded outbox. Another version is not read: the log is folded from its start instead.
const CHECKPOINT_VERSION: u16 = 1;

/// What it holds is durable.
#[derive(Debug)]
pub struct Committed<T>(T);

impl<T> Committed<T> {
    /// What is durable.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// What is durable, without the proof.
    pub fn into_inner(self) -> T {
        self.0
    }

    /// Something that follows from it, with the same proof.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Committed<U> {
        Committed(f(self.0))
    }

    /// A part of it, with the same proof.
    pub fn map_ref<U>(&self, f: impl FnOnce(&T) -> U) -> Committed<U> {
        Committed(f(&self.0))
    }
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// The events stand at these positions.
    New {
        /// The first one's.
        first: Seq,
        /// The last one's.
        last: Seq,
        /// The new send number of each `Resent` among them, in order.
        resent: Vec<SendNo>,
    },
    /// The same request was accepted before; nothing was appended.
    Known(Request),
}

/// Why a commit did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The store is full.
    #[error("the store is full: {0}")]
    Full(String),
    /// The idempotency key was used with another body.
    #[error("this Idempotency-Key was used before with another body; use a new key for a new request")]
    Conflict,
    /// Too much waits already.
    #[error("too many reports wait for the disk; try again in a moment")]
    Overloaded,
    /// The service stops.
    #[error("the service is stopping; try again when it is back")]
    Stopped,
    /// A fault in Tidings: the events do not fit the log.
    #[error("internal fault, please report it: {0}")]
    DoesNotFit(#[from] FoldError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] AppendError),
}

impl CommitError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            CommitError::Full(_) => "store_full",
            CommitError::Conflict => "idempotency_conflict",
            CommitError::Overloaded => "overloaded",
            CommitError::Stopped => "stopping",
            CommitError::DoesNotFit(_) => "internal",
            CommitError::Store(error) => error.code(),
        }
    }
}

/// How far the log is, and how the store does. Published after every commit.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The last durable position.
    pub committed: Seq,
    /// The books, per connection.
    pub connections: BTreeMap<ConnectionName, Books>,
    /// Disk space.
    pub space: Space,
    /// Why accepts are refused, if they are.
    pub full: Option<String>,
    /// Why the log is dead, if it is.
    pub failed: Option<String>,
    /// Replay jobs under way.
    pub replays: usize,
}

/// The books of one connection.
#[derive(Debug, Clone, Default)]
pub struct Books {
    /// Cumulative, over restarts.
    pub totals: Totals,
    /// Pending per lane.
    pub lanes: BTreeMap<u32, u64>,
    /// When the oldest pending delivery was accepted; exact to about a thousand deliveries of a lane.
    pub oldest_pending_at: Option<Millis>,
}

/// Limits that the operator sets.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Accepts are refused when the store takes more than this, in bytes.
    pub max_size: u64,
    /// Generations older than this are dropped once nothing in them is needed, in milliseconds.
    pub retention_ms: u64,
}

type Reply = oneshot::Sender<Result<Committed<Appended>, CommitError>>;

enum Command {
    Append(Append),
    Ask(Box<dyn FnOnce(&Outbox) + Send>),
    CarriedForward,
    AdoptCopy(oneshot::Sender<Result<(), CommitError>>),
    Stop(oneshot::Sender<Result<(), CommitError>>),
}

struct Append {
    events: Vec<Event>,
    bytes: usize,
    /// Reports are refused when the store is full; outcomes never are.
    is_accept: bool,
    reply: Reply,
    _place: Option<OwnedSemaphorePermit>,
}

/// The way to the committer, for every room. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    commands: mpsc::Sender<Command>,
    places: Arc<Semaphore>,
    progress: watch::Receiver<Progress>,
    reader: Arc<dyn LogReader>,
    busy: Arc<Busy>,
    store_id: StoreId,
}

/// An append that is under way.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Result<Committed<Appended>, CommitError>>);

impl Ticket {
    /// What became of it. May be asked again if the wait was given up, until it has answered.
    ///
    /// # Errors
    /// As [`LogHandle::record`].
    pub async fn answer(&mut self) -> Result<Committed<Appended>, CommitError> {
        (&mut self.0).await.unwrap_or(Err(CommitError::Stopped))
    }
}

/// Since when the committer has been at one thing, for the watchdog.
#[derive(Default)]
struct Busy {
    since: Mutex<Option<Instant>>,
    commits: AtomicU64,
}

impl LogHandle {
    /// Appends the deliveries of one request. All of them become durable, or none.
    ///
    /// # Errors
    /// [`CommitError::Full`], [`CommitError::Conflict`], [`CommitError::Overloaded`] and [`CommitError::Stopped`] are the producer's to handle.
    pub async fn accept(&self, events: Vec<Event>) -> Result<Committed<Appended>, CommitError> {
        let bytes: usize = events.iter().map(size_of_event).sum();
        let wanted = u32::try_from(bytes.min(QUEUE_BYTES)).expect("the queue's bound fits 32 bits");
        let place = tokio::time::timeout(ACCEPT_PATIENCE, self.places.clone().acquire_many_owned(wanted));
        let place = place.await.map_err(|_| CommitError::Overloaded)?.map_err(|_| CommitError::Stopped)?;
        let (reply, answer) = oneshot::channel();
        let append = Command::Append(Append { events, bytes, is_accept: true, reply, _place: Some(place) });
        match tokio::time::timeout(ACCEPT_PATIENCE, self.commands.send(append)).await {
            Err(_) => return Err(CommitError::Overloaded),
            Ok(Err(_)) => return Err(CommitError::Stopped),
            Ok(Ok(())) => {}
        }
        answer.await.unwrap_or(Err(CommitError::Stopped))
    }

    /// Appends outcomes and other events of Tidings' own making. Goes on when the store is full, in the reserve kept for them.
    ///
    /// # Errors
    /// [`CommitError::Stopped`], [`CommitError::DoesNotFit`] and [`CommitError::Store`]; the last is fatal.
    pub async fn record(&self, events: Vec<Event>) -> Result<Committed<Appended>, CommitError> {
        self.submit(events).await?.answer().await
    }

    /// As [`LogHandle::record`], but returns as soon as the events have their place in the order of commits.
    ///
    /// # Errors
    /// [`CommitError::Stopped`].
    pub async fn submit(&self, events: Vec<Event>) -> Result<Ticket, CommitError> {
        let (reply, answer) = oneshot::channel();
        let bytes = events.iter().map(size_of_event).sum();
        let append = Append { events, bytes, is_accept: false, reply, _place: None };
        self.commands.send(Command::Append(append)).await.map_err(|_| CommitError::Stopped)?;
        Ok(Ticket(answer))
    }

    /// Asks the outbox something. The answer is as of the last commit, and durable.
    ///
    /// # Errors
    /// [`CommitError::Stopped`] if the committer has stopped.
    pub async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Outbox) -> T + Send + 'static) -> Result<Committed<T>, CommitError> {
        let (reply, answer) = oneshot::channel();
        let ask = Box::new(move |outbox: &Outbox| {
            // Nobody waits any more: the answer is not needed.
            let _ = reply.send(Committed(question(outbox)));
        });
        self.commands.send(Command::Ask(ask)).await.map_err(|_| CommitError::Stopped)?;
        answer.await.map_err(|_| CommitError::Stopped)
    }

    /// The page that holds `seq`, or none if that is not durable yet. Blocks on the disk: call it where that is allowed.
    ///
    /// # Errors
    /// See [`LogReader::page`].
    pub fn page(&self, seq: Seq) -> Result<Option<Committed<Arc<Page>>>, ReadError> {
        Ok(self.reader.page(seq)?.map(Committed))
    }

    /// How far the log is; changes with every commit.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// The id of the store.
    pub fn store_id(&self) -> StoreId {
        self.store_id
    }

    /// How long the committer has been at one commit; none if it is waiting for work.
    pub fn busy_for(&self) -> Option<Duration> {
        let since = *self.busy.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }

    /// Commits since the start.
    pub fn commits(&self) -> u64 {
        self.busy.commits.load(Ordering::Relaxed)
    }

    /// The epochs have been bumped: the copied store is this service's own from now on.
    ///
    /// # Errors
    /// [`CommitError::Stopped`] and [`CommitError::Store`].
    pub async fn adopt_copy(&self) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::AdoptCopy(reply)).await.map_err(|_| CommitError::Stopped)?;
        answer.await.unwrap_or(Err(CommitError::Stopped))
    }

    /// Commits what waits, writes the checkpoint and closes the log. Later appends get [`CommitError::Stopped`].
    ///
    /// # Errors
    /// [`CommitError::Store`] if the log could not be closed cleanly; nothing that was accepted is lost then.
    pub async fn stop(&self) -> Result<(), CommitError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Stop(reply)).await.map_err(|_| CommitError::Stopped)?;
        answer.await.unwrap_or(Err(CommitError::Stopped))
    }
}

/// Why recovery failed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The events do not fit each other.
    #[error("the store is damaged at event {seq}: {error}. Nothing was changed; see the runbook")]
    Fold {
        /// Where.
        seq: Seq,
        /// What does not fit.
        error: FoldError,
    },
    /// The checkpoint can't be read.
    #[error("the store's checkpoint before event {next} can't be read: {what}. Nothing was changed; see the runbook")]
    Checkpoint {
        /// The first event that is not in it.
        next: Seq,
        /// What is wrong.
        what: String,
    },
    /// The thread could not be started.
    #[error("starting the committer failed: {0}")]
    Thread(String),
}

/// Rebuilds the outbox: the newest checkpoint, and every event since.
///
/// # Errors
/// If the log can't be read, or its events do not fit each other.
pub fn recover(opened: &Opened) -> Result<Outbox, RecoverError> {
    let mut outbox = match &opened.checkpoint {
        None => Outbox::new(),
        Some(checkpoint) => decode_checkpoint(checkpoint)?,
    };
    let reader = opened.log.reader();
    while outbox.next() < opened.log.next_seq() {
        let seq = outbox.next();
        let missing = || ReadError::Damaged { seq, what: "the event is missing".into() };
        let page = reader.page(seq)?.ok_or_else(missing)?;
        let skip = usize::try_from(seq.0 - page.first.0).map_err(|_| missing())?;
        for event in &page.events[skip..] {
            let seq = outbox.next();
            outbox.apply(event).map_err(|error| RecoverError::Fold { seq, error })?;
        }
    }
    Ok(outbox)
}

fn decode_checkpoint(checkpoint: &Checkpoint) -> Result<Outbox, RecoverError> {
    let unreadable = |what: String| RecoverError::Checkpoint { next: checkpoint.next, what };
    let (version, outbox): (u16, Outbox) = postcard::from_bytes(&checkpoint.bytes).map_err(|error| unreadable(error.to_string()))?;
    if version != CHECKPOINT_VERSION {
        return Err(unreadable(format!("it has version {version}, this release knows {CHECKPOINT_VERSION}")));
    }
    if outbox.next() != checkpoint.next {
        return Err(unreadable(format!("it says that the next event is {}", outbox.next())));
    }
    Ok(outbox)
}

/// The outbox as bytes, as it goes into a checkpoint.
pub fn encode_checkpoint(outbox: &Outbox) -> Vec<u8> {
    postcard::to_stdvec(&(CHECKPOINT_VERSION, outbox)).expect("an outbox is plain data and memory is there")
}

/// Starts the committer's thread.
///
/// # Errors
/// [`RecoverError::Thread`] if the system gives no thread.
pub fn start(log: Box<dyn EventLog>, outbox: Outbox, limits: Limits, metrics: Arc<Metrics>) -> Result<LogHandle, RecoverError> {
    let (commands, inbox) = mpsc::channel(QUEUE_REQUESTS);
    let busy = Arc::new(Busy::default());
    let (reader, store_id) = (log.reader(), log.store_id());
    let (publish, progress) = watch::channel(Progress::default());
    let handle = LogHandle { commands, places: Arc::new(Semaphore::new(QUEUE_BYTES)), progress, reader, busy: Arc::clone(&busy), store_id };
    let mut committer = Committer {
        log: Some(log),
        outbox,
        limits,
        metrics,
        publish,
        busy,
        inbox,
        runtime: tokio::runtime::Handle::current(),
        own: handle.commands.downgrade(),
        is_carrying: false,
        reader: Arc::clone(&handle.reader),
    };
    committer.publish_progress();
    std::thread::Builder::new()
        .name("committer".into())
        .spawn(move || committer.run())
        .map_err(|error| RecoverError::Thread(error.to_string()))?;
    Ok(handle)
}

struct Committer {
    /// None once it has failed or been closed.
    log: Option<Box<dyn EventLog>>,
    outbox: Outbox,
    limits: Limits,
    metrics: Arc<Metrics>,
    publish: watch::Sender<Progress>,
    busy: Arc<Busy>,
    inbox: mpsc::Receiver<Command>,
    runtime: tokio::runtime::Handle,
    own: mpsc::WeakSender<Command>,
    is_carrying: bool,
    reader: Arc<dyn LogReader>,
}

/// What one commit is made of.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    bytes: usize,
    waiters: Vec<(Reply, Appended)>,
    /// The next send number of each lane that has a send in the batch, before the batch.
    sends: BTreeMap<LaneKey, SendNo>,
    places: Vec<OwnedSemaphorePermit>,
}

impl Committer {
    fn run(&mut self) {
        let mut last_tick = Instant::now();
        loop {
            let wait = TICK.saturating_sub(last_tick.elapsed());
            let command = self.runtime.block_on(async { tokio::time::timeout(wait, self.inbox.recv()).await });
            *self.busy.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            let stop = match command {
                Ok(None) => Some(None),
                Ok(Some(command)) => self.take(command),
                Err(_) => None,
            };
            if let Some(reply) = stop {
                self.close(reply);
                return;
            }
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.tick();
            }
            *self.busy.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Takes one command, and all that waits behind it, into one commit. Returns `Some` when it is to stop.
    fn take(&mut self, first: Command) -> Option<Option<oneshot::Sender<Result<(), CommitError>>>> {
        let mut batch = Batch::default();
        let mut next = Some(first);
        let mut after: Vec<Command> = Vec::new();
        while let Some(command) = next {
            match command {
                Command::Append(append) => self.admit(append, &mut batch),
                // Everything else sees the outbox as of a commit, so it ends the gathering.
                other => {
                    after.push(other);
                    break;
                }
            }
            if batch.events.len() >= COMMIT_EVENTS || batch.bytes >= COMMIT_BYTES {
                break;
            }
            next = self.inbox.try_recv().ok();
        }
        self.commit(batch);
        for command in after {
            match command {
                Command::Ask(question) => question(&self.outbox),
                Command::CarriedForward => self.is_carrying = false,
                Command::AdoptCopy(reply) => {
                    let result = self.with_log(|log, _| log.adopt_copy());
                    let _ = reply.send(result);
                }
                Command::Stop(reply) => return Some(Some(reply)),
                Command::Append(append) => self.refuse(append, CommitError::Stopped),
            }
        }
        None
    }

    fn refuse(&self, append: Append, error: CommitError) {
        // A producer that went away needs no answer.
        let _ = append.reply.send(Err(error));
    }

    /// Folds a request into the batch, or refuses it.
    fn admit(&mut self, append: Append, batch: &mut Batch) {
        if self.log.is_none() {
            return self.refuse(append, CommitError::Stopped);
        }
        if let Some(known) = known_request(&self.outbox, &append.events) {
            let same_body = dedupe_of(&append.events).is_some_and(|dedupe| dedupe.body == known.body);
            match same_body {
                // Answered after the commit: the first request may be in this very batch.
                true => batch.waiters.push((append.reply, Appended::Known(known))),
                false => self.refuse(append, CommitError::Conflict),
            }
            return;
        }
        if append.is_accept
            && let Some(reason) = self.full()
        {
            return self.refuse(append, CommitError::Full(reason));
        }
        // The log would fail for good, and everybody with it.
        if let Some(size) = append.events.iter().map(size_of_event).find(|size| *size > LARGEST_EVENT) {
            return self.refuse(append, AppendError::TooLarge { size, limit: LARGEST_EVENT }.into());
        }
        if let Some(error) = append.events.iter().find_map(|event| self.outbox.check(event).err()) {
            tracing::error!(%error, "events that do not fit the log were not appended: a fault in Tidings");
            return self.refuse(append, error.into());
        }
        let first = self.outbox.next();
        let mut resent = Vec::new();
        for event in &append.events {
            if let Event::Accepted(accepted) = event {
                note_send(&mut batch.sends, &self.outbox, &accepted.lane);
            } else if let Event::Resent { delivery, .. } = event {
                note_send(&mut batch.sends, &self.outbox, &delivery.lane);
                resent.push(self.outbox.next_send(&delivery.lane));
            }
            self.outbox.apply(event).expect("checked just now, and events of one request do not contradict each other");
        }
        batch.bytes += append.bytes;
        batch.waiters.push((append.reply, Appended::New { first, last: Seq(self.outbox.next().0 - 1), resent }));
        batch.events.extend(append.events);
        batch.places.extend(append._place);
    }

    /// Makes the batch durable, and answers.
    fn commit(&mut self, batch: Batch) {
        if batch.waiters.is_empty() {
            return;
        }
        let result = if batch.events.is_empty() { Ok(()) } else { self.write(&batch) };
        match result {
            Ok(()) => {
                self.publish_progress();
                for (reply, appended) in batch.waiters {
                    let _ = reply.send(Ok(Committed(appended)));
                }
                self.roll_if_full();
            }
            Err(error) => {
                for (reply, _) in batch.waiters {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn write(&mut self, batch: &Batch) -> Result<(), CommitError> {
        let started = Instant::now();
        let next_send = |lane: &LaneKey| batch.sends.get(lane).copied().unwrap_or_default();
        let result = self.with_log(|log, outbox| {
            let last = log.append(&batch.events, &next_send)?;
            assert_eq!(last.next(), outbox.next(), "log and outbox count the same events");
            Ok(())
        });
        self.metrics.tidings_commit_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.tidings_commit_events.observe(batch.events.len() as f64);
        self.busy.commits.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Runs something on the log. The first failure is final: the outbox may be ahead of the disk, so the process has to restart.
    fn with_log(&mut self, act: impl FnOnce(&mut dyn EventLog, &Outbox) -> Result<(), AppendError>) -> Result<(), CommitError> {
        let Some(log) = self.log.as_mut() else { return Err(CommitError::Stopped) };
        let outbox = &self.outbox;
        let result = catch_unwind(AssertUnwindSafe(|| act(log.as_mut(), outbox)))
            .unwrap_or_else(|_| Err(AppendError::Io("the store panicked; its message is in the log".into())));
        result.map_err(|error| {
            self.fail(&error.to_string());
            error.into()
        })
    }

    fn fail(&mut self, what: &str) {
        tracing::error!(error = what, "the store has failed; the service stops, nothing that was accepted is lost");
        // Closing a log that has failed could hang or make it worse; the process is about to end.
        std::mem::forget(self.log.take());
        self.publish.send_modify(|progress| progress.failed = Some(what.to_owned()));
    }

    fn roll_if_full(&mut self) {
        if self.log.as_ref().is_some_and(|log| log.is_generation_full()) {
            self.outbox.begin_generation();
            let checkpoint = encode_checkpoint(&self.outbox);
            // A failure is published and stops the service; what was answered before is durable.
            let _ = self.with_log(|log, _| log.begin_generation(&checkpoint));
        }
    }

    fn tick(&mut self) {
        if self.with_log(|log, _| log.tick()).is_ok() {
            self.retain();
            self.publish_progress();
        }
    }

    /// Drops the oldest generation when it is past its retention and nothing in it is needed; has stragglers carried forward first.
    fn retain(&mut self) {
        let Some(log) = self.log.as_ref() else { return };
        let generations = log.generations();
        let now = now();
        let [oldest, _, ..] = generations.as_slice() else { return };
        if oldest.newest.is_some_and(|newest| now.since(newest) < self.limits.retention_ms) {
            return;
        }
        match self.outbox.needed_in_oldest_generation() {
            None => {}
            Some(0) => {
                let first = oldest.first;
                if self.with_log(|log, _| log.drop_oldest_generation()).is_ok() {
                    self.outbox.drop_oldest_generation();
                    tracing::info!(generation = %first, "a generation past its retention was deleted");
                }
            }
            Some(count) if count <= CARRY_AT_MOST && !self.is_carrying => self.start_carrying(),
            Some(_) => {}
        }
    }

    /// Reads the stragglers on a thread of its own, so that commits go on, and appends copies of them.
    fn start_carrying(&mut self) {
        let (stragglers, reader) = (self.outbox.stragglers(), Arc::clone(&self.reader));
        let anchors: BTreeMap<LaneKey, Option<Seq>> =
            self.outbox.lanes().map(|(key, lane)| (key, lane.anchor_for(lane.cursor()))).collect();
        let Some(commands) = self.own.upgrade() else { return };
        let carry = move || {
            match collect_stragglers(reader.as_ref(), &stragglers, &anchors) {
                Ok(carried) => {
                    for events in carried.chunks(COMMIT_EVENTS / 4) {
                        let (reply, _) = oneshot::channel();
                        let events: Vec<Event> = events.to_vec();
                        let bytes = events.iter().map(size_of_event).sum();
                        let append = Append { events, bytes, is_accept: false, reply, _place: None };
                        if commands.blocking_send(Command::Append(append)).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "stragglers could not be carried forward; their generation stays"),
            }
            // The committer is gone: nothing to tell.
            let _ = commands.blocking_send(Command::CarriedForward);
        };
        self.is_carrying = std::thread::Builder::new().name("carrier".into()).spawn(carry).is_ok();
    }

    fn full(&self) -> Option<String> {
        let space = self.log.as_ref()?.space();
        if space.used >= self.limits.max_size {
            return Some(format!(
                "it takes {} bytes and `store.max_size` is {}; reports are accepted again when deliveries have made room",
                space.used, self.limits.max_size
            ));
        }
        if space.free < FREE_SPACE_FLOOR {
            return Some(format!(
                "only {} bytes are free on its disk and {FREE_SPACE_FLOOR} are kept for outcomes; free some space, and reports are accepted again",
                space.free
            ));
        }
        None
    }

    fn publish_progress(&mut self) {
        let space = self.log.as_ref().map(|log| log.space()).unwrap_or_default();
        let full = self.full();
        self.metrics.tidings_store_bytes.set(i64::try_from(space.used).unwrap_or(i64::MAX));
        self.metrics.tidings_store_full.set(i64::from(full.is_some()));
        let outbox = &self.outbox;
        self.publish.send_modify(|progress| {
            if progress.full.is_some() != full.is_some() {
                match &full {
                    Some(reason) => tracing::warn!(reason, "the store is full: reports are refused, deliveries go on"),
                    None => tracing::info!("the store has room again: reports are accepted"),
                }
            }
            progress.committed = Seq(outbox.next().0 - 1);
            progress.space = space;
            progress.full = full;
            progress.replays = outbox.replays().len();
            for (name, connection) in outbox.connections() {
                let books = match progress.connections.get_mut(name) {
                    Some(books) => books,
                    None => progress.connections.entry(name.clone()).or_default(),
                };
                books.totals = connection.totals;
                books.lanes.clear();
                books.lanes.extend(connection.lanes.iter().map(|(number, lane)| (*number, lane.pending())));
                books.oldest_pending_at = connection.lanes.values().filter_map(|lane| lane.oldest_pending_at()).min();
            }
        });
    }

    fn close(&mut self, reply: Option<oneshot::Sender<Result<(), CommitError>>>) {
        self.inbox.close();
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Append(append) = command {
                self.refuse(append, CommitError::Stopped);
            }
        }
        let checkpoint = encode_checkpoint(&self.outbox);
        let result = match self.log.take() {
            Some(log) => catch_unwind(AssertUnwindSafe(|| log.close(&checkpoint)))
                .unwrap_or_else(|_| Err(AppendError::Io("the store panicked at its close".into())))
                .map_err(CommitError::from),
            None => Err(CommitError::Stopped),
        };
        if let Some(reply) = reply {
            let _ = reply.send(result);
        }
    }
}

/// Finds what is to be carried: reads the sends that are found by counting, and looks up the others.
fn collect_stragglers(
    reader: &dyn LogReader,
    stragglers: &[Straggler],
    anchors: &BTreeMap<LaneKey, Option<Seq>>,
) -> Result<Vec<Event>, ReadError> {
    let mut carried = Vec::new();
    let mut wanted: BTreeMap<&LaneKey, Vec<SendNo>> = BTreeMap::new();
    for straggler in stragglers {
        match straggler.known {
            Some((id, located)) => {
                let page = reader.page(located)?.ok_or(ReadError::Gone(located))?;
                let (accepted, history) = match page.get(located) {
                    Some(Event::Accepted(accepted)) => (accepted.as_ref().clone(), Vec::new()),
                    Some(Event::Carried(carried)) => (carried.accepted.clone(), carried.history.clone()),
                    _ => return Err(ReadError::Damaged { seq: located, what: "a delivery should be here".into() }),
                };
                carried.push(Event::Carried(Box::new(Carried { id, send: straggler.send, accepted, history })));
            }
            None => wanted.entry(&straggler.lane).or_default().push(straggler.send),
        }
    }
    for (lane, mut sends) in wanted {
        sends.sort_unstable();
        let mut at = anchors.get(lane).copied().flatten().unwrap_or(Seq::FIRST);
        let mut sends = sends.into_iter().peekable();
        while let Some(wanted) = sends.peek() {
            let page = reader.page(at)?.ok_or(ReadError::Damaged { seq: at, what: format!("send {wanted} of lane {lane} is missing") })?;
            for (send, seq, accepted) in sends_of(&page, lane) {
                if sends.next_if_eq(&send).is_some() {
                    carried.push(Event::Carried(Box::new(Carried { id: seq, send, accepted: accepted.clone(), history: Vec::new() })));
                }
            }
            at = page.last().next();
        }
    }
    Ok(carried)
}

/// The accepted deliveries of one lane in a page, with their send numbers and positions.
pub fn sends_of<'a>(page: &'a Page, lane: &'a LaneKey) -> impl Iterator<Item = (SendNo, Seq, &'a crate::core::event::Accepted)> {
    let mut next = page.sends.iter().find(|(key, _)| key == lane).map(|(_, send)| *send);
    page.events.iter().enumerate().filter_map(move |(offset, event)| {
        let send = next?;
        match event {
            Event::Accepted(accepted) if accepted.lane == *lane => {
                next = Some(send.next());
                Some((send, Seq(page.first.0 + offset as u64), accepted.as_ref()))
            }
            Event::Resent { delivery, .. } if delivery.lane == *lane => {
                next = Some(send.next());
                None
            }
            _ => None,
        }
    })
}

fn note_send(sends: &mut BTreeMap<LaneKey, SendNo>, outbox: &Outbox, lane: &LaneKey) {
    if !sends.contains_key(lane) {
        sends.insert(lane.clone(), outbox.next_send(lane));
    }
}

fn dedupe_of(events: &[Event]) -> Option<crate::core::event::Dedupe> {
    match events.first() {
        Some(Event::Accepted(accepted)) => accepted.dedupe,
        _ => None,
    }
}

fn known_request(outbox: &Outbox, events: &[Event]) -> Option<Request> {
    outbox.request(dedupe_of(events)?.key).copied()
}

/// About what an event takes in memory and in a page, in bytes.
fn size_of_event(event: &Event) -> usize {
    /// Strings and numbers of a delivery, without its payload.
    const OVERHEAD: usize = 256;
    match event {
        Event::Accepted(accepted) => OVERHEAD + accepted.payload.len(),
        Event::Carried(carried) => OVERHEAD + carried.accepted.payload.len(),
        _ => OVERHEAD,
    }
}

/// The wall clock.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
