//! What is said and what is not between CONNACK and a durable claim; and owners that go on without knowing that they are none any more.

use super::*;
use crate::core::event::Event;
use crate::core::session::isolation::{Isolation, Suspect, Trial};
use crate::core::session::model::{Story, World, lane_key, settings};
use crate::core::session::tests::{calm, delivery, ended_by};
use crate::core::session::{Ack, BrokerLimits, Incoming, Input, Outgoing, Output, Settings, Start};
use crate::core::types::{Protocol, Qos, SendNo, Seq};

const PROTOCOLS: [Protocol; 2] = [Protocol::V5, Protocol::V311];

/// What the log says of a lane whose session it knows: these sends are pending, and the first of them released.
fn known(protocol: Protocol, pending: u64, is_first_released: bool) -> Start {
    let fresh = (0..pending).map(|send| delivery(send, "t", Qos::ExactlyOnce)).collect();
    let released = if is_first_released { vec![SendNo(0)] } else { Vec::new() };
    Start { endpoint: "server-0:1883".into(), protocol: Some(protocol), doubt: 16, fresh, released, ..Start::default() }
}

struct Table {
    session: Session,
    now: u64,
}

impl Table {
    fn new(protocol: Protocol, start: Start) -> Table {
        let settings = Settings { claims: true, protocol: Some(protocol), ..settings(&calm()) };
        Table { session: Session::new(settings, start), now: 0 }
    }

    /// What follows from an input a second later, but for notes.
    fn give(&mut self, input: Input) -> Vec<Output> {
        self.now += 1_000;
        self.session.handle(Millis(self.now), 0, input);
        std::iter::from_fn(|| self.session.next_output()).filter(|output| !matches!(output, Output::Note(_))).collect()
    }

    /// Connects up to the CONNACK; gives back CONNECT, and what follows from the CONNACK.
    fn connect(&mut self, session_present: bool, limits: BrokerLimits) -> (Outgoing, Vec<Output>) {
        let opened = self.give(Input::Tick);
        assert!(matches!(opened[..], [Output::Open { .. }]), "{opened:?}");
        let mut connect = self.give(Input::Opened);
        let Some(Output::Send(connect)) = connect.pop() else { panic!("CONNECT is sent") };
        let connack = Incoming::ConnAck { session_present, code: 0, limits, reason: None, assigned_client_id: None };
        (connect, self.give(Input::Received(vec![connack])))
    }

    fn commit(&mut self) -> Vec<Output> {
        self.give(Input::Committed { resent: Vec::new() })
    }
}

fn ack(send: u64) -> Ack {
    Ack { packet_id: SendNo(send).packet_id(31), code: 0, reason: None }
}

/// It is a claim and nothing else; for how many sends in doubt.
fn claimed_doubt(outputs: &[Output]) -> u32 {
    let [Output::Append(events)] = outputs else { panic!("{outputs:?}") };
    let [Event::SessionOpened { doubt, .. }] = events[..] else { panic!("{events:?}") };
    doubt
}

/// What is sent: `R` for PUBREL, `D` for PUBLISH with DUP, `P` for one without, and the send.
fn sent(outputs: &[Output]) -> Vec<(char, u64)> {
    let packet = |output: &Output| match output {
        Output::Send(Outgoing::PubRel { send, .. }) => ('R', send.0),
        Output::Send(Outgoing::Publish { send, dup, .. }) => (if *dup { 'D' } else { 'P' }, send.0),
        other => panic!("{other:?}"),
    };
    outputs.iter().map(packet).collect()
}

#[test]
fn a_connection_is_claimed_before_anything_is_sent_on_it_also_if_that_says_nothing_new() {
    for protocol in PROTOCOLS {
        let mut table = Table::new(protocol, known(protocol, 0, false));
        table.give(Input::Offer(vec![delivery(0, "t", Qos::ExactlyOnce)]));
        let (_, claim) = table.connect(false, BrokerLimits::default());
        claimed_doubt(&claim);
        assert_eq!(table.give(Input::Offer(vec![delivery(1, "u", Qos::AtMostOnce)])), []);
        assert_eq!(sent(&table.commit()), [('P', 0), ('P', 1)], "{protocol:?}");
    }
}

#[test]
fn a_session_that_is_there_with_nothing_in_doubt_is_purged_once_the_log_says_that_another_one_is_used() {
    let client = |connect: &Outgoing| match connect {
        Outgoing::Connect { client_id, clean, .. } => (client_id.clone(), *clean),
        other => panic!("{other:?}"),
    };
    for protocol in PROTOCOLS {
        let mut table = Table::new(protocol, known(protocol, 0, false));
        table.give(Input::Offer(vec![delivery(0, "t", Qos::ExactlyOnce)]));
        let (connect, leaving) = table.connect(true, BrokerLimits::default());
        assert_eq!(client(&connect), ("tidings-0-0-0".into(), false), "{protocol:?}");
        let [Output::Append(events), Output::Send(Outgoing::Disconnect { end_session: false }), Output::Close] = &leaving[..] else {
            panic!("{leaving:?}");
        };
        assert!(matches!(events[..], [Event::SessionOpened { epoch: 1, .. }]), "{events:?}");
        assert_eq!(table.give(Input::Tick), [], "not before that is durable");
        assert_eq!(table.commit(), []);
        let (purge, left) = table.connect(false, BrokerLimits::default());
        assert_eq!(client(&purge), ("tidings-0-0-0".into(), true));
        assert!(matches!(left[..], [Output::Send(Outgoing::Disconnect { .. }), Output::Close]), "{left:?}");
        // Who was dispossessed may have connected with it, and sent nothing.
        let (connect, claim) = table.connect(true, BrokerLimits::default());
        assert_eq!(client(&connect), ("tidings-0-1-0".into(), false));
        claimed_doubt(&claim);
        assert_eq!(sent(&table.commit()), [('P', 0)]);
    }
}

