//! Generations of a shared log: the leader begins and drops them for all, by events, so that every instance has the same.
//!
//! ```text
//!   leader    GenerationBegun ─▶ log          its fold and everybody's: the next event begins a generation, lane by lane
//!             then: where it begins, and a checkpoint as of there, are put beside the log ([`EventLog::keep_generations`])
//!   leader    GenerationDropped ─▶ log        fits only if nothing in it is needed; everybody's anchors move, and readers say "gone"
//!             then: the log deletes it
//! ```
//! Between the event and the deletion is a moment ([`GRACE`]), in which the other instances read what they have not read yet.
//!
//! What comes after the event may be done twice, late or by the next leader: whoever begins to lead does it once. Nothing is deleted before the
//! event is in the log, so nobody can need what is gone, but an instance that has not read for so long that its place in the log is gone. It stops,
//! and starts again from the checkpoint.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Append, Batch, CommitError, Committer};
use crate::core::event::Event;
use crate::core::types::Seq;
use crate::log::committer::handle::size_of_event;
use crate::log::committer::{encode_checkpoint, now};

/// What was dropped is deleted after this: an instance at work reads on many times a second, and one that is stopped for longer reads a checkpoint.
const GRACE: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });

/// A checkpoint is put beside the log after so many events, too: what a start has to read at most. On servers each commit is a message of its own, and read by itself.
const CHECKPOINT_EVENTS: u64 = 10_000;

/// But no more often than this: it is written as a whole, and commits wait for it.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// What this instance has done for all.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// It was the leader when it looked last.
    leads: bool,
    /// What its fold says of generations has been put beside the log since it leads.
    is_done: bool,
    /// Not before this time.
    not_before: Option<Instant>,
    /// So many bytes have been dropped, and are not free yet.
    freed: u64,
    /// The position of the newest checkpoint that it has put there.
    checkpoint: Seq,
    /// And when.
    put_at: Option<Instant>,
}

impl Kept {
    /// Whether a start would have to read much.
    fn is_far_behind(&self, next: Seq) -> bool {
        let is_a_while_ago = self.put_at.is_none_or(|at| at.elapsed() >= CHECKPOINT_EVERY);
        is_a_while_ago && next.0.saturating_sub(self.checkpoint.0) >= CHECKPOINT_EVENTS
    }
}

impl Committer {
    /// Tells the log of the generations that the outbox has.
    pub(super) fn know_generations(&mut self) {
        let firsts: Vec<Seq> = self.outbox.generations().collect();
        let result = self.with_log(|log, _| {
            firsts.iter().try_for_each(|first| log.note_generation(*first))?;
            firsts.first().map_or(Ok(()), |first| log.note_dropped(*first))
        });
        if let Err(error) = result {
            // It is published, and the service stops.
            tracing::debug!(%error, "the log could not be told of its generations");
        }
    }

    /// Tells the log what events say of generations. The first of them stands at `first`.
    pub(super) fn heed(&mut self, first: Seq, events: &[Event]) -> Result<(), CommitError> {
        for (seq, event) in (first.0..).map(Seq).zip(events) {
            match event {
                Event::GenerationBegun { .. } => self.with_log(|log, _| log.note_generation(seq.next()))?,
                Event::GenerationDropped { before, .. } => self.with_log(|log, _| log.note_dropped(*before))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Does what the leader does for all, if that is this instance. To be called between two commits.
    pub(in crate::log::committer) fn lead(&mut self) {
        let Some(shared) = &mut self.shared else { return };
        let leads = self.outbox.owners().leader() == Some(shared.instance);
        if leads != shared.kept.leads {
            // Who led before may have stopped half-way.
            (shared.kept.leads, shared.kept.is_done) = (leads, false);
        }
        if !leads {
            return;
        }
        self.keep_generations();
        if self.log.as_ref().is_some_and(|log| log.is_generation_full()) {
            self.begin_generation_for_all();
        }
        self.retain();
    }

    /// What has been dropped on a shared log and is not free yet, in bytes.
    pub(in crate::log::committer) fn being_freed(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.kept.freed)
    }

    pub(in crate::log::committer) fn begin_generation_for_all(&mut self) {
        if self.append_own(Event::GenerationBegun { at: now() }).is_ok() {
            self.change_kept(|kept| kept.is_done = false);
            // At once: the checkpoint is as of the beginning then.
            self.keep_generations();
        }
    }

    /// Drops what comes before that generation, which takes so many bytes.
    pub(in crate::log::committer) fn drop_generations_for_all(&mut self, before: Seq, bytes: u64) -> Option<()> {
        self.append_own(Event::GenerationDropped { before, at: now() }).ok()?;
        self.change_kept(|kept| {
            kept.is_done = false;
            kept.not_before = Some(Instant::now() + GRACE);
            kept.freed += bytes;
        });
        Some(())
    }

    fn change_kept(&mut self, change: impl FnOnce(&mut Kept)) {
        if let Some(shared) = &mut self.shared {
            change(&mut shared.kept);
        }
    }

    /// Puts beside the log what the fold says of generations, if that has not been done.
    fn keep_generations(&mut self) {
        let next = self.outbox.next();
        let is_due = |kept: &Kept| match kept.is_done {
            true => kept.is_far_behind(next),
            false => kept.not_before.is_none_or(|at| at <= Instant::now()),
        };
        let Some(shared) = self.shared.as_ref().filter(|shared| shared.kept.leads && is_due(&shared.kept)) else { return };
        // What is dropped takes the checkpoints along that are older than what is left.
        let newest = self.outbox.generations().next_back().unwrap_or(Seq::FIRST);
        let is_needed = shared.kept.is_far_behind(next) || (newest > Seq::FIRST && shared.kept.checkpoint < newest);
        let checkpoint = is_needed.then(|| encode_checkpoint(&self.outbox));
        match self.with_log(|log, _| log.keep_generations(checkpoint.as_deref())) {
            Ok(true) => self.change_kept(|kept| {
                (kept.is_done, kept.not_before, kept.freed) = (true, None, 0);
                if is_needed {
                    (kept.checkpoint, kept.put_at) = (next, Some(Instant::now()));
                }
            }),
            // At the next tick.
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "generations could not be kept"),
        }
    }

    /// Appends an event of the committer's own. To be called between two commits.
    fn append_own(&mut self, event: Event) -> Result<(), CommitError> {
        let handed_in = Instant::now();
        self.follow();
        let (reply, mut answer) = oneshot::channel();
        let append =
            Append { bytes: size_of_event(&event), events: vec![event], is_accept: false, reply, place: None, handed_in, claim: None };
        let mut batch = Batch::default();
        // It is tried again at the next tick.
        self.admit(append, &mut batch).map_err(|_| CommitError::Overloaded)?;
        self.commit(batch);
        answer.try_recv().unwrap_or(Err(CommitError::Stopped)).map(drop)
    }
}
