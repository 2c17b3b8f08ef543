//! Every route × whoever may ask.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tidings::server::door::TABLE;

use crate::setup::{Answer, Tokens, ask, token};
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};

/// What asks for nothing; said here once more, so that the table can't open anything by itself.
const OPEN: [&str; 4] = ["/", "/openapi.json", "/healthz", "/readyz"];

/// Who asks: the name, the token, and the role.
fn callers() -> [(&'static str, Option<String>, &'static str); 5] {
    [
        ("nobody", None, ""),
        ("a stranger", Some("nonsense-nonsense-nonsense".into()), ""),
        ("ci", Some(token("ci")), "ingest"),
        ("prometheus", Some(token("prometheus")), "read"),
        ("ops", Some(token("ops")), "admin"),
    ]
}

/// The role that a route needs beside admin; none for those that are open.
fn needed(method: &str, path: &str) -> Option<&'static str> {
    match (method, path) {
        ("GET", path) if OPEN.contains(&path) => None,
        ("POST", "/v1/reports") => Some("ingest"),
        ("GET", _) => Some("read"),
        _ => Some("admin"),
    }
}

/// A route with something in the place of its parameters.
fn filled(path: &str) -> String {
    path.replace("{id}", "4711")
}

fn check(answer: &Answer, needed: Option<&str>, role: &str, what: &str) {
    match needed {
        // The table may be ahead of the routes.
        _ if answer.code() == "not_found" => assert_eq!(answer.status, 404, "{what}"),
        None => assert!(![401, 403, 429].contains(&answer.status), "{what}: {answer:?}"),
        Some(_) if role.is_empty() => {
            assert!([401, 429].contains(&answer.status), "{what}: {answer:?}");
            if answer.status == 401 {
                assert_eq!(
                    (answer.code().as_str(), &answer.headers["www-authenticate"]),
                    ("unauthorized", &"Bearer".parse().unwrap()),
                    "{what}"
                );
            }
        }
        Some(needed) if role == needed || role == "admin" => assert!(![401, 403, 429].contains(&answer.status), "{what}: {answer:?}"),
        Some(_) => assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"), "{what}"),
    }
}

#[test]
fn each_route_opens_for_the_roles_it_is_for_and_for_nobody_else_whatever_the_body_is() {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + &connection(free_port(), "") + PIPELINES));
    for row in TABLE {
        let (method, path) = (row.method.as_str(), filled(row.path));
        for (name, token, role) in callers() {
            for body in ["", "{]", "[null]"] {
                if body.is_empty() && method != "GET" && method != "DELETE" {
                    continue;
                }
                let answer = ask(&tidings, method, &path, token.as_deref(), body);
                check(&answer, needed(method, row.path), role, &format!("{method} {path} for {name} with {body:?}"));
            }
        }
    }
    // Nothing of all that was taken for a report.
    let status = ask(&tidings, "GET", "/v1/status", Some(&token("ops")), "").json();
    assert_eq!(status["connections"][0]["totals"]["created"], 0);
    for code in ["unauthorized", "forbidden", "too_many_attempts"] {
        let metrics = ask(&tidings, "GET", "/metrics", Some(&token("prometheus")), "").text;
        let line = metrics.lines().find(|line| line.starts_with(&format!("tidings_http_refused_total{{code=\"{code}\"}}")));
        assert!(line.is_some_and(|line| !line.ends_with(" 0")), "{line:?}");
    }
}

#[test]
fn other_methods_of_a_route_are_for_administrators_alone() {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + &connection(free_port(), "") + PIPELINES));
    for (method, path) in [("PUT", "/v1/reports"), ("DELETE", "/v1/deliveries"), ("POST", "/v1/status"), ("DELETE", "/metrics")] {
        assert_eq!(ask(&tidings, method, path, None, "").status, 401, "{method} {path}");
        assert_eq!(ask(&tidings, method, path, Some(&token("prometheus")), "").status, 403, "{method} {path}");
        assert_eq!(ask(&tidings, method, path, Some(&token("ops")), "").status, 405, "{method} {path}");
    }
    assert_eq!(ask(&tidings, "HEAD", "/v1/status", Some(&token("prometheus")), "").status, 200);
    assert_eq!(ask(&tidings, "HEAD", "/v1/status", None, "").status, 401);
    for path in ["/nowhere", "/v1/status/", "//v1/status", "/v1/%73tatus/x"] {
        assert_eq!(ask(&tidings, "GET", path, None, "").status, 404, "{path}");
    }
}

#[test]
fn metrics_are_for_everybody_where_that_is_said_and_nothing_else_is() {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + "metrics = 'anyone'\n" + &connection(free_port(), "") + PIPELINES));
    assert_eq!(ask(&tidings, "GET", "/metrics", None, "").status, 200);
    assert_eq!(ask(&tidings, "GET", "/v1/status", None, "").status, 401);
}

#[test]
fn without_tokens_everything_is_open_on_loopback() {
    let tidings = Tidings::start(&(connection(free_port(), "") + PIPELINES));
    for path in ["/v1/status", "/v1/deliveries", "/v1/audit", "/metrics"] {
        assert_eq!(ask(&tidings, "GET", path, None, "").status, 200, "{path}");
    }
    // Tokens that are shown to a service that asks for none are no mistake.
    assert_eq!(ask(&tidings, "GET", "/v1/status", Some("whatever"), "").status, 200);
}

#[test]
fn a_web_page_of_another_origin_is_refused_also_with_a_token() {
    let tokens = Tokens::new();
    let tidings = Tidings::start(&(tokens.all() + &connection(free_port(), "") + PIPELINES));
    let answer = crate::setup::ask_with(&tidings, "GET", "/v1/status", Some(&token("ops")), &[("Origin", "http://evil.example")], "");
    assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden_origin"));
}

/// The routes in the sources, each with its methods, as `get /v1/status`.
fn routes_of_the_sources(folder: &Path, found: &mut BTreeSet<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            routes_of_the_sources(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for call in text.split(".route(").skip(1) {
            let Some((route, rest)) = call.trim_start().strip_prefix('"').and_then(|call| call.split_once('"')) else { continue };
            if !route.starts_with('/') {
                continue;
            }
            // Up to the end of the call: parentheses are balanced in between.
            let mut depth = 1;
            let end = rest.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            let methods = &rest[..end.unwrap_or(rest.len())];
            let known = ["get", "post", "put", "delete", "patch", "any"];
            let named: Vec<&str> = known.into_iter().filter(|method| methods.contains(&format!("{method}("))).collect();
            assert!(!named.is_empty() && !named.contains(&"any"), "{}: {route}: which methods are there?", path.display());
            found.extend(named.into_iter().map(|method| (method.to_uppercase(), route.to_owned())));
        }
    }
}

#[test]
fn every_route_of_the_sources_stands_in_the_table() {
    let mut routes = BTreeSet::new();
    routes_of_the_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut routes);
    assert!(routes.len() > 12, "only {routes:?} were found");
    for (method, path) in routes {
        let is_there = TABLE.iter().any(|row| row.method.as_str() == method && row.path == path);
        assert!(is_there, "{method} {path} has no row in src/server/door.rs: who may call it?");
    }
}
