//! Tokens in files, and a client that shows them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;
use ureq::http::Request;

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
    pub headers: ureq::http::HeaderMap,
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
    let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).timeout_global(Some(PATIENCE)).build().new_agent();
    let mut request = Request::builder().method(method).uri(format!("http://{}{path}", tidings.address()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let sent = match body.is_empty() {
        true => agent.run(request.body(()).unwrap()),
        false => {
            let request = request.body(body.to_owned()).unwrap();
            agent.run(agent.configure_request(request).allow_non_standard_methods(true).force_send_body(true).build())
        }
    };
    let mut response = sent.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    // The events have no end.
    let is_stream = response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
    let text = if is_stream { String::new() } else { response.body_mut().read_to_string().unwrap() };
    Answer { status: response.status().as_u16(), headers: response.headers().clone(), text }
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
