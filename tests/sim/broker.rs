//! Brokers, as far as a publisher can tell them apart: what they keep of a session, when they pass a report on, what they answer and when.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidings::core::retry::code;
use tidings::core::session::{Ack, BrokerLimits, Incoming, Outgoing};
use tidings::core::types::{LaneKey, Protocol, Qos, Seq};

use crate::network::Packet;
use crate::story::BrokerStory;
use crate::trace::{say, violated};
use crate::world::{ACK_TIMEOUT_MS, What, World};

pub struct Broker {
    pub story: BrokerStory,
    pub is_up: bool,
    /// It reads nothing before.
    pub stalled_until: u64,
    /// It answers CONNECT with this until then; 0: it closes without a word.
    pub refuses: Option<(u8, u64)>,
    sessions: BTreeMap<String, Session>,
    connected: BTreeMap<u64, Connected>,
}

struct Session {
    lane: LaneKey,
    /// QoS 2: packet identifiers that were received and not released.
    received: BTreeMap<u16, Held>,
    /// The last ones that were released.
    released: VecDeque<(u16, Seq)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    id: Seq,
    /// It was acknowledged, and is not passed on.
    is_dropped: bool,
    /// It has come back, and takes no room.
    is_ghost: bool,
}

struct Connected {
    client: String,
    protocol: Protocol,
    /// The session ends with the connection.
    is_clean: bool,
    /// What counts for the Receive Maximum.
    window: BTreeSet<u16>,
    answered_at: u64,
}

impl Broker {
    pub fn new(story: BrokerStory) -> Self {
        Broker { story, is_up: true, stalled_until: 0, refuses: None, sessions: BTreeMap::new(), connected: BTreeMap::new() }
    }

    pub fn links(&self) -> Vec<u64> {
        self.connected.keys().copied().collect()
    }

    /// How much it remembers of its clients.
    pub fn remembers(&self) -> usize {
        self.sessions.len() + self.sessions.values().map(|session| session.received.len()).sum::<usize>()
    }
}

impl World {
    /// A broker's process ends; its connections with it.
    pub fn broker_dies(&mut self, broker: usize) {
        self.brokers[broker].is_up = false;
        self.brokers[broker].stalled_until = 0;
        let links: Vec<u64> =
            self.links.iter().filter(|(_, link)| link.broker == broker && link.is_open_there).map(|(number, _)| *number).collect();
        let is_silent = self.chance.percent(25);
        for link in links {
            self.broker_closes(link, is_silent);
        }
    }

    /// It comes back, with its sessions.
    pub fn broker_comes_back(&mut self, broker: usize) {
        self.brokers[broker].is_up = true;
        if !self.brokers[broker].story.has_ghosts {
            return;
        }
        let clients: Vec<String> = self.brokers[broker].sessions.keys().cloned().collect();
        for client in clients {
            let session = &self.brokers[broker].sessions[&client];
            let Some((packet_id, id)) = session.released.back().copied() else { continue };
            // With so few packet identifiers it could meet a report that is in doubt, which is nobody's fault.
            if session.received.contains_key(&packet_id) || self.oracle.may_be_in_doubt(&session.lane, packet_id, &self.story) {
                continue;
            }
            if self.chance.percent(70) {
                say!(self, "broker {broker}: packet id {packet_id} of {client} has come back, with delivery {id}");
                let session = self.brokers[broker].sessions.get_mut(&client).expect("it was there");
                session.received.insert(packet_id, Held { id, is_dropped: false, is_ghost: true });
            }
        }
    }

    /// It loses its sessions. Who is connected finds out when it comes again.
    pub fn broker_loses_sessions(&mut self, broker: usize) {
        for link in self.brokers[broker].links() {
            self.broker_closes(link, false);
        }
        let lost: Vec<String> = std::mem::take(&mut self.brokers[broker].sessions).into_keys().collect();
        for client in lost {
            self.oracle.excuse(&client);
        }
    }

    pub fn broker_sees_end(&mut self, number: u64) {
        let Some(broker) = self.links.get(&number).map(|link| link.broker) else { return };
        let known = &mut self.brokers[broker];
        if let Some(connected) = known.connected.remove(&number)
            && connected.is_clean
        {
            known.sessions.remove(&connected.client);
        }
    }

