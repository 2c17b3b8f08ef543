//! An MQTT publisher's connection to Tidings, as a state machine: packets and ticks in, packets and things to store out. No clock, no socket.
//!
//! ```text
//!               CONNECT in order          admitted             DISCONNECT, lost, at fault
//!   Expecting ──────────────────▶ Greeting ────────▶ Open ──────────────────────────────▶ Leaving ── all stored ──▶ Ended
//!       │ too late, something else    │ refused        │ taken over, told to stop            ▲
//!       └─────────────────────────────┴────────────────┴─────────────────────────────────────┘
//! ```
//!
//! | In | On | Do | Then |
//! |---|---|---|---|
//! | Expecting | CONNECT | have it looked at: who is it, what does its session hold | Greeting |
//! | Greeting | admitted | CONNACK | Open |
//! | Open | PUBLISH, PUBREL | into the queue; PUBLISH at QoS 2 that is in the log already only for its PUBREC | |
//! | Open | nothing is being stored | all that is queued, in one piece, to the log | |
//! | Open | stored | PUBACK, PUBREC, PUBCOMP, in the order in which the packets came (MQTT 5.0 §4.6) | |
//! | Open | the store is full | MQTT 5: what can be refused is refused (0x97); all else stays, unacknowledged | wait for room |
//! | Open | PINGREQ, SUBSCRIBE, UNSUBSCRIBE | answered at once | |
//! | any | an end | what was read is stored as far as nobody sends it again | Leaving |
//!
//! # What is acknowledged
//! An [`Ack`] comes out of the machine only after [`Input::Stored`], and whoever writes it needs the log's proof besides.
//!
//! # QoS 2
//! A packet id whose PUBLISH is in the log and whose PUBREL has not come is *received*. The same PUBLISH again gets its PUBREC and is not stored
//! again. The same is what has the same topic and payload: a client that has lost its memory and uses the id for something else, without
//! PUBREL, has something new to say, and no report is to be lost. For a session that outlives its connection the received ids are in the log.

mod batch;
mod close;
mod packet;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

pub use batch::Step;
pub use close::{Close, code};
pub use packet::{Ack, AckKind, Connect, Incoming, Outgoing, Publish, Refused, Will};

use super::topic::Topic;
use super::types::{Millis, Protocol, Qos};

/// So many bytes of topics a connection may keep under aliases: bounds what an MQTT 5 client makes Tidings remember.
const ALIAS_BYTES: usize = 64 << 10;

/// A client id may be so long, in bytes: it is kept with the session.
pub const MAX_CLIENT_ID: usize = 256;

/// What a connection may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the beginning to a whole CONNECT, in milliseconds; and from CONNECT to its answer.
    pub connect_timeout_ms: u64,
    /// PUBLISH packets of QoS 1 and 2 in flight at once, told to MQTT 5 clients (MQTT 5.0 §3.2.2.3.3).
    pub receive_maximum: u16,
    /// Topic aliases, told to MQTT 5 clients (MQTT 5.0 §3.2.2.3.8).
    pub topic_alias_maximum: u16,
    /// A session outlives its connection so long at most, in seconds.
    pub session_expiry_s: u32,
    /// What is read and not stored yet may have so many bytes; then nothing more is read.
    pub read_ahead: usize,
    /// A PUBLISH may have so many bytes, with all that is kept beside it.
    pub largest: usize,
}

/// What happens to a connection.
#[derive(Debug)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A packet arrived.
    Received(Incoming),
    /// The CONNECT is welcome.
    Admitted(Admission),
    /// What was to be stored is durable.
    Stored,
    /// The store is full; nothing was stored.
    Full,
    /// The store has failed: nothing was stored, and nothing will be.
    Failed(Close),
    /// The store has room again, or may have.
    Retry,
    /// It has to end.
    End(Close),
}

/// What a welcome client is told, and what its session holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admission {
    /// There is a session to go on with.
    pub session_present: bool,
    /// The client id that was made for it, if it had none.
    pub assigned: Option<String>,
    /// Received packet ids, each with the hash of what was received; 0 where that is not known.
    pub received: BTreeMap<u16, u64>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Find out who this is and what its session holds, then say [`Input::Admitted`] or [`Input::End`].
    Greet(Box<Connect>),
    /// Write a packet.
    Send(Outgoing),
    /// Make [`Publisher::steps`] durable, all or none, then say [`Input::Stored`] or [`Input::Full`].
    Store,
    /// Write acknowledgements, in this order, with the proof of what was stored.
    Acknowledge(Vec<Answer>),
    /// It is over: write what is left, and close.
    Ended(Box<Ended>),
}

