//! A real mosquitto in hard times: frozen, killed, restarted with what it held once, short of room, or strict. Everything accepted arrives or
//! is dead with its reason, QoS 2 not twice where the session lived, and the books balance.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{Mosquitto, PERSISTENT};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection, named_connection};
use crate::support::wait_until;

/// Two connections to one broker: over MQTT 5 and over 3.1.1, the same reports to both.
fn over_both(port: u16, more: &str) -> String {
    let mut pipeline = "[[pipeline]]\nname = \"check\"\n".to_owned();
    for name in ["five", "three"] {
        pipeline += &format!("failure.{name} = {{ topic = \"{name}/{{project}}\", qos = 1 }}\n");
        pipeline += &format!("success.{name} = {{ topic = \"{name}/{{project}}\", qos = 2 }}\n");
    }
    named_connection("five", port, &format!("workers = 2\nprotocol = \"5\"\n{more}"))
        + &named_connection("three", port, &format!("workers = 2\nprotocol = \"3.1.1\"\n{more}"))
        + SOON
        + &pipeline
}

fn mix(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| report(action_for(if number % 8 < 4 { 1 } else { 2 }), &format!("p{}", number % 8), number)).collect()
}

/// Posts one report after the other while `trouble` goes on in this thread.
fn under_load(tidings: &Tidings, trouble: impl FnOnce()) -> Ledger {
    let (client, is_over) = (tidings.client(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut ledger = Ledger::default();
            for number in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                ledger.post_many(&client, &mix(number..number + 1));
            }
            ledger
        });
        trouble();
        is_over.store(true, Ordering::Relaxed);
        producer.join().unwrap()
    })
}

/// Nothing is doubtful and nothing is dead, on each connection; and everything has arrived.
fn assert_all_arrive(tidings: &Tidings, subscriber: &Subscriber, ledger: &Ledger) {
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    for name in ["five", "three"] {
        assert_eq!(tidings.metric(&format!("tidings_possible_duplicates_total{{connection=\"{name}\"}}")), 0.0, "{name}");
        assert_eq!(tidings.status(name)["totals"]["dead"], 0, "{name}");
    }
    tidings.assert_balanced();
}

#[test]
fn a_broker_that_is_frozen_again_and_again_under_load_gets_everything() {
    let mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&over_both(mosquitto.port, ""));
    let ledger = under_load(&tidings, || {
        for _ in 0..10 {
            let before = subscriber.count();
            wait_until("reports flow", || subscriber.count() > before + 30);
            mosquitto.freeze();
            std::thread::sleep(Duration::from_millis(200));
            mosquitto.thaw();
        }
    });
    assert_all_arrive(&tidings, &subscriber, &ledger);
}

#[test]
fn a_broker_that_is_restarted_twenty_times_in_a_row_gets_everything_and_what_may_be_there_twice_is_counted() {
    let mut mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&over_both(mosquitto.port, ""));
    let ledger = under_load(&tidings, || {
        for round in 0..20 {
            // Also in the middle of a CONNECT, a resume, a clean connect; and now and then something gets through.
            std::thread::sleep(Duration::from_millis(40 * (round % 6)));
            let before = subscriber.count();
            wait_until("reports flow", || round % 3 != 0 || subscriber.count() > before + 30);
            mosquitto.stop();
            mosquitto.run();
        }
    });
    tidings.wait_until_delivered();
    let total =
        |name: &str| ["five", "three"].iter().map(|connection| tidings.status(connection)["totals"][name].as_u64().unwrap()).sum::<u64>();
    // A broker that goes whenever something is sent alone may have an innocent report charged, whose session is given up then.
    let (dead, doubtful) = (total("dead"), total("possible_duplicates"));
    wait_until("all arrive", || ledger.compare(&subscriber.arrivals()).missing.len() as u64 <= dead);
    let found = ledger.compare(&subscriber.arrivals());
    assert!(found.unknown.is_empty() && found.twice.len() as u64 <= doubtful, "{found:#?}, and {doubtful} were in doubt");
    assert_eq!(tidings.logged("dead letter").len() as u64, dead);
    tidings.assert_balanced();
}

