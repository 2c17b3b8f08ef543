//! From packets to what is stored in one piece, and from there to acknowledgements.

use std::collections::{HashMap, HashSet, VecDeque};

use super::close::{Close, code};
use super::packet::{Ack, AckKind, Outgoing, Publish, Refused};
use super::{ALIAS_BYTES, Answer, Open, Output, Publisher, State, ack_of};
use crate::core::topic::{MAX_TOPIC, Topic};
use crate::core::types::Qos;

/// One piece has so many packets at most: as many events as a commit takes.
const PIECE_STEPS: usize = 1_024;

/// And so many bytes, or one packet.
const PIECE_BYTES: usize = 1 << 20;

/// A packet that waits to be stored.
#[derive(Debug)]
pub(super) enum Held {
    Publish(Publish),
    /// A PUBLISH of QoS 2 that was found to be in the log already.
    Again {
        packet_id: u16,
    },
    Release {
        packet_id: u16,
    },
    Refused(Refused),
}

/// What one packet means for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Store it.
    Store {
        /// What came.
        publish: Publish,
        /// QoS 2 of a session that outlives its connection: its packet id is to be remembered with it.
        is_remembered: bool,
    },
    /// QoS 2: it is in the log already.
    Again {
        /// Packet identifier.
        packet_id: u16,
    },
    /// PUBREL.
    Release {
        /// Packet identifier.
        packet_id: u16,
        /// It was received, and of a session that outlives its connection: the log has to forget it.
        is_remembered: bool,
        /// It was received.
        is_known: bool,
    },
    /// It is not taken; its answer keeps its place among the others.
    Refuse(Refused),
}

impl Held {
    fn weight(&self) -> usize {
        match self {
            Held::Publish(publish) => publish.weight(),
            Held::Again { .. } | Held::Release { .. } | Held::Refused(_) => 64,
        }
    }
}

impl Publisher {
    pub(super) fn on_publish(&mut self, mut publish: Publish) {
        let State::Open(open) = &mut self.state else { return };
        if publish.topic.is_empty() && publish.alias.is_none() && open.is_5() {
            // MQTT 5.0 §3.3.2.1
            return self.end(Close::protocol("a PUBLISH has neither a topic nor an alias"));
        }
        if let Err(close) = open.resolve_alias(&mut publish, self.limits.topic_alias_maximum) {
            return self.end(close);
        }
        if publish.qos != Qos::AtMostOnce {
            if open.is_5() && open.in_flight >= usize::from(self.limits.receive_maximum) {
                let message = format!("more than {} PUBLISH packets are in flight", self.limits.receive_maximum);
                return self.end(Close::new("receive_maximum", code::RECEIVE_MAXIMUM, message));
            }
            open.in_flight += 1;
        }
        let wrong = match Topic::new(publish.topic.as_str()) {
            Err(error) => Some(Close::topic(&error)),
            Ok(_) if publish.weight() > self.limits.largest => Some(Close::new(
                "too_large",
                code::TOO_LARGE,
                format!("a PUBLISH of {} bytes is larger than the store takes", publish.weight()),
            )),
            Ok(_) => None,
        };
        match (wrong, ack_of(publish.qos)) {
            (None, _) => open.hold(Held::Publish(publish)),
            (Some(close), Some(kind)) if open.is_5() => {
                // PUBACK knows no 0x95 (MQTT 5.0 §3.4.2.1), and 0x97 would say that it may be taken another time.
                let code = if close.reason_code == code::TOPIC { code::TOPIC } else { code::NOT_SERVED };
                open.hold(Held::Refused(Refused { kind, packet_id: publish.packet_id, code }));
            }
            (Some(close), _) => self.end(close),
        }
    }

    pub(super) fn on_pubrel(&mut self, packet_id: u16) {
        if let State::Open(open) = &mut self.state {
            open.hold(Held::Release { packet_id });
        }
    }

    pub(super) fn on_stored(&mut self) {
        let State::Open(open) = &mut self.state else { return };
        let answers = open.settle();
        if !answers.is_empty() {
            self.out.push_back(Output::Acknowledge(answers));
        }
    }

