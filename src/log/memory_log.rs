//! The log in memory, for tests: the same promises as [`sled_log`](super::sled_log), and faults on request.
//!
//! A [`Disk`] is what survives. Dropping the log without [`EventLog::close`] is a kill; opening the disk again is the restart.
//!
//! ```
//! use tidings::log::memory_log::{Disk, MemoryLog};
//!
//! let disk = Disk::new(64 * 1024);
//! let opened = MemoryLog::open(&disk).unwrap();
//! drop(opened); // killed
//! assert!(MemoryLog::open(&disk).is_ok());
//! ```
//!
//! [`MemoryLog::open_shared`] opens a log that others have open as well: each reads by [`EventLog::catch_up`], and who has not read everything is overtaken.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::codec::{Encoder, Index, Limits, parse};
use super::{
    AppendError, Checkpoint, EventLog, Generation, Glimpse, Health, LastStop, LogReader, OpenError, Opened, Page, Peers, ReadError, Space,
    StoreId, Urgency,
};
use crate::core::event::Event;
use crate::core::types::{InstanceId, LaneKey, Millis, SendNo, Seq};

/// Pages are cut as on disk, with the default segments.
const SEGMENT_SIZE: usize = 8 << 20;

/// What survives a kill. Clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Content>>);

#[derive(Clone)]
struct Content {
    generation_size: u64,
    generations: Vec<Stored>,
    checkpoint: Option<Checkpoint>,
    last: Seq,
    last_stop: LastStop,
    is_copy: bool,
    is_open: bool,
    /// So many logs are open on it that know of each other.
    shared_by: usize,
    beats: BTreeMap<InstanceId, u64>,
    health: Option<Health>,
    free: u64,
    /// Whether there is room for another commit.
    has_room: bool,
    /// How many appends still succeed.
    appends_left: Option<u64>,
}

/// One generation.
#[derive(Clone)]
struct Stored {
    first: Seq,
    pages: BTreeMap<Seq, Arc<Page>>,
    indexes: BTreeMap<Seq, Index>,
    newest: Option<Millis>,
    bytes: u64,
}

impl Stored {
    fn new(first: Seq) -> Stored {
        Stored { first, pages: BTreeMap::new(), indexes: BTreeMap::new(), newest: None, bytes: 0 }
    }

    /// Cuts off what begins with `first`. Its size is taken by its share of the pages.
    fn split_off(&mut self, first: Seq) -> Stored {
        let all = self.pages.len() as u64;
        let (pages, indexes) = (self.pages.split_off(&first), self.indexes.split_off(&first));
        let bytes = self.bytes * pages.len() as u64 / all.max(1);
        self.bytes -= bytes;
        Stored { first, newest: self.newest.filter(|_| !pages.is_empty()), pages, indexes, bytes }
    }
}

impl Disk {
    /// An empty disk, on which a generation is full after `generation_size` bytes of pages.
    pub fn new(generation_size: u64) -> Disk {
        Disk(Arc::new(Mutex::new(Content {
            generation_size,
            generations: vec![Stored::new(Seq::FIRST)],
            checkpoint: None,
            last: Seq(0),
            last_stop: LastStop::Fresh,
            is_copy: false,
            is_open: false,
            shared_by: 0,
            beats: BTreeMap::new(),
            health: None,
            free: 1 << 40,
            has_room: true,
            appends_left: None,
        })))
    }

    /// Lets `appends` more appends succeed; the one after them fails, and with it the log until it is opened again.
    pub fn fail_after(&self, appends: u64) {
        self.content().appends_left = Some(appends);
    }

    /// Another disk, with what a kill at this moment leaves on this one.
    pub fn as_killed(&self) -> Disk {
        let content = self.content().clone();
        Disk(Arc::new(Mutex::new(Content { is_open: false, shared_by: 0, last_stop: LastStop::Unclean, ..content })))
    }

    /// How many generations there are.
    #[cfg(test)]
    pub(in crate::log) fn generations(&self) -> usize {
        self.content().generations.len()
    }

    /// Makes the next start find that the store is a copy.
    pub fn mark_as_copy(&self) {
        self.content().is_copy = true;
    }

    /// Sets what [`EventLog::space`] says is left, in bytes.
    pub fn set_free(&self, bytes: u64) {
        self.content().free = bytes;
    }

    /// Sets what [`Peers::health`] says.
    pub fn set_health(&self, health: Option<Health>) {
        self.content().health = health;
    }