#[test]
fn what_was_in_flight_when_the_broker_was_killed_is_sent_to_the_one_that_remembers_less() {
    // Saved before the lanes had a session, and after: all sessions lost, or back in a state of before.
    for has_sessions in [false, true] {
        let mut mosquitto = Mosquitto::start(PERSISTENT);
        let subscriber = Subscriber::start(mosquitto.port);
        let before = mosquitto.saved();
        let tidings = Tidings::start(&over_both(mosquitto.port, ""));
        let mut ledger = Ledger::default();
        let client = tidings.client();
        ledger.post_many(&client, &mix(0..40));
        tidings.wait_until_delivered();
        wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
        let saved = if has_sessions { mosquitto.saved() } else { before };
        ledger.post_many(&client, &mix(40..80));
        tidings.wait_until_delivered();
        wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
        // Frozen, it has the PUBLISHes in its sockets, and passes on none.
        mosquitto.freeze();
        ledger.post_many(&client, &mix(80..400));
        let in_flight =
            |name: &str| tidings.status(name)["lanes"].as_array().unwrap().iter().all(|lane| lane["in_flight"].as_u64() > Some(0));
        wait_until("every lane has something in flight", || in_flight("five") && in_flight("three"));
        mosquitto.kill();
        mosquitto.put_back(&saved);
        mosquitto.run();
        tidings.wait_until_delivered();
        wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
        let found = ledger.compare(&subscriber.arrivals());
        // What it had saved as not yet passed on it passes on again: that much is its own.
        let own: Vec<u64> = ledger.accepted[..160].iter().map(|known| known.id).collect();
        let twice: Vec<&u64> = found.twice.iter().filter(|id| !own.contains(id)).collect();
        assert!(twice.is_empty() && found.unknown.is_empty() && found.missing.is_empty(), "{found:?}");
        for name in ["five", "three"] {
            let doubtful = tidings.status(name)["totals"]["possible_duplicates"].as_u64().unwrap();
            assert_eq!(doubtful > 0, !has_sessions, "{name}: {doubtful} are in doubt where the session is lost, and only there");
        }
        tidings.assert_balanced();
    }
}

#[test]
fn a_broker_that_is_killed_again_and_again_and_remembers_nothing_leaves_nothing_pending() {
    let mut mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    // It knows its subscriber, and nothing of Tidings.
    let saved = mosquitto.saved();
    let tidings = Tidings::start(&over_both(mosquitto.port, ""));
    let mut ledger = under_load(&tidings, || {
        for _ in 0..12 {
            let before = subscriber.count();
            wait_until("reports flow", || subscriber.count() > before + 30);
            mosquitto.kill();
            mosquitto.put_back(&saved);
            mosquitto.run();
        }
    });
    tidings.wait_until_delivered();
    let acknowledged = ["five", "three"].map(|name| tidings.status(name)["totals"]["acknowledged"].as_u64().unwrap());
    assert_eq!(acknowledged.iter().sum::<u64>(), ledger.accepted.len() as u64, "all of it, none dead");
    // What it had acknowledged and not yet passed on died with it; what it acknowledges from now on arrives.
    let known = ledger.accepted.len();
    // (At QoS 1: its subscriber takes an identifier of QoS 2 that comes again before it was released for a repetition.)
    ledger.post_many(&tidings.client(), &(0..50).map(|number| report("failure", "after", number)).collect::<Vec<_>>());
    let after = Ledger { accepted: ledger.accepted[known..].to_vec() };
    tidings.wait_until_delivered();
    wait_until("all that came later arrives", || after.is_complete(&subscriber.arrivals()));
    tidings.assert_balanced();
}

