//! Connections that come, go and change, and other numbers of workers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tidings::core::event::{Event, LanePurpose};
use tidings::core::types::Millis;
use tidings::{app, config};

use crate::support::ledger::{Ledger, action_for, report};
use crate::support::mosquitto::{IN_ORDER, Mosquitto, PERSISTENT};
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{SOON, Tidings, connection, named_connection};
use crate::support::wait_until;
use crate::{pipelines, pipelines_to};

#[test]
fn only_a_connection_that_has_changed_connects_again() {
    let (one, other) = (ScriptedBroker::usual(), ScriptedBroker::usual());
    let with =
        |more: &str| named_connection("one", one.port, "workers = 2") + &named_connection("other", other.port, more) + &pipelines("one");
    let tidings = Tidings::start(&with("workers = 2"));
    let connects = || (one.connects().len(), other.connects().len());
    let wait_until_connected = || {
        let is_connected = |name: &str| {
            let lanes = tidings.status(name)["lanes"].as_array().unwrap().clone();
            lanes.iter().filter(|lane| lane["state"] == "connected").count() == 2
        };
        wait_until("all lanes are connected", || is_connected("one") && is_connected("other"));
    };
    wait_until_connected();
    assert_eq!(connects(), (2, 2));
    assert!(tidings.reload(&(with("workers = 2") + "[[pipeline]]\nname = \"gate\"\nsuccess.one = { topic = \"t\" }\n")));
    assert_eq!(connects(), (2, 2), "a pipeline is no connection");
    for change in ["window = 7", "keepalive = 30", "client_id = \"else\"", "protocol = \"5\""] {
        let before = connects().1;
        assert!(tidings.reload(&with(&format!("workers = 2\n{change}"))));
        wait_until_connected();
        assert!(connects().1 >= before + 2, "{change}");
        assert_eq!(connects().0, 2, "{change}");
    }
    assert!(other.connects().iter().rev().take(2).all(|connect| connect.level == 5));
    one.assert_no_violations();
    other.assert_no_violations();
}

#[test]
fn a_connection_that_is_new_takes_reports_at_once() {
    let (one, other) = (ScriptedBroker::usual(), ScriptedBroker::usual());
    let before = named_connection("one", one.port, "");
    let tidings = Tidings::start(&(before.clone() + &pipelines("one")));
    assert!(tidings.reload(&(before + &named_connection("other", other.port, "") + &pipelines("other"))));
    let mut ledger = Ledger::default();
    for number in 0..10 {
        ledger.post(&tidings, 2, &format!("p{number}"), number);
    }
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&other.arrivals());
    assert!(one.arrivals().is_empty());
}

#[test]
fn other_numbers_of_workers_under_load_keep_the_order_and_lose_nothing() {
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let with = |workers: u32| connection(mosquitto.port, &format!("workers = {workers}")) + SOON + &pipelines("mqtt");
    let tidings = Tidings::start(&with(4));
    let (client, is_over, posted) = (tidings.client(), AtomicBool::new(false), AtomicUsize::new(0));
    let produce = |producer: u64| {
        let mut ledger = Ledger::default();
        for batch in 0u64.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let reports: Vec<String> = (0..10)
                .map(|number| {
                    let id = (producer << 40) + batch * 10 + number;
                    report(action_for(1 + u8::from(number % 10 < 5)), &format!("p{}", number % 10), id)
                })
                .collect();
            ledger.post_many(&client, &reports);
            posted.fetch_add(10, Ordering::Relaxed);
        }
        ledger
    };
    let mut ledger = Ledger::default();
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..3).map(|producer| scope.spawn(move || produce(producer))).collect();
        for (round, workers) in [2, 4, 1, 3, 4].into_iter().enumerate() {
            wait_until("reports flow", || posted.load(Ordering::Relaxed) >= (round + 1) * 500);
            assert!(tidings.reload(&with(workers)));
        }
        is_over.store(true, Ordering::Relaxed);
        producers.into_iter().for_each(|producer| ledger.accepted.extend(producer.join().unwrap().accepted));
    });
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
    tidings.assert_balanced();
}

