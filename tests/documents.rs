//! What the documents say is so: codes, settings, messages, metrics and links are held against the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidings::config;
use tidings::core::report::Report;
use tidings::ingest::http::status_of;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text_of(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The blocks of a document that are fenced as `kind`.
fn blocks(document: &str, kind: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if line.trim().trim_start_matches("- ") == format!("```{kind}") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            blocks.push(block.join("\n"));
        }
    }
    blocks
}

/// All sources of the crate, each string on one line as the compiler reads it.
fn sources(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all += &joined(&fs::read_to_string(path).unwrap());
        }
    }
    all
}

/// A backslash at the end of a line takes the newline and the blanks after it away.
fn joined(source: &str) -> String {
    let mut parts = source.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.trim_start())
}

/// The codes of `http.md`, each with its status.
fn documented_codes() -> BTreeMap<String, u16> {
    let document = text_of("ops/http.md");
    let rows = document.split("## Errors").nth(1).expect("http.md has a section of errors").lines();
    let rows = rows.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.filter_map(|(code, rest)| Some((code.to_owned(), rest.get(..3)?.parse().ok()?))).collect()
}

/// The codes that the sources give to errors which leave over HTTP.
fn codes_of_the_sources() -> BTreeSet<String> {
    // The errors that can be the answer to a request.
    const ANSWERS: [&str; 9] =
        ["Refusal", "AcceptError", "BodyError", "BatchError", "CommitError", "AppendError", "ReadError", "ReportError", "RenderError"];
    let mut codes = BTreeSet::new();
    let all = sources(&root().join("src"));
    for name in ANSWERS {
        let own = all.split(&format!("\nimpl {name} {{")).skip(1).find_map(|part| part.split_once("pub fn code(&self) -> &'static str {"));
        let (_, body) = own.unwrap_or_else(|| panic!("{name} has no code(); has it gone, or got another name?"));
        codes.extend(words(body.split("\n    }\n").next().unwrap_or_default()));
    }
    for call in all.split("ApiError::new(StatusCode::").skip(1) {
        codes.extend(words(call.split(',').nth(1).unwrap_or_default()));
    }
    let guard = text_of("src/server/guard.rs");
    let line = guard.lines().find(|line| line.contains("let code = if")).expect("the guard chooses between two codes");
    codes.extend(words(line));
    let known = text_of("src/ingest/http.rs");
    codes.extend(words(known.split("match code {").nth(1).unwrap().split("\n    }\n").next().unwrap()));
    codes
}

/// Quoted words in lower case.
fn words(text: &str) -> impl Iterator<Item = String> {
    let quoted = text.split('"').skip(1).step_by(2);
    quoted.filter(|word| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')).map(str::to_owned)
}

#[test]
fn every_error_code_of_the_api_stands_in_its_table_and_no_other() {
    let documented: BTreeSet<String> = documented_codes().into_keys().collect();
    assert_eq!(documented, codes_of_the_sources());
}

#[test]
fn the_table_of_error_codes_has_the_statuses_that_are_sent() {
    // These are the server's own and those of moves and backups, and none of a report's.
    let others = BTreeMap::from([
        ("invalid_host", 400),
        ("forbidden_host", 403),
        ("forbidden_origin", 403),
        ("not_found", 404),
        ("method_not_allowed", 405),
        ("unknown_connection", 404),
        ("not_configured", 409),
        ("invalid_move", 422),
        ("move_failed", 503),
        ("change_failed", 503),
        ("no_such_backup", 404),
        ("unknown_delivery", 404),
        ("past_retention", 404),
        ("invalid_query", 422),
        ("backup_under_way", 409),
    ]);
    for (code, documented) in documented_codes() {
        let sent = others.get(code.as_str()).copied().unwrap_or_else(|| status_of(&code).0.as_u16());
        assert_eq!(documented, sent, "{code}");
    }
}

#[test]
fn the_readmes_configuration_has_no_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let readme = text_of("README.md");
    let blocks = blocks(&readme, "toml");
    assert_eq!(blocks.len(), 1);
    let file = folder.path().join("tidings.toml");
    fs::write(&file, &blocks[0]).unwrap();
    let config = config::load(&file).unwrap();
    let report = readme.split_once("<<'JSON'\n").and_then(|(_, rest)| rest.split_once("JSON\n")).expect("README has a report").0;
    let report = Report::parse(report.as_bytes().to_vec().into()).unwrap();
    let routed = config.routes.route(&report).unwrap();
    assert_eq!(routed.len(), 1);
    assert!(readme.contains(&format!("\"topic\":\"{}\",\"qos\":2", routed[0].topic.as_str())), "README names another topic");
}

