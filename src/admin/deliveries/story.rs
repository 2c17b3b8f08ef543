//! One delivery, with its whole history: from where it was accepted forward, through the pages that name its lane and its number.
//!
//! A delivery that is done is followed to its end and no further; one that is dead to its death. What is read is bounded: where the end is far away
//! (a long outage lies between), the answer says where to go on.

use std::collections::HashMap;

use super::answers::{Chapter, Named, Row, Story};
use super::budget::Budget;
use super::scan::{deliveries, not_gone, take_number};
use crate::core::event::{Accepted, Event, Proof};
use crate::core::handover::is_move;
use crate::core::outbox::REPLAY_PROPERTY;
use crate::core::ranges::Ranges;
use crate::core::retry::reason_name;
use crate::core::search::{Snapshot, Standing, State, end_of};
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
use crate::log::committer::LogHandle;
use crate::log::{Glimpse, Page, ReadError};

/// Why there is no story.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoStory {
    /// No delivery has this id.
    #[error("there is no delivery {0}; ids are those of the answer to POST /v1/reports, or of `tidings list`")]
    Unknown(Seq),
    /// It is no longer stored.
    #[error(
        "delivery {id} is past its retention: what was accepted before event {oldest} and is done is no longer stored (store.retention)"
    )]
    Gone {
        /// Its id.
        id: Seq,
        /// What is still stored begins here.
        oldest: Seq,
    },
    /// The log can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A delivery where it is held.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its id.
    pub id: Seq,
    /// The event that was read.
    pub at: Seq,
    /// The number that it has there.
    pub send: SendNo,
    /// What was accepted.
    pub accepted: Accepted,
    /// The earlier history that it was carried forward with.
    pub earlier: Vec<String>,
}

/// Where to go on with a story that was too long for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The next position to look at.
    pub at: Seq,
    /// The number that the delivery has there.
    pub send: SendNo,
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.at, self.send)
    }
}

impl std::str::FromStr for Mark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (at, send) = text.split_once('-').ok_or(())?;
        Ok(Mark { at: Seq(at.parse().map_err(|_| ())?), send: SendNo(send.parse().map_err(|_| ())?) })
    }
}

/// Finds a delivery where it is held now. Blocks on the disk. Looking for the copy of one that was carried forward and is done costs of the budget; where
/// that is used up, such a one counts as gone.
///
/// # Errors
/// See [`NoStory`].
pub fn find(log: &LogHandle, snapshot: &Snapshot, id: Seq, budget: &mut Budget) -> Result<Held, NoStory> {
    if id == Seq(0) || id >= snapshot.next {
        return Err(NoStory::Unknown(id));
    }
    let held_at = |at: Seq| -> Result<Option<Held>, NoStory> {
        let Some(page) = not_gone(log.page(at))? else { return Ok(None) };
        let earlier = match page.get().get(at) {
            Some(Event::Carried(carried)) => carried.history.clone(),
            _ => Vec::new(),
        };
        let found = deliveries(page.get()).find(|(place, ..)| *place == at);
        Ok(found.map(|(at, id, send, accepted)| Held { id, at, send, accepted: accepted.clone(), earlier }))
    };
    if id >= snapshot.oldest
        && let Some(page) = not_gone(log.page(id))?
    {
        let held = if matches!(page.get().get(id), Some(Event::Accepted(_))) { held_at(id)? } else { None };
        return held.ok_or(NoStory::Unknown(id));
    }
    if let Some((_, standing)) = snapshot.apart(id)
        && let Some(held) = held_at(standing.located)?
    {
        return Ok(held);
    }
    match carried_copy(log, snapshot, id, budget)?.map(held_at).transpose()?.flatten() {
        Some(held) => Ok(held),
        None => Err(NoStory::Gone { id, oldest: snapshot.oldest }),
    }
}

/// The newest copy of what was carried forward and is done by now.
fn carried_copy(log: &LogHandle, snapshot: &Snapshot, id: Seq, budget: &mut Budget) -> Result<Option<Seq>, ReadError> {
    let mut at = Seq(snapshot.next.0 - 1);
    while at >= snapshot.oldest && at > Seq(0) && budget.glimpse() {
        let Some(glimpse) = not_gone(log.glimpse(at))? else { return Ok(None) };
        let names = |glimpse: &Glimpse| glimpse.index.touched.iter().any(|touched| within(touched.ids, id));
        if !glimpse.index.filter.is_empty() && names(&glimpse) {
            budget.page();
            let Some(page) = not_gone(log.page(at))? else { return Ok(None) };
            if let Some((place, ..)) = deliveries(page.get()).filter(|(place, found, ..)| *found == id && *place != id).last() {
                return Ok(Some(place));
            }
        }
        at = Seq(glimpse.first.0 - 1);
    }
    Ok(None)
}

