//! What the documents say is so: codes, settings, messages, metrics and links are held against the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use tidings::cli::Arguments;
use tidings::config;
use tidings::core::listener::Close;
use tidings::core::report::Report;
use tidings::core::retry::reason_name;
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
        ("not_in_a_folder", 409),
        ("unauthorized", 401),
        ("forbidden", 403),
        ("too_many_attempts", 429),
        ("rate_limited", 429),
        ("unknown_replay", 404),
        ("too_many_replays", 409),
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

/// How a heading is linked to.
fn anchor(title: &str) -> String {
    title.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-').collect::<String>().replace(' ', "-")
}

/// The sections of a document, by their anchors.
fn sections(document: &str) -> BTreeMap<String, String> {
    let parts = document.split("\n## ").skip(1).map(|part| part.split_once('\n').unwrap_or((part, "")));
    parts.map(|(title, text)| (anchor(title), text.to_owned())).collect()
}

/// The alerts, each with its lines.
fn alerts() -> BTreeMap<String, String> {
    let rules = text_of("ops/alerts.rules.yml");
    let parts = rules.split("      - alert: ").skip(1).map(|part| part.split_once('\n').unwrap());
    parts.map(|(name, lines)| (name.to_owned(), lines.to_owned())).collect()
}

#[test]
fn what_the_table_of_symptoms_quotes_is_what_somebody_sees() {
    let runbook = text_of("ops/runbook.md");
    let (sources, alerts) = (sources(&root().join("src")), alerts());
    let cells = runbook.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let quoted: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(quoted.len() > 25, "only {quoted:?} were found");
    for symptom in quoted.into_iter().filter(|quoted| !alerts.contains_key(*quoted)) {
        for part in symptom.split('…').filter(|part| part.trim().len() > 3) {
            assert!(sources.contains(part.trim()), "nobody says {part:?}, which is a symptom: {symptom}");
        }
    }
}

#[test]
fn every_alert_says_what_it_means_and_has_its_section_in_the_runbook() {
    let runbook = text_of("ops/runbook.md");
    let (sections, symptoms) = (sections(&runbook), runbook.split("\n## ").next().unwrap());
    let alerts = alerts();
    assert!(alerts.len() > 15, "only {} alerts were found", alerts.len());
    for (alert, lines) in alerts {
        for needed in ["expr: ", "summary: ", "description: ", "        # "] {
            assert!(lines.contains(needed), "{alert} has no {needed:?}");
        }
        let severity = lines.split("severity: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert!(["page", "warn", "info"].contains(&severity), "{alert} has the severity {severity:?}");
        let named = lines.lines().find_map(|line| line.trim().strip_prefix("runbook_url: runbook.md#")).expect("a section of the runbook");
        let section = sections.get(named).unwrap_or_else(|| panic!("the runbook has no section {named}: {:?}", sections.keys()));
        let places = ["- **Means:** ", "- **Look:** ", "- **Do:** "].map(|word| section.find(word));
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{named}: what it means, where to look, what to do");
        assert!(symptoms.contains(&format!("`{alert}`")), "{alert} is not in the table of symptoms");
    }
}

#[test]
fn every_alert_is_seen_to_fire_and_not_to_fire() {
    let tests = ["rules", "cluster", "week"].map(|name| text_of(&format!("ops/alerts.{name}.test.yml"))).concat();
    for alert in alerts().into_keys() {
        let not = tests.matches(&format!("- {{ alertname: {alert}, eval_time: ")).count();
        // Once while all is well, and before and after.
        assert!(not >= 3, "{alert} is looked at {not} times when it should not fire");
        assert!(tests.contains(&format!("- alertname: {alert}\n")), "{alert} is never seen to fire");
    }
}

/// Name and labels of each metric of the table.
fn metrics_of_the_table() -> BTreeMap<String, Vec<String>> {
    let table = text_of("src/metrics.rs");
    let rows = table.lines().filter_map(|line| line.strip_prefix("    tidings_")?.split_once(": "));
    let labels = |made: &str| match made.split_once("&[\"") {
        Some((_, labels)) => labels.split(']').next().unwrap().split(", ").map(|label| label.trim_matches('"').to_owned()).collect(),
        None => Vec::new(),
    };
    rows.map(|(name, made)| (format!("tidings_{name}"), labels(made))).collect()
}

#[test]
fn every_metric_is_documented_with_its_labels_and_no_other() {
    let document = text_of("ops/metrics.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let row = |(written, _): (&str, &str)| match written.split_once('{') {
        Some((name, labels)) => (name.to_owned(), labels.trim_end_matches('}').split(',').map(str::to_owned).collect()),
        None => (written.to_owned(), Vec::new()),
    };
    assert_eq!(rows.map(row).collect::<BTreeMap<_, Vec<String>>>(), metrics_of_the_table());
}

#[test]
fn every_metric_that_an_alert_looks_at_exists() {
    let metrics = metrics_of_the_table();
    for file in [
        "ops/alerts.rules.yml",
        "ops/alerts.rules.test.yml",
        "ops/alerts.cluster.test.yml",
        "ops/alerts.week.test.yml",
        "ops/runbook.md",
        "ops/grafana-dashboard.json",
    ] {
        let text = text_of(file);
        let named = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_')).filter(|word| word.starts_with("tidings_"));
        for name in named {
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
            assert!(metrics.contains_key(plain) || metrics.contains_key(name), "{file} names {name}, which is not a metric");
        }
    }
}

/// The codes in the first column of a section's table.
fn rows_of(section: &str) -> BTreeSet<String> {
    let first = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    first.flat_map(|cell| cell.split(", ")).map(|code| code.trim_matches('`').to_owned()).collect()
}

#[test]
fn every_code_that_somebody_can_meet_has_its_row_in_the_runbook() {
    let sections = sections(&text_of("ops/runbook.md"));
    let rows = |name: &str| rows_of(sections.get(name).unwrap_or_else(|| panic!("the runbook has no section {name}")));
    let missing = |name: &str, codes: BTreeSet<String>| {
        let rows = rows(name);
        assert!(codes.len() > 2, "{name}: only {codes:?} were found");
        assert_eq!(codes.difference(&rows).collect::<Vec<_>>(), Vec::<&String>::new(), "not in {name}");
    };
    missing("codes-of-http-answers", documented_codes().into_keys().collect());
    let known = (0x80..=0xffu8).map(|code| (code, reason_name(code))).filter(|(_, name)| *name != "unknown reason");
    missing("codes-of-brokers", known.map(|(code, name)| format!("0x{code:02x} {name}")).collect());
    missing("exit-codes", ["0", "1", "2"].map(str::to_owned).into());
    let ends = ["src/ingest/mqtt", "src/core/listener"].map(|folder| sources(&root().join(folder))).concat();
    let codes =
        ends.split("Close::new(").skip(1).filter_map(|call| call.split(')').next()?.trim_start().strip_prefix('"')?.split('"').next());
    let topics = text_of("src/core/topic/mod.rs");
    let topics = topics.split("TopicError::").filter_map(|arm| arm.split_once("=> \"")?.1.split('"').next());
    let codes = codes.chain(topics).chain(["malformed_packet", "store_full", "invalid_topic"]);
    let codes = codes.filter(|code| Close::new(known_code(code), 0, "").is_clients_fault());
    missing("codes-of-the-mqtt-listener", codes.map(str::to_owned).collect());
}

/// The code as text that lives for as long as it has to.
fn known_code(code: &str) -> &'static str {
    code.to_owned().leak()
}

