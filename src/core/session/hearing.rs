//! When the broker's answers are read: as they come, or together.
//!
//! ```text
//!                     nobody waits for an answer
//!   AsTheyCome ────────────────────────────────────▶ Together { at }
//!       ▲ ▲       somebody does                         │   │ at
//!       │ └────────────────────────────────────────────┘   ▼
//!       └──────────────────── they are here ────────────── Due
//! ```
//! Brokers answer one by one, and to wake up for each answer costs more than all else that a lane does for a report; and it costs the broker what it takes to wake
//! somebody. So answers are left where they are for as long as nobody waits for them, where there are many:
//!
//! * At QoS 1 a PUBACK is waited for by what is to be sent in its place. Where the window has room for all that there is, it changes nothing but what is recorded next,
//!   and that waits for more of its kind anyway (see [`super::record`]). So they are read when they are to be recorded, and recorded at once.
//! * Where a large window is full, the broker has enough to do to be answered a moment later, and what takes the places of several goes out in one piece. If it has
//!   answered nearly all of them by then, it had run out of work: then it is answered as it answers, for a while.
//! * At QoS 2 a PUBREC that comes while a commit of releases is under way is too late for that one, and in time for the next when it has ended: then PUBRECs have come for all
//!   that was sent meanwhile, and their releases share a commit. A PUBCOMP waits with them; so on a slow disk all are read before that.

use super::Session;
use super::link::Link;
use super::record::{OUTCOMES_EVERY_MS, next_recording};
use crate::core::types::Millis;

/// With fewer in flight, an answer that is left to wait saves too little.
const MANY: usize = if cfg!(test) { 4 } else { 8 };

/// A window of so many keeps a broker busy while answers to it wait.
const LARGE: usize = if cfg!(test) { 5 } else { 32 };

/// Answers that make room in a full window wait so long, in milliseconds: with 100 in the window a broker does 50,000 a second on each lane, and is not done.
const FULL_MS: u64 = 1;

/// A broker that had run out of work gets it as soon as it answers, for so long, in milliseconds.
const HURRY_MS: u64 = 1_000;

/// An answer to QoS 2 waits no longer for a commit, in milliseconds: a window of 20 is idle soon.
const RELEASE_MS: u64 = 1;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Hearing {
    #[default]
    AsTheyCome,
    /// Not before then.
    Together { at: Millis },
    /// What has come since, or comes first.
    Due,
}

impl Session {
    /// Whether what the broker answers is to be read now.
    pub fn hears(&self) -> bool {
        !matches!(self.hearing, Hearing::Together { .. })
    }

    /// When answers are to be read that wait.
    pub(super) fn hears_at(&self) -> Option<Millis> {
        match self.hearing {
            Hearing::Together { at } => Some(at),
            Hearing::AsTheyCome | Hearing::Due => None,
        }
    }

    /// Answers are here. Says how many were in flight, if they have waited while something else waited for them.
    pub(super) fn has_heard(&mut self, now: Millis) -> Option<usize> {
        if std::mem::take(&mut self.hearing) != Hearing::Due {
            return None;
        }
        if self.queue.ready() > 0 {
            return Some(self.way.in_flight_count());
        }
        // They have waited as long as outcomes do.
        self.record.waits_since(Millis(now.0.saturating_sub(OUTCOMES_EVERY_MS)));
        None
    }

    /// Of so many that were in flight some have been answered: if that is nearly all, the broker was kept waiting.
    pub(super) fn has_waited(&mut self, now: Millis, before: Option<usize>) {
        if before.is_some_and(|before| 4 * self.way.in_flight_count() < before) {
            self.hurries_until = now.plus(HURRY_MS);
        }
    }

    /// Decides when answers are read next.
    pub(super) fn listen(&mut self, now: Millis) {
        self.hearing = match (self.hearing, self.can_wait_until(now)) {
            (_, None) => Hearing::AsTheyCome,
            (Hearing::AsTheyCome, Some(at)) => Hearing::Together { at },
            (Hearing::Together { at }, _) if at <= now => Hearing::Due,
            (Hearing::Together { at }, Some(until)) => Hearing::Together { at: at.min(until) },
            (Hearing::Due, _) => Hearing::Due,
        }
    }

    /// Until when answers may wait that have not been read.
    fn can_wait_until(&self, now: Millis) -> Option<Millis> {
        let in_flight = self.way.in_flight_count();
        let is_in_its_stride = matches!(self.link, Link::Serving { .. }) && !self.is_draining && self.moving_to.is_none();
        if !is_in_its_stride || in_flight < MANY {
            return None;
        }
        if self.way.sums().at_puback == in_flight {
            let is_full = in_flight >= self.window().max(LARGE) && now >= self.hurries_until;
            return match self.queue.ready() {
                0 => Some(next_recording(now)),
                _ => is_full.then(|| now.plus(FULL_MS)),
            };
        }
        self.appends.iter().any(|append| !append.released.is_empty()).then(|| now.plus(RELEASE_MS))
    }
}
