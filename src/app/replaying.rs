//! Replay jobs at work: what was delivered is delivered again, oldest first, on a lane of its own.
//!
//! ```text
//!   log ─ seek (page by page, what the headers exclude unread) ─▶ a piece ─▶ one commit: Accepted ×n, ReplayProgress ─▶ replay lane ─▶ broker
//!    ▲                                                                                        │                            sends in the gaps
//!    └──────────────── when its lanes have little left, there is room, and its rate allows ◀──┘
//! ```
//! What a piece creates and how far the job has come by that are one commit. So a kill at any moment neither repeats a report nor leaves one out, and at the
//! next start the job goes on from its progress. A job holds one piece in memory, and creates no more than its lanes have little left to deliver: so a
//! million reports are replayed in as little room as a thousand. A store that is full pauses it.
//!
//! What counts as delivered is what was so when the job began, or was taken up again. One task each; they begin and end by the hand of one.

mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout};

use self::worker::{End, Failures, Worker};
use super::control::Command;
use crate::admin::deliveries::seek::{Copies, Limits, Piece, seek};
use crate::admin::replays::{Ask, Lives, ReplayError, Spec, Wanted};
use crate::core::event::{Accepted, Event};
use crate::core::outbox::{Job, job_name};
use crate::core::replay::{self, Step};
use crate::core::search::{Filter, Snapshot};
use crate::core::types::{ConnectionName, LaneKey, Seq};
use crate::failpoint::{self, Point};
use crate::log::committer::{CommitError, LogHandle, now};
use crate::metrics::Metrics;

/// So many jobs are under way at once: each has a piece in memory, and keeps a thread and the disk busy.
const MOST_AT_ONCE: usize = 8;

/// A piece. With its progress it fits one commit.
const PIECE: Limits = Limits { count: 500, bytes: 2 << 20 };

/// A job goes ahead only while each of its lanes has fewer than so many to deliver.
const ENOUGH: u64 = 1_000;

/// Where nothing is found, so often it is recorded how far the job has looked.
const RECORD_EVERY: Duration = Duration::from_secs(5);

/// What could not be written is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Where the log is shared, so often is looked which jobs are under way.
const LOOK: Duration = Duration::from_millis(500);

/// A rate is kept by pieces of at most so long.
const PACE: Duration = Duration::from_millis(250);

/// The one who begins and ends jobs.
pub(super) struct Replaying {
    pub(super) log: LogHandle,
    pub(super) metrics: Arc<Metrics>,
    pub(super) lives: Lives,
    /// Starts lanes.
    pub(super) control: mpsc::Sender<Command>,
    /// Where the log is shared: whether this instance is the one that creates what is replayed.
    pub(super) leads: Option<watch::Receiver<bool>>,
    /// True once the service stops.
    pub(super) stopping: watch::Receiver<bool>,
}

/// What comes first.
enum Told {
    Asked(Ask),
    Look,
    Stop,
}

