//! Seeds told one after the other, on every core; and what is said of one that fails.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tidings::log::committer::encode_checkpoint;
use tidings::metrics::Metrics;

use crate::story::Story;
use crate::trace::{Trace, Violation};
use crate::world::World;

/// So many stories a run: within the time that the whole suite has.
const SEEDS: u64 = 2_000;

/// So many lines of a story that fails are shown.
const LINES: usize = 120;

/// So many failures are shown; one is enough to be mended first.
const SHOWN: usize = 3;

/// A broken promise, and the story's last lines.
struct Failure {
    seed: u64,
    what: String,
    trace: Vec<String>,
}

/// Tells a story. Whatever is broken ends it.
fn tell(story: Story, lines: usize, metrics: &Arc<Metrics>) -> Result<World, (String, Vec<String>)> {
    let mut world = World::new(story, Trace::new(lines), Arc::clone(metrics));
    let cause = match catch_unwind(AssertUnwindSafe(|| world.play())) {
        Ok(()) => return Ok(world),
        Err(cause) => cause,
    };
    let what = match cause.downcast::<Violation>() {
        Ok(violation) => violation.0,
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("it panicked: {}", words.unwrap_or_default())
        }
    };
    Err((what, world.trace.lines().map(str::to_owned).collect()))
}

/// Tells the story of a seed, and if it fails tells it again with its trace.
fn tell_seed(seed: u64, metrics: &Arc<Metrics>) -> Result<u64, Failure> {
    let what = match tell(Story::of(seed), 0, metrics) {
        Ok(world) => return Ok(world.counts.steps),
        Err((what, _)) => what,
    };
    let lines = if env::var("TIDINGS_SIM_TRACE").is_ok_and(|all| all == "all") { usize::MAX } else { LINES };
    Err(match tell(Story::of(seed), lines, metrics) {
        Err((again, trace)) if again == what => Failure { seed, what, trace },
        Err((again, trace)) => {
            Failure { seed, what: format!("{what}; told again: {again}, so something is not of the seed's making"), trace }
        }
        Ok(_) => Failure {
            seed,
            what: format!("{what}; told again it does not fail, so something is not of the seed's making"),
            trace: Vec::new(),
        },
    })
}

/// What asks the log something needs a runtime to be there; nothing ever waits in it.
pub fn in_runtime<T>(act: impl FnOnce(&Arc<Metrics>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _inside = runtime.enter();
    act(&Arc::new(Metrics::new()))
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?} and should be a number")))
}

#[test]
fn no_seed_breaks_a_promise() {
    let one = number("TIDINGS_SIM_SEED");
    let seconds = number("TIDINGS_SIM_SECONDS");
    let first = one.unwrap_or(0);
    let count = match (number("TIDINGS_SIM_SEEDS"), one, seconds) {
        (Some(count), ..) => count,
        (None, _, Some(_)) => u64::MAX - first,
        (None, Some(_), None) => 1,
        (None, None, None) => SEEDS,
    };
    let began = Instant::now();
    let until = seconds.map(|seconds| began + Duration::from_secs(seconds));
    let (next, told, steps, has_failed) = (AtomicU64::new(first), AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failures: Mutex<Vec<Failure>> = Mutex::default();
    let work = || {
        in_runtime(|metrics| {
            while !has_failed.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed - first >= count {
                    break;
                }
                match tell_seed(seed, metrics) {
                    Ok(count) => _ = steps.fetch_add(count, Ordering::Relaxed),
                    Err(failure) => {
                        let mut failures = failures.lock().expect("nobody panics while holding it");
                        failures.push(failure);
                        has_failed.store(failures.len() >= SHOWN, Ordering::Relaxed);
                    }
                }
                told.fetch_add(1, Ordering::Relaxed);
            }
        });
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| _ = scope.spawn(work)));
    let (told, steps, took) = (told.into_inner(), steps.into_inner(), began.elapsed().as_secs_f64());
    println!("{told} seeds from {first} on, {steps} steps in {took:.1} s on {cores} cores: {:.1} seeds per second", told as f64 / took);
    let failures = failures.into_inner().expect("nobody panics while holding it");
    for Failure { seed, what, trace } in &failures {
        println!("\nseed {seed}:");
        trace.iter().for_each(|line| println!("{line}"));
        println!("seed {seed} breaks a promise: {what}");
        println!("again: TIDINGS_SIM_SEED={seed} TIDINGS_SIM_TRACE=all cargo test --test sim no_seed -- --nocapture");
    }
    let seeds: Vec<u64> = failures.iter().map(|failure| failure.seed).collect();
    assert!(failures.is_empty(), "{} of {told} seeds failed, the first of them: {seeds:?}", failures.len());
}

#[test]
fn an_hour_of_churn_with_outages_ends_with_nothing_left() {
    let requests = number("TIDINGS_SIM_REQUESTS").unwrap_or(10_000);
    let story = || Story::of_an_hour(2, requests);
    in_runtime(|metrics| {
        let began = Instant::now();
        let world = tell(story(), 0, metrics).unwrap_or_else(|(what, _)| {
            let (_, trace) = tell(story(), LINES, metrics).err().unwrap_or_default();
            panic!("{what}:\n{}", trace.join("\n"));
        });
        let counts = world.counts;
        let (deliveries, kept) = (world.oracle.deliveries(), encode_checkpoint(world.last_outbox()).len());
        println!(
            "{deliveries} deliveries in {} s of simulated time, {} starts, {} outages, {} troubles, {} steps in {:.1} s; {kept} bytes kept at the end",
            world.now / 1_000,
            counts.starts,
            counts.outages,
            counts.troubles,
            counts.steps,
            began.elapsed().as_secs_f64()
        );
        assert!(counts.starts >= 20 && counts.outages >= 20, "{counts:?}");
        // Nothing grows with what was delivered: dead letters stay, and each lane's few words; keys of requests go with their generation.
        let dead = world.oracle.dead().len();
        assert_eq!(world.oracle.live_state(), dead, "what is kept apart is dead letters");
        assert!(kept < 200_000 + 200 * dead, "the checkpoint has {kept} bytes, with {dead} dead letters");
        assert!(world.disk.bytes() < 8 * world.story.generation_bytes, "the log takes {} bytes", world.disk.bytes());
        assert!(world.links.len() < 100 && world.remembered() < 500, "{} links, {} at brokers", world.links.len(), world.remembered());
    });
}
