//! `tidings.toml`, and the durations and sizes in it.
//!
//! `config` holds: every mistake has the file, a line that the file has, and a message that a person can read; what is understood is
//! within its bounds, and hangs together.
//!
//! `units` holds: a duration or a size that is understood is shown in a way that reads back as the same.

use tidings::config::{self, format_duration, format_size};

use crate::memory::bounded;
use crate::mutate::{Form, Mutator};
use crate::run::{Outcome, are_distinct, assert_readable, kind_of, run};

const WORDS: &[&str] = &[
    "store",
    "path",
    "retention",
    "max_size",
    "http",
    "listen",
    "tokens",
    "max_report",
    "max_batch",
    "listener",
    "connection",
    "connection.mqtt",
    "driver",
    "server",
    "servers",
    "port",
    "keepalive",
    "user",
    "password",
    "password_file",
    "ca_certs",
    "certfile",
    "keyfile",
    "ciphers",
    "client_id",
    "protocol",
    "workers",
    "window",
    "window_3_1_1",
    "stamp",
    "downgrade",
    "failback",
    "retry",
    "initial",
    "max",
    "attempts",
    "pipeline",
    "name",
    "tenant",
    "start.mqtt",
    "success.mqtt",
    "merge-failure.mqtt",
    "topic",
    "qos",
    "retain",
    "include-returned-data",
    "zuul",
    "conf",
    "pipelines",
    "anonymous",
    "client_ca",
    "\"mqtt\"",
    "\"auto\"",
    "\"3.1.1\"",
    "[store]",
    "[connection.x]",
    "[[pipeline]]",
    "[listener]",
    "[zuul]",
    "\"\"\"",
    "'''",
    "\"{tenant}/{x}\"",
    "[\"a:1\", \"b\"]",
    "{ topic = \"a\", qos = 3 }",
];

/// The lines of a text, as editors count them, and one more, where it ends.
pub fn lines(text: &str) -> usize {
    text.matches('\n').count() + 1
}

fn check_config(bytes: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Outcome::refused("not UTF-8") };
    // The parser has an error for each byte that is out of place.
    let config = match bounded(bytes.len(), 1_000, || config::from_str(text, "x.toml")) {
        Ok(config) => config,
        Err(errors) => {
            assert!(!errors.mistakes.is_empty());
            for mistake in &errors.mistakes {
                assert_eq!(mistake.file, "x.toml", "{mistake}");
                // The parser doesn't say where it is too deep; and so many are told that one more line says how many there are.
                let Some(line) = mistake.line else {
                    assert!(mistake.message.contains("recursion limit") || mistake.message.contains("more mistakes"), "no line: {mistake}");
                    continue;
                };
                assert!((1..=lines(text)).contains(&line), "line {line} of {}: {mistake}", lines(text));
                assert!(!mistake.message.is_empty() && mistake.message.len() < 2_000 + 2 * text.len(), "{mistake}");
            }
            let first = &errors.mistakes[0];
            return Outcome::refused(kind_of(&first.message));
        }
    };
    config.notes.iter().for_each(|note| assert_readable(note));
    let config::HttpConfig { listen, max_report, max_batch, tokens, anonymous, .. } = config.http;
    assert!((listen.ip().is_loopback() || anonymous || !tokens.is_empty()) && max_report >= 1 && max_batch >= max_report);
    assert!(are_distinct(tokens.iter().map(|token| token.name.clone())));
    assert!(config.retry.initial_ms > 0 && config.retry.max_ms >= config.retry.initial_ms && config.retry.attempts > 0);
    assert!(are_distinct(config.connections.iter().map(|connection| connection.name.clone())));
    for connection in &config.connections {
        assert!(!connection.servers.is_empty() && connection.workers > 0 && connection.window > 0 && connection.window_3_1_1 > 0);
        assert!(connection.user.is_some() || connection.password.is_none());
    }
    let reporters = config.routes.entries().iter().flat_map(|entry| entry.reporters.values().flatten());
    for reporter in reporters {
        assert!(config.connections.iter().any(|connection| connection.name == reporter.connection), "{reporter:?} leads nowhere");
    }
    Outcome::accepted(format!("{} {} {}", config.connections.len().min(3), config.listener.is_some(), config.routes.entries().len().min(3)))
}

#[test]
fn a_configuration_is_understood_or_each_mistake_has_its_line() {
    run("config", 5_000, vec![], &Mutator { form: Form::Lines, words: WORDS }, check_config);
}

/// One text as a duration, as a size, and what became of both.
fn check_units(bytes: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Outcome::refused("not UTF-8") };
    let quoted = serde_json::to_string(text).unwrap();
    let store = |key: &str, value: &str| {
        let text = format!(
            "[store]\n{key} = {value}\n[connection.mqtt]\ndriver = \"mqtt\"\n[[pipeline]]\nname = \"p\"\nstart.mqtt = {{ topic = \"t\" }}\n"
        );
        bounded(value.len(), 400, || config::from_str(&text, "x.toml")).map(|config| config.store)
    };
    let (duration, size) = (store("retention", &quoted), store("max_size", &quoted));
    assert!(duration.is_err() || size.is_err(), "{text:?} is both");
    if let Ok(found) = duration {
        let shown = format_duration(found.retention_ms);
        assert_eq!(store("retention", &format!("\"{shown}\"")).unwrap().retention_ms, found.retention_ms, "{text:?} is shown as {shown}");
        return Outcome::accepted(format!("duration {}", kind_of(&shown)));
    }
    match size {
        Ok(found) => {
            let shown = format_size(found.max_size);
            assert_eq!(store("max_size", &format!("\"{shown}\"")).unwrap().max_size, found.max_size, "{text:?} is shown as {shown}");
            Outcome::accepted(format!("size {}", shown.trim_start_matches(|c: char| c.is_ascii_digit())))
        }
        Err(errors) => {
            assert!(
                errors
                    .mistakes
                    .iter()
                    .all(|mistake| mistake.line == Some(2) && mistake.key.is_some() || mistake.message.starts_with("not TOML")),
                "{errors}"
            );
            Outcome::refused(kind_of(&errors.mistakes[0].message))
        }
    }
}

#[test]
fn a_duration_or_size_that_is_understood_is_shown_so_that_it_reads_back() {
    const UNITS: &[&str] = &[
        "s",
        "ms",
        "m",
        "h",
        "d",
        "w",
        "months",
        "years",
        "us",
        "ns",
        " ",
        "KiB",
        "MiB",
        "GiB",
        "TiB",
        "kB",
        "MB",
        "GB",
        "TB",
        "B",
        ".",
        "-",
        "+",
        "1e3",
        "0",
        "18446744073709551615",
    ];
    let seeds =
        ["7d", "1h 30m", "500ms", "10GiB", "64 MiB", "100MB", "1w 2days", "40000000kB"].map(|text| text.as_bytes().to_vec()).to_vec();
    run("units", 1_200, seeds, &Mutator { form: Form::Bytes, words: UNITS }, check_units);
}
