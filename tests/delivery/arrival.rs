//! What is posted arrives as it was posted.

use crate::support::ledger::{Arrival, Ledger, report};
use crate::support::mosquitto::Mosquitto;
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection, named_connection};
use crate::support::wait_until;

const SUCCESS: &str = include_str!("../fixtures/seed-success.json");

fn wait_for(subscriber: &Subscriber, count: usize) -> Vec<Arrival> {
    wait_until(&format!("{count} reports arrive"), || subscriber.count() >= count);
    subscriber.arrivals()
}

/// The example of the document that the project was created from.
fn the_seeds_example_arrives(protocol: &str) {
    let mosquitto = Mosquitto::start("");
    let subscriber = Subscriber::start(mosquitto.port);
    let pipeline = r#"
[[pipeline]]
name = "check"
success.mqtt = { topic = "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}", qos = 2 }
"#;
    let tidings = Tidings::start(&(connection(mosquitto.port, &format!("protocol = \"{protocol}\"")) + pipeline));
    Ledger::default().post_raw(&tidings.client(), SUCCESS);
    let expected = Arrival { topic: "openstack.org/zuul/check/sf-jobs/master/3".into(), payload: SUCCESS.into(), qos: 2, retain: false };
    assert_eq!(wait_for(&subscriber, 1), [expected]);
    tidings.wait_until_delivered();
    assert_eq!(tidings.total("acknowledged"), 1);
    assert_eq!(tidings.metric(r#"tidings_deliveries_total{connection="mqtt",qos="2",result="acknowledged"}"#), 1.0);
    wait_until("all lanes have that protocol", || {
        tidings.status("mqtt")["lanes"].as_array().unwrap().iter().all(|lane| lane["protocol"] == protocol)
    });
}

#[test]
fn the_seeds_example_arrives_over_mqtt_5_at_qos_2_byte_for_byte() {
    the_seeds_example_arrives("5");
}

#[test]
fn the_seeds_example_arrives_over_mqtt_3_1_1_at_qos_2_byte_for_byte() {
    the_seeds_example_arrives("3.1.1");
}

#[test]
fn each_qos_arrives_at_that_qos() {
    let mosquitto = Mosquitto::start("");
    let subscriber = Subscriber::start(mosquitto.port);
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + PIPELINES));
    let mut ledger = Ledger::default();
    for qos in 0..3 {
        ledger.post(&tidings, qos, &format!("qos{qos}"), 1);
    }
    let arrivals = wait_for(&subscriber, 3);
    ledger.assert_kept_exactly(&arrivals);
    assert!(arrivals.iter().all(|arrival| arrival.topic == format!("zuul/qos{}", arrival.qos)), "{arrivals:?}");
    tidings.wait_until_delivered();
    let totals = tidings.status("mqtt")["totals"].clone();
    assert_eq!((&totals["sent"], &totals["acknowledged"]), (&1.into(), &2.into()), "QoS 0 is sent, and never acknowledged");
    tidings.assert_balanced();
}

#[test]
fn a_retained_report_is_there_for_who_comes_later() {
    let mosquitto = Mosquitto::start("");
    let pipeline = "[[pipeline]]\nname = \"check\"\nsuccess.mqtt = { topic = \"kept\", qos = 1, retain = true }\n\
                    failure.mqtt = { topic = \"not kept\", qos = 1 }\n";
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + pipeline));
    let mut ledger = Ledger::default();
    ledger.post_raw(&tidings.client(), &report("success", "widgets", 1));
    ledger.post_raw(&tidings.client(), &report("failure", "widgets", 2));
    tidings.wait_until_delivered();
    let subscriber = Subscriber::start(mosquitto.port);
    let expected = Arrival { topic: "kept".into(), payload: report("success", "widgets", 1).into(), qos: 1, retain: true };
    assert_eq!(wait_for(&subscriber, 1), [expected]);
}

#[test]
fn one_action_reports_to_several_connections_and_one_that_is_away_holds_up_no_other() {
    let (near, far) = (Mosquitto::start(""), Mosquitto::prepare(""));
    let mut far = far;
    let near_subscriber = Subscriber::start(near.port);
    let connections = named_connection("near", near.port, "") + &named_connection("far", far.port, "protocol = \"3.1.1\"\nworkers = 2");
    let pipeline = "[[pipeline]]\nname = \"check\"\nsuccess.near = { topic = \"n/{project}\", qos = 2 }\n\
                    success.far = { topic = \"f/{project}\", qos = 1 }\n";
    let tidings = Tidings::start(&(connections + SOON + pipeline));
    let (mut to_near, mut to_far) = (Ledger::default(), Ledger::default());
    let mut both = Ledger::default();
    for number in 0..20 {
        both.post_raw(&tidings.client(), &report("success", &format!("p{}", number % 3), number));
    }
    for accepted in both.accepted {
        match accepted.connection.as_str() {
            "near" => to_near.accepted.push(accepted),
            _ => to_far.accepted.push(accepted),
        }
    }
    assert_eq!((to_near.accepted.len(), to_far.accepted.len()), (20, 20));
    to_near.assert_kept_exactly(&wait_for(&near_subscriber, 20));
    assert_eq!(tidings.status("far")["backlog"], 20);
    far.run();
    let far_subscriber = Subscriber::start(far.port);
    tidings.wait_until_delivered();
    // What went before the subscriber came is not there; the broker has acknowledged all of it.
    assert_eq!(tidings.status("far")["totals"]["acknowledged"], 20);
    drop(far_subscriber);
    tidings.assert_balanced();
}

#[test]
fn mosquitto_at_its_default_limits_gets_every_report_of_a_3_1_1_backlog() {
    let mut mosquitto = Mosquitto::start("persistence true\n");
    let subscriber = Subscriber::start(mosquitto.port);
    mosquitto.stop();
    // It acknowledges all and silently drops what is beyond 20 in flight, so that only a subscriber can count.
    let tidings = Tidings::start(&(connection(mosquitto.port, "protocol = \"3.1.1\"") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..500).map(|number| report("success", &format!("p{}", number % 7), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    assert_eq!(tidings.total("pending"), 500);
    mosquitto.run();
    // Every one; in their order too, but for what mosquitto itself turns round where a subscriber's window is full.
    let found = ledger.compare(&wait_for(&subscriber, 500));
    assert!(found.missing.is_empty() && found.twice.is_empty() && found.arrived == 500, "{found:#?}");
    tidings.wait_until_delivered();
    tidings.assert_balanced();
}
