//! `tidings move`: gives what is pending on one connection to another.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::client::{Client, ServiceArgs};
use super::output;
use crate::admin::moves::Moved;

/// A million deliveries take about a minute. The service goes on when nobody waits any more.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// The arguments of `tidings move`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Everything that is pending now is moved, in order, with its topic, QoS, retain flag, properties and expiry. It comes behind what the other
connection has accepted by then. A connection that is configured stops delivering meanwhile, and then goes on with what came in since.
If it ends early, run it again: it goes on with the rest, and nothing is moved twice.

Dead letters are not moved: they stay where they are. To have one delivered, mend what the broker refused it for.")]
pub struct MoveArgs {
    /// The connection that has the deliveries; it need not be configured any more
    #[arg(long, value_name = "CONNECTION")]
    pub from: String,
    /// The connection that gets them; it has to be configured
    #[arg(long, value_name = "CONNECTION")]
    pub to: String,
    /// Who decides this; the name stands in the history of each delivery [default: $USER, or the token's name]
    #[arg(long, value_name = "NAME", env = "USER", hide_env = true)]
    pub by: Option<String>,
    /// Print what the service says, as JSON
    #[arg(long)]
    pub json: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Has the service do it, and prints what came of it.
pub fn run(args: &MoveArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client.waiting_for(TIMEOUT),
        Err(error) => return error.complain(),
    };
    let body = json!({ "from": args.from, "to": args.to, "by": args.by }).to_string();
    match client.post("/v1/moves", &[("Content-Type", "application/json")], body.as_bytes()) {
        Ok(reply) if args.json => output::print(&(String::from_utf8_lossy(&reply.body) + "\n")),
        Ok(reply) => match serde_json::from_slice(&reply.body) {
            Ok(moved) => output::print(&describe(&moved)),
            Err(error) => output::complain(&format!("it was done, but the answer can't be read: {error}")),
        },
        Err(error) => error.complain(),
    }
}

fn describe(moved: &Moved) -> String {
    let Moved { from, to, moved, possible_duplicates, remaining, dead_letters } = moved;
    let mut text = format!("moved {moved} from {from} to {to}\n");
    if *possible_duplicates > 0 {
        text.push_str(&format!("{possible_duplicates} of them, at most, may have arrived at the old broker as well\n"));
    }
    if *remaining > 0 {
        text.push_str(&format!("{remaining} are pending for {from} again: they came in meanwhile\n"));
    }
    if *dead_letters > 0 {
        text.push_str(&format!("{dead_letters} dead letters of {from} are not moved\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_moved_is_said_and_what_was_not() {
        let all = Moved { from: "old".into(), to: "new".into(), moved: 7, possible_duplicates: 0, remaining: 0, dead_letters: 0 };
        assert_eq!(describe(&all), "moved 7 from old to new\n");
        let not_all = Moved { possible_duplicates: 2, remaining: 3, dead_letters: 1, ..all };
        let expected = "moved 7 from old to new\n2 of them, at most, may have arrived at the old broker as well\n\
                        3 are pending for old again: they came in meanwhile\n1 dead letters of old are not moved\n";
        assert_eq!(describe(&not_all), expected);
    }
}
