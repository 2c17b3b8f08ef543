//! Tests of commits that overlap, over a log that takes as long as the test says.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::core::event::{Accepted, Dedupe, Event, LanePurpose};
use crate::core::types::{ConnectionName, LaneKey, Millis, Qos, SendNo, Seq};
use crate::log::committer::{Appended, CommitError, Limits, LogHandle, recover, start};
use crate::log::memory_log::{Disk, MemoryLog};
use crate::log::{AppendError, Begun, EventLog, Generation, LogReader, Space, StoreId};
use crate::metrics::Metrics;

const LIMITS: Limits = Limits { max_size: u64::MAX, retention_ms: u64::MAX };

/// A log in memory, on which every append is under way until it is let through.
struct Slow {
    log: Box<dyn EventLog>,
    gate: Arc<Gate>,
    under_way: Option<UnderWay>,
    prepared: Vec<Event>,
}

struct UnderWay {
    events: Vec<Event>,
    sends: Vec<(LaneKey, SendNo)>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<Disposed>,
    changed: Condvar,
}

#[derive(Default)]
struct Disposed {
    /// So many appends have begun.
    begun: usize,
    /// So many have been let through.
    through: usize,
    /// All are let through as they come.
    is_open: bool,
    /// Events that were prepared.
    prepared: usize,
    is_broken: bool,
    done: Option<Box<dyn FnOnce() + Send>>,
}

impl Gate {
    fn has_come_to(&self, begun: usize, prepared: usize) -> bool {
        let state = self.state.lock().unwrap();
        state.begun >= begun && state.prepared >= prepared
    }

    /// Waits until so many appends have begun, and so many events are prepared in all.
    async fn wait_for(&self, begun: usize, prepared: usize) {
        let met = async {
            while !self.has_come_to(begun, prepared) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), met).await.expect("it begins, and takes in what waits");
    }

    fn let_through(&self, is_broken: bool) {
        let mut state = self.state.lock().unwrap();
        state.through += 1;
        state.is_broken |= is_broken;
        let done = state.done.take().expect("one is under way");
        drop(state);
        self.changed.notify_all();
        done();
    }
}

impl EventLog for Slow {
    fn store_id(&self) -> StoreId {
        self.log.store_id()
    }

    fn next_seq(&self) -> Seq {
        self.log.next_seq()
    }

    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError> {
        assert!(self.under_way.is_none(), "one at a time");
        self.prepared.clear();
        self.log.append(events, next_send)
    }

    fn prepare(&mut self, events: &[Event], _: &dyn Fn(&LaneKey) -> SendNo) {
        assert!(self.under_way.is_some(), "there is time for it");
        self.prepared.extend_from_slice(events);
        self.gate.state.lock().unwrap().prepared += events.len();
    }

    fn begin_append(
        &mut self,
        events: &[Event],
        next_send: &dyn Fn(&LaneKey) -> SendNo,
        done: Box<dyn FnOnce() + Send>,
    ) -> Result<Begun, AppendError> {
        assert!(self.under_way.is_none(), "one at a time");
        assert!(events.starts_with(&self.prepared), "what was prepared comes first");
        self.prepared.clear();
        let lanes: Vec<LaneKey> = (0..3).map(lane).collect();
        let sends = lanes.into_iter().map(|lane| (lane.clone(), next_send(&lane))).collect();
        self.under_way = Some(UnderWay { events: events.to_vec(), sends });
        let mut state = self.gate.state.lock().unwrap();
        state.begun += 1;
        match state.is_open {
            true => {
                state.through += 1;
                done();
            }
            false => state.done = Some(done),
        }
        Ok(Begun::UnderWay)
    }

    fn finish_append(&mut self) -> Result<Seq, AppendError> {
        let UnderWay { events, sends } = self.under_way.take().expect("one is under way");
        let state = self.gate.state.lock().unwrap();
        let state = self.gate.changed.wait_while(state, |state| state.through < state.begun).unwrap();
        match state.is_broken {
            true => Err(AppendError::Io("the disk is broken".into())),
            false => self.log.append(&events, &|lane| sends.iter().find(|(key, _)| key == lane).expect("it was asked for").1),
        }
    }

