//! What a broker has said that it takes, and what becomes of a delivery that asks for more.
//!
//! | The broker says (MQTT 5.0 §3.2.2.3) | A delivery that asks for more | With `downgrade` |
//! |---|---|---|
//! | Maximum QoS | is held, and its topic with it | is sent at that QoS |
//! | Retain Available: 0 | is held, and its topic with it | is sent without the retain flag |
//! | Maximum Packet Size | is a dead letter at once: no other time will do | the same |
//! | Receive Maximum | waits for room in the window | the same |
//!
//! What is held was not sent and is charged with nothing. It is a refusal of Tidings' own in the log, so that a restart knows what waits; while it
//! waits it is looked at again now and then, and goes as soon as the broker takes it. MQTT 3.1.1 brokers say nothing about themselves. But
//! there are some that take QoS 2 for QoS 1 and answer PUBACK, against MQTT 3.1.1 §4.3.3 (RabbitMQ 3.10 does): what is answered so has
//! arrived, at least once, and is done; from then on the broker counts as one with Maximum QoS 1, as long as the service runs.

use std::sync::Arc;

use super::link::{Link, Up};
use super::packet::{Delivery, Note, Output};
use super::{End, Session};
use crate::core::event::Event;
use crate::core::retry::code;
use crate::core::types::{Millis, Qos, SendNo};

/// What is held is looked at again after this, in milliseconds, or after the longest retry if that is shorter. It costs no packet and no event.
const LOOK_AGAIN_MS: u64 = 5_000;

/// Why a delivery of QoS 2 is held where the broker could not say so beforehand.
const SHOWN_QOS_1: &str = "reports of QoS 2 are held: the broker took one for QoS 1 and answered with PUBACK, so its Maximum QoS is 1; set `downgrade = true` \
                           for this connection to send them at QoS 1, or restart Tidings when the broker has learnt QoS 2";

/// How a delivery is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manner {
    pub(super) qos: Qos,
    pub(super) retain: bool,
}

/// What a broker lacks for a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    Qos { asked: Qos, most: Qos },
    Retain,
}

impl Lack {
    /// The reason code with which a broker would have refused it (MQTT 5.0 §3.14.2.1).
    fn code(self) -> u8 {
        match self {
            Lack::Qos { .. } => code::QOS_NOT_SUPPORTED,
            Lack::Retain => code::RETAIN_NOT_SUPPORTED,
        }
    }

    fn describe(self) -> String {
        match self {
            Lack::Qos { asked, most } => format!(
                "reports of QoS {} are held: the broker's Maximum QoS is {}; raise it there, or set `downgrade = true` for this connection to send them at QoS {1}",
                asked.level(),
                most.level()
            ),
            Lack::Retain => "reports with the retain flag are held: the broker has no retained messages; enable them there, or set `downgrade = true` for this \
                             connection to send them without the flag"
                .into(),
        }
    }
}

impl Up {
    /// How a delivery is sent over this connection, or what the broker lacks for it.
    pub(super) fn manner(&self, delivery: &Delivery, downgrade: bool) -> Result<Manner, Lack> {
        let (asked, most) = (delivery.qos, self.maximum_qos);
        if asked > most && !downgrade {
            return Err(Lack::Qos { asked, most });
        }
        if delivery.retain && !self.retain_available && !downgrade {
            return Err(Lack::Retain);
        }
        Ok(Manner { qos: asked.min(most), retain: delivery.retain && self.retain_available })
    }
}

impl Session {
    /// The broker has answered a send of QoS 2 as if it were one of QoS 1: that is what it was, and there is no QoS 2 here.
    pub(super) fn has_shown_qos_1(&mut self, send: SendNo) {
        self.shown_maximum_qos = Some(Qos::AtLeastOnce);
        self.way.change(send, |in_flight| in_flight.qos = Qos::AtLeastOnce);
        if let Link::Resuming { up } | Link::Serving { up } = &mut self.link {
            up.maximum_qos = up.maximum_qos.min(Qos::AtLeastOnce);
        }
    }

    /// How a delivery is sent over the connection that is up.
    pub(super) fn manner(&self, delivery: &Delivery) -> Result<Manner, Lack> {
        match &self.link {
            Link::Confirming { up, .. } | Link::Probing { up, .. } | Link::Resuming { up } | Link::Serving { up } => {
                up.manner(delivery, self.settings.downgrade)
            }
            Link::Down { .. } | Link::Opening { .. } | Link::Greeting { .. } | Link::Stopped => {
                Ok(Manner { qos: delivery.qos, retain: delivery.retain })
            }
        }
    }

    /// A delivery that has not been sent waits for a broker that takes it.
    pub(super) fn hold(&mut self, now: Millis, delivery: Delivery, lack: Lack) {
        let reason = match (lack, self.shown_maximum_qos) {
            (Lack::Qos { .. }, Some(_)) => SHOWN_QOS_1.into(),
            _ => lack.describe(),
        };
        self.out.push_back(Output::Note(Note::Held { id: delivery.id, reason }));
        let (retry_at, attempts) = (self.look_again_at(now), delivery.attempts);
        self.set_aside(now, delivery, lack.code(), attempts, retry_at);
    }

    /// When what is held is looked at again.
    pub(super) fn look_again_at(&self, now: Millis) -> Millis {
        now.plus(LOOK_AGAIN_MS.min(self.settings.retry.max_ms))
    }

    /// A delivery waits under its spent number, and the log knows.
    pub(super) fn set_aside(&mut self, now: Millis, delivery: Delivery, reason_code: u8, attempts: u32, retry_at: Millis) {
        let reference = self.reference(&delivery);
        self.finish(&delivery, End::Refused);
        let (id, topic, left_through) = (delivery.id, Arc::clone(&delivery.topic), self.left_through(&delivery));
        let sent_through = self.queue.wait(Delivery { attempts, ..delivery }, retry_at, left_through);
        self.record.events.push(Event::Refused { delivery: reference, code: reason_code, attempts, retry_at, sent_through, at: now });
        for behind in self.queue.park_behind(&topic, id) {
            // Its number is in the log, and a restart would take it for sent.
            let (delivery, attempts) = (self.reference(&behind), behind.attempts);
            self.finish(&behind, End::Refused);
            self.record.events.push(Event::Refused { delivery, code: code::WAITS_BEHIND, attempts, retry_at, sent_through, at: now });
        }
    }

    /// Up to where fresh deliveries of a topic have left, and can't wait behind this one any more. No further: a restart takes all up to there for what
    /// may be on the wire, and there is only so much of that.
    fn left_through(&self, delivery: &Delivery) -> SendNo {
        let own = (!delivery.is_resent).then_some(delivery.send);
        let in_flight = self.way.in_flight().map(|in_flight| &in_flight.delivery);
        let behind = in_flight.filter(|other| !other.is_resent && other.topic == delivery.topic).map(|other| other.send);
        let before_first = || self.queue.first_fresh(&delivery.topic).map_or(delivery.send, |first| SendNo(first.0.saturating_sub(1)));
        behind.chain(own).max().unwrap_or_else(before_first)
    }
}
