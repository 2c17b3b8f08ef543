//! Several committers over one log in memory: who was overtaken tries again, and who was dispossessed records nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::*;
use crate::core::event::{Accepted, Dedupe, LanePurpose, Proof};
use crate::core::outbox::{FoldError, Owner};
use crate::core::ranges::Ranges;
use crate::core::types::{LaneKey, Millis, Qos, SendNo, Seq};
use crate::log::committer::{Appended, Committed, Ticket, decode_checkpoint, encode_checkpoint, recover};
use crate::log::memory_log::{Disk, MemoryLog};
use crate::log::{Checkpoint, Generation, LogReader, Space, StoreId};

pub(super) const LIMITS: Limits = Limits { max_size: u64::MAX, retention_ms: 0 };
pub(super) const A: InstanceId = InstanceId(0xa);
pub(super) const B: InstanceId = InstanceId(0xb);

/// An instance whose committer does nothing by itself: one that is not stepped is one that is stopped.
pub(super) struct Instance {
    pub(super) log: LogHandle,
    pub(super) stepped: Stepped,
    pub(super) metrics: Arc<Metrics>,
}

pub(super) type Waiting = Pin<Box<dyn Future<Output = Result<Committed<Appended>, CommitError>>>>;

/// A question under way.
pub(super) type Asking<T> = Pin<Box<dyn Future<Output = Result<Committed<T>, CommitError>>>>;

pub(super) fn look<T>(waiting: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Option<T> {
    match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

impl Instance {
    pub(super) fn start(disk: &Disk, id: InstanceId) -> Instance {
        let opened = MemoryLog::open_shared(disk).unwrap();
        let (outbox, metrics) = (recover(&opened).unwrap(), Arc::new(Metrics::new()));
        let (log, stepped) = stepped_shared(opened.log, outbox, LIMITS, Arc::clone(&metrics), id);
        Instance { log, stepped, metrics }
    }

    /// Hands something in, and leaves it there.
    pub(super) fn accept(&self, events: Vec<Event>) -> Waiting {
        let log = self.log.clone();
        let mut waiting: Waiting = Box::pin(async move { log.accept(events).await });
        assert!(look(&mut waiting).is_none());
        waiting
    }

    /// The answer to a question.
    pub(super) fn asked<T>(&mut self, ask: impl FnOnce(LogHandle) -> Asking<T>) -> T {
        let mut asking = ask(self.log.clone());
        assert!(look(&mut asking).is_none());
        while self.stepped.step() {}
        look(&mut asking).expect("the steps have answered").unwrap().into_inner()
    }

    pub(super) fn submit(&self, events: Vec<Event>) -> Ticket {
        let log = self.log.clone();
        let mut submitting: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move { log.submit(events).await });
        look(&mut submitting).expect("there is a place").unwrap()
    }

    pub(super) fn answer(&mut self, mut ticket: Ticket) -> Result<Appended, CommitError> {
        while self.stepped.step() {}
        let mut answer: Pin<Box<dyn Future<Output = _> + '_>> = Box::pin(ticket.answer());
        look(&mut answer).expect("the steps have answered").map(Committed::into_inner)
    }

    pub(super) fn record(&mut self, events: Vec<Event>) -> Result<Appended, CommitError> {
        let ticket = self.submit(events);
        self.answer(ticket)
    }

    pub(super) fn done(&mut self, mut waiting: Waiting) -> Result<Appended, CommitError> {
        while self.stepped.step() {}
        look(&mut waiting).expect("the steps have answered").map(Committed::into_inner)
    }

    pub(super) fn outbox(&self) -> &Outbox {
        self.stepped.outbox().expect("it is at work")
    }
}

pub(super) fn inside(test: impl FnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    test();
}

pub(super) fn lane() -> LaneKey {
    LaneKey { connection: "mqtt".into(), lane: 0 }
}

pub(super) fn accepted(number: u64, key: Option<u128>) -> Event {
    let dedupe = key.map(|key| Dedupe { key, body: number, line: 0, lines: 1, batch: false });
    let plain = Accepted::plain(lane(), "topic", Qos::ExactlyOnce, Millis(number));
    Event::Accepted(Arc::new(Accepted { payload: Bytes::from(format!("report {number}")), dedupe, ..plain }))
}

/// A report for a lane.
pub(super) fn bound_to(lane: LaneKey, number: u64) -> Event {
    Event::Accepted(Arc::new(Accepted::plain(lane, "topic", Qos::ExactlyOnce, Millis(number))))
}

impl LaneKey {
    pub(super) fn on(self, lane: u32) -> LaneKey {
        LaneKey { lane, ..self }
    }
}

pub(super) fn joined(instance: InstanceId) -> Event {
    Event::InstanceJoined { instance, name: instance.to_string(), at: Millis(0) }
}

pub(super) fn taken(instance: InstanceId, term: u64) -> Event {
    Event::LaneTaken { lane: lane(), instance, term, at: Millis(0) }
}

pub(super) fn released(send: u64) -> Event {
    Event::Released { lane: lane(), sends: vec![SendNo(send)] }
}

pub(super) fn delivered(send: u64) -> Event {
    Event::Delivered { lane: lane(), sends: Ranges::one(send), proof: Proof::PubComp, at: Millis(0) }
}

/// Two instances that have joined, a lane that the first one owns, and three reports on it.
pub(super) fn two(disk: &Disk) -> (Instance, Instance) {
    let (mut a, mut b) = (Instance::start(disk, A), Instance::start(disk, B));
    let connection = lane().connection;
    let lanes = Event::LanesChanged { connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) };
    a.record(vec![lanes, joined(A)]).unwrap();
    b.record(vec![joined(B)]).unwrap();
    a.record(vec![taken(A, 1)]).unwrap();
    for number in 0..3 {
        a.record(vec![accepted(number, None)]).unwrap();
    }
    b.stepped.follow();
    (a, b)
}

