//! Backups of a running service.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::ledger::{Ledger, report};
use crate::support::mosquitto::{Mosquitto, PERSISTENT};
use crate::support::scripted::ScriptedBroker;
use crate::support::subscriber::Subscriber;
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;
use crate::{text, tidings};

/// Posts reports of QoS 2 in small batches until it is told to stop.
fn load(tidings: &Tidings, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<Ledger> {
    let (client, stop) = (tidings.client(), Arc::clone(stop));
    std::thread::spawn(move || {
        let mut ledger = Ledger::default();
        for batch in 0u64.. {
            let reports: Vec<String> =
                (0..20).map(|number| report("success", &format!("p{}", number % 5), 100_000 + batch * 20 + number)).collect();
            // Each has to be accepted, whatever else goes on.
            ledger.post_many(&client, &reports);
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        ledger
    })
}

#[test]
fn a_backup_with_a_date_that_no_calendar_has_is_restored() {
    let original = Tidings::start(&(connection(9, "") + PIPELINES));
    let (backup, url) = (original.folder().join("backup"), format!("http://{}", original.address()));
    assert_eq!(tidings(&["backup", text(&backup), "--url", &url]).code, Some(0));
    // As a host's clock that had gone mad would have dated it.
    let written = std::fs::read_to_string(backup.join("backup")).unwrap();
    let mut content: serde_json::Value = serde_json::from_str(written.lines().next().unwrap()).unwrap();
    content["taken"] = u64::MAX.into();
    let crc = crc32c::crc32c(content.to_string().as_bytes());
    std::fs::write(backup.join("backup"), format!("{content}\ncrc {crc:08x}\n")).unwrap();
    let restored = tidings(&["restore", text(&backup), "--store", text(&original.folder().join("restored")), "--json"]);
    assert_eq!((restored.code, restored.json()["taken"].as_str()), (Some(0), Some("9999-12-31T23:59:59.999Z")), "{restored:?}");
}

#[test]
fn a_backup_taken_under_load_and_restored_elsewhere_delivers_what_was_pending_in_it() {
    let mut mosquitto = Mosquitto::start(PERSISTENT);
    let subscriber = Subscriber::start(mosquitto.port);
    let config = connection(mosquitto.port, "") + SOON + PIPELINES;
    let mut original = Tidings::start(&config);
    let mut ledger = Ledger::default();
    let reports: Vec<String> = (0..300).map(|number| report("success", &format!("p{}", number % 5), number)).collect();
    ledger.post_many(&original.client(), &reports);
    original.wait_until_delivered();
    wait_until("the first ones arrive", || ledger.is_complete(&subscriber.arrivals()));
    let delivered_before: HashSet<u64> = ledger.accepted.iter().map(|known| known.id).collect();

    // From here on there is a backlog, and it grows.
    mosquitto.stop();
    let stop = Arc::new(AtomicBool::new(false));
    let posting = load(&original, &stop);
    original.wait_for_total("pending", 200);
    let (folder, url) = (original.folder().to_owned(), format!("http://{}", original.address()));
    let backup = folder.join("backup");
    let made = tidings(&["backup", text(&backup), "--url", &url, "--json"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let made = made.json();
    let position = made["position"].as_u64().unwrap();
    assert_eq!(std::path::Path::new(made["store"].as_str().unwrap()), original.store().canonicalize().unwrap());
    original.wait_for_total("pending", original.total("pending") + 200);
    stop.store(true, Ordering::Relaxed);
    ledger.accepted.extend(posting.join().unwrap().accepted);

    // The original delivers a part, and is gone.
    mosquitto.run();
    wait_until("a part arrives", || subscriber.count() >= 400);
    original.kill();

    let restored_store = folder.join("restored");
    let restored = tidings(&["restore", text(&backup), "--store", text(&restored_store)]);
    assert_eq!(restored.code, Some(0), "{restored:?}");
    for word in [format!("up to event {position},"), "was accepted after that is not in it".into(), "is delivered again".into()] {
        assert!(restored.out.contains(&word), "no {word:?} in {restored:?}");
    }
    let mut copy = Tidings::prepare(&config);
    std::fs::rename(&restored_store, copy.store()).unwrap();
    copy.run();
    assert_eq!(copy.logged("the store is a copy").len(), 1);
    copy.wait_until_delivered();
    copy.assert_balanced();

    let of_the_backup =
        |ledger: &Ledger| Ledger { accepted: ledger.accepted.iter().filter(|known| known.id <= position).cloned().collect() };
    let expected = of_the_backup(&ledger);
    assert!(expected.accepted.len() > 400 && expected.accepted.len() < ledger.accepted.len(), "{} in it", expected.accepted.len());
    wait_until("all that was in the backup arrives", || expected.is_complete(&subscriber.arrivals()));
    let found = ledger.compare(&subscriber.arrivals());
    assert!(found.unknown.is_empty(), "{found:#?}");
    assert!(found.missing.iter().all(|id| *id > position), "{found:#?}");
    for id in &found.twice {
        assert!(*id <= position && !delivered_before.contains(id), "{id} was not pending in the backup, and came twice: {found:#?}");
    }
    // The next start is none of a copy any more.
    assert_eq!(copy.stop(), Some(0));
    copy.run();
    assert_eq!(copy.logged("the store is a copy").len(), 1);
}

#[test]
fn a_copied_store_leaves_the_sessions_at_the_broker_to_the_original() {
    let broker = ScriptedBroker::usual();
    let config = connection(broker.port, "") + SOON + PIPELINES;
    let mut original = Tidings::start(&config);
    let mut ledger = Ledger::default();
    let reports = |from: u64| -> Vec<String> { (from..from + 20).map(|number| report("success", &format!("p{number}"), number)).collect() };
    ledger.post_many(&original.client(), &reports(0));
    original.wait_until_delivered();
    original.kill();
    let ids = |broker: &ScriptedBroker| broker.connects().into_iter().map(|connect| connect.client_id).collect::<HashSet<String>>();
    let before = ids(&broker);
    let mut copy = Tidings::prepare(&config);
    let copied = Command::new("cp").arg("-r").args([original.store(), copy.store()]).status().unwrap();
    assert!(copied.success());
    copy.run();
    ledger.post_many(&copy.client(), &reports(20));
    copy.wait_until_delivered();
    let after: HashSet<String> = ids(&broker).difference(&before).cloned().collect();
    assert_eq!(after.len(), before.len(), "each lane has another client id: {before:?}, {after:?}");
    assert!(ledger.is_complete(&broker.arrivals()));
}

#[test]
fn one_backup_at_a_time_holds_the_store_until_it_ends() {
    let service = Tidings::start(&(connection(1, "") + PIPELINES));
    Ledger::default().post(&service, 2, "one", 1);
    let ask = |method: &str, path: &str| {
        let request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", service.address()));
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        let mut response = agent.run(request.body(()).unwrap()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default())
    };
    let (status, begun) = ask("POST", "/v1/backups");
    assert_eq!(status, 201, "{begun}");
    assert_eq!((&begun["generations"].as_array().unwrap().len(), &begun["holds_s"]), (&1, &60.into()));
    let path = format!("/v1/backups/{}", begun["id"].as_str().unwrap());
    let (status, refused) = ask("POST", "/v1/backups");
    assert_eq!((status, refused["error"]["code"].as_str()), (409, Some("backup_under_way")));
    assert_eq!(ask("PUT", &path).0, 204);
    for other in ["/v1/backups/0", "/v1/backups/what"] {
        let (status, refused) = ask("PUT", other);
        assert_eq!((status, refused["error"]["code"].as_str()), (404, Some("no_such_backup")));
    }
    assert_eq!(ask("DELETE", &path).0, 204);
    assert_eq!(ask("DELETE", &path).0, 404);
    assert_eq!(ask("POST", "/v1/backups").0, 201);
}

#[test]
fn a_backup_with_the_service_stopped_works_too() {
    let mut service = Tidings::start(&(connection(1, "") + PIPELINES));
    let mut ledger = Ledger::default();
    ledger.post(&service, 2, "one", 1);
    let nobody = "http://127.0.0.1:1";
    let config = service.config_file();
    let target = service.folder().join("backup");
    // Not where it was asked, but there.
    let refused = tidings(&["backup", text(&target), "--config", text(&config), "--url", nobody]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("is in use by another process") && refused.err.contains("it is not where it was asked"), "{refused:?}");
    service.kill();
    let made = tidings(&["backup", text(&target), "--config", text(&config), "--url", nobody]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let again = tidings(&["backup", text(&target), "--config", text(&config), "--url", nobody]);
    assert!(again.code == Some(1) && again.err.contains("is not empty"), "{again:?}");
    let over = tidings(&["restore", text(&target), "--config", text(&config)]);
    assert!(over.code == Some(1) && over.err.contains("is not empty"), "{over:?}");
    std::fs::remove_dir_all(service.store()).unwrap();
    let restored = tidings(&["restore", text(&target), "--config", text(&config), "--json"]);
    assert_eq!((restored.code, restored.json()["position"].as_u64()), (Some(0), Some(ledger.accepted[0].id)), "{restored:?}");
    service.run();
    assert_eq!(service.total("pending"), 1);
}

/// Everything in a folder that does not belong to this user and group, and how much there is.
fn strangers(folder: &Path, owner: u32) -> (Vec<PathBuf>, usize) {
    let (mut strangers, mut count) = (Vec::new(), 0);
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if (meta.uid(), meta.gid()) != (owner, owner) {
            strangers.push(path.clone());
        }
        count += 1;
        if meta.is_dir() {
            let (more, further) = self::strangers(&path, owner);
            strangers.extend(more);
            count += further;
        }
    }
    (strangers, count)
}

/// Like the tests of disks, this one is root's.
#[test]
fn what_root_restores_belongs_to_the_owner_of_the_place() {
    const SERVICE: u32 = 8_470;
    let original = Tidings::start(&(connection(9, "") + PIPELINES));
    Ledger::default().post(&original, 2, "one", 1);
    let (backup, url) = (original.folder().join("backup"), format!("http://{}", original.address()));
    assert_eq!(tidings(&["backup", text(&backup), "--url", &url]).code, Some(0));
    let place = original.folder().join("var");
    std::fs::create_dir_all(place.join("empty")).unwrap();
    // As under systemd, where the name is a link to the folder.
    std::os::unix::fs::symlink("empty", place.join("linked")).unwrap();
    std::os::unix::fs::chown(&place, Some(SERVICE), Some(SERVICE)).unwrap();
    std::os::unix::fs::chown(place.join("empty"), Some(SERVICE + 1), Some(SERVICE + 1)).unwrap();
    for (name, owner) in [("linked", SERVICE + 1), ("missing/deep", SERVICE)] {
        let restored = tidings(&["restore", text(&backup), "--store", text(&place.join(name))]);
        assert_eq!(restored.code, Some(0), "{restored:?}");
        let (strangers, count) = strangers(&place.join(name), owner);
        assert!(strangers.is_empty() && count > 4, "{name}: {strangers:?} of {count}");
    }
    assert_eq!(std::fs::metadata(place.join("missing")).unwrap().uid(), SERVICE, "what leads there, too");
}
