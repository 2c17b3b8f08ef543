//! Will messages: published as reports when a client has vanished, after their delay, unless it is back by then (MQTT 5.0 §3.1.3.2.2).
//!
//! A will is in memory until it is published: a kill of Tidings takes the wills of those connected with it. At a stop, what waits for its delay
//! is published at once, because nobody would do it later; who is connected at a stop finds the service again and has not vanished.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::store::Store;
use crate::core::listener::Will;
use crate::log::committer::CommitError;

/// So many wills wait at most; further ones are published without their delay.
const MAX_WAITING: usize = 1_024;

/// The store is asked again after this, if it was full.
const AGAIN: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Default)]
pub struct Wills {
    /// By session: told when the client is back.
    waiting: Mutex<HashMap<String, Arc<Waiting>>>,
}

#[derive(Default)]
struct Waiting {
    changed: Notify,
    /// Whether the client goes on with its session, and the will is void.
    is_void: Mutex<Option<bool>>,
}

impl Wills {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client is back: with its session, so that its will is void, or with a clean one, so that the old session ends and its will is due.
    pub fn on_connect(&self, session: &str, is_clean: bool) {
        if let Some(waiting) = self.lock().remove(session) {
            *waiting.is_void.lock().unwrap_or_else(PoisonError::into_inner) = Some(!is_clean);
            waiting.changed.notify_one();
        }
    }

    /// Publishes a will when it is due. `expiry_s` is how long the session is kept: a will is due when it ends.
    pub async fn publish(&self, session: &str, will: Will, expiry_s: u32, user: &str, store: &Store, mut stopping: watch::Receiver<bool>) {
        let delay_s = will.delay_s.min(expiry_s);
        if delay_s > 0 {
            let waiting = Arc::new(Waiting::default());
            let is_room = {
                let mut all = self.lock();
                let is_room = all.len() < MAX_WAITING;
                if is_room {
                    all.insert(session.to_owned(), Arc::clone(&waiting));
                }
                is_room
            };
            if is_room {
                tokio::select! {
                    () = waiting.changed.notified() => {}
                    () = tokio::time::sleep(Duration::from_secs(u64::from(delay_s))) => {}
                    _ = stopping.wait_for(|stopping| *stopping) => {}
                }
                let mut all = self.lock();
                if all.get(session).is_some_and(|known| Arc::ptr_eq(known, &waiting)) {
                    all.remove(session);
                }
                if waiting.is_void.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(false) {
                    return;
                }
            }
        }
        loop {
            match store.publish(&will.publish, user).await {
                Ok(()) => return,
                Err(CommitError::Full(_) | CommitError::Overloaded | CommitError::LanesChanged(_)) if !*stopping.borrow() => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return tracing::warn!(%error, topic = will.publish.topic, "a will message was not published"),
            }
        }
    }
}
