//! Connections between lanes and brokers: packets under way, in order, each some time; and what goes wrong on the way.
//!
//! A cut takes what was under way with it, but for a prefix in each direction. Of a half-open connection its lane hears nothing more, not even the
//! end.

use std::collections::VecDeque;

use tidings::core::session::{Incoming, Outgoing};
use tidings::core::types::{LaneKey, Seq};

use crate::trace::say;
use crate::world::{What, World};

/// A packet to a broker, with the delivery that a PUBLISH or PUBREL is about.
#[derive(Debug, Clone)]
pub struct Packet {
    pub outgoing: Outgoing,
    pub id: Option<Seq>,
}

pub struct Link {
    pub lane: LaneKey,
    pub broker: usize,
    pub is_open_here: bool,
    pub is_open_there: bool,
    /// The client id of its CONNECT.
    pub client: String,
    outgoing: Vec<Packet>,
    is_write_due: bool,
    /// What has come to a broker that has stalled.
    unread: VecDeque<Packet>,
    /// When the last packet arrives that is under way.
    there_at: u64,
    here_at: u64,
    /// What arrives later is lost.
    lost_there_from: u64,
    lost_here_from: u64,
}

impl World {
    /// A lane opens a connection.
    pub fn connect(&mut self, lane: LaneKey, broker: usize) -> u64 {
        self.last_link += 1;
        let number = self.last_link;
        let link = Link {
            lane,
            broker,
            is_open_here: false,
            is_open_there: false,
            client: String::new(),
            outgoing: Vec::new(),
            is_write_due: false,
            unread: VecDeque::new(),
            there_at: self.now,
            here_at: self.now,
            lost_there_from: u64::MAX,
            lost_here_from: u64::MAX,
        };
        self.links.insert(number, link);
        let delay = 1 + self.network_delay(broker);
        self.after(delay, What::Connected { link: number });
        number
    }

    fn network_delay(&mut self, broker: usize) -> u64 {
        let most = self.brokers[broker].story.network_ms;
        self.chance.within(most / 4, most)
    }

    pub fn on_connected(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if !self.brokers[link.broker].is_up {
            self.links.remove(&number);
            return self.lane_is_closed(number, "connection refused");
        }
        (link.is_open_here, link.is_open_there) = (true, true);
        self.lane_is_connected(number);
    }

    /// A lane writes a packet, which leaves with the next ones.
    pub fn write(&mut self, number: u64, packet: Packet) {
        let Some(link) = self.links.get_mut(&number) else { return };
        link.outgoing.push(packet);
        if !std::mem::replace(&mut link.is_write_due, true) {
            let delay = self.chance.below(2);
            self.after(delay, What::Write { link: number });
        }
    }

    /// What was written leaves. Gives back what of it has no acknowledgement to wait for.
    fn flush(&mut self, number: u64) -> Vec<tidings::core::types::SendNo> {
        let Some(link) = self.links.get_mut(&number) else { return Vec::new() };
        link.is_write_due = false;
        let (packets, broker) = (std::mem::take(&mut link.outgoing), link.broker);
        let mut flushed = Vec::new();
        for packet in packets {
            if let Outgoing::Publish { send, packet_id: None, .. } = packet.outgoing {
                flushed.push(send);
            }
            let delay = self.network_delay(broker);
            let Some(link) = self.links.get_mut(&number) else { break };
            link.there_at = link.there_at.max(self.now + delay);
            let at = link.there_at;
            self.at(at, What::ToBroker { link: number, packet });
        }
        flushed
    }

    pub fn on_write(&mut self, number: u64) {
        if self.links.get(&number).is_some_and(|link| link.is_open_here) {
            let flushed = self.flush(number);
            if !flushed.is_empty() {
                self.lane_has_flushed(number, flushed);
            }
        }
    }

    /// A lane closes its connection, after what it has written.
    pub fn close(&mut self, number: u64) {
        self.flush(number);
        let Some(link) = self.links.get_mut(&number) else { return };
        link.is_open_here = false;
        let at = link.there_at.max(self.now) + 1;
        self.at(at, What::BrokerSeesEnd { link: number });
    }

