//! The log on several machines, over NATS JetStream.
//!
//! # One totally ordered stream, with optimistic concurrency
//! ```text
//!   stream    …│ 41: page 0 of 1 │ 42: page 0 of 2 │ 43: page 1 of 2 │ 44: page 0 of 1 │      one message a page, replicated by Raft
//!   events     │ 90 … 97         │ 98 … 130        │ 131 … 140       │ 141             │
//!              each is published with "the last message is N": it is stored behind N, or refused
//! ```
//! All events are in one stream, on one subject, and not in one per lane. So a request whose reports go to several lanes stays one commit; positions
//! and send numbers have no gaps and are known before the append, as `core` wants it; idempotency keys hold for all
//! instances; and **an append succeeds only for one who has read everything before it**. That is all the fencing there has to be: who was paused and
//! overtaken can append nothing until it has caught up, and then it knows that it was overtaken. What it costs: instances that append at once take
//! turns, which is why commits are grouped.
//!
//! # Constraints
//! * **Accepted means durable.** [`append`](EventLog::append) returns when every page was acknowledged: a majority of the replicas has stored it. What that
//!   means in a power cut of all of them is a setting of the servers (`sync_interval`, see `ops/nats.conf`).
//! * **A commit is whole or void.** Its pages follow each other, and its last page is published when all others are stored; a reader takes a commit whose
//!   last page is there and passes over any other ([`scan`]). Every reader comes to the same.
//! * **An answer that is lost is found out about, never guessed** ([`publish`]): what stands at the page's place decides. It is asked for, and the page published again, for
//!   [`Options::patience`]; meanwhile accepts are answered with 503. If it can't be found out, the log is dead, as after a failed `fsync`.
//! * **Damage is refused.** A position that is missing between two pages, a stream that ends before what had been stored, a page whose checksum is wrong.
//! * Messages are deleted from the old end only, a generation at a time.
//!
//! # Format
//! Pages are those of [`codec`](super::codec), format version and checksum included, 64 KiB before compression at most, so that the servers' default `max_payload` of
//! 1 MiB is enough. The stream is `STREAM`, its subject `STREAM.pages`; a generation is a range of it. The bucket `STREAM` holds the rest ([`bucket`]).
//!
//! # What a crash leaves, and what the next start makes of it
//!
//! | Killed while | left | then |
//! |---|---|---|
//! | creating the store | no `identity`, no page | created anew |
//! | committing | perhaps a whole commit; perhaps pages without their last one | a whole one stays, the others are void |
//! | beginning a generation | parts of a checkpoint that `state` does not name | the generation before goes on; who leads next deletes them |
//! | … where events say so | an event, and nothing in `state` | whoever leads next writes it there |
//! | dropping | messages before the first generation | deleted |
//! | anything | a sign of life that is not renewed | the others take over ([`members`]) |
//!
//! | Module | Holds |
//! |---|---|
//! | [`servers`] | the connection, the stream of pages |
//! | [`bucket`] | what is kept beside it |
//! | [`publish`] | one commit → the stream |
//! | [`scan`] | the stream → commits |
//! | [`reader`] | pages for everybody |
//! | [`open`] | find or make it, read on from the newest checkpoint |
//! | [`import`](mod@import) | a folder's store moves here, and back |
//! | [`generations`] | what events say of generations, kept in the bucket |
//! | [`home`] | whether it is a copy that was restored elsewhere |
//! | [`growth`] | whether others append, this moment |
//! | [`members`] | signs of life of the instances |
//! | [`watch`] | how the stream is, and how far it has to reach |
//! | [`bridge`] | from threads that block to the client, and waits that end |

mod bridge;
mod bucket;
mod generations;
mod growth;
mod home;
mod import;
mod members;
mod open;
mod publish;
mod reader;
mod scan;
mod servers;
mod watch;

#[cfg(test)]
pub(super) mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::import::{export, import};

