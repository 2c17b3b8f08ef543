//! The service over a log on NATS JetStream: the real binary, a real nats-server, a real mosquitto; each of them is killed.
#![cfg(all(unix, feature = "jetstream"))]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "support/certificates.rs"]
mod certificates;
mod support;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use certificates::{Authority, LOCAL};
use support::ledger::{Ledger, action_for, report};
use support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT};
use support::nats::Nats;
use support::scripted::ScriptedBroker;
use support::subscriber::Subscriber;
use support::tidings::{Client, PIPELINES, Reply, SOON, Tidings, connection};
use support::{PATIENCE, wait_until};

/// Lines of `[store]`.
fn store(nats: &[Nats]) -> String {
    let servers: Vec<String> = nats.iter().map(|nats| format!("{:?}", nats.address())).collect();
    format!("backend = \"jetstream\"\nservers = [{}]\nstream = \"reports\"\nreplicas = {}\n", servers.join(", "), nats.len())
}

fn prepared(nats: &[Nats], mosquitto: &Mosquitto) -> Tidings {
    let config = connection(mosquitto.port, "") + SOON + PIPELINES;
    let mut tidings = Tidings::prepare("");
    tidings.store_settings = store(nats);
    tidings.configure(&config);
    tidings
}

/// QoS 1 and 2 by turns, on a few topics.
fn body(number: u64) -> String {
    report(action_for(1 + (number % 2) as u8), &format!("p{}", number % 5), number)
}

/// Posts until it is accepted, as a producer does that loses nothing: with a key, so that nothing is accepted twice.
fn insist(client: &Client, number: u64) -> Reply {
    let (body, key) = (body(number), format!("report-{number}"));
    let mut accepted = None;
    wait_until("the report is accepted", || {
        accepted = client.post(body.as_bytes(), "application/json", Some(&key)).filter(|reply| reply.status == 202);
        accepted.is_some()
    });
    accepted.unwrap()
}

fn post(ledger: &mut Ledger, tidings: &Tidings, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let reply = insist(&tidings.client(), number);
        ledger.enter(body(number).as_bytes(), &reply.json()["deliveries"]);
    }
}

#[test]
fn kills_of_the_service_and_of_the_servers_lose_nothing_and_repeat_no_qos_2() {
    let mut nats = Nats::start();
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let mut tidings = prepared(std::slice::from_ref(&nats), &mosquitto);
    tidings.run();
    let mut ledger = Ledger::default();
    for round in 0..6u64 {
        post(&mut ledger, &tidings, round * 100..round * 100 + 50);
        match round % 3 {
            // Each with commits under way, of outcomes at least.
            0 => {
                tidings.kill();
                tidings.run();
            }
            1 => {
                nats.kill();
                nats.run();
            }
            _ => {
                nats.kill();
                tidings.kill();
                nats.run();
                tidings.run();
            }
        }
        post(&mut ledger, &tidings, round * 100 + 50..round * 100 + 100);
    }
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept(&subscriber.arrivals());
    tidings.assert_balanced();
    assert_eq!(tidings.stop(), Some(0));
    tidings.run();
    assert_eq!(tidings.total("created"), 600);
    // What was taken in twice would be answered with another id.
    assert_eq!(insist(&tidings.client(), 7).json()["deliveries"][0]["id"], ledger.accepted[7].id.to_string());
}

/// Posts until a report is refused as it should be while a commit gets no answer.
fn wait_until_refused(tidings: &Tidings) {
    let mut number = 1_000_000;
    wait_until("a report is refused", || {
        number += 1;
        let client = tidings.client();
        let (sender, answered) = std::sync::mpsc::channel();
        thread::spawn(move || sender.send(client.post(body(number).as_bytes(), "application/json", Some(&format!("late-{number}")))));
        let reply = answered.recv_timeout(Duration::from_secs(1)).ok().flatten();
        thread::sleep(Duration::from_millis(100));
        reply.is_some_and(|reply| reply.status == 503 && reply.json()["error"]["code"] == "overloaded")
    });
}