/// All instances have come to the same fold, and it is the one that a start comes to.
pub(super) fn agree(disk: &Disk, instances: [&mut Instance; 2]) {
    let fresh = recover(&MemoryLog::open_shared(disk).unwrap()).unwrap();
    for instance in instances {
        instance.stepped.follow();
        assert_eq!(*instance.outbox(), fresh);
    }
}

#[test]
fn an_owner_that_was_stopped_records_nothing_after_another_has_taken_its_lane() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        // The PUBREC of send 0 is durable and that of send 1 is on its way into the log when A is stopped, for longer than a lease.
        a.record(vec![released(0)]).unwrap();
        let (releasing, ended) = (a.submit(vec![released(1)]), a.submit(vec![delivered(0)]));
        b.record(vec![taken(B, 2)]).unwrap();
        let before = b.outbox().next();
        // It comes back, does not know, and does what it was about to do.
        assert_eq!(a.outbox().owners().of(&lane()), Owner { instance: Some(A), term: 1 });
        for ticket in [releasing, ended] {
            let refused = a.answer(ticket);
            assert!(matches!(refused, Err(CommitError::NotOwner(FoldError::NotOwner(_)))), "without a proof no PUBREL leaves: {refused:?}");
        }
        assert_eq!(a.outbox().owners().of(&lane()), Owner { instance: Some(B), term: 2 }, "it has found out");
        b.stepped.follow();
        assert_eq!(b.outbox().next(), before, "nothing of it is in the log");
        let known = b.outbox().lane(&lane()).unwrap();
        assert_eq!((known.released(), known.pending()), ([SendNo(0)].as_slice(), 3), "B goes on where the log says");
        // And what it tries later.
        assert!(matches!(a.record(vec![delivered(0)]), Err(CommitError::NotOwner(_))));
        b.record(vec![delivered(0)]).unwrap();
        assert!(matches!(a.accept_now(accepted(3, None)), Ok(Appended::New { .. })), "reports it takes as before");
        agree(&disk, [&mut a, &mut b]);
    });
}

