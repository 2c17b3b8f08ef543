//! `tidings status`: how a running service does, at a glance. The first line is the verdict.

mod described;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::client::{Client, ClientError, ServiceArgs};
use super::{output, shown};
use crate::admin::status::Status;
use described::{Before, describe};

/// Home, and everything below it empty: what a terminal showed is written over.
const CLEAR: &str = "\x1b[H\x1b[J";

/// The arguments of `tidings status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Print what the service says, as JSON
    #[arg(long)]
    pub json: bool,
    /// Ask again every so many seconds, until Ctrl-C, and show rates
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub watch: Option<u64>,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Asks the service, and prints its status.
pub fn run(args: &StatusArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client,
        Err(error) => return error.complain(),
    };
    let mut before = None;
    match (ask(&client, args.json, &mut before), args.watch) {
        (Ok(first), None) => output::print(&first),
        (Ok(first), Some(seconds)) => watch(&client, args.json, Duration::from_secs(seconds), first, before),
        (Err(error), _) => error.complain(),
    }
}

/// What is to be printed, or why there is nothing. `before` is what it was the last time.
fn ask(client: &Client, is_json: bool, before: &mut Option<Before>) -> Result<String, ClientError> {
    let reply = client.get("/v1/status")?;
    if is_json {
        return Ok(String::from_utf8_lossy(&reply.body).into_owned() + "\n");
    }
    let status = read(&reply.body)
        .map_err(|error| ClientError::Unusable(format!("the answer can't be read: {error}; are service and command of one version?")))?;
    let text = describe(&status, before.as_ref());
    *before = Some(Before { at: Instant::now(), status });
    Ok(text)
}

/// The status in an answer. A broker's words stand in it, of which nothing reaches the terminal as a control character.
fn read(body: &[u8]) -> serde_json::Result<Status> {
    fn spell_out(value: &mut Value) {
        match value {
            Value::String(text) => *text = shown::plain(text),
            Value::Array(items) => items.iter_mut().for_each(spell_out),
            Value::Object(fields) => fields.values_mut().for_each(spell_out),
            _ => {}
        }
    }
    let mut status: Value = serde_json::from_slice(body)?;
    spell_out(&mut status);
    serde_json::from_value(status)
}

/// Shows it again and again, also while the service is away: that is when somebody watches. Ends when nobody reads it any more.
fn watch(client: &Client, is_json: bool, every: Duration, first: String, mut before: Option<Before>) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let is_terminal = stdout.is_terminal();
    let mut text = first;
    loop {
        let (clear, end) = match (is_json, is_terminal) {
            (true, _) => ("", ""),
            (false, true) => (CLEAR, ""),
            (false, false) => ("", "\n"),
        };
        match write!(stdout, "{clear}{text}{end}").and_then(|()| stdout.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Err(error) => return output::complain(&format!("printing failed: {error}")),
        }
        thread::sleep(every);
        text = match ask(client, is_json, &mut before) {
            Ok(text) => text,
            Err(error) if is_json => serde_json::json!({ "error": { "message": error.to_string() } }).to_string() + "\n",
            Err(error) => format!("NO ANSWER: {error}\n"),
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_broker_says_is_spelled_out() {
        let mut status = described::example();
        status["connections"][0]["lanes"][0]["last_error"]["message"] = json!("no\u{1b}[2J");
        status["connections"][0]["lanes"][0]["server"] = json!("a\nb");
        let text = describe(&read(status.to_string().as_bytes()).unwrap(), None);
        assert!(text.contains("no\\u{1b}[2J") && text.contains("a\\u{a}b"), "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}
