//! HTTPS, with a real client.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::certificates::{Authority, LOCAL};
use crate::setup::{Tokens, report, token};
use crate::support::mosquitto::free_port;
use crate::support::tidings::{PIPELINES, Tidings, connection};
use crate::support::{PATIENCE, wait_until};

/// Files of an authority, and of a service that it knows.
struct Site(TempDir);

impl Site {
    fn new() -> Site {
        let site = Site(tempfile::tempdir().unwrap());
        site.issue("ca.pem");
        site
    }

    /// A certificate of a new authority, in the place of the one before.
    fn issue(&self, authority_file: &str) {
        let authority = Authority::new("authority");
        authority.write(&self.path(authority_file));
        authority.issue(&LOCAL).write(self.0.path(), "service");
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn setting(&self) -> String {
        format!("certfile = '{}'\nkeyfile = '{}'\n", self.path("service.pem").display(), self.path("service.key").display())
    }
}

fn curl(tidings: &Tidings, ca: &Path, path: &str, more: &[&str]) -> Output {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*", "--cacert"]).arg(ca).args(more);
    curl.arg(format!("https://localhost:{}{path}", tidings.address().port())).output().expect("curl is installed (Debian: curl)")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn start(site: &Site, tokens: &Tokens) -> Tidings {
    let mut tidings = Tidings::prepare(&(tokens.all() + &site.setting() + &connection(free_port(), "") + PIPELINES));
    assert!(tidings.try_run());
    tidings
}

#[test]
fn reports_and_answers_go_over_tls_and_nothing_goes_without() {
    let (site, tokens) = (Site::new(), Tokens::new());
    let tidings = start(&site, &tokens);
    let ca = site.path("ca.pem");
    let bearer = |name: &str| format!("Authorization: Bearer {}", token(name));
    assert!(text(&curl(&tidings, &ca, "/readyz", &[])).contains("\"ready\":true"));
    let post = ["-H", "Content-Type: application/json", "-H", &bearer("ci"), "-w", "%{http_code}", "-d"];
    assert!(text(&curl(&tidings, &ca, "/v1/reports", &[&post[..], &[&report("acme", "one", 1)]].concat())).ends_with("202"));
    assert!(text(&curl(&tidings, &ca, "/v1/status", &["-w", "%{http_code}"])).ends_with("401"));
    // Larger than allowed: the answer arrives though not all of it was read.
    let large = site.path("large");
    std::fs::write(&large, vec![b' '; 8 << 20]).unwrap();
    let large = format!("@{}", large.display());
    let answer = curl(
        &tidings,
        &ca,
        "/v1/reports",
        &["-H", "Content-Type: application/json", "-H", &bearer("ci"), "-w", "%{http_code}", "--data-binary", &large],
    );
    assert!(text(&answer).ends_with("413"), "{answer:?}");
    // Its certificate's end can be seen.
    wait_until("the certificate is looked at", || {
        let metrics = text(&curl(&tidings, &ca, "/metrics", &["-H", &bearer("prometheus")]));
        metrics.contains("tidings_certificate_expiry_timestamp_seconds{name=\"\",option=\"certfile\",place=\"http\"}")
    });
    // Who does not know the authority, speaks an old TLS or none at all, learns nothing.
    let other = Site::new();
    assert_eq!(curl(&tidings, &other.path("ca.pem"), "/readyz", &[]).status.code(), Some(60));
    assert!(!curl(&tidings, &ca, "/readyz", &["--tls-max", "1.1"]).status.success());
    let plain = Command::new("curl")
        .args(["--silent", "--max-time", "30", "--noproxy", "*"])
        .arg(format!("http://{}/readyz", tidings.address()))
        .output()
        .unwrap();
    assert!(!plain.status.success() && plain.stdout.is_empty(), "{plain:?}");
    // One that never begins with it is let go.
    let mut silent = TcpStream::connect(tidings.address()).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    let metrics = text(&curl(&tidings, &ca, "/metrics", &["-H", &bearer("prometheus")]));
    let refused = metrics.lines().find_map(|line| line.strip_prefix("tidings_http_refused_total{code=\"tls\"} ")).unwrap();
    assert!(refused.parse::<f64>().unwrap() >= 3.0, "{refused}");
}

#[test]
fn the_commands_speak_it_and_know_whom_they_trust() {
    let (site, tokens) = (Site::new(), Tokens::new());
    let tidings = start(&site, &tokens);
    let url = format!("https://localhost:{}", tidings.address().port());
    let command = |words: &[&str], ca: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(words).args(["--url", &url]).env("TIDINGS_CA_FILE", ca).env("TIDINGS_TOKEN", token("ops")).env("USER", "somebody");
        let output = command.output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat())
    };
    let file = site.path("report.json");
    std::fs::write(&file, report("acme", "one", 1)).unwrap();
    let (code, said) = command(&["report", &file.display().to_string()], &site.path("ca.pem"));
    assert!(code == Some(0) && said.contains("accepted: 1 report"), "{said}");
    let (code, said) = command(&["list"], &site.path("ca.pem"));
    assert!(code == Some(0) && said.contains("zuul/one"), "{said}");
    let (code, said) = command(&["tail", "--after", "0", "--count", "1"], &site.path("ca.pem"));
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = command(&["list"], &Site::new().path("ca.pem"));
    assert!(code == Some(1) && said.contains("TLS with https://localhost") && said.contains("--ca-file"), "{said}");
    let (code, said) = command(&["list"], Path::new("/nowhere/ca.pem"));
    assert!(code == Some(2) && said.contains("/nowhere/ca.pem can't be read"), "{said}");
}

#[test]
fn a_renewed_certificate_is_used_from_the_reload_on_and_a_broken_one_is_not() {
    let (site, tokens) = (Site::new(), Tokens::new());
    let tidings = start(&site, &tokens);
    let (old, new) = (site.path("ca.pem"), site.path("new-ca.pem"));
    assert!(curl(&tidings, &old, "/readyz", &[]).status.success());
    site.issue("new-ca.pem");
    tidings.hang_up();
    wait_until("the new certificate is shown", || curl(&tidings, &new, "/readyz", &[]).status.success());
    assert!(!curl(&tidings, &old, "/readyz", &[]).status.success());
    std::fs::write(site.path("service.key"), "no key").unwrap();
    tidings.hang_up();
    wait_until("the mistake is logged", || !tidings.logged("http.keyfile").is_empty());
    assert!(curl(&tidings, &new, "/readyz", &[]).status.success());
}
