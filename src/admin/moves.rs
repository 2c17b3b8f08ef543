//! `POST /v1/moves`: the pending deliveries of one connection are given to another.
//!
//! The app does it, one at a time; this is its door. A request whose client goes away is done all the same.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::Admin;
use crate::core::types::ConnectionName;
use crate::server::caller::Caller;
use crate::server::error::{ApiError, json};
use crate::server::question;

/// A request is three names.
const LARGEST_BODY: usize = 4 << 10;

/// A name in the history, in bytes.
const LONGEST_NAME: usize = 64;

/// So many requests wait for their turn.
pub const WAITING: usize = 4;

/// The deliveries of one connection are to be given to another.
pub struct Ask {
    /// The connection that has them.
    pub from: ConnectionName,
    /// The connection that gets them.
    pub to: ConnectionName,
    /// Who decided.
    pub by: String,
    /// What came of it. Nobody may be listening any more.
    pub reply: oneshot::Sender<Result<Moved, MoveError>>,
}

/// What came of it: the answer, and how the command line reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The connection that had them.
    pub from: String,
    /// The connection that has them.
    pub to: String,
    /// How many were moved.
    pub moved: u64,
    /// So many of them, at most, may have arrived at the old broker as well.
    pub possible_duplicates: u64,
    /// What is pending at the old connection now: what came in meanwhile.
    pub remaining: u64,
    /// Dead letters, which are not moved.
    pub dead_letters: u64,
}

/// Why it was not done, or not to the end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// There is no such connection.
    #[error("nothing is known of a connection {name}; known are: {}", known.join(", "))]
    UnknownConnection {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Nobody would deliver what is given to it.
    #[error("the connection {name} is not configured, so what is moved there would not be delivered; configured are: {}", known.join(", "))]
    NotConfigured {
        /// The name.
        name: String,
        /// Those that are.
        known: Vec<String>,
    },
    /// The service stops.
    #[error("the service is stopping; {moved} deliveries were moved, and the others are where they were: ask again when it is back")]
    Stopping {
        /// So many were moved before.
        moved: u64,
    },
    /// The store is full.
    #[error("the store is full ({reason}); {moved} deliveries were moved, and the others are where they were: ask again when it has room")]
    Full {
        /// So many were moved before.
        moved: u64,
        /// Why.
        reason: String,
    },
    /// The store failed, or is too busy.
    #[error("{reason}; {moved} deliveries were moved, and the others are where they were: ask again, nothing is moved twice")]
    Failed {
        /// So many were moved before.
        moved: u64,
        /// Why.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    from: String,
    to: String,
    by: Option<String>,
}

pub(super) async fn post(State(admin): State<Arc<Admin>>, Extension(caller): Extension<Caller>, request: Request<Body>) -> Response<Body> {
    match admin.moves(&caller, request.into_body()).await {
        Ok(moved) => json(StatusCode::OK, &moved),
        Err(error) => error.into_response(),
    }
}

impl Admin {
    async fn moves(&self, caller: &Caller, body: Body) -> Result<Moved, ApiError> {
        let (from, to, by) = read(caller, body).await?;
        let (reply, answer) = oneshot::channel();
        let ask = Ask { from, to, by, reply };
        match self.moves.try_send(ask) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                let message = "other moves are under way; try again when they are done";
                return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(Duration::from_secs(5)));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(MoveError::Stopping { moved: 0 }.into()),
        }
        match answer.await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(MoveError::Stopping { moved: 0 }.into()),
        }
    }
}

async fn read(caller: &Caller, body: Body) -> Result<(ConnectionName, ConnectionName, String), ApiError> {
    let bytes = question::read(body, LARGEST_BODY, "it is three names").await?;
    let Wanted { from, to, by } = question::object(&bytes, r#"{"from":"CONNECTION","to":"CONNECTION","by":"NAME"}"#, "invalid_move")?;
    for (field, name) in [("from", &from), ("to", &to)] {
        if name.trim().is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            let message = format!("{field}: expected a name of 1 to {LONGEST_NAME} bytes");
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_move", message).field(Some(field.to_owned())));
        }
    }
    if from == to {
        let message = format!("what waits for {from} can't be moved to {to}: these are one connection");
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_move", message).field(Some("to".to_owned())));
    }
    Ok((from.as_str().into(), to.as_str().into(), caller.decides(by.as_deref())?))
}

impl From<MoveError> for ApiError {
    fn from(error: MoveError) -> ApiError {
        let message = error.to_string();
        let later = Duration::from_secs(5);
        match error {
            MoveError::UnknownConnection { .. } => {
                ApiError::new(StatusCode::NOT_FOUND, "unknown_connection", message).field(Some("from".to_owned()))
            }
            MoveError::NotConfigured { .. } => ApiError::new(StatusCode::CONFLICT, "not_configured", message).field(Some("to".to_owned())),
            MoveError::Stopping { .. } => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message).retry_after(later),
            MoveError::Full { .. } => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "store_full", message),
            MoveError::Failed { .. } => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "move_failed", message).retry_after(later),
        }
    }
}
