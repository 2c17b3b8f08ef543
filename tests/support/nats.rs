//! A NATS server with JetStream, for one test or for many: on a free port, in a folder of its own, gone when whoever started it is.
//!
//! It runs under a shell that waits for its input to end. So it ends with the test's process too, however that ends, and the folder goes with it.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Starts the server, says its process id, and ends it by that when the input ends.
const KEEPER: &str = r#"folder=$1; keep=$2; program=$3; shift 3
"$program" "$@" >>"$folder/server.log" 2>&1 &
server=$!
echo $server
while read line; do :; done
kill -9 $server 2>/dev/null
wait $server 2>/dev/null
test "$keep" = keep || rm -rf "$folder""#;

/// A server is up in a fraction of this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names the nats-server that clusters are made of: older ones have faults that no client gets round.
const FOR_CLUSTERS: &str = "TIDINGS_CLUSTER_NATS_SERVER";

/// The one that is installed.
const INSTALLED: &str = "nats-server";

/// A running server.
pub struct Nats {
    program: String,
    folder: PathBuf,
    /// Whether the folder outlives a crash of the server.
    keep: &'static str,
    more: Vec<String>,
    port: u16,
    server: Option<Running>,
}

struct Running {
    keeper: Child,
    id: u32,
}

impl Nats {
    /// Starts one.
    pub fn start() -> Nats {
        Nats::start_with(&[])
    }

    /// Starts one with these further arguments.
    pub fn start_with(more: &[&str]) -> Nats {
        Nats::start_as(INSTALLED, "keep", more)
    }

    /// Starts one that is to be of a cluster, with these further arguments: the one that the environment names, or else the one that is installed.
    pub fn start_one_of_several(more: &[&str]) -> Nats {
        Nats::start_as(&for_clusters(), "keep", more)
    }

    /// Starts three that are one cluster.
    pub fn cluster() -> Vec<Nats> {
        let routes: Vec<String> = (0..3).map(|_| format!("nats://127.0.0.1:{}", free_port())).collect();
        let (program, all) = (for_clusters(), routes.join(","));
        let prepare = |(number, own): (usize, &String)| {
            let name = format!("nats-{number}");
            Nats::prepare(&program, "keep", &["--server_name", &name, "--cluster_name", "test", "--cluster", own, "--routes", &all])
        };
        let mut servers: Vec<Nats> = routes.iter().enumerate().map(prepare).collect();
        servers.iter_mut().for_each(Nats::launch);
        servers.iter().for_each(Nats::wait_until_it_listens);
        servers
    }

    /// Starts one for a whole run of tests, which nobody drops: it ends with the process.
    pub fn for_the_process() -> Nats {
        Nats::start_as(INSTALLED, "delete", &[])
    }

    fn start_as(program: &str, keep: &'static str, more: &[&str]) -> Nats {
        let mut nats = Nats::prepare(program, keep, more);
        nats.run();
        nats
    }

    /// One that has its port and does not run yet.
    fn prepare(program: &str, keep: &'static str, more: &[&str]) -> Nats {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(found.is_ok(), "{program} is missing: install the package `nats-server`");
        let folder = tempfile::tempdir().unwrap().keep();
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        Nats { program: program.to_owned(), folder, keep, more, port: free_port(), server: None }
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// What it logs.
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// Starts it again, at the same address, with what it holds.
    pub fn run(&mut self) {
        self.launch();
        self.wait_until_it_listens();
    }

    fn launch(&mut self) {
        let (port, store) = (self.port.to_string(), self.folder.join("store"));
        let arguments = ["-a", "127.0.0.1", "-p", &port, "-js", "-sd", store.to_str().unwrap()];
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh", self.folder.to_str().unwrap(), self.keep, &self.program])
            .args(arguments)
            .args(&self.more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.server = Some(Running { keeper, id: line.trim().parse().unwrap() });
    }

    /// It takes clients when all else of it is in place.
    fn wait_until_it_listens(&self) {
        let server = self.server.as_ref().expect("it runs");
        let log = || std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(!server.has_ended(), "the server ended at once:\n{}", log());
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            assert!(Instant::now() < until, "the server does not answer:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let Some(Running { mut keeper, id }) = self.server.take() else { return };
        let killed = Command::new("kill").args(["-9", &id.to_string()]).status().unwrap();
        assert!(killed.success());
        drop(keeper.stdin.take());
        keeper.wait().unwrap();
    }

    /// Stops it where it stands, or lets it go on.
    pub fn signal(&self, signal: &str) {
        let id = self.server.as_ref().expect("it runs").id;
        assert!(Command::new("kill").args([signal, &id.to_string()]).status().unwrap().success());
    }
}

impl Running {
    /// Whether the server has ended by itself, as far as the system tells: some shells have waited for it by then, and with others it is a zombie.
    fn has_ended(&self) -> bool {
        match std::fs::read_to_string(format!("/proc/{}/stat", self.id)) {
            Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, after)| after.starts_with(" Z")),
            Err(_) => Path::new("/proc/self/stat").exists(),
        }
    }
}

fn for_clusters() -> String {
    std::env::var(FOR_CLUSTERS).unwrap_or_else(|_| INSTALLED.to_owned())
}

/// A port that nobody listens on, and that the system gives to nobody else (as `mosquitto::free_port`, from other ones).
fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 12_000..20_000;
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

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