#[test]
fn a_retired_lane_leaves_no_session_at_the_broker() {
    for protocol in ["5", "3.1.1"] {
        let broker = ScriptedBroker::usual();
        // Nothing but the end of its work wakes a lane in time.
        let with = |workers: u32| {
            let settings = format!("workers = {workers}\nprotocol = \"{protocol}\"\nkeepalive = 3600");
            connection(broker.port, &settings) + SOON + &pipelines("mqtt")
        };
        let tidings = Tidings::start(&with(3));
        let mut ledger = Ledger::default();
        let lanes = || -> Vec<u64> {
            let lane = |client: &String| client.rsplit('-').next().unwrap().parse().unwrap();
            let mut lanes: Vec<u64> = broker.sessions().iter().map(lane).collect();
            lanes.sort_unstable();
            lanes
        };
        wait_until("three sessions", || lanes() == [0, 1, 2]);
        for (round, (workers, left)) in [(1, vec![3]), (3, vec![4, 5, 6]), (2, vec![7, 8]), (1, vec![9])].into_iter().enumerate() {
            for number in 0..30 {
                ledger.post(&tidings, 2, &format!("p{number}"), round as u64 * 100 + number);
            }
            assert!(tidings.reload(&with(workers)));
            wait_until("only the new lanes have one", || lanes() == left);
            let shown = || -> Vec<u64> {
                tidings.status("mqtt")["lanes"].as_array().unwrap().iter().map(|lane| lane["lane"].as_u64().unwrap()).collect()
            };
            wait_until("and are shown", || shown() == left);
        }
        ledger.post(&tidings, 2, "one", 1_000);
        tidings.wait_until_delivered();
        ledger.assert_kept_exactly(&broker.arrivals());
        broker.assert_no_violations();
    }
}

