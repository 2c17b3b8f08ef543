//! Sessions that outlive their connections: opened, gone on with, and ended in the log.
//!
//! What is in the log: that a session exists (`Received` with packet id 0, said again at most once an hour while it is used), and the packet ids that
//! wait for their PUBREL. What is not: how long the client wanted it to be kept. That is known while Tidings runs; after a restart every
//! session is kept for [`SESSION_EXPIRY_S`] from when it was last heard of.
//!
//! At most [`MAX_SESSIONS`] are kept; the one that has been idle for longest makes room for another.
//!
//! # Where several instances share a log
//! A client may come back to another instance, and finds its session there with the packet ids that wait. Each going on is said in the log then, so that
//! the instance it was at before does not take the session for expired. What an instance can't do is end the client's connection to another one (MQTT
//! 5.0 §3.1.4): a client that is connected to two with one client id is not stopped, as a proxy in front of them would not stop it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::registry::Registry;
use crate::core::event::Event;
use crate::core::listener::Admission;
use crate::core::outbox::PublisherSession;
use crate::core::types::Millis;
use crate::log::committer::{CommitError, LogHandle};

/// A session is kept so long without a connection at most, in seconds: a week, as long as reports are by default. It is told to MQTT 5 clients
/// that want more; MQTT 3.1.1 has no say in it.
pub const SESSION_EXPIRY_S: u32 = 7 * 24 * 60 * 60;

/// So many sessions are kept.
pub const MAX_SESSIONS: usize = 4_096;

/// While a session is used, the log hears of it so often.
const TOUCH_MS: u64 = 60 * 60 * 1_000;

/// How often expired sessions are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// See the module.
pub struct Sessions {
    log: LogHandle,
    registry: Arc<Registry>,
    /// The wall clock; a simulation has its own.
    clock: fn() -> Millis,
    /// Sessions without a connection.
    idle: Arc<Mutex<HashMap<String, Idle>>>,
}

/// A session without a connection.
#[derive(Debug, Clone, Copy)]
struct Idle {
    expires: Millis,
    /// When it was heard of last, as the log has it: if that changes, it is in use at another instance.
    heard: Millis,
}

/// An idle session whose end is on its way to the log. Dropped without [`done`](Ending::done), it is idle as before, and its end is tried again.
struct Ending<'a> {
    sessions: &'a Sessions,
    key: String,
    idle: Option<Idle>,
}

impl Ending<'_> {
    /// The log has its end.
    fn done(mut self) {
        self.idle = None;
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if let Some(idle) = self.idle.take() {
            self.sessions.idle().entry(std::mem::take(&mut self.key)).or_insert(idle);
        }
    }
}

/// The session of a client that is about to be let in. Dropped without [`admitted`](Greeting::admitted), it is idle as before: who is turned away has not
/// been here.
pub struct Greeting {
    idle: Arc<Mutex<HashMap<String, Idle>>>,
    key: String,
    was: Option<Idle>,
}

impl Greeting {
    /// The client is let in, and its session is in use.
    pub fn admitted(mut self) {
        self.was = None;
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        if let Some(was) = self.was.take() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.entry(std::mem::take(&mut self.key)).or_insert(was);
        }
    }
}

/// When a session expires of which nothing more is known than when it was heard of. It may have been used for an hour since, and a clock that was
/// set back keeps nothing for ever.
fn longest(heard: Millis, now: Millis) -> Millis {
    let most = u64::from(SESSION_EXPIRY_S) * 1_000;
    heard.plus(most + TOUCH_MS).min(now.plus(most))
}

/// The key of a session: whose it is, and its client id. No two pairs have the same.
pub fn key(owner: &str, client_id: &str) -> String {
    format!("{}:{owner}/{client_id}", owner.len())
}

