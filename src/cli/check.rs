//! `tidings check`: reads the configuration, shows what was understood, and names every mistake. It changes nothing, and contacts nobody
//! unless it is told to.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{FAILED, connect};
use crate::config::{
    self, Backend, Config, ConfigErrors, ConnectionConfig, HttpConfig, Identity, JetStreamLogin, ListenerConfig, TlsConfig, TokenConfig,
    format_duration, format_size,
};
use crate::core::address::Address;
use crate::core::route::{PipelineRoutes, Reporter};

/// Exit code for a configuration that can't be used.
const WRONG_CONFIGURATION: u8 = 2;

/// The arguments of `tidings check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The configuration file [default: $TIDINGS_CONFIG, ./tidings.toml, /etc/tidings/tidings.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print what was understood, or the mistakes, as JSON
    #[arg(long)]
    pub json: bool,
    /// Connect to every broker too, with a session of its own, and say what it tells about itself or which option to look at
    #[arg(long)]
    pub connect: bool,
}

/// Runs the command: exit code 0, 1 if a broker can't be used, or 2 if there are mistakes.
pub fn run(args: &CheckArgs) -> ExitCode {
    let from_env: Option<OsString> = std::env::var_os("TIDINGS_CONFIG");
    let outcome = check(args, from_env.as_deref());
    // Who closed the pipe doesn't want to hear the rest; the exit code says it all the same.
    _ = std::io::stdout().write_all(outcome.stdout.as_bytes());
    _ = std::io::stderr().write_all(outcome.stderr.as_bytes());
    ExitCode::from(outcome.code)
}

/// What the command prints, and how it ends.
struct Outcome {
    stdout: String,
    stderr: String,
    code: u8,
}

fn check(args: &CheckArgs, from_env: Option<&OsStr>) -> Outcome {
    let path = match config::find(args.config.as_deref(), from_env) {
        Ok(path) => path,
        Err(not_found) => return mistaken(args, &not_found.to_string(), json!([{ "message": not_found.to_string() }])),
    };
    match config::load(&path) {
        Ok(config) if args.connect => connected(args, &config),
        Ok(config) if args.json => Outcome { stdout: format!("{:#}\n", as_json(&config)), stderr: String::new(), code: 0 },
        Ok(config) => Outcome { stdout: as_text(&config), stderr: String::new(), code: 0 },
        Err(errors) => mistaken(args, &errors.to_string(), mistakes_as_json(&errors)),
    }
}

fn connected(args: &CheckArgs, config: &Config) -> Outcome {
    let asked = match connect::ask_all(config) {
        Ok(asked) => asked,
        Err(error) => return Outcome { stdout: String::new(), stderr: format!("connecting failed: {error}\n"), code: FAILED },
    };
    let is_well = connect::all_well(&asked);
    let stdout = if args.json {
        let mut shown = as_json(config);
        (shown["ok"], shown["brokers"]) = (json!(is_well), connect::as_json(&asked));
        format!("{shown:#}\n")
    } else {
        as_text(config) + &connect::as_text(&asked)
    };
    Outcome { stdout, stderr: String::new(), code: if is_well { 0 } else { FAILED } }
}

fn mistaken(args: &CheckArgs, text: &str, mistakes: Value) -> Outcome {
    let stdout = if args.json { format!("{:#}\n", json!({ "ok": false, "mistakes": mistakes })) } else { String::new() };
    Outcome { stdout, stderr: format!("{text}\n"), code: WRONG_CONFIGURATION }
}

fn mistakes_as_json(errors: &ConfigErrors) -> Value {
    let mistakes = errors.mistakes.iter();
    mistakes.map(|mistake| json!({ "file": mistake.file, "line": mistake.line, "key": mistake.key, "message": mistake.message })).collect()
}

