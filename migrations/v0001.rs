//! Version 1: the first format.
//!
//! # What a store of version 1 is
//! * The folder: `identity`, `witness`, `lock`, and generations `g<first position, 20 digits>/`, each a sled 0.34 database with an
//!   optional `seal`. See [`sled_log`](crate::log::sled_log), and the module of each file for its bytes.
//! * In the databases, in sled's own tree: pages under keys `first (8, big-endian) · kind (1) · run (8) · part (4)`. See [`codec`](crate::log::codec).
//! * In the pages: [`Event`](crate::core::event::Event)s in postcard, in the order of their variants and fields.
//! * Checkpoints are the outbox as bytes; what they hold is the committer's, and says its own version.
//!
//! Pages and events have not changed since: the live types of [`core::event`](crate::core::event) are its types, and `fixtures/v0001` holds them to
//! that. Before they change, they are copied to this file as `EventV1` and stay as they are for ever.

/// The number of this version.
pub const VERSION: u32 = 1;

/// What the fixture holds: at least one of every variant, with every field in use. Must not change.
#[cfg(test)]
pub(super) fn events() -> Vec<crate::core::event::Event> {
    use std::sync::Arc;

    use bytes::Bytes;

    use crate::core::event::{Accepted, Carried, DeadReason, Dedupe, DeliveryRef, Event, LanePurpose, Proof, Properties, Source};
    use crate::core::ranges::Ranges;
    use crate::core::types::{LaneKey, Millis, Protocol, Qos, SendNo, Seq};

    let at = |n: u64| Millis(1_767_225_600_000 + n);
    let lane = || LaneKey { connection: "mqtt".into(), lane: 3 };
    let accepted = |n: u64, payload: Vec<u8>| Accepted {
        at: at(n),
        source: Source::Http,
        user: "zuul".into(),
        tenant: "acme".into(),
        pipeline: "gate".into(),
        action: "success".into(),
        project: "acme/billing".into(),
        change: "4711".into(),
        lane: lane(),
        topic: "acme/gate/billing".into(),
        qos: Qos::ExactlyOnce,
        retain: true,
        expiry_s: Some(3600),
        properties: Properties {
            payload_format: Some(1),
            content_type: Some("application/json".into()),
            response_topic: Some("answers".into()),
            correlation_data: Some(Bytes::from_static(b"\x00\xffid")),
            user: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
        },
        payload: Bytes::from(payload),
        dedupe: Some(Dedupe { key: u128::MAX - 5, body: u64::MAX - 7, line: 1, lines: 2, batch: true }),
        replay_of: Some(Seq(77)),
    };
    let bare = Accepted {
        source: Source::Mqtt,
        user: String::new(),
        qos: Qos::AtMostOnce,
        retain: false,
        expiry_s: None,
        properties: Properties::default(),
        dedupe: None,
        replay_of: None,
        ..accepted(2, Vec::new())
    };
    let internal = Accepted { source: Source::Internal, qos: Qos::AtLeastOnce, ..accepted(3, (0..=255).cycle().take(3000).collect()) };
    let delivery = || DeliveryRef { lane: lane(), send: SendNo(70_000), id: Seq(1), located: Seq(2) };
    let ranges = || Ranges(vec![(1, 5), (9, 70_000)]);
    let delivered = |proof, n| Event::Delivered { lane: lane(), sends: ranges(), proof, at: at(n) };
    let reason = DeadReason { code: "refused".into(), broker_code: Some(0x87), message: "not authorized; grant the topic".into() };
    let by = || "operator".to_owned();
    vec![
        Event::Accepted(Arc::new(accepted(1, br#"{"action":"success"}"#.to_vec()))),
        Event::Accepted(Arc::new(bare)),
        Event::Accepted(Arc::new(internal)),
        Event::Released { lane: lane(), sends: vec![SendNo(3), SendNo(1)] },
        delivered(Proof::Flushed, 4),
        delivered(Proof::PubAck, 5),
        delivered(Proof::PubComp, 6),
        delivered(Proof::PubCompNotFound, 7),
        Event::Refused { delivery: delivery(), code: 0x97, attempts: 2, retry_at: at(99), sent_through: SendNo(70_001), at: at(8) },
        Event::Resent { delivery: delivery(), at: at(9) },
        Event::DeadLettered { delivery: delivery(), reason, attempts: 5, at: at(10) },
        Event::Requeued { delivery: delivery(), by: by(), at: at(11) },
        Event::Discarded { lane: lane(), sends: ranges(), dead: true, by: by(), reason: "moved".into(), at: at(12) },
        Event::Expired { lane: lane(), sends: Ranges::one(8), at: at(13) },
        Event::Carried(Box::new(Carried {
            id: Seq(1),
            send: SendNo(4),
            accepted: accepted(14, vec![0; 9]),
            history: vec!["refused once".into()],
        })),
        Event::ReplayStarted { job: 9, by: by(), filter: r#"{"tenant":"acme"}"#.into(), rate: 10, at: at(15) },
        Event::ReplayProgress { job: 9, through: Seq(1000), created: 17 },
        Event::ReplayEnded { job: 9, cancelled_by: Some(by()), at: at(16) },
        Event::SessionOpened {
            lane: lane(),
            epoch: 2,
            protocol: Protocol::V311,
            doubt: 200,
            endpoint: "broker:1883 zuul".into(),
            repeated: ranges(),
            at: at(17),
        },
        Event::LanesChanged { connection: "mqtt".into(), first: 4, count: 8, purpose: LanePurpose::Replay, at: at(18) },
        Event::EpochBumped { reason: "copied".into(), at: at(19) },
        Event::Received { client: "zuul-1".into(), packet_id: 65_535, at: at(20) },
        Event::ReleasedIn { client: "zuul-1".into(), packet_id: 1, at: at(21) },
        Event::Audit { who: by(), what: "did something — ünïcode".into(), at: at(22) },
    ]
}