    pub(super) fn on_full(&mut self) {
        let State::Open(open) = &mut self.state else { return };
        open.is_held = true;
        for refused in open.take_back() {
            self.out.push_back(Output::Send(Outgoing::Refused(refused)));
        }
        open.give_up_what_waits();
    }
}

impl Open {
    fn hold(&mut self, held: Held) {
        self.queued_bytes += held.weight();
        self.queue.push_back(held);
    }

    /// Gives the topic its name, and remembers it under its alias (MQTT 5.0 §3.3.2.3.4).
    fn resolve_alias(&mut self, publish: &mut Publish, most: u16) -> Result<(), Close> {
        let Some(alias) = publish.alias.take() else { return Ok(()) };
        let invalid = |message: String| Close::new("topic_alias", code::TOPIC_ALIAS, message);
        if alias == 0 || alias > most {
            return Err(invalid(format!("topic alias {alias} is not within 1 to {most}")));
        }
        if publish.topic.is_empty() {
            let known = self.aliases.get(&alias).ok_or_else(|| Close::protocol(format!("topic alias {alias} stands for nothing")))?;
            publish.topic.clone_from(known);
            return Ok(());
        }
        let before = self.aliases.get(&alias).map_or(0, String::len);
        let bytes = self.alias_bytes - before + publish.topic.len();
        if bytes > ALIAS_BYTES.max(MAX_TOPIC) {
            return Err(Close::new("topic_alias", code::QUOTA, format!("topics under aliases have more than {ALIAS_BYTES} bytes")));
        }
        self.alias_bytes = bytes;
        self.aliases.insert(alias, publish.topic.clone());
        Ok(())
    }

    /// Takes from the queue what is stored next. False if there is nothing, or no room for it.
    ///
    /// While the store is full, what ends an exchange (PUBREL) is stored all the same: it takes little, and the log has a reserve for it.
    pub(super) fn form_batch(&mut self) -> bool {
        // What the packets before, of the same piece, make of an id.
        let mut received: HashMap<u16, Option<u64>> = HashMap::new();
        let (mut kept, mut kept_ids) = (VecDeque::new(), HashSet::new());
        while self.steps.len() < PIECE_STEPS && self.step_bytes < PIECE_BYTES {
            let Some(held) = self.queue.pop_front() else { break };
            if self.is_held && self.has_to_wait(&held, &kept_ids) {
                if let Held::Publish(publish) = &held {
                    kept_ids.insert(publish.packet_id);
                }
                kept.push_back(held);
                continue;
            }
            let weight = held.weight();
            self.queued_bytes -= weight;
            self.step_bytes += weight;
            let step = self.step_for(held, &mut received);
            self.steps.push(step);
        }
        kept.append(&mut self.queue);
        self.queue = kept;
        !self.steps.is_empty()
    }

    /// While the store is full: whether this has to wait for room.
    fn has_to_wait(&self, held: &Held, kept_ids: &HashSet<u16>) -> bool {
        match held {
            // An MQTT 5 client is told.
            Held::Publish(publish) => publish.qos == Qos::AtMostOnce || !self.is_5(),
            Held::Release { packet_id } => kept_ids.contains(packet_id),
            Held::Again { .. } | Held::Refused(_) => false,
        }
    }

