//! Who is connected: one connection for each client id, and how far each has got with what it has read.
//!
//! A client id belongs to its owner: the same id of another user is another key, so that nobody can end or take over somebody else's
//! session, or publish into it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// A connection whose client id is wanted by another one gets so long to finish a commit that is under way.
const TAKE_OVER: Duration = Duration::from_secs(15);

/// So long a repeated PUBLISH waits for what other connections of the same user and address are just storing.
const OTHERS: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub struct Registry {
    state: Mutex<State>,
    /// Packet ids of QoS 2 that all connections remember.
    received: AtomicUsize,
    /// Connections entered so far.
    entered: AtomicU64,
    /// Connections are numbered one by one.
    is_counting: bool,
}

#[derive(Debug, Default)]
struct State {
    claims: HashMap<String, Holder>,
    live: BTreeMap<u64, Arc<Progress>>,
}

#[derive(Debug)]
struct Holder {
    connection: u64,
    evict: Arc<Notify>,
    /// Closed when the holder is gone.
    gone: watch::Receiver<()>,
}

/// How far a connection has got: packets taken in, and packets whose fate is sealed.
#[derive(Debug)]
pub struct Progress {
    scope: u64,
    /// Its place in the order in which connections were entered.
    entered: u64,
    taken: AtomicU64,
    settled: AtomicU64,
}

impl Progress {
    /// Says that so many packets were taken in ever, and so many of them are stored, or given up.
    pub fn note(&self, taken: u64, settled: u64) {
        self.taken.store(taken, Ordering::Release);
        self.settled.store(settled, Ordering::Release);
    }
}

/// A connection's place in the registry; ends when it is dropped.
#[derive(Debug)]
pub struct Place {
    registry: Arc<Registry>,
    /// The connection's number: random, so that it is not used again after a restart.
    pub connection: u64,
    /// How far it has got.
    pub progress: Arc<Progress>,
    received: usize,
}

/// The right to a client id; ends when it is dropped.
#[derive(Debug)]
pub struct Claim {
    registry: Arc<Registry>,
    key: String,
    connection: u64,
    /// Told when another connection wants the client id, or whoever has it would not be let in any more.
    pub evict: Arc<Notify>,
    _gone: watch::Sender<()>,
}

impl Registry {
    /// A registry that numbers connections from `first` on, for simulations, where nothing is by chance but what they draw.
    pub fn counting(first: u64) -> Self {
        Registry { entered: AtomicU64::new(first), is_counting: true, ..Registry::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a connection of a user at an address.
    pub fn enter(self: &Arc<Self>, scope: u64) -> Place {
        let entered = self.entered.fetch_add(1, Ordering::Relaxed);
        let connection = if self.is_counting { entered } else { getrandom::u64().unwrap_or(entered) };
        let progress = Arc::new(Progress { scope, entered, taken: AtomicU64::new(0), settled: AtomicU64::new(0) });
        self.lock().live.insert(connection, Arc::clone(&progress));
        Place { registry: Arc::clone(self), connection, progress, received: 0 }
    }

    /// Whether a connection is live.
    pub fn is_live(&self, connection: u64) -> bool {
        self.lock().live.contains_key(&connection)
    }

    /// Claims a client id by its key. Who has it is told to end, and waited for. None if that takes too long.
    pub async fn claim(self: &Arc<Self>, key: &str, connection: u64) -> Option<Claim> {
        let claiming = async {
            loop {
                let mut gone = {
                    let mut state = self.lock();
                    match state.claims.get(key) {
                        None => return self.hold(&mut state, key, connection),
                        Some(holder) => {
                            holder.evict.notify_one();
                            holder.gone.clone()
                        }
                    }
                };
                // An error is what is waited for: the holder is gone.
                while gone.changed().await.is_ok() {}
            }
        };
        tokio::time::timeout(TAKE_OVER, claiming).await.ok()
    }

    /// Tells whoever has a client id to end.
    pub fn evict_all(&self) {
        self.lock().claims.values().for_each(|holder| holder.evict.notify_one());
    }

    /// Claims a client id that nobody has.
    pub fn claim_idle(self: &Arc<Self>, key: &str) -> Option<Claim> {
        let mut state = self.lock();
        (!state.claims.contains_key(key)).then(|| self.hold(&mut state, key, 0))
    }

    fn hold(self: &Arc<Self>, state: &mut State, key: &str, connection: u64) -> Claim {
        let evict = Arc::new(Notify::new());
        let (sender, gone) = watch::channel(());
        state.claims.insert(key.to_owned(), Holder { connection, evict: Arc::clone(&evict), gone });
        Claim { registry: Arc::clone(self), key: key.to_owned(), connection, evict, _gone: sender }
    }

    /// The keys of connected clients.
    pub fn claimed(&self) -> Vec<String> {
        self.lock().claims.keys().cloned().collect()
    }

    /// Waits until earlier connections of the same scope have stored, or given up, what they have read by now. Later ones are not waited for:
    /// what is repeated was sent before on an earlier one, and two that wait for each other would do so in vain.
    pub async fn others_are_through(&self, connection: u64, own: &Progress) {
        let others: Vec<(u64, Arc<Progress>, u64)> = {
            let state = self.lock();
            let is_other = |(number, known): &(&u64, &Arc<Progress>)| {
                **number != connection && known.scope == own.scope && known.entered < own.entered
            };
            let with_goal = |(number, known): (&u64, &Arc<Progress>)| (*number, Arc::clone(known), known.taken.load(Ordering::Acquire));
            state.live.iter().filter(is_other).map(with_goal).collect()
        };
        let through = async {
            for (number, other, goal) in others {
                while other.settled.load(Ordering::Acquire) < goal && self.is_live(number) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        // A connection that can't get through is held up by a store that is full, and so is the one that asks.
        let _ = tokio::time::timeout(OTHERS, through).await;
    }

    /// So many packet ids of QoS 2 are remembered in all.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }
}

impl Place {
    /// Says how many packet ids of QoS 2 this connection remembers.
    pub fn remember(&mut self, received: usize) {
        self.registry.received.fetch_add(received, Ordering::Relaxed);
        self.registry.received.fetch_sub(self.received, Ordering::Relaxed);
        self.received = received;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.remember(0);
        self.registry.lock().live.remove(&self.connection);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        if state.claims.get(&self.key).is_some_and(|holder| holder.connection == self.connection) {
            state.claims.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn of_two_connections_that_both_repeat_something_the_later_waits_for_the_earlier_and_not_both_for_each_other() {
        let registry = Arc::new(Registry::default());
        let (earlier, later, stranger) = (registry.enter(7), registry.enter(7), registry.enter(8));
        for place in [&earlier, &later, &stranger] {
            place.progress.note(1, 0);
        }
        let waits = |place: &Place| registry.others_are_through(place.connection, &place.progress).now_or_never().is_none();
        assert!(!waits(&earlier) && waits(&later) && !waits(&stranger));
        earlier.progress.note(1, 1);
        assert!(!waits(&later));
    }
}
