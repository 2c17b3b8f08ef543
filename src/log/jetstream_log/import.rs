//! Another store is taken in: with its id, its positions and its generations, so that it goes on as if it had always been here.
//!
//! ```text
//!   source ──page by page──▶ stream      each page a commit
//!     └──▶ its outbox ──▶ checkpoint ──▶ identity, last      without it there is no store here, and no service starts on it
//!                             └── then both are read again: the events have to be the same, and so have the outboxes
//! ```
//! The id stays, because client ids are made of it: the broker's sessions go on, and QoS 2 stays exactly once. So only one of the two stores may be used
//! from then on. Memory is bounded by a page of either side.

use super::open::{self, Purpose};
use super::{EventLog, JetStreamLog, Options, Part, known};
use crate::core::types::{LaneKey, SendNo, Seq};
use crate::log::committer::{RecoverError, encode_checkpoint, recover};
use crate::log::{AppendError, LogReader, OpenError, Opened, ReadError};

/// What was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// The oldest event.
    pub first: Seq,
    /// The newest.
    pub last: Seq,
    /// Deliveries that are still to be made.
    pub pending: u64,
}

/// Why a store was not taken in. The source is as it was; what was begun at the target is no store.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The target can't be opened, or is not empty.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The source can't be read.
    #[error("reading the source: {0}")]
    Read(#[from] ReadError),
    /// The events of the source, or of the copy, don't fit each other.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The target can't be written.
    #[error("writing the copy: {0}; delete the stream and the bucket before you try again")]
    Append(#[from] AppendError),
    /// The copy is not the original.
    #[error("the copy differs from the original at event {0}: don't use it, and please report this")]
    Differs(Seq),
}

/// Copies the store that `source` is to the stream of `options`, and compares. `done` is told how far it is, in events.
///
/// # Errors
/// See [`ImportError`].
pub fn import(source: &Opened, options: Options, done: &dyn Fn(u64)) -> Result<Imported, ImportError> {
    let outbox = recover(source)?;
    let checkpoint = encode_checkpoint(&outbox);
    let firsts: Vec<Seq> = source.log.generations().iter().map(|generation| generation.first).collect();
    let (first, next) = (firsts[0], source.log.next_seq());
    let purpose = Purpose::Import(source.log.store_id(), first);
    let (mut log, ..) = open::open_log(options.clone(), purpose)?;
    let reader = source.log.reader();
    while log.next_seq() < next {
        let at = log.next_seq();
        if at > first && firsts.contains(&at) {
            log.cut()?;
        }
        let page = reader.page(at)?.ok_or_else(|| ReadError::Damaged { seq: at, what: "the event is missing".into() })?;
        let sends = |lane: &LaneKey| page.sends.iter().find(|(known, _)| known == lane).map_or(SendNo::default(), |(_, send)| *send);
        log.append(&page.events, &sends)?;
        done(page.events.len() as u64);
    }
    if next > first && firsts.contains(&next) {
        log.cut()?;
    }
    log.finish(&checkpoint)?;
    let copy = JetStreamLog::open(options)?;
    compare(&*reader, &*copy.log.reader(), first, next)?;
    let copied = recover(&copy)?;
    let same_firsts = copy.log.generations().iter().map(|generation| generation.first).eq(firsts);
    if encode_checkpoint(&copied) != checkpoint || !same_firsts {
        return Err(ImportError::Differs(next));
    }
    copy.log.close(&checkpoint)?;
    let pending = outbox.connections().values().map(|connection| connection.totals.pending).sum();
    Ok(Imported { first, last: Seq(next.0 - 1), pending })
}

/// Reads both, event by event.
fn compare(source: &dyn LogReader, copy: &dyn LogReader, first: Seq, next: Seq) -> Result<(), ImportError> {
    let mut at = first;
    while at < next {
        let (Some(one), Some(other)) = (source.page(at)?, copy.page(at)?) else { return Err(ImportError::Differs(at)) };
        let until = one.last().min(other.last());
        while at <= until {
            if one.get(at).is_none() || one.get(at) != other.get(at) {
                return Err(ImportError::Differs(at));
            }
            at = at.next();
        }
        if one.sends != other.sends {
            return Err(ImportError::Differs(one.first));
        }
    }
    Ok(())
}

impl JetStreamLog {
    /// Begins a generation at the next position, without a checkpoint: only the last one of the source is known.
    fn cut(&mut self) -> Result<(), AppendError> {
        let begun = Part { first: self.next_seq(), message: self.end + 1, newest: None, bytes: 0 };
        let before = *self.shared.parts().last().expect("there is always one that is written");
        self.change(move |state| {
            if state.generations.last().is_some_and(|last| last.first < begun.first) {
                known(state, before);
                state.generations.push(begun);
            }
        })
    }

    /// Makes a store of it.
    fn finish(mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.leave_clean(checkpoint)?;
        let (bucket, identity) = (self.bucket.clone(), self.identity.clone());
        self.done(async move { bucket.create("identity", &identity).await?.map(|_| ()).ok_or("another store was begun there".to_owned()) })
    }
}
