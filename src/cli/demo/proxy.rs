//! What stands between the service and the broker, and takes the broker away.
//!
//! A cut is not made at a random moment but at the worst ones. Each connection waits for a [`Moment`] of its own, in which one side believes something that the other
//! doesn't know. The packet of that moment is withheld, and from then on nothing passes. Then all connections are reset: whatever was in the sockets is gone, in
//! both directions. So a cut without a delivery in flight doesn't happen: it is not made ([`NothingInFlight`]).
//!
//! While the broker is away, the port stays reserved but nobody listens on it: connecting is refused, as with a broker that has stopped.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::wire::{self, Garbled, InFlight, Kind, Way};

/// Once the first connection has come to its moment, the others have so long for theirs.
const GRACE: Duration = Duration::from_millis(500);

/// A connection whose moment doesn't come for so long takes any.
const CHOOSY: Duration = Duration::from_millis(300);

/// What is read at once, in bytes.
const READ: usize = 64 << 10;

/// Connections that wait to be accepted.
const QUEUE: u32 = 64;

/// A moment at which a connection is cut, named by the packet that is withheld.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// QoS 2: the broker has the report and has said so; the service doesn't know.
    Pubrec,
    /// QoS 2: the service has seen that the broker has it, and has released it; the broker doesn't know.
    Pubrel,
    /// QoS 2: the broker has passed the report on; the service doesn't know.
    Pubcomp,
    /// QoS 1: the broker has passed the report on; the service doesn't know, and will repeat it.
    Puback,
}

impl Moment {
    const ALL: [Moment; 4] = [Moment::Pubrec, Moment::Pubrel, Moment::Pubcomp, Moment::Puback];

    /// The moment that has come when this packet passes.
    fn of(way: Way, kind: Kind) -> Option<Moment> {
        match (way, kind) {
            (Way::Down, Kind::Pubrec(_)) => Some(Moment::Pubrec),
            (Way::Up, Kind::Pubrel(_)) => Some(Moment::Pubrel),
            (Way::Down, Kind::Pubcomp(_)) => Some(Moment::Pubcomp),
            (Way::Down, Kind::Puback(_)) => Some(Moment::Puback),
            _ => None,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Moment::Pubrec => "a PUBREC",
            Moment::Pubrel => "a PUBREL",
            Moment::Pubcomp => "a PUBCOMP",
            Moment::Puback => "a PUBACK",
        })
    }
}

/// What a cut hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Deliveries at QoS 1 and 2 that were in flight.
    pub in_flight: usize,
    /// The packets that were withheld.
    pub lost: Vec<Moment>,
}

/// No cut was made, because there was no delivery in flight to hit.
#[derive(Debug, thiserror::Error)]
#[error("the broker was not taken away: within {0:?} no delivery at QoS 1 or 2 was in flight")]
pub struct NothingInFlight(pub Duration);

/// Why a cut failed.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// There was nothing to hit.
    #[error(transparent)]
    NothingInFlight(#[from] NothingInFlight),
    /// The port could not be kept.
    #[error("the proxy lost its port: {0}")]
    Port(#[from] io::Error),
}

/// The proxy. Dropped, it closes everything.
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    door: Door,
}

/// The port.
enum Door {
    Open(JoinHandle<()>),
    /// Bound, and not listened on.
    Closed(TcpSocket),
    /// Between the two.
    Moving,
}

struct Shared {
    broker: SocketAddr,
    state: Mutex<State>,
    /// Counts cuts. When it changes, every connection is reset.
    cuts: watch::Sender<u64>,
    /// How many connections have come to their moment.
    silent: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    next: u64,
    connections: BTreeMap<u64, Connection>,
    /// Set while a cut is prepared.
    armed: Option<Armed>,
}

#[derive(Clone, Copy)]
struct Armed {
    since: Instant,
}

#[derive(Default)]
struct Connection {
    in_flight: InFlight,
    silenced_by: Option<Moment>,
}

impl Proxy {
    /// Listens on a port of its own, and passes everything on to the broker.
    ///
    /// # Errors
    /// If there is no port.
    pub async fn start(broker: SocketAddr) -> io::Result<Proxy> {
        let socket = reserve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let addr = socket.local_addr()?;
        let shared = Shared { broker, state: Mutex::default(), cuts: watch::Sender::new(0), silent: watch::Sender::new(0) };
        let mut proxy = Proxy { addr, shared: Arc::new(shared), door: Door::Closed(socket) };
        proxy.bring_back()?;
        Ok(proxy)
    }

