//! What a running service answers, asked by schemathesis: for every route values that the document allows, values just beyond them, wrong methods,
//! missing headers, and chains of requests in which one takes its ids from the answer of another. Under one seed.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use super::described::Document;
use super::support::mosquitto::Mosquitto;
use super::support::python::{OPENAPI, python};
use super::support::tidings::{PIPELINES, Tidings, named_connection};

/// How it asks, and what it has to be told of this API beyond the document.
const SETTINGS: [(&str, &str); 2] = [("schemathesis.toml", include_str!("schemathesis.toml")), ("hooks.py", include_str!("hooks.py"))];

#[test]
fn the_service_does_what_the_document_says_and_nothing_else() {
    let schemathesis = python(OPENAPI).with_file_name("st");
    let broker = Mosquitto::start("");
    // One delivers, and the other has a backlog; nothing listens on port 1.
    let connections = named_connection("mqtt", broker.port, "") + &named_connection("archive", 1, "");
    let archived = "\n[[pipeline]]\nname = \"check\"\ntenant = \"openstack.org\"\nsuccess.archive = { topic = \"archive\", qos = 1 }\n";
    let service = Tidings::start(&(connections + PIPELINES + archived));
    let answers = service.folder().join("answers");
    // It keeps what it found where it runs; each run begins with nothing.
    for (name, text) in SETTINGS {
        fs::write(service.folder().join(name), text).unwrap();
    }
    let mut command = Command::new(schemathesis);
    command.args(["--config-file", "schemathesis.toml", "--no-color", "run", "--checks", "all"]);
    // A replay that is cancelled is still listed, and so it can be asked for.
    command.args(["--exclude-checks", "use_after_free"]);
    command.arg(format!("http://{}/openapi.json", service.address()));
    let ended = command.current_dir(service.folder()).env("TIDINGS_ANSWERS", &answers).output().unwrap();
    assert!(ended.status.success(), "{}", shortened(&String::from_utf8_lossy(&ended.stdout)));

    // Nothing is tested by refusals alone.
    let seen: BTreeSet<String> = fs::read_to_string(answers).unwrap().lines().map(str::to_owned).collect();
    let document = Document::of(&service);
    let operations = document.operations();
    let good = |operation| document.responses(operation).into_keys().filter(|status| *status < 300).collect::<Vec<_>>();
    // That one route was asked for the document itself.
    let asked = operations.iter().filter(|each| each.path != "/openapi.json");
    let wanted = asked.flat_map(|each| good(each).into_iter().map(move |status| format!("{} {} {status}", each.method, each.path)));
    let never: Vec<String> = wanted.filter(|wanted| !seen.contains(wanted)).collect();
    assert!(never.is_empty(), "never seen: {never:?}");
    service.assert_balanced();
}

/// Without the middle of lines that hold a whole request.
fn shortened(text: &str) -> String {
    text.lines().map(|line| line.chars().take(400).collect::<String>() + "\n").collect()
}
