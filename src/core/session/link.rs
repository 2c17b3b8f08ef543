//! The connection: when to connect and how, what is resumed, and when a session is given up.

use std::collections::HashMap;
use std::sync::Arc;

use super::capability::Manner;
use super::packet::{BrokerLimits, Delivery, Note, Outgoing, Output};
use super::{InFlight, Send, Session};
use crate::core::event::Event;
use crate::core::retry::code;
use crate::core::types::{Millis, Protocol, Qos, SendNo};

/// So many closes without a CONNACK make an automatic protocol choice try the other protocol.
const SILENT_CLOSES: u32 = 3;

/// A resume that dies so often without progress is given up: some brokers can't resume QoS 2.
const RESUME_DEATHS: u32 = 3;

/// The state of the connection. See the diagram and the table above.
#[derive(Debug)]
pub(super) enum Link {
    Down {
        retry_at: Millis,
        plan: Plan,
    },
    Opening {
        since: Millis,
        plan: Plan,
    },
    Greeting {
        since: Millis,
        plan: Plan,
    },
    /// Until this append is durable. `resumed`: the session goes on then.
    Confirming {
        up: Up,
        append: u64,
        resumed: bool,
    },
    /// Idle on purpose until then, see [`super::isolation`]; `resumed`: the session goes on.
    Probing {
        up: Up,
        until: Millis,
        is_answered: bool,
        resumed: bool,
    },
    Resuming {
        up: Up,
    },
    Serving {
        up: Up,
    },
    Stopped,
}

/// How to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Decide when the time has come: resume what is in doubt, otherwise clean.
    Decide,
    /// Connect clean and leave, so that the broker forgets. On a shared log that is for a session that was left, see [`super::claim`].
    Purge,
    /// Nothing is in doubt; the broker is to know nothing either. The session is made without asking for a clean one: on 3.1.1 that would
    /// end with its connection, and mosquitto (2.0.11) does not write sessions that began clean to its disk, on MQTT 5 either.
    Fresh {
        /// It was purged just before.
        is_purged: bool,
    },
    /// Go on where the last connection ended.
    Resume,
}

/// A live connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Up {
    pub(super) window: usize,
    pub(super) maximum_packet_size: usize,
    pub(super) maximum_qos: Qos,
    pub(super) retain_available: bool,
    pub(super) keepalive_ms: u64,
    pub(super) since: Millis,
    pub(super) last_sent: Millis,
    pub(super) last_received: Millis,
    pub(super) ping_sent: Option<Millis>,
    /// Something was acknowledged on this connection.
    pub(super) has_progressed: bool,
}

impl Session {
    pub(super) fn on_tick(&mut self, now: Millis, jitter: u32) {
        let may_connect = self.may_connect() && (!self.is_draining || self.is_retiring);
        let timed_out = match &mut self.link {
            Link::Down { retry_at, plan } if *retry_at <= now && may_connect => {
                let plan = *plan;
                self.choose_server(now);
                self.link = Link::Opening { since: now, plan };
                self.out.push_back(Output::Open { server: self.server });
                None
            }
            Link::Opening { since, .. } if now.since(*since) >= self.settings.connect_timeout_ms => {
                Some(format!("no connection within {} ms", self.settings.connect_timeout_ms))
            }
            Link::Greeting { since, .. } if now.since(*since) >= self.settings.connect_timeout_ms => {
                Some(format!("the broker did not answer CONNECT within {} ms", self.settings.connect_timeout_ms))
            }
            Link::Confirming { up, .. } | Link::Probing { up, .. } | Link::Resuming { up } | Link::Serving { up } => match up.ping_sent {
                Some(sent) if now.since(sent) >= up.ping_timeout_ms() => {
                    Some(format!("the broker did not answer PINGREQ within {} ms", up.ping_timeout_ms()))
                }
                None if now.since(up.last_sent.min(up.last_received)) >= up.keepalive_ms => {
                    up.ping_sent = Some(now);
                    up.last_sent = now;
                    self.out.push_back(Output::Send(Outgoing::PingReq));
                    None
                }
                _ => None,
            },
            _ => None,
        };
        let timed_out = timed_out.or_else(|| {
            let oldest = self.way.oldest_unanswered(now).filter(|_| self.is_up())?;
            (now.since(oldest) >= self.settings.ack_timeout_ms)
                .then(|| format!("the broker did not acknowledge within {} ms", self.settings.ack_timeout_ms))
        });
        if let Some(reason) = timed_out {
            self.out.push_back(Output::Close);
            return self.on_closed(now, jitter, reason);
        }
        self.on_probed(now, jitter);
        self.look_for_preferred(now);
    }

