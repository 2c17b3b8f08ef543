//! What operators decide about deliveries is carried out here: chosen from the outbox as it is, and written in one commit.
//!
//! Dead letters are nobody's but the operators', so they are chosen and changed while everything runs. What is pending belongs to lanes at work: those of
//! the connections that are concerned finish what is in flight and are stopped meanwhile, so that no outcome meets a delivery that was given up. What may
//! be on the wire even then, because its broker did not answer, is left alone unless the operator wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::control::Control;
use crate::admin::deliveries::{budget::Budget, story};
use crate::admin::repairs::{Act, Decision, RepairError, Repaired, SHOWN_IDS, Which};
use crate::core::decision::{self, Chosen};
use crate::core::event::{Accepted, Event};
use crate::core::notice::{Missing, notice_on};
use crate::core::search::{Filter, Snapshot, State};
use crate::core::types::{ConnectionName, LaneKey, Millis, Qos, Seq};
use crate::delivery::backlog::{BacklogReader, Limits};
use crate::log::committer::{CommitError, LogHandle, now};
use crate::log::{Page, ReadError};

/// One commit requeues at most so many: each has an event of its own, and its lane holds it in memory until it is sent.
const MOST_REQUEUED: usize = 10_000;

/// And so many bytes, or one.
const MOST_REQUEUED_BYTES: usize = 64 << 20;

/// A connection is given more only while fewer than so many wait to be sent again.
const WAITING_ENOUGH: usize = 1_000;

/// One commit gives up at most so many, which are ranges.
const MOST_DISCARDED: usize = 100_000;

/// How much of the backlog is read at once.
const PIECE: Limits = Limits { events: 1_024, bytes: 4 << 20 };

/// What was to be read next has been carried forward: by then it stands in its new place.
const ANEW: Duration = Duration::from_millis(200);

/// So often it begins anew.
const TRIES: u32 = 20;

/// So often it is looked whether dead letters are past their retention.
pub(super) const LOOK_AT_DEAD: Duration = Duration::from_secs(5);

/// Who discards those, in the history.
const DEAD_RETENTION: &str = "dead_retention";

/// What was chosen.
#[derive(Default)]
struct Choice {
    chosen: Vec<Chosen>,
    qos: Vec<Qos>,
    remaining: u64,
    in_flight: u64,
    skipped: Vec<Seq>,
    /// As a gap notice tells it.
    missing: Missing,
}

impl Control {
    /// Discards dead letters that are past their retention, if there is one.
    pub(super) async fn discard_old_dead_letters(&mut self) {
        let Some(retention_ms) = self.config.store.dead_retention_ms else { return };
        if self.member.as_ref().is_some_and(|member| !*member.leads().borrow()) {
            return;
        }
        let before = Millis(now().0.saturating_sub(retention_ms));
        let asked = self.log.ask(move |outbox| outbox.lanes().any(|(_, lane)| lane.dead().values().any(|dead| dead.at < before)));
        let has_any = timeout(LOOK_AT_DEAD, asked).await;
        if !has_any.is_ok_and(|has_any| has_any.is_ok_and(|has_any| has_any.into_inner())) {
            return;
        }
        let (by, reason) = (DEAD_RETENTION.to_owned(), "dead for longer than store.dead_retention".to_owned());
        let which = Which::DeadBefore(before);
        // It is logged, and tried again.
        let _ = self
            .repair(Decision { act: Act::DiscardDead, which, by, reason, is_dry_run: false, even_in_flight: false, tenants: None })
            .await;
    }

    /// Carries out a decision: done when this returns, and durable, or not begun.
    pub(super) async fn repair(&mut self, decision: Decision) -> Result<Repaired, RepairError> {
        if self.is_stopping() {
            return Err(RepairError::Stopping);
        }
        let outcome = match decision.act {
            Act::Requeue | Act::DiscardDead => self.repair_dead(&decision).await,
            Act::DiscardPending => self.discard_pending(&decision).await,
        };
        let Decision { act, by, is_dry_run, .. } = &decision;
        match &outcome {
            Ok(Repaired { done, .. }) if !is_dry_run => tracing::info!(by, done, "{}", words(*act)),
            Ok(_) => {}
            Err(error) => tracing::error!(by, %error, "{}: it was not done", words(*act)),
        }
        outcome
    }

    async fn repair_dead(&mut self, decision: &Decision) -> Result<Repaired, RepairError> {
        let (log, wanted) = (self.log.clone(), decision.clone());
        let snapshot = self.snapshot(connection_of(&decision.which)).await?;
        let choosing = tokio::task::spawn_blocking(move || choose_dead(&log, &snapshot, &wanted));
        let choice = choosing.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        self.write(decision, &choice).await?;
        if decision.act == Act::Requeue && !decision.is_dry_run {
            self.wake_older_lanes(&choice).await;
        }
        Ok(repaired(&choice, decision.is_dry_run))
    }