use self::bridge::Bridge;
use self::bucket::{Bucket, Identity, Mark, Part, State};
use self::home::Home;
use self::members::Members;
use self::publish::{NotStored, Publication};
use self::reader::Shared;
use self::scan::Scanner;
use self::servers::Pages;
use self::watch::{Testimony, Watched};
use super::codec::{Encoder, Kind};
use super::sizes::Sizes;
use super::{AppendError, EventLog, Generation, LogReader, OpenError, Opened, Page, Peers, Space, StoreId, Urgency};
use crate::core::event::Event;
use crate::core::types::{LaneKey, SendNo, Seq};

/// The version of what is kept: of the bucket and of the pages.
pub const FORMAT: u32 = 1;

/// What the servers keep for a message beside its page, in bytes: subject, headers, record.
const PER_MESSAGE: u64 = 256;

/// Between two tries of what may be done again.
const AGAIN: Duration = Duration::from_millis(200);

/// A stop takes no longer for this.
const CLOSING: Duration = Duration::from_secs(10);

/// Who looks for what others have appended waits so long: the service goes on meanwhile, and who appends finds out.
const LOOK: Duration = servers::ANSWER;

/// … and then so long doesn't look: whoever asks for something else comes first.
const PAUSE: Duration = Duration::from_secs(1);

/// How many messages others may have appended are asked for at first: mostly there is one, or none.
const FEW: u64 = 2;

/// How the store is reached, and how large it may be.
#[derive(Clone)]
pub struct Options {
    /// Addresses, such as `nats://10.0.0.1:4222`.
    pub servers: Vec<String>,
    /// The stream's name, which is the bucket's too.
    pub stream: String,
    /// On how many servers it is kept; used when it is created.
    pub replicas: usize,
    /// Who Tidings is to the servers.
    pub login: Login,
    /// The authorities of the servers' certificates; with them TLS is required.
    pub ca_certs: Option<PathBuf>,
    /// The client's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Names this instance in messages.
    pub instance: String,
    /// `store.max_size`, in bytes. The stream gets a reserve beside it, for outcomes.
    pub max_size: u64,
    /// Pages after which a generation is full, in bytes.
    pub generation_size: u64,
    /// Decoded pages kept for readers, in bytes.
    pub page_cache: usize,
    /// How long a commit is tried again while the servers don't answer. 5 minutes: an election takes seconds, a restart of a server a minute; what takes longer is
    /// better met by a new start, and by whoever watches it.
    pub patience: Duration,
}

/// How a client says who it is.
#[derive(Clone)]
pub enum Login {
    /// It doesn't.
    Nobody,
    /// By name and password.
    User {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// By a token.
    Token(String),
    /// By a credentials file.
    Credentials(PathBuf),
}

impl Options {
    /// How long a commit is tried by default.
    pub const PATIENCE: Duration = Duration::from_secs(300);

    /// Options for a stream, with everything else as it is left out.
    pub fn new(servers: Vec<String>, stream: &str, max_size: u64) -> Options {
        Options {
            servers,
            stream: stream.to_owned(),
            replicas: 1,
            login: Login::Nobody,
            ca_certs: None,
            identity: None,
            instance: "unnamed".into(),
            max_size,
            generation_size: Sizes::for_space(max_size).generation,
            page_cache: 8 << 20,
            patience: Self::PATIENCE,
        }
    }

