//! `cluster` of a status: the instances, whose the lanes are, and how the servers are that hold the log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::admin::View;
use crate::admin::cluster::Peered;
use crate::core::types::ConnectionName;
use crate::log::{Health, Replica as Server};

/// The instances that work over one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The instance that says this.
    pub instance: String,
    /// What people call it.
    pub name: String,
    /// The instance that does what is done once for all; null before the first has joined.
    pub leader: Option<String>,
    /// Whether its own sign of life was written within the lease. If not, the others take its lanes.
    pub is_kept: bool,
    /// Those that have joined and not left.
    pub instances: Vec<Instance>,
    /// The lanes that have something to deliver, or will have.
    pub lanes: Vec<OwnedLane>,
    /// The servers that hold the log; null before the first look at them.
    pub stream: Option<Stream>,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Drawn at its start.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// When it joined, by its own clock (RFC 3339).
    pub since: String,
    /// Whether it has been heard of within the lease.
    pub is_live: bool,
    /// Whether it leads.
    pub is_leader: bool,
    /// How many of the lanes it owns.
    pub lanes: usize,
}

/// Whose a lane is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedLane {
    /// Connection and number.
    pub lane: String,
    /// The instance that drives it; null if none does.
    pub owner: Option<String>,
    /// How often it has been taken.
    pub term: u64,
}

/// The servers that hold the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The one that leads; null while no majority is there.
    pub leader: Option<String>,
    /// Those that follow it.
    pub replicas: Vec<Replica>,
    /// How long ago this was seen, in seconds.
    pub age_s: u64,
    /// What the stream takes.
    pub bytes: u64,
    /// What it may take; null if that is not limited.
    pub max_bytes: Option<u64>,
}

/// A server that follows the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// Whether it has everything that the leader has.
    pub is_current: bool,
    /// Whether it is away.
    pub is_offline: bool,
    /// So many operations it is behind.
    pub lag: u64,
}

impl Cluster {
    pub(super) fn of(peered: &Peered, views: &BTreeMap<ConnectionName, View>, health: Option<Health>) -> Cluster {
        let (own, owners) = (&peered.cluster, &peered.owners);
        let needed = peered.lanes(views);
        let known = owners.members().filter_map(|instance| Some((instance, owners.member(instance)?)));
        let instances = known.map(|(instance, member)| Instance {
            id: instance.to_string(),
            name: member.name.clone(),
            since: member.joined_at.rfc3339(),
            is_live: peered.is_live(instance),
            is_leader: owners.leader() == Some(instance),
            lanes: needed.iter().filter(|lane| owners.of(lane).instance == Some(instance)).count(),
        });
        let lanes = needed.iter().map(|lane| {
            let owner = owners.of(lane);
            OwnedLane { lane: lane.to_string(), owner: owner.instance.map(|owner| owner.to_string()), term: owner.term }
        });
        Cluster {
            instance: own.instance.to_string(),
            name: own.name.clone(),
            leader: owners.leader().map(|leader| leader.to_string()),
            is_kept: own.is_kept,
            instances: instances.collect(),
            lanes: lanes.collect(),
            stream: health.map(Stream::from),
        }
    }

    /// Those that are silent.
    pub fn silent(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|instance| !instance.is_live)
    }
}

impl From<Health> for Stream {
    fn from(health: Health) -> Stream {
        let replica = |replica: Server| Replica {
            name: replica.name,
            is_current: replica.is_current,
            is_offline: replica.is_offline,
            lag: replica.lag,
        };
        Stream {
            leader: health.leader,
            replicas: health.replicas.into_iter().map(replica).collect(),
            age_s: health.age.as_secs(),
            bytes: health.bytes,
            max_bytes: health.max_bytes,
        }
    }
}