#[test]
fn what_access_control_denies_over_3_1_1_is_acknowledged_by_mosquitto_and_over_5_it_is_dead() {
    let mosquitto = Mosquitto::prepare(PERSISTENT);
    let acl = mosquitto.folder().join("acl");
    fs::write(&acl, "topic read #\ntopic write five/open\ntopic write three/open\n").unwrap();
    let mut mosquitto = mosquitto.with(&format!("acl_file {}\n", acl.display()));
    mosquitto.run();
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&over_both(mosquitto.port, ""));
    let mut ledger = Ledger::default();
    for number in 0..20 {
        let action = action_for(1 + u8::from(number % 2 == 0));
        ledger.post_raw(&tidings.client(), &report(action, if number < 4 { "secret" } else { "open" }, number));
    }
    tidings.wait_until_delivered();
    let totals = |name: &str| tidings.status(name)["totals"].clone();
    assert_eq!((&totals("five")["dead"], &totals("five")["acknowledged"]), (&4.into(), &16.into()));
    // MQTT 3.1.1 has no way to say no (§3.3.5); README and the runbook say so.
    assert_eq!((&totals("three")["dead"], &totals("three")["acknowledged"]), (&0.into(), &20.into()));
    let told = tidings.logged("dead letter");
    assert!(told.len() == 4 && told.iter().all(|line| line.to_string().contains("0x87 (not authorized)")), "{told:?}");
    ledger.accepted.retain(|known| known.topic.ends_with("open"));
    wait_until("the others arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    // Once it may, it is delivered.
    fs::write(&acl, "topic readwrite #\n").unwrap();
    mosquitto.reload();
    let mut number = 100;
    wait_until("it may", || {
        number += 1;
        ledger.post_raw(&tidings.client(), &report("success", "secret", number));
        tidings.wait_until_delivered();
        subscriber.arrivals().iter().filter(|arrival| arrival.topic.ends_with("secret")).count() >= 2
    });
    tidings.assert_balanced();
}

#[test]
fn what_mosquitto_drops_for_a_subscriber_that_is_away_was_delivered_to_mosquitto() {
    // A subscriber with room for five, one without a bound.
    for (bound, is_dropped) in [(5, true), (0, false)] {
        let mosquitto = Mosquitto::start(&format!("persistence true\nmax_queued_messages {bound}\n"));
        let away = Subscriber::start(mosquitto.port);
        away.leave();
        let tidings = Tidings::start(&over_both(mosquitto.port, ""));
        let mut ledger = Ledger::default();
        ledger.post_many(&tidings.client(), &mix(0..200));
        tidings.wait_until_delivered();
        for name in ["five", "three"] {
            let totals = tidings.status(name)["totals"].clone();
            assert_eq!(
                (&totals["acknowledged"], &totals["dead"]),
                (&200.into(), &0.into()),
                "{name}: the broker took it; who gets it is its own"
            );
        }
        away.come_back();
        let mut number = 1_000;
        wait_until("what comes behind all that is queued arrives", || {
            number += 1;
            ledger.post_raw(&tidings.client(), &report("failure", "last", number));
            tidings.wait_until_delivered();
            away.arrivals().iter().any(|arrival| arrival.topic.ends_with("/last"))
        });
        match is_dropped {
            true => assert!(!ledger.is_complete(&away.arrivals()), "there was room for five"),
            false => {
                wait_until("all arrive", || ledger.is_complete(&away.arrivals()));
                ledger.assert_kept_in_any_order(&away.arrivals());
            }
        }
        tidings.assert_balanced();
    }
}

#[test]
fn a_mosquitto_that_takes_one_in_flight_gets_everything() {
    let mosquitto = Mosquitto::start(&format!("{PERSISTENT}max_inflight_messages 1\n"));
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&over_both(mosquitto.port, "window_3_1_1 = 1"));
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &mix(0..200));
    assert_all_arrive(&tidings, &subscriber, &ledger);
}

