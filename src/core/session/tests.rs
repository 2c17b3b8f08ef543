//! Stories of the session against its [`model`](super::model): one that is drawn by chance a thousand times, and those that have a name.

mod counted;
mod outages;
mod refusals;
mod together;

use std::sync::Arc;

use proptest::prelude::*;

use super::model::*;
use super::*;
use crate::core::event::{Accepted, Event};
use crate::core::retry::{RetryPolicy, code};
use crate::core::types::{LaneKey, Protocol, Seq};

/// So many stories a run; `TIDINGS_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("TIDINGS_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_qos_2_arrives_once_through_cuts_crashes_and_refusals(story in story()) {
        World::new(story).play().check_promises();
    }
}

pub(super) fn calm() -> Story {
    Story {
        seed: 1,
        reports: 60,
        protocol: Protocol::V5,
        delivers_at_publish: true,
        cuts: 0,
        crashes: 0,
        refusals: 0,
        session_losses: 0,
        window: 8,
        poison: 0,
        absences: 0,
        servers: 1,
        maximum_qos: Qos::ExactlyOnce,
        downgrade: false,
        expiring: 0,
        together: false,
        claims: false,
        takeovers: 0,
    }
}

#[test]
fn a_quiet_run_repeats_nothing() {
    let world = World::new(calm()).play();
    world.check_promises();
    assert_eq!(world.arrived.len(), 60);
}

/// Plays until the backlog is empty, then ends the session as `input` says; gives back the broker's sessions.
pub(super) fn ended_by(input: Input, story: Story) -> (bool, usize) {
    let mut world = World::new(Story { reports: 5, ..story }).play();
    world.give(input);
    for _ in 0..10_000 {
        if world.session.is_drained() {
            break;
        }
        world.step();
    }
    (world.session.is_drained(), world.broker().len())
}

#[test]
fn a_retired_lane_leaves_no_session_at_the_broker() {
    for protocol in [Protocol::V5, Protocol::V311] {
        assert_eq!(ended_by(Input::Retire, Story { protocol, ..calm() }), (true, 0), "{protocol:?}");
    }
}

/// Connects, up to the CONNACK; gives back whether the session is asked for as clean.
fn connect(session: &mut Session, now: Millis, session_present: bool, meanwhile: Option<Input>) -> bool {
    let connack = Incoming::ConnAck { session_present, code: 0, limits: BrokerLimits::default(), reason: None, assigned_client_id: None };
    for input in [Input::Tick, Input::Opened].into_iter().chain(meanwhile).chain([Input::Received(vec![connack])]) {
        session.handle(now, 0, input);
    }
    let outputs = std::iter::from_fn(|| session.next_output());
    let mut asked = outputs.filter_map(|output| match output {
        Output::Send(Outgoing::Connect { clean, session_expiry_s, .. }) => Some(clean && session_expiry_s == 0),
        _ => None,
    });
    asked.next().expect("CONNECT is sent")
}

#[test]
fn a_retired_lane_purges_what_the_broker_has_kept_though_it_was_purged() {
    let settings = Settings { protocol: Some(Protocol::V311), ..settings(&calm()) };
    let mut session = Session::new(settings, Start::default());
    assert!(connect(&mut session, Millis(1_000), false, None), "purged");
    assert!(!connect(&mut session, Millis(2_000), true, Some(Input::Retire)), "and there all the same");
    assert!(connect(&mut session, Millis(3_000), false, None), "purged once more");
    assert!(session.is_drained());
}

#[test]
fn a_drained_lane_disconnects_and_stops() {
    assert_eq!(ended_by(Input::Drain, calm()), (true, 0));
    assert!(ended_by(Input::Drain, Story { protocol: Protocol::V311, ..calm() }).0);
}

/// A report of QoS 2 is with the broker, and the connection breaks before anything has come back.
fn cut_in_flight() -> (World, Seq) {
    let mut world = World::new(calm());
    let id = world.accept_for("topic");
    world.steps_until("it is with the broker", |world| world.arrived_times(id) == 1);
    world.cut();
    (world, id)
}

