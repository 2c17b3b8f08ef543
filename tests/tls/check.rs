//! What `check --connect` says, and that it disturbs nobody.

use serde_json::{Value, json};

use crate::setup::{Site, check};
use crate::support::scripted::{Act, Heard, Limits, Packet, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

fn as_json(tidings: &Tidings) -> (Value, Option<i32>) {
    let output = check(tidings, &["--json"]);
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
}

#[test]
fn what_a_broker_tells_of_itself_is_shown_as_far_as_it_is_told() {
    let limits = Limits {
        receive_maximum: Some(7),
        maximum_packet_size: Some(5_000),
        maximum_qos: Some(1),
        retain_available: Some(false),
        keepalive_s: None,
    };
    let broker = ScriptedBroker::with_limits(limits, |_| vec![Act::Usual]);
    let tidings = Tidings::prepare(&(connection(broker.port, "") + PIPELINES));
    let (shown, code) = as_json(&tidings);
    let expected = json!([{
        "connection": "mqtt", "server": format!("127.0.0.1:{}", broker.port), "ok": true, "protocol": "5", "tls": null,
        "receive_maximum": 7, "maximum_packet_size": 5_000, "maximum_qos": 1, "retain_available": false, "server_keep_alive": null,
    }]);
    assert_eq!((&shown["brokers"], &shown["ok"], code), (&expected, &json!(true), Some(0)));
    let said = String::from_utf8(check(&tidings, &[]).stdout).unwrap();
    assert!(said.ends_with(": ok: MQTT 5; Receive Maximum 7, Maximum Packet Size 5000, Maximum QoS 1, Retain Available no\n"), "{said}");
    broker.limit(Limits { keepalive_s: Some(30), ..Limits::default() });
    let said = String::from_utf8(check(&tidings, &[]).stdout).unwrap();
    assert!(said.ends_with(": ok: MQTT 5; Server Keep Alive 30s\n"), "{said}");
}

#[test]
fn the_check_has_a_client_id_of_its_own_and_leaves_no_session() {
    let broker = ScriptedBroker::start(|_| vec![Act::Usual]);
    let tidings = Tidings::start(&(connection(broker.port, "workers = 2") + SOON + PIPELINES));
    wait_until("both lanes are connected", || broker.connects().len() >= 2);
    let lanes = broker.connects();
    for _ in 0..2 {
        assert_eq!(check(&tidings, &[]).status.code(), Some(0));
    }
    let checks = &broker.connects()[lanes.len()..];
    assert_eq!(checks.len(), 2);
    for connect in checks {
        assert!(connect.client_id.starts_with("tidings-check-") && connect.client_id.len() <= 23, "{}", connect.client_id);
        assert!(connect.clean && connect.ends_with_connection);
    }
    assert_ne!(checks[0].client_id, checks[1].client_id);
    // The last one may still be on its way from a process that has ended.
    let left = || broker.count(|packet| matches!(packet.heard, Heard::Disconnect));
    wait_until("it takes its leave", || left() >= 2);
    assert_eq!(left(), 2, "the lanes stay");
    assert!(tidings.logged("no connection to the broker").is_empty());
}

#[test]
fn every_server_of_every_connection_is_tried_and_one_that_fails_is_a_failure() {
    let broker = ScriptedBroker::start(|_| vec![Act::Usual]);
    let older = ScriptedBroker::start(|packet| match &packet.heard {
        // What a broker of 3.1.1 says to MQTT 5 (MQTT 3.1.1 §3.2.2.3).
        Heard::Connect(connect) if connect.level == 5 => vec![Act::Bytes(vec![0x20, 2, 0, 1]), Act::Close],
        _ => vec![Act::Usual],
    });
    let nobody = crate::support::mosquitto::free_port();
    let servers = |ports: &[u16]| {
        let servers: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        format!("[connection.mqtt]\ndriver = \"mqtt\"\nservers = [{}]\n", servers.join(", "))
    };
    let tidings = Tidings::prepare(&(servers(&[broker.port, nobody, older.port]) + PIPELINES));
    let (shown, code) = as_json(&tidings);
    let brokers = shown["brokers"].as_array().unwrap();
    let oks: Vec<&Value> = brokers.iter().map(|broker| &broker["ok"]).collect();
    assert_eq!((oks, code, &shown["ok"]), (vec![&json!(true), &json!(false), &json!(true)], Some(1), &json!(false)));
    assert_eq!(brokers[1]["error"]["code"], "unreachable");
    assert_eq!(brokers[2]["protocol"], "3.1.1");
    tidings.configure(&(servers(&[broker.port, older.port]) + PIPELINES));
    assert_eq!(as_json(&tidings).1, Some(0));
}

#[test]
fn who_says_nothing_is_given_up_in_time_and_it_is_said_at_which_step() {
    let site = Site::new();
    let broker = ScriptedBroker::start(|_: &Packet| vec![]);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let more = format!("[connection.tls]\ndriver = \"mqtt\"\nserver = \"127.0.0.1\"\nport = {port}\nca_certs = \"@/ca.pem\"\n")
        + &format!("[connection.web]\ndriver = \"mqtt\"\nserver = \"ws://127.0.0.1:{port}\"\n");
    let tidings = Tidings::start(&(site.filled_in(&more) + &connection(broker.port, "workers = 1") + SOON + PIPELINES));
    // Side by side: the lanes' own time is up when the check's is.
    let (shown, code) = as_json(&tidings);
    assert_eq!(code, Some(1));
    let errors: Vec<(&str, &str)> = shown["brokers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|broker| (broker["error"]["code"].as_str().unwrap(), broker["error"]["message"].as_str().unwrap()))
        .collect();
    let [(silent, _), (handshake, at_tls), (upgrade, at_upgrade)] = errors[..] else { panic!("{errors:?}") };
    assert_eq!((silent, handshake, upgrade), ("no_answer", "timed_out", "timed_out"));
    assert!(at_tls.starts_with("the TLS handshake (does `port` speak TLS?) did not end within "), "{at_tls}");
    assert!(at_upgrade.starts_with("the WebSocket upgrade (does `server` speak WebSocket?) did not end within "), "{at_upgrade}");
    for step in
        ["the TLS handshake (does `port` speak TLS?) did not end", "the WebSocket upgrade (does `server` speak WebSocket?) did not end"]
    {
        wait_until("the lanes say so, too", || !tidings.logged(step).is_empty());
    }
}

#[test]
fn a_configuration_with_a_mistake_is_not_tried() {
    let site = Site::new();
    let tidings = Tidings::prepare(&site.connection("certfile = \"@/broker.pem\""));
    assert_eq!(check(&tidings, &[]).status.code(), Some(2));
}

#[test]
fn how_a_connection_is_encrypted_is_shown_as_it_was_understood() {
    let site = Site::new();
    let lines = "certfile = \"@/broker.pem\"\nkeyfile = \"@/broker.key\"\nciphers = \"HIGH\"\nuser = \"u\"\npassword = \"p\"";
    let servers = "servers = [\"broker.example.com\", \"wss://web.example.com/mqtt\"]\nca_certs = \"@/ca.pem\"\n";
    let tidings = Tidings::prepare(&site.connection_to(&(servers.to_owned() + lines)));
    let run = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidings"));
        let output = command.args(["check", "--config"]).arg(tidings.config_file()).args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = run(&[]);
    for line in [
        "  broker    broker.example.com:1883 or wss://web.example.com:443/mqtt, MQTT 5 or 3.1.1, keepalive 60s".to_owned(),
        site.filled_in("  tls       issued by @/ca.pem, as @/broker.pem with @/broker.key, TLS 1.2 with HIGH"),
    ] {
        assert!(said.lines().any(|shown| shown == line), "{line:?} is not in\n{said}");
    }
    assert!(!said.contains("unencrypted"), "{said}");
    let shown: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    let shown = &shown["connections"][0];
    assert_eq!(shown["servers"], json!(["broker.example.com:1883", "wss://web.example.com:443/mqtt"]));
    let files = ["ca_certs", "certfile", "keyfile"].map(|key| shown[key].as_str().unwrap().to_owned());
    assert_eq!(files, ["@/ca.pem", "@/broker.pem", "@/broker.key"].map(|path| site.filled_in(path)));
    assert_eq!(shown["ciphers"], "HIGH");
}
