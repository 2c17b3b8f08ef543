//! The commands, one file each. They are thin: they call the library, or a running service.
//!
//! Data goes to standard output, everything else to standard error. Exit codes are the same everywhere: 0 done, 1 failed, 2 wrong usage or
//! configuration.
//!
//! | Module | Command |
//! |---|---|
//! | [`serve`] | the service |
//! | [`demo`] | the whole thing on one machine, with an outage |
//! | [`bench`](mod@bench) | how fast it is, against controls of the same run |
//! | `busy_zuul` | what the reports of these two are made of |
//! | [`init`] | a first configuration, from Zuul's settings if there are any |
//! | [`check`] | what the configuration says, or what is wrong with it |
//! | `connect` | its `--connect`: what each broker is, or why it can't be used |
//! | [`report`] | posts reports to a running service |
//! | [`status`] | how a running service does |
//! | [`list`], [`show`] | deliveries, and one with its history |
//! | [`tail`] | what happens, live |
//! | [`dead`] | dead letters go back or are given up, and so is what is pending |
//! | [`audit`] | who did what |
//! | [`replay`] | what was delivered is delivered again |
//! | [`moving`] | gives what is pending on one connection to another |
//! | [`fsck`] | whether a store is whole, and its repair |
//! | [`migrate`] | a store of an older format |
//! | [`move_store`] | a store moves to a stream on other machines, or back |
//! | [`backup`], [`restore`] | a copy of a store, and a store out of it |
//! | [`health`] | whether a running service is alive: for supervisors |
//! | [`completions`], [`manual`] | completions for a shell, manual pages |
//! | [`client`], `secure` | the way to a running service, also over TLS |
//! | [`store`] | which folder the store is, and how far a long job is |
//! | [`shown`] | deliveries on the terminal |
//! | `signals` | Ctrl-C, for commands that have something to take down |
//! | [`output`] | tables, ages, and pipes that may be closed |

pub mod audit;
pub mod backup;
pub mod bench;
mod busy_zuul;
pub mod check;
pub mod client;
pub mod completions;
mod connect;
pub mod dead;
pub mod demo;
pub mod fsck;
pub mod health;
pub mod init;
pub mod list;
pub mod manual;
pub mod migrate;
pub mod move_store;
pub mod moving;
pub mod output;
pub mod replay;
pub mod report;
pub mod restore;
mod secure;
pub mod serve;
pub mod show;
pub mod shown;
mod signals;
pub mod status;
pub mod store;
pub mod tail;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::core::span;
use crate::telemetry::{self, LogFormat};

/// Exit code: it could not be done.
pub const FAILED: u8 = 1;

/// Exit code: it was asked for in a way that can't be done.
pub const WRONG_USAGE: u8 = 2;

/// Delivers CI reports over MQTT and loses none
#[derive(Debug, Parser)]
#[command(name = "tidings", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.\nTIDINGS_LOG filters what is logged: info, debug, tidings::delivery=debug."
)]
pub struct Arguments {
    /// How log lines look [default: pretty on a terminal, json otherwise]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service
    Serve(serve::ServeArgs),
    /// Show it all on one machine, with nothing installed: a broker, the service, an outage, and a subscriber that counts
    Demo(demo::DemoArgs),
    /// Measure this machine: ratios against controls of the same run
    Bench(bench::BenchArgs),
    /// What the bench runs in processes of their own
    #[command(hide = true)]
    BenchPart(bench::parts::PartArgs),
    /// Write a tidings.toml, from Zuul's settings if there are any, and say which lines of zuul.conf to change
    Init(init::InitArgs),
    /// Read the configuration, show what was understood, and name every mistake
    Check(check::CheckArgs),
    /// Post a report, or many as NDJSON, to a running service
    Report(report::ReportArgs),
    /// Show how a running service does: backlog, age, connections, lanes
    Status(status::StatusArgs),
    /// List deliveries, newest first
    List(list::ListArgs),
    /// Show one delivery with its history, or what is published
    Show(show::ShowArgs),
    /// Show what happens, live
    Tail(tail::TailArgs),
    /// List, requeue or discard dead letters
    Dead(dead::DeadArgs),
    /// Give up deliveries that are pending
    Discard(dead::DiscardArgs),
    /// Deliver again what was delivered
    Replay(replay::ReplayArgs),
    /// Give what is pending on one connection to another
    Move(moving::MoveArgs),
    /// List who did what: requeues, moves, replays, backups, reloads
    Audit(audit::AuditArgs),
    /// Check the store, or repair it; the service must not run
    Fsck(fsck::FsckArgs),
    /// Bring the store of an older release up to date; `serve` does the same at its start
    Migrate(migrate::MigrateArgs),
    /// Move a store from a folder to a stream on other machines, or back; no service must run on it
    MoveStore(move_store::MoveStoreArgs),
    /// Copy the store, of a running service or a stopped one
    Backup(backup::BackupArgs),
    /// Make a store out of a backup
    Restore(restore::RestoreArgs),
    /// Say whether a running service is alive; exit 1 if not
    Health(health::HealthArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Manual(manual::ManualArgs),
}

impl Command {
    /// What is logged if `TIDINGS_LOG` doesn't say.
    pub fn log_filter(&self) -> &'static str {
        match self {
            Command::Demo(_) => demo::LOG_FILTER,
            Command::Bench(_) | Command::BenchPart(_) => bench::LOG_FILTER,
            _ => telemetry::DEFAULT_FILTER,
        }
    }
}

/// Runs a command.
pub fn run(command: &Command) -> ExitCode {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Bench(args) => bench::run(args),
        Command::BenchPart(args) => bench::parts::run(args),
        Command::Init(args) => init::run(args),
        Command::Check(args) => check::run(args),
        Command::Report(args) => report::run(args),
        Command::Status(args) => status::run(args),
        Command::List(args) => list::run(args),
        Command::Show(args) => show::run(args),
        Command::Tail(args) => tail::run(args),
        Command::Dead(args) => dead::run(args),
        Command::Discard(args) => dead::discard(args),
        Command::Replay(args) => replay::run(args),
        Command::Move(args) => moving::run(args),
        Command::Audit(args) => audit::run(args),
        Command::Fsck(args) => fsck::run(args),
        Command::Migrate(args) => migrate::run(args),
        Command::MoveStore(args) => move_store::run(args),
        Command::Backup(args) => backup::run(args),
        Command::Restore(args) => restore::run(args),
        Command::Health(args) => health::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Manual(args) => manual::run(args),
    }
}

/// A span of time in an argument.
fn span_of(text: &str) -> Result<Duration, String> {
    span::parse(text).ok_or_else(|| "expected a span of time like 3s or 1m 30s".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_span_that_is_too_long_is_wrong_usage() {
        let of = |idle: &str| Arguments::try_parse_from(["tidings", "bench", "--idle", idle]);
        assert!(of("1m 30s").is_ok());
        assert!(of("18446744073709551615s 1000ms").unwrap_err().to_string().contains("expected a span of time"));
    }

    #[test]
    fn log_format_stands_before_or_after_the_command() {
        for words in [["tidings", "--log-format", "json", "status"], ["tidings", "status", "--log-format", "json"]] {
            assert_eq!(Arguments::try_parse_from(words).unwrap().log_format, Some(LogFormat::Json));
        }
    }
}
