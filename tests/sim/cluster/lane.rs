//! A lane of an instance: the real feed and the real session, which find what has come meanwhile whenever the instance goes on.

use std::collections::{BTreeMap, VecDeque};

use tidings::core::event::Event;
use tidings::core::outbox::Lane;
use tidings::core::retry::RetryPolicy;
use tidings::core::session::{Input, Note, Outgoing, Output, Session, Settings};
use tidings::core::types::{InstanceId, Millis, SendNo, Seq};
use tidings::delivery::feed::{Feed, Payload};
use tidings::log::committer::{Appended, CommitError, Committed, Ticket};

use super::broker::{Packet, Socket};
use super::instance::submit;
use super::{PACKET_IDS, World, key};
use crate::lane::{Waiting, look};

type Snapshot = Result<Committed<Option<(Lane, Seq)>>, CommitError>;

/// A lane at work.
pub(super) struct Driver {
    pub(super) term: u64,
    pub(super) connection: Option<u64>,
    pub(super) socket: Socket,
    pub(super) is_draining: bool,
    work: Work,
}

enum Work {
    Asking(Waiting<'static, Snapshot>),
    At(Box<AtWork>),
}

struct AtWork {
    session: Session,
    feed: Feed,
    payloads: BTreeMap<SendNo, Payload>,
    appends: VecDeque<Ticket>,
    knows_of_drain: bool,
}

impl World {
    pub(super) fn driver(&mut self, node: InstanceId, lane: u32) -> Option<&mut Driver> {
        self.nodes.iter_mut().find(|known| known.id == node)?.lanes.get_mut(&lane)
    }

    fn settings(&self, lane: u32) -> Settings {
        Settings {
            lane: key(lane),
            client_id: "tidings-0".into(),
            endpoints: vec!["broker:1883".into()],
            failback_ms: 1_000,
            protocol: Some(self.protocol),
            keepalive_s: 5,
            window_5: 4,
            window_3_1_1: 4,
            session_expiry_s: 1_000,
            connect_timeout_ms: 1_000,
            ack_timeout_ms: 1_500,
            // Nothing here is to blame.
            retry: RetryPolicy { initial_ms: 50, max_ms: 400, attempts: 1_000 },
            downgrade: false,
            is_retired: false,
            packet_ids: PACKET_IDS,
            claims: true,
        }
    }

    pub(super) fn lane_starts(&mut self, at: usize, lane: u32, term: u64) {
        let (log, asked) = (self.nodes[at].log.clone(), key(lane));
        let mut asking: Waiting<Snapshot> =
            Box::pin(async move { log.ask_in_order(move |outbox| outbox.lane(&asked).cloned().map(|lane| (lane, outbox.next()))).await });
        assert!(look(&mut asking).is_none(), "the committer has not been at work");
        let driver = Driver { term, connection: None, socket: Socket::new(), is_draining: false, work: Work::Asking(asking) };
        self.nodes[at].lanes.insert(lane, driver);
    }

    pub(super) fn lane_ends(&mut self, at: usize, lane: u32) {
        if let Some(driver) = self.nodes[at].lanes.remove(&lane) {
            self.end_driver(at, lane, driver);
        }
    }

    /// A lane's task has ended, and its connection with it. What it has handed in may still be recorded.
    fn end_driver(&mut self, at: usize, lane: u32, driver: Driver) {
        if let Some(connection) = driver.connection {
            self.put(connection, true, Packet::Closed);
        }
        if let Work::At(work) = driver.work {
            let node = &mut self.nodes[at];
            node.orphans.extend(work.appends.into_iter().map(|ticket| (lane, ticket)));
        }
    }

    /// Nothing is recorded for a lane but by its owner.
    fn check_owner(&mut self, at: usize, lane: u32, first: Seq) {
        self.read_on();
        let (owner, me) = (self.owners.get(&first), self.nodes[at].id);
        assert!(owner.is_none_or(|owner| *owner == Some(me)), "an outcome of lane {lane} came from {me}, and {owner:?} owns it");
    }

    pub(super) fn look_after_orphans(&mut self, at: usize) {
        for (lane, mut ticket) in std::mem::take(&mut self.nodes[at].orphans) {
            let mut answer: Waiting<_> = Box::pin(ticket.answer());
            let result = look(&mut answer);
            drop(answer);
            match result.map(|result| result.map(Committed::into_inner)) {
                None => self.nodes[at].orphans.push((lane, ticket)),
                Some(Ok(Appended::New { first, .. })) => self.check_owner(at, lane, first),
                Some(_) => {}
            }
        }
    }

    /// Whatever has come meanwhile, in an order that is chance. Says whether the lane is drained.
    pub(super) fn lane_goes_on(&mut self, at: usize, lane: u32, reads: bool) -> bool {
        let Some(mut driver) = self.nodes[at].lanes.remove(&lane) else { return false };
        if let Work::Asking(asking) = &mut driver.work {
            match look(asking) {
                None => {}
                Some(Ok(snapshot)) => driver.work = Work::At(self.at_work(at, lane, snapshot)),
                Some(Err(error)) => panic!("lane {lane} can't start: {error}"),
            }
            self.nodes[at].lanes.insert(lane, driver);
            return false;
        }
        let answers_first = self.chance.percent(50);
        let goes_on = match answers_first {
            true => self.take_answers(at, lane, &mut driver) && self.take_packets(at, lane, &mut driver),
            false => self.take_packets(at, lane, &mut driver) && self.take_answers(at, lane, &mut driver),
        };
        if !goes_on {
            // The lane is another's, or too many append: its task ends, and with it the connection.
            self.end_driver(at, lane, driver);
            return false;
        }
        if reads {
            self.read_ahead(at, lane, &mut driver);
        }
        if driver.is_draining && !std::mem::replace(&mut driver.at().knows_of_drain, true) {
            self.give(at, lane, &mut driver, Input::Drain);
        }
        let now = self.clock(at);
        if driver.at().session.deadline().is_some_and(|deadline| deadline <= now) {
            self.give(at, lane, &mut driver, Input::Tick);
        }
        let is_drained = driver.at().session.is_drained() && driver.at().appends.is_empty();
        self.nodes[at].lanes.insert(lane, driver);
        is_drained
    }

