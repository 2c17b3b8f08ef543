//! `tidings replay`: what was delivered is delivered again, by a job of the running service.
//!
//! The command asks for the job, and then only looks at it: it may end, or be ended, and the job goes on.

use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::client::{Client, ClientError, ServiceArgs};
use super::shown::{self, FilterArgs};
use super::{FAILED, WRONG_USAGE, output};
use crate::admin::replays::{Counted, Shown, ShownJobs};

/// So often it looks how far the job is.
const LOOK: Duration = Duration::from_millis(300);

/// A service that restarts is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Exit code of a command that was interrupted, as shells have it: 128 and the number of the signal.
const INTERRUPTED: i32 = 130;

/// The arguments of `tidings replay`.
#[derive(Debug, Clone, Args)]
#[command(long_about = "Deliver again what was delivered\n\n\
The reports that fit the filters are delivered again, oldest first, on a lane of their own that sends when fresh reports leave a gap. Over MQTT 5 each\n\
has the user property tidings-replay, with the job's id. The job is the service's: it outlives this command, and restarts of the service.")]
pub struct ReplayArgs {
    /// Which ones.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Reports per second at most [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Who asks for it; the name stands in the history [default: $USER, or the token's name]
    #[arg(long, value_name = "NAME", env = "USER", hide_env = true)]
    pub by: Option<String>,
    /// Why; it stands in the audit
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Only say how many there are
    #[arg(long)]
    pub dry_run: bool,
    /// Don't ask whether everything is meant, where no filter is given
    #[arg(long)]
    pub yes: bool,
    /// Begin it, and don't wait for its end
    #[arg(long)]
    pub detach: bool,
    /// List the replays that there are, newest first
    #[arg(long, conflicts_with_all = ["cancel", "dry_run", "rate", "reason", "detach"])]
    pub list: bool,
    /// End this one; what it has created already is delivered all the same
    #[arg(long, value_name = "ID", conflicts_with_all = ["dry_run", "rate", "reason", "detach"])]
    pub cancel: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Does it.
pub fn run(args: &ReplayArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client,
        Err(error) => return error.complain(),
    };
    let done = match &args.cancel {
        _ if args.list => list(args, &client),
        Some(id) => cancel(args, &client, id),
        None if args.dry_run => count(args, &client),
        None => replay(args, &client),
    };
    done.unwrap_or_else(|error| error.complain())
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Unusable(format!("the answer can't be read: {error}")))
}

fn print_json(value: &impl serde::Serialize) -> ExitCode {
    match serde_json::to_string(value) {
        Ok(text) => output::print(&(text + "\n")),
        Err(error) => output::complain(&error.to_string()),
    }
}

fn list(args: &ReplayArgs, client: &Client) -> Result<ExitCode, ClientError> {
    let jobs: ShownJobs = read(&client.get("/v1/replays")?.body)?;
    if args.json {
        return Ok(print_json(&jobs));
    }
    if jobs.replays.is_empty() {
        return Ok(output::print("there are no replays\n"));
    }
    let cells = |job: &Shown| {
        let filter = serde_json::to_string(&job.filter).unwrap_or_default();
        vec![
            shown::plain(&job.id),
            shown::plain(&job.state),
            shown::ago(&job.started_at),
            shown::plain(&job.by),
            format!("{}%", job.searched_percent),
            job.created.to_string(),
            job.delivered.to_string(),
            shown::plain(&filter),
        ]
    };
    let rows: Vec<Vec<String>> = jobs.replays.iter().map(cells).collect();
    Ok(output::print(&shown::table(&["ID", "STATE", "AGE", "BY", "LOOKED", "CREATED", "DELIVERED", "FILTER"], &rows)))
}

fn cancel(args: &ReplayArgs, client: &Client, id: &str) -> Result<ExitCode, ClientError> {
    let id = shown::query(&[("", id)]);
    let by: Vec<(&str, &str)> = args.by.iter().map(|by| ("by", by.as_str())).collect();
    let path = format!("/v1/replays/{}?{}", id.trim_start_matches('='), shown::query(&by));
    let job: Shown = read(&client.delete(&path)?.body)?;
    if args.json {
        return Ok(print_json(&job));
    }
    let id = shown::plain(&job.id);
    Ok(output::print(&match job.state.as_str() {
        "cancelled" => format!("replay {id} is cancelled; {}\n", outcome(&job)),
        _ => format!("replay {id} had ended before; {}\n", outcome(&job)),
    }))
}

fn body(args: &ReplayArgs) -> Map<String, Value> {
    let filter: Map<String, Value> = args.filter.given().iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let mut body = Map::from_iter([("filter".to_owned(), Value::Object(filter)), ("by".to_owned(), json!(args.by))]);
    body.extend(args.rate.map(|rate| ("rate".to_owned(), json!(rate))));
    body.extend(args.reason.as_ref().map(|reason| ("reason".to_owned(), json!(reason))));
    body
}

fn ask_count(client: &Client, body: &Map<String, Value>) -> Result<Counted, ClientError> {
    let mut dry = body.clone();
    dry.insert("dry_run".to_owned(), json!(true));
    read(&client.post("/v1/replays", &[("Content-Type", "application/json")], Value::Object(dry).to_string().as_bytes())?.body)
}

