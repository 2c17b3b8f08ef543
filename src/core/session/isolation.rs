//! Poison isolation: is it a report at which the broker hangs up, and which one?
//!
//! ```text
//!           connections die in a row,          one is sent alone, and its             an idle connection lives
//!           nothing is acknowledged            connection dies                        as long
//!   Whole ───────────────────────▶ Alone ───────────────────────▶ Suspecting ───────────────────────▶ charged: Alone
//!     ▲                            │  ▲                               │
//!     └── as many acknowledged ────┘  └───────────────────────────────┘ the idle one dies, too: nobody is charged
//!         as the window holds
//! ```
//!
//! In isolation the window is 1 and grows by one with each delivery that is acknowledged; a connection that dies makes it 1 again. A charge is
//! a refusal like any other: it is in the log, the delivery waits for its retry, its topic waits behind it, and other topics go on. With
//! `attempts` of them it is a dead letter.
//!
//! In a resumed session the broker may hold a suspect's packet identifier half-way. So a suspect is put aside first, and with it what is behind
//! it in its topic: all others of the session are settled without them, then it is charged, and the session is given up. Where one after the other
//! is suspected, it is the resuming that this broker can't do: the session is given up and nobody is charged.
//!
//! A dead letter, but not others were condemned just before and nothing has been delivered in between: then the lane is suspended instead. It keeps the
//! report, raises an alarm, and tries one report at each of its longest waits, until one gets through. So a broker that hangs up
//! at everything costs two reports at most, and nobody has to start a lane again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::link::{Link, Plan, Up};
use super::packet::{Delivery, Note, Outgoing, Output};
use super::{InFlight, Send, Session};
use crate::core::event::DeadReason;
use crate::core::retry::code;
use crate::core::types::{Millis, SendNo, Seq};

/// So many connections that die in a row, without anything acknowledged on them, begin isolation. One is an ordinary outage; and it has to begin
/// before a session is given up because it can't be resumed, which would repeat what need not be.
const DEATHS: u32 = 2;

/// So many reports in a row may be condemned with nothing delivered in between. The next one suspends the lane.
pub(super) const CONDEMNED: u32 = 2;

/// So many sessions in a row that are lost before anything is done in them begin isolation, too: a PUBREC is an answer, but where the connection ends
/// before its PUBCOMP each time, and the session with it, a whole window would never be done. One at a time is.
const LOSSES: u32 = 3;

/// Why a lane is suspended at whose every report the broker hangs up.
const HANGS_UP_AT_ALL: &str = "the broker closes the connection whatever is sent, so it is not the reports: look into its log";

/// An idle connection has proven enough after this, in milliseconds, however long the suspect's lived.
const PROBE_MS: u64 = 60_000;

/// So many are put aside in a row before the session itself is suspected.
const ASIDE: u32 = 3;

/// See the diagram.
#[derive(Debug)]
pub(super) enum Isolation {
    /// Nothing is suspected. So many connections in a row have died without an acknowledgement.
    Whole { deaths: u32 },
    /// One at a time, and more with each that gets through.
    Alone { window: usize, trial: Trial },
    /// Its connection died with this one alone on it, after so many milliseconds.
    Suspecting { suspect: Suspect, lived_ms: u64, trial: Trial },
}

/// A delivery that was alone on a connection that died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) send: SendNo,
    pub(super) id: Seq,
    /// How its connection ended.
    pub(super) reason: Arc<str>,
}

/// What has been found out so far.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// So many were condemned since the last delivery.
    condemned: u32,
    /// Suspects of the session that is resumed, which are to be charged when all others of it are settled.
    aside: Vec<Suspect>,
    /// So many of them one after the other.
    in_a_row: u32,
}

impl Default for Isolation {
    fn default() -> Self {
        Isolation::Whole { deaths: 0 }
    }
}

impl Isolation {
    /// The window, which is `whole` unless somebody is suspected.
    pub(super) fn window(&self, whole: usize) -> usize {
        match self {
            Isolation::Whole { .. } => whole,
            Isolation::Alone { window, .. } => (*window).min(whole),
            Isolation::Suspecting { .. } => 0,
        }
    }

    /// One at a time: then what has not been tried goes before what has, or a few suspects would take every turn.
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Isolation::Alone { .. })
    }
}

