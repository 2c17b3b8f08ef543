//! paho, mosquitto_pub, rumqttc: every QoS, both protocols, with and without TLS.

use std::path::Path;
use std::process::Command;

use crate::certificates::{Authority, LOCAL, Wanted};
use crate::listener;
use crate::python::{PAHO_1, PAHO_2, python};
use crate::support::mosquitto::Mosquitto;
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{Tidings, connection};
use crate::support::wait_until;

/// A service with or without TLS, in front of a broker with a subscriber.
struct Scene {
    tidings: Tidings,
    subscriber: Subscriber,
    broker: Mosquitto,
    with_tls: bool,
}

fn scene(with_tls: bool) -> Scene {
    let broker = Mosquitto::start("");
    let subscriber = Subscriber::start(broker.port);
    let mut tidings = Tidings::prepare("");
    let folder = tidings.folder().to_owned();
    let authority = Authority::new("authority");
    authority.write(&folder.join("ca.pem"));
    authority.issue(&LOCAL).write(&folder, "server");
    authority.issue(&client("zuul-1")).write(&folder, "client");
    authority.issue(&client("zuul-2")).write(&folder, "other");
    let path = |name: &str| folder.join(name).display().to_string();
    let keys = format!("certfile = {:?}\nkeyfile = {:?}\nclient_ca = {:?}", path("server.pem"), path("server.key"), path("ca.pem"));
    tidings.configure(&(listener(if with_tls { &keys } else { "" }) + &connection(broker.port, "")));
    tidings.run();
    Scene { tidings, subscriber, broker, with_tls }
}

impl Scene {
    fn port(&self) -> String {
        self.tidings.listener().port().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.tidings.folder().join(name).display().to_string()
    }

    /// Waits until so many reports have arrived under a topic, at this QoS.
    fn expect(&self, topic: &str, qos: u8, count: usize) {
        let arrived = || self.subscriber.arrivals().into_iter().filter(|arrival| arrival.topic.starts_with(topic)).collect::<Vec<_>>();
        wait_until(topic, || arrived().len() >= count);
        assert_eq!(arrived().len(), count, "{topic}");
        assert!(arrived().iter().all(|arrival| arrival.qos == qos), "{topic}");
    }
}

fn client(name: &str) -> Wanted<'_> {
    Wanted { name, hosts: &[], days: (-1, 30) }
}

fn ran(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {} {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn paho(scene: &Scene, environment: (&str, &str)) {
    let interpreter = python(environment);
    for protocol in ["3.1.1", "5"] {
        for (qos, client_id) in [(0, ""), (1, ""), (2, ""), (1, "with-a-session"), (2, "with-a-session")] {
            let prefix = format!("{}-{protocol}-{qos}-{client_id}-{}", environment.0, scene.with_tls);
            let mut command = Command::new(&interpreter);
            command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/listener/paho_publisher.py"));
            command.args(["--port", &scene.port(), "--protocol", protocol, "--qos", &qos.to_string(), "--client-id", client_id]);
            command.args(["--count", "50", "--topics", "3", "--prefix", &prefix]);
            if scene.with_tls {
                command.args(["--ca", &scene.file("ca.pem"), "--cert", &scene.file("client.pem"), "--key", &scene.file("client.key")]);
            }
            ran(&mut command);
            scene.expect(&prefix, qos, 50);
        }
    }
}

fn mosquitto_pub(scene: &Scene) {
    for protocol in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let topic = format!("mosquitto/{protocol}/{qos}");
            let mut command = Command::new("mosquitto_pub");
            command.args(["-h", "localhost", "-p", &scene.port(), "-V", protocol, "-q", qos, "-t", &topic, "-m", "x", "-r"]);
            if scene.with_tls {
                command.args(["--cafile", &scene.file("ca.pem"), "--cert", &scene.file("client.pem"), "--key", &scene.file("client.key")]);
            }
            ran(&mut command);
            scene.expect(&topic, qos.parse().unwrap(), 1);
        }
    }
}

#[test]
fn paho_of_both_generations_publishes_at_every_qos() {
    let scene = scene(false);
    paho(&scene, PAHO_1);
    paho(&scene, PAHO_2);
}

#[test]
fn paho_and_mosquitto_pub_publish_over_tls_with_certificates() {
    let scene = scene(true);
    paho(&scene, PAHO_2);
    mosquitto_pub(&scene);
}

