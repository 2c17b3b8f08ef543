//! Tests of the fold: the books balance, what is pending is found again, and nothing that does not fit is folded.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::core::event::{Accepted, Carried, DeadReason, Dedupe, DeliveryRef};
use crate::core::handover::{Given, Handover};
use crate::core::types::{Millis, Protocol, Qos};

const LANES: u32 = 2;

fn key(lane: u32) -> LaneKey {
    LaneKey { connection: ConnectionName::from("mqtt"), lane }
}

fn accepted(lane: u32, at: u64) -> Accepted {
    Accepted::plain(key(lane), "t", Qos::AtLeastOnce, Millis(at))
}

fn with_lanes() -> Outbox {
    let mut outbox = Outbox::new();
    let connection = ConnectionName::from("mqtt");
    outbox.apply(&Event::LanesChanged { connection, first: 0, count: LANES, purpose: LanePurpose::Fresh, at: Millis(0) }).unwrap();
    outbox
}

fn delivered(lane: u32, send: u64) -> Event {
    Event::Delivered { lane: key(lane), sends: Ranges::one(send), proof: Proof::PubAck, at: Millis(1) }
}

#[test]
fn what_is_no_range_and_lanes_without_number_do_not_fit() {
    let mut outbox = with_lanes();
    for at in 0..3 {
        outbox.apply(&Event::Accepted(Arc::new(accepted(0, at)))).unwrap();
    }
    let before = outbox.clone();
    let (lane, at, by) = (key(0), Millis(1), String::new);
    for sends in [Ranges(vec![(2, 1)]), Ranges(vec![(0, 0), (7, 2)]), Ranges(vec![(0, u64::MAX)])] {
        let discarded = |dead| Event::Discarded { lane: lane.clone(), sends: sends.clone(), dead, by: by(), reason: by(), at };
        let delivered = Event::Delivered { lane: lane.clone(), sends: sends.clone(), proof: Proof::PubAck, at };
        let expired = Event::Expired { lane: lane.clone(), sends: sends.clone(), at };
        for event in [delivered, expired, discarded(true), discarded(false)] {
            assert!(matches!(outbox.apply(&event), Err(FoldError::NoRange { .. })), "{event:?}");
        }
    }
    for (first, count) in [(2, u32::MAX), (u32::MAX, 2), (2, MOST_LANES + 1)] {
        let event = Event::LanesChanged { connection: "mqtt".into(), first, count, purpose: LanePurpose::Fresh, at };
        assert!(matches!(outbox.apply(&event), Err(FoldError::TooManyLanes { .. })), "{event:?}");
    }
    assert_eq!(outbox, before);
}

/// Where every delivery stands, kept the plain way.
#[derive(Default)]
struct Plain {
    /// lane, send → id and place; pending and found by counting.
    pending: BTreeMap<(u32, u64), (Seq, Seq)>,
    waiting: BTreeMap<(u32, u64), (Seq, Seq)>,
    dead: BTreeMap<(u32, u64), (Seq, Seq)>,
    resent: BTreeMap<(u32, u64), (Seq, Seq)>,
    generations: Vec<Seq>,
}

fn pick<V: Copy>(from: &BTreeMap<(u32, u64), V>, choice: usize) -> Option<((u32, u64), V)> {
    from.iter().nth(choice % from.len().max(1)).map(|(key, value)| (*key, *value))
}

fn reference(lane: u32, send: u64, id: Seq, located: Seq) -> DeliveryRef {
    DeliveryRef { lane: key(lane), send: SendNo(send), id, located }
}

/// Where an event says that a delivery is: a lane that has not heard of a carrying still names the old place.
fn said(id: Seq, located: Seq, choice: usize) -> Seq {
    if choice.is_multiple_of(2) { id } else { located }
}

