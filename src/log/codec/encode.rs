//! Events and checkpoints → pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::index::{IndexBuilder, sends};
use super::{CRC_AT, HEADER_LEN, Header, Kind, Limits, MAX_EVENT, PageKey};
use crate::core::event::Event;
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
use crate::log::{AppendError, Page};

/// A page that is ready to be stored.
pub struct StoredPage {
    /// Where.
    pub key: PageKey,
    /// What.
    pub bytes: Vec<u8>,
    /// The same, decoded, for readers that follow closely: on the last page of an event that spans several, and on every other
    /// page of events.
    pub page: Option<Arc<Page>>,
    /// The latest time in it.
    pub newest: Option<Millis>,
}

/// Encodes commits. Keeps its buffers and its compression context, which cost more than a small commit.
///
/// A commit can be added to piece by piece: each page is compressed as soon as it is full, while the commit before is still on its way to the disk.
pub struct Encoder {
    tag: u64,
    run: u64,
    limits: Limits,
    zstd: zstd::bulk::Compressor<'static>,
    /// What compression writes into: as long as the longest that can come of a page.
    compressed: Vec<u8>,
    raw: Vec<u8>,
    index: IndexBuilder,
    commit: Commit,
}

/// A commit that is being made.
#[derive(Default)]
struct Commit {
    /// The position of the first event of the page that is being filled.
    first: Seq,
    /// The events of that page.
    events: Vec<Event>,
    /// The next send number of each lane that has a send in the commit, behind it.
    sent: BTreeMap<LaneKey, SendNo>,
    /// The pages that are full.
    pages: Vec<(Header, StoredPage)>,
}

impl Encoder {
    /// An encoder of pages for the store with `tag`, in its `run`-th start.
    ///
    /// # Errors
    /// If the compression context can't be made (memory).
    pub fn new(tag: u64, run: u64, limits: Limits) -> std::io::Result<Encoder> {
        // Level 1: level 3 gains nothing on reports, and lz4 half as much.
        let zstd = zstd::bulk::Compressor::new(1)?;
        let compressed = vec![0; zstd::zstd_safe::compress_bound(limits.body)];
        Ok(Encoder { tag, run, limits, zstd, compressed, raw: Vec::new(), index: IndexBuilder::default(), commit: Commit::default() })
    }

