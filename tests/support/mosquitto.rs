//! mosquitto as a process: on a free port, in a folder of its own, gone with the test.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{PATIENCE, signal, wait_for_end, wait_within};

/// Keeps sessions and messages over a restart, and queues without a bound; everything else is mosquitto's default.
pub const PERSISTENT: &str = "persistence true\nmax_queued_messages 0\n";

pub struct Mosquitto {
    pub port: u16,
    folder: TempDir,
    running: Option<Child>,
}

impl Mosquitto {
    /// A running mosquitto with these lines in its configuration.
    pub fn start(config: &str) -> Mosquitto {
        let mut mosquitto = Mosquitto::prepare(config);
        mosquitto.run();
        mosquitto
    }

    /// A mosquitto that has its port and its configuration, and does not run yet.
    pub fn prepare(config: &str) -> Mosquitto {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let data = folder.path().display();
        // Started by root it would give up root, and with it the folder.
        let common = format!("listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence_location {data}/\n");
        fs::write(folder.path().join("mosquitto.conf"), common + config).unwrap();
        Mosquitto { port, folder, running: None }
    }

    pub fn run(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let config = self.folder.path().join("mosquitto.conf");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("mosquitto");
        command.arg("-c").arg(&config).env("PATH", path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!("these tests need a real broker: install mosquitto (Debian's package `mosquitto`)")
            }
            spawned => spawned.unwrap(),
        };
        let child = self.running.insert(child);
        let port = self.port;
        wait_within(PATIENCE, "mosquitto listens", || {
            assert!(child.try_wait().unwrap().is_none(), "mosquitto ended at once");
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    /// Stops it in order, so that it writes down what it holds.
    pub fn stop(&mut self) {
        let mut child = self.running.take().expect("it runs");
        signal(&child, "TERM");
        wait_for_end(&mut child, "mosquitto stops");
    }

    /// Takes its time away: connections stay open, and nothing answers.
    pub fn freeze(&self) {
        signal(self.running.as_ref().expect("it runs"), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.running.as_ref().expect("it runs"), "CONT");
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log_file(&self) -> std::path::PathBuf {
        self.folder.path().join("mosquitto.log")
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            // SIGKILL also ends one that is frozen.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that nobody listens on, for a server that can't be asked which one it took.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// How long a broker is away in tests that take it away "for seconds".
pub const AWAY: Duration = Duration::from_secs(3);
