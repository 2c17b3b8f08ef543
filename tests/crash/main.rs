//! The promise under `kill -9`, with the books kept outside of the process.
//!
//! ```text
//!   2 over HTTP: the same Idempotency-Key until 202      ─┐              ┌─▶ subscriber with a persistent session
//!   2 over MQTT (3.1.1, 5): persistent sessions, resends ─┴▶ Tidings ─▶ mosquitto ─▶ watcher at QoS 0, for the order
//!        └─────────▶ books: sent, accepted ◀──── compared ────▶ arrived ◀────┘
//! ```
//!
//! After each start `/readyz` has to be 200 and the service's own books balanced. mosquitto has `persistence true` and
//! `max_queued_messages 0`; everything else is its default.
//!
//! | Module | Holds |
//! |---|---|
//! | `kills` | kills at random moments, the broker stopped, frozen or started in between |
//! | `points` | kills at each named point of `src/failpoint.rs`, and a proof that each was reached |
//! | `failures` | a write or a sync that fails at the n-th commit |
//! | `commands` | kills in `backup`, `restore` and `fsck --repair` |
//! | `scene` | broker, readers, service and sources together |
//! | `sources`, `books`, `watcher`, `chance` | who reports, what is known of it, who reads, what is left to chance |
//!
//! | Environment | |
//! |---|---|
//! | `TIDINGS_CRASH_ROUNDS` | rounds of each of the two tests of random kills; 100 if not set |
//! | `TIDINGS_CRASH_OUTAGE_SECONDS` | how long the broker is away while the service is killed again and again; 6 |
//! | `TIDINGS_CRASH_OUTAGE_KILLS` | how often; 4 |
//! | `TIDINGS_CRASH_POINT_ROUNDS` | how often all named points are gone through; 1 |
//! | `TIDINGS_CRASH_SEED` | what chance decides; the time if not set, and printed |
//!
//! The same seed makes the same moments, and not the same interleaving: threads, disk and broker have their own chance.

#[path = "../support/mod.rs"]
mod support;

mod books;
mod chance;
mod commands;
mod failures;
mod kills;
mod points;
#[allow(dead_code, reason = "the listener's tests use the rest")]
#[path = "../listener/publisher.rs"]
mod publisher;
mod scene;
mod sources;
mod watcher;
#[allow(dead_code, reason = "the cluster's tests use the rest")]
#[path = "../listener/window.rs"]
mod window;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}
