//! What the broker says, and what it means for the connection and for each send.

use super::link::{Link, Plan};
use super::packet::{Ack, BrokerLimits, Incoming, Note, Output};
use super::{Send, Session};
use crate::core::event::Proof;
use crate::core::retry::{code, reason_name};
use crate::core::types::{Millis, Protocol, Qos, SendNo};

impl Session {
    /// Packets that arrived together. What follows one that ends the connection is of no connection any more.
    pub(super) fn on_packets(&mut self, now: Millis, jitter: u32, packets: Vec<Incoming>) {
        for packet in packets {
            if matches!(self.link, Link::Down { .. } | Link::Stopped) {
                break;
            }
            self.on_packet(now, jitter, packet);
        }
    }

    pub(super) fn on_packet(&mut self, now: Millis, jitter: u32, packet: Incoming) {
        if let Some(up) = self.link.up_mut() {
            up.last_received = now;
        }
        let outcome = match packet {
            // MQTT 5.0 §3.2.2.3.6 forbids it. Every report is larger, and none is to blame.
            Incoming::ConnAck { code: 0, limits: BrokerLimits { maximum_packet_size: Some(0), .. }, .. } => {
                self.connect_refused = Some(code::PROTOCOL_ERROR);
                Err("the broker announced a Maximum Packet Size of 0, which MQTT 5 forbids; look into its configuration".into())
            }
            Incoming::ConnAck { session_present, code: 0, limits, assigned_client_id, .. } => {
                if let Some(client_id) = assigned_client_id.filter(|assigned| *assigned != self.client_id()) {
                    self.out.push_back(Output::Note(Note::Renamed { client_id }));
                }
                self.on_connack(now, jitter, session_present, limits);
                Ok(())
            }
            Incoming::ConnAck { code, reason, .. } => self.on_connection_refused(now, code, reason),
            Incoming::PubAck(ack) => self.on_puback(now, jitter, ack),
            Incoming::PubRec(ack) => self.on_pubrec(now, jitter, ack),
            Incoming::PubComp(ack) => self.on_pubcomp(now, ack),
            Incoming::PingResp => {
                if let Some(up) = self.link.up_mut() {
                    up.ping_sent = None;
                }
                if let Link::Probing { is_answered, .. } = &mut self.link {
                    *is_answered = true;
                    self.on_probed(now, jitter);
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

    pub(super) fn on_connection_refused(&mut self, now: Millis, reason_code: u8, reason: Option<String>) -> Result<(), String> {
        let speaks_other = reason_code == code::PROTOCOL_VERSION;
        if speaks_other && self.settings.protocol.is_none() {
            if self.way.has_in_flight() {
                self.lose_session(now, "the broker no longer speaks the protocol of this session");
            }
            self.fall_back();
        }
        self.silent_closes = 0;
        self.connect_refused = Some(reason_code);
        let hint = match reason_code {
            0x86 | 0x87 => "; check `user` and `password`",
            0x85 => "; check `client_id`",
            code::PROTOCOL_VERSION if self.settings.protocol.is_some() => "; check `protocol`",
            _ => "",
        };
        Err(format!("the broker refused the connection: {}{hint}", describe(reason_code, reason.as_deref())))
    }

    /// The send that a packet id stands for, if it is in flight.
    pub(super) fn find(&self, packet_id: u16) -> Option<(SendNo, Qos, Send)> {
        let send = *self.ids.get(&packet_id)?;
        let in_flight = self.way.get(send)?;
        Some((send, in_flight.qos, in_flight.state))
    }

    pub(super) fn on_puback(&mut self, now: Millis, jitter: u32, ack: Ack) -> Result<(), String> {
        if let (Protocol::V311, Some((send, Qos::ExactlyOnce, Send::Sent))) = (self.protocol, self.find(ack.packet_id)) {
            self.has_shown_qos_1(send);
        }
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

    pub(super) fn on_pubrec(&mut self, now: Millis, jitter: u32, ack: Ack) -> Result<(), String> {
        match self.find(ack.packet_id) {
            Some((send, Qos::ExactlyOnce, Send::Sent)) => {
                let is_resuming = matches!(self.link, Link::Resuming { .. });
                match ack.code {
                    // In use: by this very delivery, if the session was resumed (MQTT 5.0 §4.3.3). Otherwise by a stranger's, and to go on in this session
                    // would be to take that for this one.
                    code::ID_IN_USE if !is_resuming => {
                        self.lose_session(now, "the broker has packet identifiers in use in a session that should be clean");
                        return Err(format!("the broker has packet {} in use, from a session that should be clean", ack.packet_id));
                    }
                    0x00..=0x7f | code::ID_IN_USE => {
                        self.progress();
                        self.way.change(send, |in_flight| in_flight.state = Send::Recording);
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

    pub(super) fn on_pubcomp(&mut self, now: Millis, ack: Ack) -> Result<(), String> {
        match self.find(ack.packet_id) {
            Some((send, Qos::ExactlyOnce, Send::Releasing))
                if ack.code == code::ID_NOT_FOUND && !self.way.get(send).is_some_and(|known| known.may_be_complete) =>
            {
                self.lose_session(now, "the broker does not know what it has acknowledged before");
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

    pub(super) fn progress(&mut self) {
        self.failures = 0;
        self.has_answered();
        if let Link::Resuming { up } | Link::Serving { up } = &mut self.link {
            up.has_progressed = true;
        }
    }

    pub(super) fn on_flushed(&mut self, sends: Vec<SendNo>) {
        for send in sends {
            if self.way.get(send).is_some_and(|in_flight| in_flight.qos == Qos::AtMostOnce) {
                self.done(send, Proof::Flushed);
            }
        }
    }
}

fn describe(reason_code: u8, reason: Option<&str>) -> String {
    match reason {
        Some(words) => format!("0x{reason_code:02x} ({}): {words}", reason_name(reason_code)),
        None => format!("0x{reason_code:02x} ({})", reason_name(reason_code)),
    }
}
