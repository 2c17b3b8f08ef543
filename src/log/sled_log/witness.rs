//! The file `witness`: what must be in the store, said by somebody else than the store.
//!
//! A damaged sled database can open as an empty one without an error. So every commit is also witnessed here before it is accepted, and
//! at start the store has to show all that its witness has seen.
//!
//! # Format
//! Two slots, 4,096 bytes apart so that no torn write can harm both, written in turn; the one with the higher counter is right.
//! ```text
//!   0 magic 8 · tag 8 · counter 8 · lowest 8 · generation 8 · last 8 · run 8 · clean 1 · CRC32C 4
//! ```
//! Written with each commit, which survives a kill; synced about once a second and wherever a start would go wrong without it. After a
//! power cut the last second may be missing: then it asks for less than there is, never for more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::core::types::Seq;

pub(super) const WITNESS: &str = "witness";
const MAGIC: [u8; 8] = *b"TIDWITN\x01";
const SLOT_DISTANCE: u64 = 4096;
const SLOT_LEN: usize = 61;
const CRC_AT: usize = 57;

/// What the store must be able to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Testimony {
    /// The first position of the oldest generation that is kept.
    pub(super) lowest: Seq,
    /// The first position of the generation that is being written.
    pub(super) generation: Seq,
    /// The last position that was accepted; one less than the first when there is none.
    pub(super) last: Seq,
    /// Counts the starts.
    pub(super) run: u64,
    /// Whether the store was closed, with a checkpoint at its end.
    pub(super) clean: bool,
}

/// The open file.
pub(super) struct Witness {
    file: File,
    tag: u64,
    counter: u64,
    unsynced: bool,
}

impl Witness {
    /// Makes the file of a new store, with both slots right, not yet synced.
    pub(super) fn create(store: &Path, tag: u64, testimony: &Testimony) -> io::Result<Witness> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(store.join(WITNESS))?;
        let mut witness = Witness { file, tag, counter: 0, unsynced: false };
        witness.write(testimony)?;
        witness.write(testimony)?;
        Ok(witness)
    }

    /// Opens the file and reads its newest slot; none if neither is right.
    pub(super) fn open(store: &Path, tag: u64) -> io::Result<Option<(Witness, Testimony)>> {
        let file = match OpenOptions::new().read(true).write(true).open(store.join(WITNESS)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let newest = newest_slot(&file, tag)?;
        Ok(newest.map(|(counter, testimony)| (Witness { file, tag, counter, unsynced: false }, testimony)))
    }

    /// Reads the newest slot, also while a service writes the other.
    pub(super) fn read(store: &Path, tag: u64) -> io::Result<Option<Testimony>> {
        match File::open(store.join(WITNESS)) {
            Ok(file) => Ok(newest_slot(&file, tag)?.map(|(_, testimony)| testimony)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the older slot. It survives a kill from here on, and a power cut from the next [`Witness::sync`] on.
    pub(super) fn write(&mut self, testimony: &Testimony) -> io::Result<()> {
        self.counter += 1;
        let mut bytes = [0; SLOT_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        let numbers = [self.tag, self.counter, testimony.lowest.0, testimony.generation.0, testimony.last.0, testimony.run];
        for (place, number) in bytes[8..56].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[56] = u8::from(testimony.clean);
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        self.unsynced = true;
        self.file.write_all_at(&bytes, self.counter % 2 * SLOT_DISTANCE)
    }

    /// Makes what was written last survive a power cut.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.unsynced {
            self.file.sync_data()?;
            self.unsynced = false;
        }
        Ok(())
    }
}

fn newest_slot(file: &File, tag: u64) -> io::Result<Option<(u64, Testimony)>> {
    let mut newest: Option<(u64, Testimony)> = None;
    for slot in 0..2 {
        let mut bytes = [0; SLOT_LEN];
        match file.read_exact_at(&mut bytes, slot * SLOT_DISTANCE) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => return Err(error),
        }
        if let Some(found) = parse(&bytes, tag)
            && newest.is_none_or(|known| found.0 > known.0)
        {
            newest = Some(found);
        }
    }
    Ok(newest)
}

fn parse(bytes: &[u8; SLOT_LEN], tag: u64) -> Option<(u64, Testimony)> {
    let crc = u32::from_le_bytes(bytes[CRC_AT..].try_into().expect("four bytes"));
    if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..CRC_AT]) != crc || bytes[56] > 1 {
        return None;
    }
    let number = |n: usize| u64::from_le_bytes(bytes[8 + n * 8..16 + n * 8].try_into().expect("eight bytes"));
    if number(0) != tag {
        return None;
    }
    let testimony =
        Testimony { lowest: Seq(number(2)), generation: Seq(number(3)), last: Seq(number(4)), run: number(5), clean: bytes[56] == 1 };
    Some((number(1), testimony))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTIMONY: Testimony = Testimony { lowest: Seq(1), generation: Seq(5), last: Seq(9), run: 3, clean: false };

    fn at(last: u64) -> Testimony {
        Testimony { last: Seq(last), ..TESTIMONY }
    }

    #[test]
    fn the_newest_slot_counts() {
        let store = tempfile::tempdir().unwrap();
        let mut witness = Witness::create(store.path(), 7, &TESTIMONY).unwrap();
        for last in 10..15 {
            witness.write(&at(last)).unwrap();
            assert_eq!(Witness::open(store.path(), 7).unwrap().unwrap().1, at(last));
        }
    }

    #[test]
    fn a_torn_slot_falls_back_to_the_one_before() {
        let store = tempfile::tempdir().unwrap();
        let mut witness = Witness::create(store.path(), 7, &TESTIMONY).unwrap();
        witness.write(&at(10)).unwrap();
        witness.write(&at(11)).unwrap();
        let newest = witness.counter % 2 * SLOT_DISTANCE;
        for byte in 0..SLOT_LEN as u64 {
            let mut kept = [0];
            witness.file.read_exact_at(&mut kept, newest + byte).unwrap();
            witness.file.write_all_at(&[kept[0] ^ 0x10], newest + byte).unwrap();
            assert_eq!(Witness::open(store.path(), 7).unwrap().unwrap().1, at(10), "byte {byte}");
            witness.file.write_all_at(&kept, newest + byte).unwrap();
        }
    }

    #[test]
    fn another_stores_witness_is_none() {
        let store = tempfile::tempdir().unwrap();
        Witness::create(store.path(), 7, &TESTIMONY).unwrap();
        assert!(Witness::open(store.path(), 8).unwrap().is_none());
    }
}