impl Sessions {
    /// The sessions that the log knows.
    ///
    /// # Errors
    /// [`CommitError::Stopped`].
    pub async fn recover(log: LogHandle, registry: Arc<Registry>, clock: fn() -> Millis) -> Result<Self, CommitError> {
        let known = log.ask(|outbox| {
            let session = |(key, session): (&String, &PublisherSession)| (key.clone(), session.at);
            outbox.publisher_sessions().iter().map(session).collect::<Vec<_>>()
        });
        let now = clock();
        let idle = |(key, heard)| (key, Idle { expires: longest(heard, now), heard });
        let idle = known.await?.into_inner().into_iter().map(idle).collect();
        Ok(Sessions { log, registry, clock, idle: Arc::new(Mutex::new(idle)) })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, HashMap<String, Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Greets a client whose id has been claimed: until it is let in or turned away, nobody ends its session.
    pub fn greet(&self, key: &str) -> Greeting {
        Greeting { idle: Arc::clone(&self.idle), key: key.to_owned(), was: self.idle().remove(key) }
    }

    /// Opens the session of a client whose id has been claimed, and says what is in it. `lasts` says whether it is to outlive its connection.
    ///
    /// # Errors
    /// [`CommitError`]; the client can't be let in then.
    pub async fn open(&self, key: &str, clean: bool, lasts: bool) -> Result<Admission, CommitError> {
        self.idle().remove(key);
        let asked = key.to_owned();
        let known = self.log.ask_latest(move |outbox| outbox.publisher_sessions().get(&asked).cloned()).await?.into_inner();
        let (now, client) = ((self.clock)(), key.to_owned());
        // It has to be seen elsewhere that it goes on, whatever clocks say there.
        let at = known.as_ref().filter(|_| self.log.is_shared()).map_or(now, |session| now.max(session.at.plus(1)));
        let (mut events, mut ending) = (Vec::new(), None);
        let going_on = known.as_ref().filter(|_| !clean);
        if known.is_some() && clean {
            events.push(Event::ReleasedIn { client: client.clone(), packet_id: 0, at });
        }
        let is_due = going_on.is_none_or(|session| self.log.is_shared() || at.since(session.at) >= TOUCH_MS);
        if lasts && is_due {
            if going_on.is_none() {
                ending = self.room_for_one().await?;
                events.extend(ending.as_ref().map(|ending| Event::ReleasedIn {
                    client: ending.key.clone(),
                    packet_id: 0,
                    at: (self.clock)(),
                }));
            }
            events.push(Event::Received { client, packet_id: 0, at });
        }
        let admission = Admission {
            session_present: going_on.is_some(),
            assigned: None,
            received: going_on.map(|known| known.received.clone()).unwrap_or_default(),
        };
        if !events.is_empty() {
            self.log.record(events).await?;
        }
        if let Some(ending) = ending {
            tracing::warn!(session = ending.key, "there are too many MQTT sessions; the one that has been idle for longest was ended");
            ending.done();
        }
        Ok(admission)
    }

    /// The session that has been idle for longest, if there are as many as may be: it is to end.
    async fn room_for_one(&self) -> Result<Option<Ending<'_>>, CommitError> {
        let count = self.log.ask(|outbox| outbox.publisher_sessions().len()).await?.into_inner();
        if count < MAX_SESSIONS {
            return Ok(None);
        }
        let oldest = self.idle().iter().min_by_key(|(_, idle)| idle.expires).map(|(key, _)| key.clone());
        let Some(ending) = oldest.and_then(|key| self.take_idle(&key)) else {
            return Err(CommitError::Full(format!("{MAX_SESSIONS} MQTT sessions are in use")));
        };
        Ok(Some(ending))
    }

