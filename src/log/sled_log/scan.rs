//! Finds pages in a generation's raw file, without sled and without writing a byte.
//!
//! Opening a damaged sled database zeroes what it can't read, so whether all is there is found out before it is opened. sled writes
//! values verbatim and contiguous into its file `db`, and a page proves by itself what it is.
//!
//! The same page is often there more than once: each rewrite of a tree node copies it, and freed segments keep old bytes. Two *different*
//! pages for one position happen in one way only: a kill let a commit reach the file but not be accepted, and the next run
//! used its positions again. So a later run's pages void everything at or behind the position where that run began to write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use memchr::memmem::Finder;

use crate::core::types::{Millis, Seq};
use crate::log::codec::{Header, Kind, MAGIC, MAX_PAGE, parse_prefix};

/// Bytes read at once: large enough that the calls cost nothing, small enough for the processor's cache to help.
const CHUNK_LEN: usize = 2 * 1024 * 1024;

/// Where a page stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) header: Header,
    pub(super) offset: u64,
    /// The latest time in it.
    pub(super) newest: Option<Millis>,
}

/// The pages of a generation, each position once.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// By first position and part.
    pub(super) events: BTreeMap<(Seq, u32), Place>,
    /// By position, kind, run and part.
    pub(super) checkpoints: BTreeMap<(Seq, Kind, u64), BTreeMap<u32, Place>>,
}

/// Finds every page of the store with `tag` in the file `db` of `folder`.
pub(super) fn scan(folder: &Path, tag: u64) -> io::Result<Scan> {
    match File::open(folder.join("db")) {
        Ok(file) => scan_through(file, tag),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Scan::default()),
        Err(error) => Err(error),
    }
}

/// Finds every page of the store with `tag` in what `file` gives, which is read to its end.
pub(super) fn scan_through(file: impl Read, tag: u64) -> io::Result<Scan> {
    let mut found = Vec::new();
    each_page(file, Some(tag), |_, place| found.push(place))?;
    Ok(Scan::of(found))
}

