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
//! they are equal. What an overtaken batch has changed is taken back ([`Outbox::take_back`]), which costs what the batch costs, whatever the store
//! holds. What others append is folded when an append is overtaken, and every [`FOLLOW`] when there is nothing else to do, so that lanes
//! see it soon.
//!
//! So every instance has the whole fold all the time, and one that takes a lane over reads nothing for it: only a start reads, what came after the newest
//! checkpoint.
//!
//! # Nothing is refused because it was not known yet
//! This fold may be a moment behind the log. A request that does not fit it (an outcome of a lane that is not this instance's, a dead letter that is
//! none, a report for lanes that take none) is refused only if all was read that was in the log when the request was handed in; otherwise it is read
//! first, and the request is admitted again. A question that has to be answered as of now
//! ([`LogHandle::ask_latest`], [`LogHandle::ask_in_order`]) is treated the same way.
//!
//! Where the servers don't answer there is nothing to read for the moment ([`EventLog::catch_up`]), and all that needs no commit goes on.
//!
//! # One set of lanes
//! A report is bound to a lane before it is handed in, by the lanes that its instance knows. If the connection has a newer set by then, it is refused
//! ([`CommitError::LanesChanged`]), or reports of one topic would be on two lanes, and nobody could say which is first.
//!
//! # The fence
//! A request is admitted only if this instance may say what is in it ([`Outbox::check_from`]): outcomes of a lane come from its owner. An append
//! succeeds only if this instance had read everything before it, so what was checked is so at the place in the log where it stands. An instance that was
//! stopped while another took its lane is overtaken, reads that, admits its outcomes anew, and refuses them itself: `CommitError::NotOwner`. Without
//! a `Committed` no PUBREL leaves. Clocks and leases have no part in it.
//!
//! What the leader does for all, retention, is in [`generations`].

mod generations;

#[cfg(test)]
mod freshness;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::handle::{Append, Command};
use super::{Batch, CommitError, Committer, Limits, LogHandle, RecoverError, Reply, Stepped, build, run_on_a_thread};
use crate::core::event::Event;
use crate::core::outbox::{FoldError, Outbox};
use crate::core::types::{InstanceId, Seq};
use crate::failpoint::{self, Point};
use crate::log::{AppendError, EventLog};
use crate::metrics::Metrics;

/// So often is looked for what others have appended, while there is nothing else to do: what a report waits for its lane at another instance.
const FOLLOW: Duration = Duration::from_millis(50);

/// So often is a batch tried before producers are told to come again. Of n instances that append all the time one in n tries succeeds.
const TRIES: u32 = 32;

/// And so often what nobody would bring again: the lane that it is about ends with it. That is half a minute at least.
const OUTCOME_TRIES: u32 = 2_000;

/// From the second time on that a batch is overtaken, so long is waited at most, doubled each time…
const WAIT: Duration = Duration::from_millis(1);

/// … up to this: longer than a commit takes.
const LONGEST_WAIT: Duration = Duration::from_millis(32);

/// So long after others have appended they are taken to go on with it.
const HEARD: Duration = Duration::from_millis(500);

/// Of those that are not heard of, so many commits are made before they are left a turn.
const IN_A_ROW: u32 = 8;

/// What a shared log needs.
pub(super) struct Shared {
    instance: InstanceId,
    /// The fold of what is in the log.
    confirmed: Outbox,
    /// When the last reading of what others have appended began: all that was in the log then is in the fold.
    read_at: Instant,
    /// How long it took.
    reading: Duration,
    /// When others were last found to have appended.
    heard_at: Option<Instant>,
    /// Commits since the others were left a turn.
    in_a_row: u32,
    /// Another instance has bumped the epochs since this one has started.
    others_bumped: bool,
    /// Something has been put off until what others have appended is read.
    is_in_doubt: bool,
    kept: generations::Kept,
}

/// A request of the batch, without its answer.
pub(super) struct Again {
    events: Vec<Event>,
    bytes: usize,
    is_accept: bool,
    handed_in: Instant,
}

impl Again {
    pub(super) fn of(append: &Append) -> Again {
        let Append { events, bytes, is_accept, handed_in, .. } = append;
        Again { events: events.clone(), bytes: *bytes, is_accept: *is_accept, handed_in: *handed_in }
    }