impl Session {
    /// The broker has answered for something that was sent: it does not hang up at everything.
    pub(super) fn has_answered(&mut self) {
        match &mut self.isolation {
            Isolation::Whole { deaths } => *deaths = 0,
            Isolation::Alone { trial, .. } | Isolation::Suspecting { trial, .. } => trial.in_a_row = 0,
        }
    }

    /// A session was lost with something in flight.
    pub(super) fn on_losses(&mut self) {
        if self.losses >= LOSSES && matches!(self.isolation, Isolation::Whole { .. }) {
            self.out.push_back(Output::Note(Note::Isolating));
            self.isolation = Isolation::Alone { window: 1, trial: Trial::default() };
        }
    }

    /// A delivery has got through.
    pub(super) fn got_through(&mut self) {
        let Isolation::Alone { window, trial } = &mut self.isolation else { return };
        trial.condemned = 0;
        *window += 1;
        let whole = match &self.link {
            Link::Resuming { up } | Link::Serving { up } => up.window,
            _ => return,
        };
        if *window >= whole && trial.aside.is_empty() {
            self.isolation = Isolation::default();
            self.out.push_back(Output::Note(Note::Isolated));
        }
    }

    /// The connection has died. To be called while the sends on it are still as they were. True if there is a suspect.
    pub(super) fn on_death(&mut self, now: Millis, has_progressed: bool, reason: &str) -> bool {
        let mut on_the_wire = self.way.in_flight().filter(|in_flight| in_flight.is_unanswered());
        let (first, second) = (on_the_wire.next(), on_the_wire.next());
        let alone = first.filter(|first| second.is_none() && first.state == Send::Sent);
        let (is_idle, is_probe) = (first.is_none(), matches!(self.link, Link::Probing { .. }));
        let is_up = self.is_up();
        self.isolation = match std::mem::take(&mut self.isolation) {
            Isolation::Whole { .. } if has_progressed => Isolation::default(),
            Isolation::Whole { deaths } if !is_up || is_idle => Isolation::Whole { deaths },
            Isolation::Whole { deaths } if deaths + 1 < DEATHS => Isolation::Whole { deaths: deaths + 1 },
            Isolation::Whole { .. } => {
                self.out.push_back(Output::Note(Note::Isolating));
                Isolation::Alone { window: 1, trial: Trial::default() }
            }
            Isolation::Alone { window, trial } => match alone {
                Some(InFlight { delivery, at, .. }) => {
                    let suspect = Suspect { send: delivery.send, id: delivery.id, reason: Arc::from(reason) };
                    Isolation::Suspecting { suspect, lived_ms: now.since(*at), trial }
                }
                None if is_idle => Isolation::Alone { window, trial },
                None => Isolation::Alone { window: 1, trial },
            },
            // The idle connection has died as well.
            Isolation::Suspecting { trial, .. } if is_probe => Isolation::Alone { window: 1, trial },
            suspecting @ Isolation::Suspecting { .. } => suspecting,
        };
        matches!(self.isolation, Isolation::Suspecting { .. })
    }

    /// Where there is a suspect, the connection that has just been made stays idle first. `resumed`: the session goes on.
    pub(super) fn probe_if_suspecting(&mut self, now: Millis, up: Up, resumed: bool) -> bool {
        let Isolation::Suspecting { lived_ms, .. } = &self.isolation else { return false };
        let idle_ms = (lived_ms + lived_ms / 2).max(self.settings.retry.initial_ms).min(PROBE_MS);
        self.link = Link::Probing { up: Up { ping_sent: Some(now), ..up }, until: now.plus(idle_ms), is_answered: false, resumed };
        self.send(now, Outgoing::PingReq);
        true
    }

