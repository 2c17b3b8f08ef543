//! The service under test: this very binary, in a process of its own, configured by a file like anybody's.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep};

use super::client::{self, Connection, Requests};
use super::nats::Nats;
use super::plan::{BATCH, LANES, WINDOW};
use super::process::Process;
use super::reports::Report;
use super::{Bench, BenchError, place};
use crate::admin::status::{Books, Status};

/// The topics begin with this: a broker that was there before may hold others.
pub const PREFIX: &str = "tidings-bench";

/// It is up within this, also with a store that was killed while it was full.
const START: Duration = Duration::from_secs(120);

/// It has stopped within this; it bounds itself.
const STOP: Duration = Duration::from_secs(60);

/// How often it is asked how far it is.
const ASK: Duration = Duration::from_millis(5);

/// Slower than this, in reports a second, it has stopped working.
const SLOWEST: u64 = 200;

/// Connections that fill a backlog.
const FILLING: usize = 4;

/// How it is configured.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Where it delivers to; none: to nobody, so that a backlog grows.
    pub broker: Option<SocketAddr>,
    /// The QoS of every reporter.
    pub qos: u8,
    /// Lanes.
    pub lanes: u32,
    /// Deliveries in flight on each.
    pub window: u16,
    /// Whether publishers connect over MQTT.
    pub has_listener: bool,
}

impl Settings {
    /// The service's defaults, at QoS 1.
    pub fn to(broker: Option<SocketAddr>) -> Settings {
        Settings { broker, qos: 1, lanes: LANES, window: WINDOW, has_listener: false }
    }
}

/// A service with a store of its own. Dropped, it is killed and its store is deleted.
pub struct Service<'b> {
    bench: &'b Bench,
    folder: PathBuf,
    /// Where its log is, if not in its folder: lines of `[store]`.
    elsewhere: Option<String>,
    runs: u32,
    running: Option<Running>,
    /// Deliveries that were done when it was asked last.
    done: u64,
    /// A port that is taken and where nobody listens, so that nobody begins to.
    nowhere: (TcpSocket, SocketAddr),
}

struct Running {
    process: Process,
    address: SocketAddr,
    listener: Option<SocketAddr>,
    /// For asking.
    connection: Connection,
}

