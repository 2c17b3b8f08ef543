//! The broker in the demo: the `mqtt5` crate's, in memory, on a loopback port of its own.
//!
//! It was chosen by what it does to QoS 2 when connections are cut after PUBREC and after PUBREL: none of 36 runs lost or repeated a message, with the [`Gate`].
//! rumqttd 0.20 forgets at a disconnect what it has received at QoS 2, although it says that the session is present; rmqtt 0.24 passes on twice what is
//! published again.

use std::collections::HashSet;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mqtt5::broker::{
    AuthProvider, AuthResult, BrokerConfig, BrokerEventHandler, BrokerShutdownHandle, ClientDisconnectEvent, MqttBroker,
    StorageBackendType, StorageConfig,
};
use mqtt5::packet::connect::ConnectPacket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Messages that wait for one subscriber. More than ever wait in the demo, because what is beyond is dropped.
const QUEUE: usize = 100_000;

/// The same in bytes.
const QUEUE_BYTES: usize = 256 << 20;

/// A CONNECT waits so long for the earlier connection of its client to end. After that, it is a takeover of a connection that lives.
const PATIENCE: Duration = Duration::from_secs(1);

/// So long it may take to stop.
const STOP: Duration = Duration::from_secs(2);

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The broker could not start.
#[derive(Debug, thiserror::Error)]
#[error("the embedded broker did not start: {0}")]
pub struct BrokerError(String);

/// The running broker.
pub struct Broker {
    addr: SocketAddr,
    stop: BrokerShutdownHandle,
    task: JoinHandle<()>,
}

impl Broker {
    /// Starts it.
    ///
    /// # Errors
    /// If there is no port.
    pub async fn start() -> Result<Broker, BrokerError> {
        let gate = Arc::new(Gate::default());
        let storage = StorageConfig::default()
            .with_backend(StorageBackendType::Memory)
            .with_max_queued_messages_per_client(QUEUE)
            .with_max_queued_bytes_per_client(QUEUE_BYTES);
        let config = BrokerConfig::default()
            .with_bind_address(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .with_sys_topics_enabled(false)
            .with_client_channel_capacity(QUEUE)
            .with_event_handler(gate.clone())
            .with_storage(storage);
        let broker = MqttBroker::with_config(config).await.map_err(|error| BrokerError(error.to_string()))?;
        let mut broker = broker.with_auth_provider(gate);
        let addr = broker.local_addr().ok_or_else(|| BrokerError("it has no address".into()))?;
        let stop = broker.shutdown_handle();
        let task = tokio::spawn(async move {
            // Stopping early, it is missed by the subscriber, which says so.
            let _ = broker.run().await;
        });
        Ok(Broker { addr, stop, task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops it, within a bound.
    pub async fn stop(mut self) {
        self.stop.shutdown();
        if timeout(STOP, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// Lets a client connect only when its earlier connection has ended.
///
/// mqtt5 0.49 reads packets of a new connection while the old one of the same client is still being put away. A PUBREL that is read then finds no message, is
/// answered with 0x92, and the message is lost.
#[derive(Default)]
struct Gate {
    connected: Mutex<HashSet<String>>,
    gone: Notify,
}

impl Gate {
    fn connected(&self) -> MutexGuard<'_, HashSet<String>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enter(&self, client: &str) {
        let free = async {
            loop {
                let gone = self.gone.notified();
                tokio::pin!(gone);
                // Enabled before the look: an end in between is not missed.
                gone.as_mut().enable();
                if self.connected().insert(client.to_owned()) {
                    return;
                }
                gone.await;
            }
        };
        let _ = timeout(PATIENCE, free).await;
    }
}

impl AuthProvider for Gate {
    fn authenticate<'a>(&'a self, connect: &'a ConnectPacket, _: SocketAddr) -> Answer<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move {
            if !connect.client_id.is_empty() {
                self.enter(&connect.client_id).await;
            }
            Ok(AuthResult::success())
        })
    }

    fn authorize_publish<'a>(&'a self, _: &str, _: Option<&'a str>, _: &'a str) -> Answer<'a, bool> {
        Box::pin(async { true })
    }

    fn authorize_subscribe<'a>(&'a self, _: &str, _: Option<&'a str>, _: &'a str) -> Answer<'a, bool> {
        Box::pin(async { true })
    }
}

impl BrokerEventHandler for Gate {
    fn on_client_disconnect<'a>(&'a self, event: ClientDisconnectEvent) -> Answer<'a, ()> {
        self.connected().remove(&*event.client_id);
        self.gone.notify_waiters();
        Box::pin(async {})
    }
}
