//! A subscriber that counts. It looks at each packet only as far as its acknowledgement asks for: it is no part of what is measured.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Subscribe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::BenchError;
use super::parts::mqtt::{self, MAX_PACKET};
use super::service::PREFIX;
use crate::core::frame::{Frame, PUBLISH, SUBACK};

/// Nothing has arrived for so long: nothing will.
const SILENCE: Duration = Duration::from_secs(60);

/// A running subscriber. Dropped, it leaves.
pub struct Subscriber {
    task: JoinHandle<()>,
    heard: watch::Receiver<Heard>,
}

/// What has arrived.
#[derive(Debug, Clone)]
struct Heard {
    count: u64,
    at: Instant,
    failed: Option<String>,
}

impl Subscriber {
    /// Subscribes to the bench's topics at QoS 1.
    ///
    /// # Errors
    /// If the broker does not let it.
    pub async fn start(broker: SocketAddr) -> Result<Subscriber, BenchError> {
        let (mut stream, mut arrived, _) = mqtt::connect(broker, "tidings-bench-subscriber").await?;
        let mut subscribe = Subscribe::new(Filter::new(format!("{PREFIX}/#"), QoS::AtLeastOnce), None);
        subscribe.pkid = 1;
        let mut out = BytesMut::new();
        subscribe.write(&mut out).map_err(|error| BenchError::Wire(format!("a SUBSCRIBE can't be written: {error}")))?;
        mqtt::send(&mut stream, &mut out).await?;
        let granted =
            mqtt::packet(&mut stream, &mut arrived, |frame, bytes| (frame.kind == SUBACK).then(|| bytes[frame.length - 1])).await?;
        if granted != 1 {
            return Err(BenchError::Wire(format!("the broker grants {granted} instead of QoS 1")));
        }
        let (tell, heard) = watch::channel(Heard { count: 0, at: Instant::now(), failed: None });
        let task = tokio::spawn(async move {
            if let Err(error) = listen(stream, arrived, &tell).await {
                tell.send_modify(|heard| heard.failed = Some(error));
            }
        });
        Ok(Subscriber { task, heard })
    }

    /// When so many have arrived.
    ///
    /// # Errors
    /// If they don't.
    pub async fn all(&mut self, count: u64) -> Result<Instant, BenchError> {
        loop {
            let heard = self.heard.borrow_and_update().clone();
            if let Some(failed) = heard.failed {
                return Err(BenchError::Wire(format!("the subscriber failed: {failed}")));
            }
            if heard.count >= count {
                return Ok(heard.at);
            }
            if timeout(SILENCE, self.heard.changed()).await.is_err() {
                return Err(BenchError::Count { what: "reports that have arrived".into(), expected: count, found: heard.count });
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(mut stream: TcpStream, mut arrived: BytesMut, tell: &watch::Sender<Heard>) -> Result<(), String> {
    let mut acks = BytesMut::new();
    loop {
        let mut count = 0;
        while let Some(frame) = Frame::find(&arrived, MAX_PACKET).map_err(|error| error.to_string())? {
            if frame.kind == PUBLISH {
                count += 1;
                // The topic, its length before it, then the packet identifier (MQTT 5.0 §3.3.2).
                let qos = frame.flags >> 1 & 3;
                if qos > 0 {
                    let topic = usize::from(u16::from_be_bytes([arrived[frame.header], arrived[frame.header + 1]]));
                    let id = frame.header + 2 + topic;
                    acks.extend_from_slice(&[0x40, 2, arrived[id], arrived[id + 1]]);
                }
            }
            arrived.advance(frame.length);
        }
        if count > 0 {
            tell.send_modify(|heard| {
                heard.count += count;
                heard.at = Instant::now();
            });
        }
        if !acks.is_empty() {
            stream.write_all_buf(&mut acks).await.map_err(|error| error.to_string())?;
        }
        arrived.reserve(64 << 10);
        if stream.read_buf(&mut arrived).await.map_err(|error| error.to_string())? == 0 {
            return Err("the broker closed its connection".into());
        }
    }
}
