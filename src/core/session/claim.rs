//! A shared log: a connection is claimed before anything is sent on it.
//!
//! The committer's fence (see [`Owners`](crate::core::outbox::Owners)) keeps an instance that has lost its lane from recording anything, so no PUBREL of
//! it leaves. A PUBLISH needs no commit, and so it needs a claim: a `SessionOpened` that is appended after CONNACK, at *every* connect, and waited for.
//!
//! ```text
//!   CONNACK ──▶ SessionOpened is appended ──▶ durable ──▶ PUBREL, PUBLISH …
//!                                        └──▶ refused, the lane is another's: the lane's task ends, and has sent nothing here
//! ```
//!
//! # Why an owner that is stopped at any point does no harm
//! Call it A, and its successor B. A's claim of a connection came into the log before B's `LaneTaken`, and B connects after that. So *whatever connection A has
//! claimed is older than B's*, and the broker ends it when B connects with the same client id. What of it the broker has read by then is pending in
//! the log that B starts from, so B takes it for in doubt, and sends it again under its packet identifier in the same session. What it had not read is gone.
//!
//! | A is stopped | and goes on |
//! |---|---|
//! | before CONNECT, or before CONNACK | it ends B's connection, its claim is refused, and B connects again |
//! | with its claim under way | the same; or the claim came before `LaneTaken`: then its connection is ended |
//! | with PUBRECs in its socket | their `Released` is refused |
//! | with PUBLISH or PUBREL in its buffer | read before B's CONNECT, they are as if B had sent them; behind it nobody reads them |
//!
//! Only the server that A is connected to can end its connection. Where B goes on at another one, it takes for lost and says to be repeated what A may have sent at QoS 1 and 2;
//! at QoS 0, where nobody asks what became of anything, what is in A's buffer may still come, behind what B sends.
//!
//! No connection is opened while an append is under way: who may have lost the lane hears of it before it ends another's connection, and a
//! log that does not answer has a few claims to store later, and not one for each attempt.
//!
//! # How a session ends
//! Who has lost its lane and does not know it must not end the session that its successor works in: QoS 2 would be repeated in the next one. So a CONNECT that
//! asks for a clean session waits until the log says that the lane uses a *later* epoch, which its owner alone can say; then nobody works
//! in the one that is purged, ever again. On MQTT 5 a DISCONNECT ends a session on a claimed connection, which a successor's CONNECT would have ended
//! before, or where CONNACK has just said that there was none.
//!
//! ```text
//!   session present, nothing in doubt ──▶ SessionOpened, epoch + 1 ── durable ──▶ CONNECT clean with the old client id, DISCONNECT
//!                                                                                  CONNECT with the new one ──▶ claim ──▶ Serving
//! ```
//!
//! To go on in a session that is there would save that, and lose reports: a broker that was killed and comes back with older state holds packet identifiers of
//! reports that are long done, and would take a new one for a repetition.
//!
//! What is in a session when it ends is known: everything that was sent in it and is not settled was accepted before `LaneTaken` (a lane's feed
//! reads no further, see `delivery::feed`), and so its new owner has it in doubt. A lane that merely stops leaves its session, or the next owner
//! would take what came meanwhile for lost with it.
//!
//! Where the *broker* has lost its sessions, an A that connects before B leaves an empty one behind, which passes for the real one: see "What
//! can't be known" in the [module](super).

#[cfg(test)]
mod tests;

use super::Session;
use super::link::{Link, Plan, Up};
use crate::core::types::{Millis, Protocol};

impl Session {
    /// Claims the connection that has just been made. `resumed`: the session goes on.
    pub(super) fn claim(&mut self, now: Millis, up: Up, resumed: bool) {
        // What was sent with a larger window may still be in doubt.
        let before = if resumed { self.opened.3 } else { 0 };
        self.say_opened(now, self.settings.doubt().max(before));
        self.link = Link::Confirming { up, append: self.append_number, resumed };
    }

    /// Whether a connection may be opened: see the module.
    pub(super) fn may_connect(&self) -> bool {
        !self.settings.claims || self.appends.is_empty()
    }

    /// Nothing that matters can be in the session that the broker has.
    pub(super) fn is_unused(&self) -> bool {
        self.unused == Some(self.epoch) || self.epoch > self.opened.0
    }

    /// Whether the session that was worked in ends by another one's being used: 3.1.1 has no other way that would be safe.
    pub(super) fn must_begin_anew(&self) -> bool {
        self.settings.claims && self.protocol == Protocol::V311
    }

    /// Nothing is in doubt: leaves the session that the broker has, for one of another client id.
    pub(super) fn begin_anew(&mut self, now: Millis) {
        self.left = Some(self.epoch);
        self.epoch += 1;
        self.unused = Some(self.epoch);
        self.say_opened(now, self.settings.doubt());
        self.reconnect_at_once(now, Plan::Decide, false);
    }

    /// Whether a session that is to be gone is still there.
    pub(super) fn is_purge_due(&self) -> bool {
        self.left.is_some() || (self.protocol == Protocol::V311 && !self.settings.claims)
    }

    /// The session that was left is purged first, if this is its server. Durable is by now that it was left: see [`Session::may_connect`].
    pub(super) fn purge_of_left(&self) -> Plan {
        match self.left.is_some() && self.endpoint() == self.opened.2 {
            true => Plan::Purge,
            false => Plan::Fresh { is_purged: false },
        }
    }
}
