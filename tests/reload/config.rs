//! Files that are read again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT, free_port};
use crate::support::scripted::ScriptedBroker;
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{SOON, Tidings, connection};
use crate::support::{PATIENCE, signal, wait_for_end, wait_until};
use crate::{pipelines, pipelines_to};

const JSON: &str = "application/json";

#[test]
fn a_file_with_mistakes_changes_nothing_and_each_mistake_is_named_as_by_the_check() {
    let broker = ScriptedBroker::usual();
    let good = connection(broker.port, "") + &pipelines("mqtt");
    let tidings = Tidings::start(&good);
    let bad = connection(broker.port, "window = 0\nprot = 1884") + &pipelines_to("mqtt", "other/{nothing}");
    assert!(!tidings.reload(&bad));
    let mut check = Command::new(env!("CARGO_BIN_EXE_tidings"));
    let check = check.args(["check", "--config"]).arg(tidings.config_file()).output().unwrap();
    let told = String::from_utf8(check.stderr).unwrap();
    let file = tidings.config_file().display().to_string();
    let mistakes: Vec<&str> = told.lines().filter(|line| line.starts_with(&file)).collect();
    assert!(mistakes.len() >= 5, "{told}");
    let status = tidings.get("/v1/status").unwrap().json();
    let errors = tidings.logged("ERROR");
    for mistake in &mistakes {
        assert!(errors.iter().any(|line| line["message"] == **mistake), "{mistake} is not in {errors:#?}");
        assert!(status["config"]["mistakes"].as_array().unwrap().iter().any(|shown| shown == mistake), "{status}");
    }
    assert_eq!(status["config"]["last_reload_successful"], false);
    assert_eq!(tidings.metric("tidings_config_last_reload_successful"), 0.0);
    let (_, text) = tidings.command(&["status"]);
    assert!(text.contains(&format!("! the configuration was not reloaded: {}", mistakes[0])), "{text}");
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    assert_eq!(ledger.accepted[0].topic, "zuul/one");
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    assert!(tidings.reload(&good));
    assert_eq!(tidings.metric("tidings_config_last_reload_successful"), 1.0);
    assert_eq!(tidings.get("/v1/status").unwrap().json()["config"]["last_reload_successful"], true);
}

#[test]
fn a_file_that_is_gone_is_a_mistake_like_any_other() {
    let broker = ScriptedBroker::usual();
    let tidings = Tidings::start(&(connection(broker.port, "") + &pipelines("mqtt")));
    fs::remove_file(tidings.config_file()).unwrap();
    assert!(!tidings.reload_file());
    assert!(!tidings.logged("can't be read").is_empty());
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 1, "one", 1);
    tidings.wait_until_delivered();
}

#[test]
fn a_new_pipeline_is_in_force_and_no_request_meanwhile_is_refused_or_lost() {
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let before = connection(mosquitto.port, "") + &pipelines("mqtt");
    let after = before.clone() + "[[pipeline]]\nname = \"gate\"\nsuccess.mqtt = { topic = \"gate/{project}\", qos = 2 }\n";
    let tidings = Tidings::start(&before);
    let (client, is_over, posted) = (tidings.client(), AtomicBool::new(false), AtomicUsize::new(0));
    let produce = |producer: u64| {
        let mut ledger = Ledger::default();
        for number in 0.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            // Each has to be accepted.
            ledger.post_raw(&client, &report(action_for(1 + u8::from(number % 2 == 0)), &format!("p{producer}"), number));
            posted.fetch_add(1, Ordering::Relaxed);
        }
        ledger
    };
    let mut ledger = Ledger::default();
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..3).map(|producer| scope.spawn(move || produce(producer))).collect();
        for round in 1..=6 {
            wait_until("reports flow", || posted.load(Ordering::Relaxed) >= round * 60);
            assert!(tidings.reload(if round % 2 == 0 { &before } else { &after }));
        }
        assert!(tidings.reload(&after));
        is_over.store(true, Ordering::Relaxed);
        producers.into_iter().for_each(|producer| ledger.accepted.extend(producer.join().unwrap().accepted));
    });
    ledger.post_raw(&client, r#"{"action":"success","tenant":"acme","pipeline":"gate","project":"widgets","change":"1"}"#);
    assert_eq!(ledger.accepted.last().unwrap().topic, "gate/widgets");
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
    assert_eq!(tidings.metric("tidings_reconnects_total{connection=\"mqtt\"}"), 0.0);
    tidings.assert_balanced();
}

#[test]
fn what_was_accepted_keeps_its_topic_and_qos_whatever_the_routes_say_now() {
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    mosquitto.stop();
    let tidings = Tidings::start(&(connection(mosquitto.port, "") + SOON + &pipelines("mqtt")));
    let mut ledger = Ledger::default();
    for number in 0..20 {
        ledger.post(&tidings, 2, &format!("p{}", number % 3), number);
    }
    assert!(tidings.reload(&(connection(mosquitto.port, "") + SOON + &pipelines_to("mqtt", "elsewhere/{project}"))));
    for number in 20..40 {
        ledger.post(&tidings, 1, &format!("p{}", number % 3), number);
    }
    assert!(ledger.accepted[20..].iter().all(|accepted| accepted.topic.starts_with("elsewhere/")));
    mosquitto.run();
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
    let arrived_with = |topic: &str| subscriber.arrivals().iter().find(|arrival| arrival.topic == topic).unwrap().qos;
    assert_eq!((arrived_with("zuul/p1"), arrived_with("elsewhere/p1")), (2, 1));
}

