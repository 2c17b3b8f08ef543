//! The MQTT publisher session of one lane, as a state machine: packets and ticks in, packets and events out. No clock, no socket.
//!
//! # A connection
//! ```text
//!            retry_at            Opened            CONNACK 0             durable
//!   ┌─▶ Down ────────▶ Opening ────────▶ Greeting ──────────▶ Confirming ────────▶ Serving ──┐ drained
//!   │                     │                 │  │ session present                             ▼
//!   │                     │                 │  └───────────▶ Resuming ── all settled ─▶ (Down, at once, clean)
//!   └──── closed, refused, timed out ◀──────┴─────────────────┴──────────────────────── Stopped
//! ```
//!
//! | In | On | Do | Then |
//! |---|---|---|---|
//! | Down | `retry_at` has come | open a transport | Opening |
//! | Opening | opened | CONNECT: clean if nothing is in doubt, else to resume | Greeting |
//! | Greeting | CONNACK, 3.1.1, to purge | DISCONNECT | Down, at once, then clean |
//! | Greeting | CONNACK, clean | `SessionOpened`, where it says something new | Confirming |
//! | Greeting | CONNACK, session present | PUBRELs in PUBREC order, then PUBLISH with DUP in send order | Resuming |
//! | Greeting | CONNACK, no session | next epoch; what is in doubt is sent again and counted | Down, at once |
//! | Confirming | durable | | Serving |
//! | Resuming | everything is settled | DISCONNECT | Down, at once, then clean |
//! | Serving | room in the window | PUBLISH | |
//! | any | closed, a timer | | Down, with backoff |
//!
//! # A send
//! ```text
//!   QoS 0: Sent ─ flushed ─▶ done        QoS 1: Sent ─ PUBACK ─▶ done
//!   QoS 2: Sent ─ PUBREC ─▶ Recording ─ Released is durable ─▶ Releasing (PUBREL) ─ PUBCOMP ─▶ done
//!   done ─ Delivered is durable ─▶ settled: only now is its packet id free
//! ```
//!
//! # What may be in doubt
//! The log does not say what was sent. So that a restart can tell what *may* be on the wire, fresh deliveries are sent strictly in send
//! order and at most `doubt` of them have an outcome that is not durable; those are the first `doubt` pending ones. What has a new
//! number (`Resent`) is named by the log. All of that is sent again, with DUP, in the resumed session before anything new.

mod packet;
mod queue;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

pub use packet::{Ack, BrokerLimits, Delivery, Incoming, Input, Note, Outgoing, Output};
use queue::{HOLDS_NOTHING_UP, Queue};

use super::event::{DeadReason, DeliveryRef, Event, Proof};
use super::ranges::{RangeSet, Ranges};
use super::retry::{self, RetryPolicy, Verdict, code, reason_name};
use super::types::{LaneKey, Millis, Protocol, Qos, SendNo};

/// Appends under way at once: while one is made durable the next can form.
const APPENDS: usize = 2;

/// A lane stops reading ahead when so many deliveries are waiting or parked: bounds its memory. Then it blocks until the oldest retry.
const HELD_LIMIT: usize = 1_024;

/// A lane stops reading ahead when it has so many bytes ready to be sent: with reports of the largest size its memory stays bounded.
const READY_BYTES: usize = 4 << 20;

/// So many bytes are in flight on a lane at most, or one delivery: a broker that stops reading leaves no more than this to be buffered.
const IN_FLIGHT_BYTES: usize = 8 << 20;

/// Why a session is given up after a CONNECT whose answer was lost.
const DOUBTFUL: &str = "it can't be known whether the broker kept the session: its answer to an earlier CONNECT was lost";

/// So many closes without a CONNACK make an automatic protocol choice try the other protocol.
const SILENT_CLOSES: u32 = 3;

/// A resume that dies so often without progress is given up: some brokers can't resume QoS 2.
const RESUME_DEATHS: u32 = 3;

/// What the operator sets, and what a lane is called.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lane.
    pub lane: LaneKey,
    /// Client id without epoch and lane: `<client_id>-<store id>`.
    pub client_id: String,
    /// Server, port and user.
    pub endpoint: String,
    /// The only protocol to speak; none for automatic.
    pub protocol: Option<Protocol>,
    /// Keep Alive in seconds.
    pub keepalive_s: u16,
    /// Deliveries in flight over MQTT 5, at most.
    pub window_5: u16,
    /// Deliveries in flight over MQTT 3.1.1, at most.
    pub window_3_1_1: u16,
    /// Session Expiry Interval in seconds: how long a broker keeps the session while Tidings is away.
    pub session_expiry_s: u32,
    /// From the start of a connection attempt to CONNACK, in milliseconds.
    pub connect_timeout_ms: u64,
    /// From a PUBLISH or PUBREL to its acknowledgement, in milliseconds.
    pub ack_timeout_ms: u64,
    /// Backoff and attempts.
    pub retry: RetryPolicy,
}

impl Settings {
    /// So many sends may be without a durable outcome at once: two windows, so that the disk's latency does not idle the broker.
    pub fn doubt(&self) -> u32 {
        2 * u32::from(self.window_5.max(self.window_3_1_1))
    }
}

/// What the log says about a lane when it starts.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// The newest epoch.
    pub epoch: u32,
    /// The newest session's endpoint; empty if there was none.
    pub endpoint: String,
    /// The newest session's protocol.
    pub protocol: Option<Protocol>,
    /// So many sends of it may be in doubt.
    pub doubt: u32,
    /// Sends whose PUBREC is durable, in order.
    pub released: Vec<SendNo>,
    /// Refused deliveries under their spent numbers: when to retry, and up to where fresh sends had left.
    pub waiting: Vec<(Delivery, Millis, SendNo)>,
    /// Pending deliveries under new numbers, and up to where fresh sends had left.
    pub resent: Vec<(Delivery, SendNo)>,
    /// The first pending fresh deliveries, in send order, until [`Start::is_complete`].
    pub fresh: Vec<Delivery>,
}

