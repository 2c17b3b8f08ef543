//! Reading, from any thread: what is durable, in whole pages, through one cache.
//!
//! ```text
//!   page(seq) ─▶ durable? ─▶ cache ─▶ generation ─┬─ Active: sled ──────┐
//!                 no: none     └─hit              ├─ Sealed: its file ──┴─▶ checksum, decode ─▶ cache
//!                                                 └─ Dropped: Gone
//! ```
//! Lanes that catch up come for the same page at about the same time: the first of them reads it, and the others wait for that.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::database::{Database, wait_until_closed};
use super::durable;
use super::room;
use super::seal::{self, SealedFile};
use crate::core::types::{Millis, Seq};
use crate::log::codec::{Decoder, PageError, RawPage, parse};
use crate::log::page_cache::PageCache;
use crate::log::{AnyPage, Glimpse, LogReader, Page, ReadError};

/// Sealed generations kept open at once: lanes that catch up are rarely further apart.
const OPEN_SEALED: usize = 4;

/// What the log and its readers share.
pub(super) struct Shared {
    pub(super) tag: u64,
    /// The last position that is durable.
    durable: AtomicU64,
    /// Oldest first.
    pub(super) generations: RwLock<Vec<Arc<Generation>>>,
    cache: Mutex<PageCache>,
    sealed: Mutex<Vec<(Seq, Arc<SealedFile>)>>,
    decoders: Mutex<Vec<Decoder>>,
    /// Pages that lanes are reading, by the positions that they came for.
    under_way: Mutex<Vec<Seq>>,
    one_is_read: Condvar,
}

/// Somebody is reading a page; dropped, nobody is.
struct UnderWay<'a> {
    shared: &'a Shared,
    seq: Seq,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.shared.under_way).retain(|seq| *seq != self.seq);
        self.shared.one_is_read.notify_all();
    }
}

/// A generation, as readers see it.
pub(super) struct Generation {
    pub(super) first: Seq,
    pub(super) folder: PathBuf,
    pub(super) state: RwLock<State>,
    pub(super) about: Mutex<About>,
}

/// How a generation can be read.
///
/// ```text
///   Active ──▶ Sealed ──▶ Dropped
///     └──▶ Unreadable (sealing found that something is missing, or the log was dropped without being closed)
/// ```
pub(super) enum State {
    /// It is being written, or waits to be sealed.
    Active(Database),
    /// It stands still.
    Sealed,
    /// It has been deleted.
    Dropped,
    /// It can't be read, and why.
    Unreadable(String),
}

/// What is known of a generation without reading it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct About {
    pub(super) newest: Option<Millis>,
    pub(super) bytes: u64,
}

impl Generation {
    pub(super) fn new(first: Seq, folder: PathBuf, state: State, newest: Option<Millis>) -> Arc<Generation> {
        let about = Mutex::new(About { newest, bytes: durable::bytes_on_disk(&folder) });
        Arc::new(Generation { first, folder, state: RwLock::new(state), about })
    }

    pub(super) fn measure(&self) {
        let bytes = durable::bytes_on_disk(&self.folder);
        lock(&self.about).bytes = bytes;
    }

    /// Does something to the database's file while sled writes nothing to it: nobody who reads can make it, either.
    pub(super) fn standing_still(&self, act: impl FnOnce()) -> Result<(), String> {
        let state = write(&self.state);
        if let State::Active(database) = &*state {
            database.stand_still()?;
            act();
        }
        Ok(())
    }

    /// Closes the database and seals the folder, unless that has been done or the generation is gone.
    pub(super) fn seal(&self, tag: u64, next: Seq) -> Result<(), String> {
        let mut state = write(&self.state);
        if !matches!(*state, State::Active(_)) {
            return Ok(());
        }
        // What is said of it should anything go wrong here: it is there, and what is in it is not gone.
        let unsealed = State::Unreadable(format!("{} was not sealed", self.folder.display()));
        let State::Active(database) = std::mem::replace(&mut *state, unsealed) else { return Ok(()) };
        let closed = database.close().map_err(|what| format!("closing {}: {what}", self.folder.display()));
        let outcome = closed.and_then(|()| wait_until_closed(&self.folder)).and_then(|()| {
            // What fails here is given back when the folder is deleted.
            let _ = room::give_back(&self.folder);
            let made = seal::make(&self.folder, tag, self.first, next);
            made.map(|_| ()).map_err(|error| format!("sealing {}: {error}", self.folder.display()))
        });
        *state = match &outcome {
            Ok(()) => State::Sealed,
            Err(what) => State::Unreadable(what.clone()),
        };
        drop(state);
        self.measure();
        outcome
    }
}