#[test]
fn a_resumed_session_is_claimed_before_anything_is_sent_again_and_left_when_it_is_settled() {
    for protocol in PROTOCOLS {
        let mut table = Table::new(protocol, known(protocol, 3, true));
        let (_, claim) = table.connect(true, BrokerLimits::default());
        claimed_doubt(&claim);
        // The broker may go on where it was. What it says is said again when it is asked.
        for early in [Incoming::PubRec(ack(1)), Incoming::PubComp(ack(0)), Incoming::PubComp(ack(2))] {
            assert_eq!(table.give(Input::Received(vec![early])), []);
        }
        assert_eq!(sent(&table.commit()), [('R', 0), ('D', 1), ('D', 2)], "{protocol:?}");
        table.give(Input::Offer(vec![delivery(3, "t", Qos::ExactlyOnce)]));
        let recorded = table.give(Input::Received(vec![Incoming::PubComp(ack(0)), Incoming::PubRec(ack(1)), Incoming::PubRec(ack(2))]));
        assert!(matches!(&recorded[..], [Output::Append(_)]), "{recorded:?}");
        assert_eq!(sent(&table.commit()), [('R', 1), ('R', 2)]);
        let done = table.give(Input::Received(vec![Incoming::PubComp(ack(1)), Incoming::PubComp(ack(2))]));
        assert!(matches!(&done[..], [Output::Append(_)]), "{done:?}");
        // A packet identifier that the broker holds against all rules would swallow a report one day.
        let left = table.commit();
        match protocol {
            Protocol::V5 => {
                assert!(matches!(&left[..], [Output::Send(Outgoing::Disconnect { end_session: true }), Output::Close]), "{left:?}")
            }
            Protocol::V311 => {
                let is_left =
                    matches!(&left[..], [Output::Append(_), Output::Send(Outgoing::Disconnect { end_session: false }), Output::Close]);
                assert!(is_left, "{left:?}");
            }
        }
    }
}

#[test]
fn a_claim_of_an_earlier_connection_does_not_count() {
    for pending in [0, 2] {
        let mut table = Table::new(Protocol::V5, known(Protocol::V5, pending, false));
        claimed_doubt(&table.connect(pending > 0, BrokerLimits::default()).1);
        assert_eq!(table.give(Input::Closed { reason: "cut".into() }), []);
        table.now += 60_000;
        assert_eq!(table.give(Input::Tick), [], "no connection is ended before it is heard whether the lane is its own");
        assert_eq!(table.session.deadline(), None);
        assert_eq!(table.commit(), []);
        claimed_doubt(&table.connect(pending > 0, BrokerLimits::default()).1);
        assert_eq!(sent(&table.commit()).len() as u64, pending);
    }
}

#[test]
fn what_was_released_while_it_was_not_connected_goes_with_the_claim() {
    let mut table = Table::new(Protocol::V5, known(Protocol::V5, 1, false));
    table.connect(true, BrokerLimits::default());
    assert_eq!(sent(&table.commit()), [('D', 0)]);
    let recorded = table.give(Input::Received(vec![Incoming::PubRec(ack(0))]));
    assert!(matches!(&recorded[..], [Output::Append(_)]), "{recorded:?}");
    table.give(Input::Closed { reason: "cut".into() });
    table.now += 60_000;
    assert_eq!(table.give(Input::Tick), []);
    assert_eq!(table.commit(), []);
    claimed_doubt(&table.connect(true, BrokerLimits::default()).1);
    assert_eq!(sent(&table.commit()), [('R', 0)]);
}

#[test]
fn who_may_have_lost_the_lane_asks_for_no_clean_session() {
    for protocol in PROTOCOLS {
        for (pending, session_present) in [(0, false), (0, true), (2, true), (2, false)] {
            let mut table = Table::new(protocol, known(protocol, pending, false));
            let (connect, _) = table.connect(session_present, BrokerLimits::default());
            let goes_on = matches!(connect, Outgoing::Connect { clean: false, session_expiry_s: 1_000, .. });
            assert!(goes_on, "{protocol:?}, {pending} pending: {connect:?}");
        }
    }
}

