//! The subscriber that checks. It is another program's MQTT client (rumqttc's), connects to the broker itself and is never cut off.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::check::Checker;
use crate::core::types::Qos;

/// The largest message that it takes; reports have 8 KiB at most.
const MAX_PACKET: u32 = 4 << 20;

/// Connecting and subscribing may take so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The subscriber could not start.
#[derive(Debug, thiserror::Error)]
#[error("the checking subscriber did not start: {0}")]
pub struct SubscriberError(String);

/// The running subscriber. Dropped, it stops.
pub struct Subscriber {
    task: JoinHandle<()>,
    /// When the last message came.
    heard: watch::Receiver<Instant>,
    failure: watch::Receiver<Option<String>>,
}

impl Subscriber {
    /// Subscribes to everything, at QoS 2, and notes in `books` what arrives.
    ///
    /// # Errors
    /// If the broker doesn't let it.
    pub async fn start(broker: SocketAddr, books: Arc<Mutex<Checker>>) -> Result<Subscriber, SubscriberError> {
        let mut options = MqttOptions::new("demo-checker", broker.ip().to_string(), broker.port());
        options.set_max_packet_size(Some(MAX_PACKET));
        options.set_receive_maximum(Some(u16::MAX));
        let (client, mut events) = AsyncClient::new(options, 10);
        client.subscribe("#", QoS::ExactlyOnce).await.map_err(|error| SubscriberError(error.to_string()))?;
        let subscribed = timeout(PATIENCE, subscribed(&mut events));
        subscribed.await.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))).map_err(SubscriberError)?;
        let (note_heard, heard) = watch::channel(Instant::now());
        let (note_failure, failure) = watch::channel(None);
        let task = tokio::spawn(async move {
            // The client lives as long as its events are read: without it they end.
            let _client = client;
            let why = listen(&mut events, &books, &note_heard).await;
            note_failure.send_replace(Some(why));
        });
        Ok(Subscriber { task, heard, failure })
    }

    /// When the last message came.
    pub fn heard(&self) -> Instant {
        *self.heard.borrow()
    }

    /// Resolves with the reason when it has lost its connection, which must not happen.
    pub async fn failed(&self) -> String {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "it stopped".into(),
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn subscribed(events: &mut EventLoop) -> Result<(), String> {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::SubAck(answer))) => {
                let granted = matches!(answer.return_codes[..], [SubscribeReasonCode::Success(QoS::ExactlyOnce)]);
                return if granted { Ok(()) } else { Err(format!("the broker grants {:?}", answer.return_codes)) };
            }
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Listens until the connection breaks. Acks are rumqttc's.
async fn listen(events: &mut EventLoop, books: &Mutex<Checker>, heard: &watch::Sender<Instant>) -> String {
    loop {
        let message = match events.poll().await {
            Ok(Event::Incoming(Packet::Publish(message))) => message,
            Ok(_) => continue,
            Err(error) => return error.to_string(),
        };
        let qos = match message.qos {
            QoS::AtMostOnce => Qos::AtMostOnce,
            QoS::AtLeastOnce => Qos::AtLeastOnce,
            QoS::ExactlyOnce => Qos::ExactlyOnce,
        };
        let topic = String::from_utf8_lossy(&message.topic);
        books.lock().unwrap_or_else(PoisonError::into_inner).arrived(&topic, qos, &message.payload);
        heard.send_replace(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::broker::Broker;
    use crate::cli::demo::reports::Generator;

    #[tokio::test]
    async fn what_another_client_publishes_at_any_qos_is_heard_once_and_in_order() {
        let broker = Broker::start().await.unwrap();
        let books = Arc::new(Mutex::new(Checker::new("0a1b")));
        let subscriber = Subscriber::start(broker.addr(), Arc::clone(&books)).await.unwrap();
        let mut options = MqttOptions::new("publisher", broker.addr().ip().to_string(), broker.addr().port());
        options.set_max_packet_size(Some(MAX_PACKET));
        let (client, mut events) = AsyncClient::new(options, 10);
        let publisher = tokio::spawn(async move { while events.poll().await.is_ok() {} });
        for report in Generator::new("0a1b", 0.0).take(300) {
            let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(report.qos.level())];
            books.lock().unwrap().expect(Arc::clone(&report.topic), report.of_topic, report.qos, &report.payload);
            client.publish_bytes(report.topic.to_string(), qos, false, report.payload).await.unwrap();
        }
        let all = async {
            while books.lock().unwrap().count() < 300 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), all).await.unwrap_or_else(|_| panic!("{:?}", books.lock().unwrap().verdict()));
        let verdict = books.lock().unwrap().verdict();
        // Where topics change their QoS, nobody holds back the next report here: that is the service's work.
        assert!(verdict.delivered == verdict.posted && verdict.duplicates + verdict.strangers + verdict.lost_at_qos_0 == 0, "{verdict:?}");
        publisher.abort();
        broker.stop().await;
        timeout(Duration::from_secs(60), subscriber.failed()).await.expect("a subscriber without a broker says so");
    }
}
