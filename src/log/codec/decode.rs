//! Bytes → pages. The bytes may be anything.

use super::encode::checksum;
use super::{CRC_AT, FLAG_ZSTD, FORMAT_VERSION, HEADER_LEN, Header, Index, Kind, MAGIC, MAX_BODY, MAX_EVENT, MAX_INDEX, PageError};
use crate::core::event::Event;
use crate::core::types::Seq;
use crate::log::Page;

/// A page whose checksum is right, not yet decoded.
#[derive(Debug, Clone, Copy)]
pub struct Parsed<'a> {
    /// Its fixed part.
    pub header: Header,
    pub(super) index: &'a [u8],
    pub(super) body: &'a [u8],
}

/// Reads the page that `bytes` are.
///
/// # Errors
/// A [`PageError`] if they are anything else, with bytes to spare included.
pub fn parse(tag: u64, bytes: &[u8]) -> Result<Parsed<'_>, PageError> {
    let parsed = parse_prefix(tag, bytes)?;
    if parsed.header.page_len() == bytes.len() { Ok(parsed) } else { Err(PageError::Header("bytes follow the page")) }
}

/// Reads the page that `bytes` begin with.
///
/// # Errors
/// A [`PageError`] if they don't.
pub fn parse_prefix(tag: u64, bytes: &[u8]) -> Result<Parsed<'_>, PageError> {
    if bytes.len() < HEADER_LEN || bytes[..8] != MAGIC || long(bytes, 8) != tag {
        return Err(PageError::NotAPage);
    }
    let version = u16::from_le_bytes([bytes[16], bytes[17]]);
    if version != FORMAT_VERSION {
        return Err(PageError::UnknownVersion(version));
    }
    let header = Header {
        kind: Kind::from_byte(bytes[18]).ok_or(PageError::Header("unknown kind"))?,
        compressed: bytes[19] & FLAG_ZSTD != 0,
        part: int(bytes, 20),
        parts: int(bytes, 24),
        page: int(bytes, 28),
        pages: int(bytes, 32),
        run: long(bytes, 36),
        first: Seq(long(bytes, 44)),
        count: int(bytes, 52),
        index_len: int(bytes, 56),
        raw_len: int(bytes, 60),
        body_len: int(bytes, 64),
    };
    plausible(&header, bytes[19])?;
    let len = header.page_len();
    if bytes.len() < len {
        return Err(PageError::Header("it is longer than what is there"));
    }
    let bytes = &bytes[..len];
    if checksum(bytes) != int(bytes, CRC_AT) {
        return Err(PageError::Checksum);
    }
    let (index, body) = bytes[HEADER_LEN..].split_at(header.index_len as usize);
    Ok(Parsed { header, index, body })
}

fn plausible(header: &Header, flags: u8) -> Result<(), PageError> {
    let wrong = |what| Err(PageError::Header(what));
    if flags & !FLAG_ZSTD != 0 {
        return wrong("unknown flags");
    }
    if header.part >= header.parts || header.page >= header.pages {
        return wrong("more parts than there are");
    }
    if header.index_len as usize > MAX_INDEX || header.raw_len as usize > MAX_BODY || header.body_len > header.raw_len {
        return wrong("a length beyond the limits");
    }
    if !header.compressed && header.body_len != header.raw_len {
        return wrong("an uncompressed body of another length");
    }
    if header.first.0 == 0 || header.first.0.checked_add(u64::from(header.count)).is_none() {
        return wrong("a position that can't be");
    }
    let events = header.kind == Kind::Events;
    if events != (header.count > 0) || header.count > header.raw_len || (header.parts > 1 && header.count > 1) {
        return wrong("a number of events that can't be");
    }
    Ok(())
}

fn int(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Parsed<'_> {
    /// The page's index.
    ///
    /// # Errors
    /// [`PageError::Content`] if it is none.
    pub fn index(&self) -> Result<Index, PageError> {
        if self.index.is_empty() {
            return Ok(Index::default());
        }
        let index: Index = postcard::from_bytes(self.index).map_err(|error| PageError::Content(format!("index: {error}")))?;
        if index.is_in_order() { Ok(index) } else { Err(PageError::Content("index: a span runs backwards".into())) }
    }
}

