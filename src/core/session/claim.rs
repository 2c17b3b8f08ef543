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
//! No connection is opened while an append is under way: who may have lost the lane hears of it before it ends another's connection, and a
//! log that does not answer has a few claims to store later, and not one for each attempt.
//!
//! # Sessions do not end
//! Who has lost its lane and does not know it must not end the session that its successor works in: QoS 2 would be repeated in the next one. So
//! CONNECT never asks for a clean session here, and DISCONNECT ends one on a claimed connection only (which B's CONNECT has ended before), or where CONNACK has just
//! said that there was none. A session that is there is used, also with nothing in doubt. It holds nothing that matters: a packet identifier is in use
//! at the broker only for a send that was published and not completed, and all of those are pending, so in doubt; what an operator
//! takes away from that has the lane begin another epoch (see `Discarded` in the fold). One exception: what A has published of reports that came after B had read the
//! log. B sends the same one under the same identifier, and the broker takes it for what it is, a repetition: PUBREC, or PUBREC with 0x91 on MQTT 5.
//!
//! When everything in doubt of a resumed session is settled, the session serves, over either protocol: to end it and to begin
//! another would cost a claim, and a time in which a successor finds none.
//!
//! What this costs: on 3.1.1 a retired lane's session is left to the broker's own expiry. And where the *broker* has lost its sessions, an A that connects before B leaves an
//! empty one behind, which passes for the real one: see "What can't be known" in the [module](super).

#[cfg(test)]
mod tests;

use super::Session;
use super::link::{Link, Up};
use crate::core::types::Millis;

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
}
