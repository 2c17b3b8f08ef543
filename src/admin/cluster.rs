//! What this instance knows of the others that work over the same log, and where the lanes are.
//!
//! ```text
//!   leases (signs of life) ─▶ Cluster ─┐
//!   the log (who owns what) ───────────┼─▶ `cluster` of `/v1/status`, metrics, the dashboard
//!   the servers that hold the log ─────┘
//! ```
//! The books of a shared log are the same at every instance; sockets and windows are known to a lane's owner alone. So whatever reads the board asks
//! first where a lane is ([`Place`]): one that another instance drives is not a lane that is away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Admin, View};
use crate::core::outbox::Owners;
use crate::core::types::{ConnectionName, InstanceId, LaneKey};

/// What this instance knows of the others. None of it decides anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// This instance.
    pub instance: InstanceId,
    /// What people call it.
    pub name: String,
    /// Whether each one is alive, as this instance has heard.
    pub heard: BTreeMap<InstanceId, bool>,
    /// Whether its own sign of life was written within the lease.
    pub is_kept: bool,
}

/// Where a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// This instance drives it.
    Here,
    /// Another one does.
    At(InstanceId),
    /// It has no owner.
    Nowhere,
}

/// The others, and who owns what, as of one moment.
#[derive(Debug, Clone)]
pub(super) struct Peered {
    pub(super) cluster: Cluster,
    pub(super) owners: Arc<Owners>,
}

impl Peered {
    pub(super) fn place(&self, lane: &LaneKey) -> Place {
        match self.owners.of(lane).instance {
            Some(instance) if instance == self.cluster.instance => Place::Here,
            Some(instance) => Place::At(instance),
            None => Place::Nowhere,
        }
    }

    /// Whether an instance is alive, as far as this one has heard.
    pub(super) fn is_live(&self, instance: InstanceId) -> bool {
        instance == self.cluster.instance || self.cluster.heard.get(&instance).copied().unwrap_or(true)
    }

    pub(super) fn leads(&self) -> bool {
        self.owners.leader() == Some(self.cluster.instance)
    }

    /// Lanes that an owner has to drive, and that have none.
    pub(super) fn without_owner(&self, views: &BTreeMap<ConnectionName, View>) -> usize {
        views.values().flat_map(|view| view.elsewhere.values()).filter(|place| **place == Place::Nowhere).count()
    }

    /// Leaves on each connection's board what this instance drives, and says where the others are.
    pub(super) fn place_lanes(&self, views: &mut BTreeMap<ConnectionName, View>) {
        for LaneKey { connection, lane } in self.lanes(views) {
            let place = self.place(&LaneKey { connection: connection.clone(), lane });
            let Some(view) = views.get_mut(&connection) else { continue };
            match place {
                // It has been taken just now.
                Place::Here if self.cluster.is_kept => _ = view.lanes.entry(lane).or_default(),
                // It has been ended, and another one takes it.
                Place::Here => {}
                place => _ = view.elsewhere.insert(lane, place),
            }
        }
        // Whatever else is on the board is on its way out.
        for (connection, view) in views {
            view.lanes.retain(|lane, _| self.place(&LaneKey { connection: connection.clone(), lane: *lane }) == Place::Here);
        }
    }

    /// The lanes that have something to deliver, or will have.
    pub(super) fn lanes(&self, views: &BTreeMap<ConnectionName, View>) -> BTreeSet<LaneKey> {
        let needed = views.iter().filter(|(_, view)| view.is_configured).flat_map(|(connection, view)| {
            let has_pending = |(lane, pending): (&u32, &u64)| (*pending > 0).then_some(*lane);
            let numbers = view.books.newest.clone().chain(view.books.lanes.iter().filter_map(has_pending));
            numbers.map(|lane| LaneKey { connection: connection.clone(), lane })
        });
        needed.collect()
    }
}

impl Admin {
    /// The others, where there may be any.
    pub(super) fn peered(&self) -> Option<Peered> {
        let cluster = self.cluster.borrow().clone()?;
        Some(Peered { cluster, owners: Arc::clone(&self.log.progress().borrow().owners) })
    }
}