#[test]
fn while_the_servers_are_away_reports_are_refused_and_then_go_on_by_themselves() {
    let mut nats = Nats::start();
    let mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let mut tidings = prepared(std::slice::from_ref(&nats), &mosquitto);
    tidings.run();
    let mut ledger = Ledger::default();
    post(&mut ledger, &tidings, 0..5);
    nats.kill();
    // The first ones wait for the commit that they are in; those that come later are not kept waiting.
    let waiting: Vec<_> = (5..8)
        .map(|number| {
            let client = tidings.client();
            thread::spawn(move || insist(&client, number))
        })
        .collect();
    wait_until_refused(&tidings);
    assert!(!tidings.has_ended());
    nats.run();
    for (number, waiting) in (5..8).zip(waiting) {
        ledger.enter(body(number).as_bytes(), &waiting.join().unwrap().json()["deliveries"]);
    }
    post(&mut ledger, &tidings, 8..20);
    assert!(!tidings.has_ended(), "it went on without a restart");
    tidings.wait_until_delivered_within(PATIENCE);
    // Those that gave up waiting may have been accepted all the same, as a timeout has it.
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    let found = ledger.compare(&subscriber.arrivals());
    assert!(found.missing.is_empty() && found.twice.is_empty(), "{found:#?}");
}

/// Runs a command that needs no service: its exit code and what it printed.
fn command(words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidings")).args(words).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat())
}

#[test]
fn a_store_moves_from_its_folder_to_servers_and_delivers_what_was_pending_once() {
    let nats = Nats::start();
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let config = connection(mosquitto.port, "") + SOON + PIPELINES;
    let mut on_disk = Tidings::start(&config);
    let mut ledger = Ledger::default();
    post(&mut ledger, &on_disk, 0..40);
    on_disk.wait_until_delivered();
    mosquitto.stop();
    post(&mut ledger, &on_disk, 40..90);
    let folder = on_disk.store();
    let mut on_servers = prepared(std::slice::from_ref(&nats), &mosquitto);
    let target = format!("jetstream:{}", on_servers.config_file().display());
    let move_it = || command(&["move-store", "--from", folder.to_str().unwrap(), "--to", &target]);
    let (code, told) = move_it();
    assert!(code == Some(1) && told.contains("in use by another process"), "{told}");
    on_disk.kill();
    let copy = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-r").arg(format!("{}/.", folder.display())).arg(copy.path()).status().unwrap().success());
    let (code, told) = command(&["move-store", "--from", copy.path().to_str().unwrap(), "--to", &target]);
    assert!(code == Some(1) && told.contains("is a copy of another store"), "{told}");
    let (code, told) = move_it();
    assert!(code == Some(0) && told.contains("50 deliveries pending"), "{told}");
    // By habit, or by systemd.
    let (code, log) = on_disk.refused();
    assert!(code == Some(1) && log.contains("was moved to") && log.contains("delete the file `moved`"), "{log}");
    let (code, told) = move_it();
    assert!(code == Some(1) && told.contains("was moved to"), "{told}");
    std::fs::remove_file(folder.join("moved")).unwrap();
    let (code, told) = move_it();
    assert!(code == Some(1) && told.contains("holds a store already"), "{told}");
    mosquitto.run();
    on_servers.run();
    on_servers.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept(&subscriber.arrivals());
    assert_eq!(on_servers.total("created"), 90);
    on_servers.assert_balanced();
}

/// What is asked of the command, with where the service was that is to be moved away.
fn move_back(stream: &Tidings, folder: &std::path::Path) -> (Option<i32>, String) {
    let source = format!("jetstream:{}", stream.config_file().display());
    command(&["move-store", "--from", &source, "--to", folder.to_str().unwrap()])
}

