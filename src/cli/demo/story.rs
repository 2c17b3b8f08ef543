//! What happens in the demo, in its order, and within which time.

use std::cell::Cell;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::DemoArgs;
use super::broker::{Broker, BrokerError};
use super::check::{Checker, Verdict};
use super::post::{Load, PostError, post_all};
use super::progress::{Counts, Progress};
use super::proxy::{Cut, CutError, Proxy};
use super::reports::Generator;
use super::settings::settings;
use super::subscriber::{Subscriber, SubscriberError};
use crate::app::{self, Running};
use crate::cli::signals::Signals;
use crate::cli::{FAILED, output};

/// The outage begins when this share of the reports has been accepted.
const OUTAGE_AFTER: f64 = 0.4;

/// A cut waits so long for a delivery to be in flight. Reports are posted all the time, so the first one is there within milliseconds.
const CUT_PATIENCE: Duration = Duration::from_secs(10);

/// The backlog is given so long to fall by half before the second cut.
const CATCH_UP: Duration = Duration::from_secs(2);

/// Nothing has arrived for so long: nothing will. A local broker passes a message on within a millisecond.
const QUIET: Duration = Duration::from_millis(500);

/// What the demo may take beyond posting and outage. It takes about two seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Starting the service may take so long.
const START: Duration = Duration::from_secs(30);

/// Stopping it may take so long; it bounds itself.
const STOP: Duration = Duration::from_secs(30);

/// How often counts are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How often they are shown.
const SHOW: Duration = Duration::from_millis(100);

/// Reports of each kind of failure that are named.
const NAMED: usize = 5;

