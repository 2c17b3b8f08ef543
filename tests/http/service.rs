//! The service under test on a port of its own, and a client that says exactly what it is told to.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidings::admin::cluster::Cluster;
use tidings::admin::settings::Settings;
use tidings::admin::{self, Admin};
use tidings::config::{self, Config};
use tidings::core::event::{Event, LanePurpose};
use tidings::core::types::{ConnectionName, InstanceId, Millis};
use tidings::delivery::board::Board;
use tidings::ingest::accept::Ingest;
use tidings::ingest::http;
use tidings::ingest::lanes::LaneSpan;
use tidings::ingest::routing::{InForce, Routing};
use tidings::log::committer::{self, LogHandle};
use tidings::log::memory_log::{self, MemoryLog};
use tidings::log::sled_log::{Options, SledLog};
use tidings::metrics::Metrics;
use tidings::server;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::disk::Disk;

/// Nothing that works takes so long; what takes longer has hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The store is full beyond this.
pub const MAX_SIZE: u64 = 1 << 30;

const CONFIG: &str = r#"
[connection.mqtt]
driver = "mqtt"
[connection.second]
driver = "mqtt"
workers = 2
[[pipeline]]
name = "check"
success.mqtt = { topic = "{tenant}/{pipeline}/{project}/{change}", qos = 2 }
failure.mqtt = { topic = "{tenant}/failed/{project}", qos = 1, retain = true }
failure.second = { topic = "all", qos = 0, include-returned-data = true }
start.mqtt = { topic = "{changes[0][topic]}" }
"#;

/// What a test may set.
pub struct Setup {
    pub config: &'static str,
    pub disk: Disk,
    /// The folder of a real store, instead of `disk`.
    pub store: Option<PathBuf>,
    /// A log of several instances, instead of `disk`.
    pub shared: Option<Shared>,
    pub max_report: usize,
    pub max_batch: usize,
    pub http: http::Limits,
    pub server: server::Limits,
}

/// A log that others have open as well, and what this instance knows of them.
#[derive(Clone)]
pub struct Shared {
    pub disk: memory_log::Disk,
    pub instance: InstanceId,
    pub cluster: watch::Receiver<Option<Cluster>>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            config: CONFIG,
            disk: Disk::default(),
            store: None,
            shared: None,
            max_report: 64 << 10,
            max_batch: 1 << 20,
            http: http::Limits::default(),
            server: server::Limits { stop_timeout: PATIENCE * 3, ..server::Limits::default() },
        }
    }
}

pub struct Service {
    pub address: SocketAddr,
    pub disk: Disk,
    pub log: LogHandle,
    pub board: Arc<Board>,
    pub runtime: Runtime,
    stop: watch::Sender<bool>,
    announce: watch::Sender<bool>,
    serving: Option<JoinHandle<()>>,
}

pub fn start() -> Service {
    start_with(Setup::default())
}