#[test]
fn what_is_sent_again_in_its_session_has_its_packet_id_and_dup() {
    let (mut world, id) = cut_in_flight();
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    let [(first, false), (second, true)] = world.published[..] else { panic!("{:?}", world.published) };
    assert_eq!((first, world.arrived_times(id)), (second, 1));
}

#[test]
fn a_session_that_is_given_up_is_there_until_the_log_says_so() {
    let (mut world, id) = cut_in_flight();
    world.story.maximum_qos = Qos::AtMostOnce;
    let is_given_up = |event: &Event| matches!(event, Event::SessionOpened { epoch: 1, .. });
    world.steps_until("it is given up", |world| world.appending.iter().flatten().any(is_given_up));
    world.story.maximum_qos = Qos::ExactlyOnce;
    world.crash();
    // The CONNACK that would tell of a lost session is lost itself.
    world.steps_until("the broker has read CONNECT", |world| world.client.is_some());
    world.cut();
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    assert_eq!(world.arrived_times(id), 1);
}

#[test]
fn an_outage_is_no_attempt() {
    let (mut world, id) = cut_in_flight();
    // Away for much longer than its attempts would take.
    world.is_away[0] = true;
    world.steps_until("it is tried again and again", |world| world.session.failures >= 20);
    world.is_away[0] = false;
    // The broker has lost it meanwhile, and will not have it any more.
    world.brokers[0].values_mut().for_each(|session| session.received.clear());
    world.story.refusals = 100;
    world.steps_until("it is refused", |world| world.refused.contains(&id));
    world.story.refusals = 0;
    world.steps_until("it arrives", |world| world.pending() == 0);
    let charged = world.log.iter().find_map(|event| match event {
        Event::Refused { attempts, .. } => Some(*attempts),
        _ => None,
    });
    assert_eq!((charged, world.dead()), (Some(1), vec![]));
}

#[test]
fn what_is_in_flight_does_not_expire_when_its_session_is_lost() {
    let mut world = World::new(calm());
    let plain = Accepted::plain(lane_key(), "topic", Qos::ExactlyOnce, world.now);
    let event = Event::Accepted(Arc::new(Accepted { expiry_s: Some(1), ..plain }));
    let id = world.outbox.apply(&event).unwrap();
    world.log.push(event);
    world.steps_until("it is with the broker", |world| world.arrived_times(id) == 1);
    world.is_away[0] = true;
    world.cut();
    world.brokers[0].clear();
    world.steps_until("its time is over", |world| world.now > Millis(3_000));
    world.is_away[0] = false;
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    let totals = world.outbox.connections()[&lane_key().connection].totals;
    assert_eq!(
        (totals.acknowledged, totals.expired, totals.possible_duplicates),
        (1, 0, 1),
        "it may have arrived, so it is no expired one"
    );
}

#[test]
fn where_idle_connections_die_as_well_nobody_is_charged() {
    let mut world = World::new(calm());
    let id = world.accept_for("topic");
    world.poisoned.insert(id);
    world.hangs_up_at_idle = true;
    world.steps_until("it is tried again and again", |world| world.session.failures >= 40);
    let charges = world.log.iter().filter(|event| matches!(event, Event::Refused { .. } | Event::DeadLettered { .. })).count();
    assert_eq!(charges, 0, "{:?}", world.session);
    world.poisoned.clear();
    world.hangs_up_at_idle = false;
    world.steps_until("it arrives", |world| world.pending() == 0);
    assert_eq!((world.arrived_times(id), world.dead()), (1, vec![]));
}

#[test]
fn a_packet_id_does_not_come_round_while_the_report_that_has_it_is_in_flight() {
    let mut world = World::new(calm());
    let slow = world.accept_for("slow");
    world.unanswered = Some(slow);
    let others: Vec<Seq> = (0..40).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    // All ids but one have been used; the next one has to wait, and with it the lane, until the connection is given up.
    world.steps_until("the others go on", |world| world.arrived.len() >= 31);
    world.steps_until("it is sent again", |world| world.published.iter().any(|(_, dup)| *dup));
    world.unanswered = None;
    world.steps_until("all arrive", |world| world.pending() == 0);
    assert!(others.into_iter().chain([slow]).all(|id| world.arrived_times(id) == 1));
}