/// Why there is no verdict, or none that counts.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("the demo can't be set up: {0}")]
    SetUp(#[from] io::Error),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Subscriber(#[from] SubscriberError),
    #[error("the demo's configuration is wrong: {0}")]
    Settings(#[from] crate::config::ConfigErrors),
    #[error("the service did not start: {0}")]
    Start(String),
    #[error(transparent)]
    Post(#[from] PostError),
    #[error(transparent)]
    Cut(#[from] CutError),
    #[error("the service failed: {0}")]
    Failed(String),
    #[error("the checking subscriber lost its connection, so nothing can be said: {0}")]
    Deaf(String),
    #[error("gave up after {0:?}: {1}")]
    OutOfTime(Duration, String),
    #[error("interrupted")]
    Interrupted,
}

/// Runs the demo.
pub fn run(args: &DemoArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::complain(&error.to_string()),
    };
    let outcome = runtime.block_on(demo(args));
    runtime.shutdown_background();
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => output::complain(&error.to_string()),
    }
}

/// Sets up, plays, stays if asked to, and takes down, whatever happens in between. True if all is well.
async fn demo(args: &DemoArgs) -> Result<bool, DemoError> {
    let mut signals = Signals::new()?;
    let mut stage = Stage::set_up().await?;
    let mut outcome = tokio::select! {
        outcome = stage.run(Plan::of(args)) => outcome,
        () = signals.any() => Err(DemoError::Interrupted),
    };
    if args.stay && outcome.is_ok() {
        tokio::select! {
            why = stage.stay() => outcome = Err(DemoError::Failed(why)),
            // That is how it is meant to end.
            () = signals.any() => {}
        }
    }
    tokio::select! {
        () = stage.take_down() => {}
        // Asked once more, it doesn't wait for the service. The scratch store goes either way.
        () = signals.any() => {}
    }
    outcome
}

/// Everybody who plays, in the order in which they leave.
struct Stage {
    service: Running,
    proxy: Proxy,
    subscriber: Subscriber,
    broker: Broker,
    /// The store's folder; removed at the end.
    scratch: TempDir,
    books: Arc<Mutex<Checker>>,
    /// The name of the run.
    run: String,
}

impl Stage {
    async fn set_up() -> Result<Stage, DemoError> {
        let scratch = tempfile::Builder::new().prefix("tidings-demo-").tempdir()?;
        let run = format!("{:x}-{:x}", since_1970().as_micros(), std::process::id());
        let books = Arc::new(Mutex::new(Checker::new(&run)));
        let broker = Broker::start().await?;
        let proxy = Proxy::start(broker.addr()).await?;
        let subscriber = Subscriber::start(broker.addr(), Arc::clone(&books)).await?;
        let starting = app::start(settings(&scratch.path().join("store"), proxy.addr())?);
        let started = timeout(START, starting).await.map_err(|_| DemoError::Start(format!("it took more than {START:?}")))?;
        let service = started.map_err(|error| DemoError::Start(error.to_string()))?;
        Ok(Stage { service, proxy, subscriber, broker, scratch, books, run })
    }

    async fn take_down(self) {
        match timeout(STOP, self.service.stop()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => _ = output::complain(&format!("the service did not stop as it should: {error}")),
            Err(_) => _ = output::complain(&format!("the service did not stop within {STOP:?}")),
        }
        self.broker.stop().await;
        if let Err(error) = self.scratch.close() {
            output::complain(&format!("the scratch store could not be removed: {error}"));
        }
    }

    /// Plays, and says what came of it. True if all is well.
    async fn run(&mut self, plan: Plan) -> Result<bool, DemoError> {
        tell(&plan.introduction());
        let verdict = self.play(plan).await?;
        for complaint in books(&self.books).complaints(NAMED) {
            tell(&complaint);
        }
        if let Some(alarm) = verdict.alarm() {
            tell(&alarm);
        }
        output::print(&format!("{}\n{verdict}\n", verdict.allowance()));
        Ok(verdict.is_good())
    }

    /// Everything up to the verdict.
    async fn play(&mut self, plan: Plan) -> Result<Verdict, DemoError> {
        let Stage { service, proxy, subscriber, books: shared, run, .. } = self;
        let accepted = Arc::new(AtomicU64::new(0));
        let progress = Progress::new(plan.load.reports);
        let away = Cell::new(false);
        let all_posted = Cell::new(false);
        let backlog = || service.log().progress().borrow().connections.values().map(|books| books.totals.pending).sum::<u64>();
        let counts = || Counts {
            accepted: accepted.load(Ordering::Relaxed),
            delivered: books(shared).count(),
            backlog: backlog(),
            away: away.get(),
        };

        let posting = async {
            let generator = Generator::new(run, since_1970().as_secs_f64());
            post_all(service.http_addr(), plan.load, generator, shared, &accepted).await?;
            all_posted.set(true);
            Ok::<_, DemoError>(())
        };
        let outage = async {
            until(|| counts().accepted as f64 >= plan.load.reports as f64 * OUTAGE_AFTER).await;
            let cut = proxy.take_away(CUT_PATIENCE).await?;
            away.set(true);
            progress.say(&said("The broker goes away", &cut));
            sleep(plan.outage).await;
            proxy.bring_back().map_err(CutError::Port)?;
            away.set(false);
            let waiting = backlog();
            progress.say(&format!("The broker is back. Waiting for it: {waiting}."));
            // The worst time for a second cut is while the first one is being made good.
            let _ = timeout(CATCH_UP, until(|| backlog() <= waiting / 2)).await;
            match proxy.take_away(CATCH_UP).await {
                Err(CutError::NothingInFlight(_)) => {}
                Err(error) => return Err(error.into()),
                Ok(cut) => {
                    proxy.bring_back().map_err(CutError::Port)?;
                    progress.say(&said("Cut off once more while catching up", &cut));
                }
            }
            Ok(())
        };
        let acts = async {
            tokio::try_join!(posting, outage)?;
            until(|| backlog() == 0 && books(shared).is_complete()).await;
            // Late repeats, and what is still under way at QoS 0.
            until(|| subscriber.heard().elapsed() > QUIET).await;
            Ok(())
        };
        let showing = async {
            loop {
                progress.show(counts());
                sleep(SHOW).await;
            }
        };
        let limit = plan.limit();
        let outcome = tokio::select! {
            acts = acts => acts,
            why = service.failed() => Err(DemoError::Failed(why)),
            why = subscriber.failed() => Err(DemoError::Deaf(why)),
            () = showing => Ok(()),
            () = sleep(limit) => Err(DemoError::OutOfTime(limit, state_of_things(counts(), plan.load.reports, service))),
        };
        progress.end(counts());
        match outcome {
            // Everything was posted, so what has not arrived is lost: that is a verdict, and the reason goes before it.
            Err(error @ DemoError::OutOfTime(..)) if all_posted.get() && !books(shared).is_complete() => {
                _ = output::complain(&error.to_string())
            }
            other => other?,
        }
        Ok(books(shared).verdict())
    }

    /// Goes on serving, and says where; ends with the reason if the service fails.
    async fn stay(&self) -> String {
        let (url, broker) = (self.service.http_addr(), self.broker.addr());
        tell(&format!(
            "The service goes on until Ctrl-C:\n  \
             dashboard, API and metrics   http://{url}/  http://{url}/v1/status  http://{url}/metrics\n  \
             post a report                tidings report --url http://{url} report.json\n  \
             see what is published        mosquitto_sub -h {} -p {} -t '#' -v",
            broker.ip(),
            broker.port()
        ));
        self.service.failed().await
    }
}

/// What is to happen.
#[derive(Debug, Clone, Copy)]
struct Plan {
    load: Load,
    outage: Duration,
}

impl Plan {
    fn of(args: &DemoArgs) -> Plan {
        let reports = f64::from(args.reports);
        // With few reports there has to be time for an outage in their middle.
        let rate = args.rate.map_or((reports / 3.0).min(250.0), f64::from);
        Plan { load: Load { reports: args.reports.into(), rate }, outage: args.outage }
    }

    fn introduction(&self) -> String {
        let Plan { load: Load { reports, rate }, outage } = self;
        let outage = match *outage {
            Duration::ZERO => "and back at once".to_owned(),
            outage => format!("for {}", humantime::format_duration(outage)),
        };
        format!(
            "An MQTT broker, the service and a subscriber that checks run here, in one process; nothing is installed or left behind.\n\
             {reports} reports as Zuul makes them are posted over HTTP, {rate:.0} a second, and delivered over MQTT at QoS 0, 1 and 2.\n\
             In the middle, the broker is taken away {outage}, with deliveries in flight; posting goes on.\n\
             At the end the subscriber says what was lost, what came twice and what came out of order."
        )
    }

    fn limit(&self) -> Duration {
        LIMIT + self.outage + Duration::from_secs_f64(self.load.reports as f64 / self.load.rate)
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn books(books: &Mutex<Checker>) -> MutexGuard<'_, Checker> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a condition; the caller sets the limit.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        sleep(LOOK).await;
    }
}

/// Says something on standard error, before and after there is progress to show.
fn tell(what: &str) {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{what}");
}

fn said(what: &str, cut: &Cut) -> String {
    let mut lost: Vec<String> = cut.lost.iter().map(ToString::to_string).collect();
    lost.dedup();
    format!("{what}. In flight: {}; lost on the way: {}.", cut.in_flight, lost.join(", "))
}

/// What is missing, for who has waited in vain.
fn state_of_things(counts: Counts, reports: u64, service: &Running) -> String {
    let Counts { accepted, delivered, backlog, .. } = counts;
    let lanes = service.board().snapshot();
    let lanes = lanes.iter().map(|(key, status)| {
        let trouble = status.last_error.as_ref().map_or(String::new(), |(_, error)| format!(", last trouble: {error}"));
        format!("\n  lane {key}: {}, {} in flight, {} waiting{trouble}", status.state.name(), status.in_flight, status.waiting)
    });
    format!(
        "{accepted} of {reports} reports were accepted, {delivered} have arrived, {backlog} deliveries are pending{}",
        lanes.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::proxy::Moment;

    fn plan(reports: u32, rate: Option<u32>) -> Plan {
        Plan::of(&DemoArgs { reports, rate, outage: Duration::from_secs(3), stay: false })
    }

    #[test]
    fn posting_takes_three_seconds_at_least_unless_told_otherwise() {
        assert_eq!(plan(2_000, None).load.rate, 250.0);
        assert_eq!(plan(300, None).load.rate, 100.0);
        assert_eq!(plan(300, Some(7)).load.rate, 7.0);
        assert_eq!(plan(2_000, Some(100)).limit(), Duration::from_secs(60 + 3 + 20));
    }

    #[test]
    fn the_introduction_has_five_lines_at_most_and_names_the_outage() {
        let text = plan(2_000, None).introduction();
        assert!(text.lines().count() <= 5 && text.contains("for 3s"), "{text}");
    }

    #[test]
    fn a_cut_is_told_in_one_line() {
        let cut = Cut { in_flight: 7, lost: vec![Moment::Pubrec, Moment::Pubrec, Moment::Puback] };
        assert_eq!(said("The broker goes away", &cut), "The broker goes away. In flight: 7; lost on the way: a PUBREC, a PUBACK.");
    }
}