    /// The pages of one commit of `events`, the first of which gets position `first`.
    ///
    /// # Errors
    /// As [`Encoder::add`].
    pub fn events(&mut self, first: Seq, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Vec<StoredPage>, AppendError> {
        self.begin(first);
        self.add(events, next_send)?;
        self.finish()
    }

    /// Begins a commit, the first event of which gets position `first`. What was added to one before that has not been finished is forgotten.
    pub fn begin(&mut self, first: Seq) {
        self.raw.clear();
        self.index.clear();
        self.commit = Commit { first, ..Commit::default() };
    }

    /// Adds events to the commit. `next_send` gives the next send number of a lane before the commit, or before the piece of it in which the lane comes first.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`] for a single event beyond [`MAX_EVENT`], or one whose lane's name leaves no room for the index. The commit is to be
    /// begun anew then.
    pub fn add(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<(), AppendError> {
        for event in events {
            let before = self.raw.len();
            self.push(event)?;
            let mut bound = self.index.bound_with(event);
            let fits = self.raw.len() <= self.limits.body && bound <= self.limits.index;
            if !fits && !self.commit.events.is_empty() {
                self.cut(before)?;
                bound = self.index.bound_with(event);
            }
            if bound > self.limits.index {
                return Err(AppendError::TooLarge { size: bound, limit: self.limits.index });
            }
            let number = self.commit.number(event, next_send);
            self.index.add(event, number);
            self.commit.events.push(event.clone());
            if self.raw.len() > self.limits.body {
                self.cut(self.raw.len())?;
            }
        }
        Ok(())
    }

    /// The pages of the commit.
    ///
    /// # Errors
    /// [`AppendError::Io`] if compression fails (memory).
    pub fn finish(&mut self) -> Result<Vec<StoredPage>, AppendError> {
        if !self.commit.events.is_empty() {
            self.cut(self.raw.len())?;
        }
        let pages = std::mem::take(&mut self.commit.pages);
        Ok(self.sealed(pages))
    }

    /// The pages of a checkpoint as of the event at `next`.
    ///
    /// # Errors
    /// [`AppendError::Io`] if compression fails (memory).
    pub fn checkpoint(&mut self, kind: Kind, next: Seq, bytes: &[u8]) -> Result<Vec<StoredPage>, AppendError> {
        let mut pages = Vec::new();
        let parts = bytes.len().div_ceil(self.limits.body).max(1);
        for part in 0..parts {
            let slice = &bytes[part * self.limits.body..bytes.len().min((part + 1) * self.limits.body)];
            let header = self.header(kind, next, 0, part, parts);
            pages.push(self.page(header, &[], slice)?);
        }
        Ok(self.sealed(pages))
    }

    fn push(&mut self, event: &Event) -> Result<(), AppendError> {
        let before = self.raw.len();
        let raw = std::mem::take(&mut self.raw);
        self.raw = postcard::to_extend(event, raw).map_err(|error| AppendError::Io(format!("encoding an event: {error}")))?;
        let size = self.raw.len() - before;
        if size > MAX_EVENT { Err(AppendError::TooLarge { size, limit: MAX_EVENT }) } else { Ok(()) }
    }

    /// Makes the pages of the first `len` bytes that stand in `raw`: one, or several for a single event that is larger than a page.
    fn cut(&mut self, len: usize) -> Result<(), AppendError> {
        let index = self.index.finish();
        let encoded = postcard::to_stdvec(&index).map_err(|error| AppendError::Io(format!("encoding an index: {error}")))?;
        assert!(encoded.len() <= self.limits.index, "the index stays within its bound");
        let events = std::mem::take(&mut self.commit.events);
        let first = self.commit.first;
        self.commit.first = Seq(first.0 + events.len() as u64);
        let mut raw = std::mem::take(&mut self.raw);
        let parts = len.div_ceil(self.limits.body).max(1);
        assert!(parts == 1 || events.len() == 1, "only a single event spans pages");
        for (part, slice) in raw[..len].chunks(self.limits.body).enumerate() {
            let header = self.header(Kind::Events, first, events.len(), part, parts);
            let page = self.page(header, if part == 0 { &encoded } else { &[] }, slice)?;
            self.commit.pages.push(page);
        }
        let last = &mut self.commit.pages.last_mut().expect("an event has at least one byte").1;
        last.newest = index.times.map(|times| times.1);
        last.page = Some(Arc::new(Page { first, events, sends: index.sends }));
        raw.drain(..len);
        self.raw = raw;
        Ok(())
    }

    fn header(&self, kind: Kind, first: Seq, count: usize, part: usize, parts: usize) -> Header {
        let small = |number: usize| u32::try_from(number).expect("counts within a commit are bounded by the bytes of a request");
        Header {
            kind,
            compressed: false,
            part: small(part),
            parts: small(parts),
            page: 0,
            pages: 0,
            run: self.run,
            first,
            count: small(count),
            index_len: 0,
            raw_len: 0,
            body_len: 0,
        }
    }

    fn page(&mut self, mut header: Header, index: &[u8], raw: &[u8]) -> Result<(Header, StoredPage), AppendError> {
        let compressed = self
            .zstd
            .compress_to_buffer(raw, &mut self.compressed[..])
            .map_err(|error| AppendError::Io(format!("compressing a page: {error}")))?;
        header.compressed = compressed < raw.len();
        let body = if header.compressed { &self.compressed[..compressed] } else { raw };
        // Its exact length: pages are kept for a while, and copied by sled.
        let mut bytes = Vec::with_capacity(HEADER_LEN + index.len() + body.len());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend_from_slice(index);
        bytes.extend_from_slice(body);
        let small = |number: usize| u32::try_from(number).expect("parts of a page are bounded by its limits");
        header.index_len = small(index.len());
        header.raw_len = small(raw.len());
        header.body_len = small(body.len());
        assert!(bytes.len() <= self.limits.largest_value(), "a page stays within the limit of a stored value");
        Ok((header, StoredPage { key: header.key(), bytes, page: None, newest: None }))
    }

    /// Now that the number of pages is known, writes headers and checksums.
    fn sealed(&self, pages: Vec<(Header, StoredPage)>) -> Vec<StoredPage> {
        let count = u32::try_from(pages.len()).expect("counts within a commit are bounded by the bytes of a request");
        let numbered = (0u32..).zip(pages);
        numbered
            .map(|(number, (mut header, mut stored))| {
                header.page = number;
                header.pages = count;
                let head = header.to_bytes(self.tag);
                stored.bytes[..HEADER_LEN].copy_from_slice(&head);
                let crc = checksum(&stored.bytes);
                stored.bytes[CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
                stored
            })
            .collect()
    }
}

/// CRC32C of a page without the checksum's own bytes.
pub(super) fn checksum(page: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&page[..CRC_AT]), &page[HEADER_LEN..])
}

impl Commit {
    /// The lane's next send number before `event`, if it takes one, which is then spent.
    fn number(&mut self, event: &Event, next_send: &dyn Fn(&LaneKey) -> SendNo) -> Option<SendNo> {
        let lane = sends(event)?;
        if let Some(next) = self.sent.get_mut(lane) {
            let number = *next;
            *next = number.next();
            return Some(number);
        }
        let number = next_send(lane);
        self.sent.insert(lane.clone(), number.next());
        Some(number)
    }
}
