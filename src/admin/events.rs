//! `GET /v1/events`: what happens, as it is committed; server-sent events (WHATWG HTML §9.2).
//!
//! ```text
//!   log ─▶ pages, as far as they are durable ─▶ events with their positions as ids ─┐
//!   board ─▶ lanes that come up and go down ────────────────────────────────────────┴─▶ the client, when it takes them
//! ```
//! The log is the buffer. Nothing is kept for a client but its place, and nothing is read until it takes what came before: so a slow one holds nothing
//! up. One that was up to date and has fallen far behind is told how much it missed, and goes on near the end. `Last-Event-ID` resumes after that
//! event, for as long as the log has it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use super::deliveries::scan::take_number;
use super::deliveries::story::proof_of;
use crate::core::event::{DeliveryRef, Event};
use crate::core::handover::is_move;
use crate::core::outbox::job_name;
use crate::core::ranges::Ranges;
use crate::core::types::{LaneKey, Millis, SendNo, Seq};
use crate::delivery::board::{Board, LaneState};
use crate::log::committer::{LogHandle, Progress};
use crate::log::{Page, ReadError};
use crate::server::caller::Caller;
use crate::server::error::{ApiError, invalid};

/// So many clients at once.
const CLIENTS: usize = 16;

/// A client that was up to date and is so many events behind misses some.
const FAR_BEHIND: u64 = 10_000;

/// And goes on with so many before the end.
const GOES_ON_WITH: u64 = 1_000;

/// Where nothing happens, so often something is sent all the same, so that both ends know that the other is there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// So often it is looked whether lanes have come up or gone down.
const LOOK: Duration = Duration::from_secs(1);

/// So many deliveries of a lane are remembered by their numbers, so that outcomes can name them.
const REMEMBERED: usize = 4_096;

/// So many ids are named in one event.
const NAMED: usize = 100;

struct Feeding {
    log: LogHandle,
    board: Arc<Board>,
    stopping: watch::Receiver<bool>,
    clients: Arc<Semaphore>,
}

/// The route.
pub fn routes(log: LogHandle, board: Arc<Board>, stopping: watch::Receiver<bool>) -> Router {
    let feeding = Feeding { log, board, stopping, clients: Arc::new(Semaphore::new(CLIENTS)) };
    Router::new().route("/v1/events", get(events)).with_state(Arc::new(feeding))
}

