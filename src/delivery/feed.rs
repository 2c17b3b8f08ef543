//! The feed of a lane: follows the log and picks out what is the lane's, in send order.
//!
//! It starts from a snapshot of the lane's part of the outbox: what is settled there is passed over, what is held elsewhere is looked up.
//! Behind the snapshot everything accepted is new. Reading blocks on the disk, so it runs where that is allowed, a piece at a time, and
//! memory is bounded by the pieces.
//!
//! A feed ends where its lane is taken: the lane started from a snapshot behind its own `LaneTaken`, so that is another owner's, or a later term of its
//! own. The new owner then knows everything that the old one may have sent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::codec::{self, Stamp};
use crate::core::content::Content;
use crate::core::event::{Accepted, Event};
use crate::core::outbox::Lane;
use crate::core::session::{Delivery, Start};
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
use crate::log::committer::{Committed, LogHandle};
use crate::log::{AnyPage, Page, ReadError, Seen};

/// One piece has at most so many bytes of payload, unless a single report is larger.
const PIECE_BYTES: usize = 1 << 20;

/// One piece looks at no more pages than this, so that a lane with little to do among others with much stays responsive.
const PIECE_PAGES: usize = 64;

/// A delivery in the page that it was read from: no copy of the payload is made.
#[derive(Debug, Clone)]
pub struct Loaded {
    page: AnyPage,
    at: Seq,
}

impl Loaded {
    /// What it is sent with.
    pub fn content(&self) -> Content<'_> {
        self.page.content(self.at).unwrap_or_else(|| unreachable!("only made for what is accepted or carried"))
    }

    fn topic(&self) -> Arc<str> {
        self.page.topic(self.at).unwrap_or_else(|| unreachable!("only made for what is accepted or carried"))
    }

    /// All that was accepted; none if it can't be decoded.
    pub fn accepted(&self) -> Option<Accepted> {
        match self.page.get(self.at)?.into_owned() {
            Event::Accepted(accepted) => Some(Arc::unwrap_or_clone(accepted)),
            Event::Carried(carried) => Some(carried.accepted),
            _ => None,
        }
    }

    /// What is added to it over MQTT 5.
    pub fn stamp(&self) -> Stamp {
        self.stamped(&self.content())
    }

    /// As [`Loaded::stamp`], where its content is at hand.
    pub fn stamped(&self, content: &Content<'_>) -> Stamp {
        let id = match self.page.see(self.at) {
            Some(Seen::Other(Event::Carried(carried))) => carried.id,
            _ => self.at,
        };
        Stamp { id, accepted_at: content.at }
    }
}

/// A delivery with what is needed to send it, and the proof that it is durable.
pub type Payload = Committed<Loaded>;

/// What one read brings.
#[derive(Debug, Default)]
pub struct Piece {
    /// Fresh deliveries in send order.
    pub fresh: Vec<(Delivery, Payload)>,
    /// Dead letters that were given back: under their spent number, and when to send them.
    pub requeued: Vec<(Delivery, Millis, Payload)>,
    /// There is nothing more now.
    pub is_at_end: bool,
}

/// See the module.
pub struct Feed {
    log: LogHandle,
    lane: LaneKey,
    /// The next position to look at.
    at: Seq,
    /// The lane was taken there, so what comes then is another owner's to send.
    is_over: bool,
    /// The lane as of `through`.
    snapshot: Lane,
    through: Seq,
    /// Carried deliveries that are still to come in their turn.
    carried: VecDeque<(SendNo, Seq, Seq)>,
    /// Deliveries are stamped, which makes their packets larger.
    stamped: bool,
}

impl Feed {
    /// A feed that starts from `snapshot`, which is the lane as of the event `through`.
    pub fn new(log: LogHandle, lane: LaneKey, snapshot: Lane, through: Seq, stamped: bool) -> Self {
        let at = match snapshot.is_settled_through(snapshot.next_send()) {
            true => through.next(),
            false => snapshot.anchor_for(snapshot.cursor()).unwrap_or(through.next()),
        };
        let carried = snapshot.moved().iter().filter(|(_, moved)| !moved.is_resent);
        let carried = carried.map(|(send, moved)| (*send, moved.id, moved.located)).collect();
        Feed { log, lane, at, is_over: false, snapshot, through, carried, stamped }
    }

