//! Logs made by chance: what is listed has to be what a look at every event would find.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::answers::Story;
use super::budget::Budget;
use super::scan::{Wanted, list};
use super::seek::{Copies, Limits, seek};
use super::story::{Mark, NoStory, find, tell};
use crate::core::event::{Accepted, DeadReason, DeliveryRef, Event, LanePurpose, Proof};
use crate::core::ranges::Ranges;
use crate::core::search::{Filter, Snapshot, State, TopicFilter};
use crate::core::types::{LaneKey, Millis, Qos, SendNo, Seq};
use crate::log::committer::{self, LogHandle, recover};
use crate::log::memory_log::{Disk, MemoryLog};
use crate::metrics::Metrics;

const CONNECTIONS: [&str; 2] = ["mqtt", "other"];
const LANES: u32 = 2;
const TENANTS: [&str; 3] = ["acme", "umbrella", ""];
const TOPICS: [&str; 4] = ["a/1", "a/2", "b/1", "a"];

/// What the test did, delivery by delivery.
#[derive(Debug, Clone)]
struct Known {
    id: Seq,
    lane: LaneKey,
    send: SendNo,
    accepted: Accepted,
    state: State,
    /// It was refused or requeued, and has no number that is not spent.
    is_waiting: bool,
    /// The names of what happened.
    story: Vec<&'static str>,
}

