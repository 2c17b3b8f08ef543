//! The committer: one thread that owns the log and the outbox.
//!
//! ```text
//!   append() ─▶ channel ─▶ take one, then all that waits (≤ 1,024 events, ≤ 4 MiB)
//!                           ├─ refuse: store full · request known · does not fit
//!                           ├─ hold: an outcome that there is no room for                  (space)
//!                           ├─ fold into the outbox
//!                           ├─ append to the log: durable ── fails ─▶ answer everyone, stop for good
//!                           └─ publish the progress, answer every waiter with Committed
//! ```
//!
//! Where other instances append to the same log, the append can be overtaken, and the batch is admitted anew: see `shared`.
//!
//! No producer waits for a timer: while one commit syncs, the next forms (`overlap`). Releases alone wait a moment for more of them (`pause`). A request is never
//! torn: its events are in one commit.
//!
//! [`Committed`] is the proof that what it holds is durable. Only the committer can make one; what may leave the process (an accept, a
//! PUBLISH, a PUBREL) is written to take it, so "published before durable" does not compile.

mod answer;
mod handle;
mod history;
mod overlap;
mod pause;
mod pin;
mod proof;
mod recover;
mod retain;
mod shared;
mod space;
mod stepped;
mod woken;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

pub use answer::{Appended, Books, CommitError, Progress};
use handle::{Append, Busy, Command, QUEUE_BYTES, QUEUE_REQUESTS, Reply, size_of_event};
pub use handle::{LogHandle, Queue, Ticket};
use overlap::{InFlight, Seen};
use pause::Before;
pub use pin::{BACKUP_HOLDS, Begun};
pub use proof::Committed;
pub use recover::{RecoverError, decode_checkpoint, encode_checkpoint, recover};
pub use shared::{start_shared, stepped_shared};
use space::Held;
pub use stepped::{Stepped, stepped};
use woken::Waiters;

use super::sizes::Sizes;
use super::{AppendError, EventLog, LogReader, Urgency, codec};
use crate::core::event::{Dedupe, Event, Source};
use crate::core::outbox::{Outbox, Request};
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
use crate::failpoint::{self, Point};
use crate::metrics::Metrics;

/// A commit takes no further request once it has so many events: bounds the time until the first waiter is answered.
const COMMIT_EVENTS: usize = 1_024;

/// A commit takes no further request once it has so many bytes.
const COMMIT_BYTES: usize = 4 << 20;

/// Housekeeping: witness, retention, space.
const TICK: Duration = Duration::from_secs(1);

/// Where there was no room for a new generation, so long none is tried: the one that is full grows meanwhile.
const ROLL_AGAIN: Duration = Duration::from_secs(5);

/// The largest event that is handed to the log, in bytes: what its codec takes.
const LARGEST_EVENT: usize = codec::MAX_EVENT;

/// Limits that the operator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Accepts are refused when the store takes more than this, in bytes.
    pub max_size: u64,
    /// Generations older than this are dropped once nothing in them is needed, in milliseconds.
    pub retention_ms: u64,
}

/// Starts the committer's thread.
///
/// # Errors
/// [`RecoverError::Thread`] if the system gives no thread.
pub fn start(log: Box<dyn EventLog>, outbox: Outbox, limits: Limits, metrics: Arc<Metrics>) -> Result<LogHandle, RecoverError> {
    let (handle, committer) = build(log, outbox, limits, metrics);
    run_on_a_thread(committer)?;
    Ok(handle)
}

fn run_on_a_thread(mut committer: Committer) -> Result<(), RecoverError> {
    let runtime = tokio::runtime::Handle::current();
    committer.waiters = Waiters::within(&runtime);
    std::thread::Builder::new()
        .name("committer".into())
        .spawn(move || committer.run(&runtime))
        .map(drop)
        .map_err(|error| RecoverError::Thread(error.to_string()))
}

