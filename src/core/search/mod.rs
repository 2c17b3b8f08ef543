//! What an operator looks for among deliveries: by what was accepted, and by what has become of it.
//!
//! A [`Filter`] is about what was accepted, which never changes; a [`State`] is about now. The log's pages say about themselves which
//! [keys](Filter::keys) they may hold, so most of what a filter excludes is passed over unread.

mod topic_filter;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use topic_filter::{InvalidTopicFilter, TopicFilter};

use super::event::{Accepted, Event};
use super::outbox::{Lane, Outbox};
use super::types::{ConnectionName, LaneKey, Millis, SendNo, Seq};

/// The key of a page's filter that a page has which holds an [audit](Event::Audit). Pages of a store that was written before there was this key don't
/// have it: what was done then is still in `GET /v1/events`, and in each delivery's history.
pub const AUDIT_KEY: &str = "e:audit";

/// What was accepted: everything that is set has to be so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// The report's tenant.
    pub tenant: Option<String>,
    /// The report's pipeline.
    pub pipeline: Option<String>,
    /// The report's action.
    pub action: Option<String>,
    /// The report's change number.
    pub change: Option<String>,
    /// The connection.
    pub connection: Option<ConnectionName>,
    /// The topic, perhaps with wildcards.
    pub topic: Option<TopicFilter>,
    /// Accepted then or later.
    pub since: Option<Millis>,
    /// Accepted before then.
    pub until: Option<Millis>,
    /// Of one of these tenants: those that whoever asks may see. None: of any.
    pub within: Option<Arc<BTreeSet<String>>>,
}

impl Filter {
    /// Whether it excludes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Whether a delivery is looked for.
    pub fn matches(&self, accepted: &Accepted) -> bool {
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        is(&self.tenant, &accepted.tenant)
            && is(&self.pipeline, &accepted.pipeline)
            && is(&self.action, &accepted.action)
            && is(&self.change, &accepted.change)
            && self.connection.as_ref().is_none_or(|connection| *connection == accepted.lane.connection)
            && self.topic.as_ref().is_none_or(|topic| topic.matches(&accepted.topic))
            && self.since.is_none_or(|since| accepted.at >= since)
            && self.until.is_none_or(|until| accepted.at < until)
            && self.within.as_ref().is_none_or(|tenants| tenants.contains(&accepted.tenant))
    }

    /// The keys of a page's filter that a page with such a delivery has, all of them.
    pub fn keys(&self) -> Vec<String> {
        let exact = self.topic.as_ref().and_then(|topic| topic.exact());
        let only = self.within.as_ref().filter(|tenants| tenants.len() == 1).and_then(|tenants| tenants.first());
        let named =
            [("t:", self.tenant.as_ref().or(only).map(String::as_str)), ("p:", self.pipeline.as_deref()), ("a:", self.action.as_deref())];
        let named = named.into_iter().chain([("c:", self.change.as_deref()), ("T:", exact)]);
        // What is empty leaves no trace in a page's filter.
        named.filter_map(|(prefix, value)| value.filter(|value| !value.is_empty()).map(|value| format!("{prefix}{value}"))).collect()
    }
}

/// What has become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is to be delivered.
    Pending,
    /// It waits for an operator.
    Dead,
    /// It is done.
    Delivered,
    /// Its time limit passed before it was sent.
    Expired,
    /// An operator gave it up, or moved it to another connection.
    Discarded,
    /// It has ended, one of the three ways above, and nobody has looked which.
    Ended,
}

impl State {
    /// Those that can be asked for.
    pub const ALL: [State; 5] = [State::Pending, State::Dead, State::Delivered, State::Expired, State::Discarded];

    /// The name in answers and in questions.
    pub fn name(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Dead => "dead",
            State::Delivered => "delivered",
            State::Expired => "expired",
            State::Discarded => "discarded",
            State::Ended => "ended",
        }
    }

    /// The state with this name.
    pub fn by_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether nothing more is to become of it.
    pub fn is_end(self) -> bool {
        !matches!(self, State::Pending | State::Dead)
    }
}

/// What the outbox knows of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Pending, dead, or ended.
    pub state: State,
    /// Its last send number; of one that has ended the number that it was accepted under.
    pub send: SendNo,
    /// The event that holds it now.
    pub located: Seq,
    /// Refusals charged so far, while it is pending.
    pub attempts: u32,
    /// When it is tried again, if it waits for that.
    pub retry_at: Option<Millis>,
    /// Since when it is dead.
    pub dead_at: Option<Millis>,
}

