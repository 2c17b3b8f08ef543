//! The way to the committer, for every room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::Limits;
use super::answer::{Appended, CommitError, Progress};
use super::pin;
use super::proof::Committed;
use crate::core::event::{Accepted, Event};
use crate::core::outbox::Outbox;
use crate::core::types::{Millis, Seq};
use crate::log::{AnyPage, Glimpse, LogReader, Page, Peers, ReadError, StoreId};

/// So many requests wait in the channel at most; further ones wait outside, with a limit.
pub(super) const QUEUE_REQUESTS: usize = 4_096;

/// So many bytes of reports wait for a commit at most. Twice what one NDJSON body may be at its largest setting, fan-out apart.
pub(super) const QUEUE_BYTES: usize = 128 << 20;

/// A producer waits so long for a place in the queue before it is told to come back.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(5);

/// On a shared log, once it has a place, so long for its turn: an election of the servers mostly takes less.
const TURN_PATIENCE: Duration = Duration::from_secs(10);

pub(super) type Reply = oneshot::Sender<Result<Committed<Appended>, CommitError>>;

type Question = Box<dyn FnOnce(&Outbox) + Send>;

pub(super) enum Command {
    Append(Append),
    Ask(Question),
    /// As `Ask`, and on a shared log as of everything that others had appended by then.
    AskLatest(Question),
    /// As `AskLatest`, and behind everything that was handed in before, also where that waits for room.
    AskInOrder(Question),
    CarriedForward {
        /// What there was to carry, in bytes, if that was too much.
        weight: Option<u64>,
    },
    Backup(pin::Ask, oneshot::Sender<Result<Option<pin::Begun>, CommitError>>),
    AdoptCopy(oneshot::Sender<Result<(), CommitError>>),
    Limit(Limits),
    /// Others have appended to a shared log.
    Follow,
    Stop(oneshot::Sender<Result<(), CommitError>>),
}

pub(super) struct Append {
    pub(super) events: Vec<Event>,
    pub(super) bytes: usize,
    /// Reports are refused when the store is full; outcomes never are.
    pub(super) is_accept: bool,
    pub(super) reply: Reply,
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) handed_in: Instant,
    /// If it may be withdrawn as long as no commit has begun with it.
    pub(super) claim: Option<Claim>,
}

/// Who comes first with a request: the committer, or the producer that waits no longer and is told that nothing of it was accepted.
#[derive(Debug, Clone, Default)]
pub(super) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// Whether it is the first.
    pub(super) fn is_first(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// The way to the committer, for every room. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) places: Arc<Semaphore>,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) reader: Arc<dyn LogReader>,
    pub(super) busy: Arc<Busy>,
    pub(super) store_id: StoreId,
    /// The log is on other machines.
    pub(super) is_shared: bool,
    pub(super) peers: Option<Arc<dyn Peers>>,
}

/// What waits for the committer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Requests in its channel.
    pub requests: usize,
    /// Bytes of reports in the channel, and in the commit that is under way.
    pub bytes: usize,
    /// Outcomes that wait for room on the disk.
    pub held: usize,
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
pub(super) struct Busy {
    pub(super) since: Mutex<Option<Instant>>,
    pub(super) commits: AtomicU64,
}

impl LogHandle {
    /// Appends the deliveries of one request. All of them become durable, or none.
    ///
    /// # Errors
    /// [`CommitError::Full`], [`CommitError::Conflict`], [`CommitError::Overloaded`] and [`CommitError::Stopped`] are the producer's to handle. On a
    /// shared log [`CommitError::LanesChanged`] as well.
    pub async fn accept(&self, events: Vec<Event>) -> Result<Committed<Appended>, CommitError> {
        // Servers that don't answer may do so for minutes: what is in the queue already waits for them, and more would only wait longer.
        if self.is_shared && self.busy_for().is_some_and(|busy| busy >= ACCEPT_PATIENCE) {
            return Err(CommitError::Overloaded);
        }
        let bytes: usize = events.iter().map(size_of_event).sum();
        let wanted = u32::try_from(bytes.min(QUEUE_BYTES)).expect("the queue's bound fits 32 bits");
        let place = self.place(wanted).await?;
        let (reply, mut answer) = oneshot::channel();
        let (handed_in, claim) = (Instant::now(), self.is_shared.then(Claim::default));
        let append = Append { events, bytes, is_accept: true, reply, place: Some(place), handed_in, claim: claim.clone() };
        self.hand_in(Command::Append(append)).await?;
        if let Some(claim) = claim {
            match Box::pin(timeout(TURN_PATIENCE, &mut answer)).await {
                Ok(answer) => return answer.unwrap_or(Err(CommitError::Stopped)),
                Err(_) if claim.is_first() => return Err(CommitError::Overloaded),
                // It is in a commit that is under way: what becomes of it is not known yet.
                Err(_) => {}
            }
        }
        answer.await.unwrap_or(Err(CommitError::Stopped))
    }