    /// Sets what [`EventLog::make_room`] says.
    pub fn set_room(&self, has_room: bool) {
        self.content().has_room = has_room;
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // A test that panicked while it held the lock has left whole values behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers for Disk {
    fn put_beat(&self, instance: InstanceId, beat: u64) -> Result<(), String> {
        self.content().beats.insert(instance, beat);
        Ok(())
    }

    fn beats(&self) -> Result<BTreeMap<InstanceId, u64>, String> {
        Ok(self.content().beats.clone())
    }

    fn forget_beat(&self, instance: InstanceId) -> Result<(), String> {
        self.content().beats.remove(&instance);
        Ok(())
    }

    fn health(&self) -> Option<Health> {
        self.content().health.clone()
    }
}

impl LogReader for Disk {
    fn page(&self, seq: Seq) -> Result<Option<Arc<Page>>, ReadError> {
        let content = self.content();
        if seq > content.last {
            return Ok(None);
        }
        let after = content.generations.partition_point(|generation| generation.first <= seq);
        let generation = after.checked_sub(1).map(|at| &content.generations[at]).ok_or(ReadError::Gone(seq))?;
        Ok(generation.pages.range(..=seq).next_back().map(|(_, page)| Arc::clone(page)))
    }

    fn durable(&self) -> Seq {
        self.content().last
    }

    fn glimpse(&self, seq: Seq) -> Result<Option<Glimpse>, ReadError> {
        let Some(page) = self.page(seq)? else { return Ok(None) };
        let content = self.content();
        let index = content.generations.iter().find_map(|generation| generation.indexes.get(&page.first)).cloned();
        Ok(Some(Glimpse { first: page.first, last: page.last(), index: index.ok_or(ReadError::Gone(seq))? }))
    }

    fn generation(&self, seq: Seq) -> Option<(Seq, Option<Millis>)> {
        let content = self.content();
        let at = content.generations.partition_point(|generation| generation.first <= seq).checked_sub(1)?;
        let generation = &content.generations[at];
        Some((generation.first, generation.newest.filter(|_| at + 1 < content.generations.len())))
    }
}

/// The log in memory.
pub struct MemoryLog {
    disk: Disk,
    encoder: Encoder,
    failed: Option<String>,
    /// Where others append as well: the first event that this one has not read.
    unread: Option<Seq>,
    /// Where others append as well: what came before it is to be deleted.
    dropped: Seq,
}

impl MemoryLog {
    /// Opens what the disk holds.
    ///
    /// # Errors
    /// [`OpenError::Locked`] while another log is open on the disk.
    pub fn open(disk: &Disk) -> Result<Opened, OpenError> {
        MemoryLog::open_as(disk, false)
    }

    /// Opens what the disk holds, beside others that do the same.
    ///
    /// # Errors
    /// [`OpenError::Locked`] while a log is open on the disk that is not shared.
    pub fn open_shared(disk: &Disk) -> Result<Opened, OpenError> {
        MemoryLog::open_as(disk, true)
    }

    fn open_as(disk: &Disk, is_shared: bool) -> Result<Opened, OpenError> {
        let path = PathBuf::from("(memory)");
        let encoder = Encoder::new(0, 1, Limits::for_segment(SEGMENT_SIZE));
        let encoder = encoder.map_err(|error| OpenError::Io { path: path.clone(), what: error.to_string() })?;
        let mut content = disk.content();
        if content.is_open || (content.shared_by > 0 && !is_shared) {
            return Err(OpenError::Locked { path, holder: String::new() });
        }
        match is_shared {
            true => content.shared_by += 1,
            false => content.is_open = true,
        }
        content.appends_left = None;
        let last_stop = std::mem::replace(&mut content.last_stop, LastStop::Unclean);
        let unread = is_shared.then(|| content.last.next());
        let log = MemoryLog { disk: disk.clone(), encoder, failed: None, unread, dropped: Seq::FIRST };
        Ok(Opened { log: Box::new(log), checkpoint: content.checkpoint.clone(), last_stop, is_copy: content.is_copy })
    }

    fn check(&self) -> Result<(), AppendError> {
        self.failed.clone().map_or(Ok(()), |what| Err(AppendError::Io(what)))
    }

    /// Whether everything that `content` holds has been read.
    fn check_read(&self, content: &Content) -> Result<(), AppendError> {
        match self.unread {
            Some(unread) if unread <= content.last => Err(AppendError::Overtaken),
            _ => Ok(()),
        }
    }
}

impl EventLog for MemoryLog {
    fn store_id(&self) -> StoreId {
        StoreId(0)
    }

    fn next_seq(&self) -> Seq {
        self.unread.unwrap_or_else(|| self.disk.content().last.next())
    }

    fn is_shared(&self) -> bool {
        self.unread.is_some()
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        self.unread.map(|_| Arc::new(self.disk.clone()) as Arc<dyn Peers>)
    }

