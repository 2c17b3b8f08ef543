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
//! generation only, and is dropped as a whole once nothing in it is needed.
//!
//! | Module | Holds |
//! |---|---|
//! | `codec` | pages: header, index, compression, checksum |
//! | `sled_log` | the log on disk |
//! | `jetstream_log` | the log on several machines, over NATS JetStream |
//! | `memory_log` | the log for tests |
//! | `page_cache` | decoded pages, for readers |
//! | `committer` | group commit, the outbox, `Committed` |
//! | `sizes` | how large the parts of a store are, by the space that it has |

pub mod committer;

pub mod codec;
#[cfg(feature = "jetstream")]
pub mod jetstream_log;
pub mod memory_log;
mod page_cache;
pub mod sizes;
pub mod sled_log;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod samples;

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::core::content::Content;
use crate::core::event::Event;
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
use codec::RawPage;
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

    /// The pages that others have appended since the last call, in order; [`EventLog::next_seq`] is behind them afterwards.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn catch_up(&mut self) -> Result<Vec<Arc<Page>>, AppendError> {
        Ok(Vec::new())
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
    /// The store's folder is a copy of another: broker sessions must be left to the original (see `EpochBumped`).
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

/// One page of the log, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// The position of the first event.
    pub first: Seq,
    /// The events, in order, without gaps.
    pub events: Vec<Event>,
    /// For each lane that has a send in this page: its next send number before the page.
    pub sends: Vec<(LaneKey, SendNo)>,
}

impl Page {
    /// The position of the last event.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + self.events.len() as u64 - 1)
    }

    /// The event at `seq`, if it is in this page.
    pub fn get(&self, seq: Seq) -> Option<&Event> {
        self.events.get(usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?)
    }
}

/// One page of the log, in whichever form there is of it.
#[derive(Debug, Clone)]
pub enum AnyPage {
    /// Decoded: it was committed just now, or somebody has looked for something in it.
    Decoded(Arc<Page>),
    /// As it is stored.
    Raw(Arc<RawPage>),
}

/// What of an event is seen without decoding it.
#[derive(Debug)]
pub enum Seen<'a> {
    /// An `Accepted`, and its lane.
    Accepted(&'a LaneKey),
    /// Anything else.
    Other(&'a Event),
}

impl AnyPage {
    /// The position of the first event.
    pub fn first(&self) -> Seq {
        match self {
            AnyPage::Decoded(page) => page.first,
            AnyPage::Raw(page) => page.first,
        }
    }

    /// The position of the last event.
    pub fn last(&self) -> Seq {
        match self {
            AnyPage::Decoded(page) => page.last(),
            AnyPage::Raw(page) => Seq(page.first.0 + page.count() as u64 - 1),
        }
    }

    /// For each lane that has a send in this page: its next send number before the page.
    pub fn sends(&self) -> &[(LaneKey, SendNo)] {
        match self {
            AnyPage::Decoded(page) => &page.sends,
            AnyPage::Raw(page) => &page.sends,
        }
    }

    /// The event at `seq`, if it is in this page.
    pub fn see(&self, seq: Seq) -> Option<Seen<'_>> {
        match self {
            AnyPage::Decoded(page) => page.get(seq).map(|event| match event {
                Event::Accepted(accepted) => Seen::Accepted(&accepted.lane),
                other => Seen::Other(other),
            }),
            AnyPage::Raw(page) => page.see(seq),
        }
    }

    /// What the delivery is sent with that is accepted at `seq`, or was carried forward to there.
    pub fn content(&self, seq: Seq) -> Option<Content<'_>> {
        match self {
            AnyPage::Decoded(page) => match page.get(seq)? {
                Event::Accepted(accepted) => Some(Content::from(accepted.as_ref())),
                Event::Carried(carried) => Some(Content::from(&carried.accepted)),
                _ => None,
            },
            AnyPage::Raw(page) => page.content(seq).or_else(|| match page.see(seq)? {
                Seen::Other(Event::Carried(carried)) => Some(Content::from(&carried.accepted)),
                _ => None,
            }),
        }
    }

    /// The event at `seq`, if it is in this page and can be decoded.
    pub fn get(&self, seq: Seq) -> Option<Cow<'_, Event>> {
        match self {
            AnyPage::Decoded(page) => page.get(seq).map(Cow::Borrowed),
            AnyPage::Raw(page) => page.decode(seq).map(Cow::Owned),
        }
    }
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

/// What a page says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glimpse {
    /// The position of its first event.
    pub first: Seq,
    /// The position of its last event.
    pub last: Seq,
    /// What its events are about.
    pub index: codec::Index,
}

