//! `tidings audit`: who did what, newest first.

use std::process::ExitCode;

use clap::Args;

use super::client::{Client, ClientError, ServiceArgs};
use super::output;
use super::shown::{plain, query};
use crate::admin::audit::{Audit, MOST};

/// The arguments of `tidings audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
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

/// Lists it.
pub fn run(args: &AuditArgs) -> ExitCode {
    let client = match Client::new(&args.service, std::env::var("TIDINGS_TOKEN").ok()) {
        Ok(client) => client,
        Err(error) => return error.complain(),
    };
    match collect(&client, args) {
        Ok(found) if args.json => match serde_json::to_string(&found) {
            Ok(text) => output::print(&(text + "\n")),
            Err(error) => output::complain(&error.to_string()),
        },
        Ok(found) => {
            let code = output::print(&shown(&found));
            if let Some(cursor) = &found.next_cursor {
                output::tell(&format!("there may be more: --cursor {}", plain(cursor)));
            }
            code
        }
        Err(error) => error.complain(),
    }
}

/// Asks again and again, until there are enough, or no more.
fn collect(client: &Client, args: &AuditArgs) -> Result<Audit, ClientError> {
    let wanted = args.limit as usize;
    let mut all = Audit { audit: Vec::new(), next_cursor: args.cursor.clone() };
    loop {
        let limit = (wanted - all.audit.len()).min(MOST).to_string();
        let mut pairs = vec![("limit", limit.as_str())];
        pairs.extend(all.next_cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let reply = client.get(&format!("/v1/audit?{}", query(&pairs)))?;
        let found: Audit = serde_json::from_slice(&reply.body).map_err(|error| {
            ClientError::Unusable(format!("the answer can't be read ({error}); are service and command of one version?"))
        })?;
        all.audit.extend(found.audit);
        all.next_cursor = found.next_cursor;
        if all.next_cursor.is_none() || all.audit.len() >= wanted {
            return Ok(all);
        }
    }
}

fn shown(found: &Audit) -> String {
    if found.audit.is_empty() {
        return "nothing was done that is still stored\n".to_owned();
    }
    let row = |entry: &crate::admin::audit::Entry| vec![entry.position.clone(), entry.at.clone(), plain(&entry.who), plain(&entry.what)];
    output::table(&["EVENT", "AT", "WHO", "WHAT"], &found.audit.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::audit::Entry;

    #[test]
    fn each_act_is_a_line_whatever_is_in_it() {
        let entry = |who: &str| Entry { position: "7".into(), at: "2026-05-04T12:00:00.000Z".into(), who: who.into(), what: "did".into() };
        let text = shown(&Audit { audit: vec![entry("ops"), entry("\u{1b}[2J\n")], next_cursor: None });
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("7      2026-05-04T12:00:00.000Z  ops") && !text.contains('\u{1b}'), "{text}");
    }
}
