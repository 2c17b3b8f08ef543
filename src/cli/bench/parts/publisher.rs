//! A plain publisher: the reports are in memory, and every lane sends what its window lets it. No store, no promise: what is in flight when it
//! is killed is lost. It is what delivery is measured against, and what publishes where a publisher is needed.
//!
//! Nothing of the service's delivery is in it: its lanes are a loop each, over the codec that the service's have too.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use clap::Args;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Disconnect, DisconnectReasonCode, Packet, PubAckReason, PubCompReason, PubRecReason, PubRel, Publish};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{Told, mqtt, result};
use crate::cli::bench::BenchError;
use crate::cli::bench::reports::{Kind, pool};
use crate::cli::bench::service::PREFIX;

/// So many bytes are gathered for one write at least, if the window lets it.
const GATHER: usize = 64 << 10;

/// The arguments of `tidings bench-part publisher`.
#[derive(Debug, Clone, Args)]
pub struct PublisherArgs {
    #[arg(long)]
    broker: SocketAddr,
    #[arg(long)]
    reports: u64,
    #[arg(long, value_parser = Kind::parse)]
    kind: Kind,
    #[arg(long)]
    qos: u8,
    #[arg(long)]
    lanes: u32,
    #[arg(long)]
    window: u16,
    #[arg(long)]
    seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// Reports that the broker has acknowledged; at QoS 0 those that were flushed.
    pub done: u64,
    /// How long it took, in seconds, connecting left out.
    pub seconds: f64,
}

impl Published {
    /// Reports a second.
    pub fn rate(self) -> f64 {
        self.done as f64 / self.seconds
    }
}

/// Runs it.
///
/// # Errors
/// If the broker refuses something, or goes away.
pub async fn run(args: &PublisherArgs, told: &Told) -> Result<String, BenchError> {
    let reports: Vec<(String, Bytes)> =
        pool(args.kind, args.seed).iter().map(|report| (report.topic(PREFIX), report.payload.clone())).collect();
    // A topic has its lane, as in the service.
    let lane_of = |topic: &str| (xxh3_64(topic.as_bytes()) % u64::from(args.lanes)) as u32;
    let mut lanes = Vec::new();
    for number in 0..args.lanes {
        let (stream, arrived, receive_maximum) = mqtt::connect(args.broker, &format!("tidings-bench-publisher-{number}")).await?;
        let own: Vec<_> = reports.iter().filter(|(topic, _)| lane_of(topic) == number).cloned().collect();
        let count = (0..args.reports).filter(|n| lane_of(&reports[(*n % reports.len() as u64) as usize].0) == number).count() as u64;
        let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(args.qos)];
        lanes.push(Lane { stream, arrived, reports: Arc::new(own), count, qos, window: args.window.min(receive_maximum) });
    }
    tokio::task::block_in_place(|| told.wait_to_go(""));
    let begin = Instant::now();
    let mut running = JoinSet::new();
    for lane in lanes {
        running.spawn(lane.run());
    }
    let mut done = 0;
    while let Some(ended) = running.join_next().await {
        done += ended.unwrap_or_else(|fault| Err(BenchError::Wire(fault.to_string())))?;
    }
    Ok(result(&Published { done, seconds: begin.elapsed().as_secs_f64() }))
}

struct Lane {
    stream: TcpStream,
    arrived: BytesMut,
    /// What it sends, in turn.
    reports: Arc<Vec<(String, Bytes)>>,
    count: u64,
    qos: QoS,
    window: u16,
}

impl Lane {
    /// Sends everything, and says how many are done.
    async fn run(mut self) -> Result<u64, BenchError> {
        let (mut sent, mut done) = (0, 0);
        let mut out = BytesMut::with_capacity(2 * GATHER);
        while done < self.count {
            while sent < self.count && sent - done < u64::from(self.window) && out.len() < GATHER {
                self.publish(sent, &mut out)?;
                sent += 1;
                if self.qos == QoS::AtMostOnce {
                    done += 1;
                }
            }
            if !out.is_empty() {
                mqtt::send(&mut self.stream, &mut out).await?;
            }
            if self.qos == QoS::AtMostOnce || sent < self.count && sent - done < u64::from(self.window) {
                continue;
            }
            mqtt::receive(&mut self.stream, &mut self.arrived).await?;
            while let Some(packet) = mqtt::read(&mut self.arrived)? {
                done += u64::from(on_packet(packet, &mut out)?);
            }
        }
        let goodbye = Disconnect::new(DisconnectReasonCode::NormalDisconnection);
        goodbye.write(&mut out).map_err(|error| BenchError::Wire(error.to_string()))?;
        mqtt::send(&mut self.stream, &mut out).await?;
        Ok(done)
    }

    fn publish(&self, number: u64, out: &mut BytesMut) -> Result<(), BenchError> {
        let (topic, payload) = &self.reports[(number % self.reports.len() as u64) as usize];
        let mut publish = Publish::new(topic.as_str(), self.qos, payload.clone(), None);
        if self.qos != QoS::AtMostOnce {
            publish.pkid = u16::try_from(number % 65_535).expect("a remainder of a 16 bit number fits 16 bits") + 1;
        }
        publish.write(out).map(drop).map_err(|error| BenchError::Wire(format!("a report can't be sent: {error}")))
    }
}

/// Answers a packet of the broker. True if it ends a delivery.
fn on_packet(packet: Packet, out: &mut BytesMut) -> Result<bool, BenchError> {
    match packet {
        Packet::PubAck(ack) if matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) => Ok(true),
        Packet::PubComp(ack) if ack.reason == PubCompReason::Success => Ok(true),
        Packet::PubRec(ack) if matches!(ack.reason, PubRecReason::Success | PubRecReason::NoMatchingSubscribers) => {
            PubRel::new(ack.pkid, None).write(out).map_err(|error| BenchError::Wire(error.to_string()))?;
            Ok(false)
        }
        other => Err(BenchError::Wire(format!("the broker refuses a report: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use rumqttc::v5::mqttbytes::v5::{PubAck, PubComp, PubRec};

    use super::*;

    #[test]
    fn a_delivery_ends_at_its_last_acknowledgement() {
        let mut out = BytesMut::new();
        assert!(on_packet(Packet::PubAck(PubAck::new(7, None)), &mut out).unwrap() && out.is_empty());
        assert!(!on_packet(Packet::PubRec(PubRec::new(258, None)), &mut out).unwrap());
        assert_eq!(&out[..], [0x62, 2, 1, 2]);
        assert!(on_packet(Packet::PubComp(PubComp::new(258, None)), &mut out).unwrap());
        let refused = PubAck { reason: PubAckReason::NotAuthorized, ..PubAck::new(7, None) };
        assert!(on_packet(Packet::PubAck(refused), &mut out).is_err());
    }
}
