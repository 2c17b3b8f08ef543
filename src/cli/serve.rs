//! `tidings serve`: the service, until it is told to stop.
//!
//! SIGTERM and SIGINT stop it in order; a second one stops it at once, which loses nothing either. Under systemd it says when it is ready,
//! that it is alive, and that it is stopping.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{FAILED, WRONG_USAGE};
use crate::app::{self, Running};
use crate::config::{self, Config};

/// The arguments of `tidings serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The configuration file [default: $TIDINGS_CONFIG, ./tidings.toml, /etc/tidings/tidings.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs the service until it is told to stop.
pub fn run(args: &ServeArgs) -> ExitCode {
    match read_config(args) {
        Ok(config) => serve(config),
        Err(mistakes) => {
            eprintln!("{mistakes}");
            ExitCode::from(WRONG_USAGE)
        }
    }
}

fn read_config(args: &ServeArgs) -> Result<Config, String> {
    let from_env = std::env::var_os("TIDINGS_CONFIG");
    let path = config::find(args.config.as_deref(), from_env.as_deref()).map_err(|error| error.to_string())?;
    config::load(&path).map_err(|mistakes| mistakes.to_string())
}

fn serve(config: Config) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the system gives no threads");
            return ExitCode::from(FAILED);
        }
    };
    match runtime.block_on(until_stopped(config)) {
        Ok(()) => {
            runtime.shutdown_timeout(Duration::from_secs(1));
            ExitCode::SUCCESS
        }
        // Something may hang that a shutdown would wait for. Everything accepted is in the log.
        Err(NotStopped) => std::process::exit(i32::from(FAILED)),
    }
}

/// It failed, or was told to stop at once; the reason has been logged.
struct NotStopped;

async fn until_stopped(config: Config) -> Result<(), NotStopped> {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals can't be listened to");
        return Err(NotStopped);
    };
    let running = tokio::select! {
        started = app::start(config) => match started {
            Ok(running) => running,
            Err(error) => {
                tracing::error!("{error}");
                return Err(NotStopped);
            }
        },
        () = told_to_stop(&mut terminate, &mut interrupt) => return Ok(()),
    };
    tell_systemd(&[NotifyState::Ready]);
    tokio::select! {
        () = told_to_stop(&mut terminate, &mut interrupt) => {}
        what = running.failed() => {
            tracing::error!("{what}");
            return Err(NotStopped);
        }
        () = feed_watchdog(&running) => {}
    }
    tracing::info!("stopping: finishing what is in flight; a second signal stops at once");
    tell_systemd(&[NotifyState::Stopping]);
    tokio::select! {
        stopped = running.stop() => match stopped {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!("{error}");
                Err(NotStopped)
            }
        },
        () = told_to_stop(&mut terminate, &mut interrupt) => {
            tracing::warn!("stopped at once; what is in flight goes on at the next start");
            Err(NotStopped)
        }
    }
}

async fn told_to_stop(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Tells systemd's watchdog, if it asked, that commits go on. Never returns.
async fn feed_watchdog(running: &Running) {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut beat = tokio::time::interval(period / 3);
    loop {
        beat.tick().await;
        if running.is_alive() {
            tell_systemd(&[NotifyState::Watchdog]);
        }
    }
}

fn tell_systemd(states: &[NotifyState]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
