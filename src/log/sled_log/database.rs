//! One sled database: the generation that is being written. Here and in `trees` alone sled is called.
//!
//! What makes it durable: `flush()` alone is not (it uses `sync_file_range`), so each commit is `insert` for each page → `flush()` → our own
//! `fdatasync` of the file `db`. sled can also panic, on a damaged or full disk; that is caught here and becomes an error.
//!
//! A commit is not a sled batch. For a batch sled writes a mark of its own first, by another thread, and the pages behind that wait for the same block of
//! the disk: a third of the time of a commit. All that it would give is that a kill leaves the whole commit or nothing. sled comes back with what it had
//! written up to some point, in order, and each page says how many its commit has: so the part of one is seen at the next start, and taken out.
//!
//! # Memory
//! What sled has replaced may still be read by another thread, so it waits in a list of the thread that replaced it, until there are 64 of it. One of
//! them may hold a whole buffer, which is as long as a segment, and a thread that does little gets to 64 generations later. So every commit hands its
//! list in: see [`let_go`]. What an open database holds is then a generation's pages and two or three buffers. (sled's cache is in 256 parts, each of which
//! keeps the node that it was asked for last, and a generation has about as many nodes.)

use std::fs::{File, TryLockError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::trees::Trees;
use crate::core::types::Seq;
use crate::failpoint::{self, Point};
use crate::log::codec::{Kind, PageKey, Parsed, StoredPage, parse};

/// A dropped database is closed within milliseconds; one that is not by then never will be.
const CLOSES_WITHIN: Duration = Duration::from_secs(30);

/// An open database. It is closed when this is dropped, so nobody else may hold one.
pub(super) struct Database {
    /// None once it is closed.
    trees: Option<Trees>,
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
        guarded(|| Trees::of(config.open().map_err(|error| error.to_string())?, segment_size)).map(|trees| Database { trees: Some(trees) })
    }

    /// Closes it, which syncs its file: sled panics where the disk does not let it. A thread of sled's may hold the file for a moment longer.
    pub(super) fn close(mut self) -> Result<(), String> {
        self.let_go_of_it()
    }

    fn let_go_of_it(&mut self) -> Result<(), String> {
        let trees = self.trees.take();
        guarded(|| {
            drop(trees);
            Ok(())
        })
    }

    fn trees(&self) -> &Trees {
        self.trees.as_ref().expect("only what ends it takes them")
    }

    /// Writes the pages of a commit, and returns once they are durable in `file`, the database's own file. A kill leaves the first few of them, or none, or all.
    pub(super) fn commit(&self, pages: &[StoredPage], file: &File) -> Result<(), String> {
        self.make_durable(|| pages.iter().try_for_each(|page| self.trees().add(page)), file)
    }

    /// Takes out pages whose keys are given in order, durably: the last ones first, so that a kill leaves no gap.
    pub(super) fn remove(&self, keys: &[sled::IVec], file: &File) -> Result<(), String> {
        self.make_durable(|| keys.iter().rev().try_for_each(|key| self.trees().remove(key)), file)
    }

    fn make_durable(&self, change: impl FnOnce() -> sled::Result<()>, file: &File) -> Result<(), String> {
        guarded(|| {
            failpoint::pass(Point::BeforeBatch).map_err(|error| error.to_string())?;
            change().map_err(|error| error.to_string())?;
            failpoint::pass(Point::AfterBatch).map_err(|error| error.to_string())?;
            self.trees().flush().map_err(|error| error.to_string())
        })?;
        failpoint::pass(Point::AfterFlush).and_then(|()| file.sync_data()).map_err(|error| format!("fdatasync: {error}"))?;
        failpoint::reach(Point::AfterSync);
        let_go()
    }

    /// Waits until sled has written all that it was given. As long as nobody calls it again, it writes nothing more.
    pub(super) fn stand_still(&self) -> Result<(), String> {
        guarded(|| self.trees().flush().map_err(|error| error.to_string()))?;
        Ok(())
    }

    /// The bytes of the page of events that holds `seq`, or the nearest before it: its parts in order. Empty if there is none.
    pub(super) fn parts(&self, tag: u64, seq: Seq) -> Result<Vec<sled::IVec>, String> {
        guarded(|| {
            let Some((_, value)) = self.last_before(&PageKey::after(seq))? else { return Ok(Vec::new()) };
            let header = parse(tag, &value).map_err(|error| error.to_string())?.header;
            self.all_parts(header.key(), header.parts)
        })
    }

    /// Goes through all pages in the order of their keys, with those that are none.
    pub(super) fn each(&self, tag: u64, mut seen: impl FnMut(&sled::IVec, Result<Parsed<'_>, String>)) -> Result<(), String> {
        guarded(|| {
            for entry in self.trees().iter() {
                let (key, value) = entry.map_err(|error| error.to_string())?;
                seen(&key, parse(tag, &value).map_err(|error| error.to_string()));
            }
            Ok(())
        })
    }

    /// The parts of the checkpoint that ends right before `end`, if the entry before `end` is one.
    pub(super) fn checkpoint(&self, tag: u64, end: &[u8]) -> Result<Option<(Seq, Vec<sled::IVec>)>, String> {
        guarded(|| {
            let Some((_, value)) = self.last_before(end)? else { return Ok(None) };
            let header = parse(tag, &value).map_err(|error| error.to_string())?.header;
            if header.kind == Kind::Events {
                return Ok(None);
            }
            Ok(Some((header.first, self.all_parts(header.key(), header.parts)?)))
        })
    }

    fn last_before(&self, end: &[u8]) -> Result<Option<(sled::IVec, sled::IVec)>, String> {
        self.trees().last_before(end).map_err(|error| error.to_string())
    }

    fn all_parts(&self, key: PageKey, parts: u32) -> Result<Vec<sled::IVec>, String> {
        (0..parts)
            .map(|part| {
                let value = self.trees().get(&PageKey { part, ..key }.to_bytes()).map_err(|error| error.to_string())?;
                value.ok_or_else(|| format!("part {part} of {parts} is missing"))
            })
            .collect()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Err(what) = self.let_go_of_it() {
            tracing::error!("{what}, while it was closed");
        }
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

/// Hands in what this thread has replaced, to be freed once nobody reads it any more. The next commits free it.
fn let_go() -> Result<(), String> {
    guarded(|| {
        sled::pin().flush();
        Ok(())
    })
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::log::sled_log::open_database_file;

    #[test]
    fn what_a_commit_has_replaced_does_not_wait_for_the_next_ones_of_its_thread() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path(), 256 << 10, 1 << 20).unwrap();
        let file = open_database_file(folder.path()).unwrap();
        // Stands for a buffer: it is handed in together with what the commit replaces.
        let buffer = Arc::new(());
        let seen = Arc::downgrade(&buffer);
        sled::pin().defer(move || drop(buffer));
        let key = PageKey { first: Seq(1), kind: Kind::Events, run: 0, part: 0 };
        database.commit(&[StoredPage { key, bytes: vec![7; 100], page: None, newest: None }], &file).unwrap();
        // What other threads do with their own.
        let until = Instant::now() + Duration::from_secs(20);
        while seen.strong_count() > 0 {
            std::thread::spawn(|| sled::pin().flush()).join().unwrap();
            assert!(Instant::now() < until, "it still waits in this thread");
        }
    }
}