    /// Where to connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Resets every connection at its worst moment, and refuses new ones until [`Proxy::bring_back`]. Waits at most `patience` for a first moment to come.
    ///
    /// # Errors
    /// If no delivery was in flight, or the port was lost; nothing was cut in the first case.
    pub async fn take_away(&mut self, patience: Duration) -> Result<Cut, CutError> {
        let mut silent = self.shared.silent.subscribe();
        self.shared.state().armed = Some(Armed { since: Instant::now() });
        if timeout(patience, silent.wait_for(|count| *count > 0)).await.is_err() {
            let mut state = self.shared.state();
            if state.connections.values().all(|connection| connection.silenced_by.is_none()) {
                state.armed = None;
                return Err(NothingInFlight(patience).into());
            }
        }
        let shared = Arc::clone(&self.shared);
        let all = silent.wait_for(|count| *count >= shared.state().connections.len());
        // Those whose moment has not come are cut wherever they are.
        let _ = timeout(GRACE, all).await;
        // Nobody may come in between the cut and the closing of the door.
        if let Door::Open(accepting) = std::mem::replace(&mut self.door, Door::Moving) {
            accepting.abort();
            let _ = accepting.await;
        }
        self.door = Door::Closed(reserve(self.addr)?);
        Ok(self.shared.cut())
    }

    /// Lets connections through again.
    ///
    /// # Errors
    /// If the port can't be listened on.
    pub fn bring_back(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.door, Door::Moving) {
            Door::Closed(socket) => {
                let accepting = accept(socket.listen(QUEUE)?, Arc::clone(&self.shared));
                self.door = Door::Open(tokio::spawn(accepting));
            }
            open => self.door = open,
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Door::Open(accepting) = &self.door {
            accepting.abort();
        }
        self.shared.cut();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) -> Cut {
        let mut state = self.state();
        state.armed = None;
        let connections = std::mem::take(&mut state.connections);
        drop(state);
        self.silent.send_replace(0);
        self.cuts.send_modify(|cuts| *cuts += 1);
        let mut lost: Vec<Moment> = connections.values().filter_map(|connection| connection.silenced_by).collect();
        lost.sort_unstable();
        Cut { in_flight: connections.values().map(|connection| connection.in_flight.len()).sum(), lost }
    }

    /// Whether a packet is passed on.
    fn passes(&self, id: u64, way: Way, packet: &Bytes) -> bool {
        let kind = wire::kind_of(packet);
        let mut state = self.state();
        let armed = state.armed;
        // A connection that was cut is not in the list any more.
        let Some(connection) = state.connections.get_mut(&id) else { return false };
        if connection.silenced_by.is_some() {
            return false;
        }
        let moment = Moment::of(way, kind).filter(|moment| armed.is_some_and(|armed| armed.wants(id, *moment)));
        if moment.is_some() {
            connection.silenced_by = moment;
            drop(state);
            self.silent.send_modify(|count| *count += 1);
            return false;
        }
        connection.in_flight.pass(way, kind);
        true
    }
}

impl Armed {
    /// Whether this moment is the one for this connection.
    fn wants(self, id: u64, moment: Moment) -> bool {
        let own = Moment::ALL[usize::try_from(id % Moment::ALL.len() as u64).expect("below the number of moments")];
        moment == own || self.since.elapsed() > CHOOSY
    }
}

/// A port, not yet listened on. Address reuse lets it be taken again while connections of before linger.
fn reserve(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of file descriptors, or reset before it was accepted: both pass.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let mut state = shared.state();
        let id = state.next;
        state.next += 1;
        state.connections.insert(id, Connection::default());
        // Subscribed under the lock: a cut either sees the connection, or is seen by it.
        let cut = shared.cuts.subscribe();
        drop(state);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            carry(&shared, id, client, cut).await;
            shared.state().connections.remove(&id);
        });
    }
}

