//! What any instance is asked, whoever owns the lane and whoever leads.

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};

use crate::scene::{Instance, Small};
use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT};
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::named_connection;
use crate::support::wait_until;

const SECOND_CONNECTION: &str = "[[pipeline]]\nname = \"aside\"\nsuccess.spare = { topic = \"aside/{project}\", qos = 2 }\n";

fn reports(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers.map(|number| report(action_for(2), &format!("p{}", number % 24), number)).collect()
}

fn post(instance: &Instance, path: &str, body: &Value) -> Value {
    let reply = instance.tidings.post(path, &body.to_string()).expect("the instance answers");
    assert!((200..300).contains(&reply.status), "{path}: {reply:?}");
    reply.json()
}

/// Waits until nothing is pending, as each of them sees it.
fn wait_until_delivered(small: &Small) {
    small.instances.iter().for_each(|instance| instance.tidings.wait_until_delivered());
}

/// An owner of this lane, and one that does not own it. While lanes are spread, one that moves is nobody's for a moment.
fn owner_and_other(small: &Small, lane: u64) -> (usize, usize) {
    let mut owner = None;
    wait_until("the lane has an owner", || {
        owner = small.instances[0].view().and_then(|view| view.owners[&format!("mqtt/{lane}")].clone());
        owner.is_some()
    });
    let owner = owner.unwrap();
    let is_owner = |instance: &&Instance| instance.seen().me == owner;
    let at = small.instances.iter().position(|instance| is_owner(&instance)).unwrap();
    (at, (at + 1) % small.instances.len())
}

#[test]
fn a_key_that_is_posted_to_two_instances_at_once_is_accepted_once() {
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let small = Small::start(2, mosquitto.port, "", "");
    let mut ledger = Ledger::default();
    for number in 0..40 {
        let body = report("success", "both", number);
        let key = format!("key-{number}");
        let answers = thread::scope(|scope| {
            let post = |at: usize| {
                let (client, body, key) = (small.instances[at].tidings.client(), &body, &key);
                scope.spawn(move || client.post(body.as_bytes(), "application/json", Some(key)).expect("the instance answers"))
            };
            [post(0), post(1)].map(|posting| posting.join().unwrap())
        });
        let ids: BTreeSet<String> = answers.iter().map(|answer| answer.json()["deliveries"].to_string()).collect();
        assert!(answers.iter().all(|answer| answer.status == 202) && ids.len() == 1, "{answers:?}");
        ledger.enter(body.as_bytes(), &answers[0].json()["deliveries"]);
    }
    wait_until_delivered(&small);
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
    for instance in &small.instances {
        assert_eq!(instance.tidings.total("created"), 40);
        let again = instance.tidings.client().post(report("failure", "both", 7).as_bytes(), "application/json", Some("key-7")).unwrap();
        assert_eq!(again.status, 409, "the same key with another body: {again:?}");
    }
}

#[test]
fn a_dead_letter_is_requeued_at_an_instance_that_does_not_own_its_lane() {
    let broker = ScriptedBroker::start(|packet| if packet.publish().is_some() { vec![Act::Refuse(0x90)] } else { vec![Act::Usual] });
    let small = Small::start(3, broker.port, "", "");
    let mut ledger = Ledger::default();
    ledger.post_many(&small.instances[0].tidings.client(), &reports(0..24));
    for instance in &small.instances {
        instance.tidings.wait_for_total("dead", 24);
    }
    broker.behave();
    for known in &ledger.accepted {
        let story = small.instances[0].tidings.get(&format!("/v1/deliveries/{}", known.id)).unwrap().json();
        let (_, other) = owner_and_other(&small, story["lane"].as_u64().unwrap());
        let answer = post(&small.instances[other], "/v1/dead/requeue", &json!({ "ids": [known.id.to_string()], "by": "ops" }));
        assert_eq!(answer["done"], 1, "{answer}");
    }
    wait_until_delivered(&small);
    ledger.assert_kept_exactly(&broker.arrivals());
    for instance in &small.instances {
        assert_eq!((instance.tidings.total("dead"), instance.tidings.total("acknowledged")), (0, 24));
        instance.tidings.assert_balanced();
    }
    broker.assert_no_violations();
}

#[test]
fn a_replay_that_is_asked_for_at_any_instance_delivers_once_more_and_once_only() {
    let broker = ScriptedBroker::usual();
    let mut small = Small::start(3, broker.port, "", "");
    let mut ledger = Ledger::default();
    ledger.post_many(&small.instances[0].tidings.client(), &reports(0..120));
    wait_until_delivered(&small);
    let view = small.instances[0].seen();
    let asked = small.instances.iter().position(|instance| Some(&instance.seen().me) != view.leader.as_ref()).unwrap();
    let job = post(&small.instances[asked], "/v1/replays", &json!({ "filter": { "topic": "zuul/p1" }, "by": "ops" }));
    let id = job["id"].as_str().unwrap();
    for instance in &small.instances {
        wait_until("the replay has ended, as all see it", || {
            let job = instance.tidings.get(&format!("/v1/replays/{id}")).unwrap();
            job.status == 200 && job.json()["state"] == "ended" && job.json()["pending"] == 0
        });
        assert_eq!(instance.tidings.total("replayed"), 5);
    }
    let times = |topic: &str| broker.arrivals().iter().filter(|arrival| arrival.topic == topic).count();
    assert_eq!((times("zuul/p1"), times("zuul/p2"), broker.arrivals().len()), (10, 5, 125));
    for instance in &mut small.instances {
        instance.tidings.assert_balanced();
        assert_eq!(instance.tidings.stop(), Some(0));
    }
}

#[test]
fn what_is_pending_on_lanes_of_several_instances_is_moved_to_another_connection_from_any_of_them() {
    let broker = ScriptedBroker::usual();
    // Nobody listens there.
    let away = crate::support::mosquitto::free_port();
    let spare = named_connection("spare", broker.port, "workers = 4\n") + SECOND_CONNECTION;
    let small = Small::start(3, away, "", &spare);
    let mut ledger = Ledger::default();
    for (at, instance) in small.instances.iter().enumerate() {
        ledger.post_many(&instance.tidings.client(), &reports(at as u64 * 100..at as u64 * 100 + 48));
    }
    let (code, said) = small.instances[1].tidings.command(&["move", "--from", "mqtt", "--to", "spare"]);
    assert_eq!(code, Some(0), "{said}");
    wait_until_delivered(&small);
    let arrivals = broker.arrivals();
    assert_eq!(arrivals.len(), 144);
    let payloads: BTreeSet<&Vec<u8>> = arrivals.iter().map(|arrival| &arrival.payload).collect();
    assert_eq!(payloads.len(), 144, "each once");
    assert!(ledger.accepted.iter().all(|known| payloads.contains(&known.payload)));
    small.instances.iter().for_each(|instance| instance.tidings.assert_balanced());
}