/// The answer to one PUBLISH or PUBREL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is durable.
    Ack(Ack),
    /// It is not taken.
    Refused(Refused),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub close: Close,
    /// To be published, after its delay.
    pub will: Option<Will>,
    /// How long the session is to be kept, in seconds; 0 not at all.
    pub session_expiry_s: u32,
}

/// A publisher's connection.
#[derive(Debug)]
pub struct Publisher {
    limits: Limits,
    state: State,
    out: VecDeque<Output>,
}

#[derive(Debug)]
enum State {
    Expecting { until: Millis },
    Greeting { connect: Box<Connect>, until: Millis },
    Open(Box<Open>),
    Ended,
}

/// A connection that is welcome. With `leaving` set it is on its way out.
#[derive(Debug)]
struct Open {
    protocol: Protocol,
    session_expiry_s: u32,
    /// The log knows the session: what is received in it has to be there.
    lasts: bool,
    keepalive_ms: u64,
    last_received: Millis,
    will: Option<Will>,
    aliases: HashMap<u16, String>,
    alias_bytes: usize,
    /// What came and is not being stored yet, in order.
    queue: VecDeque<batch::Held>,
    queued_bytes: usize,
    /// What is being stored.
    steps: Vec<Step>,
    step_bytes: usize,
    received: BTreeMap<u16, u64>,
    /// PUBLISH packets of QoS 1 and 2 that the client waits for.
    in_flight: usize,
    /// The store is full; wait for room.
    is_held: bool,
    leaving: Option<Close>,
}

impl Publisher {
    /// A connection that has just been made.
    pub fn new(limits: Limits, now: Millis) -> Self {
        Publisher { limits, state: State::Expecting { until: now.plus(limits.connect_timeout_ms) }, out: VecDeque::new() }
    }

    /// Takes one input; what follows from it comes out of [`Publisher::next_output`].
    pub fn handle(&mut self, now: Millis, input: Input) {
        match input {
            Input::Tick => self.on_tick(now),
            Input::Received(packet) => self.on_packet(now, packet),
            Input::Admitted(admission) => self.on_admitted(now, admission),
            Input::Stored => self.on_stored(),
            Input::Full => self.on_full(),
            Input::Failed(close) => {
                if let State::Open(open) = &mut self.state {
                    open.steps.clear();
                    open.queue.clear();
                }
                self.end(close);
            }
            Input::Retry => {
                if let State::Open(open) = &mut self.state {
                    open.is_held = false;
                }
            }
            Input::End(close) => self.end(close),
        }
        self.pump();
    }

    /// What is to be done next.
    pub fn next_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// Gives back outputs that were taken out and not done, in their order.
    pub fn put_back(&mut self, outputs: Vec<Output>) {
        for output in outputs.into_iter().rev() {
            self.out.push_front(output);
        }
    }

    /// What is being stored.
    pub fn steps(&self) -> &[Step] {
        match &self.state {
            State::Open(open) => &open.steps,
            _ => &[],
        }
    }

    /// Whether a further packet may be given now.
    pub fn wants_packets(&self) -> bool {
        match &self.state {
            State::Expecting { .. } => true,
            State::Greeting { .. } | State::Ended => false,
            State::Open(open) => open.leaving.is_none() && open.held_bytes() < self.limits.read_ahead,
        }
    }

    /// Whether it waits for the store to have room.
    pub fn is_held(&self) -> bool {
        matches!(&self.state, State::Open(open) if open.is_held)
    }

    /// So many bytes are held: read, and not durable.
    pub fn held_bytes(&self) -> usize {
        match &self.state {
            State::Open(open) => open.held_bytes(),
            _ => 0,
        }
    }

    /// So many packets are held: read, and not durable.
    pub fn held(&self) -> usize {
        match &self.state {
            State::Open(open) => open.queue.len() + open.steps.len(),
            _ => 0,
        }
    }

