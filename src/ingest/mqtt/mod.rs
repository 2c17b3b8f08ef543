//! The MQTT listener: a drop-in for Zuul, and for whoever publishes over MQTT. Bytes in, acknowledgement out, after commit.
//!
//! ```text
//!   socket ─▶ codec ─▶ machine (core::listener) ─▶ all that was read together, as one append ─▶ LOG
//!     ▲                                                                                          │ Committed
//!     └────────── PUBACK, PUBREC, PUBCOMP, in the order in which the packets came ◀──────────────┘
//! ```
//!
//! Topic, QoS, retain flag, payload and properties pass through as they are, to the one configured connection. Only publishing is served.
//!
//! # What is bounded
//! | What | By | Then |
//! |---|---|---|
//! | connections | [`MAX_CONNECTIONS`] | a further one is closed at once |
//! | a packet | `http.max_report` and a topic | closed, MQTT 5: 0x95 |
//! | bytes read and not durable, of one | [`READ_AHEAD`] and one packet | not read until there is room |
//! | of all, and what is to come of packets that have begun | [`BUDGET`] | the same, for 240 s at most; [`budget::FREE`] of each are always read |
//! | answers that nobody reads | 64 KiB, 30 s | not read; closed |
//! | packet ids of QoS 2 that wait for PUBREL | [`MAX_RECEIVED`], in all [`MAX_RECEIVED_IN_ALL`] | closed, MQTT 5: 0x97 |
//! | sessions that outlive their connections | [`sessions::MAX_SESSIONS`], [`sessions::SESSION_EXPIRY_S`] | the idlest is ended |
//! | log lines about clients | [`LINES`](crate::server::lines::LINES) a minute | counted, and said later |
//!
//! | Module | Holds |
//! |---|---|
//! | [`connection`] | one connection, from its first byte to its last |
//! | [`codec`] | packets to and from bytes, and what rumqttc does not check |
//! | [`access`] | who may publish, and under whose name |
//! | [`registry`] | who is connected, takeovers |
//! | [`sessions`] | sessions that outlive their connections |
//! | [`store`] | packets to events; repetitions found out |
//! | [`wills`] | will messages |
//! | [`budget`] | how much may be read ahead |

pub mod access;
pub mod budget;
pub mod codec;
pub mod connection;
pub mod registry;
pub mod sessions;
pub mod store;
pub mod wills;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openssl::ssl::Ssl;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use access::Access;
use codec::write::Told;
use connection::{Clock, Conversation, Stream};
use registry::Registry;
use sessions::Sessions;
use store::{Publisher, Store};
use wills::Wills;

use crate::core::event::Source;
use crate::core::listener::{Close, Limits, Will, code};
use crate::core::topic::MAX_TOPIC;
use crate::core::types::ConnectionName;
use crate::ingest::routing::InForce;
use crate::log::codec::MAX_EVENT;
use crate::log::committer::{CommitError, LogHandle, now};
use crate::metrics::Metrics;
use crate::server::lines::Lines;
use crate::server::tls::{self, Acceptor, MakeAcceptor};

/// So many connections at once. One that does nothing takes about 10 KiB; the largest Zuul has some dozens.
pub const MAX_CONNECTIONS: usize = 2_048;

/// One connection may have read so many bytes that are not durable, and one packet more.
pub const READ_AHEAD: usize = 256 << 10;

/// All connections together, beyond what each has free.
pub const BUDGET: usize = 64 << 20;

/// So many packet ids of QoS 2 may wait for their PUBREL on one connection: all there are.
pub const MAX_RECEIVED: usize = 65_535;

/// And on all of them: about 10 MB of memory.
pub const MAX_RECEIVED_IN_ALL: usize = 262_144;

/// PUBLISH packets of QoS 1 and 2 in flight on one MQTT 5 connection: as many as are remembered when a connection breaks.
const RECEIVE_MAXIMUM: u16 = 1_024;

/// Topic aliases of an MQTT 5 connection.
const TOPIC_ALIAS_MAXIMUM: u16 = 64;

/// From the accepting of a connection to a whole CONNECT, the TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// At a stop, connections get so long to store and acknowledge what was read.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether a reload has changed what is taken.
const LIMITS_EVERY: Duration = Duration::from_secs(2);

/// What the listener is told.
pub struct Settings {
    /// Where what is published goes.
    pub connection: ConnectionName,
    /// Who may publish, as it is in force.
    pub access: watch::Receiver<Access>,
    /// TLS, if it is wanted.
    pub tls: Option<Box<MakeAcceptor>>,
}

/// What the listener works with.
pub struct Surroundings {
    /// The log.
    pub log: LogHandle,
    /// Which lane a topic takes, and how large a report may be.
    pub routing: InForce,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Turns true at a stop.
    pub stopping: watch::Receiver<bool>,
}

