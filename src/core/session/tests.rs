//! The session against a model broker, a model disk and a network that breaks: one seed, one story.
//!
//! Appends become durable one by one, and what is not durable is lost at a crash. The broker keeps its sessions unless a run says
//! otherwise, and delivers QoS 2 at PUBLISH or at PUBREL (MQTT 5.0 §4.3.3 allows both).

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::core::event::{Accepted, Event, LanePurpose};
use crate::core::outbox::Outbox;
use crate::core::retry::{RetryPolicy, code};
use crate::core::types::{ConnectionName, LaneKey, Protocol, Seq};

const TOPICS: u64 = 4;

/// A small generator of random numbers: one seed tells the whole story.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Clone)]
struct Story {
    seed: u64,
    reports: u64,
    protocol: Protocol,
    /// QoS 2 is passed on at PUBLISH rather than at PUBREL.
    delivers_at_publish: bool,
    cuts: u64,
    crashes: u64,
    refusals: u64,
    session_losses: u64,
    window: u16,
    /// So many of a hundred reports make the broker hang up.
    poison: u64,
    /// So many of a thousand steps take a server away, or bring it back.
    absences: u64,
    servers: usize,
    /// What the brokers take at most.
    maximum_qos: Qos,
    downgrade: bool,
    /// So many reports in a hundred have a time limit of a few seconds.
    expiring: u64,
}

#[derive(Debug, Default)]
struct BrokerSession {
    /// Packet ids received and not released, with what they carry.
    received: BTreeMap<u16, Seq>,
}

struct World {
    story: Story,
    random: Random,
    now: Millis,
    // the disk
    log: Vec<Event>,
    outbox: Outbox,
    appending: VecDeque<Vec<Event>>,
    // the process
    session: Session,
    fed: usize,
    known: HashMap<SendNo, Seq>,
    // the network
    open: bool,
    to_broker: VecDeque<(Outgoing, Option<Seq>)>,
    to_client: VecDeque<Incoming>,
    /// Sends of QoS 0 that have left.
    left: Vec<SendNo>,
    // the broker
    /// One after the other, by client id.
    brokers: Vec<BTreeMap<String, BrokerSession>>,
    is_away: Vec<bool>,
    /// The server that is connected to.
    at: usize,
    /// A preferred server is looked for.
    looking: Option<usize>,
    poisoned: BTreeSet<Seq>,
    suspended: u64,
    /// What the brokers took at most before everything was mended.
    maximum_qos: Qos,
    client: Option<(String, bool)>,
    in_window: BTreeSet<u16>,
    arrived: Vec<Seq>,
    /// Every PUBLISH that was written: packet id and DUP.
    published: Vec<(Option<u16>, bool)>,
    refused: BTreeSet<Seq>,
    expired: BTreeSet<Seq>,
    /// Reports that may arrive twice, because Tidings has said so in the log: it gave up their session, or charged them.
    repeated: BTreeSet<Seq>,
    /// The broker lost a session with something in it.
    has_broker_forgotten: bool,
    /// The CONNACK that tells of a lost session is on its way. That it is lost, too, is what can't be known: see the session's docs.
    must_hear: bool,
    /// The connection is about to break.
    is_breaking: bool,
    /// The broker has read poison, and hangs up.
    is_dying: bool,
    calm: bool,
    /// The broker hangs up at connections on which nothing but a PINGREQ comes.
    hangs_up_at_idle: bool,
    /// The broker takes this one, and does not answer.
    unanswered: Option<Seq>,
    /// The broker has no QoS 2, and does not say so.
    takes_qos_2_for_1: bool,
    /// A session that is to end goes so many milliseconds later; and those that are about to.
    forgets_after_ms: u64,
    ending: Vec<(String, Millis)>,
}

fn lane_key() -> LaneKey {
    LaneKey { connection: ConnectionName::from("mqtt"), lane: 0 }
}

fn settings(story: &Story) -> Settings {
    Settings {
        lane: lane_key(),
        client_id: "tidings-0".into(),
        endpoints: (0..story.servers).map(|server| format!("server-{server}:1883")).collect(),
        failback_ms: 300,
        protocol: Some(story.protocol),
        keepalive_s: 60,
        window_5: story.window,
        window_3_1_1: story.window,
        session_expiry_s: 1_000,
        connect_timeout_ms: 1_000,
        ack_timeout_ms: 5_000,
        retry: RetryPolicy { initial_ms: 50, max_ms: 400, attempts: 3 },
        downgrade: story.downgrade,
        // Few enough that they come round in a story.
        packet_ids: 31,
    }
}

fn accepted(number: u64, random: &mut Random) -> Event {
    let topic = random.below(TOPICS);
    // Mostly one QoS a topic, as in life; sometimes it changes.
    let level = if random.chance(10) { random.below(3) } else { (topic + 1) % 3 };
    let qos = Qos::try_from(level).unwrap();
    Event::Accepted(Arc::new(Accepted::plain(lane_key(), format!("topic/{topic}"), qos, Millis(number))))
}