    /// Takes a session that is to end; none if it is not idle any more.
    fn take_idle(&self, key: &str) -> Option<Ending<'_>> {
        let idle = self.idle().remove(key)?;
        Some(Ending { sessions: self, key: key.to_owned(), idle: Some(idle) })
    }

    /// The connection of a session has ended; it is kept for `expiry_s` seconds, or not at all.
    ///
    /// # Errors
    /// [`CommitError`]; the session is kept then.
    pub async fn close(&self, key: &str, expiry_s: u32) -> Result<(), CommitError> {
        let asked = key.to_owned();
        let known = self.log.ask(move |outbox| outbox.publisher_sessions().get(&asked).map(|session| session.at)).await?.into_inner();
        let (Some(heard), at, client) = (known, (self.clock)(), key.to_owned()) else { return Ok(()) };
        if expiry_s == 0 {
            // Idle until its end is in the log, so that it ends later where that fails now.
            let ending = Ending { sessions: self, key: client.clone(), idle: Some(Idle { expires: at, heard }) };
            self.log.record(vec![Event::ReleasedIn { client, packet_id: 0, at }]).await?;
            ending.done();
            return Ok(());
        }
        let is_due = at.since(heard) >= TOUCH_MS;
        let heard = if is_due { at } else { heard };
        self.idle().insert(key.to_owned(), Idle { expires: at.plus(u64::from(expiry_s) * 1_000), heard });
        if is_due {
            self.log.record(vec![Event::Received { client, packet_id: 0, at }]).await?;
        }
        Ok(())
    }

    /// Ends what has expired, and says of what is in use that it is. Goes on for ever.
    pub async fn sweep(&self) {
        let mut beat = tokio::time::interval(SWEEP);
        loop {
            beat.tick().await;
            if let Err(error) = self.sweep_once().await {
                tracing::warn!(%error, "expired MQTT sessions could not be ended; it is tried again");
            }
        }
    }

    async fn sweep_once(&self) -> Result<(), CommitError> {
        let at = (self.clock)();
        let due: Vec<String> = self.idle().iter().filter(|(_, idle)| idle.expires <= at).map(|(key, _)| key.clone()).collect();
        for key in due {
            // Who is about to connect keeps it.
            let Some(_claim) = self.registry.claim_idle(&key) else { continue };
            if self.log.is_shared() && self.is_elsewhere(&key, at).await? {
                continue;
            }
            if let Some(ending) = self.take_idle(&key) {
                self.log.record(vec![Event::ReleasedIn { client: key.clone(), packet_id: 0, at }]).await?;
                ending.done();
                tracing::info!(session = key, "an MQTT session has expired");
            }
        }
        let connected = self.registry.claimed();
        let untouched = self.log.ask(move |outbox| {
            let is_due = |key: &String| outbox.publisher_sessions().get(key).is_some_and(|session| at.since(session.at) >= TOUCH_MS);
            connected.into_iter().filter(is_due).collect::<Vec<_>>()
        });
        let events: Vec<Event> =
            untouched.await?.into_inner().into_iter().map(|client| Event::Received { client, packet_id: 0, at }).collect();
        if !events.is_empty() {
            self.log.record(events).await?;
        }
        Ok(())
    }
}

impl Sessions {
    /// Whether a session that would expire here has been used at another instance since. Then it is that one's to end; should that one be gone, it ends here,
    /// but later.
    async fn is_elsewhere(&self, key: &str, now: Millis) -> Result<bool, CommitError> {
        let asked = key.to_owned();
        let heard = self.log.ask_latest(move |outbox| outbox.publisher_sessions().get(&asked).map(|session| session.at));
        let heard = heard.await?.into_inner();
        let mut idle = self.idle();
        match (idle.get_mut(key), heard) {
            (Some(known), Some(heard)) if heard > known.heard => {
                *known = Idle { expires: longest(heard, now), heard };
                Ok(true)
            }
            (_, Some(_)) => Ok(false),
            // It has ended there.
            (_, None) => {
                idle.remove(key);
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::mqtt::tests::log;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_session_whose_end_could_not_be_stored_is_still_to_end() {
        let log = log(&Arc::new(Metrics::new())).await;
        let mut sessions = Sessions::recover(log.clone(), Arc::new(Registry::default()), || Millis(1_000)).await.unwrap();
        for key in ["one", "other"] {
            assert!(!sessions.open(key, false, true).await.unwrap().session_present);
            sessions.close(key, 1).await.unwrap();
        }
        sessions.clock = || Millis(1_999);
        sessions.sweep_once().await.unwrap();
        assert_eq!(sessions.idle().len(), 2, "it is not time yet");
        sessions.clock = || Millis(2_000);
        log.stop().await.unwrap();
        assert!(matches!(sessions.sweep_once().await, Err(CommitError::Stopped)));
        assert_eq!(sessions.idle().len(), 2, "the next sweep finds them");
    }

    #[tokio::test]
    async fn a_session_is_idle_as_before_when_its_client_is_turned_away_and_not_when_it_is_let_in() {
        let log = log(&Arc::new(Metrics::new())).await;
        let sessions = Sessions::recover(log, Arc::new(Registry::default()), || Millis(1_000)).await.unwrap();
        sessions.open("one", false, true).await.unwrap();
        sessions.close("one", 60).await.unwrap();
        let idle = || sessions.idle().get("one").map(|idle| idle.expires);
        drop(sessions.greet("one"));
        assert_eq!(idle(), Some(Millis(61_000)));
        sessions.greet("one").admitted();
        assert_eq!(idle(), None);
    }

    #[test]
    fn no_two_owners_share_a_key() {
        let pairs = [("a", "b/c"), ("a/b", "c"), ("", "a/b/c"), ("1:a", "x"), ("1", ":a/x"), ("another", "x")];
        let keys: std::collections::HashSet<String> = pairs.iter().map(|(owner, client)| key(owner, client)).collect();
        assert_eq!(keys.len(), pairs.len());
    }
}
