//! What happens, live: server-sent events and `tidings tail`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::ledger::Ledger;
use crate::support::mosquitto::free_port;
use crate::support::scripted::{Act, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::{PATIENCE, wait_until};

/// A client of the events.
struct Follower {
    reader: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Seen {
    id: Option<u64>,
    name: String,
    data: Value,
}

impl Follower {
    fn follow(tidings: &Tidings, after: Option<u64>) -> Follower {
        let mut stream = TcpStream::connect(tidings.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let after = after.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        // HTTP/1.0 has no chunks to take apart.
        write!(stream, "GET /v1/events HTTP/1.0\r\nHost: localhost\r\n{after}\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(line.contains(" 200 "), "{line}");
        let mut head = line.clone();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            head += &line;
        }
        assert!(head.to_lowercase().contains("content-type: text/event-stream"), "{head}");
        // The first comment says that what comes from now on is followed.
        reader.read_line(&mut line).unwrap();
        Follower { reader }
    }

    /// The next event; none at the end.
    fn next(&mut self) -> Option<Seen> {
        let (mut id, mut name, mut data) = (None, String::new(), Value::Null);
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => id = value.parse().ok(),
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("data", value)) => data = serde_json::from_str(value).unwrap(),
                _ if !name.is_empty() => return Some(Seen { id, name, data }),
                _ => {}
            }
        }
    }

    /// The next event with one of these names.
    fn next_of(&mut self, names: &[&str]) -> Seen {
        loop {
            let seen = self.next().expect("the events go on");
            if names.contains(&seen.name.as_str()) {
                return seen;
            }
        }
    }
}

const STORY: [&str; 5] = ["accepted", "dead", "requeued", "audit", "delivered"];

#[test]
fn what_happens_is_seen_as_it_happens_and_again_from_any_event_on() {
    let mut refusals = 1;
    let broker = ScriptedBroker::start(move |packet| match packet.publish().is_some() && std::mem::take(&mut refusals) == 1 {
        true => vec![Act::Refuse(0x90)],
        false => vec![Act::Usual],
    });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1") + SOON + PIPELINES));
    let mut follower = Follower::follow(&tidings, None);
    let up = loop {
        let seen = follower.next_of(&["lane"]);
        if seen.data["state"] == "connected" {
            break seen;
        }
    };
    assert_eq!((&up.data["connection"], &up.data["lane"], up.id), (&json!("mqtt"), &json!(0), None));
    let mut ledger = Ledger::default();
    ledger.post(&tidings, 2, "one", 1);
    let id = ledger.accepted[0].id.to_string();
    let accepted = follower.next_of(&STORY);
    assert_eq!((accepted.name.as_str(), &accepted.data["id"], &accepted.data["topic"]), ("accepted", &json!(id), &json!("zuul/one")));
    assert_eq!(follower.next_of(&STORY).name, "dead");
    tidings.post("/v1/dead/requeue", &json!({ "ids": [id], "by": "ops" }).to_string()).unwrap();
    let names: Vec<String> = (0..3).map(|_| follower.next_of(&STORY).name).collect();
    assert_eq!(names, ["audit", "requeued", "delivered"]);
    // From the acceptance on, once more.
    let mut again = Follower::follow(&tidings, accepted.id);
    let seen: Vec<Seen> = (0..4).map(|_| again.next_of(&STORY)).collect();
    assert_eq!(seen.iter().map(|seen| seen.name.as_str()).collect::<Vec<_>>(), ["dead", "audit", "requeued", "delivered"]);
    assert_eq!(seen[1].data["who"], "ops");
    assert_eq!(seen[3].data["ids"], json!([id]), "an outcome names what it is about");
    broker.change(|_| vec![Act::Close]);
    broker.hang_up();
    while follower.next_of(&["lane"]).data["state"] == "connected" {}
}

#[test]
fn a_reader_that_takes_nothing_holds_nothing_up_and_is_told_what_it_missed() {
    let tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    let mut slow = Follower::follow(&tidings, None);
    let reports: Vec<String> = (0..15_000).map(|number| crate::support::ledger::report("success", &"p".repeat(500), number)).collect();
    let mut ledger = Ledger::default();
    ledger.post_many(&tidings.client(), &reports);
    // All is accepted, and it has taken nothing. Now it does.
    let mut seen = 0;
    let missed = loop {
        let next = slow.next().expect("it is served");
        match next.name.as_str() {
            "accepted" => seen += 1,
            "missed" => break next.data["events"].as_u64().unwrap(),
            _ => {}
        }
    };
    assert!(missed > 1_000, "{missed}");
    let last = ledger.accepted.last().unwrap().id.to_string();
    loop {
        let next = slow.next_of(&["accepted"]);
        seen += 1;
        if next.data["id"] == last {
            break;
        }
    }
    assert_eq!(seen + missed, 15_000);
}

#[test]
fn only_so_many_follow_and_a_stop_does_not_wait_for_them() {
    let mut tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    let mut followers: Vec<Follower> = (0..16).map(|_| Follower::follow(&tidings, None)).collect();
    let refused = tidings.get("/v1/events").unwrap();
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("overloaded")));
    followers.truncate(15);
    wait_until("there is a place again", || {
        let mut stream = TcpStream::connect(tidings.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /v1/events HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        head.ends_with(b"200")
    });
    tidings.terminate();
    // Each comes to its end.
    for follower in &mut followers {
        while follower.next().is_some() {}
    }
    assert_eq!(tidings.end(), Some(0));
    assert!(tidings.logged("cut off").is_empty());
}

#[test]
fn tail_prints_what_happened_since_and_says_at_once_that_nobody_is_there() {
    let tidings = Tidings::start(&(connection(free_port(), "workers = 1") + PIPELINES));
    let mut ledger = Ledger::default();
    (0..5).for_each(|number| ledger.post(&tidings, 2, "one", number));
    let (code, text) = tidings.command(&["tail", "--json", "--after", "0", "--count", "5"]);
    assert_eq!(code, Some(0), "{text}");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["event"] == "lanes") && events.iter().any(|event| event["event"] == "accepted"), "{text}");
    let mut nobody = Command::new(env!("CARGO_BIN_EXE_tidings"));
    nobody.args(["tail", "--url", &format!("http://127.0.0.1:{}", free_port())]).stderr(Stdio::null());
    assert_eq!(nobody.status().unwrap().code(), Some(1));
    assert_eq!(tidings.command(&["tail", "--count", "0"]).0, Some(2));
}

#[test]
fn tail_goes_on_behind_the_last_event_when_its_connection_breaks() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tail = Command::new(env!("CARGO_BIN_EXE_tidings"));
    let tail = tail.args(["tail", "--json", "--count", "2", "--url", &url]).stdout(Stdio::piped()).spawn().unwrap();
    let mut heads = Vec::new();
    for id in [7, 8] {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        heads.push(head.to_lowercase());
        let body = format!(": hello\n\nid: {id}\nevent: audit\ndata: {{\"who\":\"ops\"}}\n\n");
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{body}").unwrap();
    }
    let output = tail.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let positions: Vec<Value> = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["position"].clone()).collect();
    assert_eq!((output.status.code(), positions), (Some(0), vec![json!("7"), json!("8")]));
    assert!(!heads[0].contains("last-event-id") && heads[1].contains("last-event-id: 7\r\n"), "{heads:?}");
}
