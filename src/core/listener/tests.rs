use std::collections::BTreeMap;

use super::*;

const LIMITS: Limits = Limits {
    connect_timeout_ms: 1_000,
    receive_maximum: 3,
    topic_alias_maximum: 2,
    session_expiry_s: 100,
    read_ahead: 4_000,
    largest: 2_000,
};

/// A connection, and what it has said so far.
struct Scene {
    machine: Publisher,
    now: Millis,
    said: Vec<Output>,
}

fn connect(protocol: Protocol, client_id: &str, session_expiry_s: u32) -> Connect {
    Connect {
        protocol,
        client_id: client_id.to_owned(),
        clean: session_expiry_s == 0,
        keepalive_s: 10,
        session_expiry_s,
        maximum_packet_size: None,
        login: None,
        will: None,
        wants_authentication: false,
    }
}

fn publish(qos: Qos, packet_id: u16, payload: &'static str) -> Publish {
    Publish {
        topic: "t".to_owned(),
        alias: None,
        qos,
        retain: false,
        dup: false,
        packet_id,
        expiry_s: None,
        properties: Default::default(),
        payload: payload.into(),
    }
}

fn will(delay_s: u32) -> Option<Will> {
    Some(Will { publish: publish(Qos::AtLeastOnce, 0, "gone"), delay_s })
}

fn ack(kind: AckKind, packet_id: u16) -> Answer {
    Answer::Ack(Ack { kind, packet_id, is_unknown: false })
}

impl Scene {
    fn expecting() -> Scene {
        Scene { machine: Publisher::new(LIMITS, Millis(0)), now: Millis(0), said: Vec::new() }
    }

    /// Welcome, with what its session had received.
    fn open(connect: Connect, received: &[(u16, u64)]) -> Scene {
        let mut scene = Scene::expecting();
        scene.give(Input::Received(Incoming::Connect(Box::new(connect))));
        let received: BTreeMap<u16, u64> = received.iter().copied().collect();
        let admission = Admission { session_present: !received.is_empty(), assigned: None, received };
        scene.give(Input::Admitted(admission));
        scene.said.clear();
        scene
    }

    fn give(&mut self, input: Input) {
        self.machine.handle(self.now, input);
        while let Some(output) = self.machine.next_output() {
            self.said.push(output);
        }
    }

    fn publish(&mut self, qos: Qos, packet_id: u16, payload: &'static str) {
        self.give(Input::Received(Incoming::Publish(Box::new(publish(qos, packet_id, payload)))));
    }

    fn release(&mut self, packet_id: u16) {
        self.give(Input::Received(Incoming::PubRel { packet_id }));
    }

    /// What is being stored, in short: payloads, `again`, `release`, `refuse`.
    fn storing(&self) -> Vec<String> {
        let short = |step: &Step| match step {
            Step::Store { publish, .. } => String::from_utf8_lossy(&publish.payload).into_owned(),
            Step::Again { packet_id } => format!("again {packet_id}"),
            Step::Release { packet_id, .. } => format!("release {packet_id}"),
            Step::Refuse(refused) => format!("refuse {}", refused.packet_id),
        };
        self.machine.steps().iter().map(short).collect()
    }

    fn said(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.said)
    }

    fn ended(&mut self) -> Ended {
        match self.said().pop() {
            Some(Output::Ended(ended)) => *ended,
            other => panic!("it has not ended: {other:?}"),
        }
    }
}

#[test]
fn nothing_is_acknowledged_before_it_is_stored_and_then_all_of_it_in_order() {
    let mut scene = Scene::open(connect(Protocol::V311, "a", 0), &[]);
    scene.publish(Qos::AtLeastOnce, 1, "one");
    assert_eq!(scene.storing(), ["one"]);
    // What comes meanwhile is the next piece.
    scene.publish(Qos::ExactlyOnce, 2, "two");
    scene.publish(Qos::AtMostOnce, 0, "three");
    scene.publish(Qos::AtLeastOnce, 4, "four");
    assert_eq!(scene.said(), [Output::Store], "and no acknowledgement");
    scene.give(Input::Stored);
    assert_eq!(scene.storing(), ["two", "three", "four"]);
    assert_eq!(scene.said(), [Output::Acknowledge(vec![ack(AckKind::PubAck, 1)]), Output::Store]);
    scene.give(Input::Stored);
    assert_eq!(scene.said(), [Output::Acknowledge(vec![ack(AckKind::PubRec, 2), ack(AckKind::PubAck, 4)])]);
}

