//! Reading, from any thread: what is durable, in whole pages, through one cache.
//!
//! Where a page stands in the stream follows from *anchors*: "what comes before event S stands before message M". Every page that is written or read
//! leaves one; between two of them the stream is searched by halves. Anchors are bounded, and any of them may be forgotten but those of
//! the generations.
//!
//! ```text
//!   page(seq) ─▶ durable? ─▶ cache ─▶ anchors ─▶ messages: halve, until one holds seq ─▶ checksum, decode ─▶ cache
//!                 no: none     └─hit                                                       └─▶ the next ones, too, for who reads on
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;

use super::bridge::Bridge;
use super::bucket::Part;
use super::scan::{Commit, Scanner};
use super::servers::Pages;
use crate::core::types::{Millis, Seq};
use crate::log::codec::{Decoder, Header, PageError, StoredPage, parse};
use crate::log::page_cache::PageCache;
use crate::log::{AnyPage, Generation, Glimpse, LogReader, Page, ReadError};

/// So many anchors are kept at most: a few MiB.
const ANCHORS: usize = 32_768;

/// Who reads page by page gets so many messages at once.
const AHEAD: u64 = 16;

/// A reader waits so long for the servers before it is told that they don't answer. Lanes ask again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the log and its readers share.
pub(super) struct Shared {
    pub(super) tag: u64,
    bridge: Arc<Bridge>,
    pages: Pages,
    /// The last position that is durable.
    durable: AtomicU64,
    /// The last message that was read or written: no later one holds what is durable.
    pub(super) last_message: Arc<AtomicU64>,
    /// Oldest first, never empty.
    generations: RwLock<Vec<Part>>,
    anchors: Mutex<BTreeMap<Seq, u64>>,
    cache: Mutex<PageCache>,
    decoders: Mutex<Vec<Decoder>>,
}

/// A message that holds a valid page, with where it stands.
struct Found {
    at: u64,
    bytes: Bytes,
    header: Header,
}

/// One page of a commit, decoded.
pub(super) struct Decoded {
    /// Its first message.
    at: u64,
    pub(super) page: Arc<Page>,
    newest: Option<Millis>,
    /// As stored.
    pub(super) bytes: u64,
}

/// The pages of one's own commit, which begins with the message at `at`.
pub(super) fn of_stored(at: u64, stored: Vec<StoredPage>) -> Vec<Decoded> {
    let mut noted = Vec::new();
    let mut bytes = 0;
    for (message, stored) in (at..).zip(stored) {
        bytes += stored.bytes.len() as u64;
        // It stands on the last part of an event that spans several.
        if let Some(page) = stored.page {
            noted.push(Decoded { at: message - u64::from(stored.key.part), page, newest: stored.newest, bytes });
            bytes = 0;
        }
    }
    noted
}

impl Shared {
    pub(super) fn new(tag: u64, bridge: &Arc<Bridge>, pages: &Pages, generations: Vec<Part>, cache: usize) -> Shared {
        let anchors = generations.iter().map(|part| (part.first, part.message)).collect();
        Shared {
            tag,
            bridge: Arc::clone(bridge),
            pages: pages.clone(),
            durable: AtomicU64::new(0),
            last_message: Arc::default(),
            generations: RwLock::new(generations),
            anchors: Mutex::new(anchors),
            cache: Mutex::new(PageCache::new(cache)),
            decoders: Mutex::new(Vec::new()),
        }
    }

    /// Says how far the log is, which readers see from now on.
    pub(super) fn reach(&self, last: Seq, message: u64) {
        self.last_message.store(message, Ordering::Release);
        self.durable.store(last.0, Ordering::Release);
    }

    /// Notes what a commit holds: where its pages stand, and what they add to the generation that is written.
    pub(super) fn note(&self, decoded: &[Decoded]) {
        let mut generations = write(&self.generations);
        let newest = generations.last_mut().expect("there is always one that is written");
        for page in decoded {
            newest.newest = newest.newest.max(page.newest);
            newest.bytes += page.bytes;
        }
        drop(generations);
        self.keep(decoded);
    }

    fn keep(&self, decoded: &[Decoded]) {
        let mut anchors = lock(&self.anchors);
        let mut cache = lock(&self.cache);
        for page in decoded {
            anchors.insert(page.page.first, page.at);
            cache.insert(AnyPage::Decoded(Arc::clone(&page.page)));
        }
        self.thin(&mut anchors);
    }

    /// Every other one goes, but where generations begin.
    fn thin(&self, anchors: &mut BTreeMap<Seq, u64>) {
        if anchors.len() <= ANCHORS {
            return;
        }
        let firsts: Vec<Seq> = read(&self.generations).iter().map(|part| part.first).collect();
        let mut stays = false;
        anchors.retain(|seq, _| {
            stays = !stays;
            stays || firsts.binary_search(seq).is_ok()
        });
    }

