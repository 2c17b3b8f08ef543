//! What sled shows of the newest generation, once it is open: the second half of the proof.

use std::fs::File;

use xxhash_rust::xxh3::xxh3_128;

use super::database::Database;
use super::open::At;
use super::witness::Testimony;
use crate::core::types::{Millis, Seq};
use crate::log::codec::{Decoder, Header, Kind, PageKey, parse};
use crate::log::{Checkpoint, OpenError};

/// What sled shows of the newest generation.
pub(super) struct Shown {
    pub(super) last: Seq,
    pub(super) newest: Option<Millis>,
    pub(super) stored: u64,
    /// The key right after the newest checkpoint, where that is not simply the last entry.
    pub(super) checkpoint_end: Option<Vec<u8>>,
    /// The newest checkpoint, once it was read.
    pub(super) checkpoint: Option<Noted>,
}

/// What is remembered of a checkpoint: enough to know the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    next: Seq,
    sum: u128,
}

impl Noted {
    pub(super) fn of(next: Seq, bytes: &[u8]) -> Noted {
        Noted { next, sum: xxh3_128(bytes) }
    }
}

/// Goes through all that sled shows after a kill: no gap, nothing damaged, nothing missing that was accepted. Takes out the part of a
/// commit that the kill may have left.
pub(super) fn check_shown(at: &At<'_>, database: &Database, file: &File, testimony: &Testimony, tag: u64) -> Result<Shown, OpenError> {
    let first = testimony.generation;
    let before = Seq(first.0 - 1);
    let mut shown = Shown { last: before, newest: None, stored: 0, checkpoint_end: None, checkpoint: None };
    let mut wrong = None;
    let mut commit = OpenCommit { last: before, expected: None, keys: Vec::new(), stored: 0, newest: None };
    let walked = database.each(tag, |key, page| {
        if wrong.is_some() {
            return;
        }
        let parsed = match page {
            Ok(parsed) if parsed.header.key().to_bytes() == key[..] => parsed,
            Ok(_) => return wrong = Some(format!("the page behind event {} stands under another key", commit.last)),
            Err(what) => return wrong = Some(format!("the page behind event {}: {what}", commit.last)),
        };
        if parsed.header.kind != Kind::Events {
            let mut end = key.to_vec();
            end.push(0);
            shown.checkpoint_end = Some(end);
            if parsed.header.kind == Kind::Checkpoint {
                shown.stored += parsed.header.page_len() as u64;
            }
            return;
        }
        if let Err(what) = commit.add(key, &parsed.header) {
            wrong = Some(what);
            return;
        }
        commit.newest = commit.newest.max(parsed.index().ok().and_then(|index| index.times).map(|times| times.1));
        if commit.is_whole() {
            shown.last = commit.last;
            shown.newest = commit.newest;
            shown.stored += std::mem::take(&mut commit.stored);
            commit.keys.clear();
        }
    });
    walked.map_err(|what| at.not_shown(first, &format!("sled cannot read it: {what}")))?;
    if let Some(what) = wrong {
        return Err(at.not_shown(first, &what));
    }
    if shown.last < testimony.last {
        let lost = format!("sled shows events up to {}, and events up to {} were accepted", shown.last, testimony.last);
        return Err(at.not_shown(first, &lost));
    }
    if !commit.keys.is_empty() {
        database.remove(&commit.keys, file).map_err(|what| at.io(what))?;
    }
    Ok(shown)
}

/// The commit that the walk is in.
struct OpenCommit {
    last: Seq,
    /// The page that must come next, and of how many, while a commit is under way.
    expected: Option<(u32, u32)>,
    keys: Vec<sled::IVec>,
    stored: u64,
    newest: Option<Millis>,
}

impl OpenCommit {
    fn add(&mut self, key: &sled::IVec, header: &Header) -> Result<(), String> {
        let (page, pages) = self.expected.unwrap_or((0, header.pages));
        let next = if header.part == 0 { self.last.next() } else { self.last };
        if header.first != next {
            return Err(format!("events {next} to {} are missing", header.first.0.saturating_sub(1)));
        }
        if (header.page, header.pages) != (page, pages) {
            return Err(format!("a page of the commit around event {next} is missing"));
        }
        self.last = header.last();
        self.expected = (page + 1 < pages).then_some((page + 1, pages));
        self.keys.push(key.clone());
        self.stored += header.page_len() as u64;
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.expected.is_none()
    }
}

pub(super) fn read_checkpoint(
    at: &At<'_>,
    database: &Database,
    shown: &Shown,
    first: Seq,
    tag: u64,
) -> Result<Option<Checkpoint>, OpenError> {
    let damaged = |what: String| at.not_shown(first, &format!("its newest checkpoint: {what}"));
    let end = match &shown.checkpoint_end {
        Some(end) => end.clone(),
        None => vec![0xff; PageKey::LEN],
    };
    let Some((next, parts)) = database.checkpoint(tag, &end).map_err(damaged)? else {
        return if first == Seq::FIRST { Ok(None) } else { Err(damaged("there is none".into())) };
    };
    let mut decoder = Decoder::new().map_err(|error| at.io(error))?;
    let mut bytes = Vec::new();
    for part in &parts {
        let parsed = parse(tag, part).map_err(|error| damaged(error.to_string()))?;
        decoder.checkpoint_part(&parsed, &mut bytes).map_err(|error| damaged(error.to_string()))?;
    }
    Ok(Some(Checkpoint { next, bytes }))
}