/// The outbox as of one moment, for questions about many deliveries.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    lanes: HashMap<LaneKey, Lane>,
    /// Those that are not where counting sends finds them.
    apart: HashMap<Seq, (LaneKey, Standing)>,
    /// Connections of which something ended otherwise than delivered.
    otherwise: Vec<ConnectionName>,
    /// The position after the last event in it.
    pub next: Seq,
    /// The first position that is still stored.
    pub oldest: Seq,
}

impl Snapshot {
    /// The outbox as it is; of one connection, or all.
    pub fn of(outbox: &Outbox, connection: Option<&ConnectionName>) -> Snapshot {
        let mut snapshot =
            Snapshot { next: outbox.next(), oldest: outbox.oldest_generation().unwrap_or(Seq::FIRST), ..Snapshot::default() };
        for (name, known) in outbox.connections() {
            if connection.is_some_and(|wanted| wanted != name) {
                continue;
            }
            if known.totals.expired + known.totals.discarded > 0 {
                snapshot.otherwise.push(name.clone());
            }
            for (number, lane) in &known.lanes {
                let key = LaneKey { connection: name.clone(), lane: *number };
                snapshot.apart.extend(apart(lane).map(|(id, standing)| (id, (key.clone(), standing))));
                snapshot.lanes.insert(key, lane.clone());
            }
        }
        snapshot
    }

    /// How the delivery stands that was accepted as `id`, under this number of this lane.
    pub fn standing(&self, id: Seq, lane: &LaneKey, send: SendNo) -> Standing {
        if let Some((_, standing)) = self.apart.get(&id) {
            return *standing;
        }
        let is_pending = self.lanes.get(lane).is_some_and(|known| known.is_pending(send) && !known.moved().contains_key(&send));
        let state = if is_pending { State::Pending } else { State::Ended };
        Standing { state, send, located: id, attempts: 0, retry_at: None, dead_at: None }
    }

    /// A delivery that is held apart, by its id.
    pub fn apart(&self, id: Seq) -> Option<&(LaneKey, Standing)> {
        self.apart.get(&id)
    }

    /// Where everything is held that is apart and in this state, rising.
    pub fn places(&self, state: State) -> Vec<Seq> {
        let mut places: Vec<Seq> =
            self.apart.values().filter(|(_, standing)| standing.state == state).map(|(_, standing)| standing.located).collect();
        places.sort_unstable();
        places
    }

    /// Dead letters of these lanes: id, lane, and how each stands; by id.
    pub fn dead(&self) -> Vec<(Seq, LaneKey, Standing)> {
        let dead = self.apart.iter().filter(|(_, (_, standing))| standing.state == State::Dead);
        let mut dead: Vec<_> = dead.map(|(id, (lane, standing))| (*id, lane.clone(), *standing)).collect();
        dead.sort_unstable_by_key(|(id, ..)| *id);
        dead
    }

