//! `tidings fsck`: is the store whole; and with `--repair`: make one out of what is.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::output::count;
use super::store::{Bar, StoreArgs, describe};
use super::{FAILED, output};
use crate::core::types::{LaneKey, Seq};
use crate::log::sled_log::{Finding, RepairError, Repaired, Report, fsck, repair};

/// So many findings and ids are printed; `--json` has them all.
const LISTED: usize = 40;

/// The arguments of `tidings fsck`.
#[derive(Debug, Clone, Args)]
pub struct FsckArgs {
    /// Which store.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Write a new store out of what is whole, and move the damaged one aside
    #[arg(long)]
    pub repair: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Checks, or repairs.
pub fn run(args: &FsckArgs) -> ExitCode {
    let store = match args.store.folder() {
        Ok(store) => store,
        Err(code) => return code,
    };
    if args.repair { mend(&store, args.json) } else { check(&store, args.json) }
}

fn check(store: &Path, as_json: bool) -> ExitCode {
    let bar = Bar::default();
    let checked = fsck(store, &bar);
    drop(bar);
    let report = match checked {
        Ok(report) => report,
        Err(error) => return output::complain(&describe(&error)),
    };
    let text = if as_json { format!("{:#}\n", report_json(&report)) } else { report_text(&report) };
    let printed = output::print(&text);
    if report.findings.is_empty() { printed } else { ExitCode::from(FAILED) }
}

fn mend(store: &Path, as_json: bool) -> ExitCode {
    let bar = Bar::default();
    let repaired = repair(store, &bar);
    drop(bar);
    match repaired {
        Ok(repair) => {
            let text = match (&repair.done, as_json) {
                (None, true) => format!("{:#}\n", json!({"found": report_json(&repair.before), "repaired": Value::Null})),
                (Some(done), true) => format!("{:#}\n", json!({"found": report_json(&repair.before), "repaired": repaired_json(done)})),
                (None, false) => format!("{}nothing to repair\n", report_text(&repair.before)),
                (Some(done), false) => format!("{}\n{}", report_text(&repair.before), repaired_text(done)),
            };
            output::print(&text)
        }
        Err(RepairError::Open(error)) => output::complain(&describe(&error)),
        Err(error) => output::complain(&error.to_string()),
    }
}

fn events((first, last): (Seq, Seq)) -> String {
    if first == last { format!("event {first}") } else { format!("events {first} to {last}") }
}

fn report_text(report: &Report) -> String {
    let id = report.store_id.map_or("its id is lost".to_owned(), |id| format!("id {id}"));
    let stop = if report.is_clean { "closed in order" } else { "not closed in order, as after a kill" };
    let checked = &report.checked;
    let mut text = format!("store {} ({id}), {stop}\n", report.store.display());
    text.push_str(&format!(
        "checked: {}, {}, {}, {} in {:.1} s ({:.2} GiB/s)\n",
        count(checked.generations, "generation", "generations"),
        count(checked.pages, "page", "pages"),
        count(checked.events, "event", "events"),
        output::size(checked.bytes),
        checked.took.as_secs_f64(),
        speed(report),
    ));
    let certain = if report.is_certain { "" } else { ", as far as can be said: events are missing, so some of these may be done" };
    text.push_str(&format!("pending: {}, dead letters: {}{certain}\n", report.pending, report.dead));
    if report.lost_before > 0 {
        text.push_str(&format!(
            "{} lost before, and filled in by an earlier repair\n",
            count(report.lost_before, "event was", "events were")
        ));
    }
    for note in &report.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    if report.findings.is_empty() {
        text.push_str("no damage found\n");
        return text;
    }
    text.push_str(&format!("\ndamage: {}\n", count(report.findings.count(), "finding", "findings")));
    for finding in report.findings.listed.iter().take(LISTED) {
        text.push_str(&format!("  {}\n", finding_text(finding)));
    }
    let more = report.findings.count().saturating_sub(LISTED as u64);
    if more > 0 {
        text.push_str(&format!("  … and {more} more (--json)\n"));
    }
    let unreadable = report.unreadable_count();
    text.push_str(&match unreadable {
        0 => "\nno pending or dead delivery is hit, as far as the log tells\n".to_owned(),
        _ => format!("\n{} can't be read:\n", count(unreadable, "pending or dead delivery", "pending or dead deliveries")),
    });
    for lost in &report.unreadable {
        let kind = if lost.is_dead { "dead" } else { "pending" };
        text.push_str(&format!("  lane {}: {} {kind}\n", lost.lane, lost.sends.count()));
        for (id, topic) in lost.known.iter().take(LISTED) {
            let topic = topic.as_ref().map_or(String::new(), |topic| format!(" {topic} (readable at its first place)"));
            text.push_str(&format!("    id {id}{topic}\n"));
        }
    }
    text
}

fn finding_text(finding: &Finding) -> String {
    let mut place: Vec<String> = Vec::new();
    place.extend(finding.generation.map(|first| format!("g{:020}", first.0)));
    place.extend(finding.file.clone());
    let mut text = place.join("/");
    if let Some(found) = finding.events {
        let separator = if text.is_empty() { "" } else { ", " };
        text.push_str(&format!("{separator}{}", events(found)));
    }
    if text.is_empty() { finding.what.clone() } else { format!("{text}: {}", finding.what) }
}

fn speed(report: &Report) -> f64 {
    report.checked.bytes as f64 / f64::from(1 << 30) / report.checked.took.as_secs_f64().max(1e-6)
}

fn report_json(report: &Report) -> Value {
    let findings = report.findings.listed.iter().map(|finding| {
        json!({
            "code": finding.code,
            "generation": finding.generation.map(|first| first.0),
            "file": finding.file,
            "events": finding.events.map(|(first, last)| [first.0, last.0]),
            "what": finding.what,
        })
    });
    let unreadable = report.unreadable.iter().map(|lost| {
        let known = lost.known.iter().map(|(id, topic)| json!({"id": id.to_string(), "topic": topic}));
        json!({
            "connection": lost.lane.connection.as_str(),
            "lane": lost.lane.lane,
            "state": if lost.is_dead { "dead" } else { "pending" },
            "count": lost.sends.count(),
            "known": known.collect::<Vec<_>>(),
        })
    });
    json!({
        "store": report.store,
        "store_id": report.store_id.map(|id| id.to_string()),
        "clean": report.is_clean,
        "checked": {
            "generations": report.checked.generations,
            "pages": report.checked.pages,
            "events": report.checked.events,
            "bytes": report.checked.bytes,
            "seconds": report.checked.took.as_secs_f64(),
            "gib_per_second": speed(report),
        },
        "last_event": report.last.0,
        "pending": report.pending,
        "dead": report.dead,
        "certain": report.is_certain,
        "lost_before": report.lost_before,
        "damaged": !report.findings.is_empty(),
        "findings": findings.collect::<Vec<_>>(),
        "more_findings": report.findings.more,
        "unreadable": unreadable.collect::<Vec<_>>(),
        "notes": report.notes,
    })
}

fn repaired_text(done: &Repaired) -> String {
    let store = done.after.store.display();
    let mut text =
        format!("repaired: {store} is whole again, and holds {} pending and {} dead deliveries\n", done.after.pending, done.after.dead);
    if done.lost_events.is_empty() {
        text.push_str("no event is lost\n");
    } else {
        let named: Vec<String> = done.lost_events.iter().take(LISTED).map(|lost| events(*lost)).collect();
        let more = done.lost_events.len().saturating_sub(LISTED);
        let more = if more > 0 { format!(" … and {more} more (--json)") } else { String::new() };
        text.push_str(&format!("lost: {}{more}\n", named.join(", ")));
        text.push_str("deliveries whose outcome was among these arrive again\n");
    }
    if done.lost_the_end {
        text.push_str("the end of the log is lost: what was accepted in it is gone, and which deliveries those were is not known\n");
    }
    for (LaneKey { connection, lane }, count) in &done.given_up {
        text.push_str(&format!(
            "given up, because they can't be read: {count} of lane {connection}/{lane}; in the books they are discarded\n"
        ));
    }
    if done.carried > 0 {
        text.push_str(&format!("{} saved from their first place\n", count(done.carried, "delivery was", "deliveries were")));
    }
    if let Some(id) = done.new_id {
        text.push_str(&format!("its identity was lost: the store has the new id {id}\n"));
    }
    text.push_str("every lane opens a new session at the broker, so what was in flight may arrive twice\n");
    text.push_str(&format!("the damaged store is kept in {}\n", done.damaged.display()));
    text.push_str(&format!("raw bytes of what could not be saved: {}\n", done.quarantine.display()));
    text
}

fn repaired_json(done: &Repaired) -> Value {
    let lost = done.lost_events.iter().map(|(first, last)| [first.0, last.0]);
    let given_up =
        done.given_up.iter().map(|(lane, count)| json!({"connection": lane.connection.as_str(), "lane": lane.lane, "count": count}));
    json!({
        "store": report_json(&done.after),
        "damaged_store": done.damaged,
        "quarantine": done.quarantine,
        "lost_events": lost.collect::<Vec<_>>(),
        "lost_the_end": done.lost_the_end,
        "given_up": given_up.collect::<Vec<_>>(),
        "saved_from_first_place": done.carried,
        "new_store_id": done.new_id.map(|id| id.to_string()),
    })
}
