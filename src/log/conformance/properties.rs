//! Whatever is done to a log in whatever order, it holds what a plain list would.

use proptest::prelude::*;

use super::*;

/// What can be done to a log.
#[derive(Debug, Clone)]
enum Operation {
    Append(Vec<usize>),
    /// One append, and a second one that is prepared and begun behind it.
    Overlap(Vec<usize>, Vec<usize>),
    Begin,
    Drop,
    Tick,
    Kill,
    Close,
    Read(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    let sizes = || prop::collection::vec(prop_oneof![4 => 0usize..3000, 1 => 3000usize..40_000], 1..12);
    prop_oneof![
        6 => sizes().prop_map(Operation::Append),
        4 => (sizes(), sizes()).prop_map(|(first, second)| Operation::Overlap(first, second)),
        2 => Just(Operation::Begin),
        1 => Just(Operation::Drop),
        1 => Just(Operation::Tick),
        2 => Just(Operation::Kill),
        1 => Just(Operation::Close),
        3 => (0u64..200).prop_map(Operation::Read),
    ]
}

/// What the log must hold.
#[derive(Default)]
struct Model {
    events: Vec<Event>,
    firsts: Vec<u64>,
    checkpoint: Option<Checkpoint>,
}

fn a_log_agrees_with_a_plain_list(store: &dyn Store, operations: Vec<Operation>) {
    let mut log = opened(store).log;
    let mut model = Model { firsts: vec![1], ..Model::default() };
    for operation in operations {
        let next = model.events.len() as u64 + 1;
        match operation {
            Operation::Append(sizes) => {
                let events: Vec<Event> = (next..).zip(sizes).map(|(n, size)| with_payload(n, vec![n as u8; size])).collect();
                model.events.extend_from_slice(&events);
                assert_eq!(append(&mut *log, &events).0, model.events.len() as u64);
            }
            Operation::Overlap(first, second) => {
                let make = |next: u64, sizes: Vec<usize>| -> Vec<Event> {
                    (next..).zip(sizes).map(|(n, size)| with_payload(n, vec![n as u8; size])).collect()
                };
                let first = make(next, first);
                let second = make(next + first.len() as u64, second);
                if begin(&mut *log, &first) {
                    let (piece, rest) = second.split_at(second.len() / 2);
                    log.prepare(piece, &next_send);
                    log.prepare(&rest[..rest.len() / 2], &next_send);
                }
                model.events.extend(first);
                assert_eq!(log.finish_append().unwrap().0, model.events.len() as u64);
                begin(&mut *log, &second);
                model.events.extend(second);
                assert_eq!(log.finish_append().unwrap().0, model.events.len() as u64);
            }
            Operation::Begin => {
                log.begin_generation(&next.to_le_bytes()).unwrap();
                if model.firsts.last() != Some(&next) {
                    model.firsts.push(next);
                    model.checkpoint = Some(Checkpoint { next: Seq(next), bytes: next.to_le_bytes().to_vec() });
                }
            }
            Operation::Drop => {
                log.drop_oldest_generation().unwrap();
                if model.firsts.len() > 1 {
                    model.firsts.remove(0);
                }
            }
            Operation::Tick => log.tick().unwrap(),
            Operation::Kill | Operation::Close => {
                let clean = matches!(operation, Operation::Close);
                if clean {
                    log.close(b"closed").unwrap();
                    model.checkpoint = Some(Checkpoint { next: Seq(next), bytes: b"closed".to_vec() });
                } else {
                    drop(log);
                }
                let again = opened(store);
                assert_eq!(again.last_stop, if clean { LastStop::Clean } else { LastStop::Unclean });
                assert_eq!(again.checkpoint, model.checkpoint);
                log = again.log;
            }
            Operation::Read(seq) => {
                let found = log.reader().page(Seq(seq)).map(|page| page.map(|page| page.get(Seq(seq)).cloned().unwrap()));
                let expected =
                    if seq < model.firsts[0] { Err(ReadError::Gone(Seq(seq))) } else { Ok(model.events.get(seq as usize - 1).cloned()) };
                assert_eq!(found, expected);
            }
        }
        assert_eq!(log.next_seq().0, model.events.len() as u64 + 1);
        assert_eq!(log.generations().iter().map(|generation| generation.first.0).collect::<Vec<_>>(), model.firsts);
    }
    let lowest = model.firsts[0];
    assert_eq!(all(&*log.reader(), Seq(lowest)), model.events[lowest as usize - 1..]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_log_in_memory_agrees_with_a_plain_list(operations in prop::collection::vec(operation(), 1..30)) {
        a_log_agrees_with_a_plain_list(&Disk::new(24 << 10), operations);
    }

    #[test]
    fn a_log_on_disk_agrees_with_a_plain_list(operations in prop::collection::vec(operation(), 1..30)) {
        a_log_agrees_with_a_plain_list(&OnDisk(tempfile::tempdir().unwrap()), operations);
    }

    #[cfg(feature = "jetstream")]
    #[test]
    fn a_log_on_servers_agrees_with_a_plain_list(operations in prop::collection::vec(operation(), 1..30)) {
        a_log_agrees_with_a_plain_list(&OnServers::fresh(), operations);
    }
}
