//! Sizes, times, and clients that break off: whatever they do, a connection comes to an end and the service goes on.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use tidings::ingest::http;
use tidings::server;

use super::service::{JSON, NDJSON, PATIENCE, Reply, Service, Setup, padded, report, start, start_with};

/// The service is as good as new.
fn assert_well(service: &Service) {
    assert_eq!(service.post(JSON, report("success", 1).as_bytes()).status, 202);
    assert_eq!(service.get("/healthz").status, 200);
}

fn hurried() -> Setup {
    let http = http::Limits { body_timeout: Duration::from_millis(500), ..http::Limits::default() };
    let server =
        server::Limits { head_timeout: Duration::from_millis(500), write_timeout: Duration::from_millis(500), ..server::Limits::default() };
    Setup { http, server, ..Setup::default() }
}

/// Reads until the service hangs up.
fn wait_for_close(stream: &mut std::net::TcpStream) {
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection was not closed");
    }
}

#[test]
fn a_report_or_a_batch_as_large_as_allowed_is_taken_and_one_byte_more_is_not() {
    let service = start();
    assert_eq!(service.post(JSON, padded(64 << 10).as_bytes()).status, 202);
    let reply = service.post(JSON, padded((64 << 10) + 1).as_bytes());
    assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
    let line = padded((32 << 10) - 1) + "\n";
    assert_eq!(service.post(NDJSON, line.repeat(32).as_bytes()).status, 202);
    let reply = service.post(NDJSON, (line.repeat(32) + "\n").as_bytes());
    assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
    assert!(reply.text.contains("http.max_batch"), "{reply:?}");
    assert_well(&service);
}

#[test]
fn a_report_that_the_log_could_not_take_is_refused_before_it_fails_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let store = Some(folder.path().join("store"));
    let service = start_with(Setup { store, max_report: 16 << 20, ..Setup::default() });
    // As large as a report may be; and smaller, but with a name that is kept a second time beside it.
    let named = report("failure", 1).replace(r#""change":"1""#, &format!(r#""change":"{}""#, "9".repeat(9 << 20)));
    for body in [padded(16 << 20), named] {
        let reply = service.post(JSON, body.as_bytes());
        assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
        assert_well(&service);
    }
    assert_eq!(service.post(JSON, padded((16 << 20) - 4_096).as_bytes()).status, 202);
    assert_well(&service);
}

#[test]
fn an_announced_hundred_megabytes_are_refused_before_they_are_sent() {
    let service = start();
    let mut stream = service.connect();
    let head = format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let reply = Reply::read(&mut stream);
    assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
    assert_well(&service);
}

