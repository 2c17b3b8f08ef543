//! The session against a model broker, a model disk and a network that breaks: one seed, one story.
//!
//! Appends become durable one by one, and what is not durable is lost at a crash. The broker keeps its sessions unless a run says
//! otherwise, and delivers QoS 2 at PUBLISH or at PUBREL (MQTT 5.0 §4.3.3 allows both).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::*;
use crate::core::content::Content;
use crate::core::event::{Accepted, Event, LanePurpose};
use crate::core::outbox::Outbox;
use crate::core::retry::code;
use crate::core::types::{ConnectionName, LaneKey, Protocol, Seq};

mod broker;
mod owners;
mod promises;
mod story;

pub(super) use story::{Random, Story, settings, story};

pub(super) const TOPICS: u64 = 4;

#[derive(Debug, Default)]
pub(super) struct BrokerSession {
    /// Packet ids received and not released, with what they carry.
    pub(super) received: BTreeMap<u16, Seq>,
}

pub(super) struct World {
    pub(super) story: Story,
    pub(super) random: Random,
    pub(super) now: Millis,
    // the disk
    pub(super) log: Vec<Event>,
    pub(super) outbox: Outbox,
    pub(super) appending: VecDeque<Vec<Event>>,
    /// Who has the lane by the log; and who this is.
    pub(super) owner: u64,
    pub(super) me: u64,
    /// Those that had it before, and do not know.
    pub(super) others: Vec<owners::Driver>,
    /// An append was refused, because the lane is another's.
    pub(super) is_over: bool,
    // the process
    pub(super) session: Session,
    pub(super) fed: usize,
    /// It reads the log up to here.
    pub(super) reads_to: usize,
    pub(super) known: HashMap<SendNo, Seq>,
    // the network
    pub(super) open: bool,
    /// The broker has closed it, which is not heard of before what has come is read.
    pub(super) is_ended: bool,
    pub(super) to_broker: VecDeque<(Outgoing, Option<Seq>)>,
    pub(super) to_client: VecDeque<Incoming>,
    /// Sends of QoS 0 that have left.
    pub(super) left: Vec<SendNo>,
    // the broker
    /// One after the other, by client id.
    pub(super) brokers: Vec<BTreeMap<String, BrokerSession>>,
    pub(super) is_away: Vec<bool>,
    /// The server that is connected to.
    pub(super) at: usize,
    /// A preferred server is looked for.
    pub(super) looking: Option<usize>,
    pub(super) poisoned: BTreeSet<Seq>,
    pub(super) suspended: u64,
    /// So many sends were lost with their connections.
    pub(super) lost: u64,
    /// What the brokers took at most before everything was mended.
    pub(super) maximum_qos: Qos,
    pub(super) client: Option<(String, bool)>,
    pub(super) in_window: BTreeSet<u16>,
    pub(super) arrived: Vec<Seq>,
    /// Every PUBLISH that was written: packet id and DUP.
    pub(super) published: Vec<(Option<u16>, bool)>,
    /// Those of QoS 0 that came from who has lost the lane and may be at another server: nobody can end that connection, so they may come late.
    pub(super) strays: BTreeSet<Seq>,
    pub(super) refused: BTreeSet<Seq>,
    pub(super) expired: BTreeSet<Seq>,
    /// Reports that may arrive twice, because Tidings has said so in the log: it gave up their session, or charged them.
    pub(super) repeated: BTreeSet<Seq>,
    /// The broker lost a session with something in it.
    pub(super) has_broker_forgotten: bool,
    /// The CONNACK that tells of a lost session is on its way. That it is lost, too, is what can't be known: see the session's docs.
    pub(super) must_hear: bool,
    /// The connection is about to break.
    pub(super) is_breaking: bool,
    /// The broker has read poison, and hangs up.
    pub(super) is_dying: bool,
    pub(super) calm: bool,
    /// The broker hangs up at connections on which nothing but a PINGREQ comes.
    pub(super) hangs_up_at_idle: bool,
    /// The broker takes this one, and does not answer.
    pub(super) unanswered: Option<Seq>,
    /// The broker has no QoS 2, and does not say so.
    pub(super) takes_qos_2_for_1: bool,
    /// A session that is to end goes so many milliseconds later; and those that are about to.
    pub(super) forgets_after_ms: u64,
    pub(super) ending: Vec<(String, Millis)>,
}

pub(super) fn lane_key() -> LaneKey {
    LaneKey { connection: ConnectionName::from("mqtt"), lane: 0 }
}