impl Start {
    /// Whether `fresh` holds everything that may be on the wire: `doubt` deliveries besides those that are released and those that have
    /// to wait behind a refused one of their topic. `waiting` and `resent` must be there before.
    pub fn is_complete(&self) -> bool {
        let waiting = self.waiting.iter().map(|(delivery, _, through)| (&delivery.topic, *through));
        let resent = self.resent.iter().map(|(delivery, through)| (&delivery.topic, *through));
        let mut held_up: HashMap<&Arc<str>, SendNo> = HashMap::new();
        for (topic, through) in waiting.chain(resent).filter(|(_, through)| *through != HOLDS_NOTHING_UP) {
            let known = held_up.entry(topic).or_insert(through);
            *known = through.max(*known);
        }
        let may_be_sent = |delivery: &&Delivery| {
            let is_held_up = held_up.get(&delivery.topic).is_some_and(|through| delivery.send > *through);
            !is_held_up && !self.released.contains(&delivery.send)
        };
        let last_released = self.released.iter().max();
        self.fresh.iter().filter(may_be_sent).count() >= self.doubt as usize
            && last_released.is_none_or(|last| self.fresh.last().is_some_and(|fresh| fresh.send >= *last))
    }
}

/// The session of one lane.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    epoch: u32,
    /// What the log knows of the newest session: epoch, protocol, endpoint, doubt.
    opened: (u32, Option<Protocol>, String, u32),
    protocol: Protocol,
    link: Link,
    queue: Queue,
    in_flight: BTreeMap<SendNo, InFlight>,
    /// Packet ids that are not free, and who has them.
    ids: HashMap<u16, SendNo>,
    /// Sends with a PUBREC, in the order of the PUBRECs.
    releases: VecDeque<SendNo>,
    /// Done, and not yet durable.
    finishing: HashMap<SendNo, Finishing>,
    /// QoS and number of the deliveries in flight, per topic.
    topics: HashMap<Arc<str>, (Qos, usize)>,
    /// Given their time for a retry, and waiting for their new numbers, in order.
    renumbering: VecDeque<Delivery>,
    record: Record,
    appends: VecDeque<Effects>,
    append_number: u64,
    /// The highest fresh number ever sent.
    highest_sent: SendNo,
    /// Sends that may have arrived and are to be sent again in the next session.
    repeated: RangeSet,
    failures: u32,
    silent_closes: u32,
    resume_deaths: u32,
    /// A CONNECT to resume was sent and its CONNACK never came: had the broker lost the session, it has made a new, empty one by now, and
    /// says "session present" to the next CONNECT all the same.
    is_session_doubtful: bool,
    paused_until: Millis,
    /// Deliveries done so far: tells whether others get through.
    successes: u64,
    /// Successes when a delivery was last refused, by its id.
    refused_at: HashMap<super::types::Seq, u64>,
    is_draining: bool,
    /// MQTT 3.1.1: before it ends, the broker is to forget the session.
    is_retiring: bool,
    out: VecDeque<Output>,
}

/// The state of the connection. See the diagram and the table above.
#[derive(Debug)]
enum Link {
    Down { retry_at: Millis, plan: Plan },
    Opening { since: Millis, plan: Plan },
    Greeting { since: Millis, plan: Plan },
    Confirming { up: Up, append: u64 },
    Resuming { up: Up },
    Serving { up: Up },
    Stopped,
}

/// How to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// Decide when the time has come: resume what is in doubt, otherwise clean.
    Decide,
    /// MQTT 3.1.1: connect clean and leave, because a clean session there ends with its connection.
    Purge,
    /// Nothing is in doubt; the broker is to know nothing either.
    Fresh,
    /// Go on where the last connection ended.
    Resume,
}

/// A live connection.
#[derive(Debug, Clone, Copy)]
struct Up {
    window: usize,
    maximum_packet_size: usize,
    keepalive_ms: u64,
    last_sent: Millis,
    ping_sent: Option<Millis>,
    /// Something was acknowledged on this connection.
    has_progressed: bool,
}

#[derive(Debug)]
struct InFlight {
    delivery: Delivery,
    state: Send,
    at: Millis,
}

/// See the diagram "A send".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Send {
    /// It may have been sent on an earlier connection.
    InDoubt,
    /// PUBLISH is on its way on this connection.
    Sent,
    /// PUBREC is here; its `Released` is being made durable.
    Recording,
    /// `Released` is durable; PUBREL is not sent on this connection.
    Releasable,
    /// PUBREL is sent.
    Releasing,
}

#[derive(Debug)]
struct Finishing {
    topic: Arc<str>,
    is_resent: bool,
    end: End,
}

/// How a send ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Done; its release was not durable before, so that a restart would send it again.
    Done,
    /// Done; its release was durable before.
    DoneReleased,
    /// Dead.
    Dead,
    /// Refused: it waits, and its payload is needed again.
    Refused,
}

/// Events to append next.
#[derive(Debug, Default)]
struct Record {
    released: Vec<SendNo>,
    delivered: Vec<(SendNo, Proof)>,
    /// In order, before the others: what changes numbers.
    events: Vec<Event>,
    /// How many of `events` are `Resent`.
    resents: usize,
    settled: Vec<SendNo>,
}

/// What follows when an append is durable.
#[derive(Debug, Default)]
struct Effects {
    number: u64,
    released: Vec<SendNo>,
    settled: Vec<SendNo>,
    resents: usize,
    opened: bool,
}

impl Session {
    /// The session of a lane as its log has it. The first tick connects.
    pub fn new(settings: Settings, start: Start) -> Self {
        let same_session = !start.endpoint.is_empty() && start.endpoint == settings.endpoint;
        let protocol = settings.protocol.or(start.protocol.filter(|_| same_session)).unwrap_or(Protocol::V5);
        let mut session = Session {
            epoch: start.epoch,
            opened: (start.epoch, start.protocol, start.endpoint.clone(), start.doubt),
            protocol,
            link: Link::Down { retry_at: Millis(0), plan: Plan::Decide },
            queue: Queue::default(),
            in_flight: BTreeMap::new(),
            ids: HashMap::new(),
            releases: VecDeque::new(),
            finishing: HashMap::new(),
            topics: HashMap::new(),
            renumbering: VecDeque::new(),
            record: Record::default(),
            appends: VecDeque::new(),
            append_number: 0,
            highest_sent: SendNo(0),
            repeated: RangeSet::new(),
            failures: 0,
            silent_closes: 0,
            resume_deaths: 0,
            is_session_doubtful: false,
            paused_until: Millis(0),
            successes: 0,
            refused_at: HashMap::new(),
            is_draining: false,
            is_retiring: false,
            out: VecDeque::new(),
            settings,
        };
        session.load(start, same_session);
        session
    }

