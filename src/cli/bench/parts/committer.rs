//! The committer alone, and the control that does the least for the same purpose: the batches that it has formed, appended raw and synced.
//!
//! The batches are counted by a log around the real one, so nothing in the committer or the log knows of it.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use xxhash_rust::xxh3::xxh3_64;

use super::{Told, result};
use crate::cli::bench::BenchError;
use crate::cli::bench::plan::LANES;
use crate::cli::bench::reports::{Kind, Report, pool};
use crate::cli::bench::row::percentile;
use crate::cli::bench::service::PREFIX;
use crate::core::event::{Accepted, Event, LanePurpose, Properties, Source};
use crate::core::types::{InstanceId, LaneKey, Millis, Qos, SendNo, Seq};
use crate::log::committer::{self, Limits, now};
use crate::log::sizes::Sizes;
use crate::log::sled_log::{Options, SledLog};
use crate::log::{AppendError, Begun, EventLog, Generation, LogReader, OpenError, Opened, Page, Space, StoreId, Urgency};
use crate::metrics::Metrics;

/// As large as a store is by default.
const MAX_SIZE: u64 = 10 << 30;

/// As long as a store keeps by default, in milliseconds.
const RETENTION_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// The arguments of `tidings bench-part committer`.
#[derive(Debug, Clone, Args)]
pub struct CommitterArgs {
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    reports: u64,
    #[arg(long, value_parser = Kind::parse)]
    kind: Kind,
    #[arg(long)]
    producers: u32,
    /// Reports that a producer hands in at once
    #[arg(long)]
    batch: u64,
    #[arg(long)]
    seed: u64,
    /// NATS servers that keep the log, and not the folder
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
}

/// The arguments of `tidings bench-part raw`.
#[derive(Debug, Clone, Args)]
pub struct RawArgs {
    #[arg(long)]
    folder: PathBuf,
    #[arg(long, value_parser = Kind::parse)]
    kind: Kind,
    #[arg(long)]
    seed: u64,
}

/// What came of the committer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Appended {
    /// Reports that are durable.
    pub reports: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Half of the waits were as long as this or shorter, in milliseconds.
    pub p50_ms: f64,
    /// All but a hundredth of them.
    pub p99_ms: f64,
    /// How many commits it took.
    pub commits: u64,
}

impl Appended {
    /// Reports a second.
    pub fn rate(&self) -> f64 {
        self.reports as f64 / self.seconds
    }
}

/// Reports in each commit, in order: in this file of the folder, for `raw`.
const BATCHES: &str = "batches";

