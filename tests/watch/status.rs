//! `tidings status`, where something is wrong that is no outage.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::ledger::Ledger;
use crate::support::mosquitto::Mosquitto;
use crate::support::scripted::{Act, Packet, ScriptedBroker};
use crate::support::tidings::{PIPELINES, SOON, Tidings, connection};
use crate::support::wait_until;

fn status(tidings: &Tidings) -> String {
    let (code, text) = tidings.command(&["status"]);
    assert_eq!(code, Some(0), "{text}");
    text
}

#[test]
fn a_suspended_lane_is_the_verdict_and_its_dead_letters_stand_below() {
    let broker = ScriptedBroker::start(|packet: &Packet| if packet.publish().is_some() { vec![Act::Close] } else { vec![Act::Usual] });
    let tidings = Tidings::start(&(connection(broker.port, "workers = 1") + SOON + PIPELINES));
    let mut ledger = Ledger::default();
    for number in 0..10 {
        ledger.post(&tidings, 1, "one", number);
    }
    wait_until("the lane is suspended", || status(&tidings).contains("suspended"));
    let text = status(&tidings);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines[0];
    assert!(first.starts_with("NOT FLOWING for ") && first.contains("lane 0 of mqtt has been suspended; "), "{text}");
    assert!(first.contains("; reports are accepted and kept, ") && first.contains("deliveries wait, the oldest for "), "{text}");
    assert!(lines[1].starts_with("  the broker closes the connection whatever is sent"), "{text}");
    assert!(lines[2].starts_with("! 2 dead letters of mqtt: see `tidings dead list --connection mqtt`"), "{text}");
    let (code, listed) = tidings.command(&["dead", "list", "--connection", "mqtt"]);
    assert_eq!(code, Some(0), "{listed}");
    assert_eq!(tidings.metric("tidings_lanes_suspended{connection=\"mqtt\"}"), 1.0);
}

#[test]
fn watch_shows_rates_and_goes_on_when_the_service_is_gone() {
    let mosquitto = Mosquitto::start("");
    let mut tidings = Tidings::start(&(connection(mosquitto.port, "") + SOON + PIPELINES));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(["status", "--watch", "1", "--url"]).arg(format!("http://{}", tidings.address())).env_remove("TIDINGS_TOKEN");
    let mut watching = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines().map(Result::unwrap);
    let has_rates = lines.by_ref().find(|line| line.starts_with("CONNECTION") && line.ends_with("IN/S  OUT/S"));
    assert!(has_rates.is_some(), "the second look has something to compare with");
    tidings.kill();
    let gone = lines.by_ref().find(|line| line.starts_with("NO ANSWER: "));
    assert!(gone.is_some_and(|line| line.contains("is the service running")));
    // Nobody reads it any more.
    drop(lines);
    assert!(crate::support::wait_for_end(&mut watching, "it ends with its reader").is_some_and(|code| code == 0));
}
