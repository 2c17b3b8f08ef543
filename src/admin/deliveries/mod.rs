//! Deliveries, for operators: the list, one with its history, and its payload.
//!
//! ```text
//!   GET …  ─▶ a place among the searches ─▶ snapshot (committer: as of the last commit) ─▶ log (glimpses, pages) ─▶ answer
//!              none: 503, Retry-After            bounded by the budget of a request
//! ```
//! There is no index: pages say about themselves what they may hold. Nothing here waits for a commit but the snapshot, and nothing holds one up for
//! longer than it takes to copy the lanes.
//!
//! | Module | Holds |
//! |---|---|
//! | [`query`] | what is asked for |
//! | [`scan`] | the list |
//! | [`seek`] | what was delivered, oldest first, for replays |
//! | [`story`] | one delivery's history |
//! | [`budget`] | how much one request may read |
//! | [`answers`] | what is answered |

pub mod answers;
pub mod budget;
pub mod query;
pub mod scan;
pub mod seek;
pub mod story;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use serde::Deserialize;
use tokio::sync::Semaphore;

use answers::{Deliveries, Story};
use budget::Budget;
use query::{ListQuery, cursor};
use story::{Mark, NoStory};

use crate::core::event::Source;
use crate::core::search::Snapshot;
use crate::core::types::{ConnectionName, Seq};
use crate::log::ReadError;
use crate::log::committer::{LogHandle, now};
use crate::server::caller::Caller;
use crate::server::error::{ApiError, invalid, json};
use crate::server::question;

/// So many searches at once: each keeps a thread and the disk busy for up to some seconds.
const SEARCHES: usize = 4;

/// Others wait so long for their turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the routes need.
struct Reading {
    log: LogHandle,
    places: Arc<Semaphore>,
}

/// The routes.
pub fn routes(log: LogHandle) -> Router {
    Router::new()
        .route("/v1/deliveries", get(list))
        .route("/v1/deliveries/{id}", get(show))
        .route("/v1/deliveries/{id}/payload", get(payload))
        .with_state(Arc::new(Reading { log, places: Arc::new(Semaphore::new(SEARCHES)) }))
}

impl Reading {
    /// Searches the log, where blocking is allowed, when there is a place.
    async fn search<T: Send + 'static>(
        &self,
        connection: Option<ConnectionName>,
        act: impl FnOnce(&LogHandle, &Snapshot) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = tokio::time::timeout(PATIENCE, Arc::clone(&self.places).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            let message = "other searches are under way; try again in a moment";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(Duration::from_secs(1)));
        };
        let asked = self.log.ask(move |outbox| Snapshot::of(outbox, connection.as_ref())).await;
        let snapshot = asked.map_err(|error| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", error.to_string()).retry_after(Duration::from_secs(5))
        })?;
        let log = self.log.clone();
        let searching = tokio::task::spawn_blocking(move || {
            let _place = place;
            act(&log, snapshot.get())
        });
        searching.await.unwrap_or_else(|_| Err(ApiError::internal("a fault in Tidings; its log says more")))
    }
}

async fn list(
    State(reading): State<Arc<Reading>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Response<Body> {
    let answer = async {
        let mut wanted = read_query(query)?.wanted(now())?;
        wanted.filter.within = caller.tenants().cloned();
        let connection = wanted.filter.connection.clone();
        let search =
            move |log: &LogHandle, snapshot: &Snapshot| scan::list(log, snapshot, &wanted, Budget::of_a_request()).map_err(unreadable);
        let found = reading.search(connection, search).await?;
        Ok(Deliveries { deliveries: found.rows, next_cursor: found.next.map(cursor) })
    };
    answer.await.map_or_else(ApiError::into_response, |found| json(StatusCode::OK, &found))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ShowQuery {
    from: Option<String>,
}

async fn show(
    State(reading): State<Arc<Reading>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<ShowQuery>, QueryRejection>,
) -> Response<Body> {
    let answer = async {
        let from: Option<Mark> = match read_query(query)?.from {
            None => None,
            Some(text) => Some(text.parse().map_err(|()| invalid("from", "expected the next_from of an earlier answer"))?),
        };
        let id = read_id(id)?;
        let tell = move |log: &LogHandle, snapshot: &Snapshot| {
            let story = story::tell(log, snapshot, id, from, Budget::of_a_request())?;
            if caller.may_see(&story.row.tenant) { Ok(story) } else { Err(NoStory::Unknown(id).into()) }
        };
        reading.search::<Story>(None, tell).await
    };
    answer.await.map_or_else(ApiError::into_response, |story| json(StatusCode::OK, &story))
}

async fn payload(
    State(reading): State<Arc<Reading>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Response<Body> {
    let answer = async {
        let id = read_id(id)?;
        let find = move |log: &LogHandle, snapshot: &Snapshot| {
            let accepted = story::find(log, snapshot, id, &mut Budget::of_a_request())?.accepted;
            // What belongs to others is as if it were not there.
            if caller.may_see(&accepted.tenant) { Ok(accepted) } else { Err(NoStory::Unknown(id).into()) }
        };
        reading.search(None, find).await
    };
    let accepted = match answer.await {
        Ok(accepted) => accepted,
        Err(error) => return error.into_response(),
    };
    let content_type = content_type(accepted.source, accepted.properties.content_type.as_deref());
    let mut response = Response::new(Body::from(accepted.payload));
    let headers = response.headers_mut();
    // Reports are whatever somebody sent: a browser must neither guess what one is nor run it.
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
        (CONTENT_DISPOSITION, "attachment"),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The type of a payload, out of those that do no harm: what came over HTTP was JSON, and of others the publisher may have said so.
fn content_type(source: Source, said: Option<&str>) -> &'static str {
    let said = said.map(|said| said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match (source, said.as_deref()) {
        (Source::Http, _) | (_, Some("application/json")) => "application/json",
        (_, Some("text/plain")) => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn read_id(text: Result<Path<String>, PathRejection>) -> Result<Seq, ApiError> {
    // What is not even UTF-8 is no number.
    let text = text.map(|Path(text)| text).unwrap_or_default();
    let id: Option<u64> = if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None };
    id.map(Seq).ok_or_else(|| {
        let shown: String = text.chars().take(40).collect();
        ApiError::new(StatusCode::NOT_FOUND, "unknown_delivery", format!("there is no delivery {shown:?}: an id is a number"))
    })
}

pub(super) fn read_query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    question::query(query, "ops/http.md has the names")
}

/// The log can't be read, as an answer.
pub(super) fn unreadable(error: ReadError) -> ApiError {
    let message = error.to_string();
    match error {
        ReadError::Damaged { .. } => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "store_damaged", message),
        ReadError::Gone(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "gone", message).retry_after(Duration::from_secs(1)),
        ReadError::Io(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "store_failed", message).retry_after(Duration::from_secs(5)),
    }
}

impl From<NoStory> for ApiError {
    fn from(error: NoStory) -> ApiError {
        let message = error.to_string();
        match error {
            NoStory::Unknown(_) => ApiError::new(StatusCode::NOT_FOUND, "unknown_delivery", message),
            NoStory::Gone { .. } => ApiError::new(StatusCode::NOT_FOUND, "past_retention", message),
            NoStory::Read(error) => unreadable(error),
        }
    }
}
