//! Pages: the stored form of events and checkpoints.
//!
//! A commit is packed into pages. One page is one value in the store, and it proves by itself what it is, so that it can be found again
//! in a raw file whose structure is lost.
//!
//! # Constraints
//! * A value must stay small: 17 × the largest one < a quarter of sled's segment, or sled moves it to a file that it never syncs
//!   ([`Limits`] derives the caps from the segment size and asserts this).
//! * A page ends where a commit ends, so that pages are never rewritten and keys only grow.
//! * What is read may be anything: every length is checked against its limit before memory is taken for it.
//! * No payload may pose as a page: the *tag* is random per store and, unlike the store's id, never leaves the disk.
//!
//! # Format (version 1; integers little-endian)
//! ```text
//!   0  magic            8    "\xf1TIDPAG\x01"
//!   8  tag              8    the store's
//!  16  format version   2
//!  18  kind             1    0 opening checkpoint · 1 checkpoint · 2 events
//!  19  flags            1    bit 0: the body is compressed with zstd
//!  20  part, parts      4+4  an event (or checkpoint) larger than a page spans several
//!  28  page, pages      4+4  this page within its commit: a torn commit is seen by its missing pages
//!  36  run              8    counts the starts of the store: of two pages for one position, the later run's is right
//!  44  first            8    position of the first event; for a checkpoint, the first event not in it
//!  52  count            4    events in the page
//!  56  index length     4
//!  60  raw length       4    of the body before compression
//!  64  body length      4
//!  68  CRC32C           4    over everything else
//!  72  index                 postcard, see [`Index`]
//!   …  body                  `count` events in postcard, one after the other; or a part of one; or a part of a checkpoint
//! ```

mod decode;
mod encode;
mod index;
mod raw;

pub use decode::{Decoder, Parsed, parse, parse_prefix};
pub use encode::{Encoder, StoredPage};
pub use index::{Index, Touched};
pub use raw::RawPage;

use crate::core::types::Seq;

/// The version of the page format, which is the version of the store's format.
pub const FORMAT_VERSION: u16 = 1;
/// What every page begins with; the store's tag follows.
pub const MAGIC: [u8; 8] = *b"\xf1TIDPAG\x01";
/// The length of the fixed part of a page.
pub const HEADER_LEN: usize = 72;
/// The most that a body holds before compression. Larger pages compress no better, and a reader decodes whole pages.
pub const MAX_BODY: usize = 64 * 1024;
/// The most that an index takes.
pub const MAX_INDEX: usize = 32 * 1024;
/// The largest encoded event. Requests are limited to less than this; it bounds what a reader assembles.
pub const MAX_EVENT: usize = 16 * 1024 * 1024;
/// The longest page of any store.
pub const MAX_PAGE: usize = HEADER_LEN + MAX_INDEX + MAX_BODY;

const CRC_AT: usize = 68;
const FLAG_ZSTD: u8 = 1;

/// What a page holds. The order is the order of keys at one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A part of the checkpoint that a generation begins with.
    OpeningCheckpoint = 0,
    /// A part of a checkpoint written at a clean stop.
    Checkpoint = 1,
    /// Events.
    Events = 2,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            0 => Some(Kind::OpeningCheckpoint),
            1 => Some(Kind::Checkpoint),
            2 => Some(Kind::Events),
            _ => None,
        }
    }
}

/// The key of a page: rises with every page that is written, because sled reclaims nothing under keys that come in random order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageKey {
    /// The position of the first event.
    pub first: Seq,
    /// What the page holds.
    pub kind: Kind,
    /// The start that wrote a checkpoint; 0 for events, of which there is one page for a position.
    pub run: u64,
    /// Which part.
    pub part: u32,
}

impl PageKey {
    /// The length of a key.
    pub const LEN: usize = 21;

    /// The key that comes right after every event page that begins at `seq` or before.
    pub fn after(seq: Seq) -> [u8; Self::LEN] {
        let mut bytes = [0xff; Self::LEN];
        bytes[..8].copy_from_slice(&seq.0.to_be_bytes());
        bytes
    }