    /// What the stream may take. Reports are refused beyond `max_size`, or when less than the reserve is left, which is four generations at most.
    fn max_bytes(&self) -> u64 {
        self.max_size.saturating_add(5 * self.generation_size)
    }
}

/// The log over JetStream.
pub struct JetStreamLog {
    /// Has its last word first when the log is dropped.
    _testimony: Testimony,
    members: Arc<Members>,
    /// For messages.
    store: String,
    id: StoreId,
    identity: Identity,
    home: Home,
    /// What message ids of this start begin with.
    message_id: String,
    run: u64,
    /// Commits that this run has tried to store.
    commits: u64,
    /// Checkpoints of this run.
    checkpoints: u64,
    /// It has had checkpoints deleted that nobody names.
    has_cleared: bool,
    encoder: Encoder,
    scanner: Scanner,
    /// The last message that was read or written.
    end: u64,
    /// The checkpoint that the generation began with, if this run has begun it, in bytes.
    opening: u64,
    sizes: Sizes,
    patience: Duration,
    watched: Watched,
    /// When the servers did not say what others have appended, if they don't.
    unanswered: Option<Instant>,
    /// The first failure. Nothing is written after it.
    failed: Option<String>,
    bucket: Bucket,
    pages: Pages,
    shared: Arc<Shared>,
    bridge: Arc<Bridge>,
}

impl JetStreamLog {
    /// Opens the store, or creates it if there is none.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(options: Options) -> Result<Opened, OpenError> {
        open::open(options, open::Purpose::Serve)
    }

    fn check(&self) -> Result<(), AppendError> {
        self.failed.clone().map_or(Ok(()), |what| Err(AppendError::Io(what)))
    }

    fn fail(&mut self, what: String) -> AppendError {
        tracing::error!(store = self.store, "the store failed: {what}");
        self.failed = Some(what.clone());
        AppendError::Io(what)
    }

    /// Has something done within the log's patience, and makes a failure final.
    fn done<T: Send + 'static>(&mut self, act: impl Future<Output = Result<T, String>> + Send + 'static) -> Result<T, AppendError> {
        // A request more than its own patience, which is the more precise one.
        let answer = self.bridge.wait(self.patience + 2 * servers::REQUEST, act);
        answer.unwrap_or_else(|| Err("the servers did not answer".into())).map_err(|what| self.fail(what))
    }

    /// As [`done`](Self::done), for what may be done again: it is, as long as it fails.
    fn insist<T, F>(&mut self, act: impl Fn() -> F + Send + 'static) -> Result<T, AppendError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, String>> + Send,
    {
        let patience = self.patience;
        self.done(async move {
            let until = tokio::time::Instant::now() + patience;
            loop {
                match act().await {
                    Err(_) if tokio::time::Instant::now() < until => tokio::time::sleep(AGAIN).await,
                    other => return other,
                }
            }
        })
    }

    /// Leaves the checkpoint with which the next start has to read nothing else, and says so.
    fn leave_clean(&mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        let (mark, _) = self.put_checkpoint(Kind::Checkpoint, checkpoint)?;
        let written = *self.shared.parts().last().expect("there is always one that is written");
        let end = self.end;
        self.change(Some(mark.clone()), move |state| {
            known(state, written);
            // Another instance may be further, and may have dropped what this one's checkpoint needs.
            if mark.next >= state.generations[0].first {
                state.mark(mark.clone());
                state.closed_at = Some(end);
            }
        })
    }

    /// A checkpoint as of the next position: what it will be called, and its parts.
    fn new_checkpoint(&mut self, kind: Kind, checkpoint: &[u8]) -> Result<(Mark, Vec<Bytes>), AppendError> {
        let next = self.next_seq();
        let pages = self.encoder.checkpoint(kind, next, checkpoint)?;
        let parts: Vec<Bytes> = pages.into_iter().map(|page| page.bytes.into()).collect();
        self.checkpoints += 1;
        let (message, id) = (self.scanner.resume_at(self.end + 1), format!("{}-{}", self.run, self.checkpoints));
        Ok((Mark { next, message, id, parts: parts.len() as u64 }, parts))
    }

    /// Puts a checkpoint as of the next position into the bucket. Returns where it is, and its size.
    fn put_checkpoint(&mut self, kind: Kind, checkpoint: &[u8]) -> Result<(Mark, u64), AppendError> {
        let (mark, parts) = self.new_checkpoint(kind, checkpoint)?;
        let size = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let (bucket, id) = (self.bucket.clone(), mark.id.clone());
        self.insist(move || {
            let (bucket, id, parts) = (bucket.clone(), id.clone(), parts.clone());
            async move { bucket.put_checkpoint(&id, parts).await }
        })?;
        Ok((mark, size))
    }

    /// Changes `state`, takes over what it says of generations, and deletes what it no longer names. `put` is a checkpoint that was written for this.
    fn change(&mut self, put: Option<Mark>, change: impl Fn(&mut State) + Send + Sync + 'static) -> Result<(), AppendError> {
        let (bucket, pages, patience, known) = (self.bucket.clone(), self.pages.clone(), self.patience, self.shared.parts());
        let state = self.done(async move {
            let state = bucket.change_and_clear(put.as_ref(), change, patience).await?;
            if state.generations[0].message > known[0].message
                && let Err(what) = pages.purge_before(state.generations[0].message).await
            {
                tracing::warn!("{what}; it is tried again at the next start");
            }
            Ok(state)
        })?;
        self.shared.set_parts(state.generations);
        Ok(())
    }
}