fn in_words(counted: &Counted) -> String {
    let more = if counted.complete { "" } else { " or more" };
    format!("{}{more} ({})", output::count(counted.matches, "report", "reports"), output::size(counted.bytes))
}

fn count(args: &ReplayArgs, client: &Client) -> Result<ExitCode, ClientError> {
    let counted = ask_count(client, &body(args))?;
    match args.json {
        true => Ok(print_json(&counted)),
        false => Ok(output::print(&format!("would replay {}\n", in_words(&counted)))),
    }
}

fn replay(args: &ReplayArgs, client: &Client) -> Result<ExitCode, ClientError> {
    let body = body(args);
    if args.filter.given().is_empty() && !args.yes {
        if !io::stdin().is_terminal() {
            output::complain(
                "this would replay everything that was delivered, and nobody is there to confirm it: look with --dry-run, then say --yes",
            );
            return Ok(ExitCode::from(WRONG_USAGE));
        }
        output::ask(&format!("replay {}? [y/N] ", in_words(&ask_count(client, &body)?)));
        let mut line = String::new();
        let is_read = io::stdin().lock().read_line(&mut line).is_ok();
        if !is_read || !["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()) {
            return Ok(output::print("nothing was done\n"));
        }
    }
    // With a key a request whose answer was lost can be made again: it is the same job.
    let key = getrandom::u64().map_err(|error| ClientError::Unusable(format!("the system gives no random number: {error}")))?;
    let key = format!("tidings-replay-{key:016x}");
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key.as_str())];
    let text = Value::Object(body).to_string();
    let reply = match client.post("/v1/replays", &headers, text.as_bytes()) {
        Err(ClientError::Broken { .. }) => client.post("/v1/replays", &headers, text.as_bytes())?,
        other => other?,
    };
    let job: Shown = read(&reply.body)?;
    if args.detach {
        return Ok(match args.json {
            true => print_json(&job),
            false => output::print(&format!("replay {} has begun\n{}", shown::plain(&job.id), hint(&job.id))),
        });
    }
    let job = follow(client, job)?;
    if args.json {
        print_json(&job);
    } else {
        output::print(&format!(
            "replay {} has {}: {}\n",
            shown::plain(&job.id),
            if job.state == "ended" { "ended" } else { "been cancelled" },
            outcome(&job)
        ));
    }
    Ok(if job.state == "ended" && job.not_delivered == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn hint(id: &str) -> String {
    format!("look:    tidings replay --list\ncancel:  tidings replay --cancel {}\n", shown::plain(id))
}

fn outcome(job: &Shown) -> String {
    let mut text = format!("{} created, {} delivered", output::count(job.created, "report", "reports"), job.delivered);
    if job.pending > 0 {
        text.push_str(&format!(", {} still to be delivered", job.pending));
    }
    if job.not_delivered > 0 {
        text.push_str(&format!(", {} not delivered (`tidings dead list` and `tidings list` say why)", job.not_delivered));
    }
    if job.not_configured > 0 {
        text.push_str(&format!(", {} left out because their connection is not configured", job.not_configured));
    }
    if job.past_retention > 0 {
        text.push_str(", and retention had deleted some before it came to them");
    }
    text
}

/// Shows how far the job is until all that it has created is delivered, or given up.
fn follow(client: &Client, mut job: Shown) -> Result<Shown, ClientError> {
    let bar = ProgressBar::new(100);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent}% looked through, {msg}") {
        bar.set_style(style);
    }
    leave_at_interrupt(bar.clone(), job.id.clone());
    let path = format!("/v1/replays/{}", job.id);
    let mut seen_at = Instant::now();
    loop {
        bar.set_position(u64::from(job.searched_percent));
        let waits = match job.waits_for.as_deref() {
            Some("broker") => ", waits for the broker or for a gap between fresh reports",
            Some("store_full") => ", waits for room in the store",
            _ => "",
        };
        bar.set_message(format!("{} created, {} delivered{waits}", job.created, job.delivered));
        if job.state != "running" && job.pending == 0 {
            bar.finish_and_clear();
            return Ok(job);
        }
        std::thread::sleep(LOOK);
        job = match client.get(&path) {
            Ok(reply) => {
                seen_at = Instant::now();
                read(&reply.body)?
            }
            // The service restarts, and the job goes on then.
            Err(ClientError::Unreachable { .. } | ClientError::Broken { .. }) if seen_at.elapsed() < PATIENCE => job,
            Err(error) => {
                bar.finish_and_clear();
                return Err(error);
            }
        };
    }
}

/// Ctrl-C ends the command, and not the job; that is said.
fn leave_at_interrupt(bar: ProgressBar, id: String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Without it Ctrl-C ends the command as well, only without a word.
    let Ok(runtime) = runtime else { return };
    std::thread::spawn(move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            bar.finish_and_clear();
            output::tell(&format!("replay {} goes on\n{}", shown::plain(&id), hint(&id).trim_end()));
            std::process::exit(INTERRUPTED);
        }
    });
}
