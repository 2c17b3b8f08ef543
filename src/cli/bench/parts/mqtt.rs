//! MQTT 5 as bytes, with rumqttc's codec: as much as a plain publisher and a subscriber need.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttc::v5::mqttbytes::v5::{Connect, ConnectProperties, Packet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::bench::BenchError;
use crate::core::frame::Frame;

/// The largest packet that is taken, in bytes: reports have 256 KiB and a sixth.
pub const MAX_PACKET: usize = 1 << 20;

/// A broker answers within this, or not at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects with a clean session: the socket, what has arrived behind the CONNACK, and how many deliveries the broker takes at once.
///
/// # Errors
/// If the broker does not let it.
pub async fn connect(broker: SocketAddr, client_id: &str) -> Result<(TcpStream, BytesMut, u16), BenchError> {
    let failed = |error: std::io::Error| BenchError::Wire(format!("connecting to the broker {broker} failed: {error}"));
    let mut stream = TcpStream::connect(broker).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let mut properties = ConnectProperties::new();
    properties.receive_maximum = Some(u16::MAX);
    properties.max_packet_size = u32::try_from(MAX_PACKET).ok();
    let connect = Connect { keep_alive: 0, client_id: client_id.into(), clean_start: true, properties: Some(properties) };
    let mut out = BytesMut::new();
    connect.write(&None, &None, &mut out).map_err(|error| BenchError::Wire(format!("a CONNECT can't be written: {error}")))?;
    send(&mut stream, &mut out).await?;
    let mut arrived = BytesMut::with_capacity(64 << 10);
    let connack = timeout(PATIENCE, async {
        loop {
            if let Some(packet) = read(&mut arrived)? {
                return Ok(packet);
            }
            receive(&mut stream, &mut arrived).await?;
        }
    });
    let packet = connack.await.unwrap_or_else(|_| Err(BenchError::Wire(format!("the broker {broker} does not answer"))))?;
    let Packet::ConnAck(connack) = packet else { return Err(BenchError::Wire(format!("the broker answers with {packet:?}"))) };
    if connack.code != rumqttc::v5::mqttbytes::v5::ConnectReturnCode::Success {
        return Err(BenchError::Wire(format!("the broker refuses: {:?}", connack.code)));
    }
    let receive_maximum = connack.properties.and_then(|properties| properties.receive_max).unwrap_or(u16::MAX);
    Ok((stream, arrived, receive_maximum))
}

/// Writes everything.
///
/// # Errors
/// If the connection breaks.
pub async fn send(stream: &mut TcpStream, out: &mut BytesMut) -> Result<(), BenchError> {
    stream.write_all_buf(out).await.map_err(|error| BenchError::Wire(format!("the connection to the broker broke: {error}")))
}

/// Waits until more has arrived.
///
/// # Errors
/// If the connection breaks.
pub async fn receive(stream: &mut TcpStream, arrived: &mut BytesMut) -> Result<(), BenchError> {
    arrived.reserve(16 << 10);
    match stream.read_buf(arrived).await {
        Ok(0) => Err(BenchError::Wire("the broker closed the connection".into())),
        Ok(_) => Ok(()),
        Err(error) => Err(BenchError::Wire(format!("the connection to the broker broke: {error}"))),
    }
}

/// Takes a packet out of what has arrived.
///
/// # Errors
/// If the bytes make no packet.
pub fn read(arrived: &mut BytesMut) -> Result<Option<Packet>, BenchError> {
    let wrong = |what: String| BenchError::Wire(format!("the broker sent something that is not MQTT: {what}"));
    if Frame::find(arrived, MAX_PACKET).map_err(|error| wrong(error.to_string()))?.is_none() {
        return Ok(None);
    }
    Packet::read(arrived, u32::try_from(MAX_PACKET).ok()).map(Some).map_err(|error| wrong(error.to_string()))
}

/// Waits for a packet in which `find` finds something; others are passed over.
///
/// # Errors
/// If it does not come.
pub async fn packet<T>(stream: &mut TcpStream, arrived: &mut BytesMut, find: impl Fn(Frame, &[u8]) -> Option<T>) -> Result<T, BenchError> {
    let waiting = timeout(PATIENCE, async {
        loop {
            while let Some(frame) = Frame::find(arrived, MAX_PACKET).map_err(|error| BenchError::Wire(error.to_string()))? {
                let found = find(frame, arrived);
                arrived.advance(frame.length);
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            receive(stream, arrived).await?;
        }
    });
    waiting.await.unwrap_or_else(|_| Err(BenchError::Wire("the broker does not answer".into())))
}
