//! A NATS server with JetStream, for one test or for many: on a free port, in a folder of its own, gone when whoever started it is.
//!
//! It runs under a shell that waits for its input to end. So it ends with the test's process too, however that ends, and the folder goes with it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
const PATIENCE: Duration = Duration::from_secs(20);

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
        Nats::start_as(&std::env::var(FOR_CLUSTERS).unwrap_or_else(|_| INSTALLED.to_owned()), "keep", more)
    }

    /// Starts three that are one cluster.
    pub fn cluster() -> Vec<Nats> {
        let bound: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let routes: Vec<String> = bound.iter().map(|port| format!("nats://{}", port.local_addr().unwrap())).collect();
        drop(bound);
        let all = routes.join(",");
        let start = |(number, own): (usize, &String)| {
            let name = format!("nats-{number}");
            Nats::start_one_of_several(&["--server_name", &name, "--cluster_name", "test", "--cluster", own, "--routes", &all])
        };
        routes.iter().enumerate().map(start).collect()
    }

    /// Starts one for a whole run of tests, which nobody drops: it ends with the process.
    pub fn for_the_process() -> Nats {
        Nats::start_as(INSTALLED, "delete", &[])
    }

    fn start_as(program: &str, keep: &'static str, more: &[&str]) -> Nats {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(found.is_ok(), "{program} is missing: install the package `nats-server`");
        let folder = tempfile::tempdir().unwrap().keep();
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        let mut nats = Nats { program: program.to_owned(), folder, keep, more, port: 0, server: None };
        nats.run();
        nats
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
        let ports = self.folder.join("ports");
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir_all(&ports).unwrap();
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let store = self.folder.join("store");
        let arguments =
            ["-a", "127.0.0.1", "-p", &port, "-js", "-sd", store.to_str().unwrap(), "--ports_file_dir", ports.to_str().unwrap()];
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
        let until = Instant::now() + PATIENCE;
        self.port = loop {
            if let Some(port) = written(&ports) {
                break port;
            }
            assert!(Instant::now() < until, "{}", std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(20));
        };
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "the server does not answer");
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

/// The port that the server says it has.
fn written(ports: &Path) -> Option<u16> {
    let file = std::fs::read_dir(ports).ok()?.next()?.ok()?.path();
    let text = std::fs::read_to_string(file).ok()?;
    let after = text.split("127.0.0.1:").nth(1)?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