    /// Its packets were not read for a while: its silence was not its own.
    pub fn excuse(&mut self, now: Millis) {
        if let State::Open(open) = &mut self.state {
            open.last_received = now;
        }
    }

    /// So many packet ids are received.
    pub fn received(&self) -> usize {
        match &self.state {
            State::Open(open) => open.received.len(),
            _ => 0,
        }
    }

    /// When [`Input::Tick`] is needed at the latest.
    pub fn deadline(&self) -> Option<Millis> {
        match &self.state {
            State::Expecting { until } | State::Greeting { until, .. } => Some(*until),
            // Whose packets are not read can't be blamed for silence.
            State::Open(open) if open.leaving.is_none() && open.keepalive_ms > 0 && self.wants_packets() => {
                Some(open.last_received.plus(open.keepalive_ms))
            }
            State::Open(_) | State::Ended => None,
        }
    }

    fn on_tick(&mut self, now: Millis) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let close = match &self.state {
            State::Expecting { .. } => Close::new("connect_timeout", 0, "no CONNECT came in time"),
            State::Greeting { .. } => Close::new("greeting_timeout", code::BUSY, "what its session holds could not be found out in time"),
            _ => Close::new("keepalive_timeout", code::KEEP_ALIVE, "nothing came for one and a half times its keepalive"),
        };
        self.end(close);
    }

    fn on_packet(&mut self, now: Millis, packet: Incoming) {
        match (&mut self.state, packet) {
            (State::Expecting { .. }, Incoming::Connect(connect)) => self.on_connect(now, connect),
            (State::Expecting { .. }, _) => self.end(Close::new("no_connect", 0, "the first packet was not CONNECT")),
            (State::Greeting { .. } | State::Ended, _) => {}
            (State::Open(open), packet) => {
                open.last_received = now;
                if open.leaving.is_none() {
                    self.on_open_packet(packet);
                }
            }
        }
    }

    fn on_connect(&mut self, now: Millis, connect: Box<Connect>) {
        let will_topic = connect.will.as_ref().map(|will| Topic::new(will.publish.topic.as_str()));
        let refusal = if connect.wants_authentication {
            Some(Close::new(
                "authentication_method",
                code::AUTHENTICATION,
                "it wants an authentication method; only user and password are served",
            ))
        } else if connect.client_id.is_empty() && !connect.clean && connect.protocol == Protocol::V311 {
            // MQTT 3.1.1 §3.1.3.1
            Some(Close::new("client_id_empty", code::CLIENT_ID, "a session that is to last needs a client id"))
        } else if connect.client_id.len() > MAX_CLIENT_ID {
            Some(Close::new("client_id_too_long", code::CLIENT_ID, format!("a client id has at most {MAX_CLIENT_ID} bytes here")))
        } else if connect.client_id.contains('\0') {
            Some(Close::malformed("the client id contains U+0000"))
        } else {
            will_topic.and_then(Result::err).map(|error| Close::topic(&error))
        };
        self.state = State::Greeting { until: now.plus(self.limits.connect_timeout_ms), connect: connect.clone() };
        match refusal {
            Some(close) => self.end(close),
            None => self.out.push_back(Output::Greet(connect)),
        }
    }

    fn on_admitted(&mut self, now: Millis, admission: Admission) {
        let State::Greeting { connect, .. } = &self.state else { return };
        let session_expiry_s = connect.session_expiry_s.min(self.limits.session_expiry_s);
        let open = Open {
            protocol: connect.protocol,
            session_expiry_s,
            lasts: session_expiry_s > 0 || admission.session_present,
            // MQTT 5.0 §3.1.2.10: one and a half times.
            keepalive_ms: u64::from(connect.keepalive_s) * 1_500,
            last_received: now,
            will: connect.will.clone(),
            aliases: HashMap::new(),
            alias_bytes: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            steps: Vec::new(),
            step_bytes: 0,
            received: admission.received,
            in_flight: 0,
            is_held: false,
            leaving: None,
        };
        self.out.push_back(Output::Send(Outgoing::Welcome {
            session_present: admission.session_present,
            assigned: admission.assigned,
            session_expiry_s: (session_expiry_s != connect.session_expiry_s).then_some(session_expiry_s),
        }));
        self.state = State::Open(Box::new(open));
    }

    fn on_open_packet(&mut self, packet: Incoming) {
        let answer = match packet {
            Incoming::Publish(publish) => return self.on_publish(*publish),
            Incoming::PubRel { packet_id } => return self.on_pubrel(packet_id),
            Incoming::PingReq => Outgoing::PingResp,
            Incoming::Subscribe { packet_id, filters } => Outgoing::SubAck { packet_id, filters },
            Incoming::Unsubscribe { packet_id, filters } => Outgoing::UnsubAck { packet_id, filters },
            Incoming::Disconnect { code, session_expiry_s } => return self.on_disconnect(code, session_expiry_s),
            Incoming::Connect(_) => return self.end(Close::protocol("a second CONNECT came")),
            Incoming::Unexpected(name) => return self.end(Close::protocol(format!("{name} came, which a publisher does not send"))),
        };
        self.out.push_back(Output::Send(answer));
    }

    fn on_disconnect(&mut self, code: u8, session_expiry_s: Option<u32>) {
        let State::Open(open) = &mut self.state else { return };
        match session_expiry_s {
            // MQTT 5.0 §3.14.2.2.2
            Some(later) if open.session_expiry_s == 0 && later > 0 => {
                return self.end(Close::protocol("DISCONNECT wants to keep a session that CONNECT said is not to last"));
            }
            Some(expiry) => open.session_expiry_s = expiry.min(self.limits.session_expiry_s),
            None => {}
        }
        if code == 0 {
            open.will = None;
        }
        self.end(Close::new("disconnected", 0, "the client disconnected"));
    }

    /// The connection is to end. What was read is still stored.
    fn end(&mut self, close: Close) {
        match &mut self.state {
            State::Ended => {}
            State::Expecting { .. } => self.ended(close, None, 0),
            State::Greeting { .. } => {
                // Whoever is not let in has no will, and changes no session.
                if close.reason_code != 0 {
                    self.out.push_back(Output::Send(Outgoing::Refusal { code: close.connack_code() }));
                }
                self.ended(close, None, 0);
            }
            State::Open(open) => {
                if open.leaving.is_some() {
                    return;
                }
                match close.code {
                    // The client did nothing wrong, and finds its session again.
                    "stopping" => open.will = None,
                    // The new connection goes on with the session, and the client with it (MQTT 5.0 §3.1.3.2.2).
                    "taken_over" if open.will.as_ref().is_some_and(|will| will.delay_s > 0) => open.will = None,
                    _ => {}
                }
                if close.code != "disconnected" && close.code != "stopping" {
                    // Nobody has been told that these are taken, and whoever sent them sends them again: kept, they would come twice.
                    open.drop_unacknowledged();
                }
                open.leaving = Some(close);
                if open.is_held {
                    open.give_up_what_waits();
                }
            }
        }
    }

    fn ended(&mut self, close: Close, will: Option<Will>, session_expiry_s: u32) {
        self.state = State::Ended;
        self.out.push_back(Output::Ended(Box::new(Ended { close, will, session_expiry_s })));
    }

    /// Stores what can be stored, and ends what has nothing more to do.
    fn pump(&mut self) {
        let State::Open(open) = &mut self.state else { return };
        if !open.steps.is_empty() {
            return;
        }
        if open.form_batch() {
            self.out.push_back(Output::Store);
            return;
        }
        if let Some(close) = open.leaving.take_if(|_| open.queue.is_empty()) {
            let (will, expiry, protocol) = (open.will.take(), open.session_expiry_s, open.protocol);
            if protocol == Protocol::V5 && close.reason_code != 0 {
                self.out.push_back(Output::Send(Outgoing::Disconnect { code: close.reason_code }));
            }
            self.ended(close, will, expiry);
        }
    }
}

impl Open {
    fn held_bytes(&self) -> usize {
        self.queued_bytes + self.step_bytes
    }

    fn is_5(&self) -> bool {
        self.protocol == Protocol::V5
    }
}

/// The acknowledgement that a PUBLISH waits for.
fn ack_of(qos: Qos) -> Option<AckKind> {
    match qos {
        Qos::AtMostOnce => None,
        Qos::AtLeastOnce => Some(AckKind::PubAck),
        Qos::ExactlyOnce => Some(AckKind::PubRec),
    }
}
