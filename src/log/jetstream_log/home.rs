//! Where the stream is at home: whether it is still with the servers that it was made on, or was restored on others, as a copy whose original may still be at work.
//!
//! | Recorded | Found | then |
//! |---|---|---|
//! | nothing | a cluster | recorded |
//! | a cluster | the same name, and at least one of its servers | recorded anew, if servers have come or gone |
//! | a cluster | another name, or none of its servers, or a server that is alone | a copy: the broker's sessions are left to the original |
//! | anything | a server that is alone, where it was made on one | nothing can be said: such a server makes up a name at each start |
//!
//! What this can't see: disks of servers that were copied as they are, names included; and a single server's. A mirror, and a stream that was restored under another name, are
//! refused, because their subjects are not theirs.

use std::collections::BTreeSet;

use async_nats::jetstream::stream::ClusterInfo;
use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Read};

/// The key that says it.
const HOME: &str = "home";

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Home {
    /// The cluster's name; none of a server that is alone.
    cluster: Option<String>,
    /// The servers that hold the stream, by name.
    servers: BTreeSet<String>,
}

impl Home {
    /// As the stream says.
    pub(super) fn of(info: Option<&ClusterInfo>) -> Home {
        let Some(info) = info.filter(|info| info.name.is_some()) else { return Home { cluster: None, servers: BTreeSet::new() } };
        let servers = info.replicas.iter().map(|peer| peer.name.clone()).chain(info.leader.clone()).collect();
        Home { cluster: info.name.clone(), servers }
    }

    /// Whether what was at `before` is elsewhere now.
    fn is_elsewhere(&self, before: &Home) -> bool {
        before.cluster.is_some() && (self.cluster != before.cluster || self.servers.is_disjoint(&before.servers))
    }

    /// Looks whether the store is a copy. If not, where it is now is recorded.
    pub(super) async fn is_copy(&self, bucket: &Bucket) -> Result<bool, String> {
        match bucket.read::<Home>(HOME).await? {
            Some(Read { value, .. }) if value == *self => Ok(false),
            Some(Read { value, .. }) if self.is_elsewhere(&value) => Ok(true),
            _ if self.cluster.is_none() => Ok(false),
            _ => self.adopt(bucket).await.map(|()| false),
        }
    }

    /// It is at home here.
    pub(super) async fn adopt(&self, bucket: &Bucket) -> Result<(), String> {
        bucket.put(HOME, self).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(cluster: &str, servers: &[&str]) -> Home {
        Home {
            cluster: Some(cluster.to_owned()).filter(|name| !name.is_empty()),
            servers: servers.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn servers_come_and_go_and_a_copy_is_with_others() {
        let made = home("ci", &["a", "b", "c"]);
        assert!(!home("ci", &["a", "b", "c"]).is_elsewhere(&made));
        assert!(!home("ci", &["c", "d", "e"]).is_elsewhere(&made));
        assert!(home("ci", &["d", "e", "f"]).is_elsewhere(&made));
        assert!(home("test", &["a", "b", "c"]).is_elsewhere(&made));
        assert!(home("", &[]).is_elsewhere(&made));
        assert!(!made.is_elsewhere(&home("", &[])), "a server that was alone has become a cluster");
    }
}
