//! What a page says about its events, readable without decompressing them.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::core::event::{Accepted, DeliveryRef, Event};
use crate::core::ranges::Ranges;
use crate::core::search::AUDIT_KEY;
use crate::core::types::{LaneKey, Millis, SendNo, Seq};

/// Bits per key of the filter: about 1 in 120 pages is looked at in vain.
const FILTER_BITS_PER_KEY: usize = 10;
const FILTER_PROBES: u64 = 7;
const FILTER_MIN_BYTES: usize = 8;

/// Finds a report again without an index of its own: time range, lanes, ids and a small filter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Index {
    /// The earliest and latest time of the events that have one.
    pub times: Option<(Millis, Millis)>,
    /// For each lane with an `Accepted` or `Resent` in the page: its next send number before the page.
    pub sends: Vec<(LaneKey, SendNo)>,
    /// For each lane, what outcomes in the page are about.
    pub touched: Vec<Touched>,
    /// A Bloom filter over `t:<tenant>`, `p:<pipeline>`, `a:<action>`, `P:<project>`, `T:<topic>`, `c:<change>`, and [`AUDIT_KEY`].
    pub filter: Vec<u8>,
}

/// What the outcomes of one page say about one lane: a range that holds all, not a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// The lane.
    pub lane: LaneKey,
    /// The lowest and highest send number named.
    pub sends: Option<(SendNo, SendNo)>,
    /// The lowest and highest delivery id named.
    pub ids: Option<(Seq, Seq)>,
}

impl Index {
    /// Whether its spans run from low to high, as those that are written do.
    pub(super) fn is_in_order(&self) -> bool {
        fn is_rising<T: PartialOrd>(span: Option<(T, T)>) -> bool {
            span.is_none_or(|(low, high)| low <= high)
        }
        is_rising(self.times) && self.touched.iter().all(|touched| is_rising(touched.sends) && is_rising(touched.ids))
    }

    /// Whether the page may hold a report with `key` (such as `t:acme`); false is certain.
    pub fn may_hold(&self, key: &str) -> bool {
        let bits = self.filter.len() as u64 * 8;
        bits > 0 && probes(xxh3_64(key.as_bytes()), bits).all(|bit| self.filter[(bit / 8) as usize] & (1 << (bit % 8)) != 0)
    }
}

fn probes(hash: u64, bits: u64) -> impl Iterator<Item = u64> {
    let (start, step) = (hash & 0xffff_ffff, (hash >> 32) | 1);
    (0..FILTER_PROBES).map(move |n| (start + n * step) % bits)
}

/// Gathers the index of a page while its events are added.
#[derive(Default)]
pub(super) struct IndexBuilder {
    times: Option<(Millis, Millis)>,
    sends: BTreeMap<LaneKey, SendNo>,
    touched: BTreeMap<LaneKey, (Span<SendNo>, Span<Seq>)>,
    keys: HashSet<u64, BuildHasherDefault<AsItIs>>,
    lanes_len: usize,
    scratch: String,
}