    /// Sorts what the log has into what may be on the wire and what is not.
    fn load(&mut self, start: Start, same_session: bool) {
        let had_session = !start.endpoint.is_empty();
        let released: BTreeSet<SendNo> = start.released.iter().copied().collect();
        let mut collides = false;
        for (delivery, retry_at, sent_through) in start.waiting {
            match sent_through {
                HOLDS_NOTHING_UP => self.queue.requeue(delivery, retry_at),
                through => {
                    self.queue.wait(Delivery { is_resent: false, ..delivery }, retry_at, through);
                }
            }
        }
        let mut candidates = Vec::new();
        for (delivery, sent_through) in start.resent {
            self.queue.hold_for_resent(&delivery.topic, sent_through);
            match delivery.qos {
                Qos::AtMostOnce => self.queue.push_resent(delivery),
                _ => candidates.push(delivery),
            }
        }
        let mut room = start.doubt;
        for delivery in start.fresh {
            let is_released = released.contains(&delivery.send);
            let may_be_sent = is_released || (room > 0 && !self.queue.holds_up(&delivery));
            if !(had_session && may_be_sent) {
                self.queue.offer(delivery);
                continue;
            }
            if !is_released {
                room -= 1;
            }
            match delivery.qos {
                Qos::AtMostOnce => self.queue.offer(delivery),
                _ => candidates.push(delivery),
            }
        }
        for delivery in candidates {
            if !delivery.is_resent {
                self.highest_sent = self.highest_sent.max(delivery.send);
            }
            let state = if released.contains(&delivery.send) { Send::Releasable } else { Send::InDoubt };
            collides |= self.ids.insert(delivery.send.packet_id(), delivery.send).is_some();
            self.count_topic(&delivery);
            self.in_flight.insert(delivery.send, InFlight { delivery, state, at: Millis(0) });
        }
        self.releases = start.released.into_iter().filter(|send| self.in_flight.contains_key(send)).collect();
        if had_session && !same_session {
            self.lose_session(Millis(0), "the connection's server, port or user has changed, or the store was copied or restored");
        } else if collides {
            self.lose_session(Millis(0), "two deliveries that may be in flight have the same packet identifier");
        }
    }

    /// Takes one input; what follows from it comes out of [`Session::next_output`].
    pub fn handle(&mut self, now: Millis, jitter: u32, input: Input) {
        match input {
            Input::Tick => self.on_tick(now, jitter),
            Input::Opened => self.on_opened(now),
            Input::Closed { reason } => self.on_closed(now, jitter, reason),
            Input::Received(packet) => self.on_packet(now, jitter, packet),
            Input::Flushed => self.on_flushed(now),
            Input::Committed { resent } => self.on_committed(now, resent),
            Input::Offer(deliveries) => deliveries.into_iter().for_each(|delivery| self.queue.offer(delivery)),
            Input::OfferWaiting { delivery, retry_at } => self.queue.requeue(delivery, retry_at),
            Input::Drain => self.is_draining = true,
            Input::Retire => (self.is_draining, self.is_retiring) = (true, true),
        }
        self.pump(now);
    }