#[test]
fn a_packet_id_does_not_come_round_before_it_is_durable_that_its_report_is_done() {
    for seed in 1..=60 {
        let mut world = World::new(Story { seed, ..calm() });
        let slow = world.accept_for("slow");
        world.steps_until("it is with the broker", |world| world.arrived_times(slow) == 1);
        let answer = world.to_client.pop_back().expect("a PUBREC");
        let others: Vec<Seq> = (0..30).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
        world.steps_until("all others are done", |world| world.pending() == 1);
        world.to_client.push_back(answer);
        // The 32nd, with the identifier of the first.
        let next = world.accept_for("next");
        world.steps_until("it is with the broker", |world| world.arrived_times(next) == 1);
        world.crash();
        world.steps_until("all is done", |world| world.pending() == 0);
        assert!(others.into_iter().chain([slow, next]).all(|id| world.arrived_times(id) == 1), "seed {seed}");
    }
}

#[test]
fn nothing_goes_past_a_refusal_before_that_is_durable() {
    for seed in 1..=60 {
        let mut world = World::new(Story { seed, ..calm() });
        let refused = world.accept_for("topic");
        world.story.refusals = 100;
        world.steps_until("it is refused", |world| world.refused.contains(&refused));
        world.story.refusals = 0;
        // More wait behind it than a restart takes for sent.
        let behind: Vec<Seq> = (0..20).map(|_| world.accept_for("topic")).collect();
        let other = world.accept_for("other");
        world.steps_until("the other topic goes on", |world| world.arrived_times(other) == 1);
        world.crash();
        world.steps_until("all is done", |world| world.pending() == 0);
        assert!(behind.into_iter().chain([refused, other]).all(|id| world.arrived_times(id) == 1), "seed {seed}");
    }
}

#[test]
fn what_was_in_flight_to_another_server_is_sent_under_another_client_id() {
    let (world, _) = cut_in_flight();
    let start = || start_of(&world.log, &world.outbox).0;
    let elsewhere = Settings { endpoints: vec!["elsewhere:1883".into()], ..settings(&calm()) };
    assert_eq!(Session::new(settings(&calm()), start()).client_id(), world.session.client_id());
    assert_ne!(Session::new(elsewhere, start()).client_id(), world.session.client_id());
}

#[test]
fn a_pubcomp_that_was_lost_is_made_good_by_one_that_says_not_found() {
    let mut world = World::new(calm());
    let id = world.accept_for("topic");
    world.steps_until("it is with the broker", |world| world.arrived_times(id) == 1);
    world.steps_until("the broker has read PUBREL", |world| world.brokers[0].values().all(|session| session.received.is_empty()));
    world.cut();
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    let totals = world.outbox.connections()[&lane_key().connection].totals;
    assert_eq!((world.arrived_times(id), totals.possible_duplicates), (1, 0));
}

#[test]
fn a_pubcomp_that_says_not_found_at_once_means_that_the_broker_has_lost_the_report() {
    let mut world = World::new(Story { delivers_at_publish: false, ..calm() });
    let id = world.accept_for("topic");
    let holds = |world: &World| world.brokers[0].values().any(|session| !session.received.is_empty());
    world.steps_until("it is with the broker", holds);
    world.brokers[0].values_mut().for_each(|session| session.received.clear());
    world.steps_until("its outcome is durable", |world| world.pending() == 0);
    let totals = world.outbox.connections()[&lane_key().connection].totals;
    assert_eq!((world.arrived_times(id), totals.possible_duplicates), (1, 1));
}

#[test]
fn a_stop_finishes_what_is_in_flight() {
    let mut world = World::new(calm());
    let id = world.accept_for("topic");
    world.steps_until("it is with the broker", |world| world.arrived_times(id) == 1);
    world.give(Input::Drain);
    world.steps_until("it has stopped", |world| world.session.is_drained());
    assert_eq!(world.pending(), 0);
}

