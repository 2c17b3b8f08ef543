//! Sends: what may go next, and how each one ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::capability::Manner;
use super::link::{Link, Plan};
use super::packet::{Delivery, Note, Outgoing, Output};
use super::way::Sums;
use super::{DOUBT_BYTES, End, Finishing, InFlight, Send, Session};
use crate::core::event::{DeadReason, DeliveryRef, Event, Proof};
use crate::core::types::{Millis, Qos, SendNo};

/// So many bytes are in flight on a lane at most, or one delivery: a broker that stops reading leaves no more than this to be buffered.
const IN_FLIGHT_BYTES: usize = 8 << 20;

impl Session {
    pub(super) fn pump(&mut self, now: Millis, jitter: u32) {
        if now >= self.paused_until {
            self.paused_until = Millis(0);
        }
        match self.link {
            Link::Resuming { .. } => {
                self.renumber_due(now);
                self.resend_in_doubt(now, jitter);
            }
            Link::Serving { .. } => {
                self.renumber_due(now);
                if !self.is_draining {
                    while self.send_next(now) {}
                    self.move_if_idle(now);
                } else if self.way.is_empty() && self.appends.is_empty() && self.record.is_empty() {
                    // Who has the lane next would find its session gone, and think that what has come meanwhile was lost with it.
                    let is_left_for_good = !self.settings.claims || self.is_retiring;
                    let end_session = is_left_for_good && self.queue.ready() == 0 && self.queue.held() == 0;
                    match end_session && self.must_begin_anew() {
                        true => self.begin_anew(now),
                        false => self.reconnect_at_once(now, Plan::Decide, end_session),
                    }
                }
            }
            Link::Down { .. } | Link::Opening { .. } | Link::Greeting { .. } | Link::Probing { .. }
                if self.is_draining && !self.is_retiring =>
            {
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
    pub(super) fn renumber_due(&mut self, now: Millis) {
        // What this broker does not take waits on, and so does what is behind it.
        let mut held = BTreeSet::new();
        for delivery in self.queue.take_due(now) {
            // What has expired gets its number, under which it ends.
            let is_held = held.contains(&delivery.topic) || self.manner(&delivery).is_err();
            if is_held && !delivery.is_expired(now) {
                held.insert(Arc::clone(&delivery.topic));
                let retry_at = self.look_again_at(now);
                self.queue.put_back(delivery, retry_at);
                continue;
            }
            let reference = self.reference(&delivery);
            self.record.events.push(Event::Resent { delivery: reference, at: now });
            self.record.resents += 1;
            self.renumbering.push_back(delivery);
        }
    }

    /// Sends the next delivery, if there is one and it may go.
    pub(super) fn send_next(&mut self, now: Millis) -> bool {
        let Link::Serving { up } = &self.link else { return false };
        let (window, maximum_packet_size) = (self.isolation.window(up.window), up.maximum_packet_size);
        if self.gives_way || now < self.paused_until || self.moving_to.is_some() {
            return false;
        }
        let untried_first = self.isolation.is_alone();
        let Some(next) = self.queue.peek(untried_first) else { return false };
        let manner = self.manner(next);
        let qos = manner.map_or(next.qos, |manner| manner.qos);
        let sums @ Sums { bytes, undurable, undurable_bytes, refusing, expiring, .. } = self.way.sums();
        let is_window_full = qos != Qos::AtMostOnce && sums.in_window() >= window;
        let is_too_much = bytes > 0 && bytes + next.size > IN_FLIGHT_BYTES;
        let is_doubt_full = undurable >= self.settings.doubt() as usize || (undurable > 0 && undurable_bytes + next.size > DOUBT_BYTES);
        if is_window_full || is_too_much || is_doubt_full {
            return false;
        }
        // Until a refusal is durable, a restart would not know what it holds up, and take that for what may be on the wire.
        if !next.is_resent && refusing > 0 {
            return false;
        }
        // Likewise until a new number is durable: a restart would take what was parked for sent, under its old one, and this one for unsent.
        if !next.is_resent && !self.renumbering.is_empty() {
            return false;
        }
        // Until it is durable that something has expired, a restart would send it, behind what comes now.
        if !next.is_expired(now) && expiring > 0 {
            return false;
        }
        // A QoS 0 could overtake a QoS 2: of one topic, another QoS waits until those before are done.
        if self.way.has_at_another_qos(next, qos) {
            return false;
        }
        let packet_id = self.packet_id(next.send);
        if self.ids.contains_key(&packet_id) {
            return false;
        }
        let Some(delivery) = self.queue.pop(untried_first) else { return false };
        if delivery.is_expired(now) {
            self.expire(delivery);
            return true;
        }
        let Manner { qos, retain } = match manner {
            Ok(manner) => manner,
            Err(lack) => {
                self.hold(now, delivery, lack);
                return true;
            }
        };
        if delivery.size > maximum_packet_size {
            let message = format!(
                "its packet of {} bytes is larger than the broker's Maximum Packet Size of {maximum_packet_size}; raise that at the broker",
                delivery.size
            );
            self.dead(now, delivery, DeadReason { code: "too_large".into(), broker_code: None, message });
            return true;
        }
        let send = delivery.send;
        self.ids.insert(packet_id, send);
        let packet_id = (qos != Qos::AtMostOnce).then_some(packet_id);
        self.way.insert(InFlight { delivery, qos, state: Send::Sent, at: now, may_be_complete: false });
        // Also what is sent again after a lost session is new to this one: DUP is about one session's packets (MQTT 5.0 §3.3.1.1).
        self.send(now, Outgoing::Publish { send, packet_id, dup: false, qos, retain });
        true
    }

    pub(super) fn release(&mut self, now: Millis, send: SendNo) {
        if self.way.get(send).is_none_or(|in_flight| in_flight.state != Send::Releasable) {
            return;
        }
        self.way.change(send, |in_flight| (in_flight.state, in_flight.at) = (Send::Releasing, now));
        self.send(now, Outgoing::PubRel { send, packet_id: self.packet_id(send) });
    }

    pub(super) fn done(&mut self, send: SendNo, proof: Proof) {
        let Some(in_flight) = self.way.remove(send) else { return };
        let delivery = in_flight.delivery;
        self.successes += 1;
        if proof != Proof::Flushed {
            self.losses = 0;
            self.got_through();
            self.refusals.got_through();
        }
        self.refusals.forget(delivery.id);
        if proof != Proof::Flushed && proof != Proof::PubAck && self.releases.pop_front_if(|first| *first == send).is_none() {
            self.releases.retain(|released| *released != send);
        }
        self.record.delivered.push((send, proof));
        self.out.push_back(Output::Note(Note::Done { send, qos: in_flight.qos, accepted_at: delivery.accepted_at }));
        let end = match in_flight.state {
            Send::Releasable | Send::Releasing => End::DoneReleased,
            Send::InDoubt | Send::Sent | Send::Recording => End::Done,
        };
        self.finish(&delivery, end);
    }

    /// The outcome of a send is known, and will be durable.
    pub(super) fn finish(&mut self, delivery: &Delivery, end: End) {
        if delivery.is_resent && end != End::Refused {
            // In the same append as the outcome, what was parked behind gets its new numbers: between the two a restart would take it
            // for something that may be on the wire.
            self.queue.resent_done(&delivery.topic);
        }
        self.record.settled.push(delivery.send);
        let finishing = Finishing { topic: Arc::clone(&delivery.topic), size: delivery.size, is_resent: delivery.is_resent, end };
        self.way.finish(delivery.send, finishing);
    }

    pub(super) fn dead(&mut self, now: Millis, delivery: Delivery, reason: DeadReason) {
        self.refusals.forget(delivery.id);
        let (id, send, qos) = (delivery.id, delivery.send, delivery.qos);
        let is_answered = reason.broker_code.is_some();
        self.out.push_back(Output::Note(Note::Dead { id, send, qos, reason: reason.message.clone(), is_answered }));
        let reference = self.reference(&delivery);
        let attempts = delivery.attempts + u32::from(is_answered);
        self.record.events.push(Event::DeadLettered { delivery: reference, reason, attempts, at: now });
        self.finish(&delivery, End::Dead);
    }

    /// Its time is over before it was sent. What is in flight never expires: it may have arrived.
    fn expire(&mut self, delivery: Delivery) {
        self.refusals.forget(delivery.id);
        self.out.push_back(Output::Note(Note::Expired { id: delivery.id, qos: delivery.qos }));
        self.record.expired.insert(delivery.send.0);
        self.finish(&delivery, End::Expired);
    }

    pub(super) fn reference(&self, delivery: &Delivery) -> DeliveryRef {
        DeliveryRef { lane: self.settings.lane.clone(), send: delivery.send, id: delivery.id, located: delivery.located }
    }

    /// The broker can answer only what has left: until then its time has not begun.
    pub(super) fn on_left_late(&mut self, since: Millis, left: Millis) {
        self.way.change_all(|in_flight| {
            if in_flight.is_unanswered() && in_flight.at >= since {
                in_flight.at = in_flight.at.max(left);
            }
        });
        if let Some(up) = self.link.up_mut() {
            up.ping_sent = up.ping_sent.map(|sent| if sent >= since { sent.max(left) } else { sent });
        }
    }

    pub(super) fn send(&mut self, now: Millis, packet: Outgoing) {
        if let Some(up) = self.link.up_mut() {
            up.last_sent = now;
        }
        self.out.push_back(Output::Send(packet));
    }
}