impl Replaying {
    /// Takes up what was under way, and begins and ends jobs until the service stops.
    pub(super) async fn run(self, mut asks: mpsc::Receiver<Ask>) {
        let mut workers: BTreeMap<u64, Worker> = BTreeMap::new();
        let mut failures = Failures::default();
        self.keep_up(&mut workers, &mut failures).await;
        let mut stopping = self.stopping.clone();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let told = tokio::select! {
                ask = asks.recv() => ask.map_or(Told::Stop, Told::Asked),
                _ = stopping.wait_for(|stopping| *stopping) => Told::Stop,
                _ = look.tick(), if self.leads.is_some() => Told::Look,
            };
            self.let_go(&mut workers, &mut failures);
            match told {
                // Others may have begun or ended some, or another leads now.
                Told::Look => self.keep_up(&mut workers, &mut failures).await,
                Told::Asked(Ask::Start { wanted, reply }) => {
                    let outcome = self.start(*wanted, &mut workers).await;
                    // Who asked finds it by its key, or in the list.
                    let _ = reply.send(outcome);
                }
                Told::Asked(Ask::Cancel { id, by, reply }) => {
                    let worker = workers.remove(&id);
                    let _ = reply.send(self.cancel(id, by, worker).await);
                }
                Told::Stop => break,
            }
        }
        // Each sees the stop by itself.
        for (_, worker) in workers {
            worker.ended().await;
        }
    }

    /// Whether what is replayed is created here.
    fn leads(&self) -> bool {
        self.leads.as_ref().is_none_or(|leads| *leads.borrow())
    }

    /// Drops those that have ended, and remembers which of them have failed.
    fn let_go(&self, workers: &mut BTreeMap<u64, Worker>, failures: &mut Failures) {
        workers.retain(|id, worker| {
            let ended = worker.try_end();
            if ended == Some(End::Failed) {
                let wait = failures.note(*id, Instant::now());
                tracing::debug!(replay = job_name(*id), "the replay is taken up again after {} s", wait.as_secs());
            }
            ended.is_none()
        });
    }

    /// Has what is under way go on, and nothing else.
    async fn keep_up(&self, workers: &mut BTreeMap<u64, Worker>, failures: &mut Failures) {
        if !self.leads() {
            // What one of them may be about to record is refused.
            workers.clear();
            return;
        }
        let asked = self.log.ask(|outbox| outbox.replays().keys().copied().collect::<Vec<u64>>());
        let under_way = match self.leads {
            // It is asked at the start, and never again.
            None => asked.await,
            Some(_) => timeout(LOOK, asked).await.unwrap_or(Err(CommitError::Overloaded)),
        };
        let Ok(under_way) = under_way else { return };
        let under_way = under_way.into_inner();
        workers.retain(|id, _| under_way.contains(id));
        failures.keep(&under_way);
        for id in under_way.into_iter().filter(|id| failures.allow(*id, Instant::now())) {
            workers.entry(id).or_insert_with(|| {
                tracing::info!(replay = job_name(id), "a replay goes on");
                self.begin(id)
            });
        }
    }

    fn begin(&self, id: u64) -> Worker {
        let (cancel, cancelled) = watch::channel(false);
        let job = Work {
            id,
            log: self.log.clone(),
            metrics: Arc::clone(&self.metrics),
            lives: self.lives.clone(),
            control: self.control.clone(),
            stopping: self.stopping.clone(),
            cancelled,
        };
        let again = if self.leads.is_some() { "after a while, in minutes at most" } else { "at the next start" };
        let mut task = JoinSet::new();
        task.spawn(async move {
            match job.run().await {
                Ok(()) | Err(Ended::Told) => End::Well,
                Err(Ended::Failed(error)) => {
                    tracing::error!(replay = job_name(id), error, "the replay goes no further; it is taken up again {again}");
                    End::Failed
                }
            }
        });
        Worker { cancel, task }
    }

    async fn job(&self, id: u64) -> Result<Option<Job>, ReplayError> {
        let asked = self.log.ask(move |outbox| outbox.jobs().get(id).cloned()).await;
        asked.map(|job| job.into_inner()).map_err(|_| ReplayError::Stopping)
    }

    async fn start(&self, wanted: Wanted, workers: &mut BTreeMap<u64, Worker>) -> Result<(bool, Job), ReplayError> {
        let Wanted { id, mut spec, rate, by } = wanted;
        if let Some(known) = self.job(id).await? {
            let is_same = Spec::read(&known.filter).is_ok_and(|told| told.body == spec.body);
            return if is_same { Ok((false, known)) } else { Err(ReplayError::Conflict) };
        }
        let asked = self.log.ask(|outbox| (outbox.oldest_generation().unwrap_or(Seq::FIRST), outbox.replays().len())).await;
        let (oldest, under_way) = asked.map_err(|_| ReplayError::Stopping)?.into_inner();
        let (oldest, under_way) = (oldest.max(Seq::FIRST), under_way.max(workers.len()));
        if under_way >= MOST_AT_ONCE {
            return Err(ReplayError::TooMany(under_way));
        }
        spec.from = oldest.0;
        let at = now();
        let reason = spec.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let what = format!("began replay {}{reason}: {}", job_name(id), shown(&spec));
        let events = vec![
            Event::Audit { who: by.clone(), what, at },
            Event::ReplayStarted { job: id, by: by.clone(), filter: spec.write(), rate, at },
        ];
        match self.log.accept(events).await {
            Ok(_) => {}
            Err(CommitError::Stopped) => return Err(ReplayError::Stopping),
            Err(CommitError::Full(reason)) => return Err(ReplayError::Full(reason)),
            Err(error) => return Err(ReplayError::Failed(error.to_string())),
        }
        failpoint::reach(Point::ReplayAsked);
        tracing::info!(replay = job_name(id), by, rate, "a replay has begun");
        if self.leads() {
            workers.insert(id, self.begin(id));
        }
        let job = self.job(id).await?.ok_or(ReplayError::Stopping)?;
        self.forget_old().await;
        Ok((true, job))
    }

    async fn forget_old(&self) {
        let known = self.log.ask(|outbox| outbox.jobs().iter().map(|(id, _)| id).collect::<Vec<_>>()).await;
        if let Ok(known) = known.map(|known| known.into_inner()) {
            self.lives.keep(|id| known.contains(&id));
        }
    }

    async fn cancel(&self, id: u64, by: String, worker: Option<Worker>) -> Result<Job, ReplayError> {
        if let Some(worker) = worker {
            worker.cancel.send_replace(true);
            // It ends between two commits, so what it has created is known.
            worker.ended().await;
        }
        let unknown = || ReplayError::Unknown(job_name(id));
        let job = self.job(id).await?.ok_or_else(unknown)?;
        if job.end.is_some() {
            return Ok(job);
        }
        let at = now();
        let what = format!("cancelled replay {} after {} reports", job_name(id), job.created);
        let events = vec![Event::Audit { who: by.clone(), what, at }, Event::ReplayEnded { job: id, cancelled_by: Some(by.clone()), at }];
        match self.log.record(events).await {
            Ok(_) => {}
            Err(CommitError::Stopped) => return Err(ReplayError::Stopping),
            Err(error) => return Err(ReplayError::Failed(error.to_string())),
        }
        tracing::info!(replay = job_name(id), by, "a replay was cancelled");
        self.job(id).await?.ok_or_else(unknown)
    }
}

