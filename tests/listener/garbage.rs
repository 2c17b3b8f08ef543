//! Bytes of a connection, mutated under a seed: nothing panics, nothing grows without bound, nothing is acknowledged that is not in the log.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::listener;
use crate::publisher::{Hello, Publisher, publish};
use crate::support::tidings::{Tidings, connection};
use crate::support::wire;

/// So many connections; `TIDINGS_CASES` asks for more.
fn cases() -> u64 {
    std::env::var("TIDINGS_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1_500)
}

/// A small generator, the same for a seed (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

/// A connection as it should be: greeting, publishes of every QoS, and all else that a publisher may say.
fn decent(level: u8, random: &mut Random) -> Vec<Vec<u8>> {
    let hello = if level == 5 { Hello::v5("garbage") } else { Hello::v4("garbage") };
    let will = Some(("will".to_owned(), b"w".to_vec(), 1, false, Vec::new()));
    let hello = Hello { will: will.filter(|_| random.below(3) == 0), clean: random.below(2) == 0, ..hello };
    let properties: &[u8] = if level == 5 { &[0] } else { &[] };
    let mut packets = vec![hello.bytes()];
    for id in 1..=4_u16 {
        let qos = u8::try_from(random.below(3)).unwrap();
        let more: &[u8] = if level == 5 && random.below(2) == 0 { &[0x02, 0, 0, 0, 9, 0x26, 0, 1, b'a', 0, 1, b'b'] } else { &[] };
        packets.push(publish(level, "t/x", b"{\"action\":1}", qos, id, false, more));
        if qos == 2 {
            packets.push(wire::ack(wire::PUBREL, id, 0));
        }
    }
    packets.push(wire::packet(wire::SUBSCRIBE << 4 | 2, &[&[0, 9], properties, b"\0\x01#\0"].concat()));
    packets.push(vec![wire::PINGREQ << 4, 0]);
    packets.push(vec![wire::DISCONNECT << 4, 0]);
    packets
}

fn mutate(packets: Vec<Vec<u8>>, random: &mut Random) -> Vec<u8> {
    let mut packets = packets;
    for _ in 0..random.below(3) {
        let (from, to) = (random.below(packets.len()), random.below(packets.len()));
        packets.swap(from, to);
    }
    let mut bytes = packets.concat();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] = u8::try_from(random.below(256)).unwrap(),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at.max(1)),
            3 => drop(bytes.remove(at)),
            4 => bytes.insert(at, 0xff),
            _ => {
                let piece: Vec<u8> = bytes[at..(at + 8).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

#[test]
fn no_bytes_break_the_listener_and_nothing_is_acknowledged_that_is_not_in_the_log() {
    let seed = 0x5eed_0001;
    let tidings = Tidings::start(&(listener("") + &connection(9, "")));
    let before = tidings.metric("process_resident_memory_bytes");
    let mut random = Random(seed);
    let mut acknowledged = 0_u64;
    for _ in 0..cases() {
        let level = if random.below(2) == 0 { 4 } else { 5 };
        let packets = decent(level, &mut random);
        let bytes = mutate(packets, &mut random);
        let mut stream = TcpStream::connect(tidings.listener()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // It may be closed in the middle.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        acknowledged += acknowledgements(&answers);
    }
    tidings.wait_for_total("created", acknowledged);
    assert!(acknowledged > cases() / 10, "only {acknowledged} were acknowledged: the mutations leave nothing whole");
    assert!(tidings.logged("panicked").is_empty());
    let grown = tidings.metric("process_resident_memory_bytes") - before;
    assert!(grown < 100e6, "{grown} bytes");
    let (mut publisher, _) = Publisher::connect(tidings.listener(), &Hello::v4(""));
    publisher.publish("t", "x", 1, 1, false);
    publisher.expect_ack(wire::PUBACK, 1);
}

/// PUBACKs that say yes. (A PUBREC may be about a PUBLISH of an earlier connection.)
fn acknowledgements(answers: &[u8]) -> u64 {
    let (mut rest, mut count) = (answers, 0);
    while let Ok(Some(frame)) = wire::Frame::read(&mut rest) {
        let is_yes = frame.body.get(2).is_none_or(|code| *code < 0x80);
        count += u64::from(frame.kind() == wire::PUBACK && is_yes);
    }
    count
}
