//! The broker of a cluster, and the way there: it keeps its sessions, hands QoS 2 on at PUBLISH, and ends the connection of whoever had a client id before.

use std::collections::{BTreeMap, VecDeque};

use tidings::core::retry::code;
use tidings::core::session::{Ack, BrokerLimits, Incoming, Outgoing};
use tidings::core::types::{InstanceId, Protocol, Qos};

use super::World;

/// What goes one way or the other on a connection.
#[derive(Debug)]
pub(super) enum Packet {
    Opened,
    Closed,
    ToBroker(Outgoing, Option<u64>),
    ToLane(Incoming),
}

#[derive(Debug, Default)]
pub(super) struct Broker {
    /// Packet identifiers that were received and not released, and the report that each stands for, by client id.
    sessions: BTreeMap<String, BTreeMap<u16, u64>>,
    connections: BTreeMap<u64, Connection>,
    /// By when they arrive, and then in their order.
    wire: BTreeMap<(u64, u64), (u64, bool, Packet)>,
    /// When the last packet of a connection arrives, by direction.
    latest: BTreeMap<(bool, u64), u64>,
    packets: u64,
    pub(super) arrived: Vec<u64>,
}

#[derive(Debug)]
struct Connection {
    node: InstanceId,
    lane: u32,
    client: Option<String>,
    is_clean: bool,
    /// Nothing comes through any more, and nobody says so.
    is_dead: bool,
}

impl World {
    /// A lane makes a connection; it hears of it later.
    pub(super) fn open(&mut self, node: InstanceId, lane: u32, is_dark: bool) -> u64 {
        let number = self.broker.packets + 1;
        let connection = Connection { node, lane, client: None, is_clean: false, is_dead: false };
        self.broker.connections.insert(number, connection);
        self.put(number, false, if is_dark { Packet::Closed } else { Packet::Opened });
        number
    }

    pub(super) fn put(&mut self, connection: u64, to_broker: bool, packet: Packet) {
        self.broker.packets += 1;
        let due = self.now + 1 + self.chance.below(40);
        let latest = self.broker.latest.entry((to_broker, connection)).or_default();
        *latest = due.max(*latest);
        self.broker.wire.insert((*latest, self.broker.packets), (connection, to_broker, packet));
    }

    /// The connections of an instance end, or nothing comes through them any more.
    pub(super) fn lose_connections(&mut self, at: usize, silently: bool) {
        let node = self.nodes[at].id;
        let numbers: Vec<u64> =
            self.broker.connections.iter().filter(|(_, connection)| connection.node == node).map(|(number, _)| *number).collect();
        for number in numbers {
            if silently {
                self.broker.connections.get_mut(&number).expect("it is there").is_dead = true;
            } else {
                self.put(number, true, Packet::Closed);
                self.put(number, false, Packet::Closed);
            }
        }
    }

    pub(super) fn carry_packets(&mut self) {
        while let Some(entry) = self.broker.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (number, to_broker, packet) = entry.remove();
            let Some(connection) = self.broker.connections.get(&number).filter(|connection| !connection.is_dead) else { continue };
            let (node, lane) = (connection.node, connection.lane);
            if to_broker {
                self.broker_reads(number, packet);
            } else if let Some(driver) = self.driver(node, lane).filter(|driver| driver.connection == Some(number)) {
                // It reads it when it goes on.
                driver.socket.push_back(packet);
            }
        }
    }

    /// The broker is done with a connection.
    fn broker_ends(&mut self, number: u64) {
        let Some(connection) = self.broker.connections.get_mut(&number) else { return };
        if let (Some(client), true) = (connection.client.take(), connection.is_clean) {
            self.broker.sessions.remove(&client);
        }
    }

    fn broker_reads(&mut self, number: u64, packet: Packet) {
        let (outgoing, report) = match packet {
            Packet::ToBroker(outgoing, report) => (outgoing, report),
            _ => return self.broker_ends(number),
        };
        if let Outgoing::Connect { client_id, clean, session_expiry_s, .. } = outgoing {
            return self.broker_reads_connect(number, client_id, clean, session_expiry_s);
        }
        // Behind the end of a connection nobody reads.
        let Some(client) = self.broker.connections[&number].client.clone() else { return };
        let held = self.broker.sessions.get_mut(&client).expect("a client has a session");
        let ack = |packet_id, code| Ack { packet_id, code, reason: None };
        let answer = match outgoing {
            Outgoing::Publish { packet_id: Some(packet_id), qos, .. } => {
                let report = report.expect("a PUBLISH is of a report");
                if qos == Qos::AtLeastOnce {
                    self.broker.arrived.push(report);
                    Incoming::PubAck(ack(packet_id, 0))
                } else {
                    let before = held.insert(packet_id, report);
                    assert!(before.is_none_or(|before| before == report), "packet id {packet_id} stands for {before:?} and for {report}");
                    if before.is_none() {
                        self.broker.arrived.push(report);
                    }
                    Incoming::PubRec(ack(packet_id, 0))
                }
            }
            Outgoing::PubRel { packet_id, .. } => {
                let before = held.remove(&packet_id);
                assert!(before.is_none_or(|before| Some(before) == report), "PUBREL of {report:?} releases {before:?}");
                let is_unknown = before.is_none() && self.protocol == Protocol::V5;
                Incoming::PubComp(ack(packet_id, if is_unknown { code::ID_NOT_FOUND } else { 0 }))
            }
            Outgoing::PingReq => Incoming::PingResp,
            Outgoing::Disconnect { end_session } => {
                self.broker_ends(number);
                if end_session && self.protocol == Protocol::V5 {
                    self.broker.sessions.remove(&client);
                }
                return;
            }
            other => panic!("nobody sends {other:?} here"),
        };
        self.put(number, false, Packet::ToLane(answer));
    }

    fn broker_reads_connect(&mut self, number: u64, client: String, clean: bool, session_expiry_s: u32) {
        let others = self.broker.connections.iter().filter(|(_, other)| other.client.as_ref() == Some(&client));
        for other in others.map(|(number, _)| *number).collect::<Vec<u64>>() {
            self.broker_ends(other);
            self.put(other, false, Packet::Closed);
        }
        if clean {
            self.broker.sessions.remove(&client);
        }
        let session_present = self.broker.sessions.contains_key(&client);
        self.broker.sessions.entry(client.clone()).or_default();
        let connection = self.broker.connections.get_mut(&number).expect("it is there");
        connection.client = Some(client);
        connection.is_clean = if self.protocol == Protocol::V5 { session_expiry_s == 0 } else { clean };
        let limits = BrokerLimits::default();
        self.put(
            number,
            false,
            Packet::ToLane(Incoming::ConnAck { session_present, code: 0, limits, reason: None, assigned_client_id: None }),
        );
    }
}

/// What a lane finds in its socket.
pub(super) type Socket = VecDeque<Packet>;
