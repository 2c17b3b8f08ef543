//! The ways to a broker, from end to end: the real binary, a real mosquitto with certificates of the test's own, and what goes wrong on
//! the way, each time said in the service's log, in its status, and by `tidings check --connect`.
//!
//! | Module | Claims about |
//! |---|---|
//! | `setup` | the brokers, and the two questions: does it arrive, and what is said if it doesn't |
//! | `encrypted` | certificates, ciphers and versions that work, and renewal |
//! | `mistaken` | those that don't |
//! | `login` | user and password |
//! | `websocket` | WebSocket, in the clear and over TLS |
//! | `bridge` | a WebSocket server in front of mosquitto, whose package has none |
//! | `check` | what `check --connect` says |

#[path = "../support/certificates.rs"]
mod certificates;
#[path = "../support/mod.rs"]
mod support;

mod bridge;
mod check;
mod encrypted;
mod login;
mod mistaken;
mod setup;
mod websocket;
