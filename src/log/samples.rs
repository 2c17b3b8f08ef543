//! Events for the log's tests.

use std::sync::Arc;

use bytes::Bytes;

use crate::core::event::{Accepted, Dedupe, Event, Properties, Source};
use crate::core::types::{LaneKey, Millis, Qos, Seq};

/// The lane `mq/<lane>`.
pub(super) fn lane(lane: u32) -> LaneKey {
    LaneKey { connection: "mq".into(), lane }
}

/// A report, the `n`-th of its producer, with a payload that compresses about as well as real ones.
pub(super) fn report(n: u64) -> Event {
    with_payload(n, payload(n))
}

/// A report with this payload.
pub(super) fn with_payload(n: u64, payload: Vec<u8>) -> Event {
    Event::Accepted(Arc::new(Accepted {
        at: Millis(1_767_225_600_000 + n),
        source: Source::Http,
        user: "zuul".into(),
        tenant: "acme".into(),
        pipeline: "gate".into(),
        action: "success".into(),
        project: format!("acme/project-{}", n % 40),
        change: n.to_string(),
        lane: lane((n % 4) as u32),
        topic: format!("acme/gate/project-{}/master", n % 40),
        qos: Qos::ExactlyOnce,
        retain: false,
        expiry_s: None,
        properties: Properties::default(),
        payload: Bytes::from(payload),
        dedupe: Some(Dedupe { key: u128::from(n) * 0x9e37_79b9_7f4a_7c15_f39c, body: n, line: 0, lines: 1, batch: false }),
        replay_of: n.is_multiple_of(17).then_some(Seq(n)),
    }))
}

/// Three builds of a buildset in JSON: about 1.9 KiB.
fn payload(n: u64) -> Vec<u8> {
    let build = |job: &str, m: u64| {
        let uuid = (n * 3 + m).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!(
            "{{\"job_name\":\"acme-{job}\",\"voting\":true,\"uuid\":\"{uuid:032x}\",\"start_time\":{},\"end_time\":{},\
             \"execute_time\":{},\"log_url\":\"https://logs.acme.example/{n}/gate/acme-{job}/{uuid:x}/\",\"web_url\":\
             \"https://ci.acme.example/t/acme/build/{uuid:032x}\",\"result\":\"SUCCESS\",\"dependencies\":[],\
             \"artifacts\":[{{\"name\":\"docs\",\"url\":\"https://logs.acme.example/{n}/docs/{uuid:x}.html\"}}]}}",
            1_767_225_600 + n,
            1_767_225_700 + n + m,
            1_767_225_601 + n,
        )
    };
    format!(
        "{{\"action\":\"success\",\"tenant\":\"acme\",\"zuul_ref\":\"Z{:032x}\",\"pipeline\":\"gate\",\"project\":\"acme/project-{}\",\
         \"branch\":\"master\",\"change_url\":\"https://review.acme.example/{n}\",\"message\":\"Build succeeded (gate pipeline).\",\
         \"buildset\":{{\"uuid\":\"{:032x}\",\"result\":\"SUCCESS\",\"builds\":[{},{},{}]}}}}",
        n.wrapping_mul(0x2545_f491_4f6c_dd1d),
        n % 40,
        n.wrapping_mul(0x5851_f42d_4c95_7f2d),
        build("unit", 0),
        build("lint", 1),
        build("integration-postgresql", 2),
    )
    .into_bytes()
}
