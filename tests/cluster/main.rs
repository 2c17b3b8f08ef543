//! Several instances over one log on NATS JetStream, from outside: what is promised when one of them, or one of the servers below, is killed, stopped or cut off.
//!
//! ```text
//!   2 over HTTP: the same key, at the next instance until 202 ─┐   ┌─▶ instance 0 ─┐                    ┌─▶ subscriber, in order
//!   2 over MQTT: persistent sessions, at the next instance    ─┴───┼─▶ instance 1 ─┼─▶ relay ─▶ mosquitto
//!                                                                  └─▶ instance 2 ─┘
//!                                       nats-server 0 ◀─ relay ─▶ 1 ◀─ relay ─▶ 2 ◀─ relay of each instance
//! ```
//!
//! Every connection between two of them goes through a relay of its own ([`support::relay`]), so each can be cut off from each.
//!
//! | Module | Holds |
//! |---|---|
//! | `rounds` | trouble after trouble under load, from a seed |
//! | `fence` | an owner that was stopped with PUBRECs in its socket |
//! | `quorum` | two of three servers away; all of it without power |
//! | `coming` | instances that come, go, and are restarted one by one |
//! | `reloads` | other configurations, at one instance or at all: a connection less |
//! | `anywhere` | what any instance is asked: keys, dead letters, replays, moves |
//! | `switch` | the broker at one address for all, and a wire to it for each |
//! | `scene`, `load`, `publishing`, `watch` | all of it together; who reports over HTTP and over MQTT; who looks at lanes and owners |
//!
//! | Environment | |
//! |---|---|
//! | `TIDINGS_CLUSTER_ROUNDS` | rounds of trouble; 4 if not set |
//! | `TIDINGS_CLUSTER_SEED` | what chance decides; the time if not set, and printed |
//! | `TIDINGS_CLUSTER_STOP_SECONDS` | how long the owner in `fence` is stopped; 8 |
//! | `TIDINGS_CLUSTER_NATS_SERVER` | the nats-server, as a path; the one that is installed if not set. `ops/test` sets it where that one is older than 2.10.12 |
//! | `TIDINGS_CLUSTER_LOGS` | a folder for what all of them have logged; none if not set |
//!
//! The promise has a time in it (lanes are owned again in 5 s, and delivering soon after), so these tests measure it. What this process itself was kept from
//! running meanwhile is taken off: so long the others may have waited as well.
#![cfg(all(unix, feature = "jetstream"))]

#[path = "../support/mod.rs"]
mod support;

mod anywhere;
mod chance;
mod coming;
mod fence;
mod load;
#[allow(dead_code, reason = "the listener's tests use the rest")]
#[path = "../listener/publisher.rs"]
mod publisher;
mod publishing;
mod quorum;
mod reloads;
mod rounds;
mod scene;
mod switch;
mod watch;
#[path = "../listener/window.rs"]
mod window;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}
