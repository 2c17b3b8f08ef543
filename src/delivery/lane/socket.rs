//! The socket of a lane: bytes out and in. Reading and writing go on side by side, so that a broker which stops reading while it writes
//! can't hang both. What arrives is left alone where the session says that it can wait.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Event, Lane, LaneError};
use crate::core::content::Content;
use crate::core::session::{Input, Outgoing};
use crate::core::types::{Millis, Protocol, SendNo};
use crate::delivery::codec::{self, Connect, Manner};
use crate::delivery::feed::{Loaded, Payload};
use crate::delivery::transport::{ConnectError, Stream, instead, lost};
use crate::log::committer::Committed;

/// A broker that takes nothing for so long has stopped: half a keepalive of a minute.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What takes so long to leave is late.
const LATE: Duration = Duration::from_secs(1);

/// So many bytes are read at once: a broker's answers to some thousand packets.
const ARRIVING: usize = 8 << 10;

/// A connection on its way.
pub(super) type Connecting = Pin<Box<dyn Future<Output = Result<Stream, ConnectError>> + Send>>;

/// Where the connection stands.
pub(super) enum Connection {
    None,
    Opening(Connecting),
    Open(Box<Socket>),
}

/// A connection that is open.
pub(super) struct Socket {
    stream: Stream,
    pub(super) arrived: BytesMut,
    pub(super) outgoing: BytesMut,
    /// Since when the broker has taken nothing of what is to be written.
    pub(super) stuck_since: Option<tokio::time::Instant>,
    /// Since when something is to be written.
    writing_since: Option<tokio::time::Instant>,
    /// When it was last so for long, until its end.
    late: Option<(tokio::time::Instant, tokio::time::Instant)>,
    /// So many bytes were ever to be written, so many has the transport taken, and so many has it passed on: a frame of WebSocket waits
    /// until it is flushed.
    queued: u64,
    taken: u64,
    written: u64,
    /// How it has ended, behind what has arrived.
    ended: Option<String>,
    /// Whether a packet has arrived on it.
    is_heard: bool,
    /// It is in the clear, and the broker may have expected otherwise.
    may_expect_tls: bool,
    /// QoS 0: where each PUBLISH that has not left yet ends. What the broker may have is never sent again.
    qos_0: VecDeque<(SendNo, u64)>,
}

impl Socket {
    pub(super) fn new(stream: Stream) -> Self {
        let may_expect_tls = stream.may_expect_tls();
        Socket {
            stream,
            arrived: BytesMut::with_capacity(2 * ARRIVING),
            outgoing: BytesMut::with_capacity(64 << 10),
            stuck_since: None,
            writing_since: None,
            late: None,
            queued: 0,
            taken: 0,
            written: 0,
            ended: None,
            is_heard: false,
            may_expect_tls,
            qos_0: VecDeque::new(),
        }
    }
}

impl Socket {
    /// What else it may be that answers there.
    fn hint(&self) -> &'static str {
        if self.is_heard { "" } else { instead(&self.arrived, self.may_expect_tls) }
    }
}