impl EventLog for JetStreamLog {
    fn store_id(&self) -> StoreId {
        self.id
    }

    fn next_seq(&self) -> Seq {
        self.scanner.next()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        Some(Arc::clone(&self.members) as Arc<dyn Peers>)
    }

    fn catch_up(&mut self) -> Result<Vec<Arc<Page>>, AppendError> {
        self.check()?;
        let mut caught = Vec::new();
        if self.unanswered.is_some_and(|since| since.elapsed() < PAUSE) {
            return Ok(caught);
        }
        self.unanswered = None;
        let mut count = FEW;
        loop {
            let (pages, from) = (self.pages.clone(), self.end + 1);
            let read = self.bridge.wait(LOOK, async move { pages.get_many(from, count, false).await });
            let read = match read.unwrap_or_else(|| Err("the servers did not answer".into())) {
                Ok(read) => read,
                Err(what) => {
                    tracing::debug!("what others have appended can't be read now: {what}");
                    self.unanswered = Some(Instant::now());
                    return Ok(caught);
                }
            };
            let read_all = read.len() as u64 == count;
            if read.is_empty() && self.watched.first() > self.end + 1 {
                let next = self.next_seq();
                return Err(self.fail(format!(
                    "event {next}, which comes next here, was dropped while this instance did not read; a start goes on from the checkpoint"
                )));
            }
            for bytes in read {
                self.end += 1;
                self.watched.add(bytes.len() as u64 + PER_MESSAGE);
                let commit = self.scanner.take(self.end, bytes).map_err(|what| self.fail(what))?;
                if let Some(commit) = commit {
                    let decoded = self.shared.decode_commit(&commit).map_err(|what| self.fail(what))?;
                    self.shared.note(&decoded);
                    caught.extend(decoded.into_iter().map(|decoded| decoded.page));
                }
            }
            self.shared.reach(Seq(self.scanner.next().0 - 1), self.end);
            if !read_all {
                return Ok(caught);
            }
            count = (count * 4).min(servers::AT_ONCE);
        }
    }

    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError> {
        self.check()?;
        let next = self.next_seq();
        if events.is_empty() {
            return Ok(Seq(next.0 - 1));
        }
        let pages = self.encoder.events(next, events, next_send)?;
        let messages: Vec<Bytes> = pages.iter().map(|page| Bytes::copy_from_slice(&page.bytes)).collect();
        self.commits += 1;
        let id = format!("{}-{}", self.message_id, self.commits);
        let publication = Publication { pages: self.pages.clone(), id, base: self.end, messages, patience: self.patience };
        let stored = self.done(async move { Ok(publication.store().await) })?;
        // They have answered, whatever it was.
        self.unanswered = None;
        match stored {
            Ok(()) => {}
            Err(NotStored::Overtaken) => return Err(AppendError::Overtaken),
            Err(NotStored::Refused(what) | NotStored::Unknown(what)) => return Err(self.fail(what)),
        }
        let count = pages.len() as u64;
        let noted = reader::of_stored(self.end + 1, pages);
        self.watched.add(noted.iter().map(|page| page.bytes).sum::<u64>() + count * PER_MESSAGE);
        self.shared.note(&noted);
        self.end += count;
        let last = Seq(next.0 + events.len() as u64 - 1);
        self.scanner.stored(last.next());
        self.shared.reach(last, self.end);
        Ok(last)
    }

