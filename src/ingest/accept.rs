//! One request, from its bytes to its durable answer.
//!
//! Every delivery of a request goes to the log in one call, and so in one commit: either all of it is durable, or none.

use std::sync::Arc;

use bytes::Bytes;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::batch::{BatchError, Piece, Shape, line_prefix, pieces};
use super::repeat::{first_answer, recognise};
use super::routing::{InForce, Routing};
use crate::core::event::{Accepted, Dedupe, Event, Properties, Source};
use crate::core::report::{Report, ReportError};
use crate::core::route::Routed;
use crate::core::topic::RenderError;
use crate::core::types::{ConnectionName, LaneKey, Millis, Seq};
use crate::log::ReadError;
use crate::log::codec::MAX_EVENT;
use crate::log::committer::{Appended, CommitError, Committed, LogHandle};
use crate::metrics::Metrics;
use crate::server::caller::Caller;
use crate::server::idempotency::IdempotencyKey;

/// The way of a report from its bytes to the log. Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    /// Where accepted reports go.
    pub log: LogHandle,
    /// Which reporters want a report, which lane a delivery takes, and how large a report may be.
    pub routing: InForce,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// A request, read to its end.
#[derive(Debug, Clone)]
pub struct Post {
    /// What was posted.
    pub body: Bytes,
    /// One report or many.
    pub shape: Shape,
    /// By what it is recognised when it comes again.
    pub key: Option<IdempotencyKey>,
    /// Who posted it.
    pub by: Caller,
}

impl Post {
    /// The name of whoever posted it; empty when nobody had to say. It is also whose the idempotency keys are.
    fn user(&self) -> &str {
        self.by.token().unwrap_or_default()
    }
}

/// What a request has led to: the deliveries of each report, in the order posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The shape of the request, and of its answer.
    pub shape: Shape,
    /// One entry a report; empty where no reporter wanted it.
    pub reports: Vec<Vec<Delivery>>,
}

/// A delivery, as its producer is told of it: its id, its connection, its topic and its quality of service. Shares what went to the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id.
    pub id: Seq,
    /// What was accepted.
    pub accepted: Arc<Accepted>,
}

impl Serialize for Delivery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Accepted { lane, topic, qos, .. } = &*self.accepted;
        let mut delivery = serializer.serialize_struct("Delivery", 4)?;
        // As text: a JSON reader with doubles for numbers would round it.
        delivery.serialize_field("id", &format_args!("{}", self.id))?;
        delivery.serialize_field("connection", lane.connection.as_str())?;
        delivery.serialize_field("topic", topic)?;
        delivery.serialize_field("qos", &qos.level())?;
        delivery.end()
    }
}

/// Why a request was not accepted. Nothing of it was, then.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AcceptError {
    /// The body can't be taken apart.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A report is not one.
    #[error("{}{error}", line_prefix(*line))]
    Report {
        /// Its line, in a batch.
        line: Option<usize>,
        /// What is wrong.
        error: ReportError,
    },
    /// A report can't be given its topic.
    #[error("{}{error}", line_prefix(*line))]
    Topic {
        /// Its line, in a batch.
        line: Option<usize>,
        /// What is missing.
        error: RenderError,
    },
    /// A report has a tenant that its poster may not post for.
    #[error("{}the token is not for the tenant {tenant:?}; nothing was accepted", line_prefix(*line))]
    Tenant {
        /// Its line, in a batch.
        line: Option<usize>,
        /// Its tenant.
        tenant: String,
    },
    /// A report is larger, with what is kept beside it, than the log takes as one event. The log would fail for good on it.
    #[error("{}the report and its names have {size} bytes, and the store takes {limit}", line_prefix(*line))]
    TooLarge {
        /// Its line, in a batch.
        line: Option<usize>,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A fault in Tidings: a reporter's connection has no lanes.
    #[error("internal fault, please report it: the connection {0} has no lanes")]
    NoLanes(ConnectionName),
    /// It did not become durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// It was accepted before, and the first answer can't be read.
    #[error("this request was accepted before, and its answer can't be read: {0}")]
    FirstAnswer(#[from] ReadError),
}

impl AcceptError {
    /// Stable name for metrics, logs and HTTP bodies.
    pub fn code(&self) -> &'static str {
        match self {
            AcceptError::Batch(error) => error.code(),
            AcceptError::Report { error, .. } => error.code(),
            AcceptError::Topic { error, .. } => error.code(),
            AcceptError::Tenant { .. } => "forbidden_tenant",
            AcceptError::TooLarge { .. } => "too_large",
            AcceptError::NoLanes(_) => "internal",
            AcceptError::Commit(error) => error.code(),
            AcceptError::FirstAnswer(error) => error.code(),
        }
    }

    /// What of the request is wrong: the path in the report, in a batch after its line, such as `line 3: buildset.builds[0].voting`.
    pub fn field(&self) -> Option<String> {
        let (line, field) = match self {
            AcceptError::Batch(BatchError::TooLarge { line, .. }) | AcceptError::TooLarge { line, .. } => (*line, None),
            AcceptError::Report { line, error } => (*line, error.field()),
            AcceptError::Tenant { line, .. } => (*line, Some("tenant")),
            AcceptError::Topic { line, error } => (*line, error.field()),
            _ => return None,
        };
        match (line, field) {
            (Some(line), None) => Some(format!("line {line}")),
            (line, field) => field.map(|field| line_prefix(line) + field),
        }
    }
}

