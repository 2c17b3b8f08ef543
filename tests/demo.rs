//! The demo, as a newcomer runs it: the real binary, with all that is in it.
#![cfg(all(unix, feature = "demo"))]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Much longer than the demo takes, and longer than its own limit.
const LIMIT: Duration = Duration::from_secs(120);

/// The demo with these arguments, and its scratch store in a folder of ours.
fn demo(scratch: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.arg("demo").args(args).env("TMPDIR", scratch).env_remove("TIDINGS_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn finished(mut child: Child) -> Output {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("the demo did not end: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Runs the demo to its end: every promise is kept, and nothing is left behind.
fn keeps_its_promise(args: &[&str]) -> (String, String) {
    let scratch = tempfile::tempdir().unwrap();
    let output = finished(demo(scratch.path(), args));
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let last = stdout.lines().last().unwrap_or_default();
    let count = last.strip_prefix("delivered ").and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok()).unwrap_or(0);
    assert!(count > 0, "{stdout}\n{stderr}");
    assert_eq!(last, format!("delivered {count} of {count}, lost 0, duplicates 0, out of order 0"), "{stderr}");
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stdout.lines().next().unwrap().starts_with("as MQTT allows: QoS 0 lost "), "{stdout}");
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    assert!(is_empty(scratch.path()), "the scratch store is left behind");
    (stdout, stderr)
}

#[test]
fn an_outage_loses_repeats_and_reorders_nothing() {
    let (_, stderr) = keeps_its_promise(&["--reports", "300", "--outage", "1s"]);
    assert!(stderr.contains("The broker goes away. In flight: ") && stderr.contains("The broker is back. "), "{stderr}");
}

#[test]
fn neither_does_a_cut_without_an_outage() {
    keeps_its_promise(&["--reports", "300", "--outage", "0s", "--rate", "300"]);
}

#[test]
fn it_stays_on_request_and_leaves_nothing_behind_when_it_is_told_to_stop() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = demo(scratch.path(), &["--reports", "60", "--outage", "0s", "--rate", "100", "--stay"]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let url =
        lines.find_map(|line| Some(line.unwrap().split_once("--url ")?.1.split(' ').next()?.to_owned())).expect("it prints its address");
    let mut status = ureq::get(format!("{url}/v1/status")).call().unwrap();
    assert!(status.body_mut().read_to_string().unwrap().contains("\"backlog\":0"));
    assert!(!is_empty(scratch.path()));
    // The same as Ctrl-C for whoever sends signals from a script.
    let kill = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    // What else it says is read, or it would wait for its reader.
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let output = finished(child);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.ends_with(b"duplicates 0, out of order 0\n"));
    assert!(is_empty(scratch.path()), "{:?}", rest.join().unwrap());
}

#[test]
fn interrupted_it_says_so_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = demo(scratch.path(), &["--outage", "1m"]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("The broker goes away.")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let output = finished(child);
    assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]));
    assert!(rest.join().unwrap().contains(&"error: interrupted".to_owned()));
    assert!(is_empty(scratch.path()));
}

#[test]
fn a_demo_that_makes_no_sense_is_wrong_usage() {
    for args in [["--reports", "0"], ["--rate", "0"], ["--outage", "soon"]] {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(finished(demo(scratch.path(), &args)).status.code(), Some(2), "{args:?}");
    }
}
