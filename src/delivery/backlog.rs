//! Reads what is pending on a connection, of all its lanes, in the order of acceptance. For handing it over; a lane has its own
//! [`feed`](super::feed).
//!
//! Reading blocks on the disk, so it runs where that is allowed, a piece at a time, and memory is bounded by the pieces.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::event::Event;
use crate::core::handover::Given;
use crate::core::outbox::{Apart, Backlog, WhyApart};
use crate::core::types::{ConnectionName, SendNo, Seq};
use crate::log::ReadError;
use crate::log::committer::LogHandle;

/// How large a piece may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Deliveries, and lanes that they are of, together; a lane counts twice if some of its deliveries may have arrived and others can't.
    pub events: usize,
    /// Payloads and topics, in bytes; a single delivery may have more.
    pub bytes: usize,
}

/// One piece.
#[derive(Debug, Default)]
pub struct Piece {
    /// Deliveries by id. Empty at the end.
    pub given: Vec<Given>,
    /// So many of them may have arrived at their broker.
    pub may_have_arrived: u64,
    /// And these are they.
    pub doubtful: BTreeSet<Seq>,
}

/// See the module.
pub struct BacklogReader {
    log: LogHandle,
    connection: ConnectionName,
    backlog: Backlog,
    apart: VecDeque<Apart>,
    /// How many are still to be found by counting.
    plain: u64,
    /// The next position to look at; none if nothing is to be found there.
    at: Option<Seq>,
    /// What was accepted after this is not read.
    through: Seq,
    /// Found by counting in the page that was read last.
    found: VecDeque<Given>,
    /// What did not fit into the last piece, and whether it may have arrived.
    left: Option<(Given, bool)>,
}

impl BacklogReader {
    /// A reader of what is pending on a connection and was accepted up to `through`. The connection's lanes must not be at work meanwhile.
    pub fn new(log: LogHandle, connection: ConnectionName, backlog: Backlog, through: Seq) -> Self {
        let apart = backlog.apart().iter().filter(|apart| apart.id <= through).copied().collect();
        let (plain, at) = (backlog.plain(), backlog.begin());
        BacklogReader { log, connection, backlog, apart, plain, at, through, found: VecDeque::new(), left: None }
    }

    /// Reads on. The end is a piece with nothing in it.
    ///
    /// # Errors
    /// See [`ReadError`]. [`ReadError::Gone`] means that what comes next has been carried forward: start anew from the outbox as it is now.
    pub fn read(&mut self, limits: Limits) -> Result<Piece, ReadError> {
        let mut piece = Piece::default();
        let (mut bytes, mut lanes) = (0, BTreeSet::new());
        while let Some((given, is_doubtful)) = self.next()? {
            let size = given.accepted.payload.len() + given.accepted.topic.len();
            lanes.insert((given.lane, is_doubtful));
            let is_full = piece.given.len() + 1 + lanes.len() > limits.events || bytes + size > limits.bytes;
            if is_full && !piece.given.is_empty() {
                self.left = Some((given, is_doubtful));
                break;
            }
            bytes += size;
            if is_doubtful {
                piece.may_have_arrived += 1;
                piece.doubtful.insert(given.id);
            }
            piece.given.push(given);
        }
        Ok(piece)
    }

    /// The next one by id, and whether it may have arrived.
    fn next(&mut self) -> Result<Option<(Given, bool)>, ReadError> {
        if let Some(left) = self.left.take() {
            return Ok(Some(left));
        }
        let Some((given, why)) = self.find()? else { return Ok(None) };
        // Asked once for each, in their order: it counts along.
        let is_doubtful = self.backlog.may_have_arrived(given.lane, given.send, why, &given.accepted.topic, given.accepted.qos);
        Ok(Some((given, is_doubtful)))
    }