/// What is right but probably not meant.
fn notes(config: &Config) -> Vec<String> {
    let mut notes = [config.http.notes.clone(), config.notes.clone()].concat();
    let listener = config.listener.as_ref();
    if let Some(listener) =
        listener.filter(|listener| listener.login.is_some() && listener.tls.is_none() && !listener.listen.ip().is_loopback())
    {
        notes.push(format!("listener {}: publishers' passwords come unencrypted", listener.listen));
    }
    if listener.is_none() && config.routes.entries().iter().all(|entry| entry.reporters.values().all(Vec::is_empty)) {
        notes.push("no pipeline has a reporter: reports will be accepted and delivered nowhere".to_owned());
    }
    for connection in &config.connections {
        let name = connection.name.as_str();
        let reporters = config.routes.entries().iter().flat_map(|entry| entry.reporters.values().flatten());
        let is_listeners = listener.is_some_and(|listener| listener.connection == connection.name);
        if !is_listeners && !reporters.into_iter().any(|reporter| reporter.connection == connection.name) {
            notes.push(format!("connection {name}: no reporter uses it"));
        }
        let is_exposed = |address: &&Address| connection.tls.is_none() && !address.is_local();
        if let Some(address) = connection.servers.iter().find(is_exposed).filter(|_| connection.password.is_some()) {
            let broker = address.host().unwrap_or_default();
            notes.push(format!("connection {name}: the password goes to {broker} unencrypted"));
        }
    }
    notes
}

/// The backend as JSON; no secret is in it.
fn backend(backend: &Backend) -> Value {
    match backend {
        Backend::Sled => json!({ "name": "sled" }),
        Backend::JetStream(servers) => json!({
            "name": "jetstream",
            "servers": servers.servers,
            "stream": servers.stream,
            "replicas": servers.replicas,
            "login": servers.login.as_ref().map(JetStreamLogin::shown),
            "tls": servers.is_encrypted(),
        }),
    }
}

fn as_text(config: &Config) -> String {
    let mut text = String::new();
    write_text(&mut text, config).expect("writing to a string does not fail");
    text
}

fn write_text(text: &mut String, config: &Config) -> std::fmt::Result {
    if let Some(file) = &config.file {
        writeln!(text, "{}: no mistakes\n", file.display())?;
    }
    let (store, http, retry) = (&config.store, &config.http, &config.retry);
    let (retention, max_size) = (format_duration(store.retention_ms), format_size(store.max_size));
    writeln!(text, "store       {}, at most {max_size}; delivered reports stay {retention} at least", store.place())?;
    if let Backend::JetStream(servers) = &store.backend {
        let login = servers.login.as_ref().map_or_else(|| "nobody".to_owned(), JetStreamLogin::shown);
        let tls = if servers.is_encrypted() { "over TLS" } else { "in the clear" };
        writeln!(text, "            on {} servers, {tls}, as {login}", servers.replicas)?;
    }
    if let Some(dead) = store.dead_retention_ms {
        writeln!(text, "            dead letters are discarded after {}", format_duration(dead))?;
    }
    if let Some(notice) = &config.gap_notice {
        writeln!(text, "gap notices {} at QoS {}, by {}", notice.topic, notice.qos.level(), notice.connection)?;
    }
    let (report, batch) = (format_size(http.max_report as u64), format_size(http.max_batch as u64));
    let encrypted = if http.tls.is_some() { ", over TLS" } else { "" };
    writeln!(text, "http        {}{encrypted}; reports up to {report}, bodies up to {batch}", http.listen)?;
    write_tokens(text, http)?;
    if let Some(listener) = &config.listener {
        write_listener(text, listener)?;
    }
    let (initial, max) = (format_duration(retry.initial_ms), format_duration(retry.max_ms));
    writeln!(text, "retry       after {initial} to {max}; dead letter after {} refusals", retry.attempts)?;
    if let Some(conf) = &config.zuul.conf {
        writeln!(text, "zuul        {}", conf.display())?;
    }
    for file in &config.zuul.pipelines {
        writeln!(text, "zuul        {}", file.display())?;
    }
    for connection in &config.connections {
        write_connection(text, connection)?;
    }
    for entry in config.routes.entries() {
        write_pipeline(text, entry)?;
    }
    for (place, note) in notes(config).iter().enumerate() {
        writeln!(text, "{}note: {note}", if place == 0 { "\n" } else { "" })?;
    }
    Ok(())
}

/// Names and roles; there is nothing else to show.
fn write_tokens(text: &mut String, http: &HttpConfig) -> std::fmt::Result {
    for TokenConfig { name, role, tenants, hash: _ } in &http.tokens {
        let of = tenants.as_ref().map(|tenants| format!(" of {}", tenants.iter().map(String::as_str).collect::<Vec<_>>().join(", ")));
        writeln!(text, "  token     {name}: {}{}", role.name(), of.unwrap_or_default())?;
    }
    if !http.tokens.is_empty() && http.open_metrics {
        writeln!(text, "  metrics   for anyone who reaches the port")?;
    }
    match http.rate {
        Some(rate) => writeln!(text, "  rate      {rate} requests a second of each"),
        None => Ok(()),
    }
}