    pub(super) fn on_opened(&mut self, now: Millis) {
        let Link::Opening { since, plan } = self.link else { return };
        let plan = match plan {
            // Until its outcome is durable a restart takes a delivery for one in flight, and needs the session that it was done in.
            Plan::Decide if !self.way.is_empty() => Plan::Resume,
            Plan::Decide if self.settings.claims => self.purge_of_left(),
            // On MQTT 5 a session ends with its DISCONNECT; on 3.1.1 it is still there.
            Plan::Decide if self.protocol == Protocol::V311 => Plan::Purge,
            Plan::Decide => Plan::Fresh { is_purged: false },
            decided => decided,
        };
        self.link = Link::Greeting { since, plan };
        let is_purge = plan == Plan::Purge;
        let connect = Outgoing::Connect {
            protocol: self.protocol,
            client_id: self.client_id_of(self.left.filter(|_| is_purge).unwrap_or(self.epoch)),
            clean: is_purge,
            session_expiry_s: if is_purge { 0 } else { self.settings.session_expiry_s },
            keepalive_s: self.settings.keepalive_s,
        };
        self.send(now, connect);
    }

    pub(super) fn on_connack(&mut self, now: Millis, jitter: u32, session_present: bool, limits: BrokerLimits) {
        let Link::Greeting { plan, .. } = self.link else { return };
        self.silent_closes = 0;
        self.absences = 0;
        let up = self.up(now, limits);
        match plan {
            Plan::Purge => {
                self.left = None;
                self.is_retiring = false;
                self.reconnect_at_once(now, Plan::Fresh { is_purged: true }, false);
                if let (1.., Link::Down { retry_at, .. }) = (self.kept_sessions, &mut self.link) {
                    // A broker may do it later than it lets in again (amqtt 0.12 does): asked at once, it would never have forgotten.
                    *retry_at = now.plus(self.settings.retry.backoff_ms(self.kept_sessions, jitter));
                }
            }
            Plan::Fresh { .. } | Plan::Decide if session_present && self.settings.claims && !self.is_unused() => self.begin_anew(now),
            // A lane that is retired leaves nothing behind, also where it never got to send, nor where the broker keeps what was purged.
            Plan::Fresh { .. } | Plan::Decide
                if session_present && !self.settings.claims && (self.is_retiring || plan != Plan::Fresh { is_purged: true }) =>
            {
                self.reconnect_at_once(now, Plan::Purge, self.is_retiring);
            }
            Plan::Fresh { .. } if session_present && !self.settings.claims => {
                self.kept_sessions = self.kept_sessions.saturating_add(1);
                self.out.push_back(Output::Close);
                self.on_closed(
                    now,
                    jitter,
                    "the broker kept a session that was to be clean; does another service use this client_id?".into(),
                );
            }
            Plan::Fresh { .. } | Plan::Decide => {
                self.kept_sessions = 0;
                self.out.push_back(Output::Note(Note::Connected { protocol: self.protocol, resumed: false, server: self.server }));
                self.has_connected(now);
                if !self.probe_if_suspecting(now, up, false) {
                    self.confirm(now, up, false);
                }
            }
            Plan::Resume if session_present => {
                self.out.push_back(Output::Note(Note::Connected { protocol: self.protocol, resumed: true, server: self.server }));
                self.has_connected(now);
                let is_too_large = |send: &InFlight| send.state == Send::InDoubt && send.delivery.size > up.maximum_packet_size;
                let is_taken_no_more = |send: &InFlight| up.manner(&send.delivery, self.settings.downgrade).is_err() || is_too_large(send);
                if self.way.in_flight().any(is_taken_no_more) {
                    self.lose_session(now, "the broker does not take any more what it took in this session");
                    return self.reconnect_at_once(now, Plan::Decide, false);
                }
                if !self.probe_if_suspecting(now, up, true) {
                    self.confirm(now, up, true);
                }
            }
            Plan::Resume => {
                self.lose_session(now, "the broker has no session for this lane any more");
                self.reconnect_at_once(now, Plan::Decide, true);
            }
        }
    }

