//! What a run is about, drawn from its seed: how many reports, what the brokers are like, and how much goes wrong.

use tidings::core::types::Protocol;

use crate::chance::Chance;

/// What one broker is like.
#[derive(Debug, Clone)]
pub struct BrokerStory {
    pub speaks_5: bool,
    pub speaks_3_1_1: bool,
    /// MQTT 5: PUBLISH packets of QoS 1 and 2 in flight.
    pub receive_maximum: Option<u16>,
    /// MQTT 3.1.1: what is in flight beyond this is acknowledged and dropped, without a word, as mosquitto does.
    pub max_inflight: usize,
    /// QoS 2 is passed on at PUBLISH rather than at PUBREL (MQTT 5.0 §4.3.3 allows both).
    pub delivers_at_publish: bool,
    /// Acknowledgements come in any order.
    pub out_of_order: bool,
    /// MQTT 5: a repeated PUBLISH that is known is answered with 0x91 rather than with success.
    pub says_in_use: bool,
    /// When it restarts, packet identifiers come back that were done with.
    pub has_ghosts: bool,
    /// In a hundred PUBLISH packets over MQTT 5, so many are refused.
    pub refusals: u64,
    /// In a thousand acknowledgements, so many take almost as long as the lane has patience.
    pub slow_acks: u64,
    /// An answer takes up to so long, in milliseconds.
    pub answer_ms: u64,
    /// A packet is on its way up to so long, in milliseconds.
    pub network_ms: u64,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Story {
    pub seed: u64,
    /// Requests that producers make over HTTP, each of one report or a few.
    pub requests: u64,
    /// Publishes of MQTT clients.
    pub publishes: u64,
    /// Many requests are made at one moment.
    pub bursts: bool,
    pub brokers: Vec<BrokerStory>,
    /// What the operator has set; none: automatic.
    pub protocol: Option<Protocol>,
    pub workers: u32,
    pub topics: u64,
    pub window: u16,
    pub packet_ids: u16,
    /// A commit takes up to so long, in milliseconds.
    pub disk_ms: u64,
    /// A generation of the log is full after so many bytes.
    pub generation_bytes: u64,
    /// What is delivered may go as soon as its generation is sealed.
    pub retains_nothing: bool,
    /// Something goes wrong so often, in milliseconds, on average.
    pub trouble_every_ms: u64,
    /// How often each kind of trouble is the one.
    pub troubles: Troubles,
    /// A delivery of so many in a hundred has a time limit of some seconds.
    pub expiring: u64,
    /// Requests are made for so long, in milliseconds.
    pub span_ms: u64,
    /// And then all is calm.
    pub storm_ms: u64,
}

/// Weights.
#[derive(Debug, Clone, Default)]
pub struct Troubles {
    pub cut: u64,
    pub half_open: u64,
    pub broker_dies: u64,
    pub session_lost: u64,
    pub broker_stalls: u64,
    pub broker_refuses: u64,
    pub crash: u64,
    pub restart: u64,
    pub disk_fails: u64,
    pub disk_full: u64,
    pub clock_jumps: u64,
    pub operator: u64,
    pub moves: u64,
    pub copied: u64,
}

impl Story {
    pub fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0x5eed);
        let brokers = chance.within(1, 2);
        let protocol = chance.pick(&[None, None, Some(Protocol::V5), Some(Protocol::V5), Some(Protocol::V311)]);
        let window = chance.pick(&[1u16, 2, 2, 3, 4, 8]);
        let disk_ms = chance.pick(&[2, 10, 60, 200]);
        // More than may be in doubt, or nobody could tell two of them apart.
        let packet_ids = 2 * window + 1 + if chance.percent(60) { chance.within(0, 12) } else { chance.within(40, 120) } as u16;
        let span_ms = chance.pick(&[1_000, 5_000, 10_000]);
        let mut maybe = |often: u64, weight: u64| if chance.percent(often) { chance.within(1, weight) } else { 0 };
        let mut troubles = Troubles {
            cut: maybe(70, 10),
            half_open: maybe(30, 3),
            broker_dies: maybe(40, 4),
            session_lost: maybe(25, 3),
            broker_stalls: maybe(40, 3),
            broker_refuses: maybe(25, 2),
            crash: maybe(60, 10),
            restart: maybe(40, 3),
            disk_fails: maybe(30, 3),
            disk_full: maybe(25, 3),
            clock_jumps: maybe(40, 3),
            operator: maybe(40, 4),
            moves: maybe(15, 2),
            copied: maybe(10, 1),
        };
        if brokers < 2 {
            troubles.moves = 0;
        }
        Story {
            seed,
            requests: chance.within(5, 40),
            publishes: if chance.percent(50) { chance.within(3, 25) } else { 0 },
            bursts: chance.percent(40),
            brokers: (0..brokers).map(|_| BrokerStory::of(&mut chance, protocol, window)).collect(),
            protocol,
            workers: chance.within(1, 3) as u32,
            topics: chance.within(1, 6),
            window,
            packet_ids,
            disk_ms,
            generation_bytes: chance.pick(&[4_000, 20_000, 1 << 30]),
            retains_nothing: chance.percent(50),
            trouble_every_ms: chance.pick(&[40, 150, 600, 3_000]),
            troubles,
            expiring: if chance.percent(20) { chance.within(5, 60) } else { 0 },
            span_ms,
            storm_ms: span_ms + chance.below(span_ms / 2),
        }
    }

    /// An hour and more of churn: tens of outages and restarts, and reports all the while.
    pub fn of_an_hour(seed: u64, requests: u64) -> Self {
        let quick = |window: u16| BrokerStory {
            speaks_5: true,
            speaks_3_1_1: true,
            receive_maximum: None,
            max_inflight: usize::from(window),
            delivers_at_publish: false,
            out_of_order: false,
            says_in_use: false,
            has_ghosts: true,
            refusals: 0,
            slow_acks: 1,
            answer_ms: 8,
            network_ms: 8,
        };
        Story {
            seed,
            requests,
            publishes: requests / 20,
            bursts: false,
            brokers: vec![quick(20), BrokerStory { speaks_5: false, delivers_at_publish: true, ..quick(20) }],
            protocol: None,
            workers: 4,
            topics: 200,
            window: 20,
            packet_ids: 65_535,
            disk_ms: 20,
            generation_bytes: 400_000,
            retains_nothing: true,
            trouble_every_ms: 20_000,
            troubles: Troubles {
                cut: 6,
                half_open: 2,
                broker_dies: 5,
                session_lost: 2,
                broker_stalls: 3,
                broker_refuses: 1,
                crash: 6,
                restart: 3,
                disk_fails: 1,
                disk_full: 1,
                clock_jumps: 2,
                operator: 2,
                moves: 0,
                copied: 0,
            },
            expiring: 0,
            span_ms: 3_600_000,
            storm_ms: 3_660_000,
        }
    }
}

impl BrokerStory {
    fn of(chance: &mut Chance, protocol: Option<Protocol>, window: u16) -> Self {
        let (speaks_5, speaks_3_1_1) = match protocol {
            Some(Protocol::V5) => (true, chance.percent(50)),
            Some(Protocol::V311) => (chance.percent(50), true),
            None => chance.pick(&[(true, true), (true, false), (false, true)]),
        };
        BrokerStory {
            speaks_5,
            speaks_3_1_1,
            receive_maximum: if chance.percent(50) { Some(chance.within(1, 2 * u64::from(window)) as u16) } else { None },
            max_inflight: usize::from(window),
            delivers_at_publish: chance.percent(50),
            out_of_order: chance.percent(30),
            says_in_use: chance.percent(40),
            has_ghosts: chance.percent(40),
            refusals: if chance.percent(35) { chance.within(1, 30) } else { 0 },
            slow_acks: if chance.percent(40) { chance.within(5, 60) } else { 0 },
            answer_ms: chance.pick(&[0, 2, 10, 50]),
            network_ms: chance.pick(&[1, 3, 20, 100]),
        }
    }
}
