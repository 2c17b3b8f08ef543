//! `tidings migrate`: what has to be done to a store that an older release wrote, and doing it.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::output;
use super::store::{StoreArgs, describe};
use crate::log::sled_log::{Migrated, Plan, migrate, plan};

/// The arguments of `tidings migrate`.
#[derive(Debug, Clone, Args)]
pub struct MigrateArgs {
    /// Which store.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Plans, or migrates.
pub fn run(args: &MigrateArgs) -> ExitCode {
    let store = match args.store.folder() {
        Ok(store) => store,
        Err(code) => return code,
    };
    let done = match args.dry_run {
        true => plan(&store).map(|plan| Migrated { plan, copy: None }),
        false => migrate(&store),
    };
    match done {
        Ok(done) if args.json => {
            let steps: Vec<_> = done.plan.steps.iter().map(|(to, title)| json!({"to": to, "title": title})).collect();
            let (found, known) = (done.plan.found, done.plan.known);
            let answer = json!({
                "store": store, "found": found, "known": known, "steps": steps, "done": !args.dry_run, "copy": done.copy,
                "copy_bytes": done.plan.copy_bytes,
            });
            output::print(&format!("{answer:#}\n"))
        }
        Ok(done) => {
            let mut text = plan_text(&done.plan);
            if let Some(copy) = &done.copy {
                text.push_str(&format!("done; the store as it was before is in {}\n", copy.display()));
            }
            output::print(&text)
        }
        Err(error) => output::complain(&describe(&error)),
    }
}

fn plan_text(plan: &Plan) -> String {
    let mut text = format!("the store has format {}, this release writes format {}\n", plan.found, plan.known);
    if plan.steps.is_empty() {
        text.push_str("nothing to do\n");
        return text;
    }
    text.push_str(&format!("first a copy of the store is made beside it: {}\n", output::size(plan.copy_bytes)));
    for (to, title) in &plan.steps {
        text.push_str(&format!("to format {to}: {title}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_both_formats_and_every_step() {
        let current = Plan { found: 1, known: 1, steps: Vec::new(), copy_bytes: 0 };
        assert_eq!(plan_text(&current), "the store has format 1, this release writes format 1\nnothing to do\n");
        let older = Plan { found: 1, known: 3, steps: vec![(2, "adds a field"), (3, "joins two files")], copy_bytes: 2048 };
        assert_eq!(
            plan_text(&older),
            "the store has format 1, this release writes format 3\nfirst a copy of the store is made beside it: 2.0 KiB\n\
             to format 2: adds a field\nto format 3: joins two files\n"
        );
    }
}