fn build(log: Box<dyn EventLog>, outbox: Outbox, limits: Limits, metrics: Arc<Metrics>) -> (LogHandle, Committer) {
    let (commands, inbox) = mpsc::channel(QUEUE_REQUESTS);
    let busy = Arc::new(Busy::default());
    let (reader, store_id, sizes, is_shared, peers) = (log.reader(), log.store_id(), log.sizes(), log.is_shared(), log.peers());
    let (publish, progress) = watch::channel(Progress::default());
    let handle = LogHandle {
        commands,
        places: Arc::new(Semaphore::new(QUEUE_BYTES)),
        progress,
        reader,
        busy: Arc::clone(&busy),
        store_id,
        is_shared,
        peers,
    };
    let mut committer = Committer {
        log: Some(log),
        outbox,
        limits,
        sizes,
        awaited: 0,
        held: Held::default(),
        next_up: None,
        forming: Batch::default(),
        in_flight: None,
        before: None,
        roll_again: None,
        metrics,
        publish,
        busy,
        inbox,
        own: handle.commands.downgrade(),
        is_carrying: false,
        carry_again: None,
        pin: None,
        too_heavy: None,
        shared: None,
        reader: Arc::clone(&handle.reader),
        waiters: Waiters::default(),
    };
    committer.count_awaited();
    committer.publish_progress();
    (handle, committer)
}

struct Committer {
    /// None once it has failed or been closed.
    log: Option<Box<dyn EventLog>>,
    outbox: Outbox,
    limits: Limits,
    sizes: Sizes,
    /// Deliveries that wait for their outcome in the oldest generation, as of the last tick.
    awaited: u64,
    /// Outcomes that there is no room for.
    held: Held,
    /// What did not fit the last commit, and comes before all that waits in the channel.
    next_up: Option<Command>,
    /// The next commit. Its events are in the outbox already.
    forming: Batch,
    /// A commit that is on its way to the disk.
    in_flight: Option<InFlight>,
    /// The last commit.
    before: Option<Before>,
    /// Not before this time is a new generation tried again.
    roll_again: Option<Instant>,
    metrics: Arc<Metrics>,
    publish: watch::Sender<Progress>,
    busy: Arc<Busy>,
    inbox: mpsc::Receiver<Command>,
    own: mpsc::WeakSender<Command>,
    is_carrying: bool,
    /// Not before this time is carrying tried again.
    carry_again: Option<Instant>,
    /// A backup that copies what stands still.
    pin: Option<pin::Pin>,
    /// What was too much to be carried.
    too_heavy: Option<retain::TooHeavy>,
    /// Where other instances append to the log as well.
    shared: Option<Box<shared::Shared>>,
    reader: Arc<dyn LogReader>,
    /// Those of commits that are durable.
    waiters: Waiters,
}

/// What one commit is made of.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    bytes: usize,
    waiters: Vec<(Reply, Appended)>,
    /// The next send number of each lane that has a send in the batch, before the batch.
    sends: BTreeMap<LaneKey, SendNo>,
    /// The log has room for so many bytes.
    room: usize,
    /// Why reports are refused, once it was asked: the disk is looked at once a commit, not once a report.
    full: Option<Option<String>>,
    places: Vec<OwnedSemaphorePermit>,
    /// So many of the events are in the log's hands already.
    prepared: usize,
    /// Where the log is shared: each waiter's request, to be admitted anew.
    again: Vec<shared::Again>,
}

impl Batch {
    /// Whether it takes no further request.
    fn is_full(&self) -> bool {
        self.events.len() >= COMMIT_EVENTS || self.bytes >= COMMIT_BYTES
    }

    /// The next send number of a lane before the batch.
    fn next_send(&self, lane: &LaneKey) -> SendNo {
        self.sends.get(lane).copied().unwrap_or_default()
    }
}

impl Committer {
    /// Takes one command, and all that waits behind it. Returns `Some` when it is to stop.
    fn take(&mut self, first: Command) -> Option<Option<oneshot::Sender<Result<(), CommitError>>>> {
        self.end_doubt();
        let after = self.gather(first);
        match after.is_some() || self.next_up.is_some() {
            true => self.settle(),
            false if self.in_flight.is_none() => self.begin(),
            false => {}
        }
        match after {
            Some(Command::Stop(reply)) => return Some(Some(reply)),
            Some(command @ Command::AskInOrder(_)) if !self.held.is_empty() => self.hold(command),
            Some(command) => self.answer(command),
            None => {}
        }
        None
    }

    /// Takes appends into the commit that is forming, until nothing waits or it is full. Returns what ends the gathering.
    fn gather(&mut self, first: Command) -> Option<Command> {
        let mut batch = std::mem::take(&mut self.forming);
        let mut next = Some(first);
        let mut after = None;
        while let Some(command) = next {
            match command {
                Command::Append(append) => {
                    self.next_up = self.place(append, &mut batch);
                    if self.next_up.is_some() {
                        break;
                    }
                    self.prepare(&mut batch);
                }
                // Everything else sees the outbox as of a commit, so it ends the gathering.
                other => {
                    after = Some(other);
                    break;
                }
            }
            if batch.is_full() || self.in_flight.as_mut().is_some_and(InFlight::is_written) {
                break;
            }
            next = self.inbox.try_recv().ok().or_else(|| self.let_others_on(&batch));
        }
        self.forming = batch;
        after
    }

