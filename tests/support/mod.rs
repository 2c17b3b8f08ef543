//! What the end-to-end tests stand on: the real binary, a real mosquitto, a broker that does as it is told, and a ledger outside of all.
//!
//! ```text
//!   Ledger ──posts──▶ Tidings (the binary) ──▶ Mosquitto ──▶ Subscriber ──┐
//!     ▲                        └─────────────▶ ScriptedBroker ──arrivals──┤
//!     └───────────────── accepted against arrived ◀───────────────────────┘
//! ```
//!
//! | Module | Holds |
//! |---|---|
//! | `tidings` | the service as a process: started, told to stop, killed, asked over HTTP |
//! | `mosquitto` | the broker as a process: started, stopped, frozen |
//! | `nats` | a NATS server with JetStream as a process |
//! | `relay` | a wire between two processes that can be cut |
//! | `scripted` | a broker that answers each packet as the test says, and watches the publisher's manners |
//! | `subscriber` | an independent subscriber with a persistent session |
//! | `ledger` | what was accepted and what arrived, and whether the promise was kept |
//! | `wire` | MQTT as bytes, apart from the codec that the service is built with |
//! | `splitmix` | chance of which a seed tells everything |
//! | `python` | virtual environments with pinned packages |
//! | `image` | a disk of a test's own, to be filled, or to have its power cut |

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod image;
pub mod ledger;
pub mod mosquitto;
pub mod nats;
pub mod python;
pub mod relay;
pub mod scripted;
pub mod splitmix;
pub mod subscriber;
pub mod tidings;
pub mod wire;

use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Nothing that works takes so long; what takes longer has hung. Debug builds on busy machines included.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition, with a limit.
pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, is_so);
}

/// Waits for a condition, with a limit of the test's own.
pub fn wait_within(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: did not come about within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal, by its name without `SIG`, to a process of the test's own.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(sent.success(), "SIG{name} could not be sent");
}

/// Waits until a process has ended, and says how: its exit code, or none if a signal ended it.
pub fn wait_for_end(child: &mut Child, what: &str) -> Option<i32> {
    let mut status = None;
    wait_until(what, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.and_then(|status| status.code())
}
