//! Tests of the fold: the books balance, what is pending is found again, and nothing that does not fit is folded.

use proptest::prelude::*;

use super::*;
use crate::core::event::{Accepted, Carried, DeadReason, Dedupe, DeliveryRef};
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
                let seq = outbox.apply(&Event::Accepted(Box::new(accepted(*lane, at.0)))).unwrap();
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
                plain.generations.push(outbox.next());
            }
            _ => retire(&mut outbox, &mut plain),
        }
    }
    (outbox, plain)
}

/// Carries what is left of the oldest generation forward, and drops it.
fn retire(outbox: &mut Outbox, plain: &mut Plain) {
    let Some(needed) = outbox.needed_in_oldest_generation() else { return };
    let stragglers = outbox.stragglers();
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
    fn an_outbox_survives_its_stored_form(steps in prop::collection::vec((0u8..15, 0..LANES, any::<usize>()), 0..120)) {
        let (outbox, _) = play(&steps);
        let bytes = postcard::to_stdvec(&outbox).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Outbox>(&bytes).unwrap(), outbox);
    }
}

#[test]
fn an_outcome_for_what_is_not_pending_is_refused_and_changes_nothing() {
    let mut outbox = with_lanes();
    outbox.apply(&Event::Accepted(Box::new(accepted(0, 0)))).unwrap();
    outbox.apply(&delivered(0, 0)).unwrap();
    let before = outbox.clone();
    for event in [delivered(0, 0), delivered(0, 1), delivered(9, 0), Event::Released { lane: key(1), sends: vec![SendNo(0)] }] {
        assert!(outbox.apply(&event).is_err(), "{event:?}");
        assert_eq!(outbox, before);
    }
}

#[test]
fn a_request_is_recognised_within_its_window_and_not_after() {
    let mut outbox = with_lanes();
    let with_key = |key: u128, at: u64| {
        let dedupe = Some(Dedupe { key, body: 7, line: 0, lines: 1, batch: false });
        Event::Accepted(Box::new(Accepted { dedupe, ..accepted(0, at) }))
    };
    let first = outbox.apply(&with_key(1, 0)).unwrap();
    let last = outbox.apply(&with_key(1, 0)).unwrap();
    assert_eq!(outbox.request(1), Some(&Request { first, last, body: 7, at: Millis(0) }));
    outbox.apply(&with_key(2, DEDUPE_WINDOW_MS)).unwrap();
    assert!(outbox.request(1).is_some(), "a day has not passed");
    outbox.apply(&with_key(3, DEDUPE_WINDOW_MS + 1)).unwrap();
    assert!(outbox.request(1).is_none());
    assert!(outbox.request(2).is_some());
}

#[test]
fn a_copied_store_gives_every_lane_another_epoch_and_no_session() {
    let mut outbox = with_lanes();
    outbox.apply(&Event::Accepted(Box::new(accepted(0, 0)))).unwrap();
    let (lane, endpoint) = (key(0), "broker:1883".to_owned());
    let (protocol, repeated) = (Protocol::V5, Ranges::default());
    outbox.apply(&Event::SessionOpened { lane, epoch: 3, protocol, endpoint, doubt: 200, repeated, at: Millis(0) }).unwrap();
    outbox.apply(&Event::Released { lane: key(0), sends: vec![SendNo(0)] }).unwrap();
    outbox.apply(&Event::EpochBumped { reason: "copied".into(), at: Millis(0) }).unwrap();
    let lane = outbox.lane(&key(0)).unwrap();
    assert_eq!((lane.epoch, lane.endpoint.as_str()), (4, ""));
    assert!(lane.released().is_empty(), "the new session knows of no PUBREC");
    assert_eq!(outbox.connections()[&key(0).connection].totals.possible_duplicates, 1);
}

#[test]
fn a_million_pending_deliveries_take_little_memory() {
    let mut outbox = with_lanes();
    let event = Event::Accepted(Box::new(accepted(0, 0)));
    for _ in 0..1_000_000 {
        outbox.apply(&event).unwrap();
    }
    outbox.apply(&Event::Delivered { lane: key(0), sends: Ranges(vec![(0, 499_999)]), proof: Proof::PubAck, at: Millis(1) }).unwrap();
    assert_eq!(outbox.lane(&key(0)).unwrap().pending(), 500_000);
    assert!(postcard::to_stdvec(&outbox).unwrap().len() < 16 << 10, "the stored form says about as much as the memory");
}
