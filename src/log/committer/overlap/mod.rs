//! While one commit is on its way to the disk, the next forms.
//!
//! ```text
//!   gather ─▶ begin ──┬─ small: durable at once ─────────────▶ publish, answer
//!                     └─ large: in flight ───────────────────▶ publish, answer ─▶ begin what has formed
//!                          meanwhile: gather, fold, prepare
//! ```
//! At most one commit is in flight, and one is forming behind it. The outbox is ahead of the disk by the one that is forming, so whoever needs to see it
//! (a question, the tick, a new generation, a stop) waits until all of it is durable: see [`Committer::settle`]. What is published when a commit in flight
//! has become durable was taken down when it was begun. If it fails, the log is dead, and what formed behind it is answered with a failure as well.

#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::answer::Progress;
use super::handle::Command;
use super::{Batch, Committer, TICK};
use crate::core::event::LanePurpose;
use crate::core::outbox::Outbox;
use crate::core::types::Seq;
use crate::log::Begun;

/// A commit that is on its way to the disk.
pub(super) struct InFlight {
    batch: Batch,
    started: Instant,
    written: oneshot::Receiver<()>,
    seen: Seen,
}

impl InFlight {
    /// Whether finishing it takes no wait. It has failed if nobody is left to say so, which finishing it brings to light.
    pub(super) fn is_written(&mut self) -> bool {
        !matches!(self.written.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

/// What is published of the outbox, as of one commit.
pub(super) struct Seen(Progress);

impl Seen {
    fn of(outbox: &Outbox) -> Seen {
        let mut seen = Progress::default();
        look(outbox, &mut seen);
        Seen(seen)
    }

    pub(super) fn show(self, progress: &mut Progress) {
        progress.committed = self.0.committed;
        progress.replays = self.0.replays;
        progress.connections = self.0.connections;
        progress.owners = self.0.owners;
    }
}

/// Takes down what is published of the outbox.
pub(super) fn look(outbox: &Outbox, progress: &mut Progress) {
    progress.committed = Seq(outbox.next().0 - 1);
    progress.replays = outbox.replays().len();
    // They change seldom, and this is done at every commit.
    if *progress.owners != *outbox.owners() {
        progress.owners = Arc::new(outbox.owners().clone());
    }
    for (name, connection) in outbox.connections() {
        let books = match progress.connections.get_mut(name) {
            Some(books) => books,
            None => progress.connections.entry(name.clone()).or_default(),
        };
        books.totals = connection.totals;
        books.lanes.clear();
        books.lanes.extend(connection.lanes.iter().map(|(number, lane)| (*number, lane.pending())));
        let replay_sets = connection.sets.iter().filter(|set| set.purpose == LanePurpose::Replay);
        books.replay_lanes.clear();
        books.replay_lanes.extend(replay_sets.flat_map(|set| set.first..set.first + set.count));
        books.newest = connection.newest_set(LanePurpose::Fresh).map_or(0..0, |set| set.first..set.first + set.count);
        // How long a replay waits for its gap is nobody's trouble.
        let fresh = connection.lanes.iter().filter(|(number, _)| !books.replay_lanes.contains(number));
        books.oldest_pending_at = fresh.filter_map(|(_, lane)| lane.oldest_pending_at()).min();
    }
}

/// What the committer's thread does next.
enum Turn {
    Take(Command),
    /// The commit in flight is on the disk, or has failed.
    Written,
    /// Nothing but housekeeping.
    Idle,
    /// Nobody has a handle any more.
    Gone,
}

impl Committer {
    pub(super) fn run(&mut self, runtime: &tokio::runtime::Handle) {
        let mut last_tick = Instant::now();
        loop {
            let turn = self.next_turn(runtime, self.patience(TICK.saturating_sub(last_tick.elapsed())));
            self.is_busy_since(Some(Instant::now()));
            let stop = match turn {
                Turn::Take(command) => self.take(command),
                Turn::Written => {
                    self.finish();
                    self.begin();
                    None
                }
                Turn::Idle => {
                    self.follow();
                    None
                }
                Turn::Gone => Some(None),
            };
            if let Some(reply) = stop {
                self.settle();
                self.close(reply);
                return;
            }
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.settle();
                self.tick();
            }
            self.is_busy_since(self.in_flight.as_ref().map(|commit| commit.started));
        }
    }

    fn is_busy_since(&self, since: Option<Instant>) {
        *self.busy.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn next_turn(&mut self, runtime: &tokio::runtime::Handle, wait: Duration) -> Turn {
        if let Some(command) = self.next_up.take() {
            return Turn::Take(command);
        }
        let taken = |command: Option<Command>| command.map_or(Turn::Gone, Turn::Take);
        let Some(commit) = &mut self.in_flight else {
            // What is there already needs no timer.
            return match self.inbox.try_recv() {
                Ok(command) => Turn::Take(command),
                Err(mpsc::error::TryRecvError::Disconnected) => Turn::Gone,
                Err(mpsc::error::TryRecvError::Empty) => {
                    let received = runtime.block_on(async { tokio::time::timeout(wait, self.inbox.recv()).await });
                    received.map_or(Turn::Idle, taken)
                }
            };
        };
        if commit.is_written() {
            return Turn::Written;
        }
        let is_full = self.forming.is_full();
        if !is_full && let Ok(command) = self.inbox.try_recv() {
            return Turn::Take(command);
        }
        // No timer: the disk answers, or the watchdog sees that it does not.
        runtime.block_on(async {
            tokio::select! {
                biased;
                _ = &mut commit.written => Turn::Written,
                command = self.inbox.recv(), if !is_full => taken(command),
            }
        })
    }

    /// Hands what has been gathered to the log, while the commit before it is on its way.
    pub(super) fn prepare(&mut self, batch: &mut Batch) {
        if self.in_flight.is_none() || batch.prepared == batch.events.len() {
            return;
        }
        if let Some(log) = &mut self.log {
            log.prepare(&batch.events[batch.prepared..], &|lane| batch.next_send(lane));
            batch.prepared = batch.events.len();
        }
    }

    /// Begins to make durable what has formed. Nothing may be in flight.
    pub(super) fn begin(&mut self) {
        let batch = std::mem::take(&mut self.forming);
        // An append that can be overtaken is tried until it is not, with nothing behind it.
        if batch.events.is_empty() || self.shared.is_some() {
            return self.commit(batch);
        }
        let started = Instant::now();
        let (done, written) = oneshot::channel();
        // The committer may have stopped waiting.
        let done = Box::new(move || _ = done.send(()));
        let begun = self.with_log(|log, outbox| {
            let begun = log.begin_append(&batch.events, &|lane| batch.next_send(lane), done)?;
            assert!(begun == Begun::UnderWay || log.next_seq() == outbox.next(), "log and outbox count the same events");
            Ok(begun)
        });
        match begun {
            Ok(Begun::UnderWay) => {
                self.in_flight = Some(InFlight { batch, started, written, seen: Seen::of(&self.outbox) });
                // The next generation begins with the outbox as it is now: nothing may form meanwhile.
                if self.log.as_ref().is_some_and(|log| log.is_generation_full()) {
                    self.finish();
                }
            }
            other => {
                self.count_commit(started, &batch);
                self.conclude(batch, other.map(|_| ()), None);
            }
        }
    }

    /// Waits for the commit in flight, and answers.
    fn finish(&mut self) {
        let Some(InFlight { batch, started, seen, .. }) = self.in_flight.take() else { return };
        let result = self.with_log(|log, _| {
            let last = log.finish_append()?;
            assert_eq!(last, seen.0.committed, "log and outbox count the same events");
            Ok(())
        });
        self.count_commit(started, &batch);
        self.conclude(batch, result, Some(seen));
    }

    /// Makes everything durable that is in flight or has formed: the outbox is as the log then.
    pub(super) fn settle(&mut self) {
        self.finish();
        let batch = std::mem::take(&mut self.forming);
        self.commit(batch);
    }
}