impl Instance {
    pub(super) fn accept_now(&mut self, event: Event) -> Result<Appended, CommitError> {
        let waiting = self.accept(vec![event]);
        self.done(waiting)
    }
}

#[test]
fn of_two_that_take_a_lane_at_once_one_has_it() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        a.record(vec![Event::LaneLeft { lane: lane(), instance: A, term: 1, at: Millis(0) }]).unwrap();
        b.stepped.follow();
        let (first, second) = (a.submit(vec![taken(A, 2)]), b.submit(vec![taken(B, 2)]));
        assert!(b.answer(second).is_ok());
        let refused = a.answer(first);
        assert!(matches!(refused, Err(CommitError::ChangedMeanwhile(FoldError::NotTheTerm { known: 2, .. }))), "{refused:?}");
        assert_eq!(a.outbox().owners().of(&lane()), Owner { instance: Some(B), term: 2 });
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn of_two_that_start_on_a_copy_at_once_one_bumps_the_epochs() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        let bump = || vec![Event::EpochBumped { reason: "copied".into(), at: Millis(0) }];
        let (first, second) = (a.submit(bump()), b.submit(bump()));
        assert!(b.answer(second).is_ok());
        let refused = a.answer(first);
        assert!(matches!(refused, Err(CommitError::ChangedMeanwhile(FoldError::AlreadyBumped))), "{refused:?}");
        assert_eq!(a.outbox().lane(&lane()).unwrap().epoch, 1);
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn while_servers_are_silent_a_report_whose_turn_has_not_come_is_refused_and_never_stored_and_one_on_its_way_waits() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let disk = Disk::new(1 << 20);
    let (mut a, _b) = two(&disk);
    let (reached, silent) = std::sync::mpsc::channel();
    let (answer, answered) = std::sync::mpsc::channel::<()>();
    let mut slow = Instance::start_hindered(&disk, InstanceId(0xc), move || {
        let _ = reached.send(());
        let _ = answered.recv();
        Ok(())
    });
    let mut on_its_way = slow.accept(vec![accepted(10, None)]);
    let log = slow.log.clone();
    let stepping = std::thread::spawn(move || {
        while slow.stepped.step() {}
        slow
    });
    silent.recv().unwrap();
    let late = runtime.block_on(log.accept(vec![accepted(11, None)]));
    assert!(matches!(late, Err(CommitError::Overloaded)), "nobody knows how long it would take");
    assert!(look(&mut on_its_way).is_none(), "nobody can say what becomes of it");
    // They are back. What the late one's producer sends again would be there twice.
    drop(answer);
    let mut slow = stepping.join().unwrap();
    assert!(matches!(slow.done(on_its_way), Ok(Appended::New { .. })));
    assert_eq!(slow.outbox().lane(&lane()).unwrap().pending(), 4);
    agree(&disk, [&mut a, &mut slow]);
}