    pub fn broker_reads(&mut self, number: u64, packet: Packet) {
        let broker = self.links[&number].broker;
        say!(self, "broker {broker} reads on connection {number}: {:?} {}", packet.outgoing, named(packet.id));
        match packet.outgoing {
            Outgoing::Connect { protocol, client_id, clean, session_expiry_s, .. } => {
                self.broker_reads_connect(number, broker, protocol, client_id, clean, session_expiry_s);
            }
            // Whatever comes without CONNECT.
            _ if !self.brokers[broker].connected.contains_key(&number) => {}
            Outgoing::Publish { packet_id, qos, .. } => {
                let id = packet.id.unwrap_or_else(|| violated("a PUBLISH of nothing".into()));
                match packet_id {
                    None => self.oracle.arrives(id),
                    Some(packet_id) => self.broker_reads_publish(number, broker, packet_id, qos, id),
                }
            }
            Outgoing::PubRel { packet_id, .. } => self.broker_reads_pubrel(number, broker, packet_id, packet.id),
            Outgoing::PingReq => self.answer(number, Incoming::PingResp),
            Outgoing::Disconnect { end_session } => {
                let known = &mut self.brokers[broker];
                let Some(connected) = known.connected.remove(&number) else { return };
                if connected.is_clean || (end_session && connected.protocol == Protocol::V5) {
                    known.sessions.remove(&connected.client);
                }
            }
        }
    }

    fn broker_reads_connect(&mut self, number: u64, broker: usize, protocol: Protocol, client: String, clean: bool, session_expiry_s: u32) {
        let story = &self.brokers[broker].story;
        let speaks = if protocol == Protocol::V5 { story.speaks_5 } else { story.speaks_3_1_1 };
        let limits = match protocol {
            Protocol::V5 => BrokerLimits { receive_maximum: story.receive_maximum, ..BrokerLimits::default() },
            Protocol::V311 => BrokerLimits::default(),
        };
        let refusal = match self.brokers[broker].refuses {
            _ if !speaks => Some(code::PROTOCOL_VERSION),
            Some((code, until)) if until > self.now => Some(code),
            _ => None,
        };
        let connack = |session_present, code| Incoming::ConnAck { session_present, code, limits, reason: None, assigned_client_id: None };
        if let Some(refusal) = refusal {
            if refusal != 0 {
                self.answer(number, connack(false, refusal));
            }
            return self.broker_closes(number, false);
        }
        // Another connection of the same client is taken over.
        let before = self.brokers[broker].connected.iter().find(|(_, connected)| connected.client == client).map(|(link, _)| *link);
        if let Some(before) = before {
            self.broker_closes(before, false);
        }
        let lane = self.links[&number].lane.clone();
        let known = &mut self.brokers[broker];
        if clean {
            known.sessions.remove(&client);
        }
        let session_present = known.sessions.contains_key(&client);
        if !session_present {
            let session = Session { lane: lane.clone(), received: BTreeMap::new(), released: VecDeque::new() };
            known.sessions.insert(client.clone(), session);
        }
        let is_clean = if protocol == Protocol::V5 { session_expiry_s == 0 } else { clean };
        let connected = Connected { client: client.clone(), protocol, is_clean, window: BTreeSet::new(), answered_at: self.now };
        known.connected.insert(number, connected);
        match session_present {
            true => self.oracle.is_given_its_session(&client),
            false if !clean => self.oracle.is_given_an_empty_session(&client, &lane),
            false => {}
        }
        self.answer(number, connack(session_present, 0));
    }

