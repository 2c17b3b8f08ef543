//! Several instances over one log, as the dashboard of one of them shows them. What the service says is put into its answers: a door stands before it.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::door::Door;
use crate::support::mosquitto::{Mosquitto, PERSISTENT};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use std::sync::{Arc, Mutex};

fn instance(id: &str, name: &str, is_live: bool, lanes: u64) -> Value {
    json!({ "id": id, "name": name, "since": "2026-01-01T00:00:00.000Z", "is_live": is_live, "is_leader": id == "0a", "lanes": lanes })
}

fn cluster() -> Value {
    let replica = |name: &str, lag: u64| json!({ "name": name, "is_current": lag == 0, "is_offline": false, "lag": lag });
    json!({
        "instance": "0a", "name": "host-a", "leader": "0a", "is_kept": true,
        "instances": [instance("0a", "host-a", true, 1), instance("0b", "host-b <b>", true, 1)],
        "lanes": [{ "lane": "mqtt/0", "owner": "0a", "term": 1 }, { "lane": "mqtt/1", "owner": "0b", "term": 2 }],
        "stream": { "leader": "nats-1", "replicas": [replica("nats-2", 0), replica("nats-3", 12)], "age_s": 1, "bytes": 1_048_576, "max_bytes": null }
    })
}

/// A door before a service with two lanes; what it says of the cluster, if anything, and whether lane 1 is at another.
fn start(tidings: &Tidings) -> (Door, Arc<Mutex<Option<Value>>>) {
    let said: Arc<Mutex<Option<Value>>> = Arc::default();
    let (address, saying) = (tidings.address(), Arc::clone(&said));
    let door = Door::before(address, move |asked| {
        let cluster = saying.lock().unwrap().clone().filter(|_| asked.path == "/v1/status")?;
        let agent = ureq::Agent::config_builder().proxy(None).build().new_agent();
        let text = agent.get(format!("http://{address}/v1/status")).call().ok()?.body_mut().read_to_string().ok()?;
        let mut status: Value = serde_json::from_str(&text).unwrap();
        let owners: Vec<Value> = cluster["lanes"].as_array().unwrap().iter().map(|lane| lane["owner"].clone()).collect();
        for (lane, owner) in status["connections"][0]["lanes"].as_array_mut().unwrap().iter_mut().zip(owners) {
            match owner.as_str() {
                Some("0a") => {}
                Some(_) => (lane["state"], lane["owner"]) = (json!("elsewhere"), json!("host-b <b>")),
                None => lane["state"] = json!("unowned"),
            }
        }
        status["cluster"] = cluster;
        Some((200, status.to_string()))
    });
    (door, said)
}

#[test]
fn instances_lanes_and_servers_are_shown_and_what_is_wrong_with_them() {
    let broker = Mosquitto::start(PERSISTENT);
    let tidings = Tidings::start(&(connection(broker.port, "workers = 2") + SOON + PIPELINES));
    let (door, said) = start(&tidings);
    let browser = Browser::open(&format!("{}/", door.url()));
    browser.wait_until("it flows", "document.querySelector('#verdict').dataset.flow === 'flowing'");
    browser.wait_for_text("#connections h3", "connected");
    assert_eq!(browser.run("return document.querySelector('#cluster').checkVisibility();"), json!(false), "it is alone");
    *said.lock().unwrap() = Some(cluster());
    browser.wait_for_text("#cluster-instances", "host-a (this one)");
    browser.wait_for_text("#cluster-instances", "host-b <b>");
    let rows = |table: &str| {
        let script = format!(
            "return [...document.querySelectorAll('{table} tbody tr')].map(row => [...row.children].map(each => each.innerText).join(' | '));"
        );
        browser.run(&script)
    };
    let instances = rows("#cluster-instances");
    let row = |number: usize| instances[number].as_str().unwrap().to_owned();
    assert!(row(0).contains("live leads") && row(0).ends_with("| 1 | mqtt/0"), "{instances}");
    assert!(row(1).contains("| live |") && row(1).ends_with("| 1 | mqtt/1"), "{instances}");
    assert_eq!(rows("#cluster-stream"), json!(["nats-1 | leads | –", "nats-2 | up to date | 0", "nats-3 | behind | 12"]));
    browser.wait_for_text("#cluster-stream", "The stream takes 1.0 MiB.");
    browser.wait_for_text("#connections", "at host-b <b>");
    browser.wait_for_text("#connections h3", "connected here, 1 lane elsewhere");
    assert_eq!(browser.text("#cluster-said"), "");
    browser.picture("cluster.png");
    {
        let mut said = said.lock().unwrap();
        let cluster = said.as_mut().unwrap();
        cluster["instances"][1]["is_live"] = json!(false);
        cluster["lanes"][1]["owner"] = Value::Null;
        cluster["is_kept"] = json!(false);
        cluster["stream"]["leader"] = Value::Null;
        cluster["stream"]["replicas"][0]["is_offline"] = json!(true);
        cluster["stream"]["age_s"] = json!(75);
    }
    browser.wait_for_text("#cluster-said", "1 lane has no owner: mqtt/1");
    browser.wait_for_text("#cluster-said", "This instance can't write to the log: others take its lanes.");
    browser.wait_for_text("#cluster-instances", "silent");
    browser.wait_for_text("#cluster-stream", "No server leads: there is no majority");
    browser.wait_for_text("#cluster-stream", "offline");
    browser.wait_for_text("#cluster-stream", "Seen 1m 15s ago.");
    browser.wait_for_text("#connections", "unowned");
    for (width, scheme) in [(360, "light"), (360, "dark"), (1_280, "dark")] {
        browser.resize(width, 900);
        browser.prefer(scheme);
        browser.picture(&format!("cluster-{width}-{scheme}.png"));
        let wide = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth;");
        assert_eq!(wide, json!(0), "nothing leaves the screen at {width}");
    }
    *said.lock().unwrap() = None;
    browser.wait_until("it is alone again", "!document.querySelector('#cluster').checkVisibility()");
    assert_eq!(browser.logged(), [""; 0]);
}