/// What all connections share.
pub struct Shared {
    limits: Limits,
    /// Follows `http.max_report` when the configuration is reloaded.
    largest_packet: AtomicUsize,
    /// Follows `listener.user` and its password, and Tidings' own client ids.
    access: watch::Receiver<Access>,
    store: Store,
    sessions: Sessions,
    registry: Arc<Registry>,
    wills: Wills,
    budget: Arc<Semaphore>,
    clock: Clock,
    stopping: watch::Receiver<bool>,
    lines: Mutex<Lines>,
    will_tasks: Mutex<JoinSet<()>>,
}

/// Binds the listener's socket. Done before anything else at a start: a client that connects now waits in the kernel's backlog until the store
/// is open, and Zuul gives up for good when its first connect fails.
///
/// # Errors
/// If the address is taken, or not this machine's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    /// As many as may be connected.
    const BACKLOG: u32 = 2_048;
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves publishers until it is told to stop; then what was read is stored and acknowledged.
///
/// # Errors
/// [`CommitError`] if the log can't say which sessions there are.
pub async fn serve(listener: TcpListener, settings: Settings, around: Surroundings) -> Result<(), CommitError> {
    let Settings { connection, access, tls } = settings;
    let mut stopping = around.stopping.clone();
    let shared = Arc::new(Shared::new(connection, access, around, BUDGET).await?);
    let sweeping = Arc::clone(&shared);
    let mut sweeper = JoinSet::new();
    sweeper.spawn(async move { sweeping.sessions.sweep().await });
    let following = Arc::clone(&shared);
    sweeper.spawn(async move { following.follow_limits().await });
    let following = Arc::clone(&shared);
    sweeper.spawn(async move { following.follow_logins().await });
    let acceptor = tls.map(Acceptor::new);
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            () = told_to_stop(&mut stopping) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => shared.take(stream, peer, acceptor.as_ref(), &mut conversations),
                // The client went away while it waited.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "an MQTT connection could not be accepted");
                    // Out of file descriptors, as a rule: trying at once would only burn the processor.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            // Ended ones are taken out, so that the set does not grow.
            Some(ended) = conversations.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    tracing::error!("an MQTT connection panicked, which is a fault in Tidings: please report it; nothing that was acknowledged is lost");
                }
                shared.show_connections(conversations.len());
            }
        }
    }
    drop(listener);
    let all_ended = async { while conversations.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIMEOUT, all_ended).await.is_err() {
        tracing::warn!(
            connections = conversations.len(),
            "MQTT connections did not end in time and were cut off; what was not acknowledged stays with the clients"
        );
        conversations.shutdown().await;
    }
    let mut wills = std::mem::take(&mut *shared.will_tasks.lock().unwrap_or_else(PoisonError::into_inner));
    let published = async { while wills.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_TIMEOUT, published).await;
    shared.show_connections(0);
    Ok(())
}

async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    // The sender going away is a stop, too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

impl Shared {
    async fn new(
        connection: ConnectionName,
        access: watch::Receiver<Access>,
        around: Surroundings,
        budget: usize,
    ) -> Result<Shared, CommitError> {
        let Surroundings { log, routing, metrics, stopping } = around;
        let registry = Arc::new(Registry::default());
        let sessions = Sessions::recover(log.clone(), Arc::clone(&registry), now).await?;
        let largest_packet = AtomicUsize::new(routing.current().await.max_report + MAX_TOPIC);
        Ok(Shared {
            limits: Limits {
                connect_timeout_ms: u64::try_from(CONNECT_TIMEOUT.as_millis()).unwrap_or(u64::MAX),
                receive_maximum: RECEIVE_MAXIMUM,
                topic_alias_maximum: TOPIC_ALIAS_MAXIMUM,
                session_expiry_s: sessions::SESSION_EXPIRY_S,
                read_ahead: READ_AHEAD,
                // What an event has besides: the names in a report, its user, its lane.
                largest: MAX_EVENT - (256 << 10),
            },
            largest_packet,
            access,
            store: Store { log, connection, routing, metrics, clock: now },
            sessions,
            registry,
            wills: Wills::default(),
            budget: Arc::new(Semaphore::new(budget)),
            clock: Clock::start(),
            stopping,
            lines: Mutex::default(),
            will_tasks: Mutex::default(),
        })
    }

    fn take(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, acceptor: Option<&Acceptor>, conversations: &mut JoinSet<()>) {
        if conversations.len() >= MAX_CONNECTIONS {
            let close = Close::new("too_many_connections", 0, format!("there are {MAX_CONNECTIONS} connections already"));
            return self.note_end(&close, peer, &Publisher::default());
        }
        let secure = match acceptor.map(Acceptor::ssl).transpose() {
            Ok(secure) => secure,
            Err(reason) => return tracing::error!(reason, "TLS can't be served; an MQTT connection was closed"),
        };
        keep_alive(&stream);
        let shared = Arc::clone(self);
        conversations.spawn(async move {
            let stopping = shared.stopping.clone();
            match secure {
                None => Conversation::new(Box::new(stream), peer, None, shared).run(stopping).await,
                Some(ssl) => match tokio::time::timeout(CONNECT_TIMEOUT, handshake(ssl, stream)).await {
                    Ok(Ok((stream, certified))) => Conversation::new(stream, peer, certified, shared).run(stopping).await,
                    Ok(Err(reason)) => shared.note_end(&Close::new("tls", 0, reason), peer, &Publisher::default()),
                    Err(_) => shared.note_end(&Close::new("tls", 0, "the TLS handshake took too long"), peer, &Publisher::default()),
                },
            }
        });
        self.show_connections(conversations.len());
    }