#[test]
fn a_report_beyond_mosquittos_limits_is_dead_with_its_reason_and_the_others_arrive() {
    // Its `max_packet_size` is told in CONNACK; its `message_size_limit` only when a report is beyond it.
    for (limit, reason, is_sent) in
        [("max_packet_size 2000", "Maximum Packet Size of 2000", false), ("message_size_limit 2000", "0x95 (packet too large)", true)]
    {
        let mosquitto = Mosquitto::start(&format!("{PERSISTENT}{limit}\n"));
        let subscriber = Subscriber::start(mosquitto.port);
        let tidings = Tidings::start(&(connection(mosquitto.port, "workers = 2\nprotocol = \"5\"") + SOON + PIPELINES));
        let mut ledger = Ledger::default();
        for number in 0..40 {
            let small = report(action_for(1 + u8::from(number % 2 == 0)), &format!("p{}", number % 4), number);
            ledger
                .post_raw(&tidings.client(), &if number == 10 || number == 11 { small.replace("acme", &"a".repeat(3_000)) } else { small });
        }
        tidings.wait_until_delivered();
        assert_eq!(tidings.total("dead"), 2);
        ledger.accepted.retain(|known| known.payload.len() < 3_000);
        wait_until("the others arrive", || ledger.is_complete(&subscriber.arrivals()));
        ledger.assert_kept_in_any_order(&subscriber.arrivals());
        let dead = tidings.logged("dead letter");
        assert!(dead.len() == 2 && dead.iter().all(|line| line.to_string().contains(reason)), "{limit}: {dead:?}");
        // What it was not told of before it hangs up at.
        assert_eq!(tidings.logged("no connection to the broker").is_empty(), !is_sent, "{limit}");
        let refused = tidings.metric("tidings_attempts_total{connection=\"mqtt\",outcome=\"refused\"}");
        assert!(if is_sent { refused > 2.0 } else { refused == 0.0 }, "{limit}: {refused} were refused");
        tidings.assert_balanced();
    }
}

#[test]
fn a_mosquitto_without_room_for_another_connection_is_tried_until_there_is() {
    let mosquitto = Mosquitto::start(&format!("max_connections 4\n{PERSISTENT}"));
    let subscriber = Subscriber::start(mosquitto.port);
    // One of them may take the place of the connection with which its start was looked for.
    let crowd: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(("127.0.0.1", mosquitto.port)).unwrap()).collect();
    let tidings = Tidings::start(&(connection(mosquitto.port, "workers = 2\nprotocol = \"5\"") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    for number in 0..20 {
        ledger.post(&tidings, 2, &format!("p{}", number % 4), number);
    }
    wait_until("it is tried", || tidings.logged("no connection to the broker").len() > 4);
    assert_eq!((tidings.total("pending"), tidings.total("dead")), (20, 0));
    drop(crowd);
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_in_any_order(&subscriber.arrivals());
    tidings.assert_balanced();
}

/// Writes the users that mosquitto lets in.
fn let_in(file: &std::path::Path, password: &str) {
    let output = match Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(file).args(["ci", password]).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            panic!("this test needs mosquitto_passwd (Debian's package `mosquitto`)")
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_password_that_is_changed_under_it_stops_delivery_in_sight_until_it_is_changed_back() {
    let mosquitto = Mosquitto::prepare(PERSISTENT);
    let users = mosquitto.folder().join("users");
    let_in(&users, "right");
    let mut mosquitto = mosquitto.with(&format!("password_file {}\n", users.display()));
    mosquitto.run();
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&over_both(mosquitto.port, "user = \"ci\"\npassword = \"right\""));
    let mut ledger = under_load(&tidings, || {
        for _ in 0..2 {
            let before = subscriber.count();
            wait_until("reports flow", || subscriber.count() > before + 30);
            let_in(&users, "wrong");
            mosquitto.reload();
            for name in ["five", "three"] {
                wait_until("the status says what is wrong", || {
                    let error = tidings.status(name)["lanes"][0]["last_error"]["message"].to_string();
                    error.contains("check `user` and `password`")
                });
            }
            let_in(&users, "right");
            mosquitto.reload();
        }
        let before = subscriber.count();
        wait_until("reports flow again", || subscriber.count() > before + 30);
    });
    ledger.post_many(&tidings.client(), &[report("success", "last", 1_000_000)]);
    assert_all_arrive(&tidings, &subscriber, &ledger);
    let log = format!("{:?}", tidings.logged(""));
    assert!(!log.contains("right\\\""), "no password is logged");
}