/// The lane's part of a log: what a start reads, done the plain way.
fn start_of(log: &[Event], outbox: &Outbox) -> (Start, usize, HashMap<SendNo, Seq>) {
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
            expires_at: accepted.expires_at(),
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
    fn new(story: Story) -> Self {
        let mut outbox = Outbox::new();
        let lanes =
            Event::LanesChanged { connection: lane_key().connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) };
        outbox.apply(&lanes).unwrap();
        let log = vec![lanes];
        let (start, fed, known) = start_of(&log, &outbox);
        World {
            random: Random(story.seed),
            session: Session::new(settings(&story), start),
            brokers: (0..story.servers).map(|_| BTreeMap::new()).collect(),
            is_away: vec![false; story.servers],
            at: 0,
            looking: None,
            poisoned: BTreeSet::new(),
            suspended: 0,
            maximum_qos: story.maximum_qos,
            story,
            now: Millis(1),
            log,
            outbox,
            appending: VecDeque::new(),
            fed,
            known,
            open: false,
            to_broker: VecDeque::new(),
            to_client: VecDeque::new(),
            left: Vec::new(),
            client: None,
            in_window: BTreeSet::new(),
            arrived: Vec::new(),
            published: Vec::new(),
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

    fn give(&mut self, input: Input) {
        let jitter = self.random.next() as u32;
        self.session.handle(self.now, jitter, input);
        while let Some(output) = self.session.next_output() {
            self.act(output);
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Open { server } => {
                self.to_broker.clear();
                self.to_client.clear();
                if self.is_away[server] {
                    return self.give(Input::Closed { reason: "away".into() });
                }
                (self.open, self.at) = (true, server);
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
            Output::Note(_) => {}
        }
    }

    fn broker(&mut self) -> &mut BTreeMap<String, BrokerSession> {
        &mut self.brokers[self.at]
    }

    fn hang_up(&mut self) {
        // What was written before a close is flushed; the broker reads it.
        self.is_breaking = true;
        self.broker_reads_some(self.to_broker.len());
        self.is_breaking = false;
        self.open = false;
        self.to_client.clear();
        self.broker_sees_close();
    }

    fn broker_sees_close(&mut self) {
        if let Some((client, true)) = self.client.take() {
            self.broker().remove(&client);
        }
        self.in_window.clear();
    }

    fn cut(&mut self) {
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

    fn lose_connection(&mut self, reason: &str) {
        self.open = false;
        self.is_dying = false;
        self.to_broker.clear();
        self.to_client.clear();
        self.broker_sees_close();
        self.give(Input::Closed { reason: reason.into() });
    }

    /// A server goes away, or comes back. In the end the last one is there.
    fn come_and_go(&mut self) {
        let server = self.random.below(self.story.servers as u64) as usize;
        self.is_away[server] = !self.is_away[server];
        if self.is_away[server] && self.at == server && self.open && !self.must_hear {
            self.cut();
        }
    }

    fn broker_reads_some(&mut self, packets: usize) {
        for _ in 0..packets {
            let (packet, id) = self.to_broker.pop_front().unwrap();
            self.broker_reads(packet, id);
            if std::mem::take(&mut self.is_dying) {
                return self.to_broker.clear();
            }
        }
    }

    fn crash(&mut self) {
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

    fn commit(&mut self) {
        let Some(events) = self.appending.pop_front() else { return };
        let mut resent = Vec::new();
        for event in events {
            if let Event::Resent { .. } = event {
                resent.push(self.outbox.next_send(&lane_key()));
            }
            if let Event::DeadLettered { delivery, .. } = &event {
                // Where connections are cut as well, an innocent one can be alone on three that were.
                let is_guilty = self.refused.contains(&delivery.id) || self.poisoned.contains(&delivery.id);
                let is_cut = self.story.cuts + self.story.absences > 0;
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

    fn check_books(&self) {
        let totals = &self.outbox.connections()[&lane_key().connection].totals;
        assert!(totals.balance(), "{totals:?}");
        let lane = self.outbox.lane(&lane_key()).unwrap();
        assert_eq!(lane.pending(), totals.pending);
    }

    fn accept(&mut self) {
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

    fn feed(&mut self) {
        let mut wanted = self.session.wants();
        let mut next =
            self.log[..self.fed].iter().filter(|event| matches!(event, Event::Accepted(_) | Event::Resent { .. })).count() as u64;
        let mut offered = Vec::new();
        while wanted > 0 && self.fed < self.log.len() {
            match &self.log[self.fed] {
                Event::Accepted(accepted) => {
                    let (send, id) = (SendNo(next), Seq(self.fed as u64 + 1));
                    next += 1;
                    if self.outbox.lane(&lane_key()).unwrap().is_pending(send) && !self.known.contains_key(&send) {
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
                            expires_at: accepted.expires_at(),
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

    fn arrive(&mut self, id: Seq) {
        self.arrived.push(id);
    }

    fn repeated_by(&self, event: &Event) -> Vec<Seq> {
        match event {
            Event::SessionOpened { repeated, .. } => repeated.iter().map(|send| self.known[&SendNo(send)]).collect(),
            _ => Vec::new(),
        }
    }

    /// Tidings ends a session. It must know what became of everything in it, or have said that it does not.
    fn end_session(&mut self, client: &str) {
        let Some(session) = self.broker().remove(client) else { return };
        // Should what is on its way to the disk be lost, the next start finds no session, and says so then.
        let under_way: BTreeSet<Seq> = self.appending.iter().flatten().flat_map(|event| self.repeated_by(event)).collect();
        let dead = self.dead();
        let excused = |id: &Seq| self.repeated.contains(id) || under_way.contains(id) || dead.contains(id);
        assert!(self.has_broker_forgotten || session.received.values().all(excused), "{client} was ended with {session:?} in it");
    }

    fn broker_reads(&mut self, packet: Outgoing, id: Option<Seq>) {
        match packet {
            Outgoing::Connect { protocol, client_id, clean, session_expiry_s, .. } => {
                let (due, later) = std::mem::take(&mut self.ending).into_iter().partition(|(_, at)| *at <= self.now);
                self.ending = later;
                let due: Vec<(String, Millis)> = due;
                for (ended, _) in due {
                    self.end_session(&ended);
                }
                if clean {
                    self.ending.retain(|(ending, _)| *ending != client_id);
                    self.end_session(&client_id);
                }
                if !self.calm && !self.is_breaking && self.random.chance(self.story.session_losses) {
                    self.must_hear = true;
                    self.has_broker_forgotten |= self.broker().values().any(|session| !session.received.is_empty());
                    self.broker().clear();
                }
                let session_present = self.broker().contains_key(&client_id);
                self.broker().entry(client_id.clone()).or_default();
                let maximum_qos = Some(self.story.maximum_qos);
                let limits = BrokerLimits { receive_maximum: Some(8), maximum_qos, ..BrokerLimits::default() };
                self.client = Some((client_id, clean && (protocol == Protocol::V311 || session_expiry_s == 0)));
                self.to_client.push_back(Incoming::ConnAck { session_present, code: 0, limits, reason: None, assigned_client_id: None });
            }
            Outgoing::Publish { send, packet_id, qos, .. } => {
                let id = id.unwrap();
                assert!(qos <= self.story.maximum_qos, "the broker's Maximum QoS is obeyed");
                let qos = if self.takes_qos_2_for_1 { qos.min(Qos::AtLeastOnce) } else { qos };
                if packet_id.is_some() && self.poisoned.contains(&id) {
                    self.is_dying = true;
                    return;
                }
                let Some(packet_id) = packet_id else {
                    self.left.push(send);
                    return self.arrive(id);
                };
                let (client, _) = self.client.clone().expect("CONNECT comes first");
                self.in_window.insert(packet_id);
                let limit = if self.story.protocol == Protocol::V5 { self.story.window.min(8) } else { self.story.window };
                assert!(self.in_window.len() <= usize::from(limit), "the window is never exceeded");
                let is_known = self.broker()[&client].received.contains_key(&packet_id);
                let refuses = self.story.protocol == Protocol::V5 && !self.calm && !is_known && self.random.chance(self.story.refusals);
                let mut ack = Ack { packet_id, code: 0, reason: None };
                if refuses {
                    self.refused.insert(id);
                    self.in_window.remove(&packet_id);
                    ack.code = code::NOT_AUTHORIZED;
                } else if qos == Qos::AtLeastOnce || !is_known {
                    if qos == Qos::AtLeastOnce || self.story.delivers_at_publish {
                        self.arrive(id);
                    }
                    if qos == Qos::ExactlyOnce {
                        self.broker().get_mut(&client).unwrap().received.insert(packet_id, id);
                    }
                } else {
                    let held = self.broker()[&client].received[&packet_id];
                    assert_eq!(held, id, "a packet id stands for one report as long as the broker knows it");
                    if self.story.protocol == Protocol::V5 && self.random.chance(50) {
                        ack.code = code::ID_IN_USE;
                    }
                }
                if self.unanswered == Some(id) {
                    return;
                }
                match qos {
                    Qos::AtLeastOnce => {
                        self.in_window.remove(&packet_id);
                        self.to_client.push_back(Incoming::PubAck(ack));
                    }
                    _ => self.to_client.push_back(Incoming::PubRec(ack)),
                }
            }
            Outgoing::PubRel { packet_id, .. } => {
                let (client, _) = self.client.clone().expect("CONNECT comes first");
                let held = self.broker().get_mut(&client).unwrap().received.remove(&packet_id);
                self.in_window.remove(&packet_id);
                let found = match held {
                    Some(held) => {
                        assert_eq!(Some(held), id, "PUBREL releases the report that it is meant for");
                        if !self.story.delivers_at_publish {
                            self.arrive(held);
                        }
                        0
                    }
                    None => code::ID_NOT_FOUND,
                };
                self.to_client.push_back(Incoming::PubComp(Ack { packet_id, code: found, reason: None }));
            }
            Outgoing::PingReq if self.hangs_up_at_idle => self.is_dying = true,
            Outgoing::PingReq => self.to_client.push_back(Incoming::PingResp),
            Outgoing::Disconnect { end_session } => {
                if let Some((client, clean)) = self.client.take()
                    && (clean || end_session && self.story.protocol == Protocol::V5)
                {
                    match self.forgets_after_ms {
                        0 => self.end_session(&client),
                        later => self.ending.push((client, self.now.plus(later))),
                    }
                }
            }
        }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..=3 if self.open && !self.to_broker.is_empty() => {
                let (packet, id) = self.to_broker.pop_front().unwrap();
                self.broker_reads(packet, id);
                if std::mem::take(&mut self.is_dying) {
                    self.lose_connection("the broker closed the connection");
                }
            }
            4..=6 if self.open && !self.to_client.is_empty() => {
                let packet = self.to_client.pop_front().unwrap();
                self.must_hear = false;
                self.give(Input::Received(packet));
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

    fn play(mut self) -> World {
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
            self.step();
        }
        for _ in 0..200_000 {
            if self.is_at_rest() {
                break;
            }
            if !self.calm && self.random.chance(1) {
                self.calm = self.random.chance(3);
                if self.calm {
                    // Whatever was wrong with the brokers is mended, but for what is wrong with reports.
                    self.is_away.fill(false);
                    self.story.maximum_qos = Qos::ExactlyOnce;
                    self.must_hear = false;
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
            self.step();
        }
        self
    }

    /// Nothing is pending. Or nothing gets through any more but what the broker hangs up at, and what waits behind that: then the lane is
    /// suspended.
    fn is_at_rest(&self) -> bool {
        let lane = self.outbox.lane(&lane_key()).unwrap();
        if lane.pending() == 0 {
            return true;
        }
        if self.suspended == 0 || !self.calm {
            return false;
        }
        let topic = |id: &Seq| match &self.log[id.0 as usize - 1] {
            Event::Accepted(accepted) => accepted.topic.clone(),
            other => panic!("{other:?} is no delivery"),
        };
        let ended = self.expired.iter().copied().chain(lane.dead().values().map(|dead| dead.id));
        let done: BTreeSet<Seq> = self.arrived.iter().copied().chain(ended).collect();
        let held_up: BTreeSet<String> = self.poisoned.iter().filter(|id| !done.contains(id)).map(topic).collect();
        let ids = (1..=self.log.len() as u64).map(Seq).filter(|id| matches!(self.log[id.0 as usize - 1], Event::Accepted(_)));
        let others = ids.filter(|id| !done.contains(id) && !held_up.contains(&topic(id)));
        self.appending.is_empty() && others.count() == 0
    }

    fn check_promises(&self) {
        let lane = self.outbox.lane(&lane_key()).unwrap();
        assert!(self.is_at_rest(), "a run that is left in peace ends with an empty backlog: {:?}", self.session);
        if lane.pending() > 0 {
            return;
        }
        let mut counts: BTreeMap<Seq, u32> = BTreeMap::new();
        for id in &self.arrived {
            *counts.entry(*id).or_default() += 1;
        }
        let totals = self.outbox.connections()[&lane_key().connection].totals;
        assert!(totals.balance(), "{totals:?}");
        assert_eq!(totals.expired, self.expired.len() as u64);
        let dead: BTreeSet<Seq> = lane.dead().values().map(|dead| dead.id).collect();
        let mut last: HashMap<&str, Seq> = HashMap::new();
        for (index, event) in self.log.iter().enumerate() {
            let Event::Accepted(accepted) = event else { continue };
            let id = Seq(index as u64 + 1);
            let count = counts.get(&id).copied().unwrap_or(0);
            match accepted.qos {
                Qos::AtMostOnce => {}
                _ if dead.contains(&id) => {}
                _ if self.expired.contains(&id) => assert!(accepted.expiry_s.is_some()),
                asked if asked > self.maximum_qos && self.story.downgrade => {}
                Qos::AtLeastOnce => assert!(count >= 1, "report {id} was lost"),
                Qos::ExactlyOnce if self.has_broker_forgotten || self.repeated.contains(&id) => {
                    assert!(count >= 1, "report {id} was lost");
                }
                Qos::ExactlyOnce => assert_eq!(count, 1, "report {id} arrived {count} times"),
            }
        }
        // In order of first arrival, but for what was refused and what was in flight behind that.
        let is_downgraded = self.story.downgrade && self.maximum_qos < Qos::ExactlyOnce;
        if self.refused.is_empty() && self.poisoned.is_empty() && !is_downgraded && self.repeated.is_empty() && !self.has_broker_forgotten {
            let mut seen = BTreeSet::new();
            for id in self.arrived.iter().filter(|id| seen.insert(**id)) {
                let Event::Accepted(accepted) = &self.log[id.0 as usize - 1] else { continue };
                let before = last.insert(&accepted.topic, *id);
                assert!(before.is_none_or(|before| before < *id), "report {id} of {} arrived after {before:?}", accepted.topic);
            }
        }
    }
}

fn story() -> impl Strategy<Value = Story> {
    let chances = (0u64..30, 0u64..15, prop_oneof![Just(0u64), 0u64..30], prop_oneof![4 => Just(0u64), 1 => 0u64..20]);
    let protocol = prop_oneof![Just(Protocol::V5), Just(Protocol::V311)];
    let troubles = (
        prop_oneof![3 => Just(0u64), 1 => 1u64..10],
        prop_oneof![3 => Just(0u64), 1 => 1u64..20],
        prop_oneof![2 => Just(1usize), 1 => 2usize..4],
        prop_oneof![6 => Just(Qos::ExactlyOnce), 1 => Just(Qos::AtLeastOnce), 1 => Just(Qos::AtMostOnce)],
        any::<bool>(),
        prop_oneof![2 => Just(0u64), 1 => 1u64..100],
    );
    (any::<u64>(), 1u64..80, protocol, any::<bool>(), chances, 1u16..12, troubles).prop_map(
        |(seed, reports, protocol, at_publish, chances, window, troubles)| {
            let (cuts, crashes, refusals, session_losses) = chances;
            // A crash between the loss of a session and its discovery is the other thing that can't be known.
            let crashes = if session_losses > 0 { 0 } else { crashes };
            let (poison, absences, servers, maximum_qos, downgrade, expiring) = troubles;
            // A 3.1.1 broker says nothing about itself.
            let maximum_qos = if protocol == Protocol::V5 { maximum_qos } else { Qos::ExactlyOnce };
            Story {
                seed,
                reports,
                protocol,
                delivers_at_publish: at_publish,
                cuts,
                crashes,
                refusals,
                session_losses,
                window,
                poison,
                absences,
                servers,
                maximum_qos,
                downgrade,
                expiring,
            }
        },
    )
}

/// So many stories a run; `TIDINGS_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("TIDINGS_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_qos_2_arrives_once_through_cuts_crashes_and_refusals(story in story()) {
        World::new(story).play().check_promises();
    }
}

fn calm() -> Story {
    Story {
        seed: 1,
        reports: 60,
        protocol: Protocol::V5,
        delivers_at_publish: true,
        cuts: 0,
        crashes: 0,
        refusals: 0,
        session_losses: 0,
        window: 8,
        poison: 0,
        absences: 0,
        servers: 1,
        maximum_qos: Qos::ExactlyOnce,
        downgrade: false,
        expiring: 0,
    }
}

#[test]
fn a_quiet_run_repeats_nothing() {
    let world = World::new(calm()).play();
    world.check_promises();
    assert_eq!(world.arrived.len(), 60);
}

/// Plays until the backlog is empty, then ends the session as `input` says; gives back the broker's sessions.
fn ended_by(input: Input, protocol: Protocol) -> (bool, usize) {
    let mut world = World::new(Story { protocol, reports: 5, ..calm() }).play();
    world.give(input);
    for _ in 0..10_000 {
        if world.session.is_drained() {
            break;
        }
        world.step();
    }
    (world.session.is_drained(), world.broker().len())
}

#[test]
fn a_retired_lane_leaves_no_session_at_the_broker() {
    for protocol in [Protocol::V5, Protocol::V311] {
        assert_eq!(ended_by(Input::Retire, protocol), (true, 0), "{protocol:?}");
    }
}

#[test]
fn a_drained_lane_disconnects_and_stops() {
    assert_eq!(ended_by(Input::Drain, Protocol::V5), (true, 0));
    assert!(ended_by(Input::Drain, Protocol::V311).0);
}

/// A report of QoS 2 is with the broker, and the connection breaks before anything has come back.
fn cut_in_flight() -> (World, Seq) {
    let mut world = World::new(calm());
    let id = world.accept_for("topic");
    world.steps_until("it is with the broker", |world| world.arrived_times(id) == 1);
    world.cut();
    (world, id)
}

#[test]
fn what_is_sent_again_in_its_session_has_its_packet_id_and_dup() {
    let (mut world, id) = cut_in_flight();
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    let [(first, false), (second, true)] = world.published[..] else { panic!("{:?}", world.published) };
    assert_eq!((first, world.arrived_times(id)), (second, 1));
}

#[test]
fn an_outage_is_no_attempt() {
    let (mut world, id) = cut_in_flight();
    // Away for much longer than its attempts would take.
    world.is_away[0] = true;
    world.steps_until("it is tried again and again", |world| world.session.failures >= 20);
    world.is_away[0] = false;
    // The broker has lost it meanwhile, and will not have it any more.
    world.brokers[0].values_mut().for_each(|session| session.received.clear());
    world.story.refusals = 100;
    world.steps_until("it is refused", |world| world.refused.contains(&id));
    world.story.refusals = 0;
    world.steps_until("it arrives", |world| world.pending() == 0);
    let charged = world.log.iter().find_map(|event| match event {
        Event::Refused { attempts, .. } => Some(*attempts),
        _ => None,
    });
    assert_eq!((charged, world.dead()), (Some(1), vec![]));
}

#[test]
fn what_is_in_flight_does_not_expire_when_its_session_is_lost() {
    let mut world = World::new(calm());
    let plain = Accepted::plain(lane_key(), "topic", Qos::ExactlyOnce, world.now);
    let event = Event::Accepted(Arc::new(Accepted { expiry_s: Some(1), ..plain }));
    let id = world.outbox.apply(&event).unwrap();
    world.log.push(event);
    world.steps_until("it is with the broker", |world| world.arrived_times(id) == 1);
    world.is_away[0] = true;
    world.cut();
    world.brokers[0].clear();
    world.steps_until("its time is over", |world| world.now > Millis(3_000));
    world.is_away[0] = false;
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    let totals = world.outbox.connections()[&lane_key().connection].totals;
    assert_eq!(
        (totals.acknowledged, totals.expired, totals.possible_duplicates),
        (1, 0, 1),
        "it may have arrived, so it is no expired one"
    );
}

#[test]
fn where_idle_connections_die_as_well_nobody_is_charged() {
    let mut world = World::new(calm());
    let id = world.accept_for("topic");
    world.poisoned.insert(id);
    world.hangs_up_at_idle = true;
    world.steps_until("it is tried again and again", |world| world.session.failures >= 40);
    let charges = world.log.iter().filter(|event| matches!(event, Event::Refused { .. } | Event::DeadLettered { .. })).count();
    assert_eq!(charges, 0, "{:?}", world.session);
    world.poisoned.clear();
    world.hangs_up_at_idle = false;
    world.steps_until("it arrives", |world| world.pending() == 0);
    assert_eq!((world.arrived_times(id), world.dead()), (1, vec![]));
}

#[test]
fn a_packet_id_does_not_come_round_while_the_report_that_has_it_is_in_flight() {
    let mut world = World::new(calm());
    let slow = world.accept_for("slow");
    world.unanswered = Some(slow);
    let others: Vec<Seq> = (0..40).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    // All ids but one have been used; the next one has to wait, and with it the lane, until the connection is given up.
    world.steps_until("the others go on", |world| world.arrived.len() >= 31);
    world.steps_until("it is sent again", |world| world.published.iter().any(|(_, dup)| *dup));
    world.unanswered = None;
    world.steps_until("all arrive", |world| world.pending() == 0);
    assert!(others.into_iter().chain([slow]).all(|id| world.arrived_times(id) == 1));
}

#[test]
fn a_packet_id_does_not_come_round_before_it_is_durable_that_its_report_is_done() {
    for seed in 1..=60 {
        let mut world = World::new(Story { seed, ..calm() });
        let slow = world.accept_for("slow");
        world.steps_until("it is with the broker", |world| world.arrived_times(slow) == 1);
        let answer = world.to_client.pop_back().expect("a PUBREC");
        let others: Vec<Seq> = (0..30).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
        world.steps_until("all others are done", |world| world.pending() == 1);
        world.to_client.push_back(answer);
        // The 32nd, with the identifier of the first.
        let next = world.accept_for("next");
        world.steps_until("it is with the broker", |world| world.arrived_times(next) == 1);
        world.crash();
        world.steps_until("all is done", |world| world.pending() == 0);
        assert!(others.into_iter().chain([slow, next]).all(|id| world.arrived_times(id) == 1), "seed {seed}");
    }
}

#[test]
fn nothing_goes_past_a_refusal_before_that_is_durable() {
    for seed in 1..=60 {
        let mut world = World::new(Story { seed, ..calm() });
        let refused = world.accept_for("topic");
        world.story.refusals = 100;
        world.steps_until("it is refused", |world| world.refused.contains(&refused));
        world.story.refusals = 0;
        // More wait behind it than a restart takes for sent.
        let behind: Vec<Seq> = (0..20).map(|_| world.accept_for("topic")).collect();
        let other = world.accept_for("other");
        world.steps_until("the other topic goes on", |world| world.arrived_times(other) == 1);
        world.crash();
        world.steps_until("all is done", |world| world.pending() == 0);
        assert!(behind.into_iter().chain([refused, other]).all(|id| world.arrived_times(id) == 1), "seed {seed}");
    }
}

#[test]
fn what_was_in_flight_to_another_server_is_sent_under_another_client_id() {
    let (world, _) = cut_in_flight();
    let start = || start_of(&world.log, &world.outbox).0;
    let elsewhere = Settings { endpoints: vec!["elsewhere:1883".into()], ..settings(&calm()) };
    assert_eq!(Session::new(settings(&calm()), start()).client_id(), world.session.client_id());
    assert_ne!(Session::new(elsewhere, start()).client_id(), world.session.client_id());
}

#[test]
fn a_pubcomp_that_was_lost_is_made_good_by_one_that_says_not_found() {
    let mut world = World::new(calm());
    let id = world.accept_for("topic");
    world.steps_until("it is with the broker", |world| world.arrived_times(id) == 1);
    world.steps_until("the broker has read PUBREL", |world| world.brokers[0].values().all(|session| session.received.is_empty()));
    world.cut();
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    let totals = world.outbox.connections()[&lane_key().connection].totals;
    assert_eq!((world.arrived_times(id), totals.possible_duplicates), (1, 0));
}

#[test]
fn a_pubcomp_that_says_not_found_at_once_means_that_the_broker_has_lost_the_report() {
    let mut world = World::new(Story { delivers_at_publish: false, ..calm() });
    let id = world.accept_for("topic");
    let holds = |world: &World| world.brokers[0].values().any(|session| !session.received.is_empty());
    world.steps_until("it is with the broker", holds);
    world.brokers[0].values_mut().for_each(|session| session.received.clear());
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    let totals = world.outbox.connections()[&lane_key().connection].totals;
    assert_eq!((world.arrived_times(id), totals.possible_duplicates), (1, 1));
}

#[test]
fn a_stop_finishes_what_is_in_flight() {
    let mut world = World::new(calm());
    let id = world.accept_for("topic");
    world.steps_until("it is with the broker", |world| world.arrived_times(id) == 1);
    world.give(Input::Drain);
    world.steps_until("it has stopped", |world| world.session.is_drained());
    assert_eq!(world.pending(), 0);
}

#[test]
fn two_lanes_and_two_epochs_have_client_ids_of_their_own() {
    let client_id = |lane: u32, epoch: u32| {
        let lane = LaneKey { lane, ..lane_key() };
        Session::new(Settings { lane, ..settings(&calm()) }, Start { epoch, ..Start::default() }).client_id()
    };
    let all: BTreeSet<String> = [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().map(|(lane, epoch)| client_id(lane, epoch)).collect();
    assert_eq!(all.len(), 4, "{all:?}");
}

impl World {
    fn steps_until(&mut self, what: &str, mut is_so: impl FnMut(&World) -> bool) {
        for _ in 0..200_000 {
            if is_so(self) {
                return;
            }
            self.step();
        }
        panic!("{what}: {:?}", self.session);
    }

    fn pending(&self) -> u64 {
        self.outbox.lane(&lane_key()).unwrap().pending()
    }

    fn dead(&self) -> Vec<Seq> {
        self.outbox.lane(&lane_key()).unwrap().dead().values().map(|dead| dead.id).collect()
    }

    /// Accepts a report of QoS 2 for a topic.
    fn accept_for(&mut self, topic: &str) -> Seq {
        let event = Event::Accepted(Arc::new(Accepted::plain(lane_key(), topic, Qos::ExactlyOnce, self.now)));
        let id = self.outbox.apply(&event).unwrap();
        self.log.push(event);
        id
    }

    fn arrived_times(&self, id: Seq) -> usize {
        self.arrived.iter().filter(|arrived| **arrived == id).count()
    }
}

#[test]
fn a_report_at_which_the_broker_hangs_up_is_found_and_costs_nobody_else_more_than_time() {
    let mut world = World::new(calm());
    let ids: Vec<Seq> = (0..20).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.poisoned.insert(ids[7]);
    world.steps_until("all others arrive", |world| world.pending() == 0);
    assert_eq!(world.dead(), [ids[7]]);
    for id in ids.iter().filter(|id| **id != ids[7]) {
        assert!(world.arrived_times(*id) >= 1, "report {id}");
    }
    let attempts = world.log.iter().filter(|event| matches!(event, Event::Refused { code: code::HUNG_UP, .. })).count();
    assert_eq!(attempts, 2, "two charges, and the third condemns it");
}

#[test]
fn a_broker_that_hangs_up_at_everything_costs_two_reports_and_all_others_arrive_when_it_is_mended() {
    let mut world = World::new(calm());
    let ids: Vec<Seq> = (0..12).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.poisoned.extend(&ids);
    world.steps_until("the lane is suspended again and again", |world| world.suspended >= 5);
    assert_eq!((world.dead().len(), world.pending()), (2, 10), "it does not empty itself into the dead letters");
    world.poisoned.clear();
    world.steps_until("all others arrive", |world| world.pending() == 0);
    assert_eq!(world.dead().len(), 2);
}

#[test]
fn what_a_broker_does_not_take_is_held_uncharged_until_it_does_and_others_go_on() {
    let mut world = World::new(Story { maximum_qos: Qos::AtLeastOnce, ..calm() });
    let held = world.accept_for("held");
    let event = Event::Accepted(Arc::new(Accepted::plain(lane_key(), "free", Qos::AtLeastOnce, Millis(1))));
    let free = world.outbox.apply(&event).unwrap();
    world.log.push(event);
    world.steps_until("the other topic goes on", |world| world.arrived_times(free) == 1 && world.pending() == 1);
    for _ in 0..5_000 {
        world.step();
    }
    assert_eq!((world.arrived_times(held), world.dead()), (0, vec![]));
    let refusals = world.log.iter().filter(|event| matches!(event, Event::Refused { .. })).count();
    assert_eq!(refusals, 1, "looking again costs no event");
    world.story.maximum_qos = Qos::ExactlyOnce;
    world.cut();
    world.steps_until("it is sent", |world| world.pending() == 0);
    assert_eq!(world.arrived_times(held), 1);
}

#[test]
fn a_broker_that_is_slow_to_forget_a_session_is_given_time() {
    let mut world = World::new(Story { protocol: Protocol::V311, ..calm() });
    // Longer than it takes to disconnect and connect, shorter than the longest wait.
    world.forgets_after_ms = 350;
    let id = world.accept_for("topic");
    for _ in 0..5_000 {
        world.step();
    }
    assert_eq!((world.pending(), world.arrived_times(id)), (0, 1));
}

#[test]
fn a_broker_that_takes_qos_2_for_qos_1_gets_one_window_and_nothing_twice() {
    for downgrade in [false, true] {
        let mut world = World::new(Story { protocol: Protocol::V311, downgrade, ..calm() });
        world.takes_qos_2_for_1 = true;
        let first = world.accept_for("topic");
        world.steps_until("its PUBACK counts", |world| world.pending() == 0);
        let second = world.accept_for("topic");
        for _ in 0..5_000 {
            world.step();
        }
        assert_eq!((world.arrived_times(first), world.arrived_times(second)), (1, usize::from(downgrade)));
        assert_eq!((world.pending(), world.dead()), (u64::from(!downgrade), vec![]));
    }
}

#[test]
fn with_leave_to_downgrade_it_is_sent_at_what_the_broker_has() {
    for maximum_qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        let mut world = World::new(Story { maximum_qos, downgrade: true, ..calm() });
        let id = world.accept_for("topic");
        world.steps_until("it is sent", |world| world.pending() == 0);
        assert_eq!((world.arrived_times(id), world.dead()), (1, vec![]));
    }
}

#[test]
fn with_the_first_server_away_the_second_is_used_and_the_first_again_when_it_is_back() {
    let mut world = World::new(Story { servers: 2, ..calm() });
    world.is_away[0] = true;
    let elsewhere: Vec<Seq> = (0..5).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.steps_until("the second takes them", |world| world.pending() == 0);
    assert_eq!(world.at, 1);
    world.is_away[0] = false;
    world.steps_until("the first is used again", |world| world.at == 0 && world.session.is_up());
    let home: Vec<Seq> = (0..5).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.steps_until("the first takes them", |world| world.pending() == 0);
    assert_eq!(world.at, 0);
    for id in elsewhere.into_iter().chain(home) {
        assert_eq!(world.arrived_times(id), 1, "report {id}");
    }
    assert_eq!(world.outbox.connections()[&lane_key().connection].totals.possible_duplicates, 0, "moving at leisure repeats nothing");
}

#[test]
fn a_server_with_a_session_in_doubt_is_waited_for_and_then_given_up() {
    for is_back in [true, false] {
        let mut world = World::new(Story { servers: 2, ..calm() });
        let id = world.accept_for("topic");
        world.steps_until("it is released", |world| !world.outbox.lane(&lane_key()).unwrap().released().is_empty());
        world.is_away[0] = true;
        world.cut();
        if is_back {
            world.steps_until("it is tried", |world| world.session.absences >= 1);
            world.is_away[0] = false;
        }
        world.steps_until("it arrives", |world| world.pending() == 0);
        let duplicates = world.outbox.connections()[&lane_key().connection].totals.possible_duplicates;
        assert_eq!((world.at, duplicates), if is_back { (0, 0) } else { (1, 1) });
        assert!(world.arrived_times(id) == 1 || !is_back);
    }
}

#[test]
fn what_has_expired_before_it_is_sent_is_not_sent_and_is_counted() {
    let world = World::new(Story { expiring: 100, absences: 20, cuts: 20, ..calm() }).play();
    world.check_promises();
    let totals = world.outbox.connections()[&lane_key().connection].totals;
    assert!(totals.expired > 0 && !world.arrived.is_empty(), "{totals:?}, {} arrived", world.arrived.len());
    // Some have no second at all.
    let at_once = world.log.iter().filter(|event| matches!(event, Event::Accepted(accepted) if accepted.expiry_s == Some(0))).count();
    assert!(totals.expired >= at_once as u64 / 2, "{totals:?}, {at_once} had expired when they came");
}

/// A small delivery, accepted with the event after its send's number.
pub(super) fn delivery(send: u64, topic: &str, qos: Qos) -> Delivery {
    Delivery {
        send: SendNo(send),
        id: Seq(send + 1),
        located: Seq(send + 1),
        topic: Arc::from(topic),
        qos,
        retain: false,
        accepted_at: Millis(0),
        expires_at: None,
        attempts: 0,
        size: 10,
        is_resent: false,
    }
}

/// What the log says at a start: these sends of QoS and topic are pending, and nothing else is known of them.
fn in_doubt(endpoint: &str, sends: &[(u64, &str, Qos)]) -> Start {
    let fresh = sends.iter().map(|(send, topic, qos)| delivery(*send, topic, *qos)).collect();
    Start { endpoint: endpoint.into(), protocol: Some(Protocol::V5), doubt: 16, fresh, ..Start::default() }
}

/// Starts a session, and goes on with what the broker has of it. What was said of the start, and what is written then.
fn resumed(start: Start) -> (Session, Vec<Output>, Vec<Outgoing>) {
    let mut session = Session::new(settings(&calm()), start);
    session.handle(Millis(1), 0, Input::Tick);
    let said: Vec<Output> = std::iter::from_fn(|| session.next_output()).collect();
    session.handle(Millis(1), 0, Input::Opened);
    let limits = BrokerLimits::default();
    let connack = Incoming::ConnAck { session_present: true, code: 0, limits, reason: None, assigned_client_id: None };
    let _ = written(&mut session);
    session.handle(Millis(2), 0, Input::Received(connack));
    let packets = written(&mut session);
    (session, said, packets)
}

fn written(session: &mut Session) -> Vec<Outgoing> {
    let outputs = std::iter::from_fn(|| session.next_output());
    outputs.filter_map(|output| if let Output::Send(packet) = output { Some(packet) } else { None }).collect()
}

#[test]
fn what_may_have_been_in_flight_when_the_store_was_copied_is_counted() {
    let (_, said, _) = resumed(in_doubt("(left behind)", &[(0, "t", Qos::ExactlyOnce), (1, "t", Qos::ExactlyOnce)]));
    let counted = said.iter().any(|output| matches!(output, Output::Note(Note::SessionLost { in_doubt: 2, .. })));
    assert!(counted, "{said:?}");
    let repeated = said.iter().any(|output| matches!(output, Output::Append(events) if matches!(&events[..], [Event::SessionOpened { repeated, .. }] if repeated.count() == 2)));
    assert!(repeated, "{said:?}");
}

#[test]
fn what_had_to_wait_for_a_packet_id_is_not_taken_for_sent_and_costs_no_session() {
    // 31 identifiers: the second has that of the first, and the third came after it.
    let sends = [(0, "t", Qos::ExactlyOnce), (31, "t", Qos::ExactlyOnce), (32, "t", Qos::ExactlyOnce)];
    let (session, said, packets) = resumed(in_doubt("server-0:1883", &sends));
    assert!(!said.iter().any(|output| matches!(output, Output::Note(Note::SessionLost { .. }))), "{said:?}");
    assert_eq!(session.in_flight(), 1);
    assert!(matches!(packets[..], [Outgoing::Publish { send: SendNo(0), dup: true, .. }]), "{packets:?}");
}

#[test]
fn what_let_others_by_because_its_topic_waits_says_nothing_of_what_is_behind_it() {
    // The third waits behind the first, as a whole round of identifiers does; the fourth has left long ago.
    let sends = [(0, "t"), (1, "t"), (32, "t"), (33, "u")].map(|(send, topic)| (send, topic, Qos::ExactlyOnce));
    let mut start = in_doubt("server-0:1883", &sends);
    start.waiting = vec![(start.fresh.remove(0), Millis(50), SendNo(1))];
    let (_, _, packets) = resumed(start);
    let is_as_it_was = matches!(
        packets[..],
        [Outgoing::Publish { send: SendNo(1), dup: true, .. }, Outgoing::Publish { send: SendNo(33), dup: true, .. }]
    );
    assert!(is_as_it_was, "{packets:?}");
}

#[test]
fn after_a_restart_a_report_of_qos_0_still_goes_before_a_later_one_that_may_have_been_sent() {
    let sends = [(0, "t", Qos::AtMostOnce), (1, "t", Qos::ExactlyOnce), (2, "t", Qos::AtMostOnce)];
    let (mut session, _, packets) = resumed(in_doubt("server-0:1883", &sends));
    assert!(matches!(packets[..], [Outgoing::Publish { send: SendNo(0), packet_id: None, dup: false, .. }]), "{packets:?}");
    session.handle(Millis(3), 0, Input::Flushed(vec![SendNo(0)]));
    let packets = written(&mut session);
    assert!(matches!(packets[..], [Outgoing::Publish { send: SendNo(1), dup: true, .. }]), "{packets:?}");
}
