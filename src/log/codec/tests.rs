use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::core::event::{DeliveryRef, Event};
use crate::core::search::AUDIT_KEY;
use crate::core::types::{LaneKey, Millis, SendNo};
use crate::log::samples::{lane, report, with_payload};
use crate::log::{AppendError, Page};

const TAG: u64 = 0x0123_4567_89ab_cdef;

fn encoder() -> Encoder {
    Encoder::new(TAG, 3, Limits::for_segment(8 << 20)).unwrap()
}

fn encode(events: &[Event]) -> Vec<StoredPage> {
    encoder().events(Seq(10), events, &|_| SendNo(0)).unwrap()
}

/// Puts the parts of each page together again.
fn decode(pages: &[StoredPage]) -> Vec<Page> {
    let mut decoder = Decoder::new().unwrap();
    let mut by_first: BTreeMap<Seq, Vec<&[u8]>> = BTreeMap::new();
    for page in pages {
        by_first.entry(page.key.first).or_default().push(&page.bytes);
    }
    by_first.values().map(|parts| decoder.page(TAG, parts).unwrap()).collect()
}

fn event() -> impl Strategy<Value = Event> {
    let at = (0u64..1 << 50).prop_map(Millis);
    let delivery = (0u32..90, 0u64..1 << 40, 1u64..1 << 40).prop_map(|(n, send, id)| DeliveryRef {
        lane: lane(n),
        send: SendNo(send),
        id: Seq(id),
        located: Seq(id),
    });
    prop_oneof![
        3 => (0u64..1000).prop_map(report),
        2 => (0u64..1000, prop::collection::vec(any::<u8>(), 0..2000)).prop_map(|(n, payload)| with_payload(n, payload)),
        1 => (0u64..1000, 60_000usize..200_000).prop_map(|(n, size)| with_payload(n, vec![n as u8; size])),
        2 => (0u32..90, prop::collection::vec((0u64..1 << 40).prop_map(SendNo), 0..9))
            .prop_map(|(n, sends)| Event::Released { lane: lane(n), sends }),
        2 => (delivery, at.clone()).prop_map(|(delivery, at)| Event::Resent { delivery, at }),
        1 => (".{0,40}", at).prop_map(|(what, at)| Event::Audit { who: "op".into(), what, at }),
    ]
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(events in prop::collection::vec(event(), 1..60), small in any::<bool>()) {
        let limits = Limits::for_segment(if small { Limits::MIN_SEGMENT } else { 8 << 20 });
        let pages = Encoder::new(TAG, 3, limits).unwrap().events(Seq(10), &events, &|_| SendNo(0)).unwrap();
        let decoded = decode(&pages);
        let mut next = Seq(10);
        for page in &decoded {
            prop_assert_eq!(page.first, next);
            next = page.last().next();
        }
        prop_assert_eq!(decoded.iter().flat_map(|page| page.events.clone()).collect::<Vec<_>>(), events);
        // Readers that follow closely get the same without decoding.
        let kept: Vec<_> = pages.iter().filter_map(|page| page.page.as_deref()).collect();
        prop_assert_eq!(kept, decoded.iter().collect::<Vec<_>>());
        // Keys rise, values stay small, and a torn commit can be told.
        prop_assert!(pages.windows(2).all(|pair| pair[0].key.to_bytes() < pair[1].key.to_bytes()));
        prop_assert!(pages.iter().all(|page| page.bytes.len() <= limits.largest_value()));
        for (number, page) in pages.iter().enumerate() {
            let header = parse(TAG, &page.bytes).unwrap().header;
            prop_assert_eq!((header.page as usize, header.pages as usize, header.run), (number, pages.len(), 3));
            prop_assert_eq!(header.key(), page.key);
        }
    }

    #[test]
    fn a_page_that_was_changed_is_never_taken_for_another(events in prop::collection::vec(event(), 1..12), flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4)) {
        let pages = encode(&events);
        let mut decoder = Decoder::new().unwrap();
        for page in &pages {
            let mut bytes = page.bytes.clone();
            for (at, bit) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            if bytes != page.bytes {
                prop_assert!(parse(TAG, &bytes).is_err());
                prop_assert!(decoder.page(TAG, &[&bytes]).is_err());
            }
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        events in prop::collection::vec(event(), 1..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        header_changes in prop::collection::vec((16usize..68, any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode(&events).remove(0).bytes;
        changes.iter().for_each(|(at, byte)| { let at = at.index(bytes.len()); bytes[at] = *byte; });
        header_changes.iter().for_each(|&(at, byte)| bytes[at] = byte);
        // With a right checksum, as if somebody had made it: what is behind it has to be checked all the same.
        if bytes.len() > HEADER_LEN {
            let crc = encode::checksum(&bytes);
            bytes[CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        }
        let mut decoder = Decoder::new().unwrap();
        if let Ok(parsed) = parse_prefix(TAG, &bytes) {
            let _ = parsed.index().map(|index| index.may_hold("t:acme"));
            let _ = decoder.checkpoint_part(&parsed, &mut Vec::new());
        }
        let _ = decoder.page(TAG, &[&bytes]);
        let _ = decoder.page(TAG, &[&bytes, &bytes]);
        bytes.truncate(cut.index(bytes.len()));
        prop_assert!(parse(TAG, &bytes).is_err());
    }
}

#[test]
fn every_flipped_bit_of_a_page_is_seen() {
    let page = encode(&[report(1)]).remove(0).bytes;
    for bit in 0..page.len() * 8 {
        let mut bytes = page.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(parse(TAG, &bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn full_leaves_of_the_largest_values_stay_out_of_blob_files() {
    for power in 16..=24 {
        let segment_size = 1 << power;
        let limits = Limits::for_segment(segment_size);
        assert!(17 * limits.largest_value() < segment_size / 4, "{segment_size}");
        assert!(limits.body >= 512 && limits.index >= 256);
    }
    assert_eq!(Limits::for_segment(8 << 20), Limits { body: MAX_BODY, index: MAX_INDEX });
}

#[test]
fn another_stores_page_is_none() {
    let page = encode(&[report(1)]).remove(0).bytes;
    assert_eq!(parse(TAG + 1, &page).map(|_| ()), Err(PageError::NotAPage));
}

#[test]
fn noise_is_stored_as_it_is_and_reports_become_small() {
    let mut noise = vec![0; 20_000];
    getrandom::fill(&mut noise).unwrap();
    assert!(!parse(TAG, &encode(&[with_payload(1, noise)]).remove(0).bytes).unwrap().header.compressed);
    let reports: Vec<Event> = (0..25).map(report).collect();
    let pages = encode(&reports);
    let header = parse(TAG, &pages[0].bytes).unwrap().header;
    assert!(header.compressed && header.body_len * 3 < header.raw_len, "{header:?}");
}

#[test]
fn an_event_that_is_too_large_is_refused_with_its_size_and_the_encoder_goes_on() {
    let mut encoder = encoder();
    let huge = [report(1), with_payload(2, vec![0; MAX_EVENT])];
    let refused = encoder.events(Seq(1), &huge, &|_| SendNo(0));
    assert!(matches!(refused, Err(AppendError::TooLarge { size, limit: MAX_EVENT }) if size > MAX_EVENT));
    let long = LaneKey { connection: "x".repeat(MAX_INDEX).as_str().into(), lane: 0 };
    let refused = encoder.events(Seq(1), &[Event::Released { lane: long, sends: vec![] }], &|_| SendNo(0));
    assert!(matches!(refused, Err(AppendError::TooLarge { limit: MAX_INDEX, .. })));
    let pages = encoder.events(Seq(1), &[report(1)], &|_| SendNo(0)).unwrap();
    assert_eq!(decode(&pages)[0].events, [report(1)]);
}

#[test]
fn send_numbers_count_through_the_pages_of_a_commit() {
    let asked = RefCell::new(Vec::new());
    let next_send = |lane: &LaneKey| {
        asked.borrow_mut().push(lane.clone());
        SendNo(u64::from(lane.lane) * 100)
    };
    // Reports 0, 4, 8, … are of lane 0, and so on: after n pages each lane has counted its own.
    let events: Vec<Event> = (0..200).map(report).collect();
    let pages = encoder().events(Seq(1), &events, &next_send).unwrap();
    assert!(pages.len() > 3);
    assert_eq!(asked.borrow().len(), 4, "each lane is asked for once");
    for page in decode(&pages) {
        let before = page.first.0 - 1;
        assert_eq!(page.sends.len(), 4);
        for (lane, number) in &page.sends {
            let sent = (0..before).filter(|n| n % 4 == u64::from(lane.lane)).count() as u64;
            assert_eq!(*number, SendNo(u64::from(lane.lane) * 100 + sent));
        }
    }
}

#[test]
fn the_index_finds_a_report_without_decoding() {
    let events: Vec<Event> = (100..120).map(report).collect();
    let delivery = DeliveryRef { lane: lane(2), send: SendNo(40), id: Seq(7), located: Seq(7) };
    let mut events = events;
    events.push(Event::Resent { delivery: delivery.clone(), at: Millis(5) });
    events.push(Event::Requeued { delivery: DeliveryRef { send: SendNo(9), id: Seq(3), ..delivery }, by: "op".into(), at: Millis(6) });
    let pages = encode(&events);
    let index = parse(TAG, &pages[0].bytes).unwrap().index().unwrap();
    assert!(!index.may_hold(AUDIT_KEY));
    let audit = Event::Audit { who: "ops".into(), what: "test".into(), at: Millis(5) };
    for events in [vec![audit.clone()], [events.clone(), vec![audit]].concat()] {
        assert!(parse(TAG, &encode(&events)[0].bytes).unwrap().index().unwrap().may_hold(AUDIT_KEY));
    }
    for key in ["t:acme", "p:gate", "a:success", "P:acme/project-20", "T:acme/gate/project-39/master", "c:119"] {
        assert!(index.may_hold(key), "{key}");
    }
    let wrong = (0..10_000).filter(|n| index.may_hold(&format!("c:other-{n}"))).count();
    assert!(wrong < 300, "{wrong} of 10,000 found in vain");
    assert_eq!(index.times.unwrap().0, Millis(5));
    let touched = Touched { lane: lane(2), sends: Some((SendNo(9), SendNo(40))), ids: Some((Seq(3), Seq(7))) };
    assert_eq!(index.touched, [touched]);
    for spans in [(Some((SendNo(40), SendNo(9))), None), (None, Some((Seq(7), Seq(3))))] {
        let touched = vec![Touched { lane: lane(2), sends: spans.0, ids: spans.1 }];
        let bytes = postcard::to_allocvec(&Index { touched, ..index.clone() }).unwrap();
        let parsed = Parsed { index: &bytes, ..parse(TAG, &pages[0].bytes).unwrap() };
        assert!(matches!(parsed.index(), Err(PageError::Content(_))), "{spans:?}: a span that runs backwards");
    }
}

#[test]
fn a_checkpoint_of_many_parts_comes_back_whole() {
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect();
    let pages = encoder().checkpoint(Kind::Checkpoint, Seq(5), &bytes).unwrap();
    assert_eq!(pages.len(), 16);
    let (mut decoder, mut back) = (Decoder::new().unwrap(), Vec::new());
    for page in &pages {
        decoder.checkpoint_part(&parse(TAG, &page.bytes).unwrap(), &mut back).unwrap();
    }
    assert!(back == bytes);
}
