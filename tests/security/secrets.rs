//! What is never shown.

use std::process::Command;

use openssl::sha::sha256;

use crate::setup::{Tokens, ask, ask_as, report, token};
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};

#[test]
fn a_token_stands_in_no_log_answer_metric_or_printed_configuration() {
    let tokens = Tokens::new();
    let config = tokens.all() + "metrics = 'anyone'\n" + &connection(free_port(), "") + PIPELINES;
    let mut tidings = Tidings::prepare(&config);
    tidings.environment.push(("TIDINGS_LOG", "trace".to_owned()));
    tidings.run();
    let wrong = "a-wrong-token-that-nobody-knows";
    let mut shown = String::new();
    for token in [Some(wrong.to_owned()), None, Some(token("ci")), Some(token("prometheus")), Some(token("ops"))] {
        for path in ["/v1/status", "/v1/audit", "/v1/deliveries", "/metrics", "/readyz", "/nowhere"] {
            shown += &ask(&tidings, "GET", path, token.as_deref(), "").text;
        }
    }
    shown += &ask_as(&tidings, "ci", "POST", "/v1/reports", &report("acme", "one", 1)).text;
    shown += &ask_as(&tidings, "ops", "POST", "/v1/backups", "").text;
    // In the path, where it does not belong, and where a log line has it.
    ask(&tidings, "GET", &format!("/v1/deliveries/{}", token("ops")), None, "");
    tokens.write("ops", &(token("ops") + "-renewed"));
    assert!(tidings.reload_file());
    shown += &ask(&tidings, "GET", "/v1/audit", Some(&(token("ops") + "-renewed")), "").text;
    tokens.write("ci", "short-token");
    assert!(!tidings.reload_file());
    shown += &ask(&tidings, "GET", "/v1/status", Some(&(token("ops") + "-renewed")), "").text;
    tokens.write("ci", &token("ci"));
    for arguments in [vec!["check"], vec!["check", "--json"]] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_tidings")).args(arguments).arg("--config").arg(tidings.config_file()).output().unwrap();
        assert!(output.status.success());
        shown += &String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    }
    assert!(shown.contains("token     ops: admin") && shown.contains("\"role\": \"admin\""), "the check shows names and roles");
    assert_eq!(tidings.stop(), Some(0));
    let logged: Vec<String> = tidings.logged("").iter().map(ToString::to_string).collect();
    assert!(logged.len() > 10);
    let secrets =
        ["ci", "prometheus", "ops", "acme-ci", "acme", "acme-ops"].map(token).into_iter().chain([wrong.to_owned(), "short-token".into()]);
    for secret in secrets {
        let hash: String = sha256(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        for text in logged.iter().chain([&shown]) {
            assert!(!text.contains(&secret) && !text.contains(&hash), "{secret} is shown: {text}");
        }
    }
}

#[test]
fn beyond_loopback_it_does_not_start_without_tokens() {
    let tidings = Tidings::prepare("");
    let store = tidings.store();
    std::fs::write(tidings.config_file(), format!("[store]\npath = '{}'\n[http]\nlisten = '192.0.2.1:8470'\n", store.display())).unwrap();
    let (code, said) = tidings.refused();
    assert_eq!(code, Some(2));
    assert!(said.contains("http.listen: beyond loopback (127.0.0.1, [::1]) whoever comes has to show a token"), "{said}");
    assert!(!store.exists(), "nothing was begun");
}