pub fn start_with(setup: Setup) -> Service {
    let config = config::from_str(setup.config, "test.toml").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (metrics, board) = (Arc::new(Metrics::new()), Arc::new(Board::default()));
    let limits = committer::Limits { max_size: MAX_SIZE, retention_ms: 3_600_000 };
    let opened = match (&setup.store, &setup.shared) {
        (Some(store), _) => SledLog::open(store, Options::default()).unwrap(),
        (None, Some(shared)) => MemoryLog::open_shared(&shared.disk).unwrap(),
        (None, None) => setup.disk.open(),
    };
    let outbox = committer::recover(&opened).unwrap();
    let known: Vec<ConnectionName> = outbox.connections().keys().cloned().collect();
    let log = {
        let _inside = runtime.enter();
        match &setup.shared {
            Some(shared) => committer::start_shared(opened.log, outbox, limits, Arc::clone(&metrics), shared.instance).unwrap(),
            None => committer::start(opened.log, outbox, limits, Arc::clone(&metrics)).unwrap(),
        }
    };
    let lanes = lanes(&config);
    runtime.block_on(async {
        for (connection, span) in lanes.iter().filter(|(name, _)| !known.contains(name)).cloned() {
            let (first, count) = (span.first, span.count.get());
            log.record(vec![Event::LanesChanged { connection, first, count, purpose: LanePurpose::Fresh, at: Millis(1) }]).await.unwrap();
        }
    });
    let connections = config.connections.iter().map(|connection| connection.name.clone()).collect();
    let shown = Settings { connections, file: None, since: Millis(1), refused: None, restart_needed: Vec::new() };
    // Nobody moves anything here.
    let (moves, _) = mpsc::channel(1);
    let (stop, stopping) = watch::channel(false);
    let (announce, announced) = watch::channel(false);
    let admin = Admin::new(log.clone(), Arc::clone(&board), Arc::clone(&metrics), watch::channel(shown).1, moves, announced);
    let admin = match setup.shared {
        Some(shared) => admin.with_cluster(shared.cluster),
        None => admin,
    };
    let (lanes, max_report, max_batch) = (lanes.into_iter().collect(), setup.max_report, setup.max_batch);
    let routing = InForce::new(Routing { routes: config.routes, lanes, max_report, max_batch });
    let ingest = Ingest { log: log.clone(), routing, metrics };
    let app = http::routes(ingest, setup.http).merge(admin::routes(admin));
    let (address, serving) = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stopping = stopping;
        let told = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        (listener.local_addr().unwrap(), tokio::spawn(server::serve(listener, app, setup.server, told)))
    });
    Service { address, disk: setup.disk, log, board, runtime, stop, announce, serving: Some(serving) }
}

fn lanes(config: &Config) -> Vec<(ConnectionName, LaneSpan)> {
    let span = |workers| LaneSpan { first: 0, count: NonZeroU32::new(workers).unwrap() };
    config.connections.iter().map(|connection| (connection.name.clone(), span(connection.workers))).collect()
}

/// A report of this action, with this change number.
pub fn report(action: &str, change: u32) -> String {
    format!(r#"{{"action":"{action}","tenant":"acme","pipeline":"check","project":"widgets","change":"{change}"}}"#)
}

/// A report of exactly so many bytes: JSON takes any white space at its end.
pub fn padded(size: usize) -> String {
    let report = report("success", 1);
    let padding = " ".repeat(size - report.len());
    report + &padding
}

pub const JSON: &str = "Content-Type: application/json\r\n";
pub const NDJSON: &str = "Content-Type: application/x-ndjson\r\n";

impl Service {
    /// Says that a stop is coming, and serves on.
    pub fn announce_stop(&self) {
        self.announce.send(true).unwrap();
    }

    pub fn tell_to_stop(&self) {
        self.stop.send(true).unwrap();
    }

    /// Waits until the server has returned.
    pub fn wait_for_stop(&mut self) {
        let serving = self.serving.take().unwrap();
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, serving).await }).expect("the server stops").unwrap();
    }

    /// Stops everything; the disk stays.
    pub fn end(mut self) -> Disk {
        self.tell_to_stop();
        self.wait_for_stop();
        self.runtime.block_on(self.log.stop()).unwrap();
        self.disk.clone()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Posts a body with a right length. `headers` are whole lines.
    pub fn post(&self, headers: &str, body: &[u8]) -> Reply {
        let head = format!("POST /v1/reports HTTP/1.1\r\nHost: {}\r\n{headers}Content-Length: {}\r\n", self.address, body.len());
        self.say(&[format!("{head}Connection: close\r\n\r\n").as_bytes(), body].concat())
    }

    pub fn get(&self, path: &str) -> Reply {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).as_bytes())
    }

    /// Says exactly this on a connection of its own, and reads what comes until it is closed.
    pub fn say(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        // The service may hang up in the middle; what it said before is what counts.
        let _ = stream.write_all(bytes);
        Reply::read(&mut stream)
    }

    /// The value of one series.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").text;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 0: the connection was closed without one.
    pub status: u16,
    pub head: String,
    pub text: String,
}

impl Reply {
    pub fn read(stream: &mut TcpStream) -> Reply {
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        if let Err(error) = read {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "neither an answer nor a close");
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, text) = text.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
        Reply { status, head: head.to_ascii_lowercase(), text: text.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn field(&self) -> Option<String> {
        self.json()["error"]["field"].as_str().map(str::to_owned)
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    }
}

/// Waits for a condition, with a limit.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}
