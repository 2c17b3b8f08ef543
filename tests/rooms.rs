//! The law of `src/lib.rs`: who may import whom, and which crate is used where. Read from the sources, line by line, so that a new edge
//! between two rooms is a decision and not an accident.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Room → what it may import, as the beginning of a path below `crate::`. A room may always import itself.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("metrics", &[]),
    ("telemetry", &[]),
    // A role and the hash of a token: plain types that the configuration reads, and the door compares. A span of time is read in one way everywhere.
    ("server", &["core::access", "core::span"]),
    ("failpoint", &[]),
    ("config", &["core"]),
    ("migrations", &["core"]),
    // The format's number decides whether a store is opened.
    ("log", &["core", "metrics", "migrations", FAILPOINT]),
    // What the log takes as one event is a limit of requests, too: refused at the door it costs one request, and inside the service.
    // The listener's password is a `Secret` up to the comparison.
    ("ingest", &["core", FAILPOINT, "metrics", "server", "config::Secret", LOG_HANDLE, LOG_PAGE, LOG_READ_ERROR, "log::codec::MAX_EVENT"]),
    // A password is a `Secret` up to the byte that is written to the broker; what is encrypted how is checked at load and done at each
    // connect by one function.
    (
        "delivery",
        &[
            "core",
            FAILPOINT,
            "metrics",
            "config::Secret",
            "config::TlsConfig",
            "config::TlsFaults",
            LOG_HANDLE,
            LOG_PAGE,
            // A lane reads pages in the form that costs the least.
            "log::AnyPage",
            "log::Seen",
            LOG_READ_ERROR,
        ],
    ),
    // The board is what lanes publish for whoever shows it. What there is of a delivery stands in the log, and nowhere else.
    (
        "admin",
        &["core", "metrics", "server", "delivery::board", LOG_HANDLE, LOG_PAGE, LOG_GLIMPSE, LOG_READ_ERROR, LOG_HEALTH, LOG_REPLICA],
    ),
    ("app", &["core", FAILPOINT, "metrics", "server", "config", "log", "ingest", "delivery", "admin"]),
    // The commands read the answers of the API by the types that it writes them with.
    // `check --connect` asks brokers by the way that lanes go.
    (
        "cli",
        &[
            "app",
            "config",
            "core",
            "telemetry",
            "admin::status",
            "admin::moves",
            "admin::deliveries::answers",
            "admin::repairs",
            "admin::replays",
            "server::error",
            "delivery::probe",
            STORE,
            STORE_ERROR,
            "admin::backups",
            "admin::audit",
            // The bench runs parts of the service alone: the committer over a log that it counts, and the server without what it serves.
            LOG_HANDLE,
            "log::EventLog",
            "log::AppendError",
            "log::Begun",
            "log::Generation",
            "log::Opened",
            LOG_PAGE,
            // …, on servers, too.
            "log::jetstream_log",
            "log::LogReader",
            "log::Space",
            "log::StoreId",
            "log::Urgency",
            "log::sizes",
            "metrics",
            "server::serve",
            "server::Limits",
        ],
    ),
];

/// Where tests have the process die.
const FAILPOINT: &str = "failpoint";
const LOG_HANDLE: &str = "log::committer";
/// `fsck`, `migrate`, `backup` and `restore` work on a store's folder, where no service has to run.
const STORE: &str = "log::sled_log";
const STORE_ERROR: &str = "log::OpenError";
const LOG_PAGE: &str = "log::Page";
const LOG_GLIMPSE: &str = "log::Glimpse";
const LOG_READ_ERROR: &str = "log::ReadError";
/// How the servers are that hold a shared log is shown, as they say it.
const LOG_HEALTH: &str = "log::Health";
const LOG_REPLICA: &str = "log::Replica";

/// Crate → the rooms that may use it: what is replaced one day should be found in one place.
const USED_IN: &[(&str, &[&str])] = &[
    ("sled", &["log"]),
    ("async_nats", &["log"]),
    // The codec, of both directions; the subscriber of the demo, which has to be another program's client; and the bench's plain publisher.
    ("rumqttc", &["delivery", "ingest", "cli"]),
    ("mqtt5", &["cli"]),
    ("axum", &["server", "ingest", "admin", "cli"]),
    ("hyper", &["server", "cli"]),
    ("hyper_util", &["server", "cli"]),
    ("prometheus", &["metrics"]),
    ("ureq", &["cli"]),
    ("clap", &["cli", "telemetry"]),
    ("clap_mangen", &["cli"]),
    ("toml", &["config"]),
    ("saphyr_parser", &["config"]),
    // Contexts are made where keys are checked; streams where they are used.
    ("openssl", &["config", "delivery", "ingest", "server", "cli"]),
    ("tokio_openssl", &["delivery", "server"]),
    ("tokio_tungstenite", &["delivery"]),
    ("listenfd", &["app"]),
    ("sd_notify", &["cli"]),
    ("tracing_subscriber", &["telemetry"]),
];

