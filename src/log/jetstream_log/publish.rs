//! One commit → the stream.
//!
//! ```text
//!   all pages but the last, at once ─▶ settle each, in order ─▶ the last page ─▶ settle it: durable
//!
//!   settle: acknowledged at its place? ─ yes ─▶ the next one
//!             │ no answer, "wrong last sequence", or "known already"
//!             ▼
//!           what stands at its place? ─ it ────▶ the next one
//!             ├─ another ─▶ overtaken: nothing of this counts
//!             └─ nothing ─▶ publish it again, up to the log's patience; under another id, if it was taken for one that is known
//! ```
//! A page can only come to stand right behind what its writer has read, so what stands at its place decides for good, and publishing it again
//! harms nobody. The last page goes when all others are stored: *a commit is valid if its last page is in the stream*.
//!
//! # What is refused is refused by the leader, if it can be
//! The servers look at "the last message is N" when a message is applied, by all replicas: that is what counts. A message that is refused there has gone
//! through Raft, and each replica counts it, because the numbers that a leader gives out run ahead of what is stored. Up to nats-server 2.10.11 these
//! numbers can go wrong: who led before and leads again goes on with its old ones, if more messages were refused before than were stored meanwhile, and all
//! replicas pass over what it proposes, without a word, until its numbers have caught up ("has high message lag" in its log). So a message says it a
//! second time, as "the last message of its subject is N", which is the same, as there is one subject. That is looked at by the leader alone, before Raft, and
//! refuses most. By itself it would be no fence: two messages at once would both pass.
//!
//! # Message ids
//! What is published again has the id that it had, so that it goes through Raft once if both arrive. Each commit has ids of its own, of its start and its number: another
//! one for the same place must not be taken for it. Since nats-server 2.10 a leader also knows the ids of messages
//! that were refused when they were applied: for two minutes it answers that such a page is stored, as message 0, and stores nothing. Then it gets another id.
//!
//! An id says nothing of what is in a page. So "known already", whatever the place, is never taken for "stored": what stands at the place decides.
//!
//! A leader that is silent all the same is asked to let another one lead.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use bytes::Bytes;
use tokio::time::sleep;

use super::servers::{Pages, Silence, let_another_lead, told};

/// Between two tries while the servers don't answer.
const AGAIN: Duration = Duration::from_millis(200);

/// Why a commit was not stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotStored {
    /// Others appended first.
    Overtaken,
    /// The stream refuses it.
    Refused(String),
    /// Whether it was stored could not be found out.
    Unknown(String),
}

/// A commit on its way.
pub(super) struct Publication {
    pub(super) pages: Pages,
    /// What makes its message ids its own: no other commit, of this start or another, has it.
    pub(super) id: String,
    /// The last message that its writer has read.
    pub(super) base: u64,
    pub(super) messages: Vec<Bytes>,
    /// So long it is tried.
    pub(super) patience: Duration,
}

impl Publication {
    /// Stores all of it.
    pub(super) async fn store(self) -> Result<(), NotStored> {
        let until = Instant::now() + self.patience;
        let Some(last) = self.messages.len().checked_sub(1) else { return Ok(()) };
        let mut sent = Vec::with_capacity(last);
        for page in 0..last {
            // What stands before it is stored by then, or not: only the first one can be looked at before.
            sent.push(self.send(page, page == 0, 0).await);
        }
        for (page, sent) in sent.into_iter().enumerate() {
            self.settle(page, sent, until).await?;
        }
        let sent = self.send(last, true, 0).await;
        self.settle(last, sent, until).await
    }

    fn place(&self, page: usize) -> u64 {
        self.base + 1 + page as u64
    }

    async fn send(&self, page: usize, is_looked_at_before: bool, id: u32) -> Result<PublishAckFuture, PublishError> {
        let before = self.place(page) - 1;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, before.to_string());
        headers.insert(NATS_MESSAGE_ID, format!("{}-{before}-{id}", self.id));
        // Of a stream that holds nothing any more the last message of a subject is none.
        if is_looked_at_before && before > 0 {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, before.to_string());
        }
        self.pages.context.publish_with_headers(self.pages.subject.clone(), headers, self.messages[page].clone()).await
    }

    async fn settle(&self, page: usize, mut sent: Result<PublishAckFuture, PublishError>, until: Instant) -> Result<(), NotStored> {
        let place = self.place(page);
        let (mut has_waited, mut id) = (false, 0);
        let mut silence = Silence::default();
        loop {
            let answer = match sent {
                Ok(sent) => sent.await,
                Err(error) => Err(error),
            };
            let what = match answer {
                Ok(ack) if ack.sequence == place && !ack.duplicate => return Ok(()),
                Ok(ack) if ack.duplicate => {
                    id += 1;
                    format!("it was taken for message {}, which has its id", ack.sequence)
                }
                Ok(ack) => {
                    id += 1;
                    format!("it was acknowledged as message {} instead of {place}", ack.sequence)
                }
                Err(error) => {
                    let what = told(&error);
                    if error.kind() == PublishErrorKind::Other && what.contains("maximum bytes") && page == 0 {
                        return Err(NotStored::Refused(what));
                    }
                    what
                }
            };
            match self.pages.get(place).await {
                Ok(Some(found)) if found == self.messages[page] => return Ok(()),
                Ok(Some(_)) => return Err(NotStored::Overtaken),
                found @ (Ok(None) | Err(_)) if Instant::now() < until => {
                    let leader = if found.is_ok() { self.pages.leader().await } else { None };
                    if silence.is_too_long_of(leader, Instant::now()) {
                        let_another_lead(&self.pages.context, &self.pages.name).await;
                    }
                    if !has_waited {
                        tracing::warn!(
                            "the store's servers did not acknowledge a commit ({what}); it is tried again, and nothing else is accepted until then"
                        );
                        has_waited = true;
                    }
                    sleep(AGAIN).await;
                    sent = self.send(page, false, id).await;
                }
                Ok(None) => return Err(NotStored::Unknown(what)),
                Err(error) => return Err(NotStored::Unknown(format!("{what}; {error}"))),
            }
        }
    }
}