#[test]
fn mosquitto_pub_publishes_at_every_qos_and_what_is_retained_stays_retained() {
    let scene = scene(false);
    mosquitto_pub(&scene);
    scene.tidings.wait_until_delivered();
    let mut later = Command::new("mosquitto_sub");
    later.args(["-p", &scene.broker.port.to_string(), "-t", "#", "-F", "%r %t", "-C", "6", "-W", "20"]);
    let said = String::from_utf8(later.output().unwrap().stdout).unwrap();
    assert_eq!(said.lines().filter(|line| line.starts_with("1 mosquitto/")).count(), 6, "retained for who comes later: {said}");
}

/// With what mosquitto_pub says about it.
fn try_over_tls(scene: &Scene, arguments: &[&str]) -> bool {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "localhost", "-p", &scene.port(), "-V", "mqttv5", "-q", "1", "-t", "t", "-m", "x"]).args(arguments);
    command.output().unwrap().status.success()
}

#[test]
fn without_a_certificate_of_the_right_authority_nobody_is_let_in() {
    let scene = scene(true);
    let (ca, folder) = (scene.file("ca.pem"), scene.tidings.folder().to_owned());
    let stranger = Authority::new("stranger");
    stranger.issue(&client("zuul-1")).write(Path::new(&folder), "stranger");
    let stranger = [scene.file("stranger.pem"), scene.file("stranger.key")];
    assert!(!try_over_tls(&scene, &[]), "not in the clear");
    assert!(!try_over_tls(&scene, &["--cafile", &ca]), "not without a certificate");
    assert!(!try_over_tls(&scene, &["--cafile", &ca, "--cert", &stranger[0], "--key", &stranger[1]]), "not with a stranger's");
    assert!(try_over_tls(&scene, &["--cafile", &ca, "--cert", &scene.file("client.pem"), "--key", &scene.file("client.key")]));
    wait_until("it is logged", || {
        scene.tidings.logged("an MQTT connection was closed").iter().filter(|line| line["code"] == "tls").count() >= 2
    });
}

#[test]
fn nobody_takes_over_or_reaches_into_another_users_session() {
    let scene = scene(true);
    let interpreter = python(PAHO_2);
    let script = r#"
import sys
import paho.mqtt.client as mqtt
port, ca, cert, key, payload = int(sys.argv[1]), *sys.argv[2:6]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="shared", clean_session=False)
client.tls_set(ca, certfile=cert, keyfile=key)
answers = []
client.on_connect = lambda client, userdata, flags, code, properties: answers.append(flags.session_present)
client.connect("localhost", port)
client.loop_start()
info = client.publish("t", payload, qos=2)
info.wait_for_publish(20)
assert info.is_published()
client.disconnect()
client.loop_stop()
print(answers[0])
"#;
    let publish = |who: &str, payload: &str| {
        let mut command = Command::new(&interpreter);
        command.args([
            "-c",
            script,
            &scene.port(),
            &scene.file("ca.pem"),
            &scene.file(&format!("{who}.pem")),
            &scene.file(&format!("{who}.key")),
        ]);
        let output = command.arg(payload).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(publish("client", "1"), "False");
    assert_eq!(publish("other", "2"), "False", "the same client id of another user is another session");
    assert_eq!(publish("client", "3"), "True", "and the first one is still there");
    scene.expect("t", 2, 3);
}

#[test]
fn rumqttc_publishes_at_every_qos_with_both_protocols() {
    let scene = scene(false);
    let port = scene.tidings.listener().port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
        let mut options = MqttOptions::new("rumqttc-4", "127.0.0.1", port);
        options.set_clean_session(false);
        let (client, mut events) = AsyncClient::new(options, 10);
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            client.publish(format!("rumqttc/4/{}", qos as u8), qos, false, "x").await.unwrap();
        }
        let (mut acked, mut completed) = (false, false);
        while !(acked && completed) {
            match events.poll().await.unwrap() {
                Event::Incoming(Packet::PubAck(_)) => acked = true,
                Event::Incoming(Packet::PubComp(_)) => completed = true,
                _ => {}
            }
        }
    });
    runtime.block_on(async {
        use rumqttc::v5::mqttbytes::QoS;
        use rumqttc::v5::{AsyncClient, Event, Incoming, MqttOptions};
        let (client, mut events) = AsyncClient::new(MqttOptions::new("rumqttc-5", "127.0.0.1", port), 10);
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            client.publish(format!("rumqttc/5/{}", qos as u8), qos, false, "x").await.unwrap();
        }
        let (mut acked, mut completed) = (false, false);
        while !(acked && completed) {
            match events.poll().await.unwrap() {
                Event::Incoming(Incoming::PubAck(_)) => acked = true,
                Event::Incoming(Incoming::PubComp(_)) => completed = true,
                _ => {}
            }
        }
    });
    for level in [4, 5] {
        for qos in [0, 1, 2] {
            scene.expect(&format!("rumqttc/{level}/{qos}"), qos, 1);
        }
    }
}