    fn find(&mut self) -> Result<Option<(Given, Option<WhyApart>)>, ReadError> {
        while self.found.is_empty() && self.plain > 0 && self.at.is_some_and(|at| at <= self.through) {
            self.read_page()?;
        }
        let bound = self.found.front().map_or(Seq(u64::MAX), |found| found.id);
        if let Some(apart) = self.apart.front().filter(|apart| apart.id < bound) {
            let next = (self.load(apart)?, Some(apart.why));
            self.apart.pop_front();
            return Ok(Some(next));
        }
        Ok(self.found.pop_front().map(|found| (found, None)))
    }

    /// Finds what is in the next page.
    fn read_page(&mut self) -> Result<(), ReadError> {
        let Some(at) = self.at else { return Ok(()) };
        let page = self.log.page(at)?.ok_or_else(|| missing(at))?;
        let page = page.get();
        let of_connection = page.sends.iter().filter(|(lane, _)| lane.connection == self.connection);
        let mut next: BTreeMap<u32, SendNo> = of_connection.map(|(lane, send)| (lane.lane, *send)).collect();
        for (offset, event) in page.events.iter().enumerate() {
            let seq = Seq(page.first.0 + offset as u64);
            let (lane, accepted) = match event {
                Event::Accepted(accepted) => (&accepted.lane, Some(accepted)),
                Event::Resent { delivery, .. } => (&delivery.lane, None),
                _ => continue,
            };
            if lane.connection != self.connection {
                continue;
            }
            let lane = lane.lane;
            let what = || ReadError::Damaged { seq, what: "its page does not say which send it is".into() };
            let counted = next.get_mut(&lane).ok_or_else(what)?;
            let send = *counted;
            *counted = send.next();
            if let Some(accepted) = accepted
                && seq >= at
                && seq <= self.through
                && self.backlog.is_plain(lane, send)
            {
                self.plain -= 1;
                self.found.push_back(Given { id: seq, lane, send, accepted: accepted.as_ref().clone() });
            }
        }
        self.at = Some(page.last().next());
        Ok(())
    }

    fn load(&self, apart: &Apart) -> Result<Given, ReadError> {
        let Apart { id, located, lane, send, .. } = *apart;
        let page = self.log.page(located)?.ok_or_else(|| missing(located))?;
        let accepted = match page.get().get(located) {
            Some(Event::Accepted(accepted)) => accepted.as_ref().clone(),
            Some(Event::Carried(carried)) => carried.accepted.clone(),
            _ => return Err(missing(located)),
        };
        Ok(Given { id, lane, send, accepted })
    }
}