    fn broker_reads_publish(&mut self, number: u64, broker: usize, packet_id: u16, qos: Qos, id: Seq) {
        let known = &mut self.brokers[broker];
        let connected = known.connected.get_mut(&number).expect("looked at");
        let (protocol, client) = (connected.protocol, connected.client.clone());
        if !connected.window.insert(packet_id) && protocol == Protocol::V5 {
            violated(format!("packet id {packet_id} is used for delivery {id}, and is in use on this connection already"));
        }
        let most = known.story.receive_maximum.map_or(usize::from(u16::MAX), usize::from);
        if protocol == Protocol::V5 && connected.window.len() > most {
            violated(format!("the Receive Maximum of {most} is exceeded with delivery {id}"));
        }
        let session = known.sessions.get_mut(&client).expect("a client has a session");
        let held = session.received.get(&packet_id).copied();
        if let Some(held) = held.filter(|held| held.id != id) {
            violated(format!("packet id {packet_id} stands for delivery {} at the broker, and delivery {id} is sent with it", held.id));
        }
        let mut ack = Ack { packet_id, code: 0, reason: None };
        let refuses = protocol == Protocol::V5 && held.is_none() && !self.is_calm && self.chance.percent(known.story.refusals);
        if refuses {
            self.crash_at_a_bad_moment(broker, 0);
            ack.code = self.chance.pick(&[
                code::NOT_AUTHORIZED,
                code::NOT_AUTHORIZED,
                code::UNSPECIFIED,
                code::IMPLEMENTATION,
                code::QUOTA,
                code::TOPIC_INVALID,
                code::PAYLOAD_INVALID,
            ]);
            self.oracle.is_refused(id);
        } else if qos == Qos::AtLeastOnce {
            self.oracle.arrives(id);
        } else if held.is_some() {
            if known.story.says_in_use && protocol == Protocol::V5 {
                ack.code = code::ID_IN_USE;
            }
        } else {
            let in_flight = session.received.values().filter(|held| !held.is_ghost).count();
            let is_dropped = protocol == Protocol::V311 && in_flight >= known.story.max_inflight;
            session.received.insert(packet_id, Held { id, is_dropped, is_ghost: false });
            if is_dropped {
                say!(self, "broker {broker}: delivery {id} is beyond what may be in flight, and is dropped without a word");
            } else if known.story.delivers_at_publish {
                self.oracle.arrives(id);
            }
        }
        let answer = if qos == Qos::AtLeastOnce { Incoming::PubAck(ack) } else { Incoming::PubRec(ack) };
        self.broker_answers(number, broker, answer);
    }

    fn broker_reads_pubrel(&mut self, number: u64, broker: usize, packet_id: u16, id: Option<Seq>) {
        let known = &mut self.brokers[broker];
        let client = known.connected[&number].client.clone();
        let session = known.sessions.get_mut(&client).expect("a client has a session");
        let held = session.received.remove(&packet_id);
        let mut code = code::ID_NOT_FOUND;
        if let Some(Held { id: held, is_dropped, .. }) = held {
            if Some(held) != id {
                violated(format!("PUBREL of packet id {packet_id} is meant for delivery {id:?} and releases delivery {held}"));
            }
            code = 0;
            session.released.push_back((packet_id, held));
            if session.released.len() > 4 {
                session.released.pop_front();
            }
            if !known.story.delivers_at_publish && !is_dropped {
                self.oracle.arrives(held);
            }
        }
        // MQTT 3.1.1 has no reason codes.
        let code = if known.connected[&number].protocol == Protocol::V5 { code } else { 0 };
        self.broker_answers(number, broker, Incoming::PubComp(Ack { packet_id, code, reason: None }));
    }

    /// An acknowledgement takes its time.
    fn broker_answers(&mut self, number: u64, broker: usize, incoming: Incoming) {
        let story = &self.brokers[broker].story;
        let (is_out_of_order, answer_ms) = (story.out_of_order, story.answer_ms);
        let is_slow = !self.is_calm && self.chance.permille(story.slow_acks);
        let delay = if is_slow { self.chance.within(ACK_TIMEOUT_MS / 4, ACK_TIMEOUT_MS) } else { self.chance.within(0, answer_ms) };
        let mut at = self.now + delay;
        if is_slow {
            self.crash_at_a_bad_moment(broker, delay);
        }
        let Some(connected) = self.brokers[broker].connected.get_mut(&number) else { return };
        // A slow one alone: with all others behind it there would be nothing to see.
        if !is_out_of_order && !is_slow {
            at = at.max(connected.answered_at);
            connected.answered_at = at;
        }
        self.at(at, What::Answer { link: number, incoming });
    }

    pub fn on_answer(&mut self, number: u64, incoming: Incoming) {
        let Some(broker) = self.links.get(&number).map(|link| link.broker) else { return };
        let Some(connected) = self.brokers[broker].connected.get_mut(&number) else { return };
        match &incoming {
            Incoming::PubAck(ack) | Incoming::PubComp(ack) => _ = connected.window.remove(&ack.packet_id),
            Incoming::PubRec(ack) if ack.code >= 0x80 && ack.code != code::ID_IN_USE => _ = connected.window.remove(&ack.packet_id),
            _ => {}
        }
        self.answer(number, incoming);
    }
}

fn named(id: Option<Seq>) -> String {
    id.map(|id| format!("(delivery {id})")).unwrap_or_default()
}
