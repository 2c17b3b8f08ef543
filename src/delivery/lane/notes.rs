//! What others see of a lane: metrics, log lines, the board.

use super::Lane;
use crate::core::session::Note;
use crate::core::types::Qos;
use crate::delivery::board::LaneState;
use crate::log::committer::now;

impl Lane<'_> {
    pub(super) fn note(&mut self, note: Note) {
        let (key, metrics) = (&self.key, &self.around.metrics);
        let connection = key.connection.as_str();
        let attempts = |outcome: &str, count: u64| metrics.tidings_attempts_total.with_label_values(&[connection, outcome]).inc_by(count);
        match note {
            Note::Connected { protocol, resumed } => {
                tracing::info!(lane = %key, protocol = protocol.name(), resumed, "connected");
                self.set_state(LaneState::Connected);
                self.around.board.post(&self.key, |status| status.protocol = Some(protocol));
            }
            Note::Disconnected { reason, retry_at } => {
                attempts("lost", self.session.in_flight() as u64);
                metrics.tidings_reconnects_total.with_label_values(&[connection]).inc();
                let wait_ms = retry_at.since(self.clock.now());
                tracing::warn!(lane = %key, reason, wait_ms, "no connection to the broker; reports are kept and it is tried again");
                self.set_state(LaneState::BackingOff);
                self.around.board.post(&self.key, |status| status.last_error = Some((now(), reason)));
            }
            Note::Closed => self.set_state(LaneState::Connecting),
            Note::Done { qos, accepted_at, .. } => {
                let outcome = if qos == Qos::AtMostOnce { "sent" } else { "acknowledged" };
                attempts(outcome, 1);
                metrics.tidings_deliveries_total.with_label_values(&[connection, qos.label(), outcome]).inc();
                let latency = now().since(accepted_at) as f64 / 1_000.0;
                metrics.tidings_delivery_latency_seconds.with_label_values(&[connection, qos.label()]).observe(latency);
            }
            Note::Refused { id, code, reason, retry_at, .. } => {
                attempts("refused", 1);
                let wait_ms = retry_at.since(self.clock.now());
                let name = crate::core::retry::reason_name(code);
                let words = reason.unwrap_or_default();
                tracing::warn!(lane = %key, delivery = %id, code = format!("0x{code:02x}"), name, words, wait_ms, "the broker refused a report");
            }
            Note::Dead { id, qos, reason, .. } => {
                attempts("refused", 1);
                metrics.tidings_deliveries_total.with_label_values(&[connection, qos.label(), "dead"]).inc();
                tracing::error!(lane = %key, delivery = %id, reason, "a report became a dead letter");
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

    pub(super) fn set_state(&mut self, state: LaneState) {
        self.state = state;
        self.around.board.post(&self.key, |status| status.state = state);
    }

    pub(super) fn post(&self) {
        let (in_flight, waiting, oldest) = (self.session.in_flight(), self.session.waiting(), self.session.oldest_accepted_at());
        self.around.board.post(&self.key, |status| {
            status.in_flight = in_flight as u64;
            status.waiting = waiting as u64;
            status.oldest_pending_at = oldest;
        });
    }
}
