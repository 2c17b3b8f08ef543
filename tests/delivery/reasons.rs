//! Every reason code that MQTT 5.0 lets a broker give, and some that it doesn't: what becomes of the report, what the log and the status
//! say, and what is counted. One service with a connection for each code.

use std::collections::HashSet;

use crate::support::ledger::{Accepted, Ledger, report};
use crate::support::scripted::{Act, Packet, ScriptedBroker};
use crate::support::tidings::{SOON, Tidings, named_connection};
use crate::support::{wait_until, wire};

/// One broker for each code.
struct Codes {
    brokers: Vec<(u8, &'static str, ScriptedBroker)>,
}

impl Codes {
    fn start<S>(codes: &[(u8, &'static str)], script: impl Fn(u8) -> S) -> Codes
    where
        S: FnMut(&Packet) -> Vec<Act> + Send + 'static,
    {
        Codes { brokers: codes.iter().map(|(code, name)| (*code, *name, ScriptedBroker::start(script(*code)))).collect() }
    }

    /// A service that reports everything at QoS 1 and 2 to each of them.
    fn serve(&self) -> Tidings {
        let (mut config, mut pipeline) = (String::new(), "[[pipeline]]\nname = \"check\"\n".to_owned());
        for (code, _, broker) in &self.brokers {
            let name = connection_for(*code);
            config += &named_connection(&name, broker.port, "workers = 1\nprotocol = \"5\"");
            pipeline += &format!("failure.{name} = {{ topic = \"zuul/{{project}}\", qos = 1 }}\n");
            pipeline += &format!("success.{name} = {{ topic = \"zuul/{{project}}\", qos = 2 }}\n");
        }
        Tidings::start(&(config + SOON + &pipeline))
    }
}

fn connection_for(code: u8) -> String {
    format!("c{code:02x}")
}

/// The part of the ledger that is about one connection.
fn of_one(ledger: &Ledger, connection: &str, is_meant: impl Fn(&Accepted) -> bool) -> Ledger {
    Ledger { accepted: ledger.accepted.iter().filter(|known| known.connection == connection && is_meant(known)).cloned().collect() }
}

fn lines_of(tidings: &Tidings, connection: &str, text: &str) -> Vec<String> {
    let lane = format!("\"lane\":\"{connection}/0\"");
    tidings.logged(text).iter().map(ToString::to_string).filter(|line| line.contains(&lane)).collect()
}

fn last_error(tidings: &Tidings, connection: &str) -> String {
    tidings.status(connection)["lanes"][0]["last_error"]["message"].as_str().unwrap_or_default().to_owned()
}

/// MQTT 5.0 §3.4.2.1 and §3.5.2.1 know the same; what each does to a report that is refused with it every time.
const OF_ACKNOWLEDGEMENTS: [(u8, &str); 6] = [
    (0x80, "unspecified error"),
    (0x83, "implementation specific error"),
    (0x87, "not authorized"),
    (0x90, "topic name invalid"),
    (0x97, "quota exceeded"),
    (0x99, "payload format invalid"),
];

/// Not of PUBACK and PUBREC. The first is what mosquitto says beyond its `message_size_limit`; the last is unknown to the standard.
const STRANGE_TO_ACKNOWLEDGEMENTS: [(u8, &str); 4] =
    [(0x95, "packet too large"), (0x9b, "QoS not supported"), (0x92, "packet identifier not found"), (0xef, "unknown reason")];

#[test]
fn each_reason_code_of_an_acknowledgement_ends_its_report_as_it_should_and_no_other() {
    let all = [&OF_ACKNOWLEDGEMENTS[..], &STRANGE_TO_ACKNOWLEDGEMENTS[..]].concat();
    let codes = Codes::start(&all, |code| {
        let mut refusals = 0;
        move |packet: &Packet| {
            // There is room in the end.
            let is_over = code == 0x97 && refusals >= 7;
            if !packet.carries("refused") || is_over {
                return vec![Act::Usual];
            }
            refusals += 1;
            vec![Act::Refuse(code)]
        }
    });
    let tidings = codes.serve();
    let mut ledger = Ledger::default();
    for (number, action) in ["failure", "success"].into_iter().enumerate() {
        ledger.post_raw(&tidings.client(), &report(action, &format!("refused-{action}"), number as u64));
    }
    // Others get through meanwhile: codes that name no culprit are charged only then.
    let mut number = 10;
    wait_until("each refusal has come to its end", || {
        number += 1;
        ledger.post_raw(&tidings.client(), &report(["failure", "success"][number as usize % 2], "fine", number));
        all.iter().all(|(code, _)| *code == 0x97 || tidings.status(&connection_for(*code))["totals"]["dead"] == 2)
    });
    tidings.wait_until_delivered();
    for (code, name, broker) in &codes.brokers {
        let (connection, code) = (connection_for(*code), *code);
        let is_delivered = code == 0x97;
        of_one(&ledger, &connection, |known| is_delivered || !known.topic.contains("refused")).assert_kept_exactly(&broker.arrivals());
        let attempts = ["failure", "success"].map(|action| broker.count(|packet| packet.carries(&format!("refused-{action}"))));
        match code {
            0x90 | 0x99 => assert_eq!(attempts, [1, 1], "{code:#x}: no retry can change it"),
            // The first time it is not known whether others get through.
            0x80 | 0x83 => assert!(attempts.iter().all(|times| *times >= 3), "{code:#x}: {attempts:?}"),
            0x97 => assert_eq!(attempts.iter().sum::<usize>(), 7 + 2, "more often than `attempts`"),
            _ => assert_eq!(attempts, [3, 3], "{code:#x}: `attempts` is 3"),
        }
        let dead = lines_of(&tidings, &connection, "dead letter");
        let told = format!("0x{code:02x} ({name})");
        assert_eq!(dead.len(), if is_delivered { 0 } else { 2 }, "{dead:?}");
        assert!(dead.iter().all(|line| line.contains(&told)), "{told} is not in {dead:?}");
        let refused = lines_of(&tidings, &connection, "the broker refused a report");
        assert_eq!(refused.len(), attempts.iter().sum::<usize>() - 2, "{refused:?}");
        assert!(refused.iter().all(|line| line.contains(&format!("0x{code:02x}")) && line.contains(name)), "{told}: {refused:?}");
        let attempts_refused = tidings.metric(&format!("tidings_attempts_total{{connection=\"{connection}\",outcome=\"refused\"}}"));
        assert_eq!(attempts_refused as usize, refused.len() + dead.len(), "{code:#x}");
        for qos in [1, 2] {
            let series = format!("tidings_deliveries_total{{connection=\"{connection}\",qos=\"{qos}\",result=\"dead\"}}");
            assert_eq!(tidings.metric(&series), if is_delivered { 0.0 } else { 1.0 }, "{code:#x}");
        }
        assert_eq!(
            lines_of(&tidings, &connection, "no connection to the broker"),
            [""; 0],
            "{code:#x} is about a report, not about the connection"
        );
        broker.assert_no_violations();
    }
    tidings.assert_balanced();
}

#[test]
fn a_packet_identifier_that_is_in_use_at_the_broker_is_no_end_of_the_report() {
    // MQTT 5.0 §4.3.3: an error of the session, and so it is made anew.
    let mut refusals = 0;
    let broker = ScriptedBroker::start(move |packet| match packet.publish() {
        Some(_) if packet.carries("refused") && refusals < 4 => {
            refusals += 1;
            vec![Act::Refuse(0x91)]
        }
        _ => vec![Act::Usual],
    });
    let codes = Codes { brokers: vec![(0x91, "packet identifier in use", broker)] };
    let tidings = codes.serve();
    let mut ledger = Ledger::default();
    for number in 0..20 {
        let project = if number == 5 { "refused".to_owned() } else { format!("p{}", number % 3) };
        ledger.post_raw(&tidings.client(), &report("success", &project, number));
    }
    tidings.wait_until_delivered();
    let broker = &codes.brokers[0].2;
    let found = ledger.compare(&broker.arrivals());
    assert!(found.missing.is_empty() && found.unknown.is_empty(), "{found:?}");
    // What else was in flight when the session was given up may be there twice, and is counted.
    let doubtful = tidings.status("c91")["totals"]["possible_duplicates"].as_u64().unwrap();
    assert!(found.twice.len() as u64 <= doubtful, "{found:?}, and {doubtful} were in doubt");
    assert!(last_error(&tidings, "c91").contains("in use"), "{}", last_error(&tidings, "c91"));
    assert_eq!(tidings.status("c91")["totals"]["dead"], 0);
    tidings.assert_balanced();
}

/// MQTT 5.0 §3.2.2.2.
const OF_CONNACK: [(u8, &str); 21] = [
    (0x80, "unspecified error"),
    (0x81, "malformed packet"),
    (0x82, "protocol error"),
    (0x83, "implementation specific error"),
    (0x84, "unsupported protocol version"),
    (0x85, "client identifier not valid"),
    (0x86, "bad user name or password"),
    (0x87, "not authorized"),
    (0x88, "server unavailable"),
    (0x89, "server busy"),
    (0x8a, "banned"),
    (0x8c, "bad authentication method"),
    (0x90, "topic name invalid"),
    (0x95, "packet too large"),
    (0x97, "quota exceeded"),
    (0x99, "payload format invalid"),
    (0x9a, "retain not supported"),
    (0x9b, "QoS not supported"),
    (0x9c, "use another server"),
    (0x9d, "server moved"),
    (0x9f, "connection rate exceeded"),
];

#[test]
fn each_reason_code_of_a_connack_is_told_and_the_reports_wait_until_the_broker_lets_in() {
    // The last is unknown to the standard.
    let all = [&OF_CONNACK[..], &[(0xef, "")]].concat();
    let codes =
        Codes::start(&all, |code| move |packet: &Packet| if packet.is_connect() { vec![Act::Refuse(code), Act::Close] } else { vec![] });
    let tidings = codes.serve();
    let mut ledger = Ledger::default();
    for number in 0..4 {
        ledger.post_raw(&tidings.client(), &report(["failure", "success"][number as usize % 2], "one", number));
    }
    for (code, name, broker) in &codes.brokers {
        let connection = connection_for(*code);
        wait_until("it is tried again", || broker.connects().len() > 3);
        wait_until("the status says why", || last_error(&tidings, &connection).contains(*name));
        let error = last_error(&tidings, &connection);
        if *code < 0xef {
            assert!(error.starts_with(&format!("the broker refused the connection: 0x{code:02x} ({name})")), "{error}");
        }
        let hint = match code {
            0x84 => "; check `protocol`",
            0x85 => "; check `client_id`",
            0x86 | 0x87 => "; check `user` and `password`",
            _ => "",
        };
        assert!(error.ends_with(hint), "{error}");
        let lines = lines_of(&tidings, &connection, "no connection to the broker");
        assert!(lines.iter().all(|line| line.contains(name)) && lines.len() > 1, "{lines:?}");
        assert!(tidings.metric(&format!("tidings_reconnects_total{{connection=\"{connection}\"}}")) > 1.0);
        let status = tidings.status(&connection);
        assert_eq!((&status["backlog"], &status["totals"]["dead"]), (&4.into(), &0.into()), "it is not the reports' fault");
        broker.behave();
    }
    tidings.wait_until_delivered();
    for (code, _, broker) in &codes.brokers {
        of_one(&ledger, &connection_for(*code), |_| true).assert_kept_exactly(&broker.arrivals());
        assert!(broker.connects().iter().all(|connect| connect.level == 5), "what was asked for is not given up");
        broker.assert_no_violations();
    }
    tidings.assert_balanced();
}

/// MQTT 5.0 §3.14.2.1, what a server may send.
const OF_DISCONNECT: [(u8, &str); 27] = [
    (0x00, "success"),
    (0x80, "unspecified error"),
    (0x81, "malformed packet"),
    (0x82, "protocol error"),
    (0x83, "implementation specific error"),
    (0x87, "not authorized"),
    (0x89, "server busy"),
    (0x8b, "server shutting down"),
    (0x8d, "keep alive timeout"),
    (0x8e, "session taken over"),
    (0x8f, "topic filter invalid"),
    (0x90, "topic name invalid"),
    (0x93, "receive maximum exceeded"),
    (0x94, "topic alias invalid"),
    (0x95, "packet too large"),
    (0x96, "message rate too high"),
    (0x97, "quota exceeded"),
    (0x98, "administrative action"),
    (0x99, "payload format invalid"),
    (0x9a, "retain not supported"),
    (0x9b, "QoS not supported"),
    (0x9c, "use another server"),
    (0x9d, "server moved"),
    (0x9e, "shared subscriptions not supported"),
    (0x9f, "connection rate exceeded"),
    (0xa0, "maximum connect time"),
    (0xa2, "wildcard subscriptions not supported"),
];

#[test]
fn each_reason_code_of_a_disconnect_is_told_and_the_session_is_resumed() {
    let all = [&OF_DISCONNECT[..], &[(0xa1, "subscription identifiers not supported"), (0xef, "")]].concat();
    let codes = Codes::start(&all, |code| {
        // Twice, in the middle of everything; what was in flight stays unanswered.
        let mut told_at = HashSet::new();
        move |packet: &Packet| match packet.publish() {
            Some(publish) if [4, 9].contains(&publish.packet_id) && told_at.insert(publish.packet_id) => {
                vec![Act::Bytes(wire::packet(wire::DISCONNECT << 4, &[code, 0])), Act::Close]
            }
            _ => vec![Act::Usual],
        }
    });
    let tidings = codes.serve();
    let mut ledger = Ledger::default();
    let reports: Vec<String> =
        (0..20).map(|number| report(["failure", "success"][number % 2], &format!("p{}", number % 4), number as u64)).collect();
    ledger.post_many(&tidings.client(), &reports);
    tidings.wait_until_delivered();
    for (code, name, broker) in &codes.brokers {
        let connection = connection_for(*code);
        of_one(&ledger, &connection, |_| true).assert_kept(&broker.arrivals());
        // Another may tell that the broker has not forgotten a session as fast as it lets in again.
        let lines = lines_of(&tidings, &connection, "no connection to the broker");
        if *code < 0xef {
            let told = format!("the broker disconnected: 0x{code:02x} ({name})");
            assert_eq!(lines.iter().filter(|line| line.contains(&told)).count(), 2, "{told}: {lines:?}");
        }
        let reconnects = tidings.metric(&format!("tidings_reconnects_total{{connection=\"{connection}\"}}"));
        assert_eq!((reconnects as usize, lines.len() >= 2), (lines.len(), true), "{code:#x}: {lines:?}");
        assert_eq!(tidings.metric(&format!("tidings_possible_duplicates_total{{connection=\"{connection}\"}}")), 0.0);
        assert_eq!(tidings.status(&connection)["totals"]["dead"], 0, "{code:#x}");
        broker.assert_no_violations();
    }
    tidings.assert_balanced();
}