pub(super) fn accepted(number: u64, random: &mut Random) -> Event {
    let topic = random.below(TOPICS);
    // Mostly one QoS a topic, as in life; sometimes it changes.
    let level = if random.chance(10) { random.below(3) } else { (topic + 1) % 3 };
    let qos = Qos::try_from(level).unwrap();
    Event::Accepted(Arc::new(Accepted::plain(lane_key(), format!("topic/{topic}"), qos, Millis(number))))
}

/// The lane's part of a log: what a start reads, done the plain way.
pub(super) fn start_of(log: &[Event], outbox: &Outbox) -> (Start, usize, HashMap<SendNo, Seq>) {
    let lane = outbox.lane(&lane_key()).unwrap();
    let at = |located: Seq| match &log[located.0 as usize - 1] {
        Event::Accepted(accepted) => accepted.as_ref().clone(),
        other => panic!("{other:?} is no delivery"),
    };
    let delivery = |send, id, attempts, is_resent| {
        let accepted = at(id);
        let topic = Arc::from(accepted.topic.as_str());
        Delivery {
            send,
            id,
            located: id,
            topic,
            qos: accepted.qos,
            retain: false,
            accepted_at: accepted.at,
            expires_at: Content::from(&accepted).expires_at(),
            attempts,
            size: 10,
            is_resent,
        }
    };
    let mut start = Start {
        epoch: lane.epoch,
        endpoint: lane.endpoint.clone(),
        protocol: lane.protocol,
        doubt: lane.doubt,
        released: lane.released().to_vec(),
        ..Start::default()
    };
    let mut known = HashMap::new();
    for (send, waiting) in lane.waiting() {
        start.waiting.push((delivery(*send, waiting.id, waiting.attempts, false), waiting.retry_at, waiting.sent_through));
        known.insert(*send, waiting.id);
    }
    for (send, moved) in lane.moved() {
        start.resent.push((delivery(*send, moved.id, moved.attempts, true), moved.sent_through));
        known.insert(*send, moved.id);
    }
    let mut next = 0;
    let mut read = 0;
    for (index, event) in log.iter().enumerate() {
        match event {
            Event::Accepted(_) => {
                let send = SendNo(next);
                next += 1;
                if lane.is_pending(send) {
                    start.fresh.push(delivery(send, Seq(index as u64 + 1), 0, false));
                    known.insert(send, Seq(index as u64 + 1));
                }
            }
            Event::Resent { .. } => next += 1,
            _ => {}
        }
        read = index + 1;
        if start.is_complete() {
            break;
        }
    }
    (start, read, known)
}

