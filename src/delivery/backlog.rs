//! Reads what is pending on a connection, of all its lanes, in the order of acceptance. For handing it over; a lane has its own
//! [`feed`](super::feed).
//!
//! Reading blocks on the disk, so it runs where that is allowed, a piece at a time, and memory is bounded by the pieces.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::core::event::{Accepted, Event};
use crate::core::handover::Given;
use crate::core::outbox::{Apart, Backlog, WhyApart};
use crate::core::types::{ConnectionName, SendNo, Seq};
use crate::log::ReadError;
use crate::log::committer::LogHandle;

/// How large a piece may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Deliveries, and lanes that they are of, together.
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
    /// What did not fit into the last piece.
    left: Option<Next>,
}

type Next = (Given, Option<WhyApart>);

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
        while let Some((given, why)) = self.next()? {
            let size = given.accepted.payload.len() + given.accepted.topic.len();
            lanes.insert(given.lane);
            let is_full = piece.given.len() + 1 + lanes.len() > limits.events || bytes + size > limits.bytes;
            if is_full && !piece.given.is_empty() {
                self.left = Some((given, why));
                break;
            }
            bytes += size;
            let Accepted { topic, qos, .. } = &given.accepted;
            piece.may_have_arrived += u64::from(self.backlog.may_have_arrived(given.lane, given.send, why, topic, *qos));
            piece.given.push(given);
        }
        Ok(piece)
    }

    /// The next one by id.
    fn next(&mut self) -> Result<Option<Next>, ReadError> {
        if let Some(left) = self.left.take() {
            return Ok(Some(left));
        }
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
