//! The instances' signs of life: a key `instance.ID` of the bucket for each, which it counts up.
//!
//! Nothing in the log depends on them (see [`peers`](crate::log::peers)). Who is declared gone has its key taken away by who declares it; what is left by one that died
//! before it had joined goes after an hour of the servers' time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::bridge::Bridge;
use super::bucket::{Bucket, Entry};
use super::growth::Growth;
use super::servers::Silence;
use super::watch::Watched;
use crate::core::types::InstanceId;
use crate::log::peers::{Health, PATIENCE, Peers};

/// What the keys begin with.
const PREFIX: &str = "instance.";

/// So many are read at most: each costs a request, all at once. Ten would be many.
const MOST: usize = 256;

/// So much older than the newest one, a key is nobody's; in seconds.
const FORGOTTEN: i64 = 3_600;

/// As [`FORGOTTEN`], where there are more than are read.
const FORGOTTEN_IN_A_CROWD: i64 = 60;

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sign {
    /// Counted up with each renewal.
    pub(super) beat: u64,
    /// Names the instance for people.
    pub(super) name: String,
    /// Its release.
    pub(super) version: String,
    /// Which start of the store it is; older releases don't say.
    #[serde(default)]
    pub(super) start: Option<u64>,
}

/// The instances of one stream, as one of them sees them.
pub(super) struct Members {
    bridge: Arc<Bridge>,
    bucket: Bucket,
    watched: Watched,
    growth: Growth,
    name: String,
    start: u64,
    /// Of the bucket's leader: signs of life are not written.
    silence: Arc<Mutex<Silence>>,
}

/// Everything that is there.
pub(super) async fn signs(bucket: &Bucket) -> Result<BTreeMap<InstanceId, Sign>, String> {
    let keys = bucket.keys(PREFIX).await?;
    let is_crowd = keys.len() > MOST;
    let found: Vec<Entry<Sign>> = bucket.read_all(keys.into_iter().take(MOST).collect()).await?;
    let Some(newest) = found.iter().map(|entry| entry.at).max() else { return Ok(BTreeMap::new()) };
    let limit = if is_crowd { FORGOTTEN_IN_A_CROWD } else { FORGOTTEN };
    let mut signs = BTreeMap::new();
    for Entry { key, value, at } in found {
        if newest - at > limit {
            // Harmless if it stays.
            let _ = bucket.forget(&key).await;
        } else if let Ok(id) = u64::from_str_radix(&key[PREFIX.len()..], 16) {
            signs.insert(InstanceId(id), value);
        }
    }
    Ok(signs)
}

impl Members {
    pub(super) fn new(bridge: &Arc<Bridge>, bucket: &Bucket, watched: &Watched, growth: Growth, (name, start): (&str, u64)) -> Members {
        Members {
            bridge: Arc::clone(bridge),
            bucket: bucket.clone(),
            watched: watched.clone(),
            growth,
            name: name.to_owned(),
            start,
            silence: Arc::default(),
        }
    }

    /// The bucket's leader, too, may be one that answers and stores nothing.
    fn note(&self, is_written: bool) {
        if is_written {
            *locked(&self.silence) = Silence::default();
            return;
        }
        let (bucket, silence) = (self.bucket.clone(), Arc::clone(&self.silence));
        self.bridge.spawn(async move {
            let leader = bucket.leader().await;
            let is_too_long = locked(&silence).is_too_long_of(leader, Instant::now());
            if is_too_long {
                bucket.let_another_lead().await;
            }
        });
    }

    fn asked<T: Send + 'static>(&self, act: impl Future<Output = Result<T, String>> + Send + 'static) -> Result<T, String> {
        let limit = PATIENCE.as_millis();
        self.bridge.wait(PATIENCE, act).unwrap_or_else(|| Err(format!("the store's servers did not answer within {limit} ms")))
    }
}

fn locked(silence: &Mutex<Silence>) -> MutexGuard<'_, Silence> {
    // It is changed by calls that don't panic.
    silence.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers for Members {
    fn put_beat(&self, instance: InstanceId, beat: u64) -> Result<(), String> {
        let sign = Sign { beat, name: self.name.clone(), version: env!("CARGO_PKG_VERSION").into(), start: Some(self.start) };
        let bucket = self.bucket.clone();
        let written = self.asked(async move { bucket.put(&format!("{PREFIX}{instance}"), &sign).await });
        self.note(written.is_ok());
        written
    }

    fn beats(&self) -> Result<BTreeMap<InstanceId, u64>, String> {
        let bucket = self.bucket.clone();
        let signs = self.asked(async move { signs(&bucket).await })?;
        Ok(signs.into_iter().map(|(instance, sign)| (instance, sign.beat)).collect())
    }

    fn forget_beat(&self, instance: InstanceId) -> Result<(), String> {
        let bucket = self.bucket.clone();
        self.asked(async move { bucket.forget(&format!("{PREFIX}{instance}")).await })
    }

    fn on_growth(&self, wake: Box<dyn Fn() + Send + Sync>) {
        self.bridge.spawn(self.growth.clone().listen(wake));
    }

    fn health(&self) -> Option<Health> {
        self.watched.health()
    }
}
