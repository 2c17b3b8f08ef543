//! A store is taken in by another kind of store: with its id, its positions and its generations, so that it goes on as if it had always been there.
//!
//! ```text
//!   source ──page by page──▶ target     each page a commit, each generation one
//!     └──▶ its outbox ──▶ checkpoint ──▶ identity, last      without it there is no store, and no service starts on it
//!                             └── then both are read again: the events have to be the same, and so have the outboxes
//! ```
//! The id stays, because client ids are made of it: the broker's sessions go on, and QoS 2 stays exactly once. So only one of the two stores may be used
//! from then on. Memory is bounded by a page of either side, and the outbox.

use super::committer::{RecoverError, decode_checkpoint, encode_checkpoint, recover};
use super::{AppendError, EventLog, LogReader, OpenError, Opened, ReadError};
use crate::core::outbox::Outbox;
use crate::core::types::{LaneKey, SendNo, Seq};

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
    #[error("writing the copy: {0}; delete what was begun there before you try again")]
    Append(#[from] AppendError),
    /// The copy is not the original.
    #[error("the copy differs from the original at event {0}: don't use it, and please report this")]
    Differs(Seq),
    /// Somebody works on the source.
    #[error("{0}")]
    Busy(String),
}

/// A store that is being made.
pub(super) trait Target {
    /// The log that is written.
    fn log(&mut self) -> &mut dyn EventLog;

    /// Begins a generation at the next position; `outbox` is the state as of there, if it is known.
    fn cut(&mut self, outbox: Option<&Outbox>) -> Result<(), AppendError>;
}

/// Copies everything that is in `source` to `target`, which begins at the same position. `done` is told how far it is, in events.
pub(super) fn copy(source: &Opened, target: &mut dyn Target, done: &dyn Fn(u64)) -> Result<(), ImportError> {
    let firsts = firsts(&*source.log);
    let (first, next) = (firsts[0], source.log.next_seq());
    let reader = source.log.reader();
    // The state along the way: known from the beginning, or from the newest checkpoint on.
    let mut known = (first == Seq::FIRST).then(Outbox::new);
    loop {
        let at = target.log().next_seq();
        if at > first && firsts.contains(&at) {
            if let Some(known) = &mut known {
                known.begin_generation();
            }
            target.cut(known.as_ref())?;
        }
        if let Some(checkpoint) = source.checkpoint.as_ref().filter(|checkpoint| checkpoint.next == at) {
            known = Some(decode_checkpoint(checkpoint)?);
        }
        if at >= next {
            return Ok(());
        }
        let page = reader.page(at)?.ok_or_else(|| ReadError::Damaged { seq: at, what: "the event is missing".into() })?;
        let sends = |lane: &LaneKey| page.sends.iter().find(|(known, _)| known == lane).map_or(SendNo::default(), |(_, send)| *send);
        target.log().append(&page.events, &sends)?;
        if let Some(outbox) = &mut known {
            let misfit = page.events.iter().find_map(|event| outbox.apply(event).err());
            if let Some(error) = misfit {
                return Err(RecoverError::Fold { seq: outbox.next(), error }.into());
            }
        }
        done(page.events.len() as u64);
    }
}

/// Compares all of both: events, generations and outboxes.
pub(super) fn compare(source: &Opened, copy: &Opened) -> Result<Imported, ImportError> {
    let firsts = firsts(&*source.log);
    let (first, next) = (firsts[0], source.log.next_seq());
    compare_events(&*source.log.reader(), &*copy.log.reader(), first, next)?;
    let outbox = recover(source)?;
    let is_same = encode_checkpoint(&recover(copy)?) == encode_checkpoint(&outbox);
    if !is_same || copy.log.next_seq() != next || self::firsts(&*copy.log) != firsts {
        return Err(ImportError::Differs(next));
    }
    let pending = outbox.connections().values().map(|connection| connection.totals.pending).sum();
    Ok(Imported { first, last: Seq(next.0 - 1), pending })
}

/// Where the generations begin.
pub(super) fn firsts(log: &dyn EventLog) -> Vec<Seq> {
    log.generations().iter().map(|generation| generation.first).collect()
}

fn compare_events(source: &dyn LogReader, copy: &dyn LogReader, first: Seq, next: Seq) -> Result<(), ImportError> {
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