/// How many pages there are of each store, by its tag, in the file `db` of `folder`. Only a page whose checksum is right counts.
pub(super) fn tags(folder: &Path) -> io::Result<BTreeMap<u64, u64>> {
    let mut tags = BTreeMap::new();
    match File::open(folder.join("db")) {
        Ok(file) => each_page(file, None, |tag, _| *tags.entry(tag).or_insert(0) += 1)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(tags)
}

/// Calls `seen` with the offset, the first position and the bytes of whatever begins like a page of the store with `tag`, and is none.
pub(super) fn each_broken(file: impl Read, tag: u64, mut seen: impl FnMut(u64, Seq, &[u8])) -> io::Result<()> {
    const FIRST_AT: usize = 44;
    each_hit(file, Some(tag), |offset, here| {
        let parsed = parse_prefix(tag, here);
        if parsed.is_err()
            && let Some(first) = here.get(FIRST_AT..FIRST_AT + 8)
        {
            let first = Seq(u64::from_le_bytes(first.try_into().expect("eight bytes")));
            seen(offset, first, &here[..here.len().min(MAX_PAGE)]);
        }
        parsed.map_or(1, |parsed| parsed.header.page_len())
    })
}

/// Calls `seen` with each page whose checksum is right, and its store's tag: of the store with `tag`, or of any.
fn each_page(file: impl Read, tag: Option<u64>, mut seen: impl FnMut(u64, Place)) -> io::Result<()> {
    each_hit(file, tag, |offset, here| {
        let tag = tag.or_else(|| Some(u64::from_le_bytes(here.get(8..16)?.try_into().ok()?))).unwrap_or_default();
        let Ok(parsed) = parse_prefix(tag, here) else { return 1 };
        let newest = parsed.index().ok().and_then(|index| index.times).map(|times| times.1);
        seen(tag, Place { header: parsed.header, offset, newest });
        parsed.header.page_len()
    })
}

/// Calls `seen` with the offset of whatever begins like a page, and what stands there; goes on as many bytes behind that as it says.
fn each_hit(mut file: impl Read, tag: Option<u64>, mut seen: impl FnMut(u64, &[u8]) -> usize) -> io::Result<()> {
    let mut needle = MAGIC.to_vec();
    needle.extend(tag.map(u64::to_le_bytes).into_iter().flatten());
    let finder = Finder::new(&needle);
    let mut buffer = vec![0; CHUNK_LEN + MAX_PAGE];
    let (mut filled, mut offset, mut ended) = (0, 0u64, false);
    loop {
        while !ended && filled < buffer.len() {
            let read = file.read(&mut buffer[filled..])?;
            ended = read == 0;
            filled += read;
        }
        let mut at = 0;
        // A page that begins behind this mark may reach over the end of the buffer: it waits for the next round.
        let mark = if ended { filled } else { filled - MAX_PAGE };
        while at < mark
            && let Some(hit) = finder.find(&buffer[at..filled])
        {
            at += hit;
            if at >= mark {
                break;
            }
            at += seen(offset + at as u64, &buffer[at..filled]);
        }
        if ended {
            return Ok(());
        }
        let kept = at.clamp(mark, filled);
        // Without a hit, `at` stands still: everything before the mark has been searched.
        buffer.copy_within(kept..filled, 0);
        offset += kept as u64;
        filled -= kept;
    }
}

impl Scan {
    fn of(found: Vec<Place>) -> Scan {
        let mut began: BTreeMap<u64, Seq> = BTreeMap::new();
        for place in found.iter().filter(|place| place.header.kind == Kind::Events) {
            let first = began.entry(place.header.run).or_insert(place.header.first);
            *first = (*first).min(place.header.first);
        }
        // For each run: where the first of the later ones began to write.
        let mut voided_from = Seq(u64::MAX);
        let mut bounds: BTreeMap<u64, Seq> = BTreeMap::new();
        for (&run, &first) in began.iter().rev() {
            bounds.insert(run, voided_from);
            voided_from = voided_from.min(first);
        }
        let mut scan = Scan::default();
        for place in found {
            let header = place.header;
            if header.kind != Kind::Events {
                scan.checkpoints.entry((header.first, header.kind, header.run)).or_default().insert(header.part, place);
            } else if bounds.get(&header.run).is_some_and(|&bound| header.last() < bound) {
                scan.events.insert((header.first, header.part), place);
            }
        }
        scan
    }

    /// The pages that hold `first..=last`, in order, or what is missing.
    pub(super) fn covering(&self, first: Seq, last: Seq) -> Result<Vec<Place>, String> {
        let mut pages = Vec::new();
        let mut next = first;
        while next <= last {
            let Some(place) = self.events.get(&(next, 0)) else {
                let found = self.events.range((next, 0)..).next().map(|(key, _)| key.0);
                let until = found.map_or(last, |found| Seq(found.0 - 1).min(last));
                return Err(format!("events {next} to {until} are not in it"));
            };
            pages.push(*place);
            for part in 1..place.header.parts {
                let Some(place) = self.events.get(&(next, part)) else {
                    return Err(format!("part {part} of event {next} is not in it"));
                };
                pages.push(*place);
            }
            next = place.header.last().next();
        }
        Ok(pages)
    }

    /// The bytes of the checkpoints that clean stops have written.
    pub(super) fn closing_checkpoints_len(&self) -> u64 {
        let closing = self.checkpoints.iter().filter(|(key, _)| key.1 == Kind::Checkpoint).flat_map(|(_, parts)| parts.values());
        closing.map(|place| place.header.page_len() as u64).sum()
    }

    /// Whether a whole checkpoint of this kind for `next` is there.
    pub(super) fn has_checkpoint(&self, kind: Kind, next: Seq) -> bool {
        self.checkpoints
            .range((next, kind, 0)..=(next, kind, u64::MAX))
            .any(|(_, parts)| parts.values().next().is_some_and(|place| place.header.parts as usize == parts.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::codec::{Encoder, Limits};

    fn page_of(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        getrandom::fill(&mut bytes).unwrap();
        let limits = Limits::for_segment(8 << 20);
        Encoder::new(7, 1, limits).unwrap().checkpoint(Kind::Checkpoint, Seq(5), &bytes).unwrap().remove(0).bytes
    }

    #[test]
    fn a_page_is_found_wherever_it_stands_in_the_file() {
        let page = page_of(60_000);
        for around in [0, CHUNK_LEN - page.len(), CHUNK_LEN - 8, CHUNK_LEN, CHUNK_LEN + MAX_PAGE - page.len(), 2 * CHUNK_LEN + 1] {
            for offset in around.saturating_sub(9)..around + 9 {
                let mut file = vec![0x5a; offset];
                file.extend_from_slice(&page);
                file.extend_from_slice(&[0xf1; 100]);
                let mut found = Vec::new();
                each_page(&file[..], Some(7), |_, place| found.push((place.offset, place.header.first))).unwrap();
                assert_eq!(found, [(offset as u64, Seq(5))]);
            }
        }
    }

    #[test]
    fn what_a_later_run_wrote_again_is_right() {
        let header = |run, first, count| {
            let parsed_from = page_of(10);
            let header = parse_prefix(7, &parsed_from).unwrap().header;
            Place { header: Header { kind: Kind::Events, run, first: Seq(first), count, ..header }, offset: run, newest: None }
        };
        let scan = Scan::of(vec![header(1, 1, 3), header(1, 4, 3), header(2, 4, 2), header(3, 6, 1), header(1, 7, 2)]);
        let runs: Vec<u64> = scan.covering(Seq(1), Seq(6)).unwrap().iter().map(|place| place.header.run).collect();
        assert_eq!(runs, [1, 2, 3]);
        assert_eq!(scan.covering(Seq(1), Seq(8)).unwrap_err(), "events 7 to 8 are not in it");
    }
}
