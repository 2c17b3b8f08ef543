//! The seed's examples, verbatim, in files as a Zuul has them: its two messages come to the right topics at the right QoS.

use super::Files;
use super::support::mosquitto::Mosquitto;
use super::support::subscriber::Subscriber;
use super::support::tidings::Tidings;
use super::support::wait_until;

/// The example of the seed.
const SEED: &str = r#"- pipeline:
    name: check
    success:
      mqtt:
        topic: "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}"
        qos: 2
"#;

#[test]
fn zuuls_files_as_they_are_deliver_the_seeds_messages() {
    let broker = Mosquitto::start("");
    let subscriber = Subscriber::start(broker.port);
    let files = Files::conf(&format!(
        r#"[scheduler]
tenant_config=/etc/zuul/main.yaml
[connection gerrit]
driver=gerrit
server=review.example.com
sshkey=/var/lib/zuul/.ssh/id_rsa
[connection mqtt]
driver=mqtt
server=127.0.0.1
port={}
keepalive=60
"#,
        broker.port
    ));
    let around = "- pipeline: {name: gate, manager: dependent, success: {gerrit: {submit: true}, mqtt: {topic: 'gate'}}}\n";
    files.write("zuul.d/pipelines.yaml", &format!("{SEED}{around}- job: {{name: linters}}\n"));
    files.write(
        "openstack.yaml",
        "- pipeline:\n    name: check\n    start:\n      mqtt:\n        topic: \"start/{project}\"\n        qos: 1\n",
    );
    let pipelines = format!(
        "['{}', {{ tenant = 'openstack.org', path = '{}' }}]",
        files.path("zuul.d").display(),
        files.path("openstack.yaml").display()
    );
    let mut tidings = Tidings::start(&format!("[zuul]\nconf = '{}'\npipelines = {pipelines}\n", files.path("zuul.conf").display()));
    let start: &[u8] = include_bytes!("../fixtures/seed-start.json");
    let success: &[u8] = include_bytes!("../fixtures/seed-success.json");
    for report in [start, success] {
        assert_eq!(tidings.client().post(report, "application/json", None).unwrap().status, 202);
    }
    wait_until("both have arrived", || subscriber.count() >= 2);
    let mut arrivals = subscriber.arrivals();
    arrivals.sort_by_key(|arrival| arrival.qos);
    let [first, second] = &arrivals[..] else { panic!("two: {arrivals:?}") };
    assert_eq!((first.topic.as_str(), first.qos, &first.payload[..]), ("start/sf-jobs", 1, start));
    assert_eq!((second.topic.as_str(), second.qos, &second.payload[..]), ("openstack.org/zuul/check/sf-jobs/master/3", 2, success));
    assert_eq!(tidings.stop(), Some(0));
}
