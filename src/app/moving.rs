//! What is pending on one connection is given to another, on request.
//!
//! A piece is one commit, in which each delivery ends there and begins here (see [`handover`](crate::core::handover)), so a kill leaves each on
//! exactly one side, and doing it again goes on with the rest. If the connection that gives has lanes at work, they finish what is in flight and are
//! stopped meanwhile.
//!
//! What is moved comes behind what the other connection has accepted by then, also of the same topic: out of order, by the operator's decision. Among
//! themselves the moved ones keep their order.

use std::time::Duration;

use super::control::Control;
use crate::admin::moves::{MoveError, Moved};
use crate::core::event::Event;
use crate::core::handover::Handover;
use crate::core::outbox::Backlog;
use crate::core::types::{ConnectionName, Seq};
use crate::delivery::backlog::{BacklogReader, Limits, Piece};
use crate::failpoint::{self, Point};
use crate::ingest::lanes::LaneDirectory;
use crate::log::ReadError;
use crate::log::committer::{CommitError, now};

/// As much as a commit takes; the rest of its 1,024 events is the word about who and what.
const PIECE: Limits = Limits { events: 1_023, bytes: 4 << 20 };

/// What was to be read next has been carried forward: by then it stands in its new place.
const ANEW: Duration = Duration::from_millis(200);

/// A log that takes nothing in right now is tried again after this: servers that elect a leader take seconds.
const BUSY: Duration = Duration::from_secs(1);

/// So often in a row, without a delivery moved in between, it begins anew or waits for a place in the queue.
const TRIES: u32 = 20;

/// How far it is.
#[derive(Debug, Default)]
struct Done {
    moved: u64,
    possible_duplicates: u64,
}

/// The books of the connection that gives.
struct Books {
    pending: u64,
    dead: u64,
}

impl Control {
    /// Gives what is pending on one connection now to another.
    pub(super) async fn hand_over(&mut self, from: ConnectionName, to: ConnectionName, by: String) -> Result<Moved, MoveError> {
        if self.is_stopping() {
            return Err(MoveError::Stopping { moved: 0 });
        }
        let configured = || self.config.connections.iter().map(|connection| connection.name.to_string());
        if !configured().any(|name| name == to.as_str()) {
            return Err(MoveError::NotConfigured { name: to.to_string(), known: configured().collect() });
        }
        let asked = from.clone();
        let known = self.log.ask(move |outbox| match outbox.connections().contains_key(&asked) {
            true => Ok(()),
            false => Err(outbox.connections().keys().map(ConnectionName::to_string).collect()),
        });
        let known = known.await.map_err(|error| failed(&Done::default(), &error))?;
        known.into_inner().map_err(|known| MoveError::UnknownConnection { name: from.to_string(), known })?;
        let is_configured = configured().any(|name| name == from.as_str());
        if is_configured && !self.pools.stop(std::slice::from_ref(&from)).await {
            tracing::warn!("what is in flight was not acknowledged in time; it is moved, and may have arrived");
        }
        self.take_over(std::slice::from_ref(&from)).await.map_err(|error| failed(&Done::default(), &error))?;
        let mut done = Done::default();
        let handover = Handover { from: from.clone(), to: to.clone(), by };
        let outcome = self.move_all(&handover, &mut done).await;
        if is_configured && let Err(error) = self.start_lanes(&from).await {
            tracing::error!(connection = %from, %error, "the connection's lanes can't start again");
        }
        let Done { moved, possible_duplicates } = done;
        match &outcome {
            Ok(_) => {
                tracing::info!(%from, %to, by = handover.by, moved, possible_duplicates, "pending deliveries were moved to another connection")
            }
            Err(error) => {
                tracing::error!(%from, %to, by = handover.by, moved, %error, "moving pending deliveries to another connection ended early")
            }
        }
        if possible_duplicates > 0 {
            tracing::warn!(%from, %to, "{possible_duplicates} of the moved deliveries may have arrived at the old broker as well");
        }
        let Books { pending, dead } = outcome?;
        Ok(Moved { from: from.to_string(), to: to.to_string(), moved, possible_duplicates, remaining: pending, dead_letters: dead })
    }