#[test]
fn two_lanes_and_two_epochs_have_client_ids_of_their_own() {
    let client_id = |lane: u32, epoch: u32| {
        let lane = LaneKey { lane, ..lane_key() };
        Session::new(Settings { lane, ..settings(&calm()) }, Start { epoch, ..Start::default() }).client_id()
    };
    let all: BTreeSet<String> = [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().map(|(lane, epoch)| client_id(lane, epoch)).collect();
    assert_eq!(all.len(), 4, "{all:?}");
}

#[test]
fn a_report_at_which_the_broker_hangs_up_is_found_and_costs_nobody_else_more_than_time() {
    let mut world = World::new(calm());
    let ids: Vec<Seq> = (0..20).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.poisoned.insert(ids[7]);
    world.steps_until("all others arrive", |world| world.pending() == 0);
    assert_eq!(world.dead(), [ids[7]]);
    for id in ids.iter().filter(|id| **id != ids[7]) {
        assert!(world.arrived_times(*id) >= 1, "report {id}");
    }
    let attempts = world.log.iter().filter(|event| matches!(event, Event::Refused { code: code::HUNG_UP, .. })).count();
    assert_eq!(attempts, 2, "two charges, and the third condemns it");
}

#[test]
fn a_broker_that_hangs_up_at_everything_costs_two_reports_and_all_others_arrive_when_it_is_mended() {
    let mut world = World::new(calm());
    let ids: Vec<Seq> = (0..12).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.poisoned.extend(&ids);
    world.steps_until("the lane is suspended again and again", |world| world.suspended >= 5);
    assert_eq!((world.dead().len(), world.pending()), (2, 10), "it does not empty itself into the dead letters");
    world.poisoned.clear();
    world.steps_until("all others arrive", |world| world.pending() == 0);
    assert_eq!(world.dead().len(), 2);
}

#[test]
fn what_a_broker_does_not_take_is_held_uncharged_until_it_does_and_others_go_on() {
    let mut world = World::new(Story { maximum_qos: Qos::AtLeastOnce, ..calm() });
    let held = world.accept_for("held");
    let event = Event::Accepted(Arc::new(Accepted::plain(lane_key(), "free", Qos::AtLeastOnce, Millis(1))));
    let free = world.outbox.apply(&event).unwrap();
    world.log.push(event);
    world.steps_until("the other topic goes on", |world| world.arrived_times(free) == 1 && world.pending() == 1);
    for _ in 0..5_000 {
        world.step();
    }
    assert_eq!((world.arrived_times(held), world.dead()), (0, vec![]));
    let refusals = world.log.iter().filter(|event| matches!(event, Event::Refused { .. })).count();
    assert_eq!(refusals, 1, "looking again costs no event");
    world.story.maximum_qos = Qos::ExactlyOnce;
    world.cut();
    world.steps_until("it is sent", |world| world.pending() == 0);
    assert_eq!(world.arrived_times(held), 1);
}

#[test]
fn a_broker_that_is_slow_to_forget_a_session_is_given_time() {
    let mut world = World::new(Story { protocol: Protocol::V311, ..calm() });
    // Longer than it takes to disconnect and connect, shorter than the longest wait.
    world.forgets_after_ms = 350;
    let id = world.accept_for("topic");
    for _ in 0..5_000 {
        world.step();
    }
    assert_eq!((world.pending(), world.arrived_times(id)), (0, 1));
}

#[test]
fn a_broker_that_takes_qos_2_for_qos_1_gets_one_window_and_nothing_twice() {
    for downgrade in [false, true] {
        let mut world = World::new(Story { protocol: Protocol::V311, downgrade, ..calm() });
        world.takes_qos_2_for_1 = true;
        let first = world.accept_for("topic");
        world.steps_until("its PUBACK counts", |world| world.pending() == 0);
        let second = world.accept_for("topic");
        for _ in 0..5_000 {
            world.step();
        }
        assert_eq!((world.arrived_times(first), world.arrived_times(second)), (1, usize::from(downgrade)));
        assert_eq!((world.pending(), world.dead()), (u64::from(!downgrade), vec![]));
    }
}

#[test]
fn with_leave_to_downgrade_it_is_sent_at_what_the_broker_has() {
    for maximum_qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        let mut world = World::new(Story { maximum_qos, downgrade: true, ..calm() });
        let id = world.accept_for("topic");
        world.steps_until("it is sent", |world| world.pending() == 0);
        assert_eq!((world.arrived_times(id), world.dead()), (1, vec![]));
    }
}

