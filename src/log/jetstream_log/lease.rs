//! One instance at a time: the lease on the whole stream.
//!
//! Appends are safe without it, because one succeeds only for who has read everything before it. But an instance does not yet expect that others
//! append, and both would deliver the same lanes. So until lanes have owners of their own, a second instance is refused here.
//!
//! ```text
//!   free ──create──▶ held ──renewed each second──▶ held ──close──▶ free
//!                      └──not renewed for LEASE, by the clock of who looks──▶ taken over by compare-and-set
//! ```
//! It is taken out by deleting this file and the four places that name it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant, interval, sleep};

use super::bridge::Bridge;
use super::bucket::{Bucket, Read};

const KEY: &str = "lease";

/// Not renewed for so long, it is nobody's. Five renewals: a change of leaders in the cluster takes one or two of them.
pub(super) const LEASE: Duration = Duration::from_secs(5);

/// It is renewed, and looked at, so often.
const RENEWAL: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(250);

/// A stop waits so long for the lease to be given back; otherwise it runs out by itself.
const GIVING_BACK: Duration = Duration::from_secs(1);

/// What the key holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Holder {
    /// Who; empty if nobody.
    instance: String,
    /// Which start of it.
    start: String,
    /// The last message of the log that it knew to be stored: so much has to be there at the next start.
    last: u64,
}

/// The lease, held and renewed until it is given back or dropped.
pub(super) struct Lease {
    bridge: Arc<Bridge>,
    bucket: Bucket,
    holder: Holder,
    last: Arc<AtomicU64>,
    is_lost: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
}

/// Why the lease was not got.
pub(super) enum Refused {
    /// This one has it.
    Held(String),
    /// It can't be found out.
    Failed(String),
}

/// A lease that was got, and the last message that must be there.
pub(super) struct Got {
    holder: Holder,
    revision: u64,
    pub(super) must_hold: u64,
}

/// Gets the lease. Waits for one that may have died.
pub(super) async fn get(bucket: &Bucket, instance: &str, start: String) -> Result<Got, Refused> {
    let mut mine = Holder { instance: instance.to_owned(), start, last: 0 };
    let begun = Instant::now();
    let mut seen = None;
    loop {
        let held: Option<Read<Holder>> = bucket.read(KEY).await.map_err(Refused::Failed)?;
        let taken = match held {
            None => bucket.create(KEY, &mine).await.map_err(Refused::Failed)?,
            Some(Read { value, revision }) => {
                let is_free = value.instance.is_empty() || begun.elapsed() >= LEASE;
                if *seen.get_or_insert(revision) != revision {
                    return Err(Refused::Held(value.instance));
                }
                mine.last = value.last;
                if is_free { bucket.replace(KEY, &mine, revision).await.map_err(Refused::Failed)? } else { None }
            }
        };
        if let Some(revision) = taken {
            return Ok(Got { must_hold: mine.last, holder: mine, revision });
        }
        sleep(LOOK).await;
    }
}

impl Lease {
    /// Holds it. `last` is the last message of the log that is known to be stored.
    pub(super) fn hold(got: Got, bridge: &Arc<Bridge>, bucket: &Bucket, last: Arc<AtomicU64>) -> Lease {
        let Got { holder, revision, .. } = got;
        let lease =
            Lease { bridge: Arc::clone(bridge), bucket: bucket.clone(), holder, last, is_lost: Arc::default(), is_over: Arc::default() };
        let (bucket, mut holder, last) = (bucket.clone(), lease.holder.clone(), Arc::clone(&lease.last));
        let (is_lost, is_over) = (Arc::clone(&lease.is_lost), Arc::clone(&lease.is_over));
        bridge.spawn(async move {
            let mut revision = revision;
            let mut beat = interval(RENEWAL);
            loop {
                beat.tick().await;
                if is_over.load(Ordering::Acquire) {
                    return;
                }
                holder.last = last.load(Ordering::Acquire);
                match bucket.replace(KEY, &holder, revision).await {
                    Ok(Some(renewed)) => revision = renewed,
                    // Perhaps by this very task: the answer to a renewal can be lost.
                    Ok(None) => match bucket.read::<Holder>(KEY).await {
                        Ok(Some(held)) if held.value.start == holder.start => revision = held.revision,
                        Ok(Some(_)) if !is_over.load(Ordering::Acquire) => {
                            is_lost.store(true, Ordering::Release);
                            return;
                        }
                        _ => {}
                    },
                    Err(what) => tracing::debug!("the lease was not renewed: {what}"),
                }
            }
        });
        lease
    }

    /// Whether another instance has taken it over.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }
}

impl Drop for Lease {
    /// Gives it back, if the servers answer. A process that is killed does not come here, and the lease runs out.
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let (bucket, start, last) = (self.bucket.clone(), self.holder.start.clone(), self.last.load(Ordering::Acquire));
        self.bridge.wait(GIVING_BACK, async move {
            // Twice, because a renewal may be under way.
            for _ in 0..2 {
                let Ok(Some(held)) = bucket.read::<Holder>(KEY).await else { return };
                if held.value.start != start {
                    return;
                }
                let free = Holder { instance: String::new(), start: String::new(), last };
                if let Ok(Some(_)) = bucket.replace(KEY, &free, held.revision).await {
                    return;
                }
            }
        });
    }
}
