//! mosquitto as a process: on a free port, in a folder of its own, gone with the test.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{PATIENCE, signal, wait_for_end, wait_within};

/// Keeps sessions and messages over a restart, and queues without a bound.
pub const PERSISTENT: &str = "persistence true\nmax_queued_messages 0\n";

/// mosquitto 2.0.11 gives a subscriber whose window is full what comes next before what is queued for it (seen in its log: received as 770
/// and 775, sent as 775 and 770). Without a window there is no queue, and the subscriber sees the order in which Tidings published. Not for
/// tests that stop it while reports flow: without a window it sends the subscriber QoS 2 twice after a restart.
pub const IN_ORDER: &str = "max_inflight_messages 0\n";

/// Logs every packet, for [`Mosquitto::taken`].
pub const WITH_PACKETS: &str = "log_type all\nlog_dest stderr\n";

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
        Mosquitto::prepare_at(free_port(), config)
    }

    /// The same, on a port that somebody knows already.
    pub fn prepare_at(port: u16, config: &str) -> Mosquitto {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().display();
        // Started by root it would give up root, and with it the folder.
        let common = format!("listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence_location {data}/\n");
        fs::write(folder.path().join("mosquitto.conf"), common + config).unwrap();
        Mosquitto { port, folder, running: None }
    }

    /// The same with further lines in its configuration: such as name files in its folder.
    pub fn with(self, config: &str) -> Mosquitto {
        let file = self.folder.path().join("mosquitto.conf");
        fs::write(&file, fs::read_to_string(&file).unwrap() + config).unwrap();
        self
    }

    pub fn run(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let config = self.folder.path().join("mosquitto.conf");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("mosquitto");
        // Where it has to speak an older TLS than it would: mosquitto itself knows the lowest version only.
        let openssl = self.folder.path().join("openssl.cnf");
        if openssl.exists() {
            command.env("OPENSSL_CONF", openssl);
        }
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

    /// `kill -9`: what it has not written down by then is lost.
    pub fn kill(&mut self) {
        let mut child = self.running.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Has it read its configuration, its users and their rights again.
    pub fn reload(&self) {
        signal(self.running.as_ref().expect("it runs"), "HUP");
    }

    /// Has it write down what it holds, and gives the file as it is then.
    pub fn saved(&self) -> Vec<u8> {
        let file = self.saved_file();
        let _ = fs::remove_file(&file);
        signal(self.running.as_ref().expect("it runs"), "USR1");
        // It writes another file and renames it.
        wait_within(PATIENCE, "mosquitto saves", || file.exists());
        fs::read(file).unwrap()
    }

    /// Puts back what it held once, for its next start.
    pub fn put_back(&self, saved: &[u8]) {
        assert!(self.running.is_none(), "it would write its own over that");
        fs::write(self.saved_file(), saved).unwrap();
    }

    fn saved_file(&self) -> std::path::PathBuf {
        self.folder.path().join("mosquitto.db")
    }

    /// Takes its time away: connections stay open, and nothing answers.
    pub fn freeze(&self) {
        signal(self.running.as_ref().expect("it runs"), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.running.as_ref().expect("it runs"), "CONT");
    }

    /// What it took from lanes, as it passed it on: topic and packet identifier, at QoS 1 by PUBACK and at QoS 2 by PUBREL, each the
    /// first time only. Of one topic the identifiers rise as long as they have not come round.
    pub fn taken(&self) -> Vec<(String, u16)> {
        let log = fs::read_to_string(self.log_file()).unwrap();
        let (mut taken, mut seen, mut topics) = (Vec::new(), HashSet::new(), HashMap::new());
        for line in log.lines() {
            let Some((_, packet)) = line.split_once(": ") else { continue };
            let passed_on = if let Some(publish) = packet.strip_prefix("Received PUBLISH from ") {
                let (client, fields) = publish.split_once(" (").unwrap();
                let fields: Vec<&str> = fields.splitn(6, ", ").collect();
                topics.insert((client, fields[3][1..].parse::<u16>().unwrap()), fields[4].trim_matches('\'').to_owned());
                continue;
            } else if let Some(release) = packet.strip_prefix("Received PUBREL from ") {
                release.trim_end_matches(')').split_once(" (Mid: ")
            } else if let Some(ack) = packet.strip_prefix("Sending PUBACK to ") {
                ack.strip_suffix(", rc0)").and_then(|ack| ack.split_once(" (m"))
            } else {
                None
            };
            let Some((client, packet_id)) = passed_on else { continue };
            let packet_id = packet_id.parse::<u16>().unwrap();
            let topic = topics.get(&(client, packet_id)).filter(|topic| seen.insert(((*topic).clone(), packet_id)));
            taken.extend(topic.map(|topic| (topic.clone(), packet_id)));
        }
        taken
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// It took the reports of each topic in order. The identifiers tell nothing about topics of which it has refused a report: what it
    /// refused, and what waited behind that, came again under later ones.
    pub fn assert_taken_in_order(&self, with_refused: &HashSet<String>) {
        let mut newest = HashMap::new();
        for (topic, packet_id) in self.taken().into_iter().filter(|(topic, _)| !with_refused.contains(topic)) {
            let before = newest.insert(topic.clone(), packet_id).unwrap_or(0);
            assert!(before < packet_id, "{topic}: {packet_id} after {before}\n{}", self.logged_about(&topic, [before, packet_id]));
        }
    }

    /// What the log says about two packets and their topic, and about connections.
    fn logged_about(&self, topic: &str, packet_ids: [u16; 2]) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap();
        let quoted = format!("'{topic}'");
        let of_packet =
            |line: &str| packet_ids.iter().any(|id| line.contains(&format!("m{id}, ")) || line.contains(&format!("Mid: {id})")));
        let is_told = |line: &&str| {
            !line.contains(" ledger") && (of_packet(line) || line.contains(&quoted) || line.contains("connect") || line.contains("version"))
        };
        log.lines().filter(is_told).collect::<Vec<_>>().join("\n")
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

/// A port that nobody listens on, for a server that can't be asked which one it took. Not one that the system gives to connections and to
/// whoever binds port 0 (32768 and more on Linux): somebody could get it before that server does.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    loop {
        // Processes that run at the same time begin apart.
        let offset = u64::from(std::process::id()) * 97 + u64::from(TAKEN.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(offset % PORTS.len() as u64).expect("below the number of ports");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// How long a broker is away in tests that take it away "for seconds".
pub const AWAY: Duration = Duration::from_secs(3);
