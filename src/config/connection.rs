//! `[connection.NAME]`: the brokers. The keys are those of Zuul's MQTT connection, and some more.

use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::path::Path;

use super::raw::{Item, Table};
use super::{ConnectionConfig, ProtocolChoice, Secret, read_bounded};
use crate::core::types::Protocol;

/// 0 would let the system choose, which makes no sense for a server's port.
const PORT: RangeInclusive<u64> = 1..=65_535;
/// 0 switches the keepalive off, and a connection that died silently would go unnoticed; below 5 s a busy broker is taken for a dead
/// one. The upper bound is the protocol's (MQTT 5.0 §3.1.2.10).
const KEEPALIVE_S: RangeInclusive<u64> = 5..=65_535;
/// Each lane is a connection to the broker with a session of its own.
const WORKERS: RangeInclusive<u64> = 1..=64;
/// What is in flight may have to be sent again, and is held in memory.
const WINDOW: RangeInclusive<u64> = 1..=1_000;
/// Store id, epoch and lane are appended, and logs and brokers' lists show the whole.
const MAX_CLIENT_ID: usize = 64;
/// Connection names are metric labels and part of every stored delivery.
const MAX_NAME: usize = 64;
/// User and password are sent with 16 bits of length (MQTT 5.0 §3.1.3).
const MAX_CREDENTIAL: usize = 65_535;

/// Every connection, in the order of the file, and the names of all, also of those that have a mistake: reporters may refer to them.
pub(super) fn all(table: Option<Table<'_>>, environment: &dyn Fn(&str) -> Option<String>) -> (Vec<ConnectionConfig>, Vec<String>) {
    let mut connections = Vec::new();
    let mut names = Vec::new();
    for (name, item) in table.map(|mut table| table.take_rest()).unwrap_or_default() {
        if !is_plain(&name, MAX_NAME) {
            item.mistake(format_args!("a connection's name is 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"));
        }
        if let Some(table) = item.table() {
            connections.push(connection(&name, table, environment));
        }
        names.push(name);
    }
    connections.sort_by(|a, b| a.name.cmp(&b.name));
    (connections, names)
}

fn connection(name: &str, mut table: Table<'_>, environment: &dyn Fn(&str) -> Option<String>) -> ConnectionConfig {
    let default = ConnectionConfig::named(name);
    match table.take("driver") {
        None => table.missing("driver", "is required: write `driver = \"mqtt\"`"),
        Some(driver) => _ = driver.read("\"mqtt\"", |driver| (driver.as_text()? == "mqtt").then_some(())),
    }
    refuse_tls(&mut table);
    table.not_yet("servers", "a list of brokers");
    let server = table.take("server").and_then(|item| server(&item));
    let user = table.take("user");
    let password = password(&mut table, environment);
    if let Some(password) = &password
        && user.is_none()
    {
        table.mistake(password.key, Some(password.line), "a password is sent together with a user: `user` is missing");
    }
    let user = user.and_then(|user| {
        let text = user.text()?;
        if text.len() > MAX_CREDENTIAL {
            user.mistake(format_args!("can't be longer than {MAX_CREDENTIAL} bytes"));
        }
        Some(text)
    });
    let client_id = table.field(
        "client_id",
        default.client_id,
        format_args!("1 to {MAX_CLIENT_ID} letters, digits, `-`, `_` and `.` (store id, epoch and lane are appended)"),
        |item| item.as_text().filter(|text| is_plain(text, MAX_CLIENT_ID)).map(str::to_owned),
    );
    let protocol = table.field("protocol", default.protocol, "\"auto\", \"5\" or \"3.1.1\"", |item| match item.as_text() {
        Some("auto") => Some(ProtocolChoice::Auto),
        Some("5") => Some(ProtocolChoice::Only(Protocol::V5)),
        None if item.as_whole() == Some(5) => Some(ProtocolChoice::Only(Protocol::V5)),
        Some("3.1.1") => Some(ProtocolChoice::Only(Protocol::V311)),
        _ => None,
    });
    let port = table.whole("port", PORT, default.port);
    let keepalive_s = table.whole("keepalive", KEEPALIVE_S, default.keepalive_s);
    let workers = table.whole("workers", WORKERS, default.workers);
    let window = table.whole("window", WINDOW, default.window);
    let window_3_1_1 = table.whole("window_3_1_1", WINDOW, default.window_3_1_1);
    table.finish();
    ConnectionConfig {
        name: default.name,
        server: server.unwrap_or(default.server),
        port,
        keepalive_s,
        user,
        password: password.and_then(|password| password.secret),
        client_id: client_id.value,
        protocol: protocol.value,
        workers,
        window,
        window_3_1_1,
    }
}