    /// Where the processors are busy, whoever is about to append stands behind this thread: let them come first, for as long as that brings something.
    /// A commit costs much the same whatever is in it. Where a processor is free this takes no time.
    fn let_others_on(&mut self, batch: &Batch) -> Option<Command> {
        if self.in_flight.is_some() {
            return None;
        }
        std::thread::yield_now();
        self.inbox.try_recv().ok().or_else(|| self.pause(batch))
    }

    /// Answers what is no append, as of the last commit.
    fn answer(&mut self, command: Command) {
        if matches!(command, Command::AskLatest(_) | Command::AskInOrder(_)) {
            self.follow();
        }
        match command {
            // After a failure the outbox may be ahead of the disk: nothing is proven by it.
            Command::Ask(question) | Command::AskLatest(question) | Command::AskInOrder(question) if self.log.is_some() => {
                question(&self.outbox)
            }
            Command::Ask(_) | Command::AskLatest(_) | Command::AskInOrder(_) => {}
            Command::CarriedForward { weight } => self.carried_forward(weight),
            Command::Limit(limits) => {
                self.limits = limits;
                self.publish_progress();
            }
            Command::Follow => self.follow(),
            Command::Backup(ask, reply) => {
                // A command that went away is not answered; its hold ends by itself.
                let _ = reply.send(self.backup(ask));
            }
            Command::AdoptCopy(reply) => {
                let result = self.with_log(|log, _| log.adopt_copy());
                let _ = reply.send(result);
            }
            Command::Append(append) => self.refuse(append, CommitError::Stopped),
            // Taken where the loop ends.
            Command::Stop(reply) => _ = reply.send(Err(CommitError::Stopped)),
        }
    }

    fn refuse(&self, append: Append, error: CommitError) {
        // A producer that went away needs no answer.
        let _ = append.reply.send(Err(error));
    }

    /// Folds a request into the batch, or refuses it. Gives it back if there is no room for it, or if what others have appended is to be read first.
    fn admit(&mut self, append: Append, batch: &mut Batch) -> Result<(), Append> {
        if self.log.is_none() {
            self.refuse(append, CommitError::Stopped);
            return Ok(());
        }
        let again = self.shared.is_some().then(|| shared::Again::of(&append));
        if let Some(known) = known_request(&self.outbox, &append.events) {
            let same_body = dedupe_of(&append.events).is_some_and(|(dedupe, _)| dedupe.body == known.body);
            match same_body {
                // Answered after the commit: the first request may be in this very batch.
                true => {
                    batch.waiters.push((append.reply, Appended::Known(known)));
                    batch.again.extend(again);
                }
                false if !self.may_refuse(append.handed_in) => return Err(append),
                false => self.refuse(append, CommitError::Conflict),
            }
            return Ok(());
        }
        if append.is_accept
            && let Some(reason) = self.full_for(batch)
        {
            self.refuse(append, CommitError::Full(reason));
            return Ok(());
        }
        // The log would fail for good, and everybody with it.
        let largest = || append.events.iter().map(size_of_event).find(|size| *size > LARGEST_EVENT);
        if append.bytes > LARGEST_EVENT
            && let Some(size) = largest()
        {
            self.refuse(append, AppendError::TooLarge { size, limit: LARGEST_EVENT }.into());
            return Ok(());
        }
        let urgency = if append.is_accept { Urgency::CanBeRefused } else { Urgency::LastResort };
        if !append.events.is_empty() && !self.has_room(batch, append.bytes, urgency) {
            if self.log.is_none() {
                self.refuse(append, CommitError::Stopped);
                return Ok(());
            }
            return Err(append);
        }
        if let Some(error) = self.does_not_fit(&append.events) {
            if !self.may_refuse(append.handed_in) {
                return Err(append);
            }
            match &error {
                CommitError::DoesNotFit(error) => {
                    tracing::error!(%error, "events that do not fit the log were not appended: a fault in Tidings");
                }
                error => tracing::info!(%error, "refused what another instance has changed, or has to say"),
            }
            self.refuse(append, error);
            return Ok(());
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
            if let Err(error) = self.outbox.apply(event) {
                // The events of one request contradict each other. The outbox is ahead of the disk now, so only a restart makes it whole.
                self.fail(&format!("a fault in Tidings: {error}"));
                self.refuse(append, error.into());
                return Ok(());
            }
        }
        batch.bytes += append.bytes;
        batch.waiters.push((append.reply, Appended::New { first, last: Seq(self.outbox.next().0 - 1), resent }));
        batch.again.extend(again);
        batch.events.extend(append.events);
        batch.places.extend(append.place);
        Ok(())
    }

