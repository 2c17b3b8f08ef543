//! What is asked of the app about replays, how a job is stored, and what is known of it while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::admin::deliveries::query::Asked;
use crate::core::outbox::Job;
use crate::core::search::Filter;
use crate::log::committer::now;
use crate::server::caller::Caller;
use crate::server::error::ApiError;

/// A replay, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its id.
    pub id: u64,
    /// What is to be replayed, as it is stored. [`Spec::from`] is still to be said.
    pub spec: Spec,
    /// Reports per second; 0 for as fast as it goes.
    pub rate: u32,
    /// Who asks.
    pub by: String,
}

/// What a job is to replay: what stands in its first event, in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// The filter, with times that don't depend on when it is read.
    pub filter: Asked,
    /// Of these tenants only: who asked may see no others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<BTreeSet<String>>,
    /// Why, in the words of who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A hash of the request, so that the same key with another one is seen.
    pub body: u64,
    /// What was still stored when it was asked for begins here.
    pub from: u64,
}

impl Spec {
    /// What a job was told.
    ///
    /// # Errors
    /// If it was written by something else than this.
    pub fn read(text: &str) -> Result<Spec, String> {
        serde_json::from_str(text).map_err(|error| format!("the replay's filter can't be read: {error}"))
    }

    /// As it is stored.
    pub fn write(&self) -> String {
        serde_json::to_string(self).expect("text and numbers are JSON")
    }

    /// What is looked for.
    ///
    /// # Errors
    /// If the filter says nothing that can be looked for.
    pub fn wanted(&self) -> Result<Filter, ApiError> {
        Ok(Filter { within: self.tenants.clone().map(Arc::new), ..self.filter.clone().filter(now())? })
    }

    pub(super) fn may_be_seen(&self, caller: &Caller) -> bool {
        let within = |allowed: &BTreeSet<String>| match (&self.filter.tenant, &self.tenants) {
            (Some(tenant), _) => allowed.contains(tenant),
            (None, Some(tenants)) => tenants.is_subset(allowed),
            (None, None) => false,
        };
        caller.tenants().map(AsRef::as_ref).is_none_or(within)
    }
}

/// What is asked of the app.
pub enum Ask {
    /// A job is to begin. The answer says whether it is new.
    Start {
        /// Which.
        wanted: Box<Wanted>,
        /// Nobody may be listening any more.
        reply: oneshot::Sender<Result<(bool, Job), ReplayError>>,
    },
    /// A job is to go no further.
    Cancel {
        /// Which.
        id: u64,
        /// Who decided.
        by: String,
        /// Nobody may be listening any more.
        reply: oneshot::Sender<Result<Job, ReplayError>>,
    },
}

/// Why it was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No job has this id.
    #[error("no replay has the id {0:?}; GET /v1/replays lists those that there are")]
    Unknown(String),
    /// The key was used for another one.
    #[error("another replay was asked for with this Idempotency-Key: repeat that one, or choose another key")]
    Conflict,
    /// There are enough.
    #[error("{0} replays are under way already; wait for one, or cancel one")]
    TooMany(usize),
    /// The service stops.
    #[error("the service is stopping, and nothing was begun: ask again when it is back")]
    Stopping,
    /// The store is full.
    #[error("the store is full ({0}), and nothing was begun: ask again when it has room")]
    Full(String),
    /// The store failed, or is too busy.
    #[error("{0}; look with `tidings replay --list` whether it was begun, and ask again")]
    Failed(String),
}

/// What is known of a job besides what is stored, since the service has started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    /// What it waits for, if it waits.
    pub waits_for: Option<&'static str>,
    /// Deliveries that were left out, because their connection is not configured any more.
    pub not_configured: u64,
    /// Positions of the log that were deleted before it came to them.
    pub past_retention: u64,
}

/// That of all jobs.
#[derive(Debug, Clone, Default)]
pub struct Lives(Arc<Mutex<BTreeMap<u64, Live>>>);

impl Lives {
    /// Changes what is known of a job.
    pub fn change(&self, job: u64, change: impl FnOnce(&mut Live)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(job).or_default());
    }

    /// What is known of a job.
    pub fn of(&self, job: u64) -> Live {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&job).cloned().unwrap_or_default()
    }

    /// Forgets all but these.
    pub fn keep(&self, is_known: impl Fn(u64) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|job, _| is_known(*job));
    }
}

impl From<ReplayError> for ApiError {
    fn from(error: ReplayError) -> ApiError {
        let message = error.to_string();
        let later = Duration::from_secs(5);
        match error {
            ReplayError::Unknown(_) => ApiError::new(StatusCode::NOT_FOUND, "unknown_replay", message),
            ReplayError::Conflict => ApiError::new(StatusCode::CONFLICT, "idempotency_conflict", message),
            ReplayError::TooMany(_) => ApiError::new(StatusCode::CONFLICT, "too_many_replays", message),
            ReplayError::Stopping => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message).retry_after(later),
            ReplayError::Full(_) => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "store_full", message),
            ReplayError::Failed(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "change_failed", message).retry_after(later),
        }
    }
}
