//! Several instances over one log: what each says of the others, of lanes that are not its own, and of the servers that hold the log.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tidings::admin::cluster::Cluster;
use tidings::core::event::Event;
use tidings::core::types::{InstanceId, LaneKey, Millis};
use tidings::delivery::board::LaneState;
use tidings::log::memory_log::Disk;
use tidings::log::{Health, Replica};
use tokio::sync::watch;

use super::service::{NDJSON, Service, Setup, Shared, report, start_with, wait_until};

const A: InstanceId = InstanceId(0xa);
const B: InstanceId = InstanceId(0xb);

const CONFIG: &str =
    "[connection.mqtt]\ndriver = 'mqtt'\nworkers = 4\n[[pipeline]]\nname = 'check'\nsuccess.mqtt = { topic = '{change}' }\n";

/// One instance, and what it is told.
struct Instance {
    service: Service,
    told: watch::Sender<Option<Cluster>>,
}

fn id(instance: InstanceId) -> String {
    instance.to_string()
}

fn known(instance: InstanceId) -> Cluster {
    let heard = BTreeMap::from([(A, true), (B, true)]);
    Cluster { instance, name: format!("host-{}", instance.0), heard, is_kept: true }
}

fn lane(lane: u32) -> LaneKey {
    LaneKey { connection: "mqtt".into(), lane }
}

fn healthy() -> Health {
    let replica = |name: &str, lag, is_offline| Replica { name: name.to_owned(), is_current: lag == 0, is_offline, lag };
    Health {
        leader: Some("nats-1".into()),
        replicas: vec![replica("nats-2", 0, false), replica("nats-3", 7, true)],
        age: Duration::from_secs(2),
        bytes: 1_000,
        max_bytes: Some(9_000),
        messages: 3,
    }
}

impl Instance {
    fn start(disk: &Disk, instance: InstanceId) -> Instance {
        let (told, cluster) = watch::channel(Some(known(instance)));
        let shared = Shared { disk: disk.clone(), instance, cluster };
        let service = start_with(Setup { config: CONFIG, shared: Some(shared), ..Setup::default() });
        let joined = Event::InstanceJoined { instance, name: format!("host-{}", instance.0), at: Millis(1_524_801_179_855) };
        let one = Instance { service, told };
        one.record(joined);
        one
    }

    fn record(&self, event: Event) {
        self.service.runtime.block_on(self.service.log.record(vec![event])).unwrap();
    }

    fn take(&self, instance: InstanceId, number: u32, term: u64) {
        self.record(Event::LaneTaken { lane: lane(number), instance, term, at: Millis(2) });
    }

    fn post(&self, number: u32, state: LaneState) {
        self.service.board.post(&lane(number), |status| status.state = state);
    }

    fn status(&self) -> Value {
        self.service.get("/v1/status").json()
    }

    fn knows(&self, change: impl FnOnce(&mut Cluster)) {
        self.told.send_modify(|known| change(known.as_mut().unwrap()));
    }
}

/// Of four lanes `a`, which leads, owns one and `b` two; one has no owner.
fn two(disk: &Disk) -> (Instance, Instance) {
    let a = Instance::start(disk, A);
    let b = Instance::start(disk, B);
    a.take(A, 0, 1);
    b.take(B, 1, 1);
    b.take(B, 2, 1);
    wait_until("each has read what the other has said", || {
        [&a, &b]
            .iter()
            .all(|one| one.status()["cluster"]["lanes"].as_array().unwrap().iter().filter(|lane| lane["owner"].is_string()).count() == 3)
    });
    a.post(0, LaneState::Connected);
    b.post(1, LaneState::Connected);
    b.post(2, LaneState::Connected);
    (a, b)
}

