//! What this instance knows of the others that work over the same log.
//!
//! ```text
//!   leases (signs of life) ─▶ Cluster ─┐
//!   the log (who owns what) ───────────┼─▶ `cluster` of `/v1/status`, metrics, the dashboard
//!   the servers that hold the log ─────┘
//! ```

use std::collections::BTreeMap;

use crate::core::types::InstanceId;

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
