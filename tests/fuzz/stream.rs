//! A stream of packets read in one piece, in pieces that chance makes, and byte by byte.

use std::fmt::Debug;

use bytes::BytesMut;

use crate::chance::Chance;

/// Streams up to this length are read byte by byte, too.
const BYTE_BY_BYTE: usize = 600;

/// What came out of a stream: its packets, and the error that ended it or the bytes that are left.
#[derive(Debug, PartialEq, Eq)]
pub struct Read<T, E> {
    pub packets: Vec<T>,
    pub end: Result<usize, E>,
}

/// Reads the stream, and fails if it matters where it is cut. `reader` makes a function that takes the next packet out of what has arrived.
pub fn read_however_cut<T: Debug + PartialEq, E: Debug + PartialEq, F>(bytes: &[u8], reader: impl Fn() -> F) -> Read<T, E>
where
    F: FnMut(&mut BytesMut) -> Result<Option<T>, E>,
{
    let whole = read(bytes, &[], reader());
    let mut chance = Chance::of(bytes.len() as u64, "cuts", bytes.iter().map(|byte| u64::from(*byte)).sum());
    let mut cuts: Vec<usize> = (0..1 + chance.below(6)).map(|_| chance.below(bytes.len() + 1)).collect();
    cuts.sort_unstable();
    assert_eq!(read(bytes, &cuts, reader()), whole, "cut at {cuts:?}");
    if bytes.len() <= BYTE_BY_BYTE {
        let cuts: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(read(bytes, &cuts, reader()), whole, "byte by byte");
    }
    whole
}

fn read<T, E>(bytes: &[u8], cuts: &[usize], mut next: impl FnMut(&mut BytesMut) -> Result<Option<T>, E>) -> Read<T, E> {
    let mut arrived = BytesMut::new();
    let mut packets = Vec::new();
    let mut from = 0;
    for to in cuts.iter().copied().chain([bytes.len()]) {
        arrived.extend_from_slice(&bytes[from..to]);
        from = to;
        loop {
            let before = arrived.len();
            match next(&mut arrived) {
                Ok(Some(packet)) => {
                    assert!(arrived.len() < before, "a packet is made of bytes");
                    packets.push(packet);
                }
                Ok(None) => {
                    assert_eq!(arrived.len(), before, "what is not a whole packet stays");
                    break;
                }
                Err(error) => return Read { packets, end: Err(error) },
            }
        }
    }
    Read { packets, end: Ok(arrived.len()) }
}