fn write_listener(text: &mut String, listener: &ListenerConfig) -> std::fmt::Result {
    let ListenerConfig { listen, connection, login, tls, anonymous: _ } = listener;
    let encrypted = if tls.is_some() { ", over TLS" } else { "" };
    let who = match (login, tls.as_ref().and_then(|tls| tls.client_ca.as_ref())) {
        (None, None) => "from anybody".to_owned(),
        (None, Some(_)) => "from who has a certificate".to_owned(),
        (Some((user, _)), None) => format!("from user {user}"),
        (Some((user, _)), Some(_)) => format!("from user {user} with a certificate"),
    };
    writeln!(text, "listener    {listen}{encrypted}; {who}, to connection {connection}")
}

fn write_connection(text: &mut String, connection: &ConnectionConfig) -> std::fmt::Result {
    let ConnectionConfig {
        name,
        servers,
        tls,
        keepalive_s,
        user,
        password,
        client_id,
        protocol,
        workers,
        window,
        window_3_1_1,
        stamp,
        downgrade,
        failback_ms,
    } = connection;
    writeln!(text, "\nconnection {name}")?;
    let address = servers.iter().map(Address::written).collect::<Vec<_>>().join(" or ");
    let protocol = if protocol.name() == "auto" { "MQTT 5 or 3.1.1".to_owned() } else { format!("MQTT {}", protocol.name()) };
    writeln!(text, "  broker    {address}, {protocol}, keepalive {keepalive_s}s")?;
    if let Some(TlsConfig { ca_certs, identity, ciphers }) = tls {
        write!(text, "  tls       issued by {}", ca_certs.display())?;
        if let Some(Identity { certfile, keyfile }) = identity {
            write!(text, ", as {} with {}", certfile.display(), keyfile.display())?;
        }
        writeln!(text, "{}", ciphers.as_ref().map(|ciphers| format!(", TLS 1.2 with {ciphers}")).unwrap_or_default())?;
    }
    match (user, password) {
        (None, _) => writeln!(text, "  user      none; client ids {client_id}-…")?,
        (Some(user), None) => writeln!(text, "  user      {user}, no password; client ids {client_id}-…")?,
        (Some(user), Some(password)) => writeln!(text, "  user      {user}, password {password}; client ids {client_id}-…")?,
    }
    writeln!(text, "  lanes     {workers}, each with up to {window} in flight ({window_3_1_1} with MQTT 3.1.1)")?;
    let extras = [(!stamp, "not stamped"), (*downgrade, "sent with less QoS, or not retained, where the broker has no more")];
    let extras: Vec<&str> = extras.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
    if !extras.is_empty() {
        writeln!(text, "  reports   {}", extras.join("; "))?;
    }
    match servers.len() {
        1 => Ok(()),
        _ => writeln!(text, "  failback  to a server that stands before another, looked for every {}", format_duration(*failback_ms)),
    }
}

fn write_pipeline(text: &mut String, entry: &PipelineRoutes) -> std::fmt::Result {
    match &entry.tenant {
        None => writeln!(text, "\npipeline {} of every tenant", entry.pipeline)?,
        Some(tenant) => writeln!(text, "\npipeline {} of tenant {tenant}", entry.pipeline)?,
    }
    let lines = || entry.reporters.iter().flat_map(|(action, reporters)| reporters.iter().map(move |reporter| (action.name(), reporter)));
    if lines().next().is_none() {
        writeln!(text, "  no reporters")?;
    }
    let actions = lines().map(|(action, _)| action.len()).max().unwrap_or(0);
    let connections = lines().map(|(_, reporter)| reporter.connection.as_str().len()).max().unwrap_or(0);
    for (action, Reporter { connection, template, qos, retain, include_returned_data }) in lines() {
        let connection = connection.as_str();
        write!(text, "  {action:actions$} → {connection:connections$}  qos {}  {template}", qos.level())?;
        let extras = [(*retain, "retained"), (*include_returned_data, "with returned data")];
        let extras: Vec<&str> = extras.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect();
        if !extras.is_empty() {
            write!(text, "  ({})", extras.join(", "))?;
        }
        writeln!(text)?;
    }
    Ok(())
}

