//! Prometheus as a process, with our alerts: it looks each second, and where an alert waits for minutes it waits for seconds.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::mosquitto::free_port;
use crate::support::{PATIENCE, wait_until};

pub struct Prometheus {
    port: u16,
    running: Child,
    agent: ureq::Agent,
    folder: TempDir,
}

impl Prometheus {
    /// Scrapes this service, and returns once it has.
    pub fn start(target: SocketAddr) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("alerts.rules.yml"), in_seconds(&text_of("ops/alerts.rules.yml"))).unwrap();
        // As it is delivered, but for where and how often.
        let config = text_of("ops/prometheus.yml").replace("15s", "1s").replace("127.0.0.1:8470", &target.to_string());
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let port = free_port();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--log.level=warn");
        let running = match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!("these tests need a real Prometheus: install Debian's package `prometheus`")
            }
            spawned => spawned.unwrap(),
        };
        let agent =
            ureq::Agent::config_builder().http_status_as_error(false).proxy(None).timeout_global(Some(PATIENCE)).build().new_agent();
        let mut prometheus = Prometheus { port, running, agent, folder };
        wait_until("Prometheus has scraped Tidings", || {
            assert!(prometheus.running.try_wait().unwrap().is_none(), "Prometheus ended at once: {}", prometheus.log());
            prometheus.query("up{job=\"tidings\"} == 1").is_ok_and(|found| !found.is_empty())
        });
        prometheus
    }

    fn get(&self, path: &str, query: Option<&str>) -> Result<Value, String> {
        let mut request = self.agent.get(format!("http://127.0.0.1:{}{path}", self.port));
        if let Some(query) = query {
            request = request.query("query", query);
        }
        let mut response = request.call().map_err(|error| error.to_string())?;
        let text = response.body_mut().read_to_string().map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&text).map_err(|_| text.clone())?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(text) }
    }

    /// What a query finds now, a series each; or why it can't be asked.
    pub fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let data = self.get("/api/v1/query", Some(query))?;
        Ok(data["result"].as_array().cloned().unwrap_or_else(|| vec![data["result"].clone()]))
    }

    /// The names of the alerts that are firing.
    pub fn firing(&self) -> Vec<String> {
        let alerts = self.get("/api/v1/alerts", None).unwrap();
        let firing = alerts["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    /// Every alert, with what is wrong with its rule: asked of real data, a rule can fail that reads well.
    pub fn rules(&self) -> Vec<(String, String)> {
        let groups = self.get("/api/v1/rules", None).unwrap();
        let rules = groups["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
        let of_one = |rule: &Value| (rule["name"].as_str().unwrap().to_owned(), rule["lastError"].as_str().unwrap_or_default().to_owned());
        rules.map(of_one).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.running.kill();
        let _ = self.running.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Every `for` a sixtieth.
fn in_seconds(rules: &str) -> String {
    let line = |line: &str| match line.trim_start().strip_prefix("for: ") {
        Some(span) => {
            let (number, unit) = span.split_at(span.len() - 1);
            let number: u64 = number.parse().unwrap();
            let seconds = match unit {
                "h" => number * 60,
                "m" => number,
                _ => panic!("{line}: in minutes or hours"),
            };
            format!("        for: {seconds}s\n")
        }
        None => format!("{line}\n"),
    };
    rules.lines().map(line).collect()
}

pub fn text_of(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