#[test]
fn every_command_in_the_runbook_is_one() {
    let runbook = text_of("ops/runbook.md");
    let blocks = blocks(&runbook, "sh");
    let in_blocks = blocks.iter().flat_map(|block| block.lines()).map(|line| line.split('#').next().unwrap_or_default().trim());
    let without_blocks = runbook.split("```").step_by(2).collect::<Vec<_>>().concat();
    let in_text: Vec<&str> = without_blocks.split('`').skip(1).step_by(2).collect();
    let commands: Vec<&str> = in_blocks.chain(in_text).filter(|command| command.starts_with("tidings ")).collect();
    assert!(commands.len() > 30, "only {} commands were found", commands.len());
    for written in commands {
        let mut command = Arguments::command();
        command.build();
        let mut is_named = false;
        for word in written.split_whitespace().skip(1) {
            if let Some(next) = command.find_subcommand(word).cloned() {
                (command, is_named) = (next, true);
            } else if let Some(option) = word.strip_prefix("--") {
                let has_it = command.get_arguments().any(|argument| argument.get_long() == Some(option));
                assert!(has_it, "`{written}`: there is no --{option}");
            } else {
                assert!(is_named, "`{written}`: there is no command {word}");
            }
        }
    }
}

#[test]
fn who_wants_the_store_elsewhere_is_told_what_the_unit_needs_and_the_unit_what_it_is_for() {
    for file in ["ops/tidings.example.toml", "ops/runbook.md"] {
        assert!(text_of(file).contains("`ReadWritePaths=`"), "{file} does not say that the unit has to allow it");
    }
    let unit = text_of("ops/tidings.service");
    let (reason, _) = unit.split_once("\n#ReadWritePaths=/").expect("the unit has a line to be uncommented");
    assert!(reason.rsplit_once("\n\n").unwrap_or_default().1.contains("`store.path`"), "the unit does not say what the line is for");
}

/// The socket would start it again with the first publisher, in the middle of whatever it was stopped for.
#[test]
fn whoever_is_told_to_stop_the_service_is_told_to_stop_its_socket_too() {
    let mut told = 0;
    for file in fs::read_dir(root().join("ops")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = fs::read_to_string(&file).unwrap();
        for after in text.split("systemctl stop ").skip(1).filter(|after| after.starts_with("tidings")) {
            assert!(after.starts_with("tidings.socket tidings"), "{}: systemctl stop {}", file.display(), after.lines().next().unwrap());
            told += 1;
        }
    }
    assert!(told >= 5, "only {told} were found");
}

#[test]
fn every_link_into_the_runbook_leads_to_a_section() {
    let mut sections: BTreeSet<String> = sections(&text_of("ops/runbook.md")).into_keys().collect();
    // Whatever leads to the document as a whole.
    sections.insert(String::new());
    for (document, link) in [
        ("ops/runbook.md", "](#"),
        ("ops/http.md", "](runbook.md#"),
        ("ops/zuul.md", "](runbook.md#"),
        ("ops/installing.md", "](runbook.md#"),
        ("ops/metrics.md", "](runbook.md#"),
        ("ops/cluster.md", "](runbook.md#"),
    ] {
        let text = text_of(document);
        for target in text.split(link).skip(1).map(|rest| rest.split(')').next().unwrap_or_default()) {
            assert!(sections.contains(target), "{document} links to {target}, which is no section of the runbook");
        }
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    for document in [
        "README.md",
        "CHANGELOG.md",
        "ops/cluster.md",
        "ops/http.md",
        "ops/installing.md",
        "ops/metrics.md",
        "ops/performance.md",
        "ops/runbook.md",
        "ops/security.md",
        "ops/zuul.md",
        "migrations/README.md",
        "tests/README.md",
    ] {
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
