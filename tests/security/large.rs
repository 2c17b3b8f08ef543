//! A body of 100 MB, to every route.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tidings::server::door::{Needs, Row, TABLE};

use crate::setup::{Tokens, ask, token};
use crate::support::PATIENCE;
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};

const SIZE: usize = 100 << 20;

fn begin(tidings: &Tidings, method: &str, path: &str, token: Option<&str>) -> TcpStream {
    let mut stream = TcpStream::connect(tidings.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Where an answer goes on for ever, such as the events, nothing of the body is ever taken.
    stream.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{token}Content-Length: {SIZE}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// The status that is answered before a byte of the body was sent.
fn announced(tidings: &Tidings, method: &str, path: &str, token: Option<&str>) -> u16 {
    let mut answer = [0; 12];
    begin(tidings, method, path, token).read_exact(&mut answer).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    std::str::from_utf8(&answer).unwrap().strip_prefix("HTTP/1.1 ").unwrap().parse().unwrap()
}

#[test]
fn a_hundred_megabytes_are_answered_before_they_come_and_cut_off_when_they_come_all_the_same() {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + "metrics = 'anyone'\n" + &connection(free_port(), "") + PIPELINES));
    let before = tidings.metric("process_resident_memory_bytes");
    // Each is listened to for a moment after its answer, so some at once.
    std::thread::scope(|scope| {
        for rows in TABLE.chunks(TABLE.len().div_ceil(8)) {
            let tidings = &tidings;
            scope.spawn(move || rows.iter().for_each(|row| try_route(tidings, row)));
        }
    });
    let grown = tidings.metric("process_resident_memory_bytes") - before;
    assert!(grown < 64e6, "{grown} bytes more are held");
    assert_eq!(ask(&tidings, "POST", "/v1/reports", Some(&token("ci")), &crate::setup::report("acme", "one", 1)).status, 202);
}

fn try_route(tidings: &Tidings, row: &Row) {
    let (method, path) = (row.method.as_str(), row.path.replace("{id}", "4711"));
    let is_open = row.needs == Needs::Nothing || row.path == "/metrics";
    let is_there = ask(tidings, method, &path, Some(&token("ops")), "").code() != "not_found";
    let status = announced(tidings, method, &path, None);
    assert!(if is_open || !is_there { status != 401 } else { status == 401 }, "{method} {path}: {status}");
    let status = announced(tidings, method, &path, Some(&token("ops")));
    assert!(method == "GET" || !is_there || [413, 404, 409, 201].contains(&status), "{method} {path}: {status}");
    let piece = vec![b' '; 1 << 20];
    for token in [None, Some(token("ops"))] {
        let mut stream = begin(tidings, method, &path, token.as_deref());
        let sent = (0..SIZE / piece.len()).take_while(|_| stream.write_all(&piece).is_ok()).count();
        assert!(sent < SIZE / piece.len(), "{method} {path}: all of it was read");
    }
}
