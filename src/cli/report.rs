//! `tidings report`: posts a report, or many as NDJSON, to a running service.
//!
//! Each invocation makes an `Idempotency-Key` of its own. So it may try again when the service is overloaded or restarting, or when the connection
//! breaks and nobody knows whether the report arrived: whatever happens, it is accepted once. It tries [`TRIES`] times in all.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::client::{Client, ClientError, Reply, ServiceArgs};
use super::output;

/// So often it is tried in all: over about eight seconds, in which a service restarts.
pub const TRIES: u32 = 5;

/// The wait after the first try; it doubles from try to try.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The longest wait, whatever the service asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The largest body that any configuration allows, in bytes (`http.max_batch`).
const MAX_BODY: u64 = 64 << 20;

/// The arguments of `tidings report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// The report: JSON, or NDJSON with one report a line; - or nothing for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,
    /// Print the service's answer as it is
    #[arg(long)]
    pub json: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Posts the reports, and prints their deliveries.
pub fn run(args: &ReportArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client,
        Err(error) => return error.complain(),
    };
    let body = match read(&args.file) {
        Ok(body) => body,
        Err(error) => return output::complain(&format!("{} can't be read: {error}", args.file.display())),
    };
    match post(&client, &body, content_type(&args.file, &body)) {
        Ok(reply) if args.json => output::print(&(String::from_utf8_lossy(&reply.body) + "\n")),
        Ok(reply) => match serde_json::from_slice(&reply.body) {
            Ok(answer) => output::print(&describe(&answer)),
            Err(error) => output::complain(&format!("accepted, but the answer can't be read: {error}")),
        },
        Err(error) => error.complain(),
    }
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let source: Box<dyn Read> = if file == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(file)?) };
    let mut body = Vec::new();
    source.take(MAX_BODY + 1).read_to_end(&mut body)?;
    if body.len() as u64 > MAX_BODY {
        return Err(io::Error::other(format!(
            "it has more than {}, which no service takes at once; send it in parts",
            output::size(MAX_BODY)
        )));
    }
    Ok(body)
}

/// NDJSON by the file's name; or when the first line is a whole JSON value, and more follows. One report may well span many lines.
fn content_type(file: &Path, body: &[u8]) -> &'static str {
    const NDJSON: &str = "application/x-ndjson";
    if file.extension().is_some_and(|extension| extension == "ndjson" || extension == "jsonl") {
        return NDJSON;
    }
    let mut lines = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
    match (lines.next(), lines.next()) {
        (Some(first), Some(_)) if serde_json::from_slice::<IgnoredAny>(first).is_ok() => NDJSON,
        _ => "application/json",
    }
}

fn post(client: &Client, body: &[u8], content_type: &str) -> Result<Reply, ClientError> {
    let key = random_key().map_err(|error| ClientError::Unusable(format!("the system gives no random numbers: {error}")))?;
    let headers = [("Content-Type", content_type), ("Idempotency-Key", key.as_str())];
    let mut wait = FIRST_WAIT;
    for tried in 1.. {
        let error = match client.post("/v1/reports", &headers, body) {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let asked = match &error {
            ClientError::Refused { status: 503, retry_after, .. } => *retry_after,
            ClientError::Broken { .. } => None,
            // A port that is closed, or a service that was there a moment ago: it may be restarting. Anything else is a wrong address.
            ClientError::Unreachable { is_closed, .. } if *is_closed || tried > 1 => None,
            _ => return Err(error),
        };
        if tried >= TRIES {
            return Err(error);
        }
        let pause = asked.unwrap_or(wait).clamp(wait, LONGEST_WAIT);
        output::tell(&format!("{error}\ntrying again in {} s ({tried} of {TRIES} tries done)", pause.as_secs_f32()));
        thread::sleep(pause);
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    unreachable!("the loop ends by returning")
}

/// 128 random bits in hexadecimal.
fn random_key() -> Result<String, getrandom::Error> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}

/// What the service answers.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Many { reports: Vec<One> },
    One(One),
}

#[derive(Debug, Deserialize)]
struct One {
    deliveries: Vec<Delivery>,
}

#[derive(Debug, Deserialize)]
struct Delivery {
    id: String,
    connection: String,
    topic: String,
    qos: u8,
}

fn describe(answer: &Answer) -> String {
    let reports = match answer {
        Answer::Many { reports } => reports.as_slice(),
        Answer::One(report) => std::slice::from_ref(report),
    };
    let rows: Vec<Vec<String>> = reports
        .iter()
        .flat_map(|report| &report.deliveries)
        .map(|delivery| vec![delivery.id.clone(), delivery.connection.clone(), delivery.qos.to_string(), delivery.topic.clone()])
        .collect();
    let unwanted = reports.iter().filter(|report| report.deliveries.is_empty()).count();
    let mut text = format!("accepted: {}, {}\n", count(reports.len(), "report", "reports"), count(rows.len(), "delivery", "deliveries"));
    if unwanted > 0 {
        let subject = count(unwanted, "report is", "reports are");
        text.push_str(&format!("{subject} wanted by no reporter; `tidings check` shows which pipelines and actions have one\n"));
    }
    if !rows.is_empty() {
        text.push_str(&output::table(&["ID", "CONNECTION", "QOS", "TOPIC"], &rows));
    }
    text
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(file: &str, body: &str) -> &'static str {
        content_type(Path::new(file), body.as_bytes())
    }

    #[test]
    fn ndjson_is_known_by_its_name_or_by_its_first_line() {
        assert_eq!(kind("x.ndjson", "{}"), "application/x-ndjson");
        assert_eq!(kind("x.jsonl", "{}"), "application/x-ndjson");
        assert_eq!(kind("-", "{\"a\":1}\n\n{\"a\":2}\n"), "application/x-ndjson");
        assert_eq!(kind("x.json", "{\"a\":1}\n{\"a\":"), "application/x-ndjson", "the broken second line is the service's to name");
    }

    #[test]
    fn one_report_over_many_lines_is_one_report() {
        for one in ["{}", "{}\n", "{\n  \"a\": 1\n}\n", "", "{\"a\":\n1}"] {
            assert_eq!(kind("x.json", one), "application/json", "{one:?}");
        }
    }

    #[test]
    fn an_answer_names_every_delivery_and_what_nobody_wanted() {
        let answer = r#"{"reports":[{"deliveries":[{"id":"7","connection":"mqtt","topic":"a/b","qos":2}]},{"deliveries":[]}]}"#;
        let text = describe(&serde_json::from_str(answer).unwrap());
        assert_eq!(
            text,
            "accepted: 2 reports, 1 delivery\n1 report is wanted by no reporter; `tidings check` shows which pipelines and actions have one\n\
             ID  CONNECTION  QOS  TOPIC\n7   mqtt        2    a/b\n"
        );
    }
}
