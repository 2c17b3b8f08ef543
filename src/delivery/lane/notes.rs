//! What others see of a lane: metrics, log lines, the board.

use super::Lane;
use crate::core::event::LanePurpose;
use crate::core::retry::code::HUNG_UP;
use crate::core::session::Note;
use crate::core::types::Qos;
use crate::delivery::board::LaneState;
use crate::log::committer::now;

impl Lane<'_> {
    pub(super) fn note(&mut self, note: Note) {
        let (config, around) = (self.config, self.around);
        let (key, metrics) = (&config.settings.lane, &around.metrics);
        let connection = key.connection.as_str();
        let attempts = |outcome: &str, count: u64| metrics.tidings_attempts_total.with_label_values(&[connection, outcome]).inc_by(count);
        match note {
            Note::Connected { protocol, resumed, server } => {
                let server = self.server(server);
                tracing::info!(lane = %key, protocol = protocol.name(), resumed, server, "connected");
                metrics.tidings_connects_total.with_label_values(&[connection]).inc();
                self.set_state(LaneState::Connected);
                self.around.board.post(&self.key, |status| (status.protocol, status.server) = (Some(protocol), Some(server)));
            }
            Note::Renamed { client_id } => {
                tracing::warn!(lane = %key, client_id, "the broker has assigned another client id; what it says of sessions is about that one");
            }
            Note::Leaving { from, reason } => {
                let from = self.server(from);
                tracing::warn!(lane = %key, from, reason, "the lane goes on with another of its servers");
            }
            Note::Held { id, reason } => {
                // Once for each connection is enough: it is about the reporter, not about the report.
                if !std::mem::replace(&mut self.has_held, true) {
                    tracing::warn!(lane = %key, delivery = %id, reason, "a report is held: the broker does not take what it asks for");
                    self.around.board.post(&self.key, |status| status.last_error = Some((now(), reason)));
                }
            }
            Note::Isolating => {
                tracing::warn!(lane = %key, "connection after connection dies; reports are sent one at a time to find out whether it is one of them");
            }
            Note::Isolated => tracing::info!(lane = %key, "reports get through again"),
            Note::Suspended { retry_at, reason } => {
                let wait_ms = retry_at.since(self.clock.now());
                tracing::error!(lane = %key, reason, wait_ms, "the lane is suspended; its reports are kept, and one is tried now and then");
                self.is_suspended = true;
                self.set_state(LaneState::Suspended);
                self.around.board.post(&self.key, |status| status.last_error = Some((now(), reason.to_owned())));
            }
            Note::Disconnected { reason, retry_at, lost } => {
                self.has_held = false;
                attempts("lost", lost);
                metrics.tidings_reconnects_total.with_label_values(&[connection]).inc();
                let wait_ms = retry_at.since(self.clock.now());
                tracing::warn!(lane = %key, reason, wait_ms, "no connection to the broker; reports are kept and it is tried again");
                self.set_state(LaneState::BackingOff);
                self.around.board.post(&self.key, |status| status.last_error = Some((now(), reason)));
            }
            Note::Closed => self.set_state(LaneState::Connecting),
            Note::Done { qos, accepted_at, .. } => {
                if qos != Qos::AtMostOnce {
                    self.end_suspension();
                }
                let done = self.done[usize::from(qos.level())].get_or_insert_with(|| {
                    let outcome = if qos == Qos::AtMostOnce { "sent" } else { "acknowledged" };
                    metrics.done(connection, qos.label(), outcome)
                });
                // How long a replay waits for its gap says nothing about what is accepted.
                let latency_s = (config.purpose != LanePurpose::Replay).then(|| now().since(accepted_at) as f64 / 1_000.0);
                done.count(latency_s);
            }
            Note::Refused { id, code, reason, retry_at, .. } => {
                // One at which the broker hung up was lost with its connection, and counted there.
                attempts("refused", u64::from(code != HUNG_UP));
                let wait_ms = retry_at.since(self.clock.now());
                let name = crate::core::retry::reason_name(code);
                let words = reason.unwrap_or_default();
                tracing::warn!(lane = %key, delivery = %id, code = format!("0x{code:02x}"), name, words, wait_ms, "the broker refused a report");
                if code != HUNG_UP {
                    self.end_suspension();
                }
            }
            Note::Dead { id, qos, reason, is_answered, .. } => {
                attempts("refused", u64::from(is_answered));
                metrics.tidings_deliveries_total.with_label_values(&[connection, qos.label(), "dead"]).inc();
                tracing::error!(lane = %key, delivery = %id, reason, "a report became a dead letter");
                if is_answered {
                    self.end_suspension();
                }
            }
            Note::Expired { id, qos } => {
                metrics.tidings_deliveries_total.with_label_values(&[connection, qos.label(), "expired"]).inc();
                tracing::debug!(lane = %key, delivery = %id, "a report's own time limit passed before it was sent");
            }
            Note::SessionLost { in_doubt, reason } => {
                metrics.tidings_possible_duplicates_total.with_label_values(&[connection]).inc_by(in_doubt);
                tracing::warn!(lane = %key, in_doubt, reason, "the broker's session is lost: reports in flight are sent again, and may arrive twice");
            }
            Note::FellBack { protocol } => {
                tracing::warn!(lane = %key, protocol = protocol.name(), "the broker does not answer to the protocol; trying another")
            }
            Note::Settled { sends } => {
                for send in sends {
                    self.payloads.remove(&send);
                    self.permits.remove(&send);
                }
            }
            Note::Renumbered { from, to } => {
                if let Some(payload) = self.payloads.remove(&from) {
                    self.payloads.insert(to, payload);
                }
            }
            Note::Releasable { .. } => debug_assert!(false, "taken where its proof is"),
        }
    }

    /// The broker has answered for a report, be it with a no: it does not hang up at whatever is sent any more.
    fn end_suspension(&mut self) {
        if std::mem::replace(&mut self.is_suspended, false) {
            tracing::info!(lane = %self.config.settings.lane, "the lane is no longer suspended: the broker has answered for a report");
            self.set_state(LaneState::Connected);
        }
    }

    /// A server's name in log and status.
    fn server(&self, place: usize) -> String {
        let endpoint = self.config.settings.endpoints.get(place).map_or("", String::as_str);
        endpoint.split(' ').next().unwrap_or_default().to_owned()
    }

    pub(super) fn set_state(&mut self, state: LaneState) {
        // The alarm stays until a report is answered for, whatever the connection does meanwhile.
        let state = if self.is_suspended { LaneState::Suspended } else { state };
        self.state = state;
        self.around.board.post(&self.key, |status| status.state = state);
    }

    pub(super) fn post(&mut self) {
        /// With so many in flight more is to come, and with it another look: then one a millisecond is enough.
        const MANY: usize = 8;
        let (in_flight, now) = (self.session.in_flight(), self.clock.now());
        if in_flight > MANY && now == self.posted {
            return;
        }
        self.posted = now;
        let (waiting, oldest) = (self.session.waiting(), self.session.oldest_accepted_at());
        self.around.board.post(&self.key, |status| {
            status.in_flight = in_flight as u64;
            status.waiting = waiting as u64;
            status.oldest_pending_at = oldest;
        });
    }
}
