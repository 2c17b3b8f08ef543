//! The MQTT publisher session of one lane, as a state machine: packets and ticks in, packets and events out. No clock, no socket.
//!
//! # A connection
//! ```text
//!            retry_at            Opened            CONNACK 0             durable
//!   ┌─▶ Down ────────▶ Opening ────────▶ Greeting ──────────▶ Confirming ────────▶ Serving ──┐ drained
//!   │                     │                 │  │ session present                             ▼
//!   │                     │                 │  └───────────▶ Resuming ── all settled ─▶ (Down, at once, clean)
//!   │                     │                 └─ a suspect ──▶ Probing ── it lives ─▶ Confirming or Resuming
//!   └──── closed, refused, timed out ◀──────┴─────────────────┴──────────────────────── Stopped
//! ```
//!
//! | In | On | Do | Then |
//! |---|---|---|---|
//! | Down | `retry_at` has come | open a transport | Opening |
//! | Opening | opened | CONNECT: to begin anew if nothing is in doubt, else to resume | Greeting |
//! | Greeting | CONNACK, to begin anew, no session | `SessionOpened`, where it says something new | Confirming |
//! | Greeting | CONNACK, to begin anew, session present | DISCONNECT | Down, at once, to purge |
//! | Greeting | CONNACK, to purge | DISCONNECT | Down, at once, to begin anew |
//! | Greeting | CONNACK, session present | PUBRELs in PUBREC order, then PUBLISH with DUP in send order | Resuming |
//! | Greeting | CONNACK, no session | next epoch; what is in doubt is sent again and counted | Down, at once |
//! | Greeting | CONNACK, and there is a suspect | PINGREQ, and nothing else | Probing |
//! | Probing | PINGRESP, and it has lived long enough | the suspect is charged | Confirming or Resuming |
//! | Confirming | durable | | Serving |
//! | Resuming | everything is settled | DISCONNECT, which ends the session | Down, at once, to begin anew |
//! | Serving | room in the window | PUBLISH | |
//! | Serving | a preferred server is back, and nothing is in flight any more | DISCONNECT, which ends the session | Down, at once |
//! | any | closed, a timer | | Down, with backoff |
//!
//! On a shared log every connection is claimed before it is used, and a session ends by another one's being used:
//!
//! | In | On | Do | Then |
//! |---|---|---|---|
//! | Down | `retry_at` has come, and no append is under way | open a transport | Opening |
//! | Greeting | CONNACK, session present, and nothing is in doubt | next epoch: `SessionOpened`, DISCONNECT | Down, at once, to purge the one that is left |
//! | Greeting | CONNACK, otherwise | `SessionOpened`, always | Confirming |
//! | Confirming | durable | as from Greeting above | Resuming or Serving |
//! | Resuming | everything is settled, 3.1.1 | next epoch: `SessionOpened`, DISCONNECT | Down, at once, to purge the one that is left |
//!
//! Why, and why that is enough: [`claim`].
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
//!
//! # What can wait
//! A commit costs as much for one outcome as for a hundred, and so [`record`] gathers them; and reading an answer costs as much as reading a hundred ([`hearing`]).
//!
//! # Several servers
//! Tried in their order, the first one first. A session lives at one server: while anything is in doubt, that server is given some time to come
//! back ([`failover`]); only then is its session given up, and what was in doubt is sent again elsewhere and counted.
//!
//! # What the broker can't or won't
//! [`capability`] has what a broker has said about itself, and [`isolation`] finds the report at which it hangs up.
//!
//! # What can't be known
//! A broker that has lost the session makes a new, empty one when it is asked to resume, and says so in its CONNACK. If that very CONNACK is
//! lost, or Tidings is killed before the answer is in the log, the next one says "session present" and the empty session passes for the
//! real one: a PUBREL is then answered with 0x92, as if it had been completed. To take every lost CONNACK for a lost session instead would
//! repeat QoS 2 reports at each restart of a broker that does keep its sessions, because a broker that stops still takes connections which
//! it never answers. So the standard's word is taken: session present means the session.

mod acks;
mod capability;
mod claim;
mod failover;
mod hearing;
mod isolation;
mod link;
mod packet;
mod queue;
mod record;
mod refusals;
mod sends;
mod settings;
mod way;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hearing::Hearing;
use isolation::Isolation;
use link::{Link, Plan};
pub use packet::{Ack, BrokerLimits, Delivery, Incoming, Input, Note, Outgoing, Output};
use queue::{HOLDS_NOTHING_UP, Queue};
use record::{Effects, Record};
use refusals::Refusals;
pub use settings::{Settings, Start};
use way::Way;

use super::keyed::Keyed;
use super::ranges::RangeSet;
use super::types::{Millis, Protocol, Qos, SendNo};