    pub(super) fn up(&self, now: Millis, limits: BrokerLimits) -> Up {
        let window = match self.protocol {
            // MQTT 5.0 §3.2.2.3.3: 65,535 if absent.
            Protocol::V5 => self.settings.window_5.min(limits.receive_maximum.unwrap_or(u16::MAX)),
            Protocol::V311 => self.settings.window_3_1_1,
        };
        Up {
            window: usize::from(window.max(1)),
            maximum_packet_size: limits.maximum_packet_size.map_or(usize::MAX, |size| size as usize),
            maximum_qos: limits.maximum_qos.or(self.shown_maximum_qos).unwrap_or(Qos::ExactlyOnce),
            retain_available: limits.retain_available.unwrap_or(true),
            // 0: the broker watches nobody (MQTT 5.0 §3.2.2.3.14). It is watched all the same.
            keepalive_ms: u64::from(limits.keepalive_s.filter(|seconds| *seconds > 0).unwrap_or(self.settings.keepalive_s).max(1)) * 1_000,
            since: now,
            last_sent: now,
            last_received: now,
            ping_sent: None,
            has_progressed: false,
        }
    }

    /// The log has to say which session is used before anything is published in it. `resumed`: it is the one that it says, and goes on.
    pub(super) fn confirm(&mut self, now: Millis, up: Up, resumed: bool) {
        if self.settings.claims {
            return self.claim(now, up, resumed);
        }
        if !resumed {
            self.announce(up.last_sent);
            // It may have been asked for on an earlier connection, and still be under way.
            if let Some(append) = self.appends.iter().rev().find(|append| append.opened) {
                self.link = Link::Confirming { up, append: append.number, resumed };
                return;
            }
        }
        self.go_on(now, up, resumed);
    }

    /// Sends from now on.
    pub(super) fn go_on(&mut self, now: Millis, up: Up, resumed: bool) {
        self.unused = None;
        if resumed {
            self.link = Link::Resuming { up };
            self.resume(now);
        } else {
            self.link = Link::Serving { up };
        }
    }

    /// Says in the log which session is used from now on, unless it says so already.
    pub(super) fn announce(&mut self, now: Millis) {
        let opened = (self.epoch, Some(self.protocol), self.endpoint().to_owned(), self.settings.doubt());
        if self.opened != opened || !self.repeated.is_empty() {
            self.say_opened(now, self.settings.doubt());
        }
    }

    /// Says in the log which session is used from now on, and how many sends of it may be in doubt.
    pub(super) fn say_opened(&mut self, now: Millis, doubt: u32) {
        self.opened = (self.epoch, Some(self.protocol), self.endpoint().to_owned(), doubt);
        self.record.events.push(Event::SessionOpened {
            lane: self.settings.lane.clone(),
            epoch: self.epoch,
            protocol: self.protocol,
            endpoint: self.endpoint().to_owned(),
            doubt,
            repeated: std::mem::take(&mut self.repeated).to_ranges(),
            at: now,
        });
        self.append_now(now, true);
    }

    /// Everything in flight goes again, in its order (MQTT 5.0 §4.4): PUBRELs as the PUBRECs came, then PUBLISH in send order.
    pub(super) fn resume(&mut self, now: Millis) {
        let releases: Vec<SendNo> = self.releases.iter().copied().collect();
        for send in releases {
            self.release(now, send);
        }
    }

    /// Sends again what may have been sent before, within the window; goes on clean when all of it is settled.
    pub(super) fn resend_in_doubt(&mut self, now: Millis, jitter: u32) {
        let on_the_wire = self.way.in_flight().filter(|send| send.state != Send::InDoubt).count();
        let room = self.window().saturating_sub(on_the_wire);
        let mut qos_before: HashMap<&Arc<str>, Qos> = HashMap::new();
        let aside = self.topics_aside();
        let waits_aside = |in_flight: &InFlight| in_flight.state == Send::InDoubt && aside.contains(&in_flight.delivery.topic);
        let mut next = Vec::new();
        for in_flight in self.way.in_order() {
            // What a restart takes for sent may never have been, so the rule about another QoS of the same topic holds here too.
            let delivery = &in_flight.delivery;
            if waits_aside(in_flight) {
                continue;
            }
            let is_other_qos = *qos_before.entry(&delivery.topic).or_insert(in_flight.qos) != in_flight.qos;
            if next.len() >= room || is_other_qos {
                break;
            }
            if in_flight.state == Send::InDoubt {
                // Looked at when the session was resumed: this broker takes all of them.
                let manner = self.manner(delivery).unwrap_or(Manner { qos: in_flight.qos, retain: delivery.retain });
                next.push((delivery.send, manner));
            }
        }
        let is_settled = next.is_empty() && !self.way.has_finishing() && self.way.in_flight().all(waits_aside);
        for (send, Manner { qos, retain }) in next {
            self.way.change(send, |in_flight| {
                in_flight.state = Send::Sent;
                in_flight.qos = qos;
                in_flight.at = now;
            });
            // At QoS 0 there is neither (MQTT 5.0 §3.3.1.1).
            let with_id = qos != Qos::AtMostOnce;
            self.send(now, Outgoing::Publish { send, packet_id: with_id.then_some(self.packet_id(send)), dup: with_id, qos, retain });
        }
        if is_settled && !self.charge_aside(now, jitter) {
            self.resume_deaths = 0;
            match self.must_begin_anew() && (!self.is_draining || self.is_retiring) {
                true => self.begin_anew(now),
                // At a stop the session stays, so that the next start finds what it will ask for.
                false => self.reconnect_at_once(now, Plan::Decide, !self.is_draining),
            }
        }
    }

