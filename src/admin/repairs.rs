//! What operators decide about deliveries: dead letters go back or are given up, and so is what is pending.
//!
//! ```text
//!   POST /v1/dead/requeue · POST /v1/dead/discard · POST /v1/deliveries/discard
//!        ─▶ which (ids, or a filter), by whom ─▶ the app ─▶ one commit: Audit, and an event for each ─▶ counts and ids
//! ```
//! A request is one commit: after a kill it has been done, or it has not begun. To ask again is to ask for what is left. The app does it, one at a
//! time; a request whose client goes away is done all the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::deliveries::query::Asked;
use crate::core::event::Accepted;
use crate::core::handover::{MOVED_TO, is_move};
use crate::core::search::Filter;
use crate::core::types::{Millis, Seq};
use crate::log::committer::now;
use crate::server::caller::Caller;
use crate::server::error::{ApiError, invalid, json};
use crate::server::object::Object;
use crate::server::question;

/// A body: ten thousand ids have less than 250 KiB.
const LARGEST_BODY: usize = 1 << 20;

/// So many ids may be named in one request.
const MOST_IDS: usize = 10_000;

/// So many ids are named in an answer.
pub const SHOWN_IDS: usize = 1_000;

/// So many requests wait for their turn.
pub const WAITING: usize = 4;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Dead letters go back to their lanes.
    Requeue,
    /// Dead letters are given up.
    DiscardDead,
    /// Pending deliveries are given up.
    DiscardPending,
}

/// With which deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// These.
    Ids(BTreeSet<Seq>),
    /// Those that are so.
    Filter(Filter),
    /// Those that are dead since before then. Nobody asks for these; a setting does.
    DeadBefore(Millis),
}

/// An operator's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What is to be done.
    pub act: Act,
    /// With which deliveries.
    pub which: Which,
    /// Who decided.
    pub by: String,
    /// Why, in the operator's words.
    pub reason: String,
    /// Only say what would be done.
    pub is_dry_run: bool,
    /// Also with what may be in flight.
    pub even_in_flight: bool,
    /// Of these tenants only: what has another is as if it were not there. None: of all.
    pub tenants: Option<Arc<BTreeSet<String>>>,
}

impl Decision {
    /// Whether the decision can be about this delivery.
    pub fn may_touch(&self, accepted: &Accepted) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.contains(&accepted.tenant))
    }
}

/// A decision that waits to be carried out.
pub struct Ask {
    /// The decision.
    pub decision: Decision,
    /// What came of it. Nobody may be listening any more.
    pub reply: oneshot::Sender<Result<Repaired, RepairError>>,
}

/// What came of it: the answer, and how the command line reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// With so many deliveries it was done; or would be, in a dry run.
    pub done: u64,
    /// The first thousand of them.
    pub ids: Vec<String>,
    /// So many more are meant, and are left to the next request.
    pub remaining: u64,
    /// So many are meant and were left alone, because they may be in flight.
    pub in_flight: u64,
    /// Named, and not what can be acted on: unknown, or ended already.
    pub skipped: Vec<String>,
    /// Whether nothing was done.
    pub dry_run: bool,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// The service stops.
    #[error("the service is stopping, and nothing was done: ask again when it is back")]
    Stopping,
    /// The store is full.
    #[error("the store is full ({0}), and nothing was done: ask again when it has room")]
    Full(String),
    /// The store failed, or can't be read.
    #[error("{0}; look with `tidings list` whether it was done, and ask again: nothing is done twice")]
    Failed(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    ids: Option<Vec<String>>,
    filter: Option<Object<Asked>>,
    by: Option<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    dry_run: bool,
    #[serde(default)]
    even_in_flight: bool,
    #[serde(default)]
    state: Option<String>,
}

/// The routes; what is asked for goes to `repairs`.
pub fn routes(repairs: mpsc::Sender<Ask>) -> Router {
    Router::new()
        .route("/v1/dead/requeue", post(requeue))
        .route("/v1/dead/discard", post(discard_dead))
        .route("/v1/deliveries/discard", post(discard_pending))
        .with_state(Arc::new(repairs))
}

type Repairs = State<Arc<mpsc::Sender<Ask>>>;

