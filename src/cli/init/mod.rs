//! `tidings init`: writes a `tidings.toml`, from Zuul's settings if there are any, and says which lines of `zuul.conf` to change.
//!
//! ```text
//! before:  Zuul ── [connection mqtt] ──────────────────────────────────────────▶ broker
//! after:   Zuul ── [connection mqtt] ──▶ Tidings [listener] ── [connection.mqtt] ──▶ broker
//!                  server, port changed             what zuul.conf said is taken over here
//! ```
//!
//! Zuul's files are read and never changed, and no file is ever overwritten. A password goes into a file of its own that only its
//! owner can read; it is neither printed nor written anywhere else.
//!
//! | Module | Holds |
//! |---|---|
//! | [`written`] | the text of the new file |
//! | [`advice`] | what is to be changed in `zuul.conf` |

pub mod advice;
pub mod written;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{WRONG_USAGE, output};
use crate::config::own_listener;
use crate::config::zuul::{self, MqttConnection, ZuulConf};
use crate::config::{ConfigErrors, Mistake, Secret};
use crate::core::address::Address;
use written::Plan;

/// Where the written `[listener]` listens: on loopback, where nobody needs a password, beside MQTT's own port, where a broker may be.
pub const LISTENER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1884);

/// The arguments of `tidings init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// Take over the MQTT connections of this zuul.conf, and say which of its lines to change; the file is not touched
    #[arg(long, value_name = "FILE")]
    pub from_zuul: Option<PathBuf>,
    /// Take over the pipelines of these files or folders as `[[pipeline]]` entries, for those who post reports over HTTP: what Zuul itself
    /// publishes has its topic already and needs none. Reporters of the MQTT connections of zuul.conf are taken, without it those of `mqtt`
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub pipelines: Vec<PathBuf>,
    /// The file to write; it must not be there yet
    #[arg(long, value_name = "FILE", default_value = "./tidings.toml")]
    pub output: PathBuf,
}

/// Why there is no new file.
#[derive(Debug, thiserror::Error)]
enum NotWritten {
    /// Zuul's files have mistakes.
    #[error(transparent)]
    Mistakes(#[from] ConfigErrors),
    /// What would be written is there.
    #[error("{} is there already and stays as it is: move it away, or name another file with --output", .0.display())]
    Exists(PathBuf),
    /// The system doesn't let it be written.
    #[error("{} can't be written: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Runs the command: exit code 0, 1 if a file is in the way or can't be written, 2 if Zuul's files have mistakes.
pub fn run(args: &InitArgs) -> ExitCode {
    match init(args, &|variable| std::env::var(variable).ok()) {
        Ok(report) => output::print(&report),
        Err(NotWritten::Mistakes(mistakes)) => {
            output::tell(&mistakes.to_string());
            ExitCode::from(WRONG_USAGE)
        }
        Err(error) => output::complain(&error.to_string()),
    }
}

/// Writes the files, and gives what is to be said.
fn init(args: &InitArgs, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, NotWritten> {
    if fs::symlink_metadata(&args.output).is_ok() {
        return Err(NotWritten::Exists(args.output.clone()));
    }
    let conf = match &args.from_zuul {
        Some(path) => Some((path.as_path(), connections_of(path, environment)?)),
        None => None,
    };
    let (names, others) = match &conf {
        Some((_, conf)) => (conf.connections.iter().map(|connection| connection.name.clone()).collect(), conf.others.clone()),
        None => (vec![written::CONNECTION.to_owned()], Vec::new()),
    };
    let (pipelines, notes) = zuul::read_pipelines_of(&args.pipelines, &names, &others)?;
    let folder = folder_of(&args.output)?;
    let secrets: Vec<(PathBuf, &MqttConnection, &Secret)> = conf
        .iter()
        .flat_map(|(_, conf)| &conf.connections)
        .filter_map(|connection| {
            let password = connection.config.as_ref()?.password.as_ref()?;
            Some((folder.join(format!("{}.password", connection.name)), connection, password))
        })
        .collect();
    let password_files = secrets.iter().map(|(path, connection, _)| (connection.name.clone(), path.clone())).collect();
    let connections = conf.as_ref().map(|(_, conf)| conf.connections.as_slice());
    let plan = Plan { from: args.from_zuul.as_deref(), connections, password_files: &password_files, pipelines: &pipelines };
    let mut new = New::default();
    for (path, _, password) in &secrets {
        new.write(path, 0o600, &format!("{}\n", password.expose()))?;
    }
    new.write(&args.output, 0o644, &plan.text())?;
    new.keep();
    let mut report = format!("wrote {}\n", args.output.display());
    for (path, connection, _) in &secrets {
        report += &format!(
            "wrote {}, which only its owner can read: the password of connection {}. Make Tidings' user its owner, or under systemd a credential\n",
            path.display(),
            connection.name
        );
    }
    for note in conf.iter().flat_map(|(_, conf)| &conf.notes).chain(&notes) {
        report += &format!("note: {note}\n");
    }
    if let Some((path, conf)) = &conf {
        report += &advice::text(path, &conf.connections);
    }
    report += &format!("\nLook at it, and try it: tidings check --config {}\n", args.output.display());
    Ok(report)
}

/// The MQTT connections, at least one, none of which leads to Tidings.
fn connections_of(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<ZuulConf, ConfigErrors> {
    let file = path.display().to_string();
    let conf = zuul::read_conf(path, environment)?;
    let mut mistakes = Vec::new();
    if conf.connections.is_empty() {
        let message = "has no connection with `driver=mqtt`".to_owned();
        mistakes.push(Mistake { file: file.clone(), line: None, key: None, message });
    }
    for connection in &conf.connections {
        let servers = connection.config.iter().flat_map(|config| &config.servers);
        let is_own =
            |address: &Address| matches!(address, Address::Tcp { host, port } if own_listener::leads_to_here(host, *port, LISTENER));
        if servers.into_iter().any(is_own) {
            let line = connection.option("server").or(connection.option("port")).map_or(connection.line, |option| option.line);
            mistakes.push(Mistake {
                file: file.clone(),
                line: Some(line),
                key: Some(format!("connection.{}.server", connection.name)),
                message: format!("leads back to Tidings, which is to listen at {LISTENER}: put in where the broker is"),
            });
        }
    }
    if mistakes.is_empty() { Ok(conf) } else { Err(ConfigErrors { mistakes }) }
}

/// The folder of a file that is to be written, from the root: what is named in the file has to be found from everywhere.
fn folder_of(output: &Path) -> Result<PathBuf, NotWritten> {
    let absolute = std::path::absolute(output).map_err(|error| NotWritten::Io { path: output.to_owned(), error })?;
    Ok(absolute.parent().map(Path::to_owned).unwrap_or_default())
}

/// Files that were written just now, and go away again if not all of them can be.
#[derive(Default)]
struct New(Vec<PathBuf>);

impl New {
    fn write(&mut self, path: &Path, mode: u32, text: &str) -> Result<(), NotWritten> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => NotWritten::Exists(path.to_owned()),
            _ => NotWritten::Io { path: path.to_owned(), error },
        };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
        self.0.push(path.to_owned());
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for New {
    fn drop(&mut self) {
        for path in &self.0 {
            // It failed already, and that is what is told.
            let _ = fs::remove_file(path);
        }
    }
}