    fn with(self, reply: Reply) -> Append {
        let Again { events, bytes, is_accept, handed_in } = self;
        Append { events, bytes, is_accept, reply, place: None, handed_in, claim: None }
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
    if let Some(peers) = handle.peers() {
        peers.on_growth(waker(&handle));
    }
    Ok(handle)
}

/// Has an idle committer follow at once. One that is at work finds out by itself.
fn waker(handle: &LogHandle) -> Box<dyn Fn() + Send + Sync> {
    let (commands, busy) = (handle.commands.downgrade(), Arc::clone(&handle.busy));
    Box::new(move || {
        let is_idle = busy.since.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if is_idle && let Some(commands) = commands.upgrade() {
            // A channel that is full is work to be done.
            let _ = commands.try_send(Command::Follow);
        }
    })
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
        let confirmed = self.outbox.clone();
        self.shared = Some(Box::new(Shared {
            instance,
            confirmed,
            read_at: Instant::now(),
            reading: Duration::ZERO,
            heard_at: None,
            in_a_row: 0,
            others_bumped: false,
            is_in_doubt: false,
            kept: generations::Kept::default(),
        }));
        self.know_generations();
    }

    /// How long is waited for a command, if there is to be housekeeping in `wait`.
    pub(super) fn patience(&self, wait: Duration) -> Duration {
        match &self.shared {
            // Servers that answer slowly, or not at all, don't take all the time.
            Some(shared) => wait.min(FOLLOW.max(shared.reading)),
            None => wait,
        }
    }

    /// Why this instance may not append these: the fence, lanes that take no reports any more, and epochs of a copy that another one has bumped.
    pub(super) fn not_its_own(&self, events: &[Event]) -> Option<CommitError> {
        let shared = self.shared.as_ref()?;
        events.iter().find_map(|event| match event {
            Event::Accepted(accepted) if !self.outbox.takes_new(&accepted.lane) => Some(CommitError::LanesChanged(accepted.lane.clone())),
            Event::EpochBumped { .. } if shared.others_bumped => Some(CommitError::ChangedMeanwhile(FoldError::AlreadyBumped)),
            event => self.outbox.check_from(shared.instance, event).err().map(CommitError::NotOwner),
        })
    }

