//! A gap notice: what subscribers will not get, told on a topic of the operator's choice.
//!
//! ```text
//!   Discarded · Expired ─┐
//!                        ├─ one commit: the notice is neither lost nor told twice
//!   Accepted (notice)  ──┘  {"gap":{"count":3,"reason":"expired","by":null,"at":"…","deliveries":[{"id":"17","connection":"mqtt","topic":"…"}],"more":0}}
//! ```
//! A notice is a delivery like any other, and may be given up like any other; about that there is none.

use std::sync::Arc;

use bytes::Bytes;

use super::event::{Accepted, Event, Properties, Source};
use super::types::{ConnectionName, LaneKey, Millis, Qos, Seq};

/// So many deliveries are named in a notice; the others are counted.
pub const NAMED: usize = 100;

/// And so many bytes of topics, or one.
const NAMED_BYTES: usize = 16 << 10;

/// Where notices go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoticeTo {
    /// The lane of the topic.
    pub lane: LaneKey,
    /// The topic.
    pub topic: String,
    /// The quality of service.
    pub qos: Qos,
}

/// What will not be delivered.
#[derive(Debug, Clone, Default)]
pub struct Missing {
    count: u64,
    named: Vec<(Seq, ConnectionName, String)>,
    bytes: usize,
}

/// Whether this is a notice.
pub fn is_notice(accepted: &Accepted) -> bool {
    accepted.source == Source::Internal && accepted.replay_of.is_none()
}

/// The connection that a notice goes to, if this is one.
pub fn notice_on(event: &Event) -> Option<ConnectionName> {
    match event {
        Event::Accepted(accepted) if is_notice(accepted) => Some(accepted.lane.connection.clone()),
        _ => None,
    }
}

impl Missing {
    /// One more, unless it is a notice itself.
    pub fn add(&mut self, id: Seq, accepted: &Accepted) {
        if is_notice(accepted) {
            return;
        }
        self.count += 1;
        let has_room = self.named.is_empty() || self.bytes + accepted.topic.len() <= NAMED_BYTES;
        if self.named.len() < NAMED && has_room {
            self.bytes += accepted.topic.len();
            self.named.push((id, accepted.lane.connection.clone(), accepted.topic.clone()));
        }
    }

    /// And these.
    pub fn join(&mut self, others: Missing) {
        self.count += others.count;
        for (id, connection, topic) in others.named {
            if self.named.len() < NAMED && (self.named.is_empty() || self.bytes + topic.len() <= NAMED_BYTES) {
                self.bytes += topic.len();
                self.named.push((id, connection, topic));
            }
        }
    }

    /// The notice of it; none if nothing is missing. `reason` and `by` say why and by whose decision.
    pub fn notice(&self, to: &NoticeTo, reason: &str, by: Option<&str>, at: Millis) -> Option<Event> {
        if self.count == 0 {
            return None;
        }
        let deliveries: Vec<serde_json::Value> = self
            .named
            .iter()
            .map(|(id, connection, topic)| serde_json::json!({ "id": id.to_string(), "connection": connection.as_str(), "topic": topic }))
            .collect();
        let more = self.count - deliveries.len() as u64;
        let payload = serde_json::json!({
            "gap": { "count": self.count, "reason": reason, "by": by, "at": at.rfc3339(), "deliveries": deliveries, "more": more }
        });
        Some(Event::Accepted(Arc::new(Accepted {
            at,
            source: Source::Internal,
            user: String::new(),
            tenant: String::new(),
            pipeline: String::new(),
            action: String::new(),
            project: String::new(),
            change: String::new(),
            lane: to.lane.clone(),
            topic: to.topic.clone(),
            qos: to.qos,
            retain: false,
            expiry_s: None,
            properties: Properties { payload_format: Some(1), content_type: Some("application/json".into()), ..Properties::default() },
            payload: Bytes::from(payload.to_string()),
            dedupe: None,
            replay_of: None,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(topic: &str) -> Accepted {
        Accepted::plain(LaneKey { connection: "mqtt".into(), lane: 0 }, topic, Qos::AtLeastOnce, Millis(1))
    }

    fn to() -> NoticeTo {
        NoticeTo { lane: LaneKey { connection: "other".into(), lane: 3 }, topic: "ci/gaps".into(), qos: Qos::AtLeastOnce }
    }

    #[test]
    fn a_notice_counts_all_and_names_some() {
        let mut missing = Missing::default();
        (0..150).for_each(|id| missing.add(Seq(id), &accepted("a/b")));
        let Some(Event::Accepted(notice)) = missing.notice(&to(), "expired", None, Millis(7)) else { panic!("there is one") };
        let told: serde_json::Value = serde_json::from_slice(&notice.payload).unwrap();
        let gap = &told["gap"];
        assert_eq!((&gap["count"], &gap["more"], gap["deliveries"].as_array().unwrap().len()), (&150.into(), &50.into(), NAMED));
        assert_eq!(gap["deliveries"][7], serde_json::json!({ "id": "7", "connection": "mqtt", "topic": "a/b" }));
        assert_eq!((notice.topic.as_str(), notice.lane.lane, notice.at), ("ci/gaps", 3, Millis(7)));
    }

    #[test]
    fn about_notices_there_is_none() {
        let mut missing = Missing::default();
        missing.add(Seq(1), &accepted("a"));
        let Some(Event::Accepted(notice)) = missing.notice(&to(), "discarded", Some("ops"), Millis(7)) else { panic!("one") };
        let mut of_notices = Missing::default();
        of_notices.add(Seq(2), &notice);
        assert_eq!(of_notices.notice(&to(), "expired", None, Millis(8)), None);
    }
}