/// With the names and units of the configuration file, so that it can be compared with one.
fn as_json(config: &Config) -> Value {
    let connection = |connection: &ConnectionConfig| {
        let tls = connection.tls.as_ref();
        let identity = tls.and_then(|tls| tls.identity.as_ref());
        let mut shown = json!({
            "name": connection.name,
            "driver": "mqtt",
            "servers": connection.servers.iter().map(Address::written).collect::<Value>(),
            "ca_certs": tls.map(|tls| &tls.ca_certs),
            "certfile": identity.map(|identity| &identity.certfile),
            "keyfile": identity.map(|identity| &identity.keyfile),
            "ciphers": tls.and_then(|tls| tls.ciphers.as_ref()),
            "keepalive": connection.keepalive_s,
            "user": connection.user,
            "password": connection.password.as_ref().map(ToString::to_string),
            "client_id": connection.client_id,
            "protocol": connection.protocol.name(),
            "workers": connection.workers,
            "window": connection.window,
            "window_3_1_1": connection.window_3_1_1,
            "stamp": connection.stamp,
            "downgrade": connection.downgrade,
            "failback": format_duration(connection.failback_ms),
        });
        if let [Address::Tcp { host, port }] = &connection.servers[..] {
            (shown["server"], shown["port"]) = (json!(host), json!(port));
        }
        shown
    };
    let (store, http, retry) = (&config.store, &config.http, &config.retry);
    json!({
        "ok": true,
        "file": config.file,
        "store": {
            "path": matches!(store.backend, Backend::Sled).then_some(&store.path),
            "backend": backend(&store.backend),
            "retention": format_duration(store.retention_ms),
            "dead_retention": store.dead_retention_ms.map(format_duration),
            "max_size": format_size(store.max_size),
        },
        "gap_notice": config.gap_notice.as_ref().map(|notice| json!({
            "connection": notice.connection, "topic": notice.topic, "qos": notice.qos.level(),
        })),
        "http": {
            "listen": http.listen,
            "max_report": format_size(http.max_report as u64),
            "max_batch": format_size(http.max_batch as u64),
            "tokens": http.tokens.iter().map(|token| json!({ "name": token.name, "role": token.role.name(), "tenants": token.tenants })).collect::<Value>(),
            "metrics": if http.open_metrics { "anyone" } else { "token" },
            "rate": http.rate,
            "anonymous": http.anonymous,
            "certfile": http.tls.as_ref().map(|tls| &tls.certfile),
            "keyfile": http.tls.as_ref().map(|tls| &tls.keyfile),
        },
        "listener": config.listener.as_ref().map(|listener| json!({
            "listen": listener.listen,
            "connection": listener.connection,
            "user": listener.login.as_ref().map(|(user, _)| user),
            "password": listener.login.as_ref().map(|(_, password)| password.to_string()),
            "certfile": listener.tls.as_ref().map(|tls| &tls.certfile),
            "keyfile": listener.tls.as_ref().map(|tls| &tls.keyfile),
            "client_ca": listener.tls.as_ref().and_then(|tls| tls.client_ca.as_ref()),
            "anonymous": listener.anonymous,
        })),
        "retry": { "initial": format_duration(retry.initial_ms), "max": format_duration(retry.max_ms), "attempts": retry.attempts },
        "zuul": { "conf": config.zuul.conf, "pipelines": config.zuul.pipelines },
        "connections": config.connections.iter().map(connection).collect::<Value>(),
        "pipelines": config.routes.entries().iter().map(pipeline_as_json).collect::<Value>(),
        "notes": notes(config),
    })
}