fn play(steps: &[(u8, u32, usize)]) -> (Outbox, Plain) {
    let mut outbox = with_lanes();
    let mut plain = Plain { generations: vec![Seq::FIRST], ..Plain::default() };
    for (time, (step, lane, choice)) in steps.iter().enumerate() {
        let at = Millis(time as u64);
        match step {
            0..=4 => {
                let send = outbox.next_send(&key(*lane)).0;
                let seq = outbox.apply(&Event::Accepted(Arc::new(accepted(*lane, at.0)))).unwrap();
                plain.pending.insert((*lane, send), (seq, seq));
            }
            5 | 6 => {
                if let Some(((lane, send), _)) = pick(&plain.pending, *choice) {
                    outbox.apply(&delivered(lane, send)).unwrap();
                    plain.pending.remove(&(lane, send));
                }
            }
            7 => {
                if let Some(((lane, send), (id, located))) = pick(&plain.pending, *choice) {
                    let delivery = reference(lane, send, id, said(id, located, *choice));
                    let sent_through = SendNo(send);
                    outbox.apply(&Event::Refused { delivery, code: 0x87, attempts: 1, retry_at: at, sent_through, at }).unwrap();
                    plain.pending.remove(&(lane, send));
                    plain.waiting.insert((lane, send), (id, located));
                }
            }
            8 => {
                if let Some(((lane, send), (id, located))) = pick(&plain.waiting, *choice) {
                    let next = outbox.next_send(&key(lane)).0;
                    outbox.apply(&Event::Resent { delivery: reference(lane, send, id, said(id, located, *choice)), at }).unwrap();
                    plain.waiting.remove(&(lane, send));
                    plain.resent.insert((lane, next), (id, located));
                }
            }
            9 => {
                if let Some(((lane, send), (id, located))) = pick(&plain.waiting, *choice) {
                    let reason = DeadReason { code: "refused".into(), broker_code: Some(0x87), message: String::new() };
                    let delivery = reference(lane, send, id, said(id, located, *choice));
                    outbox.apply(&Event::DeadLettered { delivery, reason, attempts: 2, at }).unwrap();
                    plain.waiting.remove(&(lane, send));
                    plain.dead.insert((lane, send), (id, located));
                }
            }
            10 => {
                if let Some(((lane, send), _)) = pick(&plain.resent, *choice) {
                    outbox.apply(&delivered(lane, send)).unwrap();
                    plain.resent.remove(&(lane, send));
                }
            }
            11 => {
                if let Some(((lane, send), (id, located))) = pick(&plain.dead, *choice) {
                    outbox
                        .apply(&Event::Requeued { delivery: reference(lane, send, id, said(id, located, *choice)), by: "ops".into(), at })
                        .unwrap();
                    plain.dead.remove(&(lane, send));
                    plain.waiting.insert((lane, send), (id, located));
                }
            }
            12 => {
                outbox.begin_generation();
                if plain.generations.last() != Some(&outbox.next()) {
                    plain.generations.push(outbox.next());
                }
            }
            _ => retire(&mut outbox, &mut plain),
        }
    }
    (outbox, plain)
}

/// Carries what is left of the oldest generation forward, and drops it.
fn retire(outbox: &mut Outbox, plain: &mut Plain) {
    let Some(needed) = outbox.needed_in_oldest_generation() else { return };
    let stragglers: Vec<Straggler> = outbox.stragglers().collect();
    assert_eq!(needed, stragglers.len() as u64, "as many are carried as are counted");
    for straggler in stragglers {
        let place = (straggler.lane.lane, straggler.send.0);
        let id = match straggler.known {
            Some((id, _)) => id,
            None => plain.pending[&place].0,
        };
        let carried = Carried { id, send: straggler.send, accepted: accepted(place.0, 0), history: Vec::new() };
        let located = outbox.apply(&Event::Carried(Box::new(carried))).unwrap();
        for held in [&mut plain.pending, &mut plain.waiting, &mut plain.dead, &mut plain.resent] {
            held.entry(place).and_modify(|held| held.1 = located);
        }
    }
    assert_eq!(outbox.needed_in_oldest_generation(), Some(0), "nothing of it is needed once all is carried");
    outbox.drop_oldest_generation();
    plain.generations.remove(0);
}