/// Why an append failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The disk failed, or is full. Nothing of this commit is accepted, and the log is dead until a restart.
    #[error("writing to the store failed: {0}; nothing of this request was accepted. Look at the disk (space, health), then restart")]
    Io(String),
    /// The events can't be stored: a single one is larger than the format allows.
    #[error("an event of {size} bytes is larger than the store takes ({limit} bytes)")]
    TooLarge {
        /// Its encoded size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The log is shared, and others have appended to it first: catch up, and try again.
    #[error("another instance appended first; nothing of this was stored")]
    Overtaken,
}

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The generation was deleted: the delivery is done and past its retention.
    #[error("event {0} is past the retention and no longer stored")]
    Gone(Seq),
    /// What is stored is not what was written.
    #[error("the store is damaged at event {seq}: {what}. Stop the service, copy the store away, then see the runbook")]
    Damaged {
        /// Where.
        seq: Seq,
        /// What is wrong.
        what: String,
    },
    /// The disk failed.
    #[error("reading the store failed: {0}")]
    Io(String),
}

/// Why a store could not be opened. But for [`OpenError::NotShown`], nothing has been changed when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store {path} is in use by another process{holder}; stop that one, or choose another `store.path`")]
    Locked {
        /// The store.
        path: PathBuf,
        /// ` (pid 123)` if known.
        holder: String,
    },
    /// A newer release wrote it.
    #[error(
        "the store {path} has format {found} (so says `identity` in it), and this release of Tidings knows formats up to {known}; \
         run the release that wrote it, or restore a backup made before the upgrade"
    )]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// The folder holds something else.
    #[error("{path} is not a Tidings store: {what}; choose an empty or new folder as `store.path`")]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Something that was accepted is missing or unreadable.
    #[error(
        "the store {path} is damaged: {what}. Nothing was opened or changed. Copy the folder away before anything else, then see the runbook"
    )]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What and where.
        what: String,
    },
    /// The raw files held all that was accepted, and the database does not show it. Here, and only here, it has been opened.
    #[error(
        "the store {path} does not show what it holds: {what}. All that was accepted was found in its raw files before they were opened. \
         Copy the folder away before anything else, then see the runbook"
    )]
    NotShown {
        /// The store.
        path: PathBuf,
        /// What and where.
        what: String,
    },
    /// The disk failed, is full, or denies access.
    #[error("opening the store {path} failed: {what}; look at the disk (space, health, rights), then start again")]
    Io {
        /// The store.
        path: PathBuf,
        /// What failed.
        what: String,
    },
    /// The servers that keep it don't answer, or refuse.
    #[error("the store {store} can't be opened: {what}; look at the servers (`nats server report jetstream`), then start again")]
    Unreachable {
        /// The stream and its servers.
        store: String,
        /// What failed.
        what: String,
    },
    /// Another instance is at work on the stream.
    #[error("the store {store} is in use by instance {holder}; stop that one, or choose another `store.stream`")]
    InUse {
        /// The stream and its servers.
        store: String,
        /// Who.
        holder: String,
    },
    /// The stream, or its bucket, is not what was made for it.
    #[error("the store {store} is not what Tidings makes: {what}")]
    NotAStream {
        /// The stream and its servers.
        store: String,
        /// What was found, and what would be right.
        what: String,
    },
    /// Something that was accepted is missing from the stream.
    #[error("the store {store} is damaged: {what}. Nothing was changed. Back the stream up before anything else (`nats stream backup`)")]
    StreamDamaged {
        /// The stream and its servers.
        store: String,
        /// What and where.
        what: String,
    },
}

impl AppendError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            AppendError::Io(_) => "store_failed",
            AppendError::TooLarge { .. } => "too_large",
            AppendError::Overtaken => "overtaken",
        }
    }
}

impl ReadError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            ReadError::Gone(_) => "gone",
            ReadError::Damaged { .. } => "store_damaged",
            ReadError::Io(_) => "store_failed",
        }
    }
}

impl OpenError {
    /// Stable name for logs.
    pub fn code(&self) -> &'static str {
        match self {
            OpenError::Locked { .. } | OpenError::InUse { .. } => "store_locked",
            OpenError::Newer { .. } => "store_newer",
            OpenError::NotAStore { .. } | OpenError::NotAStream { .. } => "not_a_store",
            OpenError::Damaged { .. } | OpenError::NotShown { .. } | OpenError::StreamDamaged { .. } => "store_damaged",
            OpenError::Io { .. } | OpenError::Unreachable { .. } => "store_failed",
        }
    }
}