#[test]
fn a_store_moves_to_servers_and_back_with_all_that_it_holds() {
    let nats = Nats::start();
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER, "max_packet_size 4000\n"].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let config = connection(mosquitto.port, "protocol = \"5\"") + SOON + PIPELINES;
    let mut on_disk = Tidings::start(&config);
    let mut ledger = Ledger::default();
    post(&mut ledger, &on_disk, 0..40);
    let too_large = body(1_000).replace("acme", &"a".repeat(5_000));
    assert_eq!(on_disk.client().post(too_large.as_bytes(), "application/json", None).unwrap().status, 202);
    on_disk.wait_for_total("dead", 1);
    on_disk.kill();
    let mut on_servers = prepared(std::slice::from_ref(&nats), &mosquitto);
    on_servers.configure(&config);
    let target = format!("jetstream:{}", on_servers.config_file().display());
    let (code, told) = command(&["move-store", "--from", on_disk.store().to_str().unwrap(), "--to", &target]);
    assert_eq!(code, Some(0), "{told}");
    on_servers.run();
    let elsewhere = tempfile::tempdir().unwrap();
    let (code, told) = move_back(&on_servers, &elsewhere.path().join("store"));
    assert!(code == Some(1) && told.contains("is in use by") && told.contains(&format!("(pid {})", on_servers.pid())), "{told}");
    // Killed with QoS 2 in flight.
    post(&mut ledger, &on_servers, 40..90);
    on_servers.kill();

    let mut back = Tidings::start(&config);
    let (code, told) = move_back(&on_servers, &back.store());
    assert!(code == Some(1) && told.contains("has to be empty") || told.contains("in use by another process"), "{told}");
    back.kill();
    std::fs::remove_dir_all(back.store()).unwrap();
    let (code, told) = move_back(&on_servers, &back.store());
    assert!(code == Some(0) && told.contains("the stream is marked as moved"), "{told}");
    let (code, log) = on_servers.refused();
    assert!(code == Some(1) && log.contains("it was moved to") && log.contains("nats kv del reports moved"), "{log}");
    let fsck = ["fsck", "--config", &back.config_file().display().to_string()].map(str::to_owned);
    let (code, told) = command(&fsck.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{told}");

    back.run();
    post(&mut ledger, &back, 90..100);
    back.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept(&subscriber.arrivals());
    assert_eq!((back.total("created"), back.total("dead")), (101, 1));
    back.assert_balanced();
    // An idempotency key from before both moves.
    assert_eq!(insist(&back.client(), 7).json()["deliveries"][0]["id"], ledger.accepted[7].id.to_string());
    assert_eq!(back.stop(), Some(0));
    let (code, told) = command(&fsck.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn servers_that_want_tls_certificates_and_a_password_get_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let authority = Authority::new("authority");
    authority.write(&folder.path().join("ca.pem"));
    authority.issue(&LOCAL).write(folder.path(), "server");
    authority.issue(&LOCAL).write(folder.path(), "client");
    let (ca, certificate, key) = (path("ca.pem"), path("server.pem"), path("server.key"));
    let tls = ["--tlsverify", "--tlscacert", &ca, "--tlscert", &certificate, "--tlskey", &key, "--user", "ci", "--pass", "open sesame"];
    let nats = Nats::start_with(&tls);
    let mosquitto = Mosquitto::start("");
    let mut tidings = prepared(std::slice::from_ref(&nats), &mosquitto);
    let config = connection(mosquitto.port, "") + SOON + PIPELINES;
    let login = format!(
        "ca_certs = \"{ca}\"\ncertfile = \"{}\"\nkeyfile = \"{}\"\nuser = \"ci\"\npassword_file = \"{}\"\n",
        path("client.pem"),
        path("client.key"),
        path("password")
    );
    std::fs::write(path("password"), "wrong").unwrap();
    tidings.store_settings = store(std::slice::from_ref(&nats)) + &login;
    tidings.configure(&config);
    let (code, log) = tidings.refused();
    assert_eq!(code, Some(1));
    assert!(log.contains("authorization violation") && !log.contains("wrong"), "{log}");
    std::fs::write(path("password"), "open sesame\n").unwrap();
    tidings.run();
    let mut ledger = Ledger::default();
    post(&mut ledger, &tidings, 0..5);
    tidings.wait_until_delivered();
    let (code, shown) = command(&["check", "--config", tidings.config_file().to_str().unwrap()]);
    assert!(code == Some(0) && shown.contains("over TLS, as user ci") && !shown.contains("sesame"), "{shown}");
}

/// Says that the stream was made on other servers, as it stands in the bucket of one that was restored.
fn make_it_a_copy(nats: &Nats) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(nats.address()).await.unwrap();
        let bucket = async_nats::jetstream::new(client).get_key_value("reports").await.unwrap();
        bucket.put("home", r#"{"cluster":"elsewhere","servers":["other-1"]}"#.into()).await.unwrap();
    });
}

