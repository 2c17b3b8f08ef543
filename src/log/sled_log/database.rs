//! One sled database: the generation that is being written. The only place where sled is called.
//!
//! What makes it durable: `flush()` alone is not (it uses `sync_file_range`), so each commit is `apply_batch` → `flush()` → our own
//! `fdatasync` of the file `db`. sled can also panic, on a damaged or full disk; that is caught here and becomes an error.
//!
//! A commit of a single page is one `insert` in place of a batch of one: as whole, and sled writes it at once. For a batch it writes a mark of its own
//! first, by another thread, and the page behind that waits for the same block of the disk: a third of the time of a small commit.

use std::fs::{File, TryLockError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::durable;
use crate::core::types::Seq;
use crate::failpoint::{self, Point};
use crate::log::codec::{Kind, PageKey, Parsed, StoredPage, parse};

/// A dropped database is closed within milliseconds; one that is not by then never will be.
const CLOSES_WITHIN: Duration = Duration::from_secs(30);

/// An open database. It is closed when this is dropped, so nobody else may hold one.
pub(super) struct Database {
    db: sled::Db,
}

impl Database {
    /// Opens or creates the database in `folder`.
    pub(super) fn open(folder: &Path, segment_size: usize, cache: u64) -> Result<Database, String> {
        let config = sled::Config::new()
            .path(folder)
            .segment_size(segment_size)
            .cache_capacity(cache)
            // Every commit flushes itself; a timer would only add writes.
            .flush_every_ms(None)
            // Pages are compressed already, and have to be found verbatim in the file.
            .use_compression(false);
        remove_unfinished(folder)?;
        guarded(|| config.open().map_err(|error| error.to_string())).map(|db| Database { db })
    }

    /// Writes pages together, and returns once they are durable in `file`, the database's own file.
    pub(super) fn commit(&self, pages: &[StoredPage], file: &File) -> Result<(), String> {
        if let [page] = pages {
            return self.make_durable(|db| db.insert(page.key.to_bytes(), &page.bytes[..]).map(|_| ()), file);
        }
        let mut batch = sled::Batch::default();
        for page in pages {
            batch.insert(&page.key.to_bytes(), &page.bytes[..]);
        }
        self.make_durable(|db| db.apply_batch(batch), file)
    }

    /// Takes pages out, durably.
    pub(super) fn remove(&self, keys: &[sled::IVec], file: &File) -> Result<(), String> {
        let mut batch = sled::Batch::default();
        for key in keys {
            batch.remove(key);
        }
        self.make_durable(|db| db.apply_batch(batch), file)
    }

    fn make_durable(&self, change: impl FnOnce(&sled::Db) -> sled::Result<()>, file: &File) -> Result<(), String> {
        guarded(|| {
            failpoint::pass(Point::BeforeBatch).map_err(|error| error.to_string())?;
            change(&self.db).map_err(|error| error.to_string())?;
            failpoint::pass(Point::AfterBatch).map_err(|error| error.to_string())?;
            self.db.flush().map_err(|error| error.to_string())
        })?;
        failpoint::pass(Point::AfterFlush).and_then(|()| file.sync_data()).map_err(|error| format!("fdatasync: {error}"))?;
        failpoint::reach(Point::AfterSync);
        Ok(())
    }

    /// Makes a new, still empty database (or one with its first checkpoint) survive a power cut, names included.
    pub(super) fn settle(&self, folder: &Path) -> Result<(), String> {
        guarded(|| self.db.flush().map_err(|error| error.to_string()))?;
        durable::sync_folder_and_files(folder).map_err(|error| error.to_string())
    }

    /// The bytes of the page of events that holds `seq`, or the nearest before it: its parts in order. Empty if there is none.
    pub(super) fn parts(&self, tag: u64, seq: Seq) -> Result<Vec<sled::IVec>, String> {
        guarded(|| {
            let Some((_, value)) = self.entry_before(&PageKey::after(seq))? else { return Ok(Vec::new()) };
            let header = parse(tag, &value).map_err(|error| error.to_string())?.header;
            self.all_parts(header.key(), header.parts)
        })
    }

    /// Goes through all pages in the order of their keys, with those that are none.
    pub(super) fn each(&self, tag: u64, mut seen: impl FnMut(&sled::IVec, Result<Parsed<'_>, String>)) -> Result<(), String> {
        guarded(|| {
            for entry in self.db.iter() {
                let (key, value) = entry.map_err(|error| error.to_string())?;
                seen(&key, parse(tag, &value).map_err(|error| error.to_string()));
            }
            Ok(())
        })
    }

    /// The parts of the checkpoint that ends right before `end`, if the entry before `end` is one.
    pub(super) fn checkpoint(&self, tag: u64, end: &[u8]) -> Result<Option<(Seq, Vec<sled::IVec>)>, String> {
        guarded(|| {
            let Some((_, value)) = self.entry_before(end)? else { return Ok(None) };
            let header = parse(tag, &value).map_err(|error| error.to_string())?.header;
            if header.kind == Kind::Events {
                return Ok(None);
            }
            Ok(Some((header.first, self.all_parts(header.key(), header.parts)?)))
        })
    }

    fn entry_before(&self, end: &[u8]) -> Result<Option<(sled::IVec, sled::IVec)>, String> {
        self.db.range::<&[u8], _>(..end).next_back().transpose().map_err(|error| error.to_string())
    }

    fn all_parts(&self, key: PageKey, parts: u32) -> Result<Vec<sled::IVec>, String> {
        (0..parts)
            .map(|part| {
                let value = self.db.get(PageKey { part, ..key }.to_bytes()).map_err(|error| error.to_string())?;
                value.ok_or_else(|| format!("part {part} of {parts} is missing"))
            })
            .collect()
    }
}

/// Waits until the database in `folder`, which has been dropped, is closed: a thread of sled's may hold it for a moment longer, and write.
pub(super) fn wait_until_closed(folder: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let file = File::open(folder.join("db")).map_err(failed)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if started.elapsed() < CLOSES_WITHIN => std::thread::sleep(Duration::from_millis(1)),
            Err(TryLockError::WouldBlock) => return Err(format!("the database in {} does not close", folder.display())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// A snapshot that sled was writing when it was killed, or when the disk was full, is taken by its next start for the newest one, and
/// refused for good (`read_snapshot` of 0.34.7 takes whatever begins with `snap.`). It is made anew from the file.
fn remove_unfinished(folder: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            std::fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// Runs `work`; a panic in it becomes an error. What it touched is not used again after an error, so a broken state is never seen.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("the database panicked: {}", text.unwrap_or_default()))
    })
}