/// What would make `core` depend on when, where or by what chance it runs.
const IMPURE: &[&str] = &[
    "tokio::",
    "sled::",
    "tracing::",
    "getrandom::",
    "rustix::",
    "std::fs",
    "std::net",
    "std::io",
    "std::env",
    "std::thread",
    "std::process",
    "Instant",
    "SystemTime",
    "println!",
];

struct Source {
    path: PathBuf,
    room: String,
    /// Without comments and without tests, which may import what they like.
    text: String,
}

/// Every source of the crate that belongs to a room.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "migrations"] {
        collect(root, &root.join(folder), &mut found);
    }
    assert!(found.len() > 50, "only {} sources were found", found.len());
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            collect(root, &path, found);
        } else if name.ends_with(".rs") && !["tests.rs", "conformance.rs", "samples.rs"].contains(&name.as_str()) {
            let inside = path.strip_prefix(root).unwrap().to_owned();
            let room = inside.strip_prefix("src").unwrap_or(&inside).components().next().unwrap();
            let room = room.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
            if ["lib", "main"].contains(&room.as_str()) {
                continue;
            }
            let text = code_of(&fs::read_to_string(&path).unwrap());
            found.push(Source { path: inside, room, text });
        }
    }
}

/// The code without comments, up to the file's tests.
fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).fold(String::new(), |all, line| all + line + "\n")
}

/// The paths below `crate::` that a text names; groups are spelled out.
fn imports(text: &str) -> Vec<String> {
    text.match_indices("crate::")
        .filter(|(at, _)| !ends_in_name(&text[..*at]))
        .flat_map(|(at, word)| spelled_out(&text[at + word.len()..]))
        .collect()
}

fn ends_in_name(text: &str) -> bool {
    text.ends_with(|last: char| last.is_alphanumeric() || last == '_')
}

/// `a::{b, c::d}; …` → `a::b`, `a::c::d`.
fn spelled_out(text: &str) -> Vec<String> {
    let plain = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let (path, rest) = text.split_at(plain);
    let Some(group) = rest.strip_prefix('{').filter(|_| path.is_empty() || path.ends_with("::")) else {
        return vec![path.trim_end_matches(':').to_owned()];
    };
    let (mut depth, mut parts, mut from) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                parts.push(group[from..at].trim());
                from = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.flat_map(spelled_out).map(|part| format!("{path}{}", part.trim_end_matches("::self"))).collect()
}

fn is_below(path: &str, allowed: &str) -> bool {
    path.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn a_room_imports_what_the_law_allows_and_nothing_else() {
    let mut broken = BTreeSet::new();
    for source in sources() {
        let Source { path, room, text } = &source;
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| name == room) else {
            broken.insert(format!("{}: the room `{room}` is new: give it a line in MAY_IMPORT and in src/lib.rs", path.display()));
            continue;
        };
        for import in imports(text) {
            let is_own = is_below(&import, room);
            if !is_own && !allowed.iter().any(|allowed| is_below(&import, allowed)) {
                broken.insert(format!("{}: `{room}` may not import crate::{import}", path.display()));
            }
        }
        // The other way out of a room.
        for (other, _) in MAY_IMPORT {
            let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join(path).with_file_name(format!("{other}.rs"));
            if other != room && !beside.exists() && text.contains(&format!("super::{other}::")) {
                broken.insert(format!("{}: write crate::{other} and not super::{other}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_core_is_pure() {
    for source in sources().iter().filter(|source| source.room == "core") {
        for word in IMPURE {
            assert!(!source.text.contains(word), "{} contains {word}: pass it in as an argument", source.path.display());
        }
    }
}

#[test]
fn a_crate_is_used_in_its_rooms_only() {
    for source in sources() {
        for (name, rooms) in USED_IN {
            let uses = source.text.match_indices(&format!("{name}::")).any(|(at, _)| {
                let before = &source.text[..at];
                !ends_in_name(before) && !before.ends_with("::")
            });
            assert!(!uses || rooms.contains(&source.room.as_str()), "{} uses {name}, which belongs to {rooms:?}", source.path.display());
        }
    }
}

#[test]
fn groups_of_imports_are_spelled_out() {
    let text =
        "use crate::log::{Page, committer::{self, now}};\nuse crate::metrics::Metrics; let x: crate::core::types::Seq = 1; mycrate::no";
    let expected = ["log::Page", "log::committer", "log::committer::now", "metrics::Metrics", "core::types::Seq"];
    assert_eq!(imports(text), expected);
}
