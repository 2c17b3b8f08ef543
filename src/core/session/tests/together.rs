//! What a session that serves puts off, so that more of the kind comes together: what it records, and what it reads.

use super::*;

/// A session that serves, and has sent so many reports of QoS 1.
fn serving(sends: u64) -> Session {
    serving_at(Qos::AtLeastOnce, sends)
}

fn serving_at(qos: Qos, sends: u64) -> Session {
    serving_with(settings(&calm()), qos, sends)
}

fn serving_with(settings: Settings, qos: Qos, sends: u64) -> Session {
    let mut session = Session::new(settings, Start::default());
    session.handle(Millis(1), 0, Input::Tick);
    session.handle(Millis(1), 0, Input::Opened);
    let limits = BrokerLimits::default();
    let connack = Incoming::ConnAck { session_present: false, code: 0, limits, reason: None, assigned_client_id: None };
    session.handle(Millis(1), 0, Input::Received(vec![connack]));
    session.handle(Millis(1), 0, Input::Committed { resent: Vec::new() });
    session.handle(Millis(1), 0, Input::Offer((0..sends).map(|send| delivery(send, "t", qos)).collect()));
    let published = written(&mut session).iter().filter(|packet| matches!(packet, Outgoing::Publish { .. })).count();
    assert_eq!(published as u64, sends);
    session
}

fn puback(send: u64) -> Incoming {
    Incoming::PubAck(Ack { packet_id: SendNo(send).packet_id(31), code: 0, reason: None })
}

/// The sends of each append that says of deliveries that they are done.
fn recorded(session: &mut Session) -> Vec<Vec<u64>> {
    let appends = std::iter::from_fn(|| session.next_output()).filter_map(|output| match output {
        Output::Append(events) => Some(events),
        _ => None,
    });
    let done = |event: &Event| match event {
        Event::Delivered { sends, .. } => sends.iter().collect(),
        _ => Vec::new(),
    };
    appends.map(|events| events.iter().flat_map(done).collect()).collect()
}

#[test]
fn what_is_done_waits_a_moment_for_more_of_the_kind_and_no_longer() {
    let mut session = serving(6);
    session.handle(Millis(5), 0, Input::Received(vec![puback(0), puback(1)]));
    assert_eq!(recorded(&mut session), [[0; 0]; 0]);
    assert_eq!(session.deadline(), Some(Millis(8)));
    session.handle(Millis(7), 0, Input::Received(vec![puback(2)]));
    assert_eq!(recorded(&mut session), [[0; 0]; 0]);
    session.handle(Millis(8), 0, Input::Tick);
    assert_eq!(recorded(&mut session), [[0, 1, 2]]);
    session.handle(Millis(9), 0, Input::Received(vec![puback(3)]));
    assert_eq!(recorded(&mut session), [[0; 0]; 0]);
    // Nothing more is to come.
    session.handle(Millis(9), 0, Input::Received(vec![puback(4), puback(5)]));
    assert_eq!(recorded(&mut session), [[3, 4, 5]]);
}

#[test]
fn releases_are_handed_in_as_they_come_while_the_commits_before_are_under_way_and_those_that_are_too_many_come_together() {
    let mut session = serving_at(Qos::ExactlyOnce, 6);
    let pubrec = |send: u64| Incoming::PubRec(Ack { packet_id: SendNo(send).packet_id(31), code: 0, reason: None });
    let released = |session: &mut Session| -> Vec<Vec<u64>> {
        let released = |output| match output {
            Output::Append(events) => Some(events),
            _ => None,
        };
        let sends = |event: Event| match event {
            Event::Released { sends, .. } => sends.iter().map(|send| send.0).collect(),
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| session.next_output()).filter_map(released).flatten().map(sends).collect()
    };
    for send in 0..6 {
        session.handle(Millis(5), 0, Input::Received(vec![pubrec(send)]));
    }
    assert_eq!(released(&mut session), [[0], [1], [2], [3]]);
    session.handle(Millis(5), 0, Input::Committed { resent: Vec::new() });
    assert_eq!(released(&mut session), [[4, 5]]);
}

