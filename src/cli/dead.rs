//! `tidings dead` and `tidings discard`: what operators decide about deliveries.
//!
//! A request of the service's is one commit and bounded; the command asks until nothing is left. So a command that was interrupted is simply run again.

use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::client::{Client, ClientError, ServiceArgs};
use super::list::{self, ListArgs};
use super::shown::{self, FilterArgs};
use super::{WRONG_USAGE, output};
use crate::admin::repairs::Repaired;

/// Looking through a large backlog takes its time, and others may come first.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The arguments of `tidings dead`.
#[derive(Debug, Clone, Args)]
pub struct DeadArgs {
    /// What to do with dead letters.
    #[command(subcommand)]
    pub command: DeadCommand,
}

/// What to do with dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadCommand {
    /// List them, newest first, and why each is dead
    List(ListArgs),
    /// Give them back to their lanes, to be delivered
    Requeue(DecideArgs),
    /// Give them up for good
    Discard(DecideArgs),
}

/// Which ones, who decides, and why.
#[derive(Debug, Clone, Args)]
pub struct DecideArgs {
    /// These deliveries; without ids and filters, all
    #[arg(value_name = "ID")]
    pub ids: Vec<u64>,
    /// Which ones.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Who decides this; the name stands in the history of each delivery [default: $USER, or the token's name]
    #[arg(long, value_name = "NAME", env = "USER", hide_env = true)]
    pub by: Option<String>,
    /// Why; it stands in the audit, and of what is discarded in its history, too
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Only say how many there are
    #[arg(long)]
    pub dry_run: bool,
    /// Don't ask whether it is meant
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// The arguments of `tidings discard`.
#[derive(Debug, Clone, Args)]
#[command(long_about = "Give up deliveries that are pending\n\n\
The lanes of the connections concerned finish what is in flight and stop meanwhile. What may be in flight even then, because the broker does not\n\
answer, is left alone and counted: it may have arrived. --even-in-flight gives that up as well.")]
pub struct DiscardArgs {
    /// In this state; said, so that nobody gives up what is pending by mistake
    #[arg(long, value_parser = ["pending"], required = true)]
    pub state: String,
    /// Give up also what may be in flight, and may have arrived
    #[arg(long)]
    pub even_in_flight: bool,
    /// Which ones, by whom, and why.
    #[command(flatten)]
    pub decide: DecideArgs,
}

/// A decision in words.
#[derive(Clone, Copy)]
struct Words {
    path: &'static str,
    verb: &'static str,
    done: &'static str,
    one: &'static str,
    many: &'static str,
    /// What a named one that can't be acted on is not.
    not: &'static str,
}

const REQUEUE: Words = Words {
    path: "/v1/dead/requeue",
    verb: "requeue",
    done: "requeued",
    one: "dead letter",
    many: "dead letters",
    not: "not among the dead letters",
};

const DISCARD_DEAD: Words = Words { path: "/v1/dead/discard", verb: "discard", done: "discarded", ..REQUEUE };

const DISCARD_PENDING: Words =
    Words { path: "/v1/deliveries/discard", one: "pending delivery", many: "pending deliveries", not: "not pending", ..DISCARD_DEAD };

/// Does it.
pub fn run(args: &DeadArgs) -> ExitCode {
    match &args.command {
        DeadCommand::List(args) if args.state.as_ref().is_some_and(|state| state != "dead") => {
            output::complain("dead letters have the state dead; `tidings list` has the others");
            ExitCode::from(WRONG_USAGE)
        }
        DeadCommand::List(args) => list::list(args, Some("dead"), shown::dead),
        DeadCommand::Requeue(args) => decide(args, REQUEUE, Map::new()),
        DeadCommand::Discard(args) => decide(args, DISCARD_DEAD, Map::new()),
    }
}

/// Does it.
pub fn discard(args: &DiscardArgs) -> ExitCode {
    let more = [("state".to_owned(), json!(args.state)), ("even_in_flight".to_owned(), json!(args.even_in_flight))];
    decide(&args.decide, DISCARD_PENDING, more.into_iter().collect())
}

fn decide(args: &DecideArgs, words: Words, more: Map<String, Value>) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client.waiting_for(TIMEOUT),
        Err(error) => return error.complain(),
    };
    let given = args.filter.given();
    if !args.ids.is_empty() && !given.is_empty() {
        output::complain("either ids or filters: both together could mean one or the other");
        return ExitCode::from(WRONG_USAGE);
    }
    let mut body = more;
    match args.ids.is_empty() {
        true => body.insert("filter".to_owned(), given.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()),
        false => body.insert("ids".to_owned(), args.ids.iter().map(u64::to_string).collect()),
    };
    body.insert("by".to_owned(), json!(args.by));
    if let Some(reason) = &args.reason {
        body.insert("reason".to_owned(), json!(reason));
    }
    let is_harmless = words.verb == "requeue" && !given.is_empty();
    if args.ids.is_empty() && !is_harmless && !args.yes && !args.dry_run {
        match confirmed(&client, &body, words) {
            Ok(true) => {}
            Ok(false) => return output::print("nothing was done\n"),
            Err(code) => return code,
        }
    }
    body.insert("dry_run".to_owned(), json!(args.dry_run));
    match ask_until_done(&client, &body, words, args.dry_run) {
        Ok(repaired) => say(args, words, &repaired),
        Err(error) => error.complain(),
    }
}

