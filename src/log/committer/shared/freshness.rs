//! What others have appended and this instance has not read yet: nothing is refused for lack of it, and no question answered without it.

use super::tests::*;
use super::*;
use crate::core::event::{DeadReason, DeliveryRef, LanePurpose};
use crate::core::outbox::{FoldError, Outbox};
use crate::core::types::{Millis, SendNo};
use crate::log::committer::Appended;
use crate::log::memory_log::Disk;

/// The first report, under its last number.
fn first() -> DeliveryRef {
    // Lanes, A, B and a taking come before it.
    DeliveryRef { lane: lane(), send: SendNo(0), id: Seq(5), located: Seq(5) }
}

fn dead() -> Event {
    Event::DeadLettered {
        delivery: first(),
        reason: DeadReason { code: "refused".into(), broker_code: None, message: String::new() },
        attempts: 1,
        at: Millis(0),
    }
}

fn requeued() -> Event {
    Event::Requeued { delivery: first(), by: "me".into(), at: Millis(0) }
}

fn new_lanes(first: u32) -> Event {
    Event::LanesChanged { connection: lane().connection, first, count: 2, purpose: LanePurpose::Fresh, at: Millis(0) }
}

fn pending(outbox: &Outbox) -> u64 {
    outbox.lane(&lane()).unwrap().pending()
}

#[test]
fn a_question_about_now_is_answered_with_what_others_have_appended() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        a.accept_now(accepted(9, None)).unwrap();
        assert_eq!(b.asked(|log| Box::pin(async move { log.ask(pending).await })), 3, "b has not looked");
        assert_eq!(b.asked(|log| Box::pin(async move { log.ask_latest(pending).await })), 4);
        a.accept_now(accepted(10, None)).unwrap();
        assert_eq!(b.asked(|log| Box::pin(async move { log.ask_in_order(pending).await })), 5, "a lane starts with what is so now");
    });
}

#[test]
fn what_fits_the_log_is_not_refused_because_it_was_not_read_yet() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        a.record(vec![dead()]).unwrap();
        // An operator, who has seen the dead letter on A, asks B.
        assert_eq!(b.outbox().lane(&lane()).unwrap().dead().len(), 0);
        b.record(vec![requeued()]).unwrap();
        // And of two who do the same one is told that the other was first.
        let late = a.record(vec![requeued()]);
        assert!(matches!(late, Err(CommitError::ChangedMeanwhile(FoldError::NotPending { .. }))), "{late:?}");
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn what_has_to_wait_for_a_look_keeps_its_place() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        a.record(vec![dead()]).unwrap();
        let (before, doubtful, after) =
            (b.accept(vec![accepted(10, None)]), b.submit(vec![requeued()]), b.accept(vec![accepted(11, None)]));
        let Ok(Appended::New { first: before, .. }) = b.done(before) else { panic!("it is stored") };
        let Ok(Appended::New { first: doubtful, .. }) = b.answer(doubtful) else { panic!("it is stored") };
        let Ok(Appended::New { first: after, .. }) = b.done(after) else { panic!("it is stored") };
        assert!(before < doubtful && doubtful < after, "{before} {doubtful} {after}");
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn a_report_for_lanes_that_take_none_any_more_is_refused_everywhere() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        a.record(vec![new_lanes(1)]).unwrap();
        // B has not heard of it, and has bound a report to the lane that it knows.
        let refused = b.accept_now(accepted(9, None));
        assert!(matches!(&refused, Err(CommitError::LanesChanged(refused)) if *refused == lane()), "{refused:?}");
        assert_eq!(pending(b.outbox()), 3, "nothing of it is in the log");
        // Overtaken on its way, too.
        let bound = lane().on(1);
        let waiting = b.accept(vec![bound_to(bound.clone(), 10)]);
        a.record(vec![new_lanes(3)]).unwrap();
        assert!(matches!(b.done(waiting), Err(CommitError::LanesChanged(lane)) if lane == bound));
        b.accept_now(bound_to(lane().on(4), 10)).unwrap();
        // What the old ones hold is delivered by them.
        a.record(vec![delivered(0)]).unwrap();
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn lanes_that_two_make_at_once_are_made_once() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        let (first, second) = (a.submit(vec![new_lanes(1)]), b.submit(vec![new_lanes(1)]));
        a.answer(first).unwrap();
        let refused = b.answer(second);
        assert!(matches!(refused, Err(CommitError::ChangedMeanwhile(FoldError::LaneExists(_)))), "{refused:?}");
        assert_eq!(b.outbox().connections()[&lane().connection].newest_set(LanePurpose::Fresh).unwrap().first, 1, "it knows them now");
    });
}