    /// Reads what a session starts with: everything that may be on the wire, and what waits.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn start(&mut self) -> Result<(Start, BTreeMap<SendNo, Payload>), ReadError> {
        let mut payloads = BTreeMap::new();
        let mut start = Start {
            epoch: self.snapshot.epoch,
            endpoint: self.snapshot.endpoint.clone(),
            protocol: self.snapshot.protocol,
            doubt: self.snapshot.doubt,
            released: self.snapshot.released().to_vec(),
            ..Start::default()
        };
        for (send, waiting) in self.snapshot.waiting() {
            let payload = self.load(waiting.located)?;
            let delivery = Delivery { attempts: waiting.attempts, ..delivery(*send, waiting.id, waiting.located, &payload, self.stamped) };
            start.waiting.push((delivery, waiting.retry_at, waiting.sent_through));
            payloads.insert(*send, payload);
        }
        for (send, moved) in self.snapshot.moved().iter().filter(|(_, moved)| moved.is_resent) {
            let payload = self.load(moved.located)?;
            let known = delivery(*send, moved.id, moved.located, &payload, self.stamped);
            start.resent.push((Delivery { attempts: moved.attempts, is_resent: true, ..known }, moved.sent_through));
            payloads.insert(*send, payload);
        }
        while !start.is_complete() {
            let piece = self.read_through(usize::MAX, self.through, PIECE_PAGES)?;
            for (delivery, payload) in piece.fresh {
                payloads.insert(delivery.send, payload);
                start.fresh.push(delivery);
            }
            if piece.is_at_end {
                break;
            }
        }
        Ok((start, payloads))
    }

    /// Reads on, for at most `wanted` fresh deliveries.
    ///
    /// # Errors
    /// See [`ReadError`]. [`ReadError::Gone`] means that what comes next has been carried forward: start anew from a new snapshot.
    pub fn read(&mut self, wanted: usize) -> Result<Piece, ReadError> {
        self.read_through(wanted, Seq(u64::MAX), PIECE_PAGES)
    }

    /// Whether the next page is in memory, so that [`Feed::read_page`] does not block. But for what that may have to look up: dead letters that were
    /// given back, and what was carried forward.
    pub fn is_in_memory(&self) -> bool {
        self.carried.is_empty() && self.log.is_in_memory(self.at)
    }

    /// As [`Feed::read`], but the next page only.
    ///
    /// # Errors
    /// As [`Feed::read`].
    pub fn read_page(&mut self, wanted: usize) -> Result<Piece, ReadError> {
        self.read_through(wanted, Seq(u64::MAX), 1)
    }

    fn read_through(&mut self, wanted: usize, through: Seq, pages: usize) -> Result<Piece, ReadError> {
        let mut piece = Piece::default();
        let mut bytes = 0;
        for _ in 0..pages {
            if piece.fresh.len() >= wanted || bytes >= PIECE_BYTES {
                return Ok(piece);
            }
            if self.at > through || self.is_over {
                break;
            }
            let Some(page) = self.log.any_page(self.at)? else { break };
            let last = page.get().last();
            // A page is taken whole, or up to where the reading is to stop.
            bytes += self.take(&page, through, &mut piece)?;
            self.at = last.min(through).next();
        }
        piece.is_at_end = self.is_over || self.at > through || self.at > self.log.durable();
        if piece.is_at_end && self.at > self.through {
            // Carried ones with numbers above everything that still stands in its old place.
            while let Some((send, id, located)) = self.carried.pop_front() {
                self.push_carried(send, id, located, &mut piece)?;
            }
        }
        Ok(piece)
    }

    fn take(&mut self, page: &Committed<AnyPage>, through: Seq, piece: &mut Piece) -> Result<usize, ReadError> {
        let mut bytes = 0;
        let sends = page.get().sends();
        let mut next = sends.iter().find(|(key, _)| *key == self.lane).map(|(_, send)| *send);
        for seq in (page.get().first().0..=page.get().last().min(through).0).map(Seq) {
            let Some(seen) = page.get().see(seq) else { break };
            match seen {
                // Most are other lanes', of the same connection.
                Seen::Accepted(lane) if lane.lane == self.lane.lane && *lane == self.lane => {
                    let send = next.ok_or_else(|| no_send(seq))?;
                    next = Some(send.next());
                    if seq < self.at || !self.is_to_send(seq, send) {
                        continue;
                    }
                    while let Some((send, id, located)) = self.carried.pop_front_if(|(carried, ..)| *carried < send) {
                        self.push_carried(send, id, located, piece)?;
                    }
                    let payload = page.map_ref(|page| Loaded { page: page.clone(), at: seq });
                    let delivery = delivery(send, seq, seq, &payload, self.stamped);
                    bytes += delivery.size;
                    piece.fresh.push((delivery, payload));
                }
                Seen::Other(Event::LaneTaken { lane, .. }) if *lane == self.lane && seq > self.through => {
                    self.is_over = true;
                    break;
                }
                Seen::Other(Event::Resent { delivery, .. }) if delivery.lane == self.lane => next = next.map(SendNo::next),
                Seen::Other(Event::Requeued { delivery: requeued, at, .. })
                    if requeued.lane == self.lane && seq > self.through && seq >= self.at =>
                {
                    let payload = self.load(requeued.located)?;
                    piece.requeued.push((delivery(requeued.send, requeued.id, requeued.located, &payload, self.stamped), *at, payload));
                }
                _ => {}
            }
        }
        Ok(bytes)
    }

    fn is_to_send(&self, seq: Seq, send: SendNo) -> bool {
        seq > self.through || (self.snapshot.is_pending(send) && !self.snapshot.moved().contains_key(&send))
    }

    fn push_carried(&self, send: SendNo, id: Seq, located: Seq, piece: &mut Piece) -> Result<(), ReadError> {
        let payload = self.load(located)?;
        piece.fresh.push((delivery(send, id, located, &payload, self.stamped), payload));
        Ok(())
    }

    /// A delivery, by the event that holds it.
    fn load(&self, located: Seq) -> Result<Payload, ReadError> {
        let missing = || ReadError::Damaged { seq: located, what: "a delivery should be here".into() };
        let page = self.log.page(located)?.ok_or_else(missing)?;
        match page.get().get(located) {
            // Those that are looked up one by one lie far apart: a page each would hold much more than is needed.
            Some(event @ (Event::Accepted(_) | Event::Carried(_))) => {
                let alone = Arc::new(Page { first: located, events: vec![event.clone()], sends: Vec::new() });
                Ok(page.map_ref(|_| Loaded { page: AnyPage::Decoded(alone), at: located }))
            }
            _ => Err(missing()),
        }
    }
}