#[test]
fn a_repeated_publish_gets_its_pubrec_again_and_a_different_one_under_its_id_is_new() {
    let known = publish(Qos::ExactlyOnce, 7, "known").content();
    let mut scene = Scene::open(connect(Protocol::V311, "a", 100), &[(7, known), (8, known), (9, 0)]);
    scene.publish(Qos::ExactlyOnce, 7, "known");
    assert_eq!(scene.storing(), ["again 7"]);
    scene.publish(Qos::ExactlyOnce, 8, "another");
    scene.publish(Qos::ExactlyOnce, 9, "what it was is not known");
    // Within one piece, too.
    scene.publish(Qos::ExactlyOnce, 8, "another");
    scene.release(8);
    scene.publish(Qos::ExactlyOnce, 8, "another");
    scene.give(Input::Stored);
    assert_eq!(scene.storing(), ["another", "again 9", "again 8", "release 8", "another"]);
}

#[test]
fn only_what_a_lasting_session_has_received_is_for_the_log_to_remember() {
    for (expiry, is_remembered) in [(0, false), (100, true)] {
        let mut scene = Scene::open(connect(Protocol::V5, "a", expiry), &[]);
        scene.publish(Qos::ExactlyOnce, 1, "x");
        assert!(matches!(scene.machine.steps(), [Step::Store { is_remembered: found, .. }] if *found == is_remembered));
        scene.give(Input::Stored);
        scene.release(1);
        assert!(matches!(scene.machine.steps(), [Step::Release { is_known: true, is_remembered: found, .. }] if *found == is_remembered));
        scene.give(Input::Stored);
        scene.said();
        scene.release(1);
        scene.give(Input::Stored);
        let unknown = Answer::Ack(Ack { kind: AckKind::PubComp, packet_id: 1, is_unknown: true });
        assert_eq!(scene.said(), [Output::Store, Output::Acknowledge(vec![unknown])]);
    }
}

#[test]
fn while_the_store_is_full_a_3_1_1_client_waits_and_its_releases_go_on() {
    let known = publish(Qos::ExactlyOnce, 9, "old").content();
    let mut scene = Scene::open(connect(Protocol::V311, "a", 100), &[(9, known)]);
    scene.publish(Qos::AtLeastOnce, 1, "one");
    scene.give(Input::Full);
    assert!(scene.machine.is_held() && scene.machine.steps().is_empty());
    scene.said();
    scene.publish(Qos::ExactlyOnce, 2, "two");
    scene.release(2);
    scene.release(9);
    assert_eq!(scene.storing(), ["release 9"], "and not that of what waits itself");
    scene.give(Input::Stored);
    scene.give(Input::Received(Incoming::PingReq));
    let said = scene.said();
    assert!(said.contains(&Output::Send(Outgoing::PingResp)), "{said:?}");
    assert!(
        !said.iter().any(
            |output| matches!(output, Output::Acknowledge(answers) if answers.iter().any(|answer| *answer != ack(AckKind::PubComp, 9)))
        )
    );
    scene.give(Input::Retry);
    assert_eq!(scene.storing(), ["one", "two", "release 2"], "in their order");
    scene.give(Input::Stored);
    let expected = vec![ack(AckKind::PubAck, 1), ack(AckKind::PubRec, 2), ack(AckKind::PubComp, 2)];
    assert_eq!(scene.said(), [Output::Store, Output::Acknowledge(expected)]);
}

