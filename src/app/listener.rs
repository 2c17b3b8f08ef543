//! The MQTT listener's place in the service: bound before anything else, served once the store is open, first to be told to stop.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{StartError, lanes};
use crate::config::{Config, ListenerConfig};
use crate::ingest::mqtt::{self, Settings, Surroundings, access::Access};
use crate::ingest::routing::InForce;
use crate::log::committer::LogHandle;
use crate::metrics::Metrics;
use crate::server::tls::MakeAcceptor;

/// A socket that is bound: who connects now is answered later.
pub(super) struct Bound {
    socket: TcpListener,
    /// Where it listens.
    pub(super) address: SocketAddr,
    config: ListenerConfig,
}

/// Binds the listener's socket, or takes the one that systemd has bound, if the configuration has a listener.
pub(super) fn bind(config: &Config) -> Result<Option<Bound>, StartError> {
    let Some(config) = config.listener.clone() else { return Ok(None) };
    let failed = |error| StartError::ListenMqtt { address: config.listen, error };
    let socket = match inherited(config.listen).map_err(failed)? {
        Some(socket) => socket,
        None => mqtt::bind(config.listen).map_err(failed)?,
    };
    let address = socket.local_addr().map_err(failed)?;
    Ok(Some(Bound { socket, address, config }))
}

/// The socket at this address that was handed over at the start (`LISTEN_FDS`, see `sd_listen_fds(3)`), if there is one.
fn inherited(address: SocketAddr) -> std::io::Result<Option<TcpListener>> {
    let mut handed = listenfd::ListenFd::from_env();
    for place in 0..handed.len() {
        let Ok(Some(socket)) = handed.take_tcp_listener(place) else { continue };
        if socket.local_addr()? == address {
            socket.set_nonblocking(true)?;
            tracing::info!(listener = %address, "the socket of the MQTT listener was handed over by systemd");
            return TcpListener::from_std(socket).map(Some);
        }
    }
    Ok(None)
}

/// Who may publish, as this configuration has it. Tidings' own client ids are those of its connections.
pub(super) fn access(config: &Config, log: &LogHandle) -> Access {
    let own_client_ids = config.connections.iter().map(|connection| lanes::client_id(connection, log.store_id())).collect();
    Access { login: config.listener.as_ref().and_then(|listener| listener.login.clone()), own_client_ids }
}

/// Serves publishers until `stopping`.
pub(super) fn serve(
    bound: Bound,
    access: watch::Receiver<Access>,
    log: &LogHandle,
    routing: InForce,
    metrics: &Arc<Metrics>,
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let Bound { socket, address, config: listener } = bound;
    let tls = listener.tls.map(|tls| {
        let make = move || tls.acceptor().map_err(|(key, reason)| format!("listener.{key}: {reason}"));
        Box::new(make) as Box<MakeAcceptor>
    });
    let is_encrypted = tls.is_some();
    let settings = Settings { connection: listener.connection.clone(), access, tls };
    let around = Surroundings { log: log.clone(), routing, metrics: Arc::clone(metrics), stopping };
    tracing::info!(listener = %address, tls = is_encrypted, connection = %listener.connection, "MQTT publishers are served");
    tokio::spawn(async move {
        if let Err(error) = mqtt::serve(socket, settings, around).await {
            tracing::error!(%error, "the MQTT listener has stopped");
        }
    })
}