    /// Decodes the pages of a commit.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn decode_commit(&self, commit: &Commit) -> Result<Vec<Decoded>, String> {
        let mut decoded = Vec::new();
        let mut from = 0;
        while from < commit.pages.len() {
            let told = |error: PageError| format!("message {}: {error}", commit.at + from as u64);
            let parsed = parse(self.tag, &commit.pages[from]).map_err(told)?;
            let newest = parsed.index().map_err(told)?.times.map(|times| times.1);
            let to = (from + parsed.header.parts as usize).min(commit.pages.len());
            let parts = &commit.pages[from..to];
            let page = Arc::new(self.decode(parts).map_err(told)?);
            decoded.push(Decoded { at: commit.at + from as u64, page, newest, bytes: parts.iter().map(|part| part.len() as u64).sum() });
            from = to;
        }
        Ok(decoded)
    }

    fn decode(&self, parts: &[Bytes]) -> Result<Page, PageError> {
        let decoder = lock(&self.decoders).pop();
        let mut decoder = decoder.map_or_else(Decoder::new, Ok).map_err(|error| PageError::Content(error.to_string()))?;
        let page = decoder.page(self.tag, parts);
        lock(&self.decoders).push(decoder);
        page
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        read(&self.generations).clone()
    }

    pub(super) fn set_parts(&self, parts: Vec<Part>) {
        let lowest = parts[0].first;
        let mut anchors = lock(&self.anchors);
        *anchors = anchors.split_off(&lowest);
        anchors.extend(parts.iter().map(|part| (part.first, part.message)));
        lock(&self.cache).remove_below(lowest);
        drop(anchors);
        *write(&self.generations) = parts;
    }

    /// A generation begins with `part`, unless it is known. It may not be older than the oldest.
    pub(super) fn divide(&self, part: Part) {
        let mut parts = write(&self.generations);
        let at = parts.partition_point(|known| known.first < part.first);
        if at == 0 || parts.get(at).is_some_and(|known| known.first == part.first) {
            return;
        }
        // What it holds already was counted with the one before it: its newest event is no newer.
        let newest = parts[at - 1].newest.filter(|_| self.durable.load(Ordering::Acquire) >= part.first.0);
        parts.insert(at, Part { newest, ..part });
        drop(parts);
        lock(&self.anchors).insert(part.first, part.message);
    }

    /// What comes before `first` is gone for readers. One generation stays in any case.
    pub(super) fn forget_before(&self, first: Seq) {
        let mut parts = self.parts();
        let gone = parts.iter().take_while(|part| part.first < first).count().min(parts.len() - 1);
        if gone > 0 {
            self.set_parts(parts.split_off(gone));
        }
    }

    /// The message from which the page that begins with `first` is read.
    pub(super) fn message_of(&self, first: Seq) -> Result<u64, ReadError> {
        let known = lock(&self.anchors).get(&first).copied();
        known.map_or_else(|| self.find(first).map(|found| found.at), Ok)
    }

    pub(super) fn generations(&self) -> Vec<Generation> {
        let seen = |part: &Part| Generation { first: part.first, newest: part.newest, bytes: part.bytes };
        read(&self.generations).iter().map(seen).collect()
    }

    fn messages(&self, from: u64, count: u64) -> Result<Vec<Bytes>, ReadError> {
        let pages = self.pages.clone();
        let answer = self.bridge.wait(PATIENCE, async move {
            match count {
                1 => Ok(pages.get_from_any(from).await?.into_iter().collect()),
                _ => pages.get_many(from, count, true).await,
            }
        });
        answer.unwrap_or_else(|| Err("the servers don't answer".to_owned())).map_err(ReadError::Io)
    }

    fn header_at(&self, at: u64) -> Result<Option<(Bytes, Header)>, ReadError> {
        let bytes = self.messages(at, 1)?.pop();
        Ok(bytes.and_then(|bytes| parse(self.tag, &bytes).ok().map(|parsed| parsed.header).map(|header| (bytes, header))))
    }

    /// The message at `at`, if it is part of a valid commit: one whose last page was stored.
    fn valid_at(&self, at: u64) -> Result<Option<Found>, ReadError> {
        let Some((bytes, header)) = self.header_at(at)? else { return Ok(None) };
        let end = at + u64::from(header.pages - header.page) - 1;
        let is_valid = end == at
            || end <= self.last_message.load(Ordering::Acquire)
                && self
                    .header_at(end)?
                    .is_some_and(|(_, last)| (last.run, last.pages, last.page + 1) == (header.run, header.pages, header.pages));
        Ok(is_valid.then_some(Found { at, bytes, header }))
    }

    /// The first message of the page that holds `seq`.
    fn find(&self, seq: Seq) -> Result<Found, ReadError> {
        let (mut low, mut high) = {
            let anchors = lock(&self.anchors);
            let low = anchors.range(..=seq).next_back().map(|(_, at)| *at).ok_or(ReadError::Gone(seq))?;
            let high = anchors.range(seq.next()..).next().map(|(_, at)| *at);
            (low, high.unwrap_or_else(|| self.last_message.load(Ordering::Acquire) + 1))
        };
        let mut probe = low;
        while low < high {
            let mut at = probe;
            let found = loop {
                match self.valid_at(at)? {
                    Some(found) => break Some(found),
                    None if at + 1 < high => at += 1,
                    None => break None,
                }
            };
            match found {
                Some(found) if found.header.first <= seq && seq <= found.header.last() => {
                    let part = u64::from(found.header.part);
                    return if part == 0 { Ok(found) } else { self.valid_at(found.at - part)?.ok_or_else(|| self.missing(seq)) };
                }
                Some(found) if found.header.last() < seq => low = found.at + 1,
                // It begins behind, and what lies between the probe and it is void.
                _ => high = probe,
            }
            probe = low + (high.saturating_sub(low)) / 2;
        }
        Err(self.missing(seq))
    }

    fn missing(&self, seq: Seq) -> ReadError {
        match read(&self.generations)[0].first > seq {
            true => ReadError::Gone(seq),
            false => ReadError::Damaged { seq, what: "its page is missing from the stream".into() },
        }
    }

    fn load(&self, seq: Seq) -> Result<Arc<Page>, ReadError> {
        let Found { at, bytes, header } = self.find(seq)?;
        let damaged = |what: String| ReadError::Damaged { seq, what };
        let mut parts = vec![bytes];
        if header.parts > 1 {
            parts.extend(self.messages(at + 1, u64::from(header.parts) - 1)?);
        }
        let page = Arc::new(self.decode(&parts).map_err(|error| damaged(error.to_string()))?);
        if page.get(seq).is_none() {
            return Err(self.missing(seq));
        }
        lock(&self.cache).insert(AnyPage::Decoded(Arc::clone(&page)));
        let after = at + u64::from(header.parts);
        let mut anchors = lock(&self.anchors);
        anchors.insert(page.first, at);
        if page.last().0 < self.durable.load(Ordering::Acquire) {
            anchors.insert(page.last().next(), after);
        }
        self.thin(&mut anchors);
        drop(anchors);
        // Who asks for the beginning of a page reads on, and a commit of one page ends with it.
        if seq == page.first && header.page + header.parts == header.pages {
            self.read_ahead(page.last().next(), after);
        }
        Ok(page)
    }

    /// Fetches what follows, into the cache. What fails here is met again by who needs it.
    fn read_ahead(&self, next: Seq, from: u64) {
        let (last, durable) = (self.last_message.load(Ordering::Acquire), self.durable.load(Ordering::Acquire));
        let count = AHEAD.min((last + 1).saturating_sub(from));
        if count < 2 || next.0 > durable || lock(&self.cache).get(next).is_some() {
            return;
        }
        let mut scanner = Scanner::new(self.tag, next);
        for (at, bytes) in (from..).zip(self.messages(from, count).unwrap_or_default()) {
            match scanner.take(at, bytes).map(|commit| commit.map(|commit| self.decode_commit(&commit))) {
                Ok(Some(Ok(decoded))) if scanner.next().0 <= durable + 1 => self.keep(&decoded),
                Ok(None) => {}
                _ => return,
            }
        }
    }

    /// Whether it has been written, and not been dropped.
    fn is_there(&self, seq: Seq) -> Result<bool, ReadError> {
        if seq.0 > self.durable.load(Ordering::Acquire) {
            return Ok(false);
        }
        if read(&self.generations)[0].first > seq { Err(ReadError::Gone(seq)) } else { Ok(true) }
    }
}