#[test]
fn an_mqtt_5_client_is_told_that_the_store_is_full_and_its_qos_0_waits() {
    let mut scene = Scene::open(connect(Protocol::V5, "a", 0), &[]);
    scene.publish(Qos::AtMostOnce, 0, "zero");
    scene.give(Input::Full);
    scene.said();
    let refused = |kind, packet_id| Output::Acknowledge(vec![Answer::Refused(Refused { kind, packet_id, code: code::QUOTA })]);
    scene.publish(Qos::AtLeastOnce, 1, "one");
    scene.publish(Qos::ExactlyOnce, 2, "two");
    assert_eq!(scene.storing(), ["refuse 1"]);
    scene.give(Input::Stored);
    scene.give(Input::Stored);
    assert_eq!(scene.said(), [Output::Store, refused(AckKind::PubAck, 1), Output::Store, refused(AckKind::PubRec, 2)]);
    scene.give(Input::Retry);
    assert_eq!(scene.storing(), ["zero"]);
    // What was being stored when it turned out to be full is refused as well.
    scene.give(Input::Stored);
    scene.said();
    scene.publish(Qos::AtLeastOnce, 3, "three");
    scene.give(Input::Full);
    let told = Outgoing::Refused(Refused { kind: AckKind::PubAck, packet_id: 3, code: code::QUOTA });
    assert_eq!(scene.said(), [Output::Store, Output::Send(told)]);
}

#[test]
fn a_publish_that_no_store_takes_is_refused_as_such_and_not_as_one_that_comes_too_soon() {
    let large = || Publish { payload: vec![b'x'; LIMITS.largest].into(), ..publish(Qos::AtLeastOnce, 1, "") };
    let mut scene = Scene::open(connect(Protocol::V5, "a", 0), &[]);
    scene.give(Input::Received(Incoming::Publish(Box::new(large()))));
    scene.give(Input::Stored);
    let refused = Refused { kind: AckKind::PubAck, packet_id: 1, code: code::NOT_SERVED };
    assert_eq!(scene.said(), [Output::Store, Output::Acknowledge(vec![Answer::Refused(refused)])]);
    // Of MQTT 3.1.1 there is no other way to say it.
    let mut scene = Scene::open(connect(Protocol::V311, "a", 0), &[]);
    scene.give(Input::Received(Incoming::Publish(Box::new(large()))));
    assert_eq!(scene.ended().close.code, "too_large");
}

#[test]
fn reading_stops_when_too_much_is_held_and_its_silence_is_not_the_clients() {
    let mut scene = Scene::open(connect(Protocol::V311, "a", 0), &[]);
    scene.publish(Qos::AtLeastOnce, 1, "x");
    scene.give(Input::Full);
    let mut id = 1;
    while scene.machine.wants_packets() {
        id += 1;
        assert!(id < 100, "it is bounded");
        scene.publish(Qos::AtLeastOnce, id, "x");
    }
    assert!(scene.machine.held_bytes() < LIMITS.read_ahead + 1_000);
    scene.now = Millis(1_000_000);
    scene.give(Input::Tick);
    assert_eq!(scene.machine.deadline(), None, "no keepalive runs against who is not listened to");
    scene.machine.excuse(scene.now);
    scene.give(Input::Retry);
    scene.give(Input::Stored);
    assert!(scene.machine.wants_packets() && scene.machine.deadline() == Some(Millis(1_015_000)));
}

#[test]
fn the_first_packet_has_its_time_and_a_keepalive_one_and_a_half() {
    let mut scene = Scene::expecting();
    scene.now = Millis(999);
    scene.give(Input::Tick);
    assert_eq!(scene.said(), []);
    scene.now = Millis(1_000);
    scene.give(Input::Tick);
    assert_eq!(scene.ended().close.code, "connect_timeout");
    let mut scene = Scene::open(Connect { will: will(0), ..connect(Protocol::V5, "a", 0) }, &[]);
    scene.now = Millis(14_999);
    scene.give(Input::Tick);
    assert_eq!(scene.said(), []);
    scene.now = Millis(15_000);
    scene.give(Input::Tick);
    let [Output::Send(told), Output::Ended(ended)] = &scene.said()[..] else { panic!("it ends") };
    assert_eq!((told, ended.close.code), (&Outgoing::Disconnect { code: 0x8d }, "keepalive_timeout"));
    assert!(ended.will.is_some(), "it has vanished");
}