/// What a request is to become, before it is durable.
struct Draft {
    /// The deliveries of all reports, in order.
    events: Vec<Event>,
    /// How many of them each report has.
    counts: Vec<usize>,
}

impl Ingest {
    /// Makes a request durable, and says what has become of it. A request that was accepted before gets its first answer.
    ///
    /// # Errors
    /// Nothing of the request was accepted then.
    pub async fn accept(&self, post: Post, now: Millis) -> Result<Committed<Answer>, AcceptError> {
        // Held to the end: see `routing`.
        let routing = self.routing.current().await;
        let pieces = pieces(&post.body, post.shape, routing.max_report)?;
        let dedupe = post.key.as_ref().map(|key| recognise(key, post.user(), &post.body, pieces.len(), post.shape));
        let draft = self.draft(&routing, &pieces, &post, dedupe, now);
        // The log recognises a request by its deliveries. One that makes none *now*, because the routes have changed since, may have made some before.
        if let Some(dedupe) = dedupe
            && draft.as_ref().map_or(true, |draft| draft.events.is_empty())
            && let Some(answer) = self.known(dedupe, now).await?
        {
            return Ok(answer);
        }
        let Draft { events, counts } = draft?;
        let answer = answer_to(&events, &counts, post.shape);
        let committed = self.log.accept(events).await?;
        match *committed.get() {
            Appended::New { first, .. } => {
                let answer = committed.map(|_| answer.numbered_from(first));
                self.count(answer.get());
                Ok(answer)
            }
            Appended::Known(request) => {
                let key = dedupe.map(|dedupe| dedupe.key).unwrap_or_default();
                Ok(first_answer(&self.log, key, committed.map(|_| request)).await?)
            }
        }
    }

    /// The first answer to a request that the window knows.
    async fn known(&self, dedupe: Dedupe, now: Millis) -> Result<Option<Committed<Answer>>, AcceptError> {
        let known = self.log.ask_latest(move |outbox| outbox.request(dedupe.key, now).copied()).await?;
        let Some(request) = *known.get() else { return Ok(None) };
        if request.body != dedupe.body {
            return Err(CommitError::Conflict.into());
        }
        Ok(Some(first_answer(&self.log, dedupe.key, known.map(|_| request)).await?))
    }

