//! Bytes of HTTP connections, against the running service.
//!
//! It holds: whatever is answered is HTTP with a status of the contract, an error is JSON with a code and a message, and each delivery
//! that a 202 has named is in the books. Afterwards the service works as before, and has not grown.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::Value;

use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, run};
use crate::support::PATIENCE;
use crate::support::tidings::{PIPELINES, Tidings, connection};

const STATUSES: &[u16] = &[200, 202, 400, 403, 404, 405, 408, 409, 411, 413, 414, 415, 417, 422, 431, 501, 503, 505];

const WORDS: &[&str] = &[
    "Content-Length: 10",
    "Content-Length: 99999999999999999999",
    "Content-Length: -1",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Expect: 100-continue",
    "Connection: close",
    "Connection: upgrade",
    "Upgrade: h2c",
    "Idempotency-Key: a b",
    "Idempotency-Key: k1",
    "Content-Type: application/x-ndjson",
    "Content-Type: text/plain",
    "Content-Type: application/json; charset=latin1",
    "Content-Encoding: gzip",
    "Host:",
    "Host: [::1]:x",
    "HTTP/1.0",
    "HTTP/2.0",
    "GET /metrics HTTP/1.1",
    "GET /v1/status HTTP/1.1",
    "POST /v1/moves HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "/../",
    "%00",
    "\r\n\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "ffffffffffffffff\r\n",
];

fn post(head: &str, body: &str) -> String {
    format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn seeds() -> Vec<Vec<u8>> {
    let report = r#"{"action":"success","tenant":"acme","pipeline":"check","project":"p"}"#;
    let json = "Content-Type: application/json\r\n";
    let one = post(json, report);
    vec![
        one.clone(),
        post(&format!("{json}Idempotency-Key: k1\r\n"), report),
        post("Content-Type: application/x-ndjson\r\n", &format!("{report}\n\n{report}\r\n")),
        format!("POST /v1/reports HTTP/1.1\r\nHost: localhost\r\n{json}Transfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &report[..5], report.len() - 5, &report[5..]),
        format!("{one}{one}GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        "GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "POST /v1/moves HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 26\r\n\r\n{\"from\":\"mqtt\",\"to\":\"mqtt\"}".to_owned(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect()
}

/// The answers on a connection: status and body, as far as they came whole.
fn answers(mut rest: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut answers = Vec::new();
    while let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
        let head = std::str::from_utf8(&rest[..end]).expect("a head is text").to_ascii_lowercase();
        let status = head
            .strip_prefix("http/1.1 ")
            .or_else(|| head.strip_prefix("http/1.0 "))
            .and_then(|head| head.get(..3))
            .and_then(|status| status.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("not HTTP: {head}"));
        rest = &rest[end + 4..];
        if status == 100 {
            continue;
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
        // To HEAD there is no body.
        let length = if rest.starts_with(b"HTTP/1.1 ") { 0 } else { length };
        let Some((body, after)) = rest.split_at_checked(length) else { return answers };
        answers.push((status, body.to_vec()));
        rest = after;
    }
    answers
}

#[test]
fn no_bytes_break_the_service_and_202_means_in_the_books() {
    let tidings = Tidings::start(&(connection(9, "") + PIPELINES));
    let before = tidings.metric("process_resident_memory_bytes");
    let mut ids = BTreeSet::new();
    run("http", 1_500, seeds(), &Mutator { form: Form::Lines, words: WORDS }, |bytes| {
        let mut stream = TcpStream::connect(tidings.address()).expect("the service is there");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may be closed in the middle.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut read = Vec::new();
        let ended = stream.read_to_end(&mut read);
        assert!(!ended.is_err_and(|error| matches!(error.kind(), std::io::ErrorKind::WouldBlock)), "it neither answers nor closes");
        let answers = answers(&read);
        for (status, body) in &answers {
            assert!(STATUSES.contains(status), "{status}: {}", body.escape_ascii());
            let Ok(body) = serde_json::from_slice::<Value>(body) else { continue };
            if *status == 202 {
                let one = std::slice::from_ref(&body);
                for report in body["reports"].as_array().map_or(one, Vec::as_slice) {
                    ids.extend(report["deliveries"].as_array().unwrap().iter().map(|delivery| delivery["id"].as_str().unwrap().to_owned()));
                }
            } else if *status >= 400 {
                let error = &body["error"];
                assert!(error["code"].as_str().is_some_and(|code| !code.is_empty()) && error["message"].is_string(), "{body}");
            }
        }
        let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).take(3).collect();
        if statuses.iter().any(|status| *status < 300) {
            Outcome::accepted(format!("{statuses:?}"))
        } else {
            Outcome::refused(format!("{statuses:?}"))
        }
    });
    // More may have been accepted than was heard of: a connection that is closed with bytes unread loses what was on its way.
    assert!(tidings.total("created") >= ids.len() as u64, "{} deliveries were named", ids.len());
    let newest = ids.iter().map(|id| id.parse::<u64>().unwrap()).max().unwrap();
    assert!(ids.len() > 50 && newest > 0);
    tidings.assert_balanced();
    assert!(tidings.logged("panicked").is_empty());
    let grown = tidings.metric("process_resident_memory_bytes") - before;
    assert!(grown < 100e6, "{grown} bytes");
    let reply = tidings.client().post(br#"{"action":"start","tenant":"a","pipeline":"check"}"#, "application/json", None).unwrap();
    assert_eq!(reply.status, 202, "{reply:?}");
}