    fn step_for(&self, held: Held, received: &mut HashMap<u16, Option<u64>>) -> Step {
        let known = |received: &HashMap<u16, Option<u64>>, id: u16| match received.get(&id) {
            Some(now) => *now,
            None => self.received.get(&id).copied(),
        };
        let lasts = self.lasts;
        match held {
            Held::Publish(publish) if publish.qos == Qos::ExactlyOnce => {
                let (packet_id, content) = (publish.packet_id, publish.content());
                match known(received, packet_id) {
                    Some(before) if before == content || before == 0 => Step::Again { packet_id },
                    _ if self.is_held => Step::Refuse(Refused { kind: AckKind::PubRec, packet_id, code: code::QUOTA }),
                    _ => {
                        received.insert(packet_id, Some(content));
                        Step::Store { publish, is_remembered: lasts }
                    }
                }
            }
            Held::Publish(publish) if self.is_held => {
                Step::Refuse(Refused { kind: AckKind::PubAck, packet_id: publish.packet_id, code: code::QUOTA })
            }
            Held::Publish(publish) => Step::Store { publish, is_remembered: false },
            Held::Again { packet_id } => Step::Again { packet_id },
            Held::Release { packet_id } => {
                let is_known = known(received, packet_id).is_some();
                received.insert(packet_id, None);
                Step::Release { packet_id, is_remembered: lasts && is_known, is_known }
            }
            Held::Refused(refused) => Step::Refuse(refused),
        }
    }

    /// What is stored is durable: what is received now, and the answers.
    pub(super) fn settle(&mut self) -> Vec<Answer> {
        self.step_bytes = 0;
        let mut answers = Vec::with_capacity(self.steps.len());
        for step in std::mem::take(&mut self.steps) {
            let answer = match step {
                Step::Store { publish, .. } => {
                    let Some(kind) = ack_of(publish.qos) else { continue };
                    if kind == AckKind::PubRec {
                        self.received.insert(publish.packet_id, publish.content());
                    }
                    Answer::Ack(Ack { kind, packet_id: publish.packet_id, is_unknown: false })
                }
                Step::Again { packet_id } => Answer::Ack(Ack { kind: AckKind::PubRec, packet_id, is_unknown: false }),
                Step::Release { packet_id, is_known, .. } => {
                    self.received.remove(&packet_id);
                    Answer::Ack(Ack { kind: AckKind::PubComp, packet_id, is_unknown: !is_known })
                }
                Step::Refuse(refused) => Answer::Refused(refused),
            };
            let is_over = !matches!(answer, Answer::Ack(Ack { kind: AckKind::PubRec, .. }));
            if is_over {
                self.in_flight = self.in_flight.saturating_sub(1);
            }
            answers.push(answer);
        }
        answers
    }

    /// Nothing was stored, because the store is full: what an MQTT 5 client can be told so is refused, all else goes back.
    pub(super) fn take_back(&mut self) -> Vec<Refused> {
        self.step_bytes = 0;
        let (mut refused, mut back) = (Vec::new(), Vec::new());
        for step in std::mem::take(&mut self.steps) {
            match step {
                Step::Store { publish, .. } => match ack_of(publish.qos).filter(|_| self.is_5()) {
                    Some(kind) => refused.push(Refused { kind, packet_id: publish.packet_id, code: code::QUOTA }),
                    None => back.push(Held::Publish(publish)),
                },
                Step::Again { packet_id } => back.push(Held::Again { packet_id }),
                Step::Release { packet_id, .. } => back.push(Held::Release { packet_id }),
                Step::Refuse(answer) => refused.push(answer),
            }
        }
        self.in_flight = self.in_flight.saturating_sub(refused.len());
        for held in back.into_iter().rev() {
            self.queued_bytes += held.weight();
            self.queue.push_front(held);
        }
        refused
    }

    /// On its way out with a store that is full: what the client has still got is not waited for.
    pub(super) fn give_up_what_waits(&mut self) {
        match &self.leaving {
            // There may be no room for hours.
            Some(close) if close.code == "stopping" => {
                self.queue.clear();
                self.queued_bytes = 0;
            }
            Some(_) => self.drop_unacknowledged(),
            None => {}
        }
    }

    /// Forgets what the client will send again: all but QoS 0 and PUBREL.
    pub(super) fn drop_unacknowledged(&mut self) {
        self.queue.retain(|held| match held {
            Held::Publish(publish) => publish.qos == Qos::AtMostOnce,
            Held::Release { .. } => true,
            Held::Again { .. } | Held::Refused(_) => false,
        });
        self.queued_bytes = self.queue.iter().map(Held::weight).sum();
    }
}
