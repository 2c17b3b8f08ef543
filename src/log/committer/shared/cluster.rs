//! Several instances over one log, told by seeds: what is accepted arrives once and in order at QoS 2, whoever is stopped, cut off or killed when.
//!
//! What runs is the real committer, fold and leases, over a log in memory. What drives a lane is small: a window, and PUBLISH, PUBREC, PUBREL, PUBCOMP with packet
//! identifiers that come round soon. The broker keeps its sessions, hands a message on at its first PUBLISH and forgets its identifier at PUBREL,
//! so that a PUBREL that should not have left is a message that arrives twice; who connects to a session ends the connection before. So a lane connects,
//! then commits that its session is open, and only then sends: without that, an owner that was stopped could connect again and publish once more what
//! its successor has completed.
//!
//! | Trouble | |
//! |---|---|
//! | an instance is stopped | for up to three leases; what the broker has sent it waits in its socket |
//! | … is cut off from the log and the heartbeats | and not from the broker |
//! | … is killed | and comes back as another |
//! | clocks | hours apart |
//! | connections | end, packets are late |
//! | producers | lose patience, and ask another instance |

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use super::tests::{Waiting, inside, look};
use super::*;
use crate::core::event::{Accepted, Dedupe, LanePurpose, Proof};
use crate::core::lease::{LEASE_MS, Leases, Step};
use crate::core::outbox::Owner;
use crate::core::ranges::Ranges;
use crate::core::types::{LaneKey, Millis, Protocol, Qos, SendNo, Seq};
use crate::log::committer::{Appended, Ticket, recover};
use crate::log::memory_log::{Disk, MemoryLog};

#[path = "../../../../tests/support/splitmix.rs"]
mod splitmix;

const SEEDS: u64 = 12;
const NODES: usize = 3;
const LANES: u32 = 4;
const WINDOW: usize = 4;
/// Packet identifiers.
const IDS: u64 = 11;
/// The world goes on in steps of so much.
const TICK_MS: u64 = 5;
const TROUBLE_MS: u64 = 40_000;
/// Left in peace, everything is delivered within this.
const CALM_MS: u64 = 30_000;
/// A producer asks another instance after this.
const PATIENCE_MS: u64 = 1_500;
const LIMITS: Limits = Limits { max_size: u64::MAX, retention_ms: 0 };

#[derive(Debug, Clone, Copy)]
enum Packet {
    Connect,
    ConnAck,
    Publish { id: u64, number: u64 },
    PubRec { id: u64 },
    PubRel { id: u64 },
    PubComp { id: u64 },
    Closed,
}

/// On its way.
struct Message {
    /// To a node; to the broker otherwise.
    to: Option<InstanceId>,
    lane: u32,
    connection: u64,
    packet: Packet,
}

/// The broker's session of a lane.
#[derive(Default)]
struct Session {
    connection: u64,
    held: BTreeSet<u64>,
    arrived: Vec<u64>,
}

/// Where a send stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Published,
    /// `Released` is on its way into the log.
    Recorded,
    Released,
    /// `Delivered` is on its way into the log.
    Completed,
    /// Of a connection, not of a send: what says that it is the owner's is on its way into the log.
    Opened,
}

/// A lane at work.
struct Driver {
    term: u64,
    connection: u64,
    is_up: bool,
    is_draining: bool,
    sends: BTreeMap<u64, Stage>,
    appends: Vec<(Ticket, u64, Stage)>,
}

struct Post {
    number: u64,
    since: u64,
    waiting: Waiting,
}

struct Node {
    id: InstanceId,
    log: LogHandle,
    stepped: Stepped,
    leases: Leases,
    /// How far its clock is off.
    ahead: u64,
    stopped_until: u64,
    cut_until: u64,
    look_at: u64,
    asked: Vec<Ticket>,
    lanes: BTreeMap<u32, Driver>,
    posts: Vec<Post>,
}