    /// Room for so many bytes. As a rule there is some, and then no timer is made.
    async fn place(&self, bytes: u32) -> Result<OwnedSemaphorePermit, CommitError> {
        match Arc::clone(&self.places).try_acquire_many_owned(bytes) {
            Ok(place) => return Ok(place),
            Err(TryAcquireError::Closed) => return Err(CommitError::Stopped),
            Err(TryAcquireError::NoPermits) => {}
        }
        // In a box of its own, as below: a timer is aligned so widely that whatever holds one inside is expensive to make.
        let place = Box::pin(timeout(ACCEPT_PATIENCE, Arc::clone(&self.places).acquire_many_owned(bytes))).await;
        place.map_err(|_| CommitError::Overloaded)?.map_err(|_| CommitError::Stopped)
    }

    /// Gives a producer's append to the committer; the same is true of the channel.
    async fn hand_in(&self, append: Command) -> Result<(), CommitError> {
        let append = match self.commands.try_send(append) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(CommitError::Stopped),
            Err(TrySendError::Full(append)) => append,
        };
        let handed_in = Box::pin(timeout(ACCEPT_PATIENCE, self.commands.send(append))).await;
        handed_in.map_err(|_| CommitError::Overloaded)?.map_err(|_| CommitError::Stopped)
    }

    /// Appends outcomes and other events of Tidings' own making. Goes on when the store is full, in the reserve kept for them.
    ///
    /// # Errors
    /// [`CommitError::Stopped`], [`CommitError::DoesNotFit`] and [`CommitError::Store`]; the last is fatal. On a shared log
    /// [`CommitError::NotOwner`], [`CommitError::ChangedMeanwhile`] and [`CommitError::LanesChanged`] as well.
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
        let append = Append { events, bytes, is_accept: false, reply, place: None, handed_in: Instant::now(), claim: None };
        self.commands.send(Command::Append(append)).await.map_err(|_| CommitError::Stopped)?;
        Ok(Ticket(answer))
    }

    /// Asks the outbox something. The answer is as of the last commit, and durable. On a shared log it may be a moment old.
    ///
    /// # Errors
    /// [`CommitError::Stopped`] if the committer has stopped.
    pub async fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Outbox) -> T + Send + 'static) -> Result<Committed<T>, CommitError> {
        self.question(Command::Ask, question).await
    }

    /// As [`LogHandle::ask`], but on a shared log the answer holds all that any instance had committed when this was asked. If the servers
    /// don't answer, it holds what is known here.
    ///
    /// # Errors
    /// As [`LogHandle::ask`].
    pub async fn ask_latest<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Outbox) -> T + Send + 'static,
    ) -> Result<Committed<T>, CommitError> {
        self.question(Command::AskLatest, question).await
    }

    /// As [`LogHandle::ask_latest`], but the answer also holds everything that was handed in before. On a disk that is full to the last byte it
    /// comes when there is room again.
    ///
    /// # Errors
    /// As [`LogHandle::ask`].
    pub async fn ask_in_order<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Outbox) -> T + Send + 'static,
    ) -> Result<Committed<T>, CommitError> {
        self.question(Command::AskInOrder, question).await
    }

    async fn question<T: Send + 'static>(
        &self,
        command: fn(Question) -> Command,
        question: impl FnOnce(&Outbox) -> T + Send + 'static,
    ) -> Result<Committed<T>, CommitError> {
        let (reply, answer) = oneshot::channel();
        let ask = Box::new(move |outbox: &Outbox| {
            // Nobody waits any more: the answer is not needed.
            let _ = reply.send(Committed(question(outbox)));
        });
        self.commands.send(command(ask)).await.map_err(|_| CommitError::Stopped)?;
        answer.await.map_err(|_| CommitError::Stopped)
    }

    /// What waits for the committer now.
    pub fn queue(&self) -> Queue {
        Queue {
            requests: self.commands.max_capacity() - self.commands.capacity(),
            bytes: QUEUE_BYTES - self.places.available_permits().min(QUEUE_BYTES),
            held: self.progress.borrow().held,
        }
    }

    /// The page that holds `seq`, or none if that is not durable yet. Blocks on the disk: call it where that is allowed.
    ///
    /// # Errors
    /// See [`LogReader::page`].
    pub fn page(&self, seq: Seq) -> Result<Option<Committed<Arc<Page>>>, ReadError> {
        Ok(self.reader.page(seq)?.map(Committed))
    }

    /// As [`LogHandle::page`], in the form that lanes read.
    ///
    /// # Errors
    /// See [`LogReader::page`].
    pub fn any_page(&self, seq: Seq) -> Result<Option<Committed<AnyPage>>, ReadError> {
        Ok(self.reader.any_page(seq)?.map(Committed))
    }

    /// Whether [`LogHandle::any_page`] has the page that holds `seq` in memory, and does not block.
    pub fn is_in_memory(&self, seq: Seq) -> bool {
        self.reader.is_in_memory(seq)
    }

    /// The last position that can be read.
    pub fn durable(&self) -> Seq {
        self.reader.durable()
    }

    /// What the page that holds `seq` says about itself, or none if that is not durable yet. Blocks on the disk, as [`LogHandle::page`].
    ///
    /// # Errors
    /// See [`LogReader::page`].
    pub fn glimpse(&self, seq: Seq) -> Result<Option<Glimpse>, ReadError> {
        self.reader.glimpse(seq)
    }

    /// The generation that holds `seq`: its first event, and the time of its newest event if nothing will be added to it any more.
    pub fn generation(&self, seq: Seq) -> Option<(Seq, Option<Millis>)> {
        self.reader.generation(seq)
    }

    /// Whether other instances append to the log as well.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// What a shared log offers beside its events.
    pub fn peers(&self) -> Option<Arc<dyn Peers>> {
        self.peers.clone()
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

    /// The operator has set other limits. They hold from the next commit on.
    ///
    /// # Errors
    /// [`CommitError::Stopped`].
    pub async fn limit(&self, limits: Limits) -> Result<(), CommitError> {
        self.commands.send(Command::Limit(limits)).await.map_err(|_| CommitError::Stopped)
    }

    /// Begins a backup: everything so far stands still in generations that are kept until the backup ends, or is not renewed within
    /// [`BACKUP_HOLDS`](super::BACKUP_HOLDS). Nothing if another one is under way.
    ///
    /// # Errors
    /// [`CommitError::Stopped`] and [`CommitError::Store`].
    pub async fn begin_backup(&self) -> Result<Option<pin::Begun>, CommitError> {
        self.backup(pin::Ask::Begin).await
    }

    /// Says that a backup is still at work; false if there is no such backup any more.
    ///
    /// # Errors
    /// [`CommitError::Stopped`].
    pub async fn renew_backup(&self, id: u64) -> Result<bool, CommitError> {
        self.backup(pin::Ask::Renew(id)).await.map(|found| found.is_some())
    }

    /// Says that a backup has ended; false if there is no such backup any more.
    ///
    /// # Errors
    /// [`CommitError::Stopped`].
    pub async fn end_backup(&self, id: u64) -> Result<bool, CommitError> {
        self.backup(pin::Ask::End(id)).await.map(|found| found.is_some())
    }

    async fn backup(&self, ask: pin::Ask) -> Result<Option<pin::Begun>, CommitError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Backup(ask, reply)).await.map_err(|_| CommitError::Stopped)?;
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

