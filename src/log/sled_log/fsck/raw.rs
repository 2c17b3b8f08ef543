//! One generation, as its raw files show it: its pages in order, what is missing between them, and its checkpoints.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Progress;
use crate::core::types::Seq;
use crate::log::codec::{Decoder, Kind, MAX_PAGE, parse};
use crate::log::sled_log::scan::{Place, Scan, scan_through};
use crate::log::sled_log::seal::{self, Head, PageAt};

/// What stands at some positions.
#[derive(Debug, Clone)]
pub(in crate::log::sled_log) enum Item {
    /// A page, or all parts of an event that spans several.
    Page {
        /// Its first position.
        first: Seq,
        /// Its last position.
        last: Seq,
        /// Its parts, in order.
        parts: Vec<Place>,
    },
    /// Nothing that can be read.
    Gap {
        /// The first position.
        first: Seq,
        /// The last position.
        last: Seq,
    },
}

/// A checkpoint that is whole.
#[derive(Debug, Clone)]
pub(in crate::log::sled_log) struct Stored {
    /// The first event that is not in it.
    pub(in crate::log::sled_log) next: Seq,
    pub(in crate::log::sled_log) kind: Kind,
    pub(in crate::log::sled_log) parts: Vec<Place>,
}

/// A generation.
pub(in crate::log::sled_log) struct Raw {
    db: Option<File>,
    tag: u64,
    /// If there is one and it is whole.
    pub(in crate::log::sled_log) seal: Option<(Head, Vec<PageAt>)>,
    /// A file `seal` is there, and is not what was written.
    pub(in crate::log::sled_log) is_seal_damaged: bool,
    /// What is wrong with its files, by the seal: name, and what.
    pub(in crate::log::sled_log) wrong_files: Vec<(String, String)>,
    scan: Scan,
    /// How much was read.
    pub(in crate::log::sled_log) bytes: u64,
}

/// Sums up what is read through it.
struct Summing<'a, R> {
    inner: R,
    len: u64,
    crc: u32,
    progress: &'a dyn Progress,
}

impl<R: Read> Read for Summing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.crc = crc32c::crc32c_append(self.crc, &buffer[..read]);
        self.len += read as u64;
        self.progress.done(read as u64);
        Ok(read)
    }
}

