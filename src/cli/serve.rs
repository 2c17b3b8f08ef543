//! `tidings serve`: the service, until it is told to stop.
//!
//! SIGTERM and SIGINT stop it in order; a second one stops it at once, which loses nothing either. SIGHUP reads the configuration again, and
//! puts it in force if it has no mistakes. Under systemd it says when it is ready, that it is alive, that it reads its configuration again, and that it
//! is stopping.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{FAILED, WRONG_USAGE, output};
use crate::app::{self, Running};
use crate::config::{self, Config};

/// `timeout` and some supervisors signal the process and then its group: what comes so soon after the first signal is the same one.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// The arguments of `tidings serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The configuration file [default: $TIDINGS_CONFIG, ./tidings.toml, /etc/tidings/tidings.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Runs the service until it is told to stop.
pub fn run(args: &ServeArgs) -> ExitCode {
    without_huge_pages();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the system gives no threads");
            return ExitCode::from(FAILED);
        }
    };
    let signals = {
        let _inside = runtime.enter();
        // Before anything is read: a SIGHUP that comes meanwhile is for the file as it is then.
        Signals::listen()
    };
    let Ok(signals) = signals else {
        tracing::error!("signals can't be listened to");
        return ExitCode::from(FAILED);
    };
    match read_config(args) {
        Ok(config) => serve(runtime, config, signals),
        Err(mistakes) => {
            output::tell(&mistakes.to_string());
            ExitCode::from(WRONG_USAGE)
        }
    }
}

/// The allocator asks for huge pages, and so keeps 2 MiB for the last small text in them. While a million reports come in that is a third of what is resident,
/// and it makes nothing faster that was measured.
fn without_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        // Where the system has none, this is how it says so.
        tracing::debug!(%error, "huge pages can't be switched off");
    }
}

/// What the service is told.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Signals { terminate, interrupt, hangup: signal(SignalKind::hangup())? })
    }
}

fn read_config(args: &ServeArgs) -> Result<Config, String> {
    let from_env = std::env::var_os("TIDINGS_CONFIG");
    let path = config::find(args.config.as_deref(), from_env.as_deref()).map_err(|error| error.to_string())?;
    config::load(&path).map_err(|mistakes| mistakes.to_string())
}

fn serve(runtime: Runtime, config: Config, signals: Signals) -> ExitCode {
    match runtime.block_on(until_stopped(config, signals)) {
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

async fn until_stopped(config: Config, signals: Signals) -> Result<(), NotStopped> {
    let Signals { mut terminate, mut interrupt, mut hangup } = signals;
    let file = config.file.clone();
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
        () = reload_when_told(&running, file.as_deref(), &mut hangup) => {}
    }
    tracing::info!("stopping: finishing what is in flight; a second signal stops at once");
    tell_systemd(&[NotifyState::Stopping]);
    let told_again = async {
        let first = Instant::now();
        while first.elapsed() < SAME_SIGNAL {
            told_to_stop(&mut terminate, &mut interrupt).await;
        }
    };
    tokio::select! {
        stopped = running.stop() => match stopped {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::error!("{error}");
                Err(NotStopped)
            }
        },
        () = told_again => {
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

/// Reads the configuration again at each SIGHUP. Never returns.
async fn reload_when_told(running: &Running, file: Option<&Path>, hangup: &mut Signal) {
    let Some(file) = file else { return std::future::pending().await };
    loop {
        if hangup.recv().await.is_none() {
            return std::future::pending().await;
        }
        tracing::info!(file = %file.display(), "reading the configuration again");
        let mut states = vec![NotifyState::Reloading];
        // systemd wants to know that this is the answer to its own signal, and not to an older one.
        states.extend(NotifyState::monotonic_usec_now().ok());
        tell_systemd(&states);
        let read = file.to_owned();
        // Secrets may be on a file system that hangs.
        let read = tokio::task::spawn_blocking(move || config::load(&read).map_err(|mistakes| mistakes.to_string()));
        let read = read.await.unwrap_or_else(|error| Err(format!("reading the configuration failed: {error}")));
        let status = match running.reload(read).await {
            Ok(_) => "the configuration was reloaded",
            Err(_) => "the configuration was not reloaded; the log says why",
        };
        tell_systemd(&[NotifyState::Ready, NotifyState::Status(status)]);
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

#[cfg(test)]
mod tests {
    #[test]
    fn huge_pages_can_be_switched_off() {
        super::without_huge_pages();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let is_enabled = status.lines().find_map(|line| line.strip_prefix("THP_enabled:"));
        assert!(is_enabled.is_none_or(|is_enabled| is_enabled.trim() == "0"), "{status}");
    }
}
