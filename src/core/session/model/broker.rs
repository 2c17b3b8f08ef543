//! The model's brokers: what they take, keep, refuse, forget and deliver.

use super::*;

impl World {
    pub(in crate::core::session) fn broker(&mut self) -> &mut BTreeMap<String, BrokerSession> {
        &mut self.brokers[self.at]
    }

    pub(in crate::core::session) fn hang_up(&mut self) {
        // What was written before a close is flushed; the broker reads it.
        self.is_breaking = true;
        self.broker_reads_some(self.to_broker.len());
        self.is_breaking = false;
        self.open = false;
        self.to_client.clear();
        self.broker_sees_close();
    }

    pub(in crate::core::session) fn broker_sees_close(&mut self) {
        if let Some((client, true)) = self.client.take() {
            self.broker().remove(&client);
        }
        self.in_window.clear();
    }

    /// A server goes away, or comes back. In the end the last one is there.
    pub(in crate::core::session) fn come_and_go(&mut self) {
        let server = self.random.below(self.story.servers as u64) as usize;
        self.is_away[server] = !self.is_away[server];
        if self.is_away[server] && self.at == server && self.open && !self.must_hear {
            self.cut();
        }
    }

    pub(in crate::core::session) fn broker_reads_some(&mut self, packets: usize) {
        if self.is_ended {
            return self.to_broker.clear();
        }
        for _ in 0..packets {
            let (packet, id) = self.to_broker.pop_front().unwrap();
            self.broker_reads(packet, id);
            if std::mem::take(&mut self.is_dying) {
                return self.to_broker.clear();
            }
        }
    }

    /// Tidings ends a session. It must know what became of everything in it, or have said that it does not.
    pub(in crate::core::session) fn end_session(&mut self, client: &str) {
        let Some(session) = self.broker().remove(client) else { return };
        // What is on its way to the disk is not said: a restart would ask for this session, and take an empty one for it.
        let dead = self.dead();
        let excused = |id: &Seq| self.repeated.contains(id) || dead.contains(id);
        assert!(self.has_broker_forgotten || session.received.values().all(excused), "{client} was ended with {session:?} in it");
    }

    pub(in crate::core::session) fn broker_reads(&mut self, packet: Outgoing, id: Option<Seq>) {
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
                self.end_earlier_connection(&client_id);
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
                    if !self.is_owner() && self.story.servers > 1 {
                        self.strays.insert(id);
                    }
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

    pub(in crate::core::session) fn arrive(&mut self, id: Seq) {
        self.arrived.push(id);
    }
}