impl Shared {
    pub(super) fn new(tag: u64, durable: Seq, generations: Vec<Arc<Generation>>, cache: usize) -> Arc<Shared> {
        Arc::new(Shared {
            tag,
            durable: AtomicU64::new(durable.0),
            generations: RwLock::new(generations),
            cache: Mutex::new(PageCache::new(cache)),
            sealed: Mutex::new(Vec::new()),
            decoders: Mutex::new(Vec::new()),
            under_way: Mutex::new(Vec::new()),
            one_is_read: Condvar::new(),
        })
    }

    /// Shows readers what has become durable.
    pub(super) fn publish(&self, last: Seq, pages: impl Iterator<Item = Arc<Page>>) {
        let mut cache = lock(&self.cache);
        pages.for_each(|page| cache.insert(AnyPage::Decoded(page)));
        drop(cache);
        self.durable.store(last.0, Ordering::Release);
    }

    fn is_durable(&self, seq: Seq) -> bool {
        seq.0 <= self.durable.load(Ordering::Acquire)
    }

    /// Forgets what lies before `bound`.
    pub(super) fn forget_below(&self, bound: Seq) {
        lock(&self.cache).remove_below(bound);
        lock(&self.sealed).retain(|entry| entry.0 >= bound);
    }

    fn generation_of(&self, seq: Seq) -> Result<Arc<Generation>, ReadError> {
        let generations = read(&self.generations);
        let after = generations.partition_point(|generation| generation.first <= seq);
        after.checked_sub(1).map(|at| Arc::clone(&generations[at])).ok_or(ReadError::Gone(seq))
    }

    fn load(&self, seq: Seq) -> Result<Page, ReadError> {
        self.stored(seq, |parts| {
            let page = self.decode(|decoder| decoder.page(self.tag, parts))?;
            if page.get(seq).is_some() { Ok(page) } else { Err("its page is missing".into()) }
        })
    }

    fn load_raw(&self, seq: Seq) -> Result<RawPage, ReadError> {
        self.stored(seq, |parts| {
            let page = self.decode(|decoder| decoder.raw_page(self.tag, parts))?;
            if page.see(seq).is_some() { Ok(page) } else { Err("its page is missing".into()) }
        })
    }

