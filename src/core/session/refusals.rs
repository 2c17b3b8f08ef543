//! What a refusal costs: whom it is charged, and how long what was refused waits.
//!
//! Most refusals say whose fault they are, and are charged. 0x80 and 0x83 don't: they are charged while others get through. Where nobody else *can* get
//! through, because so much is held up that nothing more is read, or because a retired lane has nothing else left, the lane would wait for ever. There a
//! [`Sample`] is charged, one report at a time:
//!
//! ```text
//!   refused, nobody else can get through ─▶ sampled ── `attempts` refusals ─▶ dead, and the next is sampled
//!                                              └── the third, with nothing delivered in between ─▶ kept; the lane is suspended
//! ```
//!
//! A dead letter makes room: what is read then gets through, if it is the reports, and the next sample may be taken. If it is the broker, it costs two
//! reports. A suspended lane tries again at its longest wait, as in [`super::isolation`].
//!
//! What is refused and charged to nobody waits the longer, the more rounds of refusals have come with nothing acknowledged in between: its own attempts do
//! not rise, and a broker that has no room would be asked for ever as often as at first.

use super::isolation::CONDEMNED;
use super::link::Link;
use super::packet::{Delivery, Note, Outgoing, Output};
use super::{HELD_BYTES, HELD_LIMIT, Session};
use crate::core::keyed::Keyed;
use crate::core::retry::{self, RetryPolicy, Verdict};
use crate::core::types::{Millis, SendNo, Seq};

/// Why a lane is suspended that is refused everything.
const REFUSES_ALL: &str = "the broker refuses whatever is sent and does not say why, so it is not the reports: look into its log";

/// What is known of refusals.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Deliveries that were done when one was last refused, by its id.
    done_before: Keyed<Seq, u64>,
    /// So many rounds of refusals in a row; what is refused before then belongs to the last one, because it was sent before that.
    rounds: (u32, Millis),
    sample: Sample,
}

/// See the module.
#[derive(Debug, Default)]
struct Sample {
    /// Who is charged.
    taken: Option<Seq>,
    /// So many were condemned since the last delivery.
    condemned: u32,
}

impl Refusals {
    /// A delivery has been acknowledged.
    pub(super) fn got_through(&mut self) {
        self.rounds = Default::default();
        self.sample = Sample::default();
    }

    /// A delivery has ended.
    pub(super) fn forget(&mut self, id: Seq) {
        self.done_before.remove(&id);
        self.sample.taken.take_if(|taken| *taken == id);
    }

    /// Counts a refusal. Gives back how many rounds of them have come in a row.
    fn count(&mut self, now: Millis, policy: &RetryPolicy) -> u32 {
        let (rounds, until) = &mut self.rounds;
        if now >= *until {
            *rounds = rounds.saturating_add(1);
            // What is sent again waits at least so long.
            *until = now.plus(policy.backoff_ms(*rounds, 0));
        }
        *rounds
    }
}

impl Session {
    /// The broker has refused a send.
    pub(super) fn refused(&mut self, now: Millis, jitter: u32, send: SendNo, reason_code: u8, reason: Option<String>) {
        let Some(in_flight) = self.way.remove(send) else { return };
        let (delivery, policy) = (in_flight.delivery, self.settings.retry);
        self.ids.remove(&self.packet_id(send));
        let done_before = self.refusals.done_before.insert(delivery.id, self.successes);
        let others_succeed = done_before.is_some_and(|before| self.successes > before);
        let is_sample = !others_succeed && retry::names_no_culprit(reason_code) && self.is_sample(&delivery);
        let rounds = self.refusals.count(now, &policy);
        let is_charged = others_succeed || is_sample;
        let verdict = retry::judge(&policy, reason_code, delivery.attempts, is_charged, rounds, now, jitter);
        let is_spared = is_sample && self.refusals.sample.condemned >= CONDEMNED && matches!(verdict, Verdict::Dead(_));
        let (retry_at, attempts) = match verdict {
            Verdict::Dead(_) if is_spared => (now.plus(policy.max_ms), delivery.attempts),
            Verdict::Dead(mut verdict) => {
                if let Some(words) = reason {
                    verdict.message.push_str(&format!(" (the broker said: {words})"));
                }
                self.refusals.sample.condemned += u32::from(is_sample);
                return self.dead(now, delivery, verdict);
            }
            Verdict::Pause { at } => {
                self.paused_until = at;
                (at, delivery.attempts)
            }
            Verdict::Retry { at, attempts } => (at, attempts),
        };
        let id = delivery.id;
        self.set_aside(now, delivery, reason_code, attempts, retry_at);
        self.out.push_back(Output::Note(Note::Refused { id, send, code: reason_code, reason, retry_at }));
        if is_spared {
            self.suspend_refused(now, jitter);
        }
    }

    /// Whether this one is charged though nobody else gets through: because nobody else can.
    fn is_sample(&mut self, refused: &Delivery) -> bool {
        // What is on its way again comes back, and is held up then.
        let again = self.way.in_flight().map(|in_flight| &in_flight.delivery).filter(|delivery| delivery.is_resent);
        let (count, bytes) = again.fold((1, refused.size), |(count, bytes), delivery| (count + 1, bytes + delivery.size));
        if !self.holds_up_too_much(count, bytes) && !self.has_nothing_else() {
            return false;
        }
        *self.refusals.sample.taken.get_or_insert(refused.id) == refused.id
    }

    /// So much was refused, or stands behind that, that nothing more is read.
    pub(super) fn has_stopped_reading(&self) -> bool {
        self.holds_up_too_much(0, 0)
    }

    fn holds_up_too_much(&self, more: usize, more_bytes: usize) -> bool {
        let again = self.queue.resent();
        if self.queue.held_up() + again.len() + more >= HELD_LIMIT {
            return true;
        }
        // It takes a look at all that is there.
        self.queue.held_up_bytes() + again.map(|delivery| delivery.size).sum::<usize>() + more_bytes >= HELD_BYTES
    }

    /// Nothing new comes, and of what there is nothing can be sent.
    fn has_nothing_else(&self) -> bool {
        self.settings.is_retired && self.queue.ready() == 0 && !self.way.has_in_flight() && self.renumbering.is_empty()
    }

    /// Ends the connection, and tries again when the longest wait is over.
    fn suspend_refused(&mut self, now: Millis, jitter: u32) {
        self.out.push_back(Output::Send(Outgoing::Disconnect { end_session: false }));
        self.out.push_back(Output::Close);
        self.on_closed(now, jitter, REFUSES_ALL.into());
        if let Link::Down { retry_at, .. } = &mut self.link {
            *retry_at = now.plus(self.settings.retry.max_ms);
            self.out.push_back(Output::Note(Note::Suspended { retry_at: *retry_at, reason: REFUSES_ALL }));
        }
    }
}