fn within<T: PartialOrd>(span: Option<(T, T)>, value: T) -> bool {
    span.is_some_and(|(low, high)| low <= value && value <= high)
}

/// Tells the story of a delivery; from a mark on, if it was begun before. Blocks on the disk.
///
/// # Errors
/// See [`NoStory`].
pub fn tell(log: &LogHandle, snapshot: &Snapshot, id: Seq, from: Option<Mark>, mut budget: Budget) -> Result<Story, NoStory> {
    let held = find(log, snapshot, id, &mut Budget::of_a_request())?;
    let lane = held.accepted.lane.clone();
    let standing = snapshot.standing(id, &lane, held.send);
    let mut teller = Teller { id, lane, send: from.map_or(held.send, |mark| mark.send), chapters: Vec::new(), state: None };
    let mut at = from.map_or(held.at, |mark| mark.at).max(held.at);
    if from.is_none() {
        teller.begin(&held);
        at = held.at.next();
    }
    let mut is_complete = true;
    while at < snapshot.next && !teller.is_over(&standing) {
        if !budget.glimpse() {
            is_complete = false;
            break;
        }
        let Some(glimpse) = not_gone(log.glimpse(at))? else { return Err(NoStory::Gone { id, oldest: snapshot.oldest }) };
        if teller.is_named_in(&glimpse) {
            budget.page();
            let Some(page) = not_gone(log.page(at))? else { return Err(NoStory::Gone { id, oldest: snapshot.oldest }) };
            teller.read(page.get(), at, snapshot.next);
        }
        at = glimpse.last.next();
    }
    let mut row = Row::new(id, &held.accepted, &standing);
    if let (State::Ended, Some((state, _))) = (row.state, teller.state) {
        row.state = state;
    }
    Ok(Story {
        row,
        properties: Named::from(&held.accepted.properties),
        expiry_seconds: held.accepted.expiry_s,
        replay_of: held.accepted.replay_of.map(|id| id.to_string()),
        next_from: (!is_complete).then(|| Mark { at, send: teller.send }.to_string()),
        history: teller.chapters,
        complete: is_complete,
    })
}

/// Follows one delivery through the log.
struct Teller {
    id: Seq,
    lane: LaneKey,
    /// The number that it has by now.
    send: SendNo,
    chapters: Vec<Chapter>,
    /// How it ended or died last, and when.
    state: Option<(State, Option<Millis>)>,
}

impl Teller {
    fn begin(&mut self, held: &Held) {
        let Accepted { at, source, user, lane, .. } = &held.accepted;
        let who = if user.is_empty() { String::new() } else { format!(" from {user}") };
        let job = held.accepted.properties.user.iter().rev().find(|(name, _)| name == REPLAY_PROPERTY);
        let says = match (held.accepted.replay_of, job) {
            (Some(original), Some((_, job))) => format!("replayed from {original} by replay {job}, for lane {lane}"),
            (Some(original), None) => format!("replayed from {original}, for lane {lane}"),
            (None, _) => format!("accepted over {}{who}, for lane {lane}", source.label()),
        };
        self.chapters.push(chapter(self.id, Some(*at), "accepted", says));
        for says in &held.earlier {
            self.chapters.push(chapter(held.at, None, "earlier", says.clone()));
        }
        if held.at != self.id {
            let says =
                "carried forward, because the part of the log that held it was deleted; of what happened before, this is all that is kept";
            self.chapters.push(chapter(held.at, None, "carried", says.to_owned()));
        }
    }

    /// Whether nothing more can come.
    fn is_over(&self, standing: &Standing) -> bool {
        match (standing.state, self.state) {
            (State::Pending, _) | (_, None) => false,
            (State::Dead, Some((state, at))) => state == State::Dead && at == standing.dead_at,
            (_, Some((state, _))) => state.is_end(),
        }
    }

    fn is_named_in(&self, glimpse: &Glimpse) -> bool {
        let mut touched = glimpse.index.touched.iter().filter(|touched| touched.lane == self.lane);
        touched.any(|touched| within(touched.sends, self.send) || within(touched.ids, self.id))
    }

