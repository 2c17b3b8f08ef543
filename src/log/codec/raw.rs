//! A page as lanes read it: decompressed, and looked through once; nothing of it is copied before it is sent.
//!
//! Most of what is in a page is payload, and most of it is another lane's. To make events of all that costs several times what a lane needs of it: topic,
//! payload and a few numbers of its own deliveries. What is no `Accepted` is decoded: outcomes are few and small.

use std::sync::Arc;

use serde::Deserialize;

use super::{Decoder, PageError, Parsed};
use crate::core::content::{Content, NO_PROPERTIES};
use crate::core::event::{Dedupe, Event, Properties, Source};
use crate::core::types::{LaneKey, Millis, Qos, SendNo, Seq};
use crate::log::Seen;

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct RawPage {
    /// The position of the first event.
    pub first: Seq,
    /// For each lane that has a send in this page: its next send number before the page.
    pub sends: Vec<(LaneKey, SendNo)>,
    raw: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Accepted(Place),
    Other(Box<Event>),
}

/// Where things stand in the page, and what is no longer than saying where.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Its lane, as a place in `sends`.
    lane: u32,
    begin: u32,
    topic: Arc<str>,
    payload: Span,
    at: Millis,
    qos: Qos,
    retain: bool,
    expiry_s: Option<u32>,
    /// Where there are any. Reports of one producer mostly have the same.
    properties: Option<Arc<Properties>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    begin: u32,
    end: u32,
}

/// [`Accepted`](crate::core::event::Accepted), field by field, as it stands in the page, up to its properties. Texts that a lane does not send are not looked at.
#[derive(Deserialize)]
#[expect(dead_code, reason = "what stands before something has to be read to find it")]
struct AcceptedIn<'a> {
    at: Millis,
    source: Source,
    user: &'a [u8],
    tenant: &'a [u8],
    pipeline: &'a [u8],
    action: &'a [u8],
    project: &'a [u8],
    change: &'a [u8],
    #[serde(borrow)]
    lane: LaneIn<'a>,
    topic: &'a str,
    qos: Qos,
    retain: bool,
    expiry_s: Option<u32>,
}

/// What stands behind the properties.
#[derive(Deserialize)]
#[expect(dead_code, reason = "what stands between two events has to be read to find the next one")]
struct RestIn<'a> {
    payload: &'a [u8],
    dedupe: Option<Dedupe>,
    replay_of: Option<Seq>,
}

/// [`LaneKey`].
#[derive(Deserialize)]
struct LaneIn<'a> {
    connection: &'a [u8],
    lane: u32,
}

/// The number of `Event::Accepted` among the events, as it stands before one.
const ACCEPTED: u8 = 0;

impl RawPage {
    /// Looks through the events of a page.
    ///
    /// # Errors
    /// [`PageError::Content`] if they are not what was written.
    pub(super) fn new(first: &Parsed<'_>, raw: Vec<u8>) -> Result<RawPage, PageError> {
        let wrong = |what: &str| PageError::Content(format!("event: {what}"));
        let sends = first.index()?.sends;
        let mut entries = Vec::with_capacity(first.header.count as usize);
        let mut rest = &raw[..];
        let mut known = LastRead::default();
        for _ in 0..first.header.count {
            let begin = raw.len() - rest.len();
            if rest.first() != Some(&ACCEPTED) {
                let (event, after) = postcard::take_from_bytes::<Event>(rest).map_err(|error| wrong(&error.to_string()))?;
                entries.push(Entry::Other(Box::new(event)));
                rest = after;
                continue;
            }
            let (accepted, after) = postcard::take_from_bytes::<AcceptedIn<'_>>(&rest[1..]).map_err(|error| wrong(&error.to_string()))?;
            let after = known.read(after).map_err(|error| wrong(&error.to_string()))?;
            let (of_rest, after) = postcard::take_from_bytes::<RestIn<'_>>(after).map_err(|error| wrong(&error.to_string()))?;
            let is_its = |(key, _): &(LaneKey, SendNo)| {
                key.lane == accepted.lane.lane && key.connection.as_str().as_bytes() == accepted.lane.connection
            };
            let lane = sends.iter().position(is_its).ok_or_else(|| wrong("its page does not say which send it is"))?;
            entries.push(Entry::Accepted(Place {
                lane: short(lane),
                begin: short(begin),
                topic: Arc::from(accepted.topic),
                payload: Span::of(&raw, of_rest.payload),
                at: accepted.at,
                qos: accepted.qos,
                retain: accepted.retain,
                expiry_s: accepted.expiry_s,
                properties: known.properties.clone(),
            }));
            rest = after;
        }
        if !rest.is_empty() {
            return Err(PageError::Content("bytes follow the last event".into()));
        }
        Ok(RawPage { first: first.header.first, sends, raw, entries })
    }

