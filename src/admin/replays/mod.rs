//! Replays: what was delivered is delivered again, on request.
//!
//! ```text
//!   POST   /v1/replays       what, how fast, by whom ─▶ the app ─▶ one commit: Audit, ReplayStarted ─▶ 201, and the job begins
//!          … "dry_run"       counted here, nothing is written
//!   GET    /v1/replays       the jobs, as the outbox has them
//!   DELETE /v1/replays/{id}?by=NAME  ─▶ the app: the job goes no further
//! ```
//! What a job is stands in the log, so it outlives restarts. With an `Idempotency-Key` its id is made of that and of who asks: asking again, also after a
//! restart, finds the same job.

mod answers;
mod asked;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{delete, get};
use axum::{Extension, Router};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tokio::sync::{Semaphore, mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64;

use super::deliveries::query::Asked;
use super::deliveries::seek::{Copies, Limits, seek};
use super::deliveries::{read_query, unreadable};
use crate::core::outbox::{Job, job_named};
use crate::core::search::{Filter, Snapshot};
use crate::core::types::{Millis, Seq};
use crate::log::committer::{LogHandle, now};
use crate::server::caller::Caller;
use crate::server::error::{ApiError, invalid, json};
use crate::server::idempotency::IdempotencyKey;
use crate::server::object::Object;
use crate::server::question;
pub use answers::{Counted, Shown, ShownJobs};
pub use asked::{Ask, Live, Lives, ReplayError, Spec, Wanted};

/// A body: a filter with its longest topic, and a reason.
const LARGEST_BODY: usize = 128 << 10;

/// Reports per second at most: more is as fast as it goes.
const HIGHEST_RATE: u32 = 1_000_000;

/// So many requests wait for their turn.
pub const WAITING: usize = 4;

/// A dry run counts for so long, and then says that there is more.
const COUNTING: Duration = Duration::from_secs(10);

/// So many dry runs count at once.
const COUNTS: usize = 1;

/// What a dry run holds in memory at once.
const COUNTED_AT_ONCE: Limits = Limits { count: 1_000, bytes: 4 << 20 };

struct Replays {
    log: LogHandle,
    asks: mpsc::Sender<Ask>,
    lives: Lives,
    counts: Arc<Semaphore>,
}

/// The routes; what is asked for goes to `asks`.
pub fn routes(log: LogHandle, asks: mpsc::Sender<Ask>, lives: Lives) -> Router {
    let replays = Replays { log, asks, lives, counts: Arc::new(Semaphore::new(COUNTS)) };
    Router::new()
        .route("/v1/replays", get(list).post(start))
        .route("/v1/replays/{id}", get(show))
        .route("/v1/replays/{id}", delete(cancel))
        .with_state(Arc::new(replays))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    filter: Option<Object<Filtered>>,
    #[serde(default, deserialize_with = "whole")]
    rate: Option<u32>,
    by: Option<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

/// A whole number, also as `3.0`: to JSON Schema, and so to who reads the API's document, that is an integer.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match Option::<f64>::deserialize(deserializer)? {
        None => Ok(None),
        Some(number) if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) => Ok(Some(number as u32)),
        Some(number) => Err(D::Error::custom(format_args!("invalid value: `{number}`, expected a whole number, 0 or more"))),
    }
}

/// A filter as it comes, and the state that may be said in it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Filtered {
    state: Option<String>,
    tenant: Option<String>,
    pipeline: Option<String>,
    action: Option<String>,
    topic: Option<String>,
    change: Option<String>,
    connection: Option<String>,
    since: Option<String>,
    until: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CancelQuery {
    by: Option<String>,
}

type Place = State<Arc<Replays>>;