impl LogReader for Shared {
    fn page(&self, seq: Seq) -> Result<Option<Arc<Page>>, ReadError> {
        if !self.is_there(seq)? {
            return Ok(None);
        }
        if let Some(AnyPage::Decoded(page)) = lock(&self.cache).get(seq) {
            return Ok(Some(page));
        }
        self.load(seq).map(Some)
    }

    fn durable(&self) -> Seq {
        Seq(self.durable.load(Ordering::Acquire))
    }

    fn is_in_memory(&self, seq: Seq) -> bool {
        seq.0 <= self.durable.load(Ordering::Acquire) && lock(&self.cache).get(seq).is_some()
    }

    fn glimpse(&self, seq: Seq) -> Result<Option<Glimpse>, ReadError> {
        if !self.is_there(seq)? {
            return Ok(None);
        }
        let found = self.find(seq)?;
        let damaged = |error: PageError| ReadError::Damaged { seq, what: error.to_string() };
        let index = parse(self.tag, &found.bytes).and_then(|parsed| parsed.index()).map_err(damaged)?;
        let (first, last) = (found.header.first, found.header.last());
        let mut anchors = lock(&self.anchors);
        anchors.insert(first, found.at);
        if last.0 < self.durable.load(Ordering::Acquire) {
            anchors.insert(last.next(), found.at + u64::from(found.header.parts));
        }
        self.thin(&mut anchors);
        drop(anchors);
        Ok(Some(Glimpse { first, last, index }))
    }

    fn generation(&self, seq: Seq) -> Option<(Seq, Option<Millis>)> {
        let generations = read(&self.generations);
        let at = generations.partition_point(|part| part.first <= seq).checked_sub(1)?;
        let part = &generations[at];
        Some((part.first, part.newest.filter(|_| at + 1 < generations.len())))
    }
}

// A thread that panicked while it held one of these locks has left plain values behind, each of which is whole.

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