/// A lane stops reading ahead when so many deliveries are refused or parked behind those: bounds its memory. Then it blocks until the oldest retry.
const HELD_LIMIT: usize = if cfg!(test) { 64 } else { 1_024 };

/// And when these have so many bytes.
const HELD_BYTES: usize = 16 << 20;

/// So many bytes may be without a durable outcome at once, or one delivery: bounds what a restart has to load before it can connect.
const DOUBT_BYTES: usize = if cfg!(test) { 60 } else { 16 << 20 };

/// So many bytes of what may be in doubt a start looks at. Twice as many: how large a packet is said to be may change a little from release to release.
const DOUBT_BYTES_READ: usize = 2 * DOUBT_BYTES;

/// A lane stops reading ahead when it has so many bytes ready to be sent: with reports of the largest size its memory stays bounded.
const READY_BYTES: usize = 4 << 20;

/// The session of one lane.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    epoch: u32,
    /// In the session of this epoch nothing was sent, whatever the broker has of it.
    unused: Option<u32>,
    /// A shared log: the broker may still have the session of this epoch, which is not used any more.
    left: Option<u32>,
    /// What the log knows of the newest session: epoch, protocol, endpoint, doubt.
    opened: (u32, Option<Protocol>, String, u32),
    protocol: Protocol,
    /// What the broker's answers have shown of its Maximum QoS, where it can't say so.
    shown_maximum_qos: Option<Qos>,
    /// The server that is used, or tried next.
    server: usize,
    /// How often in a row the server of the session could not be reached while something was in doubt.
    absences: u32,
    /// A more preferred server is back: so nothing new is sent here.
    moving_to: Option<usize>,
    /// When to look for a more preferred server next, and how long to wait after that.
    look: (Millis, u64),
    isolation: Isolation,
    link: Link,
    hearing: Hearing,
    /// Until then answers are not left to wait by a full window.
    hurries_until: Millis,
    queue: Queue,
    way: Way,
    /// Packet ids that are not free, and who has them.
    ids: Keyed<u16, SendNo>,
    /// Sends with a PUBREC, in the order of the PUBRECs.
    releases: VecDeque<SendNo>,
    /// Given their time for a retry, and waiting for their new numbers, in order.
    renumbering: VecDeque<Delivery>,
    record: Record,
    appends: VecDeque<Effects>,
    append_number: u64,
    /// Sends that may have arrived and are to be sent again in the next session.
    repeated: RangeSet,
    failures: u32,
    silent_closes: u32,
    /// The broker has answered CONNECT with a no; the reason code.
    connect_refused: Option<u8>,
    resume_deaths: u32,
    /// So many sessions in a row were lost with something in flight, and nothing was done in between.
    losses: u32,
    /// So often in a row the broker had not forgotten yet what it had just been told to.
    kept_sessions: u32,
    paused_until: Millis,
    /// Deliveries done so far: tells whether others get through.
    successes: u64,
    refusals: Refusals,
    is_draining: bool,
    /// MQTT 3.1.1: before it ends, the broker is to forget the session.
    is_retiring: bool,
    /// Others go first: nothing new is sent.
    gives_way: bool,
    out: VecDeque<Output>,
}

#[derive(Debug)]
struct InFlight {
    delivery: Delivery,
    /// What it is sent at, which may be less than was asked for.
    qos: Qos,
    state: Send,
    at: Millis,
    /// A PUBREL may have left for it on an earlier connection: only then can the broker have completed it already.
    may_be_complete: bool,
}

impl InFlight {
    /// The broker was given it on this connection, and owes an answer.
    fn is_unanswered(&self) -> bool {
        matches!(self.state, Send::Sent | Send::Releasing) && self.qos != Qos::AtMostOnce
    }
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
    size: usize,
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
    /// Expired.
    Expired,
    /// Refused: it waits, and its payload is needed again.
    Refused,
}

/// Of deliveries that may have been sent, in order: those that are to be settled in the resumed session. At QoS 0 there is nothing to settle, and so
/// they are sent when all of that is over; but not where something of their topic may have been sent behind them, which must not come before them now.
fn in_doubt(deliveries: Vec<(Delivery, bool)>) -> Vec<(Delivery, bool)> {
    let mut behind: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut sorted = Vec::with_capacity(deliveries.len());
    for (delivery, may_be_sent) in deliveries.into_iter().rev() {
        let is_acknowledged = delivery.qos != Qos::AtMostOnce;
        if may_be_sent && is_acknowledged {
            behind.insert(Arc::clone(&delivery.topic));
        }
        let is_in_doubt = may_be_sent && (is_acknowledged || behind.contains(&delivery.topic));
        sorted.push((delivery, is_in_doubt));
    }
    sorted.reverse();
    sorted
}

