//! `POST /v1/reports`.
//!
//! | Asked | Answered |
//! |---|---|
//! | `application/json`, one report | 202 `{"deliveries":[{"id","connection","topic","qos"}]}` |
//! | `application/x-ndjson`, one report a line, all or nothing | 202 `{"reports":[{"deliveries":[…]}, …]}`, one entry for each line that is not blank |
//! | with an `Idempotency-Key` seen before | the first answer; 409 if the body is another |
//! | anything wrong | an error, see [`status_of`]; nothing of the request was accepted |
//!
//! A report that no reporter wants is accepted, with no deliveries, and counted in `tidings_reports_unrouted_total`.
//!
//! Once a request has been read, its commit no longer depends on the client: one that goes away meanwhile has its reports accepted and counted all the
//! same, and can learn so by asking again with its `Idempotency-Key`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Extension, Router};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::accept::{AcceptError, Answer, Delivery, Ingest, Post};
use super::batch::Shape;
use super::body::{self, BodyError, Measure};
use super::finish::{Finishing, Panicked};
use crate::core::event::Source;
use crate::log::committer::{Committed, now};
use crate::server::caller::Caller;
use crate::server::error::{ApiError, json};
use crate::server::idempotency::{IdempotencyKey, InvalidKey};
use crate::server::timers::Timers;

/// Limits of a request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A body has to arrive within this: 4 MiB at about 1 Mbit/s.
    pub body_timeout: Duration,
    /// So long an answer waits for the disk. Longer than any disk takes that still works; then the client is told that it can't be known.
    pub commit_timeout: Duration,
    /// All bodies held at once may be so large together, in bytes. Twice the largest that any configuration allows: `http.max_batch` may be raised
    /// while the service runs.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { body_timeout: Duration::from_secs(30), commit_timeout: Duration::from_secs(60), memory: 128 << 20 }
    }
}

/// Why `POST /v1/reports` was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The body's type is none that is taken.
    #[error(
        "the Content-Type {0} is not taken here: send application/json for one report, application/x-ndjson for one a line, in UTF-8 and uncompressed"
    )]
    MediaType(String),
    /// The header is no idempotency key.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// The body was not read.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The request was not accepted.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// The disk takes too long.
    #[error(
        "the store has not answered in time, so it is not known whether this was accepted; send it again with the same Idempotency-Key"
    )]
    CommitTimeout,
    /// A handler panicked.
    #[error("a fault in Tidings; its log says more")]
    Fault,
}

impl Refusal {
    /// Stable name for metrics, logs and HTTP bodies. One of a fixed set.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::MediaType(_) => "unsupported_media_type",
            Refusal::Key(_) => "invalid_idempotency_key",
            Refusal::Body(error) => error.code(),
            Refusal::Accept(error) => error.code(),
            Refusal::CommitTimeout => "commit_timeout",
            Refusal::Fault => "internal",
        }
    }
}

/// The HTTP status of each code, and when to come back.
pub fn status_of(code: &str) -> (StatusCode, Option<Duration>) {
    let soon = Some(Duration::from_secs(1));
    let after_a_restart = Some(Duration::from_secs(5));
    match code {
        "invalid_json" | "invalid_body" | "empty_batch" | "invalid_idempotency_key" => (StatusCode::BAD_REQUEST, None),
        "body_timeout" => (StatusCode::REQUEST_TIMEOUT, None),
        "forbidden_tenant" => (StatusCode::FORBIDDEN, None),
        "idempotency_conflict" => (StatusCode::CONFLICT, None),
        "too_large" | "too_many_reports" => (StatusCode::PAYLOAD_TOO_LARGE, None),
        "unsupported_media_type" => (StatusCode::UNSUPPORTED_MEDIA_TYPE, None),
        "invalid_report" | "topic_unrenderable" => (StatusCode::UNPROCESSABLE_ENTITY, None),
        "overloaded" | "overtaken" | "not_owner" | "changed_meanwhile" | "lanes_changed" | "gone" => {
            (StatusCode::SERVICE_UNAVAILABLE, soon)
        }
        "stopping" | "store_failed" | "commit_timeout" => (StatusCode::SERVICE_UNAVAILABLE, after_a_restart),
        "store_full" => (StatusCode::INSUFFICIENT_STORAGE, None),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, None),
    }
}

struct Door {
    ingest: Ingest,
    limits: Limits,
    budget: Arc<Semaphore>,
    timers: Timers,
}

/// The route.
pub fn routes(ingest: Ingest, limits: Limits) -> Router {
    let budget = Arc::new(Semaphore::new(limits.memory.min(Semaphore::MAX_PERMITS)));
    let door = Arc::new(Door { ingest, limits, budget, timers: Timers::default() });
    Router::new().route("/v1/reports", post(take)).with_state(door)
}

