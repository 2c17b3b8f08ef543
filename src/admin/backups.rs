//! Backups of a running service: it says what to copy, and keeps that for as long as the command says that it is still at it.
//!
//! ```text
//!   POST /v1/backups ─▶ a new generation begins; all before it stands still and is kept ─▶ the command copies, and renews
//!        PUT …/{id}, a few times a minute ─▶ kept for another minute        DELETE …/{id} ─▶ retention goes on
//! ```
//! The reports themselves don't go through here: `tidings backup` runs on the same machine and reads the store's folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{post, put};
use axum::{Extension, Router};
use serde::{Deserialize, Serialize};

use crate::core::event::Event;
use crate::log::committer::{BACKUP_HOLDS, CommitError, LogHandle, now};
use crate::server::caller::Caller;
use crate::server::error::{ApiError, json};

/// `POST /v1/backups`: what to copy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupBegun {
    /// What it is renewed and ended by.
    pub id: String,
    /// The store's folder on the service's machine.
    pub store: PathBuf,
    /// The store's id.
    pub store_id: String,
    /// The last event that is in the backup.
    pub position: u64,
    /// It ends by itself if it is not renewed within so many seconds.
    pub holds_s: u64,
    /// What to copy, oldest first.
    pub generations: Vec<BackupGeneration>,
}

/// A generation that stands still.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct BackupGeneration {
    /// Its first event.
    pub first: u64,
    /// Its size on disk, in bytes.
    pub bytes: u64,
}

/// What the routes need.
struct Backups {
    log: LogHandle,
    /// None if the store is in no folder.
    store: Option<PathBuf>,
}

/// The routes, for the store in the folder `store`; none if it is in no folder, and then there is nothing to copy here.
pub fn routes(log: LogHandle, store: Option<PathBuf>) -> Router {
    // A command in another working directory has to find it.
    let store = store.map(|store| store.canonicalize().unwrap_or(store));
    Router::new()
        .route("/v1/backups", post(begin))
        .route("/v1/backups/{id}", put(renew).delete(end))
        .with_state(Arc::new(Backups { log, store }))
}

async fn begin(State(backups): State<Arc<Backups>>, Extension(caller): Extension<Caller>) -> Response<Body> {
    let Some(store) = backups.store.clone() else {
        let message = "the store is a stream on other machines, and not in a folder: back it up there, see ops/cluster.md";
        return ApiError::new(StatusCode::CONFLICT, "not_in_a_folder", message).into_response();
    };
    match backups.log.begin_backup().await {
        Ok(Some(begun)) => {
            // Whoever needs no token has no name here.
            let who = caller.token().unwrap_or("tidings backup").to_owned();
            let what = format!("began a backup of everything up to event {}", begun.position);
            if let Err(error) = backups.log.record(vec![Event::Audit { who, what, at: now() }]).await {
                return unavailable(&error);
            }
            let generations = begun.generations.iter().map(|(first, bytes)| BackupGeneration { first: first.0, bytes: *bytes }).collect();
            let answer = BackupBegun {
                id: format!("{:016x}", begun.id),
                store,
                store_id: backups.log.store_id().to_string(),
                position: begun.position.0,
                holds_s: BACKUP_HOLDS.as_secs(),
                generations,
            };
            json(StatusCode::CREATED, &answer)
        }
        Ok(None) => {
            let message = format!(
                "another backup is under way; wait for it. One that was killed is forgotten within {} seconds",
                BACKUP_HOLDS.as_secs()
            );
            ApiError::new(StatusCode::CONFLICT, "backup_under_way", message).into_response()
        }
        Err(error) => unavailable(&error),
    }
}

/// What the path names; not even UTF-8 is no backup either.
type Id = Result<Path<String>, PathRejection>;

async fn renew(State(backups): State<Arc<Backups>>, id: Id) -> Response<Body> {
    match number(id) {
        Some(id) => settled(backups.log.renew_backup(id).await),
        None => settled(Ok(false)),
    }
}

async fn end(State(backups): State<Arc<Backups>>, id: Id) -> Response<Body> {
    match number(id) {
        Some(id) => settled(backups.log.end_backup(id).await),
        None => settled(Ok(false)),
    }
}

fn number(id: Id) -> Option<u64> {
    let Path(id) = id.ok()?;
    // As it was given: `from_str_radix` would take a sign, too.
    if id.len() != 16 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(&id, 16).ok()
}

fn settled(found: Result<bool, CommitError>) -> Response<Body> {
    match found {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => {
            let message = "there is no such backup under way: it has ended, or was not renewed in time; begin another";
            ApiError::new(StatusCode::NOT_FOUND, "no_such_backup", message).into_response()
        }
        Err(error) => unavailable(&error),
    }
}

fn unavailable(error: &CommitError) -> Response<Body> {
    let with = |status| ApiError::new(status, error.code(), error.to_string());
    let refused = match error {
        CommitError::Full(_) => with(StatusCode::INSUFFICIENT_STORAGE),
        CommitError::DoesNotFit(_) | CommitError::Conflict => with(StatusCode::INTERNAL_SERVER_ERROR),
        CommitError::Overloaded
        | CommitError::Stopped
        | CommitError::NotOwner(_)
        | CommitError::ChangedMeanwhile(_)
        | CommitError::LanesChanged(_)
        | CommitError::Store(_) => with(StatusCode::SERVICE_UNAVAILABLE).retry_after(Duration::from_secs(5)),
    };
    refused.into_response()
}