fn codes(status: &Value) -> Vec<&str> {
    status["verdict"]["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

#[test]
fn the_status_shows_who_leads_whose_the_lanes_are_and_how_the_servers_do() {
    let disk = Disk::new(1 << 20);
    disk.set_health(Some(healthy()));
    let (a, b) = two(&disk);
    let since = "2018-04-27T03:52:59.855Z";
    let instance = |instance: InstanceId, is_leader: bool, lanes: u32| json!({ "id": id(instance), "name": format!("host-{}", instance.0), "since": since, "is_live": true, "is_leader": is_leader, "lanes": lanes });
    let owned = |lane: &str, owner: Option<InstanceId>| json!({ "lane": lane, "owner": owner.map(id), "term": u64::from(owner.is_some()) });
    let expected = json!({
        "instance": id(A), "name": "host-10", "leader": id(A), "is_kept": true,
        "instances": [instance(A, true, 1), instance(B, false, 2)],
        "lanes": [owned("mqtt/0", Some(A)), owned("mqtt/1", Some(B)), owned("mqtt/2", Some(B)), owned("mqtt/3", None)],
        "stream": { "leader": "nats-1", "age_s": 2, "bytes": 1_000, "max_bytes": 9_000, "replicas": [
            { "name": "nats-2", "is_current": true, "is_offline": false, "lag": 0 },
            { "name": "nats-3", "is_current": false, "is_offline": true, "lag": 7 }] }
    });
    assert_eq!(a.status()["cluster"], expected);
    assert_eq!(b.status()["cluster"]["instance"], json!(id(B)));
    b.knows(|cluster| _ = cluster.heard.insert(A, false));
    assert_eq!(b.status()["cluster"]["instances"][0]["is_live"], json!(false));
    let alone = start_with(Setup::default()).get("/v1/status").json();
    assert_eq!(alone.get("cluster"), None, "there is no such thing where the log is its own");
}

#[test]
fn lanes_of_another_instance_are_not_lanes_that_are_away() {
    let disk = Disk::new(1 << 20);
    let (a, b) = two(&disk);
    b.take(B, 3, 1);
    b.post(3, LaneState::Connected);
    // What it drove before, and is on its way out.
    a.post(1, LaneState::BackingOff);
    wait_until("every lane has an owner", || a.status()["cluster"]["lanes"][3]["owner"].is_string());
    let status = a.status();
    assert_eq!(status["verdict"], json!({ "flow": "flowing", "reasons": [] }));
    let lanes = status["connections"][0]["lanes"].as_array().unwrap();
    let shown: Vec<(&Value, Option<&str>)> = lanes.iter().map(|lane| (&lane["state"], lane.get("owner").and_then(Value::as_str))).collect();
    let elsewhere = json!("elsewhere");
    let expected =
        [(&json!("connected"), None), (&elsewhere, Some("host-11")), (&elsewhere, Some("host-11")), (&elsewhere, Some("host-11"))];
    assert_eq!(shown, expected);
    assert_eq!(a.service.get("/readyz").json()["connections"][0]["up"], json!(true));
    a.post(0, LaneState::BackingOff);
    let status = a.status();
    assert_eq!((&status["verdict"]["flow"], codes(&status)), (&json!("partly"), vec!["broker_away"]));
    assert_eq!(codes(&b.status()), Vec::<&str>::new(), "it does well itself");
}

#[test]
fn an_instance_without_any_lane_delivers_elsewhere_and_says_so() {
    let disk = Disk::new(1 << 20);
    let (a, b) = two(&disk);
    a.record(Event::LaneLeft { lane: lane(0), instance: A, term: 1, at: Millis(3) });
    b.take(B, 0, 2);
    b.take(B, 3, 1);
    wait_until("it has lost all", || a.status()["cluster"]["instances"][0]["lanes"] == json!(0) && codes(&a.status()).is_empty());
    let posted = a.service.post(NDJSON, format!("{}\n", report("success", 1)).as_bytes());
    assert_eq!(posted.status, 202, "any instance accepts");
    let status = a.status();
    assert_eq!(status["verdict"]["flow"], json!("flowing"));
    assert_eq!((&status["connections"][0]["backlog"], &status["connections"][0]["oldest_pending_age_seconds"]), (&json!(1), &Value::Null));
    wait_until("its owner knows how old it is", || b.status()["connections"][0]["oldest_pending_age_seconds"].is_number());
    let ready = a.service.get("/readyz");
    assert_eq!((ready.status, &ready.json()["connections"][0]["up"]), (200, &json!(true)));
    assert!(!a.service.get("/metrics").text.contains("tidings_connection_up{"), "no series says that a lane is away");
}

#[test]
fn silence_and_lanes_without_owner_are_reasons() {
    let disk = Disk::new(1 << 20);
    disk.set_health(Some(healthy()));
    let (a, _b) = two(&disk);
    assert_eq!(codes(&a.status()), ["lane_unowned"]);
    a.knows(|cluster| _ = cluster.heard.insert(B, false));
    assert_eq!(codes(&a.status()), ["lane_unowned", "instance_silent"]);
    assert_eq!(a.status()["verdict"]["flow"], json!("partly"));
    assert_eq!(a.service.get("/readyz").status, 200);
}

#[test]
fn an_instance_that_is_cut_off_says_so_and_blames_no_broker() {
    let disk = Disk::new(1 << 20);
    disk.set_health(Some(healthy()));
    let (a, _b) = two(&disk);
    a.knows(|cluster| cluster.is_kept = false);
    // It has ended its lanes.
    a.service.board.remove(&lane(0));
    assert_eq!((codes(&a.status()), &a.status()["verdict"]["flow"]), (vec!["cut_off"], &json!("not_flowing")));
    assert!(!a.service.get("/metrics").text.contains("tidings_connection_up{"), "no series says that a broker is away");
    disk.set_health(Some(Health { leader: None, ..healthy() }));
    assert_eq!(codes(&a.status()), ["no_quorum"]);
    disk.set_health(Some(Health { leader: None, age: Duration::from_secs(60), ..healthy() }));
    assert_eq!(codes(&a.status()), ["cut_off"], "which of the two it is can't be known where no server answers");
}

#[test]
fn an_instance_that_is_cut_off_is_not_ready_and_is_alive() {
    let disk = Disk::new(1 << 20);
    let (a, b) = two(&disk);
    a.knows(|cluster| cluster.is_kept = false);
    let ready = a.service.get("/readyz");
    assert_eq!((ready.status, ready.json()["ready"].clone()), (503, json!(false)), "reports had better go elsewhere");
    assert_eq!(a.service.get("/healthz").status, 200, "a restart would not help");
    assert_eq!(b.service.get("/readyz").status, 200);
}

#[test]
fn metrics_say_what_is_so_of_the_cluster_and_prometheus_finds_no_fault() {
    let disk = Disk::new(1 << 20);
    disk.set_health(Some(healthy()));
    let (a, b) = two(&disk);
    a.knows(|cluster| _ = cluster.heard.insert(B, false));
    for (series, of_a, of_b) in [
        ("tidings_cluster_instances{state=\"live\"}", 1.0, 2.0),
        ("tidings_cluster_instances{state=\"silent\"}", 1.0, 0.0),
        ("tidings_cluster_leader", 1.0, 0.0),
        ("tidings_cluster_lease_kept", 1.0, 1.0),
        ("tidings_cluster_lanes_owned{connection=\"mqtt\"}", 1.0, 2.0),
        ("tidings_cluster_lanes_without_owner", 1.0, 1.0),
        ("tidings_cluster_takeovers_total", 1.0, 2.0),
        ("tidings_stream_leader", 1.0, 1.0),
        ("tidings_stream_replica_lag{replica=\"nats-3\"}", 7.0, 7.0),
        ("tidings_stream_replica_up{replica=\"nats-3\"}", 0.0, 0.0),
        ("tidings_stream_replica_up{replica=\"nats-2\"}", 1.0, 1.0),
        ("tidings_connection_up{connection=\"mqtt\",lane=\"0\"}", 1.0, 0.0),
        ("tidings_connection_up{connection=\"mqtt\",lane=\"1\"}", 0.0, 1.0),
    ] {
        assert!(a.service.get("/metrics").text.contains("tidings_cluster_leader 1\n"));
        assert_eq!((a.service.metric(series), b.service.metric(series)), (of_a, of_b), "{series}");
    }
    let position = "tidings_log_position{store=\"0000000000000000\"}";
    assert!(a.service.metric(position) >= 6.0 && a.service.metric(position) == b.service.metric(position));
    let text = a.service.get("/metrics").text;
    let mut checking = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let checking = checking.as_mut().expect("promtool is needed: it is in Debian's package `prometheus`");
    checking.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(checking.wait().unwrap().success(), "{text}");
    let alone = start_with(Setup::default()).get("/metrics").text;
    for family in ["tidings_cluster_leader ", "tidings_cluster_lease_kept ", "tidings_cluster_instances{", "tidings_stream_"] {
        assert!(!alone.contains(&format!("\n{family}")), "{family} would say that something is wrong");
    }
}