    /// Moves until nothing is left that was pending at the beginning.
    async fn move_all(&self, handover: &Handover, done: &mut Done) -> Result<Books, MoveError> {
        let lanes = self.routing.current().await.lanes.clone();
        let (mut until, mut tries) = (None, 0);
        loop {
            let asked = handover.from.clone();
            let snapshot =
                self.log.ask_in_order(move |outbox| (outbox.connections().get(&asked).map(|known| known.backlog()), outbox.next()));
            let (backlog, next) = snapshot.await.map_err(|error| failed(done, &error))?.into_inner();
            let through = *until.get_or_insert(Seq(next.0 - 1));
            let before = done.moved;
            match self.move_through(handover, backlog.unwrap_or_default(), through, &lanes, done).await {
                Err(Interrupted::Overtaken) => {
                    tries = if done.moved > before { 0 } else { tries + 1 };
                    if tries >= TRIES {
                        return Err(failed(done, &"what is to be moved could not be read"));
                    }
                    tokio::time::sleep(ANEW).await;
                }
                Err(Interrupted::Failed(error)) => return Err(error),
                Ok(()) => break,
            }
        }
        let asked = handover.from.clone();
        let totals = self.log.ask(move |outbox| outbox.connections().get(&asked).map(|known| known.totals).unwrap_or_default());
        let totals = totals.await.map_err(|error| failed(done, &error))?.into_inner();
        Ok(Books { pending: totals.pending, dead: totals.dead })
    }

    async fn move_through(
        &self,
        handover: &Handover,
        backlog: Backlog,
        through: Seq,
        lanes: &LaneDirectory,
        done: &mut Done,
    ) -> Result<(), Interrupted> {
        let mut reader = BacklogReader::new(self.log.clone(), handover.from.clone(), backlog, through);
        loop {
            if self.is_stopping() {
                return Err(MoveError::Stopping { moved: done.moved }.into());
            }
            let reading = tokio::task::spawn_blocking(move || {
                let piece = reader.read(PIECE);
                (reader, piece)
            });
            let piece;
            (reader, piece) = reading.await.map_err(|error| failed(done, &error))?;
            let piece = match piece {
                Ok(piece) => piece,
                Err(ReadError::Gone(_)) => return Err(Interrupted::Overtaken),
                Err(error) => return Err(failed(done, &error).into()),
            };
            if piece.given.is_empty() {
                return Ok(());
            }
            let may_have_arrived = piece.may_have_arrived;
            self.commit(handover, piece, lanes, done).await?;
            failpoint::reach(Point::MovePiece);
            done.possible_duplicates += may_have_arrived;
            let counted = &self.metrics.tidings_possible_duplicates_total;
            counted.with_label_values(&[handover.from.as_str()]).inc_by(may_have_arrived);
        }
    }

    /// One piece: durable on the other side when this returns, or not moved at all.
    async fn commit(&self, handover: &Handover, piece: Piece, lanes: &LaneDirectory, done: &mut Done) -> Result<(), MoveError> {
        let lane_of = |topic: &str| lanes.lane(&handover.to, topic).map_or(0, |lane| lane.lane);
        let events = handover.events(piece.given, &piece.doubtful, &lane_of, now());
        let mut tries = 0;
        loop {
            // It takes room like anything that is accepted, and waits its turn like anybody.
            match self.log.accept(events.clone()).await {
                Ok(_) => break,
                Err(CommitError::Overloaded) if tries < TRIES => {
                    tries += 1;
                    if self.stops_within(BUSY).await {
                        return Err(MoveError::Stopping { moved: done.moved });
                    }
                }
                Err(CommitError::Stopped) => return Err(MoveError::Stopping { moved: done.moved }),
                Err(CommitError::Full(reason)) => return Err(MoveError::Full { moved: done.moved, reason }),
                Err(error) => return Err(failed(done, &error)),
            }
        }
        for event in &events {
            let Event::Accepted(accepted) = event else { continue };
            done.moved += 1;
            let (from, to) = (handover.from.as_str(), handover.to.as_str());
            self.metrics.tidings_deliveries_total.with_label_values(&[from, accepted.qos.label(), "discarded"]).inc();
            self.metrics.tidings_deliveries_created_total.with_label_values(&[to]).inc();
        }
        Ok(())
    }
}

/// Why the reading ended before its end.
enum Interrupted {
    /// What came next was carried forward meanwhile.
    Overtaken,
    Failed(MoveError),
}

impl From<MoveError> for Interrupted {
    fn from(error: MoveError) -> Self {
        Interrupted::Failed(error)
    }
}

fn failed(done: &Done, what: &dyn std::fmt::Display) -> MoveError {
    MoveError::Failed { moved: done.moved, reason: what.to_string() }
}