async fn requeue(State(repairs): Repairs, Extension(caller): Extension<Caller>, request: Request<Body>) -> Response<Body> {
    answer(&repairs, Act::Requeue, &caller, request).await
}

async fn discard_dead(State(repairs): Repairs, Extension(caller): Extension<Caller>, request: Request<Body>) -> Response<Body> {
    answer(&repairs, Act::DiscardDead, &caller, request).await
}

async fn discard_pending(State(repairs): Repairs, Extension(caller): Extension<Caller>, request: Request<Body>) -> Response<Body> {
    answer(&repairs, Act::DiscardPending, &caller, request).await
}

async fn answer(repairs: &mpsc::Sender<Ask>, act: Act, caller: &Caller, request: Request<Body>) -> Response<Body> {
    match carry_out(repairs, act, caller, request.into_body()).await {
        Ok(repaired) => json(StatusCode::OK, &repaired),
        Err(error) => error.into_response(),
    }
}

async fn carry_out(repairs: &mpsc::Sender<Ask>, act: Act, caller: &Caller, body: Body) -> Result<Repaired, ApiError> {
    let decision = decision(act, caller, read(body).await?)?;
    let (reply, answer) = oneshot::channel();
    match repairs.try_send(Ask { decision, reply }) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(_)) => {
            let message = "other changes are under way; try again when they are done";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(Duration::from_secs(5)));
        }
        Err(mpsc::error::TrySendError::Closed(_)) => return Err(RepairError::Stopping.into()),
    }
    match answer.await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RepairError::Stopping.into()),
    }
}

async fn read(body: Body) -> Result<Wanted, ApiError> {
    let bytes = question::read(body, LARGEST_BODY, "name fewer ids, or use a filter").await?;
    question::object(&bytes, r#"{"ids":["17"],"by":"NAME"}, or "filter":{…} instead of "ids""#, "invalid_query")
}

fn decision(act: Act, caller: &Caller, wanted: Wanted) -> Result<Decision, ApiError> {
    let Wanted { ids, filter, by, reason, dry_run, even_in_flight, state } = wanted;
    let by = caller.decides(by.as_deref())?;
    let reason = question::reason(reason)?;
    if reason.as_deref().is_some_and(is_move) {
        return Err(invalid("reason", format!("the histories take one that begins with {MOVED_TO:?} for that of a move; use other words")));
    }
    match (act, state.as_deref()) {
        // Said, so that nobody gives up what is pending who meant what is dead.
        (Act::DiscardPending, Some("pending")) | (Act::Requeue | Act::DiscardDead, None | Some("dead")) => {}
        (Act::DiscardPending, _) => return Err(invalid("state", "expected pending; dead letters are discarded by POST /v1/dead/discard")),
        _ => return Err(invalid("state", "only dead letters are meant here")),
    }
    if even_in_flight && act != Act::DiscardPending {
        return Err(invalid("even_in_flight", "a dead letter is never in flight"));
    }
    let which = match (ids, filter) {
        (Some(ids), None) if (1..=MOST_IDS).contains(&ids.len()) => {
            let read = |id: &String| id.parse().map(Seq).map_err(|_| invalid("ids", format!("expected ids as text, found {id:?}")));
            Which::Ids(ids.iter().map(read).collect::<Result<_, _>>()?)
        }
        (Some(_), None) => return Err(invalid("ids", format!("expected 1 to {MOST_IDS} ids"))),
        (None, Some(Object(asked))) => Which::Filter(asked.filter(now())?),
        _ => return Err(invalid("filter", "expected either ids or a filter; an empty filter, {}, means all")),
    };
    let reason = reason.unwrap_or_else(|| "an operator's decision".to_owned());
    Ok(Decision { act, which, by, reason, is_dry_run: dry_run, even_in_flight, tenants: caller.tenants().cloned() })
}

impl From<RepairError> for ApiError {
    fn from(error: RepairError) -> ApiError {
        let message = error.to_string();
        let later = Duration::from_secs(5);
        match error {
            RepairError::Stopping => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message).retry_after(later),
            RepairError::Full(_) => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "store_full", message),
            RepairError::Failed(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "change_failed", message).retry_after(later),
        }
    }
}