fn missing(seq: Seq) -> ReadError {
    ReadError::Damaged { seq, what: "a pending delivery should be here".into() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::core::event::{Accepted, LanePurpose, Proof};
    use crate::core::ranges::Ranges;
    use crate::core::types::{LaneKey, Millis, Qos};
    use crate::log::committer::{self, Limits as StoreLimits, recover};
    use crate::log::memory_log::{Disk, MemoryLog};
    use crate::metrics::Metrics;

    const LANES: u32 = 3;

    fn key(lane: u32) -> LaneKey {
        LaneKey { connection: "old".into(), lane }
    }

    /// Reports of one connection over all its lanes, among those of another.
    async fn with_reports(disk: &Disk, count: u64) -> LogHandle {
        let opened = MemoryLog::open(disk).unwrap();
        let outbox = recover(&opened).unwrap();
        let limits = StoreLimits { max_size: u64::MAX, retention_ms: 0 };
        let log = committer::start(opened.log, outbox, limits, Arc::new(Metrics::new())).unwrap();
        for connection in ["old", "other"] {
            let (connection, purpose) = (connection.into(), LanePurpose::Fresh);
            log.record(vec![Event::LanesChanged { connection, first: 0, count: LANES, purpose, at: Millis(0) }]).await.unwrap();
        }
        for number in 0..count {
            let connection = if number % 4 == 3 { "other" } else { "old" };
            let lane = LaneKey { connection: connection.into(), lane: u32::try_from(number % 3).unwrap() };
            let accepted = Accepted::plain(lane, format!("topic {number}"), Qos::AtLeastOnce, Millis(number));
            log.accept(vec![Event::Accepted(Arc::new(accepted))]).await.unwrap();
        }
        log
    }

    async fn reader(log: &LogHandle) -> BacklogReader {
        let asked = log.ask(|outbox| (outbox.connections()[&key(0).connection].backlog(), outbox.next())).await.unwrap().into_inner();
        BacklogReader::new(log.clone(), key(0).connection, asked.0, Seq(asked.1.0 - 1))
    }

    fn read_all(reader: &mut BacklogReader, events: usize) -> Result<Vec<Given>, ReadError> {
        let mut all = Vec::new();
        loop {
            let piece = reader.read(Limits { events, bytes: 1 << 20 })?;
            let lanes: BTreeSet<u32> = piece.given.iter().map(|given| given.lane).collect();
            assert!(piece.given.len() + lanes.len() <= events, "a piece is no larger than it may be");
            if piece.given.is_empty() {
                return Ok(all);
            }
            all.extend(piece.given);
        }
    }

    fn numbers(given: &[Given]) -> Vec<u64> {
        given.iter().map(|given| given.accepted.topic.strip_prefix("topic ").unwrap().parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn everything_of_a_connection_is_read_in_the_order_of_acceptance_over_all_its_lanes() {
        let log = with_reports(&Disk::new(1 << 20), 200).await;
        let expected: Vec<u64> = (0..200).filter(|number| number % 4 != 3).collect();
        for events in [2, 7, 1_000] {
            assert_eq!(numbers(&read_all(&mut reader(&log).await, events).unwrap()), expected);
        }
        // Of one commit, and so of one page.
        let together = (200..210).map(|number| Accepted::plain(key(1), format!("topic {number}"), Qos::AtLeastOnce, Millis(number)));
        log.accept(together.map(|accepted| Event::Accepted(Arc::new(accepted))).collect()).await.unwrap();
        let expected: Vec<u64> = expected.into_iter().chain(200..210).collect();
        assert_eq!(numbers(&read_all(&mut reader(&log).await, 7).unwrap()), expected);
        // What comes later is not of this backlog.
        let mut before = reader(&log).await;
        let later = Accepted::plain(key(1), "topic 999", Qos::AtLeastOnce, Millis(0));
        log.accept(vec![Event::Accepted(Arc::new(later))]).await.unwrap();
        assert_eq!(numbers(&read_all(&mut before, 100).unwrap()), expected);
    }

    #[tokio::test]
    async fn what_was_carried_forward_is_read_in_its_old_place_and_a_reader_of_before_is_told_to_begin_anew() {
        // Generations of a few kilobytes: these reports make several.
        let log = with_reports(&Disk::new(4 << 10), 400).await;
        let mut before = reader(&log).await;
        for lane in 0..LANES {
            // All but the first and the last two of each lane are done, and all of the other connection's.
            for (connection, keep_first, keep_last) in [("old", 1, 2), ("other", 0, 0)] {
                let lane = LaneKey { connection: connection.into(), lane };
                let asked = lane.clone();
                let next = log.ask(move |outbox| outbox.next_send(&asked).0).await.unwrap().into_inner();
                let sends = Ranges(vec![(keep_first, next - keep_last - 1)]);
                log.record(vec![Event::Delivered { lane, sends, proof: Proof::PubAck, at: Millis(0) }]).await.unwrap();
            }
        }
        let dropped = async {
            while log.page(Seq(3)).is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), dropped).await.expect("a generation past its retention is dropped");
        assert!(matches!(read_all(&mut before, 100), Err(ReadError::Gone(_))));
        let found = read_all(&mut reader(&log).await, 100).unwrap();
        let mut expected: Vec<u64> = Vec::new();
        for lane in 0..3 {
            let of_lane: Vec<u64> = (0..400).filter(|number| number % 4 != 3 && number % 3 == lane).collect();
            expected.extend([of_lane[0], of_lane[of_lane.len() - 2], of_lane[of_lane.len() - 1]]);
        }
        expected.sort_unstable();
        assert_eq!(numbers(&found), expected);
    }
}
