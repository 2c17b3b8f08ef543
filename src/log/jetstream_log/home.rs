//! Where the stream is at home: whether it is still with the servers that it was made on, or was restored on others, as a copy whose original may still be at work.
//!
//! | Recorded | Found | then |
//! |---|---|---|
//! | nothing | a cluster | recorded |
//! | a cluster | the same name, and at least one of its servers | recorded anew, if servers have come or gone |
//! | a cluster | another name, or none of its servers, or a server that is alone | a copy: the broker's sessions are left to the original |
//! | anything | a server that is alone, where it was made on one | nothing can be said: such a server makes up a name at each start |
//!
//! Instances that start on a copy at the same time bump the epochs once: whoever finds that it is one says in `copy` which message was the last one then, unless that
//! stands there, and only then appends the bump, and only then records the new home. So a bump behind that message is one that somebody was faster with, or could not
//! say the end of; one that comes while another is on its way is refused by whose turn was later (`log::committer::shared`).
//!
//! What this can't see: disks of servers that were copied as they are, names included; and a single server's. A mirror, and a stream that was restored under another name, are
//! refused, because their subjects are not theirs.

use std::collections::BTreeSet;

use async_nats::jetstream::stream::ClusterInfo;
use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Read};

/// The key that says it.
const HOME: &str = "home";

/// The key that says since when a copy is known to be one.
const COPY: &str = "copy";

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Home {
    /// The cluster's name; none of a server that is alone.
    cluster: Option<String>,
    /// The servers that hold the stream, by name.
    servers: BTreeSet<String>,
}

/// What the key `copy` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Copied {
    /// The revision of `home` that it is a copy by. With another one it is about an earlier copy.
    by: u64,
    /// Where it was found.
    at: Home,
    /// The last message then.
    last: u64,
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

    /// Looks whether the store is a copy, `last` being a message that is stored. If it is one, says behind which message the epochs are bumped, or are to be; if
    /// not, where it is now is recorded.
    pub(super) async fn copied_at(&self, bucket: &Bucket, last: u64) -> Result<Option<u64>, String> {
        match bucket.read::<Home>(HOME).await? {
            Some(Read { value, .. }) if value == *self => Ok(None),
            Some(Read { value, revision }) if self.is_elsewhere(&value) => self.found_at(bucket, revision, last).await.map(Some),
            _ if self.cluster.is_none() => Ok(None),
            _ => self.adopt(bucket).await.map(|()| None),
        }
    }

    /// The last message of a copy, by revision `by` of `home`, as whoever found it first has it.
    async fn found_at(&self, bucket: &Bucket, by: u64, last: u64) -> Result<u64, String> {
        let copied = Copied { by, at: self.clone(), last };
        loop {
            let written = match bucket.read::<Copied>(COPY).await? {
                Some(Read { value, .. }) if value.by == by && !self.is_elsewhere(&value.at) => return Ok(value.last),
                Some(Read { revision, .. }) => bucket.replace(COPY, &copied, revision).await?,
                None => bucket.create(COPY, &copied).await?,
            };
            if written.is_some() {
                return Ok(last);
            }
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