    /// Keeps up with a configuration that is reloaded. Goes on for ever.
    async fn follow_limits(&self) {
        let mut beat = tokio::time::interval(LIMITS_EVERY);
        loop {
            beat.tick().await;
            let most = self.store.routing.current().await.max_report + MAX_TOPIC;
            self.largest_packet.store(most, Ordering::Relaxed);
        }
    }

    /// Ends the connections of whoever would not be let in any more. Goes on until nobody changes anything any more.
    async fn follow_logins(&self) {
        let mut access = self.access.clone();
        let mut login = access.borrow_and_update().login.clone();
        while access.changed().await.is_ok() {
            let now = access.borrow_and_update().login.clone();
            if now != login {
                login = now;
                self.registry.evict_all();
            }
        }
    }

    /// A packet may be so large, in bytes, without its fixed header.
    fn largest_packet(&self) -> usize {
        self.largest_packet.load(Ordering::Relaxed)
    }

    fn show_connections(&self, count: usize) {
        self.store.metrics.tidings_listener_connections.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn told(&self) -> Told {
        Told {
            receive_maximum: RECEIVE_MAXIMUM,
            maximum_packet_size: u32::try_from(self.largest_packet() + 5).unwrap_or(u32::MAX),
            topic_alias_maximum: TOPIC_ALIAS_MAXIMUM,
        }
    }

    fn count_rejected(&self, code: &str) {
        self.store.metrics.tidings_ingest_rejected_total.with_label_values(&[Source::Mqtt.label(), code]).inc();
    }

    fn count_refusal(&self, reason_code: u8) {
        self.count_rejected(match reason_code {
            code::TOPIC => "invalid_topic",
            code::NOT_SERVED => "too_large",
            _ => "store_full",
        });
    }

    /// Something waits, unacknowledged, because the store is full.
    fn count_held(&self) {
        self.count_rejected("store_full");
    }

    /// Says why a connection ended: to the operator, if it is worth it.
    fn note_end(&self, close: &Close, peer: SocketAddr, publisher: &Publisher) {
        let (code, reason, user) = (close.code, close.message.as_str(), publisher.user.as_str());
        if !close.is_clients_fault() {
            tracing::debug!(%peer, user, code, reason, "an MQTT connection ended");
            return;
        }
        self.count_rejected(code);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match lines.take() {
            Some(0) => tracing::warn!(%peer, user, code, reason, "an MQTT connection was closed"),
            Some(unsaid) => tracing::warn!(%peer, user, code, reason, unsaid, "an MQTT connection was closed"),
            None => {}
        }
    }

    /// Publishes a will when it is due.
    fn send_will(self: &Arc<Self>, session: String, will: Will, expiry_s: u32, user: String) {
        let shared = Arc::clone(self);
        let mut tasks = self.will_tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let stopping = shared.stopping.clone();
            shared.wills.publish(&session, will, expiry_s, &user, &shared.store, stopping).await;
        });
    }
}

/// The TLS handshake; the name in the client's certificate, if it has shown one.
async fn handshake(ssl: Ssl, stream: TcpStream) -> Result<(Box<dyn Stream>, Option<String>), String> {
    let stream = tls::handshake(ssl, stream).await?;
    let certified = match stream.ssl().peer_certificate() {
        None => None,
        Some(certificate) => Some(name_in(&certificate).ok_or("its certificate has no common name to know it by")?),
    };
    Ok((Box::new(stream), certified))
}

fn name_in(certificate: &openssl::x509::X509) -> Option<String> {
    let entry = certificate.subject_name().entries_by_nid(openssl::nid::Nid::COMMONNAME).next()?;
    entry.data().to_string().ok().filter(|name| !name.is_empty())
}

/// Answers are small and wait for nobody; and a client whose machine is gone, without a keepalive of its own, is found out by the kernel.
fn keep_alive(stream: &TcpStream) {
    let idle = Duration::from_secs(60);
    let set = stream.set_nodelay(true).and_then(|()| {
        rustix::net::sockopt::set_socket_keepalive(stream, true)?;
        rustix::net::sockopt::set_tcp_keepidle(stream, idle)?;
        rustix::net::sockopt::set_tcp_keepintvl(stream, idle / 4)?;
        Ok(rustix::net::sockopt::set_tcp_keepcnt(stream, 4)?)
    });
    if let Err(error) = set {
        tracing::debug!(%error, "options of a connection could not be set");
    }
}