    /// The idle connection has lived: so it was the suspect. The connection goes on with others.
    pub(super) fn on_probed(&mut self, now: Millis, jitter: u32) {
        let Link::Probing { up, until, is_answered: true, resumed } = self.link else { return };
        if now < until {
            return;
        }
        self.failures = 0;
        let Isolation::Suspecting { suspect, mut trial, .. } = std::mem::take(&mut self.isolation) else { return };
        let is_in_session = resumed && self.way.contains(suspect.send);
        if is_in_session {
            trial.aside.push(suspect.clone());
            trial.in_a_row += 1;
        }
        let blames_session = trial.in_a_row >= ASIDE;
        self.isolation = Isolation::Alone { window: 1, trial };
        if blames_session {
            self.lose_session(now, "the broker hangs up at whatever is sent in the resumed session; this broker can't resume it");
            return self.reconnect_at_once(now, Plan::Decide, false);
        }
        self.confirm(now, up, resumed);
        if !is_in_session && self.charge(now, jitter, &suspect) {
            self.suspend(now);
        }
    }

    /// The topics of the suspects that wait for the others of their session: what is behind one in its topic waits, too.
    pub(super) fn topics_aside(&self) -> BTreeSet<Arc<str>> {
        let aside = match &self.isolation {
            Isolation::Alone { trial, .. } | Isolation::Suspecting { trial, .. } => &trial.aside[..],
            Isolation::Whole { .. } => &[],
        };
        let in_flight = aside.iter().filter_map(|suspect| self.way.get(suspect.send));
        in_flight.map(|in_flight| Arc::clone(&in_flight.delivery.topic)).collect()
    }

    /// All others of the resumed session are settled: the suspects are charged, and their session is left. False if there are none.
    pub(super) fn charge_aside(&mut self, now: Millis, jitter: u32) -> bool {
        let Isolation::Alone { trial, .. } = &mut self.isolation else { return false };
        let aside = std::mem::take(&mut trial.aside);
        if aside.is_empty() {
            return false;
        }
        self.lose_session(now, "the broker hangs up at what is left of it");
        // Each of them is charged, also where one of them suspends the lane.
        let suspensions = aside.into_iter().filter(|suspect| self.charge(now, jitter, suspect)).count();
        match suspensions {
            0 => self.reconnect_at_once(now, Plan::Decide, false),
            _ => self.suspend(now),
        }
        true
    }

    /// The session is gone, and with it what was to be settled in it.
    pub(super) fn forget_aside(&mut self) {
        if let Isolation::Alone { trial, .. } | Isolation::Suspecting { trial, .. } = &mut self.isolation {
            trial.aside.clear();
            trial.in_a_row = 0;
        }
    }

    /// Charges a suspect, which is in no session any more, or condemns it. True if the lane is to be suspended instead.
    fn charge(&mut self, now: Millis, jitter: u32, suspect: &Suspect) -> bool {
        let policy = self.settings.retry;
        let Some(delivery) = self.queue.take(suspect.send).filter(|delivery| delivery.id == suspect.id) else { return false };
        let Isolation::Alone { trial, .. } = &mut self.isolation else { return false };
        let attempts = delivery.attempts + 1;
        let is_last = attempts >= policy.attempts;
        if is_last && trial.condemned < CONDEMNED {
            trial.condemned += 1;
            let message = format!(
                "the connection ended each of the {attempts} times that it was sent, last because {}, and idle ones live; the broker's log should say why: it \
                 may be larger than the broker takes, or its topic may be forbidden",
                suspect.reason
            );
            self.dead(now, Delivery { attempts, ..delivery }, DeadReason { code: "poison".into(), broker_code: None, message });
            // In the same append, what waited behind it gets its new numbers, see `finish`; no connection need be up for that.
            self.renumber_due(now);
            return false;
        }
        let (attempts, wait_ms) = match is_last {
            true => (delivery.attempts, policy.max_ms),
            false => (attempts, policy.backoff_ms(attempts, jitter)),
        };
        let (id, send, retry_at) = (delivery.id, delivery.send, now.plus(wait_ms));
        self.set_aside(now, delivery, code::HUNG_UP, attempts, retry_at);
        self.out.push_back(Output::Note(Note::Refused { id, send, code: code::HUNG_UP, reason: None, retry_at }));
        is_last
    }

    fn suspend(&mut self, now: Millis) {
        let retry_at = now.plus(self.settings.retry.max_ms);
        self.out.push_back(Output::Send(Outgoing::Disconnect { end_session: false }));
        self.out.push_back(Output::Close);
        self.out.push_back(Output::Note(Note::Suspended { retry_at, reason: HANGS_UP_AT_ALL }));
        self.link = Link::Down { retry_at, plan: Plan::Decide };
    }
}
