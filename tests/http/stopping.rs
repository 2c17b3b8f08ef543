//! A graceful stop, a store that is full, fails or hangs, and clients that go away meanwhile.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tidings::ingest::http;
use tidings::server;
use tokio::net::TcpListener;

use super::service::{JSON, MAX_SIZE, Reply, Service, Setup, report, start, start_with, wait_until};

fn post(service: &Service, key: &str) -> Reply {
    service.post(&format!("{JSON}Idempotency-Key: {key}\r\n"), report("success", 1).as_bytes())
}

#[test]
fn a_request_under_way_is_finished_and_idle_connections_do_not_hold_up_the_stop() {
    let mut service = start();
    let mut idle = service.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 15]).unwrap();
    service.disk.hold();
    let mut asking = service.connect();
    let body = report("success", 1);
    asking
        .write_all(format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
        .unwrap();
    service.disk.wait_for_appends(3);
    service.tell_to_stop();
    wait_until("no more connections are taken", || std::net::TcpStream::connect(service.address).is_err());
    service.disk.let_go();
    assert_eq!(Reply::read(&mut asking).status, 202);
    service.wait_for_stop();
    assert_eq!(service.disk.payloads(), [body.as_bytes()]);
}

#[test]
fn a_request_that_does_not_end_does_not_hold_up_the_stop_for_ever() {
    let server = server::Limits { stop_timeout: Duration::from_millis(200), ..server::Limits::default() };
    let mut service = start_with(Setup { server, ..Setup::default() });
    let mut stream = service.connect();
    stream.write_all(format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 9\r\n\r\n").as_bytes()).unwrap();
    service.tell_to_stop();
    service.wait_for_stop();
}

#[test]
fn a_stopped_log_is_answered_with_when_to_come_back() {
    let service = start();
    service.runtime.block_on(service.log.stop()).unwrap();
    for report in [report("success", 1), report("dequeue", 1)] {
        let reply = service.post(JSON, report.as_bytes());
        assert_eq!((reply.status, reply.code().as_str()), (503, "stopping"));
        assert_eq!(reply.header("retry-after").as_deref(), Some("5"));
    }
}

#[test]
fn a_full_store_refuses_reports_and_takes_them_again_when_there_is_room() {
    let service = start();
    service.disk.fill(MAX_SIZE);
    let reply = post(&service, "k1");
    assert_eq!((reply.status, reply.code().as_str()), (507, "store_full"));
    wait_until("readyz says so", || service.get("/readyz").status == 503);
    assert!(service.get("/readyz").json()["reason"].as_str().unwrap().contains("full"));
    assert_eq!(service.get("/healthz").status, 200, "a restart would not help");
    let status = service.get("/v1/status").json();
    assert!(status["store"]["full"].as_bool().unwrap() && status["store"]["full_since"].is_string(), "{status}");
    assert_eq!((&status["verdict"]["flow"], &status["verdict"]["reasons"][0]["code"]), (&"not_flowing".into(), &"store_full".into()));
    service.disk.fill(0);
    assert_eq!(post(&service, "k1").status, 202);
    wait_until("it is over", || service.get("/v1/status").json()["store"]["full_since"].is_null());
}

#[test]
fn what_a_failed_store_did_not_take_is_not_accepted() {
    let service = start();
    service.disk.break_down();
    let reply = post(&service, "k1");
    assert_eq!((reply.status, reply.code().as_str()), (503, "store_failed"));
    assert!(reply.header("retry-after").is_some());
    for path in ["/healthz", "/readyz"] {
        let reply = service.get(path);
        assert_eq!((reply.status, reply.header("retry-after").as_deref()), (503, Some("5")), "{path}");
        assert!(reply.json()["reason"].as_str().unwrap().contains("the disk is broken"), "{reply:?}");
    }
    assert!(service.disk.payloads().is_empty());
    assert_eq!(service.metric(r#"tidings_reports_accepted_total{source="http"}"#), 0.0);
}

#[test]
fn a_disk_that_hangs_is_admitted_to_and_the_same_key_learns_what_came_of_it() {
    let http = http::Limits { commit_timeout: Duration::from_millis(200), ..http::Limits::default() };
    let service = start_with(Setup { http, ..Setup::default() });
    service.disk.hold();
    let reply = post(&service, "k1");
    assert_eq!((reply.status, reply.code().as_str()), (503, "commit_timeout"));
    service.disk.let_go();
    wait_until("the disk has answered", || post(&service, "k1").status == 202);
    assert_eq!(service.disk.payloads().len(), 1);
    wait_until("it is counted", || service.metric(r#"tidings_reports_accepted_total{source="http"}"#) == 1.0);
}

#[test]
fn a_client_that_goes_away_leaves_no_uncounted_report_behind() {
    let service = start();
    service.disk.hold();
    let mut stream = service.connect();
    let body = report("success", 1);
    stream
        .write_all(format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
        .unwrap();
    service.disk.wait_for_appends(3);
    drop(stream);
    // The service notices before the disk answers.
    thread::sleep(Duration::from_millis(50));
    service.disk.let_go();
    wait_until("it is counted", || service.metric(r#"tidings_reports_accepted_total{source="http"}"#) == 1.0);
}

#[test]
fn a_panic_is_answered_500_and_the_connection_goes_on() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    async fn fall_over() {
        panic!("on purpose");
    }
    let app = Router::new().route("/panic", get(fall_over));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(server::serve(listener, app, server::Limits::default(), std::future::pending()));
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let ask = |path: &str, close: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
    stream.write_all((ask("/panic", "") + &ask("/nowhere", "Connection: close\r\n")).as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 500 ") && text.contains(r#"{"error":{"code":"internal""#), "{text}");
    assert!(text.contains("HTTP/1.1 404 "), "{text}");
}