/// Decodes pages. Keeps its decompression context and buffer.
pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    pub(super) raw: Vec<u8>,
}

impl Decoder {
    /// A decoder.
    ///
    /// # Errors
    /// If the context can't be made (memory).
    pub fn new() -> std::io::Result<Decoder> {
        Ok(Decoder { zstd: zstd::bulk::Decompressor::new()?, raw: Vec::new() })
    }

    /// The events of a page; of an event that spans several pages, all `parts` in order.
    ///
    /// # Errors
    /// A [`PageError`] if any of them is not what was written, or they don't belong together.
    pub fn page<B: AsRef<[u8]>>(&mut self, tag: u64, parts: &[B]) -> Result<Page, PageError> {
        let first = self.assemble(tag, parts)?;
        let mut events = Vec::with_capacity(first.header.count as usize);
        let mut rest = &self.raw[..];
        for _ in 0..first.header.count {
            let (event, after) = postcard::take_from_bytes::<Event>(rest).map_err(|error| PageError::Content(format!("event: {error}")))?;
            events.push(event);
            rest = after;
        }
        if !rest.is_empty() {
            return Err(PageError::Content("bytes follow the last event".into()));
        }
        Ok(Page { first: first.header.first, events, sends: first.index()?.sends })
    }

    /// Puts the bodies of all `parts` together, decompressed, in `raw`, and gives the first of them.
    pub(super) fn assemble<'p, B: AsRef<[u8]>>(&mut self, tag: u64, parts: &'p [B]) -> Result<Parsed<'p>, PageError> {
        let mut first: Option<Parsed<'_>> = None;
        self.raw.clear();
        for (part, bytes) in (0u32..).zip(parts) {
            let parsed = parse(tag, bytes.as_ref())?;
            let header = parsed.header;
            let expected = first.unwrap_or(parsed).header;
            if header.kind != Kind::Events
                || header.part != part
                || header.parts as usize != parts.len()
                || (header.first, header.count, header.run) != (expected.first, expected.count, expected.run)
            {
                return Err(PageError::Content("parts of different pages".into()));
            }
            self.unpack(&parsed)?;
            if self.raw.len() > MAX_EVENT + MAX_BODY {
                return Err(PageError::Content("an event beyond the limit".into()));
            }
            first.get_or_insert(parsed);
        }
        first.ok_or(PageError::NotAPage)
    }

    /// Adds the bytes of one part of a checkpoint to `bytes`.
    ///
    /// # Errors
    /// A [`PageError`] if it is not what was written.
    pub fn checkpoint_part(&mut self, parsed: &Parsed<'_>, bytes: &mut Vec<u8>) -> Result<(), PageError> {
        self.raw.clear();
        self.unpack(parsed)?;
        bytes.extend_from_slice(&self.raw);
        Ok(())
    }

    /// Adds the body, decompressed, to `raw`. Its length was checked against the limit before.
    fn unpack(&mut self, parsed: &Parsed<'_>) -> Result<(), PageError> {
        if !parsed.header.compressed {
            self.raw.extend_from_slice(parsed.body);
            return Ok(());
        }
        let before = self.raw.len();
        let raw_len = parsed.header.raw_len as usize;
        let length = match before {
            // Most pages: into memory that nobody has to clear first.
            0 => {
                self.raw.reserve_exact(raw_len);
                self.zstd.decompress_to_buffer(parsed.body, &mut self.raw)
            }
            _ => {
                self.raw.resize(before + raw_len, 0);
                self.zstd.decompress_to_buffer(parsed.body, &mut self.raw[before..])
            }
        };
        match length {
            Ok(len) if len == raw_len => Ok(()),
            Ok(_) => Err(PageError::Content("the body is shorter than it says".into())),
            Err(error) => Err(PageError::Content(format!("decompression: {error}"))),
        }
    }
}