    fn is_generation_full(&self) -> bool {
        // A little is enough, so that what is on its way fills it up.
        let generations = self.log.generations();
        self.under_way.is_some() && self.log.next_seq().0.is_multiple_of(7) || generations.last().is_some_and(|newest| newest.bytes > 2_000)
    }

    fn begin_generation(&mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        assert!(self.under_way.is_none() && self.prepared.is_empty(), "a generation begins where the log ends");
        self.log.begin_generation(checkpoint)
    }

    fn generations(&self) -> Vec<Generation> {
        self.log.generations()
    }

    fn drop_oldest_generation(&mut self) -> Result<(), AppendError> {
        self.log.drop_oldest_generation()
    }

    fn space(&self) -> Space {
        self.log.space()
    }

    fn tick(&mut self) -> Result<(), AppendError> {
        assert!(self.under_way.is_none(), "the tick sees all that is in the outbox");
        self.log.tick()
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.log.reader()
    }

    fn adopt_copy(&mut self) -> Result<(), AppendError> {
        self.log.adopt_copy()
    }

    fn close(self: Box<Self>, checkpoint: &[u8]) -> Result<(), AppendError> {
        assert!(self.under_way.is_none() && self.prepared.is_empty(), "nothing is left behind");
        self.log.close(checkpoint)
    }
}

fn lane(number: u32) -> LaneKey {
    LaneKey { connection: ConnectionName::from("mqtt"), lane: number }
}

fn report(number: u64, dedupe: Option<Dedupe>) -> Vec<Event> {
    let lane = lane(u32::try_from(number % 3).unwrap());
    let plain = Accepted::plain(lane, format!("topic/{}", number % 3), Qos::AtLeastOnce, Millis(number));
    vec![Event::Accepted(Arc::new(Accepted { payload: Bytes::from(format!("report {number}")), dedupe, ..plain }))]
}

/// A committer over a log on `disk`, open for its first commit, which makes the lanes; closed after that.
async fn with_lanes(disk: &Disk) -> (LogHandle, Arc<Gate>) {
    let opened = MemoryLog::open(disk).unwrap();
    let outbox = recover(&opened).unwrap();
    let gate = Arc::new(Gate::default());
    gate.state.lock().unwrap().is_open = true;
    let slow = Slow { log: opened.log, gate: Arc::clone(&gate), under_way: None, prepared: Vec::new() };
    let log = start(Box::new(slow), outbox, LIMITS, Arc::new(Metrics::new())).unwrap();
    let connection = lane(0).connection;
    log.record(vec![Event::LanesChanged { connection, first: 0, count: 3, purpose: LanePurpose::Fresh, at: Millis(0) }]).await.unwrap();
    gate.state.lock().unwrap().is_open = false;
    (log, gate)
}

/// Hands something in on a task of its own.
fn hand_in(log: &LogHandle, events: Vec<Event>) -> tokio::task::JoinHandle<Result<Appended, CommitError>> {
    let log = log.clone();
    tokio::spawn(async move { log.accept(events).await.map(|done| done.into_inner()) })
}

