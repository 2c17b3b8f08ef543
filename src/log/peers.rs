//! What a shared log offers beside its events: signs of life of the instances, and how its replicas are.
//!
//! Nothing here decides what is delivered. Signs of life say *when* somebody takes a lane ([`core::lease`](crate::core::lease)); what may be said of it is up to the log.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::types::InstanceId;

/// A place that all instances of a shared log can write to and read from. Its calls block, for [`PATIENCE`] at most.
pub trait Peers: Send + Sync {
    /// Writes an instance's number: see [`Leases::renewal`](crate::core::lease::Leases::renewal).
    ///
    /// # Errors
    /// Says why it may not have been written.
    fn put_beat(&self, instance: InstanceId, beat: u64) -> Result<(), String>;

    /// The numbers of all instances.
    ///
    /// # Errors
    /// Says why they can't be read.
    fn beats(&self) -> Result<BTreeMap<InstanceId, u64>, String>;

    /// Takes away the number of an instance that has left.
    ///
    /// # Errors
    /// Says why it may still be there; that is harmless.
    fn forget_beat(&self, instance: InstanceId) -> Result<(), String>;

    /// Has `wake` called when another instance has appended, as a rule. It is a hint: it may be called for nothing, and may not be called. To be asked for once.
    fn on_growth(&self, _wake: Box<dyn Fn() + Send + Sync>) {}

    /// How the stream was when it was looked at last; none before the first look. Does not block.
    fn health(&self) -> Option<Health>;
}

/// A call that takes longer has failed: a renewal comes once a second.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How the servers are that hold the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// The server that leads the stream; none while there is no majority.
    pub leader: Option<String>,
    /// Those that follow it, by name.
    pub replicas: Vec<Replica>,
    /// How long ago this was seen.
    pub age: Duration,
    /// What the stream takes, in bytes.
    pub bytes: u64,
    /// What it may take, in bytes; none if that is not limited.
    pub max_bytes: Option<u64>,
    /// Messages in it.
    pub messages: u64,
}

/// A server that follows the leader.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// It has everything that the leader has.
    pub is_current: bool,
    /// It is not there.
    pub is_offline: bool,
    /// So many operations it is behind.
    pub lag: u64,
}