impl Lane<'_> {
    pub(super) fn write(&mut self, packet: Outgoing) -> Result<(), LaneError> {
        let Connection::Open(socket) = &mut self.connection else { return Ok(()) };
        let out = &mut socket.outgoing;
        let before = out.len();
        let mut qos_0 = None;
        match packet {
            Outgoing::Connect { protocol, client_id, clean, session_expiry_s, keepalive_s } => {
                self.protocol = protocol;
                let credentials = &self.config.credentials;
                codec::write_connect(protocol, &Connect { client_id: &client_id, clean, session_expiry_s, keepalive_s, credentials }, out);
            }
            Outgoing::Publish { send, packet_id, dup, qos, retain } => {
                let payload = self.payloads.get(&send).ok_or_else(|| LaneError::Internal(format!("send {send} has no payload")))?;
                let (now, is_stamped) = (self.clock.now(), self.config.stamp);
                write_publish(self.protocol, payload, out, |loaded, content| {
                    let stamp = is_stamped.then(|| loaded.stamped(content));
                    Manner { packet_id, dup, qos, retain, expiry_s: content.expiry_left_s(now), stamp }
                })?;
                qos_0 = packet_id.is_none().then_some(send);
            }
            Outgoing::PubRel { send, packet_id } => {
                let permit = self.permits.get(&send).ok_or_else(|| LaneError::Internal(format!("send {send} is not released")))?;
                write_pubrel(self.protocol, permit, packet_id, out);
            }
            Outgoing::PingReq => codec::write_pingreq(out),
            Outgoing::Disconnect { end_session } => codec::write_disconnect(self.protocol, end_session, out),
        }
        socket.queued += (socket.outgoing.len() - before) as u64;
        socket.qos_0.extend(qos_0.map(|send| (send, socket.queued)));
        let since = *socket.stuck_since.get_or_insert_with(tokio::time::Instant::now);
        socket.writing_since.get_or_insert(since);
        Ok(())
    }

    pub(super) async fn take_packets(&mut self) -> Result<(), LaneError> {
        let Connection::Open(socket) = &mut self.connection else { return Ok(()) };
        let mut packets = Vec::new();
        let broken = loop {
            // What can't be read is gone afterwards.
            let hint = socket.hint();
            match codec::read(self.protocol, &mut socket.arrived) {
                Ok(Some(packet)) => {
                    socket.is_heard = true;
                    packets.push(packet);
                }
                Ok(None) => break None,
                Err(error) => break Some(format!("{error}{hint}")),
            }
        };
        if !packets.is_empty() {
            self.give(Input::Received(packets)).await?;
        }
        // What was before it may have ended the connection already.
        match broken {
            Some(reason) if matches!(self.connection, Connection::Open(_)) => self.closed(reason).await,
            _ => Ok(()),
        }
    }

    /// The connection is gone. A frame may have left in part: the QoS 0 in it may be with the broker, and is never sent again.
    pub(super) async fn closed(&mut self, reason: String) -> Result<(), LaneError> {
        if let Connection::Open(socket) = &mut self.connection {
            socket.written = socket.taken;
            self.flushed().await?;
        }
        self.connection = Connection::None;
        self.give(Input::Closed { reason }).await
    }

    pub(super) async fn flushed(&mut self) -> Result<(), LaneError> {
        let Connection::Open(socket) = &mut self.connection else { return Ok(()) };
        let mut sends = Vec::new();
        while let Some((send, end)) = socket.qos_0.front().copied()
            && end <= socket.written
        {
            socket.qos_0.pop_front();
            sends.push(send);
        }
        match sends.is_empty() {
            true => Ok(()),
            false => self.give(Input::Flushed(sends)).await,
        }
    }

    /// Behind much that is to be written over a slow link, a packet leaves long after it was sent.
    pub(super) async fn say_what_left_late(&mut self) -> Result<(), LaneError> {
        let Connection::Open(socket) = &mut self.connection else { return Ok(()) };
        let Some((since, left)) = socket.left_late() else { return Ok(()) };
        let now = self.clock.now();
        let at =
            |instant: tokio::time::Instant| Millis(now.0.saturating_sub(u64::try_from(instant.elapsed().as_millis()).unwrap_or(u64::MAX)));
        // The session sends a moment before it is written.
        let since = Millis(at(since).0.saturating_sub(LATE.as_millis() as u64));
        self.give(Input::LeftLate { since, left: at(left) }).await
    }

    /// Writes what is left, for a moment at most, and closes: DISCONNECT should arrive, but nothing depends on it.
    pub(super) async fn finish_writing(&mut self) {
        if let Connection::Open(socket) = std::mem::replace(&mut self.connection, Connection::None)
            && !socket.finish().await
        {
            tracing::debug!(lane = %self.key, "the connection was closed before everything was written");
        }
    }
}

impl Socket {
    /// See [`Lane::finish_writing`]. True if all has left.
    async fn finish(mut self: Box<Self>) -> bool {
        const PATIENCE: Duration = Duration::from_secs(1);
        // The session has taken back what has not left at QoS 0, and sends it again: on two connections it would arrive twice.
        if !self.qos_0.is_empty() {
            return false;
        }
        let last = async {
            self.stream.write_all_buf(&mut self.outgoing).await?;
            self.stream.shutdown().await
        };
        matches!(tokio::time::timeout(PATIENCE, last).await, Ok(Ok(())))
    }
}

