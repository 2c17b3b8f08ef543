//! Reading ahead: the feed is away on a blocking thread, or here.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Event, Lane, LaneError};
use crate::core::session::Input;
use crate::delivery::feed::{Feed, Piece};
use crate::log::ReadError;
use crate::log::committer::Progress;

/// A read from the log that failed is tried again after this, so that trouble with the disk does not become a busy loop.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// A lane goes to the disk when this part of what it may have ready is wanted, the quarter: another thread wakes up for it, which is too much for one report.
const WORTH_IT: usize = 4;

/// The feed is here, or away reading.
pub(super) enum Reading {
    Here { feed: Box<Feed>, is_at_end: bool, not_before: Option<tokio::time::Instant> },
    Away(JoinHandle<(Box<Feed>, Result<Piece, ReadError>)>),
    Gone,
}

impl Lane<'_> {
    /// Reads on where something is wanted: here and now what is in memory, because it was committed just now or another lane has read it; and the rest
    /// where blocking is allowed.
    pub(super) async fn read_ahead(&mut self) -> Result<(), LaneError> {
        loop {
            let wanted = self.session.wants();
            let can_read = matches!(&self.feed, Reading::Here { is_at_end: false, not_before: None, .. });
            if wanted == 0 || !can_read {
                return Ok(());
            }
            let Reading::Here { mut feed, .. } = std::mem::replace(&mut self.feed, Reading::Gone) else { return Ok(()) };
            if feed.is_in_memory() {
                let piece = feed.read_page(wanted);
                self.take_piece(feed, piece).await?;
                continue;
            }
            if wanted < self.config.settings.doubt() as usize / WORTH_IT {
                self.feed = Reading::Here { feed, is_at_end: false, not_before: None };
                return Ok(());
            }
            self.feed = Reading::Away(tokio::task::spawn_blocking(move || {
                let piece = feed.read(wanted);
                (feed, piece)
            }));
            return Ok(());
        }
    }

    pub(super) async fn take_piece(&mut self, feed: Box<Feed>, piece: Result<Piece, ReadError>) -> Result<(), LaneError> {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error @ (ReadError::Gone(_) | ReadError::Damaged { .. })) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(lane = %self.key, %error, "reading the log failed; it is tried again");
                let not_before = Some(tokio::time::Instant::now() + READ_AGAIN);
                self.feed = Reading::Here { feed, is_at_end: false, not_before };
                return Ok(());
            }
        };
        self.feed = Reading::Here { feed, is_at_end: piece.is_at_end, not_before: None };
        for (delivery, retry_at, payload) in piece.requeued {
            self.payloads.insert(delivery.send, payload);
            self.give(Input::OfferWaiting { delivery, retry_at }).await?;
        }
        if piece.fresh.is_empty() {
            // What tells a retired lane that it has nothing to do may be this alone.
            return self.end_if_retired().await;
        }
        let mut fresh = Vec::with_capacity(piece.fresh.len());
        for (delivery, payload) in piece.fresh {
            self.payloads.insert(delivery.send, payload);
            fresh.push(delivery);
        }
        self.give(Input::Offer(fresh)).await
    }
}

/// What happens to the feed: it comes back with something, or there is something to read again.
pub(super) async fn reading(feed: &mut Reading, progress: &mut watch::Receiver<Progress>, is_wanted: bool) -> Event {
    match feed {
        Reading::Away(reading) => match reading.await {
            Ok((feed, piece)) => return Event::Read(feed, piece),
            Err(_) => return Event::FeedLost,
        },
        Reading::Here { not_before: Some(at), .. } => {
            tokio::time::sleep_until(*at).await;
            return Event::LogGrew;
        }
        // At the end of the log: more comes with a commit.
        Reading::Here { is_at_end: true, .. } if is_wanted && progress.changed().await.is_ok() => return Event::LogGrew,
        Reading::Here { .. } | Reading::Gone => {}
    }
    std::future::pending().await
}