async fn start(State(replays): Place, Extension(caller): Extension<Caller>, headers: HeaderMap, request: Request<Body>) -> Response<Body> {
    let answer = async {
        let key = IdempotencyKey::of(&headers)?;
        let bytes = question::read(request.into_body(), LARGEST_BODY, "a filter has less").await?;
        let (wanted, is_dry_run) = wanted(&caller, key.as_ref(), &bytes)?;
        if is_dry_run {
            return Ok(json(StatusCode::OK, &replays.count(wanted.spec).await?));
        }
        let (reply, answer) = oneshot::channel();
        let id = wanted.id;
        let (is_new, job) = replays.ask(Ask::Start { wanted: Box::new(wanted), reply }, answer).await?;
        let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
        Ok(json(status, &replays.shown(id, &job)?))
    };
    answer.await.unwrap_or_else(ApiError::into_response)
}

async fn list(State(replays): Place, Extension(caller): Extension<Caller>) -> Response<Body> {
    let answer = async {
        let mut jobs = replays.jobs(|outbox| outbox.jobs().iter().map(|(id, job)| (id, job.clone())).collect::<Vec<_>>()).await?;
        jobs.sort_by_key(|(_, job)| std::cmp::Reverse(job.asked));
        let mut shown = Vec::with_capacity(jobs.len());
        for (id, job) in jobs {
            if replays.spec(&job)?.may_be_seen(&caller) {
                shown.push(replays.shown(id, &job)?);
            }
        }
        Ok(ShownJobs { replays: shown })
    };
    answer.await.map_or_else(ApiError::into_response, |shown: ShownJobs| json(StatusCode::OK, &shown))
}

async fn show(State(replays): Place, Extension(caller): Extension<Caller>, id: Result<Path<String>, PathRejection>) -> Response<Body> {
    let answer = async {
        let (id, job) = replays.find(id, &caller).await?;
        replays.shown(id, &job)
    };
    answer.await.map_or_else(ApiError::into_response, |shown: Shown| json(StatusCode::OK, &shown))
}

async fn cancel(
    State(replays): Place,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<CancelQuery>, QueryRejection>,
) -> Response<Body> {
    let answer = async {
        let by = match (read_query(query)?.by, caller.token()) {
            (None, None) => "an operator".to_owned(),
            (by, _) => caller.decides(by.as_deref())?,
        };
        let (id, _) = replays.find(id, &caller).await?;
        let (reply, answer) = oneshot::channel();
        let job = replays.ask(Ask::Cancel { id, by, reply }, answer).await?;
        replays.shown(id, &job)
    };
    answer.await.map_or_else(ApiError::into_response, |shown: Shown| json(StatusCode::OK, &shown))
}

impl Replays {
    async fn ask<T>(&self, ask: Ask, answer: oneshot::Receiver<Result<T, ReplayError>>) -> Result<T, ApiError> {
        match self.asks.try_send(ask) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                let message = "other changes are under way; try again when they are done";
                return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(Duration::from_secs(5)));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(ReplayError::Stopping.into()),
        }
        match answer.await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(ReplayError::Stopping.into()),
        }
    }

    async fn jobs<T: Send + 'static>(
        &self,
        question: impl FnOnce(&crate::core::outbox::Outbox) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.log.ask(question).await.map(|answer| answer.into_inner()).map_err(|_| ReplayError::Stopping.into())
    }

    async fn find(&self, id: Result<Path<String>, PathRejection>, caller: &Caller) -> Result<(u64, Job), ApiError> {
        // What is not even UTF-8 is no id.
        let text = id.map(|Path(text)| text).unwrap_or_default();
        let unknown = || ApiError::from(ReplayError::Unknown(text.chars().take(40).collect()));
        let id = job_named(&text).ok_or_else(unknown)?;
        let job = self.jobs(move |outbox| outbox.jobs().get(id).cloned()).await?.ok_or_else(unknown)?;
        if self.spec(&job)?.may_be_seen(caller) { Ok((id, job)) } else { Err(unknown()) }
    }

    fn spec(&self, job: &Job) -> Result<Spec, ApiError> {
        Spec::read(&job.filter).map_err(ApiError::internal)
    }

    fn shown(&self, id: u64, job: &Job) -> Result<Shown, ApiError> {
        Ok(Shown::new(id, job, self.spec(job)?, &self.lives.of(id)))
    }

    /// A dry run: what would be replayed, counted for a while.
    async fn count(&self, spec: Spec) -> Result<Counted, ApiError> {
        let Ok(place) = Arc::clone(&self.counts).try_acquire_owned() else {
            let message = "another dry run counts; try again when it is done";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(Duration::from_secs(5)));
        };
        let filter = spec.wanted()?;
        let connection = filter.connection.clone();
        let snapshot = self.jobs(move |outbox| Snapshot::of(outbox, connection.as_ref())).await?;
        let log = self.log.clone();
        let counting = tokio::task::spawn_blocking(move || {
            let _place = place;
            count(&log, &snapshot, &filter)
        });
        counting.await.unwrap_or_else(|_| Err(ApiError::internal("a fault in Tidings; its log says more")))
    }
}