    /// Leaves this connection, which has done its work, for the next.
    pub(super) fn reconnect_at_once(&mut self, now: Millis, plan: Plan, end_session: bool) {
        self.out.push_back(Output::Send(Outgoing::Disconnect { end_session }));
        self.out.push_back(Output::Close);
        self.out.push_back(Output::Note(Note::Closed));
        self.link = match self.is_draining && !self.way.has_in_flight() {
            // A session of 3.1.1 ends with a clean connection only.
            true if self.is_retiring && self.is_purge_due() => Link::Down { retry_at: now, plan: Plan::Purge },
            true => Link::Stopped,
            false => Link::Down { retry_at: now, plan },
        };
    }

    /// The broker's session is gone, or of no use. All that may have arrived is sent again, under another client id. The log says so at
    /// once: a restart that still believed in the old session would take the empty one, which asking for it has made, for the real one. For the same reason a
    /// session that is still there is left to its expiry: a restart before that is durable goes on in it.
    pub(super) fn lose_session(&mut self, now: Millis, reason: &str) {
        self.epoch += 1;
        self.unused = Some(self.epoch);
        // At QoS 0 nobody is promised that it arrives once.
        let in_doubt: Vec<SendNo> =
            self.way.in_flight().filter(|in_flight| in_flight.qos != Qos::AtMostOnce).map(|in_flight| in_flight.delivery.send).collect();
        for send in &in_doubt {
            self.repeated.insert(send.0);
        }
        // What was in flight does not expire any more: it may have arrived.
        let deliveries: Vec<Delivery> =
            self.way.take_all().into_iter().map(|send| Delivery { expires_at: None, ..send.delivery }).collect();
        for delivery in &deliveries {
            self.ids.remove(&self.packet_id(delivery.send));
        }
        self.forget_aside();
        self.releases.clear();
        self.record.released.clear();
        self.queue.give_back(deliveries);
        self.resume_deaths = 0;
        self.losses += u32::from(!in_doubt.is_empty());
        self.on_losses();
        self.announce(now);
        self.out.push_back(Output::Note(Note::SessionLost { in_doubt: in_doubt.len() as u64, reason: reason.into() }));
    }