/// TLS is asked for by these four, and connecting without it all the same would send reports and passwords in the clear.
/// Zuul's own rules for them hold already: what a later version would refuse is named now.
fn refuse_tls(table: &mut Table<'_>) {
    let given = ["ca_certs", "certfile", "keyfile", "ciphers"].map(|key| (key, table.not_yet(key, "TLS")));
    let [(_, ca_certs), (_, certfile), (_, keyfile), _] = given;
    for (one, line, other, missing) in [("certfile", certfile, "keyfile", keyfile), ("keyfile", keyfile, "certfile", certfile)] {
        if line.is_some() && missing.is_none() {
            table.mistake(one, line, format_args!("`certfile` and `keyfile` come together: `{other}` is missing"));
        }
    }
    for (key, line) in given.into_iter().filter(|(_, line)| line.is_some() && ca_certs.is_none()) {
        table.mistake(key, line, "needs `ca_certs`");
    }
}

/// A host name or an address, and nothing else.
fn server(item: &Item<'_>) -> Option<String> {
    let server = item.text()?;
    let bare = server.trim_start_matches('[').trim_end_matches(']');
    if server.contains("://") {
        item.mistake("expected a host name or an address without a scheme such as `mqtt://`");
    } else if bare != server {
        item.mistake("expected an address without brackets");
    } else if server.contains(':') && server.parse::<Ipv6Addr>().is_err() {
        item.mistake("expected a host name or an address alone: the port stands under `port`");
    } else if server.len() > 253 || server.chars().any(|c| c.is_whitespace() || c.is_control() || c == '/') {
        item.mistake("expected a host name or an address");
    }
    Some(server)
}

/// A password as it was given.
struct Given {
    key: &'static str,
    line: usize,
    /// None if it is wrong, which has been noted.
    secret: Option<Secret>,
}

/// The password, if one of its keys is there. No message quotes a value: it may be the secret.
fn password(table: &mut Table<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<Given> {
    let (inline, file) = (table.take("password"), table.take("password_file"));
    if let (Some(_), Some(file)) = (&inline, &file) {
        file.mistake("there is `password` too: give one of them");
    }
    if let Some(item) = inline {
        return Some(Given { key: "password", line: item.line(), secret: inline_password(item, environment) });
    }
    file.map(|item| Given { key: "password_file", line: item.line(), secret: password_in_file(&item) })
}

/// What the file holds, without the newline that editors leave at its end.
fn password_in_file(item: &Item<'_>) -> Option<Secret> {
    let path = item.text()?;
    match read_bounded(Path::new(&path), MAX_CREDENTIAL as u64 + 2) {
        Ok(text) => {
            let line = text.strip_suffix('\n').unwrap_or(&text);
            bounded_secret(item, line.strip_suffix('\r').unwrap_or(line))
        }
        Err(reason) => {
            item.mistake(format_args!("{path} {reason}"));
            None
        }
    }
}

/// `"…"`, or `{ env = "NAME" }`.
fn inline_password(item: Item<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<Secret> {
    if let Some(text) = item.as_text() {
        return bounded_secret(&item, text);
    }
    if !item.is_table() {
        item.mistake("expected a text in quotes or `{ env = \"NAME\" }`");
        return None;
    }
    let mut table = item.table()?;
    let variable = table.take("env");
    if variable.is_none() {
        table.missing("env", "is required: the name of an environment variable");
    }
    table.finish();
    let variable = variable?;
    let name = variable.text()?;
    match environment(&name) {
        Some(text) => bounded_secret(&variable, &text),
        None => {
            variable.mistake(format_args!("the environment variable `{name}` is not set"));
            None
        }
    }
}

fn bounded_secret(item: &Item<'_>, text: &str) -> Option<Secret> {
    let message = match text.len() {
        // An empty one is more often a variable that was not filled in than a broker's idea of security.
        0 => "the password is empty".to_owned(),
        length if length > MAX_CREDENTIAL => format!("the password can't be longer than {MAX_CREDENTIAL} bytes"),
        _ => return Some(Secret::new(text)),
    };
    item.mistake(message);
    None
}

fn is_plain(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}