/// What is waited for holds no more than it needs: it is made anew for every request, and moved from one wrapping into the next.
fn take(
    State(door): State<Arc<Door>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> impl Future<Output = Response<Body>> + Send {
    let (head, body) = request.into_parts();
    let asked = asked(&head.headers);
    async move {
        let taken = match asked {
            Ok((shape, key)) => Arc::clone(&door).take(caller, shape, key, body).await,
            Err(refusal) => Err(refusal),
        };
        match taken {
            Ok(answer) => accepted(&answer),
            Err(refusal) => {
                let code = refusal.code();
                door.ingest.metrics.tidings_ingest_rejected_total.with_label_values(&[Source::Http.label(), code]).inc();
                refused(&refusal)
            }
        }
    }
}

/// What the head says of the body.
fn asked(headers: &HeaderMap) -> Result<(Shape, Option<IdempotencyKey>), Refusal> {
    Ok((shape_of(headers)?, IdempotencyKey::of(headers)?))
}

impl Door {
    async fn take(
        self: Arc<Self>,
        by: Caller,
        shape: Shape,
        key: Option<IdempotencyKey>,
        body: Body,
    ) -> Result<Committed<Answer>, Refusal> {
        let held = body::read(body, self.measure(shape).await, &self.budget).await?;
        let (commit_timeout, timers) = (self.limits.commit_timeout, self.timers.clone());
        // A client that goes away must not leave a commit behind that nobody counts.
        let accepting = Finishing::new(async move {
            let post = Post { body: held.bytes.clone(), shape, key, by };
            self.ingest.accept(post, now()).await
        });
        match timers.limit(commit_timeout, accepting).await {
            None => Err(Refusal::CommitTimeout),
            Some(Err(Panicked)) => Err(Refusal::Fault),
            Some(Ok(result)) => Ok(result?),
        }
    }

    async fn measure(&self, shape: Shape) -> Measure {
        let timeout = self.limits.body_timeout;
        let routing = self.ingest.routing.current().await;
        match shape {
            Shape::Single => {
                let advice = "a report that large has to lose something, such as returned data";
                Measure { limit: routing.max_report, setting: "http.max_report", advice, timeout }
            }
            Shape::Ndjson => {
                let advice = "send the batch in parts";
                Measure { limit: routing.max_batch, setting: "http.max_batch", advice, timeout }
            }
        }
    }
}

/// The 202: takes the proof that the deliveries are durable.
fn accepted(answer: &Committed<Answer>) -> Response<Body> {
    #[derive(Serialize)]
    struct One<'a> {
        deliveries: &'a [Delivery],
    }
    #[derive(Serialize)]
    struct Many<'a> {
        reports: Vec<One<'a>>,
    }
    let Answer { shape, reports } = answer.get();
    let mut reports = reports.iter().map(|deliveries| One { deliveries });
    match shape {
        Shape::Single => json(StatusCode::ACCEPTED, &reports.next().unwrap_or(One { deliveries: &[] })),
        Shape::Ndjson => json(StatusCode::ACCEPTED, &Many { reports: reports.collect() }),
    }
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let code = refusal.code();
    let (status, retry_after) = status_of(code);
    let mut error = ApiError::new(status, code, refusal.to_string());
    if let Refusal::Accept(accept) = refusal {
        error = error.field(accept.field());
    } else {
        // The body was not read to its end.
        error = error.closing();
    }
    if let Some(after) = retry_after {
        error = error.retry_after(after);
    }
    error.into_response()
}

/// What the body is, by its type. Parameters are passed over, but for a charset: JSON is UTF-8 (RFC 8259 §8.1).
fn shape_of(headers: &HeaderMap) -> Result<Shape, Refusal> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(Refusal::MediaType(format!("with Content-Encoding {encoding:?}")));
    }
    let Some(value) = headers.get(CONTENT_TYPE) else { return Err(Refusal::MediaType("is missing and".into())) };
    let unknown = || Refusal::MediaType(format!("{value:?}"));
    let mut parts = value.to_str().map_err(|_| unknown())?.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let charset = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    if charset.is_some_and(|charset| !["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known))) {
        return Err(unknown());
    }
    match () {
        () if kind.eq_ignore_ascii_case("application/json") => Ok(Shape::Single),
        () if kind.eq_ignore_ascii_case("application/x-ndjson") => Ok(Shape::Ndjson),
        () => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(content_type: &str) -> Option<Shape> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        shape_of(&headers).ok()
    }

    #[test]
    fn content_types_are_taken_with_parameters_and_in_any_case() {
        for json in ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=\"UTF-8\" ; x=y"]
        {
            assert_eq!(shape(json), Some(Shape::Single), "{json}");
        }
        assert_eq!(shape("application/x-ndjson; charset=utf-8"), Some(Shape::Ndjson));
    }

    #[test]
    fn other_content_types_charsets_and_encodings_are_refused() {
        for other in ["", "text/plain", "application/jsonx", "application/json, application/json", "application/json; charset=latin1"] {
            assert_eq!(shape(other), None, "{other}");
        }
        let mut headers = HeaderMap::new();
        assert!(shape_of(&headers).is_err());
        headers.insert(CONTENT_TYPE, "application/json".parse().unwrap());
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        assert!(shape_of(&headers).is_err());
    }
}
