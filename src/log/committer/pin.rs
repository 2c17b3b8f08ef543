//! A backup under way: what it copies is kept, for as long as it says that it is still there.

use std::time::{Duration, Instant};

use super::answer::CommitError;
use super::{Committer, now};
use crate::core::event::Event;
use crate::core::types::{SendNo, Seq};
use crate::failpoint::{self, Point};

/// A backup that does not renew its hold within this is gone. It renews it a few times within that.
pub const BACKUP_HOLDS: Duration = Duration::from_secs(60);

/// A backup that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// What it is renewed and ended by.
    pub id: u64,
    /// The last event that is in it.
    pub position: Seq,
    /// The generations that hold everything up to there, each with its size on disk in bytes. They are sealed, or about to be.
    pub generations: Vec<(Seq, u64)>,
}

/// The hold of a backup.
#[derive(Debug)]
pub(super) struct Pin {
    id: u64,
    until: Instant,
}

/// What is asked about backups.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    Begin,
    Renew(u64),
    End(u64),
}

impl Committer {
    /// Whether retention has to wait.
    pub(super) fn is_pinned(&self) -> bool {
        self.pin.as_ref().is_some_and(|pin| pin.until > Instant::now())
    }

    /// Answers, with nothing if there is no such backup, or another is under way.
    pub(super) fn backup(&mut self, ask: Ask) -> Result<Option<Begun>, CommitError> {
        let is_held = |id: u64, pin: &Option<Pin>| pin.as_ref().is_some_and(|pin| pin.id == id && pin.until > Instant::now());
        match ask {
            Ask::Begin if self.is_pinned() => Ok(None),
            Ask::Begin => self.begin_backup().map(Some),
            Ask::Renew(id) | Ask::End(id) if !is_held(id, &self.pin) => Ok(None),
            Ask::Renew(id) => {
                self.pin = Some(Pin { id, until: Instant::now() + BACKUP_HOLDS });
                Ok(Some(Begun { id, position: Seq::default(), generations: Vec::new() }))
            }
            Ask::End(id) => {
                self.pin = None;
                Ok(Some(Begun { id, position: Seq::default(), generations: Vec::new() }))
            }
        }
    }

    /// Begins a new generation, so that all before it stands still, and holds what there is.
    fn begin_backup(&mut self) -> Result<Begun, CommitError> {
        if self.shared.is_some() {
            let reason = "the log is on NATS servers, which copy it themselves: `nats stream backup` for the stream and for its bucket, or \
                `tidings move-store` into a folder while no instance is at work; see the guide `ops/cluster.md`";
            return Err(CommitError::Full(reason.into()));
        }
        let id = getrandom::u64().map_err(|error| CommitError::Store(super::AppendError::Io(format!("no random number: {error}"))))?;
        let log = self.log.as_ref().ok_or(CommitError::Stopped)?;
        if log.generations().last().is_some_and(|newest| newest.first == log.next_seq()) {
            // A generation without an event can't be copied, and may be all that there is of a store in which everything is done.
            let event = Event::Audit { who: "tidings backup".into(), what: "a backup has begun".into(), at: now() };
            self.outbox.apply(&event)?;
            self.with_log(|log, _| log.append(std::slice::from_ref(&event), &|_| SendNo(0)).map(|_| ()))?;
        }
        self.begin_generation();
        // It may have failed just now.
        let log = self.log.as_ref().ok_or(CommitError::Stopped)?;
        if log.generations().last().is_some_and(|newest| newest.first < log.next_seq()) {
            let reason = "there is no room on its disk for the new generation that a backup begins with; free some space and try again";
            return Err(CommitError::Full(reason.into()));
        }
        let mut generations: Vec<(Seq, u64)> = log.generations().iter().map(|known| (known.first, known.bytes)).collect();
        generations.pop();
        self.pin = Some(Pin { id, until: Instant::now() + BACKUP_HOLDS });
        failpoint::reach(Point::BackupBegun);
        Ok(Begun { id, position: Seq(log.next_seq().0 - 1), generations })
    }
}