    /// The key as stored: big-endian, so that byte order is the order of positions.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.first.0.to_be_bytes());
        bytes[8] = self.kind as u8;
        bytes[9..17].copy_from_slice(&self.run.to_be_bytes());
        bytes[17..].copy_from_slice(&self.part.to_be_bytes());
        bytes
    }
}

/// The fixed part of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the page holds.
    pub kind: Kind,
    /// Whether the body is compressed.
    pub compressed: bool,
    /// Which part of what it holds, from 0.
    pub part: u32,
    /// How many parts there are.
    pub parts: u32,
    /// Which page of its commit, from 0.
    pub page: u32,
    /// How many pages the commit has.
    pub pages: u32,
    /// The start of the store that wrote it.
    pub run: u64,
    /// The position of the first event.
    pub first: Seq,
    /// How many events.
    pub count: u32,
    /// The index, in bytes.
    pub index_len: u32,
    /// The body before compression, in bytes.
    pub raw_len: u32,
    /// The body as stored, in bytes.
    pub body_len: u32,
}

impl Header {
    /// The position of the last event.
    pub fn last(&self) -> Seq {
        Seq(self.first.0 + u64::from(self.count.max(1)) - 1)
    }

    /// The key that the page is stored under.
    pub fn key(&self) -> PageKey {
        let run = if self.kind == Kind::Events { 0 } else { self.run };
        PageKey { first: self.first, kind: self.kind, run, part: self.part }
    }

    /// The length of the whole page.
    pub fn page_len(&self) -> usize {
        HEADER_LEN + self.index_len as usize + self.body_len as usize
    }

    /// The header's bytes, with a zero checksum.
    fn to_bytes(self, tag: u64) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&tag.to_le_bytes());
        bytes[16..18].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[18] = self.kind as u8;
        bytes[19] = if self.compressed { FLAG_ZSTD } else { 0 };
        bytes[20..24].copy_from_slice(&self.part.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.parts.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.page.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.pages.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.run.to_le_bytes());
        bytes[44..52].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.count.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.index_len.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.body_len.to_le_bytes());
        bytes
    }
}

/// How large the parts of a page may become, which follows from the size of sled's segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most that a body holds before compression.
    pub body: usize,
    /// The most that an index takes.
    pub index: usize,
}

impl Limits {
    /// The smallest segment for which pages are still of use.
    pub const MIN_SEGMENT: usize = 64 * 1024;
    /// The largest segment that sled takes.
    pub const MAX_SEGMENT: usize = 16 * 1024 * 1024;

    /// The limits for a store with segments of `segment_size` bytes.
    ///
    /// # Panics
    /// If `segment_size` is not within [`Limits::MIN_SEGMENT`] and [`Limits::MAX_SEGMENT`].
    pub fn for_segment(segment_size: usize) -> Limits {
        assert!((Self::MIN_SEGMENT..=Self::MAX_SEGMENT).contains(&segment_size), "segments are of 64 KiB to 16 MiB");
        // A leaf splits at 16 entries, so that it may hold 17 of the largest value for a moment.
        let value = (segment_size / 4 - 1) / 17;
        let usable = value - HEADER_LEN;
        let index = MAX_INDEX.min(usable / 3);
        let limits = Limits { body: MAX_BODY.min(usable - index), index };
        assert!(17 * limits.largest_value() < segment_size / 4, "a full leaf of the largest values stays out of blob files");
        limits
    }

    /// The largest page.
    pub fn largest_value(&self) -> usize {
        HEADER_LEN + self.index + self.body
    }
}

/// Why bytes are not a page of this store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// No magic, another store's tag, or too short to tell.
    #[error("no page of this store stands here")]
    NotAPage,
    /// A newer release's page.
    #[error("the page has format {0}, which this release does not know")]
    UnknownVersion(u16),
    /// A length or number in the header can't be right.
    #[error("the page's header is impossible: {0}")]
    Header(&'static str),
    /// The bytes are not those that were written.
    #[error("the page's checksum is wrong")]
    Checksum,
    /// The checksum is right, but the content makes no sense.
    #[error("the page's content can't be decoded: {0}")]
    Content(String),
}

#[cfg(test)]
mod tests;