/// What is replayed, in words.
fn shown(spec: &Spec) -> String {
    match serde_json::to_string(&spec.filter) {
        Ok(filter) if filter != "{}" => filter,
        _ => "everything that was delivered".to_owned(),
    }
}

/// Why a job goes no further for now.
enum Ended {
    /// It was cancelled, or the service stops.
    Told,
    Failed(String),
}

/// One job at work.
struct Work {
    id: u64,
    log: LogHandle,
    metrics: Arc<Metrics>,
    lives: Lives,
    control: mpsc::Sender<Command>,
    stopping: watch::Receiver<bool>,
    cancelled: watch::Receiver<bool>,
}

/// How far it is.
struct Place {
    filter: Filter,
    snapshot: Arc<Snapshot>,
    copies: Copies,
    /// The next position to look at.
    at: Seq,
    until: Seq,
    created: u64,
    rate: u32,
    /// The replay lanes by connection; none for one that is not configured.
    lanes: BTreeMap<ConnectionName, Option<LaneKey>>,
    recorded_at: Instant,
}

impl Work {
    async fn run(mut self) -> Result<(), Ended> {
        let mut place = self.take_up().await?;
        loop {
            self.wait_for_room(&mut place).await?;
            let piece = self.seek(&mut place).await?;
            let is_last = !piece.is_gone && piece.next >= place.until;
            let count = piece.found.len();
            if count > 0 || is_last || piece.is_gone || place.recorded_at.elapsed() >= RECORD_EVERY {
                self.create(&mut place, piece, is_last).await?;
            } else {
                place.at = piece.next;
            }
            if is_last {
                failpoint::reach(Point::ReplayEnded);
                tracing::info!(replay = job_name(self.id), created = place.created, "a replay has created all that it was to");
                return Ok(());
            }
            if place.rate > 0 && count > 0 {
                self.pause(Duration::from_secs_f64(count as f64 / f64::from(place.rate))).await?;
            }
        }
    }

