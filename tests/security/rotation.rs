//! Tokens that change while the service runs.

use crate::setup::{Tokens, ask, ask_as, token};
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};

const NEW: &str = "a-new-token-of-the-operators";

#[test]
fn a_changed_token_holds_from_the_reload_on_and_a_broken_file_changes_nothing() {
    let tokens = Tokens::new();
    let config =
        |is_chosen: fn(&str) -> bool| tokens.setting(is_chosen) + "metrics = 'anyone'\n" + &connection(free_port(), "") + PIPELINES;
    let tidings = Tidings::start(&config(|_| true));
    let status = |token: &str| ask(&tidings, "GET", "/v1/status", Some(token), "").status;
    tokens.write("ops", NEW);
    assert_eq!((status(&token("ops")), status(NEW)), (200, 401), "it was not told to read it again");
    assert!(tidings.reload_file());
    assert_eq!((status(&token("ops")), status(NEW), status(&token("prometheus"))), (401, 200, 200));
    // Too short: what was in force stays, and the mistake is named.
    tokens.write("ops", "hunter2");
    assert!(!tidings.reload_file());
    assert_eq!((status(NEW), status("hunter2")), (200, 401));
    let shown = ask(&tidings, "GET", "/v1/status", Some(NEW), "").json();
    let mistake = shown["config"]["mistakes"][0].as_str().unwrap().to_owned();
    assert!(mistake.contains("http.tokens[2].file: the first line of") && mistake.contains("has 7 bytes"), "{mistake}");
    assert!(tidings.logged("hunter2").is_empty() && !tidings.logged("http.tokens[2].file").is_empty());
    // Taken out of the list, and a token that two have.
    tokens.write("ops", NEW);
    assert!(tidings.reload(&config(|name| name != "prometheus")));
    assert_eq!((status(&token("prometheus")), status(NEW)), (401, 200));
    tokens.write("acme", NEW);
    assert!(!tidings.reload_file());
    assert!(!tidings.logged("is the token of `ops`, too").is_empty());
    assert_eq!(status(NEW), 200);
}

#[test]
fn tokens_can_be_asked_for_while_the_service_runs_and_it_can_be_left_again() {
    let tokens = Tokens::new();
    let rest = "metrics = 'anyone'\n".to_owned() + &connection(free_port(), "") + PIPELINES;
    let tidings = Tidings::start(&rest);
    let status = || ask(&tidings, "GET", "/v1/status", None, "").status;
    assert_eq!(status(), 200);
    assert!(tidings.reload(&(tokens.all() + &rest)));
    assert_eq!(status(), 401);
    assert!(tidings.reload(&rest));
    assert_eq!(status(), 200);
}

#[test]
fn wrong_tokens_again_and_again_are_told_to_wait_and_log_a_bounded_number_of_lines() {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + "metrics = 'anyone'\n" + &connection(free_port(), "") + PIPELINES));
    let answers: Vec<_> =
        (0..60).map(|number| ask(&tidings, "GET", "/v1/status", Some(&format!("wrong-wrong-wrong-{number}")), "")).collect();
    assert_eq!((answers[0].status, answers[0].code().as_str()), (401, "unauthorized"));
    let waiting = answers.iter().find(|answer| answer.status == 429).expect("some are told to wait");
    assert_eq!((waiting.code().as_str(), waiting.headers["retry-after"].as_str()), ("too_many_attempts", "60"));
    assert_eq!(ask_as(&tidings, "ops", "GET", "/v1/status", "").status, 200, "the right one is let in at any time");
    let lines = tidings.logged("a request was not let in");
    assert!((1..=20).contains(&lines.len()), "{} lines", lines.len());
    assert_eq!((&lines[0]["code"], &lines[0]["path"]), (&"unauthorized".into(), &"/v1/status".into()));
}

#[test]
fn a_rate_holds_for_each_token_by_itself() {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + "rate = 3\nmetrics = 'anyone'\n" + &connection(free_port(), "") + PIPELINES));
    let mut limited = None;
    for _ in 0..200 {
        let answer = ask_as(&tidings, "ops", "GET", "/v1/status", "");
        if answer.status == 429 {
            limited = Some(answer);
            break;
        }
    }
    let limited = limited.expect("200 requests come faster than 3 a second");
    assert_eq!((limited.code().as_str(), limited.headers["retry-after"].as_str()), ("rate_limited", "1"));
    assert_eq!(ask_as(&tidings, "prometheus", "GET", "/v1/status", "").status, 200);
}