    fn is_generation_full(&self) -> bool {
        let parts = self.shared.parts();
        let written = parts.last().expect("there is always one that is written");
        // A checkpoint that is larger than half a small generation must not be most of what is written.
        written.bytes >= self.sizes.generation.max(2 * self.opening) && self.next_seq() > written.first
    }

    fn begin_generation(&mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.check()?;
        let next = self.next_seq();
        let before = *self.shared.parts().last().expect("there is always one that is written");
        if before.first == next {
            // It has just begun, with a checkpoint as of the same position.
            return Ok(());
        }
        let (mark, size) = self.put_checkpoint(Kind::OpeningCheckpoint, checkpoint)?;
        let begun = Part { first: next, message: mark.message, newest: None, bytes: 0 };
        self.change(Some(mark.clone()), move |state| {
            // Another instance may have begun it, or this one with an answer that was lost.
            if state.generations.last().is_some_and(|last| last.first < begun.first) {
                known(state, before);
                state.generations.push(begun);
                state.mark(mark.clone());
            }
        })?;
        self.opening = size;
        Ok(())
    }

    fn generations(&self) -> Vec<Generation> {
        self.shared.generations()
    }

    fn drop_oldest_generation(&mut self) -> Result<(), AppendError> {
        self.check()?;
        let parts = self.shared.parts();
        let [oldest, next, ..] = parts[..] else { return Ok(()) };
        let written = *parts.last().expect("there are two");
        self.change(None, move |state| {
            known(state, written);
            if state.generations.len() > 1 && state.generations[0].first == oldest.first {
                state.generations.remove(0);
            }
            // Of no use without what comes after it.
            state.checkpoints.retain(|mark| mark.next >= next.first);
        })
    }

    fn note_generation(&mut self, first: Seq) -> Result<(), AppendError> {
        self.check()?;
        self.note_begun(first)
    }

    fn note_dropped(&mut self, first: Seq) -> Result<(), AppendError> {
        self.shared.forget_before(first);
        self.check()
    }

    fn keep_generations(&mut self, checkpoint: Option<&[u8]>) -> Result<bool, AppendError> {
        self.check()?;
        self.keep(checkpoint)
    }

    fn space(&self) -> Space {
        let used = self.watched.bytes();
        Space { used, free: self.watched.max_bytes().saturating_sub(used), ballast: 0 }
    }

    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn make_room(&mut self, bytes: u64, _urgency: Urgency) -> Result<bool, AppendError> {
        self.check()?;
        // What does not compress is stored as it is; each page has its index.
        let pages = bytes / super::codec::MAX_BODY as u64 + 2;
        let need = bytes + pages * (super::codec::MAX_INDEX as u64 / 4 + PER_MESSAGE);
        Ok(self.space().free >= need)
    }

    fn tick(&mut self) -> Result<(), AppendError> {
        self.check()
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::clone(&self.shared) as Arc<dyn LogReader>
    }

    fn adopt_copy(&mut self) -> Result<(), AppendError> {
        self.check()?;
        let (bucket, home) = (self.bucket.clone(), self.home.clone());
        self.insist(move || {
            let (bucket, home) = (bucket.clone(), home.clone());
            async move { home.adopt(&bucket).await }
        })
    }

    fn close(mut self: Box<Self>, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.check()?;
        // A stop has its limit; without a checkpoint the next start takes a little longer.
        self.patience = self.patience.min(CLOSING);
        self.leave_clean(checkpoint)
    }
}

/// Writes down what is known of the generation that is written.
fn known(state: &mut State, written: Part) {
    if let Some(part) = state.generations.iter_mut().find(|part| part.first == written.first) {
        part.newest = part.newest.max(written.newest);
        part.bytes = part.bytes.max(written.bytes);
    }
}