    /// How many events it has.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// What it takes in memory, in bytes, about.
    pub fn size(&self) -> usize {
        let topics = self.entries.iter().map(|entry| match entry {
            Entry::Accepted(place) => place.topic.len(),
            Entry::Other(_) => 0,
        });
        self.raw.capacity() + self.entries.len() * size_of::<Entry>() + topics.sum::<usize>()
    }

    /// The event at `seq`, if it is in this page.
    pub fn see(&self, seq: Seq) -> Option<Seen<'_>> {
        Some(match self.entry(seq)? {
            Entry::Accepted(place) => Seen::Accepted(&self.sends[place.lane as usize].0),
            Entry::Other(event) => Seen::Other(event),
        })
    }

    /// What the delivery at `seq` is sent with, if one is accepted there.
    pub fn content(&self, seq: Seq) -> Option<Content<'_>> {
        let Entry::Accepted(place) = self.entry(seq)? else { return None };
        Some(Content {
            at: place.at,
            topic: &place.topic,
            qos: place.qos,
            retain: place.retain,
            expiry_s: place.expiry_s,
            properties: place.properties.as_deref().unwrap_or(&NO_PROPERTIES),
            payload: place.payload.within(&self.raw),
        })
    }

    /// The topic of the delivery at `seq`, if one is accepted there.
    pub fn topic(&self, seq: Seq) -> Option<&Arc<str>> {
        match self.entry(seq)? {
            Entry::Accepted(place) => Some(&place.topic),
            Entry::Other(_) => None,
        }
    }

    /// The event at `seq`, decoded; none if it is not in this page, or can't be decoded.
    pub fn decode(&self, seq: Seq) -> Option<Event> {
        match self.entry(seq)? {
            Entry::Accepted(place) => postcard::take_from_bytes(&self.raw[place.begin as usize..]).ok().map(|(event, _)| event),
            Entry::Other(event) => Some(event.as_ref().clone()),
        }
    }

    fn entry(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?)
    }
}

/// The properties that were read last. What stands behind them begins where they end, so the same bytes are the same properties.
#[derive(Default)]
struct LastRead<'a> {
    bytes: &'a [u8],
    /// None where they are all left out.
    properties: Option<Arc<Properties>>,
}

impl<'a> LastRead<'a> {
    /// Reads the next ones, and gives back what stands behind.
    fn read(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], postcard::Error> {
        if let Some(after) = bytes.strip_prefix(self.bytes).filter(|_| !self.bytes.is_empty()) {
            return Ok(after);
        }
        let (properties, after) = postcard::take_from_bytes::<Properties>(bytes)?;
        self.bytes = &bytes[..bytes.len() - after.len()];
        self.properties = (properties != Properties::default()).then(|| Arc::new(properties));
        Ok(after)
    }
}

impl Span {
    /// Where a part of `whole` is in it.
    fn of(whole: &[u8], part: &[u8]) -> Span {
        let begin = part.as_ptr().addr() - whole.as_ptr().addr();
        Span { begin: short(begin), end: short(begin + part.len()) }
    }

    fn within(self, whole: &[u8]) -> &[u8] {
        &whole[self.begin as usize..self.end as usize]
    }
}

fn short(number: usize) -> u32 {
    u32::try_from(number).expect("a page has less than 4 GiB")
}

