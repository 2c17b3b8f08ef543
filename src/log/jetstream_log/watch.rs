//! What is looked at once a second: how the stream is, and how far it has come.
//!
//! The *witness*, a key of the bucket, says how far: the last message that anybody knew to be stored. So much has to be there at every start, which is how a stream
//! is recognised that was deleted, or restored from a backup that is older than its bucket. All instances write it, and it only grows: by compare-and-set,
//! from what is there. In a crash it may be a second behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::jetstream::stream::PeerInfo;
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant, sleep, timeout};

use super::bridge::Bridge;
use super::bucket::{Bucket, Read};
use super::servers::{Pages, leader_of};
use crate::log::peers::{Health, Replica};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// A look that takes longer has seen nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was seen so long ago says nothing of who leads: an answer comes from the leader alone, and is asked for every second.
const STALE: Duration = Duration::from_secs(4);

/// The key of the witness.
const WITNESS: &str = "witness";

/// A stop waits so long for the last word of the witness.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What the key holds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Witness {
    /// The last message that was known to be stored.
    last: u64,
}

/// The last message that has to be there.
pub(super) async fn must_hold(bucket: &Bucket) -> Result<u64, String> {
    Ok(bucket.read::<Witness>(WITNESS).await?.map_or(0, |read| read.value.last))
}

/// Raises the witness to `last`. Never lowers it.
pub(super) async fn raise(bucket: &Bucket, last: u64) -> Result<(), String> {
    loop {
        let written = match bucket.read::<Witness>(WITNESS).await? {
            Some(Read { value, .. }) if value.last >= last => return Ok(()),
            Some(Read { revision, .. }) => bucket.replace(WITNESS, &Witness { last }, revision).await?,
            None => bucket.create(WITNESS, &Witness { last }).await?,
        };
        if written.is_some() {
            return Ok(());
        }
    }
}

/// What is known of the stream, for the log and for whoever shows it.
#[derive(Clone)]
pub(super) struct Watched {
    known: Arc<Known>,
}

struct Known {
    /// What the stream takes, in bytes.
    bytes: AtomicU64,
    /// What it may take.
    max_bytes: AtomicU64,
    /// The oldest message that it holds, or the one that comes next if it holds none.
    first: AtomicU64,
    /// The last look, and its time.
    seen: Mutex<Option<(Instant, Health)>>,
}

impl Watched {
    pub(super) fn new(bytes: u64, max_bytes: u64) -> Watched {
        let (bytes, max_bytes) = (AtomicU64::new(bytes), AtomicU64::new(max_bytes));
        Watched { known: Arc::new(Known { bytes, max_bytes, first: AtomicU64::new(0), seen: Mutex::default() }) }
    }

    /// What the stream takes, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.known.bytes.load(Ordering::Relaxed)
    }

    /// What it may take.
    pub(super) fn max_bytes(&self) -> u64 {
        self.known.max_bytes.load(Ordering::Relaxed)
    }

    /// The oldest message that it holds; older ones were deleted. May be a second old, and never goes back.
    pub(super) fn first(&self) -> u64 {
        self.known.first.load(Ordering::Relaxed)
    }

    /// So much was added, which the next look will find.
    pub(super) fn add(&self, bytes: u64) {
        self.known.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How the stream was at the last look.
    pub(super) fn health(&self) -> Option<Health> {
        let seen = self.known.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, health) = seen.as_ref()?;
        let age = at.elapsed();
        let leader = health.leader.clone().filter(|_| age < STALE);
        Some(Health { leader, age, ..health.clone() })
    }

    /// Looks, until nobody is interested any more.
    pub(super) fn keep_up(&self, bridge: &Bridge, pages: &Pages) {
        let (known, pages) = (Arc::downgrade(&self.known), pages.clone());
        bridge.spawn(async move {
            loop {
                let seen = timeout(PATIENCE, pages.info()).await;
                let Some(known) = known.upgrade() else { return };
                match seen {
                    Ok(Ok(info)) => {
                        known.bytes.store(info.state.bytes, Ordering::Relaxed);
                        known.first.fetch_max(info.state.first_sequence, Ordering::Relaxed);
                        let max_bytes = u64::try_from(info.config.max_bytes).ok().filter(|most| *most > 0);
                        known.max_bytes.store(max_bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
                        // A server that is alone names nobody: it leads.
                        let leader = if info.cluster.is_none() { Some(pages.server()) } else { leader_of(&info) };
                        let replica = |peer: PeerInfo| Replica {
                            name: peer.name,
                            is_current: peer.current,
                            is_offline: peer.offline,
                            lag: peer.lag.unwrap_or_default(),
                        };
                        let health = Health {
                            leader,
                            replicas: info.cluster.map(|cluster| cluster.replicas).unwrap_or_default().into_iter().map(replica).collect(),
                            age: Duration::ZERO,
                            bytes: info.state.bytes,
                            max_bytes,
                            messages: info.state.messages,
                        };
                        *known.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), health));
                    }
                    Ok(Err(what)) => tracing::debug!("{what}"),
                    Err(_) => tracing::debug!("the servers did not say how the stream is"),
                }
                drop(known);
                sleep(LOOK).await;
            }
        });
    }
}

/// Keeps the witness up with what this log has read and written, and has the last word when it is dropped.
pub(super) struct Testimony {
    bridge: Arc<Bridge>,
    bucket: Bucket,
    last: Arc<AtomicU64>,
}

impl Testimony {
    /// `last` is the last message that is known to be stored.
    pub(super) fn keep(bridge: &Arc<Bridge>, bucket: &Bucket, last: &Arc<AtomicU64>) -> Testimony {
        let (asked, known) = (bucket.clone(), Arc::downgrade(last));
        bridge.spawn(async move {
            let mut written = 0;
            loop {
                sleep(LOOK).await;
                let Some(last) = known.upgrade().map(|last| last.load(Ordering::Acquire)) else { return };
                if last > written {
                    match timeout(PATIENCE, raise(&asked, last)).await {
                        Ok(Ok(())) => written = last,
                        Ok(Err(what)) => tracing::debug!("the witness was not written: {what}"),
                        Err(_) => tracing::debug!("the witness was not written: the servers did not answer"),
                    }
                }
            }
        });
        Testimony { bridge: Arc::clone(bridge), bucket: bucket.clone(), last: Arc::clone(last) }
    }
}

impl Drop for Testimony {
    /// A process that is killed does not come here.
    fn drop(&mut self) {
        let (bucket, last) = (self.bucket.clone(), self.last.load(Ordering::Acquire));
        self.bridge.wait(LAST_WORD, async move {
            if let Err(what) = raise(&bucket, last).await {
                tracing::debug!("the witness was not written: {what}");
            }
        });
    }
}
