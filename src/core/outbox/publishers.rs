//! What the log knows of MQTT publishers: sessions that outlive their connections, and what was published lately.
//!
//! # Sessions
//! `Received` with packet id 0, which MQTT has not (MQTT 5.0 §2.2.1), says that a session exists or is still in use; `ReleasedIn` with 0 ends it,
//! with all that is received in it. So an expired session is forgotten by an event, as everything else.
//!
//! # Recent publishes
//! A client whose session ends with its connection sends again, with DUP, what was not acknowledged when the connection broke; the standard
//! has nothing by which that could be recognised. What such a PUBLISH is compared with is this window: packet id and hash of topic and
//! payload of the last ones of each connection, by whose connection it was (its *scope*: user and address).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::core::event::{Accepted, Dedupe, Event, Source};
use crate::core::types::{Millis, Seq};

/// So many of a connection's last publishes are remembered: as many as an MQTT 5 client may have in flight.
pub const RECENT_PER_CONNECTION: usize = 1_024;

/// Of so many connections.
pub const RECENT_CONNECTIONS: usize = 1_024;

/// So many in all: about 5 MB of memory.
pub const RECENT_PUBLISHES: usize = 262_144;

/// For so long: a client that comes back later than this has been looked after by somebody.
pub const RECENT_MS: u64 = 24 * 60 * 60 * 1_000;

/// Publishers, by their session's key, and their recent publishes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Publishers {
    pub(super) sessions: BTreeMap<String, PublisherSession>,
    pub(super) recent: RecentPublishes,
    /// The last PUBLISH that was accepted, and its hash: a `Received` that follows at once is about it.
    newest: Option<(Seq, u64)>,
}

/// A publisher's session that outlives its connection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PublisherSession {
    /// QoS 2: packet ids whose PUBREL has not come, each with the hash of what was published; 0 where that is not known.
    pub received: BTreeMap<u16, u64>,
    /// When it was last heard of.
    pub at: Millis,
    /// It was said to exist; otherwise it is there as long as it has received something.
    is_kept: bool,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecentPublishes {
    connections: BTreeMap<u64, RecentConnection>,
    count: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecentConnection {
    scope: u64,
    at: Millis,
    /// Packet ids and hashes, oldest first.
    publishes: VecDeque<(u16, u64)>,
}

/// By what a PUBLISH is recognised when it comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishKey {
    /// A number of its own for each connection.
    pub connection: u64,
    /// A hash of user and address.
    pub scope: u64,
    /// Packet identifier.
    pub packet_id: u16,
    /// A hash of topic and payload.
    pub content: u64,
}

impl PublishKey {
    /// As it stands in the event.
    pub fn to_dedupe(self) -> Dedupe {
        let key = u128::from(self.connection) << 64 | u128::from(self.content);
        Dedupe { key, body: self.scope, line: u32::from(self.packet_id), lines: 1, batch: false }
    }

    fn of(accepted: &Accepted) -> Option<PublishKey> {
        let dedupe = accepted.dedupe.filter(|_| accepted.source == Source::Mqtt)?;
        let content = u64::try_from(dedupe.key & u128::from(u64::MAX)).ok()?;
        Some(PublishKey {
            connection: u64::try_from(dedupe.key >> 64).ok()?,
            scope: dedupe.body,
            packet_id: u16::try_from(dedupe.line).ok()?,
            content,
        })
    }
}

impl Publishers {
    pub(super) fn note(&mut self, seq: Seq, accepted: &Accepted) {
        let Some(key) = PublishKey::of(accepted) else { return };
        self.newest = Some((seq, key.content));
        self.recent.note(key, accepted.at);
    }

    pub(super) fn received(&mut self, seq: Seq, client: &str, packet_id: u16, at: Millis) {
        let content = self.newest.filter(|(newest, _)| newest.next() == seq).map_or(0, |(_, content)| content);
        let session = match self.sessions.get_mut(client) {
            Some(session) => session,
            None => self.sessions.entry(client.to_owned()).or_default(),
        };
        session.at = session.at.max(at);
        match packet_id {
            0 => session.is_kept = true,
            _ => _ = session.received.insert(packet_id, content),
        }
    }

    pub(super) fn released(&mut self, client: &str, packet_id: u16, at: Millis) {
        let Some(session) = self.sessions.get_mut(client) else { return };
        session.at = session.at.max(at);
        session.received.remove(&packet_id);
        if packet_id == 0 || (!session.is_kept && session.received.is_empty()) {
            self.sessions.remove(client);
        }
    }
}

impl Publishers {
    /// Becomes as `confirmed`, which these events have not been noted in.
    pub(super) fn take_back(&mut self, events: &[Event], confirmed: &Publishers) {
        let (mut clients, mut connections) = (BTreeSet::new(), BTreeSet::new());
        for event in events {
            match event {
                Event::Received { client, .. } | Event::ReleasedIn { client, .. } => _ = clients.insert(client),
                Event::Accepted(accepted) => connections.extend(PublishKey::of(accepted).map(|key| key.connection)),
                _ => {}
            }
        }
        for client in clients {
            put_back(&mut self.sessions, client, confirmed.sessions.get(client));
        }
        if !connections.is_empty() {
            self.recent.take_back(connections, &confirmed.recent);
        }
        self.newest = confirmed.newest;
    }
}

fn put_back<K: Ord + Clone, V: Clone>(known: &mut BTreeMap<K, V>, key: &K, was: Option<&V>) {
    match was {
        Some(was) => _ = known.insert(key.clone(), was.clone()),
        None => _ = known.remove(key),
    }
}