impl Raw {
    /// Reads all files of the generation that begins with `first`.
    pub(in crate::log::sled_log) fn read(folder: &Path, first: Seq, tag: u64, progress: &dyn Progress) -> io::Result<Raw> {
        let seal = seal::read_all(folder, tag)?.filter(|(head, _)| head.first == first);
        let is_seal_damaged = seal.is_none() && folder.join(seal::SEAL).exists();
        let mut raw = Raw { db: None, tag, seal, is_seal_damaged, wrong_files: Vec::new(), scan: Scan::default(), bytes: 0 };
        let mut found = Vec::new();
        match File::open(folder.join("db")) {
            Ok(file) => {
                let mut summing = Summing { inner: &file, len: 0, crc: 0, progress };
                raw.scan = scan_through(&mut summing, tag)?;
                found.push(("db".to_owned(), summing.len, summing.crc));
                raw.bytes += summing.len;
                raw.db = Some(file);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let Some((head, _)) = &raw.seal else {
            // Of one that is not sealed these must be there, whatever they hold.
            for name in ["db", "conf"].into_iter().filter(|name| !folder.join(name).exists()) {
                raw.wrong_files.push((name.into(), "it is missing".into()));
            }
            return Ok(raw);
        };
        for sum in &head.files {
            let seen = match found.iter().find(|(name, ..)| *name == sum.name) {
                Some((_, len, crc)) => Some((*len, *crc)),
                None => match seal::checksum(&folder.join(&sum.name)) {
                    Ok(seen) => Some(seen),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(error),
                },
            };
            let what = match seen {
                None => "it is missing".to_owned(),
                Some((len, _)) if len != sum.len => format!("it has {len} bytes and must have {}", sum.len),
                Some((_, crc)) if crc != sum.crc => "it has been changed since it was closed (checksum)".to_owned(),
                Some(_) => continue,
            };
            raw.wrong_files.push((sum.name.clone(), what));
        }
        Ok(raw)
    }

    /// Whether all its files are as they were sealed.
    pub(in crate::log::sled_log) fn is_as_sealed(&self) -> bool {
        self.seal.is_some() && self.wrong_files.is_empty()
    }

    /// The position after its last event, where the seal says so.
    pub(in crate::log::sled_log) fn sealed_next(&self) -> Option<Seq> {
        self.seal.as_ref().map(|(head, _)| head.next)
    }

    /// What stands at `first..end`. Beyond `certain`, the last position that must be there, only whole commits count that follow on.
    pub(in crate::log::sled_log) fn items(&self, first: Seq, end: Option<Seq>, certain: Option<Seq>) -> Vec<Item> {
        let mut items = Vec::new();
        let mut next = first;
        for (&(page_first, part), place) in self.scan.events.range((first, 0)..) {
            if part != 0 || page_first < next || end.is_some_and(|end| place.header.last() >= end) {
                continue;
            }
            let Some(parts) = self.parts(place) else { continue };
            if page_first > next {
                if end.is_none() && certain.is_some_and(|certain| page_first > certain.next()) {
                    // Behind what must be there, and not joined to it: what a torn commit has left.
                    break;
                }
                items.push(Item::Gap { first: next, last: Seq(page_first.0 - 1) });
            }
            next = place.header.last().next();
            items.push(Item::Page { first: page_first, last: place.header.last(), parts });
        }
        let end = end.unwrap_or_else(|| {
            if let Some(certain) = certain {
                drop_torn_commit(&mut items, certain);
            }
            let last = items.last().map_or(Seq(first.0 - 1), Item::last);
            last.max(certain.unwrap_or_default()).next()
        });
        let next = items.last().map_or(first, |item| item.last().next());
        if next < end {
            items.push(Item::Gap { first: next, last: Seq(end.0 - 1) });
        }
        items
    }

    fn parts(&self, place: &Place) -> Option<Vec<Place>> {
        if let Some((_, pages)) = &self.seal {
            // The seal was made when all was whole: what it does not name, or names otherwise, is none of its pages.
            let at = pages.partition_point(|page| (page.first, page.part) < (place.header.first, 0));
            pages.get(at).filter(|page| page.first == place.header.first && page.len as usize == place.header.page_len())?;
        }
        (0..place.header.parts).map(|part| self.scan.events.get(&(place.header.first, part)).copied()).collect()
    }

    /// Whether a whole page stands where the seal says; elsewhere it may have another copy.
    pub(in crate::log::sled_log) fn moved_pages(&self) -> Vec<PageAt> {
        let Some((_, pages)) = &self.seal else { return Vec::new() };
        let mut moved = Vec::new();
        for page in pages {
            let stands = self.db.as_ref().is_some_and(|db| {
                let mut bytes = vec![0; (page.len as usize).min(MAX_PAGE)];
                db.read_exact_at(&mut bytes, page.offset).is_ok() && parse(self.tag, &bytes).is_ok()
            });
            if !stands {
                moved.push(*page);
            }
        }
        moved
    }

    /// Its checkpoints that are whole, in the order in which they were written.
    pub(in crate::log::sled_log) fn checkpoints(&self) -> Vec<Stored> {
        let whole = self.scan.checkpoints.iter().filter_map(|((next, kind, _), parts)| {
            let wanted = parts.values().next()?.header.parts;
            (parts.len() == wanted as usize).then(|| Stored { next: *next, kind: *kind, parts: parts.values().copied().collect() })
        });
        whole.collect()
    }

    /// The checkpoint that it begins with.
    pub(in crate::log::sled_log) fn opening(&self, first: Seq) -> Option<Stored> {
        self.checkpoints().into_iter().rfind(|stored| stored.kind == Kind::OpeningCheckpoint && stored.next == first)
    }

    /// The bytes of these pages.
    pub(in crate::log::sled_log) fn bytes_of(&self, parts: &[Place]) -> io::Result<Vec<Vec<u8>>> {
        let db = self.db.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let read = |place: &Place| {
            let mut bytes = vec![0; place.header.page_len()];
            db.read_exact_at(&mut bytes, place.offset).map(|()| bytes)
        };
        parts.iter().map(read).collect()
    }

    /// What a checkpoint holds.
    pub(in crate::log::sled_log) fn checkpoint_bytes(&self, stored: &Stored, decoder: &mut Decoder) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        for part in self.bytes_of(&stored.parts).map_err(|error| error.to_string())? {
            let parsed = parse(self.tag, &part).map_err(|error| error.to_string())?;
            decoder.checkpoint_part(&parsed, &mut bytes).map_err(|error| error.to_string())?;
        }
        Ok(bytes)
    }
}

impl Item {
    /// The start of the store that wrote it.
    pub(in crate::log::sled_log) fn run(&self) -> Option<u64> {
        match self {
            Item::Page { parts, .. } => parts.first().map(|place| place.header.run),
            Item::Gap { .. } => None,
        }
    }

    pub(in crate::log::sled_log) fn last(&self) -> Seq {
        match self {
            Item::Page { last, .. } | Item::Gap { last, .. } => *last,
        }
    }
}

/// Takes out what a kill left of a commit that nobody was told of.
fn drop_torn_commit(items: &mut Vec<Item>, certain: Seq) {
    let is_end = |parts: &[Place]| parts.last().is_some_and(|place| place.header.page + 1 == place.header.pages);
    while let Some(Item::Page { last, parts, .. }) = items.last() {
        if *last <= certain || is_end(parts) {
            return;
        }
        items.pop();
    }
}
