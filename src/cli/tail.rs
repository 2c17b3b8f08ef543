//! `tidings tail`: what happens, live. It survives a restart of the service, and goes on where it was.

use std::io::{self, BufRead, BufReader, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::{Client, ClientError, ServiceArgs};
use super::{output, shown};

/// One connection lasts so long at most, then another takes over: that is how a service that went away without a word is noticed.
const ONE_CONNECTION: Duration = Duration::from_secs(600);

/// A service that was there is waited for so often, a second each.
const TRIES: u32 = 60;

/// The arguments of `tidings tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArgs {
    /// Begin behind this event, if the log still has it, instead of now
    #[arg(long, value_name = "POSITION")]
    pub after: Option<u64>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Print JSON, one event a line
    #[arg(long)]
    pub json: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Why it ends.
enum End {
    /// Enough has been seen, by us or by whoever reads us.
    Enough,
    /// The connection is over; there may be another.
    Broken,
    /// Printing failed.
    Printing(io::Error),
}

/// Prints what happens.
pub fn run(args: &TailArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client.waiting_for(ONE_CONNECTION),
        Err(error) => return error.complain(),
    };
    let mut tail = Tail { last: args.after.map(|after| after.to_string()), left: args.count, is_json: args.json };
    let (mut was_there, mut tries) = (false, 0);
    loop {
        let headers: Vec<(&str, &str)> = tail.last.as_deref().map(|last| ("Last-Event-ID", last)).into_iter().collect();
        match client.stream("/v1/events", &headers) {
            Ok(body) => {
                (was_there, tries) = (true, 0);
                match tail.follow(BufReader::new(body)) {
                    End::Enough => return ExitCode::SUCCESS,
                    End::Printing(error) => return output::complain(&format!("printing failed: {error}")),
                    End::Broken => {}
                }
            }
            Err(ClientError::Refused { status: 503, .. } | ClientError::Unreachable { .. } | ClientError::Broken { .. })
                if was_there && tries < TRIES =>
            {
                tries += 1;
            }
            Err(error) => return error.complain(),
        }
        thread::sleep(Duration::from_secs(1));
    }
}

struct Tail {
    /// The id of the last event.
    last: Option<String>,
    left: Option<u64>,
    is_json: bool,
}

impl Tail {
    /// Prints events until the connection ends.
    fn follow(&mut self, body: impl BufRead) -> End {
        let (mut id, mut name, mut data) = (None, String::new(), String::new());
        for line in body.lines() {
            let Ok(line) = line else { return End::Broken };
            if let Some(value) = line.strip_prefix("id: ") {
                id = Some(value.to_owned());
            } else if let Some(value) = line.strip_prefix("event: ") {
                value.clone_into(&mut name);
            } else if let Some(value) = line.strip_prefix("data: ") {
                value.clone_into(&mut data);
            } else if line.is_empty() && !name.is_empty() {
                let text = if self.is_json { as_json(id.as_deref(), &name, &data) } else { as_text(&name, &data) };
                let mut stdout = io::stdout().lock();
                match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return End::Enough,
                    Err(error) => return End::Printing(error),
                }
                self.last = id.take().or(self.last.take());
                name.clear();
                if let Some(left) = &mut self.left {
                    *left -= 1;
                    if *left == 0 {
                        return End::Enough;
                    }
                }
            }
        }
        End::Broken
    }
}

fn as_json(id: Option<&str>, name: &str, data: &str) -> String {
    let data: Value = serde_json::from_str(data).unwrap_or(Value::Null);
    format!("{}\n", serde_json::json!({ "position": id, "event": name, "data": data }))
}

/// When, what, where, and what else there is to say.
fn as_text(name: &str, data: &str) -> String {
    let data: Value = serde_json::from_str(data).unwrap_or(Value::Null);
    let text = |field: &str| match &data[field] {
        Value::String(text) => shown::plain(text),
        Value::Null => String::new(),
        other => shown::plain(&other.to_string()),
    };
    let at: String = text("at").chars().skip(11).take(8).collect();
    let lane = format!("{}/{}", text("connection"), text("lane"));
    let of_many = || match data["ids"].as_array().map(Vec::as_slice) {
        Some([one]) => shown::plain(one.as_str().unwrap_or_default()),
        _ => format!("{} deliveries", text("count")),
    };
    let rest = match name {
        "accepted" => format!("{} {lane} {}", text("id"), text("topic")),
        "delivered" => format!("{} {lane} {}", of_many(), text("proof")),
        "expired" => format!("{} {lane}", of_many()),
        "discarded" | "moved" => format!("{} {lane} by {}: {}", of_many(), text("by"), text("reason")),
        "refused" => format!("{} {lane} with {}, again at {}", text("id"), text("code"), text("retry_at")),
        "dead" => format!("{} {lane} {}", text("id"), text("message")),
        "requeued" => format!("{} {lane} by {}", text("id"), text("by")),
        "sent_again" => format!("{} {lane}", text("id")),
        "session" => format!("{lane} MQTT {}, {} possible duplicates", text("protocol"), text("possible_duplicates")),
        "lane" => format!("{lane} {} {}{}", text("state"), text("server"), text("error")),
        "lanes" => format!("{} has {} lanes from {} on", text("connection"), text("count"), text("first")),
        "replay_started" => format!("replay {} was begun by {}", text("replay"), text("by")),
        "replay_ended" => format!("replay {} has ended", text("replay")),
        "joined" => format!("{} is {}", text("instance"), text("name")),
        "left" if text("instance") == text("by") => text("instance"),
        "left" => format!("{}, as {} says, which has not heard of it", text("instance"), text("by")),
        "lane_taken" => format!("{lane} by {}, term {}", text("instance"), text("term")),
        "lane_left" => format!("{lane} by {}", text("instance")),
        "audit" => format!("{}: {}", text("who"), text("what")),
        "missed" => format!("{} events: {}", text("events"), text("why")),
        _ => shown::plain(&data.to_string()),
    };
    format!("{at:8}  {:<10}  {}\n", shown::plain(name), rest.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let data = r#"{"at":"2026-05-04T12:00:01.000Z","connection":"mqtt","lane":1,"id":"7","topic":"a\u001b[2J\nb"}"#;
        assert_eq!(as_text("accepted", data), "12:00:01  accepted    7 mqtt/1 a\\u{1b}[2J\\u{a}b\n");
        let taken = r#"{"at":"2026-05-04T12:00:01.000Z","connection":"mqtt","lane":1,"instance":"0a","term":3}"#;
        assert_eq!(as_text("lane_taken", taken), "12:00:01  lane_taken  mqtt/1 by 0a, term 3\n");
        let left = |by: &str| as_text("left", &format!(r#"{{"at":"2026-05-04T12:00:01.000Z","instance":"0a","by":"{by}"}}"#));
        assert_eq!(
            (left("0a").as_str(), left("0b").as_str()),
            ("12:00:01  left        0a\n", "12:00:01  left        0a, as 0b says, which has not heard of it\n")
        );
        assert_eq!(as_text("missed", r#"{"events":9,"why":"too slow"}"#), "          missed      9 events: too slow\n");
    }
}
