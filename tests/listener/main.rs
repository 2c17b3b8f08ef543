//! The MQTT listener as publishers see it: the real binary, real clients, and clients that misbehave.
//!
//! | Module | Claims about |
//! |---|---|
//! | `zuul` | Zuul's own driver, and what it loses and doesn't |
//! | `clients` | paho, mosquitto_pub, rumqttc: every QoS, both protocols, with and without TLS |
//! | `crashes` | `kill -9` of the service while a publisher goes on |
//! | `exactly_once` | packet ids, sessions, and what a clean session sends again |
//! | `manners` | a connection's life: greeting, refusals, keepalive, takeover, wills |
//! | `properties` | MQTT 5: what passes through, aliases, expiry |
//! | `access` | users, certificates, loops |
//! | `full` | a store that is full |
//! | `crowd` | many connections, slow ones, and such as never read |
//! | `garbage` | bytes of a connection, mutated under a seed |
//! | `publisher` | a publisher of bytes, which does what the test says |

#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/mod.rs"]
mod support;

mod access;
mod clients;
mod crashes;
mod crowd;
mod exactly_once;
mod full;
mod garbage;
mod manners;
mod properties;
mod publisher;
mod zuul;

use support::python;

/// A listener on a free port, for the connection `mqtt`, with these further lines.
pub fn listener(more: &str) -> String {
    format!("[listener]\nlisten = \"127.0.0.1:0\"\nconnection = \"mqtt\"\n{more}\n")
}
