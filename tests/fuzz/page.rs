//! Pages of the log.
//!
//! An input is pages one after the other. It holds: a page that is taken is one of those that were written, byte for byte, and decodes to the
//! events that were in it. With a checksum made right again, as if somebody had forged it, it decodes to something that can be written and
//! read again, or is an error; and memory stays within what a page may hold, whatever its header says.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tidings::core::content::Content;
use tidings::core::event::{Accepted, Event, Proof, Properties, Source};
use tidings::core::ranges::Ranges;
use tidings::core::types::{LaneKey, Millis, Qos, SendNo, Seq};
use tidings::log::codec::{Decoder, Encoder, HEADER_LEN, Kind, Limits, MAX_BODY, Parsed, RawPage, parse_prefix};

use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, assert_readable, kind_of, run};

const TAG: u64 = 0x0123_4567_89ab_cdef;
const CRC_AT: usize = HEADER_LEN - 4;

fn lane(lane: u32) -> LaneKey {
    LaneKey { connection: "mqtt".into(), lane }
}

fn report(number: u64, payload: Vec<u8>) -> Event {
    Event::Accepted(Arc::new(Accepted {
        at: Millis(1_767_225_600_000 + number),
        source: Source::Http,
        user: "zuul".into(),
        tenant: "acme".into(),
        pipeline: "gate".into(),
        action: "success".into(),
        project: "widgets".into(),
        change: number.to_string(),
        lane: lane(0),
        topic: format!("acme/{number}"),
        qos: Qos::ExactlyOnce,
        retain: number.is_multiple_of(2),
        expiry_s: Some(60),
        properties: Properties { user: vec![("a".into(), "b".into())], ..Properties::default() },
        payload: Bytes::from(payload),
        dedupe: None,
        replay_of: None,
    }))
}

/// Commits: small ones, outcomes, one event over several pages; and checkpoints.
fn commits() -> Vec<Vec<Event>> {
    let noise = |count: u32| (0..count).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect::<Vec<u8>>();
    vec![
        vec![report(1, b"{}".to_vec())],
        (0..12).map(|number| report(number, b"{\"action\":\"success\",\"tenant\":\"acme\"}".repeat(9))).collect(),
        vec![
            Event::Released { lane: lane(1), sends: vec![SendNo(1), SendNo(2)] },
            Event::Delivered { lane: lane(1), sends: Ranges(vec![(1, 1), (3, 9)]), proof: Proof::PubComp, at: Millis(9) },
            Event::Audit { who: "op".into(), what: "x".repeat(40), at: Millis(7) },
        ],
        vec![report(5, noise(3_000))],
    ]
}

fn encoder(segment: usize) -> Encoder {
    Encoder::new(TAG, 3, Limits::for_segment(segment)).unwrap()
}

/// What was written: inputs, and the events of each page by its bytes.
struct Written {
    inputs: Vec<Vec<u8>>,
    pages: HashMap<Vec<u8>, Seq>,
    events: HashMap<Seq, Vec<Event>>,
}

fn written() -> Written {
    let mut written = Written { inputs: Vec::new(), pages: HashMap::new(), events: HashMap::new() };
    for (at, events) in commits().into_iter().enumerate() {
        let first = Seq(100 * (at as u64 + 1));
        // In a small segment the last one spans several pages.
        let pages = encoder(Limits::MIN_SEGMENT).events(first, &events, &|_| SendNo(4)).unwrap();
        written.inputs.push(pages.iter().flat_map(|page| page.bytes.clone()).collect());
        for page in pages {
            written.pages.insert(page.bytes, page.key.first);
            if let Some(page) = page.page {
                written.events.insert(page.first, page.events.clone());
            }
        }
    }
    for (first, kind) in [(900, Kind::OpeningCheckpoint), (950, Kind::Checkpoint)] {
        let pages = encoder(Limits::MIN_SEGMENT).checkpoint(kind, Seq(first), &[0x5a; 900]).unwrap();
        written.inputs.push(pages.iter().flat_map(|page| page.bytes.clone()).collect());
        written.pages.extend(pages.into_iter().map(|page| (page.bytes, page.key.first)));
    }
    written
}