    fn read(&mut self, page: &Page, from: Seq, end: Seq) {
        let mut next: HashMap<LaneKey, SendNo> = page.sends.iter().cloned().collect();
        for (offset, event) in page.events.iter().enumerate() {
            let at = Seq(page.first.0 + offset as u64);
            let number = match event {
                Event::Accepted(accepted) => take_number(&mut next, &accepted.lane),
                Event::Resent { delivery, .. } => take_number(&mut next, &delivery.lane),
                _ => None,
            };
            if (from..end).contains(&at) {
                self.take(at, event, number);
            }
        }
    }

    fn take(&mut self, at: Seq, event: &Event, number: Option<SendNo>) {
        let holds = |lane: &LaneKey, sends: &Ranges| {
            *lane == self.lane && sends.0.iter().any(|(first, last)| (*first..=*last).contains(&self.send.0))
        };
        if let Some((lane, sends, state)) = end_of(event)
            && holds(lane, sends)
        {
            self.state = Some((state, event.at()));
        }
        let when = event.at();
        let chapter = match event {
            Event::Released { lane, sends } if *lane == self.lane && sends.contains(&self.send) => {
                chapter(at, when, "received_by_broker", "the broker has received it (PUBREC), and is told to pass it on (PUBREL)".into())
            }
            Event::Delivered { lane, sends, proof, .. } if holds(lane, sends) => {
                let (code, proof) = proof_of(*proof);
                Chapter { code: Some(code.into()), ..chapter(at, when, "delivered", format!("delivered: {proof}")) }
            }
            Event::Refused { delivery, code, attempts, retry_at, .. } if delivery.id == self.id => {
                let says = format!(
                    "the broker refused it with 0x{code:02x} ({}); {attempts} refusals are charged to it; tried again at {}",
                    reason_name(*code),
                    retry_at.rfc3339()
                );
                Chapter { code: Some(format!("0x{code:02x}")), ..chapter(at, when, "refused", says) }
            }
            Event::Resent { delivery, .. } if delivery.id == self.id => {
                self.send = number.unwrap_or(self.send);
                chapter(at, when, "sent_again", "given a new packet identifier, to be sent again".into())
            }
            Event::SessionOpened { lane, repeated, .. } if holds(lane, repeated) => {
                let says = "the broker's session was lost: it is sent again, and may arrive twice";
                chapter(at, when, "possible_duplicate", says.into())
            }
            Event::DeadLettered { delivery, reason, attempts, .. } if delivery.id == self.id => {
                self.state = Some((State::Dead, when));
                let says = format!("given up after {attempts} refusals: {}", reason.message);
                Chapter { code: Some(reason.code.clone()), ..chapter(at, when, "dead", says) }
            }
            Event::Requeued { delivery, by, .. } if delivery.id == self.id => {
                self.state = None;
                Chapter { by: Some(by.clone()), ..chapter(at, when, "requeued", format!("requeued by {by}")) }
            }
            Event::Discarded { lane, sends, by, reason, .. } if holds(lane, sends) => {
                let event = if is_move(reason) { "moved" } else { "discarded" };
                let says = if event == "moved" { format!("{reason} by {by}") } else { format!("discarded by {by}: {reason}") };
                Chapter { by: Some(by.clone()), ..chapter(at, when, event, says) }
            }
            Event::Expired { lane, sends, .. } if holds(lane, sends) => {
                chapter(at, when, "expired", "its time limit (Message Expiry Interval) passed before it was sent".into())
            }
            Event::Carried(carried) if carried.id == self.id => {
                chapter(at, None, "carried", "carried forward, because the part of the log that held it is to be deleted".into())
            }
            _ => return,
        };
        self.chapters.push(chapter);
    }
}

fn chapter(position: Seq, at: Option<Millis>, event: &str, says: String) -> Chapter {
    Chapter { position: position.to_string(), at: at.map(|at| at.rfc3339()), event: event.to_owned(), says, by: None, code: None }
}

/// A proof, for machines and for people.
pub fn proof_of(proof: Proof) -> (&'static str, &'static str) {
    match proof {
        Proof::Flushed => ("flushed", "written to a live connection; QoS 0 has no acknowledgement"),
        Proof::PubAck => ("puback", "acknowledged by PUBACK"),
        Proof::PubComp => ("pubcomp", "completed by PUBCOMP"),
        Proof::PubCompNotFound => ("pubcomp_not_found", "completed: the broker had done so before its connection broke"),
    }
}
