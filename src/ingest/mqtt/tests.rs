//! Connections in memory, over a log in memory: what they share, made small.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

use super::*;
use crate::config::Secret;
use crate::core::event::{Event, LanePurpose};
use crate::core::route::Routes;
use crate::core::types::Millis;
use crate::ingest::lanes::{LaneDirectory, LaneSpan};
use crate::ingest::routing::Routing;
use crate::log::committer::{self, recover};
use crate::log::memory_log::{Disk, MemoryLog};

/// Nothing that works takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A log with one lane of the connection `mqtt`.
pub(super) async fn log(metrics: &Arc<Metrics>) -> LogHandle {
    let opened = MemoryLog::open(&Disk::new(64 << 20)).unwrap();
    let outbox = recover(&opened).unwrap();
    let limits = committer::Limits { max_size: u64::MAX, retention_ms: u64::MAX };
    let log = committer::start(opened.log, outbox, limits, Arc::clone(metrics)).unwrap();
    let (connection, at) = (ConnectionName::from("mqtt"), Millis(0));
    log.record(vec![Event::LanesChanged { connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at }]).await.unwrap();
    log
}

/// What connections share, where all together may read `budget` bytes ahead. The other end of `stopping` has to be kept.
async fn shared(budget: usize) -> (Arc<Shared>, watch::Sender<bool>) {
    shared_with(watch::channel(Access::default()).1, budget).await
}

async fn shared_with(access: watch::Receiver<Access>, budget: usize) -> (Arc<Shared>, watch::Sender<bool>) {
    let metrics = Arc::new(Metrics::new());
    let (stop, stopping) = watch::channel(false);
    let span = LaneSpan { first: 0, count: NonZeroU32::MIN };
    let lanes = LaneDirectory::from_iter([(ConnectionName::from("mqtt"), span)]);
    let routing = InForce::new(Routing { routes: Routes::default(), lanes, max_report: 1 << 20, max_batch: 1 << 20 });
    let around = Surroundings { log: log(&metrics).await, routing, metrics, stopping };
    let shared = Shared::new("mqtt".into(), access, around, budget).await.unwrap();
    (Arc::new(shared), stop)
}

/// A connection on which nothing has been said.
fn call(shared: &Arc<Shared>) -> DuplexStream {
    let (client, server) = tokio::io::duplex(1 << 20);
    let conversation = Conversation::new(Box::new(server), ([127, 0, 0, 1], 1).into(), None, Arc::clone(shared));
    tokio::spawn(conversation.run(shared.stopping.clone()));
    client
}

/// A publisher that is let in.
async fn connect(shared: &Arc<Shared>) -> DuplexStream {
    let mut client = call(shared);
    client.write_all(b"\x10\x0c\0\x04MQTT\x04\x02\0\0\0\0").await.unwrap();
    expect(&mut client, b"\x20\x02\0\0").await;
    client
}

async fn expect(client: &mut DuplexStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    let coming = tokio::time::timeout(PATIENCE, client.read_exact(&mut read)).await;
    coming.expect("it is answered").expect("the connection is open");
    assert_eq!(read, bytes);
}

/// A PUBLISH of QoS 1 with so many bytes of payload, and packet id 1.
fn publish(payload: usize) -> Vec<u8> {
    let mut remaining = payload + 5;
    let mut packet = vec![0x32];
    while remaining > 0 {
        let more = if remaining > 127 { 0x80 } else { 0 };
        packet.push(u8::try_from(remaining & 0x7f).unwrap() | more);
        remaining >>= 7;
    }
    packet.extend(b"\0\x01t\0\x01");
    packet.resize(packet.len() + payload, b'x');
    packet
}

#[tokio::test]
async fn packets_that_together_are_more_than_is_read_ahead_all_come_to_their_end() {
    let (shared, _stop) = shared(300 << 10).await;
    let packet = publish(200 << 10);
    let mut clients = [connect(&shared).await, connect(&shared).await, connect(&shared).await];
    // Side by side, so that each of them has begun before any is whole.
    for part in packet.chunks(20 << 10) {
        for client in &mut clients {
            client.write_all(part).await.unwrap();
            // As much of it is read as ever will be before more comes.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
    }
    for client in &mut clients {
        expect(client, b"\x40\x02\0\x01").await;
    }
}

#[tokio::test]
async fn what_a_packet_had_is_given_back_where_the_next_one_needs_more() {
    let (shared, _stop) = shared(300 << 10).await;
    let mut clients = [connect(&shared).await, connect(&shared).await, connect(&shared).await];
    let (first, next) = (publish(80 << 10), publish(250 << 10));
    for client in &mut clients {
        // Behind a whole packet the beginning of the next, which comes with it.
        client.write_all(&[&first[..], &next[..100]].concat()).await.unwrap();
    }
    for client in &mut clients {
        expect(client, b"\x40\x02\0\x01").await;
    }
    for client in &mut clients {
        client.write_all(&next[100..]).await.unwrap();
    }
    for client in &mut clients {
        expect(client, b"\x40\x02\0\x01").await;
    }
}

#[tokio::test]
async fn who_has_begun_a_packet_and_who_waits_for_room_hold_up_no_small_ones() {
    let (shared, _stop) = shared(300 << 10).await;
    let packet = publish(200 << 10);
    let (mut slow, mut waiting, mut small) = (connect(&shared).await, connect(&shared).await, connect(&shared).await);
    slow.write_all(&packet[..100 << 10]).await.unwrap();
    waiting.write_all(&packet).await.unwrap();
    small.write_all(&publish(1_000)).await.unwrap();
    expect(&mut small, b"\x40\x02\0\x01").await;
    slow.write_all(&packet[100 << 10..]).await.unwrap();
    expect(&mut slow, b"\x40\x02\0\x01").await;
    expect(&mut waiting, b"\x40\x02\0\x01").await;
}

/// Waits until the connection has ended, whatever is said on it before.
async fn expect_end(client: &mut DuplexStream) {
    let ending = tokio::time::timeout(PATIENCE, client.read_to_end(&mut Vec::new())).await;
    ending.expect("it ends").expect("in order");
}

#[tokio::test]
async fn who_is_turned_away_while_it_is_greeted_finds_its_session_when_it_is_let_in_again() {
    /// CONNECT of client `c` as user `u` with password `p`, for a session that lasts.
    const HELLO: &[u8] = b"\x10\x13\0\x04MQTT\x04\xc0\0\0\0\x01c\0\x01u\0\x01p";
    let password = |text: &str| Access { login: Some(("u".into(), Secret::new(text))), own_client_ids: Vec::new() };
    let (in_force, access) = watch::channel(password("p"));
    let (shared, _stop) = shared_with(access, 300 << 10).await;
    let mut client = call(&shared);
    client.write_all(HELLO).await.unwrap();
    expect(&mut client, b"\x20\x02\0\0").await;
    client.write_all(b"\xe0\0").await.unwrap();
    expect_end(&mut client).await;

    // While it waits for its client id, its password goes out of force.
    let claim = shared.registry.claim(&sessions::key("1:u", "c"), 0).await.unwrap();
    let mut client = call(&shared);
    client.write_all(HELLO).await.unwrap();
    tokio::time::timeout(PATIENCE, claim.evict.notified()).await.expect("it asks for its client id");
    in_force.send_replace(password("other"));
    drop(claim);
    expect_end(&mut client).await;

    in_force.send_replace(password("p"));
    let mut client = call(&shared);
    client.write_all(HELLO).await.unwrap();
    expect(&mut client, b"\x20\x02\x01\0").await;
}
