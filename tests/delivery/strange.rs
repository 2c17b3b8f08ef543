//! Brokers that break the rules of the protocol. Nothing hangs, nothing is taken for delivered that is not, and nobody else pays.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::scripted::{Act, Heard, Limits, Packet, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection, named_connection};
use crate::support::{wait_until, wire};

const COUNT: u64 = 60;
const AUTH: u8 = 15;

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

fn possible_duplicates(tidings: &Tidings) -> f64 {
    tidings.metric(r#"tidings_possible_duplicates_total{connection="mqtt"}"#)
}

/// Everything has arrived, QoS 2 once and without a doubt, and nothing is dead.
fn assert_delivered(tidings: &Tidings, broker: &ScriptedBroker, ledger: &Ledger) {
    tidings.wait_until_delivered();
    ledger.assert_kept(&broker.arrivals());
    broker.assert_no_violations();
    tidings.assert_balanced();
    assert_eq!((tidings.total("dead"), possible_duplicates(tidings)), (0, 0.0));
}

/// One service with a connection to each of these brokers; what is posted goes to all of them at QoS 1 and 2.
fn serve(brokers: &[(String, ScriptedBroker)]) -> (Tidings, Ledger) {
    let (mut config, mut pipeline) = (String::new(), "[[pipeline]]\nname = \"check\"\n".to_owned());
    for (name, broker) in brokers {
        config += &named_connection(name, broker.port, "workers = 1\nprotocol = \"5\"");
        pipeline += &format!("failure.{name} = {{ topic = \"zuul/{{project}}\", qos = 1 }}\n");
        pipeline += &format!("success.{name} = {{ topic = \"zuul/{{project}}\", qos = 2 }}\n");
    }
    let tidings = Tidings::start(&(config + SOON + &pipeline));
    let ledger = post_mix(&tidings);
    (tidings, ledger)
}

/// The same for each of them.
fn assert_all_delivered(tidings: &Tidings, brokers: &[(String, ScriptedBroker)], ledger: &Ledger) {
    tidings.wait_until_delivered();
    for (name, broker) in brokers {
        let of_one = ledger.accepted.iter().filter(|known| known.connection == *name).cloned().collect();
        Ledger { accepted: of_one }.assert_kept(&broker.arrivals());
        assert_eq!(tidings.status(name)["totals"]["dead"], 0, "{name}");
        assert_eq!(tidings.metric(&format!("tidings_possible_duplicates_total{{connection=\"{name}\"}}")), 0.0, "{name}");
        broker.assert_no_violations();
    }
    tidings.assert_balanced();
}

#[test]
fn qos_2_that_is_acknowledged_out_of_order_at_both_steps_arrives_once_each() {
    let (mut received, mut released) = (VecDeque::new(), VecDeque::new());
    let broker = ScriptedBroker::start(move |packet| {
        // The last first, six at a time; the number of reports is a multiple.
        if let Some(publish) = packet.publish() {
            received.push_front(publish.packet_id);
            return if received.len() == 6 { received.drain(..).map(Act::Ack).collect() } else { vec![] };
        }
        let Heard::PubRel(packet_id) = packet.heard else { return vec![Act::Usual] };
        released.push_front(packet_id);
        let answers = released.len() == 6;
        let complete = |packet_id| Act::Bytes(wire::ack(wire::PUBCOMP, packet_id, 0));
        if answers { released.drain(..).map(complete).collect() } else { vec![] }
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    ledger
        .post_many(&tidings.client(), &(0..COUNT).map(|number| report("success", &format!("p{}", number % 4), number)).collect::<Vec<_>>());
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("acknowledged"), COUNT);
    let count = usize::try_from(COUNT).unwrap();
    assert_eq!((broker.count(|packet| packet.publish().is_some()), broker.count(Packet::is_pubrel)), (count, count), "each once");
    assert_eq!(broker.connects().len(), 1);
    tidings.assert_balanced();
}

/// What is due, twice or more, and what comes before its time.
#[test]
fn an_acknowledgement_that_comes_again_or_too_early_acknowledges_nothing_else() {
    let bytes = |kind, packet_id| Act::Bytes(wire::ack(kind, packet_id, 0));
    type Extra = fn(&Packet) -> Option<(u8, u16)>;
    let cases: [(&str, bool, Extra); 6] = [
        ("puback-twice", false, |packet| {
            packet.publish().filter(|publish| publish.qos == 1).map(|publish| (wire::PUBACK, publish.packet_id))
        }),
        ("pubrec-twice", false, |packet| {
            packet.publish().filter(|publish| publish.qos == 2).map(|publish| (wire::PUBREC, publish.packet_id))
        }),
        ("pubrec-late", false, |packet| match packet.heard {
            Heard::PubRel(packet_id) => Some((wire::PUBREC, packet_id)),
            _ => None,
        }),
        ("pubcomp-twice", false, |packet| match packet.heard {
            Heard::PubRel(packet_id) => Some((wire::PUBCOMP, packet_id)),
            _ => None,
        }),
        ("pubcomp-first", true, |packet| {
            packet.publish().filter(|publish| publish.qos == 2).map(|publish| (wire::PUBCOMP, publish.packet_id))
        }),
        ("pubcomp-after-pubrec", false, |packet| {
            packet.publish().filter(|publish| publish.qos == 2).map(|publish| (wire::PUBCOMP, publish.packet_id))
        }),
    ];
    let brokers: Vec<(String, ScriptedBroker)> = cases
        .into_iter()
        .map(|(name, is_first, extra)| {
            let script = move |packet: &Packet| match extra(packet) {
                Some((kind, packet_id)) if is_first => vec![bytes(kind, packet_id), Act::Usual],
                Some((kind, packet_id)) => vec![Act::Usual, bytes(kind, packet_id), bytes(kind, packet_id)],
                None => vec![Act::Usual],
            };
            (name.to_owned(), ScriptedBroker::start(script))
        })
        .collect();
    let (tidings, ledger) = serve(&brokers);
    assert_all_delivered(&tidings, &brokers, &ledger);
    for (name, broker) in &brokers {
        assert_eq!(broker.count(Packet::is_pubrel), usize::try_from(COUNT / 2).unwrap(), "{name}: one PUBREL for each of QoS 2");
        assert_eq!(broker.connects().len(), 1, "{name}: harmless, and a broker may be late");
        assert_eq!(tidings.status(name)["totals"]["acknowledged"], COUNT, "{name}");
    }
}

#[test]
fn a_pubcomp_without_a_pubrec_is_no_delivery() {
    // As a QoS 2 that was completed would be answered; and then the connection breaks.
    let mut is_first = true;
    let broker = ScriptedBroker::start(move |packet| match packet.publish() {
        Some(publish) if std::mem::take(&mut is_first) => vec![Act::Bytes(wire::ack(wire::PUBCOMP, publish.packet_id, 0)), Act::Close],
        _ => vec![Act::Usual],
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    assert_delivered(&tidings, &broker, &ledger);
    ledger.assert_kept_exactly(&broker.arrivals());
    assert_eq!(broker.count(|packet| packet.publish().is_some()), 2);
}

#[test]
fn half_a_packet_before_the_end_of_the_connection_acknowledges_nothing() {
    let is_publish = |packet: &Packet, qos| packet.publish().filter(|publish| publish.qos == qos).map(|publish| publish.packet_id);
    let mut brokers = Vec::new();
    for cut in 1..4 {
        for (name, qos, kind) in [("puback", 1, wire::PUBACK), ("pubrec", 2, wire::PUBREC)] {
            let mut is_first = true;
            let script = move |packet: &Packet| match is_publish(packet, qos) {
                Some(packet_id) if std::mem::take(&mut is_first) => {
                    vec![Act::Bytes(wire::ack(kind, packet_id, 0)[..cut].to_vec()), Act::Close]
                }
                _ => vec![Act::Usual],
            };
            brokers.push((format!("{name}-{cut}"), ScriptedBroker::start(script)));
        }
        let mut is_first = true;
        let script = move |packet: &Packet| match packet.is_connect() && std::mem::take(&mut is_first) {
            true => vec![Act::Bytes(wire::packet(wire::CONNACK << 4, &[0, 0, 0])[..cut].to_vec()), Act::Close],
            false => vec![Act::Usual],
        };
        brokers.push((format!("connack-{cut}"), ScriptedBroker::start(script)));
    }
    let (tidings, ledger) = serve(&brokers);
    assert_all_delivered(&tidings, &brokers, &ledger);
}

#[test]
fn a_packet_that_comes_in_two_pieces_is_one_packet() {
    let broker = ScriptedBroker::start(|packet| match packet.publish() {
        Some(publish) if publish.packet_id % 20 == 1 && publish.qos == 1 => {
            let (first, second) = (wire::ack(wire::PUBACK, publish.packet_id, 0)[..3].to_vec(), vec![publish.packet_id.to_be_bytes()[1]]);
            vec![Act::Bytes(first), Act::Stall(Duration::from_millis(50)), Act::Bytes(second)]
        }
        _ => vec![Act::Usual],
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("acknowledged"), ledger.accepted.len() as u64);
    assert_eq!(broker.connects().len(), 1);
}

#[test]
fn packets_that_a_publisher_does_not_get_break_the_connection_and_are_named() {
    let publish = wire::packet(wire::PUBLISH << 4, &[&wire::text("a")[..], b"\0hello"].concat());
    let publish_qos_2 = wire::packet(wire::PUBLISH << 4 | 4, &[&wire::text("a")[..], b"\0\x01\0hello"].concat());
    let packets = [
        ("publish", "PUBLISH", publish),
        ("publish-2", "PUBLISH", publish_qos_2),
        ("pubrel", "PUBREL", wire::ack(wire::PUBREL, 1, 0)),
        ("suback", "SUBACK", wire::packet(wire::SUBACK << 4, &[0, 1, 0, 0])),
        ("pingreq", "PINGREQ", vec![wire::PINGREQ << 4, 0]),
        ("subscribe", "SUBSCRIBE", wire::packet(wire::SUBSCRIBE << 4 | 2, &[&[0, 1, 0][..], &wire::text("a"), &[0]].concat())),
        // Re-authenticate, which nobody has asked for (MQTT 5.0 §3.15).
        ("auth", "", wire::packet(AUTH << 4, &[0x19, 0])),
        ("reserved", "", vec![0, 0]),
        ("flags", "", vec![wire::PUBACK << 4 | 0x0f, 1, 0]),
    ];
    let mut brokers = Vec::new();
    let mut names = HashMap::new();
    for (name, told, bytes) in packets {
        let mut left = 2;
        let script = move |packet: &Packet| match packet.publish() {
            Some(publish) if left > 0 && publish.packet_id > 5 => {
                left -= 1;
                vec![Act::Usual, Act::Bytes(bytes.clone())]
            }
            _ => vec![Act::Usual],
        };
        names.insert(name.to_owned(), told);
        brokers.push((name.to_owned(), ScriptedBroker::start(script)));
    }
    let (tidings, ledger) = serve(&brokers);
    assert_all_delivered(&tidings, &brokers, &ledger);
    for (name, broker) in &brokers {
        assert!(broker.connects().len() >= 2, "{name}: the connection is of no use after that");
        let lane = format!("\"lane\":\"{name}/0\"");
        let lines: Vec<String> =
            tidings.logged("the broker sent").iter().map(ToString::to_string).filter(|line| line.contains(&lane)).collect();
        assert!(!lines.is_empty() && lines.iter().all(|line| line.contains(names[name])), "{name}: {lines:?}");
    }
}

#[test]
fn what_is_no_connack_in_its_place_opens_no_connection() {
    let answers: [(&str, Vec<u8>); 6] = [
        ("auth", wire::packet(AUTH << 4, &[0x18, 0])),
        ("puback", wire::ack(wire::PUBACK, 1, 0)),
        ("pubcomp", wire::ack(wire::PUBCOMP, 1, 0)),
        ("pingresp", vec![wire::PINGRESP << 4, 0]),
        ("disconnect", wire::packet(wire::DISCONNECT << 4, &[0x89, 0])),
        ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
    ];
    let brokers: Vec<(String, ScriptedBroker)> = answers
        .into_iter()
        .map(|(name, bytes)| {
            let mut left = 4;
            let script = move |packet: &Packet| {
                if packet.is_connect() && left > 0 {
                    left -= 1;
                    return vec![Act::Bytes(bytes.clone()), Act::Close];
                }
                vec![Act::Usual]
            };
            (name.to_owned(), ScriptedBroker::start(script))
        })
        .collect();
    let (tidings, ledger) = serve(&brokers);
    assert_all_delivered(&tidings, &brokers, &ledger);
    for (name, broker) in &brokers {
        let opened = broker.heard().iter().find(|packet| packet.publish().is_some()).unwrap().connection;
        assert_eq!(opened, 5, "{name}: nothing is published before a CONNACK");
    }
}

#[test]
fn a_session_that_is_there_though_a_clean_one_was_asked_for_is_not_used() {
    for (protocol, connack) in [("5", &[1, 0, 0][..]), ("3.1.1", &[1, 0][..])] {
        let mut left = 6;
        let broker = ScriptedBroker::start(move |packet| {
            if packet.is_connect() && left > 0 {
                left -= 1;
                return vec![Act::Bytes(wire::packet(wire::CONNACK << 4, connack))];
            }
            vec![Act::Usual]
        });
        let tidings = start(&broker, &format!("protocol = \"{protocol}\""));
        let ledger = post_mix(&tidings);
        assert_delivered(&tidings, &broker, &ledger);
        ledger.assert_kept_exactly(&broker.arrivals());
        let first = broker.heard().iter().find(|packet| packet.publish().is_some()).unwrap().connection;
        assert!(first > 6, "{protocol}: nothing is published into a session that may hold something");
        assert!(!tidings.logged("kept a session that was to be clean; does another service use this client_id?").is_empty());
    }
}

#[test]
fn everything_that_a_connack_can_say_is_taken_and_no_topic_alias_is_used() {
    // MQTT 5.0 §3.2.2.3, but for what has tests of its own.
    let properties = [
        &[0x11, 0, 0, 0, 60][..],
        &[0x21, 0, 7],
        &[0x22, 0, 10],
        &[0x25, 1],
        &[0x27, 0, 1, 0, 0],
        &[0x28, 0],
        &[0x29, 0],
        &[0x2a, 0],
        &[0x13, 0, 60],
        &[0x1f, 0, 2, b'h', b'i'],
        &[0x1c, 0, 1, b's'],
        &[0x1a, 0, 1, b'r'],
        &[0x26, 0, 1, b'a', 0, 1, b'b'],
        &[0x26, 0, 1, b'a', 0, 1, b'c'],
    ]
    .concat();
    let body = [&[0, 0, u8::try_from(properties.len()).unwrap()][..], &properties].concat();
    let broker = ScriptedBroker::start(move |packet| match packet.is_connect() {
        true => vec![Act::Bytes(wire::packet(wire::CONNACK << 4, &body))],
        false => vec![Act::Usual],
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..COUNT).map(|number| report("success", &format!("p{}", number % 4), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    assert!(broker.most_in_flight() <= 7, "Receive Maximum is 7");
    assert!(broker.heard().iter().filter_map(Packet::publish).all(|publish| !publish.topic.is_empty()));
}

#[test]
fn a_maximum_packet_size_of_0_is_a_mistake_of_the_brokers_and_condemns_no_report() {
    // MQTT 5.0 §3.2.2.3.6 forbids it; and every report is larger.
    let broker = ScriptedBroker::with_limits(Limits { maximum_packet_size: Some(0), ..Limits::default() }, |_| vec![Act::Usual]);
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    wait_until("it is tried again", || broker.connects().len() > 3);
    let error = tidings.status("mqtt")["lanes"][0]["last_error"]["message"].to_string();
    assert!(error.contains("Maximum Packet Size of 0"), "{error}");
    assert_eq!((tidings.total("dead"), tidings.total("pending")), (0, COUNT));
    broker.limit(Limits::default());
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
}

#[test]
fn a_receive_maximum_of_0_is_taken_for_1() {
    // MQTT 5.0 §3.2.2.3.3 forbids it.
    let broker = ScriptedBroker::start(|packet| match packet.is_connect() {
        true => vec![Act::Bytes(wire::packet(wire::CONNACK << 4, &[0, 0, 3, 0x21, 0, 0]))],
        false => vec![Act::Usual],
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    assert_eq!(broker.most_in_flight(), 1);
}

#[test]
fn a_report_that_the_broker_takes_no_more_when_its_session_is_resumed_is_not_sent_again() {
    // It takes PUBLISHes without a word; then it comes back with a smaller Maximum Packet Size.
    let broker = ScriptedBroker::start(|packet| if packet.publish().is_some() { vec![] } else { vec![Act::Usual] });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    for number in 0..4 {
        ledger.post(&tidings, 2, &format!("p{number}"), number);
    }
    ledger.post_raw(&tidings.client(), &report("success", "large", 4).replace("acme", &"a".repeat(600)));
    wait_until("they are in flight", || broker.count(|packet| packet.publish().is_some()) == 5);
    broker.limit(Limits { maximum_packet_size: Some(400), ..Limits::default() });
    broker.behave();
    broker.hang_up();
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("dead"), 1);
    let lines = tidings.logged("dead letter");
    assert!(lines.len() == 1 && lines[0].to_string().contains("Maximum Packet Size of 400"), "{lines:?}");
    ledger.accepted.pop();
    ledger.assert_kept_exactly(&broker.arrivals());
    broker.assert_no_violations();
    tidings.assert_balanced();
}

#[test]
fn a_broker_that_stops_reading_for_a_while_gets_everything_over_the_same_connection() {
    // So large that both sides' buffers are full. What is waited for comes sooner than any time limit.
    let mut is_first = true;
    let broker = ScriptedBroker::start(move |packet| match packet.publish().is_some() && std::mem::take(&mut is_first) {
        true => vec![Act::Usual, Act::Stall(Duration::from_secs(4))],
        false => vec![Act::Usual],
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let mut ledger = Ledger::default();
    for number in 0..60 {
        let large = report(action_for(u8::try_from(number % 3).unwrap()), "one", number).replace("acme", &"a".repeat(200_000));
        ledger.post_raw(&tidings.client(), &large);
    }
    assert_delivered(&tidings, &broker, &ledger);
    ledger.assert_kept_exactly(&broker.arrivals());
    assert_eq!(broker.connects().len(), 1);
}

#[test]
fn a_broker_that_loses_every_session_gets_everything_and_each_doubt_is_counted() {
    // Whatever it has been asked to keep, it has forgotten; and every tenth PUBLISH ends the connection.
    let mut publishes = 0;
    let broker = ScriptedBroker::start(move |packet| {
        if packet.is_connect() {
            return vec![Act::Forget];
        }
        publishes += u64::from(packet.publish().is_some());
        if packet.publish().is_some() && publishes % 10 == 0 { vec![Act::Usual, Act::Close] } else { vec![Act::Usual] }
    });
    let tidings = start(&broker, "protocol = \"5\"");
    let ledger = post_mix(&tidings);
    tidings.wait_until_delivered();
    let found = ledger.compare(&broker.arrivals());
    assert!(found.missing.is_empty() && found.unknown.is_empty(), "{found:?}");
    assert!(found.twice.len() + found.repeated.len() <= tidings.total("possible_duplicates") as usize, "{found:?}");
    assert!(tidings.total("possible_duplicates") > 0);
    assert_eq!(tidings.total("dead"), 0);
    broker.assert_no_violations();
    tidings.assert_balanced();
}