/// What an event takes in memory and in a page, in bytes: a little more than it really is.
pub(super) fn size_of_event(event: &Event) -> usize {
    /// Numbers, short names, and the lengths of strings.
    const OVERHEAD: usize = 256;
    match event {
        Event::Accepted(accepted) => OVERHEAD + size_of_accepted(accepted),
        Event::Carried(carried) => {
            OVERHEAD + size_of_accepted(&carried.accepted) + carried.history.iter().map(|line| line.len() + 8).sum::<usize>()
        }
        Event::DeadLettered { reason, .. } => OVERHEAD + reason.code.len() + reason.message.len(),
        Event::Requeued { by, .. } => OVERHEAD + by.len(),
        Event::Audit { who, what, .. } => OVERHEAD + who.len() + what.len(),
        Event::ReplayStarted { by, filter, .. } => OVERHEAD + by.len() + filter.len(),
        Event::Released { sends, .. } => OVERHEAD + sends.len() * 10,
        Event::Delivered { sends, .. } | Event::Expired { sends, .. } => OVERHEAD + sends.0.len() * 20,
        Event::Discarded { sends, by, reason, .. } => OVERHEAD + sends.0.len() * 20 + by.len() + reason.len(),
        Event::Received { client, .. } | Event::ReleasedIn { client, .. } => OVERHEAD + client.len(),
        Event::SessionOpened { repeated, .. } => OVERHEAD + repeated.0.len() * 20,
        _ => OVERHEAD,
    }
}

fn size_of_accepted(accepted: &Accepted) -> usize {
    let names = [&accepted.user, &accepted.tenant, &accepted.pipeline, &accepted.action, &accepted.project, &accepted.change];
    names.iter().map(|name| name.len()).sum::<usize>() + accepted.topic.len() + accepted.payload.len() + accepted.properties.size()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{DeadReason, DeliveryRef};
    use crate::core::ranges::Ranges;
    use crate::core::types::{LaneKey, Millis, SendNo, Seq};

    #[test]
    fn an_event_counts_as_large_as_the_words_in_it() {
        let (lane, words, at) = (LaneKey { connection: "mqtt".into(), lane: 0 }, "w".repeat(10_000), Millis(1));
        let delivery = DeliveryRef { lane: lane.clone(), send: SendNo(1), id: Seq(7), located: Seq(7) };
        let reason = DeadReason { code: "refused".into(), broker_code: Some(0x87), message: words.clone() };
        let events = [
            Event::DeadLettered { delivery: delivery.clone(), reason, attempts: 1, at },
            Event::Requeued { delivery, by: words.clone(), at },
            Event::Discarded { lane, sends: Ranges::one(1), dead: true, by: String::new(), reason: words.clone(), at },
            Event::Received { client: words, packet_id: 1, at },
        ];
        for event in events {
            assert!(size_of_event(&event) >= 10_000, "{event:?}");
        }
    }
}
