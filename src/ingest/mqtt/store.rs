//! From what a publisher has sent to events in the log.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::registry::{Progress, Registry};
use crate::core::event::{Accepted, Event, Source};
use crate::core::listener::{Publish, Step};
use crate::core::outbox::PublishKey;
use crate::core::report::Report;
use crate::core::types::{ConnectionName, LaneKey, Millis, Qos};
use crate::ingest::routing::InForce;
use crate::log::committer::{CommitError, Committed, LogHandle};
use crate::metrics::Metrics;

/// What a report is found by takes so many bytes at most. It stands in an event beside the payload that it is from, and an event has a limit; nobody looks
/// for a longer one.
const NAMES: usize = 64 << 10;

/// What turns packets into events, for all connections.
#[derive(Clone)]
pub struct Store {
    /// The log.
    pub log: LogHandle,
    /// Where what is published goes.
    pub connection: ConnectionName,
    /// Which lane a topic takes.
    pub routing: InForce,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The wall clock; a simulation has its own.
    pub clock: fn() -> Millis,
}

/// Who publishes, as the log is told.
#[derive(Debug, Clone, Default)]
pub struct Publisher {
    /// The user.
    pub user: String,
    /// The key of its session.
    pub session: String,
    /// A hash of user and address.
    pub scope: u64,
}

/// One packet's events.
#[derive(Default)]
pub struct Planned {
    /// The report, unless the log has it already.
    accepted: Option<Event>,
    /// What is noted of its exchange.
    noted: Option<Event>,
    /// It may be a repetition.
    may_be_known: Option<PublishKey>,
}

/// Which repetitions a connection has recognised: each stored PUBLISH stands for one.
pub type Recognised = Arc<Mutex<HashSet<(u64, u16)>>>;

/// The bytes of what a report is found by.
fn names(report: &Report) -> usize {
    let names = [Some(report.tenant()), Some(report.pipeline()), Some(report.action()), report.project(), report.change()];
    names.iter().flatten().map(|name| name.len()).sum()
}

impl Store {
    /// The events of some packets. Their lanes are known when they are stored.
    pub fn plan(&self, steps: &[Step], publisher: &Publisher, connection: u64) -> Vec<Planned> {
        let at = (self.clock)();
        let client = || publisher.session.clone();
        let mut planned = Vec::with_capacity(steps.len());
        for step in steps {
            planned.push(match step {
                Step::Store { publish, is_remembered } => {
                    let key = PublishKey { connection, scope: publisher.scope, packet_id: publish.packet_id, content: publish.content() };
                    Planned {
                        accepted: Some(self.accepted(publish, &publisher.user, Some(key), at)),
                        noted: is_remembered.then(|| Event::Received { client: client(), packet_id: publish.packet_id, at }),
                        may_be_known: (publish.dup && publish.qos != Qos::AtMostOnce).then_some(key),
                    }
                }
                Step::Release { packet_id, is_remembered: true, .. } => {
                    let noted = Event::ReleasedIn { client: client(), packet_id: *packet_id, at };
                    Planned { noted: Some(noted), ..Planned::default() }
                }
                Step::Release { .. } | Step::Again { .. } | Step::Refuse(_) => continue,
            });
        }
        planned
    }

    /// A PUBLISH as an event. What is a report of Zuul's, with names of some length, can be found by these later; all else is none of our business.
    fn accepted(&self, publish: &Publish, user: &str, key: Option<PublishKey>, at: Millis) -> Event {
        let looks_like_one = publish.payload.trim_ascii_start().first() == Some(&b'{');
        let report = looks_like_one.then(|| Report::parse(publish.payload.clone()).ok()).flatten().filter(|report| names(report) <= NAMES);
        let named = |name: fn(&Report) -> Option<&str>| report.as_ref().and_then(name).unwrap_or_default().to_owned();
        Event::Accepted(Arc::new(Accepted {
            at,
            source: Source::Mqtt,
            user: user.to_owned(),
            tenant: named(|report| Some(report.tenant())),
            pipeline: named(|report| Some(report.pipeline())),
            action: named(|report| Some(report.action())),
            project: named(Report::project),
            change: named(Report::change),
            // See `append`.
            lane: LaneKey { connection: self.connection.clone(), lane: 0 },
            topic: publish.topic.clone(),
            qos: publish.qos,
            retain: publish.retain,
            expiry_s: publish.expiry_s,
            properties: publish.properties.clone(),
            payload: publish.payload.clone(),
            dedupe: key.filter(|_| publish.qos != Qos::AtMostOnce).map(PublishKey::to_dedupe),
            replay_of: None,
        }))
    }