#[test]
fn what_needs_a_restart_is_named_and_everything_else_is_put_in_force() {
    let broker = ScriptedBroker::usual();
    let rest = connection(broker.port, "") + &pipelines("mqtt");
    let tidings = Tidings::start(&rest);
    let with = |path: &str, port: u16, size: &str| {
        format!(
            "[store]\npath = \"{path}\"\nmax_size = \"{size}\"\n[http]\nlisten = \"127.0.0.1:{port}\"\nmax_report = \"1KiB\"\nmax_batch = \"2KiB\"\n{rest}"
        )
    };
    fs::write(tidings.config_file(), with("/nowhere/store", 1, "300MiB")).unwrap();
    assert!(tidings.reload_file());
    assert_eq!(tidings.logged("a restart is needed for: store.path, http.listen").len(), 1);
    let status = tidings.get("/v1/status").unwrap().json();
    assert_eq!(status["config"]["restart_needed"], serde_json::json!(["store.path", "http.listen"]));
    wait_until("the committer has its limits", || tidings.get("/v1/status").unwrap().json()["store"]["max_bytes"] == 300 << 20);
    assert!(tidings.command(&["status"]).1.contains("! restart needed for: store.path, http.listen"));
    let large = report("success", &"x".repeat(1_100), 1);
    assert_eq!(tidings.client().post(large.as_bytes(), JSON, None).unwrap().status, 413);
    let store = tidings.store();
    fs::write(tidings.config_file(), with(&store.display().to_string(), 0, "256MiB")).unwrap();
    assert!(tidings.reload_file());
    assert_eq!(tidings.get("/v1/status").unwrap().json()["config"]["restart_needed"], serde_json::json!([]));
}

#[test]
fn sighups_one_after_the_other_end_with_the_last_file() {
    let broker = ScriptedBroker::usual();
    let with = |topic: &str| connection(broker.port, "") + &pipelines_to("mqtt", topic);
    let tidings = Tidings::start(&with("t0"));
    for number in 1..=8 {
        tidings.configure(&with(&format!("t{number}")));
        tidings.hang_up();
    }
    let mut ledger = Ledger::default();
    let mut number = 0;
    wait_until("the last file is in force", || {
        number += 1;
        ledger.post(&tidings, 2, "one", number);
        ledger.accepted.last().unwrap().topic == "t8"
    });
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
}

#[test]
fn a_sighup_at_the_start_is_heeded_after_it_and_one_at_the_stop_does_no_harm() {
    // It takes its PUBLISH and says nothing, so the stop takes its time.
    let broker =
        ScriptedBroker::start(|packet| if packet.publish().is_some() { vec![] } else { vec![crate::support::scripted::Act::Usual] });
    let mut tidings = Tidings::start(&(connection(broker.port, "workers = 1") + &pipelines("mqtt")));
    Ledger::default().post(&tidings, 2, "one", 1);
    wait_until("it is in flight", || broker.count(|packet| packet.publish().is_some()) > 0);
    tidings.kill();
    let mut service = Command::new(env!("CARGO_BIN_EXE_tidings"));
    service.args(["serve", "--log-format", "json", "--config"]).arg(tidings.config_file()).env_remove("NOTIFY_SOCKET");
    let mut child = service.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut steps = ["did not stop cleanly", "the configuration was reloaded", "stopping: finishing what is in flight", "stopped"].iter();
    let mut next = steps.next();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok) {
        let Some(step) = next.filter(|step| line.contains(**step)) else { continue };
        match *step {
            "did not stop cleanly" => signal(&child, "HUP"),
            "the configuration was reloaded" => signal(&child, "TERM"),
            "stopping: finishing what is in flight" => {
                signal(&child, "HUP");
                broker.hang_up();
            }
            _ => {}
        }
        next = steps.next();
    }
    assert_eq!(next, None, "not logged");
    assert_eq!(wait_for_end(&mut child, "the service ends"), Some(0));
}

#[test]
fn where_its_log_cannot_be_written_it_accepts_reloads_delivers_and_stops_as_ever() {
    let broker = ScriptedBroker::usual();
    let config = connection(broker.port, "workers = 1") + &pipelines("mqtt");
    let mut tidings = Tidings::prepare(&config);
    tidings.listen = format!("127.0.0.1:{}", free_port());
    tidings.configure(&config);
    tidings.run_without_a_log();
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    assert!(!tidings.reload("window = 0"), "each mistake is a line");
    assert!(tidings.reload(&config));
    broker.hang_up();
    ledger.post(&tidings, 2, "one", 2);
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&broker.arrivals());
    assert_eq!(tidings.stop(), Some(0));
}

#[test]
fn systemd_is_told_that_the_configuration_is_read_again_and_what_came_of_it() {
    let broker = ScriptedBroker::usual();
    let tidings = Tidings::prepare(&(connection(broker.port, "") + &pipelines("mqtt")));
    let path = tidings.folder().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 1_024];
        let length = socket.recv(&mut message).expect("systemd is told");
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let mut service = Command::new(env!("CARGO_BIN_EXE_tidings"));
    service.args(["serve", "--config"]).arg(tidings.config_file()).env("NOTIFY_SOCKET", &path);
    let mut child = service.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(told(), "READY=1\n");
    for (config, status) in [
        (connection(broker.port, "window = 9") + &pipelines("mqtt"), "the configuration was reloaded"),
        ("window = 0".to_owned(), "the configuration was not reloaded; the log says why"),
    ] {
        tidings.configure(&config);
        signal(&child, "HUP");
        let reloading = told();
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.trim().parse::<u64>().ok());
        assert!(since.is_some_and(|since| since > 0), "{reloading}");
        assert_eq!(told(), format!("READY=1\nSTATUS={status}\n"));
    }
    signal(&child, "TERM");
    assert_eq!(wait_for_end(&mut child, "the service ends"), Some(0));
}
