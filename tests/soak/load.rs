//! The load: producers over HTTP and a publisher over MQTT, at a rate, none of which gives a report up before it is accepted.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use crate::books::{PUBLISHED, payload_of, topic_of};
use crate::support::tidings::{Client, Tidings};
use crate::support::wire::{self, Frame};

const PRODUCERS: u32 = 2;
/// Reports in a request.
const BATCH: u32 = 10;
/// Of so many reports one goes over MQTT.
const OVER_MQTT: u32 = 10;
/// A report that is not accepted for so long is stuck.
const STUCK: Duration = Duration::from_secs(120);

#[derive(Default)]
pub struct Load {
    /// Where to: HTTP and MQTT.
    to: RwLock<Option<(Client, SocketAddr)>>,
    accepted: Mutex<Vec<u64>>,
    next: AtomicU64,
    next_published: AtomicU64,
    is_over: AtomicBool,
}

impl Load {
    pub fn goes_to(&self, tidings: &Tidings) {
        *self.to.write().unwrap() = Some((tidings.client(), tidings.listener()));
    }

    /// What was accepted since it was asked for last.
    pub fn take_accepted(&self) -> Vec<u64> {
        std::mem::take(&mut self.accepted.lock().unwrap())
    }

    /// So many reports a second, for as long as `meanwhile` takes.
    pub fn at_work(&self, rate: u64, meanwhile: impl FnOnce()) {
        let rate = u32::try_from(rate.max(1)).unwrap();
        self.is_over.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..PRODUCERS {
                scope.spawn(|| self.paced(Duration::from_secs(1) * PRODUCERS * BATCH / rate, || self.post()));
            }
            scope.spawn(|| {
                let mut session = Session::default();
                self.paced(Duration::from_secs(1) * OVER_MQTT / rate, || self.publish(&mut session));
            });
            // Also when it panics, so that the panic is seen.
            let _stop = StopAtDrop(&self.is_over);
            meanwhile();
        });
    }

    fn paced(&self, every: Duration, mut work: impl FnMut()) {
        let mut due = Instant::now();
        while !self.is_over.load(Ordering::Relaxed) {
            work();
            // What could not be sent while the service was away is not made up for.
            due = (due + every).max(Instant::now() - every);
            std::thread::sleep(due.saturating_duration_since(Instant::now()).min(Duration::from_secs(1)));
        }
    }

    fn target(&self) -> (Client, SocketAddr) {
        self.to.read().unwrap().clone().expect("it was told where to")
    }

    fn post(&self) {
        let first = self.next.fetch_add(u64::from(BATCH), Ordering::Relaxed);
        let numbers = first..first + u64::from(BATCH);
        let body: Vec<String> = numbers.clone().map(payload_of).collect();
        let body = body.join("\n");
        let began = Instant::now();
        loop {
            let reply = self.target().0.post(body.as_bytes(), "application/x-ndjson", Some(&first.to_string()));
            match reply {
                Some(reply) if reply.status == 202 => return self.accepted.lock().unwrap().extend(numbers),
                Some(reply) => assert!(reply.status == 503, "only a moment's trouble is tried again: {reply:?}"),
                None => {}
            }
            assert!(began.elapsed() < STUCK, "{first} is not accepted");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One report at QoS 2, on whatever connections it takes.
    fn publish(&self, session: &mut Session) {
        let number = PUBLISHED + self.next_published.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        session.begin();
        while session.publish(self.target().1, number).is_err() {
            session.stream = None;
            assert!(began.elapsed() < STUCK, "{number} is not accepted over MQTT");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.accepted.lock().unwrap().push(number);
    }
}

struct StopAtDrop<'a>(&'a AtomicBool);

impl Drop for StopAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A publisher's session: MQTT 3.1.1, not clean, one message at a time.
#[derive(Default)]
struct Session {
    stream: Option<TcpStream>,
    packet_id: u16,
    was_sent: bool,
    is_received: bool,
}

impl Session {
    /// The next message.
    fn begin(&mut self) {
        self.packet_id = self.packet_id % 60_000 + 1;
        (self.was_sent, self.is_received) = (false, false);
    }

    /// As far as PUBCOMP. What has been done on an earlier connection is not done again.
    fn publish(&mut self, to: SocketAddr, number: u64) -> io::Result<()> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => Session::connect(to)?,
        };
        let stream = self.stream.insert(stream);
        let id = self.packet_id;
        if !self.is_received {
            let body = [wire::text(&topic_of(number)), id.to_be_bytes().to_vec(), payload_of(number).into_bytes()].concat();
            let dup = u8::from(self.was_sent) << 3;
            self.was_sent = true;
            stream.write_all(&wire::packet(wire::PUBLISH << 4 | 4 | dup, &body))?;
            await_ack(stream, wire::PUBREC, id)?;
            self.is_received = true;
        }
        stream.write_all(&wire::ack(wire::PUBREL, id, 0))?;
        await_ack(stream, wire::PUBCOMP, id)
    }

    fn connect(to: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STUCK))?;
        let hello = [wire::text("MQTT"), vec![4, 0, 0, 0], wire::text("soak")].concat();
        stream.write_all(&wire::packet(wire::CONNECT << 4, &hello))?;
        let frame = Frame::read(&mut stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        assert_eq!((frame.kind(), frame.body[1]), (wire::CONNACK, 0), "the publisher is welcome");
        Ok(stream)
    }
}

/// Passes over acknowledgements of an earlier connection's packets.
fn await_ack(stream: &mut TcpStream, kind: u8, packet_id: u16) -> io::Result<()> {
    loop {
        let frame = Frame::read(stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if frame.kind() == kind && frame.packet_id() == packet_id {
            return Ok(());
        }
    }
}
