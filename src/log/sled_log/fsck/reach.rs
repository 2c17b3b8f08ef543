//! Whether everything that is pending or dead can be read: where it was accepted, or where it was carried to.

use std::collections::BTreeMap;

use super::{Examination, Finding, Item, Raw, Survey, Unreadable};
use crate::core::event::{Accepted, Carried, Event};
use crate::core::outbox::Lane;
use crate::core::ranges::RangeSet;
use crate::core::types::{LaneKey, SendNo, Seq};
use crate::log::OpenError;
use crate::log::codec::Decoder;
use crate::log::sled_log::open::At;

/// Deliveries of one lane and state that can't be read.
pub(in crate::log::sled_log) struct Lost {
    pub(in crate::log::sled_log) lane: LaneKey,
    /// Those found by counting, of which nothing else is known, and the others.
    pub(in crate::log::sled_log) sends: RangeSet,
    pub(in crate::log::sled_log) known: Vec<LostOne>,
    pub(in crate::log::sled_log) is_dead: bool,
}

/// One whose id is known.
pub(in crate::log::sled_log) struct LostOne {
    pub(in crate::log::sled_log) send: SendNo,
    pub(in crate::log::sled_log) id: Seq,
    /// The report, where it can still be read at its first place.
    pub(in crate::log::sled_log) copy: Option<Box<Carried>>,
}

impl Lost {
    pub(super) fn to_finding(&self) -> Finding {
        let count = self.sends.len();
        let named = self.known.iter().map(|one| one.id.to_string()).take(20).collect::<Vec<_>>().join(", ");
        let ids = if named.is_empty() { String::new() } else { format!(" (ids {named})") };
        let kind = if self.is_dead { "dead" } else { "pending" };
        let what = format!("{count} {kind} deliveries of lane {} can't be read{ids}", self.lane);
        Finding { code: "unreadable", generation: None, file: None, events: None, what }
    }

    pub(super) fn to_unreadable(&self) -> Unreadable {
        let known = self.known.iter().map(|one| (one.id, one.copy.as_ref().map(|copy| copy.accepted.topic.clone()))).collect();
        Unreadable { lane: self.lane.clone(), sends: self.sends.to_ranges(), known, is_dead: self.is_dead }
    }
}

/// One that is held apart: send, id, place.
type Apart = (SendNo, Seq, Seq);

/// What of the outbox can't be read.
pub(in crate::log::sled_log) fn unreadable(survey: &Survey, examination: &Examination) -> Result<Vec<Lost>, OpenError> {
    let outbox = examination.state.outbox();
    let nothing = RangeSet::new();
    let mut wanted = Wanted::default();
    for (key, lane) in outbox.lanes() {
        for (_, id, located) in pending_apart(lane).chain(dead(lane)) {
            wanted.note(&key, id, located);
        }
    }
    // Who is where first; of what is not where it should be, the report itself.
    let mut found: BTreeMap<Seq, LaneKey> = BTreeMap::new();
    wanted.look_up(survey, examination, |place, accepted| drop(found.insert(place, accepted.lane.clone())))?;
    let is_here = |place: Seq, lane: &LaneKey| found.get(&place) == Some(lane);
    let mut elsewhere = Wanted::default();
    for (key, lane) in outbox.lanes() {
        for (_, id, located) in pending_apart(lane).chain(dead(lane)) {
            if !is_here(located, &key) && is_here(id, &key) {
                elsewhere.note(&key, id, id);
            }
        }
    }
    let mut copies: BTreeMap<Seq, Accepted> = BTreeMap::new();
    elsewhere.look_up(survey, examination, |place, accepted| drop(copies.insert(place, accepted.clone())))?;
    let mut lost = Vec::new();
    for (key, lane) in outbox.lanes() {
        let readable = examination.readable.get(&key).unwrap_or(&nothing);
        let plain: RangeSet = plain_pending(lane).filter(|send| !readable.contains(send.0)).map(|send| send.0).collect();
        let mut add = |sends: RangeSet, apart: Vec<Apart>, is_dead| {
            let mut sends = sends;
            let one = |(send, id, located): Apart| {
                if is_here(located, &key) {
                    return None;
                }
                sends.insert(send.0);
                let history = || vec!["the place that it had been carried to is damaged".to_owned()];
                let copy = copies.get(&id).map(|accepted| Box::new(Carried { id, send, accepted: accepted.clone(), history: history() }));
                Some(LostOne { send, id, copy })
            };
            let known: Vec<LostOne> = apart.into_iter().filter_map(one).collect();
            if !sends.is_empty() {
                lost.push(Lost { lane: key.clone(), sends, known, is_dead });
            }
        };
        add(plain, pending_apart(lane).collect(), false);
        add(RangeSet::new(), dead(lane).collect(), true);
    }
    Ok(lost)
}

fn plain_pending(lane: &Lane) -> impl Iterator<Item = SendNo> + '_ {
    let (mut next, end) = (lane.cursor().0, lane.next_send().0);
    std::iter::from_fn(move || {
        loop {
            next = lane.settled().next_missing(next);
            let send = SendNo(next);
            next += 1;
            if send.0 >= end {
                return None;
            }
            if !lane.moved().contains_key(&send) {
                return Some(send);
            }
        }
    })
}

fn pending_apart(lane: &Lane) -> impl Iterator<Item = Apart> + '_ {
    let waiting = lane.waiting().iter().map(|(send, known)| (*send, known.id, known.located));
    waiting.chain(lane.moved().iter().map(|(send, known)| (*send, known.id, known.located)))
}

fn dead(lane: &Lane) -> impl Iterator<Item = Apart> + '_ {
    lane.dead().iter().map(|(send, known)| (*send, known.id, known.located))
}

/// Positions that must hold a delivery.
#[derive(Default)]
struct Wanted {
    places: BTreeMap<Seq, LaneKey>,
}

impl Wanted {
    fn note(&mut self, lane: &LaneKey, id: Seq, located: Seq) {
        self.places.insert(located, lane.clone());
        self.places.entry(id).or_insert_with(|| lane.clone());
    }

    /// Shows each delivery that stands at one of the places.
    fn look_up(&self, survey: &Survey, examination: &Examination, mut show: impl FnMut(Seq, &Accepted)) -> Result<(), OpenError> {
        let at = At { store: &survey.store };
        let mut decoder = Decoder::new().map_err(|error| at.io(error))?;
        for part in examination.parts.iter().filter(|part| !part.is_missing) {
            if self.places.range(part.first..part.end).next().is_none() {
                continue;
            }
            let raw = Raw::read(&survey.folder(part.first), part.first, survey.tag, &()).map_err(|error| at.io(error))?;
            for item in raw.items(part.first, Some(part.end), None) {
                let Item::Page { first, last, parts } = item else { continue };
                if self.places.range(first..=last).next().is_none() {
                    continue;
                }
                let bytes = raw.bytes_of(&parts).map_err(|error| at.io(error))?;
                let Ok(page) = decoder.page(survey.tag, &bytes) else { continue };
                for (place, _) in self.places.range(first..=last) {
                    match page.get(*place) {
                        Some(Event::Accepted(accepted)) => show(*place, accepted),
                        Some(Event::Carried(carried)) => show(*place, &carried.accepted),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }
}
