//! Room on the disk, made sure of *before* anything is written: an error of the disk inside sled is final.
//!
//! ```text
//!   make_room(need) ─▶ far from full: nothing to do
//!                   └▶ near: allocate ahead in the database's file ─┬─ there: sled writes into what is the store's already
//!                                                                   └─ no space ─▶ may the ballast go? ─▶ truncate it, try again ─▶ no
//! ```
//! Blocks are allocated behind the end of the file (`FALLOC_FL_KEEP_SIZE`), so sled sees nothing of it, and nobody who fills the disk can
//! take them. They are given back when the generation is sealed. On a file system that can't allocate ahead (NFS before 4.2, for one) what
//! is free is looked at instead, and the ballast is written rather than allocated; who fills the disk in the moment between
//! looking and writing makes the process stop, and the next start gives up the ballast.
//!
//! # The ballast
//! A file `ballast` whose blocks are really there. It is given up (truncated, which takes no space) as the last resort before an outcome,
//! a clean stop or a start would fail for want of space, and made again when there is plenty.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

pub(super) const BALLAST: &str = "ballast";

/// With more than this free nobody fills the disk between looking and writing: nothing is allocated ahead.
pub(super) const PLENTY: u64 = 1 << 30;

/// The small files of a generation, and of sled in it: configuration, snapshot, folders.
pub(super) const OTHER_FILES: u64 = 256 << 10;

/// What the file system itself may add to a file's blocks: its map of them.
const MAP_BYTES: u64 = 64 << 10;

/// What one call allocates beyond what is needed, so that not every commit needs one.
const AHEAD: u64 = 256 << 10;

/// Bytes written at once where a ballast can't be allocated.
const CHUNK_LEN: usize = 1 << 20;

/// What is left on the file system for this process, in bytes.
pub(super) fn free(folder: &Path) -> u64 {
    known_free(folder).unwrap_or(0)
}

/// The same; none where the file system does not say. One that is as good as endless has more than there are numbers for.
pub(super) fn known_free(folder: &Path) -> Option<u64> {
    statvfs(folder).ok().map(|stat| bytes_of(stat.f_bavail, stat.f_frsize))
}

fn bytes_of(blocks: u64, size: u64) -> u64 {
    blocks.saturating_mul(size)
}

/// What is left on a file system, asked for no more often than it can matter.
pub(super) struct Free {
    folder: PathBuf,
    /// When there was more than plenty, and how much.
    seen: Cell<Option<(Instant, u64)>>,
}

/// So long what was seen holds, where there is more than plenty.
const SEEN_FOR: Duration = Duration::from_millis(50);

impl Free {
    pub(super) fn on(folder: &Path) -> Free {
        Free { folder: folder.to_owned(), seen: Cell::new(None) }
    }

    /// What is left for this process, in bytes. Near the end it is asked for each time.
    pub(super) fn bytes(&self) -> u64 {
        if let Some((at, bytes)) = self.seen.get()
            && at.elapsed() < SEEN_FOR
        {
            return bytes;
        }
        let bytes = free(&self.folder);
        self.seen.set((bytes >= 4 * PLENTY).then(|| (Instant::now(), bytes)));
        bytes
    }
}

/// How large the file system is, in bytes; none if it does not say.
pub(super) fn total(folder: &Path) -> Option<u64> {
    let stat = statvfs(folder).ok()?;
    Some(bytes_of(stat.f_blocks, stat.f_frsize)).filter(|bytes| *bytes > 0)
}