#[test]
fn what_is_overtaken_is_stored_behind_what_came_before_and_once() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        let waiting: Vec<Waiting> = (10..14).map(|number| a.accept(vec![accepted(number, None), accepted(number + 100, None)])).collect();
        b.accept_now(accepted(20, None)).unwrap();
        b.accept_now(accepted(21, None)).unwrap();
        let overtaken = a.metrics.tidings_log_overtaken_total.get();
        let next = b.outbox().next().0;
        for (number, waiting) in (0..).zip(waiting) {
            let Ok(Appended::New { first, last, .. }) = a.done(waiting) else { panic!("it is stored") };
            assert_eq!((first, last), (Seq(next + 2 * number), Seq(next + 2 * number + 1)), "a request is in one piece");
        }
        assert_eq!(a.metrics.tidings_log_overtaken_total.get(), overtaken + 1, "the batch goes as one");
        let page = a.log.page(Seq(next)).unwrap().unwrap();
        assert_eq!(page.get().sends, [(lane(), SendNo(5))], "the page's index counts what came before");
        assert_eq!(a.outbox().lane(&lane()).unwrap().pending(), 3 + 2 + 8);
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn a_request_that_another_instance_has_accepted_is_known() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        // The producer has asked A, lost patience, and asks B.
        let (first, conflict) = (a.accept(vec![accepted(7, Some(7))]), a.accept(vec![accepted(9, Some(8))]));
        let Ok(Appended::New { first: at, .. }) = b.accept_now(accepted(7, Some(7))) else { panic!("it is new") };
        b.accept_now(accepted(8, Some(8))).unwrap();
        let known = a.done(first);
        assert!(matches!(&known, Ok(Appended::Known(request)) if request.first == at), "{known:?}");
        assert!(matches!(a.done(conflict), Err(CommitError::Conflict)));
        assert_eq!(a.outbox().lane(&lane()).unwrap().pending(), 3 + 2);
        agree(&disk, [&mut a, &mut b]);
    });
}

