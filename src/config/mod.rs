//! What Tidings is told to do: `tidings.toml`, and [Zuul's own files](zuul), read once at start.
//!
//! ```text
//! text ──TOML──▶ raw (tables and values that know their line) ──▶ checked (typed, bounded, proven) ──▶ Config
//!                  every mistake on the way is noted with file, line and key, and all of them are reported together
//! ```
//!
//! Rules that hold for every key:
//! - A key that nobody knows is a mistake, and so is one that this build can't serve: who asks for TLS and is silently connected without it
//!   has been lied to.
//! - Every number has bounds, and a wrong value never falls back to a default.
//! - Secrets are [`Secret`]s: whatever prints a configuration prints `[hidden]`.
//! - Relative paths are relative to the working directory, like those of any command.
//!
//! `ops/tidings.example.toml` explains each key with its default and the reason for it.

mod checked;
mod connection;
mod expiry;
mod http;
mod jetstream;
mod listener;
mod mistake;
pub mod own_listener;
mod pipeline;
mod raw;
mod reach;
mod secret;
mod tls;
mod tokens;
mod units;
pub mod zuul;

#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use expiry::End;
pub use http::HttpConfig;
pub use jetstream::{JetStreamConfig, JetStreamLogin};
pub use listener::{ListenerConfig, ListenerTls};
pub use mistake::{ConfigErrors, Mistake};
pub use secret::Secret;
#[cfg(test)]
pub(crate) use tls::tests::certificates;
pub use tls::{Identity, TlsConfig, TlsFault, TlsFaults};
pub use tokens::TokenConfig;
pub use units::{format_duration, format_size};

use crate::core::address::{Address, DEFAULT_PORT};
use crate::core::route::Routes;
use crate::core::types::{ConnectionName, Protocol, Qos};

/// Where the file is looked for when nobody says where it is, in this order.
pub const PLACES: [&str; 2] = ["./tidings.toml", "/etc/tidings/tidings.toml"];

/// A configuration file is small; anything beyond this many bytes is not one.
const MAX_FILE: u64 = 1 << 20;

/// Everything that the service is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where and how much is kept.
    pub store: StoreConfig,
    /// The way in.
    pub http: HttpConfig,
    /// The way in over MQTT, if there is one.
    pub listener: Option<ListenerConfig>,
    /// The brokers, in order of their names.
    pub connections: Vec<ConnectionConfig>,
    /// What happens to a message that a broker refuses.
    pub retry: RetryConfig,
    /// Where subscribers are told what they will not get, if they are.
    pub gap_notice: Option<GapNotice>,
    /// Which report goes where.
    pub routes: Routes,
    /// Which of Zuul's own files were read.
    pub zuul: zuul::ZuulFiles,
    /// What is right but probably not meant, as far as it was found while reading.
    pub notes: Vec<String>,
    /// The file that this was read from, if it was.
    pub file: Option<PathBuf>,
}

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// What keeps the reports.
    pub backend: Backend,
    /// The folder; created if it is missing.
    pub path: PathBuf,
    /// How long delivered reports stay for history and replay.
    pub retention_ms: u64,
    /// How long dead letters stay; none: until an operator decides.
    pub dead_retention_ms: Option<u64>,
    /// How large the store may grow, in bytes. Accepts are refused beyond it.
    pub max_size: u64,
}

/// `store.backend`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// An embedded database in a folder.
    Sled,
    /// A replicated stream on other machines.
    JetStream(JetStreamConfig),
}

impl StoreConfig {
    /// Where the reports are, in words.
    pub fn place(&self) -> String {
        match &self.backend {
            Backend::Sled => self.path.display().to_string(),
            Backend::JetStream(config) => format!("jetstream:{} at {}", config.stream, config.servers.join(", ")),
        }
    }
}

/// `[gap_notice]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GapNotice {
    /// The connection.
    pub connection: ConnectionName,
    /// The topic: as it stands, nothing is filled in.
    pub topic: String,
    /// The quality of service.
    pub qos: Qos,
}

/// `[connection.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionConfig {
    /// Its name in reporters, metrics and the store.
    pub name: ConnectionName,
    /// The brokers in order of preference; at least one.
    pub servers: Vec<Address>,
    /// How they are reached over TLS; none for the clear.
    pub tls: Option<TlsConfig>,
    /// The longest silence on the wire, in seconds.
    pub keepalive_s: u16,
    /// The user to authenticate as.
    pub user: Option<String>,
    /// The user's password; there is none without a user.
    pub password: Option<Secret>,
    /// What client ids begin with; store id, epoch and lane follow.
    pub client_id: String,
    /// Which MQTT to speak.
    pub protocol: ProtocolChoice,
    /// How many lanes deliver in parallel.
    pub workers: u32,
    /// Deliveries in flight per lane.
    pub window: u16,
    /// Deliveries in flight per lane to an MQTT 3.1.1 broker.
    pub window_3_1_1: u16,
    /// Over MQTT 5 each delivery says which it is and when it was accepted.
    pub stamp: bool,
    /// What asks for a QoS or a retained message that the broker does not have is sent with less, rather than held.
    pub downgrade: bool,
    /// While another server than the first is used, so often is looked whether one before it is back.
    pub failback_ms: u64,
}