#[test]
fn a_connection_that_was_taken_out_keeps_its_backlog_and_delivers_it_when_it_is_back() {
    let mut mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let other = ScriptedBroker::usual();
    let subscriber = Subscriber::start(mosquitto.port);
    mosquitto.stop();
    let rest = named_connection("other", other.port, "");
    let with = connection(mosquitto.port, "") + &rest + SOON + &pipelines("mqtt");
    let without = rest + SOON + &pipelines_to("other", "other/{project}");
    let mut tidings = Tidings::start(&with);
    let mut ledger = Ledger::default();
    let reports: Vec<String> =
        (0..500).map(|number| report(action_for(1 + (number % 2) as u8), &format!("p{}", number % 7), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    assert!(tidings.reload(&without));
    for is_restarted in [false, true] {
        if is_restarted {
            assert_eq!(tidings.stop(), Some(0));
            tidings.run();
        }
        let status = tidings.status("mqtt");
        assert_eq!((&status["configured"], &status["backlog"]), (&serde_json::json!(false), &serde_json::json!(500)));
        let ready = tidings.get("/readyz").unwrap();
        assert_eq!(ready.status, 200);
        assert_eq!(ready.json()["unconfigured"][0]["backlog"], 500);
        assert!(ready.text.contains("tidings move --from mqtt --to"), "{}", ready.text);
        assert!(tidings.command(&["status"]).1.contains("500 deliveries wait for mqtt"));
        assert_eq!(tidings.metric("tidings_backlog_deliveries{connection=\"mqtt\"}"), 500.0);
    }
    mosquitto.run();
    assert!(tidings.reload(&with));
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept_exactly(&subscriber.arrivals());
    tidings.assert_balanced();
}

#[test]
fn what_was_in_flight_to_another_server_is_sent_again_in_a_session_of_its_own_and_counted() {
    let silent = ScriptedBroker::start(|packet| if packet.publish().is_some() { vec![] } else { vec![Act::Usual] });
    let next = ScriptedBroker::usual();
    let with = |port: u16| connection(port, "workers = 1\nprotocol = \"5\"") + SOON + &pipelines("mqtt");
    let tidings = Tidings::start(&with(silent.port));
    let mut ledger = Ledger::default();
    for number in 0..5 {
        ledger.post(&tidings, 2, "one", number);
    }
    wait_until("they are in flight", || silent.count(|packet| packet.publish().is_some()) == 5);
    // It is gone, so that nobody waits for its answers.
    let old_client = silent.connects()[0].client_id.clone();
    drop(silent);
    assert!(tidings.reload(&with(next.port)));
    tidings.wait_until_delivered();
    ledger.assert_kept_exactly(&next.arrivals());
    assert!(next.connects().iter().all(|connect| connect.client_id != old_client), "another epoch is another session");
    assert_eq!(tidings.total("possible_duplicates"), 5);
    next.assert_no_violations();
}

#[test]
fn a_reload_finishes_what_is_in_flight_before_it_goes_elsewhere() {
    let (one, next) = (ScriptedBroker::usual(), ScriptedBroker::usual());
    let with = |port: u16| connection(port, "workers = 2") + SOON + &pipelines("mqtt");
    let tidings = Tidings::start(&with(one.port));
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..3_000).map(|number| report("success", &format!("p{}", number % 5), number)).collect();
    ledger.post_many(&tidings.client(), &reports);
    wait_until("they flow", || !one.arrivals().is_empty());
    assert!(tidings.reload(&with(next.port)));
    tidings.wait_until_delivered();
    // Each has arrived at one of the two, and at one only.
    ledger.assert_kept_exactly(&[one.arrivals(), next.arrivals()].concat());
    one.assert_no_violations();
    next.assert_no_violations();
}

#[test]
fn a_kill_or_a_stop_at_the_moment_of_a_reload_loses_nothing_and_keeps_the_order() {
    let mosquitto = Mosquitto::start(&[PERSISTENT, IN_ORDER].concat());
    let subscriber = Subscriber::start(mosquitto.port);
    let with = |workers: u32| connection(mosquitto.port, &format!("workers = {workers}")) + SOON + &pipelines("mqtt");
    let mut tidings = Tidings::start(&with(4));
    let mut ledger = Ledger::default();
    let batch = |round: u64, part: u64| -> Vec<String> {
        (0..150).map(|number| report("success", &format!("p{}", number % 6), (round * 2 + part) * 1_000 + number)).collect()
    };
    for round in 0..6 {
        ledger.post_many(&tidings.client(), &batch(round, 0));
        tidings.configure(&with([2, 5, 1, 3, 4, 2][usize::try_from(round).unwrap()]));
        tidings.hang_up();
        ledger.post_many(&tidings.client(), &batch(round, 1));
        match round % 2 {
            0 => tidings.kill(),
            _ => assert_eq!(tidings.stop(), Some(0)),
        }
        tidings.run();
        tidings.assert_balanced();
    }
    tidings.wait_until_delivered();
    wait_until("all arrive", || ledger.is_complete(&subscriber.arrivals()));
    ledger.assert_kept(&subscriber.arrivals());
    tidings.assert_balanced();
}

#[test]
fn a_set_of_lanes_that_a_reload_left_behind_unused_is_made_good_by_the_next() {
    let broker = ScriptedBroker::usual();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("[store]\npath = \"{}\"\n[http]\nlisten = \"127.0.0.1:0\"\n", folder.path().join("store").display());
    let text = store + &connection(broker.port, "workers = 2") + SOON + &pipelines("mqtt");
    let config = || config::from_str(&text, "test.toml").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let running = app::start(config()).await.unwrap();
        // As if it had been given up between making the lanes and using them.
        let left_behind = Event::LanesChanged { connection: "mqtt".into(), first: 2, count: 5, purpose: LanePurpose::Fresh, at: Millis(1) };
        running.log().record(vec![left_behind]).await.unwrap();
        let changes = running.reload(Ok(config())).await.unwrap();
        assert_eq!(changes.changed, ["mqtt".into()]);
        assert_eq!(running.reload(Ok(config())).await.unwrap().changed, [], "now it is in use");
        let url = format!("http://{}/v1/reports", running.http_addr());
        let posting = tokio::task::spawn_blocking(move || {
            ureq::post(url).content_type("application/json").send(report("success", "one", 1)).unwrap().status().as_u16()
        });
        assert_eq!(posting.await.unwrap(), 202);
        let arriving = tokio::task::spawn_blocking(move || wait_until("it arrives", || broker.arrivals().len() == 1));
        arriving.await.unwrap();
        running.stop().await.unwrap();
    });
}

#[test]
fn a_reload_that_the_store_does_not_take_is_refused_in_sight() {
    let broker = ScriptedBroker::usual();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("[store]\npath = \"{}\"\n[http]\nlisten = \"127.0.0.1:0\"\n", folder.path().join("store").display());
    let config = |workers: u32| {
        let text = store.clone() + &connection(broker.port, &format!("workers = {workers}")) + SOON + &pipelines("mqtt");
        config::from_str(&text, "test.toml").unwrap()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let running = app::start(config(2)).await.unwrap();
        // Lanes can't be made any more.
        running.log().stop().await.unwrap();
        let error = running.reload(Ok(config(3))).await.unwrap_err();
        assert!(matches!(error, app::ReloadError::Failed(_)), "{error:?}");
        assert_eq!(running.metrics().tidings_config_last_reload_successful.get(), 0);
        assert_eq!(running.metrics().tidings_config_reloads_total.with_label_values(&["refused"]).get(), 1);
        let url = format!("http://{}/v1/status", running.http_addr());
        let asking = tokio::task::spawn_blocking(move || ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap());
        let status = asking.await.unwrap();
        assert!(status.contains("the configuration was not put in force as a whole: "), "{status}");
    });
}