proptest! {
    #[test]
    fn the_books_balance_and_what_is_pending_is_found_where_the_outbox_says(
        steps in prop::collection::vec((0u8..15, 0..LANES, any::<usize>()), 0..250)
    ) {
        let (outbox, plain) = play(&steps);
        let totals = outbox.connections()[&key(0).connection].totals;
        prop_assert!(totals.balance(), "{totals:?}");
        let pending = plain.pending.len() + plain.waiting.len() + plain.resent.len();
        prop_assert_eq!(totals.pending, pending as u64);
        prop_assert_eq!(totals.dead, plain.dead.len() as u64);
        let oldest = plain.generations[0];
        for (name, lane) in outbox.lanes() {
            let number = name.lane;
            for ((_, send), (_, place)) in plain.pending.iter().filter(|((lane, _), _)| *lane == number) {
                let send = SendNo(*send);
                prop_assert!(lane.is_pending(send));
                prop_assert!(*place >= oldest, "nothing that is pending was dropped");
                match lane.moved().get(&send) {
                    Some(moved) => prop_assert_eq!(moved.located, *place),
                    None => {
                        let anchor = lane.anchor_for(send);
                        prop_assert!(anchor.is_some_and(|anchor| anchor <= *place && anchor >= oldest), "{anchor:?} {place}");
                    }
                }
            }
            for ((_, send), (id, located)) in plain.resent.iter().filter(|((lane, _), _)| *lane == number) {
                let moved = lane.moved()[&SendNo(*send)];
                prop_assert_eq!((moved.id, moved.located, moved.is_resent), (*id, *located, true));
                prop_assert!(*located >= oldest);
            }
        }
    }

    #[test]
    fn a_backlog_is_complete_and_what_is_handed_over_is_on_exactly_one_side_at_every_event(
        steps in prop::collection::vec((0u8..15, 0..LANES, any::<usize>()), 0..200),
        piece in 1usize..40,
    ) {
        let (mut outbox, plain) = play(&steps);
        let (from, to) = (key(0).connection, ConnectionName::from("new"));
        let lanes = Event::LanesChanged { connection: to.clone(), first: 0, count: LANES, purpose: LanePurpose::Fresh, at: Millis(0) };
        outbox.apply(&lanes).unwrap();
        let backlog = outbox.connections()[&from].backlog();
        // By counting, and apart: together it is everything that is pending, each once.
        let (counted, carried): (Vec<_>, Vec<_>) = plain.pending.iter().partition(|((lane, send), _)| backlog.is_plain(*lane, SendNo(*send)));
        prop_assert_eq!(backlog.plain(), counted.len() as u64);
        prop_assert!(counted.iter().all(|(_, (id, located))| id == located && backlog.begin().is_some_and(|begin| begin <= *id)));
        let mut apart: Vec<_> = backlog.apart().iter().map(|apart| ((apart.lane, apart.send.0), (apart.id, apart.located))).collect();
        prop_assert!(apart.is_sorted_by_key(|(_, (id, _))| *id));
        apart.sort_unstable();
        let mut expected: Vec<_> = carried.into_iter().chain(&plain.waiting).chain(&plain.resent).map(|(place, held)| (*place, *held)).collect();
        expected.sort_unstable();
        prop_assert_eq!(&apart, &expected);
        // Handed over by id, as whoever reads the log does it.
        let mut all: Vec<_> = counted.into_iter().map(|(place, held)| (*place, *held)).chain(expected).collect();
        all.sort_unstable_by_key(|(_, (id, _))| *id);
        let before = outbox.connections()[&from].totals;
        let handover = Handover { from: from.clone(), to: to.clone(), by: "ops".into() };
        let mut new_ids = 0;
        for given in all.chunks(piece) {
            let given = given.iter().map(|((lane, send), (id, _))| Given { id: *id, lane: *lane, send: SendNo(*send), accepted: accepted(*lane, id.0) });
            for event in handover.events(given.collect(), &BTreeSet::new(), &|_| 1, Millis(9)) {
                if let Event::Accepted(accepted) = &event {
                    prop_assert_eq!(accepted.at, Millis(all[new_ids].1.0.0), "in the order of acceptance, with its time");
                    new_ids += 1;
                }
                outbox.apply(&event).unwrap();
                for name in [&from, &to] {
                    prop_assert!(outbox.connections()[name].totals.balance());
                }
            }
        }
        let (old, new) = (outbox.connections()[&from].totals, outbox.connections()[&to].totals);
        prop_assert_eq!((old.pending, old.discarded), (0, before.discarded + all.len() as u64));
        prop_assert_eq!((old.dead, old.acknowledged), (before.dead, before.acknowledged));
        prop_assert_eq!((new.accepted, new.pending), (all.len() as u64, all.len() as u64));
        prop_assert_eq!(outbox.connections()[&from].backlog().plain(), 0);
    }

    #[test]
    fn an_outbox_survives_its_stored_form(steps in prop::collection::vec((0u8..15, 0..LANES, any::<usize>()), 0..120)) {
        let (outbox, _) = play(&steps);
        let bytes = postcard::to_stdvec(&outbox).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Outbox>(&bytes).unwrap(), outbox);
    }
}