/// Carries one connection until one side ends it, or it is cut.
async fn carry(shared: &Shared, id: u64, mut client: TcpStream, mut cut: watch::Receiver<u64>) {
    let Ok(mut broker) = TcpStream::connect(shared.broker).await else { return };
    // Failing, it only costs time.
    let _ = (client.set_nodelay(true), broker.set_nodelay(true));
    let was_cut = {
        let (from_client, to_client) = client.split();
        let (from_broker, to_broker) = broker.split();
        let up = pin!(pump(shared, id, Way::Up, from_client, to_broker));
        let down = pin!(pump(shared, id, Way::Down, from_broker, to_client));
        tokio::select! {
            biased;
            _ = cut.changed() => true,
            _ = up => false,
            _ = down => false,
        }
    };
    if was_cut {
        // A reset, not an end: what the other side has not read yet is gone.
        let _ = (client.set_zero_linger(), broker.set_zero_linger());
    }
}

/// Carries packets one way. Ends with the connection; what it reads after the connection has gone silent is dropped.
async fn pump(shared: &Shared, id: u64, way: Way, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> Result<(), Ended> {
    let mut buffer = BytesMut::with_capacity(READ);
    loop {
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut passing = BytesMut::new();
        while let Some(packet) = wire::take_packet(&mut buffer)? {
            if shared.passes(id, way, &packet) {
                passing.extend_from_slice(&packet);
            }
        }
        to.write_all(&passing).await?;
    }
}

/// Why a pump has ended before its stream.
enum Ended {
    Broken,
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Ended::Broken
    }
}

impl From<Garbled> for Ended {
    fn from(_: Garbled) -> Self {
        Ended::Broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);
    const PUBLISH: &[u8] = &[0x34, 5, 0, 1, b'a', 0, 7];
    const PUBREC: &[u8] = &[0x50, 2, 0, 7];

    /// A service's end and a broker's end, connected through the proxy.
    async fn connected() -> (Proxy, TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        let client = TcpStream::connect(proxy.addr()).await.unwrap();
        let (broker, _) = listener.accept().await.unwrap();
        (proxy, listener, client, broker)
    }

    async fn carries(from: &mut TcpStream, to: &mut TcpStream, packet: &[u8]) {
        from.write_all(packet).await.unwrap();
        let mut seen = vec![0; packet.len()];
        timeout(LIMIT, to.read_exact(&mut seen)).await.unwrap().unwrap();
        assert_eq!(seen, packet);
    }

    #[tokio::test]
    async fn nothing_is_cut_while_nothing_is_in_flight() {
        let (mut proxy, _listener, mut client, mut broker) = connected().await;
        carries(&mut client, &mut broker, &[0x30, 3, 0, 1, b'a']).await;
        let error = proxy.take_away(Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, CutError::NothingInFlight(_)), "{error}");
        carries(&mut client, &mut broker, PUBLISH).await;
        carries(&mut broker, &mut client, PUBREC).await;
    }

    #[tokio::test]
    async fn a_cut_withholds_the_packet_of_the_moment_and_resets_both_sides() {
        let (mut proxy, _listener, mut client, mut broker) = connected().await;
        carries(&mut client, &mut broker, PUBLISH).await;
        // The cut is prepared before the answer is sent: joined futures are polled in turn.
        let answer = async { broker.write_all(PUBREC).await.unwrap() };
        let (cut, ()) = tokio::join!(proxy.take_away(LIMIT), answer);
        assert_eq!(cut.unwrap(), Cut { in_flight: 1, lost: vec![Moment::Pubrec] });
        for side in [&mut client, &mut broker] {
            let error = timeout(LIMIT, side.read_u8()).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn connecting_is_refused_until_the_broker_is_back() {
        let (mut proxy, listener, mut client, mut broker) = connected().await;
        carries(&mut client, &mut broker, PUBLISH).await;
        let (cut, ()) = tokio::join!(proxy.take_away(LIMIT), async { broker.write_all(PUBREC).await.unwrap() });
        cut.unwrap();
        for _ in 0..3 {
            let error = TcpStream::connect(proxy.addr()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
        proxy.bring_back().unwrap();
        let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
        let (mut broker, _) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        carries(&mut client, &mut broker, PUBLISH).await;
        carries(&mut broker, &mut client, PUBREC).await;
    }
}