impl Known {
    fn reference(&self) -> DeliveryRef {
        DeliveryRef { lane: self.lane.clone(), send: self.send, id: self.id, located: self.id }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Accept { tenant: usize, topic: usize, connection: usize, lane: u32, payload: usize },
    Deliver(usize),
    Refuse(usize),
    Resend(usize),
    Bury(usize),
    Requeue(usize),
    Discard(usize),
    Expire(usize),
    Commit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let accept = (0..3usize, 0..4usize, 0..2usize, 0..LANES, prop_oneof![4 => 0..200usize, 1 => 0..90_000usize])
        .prop_map(|(tenant, topic, connection, lane, payload)| Step::Accept { tenant, topic, connection, lane, payload });
    let any = any::<prop::sample::Index>().prop_map(|index| index.index(1_000));
    let step = prop_oneof![
        6 => accept,
        3 => any.clone().prop_map(Step::Deliver),
        2 => any.clone().prop_map(Step::Refuse),
        2 => any.clone().prop_map(Step::Resend),
        2 => any.clone().prop_map(Step::Bury),
        1 => any.clone().prop_map(Step::Requeue),
        1 => any.clone().prop_map(Step::Discard),
        1 => any.prop_map(Step::Expire),
        3 => Just(Step::Commit),
    ];
    prop::collection::vec(step, 1..120)
}

fn open(disk: &Disk) -> LogHandle {
    let opened = MemoryLog::open(disk).unwrap();
    let outbox = recover(&opened).unwrap();
    let limits = committer::Limits { max_size: u64::MAX, retention_ms: u64::MAX };
    committer::start(opened.log, outbox, limits, Arc::new(Metrics::new())).unwrap()
}

/// Does it, and says what became of everything.
async fn play(log: &LogHandle, steps: &[Step]) -> Vec<Known> {
    let mut known: Vec<Known> = Vec::new();
    let mut sends: BTreeMap<LaneKey, SendNo> = BTreeMap::new();
    let mut events = Vec::new();
    let mut next = Seq(1);
    for connection in CONNECTIONS {
        let purpose = LanePurpose::Fresh;
        events.push(Event::LanesChanged { connection: connection.into(), first: 0, count: LANES, purpose, at: Millis(0) });
        next = next.next();
    }
    let mut take = |lane: &LaneKey| {
        let send = sends.entry(lane.clone()).or_default();
        let taken = *send;
        *send = send.next();
        taken
    };
    for (number, step) in steps.iter().enumerate() {
        let at = Millis(1_000 + number as u64);
        let chosen = |index: &usize, fits: &dyn Fn(&Known) -> bool| {
            let fitting: Vec<usize> = (0..known.len()).filter(|at| fits(&known[*at])).collect();
            (!fitting.is_empty()).then(|| fitting[index % fitting.len()])
        };
        let is_sent = |known: &Known| known.state == State::Pending && !known.is_waiting;
        let is_pending = |known: &Known| known.state == State::Pending;
        let is_dead = |known: &Known| known.state == State::Dead;
        let event = match step {
            Step::Commit => {
                commit(log, std::mem::take(&mut events)).await;
                continue;
            }
            Step::Accept { tenant, topic, connection, lane, payload } => {
                let lane = LaneKey { connection: CONNECTIONS[*connection].into(), lane: *lane };
                let accepted = Accepted {
                    tenant: TENANTS[*tenant].into(),
                    change: (number % 5).to_string(),
                    payload: Bytes::from(vec![b'x'; *payload]),
                    ..Accepted::plain(lane.clone(), TOPICS[*topic], Qos::ExactlyOnce, at)
                };
                let send = take(&lane);
                let (state, story) = (State::Pending, vec!["accepted"]);
                known.push(Known { id: next, lane, send, accepted: accepted.clone(), state, is_waiting: false, story });
                Some(Event::Accepted(Arc::new(accepted)))
            }
            Step::Deliver(index) => chosen(index, &is_sent).map(|at_index| {
                let one = &mut known[at_index];
                (one.state, _) = (State::Delivered, one.story.push("delivered"));
                Event::Delivered { lane: one.lane.clone(), sends: Ranges::one(one.send.0), proof: Proof::PubComp, at }
            }),
            Step::Expire(index) => chosen(index, &is_sent).map(|at_index| {
                let one = &mut known[at_index];
                (one.state, _) = (State::Expired, one.story.push("expired"));
                Event::Expired { lane: one.lane.clone(), sends: Ranges::one(one.send.0), at }
            }),
            Step::Refuse(index) => chosen(index, &is_sent).map(|at_index| {
                let one = &mut known[at_index];
                (one.is_waiting, _) = (true, one.story.push("refused"));
                Event::Refused { delivery: one.reference(), code: 0x80, attempts: 1, retry_at: at, sent_through: one.send, at }
            }),
            Step::Resend(index) => chosen(index, &|one| is_pending(one) && one.is_waiting).map(|at_index| {
                let one = &mut known[at_index];
                let delivery = one.reference();
                (one.is_waiting, one.send, _) = (false, take(&one.lane), one.story.push("sent_again"));
                Event::Resent { delivery, at }
            }),
            Step::Bury(index) => chosen(index, &is_pending).map(|at_index| {
                let one = &mut known[at_index];
                (one.state, one.is_waiting, _) = (State::Dead, false, one.story.push("dead"));
                let reason = DeadReason { code: "refused".into(), broker_code: Some(0x90), message: format!("why {}", one.id) };
                Event::DeadLettered { delivery: one.reference(), reason, attempts: 2, at }
            }),
            Step::Requeue(index) => chosen(index, &is_dead).map(|at_index| {
                let one = &mut known[at_index];
                (one.state, one.is_waiting, _) = (State::Pending, true, one.story.push("requeued"));
                Event::Requeued { delivery: one.reference(), by: "ops".into(), at }
            }),
            Step::Discard(index) => chosen(index, &|one| is_dead(one) || is_pending(one)).map(|at_index| {
                let one = &mut known[at_index];
                let dead = one.state == State::Dead;
                (one.state, _) = (State::Discarded, one.story.push("discarded"));
                let (by, reason) = ("ops".into(), "test".into());
                Event::Discarded { lane: one.lane.clone(), sends: Ranges::one(one.send.0), dead, by, reason, at }
            }),
        };
        if let Some(event) = event {
            events.push(event);
            next = next.next();
        }
    }
    commit(log, events).await;
    known
}

/// Hands events in together, as different requests: each may rest on the one before.
async fn commit(log: &LogHandle, events: Vec<Event>) {
    let mut tickets = Vec::new();
    for event in events {
        tickets.push(log.submit(vec![event]).await.unwrap());
    }
    for ticket in &mut tickets {
        ticket.answer().await.unwrap();
    }
}

fn filters() -> Vec<Filter> {
    let topic = |text: &str| TopicFilter::parse(text).ok();
    vec![
        Filter::default(),
        Filter { tenant: Some("acme".into()), ..Filter::default() },
        Filter { tenant: Some(String::new()), topic: topic("a/#"), ..Filter::default() },
        Filter { topic: topic("b/1"), ..Filter::default() },
        Filter { topic: topic("+/1"), connection: Some("other".into()), ..Filter::default() },
        Filter { change: Some("3".into()), since: Some(Millis(1_020)), ..Filter::default() },
        Filter { until: Some(Millis(1_040)), ..Filter::default() },
        Filter { tenant: Some("nobody".into()), ..Filter::default() },
    ]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn snapshot(log: &LogHandle) -> Snapshot {
    log.ask(|outbox| Snapshot::of(outbox, None)).await.unwrap().into_inner()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_list_is_what_a_look_at_every_event_would_find(steps in steps(), limit in 1..8usize, glimpses in 2..30u32) {
        runtime().block_on(async {
            // Generations of a few reports.
            let disk = Disk::new(2_000);
            let log = open(&disk);
            let known = play(&log, &steps).await;
            let snapshot = snapshot(&log).await;
            for filter in filters() {
                for state in State::ALL.into_iter().map(Some).chain([None]) {
                    let fits = |one: &&Known| filter.matches(&one.accepted) && state.is_none_or(|state| state == one.state);
                    let expected: Vec<(String, State)> = known.iter().rev().filter(fits).map(|one| (one.id.to_string(), one.state)).collect();
                    let (mut found, mut before, mut requests) = (Vec::new(), None, 0);
                    loop {
                        let wanted = Wanted { filter: filter.clone(), state, limit, before };
                        let page = list(&log, &snapshot, &wanted, Budget::of(glimpses, glimpses)).unwrap();
                        prop_assert!(page.rows.len() <= limit);
                        for row in &page.rows {
                            let is_named = row.dead.as_ref().is_some_and(|dead| dead.message == format!("why {}", row.id));
                            prop_assert_eq!(is_named, row.state == State::Dead, "{:?}", row);
                        }
                        found.extend(page.rows.into_iter().map(|row| (row.id, row.state)));
                        before = page.next;
                        requests += 1;
                        prop_assert!(requests < 2_000, "paging goes on");
                        if before.is_none() {
                            break;
                        }
                    }
                    prop_assert_eq!(&found, &expected, "{:?} {:?}", filter, state);
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn a_story_is_what_happened_however_many_requests_it_takes(steps in steps(), glimpses in 2..9u32) {
        runtime().block_on(async {
            let disk = Disk::new(2_000);
            let log = open(&disk);
            let known = play(&log, &steps).await;
            let snapshot = snapshot(&log).await;
            for one in &known {
                let (mut events, mut from) = (Vec::new(), None);
                let state = loop {
                    let story = tell(&log, &snapshot, one.id, from, Budget::of(glimpses, 100)).unwrap();
                    events.extend(story.history.into_iter().map(|chapter| chapter.event));
                    match story.next_from {
                        Some(next) => from = Some(next.parse::<Mark>().unwrap()),
                        None => break story.row.state,
                    }
                };
                prop_assert_eq!(state, one.state);
                prop_assert_eq!(&events, &one.story, "{:?}", one.id);
            }
            let no_delivery = tell(&log, &snapshot, Seq(1), None, Budget::of(9, 9)).unwrap_err();
            prop_assert_eq!(no_delivery, NoStory::Unknown(Seq(1)));
            prop_assert_eq!(tell(&log, &snapshot, snapshot.next, None, Budget::of(9, 9)).unwrap_err(), NoStory::Unknown(snapshot.next));
            Ok(())
        })?;
    }
}

/// What is left of a generation is carried forward before it is deleted; the rest is gone.
#[test]
fn what_was_carried_forward_is_listed_once_and_shown_and_what_is_past_its_retention_is_said_to_be() {
    runtime().block_on(async {
        let disk = Disk::new(4 << 10);
        let opened = MemoryLog::open(&disk).unwrap();
        let outbox = recover(&opened).unwrap();
        let limits = committer::Limits { max_size: u64::MAX, retention_ms: 0 };
        let log = committer::start(opened.log, outbox, limits, Arc::new(Metrics::new())).unwrap();
        let lane = LaneKey { connection: "mqtt".into(), lane: 0 };
        let purpose = LanePurpose::Fresh;
        log.record(vec![Event::LanesChanged { connection: "mqtt".into(), first: 0, count: 1, purpose, at: Millis(0) }]).await.unwrap();
        for number in 0..300 {
            let accepted = Accepted::plain(lane.clone(), format!("t/{number}"), Qos::AtLeastOnce, Millis(number));
            log.accept(vec![Event::Accepted(Arc::new(accepted))]).await.unwrap();
        }
        // All but the first three are done; of these one waits, and one is dead.
        let reference = |send: u64| DeliveryRef { lane: lane.clone(), send: SendNo(send), id: Seq(send + 2), located: Seq(send + 2) };
        let (sends, proof) = (Ranges(vec![(3, 299)]), Proof::PubAck);
        let reason = DeadReason { code: "refused".into(), broker_code: None, message: "no".into() };
        log.record(vec![
            Event::Delivered { lane: lane.clone(), sends, proof, at: Millis(1) },
            Event::Refused { delivery: reference(0), code: 0x80, attempts: 1, retry_at: Millis(9), sent_through: SendNo(0), at: Millis(2) },
            Event::DeadLettered { delivery: reference(1), reason, attempts: 3, at: Millis(3) },
        ])
        .await
        .unwrap();
        let dropped = async {
            while snapshot(&log).await.oldest < Seq(200) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), dropped).await.expect("generations past their retention are dropped");
        let snapshot = snapshot(&log).await;
        let ids = |state| {
            let wanted = Wanted { state, limit: 10, ..Wanted::default() };
            let rows = list(&log, &snapshot, &wanted, Budget::of(1_000, 1_000)).unwrap().rows;
            let mut ids: Vec<String> = rows.into_iter().map(|row| row.id).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!((ids(Some(State::Pending)), ids(Some(State::Dead))), (vec!["2".into(), "4".into()], vec!["3".into()]));
        assert_eq!(ids(None).iter().filter(|id| ["2", "3", "4"].contains(&id.as_str())).count(), 3, "each once");
        let story = tell(&log, &snapshot, Seq(3), None, Budget::of(1_000, 1_000)).unwrap();
        assert_eq!((story.row.state, story.row.topic.as_str()), (State::Dead, "t/1"));
        let told = |story: &Story| -> Vec<(String, String)> {
            story.history.iter().map(|chapter| (chapter.event.clone(), chapter.says.clone())).collect()
        };
        let history = told(&story);
        let events: Vec<&str> = history.iter().map(|(event, _)| event.as_str()).collect();
        assert_eq!(events, ["accepted", "earlier", "carried"], "{story:?}");
        assert_eq!(history[1].1, "1970-01-01T00:00:00.003Z  given up after 3 refusals: no", "what its generation said of it is kept");
        let waiting = told(&tell(&log, &snapshot, Seq(2), None, Budget::of(1_000, 1_000)).unwrap());
        assert!(waiting[1].1.contains("the broker refused it with 0x80"), "{waiting:?}");
        // What was carried is replayed from there, once, and only when it is delivered.
        let sought = |snapshot: &Snapshot, copies: &Copies| -> Vec<u64> {
            let limits = Limits { count: 10, bytes: 1 << 20 };
            let (mut at, mut found) = (snapshot.oldest, Vec::new());
            while at < snapshot.next {
                let piece = seek(&log, snapshot, &Filter::default(), copies, at, snapshot.next, limits).unwrap();
                assert!(piece.next > at && !piece.is_gone && piece.found.len() <= 10);
                found.extend(piece.found.iter().map(|found| found.id.0));
                at = piece.next;
            }
            found.retain(|id| *id < 5);
            found
        };
        let copies = Copies { from: snapshot.oldest, ..Copies::default() };
        assert!(sought(&snapshot, &copies).is_empty(), "none of them is delivered");
        log.record(vec![Event::Delivered { lane: lane.clone(), sends: Ranges::one(2), proof: Proof::PubAck, at: Millis(5) }])
            .await
            .unwrap();
        let later = Snapshot::of(&log.ask(Clone::clone).await.unwrap().into_inner(), None);
        assert_eq!(sought(&later, &copies), [4]);
        assert!(sought(&later, &Copies { taken: [Seq(4)].into(), ..copies.clone() }).is_empty(), "it was taken before");
        assert!(sought(&later, &Copies { from: Seq(1), ..copies }).is_empty(), "its original was there when the search began");
        let gone = tell(&log, &snapshot, Seq(5), None, Budget::of(1_000, 1_000)).unwrap_err();
        assert_eq!(gone, NoStory::Gone { id: Seq(5), oldest: snapshot.oldest });
        // Looking for many that are gone costs what one may cost.
        let mut budget = Budget::of(20, 20);
        for id in 5..100 {
            assert!(find(&log, &snapshot, Seq(id), &mut budget).is_err());
        }
        assert!(!budget.glimpse(), "it is used up");
        assert!(find(&log, &snapshot, Seq(3), &mut budget).is_ok(), "what is dead is found all the same");
    });
}