impl Session {
    /// The session of a lane as its log has it. The first tick connects.
    pub fn new(settings: Settings, start: Start) -> Self {
        let server = settings.endpoints.iter().position(|endpoint| *endpoint == start.endpoint);
        let same_session = server.is_some();
        let protocol = settings.protocol.or(start.protocol.filter(|_| same_session)).unwrap_or(Protocol::V5);
        let mut session = Session {
            epoch: start.epoch,
            unused: None,
            left: None,
            opened: (start.epoch, start.protocol, start.endpoint.clone(), start.doubt),
            protocol,
            shown_maximum_qos: None,
            server: server.unwrap_or(0),
            absences: 0,
            moving_to: None,
            look: (Millis(0), settings.failback_ms),
            isolation: Isolation::default(),
            link: Link::Down { retry_at: Millis(0), plan: Plan::Decide },
            hearing: Hearing::default(),
            hurries_until: Millis(0),
            queue: Queue::default(),
            way: Way::default(),
            ids: Keyed::default(),
            releases: VecDeque::new(),
            renumbering: VecDeque::new(),
            record: Record::default(),
            appends: VecDeque::new(),
            append_number: 0,
            repeated: RangeSet::new(),
            failures: 0,
            silent_closes: 0,
            connect_refused: None,
            resume_deaths: 0,
            losses: 0,
            kept_sessions: 0,
            paused_until: Millis(0),
            successes: 0,
            refusals: Refusals::default(),
            is_draining: false,
            is_retiring: false,
            gives_way: false,
            out: VecDeque::new(),
            settings,
        };
        session.load(start, same_session);
        if session.settings.protocol.is_none() && !session.way.has_in_flight() {
            // Nothing holds it to the protocol of before: MQTT 5 is tried first again.
            session.protocol = Protocol::V5;
        }
        if !session.way.has_in_flight() {
            session.server = 0;
        }
        session
    }

    /// Sorts what the log has into what may be on the wire and what is not.
    fn load(&mut self, start: Start, same_session: bool) {
        let (had_session, at) = (!start.endpoint.is_empty(), start.at);
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
        for (delivery, sent_through) in &start.resent {
            self.queue.hold_for_resent(&delivery.topic, *sent_through);
        }
        let resent = start.resent.into_iter().map(|(delivery, _)| (delivery, true));
        for (delivery, is_in_doubt) in in_doubt(resent.collect()) {
            match is_in_doubt {
                true => candidates.push(delivery),
                false => self.queue.push_resent(delivery),
            }
        }
        // The same prefix at every start, however much was read: what is taken for sent is sent, and the next start has to take it for sent, too.
        let (mut room, mut bytes) = (start.doubt, 0);
        let mut ids = BTreeSet::new();
        let mut fresh = Vec::with_capacity(start.fresh.len());
        for delivery in start.fresh {
            let is_released = released.contains(&delivery.send);
            let is_held_up = self.queue.holds_up(&delivery);
            // Sent strictly in order, and each only when its identifier was free: behind the first that has to wait for another's, nothing was. What is
            // held up by its topic has let others by.
            if ids.contains(&self.packet_id(delivery.send)) && !is_released && !is_held_up {
                room = 0;
            }
            let may_be_sent = had_session && (is_released || (room > 0 && bytes <= DOUBT_BYTES_READ && !is_held_up));
            if may_be_sent {
                ids.insert(self.packet_id(delivery.send));
            }
            if may_be_sent && !is_released {
                room -= 1;
                bytes += delivery.size;
            }
            fresh.push((delivery, may_be_sent));
        }
        for (delivery, is_in_doubt) in in_doubt(fresh) {
            match is_in_doubt {
                true => candidates.push(delivery),
                false => self.queue.offer(delivery),
            }
        }
        for delivery in candidates {
            let state = if released.contains(&delivery.send) { Send::Releasable } else { Send::InDoubt };
            collides |= self.ids.insert(self.packet_id(delivery.send), delivery.send).is_some();
            let may_be_complete = state == Send::Releasable;
            let qos = delivery.qos;
            self.way.insert(InFlight { delivery, qos, state, at: Millis(0), may_be_complete });
        }
        self.releases = start.released.into_iter().filter(|send| self.way.contains(*send)).collect();
        if had_session && !same_session {
            self.lose_session(at, "the connection's server, port or user has changed, or the store was copied or restored");
        } else if collides {
            self.lose_session(at, "two deliveries that may be in flight have the same packet identifier");
        }
    }