    /// Publishes a will.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was stored then.
    pub async fn publish(&self, publish: &Publish, user: &str) -> Result<(), CommitError> {
        self.append(vec![self.accepted(publish, user, None, (self.clock)())]).await.map(drop)
    }

    /// Gives each delivery its lane, and makes all of it durable. The lanes stay what they are until it is.
    async fn append(&self, mut events: Vec<Event>) -> Result<Committed<()>, CommitError> {
        let routing = self.routing.current().await;
        let mut count = 0;
        for event in &mut events {
            if let Event::Accepted(accepted) = event {
                let lane = routing.lanes.lane(&self.connection, &accepted.topic);
                // A reload that takes the listener's connection away is refused.
                Arc::make_mut(accepted).lane =
                    lane.ok_or_else(|| CommitError::Full(format!("the connection {} has no lanes", self.connection)))?;
                count += 1;
            }
        }
        let appended = match count {
            // What ends an exchange goes on while the store is full.
            0 => self.log.record(events).await?,
            _ => self.log.accept(events).await?,
        };
        self.count(count);
        Ok(appended.map(|_| ()))
    }

    /// Makes it durable, all or none; what was stored before is not stored again.
    ///
    /// # Errors
    /// [`CommitError`]; nothing was stored then.
    pub async fn store(
        &self,
        mut planned: Vec<Planned>,
        registry: &Registry,
        connection: u64,
        progress: &Progress,
        recognised: &Recognised,
    ) -> Result<Committed<()>, CommitError> {
        let mut matched = Vec::new();
        if planned.iter().any(|planned| planned.may_be_known.is_some()) {
            registry.others_are_through(connection, progress).await;
            matched = self.drop_known(&mut planned, registry, connection, recognised).await?;
        }
        let events: Vec<Event> = planned.into_iter().flat_map(|planned| planned.accepted.into_iter().chain(planned.noted)).collect();
        match self.append(events).await {
            Ok(proof) => Ok(proof),
            Err(error) => {
                // It will be asked again.
                let mut recognised = recognised.lock().unwrap_or_else(PoisonError::into_inner);
                matched.iter().for_each(|matched| _ = recognised.remove(matched));
                Err(error)
            }
        }
    }

    /// Counts what is durable now, and was not before.
    fn count(&self, count: u64) {
        self.metrics.tidings_reports_accepted_total.with_label_values(&[Source::Mqtt.label()]).inc_by(count);
        self.metrics.tidings_deliveries_created_total.with_label_values(&[self.connection.as_str()]).inc_by(count);
    }

    /// Takes out what the log has already. Each stored PUBLISH stands for one repetition on this connection, and what a connection has stored that
    /// is still live is nobody else's.
    async fn drop_known(
        &self,
        planned: &mut [Planned],
        registry: &Registry,
        connection: u64,
        recognised: &Recognised,
    ) -> Result<Vec<(u64, u16)>, CommitError> {
        let keys: Vec<Option<PublishKey>> = planned.iter().map(|planned| planned.may_be_known).collect();
        let at = (self.clock)();
        let found = self.log.ask_latest(move |outbox| {
            let find = |key: &Option<PublishKey>| key.map(|key| outbox.recent_publishes().find(key, at).collect::<Vec<u64>>());
            keys.iter().map(find).map(Option::unwrap_or_default).collect::<Vec<_>>()
        });
        let found = found.await?.into_inner();
        let mut recognised = recognised.lock().unwrap_or_else(PoisonError::into_inner);
        let mut matched = Vec::new();
        for (planned, found) in planned.iter_mut().zip(found) {
            let Some(key) = planned.may_be_known else { continue };
            let mut candidates = found.into_iter().filter(|other| *other == connection || !registry.is_live(*other));
            if let Some(other) = candidates.find(|other| recognised.insert((*other, key.packet_id))) {
                matched.push((other, key.packet_id));
                tracing::debug!(packet_id = key.packet_id, "a repeated PUBLISH is in the log already");
                planned.accepted = None;
            }
        }
        Ok(matched)
    }
}
