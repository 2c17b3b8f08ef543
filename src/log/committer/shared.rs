//! The committer over a log to which other instances append as well.
//!
//! ```text
//!   batch ─▶ admitted and folded into the outbox (speculative)
//!              │
//!              ├─ append ── stored ─────▶ folded into `confirmed` too, answered with Committed
//!              │
//!              └─ append ── overtaken ──▶ nothing is stored
//!                    ▲                     read what others have appended; fold it into `confirmed`
//!                    │                     speculative = confirmed
//!                    └──────────────────── admit every request of the batch anew: it may be known by now, or refused
//! ```
//!
//! Two outboxes: `confirmed` is the fold of what is in the log, and the committer's own one is ahead of it by the batch under way; between two commits
//! they are equal. What others append is folded when an append is overtaken, and every [`FOLLOW`] when there is nothing else to do, so that lanes
//! see it soon.
//!
//! # The fence
//! A request is admitted only if this instance may say what is in it ([`Outbox::check_from`]): outcomes of a lane come from its owner. An append
//! succeeds only if this instance had read everything before it, so what was checked is so at the place in the log where it stands. An instance that was
//! stopped while another took its lane is overtaken, reads that, admits its outcomes anew, and refuses them itself: `CommitError::NotOwner`. Without
//! a `Committed` no PUBREL leaves. Clocks and leases have no part in it.
//!
//! # Not here
//! Generations are neither begun nor dropped by this committer: what a shared log keeps is up to what it is kept in.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use super::handle::Append;
use super::{Batch, CommitError, Committed, Committer, Limits, LogHandle, RecoverError, Reply, Stepped, build, run_on_a_thread};
use crate::core::event::Event;
use crate::core::outbox::Outbox;
use crate::core::types::InstanceId;
use crate::failpoint::{self, Point};
use crate::log::{AppendError, EventLog};
use crate::metrics::Metrics;

/// So often is looked for what others have appended, while there is nothing else to do: what a report waits for its lane at another instance.
const FOLLOW: Duration = Duration::from_millis(50);

/// So often is a batch tried before its requests are told to come again. Of n instances that append all the time one in n tries succeeds.
const TRIES: u32 = 32;

/// From the second time on that a batch is overtaken, so long is waited at most, doubled each time…
const WAIT: Duration = Duration::from_millis(1);

/// … up to this: longer than a commit takes.
const LONGEST_WAIT: Duration = Duration::from_millis(32);

/// What a shared log needs.
pub(super) struct Shared {
    instance: InstanceId,
    /// The fold of what is in the log.
    confirmed: Outbox,
}

/// A request of the batch, without its answer.
pub(super) struct Again {
    events: Vec<Event>,
    bytes: usize,
    is_accept: bool,
}

impl Again {
    pub(super) fn of(append: &Append) -> Again {
        Again { events: append.events.clone(), bytes: append.bytes, is_accept: append.is_accept }
    }

    fn with(self, reply: Reply) -> Append {
        Append { events: self.events, bytes: self.bytes, is_accept: self.is_accept, reply, place: None }
    }
}

/// As [`start`](super::start), on a log that is shared; this process is `instance`.
///
/// # Errors
/// As [`start`](super::start).
pub fn start_shared(
    log: Box<dyn EventLog>,
    outbox: Outbox,
    limits: Limits,
    metrics: Arc<Metrics>,
    instance: InstanceId,
) -> Result<LogHandle, RecoverError> {
    let (handle, mut committer) = build(log, outbox, limits, metrics);
    committer.share(instance);
    run_on_a_thread(committer)?;
    Ok(handle)
}

/// As [`stepped`](super::stepped()), on a log that is shared.
pub fn stepped_shared(
    log: Box<dyn EventLog>,
    outbox: Outbox,
    limits: Limits,
    metrics: Arc<Metrics>,
    instance: InstanceId,
) -> (LogHandle, Stepped) {
    let (handle, mut committer) = build(log, outbox, limits, metrics);
    committer.share(instance);
    (handle, Stepped::of(committer))
}

impl Committer {
    fn share(&mut self, instance: InstanceId) {
        self.shared = Some(Box::new(Shared { instance, confirmed: self.outbox.clone() }));
    }

    /// How long is waited for a command, if there is to be housekeeping in `wait`.
    pub(super) fn patience(&self, wait: Duration) -> Duration {
        if self.shared.is_some() { wait.min(FOLLOW) } else { wait }
    }