/// The pages that stand one behind the other, up to the first that is none.
fn pages(bytes: &[u8]) -> (Vec<(Parsed<'_>, &[u8])>, String) {
    let (mut rest, mut pages) = (bytes, Vec::new());
    while !rest.is_empty() {
        match parse_prefix(TAG, rest) {
            Ok(parsed) => {
                let (page, after) = rest.split_at(parsed.header.page_len());
                pages.push((parsed, page));
                rest = after;
            }
            Err(error) => {
                assert_readable(&error.to_string());
                return (pages, kind_of(&error.to_string()));
            }
        }
    }
    (pages, String::new())
}

fn check(bytes: &[u8], written: &Written, decoder: &mut Decoder) -> Outcome {
    let (found, why) = bounded(bytes.len(), 16, || pages(bytes));
    for (parsed, page) in &found {
        assert_eq!(written.pages.get(*page), Some(&parsed.header.first), "a page that nobody wrote is taken");
        let parts = written.pages.values().filter(|first| **first == parsed.header.first).count();
        if parts == 1 && parsed.header.kind == Kind::Events {
            let decoded = decoder.page(TAG, &[page]).expect("what was written can be read");
            assert_eq!(Some(&decoded.events), written.events.get(&decoded.first));
            let raw = decoder.raw_page(TAG, &[page]).expect("what was written can be looked through");
            assert_eq!(seen(&raw), decoded.events.into_iter().map(Some).collect::<Vec<_>>());
        }
    }
    let all: Vec<&[u8]> = found.iter().map(|(_, page)| *page).collect();
    if let Ok(decoded) = decoder.page(TAG, &all) {
        assert_eq!(Some(&decoded.events), written.events.get(&decoded.first));
    }
    let outcome = forged(bytes, decoder);
    if found.is_empty() {
        Outcome::refused(format!("{why} {outcome}"))
    } else {
        Outcome::accepted(format!("{} {why} {outcome}", found.len().min(4)))
    }
}

/// The events of a page that was looked through; what each is sent with is what was accepted.
fn seen(page: &RawPage) -> Vec<Option<Event>> {
    let seen = (0..page.count() as u64).map(|offset| {
        let seq = Seq(page.first.0 + offset);
        let (event, content) = (page.decode(seq), page.content(seq));
        if let (Some(Event::Accepted(accepted)), content) = (&event, content) {
            assert_eq!(content, Some(Content::from(&**accepted)));
        }
        event
    });
    seen.collect()
}

/// With the first page's checksum made right, and the page cut where its header says.
fn forged(bytes: &[u8], decoder: &mut Decoder) -> String {
    let Some(lengths) = bytes.get(56..HEADER_LEN) else { return "short".to_owned() };
    let number = |at: usize| u32::from_le_bytes(lengths[at..at + 4].try_into().unwrap()) as usize;
    let len = HEADER_LEN.saturating_add(number(0)).saturating_add(number(8)).min(bytes.len());
    let mut page = bytes[..len].to_vec();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&page[..CRC_AT]), &page[HEADER_LEN..]);
    page[CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    let parsed = match parse_prefix(TAG, &page) {
        Ok(parsed) => parsed,
        Err(error) => return kind_of(&error.to_string()),
    };
    // A page holds at most `MAX_BODY`, each byte of it at most one event.
    let most = MAX_BODY + bytes.len();
    let index = bounded(most, 64, || parsed.index());
    let _ = index.as_ref().map(|index| index.may_hold("t:acme"));
    let mut checkpoint = Vec::new();
    let part = bounded(most, 64, || decoder.checkpoint_part(&parsed, &mut checkpoint));
    assert!(checkpoint.len() <= MAX_BODY && (part.is_ok() || checkpoint.is_empty()));
    let raw = bounded(most, 256, || decoder.raw_page(TAG, &[&page]));
    let raw = raw.map(|raw| seen(&raw));
    match bounded(most, 256, || decoder.page(TAG, &[&page])) {
        Err(error) => {
            assert_readable(&error.to_string());
            kind_of(&error.to_string())
        }
        Ok(decoded) => {
            // Looked through, it says the same, or it does not say of which lanes its reports are.
            assert!(raw.is_err() || raw.is_ok_and(|raw| raw.iter().zip(&decoded.events).all(|(raw, event)| raw.as_ref() == Some(event))));
            let again = encoder(8 << 20).events(decoded.first, &decoded.events, &|_| SendNo(0)).expect("what was read can be written");
            let again: Vec<_> = again.iter().filter_map(|page| page.page.as_deref()).flat_map(|page| page.events.clone()).collect();
            assert_eq!(again, decoded.events);
            format!("forged {}", decoded.events.len().min(3))
        }
    }
}

#[test]
fn a_page_is_what_was_written_or_an_error() {
    let written = written();
    let mut decoder = Decoder::new().unwrap();
    run("page", 6_000, written.inputs.clone(), &Mutator { form: Form::Bytes, words: &["mqtt", "\u{f1}TIDPAG\u{1}"] }, |bytes| {
        check(bytes, &written, &mut decoder)
    });
}
