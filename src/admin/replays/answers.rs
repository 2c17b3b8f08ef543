//! What is answered about replays; the commands read the same types.

use serde::{Deserialize, Serialize};

use super::asked::{Live, Spec};
use crate::admin::deliveries::query::Asked;
use crate::core::outbox::{Job, job_name};

/// A job, as it is answered; the commands read the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// `running`, `ended`, or `cancelled`.
    pub state: String,
    /// Who asked for it.
    pub by: String,
    /// Why, if that was said.
    pub reason: Option<String>,
    /// What is replayed.
    pub filter: Asked,
    /// Reports per second; 0 for as fast as it goes.
    pub rate: u32,
    /// When it was asked for (RFC 3339).
    pub started_at: String,
    /// When it had created all that it was to, or was cancelled (RFC 3339).
    pub ended_at: Option<String>,
    /// Who cancelled it.
    pub cancelled_by: Option<String>,
    /// Deliveries that it has created.
    pub created: u64,
    /// Of these, done.
    pub delivered: u64,
    /// Of these, still to be delivered.
    pub pending: u64,
    /// Of these, dead letters, expired or discarded.
    pub not_delivered: u64,
    /// How much of the log it has looked through.
    pub searched_percent: u8,
    /// What a running one waits for: `broker` (a lane has enough to do), `store_full`, or nothing.
    pub waits_for: Option<String>,
    /// Left out, because their connection is not configured any more; since the service has started.
    pub not_configured: u64,
    /// Positions of the log that retention had deleted before it came to them; since the service has started.
    pub past_retention: u64,
}

/// What a list is answered with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownJobs {
    /// Newest first.
    pub replays: Vec<Shown>,
}

/// What a dry run is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Always true.
    pub dry_run: bool,
    /// So many would be replayed.
    pub matches: u64,
    /// Their payloads, in bytes.
    pub bytes: u64,
    /// Whether that is all: false if the time was up.
    pub complete: bool,
}

impl Shown {
    pub(super) fn new(id: u64, job: &Job, spec: Spec, live: &Live) -> Shown {
        let state = match &job.end {
            None => "running",
            Some(end) if end.cancelled_by.is_some() => "cancelled",
            Some(_) => "ended",
        };
        let whole = job.asked.0.saturating_sub(spec.from).max(1);
        let searched = (job.through.0 + 1).saturating_sub(spec.from).min(whole);
        let is_running = job.end.is_none();
        Shown {
            id: job_name(id),
            state: state.to_owned(),
            by: job.by.clone(),
            reason: spec.reason,
            filter: spec.filter,
            rate: job.rate,
            started_at: job.at.rfc3339(),
            ended_at: job.end.as_ref().map(|end| end.at.rfc3339()),
            cancelled_by: job.end.as_ref().and_then(|end| end.cancelled_by.clone()),
            created: job.created,
            delivered: job.delivered,
            pending: job.pending(),
            not_delivered: job.given_up + job.dead,
            searched_percent: match state {
                "ended" => 100,
                _ => u8::try_from(searched.saturating_mul(100) / whole).unwrap_or(100),
            },
            waits_for: live.waits_for.filter(|_| is_running).map(str::to_owned),
            not_configured: live.not_configured,
            past_retention: live.past_retention,
        }
    }
}
