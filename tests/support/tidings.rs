//! The service as a process, with a store of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use super::{PATIENCE, signal, wait_for_end, wait_within};

/// One reporter for each QoS, all to the same topic: the action chooses.
pub const PIPELINES: &str = r#"
[[pipeline]]
name = "check"
start.mqtt = { topic = "zuul/{project}" }
failure.mqtt = { topic = "zuul/{project}", qos = 1 }
success.mqtt = { topic = "zuul/{project}", qos = 2 }
"#;

/// The connection `mqtt` to a broker on this machine, with these further lines.
pub fn connection(port: u16, more: &str) -> String {
    named_connection("mqtt", port, more)
}

/// A connection to a broker on this machine, with these further lines.
pub fn named_connection(name: &str, port: u16, more: &str) -> String {
    format!("[connection.{name}]\ndriver = \"mqtt\"\nserver = \"127.0.0.1\"\nport = {port}\n{more}\n")
}

/// Retries and reconnects come soon.
pub const SOON: &str = "[retry]\ninitial = \"20ms\"\nmax = \"200ms\"\nattempts = 3\n";

pub struct Tidings {
    folder: TempDir,
    running: Option<Process>,
    /// What it logged, over all its runs. It is a file, so that nothing is missing there that was logged before an answer; and not in the
    /// folder, which may be gone when a test has failed.
    log: NamedTempFile,
    agent: ureq::Agent,
    /// Where the API is to be, for the next [`Tidings::configure`]; a port of its own choice if nobody says.
    pub listen: String,
    /// Further lines of `[store]`, for the next [`Tidings::configure`].
    pub store_settings: String,
    /// What the next start finds in its environment.
    pub environment: Vec<(&'static str, String)>,
    /// How the last one ended: its exit code, or none if a signal ended it.
    pub exit: Option<i32>,
}

struct Process {
    child: Child,
    address: SocketAddr,
    /// Where publishers connect over MQTT, if they may.
    listener: Option<SocketAddr>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Tidings {
    /// A running service with a new store. The configuration is what the test gives, and a store and a port.
    pub fn start(config: &str) -> Tidings {
        let mut tidings = Tidings::prepare(config);
        tidings.run();
        tidings
    }

    /// A service that has its configuration, and does not run yet.
    pub fn prepare(config: &str) -> Tidings {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_idle_connections(0)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        let tidings = Tidings {
            folder: tempfile::tempdir().unwrap(),
            running: None,
            log: NamedTempFile::new().unwrap(),
            agent,
            listen: "127.0.0.1:0".to_owned(),
            store_settings: String::new(),
            environment: Vec::new(),
            exit: None,
        };
        tidings.configure(config);
        tidings
    }

    /// Writes the configuration for the next start.
    pub fn configure(&self, config: &str) {
        let store = self.store();
        let (settings, listen) = (&self.store_settings, &self.listen);
        let common = format!("[store]\npath = \"{}\"\n{settings}[http]\nlisten = \"{listen}\"\n", store.display());
        // In one step: a service that reads it just now must not find half of it.
        let new = self.config_file().with_extension("new");
        fs::write(&new, common + config).unwrap();
        fs::rename(new, self.config_file()).unwrap();
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("tidings.toml")
    }

    /// Starts it, and waits until it takes reports.
    pub fn run(&mut self) {
        assert!(self.try_run(), "the service did not start: {:#?}", self.log_lines());
        wait_within(PATIENCE, "the service is ready", || self.get("/readyz").is_some_and(|reply| reply.status == 200));
    }

    /// Starts it, and waits until it answers, whether it takes reports or not; false if it ends instead.
    pub fn try_run(&mut self) -> bool {
        assert!(self.running.is_none(), "it runs already");
        let log = fs::OpenOptions::new().append(true).open(self.log.path()).unwrap();
        let before = log.metadata().unwrap().len();
        let mut child = self.spawn(log.into());
        let (mut addresses, until) = (None, Instant::now() + PATIENCE);
        while addresses.is_none() && Instant::now() < until {
            let has_ended = child.try_wait().unwrap().is_some();
            addresses = addresses_in(&self.log_lines_from(before));
            if has_ended {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let Some((address, listener)) = addresses else {
            let _ = child.kill();
            self.exit = child.wait().unwrap().code();
            return false;
        };
        self.running = Some(Process { child, address, listener });
        true
    }

    /// Starts it where no line of its log can be written, as on a full disk, and waits until it takes reports. `listen` has to name the port.
    pub fn run_without_a_log(&mut self) {
        let nowhere = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let child = self.spawn(nowhere.into());
        self.running = Some(Process { child, address: self.listen.parse().unwrap(), listener: None });
        wait_within(PATIENCE, "the service is ready", || self.get("/readyz").is_some_and(|reply| reply.status == 200));
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.running.as_mut().is_some_and(|process| process.child.try_wait().unwrap().is_some())
    }

    /// Whether it was started, and nobody has waited for its end.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn spawn(&self, log: Stdio) -> Child {
        // Another build of it, such as an optimised one, may be put under the same tests.
        let binary = std::env::var_os("TIDINGS_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_tidings").into());
        let mut command = Command::new(binary);
        command.args(["serve", "--log-format", "json", "--config"]).arg(self.config_file());
        for variable in ["TIDINGS_CONFIG", "TIDINGS_URL", "TIDINGS_TOKEN", "TIDINGS_LOG", "NOTIFY_SOCKET"] {
            command.env_remove(variable);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    /// Starts it where it should refuse to: its exit code, and what it logged.
    pub fn refused(&self) -> (Option<i32>, String) {
        let mut child = self.spawn(Stdio::piped());
        let code = wait_for_end(&mut child, "the service refuses to start");
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        (code, lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"))
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let process = self.running.as_mut().expect("it runs");
        process.child.kill().unwrap();
        self.end();
    }

    pub fn terminate(&self) {
        signal(&self.running.as_ref().expect("it runs").child, "TERM");
    }

    /// Takes its time away, in the middle of whatever it does.
    pub fn freeze(&self) {
        signal(&self.running.as_ref().expect("it runs").child, "STOP");
    }

    pub fn thaw(&self) {
        signal(&self.running.as_ref().expect("it runs").child, "CONT");
    }

    /// SIGHUP, and no look at what comes of it.
    pub fn hang_up(&self) {
        signal(&self.running.as_ref().expect("it runs").child, "HUP");
    }

    /// Has it read this configuration, and says whether it was put in force.
    pub fn reload(&self, config: &str) -> bool {
        self.configure(config);
        self.reload_file()
    }

    /// Has it read its file again, and says whether that was put in force.
    pub fn reload_file(&self) -> bool {
        let count = |result: &str| self.metric(&format!("tidings_config_reloads_total{{result=\"{result}\"}}"));
        let (ok, refused) = (count("ok"), count("refused"));
        self.hang_up();
        wait_within(PATIENCE, "the configuration is read again", || count("ok") + count("refused") > ok + refused);
        count("ok") > ok
    }

    /// Runs a command of the binary against this service: its exit code and what it printed.
    pub fn command(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
        command.args(words).arg("--url").arg(format!("http://{}", self.address())).env_remove("TIDINGS_TOKEN").env("USER", "somebody");
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat())
    }

    /// Waits until it has ended, and gives its exit code.
    pub fn end(&mut self) -> Option<i32> {
        let mut process = self.running.take().expect("it runs");
        self.exit = wait_for_end(&mut process.child, "the service ends");
        self.exit
    }

    /// SIGTERM, and then the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.terminate();
        self.end()
    }

    /// Something that ends it by `kill -9` as soon as it is told to, from whatever thread: within a fraction of a millisecond.
    pub fn killer(&self) -> Killer {
        let pid = self.running.as_ref().expect("it runs").child.id();
        let waiting = Command::new("sh").args(["-c", &format!("read now && kill -KILL {pid}")]).stdin(Stdio::piped()).spawn().unwrap();
        Killer(waiting)
    }

    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("it runs").child.id()
    }

    pub fn address(&self) -> SocketAddr {
        self.running.as_ref().expect("it runs").address
    }

    /// Where publishers connect over MQTT.
    pub fn listener(&self) -> SocketAddr {
        self.running.as_ref().expect("it runs").listener.expect("it has a listener")
    }

    pub fn get(&self, path: &str) -> Option<Reply> {
        let mut response = self.agent.get(format!("http://{}{path}", self.address())).call().ok()?;
        let text = response.body_mut().read_to_string().ok()?;
        Some(Reply { status: response.status().as_u16(), text })
    }

    /// Posts JSON to any path; none if there was no answer.
    pub fn post(&self, path: &str, body: &str) -> Option<Reply> {
        let request = self.agent.post(format!("http://{}{path}", self.address())).content_type("application/json");
        let mut response = request.send(body).ok()?;
        let text = response.body_mut().read_to_string().ok()?;
        Some(Reply { status: response.status().as_u16(), text })
    }

    /// The books of a connection, and its lanes.
    pub fn status(&self, connection: &str) -> Value {
        let status = self.get("/v1/status").expect("the service answers").json();
        let found = status["connections"].as_array().unwrap().iter().find(|known| known["name"] == connection);
        found.unwrap_or_else(|| panic!("no connection {connection}: {status}")).clone()
    }

    /// One of the books of the connection `mqtt`.
    pub fn total(&self, name: &str) -> u64 {
        self.status("mqtt")["totals"][name].as_u64().unwrap()
    }

    /// The value of one series of the metrics; 0 if it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").expect("the service answers").text;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    pub fn wait_for_total(&self, name: &str, at_least: u64) {
        wait_within(PATIENCE, &format!("{name} is {at_least}"), || self.total(name) >= at_least);
    }