/// What happens on the network: a connection made, bytes come or gone, or an end. Of what comes, only if it is to be heard.
pub(super) async fn network(connection: &mut Connection, hears: bool) -> Event {
    match connection {
        Connection::None => std::future::pending().await,
        Connection::Opening(opening) => match opening.await {
            Ok(stream) => Event::Opened(stream),
            Err(error) => Event::Closed(format!("the broker can't be reached: {error}")),
        },
        Connection::Open(socket) => socket.carry(hears).await,
    }
}

impl Socket {
    /// Writes and reads, until something has happened that somebody waits for. May be dropped at any point.
    async fn carry(&mut self, hears: bool) -> Event {
        if let Some(reason) = self.ended.take_if(|_| hears) {
            return Event::Closed(reason);
        }
        if !hears {
            self.stream.leave();
        }
        loop {
            let stuck = self.stuck_since.unwrap_or_else(tokio::time::Instant::now) + WRITE_TIMEOUT;
            let is_writing = !self.outgoing.is_empty() || self.taken != self.written;
            tokio::select! {
                biased;
                carried = std::future::poll_fn(|context| self.poll(context, is_writing, hears)) => match carried {
                    Carried::Written(Ok(())) => {
                        self.has_written();
                        // At QoS 0 that is all that there will be; otherwise the broker's answer is waited for.
                        if !self.qos_0.is_empty() {
                            return Event::Written;
                        }
                    }
                    Carried::Written(Err(error)) => return self.last_words(&error).await,
                    Carried::Read => return Event::Arrived,
                    Carried::Ended(reason) => return Event::Closed(reason),
                },
                () = tokio::time::sleep_until(stuck), if is_writing => {
                    return Event::Closed(format!("the broker took nothing for {} s", WRITE_TIMEOUT.as_secs()));
                }
            }
        }
    }

    /// The transport has passed on what it had taken.
    fn has_written(&mut self) {
        let now = tokio::time::Instant::now();
        self.written = self.taken;
        self.stuck_since = Some(now).filter(|_| !self.outgoing.is_empty());
        if let Some(since) = self.writing_since.take_if(|_| self.outgoing.is_empty())
            && now - since >= LATE
        {
            self.late = Some((self.late.map_or(since, |(earlier, _)| earlier), now));
        }
    }

    /// Since when what was to be written has left late, and when the last of it left. Said once, unless it goes on.
    fn left_late(&mut self) -> Option<(tokio::time::Instant, tokio::time::Instant)> {
        let now = tokio::time::Instant::now();
        let leaving = self.writing_since.filter(|since| now - *since >= LATE).map(|since| (since, now));
        match (self.late.take(), leaving) {
            (Some((since, _)), Some((_, left))) => Some((since, left)),
            (left, leaving) => left.or(leaving),
        }
    }

    /// Both ways are looked at each time, so neither waits for the other.
    fn poll(&mut self, context: &mut Context<'_>, is_writing: bool, hears: bool) -> Poll<Carried> {
        if is_writing && let Poll::Ready(wrote) = self.pass_on(context) {
            return Poll::Ready(Carried::Written(wrote));
        }
        if hears { self.read(context) } else { Poll::Pending }
    }

    /// Hands a piece to the transport, and sees to it that it leaves. What was taken is counted, whatever follows.
    fn pass_on(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if !self.outgoing.is_empty() {
            self.taken += ready!(pin!(self.stream.write_buf(&mut self.outgoing)).poll(context))? as u64;
        }
        pin!(self.stream.flush()).poll(context)
    }

