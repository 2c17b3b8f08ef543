//! One commit → the stream.
//!
//! ```text
//!   all pages but the last, at once ─▶ settle each, in order ─▶ the last page ─▶ settle it: durable
//!
//!   settle: acknowledged at its place? ─ yes ─▶ the next one
//!             │ no answer, or "wrong last sequence"
//!             ▼
//!           what stands at its place? ─ it ────▶ the next one
//!             ├─ another ─▶ overtaken: nothing of this counts
//!             └─ nothing ─▶ publish it again, up to the log's patience
//! ```
//! A page can only come to stand right behind what its writer has read, so what stands at its place decides for good, and publishing it again
//! harms nobody. The last page goes when all others are stored: *a commit is valid if its last page is in the stream*.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_MESSAGE_ID};
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::servers::{LEADS_AND_STORES_NOTHING, Pages, let_another_lead, told};

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
    /// What makes message ids of this start its own.
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
            sent.push(self.send(page).await);
        }
        for (page, sent) in sent.into_iter().enumerate() {
            self.settle(page, sent, until).await?;
        }
        let sent = self.send(last).await;
        self.settle(last, sent, until).await
    }

    fn place(&self, page: usize) -> u64 {
        self.base + 1 + page as u64
    }

    async fn send(&self, page: usize) -> Result<PublishAckFuture, PublishError> {
        let before = self.place(page) - 1;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, before.to_string());
        headers.insert(NATS_MESSAGE_ID, format!("{}-{before}", self.id));
        self.pages.context.publish_with_headers(self.pages.subject.clone(), headers, self.messages[page].clone()).await
    }

    async fn settle(&self, page: usize, mut sent: Result<PublishAckFuture, PublishError>, until: Instant) -> Result<(), NotStored> {
        let place = self.place(page);
        let mut has_waited = false;
        let mut asked = Instant::now();
        loop {
            let answer = match sent {
                Ok(sent) => sent.await,
                Err(error) => Err(error),
            };
            let what = match answer {
                Ok(ack) if ack.sequence == place => return Ok(()),
                Ok(ack) => format!("it was acknowledged as message {} instead of {place}", ack.sequence),
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
                    if found.is_err() {
                        // There may be no leader. Time counts from when there is one.
                        asked = Instant::now();
                    }
                    if asked.elapsed() >= LEADS_AND_STORES_NOTHING {
                        let_another_lead(&self.pages.context, &self.pages.name).await;
                        asked = Instant::now();
                    }
                    if !has_waited {
                        tracing::warn!(
                            "the store's servers did not acknowledge a commit ({what}); it is tried again, and nothing else is accepted until then"
                        );
                        has_waited = true;
                    }
                    sleep(AGAIN).await;
                    sent = self.send(page).await;
                }
                Ok(None) => return Err(NotStored::Unknown(what)),
                Err(error) => return Err(NotStored::Unknown(format!("{what}; {error}"))),
            }
        }
    }
}
