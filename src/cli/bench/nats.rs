//! nats-server as processes: one, or three that are a cluster, on free ports, with what they keep in the scratch folder.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::Connection;
use super::mosquitto::free_address;
use super::process::{LOOK, Process};
use super::{Bench, BenchError};

/// The program, and its package.
pub const NAME: &str = "nats-server";

/// They have found each other within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the log may take there: the servers set that aside, and share one disk here.
pub const MAX_SIZE: u64 = 1 << 30;

/// The stream.
pub const STREAM: &str = "bench";

/// Servers that run. Dropped, they are gone.
pub struct Nats {
    clients: Vec<SocketAddr>,
    _processes: Vec<Process>,
}

impl Nats {
    /// Starts so many, with nothing in them.
    ///
    /// # Errors
    /// If it is not installed, or they don't start.
    pub async fn start(bench: &Bench, servers: usize) -> Result<Nats, BenchError> {
        let folder = bench.scratch.folder("nats")?;
        let mut addresses = Vec::with_capacity(servers);
        for _ in 0..servers {
            addresses.push([free_address()?, free_address()?, free_address()?]);
        }
        let routes: Vec<String> = addresses.iter().map(|[_, route, _]| format!("nats://{route}")).collect();
        let mut processes = Vec::with_capacity(servers);
        for (number, [client, route, monitor]) in addresses.iter().enumerate() {
            let store = folder.join(number.to_string());
            let mut command = Command::new(NAME);
            command.args(["-a", "127.0.0.1", "-p", &client.port().to_string(), "-m", &monitor.port().to_string(), "-js", "-sd"]);
            command.arg(&store).args(["--server_name", &format!("nats-{number}")]).stdin(Stdio::null());
            if servers > 1 {
                command.args(["--cluster_name", "bench", "--cluster", &format!("nats://{route}"), "--routes", &routes.join(",")]);
            }
            processes.push(Process::start(NAME, &mut command, &folder.join(format!("said-{number}")))?);
        }
        let until = Instant::now() + PATIENCE;
        for ([.., monitor], process) in addresses.iter().zip(&mut processes) {
            while !is_ready(*monitor).await {
                if process.has_ended() || Instant::now() > until {
                    return Err(process.failed("is not ready:"));
                }
                sleep(LOOK).await;
            }
        }
        Ok(Nats { clients: addresses.iter().map(|[client, ..]| *client).collect(), _processes: processes })
    }

    /// Where clients connect.
    pub fn servers(&self) -> Vec<String> {
        self.clients.iter().map(|client| format!("nats://{client}")).collect()
    }

    /// Lines of `[store]` for a service.
    pub fn store(&self) -> String {
        // A JSON list of strings is a TOML one.
        let servers = serde_json::Value::from(self.servers());
        format!(
            "backend = \"jetstream\"\nservers = {servers}\nstream = \"{STREAM}\"\nreplicas = {}\nmax_size = {MAX_SIZE}\n",
            self.clients.len()
        )
    }
}

/// Whether a server says that it is well, JetStream included.
async fn is_ready(monitor: SocketAddr) -> bool {
    match Connection::open(monitor).await {
        Ok(mut connection) => connection.get("/healthz").await.is_ok(),
        Err(_) => false,
    }
}
