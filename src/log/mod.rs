//! The log: the append-only truth, behind a trait.
//!
//! ```text
//!   LogHandle ──▶ committer (one thread) ──▶ EventLog (sled_log | jetstream_log | memory_log) ──▶ disk
//!       ▲               │ folds into the Outbox
//!       └── Committed ◀─┘
//! ```
//!
//! * [`EventLog`] appends durably, begins and drops generations. It stores events and knows nothing of what they mean.
//! * [`LogReader`] gives back whole pages of events, from any thread.
//! * `committer` owns the log and the outbox, groups what waits into one commit, and is the only place that can make a
//!   `Committed`.
//!
//! # A shared log
//! Several instances may append to one log ([`EventLog::is_shared`]). It has one order, and an append succeeds only for one who has read everything
//! before it ([`EventLog::catch_up`]); anybody else is [overtaken](AppendError::Overtaken), and nothing is stored. So what an instance checks against
//! its own fold right before it appends holds at the very place where its events come to stand.
//!
//! # Generations
//! The log is cut into generations. Each begins with a checkpoint (the outbox as bytes, opaque here), so that recovery reads the newest
//! generation only, and is dropped as a whole once nothing in it is needed. On one machine [`EventLog::begin_generation`] and
//! [`EventLog::drop_oldest_generation`] do that. On a shared log it is events that say it, so that every instance has the same generations
//! ([`EventLog::note_generation`], [`EventLog::note_dropped`]), and one of them makes it so ([`EventLog::keep_generations`]).
//!
//! | Module | Holds |
//! |---|---|
//! | `codec` | pages: header, index, compression, checksum |
//! | `sled_log` | the log on disk |
//! | `jetstream_log` | the log on several machines, over NATS JetStream |
//! | `memory_log` | the log for tests |
//! | `page`, `error` | pages as readers see them; why something failed |
//! | `import` | a store moves to another kind of store |
//! | `peers` | what a shared log offers beside its events |
//! | `page_cache` | decoded pages, for readers |
//! | `committer` | group commit, the outbox, `Committed` |
//! | `sizes` | how large the parts of a store are, by the space that it has |

pub mod committer;

pub mod codec;
mod error;
#[cfg(feature = "jetstream")]
mod import;
#[cfg(feature = "jetstream")]
pub mod jetstream_log;
pub mod memory_log;
mod page;
mod page_cache;
mod peers;
pub mod sizes;
pub mod sled_log;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod samples;

use std::fmt;
use std::sync::Arc;

use crate::core::event::Event;
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
pub use error::{AppendError, OpenError, ReadError};
#[cfg(feature = "jetstream")]
pub use import::{ImportError, Imported};
pub use page::{AnyPage, Glimpse, Page, Seen};
pub use peers::{Health, PATIENCE as PEERS_PATIENCE, Peers, Replica};
use sizes::Sizes;

/// The random id of a store: stands in every page, so that no payload can pose as one, and in every MQTT client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreId(pub u64);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Where the events are kept.
pub trait EventLog: Send {
    /// The id of the store.
    fn store_id(&self) -> StoreId;

    /// The position that the next event gets.
    fn next_seq(&self) -> Seq;

    /// Whether other instances append to this log, too.
    fn is_shared(&self) -> bool {
        false
    }

    /// The pages that others have appended since the last call, in order; [`EventLog::next_seq`] is behind them afterwards. Where servers have to be
    /// asked and don't answer within about a second, there are none: what needs no commit goes on, and an append finds out what is the matter.
    ///
    /// # Errors
    /// As [`EventLog::append`]; also if what has not been read yet was dropped.
    fn catch_up(&mut self) -> Result<Vec<Arc<Page>>, AppendError> {
        Ok(Vec::new())
    }

    /// What a shared log offers beside its events; none of a log that is not shared.
    fn peers(&self) -> Option<Arc<dyn Peers>> {
        None
    }

    /// Appends all of `events`, or none, and returns the last position once they are durable.
    ///
    /// `next_send` gives the next send number of a lane *before* these events; it goes into the pages' index.
    ///
    /// # Errors
    /// After [`AppendError::Io`] the log is dead: nothing more can be appended, and the process has to restart.
    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError>;

    /// Takes in `events`, which will be the first of the next append, or follow what was prepared for it before. Nothing is written yet: what takes
    /// time, such as compression, is done while the append before is under way. `next_send` is as for that append.
    fn prepare(&mut self, _events: &[Event], _next_send: &dyn Fn(&LaneKey) -> SendNo) {}

