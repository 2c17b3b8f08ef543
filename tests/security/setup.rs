//! Tokens in files, and a client that shows them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::PATIENCE;
use crate::support::tidings::Tidings;

/// Name, role, and the tenants that it is for.
const TOKENS: [(&str, &str, &str); 6] = [
    ("ci", "ingest", ""),
    ("prometheus", "read", ""),
    ("ops", "admin", ""),
    ("acme-ci", "ingest", "acme"),
    ("acme", "read", "acme"),
    ("acme-ops", "admin", "acme"),
];

/// One for each role, and one for each role and the tenant acme, in files.
pub struct Tokens(TempDir);

/// The token of this name, as it is at first.
pub fn token(name: &str) -> String {
    format!("Hq1vSrYtUoQ6mZ3cXw9e-{name}")
}

impl Tokens {
    pub fn new() -> Tokens {
        let tokens = Tokens(tempfile::tempdir().unwrap());
        for (name, ..) in TOKENS {
            tokens.write(name, &token(name));
        }
        tokens
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, token: &str) {
        fs::write(self.path(name), format!("{token}\n")).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// `http.tokens` with those whose names are chosen.
    pub fn setting(&self, is_chosen: impl Fn(&str) -> bool) -> String {
        let chosen = TOKENS.into_iter().filter(|(name, ..)| is_chosen(name));
        let entries = chosen.map(|(name, role, tenant)| {
            let tenants = if tenant.is_empty() { String::new() } else { format!("tenants = ['{tenant}'], ") };
            format!("{{ name = '{name}', role = '{role}', {tenants}file = '{}' }}", self.path(name).display())
        });
        format!("tokens = [{}]\n", entries.collect::<Vec<_>>().join(", "))
    }

    /// All of them.
    pub fn all(&self) -> String {
        self.setting(|_| true)
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of the error that it is, or nothing.
    pub fn code(&self) -> String {
        let parsed: Result<Value, _> = serde_json::from_str(&self.text);
        parsed.ok().and_then(|body| body["error"]["code"].as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// Asks with this token, or without.
pub fn ask(tidings: &Tidings, method: &str, path: &str, token: Option<&str>, body: &str) -> Answer {
    ask_with(tidings, method, path, token, &[("Content-Type", "application/json")], body)
}

/// The same, with these headers.
pub fn ask_with(tidings: &Tidings, method: &str, path: &str, token: Option<&str>, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(tidings.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(token) = token {
        head += &format!("Authorization: Bearer {token}\r\n");
    }
    stream.write_all((head + "\r\n" + body).as_bytes()).unwrap();
    let mut answer = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        answer.read_line(&mut line).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let status = lines[0].split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{method} {path}: {lines:?}"));
    let headers: BTreeMap<String, String> =
        lines[1..].iter().filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let mut text = String::new();
    // The events have no end.
    if headers.get("content-type").is_none_or(|kind| kind != "text/event-stream") {
        answer.read_to_string(&mut text).unwrap();
    }
    Answer { status, headers, text }
}

/// Asks with the token of this name.
pub fn ask_as(tidings: &Tidings, name: &str, method: &str, path: &str, body: &str) -> Answer {
    ask(tidings, method, path, Some(&token(name)), body)
}

/// A report of this tenant, which is posted to `zuul/PROJECT` at QoS 2.
pub fn report(tenant: &str, project: &str, number: u64) -> String {
    format!(r#"{{"action":"success","tenant":"{tenant}","pipeline":"check","project":"{project}","change":"{number}"}}"#)
}

/// The id of the one delivery of an answer to `POST /v1/reports`.
pub fn id_of(answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()["deliveries"][0]["id"].as_str().unwrap().to_owned()
}