    /// Why these may not be appended behind what the outbox holds.
    fn does_not_fit(&self, events: &[Event]) -> Option<CommitError> {
        self.not_its_own(events).or_else(|| {
            let error = events.iter().find_map(|event| self.outbox.check(event).err())?;
            Some(match self.shared.is_some() {
                true => CommitError::ChangedMeanwhile(error),
                false => CommitError::DoesNotFit(error),
            })
        })
    }

    /// Makes the batch durable, and answers.
    fn commit(&mut self, batch: Batch) {
        if batch.waiters.is_empty() {
            return;
        }
        if self.shared.is_some() {
            return self.commit_shared(batch);
        }
        let result = match batch.events.is_empty() {
            // What is known from a commit that has failed since is not.
            true => self.log.as_ref().map(|_| ()).ok_or(CommitError::Stopped),
            false => self.write(&batch),
        };
        self.conclude(batch, result, None);
    }

    /// Publishes what has become durable, and answers.
    fn conclude(&mut self, batch: Batch, result: Result<(), CommitError>, seen: Option<Seen>) {
        match result {
            Ok(()) => {
                failpoint::reach(Point::BeforeAnswer);
                self.publish(seen);
                self.waiters.answer(batch.waiters);
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
        let result = self.with_log(|log, outbox| {
            let last = log.append(&batch.events, &|lane| batch.next_send(lane))?;
            assert_eq!(last.next(), outbox.next(), "log and outbox count the same events");
            Ok(())
        });
        self.count_commit(started, batch);
        result
    }

    fn count_commit(&mut self, started: Instant, batch: &Batch) {
        let took = started.elapsed();
        self.before = Some(Before::of(&batch.events, started + took, took, self.before.take()));
        self.metrics.tidings_commit_seconds.observe(took.as_secs_f64());
        self.metrics.tidings_commit_events.observe(batch.events.len() as f64);
        self.busy.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs something on the log. The first failure is final: the outbox may be ahead of the disk, so the process has to restart.
    fn with_log<T>(&mut self, act: impl FnOnce(&mut dyn EventLog, &Outbox) -> Result<T, AppendError>) -> Result<T, CommitError> {
        let Some(log) = self.log.as_mut() else { return Err(CommitError::Stopped) };
        let outbox = &self.outbox;
        let result = catch_unwind(AssertUnwindSafe(|| act(log.as_mut(), outbox)))
            .unwrap_or_else(|_| Err(AppendError::Io("the store panicked; its message is in the log".into())));
        result.map_err(|error| {
            // Where that is possible, it is no failure: nothing has happened.
            if !matches!(error, AppendError::Overtaken) {
                self.fail(&error.to_string());
            }
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
        let Some(log) = &self.log else { return };
        // A generation begins where the log ends: not while the outbox holds what forms behind a commit.
        let is_due = log.is_generation_full() && log.next_seq() == self.outbox.next();
        if is_due && self.roll_again.is_none_or(|at| at <= Instant::now()) {
            self.begin_generation();
            // What is past its retention, or has to make room, does so as fast as the store grows.
            self.retain();
        }
    }

    fn begin_generation(&mut self) {
        if self.shared.is_some() {
            return self.begin_generation_for_all();
        }
        // The checkpoint also says where the new generation begins, lane by lane.
        let marks = self.outbox.lanes().map(|(key, _)| key.connection.as_str().len() + 16).sum::<usize>();
        let bound = encode_checkpoint(&self.outbox).len() + marks + 64;
        match self.with_log(|log, _| log.make_room_to_begin(bound as u64)) {
            Ok(true) => self.roll_again = None,
            Ok(false) => {
                self.roll_again = Some(Instant::now() + ROLL_AGAIN);
                return;
            }
            // It is published.
            Err(_) => return,
        }
        self.outbox.begin_generation();
        let checkpoint = encode_checkpoint(&self.outbox);
        // A failure is published and stops the service; what was answered before is durable.
        let _ = self.with_log(|log, _| log.begin_generation(&checkpoint));
    }

    /// A start is to take as long whatever is pending, and wherever in a generation the log was when it was stopped.
    fn shorten_the_next_start(&mut self) {
        if self.shared.is_none() && self.log.as_ref().is_some_and(|log| log.is_long_to_read()) {
            self.begin_generation();
        }
    }

    fn tick(&mut self) {
        self.follow();
        if self.with_log(|log, _| log.tick()).is_ok() {
            self.try_held();
            match self.shared.is_some() {
                true => self.lead(),
                false => self.retain(),
            }
            self.count_awaited();
            self.publish_progress();
        }
    }

    fn publish_progress(&mut self) {
        self.publish(None);
    }

    /// Says how far the log is: as `seen` when that commit was begun, or else as the outbox is, unless that is ahead of the log.
    fn publish(&mut self, seen: Option<Seen>) {
        let is_durable = self.log.as_ref().is_some_and(|log| log.next_seq() == self.outbox.next());
        let space = self.log.as_ref().map(|log| log.space()).unwrap_or_default();
        let (full, reserved) = (self.full_with(space), self.reserve());
        self.metrics.tidings_store_bytes.set(i64::try_from(space.used).unwrap_or(i64::MAX));
        self.metrics.tidings_store_max_bytes.set(i64::try_from(self.limits.max_size).unwrap_or(i64::MAX));
        self.metrics.tidings_store_full.set(i64::from(full.is_some()));
        self.metrics.tidings_store_reserved_bytes.set(i64::try_from(reserved).unwrap_or(i64::MAX));
        self.metrics.tidings_store_free_bytes.set(i64::try_from(space.free).unwrap_or(i64::MAX));
        self.metrics.tidings_store_ballast_bytes.set(i64::try_from(space.ballast).unwrap_or(i64::MAX));
        self.metrics.tidings_store_held_outcomes.set(i64::try_from(self.held.len()).unwrap_or(i64::MAX));
        let (outbox, limits) = (&self.outbox, self.limits);
        // A tick at which nothing has happened wakes nobody.
        self.publish.send_if_modified(|progress| {
            let told = |progress: &Progress| (progress.committed, progress.full.is_some(), progress.held, progress.limits);
            let before = told(progress);
            if (progress.held > 0) == self.held.is_empty() {
                match progress.held {
                    0 => tracing::error!("there is no room for outcomes of deliveries: deliveries pause until there is"),
                    _ => tracing::info!("there is room for outcomes again: deliveries go on"),
                }
            }
            if progress.full.is_some() != full.is_some() {
                progress.full_since = full.is_some().then(now);
                match &full {
                    Some(reason) => tracing::warn!(reason, "the store is full: reports are refused, deliveries go on"),
                    None => tracing::info!("the store has room again: reports are accepted"),
                }
            }
            progress.space = space;
            progress.limits = limits;
            progress.reserved = reserved;
            progress.full = full;
            progress.held = self.held.len();
            match seen {
                Some(seen) => seen.show(progress),
                None if is_durable => overlap::look(outbox, progress),
                None => {}
            }
            told(progress) != before
        });
    }

    fn close(&mut self, reply: Option<oneshot::Sender<Result<(), CommitError>>>) {
        self.try_held();
        let held: Vec<Command> = self.held.drain().chain(self.next_up.take()).collect();
        held.into_iter().for_each(|command| {
            if let Command::Append(append) = command {
                self.refuse(append, CommitError::Stopped)
            }
        });
        self.inbox.close();
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Append(append) = command {
                self.refuse(append, CommitError::Stopped);
            }
        }
        self.shorten_the_next_start();
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

fn note_send(sends: &mut BTreeMap<LaneKey, SendNo>, outbox: &Outbox, lane: &LaneKey) {
    if !sends.contains_key(lane) {
        sends.insert(lane.clone(), outbox.next_send(lane));
    }
}

/// What a request is recognised by, and when it came.
fn dedupe_of(events: &[Event]) -> Option<(Dedupe, Millis)> {
    match events.first() {
        // What came over MQTT has been looked up by its listener.
        Some(Event::Accepted(accepted)) => accepted.dedupe.filter(|_| accepted.source == Source::Http).map(|dedupe| (dedupe, accepted.at)),
        _ => None,
    }
}

fn known_request(outbox: &Outbox, events: &[Event]) -> Option<Request> {
    let (dedupe, at) = dedupe_of(events)?;
    outbox.request(dedupe.key, at).copied()
}

/// The wall clock.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
