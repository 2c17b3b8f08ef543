//! Generations of a shared log: one instance begins and drops them, and all have the same.

use super::tests::*;
use super::*;
use crate::core::outbox::FoldError;
use crate::core::types::Millis;
use crate::log::ReadError;
use crate::log::committer::recover;
use crate::log::memory_log::{Disk, MemoryLog};

/// Full after a few reports.
const SMALL: u64 = 600;

fn begun() -> Event {
    Event::GenerationBegun { at: Millis(0) }
}

fn dropped(before: Seq) -> Event {
    Event::GenerationDropped { before, at: Millis(0) }
}

fn left(instance: InstanceId, by: InstanceId) -> Event {
    Event::InstanceLeft { instance, by, at: Millis(0) }
}

fn firsts(instance: &Instance) -> Vec<Seq> {
    instance.outbox().generations().collect()
}

/// Reports `from..to` come and are delivered, a commit each.
fn busy(instance: &mut Instance, from: u64, to: u64) {
    for number in from..to {
        instance.accept_now(accepted(number, Some(u128::from(number)))).unwrap();
        instance.record(vec![delivered(number)]).unwrap();
    }
}

#[test]
fn the_leader_begins_and_drops_for_all() {
    inside(|| {
        let disk = Disk::new(SMALL);
        let (mut a, mut b) = two(&disk);
        a.record((0..3).map(delivered).collect()).unwrap();
        busy(&mut a, 3, 8);
        b.stepped.tick();
        assert_eq!(firsts(&b), [Seq::FIRST], "the other one begins none");
        a.stepped.tick();
        b.stepped.follow();
        let begun = firsts(&a);
        assert!(begun.len() > 1 || begun[0] > Seq::FIRST, "{begun:?}");
        busy(&mut a, 8, 40);
        for _ in 0..4 {
            b.stepped.follow();
            a.stepped.tick();
        }
        b.stepped.follow();
        let oldest = firsts(&a)[0];
        assert!(oldest > begun[0], "what is done is dropped: retention is over at once");
        b.stepped.tick();
        assert_eq!(firsts(&b), firsts(&a));
        for instance in [&a, &b] {
            assert!(matches!(instance.log.page(Seq::FIRST), Err(ReadError::Gone(_))));
            let lane = instance.outbox().lane(&lane()).unwrap();
            assert!(lane.anchor_for(lane.cursor()).is_none_or(|anchor| anchor >= oldest), "what is found is found in what is there");
        }
        // Somebody who starts now comes to the same.
        agree(&disk, [&mut a, &mut b]);
        a.accept_now(accepted(90, None)).unwrap();
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn what_is_not_done_is_carried_forward_by_the_leader() {
    inside(|| {
        let disk = Disk::new(SMALL);
        let (mut a, mut b) = two(&disk);
        a.record(vec![delivered(1), delivered(2)]).unwrap();
        busy(&mut a, 3, 30);
        for number in 30..60 {
            busy(&mut a, number, number + 1);
            b.stepped.tick();
            a.stepped.tick();
        }
        assert!(firsts(&a)[0] > Seq(40), "{:?}", firsts(&a));
        b.stepped.follow();
        let known = b.outbox().lane(&lane()).unwrap();
        assert_eq!((known.pending(), known.moved().len()), (1, 1), "the first report is still to be delivered, from where it is now");
        agree(&disk, [&mut a, &mut b]);
        a.record(vec![delivered(0)]).unwrap();
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn what_a_leader_left_half_done_is_done_by_the_next() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        a.record((0..3).map(delivered).collect()).unwrap();
        a.record(vec![begun()]).unwrap();
        b.stepped.tick();
        let second = firsts(&a)[1];
        assert!(MemoryLog::open_shared(&disk).unwrap().checkpoint.is_none(), "it has come no further than the event");
        // Killed there.
        drop(a);
        b.record(vec![left(A, B)]).unwrap();
        b.stepped.tick();
        b.stepped.tick();
        let opened = MemoryLog::open_shared(&disk).unwrap();
        assert!(opened.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.next >= second), "a start reads from there");
        assert_eq!(recover(&opened).unwrap(), *b.outbox());
        // And the same for a dropping.
        let mut c = Instance::start(&disk, InstanceId(0xc));
        c.record(vec![joined(InstanceId(0xc))]).unwrap();
        let before = disk.generations();
        b.record(vec![dropped(firsts(&b)[firsts(&b).len() - 1])]).unwrap();
        assert_eq!(disk.generations(), before, "nothing is deleted before the event is durable, and then a little later");
        drop(b);
        c.record(vec![left(B, InstanceId(0xc))]).unwrap();
        c.stepped.tick();
        assert_eq!((disk.generations(), firsts(&c).len()), (1, 1));
        assert_eq!(recover(&MemoryLog::open_shared(&disk).unwrap()).unwrap(), *c.outbox());
    });
}

#[test]
fn nobody_else_begins_or_drops_and_nothing_that_is_needed_is_dropped() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        let refused = b.record(vec![begun()]);
        assert!(matches!(refused, Err(CommitError::NotOwner(FoldError::NotLeader))), "{refused:?}");
        a.record(vec![begun()]).unwrap();
        let second = firsts(&a)[1];
        let refused = a.record(vec![dropped(second)]);
        assert!(matches!(refused, Err(CommitError::ChangedMeanwhile(FoldError::StillNeeded { count: 3, .. }))), "{refused:?}");
        a.record((0..3).map(delivered).collect()).unwrap();
        let refused = b.record(vec![dropped(second)]);
        assert!(matches!(refused, Err(CommitError::NotOwner(FoldError::NotLeader))), "{refused:?}");
        let nowhere = Seq(second.0 - 1);
        let refused = a.record(vec![dropped(nowhere)]);
        assert!(matches!(refused, Err(CommitError::ChangedMeanwhile(FoldError::NoSuchGeneration(_)))), "{refused:?}");
        a.record(vec![dropped(second)]).unwrap();
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn an_instance_whose_place_in_the_log_is_gone_stops_and_says_so() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        a.record((0..3).map(delivered).collect()).unwrap();
        a.record(vec![begun()]).unwrap();
        a.record(vec![dropped(firsts(&a)[1])]).unwrap();
        a.stepped.tick();
        b.stepped.follow();
        let failed = b.log.progress().borrow().failed.clone();
        assert!(failed.as_ref().is_some_and(|what| what.contains("a start goes on from the checkpoint")), "{failed:?}");
        let again = Instance::start(&disk, B);
        assert_eq!(again.outbox(), a.outbox());
    });
}