    /// What is in memory of the page that holds `seq`; or the right to read it, once nobody else does.
    fn in_memory_or_mine(&self, seq: Seq) -> Result<AnyPage, UnderWay<'_>> {
        let mut under_way = lock(&self.under_way);
        loop {
            if let Some(page) = lock(&self.cache).get(seq) {
                return Ok(page);
            }
            if !under_way.contains(&seq) {
                under_way.push(seq);
                return Err(UnderWay { shared: self, seq });
            }
            under_way = self.one_is_read.wait(under_way).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does something with the stored bytes of the page that holds `seq`: its parts in order.
    fn stored<T>(&self, seq: Seq, act: impl FnOnce(&[&[u8]]) -> Result<T, String>) -> Result<T, ReadError> {
        let generation = self.generation_of(seq)?;
        let damaged = |what: String| ReadError::Damaged { seq, what: format!("{} ({})", what, generation.folder.display()) };
        let state = read(&generation.state);
        match &*state {
            State::Active(database) => {
                let parts = database.parts(self.tag, seq).map_err(damaged)?;
                act(&parts.iter().map(|part| &part[..]).collect::<Vec<_>>()).map_err(damaged)
            }
            State::Sealed => {
                // What the system can't do now it may do later; what is missing stays missing.
                let failed = |error: io::Error| match error.kind() {
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound | io::ErrorKind::InvalidData => damaged(error.to_string()),
                    _ => ReadError::Io(format!("{error} ({})", generation.folder.display())),
                };
                let parts = self.sealed(&generation).and_then(|file| file.parts(seq)).map_err(failed)?;
                act(&parts.iter().map(|part| &part[..]).collect::<Vec<_>>()).map_err(damaged)
            }
            State::Dropped => Err(ReadError::Gone(seq)),
            State::Unreadable(what) => Err(ReadError::Io(what.clone())),
        }
    }

    fn sealed(&self, generation: &Generation) -> io::Result<Arc<SealedFile>> {
        let mut open = lock(&self.sealed);
        if let Some(at) = open.iter().position(|entry| entry.0 == generation.first) {
            let entry = open.remove(at);
            open.push(entry);
        } else {
            let file = SealedFile::open(&generation.folder, self.tag)?;
            let file = file.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its file `seal` is not what was written"))?;
            open.push((generation.first, Arc::new(file)));
            if open.len() > OPEN_SEALED {
                open.remove(0);
            }
        }
        Ok(Arc::clone(&open.last().expect("one was pushed just above").1))
    }

    fn decode<T>(&self, act: impl FnOnce(&mut Decoder) -> Result<T, PageError>) -> Result<T, String> {
        let decoder = lock(&self.decoders).pop();
        let mut decoder = decoder.map_or_else(Decoder::new, Ok).map_err(|error| error.to_string())?;
        let page = act(&mut decoder).map_err(|error| error.to_string());
        lock(&self.decoders).push(decoder);
        page
    }
}

impl LogReader for Shared {
    fn page(&self, seq: Seq) -> Result<Option<Arc<Page>>, ReadError> {
        if !self.is_durable(seq) {
            return Ok(None);
        }
        // A lane's form of it is no use here.
        if let Some(AnyPage::Decoded(page)) = lock(&self.cache).get(seq) {
            return Ok(Some(page));
        }
        let page = Arc::new(self.load(seq)?);
        lock(&self.cache).insert(AnyPage::Decoded(Arc::clone(&page)));
        Ok(Some(page))
    }

    fn any_page(&self, seq: Seq) -> Result<Option<AnyPage>, ReadError> {
        if !self.is_durable(seq) {
            return Ok(None);
        }
        let mine = match self.in_memory_or_mine(seq) {
            Ok(page) => return Ok(Some(page)),
            Err(mine) => mine,
        };
        let page = AnyPage::Raw(Arc::new(self.load_raw(seq)?));
        lock(&self.cache).insert(page.clone());
        drop(mine);
        Ok(Some(page))
    }

    fn durable(&self) -> Seq {
        Seq(self.durable.load(Ordering::Acquire))
    }

    fn is_in_memory(&self, seq: Seq) -> bool {
        self.is_durable(seq) && lock(&self.cache).get(seq).is_some()
    }

    fn glimpse(&self, seq: Seq) -> Result<Option<Glimpse>, ReadError> {
        if !self.is_durable(seq) {
            return Ok(None);
        }
        self.stored(seq, |parts| {
            let first = parts.first().ok_or("its page is missing")?;
            let parsed = parse(self.tag, first).map_err(|error| error.to_string())?;
            let index = parsed.index().map_err(|error| error.to_string())?;
            let (first, last) = (parsed.header.first, parsed.header.last());
            if (first..=last).contains(&seq) { Ok(Some(Glimpse { first, last, index })) } else { Err("its page is missing".into()) }
        })
    }

    fn generation(&self, seq: Seq) -> Option<(Seq, Option<Millis>)> {
        let generations = read(&self.generations);
        let at = generations.partition_point(|generation| generation.first <= seq).checked_sub(1)?;
        let generation = &generations[at];
        let newest = lock(&generation.about).newest.filter(|_| at + 1 < generations.len());
        Some((generation.first, newest))
    }
}

// A thread that panicked while it held one of these locks has left plain values behind, each of which is whole.

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