#[test]
fn the_will_is_for_who_vanishes_and_not_for_who_leaves_or_is_sent_away_by_a_stop() {
    let open = |delay_s| Scene::open(Connect { will: will(delay_s), ..connect(Protocol::V5, "a", 50) }, &[]);
    let ends = |mut scene: Scene, input| {
        scene.give(input);
        scene.ended()
    };
    let leaves = |code, session_expiry_s| Input::Received(Incoming::Disconnect { code, session_expiry_s });
    assert_eq!(ends(open(0), leaves(0, None)).will, None);
    assert!(ends(open(0), leaves(4, None)).will.is_some(), "it asks for it");
    assert!(ends(open(5), Input::End(Close::lost("cut"))).will.is_some());
    assert_eq!(ends(open(0), Input::End(Close::stopping())).will, None);
    assert_eq!(ends(open(5), Input::End(Close::taken_over())).will, None, "the client is there");
    assert!(ends(open(0), Input::End(Close::taken_over())).will.is_some(), "MQTT 5.0 §3.1.4: without a delay it is sent");
    assert_eq!(ends(open(0), leaves(0, Some(7))).session_expiry_s, 7);
    assert_eq!(ends(open(0), Input::End(Close::lost("cut"))).session_expiry_s, 50);
}

#[test]
fn at_an_end_what_nobody_will_send_again_is_stored_and_what_comes_again_is_not() {
    let mut scene = Scene::open(connect(Protocol::V311, "a", 0), &[]);
    scene.publish(Qos::AtLeastOnce, 1, "under way");
    scene.publish(Qos::AtMostOnce, 0, "zero");
    scene.publish(Qos::ExactlyOnce, 2, "unacknowledged");
    scene.give(Input::End(Close::lost("cut")));
    scene.give(Input::Stored);
    assert_eq!(scene.storing(), ["zero"]);
    scene.give(Input::Stored);
    assert_eq!(scene.ended().close.code, "connection_lost");
    // Who leaves in order has nothing to send again.
    let mut scene = Scene::open(connect(Protocol::V311, "a", 0), &[]);
    scene.publish(Qos::AtLeastOnce, 1, "one");
    scene.publish(Qos::AtLeastOnce, 2, "two");
    scene.give(Input::Received(Incoming::Disconnect { code: 0, session_expiry_s: None }));
    scene.give(Input::Stored);
    assert_eq!(scene.storing(), ["two"]);
}

#[test]
fn a_store_that_fails_ends_the_connection_without_a_word_about_what_was_sent() {
    let mut scene = Scene::open(connect(Protocol::V5, "a", 0), &[]);
    scene.publish(Qos::AtLeastOnce, 1, "one");
    scene.said();
    scene.give(Input::Failed(Close::new("store_failed", code::UNAVAILABLE, "the disk is gone")));
    let said = scene.said();
    let told = |output: &Output| !matches!(output, Output::Send(Outgoing::Disconnect { .. }) | Output::Ended(_));
    assert!(!said.iter().any(told), "{said:?}");
}

#[test]
fn who_connects_while_the_service_stops_is_told_what_a_connack_may_say() {
    for (close, told) in
        [(Close::stopping(), 0x88), (Close::taken_over(), 0x88), (Close::new("not_authorized", code::NOT_AUTHORIZED, "no"), 0x87)]
    {
        let mut scene = Scene::expecting();
        scene.give(Input::Received(Incoming::Connect(Box::new(connect(Protocol::V5, "a", 0)))));
        scene.said();
        scene.give(Input::End(close));
        assert_eq!(scene.said().first(), Some(&Output::Send(Outgoing::Refusal { code: told })));
    }
}

#[test]
fn aliases_are_bounded_in_number_and_bytes() {
    let mut scene = Scene::open(connect(Protocol::V5, "a", 0), &[]);
    let aliased = |topic: String, alias| Publish { topic, alias: Some(alias), ..publish(Qos::AtMostOnce, 0, "x") };
    scene.give(Input::Received(Incoming::Publish(Box::new(aliased("long/topic".to_owned(), 1)))));
    scene.give(Input::Received(Incoming::Publish(Box::new(aliased(String::new(), 1)))));
    scene.give(Input::Stored);
    assert!(matches!(scene.machine.steps(), [Step::Store { publish, .. }] if publish.topic == "long/topic"));
    scene.give(Input::Received(Incoming::Publish(Box::new(aliased("t".repeat(ALIAS_BYTES), 2)))));
    scene.give(Input::Stored);
    assert_eq!(scene.ended().close.reason_code, code::QUOTA);
}