#[test]
fn instances_that_start_on_a_restored_stream_at_once_leave_the_sessions_to_the_original_once() {
    let nats = Nats::cluster();
    let broker = ScriptedBroker::usual();
    let config = connection(broker.port, "") + SOON + PIPELINES;
    let prepare = || {
        let mut tidings = Tidings::prepare("");
        tidings.store_settings = store(&nats);
        tidings.configure(&config);
        tidings
    };
    let (mut original, mut ledger) = (prepare(), Ledger::default());
    // The three have to find each other first.
    wait_until("the cluster takes a stream", || original.try_run());
    post(&mut ledger, &original, 0..10);
    original.wait_until_delivered();
    assert_eq!(original.stop(), Some(0));
    let epochs = || -> BTreeSet<String> {
        broker.connects().iter().map(|connect| connect.client_id.rsplit('-').nth(1).unwrap().to_owned()).collect()
    };
    assert_eq!(epochs(), BTreeSet::from(["0".to_owned()]));
    make_it_a_copy(&nats[0]);
    let mut copies = [prepare(), prepare()];
    thread::scope(|scope| {
        for copy in &mut copies {
            scope.spawn(|| wait_until("it starts", || copy.try_run()));
        }
    });
    for (number, copy) in (1..).zip(&copies) {
        post(&mut ledger, copy, number * 10..number * 10 + 10);
    }
    copies.iter().for_each(|copy| copy.wait_until_delivered());
    // One for the copy, and one for the server that has no session of it.
    assert_eq!(epochs(), BTreeSet::from(["0".to_owned(), "2".to_owned()]));
    assert!(ledger.is_complete(&broker.arrivals()));
}

#[test]
fn a_cluster_loses_a_server_unnoticed_and_its_majority_for_a_while() {
    let mut nats = Nats::cluster();
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let mut tidings = prepared(&nats, &mosquitto);
    // The three have to find each other first.
    wait_until("the cluster takes a stream", || tidings.try_run());
    let mut ledger = Ledger::default();
    for (round, server) in (0..).zip(&mut nats) {
        server.kill();
        post(&mut ledger, &tidings, round * 40..round * 40 + 30);
        server.run();
        post(&mut ledger, &tidings, round * 40 + 30..round * 40 + 40);
    }
    assert!(!tidings.has_ended());
    nats[0].signal("-STOP");
    nats[1].signal("-STOP");
    wait_until_refused(&tidings);
    nats[0].signal("-CONT");
    nats[1].signal("-CONT");
    post(&mut ledger, &tidings, 120..150);
    assert!(!tidings.has_ended(), "it went on without a restart");
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    let found = ledger.compare(&subscriber.arrivals());
    assert!(found.missing.is_empty() && found.twice.is_empty() && found.out_of_order.is_empty(), "{found:#?}");
    tidings.kill();
    wait_until("it starts again", || tidings.try_run());
    tidings.wait_until_delivered();
    tidings.assert_balanced();
}