#[test]
fn with_the_first_server_away_the_second_is_used_and_the_first_again_when_it_is_back() {
    let mut world = World::new(Story { servers: 2, ..calm() });
    world.is_away[0] = true;
    let elsewhere: Vec<Seq> = (0..5).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.steps_until("the second takes them", |world| world.pending() == 0);
    assert_eq!(world.at, 1);
    world.is_away[0] = false;
    world.steps_until("the first is used again", |world| world.at == 0 && world.session.is_up());
    let home: Vec<Seq> = (0..5).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.steps_until("the first takes them", |world| world.pending() == 0);
    assert_eq!(world.at, 0);
    for id in elsewhere.into_iter().chain(home) {
        assert_eq!(world.arrived_times(id), 1, "report {id}");
    }
    assert_eq!(world.outbox.connections()[&lane_key().connection].totals.possible_duplicates, 0, "moving at leisure repeats nothing");
}

#[test]
fn a_server_with_a_session_in_doubt_is_waited_for_and_then_given_up() {
    for is_back in [true, false] {
        let mut world = World::new(Story { servers: 2, ..calm() });
        let id = world.accept_for("topic");
        world.steps_until("it is released", |world| !world.outbox.lane(&lane_key()).unwrap().released().is_empty());
        world.is_away[0] = true;
        world.cut();
        if is_back {
            world.steps_until("it is tried", |world| world.session.absences >= 1);
            world.is_away[0] = false;
        }
        world.steps_until("it arrives", |world| world.pending() == 0);
        let duplicates = world.outbox.connections()[&lane_key().connection].totals.possible_duplicates;
        assert_eq!((world.at, duplicates), if is_back { (0, 0) } else { (1, 1) });
        assert!(world.arrived_times(id) == 1 || !is_back);
    }
}

#[test]
fn what_has_expired_before_it_is_sent_is_not_sent_and_is_counted() {
    let world = World::new(Story { expiring: 100, absences: 20, cuts: 20, ..calm() }).play();
    world.check_promises();
    let totals = world.outbox.connections()[&lane_key().connection].totals;
    assert!(totals.expired > 0 && !world.arrived.is_empty(), "{totals:?}, {} arrived", world.arrived.len());
    // Some have no second at all.
    let at_once = world.log.iter().filter(|event| matches!(event, Event::Accepted(accepted) if accepted.expiry_s == Some(0))).count();
    assert!(totals.expired >= at_once as u64 / 2, "{totals:?}, {at_once} had expired when they came");
}

/// A small delivery, accepted with the event after its send's number.
pub(super) fn delivery(send: u64, topic: &str, qos: Qos) -> Delivery {
    Delivery {
        send: SendNo(send),
        id: Seq(send + 1),
        located: Seq(send + 1),
        topic: Arc::from(topic),
        qos,
        retain: false,
        accepted_at: Millis(0),
        expires_at: None,
        attempts: 0,
        size: 10,
        is_resent: false,
    }
}

/// What the log says at a start: these sends of QoS and topic are pending, and nothing else is known of them.
fn in_doubt(endpoint: &str, sends: &[(u64, &str, Qos)]) -> Start {
    let fresh = sends.iter().map(|(send, topic, qos)| delivery(*send, topic, *qos)).collect();
    Start { endpoint: endpoint.into(), protocol: Some(Protocol::V5), doubt: 16, fresh, ..Start::default() }
}