/// Runs the committer.
///
/// # Errors
/// If the disk does not take the reports.
pub async fn run(args: &CommitterArgs, told: &Told) -> Result<String, BenchError> {
    let events: Arc<Vec<Event>> = Arc::new(pool(args.kind, args.seed).iter().map(event_of).collect());
    let failed = |error: &dyn ToString| BenchError::Wire(format!("the committer failed: {}", error.to_string()));
    let opened = open(args).map_err(|error| failed(&error))?;
    let is_shared = opened.log.is_shared();
    let outbox = committer::recover(&opened).map_err(|error| failed(&error))?;
    let batches: Arc<Mutex<Vec<u64>>> = Arc::default();
    let counting = Box::new(Counting { log: opened.log, batches: Arc::clone(&batches) });
    let limits = Limits { max_size: MAX_SIZE, retention_ms: RETENTION_MS };
    let metrics = Arc::new(Metrics::new());
    let started = match is_shared {
        true => committer::start_shared(counting, outbox, limits, metrics, InstanceId(1)),
        false => committer::start(counting, outbox, limits, metrics),
    };
    let handle = started.map_err(|error| failed(&error))?;
    let lanes = Event::LanesChanged { connection: "mqtt".into(), first: 0, count: LANES, purpose: LanePurpose::Fresh, at: now() };
    handle.record(vec![lanes]).await.map_err(|error| failed(&error))?;
    // That was no report.
    batches.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let count = args.reports.div_ceil(args.batch);
    tokio::task::block_in_place(|| told.wait_to_go(""));

    let next = Arc::new(AtomicU64::new(0));
    let mut producers = JoinSet::new();
    let (batch, begin) = (args.batch, Instant::now());
    for _ in 0..args.producers {
        let (handle, events, next) = (handle.clone(), Arc::clone(&events), Arc::clone(&next));
        producers.spawn(async move {
            let mut waits = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(waits);
                }
                let range = number * batch..(number + 1) * batch;
                let taken = range.map(|n| events[(n % events.len() as u64) as usize].clone()).collect();
                let handed_in = Instant::now();
                handle.accept(taken).await.map_err(|error| error.to_string())?;
                waits.push(handed_in.elapsed().as_secs_f64() * 1e3);
            }
        });
    }
    let mut waits: Vec<f64> = Vec::new();
    while let Some(ended) = producers.join_next().await {
        waits.extend(ended.unwrap_or_else(|fault| Err(fault.to_string())).map_err(|error: String| failed(&error))?);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let pending = handle.progress().borrow().connections.values().map(|books| books.totals.pending).sum::<u64>();
    handle.stop().await.map_err(|error| failed(&error))?;
    if pending != count * batch {
        return Err(BenchError::Count { what: "reports in the books".into(), expected: count * batch, found: pending });
    }
    let batches = std::mem::take(&mut *batches.lock().unwrap_or_else(PoisonError::into_inner));
    let file = args.folder.join(BATCHES);
    fs::write(&file, result(&batches)).map_err(BenchError::file(format!("{} can't be written", file.display())))?;
    let (p50_ms, p99_ms) = (percentile(&waits, 0.5), percentile(&waits, 0.99));
    Ok(result(&Appended { reports: pending, seconds, p50_ms, p99_ms, commits: batches.len() as u64 }))
}

/// Opens the log: a new one.
fn open(args: &CommitterArgs) -> Result<Opened, OpenError> {
    if args.servers.is_empty() {
        let store = args.folder.join("store");
        return SledLog::open(&store, Options::for_store(&store, MAX_SIZE));
    }
    open_on(&args.servers)
}

#[cfg(feature = "jetstream")]
fn open_on(servers: &[String]) -> Result<Opened, OpenError> {
    use crate::cli::bench::nats;
    use crate::log::jetstream_log::{JetStreamLog, Options};

    let options = Options { replicas: servers.len(), ..Options::new(servers.to_vec(), nats::STREAM, nats::MAX_SIZE) };
    JetStreamLog::open(options)
}

/// The section that asks for it says so first.
#[cfg(not(feature = "jetstream"))]
fn open_on(servers: &[String]) -> Result<Opened, OpenError> {
    Err(OpenError::Unreachable { store: servers.join(", "), what: "this build has no JetStream".into() })
}