struct World {
    seed: u64,
    chance: u64,
    now: u64,
    disk: Disk,
    nodes: Vec<Node>,
    starts: u64,
    beats: BTreeMap<InstanceId, u64>,
    sessions: BTreeMap<u32, Session>,
    wire: BTreeMap<(u64, u64), Message>,
    /// When the last packet of a connection arrives, by direction.
    latest: BTreeMap<(bool, u64), u64>,
    connections: u64,
    packets: u64,
    reports: u64,
    accepted: BTreeSet<u64>,
    /// The fold of the log, by who reads it from outside.
    books: Outbox,
    log: Box<dyn EventLog>,
    /// The report of each send, by lane.
    numbers: BTreeMap<u32, Vec<u64>>,
    /// Who owned the lane of each outcome when it came into the log.
    owners: BTreeMap<Seq, Option<InstanceId>>,
    taken: u64,
}

fn key(lane: u32) -> LaneKey {
    LaneKey { connection: "mqtt".into(), lane }
}

impl World {
    fn new(seed: u64) -> World {
        let disk = Disk::new(64 << 20);
        let mut log = MemoryLog::open_shared(&disk).unwrap().log;
        let mut books = Outbox::new();
        let lanes = Event::LanesChanged { connection: "mqtt".into(), first: 0, count: LANES, purpose: LanePurpose::Fresh, at: Millis(0) };
        books.apply(&lanes).unwrap();
        log.append(&[lanes], &|_| SendNo(0)).unwrap();
        let mut world = World {
            seed,
            chance: seed,
            now: 1,
            disk,
            nodes: Vec::new(),
            starts: 0,
            beats: BTreeMap::new(),
            sessions: (0..LANES).map(|lane| (lane, Session::default())).collect(),
            wire: BTreeMap::new(),
            latest: BTreeMap::new(),
            connections: 0,
            packets: 0,
            reports: 0,
            accepted: BTreeSet::new(),
            books,
            log,
            numbers: (0..LANES).map(|lane| (lane, Vec::new())).collect(),
            owners: BTreeMap::new(),
            taken: 0,
        };
        for _ in 0..NODES {
            let node = world.start();
            world.nodes.push(node);
        }
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        splitmix::next(&mut self.chance) % bound
    }

    fn start(&mut self) -> Node {
        self.starts += 1;
        let id = InstanceId(self.starts);
        let opened = MemoryLog::open_shared(&self.disk).unwrap();
        let outbox = recover(&opened).unwrap();
        let (log, stepped) = stepped_shared(opened.log, outbox, LIMITS, Arc::new(Metrics::new()), id);
        let ahead = self.below(100) * 3_600_000;
        let (asked, lanes, posts) = (Vec::new(), BTreeMap::new(), Vec::new());
        Node { id, log, stepped, leases: Leases::new(id), ahead, stopped_until: 0, cut_until: 0, look_at: 0, asked, lanes, posts }
    }

    fn run(&mut self) {
        while self.now < TROUBLE_MS {
            if self.below(1_000) < 4 {
                self.trouble();
            }
            if self.below(100) < 10 {
                self.reports += 1;
                self.post(self.reports);
            }
            self.go_on();
        }
        for node in &mut self.nodes {
            (node.stopped_until, node.cut_until) = (0, 0);
        }
        let calm = self.now;
        while self.now < calm + CALM_MS {
            self.go_on();
            if self.now >= calm + 5_000 {
                for lane in 0..LANES {
                    let owner = self.books.owners().of(&key(lane)).instance;
                    let moves = self.books.owners().of(&key(lane)).term > 0 && owner.is_none();
                    assert!(
                        moves || self.nodes.iter().any(|node| Some(node.id) == owner),
                        "seed {}: lane {lane} is {owner:?}'s",
                        self.seed
                    );
                }
            }
        }
        self.end();
    }

