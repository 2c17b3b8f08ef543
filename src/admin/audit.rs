//! `GET /v1/audit`: who did what, newest first.
//!
//! An act is an event of the log like any other, so it is as durable as what it did, and lasts as long as the part of the log that holds it. Pages say
//! about themselves whether they hold one, so the others are passed over undecoded.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::deliveries::budget::Budget;
use super::deliveries::query::{cursor, read_cursor};
use super::deliveries::scan::not_gone;
use super::deliveries::unreadable;
use crate::core::event::Event;
use crate::core::search::AUDIT_KEY;
use crate::core::types::Seq;
use crate::log::ReadError;
use crate::log::committer::LogHandle;
use crate::server::error::{ApiError, invalid, json};
use crate::server::question;

/// Entries of one answer if nobody says.
const USUAL: usize = 100;

/// Entries of one answer at most.
pub const MOST: usize = 1_000;

/// So many searches at once, and others wait so long.
const SEARCHES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(2);

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The event, as text.
    pub position: String,
    /// When (RFC 3339).
    pub at: String,
    /// Who.
    pub who: String,
    /// What, in one sentence.
    pub what: String,
}

/// One page of the audit; also how the command line reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Newest first.
    pub audit: Vec<Entry>,
    /// Where to go on; null if there is nothing more. There may be more even if nothing was found here.
    pub next_cursor: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    limit: Option<String>,
    cursor: Option<String>,
}

struct Reading {
    log: LogHandle,
    places: Arc<Semaphore>,
}

/// The route.
pub fn routes(log: LogHandle) -> Router {
    Router::new().route("/v1/audit", get(list)).with_state(Arc::new(Reading { log, places: Arc::new(Semaphore::new(SEARCHES)) }))
}

async fn list(State(reading): State<Arc<Reading>>, query: Result<Query<Asked>, QueryRejection>) -> Response<Body> {
    match reading.list(query).await {
        Ok(audit) => json(StatusCode::OK, &audit),
        Err(error) => error.into_response(),
    }
}

impl Reading {
    async fn list(&self, query: Result<Query<Asked>, QueryRejection>) -> Result<Audit, ApiError> {
        let Asked { limit, cursor: before } = question::query(query, "there are limit and cursor")?;
        let limit = match limit {
            None => USUAL,
            Some(text) => {
                let limit = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
                limit.ok_or_else(|| invalid("limit", format!("expected a number from 1 to {MOST}, found {text:?}")))?
            }
        };
        let before = match before {
            None => None,
            Some(text) => Some(read_cursor(&text).ok_or_else(|| invalid("cursor", "expected the next_cursor of an earlier answer"))?),
        };
        let Ok(Ok(place)) = tokio::time::timeout(PATIENCE, Arc::clone(&self.places).acquire_owned()).await else {
            let message = "other searches are under way; try again in a moment";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(Duration::from_secs(1)));
        };
        let asked = self.log.ask(|outbox| (outbox.next(), outbox.oldest_generation().unwrap_or(Seq::FIRST))).await;
        let (next, oldest) = asked.map(|asked| asked.into_inner()).map_err(|error| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", error.to_string()).retry_after(Duration::from_secs(5))
        })?;
        let (log, before) = (self.log.clone(), before.unwrap_or(next).min(next));
        let searching = tokio::task::spawn_blocking(move || {
            let _place = place;
            search(&log, oldest, before, limit, Budget::of_a_request())
        });
        let found = searching.await.map_err(|_| ApiError::internal("a fault in Tidings; its log says more"))?;
        let (audit, next) = found.map_err(unreadable)?;
        Ok(Audit { audit, next_cursor: next.map(cursor) })
    }
}

/// The newest acts before a position, and where to go on. Blocks on the disk.
fn search(log: &LogHandle, oldest: Seq, mut before: Seq, limit: usize, mut budget: Budget) -> Result<(Vec<Entry>, Option<Seq>), ReadError> {
    let mut found = Vec::new();
    while before > oldest {
        if !budget.glimpse() {
            return Ok((found, Some(before)));
        }
        let at = Seq(before.0 - 1);
        let Some(glimpse) = not_gone(log.glimpse(at))? else { break };
        if glimpse.index.may_hold(AUDIT_KEY) {
            budget.page();
            let Some(page) = not_gone(log.page(at))? else { break };
            let page = page.get();
            for (offset, event) in (0..).zip(&page.events).collect::<Vec<(u64, &Event)>>().into_iter().rev() {
                let position = Seq(page.first.0 + offset);
                let Event::Audit { who, what, at } = event else { continue };
                if position >= before {
                    continue;
                }
                if found.len() == limit {
                    return Ok((found, Some(position.next())));
                }
                found.push(Entry { position: position.to_string(), at: at.rfc3339(), who: who.clone(), what: what.clone() });
            }
        }
        before = glimpse.first;
    }
    Ok((found, None))
}
