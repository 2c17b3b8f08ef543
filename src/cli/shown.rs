//! Deliveries on the terminal. What reports hold was written by strangers: nothing of it reaches the terminal as a control character.

use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime};

use clap::Args;

use super::output;
use crate::admin::deliveries::answers::{Row, Story};
use crate::core::search::State;

/// A terminal is taken to have so many columns, as most have at least.
const COLUMNS: usize = 80;

/// Which deliveries are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct FilterArgs {
    /// Of this tenant
    #[arg(long)]
    pub tenant: Option<String>,
    /// Of this pipeline
    #[arg(long)]
    pub pipeline: Option<String>,
    /// Of this action: start, success, failure, …
    #[arg(long)]
    pub action: Option<String>,
    /// To this topic; + stands for one level and # at the end for all that follow
    #[arg(long)]
    pub topic: Option<String>,
    /// About this change
    #[arg(long)]
    pub change: Option<String>,
    /// For this connection
    #[arg(long)]
    pub connection: Option<String>,
    /// Accepted since: how long ago (2h, 1d 12h), or a time (2026-05-04T12:00:00Z)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Accepted before: how long ago, or a time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

impl FilterArgs {
    /// What is given, by name.
    pub fn given(&self) -> Vec<(&'static str, &str)> {
        let all = [
            ("tenant", &self.tenant),
            ("pipeline", &self.pipeline),
            ("action", &self.action),
            ("topic", &self.topic),
            ("change", &self.change),
            ("connection", &self.connection),
            ("since", &self.since),
            ("until", &self.until),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
    }
}

/// A query string, with everything but letters, digits and `-._~` encoded (RFC 3986 §2).
pub fn query(pairs: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        text.bytes().fold(String::new(), |all, byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => all + &char::from(byte).to_string(),
            other => all + &format!("%{other:02X}"),
        })
    };
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}

/// Text that a terminal only shows: control characters, and those that turn the direction of writing, are spelled out.
pub fn plain(text: &str) -> String {
    let is_told =
        |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    text.chars().fold(String::new(), |mut all, c| {
        match is_told(c) {
            true => all.extend(c.escape_unicode()),
            false => all.push(c),
        }
        all
    })
}

/// Rows under a heading; on a terminal no wider than it is, at the cost of the last column.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let text = output::table(heading, rows);
    if io::stdout().is_terminal() { narrowed(&text) } else { text }
}

fn narrowed(text: &str) -> String {
    let narrow = |line: &str| match line.chars().count() > COLUMNS {
        true => line.chars().take(COLUMNS - 1).chain(['…']).collect(),
        false => line.to_owned(),
    };
    text.lines().map(|line| narrow(line) + "\n").collect()
}

/// How long ago a time of an answer was.
pub fn ago(at: &str) -> String {
    let at = humantime::parse_rfc3339_weak(at).ok();
    let span = at.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
    output::age(Duration::from_secs(span.as_secs()))
}

/// A list of deliveries.
pub fn list(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        vec![
            plain(&row.id),
            row.state.name().to_owned(),
            ago(&row.accepted_at),
            plain(&row.connection),
            row.qos.to_string(),
            plain(&row.topic),
        ]
    };
    table(&["ID", "STATE", "AGE", "CONNECTION", "QOS", "TOPIC"], &rows.iter().map(cells).collect::<Vec<_>>())
}

/// A list of dead letters.
pub fn dead(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let (code, why) = match &row.dead {
            Some(dead) => (plain(&dead.code), plain(&dead.message)),
            None => ("-".to_owned(), format!("see tidings show {}", plain(&row.id))),
        };
        vec![plain(&row.id), row.dead_at.as_deref().map(ago).unwrap_or_default(), plain(&row.connection), code, plain(&row.topic), why]
    };
    table(&["ID", "DEAD FOR", "CONNECTION", "CODE", "TOPIC", "WHY"], &rows.iter().map(cells).collect::<Vec<_>>())
}

/// One delivery, with its history.
pub fn story(story: &Story) -> String {
    let row = &story.row;
    let retained = if row.retain { ", retained" } else { "" };
    let mut lines = vec![
        format!("delivery {}: {}", plain(&row.id), row.state.name()),
        format!("  topic       {}", plain(&row.topic)),
        format!("  connection  {}, lane {}, QoS {}{retained}", plain(&row.connection), row.lane, row.qos),
    ];
    let named =
        [("tenant", &row.tenant), ("pipeline", &row.pipeline), ("action", &row.action), ("project", &row.project), ("change", &row.change)];
    lines.extend(named.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("  {name:<10}  {}", plain(value))));
    lines.push(format!("  payload     {} ({})", output::size(row.bytes), properties(story)));
    if let Some(seconds) = story.expiry_seconds {
        lines.push(format!("  expires     {seconds} s after it was accepted"));
    }
    if let Some(replayed) = &story.replay_of {
        lines.push(format!("  replay of   {}", plain(replayed)));
    }
    if let Some(at) = row.retry_at.as_ref().filter(|_| row.state == State::Pending) {
        lines.push(format!("  next try    {}, {} refusals so far", plain(at), row.attempts));
    }
    lines.push("history:".to_owned());
    for chapter in &story.history {
        let at = chapter.at.as_deref().unwrap_or("                   ");
        // Seconds do for reading; --json has all of it.
        let at: String = at.chars().take(19).collect();
        lines.push(format!("  {}  {}", plain(&at), plain(&chapter.says)));
    }
    lines.join("\n") + "\n"
}

fn properties(story: &Story) -> String {
    let named = &story.properties;
    let mut parts = Vec::new();
    parts.extend(named.content_type.as_ref().map(|value| format!("content type {}", plain(value))));
    parts.extend(named.response_topic.as_ref().map(|value| format!("response topic {}", plain(value))));
    parts.extend(named.correlation_data.as_ref().map(|value| format!("correlation data {}", plain(value))));
    parts.extend(named.user.iter().map(|(name, value)| format!("{}={}", plain(name), plain(value))));
    if parts.is_empty() { "no properties".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_write_reaches_the_terminal_as_text_alone() {
        assert_eq!(plain("zuul/\u{1b}[31mred\r\n\u{9b}x\u{202e}y"), "zuul/\\u{1b}[31mred\\u{d}\\u{a}\\u{9b}x\\u{202e}y");
        assert_eq!(plain("Größe/漢字 ✓"), "Größe/漢字 ✓");
    }

    #[test]
    fn a_line_is_cut_where_the_terminal_ends() {
        let text = narrowed(&format!("short\n{}\n", "ä".repeat(200)));
        let lengths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(lengths, [5, 80]);
        assert!(text.ends_with("ä…\n"));
    }

    #[test]
    fn a_query_is_encoded_byte_by_byte() {
        assert_eq!(query(&[("topic", "a/+/#"), ("tenant", "ä & b")]), "topic=a%2F%2B%2F%23&tenant=%C3%A4%20%26%20b");
    }
}
