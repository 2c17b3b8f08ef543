//! Space: when reports are refused, and what becomes of outcomes that there is no room for.
//!
//! ```text
//!   free ≥ reserve          reports are accepted
//!   free < reserve          reports are refused (507); outcomes, carried deliveries and checkpoints go on in what was kept for them
//!   nothing free            … in the ballast
//!   no ballast either       outcomes are held here, in order, until there is room: nothing is written that could fail
//! ```
//! What is held stays bounded by itself: a lane has at most two windows of outcomes that are not durable, and then sends nothing more. So
//! a disk that is full costs no delivery twice, and all goes on by itself when space is back. Questions that lanes ask when they
//! start wait as well, because their answer is to hold what the lane has recorded before.

use std::collections::VecDeque;

use super::handle::{Append, Command};
use super::{Batch, COMMIT_BYTES, COMMIT_EVENTS, CommitError, Committer};
use crate::log::{Space, Urgency};

/// So many outcomes are held when there is no room for them: the windows of some hundred lanes. What is more is refused; the lane that it
/// came from starts anew later.
pub(super) const HELD_REQUESTS: usize = 65_536;

/// Room is asked for in steps of so many bytes of events, so that a commit of many small requests asks a few times and not for each.
const ROOM_STEP: usize = 256 << 10;

/// What waits for room.
#[derive(Default)]
pub(super) struct Held(VecDeque<Command>);

impl Held {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Command> + '_ {
        self.0.drain(..)
    }
}

impl Committer {
    /// What has to be free for reports to be accepted: see [`Sizes::reserve`](crate::log::sizes::Sizes::reserve).
    pub(super) fn reserve(&self) -> u64 {
        self.sizes.reserve(self.awaited)
    }

    /// Counts what waits for its outcome in the oldest generation.
    pub(super) fn count_awaited(&mut self) {
        let all = || self.outbox.connections().values().map(|connection| connection.totals.pending + connection.totals.dead).sum();
        self.awaited = self.outbox.needed_in_oldest_generation().unwrap_or_else(all);
    }

    /// Whether space is so short that the history of delivered reports has to make room, if `freed` bytes are being deleted already.
    pub(super) fn is_tight(&self, freed: u64) -> bool {
        let Some(log) = self.log.as_ref() else { return false };
        let space = log.space();
        // Servers say only after a while that something was deleted.
        let used = if self.shared.is_some() { space.used.saturating_sub(freed) } else { space.used };
        used >= self.limits.max_size / 10 * 9 || space.free.saturating_add(freed) < self.sizes.tight(self.reserve())
    }

    /// Why reports are refused, as of when the batch was begun. What is held since then counts at once.
    pub(super) fn full_for(&self, batch: &mut Batch) -> Option<String> {
        if !self.held.is_empty() {
            return self.full_with(Space::default());
        }
        batch.full.get_or_insert_with(|| self.log.as_ref().and_then(|log| self.full_with(log.space()))).clone()
    }

    /// Why reports are refused where the disk looks so.
    pub(super) fn full_with(&self, space: Space) -> Option<String> {
        self.log.as_ref()?;
        if !self.held.is_empty() {
            return Some(format!(
                "the disk is so full that {} outcomes of deliveries wait for room, and deliveries with them; free some space, and all goes on",
                self.held.len()
            ));
        }
        if space.used >= self.limits.max_size {
            return Some(format!(
                "it takes {} bytes and `store.max_size` is {}; reports are accepted again when deliveries have made room{}",
                space.used,
                self.limits.max_size,
                self.holders()
            ));
        }
        let reserve = self.reserve();
        if space.free < reserve {
            let ballast = if space.ballast == 0 { ", and its ballast has been released" } else { "" };
            return Some(format!(
                "only {} bytes are free on its disk and {reserve} are kept for outcomes{ballast}; free some space, and reports are accepted again",
                space.free
            ));
        }
        None
    }

    /// What keeps the oldest generation, and with it all behind that.
    fn holders(&self) -> String {
        match self.awaited {
            0 => String::new(),
            count => format!("; {count} that are pending or dead hold the oldest part of it, and nothing behind that is deleted before it"),
        }
    }

    /// Whether the batch can take so many more bytes: the log has room for all of it.
    pub(super) fn has_room(&mut self, batch: &mut Batch, bytes: usize, urgency: Urgency) -> bool {
        let wanted = batch.bytes + bytes;
        for room in [wanted.next_multiple_of(ROOM_STEP), wanted] {
            if batch.room >= wanted {
                return true;
            }
            // For the larger step nothing is given up.
            let urgency = if room == wanted { urgency } else { Urgency::CanBeRefused };
            if self.with_log(|log, _| log.make_room(room as u64, urgency)).unwrap_or(false) {
                batch.room = room;
            }
        }
        batch.room >= wanted
    }

    /// Keeps what there is no room for.
    pub(super) fn hold(&mut self, command: Command) {
        if self.held.len() >= HELD_REQUESTS {
            // A question is dropped, which tells who asked.
            if let Command::Append(append) = command {
                self.refuse(append, CommitError::Overloaded);
            }
            return;
        }
        self.held.0.push_back(command);
        if self.held.len() == 1 {
            self.publish_progress();
        }
    }

    /// Commits what is held, as far as there is room.
    pub(super) fn try_held(&mut self) {
        let had = self.held.len();
        while self.log.is_some() && !self.held.is_empty() {
            self.end_doubt();
            let before = self.held.len();
            let mut batch = Batch::default();
            while batch.events.len() < COMMIT_EVENTS && batch.bytes < COMMIT_BYTES {
                match self.held.0.pop_front() {
                    Some(Command::Append(append)) => {
                        if let Err(append) = self.admit(append, &mut batch) {
                            self.held.0.push_front(Command::Append(append));
                            break;
                        }
                    }
                    Some(other) if batch.waiters.is_empty() => self.answer(other),
                    Some(other) => {
                        self.held.0.push_front(other);
                        break;
                    }
                    None => break,
                }
            }
            if self.held.len() == before && !self.is_in_doubt() {
                break;
            }
            self.commit(batch);
        }
        if had > 0 && self.held.is_empty() {
            self.publish_progress();
        }
    }

    /// Takes an append into the batch, or finds another place for it: it is refused, held, or comes in the next batch.
    pub(super) fn place(&mut self, mut append: Append, batch: &mut Batch) -> Option<Command> {
        // Once here it can't be withdrawn any more.
        if append.claim.take().is_some_and(|claim| !claim.is_first()) {
            return None;
        }
        if !self.held.is_empty() && !append.is_accept {
            self.hold(Command::Append(append));
            return None;
        }
        match self.admit(append, batch) {
            Ok(()) => None,
            // What others have appended is read first, when the batch is committed.
            Err(append) if self.is_in_doubt() => Some(Command::Append(append)),
            // Alone it may fit.
            Err(append) if !batch.waiters.is_empty() => Some(Command::Append(append)),
            Err(append) if append.is_accept => {
                let reason = "there is no room on its disk for a request of this size; free some space, and it is accepted".into();
                self.refuse(append, CommitError::Full(reason));
                None
            }
            Err(append) => {
                self.hold(Command::Append(append));
                None
            }
        }
    }
}