    fn draft(&self, routing: &Routing, pieces: &[Piece], post: &Post, dedupe: Option<Dedupe>, now: Millis) -> Result<Draft, AcceptError> {
        let mut draft = Draft { events: Vec::new(), counts: Vec::with_capacity(pieces.len()) };
        for (number, piece) in (0..).zip(pieces) {
            let line = piece.line;
            let report = Report::parse(piece.bytes.clone()).map_err(|error| AcceptError::Report { line, error })?;
            if !post.by.may_see(report.tenant()) {
                return Err(AcceptError::Tenant { line, tenant: report.tenant().to_owned() });
            }
            let routed = routing.routes.route(&report).map_err(|error| AcceptError::Topic { line, error })?;
            draft.counts.push(routed.len());
            let dedupe = dedupe.map(|dedupe| Dedupe { line: number, ..dedupe });
            for way in routed {
                let lane = routing.lanes.lane(&way.connection, way.topic.as_str());
                let lane = lane.ok_or_else(|| AcceptError::NoLanes(way.connection.clone()))?;
                let accepted = Self::bind(&report, way, lane, post.user(), dedupe, now);
                let size = size_bound(&accepted);
                if size > MAX_EVENT {
                    return Err(AcceptError::TooLarge { line, size, limit: MAX_EVENT });
                }
                draft.events.push(Event::Accepted(Arc::new(accepted)));
            }
        }
        Ok(draft)
    }

    /// Binds a report to one of its ways.
    fn bind(report: &Report, way: Routed, lane: LaneKey, user: &str, dedupe: Option<Dedupe>, at: Millis) -> Accepted {
        let Routed { topic, qos, retain, include_returned_data, .. } = way;
        let payload = if include_returned_data { report.payload().clone() } else { report.payload_without_returned_data() };
        Accepted {
            at,
            source: Source::Http,
            user: user.to_owned(),
            tenant: report.tenant().to_owned(),
            pipeline: report.pipeline().to_owned(),
            action: report.action().to_owned(),
            project: report.project().unwrap_or_default().to_owned(),
            change: report.change().unwrap_or_default().to_owned(),
            lane,
            topic: topic.into_string(),
            qos,
            retain,
            expiry_s: None,
            // What was posted is JSON, or it would not be here.
            properties: Properties { content_type: Some("application/json".to_owned()), ..Properties::default() },
            payload,
            dedupe,
            replay_of: None,
        }
    }

    /// Counts what is durable now, and was not before.
    fn count(&self, answer: &Answer) {
        let unwanted = answer.reports.iter().filter(|report| report.is_empty()).count();
        self.metrics.tidings_reports_accepted_total.with_label_values(&[Source::Http.label()]).inc_by(answer.reports.len() as u64);
        self.metrics.tidings_reports_unrouted_total.inc_by(unwanted as u64);
        // Looking a counter up takes longer than counting.
        let deliveries: Vec<&ConnectionName> = answer.reports.iter().flatten().map(|delivery| &delivery.accepted.lane.connection).collect();
        for run in deliveries.chunk_by(|one, other| one == other) {
            self.metrics.tidings_deliveries_created_total.with_label_values(&[run[0].as_str()]).inc_by(run.len() as u64);
        }
    }
}

/// What an event takes in the log at most, in bytes.
fn size_bound(accepted: &Accepted) -> usize {
    /// Numbers, lengths and hashes: a few dozen bytes, generously.
    const REST: usize = 512;
    let Accepted { user, tenant, pipeline, action, project, change, lane, topic, payload, .. } = accepted;
    let names = [user, tenant, pipeline, action, project, change, topic].map(String::len);
    names.into_iter().sum::<usize>() + lane.connection.as_str().len() + payload.len() + REST
}

/// The answer to a draft, its deliveries numbered from 0.
fn answer_to(events: &[Event], counts: &[usize], shape: Shape) -> Answer {
    let mut deliveries = (0..).map(Seq).zip(events).filter_map(|(id, event)| match event {
        Event::Accepted(accepted) => Some(Delivery { id, accepted: Arc::clone(accepted) }),
        _ => None,
    });
    Answer { shape, reports: counts.iter().map(|count| deliveries.by_ref().take(*count).collect()).collect() }
}

impl Answer {
    /// The answer with its deliveries where the log has put them.
    fn numbered_from(mut self, first: Seq) -> Answer {
        for delivery in self.reports.iter_mut().flatten() {
            delivery.id = Seq(first.0 + delivery.id.0);
        }
        self
    }
}
