//! Several servers: which one is tried next, and when the preferred one is taken up again.
//!
//! ```text
//!   nothing in doubt:  first ─▶ second ─▶ … ─▶ last ─▶ wait ─▶ first …       the first that answers is used
//!   in doubt:          the session's server, as often as PATIENCE ─▶ given up: sent again elsewhere, and counted
//!   serving at another than the first: look now and then ─▶ one before it is back ─▶ finish what is in flight ─▶ move
//! ```
//!
//! A session lives at one server. Each change of server is another epoch, and so another client id: whatever the one that was left still knows
//! never meets a new report.

use super::Session;
use super::link::{Link, Plan};
use super::packet::{Note, Output};
use crate::core::types::{Millis, Protocol};

/// While something is in doubt, the server that has its session is tried so often before another one is used: a restart of a broker takes less,
/// and going elsewhere repeats what is in doubt.
const PATIENCE: u32 = 4;

/// Looking for a preferred server that turns out to be of no use becomes rarer, up to this, in milliseconds.
const LOOK_AT_MOST_MS: u64 = 3_600_000;

impl Session {
    /// Server, port and user of the server that is used, or tried next.
    pub(super) fn endpoint(&self) -> &str {
        self.settings.endpoints.get(self.server).map_or("", String::as_str)
    }

    /// Whether there is a server that is preferred to the one in use.
    pub(super) fn is_second_choice(&self) -> bool {
        self.server > 0 && matches!(self.link, Link::Serving { .. }) && self.moving_to.is_none()
    }

    fn is_in_doubt(&self) -> bool {
        !self.way.is_empty()
    }

    /// Before a connection is opened: which server, and under which epoch.
    pub(super) fn choose_server(&mut self, now: Millis) {
        let home = self.settings.endpoints.iter().position(|endpoint| *endpoint == self.opened.2);
        let (Some(home), true) = (home, self.is_in_doubt()) else {
            self.epoch = self.opened.0 + u32::from(!self.opened.2.is_empty() && self.opened.2 != self.endpoint());
            return;
        };
        self.server = home;
        if self.absences >= PATIENCE && self.settings.endpoints.len() > 1 {
            self.server = if home == 0 { 1 } else { 0 };
            self.absences = 0;
            let reason = format!("{} could not be reached {PATIENCE} times", self.settings.endpoints[home]);
            self.out.push_back(Output::Note(Note::Leaving { from: home, reason }));
            self.forget_protocol();
            self.lose_session(now, "its server is away, and another one is used");
        }
    }

    /// A server was of no use. True if another one is to be tried at once.
    pub(super) fn try_next_server(&mut self) -> bool {
        if self.settings.endpoints.len() == 1 {
            return false;
        }
        if self.is_in_doubt() {
            self.absences += 1;
            return false;
        }
        self.server = (self.server + 1) % self.settings.endpoints.len();
        self.forget_protocol();
        self.server != 0
    }

    /// The connection was lost with nothing in doubt: the order begins anew.
    pub(super) fn prefer_first(&mut self) {
        if self.server != 0 && !self.is_in_doubt() {
            self.server = 0;
            self.forget_protocol();
        }
    }

    /// What was found out about one server's protocol is not true of another.
    fn forget_protocol(&mut self) {
        self.silent_closes = 0;
        self.shown_maximum_qos = None;
        if self.settings.protocol.is_none() {
            self.protocol = Protocol::V5;
        }
    }

    /// CONNACK: the server is in use from now on.
    pub(super) fn has_connected(&mut self, now: Millis) {
        if self.server == 0 {
            self.look.1 = self.settings.failback_ms;
        }
        self.look.0 = now.plus(self.look.1);
    }

    /// Looks for a preferred server when the time has come.
    pub(super) fn look_for_preferred(&mut self, now: Millis) {
        if self.is_second_choice() && now >= self.look.0 {
            self.look.0 = now.plus(self.look.1);
            self.out.push_back(Output::Look { before: self.server });
        }
    }

    pub(super) fn on_looked(&mut self, now: Millis, found: Option<usize>) {
        if let Some(found) = found.filter(|found| self.is_second_choice() && *found < self.server) {
            // Should it be of no use after all, the next look comes later.
            self.look.1 = (self.look.1 * 2).min(LOOK_AT_MOST_MS);
            self.look.0 = now.plus(self.look.1);
            self.moving_to = Some(found);
        }
    }

    /// Nothing is in flight any more: on to the preferred server.
    pub(super) fn move_if_idle(&mut self, now: Millis) {
        let Some(to) = self.moving_to else { return };
        if self.is_in_doubt() || !self.appends.is_empty() || !self.record.is_empty() {
            return;
        }
        let reason = format!("{} can be reached again", self.settings.endpoints[to]);
        self.out.push_back(Output::Note(Note::Leaving { from: self.server, reason }));
        self.reconnect_at_once(now, Plan::Decide, true);
        self.moving_to = None;
        self.server = to;
        self.forget_protocol();
    }
}