#[test]
fn an_outcome_for_what_is_not_pending_is_refused_and_changes_nothing() {
    let mut outbox = with_lanes();
    outbox.apply(&Event::Accepted(Arc::new(accepted(0, 0)))).unwrap();
    outbox.apply(&delivered(0, 0)).unwrap();
    let before = outbox.clone();
    for event in [delivered(0, 0), delivered(0, 1), delivered(9, 0), Event::Released { lane: key(1), sends: vec![SendNo(0)] }] {
        assert!(outbox.apply(&event).is_err(), "{event:?}");
        assert_eq!(outbox, before);
    }
}

fn session_opened(doubt: u32) -> Event {
    let (protocol, endpoint, repeated) = (Protocol::V5, "broker:1883 ".to_owned(), Ranges::default());
    Event::SessionOpened { lane: key(0), epoch: 0, protocol, endpoint, doubt, repeated, at: Millis(0) }
}

#[test]
fn what_may_have_arrived_is_what_a_session_would_take_for_sent() {
    let mut outbox = with_lanes();
    for at in 0..6 {
        outbox.apply(&Event::Accepted(Arc::new(accepted(0, at)))).unwrap();
    }
    let ask = |outbox: &Outbox, topic: &str, qos: Qos| {
        let mut backlog = outbox.connections()[&key(0).connection].backlog();
        (0..6).filter(|send| backlog.may_have_arrived(0, SendNo(*send), None, topic, qos)).collect::<Vec<_>>()
    };
    assert!(ask(&outbox, "t", Qos::ExactlyOnce).is_empty(), "there never was a session");
    outbox.apply(&session_opened(2)).unwrap();
    assert_eq!(ask(&outbox, "t", Qos::ExactlyOnce), [0, 1]);
    assert!(ask(&outbox, "t", Qos::AtMostOnce).is_empty(), "what was written at QoS 0 is done");
    outbox.apply(&Event::Released { lane: key(0), sends: vec![SendNo(1), SendNo(2)] }).unwrap();
    assert_eq!(ask(&outbox, "t", Qos::ExactlyOnce), [0, 1, 2, 3], "what is released was received, and takes no room");
    let mut backlog = outbox.connections()[&key(0).connection].backlog();
    let waits = Some(WhyApart::Waiting { sent_through: SendNo(3) });
    assert!(!backlog.may_have_arrived(0, SendNo(0), waits, "t", Qos::ExactlyOnce), "it was refused");
    let asked = [3, 4, 5].map(|send| backlog.may_have_arrived(0, SendNo(send), None, if send == 5 { "u" } else { "t" }, Qos::ExactlyOnce));
    assert_eq!(asked, [true, false, true], "what had to wait behind it was not sent");
}

#[test]
fn a_request_is_recognised_within_its_window_and_not_after() {
    let mut outbox = with_lanes();
    let with_key = |key: u128, at: u64| {
        let dedupe = Some(Dedupe { key, body: 7, line: 0, lines: 1, batch: false });
        Event::Accepted(Arc::new(Accepted { dedupe, ..accepted(0, at) }))
    };
    let first = outbox.apply(&with_key(1, 0)).unwrap();
    let last = outbox.apply(&with_key(1, 0)).unwrap();
    let within = Millis(DEDUPE_WINDOW_MS);
    assert_eq!(outbox.request(1, within), Some(&Request { first, last, body: 7, at: Millis(0) }));
    outbox.apply(&with_key(2, within.0)).unwrap();
    assert!(outbox.request(1, within).is_some(), "a day has not passed");
    outbox.apply(&with_key(3, within.0 + 1)).unwrap();
    assert!(outbox.request(1, within).is_none(), "it is forgotten");
    assert!(outbox.request(2, within).is_some());
}