    /// Lanes of older sets end when they are empty, and nobody else delivers what is given back to them. A replay lane may not be at work at all.
    async fn wake_older_lanes(&mut self, choice: &Choice) {
        let lanes = self.routing.current().await.lanes.clone();
        let is_in_newest = |lane: &LaneKey| {
            let span = lanes.span(&lane.connection);
            span.is_some_and(|span| (span.first..span.first + span.count.get()).contains(&lane.lane))
        };
        let others: BTreeSet<LaneKey> = choice.chosen.iter().map(|chosen| chosen.lane.clone()).filter(|lane| !is_in_newest(lane)).collect();
        let replay_lanes: BTreeSet<LaneKey> = {
            let progress = self.log.progress();
            let known = progress.borrow();
            let is_replay =
                |lane: &LaneKey| known.connections.get(&lane.connection).is_some_and(|books| books.replay_lanes.contains(&lane.lane));
            others.iter().filter(|lane| is_replay(lane)).cloned().collect()
        };
        for lane in &replay_lanes {
            if let Err(error) = self.replay_lane(&lane.connection).await {
                tracing::error!(%lane, %error, "the replay lane can't start");
            }
        }
        let connections: BTreeSet<ConnectionName> = others.difference(&replay_lanes).map(|lane| lane.connection.clone()).collect();
        let connections: Vec<ConnectionName> = connections.into_iter().collect();
        if self.member.is_some() {
            // Whoever looks next finds that they have something to deliver, and takes them.
            return self.look_after_lanes().await;
        }
        self.pools.stop(&connections).await;
        self.start_again(&connections).await;
    }

    async fn start_again(&mut self, connections: &[ConnectionName]) {
        for name in connections {
            if let Err(error) = self.start_lanes(name).await {
                tracing::error!(connection = %name, %error, "the connection's lanes can't start again");
            }
        }
    }

    async fn discard_pending(&mut self, decision: &Decision) -> Result<Repaired, RepairError> {
        let (log, wanted) = (self.log.clone(), decision.clone());
        let snapshot = self.snapshot(connection_of(&decision.which)).await?;
        let concerned = tokio::task::spawn_blocking(move || concerned(&log, &snapshot, &wanted));
        let (connections, skipped) = concerned.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        if decision.is_dry_run {
            // The lanes go on: what they send meanwhile may be among what is counted.
            let choice = Choice { skipped, ..self.choose_pending(decision, &connections).await? };
            return Ok(repaired(&choice, true));
        }
        let connections = match &decision.which {
            Which::Ids(_) => connections,
            Which::Filter(_) | Which::DeadBefore(_) => self.with_what_is_meant(decision, connections).await?,
        };
        if !self.pools.stop(&connections).await {
            tracing::warn!("what is in flight was not acknowledged in time, and may have arrived");
        }
        self.take_over(&connections).await.map_err(|error| failed(&error))?;
        let chosen = match self.choose_pending(decision, &connections).await {
            Ok(choice) => Ok(Choice { skipped, ..choice }),
            Err(error) => Err(error),
        };
        let written = match chosen {
            Ok(choice) => self.write(decision, &choice).await.map(|()| choice),
            Err(error) => Err(error),
        };
        self.start_again(&connections).await;
        Ok(repaired(&written?, false))
    }

    /// What is pending on these connections, and meant. Their lanes must not be at work, unless it is only to be counted.
    async fn choose_pending(&self, decision: &Decision, connections: &[ConnectionName]) -> Result<Choice, RepairError> {
        let mut choice = Choice::default();
        for name in connections {
            let found = self.choose_of(decision, name, MOST_DISCARDED - choice.chosen.len()).await?;
            choice.chosen.extend(found.chosen);
            choice.qos.extend(found.qos);
            choice.missing.join(found.missing);
            choice.remaining += found.remaining;
            choice.in_flight += found.in_flight;
        }
        Ok(choice)
    }

    /// The connections whose lanes have to stop, of those with anything pending. What comes in after this look is not meant.
    async fn with_what_is_meant(&self, decision: &Decision, connections: Vec<ConnectionName>) -> Result<Vec<ConnectionName>, RepairError> {
        let mut concerned = Vec::new();
        for name in connections {
            // Without room the first one that is meant ends the search.
            let found = self.choose_of(decision, &name, 0).await?;
            if found.remaining + found.in_flight > 0 {
                concerned.push(name);
            }
        }
        Ok(concerned)
    }