#[test]
fn the_example_configuration_has_no_mistakes() {
    let mut check = Command::new(env!("CARGO_BIN_EXE_tidings"));
    let checked = check.args(["check", "--config"]).arg(root().join("ops/tidings.example.toml")).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn every_message_that_the_runbook_quotes_is_one_of_the_codes() {
    let sources = sources(&root().join("src"));
    let quoted: Vec<String> = blocks(&text_of("ops/runbook.md"), "log").iter().flat_map(|block| block.lines()).map(str::to_owned).collect();
    assert!(quoted.len() > 15, "only {} messages were found", quoted.len());
    for message in quoted {
        for part in message.trim_start().split('…').filter(|part| part.trim().len() > 3) {
            assert!(sources.contains(part), "no source says {part:?}, which stands in the runbook: {message}");
        }
    }
}

#[test]
fn every_alert_has_its_section_in_the_runbook() {
    let runbook = text_of("ops/runbook.md");
    let anchor =
        |title: &str| title.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == ' ').collect::<String>().replace(' ', "-");
    let sections: BTreeSet<String> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect();
    let alerts = text_of("ops/alerts.yml");
    let named: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("runbook: runbook.md#")).collect();
    assert_eq!(named.len(), alerts.matches("- alert:").count());
    for name in named {
        assert!(sections.contains(name), "the runbook has no section {name}: {sections:?}");
    }
}

#[test]
fn every_metric_that_an_alert_looks_at_exists() {
    let table = text_of("src/metrics.rs");
    for file in ["ops/alerts.yml", "ops/alerts.test.yml", "ops/runbook.md"] {
        let text = text_of(file);
        let metrics = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_')).filter(|word| word.starts_with("tidings_"));
        for metric in metrics.map(|name| name.trim_end_matches("_bucket")) {
            assert!(table.contains(&format!("    {metric}: ")), "{file} names {metric}, which is not a metric");
        }
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for document in ["README.md", "CHANGELOG.md", "ops/http.md", "ops/runbook.md", "ops/zuul.md", "migrations/README.md", "tests/README.md"]
    {
        let text = text_of(document);
        let here = root().join(document).parent().unwrap().to_owned();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap_or_default().split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                assert!(here.join(target).exists(), "{document} links to {target}, which is not there");
            }
        }
    }
}

/// The patches of `tests/mutations/`, by name.
fn mutations() -> BTreeMap<String, String> {
    let mut mutations = BTreeMap::new();
    for entry in fs::read_dir(root().join("tests/mutations")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.extension().and_then(|extension| extension.to_str()), Some("patch"), "{path:?} is no patch");
        mutations.insert(path.file_stem().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap());
    }
    mutations
}

#[test]
fn every_mutation_stands_in_the_table_of_promises_and_no_other() {
    let document = text_of("tests/README.md");
    let promises = document.split("## Promises").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("it has a section of promises");
    // | promise | who holds it | the mutations that show it |
    let shown =
        promises.lines().filter_map(|line| line.strip_prefix("| ")?.trim_end_matches(" |").rsplit_once(" | ")).map(|(_, shown)| shown);
    let named: Vec<String> = shown.flat_map(|shown| shown.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    let once: BTreeSet<String> = named.iter().cloned().collect();
    assert_eq!(named.len(), once.len(), "each stands there once");
    assert_eq!(once, mutations().into_keys().collect());
}

#[test]
fn every_mutation_says_what_it_breaks_and_which_tests_have_to_notice() {
    for (name, patch) in mutations() {
        let (head, diff) = patch.split_once("\n--- a/").unwrap_or_else(|| panic!("{name} has no diff"));
        let said =
            |key: &str| head.lines().filter_map(|line| line.strip_prefix("# ")?.strip_prefix(key)?.strip_prefix(": ")).collect::<Vec<_>>();
        assert_eq!(said("promise").len(), 1, "{name}: one line `# promise: …`");
        let commands = said("caught by");
        assert!(!commands.is_empty(), "{name}: a line `# caught by: cargo test …`");
        for command in commands {
            let target = command.split_once("cargo test ").unwrap_or_else(|| panic!("{name}: {command}")).1;
            assert!(target.starts_with("--lib ") || target.starts_with("--test "), "{name}: {command} runs more than it needs");
        }
        assert!(diff.lines().all(|line| !line.starts_with("+++ b/") || line.starts_with("+++ b/src/")), "{name} changes what is no source");
    }
}