fn count(log: &LogHandle, snapshot: &Snapshot, filter: &Filter) -> Result<Counted, ApiError> {
    let until = Instant::now() + COUNTING;
    let mut copies = Copies { from: snapshot.oldest, ..Copies::default() };
    let mut counted = Counted { dry_run: true, matches: 0, bytes: 0, complete: false };
    let mut at = snapshot.oldest.max(Seq::FIRST);
    while at < snapshot.next {
        if Instant::now() >= until {
            return Ok(counted);
        }
        let piece = seek(log, snapshot, filter, &copies, at, snapshot.next, COUNTED_AT_ONCE).map_err(unreadable)?;
        for found in &piece.found {
            counted.matches += 1;
            counted.bytes += found.accepted.payload.len() as u64;
            if found.id < at {
                copies.taken.insert(found.id);
            }
        }
        if piece.is_gone {
            // Deleted this moment: what is behind it is still there.
            return Ok(counted);
        }
        at = piece.next;
    }
    counted.complete = true;
    Ok(counted)
}

fn wanted(caller: &Caller, key: Option<&IdempotencyKey>, bytes: &[u8]) -> Result<(Wanted, bool), ApiError> {
    let expected = r#"{"filter":{"pipeline":"check","since":"2h"},"by":"NAME"}"#;
    let Question { filter, rate, by, reason, dry_run } = question::object(bytes, expected, "invalid_query")?;
    let Some(Object(filter)) = filter else {
        return Err(invalid("filter", "expected a filter; an empty one, {}, means everything that was delivered"));
    };
    let Filtered { state, tenant, pipeline, action, topic, change, connection, since, until } = filter;
    let asked = Asked { tenant, pipeline, action, topic, change, connection, since, until };
    if state.is_some_and(|state| state != "delivered") {
        return Err(invalid("state", "only what was delivered is replayed; dead letters are requeued by POST /v1/dead/requeue"));
    }
    let rate = rate.unwrap_or(0);
    if rate > HIGHEST_RATE {
        return Err(invalid("rate", format!("expected 1 to {HIGHEST_RATE} reports per second, or 0 for as fast as it goes")));
    }
    let reason = question::reason(reason)?;
    let now: Millis = now();
    // Every mistake in it is named now.
    asked.clone().filter(now)?;
    if asked.tenant.as_ref().is_some_and(|tenant| !caller.may_see(tenant)) {
        return Err(invalid("tenant", "the token is not for this tenant"));
    }
    let by = if dry_run { String::new() } else { caller.decides(by.as_deref())? };
    let spec = Spec {
        filter: asked.at(now)?,
        tenants: caller.tenants().map(|tenants| tenants.as_ref().clone()),
        reason,
        body: xxh3_64(bytes),
        from: 0,
    };
    let id = match key {
        Some(key) => xxh3_64(format!("replay\0{}\0{}", caller.token().unwrap_or_default(), key.as_str()).as_bytes()),
        None => getrandom::u64().map_err(|error| ApiError::internal(format!("the system gives no random number: {error}")))?,
    };
    Ok((Wanted { id, spec, rate, by }, dry_run))
}