#[test]
fn what_others_append_is_seen_by_who_has_nothing_to_do() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, mut b) = two(&disk);
        let Ok(Appended::New { last, .. }) = a.accept_now(accepted(9, None)) else { panic!("it is new") };
        assert!(b.log.progress().borrow().committed < last);
        b.stepped.follow();
        assert_eq!(b.log.progress().borrow().committed, last);
        assert_eq!(b.metrics.tidings_log_lag_events.get(), 1);
        b.stepped.follow();
        assert_eq!(b.metrics.tidings_log_lag_events.get(), 0);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn committers_with_threads_of_their_own_share_a_log() {
    let disk = Disk::new(64 << 20);
    let mut logs = Vec::new();
    for id in [A, B] {
        let opened = MemoryLog::open_shared(&disk).unwrap();
        let outbox = recover(&opened).unwrap();
        logs.push(start_shared(opened.log, outbox, LIMITS, Arc::new(Metrics::new()), id).unwrap());
        logs.last().unwrap().record(vec![joined(id)]).await.unwrap();
    }
    let connection = lane().connection;
    logs[0].record(vec![Event::LanesChanged { connection, first: 0, count: 1, purpose: LanePurpose::Fresh, at: Millis(0) }]).await.unwrap();
    let mut second = logs[1].progress();
    second.wait_for(|progress| !progress.connections.is_empty()).await.unwrap();
    let tasks: Vec<_> = (0..200u64)
        .map(|number| {
            let log = logs[number as usize % 2].clone();
            tokio::spawn(async move { log.accept(vec![accepted(number, Some(u128::from(number)))]).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let all = recover(&MemoryLog::open_shared(&disk).unwrap()).unwrap();
    assert_eq!(all.lane(&lane()).unwrap().pending(), 200);
    for log in logs {
        let mut progress = log.progress();
        progress.wait_for(|progress| progress.committed.next() == all.next()).await.unwrap();
        log.stop().await.unwrap();
    }
}

#[test]
fn owners_outlive_a_checkpoint_and_a_log_without_any_has_none_in_its() {
    inside(|| {
        let (a, _b) = two(&Disk::new(1 << 20));
        let outbox = a.outbox();
        assert_eq!(outbox.owners().of(&lane()), Owner { instance: Some(A), term: 1 });
        let checkpoint = |outbox: &Outbox| Checkpoint { next: outbox.next(), bytes: encode_checkpoint(outbox) };
        let again = decode_checkpoint(&checkpoint(outbox)).unwrap();
        assert_eq!(again, *outbox);
        let plain = outbox.clone().with_owners(crate::core::outbox::Owners::default());
        assert_eq!(decode_checkpoint(&checkpoint(&plain)).unwrap(), plain);
        assert!(checkpoint(&plain).bytes.len() < checkpoint(outbox).bytes.len());
    });
}

/// A log with something before each append: another instance that is first, or servers that are silent.
struct Hindered {
    log: Box<dyn EventLog>,
    hinder: Box<dyn FnMut() -> Result<(), AppendError> + Send>,
}

impl EventLog for Hindered {
    fn store_id(&self) -> StoreId {
        self.log.store_id()
    }

    fn next_seq(&self) -> Seq {
        self.log.next_seq()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError> {
        (self.hinder)()?;
        self.log.append(events, next_send)
    }

    fn is_generation_full(&self) -> bool {
        false
    }

    fn begin_generation(&mut self, _: &[u8]) -> Result<(), AppendError> {
        Err(AppendError::Overtaken)
    }

    fn generations(&self) -> Vec<Generation> {
        self.log.generations()
    }

    fn drop_oldest_generation(&mut self) -> Result<(), AppendError> {
        Ok(())
    }

    fn space(&self) -> Space {
        self.log.space()
    }

    fn tick(&mut self) -> Result<(), AppendError> {
        Ok(())
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.log.reader()
    }

    fn adopt_copy(&mut self) -> Result<(), AppendError> {
        Ok(())
    }

    fn close(self: Box<Self>, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.log.close(checkpoint)
    }
}

impl Instance {
    fn start_hindered(disk: &Disk, id: InstanceId, hinder: impl FnMut() -> Result<(), AppendError> + Send + 'static) -> Instance {
        let opened = MemoryLog::open_shared(disk).unwrap();
        let (outbox, metrics) = (recover(&opened).unwrap(), Arc::new(Metrics::new()));
        let log = Box::new(Hindered { log: opened.log, hinder: Box::new(hinder) });
        let (log, stepped) = stepped_shared(log, outbox, LIMITS, Arc::clone(&metrics), id);
        Instance { log, stepped, metrics }
    }
}

#[test]
fn who_is_overtaken_for_ever_says_so_and_holds_nothing_in_its_outbox() {
    inside(|| {
        let disk = Disk::new(1 << 20);
        let (mut a, _b) = two(&disk);
        let mut unlucky = Instance::start_hindered(&disk, B, || Err(AppendError::Overtaken));
        let outbox = unlucky.outbox().clone();
        let (first, second) = (unlucky.accept(vec![accepted(30, None)]), unlucky.accept(vec![accepted(31, None)]));
        assert!(matches!(unlucky.done(first), Err(CommitError::Overloaded)));
        assert!(matches!(unlucky.done(second), Err(CommitError::Overloaded)));
        assert_eq!(*unlucky.outbox(), outbox);
        assert_eq!(unlucky.metrics.tidings_log_overtaken_total.get(), u64::from(TRIES));
        assert!(unlucky.log.progress().borrow().failed.is_none(), "it goes on trying with what comes next");
        a.accept_now(accepted(32, None)).unwrap();
    });
}

#[test]
fn who_appends_leaves_the_others_a_turn() {
    let took = Duration::from_millis(3);
    for in_a_row in 1..20 {
        assert_eq!(turn_of_others(0, false, in_a_row, took), None, "there is nobody else");
        assert_eq!(turn_of_others(1, true, in_a_row, took), Some(2 * took), "they append as well");
        assert_eq!(turn_of_others(4, true, in_a_row, took), Some(4 * took));
    }
    // Who never had a turn has not been heard either.
    let turns: Vec<bool> = (1..=IN_A_ROW).map(|in_a_row| turn_of_others(1, false, in_a_row, took).is_some()).collect();
    assert_eq!(turns.iter().position(|is_theirs| *is_theirs), Some(IN_A_ROW as usize - 1));
    assert_eq!(turn_of_others(9, true, 1, Duration::from_secs(1)), Some(LONGEST_WAIT), "servers that are slow don't stop everything");
}
