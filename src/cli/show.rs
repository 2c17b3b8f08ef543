//! `tidings show`: one delivery, with its whole history; or what is published.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;

use super::client::{Client, ClientError, ServiceArgs};
use super::{output, shown};
use crate::admin::deliveries::answers::Story;

/// The arguments of `tidings show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The delivery's id
    #[arg(value_name = "ID")]
    pub id: u64,
    /// Print what is published, byte for byte, and nothing else
    #[arg(long)]
    pub payload: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "payload")]
    pub json: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Shows it.
pub fn run(args: &ShowArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client,
        Err(error) => return error.complain(),
    };
    if args.payload {
        return match client.get(&format!("/v1/deliveries/{}/payload", args.id)) {
            Ok(reply) => print_bytes(&reply.body),
            Err(error) => error.complain(),
        };
    }
    match tell(&client, args.id) {
        Ok(story) if args.json => match serde_json::to_string(&story) {
            Ok(text) => output::print(&(text + "\n")),
            Err(error) => output::complain(&error.to_string()),
        },
        Ok(story) => output::print(&shown::story(&story)),
        Err(error) => error.complain(),
    }
}

/// The whole story, however many requests it takes.
fn tell(client: &Client, id: u64) -> Result<Story, ClientError> {
    let ask = |query: String| -> Result<Story, ClientError> {
        let reply = client.get(&format!("/v1/deliveries/{id}{query}"))?;
        serde_json::from_slice(&reply.body)
            .map_err(|error| ClientError::Unusable(format!("the answer can't be read ({error}); are service and command of one version?")))
    };
    let mut story = ask(String::new())?;
    while let Some(from) = story.next_from.take() {
        let more = ask(format!("?{}", shown::query(&[("from", &from)])))?;
        story.history.extend(more.history);
        story = Story { history: story.history, ..more };
    }
    Ok(story)
}

/// Bytes as they are, but for a terminal, which would obey them.
fn print_bytes(bytes: &[u8]) -> ExitCode {
    if io::stdout().is_terminal() {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<String> = text.split('\n').map(shown::plain).collect();
        return output::print(&(lines.join("\n") + "\n"));
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => output::complain(&format!("printing failed: {error}")),
        _ => ExitCode::SUCCESS,
    }
}