    /// As [`EventLog::append`], but may return before the events are durable, if it says so: `done` is called, by any thread, when
    /// [`EventLog::finish_append`] can make them so without a wait. Until that has returned, nothing may be appended, begun, dropped or closed;
    /// whether the generation is full, and whether there is room, is already as if the events were there.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn begin_append(
        &mut self,
        events: &[Event],
        next_send: &dyn Fn(&LaneKey) -> SendNo,
        _done: Box<dyn FnOnce() + Send>,
    ) -> Result<Begun, AppendError> {
        self.append(events, next_send).map(|_| Begun::Durable)
    }

    /// Waits until what was begun is durable, and returns the last position.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn finish_append(&mut self) -> Result<Seq, AppendError> {
        Ok(Seq(self.next_seq().0 - 1))
    }

    /// Whether the current generation is full, so that [`EventLog::begin_generation`] should be called.
    fn is_generation_full(&self) -> bool;

    /// Seals the current generation and begins the next with `checkpoint`, the outbox as of [`EventLog::next_seq`].
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn begin_generation(&mut self, checkpoint: &[u8]) -> Result<(), AppendError>;

    /// The generations, oldest first; the last one is being written.
    fn generations(&self) -> Vec<Generation>;

    /// Deletes the oldest generation. The caller has proven that nothing in it is needed.
    ///
    /// # Errors
    /// [`AppendError::Io`] if the folder can't be deleted; nothing is lost then.
    fn drop_oldest_generation(&mut self) -> Result<(), AppendError>;

    /// Shared log: a generation begins with `first`, which is the first event of a page that has been read, or comes next: an event has said so. Nothing
    /// is written by this. Known ones may be told again.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn note_generation(&mut self, _first: Seq) -> Result<(), AppendError> {
        Ok(())
    }

    /// Shared log: what came before `first`, which begins a generation, is not needed any more: an event has said so. Readers say that it is gone.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn note_dropped(&mut self, _first: Seq) -> Result<(), AppendError> {
        Ok(())
    }

    /// Shared log: makes it last what was noted of generations, keeps a checkpoint as of [`EventLog::next_seq`] if there is one, and deletes what was
    /// dropped. May be done again, and by several. False if that could not be done now, and can be tried again.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn keep_generations(&mut self, _checkpoint: Option<&[u8]>) -> Result<bool, AppendError> {
        Ok(true)
    }

    /// What the store takes on disk, and what is left.
    fn space(&self) -> Space;

    /// How large the store's parts are.
    fn sizes(&self) -> Sizes {
        Sizes::default()
    }

    /// Makes sure that the next append can be written, if its events take at most `bytes`; false if there is no room, and then it must not
    /// be tried: after an error of the disk the log is dead. A log that is not on a disk has room always.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn make_room(&mut self, _bytes: u64, _urgency: Urgency) -> Result<bool, AppendError> {
        Ok(true)
    }

    /// As [`EventLog::make_room`], for [`EventLog::begin_generation`] with a checkpoint of at most `bytes`.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn make_room_to_begin(&mut self, _bytes: u64) -> Result<bool, AppendError> {
        Ok(true)
    }

    /// Whether a generation should begin before [`EventLog::close`]: the next start reads all of the newest one, and that is long.
    fn is_long_to_read(&self) -> bool {
        false
    }

    /// Housekeeping that is due about once a second: syncs the witness.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn tick(&mut self) -> Result<(), AppendError>;

    /// A reader, for any thread. It sees durable events only.
    fn reader(&self) -> Arc<dyn LogReader>;

    /// Says that the epochs have been bumped (durably) after the store was found to be a copy.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn adopt_copy(&mut self) -> Result<(), AppendError>;

    /// Writes `checkpoint` as of [`EventLog::next_seq`] and closes cleanly, so that the next start reads nothing else. Where there is no room
    /// for that, it says so in the log and leaves the store as a kill would.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn close(self: Box<Self>, checkpoint: &[u8]) -> Result<(), AppendError>;
}

/// How far an append is that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It is done.
    Durable,
    /// It is on its way to the disk.
    UnderWay,
}

/// A log that has been opened, and what recovery starts from.
pub struct Opened {
    /// The log.
    pub log: Box<dyn EventLog>,
    /// The newest checkpoint; none in a fresh store.
    pub checkpoint: Option<Checkpoint>,
    /// How the last run ended.
    pub last_stop: LastStop,
    /// The store is a copy of another: broker sessions must be left to the original (see `EpochBumped`).
    pub is_copy: bool,
}

/// The outbox, as it was before the event at `next`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The first event that is not in it.
    pub next: Seq,
    /// The encoded outbox.
    pub bytes: Vec<u8>,
}

/// How the run before this one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastStop {
    /// There was none: the store is new.
    Fresh,
    /// It closed the log.
    Clean,
    /// It was killed, or the machine was.
    Unclean,
}

/// A part of the log that is deleted as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// Its first event.
    pub first: Seq,
    /// The time of its newest event; none if it is empty.
    pub newest: Option<Millis>,
    /// Its size on disk, in bytes.
    pub bytes: u64,
}

/// Disk space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// What the store takes.
    pub used: u64,
    /// What is left on its file system for it.
    pub free: u64,
    /// Of what it takes: ballast, to be given up when the disk is full.
    pub ballast: u64,
}

/// What may be given up to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// It can be refused: nothing is given up for it.
    CanBeRefused,
    /// It can't: outcomes. The ballast goes as the last resort.
    LastResort,
}

/// Reads the log from any thread.
pub trait LogReader: Send + Sync {
    /// The page that holds `seq`, or none if `seq` has not been written (durably) yet.
    ///
    /// # Errors
    /// [`ReadError::Gone`] if the generation was dropped; [`ReadError::Damaged`] if what is stored is not what was written.
    fn page(&self, seq: Seq) -> Result<Option<Arc<Page>>, ReadError>;

    /// The same page, as lanes read it: in the form that costs the least.
    ///
    /// # Errors
    /// As [`LogReader::page`].
    fn any_page(&self, seq: Seq) -> Result<Option<AnyPage>, ReadError> {
        Ok(self.page(seq)?.map(AnyPage::Decoded))
    }

    /// The last position that is durable, and so can be read.
    fn durable(&self) -> Seq;

    /// Whether [`LogReader::any_page`] has the page that holds `seq` in memory, and does not block on the disk.
    fn is_in_memory(&self, _seq: Seq) -> bool {
        false
    }

    /// What the page that holds `seq` says about itself, without decoding its events: tells whether it is worth reading.
    ///
    /// # Errors
    /// As [`LogReader::page`].
    fn glimpse(&self, seq: Seq) -> Result<Option<Glimpse>, ReadError>;

    /// The generation that holds `seq`: its first event, and the time of its newest event if nothing will be added to it any more.
    fn generation(&self, seq: Seq) -> Option<(Seq, Option<Millis>)>;
}