    /// Takes one input; what follows from it comes out of [`Session::next_output`].
    pub fn handle(&mut self, now: Millis, jitter: u32, input: Input) {
        match input {
            Input::Tick => self.on_tick(now, jitter),
            Input::Opened => self.on_opened(now),
            Input::Closed { reason } => self.on_closed(now, jitter, reason),
            Input::Received(packets) => {
                let before = self.has_heard(now);
                self.on_packets(now, jitter, packets);
                self.has_waited(now, before);
            }
            Input::Flushed(sends) => self.on_flushed(sends),
            Input::LeftLate { since, left } => self.on_left_late(since, left),
            Input::Committed { resent } => self.on_committed(now, resent),
            Input::Offer(deliveries) => deliveries.into_iter().for_each(|delivery| self.queue.offer(delivery)),
            // By the wall clock it may be hours ahead.
            Input::OfferWaiting { delivery, retry_at } => {
                self.queue.requeue(delivery, retry_at.min(now.plus(self.settings.retry.max_ms)));
            }
            Input::Looked { found } => self.on_looked(now, found),
            Input::GiveWay(gives_way) => self.gives_way = gives_way,
            Input::Drain => self.is_draining = true,
            Input::Retire => (self.is_draining, self.is_retiring) = (true, true),
        }
        self.pump(now, jitter);
        self.listen(now);
    }

    /// What is to be done next.
    pub fn next_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Tick`] is needed at the latest.
    pub fn deadline(&self) -> Option<Millis> {
        let retry = self.queue.next_due().filter(|_| self.is_up());
        let record = self.record_due();
        let link = match &self.link {
            Link::Down { retry_at, .. } => (self.may_connect() && (!self.is_draining || self.is_retiring)).then_some(*retry_at),
            Link::Opening { since, .. } | Link::Greeting { since, .. } => Some(since.plus(self.settings.connect_timeout_ms)),
            Link::Confirming { up, .. } => Some(up.next_timer()),
            Link::Probing { until, is_answered: true, .. } => Some(*until),
            Link::Probing { up, .. } => Some(up.next_timer()),
            Link::Resuming { up } | Link::Serving { up } => {
                let ack = self.way.oldest_unanswered_bound().map(|at| at.plus(self.settings.ack_timeout_ms));
                let paused = Some(self.paused_until).filter(|until| until.0 > 0 && self.queue.ready() > 0);
                let look = Some(self.look.0).filter(|_| self.is_second_choice());
                [Some(up.next_timer()), ack, paused, look, self.hears_at()].into_iter().flatten().min()
            }
            Link::Stopped => None,
        };
        [retry, record, link].into_iter().flatten().min()
    }

    /// How many fresh deliveries are wanted: enough that the window never waits for the disk.
    pub fn wants(&self) -> usize {
        let wanted = (self.settings.doubt() as usize).saturating_sub(self.queue.ready());
        match wanted == 0 || self.is_draining || self.queue.ready_bytes() >= READY_BYTES || self.has_stopped_reading() {
            true => 0,
            false => wanted,
        }
    }

    /// How many deliveries have been read, and could be sent.
    pub fn ready(&self) -> usize {
        self.queue.ready()
    }

    /// Sent, and not acknowledged.
    pub fn in_flight(&self) -> usize {
        self.way.in_flight_count()
    }

    /// Refused, and waiting for a retry.
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// When the oldest delivery that is read and not done was accepted.
    pub fn oldest_accepted_at(&self) -> Option<Millis> {
        let in_flight = self.way.in_flight().map(|send| send.delivery.accepted_at).min();
        [in_flight, self.queue.oldest_accepted_at()].into_iter().flatten().min()
    }

    /// Nothing is left in memory that is not done and durable.
    pub fn is_empty(&self) -> bool {
        self.way.is_empty() && self.queue.ready() == 0 && self.queue.held() == 0 && self.renumbering.is_empty() && self.appends.is_empty()
    }

    /// Draining is over: nothing is in flight, everything is recorded, the connection is closed.
    pub fn is_drained(&self) -> bool {
        matches!(self.link, Link::Stopped) && self.appends.is_empty() && self.record.is_empty()
    }

    fn is_up(&self) -> bool {
        matches!(self.link, Link::Resuming { .. } | Link::Serving { .. })
    }

    fn packet_id(&self, send: SendNo) -> u16 {
        send.packet_id(self.settings.packet_ids)
    }

    fn client_id(&self) -> String {
        self.client_id_of(self.epoch)
    }

    fn client_id_of(&self, epoch: u32) -> String {
        format!("{}-{}-{}", self.settings.client_id, epoch, self.settings.lane.lane)
    }

    fn window(&self) -> usize {
        match &self.link {
            Link::Resuming { up } | Link::Serving { up } | Link::Confirming { up, .. } => self.isolation.window(up.window),
            _ => 0,
        }
    }
}