/// Appends the same batches raw, as one process can at best: one write and one fdatasync each.
///
/// # Errors
/// If the disk does not take them.
pub fn run_raw(args: &RawArgs, told: &Told) -> Result<String, BenchError> {
    let encode = |event: &Event| postcard::to_stdvec(event).expect("an event is plain data");
    let events: Vec<Vec<u8>> = pool(args.kind, args.seed).iter().map(event_of).map(|event| encode(&event)).collect();
    let list = args.folder.join(BATCHES);
    let text = fs::read(&list).map_err(BenchError::file(format!("{} can't be read", list.display())))?;
    let batches: Vec<u64> = serde_json::from_slice(&text).map_err(|error| BenchError::Wire(format!("{}: {error}", list.display())))?;
    let path = args.folder.join("raw");
    let failed = || BenchError::file(format!("{} can't be written", path.display()));
    let mut file = File::create(&path).map_err(failed())?;
    told.wait_to_go("");
    let (begin, mut waits) = (Instant::now(), Vec::with_capacity(batches.len()));
    let (mut next, mut bytes) = (0_u64, Vec::new());
    for batch in &batches {
        bytes.clear();
        for number in next..next + batch {
            bytes.extend_from_slice(&events[(number % events.len() as u64) as usize]);
        }
        next += batch;
        let started = Instant::now();
        file.write_all(&bytes).and_then(|()| file.sync_data()).map_err(failed())?;
        waits.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let (p50_ms, p99_ms) = (percentile(&waits, 0.5), percentile(&waits, 0.99));
    Ok(result(&Appended { reports: next, seconds, p50_ms, p99_ms, commits: batches.len() as u64 }))
}

fn event_of(report: &Report) -> Event {
    let topic = report.topic(PREFIX);
    let lane = (xxh3_64(topic.as_bytes()) % u64::from(LANES)) as u32;
    Event::Accepted(Arc::new(Accepted {
        at: Millis(1_767_225_600_000 + report.change),
        source: Source::Http,
        user: String::new(),
        tenant: report.tenant.into(),
        pipeline: report.pipeline.into(),
        action: report.action.into(),
        project: report.project.into(),
        change: report.change.to_string(),
        lane: LaneKey { connection: "mqtt".into(), lane },
        topic,
        qos: Qos::AtLeastOnce,
        retain: false,
        expiry_s: None,
        properties: Properties { content_type: Some("application/json".into()), ..Properties::default() },
        payload: report.payload.clone(),
        dedupe: None,
        replay_of: None,
    }))
}

/// The log, and how many events each append had.
struct Counting {
    log: Box<dyn EventLog>,
    batches: Arc<Mutex<Vec<u64>>>,
}

impl EventLog for Counting {
    fn store_id(&self) -> StoreId {
        self.log.store_id()
    }

    fn next_seq(&self) -> Seq {
        self.log.next_seq()
    }

    fn is_shared(&self) -> bool {
        self.log.is_shared()
    }

    fn catch_up(&mut self) -> Result<Vec<Arc<Page>>, AppendError> {
        self.log.catch_up()
    }

    fn append(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) -> Result<Seq, AppendError> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).push(events.len() as u64);
        self.log.append(events, next_send)
    }

    fn prepare(&mut self, events: &[Event], next_send: &dyn Fn(&LaneKey) -> SendNo) {
        self.log.prepare(events, next_send);
    }

    fn begin_append(
        &mut self,
        events: &[Event],
        next_send: &dyn Fn(&LaneKey) -> SendNo,
        done: Box<dyn FnOnce() + Send>,
    ) -> Result<Begun, AppendError> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).push(events.len() as u64);
        self.log.begin_append(events, next_send, done)
    }

    fn finish_append(&mut self) -> Result<Seq, AppendError> {
        self.log.finish_append()
    }

    fn is_generation_full(&self) -> bool {
        self.log.is_generation_full()
    }

    fn begin_generation(&mut self, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.log.begin_generation(checkpoint)
    }

    fn generations(&self) -> Vec<Generation> {
        self.log.generations()
    }

    fn drop_oldest_generation(&mut self) -> Result<(), AppendError> {
        self.log.drop_oldest_generation()
    }

    fn note_generation(&mut self, first: Seq) -> Result<(), AppendError> {
        self.log.note_generation(first)
    }

    fn note_dropped(&mut self, first: Seq) -> Result<(), AppendError> {
        self.log.note_dropped(first)
    }

    fn keep_generations(&mut self, checkpoint: Option<&[u8]>) -> Result<bool, AppendError> {
        self.log.keep_generations(checkpoint)
    }

    fn space(&self) -> Space {
        self.log.space()
    }

    fn sizes(&self) -> Sizes {
        self.log.sizes()
    }

    fn make_room(&mut self, bytes: u64, urgency: Urgency) -> Result<bool, AppendError> {
        self.log.make_room(bytes, urgency)
    }

    fn make_room_to_begin(&mut self, bytes: u64) -> Result<bool, AppendError> {
        self.log.make_room_to_begin(bytes)
    }

    fn tick(&mut self) -> Result<(), AppendError> {
        self.log.tick()
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        self.log.reader()
    }

    fn adopt_copy(&mut self) -> Result<(), AppendError> {
        self.log.adopt_copy()
    }

    fn close(self: Box<Self>, checkpoint: &[u8]) -> Result<(), AppendError> {
        self.log.close(checkpoint)
    }
}