    /// Whether what was handed in then may be refused: not if others may have appended before that what makes it fit. Then that is read first.
    pub(super) fn may_refuse(&mut self, handed_in: Instant) -> bool {
        let Some(shared) = &mut self.shared else { return true };
        shared.is_in_doubt = shared.read_at <= handed_in;
        !shared.is_in_doubt
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.is_in_doubt)
    }

    /// Reads what others have appended, if something waits for that. To be called between two commits.
    pub(super) fn end_doubt(&mut self) {
        if self.is_in_doubt() {
            self.follow();
        }
    }

    /// Reads what others have appended. To be called between two commits.
    pub(super) fn follow(&mut self) {
        match self.catch_up(&[]) {
            Ok(0) => {}
            Ok(_) => {
                self.count_awaited();
                self.publish_progress();
            }
            // It is published, and the service stops.
            Err(error) => tracing::debug!(%error, "what others have appended could not be read"),
        }
    }

    /// Folds what others have appended, and says how many events that were. `ahead` is what has been folded and is not in the log; it is taken back.
    fn catch_up(&mut self, ahead: &[Event]) -> Result<u64, CommitError> {
        let Some(shared) = &mut self.shared else { return Ok(0) };
        let began = Instant::now();
        (shared.read_at, shared.is_in_doubt) = (began, false);
        let pages = self.with_log(|log, _| log.catch_up())?;
        let Some(shared) = &mut self.shared else { return Ok(0) };
        shared.reading = began.elapsed();
        self.outbox.take_back(ahead, &shared.confirmed);
        #[cfg(test)]
        assert!(ahead.is_empty() || self.outbox == shared.confirmed, "what was ahead is taken back");
        let before = self.outbox.next();
        let mut wrong = None;
        'read: for page in &pages {
            if page.first != self.outbox.next() {
                wrong = Some(format!("the shared log goes on at event {}, and {} comes next", page.first, self.outbox.next()));
                break;
            }
            for event in &page.events {
                if let Err(error) = self.outbox.apply(event).and_then(|_| shared.confirmed.apply(event)) {
                    wrong = Some(error.to_string());
                    break 'read;
                }
                shared.others_bumped |= matches!(event, Event::EpochBumped { .. });
            }
        }
        let count = self.outbox.next().0 - before.0;
        if count > 0 {
            shared.heard_at = Some(began);
        }
        self.metrics.tidings_log_lag_events.set(i64::try_from(count).unwrap_or(i64::MAX));
        if let Some(what) = wrong {
            self.fail(&what);
            return Err(CommitError::Stopped);
        }
        for page in &pages {
            self.heed(page.first, &page.events)?;
        }
        Ok(count)
    }

    /// Makes the batch durable behind everything that others have appended, and answers.
    pub(super) fn commit_shared(&mut self, mut batch: Batch) {
        for tries in 1..=OUTCOME_TRIES {
            // All of it may have been refused, or be known.
            let began = Instant::now();
            let result = if batch.events.is_empty() { Ok(()) } else { self.write(&batch) };
            match result {
                Ok(()) => {
                    let took = began.elapsed();
                    self.confirm(batch);
                    return self.let_others_append(took);
                }
                Err(CommitError::Store(AppendError::Overtaken)) => {}
                Err(error) => return answer_all(batch, &error),
            }
            self.metrics.tidings_log_overtaken_total.inc();
            if tries > 1 {
                std::thread::sleep(wait_before(tries));
            }
            if let Err(error) = self.catch_up(&batch.events) {
                return answer_all(batch, &error);
            }
            if tries < OUTCOME_TRIES {
                batch = self.admit_anew(batch, tries < TRIES);
            }
            if batch.waiters.is_empty() {
                return self.publish_progress();
            }
        }
        self.publish_progress();
        answer_all(batch, &CommitError::Overloaded);
    }

    /// Whoever has just appended has read everything, and could append again before anybody else has read that: the others would never have their turn, and what their
    /// lanes have delivered would never be recorded. So each leaves the others a turn: at every commit while they append, and now and then while nothing is heard of them,
    /// because who never has its turn is not heard of either.
    fn let_others_append(&mut self, took: Duration) {
        let Some(shared) = &mut self.shared else { return };
        let others = shared.confirmed.owners().members().filter(|instance| *instance != shared.instance).count();
        let are_heard = shared.heard_at.is_some_and(|at| at.elapsed() < HEARD);
        shared.in_a_row += 1;
        if let Some(turn) = turn_of_others(others, are_heard, shared.in_a_row, took) {
            shared.in_a_row = 0;
            std::thread::sleep(turn);
        }
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
        if self.heed(Seq(self.outbox.next().0 - batch.events.len() as u64), &batch.events).is_err() {
            return answer_all(batch, &CommitError::Stopped);
        }
        failpoint::reach(Point::BeforeAnswer);
        let taken = batch.events.iter().filter(|event| matches!(event, Event::LaneTaken { .. })).count();
        self.metrics.tidings_cluster_takeovers_total.inc_by(taken as u64);
        self.publish_progress();
        self.waiters.answer(batch.waiters);
    }

    /// Admits each request of the batch again, in their order, onto what is confirmed now; those of producers too, or they are told to come again.
    fn admit_anew(&mut self, batch: Batch, with_accepts: bool) -> Batch {
        let mut anew = Batch { places: batch.places, ..Batch::default() };
        for ((reply, _), again) in batch.waiters.into_iter().zip(batch.again) {
            if again.is_accept && !with_accepts {
                self.refuse(again.with(reply), CommitError::Overloaded);
                continue;
            }
            // There was room for all of it a moment ago.
            if let Err(append) = self.admit(again.with(reply), &mut anew) {
                self.refuse(append, CommitError::Overloaded);
            }
        }
        anew
    }
}

/// How long the others are left to append, after a commit that `took` so long: one has to read and to append in it. None if it is not their turn.
fn turn_of_others(others: usize, are_heard: bool, in_a_row: u32, took: Duration) -> Option<Duration> {
    let is_theirs = others > 0 && (are_heard || in_a_row >= IN_A_ROW);
    is_theirs.then(|| took.saturating_mul(u32::try_from(others.max(2)).unwrap_or(u32::MAX)).min(LONGEST_WAIT))
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