/// The hash of what is a good hash already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl IndexBuilder {
    /// Forgets what was added.
    pub(super) fn clear(&mut self) {
        let keys = std::mem::take(&mut self.keys);
        *self = IndexBuilder { keys, scratch: std::mem::take(&mut self.scratch), ..IndexBuilder::default() };
        self.keys.clear();
    }

    /// An upper bound of the encoded length if `event` were added.
    pub(super) fn bound_with(&self, event: &Event) -> usize {
        let mut lanes_len = self.lanes_len;
        let mut keys = self.keys.len();
        if let Some(lane) = sends(event)
            && !self.sends.contains_key(lane)
        {
            lanes_len += sends_len(lane);
        }
        if let Some((lane, ..)) = touches(event)
            && !self.touched.contains_key(lane)
        {
            lanes_len += touched_len(lane);
        }
        if accepted(event).is_some() {
            keys += 6;
        }
        if is_audit(event) {
            keys += 1;
        }
        // Time range, and the lengths of the three lists.
        64 + lanes_len + filter_len(keys)
    }

    /// Adds an event; `next_send` is the lane's next number before it, for an event that takes one.
    pub(super) fn add(&mut self, event: &Event, next_send: Option<SendNo>) {
        if let Some(at) = event.at() {
            let (low, high) = self.times.unwrap_or((at, at));
            self.times = Some((low.min(at), high.max(at)));
        }
        if let (Some(lane), Some(number)) = (sends(event), next_send)
            && !self.sends.contains_key(lane)
        {
            self.lanes_len += sends_len(lane);
            self.sends.insert(lane.clone(), number);
        }
        if let Some((lane, numbers, ids)) = touches(event) {
            if !self.touched.contains_key(lane) {
                self.lanes_len += touched_len(lane);
                self.touched.insert(lane.clone(), (None, None));
            }
            let entry = self.touched.get_mut(lane).expect("it was inserted just above");
            entry.0 = widen(entry.0, numbers);
            entry.1 = widen(entry.1, ids);
        }
        if is_audit(event) {
            self.keys.insert(xxh3_64(AUDIT_KEY.as_bytes()));
        }
        if let Some(accepted) = accepted(event) {
            for (prefix, value) in [
                ("t:", &accepted.tenant),
                ("p:", &accepted.pipeline),
                ("a:", &accepted.action),
                ("P:", &accepted.project),
                ("T:", &accepted.topic),
                ("c:", &accepted.change),
            ] {
                if !value.is_empty() {
                    self.scratch.clear();
                    self.scratch.push_str(prefix);
                    self.scratch.push_str(value);
                    self.keys.insert(xxh3_64(self.scratch.as_bytes()));
                }
            }
        }
    }

    /// The index; the builder is empty afterwards.
    pub(super) fn finish(&mut self) -> Index {
        let mut filter = Vec::new();
        if !self.keys.is_empty() {
            filter.resize(filter_len(self.keys.len()), 0u8);
            let bits = filter.len() as u64 * 8;
            for key in self.keys.drain() {
                for bit in probes(key, bits) {
                    filter[(bit / 8) as usize] |= 1 << (bit % 8);
                }
            }
        }
        self.lanes_len = 0;
        Index {
            times: self.times.take(),
            sends: std::mem::take(&mut self.sends).into_iter().collect(),
            touched: std::mem::take(&mut self.touched).into_iter().map(|(lane, (sends, ids))| Touched { lane, sends, ids }).collect(),
            filter,
        }
    }
}

fn is_audit(event: &Event) -> bool {
    matches!(event, Event::Audit { .. })
}

/// The lane whose next send number the event takes.
pub(super) fn sends(event: &Event) -> Option<&LaneKey> {
    match event {
        Event::Accepted(accepted) => Some(&accepted.lane),
        Event::Resent { delivery, .. } => Some(&delivery.lane),
        _ => None,
    }
}

fn accepted(event: &Event) -> Option<&Accepted> {
    match event {
        Event::Accepted(accepted) => Some(accepted),
        Event::Carried(carried) => Some(&carried.accepted),
        _ => None,
    }
}

/// The lowest and the highest.
type Span<T> = Option<(T, T)>;

/// What an outcome is about: its lane, the send numbers and ids that it names.
fn touches(event: &Event) -> Option<(&LaneKey, Span<SendNo>, Span<Seq>)> {
    match event {
        Event::Released { lane, sends } => {
            let low = sends.iter().min().copied();
            Some((lane, low.zip(sends.iter().max().copied()), None))
        }
        Event::Delivered { lane, sends, .. } | Event::Discarded { lane, sends, .. } | Event::Expired { lane, sends, .. } => {
            Some((lane, span(sends), None))
        }
        Event::SessionOpened { lane, repeated, .. } => Some((lane, span(repeated), None)),
        Event::Refused { delivery, .. }
        | Event::Resent { delivery, .. }
        | Event::DeadLettered { delivery, .. }
        | Event::Requeued { delivery, .. } => Some(named(delivery)),
        Event::Carried(carried) => Some((&carried.accepted.lane, Some((carried.send, carried.send)), Some((carried.id, carried.id)))),
        _ => None,
    }
}

fn named(delivery: &DeliveryRef) -> (&LaneKey, Span<SendNo>, Span<Seq>) {
    (&delivery.lane, Some((delivery.send, delivery.send)), Some((delivery.id, delivery.id)))
}

fn span(ranges: &Ranges) -> Span<SendNo> {
    let low = ranges.0.iter().map(|range| SendNo(range.0)).min();
    low.zip(ranges.0.iter().map(|range| SendNo(range.1)).max())
}

fn widen<T: Ord + Copy>(known: Span<T>, more: Span<T>) -> Span<T> {
    match (known, more) {
        (Some((low, high)), Some((first, last))) => Some((low.min(first), high.max(last))),
        (known, more) => known.or(more),
    }
}

fn filter_len(keys: usize) -> usize {
    if keys == 0 { 0 } else { (keys * FILTER_BITS_PER_KEY).div_ceil(8).max(FILTER_MIN_BYTES) }
}

/// Name with its length, lane number, send number: varints at their longest.
fn sends_len(lane: &LaneKey) -> usize {
    lane.connection.as_str().len() + 5 + 5 + 10
}

/// As above, with two spans and their marks.
fn touched_len(lane: &LaneKey) -> usize {
    lane.connection.as_str().len() + 5 + 5 + 21 + 21
}
