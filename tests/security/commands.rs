//! The commands, with a token and without.

use std::process::Command;

use crate::setup::{Tokens, report, token};
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};

#[test]
fn a_command_without_the_right_token_says_what_to_do() {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + &connection(free_port(), "") + PIPELINES));
    let file = tidings.folder().join("report.json");
    std::fs::write(&file, report("acme", "one", 1)).unwrap();
    let report = file.display().to_string();
    let commands: [(&[&str], &str); 8] = [
        (&["status"], "prometheus"),
        (&["list"], "prometheus"),
        (&["dead", "list"], "prometheus"),
        (&["audit"], "prometheus"),
        (&["show", "4711"], ""),
        (&["report", &report], "ci"),
        (&["dead", "requeue", "--yes"], "ops"),
        (&["discard", "--state", "pending", "--yes"], "ops"),
    ];
    for (words, name) in commands {
        let (code, said) = tidings.command(words);
        assert_eq!(code, Some(1), "{words:?}: {said}");
        assert!(said.contains("unauthorized (HTTP 401)") && said.contains("--token-file FILE, or in TIDINGS_TOKEN"), "{words:?}: {said}");
        if !name.is_empty() {
            let file = tokens.path(name).display().to_string();
            let (code, said) = tidings.command(&[words, &["--token-file", &file]].concat());
            assert_eq!(code, Some(0), "{words:?}: {said}");
        }
    }
    let file = tokens.path("ci").display().to_string();
    let (code, said) = tidings.command(&["status", "--token-file", &file]);
    assert!(code == Some(1) && said.contains("the token ci has the role ingest, and this needs read or admin"), "{said}");
    assert!(said.contains("use another token"), "{said}");
    let mut status = Command::new(env!("CARGO_BIN_EXE_tidings"));
    let status = status.arg("status").arg("--url").arg(format!("http://{}", tidings.address())).env("TIDINGS_TOKEN", token("prometheus"));
    assert!(status.output().unwrap().status.success());
    let (code, said) = tidings.command(&["status", "--token-file", "/nowhere/token"]);
    assert!(code == Some(2) && said.contains("the token file /nowhere/token can't be read"), "{said}");
}
