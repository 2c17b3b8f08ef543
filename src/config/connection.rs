//! `[connection.NAME]`: the brokers. The keys are those of Zuul's MQTT connection, and some more.

use std::ops::RangeInclusive;
use std::path::Path;

use super::raw::{Item, Table};
use super::reach::{At, Reach};
use super::{ConnectionConfig, ProtocolChoice, Secret, TlsConfig, read_bounded};
use crate::core::address::Address;
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
/// Each look is a connection to the preferred server; after an hour nobody remembers which one that is.
const FAILBACK_MS: RangeInclusive<u64> = 1_000..=3_600_000;
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
        if let Some(wrong) = wrong_name(&name) {
            item.mistake(wrong);
        }
        if let Some(table) = item.table() {
            connections.push(connection(&name, table, environment));
        }
        names.push(name);
    }
    connections.sort_by(|a, b| a.name.cmp(&b.name));
    (connections, names)
}

/// What is wrong with the name of a connection, if anything is.
pub(super) fn wrong_name(name: &str) -> Option<String> {
    (!is_plain(name, MAX_NAME)).then(|| format!("a connection's name is 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"))
}

/// One connection; what is wrong with it is noted.
pub(super) fn connection(name: &str, mut table: Table<'_>, environment: &dyn Fn(&str) -> Option<String>) -> ConnectionConfig {
    let default = ConnectionConfig::named(name);
    match table.take("driver") {
        None => table.missing("driver", "is required: write `driver = \"mqtt\"`"),
        Some(driver) => _ = driver.read("\"mqtt\"", |driver| (driver.as_text()? == "mqtt").then_some(())),
    }
    let (servers, tls) = reach(&mut table);
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
    let keepalive_s = table.whole("keepalive", KEEPALIVE_S, default.keepalive_s);
    let workers = table.whole("workers", WORKERS, default.workers);
    let window = table.whole("window", WINDOW, default.window);
    let window_3_1_1 = table.whole("window_3_1_1", WINDOW, default.window_3_1_1);
    let stamp = table.flag("stamp", default.stamp);
    let downgrade = table.flag("downgrade", default.downgrade);
    let failback_ms = table.duration_ms("failback", FAILBACK_MS, default.failback_ms).value;
    table.finish();
    ConnectionConfig {
        name: default.name,
        servers,
        tls,
        keepalive_s,
        user,
        password: password.and_then(|password| password.secret),
        client_id: client_id.value,
        protocol: protocol.value,
        workers,
        window,
        window_3_1_1,
        stamp,
        downgrade,
        failback_ms,
    }
}

/// The keys that say how the broker is reached, each with its place.
fn reach(table: &mut Table<'_>) -> (Vec<Address>, Option<TlsConfig>) {
    let mut lines: Vec<(&'static str, usize)> = Vec::new();
    let mut take = |table: &mut Table<'_>, key: &'static str| {
        let item = table.take(key)?;
        lines.push((key, item.line()));
        item.text()
    };
    let server = take(table, "server");
    let ca_certs = take(table, "ca_certs");
    let certfile = take(table, "certfile");
    let keyfile = take(table, "keyfile");
    let ciphers = take(table, "ciphers");
    let port = table.field("port", None, port_expected(), |item| {
        let port = item.as_whole().filter(|port| PORT.contains(port))?;
        Some(u16::try_from(port).ok())
    });
    lines.extend(port.line.map(|line| ("port", line)));
    let list = table.take("servers");
    lines.extend(list.as_ref().map(|list| ("servers", list.line())));
    let list = list.and_then(|list| {
        list.read("a list such as [\"a:1883\", \"b:1883\"]", |list| list.is_list().then_some(())).map(|()| list.entries())
    });
    let servers = list.as_ref().map(|list| list.iter().map(Item::text).collect());
    let given = Reach { server, port: port.value, servers, ca_certs, certfile, keyfile, ciphers };
    given.check(&mut |at, message| match at {
        At::Server(index) => list.iter().flatten().nth(index).into_iter().for_each(|item| item.mistake(&message)),
        At::Key(key) => {
            let line = lines.iter().find(|(known, _)| *known == key).map(|(_, line)| *line);
            table.mistake(key, line, message);
        }
    })
}

fn port_expected() -> String {
    format!("a whole number from {} to {}", PORT.start(), PORT.end())
}

/// A password as it was given.
pub(super) struct Given {
    pub(super) key: &'static str,
    pub(super) line: usize,
    /// None if it is wrong, which has been noted.
    pub(super) secret: Option<Secret>,
}

/// The password, if one of its keys is there. No message quotes a value: it may be the secret.
pub(super) fn password(table: &mut Table<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<Given> {
    let (inline, file) = (table.take("password"), table.take("password_file"));
    if let (Some(_), Some(file)) = (&inline, &file) {
        file.mistake("there is `password` too: give one of them");
    }
    if let Some(item) = inline {
        return Some(Given { key: "password", line: item.line(), secret: inline_password(item, environment) });
    }
    file.map(|item| Given { key: "password_file", line: item.line(), secret: secret_in_file(&item) })
}

/// The secret that a file holds, without the newline that editors leave at its end.
pub(super) fn secret_in_file(item: &Item<'_>) -> Option<Secret> {
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

/// Letters, digits, `-`, `_` and `.`.
pub(super) fn is_plain(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}