#[test]
fn answers_that_change_nothing_but_what_is_recorded_are_read_together_when_that_is_due() {
    let mut session = serving(6);
    assert_eq!((session.hears(), session.deadline()), (false, Some(Millis(4))));
    session.handle(Millis(4), 0, Input::Tick);
    assert!(session.hears(), "until something has come");
    assert!(session.deadline().is_some_and(|at| at > Millis(4)), "it waits for nothing else");
    session.handle(Millis(4), 0, Input::Received((0..3).map(puback).collect()));
    assert_eq!(recorded(&mut session), [[0, 1, 2]], "they have waited before");
    assert!(session.hears(), "three are few");
    session.handle(Millis(5), 0, Input::Committed { resent: Vec::new() });
    let offered = |sends: std::ops::Range<u64>| Input::Offer(sends.map(|send| delivery(send, "t", Qos::AtLeastOnce)).collect());
    session.handle(Millis(5), 0, offered(6..9));
    assert!(!session.hears());
    session.handle(Millis(5), 0, offered(9..10));
    assert!(session.hears(), "something waits for room");
}

#[test]
fn a_full_window_is_made_room_in_together_unless_the_broker_had_nothing_to_do() {
    let mut session = serving_with(Settings { window_5: 5, ..settings(&calm()) }, Qos::AtLeastOnce, 5);
    let offered = |sends: std::ops::Range<u64>| Input::Offer(sends.map(|send| delivery(send, "t", Qos::AtLeastOnce)).collect());
    session.handle(Millis(1), 0, offered(5..7));
    assert_eq!((session.hears(), session.deadline()), (false, Some(Millis(2))));
    session.handle(Millis(2), 0, Input::Tick);
    assert!(session.hears());
    session.handle(Millis(2), 0, Input::Received(vec![puback(0)]));
    assert_eq!((session.in_flight(), session.hears()), (5, false));
    session.handle(Millis(3), 0, Input::Tick);
    session.handle(Millis(3), 0, Input::Received((1..6).map(puback).collect()));
    session.handle(Millis(4), 0, Input::Committed { resent: Vec::new() });
    session.handle(Millis(5), 0, offered(7..13));
    assert_eq!((session.in_flight(), session.hears()), (5, true), "it had answered everything");
    session.handle(Millis(1_003), 0, Input::Tick);
    assert!(!session.hears(), "it is tried again");
}

#[test]
fn answers_to_qos_2_are_read_as_they_come_but_while_a_release_is_made_durable() {
    let mut session = serving_at(Qos::ExactlyOnce, 6);
    let pubrec = |send: u64| Incoming::PubRec(Ack { packet_id: SendNo(send).packet_id(31), code: 0, reason: None });
    assert!(session.hears());
    session.handle(Millis(5), 0, Input::Received(vec![pubrec(0)]));
    assert!(!session.hears(), "the next ones come too late for this commit");
    session.handle(Millis(5), 0, Input::Committed { resent: Vec::new() });
    assert!(session.hears());
    session.handle(Millis(5), 0, Input::Received(vec![pubrec(1)]));
    assert_eq!((session.hears(), session.deadline()), (false, Some(Millis(6))), "a slow disk is not waited for");
    session.handle(Millis(6), 0, Input::Tick);
    assert!(session.hears());
}

#[test]
fn what_is_done_is_recorded_at_once_when_the_connection_is_lost_or_the_lane_stops() {
    for input in [Input::Closed { reason: "cut".into() }, Input::Drain] {
        let mut session = serving(3);
        session.handle(Millis(5), 0, Input::Received(vec![puback(0)]));
        assert_eq!(recorded(&mut session), [[0; 0]; 0]);
        session.handle(Millis(5), 0, input);
        assert_eq!(recorded(&mut session), [[0]]);
    }
}

#[test]
fn what_arrives_behind_the_end_of_a_connection_is_of_no_connection() {
    let mut session = serving(2);
    let goodbye = Incoming::Disconnect { code: 0x8b, reason: None };
    session.handle(Millis(5), 0, Input::Received(vec![puback(0), goodbye.clone(), puback(1), goodbye]));
    assert_eq!(session.in_flight(), 1, "the second is in doubt");
    let closed = std::iter::from_fn(|| session.next_output()).filter(|output| matches!(output, Output::Close)).count();
    assert_eq!(closed, 1);
}
