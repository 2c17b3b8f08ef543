//! What is posted: one report, and NDJSON.
//!
//! `report` holds: what is accepted is JSON to `serde_json`, too, with the same action, tenant and pipeline; what is cut out of it is
//! `returned_data` and nothing else, and cutting again cuts nothing. What is refused as no JSON is none, or nested too deep. Errors have a
//! code, and a message that is not as long as the report.
//!
//! `batch` holds: the pieces are the lines that are not blank, each with its number, and together not longer than the body. An
//! `Idempotency-Key` is taken exactly if it is 1 to 255 visible ASCII characters.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use tidings::core::report::{MAX_NESTING, Report, ReportError};
use tidings::ingest::batch::{BatchError, MAX_LINES, Shape, pieces};
use tidings::server::idempotency::IdempotencyKey;

use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, are_distinct, assert_readable, kind_of, run};

/// The schema's keys, and what changes their meaning.
pub const KEYS: &[&str] = &[
    "action",
    "tenant",
    "pipeline",
    "project",
    "branch",
    "change",
    "patchset",
    "ref",
    "changes",
    "change_url",
    "commit_id",
    "buildset",
    "builds",
    "retry_builds",
    "returned_data",
    "voting",
    "uuid",
    "job_name",
    "start_time",
    "end_time",
    "execute_time",
    "log_url",
    "web_url",
    "result",
    "dependencies",
    "artifacts",
    "url",
    "metadata",
    "message",
    "trigger_time",
    "enqueue_time",
    "zuul_ref",
    "topic",
    "a\\u0062",
    "",
    "acti\\u006fn",
];

/// The fixtures: what Zuul sends.
pub fn fixtures() -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Without `returned_data`, as the contract has it.
fn without_returned_data(mut value: Value) -> Value {
    for list in ["builds", "retry_builds"] {
        let builds = value.get_mut("buildset").and_then(|buildset| buildset.get_mut(list)).and_then(Value::as_array_mut);
        for build in builds.into_iter().flatten() {
            build.as_object_mut().map(|build| build.remove("returned_data"));
        }
    }
    value
}

/// The keys of an object, each as often as it stands there.
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
        deserializer.deserialize_map(Keys(Vec::new()))
    }
}

impl<'de> Visitor<'de> for Keys {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Keys, A::Error> {
        while let Some((key, IgnoredAny)) = map.next_entry()? {
            self.0.push(key);
        }
        Ok(self)
    }
}

/// What a tree of `serde_json` can't hold though it is JSON: half a character in escapes, a number beyond a double.
fn is_beyond_trees(error: &serde_json::Error) -> bool {
    let text = error.to_string();
    text.contains("surrogate") || text.contains("number out of range") || text.contains("hex escape")
}

fn check_report(bytes: &[u8]) -> Outcome {
    let posted = Bytes::copy_from_slice(bytes);
    // What is passed over is not looked at for its encoding.
    let text = std::str::from_utf8(bytes).map_err(drop);
    let grammar = text.and_then(|text| serde_json::from_str::<IgnoredAny>(text).map_err(drop));
    let report = match bounded(bytes.len(), 64, || Report::parse(posted)) {
        Ok(report) => report,
        Err(error) => {
            assert_readable(&error.to_string());
            if let ReportError::InvalidJson { message } = &error {
                let tree = serde_json::from_slice::<Value>(bytes);
                let is_none = grammar.is_err() || tree.is_err_and(|error| is_beyond_trees(&error));
                assert!(is_none || message.contains(&format!("nested deeper than {MAX_NESTING}")), "it is JSON: {message}");
            }
            return Outcome::refused(format!("{} {:?} {}", error.code(), error.field().map(kind_of), kind_of(&error.to_string())));
        }
    };
    grammar.expect("another reader takes it, too");
    assert_eq!(report.payload(), bytes, "published as posted");
    let cut = report.payload_without_returned_data();
    let again = bounded(bytes.len(), 64, || Report::parse(cut.clone())).expect("what is left is a report");
    assert_eq!(again.payload_without_returned_data(), cut);
    assert_eq!((again.action(), again.tenant(), again.pipeline()), (report.action(), report.tenant(), report.pipeline()));
    let tree = match serde_json::from_slice::<Value>(bytes) {
        Ok(tree) => tree,
        Err(error) => {
            assert!(is_beyond_trees(&error), "{error}");
            return Outcome::accepted("not for trees");
        }
    };
    for (key, value) in [("action", report.action()), ("tenant", report.tenant()), ("pipeline", report.pipeline())] {
        assert_eq!(tree[key], value, "{key} is the same to every reader");
    }
    let Keys(keys) = serde_json::from_slice(bytes).expect("it is an object");
    const NAMED: [&str; 8] = ["action", "tenant", "pipeline", "project", "branch", "change", "patchset", "ref"];
    assert!(are_distinct(keys.iter().filter(|key| NAMED.contains(&key.as_str()))), "what is named is named once: {keys:?}");
    assert_eq!(serde_json::from_slice::<Value>(&cut).expect("what is left is JSON"), without_returned_data(tree));
    Outcome::accepted(format!("{} {}", cut.len() < bytes.len(), report.project().is_some()))
}

#[test]
fn a_report_is_taken_only_if_every_reader_takes_it_for_the_same() {
    run("report", 5_000, fixtures(), &Mutator { form: Form::Json, words: KEYS }, check_report);
}

/// Small, so that it is met.
const MAX_REPORT: usize = 4 << 10;

fn check_batch(bytes: &[u8]) -> Outcome {
    for line in bytes.split(|byte| *byte == b'\n') {
        let is_key = (1..=255).contains(&line.len()) && line.iter().all(|byte| (0x21..=0x7e).contains(byte));
        assert_eq!(IdempotencyKey::parse(line).is_ok(), is_key, "{}", line.escape_ascii());
    }
    let body = Bytes::copy_from_slice(bytes);
    let blank = |line: &&[u8]| line.iter().all(|byte| b" \t\r\x0c".contains(byte));
    let expected: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|line| !blank(line)).collect();
    let expected: Vec<&[u8]> = expected.iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    match bounded(bytes.len(), 64, || pieces(&body, Shape::Ndjson, MAX_REPORT)) {
        Err(error) => {
            assert_readable(&error.to_string());
            match error {
                BatchError::Empty => assert!(expected.is_empty()),
                BatchError::TooMany => assert!(expected.len() > MAX_LINES),
                BatchError::TooLarge { size, line, .. } => {
                    assert!(size > MAX_REPORT && line.is_some() && expected.iter().any(|piece| piece.len() == size));
                }
            }
            Outcome::refused(error.code())
        }
        Ok(pieces) => {
            assert_eq!(pieces.iter().map(|piece| &piece.bytes[..]).collect::<Vec<_>>(), expected);
            assert!(pieces.windows(2).all(|pair| pair[0].line < pair[1].line));
            let first_wrong = pieces.iter().find_map(|piece| Report::parse(piece.bytes.clone()).err());
            first_wrong.map_or_else(|| Outcome::accepted(pieces.len().min(5).to_string()), |error| Outcome::refused(error.code()))
        }
    }
}

#[test]
fn a_batch_is_its_lines() {
    let line = |text: Vec<u8>| serde_json::from_slice::<Value>(&text).unwrap().to_string();
    let all: Vec<String> = fixtures().into_iter().map(line).collect();
    let seeds = vec![all.join("\n").into_bytes(), all[..2].join("\r\n\r\n").into_bytes(), format!("{}\n", all[0]).into_bytes()];
    run("batch", 4_000, seeds, &Mutator { form: Form::JsonLines, words: KEYS }, check_batch);
}