/// Starts a session, and goes on with what the broker has of it. What was said of the start, and what is written then.
fn resumed(start: Start) -> (Session, Vec<Output>, Vec<Outgoing>) {
    let mut session = Session::new(settings(&calm()), start);
    session.handle(Millis(1), 0, Input::Tick);
    let said: Vec<Output> = std::iter::from_fn(|| session.next_output()).collect();
    session.handle(Millis(1), 0, Input::Opened);
    let limits = BrokerLimits::default();
    let connack = Incoming::ConnAck { session_present: true, code: 0, limits, reason: None, assigned_client_id: None };
    let _ = written(&mut session);
    session.handle(Millis(2), 0, Input::Received(vec![connack]));
    let packets = written(&mut session);
    (session, said, packets)
}

fn written(session: &mut Session) -> Vec<Outgoing> {
    let outputs = std::iter::from_fn(|| session.next_output());
    outputs.filter_map(|output| if let Output::Send(packet) = output { Some(packet) } else { None }).collect()
}

#[test]
fn what_may_have_been_in_flight_when_the_store_was_copied_is_counted() {
    let (_, said, _) = resumed(in_doubt("(left behind)", &[(0, "t", Qos::ExactlyOnce), (1, "t", Qos::ExactlyOnce)]));
    let counted = said.iter().any(|output| matches!(output, Output::Note(Note::SessionLost { in_doubt: 2, .. })));
    assert!(counted, "{said:?}");
    let repeated = said.iter().any(|output| matches!(output, Output::Append(events) if matches!(&events[..], [Event::SessionOpened { repeated, .. }] if repeated.count() == 2)));
    assert!(repeated, "{said:?}");
}

#[test]
fn what_had_to_wait_for_a_packet_id_is_not_taken_for_sent_and_costs_no_session() {
    // 31 identifiers: the second has that of the first, and the third came after it.
    let sends = [(0, "t", Qos::ExactlyOnce), (31, "t", Qos::ExactlyOnce), (32, "t", Qos::ExactlyOnce)];
    let (session, said, packets) = resumed(in_doubt("server-0:1883", &sends));
    assert!(!said.iter().any(|output| matches!(output, Output::Note(Note::SessionLost { .. }))), "{said:?}");
    assert_eq!(session.in_flight(), 1);
    assert!(matches!(packets[..], [Outgoing::Publish { send: SendNo(0), dup: true, .. }]), "{packets:?}");
}

#[test]
fn what_let_others_by_because_its_topic_waits_says_nothing_of_what_is_behind_it() {
    // The third waits behind the first, as a whole round of identifiers does; the fourth has left long ago.
    let sends = [(0, "t"), (1, "t"), (32, "t"), (33, "u")].map(|(send, topic)| (send, topic, Qos::ExactlyOnce));
    let mut start = in_doubt("server-0:1883", &sends);
    start.waiting = vec![(start.fresh.remove(0), Millis(50), SendNo(1))];
    let (_, _, packets) = resumed(start);
    let is_as_it_was = matches!(
        packets[..],
        [Outgoing::Publish { send: SendNo(1), dup: true, .. }, Outgoing::Publish { send: SendNo(33), dup: true, .. }]
    );
    assert!(is_as_it_was, "{packets:?}");
}

#[test]
fn after_a_restart_a_report_of_qos_0_still_goes_before_a_later_one_that_may_have_been_sent() {
    let sends = [(0, "t", Qos::AtMostOnce), (1, "t", Qos::ExactlyOnce), (2, "t", Qos::AtMostOnce)];
    let (mut session, _, packets) = resumed(in_doubt("server-0:1883", &sends));
    assert!(matches!(packets[..], [Outgoing::Publish { send: SendNo(0), packet_id: None, dup: false, .. }]), "{packets:?}");
    session.handle(Millis(3), 0, Input::Flushed(vec![SendNo(0)]));
    let packets = written(&mut session);
    assert!(matches!(packets[..], [Outgoing::Publish { send: SendNo(1), dup: true, .. }]), "{packets:?}");
}