    /// Where the log says that it is.
    async fn take_up(&self) -> Result<Place, Ended> {
        let id = self.id;
        let known = self.log.ask_in_order(move |outbox| outbox.jobs().get(id).cloned()).await;
        let job = known.map_err(|_| Ended::Told)?.into_inner().filter(|job| job.end.is_none()).ok_or(Ended::Told)?;
        let spec = Spec::read(&job.filter).map_err(Ended::Failed)?;
        let filter = spec.wanted().map_err(|error| Ended::Failed(format!("{error:?}")))?;
        let snapshot = self.snapshot(&filter).await?;
        let copies = Copies { from: Seq(spec.from), gone: Vec::new(), taken: job.copied().clone() };
        let (at, until) = (job.through.next().max(Seq(spec.from)), job.asked);
        let (created, rate) = (job.created, job.rate);
        Ok(Place { filter, snapshot, copies, at, until, created, rate, lanes: BTreeMap::new(), recorded_at: Instant::now() })
    }

    async fn snapshot(&self, filter: &Filter) -> Result<Arc<Snapshot>, Ended> {
        let connection = filter.connection.clone();
        let asked = self.log.ask_in_order(move |outbox| Snapshot::of(outbox, connection.as_ref())).await;
        asked.map(|snapshot| Arc::new(snapshot.into_inner())).map_err(|_| Ended::Told)
    }

    fn is_told(&self) -> bool {
        *self.stopping.borrow() || *self.cancelled.borrow()
    }

    fn waits_for(&self, what: Option<&'static str>) {
        self.lives.change(self.id, |live| live.waits_for = what);
    }