#[test]
fn a_connection_that_is_not_claimed_does_not_end_its_session() {
    // The broker does not take any more what it took in this session.
    let mut table = Table::new(Protocol::V5, known(Protocol::V5, 1, false));
    let limits = BrokerLimits { maximum_packet_size: Some(5), ..BrokerLimits::default() };
    let (_, outputs) = table.connect(true, limits);
    let leaves = |output: &Output| matches!(output, Output::Send(Outgoing::Disconnect { end_session: false }));
    assert!(outputs.iter().any(leaves), "{outputs:?}");
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Send(packet) if !matches!(packet, Outgoing::Disconnect { end_session: false })))
    );
}

#[test]
fn what_was_sent_with_a_larger_window_stays_in_doubt() {
    let start = Start { doubt: 40, ..known(Protocol::V5, 2, false) };
    let mut table = Table::new(Protocol::V5, start.clone());
    assert_eq!(claimed_doubt(&table.connect(true, BrokerLimits::default()).1), 40);
    let mut table = Table::new(Protocol::V5, Start { fresh: Vec::new(), ..start });
    assert_eq!(claimed_doubt(&table.connect(false, BrokerLimits::default()).1), 16, "nothing of it is");
}

#[test]
fn an_idle_connection_that_lives_is_claimed_before_it_serves() {
    for pending in [0, 2] {
        let mut table = Table::new(Protocol::V5, known(Protocol::V5, pending, false));
        let suspect = Suspect { send: SendNo(9), id: Seq(10), reason: "cut".into() };
        table.session.isolation = Isolation::Suspecting { suspect, lived_ms: 100, trial: Trial::default() };
        let (_, probing) = table.connect(pending > 0, BrokerLimits::default());
        assert!(matches!(probing[..], [Output::Send(Outgoing::PingReq)]), "{probing:?}");
        claimed_doubt(&table.give(Input::Received(vec![Incoming::PingResp])));
        assert_eq!(sent(&table.commit()).len(), usize::from(pending > 0), "one at a time");
    }
}

#[test]
fn a_lane_that_stops_leaves_its_session_to_the_next_owner_and_one_that_is_retired_does_not() {
    for (input, protocol, sessions) in [
        (Input::Drain, Protocol::V5, 1),
        (Input::Drain, Protocol::V311, 1),
        (Input::Retire, Protocol::V5, 0),
        (Input::Retire, Protocol::V311, 0),
    ] {
        let what = format!("{input:?} over {protocol:?}");
        assert_eq!(ended_by(input, Story { claims: true, protocol, ..calm() }), (true, sessions), "{what}");
    }
}

/// A world with one owner, over a shared log.
fn shared(protocol: Protocol, seed: u64) -> World {
    World::new(Story { claims: true, protocol, seed, ..calm() })
}

/// All others go on until they hear that the lane is not theirs any more.
fn others_go_on(world: &mut World) {
    for _ in 0..100_000 {
        match world.others.is_empty() {
            true => return,
            false => world.step_of_another(0),
        }
    }
    panic!("who was dispossessed never heard of it");
}

/// The new owner delivers all that there is and as much again as there are packet identifiers, before the old one goes on.
fn taken_over(mut world: World, ids: &[Seq]) {
    world.take_over();
    let more: Vec<Seq> = (0..40).map(|number| world.accept_for(&format!("topic/{number}"))).collect();
    world.steps_until("the new owner delivers everything", |world| world.pending() == 0);
    others_go_on(&mut world);
    world.steps_until("it goes on", |world| world.appending.is_empty());
    let last = world.accept_for("last");
    world.steps_until("it serves", |world| world.pending() == 0);
    for id in ids.iter().chain(&more).chain([&last]) {
        assert_eq!(world.arrived_times(*id), 1, "report {id}: {:?}", world.story);
    }
    assert_eq!(world.outbox.connections()[&lane_key().connection].totals.possible_duplicates, 0);
}

#[test]
fn an_owner_that_was_stopped_with_pubrecs_in_its_socket_does_no_harm() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|protocol| (1..=10).map(move |seed| (protocol, seed))) {
        let mut world = shared(protocol, seed);
        let ids: Vec<Seq> = (0..6).map(|number| world.accept_for(&format!("t/{number}"))).collect();
        let has_pubrec = |world: &World| world.to_client.iter().any(|packet| matches!(packet, Incoming::PubRec(_)));
        world.steps_until("a PUBREC is in its socket", has_pubrec);
        taken_over(world, &ids);
    }
}

#[test]
fn an_owner_that_was_stopped_before_it_had_sent_anything_sends_nothing_afterwards() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|protocol| (1..=10).map(move |seed| (protocol, seed))) {
        let mut world = shared(protocol, seed);
        // It has delivered before, so its session says nothing new.
        let first = world.accept_for("first");
        world.steps_until("it is delivered", |world| world.pending() == 0 && world.appending.is_empty());
        world.cut();
        let ids: Vec<Seq> = (0..6).map(|number| world.accept_for(&format!("t/{number}"))).collect();
        world.feed();
        let all: Vec<Seq> = [first].into_iter().chain(ids).collect();
        taken_over(world, &all);
    }
}