    /// Reads what has arrived: where that comes in pieces, a frame or a record for each packet, all of them.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Carried> {
        let before = self.arrived.len();
        loop {
            self.arrived.reserve(ARRIVING);
            let read = pin!(self.stream.read_buf(&mut self.arrived)).poll(context);
            let has_read = self.arrived.len() - before;
            let reason = match read {
                Poll::Pending if has_read == 0 => return Poll::Pending,
                Poll::Ready(Ok(1..)) if has_read < ARRIVING && !self.stream.comes_whole() => continue,
                Poll::Pending | Poll::Ready(Ok(1..)) => return Poll::Ready(Carried::Read),
                Poll::Ready(Ok(0)) => format!("the broker closed the connection{}", self.hint()),
                Poll::Ready(Err(error)) => lost(&error, self.hint()),
            };
            // A broker that closes has often said why just before.
            return Poll::Ready(match has_read {
                0 => Carried::Ended(reason),
                _ => {
                    self.ended = Some(reason);
                    Carried::Read
                }
            });
        }
    }

    /// A broker that closes has often said why just before, in a packet or an alert of TLS, and writing finds out first.
    async fn last_words(&mut self, error: &std::io::Error) -> Event {
        const PATIENCE: Duration = Duration::from_millis(200);
        let Socket { stream, arrived, .. } = self;
        match tokio::time::timeout(PATIENCE, stream.read_buf(arrived)).await {
            Ok(Ok(1..)) => Event::Arrived,
            Ok(Err(said)) => Event::Closed(lost(&said, "")),
            Ok(Ok(0)) | Err(_) => Event::Closed(lost(error, "")),
        }
    }
}

/// What has happened on a connection.
enum Carried {
    Written(std::io::Result<()>),
    Read,
    Ended(String),
}

/// A PUBLISH leaves only for what is durable: the log's reader makes no other payloads.
fn write_publish(
    protocol: Protocol,
    payload: &Payload,
    out: &mut BytesMut,
    manner: impl FnOnce(&Loaded, &Content<'_>) -> Manner,
) -> Result<(), LaneError> {
    let content = payload.get().content();
    codec::write_publish(protocol, &content, manner(payload.get(), &content), out).map_err(|error| LaneError::Internal(error.to_string()))
}

/// A PUBREL leaves only with the permit of its committed release.
fn write_pubrel(protocol: Protocol, _permit: &Committed<()>, packet_id: u16, out: &mut BytesMut) {
    codec::write_pubrel(protocol, packet_id, out);
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::core::address::Address;
    use crate::delivery::transport;

    /// A lane's side, and the broker's.
    async fn pair() -> (Box<Socket>, tokio::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let (near, far) = tokio::join!(transport::connect(&address, None, Duration::from_secs(10)), listener.accept());
        (Box::new(Socket::new(near.unwrap_or_else(|error| panic!("{error}")))), far.unwrap().0)
    }

    #[tokio::test]
    async fn what_is_taken_back_at_qos_0_does_not_leave_with_the_connection_that_is_closed() {
        for qos_0 in [true, false] {
            let (mut socket, mut broker) = pair().await;
            socket.outgoing.extend_from_slice(b"\x30\x03\0\x01t");
            socket.queued = 5;
            socket.qos_0.extend(qos_0.then_some((SendNo(0), 5)));
            assert_eq!(socket.finish().await, !qos_0);
            let mut read = Vec::new();
            broker.read_to_end(&mut read).await.unwrap();
            assert_eq!(read.is_empty(), qos_0);
        }
    }

    #[tokio::test]
    async fn what_takes_long_to_leave_is_late_until_it_has_left_and_what_leaves_at_once_is_not() {
        let (mut socket, _broker) = pair().await;
        let long_ago = tokio::time::Instant::now() - 2 * LATE;
        socket.writing_since = Some(long_ago);
        socket.outgoing.extend_from_slice(b"a packet");
        for is_leaving in [true, true, false] {
            if !is_leaving {
                socket.outgoing.clear();
            }
            socket.has_written();
            assert_eq!(socket.left_late().map(|(since, _)| since), Some(long_ago));
        }
        assert_eq!(socket.left_late(), None, "it is said once");
        socket.writing_since = Some(tokio::time::Instant::now() + LATE);
        socket.has_written();
        assert_eq!(socket.left_late(), None);
    }
}
