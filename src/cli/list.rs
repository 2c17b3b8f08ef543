//! `tidings list`: deliveries, newest first.

use std::process::ExitCode;

use clap::Args;

use super::client::{Client, ClientError, ServiceArgs};
use super::output;
use super::shown::{self, FilterArgs, query};
use crate::admin::deliveries::answers::Deliveries;

/// Rows asked for at once.
const AT_ONCE: usize = 1_000;

/// The arguments of `tidings list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// In this state
    #[arg(long, value_parser = ["pending", "dead", "delivered", "expired", "discarded"])]
    pub state: Option<String>,
    /// Which ones.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    /// Go on where an earlier list ended
    #[arg(long, value_name = "CURSOR")]
    pub cursor: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which service.
    #[command(flatten)]
    pub service: ServiceArgs,
}

/// Lists them.
pub fn run(args: &ListArgs) -> ExitCode {
    list(args, args.state.as_deref(), shown::list)
}

/// Lists those in a state, shown in one way or another.
pub(super) fn list(args: &ListArgs, state: Option<&str>, show: fn(&[crate::admin::deliveries::answers::Row]) -> String) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client,
        Err(error) => return error.complain(),
    };
    match collect(&client, args, state) {
        Ok(found) if args.json => match serde_json::to_string(&found) {
            Ok(text) => output::print(&(text + "\n")),
            Err(error) => output::complain(&error.to_string()),
        },
        Ok(found) => {
            let code = match found.deliveries.is_empty() {
                true => output::print("no deliveries\n"),
                false => output::print(&show(&found.deliveries)),
            };
            if let Some(cursor) = &found.next_cursor {
                output::tell(&format!("there may be more: --cursor {}", shown::plain(cursor)));
            }
            code
        }
        Err(error) => error.complain(),
    }
}

/// Asks again and again, until there are enough, or no more.
fn collect(client: &Client, args: &ListArgs, state: Option<&str>) -> Result<Deliveries, ClientError> {
    let wanted = args.limit as usize;
    let mut all = Deliveries { deliveries: Vec::new(), next_cursor: args.cursor.clone() };
    loop {
        let limit = (wanted - all.deliveries.len()).min(AT_ONCE).to_string();
        let mut pairs = args.filter.given();
        pairs.push(("limit", &limit));
        pairs.extend(state.map(|state| ("state", state)));
        pairs.extend(all.next_cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let reply = client.get(&format!("/v1/deliveries?{}", query(&pairs)))?;
        let found: Deliveries = serde_json::from_slice(&reply.body).map_err(|error| {
            ClientError::Unusable(format!("the answer can't be read ({error}); are service and command of one version?"))
        })?;
        all.deliveries.extend(found.deliveries);
        all.next_cursor = found.next_cursor;
        if all.next_cursor.is_none() || all.deliveries.len() >= wanted {
            return Ok(all);
        }
    }
}
