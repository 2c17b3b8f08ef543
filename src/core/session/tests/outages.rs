//! Connections that break, and what is made of that.

use super::*;

/// What follows from an input.
fn give(session: &mut Session, now: u64, input: Input) -> Vec<Output> {
    session.handle(Millis(now), u32::MAX, input);
    std::iter::from_fn(|| session.next_output()).collect()
}

/// Connects, to a broker that has no session; gives back what follows from the CONNACK.
fn connect(session: &mut Session, now: u64) -> Vec<Output> {
    let connack =
        Incoming::ConnAck { session_present: false, code: 0, limits: BrokerLimits::default(), reason: None, assigned_client_id: None };
    let mut outputs = Vec::new();
    for input in [Input::Tick, Input::Opened, Input::Received(vec![connack])] {
        outputs.extend(give(session, now, input));
    }
    outputs
}

/// The connection breaks; so many milliseconds later it is tried again.
fn wait_after_a_cut(session: &mut Session, now: u64) -> u64 {
    let outputs = give(session, now, Input::Closed { reason: "cut".into() });
    let retry_at = outputs.into_iter().find_map(|output| match output {
        Output::Note(Note::Disconnected { retry_at, .. }) => Some(retry_at),
        _ => None,
    });
    retry_at.expect("it is tried again").since(Millis(now))
}

/// A lane of nothing but QoS 0 after a long outage: it is connected, and has sent ten.
fn after_an_outage(now: u64) -> Session {
    let mut session = Session::new(settings(&calm()), Start::default());
    for failure in 0..10 {
        give(&mut session, failure * 1_000, Input::Tick);
        wait_after_a_cut(&mut session, failure * 1_000);
    }
    connect(&mut session, now);
    give(&mut session, now, Input::Committed { resent: Vec::new() });
    give(&mut session, now, Input::Offer((0..10).map(|send| Delivery { size: 0, ..delivery(send, "t", Qos::AtMostOnce) }).collect()));
    let done = give(&mut session, now, Input::Flushed((0..10).map(SendNo).collect()));
    assert_eq!(done.iter().filter(|output| matches!(output, Output::Note(Note::Done { .. }))).count(), 10);
    session
}

#[test]
fn after_an_outage_a_connection_that_has_lasted_is_tried_again_soon_also_where_nothing_is_ever_acknowledged() {
    let policy = settings(&calm()).retry;
    let mut session = after_an_outage(20_000);
    assert!(wait_after_a_cut(&mut session, 20_000 + policy.max_ms) <= policy.initial_ms);
}

#[test]
fn a_broker_that_lets_in_and_hangs_up_is_not_asked_in_a_busy_loop() {
    let policy = settings(&calm()).retry;
    let mut session = after_an_outage(20_000);
    assert_eq!(wait_after_a_cut(&mut session, 20_000 + policy.max_ms - 1), policy.max_ms);
}

/// The client id of the CONNECT among these.
fn client_id(outputs: &[Output]) -> String {
    let client_id = outputs.iter().find_map(|output| match output {
        Output::Send(Outgoing::Connect { client_id, .. }) => Some(client_id.clone()),
        _ => None,
    });
    client_id.expect("CONNECT is sent")
}

#[test]
fn a_packet_id_that_is_in_use_in_a_clean_session_costs_the_session_and_not_the_report() {
    let mut session = Session::new(settings(&calm()), Start::default());
    let first = client_id(&connect(&mut session, 1_000));
    give(&mut session, 1_000, Input::Committed { resent: Vec::new() });
    give(&mut session, 1_000, Input::Offer(vec![delivery(0, "t", Qos::ExactlyOnce)]));
    let pubrec = |code| Incoming::PubRec(Ack { packet_id: SendNo(0).packet_id(31), code, reason: None });
    let outputs = give(&mut session, 1_000, Input::Received(vec![pubrec(code::ID_IN_USE)]));
    assert!(outputs.iter().any(|output| matches!(output, Output::Note(Note::SessionLost { in_doubt: 1, .. }))), "{outputs:?}");
    give(&mut session, 1_000, Input::Committed { resent: Vec::new() });
    let mut outputs = connect(&mut session, 2_000);
    assert_ne!(client_id(&outputs), first, "what is in use there never meets it again");
    outputs.extend(give(&mut session, 2_000, Input::Tick));
    let is_sent_as_new = |output: &Output| matches!(output, Output::Send(Outgoing::Publish { send: SendNo(0), dup: false, .. }));
    assert!(outputs.iter().any(is_sent_as_new), "{outputs:?}");
    let outputs = give(&mut session, 2_000, Input::Received(vec![pubrec(0)]));
    let is_released = |output: &Output| matches!(output, Output::Append(events) if matches!(events[..], [Event::Released { .. }]));
    assert!(outputs.iter().any(is_released), "{outputs:?}");
}

#[test]
fn a_broker_that_watches_nobody_is_watched_as_often_as_the_settings_say() {
    for (told, keepalive_s) in [(Some(0), 60), (None, 60), (Some(7), 7)] {
        let mut session = Session::new(settings(&calm()), Start::default());
        give(&mut session, 1_000, Input::Tick);
        give(&mut session, 1_000, Input::Opened);
        let limits = BrokerLimits { keepalive_s: told, ..BrokerLimits::default() };
        let connack = Incoming::ConnAck { session_present: false, code: 0, limits, reason: None, assigned_client_id: None };
        give(&mut session, 1_000, Input::Received(vec![connack]));
        give(&mut session, 1_000, Input::Committed { resent: Vec::new() });
        assert_eq!(session.deadline(), Some(Millis(1_000 + keepalive_s * 1_000)), "{told:?}");
    }
}

#[test]
fn what_is_given_up_at_a_start_is_given_up_when_the_lane_starts() {
    let start = Start { at: Millis(77_000), ..in_doubt("(left behind)", &[(0, "t", Qos::ExactlyOnce)]) };
    let (_, said, _) = resumed(start);
    let opened = said.iter().find_map(|output| match output {
        Output::Append(events) => match events[..] {
            [Event::SessionOpened { at, .. }] => Some(at),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(opened, Some(Millis(77_000)), "{said:?}");
}

#[test]
fn the_time_that_a_broker_has_for_its_answer_begins_when_the_packet_has_left() {
    let (mut session, since) = (Session::new(settings(&calm()), Start::default()), 20_000);
    let timeout = settings(&calm()).ack_timeout_ms;
    connect(&mut session, since);
    give(&mut session, since, Input::Committed { resent: Vec::new() });
    give(&mut session, since, Input::Offer(vec![delivery(0, "t", Qos::AtLeastOnce)]));
    let is_closed = |outputs: Vec<Output>| outputs.contains(&Output::Close);
    let left = since + timeout - 1;
    give(&mut session, left, Input::LeftLate { since: Millis(since), left: Millis(left) });
    assert!(!is_closed(give(&mut session, since + timeout, Input::Tick)));
    assert!(!is_closed(give(&mut session, left + timeout - 1, Input::Tick)));
    assert!(is_closed(give(&mut session, left + timeout, Input::Tick)));
}