    /// What is to be done next.
    pub fn next_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Tick`] is needed at the latest.
    pub fn deadline(&self) -> Option<Millis> {
        let retry = self.queue.next_due().filter(|_| self.is_up());
        let link = match &self.link {
            Link::Down { retry_at, .. } => (!self.is_draining || self.is_retiring).then_some(*retry_at),
            Link::Opening { since, .. } | Link::Greeting { since, .. } => Some(since.plus(self.settings.connect_timeout_ms)),
            Link::Confirming { up, .. } => Some(up.next_timer()),
            Link::Resuming { up } | Link::Serving { up } => {
                let ack = self.oldest_unacknowledged().map(|at| at.plus(self.settings.ack_timeout_ms));
                let paused = Some(self.paused_until).filter(|until| until.0 > 0 && self.queue.ready() > 0);
                [Some(up.next_timer()), ack, paused].into_iter().flatten().min()
            }
            Link::Stopped => None,
        };
        [retry, link].into_iter().flatten().min()
    }

    /// How many fresh deliveries are wanted: enough that the window never waits for the disk.
    pub fn wants(&self) -> usize {
        if self.is_draining || self.queue.held() >= HELD_LIMIT || self.queue.ready_bytes() >= READY_BYTES {
            return 0;
        }
        (self.settings.doubt() as usize).saturating_sub(self.queue.ready())
    }

    /// Sent, and not acknowledged.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Refused, and waiting for a retry.
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// When the oldest delivery that is read and not done was accepted.
    pub fn oldest_accepted_at(&self) -> Option<Millis> {
        let in_flight = self.in_flight.values().map(|send| send.delivery.accepted_at).min();
        [in_flight, self.queue.oldest_accepted_at()].into_iter().flatten().min()
    }

    /// Nothing is left in memory that is not done and durable.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
            && self.finishing.is_empty()
            && self.queue.ready() == 0
            && self.queue.held() == 0
            && self.renumbering.is_empty()
            && self.appends.is_empty()
    }

    /// Draining is over: nothing is in flight, everything is recorded, the connection is closed.
    pub fn is_drained(&self) -> bool {
        matches!(self.link, Link::Stopped) && self.appends.is_empty() && self.record.is_empty()
    }

    fn is_up(&self) -> bool {
        matches!(self.link, Link::Resuming { .. } | Link::Serving { .. })
    }

    fn client_id(&self) -> String {
        format!("{}-{}-{}", self.settings.client_id, self.epoch, self.settings.lane.lane)
    }

    fn window(&self) -> usize {
        match &self.link {
            Link::Resuming { up } | Link::Serving { up } | Link::Confirming { up, .. } => up.window,
            _ => 0,
        }
    }

    // ---- the connection ----

    fn on_tick(&mut self, now: Millis, jitter: u32) {
        let timed_out = match &mut self.link {
            Link::Down { retry_at, plan } if *retry_at <= now && (!self.is_draining || self.is_retiring) => {
                let plan = *plan;
                self.link = Link::Opening { since: now, plan };
                self.out.push_back(Output::Open);
                None
            }
            Link::Opening { since, .. } if now.since(*since) >= self.settings.connect_timeout_ms => {
                Some(format!("no connection within {} ms", self.settings.connect_timeout_ms))
            }
            Link::Greeting { since, .. } if now.since(*since) >= self.settings.connect_timeout_ms => {
                Some(format!("the broker did not answer CONNECT within {} ms", self.settings.connect_timeout_ms))
            }
            Link::Confirming { up, .. } | Link::Resuming { up } | Link::Serving { up } => match up.ping_sent {
                Some(sent) if now.since(sent) >= up.ping_timeout_ms() => {
                    Some(format!("the broker did not answer PINGREQ within {} ms", up.ping_timeout_ms()))
                }
                None if now.since(up.last_sent) >= up.keepalive_ms => {
                    up.ping_sent = Some(now);
                    up.last_sent = now;
                    self.out.push_back(Output::Send(Outgoing::PingReq));
                    None
                }
                _ => None,
            },
            _ => None,
        };
        let timed_out = timed_out.or_else(|| {
            let oldest = self.oldest_unacknowledged().filter(|_| self.is_up())?;
            (now.since(oldest) >= self.settings.ack_timeout_ms)
                .then(|| format!("the broker did not acknowledge within {} ms", self.settings.ack_timeout_ms))
        });
        if let Some(reason) = timed_out {
            self.out.push_back(Output::Close);
            self.on_closed(now, jitter, reason);
        }
    }

    fn oldest_unacknowledged(&self) -> Option<Millis> {
        let is_due = |send: &&InFlight| matches!(send.state, Send::Sent | Send::Releasing) && send.delivery.qos != Qos::AtMostOnce;
        self.in_flight.values().filter(is_due).map(|send| send.at).min()
    }

    fn on_opened(&mut self, now: Millis) {
        let Link::Opening { since, plan } = self.link else { return };
        let plan = match plan {
            Plan::Decide if !self.in_flight.is_empty() => Plan::Resume,
            Plan::Decide if self.protocol == Protocol::V311 => Plan::Purge,
            Plan::Decide => Plan::Fresh,
            decided => decided,
        };
        self.link = Link::Greeting { since, plan };
        let clean = match (self.protocol, plan) {
            (_, Plan::Purge) | (Protocol::V5, Plan::Fresh) => true,
            // On 3.1.1 the broker was purged just before; a clean session would end with the connection.
            (Protocol::V311, Plan::Fresh) | (_, Plan::Resume | Plan::Decide) => false,
        };
        let connect = Outgoing::Connect {
            protocol: self.protocol,
            client_id: self.client_id(),
            clean,
            session_expiry_s: self.settings.session_expiry_s,
            keepalive_s: self.settings.keepalive_s,
        };
        self.send(now, connect);
    }

    fn on_connack(&mut self, now: Millis, jitter: u32, session_present: bool, limits: BrokerLimits) {
        let Link::Greeting { plan, .. } = self.link else { return };
        self.silent_closes = 0;
        let up = self.up(now, limits);
        match plan {
            Plan::Purge => {
                self.is_retiring = false;
                self.reconnect_at_once(now, Plan::Fresh, false);
            }
            Plan::Fresh | Plan::Decide if session_present => {
                // MQTT 5.0 §3.2.2.1.1: after Clean Start that can't be. On 3.1.1 another client may have used the id in between.
                self.out.push_back(Output::Close);
                self.on_closed(
                    now,
                    jitter,
                    "the broker kept a session that was to be clean; does another service use this client_id?".into(),
                );
            }
            Plan::Fresh | Plan::Decide => {
                self.out.push_back(Output::Note(Note::Connected { protocol: self.protocol, resumed: false }));
                self.confirm(up);
            }
            Plan::Resume if session_present && self.must_give_up_doubtful() => {
                self.lose_session(now, DOUBTFUL);
                self.reconnect_at_once(now, Plan::Decide, false);
            }
            Plan::Resume if session_present => {
                self.out.push_back(Output::Note(Note::Connected { protocol: self.protocol, resumed: true }));
                self.link = Link::Resuming { up };
                self.resume(now);
            }
            Plan::Resume => {
                self.lose_session(now, "the broker has no session for this lane any more");
                self.reconnect_at_once(now, Plan::Decide, true);
            }
        }
    }

    /// A PUBCOMP of 3.1.1 can't tell "completed" from "never heard of it", so that a doubtful session is of no use for a PUBREL.
    fn must_give_up_doubtful(&self) -> bool {
        self.is_session_doubtful && self.protocol == Protocol::V311 && !self.releases.is_empty()
    }

    fn up(&self, now: Millis, limits: BrokerLimits) -> Up {
        let window = match self.protocol {
            // MQTT 5.0 §3.2.2.3.3: 65,535 if absent.
            Protocol::V5 => self.settings.window_5.min(limits.receive_maximum.unwrap_or(u16::MAX)),
            Protocol::V311 => self.settings.window_3_1_1,
        };
        Up {
            window: usize::from(window.max(1)),
            maximum_packet_size: limits.maximum_packet_size.map_or(usize::MAX, |size| size as usize),
            keepalive_ms: u64::from(limits.keepalive_s.unwrap_or(self.settings.keepalive_s).max(1)) * 1_000,
            last_sent: now,
            ping_sent: None,
            has_progressed: false,
        }
    }

    /// The log has to say which session is used before anything is published in it.
    fn confirm(&mut self, up: Up) {
        self.announce(up.last_sent);
        // It may have been asked for on an earlier connection, and still be under way.
        self.link = match self.appends.iter().rev().find(|append| append.opened) {
            Some(append) => Link::Confirming { up, append: append.number },
            None => Link::Serving { up },
        };
    }

    /// Says in the log which session is used from now on, unless it says so already.
    fn announce(&mut self, now: Millis) {
        let opened = (self.epoch, Some(self.protocol), self.settings.endpoint.clone(), self.settings.doubt());
        if self.opened == opened && self.repeated.is_empty() {
            return;
        }
        self.record.events.push(Event::SessionOpened {
            lane: self.settings.lane.clone(),
            epoch: self.epoch,
            protocol: self.protocol,
            endpoint: self.settings.endpoint.clone(),
            doubt: self.settings.doubt(),
            repeated: std::mem::take(&mut self.repeated).to_ranges(),
            at: now,
        });
        self.opened = opened;
        self.append_now(now, true);
    }

    /// Everything in flight goes again, in its order (MQTT 5.0 §4.4): PUBRELs as the PUBRECs came, then PUBLISH in send order.
    fn resume(&mut self, now: Millis) {
        let releases: Vec<SendNo> = self.releases.iter().copied().collect();
        for send in releases {
            self.release(now, send);
        }
    }

    /// Sends again what may have been sent before, within the window; goes on clean when all of it is settled.
    fn resend_in_doubt(&mut self, now: Millis) {
        let on_the_wire = self.in_flight.values().filter(|send| send.state != Send::InDoubt).count();
        let room = self.window().saturating_sub(on_the_wire);
        let mut qos_before: HashMap<&Arc<str>, Qos> = HashMap::new();
        let mut next = Vec::new();
        for (send, in_flight) in &self.in_flight {
            // What a restart takes for sent may never have been, so the rule about another QoS of the same topic holds here too.
            let delivery = &in_flight.delivery;
            let is_other_qos = *qos_before.entry(&delivery.topic).or_insert(delivery.qos) != delivery.qos;
            if next.len() >= room || is_other_qos {
                break;
            }
            if in_flight.state == Send::InDoubt {
                next.push(*send);
            }
        }
        for send in next {
            if let Some(in_flight) = self.in_flight.get_mut(&send) {
                in_flight.state = Send::Sent;
                in_flight.at = now;
            }
            self.send(now, Outgoing::Publish { send, packet_id: Some(send.packet_id()), dup: true });
        }
        if self.in_flight.is_empty() {
            self.resume_deaths = 0;
            self.is_session_doubtful = false;
            self.reconnect_at_once(now, Plan::Decide, false);
        }
    }

    /// Leaves this connection, which has done its work, for the next.
    fn reconnect_at_once(&mut self, now: Millis, plan: Plan, end_session: bool) {
        self.out.push_back(Output::Send(Outgoing::Disconnect { end_session }));
        self.out.push_back(Output::Close);
        self.out.push_back(Output::Note(Note::Closed));
        self.link = match self.is_draining && self.in_flight.is_empty() {
            // A session of 3.1.1 ends with a clean connection only.
            true if self.is_retiring && self.protocol == Protocol::V311 => Link::Down { retry_at: now, plan: Plan::Purge },
            true => Link::Stopped,
            false => Link::Down { retry_at: now, plan },
        };
    }

    /// The broker's session is gone, or of no use. All that may have arrived is sent again, under another client id. The log says so at
    /// once: a restart that still believed in the old session would take the empty one, which asking for it has made, for the real one.
    fn lose_session(&mut self, now: Millis, reason: &str) {
        self.epoch += 1;
        let in_doubt: Vec<SendNo> = self.in_flight.keys().copied().collect();
        for send in &in_doubt {
            self.repeated.insert(send.0);
        }
        let deliveries: Vec<Delivery> = std::mem::take(&mut self.in_flight).into_values().map(|send| send.delivery).collect();
        for delivery in &deliveries {
            self.ids.remove(&delivery.send.packet_id());
        }
        self.topics.clear();
        self.releases.clear();
        self.record.released.clear();
        self.queue.give_back(deliveries);
        self.resume_deaths = 0;
        self.is_session_doubtful = false;
        self.announce(now);
        self.out.push_back(Output::Note(Note::SessionLost { in_doubt: in_doubt.len() as u64, reason: reason.into() }));
    }

    fn on_closed(&mut self, now: Millis, jitter: u32, reason: String) {
        let (was_greeting, was_resuming, has_progressed) = match &self.link {
            Link::Down { .. } | Link::Stopped => return,
            Link::Opening { .. } => (false, false, false),
            Link::Greeting { plan, .. } => (true, *plan == Plan::Resume, false),
            Link::Resuming { up } => (false, true, up.has_progressed),
            Link::Confirming { up, .. } | Link::Serving { up } => (false, false, up.has_progressed),
        };
        let was_up = self.is_up();
        self.failures = if has_progressed { 1 } else { self.failures.saturating_add(1) };
        let mut unsent = Vec::new();
        for (send, in_flight) in &mut self.in_flight {
            match in_flight.state {
                // At most once: what did not leave was not sent. What left is done by then.
                Send::Sent if in_flight.delivery.qos == Qos::AtMostOnce => unsent.push(*send),
                Send::Sent => in_flight.state = Send::InDoubt,
                Send::Releasing => in_flight.state = Send::Releasable,
                Send::InDoubt | Send::Recording | Send::Releasable => {}
            }
        }
        let unsent: Vec<Delivery> =
            unsent.iter().filter_map(|send| self.in_flight.remove(send)).map(|in_flight| in_flight.delivery).collect();
        for delivery in &unsent {
            self.ids.remove(&delivery.send.packet_id());
            self.uncount_topic(delivery);
        }
        self.queue.give_back(unsent);
        if was_greeting {
            self.is_session_doubtful |= was_resuming;
            self.silent_closes += 1;
            if self.settings.protocol.is_none() && self.in_flight.is_empty() && self.silent_closes >= SILENT_CLOSES {
                self.fall_back();
            }
        }
        if was_resuming && was_up && !has_progressed {
            self.resume_deaths += 1;
            if self.resume_deaths >= RESUME_DEATHS {
                self.lose_session(now, "resuming the session failed again and again; this broker can't resume it");
            }
        } else if has_progressed {
            self.resume_deaths = 0;
        }
        let retry_at = now.plus(self.settings.retry.backoff_ms(self.failures, jitter));
        self.out.push_back(Output::Note(Note::Disconnected { reason, retry_at }));
        self.is_retiring = false;
        self.link = if self.is_draining { Link::Stopped } else { Link::Down { retry_at, plan: Plan::Decide } };
    }

    fn fall_back(&mut self) {
        self.silent_closes = 0;
        self.protocol = match self.protocol {
            Protocol::V5 => Protocol::V311,
            Protocol::V311 => Protocol::V5,
        };
        self.out.push_back(Output::Note(Note::FellBack { protocol: self.protocol }));
    }

    // ---- packets ----

    fn on_packet(&mut self, now: Millis, jitter: u32, packet: Incoming) {
        let outcome = match packet {
            Incoming::ConnAck { session_present, code: 0, limits, .. } => {
                self.on_connack(now, jitter, session_present, limits);
                Ok(())
            }
            Incoming::ConnAck { code, reason, .. } => self.on_connection_refused(now, code, reason),
            Incoming::PubAck(ack) => self.on_puback(now, jitter, ack),
            Incoming::PubRec(ack) => self.on_pubrec(now, jitter, ack),
            Incoming::PubComp(ack) => self.on_pubcomp(now, ack),
            Incoming::PingResp => {
                if let Link::Confirming { up, .. } | Link::Resuming { up } | Link::Serving { up } = &mut self.link {
                    up.ping_sent = None;
                }
                Ok(())
            }
            Incoming::Disconnect { code, reason } => Err(format!("the broker disconnected: {}", describe(code, reason.as_deref()))),
        };
        if let Err(reason) = outcome {
            self.out.push_back(Output::Close);
            self.on_closed(now, jitter, reason);
        }
    }

    fn on_connection_refused(&mut self, now: Millis, reason_code: u8, reason: Option<String>) -> Result<(), String> {
        let speaks_other = reason_code == code::PROTOCOL_VERSION;
        if speaks_other && self.settings.protocol.is_none() {
            if !self.in_flight.is_empty() {
                self.lose_session(now, "the broker no longer speaks the protocol of this session");
            }
            self.fall_back();
        }
        self.silent_closes = 0;
        let hint = match reason_code {
            0x86 | 0x87 => "; check `user` and `password`",
            0x85 => "; check `client_id`",
            code::PROTOCOL_VERSION if self.settings.protocol.is_some() => "; check `protocol`",
            _ => "",
        };
        Err(format!("the broker refused the connection: {}{hint}", describe(reason_code, reason.as_deref())))
    }

    /// The send that a packet id stands for, if it is in flight.
    fn find(&self, packet_id: u16) -> Option<(SendNo, Qos, Send)> {
        let send = *self.ids.get(&packet_id)?;
        let in_flight = self.in_flight.get(&send)?;
        Some((send, in_flight.delivery.qos, in_flight.state))
    }

    fn on_puback(&mut self, now: Millis, jitter: u32, ack: Ack) -> Result<(), String> {
        match self.find(ack.packet_id) {
            Some((send, Qos::AtLeastOnce, Send::Sent)) => {
                self.progress();
                match ack.code {
                    0x00..=0x7f => self.done(send, Proof::PubAck),
                    refused => self.refused(now, jitter, send, refused, ack.reason),
                }
                Ok(())
            }
            Some((_, Qos::ExactlyOnce, _)) => Err(format!("the broker sent PUBACK for packet {} of QoS 2", ack.packet_id)),
            // Nothing of ours: harmless, and a broker may be late.
            _ => Ok(()),
        }
    }

    fn on_pubrec(&mut self, now: Millis, jitter: u32, ack: Ack) -> Result<(), String> {
        match self.find(ack.packet_id) {
            Some((send, Qos::ExactlyOnce, Send::Sent)) => {
                let is_resuming = matches!(self.link, Link::Resuming { .. });
                match ack.code {
                    // In use: by this very delivery, if the session was resumed (MQTT 5.0 §4.3.3).
                    code::ID_IN_USE if !is_resuming => {
                        return Err(format!("the broker has packet {} in use, from a session that should be clean", ack.packet_id));
                    }
                    0x00..=0x7f | code::ID_IN_USE => {
                        self.progress();
                        if let Some(in_flight) = self.in_flight.get_mut(&send) {
                            in_flight.state = Send::Recording;
                        }
                        self.releases.push_back(send);
                        self.record.released.push(send);
                    }
                    refused => {
                        self.progress();
                        self.refused(now, jitter, send, refused, ack.reason);
                    }
                }
                Ok(())
            }
            Some((_, Qos::AtLeastOnce, _)) => Err(format!("the broker sent PUBREC for packet {} of QoS 1", ack.packet_id)),
            _ => Ok(()),
        }
    }

    fn on_pubcomp(&mut self, now: Millis, ack: Ack) -> Result<(), String> {
        match self.find(ack.packet_id) {
            Some((_, Qos::ExactlyOnce, Send::Releasing)) if ack.code == code::ID_NOT_FOUND && self.is_session_doubtful => {
                self.lose_session(now, DOUBTFUL);
                self.reconnect_at_once(now, Plan::Decide, false);
                Ok(())
            }
            Some((send, Qos::ExactlyOnce, Send::Releasing)) => {
                self.progress();
                let proof = if ack.code == code::ID_NOT_FOUND { Proof::PubCompNotFound } else { Proof::PubComp };
                self.done(send, proof);
                Ok(())
            }
            Some((_, Qos::AtLeastOnce, _)) => Err(format!("the broker sent PUBCOMP for packet {} of QoS 1", ack.packet_id)),
            _ => Ok(()),
        }
    }

    fn progress(&mut self) {
        self.failures = 0;
        if let Link::Resuming { up } | Link::Serving { up } = &mut self.link {
            up.has_progressed = true;
        }
    }

    fn on_flushed(&mut self, _now: Millis) {
        if !self.is_up() {
            return;
        }
        let flushed: Vec<SendNo> =
            self.in_flight.iter().filter(|(_, in_flight)| in_flight.delivery.qos == Qos::AtMostOnce).map(|(send, _)| *send).collect();
        for send in flushed {
            self.done(send, Proof::Flushed);
        }
    }

    // ---- sends ----

    fn pump(&mut self, now: Millis) {
        match self.link {
            Link::Resuming { .. } => {
                self.renumber_due(now);
                self.resend_in_doubt(now);
            }
            Link::Serving { .. } => {
                self.renumber_due(now);
                if now >= self.paused_until {
                    self.paused_until = Millis(0);
                }
                if !self.is_draining {
                    while self.send_next(now) {}
                } else if self.in_flight.is_empty() && self.finishing.is_empty() && self.appends.is_empty() && self.record.is_empty() {
                    let end_session = self.queue.ready() == 0 && self.queue.held() == 0;
                    self.reconnect_at_once(now, Plan::Decide, end_session);
                }
            }
            Link::Down { .. } | Link::Opening { .. } | Link::Greeting { .. } if self.is_draining && !self.is_retiring => {
                if !matches!(self.link, Link::Down { .. }) {
                    self.out.push_back(Output::Close);
                }
                self.link = Link::Stopped;
            }
            _ => {}
        }
        self.append_if_needed(now);
    }

    /// Asks for new numbers for what is to be sent again.
    fn renumber_due(&mut self, now: Millis) {
        for delivery in self.queue.take_due(now) {
            let reference = self.reference(&delivery);
            self.record.events.push(Event::Resent { delivery: reference, at: now });
            self.record.resents += 1;
            self.renumbering.push_back(delivery);
        }
    }

    /// Sends the next delivery, if there is one and it may go.
    fn send_next(&mut self, now: Millis) -> bool {
        let Link::Serving { up } = &self.link else { return false };
        let (window, maximum_packet_size) = (up.window, up.maximum_packet_size);
        if now < self.paused_until {
            return false;
        }
        let Some(next) = self.queue.peek() else { return false };
        let (mut in_window, mut bytes) = (0, 0);
        for InFlight { delivery, .. } in self.in_flight.values() {
            in_window += usize::from(delivery.qos != Qos::AtMostOnce);
            bytes += delivery.size;
        }
        let is_window_full = next.qos != Qos::AtMostOnce && in_window >= window;
        let is_too_much = bytes > 0 && bytes + next.size > IN_FLIGHT_BYTES;
        if is_window_full || is_too_much || self.undurable() >= self.settings.doubt() as usize {
            return false;
        }
        // Until a refusal is durable, a restart would not know what it holds up, and take that for what may be on the wire.
        if !next.is_resent && self.finishing.values().any(|finishing| finishing.end == End::Refused) {
            return false;
        }
        // A QoS 0 could overtake a QoS 2: of one topic, another QoS waits until those before are done.
        if self.topics.get(&next.topic).is_some_and(|(qos, _)| *qos != next.qos) {
            return false;
        }
        let packet_id = next.send.packet_id();
        if self.ids.contains_key(&packet_id) {
            return false;
        }
        let Some(delivery) = self.queue.pop() else { return false };
        if delivery.size > maximum_packet_size {
            let message = format!(
                "its packet of {} bytes is larger than the broker's Maximum Packet Size of {maximum_packet_size}; raise that, then requeue it",
                delivery.size
            );
            self.dead(now, delivery, DeadReason { code: "too_large".into(), broker_code: None, message });
            return true;
        }
        let send = delivery.send;
        if !delivery.is_resent {
            self.highest_sent = self.highest_sent.max(send);
        }
        self.ids.insert(packet_id, send);
        self.count_topic(&delivery);
        let packet_id = (delivery.qos != Qos::AtMostOnce).then_some(packet_id);
        self.in_flight.insert(send, InFlight { delivery, state: Send::Sent, at: now });
        // Also what is sent again after a lost session is new to this one: DUP is about one session's packets (MQTT 5.0 §3.3.1.1).
        self.send(now, Outgoing::Publish { send, packet_id, dup: false });
        true
    }

    /// Sends that a restart would not find as released or done.
    fn undurable(&self) -> usize {
        let in_flight = self.in_flight.values().filter(|send| !matches!(send.state, Send::Releasable | Send::Releasing)).count();
        in_flight + self.finishing.values().filter(|finishing| finishing.end != End::DoneReleased).count()
    }

    fn release(&mut self, now: Millis, send: SendNo) {
        let Some(in_flight) = self.in_flight.get_mut(&send) else { return };
        if in_flight.state != Send::Releasable {
            return;
        }
        in_flight.state = Send::Releasing;
        in_flight.at = now;
        self.send(now, Outgoing::PubRel { send, packet_id: send.packet_id() });
    }

    fn done(&mut self, send: SendNo, proof: Proof) {
        let Some(in_flight) = self.in_flight.remove(&send) else { return };
        let delivery = in_flight.delivery;
        self.successes += 1;
        self.refused_at.remove(&delivery.id);
        self.uncount_topic(&delivery);
        if proof != Proof::Flushed && proof != Proof::PubAck {
            self.releases.retain(|released| *released != send);
        }
        self.record.delivered.push((send, proof));
        self.out.push_back(Output::Note(Note::Done { send, qos: delivery.qos, accepted_at: delivery.accepted_at }));
        let end = match in_flight.state {
            Send::Releasable | Send::Releasing => End::DoneReleased,
            Send::InDoubt | Send::Sent | Send::Recording => End::Done,
        };
        self.finish(&delivery, end);
    }

    /// The outcome of a send is known, and will be durable.
    fn finish(&mut self, delivery: &Delivery, end: End) {
        if delivery.is_resent && end != End::Refused {
            // In the same append as the outcome, what was parked behind gets its new numbers: between the two a restart would take it
            // for something that may be on the wire.
            self.queue.resent_done(&delivery.topic);
        }
        self.record.settled.push(delivery.send);
        self.finishing.insert(delivery.send, Finishing { topic: Arc::clone(&delivery.topic), is_resent: delivery.is_resent, end });
    }

    fn refused(&mut self, now: Millis, jitter: u32, send: SendNo, reason_code: u8, reason: Option<String>) {
        let Some(in_flight) = self.in_flight.remove(&send) else { return };
        let delivery = in_flight.delivery;
        self.uncount_topic(&delivery);
        self.ids.remove(&send.packet_id());
        let others_succeed = self.refused_at.get(&delivery.id).is_some_and(|successes| self.successes > *successes);
        self.refused_at.insert(delivery.id, self.successes);
        let (retry_at, attempts) = match retry::judge(&self.settings.retry, reason_code, delivery.attempts, others_succeed, now, jitter) {
            Verdict::Dead(mut verdict) => {
                if let Some(words) = reason {
                    verdict.message.push_str(&format!(" (the broker said: {words})"));
                }
                return self.dead(now, delivery, verdict);
            }
            Verdict::Pause { at } => {
                self.paused_until = at;
                (at, delivery.attempts)
            }
            Verdict::Retry { at, attempts } => (at, attempts),
        };
        let (id, reference) = (delivery.id, self.reference(&delivery));
        self.finish(&delivery, End::Refused);
        let sent_through = self.queue.wait(Delivery { attempts, ..delivery }, retry_at, self.highest_sent);
        self.record.events.push(Event::Refused { delivery: reference, code: reason_code, attempts, retry_at, sent_through, at: now });
        self.out.push_back(Output::Note(Note::Refused { id, send, code: reason_code, reason, retry_at }));
    }

    fn dead(&mut self, now: Millis, delivery: Delivery, reason: DeadReason) {
        self.refused_at.remove(&delivery.id);
        let (id, send, qos) = (delivery.id, delivery.send, delivery.qos);
        self.out.push_back(Output::Note(Note::Dead { id, send, qos, reason: reason.message.clone() }));
        let reference = self.reference(&delivery);
        let attempts = delivery.attempts + u32::from(reason.broker_code.is_some());
        self.record.events.push(Event::DeadLettered { delivery: reference, reason, attempts, at: now });
        self.finish(&delivery, End::Dead);
    }

    fn reference(&self, delivery: &Delivery) -> DeliveryRef {
        DeliveryRef { lane: self.settings.lane.clone(), send: delivery.send, id: delivery.id, located: delivery.located }
    }

    fn count_topic(&mut self, delivery: &Delivery) {
        let entry = self.topics.entry(Arc::clone(&delivery.topic)).or_insert((delivery.qos, 0));
        entry.0 = delivery.qos;
        entry.1 += 1;
    }

    fn uncount_topic(&mut self, delivery: &Delivery) {
        if let Some(entry) = self.topics.get_mut(&delivery.topic) {
            entry.1 -= 1;
            if entry.1 == 0 {
                self.topics.remove(&delivery.topic);
            }
        }
    }

    fn send(&mut self, now: Millis, packet: Outgoing) {
        if let Link::Confirming { up, .. } | Link::Resuming { up } | Link::Serving { up } = &mut self.link {
            up.last_sent = now;
        }
        self.out.push_back(Output::Send(packet));
    }

    // ---- the log ----

    fn append_if_needed(&mut self, now: Millis) {
        if !self.record.is_empty() && self.appends.len() < APPENDS {
            self.append_now(now, false);
        }
    }

    /// Hands everything that is to be recorded to the log.
    fn append_now(&mut self, now: Millis, opened: bool) {
        let record = std::mem::take(&mut self.record);
        let lane = &self.settings.lane;
        let mut events = record.events;
        if !record.released.is_empty() {
            events.push(Event::Released { lane: lane.clone(), sends: record.released.clone() });
        }
        for proof in [Proof::Flushed, Proof::PubAck, Proof::PubComp, Proof::PubCompNotFound] {
            let sends: RangeSet = record.delivered.iter().filter(|(_, by)| *by == proof).map(|(send, _)| send.0).collect();
            if !sends.is_empty() {
                events.push(Event::Delivered { lane: lane.clone(), sends: sends.to_ranges(), proof, at: now });
            }
        }
        self.append_number += 1;
        let number = self.append_number;
        let effects = Effects { number, released: record.released, settled: record.settled, resents: record.resents, opened };
        self.appends.push_back(effects);
        self.out.push_back(Output::Append(events));
    }

    fn on_committed(&mut self, now: Millis, resent: Vec<SendNo>) {
        let Some(effects) = self.appends.pop_front() else { return };
        if let Link::Confirming { up, append } = &self.link
            && *append == effects.number
        {
            self.link = Link::Serving { up: *up };
        }
        debug_assert_eq!(effects.resents, resent.len(), "each Resent has its number");
        for send in resent {
            let Some(delivery) = self.renumbering.pop_front() else { break };
            self.out.push_back(Output::Note(Note::Renumbered { from: delivery.send, to: send }));
            self.queue.push_resent(Delivery { send, is_resent: true, ..delivery });
        }
        if !effects.released.is_empty() {
            self.out.push_back(Output::Note(Note::Releasable { sends: effects.released.clone() }));
        }
        for send in effects.released {
            if let Some(in_flight) = self.in_flight.get_mut(&send)
                && in_flight.state == Send::Recording
            {
                in_flight.state = Send::Releasable;
                if self.is_up() {
                    self.release(now, send);
                }
            }
        }
        let mut settled = Vec::new();
        for send in effects.settled {
            let Some(finished) = self.finishing.remove(&send) else { continue };
            if finished.end == End::Refused {
                continue;
            }
            if self.ids.get(&send.packet_id()) == Some(&send) {
                self.ids.remove(&send.packet_id());
            }
            if finished.is_resent {
                self.queue.release_if_free(&finished.topic);
            }
            settled.push(send);
        }
        if !settled.is_empty() {
            self.out.push_back(Output::Note(Note::Settled { sends: settled }));
        }
    }
}

impl Up {
    /// The broker has as long for a PINGRESP as it has for the client: half the keepalive, 5 to 30 seconds.
    fn ping_timeout_ms(&self) -> u64 {
        (self.keepalive_ms / 2).clamp(5_000, 30_000)
    }

    fn next_timer(&self) -> Millis {
        match self.ping_sent {
            Some(sent) => sent.plus(self.ping_timeout_ms()),
            None => self.last_sent.plus(self.keepalive_ms),
        }
    }
}

impl Record {
    fn is_empty(&self) -> bool {
        self.released.is_empty() && self.delivered.is_empty() && self.events.is_empty()
    }
}

fn describe(reason_code: u8, reason: Option<&str>) -> String {
    match reason {
        Some(words) => format!("0x{reason_code:02x} ({}): {words}", reason_name(reason_code)),
        None => format!("0x{reason_code:02x} ({})", reason_name(reason_code)),
    }
}

/// The stored form of sends, for tests and callers that build events.
pub fn ranges_of(sends: impl IntoIterator<Item = SendNo>) -> Ranges {
    sends.into_iter().map(|send| send.0).collect::<RangeSet>().to_ranges()
}