#[test]
fn a_client_that_sends_a_hundred_megabytes_all_the_same_is_cut_off() {
    let service = start();
    let chunk = [&b"100000\r\n"[..], &vec![b' '; 1 << 20], b"\r\n"].concat();
    for (length, piece) in [("Content-Length: 104857600\r\n", vec![b' '; 1 << 20]), ("Transfer-Encoding: chunked\r\n", chunk)] {
        let mut stream = service.connect();
        stream.write_all(format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{NDJSON}{length}\r\n").as_bytes()).unwrap();
        let sent = (0..100).take_while(|_| stream.write_all(&piece).is_ok()).count();
        assert!(sent < 100, "all of it was read");
    }
    assert_well(&service);
}

#[test]
fn who_is_somewhat_over_a_limit_can_send_it_all_and_reads_why_it_was_refused() {
    let service = start();
    let body = vec![b' '; 8 << 20];
    for _ in 0..5 {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let sent = agent.post(format!("http://{}/v1/reports", service.address)).header("Content-Type", "application/json").send(&body[..]);
        assert_eq!(sent.unwrap().status(), 413);
    }
    assert_well(&service);
}

#[test]
fn half_a_request_is_let_go_after_its_time() {
    let service = start_with(hurried());
    for half in ["", "P", "POST /v1/reports HTTP/1.1\r\nHost: local", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n"] {
        let began = Instant::now();
        let mut stream = service.connect();
        stream.write_all(half.as_bytes()).unwrap();
        wait_for_close(&mut stream);
        assert!(began.elapsed() >= Duration::from_millis(400), "{half:?} was not given its time");
    }
    assert_well(&service);
}

#[test]
fn an_idle_connection_is_let_go_after_its_time() {
    let service = start_with(hurried());
    let mut stream = service.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let reply = Reply::read(&mut stream);
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn a_body_that_does_not_come_is_answered_408_and_the_connection_ends() {
    let service = start_with(hurried());
    for length in ["Content-Length: 500\r\n", "Transfer-Encoding: chunked\r\n"] {
        let request = format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{JSON}{length}\r\n");
        let reply = service.say(request.as_bytes());
        assert_eq!((reply.status, reply.code().as_str()), (408, "body_timeout"));
        assert_eq!(reply.header("connection").as_deref(), Some("close"));
    }
    assert_eq!(service.metric(r#"tidings_ingest_rejected_total{code="body_timeout",source="http"}"#), 2.0);
    assert_well(&service);
}

#[test]
fn a_body_that_dribbles_does_not_get_more_time() {
    let service = start_with(hurried());
    let mut stream = service.connect();
    stream.write_all(format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{JSON}Content-Length: 500\r\n\r\n").as_bytes()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (began, mut answer) = (Instant::now(), [0; 12]);
    while stream.read_exact(&mut answer).is_err() {
        assert!(began.elapsed() < PATIENCE, "it is never told that its time is up");
        let _ = stream.write_all(b" ");
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[test]
fn a_length_that_lies_ends_with_an_error_and_not_with_a_report() {
    let service = start();
    let before = service.disk.events();
    let (report, post) = (report("success", 1), "POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n");
    // Longer than what comes: the client hangs up in the middle.
    let mut stream = service.connect();
    stream.write_all(format!("{post}{JSON}Content-Length: {}\r\n\r\n{report}", report.len() + 1).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_ne!(Reply::read(&mut stream).status, 202);
    // Shorter than what comes: the rest is another request, and a broken one.
    let reply = service.say(format!("{post}{JSON}Content-Length: 5\r\n\r\n{report}").as_bytes());
    assert_eq!(reply.status, 400);
    // Two lengths, a negative one, one that is no number, and both ways at once: each could be read in two ways.
    for length in
        ["Content-Length: 5\r\nContent-Length: 6", "Content-Length: -1", "Content-Length: x", "Content-Length: 99999999999999999999"]
    {
        let reply = service.say(format!("{post}{JSON}{length}\r\n\r\n{report}").as_bytes());
        assert_eq!(reply.status, 400, "{length}");
    }
    assert_eq!(service.disk.events(), before);
    assert_well(&service);
}

#[test]
fn broken_chunks_are_refused() {
    let service = start();
    let before = service.disk.events();
    for chunks in ["zz\r\n{}\r\n0\r\n\r\n", "2\r\n{}X\r\n0\r\n\r\n", "-1\r\n", "ffffffffffffffffff\r\n{}", "2;\r\n{}\r\n\u{0}"] {
        let request = format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n{chunks}");
        let mut stream = service.connect();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let reply = Reply::read(&mut stream);
        assert!(reply.status == 400 || reply.status == 0, "{chunks:?}: {reply:?}");
    }
    assert_eq!(service.disk.events(), before);
    assert_well(&service);
}

#[test]
fn a_chunked_report_is_taken_as_one() {
    let service = start();
    let report = report("success", 1);
    let (first, second) = report.split_at(10);
    let chunks = format!("{:x}\r\n{first}\r\n{:X};x=y\r\n{second}\r\n0\r\nTrailer: x\r\n\r\n", first.len(), second.len());
    let request =
        format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{JSON}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunks}");
    assert_eq!(service.say(request.as_bytes()).status, 202);
    assert_eq!(service.disk.payloads(), [report.as_bytes()]);
}

#[test]
fn rubbish_is_answered_400_or_not_at_all_and_harms_nobody() {
    let service = start_with(hurried());
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1_000));
    let mut noise = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        (0..4_096)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise.to_le_bytes()[0]
            })
            .collect::<Vec<u8>>()
    };
    let mut rubbish: Vec<Vec<u8>> = vec![
        b"\r\n\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"POST /v1/reports HTTP/1.1\r\nHost: \xff\r\n\r\n".to_vec(),
        long.into_bytes(),
        many.into_bytes(),
    ];
    rubbish.extend((0..20).map(|_| random()));
    for bytes in rubbish {
        let reply = service.say(&bytes);
        assert!([0, 400, 414, 431, 505].contains(&reply.status), "{reply:?}");
    }
    assert_well(&service);
}

#[test]
fn connections_beyond_the_limit_wait_and_get_their_turn() {
    let server = server::Limits { connections: 2, head_timeout: Duration::from_millis(300), ..server::Limits::default() };
    let service = start_with(Setup { server, ..Setup::default() });
    let began = Instant::now();
    let hogs: Vec<_> = (0..8).map(|_| service.connect()).collect();
    assert_eq!(service.get("/healthz").status, 200);
    assert!(began.elapsed() >= Duration::from_millis(1_000), "four pairs of them had to be let go first");
    drop(hogs);
}

#[test]
fn a_client_that_never_reads_its_answers_is_let_go() {
    let server = server::Limits { connections: 1, ..hurried().server };
    let service = start_with(Setup { server, ..hurried() });
    let mut hog = service.connect();
    hog.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let asking = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1_000);
    // Until both sides' buffers are full, and the service has given up.
    let began = Instant::now();
    while hog.write_all(&asking).err().is_none_or(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
        assert!(began.elapsed() < PATIENCE, "the service goes on for ever");
    }
    assert_well(&service);
}

#[test]
fn bodies_beyond_the_memory_for_them_are_told_to_come_back() {
    let http = http::Limits { memory: 64 << 10, ..http::Limits::default() };
    let service = start_with(Setup { http, max_batch: 64 << 10, ..Setup::default() });
    service.disk.hold();
    let mut large = service.connect();
    let head = format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{NDJSON}Content-Length: 65000\r\nConnection: close\r\n\r\n");
    large.write_all((head + &padded(65_000)).as_bytes()).unwrap();
    service.disk.wait_for_appends(3);
    let reply = service.post(JSON, &[b' '; 1_000]);
    assert_eq!((reply.status, reply.code().as_str()), (503, "overloaded"));
    assert_eq!(reply.header("retry-after").as_deref(), Some("1"));
    service.disk.let_go();
    assert_eq!(Reply::read(&mut large).status, 202);
    assert_well(&service);
}
