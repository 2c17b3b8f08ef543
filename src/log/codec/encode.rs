//! Events and checkpoints → pages.

use std::collections::HashMap;
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
pub struct Encoder {
    tag: u64,
    run: u64,
    limits: Limits,
    zstd: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
    index: IndexBuilder,
}

/// What the pages of one commit share while they are made.
struct Commit<'a> {
    next_send: &'a dyn Fn(&LaneKey) -> SendNo,
    sent: HashMap<LaneKey, SendNo>,
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
        Ok(Encoder { tag, run, limits, zstd, raw: Vec::new(), index: IndexBuilder::default() })
    }

    /// The pages of one commit of `events`, the first of which gets position `first`.
    ///
    /// # Errors
    /// [`AppendError::TooLarge`] for a single event beyond [`MAX_EVENT`], or one whose lane's name leaves no room for the index.
    pub fn events(&mut self, first: Seq, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Vec<StoredPage>, AppendError> {
        let mut commit = Commit { next_send, sent: HashMap::new(), pages: Vec::new() };
        let mut start = 0;
        // What an earlier commit that failed may have left behind.
        self.raw.clear();
        self.index = IndexBuilder::default();
        for (at, event) in events.iter().enumerate() {
            let before = self.raw.len();
            self.push(event)?;
            let mut bound = self.index.bound_with(event);
            let fits = self.raw.len() <= self.limits.body && bound <= self.limits.index;
            if !fits && start < at {
                let tail = self.raw.split_off(before);
                self.cut(&mut commit, Seq(first.0 + start as u64), &events[start..at])?;
                self.raw = tail;
                start = at;
                bound = self.index.bound_with(event);
            }
            if bound > self.limits.index {
                return Err(AppendError::TooLarge { size: bound, limit: self.limits.index });
            }
            let number = commit.number(event);
            self.index.add(event, number);
            if self.raw.len() > self.limits.body {
                self.cut(&mut commit, Seq(first.0 + at as u64), &events[at..=at])?;
                start = at + 1;
            }
        }
        if start < events.len() {
            self.cut(&mut commit, Seq(first.0 + start as u64), &events[start..])?;
        }
        Ok(self.sealed(commit.pages))
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

    /// Makes the pages of what stands in `raw`: one, or several for a single event that is larger than a page.
    fn cut(&mut self, commit: &mut Commit<'_>, first: Seq, events: &[Event]) -> Result<(), AppendError> {
        let index = self.index.finish();
        let encoded = postcard::to_stdvec(&index).map_err(|error| AppendError::Io(format!("encoding an index: {error}")))?;
        assert!(encoded.len() <= self.limits.index, "the index stays within its bound");
        let raw = std::mem::take(&mut self.raw);
        let parts = raw.len().div_ceil(self.limits.body).max(1);
        assert!(parts == 1 || events.len() == 1, "only a single event spans pages");
        for (part, slice) in raw.chunks(self.limits.body).enumerate() {
            let header = self.header(Kind::Events, first, events.len(), part, parts);
            commit.pages.push(self.page(header, if part == 0 { &encoded } else { &[] }, slice)?);
        }
        let last = &mut commit.pages.last_mut().expect("an event has at least one byte").1;
        last.newest = index.times.map(|times| times.1);
        last.page = Some(Arc::new(Page { first, events: events.to_vec(), sends: index.sends }));
        self.raw = raw;
        self.raw.clear();
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
        let mut bytes = Vec::with_capacity(HEADER_LEN + index.len() + zstd::zstd_safe::compress_bound(raw.len()));
        bytes.resize(HEADER_LEN, 0);
        bytes.extend_from_slice(index);
        let body_at = bytes.len();
        bytes.resize(bytes.capacity(), 0);
        let compressed = self
            .zstd
            .compress_to_buffer(raw, &mut bytes[body_at..])
            .map_err(|error| AppendError::Io(format!("compressing a page: {error}")))?;
        header.compressed = compressed < raw.len();
        if header.compressed {
            bytes.truncate(body_at + compressed);
        } else {
            bytes.truncate(body_at);
            bytes.extend_from_slice(raw);
        }
        let small = |number: usize| u32::try_from(number).expect("parts of a page are bounded by its limits");
        header.index_len = small(index.len());
        header.raw_len = small(raw.len());
        header.body_len = small(bytes.len() - body_at);
        assert!(bytes.len() <= self.limits.largest_value(), "a page stays within the limit of a stored value");
        bytes.shrink_to_fit();
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

impl Commit<'_> {
    /// The lane's next send number before `event`, if it takes one, which is then spent.
    fn number(&mut self, event: &Event) -> Option<SendNo> {
        let lane = sends(event)?;
        if let Some(next) = self.sent.get_mut(lane) {
            let number = *next;
            *next = number.next();
            return Some(number);
        }
        let number = (self.next_send)(lane);
        self.sent.insert(lane.clone(), number.next());
        Some(number)
    }
}
