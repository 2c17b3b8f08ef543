//! Whether others append, this moment: what is published to the stream is heard of by everybody.
//!
//! A page is heard of when it is published, and read once it is stored, a moment later or never: so it is no more than a hint to look. It saves a report that another
//! instance has accepted the wait for the next look; what it costs is that each page comes to each instance twice.

use std::time::Duration;

use async_nats::Client;
use async_nats::header::NATS_MESSAGE_ID;
use futures_util::{FutureExt, StreamExt};
use tokio::time::sleep;

use super::servers::Pages;

/// By then a page that was published is stored, as a rule: a round of the servers among each other.
const STORED: Duration = Duration::from_millis(2);

/// Until it is tried again to listen.
const AGAIN: Duration = Duration::from_secs(1);

/// The stream's subject, as this instance hears it.
#[derive(Clone)]
pub(super) struct Growth {
    client: Client,
    subject: String,
    /// What the ids of its own messages begin with.
    own: String,
}

impl Growth {
    pub(super) fn new(pages: &Pages, message_id: &str) -> Growth {
        Growth { client: pages.context.client(), subject: pages.subject.clone(), own: format!("{message_id}-") }
    }

    /// Calls `wake` for what others publish, for as long as the log is open. Without it others are heard of a little later.
    pub(super) async fn listen(self, wake: Box<dyn Fn() + Send + Sync>) {
        loop {
            if let Ok(mut published) = self.client.subscribe(self.subject.clone()).await {
                while let Some(message) = published.next().await {
                    let id = message.headers.as_ref().and_then(|headers| headers.get(NATS_MESSAGE_ID));
                    if id.is_none_or(|id| !id.as_str().starts_with(&self.own)) {
                        sleep(STORED).await;
                        // Those that came meanwhile are one hint.
                        while let Some(Some(_)) = published.next().now_or_never() {}
                        wake();
                    }
                }
            }
            sleep(AGAIN).await;
        }
    }
}