    /// Waits until nothing is pending on any connection.
    pub fn wait_until_delivered(&self) {
        self.wait_until_delivered_within(PATIENCE);
    }

    pub fn wait_until_delivered_within(&self, limit: Duration) {
        wait_within(limit, "everything is delivered", || {
            let status = self.get("/v1/status").expect("the service answers").json();
            status["connections"].as_array().unwrap().iter().all(|connection| connection["backlog"] == 0)
        });
    }

    /// Nothing is missing in the books, and the equation of the promise holds for the numbers as they stand.
    pub fn assert_balanced(&self) {
        let status = self.get("/v1/status").expect("the service answers").json();
        for connection in status["connections"].as_array().unwrap() {
            let totals = &connection["totals"];
            let of = |name: &str| totals[name].as_u64().unwrap();
            let ended = of("acknowledged") + of("sent") + of("dead") + of("expired") + of("discarded");
            assert_eq!(of("created"), of("pending") + ended, "{totals}");
            assert_eq!(totals["balanced"], true, "{totals}");
        }
    }

    /// The lines logged so far that hold this text.
    pub fn logged(&self, text: &str) -> Vec<Value> {
        self.log_lines().into_iter().filter(|line| line.to_string().contains(text)).collect()
    }

    /// What it logged, over all its runs.
    fn log_lines(&self) -> Vec<Value> {
        self.log_lines_from(0)
    }