#[tokio::test]
async fn while_one_commit_is_in_flight_the_next_forms_and_nothing_is_answered_or_shown_before_it_is_durable() {
    let (log, gate) = with_lanes(&Disk::new(1 << 20)).await;
    let progress = log.progress();
    let pending = || progress.borrow().connections.values().map(|books| books.totals.pending).sum::<u64>();
    let first = hand_in(&log, report(1, None));
    gate.wait_for(2, 0).await;
    let behind = [hand_in(&log, report(2, None)), hand_in(&log, report(3, None))];
    gate.wait_for(2, 2).await;
    assert!(!first.is_finished() && !behind[0].is_finished() && !behind[1].is_finished());
    assert_eq!((progress.borrow().committed, pending()), (Seq(1), 0));
    assert!(log.busy_for().is_some(), "the watchdog sees that it waits for the disk");

    gate.let_through(false);
    assert_eq!(first.await.unwrap().unwrap(), Appended::New { first: Seq(2), last: Seq(2), resent: vec![] });
    assert_eq!((progress.borrow().committed, pending()), (Seq(2), 1), "as of the commit, not as of what forms behind it");
    gate.wait_for(3, 2).await;
    assert!(!behind[0].is_finished() && !behind[1].is_finished());
    assert!(log.page(Seq(3)).unwrap().is_none());

    // Whoever asks is told of what is durable, and of all that was handed in before.
    let asked = tokio::spawn({
        let log = log.clone();
        async move { log.ask(|outbox| outbox.next()).await.unwrap().into_inner() }
    });
    tokio::task::yield_now().await;
    assert!(!asked.is_finished());
    gate.let_through(false);
    for task in behind {
        assert!(matches!(task.await.unwrap(), Ok(Appended::New { .. })));
    }
    assert_eq!(asked.await.unwrap(), Seq(5));
    assert_eq!((progress.borrow().committed, pending()), (Seq(4), 3));
}

#[tokio::test]
async fn what_forms_behind_a_commit_that_fails_is_not_accepted_nor_what_is_known_from_it() {
    let disk = Disk::new(1 << 20);
    let (log, gate) = with_lanes(&disk).await;
    let key = Some(Dedupe { key: 7, body: 1, line: 0, lines: 1, batch: false });
    let first = hand_in(&log, report(1, key));
    gate.wait_for(2, 0).await;
    // The same request once more, and another one.
    let behind = [hand_in(&log, report(1, key)), hand_in(&log, report(2, None))];
    gate.wait_for(2, 1).await;
    gate.let_through(true);
    assert!(matches!(first.await.unwrap(), Err(CommitError::Store(_))));
    for task in behind {
        let answer = task.await.unwrap();
        assert!(matches!(answer, Err(CommitError::Stopped | CommitError::Store(_))), "{answer:?}");
    }
    assert!(log.progress().borrow().failed.is_some());
    assert!(matches!(log.accept(report(3, None)).await, Err(CommitError::Stopped)));
    assert_eq!(recover(&MemoryLog::open(&disk.as_killed()).unwrap()).unwrap().next(), Seq(2));
}

#[tokio::test]
async fn only_what_is_known_behind_a_commit_that_fails_is_not_accepted_either() {
    let (log, gate) = with_lanes(&Disk::new(1 << 20)).await;
    let key = Some(Dedupe { key: 7, body: 1, line: 0, lines: 1, batch: false });
    let first = hand_in(&log, report(1, key));
    gate.wait_for(2, 0).await;
    let again = hand_in(&log, report(1, key));
    // It forms a commit without an event: nothing tells of it but that the channel is empty again.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let taken = async {
        while log.queue().requests > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), taken).await.expect("it is taken");
    gate.let_through(true);
    assert!(first.await.unwrap().is_err());
    let answer = again.await.unwrap();
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test]
async fn generations_and_restarts_come_out_whole_however_commits_overlap() {
    let disk = Disk::new(1 << 20);
    let (log, gate) = with_lanes(&disk).await;
    gate.state.lock().unwrap().is_open = true;
    let mut number = 0;
    for round in 0..40 {
        let tasks: Vec<_> = (0..1 + round % 9)
            .map(|_| {
                number += 1;
                hand_in(&log, report(number, None))
            })
            .collect();
        for task in tasks {
            assert!(matches!(task.await.unwrap(), Ok(Appended::New { .. })));
        }
        let killed = recover(&MemoryLog::open(&disk.as_killed()).unwrap()).unwrap();
        assert_eq!(killed.connections().values().map(|connection| connection.totals.pending).sum::<u64>(), number, "round {round}");
    }
    assert!(disk.generations() > 3);
    log.stop().await.unwrap();
    let outbox = recover(&MemoryLog::open(&disk).unwrap()).unwrap();
    assert_eq!(outbox.connections().values().map(|connection| connection.totals.pending).sum::<u64>(), number);
}