    fn trouble(&mut self) {
        let (at, kind, ms) = (self.below(NODES as u64) as usize, self.below(10), self.below(3 * LEASE_MS));
        match kind {
            0..4 => self.nodes[at].stopped_until = self.now + ms,
            4..7 => self.nodes[at].cut_until = self.now + ms,
            7 => {
                let fresh = self.start();
                let killed = std::mem::replace(&mut self.nodes[at], fresh);
                for post in killed.posts {
                    self.post(post.number);
                }
            }
            _ => {
                for lane in 0..LANES {
                    self.connect(at, lane);
                }
            }
        }
    }

    fn go_on(&mut self) {
        self.now += TICK_MS;
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let message = entry.remove();
            self.arrive(message);
        }
        for at in 0..NODES {
            if self.nodes[at].stopped_until <= self.now {
                self.work(at);
            }
        }
        self.read_on();
    }

    // -- producers --

    fn post(&mut self, number: u64) {
        let lane = (number % u64::from(LANES)) as u32;
        let dedupe = Some(Dedupe { key: u128::from(number), body: 1, line: 0, lines: 1, batch: false });
        let plain = Accepted::plain(key(lane), format!("topic/{lane}"), Qos::ExactlyOnce, Millis(number));
        let event = Event::Accepted(Arc::new(Accepted { payload: number.to_string().into(), dedupe, ..plain }));
        let (at, since) = (self.below(NODES as u64) as usize, self.now);
        let log = self.nodes[at].log.clone();
        let mut waiting: Waiting = Box::pin(async move { log.accept(vec![event]).await });
        assert!(look(&mut waiting).is_none());
        self.nodes[at].posts.push(Post { number, since, waiting });
    }

    // -- the broker --

    fn send(&mut self, to: Option<InstanceId>, lane: u32, connection: u64, packet: Packet) {
        self.packets += 1;
        let due = self.now + 1 + self.below(40);
        let latest = self.latest.entry((to.is_some(), connection)).or_default();
        *latest = due.max(*latest);
        self.wire.insert((*latest, self.packets), Message { to, lane, connection, packet });
    }

    fn arrive(&mut self, message: Message) {
        let Message { to, lane, connection, packet } = message;
        if let Some(to) = to {
            let Some(at) = self.nodes.iter().position(|node| node.id == to) else { return };
            if self.nodes[at].stopped_until > self.now {
                // In its socket.
                let again = (self.nodes[at].stopped_until, self.packets);
                self.packets += 1;
                self.wire.insert(again, Message { to: Some(to), lane, connection, packet });
                return;
            }
            return self.lane_reads(at, lane, connection, packet);
        }
        let session = self.sessions.get_mut(&lane).unwrap();
        let of = |nodes: &[Node], connection: u64| {
            nodes.iter().find(|node| node.lanes.get(&lane).is_some_and(|driver| driver.connection == connection)).map(|node| node.id)
        };
        if matches!(packet, Packet::Connect) && connection > session.connection {
            // The one before is ended.
            let before = std::mem::replace(&mut session.connection, connection);
            if let Some(other) = of(&self.nodes, before) {
                self.send(Some(other), lane, before, Packet::Closed);
            }
        }
        let session = self.sessions.get_mut(&lane).unwrap();
        let Some(to) = of(&self.nodes, connection) else { return };
        if session.connection != connection {
            return self.send(Some(to), lane, connection, Packet::Closed);
        }
        let answer = match packet {
            Packet::Connect => Packet::ConnAck,
            Packet::Publish { id, number } => {
                if session.held.insert(id) {
                    session.arrived.push(number);
                }
                Packet::PubRec { id }
            }
            Packet::PubRel { id } => {
                session.held.remove(&id);
                Packet::PubComp { id }
            }
            Packet::ConnAck | Packet::PubRec { .. } | Packet::PubComp { .. } | Packet::Closed => return,
        };
        self.send(Some(to), lane, connection, answer);
    }

    // -- lanes --

    /// The lane's connection has ended, and it makes another.
    fn connect(&mut self, at: usize, lane: u32) {
        let Some(driver) = self.nodes[at].lanes.get_mut(&lane) else { return };
        self.connections += 1;
        (driver.connection, driver.is_up) = (self.connections, false);
        self.send(None, lane, self.connections, Packet::Connect);
    }

    fn lane_starts(&mut self, at: usize, lane: u32, term: u64) {
        let known = self.nodes[at].stepped.outbox().unwrap().lane(&key(lane)).unwrap();
        let sends = known.released().iter().map(|send| (send.0, Stage::Released)).collect();
        let driver = Driver { term, connection: 0, is_up: false, is_draining: false, sends, appends: Vec::new() };
        self.nodes[at].lanes.insert(lane, driver);
        self.connect(at, lane);
    }

    fn lane_reads(&mut self, at: usize, lane: u32, connection: u64, packet: Packet) {
        let node = &mut self.nodes[at];
        let Some(driver) = node.lanes.get_mut(&lane).filter(|driver| driver.connection == connection) else { return };
        let in_stage = |driver: &Driver, id: u64, stage: Stage| {
            driver.sends.iter().find(|(send, known)| *send % IDS == id && **known == stage).map(|(send, _)| *send)
        };
        match packet {
            // Connected, and not a word before it is sure that the lane was its own when it connected.
            Packet::ConnAck => driver.appends.push((submit(&node.log, opened(lane)), connection, Stage::Opened)),
            Packet::Closed => self.connect(at, lane),
            Packet::PubRec { id } => {
                if let Some(send) = in_stage(driver, id, Stage::Published) {
                    let event = Event::Released { lane: key(lane), sends: vec![SendNo(send)] };
                    driver.sends.insert(send, Stage::Recorded);
                    driver.appends.push((submit(&node.log, event), send, Stage::Recorded));
                }
            }
            Packet::PubComp { id } => {
                if let Some(send) = in_stage(driver, id, Stage::Released) {
                    let (sends, at) = (Ranges::one(send), Millis(0));
                    let event = Event::Delivered { lane: key(lane), sends, proof: Proof::PubComp, at };
                    driver.sends.insert(send, Stage::Completed);
                    driver.appends.push((submit(&node.log, event), send, Stage::Completed));
                }
            }
            _ => {}
        }
    }

    fn publish(&mut self, lane: u32, connection: u64, send: u64) {
        let number = self.numbers[&lane][send as usize];
        self.send(None, lane, connection, Packet::Publish { id: send % IDS, number });
    }

    /// Looks after what the lane's appends have become, and sends what is new.
    fn lane_goes_on(&mut self, at: usize, lane: u32) {
        let Some(mut driver) = self.nodes[at].lanes.remove(&lane) else { return };
        let id = self.nodes[at].id;
        for (mut ticket, send, stage) in std::mem::take(&mut driver.appends) {
            match answer_of(&mut ticket) {
                None => driver.appends.push((ticket, send, stage)),
                Some(Ok(Appended::New { first, .. })) => {
                    self.read_on();
                    let owner = self.owners[&first];
                    assert_eq!(owner, Some(id), "seed {}: an outcome of lane {lane} came from {id} at event {first}", self.seed);
                    match stage {
                        Stage::Opened if send != driver.connection => {}
                        Stage::Opened => {
                            driver.is_up = true;
                            for (send, stage) in &driver.sends {
                                match stage {
                                    Stage::Published => self.publish(lane, driver.connection, *send),
                                    Stage::Released => self.send(None, lane, driver.connection, Packet::PubRel { id: send % IDS }),
                                    _ => {}
                                }
                            }
                        }
                        Stage::Completed => _ = driver.sends.remove(&send),
                        _ => {
                            driver.sends.insert(send, Stage::Released);
                            if driver.is_up {
                                self.send(None, lane, driver.connection, Packet::PubRel { id: send % IDS });
                            }
                        }
                    }
                }
                // It starts anew, if the lane is still its own.
                Some(Err(CommitError::NotOwner(_) | CommitError::Overloaded)) => return,
                Some(other) => panic!("seed {}: lane {lane} at {id}: {other:?}", self.seed),
            }
        }
        if driver.is_draining && driver.sends.is_empty() {
            let event = Event::LaneLeft { lane: key(lane), instance: id, term: driver.term, at: Millis(0) };
            let ticket = submit(&self.nodes[at].log, event);
            self.nodes[at].asked.push(ticket);
            return;
        }
        if driver.is_up && !driver.is_draining {
            let known = self.nodes[at].stepped.outbox().unwrap().lane(&key(lane)).unwrap().clone();
            let mut next = known.cursor().0;
            while driver.sends.len() < WINDOW && next < known.next_send().0 {
                let oldest = driver.sends.keys().next().copied().unwrap_or(next);
                if next >= oldest + IDS - 1 {
                    break;
                }
                if known.is_pending(SendNo(next)) && !driver.sends.contains_key(&next) {
                    driver.sends.insert(next, Stage::Published);
                    self.publish(lane, driver.connection, next);
                }
                next += 1;
            }
        }
        self.nodes[at].lanes.insert(lane, driver);
    }

    // -- an instance --

    fn work(&mut self, at: usize) {
        let is_cut = self.nodes[at].cut_until > self.now;
        if !is_cut {
            if self.below(4) == 0 {
                while self.nodes[at].stepped.step() {}
            }
            if self.below(8) == 0 {
                self.nodes[at].stepped.follow();
            }
            self.read_on();
        }
        self.look_after_posts(at);
        for lane in 0..LANES {
            let node = &self.nodes[at];
            let Owner { instance, term } = node.stepped.outbox().unwrap().owners().of(&key(lane));
            let is_ours = instance == Some(node.id);
            let runs = node.lanes.get(&lane).map(|driver| driver.term);
            let is_leaving = !node.asked.is_empty();
            if runs.is_some() && (!is_ours || runs != Some(term)) {
                self.nodes[at].lanes.remove(&lane);
            }
            if is_ours && !is_leaving && !self.nodes[at].lanes.contains_key(&lane) {
                self.lane_starts(at, lane, term);
            }
            self.lane_goes_on(at, lane);
        }
        if self.nodes[at].look_at <= self.now {
            self.nodes[at].look_at = self.now + 200 + self.below(100);
            self.lead_a_life(at, is_cut);
        }
    }

    fn look_after_posts(&mut self, at: usize) {
        let (mut again, now) = (Vec::new(), self.now);
        let accepted = &mut self.accepted;
        self.nodes[at].posts.retain_mut(|post| match look(&mut post.waiting) {
            Some(Ok(_)) => {
                accepted.insert(post.number);
                false
            }
            Some(Err(CommitError::Conflict)) => panic!("it is the same report"),
            Some(Err(_)) => {
                again.push(post.number);
                false
            }
            // What it has asked for may still happen.
            None if now > post.since + PATIENCE_MS => {
                again.push(post.number);
                post.since = u64::MAX / 2;
                true
            }
            None => true,
        });
        again.into_iter().for_each(|number| self.post(number));
    }

    /// Heartbeats, and what follows from those of others.
    fn lead_a_life(&mut self, at: usize, is_cut: bool) {
        let node = &mut self.nodes[at];
        let now = Millis(self.now + node.ahead);
        let owners = node.stepped.outbox().unwrap().owners().clone();
        let renewal = node.leases.renewal(now);
        if !is_cut {
            if let Some(beat) = renewal {
                self.beats.insert(node.id, beat);
                node.leases.renewed();
            }
            node.leases.look(now, &self.beats, &owners);
        }
        node.asked.retain_mut(|ticket| answer_of(ticket).is_none());
        if !node.asked.is_empty() {
            return;
        }
        let lanes: Vec<LaneKey> = (0..LANES).map(key).collect();
        for step in node.leases.steps(now, &owners, lanes.iter()) {
            let (instance, at) = (node.id, now);
            let event = match step {
                Step::Join => Event::InstanceJoined { instance, name: instance.to_string(), at },
                Step::DeclareLeft(gone) => Event::InstanceLeft { instance: gone, by: instance, at },
                Step::Take { lane, term } => Event::LaneTaken { lane, instance, term, at },
                Step::GiveUp { lane, .. } => {
                    if let Some(driver) = node.lanes.get_mut(&lane.lane) {
                        driver.is_draining = true;
                    }
                    continue;
                }
            };
            node.asked.push(submit(&node.log, event));
        }
    }

    // -- what is held against it --

    fn read_on(&mut self) {
        for page in self.log.catch_up().unwrap() {
            for event in &page.events {
                let lane_of = |event: &Event| match event {
                    Event::Released { lane, .. } | Event::Delivered { lane, .. } | Event::SessionOpened { lane, .. } => Some(lane.clone()),
                    _ => None,
                };
                let owner = lane_of(event).map(|lane| self.books.owners().of(&lane).instance);
                let seq = self.books.apply(event).unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
                if let Some(owner) = owner {
                    self.owners.insert(seq, owner);
                }
                self.taken += u64::from(matches!(event, Event::LaneTaken { .. }));
                if let Event::Accepted(accepted) = event {
                    let number: u64 = std::str::from_utf8(&accepted.payload).unwrap().parse().unwrap();
                    self.numbers.get_mut(&accepted.lane.lane).unwrap().push(number);
                }
            }
        }
    }

    fn end(&mut self) {
        let seed = self.seed;
        let stored: Vec<u64> = self.numbers.values().flatten().copied().collect();
        let once: BTreeSet<u64> = stored.iter().copied().collect();
        assert_eq!(stored.len(), once.len(), "seed {seed}: with a key a report is stored once");
        assert!(self.accepted.is_subset(&once), "seed {seed}: what was accepted is in the log");
        assert_eq!(self.accepted.len() as u64, self.reports, "seed {seed}: left in peace everything is accepted");
        for (lane, numbers) in &self.numbers {
            assert_eq!(self.sessions[lane].arrived, *numbers, "seed {seed}: lane {lane}: each once, in the order of the log");
            assert_eq!(self.books.lane(&key(*lane)).unwrap().pending(), 0, "seed {seed}: lane {lane}");
        }
        for node in &mut self.nodes {
            while node.stepped.step() {}
        }
        for node in &mut self.nodes {
            node.stepped.follow();
        }
        self.read_on();
        for node in &self.nodes {
            assert_eq!(*node.stepped.outbox().unwrap(), self.books, "seed {seed}: everybody comes to the same");
        }
    }
}