    /// The service is gone, and with it what it had not written.
    pub fn vanish(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        link.outgoing.clear();
        link.is_open_here = false;
        let at = link.there_at.max(self.now) + 1;
        self.at(at, What::BrokerSeesEnd { link: number });
    }

    /// The network breaks a connection.
    pub fn cut(&mut self, number: u64, is_half_open: bool) {
        let within = self.links.get(&number).map_or(1, |link| 2 * self.brokers[link.broker].story.network_ms + 1);
        let (there, here) = (self.now + self.chance.below(within), self.now + self.chance.below(within));
        let sees = (self.chance.percent(50), there + self.chance.below(20_000));
        let Some(link) = self.links.get_mut(&number) else { return };
        link.lost_there_from = link.lost_there_from.min(there);
        link.lost_here_from = link.lost_here_from.min(here);
        say!(self, "network: connection {number} of lane {} is {}", link.lane, if is_half_open { "half-open" } else { "cut" });
        if !is_half_open {
            self.at(here + 1, What::LaneSeesEnd { link: number });
            self.at(there + 1, What::BrokerSeesEnd { link: number });
        } else if sees.0 {
            // Otherwise only another connection of the same client tells.
            self.at(sees.1, What::BrokerSeesEnd { link: number });
        }
    }

    pub fn on_lane_sees_end(&mut self, number: u64) {
        if let Some(link) = self.links.get_mut(&number).filter(|link| link.is_open_here) {
            link.is_open_here = false;
            self.lane_is_closed(number, "connection reset");
            self.forget_link(number);
        }
    }

    pub fn on_broker_sees_end(&mut self, number: u64) {
        if let Some(link) = self.links.get_mut(&number)
            && std::mem::replace(&mut link.is_open_there, false)
        {
            self.broker_sees_end(number);
        }
        self.forget_link(number);
    }

    fn forget_link(&mut self, number: u64) {
        if self.links.get(&number).is_some_and(|link| !link.is_open_here && !link.is_open_there) {
            self.links.remove(&number);
        }
    }

    pub fn on_to_broker(&mut self, number: u64, packet: Packet) {
        let Some(link) = self.links.get(&number) else { return };
        let until = self.brokers[link.broker].stalled_until;
        if !link.is_open_there || self.now > link.lost_there_from {
            return;
        }
        let Some(link) = self.links.get_mut(&number) else { return };
        if until > self.now || !link.unread.is_empty() {
            link.unread.push_back(packet);
            return self.at(until, What::Unstalled { link: number });
        }
        self.broker_reads(number, packet);
    }

    /// A broker reads on.
    pub fn on_unstalled(&mut self, number: u64) {
        let Some(until) = self.links.get(&number).map(|link| self.brokers[link.broker].stalled_until) else { return };
        if until > self.now {
            return self.at(until, What::Unstalled { link: number });
        }
        while let Some(packet) = self.links.get_mut(&number).filter(|link| link.is_open_there).and_then(|link| link.unread.pop_front()) {
            self.broker_reads(number, packet);
        }
    }

    /// A broker writes a packet.
    pub fn answer(&mut self, number: u64, incoming: Incoming) {
        let Some(broker) = self.links.get(&number).map(|link| link.broker) else { return };
        let delay = self.network_delay(broker);
        let Some(link) = self.links.get_mut(&number).filter(|link| link.is_open_there) else { return };
        link.here_at = link.here_at.max(self.now + delay);
        let at = link.here_at;
        self.at(at, What::ToLane { link: number, incoming });
    }

    pub fn on_to_lane(&mut self, number: u64, incoming: Incoming) {
        if self.links.get(&number).is_some_and(|link| link.is_open_here && self.now <= link.lost_here_from) {
            self.lane_receives(number, incoming);
        }
    }

    /// A broker closes a connection, after what it has written.
    pub fn broker_closes(&mut self, number: u64, is_silent: bool) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if std::mem::replace(&mut link.is_open_there, false) {
            let at = link.here_at.max(self.now) + 1;
            if !is_silent && link.lost_here_from == u64::MAX {
                self.at(at, What::LaneSeesEnd { link: number });
            }
            self.broker_sees_end(number);
        }
    }
}
