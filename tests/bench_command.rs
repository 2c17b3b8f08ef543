//! `tidings bench`, small: every section gives all of its rows, with counts that are right, and leaves nothing behind. What the numbers are is not
//! looked at: that is for a quiet machine, see `ops/performance.md`.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Much longer than any of these take, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(300);

/// What everything that a bench starts inherits, and nobody else has.
const MARK: &str = "TIDINGS_BENCH_TEST";

/// A bench of 200 reports with these arguments, and its scratch folder in a folder of ours.
fn bench(scratch: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(["bench", "--reports", "200", "--idle", "200ms", "--folder"]).arg(scratch).args(args);
    if !args.contains(&"--rounds") {
        command.args(["--rounds", "1"]);
    }
    command.env(MARK, scratch).env_remove("TIDINGS_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn finished(mut child: Child) -> Output {
    let begin = Instant::now();
    // It says one line for each measurement, which fits the pipes.
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("the bench did not end: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// The command lines of what a bench has started and is still there.
fn left_behind(scratch: &Path) -> Vec<String> {
    let mark = format!("{MARK}={}\0", scratch.display());
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let ours = processes.filter(|process| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&mark)
    });
    ours.map(|process| fs::read_to_string(process.join("cmdline")).unwrap_or_default().replace('\0', " ")).collect()
}

/// Runs sections, sees that they leave nothing behind, and gives their results.
fn measured(args: &[&str]) -> Value {
    let scratch = tempfile::tempdir().unwrap();
    let output = finished(bench(scratch.path(), &[args, &["--json"]].concat()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(is_empty(scratch.path()), "the scratch folder is left behind: {stderr}");
    assert_eq!(left_behind(scratch.path()), Vec::<String>::new());
    let results: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!((&results["format"], &results["settings"]["reports"]), (&1.into(), &200.into()));
    assert!(!results["machine"]["file_system"].as_str().unwrap().is_empty(), "{results}");
    for row in results["rows"].as_array().unwrap() {
        let has_control = row["control"].is_number();
        assert!(row["ours"].as_f64().unwrap() >= 0.0 && row["rounds"] == 1, "{row}");
        assert_eq!([row["ratio"].is_number(), row["spread"]["ratio"].is_array(), row["against"].is_string()], [has_control; 3], "{row}");
        assert_eq!(row["bar"].is_object(), row["met"].is_boolean(), "{row}");
        let spread = row["spread"]["ours"].as_array().unwrap();
        assert!(spread[0] == row["ours"] && spread[1] == row["ours"], "one round: {row}");
    }
    results
}

/// Section, unit, count, whether it has a control and a bar, of each row.
fn rows(results: &Value) -> Vec<(&str, &str, u64, bool, bool)> {
    let rows = results["rows"].as_array().unwrap().iter();
    rows.map(|row| {
        let text = |field: &str| row[field].as_str().unwrap();
        (text("section"), text("unit"), row["count"].as_u64().unwrap(), row["control"].is_number(), row["bar"].is_object())
    })
    .collect()
}

#[test]
fn what_comes_in_is_measured_against_its_controls() {
    let results = measured(&["--only", "append,http,latency"]);
    let expected = [
        ("append", "reports/s", 10, true, true),
        ("append", "reports/s", 100, true, true),
        ("append", "reports/s", 400, true, true),
        ("http", "reports/s", 100, true, true),
        ("http", "reports/s", 200, true, false),
        ("http", "reports/s", 200, true, true),
        ("latency", "ms", 200, true, false),
        ("latency", "ms", 200, true, true),
    ];
    assert_eq!(rows(&results), expected);
    let bars: Vec<&Value> = results["rows"].as_array().unwrap().iter().map(|row| &row["bar"]).collect();
    assert_eq!((bars[0]["at_least"].as_f64(), bars[7]["at_most"].as_f64()), (Some(0.6), Some(3.0)));
}

#[test]
fn what_goes_out_is_measured_at_every_qos_and_all_the_way_to_a_subscriber() {
    let results = measured(&["--only", "through,deliver"]);
    let expected = [
        // In the order of the sections, whatever was asked for first.
        ("deliver", "reports/s", 200, true, false),
        ("deliver", "reports/s", 200, true, true),
        ("deliver", "reports/s", 200, true, true),
        ("through", "reports/s", 100, true, true),
        ("through", "reports/s", 100, true, true),
    ];
    assert_eq!(rows(&results), expected);
}

#[test]
fn a_long_backlog_is_measured_against_a_short_one_and_idleness_in_processor_time() {
    let results = measured(&["--only", "start,idle"]);
    let expected = [
        ("start", "ms", 1_000, true, true),
        ("start", "ms", 1_000, true, false),
        ("start", "s per GiB", 1_000, false, true),
        ("start", "MiB", 1_000, false, true),
        ("start", "MiB", 1_000, false, true),
        ("start", "MiB", 1_000, false, true),
        ("start", "reports/s", 1_000, true, true),
        ("idle", "% of a core", 0, false, true),
    ];
    assert_eq!(rows(&results), expected);
    for row in &results["rows"].as_array().unwrap()[..7] {
        assert!(row["ours"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn curves_are_drawn_from_what_was_measured_and_bars_are_checked_on_request() {
    let results = measured(&["--only", "scaling"]);
    let points = |series: &str| results["rows"].as_array().unwrap().iter().filter(|row| row["series"] == series).count();
    let expected = [
        ("append over producers", 5),
        ("wait over producers, p50", 5),
        ("wait over producers, p99", 5),
        ("append over size", 5),
        ("append over kind", 4),
        ("HTTP over connections", 4),
        ("accept over connections, p50", 4),
        ("accept over connections, p99", 4),
        ("memory over connections", 4),
        ("delivery over lanes", 4),
        ("delivery over window", 5),
        ("delivery over backlog", 3),
        ("memory over backlog", 3),
    ];
    assert_eq!(expected.map(|(series, _)| (series, points(series))), expected);

    let folder = tempfile::tempdir().unwrap();
    let (file, drawn) = (folder.path().join("results.json"), folder.path().join("drawn"));
    fs::create_dir(&drawn).unwrap();
    let document =
        "# Performance\n\n<!-- what follows is written by `tidings bench --draw`: don't edit -->\n<!-- up to here -->\n\nThe end.\n";
    fs::write(drawn.join("performance.md"), document).unwrap();
    for (met, code) in [(true, 0), (false, 1)] {
        let mut results = results.clone();
        results["rows"][0]["bar"] = serde_json::json!({ "at_least": 1 });
        results["rows"][0]["met"] = met.into();
        fs::write(&file, results.to_string()).unwrap();
        let from = [file.to_str().unwrap(), drawn.to_str().unwrap()];
        let again = finished(bench(folder.path(), &["--from", from[0], "--draw", from[1], "--check"]));
        assert_eq!(again.status.code(), Some(code), "{again:?}");
    }
    let text = fs::read_to_string(drawn.join("performance.md")).unwrap();
    assert!(text.starts_with("# Performance\n") && text.ends_with("The end.\n"), "{text}");
    let pictures: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("![")?.split_once("](")?.1.strip_suffix(')')).collect();
    assert_eq!(pictures.len(), expected.len(), "{text}");
    for picture in pictures {
        assert!(fs::read_to_string(drawn.join(picture)).unwrap().ends_with("</svg>\n"), "{picture}");
    }
    assert_eq!(text.matches("### `scaling`").count(), 1, "{text}");
}

#[test]
fn interrupted_it_says_so_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = bench(scratch.path(), &["--only", "deliver,latency", "--rounds", "50"]);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("round 2 of 50")));
    // In the middle of it: there is a service, a broker, or a part of its own at work.
    assert!(!is_empty(scratch.path()));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let output = finished(child);
    assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]));
    let said = rest.join().unwrap();
    assert_eq!(said.last().map(String::as_str), Some("error: interrupted; nothing is left behind"), "{said:?}");
    assert!(is_empty(scratch.path()), "{said:?}");
    assert_eq!(left_behind(scratch.path()), Vec::<String>::new());
}

#[test]
fn a_part_whose_bench_is_gone_ends() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    let mut part =
        command.args(["bench-part", "dropper"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut ready = [0; 6];
    part.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready ");
    drop(part.stdin.take());
    assert_eq!(finished(part).status.code(), Some(1));
}

#[test]
fn a_bench_that_makes_no_sense_is_wrong_usage() {
    for args in [["--size", "1"], ["--only", "speed"], ["--qos", "3"], ["--broker", "somewhere"], ["--rounds", "0"]] {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(finished(bench(scratch.path(), &args)).status.code(), Some(2), "{args:?}");
        assert!(is_empty(scratch.path()));
    }
}