    fn catch_up(&mut self) -> Result<Vec<Arc<Page>>, AppendError> {
        self.check()?;
        let Some(unread) = self.unread else { return Ok(Vec::new()) };
        let content = self.disk.content();
        if content.generations[0].first > unread {
            let what = format!("event {unread}, which comes next here, was dropped meanwhile; a start goes on from the checkpoint");
            self.failed = Some(what.clone());
            return Err(AppendError::Io(what));
        }
        let pages = content.generations.iter().flat_map(|generation| generation.pages.range(unread..)).map(|(_, page)| Arc::clone(page));
        self.unread = Some(content.last.next());
        Ok(pages.collect())
    }

    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError> {
        self.check()?;
        let pages = self.encoder.events(self.next_seq(), events, next_send)?;
        let mut content = self.disk.content();
        self.check_read(&content)?;
        if let Some(left) = &mut content.appends_left {
            if *left == 0 {
                let what = "injected failure".to_owned();
                self.failed = Some(what.clone());
                return Err(AppendError::Io(what));
            }
            *left -= 1;
        }
        content.last.0 += events.len() as u64;
        let last = content.last;
        self.unread = self.unread.map(|_| last.next());
        let generation = content.generations.last_mut().expect("there is always one that is written");
        for stored in pages {
            generation.bytes += stored.bytes.len() as u64;
            generation.newest = generation.newest.max(stored.newest);
            if stored.key.part == 0 {
                let index =
                    parse(0, &stored.bytes).and_then(|parsed| parsed.index()).map_err(|error| AppendError::Io(error.to_string()))?;
                generation.indexes.insert(stored.key.first, index);
            }
            if let Some(page) = stored.page {
                generation.pages.insert(page.first, page);
            }
        }
        Ok(last)
    }

    fn is_generation_full(&self) -> bool {
        let content = self.disk.content();
        content.generations.last().is_some_and(|generation| generation.bytes >= content.generation_size)
    }

    fn begin_generation(&mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.check()?;
        let mut content = self.disk.content();
        self.check_read(&content)?;
        let next = content.last.next();
        if content.generations.last().is_some_and(|generation| generation.first < next) {
            content.generations.push(Stored::new(next));
            content.checkpoint = Some(Checkpoint { next, bytes: checkpoint.to_vec() });
        }
        Ok(())
    }

    fn generations(&self) -> Vec<Generation> {
        let seen = |stored: &Stored| Generation { first: stored.first, newest: stored.newest, bytes: stored.bytes };
        self.disk.content().generations.iter().filter(|stored| stored.first >= self.dropped).map(seen).collect()
    }

    fn drop_oldest_generation(&mut self) -> Result<(), AppendError> {
        self.check()?;
        let mut content = self.disk.content();
        if content.generations.len() > 1 {
            content.generations.remove(0);
        }
        Ok(())
    }

    fn note_generation(&mut self, first: Seq) -> Result<(), AppendError> {
        self.check()?;
        let mut content = self.disk.content();
        let after = content.generations.partition_point(|generation| generation.first < first);
        if after > 0 && content.generations.get(after).is_none_or(|next| next.first != first) {
            let begun = content.generations[after - 1].split_off(first);
            content.generations.insert(after, begun);
        }
        Ok(())
    }

    fn note_dropped(&mut self, first: Seq) -> Result<(), AppendError> {
        self.dropped = self.dropped.max(first);
        self.check()
    }

    fn keep_generations(&mut self, checkpoint: Option<&[u8]>) -> Result<bool, AppendError> {
        self.check()?;
        let (next, dropped) = (self.next_seq(), self.dropped);
        let mut content = self.disk.content();
        if let Some(bytes) = checkpoint.filter(|_| content.checkpoint.as_ref().is_none_or(|known| known.next < next)) {
            content.checkpoint = Some(Checkpoint { next, bytes: bytes.to_vec() });
        }
        while content.generations.get(1).is_some_and(|second| second.first <= dropped) {
            content.generations.remove(0);
        }
        Ok(true)
    }

    fn space(&self) -> Space {
        let content = self.disk.content();
        Space { used: content.generations.iter().map(|generation| generation.bytes).sum(), free: content.free, ballast: 0 }
    }

    fn make_room(&mut self, _bytes: u64, _urgency: Urgency) -> Result<bool, AppendError> {
        self.check()?;
        Ok(self.disk.content().has_room)
    }

    fn tick(&mut self) -> Result<(), AppendError> {
        self.check()
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(self.disk.clone())
    }

    fn adopt_copy(&mut self) -> Result<(), AppendError> {
        self.check()?;
        self.disk.content().is_copy = false;
        Ok(())
    }

    fn close(self: Box<Self>, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.check()?;
        let mut content = self.disk.content();
        let next = self.unread.unwrap_or_else(|| content.last.next());
        // Where others have written one since, theirs counts.
        if content.checkpoint.as_ref().is_none_or(|known| known.next <= next) {
            content.checkpoint = Some(Checkpoint { next, bytes: checkpoint.to_vec() });
        }
        content.last_stop = LastStop::Clean;
        Ok(())
    }
}

impl Drop for MemoryLog {
    fn drop(&mut self) {
        let mut content = self.disk.content();
        match self.unread {
            Some(_) => content.shared_by -= 1,
            None => content.is_open = false,
        }
    }
}
