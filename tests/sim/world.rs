//! The world: its clocks, what happens next in it, and what goes wrong.
//!
//! ```text
//!   producers ─▶ service (committer, sessions, feeds: the real ones) ─▶ network ─▶ brokers ─▶ arrivals
//!                   │        ▲                                                                    │
//!                   ▼        └─ start: recovered                                                  │
//!                 disk ─ what is durable ─▶ oracle ◀──────────────────────────────────────────────┘
//! ```
//! All of it is one thread and one queue of things that happen at their time. Whatever takes time draws it by chance; whatever is by chance comes from
//! the seed. A run is a storm, in which things go wrong, and then calm, in which everything is mended and everything has to come to its end.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use tidings::core::outbox::Outbox;
use tidings::core::session::Incoming;
use tidings::core::types::{ConnectionName, LaneKey, Millis};
use tidings::metrics::Metrics;

use crate::broker::Broker;
use crate::chance::Chance;
use crate::client::{Client, Said, Way};
use crate::disk::{Disk, Fate, Room};
use crate::network::{Link, Packet};
use crate::oracle::Oracle;
use crate::process::Process;
use crate::producer::{Request, connection_name};
use crate::story::Story;
use crate::trace::{Trace, say, violated};

/// So long a lane waits for an acknowledgement.
pub const ACK_TIMEOUT_MS: u64 = 3_000;

/// Left in peace, a run has to come to its end within this.
const PEACE_MS: u64 = 600_000;

/// So many things at one moment are a loop.
const AT_ONCE: u64 = 100_000;

/// Some time in 2026.
const WALL_MS: u64 = 1_780_000_000_000;

thread_local! {
    static CLOCK: Cell<u64> = const { Cell::new(WALL_MS) };
}

/// The wall clock of the world on this thread.
pub fn clock() -> Millis {
    Millis(CLOCK.get())
}

/// Something that happens at its time.
pub enum What {
    Start,
    Commit { run: u64 },
    Housekeeping { run: u64 },
    StopNow { run: u64 },
    LaneTimer { run: u64, lane: LaneKey, due: u64 },
    Anew { run: u64, lane: LaneKey },
    Read { run: u64, lane: LaneKey, wanted: usize },
    Connected { link: u64 },
    Write { link: u64 },
    ToBroker { link: u64, packet: Packet },
    Answer { link: u64, incoming: Incoming },
    ToLane { link: u64, incoming: Incoming },
    Unstalled { link: u64 },
    LaneSeesEnd { link: u64 },
    BrokerSeesEnd { link: u64 },
    BrokerIsBack { broker: usize },
    Post { request: usize },
    Answered { request: usize },
    Room,
    Publish { client: usize },
    Again { client: usize },
    Patience { way: u64 },
    Said { way: u64, said: Said },
    WayEnds { way: u64 },
    TryAgain { way: u64 },
    Wake,
    Crash,
    Trouble,
    Calm,
}

struct Entry {
    at: u64,
    number: u64,
    what: What,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// See the module.
pub struct World {
    pub story: Story,
    pub chance: Chance,
    pub trace: Trace,
    pub oracle: Oracle,
    pub metrics: Arc<Metrics>,
    /// Steady, in milliseconds.
    pub now: u64,
    /// What the wall clock is ahead of it, by jumps.
    wall_ms: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    last_entry: u64,
    pub disk: Disk,
    pub process: Option<Process>,
    /// The number of the start.
    pub run: u64,
    pub brokers: Vec<Broker>,
    pub links: BTreeMap<u64, Link>,
    pub last_link: u64,
    pub requests: Vec<Request>,
    pub clients: Vec<Client>,
    pub ways: BTreeMap<u64, Way>,
    pub last_report: u64,
    /// So many requests have no answer.
    pub unanswered: usize,
    pub is_calm: bool,
    pub counts: Counts,
    last_outbox: Option<Outbox>,
}

/// What there was of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub steps: u64,
    pub troubles: u64,
    pub starts: u64,
    pub outages: u64,
}

/// How often something goes wrong in comparison with the others, and what it does.
type Trouble = (u64, fn(&mut World));

impl World {
    pub fn new(story: Story, trace: Trace, metrics: Arc<Metrics>) -> Self {
        let mut oracle = Oracle::new();
        for (number, broker) in story.brokers.iter().enumerate() {
            let is_in_order = broker.delivers_at_publish || (!broker.out_of_order && broker.slow_acks == 0);
            oracle.arrives_in_order.insert(connection_name(number), is_in_order);
        }
        World {
            chance: Chance::new(story.seed),
            trace,
            oracle,
            metrics,
            now: 0,
            wall_ms: WALL_MS,
            queue: BinaryHeap::new(),
            last_entry: 0,
            disk: Disk::new(story.generation_bytes),
            process: None,
            run: 0,
            brokers: story.brokers.iter().cloned().map(Broker::new).collect(),
            links: BTreeMap::new(),
            last_link: 0,
            requests: Vec::new(),
            clients: Vec::new(),
            ways: BTreeMap::new(),
            last_report: 0,
            unanswered: 0,
            is_calm: false,
            counts: Counts::default(),
            last_outbox: None,
            story,
        }
    }

