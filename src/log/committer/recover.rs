//! Recovery: log → outbox at the start.

use crate::core::outbox::{FoldError, Jobs, Outbox, Owners};
use crate::core::types::Seq;
use crate::log::{Checkpoint, Opened, ReadError};

/// The version of the encoded outbox. Another version is refused: what it counts can not be counted again once old generations are gone.
const CHECKPOINT_VERSION: u16 = 2;

/// Why recovery failed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The events do not fit each other.
    #[error("the store is damaged at event {seq}: {error}. Nothing was changed; see the runbook")]
    Fold {
        /// Where.
        seq: Seq,
        /// What does not fit.
        error: FoldError,
    },
    /// The checkpoint can't be read.
    #[error("the store's checkpoint before event {next} can't be read: {what}. Nothing was changed; see the runbook")]
    Checkpoint {
        /// The first event that is not in it.
        next: Seq,
        /// What is wrong.
        what: String,
    },
    /// The thread could not be started.
    #[error("starting the committer failed: {0}")]
    Thread(String),
}

/// Rebuilds the outbox: the newest checkpoint, and every event since.
///
/// # Errors
/// If the log can't be read, or its events do not fit each other.
pub fn recover(opened: &Opened) -> Result<Outbox, RecoverError> {
    let mut outbox = match &opened.checkpoint {
        None => Outbox::new(),
        Some(checkpoint) => decode_checkpoint(checkpoint)?,
    };
    // On one machine it is no event that a generation was dropped: the log itself knows best what it still has. Before the events, because a request
    // whose deliveries went with it may have been accepted anew since, and is not to be taken for the old one. Where it is an event, its place is there.
    let is_shared = opened.log.is_shared();
    if !is_shared {
        drop_what_is_gone(&mut outbox, opened);
    }
    let reader = opened.log.reader();
    while outbox.next() < opened.log.next_seq() {
        let seq = outbox.next();
        let missing = || ReadError::Damaged { seq, what: "the event is missing".into() };
        let page = reader.page(seq)?.ok_or_else(missing)?;
        let skip = usize::try_from(seq.0 - page.first.0).map_err(|_| missing())?;
        for event in &page.events[skip..] {
            let seq = outbox.next();
            outbox.apply(event).map_err(|error| RecoverError::Fold { seq, error })?;
        }
    }
    if is_shared {
        // What was dropped before the log was shared.
        drop_what_is_gone(&mut outbox, opened);
    }
    Ok(outbox)
}

fn drop_what_is_gone(outbox: &mut Outbox, opened: &Opened) {
    if let Some(lowest) = opened.log.generations().first() {
        while outbox.oldest_generation().is_some_and(|first| first < lowest.first) {
            outbox.drop_oldest_generation();
        }
    }
}

/// The outbox that a checkpoint holds.
///
/// # Errors
/// [`RecoverError::Checkpoint`] if it holds none, or one of another version or position.
pub fn decode_checkpoint(checkpoint: &Checkpoint) -> Result<Outbox, RecoverError> {
    let unreadable = |what: String| RecoverError::Checkpoint { next: checkpoint.next, what };
    let read = postcard::take_from_bytes::<(u16, Outbox)>(&checkpoint.bytes);
    let ((version, outbox), rest) = read.map_err(|error| unreadable(error.to_string()))?;
    if version != CHECKPOINT_VERSION {
        return Err(unreadable(format!("it has version {version}, this release knows {CHECKPOINT_VERSION}")));
    }
    if outbox.next() != checkpoint.next {
        return Err(unreadable(format!("it says that the next event is {}", outbox.next())));
    }
    // Where there were no replay jobs nothing follows, and where nobody owns a lane nothing follows these.
    let (jobs, rest) = match rest {
        [] => (Jobs::default(), rest),
        rest => postcard::take_from_bytes::<Jobs>(rest).map_err(|error| unreadable(format!("its replay jobs: {error}")))?,
    };
    let owners = match rest {
        [] => Owners::default(),
        rest => postcard::from_bytes(rest).map_err(|error| unreadable(format!("the owners of its lanes: {error}")))?,
    };
    Ok(outbox.with_jobs(jobs).with_owners(owners).with_each_generation_once())
}

/// The outbox as bytes, as it goes into a checkpoint.
pub fn encode_checkpoint(outbox: &Outbox) -> Vec<u8> {
    let mut bytes = postcard::to_stdvec(&(CHECKPOINT_VERSION, outbox)).expect("an outbox is plain data and memory is there");
    let has_owners = !outbox.owners().is_empty();
    if has_owners || !outbox.jobs().is_empty() {
        bytes.extend(postcard::to_stdvec(outbox.jobs()).expect("jobs are plain data and memory is there"));
    }
    if has_owners {
        bytes.extend(postcard::to_stdvec(outbox.owners()).expect("owners are plain data and memory is there"));
    }
    bytes
}
