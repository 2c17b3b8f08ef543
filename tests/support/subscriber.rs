//! An independent subscriber: MQTT 3.1.1 with a persistent session at QoS 2, which comes back whenever its broker does.
//!
//! What it records is in the order of arrival. It keeps the receiver's half of QoS 2 itself: a packet identifier is one message until its
//! PUBREL, over as many connections as it takes.

use std::collections::HashSet;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::ledger::Arrival;
use super::wait_until;
use super::wire::{self, Frame, Publish};

pub struct Subscriber {
    shared: Arc<Shared>,
    running: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    arrivals: Mutex<Vec<Arrival>>,
    is_subscribed: AtomicBool,
    is_connected: AtomicBool,
    is_stopping: AtomicBool,
    is_away: AtomicBool,
    stream: Mutex<Option<TcpStream>>,
}

impl Subscriber {
    /// Subscribes to everything, and returns once the broker has said that it is so.
    pub fn start(port: u16) -> Subscriber {
        let shared = Arc::new(Shared::default());
        let at_work = Arc::clone(&shared);
        let running = std::thread::spawn(move || {
            let mut unreleased = HashSet::new();
            while !at_work.is_stopping.load(Ordering::Relaxed) {
                if !at_work.is_away.load(Ordering::Relaxed) {
                    // The broker may be away, or go at any moment: that is what the tests are about.
                    let _ = at_work.connection(port, &mut unreleased);
                    at_work.is_connected.store(false, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let subscriber = Subscriber { shared, running: Some(running) };
        wait_until("the subscriber has subscribed", || subscriber.shared.is_subscribed.load(Ordering::Relaxed));
        subscriber
    }

    /// Leaves without a word, and keeps its session at the broker.
    pub fn leave(&self) {
        self.shared.is_away.store(true, Ordering::Relaxed);
        if let Some(stream) = self.shared.stream.lock().unwrap().take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        wait_until("the subscriber has left", || !self.shared.is_connected.load(Ordering::Relaxed));
    }

    pub fn come_back(&self) {
        self.shared.is_away.store(false, Ordering::Relaxed);
    }

    /// The broker has answered its CONNECT, and no end of the connection was seen since.
    pub fn is_connected(&self) -> bool {
        self.shared.is_connected.load(Ordering::Relaxed)
    }

    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap().clone()
    }

    /// What has arrived behind the first so many.
    pub fn arrivals_behind(&self, count: usize) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap()[count..].to_vec()
    }

    /// What has arrived since it was asked for last. For tests that are too long to keep everything.
    pub fn take(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.shared.arrivals.lock().unwrap())
    }

    pub fn count(&self) -> usize {
        self.shared.arrivals.lock().unwrap().len()
    }
}

impl Shared {
    fn connection(&self, port: u16, unreleased: &mut HashSet<u16>) -> io::Result<()> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        *self.stream.lock().unwrap() = Some(stream.try_clone()?);
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        // Clean session off, no keepalive.
        let connect = [wire::text("MQTT"), vec![4, 0, 0, 0], wire::text("ledger")].concat();
        writer.write_all(&wire::packet(wire::CONNECT << 4, &connect))?;
        while let Some(frame) = Frame::read(&mut reader)? {
            match frame.kind() {
                wire::CONNACK => {
                    assert_eq!(frame.body[1], 0, "the broker refused the subscriber");
                    self.is_connected.store(true, Ordering::Relaxed);
                    if frame.body[0] == 0 {
                        assert!(!self.is_subscribed.load(Ordering::Relaxed), "the broker has lost the subscriber's session");
                        let subscribe = [vec![0, 1], wire::text("#"), vec![2]].concat();
                        writer.write_all(&wire::packet(wire::SUBSCRIBE << 4 | 2, &subscribe))?;
                    }
                }
                wire::SUBACK => {
                    assert_eq!(frame.body[2], 2, "the broker grants QoS 2");
                    self.is_subscribed.store(true, Ordering::Relaxed);
                }
                wire::PUBLISH => self.on_publish(Publish::parse(&frame, 4), unreleased, &mut writer)?,
                wire::PUBREL => {
                    unreleased.remove(&frame.packet_id());
                    writer.write_all(&wire::ack(wire::PUBCOMP, frame.packet_id(), 0))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn on_publish(&self, publish: Publish, unreleased: &mut HashSet<u16>, writer: &mut impl Write) -> io::Result<()> {
        let Publish { topic, payload, qos, retain, packet_id, .. } = publish;
        if qos < 2 || unreleased.insert(packet_id) {
            self.arrivals.lock().unwrap().push(Arrival { topic, payload, qos, retain });
        }
        match qos {
            0 => Ok(()),
            1 => writer.write_all(&wire::ack(wire::PUBACK, packet_id, 0)),
            _ => writer.write_all(&wire::ack(wire::PUBREC, packet_id, 0)),
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        if let Some(stream) = self.shared.stream.lock().unwrap().take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(running) = self.running.take() {
            let _ = running.join();
        }
    }
}