impl RecentPublishes {
    fn take_back(&mut self, mut connections: BTreeSet<u64>, confirmed: &RecentPublishes) {
        // Others may have made room for them.
        connections.extend(confirmed.connections.keys().filter(|known| !self.connections.contains_key(known)));
        for connection in connections {
            put_back(&mut self.connections, &connection, confirmed.connections.get(&connection));
        }
        self.count = confirmed.count;
    }

    fn note(&mut self, key: PublishKey, at: Millis) {
        if !self.connections.contains_key(&key.connection) {
            self.make_room(at);
        }
        let fresh = || RecentConnection { scope: key.scope, at, publishes: VecDeque::new() };
        let connection = self.connections.entry(key.connection).or_insert_with(fresh);
        connection.at = connection.at.max(at);
        connection.publishes.push_back((key.packet_id, key.content));
        self.count += 1;
        if connection.publishes.len() > RECENT_PER_CONNECTION {
            connection.publishes.pop_front();
            self.count -= 1;
        }
        while self.count > RECENT_PUBLISHES {
            self.forget_oldest();
        }
    }

    /// Before a new connection: what is too old goes, and one more if there are too many.
    fn make_room(&mut self, now: Millis) {
        let is_old = |connection: &RecentConnection| now.since(connection.at) > RECENT_MS;
        while self.connections.len() >= RECENT_CONNECTIONS || self.oldest().is_some_and(|(_, oldest)| is_old(oldest)) {
            self.forget_oldest();
        }
    }

    fn oldest(&self) -> Option<(&u64, &RecentConnection)> {
        self.connections.iter().min_by_key(|(_, connection)| connection.at)
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.oldest().map(|(tag, _)| *tag) else { return };
        if let Some(gone) = self.connections.remove(&oldest) {
            self.count -= gone.publishes.len();
        }
    }

    /// The connections of the same scope on which the same was published with the same packet id, and the id was not used for something else
    /// since: each stands for one PUBLISH that is in the log.
    pub fn find(&self, key: PublishKey, now: Millis) -> impl Iterator<Item = u64> + '_ {
        let of_scope = self.connections.iter().filter(move |(_, known)| known.scope == key.scope && now.since(known.at) <= RECENT_MS);
        of_scope.filter(move |(_, known)| known.last(key.packet_id) == Some(key.content)).map(|(connection, _)| *connection)
    }
}

impl RecentConnection {
    /// What was last published with this packet id.
    fn last(&self, packet_id: u16) -> Option<u64> {
        self.publishes.iter().rev().find(|(known, _)| *known == packet_id).map(|(_, content)| *content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(connection: u64, packet_id: u16, content: u64) -> PublishKey {
        PublishKey { connection, scope: 7, packet_id, content }
    }

    fn found(recent: &RecentPublishes, packet_id: u16, content: u64, now: u64) -> Vec<u64> {
        recent.find(key(0, packet_id, content), Millis(now)).collect()
    }

    #[test]
    fn a_publish_is_found_by_its_packet_id_and_content_until_the_id_is_used_again() {
        let mut recent = RecentPublishes::default();
        recent.note(key(1, 5, 50), Millis(0));
        assert_eq!(found(&recent, 5, 50, 1), [1]);
        assert_eq!((found(&recent, 6, 50, 1).len(), found(&recent, 5, 51, 1).len()), (0, 0));
        assert_eq!(recent.find(PublishKey { scope: 8, ..key(0, 5, 50) }, Millis(1)).count(), 0, "somebody else's");
        recent.note(key(1, 5, 60), Millis(2));
        assert_eq!(found(&recent, 5, 50, 3).len(), 0, "its acknowledgement had arrived");
        assert_eq!(found(&recent, 5, 60, 3 + RECENT_MS).len(), 0, "too long ago");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut recent = RecentPublishes::default();
        for connection in 0..2 * RECENT_CONNECTIONS as u64 {
            recent.note(key(connection, 1, 1), Millis(connection));
        }
        assert_eq!((recent.connections.len(), recent.count), (RECENT_CONNECTIONS, RECENT_CONNECTIONS));
        for connection in 0..2 * (RECENT_PUBLISHES / RECENT_PER_CONNECTION) as u64 {
            for number in 0..2 * RECENT_PER_CONNECTION {
                recent.note(key(connection, u16::try_from(number % 60_000).unwrap(), 1), Millis(1_000_000 + connection));
            }
        }
        let counted: usize = recent.connections.values().map(|connection| connection.publishes.len()).sum();
        assert_eq!(counted, recent.count);
        assert!(
            recent.count <= RECENT_PUBLISHES && recent.connections.values().all(|known| known.publishes.len() <= RECENT_PER_CONNECTION)
        );
    }

    #[test]
    fn a_key_survives_the_event() {
        let key = PublishKey { connection: u64::MAX - 1, scope: 9, packet_id: 65_535, content: u64::MAX };
        let lane = crate::core::types::LaneKey { connection: "mqtt".into(), lane: 0 };
        let mut accepted = Accepted::plain(lane, "t", crate::core::types::Qos::ExactlyOnce, Millis(0));
        (accepted.source, accepted.dedupe) = (Source::Mqtt, Some(key.to_dedupe()));
        assert_eq!(PublishKey::of(&accepted), Some(key));
        accepted.source = Source::Http;
        assert_eq!(PublishKey::of(&accepted), None, "an Idempotency-Key is something else");
    }
}
