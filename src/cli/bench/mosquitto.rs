//! mosquitto as a process: on a free port, with a scratch configuration.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::process::{LOOK, Process};
use super::{Bench, BenchError};

/// The program, and its package.
pub const NAME: &str = "mosquitto";

/// It listens within this, or not at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody may take the port between finding it and using it.
const TRIES: u32 = 3;

/// A running broker. Dropped, it is gone.
pub struct Mosquitto {
    address: SocketAddr,
    _process: Process,
}

impl Mosquitto {
    /// Starts one, with these lines in its configuration beside what every one has here: no limit on queues, since a dropped message would end a
    /// measurement, and no waiting for full packets on the network.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub async fn start(bench: &Bench, name: &str, lines: &str) -> Result<Mosquitto, BenchError> {
        let mut last = None;
        for _ in 0..TRIES {
            match Self::try_start(bench, name, lines).await {
                Err(error @ BenchError::Part { .. }) => last = Some(error),
                other => return other,
            }
        }
        Err(last.expect("it has been tried"))
    }

    async fn try_start(bench: &Bench, name: &str, lines: &str) -> Result<Mosquitto, BenchError> {
        let folder = bench.scratch.folder(name)?;
        let address = free_address()?;
        let config = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\nuser root\npersistence_location {}/\nmax_queued_messages 0\nset_tcp_nodelay true\n\
             log_type error\nlog_dest stderr\n{lines}",
            address.port(),
            folder.display()
        );
        let file = folder.join("mosquitto.conf");
        fs::write(&file, config).map_err(BenchError::file("mosquitto's configuration can't be written"))?;
        let mut command = program();
        command.arg("-c").arg(&file).stdin(Stdio::null());
        let mut process = Process::start(NAME, &mut command, &folder.join("said"))?;
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            if process.has_ended() || Instant::now() > until {
                return Err(process.failed("does not listen:"));
            }
            sleep(LOOK).await;
        }
        Ok(Mosquitto { address, _process: process })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A broker to deliver to: the one that was named, or one that is started, which lets `window` deliveries of a client be in flight.
///
/// # Errors
/// As [`Mosquitto::start`].
pub async fn broker(bench: &Bench, window: Option<u16>) -> Result<Broker, BenchError> {
    if let Some(address) = bench.plan.broker {
        return Ok(Broker { address, _running: None });
    }
    let lines = window.map(|window| format!("max_inflight_messages {window}\n")).unwrap_or_default();
    let running = Mosquitto::start(bench, "broker", &lines).await?;
    Ok(Broker { address: running.address(), _running: Some(running) })
}

/// A broker, and its process if it is the bench's.
pub struct Broker {
    /// Where it listens.
    pub address: SocketAddr,
    _running: Option<Mosquitto>,
}

/// Daemons live where not every PATH looks.
fn program() -> Command {
    let mut command = Command::new(NAME);
    command.env("PATH", format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// Its version, if it is installed.
pub fn version() -> Option<String> {
    let output = program().arg("-h").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().next()?.strip_prefix("mosquitto version ")?.trim().to_owned())
}

/// A loopback address that nobody listens on.
///
/// # Errors
/// If there is none.
pub fn free_address() -> Result<SocketAddr, BenchError> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map_err(BenchError::file("there is no free port"))
}
