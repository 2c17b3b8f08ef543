//! The text of a new `tidings.toml`: as little as works, with a word about each section.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::LISTENER;
use crate::config::ConnectionConfig;
use crate::config::zuul::MqttConnection;
use crate::core::address::Address;
use crate::core::route::{PipelineRoutes, Reporter};

/// The connection of a file that is written without Zuul's.
pub const CONNECTION: &str = "mqtt";

/// The line that a `[listener]` section begins with.
pub const LISTENER_SECTION: &str = "[listener]";

/// What is to be written.
pub struct Plan<'p> {
    /// The `zuul.conf` that it comes from.
    pub from: Option<&'p Path>,
    /// Its MQTT connections; none: without Zuul.
    pub connections: Option<&'p [MqttConnection]>,
    /// By the connection's name, where its password is.
    pub password_files: &'p BTreeMap<String, PathBuf>,
    /// What becomes `[[pipeline]]`.
    pub pipelines: &'p [PipelineRoutes],
}

impl Plan<'_> {
    /// The whole file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a string does not fail");
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let from = self.from.map(|path| format!(" from {}", path.display().to_string().escape_debug())).unwrap_or_default();
        writeln!(text, "# Written by `tidings init`{from}. Only what has to be said is here; every other setting has a default, and")?;
        writeln!(text, "# stands with its meaning in tidings.example.toml. `tidings check` says what was understood.")?;
        writeln!(
            text,
            "\n[store]\n# What is accepted stays here until it is delivered, and a week longer for replay.\npath = \"/var/lib/tidings\""
        )?;
        writeln!(
            text,
            "\n[http]\n# Where reports can be posted, and where metrics and the state of deliveries are. Loopback only.\nlisten = \"127.0.0.1:8470\""
        )?;
        match self.connections {
            None => self.write_plain(text)?,
            Some(connections) => {
                if let Some(first) = connections.first() {
                    write_listener(text, &first.name)?;
                }
                for config in connections.iter().filter_map(|connection| connection.config.as_ref()) {
                    self.write_connection(text, config)?;
                }
            }
        }
        if self.pipelines.is_empty() {
            return self.write_no_pipelines(text);
        }
        writeln!(text, "\n# Which of the reports that are posted over HTTP goes where. What Zuul publishes has its topic already.")?;
        for (place, pipeline) in self.pipelines.iter().enumerate() {
            write_pipeline(text, pipeline, place > 0)?;
        }
        Ok(())
    }

    fn write_plain(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n# The broker. The name `{CONNECTION}` is what pipelines call it.\n[connection.{CONNECTION}]\ndriver = \"mqtt\"")?;
        writeln!(text, "server = \"localhost\"\nport = 1883\n#user = \"tidings\"\n#password_file = \"/etc/tidings/mqtt.password\"")
    }

    fn write_no_pipelines(&self, text: &mut String) -> std::fmt::Result {
        let (mark, why) = match self.connections {
            None => ("", "Which report goes where: the topic and the quality of service, by pipeline and action."),
            Some(_) => ("#", "Only reports that are posted over HTTP need pipelines. What Zuul publishes has its topic already."),
        };
        let connection = self.connections.and_then(<[_]>::first).map_or(CONNECTION, |first| &first.name);
        let connection = key(connection);
        const TOPIC: &str = "{tenant}/zuul/{pipeline}/{project}/{branch}/{change}";
        writeln!(text, "\n# {why}\n{mark}[[pipeline]]\n{mark}name = \"check\"")?;
        writeln!(text, "{mark}start.{connection} = {{ topic = \"{TOPIC}\" }}")?;
        for action in ["success", "failure"] {
            writeln!(text, "{mark}{action}.{connection} = {{ topic = \"{TOPIC}\", qos = 2 }}")?;
        }
        Ok(())
    }

    fn write_connection(&self, text: &mut String, config: &ConnectionConfig) -> std::fmt::Result {
        let name = config.name.as_str();
        let default = ConnectionConfig::named(name);
        writeln!(text, "\n# A broker, as `[connection {name}]` had it.\n[connection.{}]\ndriver = \"mqtt\"", key(name))?;
        match &config.servers[..] {
            [Address::Tcp { host, port }] => writeln!(text, "server = {}\nport = {port}", quoted(host))?,
            servers => {
                let servers: Vec<String> = servers.iter().map(|server| quoted(&server.written())).collect();
                writeln!(text, "servers = [{}]", servers.join(", "))?;
            }
        }
        if config.keepalive_s != default.keepalive_s {
            writeln!(text, "keepalive = {}", config.keepalive_s)?;
        }
        if config.client_id != default.client_id {
            writeln!(text, "client_id = {}", quoted(&config.client_id))?;
        }
        if let Some(user) = &config.user {
            writeln!(text, "user = {}", quoted(user))?;
        }
        if let Some(path) = self.password_files.get(name) {
            writeln!(text, "password_file = {}", quoted(&path.display().to_string()))?;
        }
        let Some(tls) = &config.tls else { return Ok(()) };
        writeln!(text, "ca_certs = {}", path(&tls.ca_certs))?;
        if let Some(identity) = &tls.identity {
            writeln!(text, "certfile = {}", path(&identity.certfile))?;
            writeln!(text, "keyfile = {}", path(&identity.keyfile))?;
        }
        match &tls.ciphers {
            Some(ciphers) => writeln!(text, "ciphers = {}", quoted(ciphers)),
            None => Ok(()),
        }
    }
}

fn write_listener(text: &mut String, connection: &str) -> std::fmt::Result {
    writeln!(text, "\n# Where Zuul publishes, as if this were the broker. All of it goes to this one connection.")?;
    writeln!(text, "{LISTENER_SECTION}\nlisten = \"{LISTENER}\"\nconnection = {}", quoted(connection))
}

fn write_pipeline(text: &mut String, pipeline: &PipelineRoutes, after_another: bool) -> std::fmt::Result {
    writeln!(text, "{}[[pipeline]]\nname = {}", if after_another { "\n" } else { "" }, quoted(&pipeline.pipeline))?;
    for (action, reporters) in &pipeline.reporters {
        for Reporter { connection, template, qos, include_returned_data, .. } in reporters {
            write!(text, "{action}.{} = {{ topic = {}", key(connection.as_str()), quoted(template.as_str()))?;
            if qos.level() > 0 {
                write!(text, ", qos = {}", qos.level())?;
            }
            if *include_returned_data {
                write!(text, ", include-returned-data = true")?;
            }
            writeln!(text, " }}")?;
        }
    }
    Ok(())
}

/// A file, from the root: it was found from here, and has to be found from wherever Tidings runs.
fn path(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    quoted(&absolute.display().to_string())
}

/// A name as one key of TOML, which takes a dot for the end of it.
fn key(name: &str) -> String {
    let is_bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if is_bare { name.to_owned() } else { quoted(name) }
}

/// A text as a basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
