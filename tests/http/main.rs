//! The HTTP side as a whole: the real router, server and committer on a port of their own, and clients that behave and misbehave.
//!
//! | Module | Claims about |
//! |---|---|
//! | `reports` | `POST /v1/reports`: what is accepted, what is refused, and what is in the log then |
//! | `repeats` | `Idempotency-Key` |
//! | `limits` | sizes, times, and clients that break off |
//! | `stopping` | a graceful stop, a store that is full, fails or hangs |
//! | `admin` | health, status, metrics |
//! | `cluster` | the same of several instances over one log |
//! | `commands` | the binary's `report`, `status` and the rest |
//! | `disk` | a log whose disk does what the test says |
//! | `service` | the service under test, and a plain client |

mod admin;
mod cluster;
mod commands;
mod disk;
mod limits;
mod repeats;
mod reports;
mod service;
mod stopping;
