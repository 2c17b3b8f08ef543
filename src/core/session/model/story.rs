//! What a story is made of: one seed, and how much of each trouble.

use proptest::prelude::*;

use super::lane_key;
use crate::core::retry::RetryPolicy;
use crate::core::session::Settings;
use crate::core::types::{Protocol, Qos};

/// A small generator of random numbers: one seed tells the whole story.
pub(in crate::core::session) struct Random(u64);

impl Random {
    /// One seed, one sequence.
    pub(in crate::core::session) fn of(seed: u64) -> Random {
        Random(seed)
    }

    pub(in crate::core::session) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(in crate::core::session) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(in crate::core::session) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Clone)]
pub(in crate::core::session) struct Story {
    pub(in crate::core::session) seed: u64,
    pub(in crate::core::session) reports: u64,
    pub(in crate::core::session) protocol: Protocol,
    /// QoS 2 is passed on at PUBLISH rather than at PUBREL.
    pub(in crate::core::session) delivers_at_publish: bool,
    pub(in crate::core::session) cuts: u64,
    pub(in crate::core::session) crashes: u64,
    pub(in crate::core::session) refusals: u64,
    pub(in crate::core::session) session_losses: u64,
    pub(in crate::core::session) window: u16,
    /// So many of a hundred reports make the broker hang up.
    pub(in crate::core::session) poison: u64,
    /// So many of a thousand steps take a server away, or bring it back.
    pub(in crate::core::session) absences: u64,
    pub(in crate::core::session) servers: usize,
    /// What the brokers take at most.
    pub(in crate::core::session) maximum_qos: Qos,
    pub(in crate::core::session) downgrade: bool,
    /// So many reports in a hundred have a time limit of a few seconds.
    pub(in crate::core::session) expiring: u64,
    /// Packets of the broker arrive several at once.
    pub(in crate::core::session) together: bool,
    /// The log is shared.
    pub(in crate::core::session) claims: bool,
    /// Then in so many of a thousand steps another one takes the lane.
    pub(in crate::core::session) takeovers: u64,
}

pub(in crate::core::session) fn settings(story: &Story) -> Settings {
    Settings {
        lane: lane_key(),
        client_id: "tidings-0".into(),
        endpoints: (0..story.servers).map(|server| format!("server-{server}:1883")).collect(),
        failback_ms: 300,
        protocol: Some(story.protocol),
        keepalive_s: 60,
        window_5: story.window,
        window_3_1_1: story.window,
        session_expiry_s: 1_000,
        connect_timeout_ms: 1_000,
        ack_timeout_ms: 5_000,
        retry: RetryPolicy { initial_ms: 50, max_ms: 400, attempts: 3 },
        downgrade: story.downgrade,
        is_retired: false,
        // Few enough that they come round in a story.
        packet_ids: 31,
        claims: story.claims,
    }
}

pub(in crate::core::session) fn story() -> impl Strategy<Value = Story> {
    let chances = (0u64..30, 0u64..15, prop_oneof![Just(0u64), 0u64..30], prop_oneof![4 => Just(0u64), 1 => 0u64..20]);
    let protocol = prop_oneof![Just(Protocol::V5), Just(Protocol::V311)];
    let troubles = (
        prop_oneof![3 => Just(0u64), 1 => 1u64..10],
        prop_oneof![3 => Just(0u64), 1 => 1u64..20],
        prop_oneof![2 => Just(1usize), 1 => 2usize..4],
        prop_oneof![6 => Just(Qos::ExactlyOnce), 1 => Just(Qos::AtLeastOnce), 1 => Just(Qos::AtMostOnce)],
        any::<bool>(),
        prop_oneof![2 => Just(0u64), 1 => 1u64..100],
        any::<bool>(),
        prop_oneof![1 => Just(0u64), 1 => 1u64..40],
    );
    (any::<u64>(), 1u64..80, protocol, any::<bool>(), chances, 1u16..12, troubles).prop_map(
        |(seed, reports, protocol, at_publish, chances, window, troubles)| {
            let (cuts, crashes, refusals, session_losses) = chances;
            let (poison, absences, servers, maximum_qos, downgrade, expiring, together, takeovers) = troubles;
            // A crash between the loss of a session and its discovery is the other thing that can't be known, and so is another owner then.
            let (crashes, takeovers) = if session_losses > 0 { (0, 0) } else { (crashes, takeovers) };
            // A 3.1.1 broker says nothing about itself.
            let maximum_qos = if protocol == Protocol::V5 { maximum_qos } else { Qos::ExactlyOnce };
            Story {
                seed,
                reports,
                protocol,
                delivers_at_publish: at_publish,
                cuts,
                crashes,
                refusals,
                session_losses,
                window,
                poison,
                absences,
                servers,
                maximum_qos,
                downgrade,
                expiring,
                together,
                claims: takeovers > 0,
                takeovers,
            }
        },
    )
}