impl<'b> Service<'b> {
    /// A service that does not run yet.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new(bench: &'b Bench, name: &str) -> Result<Service<'b>, BenchError> {
        let taken = TcpSocket::new_v4().and_then(|socket| {
            socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        });
        let nowhere = taken.map_err(BenchError::file("there is no free port"))?;
        Ok(Service { bench, folder: bench.scratch.folder(name)?, elsewhere: None, runs: 0, running: None, done: 0, nowhere })
    }

    /// Has it keep its log on these servers, if there are any, and not in its folder.
    pub fn keep_on(&mut self, nats: Option<&Nats>) {
        self.elsewhere = nats.map(Nats::store);
    }

    /// Starts it, and says how long that took: from the process to where reports are taken.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(&mut self, settings: Settings) -> Result<Duration, BenchError> {
        let file = self.folder.join("tidings.toml");
        fs::write(&file, self.configuration(settings)).map_err(BenchError::file("the service's configuration can't be written"))?;
        self.runs += 1;
        let said = self.folder.join(format!("log-{}", self.runs));
        let mut command = Command::new(&self.bench.program);
        command.args(["serve", "--log-format", "json", "--config"]).arg(&file).stdin(Stdio::null());
        for variable in ["TIDINGS_CONFIG", "TIDINGS_LOG", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"] {
            command.env_remove(variable);
        }
        let begin = Instant::now();
        let mut process = Process::start("the service", &mut command, &said)?;
        let (address, listener) = process.until_said(START, addresses).await?;
        let took = begin.elapsed();
        let connection = Connection::open(address).await?;
        self.running = Some(Running { process, address, listener, connection });
        if settings.broker.is_none() {
            // Nothing changes now, so this is from where the next delivery is counted.
            self.books().await?;
        }
        Ok(took)
    }

    fn configuration(&self, settings: Settings) -> String {
        let Settings { broker, qos, lanes, window, has_listener } = settings;
        let broker = broker.unwrap_or(self.nowhere.1);
        // A JSON string is a TOML string.
        let in_folder = || format!("path = {}\n", serde_json::Value::from(self.store().to_string_lossy()));
        let store = self.elsewhere.clone().unwrap_or_else(in_folder);
        let listener = if has_listener { "[listener]\nlisten = \"127.0.0.1:0\"\nconnection = \"mqtt\"\n" } else { "" };
        let reporter = format!("{{ topic = \"{PREFIX}/{{tenant}}/{{pipeline}}/{{project}}/{{branch}}/{{change}}\", qos = {qos} }}");
        let pipelines =
            ["check", "gate"].map(|name| format!("[[pipeline]]\nname = \"{name}\"\nstart.mqtt = {reporter}\nsuccess.mqtt = {reporter}\n"));
        format!(
            "[store]\n{store}[http]\nlisten = \"127.0.0.1:0\"\n{listener}\
             [connection.mqtt]\ndriver = \"mqtt\"\nserver = \"{}\"\nport = {}\nworkers = {lanes}\nwindow = {window}\nwindow_3_1_1 = {window}\n{}",
            broker.ip(),
            broker.port(),
            pipelines.concat()
        )
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    fn running(&mut self) -> &mut Running {
        self.running.as_mut().expect("a section asks a service that it has started")
    }

    /// Where it takes reports.
    pub fn address(&mut self) -> SocketAddr {
        self.running().address
    }

    /// Where publishers connect.
    pub fn listener(&mut self) -> SocketAddr {
        self.running().listener.expect("a section that publishes has configured a listener")
    }

    /// Its process.
    pub fn process(&mut self) -> &Process {
        &self.running().process
    }

    /// Stops it in order.
    ///
    /// # Errors
    /// If it does not stop as it should.
    pub async fn stop(&mut self) -> Result<(), BenchError> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.process.stop(STOP).await
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Deletes its store, so that the next start begins with nothing.
    pub fn forget(&mut self) {
        self.kill();
        self.done = 0;
        place::delete(&self.store());
    }

    /// Bytes of its log on disk.
    pub fn log_bytes(&self) -> u64 {
        bytes_in(&self.store())
    }

    /// Posts so many reports, and waits until they are accepted.
    ///
    /// # Errors
    /// If one is not.
    pub async fn fill(&mut self, reports: &[Report], count: u64) -> Result<(), BenchError> {
        let requests = Requests::ndjson(reports, BATCH);
        client::load(self.address(), FILLING, &requests, count).await?;
        Ok(())
    }

    /// The books of its connection.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn books(&mut self) -> Result<Books, BenchError> {
        let body = self.running().connection.get("/v1/status").await?;
        let status: Status =
            serde_json::from_slice(&body).map_err(|error| BenchError::Wire(format!("the status can't be read: {error}")))?;
        let connection = status.connections.into_iter().find(|connection| connection.name == "mqtt");
        let books = connection.ok_or_else(|| BenchError::Wire("the status has no connection".into()))?.totals;
        self.done = books.acknowledged + books.sent;
        Ok(books)
    }

    /// Waits until `count` deliveries more are done than when it was asked last, and says at what rate they were, in reports a second: from when the first of them are seen to be
    /// done, so that connecting is not in it.
    ///
    /// # Errors
    /// If one fails, or it takes too long.
    pub async fn deliver(&mut self, count: u64) -> Result<f64, BenchError> {
        let limit = Duration::from_secs(60 + count / SLOWEST);
        let (begin, before) = (Instant::now(), self.done);
        let mut first: Option<(Instant, u64)> = None;
        loop {
            let books = self.books().await?;
            let (now, done) = (Instant::now(), self.done - before);
            let failed = books.dead + books.expired + books.discarded;
            if failed > 0 {
                return Err(BenchError::Count { what: "deliveries that failed".into(), expected: 0, found: failed });
            }
            if done > 0 && first.is_none() {
                first = Some((now, done));
            }
            if done >= count {
                let (since, already) = first.unwrap_or((begin, 0));
                // Short runs may be over before they are seen: then all of it counts, connecting too.
                return Ok(match done - already > count / 2 {
                    true => (done - already) as f64 / (now - since).as_secs_f64(),
                    false => done as f64 / (now - begin).as_secs_f64(),
                });
            }
            if begin.elapsed() > limit {
                return Err(BenchError::OutOfTime { what: format!("{count} deliveries ({done} done)"), limit_s: limit.as_secs() });
            }
            sleep(ASK).await;
        }
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Where it says that it listens: for HTTP, and for publishers over MQTT.
fn addresses(said: &str) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let mut listener = None;
    for line in said.lines() {
        // A line that is just being written is read again.
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        listener = line["listener"].as_str().and_then(|address| address.parse().ok()).or(listener);
        if let Some(address) = line["address"].as_str().and_then(|address| address.parse().ok()) {
            return Some((address, listener));
        }
    }
    None
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        // The ballast is no log: nobody reads it.
        Ok(metadata) if entry.file_name() != "ballast" => metadata.len(),
        _ => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_once_both_are_said() {
        let listener = r#"{"listener":"127.0.0.1:5","message":"MQTT publishers are served"}"#;
        let http = r#"{"address":"127.0.0.1:6","message":"tidings is accepting reports"}"#;
        assert_eq!(addresses(listener), None);
        assert_eq!(addresses(&format!("{listener}\n{}", &http[..20])), None);
        let both = (("127.0.0.1:6").parse().unwrap(), Some("127.0.0.1:5".parse().unwrap()));
        assert_eq!(addresses(&format!("{listener}\n{http}\n")), Some(both));
    }
}