fn pipeline_as_json(entry: &PipelineRoutes) -> Value {
    let all = entry.reporters.iter().flat_map(|(action, reporters)| reporters.iter().map(move |reporter| (action, reporter)));
    let reporters: Value = all
        .map(|(action, reporter)| {
            json!({
                "action": action.name(),
                "connection": reporter.connection,
                "topic": reporter.template.as_str(),
                "qos": reporter.qos.level(),
                "retain": reporter.retain,
                "include-returned-data": reporter.include_returned_data,
            })
        })
        .collect();
    json!({ "name": entry.pipeline, "tenant": entry.tenant, "reporters": reporters })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = r#"
[connection.mqtt]
driver = "mqtt"
server = "broker.example.com"
user = "tidings"
password = "hunter2"
[connection.spare]
driver = "mqtt"
[[pipeline]]
name = "check"
start.mqtt = { topic = "{tenant}/{pipeline}" }
merge-failure.mqtt = { topic = "{tenant}/{ref}", qos = 2, retain = true }
"#;

    fn checked(text: &str, json: bool) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidings.toml");
        std::fs::write(&path, text).unwrap();
        check(&CheckArgs { config: Some(path), json, connect: false }, None)
    }

    #[test]
    fn what_was_understood_is_shown_without_secrets() {
        let outcome = checked(RIGHT, false);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
        for line in [
            "store       /var/lib/tidings, at most 10GiB; delivered reports stay 7days at least",
            "http        127.0.0.1:8470; reports up to 1MiB, bodies up to 4MiB",
            "retry       after 500ms to 1m; dead letter after 10 refusals",
            "connection mqtt",
            "  broker    broker.example.com:1883, MQTT 5 or 3.1.1, keepalive 60s",
            "  user      tidings, password [hidden]; client ids tidings-…",
            "  lanes     4, each with up to 100 in flight (20 with MQTT 3.1.1)",
            "pipeline check of every tenant",
            "  start          → mqtt  qos 0  {tenant}/{pipeline}",
            "  merge-conflict → mqtt  qos 2  {tenant}/{ref}  (retained)",
            "note: connection mqtt: the password goes to broker.example.com unencrypted",
            "note: connection spare: no reporter uses it",
        ] {
            assert!(outcome.stdout.lines().any(|shown| shown == line), "{line:?} is not in\n{}", outcome.stdout);
        }
        assert!(!outcome.stdout.contains("hunter2"));
    }

    #[test]
    fn as_json_it_has_the_names_of_the_file_and_no_secrets() {
        let outcome = checked(RIGHT, true);
        assert!(!outcome.stdout.contains("hunter2"));
        let shown: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!((&shown["ok"], &shown["store"]["max_size"]), (&json!(true), &json!("10GiB")));
        assert_eq!(shown["connections"][0]["password"], "[hidden]");
        assert_eq!(shown["connections"][1]["password"], Value::Null);
        assert_eq!(shown["pipelines"][0]["reporters"][1]["action"], "merge-conflict");
        assert_eq!(shown["pipelines"][0]["reporters"][1]["topic"], "{tenant}/{ref}");
    }

    #[test]
    fn tokens_are_shown_by_name_and_role() {
        let (one, other) = ("a".repeat(64), "b".repeat(64));
        let text = format!(
            "http.tokens = [{{ name = 'ci', role = 'ingest', tenants = ['x', 'y'], sha256 = '{one}' }}, {{ name = 'ops', role = 'admin', sha256 = '{other}' }}]"
        );
        let outcome = checked(&text, false);
        for line in ["  token     ci: ingest of x, y", "  token     ops: admin"] {
            assert!(outcome.stdout.lines().any(|shown| shown == line), "{line:?} is not in\n{}", outcome.stdout);
        }
        assert!(!outcome.stdout.contains(&one));
        let outcome = checked(&text, true);
        let shown: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(shown["http"]["tokens"][0], json!({ "name": "ci", "role": "ingest", "tenants": ["x", "y"] }));
        assert_eq!((&shown["http"]["metrics"], outcome.stdout.contains(&one)), (&json!("token"), false));
    }

    #[test]
    fn mistakes_go_to_stderr_all_of_them_with_exit_code_2() {
        let wrong = "[retry]\nattempts = 0\n[http]\nlisten = 'x'\n";
        let outcome = checked(wrong, false);
        assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.lines().count()), (2, "", 2));
        assert!(outcome.stderr.contains("tidings.toml:2: retry.attempts: expected"), "{}", outcome.stderr);
        let outcome = checked(wrong, true);
        assert_eq!((outcome.code, outcome.stderr.lines().count()), (2, 2));
        let shown: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(
            (&shown["ok"], &shown["mistakes"][1]["key"], &shown["mistakes"][1]["line"]),
            (&json!(false), &json!("http.listen"), &json!(4))
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_a_mistake() {
        let args = CheckArgs { config: None, json: false, connect: false };
        let outcome = check(&args, Some(OsStr::new("/nowhere/tidings.toml")));
        assert_eq!(outcome.code, 2);
        assert!(outcome.stderr.starts_with("/nowhere/tidings.toml: can't be read"), "{}", outcome.stderr);
    }

    #[test]
    fn a_configuration_that_delivers_nothing_is_noted() {
        assert!(checked("", false).stdout.contains("note: no pipeline has a reporter"));
    }
}