/// Which MQTT to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolChoice {
    /// MQTT 5 if the broker does, MQTT 3.1.1 otherwise.
    Auto,
    /// This one, and no other.
    Only(Protocol),
}

impl ProtocolChoice {
    /// The name as it stands in the file.
    pub fn name(self) -> &'static str {
        match self {
            ProtocolChoice::Auto => "auto",
            ProtocolChoice::Only(protocol) => protocol.name(),
        }
    }
}

/// `[retry]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryConfig {
    /// The first wait.
    pub initial_ms: u64,
    /// The longest wait.
    pub max_ms: u64,
    /// How often one message may be refused before it is a dead letter.
    pub attempts: u32,
}

/// What stands for a section that a file leaves out.
impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            backend: Backend::Sled,
            path: PathBuf::from("/var/lib/tidings"),
            retention_ms: 7 * 24 * 3_600 * 1_000,
            dead_retention_ms: None,
            max_size: 10 << 30,
        }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        RetryConfig { initial_ms: 500, max_ms: 60_000, attempts: 10 }
    }
}

impl ConnectionConfig {
    /// A connection as a section without any key but `driver` makes it.
    pub fn named(name: &str) -> Self {
        ConnectionConfig {
            name: name.into(),
            servers: vec![Address::tcp("localhost", DEFAULT_PORT)],
            tls: None,
            keepalive_s: 60,
            user: None,
            password: None,
            client_id: "tidings".to_owned(),
            protocol: ProtocolChoice::Auto,
            workers: 4,
            window: 100,
            window_3_1_1: 20,
            stamp: true,
            downgrade: false,
            failback_ms: 60_000,
        }
    }
}

/// There is no configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no configuration file: looked for {}; name one with --config or TIDINGS_CONFIG", looked.join(", "))]
pub struct NotFound {
    /// Where one was looked for.
    pub looked: Vec<String>,
}

/// The file to read: the one named with `--config`, else the one named by `TIDINGS_CONFIG`, else the first of [`PLACES`] that exists.
///
/// # Errors
/// If none was named and none is in place.
pub fn find(explicit: Option<&Path>, from_env: Option<&OsStr>) -> Result<PathBuf, NotFound> {
    find_among(explicit, from_env, &PLACES)
}

fn find_among(explicit: Option<&Path>, from_env: Option<&OsStr>, places: &[&str]) -> Result<PathBuf, NotFound> {
    let named = explicit.or(from_env.filter(|path| !path.is_empty()).map(Path::new));
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let found = places.iter().map(Path::new).find(|place| place.exists());
    found.map(Path::to_owned).ok_or_else(|| NotFound { looked: places.iter().map(|place| (*place).to_owned()).collect() })
}

/// Reads a file, and the secrets that it refers to.
///
/// # Errors
/// Every mistake in it.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let name = path.display().to_string();
    let text = read_bounded(path, MAX_FILE).map_err(|reason| ConfigErrors::one(Mistake::of_file(&name, reason)))?;
    let mut config = from_str(&text, &name)?;
    config.file = Some(path.to_owned());
    Ok(config)
}

/// Reads a configuration from text; `name` is what mistakes call it.
///
/// # Errors
/// Every mistake in it.
pub fn from_str(text: &str, name: &str) -> Result<Config, ConfigErrors> {
    from_str_with(text, name, &|variable| std::env::var(variable).ok())
}

/// With the environment as an argument.
fn from_str_with(text: &str, name: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigErrors> {
    let file = raw::File::new(name, text);
    let config = file.root().map(|root| checked::config(root, environment));
    let mistakes = file.into_mistakes();
    match config {
        Some(config) if mistakes.is_empty() => Ok(config),
        _ => Err(ConfigErrors { mistakes }),
    }
}

/// The text of a file that has to be small.
fn read_bounded(path: &Path, most: u64) -> Result<String, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("can't be read: {error}"))?;
    if bytes.len() as u64 > most {
        return Err(format!("has more than {most} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| format!("is not text in UTF-8: see byte {}", error.utf8_error().valid_up_to()))
}
