//! Brokers that misbehave. Whatever they do, once they behave everything is delivered, at QoS 2 once if they kept their session.

use std::collections::{HashSet, VecDeque};

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::scripted::{Act, Heard, Limits, Packet, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::{wait_until, wire};

const COUNT: u64 = 60;

fn start(broker: &ScriptedBroker, more: &str) -> Tidings {
    Tidings::start(&(connection(broker.port, &format!("workers = 1\n{more}")) + SOON + PIPELINES))
}

fn post_mix(tidings: &Tidings) -> Ledger {
    let mut ledger = Ledger::default();
    let qos = |number| 1 + u8::from(number % 2 == 0);
    let reports: Vec<String> = (0..COUNT).map(|number| report(action_for(qos(number)), &format!("p{}", number % 4), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    ledger
}

/// Everything accepted ends delivered, at QoS 2 once, with good manners and without a doubt.
fn assert_delivered(tidings: &Tidings, broker: &ScriptedBroker, ledger: &Ledger) {
    tidings.wait_until_delivered();
    ledger.assert_kept(&broker.arrivals());
    broker.assert_no_violations();
    tidings.assert_balanced();
    assert_eq!(possible_duplicates(tidings), 0.0);
}

fn possible_duplicates(tidings: &Tidings) -> f64 {
    tidings.metric(r#"tidings_possible_duplicates_total{connection="mqtt"}"#)
}

/// Does something else than usual the first times that something is heard.
fn at_first(times: usize, is_meant: impl Fn(&Packet) -> bool + Send + 'static, acts: Vec<Act>) -> impl FnMut(&Packet) -> Vec<Act> + Send {
    let mut left = times;
    move |packet| {
        if left > 0 && is_meant(packet) {
            left -= 1;
            return acts.clone();
        }
        vec![Act::Usual]
    }
}

#[test]
fn a_connection_that_breaks_at_any_step_is_resumed_and_qos_2_arrives_once() {
    for acts in [vec![Act::Close], vec![Act::Usual, Act::Close]] {
        for step in ["PUBLISH", "PUBREL"] {
            for protocol in ["5", "3.1.1"] {
                // Lost before the broker took it, or its answer lost on the way. Each packet meets that once: a resume that dies at the
                // same place again and again is another matter.
                let (acts, mut broken) = (acts.clone(), HashSet::new());
                let script = move |packet: &Packet| {
                    let packet_id = match &packet.heard {
                        Heard::Publish(publish) if step == "PUBLISH" => publish.packet_id,
                        Heard::PubRel(packet_id) if step == "PUBREL" => *packet_id,
                        _ => 0,
                    };
                    if packet_id % 14 == 3 && broken.insert(packet_id) { acts.clone() } else { vec![Act::Usual] }
                };
                let broker = ScriptedBroker::start(script);
                let tidings = start(&broker, &format!("protocol = \"{protocol}\""));
                let ledger = post_mix(&tidings);
                assert_delivered(&tidings, &broker, &ledger);
                assert!(broker.connects().len() > 4, "{step} {protocol}: it was resumed again and again");
            }
        }
    }
}

#[test]
fn a_broker_that_has_lost_the_session_gets_everything_again_and_what_may_be_there_twice_is_counted() {
    // PUBREL stays unanswered once; then the connection breaks, and the session is gone.
    let broker = ScriptedBroker::start(|packet| if packet.is_pubrel() { vec![] } else { vec![Act::Usual] });
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    wait_until("PUBREL is on its way", || broker.count(Packet::is_pubrel) >= 1);
    let last = broker.heard().last().unwrap().connection;
    broker.change(move |packet| match packet.connection {
        connection if connection <= last => vec![],
        _ if packet.is_connect() => vec![Act::Forget],
        _ => vec![Act::Usual],
    });
    broker.hang_up();
    tidings.wait_until_delivered();
    ledger.assert_kept(&broker.arrivals());
    assert!(possible_duplicates(&tidings) >= 1.0);
    assert!(tidings.total("possible_duplicates") >= 1, "the log knows it too");
    assert!(!tidings.logged("the broker's session is lost").is_empty());
    let connects = broker.connects();
    assert!(connects[0].client_id != connects.last().unwrap().client_id, "an old session can't come back and meet new reports");
    broker.assert_no_violations();
    tidings.assert_balanced();
}

#[test]
fn a_resume_that_dies_three_times_is_given_up_and_what_may_be_there_twice_is_counted() {
    let broker = ScriptedBroker::start(|packet| if packet.is_pubrel() { vec![] } else { vec![Act::Usual] });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    wait_until("PUBREL is on its way", || broker.count(Packet::is_pubrel) >= 1);
    let first = broker.connects()[0].client_id.clone();
    let mut is_first = false;
    broker.change(move |packet| {
        if let Heard::Connect(connect) = &packet.heard {
            is_first = connect.client_id == first;
        }
        if is_first && packet.is_pubrel() { vec![Act::Close] } else { vec![Act::Usual] }
    });
    broker.hang_up();
    tidings.wait_until_delivered();
    ledger.assert_kept(&broker.arrivals());
    assert_eq!(broker.count(Packet::is_pubrel), 1 + 3 + 1, "at first, at each resume, and in the new session");
    assert_eq!(possible_duplicates(&tidings), 1.0);
    assert!(!tidings.logged("this broker can't resume it").is_empty());
    broker.assert_no_violations();
}

#[test]
fn connections_that_are_closed_after_connack_are_tried_again_with_growing_waits() {
    let broker = ScriptedBroker::start(at_first(6, Packet::is_connect, vec![Act::Usual, Act::Close]));
    let tidings = start(&broker, "protocol = \"5\"");
    wait_until("it connects again and again", || broker.connects().len() > 6);
    let ledger = post_mix(&tidings);
    assert_delivered(&tidings, &broker, &ledger);
    let waits: Vec<u64> = tidings.logged("no connection to the broker").iter().map(|line| line["wait_ms"].as_u64().unwrap()).collect();
    assert!(waits.iter().all(|wait| (9..=200).contains(wait)), "between half of `initial` and `max`: {waits:?}");
}

#[test]
fn a_receive_maximum_of_1_is_never_exceeded() {
    let limits = Limits { receive_maximum: Some(1), ..Limits::default() };
    let broker = ScriptedBroker::with_limits(limits, |_| vec![Act::Usual]);
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    assert_delivered(&tidings, &broker, &ledger);
    assert_eq!(broker.most_in_flight(), 1);
}

#[test]
fn a_receive_maximum_holds_for_a_resumed_session_too() {
    // Everything gets a PUBREC and nothing a PUBCOMP, so that much is in flight when the connection breaks.
    let broker = ScriptedBroker::with_limits(Limits { receive_maximum: Some(5), ..Limits::default() }, |packet| {
        if packet.is_pubrel() { vec![] } else { vec![Act::Usual] }
    });
    let mut tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    wait_until("the window is full", || broker.most_in_flight() == 5);
    for kill in [false, true] {
        if kill {
            tidings.kill();
            tidings.run();
        }
        broker.hang_up();
    }
    broker.behave();
    broker.hang_up();
    assert_delivered(&tidings, &broker, &ledger);
    assert_eq!(broker.most_in_flight(), 5);
}

#[test]
fn the_window_of_3_1_1_counts_everything_that_has_no_pubcomp() {
    let broker = ScriptedBroker::with_limits(Limits { receive_maximum: Some(20), ..Limits::default() }, |packet| {
        if packet.is_pubrel() { vec![] } else { vec![Act::Usual] }
    });
    let tidings = start(&broker, "protocol = \"3.1.1\"");
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &(0..COUNT).map(|number| report("success", "one", number)).collect::<Vec<_>>());
    wait_until("the window is full", || broker.count(Packet::is_pubrel) == 20);
    broker.behave();
    broker.hang_up();
    assert_delivered(&tidings, &broker, &ledger);
    assert_eq!(broker.most_in_flight(), 20);
}

#[test]
fn a_report_beyond_the_maximum_packet_size_is_dead_at_once_and_unsent_and_the_others_arrive() {
    let limits = Limits { maximum_packet_size: Some(400), ..Limits::default() };
    let broker = ScriptedBroker::with_limits(limits, |_| vec![Act::Usual]);
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    for number in 0..9 {
        let action = action_for(u8::try_from(number % 3).unwrap());
        ledger.post_raw(&tidings.client(), &report(action, "one", number));
    }
    let large = report("success", "one", 9).replace("acme", &"a".repeat(400));
    ledger.post_raw(&tidings.client(), &large);
    for number in 10..15 {
        ledger.post(&tidings, 2, "one", number);
    }
    tidings.wait_for_total("dead", 1);
    ledger.accepted.remove(9);
    assert_delivered(&tidings, &broker, &ledger);
    assert_eq!(broker.count(|packet| packet.carries(&"a".repeat(400))), 0);
    let lines = tidings.logged("dead letter");
    assert!(lines.len() == 1 && lines[0].to_string().contains("Maximum Packet Size of 400"), "{lines:?}");
}

/// Automatic choice: what a broker answers to MQTT 5, and that 3.1.1 is spoken then.
fn falls_back(acts: Vec<Act>) {
    let is_5 = |packet: &Packet| matches!(&packet.heard, Heard::Connect(connect) if connect.level == 5);
    let broker = ScriptedBroker::start(move |packet| if is_5(packet) { acts.clone() } else { vec![Act::Usual] });
    let mut tidings = start(&broker, "");
    let ledger = post_mix(&tidings);
    assert_delivered(&tidings, &broker, &ledger);
    assert_eq!(tidings.status("mqtt")["lanes"][0]["protocol"], "3.1.1");
    let asked = broker.count(is_5);
    assert_eq!(tidings.stop(), Some(0));
    tidings.run();
    wait_until("it connects again", || tidings.status("mqtt")["lanes"][0]["state"] == "connected");
    assert!(broker.count(is_5) > asked, "the broker may have learnt MQTT 5 meanwhile");
    assert_eq!(tidings.status("mqtt")["lanes"][0]["protocol"], "3.1.1");
}

#[test]
fn a_broker_that_refuses_mqtt_5_with_0x84_is_spoken_to_in_3_1_1() {
    falls_back(vec![Act::Refuse(0x84), Act::Close]);
}

#[test]
fn a_broker_that_answers_mqtt_5_with_a_connack_of_3_1_1_is_spoken_to_in_3_1_1() {
    falls_back(vec![Act::Bytes(wire::packet(wire::CONNACK << 4, &[0, 1])), Act::Close]);
}

#[test]
fn a_broker_that_hangs_up_on_mqtt_5_without_a_word_is_spoken_to_in_3_1_1() {
    falls_back(vec![Act::Close]);
}

#[test]
fn a_protocol_that_was_asked_for_is_not_given_up_and_the_status_says_what_is_wrong() {
    let broker = ScriptedBroker::start(|packet| if packet.is_connect() { vec![Act::Refuse(0x84), Act::Close] } else { vec![Act::Usual] });
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    wait_until("it has tried several times", || broker.connects().len() > 5);
    let error = tidings.status("mqtt")["lanes"][0]["last_error"]["message"].clone();
    assert!(error.as_str().unwrap().contains("0x84 (unsupported protocol version); check `protocol`"), "{error}");
    assert!(broker.connects().iter().all(|connect| connect.level == 5));
    broker.behave();
    assert_delivered(&tidings, &broker, &ledger);
}

#[test]
fn acknowledgements_out_of_order_find_their_reports() {
    let mut unanswered = VecDeque::new();
    let broker = ScriptedBroker::start(move |packet| {
        let Some(publish) = packet.publish() else { return vec![Act::Usual] };
        unanswered.push_front(publish.packet_id);
        // The last first; the number of reports is a multiple.
        if unanswered.len() == 10 { unanswered.drain(..).map(Act::Ack).collect() } else { vec![] }
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..COUNT).map(|number| report("failure", &format!("p{}", number % 4), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("acknowledged"), COUNT);
    assert_eq!(broker.count(|packet| packet.publish().is_some()), usize::try_from(COUNT).unwrap(), "each was sent once");
    broker.assert_no_violations();
}

#[test]
fn acknowledgements_for_what_was_never_sent_acknowledge_nothing() {
    // With every PUBLISH come acknowledgements of all kinds for identifiers far away.
    let broker = ScriptedBroker::start(|packet| {
        let strays = [wire::PUBACK, wire::PUBREC, wire::PUBCOMP].map(|kind| Act::Bytes(wire::ack(kind, 40_000, 0)));
        let mut acts = strays.to_vec();
        acts.push(Act::Usual);
        if packet.publish().is_some() { acts } else { vec![Act::Usual] }
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    assert_delivered(&tidings, &broker, &ledger);
    assert_eq!(tidings.total("acknowledged"), COUNT);
}

#[test]
fn an_acknowledgement_of_the_wrong_kind_is_not_taken_for_the_right_one() {
    let wrong = |packet: &Packet| packet.publish().is_some_and(|publish| publish.qos == 2);
    let mut left = 3;
    let broker = ScriptedBroker::start(move |packet| match packet.publish() {
        Some(publish) if wrong(packet) && left > 0 => {
            left -= 1;
            vec![Act::Bytes(wire::ack(wire::PUBACK, publish.packet_id, 0))]
        }
        _ => vec![Act::Usual],
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    assert_delivered(&tidings, &broker, &ledger);
    assert!(!tidings.logged("sent PUBACK for packet").is_empty());
}

#[test]
fn garbage_breaks_the_connection_and_nothing_else() {
    let garbage =
        [vec![0xff; 40], wire::packet(0x40, &[0]), vec![0x40, 0xff, 0xff, 0xff, 0xff, 0x01], wire::packet(0x30, b"\x00\x01ahello")];
    for bytes in garbage {
        let is_publish = |packet: &Packet| packet.publish().is_some_and(|publish| publish.packet_id > 5);
        let broker = ScriptedBroker::start(at_first(3, is_publish, vec![Act::Usual, Act::Bytes(bytes)]));
        let tidings = start(&broker, "protocol = \"5\"");
        let ledger = post_mix(&tidings);
        assert_delivered(&tidings, &broker, &ledger);
        // Where everything was acknowledged by then there is nothing to resume, and one more connection is enough.
        assert!(broker.connects().len() >= 2, "it broke, and connected again: {:?}", broker.connects());
    }
}

#[test]
fn a_disconnect_by_the_broker_is_logged_with_its_reason_and_the_session_is_resumed() {
    let shutting_down = Act::Bytes(wire::packet(wire::DISCONNECT << 4, &[0x8b, 0]));
    let is_publish = |packet: &Packet| packet.publish().is_some_and(|publish| publish.packet_id > 5);
    let broker = ScriptedBroker::start(at_first(2, is_publish, vec![shutting_down, Act::Close]));
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    assert_delivered(&tidings, &broker, &ledger);
    assert!(!tidings.logged("0x8b (server shutting down)").is_empty());
}

#[test]
fn a_broker_that_refuses_the_login_is_tried_again_and_the_status_says_what_to_check() {
    let broker = ScriptedBroker::start(|packet| if packet.is_connect() { vec![Act::Refuse(0x86), Act::Close] } else { vec![Act::Usual] });
    let tidings = start(&broker, "protocol = \"5\"\nuser = \"ci\"\npassword = \"sesame\"");
    let ledger = post_mix(&tidings);
    wait_until("it has tried several times", || broker.connects().len() > 5);
    let error = tidings.status("mqtt")["lanes"][0]["last_error"]["message"].clone();
    assert!(error.as_str().unwrap().contains("check `user` and `password`"), "{error}");
    broker.behave();
    assert_delivered(&tidings, &broker, &ledger);
    assert!(tidings.logged("sesame").is_empty(), "passwords are not logged");
}
