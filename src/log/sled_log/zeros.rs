//! Zeros written ahead of what is appended, so that a sync has the pages to write and nothing else.
//!
//! ```text
//!   db  ├──────── sled's ────────┼── zeros ──┤        each commit writes over zeros: no new length, no new block, one flush
//!                                            └ a whole number of steps
//!   sled has written beyond that ─▶ before the next commit: zeros up to the next whole step
//! ```
//! A write that makes a file longer, or that is the first in a block which is only allocated, has the file system's journal written at the next
//! `fdatasync`: half of what the sync of a small commit takes. Over zeros that stand on the disk already it has not. (`fallocate` alone is no help: it spares the
//! length, and each block still has to be marked as written.)
//!
//! * sled sees nothing of it: it takes what is behind its last record for nothing anyway, and writes zeros there itself at each start. A step divides its
//!   segments, so that zeros never reach into one that it has not begun.
//! * Nothing of sled's is written over: zeros begin at the end of the file, and sled stands still meanwhile.
//! * How far sled has written is not known and not asked: a length that is no whole number of steps says that it has gone beyond the zeros.
//! * Where a file system writes nothing in place (btrfs, ZFS), or is none of those that were measured, it is left out; and where space is short.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::statfs;

use super::room::{self, PLENTY};

/// Steps in a segment. With segments of 8 MiB a step is 2 MiB. The commit that comes next writes them, which takes it some 1.5 ms: so large that fewer than
/// one of a hundred commits does, unless they are large themselves, and so small that nobody waits long.
const STEPS: u64 = 4;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is known of the zeros in a database's file.
pub(super) struct Zeros {
    /// Bytes of a step; none where none are written.
    step: Option<u64>,
    is_due: bool,
}

impl Zeros {
    /// For the database in `folder`, which has segments of so many bytes.
    pub(super) fn of(folder: &Path, segment_size: usize) -> Zeros {
        // ext2 to ext4, and XFS: they write in place, and keep a journal of lengths and blocks.
        let writes_in_place = statfs(folder).is_ok_and(|stat| matches!(stat.f_type, 0xef53 | 0x5846_5342));
        Zeros { step: writes_in_place.then_some(segment_size as u64 / STEPS), is_due: false }
    }

    /// Bytes that are written at once, at most; none where no zeros are written.
    #[cfg(test)]
    pub(super) fn step(&self) -> Option<u64> {
        self.step
    }

    /// Takes note of the file's length, after a commit.
    pub(super) fn note(&mut self, len: u64) {
        self.is_due = self.step.is_some_and(|step| !len.is_multiple_of(step));
    }

    /// Whether sled has gone beyond them.
    pub(super) fn is_due(&self) -> bool {
        self.is_due
    }

    /// Writes them behind the end of `file`, on the disk of `store`. sled must stand still. The next commit syncs them.
    pub(super) fn write(&mut self, store: &Path, file: &File) {
        self.is_due = false;
        let Some(step) = self.step else { return };
        if room::free(store) < PLENTY + step {
            return;
        }
        if let Err(error) = fill(file, step) {
            // Whatever it is, sled will meet it too if it matters; without zeros commits take longer, and that is all.
            tracing::debug!(%error, "writing zeros ahead of the log failed; none are written in this generation any more");
            self.step = None;
        }
    }
}

/// Fills `file` with zeros, from its end to the next whole step.
fn fill(file: &File, step: u64) -> io::Result<()> {
    let mut at = file.metadata()?.len();
    let end = at.next_multiple_of(step);
    while at < end {
        // To the next whole piece, so that all but the first one stand where the system's pages do.
        let piece = ZEROS.len() as u64;
        let len = (end - at).min(piece - at % piece);
        file.write_all_at(&ZEROS[..usize::try_from(len).expect("no longer than a piece")], at)?;
        at += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 100_000;

    #[test]
    fn zeros_begin_behind_what_is_there_and_end_with_a_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        for len in [1, 5_000, 65_535, 65_536, 65_537, 99_999, 100_000, 100_001, 250_000] {
            let written = vec![7; len];
            std::fs::write(&path, &written).unwrap();
            fill(&File::options().write(true).open(&path).unwrap(), STEP).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len() as u64, (len as u64).next_multiple_of(STEP));
            assert!(bytes[..len] == written && bytes[len..].iter().all(|byte| *byte == 0), "{len} bytes");
        }
    }

    #[test]
    fn they_are_due_when_the_file_ends_within_a_step() {
        let mut zeros = Zeros { step: Some(STEP), is_due: false };
        for (len, is_due) in [(0, false), (1, true), (STEP, false), (STEP + 1, true), (3 * STEP, false)] {
            zeros.note(len);
            assert_eq!(zeros.is_due(), is_due, "{len} bytes");
        }
        let mut nowhere = Zeros { step: None, is_due: false };
        nowhere.note(1);
        assert!(!nowhere.is_due());
    }
}
