//! A reader of everything at QoS 0: what it is given is in the order in which the broker passes it on.
//!
//! mosquitto turns round what waits for the window of a subscriber at QoS 1 or 2. At QoS 0 there is no window; what comes while the broker or
//! the connection is away is missed, which says nothing about the order of the rest.

use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::ledger::Arrival;
use crate::support::wait_until;
use crate::support::wire::{self, Frame, Publish};

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Arrival>>,
    stream: Mutex<Option<TcpStream>>,
    is_subscribed: AtomicBool,
    is_stopping: AtomicBool,
}

pub struct Watcher {
    shared: Arc<Shared>,
    running: Option<JoinHandle<()>>,
}

impl Watcher {
    pub fn start(port: u16) -> Watcher {
        let shared = Arc::new(Shared::default());
        let at_work = Arc::clone(&shared);
        let running = std::thread::spawn(move || {
            while !at_work.is_stopping.load(Ordering::Relaxed) {
                // The broker may be away.
                let _ = at_work.watch(port);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        wait_until("the watcher has subscribed", || shared.is_subscribed.load(Ordering::Relaxed));
        Watcher { shared, running: Some(running) }
    }

    pub fn seen(&self) -> Vec<Arrival> {
        self.shared.seen.lock().unwrap().clone()
    }
}

impl Shared {
    fn watch(&self, port: u16) -> io::Result<()> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        *self.stream.lock().unwrap() = Some(stream.try_clone()?);
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        // A clean session, no keepalive.
        let connect = [wire::text("MQTT"), vec![4, 2, 0, 0], wire::text("watcher")].concat();
        writer.write_all(&wire::packet(wire::CONNECT << 4, &connect))?;
        writer.write_all(&wire::packet(wire::SUBSCRIBE << 4 | 2, &[vec![0, 1], wire::text("#"), vec![0]].concat()))?;
        while let Some(frame) = Frame::read(&mut reader)? {
            match frame.kind() {
                wire::SUBACK => self.is_subscribed.store(true, Ordering::Relaxed),
                wire::PUBLISH => {
                    let Publish { topic, payload, qos, retain, .. } = Publish::parse(&frame, 4);
                    self.seen.lock().unwrap().push(Arrival { topic, payload, qos, retain });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Watcher {
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