    /// The connections with anything pending.
    pub fn with_pending(&self) -> Vec<ConnectionName> {
        let mut names: Vec<ConnectionName> =
            self.lanes.iter().filter(|(_, lane)| lane.pending() > 0).map(|(key, _)| key.connection.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// How many of a connection's deliveries wait for a retry, or were requeued and not sent yet.
    pub fn waiting(&self, connection: &ConnectionName) -> usize {
        self.lanes.iter().filter(|(key, _)| key.connection == *connection).map(|(_, lane)| lane.waiting().len()).sum()
    }

    /// From here on stands everything that is pending and found by counting sends; none if nothing is.
    pub fn pending_from(&self) -> Option<Seq> {
        let with_plain = self.lanes.values().filter(|lane| lane.plain_pending_below(lane.next_send()) > 0);
        with_plain.filter_map(|lane| lane.anchor_for(lane.cursor())).min()
    }

    /// Whether anything of `first..end` of a lane is pending where it was accepted.
    pub fn has_pending(&self, lane: &LaneKey, first: SendNo, end: Option<SendNo>) -> bool {
        let Some(known) = self.lanes.get(lane) else { return false };
        let end = end.unwrap_or(known.next_send());
        known.plain_pending_below(end) > known.plain_pending_below(first)
    }

    /// Whether a delivery of the connection that has ended can only have been delivered.
    pub fn ends_delivered(&self, connection: &ConnectionName) -> bool {
        !self.otherwise.contains(connection)
    }
}

fn apart(lane: &Lane) -> impl Iterator<Item = (Seq, Standing)> + '_ {
    let plain = Standing { state: State::Pending, send: SendNo(0), located: Seq(0), attempts: 0, retry_at: None, dead_at: None };
    let waiting = lane.waiting().iter().map(move |(send, waiting)| {
        let (located, attempts, retry_at) = (waiting.located, waiting.attempts, Some(waiting.retry_at));
        (waiting.id, Standing { send: *send, located, attempts, retry_at, ..plain })
    });
    let moved = lane
        .moved()
        .iter()
        .map(move |(send, moved)| (moved.id, Standing { send: *send, located: moved.located, attempts: moved.attempts, ..plain }));
    let dead = lane.dead().iter().map(move |(send, dead)| {
        (dead.id, Standing { state: State::Dead, send: *send, located: dead.located, dead_at: Some(dead.at), ..plain })
    });
    waiting.chain(moved).chain(dead)
}

/// How a send ends by an event, if it does: its lane and which sends.
pub fn end_of(event: &Event) -> Option<(&LaneKey, &super::ranges::Ranges, State)> {
    match event {
        Event::Delivered { lane, sends, .. } => Some((lane, sends, State::Delivered)),
        Event::Expired { lane, sends, .. } => Some((lane, sends, State::Expired)),
        Event::Discarded { lane, sends, .. } => Some((lane, sends, State::Discarded)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::Qos;

    fn accepted() -> Accepted {
        let lane = LaneKey { connection: "mqtt".into(), lane: 1 };
        Accepted {
            tenant: "acme".into(),
            pipeline: "check".into(),
            action: "success".into(),
            change: "77".into(),
            ..Accepted::plain(lane, "zuul/p/1", Qos::ExactlyOnce, Millis(1_000))
        }
    }

    fn within(tenants: &[&str]) -> Option<Arc<BTreeSet<String>>> {
        Some(Arc::new(tenants.iter().map(|tenant| (*tenant).to_owned()).collect()))
    }

    #[test]
    fn everything_that_is_set_has_to_be_so() {
        let text = |text: &str| Some(text.to_owned());
        let fits = [
            Filter::default(),
            Filter { tenant: text("acme"), pipeline: text("check"), action: text("success"), change: text("77"), ..Filter::default() },
            Filter { connection: Some("mqtt".into()), topic: TopicFilter::parse("zuul/+/1").ok(), ..Filter::default() },
            Filter { since: Some(Millis(1_000)), until: Some(Millis(1_001)), ..Filter::default() },
            Filter { within: within(&["other", "acme"]), ..Filter::default() },
        ];
        for filter in fits {
            assert!(filter.matches(&accepted()), "{filter:?}");
        }
        let does_not_fit = [
            Filter { tenant: text("acm"), ..Filter::default() },
            Filter { pipeline: text(""), ..Filter::default() },
            Filter { action: text("failure"), tenant: text("acme"), ..Filter::default() },
            Filter { change: text("7"), ..Filter::default() },
            Filter { connection: Some("other".into()), ..Filter::default() },
            Filter { topic: TopicFilter::parse("zuul/+").ok(), ..Filter::default() },
            Filter { since: Some(Millis(1_001)), ..Filter::default() },
            Filter { until: Some(Millis(1_000)), ..Filter::default() },
            Filter { within: within(&["other", "acm"]), ..Filter::default() },
            Filter { within: within(&[]), tenant: text("acme"), ..Filter::default() },
        ];
        for filter in does_not_fit {
            assert!(!filter.matches(&accepted()), "{filter:?}");
        }
    }

    #[test]
    fn a_page_is_asked_for_what_can_be_looked_up_and_for_nothing_else() {
        let filter = Filter {
            tenant: Some("acme".into()),
            action: Some(String::new()),
            topic: TopicFilter::parse("a/b").ok(),
            since: Some(Millis(1)),
            ..Filter::default()
        };
        assert_eq!(filter.keys(), ["t:acme", "T:a/b"]);
        let wildcard = Filter { topic: TopicFilter::parse("a/#").ok(), ..Filter::default() };
        assert_eq!(wildcard.keys(), [""; 0]);
        let keys = |tenant: Option<&str>, tenants: &[&str]| {
            Filter { tenant: tenant.map(str::to_owned), within: within(tenants), ..Filter::default() }.keys()
        };
        assert_eq!(keys(None, &["acme"]), ["t:acme"]);
        assert_eq!((keys(Some("b"), &["acme"]), keys(None, &["acme", "b"])), (vec!["t:b".to_owned()], Vec::new()));
    }

    #[test]
    fn every_state_is_known_by_its_name() {
        for state in State::ALL {
            assert_eq!(State::by_name(state.name()), Some(state));
        }
        assert_eq!((State::by_name("ended"), State::by_name("Dead")), (None, None));
    }
}