/// Asks whoever sits there, with the number that it is about.
fn confirmed(client: &Client, body: &Map<String, Value>, words: Words) -> Result<bool, ExitCode> {
    if !io::stdin().is_terminal() {
        output::complain(&format!(
            "this would {} whatever fits, and nobody is there to confirm it: look with --dry-run, then say --yes",
            words.verb
        ));
        return Err(ExitCode::from(WRONG_USAGE));
    }
    let mut dry = body.clone();
    dry.insert("dry_run".to_owned(), json!(true));
    let found = ask(client, &dry, words).map_err(|error| error.complain())?;
    let more = if found.remaining > 0 { " or more" } else { "" };
    output::ask(&format!("{} {}{more}? [y/N] ", words.verb, output::count(found.done, words.one, words.many)));
    let mut line = String::new();
    let is_read = io::stdin().lock().read_line(&mut line).is_ok();
    Ok(is_read && ["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()))
}

fn ask(client: &Client, body: &Map<String, Value>, words: Words) -> Result<Repaired, ClientError> {
    let reply = client.post(words.path, &[("Content-Type", "application/json")], Value::Object(body.clone()).to_string().as_bytes())?;
    serde_json::from_slice(&reply.body)
        .map_err(|error| ClientError::Unusable(format!("it was done, but the answer can't be read: {error}")))
}

/// The first answer has what was skipped; those after it go on with what was left.
fn ask_until_done(client: &Client, body: &Map<String, Value>, words: Words, is_dry_run: bool) -> Result<Repaired, ClientError> {
    let mut all = ask(client, body, words)?;
    let mut last = all.done;
    while all.remaining > 0 && last > 0 && !is_dry_run {
        let next = ask(client, body, words)?;
        last = next.done;
        all = Repaired { done: all.done + next.done, ids: [all.ids, next.ids].concat(), skipped: all.skipped, ..next };
    }
    Ok(all)
}

fn say(args: &DecideArgs, words: Words, repaired: &Repaired) -> ExitCode {
    let code = if args.json {
        match serde_json::to_string(repaired) {
            Ok(text) => output::print(&(text + "\n")),
            Err(error) => output::complain(&error.to_string()),
        }
    } else {
        let number = output::count(repaired.done, words.one, words.many);
        let mut text = if repaired.dry_run { format!("would {} {number}\n", words.verb) } else { format!("{} {number}\n", words.done) };
        if repaired.in_flight > 0 {
            text.push_str(&format!("{} may be in flight and are left alone; --even-in-flight gives them up, too\n", repaired.in_flight));
        }
        if repaired.remaining > 0 && repaired.dry_run {
            text.push_str(&format!("and {} more, at least\n", repaired.remaining));
        } else if repaired.remaining > 0 {
            text.push_str(&format!("{} more wait until these have been delivered: run it again then\n", repaired.remaining));
        }
        output::print(&text)
    };
    if repaired.skipped.is_empty() {
        return code;
    }
    output::complain(&format!("{} is {}; `tidings show` has its history", repaired.skipped.join(", "), words.not))
}