async fn events(State(feeding): State<Arc<Feeding>>, Extension(caller): Extension<Caller>, headers: HeaderMap) -> Response<Body> {
    let committed = feeding.log.progress().borrow().committed;
    let at = match headers.get("last-event-id").map(|id| id.to_str().ok().and_then(|id| id.trim().parse::<u64>().ok())) {
        None => committed.next(),
        Some(Some(id)) => Seq(id.saturating_add(1)).min(committed.next()).max(Seq::FIRST),
        Some(None) => return invalid("Last-Event-ID", "expected the id of an event").into_response(),
    };
    let Ok(place) = Arc::clone(&feeding.clients).try_acquire_owned() else {
        let message = format!("{CLIENTS} clients follow the events already; try again later");
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
        return error.retry_after(Duration::from_secs(5)).into_response();
    };
    let follower = Follower {
        log: feeding.log.clone(),
        progress: feeding.log.progress(),
        board: Arc::clone(&feeding.board),
        stopping: feeding.stopping.clone(),
        at,
        is_live: false,
        has_begun: false,
        lanes: BTreeMap::new(),
        look_at: Instant::now(),
        recent: HashMap::new(),
        caller,
        _place: place,
    };
    let stream = futures_util::stream::unfold(follower, |mut follower| async move {
        let chunk = follower.next().await?;
        Some((Ok::<Bytes, Infallible>(Bytes::from(chunk)), follower))
    });
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// One client's place.
struct Follower {
    log: LogHandle,
    progress: watch::Receiver<Progress>,
    board: Arc<Board>,
    stopping: watch::Receiver<bool>,
    /// The next event.
    at: Seq,
    /// It has been at the end.
    is_live: bool,
    has_begun: bool,
    /// What was said about each lane last.
    lanes: BTreeMap<LaneKey, LaneState>,
    look_at: Instant,
    /// Ids by send number, as far as they went by.
    recent: HashMap<LaneKey, BTreeMap<SendNo, Seq>>,
    /// Who follows. One who may see some tenants only is told of these: of what was accepted, and of outcomes of what he has seen accepted.
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// What is sent next; none at the end.
    async fn next(&mut self) -> Option<String> {
        let keepalive = Instant::now() + KEEPALIVE;
        if !std::mem::replace(&mut self.has_begun, true) {
            // The head alone would wait in buffers on the way.
            return Some(": these are the events of a Tidings service\n\n".into());
        }
        loop {
            if *self.stopping.borrow() {
                return None;
            }
            if Instant::now() >= self.look_at {
                self.look_at = Instant::now() + LOOK;
                let changed = self.lanes_changed();
                if !changed.is_empty() {
                    return Some(changed);
                }
            }
            let committed = self.progress.borrow_and_update().committed;
            if self.at <= committed {
                let chunk = self.read_on(committed).await?;
                if !chunk.is_empty() {
                    return Some(chunk);
                }
                continue;
            }
            self.is_live = true;
            let (progress, stopping) = (&mut self.progress, &mut self.stopping);
            tokio::select! {
                changed = progress.changed() => changed.ok()?,
                stopped = stopping.wait_for(|stopping| *stopping) => drop(stopped),
                () = sleep_until(self.look_at) => {}
                () = sleep_until(keepalive) => return Some(": still here\n\n".into()),
            }
        }
    }

    /// The next page's events; none if the log can't be read.
    async fn read_on(&mut self, committed: Seq) -> Option<String> {
        let behind = committed.0 - self.at.0 + 1;
        if self.is_live && behind > FAR_BEHIND {
            let to = Seq(committed.0 + 1 - GOES_ON_WITH);
            return Some(self.skip_to(to, "too slow"));
        }
        let (log, at) = (self.log.clone(), self.at);
        let reading = tokio::task::spawn_blocking(move || log.page(at));
        match reading.await.ok()? {
            Ok(Some(page)) => {
                let page = page.into_inner();
                let text = self.render(&page);
                self.at = page.last().next();
                Some(text)
            }
            // It is durable, so it is there.
            Ok(None) => None,
            Err(ReadError::Gone(_)) => {
                let oldest = self.log.ask(|outbox| outbox.oldest_generation()).await.ok()?.into_inner()?;
                Some(self.skip_to(oldest.max(self.at.next()), "past retention"))
            }
            Err(error) => {
                tracing::warn!(%error, "a client that follows the events is let go, as they can't be read");
                None
            }
        }
    }

    fn skip_to(&mut self, to: Seq, why: &str) -> String {
        let missed = to.0 - self.at.0;
        self.at = to;
        self.recent.clear();
        event(Some(Seq(to.0 - 1)), "missed", &json!({ "events": missed, "why": why }))
    }

    fn lanes_changed(&mut self) -> String {
        let mut text = String::new();
        let now = self.board.snapshot();
        for (key, status) in &now {
            if self.lanes.get(key) != Some(&status.state) {
                let is_told = status.state != LaneState::Connected && self.caller.tenants().is_none();
                let error = status.last_error.as_ref().filter(|_| is_told).map(|(_, error)| error);
                let data = json!({
                    "connection": key.connection.as_str(), "lane": key.lane, "state": status.state.name(), "server": status.server, "error": error,
                });
                text.push_str(&event(None, "lane", &data));
            }
        }
        for key in self.lanes.keys().filter(|key| !now.contains_key(key)) {
            let data = json!({ "connection": key.connection.as_str(), "lane": key.lane, "state": "gone", "server": null, "error": null });
            text.push_str(&event(None, "lane", &data));
        }
        self.lanes = now.into_iter().map(|(key, status)| (key, status.state)).collect();
        text
    }

    fn render(&mut self, page: &Page) -> String {
        let mut next: HashMap<LaneKey, SendNo> = page.sends.iter().cloned().collect();
        let mut text = String::new();
        for (offset, what) in page.events.iter().enumerate() {
            let at = Seq(page.first.0 + offset as u64);
            let number = match what {
                Event::Accepted(accepted) => take_number(&mut next, &accepted.lane).map(|send| (&accepted.lane, send, at)),
                Event::Resent { delivery, .. } => take_number(&mut next, &delivery.lane).map(|send| (&delivery.lane, send, delivery.id)),
                _ => None,
            };
            if at < self.at || !self.is_for_caller(what) {
                continue;
            }
            if let Some((lane, send, id)) = number {
                let known = self.recent.entry(lane.clone()).or_default();
                known.insert(send, id);
                if known.len() > REMEMBERED {
                    known.pop_first();
                }
            }
            if let Some((name, data)) = self.describe(at, what) {
                text.push_str(&event(Some(at), name, &data));
            }
        }
        text
    }

    /// Whether the follower may be told of it.
    fn is_for_caller(&self, what: &Event) -> bool {
        if self.caller.tenants().is_none() {
            return true;
        }
        let knows =
            |delivery: &DeliveryRef| self.recent.get(&delivery.lane).is_some_and(|known| known.values().any(|id| *id == delivery.id));
        match what {
            Event::Accepted(accepted) => self.caller.may_see(&accepted.tenant),
            Event::Delivered { lane, sends, .. } | Event::Expired { lane, sends, .. } | Event::Discarded { lane, sends, .. } => {
                self.known_of(lane, sends).next().is_some()
            }
            Event::Refused { delivery, .. }
            | Event::Resent { delivery, .. }
            | Event::DeadLettered { delivery, .. }
            | Event::Requeued { delivery, .. } => knows(delivery),
            // The rest concerns the whole service, or names what belongs to others.
            _ => false,
        }
    }

    /// The deliveries among these sends whose acceptance has gone by here.
    fn known_of<'a>(&'a self, lane: &LaneKey, sends: &'a Ranges) -> impl Iterator<Item = Seq> + 'a {
        let known = self.recent.get(lane);
        sends.0.iter().flat_map(move |(first, last)| {
            known.into_iter().flat_map(move |known| known.range(SendNo(*first)..=SendNo(*last)).map(|(_, id)| *id))
        })
    }

    /// The name and the data of an event; none for those that are of no interest outside.
    fn describe(&self, position: Seq, what: &Event) -> Option<(&'static str, Value)> {
        let of_lane =
            |lane: &LaneKey| json!({ "at": what.at().map(Millis::rfc3339), "connection": lane.connection.as_str(), "lane": lane.lane });
        let of_one =
            |delivery: &DeliveryRef, more: Value| with(with(of_lane(&delivery.lane), json!({ "id": delivery.id.to_string() })), more);
        let of_many = |lane: &LaneKey, ranges: &Ranges, more: Value| {
            let ids: Vec<String> = self.known_of(lane, ranges).take(NAMED).map(|id| id.to_string()).collect();
            // Of others even the number is theirs.
            let count = if self.caller.tenants().is_some() { self.known_of(lane, ranges).count() as u64 } else { ranges.count() };
            with(with(of_lane(lane), json!({ "count": count, "ids": ids })), more)
        };
        Some(match what {
            Event::Accepted(accepted) => {
                let data = json!({
                    "id": position.to_string(), "topic": accepted.topic, "qos": accepted.qos.level(), "tenant": accepted.tenant,
                    "pipeline": accepted.pipeline, "action": accepted.action, "project": accepted.project, "change": accepted.change,
                    "bytes": accepted.payload.len(), "source": accepted.source.label(),
                    "replay_of": accepted.replay_of.map(|id| id.to_string()),
                });
                ("accepted", with(of_lane(&accepted.lane), data))
            }
            Event::Delivered { lane, sends, proof, .. } => ("delivered", of_many(lane, sends, json!({ "proof": proof_of(*proof).0 }))),
            Event::Expired { lane, sends, .. } => ("expired", of_many(lane, sends, json!({}))),
            Event::Discarded { lane, sends, dead, by, reason, .. } => {
                let name = if is_move(reason) { "moved" } else { "discarded" };
                (name, of_many(lane, sends, json!({ "dead": dead, "by": by, "reason": reason })))
            }
            Event::Refused { delivery, code, attempts, retry_at, .. } => {
                ("refused", of_one(delivery, json!({ "code": code, "attempts": attempts, "retry_at": retry_at.rfc3339() })))
            }
            Event::Resent { delivery, .. } => ("sent_again", of_one(delivery, json!({}))),
            Event::DeadLettered { delivery, reason, attempts, .. } => {
                let more =
                    json!({ "code": reason.code, "broker_code": reason.broker_code, "message": reason.message, "attempts": attempts });
                ("dead", of_one(delivery, more))
            }
            Event::Requeued { delivery, by, .. } => ("requeued", of_one(delivery, json!({ "by": by }))),
            Event::SessionOpened { lane, epoch, protocol, repeated, .. } => {
                let more = json!({ "epoch": epoch, "protocol": protocol.name(), "possible_duplicates": repeated.count() });
                ("session", with(of_lane(lane), more))
            }
            Event::LanesChanged { connection, first, count, at, .. } => {
                ("lanes", json!({ "at": at.rfc3339(), "connection": connection.as_str(), "first": first, "count": count }))
            }
            Event::ReplayStarted { job, by, rate, at, .. } => {
                ("replay_started", json!({ "at": at.rfc3339(), "replay": job_name(*job), "by": by, "rate": rate }))
            }
            Event::ReplayEnded { job, cancelled_by, at } => {
                ("replay_ended", json!({ "at": at.rfc3339(), "replay": job_name(*job), "cancelled_by": cancelled_by }))
            }
            Event::InstanceJoined { instance, name, at } => {
                ("joined", json!({ "at": at.rfc3339(), "instance": instance.to_string(), "name": name }))
            }
            Event::InstanceLeft { instance, by, at } => {
                ("left", json!({ "at": at.rfc3339(), "instance": instance.to_string(), "by": by.to_string() }))
            }
            Event::LaneTaken { lane, instance, term, .. } => {
                ("lane_taken", with(of_lane(lane), json!({ "instance": instance.to_string(), "term": term })))
            }
            Event::LaneLeft { lane, instance, term, .. } => {
                ("lane_left", with(of_lane(lane), json!({ "instance": instance.to_string(), "term": term })))
            }
            Event::Audit { who, what, at } => ("audit", json!({ "at": at.rfc3339(), "who": who, "what": what })),
            _ => return None,
        })
    }
}

fn with(mut data: Value, more: Value) -> Value {
    if let (Value::Object(data), Value::Object(more)) = (&mut data, more) {
        data.extend(more);
    }
    data
}

/// An event as it is sent. JSON has no line breaks of its own.
fn event(id: Option<Seq>, name: &str, data: &Value) -> String {
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("{id}event: {name}\ndata: {data}\n\n")
}