    /// The fence: why this instance may not say these.
    pub(super) fn not_its_own(&self, events: &[Event]) -> Option<CommitError> {
        let shared = self.shared.as_ref()?;
        let error = events.iter().find_map(|event| self.outbox.check_from(shared.instance, event).err())?;
        tracing::warn!(%error, "refused to record what is another instance's to say");
        Some(CommitError::NotOwner(error))
    }

    /// Reads what others have appended. To be called between two commits.
    pub(super) fn follow(&mut self) {
        match self.catch_up() {
            Ok(0) => {}
            Ok(_) => {
                self.be_confirmed();
                self.count_awaited();
                self.publish_progress();
            }
            // It is published, and the service stops.
            Err(error) => tracing::debug!(%error, "what others have appended could not be read"),
        }
    }

    /// Folds what others have appended into what is confirmed, and says how many events that were.
    fn catch_up(&mut self) -> Result<u64, CommitError> {
        if self.shared.is_none() {
            return Ok(0);
        }
        let pages = self.with_log(|log, _| log.catch_up())?;
        let Some(shared) = self.shared.as_mut() else { return Ok(0) };
        let before = shared.confirmed.next();
        let mut wrong = None;
        for page in &pages {
            if page.first != shared.confirmed.next() {
                wrong = Some(format!("the shared log goes on at event {}, and {} comes next", page.first, shared.confirmed.next()));
                break;
            }
            wrong = page.events.iter().find_map(|event| shared.confirmed.apply(event).err()).map(|error| error.to_string());
            if wrong.is_some() {
                break;
            }
        }
        let count = shared.confirmed.next().0 - before.0;
        self.metrics.tidings_log_lag_events.set(i64::try_from(count).unwrap_or(i64::MAX));
        match wrong {
            None => Ok(count),
            Some(what) => {
                self.fail(&what);
                Err(CommitError::Stopped)
            }
        }
    }

    /// The outbox is what is confirmed, and nothing else.
    fn be_confirmed(&mut self) {
        if let Some(shared) = &self.shared {
            self.outbox.clone_from(&shared.confirmed);
        }
    }

    /// Makes the batch durable behind everything that others have appended, and answers.
    pub(super) fn commit_shared(&mut self, mut batch: Batch) {
        for tries in 1..=TRIES {
            // All of it may have been refused, or be known.
            let result = if batch.events.is_empty() { Ok(()) } else { self.write(&batch) };
            match result {
                Ok(()) => return self.confirm(batch),
                Err(CommitError::Store(AppendError::Overtaken)) => {}
                Err(error) => return answer_all(batch, &error),
            }
            self.metrics.tidings_log_overtaken_total.inc();
            if tries > 1 {
                std::thread::sleep(wait_before(tries));
            }
            if let Err(error) = self.catch_up() {
                return answer_all(batch, &error);
            }
            self.be_confirmed();
            if tries < TRIES {
                batch = self.admit_anew(batch);
            }
        }
        self.publish_progress();
        answer_all(batch, &CommitError::Overloaded);
    }

    /// It is in the log.
    fn confirm(&mut self, batch: Batch) {
        if let Some(shared) = &mut self.shared
            && let Some(error) = batch.events.iter().find_map(|event| shared.confirmed.apply(event).err())
        {
            // It has been folded into the other one.
            let what = format!("a fault in Tidings: {error}");
            self.fail(&what);
            return answer_all(batch, &CommitError::Stopped);
        }
        failpoint::reach(Point::BeforeAnswer);
        self.publish_progress();
        for (reply, appended) in batch.waiters {
            let _ = reply.send(Ok(Committed(appended)));
        }
    }

    /// Admits each request of the batch again, in their order, onto what is confirmed now.
    fn admit_anew(&mut self, batch: Batch) -> Batch {
        let mut anew = Batch { places: batch.places, ..Batch::default() };
        for ((reply, _), again) in batch.waiters.into_iter().zip(batch.again) {
            // There was room for all of it a moment ago.
            if let Err(append) = self.admit(again.with(reply), &mut anew) {
                self.refuse(append, CommitError::Overloaded);
            }
        }
        anew
    }
}

/// Half of the time is chance, so that those who met do not meet again.
fn wait_before(tries: u32) -> Duration {
    let longest = WAIT.saturating_mul(1 << tries.min(10)).min(LONGEST_WAIT);
    // Without chance it is the whole of it.
    let chance = getrandom::u32().unwrap_or(u32::MAX);
    longest / 2 + (longest / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

fn answer_all(batch: Batch, error: &CommitError) {
    for (reply, _) in batch.waiters {
        // A producer that went away needs no answer.
        let _ = reply.send(Err(error.clone()));
    }
}
