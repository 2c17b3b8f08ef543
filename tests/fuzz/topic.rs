//! Topic templates. An input is a template in the first line and a report in the second.
//!
//! It holds: what parses renders, or says which value is at fault; a topic has no wildcards and no control characters, and fits. Where a
//! template means something to Tidings, it means the same to Python's `str.format`, with what Zuul hands it.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

use bytes::Bytes;
use serde_json::{Value, json};
use tidings::core::report::Report;
use tidings::core::topic::{MAX_TOPIC, RenderError, TopicError, TopicTemplate};

use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::report::fixtures;
use crate::run::{Outcome, kind_of, run};

const WORDS: &[&str] = &[
    "{tenant}",
    "{pipeline}",
    "{project}",
    "{branch}",
    "{change}",
    "{patchset}",
    "{ref}",
    "{changes[0][topic]}",
    "{changes[1][change]}",
    "{changes[00][ref]}",
    "{changes[0][a}b]}",
    "{changes[0][]}",
    "{changes[0]}",
    "{changes[-1][a]}",
    "{changes[99999999999999999999][a]}",
    "{{",
    "}}",
    "{",
    "}",
    "{}",
    "{0}",
    "{tenant!r}",
    "{change:>5}",
    "{tenant.x}",
    "{tenant[0]}",
    "+",
    "#",
    "/",
    "$SYS/",
    "$share/",
    "changes",
    "topic",
    "tenant",
    "change",
    "patchset",
    "ref",
    "branch",
    "project",
];

/// Renders as Zuul's reporter does, from lines of `[template, report]`; prints one line of JSON each.
const SCRIPT: &str = r##"
import json, sys
class Change(dict):
    def __missing__(self, key):
        return None
def plain(value):
    return None if value == "" else value
for line in sys.stdin:
    template, report = json.loads(line)
    names = ("tenant", "pipeline", "project", "branch", "change", "patchset", "ref")
    values = {name: plain(report.get(name)) for name in names}
    changes = [Change((key, plain(value)) for key, value in change.items()) for change in report.get("changes") or []]
    try:
        topic = template.format(**values, changes=changes).replace("+", "_").replace("#", "_")
    except Exception as error:
        topic = [type(error).__name__, str(error)]
    print(json.dumps(topic))
"##;

/// So many are compared with Python, at most.
const COMPARED: usize = 4_000;

fn check(bytes: &[u8], compared: &mut Vec<(Value, String)>) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Outcome::refused("not UTF-8") };
    let (source, report) = text.split_once('\n').unwrap_or((text, ""));
    let most = 2 * source.len() + 300;
    let template = match bounded(source.len(), 64, || TopicTemplate::parse(source)) {
        Ok(template) => template,
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.len() < most, "{text}");
            return Outcome::refused(format!("{} {}", kind_of(&format!("{error:?}")), kind_of(&text)));
        }
    };
    assert_eq!(template.as_str(), source);
    let Ok(parsed) = Report::parse(Bytes::copy_from_slice(report.as_bytes())) else { return Outcome::refused("no report") };
    match bounded(source.len() * (report.len() + 1), 8, || template.render(&parsed)) {
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < most && !text.is_empty(), "{text}");
            let is_wildcard = matches!(&error, RenderError::Topic { error: TopicError::Wildcard { .. }, .. });
            assert!(!is_wildcard, "wildcards become `_`, wherever they come from: {error}");
            assert!(error.field().is_none_or(|field| field.starts_with("changes[")), "{error:?}");
            Outcome::refused(kind_of(&format!("{error:?}")))
        }
        Ok(topic) => {
            let topic = topic.into_string();
            let is_valid = !topic.is_empty() && topic.len() <= MAX_TOPIC && !topic.contains(|c: char| "+#\0".contains(c) || c.is_control());
            assert!(is_valid, "{topic:?}");
            if let Ok(tree) = serde_json::from_str::<Value>(report)
                && compared.len() < COMPARED
                && means_the_same_to_python(&tree)
            {
                compared.push((json!([source, tree]), topic));
            }
            Outcome::accepted(source.matches(['{', '}']).count().min(8).to_string())
        }
    }
}

/// Zuul itself puts texts, whole numbers and truth values into a report's changes; how Python writes other numbers is its own affair.
fn means_the_same_to_python(report: &Value) -> bool {
    let changes = report["changes"].as_array().into_iter().flatten().filter_map(Value::as_object);
    let named = ["change", "patchset"].map(|name| &report[name]);
    changes.flat_map(|change| change.values()).chain(named).all(|value| value.as_f64().is_none_or(|_| value.is_i64() || value.is_u64()))
}

#[test]
fn a_template_renders_or_says_why_and_means_what_it_means_to_python() {
    let templates = [
        "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}",
        "{changes[0][topic]}/{changes[0][change]}/{ref}",
        "zuul/{{x}}/{patchset}",
        "{changes[1][ref]}#+/{tenant}",
        "{changes[0][x]}/{changes[0][y]}",
    ];
    let mut reports = fixtures();
    reports.push(br#"{"action":"start","tenant":"a","pipeline":"b","change":7,"changes":[{"x":true,"y":null,"topic":"t+t","change":12,"a}b":"c"},{"ref":"r"}]}"#.to_vec());
    let line = |report: &Vec<u8>| serde_json::from_slice::<Value>(report).unwrap().to_string();
    let seeds = reports
        .iter()
        .zip(templates.iter().cycle())
        .map(|(report, template)| format!("{template}\n{}", line(report)).into_bytes())
        .collect();
    let mut compared = Vec::new();
    run("topic", 8_000, seeds, &Mutator { form: Form::JsonLines, words: WORDS }, |bytes| check(bytes, &mut compared));
    let answers = python(&compared);
    assert_eq!(answers.len(), compared.len());
    for ((asked, topic), answer) in compared.iter().zip(&answers) {
        assert_eq!(answer, topic, "Python renders {asked} as {answer}");
    }
    println!("topic: {} rendered as Python does", compared.len());
}

fn python(compared: &[(Value, String)]) -> Vec<Value> {
    let spawned = Command::new("python3").args(["-c", SCRIPT]).env("PYTHONUTF8", "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("this test compares with a real Python: install python3 (Debian's package `python3`)")
        }
        spawned => spawned.unwrap(),
    };
    let mut stdin = child.stdin.take().unwrap();
    let asked: String = compared.iter().map(|(asked, _)| format!("{asked}\n")).collect();
    let writing = std::thread::spawn(move || stdin.write_all(asked.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
