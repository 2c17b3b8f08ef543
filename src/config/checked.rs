//! The sections of the file, each read into its checked form. Bounds stand here with their reasons.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::raw::Table;
use super::units::parse_duration_ms;
use super::{
    Backend, Config, ConnectionConfig, GapNotice, RetryConfig, StoreConfig, connection, http, jetstream, listener, pipeline, zuul,
};
use crate::core::topic::Topic;
use crate::core::types::{ConnectionName, Qos};

const SECOND: u64 = 1_000;
const DAY: u64 = 24 * 3_600 * SECOND;
/// As durations are read: 365.25 days.
const YEAR: u64 = 8_766 * 3_600 * SECOND;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// Below a second, history would be gone before anybody could look; beyond ten years the number is a slip.
const RETENTION_MS: RangeInclusive<u64> = SECOND..=10 * YEAR;
/// The least that a store's parts are laid out for, see `log::sizes`.
const MAX_SIZE: RangeInclusive<u64> = 32 * MIB..=16 * TIB;
/// Shorter than a round trip, a retry is only noise to the broker.
const RETRY_INITIAL_MS: RangeInclusive<u64> = 1..=3_600 * SECOND;
/// A longest wait of more than a day would look like a loss.
const RETRY_MAX_MS: RangeInclusive<u64> = 1..=DAY;
/// One refusal may be enough; beyond a thousand nobody will be told.
const RETRY_ATTEMPTS: RangeInclusive<u64> = 1..=1_000;

/// The whole file. What it returns counts only if no mistake was noted.
pub(super) fn config(mut root: Table<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Config {
    let mut notes = Vec::new();
    let store = store(root.table("store"), environment, &mut notes);
    let http = http::http(root.table("http"), environment);
    let retry = retry(root.table("retry"));
    let (mut connections, mut names) = connection::all(root.table("connection"), environment);
    let mut zuul = root.table("zuul").map(|table| zuul::section(table, &names, environment)).unwrap_or_default();
    connections.append(&mut zuul.connections);
    connections.sort_by(|a, b| a.name.cmp(&b.name));
    names.append(&mut zuul.names);
    let listener = listener::listener(root.table("listener"), &names, &connections, http.listen, environment);
    let gap_notice = gap_notice(root.table("gap_notice"), &connections);
    let routes = pipeline::all(root.tables("pipeline"), &names);
    let routes = zuul::join(routes, &mut zuul, &root);
    root.finish();
    notes.extend(zuul.notes);
    Config { store, http, listener, connections, retry, gap_notice, routes, zuul: zuul.files, notes, file: None }
}

fn store(table: Option<Table<'_>>, environment: &dyn Fn(&str) -> Option<String>, notes: &mut Vec<String>) -> StoreConfig {
    let default = StoreConfig::default();
    let Some(mut table) = table else { return default };
    let path = table.text("path").map(PathBuf::from);
    let backend = backend(&mut table, environment);
    if path.is_some() && matches!(backend, Backend::JetStream(_)) {
        notes.push("store.path is not used: with `backend = \"jetstream\"` the reports are in a stream".to_owned());
    }
    let retention_ms = table.duration_ms("retention", RETENTION_MS, default.retention_ms).value;
    let max_size = table.size("max_size", MAX_SIZE, default.max_size).value;
    let dead = table.field("dead_retention", None, "a duration from \"1s\" to \"10years\" in quotes", |item| {
        parse_duration_ms(item.as_text()?).filter(|ms| RETENTION_MS.contains(ms)).map(Some)
    });
    table.finish();
    StoreConfig { backend, path: path.unwrap_or(default.path), retention_ms, dead_retention_ms: dead.value, max_size }
}

fn backend(table: &mut Table<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Backend {
    let named = table.take("backend");
    let name = named.as_ref().and_then(|named| {
        named
            .read("\"sled\" or \"jetstream\"", |item| item.as_text().filter(|name| ["sled", "jetstream"].contains(name)).map(str::to_owned))
    });
    match (named, name.as_deref()) {
        (Some(named), Some("jetstream")) => jetstream::read(table, &named, environment).map_or(Backend::Sled, Backend::JetStream),
        // Which one was meant decides whose keys they are.
        (Some(_), None) => {
            jetstream::pass_over(table);
            Backend::Sled
        }
        _ => {
            jetstream::refuse(table);
            Backend::Sled
        }
    }
}

fn gap_notice(table: Option<Table<'_>>, connections: &[ConnectionConfig]) -> Option<GapNotice> {
    let mut table = table?;
    let known: Vec<&str> = connections.iter().map(|connection| connection.name.as_str()).collect();
    let expected = format!("the name of a connection, one of: {}", known.join(", "));
    let connection = table.field("connection", None, expected, |item| {
        item.as_text().filter(|name| known.contains(name)).map(|name| Some(ConnectionName::from(name)))
    });
    let topic = table.field("topic", None, "a topic, without wildcards and placeholders", |item| {
        Topic::new(item.as_text()?).ok().map(|topic| Some(topic.into_string()))
    });
    let qos = table.field("qos", Qos::AtLeastOnce, "0, 1 or 2", |item| Qos::try_from(item.as_whole()?).ok());
    if connection.line.is_none() {
        table.missing("connection", "a gap notice goes to a connection");
    }
    if topic.line.is_none() {
        table.missing("topic", "a gap notice goes to a topic");
    }
    table.finish();
    Some(GapNotice { connection: connection.value?, topic: topic.value?, qos: qos.value })
}

fn retry(table: Option<Table<'_>>) -> RetryConfig {
    let default = RetryConfig::default();
    let Some(mut table) = table else { return default };
    let initial = table.duration_ms("initial", RETRY_INITIAL_MS, default.initial_ms);
    let max = table.duration_ms("max", RETRY_MAX_MS, default.max_ms);
    if !initial.wrong && !max.wrong && initial.value > max.value {
        let waits = (super::format_duration(initial.value), super::format_duration(max.value));
        let (culprit, line) = if initial.line.is_some() { ("initial", initial.line) } else { ("max", max.line) };
        table.mistake(culprit, line, format_args!("`initial` ({}) can't be longer than `max` ({})", waits.0, waits.1));
    }
    let attempts = table.whole("attempts", RETRY_ATTEMPTS, default.attempts);
    table.finish();
    RetryConfig { initial_ms: initial.value, max_ms: max.value, attempts }
}