    /// The same, from a place in the file on: some tests start it hundreds of times.
    fn log_lines_from(&self, start: u64) -> Vec<Value> {
        let mut log = Vec::new();
        let mut file = fs::File::open(self.log.path()).unwrap();
        file.seek(SeekFrom::Start(start)).and_then(|_| file.read_to_end(&mut log)).unwrap();
        // What has no end yet is just being written.
        let whole = log.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text = String::from_utf8_lossy(&log[..whole]);
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| Value::String(line.to_owned()))).collect()
    }

    pub fn client(&self) -> Client {
        Client { agent: self.agent.clone(), address: self.address() }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Tidings {
    fn drop(&mut self) {
        if let Some(mut process) = self.running.take() {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        if std::thread::panicking() {
            for line in self.log_lines().iter().rev().take(40).rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// Where it says that it listens: for HTTP, and for publishers over MQTT, if they may.
fn addresses_in(log: &[Value]) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let mut listener = None;
    for line in log {
        listener = line["listener"].as_str().and_then(|address| address.parse().ok()).or(listener);
        if let Some(address) = line["address"].as_str() {
            return Some((address.parse().unwrap(), listener));
        }
    }
    None
}

/// See [`Tidings::killer`].
pub struct Killer(Child);

impl Killer {
    pub fn kill(&mut self) {
        // A second time finds nobody.
        let _ = self.0.stdin.as_mut().expect("it is piped").write_all(b"now\n");
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Posts reports; may be given to a thread.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    pub address: SocketAddr,
}

impl Client {
    /// Posts a body; none if there was no answer.
    pub fn post(&self, body: &[u8], content_type: &str, key: Option<&str>) -> Option<Reply> {
        let mut request = self.agent.post(format!("http://{}/v1/reports", self.address)).content_type(content_type);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let mut response = request.send(body).ok()?;
        let text = response.body_mut().read_to_string().ok()?;
        Some(Reply { status: response.status().as_u16(), text })
    }
}