    fn clock(&self, at: usize) -> Millis {
        Millis(self.now + self.nodes[at].ahead)
    }

    fn at_work(&mut self, at: usize, lane: u32, snapshot: Committed<Option<(Lane, Seq)>>) -> Box<AtWork> {
        let (state, next) = snapshot.into_inner().expect("the lane is in the log");
        let mut feed = Feed::new(self.nodes[at].log.clone(), key(lane), state, Seq(next.0 - 1), false);
        let (mut start, payloads) = feed.start().expect("nothing is carried here");
        start.at = self.clock(at);
        let latest = start.at.plus(400);
        start.waiting.iter_mut().for_each(|(_, retry_at, _)| *retry_at = latest.min(*retry_at));
        let session = Session::new(self.settings(lane), start);
        Box::new(AtWork { session, feed, payloads: payloads.into_iter().collect(), appends: VecDeque::new(), knows_of_drain: false })
    }

    /// False if the lane's task ends.
    fn take_answers(&mut self, at: usize, lane: u32, driver: &mut Driver) -> bool {
        while let Some(ticket) = driver.at().appends.front_mut() {
            let mut answer: Waiting<_> = Box::pin(ticket.answer());
            let Some(result) = look(&mut answer) else { break };
            drop(answer);
            driver.at().appends.pop_front();
            match result.map(Committed::into_inner) {
                Ok(Appended::New { first, resent, .. }) => {
                    self.check_owner(at, lane, first);
                    self.give(at, lane, driver, Input::Committed { resent });
                }
                Ok(Appended::Known(_)) => self.give(at, lane, driver, Input::Committed { resent: Vec::new() }),
                Err(CommitError::NotOwner(_) | CommitError::Overloaded) => return false,
                Err(error) => panic!("lane {lane}: {error}"),
            }
        }
        true
    }

    fn take_packets(&mut self, at: usize, lane: u32, driver: &mut Driver) -> bool {
        let connection = driver.connection;
        // What it opens meanwhile is another connection, with a socket of its own.
        while let Some(packet) = driver.socket.pop_front().filter(|_| driver.connection == connection) {
            let input = match packet {
                Packet::Opened => Input::Opened,
                Packet::Closed => {
                    driver.connection = None;
                    driver.socket.clear();
                    Input::Closed { reason: "the connection has ended".into() }
                }
                Packet::ToLane(incoming) => Input::Received(vec![incoming]),
                Packet::ToBroker(..) => unreachable!("it goes the other way"),
            };
            self.give(at, lane, driver, input);
        }
        true
    }

    fn read_ahead(&mut self, at: usize, lane: u32, driver: &mut Driver) {
        let wanted = driver.at().session.wants();
        if wanted == 0 {
            return;
        }
        let piece = driver.at().feed.read(wanted).expect("nothing is carried here");
        if piece.fresh.is_empty() {
            return;
        }
        let mut fresh = Vec::new();
        for (delivery, payload) in piece.fresh {
            driver.at().payloads.insert(delivery.send, payload);
            fresh.push(delivery);
        }
        self.give(at, lane, driver, Input::Offer(fresh));
    }

    fn give(&mut self, at: usize, lane: u32, driver: &mut Driver, input: Input) {
        let (jitter, now) = (self.chance.next() as u32, self.clock(at));
        driver.at().session.handle(now, jitter, input);
        while let Some(output) = driver.at().session.next_output() {
            self.act(at, lane, driver, output);
        }
    }

    fn act(&mut self, at: usize, lane: u32, driver: &mut Driver, output: Output) {
        match output {
            Output::Open { .. } => {
                let (node, is_dark) = (self.nodes[at].id, self.nodes[at].dark_until > self.now);
                driver.socket.clear();
                driver.connection = Some(self.open(node, lane, is_dark));
            }
            Output::Close => {
                if let Some(connection) = driver.connection.take() {
                    self.put(connection, true, Packet::Closed);
                    driver.socket.clear();
                }
            }
            Output::Append(events) => driver.at().appends.push_back(submit(&self.nodes[at].log, events)),
            Output::Send(packet) => {
                let report = match &packet {
                    Outgoing::Publish { send, .. } | Outgoing::PubRel { send, .. } => Some(self.sends[&lane][send.0 as usize]),
                    _ => None,
                };
                let connection = driver.connection.expect("nothing is written without a connection");
                self.put(connection, true, Packet::ToBroker(packet, report));
            }
            Output::Note(Note::Settled { sends }) => sends.iter().for_each(|send| _ = driver.at().payloads.remove(send)),
            Output::Note(_) | Output::Look { .. } => {}
        }
    }

    pub(super) fn lane_left(lane: u32, instance: InstanceId, term: u64, at: Millis) -> Event {
        Event::LaneLeft { lane: key(lane), instance, term, at }
    }
}

impl Driver {
    fn at(&mut self) -> &mut AtWork {
        match &mut self.work {
            Work::At(at) => at,
            Work::Asking(_) => unreachable!("it is asked for only when it has started"),
        }
    }
}