    /// What is pending on a connection, and meant, up to so many.
    async fn choose_of(&self, decision: &Decision, name: &ConnectionName, room: usize) -> Result<Choice, RepairError> {
        let mut tries = 0;
        loop {
            let asked = name.clone();
            let snapshot =
                self.log.ask_in_order(move |outbox| (outbox.connections().get(&asked).map(|known| known.backlog()), outbox.next()));
            let (backlog, next) = snapshot.await.map_err(|error| failed(&error))?.into_inner();
            let reader = BacklogReader::new(self.log.clone(), name.clone(), backlog.unwrap_or_default(), Seq(next.0 - 1));
            let (decision, connection) = (decision.clone(), name.clone());
            let choosing = tokio::task::spawn_blocking(move || choose_from(reader, &decision, &connection, room));
            match choosing.await.map_err(|error| failed(&error))? {
                Ok(found) => return Ok(found),
                Err(ReadError::Gone(_)) if tries < TRIES && !self.is_stopping() => {
                    tries += 1;
                    tokio::time::sleep(ANEW).await;
                }
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    async fn snapshot(&self, connection: Option<ConnectionName>) -> Result<Snapshot, RepairError> {
        let asked = self.log.ask_in_order(move |outbox| Snapshot::of(outbox, connection.as_ref())).await;
        asked.map(|snapshot| snapshot.into_inner()).map_err(|error| failed(&error))
    }

    /// One commit.
    async fn write(&self, decision: &Decision, choice: &Choice) -> Result<(), RepairError> {
        if choice.chosen.is_empty() || decision.is_dry_run {
            return Ok(());
        }
        let Decision { act, by, reason, .. } = decision;
        let mut told = None;
        let written = match act {
            // It can wait for room like anything that is accepted.
            Act::Requeue => self.log.accept(decision::requeue(&choice.chosen, by, reason, now())).await,
            // It makes room.
            Act::DiscardDead | Act::DiscardPending => {
                let is_dead = *act == Act::DiscardDead;
                let at = now();
                let mut events = decision::discard(&choice.chosen, is_dead, by, reason, at);
                let to = self.notices.borrow().clone();
                let notice = to.and_then(|to| choice.missing.notice(&to, reason, Some(by), at));
                told = notice.as_ref().and_then(notice_on);
                events.extend(notice);
                self.log.record(events).await
            }
        };
        match written {
            Ok(_) => {}
            Err(CommitError::Stopped) => return Err(RepairError::Stopping),
            Err(CommitError::Full(reason)) => return Err(RepairError::Full(reason)),
            Err(error) => return Err(failed(&error)),
        }
        if let Some(connection) = told {
            self.metrics.tidings_deliveries_created_total.with_label_values(&[connection.as_str()]).inc();
        }
        if *act != Act::Requeue {
            for (chosen, qos) in choice.chosen.iter().zip(&choice.qos) {
                let connection = chosen.lane.connection.as_str();
                self.metrics.tidings_deliveries_total.with_label_values(&[connection, qos.label(), "discarded"]).inc();
            }
        }
        Ok(())
    }
}

fn words(act: Act) -> &'static str {
    match act {
        Act::Requeue => "dead letters were requeued",
        Act::DiscardDead => "dead letters were discarded",
        Act::DiscardPending => "pending deliveries were discarded",
    }
}

fn failed(error: &dyn std::fmt::Display) -> RepairError {
    RepairError::Failed(error.to_string())
}

fn connection_of(which: &Which) -> Option<ConnectionName> {
    match which {
        Which::Filter(Filter { connection, .. }) => connection.clone(),
        Which::Ids(_) | Which::DeadBefore(_) => None,
    }
}

fn repaired(choice: &Choice, dry_run: bool) -> Repaired {
    let text = |ids: &mut dyn Iterator<Item = Seq>| ids.take(SHOWN_IDS).map(|id| id.to_string()).collect();
    Repaired {
        done: choice.chosen.len() as u64,
        ids: text(&mut choice.chosen.iter().map(|chosen| chosen.id)),
        remaining: choice.remaining,
        in_flight: choice.in_flight,
        skipped: text(&mut choice.skipped.iter().copied()),
        dry_run,
    }
}

/// Dead letters that are meant, by id. Blocks on the disk.
fn choose_dead(log: &LogHandle, snapshot: &Snapshot, decision: &Decision) -> Result<Choice, ReadError> {
    let is_requeue = decision.act == Act::Requeue;
    let most = if is_requeue { MOST_REQUEUED } else { MOST_DISCARDED };
    let (mut choice, mut bytes) = (Choice::default(), 0);
    let mut is_taking: BTreeMap<ConnectionName, bool> = BTreeMap::new();
    let mut page: Option<Arc<Page>> = None;
    let dead = snapshot.dead();
    if let Which::Ids(ids) = &decision.which {
        let known: BTreeSet<Seq> = dead.iter().map(|(id, ..)| *id).collect();
        choice.skipped.extend(ids.difference(&known));
    }
    for (id, lane, standing) in dead {
        if let Which::Ids(ids) = &decision.which
            && !ids.contains(&id)
        {
            continue;
        }
        if let Which::DeadBefore(before) = decision.which
            && standing.dead_at.is_none_or(|at| at >= before)
        {
            continue;
        }
        let located = standing.located;
        if page.as_ref().is_none_or(|page| page.get(located).is_none()) {
            // Gone is what was carried forward this moment; it is dead still, and found by the next request.
            page = match log.page(located) {
                Ok(found) => found.map(|page| page.into_inner()),
                Err(ReadError::Gone(_)) => None,
                Err(error) => return Err(error),
            };
        }
        let accepted: Option<&Accepted> = page.as_ref().and_then(|page| match page.get(located) {
            Some(Event::Accepted(accepted)) => Some(accepted.as_ref()),
            Some(Event::Carried(carried)) => Some(&carried.accepted),
            _ => None,
        });
        let Some(accepted) = accepted else {
            choice.remaining += 1;
            continue;
        };
        match &decision.which {
            Which::Filter(filter) if !filter.matches(accepted) || !decision.may_touch(accepted) => continue,
            Which::Ids(_) if !decision.may_touch(accepted) => {
                choice.skipped.push(id);
                continue;
            }
            _ => {}
        }
        let is_taking =
            *is_taking.entry(lane.connection.clone()).or_insert_with(|| !is_requeue || snapshot.waiting(&lane.connection) < WAITING_ENOUGH);
        let is_too_much = is_requeue && bytes > 0 && bytes + accepted.payload.len() > MOST_REQUEUED_BYTES;
        if choice.chosen.len() >= most || is_too_much || !is_taking {
            choice.remaining += 1;
            continue;
        }
        bytes += accepted.payload.len();
        choice.qos.push(accepted.qos);
        choice.missing.add(id, accepted);
        choice.chosen.push(Chosen { id, lane, send: standing.send, located });
    }
    Ok(choice)
}

/// The connections whose backlog has to be looked through, and which of the named deliveries are not pending. Blocks on the disk.
fn concerned(log: &LogHandle, snapshot: &Snapshot, decision: &Decision) -> Result<(Vec<ConnectionName>, Vec<Seq>), ReadError> {
    let Which::Ids(ids) = &decision.which else { return Ok((snapshot.with_pending(), Vec::new())) };
    let (mut connections, mut skipped) = (BTreeSet::new(), Vec::new());
    // One for all of them: what it is spent on are copies of deliveries that are done, and those are skipped in any case.
    let mut budget = Budget::of_a_request();
    for id in ids {
        match story::find(log, snapshot, *id, &mut budget) {
            Ok(held) if !decision.may_touch(&held.accepted) => skipped.push(*id),
            Ok(held) if snapshot.standing(*id, &held.accepted.lane, held.send).state == State::Pending => {
                connections.insert(held.accepted.lane.connection);
            }
            Ok(_) | Err(story::NoStory::Unknown(_) | story::NoStory::Gone { .. }) => skipped.push(*id),
            Err(story::NoStory::Read(error)) => return Err(error),
        }
    }
    Ok((connections.into_iter().collect(), skipped))
}

/// What of a connection's backlog is meant. Blocks on the disk.
fn choose_from(mut reader: BacklogReader, decision: &Decision, connection: &ConnectionName, room: usize) -> Result<Choice, ReadError> {
    let mut choice = Choice::default();
    loop {
        let piece = reader.read(PIECE)?;
        if piece.given.is_empty() {
            return Ok(choice);
        }
        for given in piece.given {
            let is_meant = match &decision.which {
                Which::Ids(ids) => ids.contains(&given.id),
                Which::Filter(filter) => filter.matches(&given.accepted),
                // None of these is dead.
                Which::DeadBefore(_) => false,
            };
            if !is_meant || !decision.may_touch(&given.accepted) {
                continue;
            }
            if !decision.even_in_flight && piece.doubtful.contains(&given.id) {
                choice.in_flight += 1;
                continue;
            }
            if choice.chosen.len() >= room {
                // What is beyond is counted no further: there is something left, and that is enough to know.
                choice.remaining += 1;
                return Ok(choice);
            }
            let lane = LaneKey { connection: connection.clone(), lane: given.lane };
            choice.qos.push(given.accepted.qos);
            choice.missing.add(given.id, &given.accepted);
            choice.chosen.push(Chosen { id: given.id, lane, send: given.send, located: given.id });
        }
    }
}