/// Whether an error says that the disk, or the user's share of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes sure that `need` bytes can be written to `file`, on a disk where `free` are left, wherever in it or behind its end. False if there is no room.
pub(super) fn ahead(free: u64, file: &File, need: u64) -> io::Result<bool> {
    if free >= PLENTY + need {
        return Ok(true);
    }
    let meta = file.metadata()?;
    let has = |need: u64| meta.blocks() * 512 >= meta.len() + need + MAP_BYTES;
    if has(need) {
        return Ok(true);
    }
    // From the beginning: sled leaves holes, and they need blocks too. What is allocated already costs nothing.
    for more in [need + AHEAD, need] {
        match fallocate(file, FallocateFlags::KEEP_SIZE, 0, meta.len() + more + 2 * MAP_BYTES) {
            Ok(()) => return Ok(true),
            Err(Errno::NOSPC | Errno::DQUOT) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(free >= need),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Gives back what was allocated behind the end of the file `db` in `folder`.
pub(super) fn give_back(folder: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(folder.join("db"))?;
    let len = file.metadata()?.len();
    // To the same length: what is behind it goes.
    file.set_len(len)
}

/// The file that is given up when the disk is full.
pub(super) struct Ballast {
    store: PathBuf,
    /// What it is to take, in bytes.
    wanted: u64,
    /// What it takes, in bytes.
    held: u64,
}

impl Ballast {
    /// Looks at what is there.
    pub(super) fn find(store: &Path, wanted: u64) -> Ballast {
        let held = std::fs::metadata(store.join(BALLAST)).map_or(0, |meta| meta.blocks() * 512);
        Ballast { store: store.to_owned(), wanted, held }
    }

    /// What it takes, in bytes.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Gives it up. True if that has freed anything.
    pub(super) fn release(&mut self, what_for: &str) -> bool {
        let held = std::mem::take(&mut self.held);
        if held == 0 {
            return false;
        }
        let freed = OpenOptions::new().write(true).open(self.store.join(BALLAST)).and_then(|file| {
            file.set_len(0)?;
            // Some file systems lend out freed blocks only after a sync.
            file.sync_all()
        });
        match freed {
            Ok(()) => {
                tracing::warn!(bytes = held, what_for, "the disk is full: the ballast was released");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the ballast could not be released");
                false
            }
        }
    }

    /// Gives back what it takes beyond what it is to take: it was made when the store might have more.
    pub(super) fn shrink(&mut self) {
        let path = self.store.join(BALLAST);
        if !std::fs::metadata(&path).is_ok_and(|meta| meta.len() > self.wanted) {
            return;
        }
        let cut = OpenOptions::new().write(true).open(&path).and_then(|file| {
            file.set_len(self.wanted)?;
            file.sync_all()
        });
        match cut {
            Ok(()) => *self = Ballast::find(&self.store, self.wanted),
            Err(error) => tracing::debug!(%error, "the ballast could not be made smaller"),
        }
    }

    /// Makes it again, if at least `spare` bytes stay free beside it.
    pub(super) fn restore(&mut self, spare: u64) {
        if self.held >= self.wanted || free(&self.store) < self.wanted - self.held + spare {
            return;
        }
        let had = self.held;
        match self.fill() {
            Ok(()) => {
                self.held = self.wanted;
                if had == 0 {
                    tracing::info!(bytes = self.held, "there is space: ballast is kept for a full disk");
                }
            }
            // Somebody was faster. What was allocated of it is given back.
            Err(error) => {
                tracing::debug!(%error, "the ballast could not be made");
                self.held = 0;
                let _ = OpenOptions::new().write(true).open(self.store.join(BALLAST)).and_then(|file| file.set_len(0));
            }
        }
    }

    fn fill(&self) -> io::Result<()> {
        let path = self.store.join(BALLAST);
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, self.wanted) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                // Random, so that a file system that compresses does not make it nothing.
                let mut chunk = vec![0; CHUNK_LEN];
                let mut left = self.wanted;
                while left > 0 {
                    getrandom::fill(&mut chunk).map_err(|error| io::Error::other(error.to_string()))?;
                    let len = usize::try_from(left).map_or(CHUNK_LEN, |left| left.min(CHUNK_LEN));
                    file.write_all(&chunk[..len])?;
                    left -= len as u64;
                }
            }
            Err(error) => return Err(error.into()),
        }
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ballast_is_really_there_and_really_given_up() {
        let store = tempfile::tempdir().unwrap();
        let blocks = || std::fs::metadata(store.path().join(BALLAST)).map_or(0, |meta| meta.blocks() * 512);
        let mut ballast = Ballast::find(store.path(), 3 << 20);
        assert!(!ballast.release("a test"), "there is none yet");
        ballast.restore(0);
        assert!(ballast.held() == 3 << 20 && blocks() >= 3 << 20, "{} blocks", blocks());
        assert!(Ballast::find(store.path(), 3 << 20).held() >= 3 << 20, "it is found at the next start");
        assert!(ballast.release("a test"));
        assert_eq!((ballast.held(), blocks()), (0, 0));
        assert!(!ballast.release("a test"), "once is all");
        ballast.restore(u64::MAX >> 1);
        assert_eq!(blocks(), 0, "not where nothing would be left beside it");
    }

    #[test]
    fn a_ballast_that_is_larger_than_it_is_to_be_gives_back_the_rest() {
        let store = tempfile::tempdir().unwrap();
        Ballast::find(store.path(), 3 << 20).restore(0);
        let mut ballast = Ballast::find(store.path(), 1 << 20);
        ballast.shrink();
        assert_eq!(ballast.held(), 1 << 20);
        assert_eq!(std::fs::metadata(store.path().join(BALLAST)).map(|meta| meta.blocks() * 512).unwrap(), 1 << 20);
        ballast.shrink();
        ballast.restore(0);
        assert_eq!(Ballast::find(store.path(), 1 << 20).held(), 1 << 20, "and keeps what is wanted");
    }

    #[test]
    fn a_file_system_with_more_bytes_than_numbers_has_room() {
        assert_eq!(bytes_of(1 << 60, 4_096), u64::MAX);
        let folder = tempfile::tempdir().unwrap();
        assert!(known_free(folder.path()).is_some() && known_free(Path::new("/no/such/folder")).is_none());
    }

    #[test]
    fn what_was_seen_to_be_free_holds_for_a_moment_only_and_only_if_it_is_plenty() {
        let folder = tempfile::tempdir().unwrap();
        let free = Free::on(folder.path());
        let now = Instant::now();
        free.seen.set(Some((now, 5 * PLENTY)));
        assert_eq!(free.bytes(), 5 * PLENTY);
        let (real, long_ago) = (super::free(folder.path()), now.checked_sub(2 * SEEN_FOR).unwrap());
        free.seen.set(Some((long_ago, 1)));
        let asked = free.bytes();
        assert!(asked.abs_diff(real) < PLENTY, "{asked} bytes, and {real} were free just before");
        assert_eq!(free.seen.get().is_some(), asked >= 4 * PLENTY);
    }

    #[test]
    fn what_is_allocated_ahead_is_given_back_and_changes_no_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        std::fs::write(&path, [1; 5_000]).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
        let seen = || std::fs::metadata(&path).map(|meta| (meta.len(), meta.blocks() * 512)).unwrap();
        assert_eq!(seen().0, 5_000);
        assert!(seen().1 >= 1 << 20);
        give_back(folder.path()).unwrap();
        assert_eq!(seen().0, 5_000);
        assert!(seen().1 <= 16 << 10, "{} bytes are still taken", seen().1);
    }
}