impl World {
    pub(super) fn new(story: Story) -> Self {
        let mut outbox = Outbox::new();
        let lanes =
            Event::LanesChanged { connection: lane_key().connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) };
        outbox.apply(&lanes).unwrap();
        let log = vec![lanes];
        let (start, fed, known) = start_of(&log, &outbox);
        World {
            random: Random::of(story.seed),
            session: Session::new(settings(&story), start),
            brokers: (0..story.servers).map(|_| BTreeMap::new()).collect(),
            is_away: vec![false; story.servers],
            at: 0,
            looking: None,
            poisoned: BTreeSet::new(),
            suspended: 0,
            lost: 0,
            maximum_qos: story.maximum_qos,
            story,
            now: Millis(1),
            log,
            outbox,
            appending: VecDeque::new(),
            owner: 0,
            me: 0,
            others: Vec::new(),
            is_over: false,
            fed,
            reads_to: usize::MAX,
            known,
            open: false,
            is_ended: false,
            to_broker: VecDeque::new(),
            to_client: VecDeque::new(),
            left: Vec::new(),
            client: None,
            in_window: BTreeSet::new(),
            arrived: Vec::new(),
            published: Vec::new(),
            strays: BTreeSet::new(),
            refused: BTreeSet::new(),
            expired: BTreeSet::new(),
            repeated: BTreeSet::new(),
            has_broker_forgotten: false,
            must_hear: false,
            is_breaking: false,
            is_dying: false,
            calm: false,
            hangs_up_at_idle: false,
            unanswered: None,
            takes_qos_2_for_1: false,
            forgets_after_ms: 0,
            ending: Vec::new(),
        }
    }

    pub(super) fn give(&mut self, input: Input) {
        let jitter = self.random.next() as u32;
        self.session.handle(self.now, jitter, input);
        while let Some(output) = self.session.next_output() {
            self.act(output);
        }
    }

    pub(super) fn act(&mut self, output: Output) {
        match output {
            Output::Open { server } => {
                self.to_broker.clear();
                self.to_client.clear();
                if self.is_away[server] {
                    return self.give(Input::Closed { reason: "away".into() });
                }
                (self.open, self.is_ended, self.at) = (true, false, server);
                self.give(Input::Opened);
            }
            Output::Look { before } => self.looking = Some(before),
            Output::Close => self.hang_up(),
            Output::Append(events) => self.appending.push_back(events),
            Output::Send(packet) => {
                assert!(self.open, "nothing is written to a closed connection: {packet:?}");
                let id = match &packet {
                    Outgoing::Publish { send, packet_id, dup, .. } => {
                        self.published.push((*packet_id, *dup));
                        let opened = self.log.iter().any(|event| matches!(event, Event::SessionOpened { .. }));
                        assert!(opened, "SessionOpened is durable before the first PUBLISH");
                        Some(self.known[send])
                    }
                    Outgoing::PubRel { send, .. } => {
                        let released = self.outbox.lane(&lane_key()).unwrap().released().contains(send);
                        assert!(released, "PUBREL of send {send} leaves only after its release is durable");
                        Some(self.known[send])
                    }
                    _ => None,
                };
                self.to_broker.push_back((packet, id));
            }
            Output::Note(Note::Renumbered { from, to }) => {
                let id = self.known[&from];
                self.known.insert(to, id);
            }
            Output::Note(Note::Suspended { .. }) => self.suspended += 1,
            Output::Note(Note::Disconnected { lost, .. }) => self.lost += lost,
            Output::Note(_) => {}
        }
    }

    pub(super) fn cut(&mut self) {
        if !self.open || self.must_hear {
            return;
        }
        // Some of what was under way still arrives.
        self.is_breaking = true;
        let still_read = self.random.below(self.to_broker.len() as u64 + 1);
        self.broker_reads_some(still_read as usize);
        self.is_breaking = false;
        self.lose_connection("cut");
    }

    pub(super) fn lose_connection(&mut self, reason: &str) {
        self.open = false;
        self.is_dying = false;
        self.to_broker.clear();
        self.to_client.clear();
        self.broker_sees_close();
        self.give(Input::Closed { reason: reason.into() });
    }

    pub(super) fn crash(&mut self) {
        let still_read = self.random.below(self.to_broker.len() as u64 + 1);
        self.broker_reads_some(still_read as usize);
        self.open = false;
        self.to_broker.clear();
        self.to_client.clear();
        self.broker_sees_close();
        self.appending.clear();
        let mut refolded = Outbox::new();
        for event in &self.log {
            refolded.apply(event).unwrap();
        }
        assert_eq!(refolded, self.outbox, "the live outbox is the fold of the log");
        let (start, fed, known) = start_of(&self.log, &refolded);
        self.session = Session::new(settings(&self.story), start);
        self.fed = fed;
        self.known = known;
    }

    pub(super) fn commit(&mut self) {
        let Some(events) = self.appending.pop_front() else { return };
        if !self.is_owner() {
            self.is_over = true;
            return;
        }
        let mut resent = Vec::new();
        for event in events {
            if let Event::Resent { .. } = event {
                resent.push(self.outbox.next_send(&lane_key()));
            }
            if let Event::DeadLettered { delivery, .. } = &event {
                // Where connections are cut as well, an innocent one can be alone on three that were.
                let is_guilty = self.refused.contains(&delivery.id) || self.poisoned.contains(&delivery.id);
                let is_cut = self.story.cuts + self.story.absences + self.story.takeovers > 0;
                assert!(is_guilty || is_cut, "only what was refused or is poison dies");
            }
            if let Event::Expired { sends, .. } = &event {
                self.expired.extend(sends.iter().map(|send| self.known[&SendNo(send)]));
            }
            self.outbox.apply(&event).unwrap_or_else(|error| panic!("{error}: {event:?}"));
            let repeated = self.repeated_by(&event);
            self.repeated.extend(repeated);
            self.log.push(event);
        }
        self.check_books();
        self.give(Input::Committed { resent });
    }

    pub(super) fn accept(&mut self) {
        let number = self.log.len() as u64;
        let mut event = accepted(number, &mut self.random);
        if let Event::Accepted(accepted) = &mut event
            && number * 37 % 100 < self.story.expiring
        {
            let accepted = Arc::make_mut(accepted);
            (accepted.at, accepted.expiry_s) = (self.now, Some(u32::try_from(number % 5).unwrap()));
        }
        if self.random.chance(self.story.poison) {
            self.poisoned.insert(self.outbox.next());
        }
        self.outbox.apply(&event).unwrap();
        self.log.push(event);
    }

    pub(super) fn feed(&mut self) {
        let mut wanted = self.session.wants();
        let mut next =
            self.log[..self.fed].iter().filter(|event| matches!(event, Event::Accepted(_) | Event::Resent { .. })).count() as u64;
        let mut offered = Vec::new();
        while wanted > 0 && self.fed < self.log.len().min(self.reads_to) {
            match &self.log[self.fed] {
                Event::Accepted(accepted) => {
                    let (send, id) = (SendNo(next), Seq(self.fed as u64 + 1));
                    next += 1;
                    // Who is not the owner any more has not read what became of it.
                    let is_pending = !self.is_owner() || self.outbox.lane(&lane_key()).unwrap().is_pending(send);
                    if is_pending && !self.known.contains_key(&send) {
                        let topic = Arc::from(accepted.topic.as_str());
                        let (qos, accepted_at) = (accepted.qos, accepted.at);
                        self.known.insert(send, id);
                        offered.push(Delivery {
                            send,
                            id,
                            located: id,
                            topic,
                            qos,
                            retain: false,
                            accepted_at,
                            expires_at: Content::from(&**accepted).expires_at(),
                            attempts: 0,
                            size: 10,
                            is_resent: false,
                        });
                        wanted -= 1;
                    }
                }
                Event::Resent { .. } => next += 1,
                _ => {}
            }
            self.fed += 1;
        }
        self.give(Input::Offer(offered));
    }

    pub(super) fn repeated_by(&self, event: &Event) -> Vec<Seq> {
        match event {
            Event::SessionOpened { repeated, .. } => repeated.iter().map(|send| self.known[&SendNo(send)]).collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn step(&mut self) {
        match self.random.below(12) {
            // Nobody reads it.
            0..=3 if self.is_ended => self.to_broker.clear(),
            4..=6 if self.is_ended && self.to_client.is_empty() => {
                self.is_ended = false;
                self.lose_connection("the session was taken over");
            }
            0..=3 if self.open && !self.to_broker.is_empty() => {
                let (packet, id) = self.to_broker.pop_front().unwrap();
                self.broker_reads(packet, id);
                if std::mem::take(&mut self.is_dying) {
                    self.lose_connection("the broker closed the connection");
                }
            }
            4..=6 if self.open && !self.to_client.is_empty() && self.session.hears() => {
                // One, or as many as the network has brought since the last look.
                let count = if self.story.together { 1 + self.random.below(self.to_client.len() as u64) as usize } else { 1 };
                let packets = self.to_client.drain(..count).collect();
                self.must_hear = false;
                self.give(Input::Received(packets));
            }
            7 | 8 => self.commit(),
            9 => self.feed(),
            10 if self.open => {
                let sends = std::mem::take(&mut self.left);
                self.give(Input::Flushed(sends));
            }
            11 if self.looking.is_some() => {
                let before = self.looking.take().unwrap();
                let found = (0..before).find(|server| !self.is_away[*server]);
                self.give(Input::Looked { found });
            }
            // Nor does a timer end the connection before that answer is there.
            _ if self.must_hear => {}
            _ => {
                self.now = self.now.plus(1 + self.random.below(20));
                self.give(Input::Tick);
            }
        }
    }

    pub(super) fn play(mut self) -> World {
        while self.log.iter().filter(|event| matches!(event, Event::Accepted(_))).count() < self.story.reports as usize {
            if self.random.chance(20) {
                self.accept();
            }
            if self.random.below(1_000) < self.story.cuts {
                self.cut();
            }
            if self.random.below(1_000) < self.story.crashes {
                self.crash();
            }
            if self.random.below(1_000) < self.story.absences {
                self.come_and_go();
            }
            self.own_and_disown();
            self.step();
        }
        for _ in 0..200_000 {
            if self.is_at_rest() {
                break;
            }
            if !self.calm && !self.must_hear && self.random.chance(1) {
                self.calm = self.random.chance(3);
                if self.calm {
                    // Whatever was wrong with the brokers is mended, but for what is wrong with reports.
                    self.is_away.fill(false);
                    self.story.maximum_qos = Qos::ExactlyOnce;
                    self.cut();
                }
            }
            if !self.calm && self.random.below(1_000) < self.story.absences {
                self.come_and_go();
            }
            if !self.calm && self.random.below(1_000) < self.story.cuts {
                self.cut();
            }
            if !self.calm && self.random.below(1_000) < self.story.crashes {
                self.crash();
            }
            self.own_and_disown();
            self.step();
        }
        self
    }
}

impl World {
    /// Accepts a report of QoS 2 for a topic.
    pub(super) fn accept_for(&mut self, topic: &str) -> Seq {
        let event = Event::Accepted(Arc::new(Accepted::plain(lane_key(), topic, Qos::ExactlyOnce, self.now)));
        let id = self.outbox.apply(&event).unwrap();
        self.log.push(event);
        id
    }
}