fn no_send(seq: Seq) -> ReadError {
    ReadError::Damaged { seq, what: "its page does not say which send it is".into() }
}

fn delivery(send: SendNo, id: Seq, located: Seq, payload: &Payload, stamped: bool) -> Delivery {
    let content = payload.get().content();
    Delivery {
        send,
        id,
        located,
        topic: payload.get().topic(),
        qos: content.qos,
        retain: content.retain,
        accepted_at: content.at,
        expires_at: content.expires_at(),
        attempts: 0,
        size: codec::publish_size(&content, stamped.then(|| payload.get().stamped(&content))),
        is_resent: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::LanePurpose;
    use crate::core::types::{InstanceId, Qos};
    use crate::log::committer::{self, Limits, recover};
    use crate::log::memory_log::{Disk, MemoryLog};
    use crate::metrics::Metrics;

    fn lane() -> LaneKey {
        LaneKey { connection: "mqtt".into(), lane: 0 }
    }

    fn taken(by: u64, term: u64) -> Event {
        Event::LaneTaken { lane: lane(), instance: InstanceId(by), term, at: Millis(0) }
    }

    fn accepted(number: u64) -> Event {
        Event::Accepted(Arc::new(Accepted::plain(lane(), format!("topic {number}"), Qos::ExactlyOnce, Millis(number))))
    }

    async fn feed(log: &LogHandle) -> Feed {
        let asked = log.ask(|outbox| (outbox.lane(&lane()).cloned(), outbox.next())).await.unwrap().into_inner();
        Feed::new(log.clone(), lane(), asked.0.expect("it is there"), Seq(asked.1.0 - 1), true)
    }

    fn topics(piece: &Piece) -> Vec<&str> {
        piece.fresh.iter().map(|(delivery, _)| &*delivery.topic).collect()
    }

    #[tokio::test]
    async fn what_comes_after_another_took_the_lane_is_not_this_owners_to_send() {
        let opened = MemoryLog::open(&Disk::new(1 << 20)).unwrap();
        let outbox = recover(&opened).unwrap();
        let limits = Limits { max_size: u64::MAX, retention_ms: 0 };
        let log = committer::start(opened.log, outbox, limits, Arc::new(Metrics::new())).unwrap();
        let lanes = Event::LanesChanged { connection: lane().connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) };
        let joined = |id| Event::InstanceJoined { instance: InstanceId(id), name: String::new(), at: Millis(0) };
        for event in [lanes, joined(1), joined(2), taken(1, 1)] {
            log.record(vec![event]).await.unwrap();
        }
        log.accept(vec![accepted(1)]).await.unwrap();
        let mut first = feed(&log).await;
        log.accept(vec![accepted(2)]).await.unwrap();
        log.record(vec![taken(2, 2)]).await.unwrap();
        log.accept(vec![accepted(3), accepted(4)]).await.unwrap();

        first.start().unwrap();
        let piece = first.read(100).unwrap();
        assert_eq!((topics(&piece), piece.is_at_end), (vec!["topic 1", "topic 2"], true));
        log.accept(vec![accepted(5)]).await.unwrap();
        let piece = first.read(100).unwrap();
        assert_eq!((topics(&piece), piece.is_at_end), (vec![], true), "and it stays so");

        let mut second = feed(&log).await;
        second.start().unwrap();
        assert_eq!(second.read(100).unwrap().fresh.len(), 5, "its successor has all of it, and knows what may have been sent");
    }
}