    pub fn at(&mut self, at: u64, what: What) {
        self.last_entry += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), number: self.last_entry, what }));
    }

    pub fn after(&mut self, ms: u64, what: What) {
        self.at(self.now + ms, what);
    }

    /// For what asks a clock that it was given, see [`clock`].
    fn publish_clock(&self) {
        CLOCK.set(self.wall().0);
    }

    pub fn wall(&self) -> Millis {
        Millis(self.wall_ms + self.now)
    }

    pub fn broker_of(&self, connection: &ConnectionName) -> usize {
        (0..self.brokers.len()).find(|number| connection_name(*number) == *connection).unwrap_or(0)
    }

    /// Tells the whole story.
    pub fn play(&mut self) {
        say!(self, "{:?}", self.story);
        self.publish_clock();
        self.start();
        let (count, span, mut at) = (self.story.requests, self.story.span_ms, 0);
        for _ in 0..count {
            // All at once, or one by one.
            if !self.story.bursts || self.chance.percent(10) {
                at = self.chance.below(span);
            }
            self.make_request(at);
        }
        self.make_clients();
        self.trouble_comes();
        let calm_at = self.story.storm_ms;
        self.at(calm_at, What::Calm);
        self.run_until_over(calm_at);
        self.end();
    }

    fn run_until_over(&mut self, calm_at: u64) {
        let mut at_once = 0;
        while !self.is_over() {
            let Some(Reverse(Entry { at, what, .. })) = self.queue.pop() else { violated("nothing happens any more".into()) };
            at_once = if at == self.now { at_once + 1 } else { 0 };
            if at_once > AT_ONCE {
                violated("it goes round and round at one moment".into());
            }
            self.now = at;
            self.publish_clock();
            self.counts.steps += 1;
            if self.now > calm_at + PEACE_MS {
                violated(format!("left in peace for {} s, there are still {} deliveries pending", PEACE_MS / 1_000, self.oracle.pending()));
            }
            self.happen(what);
        }
    }

    fn is_over(&self) -> bool {
        self.is_calm && self.process.is_some() && self.oracle.pending() == 0 && self.unanswered == 0
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Start => {
                if self.process.is_none() {
                    self.counts.starts += 1;
                    self.start();
                }
            }
            What::Commit { run } => self.on_commit(run),
            What::Housekeeping { run } => self.on_housekeeping(run),
            What::StopNow { run } => {
                if self.run == run {
                    self.stop_now();
                }
            }
            What::LaneTimer { run, lane, due } => self.on_lane_timer(run, &lane, due),
            What::Anew { run, lane } => self.on_anew(run, &lane),
            What::Read { run, lane, wanted } => self.on_read(run, &lane, wanted),
            What::Connected { link } => self.on_connected(link),
            What::Write { link } => self.on_write(link),
            What::ToBroker { link, packet } => self.on_to_broker(link, packet),
            What::Answer { link, incoming } => self.on_answer(link, incoming),
            What::ToLane { link, incoming } => self.on_to_lane(link, incoming),
            What::Unstalled { link } => self.on_unstalled(link),
            What::LaneSeesEnd { link } => self.on_lane_sees_end(link),
            What::BrokerSeesEnd { link } => self.on_broker_sees_end(link),
            What::BrokerIsBack { broker } => {
                if !self.brokers[broker].is_up {
                    say!(self, "broker {broker}: it is back");
                    self.broker_comes_back(broker);
                }
            }
            What::Post { request } => self.on_post(request),
            What::Answered { request } => self.on_answered(request),
            What::Room => self.disk_has_room_again(),
            What::Publish { client } => self.on_publish(client),
            What::Again { client } => self.on_again(client),
            What::Patience { way } => self.on_patience(way),
            What::Said { way, said } => self.on_said(way, said),
            What::WayEnds { way } => self.on_way_ends(way),
            What::TryAgain { way } => self.on_room(way),
            What::Wake => self.wake_conversations(),
            What::Crash => {
                if !self.is_calm && self.process.is_some() {
                    say!(self, "service: it crashes at a bad moment");
                    self.crash();
                }
            }
            What::Trouble => {
                if !self.is_calm {
                    self.trouble();
                    self.trouble_comes();
                }
            }
            What::Calm => self.calm(),
        }
        self.stop_if_drained();
    }

    fn trouble_comes(&mut self) {
        let delay = self.chance.below(2 * self.story.trouble_every_ms) + 1;
        self.after(delay, What::Trouble);
    }

    /// Something goes wrong.
    fn trouble(&mut self) {
        self.counts.troubles += 1;
        let weights = self.story.troubles.clone();
        let kinds: [Trouble; 13] = [
            (weights.cut, |world| world.cut_one(false)),
            (weights.half_open, |world| world.cut_one(true)),
            (weights.broker_dies, World::kill_a_broker),
            (weights.session_lost, |world| {
                let broker = world.any_broker();
                say!(world, "broker {broker}: it loses its sessions");
                world.broker_loses_sessions(broker);
            }),
            (weights.broker_stalls, |world| {
                let (broker, ms) = (world.any_broker(), world.chance.within(10, 6_000));
                say!(world, "broker {broker}: it stalls for {ms} ms");
                let until = world.now + ms;
                world.brokers[broker].stalled_until = world.brokers[broker].stalled_until.max(until);
            }),
            (weights.broker_refuses, |world| {
                let (broker, code) = (world.any_broker(), world.chance.pick(&[0x88, 0x89, 0x87, 0]));
                say!(world, "broker {broker}: it answers CONNECT with 0x{code:02x}");
                world.brokers[broker].refuses = Some((code, world.now + world.chance.within(100, 4_000)));
            }),
            (weights.crash, |world| {
                say!(world, "service: it crashes");
                if world.process.is_some() {
                    world.crash();
                }
            }),
            (weights.restart, World::stop),
            (weights.disk_fails, |world| {
                let fate = Fate::Breaks { pages: world.chance.below(3) as usize, bytes: world.chance.below(300) as usize };
                say!(world, "disk: the next write fails: {fate:?}");
                world.disk.set_fate(fate);
            }),
            (weights.disk_full, |world| {
                let room = world.chance.pick(&[Room::Reserve, Room::Nothing]);
                say!(world, "disk: room for {room:?}");
                world.disk.set_room(room);
                let delay = world.chance.within(100, 5_000);
                world.after(delay, What::Room);
            }),
            (weights.clock_jumps, |world| {
                // Never so far that idempotency keys are forgotten, which is right then.
                let ms = world.chance.pick(&[500, 5_000, 3_600_000, 36_000_000]);
                let is_forward = world.wall_ms <= WALL_MS;
                world.wall_ms = if is_forward { world.wall_ms + ms } else { world.wall_ms - ms };
                say!(world, "clock: it jumps {} by {ms} ms", if is_forward { "forward" } else { "back" });
            }),
            (weights.operator, World::operate),
            (weights.copied, |world| {
                say!(world, "disk: the store is a copy from now on");
                world.disk.mark_as_copy();
                world.stop();
            }),
        ];
        let total: u64 = kinds.iter().map(|(weight, _)| weight).sum();
        let mut at = self.chance.below(total);
        for (weight, act) in kinds {
            if at < weight {
                return act(self);
            }
            at -= weight;
        }
    }

    fn any_broker(&mut self) -> usize {
        self.chance.below(self.brokers.len() as u64) as usize
    }

    fn cut_one(&mut self, is_half_open: bool) {
        let ways = self.open_ways();
        if !ways.is_empty() && self.chance.percent(30) {
            let way = self.chance.pick(&ways);
            return self.client_is_cut_off(way);
        }
        let open: Vec<u64> =
            self.links.iter().filter(|(_, link)| link.is_open_here && link.is_open_there).map(|(number, _)| *number).collect();
        if !open.is_empty() {
            let link = self.chance.pick(&open);
            self.cut(link, is_half_open);
        }
    }

    fn kill_a_broker(&mut self) {
        let (broker, ms) = (self.any_broker(), self.chance.pick(&[1, 50, 500, 5_000]));
        if self.brokers[broker].is_up {
            self.counts.outages += 1;
            say!(self, "broker {broker}: it dies, for {ms} ms");
            self.broker_dies(broker);
            self.after(ms, What::BrokerIsBack { broker });
        }
    }

    /// Everything is mended.
    fn calm(&mut self) {
        say!(self, "from here on all is calm");
        self.is_calm = true;
        self.disk.set_fate(Fate::Lasts);
        self.disk.set_room(Room::Plenty);
        for broker in 0..self.brokers.len() {
            self.brokers[broker].refuses = None;
            self.brokers[broker].stalled_until = 0;
            if !self.brokers[broker].is_up {
                self.broker_comes_back(broker);
            }
        }
    }

    /// It is over: stopped in order, and found again as it was.
    fn end(&mut self) {
        self.oracle.is_over();
        self.check_requests();
        self.check_clients();
        if let Some(process) = &mut self.process {
            process.lanes.clear();
        }
        self.forget_conversations();
        self.stop_now();
        let opened = self.disk.open();
        let outbox = tidings::log::committer::recover(&opened).unwrap_or_else(|error| violated(format!("at the end: {error}")));
        self.oracle.compare_recovered(&outbox, "what is found after the last stop");
        self.last_outbox = Some(outbox);
    }

    /// What was found after the last stop.
    pub fn last_outbox(&self) -> &Outbox {
        self.last_outbox.as_ref().expect("the story has been told to its end")
    }

    /// What brokers remember of their clients.
    pub fn remembered(&self) -> usize {
        self.brokers.iter().map(Broker::remembers).sum()
    }
}