fn opened(lane: u32) -> Event {
    let (endpoint, doubt, repeated, at) = ("broker:1883".to_owned(), WINDOW as u32, Ranges::default(), Millis(0));
    Event::SessionOpened { lane: key(lane), epoch: 0, protocol: Protocol::V5, endpoint, doubt, repeated, at }
}

fn submit(log: &LogHandle, event: Event) -> Ticket {
    let log = log.clone();
    let mut submitting: std::pin::Pin<Box<dyn Future<Output = _>>> = Box::pin(async move { log.submit(vec![event]).await });
    look(&mut submitting).expect("there is a place").unwrap()
}

fn answer_of(ticket: &mut Ticket) -> Option<Result<Appended, CommitError>> {
    let mut answer: std::pin::Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(ticket.answer());
    look(&mut answer).map(|answer| answer.map(Committed::into_inner))
}

#[test]
fn whatever_happens_to_instances_each_report_arrives_once_and_in_order() {
    inside(|| {
        let (mut taken, mut reports) = (0, 0);
        for seed in 1..=SEEDS {
            let mut world = World::new(seed);
            world.run();
            taken += world.taken;
            reports += world.reports;
        }
        assert!(
            taken > SEEDS * 3 * u64::from(LANES) && reports > SEEDS * 100,
            "there was something to it: {taken} taken, {reports} reports"
        );
    });
}