    pub(super) fn on_closed(&mut self, now: Millis, jitter: u32, reason: String) {
        let (was_greeting, was_resuming, has_progressed) = match &self.link {
            Link::Down { .. } | Link::Stopped => return,
            Link::Opening { .. } => (false, false, false),
            Link::Greeting { plan, .. } => (true, *plan == Plan::Resume, false),
            Link::Resuming { up } => (false, true, up.has_progressed),
            Link::Confirming { up, .. } | Link::Probing { up, .. } | Link::Serving { up } => (false, false, up.has_progressed),
        };
        let was_up = self.is_up();
        let has_lasted = self.link.up().is_some_and(|up| now.since(up.since) >= self.settings.retry.max_ms);
        let has_connected = !matches!(self.link, Link::Opening { .. } | Link::Greeting { .. });
        let has_suspect = self.on_death(now, has_progressed, &reason);
        self.moving_to = None;
        // At QoS 0 nothing is ever acknowledged: there a connection has to have lasted as long as the longest wait, so that a broker which
        // lets in and hangs up is not asked in a busy loop.
        self.failures = if has_progressed || has_lasted { 1 } else { self.failures.saturating_add(1) };
        let (mut unsent, mut lost) = (Vec::new(), 0);
        self.way.change_all(|in_flight| match in_flight.state {
            // At most once: what did not leave was not sent. What left is done by then. In a resumed session it keeps its place before what is in doubt.
            Send::Sent if in_flight.qos == Qos::AtMostOnce && !was_resuming => unsent.push(in_flight.delivery.send),
            Send::Sent => {
                in_flight.state = Send::InDoubt;
                lost += u64::from(in_flight.qos != Qos::AtMostOnce);
            }
            Send::Releasing => (in_flight.state, in_flight.may_be_complete) = (Send::Releasable, true),
            Send::InDoubt | Send::Recording | Send::Releasable => {}
        });
        unsent.sort_unstable();
        let unsent: Vec<Delivery> = unsent.iter().filter_map(|send| self.way.remove(*send)).map(|in_flight| in_flight.delivery).collect();
        for delivery in &unsent {
            self.ids.remove(&self.packet_id(delivery.send));
        }
        self.queue.give_back(unsent);
        let refused = self.connect_refused.take();
        let mut stays = refused == Some(code::PROTOCOL_VERSION) && self.settings.protocol.is_none() && self.protocol == Protocol::V311;
        if was_greeting && refused.is_none() {
            self.silent_closes += 1;
            stays = self.settings.protocol.is_none() && self.silent_closes < SILENT_CLOSES;
            let has_spoken_5 = self.opened.1 == Some(Protocol::V5) && self.opened.2 == self.endpoint();
            // A broker that has spoken MQTT 5 has not unlearnt it: something between here and there closes connections.
            if self.settings.protocol.is_none() && !self.way.has_in_flight() && !has_spoken_5 && self.silent_closes >= SILENT_CLOSES {
                self.fall_back();
                stays = self.protocol == Protocol::V311;
            }
        }
        if was_resuming && was_up && !has_progressed && !has_suspect {
            self.resume_deaths += 1;
            if self.resume_deaths >= RESUME_DEATHS {
                self.lose_session(now, "resuming the session failed again and again; this broker can't resume it");
            }
        } else if has_progressed {
            self.resume_deaths = 0;
        }
        // The protocol is found out first: another server is no answer to that.
        let retry_at = match !has_connected && !stays && self.try_next_server() {
            true => now,
            false => now.plus(self.settings.retry.backoff_ms(self.failures, jitter)),
        };
        if has_connected {
            self.prefer_first();
        }
        self.out.push_back(Output::Note(Note::Disconnected { reason, retry_at, lost }));
        self.is_retiring = false;
        self.link = if self.is_draining { Link::Stopped } else { Link::Down { retry_at, plan: Plan::Decide } };
    }

    pub(super) fn fall_back(&mut self) {
        self.silent_closes = 0;
        self.protocol = match self.protocol {
            Protocol::V5 => Protocol::V311,
            Protocol::V311 => Protocol::V5,
        };
        self.out.push_back(Output::Note(Note::FellBack { protocol: self.protocol }));
    }
}

impl Link {
    /// The connection, from its CONNACK on.
    fn up(&self) -> Option<&Up> {
        match self {
            Link::Confirming { up, .. } | Link::Probing { up, .. } | Link::Resuming { up } | Link::Serving { up } => Some(up),
            Link::Down { .. } | Link::Opening { .. } | Link::Greeting { .. } | Link::Stopped => None,
        }
    }

    /// As [`Link::up`], to be changed.
    pub(super) fn up_mut(&mut self) -> Option<&mut Up> {
        match self {
            Link::Confirming { up, .. } | Link::Probing { up, .. } | Link::Resuming { up } | Link::Serving { up } => Some(up),
            Link::Down { .. } | Link::Opening { .. } | Link::Greeting { .. } | Link::Stopped => None,
        }
    }
}

impl Up {
    /// The broker has as long for a PINGRESP as it has for the client: half the keepalive, 5 to 30 seconds.
    pub(super) fn ping_timeout_ms(&self) -> u64 {
        (self.keepalive_ms / 2).clamp(5_000, 30_000)
    }

    pub(super) fn next_timer(&self) -> Millis {
        match self.ping_sent {
            Some(sent) => sent.plus(self.ping_timeout_ms()),
            // Also where only QoS 0 is sent, which a dead connection swallows without a word.
            None => self.last_sent.min(self.last_received).plus(self.keepalive_ms),
        }
    }
}
