//! The same request again gets the first answer.

use std::thread;

use super::service::{JSON, NDJSON, Setup, report, start, start_with};

fn keyed(kind: &str, key: &str) -> String {
    format!("{kind}Idempotency-Key: {key}\r\n")
}

#[test]
fn the_same_request_again_gets_the_first_answer_and_is_stored_and_counted_once() {
    let service = start();
    let body = report("failure", 1);
    let first = service.post(&keyed(JSON, "k1"), body.as_bytes());
    service.post(JSON, report("success", 2).as_bytes());
    let again = service.post(&keyed(JSON, "k1"), body.as_bytes());
    assert_eq!((first.status, again.status), (202, 202));
    assert_eq!(first.text, again.text);
    assert_eq!(service.disk.payloads().len(), 3);
    assert_eq!(service.metric(r#"tidings_reports_accepted_total{source="http"}"#), 2.0);
    assert_eq!(service.metric(r#"tidings_deliveries_created_total{connection="mqtt"}"#), 2.0);
}

#[test]
fn without_a_key_or_with_another_one_it_is_another_request() {
    let service = start();
    let body = report("success", 1);
    for headers in [JSON.to_owned(), JSON.to_owned(), keyed(JSON, "a"), keyed(JSON, "b")] {
        assert_eq!(service.post(&headers, body.as_bytes()).status, 202);
    }
    assert_eq!(service.disk.payloads().len(), 4);
}

#[test]
fn a_key_with_another_body_is_a_conflict() {
    let service = start();
    service.post(&keyed(JSON, "k1"), report("success", 1).as_bytes());
    // One that would be stored, one that nobody wants, and one that is no report at all.
    for body in [report("success", 2), report("dequeue", 1), "rubbish".to_owned()] {
        let reply = service.post(&keyed(JSON, "k1"), body.as_bytes());
        assert_eq!((reply.status, reply.code().as_str()), (409, "idempotency_conflict"), "{body}");
    }
    assert_eq!(service.disk.payloads().len(), 1);
}

#[test]
fn a_batch_again_gets_its_answer_in_shape_with_the_reports_that_nobody_wanted() {
    let service = start();
    let body =
        format!("{}\n{}\n{}\n{}\n", report("dequeue", 0), report("failure", 1), report("dequeue", 2), report("success", 3)).repeat(3);
    let first = service.post(&keyed(NDJSON, "k1"), body.as_bytes());
    assert_eq!(first.json()["reports"].as_array().unwrap().len(), 12);
    let again = service.post(&keyed(NDJSON, "k1"), body.as_bytes());
    assert_eq!((again.status, again.text), (202, first.text));
}

#[test]
fn the_same_request_many_times_at_once_is_accepted_once() {
    let service = start();
    let body = report("failure", 1);
    service.disk.hold();
    let (service, body) = (&service, &body);
    let answers: Vec<String> = thread::scope(|scope| {
        let asking: Vec<_> = (0..16).map(|_| scope.spawn(move || service.post(&keyed(JSON, "k1"), body.as_bytes()))).collect();
        // Two records of lanes came before. While this one is held, the others pile up behind it.
        service.disk.wait_for_appends(3);
        service.disk.let_go();
        let replies = asking.into_iter().map(|asking| asking.join().unwrap());
        replies.inspect(|reply| assert_eq!(reply.status, 202)).map(|reply| reply.text).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(service.disk.payloads().len(), 2);
}

#[test]
fn the_first_answer_outlives_a_restart_and_a_change_of_routes() {
    let service = start();
    let body = format!("{}\n{}\n", report("failure", 1), report("success", 2));
    let first = service.post(&keyed(NDJSON, "k1"), body.as_bytes());
    let disk = service.end();
    let elsewhere = "[connection.other]\ndriver = 'mqtt'\n[[pipeline]]\nname = 'check'\nsuccess.other = { topic = 'x' }\n";
    let nowhere = "[connection.other]\ndriver = 'mqtt'\n";
    let unrenderable = "[connection.other]\ndriver = 'mqtt'\n[[pipeline]]\nname = 'check'\nsuccess.other = { topic = '{changes[0][x]}' }\n";
    for config in [elsewhere, nowhere, unrenderable] {
        let service = start_with(Setup { config, disk: disk.clone(), ..Setup::default() });
        let again = service.post(&keyed(NDJSON, "k1"), body.as_bytes());
        assert_eq!((again.status, &again.text), (202, &first.text), "{config}");
        service.end();
    }
    assert_eq!(disk.payloads().len(), 3);
}

#[test]
fn the_first_answer_comes_out_of_a_real_store_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let setup = || Setup { store: Some(folder.path().join("store")), ..Setup::default() };
    let body = format!("{}\n{}\n{}\n", report("failure", 1), report("dequeue", 2), report("success", 3)).repeat(100);
    let service = start_with(setup());
    let first = service.post(&keyed(NDJSON, "k1"), body.as_bytes());
    assert_eq!(first.json()["reports"].as_array().unwrap().len(), 300);
    service.end();
    let service = start_with(setup());
    let again = service.post(&keyed(NDJSON, "k1"), body.as_bytes());
    assert_eq!((again.status, again.text), (202, first.text));
    let totals = &service.get("/v1/status").json()["connections"][0]["totals"];
    assert_eq!((&totals["created"], &totals["balanced"]), (&200.into(), &true.into()));
    service.end();
}