impl Decoder {
    /// The events of a page, looked through and not decoded. As [`Decoder::page`] in all else.
    ///
    /// # Errors
    /// As [`Decoder::page`].
    pub fn raw_page<B: AsRef<[u8]>>(&mut self, tag: u64, parts: &[B]) -> Result<RawPage, PageError> {
        let first = self.assemble(tag, parts)?;
        // The buffer goes with the page; most are as large as this one.
        let raw = std::mem::take(&mut self.raw);
        RawPage::new(&first, raw)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::core::event::Proof;
    use crate::core::ranges::Ranges;
    use crate::log::codec::{Encoder, Limits};
    use crate::log::samples::{lane, report};

    /// Reports, some with all that a report may have, and outcomes among them.
    fn events() -> Vec<Event> {
        let mut events: Vec<Event> = (0..20).map(report).collect();
        for (n, event) in events.iter_mut().enumerate().filter(|(n, _)| n % 3 == 0) {
            let Event::Accepted(accepted) = event else { continue };
            let accepted = Arc::make_mut(accepted);
            (accepted.retain, accepted.expiry_s) = (true, Some(n as u32 * 1_000));
            accepted.properties = Properties {
                payload_format: Some(1),
                content_type: Some("application/json".into()),
                response_topic: Some("answers".into()),
                correlation_data: Some(Bytes::from_static(b"\0\xff")),
                user: vec![("name".into(), "value".into()); n],
            };
        }
        let outcome = Event::Delivered { lane: lane(1), sends: Ranges::one(1), proof: Proof::PubAck, at: Millis(7) };
        events.insert(5, outcome.clone());
        events.push(outcome);
        events
    }

    #[test]
    fn a_page_that_is_looked_through_says_what_a_decoded_one_says() {
        let (tag, events) = (7, events());
        let mut encoder = Encoder::new(tag, 1, Limits::for_segment(1 << 20)).unwrap();
        let mut decoder = Decoder::new().unwrap();
        let stored = encoder.events(Seq(100), &events, &|_| SendNo(40)).unwrap();
        let mut next = Seq(100);
        for page in &stored {
            let (decoded, raw) = (decoder.page(tag, &[&page.bytes]).unwrap(), decoder.raw_page(tag, &[&page.bytes]).unwrap());
            assert_eq!((decoded.first, &decoded.sends, decoded.events.len()), (raw.first, &raw.sends, raw.count()));
            for event in &decoded.events {
                assert_eq!(raw.decode(next).as_ref(), Some(event));
                match event {
                    Event::Accepted(accepted) => {
                        assert!(matches!(raw.see(next), Some(Seen::Accepted(lane)) if *lane == accepted.lane));
                        assert_eq!(raw.content(next), Some(Content::from(accepted.as_ref())));
                    }
                    other => assert!(matches!(raw.see(next), Some(Seen::Other(seen)) if seen == other) && raw.content(next).is_none()),
                }
                next = next.next();
            }
        }
        assert_eq!(next.0 - 100, events.len() as u64);
    }

    #[test]
    fn accepted_is_the_first_of_the_events() {
        assert_eq!(postcard::to_stdvec(&report(1)).unwrap()[0], ACCEPTED);
    }

    #[test]
    fn a_page_that_is_not_what_was_written_is_refused_and_nothing_is_made_of_it() {
        let mut encoder = Encoder::new(7, 1, Limits::for_segment(1 << 20)).unwrap();
        let stored = encoder.events(Seq(1), &events(), &|_| SendNo(0)).unwrap();
        let parsed = super::super::parse(7, &stored[0].bytes).unwrap();
        let mut decoder = Decoder::new().unwrap();
        decoder.assemble(7, &[&stored[0].bytes]).unwrap();
        let raw = std::mem::take(&mut decoder.raw);
        for cut in [1, raw.len() / 2, raw.len() - 1] {
            assert!(RawPage::new(&parsed, raw[..cut].to_vec()).is_err());
        }
        assert!(RawPage::new(&parsed, [&raw[..], b"more"].concat()).is_err());
        assert!(RawPage::new(&parsed, raw).is_ok());
    }
}