#[test]
fn a_key_that_comes_again_after_its_window_is_a_new_request_even_if_none_came_between() {
    let mut outbox = with_lanes();
    let with_key = |key: u128, body: u64, at: u64| {
        let dedupe = Some(Dedupe { key, body, line: 0, lines: 1, batch: false });
        Event::Accepted(Arc::new(Accepted { dedupe, ..accepted(0, at) }))
    };
    // This one is from a clock that was a year ahead, and is the oldest as long as it is known.
    outbox.apply(&with_key(9, 1, 365 * DEDUPE_WINDOW_MS)).unwrap();
    outbox.apply(&with_key(1, 7, 0)).unwrap();
    let later = Millis(DEDUPE_WINDOW_MS + 1);
    assert!(outbox.request(1, later).is_none());
    let first = outbox.apply(&with_key(1, 8, later.0)).unwrap();
    let last = outbox.apply(&with_key(1, 8, later.0)).unwrap();
    assert_eq!(outbox.request(1, later), Some(&Request { first, last, body: 8, at: later }));
    // It stands behind what came before it, and is forgotten in that order.
    outbox.requests.forget_before(first);
    assert!(outbox.request(1, later).is_some() && outbox.request(9, later).is_none());
}

#[test]
fn a_generation_that_has_just_begun_is_not_begun_again() {
    let mut outbox = with_lanes();
    let second = outbox.next();
    outbox.begin_generation();
    outbox.begin_generation();
    assert_eq!(outbox.generations().collect::<Vec<_>>(), [Seq::FIRST, second]);
    outbox.drop_oldest_generation();
    outbox.apply(&Event::Accepted(Arc::new(accepted(0, 0)))).unwrap();
    outbox.begin_generation();
    assert_eq!(outbox.needed_in_oldest_generation(), Some(1), "what waits in it keeps it from being deleted");
}

#[test]
fn a_copied_store_gives_every_lane_another_epoch_and_no_session() {
    let mut outbox = with_lanes();
    outbox.apply(&Event::Accepted(Arc::new(accepted(0, 0)))).unwrap();
    let (lane, endpoint) = (key(0), "broker:1883".to_owned());
    let (protocol, repeated) = (Protocol::V5, Ranges::default());
    outbox.apply(&Event::SessionOpened { lane, epoch: 3, protocol, endpoint, doubt: 200, repeated, at: Millis(0) }).unwrap();
    outbox.apply(&Event::Released { lane: key(0), sends: vec![SendNo(0)] }).unwrap();
    outbox.apply(&Event::EpochBumped { reason: "copied".into(), at: Millis(0) }).unwrap();
    let lane = outbox.lane(&key(0)).unwrap();
    assert_eq!((lane.epoch, lane.endpoint.as_str()), (4, LEFT_BEHIND), "there was one, and it is at no server of ours");
    assert_eq!(lane.released().len(), 1, "what was in it is known until it has been given up");
}

#[test]
fn a_million_pending_deliveries_take_little_memory() {
    let mut outbox = with_lanes();
    let event = Event::Accepted(Arc::new(accepted(0, 0)));
    for _ in 0..1_000_000 {
        outbox.apply(&event).unwrap();
    }
    outbox.apply(&Event::Delivered { lane: key(0), sends: Ranges(vec![(0, 499_999)]), proof: Proof::PubAck, at: Millis(1) }).unwrap();
    assert_eq!(outbox.lane(&key(0)).unwrap().pending(), 500_000);
    assert!(postcard::to_stdvec(&outbox).unwrap().len() < 16 << 10, "the stored form says about as much as the memory");
}

#[test]
fn on_a_lane_that_was_empty_the_oldest_pending_is_the_one_that_has_just_come() {
    let mut outbox = with_lanes();
    let oldest = |outbox: &Outbox| outbox.lane(&key(0)).unwrap().oldest_pending_at();
    for send in 0..5 {
        let at = 1_000 * (send + 1);
        outbox.apply(&Event::Accepted(Arc::new(accepted(0, at)))).unwrap();
        assert_eq!(oldest(&outbox), Some(Millis(at)), "what was done long ago does not make it old");
        outbox.apply(&Event::Accepted(Arc::new(accepted(0, at + 7)))).unwrap();
        assert_eq!(oldest(&outbox), Some(Millis(at)));
        outbox.apply(&delivered(0, 2 * send)).unwrap();
        outbox.apply(&delivered(0, 2 * send + 1)).unwrap();
        assert_eq!(oldest(&outbox), None);
    }
}