    async fn pause(&mut self, time: Duration) -> Result<(), Ended> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            _ = self.stopping.wait_for(|stopping| *stopping) => Err(Ended::Told),
            _ = self.cancelled.wait_for(|cancelled| *cancelled) => Err(Ended::Told),
        }
    }

    /// Waits until each of its lanes has little left to deliver.
    async fn wait_for_room(&mut self, place: &mut Place) -> Result<(), Ended> {
        // A slow replay has no burst saved up for when the broker is back.
        let enough = if place.rate > 0 { ENOUGH.min(u64::from(place.rate)) } else { ENOUGH };
        let mut progress = self.log.progress();
        let mut ask_again_at = Instant::now() + RECORD_EVERY;
        loop {
            if self.is_told() {
                return Err(Ended::Told);
            }
            if ask_again_at <= Instant::now() {
                self.ask_again(place).await?;
                ask_again_at = Instant::now() + RECORD_EVERY;
            }
            let is_full = {
                let known = progress.borrow_and_update();
                let pending =
                    |lane: &LaneKey| known.connections.get(&lane.connection).and_then(|books| books.lanes.get(&lane.lane)).copied();
                place.lanes.values().flatten().any(|lane| pending(lane).unwrap_or(0) >= enough)
            };
            self.waits_for(is_full.then_some("broker"));
            if !is_full {
                return Ok(());
            }
            tokio::select! {
                changed = progress.changed() => changed.map_err(|_| Ended::Told)?,
                () = sleep_until(ask_again_at) => {}
                _ = self.stopping.wait_for(|stopping| *stopping) => {}
                _ = self.cancelled.wait_for(|cancelled| *cancelled) => {}
            }
        }
    }

    async fn seek(&self, place: &mut Place) -> Result<Piece, Ended> {
        let limits = match place.rate {
            0 => PIECE,
            rate => {
                let count = (u128::from(rate) * PACE.as_millis() / 1_000).clamp(1, PIECE.count as u128);
                Limits { count: usize::try_from(count).unwrap_or(1), ..PIECE }
            }
        };
        let (log, snapshot, filter, copies) = (self.log.clone(), Arc::clone(&place.snapshot), place.filter.clone(), place.copies.clone());
        let (at, until) = (place.at, place.until);
        let seeking = tokio::task::spawn_blocking(move || seek(&log, &snapshot, &filter, &copies, at, until, limits));
        let mut piece =
            seeking.await.map_err(|error| Ended::Failed(error.to_string()))?.map_err(|error| Ended::Failed(error.to_string()))?;
        if piece.is_gone {
            // What is stored now, and what of that is still to come, is known to the outbox.
            place.snapshot = self.snapshot(&place.filter).await?;
            let oldest = place.snapshot.oldest.max(piece.next);
            if oldest > piece.next {
                let lost = oldest.min(place.until).0.saturating_sub(piece.next.0);
                place.copies.gone.push((piece.next, Seq(oldest.0 - 1)));
                self.lives.change(self.id, |live| live.past_retention += lost);
                tracing::warn!(replay = job_name(self.id), lost, "retention has deleted a part of the log before the replay came to it");
            } else {
                // Not yet: it is being deleted.
                tokio::time::sleep(AGAIN).await;
            }
            piece.next = oldest.min(place.until);
        }
        Ok(piece)
    }

    /// One commit: what was found is created again, and the job has come so far.
    async fn create(&mut self, place: &mut Place, piece: Piece, is_last: bool) -> Result<(), Ended> {
        let mut originals: Vec<(Seq, LaneKey, Accepted)> = Vec::with_capacity(piece.found.len());
        let mut copied = Vec::new();
        for found in piece.found {
            match self.lane(place, &found.accepted.lane.connection).await? {
                Some(lane) => {
                    if found.id < place.at {
                        copied.push(found.id);
                    }
                    originals.push((found.id, lane, found.accepted));
                }
                None => self.lives.change(self.id, |live| live.not_configured += 1),
            }
        }
        let mut created: BTreeMap<ConnectionName, u64> = BTreeMap::new();
        for (_, lane, _) in &originals {
            *created.entry(lane.connection.clone()).or_default() += 1;
        }
        let count = originals.len() as u64;
        let step = Step { job: self.id, through: Seq(piece.next.0 - 1), created: place.created, is_last };
        self.commit(replay::events(step, originals, now())).await?;
        failpoint::reach_if(Point::ReplayPiece, || count > 0);
        (place.at, place.created, place.recorded_at) = (piece.next, place.created + count, Instant::now());
        place.copies.taken.extend(copied);
        for (connection, count) in created {
            self.metrics.tidings_replayed_total.with_label_values(&[connection.as_str()]).inc_by(count);
            self.metrics.tidings_deliveries_created_total.with_label_values(&[connection.as_str()]).inc_by(count);
        }
        Ok(())
    }

    /// It takes room like anything that is accepted, and waits until there is some.
    async fn commit(&mut self, events: Vec<Event>) -> Result<(), Ended> {
        loop {
            match self.log.accept(events.clone()).await {
                Ok(_) => {
                    self.waits_for(None);
                    return Ok(());
                }
                Err(CommitError::Full(_)) => self.waits_for(Some("store_full")),
                Err(CommitError::Overloaded) => {}
                Err(CommitError::Stopped) => return Err(Ended::Told),
                // Another instance leads now, or has recorded that the job was cancelled.
                // Or its lanes are other ones by now: it is taken up again, and finds them.
                Err(CommitError::NotOwner(_) | CommitError::ChangedMeanwhile(_) | CommitError::LanesChanged(_)) => return Err(Ended::Told),
                Err(error) => return Err(Ended::Failed(error.to_string())),
            }
            self.pause(AGAIN).await?;
        }
    }

    /// A reload may have taken away the connection that it waits for: nothing is delivered there any more.
    async fn ask_again(&self, place: &mut Place) -> Result<(), Ended> {
        for connection in std::mem::take(&mut place.lanes).into_keys() {
            self.lane(place, &connection).await?;
        }
        Ok(())
    }

    /// The replay lane of a connection, at work.
    async fn lane(&self, place: &mut Place, connection: &ConnectionName) -> Result<Option<LaneKey>, Ended> {
        if let Some(known) = place.lanes.get(connection) {
            return Ok(known.clone());
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::ReplayLane { connection: connection.clone(), reply };
        self.control.send(command).await.map_err(|_| Ended::Told)?;
        let lane = answer.await.map_err(|_| Ended::Told)?.map_err(|error| Ended::Failed(error.to_string()))?;
        place.lanes.insert(connection.clone(), lane.clone());
        Ok(lane)
    }
}
